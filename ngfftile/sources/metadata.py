"""What vendors write in words: descriptions, XML and resolution tags, read into the field's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Of OME (UnitsLength), and the names that ImageJ's users write; in micrometres.
LENGTHS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6, "inch": 25_400.0}
LENGTHS |= dict.fromkeys(("micron", "microns", "micrometer", "micrometre"), 1.0)
_FORMS = (
    "%Y:%m:%d %H:%M:%S",  # TIFF
    "%Y%m%d%H%M%S",  # DICOM DT
    "%Y%m%d%H%M%S.%f",
    "%Y%m%d%H%M%S.%f%z",
    "%Y-%m-%d %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",  # 3DHISTECH
    "%m/%d/%Y %I:%M:%S %p",  # Ventana
    "%Y/%m/%d %H:%M:%S",
)
WITHOUT = "Leave it out with --no-associated (associated=False)."
MOST_XML = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Named:
    """What a description says of a channel; empty or None where it does not."""

    name: str = ""
    color: str = ""
    emission: float | None = None
    excitation: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a description says; see `ngfftile.sources.protocol.SourceInfo` for the fields."""

    format: str
    vendor: str
    mpp: Mpp | None = None
    mpp_source: str = "the file does not say"
    objective_power: float | None = None
    acquired: str | None = None
    channels: tuple[Named, ...] = ()
    z_step: float | None = None
    t_step: float | None = None
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


def qptiff(descriptions: Sequence[str]) -> Facts:
    """The XML that Akoya / PerkinElmer write into each page of a QPTIFF."""
    roots = [xml(d) for d in descriptions]
    named = [{local(e): (e.text or "").strip() for e in root} for root in roots]
    first = named[0]
    size = find(roots[0], "PixelSizeMicrons")
    mpp = None if size is None else number(size.text)
    found, source = plausible(Mpp.of(mpp) if mpp else None, "QPTIFF PixelSizeMicrons")
    return Facts(
        "QPTIFF",
        "akoya",
        found,
        source,
        objective_power=number(first.get("Objective", "").lower().rstrip("x")),
        channels=tuple(Named(one.get("Name", ""), _decimal_color(one.get("Color", ""))) for one in named),
        properties={f"qptiff.{name}": value for name, value in first.items() if value}
        | {
            f"qptiff.channel[{i}].{name}": value
            for i, one in enumerate(named[1:], 1)
            for name, value in one.items()
            if value and value != first.get(name)
        },
    )


def _decimal_color(text: str) -> str:
    parts = [int(part) for part in text.split(",")[:3] if part.strip().isdecimal()]
    return "".join(f"{min(part, 255):02X}" for part in parts) if len(parts) == 3 else ""


def scn(text: str) -> list[tuple[bool, Facts]]:
    """Leica's SCN XML: of each image in turn, whether it shows the whole glass, and what it says.

    The glass is the collection; lengths are in nanometres (as in OpenSlide's reader and Bio-Formats').
    """
    collection = find(xml(text), "collection")
    images = [] if collection is None else [e for e in collection if local(e) == "image"]
    told = []
    for image in images:
        pixels, view = find(image, "pixels"), find(image, "view")
        if collection is None or pixels is None or view is None:
            continue
        x, y = (_ratio(view.get(f"size{axis}"), pixels.get(f"size{axis}")) for axis in "XY")
        found, source = plausible(Mpp(x / 1000, (y or x) / 1000) if x else None, "leica view and pixels")
        whole = all(view.get(f"size{axis}") == collection.get(f"size{axis}") for axis in "XY")
        objective, date = find(image, "objective"), find(image, "creationDate")
        told.append(
            (
                whole,
                Facts(
                    "Leica SCN",
                    "leica",
                    found,
                    source,
                    None if objective is None else number(objective.text),
                    None if date is None else iso_date(date.text),
                    tuple(
                        Named(e.get("name", ""), e.get("rgb", "").lstrip("#").upper()[:6])
                        for e in image.iter()
                        if local(e) == "channel"
                    ),
                ),
            )
        )
    return told


def imagej(about: Mapping[str, Any], x: Any, y: Any) -> Facts:
    """ImageJ's description, and XResolution and YResolution, which count in its unit whatever their own tag says."""
    unit = str(about.get("unit", "")).replace("\\u00B5", "µ").replace("\u03bc", "µ")
    factor, step = LENGTHS.get(unit), about.get("spacing")
    per_x, per_y = _per_unit(x), _per_unit(y)
    mpp = Mpp(factor / per_x, factor / per_y) if factor and per_x and per_y else None
    found, source = plausible(mpp, f"ImageJ's resolution in {unit}")
    return Facts(
        "ImageJ TIFF",
        "generic-tiff",
        found,
        source,
        z_step=factor * abs(step) or None if factor and isinstance(step, int | float) else None,
        t_step=number(str(about.get("finterval", ""))),
    )


def _ratio(above: str | None, below: str | None) -> float | None:
    a, b = number(above), number(below)
    return a / b if a and b else None


def lsm_channels(about: Any) -> tuple[Named, ...]:
    """Names and colours in Zeiss LSM's table, as tifffile reads it."""
    table = (about or {}).get("ChannelColors") or {}
    names, colors = table.get("ColorNames") or [], table.get("Colors") or []
    return tuple(
        Named(str(name), "".join(f"{int(v):02X}" for v in color[:3]))
        for name, color in zip(names, colors, strict=False)
    )


def tag_mpp(x: Any, y: Any, unit: Any) -> tuple[Mpp | None, str]:
    """Micrometres per pixel from TIFF's XResolution, YResolution and ResolutionUnit (2 inch, 3 centimetre)."""
    micrometres = {2: 25_400.0, 3: 10_000.0}.get(unit if isinstance(unit, int) else 0)
    per_x, per_y = _per_unit(x), _per_unit(y)
    if micrometres is None or not per_x or not per_y:
        return None, "the file does not say"
    return plausible(Mpp(micrometres / per_x, micrometres / per_y), "TIFF resolution tags")


def _per_unit(value: Any) -> float | None:
    """Pixels in a unit, from a rational or, against the specification, a plain number."""
    pair = value if isinstance(value, tuple) and len(value) == 2 else (value, 1)
    above, below = (number(str(part)) for part in pair)
    return above / below if above and below else None


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


def iso_date(text: str | None) -> str | None:
    """The day, and the time where it is told, of a vendor's date, as ISO 8601; None where it is of no known form."""
    text = (text or "").strip('\x00 "')
    try:
        return datetime.fromisoformat(text).isoformat() if "T" in text else _date(text, *_FORMS) or _day(text)
    except ValueError:
        return None


def _day(text: str) -> str | None:
    found = _date(text, "%Y%m%d", "%Y/%m/%d", "%Y-%m-%d")
    return found and found[:10]


def xml(text: str) -> Element:
    """The root of an XML document.

    Raises
    ------
    SourceError
        It is too large, broken, or a bomb.
    """
    if len(text) > MOST_XML:
        raise SourceError(f"its XML description is {len(text)} bytes", mend=f"{MOST_XML} is the most that is read.")
    # The declaration names the encoding of bytes that tifffile has already decoded.
    body = text[text.index("?>") + 2 :] if text.startswith("<?xml") else text
    try:
        root: Element = fromstring(body.strip("\x00 \r\n"))
    except (ParseError, DefusedXmlException) as error:
        raise SourceError(f"its XML description cannot be read ({error!r})") from error
    return root


def local(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rsplit("}", 1)[-1]


def find(element: Element, name: str) -> Element | None:
    """The first element of a name, at any depth."""
    return next((e for e in element.iter() if local(e) == name), None)
