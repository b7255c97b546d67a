"""Memory of a conversion against what it should keep to, for slides of growing size; and what only headers cost.

python benchmarks/memory.py                          # all: some minutes on two cores, 3 GB of stores, removed
python benchmarks/memory.py --sizes 12000x9000 --sparse 40000x40000 --workers 1    # half a minute

The slides are the tiles of one synthetic slide, repeated: a few megabytes on disk, and the work of gigapixels. Those
of the header alone store no tile, and become background. Peaks are of whole commands, in all their processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import psutil
from common import Cost, Figure, clear, command, cores, facts, fresh, save, show, workspace

BASE, EACH = 250, 350  # megabytes: what a conversion may take, and what each worker adds
SIZES = ["6000x4500", "12000x9000", "24000x18000", "50000x42000"]
SPARSE, HEADER = "100000x100000", "1000000x1000000"
TILES = (256, 240)  # with the graph: that divide a shard, and that lie across its borders
CONVERT = "import sys, ngfftile; ngfftile.convert(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))"


def ngfftile() -> Path:
    """Our command, of the environment that this runs in."""
    return Path(sys.executable).with_name("ngfftile")


def convert(slide: Path, folder: Path, workers: int, *, api: bool) -> Cost:
    """Convert a slide, by the command, or by the function in a process that does nothing else."""
    target = folder / "converted.ome.zarr"
    clear(target)
    words: list[str | Path | int] = [ngfftile(), "convert", slide, "-o", target, "--workers", workers]
    if api:
        words = [sys.executable, "-c", CONVERT, slide, target, workers]
    cost = command(words, workers=workers)
    clear(target)
    return cost


def conversions(folder: Path, sizes: list[str], sparse: str, workers: list[int]) -> Iterator[Figure]:
    """Peaks of conversions."""
    slides = [("large", size) for size in sizes] + ([("sparse", sparse)] if sparse else [])
    for verb, size in slides:
        slide = folder / f"{verb}-{size}.tif"
        fresh("slides.py", verb, slide, size)
        width, height = map(int, size.split("x"))
        for count in workers:
            for api in (False, True):
                how = "ngfftile.convert" if api else "command"
                title = f"{how}, {size}{' sparse' * (verb == 'sparse')}, {count} workers"
                cost = convert(slide, folder, count, api=api)
                speed = width * height / 1e6 / cost.seconds
                note = f"{cost.seconds:.1f} s, {speed:.0f} MP/s, {cost.cpu:.1f} s of processor time"
                yield Figure(title, cost.peak / 1e6, "MB", f"< {BASE + EACH * count}", note)


def headers(folder: Path, graph: str, header: str, tiles: list[int]) -> Iterator[Figure]:
    """The cost of a plan and of a graph, of slides that are headers only."""
    for tile in TILES if graph else ():
        slide = folder / f"graph-{tile}.tif"
        fresh("slides.py", "sparse", slide, graph, "--tile", tile)
        made = fresh("memory.py", "--graph", slide)
        note = f"{made['tasks']} tasks; the plan before it {made['plan']:.2f} s and {made['before'] / 1e6:.0f} MB"
        title = f"graph of {graph}, tiles of {tile}"
        yield Figure(f"{title}, time", made["seconds"], "s", "< 3", note)
        yield Figure(f"{title}, memory", made["after"] / 1e6, "MB", "< 300", "of the process, resident")
    for tile in tiles if header else []:
        slide = folder / f"header-{tile}.tif"
        fresh("slides.py", "sparse", slide, header, "--tile", tile)
        title, size = f"plan of {header}, tiles of {tile}", slide.stat().st_size / 1e6
        try:
            cost = command([ngfftile(), "plan", slide])
        except RuntimeError as error:
            yield Figure(title, None, "", "", " ".join(str(error).split())[-160:])
            continue
        yield Figure(title, cost.seconds, "s", "", f"{size:.0f} MB of header, {cost.peak / 1e6:.0f} MB of memory")


def build(slide: Path) -> dict[str, Any]:
    """Time and memory of the graph of a conversion; the store is not asked for that."""
    from ngfftile.sources import open_source
    from ngfftile.writer import Job, graph, plan

    memory = psutil.Process().memory_info
    begun = time.perf_counter()
    job = Job(open_source(slide), plan(slide), cast(Any, None), cast(Any, None))
    planned, before = time.perf_counter(), memory().rss
    tasks = graph(job, set())
    done = time.perf_counter()
    return {
        "plan": planned - begun,
        "seconds": done - planned,
        "tasks": len(tasks),
        "before": before,
        "after": memory().rss,
    }


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", nargs="*", default=SIZES, help="of slides full of tissue and glass")
    arguments.add_argument("--sparse", default=SPARSE, help="size of a slide without tiles; '' for none")
    arguments.add_argument("--header", default=HEADER, help="size of a slide that is only planned; '' for none")
    arguments.add_argument("--tiles", type=int, nargs="+", default=[4096, 1024, 512, 256], help="of that header")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments.add_argument("--graph", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--json", type=Path, help="write the figures there, too")
    given = arguments.parse_args()
    if given.graph:
        print(json.dumps(build(given.graph)))
        return
    for name, value in facts().items():
        print(f"{name:<12} {value}")
    print(f"more workers than the {cores()} cores there are share them\n")
    figures = []
    with workspace() as folder:
        parts = (
            headers(folder, given.sparse, given.header, given.tiles),
            conversions(folder, given.sizes, given.sparse, given.workers),
        )
        for figure in chain(*parts):
            figures.append(figure)
            print(*figure.cells(), file=sys.stderr, flush=True)
    show(figures)
    if given.json:
        save(given.json, figures)


if __name__ == "__main__":
    main()
