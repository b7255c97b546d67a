"""Which tiles of a slide to keep: grid, tissue, table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from ngfftile import cluster, index
from ngfftile.coverage import covered_area
from ngfftile.errors import NgfftileError, OptionError, StoreError
from ngfftile.filters import NOMINAL_MPP, decides_by_tile, named
from ngfftile.geometry import Region, Size
from ngfftile.grid import TileGrid, Tiles
from ngfftile.index import Index
from ngfftile.slide import Slide
from ngfftile.slide import open as open_slide
from ngfftile.view import View

Array = NDArray[Any]
Tissue = str | Callable[..., Any] | xr.DataArray | None
MASK_MPP = NOMINAL_MPP
_ASSUMED_MPP = 0.25  # of level 0 where nobody knows, to choose the level that a mask is made at


def tile(
    slide: Slide | str | os.PathLike[str],
    grid: TileGrid,
    *,
    tissue: Tissue = "otsu",
    min_fraction: float = 0.5,
    mask_mpp: float = MASK_MPP,
    label: str | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Lay a grid over a slide, and keep the tiles with tissue.

    Parameters
    ----------
    slide
        An open slide, or where it is.
    grid
        Tile size, stride, resolution, and what happens at the border.
    tissue
        A filter's name (``otsu``, ``std``, ``package.module:function``); a function from the lazy image (c, y, x) to a
        mask (y, x), or, marked with `filters.per_tile`, from a tile (height, width, channel) to bool; a mask (y, x) of
        the whole slide at any resolution; None keeps all.
    min_fraction
        Least part of a tile's area that must be tissue, 0 to 1. What hangs over counts as no tissue.
    mask_mpp
        Micrometres per pixel that a mask is made at.
    label
        Name to store the mask under, as a label image beside the pixels; None stores none.
    scheduler, workers
        As for `convert`; for filters that decide on each tile's pixels.
    progress
        Called with the tiles done so far, and all of them.

    Returns
    -------
    Index
        One slide, and its kept tiles: neighbours on disk are neighbours in the table.

    Raises
    ------
    ResolutionError
        The grid's resolution cannot be had.
    OptionError
        An argument that cannot be meant.

    Examples
    --------
    >>> import ngfftile as nt
    >>> grid = nt.TileGrid(extent=64, mpp=0.5)
    >>> print(nt.tile("small.ome.zarr", grid, tissue=None))
    Index: 20 of 20 tiles kept, 1 slides
      small.svs: 20 of 20 tiles of 64 x 64 at 0.5 µm/px, none
    """
    if not 0 <= min_fraction <= 1:
        raise OptionError(f"min_fraction is {min_fraction}", "tile", "Give a part of a tile's area, 0 to 1.")
    cluster.check(scheduler, workers)
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    name, function = _filter(tissue)
    options: dict[str, Any] = _told(function)
    view = opened.view(level=grid.level, mpp=grid.mpp)
    tiles = grid.tiles(view.size)
    if function is None and not isinstance(tissue, xr.DataArray):
        fraction = 1 - tiles.overhang
        kept = np.ones(len(tiles), bool)
    elif function is not None and decides_by_tile(function):
        fraction = _decide(view, tiles, function, scheduler, workers, progress)
        kept = fraction > 0
    else:
        mask = _whole(tissue, opened) if isinstance(tissue, xr.DataArray) else _mask(opened, function, mask_mpp)
        mask = mask.compute(scheduler="threads")
        options = _made(mask)
        if label is not None:
            _keep(opened, label, mask)
        fraction = _fractions(mask, view, tiles, opened.size)
        kept = fraction >= min_fraction
    params = _params(grid, view, name, min_fraction, options)
    return _index(opened, view, grid, tiles, fraction, kept, params)


def _keep(slide: Slide, label: str, mask: xr.DataArray) -> None:
    try:
        slide.labels[label] = mask
    except OSError as error:
        if isinstance(error, NgfftileError):
            raise
        raise StoreError(
            f"the mask cannot be stored in it ({error.strerror or error})", slide.url, "Leave it out with --no-label."
        ) from error


def _filter(tissue: Tissue) -> tuple[str, Callable[..., Any] | None]:
    if tissue is None or (isinstance(tissue, str) and tissue == "none"):
        return "none", None
    if isinstance(tissue, xr.DataArray):
        return str(tissue.attrs.get("filter", tissue.name or "mask")), None
    if isinstance(tissue, str):
        return tissue, named(tissue)
    if not callable(tissue):
        raise OptionError(f"tissue is a {type(tissue).__name__}", "tile", "Give a name, a function, a mask or None.")
    plain = getattr(tissue, "func", tissue)  # of a functools.partial
    return f"{plain.__module__}:{getattr(plain, '__qualname__', type(plain).__name__)}", tissue


def _told(function: Callable[..., Any] | None) -> dict[str, Any]:
    """What tells a function from others of its name: the arguments of a partial, the code of a lambda."""
    plain = getattr(function, "func", function)
    code = getattr(plain, "__code__", None)
    told = {"arguments": repr((getattr(function, "args", ()), sorted(getattr(function, "keywords", {}).items())))}
    if code is not None and not str(plain.__module__).startswith("ngfftile."):
        told["code"] = hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()
    return told


def _made(mask: xr.DataArray) -> dict[str, Any]:
    """What made a mask: its filter's own words, and its pixels."""
    pixels = np.ascontiguousarray(mask.data)
    digest = hashlib.sha256(repr(pixels.shape).encode() + np.packbits(pixels).tobytes()).hexdigest()
    return {"options": mask.attrs.get("options"), "mpp_x": mask.attrs.get("mpp_x"), "mask": digest}


def _mask(slide: Slide, function: Callable[..., Any] | None, mpp: float) -> xr.DataArray:
    """The tissue mask at a coarse resolution; level 0 itself where the slide is no finer."""
    assert function is not None
    finest = slide.mpp
    if finest is None:
        wanted = mpp / _ASSUMED_MPP
        level = min(slide.levels, key=lambda k: abs(np.log2(k.downsample / wanted)))
        image = slide.image(level=level.index, t=slide.shown["t"], z=slide.shown["z"])
    else:
        image = slide.image(mpp=max(mpp, finest.x, finest.y), t=slide.shown["t"], z=slide.shown["z"])
    mask = function(image)
    if not isinstance(mask, xr.DataArray):
        mask = xr.DataArray(mask) if getattr(mask, "ndim", 0) != 2 else xr.DataArray(mask, dims=("y", "x"))
    if mask.shape != image.shape[1:]:
        raise OptionError(
            f"the filter made {mask.shape} of an image {image.shape}", "tile", "Return one bool for each pixel, (y, x)."
        )
    return _whole(mask.assign_attrs(image.attrs | mask.attrs), slide)


def _whole(mask: xr.DataArray, slide: Slide) -> xr.DataArray:
    """The mask as bool (y, x), if it is one of the whole slide."""
    if set(mask.dims) != {"y", "x"} or mask.dtype != bool:
        raise OptionError(
            f"the mask is {mask.dtype} {mask.dims}", "tile", "Give bool with dimensions y, x: compare with a threshold."
        )
    mask = mask.transpose("y", "x")
    for axis, size in (("x", slide.size.x), ("y", slide.size.y)):
        step = mask.attrs.get(f"downsample_{axis}")
        # A level leaves out less than one of its pixels, and a view of it less than one of its own, which are no
        # smaller: anything else is a mask that was cut or shrunk since.
        if step and not -1 < size / step - mask.sizes[axis] < 2:
            raise OptionError(
                f"the mask has {mask.sizes[axis]} pixels along {axis}, its downsample_{axis} of {step:g} makes "
                f"{size / step:g}",
                "tile",
                "Give the mask of the whole slide; without these attrs it counts as one.",
            )
    return mask


def _fractions(mask: xr.DataArray, view: View, tiles: Tiles, size: Size) -> NDArray[np.float64]:
    """Part of each tile that is tissue, exact by area."""
    pixels = np.asarray(mask.data)
    # A mask made from a level says how it lies; any other covers the whole slide.
    down_x = mask.attrs.get("downsample_x") or size.x / pixels.shape[1]
    down_y = mask.attrs.get("downsample_y") or size.y / pixels.shape[0]
    step_x, step_y = view.downsample_x / down_x, view.downsample_y / down_y
    area = covered_area(
        pixels,
        tiles.x * step_x,
        tiles.y * step_y,
        np.minimum(tiles.x + tiles.extent.x, tiles.bounds.x) * step_x,
        np.minimum(tiles.y + tiles.extent.y, tiles.bounds.y) * step_y,
    )
    fraction = area / (tiles.extent.x * step_x * tiles.extent.y * step_y)
    # Sums of areas that ought to be whole carry rounding errors of 1e-12; a threshold of 1 must still be met.
    rounded: NDArray[np.float64] = np.clip(np.round(fraction, 10), 0, 1)
    return rounded


def _decide(
    view: View,
    tiles: Tiles,
    function: Callable[..., Any],
    scheduler: str,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.float64]:
    """1 or 0 for each tile by its pixels; tiles of one block are read together, so each chunk is decoded once there."""
    if not len(tiles):
        return np.zeros(0)
    block = view.block()
    group = (tiles.y // block.y) * (tiles.bounds.x // block.x + 1) + tiles.x // block.x
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    parts = np.split(order, starts[1:])
    graph: dict[Hashable, Any] = {
        ("decide", i): (_decide_block, view, tiles[part], function) for i, part in enumerate(parts)
    }
    graph["done"] = (_join, [("decide", i) for i in range(len(parts))])
    count = 0

    def done(key: Hashable) -> None:
        nonlocal count
        if progress is not None and isinstance(key, tuple):
            count += len(parts[key[1]])
            progress(count, len(tiles))

    values = cluster.run(graph, "done", scheduler=scheduler, workers=workers, done=done)
    result = np.empty(len(tiles))
    result[order] = values
    return result


def _decide_block(view: View, tiles: Tiles, function: Callable[..., Any]) -> Array:
    left, top = int(tiles.x.min()), int(tiles.y.min())
    outer = Region(left, top, int(tiles.x.max()) + tiles.extent.x - left, int(tiles.y.max()) + tiles.extent.y - top)
    pixels = view.tile(outer)
    return np.array(
        [float(bool(function(pixels[tiles.region(i).inside(outer)]))) for i in range(len(tiles))], np.float64
    )


def _join(parts: list[Array]) -> Array:
    return np.concatenate(parts)


def _params(grid: TileGrid, view: View, name: str, min_fraction: float, options: dict[str, Any]) -> dict[str, Any]:
    extent, stride = Size.of(grid.extent), Size.of(grid.stride or grid.extent)
    return {
        # Numbers of one value are one parameter, whatever their type.
        "extent": [int(extent.x), int(extent.y)],
        "stride": [int(stride.x), int(stride.y)],
        "mpp": None if grid.mpp is None else float(grid.mpp),
        "level": None if grid.level is None else int(grid.level),
        "edge": grid.edge,
        "filter": name,
        "min_fraction": float(min_fraction),
        "options": options,
        "delivered_level": view.level.index,
        "schema": index.SCHEMA_VERSION,
    }


def _index(
    slide: Slide,
    view: View,
    grid: TileGrid,
    tiles: Tiles,
    fraction: NDArray[np.float64],
    kept: NDArray[np.bool_],
    params: dict[str, Any],
) -> Index:
    chosen = np.flatnonzero(kept)
    unit = view.array.unit
    shard_x = (tiles.x[chosen] * view.ratio_x // unit.x).astype(np.int64)
    shard_y = (tiles.y[chosen] * view.ratio_y // unit.y).astype(np.int64)
    chosen = chosen[np.lexsort((tiles.x[chosen], tiles.y[chosen], shard_x, shard_y))]
    these = tiles[chosen]
    stride = Size.of(grid.stride or grid.extent)
    row = {
        "id": slide.id,
        "path": slide.url,
        "source": (slide.facts.get("source") or {}).get("name"),
        "extent_x": view.size.x,
        "extent_y": view.size.y,
        "tile_extent_x": tiles.extent.x,
        "tile_extent_y": tiles.extent.y,
        "stride_x": stride.x,
        "stride_y": stride.y,
        "mpp_x": view.mpp.x if view.mpp else None,
        "mpp_y": view.mpp.y if view.mpp else None,
        "level": view.level.index,
        "downsample": view.downsample_x,
        "mpp_requested": params["mpp"],
        "edge": grid.edge,
        "filter": params["filter"],
        "min_fraction": params["min_fraction"],
        "n_tiles": len(tiles),
        "n_kept": len(these),
        "params_id": hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()[:32],
        "status": "complete",
        "error": None,
    }
    columns = {
        "slide_id": np.full(len(these), slide.id),
        "tile_x": these.x,
        "tile_y": these.y,
        "x0": these.x * view.downsample_x,
        "y0": these.y * view.downsample_y,
        "row": these.row.astype(np.int32),
        "col": these.col.astype(np.int32),
        "tissue_fraction": fraction[chosen],
        "overhang": these.overhang,
    }
    return Index(
        pa.Table.from_pylist([row], index.SLIDES), pa.table(columns, schema=index.TILES), Path(slide.url).parent
    )
