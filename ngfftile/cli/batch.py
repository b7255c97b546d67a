"""Many slides: a bad one never stops the rest, what would fail them all does, and a log says what happened to each."""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ngfftile import cluster
from ngfftile.cli.apart import Crash, Report, Work, apart
from ngfftile.cli.names import Inputs
from ngfftile.errors import ClusterError, NgfftileError, OptionError

out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
# Of a disk, not of a slide.
_OF_ALL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
_STOPS = {"SIGTERM", "SIGINT", "SIGHUP", "exit code 0"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a slide.

    Parameters
    ----------
    line
        For the user, and the log.
    code
        0; 1 where the slide is bad, 2 where it could not be tried.
    identifying
        What in the store can name a person.
    stops
        Whether the next slides would fail alike.
    old
        Whether there was nothing to do.
    """

    line: str
    code: int = 0
    identifying: tuple[str, ...] = ()
    stops: bool = False
    old: bool = False


def batch(
    found: Inputs,
    one: Work,
    unit: str,
    log_file: Path | None,
    *,
    noun: str = "slides",
    quiet: bool = False,
    workers: int | None = None,
    together: int = 1,
) -> None:
    """Do all slides. Exits 1 if any failed, 2 if something would have failed them all, 128 + n if signal n stopped it.

    Parameters
    ----------
    found
        What to work on.
    one
        Called with a name, the threads that it may use (None: its own choice), and what to report progress to.
        Returns its line, or an `Outcome`.
    unit, noun
        Of the progress, and of the names.
    log_file
        Gets a line for each slide.
    quiet
        Print only what could not run.
    workers
        Processes, or threads of a single slide; picklable calls only. None works in this process.
    together
        How many slides at a time in this process.
    """
    names = found.names
    for note in found.notes:
        err.print(f"[yellow]note[/] {escape(note)}")
    log = _Log(log_file)
    with _Bars(len(names), unit, noun) as bars:
        batch_ = _Batch(len(names) + len(found.refused), noun, bars, log, quiet=quiet)
        for name, error in found.refused.items():
            batch_.add(name, Outcome(str(error), error.exit_code))
        work = partial(attempt, one)
        if workers is None:
            results: Iterator[tuple[str, Any]] = _here(names, work, bars.say, together)
        else:
            results = apart(names, work, workers, bars.say)
        try:
            for name, result in results:
                outcome = _crashed(name, result) if isinstance(result, Crash) else result
                batch_.add(name, outcome)
                if outcome.stops:
                    results.close()  # type: ignore[attr-defined]  # both are generators
                    break
        except KeyboardInterrupt as stop:
            batch_.interrupted()
            raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from None
        summary = batch_.summary()
    if len(names) > 1 and not quiet:
        out.print(escape(summary))
    if batch_.code:
        raise typer.Exit(batch_.code)


class _Batch:
    """What became of the slides so far."""

    def __init__(self, count: int, noun: str, bars: _Bars, log: _Log, *, quiet: bool) -> None:
        self._count, self._noun, self._bars, self._log, self._quiet = count, noun, bars, log, quiet
        self._outcomes: dict[str, Outcome] = {}
        self._begun, self._told = time.monotonic(), False

    def add(self, name: str, outcome: Outcome) -> None:
        """Print, and log, what became of a slide."""
        if outcome.code and Path(name).name not in outcome.line:
            outcome = replace(outcome, line=f"{name}: {outcome.line}")
        self._outcomes[name] = outcome
        self._bars.end(name)
        if not self._quiet or outcome.code == 2:
            # A terminal has its bars on standard error: what goes another way is overwritten.
            console = err if outcome.code or (err.is_terminal and out.is_terminal) else out
            console.print(("[red]failed[/] " if outcome.code else "") + escape(outcome.line))
        if outcome.identifying and not self._told:
            self._told = True
            told = ", ".join(outcome.identifying[:6]) + (", ..." if len(outcome.identifying) > 6 else "")
            err.print(f"[yellow]note[/] kept what can name a person: {escape(told)}. To leave it out: --deidentify")
        self._log.write("failed" if outcome.code else "up to date" if outcome.old else "done", name, outcome.line)

    def interrupted(self) -> None:
        """Say that a signal ended it."""
        done = f" after {len(self._outcomes)} of {self._count} {self._noun}" if self._count > 1 else ""
        err.print(f"stopped{done}; the same command goes on from here")
        self._log.write("stopped", "", f"after {len(self._outcomes)} of {self._count} {self._noun}")

    @property
    def code(self) -> int:
        """Of one slide its own; of many 2 where something stopped the batch, 1 where slides failed."""
        failed = [outcome for outcome in self._outcomes.values() if outcome.code]
        if self._count == 1 or not failed:
            return failed[0].code if failed else 0
        return 2 if any(outcome.stops for outcome in failed) else 1

    def summary(self) -> str:
        """Count them."""
        failed = [name for name, outcome in self._outcomes.items() if outcome.code]
        old = sum(outcome.old for outcome in self._outcomes.values())
        left = self._count - len(self._outcomes)
        text = f"{len(self._outcomes) - len(failed)} of {self._count} {self._noun} done, {len(failed)} failed"
        text += f", {left} not tried" if left else ""
        text += f"; {old} were up to date" if old else ""
        seconds = time.monotonic() - self._begun
        text += f"; {seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"
        self._log.write("end", "", text)
        if failed and len(self._outcomes) > 10:
            text += "\nfailed: " + ", ".join(failed[:20]) + (f", and {len(failed) - 20} more" if failed[20:] else "")
        return text


class _Log:
    """A table of what happened: time, what became of it, slide, message; a line each, with tabs between."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        # What cannot be written shows now, not after the work.
        self._write("begin", "", f"ngfftile {version('ngfftile')}: {shlex.join(['ngfftile', *sys.argv[1:]])}")

    def write(self, what: str, name: str, line: str) -> None:
        """Add a line; a log that fails later stops nothing."""
        try:
            self._write(what, name, line)
        except OSError as error:
            err.print(f"[yellow]note[/] {self._path}: {error.strerror or error}. No more is logged.")
            self._path = None

    def _write(self, *cells: str) -> None:
        if self._path is None:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        row = (cell.replace("\t", " ").replace("\n", " | ") for cell in (now, *cells))
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write("\t".join(row) + "\n")
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise


def _here(
    names: list[str], work: Work, say: Callable[[str, int, int], None], together: int
) -> Iterator[tuple[str, Outcome]]:
    """Call ``work`` with each name in this process."""
    if together == 1:
        for name in names:
            yield name, work(name, None, partial(say, name))
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


def _crashed(name: str, crash: Crash) -> Outcome:
    if crash.how in _STOPS:
        return Outcome(f"{name}: the process that read it was stopped ({crash.how}). Run it again.", 2)
    if crash.how == "SIGKILL":
        why = "was killed, twice (SIGKILL): did memory run out? Run it again, with fewer --workers."
        return Outcome(f"{name}: the process that read it {why}", 2)
    why = f"ended over it, twice ({crash.how})"
    return Outcome(f"{name}: the process that read it {why}: a decoder failed. The slide is damaged, or hostile.", 1)


def attempt(one: Callable[..., str | Outcome], name: str, workers: int | None, report: Report) -> Outcome:
    """What becomes of a slide; an error is its reason."""
    try:
        done = one(name, workers, report)
    except NgfftileError as error:
        # An option that no slide can have, or a cluster that is lost.
        of_all = isinstance(error, OptionError) and Path(name).name not in error.where
        return Outcome(str(error), error.exit_code, stops=of_all or isinstance(error, ClusterError))
    except Exception as error:  # noqa: BLE001 (a filter's or a plug-in's own failure fails its slide, not the rest)
        if not isinstance(error, OSError):
            return Outcome(f"{name}: {type(error).__name__}: {error}", 1)
        # A full disk or a folder without leave to write: the system's own words, and what to do.
        said = f"{error.filename or name}: {error.strerror or error}. Mend it and run the same command again."
        return Outcome(said, 2, stops=error.errno in _OF_ALL)
    return done if isinstance(done, Outcome) else Outcome(done)


class _Rate(ProgressColumn):
    """What a second brings, in the batch's unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = (task.speed or 0) / (1e6 if unit == "MP" else 1)
        return Text(f"{speed:6.1f} {unit}/s" if task.speed else "")


class _Bars:
    """Progress on a terminal: a bar for each slide at work, and of many slides one for all."""

    def __init__(self, count: int, unit: str, noun: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), _Rate())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal)
        self._unit, self._tasks = unit, dict[str, TaskID]()
        self._all = self._bars.add_task(f"{count} {noun}", total=count, unit=noun) if count > 1 else None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, name: str, done: int, total: int) -> None:
        """Move a slide's bar."""
        if name not in self._tasks:
            # What an earlier run did is no speed of this one.
            self._tasks[name] = self._bars.add_task(
                escape(Path(name).name), total=total, completed=done, unit=self._unit
            )
        self._bars.update(self._tasks[name], completed=done, total=total)

    def end(self, name: str) -> None:
        """A slide is done."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        if self._all is not None:
            self._bars.advance(self._all)
