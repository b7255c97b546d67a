"""What the benchmarks share: figures and their table, fresh processes, and the machine's facts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import psutil

HERE = Path(__file__).parent
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes: the unit of ru_maxrss
LIBRARIES = ("ngfftile", "numpy", "zarr", "dask", "tifffile", "imagecodecs", "backports.zstd")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Parameters
    ----------
    name
        What was measured.
    value, unit
        The number; None where it could not be measured, with the reason in ``note``.
    goal
        The bound that it should keep, such as ``>= 0.9`` or ``< 800``; empty if there is none.
    note
        What a reader must know to read it right.
    """

    name: str
    value: float | None
    unit: str
    goal: str = ""
    note: str = ""

    @property
    def kept(self) -> bool | None:
        """Whether the goal is kept; None without a goal or a number."""
        if not self.goal or self.value is None:
            return None
        sign, bound = self.goal.split()
        return self.value >= float(bound) if sign == ">=" else self.value < float(bound)

    def cells(self) -> tuple[str, str, str, str]:
        """The row that a table shows."""
        value = "absent" if self.value is None else f"{self.value:.3g} {self.unit}".strip()
        verdict = {None: "", True: "kept", False: "MISSED"}[self.kept]
        return self.name, value, f"{self.goal} {verdict}".strip(), self.note


def show(figures: Iterable[Figure]) -> None:
    """Print figures as one table."""
    rows = [("what", "figure", "goal", "note"), *(figure.cells() for figure in figures)]
    table(rows)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def save(path: Path, figures: Iterable[Figure]) -> None:
    """Write the figures and the machine's facts as JSON."""
    path.write_text(json.dumps({"machine": facts(), "figures": [asdict(f) for f in figures]}, indent=1) + "\n")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, str]:
    """What a number measured here depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else 0.0
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores, {memory:.0f} GB",
        "load before": f"{load} (what others ran on it in the last minute; above 0 the figures are noisy)",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def fresh(script: str, *arguments: str | Path | int) -> dict[str, Any]:
    """Run a benchmark script in a new process; it prints one JSON object as its last line.

    Raises
    ------
    RuntimeError
        It failed; with the end of what it said.
    """
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took.

    Parameters
    ----------
    seconds
        Of wall time, start-up and all.
    cpu
        Seconds of processor time, of it and of the processes that it started.
    peak
        Most bytes of memory resident at one time, in all its processes together; what they share counts once where the
        system tells (Linux).
    """

    seconds: float
    cpu: float
    peak: int


class _Watch:
    """What a command and the processes that it started take, by looking often.

    The system's own account is exact, and lacks the processes that were not waited for, and the sum of several.
    """

    LOOKS, FAMILY = 0.02, 0.2  # seconds between looks at the processes, and for new ones

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.family = [self.root]
        self.busy: dict[psutil.Process, float] = {}
        self.peak = self._shared = 0
        self._next = 0.0

    def look(self) -> None:
        """Add up what they have now."""
        if time.perf_counter() > self._next:
            self._next = time.perf_counter() + self.FAMILY
            with suppress(psutil.Error):
                self.family = [self.root, *self.root.children(recursive=True)]
            self._shared = sum(map(_twice, self.family)) if len(self.family) > 1 else 0
        resident = -self._shared
        for process in self.family:
            with suppress(psutil.Error), process.oneshot():
                resident += process.memory_info().rss
                times = process.cpu_times()
                self.busy[process] = times.user + times.system
        self.peak = max(self.peak, resident)

    def end(self) -> None:
        """End all of them."""
        for process in self.family:
            with suppress(psutil.Error):
                process.kill()


def _twice(process: psutil.Process) -> int:
    """Bytes of a process's memory that others account for, too."""
    with suppress(psutil.Error):
        memory = process.memory_full_info()
        return int(memory.rss - getattr(memory, "pss", memory.rss))
    return 0


def command(
    words: Sequence[str | Path | int],
    *,
    workers: int | None = None,
    limit: float = 3600.0,
    env: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command, and tell what it took.

    Keep the calling process small: on Linux its memory counts as the command's own.

    Parameters
    ----------
    words
        The program and its arguments.
    workers
        How many cores it may use, where the system can hold it to them; by default all.
    limit
        Seconds after which it is ended.
    env
        Variables to set.

    Raises
    ------
    RuntimeError
        It failed, with the end of what it said; or it took too long.
    """
    with TemporaryFile() as said:
        begun = time.perf_counter()
        with _held_to(workers):
            running = subprocess.Popen(
                [*map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=os.environ | dict(env or {}),
            )
        watch = _Watch(running.pid)
        while not (ended := os.wait4(running.pid, os.WNOHANG))[0]:
            if time.perf_counter() - begun > limit:
                watch.end()
                running.wait()
                raise RuntimeError(f"ended after {limit:.0f} s")
            watch.look()
            time.sleep(watch.LOOKS)
        seconds, (_, status, usage) = time.perf_counter() - begun, ended
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            said.seek(0)
            end = said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, words))} failed ({running.returncode}):\n{end}")
    cpu = max(usage.ru_utime + usage.ru_stime, sum(watch.busy.values()))
    return Cost(seconds, cpu, max(watch.peak, usage.ru_maxrss * MAXRSS))


@contextmanager
def _held_to(count: int | None) -> Iterator[None]:
    """What is started meanwhile may use so many cores and no more, where the system can do that."""
    if count is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def alternate(contenders: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Run contenders one after the other, again and again, so that a busy spell of the machine meets all of them.

    Returns
    -------
    list of list of float
        For each contender its result in each round.
    """
    results = [[contender() for contender in contenders] for _ in range(rounds)]
    return [list(column) for column in zip(*results, strict=True)]


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(over: Sequence[float], under: Sequence[float]) -> str:
    """The least and the largest ratio, for the note."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"


@contextmanager
def workspace() -> Iterator[Path]:
    """Give a folder for slides and stores, removed at the end; TMPDIR says where."""
    with TemporaryDirectory(prefix="ngfftile-bench-") as folder:
        yield Path(folder)


def clear(target: Path) -> None:
    """Remove a store that an earlier round wrote."""
    shutil.rmtree(target, ignore_errors=True)


def synthetic(folder: Path, size: str) -> Path:
    """Write the slide that all benchmarks read; ``size`` as in 12000x9000."""
    from ngfftile.synthetic import write_svs

    width, height = map(int, size.lower().split("x"))
    return write_svs(folder / "slide.svs", width, height, seed=7)
