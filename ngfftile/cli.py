"""The command line: verbs are functions, options are keywords. It composes the rooms and owns no logic.

Exit codes: 0 good; 1 the data are bad (a slide failed); 2 it could not run (a bad option, a missing file).
"""

from __future__ import annotations

import glob
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import ngfftile as nt
from ngfftile.errors import ExistsError, MissingError, NgfftileError, OptionError
from ngfftile.locations import local_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out, _err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
_STORE = ".zarr"
# What a folder is searched for. A file that is named is tried whatever its name.
_SLIDES = frozenset(
    [".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".qptiff", ".czi", ".svslide"]
)


class Version(StrEnum):
    """Versions of OME-Zarr that can be written."""

    V05 = "0.5"


class Edge(StrEnum):
    """What happens where the grid does not divide the slide."""

    KEEP = "keep"
    DROP = "drop"
    SHIFT = "shift"


Chunk = Annotated[int, typer.Option(help="Side of the compressed unit, pixels.")]
Shard = Annotated[int, typer.Option(help="Side of the stored object, pixels.")]
Codec = Annotated[str, typer.Option(help="zstd or zstd:LEVEL; lossless.")]
MppOverride = Annotated[
    float | None, typer.Option(help="Micrometres per pixel of level 0, in place of what the file says.")
]
Ngff = Annotated[Version, typer.Option(help="Version of OME-Zarr to write.")]
NoAssociated = Annotated[bool, typer.Option("--no-associated", help="Leave label, macro and thumbnail out.")]
Reader = Annotated[str | None, typer.Option(help="The only reader to try: tiff, openslide, or a plug-in's.")]
Workers = Annotated[int | None, typer.Option(help="Tasks at one time; by default the cores there are.")]
Scheduler = Annotated[str, typer.Option(help="threads, processes, or a dask scheduler's tcp://host:port.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        _out.print(version("ngfftile"))
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Whole-slide images as OME-Zarr: convert, open lazily, find tissue, index tiles."""


@app.command()
def info(
    slide: Annotated[str, typer.Argument(help="A vendor's file, a DICOM folder, or an OME-Zarr store.")],
    as_json: AsJson = False,
    reader: Reader = None,
) -> None:
    """What a slide is: levels, resolution, vendor, associated images. Reads headers only."""
    facts = _facts(slide, reader)
    if as_json:
        _print_json(facts)
        return
    mpp = f"{facts['mpp_x']:.6g} x {facts['mpp_y']:.6g} µm/px" if facts["mpp_x"] else f"unknown: {facts['mpp_source']}"
    _out.print(f"[bold]{escape(Path(slide).name)}[/]  {escape(facts['format'])}, {escape(str(facts['vendor']))}")
    _out.print(f"  size        {facts['width']} x {facts['height']}, {facts['channels']} x {facts['dtype']}")
    _out.print(f"  mpp         {escape(mpp)}")
    _out.print(f"  objective   {facts['objective_power'] or 'unknown'}")
    _out.print(f"  associated  {', '.join(facts['associated']) or 'none'}")
    for level in facts["levels"]:
        at = f"  {level['mpp_x']:.4g} µm/px" if level["mpp_x"] else ""
        size = f"{level['width']} x {level['height']}"
        _out.print(f"  level {level['level']:<5} {size:<16} / {level['downsample']:<8.6g}{at}")
    for note in facts["notes"]:
        _out.print(f"  [yellow]note[/]        {escape(note)}")


def _facts(slide: str, reader: str | None) -> dict[str, Any]:
    return _store_facts(nt.open(slide)) if _is_store(slide) else _source_facts(nt.open_source(slide, reader).info)


def _source_facts(about: nt.SourceInfo) -> dict[str, Any]:
    rows = [(size.x, size.y, about.size.x / size.x, about.size.y / size.y) for size in about.levels]
    head = {"format": about.format, "vendor": about.vendor, "reader": about.reader}
    tail = {
        "associated": list(about.associated),
        "properties": dict(about.properties),
        "mpp_source": about.mpp_source,
        "notes": list(about.notes),
    }
    return head | _pixels(about.size, len(about.channels), about.dtype, about.mpp, about.objective_power, rows) | tail


def _store_facts(slide: nt.Slide) -> dict[str, Any]:
    rows = [(k.size.x, k.size.y, k.downsample, k.downsample_y) for k in slide.levels]
    head = {"format": "OME-Zarr", "vendor": slide.vendor, "reader": "ngfftile"}
    tail = {
        "associated": list(slide.associated),
        "properties": dict(slide.properties),
        "mpp_source": slide.facts.get("mpp_source", "the store's scale" if slide.mpp else "the store does not say"),
        "notes": list(slide.facts.get("notes", [])),
    }
    return (
        head | _pixels(slide.size, len(slide.channels), str(slide.dtype), slide.mpp, slide.objective_power, rows) | tail
    )


def _pixels(
    size: nt.Size,
    channels: int,
    dtype: str,
    mpp: nt.Mpp | None,
    power: float | None,
    rows: list[tuple[int, int, float, float]],
) -> dict[str, Any]:
    levels = [
        {
            "level": k,
            "width": width,
            "height": height,
            "downsample": down_x,
            "mpp_x": mpp.x * down_x if mpp else None,
            "mpp_y": mpp.y * down_y if mpp else None,
        }
        for k, (width, height, down_x, down_y) in enumerate(rows)
    ]
    return {
        "width": size.x,
        "height": size.y,
        "dtype": dtype,
        "channels": channels,
        "mpp_x": mpp.x if mpp else None,
        "mpp_y": mpp.y if mpp else None,
        "objective_power": power,
        "levels": levels,
    }


@app.command()
def plan(
    source: Annotated[str, typer.Argument(help="A slide file, or a DICOM folder.")],
    chunk: Chunk = 256,
    shard: Shard = 4096,
    codec: Codec = "zstd",
    ngff: Ngff = Version.V05,  # noqa: ARG001 (typer checks it; so far there is one)
    mpp_override: MppOverride = None,
    no_associated: NoAssociated = False,
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
        mpp=mpp_override,
        associated=not no_associated,
        workers=workers,
        reader=reader,
    )
    if as_json:
        _print_json(made.to_dict())
    else:
        _out.print(escape(str(made)))


@app.command()
def convert(
    sources: Annotated[list[str], typer.Argument(help="Slide files, folders of slides, globs.", metavar="SOURCE...")],
    dest: Annotated[
        str, typer.Option("-o", "--output", metavar="DEST", help="With one source, a store (.zarr); else a folder.")
    ],
    chunk: Chunk = 256,
    shard: Shard = 4096,
    codec: Codec = "zstd",
    ngff: Ngff = Version.V05,  # noqa: ARG001 (typer checks it; so far there is one)
    mpp_override: MppOverride = None,
    no_associated: NoAssociated = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished store.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = "threads",
    reader: Reader = None,
    log_file: Annotated[Path | None, typer.Option(help="Append what happened to each slide.")] = None,
) -> None:
    """Convert slides to OME-Zarr 0.5, lossless. An interrupted run goes on where it stopped."""
    inputs = _inputs(sources, stores=False)
    targets = _targets(inputs, dest)

    def one(source: str, report: Callable[[int, int], None]) -> str:
        done = nt.convert(
            source,
            targets[source],
            chunk=chunk,
            shard=shard,
            codec=codec,
            mpp=mpp_override,
            associated=not no_associated,
            overwrite=overwrite,
            scheduler=scheduler,
            workers=workers,
            reader=reader,
            progress=report,
        )
        return str(done)

    _batch(inputs, one, "MP", log_file)


@app.command()
def tile(
    stores: Annotated[list[str], typer.Argument(help="OME-Zarr stores, folders of them, globs.", metavar="STORE...")],
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
    log_file: Annotated[Path | None, typer.Option(help="Append what happened to each slide.")] = None,
) -> None:
    """Find tissue, and write the tile index: DIR/slides, DIR/tiles (Parquet) and DIR/pictures (PNG)."""
    directory = local_path(dest)
    sys.path.insert(0, str(Path.cwd()))  # a filter of one's own may lie where one works
    if tissue != "none":
        nt.filters.named(tissue)
    grid = nt.TileGrid(extent=extent, stride=stride, mpp=mpp, level=level, edge=edge.value)

    def one(store: str, report: Callable[[int, int], None]) -> str:
        index = nt.tile(
            store,
            grid,
            tissue=tissue,
            min_fraction=min_fraction,
            label=None if no_label else "tissue",
            scheduler=scheduler,
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

    _batch(_inputs(stores, stores=True), one, "tiles", log_file)


def _is_store(path: str) -> bool:
    folder = Path(path)
    return folder.is_dir() and any((folder / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))


def _inputs(given: list[str], *, stores: bool) -> list[str]:
    """Files, folders and globs as a list of slides; names that lead nowhere are kept, for the error they deserve."""
    found: list[str] = []
    for name in given:
        pattern = any(c in name for c in "*?[") and not Path(name).exists()
        matches = sorted(glob.glob(name)) if pattern else [name]  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise MissingError("no file matches", name, "Check the pattern.")
        for match in matches:
            found += _folder(Path(match), stores=stores) if Path(match).is_dir() else [match]
    return list(dict.fromkeys(found))


def _folder(folder: Path, *, stores: bool) -> list[str]:
    if folder.suffix == _STORE or _is_store(str(folder)):
        return [str(folder)]
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if stores:
        found = [str(p) for p in inside if _is_store(str(p))]
    else:
        dicom = any(p.suffix.lower() == ".dcm" for p in inside)
        # A folder beside an MRXS or VMS slide holds its data; folders are slides only where they hold DICOM.
        found = [str(folder)] if dicom else []
        found += [str(p) for p in inside if p.suffix.lower() in _SLIDES or (p.is_dir() and any(p.glob("*.dcm")))]
    if not found:
        raise MissingError(f"no {'stores' if stores else 'slides'} in this folder", str(folder), "Check the path.")
    return found


def _targets(inputs: list[str], dest: str) -> dict[str, str]:
    dest = str(local_path(dest))
    if dest.rstrip("/").endswith(_STORE):
        if len(inputs) > 1:
            raise OptionError(f"{len(inputs)} sources but one store", dest, "Give a folder as the output.")
        return {inputs[0]: dest}
    Path(dest).mkdir(parents=True, exist_ok=True)
    targets = {source: str(Path(dest) / f"{_stem(source)}.ome{_STORE}") for source in inputs}
    twice = [name for name in targets.values() if list(targets.values()).count(name) > 1]
    if twice:
        raise ExistsError("two sources would become this store", twice[0], "Convert them into different folders.")
    return targets


def _stem(source: str) -> str:
    path = Path(source)
    return path.name if path.is_dir() else path.stem.removesuffix(".ome")


class _Rate(ProgressColumn):
    """What a second brings, in the batch's unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = (task.speed or 0) / (1e6 if unit == "MP" else 1)
        return Text(f"{speed:6.1f} {unit}/s" if task.speed else "")


@dataclass(frozen=True, slots=True)
class _Outcome:
    line: str
    code: int


def _batch(
    inputs: list[str], one: Callable[[str, Callable[[int, int], None]], str], unit: str, log_file: Path | None
) -> None:
    """Do one slide after the other; a bad one never stops the rest. Exits 1 or 2 if any failed."""
    outcomes = []
    if log_file is not None:
        log_file.open("a", encoding="utf-8").close()  # what cannot be written shows now, not after the work
    for name in inputs:
        with _progress(Path(name).name, unit) as report:
            outcome = _attempt(name, one, report)
        outcomes.append(outcome)
        (_err if outcome.code else _out).print(("[red]failed[/] " if outcome.code else "") + escape(outcome.line))
        if log_file is not None:
            with log_file.open("a", encoding="utf-8") as log:
                log.write(("failed " if outcome.code else "") + outcome.line + "\n")
    failed = [outcome for outcome in outcomes if outcome.code]
    if len(inputs) > 1:
        _out.print(f"{len(inputs) - len(failed)} of {len(inputs)} slides done, {len(failed)} failed")
    if failed:
        # One slide: its own code. Of many, those that are done are good: the data of the others are bad.
        raise typer.Exit(failed[0].code if len(inputs) == 1 else 1)


def _attempt(
    name: str, one: Callable[[str, Callable[[int, int], None]], str], report: Callable[[int, int], None]
) -> _Outcome:
    try:
        return _Outcome(one(name, report), 0)
    except NgfftileError as error:
        return _Outcome(str(error), error.exit_code)
    except KeyboardInterrupt:
        _err.print(f"stopped at {escape(name)}; the same command goes on from here")
        raise typer.Exit(130) from None
    except Exception as error:  # noqa: BLE001 (a filter's or a plug-in's own failure fails its slide, not the rest)
        if not isinstance(error, OSError):
            return _Outcome(f"{name}: {type(error).__name__}: {error}", 1)
        # A full disk or a folder without leave to write: the system's own words, and what to do.
        place = error.filename or name
        return _Outcome(f"{place}: {error.strerror or error}. Mend it and run the same command again.", 1)


@contextmanager
def _progress(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    if not _err.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=_err, transient=True) as bar:
        task = bar.add_task(escape(name), total=None, unit=unit)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Run the command line; a user's mistake gets one line, not a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is as clean as Ctrl-C
    for name in ("tifffile", "asyncio"):  # our own errors say what they would
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        app()
    except NgfftileError as error:
        _err.print(f"[red]error[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        _err.print(f"[red]error[/] {escape(f'{error.filename}: {error.strerror or error}')}")
        sys.exit(2)
