"""Objects against the manifest, and the manifest against the root: the bytes, whatever they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import google_crc32c

from ngfftile.errors import MissingError, StoreError
from ngfftile.store import LABELS, MANIFEST, MOST_MANIFEST, ROOT, ROOT2, ROOTS, Readable, crc_of, group_document, sealed
from ngfftile.verify.report import Finding, level_of

_PIECE = 4 << 20
BATCH = 64 << 20  # bytes of objects that one task reads


def format_of(store: Readable) -> int:
    """Zarr format of a store: by its root, or where that is gone by its manifest."""
    for name, found in ((ROOT, 3), (ROOT2, 2)):
        if store.exists(name) or store.exists(f"{MANIFEST}/{name}"):
            return found
    raise MissingError("not an OME-Zarr store: it has neither root nor manifest", str(store), "Check the path.")


def root_findings(store: Readable, zarr_format: int) -> Iterator[Finding]:
    """The root's seal, and the manifest's checksum in it."""
    name = ROOT if zarr_format == 3 else ROOT2
    if not store.exists(name):
        yield Finding("missing", name, "the root is gone")
        return
    data = store.whole(name)
    if sealed(data) is not True:
        yield Finding("checksum", name, "changed since it was written" if b"document_crc32c" in data else "has no seal")
    yield from _manifest_findings(store, zarr_format)


def _manifest_findings(store: Readable, zarr_format: int) -> Iterator[Finding]:
    key = store.manifest(zarr_format)
    try:
        about = store.attributes("").get("ngfftile", {}).get("manifest")
        data = store.whole(key, MOST_MANIFEST)
    except StoreError as error:
        yield Finding("missing", key, error.what)
        return
    except (MissingError, AttributeError) as error:
        yield Finding("structure", "root", str(error))
        return
    if not isinstance(about, dict) or (about.get("bytes"), about.get("crc32c")) != (len(data), crc_of(data)):
        yield Finding("checksum", key, "does not match the root")
    if zarr_format == 2:
        yield from group_findings(store, f"{MANIFEST}/.zgroup")


def group_findings(store: Readable, key: str) -> Iterator[Finding]:
    """A v2 group's document that no manifest lists: it is always the same."""
    try:
        if store.whole(key) != group_document():
            yield Finding("checksum", key, "changed since it was written")
    except StoreError:
        yield Finding("missing", key, "is gone")


def label_list_findings(store: Readable, zarr_format: int, *, ours: bool) -> Iterator[Finding]:
    """The list of labels against the labels that are there; a list of ours has a seal."""
    there = {name for name in store.folders(LABELS) if not name.endswith(".partial")}
    key = f"{LABELS}/{ROOT if zarr_format == 3 else ROOT2}"
    if not there and not store.exists(key):
        return
    try:
        if sealed(store.whole(key)) is not True and ours:
            yield Finding("checksum", key, "changed since it was written, or by another program")
        listed = set(store.labels())
        there |= {name for name in listed if _is_there(store, f"{LABELS}/{name}")}  # names may be paths
        there -= {name.split("/")[0] for name in listed if "/" in name}
    except StoreError as error:
        yield Finding("structure", key, error.what)
        return
    for name in sorted(listed - there):
        yield Finding("missing", f"{LABELS}/{name}", "is listed, and not there")
    for name in sorted(there - listed):
        yield Finding("structure", f"{LABELS}/{name}", "is there, and not listed")
    if zarr_format == 2 and ours:
        yield from group_findings(store, f"{LABELS}/.zgroup")


def _is_there(store: Readable, path: str) -> bool:
    """Whether there is such a folder; of a server, a root in it."""
    return any(store.exists(name) for name in ([path] if store.lists else [f"{path}/{root}" for root in ROOTS]))


def batches(listed: dict[str, tuple[int, str]], wanted: Iterable[str]) -> list[list[tuple[str, int, str]]]:
    """Objects to compare, as lists for one task each."""
    found: list[list[tuple[str, int, str]]] = [[]]
    held = 0
    for key in wanted:
        size, crc = listed[key]
        if held + size > BATCH and found[-1]:
            found.append([])
            held = 0
        found[-1].append((key, size, crc))
        held += size
    return found


def check(store: Readable, expected: list[tuple[str, int, str]]) -> list[Finding]:
    """Task: compare objects with what the manifest says of them."""
    found = []
    for key, size, crc in expected:
        level = level_of(key)
        try:
            with store.open(key) as file:
                if file.size != size:
                    found.append(Finding("size", key, f"{file.size} bytes, {size} were written", level))
                    continue
                value = 0
                for offset in range(0, size, _PIECE):
                    value = google_crc32c.extend(value, file.read(offset, min(_PIECE, size - offset)))
        except StoreError as error:
            gone = isinstance(error.__cause__, FileNotFoundError)
            found.append(Finding("missing", key, "is gone" if gone else error.what, level))
            continue
        except OSError as error:
            found.append(Finding("missing", key, f"cannot be read ({error.strerror or error})", level))
            continue
        if f"{value:08x}" != crc:
            found.append(Finding("checksum", key, f"crc32c {value:08x}, {crc} was written", level))
    return found
