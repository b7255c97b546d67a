"""The OME-Zarr metadata of a slide, written and read. Pure: documents in, documents out.

Specification: OME-Zarr, https://ngff.openmicroscopy.org/0.5/, and 0.4 and 0.6. The types, the checks that they make,
and the way from one version to another are ome-zarr-models'; what is added here is what they lack: the RGB display
block, half-pixel translations, provenance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
from ome_zarr_models.v05.image import ImageAttrs as ImageAttrs05
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05
from ome_zarr_models.v06.image import ImageAttrs as ImageAttrs06
from pydantic import ValidationError

from ngfftile.errors import StoreError
from ngfftile.geometry import Mpp

VERSION = "0.5"
VERSIONS = ("0.5", "0.4", "0.6")
# Lengths that the specification allows (UDUNITS-2), in micrometres.
_METRES = {"yotta": 24, "zetta": 21, "exa": 18, "peta": 15, "tera": 12, "giga": 9, "mega": 6, "kilo": 3, "hecto": 2}
_METRES |= {"": 0, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "pico": -12, "femto": -15}
_METRES |= {"atto": -18, "zepto": -21, "yocto": -24}
MICROMETRES = {f"{prefix}meter": float(f"1e{power + 6}") for prefix, power in _METRES.items()}
MICROMETRES |= {"angstrom": 1e-4, "inch": 25_400.0, "foot": 304_800.0, "yard": 914_400.0, "mile": 1_609_344_000.0}
# What writers call channels that they have no name for, or that are red, green and blue.
_NAMELESS = re.compile(r"(?:c|ch|channel|r|g|b|red|green|blue)?[\s_:-]*(?:\d+(?::\d+)*)?", re.IGNORECASE)
SCHEMA = 1  # of attributes.ngfftile; raised when a reader of ours would misread the older form
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel and how it is shown.

    Parameters
    ----------
    name
        As the source has it; Red, Green, Blue for RGB.
    color
        Six hexadecimal digits, RRGGBB.
    window
        Lowest and highest value shown; None shows the dtype's whole range.
    emission, excitation
        Wavelengths in nanometres, of fluorescence.
    """

    name: str
    color: str = "FFFFFF"
    window: tuple[float, float] | None = None
    emission: float | None = None
    excitation: float | None = None


RGB = (Channel("Red", "FF0000"), Channel("Green", "00FF00"), Channel("Blue", "0000FF"))

# For channels that come without a colour: told apart on a dark ground, the first as grey where it is alone.
PALETTE = ("FFFFFF", "00FF00", "FF00FF", "0000FF", "FFFF00", "00FFFF", "FF0000", "FF8000")


@dataclass(frozen=True, slots=True)
class Dataset:
    """One level as the metadata states it: path, and scale and translation of its axes."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Multiscale:
    """A multiscale image as read from attributes: axes by name, datasets the finest first.

    Parameters
    ----------
    unit
        Of the space axes, or None where the metadata has none (then the scale is in pixels).
    label
        Whether it is a label image: its values are names, and must not be averaged.
    version
        Of OME-Zarr.
    units
        Of each axis that has one.
    z, t
        The focal plane and the point in time that is shown first.
    """

    name: str
    axes: tuple[str, ...]
    unit: str | None
    datasets: tuple[Dataset, ...]
    channels: tuple[Channel, ...]
    label: bool = False
    version: str = VERSION
    units: Mapping[str, str] = field(default_factory=dict)
    z: int = 0
    t: int = 0

    def mpp(self, level: int = 0) -> Mpp | None:
        """Micrometres per pixel of a level, or None where the metadata have no unit."""
        factor = MICROMETRES.get(self.unit or "")
        scale = self.datasets[level].scale
        return Mpp(scale[self.axes.index("x")] * factor, scale[self.axes.index("y")] * factor) if factor else None

    def rgb(self, channels: int, dtype: np.dtype[Any]) -> bool:
        """Whether its channels are red, green and blue of one picture."""
        if channels != 3 or self.label:
            return False
        if [(c.name, c.color.upper()) for c in self.channels] == [(c.name, c.color) for c in RGB]:
            return True
        # Others' stores say less: three bytes, shown as red, green and blue or not said how. But fluorescence that is
        # shown so has names of its own, or windows.
        plain = all(_NAMELESS.fullmatch(c.name) and c.window in (None, (0.0, 255.0)) for c in self.channels)
        return dtype == np.uint8 and plain and [c.color.upper() for c in self.channels] in ([], [c.color for c in RGB])


_PLAIN = Mpp(1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where the pixels of an image group lie.

    Parameters
    ----------
    axes
        Of the arrays, among t, c, z, y, x in this order.
    levels
        How many: arrays 0, 1, ..., each half the one before along y and x.
    mpp
        Micrometres per pixel of level 0. None writes the plain factor and no unit, for then nobody knows.
    z_step, t_step
        Micrometres between focal planes, and seconds between points in time, if known.
    centred
        Whether a coarse pixel stands for the four that it comes from (mean), or for the first of them (nearest).
    plain
        Scale along x and y where there is no mpp: that of a source which has no unit.
    offset_x, offset_y
        Where the first pixel's centre lies, in the unit of the scale.
    """

    axes: tuple[str, ...]
    levels: int
    mpp: Mpp | None
    z_step: float | None = None
    t_step: float | None = None
    centred: bool = True
    plain: Mpp = _PLAIN
    offset_x: float = 0.0
    offset_y: float = 0.0

    def multiscale(self, name: str) -> Json:
        """The multiscale block, as version 0.5 has it."""
        units = {"y": "micrometer", "x": "micrometer"} if self.mpp else {}
        units |= {"z": "micrometer"} if self.z_step else {}
        units |= {"t": "second"} if self.t_step else {}
        kinds = {"t": "time", "c": "channel"}
        axes = [
            {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": units[axis]} if axis in units else {})
            for axis in self.axes
        ]
        at = self.mpp or self.plain
        datasets = []
        for level in range(self.levels):
            f = 2**level
            # A mean pixel's centre lies half a coarse pixel, less half a fine one, inside the first fine pixel's.
            half = (f - 1) / 2 if self.centred else 0.0
            scale = {"y": at.y * f, "x": at.x * f, "z": self.z_step or 1.0, "t": self.t_step or 1.0}
            shift = {"y": self.offset_y + at.y * half, "x": self.offset_x + at.x * half}
            steps = [
                {"type": "scale", "scale": [scale.get(axis, 1.0) for axis in self.axes]},
                {"type": "translation", "translation": [shift.get(axis, 0.0) for axis in self.axes]},
            ]
            datasets.append({"path": str(level), "coordinateTransformations": steps})
        return {"name": name, "axes": axes, "datasets": datasets}


def display(name: str, channels: Sequence[Channel], dtype: str, planes: int = 1) -> Json:
    """The ``omero`` block: what a viewer needs to show the right colours.

    RGB is shown from 0 to 255: a window taken from the data would change the stain's colour.
    """
    kind = np.dtype(dtype)
    low, high = (0.0, 1.0) if kind.kind in "fb" else (float(np.iinfo(kind).min), float(np.iinfo(kind).max))
    if kind.kind == "f":
        # What floats mean only their values say.
        low = min([low, *(c.window[0] for c in channels if c.window)])
        high = max([high, *(c.window[1] for c in channels if c.window)])
    return {
        "name": name,
        # The middle of a stack of focal planes is what was focused on.
        "rdefs": {"defaultT": 0, "defaultZ": planes // 2, "model": "color"},
        "channels": [
            {
                "label": c.name,
                "color": c.color,
                "active": True,
                "coefficient": 1.0,
                "family": "linear",
                "inverted": False,
                "window": {
                    "min": low,
                    "max": high,
                    "start": c.window[0] if c.window else low,
                    "end": c.window[1] if c.window else high,
                },
            }
            for c in channels
        ],
    }


def zarr_format(version: str) -> int:
    """Of Zarr, for a version of OME-Zarr."""
    return 2 if version == "0.4" else 3


def attributes(multiscale: Json, more: Json, version: str) -> Json:
    """A group's attributes in a version of OME-Zarr.

    Parameters
    ----------
    multiscale
        As version 0.5 has it.
    more
        What stands beside it: ``omero`` or ``image-label``.

    Returns
    -------
    dict
        Checked against ome-zarr-models' types.
    """
    if version == "0.4":
        plain = {"multiscales": [{"version": version} | multiscale]} | more
        ImageAttrs04.model_validate(plain)
        return plain
    if version == "0.6":
        newer = Multiscale05.model_validate(multiscale).to_version("0.6")
        ome = {
            "version": version,
            "multiscales": [newer.model_dump(mode="json", exclude_none=True, by_alias=True)],
        } | more
        ImageAttrs06.model_validate(ome)
        return {"ome": ome}
    ome = {"version": version, "multiscales": [multiscale]} | more
    (ImageLabelAttrs if "image-label" in more else ImageAttrs05).model_validate(ome)
    return {"ome": ome}


def clean(text: str) -> str:
    """A name that every document can hold: no halves of UTF-16 pairs, no control characters."""
    whole = text.encode("utf-8", "replace").decode()
    return "".join(c for c in whole if c.isprintable())


def image_attributes(
    name: str,
    pixels: Pixels,
    channels: Sequence[Channel],
    dtype: str,
    method: Json,
    planes: int = 1,
    version: str = VERSION,
) -> Json:
    """The attributes of an image group.

    Parameters
    ----------
    method
        How the pyramid was made: goes into ``type`` and ``metadata``.
    planes
        Focal planes.
    """
    multiscale = pixels.multiscale(name) | {"type": method["method"], "metadata": method}
    return attributes(multiscale, {"omero": display(name, channels, dtype, planes)}, version)


def label_attributes(
    name: str, image: Multiscale, values: Sequence[int], paths: Sequence[str], about: Json, version: str = VERSION
) -> Json:
    """The attributes of a label image (c, y, x) with the same levels as the image that it belongs to.

    Specification: https://ngff.openmicroscopy.org/0.5/#label-md.

    Parameters
    ----------
    values
        Labels that occur, other than 0.
    paths
        Of the levels, one for each of the image's.
    about
        What made it; goes into ``metadata``.
    """
    unit = {"unit": image.unit} if image.unit else {}
    y, x = image.axes.index("y"), image.axes.index("x")
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, data.scale[y], data.scale[x]]},
                {"type": "translation", "translation": [0.0, data.translation[y], data.translation[x]]},
            ],
        }
        for path, data in zip(paths, image.datasets, strict=True)
    ]
    space = [{"name": axis, "type": "space", **unit} for axis in "yx"]
    multiscale = {
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, *space],
        "datasets": datasets,
        "type": "nearest",
        "metadata": about,
    }
    return attributes(multiscale, {"image-label": label_block(values, version)}, version)


def label_block(values: Sequence[int], version: str = VERSION) -> Json:
    """The ``image-label`` block: a colour for each value, and where the image is."""
    colors = [{"label-value": v, "rgba": [*bytes.fromhex(PALETTE[v % len(PALETTE)]), 255]} for v in values]
    about: Json = {"version": version} if version == "0.4" else {}
    return about | {"source": {"image": "../../"}} | ({"colors": colors} if colors else {})


def _datasets(multiscale: Any) -> tuple[Dataset, ...]:
    result = []
    outer = multiscale.coordinateTransformations or ()
    for dataset in multiscale.datasets:
        scale = np.ones(multiscale.ndim)
        shift = np.zeros(multiscale.ndim)
        for step in (*dataset.coordinateTransformations, *outer):
            if step.type == "scale":
                scale, shift = scale * step.scale, shift * step.scale
            elif step.type == "translation":
                shift = shift + step.translation
        result.append(Dataset(dataset.path, tuple(scale.tolist()), tuple(shift.tolist())))
    return tuple(result)


def _channels(ome: Mapping[str, Any]) -> tuple[Channel, ...]:
    found = []
    omero = ome.get("omero")
    listed = omero.get("channels") if isinstance(omero, dict) else None
    for i, entry in enumerate(listed if isinstance(listed, list) else []):
        c = entry if isinstance(entry, dict) else {}
        window = c.get("window")
        ends = [window.get(end) for end in ("start", "end")] if isinstance(window, dict) else []
        numbers = [float(e) for e in ends if isinstance(e, int | float) and np.isfinite(e)]
        shown = (numbers[0], numbers[1]) if len(numbers) == 2 else None
        found.append(Channel(str(c.get("label", f"channel {i}")), _color(c.get("color")), shown))
    return tuple(found)


def _color(text: Any) -> str:
    found = re.fullmatch(r"#?([0-9A-Fa-f]{6})(?:[0-9A-Fa-f]{2})?", str(text))
    return found[1] if found else "FFFFFF"


def parse(attributes: Mapping[str, Any], where: str) -> Multiscale:
    """Read the first multiscale of a group's attributes, version 0.4, 0.5 or 0.6.

    Raises
    ------
    StoreError
        No multiscale, or one that the specification does not allow.
    """
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, dict) or "multiscales" not in ome:
        raise StoreError("no multiscales in its attributes", where, "Is this the root of an OME-Zarr image?")
    try:
        image = _checked(ome, nested="ome" in attributes)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{place}: {first['msg']}", where, "The metadata break the OME-Zarr specification.") from error
    if any(not s > 0 for data in _datasets(image) for s in data.scale):
        raise StoreError("a scale that is not above 0", where, "The metadata break the OME-Zarr specification.")
    units = {str(axis.name): str(axis.unit) for axis in image.axes if axis.unit}
    space = {units.get(axis.name) for axis in image.axes if axis.name in ("x", "y")}
    shown = _rdefs(ome)
    return Multiscale(
        str(image.name or ""),
        tuple(axis.name for axis in image.axes),
        next(iter(space)) if len(space) == 1 else None,
        _datasets(image),
        _channels(ome),
        "image-label" in ome,
        str(ome.get("version") or "0.4"),
        units,
        shown("defaultZ"),
        shown("defaultT"),
    )


def _checked(ome: Json, *, nested: bool) -> Any:
    """The first multiscale in ome-zarr-models' types, of version 0.4 (at the top) or 0.5 (under "ome")."""
    if not nested:
        return ImageAttrs04.model_validate(ome).multiscales[0]
    if str(ome.get("version", "")).startswith("0.6"):
        return ImageAttrs06.model_validate(ome).multiscales[0].to_version("0.5")
    return ImageAttrs05.model_validate(ome).multiscales[0]


def _rdefs(ome: Mapping[str, Any]) -> Callable[[str], int]:
    omero = ome.get("omero")
    found = omero.get("rdefs") if isinstance(omero, dict) else None
    shown = found if isinstance(found, dict) else {}
    return lambda key: max(0, int(shown[key])) if isinstance(shown.get(key), int) else 0
