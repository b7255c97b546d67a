"""What vendors write in words: descriptions, XML and resolution tags, read into the field's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray

from ngfftile.errors import SourceError
from ngfftile.geometry import Mpp
from ngfftile.sources.protocol import Array

# A light microscope's sensor and objective give 0.05 to 25 micrometres per pixel. Outside lie the print resolutions
# (72 dpi is 353, 300 dpi is 85) that software writes where it knows nothing, and slips of a factor of 100.
PLAUSIBLE = (0.05, 25.0)
WITHOUT = "Leave it out with --no-associated (associated=False)."
MOST_XML = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """What a description says; see `ngfftile.sources.protocol.SourceInfo` for the fields."""

    format: str
    vendor: str
    mpp: Mpp | None = None
    mpp_source: str = "the file does not say"
    objective_power: float | None = None
    acquired: str | None = None
    channels: list[str] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)


def plausible(mpp: Mpp | None, source: str) -> tuple[Mpp | None, str]:
    """An mpp that a microscope can have, or None and the reason."""
    if mpp is None:
        return None, "the file does not say"
    low, high = PLAUSIBLE
    if low <= mpp.x <= high and low <= mpp.y <= high:
        return mpp, source
    return None, f"{source} says {mpp} µm per pixel, which no slide scanner has"


def number(text: str | None) -> float | None:
    """A positive finite number in a vendor's text (a decimal comma is one too), else None."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def aperio(description: str) -> Facts:
    """Aperio's ImageDescription: a header, then ``|name = value`` pairs.

    Source: Aperio, "Digital Slides and Third-Party Data Interchange", MAN-0069.
    """
    parts = (part.partition("=") for part in description.split("|")[1:] if "=" in part)
    pairs = {name.strip(): value.strip() for name, _, value in parts}
    mpp = number(pairs.get("MPP"))
    found, source = plausible(Mpp.of(mpp) if mpp else None, "aperio.MPP")
    stamp = f"{pairs.get('Date', '')} {pairs.get('Time', '')}"
    return Facts(
        "Aperio SVS",
        "aperio",
        found,
        source,
        number(pairs.get("AppMag")),
        _date(stamp, "%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S"),
        properties={f"aperio.{name}": value for name, value in pairs.items()},
    )


def ome(xml: str) -> Facts:
    """OME-XML of an OME-TIFF, first image (schema 2016-06)."""
    root = _xml(xml)
    image = _find(root, "Image")
    pixels = None if image is None else _find(image, "Pixels")
    if image is None or pixels is None:
        raise SourceError("its OME-XML has no Image with Pixels")
    x, y = (_micrometres(pixels, axis) for axis in "XY")
    found, source = plausible(Mpp(x, y or x) if x else None, "OME PhysicalSize")
    channels = [c for c in pixels.iter() if _local(c) == "Channel"]
    objective = _find(root, "Objective")
    date = _find(image, "AcquisitionDate")
    coloured = [c.get("Color") for c in channels]
    return Facts(
        "OME-TIFF",
        "ome",
        found,
        source,
        None if objective is None else number(objective.get("NominalMagnification")),
        None if date is None else date.text,
        [c.get("Name") or c.get("ID") or f"channel {i}" for i, c in enumerate(channels)],
        [f"{(int(c or -1) >> 8) & 0xFFFFFF:06X}" for c in coloured] if any(coloured) else [],
        {f"ome.{name}": value for name, value in pixels.attrib.items()},
    )


def qptiff(descriptions: Sequence[str]) -> Facts:
    """The XML that Akoya / PerkinElmer write into each page of a QPTIFF."""
    roots = [_xml(d) for d in descriptions]
    named = [{_local(e): (e.text or "").strip() for e in root} for root in roots]
    first = named[0]
    power = number(first.get("Objective", "").lower().rstrip("x"))
    colors = [
        "".join(f"{int(v):02X}" for v in one["Color"].split(",")[:3]) if one.get("Color") else "" for one in named
    ]
    return Facts(
        "QPTIFF",
        "akoya",
        objective_power=power,
        channels=[one.get("Name") or f"channel {i}" for i, one in enumerate(named)],
        colors=colors if all(colors) else [],
        properties={f"qptiff.{name}": value for name, value in first.items() if value},
    )


def tag_mpp(x: Any, y: Any, unit: Any) -> tuple[Mpp | None, str]:
    """Micrometres per pixel from TIFF's XResolution, YResolution and ResolutionUnit (2 inch, 3 centimetre)."""
    micrometres = {2: 25_400.0, 3: 10_000.0}.get(int(unit or 0))
    if micrometres is None or not x or not y or not all((*x, *y)):
        return None, "the file does not say"
    return plausible(Mpp(micrometres * x[1] / x[0], micrometres * y[1] / y[0]), "TIFF resolution tags")


def tag_date(value: Any) -> str | None:
    """TIFF's DateTime as ISO 8601."""
    return _date(str(value or "").strip("\x00 "), "%Y:%m:%d %H:%M:%S")


def as_rgb(pixels: Array) -> Array:
    """A small image as (height, width, 3) uint8; grey is repeated, more channels than three are left out."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise SourceError(f"an associated image of {pixels.dtype} {pixels.shape} is not a picture")
    return np.ascontiguousarray(pixels[..., :3])


def rounded(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Nearest uint8."""
    return np.floor(values + 0.5).astype(np.uint8)


def _date(text: str, *formats: str) -> str | None:
    for form in formats:
        try:
            return datetime.strptime(text, form).isoformat()  # noqa: DTZ007 (scanners do not say their zone)
        except ValueError:
            continue
    return None


def _xml(text: str) -> Element:
    if len(text) > MOST_XML:
        raise SourceError(f"its XML description is {len(text)} bytes", mend=f"{MOST_XML} is the most that is read.")
    # The declaration names the encoding of bytes that tifffile has already decoded.
    body = text[text.index("?>") + 2 :] if text.startswith("<?xml") else text
    try:
        root: Element = fromstring(body.strip("\x00 \r\n"))
    except (ParseError, DefusedXmlException) as error:
        raise SourceError(f"its XML description cannot be read ({error!r})") from error
    return root


def _local(element: Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _find(element: Element, name: str) -> Element | None:
    return next((e for e in element.iter() if _local(e) == name), None)


def _micrometres(pixels: Element, axis: str) -> float | None:
    # https://www.openmicroscopy.org/Schemas/Documentation/Generated/OME-2016-06/ome_xsd.html#UnitsLength
    units = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6, "inch": 25_400.0}
    size = number(pixels.get(f"PhysicalSize{axis}"))
    factor = units.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return size * factor if size and factor else None
