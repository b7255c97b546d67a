"""How conversion grows with workers: threads, then processes on dask.distributed; and how small plans and graphs stay.

Each run is a process of its own; contenders alternate, and ratios are medians over the rounds. A cluster's start, and
its workers' imports, are not counted.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import sys
import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import psutil
from common import Figure, alternate, clear, cores, fresh, ratio, show, spread, synthetic, workspace

import ngfftile as nt
from ngfftile import cluster, writer
from ngfftile.store import Store
from ngfftile.writer.plan import Options, plan_for

ROUNDS = 3
THREADS = (1, 2, 4, 8)


def job_of(folder: Path, side: int, shard: int | None = None) -> writer.Job:
    """Plan a conversion of a square slide that nobody has."""
    file = folder / "tiny.svs"
    if not file.exists():
        nt.synthetic.write_svs(file, 64, 64, seed=1, associated=False)
    source = nt.open_source(file)
    chosen: dict[str, Any] = dict.fromkeys(("chunk", "codec", "ngff", "method", "planar", "mpp")) | {"shard": shard}
    options = Options.of(None, chosen | {"associated": False, "deidentify": False, "damaged": "fail"})
    what = plan_for(replace(source.info, size=nt.Size(side, side)), options, 1)
    return writer.Job(source, what, Store(folder / "store"), Store(folder / "draft"))


def threads(source: Path, folder: Path, rounds: int) -> list[Figure]:
    """More threads than cores must lose nothing."""
    target = folder / "threads"
    peaks: dict[int, float] = {}

    def once(count: int) -> float:
        clear(target)
        cost = fresh("contenders.py", "ours", source, target, count)
        peaks[count] = max(peaks.get(count, 0.0), cost["peak"])
        return float(cost["megapixels"] / cost["seconds"])

    speeds = dict(zip(THREADS, alternate([lambda n=n: once(n) for n in THREADS], rounds), strict=True))
    figures = [Figure("1 thread", statistics.median(speeds[1]), "MP/s", note=f"{cores()} cores")]
    figures += [
        Figure(f"{n} threads / 1", ratio(speeds[n], speeds[1]), "x", "", spread(speeds[n], speeds[1]))
        for n in THREADS[1:]
    ]
    for n in THREADS[2:]:
        note = spread(speeds[n], speeds[2])
        figures.append(Figure(f"{n} threads / 2", ratio(speeds[n], speeds[2]), "x", ">= 0.95", note))
    return figures + [Figure(f"peak memory, {n} threads", peaks[n] / 2**20, "MiB") for n in THREADS]


def _counts(dask_worker: Any) -> list[int]:
    sent = dask_worker.batched_stream
    busy = time.process_time()
    return [dask_worker.transfer_outgoing_bytes_total, sent.message_count, sent.byte_count, int(busy * 1e6)]


def _sent(dask_scheduler: Any) -> list[int]:
    streams = dask_scheduler.stream_comms.values()
    return [sum(s.message_count for s in streams), sum(s.byte_count for s in streams)]


def child(source: Path, target: Path, count: int) -> dict[str, float]:
    """Convert once on so many processes, and say what went over the wire."""
    with (
        cluster.serving("processes", count) as address,
        distributed.Client(address, set_as_default=False) as client,
    ):
        warm = nt.synthetic.write_svs(target.parent / "warm.svs", 3000, 3000, seed=1, associated=False)
        nt.convert(warm, target.parent / "warm.ome.zarr", shard=256, scheduler=address)
        clear(target.parent / "warm.ome.zarr")
        before, told = client.run(_counts), client.run_on_scheduler(_sent)
        done = nt.convert(source, target, scheduler=address)
        after, tells = client.run(_counts), client.run_on_scheduler(_sent)
    grown = [sum(after[w][i] - before[w][i] for w in after) for i in range(4)]
    return {
        "speed": done.pixels / 1e6 / done.seconds,
        "moved": grown[0],
        "messages": grown[1] + tells[0] - told[0],
        "bytes": grown[2] + tells[1] - told[1],
        "cpu": grown[3] / 1e6,
    }


def processes(source: Path, folder: Path, rounds: int) -> list[Figure]:
    """Two processes against one, and what moves between them."""
    target = folder / "processes"
    costs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}

    def once(count: int) -> float:
        clear(target)
        costs[count].append(fresh("scale.py", "--child", source, target, count))
        return float(costs[count][-1]["speed"])

    def thread() -> float:
        clear(target)
        cost = fresh("contenders.py", "ours", source, target, 1)
        return float(cost["megapixels"] / cost["seconds"])

    one, two, bare = alternate([lambda: once(1), lambda: once(2), thread], rounds)
    what = nt.plan(source)
    pyramid, tasks = what.pyramid, what.pyramid.count
    shrunken = sum(size.x * size.y for size in pyramid.levels[1:]) * pyramid.depth * pyramid.planes
    moved = statistics.median(cost["moved"] for cost in costs[2])
    busy = [[cost["cpu"] for cost in costs[n]] for n in (1, 2)]
    messages = statistics.median(cost["messages"] / tasks for cost in costs[2])
    sent = statistics.median(cost["bytes"] / tasks for cost in costs[2])
    return [
        Figure("2 processes / 1", ratio(two, one), "x", ">= 1.7", spread(two, one)),
        Figure("1 process / 1 thread", ratio(one, bare), "x", "", spread(one, bare)),
        Figure("processor time, 2 processes / 1", ratio(busy[1], busy[0]), "x", "", spread(busy[1], busy[0])),
        Figure("moved between 2 workers", moved / 1e6, "MB", note=f"{tasks} shards"),
        Figure("  of the shrunken levels' bytes", moved / shrunken, "x", "< 1", f"{shrunken / 1e6:.0f} MB"),
        Figure("messages for a task", messages, "", note="scheduler to workers and back, in batches"),
        Figure("  their bytes", sent, "B", note="the task among them; pixels go from worker to worker"),
    ]


def nothing(*_: Any) -> None:
    """Stand for a task whose work costs nothing."""


def overhead(folder: Path) -> Figure:
    """What dask itself takes for each task of a large slide's graph."""
    tasks = writer.graph(job_of(folder, 100_000, 1024), set())
    empty: dict[Hashable, Any] = {key: (nothing, *task[1:]) for key, task in tasks.items()}
    with cluster.serving("processes", 1) as address:
        cluster.run({"done": (nothing,)}, "done", scheduler=address, done=lambda _: None)
        begun = time.perf_counter()
        cluster.run(empty, "done", scheduler=address, done=lambda _: None)
        seconds = time.perf_counter() - begun
    return Figure("dask's own time for a task", seconds / len(empty) * 1e3, "ms", "", f"{len(empty)} empty tasks")


def build(folder: Path, side: int) -> dict[str, float]:
    """Plan, graph and its form on the wire, for a square slide."""
    begun = time.perf_counter()
    job = job_of(folder, side)
    str(job.what)
    planned = time.perf_counter()
    tasks = writer.graph(job, set())
    graph = time.perf_counter()
    sent = cluster._Sent(tasks, "done")  # noqa: SLF001 (its size is what is measured)
    one = next(task for task in tasks.values() if task[0] is writer.write_base)
    return {
        "plan": planned - begun,
        "graph": graph - planned,
        "tasks": len(tasks),
        "once": sum(map(len, sent.common.values())),
        "each": statistics.mean(len(pickle.dumps(task)) for task in sent.tasks.values()),
        "apart": len(pickle.dumps(one)),
        "peak": psutil.Process().memory_info().rss,  # nothing was given back
    }


def plans(folder: Path) -> list[Figure]:
    """Plans and graphs of slides that nobody has."""
    figures = []
    for side, name, goals in ((100_000, "100,000", ("< 3", "< 300")), (1_000_000, "1,000,000", ("", ""))):
        cost = fresh("scale.py", "--build", folder, side)
        note = f"{cost['tasks']:,} tasks; {cost['peak'] / 1e6:.0f} MB, imports and all"
        wire = f"and {cost['once'] / 1e3:.1f} kB once; {cost['apart'] / 1e3:.1f} kB each, if it carried all it needs"
        figures += [
            Figure(f"plan of {name} squared", cost["plan"], "s", "< 3", "printed"),
            Figure("  its graph", cost["graph"], "s", goals[0], note),
            Figure("  memory of that process", cost["peak"] / 1e6, "MB", goals[1]),
            Figure("  a task on the wire", cost["each"], "B", "", wire),
        ]
    return figures


PARTS = ("threads", "processes", "plans")


def measure(source: Path | None, folder: Path, rounds: int = ROUNDS, part: str | None = None) -> list[Figure]:
    """All figures, or those of one part; plans need no slide."""
    figures: list[Figure] = []
    if source is not None:
        figures += threads(source, folder, rounds) if part != "processes" else []
        figures += processes(source, folder, rounds) if part != "threads" else []
    if part in {None, "plans"}:
        figures += [overhead(folder), *plans(folder)]
    return figures


def main() -> None:
    """Measure one slide, or a synthetic one."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
        return
    if sys.argv[1:2] == ["--build"]:
        print(json.dumps(build(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slide", nargs="?", type=Path, help="an 8-bit RGB slide in TIFF; by default synthetic")
    arguments.add_argument("--size", default="20000x16000", help="of the synthetic slide")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--part", choices=PARTS, help="only this")
    given = arguments.parse_args()
    with workspace() as folder:
        source = None if given.part == "plans" else given.slide or synthetic(folder, given.size)
        show(measure(source, folder, given.rounds, given.part))


if __name__ == "__main__":
    main()
