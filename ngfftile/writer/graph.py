"""The conversion as a dask graph: one task per shard, and one per rectangle of source tiles that shards share.

A level-0 task decodes its source tiles, compresses and writes its shard, and returns the 2x mean; a task above puts at
most four such quarters together and does the same. dask walks the tree depth first, so what waits is a few quarters per
level and worker, whatever the slide's size. Source tiles that lie across a shard border are decoded once, for all
shards that they touch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ngfftile import shards
from ngfftile.codecs import Jpeg
from ngfftile.errors import SourceError
from ngfftile.geometry import Region
from ngfftile.pyramid import Cell, PyramidPlan, Shard
from ngfftile.shards import LevelArray
from ngfftile.sources import Source
from ngfftile.sources.protocol import RawSource
from ngfftile.store import Store, Written
from ngfftile.writer.plan import ConversionPlan

Array = NDArray[Any]
DAMAGED, WARNED = "damaged", "warned"  # folders of the draft, beside its store


class Result(NamedTuple):
    """What a task hands on: the shrunken pixels (depth, y, x), if a parent wants them, and the objects written."""

    mean: Array | None
    written: list[Written]


@dataclass(frozen=True)
class Job:
    """All that a task needs to know; small, and picklable for a cluster.

    Parameters
    ----------
    source
        Of the pixels.
    what
        The plan.
    store
        Where the levels go.
    draft
        Where damaged tiles are recorded.
    """

    source: Source
    what: ConversionPlan
    store: Store
    draft: Store

    @property
    def pyramid(self) -> PyramidPlan:
        """Levels, chunks, shards."""
        return self.what.pyramid

    @property
    def keys(self) -> set[str]:
        """Names of all objects of pixels."""
        return {
            key for k in range(len(self.pyramid.levels)) for s in self.pyramid.shards(k) for key in self.what.keys(s)
        }

    def there(self, shard: Shard) -> bool:
        """Whether a shard is written already, by a worker that was lost before its mean was wanted, and can be read."""
        return self.what.readable(shard.level) and all(
            (self.store.root / key).exists() for key in self.what.keys(shard)
        )

    def where(self, key: Hashable) -> str:
        """What a task of `graph` works on, for people."""
        name = str(self.source.info.files[0])
        if not isinstance(key, tuple) or key[0] != "shard":
            return name
        _, level, plane, row, col = key
        place = self.pyramid.region(Shard(level, plane, row, col))
        return f"{name}, level {level}, x {place.x} y {place.y}, {place.width} x {place.height}"

    def create_arrays(self) -> list[Written]:
        """Write the levels' metadata."""
        return [
            one
            for k in range(len(self.pyramid.levels))
            for one in shards.create(self.store, str(k), self.pyramid.shape(k), self.pyramid.dtype, self.what.layout(k))
        ]

    def read(self, region: Region, plane: int, name: str, out: Array) -> list[Region]:
        """Pixels of level 0 from the source; returns the places of damaged tiles that were filled."""
        if self.what.options.damaged == "fail":
            self.source.read(region, plane, out)
            return []
        found: list[tuple[Region, str]] = []
        self.source.read(region, plane, out, lambda place, why: found.append((place, why)))
        if found or not self._stored(region, plane):
            self.record(DAMAGED, region, plane, name, found)
        return [place for place, _ in found]

    def record(self, kind: str, region: Region, plane: int, name: str, found: list[tuple[Region, str]]) -> None:
        """Keep what was found of a region on disk, where a run that goes on after a kill finds it; nothing: forget."""
        key = self.recorded(kind, region, plane, name)
        if found:
            tiles = [
                {"x": r.x, "y": r.y, "width": r.width, "height": r.height, "plane": plane, "why": why}
                for r, why in found
            ]
            self.draft.write_json(key, {"tiles": tiles})
        else:
            (self.draft.root / key).unlink(missing_ok=True)

    @staticmethod
    def recorded(kind: str, region: Region, plane: int, name: str) -> str:
        """Name of a region's record."""
        return f"{kind}/{plane}-{name}-{region.x}-{region.y}.json"

    def _stored(self, region: Region, plane: int) -> bool:
        """Whether a shard with pixels of a region is written, maybe with the background that a record tells of."""
        side = self.pyramid.shard
        rows = range(region.y // side, -(-region.bottom // side))
        cols = range(region.x // side, -(-region.right // side))
        touched = (Shard(0, plane, row, col) for row in rows for col in cols)
        return any(all(self.store.exists(key) for key in self.what.keys(shard)) for shard in touched)


_scratch = threading.local()


def _buffer(shape: tuple[int, ...], dtype: str) -> Array:
    """Pixels of this thread to work in: fresh memory would cost more in page faults than the arithmetic."""
    count = prod(shape) * np.dtype(dtype).itemsize
    held: Array | None = getattr(_scratch, "pixels", None)
    if held is None or held.nbytes < count:
        held = _scratch.pixels = np.empty(count, np.uint8)
    return held[:count].view(dtype).reshape(shape)


def read_cell(job: Job, plane: int, cell: Cell) -> tuple[Array, list[Region]]:
    """Task: decode source tiles that several shards share, (y, x, depth); and the damaged among them."""
    pixels = np.empty((cell.region.height, cell.region.width, job.pyramid.depth), job.pyramid.dtype)
    return pixels, job.read(cell.region, plane, "cell", pixels)


def write_base(job: Job, shard: Shard, shared: list[tuple[Array, list[Region]]]) -> Result:
    """Task: fill a level-0 shard from the source, write it, and shrink it."""
    if job.there(shard):
        return read_mean(job, shard)
    if job.what.scaled:
        return _keep(job, shard)
    region = job.pyramid.region(shard)
    damaged: list[Region] = []
    cells = job.pyramid.cells(shard)
    bands = _joined(job, shard, cells, shared, damaged) if shared else _read(job, shard, damaged)
    return _write(job, shard, bands, (lambda: _kept(job, shard, region, damaged)) if job.what.keeps else None)


def _read(job: Job, shard: Shard, damaged: list[Region]) -> Iterator[Array]:
    """A shard's pixels from the source, in rows of whole tiles and chunks: a few megabytes that stay in the cache."""
    region, depth = job.pyramid.region(shard), job.pyramid.depth
    rows = job.pyramid.band_rows(0)
    for y in range(region.y, region.bottom, rows):
        band = Region(region.x, y, region.width, rows).clip(region)
        pixels = _buffer((band.height, band.width, depth), job.pyramid.dtype)
        damaged += job.read(band, shard.plane, "shard", pixels)
        yield pixels.transpose(2, 0, 1)


def _joined(
    job: Job, shard: Shard, cells: list[Cell], shared: list[tuple[Array, list[Region]]], damaged: list[Region]
) -> Iterator[Array]:
    """A shard's pixels, partly from the source, partly from what it shares with its neighbours; all at once."""
    region = job.pyramid.region(shard)
    pixels = _buffer((region.height, region.width, job.pyramid.depth), job.pyramid.dtype)
    waiting = iter(shared)
    for cell in cells:
        wanted = cell.region.clip(region)
        target = pixels[wanted.inside(region)]
        if cell.shared:
            found, bad = next(waiting)
            target[...] = found[wanted.inside(cell.region)]
        else:
            bad = job.read(cell.region, shard.plane, "shard", target)
        damaged += bad
    yield pixels.transpose(2, 0, 1)


def _kept(job: Job, shard: Shard, region: Region, damaged: list[Region]) -> list[bytes | None]:
    """The chunks of a shard as the source has them; None for those that it lacks, or that are damaged."""
    side = job.pyramid.chunk
    source = cast(RawSource, job.source)
    seal: Callable[[bytes], bytes] = job.what.codec.seal  # type: ignore[attr-defined]
    chunks: list[bytes | None] = []
    for place in region.pieces(side):
        hit = any(place.clip(bad).width and place.clip(bad).height for bad in damaged)
        raw = None if hit else source.raw(shard.plane, place.y // side, place.x // side)
        chunks.append(None if raw is None else seal(raw))
    return chunks


def _keep(job: Job, shard: Shard, *, write: bool = True) -> Result:
    """Put the source's own tiles into a level-0 shard, and make its mean of their scaled decoding."""
    region, side, mean = job.pyramid.region(shard), job.pyramid.chunk, _mean_of(job, shard)
    codec = cast(Jpeg, job.what.codec)
    half = np.empty((job.pyramid.depth, side // 2, side // 2), np.uint8)
    chunks: list[bytes | None] = []
    for place in region.pieces(side):
        raw = _halved(job, shard.plane, place, place.clip(region), half, filled=not write)
        chunks.append(None if raw is None else codec.seal(raw))
        if mean is not None:
            y, x = (place.y - region.y) // 2, (place.x - region.x) // 2
            target = mean[:, y : y + side // 2, x : x + side // 2]
            target[...] = half[:, : target.shape[1], : target.shape[2]]
    if not write:
        return Result(mean, [])
    layout, keys = job.what.layout(shard.level), job.what.keys(shard)
    return Result(mean, shards.write_kept(job.store, keys, chunks, -(-region.width // side), layout))


def _halved(job: Job, plane: int, place: Region, wanted: Region, half: Array, *, filled: bool) -> bytes | None:
    """A source's tile as it is, None where it has none or a damaged one; fills ``half`` with its 2x mean.

    Parameters
    ----------
    place, wanted
        The tile, and what of it lies in the picture.
    filled
        Whether the shard is written, with background where damage is recorded.
    """
    source, codec = cast(RawSource, job.source), cast(Jpeg, job.what.codec)
    row, col = place.y // place.height, place.x // place.width
    if filled and job.draft.exists(job.recorded(DAMAGED, wanted, plane, "tile")):
        half[...] = job.pyramid.fill
        return None
    try:
        raw = source.raw(plane, row, col)
        if raw is None:
            half[...] = job.pyramid.fill
        else:
            codec.half(raw, half)
    except (SourceError, ValueError) as error:  # the slow way says what is wrong
        why = str(error)
    else:
        for kind in (DAMAGED, WARNED):
            job.record(kind, wanted, plane, "tile", [])
        return raw
    pixels = np.zeros((place.height, place.width, job.pyramid.depth), np.uint8)
    damaged = job.read(wanted, plane, "tile", pixels[: wanted.height, : wanted.width])
    shards.shrink(pixels.transpose(2, 0, 1), half, place.width)
    # Readers decode what remains: others that are as strict would refuse it.
    job.record(WARNED, wanted, plane, "tile", [] if damaged else [(wanted, why)])
    return None if damaged else source.raw(plane, row, col)


def write_mean(job: Job, shard: Shard, children: list[Result]) -> Result:
    """Task: put the shrunken children of a shard together, write them, and shrink them in turn."""
    if job.there(shard):
        return Result(read_mean(job, shard).mean, [one for child in children for one in child.written])
    mean, written = _write(job, shard, _assembled(job, shard, children))
    return Result(mean, [one for child in children for one in child.written] + written)


def _assembled(job: Job, shard: Shard, children: list[Result]) -> Iterator[Array]:
    """A shard's pixels from the means of its children, band by band."""
    region, side = job.pyramid.region(shard), job.pyramid.shard // 2
    rows = job.pyramid.band_rows(shard.level)
    for top in range(0, region.height, rows):
        height = min(rows, region.height - top)
        pixels = _buffer((job.pyramid.depth, height, region.width), job.pyramid.dtype)
        for child, (quarter, _) in zip(job.pyramid.children(shard), children, strict=True):
            assert quarter is not None
            y, x = (child.row - 2 * shard.row) * side - top, (child.col - 2 * shard.col) * side
            # The last odd row and column of the finer level have no partner, and no place here.
            target = pixels[:, max(0, y) : max(0, y + quarter.shape[1]), x : x + quarter.shape[2]]
            first = max(0, -y)
            target[...] = quarter[:, first : first + target.shape[1], : target.shape[2]]
        yield pixels


def read_mean(job: Job, shard: Shard) -> Result:
    """Task: the shrunken pixels of a shard that an earlier run wrote."""
    pyramid = job.pyramid
    mean = _mean_of(job, shard)
    if mean is None:
        return Result(None, [])
    if shard.level == 0 and job.what.scaled:
        return _keep(job, shard, write=False)
    array = LevelArray(job.store, str(shard.level), pyramid.axes, whole=True)
    rest, z = divmod(shard.plane, pyramid.z)
    t, c = divmod(rest, pyramid.channels // pyramid.depth)
    group = slice(c * pyramid.depth, (c + 1) * pyramid.depth)
    pixels = array.read(pyramid.region(shard), t, z, group)
    shards.shrink(pixels, mean, pyramid.chunk, job.what.method)
    return Result(mean, [])


def _mean_of(job: Job, shard: Shard) -> Array | None:
    if shard.level + 1 == len(job.pyramid.levels):
        return None
    region = job.pyramid.region(shard)
    shape = (job.pyramid.depth, max(1, region.height // 2), max(1, region.width // 2))
    return np.empty(shape, job.pyramid.dtype)


def _write(job: Job, shard: Shard, bands: Iterable[Array], kept: Callable[[], shards.Chunks] | None = None) -> Result:
    mean, region, layout = _mean_of(job, shard), job.pyramid.region(shard), job.what.layout(shard.level)
    shape, keys = (region.height, region.width), job.what.keys(shard)
    written = shards.write_bands(job.store, keys, bands, shape, layout, mean, job.what.method, kept)
    return Result(mean, written)


def _collect(*results: Result) -> list[Written]:
    """Task: all planes are written."""
    return [one for result in results for one in result.written]


def graph(job: Job, present: set[str]) -> dict[Hashable, Any]:
    """The conversion as a dask graph; its key ``done`` waits for all.

    Parameters
    ----------
    present
        Keys of the objects that an earlier run wrote: read back where a parent needs them, left out where none does.
    """
    pyramid = job.pyramid
    tasks: dict[Hashable, Any] = {}
    whole: dict[Shard, bool] = {}
    for level in range(len(pyramid.levels)):
        for shard in pyramid.shards(level):
            there = bool(present) and present.issuperset(job.what.keys(shard))
            whole[shard] = there and all(whole[c] for c in pyramid.children(shard))
    waiting = [shard for shard in pyramid.shards(len(pyramid.levels) - 1) if not whole[shard]]
    tasks["done"] = (_collect, *(key_of(shard) for shard in waiting))
    while waiting:
        shard = waiting.pop()
        if whole[shard] and job.what.readable(shard.level):
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
