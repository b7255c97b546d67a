"""Which way up a stored picture is: TIFF 6.0, tag 274.

Stored rows and columns are mapped by views: nothing is copied, and what is written into the view of an upright array
lands where it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ngfftile.geometry import Mpp, Region, Size

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a picture is stored.

    Parameters
    ----------
    tag
        1 to 8, as TIFF counts: 1 is upright, 3 turned by 180 degrees, 6 and 8 by 90; 2, 4, 5 and 7 are mirrored.
    """

    tag: int = 1

    @classmethod
    def of(cls, value: Any) -> Orientation:
        """From the tag's value; what is not 1 to 8 counts as upright, as in libtiff."""
        return cls(value if isinstance(value, int) and 1 <= value <= 8 else 1)

    @property
    def turned(self) -> bool:
        """Whether stored rows are columns of the upright picture."""
        return self.tag >= 5

    @property
    def steps(self) -> tuple[int, int]:
        """Of the upright picture's rows and columns, after a turn: -1 where they run backwards."""
        return (-1 if self.tag in {3, 4, 7, 8} else 1), (-1 if self.tag in {2, 3, 6, 7} else 1)

    def size(self, stored: Size) -> Size:
        """Of the upright picture; its own inverse."""
        return Size(stored.y, stored.x) if self.turned else stored

    def mpp(self, stored: Mpp) -> Mpp:
        """Resolution along the upright axes."""
        return Mpp(stored.y, stored.x) if self.turned else stored

    def stored(self, region: Region, size: Size) -> Region:
        """Where a region of the upright picture, which is of ``size``, is stored."""
        down, right = self.steps
        x = region.x if right > 0 else size.x - region.right
        y = region.y if down > 0 else size.y - region.bottom
        return Region(y, x, region.height, region.width) if self.turned else Region(x, y, region.width, region.height)

    def upright(self, region: Region, size: Size) -> Region:
        """Where a stored region lies in the upright picture, which is of ``size``."""
        if self.turned:
            region = Region(region.y, region.x, region.height, region.width)
        down, right = self.steps
        x = region.x if right > 0 else size.x - region.right
        y = region.y if down > 0 else size.y - region.bottom
        return Region(x, y, region.width, region.height)

    def view(self, upright: Array) -> Array:
        """An upright array (y, x, ...) as its stored rows and columns are."""
        down, right = self.steps
        flipped = upright[::down, ::right]
        return flipped.swapaxes(0, 1) if self.turned else flipped
