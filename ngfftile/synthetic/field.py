"""The picture on a synthetic slide, drawn anywhere and in any order."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ngfftile.errors import OptionError
from ngfftile.synthetic.textures import (
    ANGLES,
    E_MAX,
    H_MAX,
    Floats,
    Image,
    Ints,
    banks,
    check_number,
    check_whole,
    fibres,
    glands,
    noise,
    nuclei,
    ramp,
    repeat,
    spline,
    spread,
    stains,
    uniform,
)

_NUCLEUS_CELL: Final = 8.5  # micrometres between candidate nuclei
_GLAND_CELL: Final = 95.0  # micrometres between candidate glands
_GLAND_GAP: Final = 112.0  # least distance of two glands
_SPECK_CELL: Final = 350.0  # micrometres between candidate specks of debris
_ADIPOCYTE: Final = 62.0  # micrometres between fat cells
_BLOCK: Final = 512  # pixels drawn at a time along each axis: small enough for the processor's cache


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
        check_whole("width", width, 1, 2**31 - 1)
        check_whole("height", height, 1, 2**31 - 1)
        check_whole("seed", seed, -(2**63), 2**63 - 1)
        check_number("mpp", mpp, 0.001, 1000.0)
        if len(background) != 3:
            raise OptionError(f"background is {background!r}", where="synthetic", mend="Give red, green and blue.")
        for value in background:
            check_whole("background", value, 0, 255)
        self.width, self.height, self.mpp, self.seed = int(width), int(height), float(mpp), int(seed)
        self._scale = min(max(self.mpp, 0.125), 4.0)
        self.background = (int(background[0]), int(background[1]), int(background[2]))
        self._colours = stains(self.background)
        self._glass = np.array([min(max(value - 2, 0), 251) for value in self.background], np.uint8)
        self._sensor, self._grain = banks(self.seed)
        # How far, in micrometres, noise may move the outline of the tissue.
        self._roughness = min(90.0, 0.12 * self.mpp * min(self.width, self.height))
        self._cell = float(max(16, 1 << max(0, (max(width, height) - 1).bit_length() - 10)))
        self._layout = self._lay_out()
        # Made before any thread asks, so that they do not all make them at once.
        self._nuclei = nuclei(self._scale)
        room = (self._layout[0] + self._roughness > 75) & (self._layout[1] > 0)
        self._glands = glands(self._scale) if room.any() else np.zeros((8, 3, 1, 1), np.uint8)

    def _lay_out(self) -> Floats:
        """Whole numbers up to 511 at the layout's nodes: signed depth into the tissue (um), gland, fat, crowding."""
        short = min(self.width, self.height)
        ys = (np.arange(self.height // self._cell + 4) - 1) * self._cell
        xs = (np.arange(self.width // self._cell + 4) - 1) * self._cell
        coarse = noise((self.seed, 1), 6, short * 0.27, ys, xs)
        ripple = noise((self.seed, 2), 4, short * 0.09, ys, xs)
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
        for k, u in enumerate(uniform(self.seed, 3, np.arange(pieces + 3)[:, None], np.arange(5)[None, :])):
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
        ny, wy = spline(ys, self._cell, 7)
        nx, wx = spline(xs, self._cell, 7)
        rows = np.clip(ny + 1, 0, self._layout.shape[1] - 1)
        columns = np.clip(nx + 1, 0, self._layout.shape[2] - 1)
        return self._layout[:, rows[:, None], columns[None, :]], wy, wx

    def _zones(self, ys: NDArray[Any], xs: NDArray[Any]) -> dict[str, Floats]:
        """Say what the tissue is like at the places: smooth planes, each of shape (y, x)."""
        nodes, wy, wx = self._window(ys, xs)
        depth, gland, fat, crowd = spread(wy, nodes, wx, 2.0**-14)
        broad = noise((self.seed, 20), 3, 190 / self._scale, ys, xs)
        mid = noise((self.seed, 21), 4, 46 / self._scale, ys, xs)
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
        grain = repeat(self._grain, ys, xs)
        fine = noise((self.seed, 22), 2, 11 / self._scale, ys, xs)
        phase = z["flow"] + 5 * fine[0]
        fibre = fibres().take((phase * 4).astype(np.int64) & 4095)
        crowd = ramp(z["crowd"], 0.1, 0.9)
        weave = 0.2 + 0.62 * fibre * (1 + 0.9 * fine[1])
        weave -= 0.3 * crowd * (fibre - 0.5)
        eosin = np.asarray((0.29 + 0.09 * z["broad"]) * weave * (1.25 + 0.3 * grain) + 0.05, np.float32)
        blue = np.asarray(0.03 + 0.12 * crowd * (1 + 0.5 * grain), np.float32)
        cleft = ramp(fibre + 0.45 * fine[1] + 0.1 * crowd, 0.02, 0.16)
        eosin *= cleft
        blue *= cleft
        nuclei = self._stamp_nuclei(ys, xs)
        eosin *= 1 - 0.5 * np.minimum(nuclei, 1)
        blue += nuclei
        self._stamp_glands(ys, xs, blue, eosin)
        keep = ramp(z["depth"], -1.5, 1.5) * (1 - ramp(z["tear"], 0.52, 0.56))
        if float(z["fat"].max()) > 0.25:
            self._melt(ys, xs, z["fat"], blue, eosin)
        rim = ramp(z["depth"], 30.0, 0.0)
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
        turns = np.arange(ANGLES) * (np.pi / ANGLES)
        sines, cosines = np.sin(turns).astype(np.float32), np.cos(turns).astype(np.float32)
        # The best of 16 rather than an arctangent, whose last digit may depend on the place in the array.
        angle = np.argmax(np.abs(uphill_y[..., None] * sines + uphill_x[..., None] * cosines), axis=-1)
        depth, crowd, fat, tear = (z[name][1:-1, 1:-1] for name in ("depth", "crowd", "fat", "tear"))
        u = [uniform(self.seed, 630 + k, rows[:, None], columns[None, :]) for k in range(5)]
        there = (u[0] < 0.13 + 0.75 * ramp(crowd, 0.1, 0.9)) & (depth > 4) & (tear < 0.48) & (fat < 0.28)
        kind = np.where(u[1] < ramp(crowd, 0.25, 0.8), 1, np.where(u[2] < 0.75, 0, 2))
        pick = kind * ANGLES + angle
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
        u = [uniform(self.seed, 40 + k, rows[:, None], columns[None, :]) for k in range(5)]
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
                target_e += cover * (cut[1] * (E_MAX / 255) - target_e)
                target_h += cover * (cut[2] * (H_MAX / 255) - target_h)

    def _melt(self, ys: Ints, xs: Ints, fat: Floats, blue: Floats, eosin: Floats) -> None:
        """Turn the fatty zone into empty cells with thin walls (Worley noise: distance to the two nearest centres)."""
        pitch, rows, columns = self._cells(ys, xs, _ADIPOCYTE, 1.6 * _ADIPOCYTE)
        u = [uniform(self.seed, 50 + k, rows[:, None], columns[None, :]) for k in range(2)]
        warp_y, warp_x = np.float32(8 / self._scale) * noise((self.seed, 23), 2, 27 / self._scale, ys, xs)
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
        hollow = ramp(gap, 1.6, 3.4) * ramp(fat, 0.25, 0.4)
        eosin *= 1 - 0.97 * hollow
        blue *= 1 - 0.97 * hollow

    def _specks(self, ys: Ints, xs: Ints) -> list[tuple[int, int, int]]:
        """Debris on the glass that may reach the places: which nucleus it borrows the shape of, and top left corner."""
        side = self._nuclei.shape[1]
        pitch, rows, columns = self._cells(ys, xs, _SPECK_CELL, 9.0 + self._scale)
        u = [uniform(self.seed, 70 + k, rows[:, None], columns[None, :]) for k in range(4)]
        top = ((rows[:, None] + u[1]) * pitch).astype(np.int64) - side // 2 - int(ys[0])
        left = ((columns[None, :] + u[2]) * pitch).astype(np.int64) - side // 2 - int(xs[0])
        there = (u[0] < 0.10) & (top < ys.size) & (left < xs.size) & (top > -side) & (left > -side)
        picks = (u[3] * 3 * ANGLES).astype(np.int64)
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
            check_whole(name, value, low, 2**31 - 1)
        image = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                part = image[top : top + _BLOCK, left : left + _BLOCK]
                size = part.shape
                self._draw(np.arange(y + top, y + top + size[0]), np.arange(x + left, x + left + size[1]), part)
        return image

    def _draw(self, ys: Ints, xs: Ints, image: Image) -> None:
        """Draw the consecutive places ``ys`` and ``xs`` into ``image``."""
        sensor = repeat(self._sensor, ys, xs)
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
        np.minimum(blue * (255 / H_MAX), 255, out=blue)
        np.minimum(eosin * (255 / E_MAX), 255, out=eosin)
        index = blue.astype(np.int64) * 256 + eosin.astype(np.int64)
        colours = self._colours.take(index).view(np.uint8).reshape(*shape, 4)
        np.add(colours[..., :3], sensor, out=image)
