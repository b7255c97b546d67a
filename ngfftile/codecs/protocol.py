"""What a codec is, and what codecs share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Json = dict[str, Any]
AXES = ("c", "y", "x")
CRC: Json = {"name": "crc32c"}
held_by_thread = threading.local()


class Codec(Protocol):
    """Compresses the chunks of an array."""

    @property
    def name(self) -> str:
        """The name that `named` takes."""

    @property
    def lossless(self) -> bool:
        """Whether decoding gives back what was encoded."""

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = AXES) -> list[Json]:
        """The inner codecs as Zarr v3 metadata have them."""

    def zarr2(self, dtype: np.dtype[Any]) -> Json:
        """The compressor as Zarr v2 metadata have it, or an OptionError where v2 readers know none."""

    def encode(self, chunk: Array) -> bytes:
        """Compress one chunk (channels, y, x), contiguous; releases the GIL."""

    def decode(self, data: bytes, out: Array) -> None:
        """Fill a chunk (channels, y, x), contiguous; ValueError where the bytes are damaged."""


def transpose(axes: Sequence[str]) -> Json:
    """Channels last, as pictures have them."""
    order = [i for i, axis in enumerate(axes) if axis != "c"] + [list(axes).index("c")]
    return {"name": "transpose", "configuration": {"order": order}}


def bytes_codec(dtype: np.dtype[Any]) -> Json:
    """Samples as little-endian bytes."""
    return {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"}


def flat(out: Array) -> Array:
    """A contiguous array's bytes."""
    return out.reshape(-1).view(np.uint8)


def sealed(data: bytes) -> bytes:
    """A chunk with its crc32c behind it."""
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(4, "little")


def unsealed(data: bytes) -> bytes:
    """The chunk without its crc32c; ValueError where that is another."""
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not match")
    return data[:-4]


def interleaved(chunk: Array) -> Array:
    """A chunk with channels last, in memory of this thread that the next call uses again."""
    held: Array | None = getattr(held_by_thread, "pixels", None)
    if held is None or held.dtype != chunk.dtype or held.shape != (*chunk.shape[1:], len(chunk)):
        held = held_by_thread.pixels = np.empty((*chunk.shape[1:], len(chunk)), chunk.dtype)
    held[...] = chunk.transpose(1, 2, 0)
    return held


def fill(out: Array, pixels: Array) -> None:
    """Lay a picture, (y, x) or (y, x, channels), into a chunk; ValueError where it does not fit."""
    whole = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if whole.shape != out.shape or whole.dtype != out.dtype:
        raise ValueError(f"it decodes to {whole.dtype} {whole.shape}, a chunk is {out.dtype} {out.shape}")
    out[...] = whole
