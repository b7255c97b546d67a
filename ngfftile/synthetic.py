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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from ngfftile.errors import OptionError

__all__ = ["TissueField", "write_svs"]

type Floats = NDArray[np.float32]
type Ints = NDArray[np.int64]
type Image = NDArray[np.uint8]

# Optical density per unit of stain in red, green, blue. Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23:291
# (2001), with the digits of the ImageJ plug-in "Colour Deconvolution".
_HAEMATOXYLIN: Final = (0.644211, 0.716556, 0.266844)
_EOSIN: Final = (0.092789, 0.954111, 0.283111)
# Stain amounts are looked up in 8 bits each; the top of the scale is as dark as a pyknotic nucleus.
_H_MAX: Final = 1.7
_E_MAX: Final = 1.1

_PERIOD: Final = 512  # pixels after which grain repeats: too fine to be seen at an overview
_NUCLEUS_CELL: Final = 8.5  # micrometres between candidate nuclei
_GLAND_CELL: Final = 135.0  # micrometres between candidate glands
_SPECK_CELL: Final = 350.0  # micrometres between candidate specks of debris
_ADIPOCYTE: Final = 62.0  # micrometres between fat cells
_ANGLES: Final = 16
_STEP: Final = 4  # Aperio pyramids shrink by 4
_SMALLEST: Final = 2000  # pixels along the longer side below which Aperio adds no level
_VERSION: Final = "Aperio Image Library v12.0.15 \r\n"
# 3 x 5 dot letters, rows from the top, most significant bit at the left.
_GLYPHS: Final = {
    "C": 0o74447,
    "E": 0o74647,
    "H": 0o55755,
    "I": 0o72227,
    "N": 0o57775,
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
    right = wx.T * np.float32(scale)
    planes = np.empty((nodes.shape[0], wy.shape[0], wx.shape[0]), np.float32)
    rows = max(1, 2**18 // (nodes.shape[2] * max(nodes.shape[1], wx.shape[0])))
    for top in range(0, wy.shape[0], rows):
        np.matmul(wy[top : top + rows] @ nodes, right, out=planes[:, top : top + rows])
    return planes


def _noise(seed: int, salt: int, channels: int, spacing: float, ys: NDArray[Any], xs: NDArray[Any]) -> Floats:
    """Smooth value noise in [-1, 1], shape (channels, y, x): values up to 8 and 10-bit weights are exact in float32."""
    ny, wy = _spline(ys, spacing, 10)
    nx, wx = _spline(xs, spacing, 10)
    salts = np.arange(salt * 16, salt * 16 + channels)
    grid = np.stack([_uniform(seed, int(s), ny[:, None], nx[None, :]) for s in salts])
    nodes = np.floor(grid * 17).astype(np.float32) - np.float32(8)
    return _spread(wy, nodes, wx, 2.0**-23)


def _ramp(values: Floats, low: float, high: float) -> Floats:
    """0 at ``low`` and below, 1 at ``high`` and above, straight between."""
    scaled = values * np.float32(1 / (high - low)) - np.float32(low / (high - low))
    return np.clip(scaled, np.float32(0), np.float32(1), out=scaled)


@lru_cache(maxsize=4)
def _nuclei(scale: float) -> Floats:
    """Haematoxylin of 3 kinds x 16 nuclei (spindle by angle, lymphocyte, vesicular), square, ``scale`` um/pixel."""
    half = int(np.ceil(9.0 / scale))
    side = np.arange(-half, half + 1) * scale
    bank = np.zeros((3 * _ANGLES, side.size, side.size), np.float32)
    u = _uniform(1, 1, np.arange(3 * _ANGLES)[:, None], np.arange(6)[None, :])
    for k, (long, short, dark, flat) in enumerate(((6.4, 1.7, 0.85, 0.3), (3.1, 2.9, 1.05, 0.2), (4.6, 3.3, 0.7, 0.75))):
        for j in range(_ANGLES):
            v = u[k * _ANGLES + j]
            angle = np.pi * j / _ANGLES
            along = np.cos(angle) * side[:, None] - np.sin(angle) * side[None, :]
            across = np.cos(angle) * side[None, :] + np.sin(angle) * side[:, None]
            a, b = long * (0.8 + 0.45 * v[0]), short * (0.85 + 0.4 * v[1])
            theta = np.arctan2(along / a, across / b)
            r = np.hypot(along / a, across / b) * (1 + 0.1 * np.cos(2 * theta + 6 * v[2]) + 0.07 * np.cos(3 * theta + v[3]))
            edge = np.clip((1 - r) * b / max(1.0, 1.2 * scale) + 0.5, 0, 1)
            chromatin = _noise(7, 60 + k * _ANGLES + j, 1, 0.9, side, side)[0]
            body = 1 - flat * (1 - np.clip(r, 0, 1) ** 3) * 0.7 + 0.45 * chromatin
            bank[k * _ANGLES + j] = edge * dark * (0.85 + 0.3 * v[4]) * body
    return bank


@lru_cache(maxsize=2)
def _glands(scale: float) -> Image:
    """Six gland cross-sections, shape (6, 3, y, x): opacity / 255, eosin and haematoxylin in the lookup's units."""
    half = int(np.ceil(74.0 / scale))
    side = (np.arange(-half, half + 1) * scale).astype(np.float32)
    theta = np.arctan2(side[:, None], side[None, :])
    radius = np.hypot(side[:, None], side[None, :])
    bank = np.zeros((6, 3, side.size, side.size), np.uint8)
    stamps = _nuclei(scale)
    for j in range(6):
        u = _uniform(2, j, np.arange(12), np.zeros(12, np.int64))
        ripple = sum(0.16 / k * np.cos(k * theta + 6.28 * u[k]) for k in (2, 3, 5))
        outer = (44 + 14 * u[0]) * (1 + ripple)
        rough = _noise(3, j, 3, 9.0, side, side)
        depth = outer - radius + 2 * rough[0]
        high = 19 + 5 * u[1]
        lumen = _ramp(depth, high - 1.5, high + 1.5)
        rim = 1 - _ramp(abs(depth - 1.0), 0.5, 2.5)
        eosin = (0.26 + 0.08 * rough[1] + 0.16 * _ramp(depth, high - 7, high)) * (1 - lumen) + 0.12 * rim
        secretion = _ramp(rough[2], 0.05, 0.5) * (u[2] > 0.5) * _ramp(depth, high + 5, high + 14)
        blue = (0.16 + 0.06 * rough[2]) * (1 - lumen)
        nuclei = np.zeros_like(radius)
        count = int(2 * np.pi * 42 / 6.0)
        spread = _uniform(4, j, np.arange(count)[:, None], np.arange(3)[None, :])
        for i, (du, dr, kind) in enumerate(spread):
            if dr > 0.9:
                continue
            turn = 2 * np.pi * (i + 0.6 * du) / count
            wave = sum(0.16 / k * np.cos(k * turn + 6.28 * u[k]) for k in (2, 3, 5))
            r = (44 + 14 * u[0]) * (1 + wave) - 6.5 - 4.5 * dr
            angle = int(np.rint((np.pi / 2 - turn) / np.pi * _ANGLES)) % _ANGLES
            stamp = stamps[(2 * _ANGLES if kind < 0.85 else _ANGLES) + angle]
            y, x = (int(np.rint(r * f(turn) / scale)) + half - stamp.shape[0] // 2 for f in (np.sin, np.cos))
            view = nuclei[y : y + stamp.shape[0], x : x + stamp.shape[1]]
            np.maximum(view, stamp, out=view)
        eosin = eosin * (1 - 0.4 * np.clip(nuclei, 0, 1)) + 0.07 * secretion
        planes = (_ramp(depth, -1.0, 1.0), eosin / _E_MAX, (blue + nuclei) / _H_MAX)
        bank[j] = np.rint(255 * np.clip(np.stack(planes), 0, 1))
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
    """The part of a periodic picture at consecutive places; several times faster than indexing with them."""
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
        self._colours = _stains((int(background[0]), int(background[1]), int(background[2])))
        self._glass = np.array([min(max(int(v) - 2, 0), 251) for v in background], np.uint8)
        self._cell = float(max(16, 1 << max(0, (max(width, height) - 1).bit_length() - 10)))
        self._layout = self._lay_out()

    def _lay_out(self) -> Floats:
        """Whole numbers up to 511 at the layout's nodes: signed depth into the tissue (um), gland, fat, crowding."""
        short, long = sorted((self.width, self.height))
        ys = (np.arange(self.height // self._cell + 4) - 1) * self._cell
        xs = (np.arange(self.width // self._cell + 4) - 1) * self._cell
        coarse = _noise(self.seed, 1, 6, short * 0.27, ys, xs)
        ripple = _noise(self.seed, 2, 4, short * 0.09, ys, xs)
        y = ys[:, None] + short * (0.20 * coarse[0] + 0.05 * ripple[0])
        x = xs[None, :] + short * (0.20 * coarse[1] + 0.05 * ripple[1])
        pieces = min(max(round(2 * long / short), 2), 6)
        u = _uniform(self.seed, 3, np.arange(pieces + 3)[:, None], np.arange(6)[None, :])
        depth = np.full(y.shape, -1e6)
        for k, v in enumerate(u):
            big = k < pieces
            at = ((k + 0.4 + 0.2 * v[0]) / pieces if big else 0.05 + 0.9 * v[0]) * long
            across = (0.42 + 0.16 * v[1] if big else 0.08 + 0.84 * v[1]) * short
            a, b = (long / pieces * (0.36 + 0.08 * v[2]), short * (0.27 + 0.12 * v[3])) if big else (
                short * (0.02 + 0.03 * v[2]), short * (0.015 + 0.02 * v[3]))
            dx, dy = (x - at, y - across) if self.width >= self.height else (y - at, x - across)
            turn = 0.7 * (v[4] - 0.5)
            along, aside = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
            depth = np.maximum(depth, (1 - np.hypot(along / a, aside / b)) * min(a, b) * self.mpp)
        gland = 0.55 + 2.6 * coarse[2] + 1.2 * ripple[2]
        fat = 3.2 * coarse[3] + 1.2 * ripple[1] - 0.75
        crowd = 0.25 + 0.9 * coarse[4] + 1.1 * ripple[3]
        zones = np.stack([depth / 511, gland * (fat < 0.1), fat, crowd])
        zones[1:] = np.clip(zones[1:], 0, 1)
        return np.rint(np.clip(zones, -1, 1) * 511).astype(np.float32)

    def _window(self, ys: NDArray[Any], xs: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
        """Layout nodes around the places, and the weights along y and x."""
        ny, wy = _spline(ys, self._cell, 7)
        nx, wx = _spline(xs, self._cell, 7)
        rows = np.clip(ny + 1, 0, self._layout.shape[1] - 1)
        columns = np.clip(nx + 1, 0, self._layout.shape[2] - 1)
        return self._layout[:, rows[:, None], columns[None, :]], wy, wx

    def _zones(self, ys: NDArray[Any], xs: NDArray[Any]) -> dict[str, Floats]:
        """What the tissue is like at the places: smooth planes, each of shape (y, x)."""
        nodes, wy, wx = self._window(ys, xs)
        depth, gland, fat, crowd = _spread(wy, nodes, wx, 2.0**-14)
        broad = _noise(self.seed, 20, 3, 190 / self._scale, ys, xs)
        mid = _noise(self.seed, 21, 4, 46 / self._scale, ys, xs)
        slope_y = (ys * (0.21 * self._scale)).astype(np.float32)[:, None]
        slope_x = (xs * (0.33 * self._scale)).astype(np.float32)[None, :]
        flow = (slope_y + slope_x) + np.float32(260) * broad[0] + np.float32(26) * mid[0]
        rough = self._roughness()
        return {
            "depth": depth + np.float32(0.7 * rough) * broad[1] + np.float32(0.3 * rough) * mid[1],
            "gland": gland * np.float32(1 / 511),
            "fat": fat * np.float32(1 / 511) + np.float32(0.25) * mid[3],
            "crowd": crowd * np.float32(1 / 511) + np.float32(0.45) * mid[2],
            "flow": flow,
            "tear": np.float32(0.75) * broad[2] + np.float32(0.5) * mid[3] - np.float32(0.3) * mid[2],
            "broad": broad[1],
        }

    def _roughness(self) -> float:
        """How far, in micrometres, noise may move the outline of the tissue."""
        return min(90.0, 0.12 * self.mpp * min(self.width, self.height))

    def _stroma(self, ys: Ints, xs: Ints) -> tuple[Floats, Floats]:
        """Haematoxylin and eosin of everything but glass and debris."""
        z = self._zones(ys, xs)
        if float(z["depth"].max()) < -1.5:
            return np.zeros_like(z["depth"]), np.zeros_like(z["depth"])
        grain = _repeat(_banks(self.seed)[1], ys, xs)
        fine = _noise(self.seed, 22, 2, 11 / self._scale, ys, xs)
        phase = z["flow"] + np.float32(5) * fine[0]
        fibre = _fibres().take((phase * np.float32(4)).astype(np.int64) & 4095)
        crowd = _ramp(z["crowd"], 0.1, 0.9)
        weave = np.float32(0.2) + np.float32(0.62) * fibre * (np.float32(1) + np.float32(0.9) * fine[1])
        weave -= np.float32(0.3) * crowd * (fibre - np.float32(0.5))
        eosin = (np.float32(0.29) + np.float32(0.09) * z["broad"]) * weave * (np.float32(1.25) + np.float32(0.3) * grain)
        eosin += np.float32(0.05)
        blue = np.float32(0.03) + np.float32(0.12) * crowd * (np.float32(1) + np.float32(0.5) * grain)
        cleft = _ramp(fibre + np.float32(0.45) * fine[1] + np.float32(0.1) * crowd, 0.02, 0.16)
        eosin *= cleft
        blue *= cleft
        nuclei = self._stamp_nuclei(ys, xs)
        eosin *= np.float32(1) - np.float32(0.5) * np.minimum(nuclei, np.float32(1))
        blue += nuclei
        self._stamp_glands(ys, xs, blue, eosin)
        keep = _ramp(z["depth"], -1.5, 1.5) * (np.float32(1) - _ramp(z["tear"], 0.52, 0.56))
        if float(z["fat"].max()) > 0.25:
            self._melt(ys, xs, z["fat"], blue, eosin)
        rim = _ramp(z["depth"], 30.0, 0.0)
        eosin *= keep * (np.float32(1) + np.float32(0.3) * rim)
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
        bank = _nuclei(self._scale)
        side = bank.shape[1]
        pitch, rows, columns = self._cells(ys, xs, _NUCLEUS_CELL, 9.0 + _NUCLEUS_CELL)
        z = self._zones((np.arange(rows[0] - 1, rows[-1] + 2) + 0.5) * pitch, (np.arange(columns[0] - 1, columns[-1] + 2) + 0.5) * pitch)
        uphill_y, uphill_x = z["flow"][2:, 1:-1] - z["flow"][:-2, 1:-1], z["flow"][1:-1, 2:] - z["flow"][1:-1, :-2]
        turns = np.arange(_ANGLES) * (np.pi / _ANGLES)
        angle = np.argmax(
            np.abs(uphill_y[..., None] * np.sin(turns).astype(np.float32) + uphill_x[..., None] * np.cos(turns).astype(np.float32)), axis=-1
        )
        depth, crowd, fat, tear = (z[name][1:-1, 1:-1] for name in ("depth", "crowd", "fat", "tear"))
        u = [_uniform(self.seed, 30 + k, rows[:, None], columns[None, :]) for k in range(5)]
        there = (u[0] < 0.13 + 0.75 * _ramp(crowd, 0.1, 0.9)) & (depth > 4) & (tear < 0.48) & (fat < 0.4 + 0.3 * u[1])
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

    def _stamp_glands(self, ys: Ints, xs: Ints, blue: Floats, eosin: Floats) -> None:
        """Glands, drawn over what is there, in the order of their cells."""
        pitch, rows, columns = self._cells(ys, xs, _GLAND_CELL, 90.0)
        z = self._zones((rows + 0.5) * pitch, (columns + 0.5) * pitch)
        u = [_uniform(self.seed, 40 + k, rows[:, None], columns[None, :]) for k in range(4)]
        there = (u[0] * 0.9 + 0.08 < z["gland"]) & (z["depth"] > 75) & (z["fat"] < 0.05)
        for i, j in np.argwhere(there).tolist():
            bank = _glands(self._scale)
            pick = int(u[1][i, j] * 48)
            stamp = bank[pick // 8]
            stamp = stamp.transpose(0, 2, 1) if pick & 1 else stamp
            stamp = stamp[:, :: -1 if pick & 2 else 1, :: -1 if pick & 4 else 1]
            top = int((rows[i] + 0.4 + 0.2 * u[2][i, j]) * pitch) - stamp.shape[1] // 2 - int(ys[0])
            left = int((columns[j] + 0.4 + 0.2 * u[3][i, j]) * pitch) - stamp.shape[1] // 2 - int(xs[0])
            part = np.s_[max(top, 0) : max(top + stamp.shape[1], 0), max(left, 0) : max(left + stamp.shape[1], 0)]
            target_h, target_e = blue[part], eosin[part]
            if target_h.size:
                y, x = max(-top, 0), max(-left, 0)
                cover, new_e, new_h = stamp[:, y : y + target_h.shape[0], x : x + target_h.shape[1]].astype(np.float32)
                cover *= np.float32(1 / 255)
                target_e += cover * (new_e * np.float32(_E_MAX / 255) - target_e)
                target_h += cover * (new_h * np.float32(_H_MAX / 255) - target_h)

    def _melt(self, ys: Ints, xs: Ints, fat: Floats, blue: Floats, eosin: Floats) -> None:
        """Turn the fatty zone into empty cells with thin walls (Worley noise: distance to the two nearest centres)."""
        pitch, rows, columns = self._cells(ys, xs, _ADIPOCYTE, 1.6 * _ADIPOCYTE)
        u = [_uniform(self.seed, 50 + k, rows[:, None], columns[None, :]) for k in range(2)]
        warp_y, warp_x = np.float32(8 / self._scale) * _noise(self.seed, 23, 2, 27 / self._scale, ys, xs)
        nearest = np.full(fat.shape, 9 * pitch * pitch, np.float32)
        second = nearest.copy()
        for i, j in np.ndindex(rows.size, columns.size):
            # Nothing further than 1.5 cells off can be among the two nearest, so each centre is spared the rest.
            cy = (rows[i] + 0.2 + 0.6 * u[0][i, j]) * pitch
            cx = (columns[j] + 0.2 + 0.6 * u[1][i, j]) * pitch
            part = tuple(slice(*np.searchsorted(at, (c - 1.6 * pitch, c + 1.6 * pitch))) for at, c in ((ys, cy), (xs, cx)))
            dy = (ys[part[0]] - cy).astype(np.float32)[:, None] + warp_y[part]
            dx = (xs[part[1]] - cx).astype(np.float32)[None, :] + warp_x[part]
            far = dy * dy + dx * dx
            np.minimum(second[part], np.maximum(nearest[part], far), out=second[part])
            np.minimum(nearest[part], far, out=nearest[part])
        gap = (np.sqrt(second) - np.sqrt(nearest)) * np.float32(self._scale)
        hollow = _ramp(gap, 1.6, 3.4) * _ramp(fat, 0.25, 0.4)
        eosin *= np.float32(1) - np.float32(0.97) * hollow
        blue *= np.float32(1) - np.float32(0.97) * hollow

    def _specks(self, ys: Ints, xs: Ints) -> list[tuple[int, int, int]]:
        """Debris on the glass that may reach the places: which nucleus it borrows the shape of, and top left corner."""
        side = _nuclei(self._scale).shape[1]
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
        _check_whole("width", width, 1, 2**31 - 1)
        _check_whole("height", height, 1, 2**31 - 1)
        ys, xs = np.arange(y, y + height), np.arange(x, x + width)
        sensor = _repeat(_banks(self.seed)[0], ys, xs)
        bare = float(self._window(ys, xs)[0][0].max()) < -self._roughness() - 2
        specks = self._specks(ys, xs)
        if bare and not specks:
            return np.asarray(sensor + self._glass, np.uint8)
        blue, eosin = (np.zeros((height, width), np.float32) for _ in range(2)) if bare else self._stroma(ys, xs)
        bank = _nuclei(self._scale)
        for pick, top, left in specks:
            part = np.s_[max(top, 0) : top + bank.shape[1], max(left, 0) : left + bank.shape[1]]
            view = blue[part]
            i, j = max(-top, 0), max(-left, 0)
            stamp = bank[pick, i : i + view.shape[0], j : j + view.shape[1]]
            view += np.float32(0.35) * stamp
            eosin[part] += np.float32(0.3) * stamp
        np.minimum(blue * np.float32(255 / _H_MAX), np.float32(255), out=blue)
        np.minimum(eosin * np.float32(255 / _E_MAX), np.float32(255), out=eosin)
        index = blue.astype(np.int64) * 256 + eosin.astype(np.int64)
        colours = self._colours.take(index).view(np.uint8).reshape(height, width, 4)
        return np.asarray(colours[..., :3] + sensor, np.uint8)


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
    return ((total + np.uint16(8)) >> np.uint16(4)).astype(np.uint8)


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
    """A paper label: a word, a bar code and a dot code that stand for nothing."""
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


def _macro(overview: Image, seed: int) -> Image:
    """The whole glass from above: label at the left, tissue at the right."""
    image = np.full((431, 1280, 3), (226, 228, 226), np.uint8)
    image[:5] = image[-5:] = (150, 158, 156)
    label = _fit(_label(seed), 330, 395)
    image[18 : 18 + label.shape[0], 20 : 20 + label.shape[1]] = label
    tissue = _fit(overview, 840, 380)
    top, left = (431 - tissue.shape[0]) // 2, 395 + (860 - tissue.shape[1]) // 2
    image[top : top + tissue.shape[0], left : left + tissue.shape[1]] = (tissue * np.float32(0.93)).astype(np.uint8)
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


def _write_pages(writer: _Writer, field: TissueField, folder: Path, associated: bool) -> None:
    """All pages in Aperio's order: level 0, thumbnail, other levels, label, macro."""
    sizes = [(field.width, field.height)]
    while max(sizes[-1]) > _SMALLEST and min(sizes[-1]) >= _STEP:
        sizes.append((sizes[-1][0] // _STEP, sizes[-1][1] // _STEP))
    # A slide too small for a second level is kept as it is, for the pictures of the whole.
    step = _STEP if len(sizes) > 1 else 1
    kept = [
        np.memmap(folder / f"level{k}", np.uint8, "w+", shape=(size[1], size[0], 3))
        for k, size in enumerate(sizes[1:] or sizes)
    ]

    def draw(x: int, y: int, width: int, height: int) -> Image:
        image = field.render(x, y, width, height)
        target = kept[0][y // step : (y + height) // step, x // step : (x + width) // step]
        target[:] = (_shrink(image) if step > 1 else image)[: target.shape[0], : target.shape[1]]
        return image

    writer.tiled(*sizes[0], draw)
    for finer, coarser in zip(kept, kept[1:], strict=False):
        for top in range(0, coarser.shape[0], 64):
            band = coarser[top : top + 64]
            band[:] = _shrink(finer[top * _STEP : (top + 64) * _STEP])[: band.shape[0]]
    if associated:
        writer.thumbnail(_fit(kept[-1], 1024, 768))
    for size, level in zip(sizes[1:], kept, strict=False):
        writer.tiled(*size, _reader(level))
    if associated:
        writer.striped(_label(field.seed), "label 387x463", 1)
        writer.striped(_macro(kept[-1], field.seed), "macro 1280x431", 9)


def _reader(level: Image) -> Callable[[int, int, int, int], Image]:
    def draw(x: int, y: int, width: int, height: int) -> Image:
        image = level[y : y + height, x : x + width]
        return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")

    return draw
