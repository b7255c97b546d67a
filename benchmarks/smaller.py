"""What would make lossless chunks smaller than zstd 3 does, and what that costs a reader: one Markdown table.

    python benchmarks/smaller.py                    # a synthetic slide, about 45 s
    python benchmarks/smaller.py a.svs b.svs c.dcm  # slides of yours: 8-bit RGB, by tifffile or OpenSlide

Up to 60 chunks of tissue and 20 of background a slide, drawn with a fixed seed. One thread; every codec must give back
the same pixels. Columns:

- a slide: bytes over those of zstd 3 on the same chunks, and in brackets over the slide's own compressed tiles (for
  DICOM this needs pydicom). On a slow encoder fewer chunks, the first that fit its time.
- enc: MP/s, the pixels being in the codec's order already. dec: MP/s into an array (channels, y, x), as Zarr has it.
- dec x: that over zstd 3, which takes turns with it. tile x: the same for a picture (y, x, channels) of 256 px, as
  `Index.read` gives it. Chunks of more than 256 px are decoded whole for that.
- read by: `all` are zarr-python, tensorstore, zarrita and neuroglancer; `imagecodecs` is zarr-python with the package
  imagecodecs-zarr, no other; `-` is a codec that nobody has.

Speeds are medians over the slides. Rows of tuned zstd need Python 3.14 or the package backports.zstd.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs as ic
import numcodecs
import numpy as np
import openslide
import tifffile
import zarr
from common import alternate, ratio, synthetic, workspace
from numcodecs import zstd
from numpy.typing import NDArray

Array = NDArray[Any]
Encode = Callable[[Array], bytes]
Decode = Callable[[bytes, Array], Any]
SIDE, BLOCK, TISSUE, BACKGROUND, BLOCKS, TRIES = 256, 1024, 60, 20, 4, 3000
ROUNDS, ENCODE_SECONDS, DECODE_SECONDS = 3, 0.5, 0.08
ALL, DELTA, IC, NOBODY = "all", "zarr-python, zarrita", "imagecodecs", "-"


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a chunk; ``decode`` fills an array of the order that ``encode`` is given."""

    name: str
    known: str
    encode: Encode | None
    decode: Decode
    interleaved: bool = False
    side: int = SIDE


@dataclass(slots=True)
class Sample:
    """What was drawn from a slide; ``source`` are the bytes of its own tiles under the chunks."""

    name: str
    chunks: list[Array] = field(default_factory=list)
    blocks: list[Array] = field(default_factory=list)
    source: float = 0.0
    tiles: list[bytes] = field(default_factory=list)
    tables: bytes = b""
    tile: tuple[int, int] = (SIDE, SIDE)


@dataclass(frozen=True, slots=True)
class Row:
    """Measured on one slide."""

    size: float
    encode: float | None
    decode: float
    chunk: float
    picture: float


# Codecs


def unzstd(data: bytes, out: Array) -> None:
    ic.zstd_decode(data, out=out.reshape(-1))


def plain(level: int, chunk: Array) -> bytes:
    return bytes(zstd.compress(chunk.data, level, True))


def gunzip(data: bytes, out: Array) -> None:
    ic.gzip_decode(data, out=out.reshape(-1))


def sealed(chunk: Array) -> bytes:
    """Zstd 3 of imagecodecs, which writes no checksum, and zarr's crc32c behind it."""
    data = bytes(ic.zstd_encode(chunk, 3))
    return data + google_crc32c.value(data).to_bytes(4, "little")


def unsealed(data: bytes, out: Array) -> None:
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise SystemExit("a checksum does not match")
    unzstd(data[:-4], out)


def unblosc(data: bytes, out: Array) -> None:
    ic.blosc_decode(data, numthreads=1, out=out.reshape(-1))


def blosc(chunk: Array, compressor: str = "zstd", level: int = 3, shuffle: str = "noshuffle", **more: int) -> bytes:
    return bytes(ic.blosc_encode(chunk, level, compressor=compressor, shuffle=shuffle, numthreads=1, **more))


def less_green(chunk: Array) -> Array:
    """Red and blue less green, modulo 256: what reversible colour transforms come to without a wider type."""
    chunk = chunk.copy()
    chunk[0] -= chunk[1]
    chunk[2] -= chunk[1]
    return chunk


def filtered(then: Encode, undo: Decode, axes: Sequence[int], *, green: bool) -> tuple[Encode, Decode]:
    """Differences along axes, maybe of colours less green, before another codec."""

    def encode(chunk: Array) -> bytes:
        chunk = less_green(chunk) if green else chunk
        for axis in axes:
            chunk = np.ascontiguousarray(ic.delta_encode(chunk, axis=axis))
        return then(chunk)

    def decode(data: bytes, out: Array) -> None:
        undo(data, out)
        for axis in reversed(axes):
            ic.delta_decode(out, axis=axis, out=out)
        if green:
            out[0] += out[1]
            out[2] += out[1]

    return encode, decode


def zarrs_delta(data: bytes, out: Array) -> None:
    """Undo ``numcodecs.delta`` as zarr-python does."""
    unzstd(data, out)
    numcodecs.Delta(dtype="u1").decode(out.reshape(-1), out=out.reshape(-1))


def flat_delta(data: bytes, out: Array) -> None:
    """Undo the same faster."""
    unzstd(data, out)
    ic.delta_decode(out.reshape(-1), out=out.reshape(-1))


def tuned(planes: int, **parameters: int) -> Encode | None:
    """Zstd with other parameters, in so many blocks of its own choice; None where Python has no such zstd."""
    for module in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            std = import_module(module)
            break
    else:
        return None
    options = {std.CompressionParameter[name]: value for name, value in parameters.items()}
    compressor = std.ZstdCompressor(options={std.CompressionParameter.checksum_flag: 1, **options})
    modes = [compressor.FLUSH_BLOCK] * (planes - 1) + [compressor.FLUSH_FRAME]

    def encode(chunk: Array) -> bytes:
        compressor.set_pledged_input_size(chunk.nbytes)
        parts = zip(chunk.reshape(planes, -1), modes, strict=True)
        return b"".join(compressor.compress(part.data, mode) for part, mode in parts)

    return encode


def image(name: str, side: int = SIDE, **options: Any) -> tuple[Encode, Decode, bool, int]:
    """An image codec of imagecodecs, on (y, x, channels)."""
    threads = {"numthreads": 1} if name in {"jpeg2k", "jpegxl", "webp"} else {}
    encode, decode = getattr(ic, f"{name}_encode"), getattr(ic, f"{name}_decode")
    return (
        lambda pixels: bytes(encode(pixels, **options, **threads)),
        lambda data, out: decode(data, out=out, **({} if name == "webp" else threads)),
        True,
        side,
    )


def options() -> Iterator[Option]:
    """All that is tried; the first is what the others are measured against."""
    three = partial(plain, 3)
    for level in (3, 1, 5, 9, 15, 19):
        yield Option(f"zstd {level}", ALL, partial(plain, level), unzstd)
    yield Option("zstd 3 of imagecodecs, crc32c", ALL, sealed, unsealed)
    # Level 15 in all that is not said; strategy 7 is btopt.
    btopt: dict[str, int] = {"compression_level": 15, "strategy": 7, "min_match": 5}
    for name, encode in {
        "zstd 3, long distance": tuned(1, compression_level=3, enable_long_distance_matching=1),
        "zstd 1, a block a plane": tuned(3, compression_level=1),
        "zstd 3, a block a plane": tuned(3, compression_level=3),
        "zstd 9, a block a plane": tuned(3, compression_level=9),
        "zstd btopt, matches of 5 and more, a block a plane": tuned(3, **btopt),
    }.items():
        yield Option(name, ALL, encode, unzstd)
    yield Option("zstd 3, chunk 512", ALL, three, unzstd, side=512)
    yield Option("zstd 3, chunk 1024", ALL, three, unzstd, side=1024)
    yield Option("interleaved, zstd 3", ALL, three, unzstd, interleaved=True)
    yield Option("interleaved, zstd 19", ALL, partial(plain, 19), unzstd, interleaved=True)
    yield Option("gzip 6", ALL, lambda chunk: bytes(ic.gzip_encode(chunk, 6)), gunzip)
    yield Option("blosc zstd 3", ALL, blosc, unblosc)
    yield Option("blosc zstd 3, blocks of 64 KiB", ALL, partial(blosc, blocksize=2**16), unblosc)
    yield Option("blosc zstd 3, one block", ALL, partial(blosc, blocksize=3 * 2**16), unblosc)
    yield Option("blosc zstd 3 bitshuffle", ALL, partial(blosc, shuffle="bitshuffle", typesize=1), unblosc)
    apart = partial(blosc, shuffle="shuffle", typesize=3, blocksize=3 * 2**16)
    yield Option("interleaved, blosc zstd 3 shuffle", ALL, apart, unblosc, interleaved=True)
    yield Option("blosc lz4", ALL, partial(blosc, compressor="lz4", level=5), unblosc)
    yield Option("blosc lz4 bitshuffle", ALL, partial(blosc, compressor="lz4", shuffle="bitshuffle"), unblosc)
    yield from differences()
    yield from images()


def differences() -> Iterator[Option]:
    """Predictors before zstd."""
    one, three = partial(plain, 1), partial(plain, 3)
    flat = lambda chunk: three(ic.delta_encode(chunk.reshape(-1)))  # noqa: E731
    yield Option("numcodecs.delta, zstd 3, undone by numpy", DELTA, flat, zarrs_delta)
    yield Option("the same, undone by imagecodecs", DELTA, flat, flat_delta)
    yield Option("delta along x, zstd 1", IC, *filtered(one, unzstd, (-1,), green=False))
    yield Option("delta along y, zstd 3", IC, *filtered(three, unzstd, (-2,), green=False))
    yield Option("less green, zstd 3", NOBODY, *filtered(three, unzstd, (), green=True))
    yield Option("less green, delta along x, zstd 1", NOBODY, *filtered(one, unzstd, (-1,), green=True))
    yield Option("less green, delta along x, zstd 3", NOBODY, *filtered(three, unzstd, (-1,), green=True))
    yield Option("less green, delta along x and y, zstd 3", NOBODY, *filtered(three, unzstd, (-1, -2), green=True))
    bits = partial(blosc, compressor="lz4", shuffle="bitshuffle")
    yield Option("less green, delta, blosc lz4 bitshuffle", NOBODY, *filtered(bits, unblosc, (-1,), green=True))


def images() -> Iterator[Option]:
    """Image codecs."""
    yield Option("HTJ2K", IC, *image("htj2k", reversible=True))
    yield Option("HTJ2K, chunk 512", IC, *image("htj2k", 512, reversible=True))
    yield Option("HTJ2K, chunk 1024", IC, *image("htj2k", 1024, reversible=True))
    yield Option("JPEG 2000", IC, *image("jpeg2k", level=0, reversible=True))
    yield Option("JPEG XL, effort 1", IC, *image("jpegxl", lossless=True, effort=1))
    yield Option("JPEG XL, effort 3", IC, *image("jpegxl", lossless=True, effort=3))
    yield Option("JPEG XL, effort 3, chunk 1024", IC, *image("jpegxl", 1024, lossless=True, effort=3))
    yield Option("JPEG-LS, colours apart", IC, *image("jpegls"))
    yield Option("JPEG-LS, HP2 colours", IC, *image("jpegls", transformation="hp2"))
    yield Option("WebP, method 0", IC, *image("webp", lossless=True, method=0, level=0))
    yield Option("WebP, method 1", IC, *image("webp", lossless=True, method=1, level=50))
    yield Option("PNG 4", IC, *image("png", level=4))
    yield Option("QOI", IC, *image("qoi"))
    yield Option("LERC, zstd", IC, *image("lerc", level=0, compression="zstd"))


# Slides


class Slide:
    """Level 0 of a slide, by part, and its own tiles where they can be told."""

    def __init__(self, path: Path) -> None:
        self.sizes: dict[tuple[int, int], int] = {}
        self.tile, self.tables = (SIDE, SIDE), b""
        try:
            self._open_tiff(path)
        except tifffile.TiffFileError:
            self._open_slide(path)

    def _open_tiff(self, path: Path) -> None:
        tiff = tifffile.TiffFile(path)
        page, file = tiff.pages[0], tiff.filehandle
        self.shape, self.tile, self.tables = page.shape[:2], (page.tilelength, page.tilewidth), page.jpegtables or b""
        across = -(-page.imagewidth // page.tilewidth)
        self.sizes = {divmod(index, across): count for index, count in enumerate(page.databytecounts)}

        def own(row: int, col: int) -> bytes:
            file.seek(page.dataoffsets[row * across + col])
            return bytes(file.read(self.sizes[row, col]))

        self.own = own
        pixels = zarr.open_array(tifffile.imread(path, key=0, aszarr=True), mode="r")
        self.read = lambda y, x, side: np.asarray(pixels[y : y + side, x : x + side])

    def _open_slide(self, path: Path) -> None:
        slide = openslide.OpenSlide(path)
        self.shape = slide.dimensions[::-1]
        self.read = lambda y, x, side: np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))
        with suppress(ImportError):
            frames = dicom_frames(path)
            self.tile = next(iter(frames.values()))[:2]
            self.sizes = {place: len(data) for place, (_, _, data) in frames.items()}
            self.own = lambda row, col: frames[row, col][2]

    def stored(self, y: int, x: int) -> float:
        """Bytes of the tiles under a chunk, each by the share of it that the chunk covers."""
        (height, width), total = self.tile, 0.0
        for row in range(y // height, -(-(y + SIDE) // height)):
            for col in range(x // width, -(-(x + SIDE) // width)):
                rows = min(y + SIDE, (row + 1) * height) - max(y, row * height)
                cols = min(x + SIDE, (col + 1) * width) - max(x, col * width)
                total += self.sizes.get((row, col), 0) * rows * cols / (height * width)
        return total


def dicom_frames(path: Path) -> dict[tuple[int, int], tuple[int, int, bytes]]:
    """Height, width and bytes of each frame, by its row and column; ImportError without pydicom."""
    about = import_module("pydicom").dcmread(path)
    frames = import_module("pydicom.encaps").generate_frames(about.PixelData, number_of_frames=about.NumberOfFrames)
    across, found = -(-about.TotalPixelMatrixColumns // about.Columns), {}
    groups = about.get("PerFrameFunctionalGroupsSequence", [])
    for index, frame in enumerate(frames):
        place = divmod(index, across)
        if index < len(groups) and "PlanePositionSlideSequence" in groups[index]:
            at = groups[index].PlanePositionSlideSequence[0]
            place = (
                (at.RowPositionInTotalImagePixelMatrix - 1) // about.Rows,
                (at.ColumnPositionInTotalImagePixelMatrix - 1) // about.Columns,
            )
        found[place] = (about.Rows, about.Columns, frame)
    return found


def planar(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def interleaved(chunk: Array) -> Array:
    return np.ascontiguousarray(chunk.transpose(1, 2, 0))


def draw(path: Path) -> Sample:
    """Chunks and blocks of a slide; tissue is coloured, background is not, and blank chunks are not stored at all."""
    slide, grid = Slide(path), np.random.default_rng(1)
    sample = Sample(path.name, tables=slide.tables, tile=slide.tile)
    found, wanted = {True: 0, False: 0}, {True: TISSUE, False: BACKGROUND}

    def places(side: int) -> Iterator[tuple[int, int]]:
        rows, cols = slide.shape[0] // side, slide.shape[1] // side
        for index in grid.permutation(rows * cols)[:TRIES].tolist():
            yield index // cols * side, index % cols * side

    for y, x in places(SIDE):
        pixels = slide.read(y, x, SIDE)
        coloured = (np.ptp(pixels, axis=2) > 25).mean()
        tissue = bool(coloured > 0.1)
        if not 0.01 < coloured <= 0.1 and pixels.min() < 255 and found[tissue] < wanted[tissue]:
            found[tissue] += 1
            sample.chunks.append(planar(pixels))
            sample.source += slide.stored(y, x)
            middle = ((y + SIDE // 2) // slide.tile[0], (x + SIDE // 2) // slide.tile[1])
            if middle in slide.sizes:
                sample.tiles.append(slide.own(*middle))
        if found == wanted:
            break
    for y, x in places(BLOCK):
        pixels = slide.read(y, x, BLOCK)
        if len(sample.blocks) < BLOCKS and (np.ptp(pixels, axis=2) > 25).mean() > 0.3:
            sample.blocks.append(planar(pixels))
    sample.chunks = [sample.chunks[i] for i in grid.permutation(len(sample.chunks))]
    return sample


def parts(blocks: Sequence[Array], side: int) -> list[Array]:
    """Blocks cut into chunks."""
    steps = range(0, BLOCK, side)
    return [np.ascontiguousarray(b[:, y : y + side, x : x + side]) for b in blocks for y in steps for x in steps]


# Measuring


def seconds(run: Callable[[bytes], Any], data: Sequence[bytes]) -> float:
    begun = time.perf_counter()
    for item in data:
        run(item)
    return time.perf_counter() - begun


def swap(source: Array, out: Array, *, to_picture: bool) -> None:
    """Reorder a plane at a time, which is four times as fast as copying the transposed whole."""
    for channel in range(3):
        if to_picture:
            out[..., channel] = source[channel]
        else:
            out[channel] = source[..., channel]


def decoders(option: Option) -> tuple[Callable[[bytes], Any], Callable[[bytes], Any], Array]:
    """Into a chunk, into a picture of 256 px at most, and the chunk's memory."""
    chunk = np.empty((3, option.side, option.side), np.uint8)
    picture = np.empty((option.side, option.side, 3), np.uint8)
    tile = np.empty((SIDE, SIDE, 3), np.uint8)

    def to_chunk(data: bytes) -> None:
        option.decode(data, picture if option.interleaved else chunk)
        if option.interleaved:
            swap(picture, chunk, to_picture=False)

    def to_picture(data: bytes) -> None:
        option.decode(data, picture if option.interleaved else chunk)
        if not option.interleaved:
            swap(chunk[:, :SIDE, :SIDE], tile, to_picture=True)
        elif option.side > SIDE:
            tile[...] = picture[:SIDE, :SIDE]

    return to_chunk, to_picture, chunk


def measure(option: Option, base: Option, sample: Sample) -> Row | None:
    """One option on one slide; None where it cannot be tried."""
    small = parts(sample.blocks, SIDE) if option.side > SIDE else sample.chunks
    chunks = parts(sample.blocks, option.side) if option.side > SIDE else sample.chunks
    if option.encode is None or base.encode is None or not chunks:
        return None
    given = [interleaved(chunk) for chunk in chunks] if option.interleaved else chunks
    option.encode(given[0])
    encoded: list[bytes] = []
    begun = time.perf_counter()
    while len(encoded) < len(given) and (len(encoded) < 2 or time.perf_counter() - begun < ENCODE_SECONDS):
        encoded.append(option.encode(given[len(encoded)]))
    encode = len(encoded) * option.side**2 / 1e6 / (time.perf_counter() - begun)
    to_chunk, to_picture, memory = decoders(option)
    for data, chunk in zip(encoded, chunks, strict=False):
        to_chunk(data)
        if not np.array_equal(memory, chunk):
            raise SystemExit(f"{option.name} is not lossless: the comparison would mean nothing")
    small = small[: len(encoded) * (option.side // SIDE) ** 2]
    plainly = [base.encode(chunk) for chunk in small]
    few = max(1, min(len(encoded), int(DECODE_SECONDS / seconds(to_chunk, encoded[:4]) * 4)))
    equal = plainly[: few * (option.side // SIDE) ** 2]
    base_chunk, base_picture, _ = decoders(base)
    runs = alternate(
        [
            lambda: seconds(base_chunk, equal),
            lambda: seconds(to_chunk, encoded[:few]),
            lambda: seconds(base_picture, equal[:few]),
            lambda: seconds(to_picture, encoded[:few]),
        ],
        ROUNDS,
    )
    return Row(
        sum(map(len, encoded)) / sum(map(len, plainly)),
        encode,
        few * option.side**2 / 1e6 / statistics.median(runs[1]),
        ratio(runs[0], runs[1]),
        ratio(runs[2], runs[3]),
    )


def own_tiles(sample: Sample, base: Option) -> Iterator[tuple[str, str, Row]]:
    """The slide's own tiles as chunks, and JPEG packed into JPEG XL, from which the same JPEG comes back."""
    if not sample.tiles or base.encode is None:
        return
    plainly = [base.encode(chunk) for chunk in sample.chunks]
    share = sample.source / sum(map(len, plainly))
    pixels = sample.tile[0] * sample.tile[1] / 1e6
    to_chunk, to_picture, _ = decoders(base)
    chunk = np.empty((3, *sample.tile), np.uint8)

    def row(size: float, encode: float | None, decode: Callable[[bytes], Any], data: Sequence[bytes]) -> Row:
        once = lambda run, items, each: each * len(items) / seconds(run, items)  # noqa: E731
        runs = alternate(
            [
                lambda: once(lambda item: swap(decode(item), chunk, to_picture=False), data, pixels),
                lambda: once(decode, data, pixels),
                lambda: once(to_chunk, plainly, SIDE**2 / 1e6),
                lambda: once(to_picture, plainly, SIDE**2 / 1e6),
            ],
            ROUNDS,
        )
        return Row(size, encode, statistics.median(runs[0]), ratio(runs[0], runs[2]), ratio(runs[1], runs[3]))

    if sample.tiles[0][:4] == b"\xff\x4f\xff\x51":
        yield "the slide's own JPEG 2000 tiles", IC, row(share, None, ic.jpeg2k_decode, sample.tiles[:8])
    if sample.tiles[0][:2] != b"\xff\xd8":
        return
    whole = [tile[:2] + sample.tables[2:-2] + tile[2:] for tile in sample.tiles]
    yield "the slide's own JPEG tiles", IC, row(share, None, ic.jpeg8_decode, whole)
    begun = time.perf_counter()
    packed = [bytes(ic.jpegxl_encode_jpeg(tile, numthreads=1)) for tile in whole]
    encode = pixels * len(packed) / (time.perf_counter() - begun)
    unpack = partial(ic.jpegxl_decode_jpeg, numthreads=1)
    if [unpack(data) for data in packed] != whole:
        raise SystemExit("JPEG XL gave back another JPEG: the comparison would mean nothing")
    share *= sum(map(len, packed)) / sum(map(len, sample.tiles))
    yield "they packed into JPEG XL", NOBODY, row(share, encode, lambda data: ic.jpeg8_decode(unpack(data)), packed)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cells(rows: Sequence[Row | None], times: Sequence[float]) -> list[str]:
    """A row of the table: sizes on each slide, and medians of the speeds."""
    pairs = zip(rows, times, strict=True)
    sizes = [f"{row.size:.3f}" + (f" ({row.size * n:.1f})" if n else "") if row else "" for row, n in pairs]
    there = [row for row in rows if row]
    if not there:
        return [*(["absent"] * len(sizes)), "", "", "", ""]
    encode = [row.encode for row in there if row.encode]
    middle = {name: statistics.median(getattr(row, name) for row in there) for name in ("decode", "chunk", "picture")}
    return [
        *sizes,
        f"{statistics.median(encode):.3g}" if encode else "",
        f"{middle['decode']:.3g}",
        f"{middle['chunk']:.2f}",
        f"{middle['picture']:.2f}",
    ]


def table(samples: Sequence[Sample]) -> Iterator[str]:
    """Lines of Markdown, each as it is measured."""
    base, *others = options()
    assert base.encode
    sizes = [sum(len(base.encode(chunk)) for chunk in sample.chunks) for sample in samples]
    times = [size / sample.source if sample.source else 0.0 for size, sample in zip(sizes, samples, strict=True)]
    yield line(["codec", *(sample.name for sample in samples), "enc", "dec", "dec x", "tile x", "read by"])
    yield line(["---", *("---:" for _ in range(len(samples) + 4)), "---"])
    for option in (base, *others):
        yield line([option.name, *cells([measure(option, base, sample) for sample in samples], times), option.known])
    found = [{name: (known, row) for name, known, row in own_tiles(sample, base)} for sample in samples]
    for name in dict.fromkeys(name for own in found for name in own):
        rows = [own[name][1] if name in own else None for own in found]
        known = next(own[name][0] for own in found if name in own)
        yield line([name, *cells(rows, times), known])


def main() -> None:
    """Print the table for slides, or for a synthetic one."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("slides", nargs="*", type=Path)
    given = arguments.parse_args()
    with workspace() as folder:
        begun = time.perf_counter()
        samples = [draw(path) for path in given.slides or [synthetic(folder, "5120x4096")]]
        for sample in samples:
            print(f"{sample.name}: {len(sample.chunks)} chunks, {len(sample.blocks)} blocks", file=sys.stderr)
        for text in table(samples):
            print(text, flush=True)
        print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
