"""How chunks are compressed: named presets, and the codecs that arrays of ours can have.

zstd is the default, always with its frame checksum: it finds every flipped byte, costs nothing that can be measured,
and every zstd reader checks it; without it most flipped bytes pass unseen. Shuffling is useless on bytes. The other
codecs have no checksum of their own, and get zarr's crc32c behind them.

A chunk is (channels, y, x). JPEG and JPEG 2000 want channels last, so a transpose stands before them; their names in
metadata are those of imagecodecs (package imagecodecs-zarr), which only zarr-python knows.
"""

from __future__ import annotations

import re
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import google_crc32c
import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ngfftile.errors import OptionError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Array = NDArray[Any]
Json = dict[str, Any]
_AXES = ("c", "y", "x")
_CRC: Json = {"name": "crc32c"}
_held = threading.local()


class Codec(Protocol):
    """Compresses the chunks of an array."""

    @property
    def name(self) -> str:
        """The name that `named` takes."""

    @property
    def lossless(self) -> bool:
        """Whether decoding gives back what was encoded."""

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = _AXES) -> list[Json]:
        """The inner codecs as Zarr v3 metadata have them."""

    def zarr2(self, dtype: np.dtype[Any]) -> Json:
        """The compressor as Zarr v2 metadata have it, or an OptionError where v2 readers know none."""

    def encode(self, chunk: Array) -> bytes:
        """Compress one chunk (channels, y, x), contiguous; releases the GIL."""

    def decode(self, data: bytes, out: Array) -> None:
        """Fill a chunk (channels, y, x), contiguous; ValueError where the bytes are damaged."""


def _transpose(axes: Sequence[str]) -> Json:
    """Channels last, as pictures have them."""
    order = [i for i, axis in enumerate(axes) if axis != "c"] + [list(axes).index("c")]
    return {"name": "transpose", "configuration": {"order": order}}


def _bytes_codec(dtype: np.dtype[Any]) -> Json:
    return {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"}


def _flat(out: Array) -> Array:
    return out.reshape(-1).view(np.uint8)


def _sealed(data: bytes) -> bytes:
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(4, "little")


def _unsealed(data: bytes) -> bytes:
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not match")
    return data[:-4]


@dataclass(frozen=True, slots=True)
class Zstd:
    """Lossless, level 1 to 22: higher is smaller and slower; 3 keeps the encoder as fast as a JPEG decoder."""

    level: int = 3
    lossless: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """As `named` takes it."""
        return f"zstd:{self.level}"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = _AXES) -> list[Json]:  # noqa: ARG002
        """Bytes, zstd with checksum."""
        return [_bytes_codec(dtype), {"name": "zstd", "configuration": {"level": self.level, "checksum": True}}]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:  # noqa: ARG002
        """Numcodecs' zstd."""
        # The frames have checksums all the same; tensorstore refuses to be told.
        return {"id": "zstd", "level": self.level}

    def encode(self, chunk: Array) -> bytes:
        """One frame."""
        # A compressor works for one thread at a time, and its tables cost more to make than a chunk to compress.
        ours: dict[int, zstd.ZstdCompressor] = _held.__dict__.setdefault("zstd", {})
        if self.level not in ours:
            of = zstd.CompressionParameter
            about: dict[int, int] = {of.compression_level: self.level, of.checksum_flag: 1}
            ours[self.level] = zstd.ZstdCompressor(options=about)
        return ours[self.level].compress(chunk.data, zstd.ZstdCompressor.FLUSH_FRAME)

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a frame of exactly the chunk's size."""
        raw = _flat(out)
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

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = _AXES) -> list[Json]:  # noqa: ARG002
        """Bytes, blosc, crc32c."""
        options: Json = {
            "cname": "zstd",
            "clevel": self.level,
            "shuffle": "shuffle" if dtype.itemsize > 1 else "noshuffle",
            "typesize": dtype.itemsize,
            "blocksize": 0,
        }
        return [_bytes_codec(dtype), {"name": "blosc", "configuration": options}, _CRC]

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
        return _sealed(self.bare(chunk))

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
        raw = _flat(out)
        try:
            decoded = imagecodecs.blosc_decode(_unsealed(data), numthreads=1)
        except imagecodecs.BloscError as error:
            raise ValueError(str(error)) from error
        if len(decoded) != len(raw):
            raise ValueError("it decodes to fewer bytes than a chunk has")
        raw[:] = np.frombuffer(decoded, np.uint8)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Lossy; of a source's own tiles (``tables``, ``space``) or at a quality.

    Parameters
    ----------
    quality
        1 to 100, as libjpeg counts.
    space
        Colours inside the stream: ycbcr, rgb or grayscale.
    subsampling
        Of the colours: 444, 422 or 420.
    tables
        Quantisation and Huffman tables that the streams share (TIFF's tag 347); None where each has its own.
    """

    quality: int = 90
    space: str = "ycbcr"
    subsampling: str = "444"
    tables: bytes | None = None
    lossless: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """As `named` takes it."""
        return f"jpeg:{self.quality}"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = _AXES) -> list[Json]:
        """Transpose, imagecodecs' jpeg, crc32c."""
        if dtype != np.uint8:
            raise OptionError(f"codec jpeg cannot hold {dtype}", "codec", "Use zstd.")
        options: Json = {
            "level": self.quality,
            "colorspace_data": "grayscale" if self.space == "grayscale" else "rgb",
            "colorspace_jpeg": self.space,
            "subsampling": self.subsampling,
        }
        if self.tables:
            options["tables"] = b64encode(self.tables).decode()
        return [_transpose(axes), {"name": "imagecodecs_jpeg", "configuration": options}, _CRC]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:  # noqa: ARG002
        """Nothing."""
        raise OptionError("codec jpeg is not for OME-Zarr 0.4", "codec", "Use blosc or zstd, or --ngff 0.5.")

    def sharing(self) -> Jpeg:
        """The same codec with its quantisation tables once, in the metadata, not in each stream."""
        grey = self.space == "grayscale"
        plain = replace(self, tables=None)
        sample = plain.stream(np.zeros((1 if grey else 3, 16, 16), np.uint8))
        tables = b"".join(segment for marker, segment in _segments(sample)[0] if marker == _DQT)
        return replace(self, tables=b"\xff\xd8" + tables + b"\xff\xd9")

    def stream(self, chunk: Array) -> bytes:
        """A chunk as a JPEG stream; an abbreviated one, without quantisation tables, where they are shared."""
        pixels = chunk[0] if len(chunk) == 1 else _interleaved(chunk)
        inside = {} if len(chunk) == 1 else {"colorspace": "rgb", "outcolorspace": self.space}
        encoded: bytes = imagecodecs.jpeg8_encode(
            pixels, level=self.quality, subsampling=self.subsampling, optimize=True, **inside
        )
        if self.tables is None:
            return encoded
        head, rest = _segments(encoded)
        return b"\xff\xd8" + b"".join(segment for marker, segment in head if marker != _DQT) + rest

    def encode(self, chunk: Array) -> bytes:
        """One stream and its crc32c."""
        return _sealed(self.stream(chunk))

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a stream that has its crc32c behind it."""
        try:
            pixels = imagecodecs.jpeg8_decode(
                _unsealed(data),
                tables=self.tables,
                colorspace=self.space,
                outcolorspace="grayscale" if self.space == "grayscale" else "rgb",
            )
        except imagecodecs.Jpeg8Error as error:
            raise ValueError(str(error)) from error
        _fill(out, pixels)

    def half(self, stream: bytes, out: Array) -> None:
        """Decode a stream at half its size into (channels, y, x): four of each block's coefficients make no pixel.

        Of pathology slides the result is within 47 to 55 dB of the mean of the decoded pixels, in a third to two thirds
        of the time.

        Raises
        ------
        ValueError
            The stream is damaged, or of another size.
        """
        tables = _segments(self.tables)[0] if self.tables else []
        head, rest = _segments(stream)
        # The decoder goes by what the stream says of its colours, which the TIFF around it may know better.
        mine = b"".join(segment for marker, segment in tables + head if marker not in {_JFIF, _ADOBE})
        whole = b"".join([b"\xff\xd8", _adobe(self.space), mine, rest])
        height, width = out.shape[1:]
        pixels = simplejpeg.decode_jpeg(
            whole, "GRAY" if len(out) == 1 else "RGB", min_height=height, min_width=width, min_factor=2
        )
        _fill(out, pixels)

    @staticmethod
    def seal(stream: bytes) -> bytes:
        """A source's own stream as a chunk."""
        return _sealed(stream)


# Markers of ITU-T T.81, table B.1.
_DQT, _JFIF, _ADOBE = 0xDB, 0xE0, 0xEE
_SOS, _EOI = b"\xff\xda", b"\xff\xd9"


def _adobe(space: str) -> bytes:
    """The segment that names the colours of three components; of one there is nothing to say."""
    transform = {"rgb": 0, "ycbcr": 1}.get(space)
    return b"" if transform is None else b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def _segments(stream: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The marker segments of a JPEG stream up to its scan, and the scan; ValueError where they break off."""
    found, at = [], 2
    while stream[at : at + 2] not in {_SOS, _EOI}:
        if stream[at : at + 1] != b"\xff" or at + 4 > len(stream):
            raise ValueError("its header is damaged")
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        found.append((stream[at + 1], stream[at : at + length]))
        at += length
    return found, stream[at:]


@dataclass(frozen=True, slots=True)
class Jpeg2000:
    """JPEG 2000: a source's own tiles, which it may have made with loss; what we encode is without.

    Parameters
    ----------
    lossless
        Whether the streams are ours.
    """

    lossless: bool = False

    @property
    def name(self) -> str:
        """Of the kind."""
        return "jpeg2000"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = _AXES) -> list[Json]:  # noqa: ARG002
        """Transpose, imagecodecs' jpeg2k, crc32c."""
        return [_transpose(axes), {"name": "imagecodecs_jpeg2k"}, _CRC]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:  # noqa: ARG002
        """Nothing."""
        raise OptionError("JPEG 2000 tiles are not for OME-Zarr 0.4", "codec", "Use blosc or zstd, or --ngff 0.5.")

    def encode(self, chunk: Array) -> bytes:
        """One reversible stream and its crc32c."""
        pixels = chunk[0] if len(chunk) == 1 else _interleaved(chunk)
        return _sealed(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k"))

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a stream that has its crc32c behind it."""
        try:
            pixels = imagecodecs.jpeg2k_decode(_unsealed(data))
        except imagecodecs.Jpeg2kError as error:
            raise ValueError(str(error)) from error
        _fill(out, pixels)

    @staticmethod
    def seal(stream: bytes) -> bytes:
        """A source's own stream as a chunk."""
        return _sealed(stream)


def _interleaved(chunk: Array) -> Array:
    """A chunk with channels last, in memory of this thread that the next call uses again."""
    held: Array | None = getattr(_held, "pixels", None)
    if held is None or held.dtype != chunk.dtype or held.shape != (*chunk.shape[1:], len(chunk)):
        held = _held.pixels = np.empty((*chunk.shape[1:], len(chunk)), chunk.dtype)
    held[...] = chunk.transpose(1, 2, 0)
    return held


def _fill(out: Array, pixels: Array) -> None:
    whole = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if whole.shape != out.shape or whole.dtype != out.dtype:
        raise ValueError(f"it decodes to {whole.dtype} {whole.shape}, a chunk is {out.dtype} {out.shape}")
    out[...] = whole


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


def parse(codecs: Sequence[Mapping[str, Any]], axes: Sequence[str] = _AXES) -> Codec | None:
    """The codec of an array's inner codecs, if it is one that `Codec.zarr3` gives; else None."""
    names = [str(c.get("name")) for c in codecs]
    options = [c.get("configuration") or {} for c in codecs]
    little = len(codecs) > 0 and options[0].get("endian", "little") == "little"
    if names == ["bytes", "zstd"] and little:
        return Zstd(max(1, int(options[1].get("level", 3))))
    if names == ["bytes", "blosc", "crc32c"] and little:
        return Blosc()
    last = _transpose(axes)["configuration"]["order"] if "c" in axes else None
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
    return None


# Annex K.1 of ITU-T T.81: the luminance table that libjpeg's quality scales.
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)


def jpeg_quality(stream: bytes) -> int:
    """The quality, as libjpeg counts, whose luminance table is nearest to a JPEG stream's first (or its tables').

    Examples
    --------
    >>> jpeg_quality(imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8), level=70))
    70
    """
    at = stream.find(b"\xff\xdb")
    raw = stream[at + 5 : at + 69]
    if at < 0 or len(raw) < 64 or stream[at + 4] >> 4:
        return 90
    # The sum does not depend on the zigzag order that the stream has its table in.
    total = sum(raw)
    base = np.array(_LUMINANCE.split(), int)
    sums = {}
    for quality in range(1, 101):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        sums[quality] = int(np.clip((base * scale + 50) // 100, 1, 255).sum())
    return min(sums, key=lambda q: (abs(sums[q] - total), -q))
