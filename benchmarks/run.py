"""Run the benchmarks one after the other, and print one table: what ``make bench`` does."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import convert
import footprint
import read
import shrink
from common import Figure, facts, save, show, synthetic, workspace


def parse() -> argparse.Namespace:
    """Options."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", default="12000x9000", help="of the synthetic slide; default 12000x9000")
    arguments.add_argument("--slide", type=Path, help="an 8-bit RGB slide in TIFF, in place of the synthetic one")
    arguments.add_argument("--rounds", type=int, default=convert.ROUNDS, help="of conversions that alternate")
    arguments.add_argument("--json", type=Path, help="write the figures there, too")
    arguments.add_argument("--footprint", action="store_true", help="also install into a fresh environment; needs pip")
    return arguments.parse_args()


def figures(given: argparse.Namespace, folder: Path) -> Iterator[list[Figure]]:
    """Each benchmark's figures, as it ends."""
    source = given.slide or synthetic(folder, given.size)
    yield convert.measure(source, folder, given.rounds)
    yield read.measure(source, folder / "ours")
    yield shrink.measure()
    if given.footprint:
        yield footprint.measure(folder)


def main() -> None:
    """Run everything."""
    given = parse()
    for name, value in facts().items():
        print(f"{name:<12} {value}")
    begun = time.perf_counter()
    results: list[Figure] = []
    with workspace() as folder:
        for part in figures(given, folder):
            results += part
            print(f"{time.perf_counter() - begun:.0f} s: {len(results)} figures", file=sys.stderr)
    print(f"{'slide':<12} {given.slide.name if given.slide else f'synthetic, {given.size}'}\n")
    show(results)
    if given.json:
        save(given.json, results)


if __name__ == "__main__":
    main()
