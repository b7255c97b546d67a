"""Many inputs: a bad one never stops the rest, and a summary says what happened to each."""

from __future__ import annotations

import glob
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ngfftile import cluster
from ngfftile.cli.apart import Crash, Report, Work, apart
from ngfftile.errors import ExistsError, MissingError, NgfftileError, OptionError
from ngfftile.locations import is_url, local_path

out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
STORE = ".zarr"
# What a folder is searched for. A file that is named is tried whatever its name.
_SLIDES = frozenset(
    [".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".qptiff", ".czi", ".svslide"]
)
# Beside slides they are thumbnails and labels, alone they are slides.
_PICTURES = frozenset([".png", ".jpg", ".jpeg", ".jp2", ".webp", ".bmp", ".gif"])


def is_store(path: str) -> bool:
    """Whether a folder looks like an OME-Zarr store; a url is taken for one."""
    if is_url(path):
        return True
    folder = Path(path)
    return folder.is_dir() and any((folder / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))


def inputs(given: list[str], *, stores: bool) -> list[str]:
    """Files, folders and globs as a list of slides; names that lead nowhere are kept, for the error they deserve."""
    found: list[str] = []
    for name in given:
        if is_url(name):
            found.append(name)
            continue
        pattern = any(c in name for c in "*?[") and not Path(name).exists()
        matches = sorted(glob.glob(name)) if pattern else [name]  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise MissingError("no file matches", name, "Check the pattern.")
        for match in matches:
            found += _folder(Path(match), stores=stores) if Path(match).is_dir() else [match]
    return list(dict.fromkeys(found))


def _folder(folder: Path, *, stores: bool) -> list[str]:
    if folder.suffix == STORE or is_store(str(folder)):
        return [str(folder)]
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if stores:
        found = [str(p) for p in inside if is_store(str(p))]
    else:
        dicom = any(p.suffix.lower() == ".dcm" for p in inside)
        # A folder beside an MRXS or VMS slide holds its data; folders are slides only where they hold DICOM.
        found = [str(folder)] if dicom else []
        found += [str(p) for p in inside if p.suffix.lower() in _SLIDES or (p.is_dir() and any(p.glob("*.dcm")))]
        # Stores beside slides are what earlier runs made of them; alone they are what is to be converted.
        found = found or [str(p) for p in inside if is_store(str(p))]
        found = found or [str(p) for p in inside if p.suffix.lower() in _PICTURES]
    if not found:
        raise MissingError(f"no {'stores' if stores else 'slides'} in this folder", str(folder), "Check the path.")
    return found


def targets(names: list[str], dest: str) -> dict[str, str]:
    """The store that each source becomes."""
    dest = str(local_path(dest))
    if dest.rstrip("/").endswith(STORE):
        if len(names) > 1:
            raise OptionError(f"{len(names)} sources but one store", dest, "Give a folder as the output.")
        return {names[0]: dest}
    Path(dest).mkdir(parents=True, exist_ok=True)
    found = {source: str(Path(dest) / f"{_stem(source)}.ome{STORE}") for source in names}
    twice = [name for name in found.values() if list(found.values()).count(name) > 1]
    if twice:
        raise ExistsError("two sources would become this store", twice[0], "Convert them into different folders.")
    return found


def _stem(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return path.name.removesuffix(STORE).removesuffix(".ome")
    return path.stem.removesuffix(".ome")


class _Rate(ProgressColumn):
    """What a second brings, in the batch's unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = (task.speed or 0) / (1e6 if unit == "MP" else 1)
        return Text(f"{speed:6.1f} {unit}/s" if task.speed else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a slide.

    Parameters
    ----------
    line
        For the user, and the log.
    code
        0, or the exit code that the failure has alone.
    identifying
        What in the store can name a person.
    """

    line: str
    code: int = 0
    identifying: tuple[str, ...] = ()


def batch(
    names: list[str],
    one: Work,
    unit: str,
    log_file: Path | None,
    *,
    quiet: bool = False,
    workers: int | None = None,
    together: int = 1,
) -> None:
    """Do all slides; a bad one never stops the rest. Exits 1 or 2 if any failed, 128 + n if signal n stopped it.

    Parameters
    ----------
    one
        Called with a name, the threads that it may use (None: its own choice), and what to report progress to.
        Returns its line, or an `Outcome`.
    unit
        Of the progress.
    log_file
        Gets a line for each slide.
    quiet
        Print only what could not run.
    workers
        Processes, or threads of a single slide; picklable calls only. None works in this process.
    together
        How many slides at a time in this process.
    """
    outcomes: list[Outcome] = []
    if log_file is not None:
        log_file.open("a", encoding="utf-8").close()  # what cannot be written shows now, not after the work
    with _Bars(len(names), unit) as bars:
        work = partial(attempt, one)
        if workers is None:
            results: Iterator[tuple[str, Any]] = _here(names, work, bars.say, together)
        else:
            results = apart(names, work, workers, bars.say)
        try:
            for name, result in results:
                bars.end(name)
                outcome = _crashed(name, result) if isinstance(result, Crash) else result
                outcomes.append(outcome)
                _tell(outcome, log_file, quiet=quiet)
        except KeyboardInterrupt as stop:
            done = f" after {len(outcomes)} of {len(names)} slides" if len(names) > 1 else ""
            err.print(f"stopped{done}; the same command goes on from here")
            raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from None
    identifying = list(dict.fromkeys(name for outcome in outcomes for name in outcome.identifying))
    if identifying:
        told = ", ".join(identifying[:6]) + (", ..." if len(identifying) > 6 else "")
        err.print(f"[yellow]note[/] kept what can name a person: {escape(told)}. To leave it out: --deidentify")
    failed = [outcome for outcome in outcomes if outcome.code]
    if len(names) > 1 and not quiet:
        out.print(f"{len(names) - len(failed)} of {len(names)} slides done, {len(failed)} failed")
    if failed:
        # One slide: its own code. Of many, those that are done are good: the data of the others are bad.
        raise typer.Exit(failed[0].code if len(names) == 1 else 1)


def _here(
    names: list[str], work: Work, say: Callable[[str, int, int], None], together: int
) -> Iterator[tuple[str, Outcome]]:
    """Call ``work`` with each name in this process."""
    if together == 1:
        yield from ((name, work(name, None, partial(say, name))) for name in names)
        return
    with ThreadPoolExecutor(together) as pool:
        futures = {pool.submit(work, name, None, partial(say, name)): name for name in names}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            cluster.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _tell(outcome: Outcome, log_file: Path | None, *, quiet: bool) -> None:
    """Print, and log, what became of a slide."""
    if not quiet or outcome.code == 2:
        (err if outcome.code else out).print(("[red]failed[/] " if outcome.code else "") + escape(outcome.line))
    if log_file is not None:
        with log_file.open("a", encoding="utf-8") as log:
            log.write(("failed " if outcome.code else "") + outcome.line + "\n")


def _crashed(name: str, crash: Crash) -> Outcome:
    why = "memory ran out, or it was killed" if crash.how == "SIGKILL" else "a decoder failed over it"
    return Outcome(f"{name}: the process that read it ended ({crash.how}): {why}. The slide is damaged, or hostile.", 1)


def attempt(one: Callable[..., str | Outcome], name: str, workers: int | None, report: Report) -> Outcome:
    """What becomes of a slide; an error is its reason."""
    try:
        done = one(name, workers, report)
    except NgfftileError as error:
        return Outcome(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 (a filter's or a plug-in's own failure fails its slide, not the rest)
        if not isinstance(error, OSError):
            return Outcome(f"{name}: {type(error).__name__}: {error}", 1)
        # A full disk or a folder without leave to write: the system's own words, and what to do.
        place = error.filename or name
        return Outcome(f"{place}: {error.strerror or error}. Mend it and run the same command again.", 1)
    return done if isinstance(done, Outcome) else Outcome(done)


class _Bars:
    """Progress on a terminal: a bar for each slide at work, and of many slides one for all."""

    def __init__(self, count: int, unit: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), _Rate())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal)
        self._unit, self._tasks = unit, dict[str, TaskID]()
        self._all = self._bars.add_task(f"{count} slides", total=count, unit="slides") if count > 1 else None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, name: str, done: int, total: int) -> None:
        """Move a slide's bar."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(escape(Path(name).name), total=total, unit=self._unit)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def end(self, name: str) -> None:
        """A slide is done."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        if self._all is not None:
            self._bars.advance(self._all)
