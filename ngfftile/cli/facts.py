"""What `ngfftile info` tells, of vendors' files and of stores alike."""

from __future__ import annotations

from typing import Any

import ngfftile as nt
from ngfftile.cli.names import check_whole, is_store


def facts_of(slide: str, reader: str | None, scene: int | None = None) -> dict[str, Any]:
    """The facts of a slide by name, as JSON has them."""
    check_whole(slide)
    return (
        _store_facts(nt.open(slide))
        if is_store(slide)
        else _source_facts(nt.open_source(slide, reader, scene, allow_sparse=True).info)
    )


def _source_facts(about: nt.SourceInfo) -> dict[str, Any]:
    rows = [(size.x, size.y, about.size.x / size.x, about.size.y / size.y) for size in about.levels]
    head = {
        "format": about.format,
        "vendor": about.vendor,
        "reader": about.reader,
        "scenes": list(about.scenes),
        "scene": about.scene,
    }
    tail = {
        "z": about.z,
        "t": about.t,
        "channel_names": [c.name for c in about.channels],
        "acquired": about.acquired,
        "icc_bytes": len(about.icc or b""),
        "codec_source": about.encoding.name if about.encoding else f"no: {about.recompress}",
        "associated": list(about.associated),
        "properties": dict(about.properties),
        "mpp_source": about.mpp_source,
        "notes": list(about.notes),
    }
    return head | _pixels(about.size, len(about.channels), about.dtype, about.mpp, about.objective_power, rows) | tail


def _store_facts(slide: nt.Slide) -> dict[str, Any]:
    rows = [(k.size.x, k.size.y, k.downsample, k.downsample_y) for k in slide.levels]
    head: dict[str, Any] = {
        "format": "OME-Zarr",
        "vendor": slide.vendor,
        "reader": "ngfftile",
        "scenes": [],
        "scene": 0,
    }
    tail = {
        "ngff": slide.multiscale.version,
        "z": slide.z,
        "t": slide.t,
        "channel_names": list(slide.channels),
        "acquired": slide.acquired,
        "icc_bytes": len(slide.icc or b""),
        "labels": list(slide.labels),
        "associated": list(slide.associated),
        "properties": dict(slide.properties),
        "mpp_source": slide.facts.get("mpp_source", "the store's scale" if slide.mpp else "the store does not say"),
        "notes": [*slide.facts.get("notes", []), *_damaged(slide)],
    }
    return (
        head | _pixels(slide.size, len(slide.channels), str(slide.dtype), slide.mpp, slide.objective_power, rows) | tail
    )


def _pixels(
    size: nt.Size,
    channels: int,
    dtype: str,
    mpp: nt.Mpp | None,
    power: float | None,
    rows: list[tuple[int, int, float, float]],
) -> dict[str, Any]:
    levels = [
        {
            "level": k,
            "width": width,
            "height": height,
            "downsample": down_x,
            "mpp_x": mpp.x * down_x if mpp else None,
            "mpp_y": mpp.y * down_y if mpp else None,
        }
        for k, (width, height, down_x, down_y) in enumerate(rows)
    ]
    return {
        "width": size.x,
        "height": size.y,
        "dtype": dtype,
        "channels": channels,
        "mpp_x": mpp.x if mpp else None,
        "mpp_y": mpp.y if mpp else None,
        "objective_power": power,
        "levels": levels,
    }


def _damaged(slide: nt.Slide) -> list[str]:
    """Places of the source's damaged tiles, in a sentence."""
    tiles = slide.facts.get("damaged") or []
    where = ", ".join(f"x {tile['x']} y {tile['y']}" for tile in tiles[:5]) + (", ..." if len(tiles) > 5 else "")
    return [f"{len(tiles)} damaged tiles of the source are background: {where}"] if tiles else []
