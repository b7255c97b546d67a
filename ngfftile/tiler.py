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
from ngfftile.filters import FILTERS, NOMINAL_MPP
from ngfftile.geometry import Region, Size
from ngfftile.grid import TileGrid, Tiles
from ngfftile.index import Index
from ngfftile.registry import resolve
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
    view = opened.view(level=grid.level, mpp=grid.mpp)
    tiles = grid.tiles(view.size)
    if function is None and not isinstance(tissue, xr.DataArray):
        fraction = 1 - tiles.overhang
        kept = np.ones(len(tiles), bool)
    elif function is not None and getattr(function, "per_tile", False):
        fraction = _decide(view, tiles, function, scheduler, workers, progress)
        kept = fraction > 0
    else:
        mask = tissue if isinstance(tissue, xr.DataArray) else _mask(opened, function, mask_mpp)
        mask = mask.compute(scheduler="threads")
        if label is not None:
            _keep(opened, label, mask)
        fraction = _fractions(mask, view, tiles, opened.size)
        kept = fraction >= min_fraction
    params = _params(grid, view, name, min_fraction, mask_mpp)
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
        return tissue, resolve(tissue, FILTERS, "filter")
    if not callable(tissue):
        raise OptionError(f"tissue is a {type(tissue).__name__}", "tile", "Give a name, a function, a mask or None.")
    return f"{tissue.__module__}:{getattr(tissue, '__qualname__', type(tissue).__name__)}", tissue


def _mask(slide: Slide, function: Callable[..., Any] | None, mpp: float) -> xr.DataArray:
    """The tissue mask at a coarse resolution; level 0 itself where the slide is no finer."""
    assert function is not None
    finest = slide.mpp
    if finest is None:
        wanted = mpp / _ASSUMED_MPP
        level = min(slide.levels, key=lambda k: abs(np.log2(k.downsample / wanted)))
        image = slide.image(level=level.index)
    else:
        image = slide.image(mpp=max(mpp, finest.x, finest.y))
    mask = function(image)
    if not isinstance(mask, xr.DataArray):
        mask = xr.DataArray(mask, dims=("y", "x"))
    if mask.dims != ("y", "x"):
        raise OptionError(f"the filter's mask has dimensions {mask.dims}", "tile", "Return bool (y, x).")
    return mask


def _fractions(mask: xr.DataArray, view: View, tiles: Tiles, size: Size) -> NDArray[np.float64]:
    """Part of each tile that is tissue, exact by area."""
    pixels = np.asarray(mask.data).astype(bool)
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


def _params(grid: TileGrid, view: View, name: str, min_fraction: float, mask_mpp: float) -> dict[str, Any]:
    extent, stride = Size.of(grid.extent), Size.of(grid.stride or grid.extent)
    return {
        "extent": [extent.x, extent.y],
        "stride": [stride.x, stride.y],
        "mpp": grid.mpp,
        "level": grid.level,
        "edge": grid.edge,
        "filter": name,
        "min_fraction": min_fraction,
        "mask_mpp": mask_mpp,
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
        "source": slide.facts.get("source", {}).get("name"),
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
        "mpp_requested": grid.mpp,
        "edge": grid.edge,
        "filter": params["filter"],
        "min_fraction": params["min_fraction"],
        "n_tiles": len(tiles),
        "n_kept": len(these),
        "params_id": hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:32],
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
