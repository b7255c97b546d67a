"""Synthetic slides that look like tissue stained with haematoxylin and eosin.

For tests, examples and benchmarks: no patient, no licence, any size, and the same bytes from the same arguments.
Every pixel is a function of the seed, the slide's size and the place, so tiles are seamless whatever their size and
order. That holds bit for bit because interpolation works on small integers held in float32, whose products and sums
are exact in any order, and everything else is elementwise.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from ngfftile.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["TissueField", "write_svs"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Image = NDArray[np.uint8]

# Optical density per unit of stain in red, green, blue. Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23:291
# (2001), with the digits of the ImageJ plug-in "Colour Deconvolution".
_HAEMATOXYLIN: Final = (0.644211, 0.716556, 0.266844)
_EOSIN: Final = (0.092789, 0.954111, 0.283111)
# Stain amounts are looked up in 8 bits each; the top of the scale is as dark as a pyknotic nucleus.
_H_MAX: Final = 1.7
_E_MAX: Final = 1.1

_PERIOD: Final = 512  # pixels after which grain repeats: too fine to be seen at an overview
_NUCLEUS_CELL: Final = 8.5  # micrometres between candidate nuclei
_GLAND_CELL: Final = 95.0  # micrometres between candidate glands
_GLAND_GAP: Final = 112.0  # least distance of two glands
_SPECK_CELL: Final = 350.0  # micrometres between candidate specks of debris
_ADIPOCYTE: Final = 62.0  # micrometres between fat cells
_ANGLES: Final = 16
_BLOCK: Final = 512  # pixels drawn at a time along each axis: small enough for the processor's cache
_STEP: Final = 4  # Aperio pyramids shrink by 4
_SMALLEST: Final = 2000  # pixels along the longer side below which Aperio adds no level
_VERSION: Final = "Aperio Image Library v12.0.15 \r\n"
# 3 x 5 dot letters, rows from the top, most significant bit at the left.
_GLYPHS: Final = {
    "C": 0o74447,
    "E": 0o74647,
    "H": 0o55755,
    "I": 0o72227,
    "N": 0o65555,
    "S": 0o74717,
    "T": 0o72222,
    "Y": 0o55222,
}


def _uniform(seed: int, salt: int, iy: Ints, ix: Ints) -> NDArray[np.float64]:
    """Random numbers in [0, 1) from integer places (broadcast, at least 1-D); the finaliser is splitmix64's."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) % 2**64)
    z = (iy.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)) ^ (ix.astype(np.uint64) * np.uint64(0x165667B19E3779F9))
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xBF58476D1CE4E5B9):
        z = (z ^ start ^ (z >> np.uint64(30))) * np.uint64(factor)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def _spline(at: NDArray[Any], spacing: float, bits: int) -> tuple[Ints, Floats]:
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


def _spread(wy: Floats, nodes: Floats, wx: Floats, scale: float) -> Floats:
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


def _noise(key: tuple[int, int], channels: int, spacing: float, ys: NDArray[Any], xs: NDArray[Any]) -> Floats:
    """Smooth value noise in [-1, 1], shape (channels, y, x): values up to 8 and 10-bit weights are exact in float32."""
    ny, wy = _spline(ys, spacing, 10)
    nx, wx = _spline(xs, spacing, 10)
    seed, salt = key
    grid = np.stack([_uniform(seed, salt * 16 + k, ny[:, None], nx[None, :]) for k in range(channels)])
    nodes = np.floor(grid * 17).astype(np.float32) - 8
    return _spread(wy, nodes, wx, 2.0**-23)


def _ramp(values: NDArray[Any], low: float, high: float) -> Floats:
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
    chromatin = _noise((7, salt), 1, 0.9, side, side)[0]
    body = 1 - pale * (1 - np.clip(r, 0, 1) ** 3) * 0.7 + 0.45 * chromatin
    return np.asarray(np.clip((1 - r) * b / blur + 0.5, 0, 1) * dark * (0.85 + 0.3 * u[4]) * body, np.float32)


@lru_cache(maxsize=4)
def _nuclei(scale: float) -> Floats:
    """Haematoxylin of 3 kinds x 16 nuclei (spindle by angle, lymphocyte, vesicular), square, ``scale`` um/pixel."""
    half = int(np.ceil(9.0 / scale))
    side = np.arange(-half, half + 1) * scale
    kinds = ((6.4, 1.7, 0.85, 0.3), (3.1, 2.9, 1.05, 0.2), (4.6, 3.3, 0.7, 0.75))
    u = _uniform(1, 1, np.arange(len(kinds) * _ANGLES)[:, None], np.arange(6)[None, :])
    each = [(shape, np.pi * j / _ANGLES) for shape in kinds for j in range(_ANGLES)]
    return np.stack([_nucleus(side, turn, shape, u[k], 60 + k) for k, (shape, turn) in enumerate(each)])


def _outline(theta: NDArray[Any], u: NDArray[np.float64]) -> NDArray[Any]:
    """Radius of a gland, in micrometres, by direction."""
    ripple = np.stack([0.16 / k * np.cos(k * theta + 6.28 * u[k]) for k in (2, 3, 5)]).sum(axis=0)
    return np.asarray((33 + 24 * u[0]) * (1 + ripple))


def _ring(j: int, scale: float, side: int, u: NDArray[np.float64]) -> Floats:
    """Haematoxylin of the nuclei at the base of the cells of gland ``j``, each turned to its centre."""
    bank = _nuclei(scale)
    size = bank.shape[1]
    plane = np.zeros((side, side), np.float32)
    count = int(2 * np.pi * (33 + 24 * u[0]) / 6.6)
    v = _uniform(4, j, np.arange(count)[:, None], np.arange(3)[None, :])
    turn = 2 * np.pi * (np.arange(count) + 0.6 * v[:, 0]) / count
    radius = _outline(turn, u) - 6.5 - 4.5 * v[:, 1]
    top, left = (np.rint(radius * f(turn) / scale).astype(int) + side // 2 - size // 2 for f in (np.sin, np.cos))
    angle = np.rint((np.pi / 2 - turn) / np.pi * _ANGLES).astype(int) % _ANGLES
    pick = np.where(v[:, 2] < 0.85, 2 * _ANGLES, _ANGLES) + angle
    for k in np.flatnonzero(v[:, 1] < 0.9).tolist():
        view = plane[top[k] : top[k] + size, left[k] : left[k] + size]
        np.maximum(view, bank[pick[k]], out=view)
    return plane


@lru_cache(maxsize=2)
def _glands(scale: float) -> Image:
    """Eight gland cross-sections, shape (8, 3, y, x): opacity in 1/255, eosin and haematoxylin as looked up."""
    half = int(np.ceil(74.0 / scale))
    side = (np.arange(-half, half + 1) * scale).astype(np.float32)
    theta = np.arctan2(side[:, None], side[None, :])
    radius = np.hypot(side[:, None], side[None, :])
    bank = np.zeros((8, 3, side.size, side.size), np.uint8)
    for j in range(8):
        u = _uniform(2, j, np.arange(12), np.zeros(12, np.int64))
        rough = _noise((3, j), 3, 9.0, side, side)
        depth = np.asarray(_outline(theta, u) - radius + 2 * rough[0], np.float32)
        high = 17 + 8 * float(u[1])
        lumen = _ramp(depth, high - 1.5, high + 1.5)
        base = 1 - _ramp(np.abs(depth - 1), 0.5, 2.5)
        secretion = _ramp(rough[2], 0.05, 0.5) * _ramp(depth, high + 5, high + 14) * float(u[6] > 0.4)
        nuclei = _ring(j, scale, side.size, u)
        eosin = (0.24 + 0.08 * rough[1] + 0.16 * _ramp(depth, high - 7, high)) * (1 - lumen) + 0.12 * base
        eosin = eosin * (1 - 0.4 * np.clip(nuclei, 0, 1)) + 0.07 * secretion
        blue = (0.16 + 0.06 * rough[2]) * (1 - lumen) + nuclei
        planes = np.stack((_ramp(depth, -1.0, 1.0), eosin / _E_MAX, blue / _H_MAX))
        bank[j] = np.rint(255 * np.clip(planes, 0, 1))
    return bank


@lru_cache(maxsize=4)
def _stains(background: tuple[int, int, int]) -> NDArray[np.uint32]:
    """Colours (red in the low byte) by eosin (low byte) and haematoxylin (high byte), two levels darker than meant.

    The glass noise of 0 to 4 levels is added afterwards and makes up for it; it also hides the 8-bit steps.
    """
    h, e = np.meshgrid(np.linspace(0, _H_MAX, 256), np.linspace(0, _E_MAX, 256), indexing="ij")
    table = np.zeros((256, 256), np.uint32)
    for k, glass in enumerate(background):
        value = glass * 10.0 ** -(h * _HAEMATOXYLIN[k] + e * _EOSIN[k])
        table |= np.clip(np.rint(value) - 2, 0, 251).astype(np.uint32) << np.uint32(8 * k)
    return table.reshape(-1)


@lru_cache(maxsize=2)
def _banks(seed: int) -> tuple[Image, Floats]:
    """Periodic sensor noise (0 to 4, per channel) and fine grain (about -1 to 1)."""
    y, x = np.arange(_PERIOD)[:, None], np.arange(_PERIOD)[None, :]
    u = np.stack([_uniform(seed, 900 + k, y, x) for k in range(4)], axis=-1)
    sensor = np.rint(2 + 2.2 * (u[..., 3:] - 0.5) + 1.7 * (u[..., :3] - 0.5))
    grain = u[..., 3] - 0.5
    for axis in (0, 1, 0, 1):
        grain = (np.roll(grain, 1, axis) + 2 * grain + np.roll(grain, -1, axis)) / 4
    return sensor.astype(np.uint8), (grain * 6).astype(np.float32)


def _repeat[T: np.generic](bank: NDArray[T], ys: Ints, xs: Ints) -> NDArray[T]:
    """Cut consecutive places out of a periodic picture, several times faster than by indexing with them."""
    y, x = int(ys[0]) % _PERIOD, int(xs[0]) % _PERIOD
    down, right = (y + ys.size - 1) // _PERIOD + 1, (x + xs.size - 1) // _PERIOD + 1
    part = (bank if down == 1 else np.concatenate([bank] * down, axis=0))[y : y + ys.size]
    return (part if right == 1 else np.concatenate([part] * right, axis=1))[:, x : x + xs.size]


@lru_cache(maxsize=1)
def _fibres() -> Floats:
    """Profile across collagen bundles, 0 to 1, 4 entries per micrometre, periodic."""
    at = np.arange(4096)
    total = np.zeros(4096)
    for k, (count, weight) in enumerate(((64, 0.45), (171, 0.8), (410, 0.8), (900, 0.45))):
        knots = _uniform(5, k, np.arange(count), np.zeros(count, np.int64))
        place = at * count / 4096
        i, f = np.floor(place).astype(int), place % 1
        total += weight * (knots[i] + (knots[(i + 1) % count] - knots[i]) * f * f * (3 - 2 * f))
    total -= total.min()
    return (total / total.max()).astype(np.float32)


class TissueField:
    """The picture on a slide, as a function of place that can be drawn anywhere, in any order.

    Parameters
    ----------
    width, height
        Size of the slide, in pixels. The tissue is laid out to fit it.
    mpp
        Micrometres per pixel. Nuclei are about 7 um across whatever it is; between 0.125 and 4, structures follow it.
    seed
        Any whole number; another one gives another slide.
    background
        Colour of bare glass: red, green, blue, 0 to 255.

    Raises
    ------
    OptionError
        If an argument is out of range.

    Examples
    --------
    >>> field = TissueField(4000, 3000, seed=1)
    >>> field.render(1000, 1000, 64, 32).shape
    (32, 64, 3)
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        mpp: float = 0.25,
        seed: int = 0,
        background: tuple[int, int, int] = (243, 242, 244),
    ) -> None:
        _check_whole("width", width, 1, 2**31 - 1)
        _check_whole("height", height, 1, 2**31 - 1)
        _check_whole("seed", seed, -(2**63), 2**63 - 1)
        _check_number("mpp", mpp, 0.001, 1000.0)
        if len(background) != 3:
            raise OptionError(f"background is {background!r}", where="synthetic", mend="Give red, green and blue.")
        for value in background:
            _check_whole("background", value, 0, 255)
        self.width, self.height, self.mpp, self.seed = int(width), int(height), float(mpp), int(seed)
        self._scale = min(max(self.mpp, 0.125), 4.0)
        self.background = (int(background[0]), int(background[1]), int(background[2]))
        self._colours = _stains(self.background)
        self._glass = np.array([min(max(value - 2, 0), 251) for value in self.background], np.uint8)
        self._sensor, self._grain = _banks(self.seed)
        # How far, in micrometres, noise may move the outline of the tissue.
        self._roughness = min(90.0, 0.12 * self.mpp * min(self.width, self.height))
        self._cell = float(max(16, 1 << max(0, (max(width, height) - 1).bit_length() - 10)))
        self._layout = self._lay_out()
        # Made before any thread asks, so that they do not all make them at once.
        self._nuclei = _nuclei(self._scale)
        room = (self._layout[0] + self._roughness > 75) & (self._layout[1] > 0)
        self._glands = _glands(self._scale) if room.any() else np.zeros((8, 3, 1, 1), np.uint8)

    def _lay_out(self) -> Floats:
        """Whole numbers up to 511 at the layout's nodes: signed depth into the tissue (um), gland, fat, crowding."""
        short = min(self.width, self.height)
        ys = (np.arange(self.height // self._cell + 4) - 1) * self._cell
        xs = (np.arange(self.width // self._cell + 4) - 1) * self._cell
        coarse = _noise((self.seed, 1), 6, short * 0.27, ys, xs)
        ripple = _noise((self.seed, 2), 4, short * 0.09, ys, xs)
        y = ys[:, None] + short * (0.20 * coarse[0] + 0.05 * ripple[0])
        x = xs[None, :] + short * (0.20 * coarse[1] + 0.05 * ripple[1])
        gland = 0.55 + 2.6 * coarse[2] + 1.2 * ripple[2]
        fat = 3.2 * coarse[3] + 1.2 * ripple[1] - 0.95
        crowd = 0.25 + 0.9 * coarse[4] + 1.1 * ripple[3]
        zones = np.clip(np.stack([gland * (fat < 0.1), fat, crowd]), 0, 1)
        depth = np.clip(self._pieces(y, x) / 511, -1, 1)
        return np.rint(np.concatenate([depth[None], zones]) * 511).astype(np.float32)

    def _pieces(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        """Depth, in micrometres, into the nearest of a few large ellipses in a row and three fragments anywhere."""
        short, long = sorted((self.width, self.height))
        row, column = (x, y) if self.width >= self.height else (y, x)
        pieces = min(max(round(2 * long / short), 2), 6)
        depth = np.full(y.shape, -1e6)
        for k, u in enumerate(_uniform(self.seed, 3, np.arange(pieces + 3)[:, None], np.arange(5)[None, :])):
            if k < pieces:
                at, across = (k + 0.4 + 0.2 * u[0]) / pieces * long, (0.42 + 0.16 * u[1]) * short
                a, b = long / pieces * (0.36 + 0.08 * u[2]), short * (0.27 + 0.12 * u[3])
            else:
                at, across = (0.05 + 0.9 * u[0]) * long, (0.08 + 0.84 * u[1]) * short
                a, b = short * (0.02 + 0.03 * u[2]), short * (0.015 + 0.02 * u[3])
            turn = 0.7 * (u[4] - 0.5)
            along = (row - at) * np.cos(turn) + (column - across) * np.sin(turn)
            aside = (column - across) * np.cos(turn) - (row - at) * np.sin(turn)
            depth = np.maximum(depth, (1 - np.hypot(along / a, aside / b)) * min(a, b) * self.mpp)
        return depth

    def _window(self, ys: NDArray[Any], xs: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
        """Layout nodes around the places, and the weights along y and x."""
        ny, wy = _spline(ys, self._cell, 7)
        nx, wx = _spline(xs, self._cell, 7)
        rows = np.clip(ny + 1, 0, self._layout.shape[1] - 1)
        columns = np.clip(nx + 1, 0, self._layout.shape[2] - 1)
        return self._layout[:, rows[:, None], columns[None, :]], wy, wx

    def _zones(self, ys: NDArray[Any], xs: NDArray[Any]) -> dict[str, Floats]:
        """Say what the tissue is like at the places: smooth planes, each of shape (y, x)."""
        nodes, wy, wx = self._window(ys, xs)
        depth, gland, fat, crowd = _spread(wy, nodes, wx, 2.0**-14)
        broad = _noise((self.seed, 20), 3, 190 / self._scale, ys, xs)
        mid = _noise((self.seed, 21), 4, 46 / self._scale, ys, xs)
        slope_y = (ys * (0.21 * self._scale)).astype(np.float32)[:, None]
        slope_x = (xs * (0.33 * self._scale)).astype(np.float32)[None, :]
        flow = (slope_y + slope_x) + 260 * broad[0] + 26 * mid[0]
        return {
            "depth": depth + 0.7 * self._roughness * broad[1] + 0.3 * self._roughness * mid[1],
            "gland": gland * 1 / 511,
            "fat": fat * 1 / 511 + 0.25 * mid[3],
            "crowd": crowd * 1 / 511 + 0.45 * mid[2],
            "flow": flow,
            "tear": 0.75 * broad[2] + 0.5 * mid[3] - 0.3 * mid[2],
            "broad": broad[1],
        }

    def _stroma(self, ys: Ints, xs: Ints) -> tuple[Floats, Floats]:
        """Haematoxylin and eosin of everything but glass and debris."""
        z = self._zones(ys, xs)
        if float(z["depth"].max()) < -1.5:
            return np.zeros_like(z["depth"]), np.zeros_like(z["depth"])
        grain = _repeat(self._grain, ys, xs)
        fine = _noise((self.seed, 22), 2, 11 / self._scale, ys, xs)
        phase = z["flow"] + 5 * fine[0]
        fibre = _fibres().take((phase * 4).astype(np.int64) & 4095)
        crowd = _ramp(z["crowd"], 0.1, 0.9)
        weave = 0.2 + 0.62 * fibre * (1 + 0.9 * fine[1])
        weave -= 0.3 * crowd * (fibre - 0.5)
        eosin = np.asarray((0.29 + 0.09 * z["broad"]) * weave * (1.25 + 0.3 * grain) + 0.05, np.float32)
        blue = np.asarray(0.03 + 0.12 * crowd * (1 + 0.5 * grain), np.float32)
        cleft = _ramp(fibre + 0.45 * fine[1] + 0.1 * crowd, 0.02, 0.16)
        eosin *= cleft
        blue *= cleft
        nuclei = self._stamp_nuclei(ys, xs)
        eosin *= 1 - 0.5 * np.minimum(nuclei, 1)
        blue += nuclei
        self._stamp_glands(ys, xs, blue, eosin)
        keep = _ramp(z["depth"], -1.5, 1.5) * (1 - _ramp(z["tear"], 0.52, 0.56))
        if float(z["fat"].max()) > 0.25:
            self._melt(ys, xs, z["fat"], blue, eosin)
        rim = _ramp(z["depth"], 30.0, 0.0)
        eosin *= keep * (1 + 0.3 * rim)
        blue *= keep
        return blue, eosin

    def _cells(self, ys: Ints, xs: Ints, pitch_um: float, reach_um: float) -> tuple[float, Ints, Ints]:
        """Pitch in pixels, and rows and columns of the cells whose contents may reach the places."""
        pitch = pitch_um / self._scale
        reach = reach_um / self._scale
        rows = np.arange(int((ys[0] - reach) // pitch), int((ys[-1] + reach) // pitch) + 1)
        return pitch, rows, np.arange(int((xs[0] - reach) // pitch), int((xs[-1] + reach) // pitch) + 1)

    def _stamp_nuclei(self, ys: Ints, xs: Ints) -> Floats:
        """Haematoxylin of the nuclei of stroma: spindles along the fibres, lymphocytes where it is crowded."""
        bank = self._nuclei
        side = bank.shape[1]
        pitch, rows, columns = self._cells(ys, xs, _NUCLEUS_CELL, 9.0 + _NUCLEUS_CELL)
        around = [(np.arange(at[0] - 1, at[-1] + 2) + 0.5) * pitch for at in (rows, columns)]
        z = self._zones(around[0], around[1])
        flow = z["flow"]
        uphill_y, uphill_x = flow[2:, 1:-1] - flow[:-2, 1:-1], flow[1:-1, 2:] - flow[1:-1, :-2]
        turns = np.arange(_ANGLES) * (np.pi / _ANGLES)
        sines, cosines = np.sin(turns).astype(np.float32), np.cos(turns).astype(np.float32)
        # The best of 16 rather than an arctangent, whose last digit may depend on the place in the array.
        angle = np.argmax(np.abs(uphill_y[..., None] * sines + uphill_x[..., None] * cosines), axis=-1)
        depth, crowd, fat, tear = (z[name][1:-1, 1:-1] for name in ("depth", "crowd", "fat", "tear"))
        u = [_uniform(self.seed, 630 + k, rows[:, None], columns[None, :]) for k in range(5)]
        there = (u[0] < 0.13 + 0.75 * _ramp(crowd, 0.1, 0.9)) & (depth > 4) & (tear < 0.48) & (fat < 0.28)
        kind = np.where(u[1] < _ramp(crowd, 0.25, 0.8), 1, np.where(u[2] < 0.75, 0, 2))
        pick = kind * _ANGLES + angle
        top = ((rows[:, None] + 0.15 + 0.7 * u[3]) * pitch).astype(np.int64) - int(ys[0]) + side // 2 + 1
        left = ((columns[None, :] + 0.15 + 0.7 * u[4]) * pitch).astype(np.int64) - int(xs[0]) + side // 2 + 1
        there &= (top >= 0) & (left >= 0) & (top <= ys.size + side) & (left <= xs.size + side)
        # The margin of one stamp all round spares clipping each one.
        plane = np.zeros((ys.size + 2 * side, xs.size + 2 * side), np.float32)
        for k, i, j in zip(pick[there].tolist(), top[there].tolist(), left[there].tolist(), strict=True):
            view = plane[i : i + side, j : j + side]
            np.maximum(view, bank[k], out=view)
        return plane[side : side + ys.size, side : side + xs.size]

    def _gland_places(self, ys: Ints, xs: Ints) -> list[tuple[int, int, int]]:
        """Glands that may reach the places: which one, and its centre. Scattered, but none on another."""
        pitch, rows, columns = self._cells(ys, xs, _GLAND_CELL, 75.0 + 3 * _GLAND_CELL)
        z = self._zones((rows + 0.5) * pitch, (columns + 0.5) * pitch)
        u = [_uniform(self.seed, 40 + k, rows[:, None], columns[None, :]) for k in range(5)]
        there = (u[0] * 0.9 + 0.08 < z["gland"]) & (z["depth"] > 75) & (z["fat"] < 0.05) & (z["tear"] < 0.35)
        if not there.any():
            return []
        cy, cx = (rows[:, None] + u[1]) * pitch, (columns[None, :] + u[2]) * pitch
        # Matern's hard-core process: of two too near, the one of lower rank is dropped, so no order matters.
        rank = np.where(there, u[3], -1.0)
        free = there.copy()
        for i, j in np.ndindex(5, 5):
            if (i, j) != (2, 2):
                shift = (2 - i, 2 - j)
                dy, dx, other = (np.roll(a, shift, (0, 1)) for a in (cy, cx, rank))
                free &= ((dy - cy) ** 2 + (dx - cx) ** 2 > (_GLAND_GAP / self._scale) ** 2) | (other < rank)
        # The two cells at each border have wrapped neighbours, but lie out of reach.
        picks = (u[4] * 64).astype(np.int64)
        return [(int(picks[i, j]), int(cy[i, j]), int(cx[i, j])) for i, j in np.argwhere(free[2:-2, 2:-2]) + 2]

    def _stamp_glands(self, ys: Ints, xs: Ints, blue: Floats, eosin: Floats) -> None:
        """Draw glands over what is there, in the order of their cells."""
        side = self._glands.shape[2]
        for pick, cy, cx in self._gland_places(ys, xs):
            stamp = self._glands[pick // 8]
            stamp = stamp.transpose(0, 2, 1) if pick & 1 else stamp
            stamp = stamp[:, :: -1 if pick & 2 else 1, :: -1 if pick & 4 else 1]
            top, left = cy - side // 2 - int(ys[0]), cx - side // 2 - int(xs[0])
            part = np.s_[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
            target_h, target_e = blue[part], eosin[part]
            if target_h.size:
                y, x = max(-top, 0), max(-left, 0)
                cut = stamp[:, y : y + target_h.shape[0], x : x + target_h.shape[1]].astype(np.float32)
                cover = cut[0] * (1 / 255)
                target_e += cover * (cut[1] * (_E_MAX / 255) - target_e)
                target_h += cover * (cut[2] * (_H_MAX / 255) - target_h)

    def _melt(self, ys: Ints, xs: Ints, fat: Floats, blue: Floats, eosin: Floats) -> None:
        """Turn the fatty zone into empty cells with thin walls (Worley noise: distance to the two nearest centres)."""
        pitch, rows, columns = self._cells(ys, xs, _ADIPOCYTE, 1.6 * _ADIPOCYTE)
        u = [_uniform(self.seed, 50 + k, rows[:, None], columns[None, :]) for k in range(2)]
        warp_y, warp_x = np.float32(8 / self._scale) * _noise((self.seed, 23), 2, 27 / self._scale, ys, xs)
        nearest = np.full(fat.shape, 9 * pitch * pitch, np.float32)
        second = nearest.copy()
        for i, j in np.ndindex(rows.size, columns.size):
            # Further than 1.6 cells off, a centre is all but never among the two nearest.
            cy = (rows[i] + 0.05 + 0.9 * u[0][i, j]) * pitch
            cx = (columns[j] + 0.05 + 0.9 * u[1][i, j]) * pitch
            reach = [np.searchsorted(at, (c - 1.6 * pitch, c + 1.6 * pitch)) for at, c in ((ys, cy), (xs, cx))]
            part = np.s_[reach[0][0] : reach[0][1], reach[1][0] : reach[1][1]]
            dy = (ys[part[0]] - cy).astype(np.float32)[:, None] + warp_y[part]
            dx = (xs[part[1]] - cx).astype(np.float32)[None, :] + warp_x[part]
            far = dy * dy + dx * dx
            np.minimum(second[part], np.maximum(nearest[part], far), out=second[part])
            np.minimum(nearest[part], far, out=nearest[part])
        gap = (np.sqrt(second) - np.sqrt(nearest)) * np.float32(self._scale)
        hollow = _ramp(gap, 1.6, 3.4) * _ramp(fat, 0.25, 0.4)
        eosin *= 1 - 0.97 * hollow
        blue *= 1 - 0.97 * hollow

    def _specks(self, ys: Ints, xs: Ints) -> list[tuple[int, int, int]]:
        """Debris on the glass that may reach the places: which nucleus it borrows the shape of, and top left corner."""
        side = self._nuclei.shape[1]
        pitch, rows, columns = self._cells(ys, xs, _SPECK_CELL, 9.0 + self._scale)
        u = [_uniform(self.seed, 70 + k, rows[:, None], columns[None, :]) for k in range(4)]
        top = ((rows[:, None] + u[1]) * pitch).astype(np.int64) - side // 2 - int(ys[0])
        left = ((columns[None, :] + u[2]) * pitch).astype(np.int64) - side // 2 - int(xs[0])
        there = (u[0] < 0.10) & (top < ys.size) & (left < xs.size) & (top > -side) & (left > -side)
        picks = (u[3] * 3 * _ANGLES).astype(np.int64)
        return list(zip(picks[there].tolist(), top[there].tolist(), left[there].tolist(), strict=True))

    def render(self, x: int, y: int, width: int, height: int) -> Image:
        """Draw a rectangle of the slide at full resolution.

        Parameters
        ----------
        x, y
            Its top left corner, in pixels. The picture goes on beyond the slide's edges.
        width, height
            Its size, in pixels, at least 1.

        Returns
        -------
        Red, green and blue, ``uint8``, of shape ``(height, width, 3)``.

        Raises
        ------
        OptionError
            If the size is less than 1.
        """
        for name, value, low in (("x", x, -(2**31)), ("y", y, -(2**31)), ("width", width, 1), ("height", height, 1)):
            _check_whole(name, value, low, 2**31 - 1)
        image = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                part = image[top : top + _BLOCK, left : left + _BLOCK]
                size = part.shape
                self._draw(np.arange(y + top, y + top + size[0]), np.arange(x + left, x + left + size[1]), part)
        return image

    def _draw(self, ys: Ints, xs: Ints, image: Image) -> None:
        """Draw the consecutive places ``ys`` and ``xs`` into ``image``."""
        sensor = _repeat(self._sensor, ys, xs)
        bare = float(self._window(ys, xs)[0][0].max()) < -self._roughness - 2
        specks = self._specks(ys, xs)
        if bare and not specks:
            np.add(sensor, self._glass, out=image)
            return
        shape = (ys.size, xs.size)
        blue, eosin = (np.zeros(shape, np.float32), np.zeros(shape, np.float32)) if bare else self._stroma(ys, xs)
        side = self._nuclei.shape[1]
        for pick, top, left in specks:
            part = np.s_[max(top, 0) : top + side, max(left, 0) : left + side]
            i, j = max(-top, 0), max(-left, 0)
            stamp = self._nuclei[pick, i : i + shape[0] - max(top, 0), j : j + shape[1] - max(left, 0)]
            blue[part] += 0.35 * stamp
            eosin[part] += 0.3 * stamp
        np.minimum(blue * (255 / _H_MAX), 255, out=blue)
        np.minimum(eosin * (255 / _E_MAX), 255, out=eosin)
        index = blue.astype(np.int64) * 256 + eosin.astype(np.int64)
        colours = self._colours.take(index).view(np.uint8).reshape(*shape, 4)
        np.add(colours[..., :3], sensor, out=image)


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}", where="synthetic", mend=f"Give a whole number from {low} to {high}.")


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}", where="synthetic", mend=f"Give a number from {low:g} to {high:g}.")


def _shrink(image: Image) -> Image:
    """Average squares of 4 x 4 pixels; what does not fill one is left out, as Aperio does."""
    height, width = image.shape[0] // _STEP, image.shape[1] // _STEP
    image = image[: height * _STEP, : width * _STEP]
    rows = image[0::_STEP].astype(np.uint16) + image[1::_STEP] + image[2::_STEP] + image[3::_STEP]
    total = rows[:, 0::_STEP] + rows[:, 1::_STEP] + rows[:, 2::_STEP] + rows[:, 3::_STEP]
    return np.asarray((total + np.uint16(8)) >> np.uint16(4), np.uint8)


def _fit(image: Image, width: int, height: int) -> Image:
    """Shrink to fit into ``width`` x ``height`` by averaging; never enlarge."""
    ratio = min(1.0, width / image.shape[1], height / image.shape[0])
    total: NDArray[Any] = image.astype(np.float64)
    for axis in (0, 1):
        old = image.shape[axis]
        new = max(1, round(old * ratio))
        edges = np.arange(new) * old // new
        counts = np.diff(np.append(edges, old)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        total = np.add.reduceat(total, edges, axis=axis) / counts
    return np.rint(total).astype(np.uint8)


def _text(image: Image, x: int, y: int, dot: int, text: str) -> None:
    """Write on a picture, in place, with square dots."""
    for k, letter in enumerate(text):
        rows = np.array([[_GLYPHS[letter] >> (14 - 3 * i - j) & 1 for j in range(3)] for i in range(5)], bool)
        part = image[y : y + 5 * dot, x + 4 * k * dot : x + (4 * k + 3) * dot]
        part[np.kron(rows, np.ones((dot, dot), bool))] = 35


def _label(seed: int) -> Image:
    """Draw a paper label: a word, a bar code and a dot code that stand for nothing."""
    image = np.full((463, 387, 3), 236, np.uint8)
    image[:6] = image[-6:] = image[:, :6] = image[:, -6:] = 120
    _text(image, 34, 50, 9, "SYNTHETIC")
    bars = np.repeat(_uniform(seed, 80, np.arange(80), np.zeros(80, np.int64)) < 0.5, 4)
    image[130:220, 34:354][:, bars] = 30
    dots = _uniform(seed, 81, np.arange(16)[:, None], np.arange(16)[None, :]) < 0.5
    dots[:, 0] = dots[-1] = True
    image[250:426, 34:210][np.kron(dots, np.ones((11, 11), bool))] = 30
    _text(image, 240, 260, 9, "HES")
    return image


def _macro(overview: Image, field: TissueField) -> Image:
    """Draw the whole glass from above: label at the left, tissue at the right."""
    glass = (226, 228, 226)
    image = np.full((431, 1280, 3), glass, np.uint8)
    image[:5] = image[-5:] = (150, 158, 156)
    label = _fit(_label(field.seed), 330, 395)
    image[18 : 18 + label.shape[0], 20 : 20 + label.shape[1]] = label
    tissue = _fit(overview, 840, 380)
    top, left = (431 - tissue.shape[0]) // 2, 395 + (860 - tissue.shape[1]) // 2
    dimmed = tissue * (np.array(glass) / np.maximum(field.background, 1))
    image[top : top + tissue.shape[0], left : left + tissue.shape[1]] = np.clip(dimmed, 0, 255)
    return image


def _split_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """Tables, and the image that refers to them: what TIFF keeps in JPEGTables (technote 2), and in each tile."""
    tables, image, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            tables += stream[at:end]
        else:
            image += stream[at:end]
        at = end
    return tables + b"\xff\xd9", image + stream[at:]


def _encode(tile: Image, quality: int) -> tuple[bytes, bytes]:
    stream = tifffile.TIFF.COMPRESSORS[7](
        np.ascontiguousarray(tile), quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=(2, 2), optimize=False
    )
    return _split_jpeg(bytes(stream))


def _in_order[A, B](work: Callable[[A], B], items: Iterator[A], workers: int) -> Iterator[B]:
    """Results in order from threads that run ahead by a few items, so memory stays bounded."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[B]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 3 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class _Writer:
    """Writes the pages of one slide."""

    def __init__(self, tif: tifffile.TiffWriter, field: TissueField, tile: int, quality: int, tail: str) -> None:
        self._tif, self._field, self._tile, self._quality, self._tail = tif, field, tile, quality, tail
        self._workers = os.cpu_count() or 1
        self._tables = _encode(np.zeros((tile, tile, 3), np.uint8), quality)[0]

    def tiled(self, width: int, height: int, draw: Callable[[int, int, int, int], Image]) -> None:
        """Write a level; ``draw`` gives whole tiles for x, y, width, height, in any order and from several threads."""
        tile, run = self._tile, max(1, 512 // self._tile)
        columns = -(-width // tile)

        def strip(at: tuple[int, int]) -> list[bytes]:
            count = min(run, columns - at[0])
            image = draw(at[0] * tile, at[1] * tile, count * tile, tile)
            return [_encode(part, self._quality)[1] for part in np.split(image, count, axis=1)]

        places = ((i, j) for j in range(-(-height // tile)) for i in range(0, columns, run))
        tiles = (one for many in _in_order(strip, places, self._workers) for one in many)
        size = f"{self._field.width}x{self._field.height}"
        arrow = "" if (width, height) == (self._field.width, self._field.height) else f" -> {width}x{height}"
        self._tif.write(
            tiles,
            shape=(height, width, 3),
            dtype=np.uint8,
            photometric="rgb",
            tile=(tile, tile),
            compression="jpeg",
            subsampling=(2, 2),
            jpegtables=self._tables,
            description=f"{_VERSION}{size} [0,0 {size}] ({tile}x{tile}){arrow} JPEG/RGB Q={self._quality}{self._tail}",
            metadata=None,
            software=False,
        )

    def thumbnail(self, image: Image) -> None:
        """Write the thumbnail."""
        size = f"{self._field.width}x{self._field.height}"
        self.striped(image, f"{size} -> {image.shape[1]}x{image.shape[0]} - {self._tail}")

    def striped(self, image: Image, text: str, kind: int | None = None) -> None:
        """Write the thumbnail or macro (JPEG) or label (LZW), as Aperio does."""
        lzw = kind == 1
        self._tif.write(
            image,
            photometric="rgb",
            rowsperstrip=16,
            compression="lzw" if lzw else "jpeg",
            predictor=lzw,
            compressionargs=None if lzw else {"level": self._quality},
            subsampling=None if lzw else (2, 2),
            subfiletype=kind,
            description=_VERSION + text,
            metadata=None,
            software=False,
            maxworkers=1,
        )


def _check_write(tile: int, quality: int, objective_power: float) -> None:
    _check_whole("tile", tile, 16, 4096)
    if tile % 16:
        raise OptionError(f"tile is {tile}", where="synthetic", mend="Give a multiple of 16.")
    _check_whole("quality", quality, 1, 100)
    _check_number("objective_power", objective_power, 0.1, 1000.0)


def write_svs(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    *,
    mpp: float = 0.25,
    seed: int = 0,
    tile: int = 256,
    quality: int = 85,
    objective_power: float = 40,
    background: tuple[int, int, int] = (243, 242, 244),
    associated: bool = True,
) -> Path:
    """Write a synthetic slide as an Aperio SVS, as a scanner would.

    The same arguments give the same bytes. Memory stays bounded whatever the size: a few tiles per processor, and
    reduced levels wait in files beside the target (1/16 of the raw picture, removed afterwards). The target appears
    when it is complete, and replaces what was there.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    width, height
        Size of level 0, in pixels.
    mpp
        Micrometres per pixel, stored with 4 decimals.
    seed
        Any whole number; another one gives another slide.
    tile
        Edge of the square tiles, in pixels: a multiple of 16, up to 4096.
    quality
        JPEG quality, 1 to 100.
    objective_power
        Magnification to store.
    background
        Colour of bare glass: red, green, blue, 0 to 255.
    associated
        Whether to write the thumbnail, label and macro pictures.

    Returns
    -------
    The path of the slide.

    Raises
    ------
    OptionError
        If an argument is out of range.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_svs(Path(folder, "slide.svs"), 600, 400).name
    'slide.svs'
    """
    field = TissueField(width, height, mpp=mpp, seed=seed, background=background)
    _check_write(tile, quality, objective_power)
    path = Path(path)
    tail = (
        f"|AppMag = {objective_power:g}|StripeWidth = 2040|ScanScope ID = SYNTHETIC|Filename = synthetic"
        f"|Date = 01/02/26|Time = 03:04:05|MPP = {mpp:.4f}|Left = 0.000000|Top = 0.000000"
    )
    # A classic TIFF ends at 4 GiB; JPEG at its worst is about as large as the raw picture.
    big = width * height > 2**30
    with tempfile.TemporaryDirectory(prefix=".synthetic-", dir=path.parent, ignore_cleanup_errors=True) as folder:
        part = Path(folder, "slide.svs")
        with tifffile.TiffWriter(part, bigtiff=big) as tif:
            _write_pages(_Writer(tif, field, tile, quality, tail), field, Path(folder), associated)
        part.replace(path)
    return path


class _Kept:
    """A reduced level in a file; mapped afresh for each use, so that what was written does not count as memory."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._path, self.width, self.height = path, width, height
        with path.open("wb") as file:
            file.truncate(width * height * 3)

    def pixels(self) -> Image:
        return np.memmap(self._path, np.uint8, "r+", shape=(self.height, self.width, 3))

    def tile(self, x: int, y: int, width: int, height: int) -> Image:
        """Read a rectangle, filled up with its last row and column beyond the level's edges."""
        image = self.pixels()[y : y + height, x : x + width]
        return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")

    def shrink_into(self, coarser: _Kept) -> None:
        for top in range(0, coarser.height, 64):
            band = coarser.pixels()[top : top + 64]
            band[:] = _shrink(self.pixels()[top * _STEP : (top + 64) * _STEP])[: band.shape[0]]


def _write_pages(writer: _Writer, field: TissueField, folder: Path, associated: bool) -> None:
    """All pages in Aperio's order: level 0, thumbnail, other levels, label, macro."""
    sizes = [(field.width, field.height)]
    while max(sizes[-1]) > _SMALLEST and min(sizes[-1]) >= _STEP:
        sizes.append((sizes[-1][0] // _STEP, sizes[-1][1] // _STEP))
    # A slide too small for a second level is kept as it is, for the pictures of the whole.
    step = _STEP if len(sizes) > 1 else 1
    kept = [_Kept(folder / f"level{k}", *size) for k, size in enumerate(sizes[1:] or sizes)]

    def draw(x: int, y: int, width: int, height: int) -> Image:
        image = field.render(x, y, width, height)
        target = kept[0].pixels()[y // step : (y + height) // step, x // step : (x + width) // step]
        target[:] = (_shrink(image) if step > 1 else image)[: target.shape[0], : target.shape[1]]
        return image

    writer.tiled(field.width, field.height, draw)
    for finer, coarser in pairwise(kept):
        finer.shrink_into(coarser)
    if associated:
        writer.thumbnail(_fit(kept[-1].pixels(), 1024, 768))
    for level in kept[: len(sizes) - 1]:
        writer.tiled(level.width, level.height, level.tile)
    if associated:
        writer.striped(_label(field.seed), "label 387x463", 1)
        writer.striped(_macro(kept[-1].pixels(), field), "macro 1280x431", 9)
