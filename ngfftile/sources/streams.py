"""What a compressed tile says of itself, read before it is decoded.

A stream of 300 bytes can declare a picture of gigabytes, and a decoder believes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

JPEG = {6, 7, 33007, 34892}
JPEG2000 = {33003, 33004, 33005, 34712}
WEBP = {34927, 50001}
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_NOT_FRAMES = {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Frame:
    """A stream's header.

    Parameters
    ----------
    width, height
        Of the picture that it decodes to.
    subsampling
        Of its colours, 444, 422 or 420; of JPEG only.
    mixed
        Whether the stream's own transform makes red, green and blue of its components; of JPEG 2000 only.
    """

    width: int
    height: int
    subsampling: str = "444"
    mixed: bool = True


def whole(data: bytes, compression: int) -> bool:
    """Whether a JPEG or JPEG 2000 stream has its end; a decoder fills what is cut off, and says nothing.

    Writers pad with zeros. ITU-T T.81, B.1.1.3 (EOI), and T.800, A.4.4 (EOC): both are FFD9.
    """
    return compression not in JPEG | JPEG2000 or data.rstrip(b"\0").endswith(b"\xff\xd9")


def frame(data: bytes, compression: int) -> Frame | None:
    """The header of a stream of TIFF's ``compression``; None where it has none, or none that is understood."""
    try:
        if compression in JPEG:
            return _jpeg(data)
        if compression in JPEG2000:
            return _jpeg2000(data)
        if compression in WEBP:
            return _webp(data)
    except (struct.error, IndexError):
        pass
    return None


def _jpeg(data: bytes) -> Frame | None:
    # ITU-T T.81, annex B: the frame header SOFn gives precision, lines, samples per line, and the components' factors.
    at = 0
    while (at := data.find(b"\xff", at)) >= 0:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE or marker == 0:
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            height, width, count = struct.unpack_from(">HHB", data, at + 5)
            factors = data[at + 11] if count == 3 else 0x11
            return Frame(width, height, {0x11: "444", 0x21: "422"}.get(factors, "420"))
        elif marker == 0xDA:
            return None
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _jpeg2000(data: bytes) -> Frame | None:
    # ITU-T T.800, annex A.5.1 and A.6.1: SIZ follows SOC at once; in a JP2 file they lie inside a box. COD's fourth
    # byte of style says whether components are transformed.
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    mixed = False
    at += 2
    while data[at] == 0xFF and data[at + 1] != 0x90:
        if data[at + 1] == 0x52:
            mixed = data[at + 8] == 1
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return Frame(right - left, bottom - top, mixed=mixed)


def _webp(data: bytes) -> Frame | None:
    # RFC 9649: the extended header has the canvas less one in 24 bits; VP8 and VP8L have 14 bits for each side.
    kind = data[12:16]
    if kind == b"VP8X":
        return Frame(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Frame(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Frame((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return None
