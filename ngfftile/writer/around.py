"""What stands around the levels: associated images, ICC profile, OME-XML, and the root's attributes."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ngfftile import ngff, shards
from ngfftile.geometry import Region, Size
from ngfftile.ngff import Channel
from ngfftile.pyramid import PyramidPlan
from ngfftile.shards import Layout, LevelArray
from ngfftile.sources import Source
from ngfftile.store import Store
from ngfftile.writer.plan import ConversionPlan

Array = NDArray[Any]

# A vendor's property whose name, or text, has one of these may hold a person, or lead to one.
_PERSONAL = (
    "patient",
    "barcode",
    "accession",
    "physician",
    "operator",
    "birth",
    "user",
    "institution",
    "container",
    "artist",
    "title",
)


def write_around(slide: Source, what: ConversionPlan, store: Store) -> None:
    """Associated images, ICC profile and OME-XML: all but the levels and the root."""
    info = what.source
    name = info.files[0].stem
    roles = list(info.associated) if what.associated else []
    if roles:
        store.create_group("associated", {"ngfftile": {"roles": roles}})
    for role in roles:
        pixels = slide.associated(role)
        layout = Layout(what.pyramid.chunk, what.pyramid.shard, 3, 255)
        height, width = pixels.shape[:2]
        shards.create(store, f"associated/{role}/0", (3, height, width), "uint8", layout, what.codec)
        for shard in PyramidPlan(Size(width, height), 3, "uint8", 3, 255, layout.chunk, layout.shard).shards(0):
            y, x = shard.row * layout.shard, shard.col * layout.shard
            part = pixels[y : y + layout.shard, x : x + layout.shard].transpose(2, 0, 1)
            shards.write_shard(store, f"associated/{role}/{shard.key}", part, layout, what.codec)
        ome = ngff.image_attributes(role, 1, None, ngff.RGB, "uint8", {"method": "none"})
        store.create_group(f"associated/{role}", {"ome": ome})
    if info.icc:
        store.write("associated/icc", info.icc)
    xml = ngff.ome_xml(
        name, info.size, info.channels, info.rgb, info.dtype, what.mpp, info.objective_power, info.acquired
    )
    store.write("OME/METADATA.ome.xml", xml)


def _windows(job_store: Store, pyramid: PyramidPlan, channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
    """Display windows of channels that are not RGB: from 0 (or the least value) to the brightest thousandth."""
    coarse = next(k for k, size in enumerate(pyramid.levels) if max(size.x, size.y) <= 2048)
    size = pyramid.levels[coarse]
    pixels = LevelArray(job_store, str(coarse), ("c", "y", "x"), whole=True).read(Region(0, 0, size.x, size.y))
    shown = []
    for channel, plane in zip(channels, pixels, strict=True):
        low = min(0.0, float(plane.min()))
        high = float(np.percentile(plane, 99.9))
        shown.append(Channel(channel.name, channel.color, (low, high if high > low else low + 1.0)))
    return tuple(shown)


def root_attributes(what: ConversionPlan, identity: dict[str, Any], store: Store) -> dict[str, Any]:
    """Attributes of the root group: what the specification asks, and where the slide comes from."""
    info, pyramid = what.source, what.pyramid
    release = version("ngfftile")
    kept = {k: v for k, v in info.properties.items() if not _personal(k) and not _personal(v)}
    method = {"method": "mean", "version": release, "description": "2x mean of the level before, rounded half up"}
    channels = info.channels if info.rgb else _windows(store, pyramid, info.channels)
    ours = {
        "schema": ngff.SCHEMA,
        "status": "complete",
        "version": release,
        "source": {
            "name": info.files[0].name,
            "bytes": sum(f.stat().st_size for f in info.files),
            "fingerprint": identity["fingerprint"],
            "format": info.format,
            "vendor": info.vendor,
            "reader": info.reader,
            "levels": [[s.x, s.y] for s in info.levels],
        },
        "mpp_source": what.mpp_source,
        "objective_power": info.objective_power,
        "acquired": info.acquired,
        "properties": kept,
        "properties_dropped": sorted(set(info.properties) - set(kept)),
        "icc": {"path": "associated/icc", "sha256": hashlib.sha256(info.icc).hexdigest()} if info.icc else None,
        "associated": {
            role: {"path": f"associated/{role}", "width": size.x, "height": size.y}
            for role, size in (info.associated.items() if what.associated else ())
        },
        "pyramid": {"method": "mean", "levels": ["source"] + ["mean of the level before"] * (len(pyramid.levels) - 1)},
        "codec": what.codec.name,
        "notes": list(info.notes),
        "conversion": identity,
    }
    ome = ngff.image_attributes(info.files[0].stem, len(pyramid.levels), what.mpp, channels, info.dtype, method)
    return {"ome": ome, "ngfftile": ours}


def _personal(text: str) -> bool:
    return any(word in text.lower() for word in _PERSONAL)
