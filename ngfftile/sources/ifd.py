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

# Real slides have fewer than 100 directories; stacks of channels, planes and points in time some thousands. Each is
# another part of the file, so that the sum of their bytes is bounded too.
MOST, MOST_SUBIFDS = 20_000, 1000
MOST_TAG = 64 << 20  # bytes of one tag's values: the places of eight million tiles
SUBIFDS, NDPI_MARK = 330, 65420
# What pages must have in common to be decoded alike, with TIFF's defaults: width, length, bits, compression, colours,
# bit order, orientation, samples, rows of a strip, planes, predictor, tile sides, sample format, colours' subsampling.
_DEFAULTS = {256: 0, 257: 0, 258: 1, 259: 1, 262: 0, 266: 1, 274: 1, 277: 1, 278: 0, 284: 1, 317: 1, 322: 0, 323: 0}
_DEFAULTS |= {339: 1, 530: 0}
Likeness = tuple[int, ...]
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


def check_directories(path: Path) -> dict[int, Likeness]:
    """Follow every directory and sub-directory once.

    Returns
    -------
    dict
        By each directory's place in the file, what it must have in common with others of one picture.

    Raises
    ------
    RefusedError
        Not a TIFF.
    SourceError
        A loop; an offset outside the file; more than 20,000 directories.
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
        return _walk(path, read, order, magic, first)


def _walk(path: Path, read: Callable[[int, int], bytes], order: str, magic: int, first: int) -> dict[int, Likeness]:
    seen: dict[int, Likeness] = {}
    waiting, tags = [first], 0
    while waiting:
        offset = waiting.pop()
        chain: set[int] = set()
        # Writers list every sub-directory and chain them too, so a chain may meet what another has seen: that is its
        # end. Only a chain that meets itself is a loop.
        while offset and (offset not in seen or offset in chain):
            if offset in chain:
                raise SourceError(
                    f"its directories run in a loop (back to byte {offset})", str(path), "The file is damaged."
                )
            entries, following = _directory(read, order, magic, offset)
            chain.add(offset)
            seen[offset] = _likeness(entries, order)
            tags += len(entries)
            if len(seen) > MOST or tags * 12 > path.stat().st_size:
                raise SourceError(
                    f"{len(seen)} image directories with {tags} tags, more than it can hold or {MOST}",
                    str(path),
                    "This is not a slide.",
                )
            if any(entry.tag == NDPI_MARK for entry in entries):
                return {}  # Hamamatsu bends the format (64-bit offsets in a classic TIFF); OpenSlide checks it
            _check_sizes(path, entries)
            waiting += [o for e in entries if e.tag == SUBIFDS for o in _offsets(read, order, magic, e)]
            offset = following
    return seen


def _check_sizes(path: Path, entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.count * _WIDTH.get(entry.kind, 1) > MOST_TAG:
            raise SourceError(f"tag {entry.tag} has {entry.count} values", str(path), "This is not a slide.")


def _likeness(entries: list[_Entry], order: str) -> Likeness:
    found = dict(_DEFAULTS)
    for entry in entries:
        width = {1: 1, 3: 2, 4: 4, 16: 8}.get(entry.kind)
        if entry.tag in found:
            # An array of one value for each sample lies elsewhere; its length says enough.
            single = width is not None and entry.count == 1
            value = int.from_bytes(entry.field[:width], "big" if order == ">" else "little")
            found[entry.tag] = value if single else -entry.count
    return tuple(found.values())


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
    if entry.count > MOST_SUBIFDS:
        raise SourceError(f"a directory names {entry.count} sub-directories", mend="This is not a slide.")
    raw = entry.field
    if width * entry.count > field_size:
        raw = read(struct.unpack(order + ("I" if magic == 42 else "Q"), entry.field)[0], width * entry.count)
    return list(struct.unpack(order + f"{entry.count}{'I' if width == 4 else 'Q'}", raw[: width * entry.count]))
