"""Tissue filters: a lazy image in, a lazy mask out, the same for every chunking.

What depends on the whole slide (a threshold) comes from a reduction; what depends on neighbours runs through
map_overlap with a depth of at least its reach; what depends on connectedness (objects, holes) sees the mask as a whole.
A chain of plain map_blocks does none of these, and its seams show.

A filter of your own is any function from the lazy image (c, y, x) to a bool mask (y, x); a decision on the pixels of
each tile is a function from (height, width, channel) to bool, marked with `per_tile`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

from ngfftile.errors import OptionError
from ngfftile.registry import resolve

Array = NDArray[Any]
Value = Literal["auto", "saturation", "grey"]
FILTERS = {"otsu": "ngfftile.filters:otsu", "std": "ngfftile.filters:std"}

_PART = 32_768  # values
NOMINAL_MPP = 8.0  # of a mask whose slide has no mpp: the resolution that masks are made at
_DARK = 64  # a median grey below it: fluorescence, whose background is black
# Saturation, of 255: above the noise of glass, which Otsu would split on an empty slide, and below pale eosin.
_LEAST_SATURATION = 12


def per_tile[F: Callable[..., Any]](function: F) -> F:
    """Mark a function (height, width, channel) -> bool as a filter that decides on the pixels of each tile."""
    function.per_tile = True  # type: ignore[attr-defined]
    return function


@per_tile
def std(tile: Array, below: float = 8.0) -> bool:
    """Whether a tile has texture: population standard deviation of all its values together strictly above 8.

    The rule of ratiopath's tutorial, decision for decision, after white filling of what hangs over. Whole numbers are
    added up exactly, so no rounding decides a tile on the border.

    Parameters
    ----------
    tile
        (height, width, channel).
    below
        A standard deviation of this, or less, is glass.

    Examples
    --------
    >>> std(np.array([[[0, 16]]], np.uint8)), std(np.array([[[0, 17]]], np.uint8))
    (False, True)
    """
    values = tile.reshape(-1)
    if values.dtype.kind == "f" or values.dtype.itemsize > 2:
        return bool(np.std(values, dtype=np.float64) > below)
    n, total, squares = values.size, 0, 0
    # In parts that fit the cache, and whose sums of 16-bit squares a float64 still holds exactly.
    for start in range(0, n, _PART):
        part = values[start : start + _PART].astype(np.float64)
        total += int(part.sum())
        squares += int(np.square(part, out=part).sum())  # no product: BLAS would start threads of its own
    return bool(n * squares - total * total > below * below * n * n)


def named(name: str) -> Callable[..., Any]:
    """The filter of that name: built in, or ``package.module:function``.

    Raises
    ------
    OptionError
        No such filter.
    """
    return resolve(name, FILTERS, "filter")


def decides_by_tile(function: Callable[..., Any]) -> bool:
    """Whether a filter is marked with `per_tile`; a `functools.partial` is what it is made from."""
    return bool(getattr(function, "per_tile", getattr(getattr(function, "func", None), "per_tile", False)))


def otsu(
    image: xr.DataArray,
    *,
    value: Value = "auto",
    smooth_um: float = 24.0,
    close_um: float = 24.0,
    open_um: float = 16.0,
    least_um2: float = 20_000.0,
    holes_um2: float = 50_000.0,
) -> xr.DataArray:
    """Tissue by one threshold for the whole slide (Otsu 1979), on saturation or brightness.

    Parameters
    ----------
    image
        Lazy (c, y, x), as `Slide.image` gives it, at about 8 µm per pixel.
    value
        ``saturation`` (of HSV: stain on clear glass), ``grey`` (brightness; the side of the slide's median is the
        ground, so fluorescence is what shines and grey brightfield what is dark), or ``auto``: grey where the channels
        are not RGB or the median is dark, else saturation.
    smooth_um, close_um, open_um
        Width of the median before the threshold, and radius of the discs of closing and opening after it, in
        micrometres; 0 leaves the step out. A slide without mpp counts as 8 µm per pixel.
    least_um2, holes_um2
        Smaller objects go, smaller holes are filled; square micrometres.

    Returns
    -------
    xarray.DataArray
        Lazy bool (y, x) with the image's coordinates.

    Raises
    ------
    OptionError
        An unknown ``value``, a negative length, or an image without the dimensions c, y, x.

    Examples
    --------
    >>> import ngfftile as nt
    >>> otsu(nt.open("small.ome.zarr").image(mpp=8.0)).dtype
    dtype('bool')
    """
    _check(image, value, smooth_um, close_um, open_um, least_um2, holes_um2)
    step_x, step_y = (image.attrs.get(f"mpp_{axis}") or NOMINAL_MPP for axis in "xy")
    data = image.data if isinstance(image.data, da.Array) else da.from_array(image.data)
    data = data.rechunk({0: -1})
    rgb = bool(image.attrs.get("rgb")) and data.shape[0] == 3 and data.dtype.kind == "u"
    if rgb and data.dtype != np.uint8:
        bits = 8 * (data.dtype.itemsize - 1)
        data = data.map_blocks(lambda block: (block >> bits).astype(np.uint8), dtype=np.uint8, meta=_EMPTY)
    grey = data.map_blocks(_grey, drop_axis=0, dtype=data.dtype, meta=np.empty((0, 0), data.dtype))
    scaled = grey if grey.dtype == np.uint8 else _to_bins(grey)
    if rgb and value != "grey":
        dark = da.zeros((), bool) if value == "saturation" else _histogram(scaled).map_blocks(_is_dark, **_SCALAR)
        shown = da.map_blocks(_saturation, data, dark, drop_axis=0, dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
        least = _LEAST_SATURATION
    else:
        # Tissue is the side that the middle of the slide's pixels is not on: bright on dark, dark on bright.
        dark, least = da.ones((), bool), 0
        shown = da.map_blocks(
            _bright, scaled, _histogram(scaled), dtype=scaled.dtype, meta=np.empty((0, 0), scaled.dtype)
        )
    shown = _near(shown, _median, _odd(smooth_um / step_y), _odd(smooth_um / step_x))
    bar = da.map_blocks(_threshold, _histogram(shown), dark, least=least, **_SCALAR)
    mask = shown > bar
    for radius, operation in ((close_um, _close), (open_um, _open)):
        reach_y, reach_x = int(radius / step_y), int(radius / step_x)
        mask = _near(mask, operation, 2 * reach_y + 1, 2 * reach_x + 1, reach=2)
    pixel = step_x * step_y
    mask = mask.rechunk(-1).map_blocks(
        _objects, least=least_um2 / pixel, holes=holes_um2 / pixel, dtype=bool, meta=np.empty((0, 0), bool)
    )
    options = {"value": value, "smooth_um": smooth_um, "close_um": close_um, "open_um": open_um}
    options |= {"least_um2": least_um2, "holes_um2": holes_um2}
    coords = {axis: image.coords[axis] for axis in ("y", "x") if axis in image.coords}
    return xr.DataArray(mask, coords, ("y", "x"), "tissue", image.attrs | {"filter": "otsu", "options": options})


_EMPTY = np.empty((0, 0, 0), np.uint8)
_SCALAR: dict[str, Any] = {"drop_axis": 0, "dtype": np.float64, "meta": np.empty((), np.float64)}


def _check(image: xr.DataArray, value: str, *lengths: float) -> None:
    if image.dims != ("c", "y", "x"):
        raise OptionError(f"dimensions are {image.dims}", "otsu", "Give an image (c, y, x), as slide.image() does.")
    if value not in get_args(Value):
        raise OptionError(f"value is {value!r}", "otsu", f"Use one of {', '.join(get_args(Value))}.")
    if any(not 0 <= length < float("inf") for length in lengths):
        raise OptionError(f"lengths are {lengths}", "otsu", "Give micrometres, 0 or more.")


def _grey(block: Array) -> Array:
    """Brightness: the brightest channel, so that no stain is lost in a mean."""
    result: Array = block.max(axis=0)
    return result


def _to_bins(grey: da.Array) -> da.Array:
    """Any dtype as 4,096 equal steps between the slide's least and largest value."""
    low, high = grey.min(), grey.max()

    def scale(block: Array, low: Array, high: Array) -> Array:
        span = max(float(high) - float(low), 1e-12)
        return ((block.astype(np.float64) - float(low)) * (4095 / span)).astype(np.uint16)

    scaled: da.Array = da.map_blocks(scale, grey, low, high, dtype=np.uint16, meta=np.empty((0, 0), np.uint16))
    return scaled


def _saturation(block: Array, dark: Array) -> Array:
    """Saturation of HSV, 0 to 255; on a dark ground, where it is all noise, brightness."""
    high = block.max(axis=0)
    if bool(np.all(dark)):
        return high
    low = block.min(axis=0)
    spread = (high - low).astype(np.uint16) * 255
    result: Array = (spread // np.maximum(high, 1)).astype(np.uint8)
    return result


def _histogram(values: da.Array) -> da.Array:
    """Counts of each value of the whole array: per block, then added up."""
    bins = 256 if values.dtype == np.uint8 else 4096

    def count(block: Array) -> Array:
        return np.bincount(block.ravel(), minlength=bins)[None, None]

    chunks = ((1,) * values.numblocks[0], (1,) * values.numblocks[1], (bins,))
    counts = values.map_blocks(count, chunks=chunks, new_axis=2, dtype=np.int64, meta=np.empty((0, 0, 0), np.int64))
    total: da.Array = counts.sum(axis=(0, 1)).rechunk(-1)
    return total


def _bright(block: Array, counts: Array) -> Array:
    """Grey with the ground dark: turned round where the slide's median is in the upper half."""
    top = len(counts) - 1
    median = np.searchsorted(np.cumsum(counts), counts.sum() / 2)
    return (top - block).astype(block.dtype) if median > top / 2 else block


def _is_dark(counts: Array) -> Array:
    return np.asarray(np.searchsorted(np.cumsum(counts), counts.sum() / 2) < _DARK, np.float64)


def _threshold(counts: Array, dark: Array, least: float) -> Array:
    if np.count_nonzero(counts) < 2:
        return np.asarray(np.inf)  # one value everywhere: nothing to tell apart
    found = float(threshold_otsu(hist=(counts, np.arange(len(counts)))))
    return np.asarray(found if bool(np.all(dark)) else max(found, least))


def _near(values: da.Array, operation: Callable[..., Array], high: int, wide: int, reach: int = 1) -> da.Array:
    """A neighbourhood operation with a window of ``high`` x ``wide``, applied ``reach`` times its half.

    At the slide's own border the operation sees what it would see in the whole array.
    """
    if high <= 1 and wide <= 1:
        return values
    depth = (high // 2 * reach, wide // 2 * reach)
    keep = {"dtype": values.dtype, "meta": np.empty((0, 0), values.dtype)}
    if any(d >= n for d, n in zip(depth, values.shape, strict=True)):
        whole: da.Array = values.rechunk(-1).map_blocks(operation, high=high, wide=wide, **keep)
        return whole
    result: da.Array = da.map_overlap(
        operation, values, high=high, wide=wide, depth=depth, boundary="none", allow_rechunk=True, **keep
    )
    return result


def _odd(pixels: float) -> int:
    """The nearest odd window, at least 1."""
    return 2 * round((max(pixels, 1) - 1) / 2) + 1


def _median(block: Array, high: int, wide: int) -> Array:
    result: Array = ndimage.median_filter(block, size=(high, wide))
    return result


def _disc(high: int, wide: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-(high // 2) : high // 2 + 1, -(wide // 2) : wide // 2 + 1]
    disc: NDArray[np.bool_] = (y / (high // 2 + 0.5)) ** 2 + (x / (wide // 2 + 0.5)) ** 2 <= 1
    return disc


def _close(block: Array, high: int, wide: int) -> Array:
    disc = _disc(high, wide)
    grown = ndimage.binary_dilation(block, disc)
    result: Array = ndimage.binary_erosion(grown, disc, border_value=1)
    return result


def _open(block: Array, high: int, wide: int) -> Array:
    disc = _disc(high, wide)
    kept = ndimage.binary_erosion(block, disc, border_value=1)
    result: Array = ndimage.binary_dilation(kept, disc)
    return result


def _objects(mask: Array, least: float, holes: float) -> Array:
    if least > 1:
        mask = remove_small_objects(mask, max_size=int(np.ceil(least)) - 1)
    if holes > 1:
        mask = remove_small_holes(mask, max_size=int(np.ceil(holes)) - 1)
    return mask
