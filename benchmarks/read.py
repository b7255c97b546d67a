"""Random aligned 256 px tiles of level 0, one thread, warm: our store, the same by others, and the slide itself."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import zarr
from common import Figure, alternate, ratio, show, spread, synthetic, workspace
from numpy.typing import NDArray

import ngfftile as nt

Array = NDArray[Any]
Read = Callable[[int, int], Array]
SIDE, SHARD, ROUNDS, TILES = 256, 4096, 3, 400


def ours(store: Path) -> Read:
    """Read as `Index.read` does."""
    view = nt.open(store).view(level=0)
    return lambda x, y: view.tile(nt.Region(x, y, SIDE, SIDE))


def zarr_python(store: Path) -> Read:
    level = zarr.open_array(store / "0", mode="r")
    return lambda x, y: np.ascontiguousarray(level[:, y : y + SIDE, x : x + SIDE].transpose(1, 2, 0))


def openslide_svs(source: Path) -> Read:
    slide = openslide.OpenSlide(source)
    return lambda x, y: np.asarray(slide.read_region((x, y), 0, (SIDE, SIDE)).convert("RGB"))


def bare(store: Path) -> Read:
    """Read with the shards held open, their indexes too, and no check: pread, zstd, transpose."""
    across = SHARD // SIDE
    planar = np.empty((3, SIDE, SIDE), np.uint8)

    @cache
    def shard(row: int, col: int) -> tuple[int, Array]:
        file = os.open(store / "0/c/0" / str(row) / str(col), os.O_RDONLY)
        length = 16 * across**2 + 4
        table = os.pread(file, length, os.fstat(file).st_size - length)
        return file, np.frombuffer(table[:-4], "<u8").reshape(across, across, 2)

    def read(x: int, y: int) -> Array:
        file, index = shard(y // SHARD, x // SHARD)
        offset, count = index[y % SHARD // SIDE, x % SHARD // SIDE]
        if count == 2**64 - 1:
            return np.full((SIDE, SIDE, 3), 255, np.uint8)
        imagecodecs.zstd_decode(os.pread(file, int(count), int(offset)), out=planar.reshape(-1))
        return np.ascontiguousarray(planar.transpose(1, 2, 0))

    return read


def speed(read: Read, places: Array) -> float:
    """Tiles a second."""
    begun = time.perf_counter()
    for x, y in places:
        read(int(x), int(y))
    return len(places) / (time.perf_counter() - begun)


def measure(source: Path, store: Path) -> list[Figure]:
    """Ratios of tiles a second: ours to each other reader."""
    size = nt.open(store).size
    grid = np.random.default_rng(3)
    places = grid.integers(0, (size.x // SIDE, size.y // SIDE), (TILES, 2)) * SIDE
    readers: dict[str, Read] = {
        "ours": ours(store),
        "bare pread and zstd": bare(store),
        "zarr-python": zarr_python(store),
    }
    for x, y in places.tolist():  # also brings the store into memory
        first = readers["ours"](x, y)
        if not all(np.array_equal(first, read(x, y)) for read in readers.values()):
            raise SystemExit(f"the readers differ at x {x}, y {y}: the comparison would mean nothing")
    readers["OpenSlide on the slide"] = openslide_svs(source)
    runs = alternate([lambda read=read: speed(read, places) for read in readers.values()], ROUNDS)
    figures = [Figure("tiles read, one thread", sorted(runs[0])[ROUNDS // 2], "tiles/s")]
    for name, column in list(zip(readers, runs, strict=True))[1:]:
        figures.append(Figure(f"read / {name}", ratio(runs[0], column), "x", "", spread(runs[0], column)))
    return figures


def main() -> None:
    """Measure a synthetic slide, or one given with its store."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slide", nargs="?", type=Path)
    given = arguments.parse_args()
    with workspace() as folder:
        source = given.slide or synthetic(folder, "12000x9000")
        store = folder / "ours"
        nt.convert(source, store)
        show(measure(source, store))


if __name__ == "__main__":
    main()
