"""OpenSlide in child processes against OpenSlide in this one: the same bands, the same pixels, taking turns.

python benchmarks/isolate.py [--slide SLIDE ...] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import openslide
from common import Figure, show
from numpy.typing import NDArray

import ngfftile as nt
from ngfftile.sources.child import Pool

SERVED = Path(nt.open_source.__code__.co_filename).with_name("openslide_child.py")
ROUNDS, SIDE, BAND = 9, 1024, 512
Pixels = NDArray[np.uint8]
Read = Callable[[nt.Region, Pixels], None]


def inside(path: Path) -> Read:
    """As the reader did it in this process: bands, alpha looked at, three of four samples copied."""
    slide = openslide.OpenSlide(path)

    def read(region: nt.Region, out: Pixels) -> None:
        for y in range(0, region.height, BAND):
            rows = min(BAND, region.height - y)
            rgba = np.asarray(slide.read_region((region.x, region.y + y), 0, (region.width, rows)))
            assert rgba[..., 3].min() == 255
            out[y : y + rows] = rgba[..., :3]

    return read


def apart(path: Path, threads: int) -> Read:
    """The reader, with its children started."""
    source = nt.open_source(path, reader="openslide")
    with ExitStack() as stack:
        for _ in range(threads):
            stack.enter_context(source._children.child())  # type: ignore[attr-defined]  # noqa: SLF001
    return lambda region, out: source.read(region, 0, out)


def cells(size: nt.Size, tile: nt.Size) -> list[nt.Region]:
    """Level 0 in regions of whole tiles, as a conversion asks for it."""
    across, down = (max(1, SIDE // side) * side for side in (tile.x, tile.y))
    return [
        nt.Region(x, y, min(across, size.x - x), min(down, size.y - y))
        for y in range(0, size.y, down)
        for x in range(0, size.x, across)
    ]


def seconds(read: Read, regions: list[nt.Region], out: Pixels, threads: int) -> float:
    """Of reading them all."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda r: read(r, out[r.y : r.bottom, r.x : r.right]), regions))
    return time.perf_counter() - started


def compare(path: Path, threads: int) -> Figure:
    """Speed of the children to that of one process. Each round opens the slide anew: handles keep what they decode."""
    info = nt.open_source(path, reader="openslide").info
    size, regions = info.size, cells(info.size, info.tile)
    ours, theirs = (np.zeros((size.y, size.x, 3), np.uint8) for _ in range(2))
    ratios, speeds = [], []
    for _ in range(ROUNDS):
        b, a = seconds(inside(path), regions, theirs, threads), seconds(apart(path, threads), regions, ours, threads)
        ratios.append(b / a)
        speeds.append(size.x * size.y / a / 1e6)
    assert np.array_equal(ours, theirs)
    note = f"{median(speeds):.0f} MP/s; {min(ratios):.2f} to {max(ratios):.2f} in {ROUNDS} rounds"
    return Figure(f"{path.name[:40]}, {threads} threads", median(ratios), "x", ">= 0.9", note)


def start(path: Path) -> list[Figure]:
    """Milliseconds until a child has opened a slide, and bare Python beside it."""
    whole, bare = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with Pool(SERVED, str(path)).child() as child:
            child.ask("about")
        whole.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import numpy"], check=True)
        bare.append(1000 * (time.perf_counter() - began))
    return [
        Figure("child started, slide opened", median(whole), "ms"),
        Figure("python -c 'import numpy'", median(bare), "ms"),
    ]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        slides = options.slide or [nt.synthetic.write_svs(Path(folder) / "made.svs", 8192, 8192, seed=1)]
        show([*start(slides[0]), *(compare(path, threads) for path in slides for threads in options.threads)])


if __name__ == "__main__":
    main()
