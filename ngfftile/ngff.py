"""The OME-Zarr metadata of a slide, written and read. Pure: documents in, documents out.

Specification: OME-Zarr 0.5, https://ngff.openmicroscopy.org/0.5/. The types, and the checks that they make, are
ome-zarr-models'; what is added here is what they lack: the RGB display block, half-pixel translations, provenance.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
from ome_zarr_models.v05.image import ImageAttrs as ImageAttrs05
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from pydantic import ValidationError

from ngfftile.errors import StoreError
from ngfftile.geometry import Mpp, Size

VERSION = "0.5"
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
    """

    name: str
    color: str = "FFFFFF"
    window: tuple[float, float] | None = None


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
    """

    name: str
    axes: tuple[str, ...]
    unit: str | None
    datasets: tuple[Dataset, ...]
    channels: tuple[Channel, ...]
    label: bool = False


def _multiscale(name: str, levels: int, mpp: Mpp | None) -> Json:
    unit = {"unit": "micrometer"} if mpp else {}
    at = mpp or Mpp(1.0, 1.0)
    datasets = []
    for level in range(levels):
        f = 2**level
        # A mean pixel's centre lies half a coarse pixel, less half a fine one, inside the first fine pixel's centre.
        half = (f - 1) / 2
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, at.y * f, at.x * f]},
                    {"type": "translation", "translation": [0.0, at.y * half, at.x * half]},
                ],
            }
        )
    return {
        "name": name,
        "axes": [
            {"name": "c", "type": "channel"},
            {"name": "y", "type": "space", **unit},
            {"name": "x", "type": "space", **unit},
        ],
        "datasets": datasets,
    }


def display(name: str, channels: Sequence[Channel], dtype: str) -> Json:
    """The ``omero`` block: what a viewer needs to show the right colours.

    RGB is shown from 0 to 255: a window taken from the data would change the stain's colour.
    """
    kind = np.dtype(dtype)
    low, high = (0.0, 1.0) if kind.kind in "fb" else (float(np.iinfo(kind).min), float(np.iinfo(kind).max))
    return {
        "name": name,
        "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"},
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


def image_attributes(
    name: str, levels: int, mpp: Mpp | None, channels: Sequence[Channel], dtype: str, method: Json
) -> Json:
    """The ``ome`` attributes of an image group with axes c, y, x and levels 0, 1, ... each half the one before.

    Parameters
    ----------
    mpp
        Of level 0. None writes the plain factor and no unit, for then nobody knows.
    method
        How the pyramid was made: goes into ``type`` and ``metadata``.

    Returns
    -------
    dict
        Checked against ome-zarr-models' types.
    """
    multiscale = _multiscale(name, levels, mpp) | {"type": method["method"], "metadata": method}
    ome = {"version": VERSION, "multiscales": [multiscale], "omero": display(name, channels, dtype)}
    ImageAttrs05.model_validate(ome)
    return ome


def label_attributes(name: str, image: Multiscale, values: Sequence[int], paths: Sequence[str], about: Json) -> Json:
    """The ``ome`` attributes of a label image (c, y, x) with the same levels as the image that it belongs to.

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
    colors = [{"label-value": v, "rgba": [*bytes.fromhex(PALETTE[v % len(PALETTE)]), 255]} for v in values]
    label = {"source": {"image": "../../"}} | ({"colors": colors} if colors else {})
    ome = {"version": VERSION, "multiscales": [multiscale], "image-label": label}
    ImageLabelAttrs.model_validate(ome)
    return ome


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
        numbers = [float(e) for e in ends if isinstance(e, int | float)]
        shown = (numbers[0], numbers[1]) if len(numbers) == 2 else None
        found.append(Channel(str(c.get("label", f"channel {i}")), _color(c.get("color")), shown))
    return tuple(found)


def _color(text: Any) -> str:
    found = re.fullmatch(r"#?([0-9A-Fa-f]{6})(?:[0-9A-Fa-f]{2})?", str(text))
    return found[1] if found else "FFFFFF"


def parse(attributes: Mapping[str, Any], where: str) -> Multiscale:
    """Read the first multiscale of a group's attributes, version 0.4 or 0.5.

    Raises
    ------
    StoreError
        No multiscale, or one that the specification does not allow.
    """
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, dict) or "multiscales" not in ome:
        raise StoreError("no multiscales in its attributes", where, "Is this the root of an OME-Zarr image?")
    try:
        # 0.4 keeps the block at the top, 0.5 and later under "ome".
        checked: Any = (ImageAttrs05 if "ome" in attributes else ImageAttrs04).model_validate(ome)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{place}: {first['msg']}", where, "The metadata break the OME-Zarr specification.") from error
    image = checked.multiscales[0]
    if any(not s > 0 for data in _datasets(image) for s in data.scale):
        raise StoreError("a scale that is not above 0", where, "The metadata break the OME-Zarr specification.")
    units = {axis.unit for axis in image.axes if axis.name in ("x", "y")}
    return Multiscale(
        str(image.name or ""),
        tuple(axis.name for axis in image.axes),
        next(iter(units)) if len(units) == 1 else None,
        _datasets(image),
        _channels(ome),
        "image-label" in ome,
    )


def ome_xml(
    name: str,
    size: Size,
    channels: Sequence[Channel],
    rgb: bool,
    dtype: str,
    mpp: Mpp | None,
    objective_power: float | None,
    acquired: str | None,
) -> bytes:
    """OME-XML that describes the image but holds no pixels (``MetadataOnly``), schema 2016-06."""
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    root = ET.Element("OME", {"xmlns": space, "Creator": "ngfftile"})
    if objective_power:
        instrument = ET.SubElement(root, "Instrument", {"ID": "Instrument:0"})
        ET.SubElement(instrument, "Objective", {"ID": "Objective:0", "NominalMagnification": f"{objective_power:g}"})
    image = ET.SubElement(root, "Image", {"ID": "Image:0", "Name": name})
    if acquired:
        ET.SubElement(image, "AcquisitionDate").text = acquired
    if objective_power:
        ET.SubElement(image, "InstrumentRef", {"ID": "Instrument:0"})
        ET.SubElement(image, "ObjectiveSettings", {"ID": "Objective:0"})
    facts = {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": {"float32": "float", "float64": "double", "bool": "bit"}.get(dtype, dtype),
        "SizeX": str(size.x),
        "SizeY": str(size.y),
        "SizeZ": "1",
        "SizeC": str(len(channels)),
        "SizeT": "1",
    }
    if mpp:
        facts |= {"PhysicalSizeX": repr(mpp.x), "PhysicalSizeXUnit": "µm"}
        facts |= {"PhysicalSizeY": repr(mpp.y), "PhysicalSizeYUnit": "µm"}
    pixels = ET.SubElement(image, "Pixels", facts)
    if rgb:
        ET.SubElement(pixels, "Channel", {"ID": "Channel:0:0", "SamplesPerPixel": "3"})
    else:
        for i, channel in enumerate(channels):
            # OME stores a colour as one signed 32-bit number, RGBA.
            value = int(channel.color + "FF", 16)
            colour = str(value - (1 << 32) if value >= 1 << 31 else value)
            about = {"ID": f"Channel:0:{i}", "Name": channel.name, "SamplesPerPixel": "1", "Color": colour}
            ET.SubElement(pixels, "Channel", about)
    ET.SubElement(pixels, "MetadataOnly")
    ET.indent(root)
    document: bytes = ET.tostring(root, "UTF-8", xml_declaration=True)
    return document
