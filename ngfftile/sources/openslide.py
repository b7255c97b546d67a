"""Slides by OpenSlide: Hamamatsu, Leica, 3DHISTECH, Ventana, Philips, Trestle, Sakura, Zeiss and DICOM."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from ngfftile.errors import OptionError, SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import RGB
from ngfftile.sources import metadata
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo, unchanged, version

_BAND = 512  # rows asked at once, so that OpenSlide's RGBA copy of a shard is an eighth of it
_PIECE = 256  # pixels: the side of what is called damaged, of formats that do not say their tiles
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

_DATES = (
    "tiff.DateTime",
    "dicom.AcquisitionDateTime",
    "leica.creation-date",
    "mirax.GENERAL.SLIDE_CREATIONDATETIME",
    "philips.DICOM_ACQUISITION_DATETIME",
    "ventana.ScanDate",
    "zeiss.Information.Image.AcquisitionDateAndTime",
    "hamamatsu.Created",
)


def open_openslide(path: Path, scene: int = 0) -> Source:
    """Open a slide with OpenSlide.

    Raises
    ------
    RefusedError
        OpenSlide does not know the format, or cannot open the file.
    OptionError
        Any scene but the only one.
    """
    if scene:
        raise OptionError(f"scene is {scene}, OpenSlide gives one", str(path), "Use 0.")
    return OpenSlideSource(path)


@lru_cache(maxsize=8)
def _again(path: Path, before: tuple[int, int]) -> Source:
    """The source in another process, opened once there for all its tasks."""
    return open_openslide(unchanged(path, before))


def _handle(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise RefusedError(str(error), str(path)) from error


class OpenSlideSource:
    """A slide that OpenSlide reads; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.info = _describe(path, self._slide)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path))

    @cached_property
    def _slide(self) -> openslide.OpenSlide:
        return _handle(self._path)

    @cached_property
    def _background(self) -> NDArray[np.float32]:
        color = self.info.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        return np.frombuffer(bytes.fromhex(color), np.uint8).astype(np.float32)

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:  # noqa: ARG002
        """Pixels of level 0; see `Source.read`."""
        for y in range(region.y, region.bottom, _BAND):
            band = Region(region.x, y, region.width, min(_BAND, region.bottom - y))
            target = out[band.inside(region)]
            slide = self._slide
            try:
                target[...] = self._pixels(slide, band)
            except openslide.OpenSlideError:
                # A handle that failed once fails for ever, for all threads; the next that asks opens another.
                if self.__dict__.get("_slide") is slide:
                    self.__dict__.pop("_slide", None)
                self._tile_by_tile(band, target, damaged)

    def _tile_by_tile(self, band: Region, out: Array, damaged: Damaged | None) -> None:
        """A band with damage, or whose handle failed elsewhere: on a handle of its own, opened again after each."""
        slide = _handle(self._path)
        tile = self.info.tile if min(self.info.tile.x, self.info.tile.y) > 1 else Size.of(_PIECE)
        for y in range(band.y // tile.y * tile.y, band.bottom, tile.y):
            for x in range(band.x // tile.x * tile.x, band.right, tile.x):
                piece = Region(x, y, tile.x, tile.y).clip(band)
                target = out[piece.inside(band)]
                try:
                    target[...] = self._pixels(slide, piece)
                except openslide.OpenSlideError as error:
                    reason = f"x {x}, y {y}, {tile} cannot be read (OpenSlide: {error})"
                    if damaged is None:
                        raise SourceError(reason, str(self._path), "The file is damaged there.") from error
                    damaged(piece, reason)
                    target[...] = self.info.background
                    slide = _handle(self._path)

    def _pixels(self, slide: openslide.OpenSlide, region: Region) -> Array:
        return self._opaque(np.asarray(slide.read_region((region.x, region.y), 0, (region.width, region.height))))

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
        acquired=_acquired(vendor, properties),
        associated=_associated(properties),
        properties=properties,
        icc=_icc(slide),
    )


def _icc(slide: openslide.OpenSlide) -> bytes | None:
    """The profile as the file has it; `color_profile` would be littlecms' own copy."""
    if slide.color_profile is None:
        return None
    # Beside a picture stand the file's own bytes, and one pixel of the coarsest level costs least.
    found: bytes | None = slide.read_region((0, 0), slide.level_count - 1, (1, 1)).info.get("icc_profile")
    return found


def _acquired(vendor: str, properties: dict[str, str]) -> str | None:
    """When the slide was scanned, from the first of the vendors' names for it that is a date."""
    if vendor == "aperio":
        return metadata.aperio(properties.get("tiff.ImageDescription", "")).acquired
    return next((found for name in _DATES if (found := metadata.iso_date(properties.get(name)))), None)


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
