"""What a compressed tile says of itself, read before it is decoded.

A stream of 300 bytes can declare a picture of gigabytes, or a million parts of a small one, and a decoder believes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

JPEG = {6, 7, 33007, 34892}
JPEG2000 = {33003, 33004, 33005, 34712}
WEBP = {34927, 50001}
JPEGXR = {22610, 34934}
JPEGXL = {50002, 52546}
PNG, LERC = 34933, 34887
FRAMED = JPEG | JPEG2000 | WEBP | JPEGXR | JPEGXL | {PNG, LERC}
# Of one stream: scans of a progressive JPEG, each a walk over all of it; JPEG 2000's tiles, and its packets, for each
# of which OpenJPEG keeps two bytes. Scanners write one tile, and some dozen packets.
MOST_SCANS, MOST_TILES, MOST_PACKETS = 500, 1024, 1 << 24
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
    samples
        Components of a pixel; 1 of formats that cannot have more than four.
    """

    width: int
    height: int
    subsampling: str = "444"
    mixed: bool = True
    samples: int = 1


def whole(data: bytes, compression: int) -> bool:
    """Whether a JPEG or JPEG 2000 stream has its end; a decoder fills what is cut off, and says nothing.

    Writers pad with zeros. ITU-T T.81, B.1.1.3 (EOI), and T.800, A.4.4 (EOC): both are FFD9.
    """
    return compression not in JPEG | JPEG2000 or data.rstrip(b"\0").endswith(b"\xff\xd9")


def frame(data: bytes, compression: int) -> Frame | None:
    """The header of a stream of TIFF's ``compression``; None where it has none, or none that is understood."""
    kinds = (
        (JPEG, _jpeg), (JPEG2000, _jpeg2000), (WEBP, _webp), (JPEGXR, _jpegxr), (JPEGXL, _jpegxl), ({PNG}, _png),
        ({LERC}, _lerc),
    )  # fmt: skip
    try:
        return next((read(data) for codes, read in kinds if compression in codes), None)
    except (struct.error, IndexError):
        return None


def excess(data: bytes, compression: int) -> str:
    """Why a stream whose picture is of the right size would take too long or too much memory; empty if it would not."""
    if compression in JPEG and (scans := data.count(b"\xff\xda")) > MOST_SCANS:
        return f"it has {scans} scans, {MOST_SCANS} are the most"
    try:
        return _jpeg2000_excess(data) if compression in JPEG2000 else ""
    except (struct.error, IndexError):
        return "its header is cut short"


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
            return Frame(width, height, {0x11: "444", 0x21: "422"}.get(factors, "420"), samples=count)
        elif marker == 0xDA:
            return None
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kinds of the boxes of a file like JP2, and where their contents begin: ITU-T T.800, annex I.4."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        yield kind, at + head
        if length < head:  # 0 is the last one
            return
        at += length


def _codestream(data: bytes) -> int:
    """Where JPEG 2000's codestream begins, bare or in a JP2 file; -1 where there is none."""
    at = next((at for kind, at in _boxes(data) if kind == b"jp2c"), -1) if data[4:8] == b"jP  " else 0
    return at if at >= 0 and data.startswith(b"\xff\x4f\xff\x51", at) else -1


def _headers(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Markers of a codestream's main header and its tile-parts', and where each lies: ITU-T T.800, annex A."""
    following = 0
    at += 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        marker = data[at + 1]
        if marker == 0x90:  # SOT, start of a tile-part, says how long that is; 0 is the last one
            (length,) = struct.unpack_from(">I", data, at + 6)
            following = at + length if length > 12 else len(data)
        if marker == 0x93:  # SOD, start of its data
            at = following
            continue
        yield marker, at
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _jpeg2000(data: bytes) -> Frame | None:
    # ITU-T T.800, annex A.5.1 and A.6.1: SIZ follows SOC at once. COD's fourth byte of style says whether components
    # are transformed.
    at = _codestream(data)
    if at < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    (count,) = struct.unpack_from(">H", data, at + 40)
    styles = (data[where + 8] == 1 for marker, where in _headers(data, at) if marker == 0x52)
    return Frame(right - left, bottom - top, mixed=next(styles, False), samples=count)


def _jpeg2000_excess(data: bytes) -> str:
    at = _codestream(data)
    right, bottom, left, top, *tile, across, down = struct.unpack_from(">8I", data, at + 8)
    (count,) = struct.unpack_from(">H", data, at + 40)
    if min(tile) < 1 or across > left or down > top:
        return "its tiles do not cover it"
    tiles = -(-(right - across) // tile[0]) * -(-(bottom - down) // tile[1])
    if tiles * count > MOST_TILES:
        return f"it has {tiles} tiles of {count} components, {MOST_TILES} are the most"
    size = min(right - left, tile[0]), min(bottom - top, tile[1])
    layers = 1
    for marker, where in _headers(data, at):
        # COD; COC, of one component, has the same but progression, layers and transform.
        if marker not in {0x52, 0x53}:
            continue
        if marker == 0x52:
            layers = max(layers, struct.unpack_from(">H", data, where + 6)[0])
        style = where + 4 if marker == 0x52 else where + 5 + (count > 256)
        parts = style + 5 if marker == 0x52 else style + 1
        packets = layers * count * (data[parts] + 1) * _precincts(data, parts, size, sized=bool(data[style] & 1))
        if packets > MOST_PACKETS:
            return f"it has {packets} packets, {MOST_PACKETS} are the most"
    return ""


def _precincts(data: bytes, at: int, size: tuple[int, int], *, sized: bool) -> int:
    """The most precincts of one resolution: T.800, A.6.1 and B.6; ``at`` is where the number of resolutions stands."""
    levels, most = data[at], 1
    for i in range(levels + 1 if sized else 0):
        sides = data[at + 5 + i] & 15, data[at + 5 + i] >> 4
        # One more, of a grid that does not begin where the picture does.
        wide, high = (((pixels >> (levels - i)) >> side) + 2 for pixels, side in zip(size, sides, strict=True))
        most = max(most, wide * high)
    return most


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


def _png(data: bytes) -> Frame | None:
    # PNG specification, 11.2.2: IHDR is the first chunk.
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR":
        return None
    return Frame(*struct.unpack_from(">II", data, 16))


def _jpegxr(data: bytes) -> Frame | None:
    # ITU-T T.832, 8.3: sides less one behind 12 bytes of signature and flags, of which one makes them short.
    at = data.find(b"WMPHOTO\0")
    if at < 0:
        return None
    width, height = struct.unpack_from(">HH" if data[at + 10] & 0x80 else ">II", data, at + 12)
    return Frame(width + 1, height + 1)


def _jpegxl(data: bytes) -> Frame | None:
    # ISO 18181-1, D.2 (SizeHeader), in a codestream or a box of one (18181-2); bits come lowest first.
    at = 0
    if data[4:8] == b"JXL ":
        at = next((at + 4 * (kind == b"jxlp") for kind, at in _boxes(data) if kind in {b"jxlc", b"jxlp"}), len(data))
    if not data.startswith(b"\xff\x0a", at):
        return None
    bits, used = int.from_bytes(data[at + 2 : at + 18], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    above, below = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[take(3)]
    return Frame(height * above // below if above else side(), height)


def _lerc(data: bytes) -> Frame | None:
    # Esri's Lerc2: version, a checksum from 3 on, rows, columns, from 4 on values of a pixel; a blob for each band.
    if not data.startswith(b"Lerc2 "):
        return None
    (version,) = struct.unpack_from("<i", data, 6)
    height, width, depth = struct.unpack_from("<3i", data, 14 if version >= 3 else 10)
    return Frame(width, height, samples=max(1, depth if version >= 4 else 1) * data.count(b"Lerc2 "))
