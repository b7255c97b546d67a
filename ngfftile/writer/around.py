"""What stands around the levels: associated images, ICC profile, OME-XML, and the root's attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ngfftile import codecs, ngff, omexml, shards
from ngfftile.geometry import Region, Size
from ngfftile.ngff import Channel
from ngfftile.pyramid import PyramidPlan
from ngfftile.shards import LevelArray
from ngfftile.sources import Source
from ngfftile.store import Store, Written
from ngfftile.writer.plan import IDENTIFYING, ConversionPlan

Array = NDArray[Any]

# A vendor's property whose name has one of these may hold a person, or lead to one: names, numbers of cases and
# containers, what somebody typed. Rather too much is left out than too little; what is, is listed by name.
_PERSONAL = (
    *("patient", "person", "birth", "physician", "doctor", "operator", "user", "artist", "copyright", "observer"),
    *("institution", "hospital", "department", "address", "phone", "email", "host", "referring", "request"),
    *("barcode", "accession", "container", "specimen", "instanceuid", "studyid", "slideid", "slide_id", "caseid"),
    *("mrn", "ssn", "subject", "client", "owner", "technician", "scanned by", "signout", "notes", "remark", "file"),
    *("aperio.case", "aperio.study", "aperio.path", "aperio.dob", "aperio.block", "serial", "referenceuid"),
    *("sampleid", "imageid", "case_", "case ", "document", "title", "label", "comment", "annotation", "description"),
)
_NAMES, _OF_MACHINES = "name", ("model", "manufacturer", "stain", "codec")
_PRIVATE = "dicom.("  # private elements of DICOM, which PS3.15 leaves out as well: nobody knows what they hold


def write_around(slide: Source, what: ConversionPlan, store: Store, name: str) -> list[Written]:
    """Associated images, ICC profile and OME-XML: all but the levels and the root."""
    info, version = what.source, what.options.ngff
    format_ = ngff.zarr_format(version)
    written = []
    if what.roles or info.icc:
        written += store.create_group("associated", {"ngfftile": {"roles": what.roles}}, format_)
    for role in what.roles:
        written += _write_image(slide.associated(role), role, what, store)
    if info.icc:
        written.append(store.write("associated/icc", info.icc))
    anonymous = name if what.options.deidentify else None
    given = what.mpp if what.mpp != info.mpp else None
    scene = info.scenes[info.scene] if info.scenes else ""
    own = info.ome_xml and omexml.kept(info.ome_xml, info.scene, anonymous, given, size=info.size, name=scene)
    written += store.create_group("OME", {}, format_)
    written.append(store.write("OME/METADATA.ome.xml", own or omexml.made(_facts(what, name))))
    return written


def _facts(what: ConversionPlan, name: str) -> omexml.Facts:
    info = what.source
    return omexml.Facts(
        name,
        info.size,
        info.channels,
        info.rgb,
        info.dtype,
        what.mpp,
        info.z,
        info.t,
        info.z_step,
        info.t_step,
        info.objective_power,
        info.acquired,
    )


def _write_image(pixels: Array, role: str, what: ConversionPlan, store: Store) -> list[Written]:
    """One associated image, (height, width, 3), as a pyramid of one level."""
    options = what.options
    # Beside kept tiles, which only zarr-python reads, small and lossless.
    codec = codecs.JpegLs() if what.keeps else codecs.named("blosc" if options.ngff == "0.4" else "zstd")
    layout = replace(
        what.layout(0), chunk=options.chunk, shard=options.shard, depth=3, fill=255, codec=codec, axes=("c", "y", "x")
    )
    height, width = pixels.shape[:2]
    path = f"associated/{role}/0"
    written = shards.create(store, path, (3, height, width), "uint8", layout)
    plan = PyramidPlan(Size(width, height), 3, "uint8", 3, 255, layout.chunk, layout.shard)
    for shard in plan.shards(0):
        region = plan.region(shard)
        part = pixels[region.y : region.bottom, region.x : region.right].transpose(2, 0, 1)
        written += shards.write_shard(store, layout.objects(path, plan.place(shard), region), part, layout)
    one = ngff.Pixels(("c", "y", "x"), 1, None)
    about = ngff.image_attributes(role, one, ngff.RGB, "uint8", {"method": "none"}, version=options.ngff)
    return written + store.create_group(f"associated/{role}", about, layout.zarr_format)


def _windows(store: Store, what: ConversionPlan) -> tuple[Channel, ...]:
    """Display windows of channels that are not RGB: from 0 (or the least value) to the brightest thousandth."""
    pyramid = what.pyramid
    coarse = next(k for k, size in enumerate(pyramid.levels) if max(size.x, size.y) <= 2048)
    size = pyramid.levels[coarse]
    array = LevelArray(store, str(coarse), pyramid.axes, whole=True)
    pixels = array.read(Region(0, 0, size.x, size.y), z=pyramid.z // 2)
    shown = []
    for channel, plane in zip(what.source.channels, pixels, strict=True):
        values = plane.astype(np.uint8) if plane.dtype == bool else plane
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low = min(0.0, float(finite.min(initial=0)))
        high = float(np.percentile(finite, 99.9)) if finite.size else 0.0
        window = channel.window or (low, high if high > low else low + 1.0)
        shown.append(replace(channel, window=window))
    return tuple(shown)


def root_attributes(
    what: ConversionPlan,
    identity: dict[str, Any],
    store: Store,
    damaged: list[dict[str, Any]],
    name: str,
    labels: Iterable[str],
) -> dict[str, Any]:
    """Attributes of the root group: what the specification asks, and where the slide comes from.

    Parameters
    ----------
    damaged
        Tiles that became background.
    name
        Of the image.
    labels
        Names of those that came along.
    """
    info, pyramid = what.source, what.pyramid
    release = version("ngfftile")
    channels = info.channels if info.rgb else _windows(store, what)
    method = {"method": what.method, "version": release, "description": _METHODS[what.method]}
    ours = {
        "schema": ngff.SCHEMA,
        "status": "complete",
        "version": release,
        "source": _source(what, identity),
        "mpp_source": what.mpp_source,
        "objective_power": info.objective_power,
        "acquired": info.acquired,
        "channels": [_channel(c) for c in info.channels],
        **_properties(what),
        "icc": {"path": "associated/icc", "sha256": hashlib.sha256(info.icc).hexdigest()} if info.icc else None,
        "associated": {
            role: {"path": f"associated/{role}", "width": info.associated[role].x, "height": info.associated[role].y}
            for role in what.roles
        },
        "associated_dropped": sorted({*info.associated, *info.origin.get("associated_dropped", [])} - set(what.roles)),
        "labels": sorted(labels),
        "pyramid": {
            "method": what.method,
            "levels": _levels(what),
        },
        "codec": what.codec_name,
        "notes": list(what.notes),
        "damaged": [*info.origin.get("damaged", []), *damaged],
        "conversion": identity,
    }
    pixels = ngff.Pixels(
        pyramid.axes,
        len(pyramid.levels),
        what.mpp,
        info.z_step,
        info.t_step,
        centred=what.method != "nearest",
        plain=info.plain,
        offset_x=info.offset_x,
        offset_y=info.offset_y,
    )
    standard = ngff.image_attributes(name, pixels, channels, info.dtype, method, pyramid.z, what.options.ngff)
    return standard | {"ngfftile": ours}


def _levels(what: ConversionPlan) -> list[str]:
    """What each level was made of."""
    made = [f"{what.method} of the level before"] * (len(what.pyramid.levels) - 1)
    if what.scaled and made:
        made[0] = "the level before, decoded at half size"
    return ["source", *made]


def _source(what: ConversionPlan, identity: dict[str, Any]) -> dict[str, Any]:
    """Where the slide comes from: of a store that we made, where that came from."""
    info = what.source
    if info.origin.get("source"):
        through = {"format": info.format, "codec": info.origin.get("codec")}
        found = dict(info.origin["source"]) | {"through": through}
        return {k: v for k, v in found.items() if k != "name"} if what.options.deidentify else found
    found = {
        "name": info.files[0].name,
        "bytes": sum(f.stat().st_size for f in info.files if f.is_file()),
        "fingerprint": identity["fingerprint"],
        "format": info.format,
        "vendor": info.vendor,
        "reader": info.reader,
        "levels": [[s.x, s.y] for s in info.levels],
    }
    if info.scenes:
        found |= {"scene": info.scene, "scene_name": info.scenes[info.scene]}
    # A file's name is often a case number, and now and then a patient's.
    return {k: v for k, v in found.items() if k != "name"} if what.options.deidentify else found


def _channel(channel: Channel) -> dict[str, Any]:
    known = {"emission_nm": channel.emission, "excitation_nm": channel.excitation}
    return {"name": channel.name, "color": channel.color} | {k: v for k, v in known.items() if v is not None}


def _properties(what: ConversionPlan) -> dict[str, Any]:
    properties = what.source.properties
    kept = {k: v for k, v in properties.items() if not what.options.deidentify or not personal(k, v)}
    earlier = what.source.origin.get("properties_dropped", [])
    return {"properties": kept, "properties_dropped": sorted({*properties, *earlier} - set(kept))}


def identifying(what: ConversionPlan) -> list[str]:
    """What in the store can name a person: associated images, and properties, by name."""
    images = [role for role in what.roles if role in IDENTIFYING]
    if what.options.deidentify:
        return images
    found = sorted(k for k, v in what.source.properties.items() if v.strip() and personal(k, v))
    # A description says again what stands in the properties; alone it is mostly a program's.
    return images + [k for k in found if k != "tiff.ImageDescription" or len(found) > 1]


_METHODS = {
    "mean": "2x mean of the level before, rounded half up",
    "nearest": "first of each 2 x 2 pixels of the level before",
    "mode": "commonest of each 2 x 2 pixels of the level before, the first where two are as common",
}


def personal(name: str, text: str) -> bool:
    """Whether a property can name a person, or lead to one: by the words in its name, and in its text."""
    key = name.lower()
    named = _NAMES in key and not any(word in key for word in _OF_MACHINES)
    spoken = ("patient", "barcode", "accession")
    return (
        named
        or key.startswith(_PRIVATE)
        or any(word in key for word in _PERSONAL)
        or any(word in text.lower() for word in spoken)
    )
