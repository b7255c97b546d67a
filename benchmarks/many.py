"""Many small slides in one command, against a command for each: what start-up and idle cores cost.

python benchmarks/many.py                              # 200 slides of 2000 x 2000; a minute or two
python benchmarks/many.py --slides 20 --singles 3      # to try it
python benchmarks/many.py --workers 1 2                # on fewer cores than all

Busy cores are the processor time over the wall time and the cores. The loop of single commands is what one writes
without a batch; a sample of the slides stands for all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from common import Cost, Figure, clear, command, cores, facts, fresh, save, show, workspace

DIFFERENT = 10  # slides that are drawn; the others are copies of them under another name and with another description
STORES = "*.ome.zarr"


def slides(folder: Path, count: int, size: str) -> list[Path]:
    """Write slides into a folder, each with other bytes."""
    folder.mkdir()
    drawn: list[bytes] = []
    paths = []
    for number in range(count):
        path = folder / f"slide{number:03}.svs"
        if number < DIFFERENT:
            fresh("slides.py", "svs", path, size, "--seed", number)
            drawn.append(path.read_bytes())
        data = drawn[number % DIFFERENT]
        # A name of the same length: no offset in the file moves.
        path.write_bytes(data.replace(b"|Filename = synthetic", f"|Filename = copy {number:04}".encode()))
        paths.append(path)
    return paths


def convert(sources: list[Path], target: Path, workers: int) -> Cost:
    """One command for one slide, or for a folder of them."""
    return command(
        [Path(sys.executable).with_name("ngfftile"), "convert", *sources, "-o", target, "--workers", workers],
        workers=workers,
    )


def measure(folder: Path, count: int, singles: int, size: str, workers: int) -> Iterator[Figure]:
    """The batch, then the loop over a sample."""
    paths = sorted((folder / "slides").glob("*.svs"))
    target = folder / "stores"
    clear(target)
    many = convert([folder / "slides"], target, workers)
    stores = len(list(target.glob(STORES)))
    clear(target)
    target.mkdir()
    step = max(1, len(paths) // singles)
    alone = [convert([path], target / f"{path.stem}.ome.zarr", workers) for path in paths[::step][:singles]]
    each, cpu = (sum(getattr(cost, what) for cost in alone) / len(alone) for what in ("seconds", "cpu"))
    clear(target)
    at = f"{workers} worker{'s' * (workers > 1)}"
    told = f"{count} slides of {size}: {many.seconds:.1f} s, {many.cpu:.1f} s of processor time"
    yield Figure(f"stores written, {at}", stores, "", f">= {count}")
    yield Figure(f"one command, {at}", count / many.seconds, "slides/s", "", told)
    yield Figure("  cores busy", many.cpu / many.seconds / workers, "", ">= 0.9", f"of {workers}")
    yield Figure("  peak memory", many.peak / 1e6, "MB", "", "of all its processes")
    told = f"{len(alone)} commands of {each:.2f} s and {cpu:.2f} s of processor time each"
    yield Figure(f"a command for each, {at}", 1 / each, "slides/s", "", told)
    yield Figure("  cores busy", cpu / each / workers, "", "", f"of {workers}")
    yield Figure("one command / a command for each", each * count / many.seconds, "x", ">= 1", "slides/s")
    yield Figure("  the same by processor time", cpu * count / many.cpu, "x")


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=200)
    arguments.add_argument("--singles", type=int, default=10, help="how many of them the loop converts")
    arguments.add_argument("--size", default="2000x2000")
    arguments.add_argument("--workers", type=int, nargs="+", default=[cores()])
    arguments.add_argument("--json", type=Path, help="write the figures there, too")
    given = arguments.parse_args()
    for name, value in facts().items():
        print(f"{name:<12} {value}")
    print()
    figures: list[Figure] = []
    with workspace() as folder:
        paths = slides(folder / "slides", given.slides, given.size)
        convert(paths[:1], folder / "first.ome.zarr", cores())  # the libraries come into memory
        for workers in given.workers:
            figures += measure(folder, given.slides, given.singles, given.size, workers)
    show(figures)
    if given.json:
        save(given.json, figures)


if __name__ == "__main__":
    main()
