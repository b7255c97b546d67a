"""The stored segments (tiles or strips) of one picture in a TIFF, and how they become pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import eq
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ngfftile.errors import SourceError
from ngfftile.geometry import Region, Size
from ngfftile.sources import streams
from ngfftile.sources.orientation import Orientation
from ngfftile.sources.protocol import Array, Damaged
from ngfftile.sources.samples import Samples

MOST_TILE_BYTES = 1 << 30
_JPEG = 7
_CUT = 1 << 20  # bytes: strips of more that are not compressed are read in parts of this


class File(Protocol):
    """Where segments lie: read at any place, from any thread."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``."""


@dataclass(frozen=True, slots=True)
class Page:
    """Where the segments of one page lie: in which of the files, at which bytes; and the JPEG tables they share."""

    file: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None = None


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane: a page (None where the file lacks it), a layer of its depth, one of its samples (None for all)."""

    page: Page | None
    layer: int = 0
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """How segments cut a page.

    Parameters
    ----------
    size, tile
        Of the page and of a segment, as stored.
    thick, layers
        Layers of a segment, and of the page: more than 1 where the page is a volume.
    parts
        How many times the segments cover the page: 1, or the samples per pixel where each is stored by itself.
    width
        Bytes of a pixel in a segment.
    tiled
        Tiles, or strips.
    """

    size: Size
    tile: Size
    thick: int
    layers: int
    parts: int
    width: int
    tiled: bool

    @classmethod
    def of(cls, page: Any, path: Path) -> Grid:
        """From a page of tifffile's.

        Raises
        ------
        SourceError
            No page or segment has such a size.
        """
        parts, layers, height, width, contig = page.shaped
        tile = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
        thick = max(1, page.tiledepth) if page.is_tiled else 1
        if min(width, height, *tile, parts, layers, contig) < 1:
            raise SourceError(f"a picture of {width} x {height} in tiles of {tile[0]} x {tile[1]}", str(path))
        pixel = contig * page.dtype.itemsize
        if tile[0] * tile[1] * thick * parts * pixel > MOST_TILE_BYTES and (page.is_tiled or not page.is_final):
            raise SourceError(
                f"its tiles or strips are {tile[0]} x {tile[1]} pixels, too large to decode one by one", str(path)
            )
        return cls(Size(width, height), Size(*tile), thick, layers, parts, pixel, bool(page.is_tiled))

    @property
    def across(self) -> int:
        """Segments in a row."""
        return -(-self.size.x // self.tile.x)

    @property
    def down(self) -> int:
        """Segments in a column."""
        return -(-self.size.y // self.tile.y)

    @property
    def count(self) -> int:
        """All segments of a page."""
        return self.parts * -(-self.layers // self.thick) * self.across * self.down

    def index(self, part: int, layer: int, row: int, col: int) -> int:
        """A segment's place in the tables."""
        stack = part * -(-self.layers // self.thick) + layer // self.thick
        return (stack * self.down + row) * self.across + col

    def fits(self, frame: streams.Frame, row: int, col: int) -> bool:
        """Whether a stream's picture can be this segment: the whole of it, or what of it lies inside the page."""
        wide = min(self.tile.x, self.size.x - col * self.tile.x)
        high = min(self.tile.y, self.size.y - row * self.tile.y)
        if not self.tiled:
            return frame.width == self.size.x and high <= frame.height <= self.tile.y
        return (frame.width, frame.height) in {(self.tile.x, self.tile.y), (wide, high), (self.tile.x, high)}


def check(path: Path, what: str, grid: Grid, pages: Iterable[Page], files: Sequence[File]) -> None:
    """Whether the tables name every segment, each inside its file.

    Raises
    ------
    SourceError
        They do not.
    """
    for page in pages:
        if page.tables and streams.frame(page.tables, _JPEG) is not None:
            raise SourceError(f"{what}: its JPEG tables hold a picture", str(path), "The file is damaged.")
        if (listed := min(len(page.offsets), len(page.counts))) < grid.count:
            raise SourceError(
                f"{listed} tiles listed where {grid.size} in tiles of {grid.tile} needs {grid.count}",
                str(path),
                "The file is damaged.",
            )
        offsets, counts = (np.array(values[: grid.count]) for values in (page.offsets, page.counts))
        if offsets.dtype.kind not in "iu" or counts.dtype.kind not in "iu" or min(offsets.min(), counts.min()) < 0:
            raise SourceError(f"{what}: places or sizes of tiles that are no whole numbers", str(path))
        size = files[page.file].size
        past = (offsets > size) | (counts > size)  # alone, so that no sum wraps
        offsets[past] = counts[past] = 0
        beyond = int(past.sum() + (offsets.astype(np.int64) + counts.astype(np.int64) > size).sum())
        if beyond:
            raise SourceError(
                f"{what}: {beyond} of {len(page.offsets)} tiles or strips lie past the file's end at byte {size}",
                str(path),
                "The file is truncated: copy it again.",
            )


def is_whole(grid: Grid, page: Page) -> bool:
    """Whether a page's segments follow each other without gaps, and have the bytes of all its pixels."""
    ends = (offset + count for offset, count in zip(page.offsets, page.counts, strict=False))
    pixels = grid.parts * grid.layers * grid.size.x * grid.size.y
    return sum(page.counts) >= pixels * grid.width and all(map(eq, ends, page.offsets[1:]))


def strips(grid: Grid) -> Grid:
    """The grid of pages that `cut` has cut."""
    rows = min(grid.size.y, max(1, _CUT // (grid.size.x * grid.width)))
    return replace(grid, tile=Size(grid.size.x, rows), thick=1, tiled=False)


def cut(grid: Grid, page: Page) -> Page:
    """A whole page of uncompressed pixels as small strips: reading one takes no more than its bytes."""
    row, rows, height = grid.size.x * grid.width, strips(grid).tile.y, grid.size.y
    places = [
        (page.offsets[0] + (stack * height + y) * row, min(rows, height - y) * row)
        for stack in range(grid.parts * grid.layers)
        for y in range(0, height, rows)
    ]
    return replace(page, offsets=tuple(o for o, _ in places), counts=tuple(c for _, c in places))


def is_large(grid: Grid) -> bool:
    """Whether strips are worth a `cut`."""
    return grid.tile.x * grid.tile.y * grid.width > _CUT


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """Decodes the strips of `cut` as tifffile's decoders do theirs: (layer, row, column, sample), and more."""

    dtype: np.dtype[Any]
    width: int
    contig: int

    def __call__(self, data: bytes, index: int, **_: Any) -> tuple[Array, int]:
        """The strip's pixels; where it lies is of no use here."""
        pixels = np.frombuffer(data, self.dtype).reshape(1, -1, self.width, self.contig)
        return pixels.astype(self.dtype.newbyteorder("="), copy=False), index


class Raster:
    """One picture whose planes are all stored alike.

    Parameters
    ----------
    path
        Of the slide, for messages.
    key
        tifffile's page that all planes are stored like.
    grid, samples, decoder
        How they are cut, what their samples are, and what decodes them: tifffile's, or `Uncompressed`.
    files
        Where they lie.
    """

    def __init__(
        self, path: Path, key: Any, grid: Grid, samples: Samples, decoder: Callable[..., Any], files: Sequence[File]
    ) -> None:
        self.path, self.grid, self.samples, self.files = path, grid, samples, files
        self.compression = int(key.compression)
        self.orientation = Orientation.of(key.tags.valueof(274))
        self.size = self.orientation.size(grid.size)
        self.tile = self.orientation.size(grid.tile)
        self.background = 0 if not samples.rgb else np.iinfo(samples.dtype).max if samples.dtype.kind in "iu" else 1
        self._decoder = decoder
        self._stored = np.dtype(key.dtype)
        self._header = getattr(key, "jpegheader", None)

    def read(self, plane: Plane, region: Region, out: Array, damaged: Damaged | None = None) -> None:
        """Decode the segments that meet a region of the upright picture; see `Source.read`."""
        grid, view = self.grid, self.orientation.view(out)
        stored = self.orientation.stored(region, self.size)
        for row in range(stored.y // grid.tile.y, -(-stored.bottom // grid.tile.y)):
            for col in range(stored.x // grid.tile.x, -(-stored.right // grid.tile.x)):
                place = Region(col * grid.tile.x, row * grid.tile.y, grid.tile.x, grid.tile.y)
                wanted = place.clip(stored)
                try:
                    pixels = self._pixels(plane, row, col, wanted.inside(place))
                except SourceError as error:
                    if damaged is None:
                        raise
                    damaged(self.orientation.upright(wanted, self.size), error.what)
                    pixels = None
                view[wanted.inside(stored)] = self.background if pixels is None else pixels

    def _pixels(self, plane: Plane, row: int, col: int, window: tuple[slice, slice]) -> Array | None:
        """What of a segment is wanted, (y, x, channel); None where the file stores none."""
        if plane.page is None:
            return None
        convert = self.samples.convert
        alone = convert is None and plane.sample is not None
        parts = range(self.grid.parts)
        if alone and self.grid.parts > 1:
            parts = range(plane.sample or 0, (plane.sample or 0) + 1)
        found = [self.segment(plane.page, part, plane.layer, row, col) for part in parts]
        if any(part is None for part in found):
            return None
        cropped = [part[window] for part in found if part is not None]
        pixels = cropped[0] if len(cropped) == 1 else np.concatenate(cropped, axis=2)
        pixels = pixels if convert is None else convert(pixels)
        if plane.sample is not None and pixels.shape[2] > 1:
            return pixels[..., plane.sample : plane.sample + 1]
        return pixels

    def stream(
        self, page: Page, part: int, layer: int, row: int, col: int
    ) -> tuple[bytes, streams.Frame | None] | None:
        """The bytes of a segment, and what they say of themselves; None where the file stores none.

        Raises
        ------
        SourceError
            They declare another picture than the segment's.
        """
        index = self.grid.index(part, layer, row, col)
        if page.counts[index] == 0:
            return None
        data = self.files[page.file].read(page.offsets[index], page.counts[index])
        if self.compression not in streams.FRAMED or self._header is not None:
            return data, None
        frame = streams.frame(data, self.compression)
        if frame is None:
            raise self.error(row, col, "it has no header of its picture")
        if not streams.whole(data, self.compression):
            raise self.error(row, col, "its stream is cut short")
        if not self.grid.fits(frame, row, col):
            raise self.error(row, col, f"it declares {frame.width} x {frame.height} pixels")
        if frame.samples > max(4, self.grid.width):
            raise self.error(row, col, f"it declares {frame.samples} samples of a pixel")
        if why := streams.excess(data, self.compression):
            raise self.error(row, col, why)
        return data, frame

    def segment(self, page: Page, part: int, layer: int, row: int, col: int) -> Array | None:
        """All pixels of a segment, (y, x, sample); None where the file stores none."""
        stored = self.stream(page, part, layer, row, col)
        if stored is None:
            return None
        options = {"jpegtables": page.tables} | ({} if self._header is None else {"jpegheader": self._header})
        try:
            decoded = self._decoder(stored[0], self.grid.index(part, layer, row, col), **options)[0]
        # Any failure of a decoder is damage of this segment, and the message must name it.
        except Exception as error:
            raise self.error(row, col, str(error)) from error
        pixels: Array = decoded[layer % self.grid.thick]
        if pixels.dtype.itemsize != self._stored.itemsize:
            raise self.error(row, col, f"its pixels are {pixels.dtype}, the file says {self._stored}")
        return pixels

    def error(self, row: int, col: int, why: str) -> SourceError:
        """What to raise of a segment that is no picture."""
        tile = self.grid.tile
        wide, high = min(tile.x, self.grid.size.x - col * tile.x), min(tile.y, self.grid.size.y - row * tile.y)
        place = self.orientation.upright(Region(col * tile.x, row * tile.y, wide, high), self.size)
        return SourceError(
            f"tile at row {row}, column {col} (x {place.x}, y {place.y}) does not decode ({why})",
            str(self.path),
            "The file is damaged there: copy or scan it again.",
        )
