"""Many workers, simulated: the real graph of a slide with costs measured here, on workers that this machine has not.

Event by event: a worker that is free takes the task that comes first in dask's order, one whose inputs it holds before
others, and fetches what it lacks. Tasks begin when their inputs are there; one scheduler starts them one by one.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import distributed
import numpy as np
from common import synthetic, table, workspace
from dask.callbacks import Callback
from dask.local import get_sync
from dask.order import order
from scale import job_of, nothing

import ngfftile as nt
from ngfftile import cluster, writer
from ngfftile.store import Store

SLIDE = nt.Size(100_000, 80_000)
WORKERS = (1, 2, 4, 8, 16, 32, 64, 1000)
SHARDS = (4096, 2048, 1024)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that work takes.

    Parameters
    ----------
    base, mean
        For a pixel of a level-0 shard, and of one above.
    task
        For a task, of the one scheduler.
    byte
        For a byte between workers.
    """

    base: float
    mean: float
    task: float
    byte: float


def measure(folder: Path) -> Costs:
    """Measure each kind of task on a slide of four whole shards."""
    source = nt.open_source(synthetic(folder, "8192x8192"))
    job = writer.Job(source, nt.plan(source.info.files[0], workers=1), Store(folder / "s"), Store(folder / "d"))
    for store in (job.store, job.draft):
        store.root.mkdir()
    job.create_arrays()
    tasks = writer.graph(job, set())
    spent: dict[str, list[float]] = {"base": [], "mean": []}
    begun: dict[Hashable, float] = {}

    def start(key: Hashable, *_: Any) -> None:
        begun[key] = time.process_time()

    def end(key: Hashable, *_: Any) -> None:
        if isinstance(key, tuple) and key[0] == "shard":
            region = job.pyramid.region(tasks[key][2])
            kind = "mean" if key[1] else "base"
            spent[kind].append((time.process_time() - begun[key]) / (region.width * region.height))

    with Callback(pretask=start, posttask=end):
        get_sync(tasks, "done")
    return Costs(statistics.median(spent["base"]), spent["mean"][0], *_dask(folder))


def _dask(folder: Path) -> tuple[float, float]:
    """Seconds for an empty task, and for a byte from one worker to another."""
    tasks = writer.graph(job_of(folder, 100_000), set())
    empty: dict[Hashable, Any] = {key: (nothing, *task[1:]) for key, task in tasks.items()}
    with (
        cluster.serving("processes", 2) as address,
        distributed.Client(address, set_as_default=False) as client,
    ):
        cluster.run({"done": (nothing,)}, "done", scheduler=address, done=lambda _: None)
        begun = time.perf_counter()
        cluster.run(empty, "done", scheduler=address, done=lambda _: None)
        task = (time.perf_counter() - begun) / len(empty)
        one, two = client.scheduler_info()["workers"]
        size = 3 * 2048**2
        made = [client.submit(np.ones, size, np.uint8, workers=[one], pure=False) for _ in range(8)]
        client.gather([client.submit(np.size, array, workers=[one], pure=False) for array in made])
        begun = time.perf_counter()
        client.gather([client.submit(np.size, array, workers=[two], pure=False) for array in made])
        return task, (time.perf_counter() - begun) / (8 * size)


@dataclass(frozen=True, slots=True)
class Tree:
    """A slide's tasks in dask's order.

    Parameters
    ----------
    seconds, bytes
        That each takes, and hands on.
    parent, children
        The task that waits for each (-1: none), and how many it waits for.
    """

    seconds: list[float]
    bytes: list[int]
    parent: list[int]
    children: list[int]

    @classmethod
    def of(cls, folder: Path, shard: int, costs: Costs) -> Tree:
        """The tree of a slide cut into shards of that side."""
        made = job_of(folder, 64, shard)
        pyramid = replace(made.what.pyramid, size=SLIDE)
        tasks = writer.graph(replace(made, what=replace(made.what, pyramid=pyramid)), set())
        ranks = order(tasks)
        keys = sorted((key for key in tasks if key != "done"), key=ranks.__getitem__)
        at = {key: i for i, key in enumerate(keys)}
        tree = cls([], [], [-1] * len(keys), [0] * len(keys))
        for key in keys:
            region = pyramid.region(tasks[key][2])
            pixels = region.width * region.height
            tree.seconds.append(pixels * (costs.mean if key[1] else costs.base))
            tree.bytes.append(pixels * pyramid.depth // 4)
            if key[1]:
                tree.children[at[key]] = len(tasks[key][3])
                for child in tasks[key][3]:
                    tree.parent[at[child]] = at[key]
        return tree

    @property
    def work(self) -> float:
        """Seconds on one worker."""
        return sum(self.seconds)

    @property
    def path(self) -> float:
        """Seconds on any number of workers: a shard, its parent, and so on to the top."""
        longest = list(self.seconds)
        for i in sorted(range(len(longest)), key=self._depth, reverse=True):
            if self.parent[i] >= 0:
                above = self.parent[i]
                longest[above] = max(longest[above], longest[i] + self.seconds[above])
        return max(longest)

    def _depth(self, i: int) -> int:
        depth = 0
        while (i := self.parent[i]) >= 0:
            depth += 1
        return depth


def simulate(tree: Tree, workers: int, costs: Costs, slides: int = 1, flight: int = 1) -> float:
    """Seconds for so many slides, of which ``flight`` are at work at a time."""
    leaves = [i for i, count in enumerate(tree.children) if not count]
    ready: list[tuple[int, int]] = []
    waiting: dict[int, list[int]] = {}
    left: dict[int, int] = {}
    holders: dict[tuple[int, int], Counter[int]] = {}
    idle, events = set(range(workers)), list[tuple[float, int, int, int]]()
    begun, now, starts = 0, 0.0, 0.0

    def begin() -> None:
        nonlocal begun
        waiting[begun], left[begun] = list(tree.children), len(tree.children)
        for i in leaves:
            heapq.heappush(ready, (begun, i))
        begun += 1

    for _ in range(min(flight, slides)):
        begin()
    while ready or events:
        while ready and idle:
            slide, i = heapq.heappop(ready)
            held = holders.pop((slide, i), Counter())
            worker = next((w for w, _ in held.most_common() if w in idle), None)
            worker = min(idle) if worker is None else worker
            idle.remove(worker)
            starts = max(starts, now) + costs.task
            lacks = sum(count for other, count in held.items() if other != worker)
            heapq.heappush(events, (starts + lacks * costs.byte + tree.seconds[i], worker, slide, i))
        now, worker, slide, i = heapq.heappop(events)
        idle.add(worker)
        left[slide] -= 1
        if not left[slide]:
            del waiting[slide], left[slide]
            if begun < slides:
                begin()
        elif (above := tree.parent[i]) >= 0:
            holders.setdefault((slide, above), Counter())[worker] += tree.bytes[i]
            waiting[slide][above] -= 1
            if not waiting[slide][above]:
                heapq.heappush(ready, (slide, above))
    return now


def single(trees: dict[int, Tree], costs: Costs) -> None:
    """One slide alone: speed-up over one worker, and efficiency."""
    rows = [("workers", *(f"shard {shard}: speed-up, efficiency" for shard in trees))]
    for workers in WORKERS:
        gains = [tree.work / simulate(tree, workers, costs) for tree in trees.values()]
        rows.append((str(workers), *(f"{gain:.1f} x, {100 * gain / workers:.0f} %" for gain in gains)))
    table(rows)


def many(tree: Tree, costs: Costs, slides: int) -> None:
    """Many slides on the same workers, one after the other and several at a time."""
    flights = (1, 2, 4, 16, 64)
    rows = [("workers", *(f"{flight} at a time" for flight in flights))]
    for workers in (8, 64, 1000):
        times = [simulate(tree, workers, costs, slides, flight) for flight in flights]
        rows.append((str(workers), *(f"{100 * slides * tree.work / t / workers:.0f} %" for t in times)))
    table(rows)


def main() -> None:
    """Measure, simulate, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--slides", type=int, default=1000, help="in the batch")
    given = arguments.parse_args()
    with workspace() as folder:
        costs = measure(folder)
        trees = {shard: Tree.of(folder, shard, costs) for shard in SHARDS}
    print(f"measured: base {1e-6 / costs.base:.1f} MP/s, mean {1e-6 / costs.mean:.1f} MP/s a worker; ", end="")
    print(f"{costs.task * 1e3:.2f} ms a task of the scheduler; {1e-6 / costs.byte:.0f} MB/s between workers\n")
    print(f"one slide of {SLIDE}")
    for shard, tree in trees.items():
        most = tree.work / len(tree.seconds) / costs.task
        print(
            f"  shard {shard}: {len(tree.seconds):,} tasks, {tree.work:.0f} s of work; {tree.path:.1f} s from a shard "
            f"to the top, so {tree.work / tree.path:.0f} workers at most; the scheduler keeps {most:.0f} busy"
        )
    single(trees, costs)
    print(f"\n{given.slides:,} such slides, shard {SHARDS[0]}: efficiency")
    many(trees[SHARDS[0]], costs, given.slides)


if __name__ == "__main__":
    main()
