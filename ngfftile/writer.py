"""Foreign slide in, OME-Zarr store out: plan it, then write it in one pass.

The work is a dask graph with one task per shard. A level-0 task decodes its source tiles, compresses and writes its
shard, and returns the 2x mean; a task above puts at most four such quarters together and does the same. dask walks the
tree depth first, so what waits is a few quarters per level and worker, whatever the slide's size. Source tiles that lie
across a shard border are decoded by tasks of their own, once, for all shards that they touch.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ngfftile import cluster, ngff, shards
from ngfftile.codecs import Codec
from ngfftile.errors import ExistsError, MissingError, SourceError, StoreError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import Channel
from ngfftile.pyramid import Cell, PyramidPlan, Shard
from ngfftile.shards import Layout, LevelArray
from ngfftile.sources import Source, SourceInfo, fingerprint, open_source
from ngfftile.store import ROOT, Draft, Store, local_path

Array = NDArray[Any]
Progress = Callable[[int, int], None]

# Measured by benchmarks/convert.py on stained slides, JPEG sources: zstd-3 stores 0.2 to 0.4 of the raw bytes.
LIKELY_RATIO = 0.4
_BASE_BYTES = 220 << 20  # the interpreter with zarr, dask and the codecs loaded

# A vendor's property whose name, or text, has one of these may hold a person, or lead to one.
_PERSONAL = ("patient", "barcode", "accession", "physician", "operator", "birth", "user", "institution")


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write; made from headers only, printed by ``print(plan)``.

    Parameters
    ----------
    source
        What the slide's headers say.
    pyramid
        Levels, chunks, shards.
    codec
        Compression.
    mpp, mpp_source
        Micrometres per pixel that the store will state, and where they come from.
    workers
        Tasks at one time, for the estimate of memory.
    """

    source: SourceInfo
    pyramid: PyramidPlan
    codec: Codec
    mpp: Mpp | None
    mpp_source: str
    associated: bool
    workers: int

    @property
    def objects(self) -> int:
        """Files or objects: shards, and metadata."""
        metadata = 2 + len(self.pyramid.levels) + bool(self.source.icc)
        sizes = list(self.source.associated.values()) if self.associated else []
        side = self.pyramid.shard
        around = sum(2 + -(-size.x // side) * -(-size.y // side) for size in sizes) + bool(sizes)
        return self.pyramid.objects + metadata + around

    @property
    def likely_bytes(self) -> int:
        """Bytes to expect for a stained slide; glass takes less, noise up to `PyramidPlan.raw_bytes`."""
        return int(self.pyramid.raw_bytes * LIKELY_RATIO)

    @property
    def peak_bytes(self) -> int:
        """Memory at the worst: what each worker holds, and what waits in the tree and along shard borders."""
        shard = self.pyramid.shard_bytes
        waiting = sum(3 * shard // 4 for size in self.pyramid.levels if max(size.x, size.y) > self.pyramid.shard)
        return _BASE_BYTES + self.workers * (5 * shard // 2 + waiting) + self.pyramid.seam_bytes

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        pyramid = self.pyramid
        return {
            "source": str(self.source.files[0]),
            "mpp_x": self.mpp.x if self.mpp else None,
            "mpp_y": self.mpp.y if self.mpp else None,
            "mpp_source": self.mpp_source,
            "dtype": pyramid.dtype,
            "channels": pyramid.channels,
            "chunk": pyramid.chunk,
            "shard": pyramid.shard,
            "codec": self.codec.name,
            "levels": [
                {
                    "level": k,
                    "width": size.x,
                    "height": size.y,
                    "shards": pyramid.grid(k).x * pyramid.grid(k).y * pyramid.planes,
                    "chunks": -(-size.x // pyramid.chunk) * -(-size.y // pyramid.chunk) * pyramid.planes,
                }
                for k, size in enumerate(pyramid.levels)
            ],
            "objects": self.objects,
            "raw_bytes": pyramid.raw_bytes,
            "likely_bytes": self.likely_bytes,
            "peak_memory_bytes": self.peak_bytes,
            "workers": self.workers,
            "notes": list(self.source.notes),
        }

    def __str__(self) -> str:
        facts = self.to_dict()
        mpp = f"{self.mpp} µm/px ({self.mpp_source})" if self.mpp else f"unknown: {self.mpp_source}"
        lines = [
            f"{self.source.files[0].name}: {self.source.format}, read by {self.source.reader}",
            f"  pixels       {self.pyramid.size}, {facts['channels']} x {facts['dtype']}",
            f"  mpp          {mpp}",
            f"  chunk, shard {facts['chunk']}, {facts['shard']}; {facts['codec']}",
            "  level      size             shards   chunks",
        ]
        for level in facts["levels"]:
            size = f"{level['width']} x {level['height']}"
            lines.append(f"  {level['level']:<10} {size:<16} {level['shards']:<8} {level['chunks']}")
        lines += [
            f"  objects      {facts['objects']}",
            f"  bytes        about {_bytes(self.likely_bytes)}, at most {_bytes(facts['raw_bytes'])}",
            f"  peak memory  {_bytes(self.peak_bytes)} with {self.workers} workers",
        ]
        return "\n".join(lines + [f"  note         {note}" for note in self.source.notes])


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Parameters
    ----------
    path
        The finished store.
    pixels
        Of level 0.
    bytes
        Of all objects.
    seconds
        It took, this run.
    written, found
        Shards that this run wrote, and that an interrupted one had left.
    """

    path: Path
    pixels: int
    bytes: int
    seconds: float
    written: int
    found: int

    def __str__(self) -> str:
        if not self.written:
            return f"{self.path.name}: up to date, nothing written"
        again = f", {self.found} shards of an earlier run kept" if self.found else ""
        return (
            f"{self.path.name}: {self.pixels / 1e6:,.1f} MP in {self.seconds:.1f} s "
            f"({self.pixels / 1e6 / self.seconds:.1f} MP/s), {_bytes(self.bytes)}{again}"
        )


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def plan(
    source: str | Path,
    *,
    chunk: int = 256,
    shard: int = 4096,
    codec: str = "zstd",
    mpp: float | None = None,
    associated: bool = True,
    workers: int | None = None,
    reader: str | None = None,
) -> ConversionPlan:
    """Read a slide's headers, and tell what `convert` with the same arguments will write.

    Parameters
    ----------
    source
        A slide file, or a folder of DICOM files.
    chunk, shard
        Sides of the compressed unit and of the stored object, in pixels; powers of two.
    codec
        ``zstd`` or ``zstd:LEVEL``; lossless.
    mpp
        Micrometres per pixel of level 0, in place of what the file says.
    associated
        Whether the label, macro and thumbnail come along.
    workers
        Tasks at one time; by default the cores there are.
    reader
        The only reader to try; by default the content decides.

    Raises
    ------
    MissingError, SourceError, OptionError
        Nothing there; no reader takes it; an argument that cannot be meant.

    Examples
    --------
    >>> from ngfftile import synthetic
    >>> print(plan(synthetic.write_svs("small.svs", 600, 400, seed=1)))  # doctest: +ELLIPSIS
    small.svs: Aperio SVS, read by tiff
      pixels       600 x 400, 3 x uint8
      mpp          0.25 µm/px (aperio.MPP)
    ...
    """
    return _plan(open_source(source, reader).info, chunk, shard, codec, mpp, associated, workers)


def _plan(
    info: SourceInfo, chunk: int, shard: int, codec: str, mpp: float | None, associated: bool, workers: int | None
) -> ConversionPlan:
    cluster.check("threads", workers)
    pyramid = PyramidPlan(
        info.size,
        len(info.channels),
        info.dtype,
        depth=3 if info.rgb else 1,
        fill=255 if info.rgb else 0,
        chunk=chunk,
        shard=shard,
        tile=info.tile,
    )
    at, said = (Mpp.of(mpp), "given by the user") if mpp is not None else (info.mpp, info.mpp_source)
    return ConversionPlan(info, pyramid, Codec.named(codec), at, said, associated, workers or cluster.default_workers())


def convert(
    source: str | Path,
    target: str | Path,
    *,
    chunk: int = 256,
    shard: int = 4096,
    codec: str = "zstd",
    mpp: float | None = None,
    associated: bool = True,
    overwrite: bool = False,
    scheduler: str = "threads",
    workers: int | None = None,
    reader: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a slide to an OME-Zarr 0.5 pyramid, lossless.

    The target appears when it is whole, and not before. Interrupted, the same call goes on where it stopped. A target
    finished from the same source with the same parameters is left as it is.

    Parameters
    ----------
    source, chunk, shard, codec, mpp, associated, workers, reader
        As for `plan`.
    target
        The store to write, such as ``slide.ome.zarr``.
    overwrite
        Replace a finished target, or drop another conversion's draft. The old store stays until the new one is whole.
    scheduler
        ``threads``, ``processes``, or the address of a dask scheduler (``tcp://host:port``).
    progress
        Called with the level-0 pixels done so far, and all of them; from any thread.

    Raises
    ------
    ExistsError
        The target exists, from another source or with other parameters.
    SourceError
        The slide is damaged; nothing is left of the target.
    MissingError, OptionError
        Nothing there; an argument that cannot be meant.

    Examples
    --------
    >>> from ngfftile import synthetic
    >>> done = convert(synthetic.write_svs("small.svs", 600, 400, seed=1), "small.ome.zarr")
    >>> done.pixels
    240000
    """
    begun = time.perf_counter()
    cluster.check(scheduler, workers)
    slide = open_source(source, reader)
    what = _plan(slide.info, chunk, shard, codec, mpp, associated, workers)
    place = local_path(target)
    identity = _identity(what)
    if not overwrite and _finished(place, identity):
        return Conversion(place, what.pyramid.size.x * what.pyramid.size.y, Store(place).size(), 0.0, 0, 0)
    draft = Draft(place)
    if overwrite and draft.folder.exists() and not _same_draft(draft, identity):
        draft.discard()
    draft.begin(identity)
    job = Job(slide, what.pyramid, what.codec, draft.store)
    try:
        _write_around(slide, what, draft.store)
        found = _run(job, scheduler, workers, progress)
        draft.commit(_attributes(what, identity, draft.store))
    except SourceError:
        draft.discard()
        raise
    written = what.pyramid.objects - found
    seconds = time.perf_counter() - begun
    return Conversion(place, what.pyramid.size.x * what.pyramid.size.y, Store(place).size(), seconds, written, found)


def _identity(what: ConversionPlan) -> dict[str, Any]:
    """What makes two conversions the same: source, parameters, version."""
    return {
        "fingerprint": fingerprint(what.source),
        "reader": what.source.reader,
        "size": [what.pyramid.size.x, what.pyramid.size.y],
        "chunk": what.pyramid.chunk,
        "shard": what.pyramid.shard,
        "codec": what.codec.name,
        "mpp": [what.mpp.x, what.mpp.y] if what.mpp else None,
        "associated": what.associated,
        "ngff": ngff.VERSION,
        "schema": ngff.SCHEMA,
    }


def _same_draft(draft: Draft, identity: dict[str, Any]) -> bool:
    try:
        draft.begin(identity)
    except ExistsError:
        return False
    return True


def _finished(place: Path, identity: dict[str, Any]) -> bool:
    """Whether the target is there, made by the same conversion; another one's is an error."""
    if not place.exists():
        if not place.parent.is_dir():
            raise MissingError("the folder to write into does not exist", str(place.parent), "Create it first.")
        return False
    try:
        made = Store(place).json(ROOT)["attributes"]["ngfftile"]["conversion"]
    except (MissingError, StoreError, KeyError, TypeError):
        made = None
    if made == identity:
        return True
    what = "exists, from another source or with other parameters" if made else "exists, and is not ours"
    raise ExistsError(what, str(place), "Use --overwrite (overwrite=True) to replace it, or another target.")


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
    tasks["done"] = (_collect, *(_key(shard) for shard in waiting))
    while waiting:
        shard = waiting.pop()
        if whole[shard]:
            tasks[_key(shard)] = (read_mean, job, shard)
        elif shard.level:
            children = pyramid.children(shard)
            tasks[_key(shard)] = (write_mean, job, shard, [_key(c) for c in children])
            waiting += children
        else:
            cells = [cell for cell in pyramid.cells(shard) if cell.shared]
            keys = [("cell", shard.plane, cell.row, cell.col) for cell in cells]
            tasks[_key(shard)] = (write_base, job, shard, keys)
            tasks |= {k: (read_cell, job, shard.plane, cell) for k, cell in zip(keys, cells, strict=True)}
    return tasks


def _key(shard: Shard) -> tuple[str, int, int, int, int]:
    return ("shard", shard.level, shard.plane, shard.row, shard.col)


def _run(job: Job, scheduler: str, workers: int | None, progress: Progress | None) -> int:
    """Write what is missing of the levels; returns how many shards were there."""
    job.create_arrays()
    every = {s.key for k in range(len(job.pyramid.levels)) for s in job.pyramid.shards(k)}
    present = every & set(job.store.keys())
    tasks = graph(job, present)
    total = job.pyramid.size.x * job.pyramid.size.y * job.pyramid.planes
    base = (s for s in job.pyramid.shards(0) if s.key in present and tasks.get(_key(s), (None,))[0] is not write_base)
    count = sum(_pixels(job.pyramid.region(s)) for s in base)
    lock = threading.Lock()

    def done(key: Hashable) -> None:
        nonlocal count
        task = tasks.get(key)
        if progress is None or task is None or task[0] is not write_base:
            return
        with lock:
            count += _pixels(job.pyramid.region(task[2]))
            progress(count // job.pyramid.planes, total // job.pyramid.planes)

    if progress is not None:
        progress(count // job.pyramid.planes, total // job.pyramid.planes)
    if len(tasks) > 1:
        cluster.run(tasks, "done", scheduler=scheduler, workers=workers, done=done)
    return len(present)


def _pixels(region: Region) -> int:
    return region.width * region.height


def _write_around(slide: Source, what: ConversionPlan, store: Store) -> None:
    """Associated images, ICC profile and OME-XML: all but the levels and the root."""
    info = what.source
    name = info.files[0].stem
    roles = list(info.associated) if what.associated else []
    if roles:
        store.create_group("associated", {"ngfftile": {"roles": roles}})
    for role in roles:
        pixels = slide.associated(role)
        layout = Layout(what.pyramid.chunk, what.pyramid.shard, 3, 255)
        height, width = pixels.shape[:2]
        shards.create(store, f"associated/{role}/0", (3, height, width), "uint8", layout, what.codec)
        for shard in PyramidPlan(Size(width, height), 3, "uint8", 3, 255, layout.chunk, layout.shard).shards(0):
            y, x = shard.row * layout.shard, shard.col * layout.shard
            part = pixels[y : y + layout.shard, x : x + layout.shard].transpose(2, 0, 1)
            shards.write_shard(store, f"associated/{role}/{shard.key}", part, layout, what.codec)
        ome = ngff.image_attributes(role, 1, None, ngff.RGB, "uint8", {"method": "none"})
        store.create_group(f"associated/{role}", {"ome": ome})
    if info.icc:
        store.write("associated/icc", info.icc)
    xml = ngff.ome_xml(
        name, info.size, info.channels, info.rgb, info.dtype, what.mpp, info.objective_power, info.acquired
    )
    store.write("OME/METADATA.ome.xml", xml)


def _windows(job_store: Store, pyramid: PyramidPlan, channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
    """Display windows of channels that are not RGB: from 0 (or the least value) to the brightest thousandth."""
    coarse = next(k for k, size in enumerate(pyramid.levels) if max(size.x, size.y) <= 2048)
    size = pyramid.levels[coarse]
    pixels = LevelArray(job_store, str(coarse), ("c", "y", "x"), whole=True).read(Region(0, 0, size.x, size.y))
    shown = []
    for channel, plane in zip(channels, pixels, strict=True):
        low = min(0.0, float(plane.min()))
        high = float(np.percentile(plane, 99.9))
        shown.append(Channel(channel.name, channel.color, (low, high if high > low else low + 1.0)))
    return tuple(shown)


def _attributes(what: ConversionPlan, identity: dict[str, Any], store: Store) -> dict[str, Any]:
    """Attributes of the root group: what the specification asks, and where the slide comes from."""
    info, pyramid = what.source, what.pyramid
    release = version("ngfftile")
    kept = {k: v for k, v in info.properties.items() if not _personal(k) and not _personal(v)}
    method = {"method": "mean", "version": release, "description": "2x mean of the level before, rounded half up"}
    channels = info.channels if info.rgb else _windows(store, pyramid, info.channels)
    ours = {
        "schema": ngff.SCHEMA,
        "status": "complete",
        "version": release,
        "source": {
            "name": info.files[0].name,
            "bytes": sum(f.stat().st_size for f in info.files),
            "fingerprint": identity["fingerprint"],
            "format": info.format,
            "vendor": info.vendor,
            "reader": info.reader,
            "levels": [[s.x, s.y] for s in info.levels],
        },
        "mpp_source": what.mpp_source,
        "objective_power": info.objective_power,
        "acquired": info.acquired,
        "properties": kept,
        "properties_dropped": sorted(set(info.properties) - set(kept)),
        "icc": {"path": "associated/icc", "sha256": hashlib.sha256(info.icc).hexdigest()} if info.icc else None,
        "associated": {
            role: {"path": f"associated/{role}", "width": size.x, "height": size.y}
            for role, size in (info.associated.items() if what.associated else ())
        },
        "pyramid": {"method": "mean", "levels": ["source"] + ["mean of the level before"] * (len(pyramid.levels) - 1)},
        "codec": what.codec.name,
        "notes": list(info.notes),
        "conversion": identity,
    }
    ome = ngff.image_attributes(info.files[0].stem, len(pyramid.levels), what.mpp, channels, info.dtype, method)
    return {"ome": ome, "ngfftile": ours}


def _personal(text: str) -> bool:
    return any(word in text.lower() for word in _PERSONAL)
