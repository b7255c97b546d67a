"""Where tiles lie on a slide: pure arithmetic on numpy arrays, a million tiles in milliseconds.

The rules for one axis, with slide size S, tile extent T and stride s (pixels of one level):

========  ==========================================================================  =====================
edge      starts                                                                      overhang
========  ==========================================================================  =====================
`drop`    0, s, 2s, ... while start + T <= S; none if S < T                           never
`keep`    the minimal cover: ceil((S - T) / s) + 1 of them if S > T, else one at 0;   filled
          a start >= S is never produced
`shift`   as many, each at min(k s, S - T); one at 0 if S < T                         only if S < T
========  ==========================================================================  =====================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ngfftile.errors import OptionError
from ngfftile.geometry import Mpp, Region, Size

Edge = Literal["keep", "drop", "shift"]
Ints = NDArray[np.int64]


def axis_starts(size: int, extent: int, stride: int, edge: Edge = "keep") -> Ints:
    """Starts of the tiles along one axis.

    Parameters
    ----------
    size, extent, stride
        Slide size, tile extent and step, in pixels of one level; each at least 1.
    edge
        What happens where the grid does not divide the slide; see the module's table.

    Returns
    -------
    numpy.ndarray
        int64, ascending, without repeats.

    Examples
    --------
    >>> axis_starts(5, 2, 2, "keep"), axis_starts(5, 2, 2, "drop"), axis_starts(5, 2, 2, "shift")
    (array([0, 2, 4]), array([0, 2]), array([0, 2, 3]))
    """
    if edge == "drop":
        return np.arange(0, size - extent + 1, stride, dtype=np.int64)
    if size <= extent:
        return np.zeros(1, np.int64)
    starts = np.arange(-(-(size - extent) // stride) + 1, dtype=np.int64) * stride
    return starts[starts < size] if edge == "keep" else np.minimum(starts, size - extent)


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tiles of one grid on one slide, as columns of equal length.

    Parameters
    ----------
    x, y
        int64: origin of each tile, in pixels at the delivered resolution.
    row, col
        int64: place in the grid.
    extent
        Size of every tile, in the same pixels.
    bounds
        The slide at the delivered resolution.
    """

    x: Ints
    y: Ints
    row: Ints
    col: Ints
    extent: Size
    bounds: Size

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: NDArray[np.bool_] | Ints) -> Tiles:
        return Tiles(self.x[chosen], self.y[chosen], self.row[chosen], self.col[chosen], self.extent, self.bounds)

    def region(self, i: int) -> Region:
        """The rectangle of tile ``i``; it may hang over the slide's right or lower border."""
        return Region(int(self.x[i]), int(self.y[i]), self.extent.x, self.extent.y)

    @property
    def overhang(self) -> NDArray[np.float64]:
        """Part of each tile's area outside the slide, 0 to 1."""
        inside_x = np.minimum(self.x + self.extent.x, self.bounds.x) - self.x
        inside_y = np.minimum(self.y + self.extent.y, self.bounds.y) - self.y
        return 1.0 - (inside_x * inside_y) / (self.extent.x * self.extent.y)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A regular grid of analysis tiles, at a resolution or on a level.

    Parameters
    ----------
    extent
        Tile size in pixels at the delivered resolution: one number for squares, or a `Size`.
    stride
        Step between tile origins, in the same pixels; by default the extent. Less makes tiles overlap.
    mpp
        Micrometres per pixel to work at. Give this or ``level``.
    level
        Stored level to work at, 0 the finest.
    edge
        ``keep`` covers the whole slide and fills what hangs over, ``drop`` takes whole tiles only, ``shift`` moves
        the last ones inside.

    Raises
    ------
    OptionError
        A size below 1, an unknown edge, or both (or neither) of ``mpp`` and ``level``.

    Examples
    --------
    >>> len(TileGrid(extent=300, level=0, edge="drop").tiles(Size(2220, 2967)))
    63
    """

    extent: int | Size = 256
    stride: int | Size | None = None
    mpp: float | None = None
    level: int | None = None
    edge: Edge = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "extent", Size.of(self.extent))
        object.__setattr__(self, "stride", Size.of(self.extent if self.stride is None else self.stride))
        if self.edge not in get_args(Edge):
            raise OptionError(
                f"edge is {self.edge!r}", where="TileGrid", mend=f"Use one of {', '.join(get_args(Edge))}."
            )
        if (self.mpp is None) == (self.level is None):
            raise OptionError(
                f"mpp is {self.mpp} and level is {self.level}", where="TileGrid", mend="Give exactly one of the two."
            )
        if self.mpp is not None:
            Mpp.of(self.mpp)
        if self.level is not None and self.level < 0:
            raise OptionError(f"level is {self.level}", where="TileGrid", mend="Levels count from 0, the finest.")

    def tiles(self, bounds: Size) -> Tiles:
        """All tiles of this grid on a slide of size ``bounds`` (pixels at the delivered resolution), x fastest."""
        extent, stride = Size.of(self.extent), Size.of(self.stride or self.extent)
        xs = axis_starts(bounds.x, extent.x, stride.x, self.edge)
        ys = axis_starts(bounds.y, extent.y, stride.y, self.edge)
        row, col = (a.ravel() for a in np.indices((len(ys), len(xs)), dtype=np.int64))
        return Tiles(xs[col], ys[row], row, col, extent, bounds)
