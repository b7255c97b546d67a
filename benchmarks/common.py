"""What the benchmarks share: figures and their table, fresh processes, and the machine's facts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = ("ngfftile", "numpy", "zarr", "dask", "tifffile", "imagecodecs", "numcodecs")


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
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]).rstrip())


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
