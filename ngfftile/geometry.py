"""Small frozen values for places and sizes; each checks itself on construction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

from ngfftile.errors import OptionError


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a tile, a level or a step.

    Parameters
    ----------
    x, y
        Extent along each axis, in pixels of the level it is asked at; at least 1.
    """

    x: int
    y: int

    def __post_init__(self) -> None:
        for axis, value in (("x", self.x), ("y", self.y)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise OptionError(
                    f"{axis} is {value!r}", where="Size", mend="Give a whole number of pixels, 1 or more."
                )

    @classmethod
    def of(cls, value: int | Size) -> Size:
        """A square from one number; a `Size` as it is."""
        return value if isinstance(value, Size) else cls(value, value)

    def __str__(self) -> str:
        return f"{self.x} x {self.y}"


@dataclass(frozen=True, slots=True)
class Mpp:
    """Resolution: micrometres per pixel along each axis, both above 0. Pixels may be rectangular."""

    x: float
    y: float

    def __post_init__(self) -> None:
        if not (0 < self.x < float("inf") and 0 < self.y < float("inf")):
            raise OptionError(
                f"micrometres per pixel are {self.x!r}, {self.y!r}", where="Mpp", mend="Give numbers above 0."
            )

    @classmethod
    def of(cls, value: float | Mpp) -> Mpp:
        """Square pixels from one number; an `Mpp` as it is."""
        return value if isinstance(value, Mpp) else cls(float(value), float(value))

    def times(self, x: float, y: float) -> Mpp:
        """Resolution after a shrink by the ratios ``x`` and ``y``."""
        return Mpp(self.x * x, self.y * y)

    def __float__(self) -> float:
        """One number, where pixels are square."""
        if self.x != self.y:
            raise OptionError(f"pixels are rectangular, {self} µm", where="Mpp", mend="Use mpp.x and mpp.y.")
        return self.x

    def __str__(self) -> str:
        return f"{self.x:.4g}" if self.x == self.y else f"{self.x:.4g} x {self.y:.4g}"


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle on one level: origin and size in pixels; it may hang over the level's border.

    Parameters
    ----------
    x, y
        Column and row of the first pixel.
    width, height
        Size in pixels, 0 or more.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise OptionError(f"size is {self.width} x {self.height}", where="Region", mend="Give 0 or more pixels.")

    @property
    def right(self) -> int:
        """First column past the region."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row past the region."""
        return self.y + self.height

    def clip(self, other: Region) -> Region:
        """The part of this region inside ``other``; of width or height 0 where they do not meet."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return Region(x, y, max(0, min(self.right, other.right) - x), max(0, min(self.bottom, other.bottom) - y))

    def pieces(self, side: int) -> Iterator[Region]:
        """Squares that cover it from its first pixel on, row by row; the last ones may hang over.

        Examples
        --------
        >>> len(list(Region(0, 0, 5, 3).pieces(2)))
        6
        """
        for y in range(self.y, self.bottom, side):
            for x in range(self.x, self.right, side):
                yield Region(x, y, side, side)

    def inside(self, outer: Region) -> tuple[slice, slice]:
        """Row and column slices of this region in an array that holds ``outer``."""
        return (
            slice(self.y - outer.y, self.bottom - outer.y),
            slice(self.x - outer.x, self.right - outer.x),
        )
