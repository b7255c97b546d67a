"""One conversion in a process of its own: ``contenders.py NAME SOURCE TARGET WORKERS``; prints what it cost as JSON.

Libraries are imported before the clock starts; start-up is measured apart, by ``convert.py``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CROP = 8192  # pixels: peers convert this square of the slide, for their speed does not allow more
Run = Callable[[Path, Path, int], float]


def ours() -> Run:
    """Load ngfftile."""
    import ngfftile as nt

    convert = nt.convert

    def run(source: Path, target: Path, workers: int) -> float:
        return convert(source, target, workers=workers).pixels / 1e6

    return run


def kept() -> Run:
    """Ours, that keeps the source's own tiles."""
    import ngfftile as nt

    convert = nt.convert

    def run(source: Path, target: Path, workers: int) -> float:
        return convert(source, target, codec="source", workers=workers).pixels / 1e6

    return run


def roofline() -> Run:
    """Load the libraries alone."""
    import roofline as bare

    return bare.run


def synced() -> Run:
    """The roofline, each shard synced to the disk."""
    import roofline as bare

    return lambda source, target, workers: bare.run(source, target, workers, sync=True)


def _lazy(source: Path) -> Any:
    """Level 0 of the slide, cropped, (c, y, x), as dask reads it through tifffile's zarr store."""
    import dask.array as da
    import tifffile
    import zarr

    level = zarr.open_array(tifffile.imread(source, aszarr=True, series=0, level=0), mode="r")
    crop = da.from_zarr(level, chunks=(4096, 4096, 3))[:CROP, :CROP]
    return crop.transpose(2, 0, 1)


def naive() -> Run:
    """What one writes first: tifffile, dask.array, its coarsen, and zarr-python; same chunks, shards and codec."""
    import dask
    import dask.array as da
    import numpy as np
    import zarr
    from zarr.codecs import ZstdCodec

    def run(source: Path, target: Path, workers: int) -> float:
        image = level = _lazy(source)
        arrays, writes = [], []
        while True:
            spec = {
                "chunks": (3, 256, 256),
                "shards": (3, 4096, 4096),
                "compressors": [ZstdCodec(level=3, checksum=True)],
            }
            arrays.append(zarr.create_array(target / str(len(arrays)), shape=level.shape, dtype="uint8", **spec))
            writes.append(level.rechunk((3, 4096, 4096)))
            if max(level.shape[1:]) <= 256:
                break
            mean = da.coarsen(np.mean, level, {1: 2, 2: 2}, trim_excess=True)
            level = (mean + 0.5).astype(np.uint8)
        with dask.config.set(scheduler="threads", num_workers=workers):
            da.store(writes, arrays, lock=False)
        return float(image.shape[1] * image.shape[2] / 1e6)

    return run


def ome_zarr() -> Run:
    """ome-zarr-py's own writer, with the same chunks, shards and codec, and its dask mean."""
    import dask
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image
    from zarr.codecs import ZstdCodec

    def run(source: Path, target: Path, workers: int) -> float:
        image = _lazy(source)
        factors = [2**k for k in range(1, 16) if max(image.shape[1:]) >> (k - 1) > 256]
        options = {
            "chunks": (3, 256, 256),
            "shards": (3, 4096, 4096),
            "compressors": [ZstdCodec(level=3, checksum=True)],
        }
        with dask.config.set(scheduler="threads", num_workers=workers):
            write_image(
                image,
                str(target),
                axes="cyx",
                scale_factors=factors,
                method=Methods.LOCAL_MEAN,
                storage_options=options,
            )
        return float(image.shape[1] * image.shape[2] / 1e6)

    return run


CONTENDERS = {f.__name__: f for f in (ours, kept, roofline, synced, naive, ome_zarr)}


def main() -> None:
    """Run one contender."""
    name, source, target, workers = sys.argv[1:]
    run = CONTENDERS[name]()
    begun, busy = time.perf_counter(), time.process_time()
    megapixels = run(Path(source), Path(target), int(workers))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "megapixels": megapixels}))


if __name__ == "__main__":
    main()
