"""What it brings to keep a slide's own compressed tiles: size of the store against the source, and speed.

    python benchmarks/keep.py [SLIDE...]     # by default a synthetic JPEG SVS of 12000 x 9000

Each slide is converted with ``--codec source``, ``source:zstd``, ``jpeg`` at the quality of its own tiles, and zstd, in
turns and in this process; level 0 of the first two must be that of the last, bit for bit, or the run stops.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from common import clear, synthetic, workspace

import ngfftile as nt
from ngfftile.errors import NgfftileError

ROUNDS = 3


def bytes_of(slide: Path) -> int:
    """Of all files of a slide."""
    return sum(path.stat().st_size for path in nt.open_source(slide).info.files)


def same_pixels(one: Path, other: Path) -> bool:
    """Whether level 0 of two stores is equal."""
    first, second = (nt.open(store).image(level=0, blocks=2048).data for store in (one, other))
    return bool((first == second).all().compute())


def rows(slide: Path, folder: Path) -> list[str]:
    """One row of Markdown for each codec."""
    codecs = ["source", "source:zstd", "zstd"]
    quality = nt.plan(slide, codec="source").codec.name
    if quality.startswith("jpeg:"):
        codecs.append(quality)
    seconds: dict[str, list[float]] = {codec: [] for codec in codecs}
    stored: dict[str, int] = {}
    for _ in range(ROUNDS):
        for codec in codecs:
            target = folder / f"{codec.replace(':', '-')}.ome.zarr"
            clear(target)
            done = nt.convert(slide, target, codec=codec)
            seconds[codec].append(done.seconds)
            stored[codec] = done.bytes
    for codec in codecs[:2]:
        if not same_pixels(folder / f"{codec.replace(':', '-')}.ome.zarr", folder / "zstd.ome.zarr"):
            sys.exit(f"{slide}: level 0 of {codec} is not that of zstd")
    source = bytes_of(slide)
    faster = {
        codec: statistics.median(a / b for a, b in zip(seconds["zstd"], seconds[codec], strict=True))
        for codec in codecs
    }
    return [f"| {slide.name} | {codec} | {stored[codec] / source:.2f} | {faster[codec]:.2f} |" for codec in codecs]


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slides", nargs="*", type=Path)
    given = arguments.parse_args()
    print("| slide | codec | store / source, bytes | speed / zstd's |\n|---|---|---|---|")
    with workspace() as folder:
        for slide in given.slides or [synthetic(folder, "12000x9000")]:
            try:
                print("\n".join(rows(slide, folder)), flush=True)
            except NgfftileError as error:
                print(f"| {slide.name} | source | {error.what} | |", flush=True)


if __name__ == "__main__":
    main()
