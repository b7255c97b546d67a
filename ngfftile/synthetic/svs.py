"""A synthetic slide as an Aperio SVS: tiled JPEG, levels, label, macro and thumbnail."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from ngfftile.errors import OptionError
from ngfftile.synthetic.field import TissueField
from ngfftile.synthetic.textures import Image, check_number, check_whole, uniform

_STEP: Final = 4  # Aperio pyramids shrink by 4
_SMALLEST: Final = 2000  # pixels along the longer side below which Aperio adds no level
_VERSION: Final = "Aperio Image Library v12.0.15 \r\n"
# 3 x 5 dot letters, rows from the top, most significant bit at the left.
_GLYPHS: Final = {
    "C": 0o74447,
    "E": 0o74647,
    "H": 0o55755,
    "I": 0o72227,
    "N": 0o65555,
    "S": 0o74717,
    "T": 0o72222,
    "Y": 0o55222,
}


def _shrink(image: Image) -> Image:
    """Average squares of 4 x 4 pixels; what does not fill one is left out, as Aperio does."""
    height, width = image.shape[0] // _STEP, image.shape[1] // _STEP
    image = image[: height * _STEP, : width * _STEP]
    rows = image[0::_STEP].astype(np.uint16) + image[1::_STEP] + image[2::_STEP] + image[3::_STEP]
    total = rows[:, 0::_STEP] + rows[:, 1::_STEP] + rows[:, 2::_STEP] + rows[:, 3::_STEP]
    return np.asarray((total + np.uint16(8)) >> np.uint16(4), np.uint8)


def _fit(image: Image, width: int, height: int) -> Image:
    """Shrink to fit into ``width`` x ``height`` by averaging; never enlarge."""
    ratio = min(1.0, width / image.shape[1], height / image.shape[0])
    total: NDArray[Any] = image.astype(np.float64)
    for axis in (0, 1):
        old = image.shape[axis]
        new = max(1, round(old * ratio))
        edges = np.arange(new) * old // new
        counts = np.diff(np.append(edges, old)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        total = np.add.reduceat(total, edges, axis=axis) / counts
    return np.rint(total).astype(np.uint8)


def _text(image: Image, x: int, y: int, dot: int, text: str) -> None:
    """Write on a picture, in place, with square dots."""
    for k, letter in enumerate(text):
        rows = np.array([[_GLYPHS[letter] >> (14 - 3 * i - j) & 1 for j in range(3)] for i in range(5)], bool)
        part = image[y : y + 5 * dot, x + 4 * k * dot : x + (4 * k + 3) * dot]
        part[np.kron(rows, np.ones((dot, dot), bool))] = 35


def _label(seed: int) -> Image:
    """Draw a paper label: a word, a bar code and a dot code that stand for nothing."""
    image = np.full((463, 387, 3), 236, np.uint8)
    image[:6] = image[-6:] = image[:, :6] = image[:, -6:] = 120
    _text(image, 34, 50, 9, "SYNTHETIC")
    bars = np.repeat(uniform(seed, 80, np.arange(80), np.zeros(80, np.int64)) < 0.5, 4)
    image[130:220, 34:354][:, bars] = 30
    dots = uniform(seed, 81, np.arange(16)[:, None], np.arange(16)[None, :]) < 0.5
    dots[:, 0] = dots[-1] = True
    image[250:426, 34:210][np.kron(dots, np.ones((11, 11), bool))] = 30
    _text(image, 240, 260, 9, "HES")
    return image


def _macro(overview: Image, field: TissueField) -> Image:
    """Draw the whole glass from above: label at the left, tissue at the right."""
    glass = (226, 228, 226)
    image = np.full((431, 1280, 3), glass, np.uint8)
    image[:5] = image[-5:] = (150, 158, 156)
    label = _fit(_label(field.seed), 330, 395)
    image[18 : 18 + label.shape[0], 20 : 20 + label.shape[1]] = label
    tissue = _fit(overview, 840, 380)
    top, left = (431 - tissue.shape[0]) // 2, 395 + (860 - tissue.shape[1]) // 2
    dimmed = tissue * (np.array(glass) / np.maximum(field.background, 1))
    image[top : top + tissue.shape[0], left : left + tissue.shape[1]] = np.clip(dimmed, 0, 255)
    return image


def _split_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """Tables, and the image that refers to them: what TIFF keeps in JPEGTables (technote 2), and in each tile."""
    tables, image, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            tables += stream[at:end]
        else:
            image += stream[at:end]
        at = end
    return tables + b"\xff\xd9", image + stream[at:]


def _encode(tile: Image, quality: int) -> tuple[bytes, bytes]:
    stream = tifffile.TIFF.COMPRESSORS[7](
        np.ascontiguousarray(tile), quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=(2, 2), optimize=False
    )
    return _split_jpeg(bytes(stream))


def _in_order[A, B](work: Callable[[A], B], items: Iterator[A], workers: int) -> Iterator[B]:
    """Results in order from threads that run ahead by a few items, so memory stays bounded."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[B]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 3 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class _Writer:
    """Writes the pages of one slide."""

    def __init__(self, tif: tifffile.TiffWriter, field: TissueField, tile: int, quality: int, tail: str) -> None:
        self._tif, self._field, self._tile, self._quality, self._tail = tif, field, tile, quality, tail
        self._workers = os.cpu_count() or 1
        self._tables = _encode(np.zeros((tile, tile, 3), np.uint8), quality)[0]

    def tiled(self, width: int, height: int, draw: Callable[[int, int, int, int], Image]) -> None:
        """Write a level; ``draw`` gives whole tiles for x, y, width, height, in any order and from several threads."""
        tile, run = self._tile, max(1, 512 // self._tile)
        columns = -(-width // tile)

        def strip(at: tuple[int, int]) -> list[bytes]:
            count = min(run, columns - at[0])
            image = draw(at[0] * tile, at[1] * tile, count * tile, tile)
            return [_encode(part, self._quality)[1] for part in np.split(image, count, axis=1)]

        places = ((i, j) for j in range(-(-height // tile)) for i in range(0, columns, run))
        tiles = (one for many in _in_order(strip, places, self._workers) for one in many)
        size = f"{self._field.width}x{self._field.height}"
        arrow = "" if (width, height) == (self._field.width, self._field.height) else f" -> {width}x{height}"
        self._tif.write(
            tiles,
            shape=(height, width, 3),
            dtype=np.uint8,
            photometric="rgb",
            tile=(tile, tile),
            compression="jpeg",
            subsampling=(2, 2),
            jpegtables=self._tables,
            description=f"{_VERSION}{size} [0,0 {size}] ({tile}x{tile}){arrow} JPEG/RGB Q={self._quality}{self._tail}",
            metadata=None,
            software=False,
        )

    def thumbnail(self, image: Image) -> None:
        """Write the thumbnail."""
        size = f"{self._field.width}x{self._field.height}"
        self.striped(image, f"{size} -> {image.shape[1]}x{image.shape[0]} - {self._tail}")

    def striped(self, image: Image, text: str, kind: int | None = None) -> None:
        """Write the thumbnail or macro (JPEG) or label (LZW), as Aperio does."""
        lzw = kind == 1
        self._tif.write(
            image,
            photometric="rgb",
            rowsperstrip=16,
            compression="lzw" if lzw else "jpeg",
            predictor=lzw,
            compressionargs=None if lzw else {"level": self._quality},
            subsampling=None if lzw else (2, 2),
            subfiletype=kind,
            description=_VERSION + text,
            metadata=None,
            software=False,
            maxworkers=1,
        )


def _check_write(tile: int, quality: int, objective_power: float) -> None:
    check_whole("tile", tile, 16, 4096)
    if tile % 16:
        raise OptionError(f"tile is {tile}", where="synthetic", mend="Give a multiple of 16.")
    check_whole("quality", quality, 1, 100)
    check_number("objective_power", objective_power, 0.1, 1000.0)


def write_svs(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    *,
    mpp: float = 0.25,
    seed: int = 0,
    tile: int = 256,
    quality: int = 85,
    objective_power: float = 40,
    background: tuple[int, int, int] = (243, 242, 244),
    associated: bool = True,
) -> Path:
    """Write a synthetic slide as an Aperio SVS, as a scanner would.

    The same arguments give the same bytes. Memory stays bounded whatever the size: a few tiles per processor, and
    reduced levels wait in files beside the target (1/16 of the raw picture, removed afterwards). The target appears
    when it is complete, and replaces what was there.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    width, height
        Size of level 0, in pixels.
    mpp
        Micrometres per pixel, stored with 4 decimals.
    seed
        Any whole number; another one gives another slide.
    tile
        Edge of the square tiles, in pixels: a multiple of 16, up to 4096.
    quality
        JPEG quality, 1 to 100.
    objective_power
        Magnification to store.
    background
        Colour of bare glass: red, green, blue, 0 to 255.
    associated
        Whether to write the thumbnail, label and macro pictures.

    Returns
    -------
    The path of the slide.

    Raises
    ------
    OptionError
        If an argument is out of range.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_svs(Path(folder, "slide.svs"), 600, 400).name
    'slide.svs'
    """
    field = TissueField(width, height, mpp=mpp, seed=seed, background=background)
    _check_write(tile, quality, objective_power)
    path = Path(path)
    tail = (
        f"|AppMag = {objective_power:g}|StripeWidth = 2040|ScanScope ID = SYNTHETIC|Filename = synthetic"
        f"|Date = 01/02/26|Time = 03:04:05|MPP = {mpp:.4f}|Left = 0.000000|Top = 0.000000"
    )
    # A classic TIFF ends at 4 GiB; JPEG at its worst is about as large as the raw picture.
    big = width * height > 2**30
    with tempfile.TemporaryDirectory(prefix=".synthetic-", dir=path.parent, ignore_cleanup_errors=True) as folder:
        part = Path(folder, "slide.svs")
        with tifffile.TiffWriter(part, bigtiff=big) as tif:
            _write_pages(_Writer(tif, field, tile, quality, tail), field, Path(folder), associated)
        part.replace(path)
    return path


class _Kept:
    """A reduced level in a file; mapped afresh for each use, so that what was written does not count as memory."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._path, self.width, self.height = path, width, height
        with path.open("wb") as file:
            file.truncate(width * height * 3)

    def pixels(self) -> Image:
        return np.memmap(self._path, np.uint8, "r+", shape=(self.height, self.width, 3))

    def tile(self, x: int, y: int, width: int, height: int) -> Image:
        """Read a rectangle, filled up with its last row and column beyond the level's edges."""
        image = self.pixels()[y : y + height, x : x + width]
        return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")

    def shrink_into(self, coarser: _Kept) -> None:
        for top in range(0, coarser.height, 64):
            band = coarser.pixels()[top : top + 64]
            band[:] = _shrink(self.pixels()[top * _STEP : (top + 64) * _STEP])[: band.shape[0]]


def _write_pages(writer: _Writer, field: TissueField, folder: Path, associated: bool) -> None:
    """All pages in Aperio's order: level 0, thumbnail, other levels, label, macro."""
    sizes = [(field.width, field.height)]
    while max(sizes[-1]) > _SMALLEST and min(sizes[-1]) >= _STEP:
        sizes.append((sizes[-1][0] // _STEP, sizes[-1][1] // _STEP))
    # A slide too small for a second level is kept as it is, for the pictures of the whole.
    step = _STEP if len(sizes) > 1 else 1
    kept = [_Kept(folder / f"level{k}", *size) for k, size in enumerate(sizes[1:] or sizes)]

    def draw(x: int, y: int, width: int, height: int) -> Image:
        image = field.render(x, y, width, height)
        target = kept[0].pixels()[y // step : (y + height) // step, x // step : (x + width) // step]
        target[:] = (_shrink(image) if step > 1 else image)[: target.shape[0], : target.shape[1]]
        return image

    writer.tiled(field.width, field.height, draw)
    for finer, coarser in pairwise(kept):
        finer.shrink_into(coarser)
    if associated:
        writer.thumbnail(_fit(kept[-1].pixels(), 1024, 768))
    for level in kept[: len(sizes) - 1]:
        writer.tiled(level.width, level.height, level.tile)
    if associated:
        writer.striped(_label(field.seed), "label 387x463", 1)
        writer.striped(_macro(kept[-1].pixels(), field), "macro 1280x431", 9)
