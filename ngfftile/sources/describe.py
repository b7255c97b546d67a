"""What the headers of a TIFF say of the slide, gathered from vendors' words, tags and tifffile's own reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ngfftile.geometry import Mpp, Size
from ngfftile.ngff import PALETTE, RGB, Channel
from ngfftile.sources import metadata, ome
from ngfftile.sources.metadata import Facts, Named
from ngfftile.sources.pages import Picture
from ngfftile.sources.protocol import SourceInfo
from ngfftile.sources.series import Contents, Scene

_KINDS = {  # tifffile's kind of series: format and vendor
    "mikroscan": ("Mikroscan TIFF", "mikroscan"),
    "motic": ("Motic TIFF", "motic"),
    "huron": ("Huron TIFF", "huron"),
    "avs": ("Argos AVS", "argos"),
    "indica": ("IndicaLabs TIFF", "indica"),
    "ndpi": ("Hamamatsu NDPI", "hamamatsu"),
    "philips": ("Philips TIFF", "philips-tiff"),
    "sis": ("Olympus SIS", "olympus"),
    "lsm": ("Zeiss LSM", "zeiss"),
    "stk": ("MetaMorph STK", "metamorph"),
    "fluoview": ("Olympus FluoView", "olympus"),
}
_UNSAID = "the file does not say"
_TAGS = (
    "Artist",
    "Copyright",
    "DateTime",
    "DocumentName",
    "HostComputer",
    "ImageDescription",
    "Make",
    "Model",
    "ResolutionUnit",
    "Software",
    "XPosition",
    "XResolution",
    "YPosition",
    "YResolution",
)


@dataclass(frozen=True, slots=True)
class Documents:
    """The descriptions that were read before the pages: OME's images, and Leica's."""

    ome: tuple[ome.Image, ...] = ()
    scn: tuple[tuple[bool, Facts], ...] = ()


def describe(
    tiff: Any, documents: Documents, contents: Contents, index: int, picture: Picture, sizes: dict[str, Size]
) -> SourceInfo:
    """All that is known, but for the files and what a store can keep.

    Parameters
    ----------
    tiff
        tifffile's file, open.
    documents, contents, index
        What it says, what it holds, and which of its slides this is.
    picture
        The slide's planes.
    sizes
        Of the associated images, by role.
    """
    scene = contents.scenes[index]
    one, key = scene.levels[0], scene.levels[0].keyframe
    facts = _facts(tiff, documents, scene)
    mpp, mpp_source = _mpp(one, key, facts)
    raster, orientation = picture.raster, picture.raster.orientation
    rgb = raster.samples.rgb
    levels = (Size(level.keyframe.imagewidth, level.keyframe.imagelength) for level in scene.levels)
    left_out = "ImageDescription" if facts.vendor == "ome" else ""
    return SourceInfo(
        reader="tiff",
        format=facts.format,
        vendor=facts.vendor,
        size=raster.size,
        channels=RGB if rgb else _channels(picture, facts.channels),
        rgb=rgb,
        dtype=raster.samples.dtype.name,
        tile=raster.tile,
        mpp=None if mpp is None else orientation.mpp(mpp),
        mpp_source=mpp_source,
        levels=tuple(orientation.size(level) for level in levels),
        files=(Path(),),
        objective_power=facts.objective_power,
        acquired=facts.acquired or metadata.tag_date(key.tags.valueof(306)),
        associated=sizes,
        properties=facts.properties | plain_tags(key, left_out),
        icc=key.tags.valueof(34675),
        tables=picture.tables,
        notes=(*picture.notes, *_notes(orientation.tag, contents, tiff, one)),
        z=picture.z,
        t=picture.t,
        z_step=(facts.z_step or _z_step(one)) if picture.z > 1 else None,
        t_step=(facts.t_step or _t_step(one)) if picture.t > 1 else None,
        scenes=tuple(s.name for s in contents.scenes) if len(contents.scenes) > 1 else (),
        scene=index,
        ome_xml=tiff.ome_metadata if documents.ome else None,
    )


def _facts(tiff: Any, documents: Documents, scene: Scene) -> Facts:
    one = scene.levels[0]
    kind, key = one.kind, one.keyframe
    if kind in {"svs", "mikroscan", "motic"}:
        facts = metadata.aperio(key.description)
        return facts if kind == "svs" else replace(facts, format=_KINDS[kind][0], vendor=_KINDS[kind][1])
    if documents.ome:
        names = [(s.name, s.keyframe.imagewidth, s.keyframe.imagelength) for s in tiff.series]
        return ome.match(list(documents.ome), names)[scene.number] or Facts("OME-TIFF", "ome")
    if kind == "qpi":
        return metadata.qptiff([page.description for page in one])
    return _of_others(tiff, documents, scene)


def _of_others(tiff: Any, documents: Documents, scene: Scene) -> Facts:
    kind, key = scene.levels[0].kind, scene.levels[0].keyframe
    if kind == "scn" and scene.number < len(documents.scn):
        return documents.scn[scene.number][1]
    if kind == "imagej":
        return metadata.imagej(tiff.imagej_metadata or {}, key.tags.valueof(282), key.tags.valueof(283))
    if kind == "lsm":
        return Facts(*_KINDS[kind], channels=metadata.lsm_channels(tiff.lsm_metadata))
    return Facts(*_KINDS.get(kind, ("generic TIFF", "generic-tiff")))


def _mpp(one: Any, key: Any, facts: Facts) -> tuple[Mpp | None, str]:
    """The first that can be, of what the vendor, tifffile and the tags say; else the first reason why none is."""
    said = (facts.mpp, facts.mpp_source)
    tags = metadata.tag_mpp(*(key.tags.valueof(code) for code in (282, 283, 296)))
    # Aperio's tags are those of the print; QPTIFF's are of the scan, where its words are of the profile.
    tries = [said] if one.kind == "svs" else [tags, said] if one.kind == "qpi" else [said]
    if one.kind in _KINDS and one.mpp is not None and min(one.mpp) > 0:
        tries.append(metadata.plausible(Mpp(*one.mpp), f"{facts.format} description"))
    if one.kind != "svs":
        tries.append(tags)
    known = [found for found in tries if found[0] is not None] or [found for found in tries if found[1] != _UNSAID]
    return known[0] if known else (None, _UNSAID)


def _z_step(one: Any) -> float | None:
    step = one.coord_scales.get("Z") if one.kind != "imagej" else None
    return float(step) if step and step > 0 and one.coord_units.get("Z") == "micrometer" else None


def _t_step(one: Any) -> float | None:
    step = one.coord_scales.get("T") if one.kind != "imagej" else None
    return float(step) if step and step > 0 and one.coord_units.get("T", "second") == "second" else None


def _channels(picture: Picture, told: Sequence[Named]) -> tuple[Channel, ...]:
    """Each channel's name and colour: as told of it, or of the page that holds it, or counted."""
    count = len(picture.channels)
    each = count // picture.groups
    if len(told) not in {count, picture.groups}:
        told = ()
    channels = []
    for i, sample in enumerate(picture.channels):
        about = told[i * len(told) // count] if told else Named()
        shared = len(told) < count and each > 1
        name = f"{about.name} {sample or i % each}".strip() if shared and about.name else about.name or sample
        if not name or (shared and picture.groups > 1 and not about.name):
            name = f"channel {i // each} {sample}".strip() if each > 1 and sample else f"channel {i}"
        known = {"Red": "FF0000", "Green": "00FF00", "Blue": "0000FF"}.get(sample, PALETTE[i % len(PALETTE)])
        color = known if shared or not about.color else about.color
        channels.append(Channel(name, color, emission=about.emission, excitation=about.excitation))
    return tuple(channels)


def _notes(orientation: int, contents: Contents, tiff: Any, one: Any) -> list[str]:
    notes = list(contents.notes)
    if orientation != 1:
        notes.append(f"it is stored turned or mirrored (orientation {orientation}), and read upright")
    if tiff.is_ome and one.kind != "ome":
        notes.append("its OME-XML does not fit its pages, which are read in the order that they have")
    return notes


def plain_tags(page: Any, left_out: str = "") -> dict[str, str]:
    """Tags that describe the image in words or numbers, under OpenSlide's names."""
    return {f"tiff.{n}": text(page.tags[n].value) for n in _TAGS if n in page.tags and n != left_out}


def text(value: Any) -> str:
    """A tag's value in words."""
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0] / value[1]:.10g}" if value[1] else "0"
    return str(getattr(value, "name", value)).strip("\x00 \r\n")
