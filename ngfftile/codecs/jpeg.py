"""JPEG and JPEG 2000: a source's own tiles, and pictures with loss."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg

from ngfftile.codecs.protocol import AXES, CRC, Array, Json, fill, interleaved, sealed, transpose, unsealed
from ngfftile.errors import OptionError

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

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = AXES) -> list[Json]:
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
        return [transpose(axes), {"name": "imagecodecs_jpeg", "configuration": options}, CRC]

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
        pixels = chunk[0] if len(chunk) == 1 else interleaved(chunk)
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
        return sealed(self.stream(chunk))

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a stream that has its crc32c behind it."""
        try:
            pixels = imagecodecs.jpeg8_decode(
                unsealed(data),
                tables=self.tables,
                colorspace=self.space,
                outcolorspace="grayscale" if self.space == "grayscale" else "rgb",
            )
        except imagecodecs.Jpeg8Error as error:
            raise ValueError(str(error)) from error
        fill(out, pixels)

    def half(self, stream: bytes, out: Array) -> None:
        """Decode a stream at half its size into (channels, y, x), in a third to two thirds of the time.

        libjpeg-turbo makes means of 2 x 2 pixels of the coefficients, but for rounding; of colours that are stored at
        half size it takes each as it is. Of slides the result is within 47 to 55 dB of the decoded pixels' mean.

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
        fill(out, pixels)

    @staticmethod
    def seal(stream: bytes) -> bytes:
        """A source's own stream as a chunk."""
        return sealed(stream)


@dataclass(frozen=True, slots=True)
class Jpeg2000:
    """JPEG 2000: a source's own tiles, which it may have made with loss; what we encode is without."""

    lossless: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """Of the kind."""
        return "jpeg2000"

    def zarr3(self, dtype: np.dtype[Any], axes: Sequence[str] = AXES) -> list[Json]:  # noqa: ARG002
        """Transpose, imagecodecs' jpeg2k, crc32c."""
        return [transpose(axes), {"name": "imagecodecs_jpeg2k"}, CRC]

    def zarr2(self, dtype: np.dtype[Any]) -> Json:  # noqa: ARG002
        """Nothing."""
        raise OptionError("JPEG 2000 tiles are not for OME-Zarr 0.4", "codec", "Use blosc or zstd, or --ngff 0.5.")

    def encode(self, chunk: Array) -> bytes:
        """One reversible stream and its crc32c."""
        pixels = chunk[0] if len(chunk) == 1 else interleaved(chunk)
        return sealed(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k"))

    def decode(self, data: bytes, out: Array) -> None:
        """Decode a stream that has its crc32c behind it."""
        try:
            pixels = imagecodecs.jpeg2k_decode(unsealed(data))
        except imagecodecs.Jpeg2kError as error:
            raise ValueError(str(error)) from error
        fill(out, pixels)

    @staticmethod
    def seal(stream: bytes) -> bytes:
        """A source's own stream as a chunk."""
        return sealed(stream)


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
