"""One conversion by a peer, as a process of its own: ``peer.py NAME SLIDE TARGET WORKERS``; `peers` measures it.

Runs in the peers' own environment, which has no ngfftile. Start-up counts, as it does for a command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SHARD, CHUNK = 4096, 256


def _level(source: Path, block: int | None) -> Any:
    """Level 0 of a slide on dask, (c, y, x): by tifffile's store, in its own tiles, or in larger blocks."""
    import dask.array as da
    import tifffile
    import zarr

    level = zarr.open_array(tifffile.imread(source, aszarr=True, series=0, level=0), mode="r")
    chunks = {} if block is None else {"chunks": (block, block, 3)}
    return da.from_zarr(level, **chunks).transpose(2, 0, 1)


def _mpp(source: Path) -> tuple[float, float]:
    """Micrometres per pixel along y and x, as a careful user would look them up."""
    import re

    import tifffile

    with tifffile.TiffFile(source) as tiff:
        page: Any = tiff.pages[0]
        told = re.search(r"MPP = ([0-9.]+)", page.description)
        if told:
            return float(told[1]), float(told[1])
        per_x, per_y = page.get_resolution("micrometer")
        return 1 / per_y, 1 / per_x


def ome_zarr_default(source: Path, target: Path) -> None:
    """As its documentation shows it: ``write_image`` with the array, the path and the axes."""
    from ome_zarr.writer import write_image

    write_image(_level(source, None), str(target), axes="cyx")


def ome_zarr_fair(source: Path, target: Path) -> None:
    """The work that ngfftile does: all levels, local mean, the same chunks, shards and codec, blocks of a shard."""
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image
    from zarr.codecs import ZstdCodec

    image = _level(source, SHARD)
    y, x = _mpp(source)
    write_image(
        image,
        str(target),
        axes="cyx",
        scale_factors=[2**k for k in range(1, 20) if max(image.shape[1:]) >> (k - 1) > CHUNK],
        method=Methods.LOCAL_MEAN,
        scale={"c": 1.0, "y": y, "x": x},
        axes_units={"y": "micrometer", "x": "micrometer"},
        storage_options={
            "chunks": (3, CHUNK, CHUNK),
            "shards": (3, SHARD, SHARD),
            "compressors": [ZstdCodec(level=3, checksum=True)],
        },
    )


def ngff_zarr_default(source: Path, target: Path) -> None:
    """Its command with its defaults; ``--series 0`` leaves label, macro and thumbnail out."""
    from ngff_zarr.cli import main as run

    run(["-i", str(source), "-o", str(target), "--series", "0", "--quiet"])


def ngff_zarr_fair(source: Path, target: Path) -> None:
    """Its command with the same chunks, shards and codec, the mean, and the slide's mpp."""
    from ngff_zarr.cli import main as run

    y, x = map(str, _mpp(source))
    # The order of chunks is the slide's (y, x, c), that of shards the store's (c, y, x).
    layout = ["-c", str(CHUNK), str(CHUNK), "3", "--chunks-per-shard", "1", *[str(SHARD // CHUNK)] * 2]
    kind = ["-m", METHOD, "--codec", "zstd", "--compression-level", "3", "--no-omero"]
    place = ["-s", "y", y, "x", x, "-u", "y", "micrometer", "x", "micrometer"]
    run(["-i", str(source), "-o", str(target), "--series", "0", "--quiet", *layout, *kind, *place])


def vips_dzsave(source: Path, target: Path) -> None:
    """DeepZoom with its defaults: JPEG tiles, lossy, and no OME-Zarr; a yardstick of speed."""
    import pyvips

    pyvips.Image.new_from_file(str(source), access="sequential").dzsave(str(target))


def vips_tiffsave(source: Path, target: Path) -> None:
    """A pyramid in TIFF, lossless, in tiles of 256 pixels; its own library lacks zstd. A yardstick of speed."""
    import pyvips

    image = pyvips.Image.new_from_file(str(source), access="sequential")
    options = {
        "compression": "deflate",
        "level": 1,
        "predictor": "horizontal",
        "tile_width": CHUNK,
        "tile_height": CHUNK,
    }
    image.tiffsave(str(target), tile=True, pyramid=True, bigtiff=True, **options)


METHOD = "dask_bin_shrink"
PEERS = {
    f.__name__: f
    for f in (ome_zarr_default, ome_zarr_fair, ngff_zarr_default, ngff_zarr_fair, vips_dzsave, vips_tiffsave)
}


def main() -> None:
    """Run one peer."""
    name, source, target = sys.argv[1:]
    PEERS[name](Path(source), Path(target))


if __name__ == "__main__":
    main()
