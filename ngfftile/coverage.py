"""The area of a mask under rectangles, exact where their borders cut mask pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def covered_area(
    mask: NDArray[np.bool_], x0: ArrayLike, y0: ArrayLike, x1: ArrayLike, y1: ArrayLike
) -> NDArray[np.float64]:
    """Area of the true pixels of a mask inside each rectangle.

    A mask is constant within a pixel, so its integral from the origin is bilinear between pixel corners: the
    summed-area table (Crow 1984), read at fractional corners, gives the exact area.

    Parameters
    ----------
    mask
        bool (y, x).
    x0, y0, x1, y1
        Rectangles in mask pixels, fractions allowed; what lies outside the mask counts as false.

    Returns
    -------
    numpy.ndarray
        float64, in mask pixels.

    Examples
    --------
    >>> covered_area(np.ones((2, 2), bool), [0.5], [0], [1.75], [3])
    array([2.5])
    """
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int64), axis=1, out=table[1:, 1:])

    def corner(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        x = np.clip(np.asarray(x, np.float64), 0, mask.shape[1])
        y = np.clip(np.asarray(y, np.float64), 0, mask.shape[0])
        j = np.minimum(x.astype(np.int64), mask.shape[1] - 1)
        i = np.minimum(y.astype(np.int64), mask.shape[0] - 1)
        fx, fy = x - j, y - i
        upper = table[i, j] * (1 - fx) + table[i, j + 1] * fx
        lower = table[i + 1, j] * (1 - fx) + table[i + 1, j + 1] * fx
        result: NDArray[np.float64] = upper * (1 - fy) + lower * fy
        return result

    return corner(x1, y1) - corner(x0, y1) - corner(x1, y0) + corner(x0, y0)
