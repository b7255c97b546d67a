"""One resolution of a slide: a stored level, or the area mean of one; read by region."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ngfftile import color, resample
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.shards import LevelArray

Array = NDArray[Any]
_BLOCK_BYTES = 64 << 20
_STRIP = 16  # rows


@dataclass(frozen=True, slots=True, repr=False)
class Level:
    """One stored level.

    Parameters
    ----------
    index
        0 is the finest.
    size
        Width and height in pixels.
    mpp
        Micrometres per pixel, None if the slide has none.
    downsample, downsample_y
        Relative to level 0, along x, and along y: the same, but in some stores of other writers.
    """

    index: int
    size: Size
    mpp: Mpp | None
    downsample: float
    downsample_y: float

    def __repr__(self) -> str:
        mpp = f", mpp={self.mpp}" if self.mpp else ""
        return f"Level({self.index}, {self.size.x}x{self.size.y}{mpp}, downsample={self.downsample:g})"


@dataclass(frozen=True)
class View:
    """A slide at one resolution: a stored level, or the area mean of one.

    Parameters
    ----------
    array
        The stored level that is read.
    level
        What it is.
    ratio_x, ratio_y
        Pixels of the level per pixel of the view, 1 or more; 1 gives exactly the stored pixels.
    mpp
        Delivered micrometres per pixel.
    fill
        Value of what lies outside: 255 for RGB, else the store's fill value.
    nearest
        Whether a pixel is the nearest one of the level, not the area mean: labels.
    t, z
        Point in time, and focal plane.
    profile
        ICC profile of the pixels, which then become sRGB; None leaves them as they are stored.
    """

    array: LevelArray
    level: Level
    ratio_x: float
    ratio_y: float
    mpp: Mpp | None
    fill: int
    nearest: bool = False
    t: int = 0
    z: int = 0
    profile: bytes | None = None

    @cached_property
    def size(self) -> Size:
        """Width and height in pixels of the view; a last part of a pixel is left out."""
        if self.exact:
            return self.level.size
        # A hair is added so that a ratio a rounding error above a whole number does not lose its last pixel.
        return Size(
            max(1, int(self.level.size.x / self.ratio_x + 1e-6)), max(1, int(self.level.size.y / self.ratio_y + 1e-6))
        )

    @property
    def exact(self) -> bool:
        """Whether the view is a stored level, pixel for pixel."""
        return self.ratio_x == 1 and self.ratio_y == 1

    @property
    def downsample_x(self) -> float:
        """Level-0 pixels per pixel of the view, along x."""
        return self.level.downsample * self.ratio_x

    @property
    def downsample_y(self) -> float:
        """Level-0 pixels per pixel of the view, along y."""
        return self.level.downsample_y * self.ratio_y

    def read(self, region: Region) -> Array:
        """Pixels (c, y, x) of a region inside the view."""
        pixels = self._pixels(region)
        return pixels if self.profile is None else color.to_srgb(pixels, self.profile)

    def _pixels(self, region: Region) -> Array:
        if self.exact or not (region.width and region.height):
            return self.array.read(region, self.t, self.z)
        x0, x1 = resample.input_range(region.x, region.width, self.ratio_x, self.level.size.x)
        y0, y1 = resample.input_range(region.y, region.height, self.ratio_y, self.level.size.y)
        pixels = self.array.read(Region(x0, y0, x1 - x0, y1 - y0), self.t, self.z)
        if self.nearest:
            rows = ((np.arange(region.y, region.bottom) + 0.5) * self.ratio_y).astype(np.int64) - y0
            cols = ((np.arange(region.x, region.right) + 0.5) * self.ratio_x).astype(np.int64) - x0
            return pixels[:, rows[:, None], cols]
        out = np.empty((len(pixels), region.height, region.width), pixels.dtype)
        # In strips that stay in the cache: on a whole block, memory would cost more than the arithmetic.
        for y in range(0, region.height, _STRIP):
            count = min(_STRIP, region.height - y)
            rows = resample.area_mean(pixels, 1, y0, region.y + y, count, self.ratio_y)
            both = resample.area_mean(rows, 2, x0, region.x, region.width, self.ratio_x)
            out[:, y : y + count] = resample.to_dtype(both, pixels.dtype)
        return out

    def tile(self, region: Region) -> Array:
        """Pixels (height, width, channel) of a region that may hang over; outside is `fill`."""
        inside = region.clip(Region(0, 0, self.size.x, self.size.y))
        pixels = self.read(inside)
        shape = (region.height, region.width, len(pixels))
        out = np.empty(shape, pixels.dtype) if inside == region else np.full(shape, self.fill, pixels.dtype)
        target = out[inside.inside(region)]
        # Plane by plane: numpy's copy of a transposed array takes four times as long (benchmarks/smaller.py).
        for channel, plane in enumerate(pixels):
            target[..., channel] = plane
        return out

    def block(self) -> Size:
        """A good dask block: whole shards where they fit 64 MB, else the largest half, quarter, ... that does."""
        unit, chunk = self.array.unit, self.array.chunk
        bytes_per_pixel = self.array.channels * self.array.dtype.itemsize
        # Unsharded stores have small objects: several make a block.
        x, y = (max(u, -(-1024 // c) * c) for u, c in ((unit.x, chunk.x), (unit.y, chunk.y)))
        x, y = int(x / self.ratio_x) or 1, int(y / self.ratio_y) or 1
        while x * y * bytes_per_pixel > _BLOCK_BYTES and max(x, y) > 512:
            x, y = (x // 2, y) if x >= y else (x, y // 2)
        return Size(x, y)
