"""Pixels: every chunk decodes, each level is the mean of the finer one, and level 0 is the source's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ngfftile import shards
from ngfftile.errors import NgfftileError, StoreError
from ngfftile.geometry import Region, Size
from ngfftile.shards import LevelArray
from ngfftile.sources import Source
from ngfftile.verify.report import Finding

Array = NDArray[Any]
_BLOCK = 4096
_STRIP_PIXELS = 1 << 21
# Levels, or pixels against the source, where either is stored with loss: less than this is another picture.
LEAST_PSNR = 12.0


class Block(NamedTuple):
    """A piece of a level, at one point in time and focal plane."""

    level: int
    t: int
    z: int
    region: Region

    @property
    def name(self) -> str:
        """For people, and to tell blocks apart."""
        return f"level {self.level}, t {self.t}, z {self.z}, x {self.region.x}, y {self.region.y}"


@dataclass(frozen=True)
class Pyramid:
    """The levels of an image, and how they were made.

    Parameters
    ----------
    arrays
        The finest first.
    method
        Of shrinking, or None where nobody knows: then levels are decoded and not compared.
    exact
        For each level, whether it holds the very pixels that it was given.
    depth
        Channels that count as one pixel: 3 of RGB.
    """

    arrays: tuple[LevelArray, ...]
    method: str | None
    exact: tuple[bool, ...]
    depth: int = 1

    def blocks(self) -> Iterator[Block]:
        """Pieces of all levels: whole shards, about 4096 pixels wide."""
        for level, array in enumerate(self.arrays):
            step = Size(max(_BLOCK // array.unit.x, 1) * array.unit.x, max(_BLOCK // array.unit.y, 1) * array.unit.y)
            whole = Region(0, 0, array.size.x, array.size.y)
            for t in range(array.t):
                for z in range(array.z):
                    for y in range(0, array.size.y, step.y):
                        for x in range(0, array.size.x, step.x):
                            yield Block(level, t, z, Region(x, y, step.x, step.y).clip(whole))


def check(pyramid: Pyramid, block: Block) -> list[Finding]:
    """Task: decode a block, strip by strip, and compare it with the finer level."""
    array = pyramid.arrays[block.level]
    found: list[Finding] = []
    worst = 0.0
    for strip in _strips(block.region, array):
        try:
            pixels = array.read(strip, block.t, block.z)
        except NgfftileError:
            found += damaged_chunks(array, block, strip)
            continue
        if block.level and pyramid.method:
            worst = max(worst, _difference(pyramid, block, strip, pixels))
    if worst > 0:
        found.append(Finding("level", block.name, _told(worst, pyramid, block.level), block.level))
    return _joined(found)


def _told(worst: float, pyramid: Pyramid, level: int) -> str:
    exact = pyramid.exact[level] and pyramid.exact[level - 1]
    unit = "grey levels" if exact else "dB below the least likeness"
    return f"differs from the {pyramid.method} of level {level - 1} by {worst:g} {unit}"


def _strips(region: Region, array: LevelArray) -> Iterator[Region]:
    """Rows of chunks, so that each is decoded once."""
    side = array.chunk.y
    rows = max(1, _STRIP_PIXELS // max(1, region.width * array.channels) // side) * side
    for y in range(region.y, region.bottom, rows):
        yield Region(region.x, y, region.width, min(rows, region.bottom - y))


def _difference(pyramid: Pyramid, block: Block, strip: Region, pixels: Array) -> float:
    """How far a strip is from what the finer level gives: 0 where they agree."""
    finer = pyramid.arrays[block.level - 1]
    if not _follows(pyramid.arrays[block.level], finer):
        return 0.0  # a finding of the structure
    two_x, two_y = min(2, finer.size.x), min(2, finer.size.y)
    below = Region(strip.x * two_x, strip.y * two_y, strip.width * two_x, strip.height * two_y)
    try:
        source = finer.read(below.clip(Region(0, 0, finer.size.x, finer.size.y)), block.t, block.z)
    except NgfftileError:
        return 0.0  # its own block says so
    expected = np.empty_like(pixels)
    assert pyramid.method is not None
    for first in range(0, len(source), pyramid.depth):
        group = slice(first, first + pyramid.depth)
        shards.shrink(source[group], expected[group], 256, pyramid.method)
    return far(pixels, expected, exact=pyramid.exact[block.level] and pyramid.exact[block.level - 1])


def _follows(array: LevelArray, finer: LevelArray) -> bool:
    """Whether a level can be the other's, shrunk."""
    halved = (max(1, finer.size.x // 2), max(1, finer.size.y // 2))
    same = (array.channels, array.dtype, array.z, array.t) == (finer.channels, finer.dtype, finer.z, finer.t)
    return same and (array.size.x, array.size.y) == halved


def far(found: Array, expected: Array, *, exact: bool) -> float:
    """0 where pixels agree; else the greatest difference, or the dB that a lossy picture lacks of likeness."""
    if np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"):
        return 0.0
    difference = np.nan_to_num(np.abs(found.astype(np.float64) - expected.astype(np.float64)), nan=np.inf)
    if exact:
        return float(difference.max())
    noise = float(np.sqrt((difference**2).mean()))
    return max(0.0, LEAST_PSNR - 20 * float(np.log10(255 / noise)))


def damaged_chunks(array: LevelArray, block: Block, region: Region) -> list[Finding]:
    """The chunks of a region that do not decode, one by one."""
    found = []
    side = array.chunk
    for y in range(region.y // side.y, -(-region.bottom // side.y)):
        for x in range(region.x // side.x, -(-region.right // side.x)):
            place = Region(x * side.x, y * side.y, side.x, side.y).clip(region)
            for first in range(0, array.channels, array.depth):
                try:
                    array.read(place, block.t, block.z, slice(first, min(first + array.depth, array.channels)))
                except NgfftileError as error:
                    key = array.key(block.t, first, block.z, place)
                    found.append(Finding("chunk", key, error.what, block.level, ((y, x),)))
    return found


def _joined(findings: list[Finding]) -> list[Finding]:
    """One finding for each object, with all its chunks."""
    by_place: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_place.setdefault((finding.kind, finding.place), []).append(finding)
    return [
        Finding(kind, place, group[0].what, group[0].level, tuple(c for one in group for c in one.chunks))
        for (kind, place), group in by_place.items()
    ]


@dataclass(frozen=True)
class Against:
    """Level 0 of a store, and the source that it was made from."""

    array: LevelArray
    source: Source
    exact: bool

    def check(self, plane: int, region: Region) -> list[Finding]:
        """Task: compare a region of one plane (see `SourceInfo.planes`) with the source."""
        info = self.source.info
        rest, z = divmod(plane, info.z)
        t, group = divmod(rest, len(info.channels) // info.depth)
        theirs = np.empty((region.height, region.width, info.depth), info.dtype)
        place = f"plane {plane}, x {region.x}, y {region.y}, {region.width} x {region.height}"
        try:
            # A tile that does not decode is background in both.
            self.source.read(region, plane, theirs, lambda *_: None)
            ours = self.array.read(region, t, z, slice(group * info.depth, (group + 1) * info.depth))
        except StoreError as error:
            return [Finding("source", place, f"cannot be compared: {error.what}", 0)]
        worst = far(ours, theirs.transpose(2, 0, 1), exact=self.exact)
        if not worst:
            return []
        unit = "grey levels" if self.exact else "dB below the least likeness"
        return [Finding("source", place, f"pixels differ from the source's by {worst:g} {unit}", 0)]
