"""The pyramid's 2x mean, `ngfftile.resample.halve`, against what else computes it: blocks of 3 x 256 x 256 uint8."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Figure, alternate, ratio, show, spread
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import downscale_local_mean

from ngfftile.resample import halve

Array = NDArray[Any]
SHAPE, SECONDS, ROUNDS = (3, 256, 256), 0.2, 5


def ours(block: Array, out: Array) -> None:
    halve(block, out)


def sums(block: Array, out: Array) -> None:
    """Write what one writes first in numpy, without rounding errors."""
    wide = block.astype(np.uint16)
    out[...] = (wide[:, ::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, ::2] + wide[:, 1::2, 1::2] + 2) >> 2


def skimage(block: Array, out: Array) -> None:
    out[...] = downscale_local_mean(block, (1, 2, 2)) + 0.5


def pillow(block: Array, out: Array) -> None:
    """Give the three channels to ``Image.reduce`` as one tall picture."""
    tall = Image.frombuffer("L", (SHAPE[2], SHAPE[0] * SHAPE[1]), block.data, "raw", "L", 0, 1)
    out[...] = np.asarray(tall.reduce(2)).reshape(out.shape)


def opencv() -> Callable[[Array, Array], None] | None:
    """INTER_AREA on one thread; None where OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    size = (SHAPE[2] // 2, SHAPE[1] // 2)

    def run(block: Array, out: Array) -> None:
        for plane, small in zip(block, out, strict=True):
            cv2.resize(plane, size, dst=small, interpolation=cv2.INTER_AREA)

    return run


def speed(run: Callable[[Array, Array], None], block: Array) -> float:
    """Megapixels (of three channels) a second, on one thread."""
    out = np.empty((SHAPE[0], SHAPE[1] // 2, SHAPE[2] // 2), np.uint8)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        run(block, out)
        done += 1
    return done * SHAPE[1] * SHAPE[2] / 1e6 / (time.perf_counter() - begun)


def measure() -> list[Figure]:
    """Ratios to ours, above 1 where ours is faster; every contender gives the same pixels."""
    block = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
    expected = np.empty((SHAPE[0], SHAPE[1] // 2, SHAPE[2] // 2), np.uint8)
    ours(block, expected)
    peers = {"numpy uint16 sums": sums, "scikit-image local mean": skimage, "Pillow reduce": pillow}
    area = opencv()
    if area:
        peers["OpenCV INTER_AREA"] = area
    for name, peer in peers.items():
        out = np.zeros_like(expected)
        peer(block, out)
        if np.abs(out.astype(int) - expected).max() > 0:
            raise SystemExit(f"{name} gives other pixels than halve: the comparison would mean nothing")
    runs = alternate([lambda run=run: speed(run, block) for run in (ours, *peers.values())], ROUNDS)
    figures = [Figure("halve, one thread", sorted(runs[0])[ROUNDS // 2], "MP/s")]
    for name, column in zip(peers, runs[1:], strict=True):
        figures.append(Figure(f"halve / {name}", ratio(runs[0], column), "x", "", spread(runs[0], column)))
    if not area:
        figures.append(Figure("halve / OpenCV INTER_AREA", None, "", "", "OpenCV is not installed here"))
    return figures


if __name__ == "__main__":
    show(measure())
