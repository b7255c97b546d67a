"""OME-XML beside the pixels, ``OME/METADATA.ome.xml``: the source's own where it has one, else what we know.

Schema: https://www.openmicroscopy.org/Schemas/OME/2016-06. The pixels are in Zarr, so ``MetadataOnly`` stands in the
place of what says where they lie.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from ngfftile.geometry import Mpp, Size
from ngfftile.ngff import Channel, clean

_SPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_PLACES = {"TiffData", "BinData", "MetadataOnly"}
# Elements that describe optics and pixels; all others can name people, or lead to them. Attributes likewise.
_TECHNICAL = {"Image", "AcquisitionDate", "Pixels", "Channel", "Plane", "MetadataOnly", "Instrument", "InstrumentRef"}
_TECHNICAL |= {"Objective", "ObjectiveSettings", "Detector", "DetectorSettings", "LightSourceSettings", "LightPath"}
_TECHNICAL |= {"Laser", "Arc", "Filament", "LightEmittingDiode", "Pump", "Filter", "FilterRef", "FilterSet"}
_TECHNICAL |= {"FilterSetRef", "Dichroic", "DichroicRef", "ExcitationFilterRef", "EmissionFilterRef"}
_TECHNICAL |= {"TransmittanceRange", "ImagingEnvironment", "BinaryOnly"}
_NAMING = {"Creator", "UUID", "SerialNumber", "LotNumber", "FileName", "UserName"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an image."""

    name: str
    size: Size
    channels: Sequence[Channel]
    rgb: bool
    dtype: str
    mpp: Mpp | None
    z: int = 1
    t: int = 1
    z_step: float | None = None
    t_step: float | None = None
    objective_power: float | None = None
    acquired: str | None = None


def made(facts: Facts) -> bytes:
    """OME-XML of an image whose source has none."""
    root = ET.Element("OME", {"xmlns": _SPACE, "Creator": "ngfftile"})
    if facts.objective_power:
        power = {"ID": "Objective:0", "NominalMagnification": f"{facts.objective_power:g}"}
        ET.SubElement(ET.SubElement(root, "Instrument", {"ID": "Instrument:0"}), "Objective", power)
    image = ET.SubElement(root, "Image", {"ID": "Image:0", "Name": clean(facts.name)})
    if facts.acquired:
        ET.SubElement(image, "AcquisitionDate").text = facts.acquired
    if facts.objective_power:
        ET.SubElement(image, "InstrumentRef", {"ID": "Instrument:0"})
        ET.SubElement(image, "ObjectiveSettings", {"ID": "Objective:0"})
    pixels = ET.SubElement(image, "Pixels", _pixels(facts))
    if facts.rgb:
        ET.SubElement(pixels, "Channel", {"ID": "Channel:0:0", "SamplesPerPixel": "3"})
    else:
        for i, channel in enumerate(facts.channels):
            ET.SubElement(pixels, "Channel", _channel(i, channel))
    ET.SubElement(pixels, "MetadataOnly")
    return _document(root)


def _pixels(facts: Facts) -> dict[str, str]:
    found = {
        "ID": "Pixels:0",
        "DimensionOrder": "XYZCT",
        "Type": {"float32": "float", "float64": "double", "bool": "bit"}.get(facts.dtype, facts.dtype),
        "SizeX": str(facts.size.x),
        "SizeY": str(facts.size.y),
        "SizeZ": str(facts.z),
        "SizeC": str(len(facts.channels)),
        "SizeT": str(facts.t),
    }
    if facts.mpp:
        found |= _physical(facts.mpp)
    if facts.z_step:
        found |= {"PhysicalSizeZ": repr(facts.z_step), "PhysicalSizeZUnit": "µm"}
    if facts.t_step:
        found |= {"TimeIncrement": repr(facts.t_step), "TimeIncrementUnit": "s"}
    return found


def _physical(mpp: Mpp) -> dict[str, str]:
    x = {"PhysicalSizeX": repr(mpp.x), "PhysicalSizeXUnit": "µm"}
    return x | {"PhysicalSizeY": repr(mpp.y), "PhysicalSizeYUnit": "µm"}


def _channel(index: int, channel: Channel) -> dict[str, str]:
    # OME stores a colour as one signed 32-bit number, RGBA.
    value = int(channel.color + "FF", 16)
    colour = str(value - (1 << 32) if value >= 1 << 31 else value)
    found = {"ID": f"Channel:0:{index}", "Name": clean(channel.name), "SamplesPerPixel": "1", "Color": colour}
    if channel.emission:
        found |= {"EmissionWavelength": f"{channel.emission:g}", "EmissionWavelengthUnit": "nm"}
    if channel.excitation:
        found |= {"ExcitationWavelength": f"{channel.excitation:g}", "ExcitationWavelengthUnit": "nm"}
    return found


def kept(
    xml: str,
    scene: int,
    anonymous: str | None = None,
    mpp: Mpp | None = None,
    *,
    size: Size | None = None,
    name: str = "",
) -> bytes | None:
    """The source's own OME-XML, its image alone; None if it cannot be parsed.

    Parameters
    ----------
    scene, size, name
        Which of its images: that of this size and name, else the ``scene``-th.
    anonymous
        Keep only the elements that describe the optics and the pixels, and call the image this.
    mpp
        In place of what it says.
    """
    # The declaration names the encoding of bytes that are text by now.
    body = xml[xml.index("?>") + 2 :] if xml.lstrip().startswith("<?xml") and "?>" in xml else xml
    try:
        root = fromstring(body.strip("\x00 \r\n"))
    except (ParseError, DefusedXmlException):
        return None
    space = root.tag[1:].split("}")[0] if root.tag.startswith("{") else ""
    if space:
        ET.register_namespace("", space)
    images = [element for element in root if _local(element) == "Image"]
    wanted = _pick(images, scene, size, name)
    for image in images:
        if image is not wanted and len(images) > 1:
            root.remove(image)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child) in _PLACES or (anonymous is not None and _local(child) not in _TECHNICAL):
                parent.remove(child)
        if anonymous is not None:
            _forget(parent, anonymous)
        if _local(parent) == "Pixels":
            _say_metadata_only(parent, space)
            parent.attrib.update(_physical(mpp) if mpp else {})
    return _document(root)


def _pick(images: list[ET.Element], scene: int, size: Size | None, name: str) -> ET.Element | None:
    """The image that a scene is: associated images stand among the others."""

    def fits(image: ET.Element) -> bool:
        pixels = next((e for e in image if _local(e) == "Pixels"), None)
        sides = (None, None) if pixels is None else (pixels.get("SizeX"), pixels.get("SizeY"))
        return size is None or sides in {(str(size.x), str(size.y)), (str(size.y), str(size.x))}

    numbered = images[scene : scene + 1]
    order = [i for i in images if fits(i) and name and i.get("Name") == name]
    order += [i for i in numbered if fits(i)] + [i for i in images if fits(i)] + numbered
    return order[0] if order else None


def _forget(element: ET.Element, name: str) -> None:
    """Take the attributes that can name a person from an element, and call the image otherwise."""
    for attribute in _NAMING & set(element.attrib):
        del element.attrib[attribute]
    if _local(element) == "Image":
        element.set("Name", name)


def _say_metadata_only(pixels: ET.Element, space: str) -> None:
    """Put MetadataOnly where the schema wants it: behind the channels, before the planes."""
    channels = [i for i, child in enumerate(pixels) if _local(child) == "Channel"]
    pixels.insert(
        channels[-1] + 1 if channels else 0, ET.Element(f"{{{space}}}MetadataOnly" if space else "MetadataOnly")
    )


def _local(element: ET.Element) -> str:
    return element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""


def _document(root: ET.Element) -> bytes:
    ET.indent(root)
    document: bytes = ET.tostring(root, "UTF-8", xml_declaration=True)
    return document
