"""From tifffile's series of pages to planes that can be read: one file or several, one page or one for each plane."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from ngfftile.errors import SourceError
from ngfftile.sources import ifd, raster
from ngfftile.sources.raster import Grid, Page, Plane, Raster
from ngfftile.sources.samples import Samples, understand
from ngfftile.sources.series import Order
from ngfftile.store import LocalFile

# The kinds of files whose palette only displays what was measured.
_MEASURED = {"imagej", "ome", "lsm", "stk", "fluoview"}


@dataclass(frozen=True, slots=True)
class Visited:
    """A file that is opened for each read: an OME-TIFF may have one for each plane, more than a process may open."""

    path: Path
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``."""
        with LocalFile(self.path) as file:
            return file.read(offset, count)


class Files:
    """The files of a slide, in the order met; the first is the one that was opened.

    Parameters
    ----------
    path
        The first.
    likeness
        What `ifd.check_directories` found in it.
    """

    def __init__(self, path: Path, likeness: dict[int, ifd.Likeness]) -> None:
        self.paths = [path]
        self.open: list[LocalFile | Visited] = [LocalFile(path)]
        self._likeness = [likeness]
        self._numbers: dict[int, int] = {}

    def check(self, path: Path) -> None:
        """Look at another file before tifffile opens it.

        Raises
        ------
        SourceError
            It lies elsewhere, or is damaged.
        """
        first = self.paths[0]
        if path.resolve().parent != first.resolve().parent:
            raise SourceError(f"names planes in {path}, outside its folder", str(first), "Put the files together.")
        if path.resolve() != first.resolve() and path not in self.paths:
            self.paths.append(path)
            self._likeness.append(ifd.check_directories(path))
            self.open.append(Visited(path, path.stat().st_size))

    def number(self, page: Any) -> int:
        """Which of the files holds a page of tifffile's."""
        known = self._numbers.get(id(page.parent))
        if known is None:
            path = Path(page.parent.filehandle.path)
            self.check(path)
            known = 0 if path.resolve() == self.paths[0].resolve() else self.paths.index(path)
            self._numbers[id(page.parent)] = known
        return known

    def likeness(self, page: Any) -> ifd.Likeness | None:
        """What a page must have in common with others; None where it has no directory of its own."""
        return self._likeness[self.number(page)].get(page.offset)


@dataclass(frozen=True, slots=True)
class Picture:
    """Planes that are read alike.

    Parameters
    ----------
    raster
        Reads them.
    planes
        Over t, c and z, which runs fastest.
    t, z
        Points in time and focal planes.
    channels
        What the samples say of the channels' names; empty where they do not.
    groups
        How many of them the pages tell apart.
    tables
        Digest of the places of all segments.
    notes
        What a user should know.
    """

    raster: Raster
    planes: tuple[Plane, ...]
    t: int
    z: int
    channels: tuple[str, ...]
    groups: int
    tables: bytes
    notes: tuple[str, ...]


def assemble(path: Path, one: Any, order: Order, files: Files) -> Picture:
    """The planes of a series.

    Raises
    ------
    SourceError
        Its pages differ, lie outside, or are not stored as they say.
    """
    key = one.keyframe
    grid = Grid.of(key, path)
    stored, pages = _pages(path, one, grid, files)
    samples = understand(key, values=one.kind in _MEASURED or order.pages.size > 1)
    samples = replace(samples, rgb=samples.rgb and order.pages.shape[1] == 1)
    decoder = key.decode
    if pages is not stored:
        grid = raster.strips(grid)
        decoder = raster.Uncompressed(_stored_dtype(key), grid.size.x, key.shaped[4])
    spread = [None] if samples.rgb or len(samples.names) == 1 else list(range(len(samples.names)))
    t, groups, z = order.pages.shape
    planes = tuple(
        Plane(pages[order.pages[i, c, k]], layer, sample)
        for i in range(t)
        for c in range(groups)
        for sample in spread
        for k in range(z)
        for layer in range(grid.layers)
    )
    return Picture(
        Raster(path, key, grid, samples, decoder, files.open),
        planes,
        t,
        z * grid.layers,
        samples.names * groups,
        groups,
        _digest(page for page in stored if page is not None),
        (*samples.notes, *_gaps(stored, grid), *_unnamed(order)),
    )


def single(path: Path, key: Any, files: Files, samples: Samples) -> tuple[Raster, Plane]:
    """A page that is a picture by itself."""
    grid = Grid.of(key, path)
    page = Page(files.number(key), tuple(key.dataoffsets), tuple(key.databytecounts), key.jpegtables)
    raster.check(path, "an associated image", grid, [page], files.open)
    return Raster(path, key, grid, samples, key.decode, files.open), Plane(page)


def _pages(path: Path, one: Any, grid: Grid, files: Files) -> tuple[list[Page | None], list[Page | None]]:
    """The pages as stored, checked; and as they are read, in smaller strips where that is possible and worth it."""
    key = one.keyframe
    found = [one[0]] if one.is_truncated else list(one)
    stored = [None if page is None else _page(path, page, key, files) for page in found]
    known = [page for page in stored if page is not None]
    raster.check(path, "level 0", grid, known, files.open)
    bare = key.is_final and not grid.tiled and all(raster.is_whole(grid, page) for page in known)
    if one.is_truncated:
        if not bare or not known:
            raise SourceError("its planes lie behind the first page, compressed or apart", str(path))
        count = prod(one.shape) // prod(key.shape)
        step = key.nbytes
        stored = [replace(known[0], offsets=tuple(o + i * step for o in known[0].offsets)) for i in range(count)]
        raster.check(path, "level 0", grid, [page for page in stored if page is not None], files.open)
    if bare and (one.is_truncated or raster.is_large(grid)):
        return stored, [None if page is None else raster.cut(grid, page) for page in stored]
    return stored, stored


def _page(path: Path, page: Any, key: Any, files: Files) -> Page:
    mine, first = files.likeness(page), files.likeness(key)
    if mine is not None and first is not None and mine != first:
        raise SourceError("its planes are of different sizes, pixels or compression", str(path))
    keyframe = page.keyframe
    if keyframe is not None and keyframe.hash != key.hash:
        raise SourceError("its planes are stored in different ways", str(path))
    return Page(files.number(page), tuple(page.dataoffsets), tuple(page.databytecounts), page.jpegtables)


def _digest(pages: Iterable[Page]) -> bytes:
    """Of the places of all segments, as of one list of them: channels by the dozen have millions."""
    digest = hashlib.sha256(b"[")
    for i, page in enumerate(pages):
        digest.update(b", " * (i > 0) + repr((page.offsets, page.counts)).encode())
    digest.update(b"]")
    return digest.digest()


def _stored_dtype(key: Any) -> Any:
    return key.dtype.newbyteorder(key.parent.byteorder)


def _gaps(stored: Sequence[Page | None], grid: Grid) -> list[str]:
    missing = sum(page is None for page in stored)
    empty = sum(page.counts[: grid.count].count(0) for page in stored if page is not None)
    notes = []
    if missing:
        notes.append(f"{missing} of {len(stored)} planes are not there; they become background")
    if empty:
        notes.append(f"{empty} tiles are not stored in the file; they become background")
    return notes


def _unnamed(order: Order) -> list[str]:
    return [f"pages of unknown meaning (axes {order.unnamed}) are kept as channels"] if order.unnamed else []
