"""How chunks are compressed: named presets, and the codecs that arrays of ours can have.

zstd is the default, always with its frame checksum: it finds every flipped byte, costs nothing that can be measured,
and every zstd reader checks it; without it most flipped bytes pass unseen. Shuffling is useless on bytes. The other
codecs have no checksum of their own, and get zarr's crc32c behind them.

A chunk is (channels, y, x). JPEG and JPEG 2000 want channels last, so a transpose stands before them; their names in
metadata are those of imagecodecs (package imagecodecs-zarr), which only zarr-python knows.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from ngfftile.codecs.jpeg import Jpeg, Jpeg2000, jpeg_quality
from ngfftile.codecs.lossless import Blosc, JpegLs, Zstd
from ngfftile.codecs.protocol import AXES, Codec, transpose
from ngfftile.errors import OptionError

__all__ = ["Blosc", "Codec", "Jpeg", "Jpeg2000", "JpegLs", "Zstd", "jpeg_quality", "named", "parse"]


def named(name: str) -> Codec:
    """The codec of a preset's name: ``zstd``, ``zstd:LEVEL``, ``blosc``, ``jpeg:QUALITY``.

    Raises
    ------
    OptionError
        Any other name.

    Examples
    --------
    >>> named("zstd:9")
    Zstd(level=9, lossless=True)
    """
    match = re.fullmatch(r"(zstd|blosc|jpeg)(?::(\d+))?", name)
    kind, value = (match[1], int(match[2]) if match[2] else None) if match else ("", None)
    if kind == "zstd" and 1 <= (value or 3) <= 22 and value != 0:
        return Zstd(value or 3)
    if kind == "blosc" and value is None:
        return Blosc()
    if kind == "jpeg" and value and 1 <= value <= 100:
        # libvips' rule: colours are subsampled below 90.
        return Jpeg(value, subsampling="444" if value >= 90 else "420")
    raise OptionError(
        f"codec is {name!r}", where="codec", mend="Use zstd[:1-22], blosc, jpeg:1-100 (lossy), or source."
    )


def parse(codecs: Sequence[Mapping[str, Any]], axes: Sequence[str] = AXES) -> Codec | None:
    """The codec of an array's inner codecs, if it is one that `Codec.zarr3` gives; else None."""
    names = [str(c.get("name")) for c in codecs]
    options = [c.get("configuration") or {} for c in codecs]
    little = len(codecs) > 0 and options[0].get("endian", "little") == "little"
    if names == ["bytes", "zstd"] and little:
        return Zstd(max(1, int(options[1].get("level", 3))))
    if names == ["bytes", "blosc", "crc32c"] and little:
        return Blosc()
    last = transpose(axes)["configuration"]["order"] if "c" in axes else None
    transposed = bool(options) and list(options[0].get("order", ())) == last
    if names == ["transpose", "imagecodecs_jpeg", "crc32c"] and transposed:
        about = options[1]
        tables = about.get("tables")
        known = {"tables", "level", "colorspace_jpeg", "colorspace_data", "subsampling"}
        if set(about) <= known and about.get("colorspace_jpeg") in {"ycbcr", "rgb", "grayscale"}:
            return Jpeg(
                int(about.get("level", 90)),
                about["colorspace_jpeg"],
                str(about.get("subsampling", "444")),
                b64decode(tables) if tables else None,
            )
    if names == ["transpose", "imagecodecs_jpeg2k", "crc32c"] and transposed and not options[1]:
        return Jpeg2000()
    if names == ["transpose", "imagecodecs_jpegls", "crc32c"] and transposed and not options[1]:
        return JpegLs()
    return None
