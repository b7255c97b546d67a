"""A look at a TIFF's chain of directories before a library follows it.

A library that trusts the offsets can be led in circles for ever (libtiff's own tests hold three such files), or to a
billion directories. TIFF 6.0, section 2; BigTIFF: https://www.awaresystems.be/imaging/tiff/bigtiff.html.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ngfftile.errors import SourceError
from ngfftile.sources.protocol import RefusedError

MOST = 1000  # directories; real slides have fewer than 100, stacks of channels and planes a few hundred
SUBIFDS, NDPI_MARK = 330, 65420
_WIDTH = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_LAYOUT = {
    # magic: (directory count, entry, next offset, value field), as struct formats and its size
    42: ("H", "HHI4s", "I", 4),
    43: ("Q", "HHQ8s", "Q", 8),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    kind: int
    count: int
    field: bytes


def check_directories(path: Path) -> None:
    """Follow every directory and sub-directory once.

    Raises
    ------
    RefusedError
        Not a TIFF.
    SourceError
        A loop; an offset outside the file; more than 1,000 directories.
    """
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(offset: int, count: int) -> bytes:
            if offset + count > size:
                raise SourceError(
                    f"a directory points to byte {offset + count}, the file ends at {size}",
                    str(path),
                    "The file is truncated: copy it again.",
                )
            file.seek(offset)
            return file.read(count)

        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        magic = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 8 else 0
        if magic not in _LAYOUT:
            raise RefusedError("not a TIFF", str(path))
        if magic == 43 and len(head) < 16:
            raise SourceError("the header is cut short", str(path), "Copy the file again.")
        first = struct.unpack(order + ("I" if magic == 42 else "Q"), head[4:8] if magic == 42 else head[8:16])[0]
        _walk(path, read, order, magic, first)


def _walk(path: Path, read: Callable[[int, int], bytes], order: str, magic: int, first: int) -> None:
    seen: set[int] = set()
    waiting = [first]
    while waiting:
        offset = waiting.pop()
        chain: set[int] = set()
        # Writers list every sub-directory and chain them too, so a chain may meet what another has seen: that is its
        # end. Only a chain that meets itself is a loop.
        while offset and offset not in seen - chain:
            if offset in chain:
                raise SourceError(
                    f"its directories run in a loop (back to byte {offset})", str(path), "The file is damaged."
                )
            chain.add(offset)
            seen.add(offset)
            if len(seen) > MOST:
                raise SourceError(f"more than {MOST} image directories", str(path), "This is not a slide.")
            entries, following = _directory(read, order, magic, offset)
            if any(entry.tag == NDPI_MARK for entry in entries):
                return  # Hamamatsu bends the format (64-bit offsets in a classic TIFF); OpenSlide checks it
            waiting += [o for e in entries if e.tag == SUBIFDS for o in _offsets(read, order, magic, e)]
            offset = following


def _directory(read: Callable[[int, int], bytes], order: str, magic: int, offset: int) -> tuple[list[_Entry], int]:
    count_format, entry_format, next_format, _ = _LAYOUT[magic]
    count_size, entry_size, next_size = (struct.calcsize(order + f) for f in (count_format, entry_format, next_format))
    count = struct.unpack(order + count_format, read(offset, count_size))[0]
    body = read(offset + count_size, count * entry_size + next_size)
    entries = [_Entry(*fields) for fields in struct.iter_unpack(order + entry_format, body[: count * entry_size])]
    return entries, struct.unpack(order + next_format, body[count * entry_size :])[0]


def _offsets(read: Callable[[int, int], bytes], order: str, magic: int, entry: _Entry) -> list[int]:
    width = _WIDTH.get(entry.kind, 4)
    field_size = _LAYOUT[magic][3]
    if entry.count > MOST:
        raise SourceError(f"a directory names {entry.count} sub-directories", mend="This is not a slide.")
    raw = entry.field
    if width * entry.count > field_size:
        raw = read(struct.unpack(order + ("I" if magic == 42 else "Q"), entry.field)[0], width * entry.count)
    return list(struct.unpack(order + f"{entry.count}{'I' if width == 4 else 'Q'}", raw[: width * entry.count]))
