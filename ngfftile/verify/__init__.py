"""Proof that a store is whole: structure, bytes, pixels, and on demand the source."""

from __future__ import annotations

import random
import re
import time
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ngfftile import cluster
from ngfftile.errors import MissingError, NgfftileError, OptionError
from ngfftile.geometry import Region
from ngfftile.remote import store_at
from ngfftile.shards import LevelArray
from ngfftile.slide import Slide, open_store
from ngfftile.sources import SourceInfo, fingerprint, open_source
from ngfftile.store import LABELS, MANIFEST, ROOT, ROOTS, Readable, Store
from ngfftile.verify import objects, pixels
from ngfftile.verify.objects import format_of
from ngfftile.verify.report import Finding, Report, level_of

__all__ = ["Finding", "Report", "verify"]

_SAMPLES, _SIDE = 64, 512  # places at which a store is compared with its source, where not all of it is
Progress = Callable[[int, int], None]


def verify(
    url: str | Path,
    *,
    source: str | Path | None = None,
    full: bool = False,
    subset: str | None = None,
    reader: str | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check that a store is whole.

    Its metadata keep to the specification; every object is the one that was written (size and crc32c in the manifest
    that a conversion leaves); every chunk decodes; each level is the mean of the finer one, as it was rounded; and so
    for its labels. In stores of other writers there is no manifest: a chunk that is gone cannot be told from one that
    never was.

    Parameters
    ----------
    url
        The store: a path or url. What a url has beyond its manifests cannot be seen.
    source
        What it was made from: then facts and pixels are compared too, of slides above 16 megapixels at 64 places.
    full
        Compare every pixel with the source.
    subset
        ``1/5`` checks the first fifth of the objects and pixels, ``2/5`` the next; metadata always.
    reader
        As for `ngfftile.convert`, of the source.
    scheduler, workers
        Where the work runs, as for `ngfftile.convert`.
    progress
        Called with the tasks done, and all of them.

    Returns
    -------
    Report

    Raises
    ------
    MissingError, OptionError
        No store there; an argument that cannot be meant.

    Examples
    --------
    >>> verify("small.ome.zarr").ok
    True
    """
    begun = time.perf_counter()
    cluster.check(scheduler, workers)
    store = store_at(url)
    if isinstance(store, Store) and not store.root.is_dir():
        raise MissingError("no store there", str(store), "Check the path.")
    run = _Run(_Part.chosen(subset), scheduler, workers, progress)
    report = run.store(store)
    if source is not None:
        report = run.against(report, store, str(source), reader, full=full)
    return replace(report, seconds=time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of all things, the same in every run: the ``first`` of ``of``."""

    first: int
    of: int

    @classmethod
    def parse(cls, text: str) -> _Part | None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        part = cls(int(found[1]), int(found[2])) if found else None
        return part if part and 1 <= part.first <= part.of else None

    @classmethod
    def chosen(cls, text: str | None) -> _Part:
        part = cls(1, 1) if text is None else cls.parse(text)
        if part is None:
            raise OptionError(f"subset is {text!r}", mend="Use a part such as 1/5, which is the first of five.")
        return part

    def has(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self.of == self.first - 1


@dataclass(frozen=True)
class _Run:
    part: _Part
    scheduler: str
    workers: int | None
    progress: Progress | None

    def store(self, store: Readable, prefix: str = "") -> Report:
        """Check an image and its labels; ``prefix`` leads from the slide's root to it."""
        zarr_format = format_of(store)
        findings: list[Finding] = []
        notes: list[str] = []
        slide: Slide | None = None
        try:
            slide = open_store(store)
        except NgfftileError as error:
            findings.append(Finding("structure", "metadata", error.what))
        ours = slide is None or bool(slide.facts.get("manifest")) or store.exists(store.manifest(zarr_format))
        listed: dict[str, tuple[int, str]] = {}
        if ours:
            findings += objects.root_findings(store, zarr_format)
            try:
                listed = store.listed(zarr_format)
            except NgfftileError as error:
                findings.append(Finding("structure", store.manifest(zarr_format), error.what))
            notes += _unknown(store, listed)
        else:
            notes.append(
                "no manifest, since another program wrote it: chunks that are gone cannot be told from empty ones"
            )
        if slide is not None:
            findings += structure(slide)
            findings += _gone(slide)
        wanted = [key for key in listed if level_of(key) is None or self.part.has(key)]
        tasks: dict[Hashable, Any] = {
            ("objects", i): (objects.check, store, batch)
            for i, batch in enumerate(objects.batches(listed, wanted))
            if batch
        }
        blocks = []
        if slide is not None:
            pyramid = _pyramid(slide)
            blocks = [block for block in pyramid.blocks() if self.part.has(block.name)]
            tasks |= {("pixels", i): (pixels.check, pyramid, block) for i, block in enumerate(blocks)}
        findings = _merged(findings + self.run(tasks))
        report = Report(
            str(store),
            tuple(replace(f, place=prefix + f.place) for f in findings),
            tuple(notes),
            len(wanted),
            sum(listed[key][0] for key in wanted),
            sum(block.region.width * block.region.height for block in blocks),
        )
        return self._labels(report, store, zarr_format, ours=ours) if not prefix else report

    def _labels(self, report: Report, store: Readable, zarr_format: int, *, ours: bool) -> Report:
        findings = list(objects.label_list_findings(store, zarr_format, ours=ours))
        reports = []
        for name in store.labels() if not findings else store.folders(LABELS):
            try:
                reports.append(self.store(store.below(f"{LABELS}/{store.inside(name)}"), f"{LABELS}/{name}/"))
            except NgfftileError as error:
                findings.append(Finding("structure", f"{LABELS}/{name}", error.what))
        return replace(
            report,
            findings=(*report.findings, *findings, *(f for one in reports for f in one.findings)),
            notes=(*report.notes, *(note for one in reports for note in one.notes)),
            objects=report.objects + sum(one.objects for one in reports),
            bytes=report.bytes + sum(one.bytes for one in reports),
            pixels=report.pixels + sum(one.pixels for one in reports),
        )

    def run(self, tasks: dict[Hashable, Any]) -> list[Finding]:
        """Run tasks, each of which gives findings."""
        if not tasks:
            return []
        count, total = 0, len(tasks)

        def done(_: Hashable) -> None:
            nonlocal count
            count += 1
            if self.progress is not None:
                self.progress(min(count, total), total)

        every: dict[Hashable, Any] = tasks | {"done": (_collect, list(tasks))}
        found: list[Finding] = cluster.run(every, "done", scheduler=self.scheduler, workers=self.workers, done=done)
        return found

    def against(self, report: Report, store: Readable, source: str, reader: str | None, *, full: bool) -> Report:
        """Compare with the source as well."""
        try:
            slide = open_store(store)
        except NgfftileError:
            return report  # it has been said
        made = _conversion(slide)
        # The reader that converted it, but for a store that was converted from another one.
        used = made.get("reader") if made.get("reader") != "ngff" or (Path(source) / ROOT).exists() else None
        theirs = open_source(source, reader or used, made.get("scene"), allow_sparse=True)
        findings = list(_facts(slide, theirs.info))
        regions: list[tuple[int, Region]] = []
        if slide.size == theirs.info.size and len(slide.channels) == len(theirs.info.channels):
            found = pixels.Against(_arrays(slide)[0], theirs, exact=_exact(slide)[0])
            regions = [r for r in _regions(theirs.info, full=full) if self.part.has(repr(r))]
            tasks: dict[Hashable, Any] = {
                ("source", i): (pixels.Against.check, found, plane, region) for i, (plane, region) in enumerate(regions)
            }
            findings += self.run(tasks)
            findings += _associated(slide, theirs)
        compared = sum(r.width * r.height for _, r in regions)
        return replace(report, findings=(*report.findings, *findings), compared=compared)


def _collect(findings: list[list[Finding]]) -> list[Finding]:
    """Task: all are checked."""
    return [one for some in findings for one in some]


def _arrays(slide: Slide) -> tuple[LevelArray, ...]:
    whole = slide.facts.get("status") == "complete"
    return tuple(LevelArray(slide.store, d.path, slide.multiscale.axes, whole) for d in slide.multiscale.datasets)


def _pyramid(slide: Slide) -> pixels.Pyramid:
    about = slide.facts.get("pyramid") or {}
    method = about.get("method") if isinstance(about, dict) else None
    arrays = _arrays(slide)
    return pixels.Pyramid(arrays, str(method) if method else None, _exact(slide), 3 if slide.rgb else 1)


def _exact(slide: Slide) -> tuple[bool, ...]:
    """For each level whether its codec is without loss; level 0 of kept tiles is what the source has."""
    kept = str(_conversion(slide).get("codec", "")).startswith("source")
    return tuple(array.lossless or (kept and k == 0) for k, array in enumerate(_arrays(slide)))


def _gone(slide: Slide) -> list[Finding]:
    """Labels that came along with the conversion, and are not there any more."""
    came = slide.facts.get("labels")
    try:
        listed = set(slide.store.labels())
    except NgfftileError:
        return []  # a finding of the list
    names = sorted(set(came if isinstance(came, list) else ()) - listed)
    return [Finding("missing", f"{LABELS}/{name}", "came with the slide, and is gone") for name in names]


def _conversion(slide: Slide) -> dict[str, Any]:
    """What the store says of its conversion."""
    found = slide.facts.get("conversion")
    return found if isinstance(found, dict) else {}


def structure(slide: Slide) -> Iterator[Finding]:
    """The levels against each other and against the metadata, beyond what opening them proves."""
    arrays = _arrays(slide)
    first = arrays[0]
    for k, array in enumerate(arrays):
        if (array.dtype, array.channels, array.z, array.t) != (first.dtype, first.channels, first.z, first.t):
            yield Finding("structure", array.path, "differs from level 0 in dtype, channels, z or t", k)
        names = array.names
        if names is not None and names != slide.multiscale.axes:
            yield Finding("structure", array.path, f"dimension_names {names}, axes {slide.multiscale.axes}", k)
        if k and slide.facts.get("pyramid"):
            finer = arrays[k - 1].size
            if (array.size.x, array.size.y) != (max(1, finer.x // 2), max(1, finer.y // 2)):
                yield Finding("structure", array.path, f"is {array.size}, the level before {finer}", k)
    for k, level in enumerate(slide.levels):
        if slide.facts.get("pyramid") and (level.downsample, level.downsample_y) != (2.0**k, 2.0**k):
            yield Finding("structure", "metadata", f"downsample {level.downsample}, {2**k} is right", k)


def _unknown(store: Readable, listed: dict[str, tuple[int, str]]) -> list[str]:
    """Objects that the manifest does not know."""
    if not store.lists:
        return ["objects that no manifest names are not looked for, since a server does not list what it has"]
    known = (f"{LABELS}/", f"{MANIFEST}/")
    every = set(store.keys())
    found = [k for k in every if k not in listed and k not in ROOTS and not k.startswith(known)]
    return [f"{len(found)} objects are not of the conversion, {min(found)} first"] if found and listed else []


def _merged(findings: list[Finding]) -> list[Finding]:
    """Findings of bytes, with the chunks that decoding found in the same objects."""
    objects_ = {f.place: f for f in findings if f.kind in {"missing", "size", "checksum"}}
    merged = []
    for finding in findings:
        if finding.kind == "chunk" and finding.place in objects_:
            known = objects_[finding.place]
            objects_[finding.place] = replace(known, chunks=(*known.chunks, *finding.chunks))
        elif finding.place not in objects_:
            merged.append(finding)
    return [*objects_.values(), *merged]


def _facts(slide: Slide, info: SourceInfo) -> Iterator[Finding]:
    """What the headers say, against what the store says."""
    made = _conversion(slide)
    known = {made.get("fingerprint"), (slide.facts.get("source") or {}).get("fingerprint")} - {None}
    if known and fingerprint(info) not in known:
        yield Finding("source", "fingerprint", "is another file, or has changed since")
    pairs: list[tuple[str, Any, Any]] = [
        ("size", slide.size, info.size),
        ("channels", len(slide.channels), len(info.channels)),
        ("dtype", str(slide.dtype), info.dtype),
        ("icc", slide.icc, info.icc),
        ("objective_power", slide.objective_power, info.objective_power),
    ]
    if slide.facts.get("mpp_source") != "given by the user":
        pairs.append(("mpp", slide.mpp, info.mpp))
    for name, ours, theirs in pairs:
        if ours != theirs:
            shown = [f"{len(v)} bytes" if isinstance(v, bytes) else str(v) for v in (ours, theirs)]
            yield Finding("source", name, f"is {shown[0]}, the source says {shown[1]}")


def _associated(slide: Slide, source: Any) -> Iterator[Finding]:
    for role in slide.associated:
        if role in source.info.associated:
            try:
                worst = pixels.far(slide.associated[role], source.associated(role), exact=True)
            except NgfftileError as error:
                yield Finding("source", f"associated/{role}", error.what)
                continue
            if worst:
                yield Finding("source", f"associated/{role}", f"differs from the source's by {worst:g} grey levels")


def _regions(info: SourceInfo, *, full: bool) -> list[tuple[int, Region]]:
    """Planes and places to compare: all, or of a large slide 64, drawn with a seed that is its size."""
    whole = Region(0, 0, info.size.x, info.size.y)
    # Of a small slide the places would be more than there is.
    if full or info.size.x * info.size.y * info.planes <= _SAMPLES * _SIDE**2:
        step = 4096
        return [
            (plane, Region(x, y, step, step).clip(whole))
            for plane in range(info.planes)
            for y in range(0, info.size.y, step)
            for x in range(0, info.size.x, step)
        ]
    draw = random.Random(f"{info.size}")  # noqa: S311 (places to look at)
    places = (
        (
            draw.randrange(info.planes),
            Region(draw.randrange(info.size.x), draw.randrange(info.size.y), _SIDE, _SIDE).clip(whole),
        )
        for _ in range(_SAMPLES)
    )
    return list(dict.fromkeys(places))
