"""`ngfftile.convert` against a bare roofline and against peers, on the same slide in the same run.

Speed is megapixels of level 0 a second, given as a ratio to the roofline: medians over rounds that alternate, each run
in a fresh process. Processor time is compared too: on a machine that others use it is the steadier of the two.
"""

from __future__ import annotations

import argparse
import filecmp
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import Figure, alternate, clear, cores, fresh, ratio, show, spread, synthetic, workspace
from contenders import CROP

import ngfftile as nt

ROUNDS = 3


class Convert:
    """The conversions of one slide, and what each run cost."""

    def __init__(self, source: Path, folder: Path, rounds: int) -> None:
        self.source, self.folder, self.rounds = source, folder, rounds
        self.peaks: dict[int, float] = {}

    def target(self, name: str) -> Path:
        """Where a contender writes."""
        return self.folder / name

    def once(self, name: str, workers: int) -> tuple[float, float]:
        """Run a contender; returns its megapixels a second of wall time, and of processor time."""
        clear(self.target(name))
        cost = fresh("contenders.py", name, self.source, self.target(name), workers)
        if name == "ours":
            self.peaks[workers] = max(self.peaks.get(workers, 0.0), cost["peak"])
        return cost["megapixels"] / cost["seconds"], cost["megapixels"] / cost["cpu"]

    def against_roofline(self, workers: int, *, durable: bool) -> list[Figure]:
        """Ours and the roofline in turns; with ``durable`` also the roofline that syncs."""
        names = ["roofline", "ours", *(["synced"] if durable else [])]
        runs = alternate([lambda name=name: self.once(name, workers) for name in names], self.rounds)
        wall, busy = ([[run[i] for run in column] for column in runs] for i in (0, 1))
        at = f"{workers} worker{'s' * (workers > 1)}"
        figures = [
            Figure(f"roofline, {at}", statistics.median(wall[0]), "MP/s", note="libraries only, not synced"),
            Figure(f"convert, {at}", statistics.median(wall[1]), "MP/s", note="synced"),
            Figure(
                f"convert / roofline, {at}",
                ratio(wall[1], wall[0]),
                "x",
                ">= 0.85" if workers == 1 else ">= 0.75",
                spread(wall[1], wall[0]),
            ),
            Figure(f"the same by processor time, {at}", ratio(busy[1], busy[0]), "x", "", spread(busy[1], busy[0])),
        ]
        if durable:
            figures += [
                Figure("cost of syncing: synced / not", ratio(wall[2], wall[0]), "x", "", "the roofline with fsync"),
                Figure("convert / synced roofline", ratio(wall[1], wall[2]), "x", "", spread(wall[1], wall[2])),
            ]
        return figures

    def same_shards(self) -> Figure:
        """How many of our shards the roofline wrote byte for byte."""
        ours, bare = self.target("ours"), self.target("roofline")
        keys = [p.relative_to(bare) for p in bare.rglob("*") if p.is_file()]
        same = sum((ours / key).exists() and filecmp.cmp(ours / key, bare / key, shallow=False) for key in keys)
        return Figure("shards equal to the roofline's", 100 * same / len(keys), "%", ">= 100", f"{len(keys)} files")

    def peers(self, workers: int) -> list[Figure]:
        """Each peer once, between two runs of ours."""
        names = {"naive": "dask sketch, zarr-python", "ome_zarr": "ome-zarr-py write_image"}
        figures = []
        for name, title in names.items():
            before = self.once("ours", workers)[0]
            try:
                speed = self.once(name, workers)[0]
            except RuntimeError as error:
                figures.append(Figure(f"convert / {title}", None, "", "", str(error).splitlines()[-1][:100]))
                continue
            mine = (before + self.once("ours", workers)[0]) / 2
            note = f"peer {speed:.1f} MP/s on {CROP} px squared at most, {workers} workers"
            figures.append(Figure(f"convert / {title}", mine / speed, "x", "", note))
        return figures

    def sizes(self) -> list[Figure]:
        """Memory and bytes, against what the plan says."""
        figures = []
        for workers, peak in sorted(self.peaks.items()):
            planned = nt.plan(self.source, workers=workers).peak_bytes
            note = f"{peak / 2**20:.0f} of {planned / 2**20:.0f} MiB"
            figures.append(Figure(f"peak memory / plan's, {workers} workers", peak / planned, "x", "< 1", note))
        what = nt.plan(self.source)
        raw = what.pyramid.raw_bytes
        arrays = [self.target("ours") / str(k) for k in range(len(what.pyramid.levels))]
        stored = sum(p.stat().st_size for folder in arrays for p in folder.rglob("*") if p.is_file())
        note = f"{stored / 1e6:.0f} of {raw / 1e6:.0f} MB; the plan expects {what.likely_bytes / raw:.2g}"
        return [*figures, Figure("stored / raw bytes", stored / raw, "x", "", note)]


def start_up(folder: Path) -> Figure:
    """The wall time of a process that converts one tile: interpreter, imports, and every fixed cost."""
    source = nt.synthetic.write_svs(folder / "one.svs", 256, 256, seed=1)
    code = "import sys, ngfftile; ngfftile.convert(sys.argv[1], sys.argv[2])"
    times = []
    for i in range(4):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, str(source), str(folder / f"one{i}.ome.zarr")], check=True)
        times.append(time.perf_counter() - begun)
    return Figure("convert a slide of one tile", statistics.median(times[1:]), "s", "< 2.5", "a whole process")


def kept(source: Path, folder: Path, rounds: int = ROUNDS) -> list[Figure]:
    """The source's own tiles kept, against lossless conversion; on one worker and on all cores."""
    run, figures = Convert(source, folder, rounds), []
    for workers in sorted({1, cores()}):
        names = ["ours", "kept"]
        (plain, own) = alternate([lambda n=n, w=workers: run.once(n, w)[0] for n in names], rounds)
        title = f"codec source / lossless, {workers} worker{'s' * (workers > 1)}"
        note = f"{statistics.median(own):.0f} MP/s; {spread(own, plain)}"
        figures.append(Figure(title, ratio(own, plain), "x", ">= 2.5", note))
    return figures


def and_read(source: Path, folder: Path, measure: Callable[[Path, Path], list[Figure]]) -> list[Figure]:
    """Convert a slide, and measure how it is read."""
    Convert(source, folder, 1).once("ours", cores())
    return measure(source, folder / "ours")


def measure(source: Path, folder: Path, rounds: int = ROUNDS) -> list[Figure]:
    """All figures; leaves our store in ``folder / "ours"``."""
    run = Convert(source, folder, rounds)
    figures: list[Figure] = []
    for workers in sorted({1, cores()}):
        figures += run.against_roofline(workers, durable=workers == cores())
    return [*figures, run.same_shards(), *run.peers(cores()), *run.sizes(), start_up(folder)]


def main() -> None:
    """Measure one slide, or a synthetic one."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slide", nargs="?", type=Path, help="an 8-bit RGB slide in TIFF; by default synthetic")
    arguments.add_argument("--size", default="12000x9000", help="of the synthetic slide")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    given = arguments.parse_args()
    with workspace() as folder:
        show(measure(given.slide or synthetic(folder, given.size), folder, given.rounds))


if __name__ == "__main__":
    main()
