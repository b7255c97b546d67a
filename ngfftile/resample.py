"""Shrinking by area: the exact 2x mean of the pyramid, and the area mean at any ratio >= 1.

Both are numpy only. Measured by ``benchmarks/shrink.py``: on blocks that fit the cache, pair sums on a wider view of
the same bytes reach 0.4 of the speed of OpenCV's INTER_AREA. The 2x mean is a small part of a conversion's time, so the
rest of it is not worth a large library in every installation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

# Two pixels seen as one number of twice their width: the low half is one, the high half the other.
_PAIRS = {np.dtype(np.uint8): np.uint16, np.dtype(np.uint16): np.uint32}


def halve(block: Array, out: Array) -> None:
    """Mean of each 2 x 2 pixels; integers round half up, as area interpolation does.

    Parameters
    ----------
    block
        (c, y, x), contiguous, y and x even.
    out
        (c, y / 2, x / 2) of the same dtype, written in place.

    Examples
    --------
    >>> out = np.empty((1, 1, 1), np.uint8)
    >>> halve(np.array([[[1, 2], [2, 1]]], np.uint8), out)
    >>> out.item()
    2
    """
    wide = _PAIRS.get(block.dtype)
    if wide is None:
        total = block[:, 0::2, 0::2].astype(np.float64) + block[:, 0::2, 1::2]
        total += block[:, 1::2, 0::2]
        total += block[:, 1::2, 1::2]
        total /= 4
        out[...] = total if block.dtype.kind == "f" else np.floor(total + 0.5)
        return
    pairs: Array = block.view(wide)
    bits = block.dtype.itemsize * 8
    sums, high = _scratch(pairs)
    np.bitwise_and(pairs, 2**bits - 1, out=sums)
    np.right_shift(pairs, bits, out=high)
    np.add(sums, high, out=sums)
    total = high[:, : out.shape[1]]
    np.add(sums[:, 0::2], sums[:, 1::2], out=total)
    np.add(total, 2, out=total)
    np.right_shift(total, 2, out=total)
    out[...] = total


_held = threading.local()


def _scratch(like: Array) -> tuple[Array, Array]:
    """Two arrays of this thread to work in: fresh memory would cost more in page faults than the arithmetic."""
    found: tuple[Array, Array] | None = getattr(_held, "arrays", None)
    if found is None or found[0].shape != like.shape or found[0].dtype != like.dtype:
        found = _held.arrays = np.empty_like(like), np.empty_like(like)
    return found


def pick(block: Array, out: Array) -> None:
    """The first of each 2 x 2 pixels (c, y, x); arguments as for `halve`."""
    out[...] = block[:, 0::2, 0::2]


def commonest(block: Array, out: Array) -> None:
    """The most frequent of each 2 x 2 pixels, the first where two are as frequent; arguments as for `halve`.

    A pixel counts with all its channels: a colour that was not there never comes up.

    Examples
    --------
    >>> out = np.empty((1, 1, 1), np.uint8)
    >>> commonest(np.array([[[1, 2], [3, 2]]], np.uint8), out)
    >>> out.item()
    2
    """
    a, b, c, d = block[:, 0::2, 0::2], block[:, 0::2, 1::2], block[:, 1::2, 0::2], block[:, 1::2, 1::2]

    def same(one: Array, other: Array) -> NDArray[np.bool_]:
        equal: NDArray[np.bool_] = (one == other).all(axis=0)
        return equal

    first = same(a, b) | same(a, c) | same(a, d)
    second = ~first & (same(b, c) | same(b, d))
    third = ~first & ~second & same(c, d)
    out[...] = a
    np.copyto(out, b, where=second)
    np.copyto(out, c, where=third)


# How four pixels become one. The sample of `pick` lies at the first pixel's centre, the others' at the middle of four.
METHODS: dict[str, Callable[[Array, Array], None]] = {"mean": halve, "nearest": pick, "mode": commonest}


def weights(first: int, count: int, ratio: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pixels, and their shares, that make up each of ``count`` output pixels along one axis.

    Output pixel j covers [j * ratio, (j + 1) * ratio) of the input. The result depends on j alone, never on where a
    block begins, so blocks agree at their seams to the last bit.

    Returns
    -------
    indices, shares
        Both (count, k), k = the most input pixels that one output pixel can meet; shares sum to 1.
    """
    start = np.arange(first, first + count, dtype=np.float64) * ratio
    stop = np.arange(first + 1, first + count + 1, dtype=np.float64) * ratio
    k = int(np.ceil(ratio)) + 1
    indices = np.floor(start).astype(np.int64)[:, None] + np.arange(k)
    overlap = np.minimum(indices + 1, stop[:, None]) - np.maximum(indices, start[:, None])
    overlap = np.maximum(overlap, 0)
    # A pixel without a share must not count at all: 0 times not-a-number is not 0.
    indices = np.where(overlap > 0, indices, indices[:, :1])
    return indices, overlap / overlap.sum(1, keepdims=True)


def input_range(first: int, count: int, ratio: float, size: int) -> tuple[int, int]:
    """Half-open range of input pixels, within ``size``, that `weights` of the same arguments needs."""
    return int(np.floor(first * ratio)), min(size, int(np.floor((first + count - 1) * ratio)) + int(np.ceil(ratio)) + 1)


def area_mean(block: Array, axis: int, origin: int, first: int, count: int, ratio: float) -> Array:
    """Area mean along one axis at any ratio >= 1.

    Parameters
    ----------
    block
        Input pixels ``origin`` and on of the axis; must hold what `input_range` names.
    axis
        The axis to shrink.
    origin
        Place of the block's first pixel on the whole axis.
    first, count
        Output pixels wanted.
    ratio
        Input pixels per output pixel.

    Returns
    -------
    numpy.ndarray
        ``count`` long on the axis; float32, or float64 where float32 cannot hold the block's values. Round with
        `to_dtype`.
    """
    indices, exact = weights(first, count, ratio)
    shares = exact.astype(np.result_type(block.dtype, np.float32))
    local = np.clip(indices - origin, 0, block.shape[axis] - 1)
    shape = [1] * block.ndim
    shape[axis] = count
    result = np.zeros((*block.shape[:axis], count, *block.shape[axis + 1 :]), shares.dtype)
    for k in range(indices.shape[1]):
        result += np.take(block, local[:, k], axis=axis) * shares[:, k].reshape(shape)
    return result


def to_dtype(values: Array, dtype: DTypeLike) -> Array:
    """Back to the stored dtype; integers round half up."""
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(np.dtype(dtype))
    rounded: Array = np.clip(np.floor(values + values.dtype.type(0.5)), limits.min, limits.max).astype(dtype)
    return rounded
