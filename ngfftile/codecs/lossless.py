"""Codecs that give back what they got: zstd, blosc, JPEG-LS."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np

from ngfftile.codecs.protocol import (
    AXES,
    CRC,
    Array,
    Json,
    bytes_codec,
    fill,
    flat,
    held_by_thread,
    interleaved,
    sealed,
    transpose,
    unsealed,
)
from ngfftile.errors import OptionError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@dataclass(frozen=True, slots=True)
class Zstd:
    """Lossless, level 1 to 22: higher is smaller and slower; 3 keeps the encoder as fast as a JPEG decoder."""

    level: int = 3
    lossless: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """As `named` takes it."""
        return f"zstd:{self.level}"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = AXES) -> list[Json]:  # noqa: ARG002
        """Bytes, zstd with checksum."""
        return [bytes_codec(dtype), {"name": "zstd", "configuration": {"level": self.level, "checksum": True}}]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:  # noqa: ARG002
        """Numcodecs' zstd."""
        # The frames have checksums all the same; tensorstore refuses to be told.
        return {"id": "zstd", "level": self.level}

    def encode(self, chunk: Array) -> bytes:
        """One frame."""
        # A compressor works for one thread at a time, and its tables cost more to make than a chunk to compress.
        ours: dict[int, zstd.ZstdCompressor] = held_by_thread.__dict__.setdefault("zstd", {})
        if self.level not in ours:
            of = zstd.CompressionParameter
            about: dict[int, int] = {of.compression_level: self.level, of.checksum_flag: 1}
            ours[self.level] = zstd.ZstdCompressor(options=about)
        return ours[self.level].compress(chunk.data, zstd.ZstdCompressor.FLUSH_FRAME)

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a frame of exactly the chunk's size."""
        raw = flat(out)
        try:
            count = len(imagecodecs.zstd_decode(data, out=raw))
        except imagecodecs.ZstdError as error:
            raise ValueError(str(error)) from error
        if count != len(raw):
            raise ValueError("it decodes to fewer bytes than a chunk has")


@dataclass(frozen=True, slots=True)
class Blosc:
    """Lossless, what readers of OME-Zarr 0.4 know; zstd inside, shuffled where a pixel has more than a byte."""

    level: int = 3
    lossless: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """As `named` takes it."""
        return "blosc"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = AXES) -> list[Json]:  # noqa: ARG002
        """Bytes, blosc, crc32c."""
        options: Json = {
            "cname": "zstd",
            "clevel": self.level,
            "shuffle": "shuffle" if dtype.itemsize > 1 else "noshuffle",
            "typesize": dtype.itemsize,
            "blocksize": 0,
        }
        return [bytes_codec(dtype), {"name": "blosc", "configuration": options}, CRC]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:
        """Numcodecs' blosc; its frames have no checksum, the store's manifest has."""
        return {
            "id": "blosc",
            "cname": "zstd",
            "clevel": self.level,
            "shuffle": int(dtype.itemsize > 1),
            "blocksize": 0,
        }

    def encode(self, chunk: Array) -> bytes:
        """One frame and its crc32c; `bare` leaves that out."""
        return sealed(self.bare(chunk))

    def bare(self, chunk: Array) -> bytes:
        """One frame, for Zarr v2."""
        size = chunk.dtype.itemsize
        encoded: bytes = imagecodecs.blosc_encode(
            chunk.data, level=self.level, compressor="zstd", shuffle="shuffle" if size > 1 else "noshuffle",
            typesize=size, numthreads=1,
        )  # fmt: skip
        return encoded

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a frame that has its crc32c behind it."""
        raw = flat(out)
        try:
            decoded = imagecodecs.blosc_decode(unsealed(data), numthreads=1)
        except imagecodecs.BloscError as error:
            raise ValueError(str(error)) from error
        if len(decoded) != len(raw):
            raise ValueError("it decodes to fewer bytes than a chunk has")
        raw[:] = np.frombuffer(decoded, np.uint8)


@dataclass(frozen=True, slots=True)
class JpegLs:
    """JPEG-LS, lossless: as small as JPEG 2000 on labels and macros, and encoded four times as fast.

    Of colours their differences are stored (``HP2``); CharLS, which imagecodecs has, reads that.
    """

    lossless: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """Of the kind."""
        return "jpegls"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = AXES) -> list[Json]:  # noqa: ARG002
        """Transpose, imagecodecs' jpegls, crc32c."""
        return [transpose(axes), {"name": "imagecodecs_jpegls"}, CRC]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:  # noqa: ARG002
        """Nothing."""
        raise OptionError("JPEG-LS is not for OME-Zarr 0.4", "codec", "Use blosc or zstd, or --ngff 0.5.")

    def encode(self, chunk: Array) -> bytes:
        """One stream and its crc32c."""
        pixels = chunk[0] if len(chunk) == 1 else interleaved(chunk)
        differences = {"transformation": "HP2"} if len(chunk) == 3 else {}
        return sealed(imagecodecs.jpegls_encode(pixels, **differences))

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a stream that has its crc32c behind it."""
        try:
            pixels = imagecodecs.jpegls_decode(unsealed(data))
        except imagecodecs.JpeglsError as error:
            raise ValueError(str(error)) from error
        fill(out, pixels)
