"""Foreign slide in, OME-Zarr store out: plan it, then write it in one pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ngfftile import cluster, ngff
from ngfftile.draft import Draft
from ngfftile.errors import ClusterError, ExistsError, MissingError, NgfftileError, OptionError, SourceError, StoreError
from ngfftile.geometry import Mpp, Region
from ngfftile.locations import local_path
from ngfftile.sources import Source, SourceInfo, fingerprint, open_source
from ngfftile.sources.protocol import check_states, states, watched
from ngfftile.store import LABELS, ROOTS, Store, Written
from ngfftile.writer.around import identifying, root_attributes, write_around
from ngfftile.writer.graph import DAMAGED, WARNED, Job, graph, key_of, write_base
from ngfftile.writer.plan import PROFILES, ConversionPlan, Options, counted, human_bytes, plan, plan_for

__all__ = ["PROFILES", "Conversion", "ConversionPlan", "Job", "convert", "graph", "plan"]

Progress = Callable[[int, int], None]
_MADE = ("filter", "options", "level", "mpp_x", "mpp_y")  # what a label of ours says of its making


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
        Objects of pixels that this run wrote, and that an interrupted one had left.
    damaged
        Tiles of the source that did not decode, and became background.
    places
        Where the first of them are.
    notes
        What a user should know of the slide, and of what was lost.
    identifying
        Names of the associated images and properties in the store that can name a person.
    """

    path: Path
    pixels: int
    bytes: int
    seconds: float
    written: int
    found: int
    damaged: int = 0
    identifying: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.seconds:
            return f"{self.path.name}: up to date, nothing written"
        megapixels = self.pixels / 1e6
        rate = "" if self.found else f" ({megapixels / self.seconds:.1f} MP/s)"
        again = f", {counted(self.found, 'object')} of an earlier run kept" if self.found else ""
        where = ", ".join(self.places) + (", ..." if self.damaged > len(self.places) else "")
        again += f"; {counted(self.damaged, 'damaged tile')} became background ({where})" if self.damaged else ""
        took = f"{megapixels:,.1f} MP in {self.seconds:.1f} s{rate}"
        return f"{self.path.name}: {took}, {human_bytes(self.bytes)}{again}"


def convert(
    source: str | Path,
    target: str | Path,
    *,
    chunk: int | None = None,
    shard: int | None = None,
    codec: str | None = None,
    ngff: str | None = None,
    profile: str | None = None,
    method: str | None = None,
    planar: bool | None = None,
    mpp: float | None = None,
    associated: bool = True,
    deidentify: bool = False,
    damaged: str = "fail",
    overwrite: bool = False,
    scheduler: str = "threads",
    workers: int | None = None,
    reader: str | None = None,
    scene: int | None = None,
    allow_sparse: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a slide to an OME-Zarr pyramid; by default version 0.5, and lossless.

    The target appears when it is whole, and not before. Interrupted, the same call goes on where it stopped. A target
    finished from the same source with the same parameters is left as it is.

    Parameters
    ----------
    source, chunk, shard, codec, ngff, profile, method, planar, mpp, associated, deidentify, damaged
        As for `plan`.
    workers, reader, scene, allow_sparse
        As for `plan`. A source of several scenes needs ``scene``: each becomes a store of its own.
    target
        The store to write, such as ``slide.ome.zarr``.
    overwrite
        Replace a finished target, or drop another conversion's draft. The old store stays until the new one is whole.
    scheduler
        ``threads``, ``processes``, ``slurm``, or the address of a dask scheduler (``tcp://host:port``).
    progress
        Called with the level-0 pixels done so far, and all of them; from any thread.

    Raises
    ------
    ExistsError
        The target exists, from another source or with other parameters.
    SourceError
        The slide is damaged, or changed while it was read; nothing is left of the target.
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
    chosen = {
        "chunk": chunk,
        "shard": shard,
        "codec": codec,
        "ngff": ngff,
        "method": method,
        "planar": planar,
        "mpp": mpp,
        "associated": associated,
        "deidentify": deidentify,
        "damaged": damaged,
    }
    options = Options.of(profile, chosen)
    place = local_path(target)
    place = place.resolve() if place.is_symlink() else place  # the store goes where the link leads
    draft = Draft(place)
    draft.recover()
    given = local_path(source)
    before = states([given, *(given.iterdir() if given.is_dir() else ())])
    slide = open_source(source, reader, scene, allow_sparse=allow_sparse)
    before = watched(slide, given, before)
    what = plan_for(slide.info, options, workers)
    if slide.info.scenes and scene is None:
        raise OptionError(
            f"holds {len(slide.info.scenes)} scenes ({', '.join(slide.info.scenes[:8])})",
            str(slide.info.files[0]),
            "Say which: scene=0. The command line writes a store for each.",
        )
    _check_apart(slide.info, place)
    run = _Run(slide, what, before, _identity(what), scheduler, workers, progress)
    pixels = what.pyramid.size.x * what.pyramid.size.y
    if _finished(place, run.identity, overwrite=overwrite):
        return Conversion(place, pixels, Store(place).size(), 0.0, 0, 0)
    with draft.held():
        if _finished(place, run.identity, overwrite=overwrite):  # another process was faster
            draft.discard()
            return Conversion(place, pixels, Store(place).size(), 0.0, 0, 0)
        draft.begin(run.identity, overwrite=overwrite)
        with _blamed(run, draft):
            written, found, damaged_tiles, notes = run.write(draft)
    seconds = time.perf_counter() - begun
    size = Store(place).size()
    places = tuple(f"x {tile['x']} y {tile['y']}" for tile in damaged_tiles[:3])
    people, bad = tuple(identifying(what)), len(damaged_tiles)
    return Conversion(place, pixels, size, seconds, written, found, bad, people, places, notes)


@contextmanager
def _blamed(run: _Run, draft: Draft) -> Iterator[None]:
    """Say of an error what is to blame, source or draft; the draft goes where the source is."""
    try:
        yield
    except (NgfftileError, OSError) as error:
        try:
            check_states(run.before)  # a file that is being replaced breaks in many ways
        except SourceError as changed:
            draft.discard()
            raise changed from error
        if isinstance(error, SourceError | OptionError):
            draft.discard()
        if isinstance(error, ClusterError):  # the log of a batch tells of many
            name = run.what.source.files[0].name
            raise ClusterError(f"{error.what} (at work on {name})", error.where, error.mend) from error
        if not isinstance(error, StoreError):
            raise
        where = Path(error.where)
        if where in run.before:
            raise SourceError(error.what, error.where, error.mend) from error
        raise StoreError(error.what, str(draft.folder), "Remove that folder, and convert again.") from error


@dataclass(frozen=True)
class _Run:
    """One conversion, from an open source into a draft."""

    slide: Source
    what: ConversionPlan
    before: Mapping[Path, tuple[int, ...]]
    identity: dict[str, Any]
    scheduler: str
    workers: int | None
    progress: Progress | None

    def write(self, draft: Draft) -> tuple[int, int, list[dict[str, Any]], tuple[str, ...]]:
        """Write all, and commit; returns objects written and found, damaged tiles, and notes."""
        what, format_ = self.what, ngff.zarr_format(self.what.options.ngff)
        # The target is often called after the source, and that after a case.
        name = f"slide-{self.identity['fingerprint'][:8]}" if what.options.deidentify else what.source.name
        written = write_around(self.slide, what, draft.store, name)
        self._write_labels(draft)
        job = Job(self.slide, what, draft.store, Store(draft.folder))
        new, found = self._levels(job, self.progress)
        damaged, notes = _records(draft.folder, DAMAGED), (*what.notes, *_warnings(draft.folder))
        attributes = root_attributes(what, self.identity, draft.store, damaged, name, getattr(self.slide, "labels", ()))
        attributes["ngfftile"]["notes"] = list(notes)
        check_states(self.before)
        draft.commit(attributes, job.keys, written + new, format_)
        return len(job.keys) - found, found, damaged, notes

    def _levels(self, job: Job, progress: Progress | None) -> tuple[list[Written], int]:
        """Write what is missing of the levels; returns what was written, and how many objects were there."""
        metadata = job.create_arrays()
        present = job.keys & set(job.store.keys())
        tasks = graph(job, present)
        count = _Count(job, tasks, present, progress)
        if len(tasks) == 1:
            return metadata, len(present)
        new = cluster.run(
            tasks, "done", scheduler=self.scheduler, workers=self.workers, done=count.done, where=job.where
        )
        return metadata + new, len(present)

    def _write_labels(self, draft: Draft) -> None:
        """Labels of a source that has some come along; each a pyramid of its own, never averaged."""
        options = self.what.options
        names = getattr(self.slide, "labels", ())
        for name in names:
            label = self.slide.label(name)  # type: ignore[attr-defined]
            codec = "blosc" if options.ngff == "0.4" else "zstd"
            # What lies under labels is one, whether it says so or not.
            method = "nearest" if options.method == "nearest" else "mode"
            plain = replace(options, codec=codec, method=method, mpp=None, planar=False)
            what = plan_for(label.info, plain, self.workers)
            store, aside = Store(draft.store.root / LABELS / name), Store(draft.folder / LABELS / name)
            for place in (store, aside):
                place.root.mkdir(parents=True, exist_ok=True)
            job = Job(label, what, store, aside)
            written, _ = self._levels(job, None)
            pyramid, facts = what.pyramid, label.info
            pixels = ngff.Pixels(
                pyramid.axes,
                len(pyramid.levels),
                _rescaled(facts, self.slide.info, self.what.mpp),
                facts.z_step,
                facts.t_step,
                centred=what.method != "nearest",
                plain=facts.plain,
                offset_x=facts.offset_x,
                offset_y=facts.offset_y,
            )
            made = facts.origin.get("made") or {}
            if options.deidentify:
                made = {key: made[key] for key in _MADE if key in made}
            multiscale = pixels.multiscale(name) | {"type": what.method, "metadata": made}
            block = ngff.label_block([], options.ngff) | dict(facts.origin.get("image-label", {}))
            try:
                attributes = ngff.attributes(multiscale, {"image-label": block}, options.ngff)
            except ValidationError as error:
                raise SourceError(
                    f"label {name}: its metadata break the specification ({error.errors()[0]['msg']})",
                    str(self.slide.info.files[0]),
                ) from error
            ours = {"schema": ngff.SCHEMA, "status": "complete", "made": made, "damaged": _records(aside.root, DAMAGED)}
            ours["pyramid"] = {"method": what.method}
            store.finish(attributes | {"ngfftile": ours}, written, ngff.zarr_format(options.ngff))
        if names:
            draft.store.list_labels(names, options.ngff)


class _Count:
    """Pixels of level 0 that are done, told as the tasks end."""

    def __init__(self, job: Job, tasks: dict[Hashable, Any], present: set[str], progress: Progress | None) -> None:
        pyramid = job.pyramid
        self._tasks, self._job, self._progress, self._lock = tasks, job, progress, threading.Lock()
        self._total = pyramid.size.x * pyramid.size.y * pyramid.planes
        self._pixels = sum(
            _pixels(pyramid.region(s))
            for s in pyramid.shards(0)
            if present.issuperset(job.what.keys(s)) and tasks.get(key_of(s), (None,))[0] is not write_base
        )
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            planes = self._job.pyramid.planes
            self._progress(self._pixels // planes, self._total // planes)

    def done(self, key: Hashable) -> None:
        task = self._tasks.get(key)
        if task is None or task[0] is not write_base:
            return
        with self._lock:
            self._pixels += _pixels(self._job.pyramid.region(task[2]))
            self._tell()


def _rescaled(label: SourceInfo, image: SourceInfo, mpp: Mpp | None) -> Mpp | None:
    """A label's mpp, where the image's is not the source's own: both keep their relation."""
    if mpp is None or mpp == image.mpp:
        return label.mpp
    ours, theirs = (label.mpp, image.mpp) if label.mpp and image.mpp else (label.plain, image.plain)
    return Mpp(mpp.x * ours.x / theirs.x, mpp.y * ours.y / theirs.y)


def _warnings(draft: Path) -> list[str]:
    """Of kept tiles whose streams only a lenient decoder takes, a line."""
    tiles = _records(draft, WARNED)
    where = "; ".join(f"x {tile['x']} y {tile['y']}: {tile['why']}" for tile in tiles[:3]) + "; ..." * (len(tiles) > 3)
    return [f"strict JPEG decoders refuse {counted(len(tiles), 'tile')}, kept as in the source ({where})"] * bool(tiles)


def _records(draft: Path, kind: str) -> list[dict[str, Any]]:
    """Tiles as the tasks recorded them, each once: those that became background, or that decoders warn of."""
    folder = draft / kind
    records = (
        [tile for path in sorted(folder.glob("*.json")) for tile in Store(folder).json(path.name)["tiles"]]
        if folder.is_dir()
        else []
    )
    unique = {(t["plane"], t["y"], t["x"]): t for t in records}
    return [unique[at] for at in sorted(unique)]


def _identity(what: ConversionPlan) -> dict[str, Any]:
    """What makes two conversions the same: source, parameters, version."""
    options = asdict(what.options)
    return {
        "fingerprint": fingerprint(what.source),
        "reader": what.source.reader,
        "scene": what.source.scene,
        "size": [what.pyramid.size.x, what.pyramid.size.y],
        **options,
        "chunk": what.pyramid.chunk,
        "shard": what.pyramid.shard,
        "method": what.method,
        "codec": what.codec_name,
        "mpp": [what.mpp.x, what.mpp.y] if what.mpp else None,
        "schema": ngff.SCHEMA,
    }


def _check_apart(info: SourceInfo, place: Path) -> None:
    """Refuse a target that holds the source, or lies in it: writing the one would destroy the other."""
    target = place.resolve()
    for file in (path.resolve() for path in info.files):
        if target in file.parents:
            raise OptionError(f"the target holds the source, {file.name}", str(place), "Give another target.")
        if file in target.parents:
            raise OptionError("the target lies in the source", str(place), "Give another target.")


def _finished(place: Path, identity: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether the target is there, made by the same conversion; another one's is an error."""
    if not place.parent.is_dir():
        raise MissingError("the folder to write into does not exist", str(place.parent), "Create it first.")
    if place.exists() and not place.is_dir():
        raise ExistsError("is a file, not a store", str(place), "Remove it, or give another target.")
    if not place.exists():
        return False
    if overwrite:
        if any(place.iterdir()) and not any((place / name).exists() for name in ROOTS):
            raise ExistsError("is a folder, and no store", str(place), "Remove it yourself, or give another target.")
        return False
    try:
        made = Store(place).attributes("")["ngfftile"]["conversion"]
    except (MissingError, StoreError, KeyError, TypeError):
        made = None
    if made == identity:
        return True
    raise ExistsError(
        f"exists, {_made_otherwise(made, identity)}",
        str(place),
        "Use --overwrite (overwrite=True) to replace it, or another target.",
    )


def _made_otherwise(made: Any, identity: dict[str, Any]) -> str:
    """How a finished store differs from what was asked for."""
    if not made or not isinstance(made, dict):
        return "and is not ours"
    if made.get("fingerprint") != identity["fingerprint"]:
        return "made from another source"
    other = [f"{name} {made.get(name)} (here {ours})" for name, ours in identity.items() if made.get(name) != ours]
    more = f", and {len(other) - 3} more" * (len(other) > 3)
    return f"made with {', '.join(other[:3])}{more}" if other else "made by another version"


def _pixels(region: Region) -> int:
    return region.width * region.height
