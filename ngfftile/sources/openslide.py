"""Slides by OpenSlide: Hamamatsu, Leica, 3DHISTECH, Ventana, Philips, Trestle, Sakura, Zeiss and DICOM."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from ngfftile.errors import SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import RGB
from ngfftile.sources import metadata
from ngfftile.sources.protocol import Array, RefusedError, Source, SourceInfo, unchanged, version

_BAND = 512  # rows asked at once, so that OpenSlide's RGBA copy of a shard is an eighth of it
_FORMATS = {
    "aperio": "Aperio SVS",
    "dicom": "DICOM WSI",
    "generic-tiff": "generic TIFF",
    "hamamatsu": "Hamamatsu",
    "leica": "Leica SCN",
    "mirax": "3DHISTECH MRXS",
    "philips-tiff": "Philips TIFF",
    "sakura": "Sakura SVSLIDE",
    "trestle": "Trestle TIFF",
    "ventana": "Ventana BIF",
    "zeiss": "Zeiss CZI",
}


def open_openslide(path: Path) -> Source:
    """Open a slide with OpenSlide.

    Raises
    ------
    RefusedError
        OpenSlide does not know the format, or cannot open the file.
    """
    return OpenSlideSource(path)


@lru_cache(maxsize=8)
def _again(path: Path, before: tuple[int, int]) -> Source:
    """The source in another process, opened once there for all its tasks."""
    return open_openslide(unchanged(path, before))


class OpenSlideSource:
    """A slide that OpenSlide reads; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.info = _describe(path, self._slide)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path))

    @cached_property
    def _slide(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise RefusedError(str(error), str(self._path)) from error

    @cached_property
    def _background(self) -> NDArray[np.float32]:
        color = self.info.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        return np.frombuffer(bytes.fromhex(color), np.uint8).astype(np.float32)

    def read(self, region: Region, first: int, count: int, out: Array) -> None:
        """Pixels of level 0; see `Source.read`."""
        for y in range(region.y, region.bottom, _BAND):
            rows = min(_BAND, region.bottom - y)
            try:
                band = np.asarray(self._slide.read_region((region.x, y), 0, (region.width, rows)))
            except openslide.OpenSlideError as error:
                raise SourceError(
                    f"x {region.x}, y {y}, {region.width} x {rows} cannot be read (OpenSlide: {error})",
                    str(self._path),
                    "The file is damaged there.",
                ) from error
            out[y - region.y : y - region.y + rows] = self._opaque(band)[..., first : first + count]

    def _opaque(self, rgba: Array) -> Array:
        """Lay what is transparent over the slide's background, as a viewer does."""
        alpha = rgba[..., 3]
        if alpha.min() == 255:
            return rgba[..., :3]
        share = alpha[..., None].astype(np.float32) / 255
        return metadata.rounded(rgba[..., :3] * share + self._background * (1 - share))

    def associated(self, role: str) -> Array:
        """One associated image."""
        try:
            return self._opaque(np.asarray(self._slide.associated_images[role]))
        except openslide.OpenSlideError as error:
            raise SourceError(
                f"its {role} image cannot be read (OpenSlide: {error})", str(self._path), metadata.WITHOUT
            ) from error


def _describe(path: Path, slide: openslide.OpenSlide) -> SourceInfo:
    properties = {k: str(v) for k, v in slide.properties.items()}
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    x, y = (metadata.number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    mpp, mpp_source = metadata.plausible(Mpp(x, y or x) if x else None, "openslide.mpp-x, openslide.mpp-y")
    width = metadata.number(properties.get("openslide.level[0].tile-width")) or 1
    height = metadata.number(properties.get("openslide.level[0].tile-height")) or 1
    profile = slide.color_profile
    return SourceInfo(
        reader="openslide",
        format=_FORMATS.get(vendor, vendor),
        vendor=vendor,
        size=Size(*slide.dimensions),
        channels=RGB,
        rgb=True,
        dtype="uint8",
        tile=Size(int(width), int(height)),
        mpp=mpp,
        mpp_source=mpp_source,
        levels=tuple(Size(*d) for d in slide.level_dimensions),
        files=_files(path, vendor, properties.get("dicom.SeriesInstanceUID", "")),
        objective_power=metadata.number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        acquired=metadata.tag_date(properties.get("tiff.DateTime")),
        associated=_associated(properties),
        properties=properties,
        icc=profile.tobytes() if profile is not None else None,
    )


def _associated(properties: dict[str, str]) -> dict[str, Size]:
    """Sizes of the associated images, from properties: to ask OpenSlide for an image decodes it."""
    found = {}
    for role in ("label", "macro", "thumbnail"):
        width, height = (properties.get(f"openslide.associated.{role}.{side}") for side in ("width", "height"))
        if width and height:
            found[role] = Size(int(width), int(height))
    return found


def _head(path: Path) -> bytes:
    # SeriesInstanceUID, (0020,000E), stands before all that can be long (DICOM PS3.6; elements are in order).
    with path.open("rb") as file:
        return file.read(1 << 16)


def _files(path: Path, vendor: str, series: str) -> tuple[Path, ...]:
    """The files that belong to a slide of many: OpenSlide finds them by these rules."""
    if vendor == "dicom":
        return tuple(sorted(p for p in path.parent.iterdir() if p.is_file() and series.encode() in _head(p)))
    if vendor == "mirax":
        return (path, *sorted((path.parent / path.stem).iterdir()))
    if path.suffix.lower() in {".vms", ".vmu"}:
        return tuple(sorted(p for p in path.parent.iterdir() if p.is_file()))
    return (path,)
