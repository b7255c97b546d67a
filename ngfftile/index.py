"""The tile index: which tiles of which slides are worth a model's time, as two Parquet tables.

``DIR/slides/*.parquet`` has a row per slide, ``DIR/tiles/*.parquet`` a row per kept tile; one file of each per slide,
so that a slide is replaced as a whole. The same input and parameters give the same bytes: no times, hosts or absolute
paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ngfftile import picture, slide
from ngfftile.errors import MissingError, OptionError, StoreError
from ngfftile.geometry import Region
from ngfftile.locations import is_url, joined, local_path
from ngfftile.slide import Slide
from ngfftile.store import Store
from ngfftile.view import View

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]
SCHEMA_VERSION = 1
ROWS_PER_GROUP = 131_072

SLIDES = pa.schema(
    [
        ("id", pa.string()),  # of the content: the same after a move, a rename or a new conversion
        ("path", pa.string()),  # of the store, relative to the table's folder; or its url
        ("source", pa.string()),  # file name of the slide that was converted
        ("extent_x", pa.int64()),  # the slide at the delivered resolution, pixels
        ("extent_y", pa.int64()),
        ("tile_extent_x", pa.int64()),  # a tile, pixels at the delivered resolution
        ("tile_extent_y", pa.int64()),
        ("stride_x", pa.int64()),
        ("stride_y", pa.int64()),
        ("mpp_x", pa.float64()),  # delivered, micrometres per pixel; null if nobody knows
        ("mpp_y", pa.float64()),
        ("level", pa.int32()),  # stored level that is read
        ("downsample", pa.float64()),  # level-0 pixels per delivered pixel, along x
        ("mpp_requested", pa.float64()),  # null if a level was asked for
        ("edge", pa.string()),
        ("filter", pa.string()),
        ("min_fraction", pa.float64()),
        ("n_tiles", pa.int64()),  # in the grid
        ("n_kept", pa.int64()),  # in the tiles table
        ("params_id", pa.string()),  # of all parameters: with id, says what is up to date
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
TILES = pa.schema(
    [
        ("slide_id", pa.string()),
        ("tile_x", pa.int64()),  # origin, pixels at the delivered resolution
        ("tile_y", pa.int64()),
        ("x0", pa.float64()),  # origin, level-0 pixels
        ("y0", pa.float64()),
        ("row", pa.int32()),
        ("col", pa.int32()),
        ("tissue_fraction", pa.float64()),
        ("overhang", pa.float64()),  # part of the tile's area outside the slide
    ]
)


@dataclass(frozen=True, eq=False)
class Index:
    """Slides and their kept tiles; made by `ngfftile.tile`, or read from Parquet by `Index.from_parquet`.

    Parameters
    ----------
    slides, tiles
        Tables with at least the columns of `SLIDES` and `TILES`.
    base
        Folder that ``slides.path`` starts from where it is relative, as in Parquet; a url is itself.

    Examples
    --------
    >>> import ngfftile as nt
    >>> index = nt.tile("small.ome.zarr", nt.TileGrid(extent=64, mpp=0.5), min_fraction=0.0)
    >>> len(index), index.read(0).shape
    (20, (64, 64, 3))
    """

    slides: pa.Table
    tiles: pa.Table
    base: Path
    _views: dict[str, View] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"slides": self.slides, "tiles": self.tiles, "base": self.base, "_views": {}}

    def __len__(self) -> int:
        rows: int = self.tiles.num_rows
        return rows

    def __repr__(self) -> str:
        total = pc.sum(self.slides["n_tiles"]).as_py() or 0
        lines = [f"Index: {len(self)} of {total} tiles kept, {self.slides.num_rows} slides"]
        for row in self.slides.to_pylist():
            mpp = f"{row['mpp_x']:.4g} µm/px" if row["mpp_x"] else f"level {row['level']}"
            lines.append(
                f"  {row['source'] or row['path']}: {row['n_kept']} of {row['n_tiles']} tiles of "
                f"{row['tile_extent_x']} x {row['tile_extent_y']} at {mpp}, {row['filter']}"
            )
        return "\n".join(lines)

    def slide(self, slide_id: str) -> Slide:
        """The slide with that id, open.

        Raises
        ------
        MissingError
            No such slide in the index, or its store is not where the index says.
        """
        return slide.open(joined(self.base, self._row(slide_id)["path"]))

    def _row(self, slide_id: str) -> dict[str, Any]:
        rows = self.slides.filter(pc.equal(self.slides["id"], slide_id)).to_pylist()
        if not rows:
            raise MissingError(f"no slide {slide_id!r}", "index", "Its slides table names those it has.")
        row: dict[str, Any] = rows[0]
        return row

    def view(self, slide_id: str) -> View:
        """The slide at the resolution of its tiles."""
        if slide_id not in self._views:
            row = self._row(slide_id)
            opened = slide.open(joined(self.base, row["path"]))
            if opened.id != slide_id:
                raise StoreError(
                    "the store is not the slide that was indexed", opened.url, "Index it again: ngfftile tile."
                )
            asked = row["mpp_requested"]
            view = opened.view(level=row["level"]) if asked is None else opened.view(mpp=asked)
            now = (view.level.index, view.size.x, view.size.y, view.mpp.x if view.mpp else None)
            if now != (row["level"], row["extent_x"], row["extent_y"], row["mpp_x"]):
                raise StoreError(
                    "its levels or its mpp are not those that were indexed",
                    opened.url,
                    "Index it again: ngfftile tile.",
                )
            self._views[slide_id] = view
        return self._views[slide_id]

    def read(self, i: int) -> Array:
        """Pixels of tile ``i``.

        Returns
        -------
        numpy.ndarray
            (height, width, channel), uint8 for RGB; what hangs over the slide's border is white, the fill value
            where the slide is not RGB.

        Raises
        ------
        OptionError
            No such tile.
        """
        if not -len(self) <= i < len(self):
            raise OptionError(f"no tile {i}", "index.read", f"There are {len(self)}.")
        tile = {name: self.tiles[name][i].as_py() for name in ("slide_id", "tile_x", "tile_y")}
        row = self._row(tile["slide_id"])
        region = Region(tile["tile_x"], tile["tile_y"], row["tile_extent_x"], row["tile_extent_y"])
        return self.view(tile["slide_id"]).tile(region)

    def picture(self, slide_id: str | None = None, most: int = 1600) -> Image:
        """Kept tiles over the slide.

        Parameters
        ----------
        slide_id
            By default the first slide.
        most
            Longer side of the slide in the picture, pixels.
        """
        if not self.slides.num_rows:
            raise OptionError("the index has no slide", "index.picture")
        row = self._row(slide_id or self.slides["id"][0].as_py())
        tiles = self.tiles.filter(pc.equal(self.tiles["slide_id"], row["id"]))
        opened = self.slide(row["id"])
        view = self.view(row["id"])
        extent = np.array([row["tile_extent_x"] * view.downsample_x, row["tile_extent_y"] * view.downsample_y])
        origins = np.stack([tiles["x0"].to_numpy(), tiles["y0"].to_numpy()], axis=1)
        boxes = np.hstack([origins, np.broadcast_to(extent, origins.shape)])
        mpp = f"{row['mpp_x']:.3g} um/px" if row["mpp_x"] else f"level {row['level']}"
        caption = f"{row['n_kept']} of {row['n_tiles']} tiles, {row['tile_extent_x']} px at {mpp}, {row['filter']}"
        return picture.kept_tiles(opened.thumbnail(most), opened.size, boxes, caption, opened.mpp)

    def to_parquet(self, directory: str | os.PathLike[str]) -> None:
        """Write ``directory/slides`` and ``directory/tiles``; other slides' files there stay as they are.

        Each file appears as a whole, the slide's row last. A run that is killed between the two leaves tiles that do
        not belong to the row: `from_parquet` says so, and the same call mends it.
        """
        place = Path(os.path.realpath(local_path(directory)))
        place.mkdir(parents=True, exist_ok=True)
        home = Store(place)
        for row in self.slides.to_pylist():
            about = pa.Table.from_pylist([row | {"path": self._relative(row["path"], place)}], self.slides.schema)
            kept = self.tiles.filter(pc.equal(self.tiles["slide_id"], row["id"]))
            note = {"ngfftile": json.dumps({"schema_version": SCHEMA_VERSION, **_provenance(row)}, sort_keys=True)}
            home.write(f"tiles/{row['id']}.parquet", _parquet(kept, note))
            home.write(f"slides/{row['id']}.parquet", _parquet(about, note))

    def _relative(self, path: str, place: Path) -> str:
        """A store's path from another folder; a url stays what it is."""
        if is_url(path):
            return path
        return Path(os.path.relpath(os.path.realpath(self.base / path), place)).as_posix()

    @classmethod
    def from_parquet(cls, directory: str | os.PathLike[str]) -> Index:
        """Read the index that `to_parquet` wrote.

        Raises
        ------
        MissingError
            No such tables.
        StoreError
            A file is damaged, or of a later version.
        """
        place = Path(os.path.realpath(local_path(directory)))
        if not (place / "slides").is_dir() or not (place / "tiles").is_dir():
            raise MissingError(
                "no slides/ and tiles/ in it", str(place), "Make an index: ngfftile tile STORE -o DIRECTORY"
            )
        slides, of_slides = _read(place / "slides", SLIDES)
        tiles, of_tiles = _read(place / "tiles", TILES)
        for name in of_slides | of_tiles:
            if of_slides.get(name) != of_tiles.get(name):
                raise StoreError(
                    f"tiles/{name} and slides/{name} are of two runs",
                    str(place),
                    "Index that slide again: ngfftile tile.",
                )
        return cls(slides, tiles, place)

    @classmethod
    def concat(cls, indexes: Iterable[Index]) -> Index:
        """One index of the slides of many.

        Raises
        ------
        OptionError
            A slide is in two of them.
        """
        made = []
        for index in indexes:
            paths = pa.array([joined(index.base, path) for path in index.slides["path"].to_pylist()], pa.string())
            at = index.slides.schema.get_field_index("path")
            made.append((index.slides.set_column(at, "path", paths), index.tiles))
        ids = [i for slides, _ in made for i in slides["id"].to_pylist()]
        if len(ids) != len(set(ids)):
            raise OptionError("a slide is there twice", "Index.concat", "An index holds one grid for each slide.")
        if not made:
            return cls(SLIDES.empty_table(), TILES.empty_table(), Path("/"))
        slides, tiles = zip(*made, strict=True)
        both = [pa.concat_tables(t, promote_options="default") for t in (slides, tiles)]
        return cls(both[0], both[1], Path("/"))


def _provenance(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("id", "params_id", "source", "filter", "edge", "min_fraction", "mpp_requested")}


def _parquet(table: pa.Table, note: dict[str, str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(note),
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        write_page_checksum=True,  # without it most flipped bytes are read as data
    )
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def _read(folder: Path, schema: pa.Schema) -> tuple[pa.Table, dict[str, str]]:
    """All files of a folder as one table, and the params_id that each was written with."""
    tables, made = [], {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
            note = json.loads((table.schema.metadata or {}).get(b"ngfftile", b"{}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"cannot be read ({error})", str(path), "Index the slide again: ngfftile tile.") from error
        if note.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
            raise StoreError(f"is of table version {note['schema_version']}", str(path), "Install a newer ngfftile.")
        tables.append(table.replace_schema_metadata(None))
        made[path.name] = str(note.get("params_id"))
    return (pa.concat_tables(tables, promote_options="default") if tables else schema.empty_table()), made
