"""The conversion as a dask graph: one task per shard, and one per rectangle of source tiles that shards share.

A level-0 task decodes its source tiles, compresses and writes its shard, and returns the 2x mean; a task above puts at
most four such quarters together and does the same. dask walks the tree depth first, so what waits is a few quarters per
level and worker, whatever the slide's size. Source tiles that lie across a shard border are decoded once, for all
shards that they touch.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ngfftile import shards
from ngfftile.codecs import Codec
from ngfftile.pyramid import Cell, PyramidPlan, Shard
from ngfftile.shards import Layout, LevelArray
from ngfftile.sources import Source
from ngfftile.store import Store

Array = NDArray[Any]


@dataclass(frozen=True)
class Job:
    """All that a task needs to know; small, and picklable for a cluster."""

    source: Source
    pyramid: PyramidPlan
    codec: Codec
    store: Store

    @cached_property
    def layout(self) -> Layout:
        """Of the arrays."""
        return Layout(self.pyramid.chunk, self.pyramid.shard, self.pyramid.depth, self.pyramid.fill)

    @property
    def keys(self) -> set[str]:
        """Names of all shards."""
        return {s.key for k in range(len(self.pyramid.levels)) for s in self.pyramid.shards(k)}

    def create_arrays(self) -> None:
        """Write the levels' metadata."""
        for k, size in enumerate(self.pyramid.levels):
            shape = (self.pyramid.channels, size.y, size.x)
            shards.create(self.store, str(k), shape, self.pyramid.dtype, self.layout, self.codec)


_scratch = threading.local()


def _buffer(count: int, dtype: str) -> Array:
    """Pixels of this thread to work in: fresh memory would cost more in page faults than the arithmetic."""
    held: Array | None = getattr(_scratch, "pixels", None)
    if held is None or held.nbytes < count * np.dtype(dtype).itemsize:
        held = _scratch.pixels = np.empty(count * np.dtype(dtype).itemsize, np.uint8)
    return held[: count * np.dtype(dtype).itemsize].view(dtype)


def read_cell(job: Job, plane: int, cell: Cell) -> Array:
    """Task: decode source tiles that several shards share; (y, x, depth)."""
    depth = job.pyramid.depth
    pixels = np.empty((cell.region.height, cell.region.width, depth), job.pyramid.dtype)
    job.source.read(cell.region, plane * depth, depth, pixels)
    return pixels


def write_base(job: Job, shard: Shard, shared: list[Array]) -> Array | None:
    """Task: fill a level-0 shard from the source, write it, and return its 2x mean (depth, y, x)."""
    region = job.pyramid.region(shard)
    depth = job.pyramid.depth
    pixels = _buffer(region.width * region.height * depth, job.pyramid.dtype)
    pixels = pixels.reshape(region.height, region.width, depth)
    waiting = iter(shared)
    for cell in job.pyramid.cells(shard):
        wanted = cell.region.clip(region)
        target = pixels[wanted.inside(region)]
        if cell.shared:
            target[...] = next(waiting)[wanted.inside(cell.region)]
        else:
            job.source.read(cell.region, shard.plane * depth, depth, target)
    return _write(job, shard, pixels.transpose(2, 0, 1))


def write_mean(job: Job, shard: Shard, quarters: list[Array]) -> Array | None:
    """Task: put the means of a shard's children together, write them, and return the 2x mean (depth, y, x)."""
    region = job.pyramid.region(shard)
    pixels = _buffer(region.width * region.height * job.pyramid.depth, job.pyramid.dtype)
    pixels = pixels.reshape(job.pyramid.depth, region.height, region.width)
    side = job.pyramid.shard // 2
    for child, quarter in zip(job.pyramid.children(shard), quarters, strict=True):
        y, x = (child.row - 2 * shard.row) * side, (child.col - 2 * shard.col) * side
        # The last odd row and column of the finer level have no partner, and no place here.
        target = pixels[:, y : y + quarter.shape[1], x : x + quarter.shape[2]]
        target[...] = quarter[:, : target.shape[1], : target.shape[2]]
    return _write(job, shard, pixels)


def read_mean(job: Job, shard: Shard) -> Array | None:
    """Task: the 2x mean (depth, y, x) of a shard that an earlier run wrote."""
    depth = job.pyramid.depth
    region = job.pyramid.region(shard)
    pixels = LevelArray(job.store, str(shard.level), ("c", "y", "x"), whole=True).read(region)
    mean = _mean_of(job, shard)
    if mean is not None:
        shards.shrink(pixels[shard.plane * depth : (shard.plane + 1) * depth], mean, job.pyramid.chunk)
    return mean


def _mean_of(job: Job, shard: Shard) -> Array | None:
    if shard.level + 1 == len(job.pyramid.levels):
        return None
    region = job.pyramid.region(shard)
    shape = (job.pyramid.depth, max(1, region.height // 2), max(1, region.width // 2))
    return np.empty(shape, job.pyramid.dtype)


def _write(job: Job, shard: Shard, pixels: Array) -> Array | None:
    mean = _mean_of(job, shard)
    shards.write_shard(job.store, shard.key, pixels, job.layout, job.codec, mean)
    return mean


def _collect(*_: object) -> None:
    """Task: all planes are written."""


def graph(job: Job, present: set[str]) -> dict[Hashable, Any]:
    """The conversion as a dask graph; its key ``done`` waits for all.

    Parameters
    ----------
    present
        Keys of the shards that an earlier run wrote: read back where a parent needs them, left out where none does.
    """
    pyramid = job.pyramid
    tasks: dict[Hashable, Any] = {}
    whole: dict[Shard, bool] = {}
    for level in range(len(pyramid.levels)):
        for shard in pyramid.shards(level):
            whole[shard] = shard.key in present and all(whole[c] for c in pyramid.children(shard))
    waiting = [shard for shard in pyramid.shards(len(pyramid.levels) - 1) if not whole[shard]]
    tasks["done"] = (_collect, *(key_of(shard) for shard in waiting))
    while waiting:
        shard = waiting.pop()
        if whole[shard]:
            tasks[key_of(shard)] = (read_mean, job, shard)
        elif shard.level:
            children = pyramid.children(shard)
            tasks[key_of(shard)] = (write_mean, job, shard, [key_of(c) for c in children])
            waiting += children
        else:
            cells = [cell for cell in pyramid.cells(shard) if cell.shared]
            keys = [("cell", shard.plane, cell.row, cell.col) for cell in cells]
            tasks[key_of(shard)] = (write_base, job, shard, keys)
            tasks |= {k: (read_cell, job, shard.plane, cell) for k, cell in zip(keys, cells, strict=True)}
    return tasks


def key_of(shard: Shard) -> tuple[str, int, int, int, int]:
    """The task that writes, or reads back, a shard."""
    return ("shard", shard.level, shard.plane, shard.row, shard.col)
