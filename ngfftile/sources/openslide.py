"""Slides by OpenSlide: Hamamatsu, Leica, 3DHISTECH, Ventana, Philips, Trestle, Sakura, Zeiss and DICOM.

OpenSlide ends the process over some damaged files, so that it runs in children: `openslide_child`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ngfftile.errors import OptionError, SourceError, StoreError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import RGB
from ngfftile.sources import metadata
from ngfftile.sources.child import AnswerError, Child, CrashError, LostError, Pool
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo, unchanged, version

_SERVED = Path(__file__).with_name("openslide_child.py")
_BAND = 512  # rows asked at once, so that OpenSlide's RGBA copy of a shard is an eighth of it
_MOST_ASSOCIATED = 1 << 28  # bytes
_LACKING = "Use fewer --workers, or give it more memory, files and time; then the same command goes on."
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


class OpenSlideSource:
    """A slide that OpenSlide reads, in processes of its own; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._children = Pool(_SERVED, str(path))
        try:
            about, _ = self._children.ask(lambda child: child.ask("about"))
        except AnswerError as error:
            raise RefusedError(_told(error), str(path)) from error
        except LostError as error:
            raise StoreError(f"cannot be read (OpenSlide {error})", str(path), _LACKING) from error
        self.info = _describe(path, about)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path))

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:  # noqa: ARG002
        """Pixels of level 0; see `Source.read`."""
        for y in range(region.y, region.bottom, _BAND):
            band = Region(region.x, y, region.width, min(_BAND, region.bottom - y))
            target = out[band.inside(region)]
            try:
                self._fill(target, "read", band.x, band.y, band.width, band.height)
            except AnswerError:
                self._tile_by_tile(band, target, damaged)

    def _tile_by_tile(self, band: Region, out: Array, damaged: Damaged | None) -> None:
        """A band with damage."""
        tile = self.info.tile if min(self.info.tile.x, self.info.tile.y) > 1 else Size.of(_PIECE)
        for y in range(band.y // tile.y * tile.y, band.bottom, tile.y):
            for x in range(band.x // tile.x * tile.x, band.right, tile.x):
                piece = Region(x, y, tile.x, tile.y).clip(band)
                target = out[piece.inside(band)]
                try:
                    self._fill(target, "read", piece.x, piece.y, piece.width, piece.height)
                except AnswerError as error:
                    reason = f"x {x}, y {y}, {tile} cannot be read ({_told(error)})"
                    if damaged is None:
                        raise SourceError(reason, str(self._path), "The file is damaged there.") from error
                    damaged(piece, reason)
                    target[...] = self.info.background

    def _fill(self, out: Array, method: str, *arguments: Any) -> None:
        """What a child lays into its memory, as pixels.

        Raises
        ------
        AnswerError
            The file is damaged.
        StoreError
            The machine has too little of something; of the file nothing is known.
        """

        def lay(child: Child) -> None:
            _, memory = child.ask(method, *arguments, room=out.size)
            out[...] = np.frombuffer(memory, np.uint8).reshape(out.shape)

        try:
            self._children.ask(lay)
        except LostError as error:
            raise StoreError(f"cannot be read (OpenSlide {error})", str(self._path), _LACKING) from error

    def associated(self, role: str) -> Array:
        """One associated image."""
        size = self.info.associated[role]
        out = np.empty((size.y, size.x, 3), np.uint8)
        try:
            self._fill(out, "associated", role, size.x, size.y)
        except AnswerError as error:
            raise SourceError(
                f"its {role} image cannot be read ({_told(error)})", str(self._path), metadata.WITHOUT
            ) from error
        return out


def _told(error: AnswerError) -> str:
    """What happened, by its subject."""
    return f"OpenSlide {error}" if isinstance(error, CrashError) else f"OpenSlide: {error}"


def _describe(path: Path, about: Mapping[str, Any]) -> SourceInfo:
    properties, levels = about["properties"], tuple(Size(*size) for size in about["levels"])
    vendor = properties.get("openslide.vendor", "unknown")
    x, y = (metadata.number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    mpp, mpp_source = metadata.plausible(Mpp(x, y or x) if x else None, "openslide.mpp-x, openslide.mpp-y")
    width = metadata.number(properties.get("openslide.level[0].tile-width")) or 1
    height = metadata.number(properties.get("openslide.level[0].tile-height")) or 1
    return SourceInfo(
        reader="openslide",
        format=_FORMATS.get(vendor, vendor),
        vendor=vendor,
        size=levels[0],
        channels=RGB,
        rgb=True,
        dtype="uint8",
        tile=Size(int(width), int(height)),
        mpp=mpp,
        mpp_source=mpp_source,
        levels=levels,
        files=_files(path, vendor, properties.get("dicom.SeriesInstanceUID", "")),
        objective_power=metadata.number(properties.get("openslide.objective-power")),
        acquired=_acquired(vendor, properties),
        associated=_associated(properties),
        properties=properties,
        icc=bytes.fromhex(about["icc"]) if about["icc"] else None,
    )


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
        if width and height and 3 * int(width) * int(height) <= _MOST_ASSOCIATED:
            found[role] = Size(int(width), int(height))
    return found


def _head(path: Path) -> bytes:
    # SeriesInstanceUID, (0020,000E), stands before all that can be long (DICOM PS3.6; elements are in order).
    with path.open("rb") as file:
        return file.read(1 << 16)


def _plain(path: Path) -> bool:
    """Whether it is a file, and none that a desktop or an editor leaves."""
    return path.is_file() and not path.name.startswith(".")


def _files(path: Path, vendor: str, series: str) -> tuple[Path, ...]:
    """The files that belong to a slide of many: OpenSlide finds them by these rules."""
    if vendor == "dicom":
        return tuple(sorted(p for p in path.parent.iterdir() if p.is_file() and series.encode() in _head(p)))
    if vendor == "mirax":
        return (path, *sorted(p for p in (path.parent / path.stem).iterdir() if _plain(p)))
    if path.suffix.lower() in {".vms", ".vmu"}:
        named = _head(path)
        return tuple(sorted(p for p in path.parent.iterdir() if _plain(p) and (p == path or p.name.encode() in named)))
    return (path,)
