"""Slides in TIFF: Aperio SVS, OME-TIFF, QPTIFF, ImageJ, generic (pyramidal) TIFF, and what else tifffile reads rightly.

tifffile reads the directories; its decoders (imagecodecs) run without the GIL. `open_tiff` comes first, and leaves the
formats whose tiles overlap, are sparse by the vendor's own rules, or bend TIFF, to OpenSlide; `open_any_tiff` comes
after it, and takes of these what OpenSlide refused and tifffile reads rightly: fluorescence, stacks, microscopes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from ngfftile.errors import NgfftileError, SourceError
from ngfftile.geometry import Region
from ngfftile.sources import ifd, keep, metadata, ome, samples, series, streams
from ngfftile.sources.describe import Documents, describe
from ngfftile.sources.pages import Files, Picture, assemble, single
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, unchanged, version
from ngfftile.sources.raster import Plane, Raster

_OTHERS = {  # tifffile's flag: the format, for the sentence that says who reads it
    "ndpi": "Hamamatsu NDPI",
    "scn": "Leica SCN",
    "bif": "Ventana BIF",
    "philips": "Philips TIFF",
    "sis": "Olympus SIS",
    "lsm": "Zeiss LSM",
    "stk": "MetaMorph STK",
    "fluoview": "Olympus FluoView",
    "trestle": "Trestle TIFF",
}
_OVERLAPPING = {"bif", "trestle"}  # tifffile lays their tiles side by side
_MOST_NDPI = 65_500  # pixels: the side of the largest JPEG; Hamamatsu bends it for more
_OLD_JPEG = 6
_APERIO_YCC = 33003  # stored as YCbCr but not marked so; tifffile hands it out unconverted
_MOST_ASSOCIATED = 1 << 28  # bytes


def open_tiff(path: Path, scene: int = 0) -> Source:
    """Read the headers of a TIFF slide.

    Parameters
    ----------
    path
        The file; of an OME-TIFF of several files, the one to start from.
    scene
        Which of the slides that it holds.

    Raises
    ------
    RefusedError
        Not a TIFF, or of a kind that this reader leaves to another.
    OptionError
        It holds fewer scenes.
    SourceError
        Damaged.
    """
    return _open(path, scene, anything=False)


def open_any_tiff(path: Path, scene: int = 0) -> Source:
    """Read the headers of any TIFF that tifffile reads rightly; for those that OpenSlide refused.

    Raises
    ------
    RefusedError
        It cannot, and another reader may.
    OptionError
        It holds fewer scenes.
    """
    try:
        return _open(path, scene, anything=True)
    except SourceError as error:
        raise RefusedError(error.what, error.where, error.mend) from error


def _open(path: Path, scene: int, *, anything: bool) -> Source:
    try:
        likeness = ifd.check_directories(path)
        # tifffile reads whatever is called .ndpi by Hamamatsu's rules; of theirs no directories are walked.
        misnamed = bool(likeness) and path.suffix.lower() == ".ndpi"
        with tifffile.TiffFile(path, **({"is_ndpi": False} if misnamed else {})) as tiff:
            return TiffSource(path, tiff, likeness, scene, anything=anything)
    except NgfftileError as error:
        error.where = error.where or str(path)
        raise
    # Damage shows itself in tifffile as almost any error; each means that the headers cannot be read.
    except Exception as error:
        raise SourceError(f"its TIFF headers cannot be read ({error})", str(path), "The file is damaged.") from error


@lru_cache(maxsize=8)
def _again(versions: tuple[tuple[Path, tuple[int, int]], ...], scene: int, anything: bool) -> Source:
    """The source in another process, opened once there for all its tasks."""
    first, *_ = [unchanged(path, before) for path, before in versions]
    return open_any_tiff(first, scene) if anything else open_tiff(first, scene)


class TiffSource:
    """A TIFF slide; see `ngfftile.sources.protocol.Source`."""

    def __init__(
        self, path: Path, tiff: tifffile.TiffFile, likeness: dict[int, ifd.Likeness], scene: int, *, anything: bool
    ) -> None:
        files = Files(path, likeness)
        _check_kind(path, tiff, anything=anything)
        documents = _documents(path, tiff, files)
        held = series.contents(tiff, [whole for whole, _ in documents.scn])
        one = held.scene(scene, path).levels[0]
        _check_page(path, tiff, one)
        picture = assemble(path, one, series.order(one, path), files)
        _check_mixed(path, tiff, one.keyframe, picture)
        self._anything = anything
        self._raster, self._planes = picture.raster, picture.planes
        self._associated = dict(_associated(path, held, files))
        sizes = {role: found[0].size for role, found in self._associated.items()}
        codec, why = keep.encoding(one.keyframe, self._raster, self._planes)
        self.info = replace(
            describe(tiff, documents, held, scene, picture, sizes),
            reader="tifffile" if anything else "tiff",
            files=tuple(files.paths),
            encoding=codec,
            recompress=why,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (tuple((p, version(p)) for p in self.info.files), self.info.scene, self._anything)

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Decode the tiles that meet a region; see `Source.read`."""
        self._raster.read(self._planes[plane], region, out, damaged)

    def raw(self, plane: int, row: int, col: int) -> bytes | None:
        """One tile of level 0 as the file has it; see `RawSource.raw`."""
        where = self._planes[plane]
        found = None if where.page is None else keep.whole(self._raster, where.page, where.layer, row, col)
        return None if found is None else found[0]

    def associated(self, role: str) -> Array:
        """Decode one associated image."""
        raster, plane = self._associated[role]
        depth = 3 if raster.samples.rgb else 1
        pixels = np.empty((raster.size.y, raster.size.x, depth), raster.samples.dtype)
        try:
            raster.read(plane, Region(0, 0, raster.size.x, raster.size.y), pixels)
        except SourceError as error:
            raise SourceError(f"its {role} image: {error.what}", str(self._raster.path), metadata.WITHOUT) from error
        return metadata.as_rgb(pixels if depth == 3 else pixels[..., 0])


def _documents(path: Path, tiff: tifffile.TiffFile, files: Files) -> Documents:
    """The XML that tifffile will parse, read first: it does not look out for bombs, or for files elsewhere."""
    if tiff.is_ome and tiff.ome_metadata:
        root = metadata.xml(tiff.ome_metadata)
        if ome.planes(root) > series.MOST_PLANES:
            raise SourceError(f"its OME-XML tells of {ome.planes(root)} planes", str(path), "This is not a slide.")
        for name in sorted(ome.companions(root)):
            if (path.parent / name).is_file():
                files.check(path.parent / name)
        return Documents(ome=tuple(ome.images(root)))
    if tiff.is_scn:
        return Documents(scn=tuple(metadata.scn(tiff.pages.first.description)))
    if tiff.is_qpi or tiff.is_philips:
        metadata.xml(tiff.pages.first.description)
    return Documents()


def _check_kind(path: Path, tiff: tifffile.TiffFile, *, anything: bool) -> None:
    """Leave to others what they read, and what would come out wrong."""
    for flag, name in _OTHERS.items():
        if getattr(tiff, f"is_{flag}", False):
            if not anything:
                raise RefusedError(f"{name}, which the tiff reader leaves to others", str(path))
            if flag in _OVERLAPPING:
                raise RefusedError(f"{name}, whose tiles overlap", str(path))
            page = tiff.pages.first
            if flag == "ndpi" and max(page.imagewidth, page.imagelength) > _MOST_NDPI:
                raise RefusedError(f"{name} of more than {_MOST_NDPI} pixels", str(path))


def _check_page(path: Path, tiff: tifffile.TiffFile, one: Any) -> None:
    """Refuse what would come out wrong, each with its reason."""
    key = one.keyframe
    compression = int(key.compression)
    reason = samples.refusal(key)
    if not reason and compression not in tifffile.TIFF.DECOMPRESSORS:
        reason = f"compression {compression} is not known"
    if not reason and compression == _OLD_JPEG:
        reason = "JPEG of the old style (compression 6)"
    if not reason and compression == _APERIO_YCC:
        reason = "JPEG 2000 in YCbCr (33003)"
    if not reason and one.transform is not None:
        reason = f"pixels of {one.kind} that are not stored as they are"
    if reason:
        _refuse(path, tiff, reason)


def _check_mixed(path: Path, tiff: tifffile.TiffFile, key: Any, picture: Picture) -> None:
    """Refuse JPEG 2000 marked as YCbCr whose streams do not make red, green and blue of it themselves."""
    raster, page = picture.raster, next((plane.page for plane in picture.planes if plane.page is not None), None)
    if raster.compression not in streams.JPEG2000 or int(key.photometric) != 6 or page is None:
        return
    found = None
    with suppress(SourceError):  # damaged; it is reported where it is read
        found = raster.stream(page, 0, 0, 0, 0)
    if found is not None and found[1] is not None and not found[1].mixed:
        _refuse(path, tiff, "JPEG 2000 in YCbCr")


def _refuse(path: Path, tiff: tifffile.TiffFile, reason: str) -> None:
    # OpenSlide has rules of its own for Aperio. It would take a TIFF of no vendor for its first page, and a hostile one
    # can end the process in it.
    if tiff.is_svs:
        raise RefusedError(reason, str(path))
    raise SourceError(reason, str(path), "If OpenSlide reads it rightly: --reader openslide.")


def _associated(path: Path, held: series.Contents, files: Files) -> Iterator[tuple[str, tuple[Raster, Plane]]]:
    """What can be shown of the associated images."""
    for role, key in held.associated.items():
        if samples.refusal(key) or int(key.compression) not in tifffile.TIFF.DECOMPRESSORS:
            continue
        about = samples.understand(key, values=False)
        small = key.nbytes <= _MOST_ASSOCIATED
        if small and about.dtype == np.uint8 and (about.rgb or len(about.names) == 1) and key.shaped[1] == 1:
            yield role, single(path, key, files, about)
