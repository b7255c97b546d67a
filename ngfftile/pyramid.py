"""How a slide is cut for storage: levels, shards, and which shard waits for what. Pure arithmetic.

Level k + 1 is the 2x mean of level k, down to 256 pixels; a level's size is floor(previous / 2), never 0. A shard is
the stored object and the unit of work. Its mean is a quarter of its parent's pixels, so the pyramid is a quad-tree:
a parent waits for at most four children, and whoever walks it depth first holds a few quarters per level, whatever
the slide's size.

The source has tiles of its own, which need not divide a shard. `PyramidPlan.cells` cuts level 0 along tile borders
into the largest rectangles that whole sets of shards share, so that each source tile is decoded once (strips wider than
a shard excepted).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ngfftile.errors import OptionError
from ngfftile.geometry import Region, Size

_LEAST_ROWS = 512  # at a time, for readers that decode whole rows of tiles that they do not name
_ANY_TILE = Size(1, 1)  # a source without tiles of its own: every cut is as good
STOP = 256  # a level this small is the last: one chunk, and a thumbnail for every viewer


def level_sizes(size: Size, stop: int = STOP) -> tuple[Size, ...]:
    """Sizes of the pyramid's levels, the finest first.

    Examples
    --------
    >>> [str(s) for s in level_sizes(Size(1000, 3))]
    ['1000 x 3', '500 x 1', '250 x 1']
    """
    sizes = [size]
    while max(sizes[-1].x, sizes[-1].y) > stop:
        sizes.append(Size(max(1, sizes[-1].x // 2), max(1, sizes[-1].y // 2)))
    return tuple(sizes)


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One unit of work: its level, and its place among the level's shards (``plane`` over t, channels and z)."""

    level: int
    plane: int
    row: int
    col: int


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch [start, stop) of one axis of level 0, and the shards [first, last] that it meets."""

    start: int
    stop: int
    first: int
    last: int


def axis_spans(size: int, shard: int, tile: int) -> tuple[Span, ...]:
    """Cut one axis along tile borders, so that each piece meets one shard, or a seam's shards, as a whole.

    Examples
    --------
    >>> [(s.start, s.stop, s.first, s.last) for s in axis_spans(1000, 512, 240)]
    [(0, 480, 0, 0), (480, 720, 0, 1), (720, 1000, 1, 1)]
    """
    borders = range(shard, size, shard)
    # Of a tile that lies across a border both ends are cuts; where the border is a tile's own, the two are one.
    starts = {border // tile * tile for border in borders}
    stops = {min(size, -(-border // tile) * tile) for border in borders}
    cuts = {0, size} | starts | stops
    return tuple(Span(a, b, a // shard, (b - 1) // shard) for a, b in pairwise(sorted(cuts)))


@dataclass(frozen=True, slots=True)
class Cell:
    """Whole source tiles of level 0 that the same shards need: row and column of the cut, and the pixels."""

    row: int
    col: int
    region: Region
    shared: bool


@dataclass(frozen=True)
class PyramidPlan:
    """The cut of one slide.

    Parameters
    ----------
    size
        Level 0, in pixels.
    channels
        How many.
    dtype
        Of a pixel, as numpy names it.
    depth
        Channels in a chunk: 3 for RGB, which viewers and models read together; 1 else.
    fill
        Value of what is not stored: 255 for RGB, the white of the glass; 0 else.
    chunk, shard
        Sides in pixels, multiples of 16; the shard a power of two of chunks.
    tile
        Size of the source's own tiles.
    z, t
        Focal planes, and points in time; each is a stack of images of its own.

    Raises
    ------
    OptionError
        A chunk or shard that cannot be.
    """

    size: Size
    channels: int
    dtype: str
    depth: int
    fill: int
    chunk: int = 256
    shard: int = 4096
    tile: Size = _ANY_TILE
    z: int = 1
    t: int = 1

    def __post_init__(self) -> None:
        if self.channels % self.depth:
            raise OptionError(f"{self.channels} channels in chunks of {self.depth}", where="plan", mend="Use depth 1.")
        if self.chunk < 16 or self.chunk % 16:
            raise OptionError(f"chunk is {self.chunk}", where="plan", mend="Use a multiple of 16, such as 256.")
        ratio = self.shard // self.chunk
        if ratio * self.chunk != self.shard or ratio < 1 or ratio & (ratio - 1):
            raise OptionError(
                f"shard is {self.shard}",
                where="plan",
                mend=f"Use the chunk ({self.chunk}) times a power of two, such as {self.chunk * 16}.",
            )

    @cached_property
    def levels(self) -> tuple[Size, ...]:
        """Sizes of the levels, the finest first."""
        return level_sizes(self.size)

    @property
    def planes(self) -> int:
        """Shards along t, channels and z together."""
        return self.t * (self.channels // self.depth) * self.z

    @property
    def axes(self) -> tuple[str, ...]:
        """Of the arrays: c, y, x, and t and z where there are several."""
        return tuple(axis for axis in "tczyx" if axis in "cyx" or {"t": self.t, "z": self.z}[axis] > 1)

    def shape(self, level: int) -> tuple[int, ...]:
        """Of a level's array."""
        size = self.levels[level]
        lengths = {"t": self.t, "c": self.channels, "z": self.z, "y": size.y, "x": size.x}
        return tuple(lengths[axis] for axis in self.axes)

    def place(self, shard: Shard) -> tuple[int, ...]:
        """A shard's coordinates in its array's grid of shards."""
        rest, z = divmod(shard.plane, self.z)
        t, c = divmod(rest, self.channels // self.depth)
        found = {"t": t, "c": c, "z": z, "y": shard.row, "x": shard.col}
        return tuple(found[axis] for axis in self.axes)

    def grid(self, level: int) -> Size:
        """Shards along x and y of a level."""
        return Size(-(-self.levels[level].x // self.shard), -(-self.levels[level].y // self.shard))

    def shards(self, level: int) -> Iterator[Shard]:
        """All shards of a level."""
        grid = self.grid(level)
        for plane in range(self.planes):
            for row in range(grid.y):
                for col in range(grid.x):
                    yield Shard(level, plane, row, col)

    @property
    def count(self) -> int:
        """Shards of all levels together."""
        return sum(self.grid(k).x * self.grid(k).y for k in range(len(self.levels))) * self.planes

    def region(self, shard: Shard) -> Region:
        """Pixels of its level that a shard holds."""
        size = self.levels[shard.level]
        whole = Region(shard.col * self.shard, shard.row * self.shard, self.shard, self.shard)
        return whole.clip(Region(0, 0, size.x, size.y))

    def children(self, shard: Shard) -> list[Shard]:
        """The shards of the next finer level that this one waits for: the four whose means make it up.

        A last odd row or column of pixels may fill a shard of its own, which has no place in the mean; the last shard
        waits for that one too, so that every shard has one parent.
        """
        if shard.level == 0:
            return []
        own, finer = self.grid(shard.level), self.grid(shard.level - 1)
        rows = range(2 * shard.row, finer.y if shard.row + 1 == own.y else 2 * shard.row + 2)
        cols = range(2 * shard.col, finer.x if shard.col + 1 == own.x else 2 * shard.col + 2)
        return [Shard(shard.level - 1, shard.plane, row, col) for row in rows for col in cols]

    @cached_property
    def _spans(self) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        # A strip wider than a shard would wait, whole, for every shard that it crosses: gigabytes on a wide slide.
        # Memory comes first, so each shard decodes such strips for itself.
        high, wide = (tile if tile <= self.shard else 1 for tile in (self.tile.y, self.tile.x))
        return axis_spans(self.size.y, self.shard, high), axis_spans(self.size.x, self.shard, wide)

    @cached_property
    def _spans_of(self) -> tuple[list[list[int]], list[list[int]]]:
        grid = self.grid(0)
        found: tuple[list[list[int]], list[list[int]]] = ([[] for _ in range(grid.y)], [[] for _ in range(grid.x)])
        for spans, of_shard in zip(self._spans, found, strict=True):
            for i, span in enumerate(spans):
                for shard in range(span.first, span.last + 1):
                    of_shard[shard].append(i)
        return found

    def cells(self, shard: Shard) -> list[Cell]:
        """The pieces of level 0 that a shard is made of; ``shared`` ones serve its neighbours too."""
        ys, xs = self._spans
        rows, cols = self._spans_of
        return [
            Cell(
                i,
                j,
                Region(xs[j].start, ys[i].start, xs[j].stop - xs[j].start, ys[i].stop - ys[i].start),
                xs[j].first != xs[j].last or ys[i].first != ys[i].last,
            )
            for i in rows[shard.row]
            for j in cols[shard.col]
        ]

    @property
    def raw_bytes(self) -> int:
        """Bytes of all levels, not compressed."""
        return sum(s.x * s.y for s in self.levels) * self.planes * self.depth * np.dtype(self.dtype).itemsize

    def band_rows(self, level: int) -> int:
        """Rows that are worked on at a time: whole chunks, and of level 0 whole tiles; all where these do not fit."""
        unit, tile = self.chunk, self.tile.y
        if level == 0:
            if self.seam_bytes or (self.chunk % tile and tile % self.chunk):
                return self.shard
            unit = max(self.chunk, tile)
        return min(self.shard, -(-_LEAST_ROWS // unit) * unit)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard's pixels."""
        side_x, side_y = min(self.shard, self.size.x), min(self.shard, self.size.y)
        return side_x * side_y * self.depth * np.dtype(self.dtype).itemsize

    @property
    def seam_bytes(self) -> int:
        """Most bytes of shared cells that wait for a neighbour at one time: two sides of the slide, one tile wide."""
        ys, xs = self._spans
        wide = max((s.stop - s.start for s in xs if s.first != s.last), default=0)
        high = max((s.stop - s.start for s in ys if s.first != s.last), default=0)
        pixels = wide * self.size.y + high * self.size.x
        return pixels * self.depth * np.dtype(self.dtype).itemsize
