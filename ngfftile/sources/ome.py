"""OME-XML of OME-TIFF, read into the field's terms.

Schema 2016-06, https://www.openmicroscopy.org/Schemas/Documentation/Generated/OME-2016-06/ome_xsd.html
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from xml.etree.ElementTree import Element

from ngfftile.geometry import Mpp
from ngfftile.sources.metadata import LENGTHS, Facts, Named, find, local, number, plausible

_TIMES = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Image:
    """One Image element: its name, the width and height that it states, and what else it says."""

    name: str
    width: str
    height: str
    facts: Facts


def companions(root: Element) -> set[str]:
    """Names of the files that hold planes."""
    return {e.get("FileName", "") for e in root.iter() if local(e) == "UUID" and e.get("FileName")}


def planes(root: Element) -> int:
    """The most planes that an image, or a run of them, says it has."""
    counts = [1]
    for element in root.iter():
        if local(element) == "Pixels":
            counts.append(prod(_count(element.get(f"Size{axis}")) for axis in "CZT"))
        elif local(element) == "TiffData":
            counts.append(max(_count(element.get(name)) for name in ("PlaneCount", "NumPlanes")))
    return max(counts)


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def images(root: Element) -> list[Image]:
    """All Image elements that have Pixels, in their order."""
    powers = {e.get("ID", ""): number(e.get("NominalMagnification")) for e in root.iter() if local(e) == "Objective"}
    found = []
    for image in (e for e in root if local(e) == "Image"):
        pixels = find(image, "Pixels")
        if pixels is not None:
            name = image.get("Name") or image.get("ID") or ""
            width, height = pixels.get("SizeX", ""), pixels.get("SizeY", "")
            found.append(Image(name, width, height, _facts(image, pixels, powers)))
    return found


def match(found: list[Image], names: list[tuple[str, int, int]]) -> list[Facts | None]:
    """The facts of tifffile's series, which leave out images without planes; by name and size, in their order.

    Parameters
    ----------
    found
        All images.
    names
        Of each series its name, width and height.
    """
    if len(found) == len(names):
        return [image.facts for image in found]
    waiting = list(found)
    facts: list[Facts | None] = []
    for name, width, height in names:
        sides = (str(width), str(height))
        same = [i for i in waiting if (i.width, i.height) == sides]
        best = next((i for i in same if i.name == name), same[0] if same else None)
        facts.append(best.facts if best else None)
        waiting = waiting[waiting.index(best) + 1 :] if best else waiting
    return facts


def _facts(image: Element, pixels: Element, powers: dict[str, float | None]) -> Facts:
    x, y, z = (_in(pixels, f"PhysicalSize{axis}", LENGTHS, "µm") for axis in "XYZ")
    found, source = plausible(Mpp(x, y or x) if x else None, "OME PhysicalSize")
    settings, date = find(image, "ObjectiveSettings"), find(image, "AcquisitionDate")
    # One objective needs no settings to be the one.
    alone = next(iter(powers.values())) if len(powers) == 1 else None
    return Facts(
        "OME-TIFF",
        "ome",
        found,
        source,
        alone if settings is None else powers.get(settings.get("ID", ""), alone),
        None if date is None or not date.text else date.text.strip(),
        tuple(_channel(e, i) for i, e in enumerate(e for e in pixels if local(e) == "Channel")),
        z,
        _in(pixels, "TimeIncrement", _TIMES, "s"),
        {f"ome.{name}": value for name, value in pixels.attrib.items()},
    )


def _channel(element: Element, index: int) -> Named:
    color = element.get("Color")
    return Named(
        element.get("Name") or element.get("ID") or f"channel {index}",
        f"{(_whole(color) >> 8) & 0xFFFFFF:06X}" if color else "",
        *(_wavelength(element, kind) for kind in ("Emission", "Excitation")),
    )


def _whole(text: str) -> int:
    """A signed 32-bit integer, red, green, blue, alpha; white where it is none."""
    try:
        return int(text)
    except ValueError:
        return -1


def _wavelength(element: Element, kind: str) -> float | None:
    length = _in(element, f"{kind}Wavelength", LENGTHS, "nm")
    return None if length is None else round(length * 1000, 6)


def _in(element: Element, name: str, units: dict[str, float], usual: str) -> float | None:
    """A quantity in the unit that counts 1; None where it is absent, not positive, or of an unknown unit."""
    value, factor = number(element.get(name)), units.get(element.get(f"{name}Unit", usual))
    return value * factor if value and factor else None
