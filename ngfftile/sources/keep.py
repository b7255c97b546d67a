"""Whether a store can keep the tiles of a TIFF as they are, and what decodes them there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from ngfftile.codecs import Codec, Jpeg, Jpeg2000, jpeg_quality
from ngfftile.errors import SourceError
from ngfftile.geometry import Size
from ngfftile.sources.protocol import Array
from ngfftile.sources.raster import Page, Plane, Raster

_JPEG, _JPEG2000 = 7, {33005, 34712}
_STEP = 16  # pixels: the side of JPEG's largest unit, so that a chunk is a whole number of them
_TRIED = 8  # tiles, in search of one that is not damaged


def encoding(key: Any, raster: Raster, planes: Iterable[Plane]) -> tuple[Codec | None, str]:
    """How the tiles are compressed, or None and why they cannot be kept.

    Parameters
    ----------
    key
        tifffile's page that all are stored like.
    raster, planes
        What reads them, and all of them.
    """
    pages = list({id(plane.page): plane.page for plane in planes if plane.page is not None}.values())
    why = _layout(raster) or _pixels(key, raster) or _tables(pages) or _border(raster, pages)
    if why:
        return None, why
    for page, row, col in islice(_stored(raster, pages), _TRIED):
        try:
            found, pixels = whole(raster, page, 0, row, col), raster.segment(page, 0, 0, row, col)
        except SourceError:
            continue  # damaged; it is reported where it is read
        if found is not None and pixels is not None:
            codec = _codec(key, page, *found)
            if _agrees(codec, found[0], pixels):
                return codec, ""
            return None, "their colours are not those that Zarr readers would decode"
    return None, "none of the first decodes"


def whole(raster: Raster, page: Page, layer: int, row: int, col: int) -> tuple[bytes, str] | None:
    """A tile's bytes and its colours' subsampling; None where the file stores none.

    Raises
    ------
    SourceError
        It is no picture of a whole tile.
    """
    found = raster.stream(page, 0, layer, row, col)
    if found is None:
        return None
    data, frame = found
    if frame is None or Size(frame.width, frame.height) != raster.grid.tile:
        raise raster.error(row, col, "it ends at the border of the picture, and is no whole tile")
    return data, frame.subsampling


def _layout(raster: Raster) -> str:
    grid = raster.grid
    if not grid.tiled:
        return "they are strips, not tiles"
    if grid.tile.x != grid.tile.y or grid.tile.x % _STEP:
        return f"tiles are {grid.tile}, not square or not a multiple of {_STEP}"
    if raster.orientation.tag != 1:
        return "they are stored turned or mirrored"
    if len(raster.files) > 1:
        return "they lie in several files"
    return ""


def _pixels(key: Any, raster: Raster) -> str:
    samples, contig = raster.samples, int(key.shaped[4])
    if raster.compression not in {_JPEG} | _JPEG2000:
        name = getattr(key.compression, "name", str(raster.compression))
        return "they are not compressed" if name == "NONE" else f"they are {name}, which Zarr readers do not know"
    if samples.convert is not None or raster.grid.parts > 1 or raster.grid.layers > 1 or contig not in {1, 3}:
        return "their samples are not the channels"
    if (contig == 3) != samples.rgb or samples.dtype != np.uint8:
        return f"they are {contig} samples of {samples.dtype}, not 8-bit RGB or grey"
    return ""


def _tables(pages: list[Page]) -> str:
    return "channels have JPEG tables of their own" if len({page.tables for page in pages}) > 1 else ""


def _stored(raster: Raster, pages: list[Page]) -> Iterator[tuple[Page, int, int]]:
    """The tiles that are there."""
    for page in pages:
        for index, count in enumerate(page.counts[: raster.grid.count]):
            if count:
                yield page, *divmod(index, raster.grid.across)


def _border(raster: Raster, pages: list[Page]) -> str:
    """Some writers cut the last tiles where the picture ends."""
    row, col = raster.grid.down - 1, raster.grid.across - 1
    for page in pages:
        try:
            found = raster.stream(page, 0, 0, row, col)
        except SourceError:
            continue  # damaged; it is reported where it is read
        if found is not None and found[1] is not None:
            whole = Size(found[1].width, found[1].height) == raster.grid.tile
            return "" if whole else "they are cut where the picture ends"
    return ""


def _codec(key: Any, page: Page, data: bytes, subsampling: str) -> Jpeg | Jpeg2000:
    if int(key.compression) != _JPEG:
        return Jpeg2000()
    # The colours inside the streams, as tifffile decides them.
    space = "rgb" if int(key.photometric) == 2 and not key.is_jfif else "ycbcr"
    grey = int(key.shaped[4]) == 1
    return Jpeg(jpeg_quality(page.tables or data), "grayscale" if grey else space, subsampling, page.tables)


def _agrees(codec: Jpeg | Jpeg2000, data: bytes, pixels: Array) -> bool:
    """Whether the codec gives the pixels that the reader gives."""
    theirs = np.empty(pixels.transpose(2, 0, 1).shape, np.uint8)
    try:
        codec.decode(codec.seal(data), theirs)
    except ValueError:
        return False
    return np.array_equal(theirs, pixels.transpose(2, 0, 1))
