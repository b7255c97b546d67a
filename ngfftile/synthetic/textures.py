"""What tissue is drawn from: noise, nuclei, glands, fibres and stain colours, each made once.

The noise is exact in any order of work: interpolation runs on small integers held in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ngfftile.errors import OptionError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Image = NDArray[np.uint8]
# Optical density per unit of stain in red, green, blue. Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23:291
# (2001), with the digits of the ImageJ plug-in "Colour Deconvolution".
_HAEMATOXYLIN: Final = (0.644211, 0.716556, 0.266844)
_EOSIN: Final = (0.092789, 0.954111, 0.283111)
# Stain amounts are looked up in 8 bits each; the top of the scale is as dark as a pyknotic nucleus.
H_MAX: Final = 1.7
E_MAX: Final = 1.1
_PERIOD: Final = 512  # pixels after which grain repeats: too fine to be seen at an overview
ANGLES: Final = 16


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}", where="synthetic", mend=f"Give a whole number from {low} to {high}.")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is not a number from low to high."""
    if isinstance(value, bool) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}", where="synthetic", mend=f"Give a number from {low:g} to {high:g}.")


def uniform(seed: int, salt: int, iy: Ints, ix: Ints) -> NDArray[np.float64]:
    """Random numbers in [0, 1) from integer places (broadcast, at least 1-D); the finaliser is splitmix64's."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) % 2**64)
    z = (iy.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)) ^ (ix.astype(np.uint64) * np.uint64(0x165667B19E3779F9))
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xBF58476D1CE4E5B9):
        z = (z ^ start ^ (z >> np.uint64(30))) * np.uint64(factor)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def spline(at: NDArray[Any], spacing: float, bits: int) -> tuple[Ints, Floats]:
    """Nodes needed at the places ``at`` and their quadratic B-spline weights (places x nodes) in units of 2^-bits."""
    p = at / spacing
    node = np.floor(p + 0.5)
    t = p - node + 0.5
    one = 1 << bits
    left, right = np.rint(0.5 * one * (1 - t) ** 2), np.rint(0.5 * one * t**2)
    first = int(node.min()) - 1
    nodes = np.arange(first, int(node.max()) + 2)
    weights = np.zeros((at.size, nodes.size), np.float32)
    rows, columns = np.arange(at.size), node.astype(np.int64) - first
    weights[rows, columns - 1] = left
    weights[rows, columns] = one - left - right
    weights[rows, columns + 1] = right
    return nodes, weights


def spread(wy: Floats, nodes: Floats, wx: Floats, scale: float) -> Floats:
    """Planes (channels, y, x) from their nodes and weights, times ``scale`` (a power of two, so exact).

    In pieces that OpenBLAS computes without its own threads (its GEMM_MULTITHREAD_THRESHOLD: 2^18 products): ours
    are busy already, and its threads spin, which on a loaded machine costs ten times the work.
    """
    right = wx.T * scale
    planes = np.empty((nodes.shape[0], wy.shape[0], wx.shape[0]), np.float32)
    rows = max(1, 2**18 // (nodes.shape[2] * max(nodes.shape[1], wx.shape[0])))
    for top in range(0, wy.shape[0], rows):
        np.matmul(wy[top : top + rows] @ nodes, right, out=planes[:, top : top + rows])
    return planes


def noise(key: tuple[int, int], channels: int, spacing: float, ys: NDArray[Any], xs: NDArray[Any]) -> Floats:
    """Smooth value noise in [-1, 1], shape (channels, y, x): values up to 8 and 10-bit weights are exact in float32."""
    ny, wy = spline(ys, spacing, 10)
    nx, wx = spline(xs, spacing, 10)
    seed, salt = key
    grid = np.stack([uniform(seed, salt * 16 + k, ny[:, None], nx[None, :]) for k in range(channels)])
    nodes = np.floor(grid * 17).astype(np.float32) - 8
    return spread(wy, nodes, wx, 2.0**-23)


def ramp(values: NDArray[Any], low: float, high: float) -> Floats:
    """0 at ``low`` and below, 1 at ``high`` and above, straight between."""
    scaled = np.asarray(values * (1 / (high - low)) - low / (high - low), np.float32)
    return np.clip(scaled, 0, 1, out=scaled)


def _nucleus(side: NDArray[Any], turn: float, shape: Sequence[float], u: NDArray[np.float64], salt: int) -> Floats:
    """One nucleus: ``shape`` is half length and half width (um), darkness, and how much paler the inside is."""
    long, short, dark, pale = shape
    a, b = long * (0.8 + 0.45 * u[0]), short * (0.85 + 0.4 * u[1])
    along = (np.cos(turn) * side[:, None] - np.sin(turn) * side[None, :]) / a
    across = (np.cos(turn) * side[None, :] + np.sin(turn) * side[:, None]) / b
    theta = np.arctan2(along, across)
    r = np.hypot(along, across) * (1 + 0.1 * np.cos(2 * theta + 6 * u[2]) + 0.07 * np.cos(3 * theta + u[3]))
    blur = max(1.0, 1.2 * float(side[1] - side[0]))
    chromatin = noise((7, salt), 1, 0.9, side, side)[0]
    body = 1 - pale * (1 - np.clip(r, 0, 1) ** 3) * 0.7 + 0.45 * chromatin
    return np.asarray(np.clip((1 - r) * b / blur + 0.5, 0, 1) * dark * (0.85 + 0.3 * u[4]) * body, np.float32)


@lru_cache(maxsize=4)
def nuclei(scale: float) -> Floats:
    """Haematoxylin of 3 kinds x 16 nuclei (spindle by angle, lymphocyte, vesicular), square, ``scale`` um/pixel."""
    half = int(np.ceil(9.0 / scale))
    side = np.arange(-half, half + 1) * scale
    kinds = ((6.4, 1.7, 0.85, 0.3), (3.1, 2.9, 1.05, 0.2), (4.6, 3.3, 0.7, 0.75))
    u = uniform(1, 1, np.arange(len(kinds) * ANGLES)[:, None], np.arange(6)[None, :])
    each = [(shape, np.pi * j / ANGLES) for shape in kinds for j in range(ANGLES)]
    return np.stack([_nucleus(side, turn, shape, u[k], 60 + k) for k, (shape, turn) in enumerate(each)])


def _outline(theta: NDArray[Any], u: NDArray[np.float64]) -> NDArray[Any]:
    """Radius of a gland, in micrometres, by direction."""
    ripple = np.stack([0.16 / k * np.cos(k * theta + 6.28 * u[k]) for k in (2, 3, 5)]).sum(axis=0)
    return np.asarray((33 + 24 * u[0]) * (1 + ripple))


def _ring(j: int, scale: float, side: int, u: NDArray[np.float64]) -> Floats:
    """Haematoxylin of the nuclei at the base of the cells of gland ``j``, each turned to its centre."""
    bank = nuclei(scale)
    size = bank.shape[1]
    plane = np.zeros((side, side), np.float32)
    count = int(2 * np.pi * (33 + 24 * u[0]) / 6.6)
    v = uniform(4, j, np.arange(count)[:, None], np.arange(3)[None, :])
    turn = 2 * np.pi * (np.arange(count) + 0.6 * v[:, 0]) / count
    radius = _outline(turn, u) - 6.5 - 4.5 * v[:, 1]
    top, left = (np.rint(radius * f(turn) / scale).astype(int) + side // 2 - size // 2 for f in (np.sin, np.cos))
    angle = np.rint((np.pi / 2 - turn) / np.pi * ANGLES).astype(int) % ANGLES
    pick = np.where(v[:, 2] < 0.85, 2 * ANGLES, ANGLES) + angle
    for k in np.flatnonzero(v[:, 1] < 0.9).tolist():
        view = plane[top[k] : top[k] + size, left[k] : left[k] + size]
        np.maximum(view, bank[pick[k]], out=view)
    return plane


@lru_cache(maxsize=2)
def glands(scale: float) -> Image:
    """Eight gland cross-sections, shape (8, 3, y, x): opacity in 1/255, eosin and haematoxylin as looked up."""
    half = int(np.ceil(74.0 / scale))
    side = (np.arange(-half, half + 1) * scale).astype(np.float32)
    theta = np.arctan2(side[:, None], side[None, :])
    radius = np.hypot(side[:, None], side[None, :])
    bank = np.zeros((8, 3, side.size, side.size), np.uint8)
    for j in range(8):
        u = uniform(2, j, np.arange(12), np.zeros(12, np.int64))
        rough = noise((3, j), 3, 9.0, side, side)
        depth = np.asarray(_outline(theta, u) - radius + 2 * rough[0], np.float32)
        high = 17 + 8 * float(u[1])
        lumen = ramp(depth, high - 1.5, high + 1.5)
        base = 1 - ramp(np.abs(depth - 1), 0.5, 2.5)
        secretion = ramp(rough[2], 0.05, 0.5) * ramp(depth, high + 5, high + 14) * float(u[6] > 0.4)
        nuclei = _ring(j, scale, side.size, u)
        eosin = (0.24 + 0.08 * rough[1] + 0.16 * ramp(depth, high - 7, high)) * (1 - lumen) + 0.12 * base
        eosin = eosin * (1 - 0.4 * np.clip(nuclei, 0, 1)) + 0.07 * secretion
        blue = (0.16 + 0.06 * rough[2]) * (1 - lumen) + nuclei
        planes = np.stack((ramp(depth, -1.0, 1.0), eosin / E_MAX, blue / H_MAX))
        bank[j] = np.rint(255 * np.clip(planes, 0, 1))
    return bank


@lru_cache(maxsize=4)
def stains(background: tuple[int, int, int]) -> NDArray[np.uint32]:
    """Colours (red in the low byte) by eosin (low byte) and haematoxylin (high byte), two levels darker than meant.

    The glass noise of 0 to 4 levels is added afterwards and makes up for it; it also hides the 8-bit steps.
    """
    h, e = np.meshgrid(np.linspace(0, H_MAX, 256), np.linspace(0, E_MAX, 256), indexing="ij")
    table = np.zeros((256, 256), np.uint32)
    for k, glass in enumerate(background):
        value = glass * 10.0 ** -(h * _HAEMATOXYLIN[k] + e * _EOSIN[k])
        table |= np.clip(np.rint(value) - 2, 0, 251).astype(np.uint32) << np.uint32(8 * k)
    return table.reshape(-1)


@lru_cache(maxsize=2)
def banks(seed: int) -> tuple[Image, Floats]:
    """Periodic sensor noise (0 to 4, per channel) and fine grain (about -1 to 1)."""
    y, x = np.arange(_PERIOD)[:, None], np.arange(_PERIOD)[None, :]
    u = np.stack([uniform(seed, 900 + k, y, x) for k in range(4)], axis=-1)
    sensor = np.rint(2 + 2.2 * (u[..., 3:] - 0.5) + 1.7 * (u[..., :3] - 0.5))
    grain = u[..., 3] - 0.5
    for axis in (0, 1, 0, 1):
        grain = (np.roll(grain, 1, axis) + 2 * grain + np.roll(grain, -1, axis)) / 4
    return sensor.astype(np.uint8), (grain * 6).astype(np.float32)


def repeat[T: np.generic](bank: NDArray[T], ys: Ints, xs: Ints) -> NDArray[T]:
    """Cut consecutive places out of a periodic picture, several times faster than by indexing with them."""
    y, x = int(ys[0]) % _PERIOD, int(xs[0]) % _PERIOD
    down, right = (y + ys.size - 1) // _PERIOD + 1, (x + xs.size - 1) // _PERIOD + 1
    part = (bank if down == 1 else np.concatenate([bank] * down, axis=0))[y : y + ys.size]
    return (part if right == 1 else np.concatenate([part] * right, axis=1))[:, x : x + xs.size]


@lru_cache(maxsize=1)
def fibres() -> Floats:
    """Profile across collagen bundles, 0 to 1, 4 entries per micrometre, periodic."""
    at = np.arange(4096)
    total = np.zeros(4096)
    for k, (count, weight) in enumerate(((64, 0.45), (171, 0.8), (410, 0.8), (900, 0.45))):
        knots = uniform(5, k, np.arange(count), np.zeros(count, np.int64))
        place = at * count / 4096
        i, f = np.floor(place).astype(int), place % 1
        total += weight * (knots[i] + (knots[(i + 1) % count] - knots[i]) * f * f * (3 - 2 * f))
    total -= total.min()
    return (total / total.max()).astype(np.float32)
