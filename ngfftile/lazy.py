"""A view as a lazy array: dask blocks that read their own pixels, and the places of the pixels along each axis."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ngfftile.geometry import Region, Size
from ngfftile.ngff import MICROMETRES, Multiscale
from ngfftile.view import View

Array = NDArray[Any]


def _read_block(view: View, dims: str, block_info: Any = None) -> Array:
    at = dict(zip(dims, block_info[None]["array-location"], strict=True))
    (y0, y1), (x0, x1) = at["y"], at["x"]
    there = {axis: at[axis][0] for axis in "tz" if axis in at}
    pixels = replace(view, **there).read(Region(x0, y0, x1 - x0, y1 - y0))
    return pixels[tuple(None if axis in "tz" else slice(None) for axis in dims if axis not in "yx")]


def array(view: View, stacked: Mapping[str, int], block: Size, name: object) -> da.Array:
    """The pixels of a view as a lazy array.

    Parameters
    ----------
    stacked
        Lengths of the axes t and z that the array has; without them it is the view's own plane.
    block
        Sides of dask's blocks in pixels.
    name
        What tells the slide from others, for the names of the tasks.

    Returns
    -------
    dask.array.Array
        (c, y, x), or (t, c, z, y, x) as far as stacked.
    """
    dims = "".join(axis for axis in "tczyx" if axis in "cyx" or axis in stacked)
    steps = {axis: (1,) * count for axis, count in stacked.items()}
    steps |= {"c": (view.array.channels,), "y": _steps(view.size.y, block.y), "x": _steps(view.size.x, block.x)}
    chunks = tuple(steps[axis] for axis in dims)
    token = repr((name, view.level.index, view.ratio_x, view.ratio_y, view.t, view.z, view.profile, chunks))
    return da.map_blocks(
        _read_block,
        view,
        dims,
        chunks=chunks,
        dtype=view.array.dtype,
        meta=np.empty((0,) * len(dims), view.array.dtype),
        name=f"slide-{hashlib.sha256(token.encode()).hexdigest()[:16]}",
    )


def axis(view: View, image: Multiscale, name: str, stacked: Mapping[str, int]) -> xr.Variable:
    """Places along one axis: centres of the pixels in micrometres, or in level-0 pixels where there is no mpp.

    As the store's scale and translation say: https://ngff.openmicroscopy.org/0.5/#trafo-md.
    """
    data, i = image.datasets[view.level.index], image.axes.index(name)
    if name in stacked:
        unit = image.units.get(name)
        factor = MICROMETRES.get(unit or "", 1.0) if name == "z" else 1.0
        places = (np.arange(stacked[name]) * data.scale[i] + data.translation[i]) * factor
        return xr.Variable(name, places, {"units": ("µm" if name == "z" else unit) if unit else "plane"})
    count, ratio = (view.size.x, view.ratio_x) if name == "x" else (view.size.y, view.ratio_y)
    pixels = (np.arange(count) + 0.5) * ratio - 0.5
    known = MICROMETRES.get(image.unit or "")
    return xr.Variable(
        name, (pixels * data.scale[i] + data.translation[i]) * (known or 1.0), {"units": "µm" if known else "pixel"}
    )


def _steps(total: int, step: int) -> tuple[int, ...]:
    return tuple(min(step, total - start) for start in range(0, total, step))
