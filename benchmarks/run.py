"""Every goal of speed and memory beside its figure, in one table: what ``make bench`` does.

python benchmarks/run.py                              # all, on 2.1 gigapixels: half an hour on two cores
python benchmarks/run.py --quick                      # on a small slide: some minutes; fixed costs weigh more
python benchmarks/run.py --only convert many          # parts of it
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import convert
import footprint
import many
import memory
import read
import scale
import shrink
import slides
import writers
from common import HERE, Figure, cores, facts, save, show, workspace

LARGE, QUICK = "50000x42000", "12000x9000"


def parse() -> argparse.Namespace:
    """Options."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help=f"convert {QUICK}, not {LARGE}")
    arguments.add_argument("--slide", type=Path, help="an 8-bit RGB slide in TIFF, in place of the synthetic one")
    arguments.add_argument(
        "--peers-slide", nargs="+", default=[], help="options for peers.py, such as --slide X --wrap"
    )
    arguments.add_argument("--rounds", type=int, default=2, help="of conversions that alternate")
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS)[:-1], help="parts; not footprint")
    arguments.add_argument("--json", type=Path, help="write the figures there, too")
    return arguments.parse_args()


def peers(given: argparse.Namespace, _source: Path, folder: Path) -> list[Figure]:
    """Other converters; they live in an environment of their own."""
    out = folder / "peers.json"
    command = [sys.executable, str(HERE / "peers.py"), "--json", str(out), *given.peers_slide]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [Figure("peers", None, "", "", f"make bench-peers: {done.stderr.strip().splitlines()[-1][:90]}")]
    return [Figure(**one) for one in json.loads(out.read_text())["figures"]]


def memories(given: argparse.Namespace, _source: Path, folder: Path) -> Iterable[Figure]:
    """Peak memory, and what headers cost."""
    sizes = memory.SIZES[:2] if given.quick else memory.SIZES
    sparse = "30000x30000" if given.quick else memory.SPARSE
    yield from memory.conversions(folder, sizes, sparse, [1, 2, 4])
    yield from memory.headers(folder, memory.SPARSE, memory.HEADER, [4096, 1024])


Part = Callable[[argparse.Namespace, Path, Path], Iterable[Figure]]
PARTS: dict[str, Part] = {
    "convert": lambda given, source, folder: convert.measure(source, folder, given.rounds),
    "kept": lambda given, source, folder: convert.kept(source, folder, given.rounds),
    "peers": peers,
    "memory": memories,
    "scale": lambda given, _, folder: scale.measure(
        slides.synthetic(folder / "scale.svs", QUICK), folder, given.rounds
    ),
    "many": lambda _given, _, folder: many.measure(folder, 200, 10, "2000x2000", cores()),
    "writers": lambda given, _, folder: writers.measure(folder, given.rounds),
    "read": lambda _given, _, folder: convert.and_read(
        slides.synthetic(folder / "read.svs", QUICK), folder, read.measure
    ),
    "shrink": lambda _given, _source, _folder: shrink.measure(),
    "footprint": lambda _given, _source, folder: footprint.measure(folder),
}


def main() -> None:
    """Run everything that was asked for."""
    given = parse()
    for name, value in facts().items():
        print(f"{name:<12} {value}")
    begun = time.perf_counter()
    results: list[Figure] = []
    with workspace() as folder:
        needed = {"convert", "kept"} & set(given.only)
        source = given.slide or folder / "slide"
        if needed and not given.slide:
            make = slides.synthetic if given.quick else slides.large
            source = make(source.with_suffix(".svs" if given.quick else ".tif"), QUICK if given.quick else LARGE)
        name = given.slide.name if given.slide else f"synthetic, {QUICK if given.quick else LARGE}"
        print(f"{'slide':<12} {name}\n")
        for part in given.only:
            (work := folder / part).mkdir()
            results += PARTS[part](given, source, work)
            print(f"{time.perf_counter() - begun:.0f} s: {part}", file=sys.stderr)
    show(results)
    missed = [figure.name for figure in results if figure.kept is False]
    print(f"\n{sum(figure.kept is True for figure in results)} goals kept, {len(missed)} missed {missed or ''}")
    if given.json:
        save(given.json, results)


if __name__ == "__main__":
    main()
