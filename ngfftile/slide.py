"""An OME-Zarr slide, opened lazily: small, immutable, picklable; metadata only until pixels are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from ngfftile import color as colours
from ngfftile import labels, lazy, ngff, picture
from ngfftile.errors import MissingError, OptionError, ResolutionError, StoreError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import Multiscale
from ngfftile.remote import store_at
from ngfftile.shards import MOST_LEVELS, LevelArray
from ngfftile.store import LABELS, Readable, Store
from ngfftile.view import Level, View

Array = NDArray[Any]
TOLERANCE = 0.05  # scanners of one nominal resolution differ by a few per cent: 0.2508, 0.499
_MOST_THUMBNAIL_PIXELS = 1 << 28


@dataclass(frozen=True, repr=False, eq=False)
class Associated(Mapping[str, Array]):
    """Associated images by role (label, macro, thumbnail); each is read when asked for, (height, width, 3) uint8."""

    store: Readable
    paths: Mapping[str, str]

    def __getitem__(self, role: str) -> Array:
        place = self.store.below(self.store.inside(self.paths[role]))
        image = ngff.parse(place.attributes(""), str(place))
        array = LevelArray(place, image.datasets[0].path, image.axes, whole=True)
        pixels = array.read(Region(0, 0, array.size.x, array.size.y))
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"Associated({', '.join(self.paths)})"


@dataclass(frozen=True, repr=False, eq=False)
class Labels(Mapping[str, "Slide"]):
    """Label images of a slide by name: each opens as a slide of one channel; a mask is written by assignment.

    Examples
    --------
    >>> slide = open("small.ome.zarr")
    >>> slide.labels["bright"] = slide.image(mpp=2.0).max("c") > 250
    >>> slide.labels["bright"].levels[0].size
    Size(x=600, y=400)
    """

    slide: Slide

    def __getitem__(self, name: str) -> Slide:
        if name not in self.slide.store.labels():
            raise KeyError(name)
        return open_store(self.slide.store.below(f"{LABELS}/{self.slide.store.inside(name)}"))

    def __setitem__(self, name: str, mask: xr.DataArray) -> None:
        """Write a mask (y, x) of the whole slide, at any resolution, as a label with the slide's levels."""
        store = self.slide.store
        if not isinstance(store, Store):
            raise OptionError("a store behind a url is read only", self.slide.url, "Write labels where its folder is.")
        pixels = np.asarray(mask.data.compute() if hasattr(mask.data, "compute") else mask.data)
        # A mask made from a view says how it lies; any other covers the whole slide.
        step_x = mask.attrs.get("downsample_x") or self.slide.size.x / pixels.shape[1]
        step_y = mask.attrs.get("downsample_y") or self.slide.size.y / pixels.shape[0]
        levels = self.slide.levels
        ratios = [(k.downsample / step_x, k.downsample_y / step_y) for k in levels]
        about = {k: mask.attrs[k] for k in ("filter", "options", "level", "mpp_x", "mpp_y") if k in mask.attrs}
        image = self.slide.multiscale
        labels.write_label(store, name, pixels, image, [k.size for k in levels], ratios, about)

    def __iter__(self) -> Iterator[str]:
        return iter(self.slide.store.labels())

    def __len__(self) -> int:
        return len(self.slide.store.labels())

    def __repr__(self) -> str:
        return f"Labels({', '.join(self)})"


@dataclass(frozen=True, eq=False, repr=False)
class Slide:
    """An OME-Zarr slide; made by `open`.

    Parameters
    ----------
    store
        Where its bytes are.
    multiscale
        What its metadata say.
    facts
        ``attributes.ngfftile``: provenance, properties; empty for stores that others wrote.
    """

    store: Readable
    multiscale: Multiscale
    facts: Mapping[str, Any]

    @property
    def url(self) -> str:
        """Where it was opened."""
        return str(self.store)

    @property
    def name(self) -> str:
        """The slide's name, without folder and ``.ome.zarr``."""
        return self.store.name.removesuffix(".zarr").removesuffix(".ome")

    @cached_property
    def _arrays(self) -> tuple[LevelArray, ...]:
        whole = self.facts.get("status") == "complete"
        return tuple(LevelArray(self.store, d.path, self.multiscale.axes, whole) for d in self.multiscale.datasets)

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "multiscale": self.multiscale, "facts": self.facts}

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The stored levels, the finest first."""
        y, x = self.multiscale.axes.index("y"), self.multiscale.axes.index("x")
        finest = self.multiscale.datasets[0].scale
        return tuple(
            Level(
                k,
                array.size,
                self.multiscale.mpp(k),
                data.scale[x] / finest[x],
                data.scale[y] / finest[y],
            )
            for k, (array, data) in enumerate(zip(self._arrays, self.multiscale.datasets, strict=True))
        )

    @property
    def size(self) -> Size:
        """Width and height of level 0 in pixels."""
        return self.levels[0].size

    @property
    def mpp(self) -> Mpp | None:
        """Micrometres per pixel of level 0, or None if nobody knows."""
        return self.levels[0].mpp

    @property
    def z(self) -> int:
        """Focal planes."""
        return self._arrays[0].z

    @property
    def t(self) -> int:
        """Points in time."""
        return self._arrays[0].t

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names."""
        named = [c.name for c in self.multiscale.channels]
        count = self._arrays[0].channels
        return tuple(named if len(named) == count else (f"channel {i}" for i in range(count)))

    @property
    def rgb(self) -> bool:
        """Whether its three channels are red, green and blue of one picture."""
        return self.multiscale.rgb(self._arrays[0].channels, self.dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a pixel."""
        return self._arrays[0].dtype

    @property
    def vendor(self) -> str | None:
        """Maker of the scanner, in lower case."""
        vendor = self._source.get("vendor")
        return str(vendor) if vendor else None

    @property
    def _source(self) -> Mapping[str, Any]:
        return self.facts.get("source") or {}

    @property
    def objective_power(self) -> float | None:
        """Magnification of the objective."""
        power = self.facts.get("objective_power")
        return float(power) if isinstance(power, int | float) else None

    @property
    def acquired(self) -> str | None:
        """When it was scanned, ISO 8601."""
        stamp = self.facts.get("acquired")
        return str(stamp) if stamp else None

    @property
    def bounds(self) -> Region | None:
        """Where on level 0 the scanner saw something, if the vendor says."""
        sides = [self.properties.get(f"openslide.bounds-{side}") for side in ("x", "y", "width", "height")]
        return Region(*(int(side) for side in sides if side)) if all(sides) else None

    @property
    def background(self) -> str:
        """Colour of the empty glass as the vendor says, RRGGBB; white where nobody does."""
        return self.properties.get("openslide.background-color", "FFFFFF")

    @property
    def ome_xml(self) -> str | None:
        """OME-XML: the source's own without the places of its pixels, or what we know; None in others' stores."""
        try:
            return self.store.whole("OME/METADATA.ome.xml").decode()
        except StoreError:
            return None

    @property
    def properties(self) -> Mapping[str, str]:
        """What the vendor's file said, by the vendor's own names."""
        properties: Mapping[str, str] = self.facts.get("properties", {})
        return properties

    @property
    def icc(self) -> bytes | None:
        """The ICC profile of the source, byte for byte."""
        about = self.facts.get("icc")
        return self.store.whole(self.store.inside(about["path"])) if about else None

    @property
    def associated(self) -> Associated:
        """Label, macro and thumbnail, where the source had them."""
        found = self.facts.get("associated", {})
        return Associated(self.store, {role: about["path"] for role, about in found.items()})

    @property
    def labels(self) -> Labels:
        """Label images beside the pixels; ``slide.labels["tissue"] = mask`` writes one."""
        return Labels(self)

    @cached_property
    def id(self) -> str:
        """Identity of the content: the same after a move, a rename or a new conversion of the same source."""
        mark = self._source.get("fingerprint")
        if not mark:
            coarse = self._arrays[-1]
            pixels = coarse.read(Region(0, 0, coarse.size.x, coarse.size.y))
            shapes = [(level.size.x, level.size.y) for level in self.levels]
            about = repr((shapes, self.store.sizes(self.multiscale.datasets[0].path)))
            mark = hashlib.sha256(about.encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
        return str(mark)[:32]

    def view(
        self,
        level: int | None = None,
        mpp: float | None = None,
        tolerance: float = TOLERANCE,
        *,
        t: int | None = None,
        z: int | None = None,
        color: str = "stored",
    ) -> View:
        """The slide at a level, or at a resolution.

        A resolution is the stored level within the tolerance, else the area mean of the next finer one.

        Parameters
        ----------
        level
            Stored level, 0 the finest.
        mpp
            Micrometres per pixel, along both axes. Give this or ``level``.
        tolerance
            Relative difference that still counts as the same resolution.
        t, z
            Point in time and focal plane; by default those that the store shows first, the middle of a focal stack.
        color
            ``stored`` leaves the colours as they are; ``srgb`` takes them through the slide's ICC profile. A slide
            without one is taken for sRGB.

        Raises
        ------
        ResolutionError
            No such level; finer than level 0; or the slide has no mpp.
        OptionError
            No such focal plane, point in time or colour space; a slide that is not RGB has no colours to convert.
        """
        if (level is None) == (mpp is None):
            raise OptionError(f"level is {level} and mpp is {mpp}", self.url, "Give exactly one of the two.")
        if level is None:
            assert mpp is not None
            found = self._at(Mpp.of(mpp).x, tolerance)
        elif 0 <= level < len(self.levels):
            found = self._view(self.levels[level])
        else:
            raise ResolutionError(f"no level {level}", self.url, f"It has levels 0 to {len(self.levels) - 1}.")
        return replace(found, t=self._plane("t", t), z=self._plane("z", z), profile=self._profile(color))

    @property
    def shown(self) -> dict[str, int]:
        """The point in time and the focal plane that are taken where none is asked for."""
        return {axis: self._plane(axis, None) for axis in "tz"}

    def _plane(self, axis: str, wanted: int | None) -> int:
        """A point in time or focal plane, by default the one that the store shows first."""
        count, shown = (self.t, self.multiscale.t) if axis == "t" else (self.z, self.multiscale.z)
        if wanted is None:
            return min(shown, count - 1)
        if not 0 <= wanted < count:
            raise OptionError(f"no {axis} {wanted}", self.url, f"It has {axis} 0 to {count - 1}.")
        return wanted

    def _profile(self, space: str) -> bytes | None:
        if space not in colours.SPACES:
            raise OptionError(f"color is {space!r}", self.url, f"Use one of {', '.join(colours.SPACES)}.")
        if space == "stored":
            return None
        if not self.rgb:
            raise OptionError("its channels are not red, green and blue", self.url, 'Use color="stored".')
        return self.icc

    def _view(self, level: Level, ratio_x: float = 1.0, ratio_y: float = 1.0) -> View:
        array = self._arrays[level.index]
        mpp = level.mpp.times(ratio_x, ratio_y) if level.mpp else None
        nearest = self.multiscale.label or self.dtype == bool  # names, and yes or no, have no mean
        white = np.iinfo(self.dtype).max if self.dtype.kind in "iu" else 1
        return View(array, level, ratio_x, ratio_y, mpp, white if self.rgb else array.fill, nearest)

    def _at(self, wanted: float, tolerance: float) -> View:
        finest = self.mpp
        if finest is None:
            raise ResolutionError(
                "the slide has no mpp", self.url, "Convert it with --mpp-override, or ask for a level."
            )
        if max(finest.x, finest.y) > wanted * (1 + tolerance):
            raise ResolutionError(
                f"{wanted:g} µm/px is finer than its finest, {finest}", self.url, "Ask for that, or coarser."
            )

        def off(level: Level) -> float:
            assert level.mpp is not None
            return max(abs(level.mpp.x - wanted), abs(level.mpp.y - wanted)) / wanted

        best = min(self.levels, key=off)
        if off(best) <= tolerance:
            return self._view(best)
        fitting = [k for k in self.levels if k.mpp and max(k.mpp.x, k.mpp.y) <= wanted * (1 + tolerance)]
        base = max(fitting, key=lambda k: k.index)
        assert base.mpp is not None
        return self._view(base, max(1.0, wanted / base.mpp.x), max(1.0, wanted / base.mpp.y))

    def image(
        self,
        level: int | None = None,
        mpp: float | None = None,
        tolerance: float = TOLERANCE,
        blocks: int | Size | None = None,
        *,
        t: int | None = None,
        z: int | None = None,
        color: str = "stored",
    ) -> xr.DataArray:
        """The slide at a level, or at a resolution, as a lazy array.

        Parameters
        ----------
        level, mpp, tolerance
            As for `view`.
        blocks
            Sides of dask's blocks in pixels; by default whole shards, or the largest part of one below 64 MB.

        t, z, color
            As for `view`; where t or z is None, and the slide has several, the array has that axis too.

        Returns
        -------
        xarray.DataArray
            (c, y, x) on dask; (t, c, z, y, x) of a slide with several points in time and focal planes. Coordinates are
            the pixels' centres in micrometres, as the store's scale and translation say
            (https://ngff.openmicroscopy.org/0.5/#trafo-md); in level-0 pixels where the slide has no mpp.
            ``attrs``: url, level read, mpp requested and delivered, downsample.

        Raises
        ------
        ResolutionError
            No such level; finer than level 0; or the slide has no mpp.

        Examples
        --------
        >>> slide = open("small.ome.zarr")
        >>> slide.image(mpp=1.0).shape
        (3, 100, 150)
        """
        view = self.view(level, mpp, tolerance, t=t, z=z, color=color)
        stacked = {axis: n for axis, n, at in (("t", self.t, t), ("z", self.z, z)) if n > 1 and at is None}
        name = (self.store, self.facts.get("source"), self.multiscale)
        data = lazy.array(view, stacked, Size.of(blocks) if blocks is not None else view.block(), name)
        dims = tuple(axis for axis in "tczyx" if axis in "cyx" or axis in stacked)
        coords = {a: list(self.channels) if a == "c" else lazy.axis(view, self.multiscale, a, stacked) for a in dims}
        attrs = {
            "url": self.url,
            "level": view.level.index,
            "mpp_requested": mpp,
            "mpp_x": view.mpp.x if view.mpp else None,
            "mpp_y": view.mpp.y if view.mpp else None,
            "downsample_x": view.downsample_x,
            "downsample_y": view.downsample_y,
            "rgb": self.rgb,
            "color": color if self.rgb else "stored",
        }
        return xr.DataArray(data, coords, dims, self.name, attrs)

    @property
    def tree(self) -> xr.DataTree:
        """All levels as an `xarray.DataTree`: nodes ``level0``, ``level1``, ..., each with the lazy ``image``."""
        nodes = {f"level{k.index}": xr.Dataset({"image": self.image(level=k.index)}) for k in self.levels}
        return xr.DataTree.from_dict(nodes, name=self.name)

    def thumbnail(self, most: int = 512) -> Array:
        """A small picture, (height, width, 3) uint8, the longer side at most ``most`` pixels, from a coarse level.

        Channels that are not RGB are shown in their own colours, added up, within their display windows.
        """
        if most < 1:
            raise OptionError(f"most is {most}", "thumbnail", "Give 1 or more pixels.")
        longest = max(self.size.x, self.size.y)
        fitting = [k for k in self.levels if max(k.size.x, k.size.y) >= min(most, longest)]
        array = self._arrays[(fitting[-1] if fitting else self.levels[0]).index]
        if array.size.x * array.size.y > _MOST_THUMBNAIL_PIXELS:
            raise StoreError(
                f"its coarsest level is {array.size}: too large for a picture", self.url, "Convert it to a pyramid."
            )
        whole = Region(0, 0, array.size.x, array.size.y)
        pixels = array.read(whole, self._plane("t", None), self._plane("z", None))
        as_it_is = self.rgb and self.dtype == np.uint8
        shown = pixels.transpose(1, 2, 0) if as_it_is else picture.composite(pixels, self.multiscale.channels)
        small = Image.fromarray(shown)
        small.thumbnail((most, most), Image.Resampling.BOX)
        return np.asarray(small)

    def __repr__(self) -> str:
        mpp = f"{self.mpp} µm/px" if self.mpp else "mpp unknown"
        power = f", {self.objective_power:g}x" if self.objective_power else ""
        stack = "".join(f" x {n} {axis}" for axis, n in (("z", self.z), ("t", self.t)) if n > 1)
        size = f"{self.size.x} x {self.size.y}{stack}, {len(self.channels)} x {self.dtype}"
        head = f"Slide {self.name}: {size}, {mpp}{power}"
        about = f"  {self.vendor or 'vendor unknown'}; associated: {', '.join(self.associated) or 'none'}; {self.url}"
        return "\n".join([head, about, *(f"  {level}" for level in self.levels)])

    def _repr_html_(self) -> str:
        facts = {
            "vendor": self.vendor or "unknown",
            "objective": f"{self.objective_power:g}x" if self.objective_power else "unknown",
            "channels": f"{', '.join(self.channels)} ({self.dtype})",
            "associated": ", ".join(self.associated) or "none",
            "labels": ", ".join(self.labels) or "none",
            "store": self.url,
        }
        rows = [(str(k.index), f"{k.size.x} x {k.size.y}", str(k.mpp or ""), f"{k.downsample:g}") for k in self.levels]
        return picture.card(self.name, self.thumbnail(320), facts, ("level", "size", "mpp", "downsample"), rows)


def open(url: str | os.PathLike[str]) -> Slide:  # noqa: A001 (nt.open, as in xarray and zarr)
    """Open an OME-Zarr slide; reads its metadata only.

    Parameters
    ----------
    url
        A local path, ``file://``, ``http://`` or ``https://`` url of a store, version 0.4, 0.5 or 0.6, ours or
        another writer's.

    Returns
    -------
    Slide

    Raises
    ------
    MissingError
        Nothing there.
    StoreError
        Not an OME-Zarr image, or a damaged one; a server that does not answer as it should.

    Examples
    --------
    >>> open("small.ome.zarr").levels[1].size
    Size(x=300, y=200)
    """
    return open_store(store_at(url))


def open_store(store: Readable) -> Slide:
    """Open the slide in a store; see `open`."""
    store, attributes = _opened(store)
    multiscale = ngff.parse(attributes, str(store))
    if not 1 <= len(multiscale.datasets) <= MOST_LEVELS:
        raise StoreError(f"it has {len(multiscale.datasets)} levels, {MOST_LEVELS} are the most", str(store))
    for data in multiscale.datasets:
        store.inside(data.path)
    facts = attributes.get("ngfftile", {})
    slide = Slide(store, multiscale, facts if isinstance(facts, dict) else {})
    _ = slide.levels  # opens the arrays: what is broken shows now, not at the first pixel
    store.confirm()
    return slide


def _opened(store: Readable) -> tuple[Readable, dict[str, Any]]:
    """The store as it is now, and the root group's attributes."""
    if not isinstance(store, Store):
        return store.opened()
    if not store.root.exists():
        raise MissingError("nothing there", str(store), "Check the path.")
    if not store.root.is_dir():
        raise StoreError(
            "not an OME-Zarr store", str(store), "Convert a slide first: ngfftile convert SLIDE -o STORE.ome.zarr"
        )
    try:
        return store.opened()
    except MissingError as error:
        raise StoreError(
            "not an OME-Zarr store: it has no root zarr.json",
            str(store),
            "An interrupted conversion goes on with the same convert command.",
        ) from error
