"""Slides to measure on: a DICOM slide as a TIFF that others read too, gigapixels from few tiles, headers alone.

python benchmarks/slides.py wrap DICOM SLIDE.tif        # the frames of level 0 as they are; checks the pixels
python benchmarks/slides.py svs SLIDE.svs 12000x9000    # synthetic, with levels and associated images
python benchmarks/slides.py large SLIDE.tif 50000x42000 # tiles of a synthetic slide, repeated
python benchmarks/slides.py sparse SLIDE.tif 100000x100000 --tile 512
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

BASE = "6144x4608"  # of the slide whose tiles `large` repeats: not a multiple of a shard, so that shards differ
PER_BYTE = 500  # pixels
_SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 3, 4, 5, 7, 16
_STRUCT = {_SHORT: "H", _LONG: "I", _RATIONAL: "II", _LONG8: "Q"}
_JPEG, _YCBCR, _RGB, _CENTIMETRE = 7, 6, 2, 3
_PARTS = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}


class _Tiles(Protocol):
    """What ngfftile's readers of compressed tiles have."""

    info: Any

    def raw(self, plane: int, row: int, col: int) -> bytes | None: ...


@dataclass(frozen=True)
class Kind:
    """What all tiles of a slide have in common.

    Parameters
    ----------
    tile
        Side of a tile, in pixels.
    mpp
        Micrometres per pixel along x and y; None leaves the slide without.
    subsampling
        Of the colours, as in 420.
    rgb
        Whether the streams hold red, green and blue, not YCbCr.
    tables
        JPEG tables that the streams share.
    """

    tile: int
    mpp: tuple[float, float] | None = None
    subsampling: str = "420"
    rgb: bool = False
    tables: bytes | None = None


def write(path: Path, size: tuple[int, int], kind: Kind, streams: Iterable[bytes], order: NDArray[np.int64]) -> Path:
    """Write a BigTIFF of one page from compressed tiles.

    Parameters
    ----------
    path
        The file to write.
    size
        Width and height.
    kind
        Of the tiles.
    streams
        JPEG streams; each is stored once.
    order
        Which of them each tile of the grid is, row by row; -1 for a tile that is not stored.
    """
    offsets, counts = [], []
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        for stream in streams:
            offsets.append(file.tell())
            counts.append(file.write(stream))
        places, sizes = np.array([*offsets, 0], "<u8"), np.array([*counts, 0], "<u4")
        entries = dict(_entries(size, kind))
        entries[324], entries[325] = (_LONG8, places[order].tobytes()), (_LONG, sizes[order].tobytes())
        _close(file, entries)
        file.seek(0, 2)
        # A hole, which takes no room on the disk: a file of few bytes for its pixels is refused as a trap.
        file.truncate(max(file.tell(), size[0] * size[1] // PER_BYTE))
    return path


def _entries(size: tuple[int, int], kind: Kind) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """Tags, each with its type and its values' bytes, but for the places of tiles."""

    def short(*values: int) -> tuple[int, bytes]:
        return _SHORT, struct.pack(f"<{len(values)}H", *values)

    def long(value: int) -> tuple[int, bytes]:
        return _LONG, struct.pack("<I", value)

    yield from {256: long(size[0]), 257: long(size[1]), 258: short(8, 8, 8), 259: short(_JPEG)}.items()
    yield 262, short(_RGB if kind.rgb else _YCBCR)
    yield from {277: short(3), 284: short(1), 322: long(kind.tile), 323: long(kind.tile)}.items()
    if kind.mpp:
        # Pixels in ten centimetres over ten: five digits of any mpp.
        for tag, mpp in zip((282, 283), kind.mpp, strict=True):
            yield tag, (_RATIONAL, struct.pack("<II", round(10_000 / mpp * 10_000), 10_000))
        yield 296, short(_CENTIMETRE)
    if kind.tables:
        yield 347, (_UNDEFINED, kind.tables)
    if not kind.rgb:
        yield 530, short(*_PARTS[kind.subsampling])


def _close(file: Any, entries: dict[int, tuple[int, bytes]]) -> None:
    """Write the directory, and its place into the header."""
    rows = []
    for tag, (type_, data) in sorted(entries.items()):
        count = len(data) // (struct.calcsize("<" + _STRUCT[type_]) if type_ in _STRUCT else 1)
        field = data.ljust(8, b"\0")
        if len(data) > 8:
            file.write(b"\0" * (-file.tell() % 8))
            field = struct.pack("<Q", file.tell())
            file.write(data)
        rows.append(struct.pack("<HHQ8s", tag, type_, count, field))
    file.write(b"\0" * (-file.tell() % 8))
    place = file.tell()
    file.write(struct.pack("<Q", len(rows)) + b"".join(rows) + struct.pack("<Q", 0))
    file.seek(8)
    file.write(struct.pack("<Q", place))


def grid(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """Tiles across and down."""
    return -(-size[0] // tile), -(-size[1] // tile)


def sized(text: str) -> tuple[int, int]:
    """Width and height of a text such as 12000x9000."""
    width, height = map(int, text.lower().split("x"))
    return width, height


def wrap(source: Path, target: Path) -> Path:
    """Put the compressed tiles of a slide's level 0, unchanged, into a TIFF in tiles, with its mpp.

    Raises
    ------
    ValueError
        They are not JPEG, or not all there.
    """
    import ngfftile as nt

    slide = cast(_Tiles, nt.open_source(source))
    info = slide.info
    codec = info.encoding
    if codec is None or not codec.name.startswith("jpeg"):
        raise ValueError(f"{source.name}: its tiles are no JPEG that can be kept as it is; {info.recompress}")
    size, tile = (info.size.x, info.size.y), info.tile.x
    across, down = grid(size, tile)
    streams = (slide.raw(0, row, col) or b"" for row in range(down) for col in range(across))
    mpp = (info.mpp.x, info.mpp.y) if info.mpp else None
    kind = Kind(tile, mpp, codec.subsampling, codec.space == "rgb", codec.tables)
    return write(target, size, kind, streams, np.arange(across * down))


def check(source: Path, target: Path, samples: int = 20) -> None:
    """Compare tiles over the whole of level 0, as ngfftile reads both files, and as tifffile reads the second.

    Raises
    ------
    ValueError
        They differ.
    """
    import ngfftile as nt

    first, second = nt.open_source(source), nt.open_source(target)
    size, side = first.info.size, first.info.tile.x
    across, down = grid((size.x, size.y), side)
    level = zarr.open_array(tifffile.imread(target, aszarr=True, series=0, level=0), mode="r")
    for index in np.linspace(0, across * down - 1, samples).astype(int):
        row, col = divmod(int(index), across)
        region = nt.Region(col * side, row * side, side, side).clip(nt.Region(0, 0, size.x, size.y))
        ours, theirs = (np.empty((region.height, region.width, 3), np.uint8) for _ in range(2))
        first.read(region, 0, ours)
        second.read(region, 0, theirs)
        others = level[region.y : region.bottom, region.x : region.right]
        if not (np.array_equal(ours, theirs) and np.array_equal(ours, others)):
            raise ValueError(f"{region} of {target.name} has other pixels than {source.name}")


def synthetic(path: Path, size: str, seed: int = 7) -> Path:
    """Write the synthetic slide of the other benchmarks, with levels and associated images."""
    from ngfftile.synthetic import write_svs

    return write_svs(path, *sized(size), seed=seed)


def large(path: Path, size: str) -> Path:
    """Write a slide of any size whose tiles are those of a small synthetic one, side by side again and again.

    Every tile is decoded and compressed as if it were the only one of its kind: the work is that of a slide of this
    size, the variety that of the small one, and the file takes some megabytes.
    """
    from ngfftile.synthetic import write_svs

    with TemporaryDirectory(dir=path.parent) as folder:
        base = write_svs(Path(folder, "base.svs"), *sized(BASE), seed=7, associated=False)
        with tifffile.TiffFile(base) as tiff:
            page = tiff.pages[0]
            assert isinstance(page, tifffile.TiffPage)
            tile, places = page.tilewidth, list(zip(page.dataoffsets, page.databytecounts, strict=True))
            kind = Kind(tile, (0.25, 0.25), "420", tables=page.jpegtables)
        wide, high = grid(sized(BASE), tile)
        across, down = grid(sized(size), tile)
        order = np.arange(down)[:, None] % high * wide + np.arange(across)[None, :] % wide
        data = base.read_bytes()
        return write(path, sized(size), kind, (data[at : at + count] for at, count in places), order.ravel())


def sparse(path: Path, size: str, tile: int = 512) -> Path:
    """Write a slide of which no tile is stored."""
    across, down = grid(sized(size), tile)
    return write(path, sized(size), Kind(tile, (0.25, 0.25)), (), np.full(across * down, -1))


def described(path: Path) -> dict[str, Any]:
    """Size of a slide in pixels and bytes, and its mpp along x."""
    import ngfftile as nt

    info = nt.open_source(path).info
    mpp = info.mpp.x if info.mpp else None
    return {"width": info.size.x, "height": info.size.y, "mpp": mpp, "bytes": path.stat().st_size}


def compare(source: Path, array: Path, samples: int = 40) -> dict[str, Any]:
    """Whether a store's level 0 has the slide's pixels: of some places the share where all are the same."""
    slide = zarr.open_array(tifffile.imread(source, aszarr=True, series=0, level=0), mode="r")
    store = zarr.open_array(array, mode="r")
    height, width, side = slide.shape[0], slide.shape[1], 256
    if store.shape != (3, height, width):
        return {"equal": 0.0}
    chance = np.random.default_rng(0)
    same = 0
    for _ in range(samples):
        y, x = (int(chance.integers(max(1, n - side))) for n in (height, width))
        window = slice(y, y + side), slice(x, x + side)
        same += np.array_equal(slide[window], np.moveaxis(np.asarray(store[:, *window]), 0, 2))
    return {"equal": same / samples}


def main() -> None:
    """Write one slide."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = arguments.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("wrap")
    one.add_argument("source", type=Path, help="a slide in JPEG tiles, such as a DICOM file or its folder")
    one.add_argument("target", type=Path)
    verbs.add_parser("describe").add_argument("target", type=Path)
    one = verbs.add_parser("compare")
    one.add_argument("source", type=Path, help="a slide in TIFF")
    one.add_argument("target", type=Path, help="the array of level 0 of its store, (c, y, x)")
    for verb in ("svs", "large", "sparse"):
        one = verbs.add_parser(verb)
        one.add_argument("target", type=Path)
        one.add_argument("size", help="as in 50000x42000")
        if verb == "svs":
            one.add_argument("--seed", type=int, default=7)
        if verb == "sparse":
            one.add_argument("--tile", type=int, default=512)
    given = arguments.parse_args()
    if given.verb == "wrap":
        check(given.source, wrap(given.source, given.target))
    elif given.verb == "svs":
        synthetic(given.target, given.size, given.seed)
    elif given.verb == "large":
        large(given.target, given.size)
    elif given.verb == "sparse":
        sparse(given.target, given.size, given.tile)
    facts: dict[str, Any] = {}
    if given.verb == "compare":
        facts = compare(given.source, given.target)
    elif given.verb == "describe":
        facts = described(given.target)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
