"""The command line: verbs are functions, options are keywords. It composes the rooms and owns no logic.

Exit codes: 0 good; 1 the data are bad (a slide failed); 2 it could not run (a bad option, a missing file).
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import ngfftile as nt
from ngfftile import cluster
from ngfftile.cli.apart import silence
from ngfftile.cli.batch import Outcome, batch, err, out
from ngfftile.cli.facts import facts_of
from ngfftile.cli.names import STORE, inputs, targets
from ngfftile.errors import NgfftileError, OptionError, SourceError, StoreError
from ngfftile.locations import is_url, local_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Version(StrEnum):
    """Versions of OME-Zarr that can be written."""

    V05 = "0.5"
    V04 = "0.4"
    V06 = "0.6"


class Profile(StrEnum):
    """Options for a purpose."""

    WEB = "web"
    QUPATH = "qupath"
    ARCHIVE = "archive"


class Method(StrEnum):
    """How four pixels become one."""

    MEAN = "mean"
    NEAREST = "nearest"
    MODE = "mode"


class Damaged(StrEnum):
    """What becomes of tiles that do not decode."""

    FAIL = "fail"
    FILL = "fill"


class Edge(StrEnum):
    """What happens where the grid does not divide the slide."""

    KEEP = "keep"
    DROP = "drop"
    SHIFT = "shift"


Chunk = Annotated[int | None, typer.Option(help="Side of the compressed unit, pixels; by default 256.")]
Shard = Annotated[
    int | None, typer.Option(help="Side of the stored object, pixels; by default 4096; 0 stores chunks alone.")
]
Codec = Annotated[
    str | None,
    typer.Option(help="zstd[:LEVEL] or blosc, lossless; jpeg:QUALITY; source[:zstd] keeps the source's own tiles."),
]
MppOverride = Annotated[
    float | None, typer.Option(help="Micrometres per pixel of level 0, in place of what the file says.")
]
Ngff = Annotated[Version | None, typer.Option(help="Version of OME-Zarr to write; by default 0.5.")]
ProfileOption = Annotated[
    Profile | None,
    typer.Option("--profile", help="web: chunk 512. qupath: 0.4, chunk 1024, blosc, planar. archive: codec source."),
]
MethodOption = Annotated[
    Method | None, typer.Option("--method", help="How four pixels become one; by default mean, mode for labels.")
]
Planar = Annotated[bool, typer.Option("--planar", help="Chunks of one channel each.")]
NoAssociated = Annotated[bool, typer.Option("--no-associated", help="Leave label, macro and thumbnail out.")]
Deidentify = Annotated[
    bool,
    typer.Option(
        "--deidentify", "--no-label", help="Leave out label and macro, and properties that can name a person."
    ),
]
DamagedOption = Annotated[
    Damaged, typer.Option("--damaged", help="Tiles that do not decode: stop at the first, or make them background.")
]
Scene = Annotated[int | None, typer.Option(help="Of a file with several slides, only this one; 0 is the first.")]
Reader = Annotated[
    str | None, typer.Option(help="The only reader to try: tiff, openslide, dicom, czi, ..., or a plug-in's.")
]
Workers = Annotated[int | None, typer.Option(help="Tasks at one time; by default, and of threads at most, the cores.")]
Scheduler = Annotated[str, typer.Option(help="threads, processes, slurm, or a dask scheduler's tcp://host:port.")]
JobCount = Annotated[int | None, typer.Option("--jobs", help="SLURM jobs; by default 1. Lost ones are replaced.")]
Cores = Annotated[int | None, typer.Option(help="Cores of a SLURM job; by default dask-jobqueue's configuration.")]
Memory = Annotated[str | None, typer.Option(help="Memory of a SLURM job, such as 32GB.")]
Walltime = Annotated[str | None, typer.Option(help="Time limit of a SLURM job, such as 04:00:00.")]
Partition = Annotated[str | None, typer.Option(help="SLURM partition.")]
Sparse = Annotated[
    bool, typer.Option("--allow-sparse", help="The file may have above 1,000 pixels a byte: it is nearly empty.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(version("ngfftile"))
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Whole-slide images as OME-Zarr: convert, open lazily, find tissue, index tiles."""


@app.command()
def info(
    slide: Annotated[str, typer.Argument(help="A vendor's file, a DICOM folder, or an OME-Zarr store or its url.")],
    as_json: AsJson = False,
    reader: Reader = None,
    scene: Scene = None,
) -> None:
    """What a slide is: levels, resolution, vendor, associated images. Reads headers only."""
    facts = facts_of(slide, reader, scene)
    if as_json:
        _print_json(facts)
        return
    mpp = f"{facts['mpp_x']:.6g} x {facts['mpp_y']:.6g} µm/px" if facts["mpp_x"] else f"unknown: {facts['mpp_source']}"
    out.print(f"[bold]{escape(Path(slide).name)}[/]  {escape(facts['format'])}, {escape(str(facts['vendor']))}")
    stack = "".join(f" x {facts[axis]} {axis}" for axis in "zt" if facts[axis] > 1)
    out.print(f"  size        {facts['width']} x {facts['height']}{stack}, {facts['channels']} x {facts['dtype']}")
    if len(facts["channel_names"]) != 3 or facts["channel_names"][0] != "Red":
        out.print(f"  channels    {escape(', '.join(facts['channel_names']))}")
    if facts["scenes"]:
        out.print(f"  scene       {facts['scene']} of {len(facts['scenes'])}: {escape(', '.join(facts['scenes']))}")
    out.print(f"  mpp         {escape(mpp)}")
    out.print(f"  objective   {facts['objective_power'] or 'unknown'}")
    out.print(f"  acquired    {escape(facts['acquired'] or 'unknown')}")
    out.print(f"  profile     {facts['icc_bytes']} bytes" if facts["icc_bytes"] else "  profile     none")
    out.print(f"  associated  {', '.join(facts['associated']) or 'none'}; read by {facts['reader']}")
    for level in facts["levels"]:
        at = f"  {level['mpp_x']:.4g} µm/px" if level["mpp_x"] else ""
        size = f"{level['width']} x {level['height']}"
        out.print(f"  level {level['level']:<5} {size:<16} / {level['downsample']:<8.6g}{at}")
    for note in facts["notes"]:
        out.print(f"  [yellow]note[/]        {escape(note)}")


@app.command()
def plan(
    source: Annotated[str, typer.Argument(help="A slide file, a DICOM folder, or an OME-Zarr store.")],
    chunk: Chunk = None,
    shard: Shard = None,
    codec: Codec = None,
    ngff: Ngff = None,
    profile: ProfileOption = None,
    method: MethodOption = None,
    planar: Planar = False,
    mpp_override: MppOverride = None,
    no_associated: NoAssociated = False,
    deidentify: Deidentify = False,
    scene: Scene = None,
    allow_sparse: Sparse = False,
    workers: Workers = None,
    reader: Reader = None,
    as_json: AsJson = False,
) -> None:
    """What a conversion would write: levels, chunks, shards, objects, bytes, peak memory. Reads headers only."""
    made = nt.plan(
        source,
        chunk=chunk,
        shard=shard,
        codec=codec,
        ngff=ngff,
        profile=profile,
        method=method,
        planar=planar or None,
        mpp=mpp_override,
        associated=not no_associated,
        deidentify=deidentify,
        workers=workers,
        reader=reader,
        scene=scene,
        allow_sparse=allow_sparse,
    )
    if as_json:
        _print_json(made.to_dict())
    else:
        out.print(escape(str(made)))


@app.command()
def convert(
    sources: Annotated[
        list[str], typer.Argument(help="Slide files, folders of slides, globs, OME-Zarr stores.", metavar="SOURCE...")
    ],
    dest: Annotated[
        str, typer.Option("-o", "--output", metavar="DEST", help="With one source, a store (.zarr); else a folder.")
    ],
    chunk: Chunk = None,
    shard: Shard = None,
    codec: Codec = None,
    ngff: Ngff = None,
    profile: ProfileOption = None,
    method: MethodOption = None,
    planar: Planar = False,
    mpp_override: MppOverride = None,
    no_associated: NoAssociated = False,
    deidentify: Deidentify = False,
    damaged: DamagedOption = Damaged.FAIL,
    scene: Scene = None,
    allow_sparse: Sparse = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished store.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = "threads",
    jobs: JobCount = None,
    cores: Cores = None,
    memory: Memory = None,
    walltime: Walltime = None,
    partition: Partition = None,
    reader: Reader = None,
    log_file: Annotated[Path | None, typer.Option(help="Append what happened to each slide.")] = None,
) -> None:
    """Convert slides to OME-Zarr; by default 0.5, and lossless. An interrupted run goes on where it stopped."""
    found = inputs(sources, stores=False)
    places = targets(found, dest)
    options = {
        "chunk": chunk,
        "shard": shard,
        "codec": codec,
        "ngff": ngff,
        "profile": profile,
        "method": method,
        "planar": planar or None,
        "mpp": mpp_override,
        "associated": not no_associated,
        "deidentify": deidentify,
        "damaged": damaged,
        "overwrite": overwrite,
        "reader": reader,
        "allow_sparse": allow_sparse,
    }
    cluster.check(scheduler, workers)
    with _serving(scheduler, workers, jobs, cores, memory, walltime, partition) as served:
        one = partial(
            _convert, places, dest.rstrip("/").endswith(STORE), scene, options | {"scheduler": served}, workers
        )
        # A cluster's workers are apart already; the next slide fills them while the top of the last one is made.
        here = cluster.threads(workers) if scheduler == "threads" else None
        batch(found, one, "MP", log_file, workers=here, together=2 if here is None and len(found.names) > 1 else 1)


def _convert(
    places: dict[str, str],
    exact: bool,
    scene: int | None,
    options: dict[str, Any],
    workers: int | None,
    source: str,
    share: int | None,
    report: Callable[[int, int], None],
) -> Outcome:
    """Convert what is wanted of one file; ``share`` is the threads that it may use where others are at work too."""
    lines, failed, identifying, old = [], [], dict[str, None](), True
    for which, target in _scenes(source, places[source], scene, options, exact=exact):
        try:
            done = nt.convert(source, target, scene=which, workers=share or workers, progress=report, **options)
        except SourceError as error:  # the other scenes may be whole
            failed.append(error)
            continue
        identifying |= dict.fromkeys(done.identifying)
        old = old and not done.seconds
        lines += [str(done), *(f"  note {note}" for note in done.notes)]
    if failed:
        told = "; ".join([*lines, *(str(error) for error in failed)]) if lines else str(failed[0])
        return Outcome(told, SourceError.exit_code, tuple(identifying))
    return Outcome("\n".join(lines), 0, tuple(identifying), old=old)


def _serving(
    scheduler: str,
    workers: int | None,
    jobs: int | None,
    cores: int | None,
    memory: str | None,
    walltime: str | None,
    partition: str | None,
) -> AbstractContextManager[str]:
    """Start, once for all slides, what the scheduler needs."""
    given = any(option is not None for option in (jobs, cores, memory, walltime, partition))
    wanted = cluster.Jobs(1 if jobs is None else jobs, cores, memory, walltime, partition) if given else None
    cluster.silence()
    return cluster.serving(scheduler, workers, wanted, lambda text: err.print(escape(text)))


def _scenes(
    source: str, target: str, scene: int | None, options: dict[str, Any], *, exact: bool
) -> list[tuple[int | None, str]]:
    """The slides in a file that are wanted, and a store for each."""
    found = nt.open_source(source, options["reader"], allow_sparse=options["allow_sparse"]).info.scenes
    if not found or (scene is not None and exact):
        return [(scene, target)]
    stem = target.removesuffix(STORE).removesuffix(".ome")
    wanted = range(len(found)) if scene is None else [scene]
    return [(i, f"{stem}.scene-{i}.ome{STORE}") for i in wanted]


@app.command()
def verify(
    stores: Annotated[list[str], typer.Argument(help="OME-Zarr stores or urls, folders, globs.", metavar="STORE...")],
    source: Annotated[str | None, typer.Option(help="What the store was made from, to compare with.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare every pixel with the source, not 64 places.")] = False,
    subset: Annotated[str | None, typer.Option(help="A part of the work: 1/5 is the first of five.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = "threads",
    jobs: JobCount = None,
    cores: Cores = None,
    memory: Memory = None,
    walltime: Walltime = None,
    partition: Partition = None,
    reader: Reader = None,
    as_json: AsJson = False,
    log_file: Annotated[Path | None, typer.Option(help="Append what happened to each store.")] = None,
) -> None:
    """Check that stores are whole: structure, checksums, every chunk, each level against the finer one."""
    found = inputs(stores, stores=True)
    if source is not None and len(found.names) > 1:
        raise OptionError(f"{len(found.names)} stores but one source", source, "Verify one store with its source.")
    reports: list[dict[str, Any]] = []

    def one(store: str, _share: int | None, report: Callable[[int, int], None]) -> str:
        made = _verified(
            reports,
            store,
            source=source,
            full=full,
            subset=subset,
            reader=reader,
            scheduler=served,
            workers=workers,
            progress=report,
        )
        if not made.ok:
            raise StoreError(str(made).removeprefix(f"{made.url}: "), made.url)
        return str(made)

    try:
        with _serving(scheduler, workers, jobs, cores, memory, walltime, partition) as served:
            batch(found, one, "tasks", log_file, noun="stores", quiet=as_json)
    finally:
        if as_json:
            _print_json(reports[0] if len(found.names) == 1 and reports else reports)


def _verified(reports: list[dict[str, Any]], store: str, **options: Any) -> nt.Report:
    """Verify a store, and add what JSON tells of it."""
    try:
        found = nt.verify(store, **options)
    except NgfftileError as error:
        reports.append({"url": store, "ok": False, "error": str(error)})
        raise
    reports.append(found.to_dict())
    return found


@app.command()
def tile(
    stores: Annotated[list[str], typer.Argument(help="OME-Zarr stores or urls, folders, globs.", metavar="STORE...")],
    dest: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder of the tables.")],
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of the tiles.")] = None,
    level: Annotated[int | None, typer.Option(help="Stored level of the tiles, 0 the finest.")] = None,
    extent: Annotated[int, typer.Option(help="Side of a tile, pixels.")] = 256,
    stride: Annotated[int | None, typer.Option(help="Step between tiles, pixels; by default the extent.")] = None,
    edge: Annotated[Edge, typer.Option(help="Where the grid does not divide the slide.")] = Edge.KEEP,
    tissue: Annotated[
        str, typer.Option("--filter", help="otsu, std, none, or package.module:function.", metavar="FILTER")
    ] = "otsu",
    min_fraction: Annotated[float, typer.Option(help="Least part of a tile that must be tissue.")] = 0.5,
    no_label: Annotated[bool, typer.Option("--no-label", help="Do not store the mask as labels/tissue.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = "threads",
    jobs: JobCount = None,
    cores: Cores = None,
    memory: Memory = None,
    walltime: Walltime = None,
    partition: Partition = None,
    log_file: Annotated[Path | None, typer.Option(help="Append what happened to each slide.")] = None,
) -> None:
    """Find tissue, and write the tile index: DIR/slides, DIR/tiles (Parquet) and DIR/pictures (PNG)."""
    if mpp is None and level is None:
        raise OptionError("at which resolution is not said", mend="Give --mpp, such as 0.5, or --level.")
    directory = local_path(dest)
    sys.path.insert(0, str(Path.cwd()))  # a filter of one's own may lie where one works
    if tissue != "none":
        nt.filters.named(tissue)
    grid = nt.TileGrid(extent=extent, stride=stride, mpp=mpp, level=level, edge=edge.value)

    def one(store: str, _share: int | None, report: Callable[[int, int], None]) -> str:
        index = nt.tile(
            store,
            grid,
            tissue=tissue,
            min_fraction=min_fraction,
            label=None if no_label or is_url(store) else "tissue",
            scheduler=served,
            workers=workers,
            progress=report,
        )
        index.to_parquet(directory)
        row = index.slides.to_pylist()[0]
        # Stores of one name in different folders have pictures of their own.
        picture = (
            directory
            / "pictures"
            / f"{Path(store).name.removesuffix('.zarr').removesuffix('.ome')}-{row['id'][:8]}.png"
        )
        picture.parent.mkdir(exist_ok=True)
        index.picture().save(picture)
        return f"{Path(store).name}: kept {row['n_kept']:,} of {row['n_tiles']:,} tiles; {picture}"

    with _serving(scheduler, workers, jobs, cores, memory, walltime, partition) as served:
        batch(inputs(stores, stores=True), one, "tiles", log_file)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def main() -> None:
    """Run the command line; a user's mistake gets one line, not a traceback."""
    for name in ("SIGTERM", "SIGHUP"):  # a scheduler's stop, or a lost terminal, is as clean as Ctrl-C
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    silence()
    try:
        app()
    except NgfftileError as error:
        err.print(f"[red]error[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        err.print(f"[red]error[/] {escape(f'{place}{error.strerror or error}')}")
        sys.exit(2)
