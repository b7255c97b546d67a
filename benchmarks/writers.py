"""Ways to write the same shards, each in a fresh process: our assembly, zarr-python, its zarrs pipeline, tensorstore.

The pixels, 3 x 8192 x 8192 of a slide, are in memory; all use zstd 3 with checksum, chunks of 256 and shards of 4096.
``writers.py NAME PIXELS TARGET WORKERS`` is one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, alternate, clear, cores, fresh, ratio, show, spread, synthetic, workspace
from numpy.typing import NDArray

SIDE, SHARD, CHUNK, ROUNDS = 8192, 4096, 256, 5
Array = NDArray[Any]
Write = Callable[[Array, Path, int], None]


def ours(pixels: Array, target: Path, workers: int) -> None:
    """Chunks by backports.zstd, assembled into shards."""
    from ngfftile.codecs import Zstd
    from ngfftile.shards import Layout, create, write_shard
    from ngfftile.store import Store

    store, layout = Store(target), Layout(CHUNK, SHARD, 3, 0, Zstd())
    target.mkdir()
    create(store, "a", pixels.shape, "uint8", layout)

    def one(place: tuple[int, int]) -> None:
        y, x = place[0] * SHARD, place[1] * SHARD
        write_shard(store, [f"a/c/0/{place[0]}/{place[1]}"], pixels[:, y : y + SHARD, x : x + SHARD], layout)

    _all(one, workers)


def _all(one: Callable[[tuple[int, int]], None], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, product(range(SIDE // SHARD), repeat=2)))


def zarr_python(pixels: Array, target: Path, workers: int, pipeline: str = "") -> None:
    """A shard for each call, from as many threads as there are workers."""
    import zarr
    from zarr.codecs import ZstdCodec

    options = {"threading.max_workers": workers, "async.concurrency": workers}
    if pipeline:
        options |= {"codec_pipeline.path": pipeline}
    with zarr.config.set(options):
        array = zarr.create_array(
            target / "a",
            shape=pixels.shape,
            dtype="uint8",
            chunks=(3, CHUNK, CHUNK),
            shards=(3, SHARD, SHARD),
            compressors=[ZstdCodec(level=3, checksum=True)],
        )

        def one(place: tuple[int, int]) -> None:
            y, x = place[0] * SHARD, place[1] * SHARD
            array[:, y : y + SHARD, x : x + SHARD] = pixels[:, y : y + SHARD, x : x + SHARD]

        _all(one, 1 if pipeline else workers)  # zarrs has threads of its own


def zarrs(pixels: Array, target: Path, workers: int) -> None:
    """zarr-python with the pipeline in Rust."""
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    import zarrs as _  # noqa: F401 (registers the pipeline)

    zarr_python(pixels, target, workers, "zarrs.ZarrsCodecPipeline")


def tensorstore(pixels: Array, target: Path, workers: int) -> None:
    """The C++ library; it syncs its files, as ours does."""
    import tensorstore as ts

    inner = {
        "chunk_shape": [3, CHUNK, CHUNK],
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3, "checksum": True}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    array = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{target}/a"},
            "metadata": {
                "shape": list(pixels.shape),
                "data_type": "uint8",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, SHARD, SHARD]}},
                "codecs": [{"name": "sharding_indexed", "configuration": inner}],
            },
        },
        create=True,
        context=ts.Context({"data_copy_concurrency": {"limit": workers}}),
    ).result()

    def one(place: tuple[int, int]) -> None:
        y, x = place[0] * SHARD, place[1] * SHARD
        array[:, y : y + SHARD, x : x + SHARD].write(pixels[:, y : y + SHARD, x : x + SHARD]).result()

    _all(one, workers)


WRITERS: dict[str, Write] = {f.__name__: f for f in (ours, zarr_python, zarrs, tensorstore)}


def once(name: str, source: Path, target: Path, workers: int) -> None:
    """Write with one of them, after a first small piece of work has loaded all it needs; check, and print the time."""
    import zarr

    pixels = np.load(source)
    begun = time.perf_counter()
    WRITERS[name](pixels, target, workers)
    seconds = time.perf_counter() - begun
    found = zarr.open_array(target / "a", mode="r")
    for y, x in product(range(0, SIDE, 2048), repeat=2):
        if not np.array_equal(found[:, y : y + 2048, x : x + 2048], pixels[:, y : y + 2048, x : x + 2048]):
            sys.exit(f"{name} wrote other pixels")
    print(json.dumps({"speed": SIDE**2 / 1e6 / seconds}))


def measure(folder: Path, rounds: int = ROUNDS) -> list[Figure]:
    """All of them in turns, on one worker and on all cores."""
    from ngfftile.geometry import Region
    from ngfftile.sources import open_source

    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    source = open_source(synthetic(folder, f"{SIDE}x{SIDE}"))
    source.read(Region(0, 0, SIDE, SIDE), 0, pixels)
    np.save(folder / "pixels.npy", np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def run(name: str, workers: int) -> float:
        clear(folder / name)
        speed: float = fresh("writers.py", name, folder / "pixels.npy", folder / name, workers)["speed"]
        return speed

    figures = []
    for workers in sorted({1, cores()}):
        runs = alternate([lambda name=name, workers=workers: run(name, workers) for name in WRITERS], rounds)
        for name, speeds in zip(WRITERS, runs, strict=True):
            title = f"write shards, {name.replace('_', '-')}, {workers} worker{'s' * (workers > 1)}"
            note = f"{statistics.median(speeds):.0f} MP/s; {spread(speeds, runs[0])} of ours"
            figures.append(Figure(title, ratio(speeds, runs[0]), "x", "", note))
    return figures


def main() -> None:
    """Measure, or be one run of a measurement."""
    if len(sys.argv) == 5:
        name, source, target, workers = sys.argv[1:]
        once(name, Path(source), Path(target), int(workers))
        return
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    given = arguments.parse_args()
    with workspace() as folder:
        show(measure(folder, given.rounds))


if __name__ == "__main__":
    main()
