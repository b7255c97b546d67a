"""Label images beside the pixels: a mask at any resolution becomes ``labels/<name>``, with as many levels as the slide.

Each pixel of each level takes the label that lies under its centre. Most chunks of a mask are one value: those of 0 are
not stored, and the others are compressed once, so that a label costs little even where its level 0 has 8 gigapixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ngfftile import cluster, ngff, shards
from ngfftile.codecs import Blosc, Zstd
from ngfftile.draft import Draft
from ngfftile.errors import OptionError
from ngfftile.geometry import Region, Size
from ngfftile.pyramid import Shard
from ngfftile.shards import Layout
from ngfftile.store import Store, Written

Array = NDArray[Any]
LAYOUT = Layout(chunk=256, shard=4096, depth=1, fill=0, codec=Zstd())
LAYOUT2 = Layout(chunk=256, shard=4096, depth=1, fill=0, codec=Blosc(), sharded=False, zarr_format=2)


@dataclass(frozen=True)
class LabelJob:
    """All that a task needs to know.

    Parameters
    ----------
    store
        The label's own store.
    mask
        (y, x) of an integer dtype.
    sizes
        Of the levels.
    steps_x, steps_y
        Mask pixels per pixel of each level.
    layout
        Of the levels.
    """

    store: Store
    mask: Array
    sizes: tuple[Size, ...]
    steps_x: tuple[float, ...]
    steps_y: tuple[float, ...]
    layout: Layout = LAYOUT

    def keys(self, shard: Shard) -> list[str]:
        """Names of the objects that hold a shard."""
        size, side = self.sizes[shard.level], LAYOUT.shard
        whole = Region(shard.col * side, shard.row * side, side, side).clip(Region(0, 0, size.x, size.y))
        return self.layout.objects(str(shard.level), (0, shard.row, shard.col), whole)

    def shards(self) -> list[Shard]:
        """All shards of all levels."""
        side = LAYOUT.shard
        return [
            Shard(k, 0, row, col)
            for k, size in enumerate(self.sizes)
            for row in range(-(-size.y // side))
            for col in range(-(-size.x // side))
        ]

    @cached_property
    def _padded(self) -> Array:
        """The mask with a border of 0 below and to the right: what the mask does not reach has no label."""
        return np.pad(self.mask, ((0, 1), (0, 1)))

    def under(self, level: int, axis: str, start: int, stop: int) -> NDArray[np.int64]:
        """Mask pixel under the centre of each pixel of a level along one axis."""
        step, size = (
            (self.steps_x[level], self.mask.shape[1]) if axis == "x" else (self.steps_y[level], self.mask.shape[0])
        )
        places = ((np.arange(start, stop) + 0.5) * step).astype(np.int64)
        return np.minimum(places, size)

    def write(self, shard: Shard) -> list[Written]:
        """Task: write one shard."""
        size, side = self.sizes[shard.level], LAYOUT.chunk
        across = LAYOUT.shard // side
        encoded: list[bytes | None] = [None] * across**2
        constant: dict[Any, bytes] = {}
        top, left = shard.row * LAYOUT.shard, shard.col * LAYOUT.shard
        for y in range(top, min(top + LAYOUT.shard, size.y), side):
            rows = self.under(shard.level, "y", y, min(y + side, size.y))
            for x in range(left, min(left + LAYOUT.shard, size.x), side):
                cols = self.under(shard.level, "x", x, min(x + side, size.x))
                window = self._padded[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
                encoded[(y - top) // side * across + (x - left) // side] = self._encode(window, rows, cols, constant)
        if self.layout.sharded:
            return [self.store.write(self.keys(shard)[0], *shards.assemble(encoded))]
        single = [chunk for chunk in encoded if chunk is not None]
        return [self.store.write(key, chunk) for key, chunk in zip(self.keys(shard), single, strict=True)]

    def _encode(self, window: Array, rows: Array, cols: Array, constant: dict[Any, bytes]) -> bytes | None:
        """One chunk, compressed; None where all is 0 and a shard's index can say so."""
        value = window[0, 0]
        key = (value, len(rows), len(cols)) if (window == value).all() else None
        if key is not None and value == 0 and self.layout.sharded:
            return None
        if key in constant:
            return constant[key]
        chunk = np.zeros((LAYOUT.chunk, LAYOUT.chunk), window.dtype)
        chunk[: len(rows), : len(cols)] = window[np.ix_(rows - rows[0], cols - cols[0])]
        data = shards.encode(self.layout, chunk[None])
        if key is not None:
            constant[key] = data
        return data


def write_label(
    store: Store,
    name: str,
    mask: Array,
    image: ngff.Multiscale,
    sizes: Sequence[Size],
    downsamples: Sequence[tuple[float, float]],
    about: dict[str, Any],
) -> None:
    """Write a mask as the label image ``labels/<name>`` of a slide; one of that name is replaced.

    Parameters
    ----------
    store
        Of the slide.
    mask
        bool or unsigned integers, (y, x).
    image
        The slide's metadata, for axes, scales and unit.
    sizes, downsamples
        Of the slide's levels; the downsamples along x and y are relative to the mask: mask pixels per level pixel.
    about
        What made it.

    Raises
    ------
    OptionError
        A name or a dtype that cannot be a label's.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) or name.endswith((".partial", ".replaced")):
        raise OptionError(f"label is named {name!r}", str(store), "Use letters, digits, dot, dash and underscore.")
    if mask.ndim != 2 or mask.dtype.kind not in "bu" or not mask.size:
        raise OptionError(f"label is {mask.dtype} {mask.shape}", str(store), "Give bool or unsigned integers, (y, x).")
    values = mask.astype(np.uint8) if mask.dtype == bool else np.ascontiguousarray(mask)
    draft = Draft(store.root / "labels" / name)
    with draft.held():
        layout = LAYOUT2 if image.version == "0.4" else LAYOUT
        steps_x, steps_y = zip(*downsamples, strict=True)
        job = LabelJob(draft.store, values, tuple(sizes), steps_x, steps_y, layout)
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        draft.begin({"mask": digest, "shape": values.shape, "about": about}, overwrite=True)
        for k, size in enumerate(sizes):
            shards.create(draft.store, str(k), (1, size.y, size.x), values.dtype.name, layout)
        written = _run(job)
        found = [int(v) for v in np.unique(values) if v]
        version = image.version
        standard = ngff.label_attributes(name, image, found, [str(k) for k in range(len(sizes))], about, version)
        ours = {"schema": ngff.SCHEMA, "status": "complete", "made": about}
        expected = {key for shard in job.shards() for key in job.keys(shard)}
        draft.commit(standard | {"ngfftile": ours}, expected, written, layout.zarr_format)
    store.list_labels([name], version)


def _run(job: LabelJob) -> list[Written]:
    tasks: dict[Hashable, Any] = {
        ("label", shard.level, shard.row, shard.col): (LabelJob.write, job, shard) for shard in job.shards()
    }
    tasks["done"] = (_collect, list(tasks))
    written: list[Written] = cluster.run(tasks, "done", done=lambda _: None)
    return written


def _collect(written: list[list[Written]]) -> list[Written]:
    """Task: all shards are written."""
    return [one for some in written for one in some]


def names(store: Store) -> tuple[str, ...]:
    """Labels that the store lists."""
    return store.labels()
