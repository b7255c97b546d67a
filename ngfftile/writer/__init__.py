"""Foreign slide in, OME-Zarr store out: plan it, then write it in one pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngfftile import cluster, ngff
from ngfftile.errors import ExistsError, MissingError, SourceError, StoreError
from ngfftile.geometry import Region
from ngfftile.locations import local_path
from ngfftile.sources import fingerprint, open_source
from ngfftile.store import ROOT, Draft, Store
from ngfftile.writer.around import root_attributes, write_around
from ngfftile.writer.graph import Job, graph, key_of, write_base
from ngfftile.writer.plan import ConversionPlan, human_bytes, plan, plan_for

__all__ = ["Conversion", "ConversionPlan", "Job", "convert", "graph", "plan"]

Progress = Callable[[int, int], None]


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
        if not self.seconds:
            return f"{self.path.name}: up to date, nothing written"
        again = f", {self.found} shards of an earlier run kept" if self.found else ""
        return (
            f"{self.path.name}: {self.pixels / 1e6:,.1f} MP in {self.seconds:.1f} s "
            f"({self.pixels / 1e6 / self.seconds:.1f} MP/s), {human_bytes(self.bytes)}{again}"
        )


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
    what = plan_for(slide.info, chunk, shard, codec, mpp, associated, workers)
    place = local_path(target)
    place = place.resolve() if place.is_symlink() else place  # the store goes where the link leads
    identity = _identity(what)
    pixels = what.pyramid.size.x * what.pyramid.size.y
    if _finished(place, identity, overwrite=overwrite):
        return Conversion(place, pixels, Store(place).size(), 0.0, 0, 0)
    draft = Draft(place)
    with draft.held():
        if _finished(place, identity, overwrite=overwrite):  # another process was faster
            draft.discard()
            return Conversion(place, pixels, Store(place).size(), 0.0, 0, 0)
        draft.begin(identity, overwrite=overwrite)
        try:
            write_around(slide, what, draft.store)
            job = Job(slide, what.pyramid, what.codec, draft.store)
            found = _run(job, scheduler, workers, progress)
            draft.commit(root_attributes(what, identity, draft.store), job.keys)
        except SourceError:
            draft.discard()
            raise
        except StoreError as error:
            raise StoreError(error.what, str(draft.folder), "Remove that folder, and convert again.") from error
    written = what.pyramid.objects - found
    seconds = time.perf_counter() - begun
    return Conversion(place, pixels, Store(place).size(), seconds, written, found)


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


def _finished(place: Path, identity: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether the target is there, made by the same conversion; another one's is an error."""
    if not place.parent.is_dir():
        raise MissingError("the folder to write into does not exist", str(place.parent), "Create it first.")
    if place.exists() and not place.is_dir():
        raise ExistsError("is a file, not a store", str(place), "Remove it, or give another target.")
    if overwrite or not place.exists():
        return False
    try:
        made = Store(place).json(ROOT)["attributes"]["ngfftile"]["conversion"]
    except (MissingError, StoreError, KeyError, TypeError):
        made = None
    if made == identity:
        return True
    what = "exists, from another source or with other parameters" if made else "exists, and is not ours"
    raise ExistsError(what, str(place), "Use --overwrite (overwrite=True) to replace it, or another target.")


def _run(job: Job, scheduler: str, workers: int | None, progress: Progress | None) -> int:
    """Write what is missing of the levels; returns how many shards were there."""
    job.create_arrays()
    present = job.keys & set(job.store.keys())
    tasks = graph(job, present)
    total = job.pyramid.size.x * job.pyramid.size.y * job.pyramid.planes
    base = (s for s in job.pyramid.shards(0) if s.key in present and tasks.get(key_of(s), (None,))[0] is not write_base)
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
