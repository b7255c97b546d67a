"""Slides in TIFF: Aperio SVS, OME-TIFF of one plane, QPTIFF, and generic (pyramidal) TIFF.

tifffile reads the directories; its decoders (imagecodecs) run without the GIL. Formats whose tiles overlap, are sparse
by the vendor's own rules, or bend TIFF are refused here, and read by OpenSlide.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tifffile

from ngfftile.errors import NgfftileError, SourceError
from ngfftile.geometry import Region, Size
from ngfftile.ngff import PALETTE, RGB, Channel
from ngfftile.sources import ifd, metadata
from ngfftile.sources.protocol import Array, RefusedError, Source, SourceInfo, unchanged, version
from ngfftile.store import LocalFile

_OTHERS = {  # tifffile's flag: the format, for the sentence that says who reads it
    "ndpi": "Hamamatsu NDPI",
    "scn": "Leica SCN",
    "bif": "Ventana BIF",
    "philips": "Philips TIFF",
    "sis": "Olympus SIS",
    "lsm": "Zeiss LSM",
    "stk": "MetaMorph STK",
    "fluoview": "Olympus FluoView",
}
_JPEG2000 = {33003, 33004, 33005, 34712}
_JPEG = {6, 7}
_APERIO_YCC = 33003  # stored as YCbCr but not marked so; tifffile hands it out unconverted
MOST_TILE_BYTES = 1 << 30


def open_tiff(path: Path) -> Source:
    """Read the headers of a TIFF slide.

    Raises
    ------
    RefusedError
        Not a TIFF, or of a kind that this reader leaves to another.
    SourceError
        Damaged.
    """
    ifd.check_directories(path)
    try:
        with tifffile.TiffFile(path) as tiff:
            return TiffSource(path, tiff)
    except NgfftileError:
        raise
    # Damage shows itself in tifffile as almost any error; each means that the headers cannot be read.
    except Exception as error:
        raise SourceError(f"its TIFF headers cannot be read ({error})", str(path), "The file is damaged.") from error


@dataclass(frozen=True, slots=True)
class _Plane:
    """One page of level 0: where its tiles lie in the file."""

    offsets: tuple[int, ...]
    counts: tuple[int, ...]


def _plane(page: tifffile.TiffPage | tifffile.TiffFrame) -> _Plane:
    return _Plane(tuple(page.dataoffsets), tuple(page.databytecounts))


@lru_cache(maxsize=8)
def _again(path: Path, before: tuple[int, int]) -> Source:
    """The source in another process, opened once there for all its tasks."""
    return open_tiff(unchanged(path, before))


class TiffSource:
    """A TIFF slide; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile) -> None:
        self._path = path
        self._file = LocalFile(path)
        series = tiff.series[0]
        page = series.keyframe
        _check_kind(path, tiff, series, page)
        self._samples = page.samplesperpixel
        self._planes = tuple(_plane(p) for p in _pages(path, tiff, series))
        self._tables = page.jpegtables
        self._decoder = page.decode  # tifffile builds it from the open file, once for all pages of the series
        size = Size(page.imagewidth, page.imagelength)
        tile = Size(page.tilewidth, page.tilelength) if page.is_tiled else Size(size.x, min(page.rowsperstrip, size.y))
        self._across = -(-size.x // tile.x)
        self._pages = dict(_associated_pages(tiff))
        _check_extent(path, size, tile, self._planes, page, self._file.size)
        for role, index in self._pages.items():
            _check_inside(path, f"{role} image", _plane(tiff.pages[index].aspage()), self._file.size)
        self.info = _describe(path, tiff, size, tile, self._pages, self._planes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path))

    def read(self, region: Region, first: int, count: int, out: Array) -> None:
        """Decode the tiles that meet a region; see `Source.read`."""
        if self._samples > 1:
            self._read_plane(self._planes[0], region, slice(first, first + count), out)
            return
        for i in range(count):
            self._read_plane(self._planes[first + i], region, slice(0, 1), out[..., i : i + 1])

    def _read_plane(self, plane: _Plane, region: Region, samples: slice, out: Array) -> None:
        tile = self.info.tile
        for row in range(region.y // tile.y, -(-region.bottom // tile.y)):
            for col in range(region.x // tile.x, -(-region.right // tile.x)):
                place = Region(col * tile.x, row * tile.y, tile.x, tile.y)
                wanted = place.clip(region)
                target = out[wanted.inside(region)]
                pixels = self._decode(plane, row, col)
                target[...] = self.info.background if pixels is None else pixels[(*wanted.inside(place), samples)]

    def _decode(self, plane: _Plane, row: int, col: int) -> Array | None:
        """One tile, (y, x, sample); None where the file stores none."""
        index = row * self._across + col
        if plane.counts[index] == 0:
            return None
        data = self._file.read(plane.offsets[index], plane.counts[index])
        try:
            decoded = self._decoder(data, index, jpegtables=self._tables)[0]
        # Any failure of a decoder is damage of this tile, and the message must name it.
        except Exception as error:
            raise SourceError(
                f"tile at row {row}, column {col} (x {col * self.info.tile.x}, y {row * self.info.tile.y}) does not "
                f"decode ({error})",
                str(self._path),
                "The file is damaged there: copy or scan it again.",
            ) from error
        pixels: Array = decoded[0]
        return pixels

    def associated(self, role: str) -> Array:
        """Decode one associated image."""
        index = self._pages[role]
        try:
            with tifffile.TiffFile(self._path) as tiff:
                pixels: Array = tiff.pages[index].asarray()
        except Exception as error:
            raise SourceError(
                f"its {role} image does not decode ({error})", str(self._path), metadata.WITHOUT
            ) from error
        return metadata.as_rgb(pixels)


def _pages(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[Any]:
    """The pages of level 0, one for each channel."""
    pages = list(series.pages)
    planes = series.shape[0] if series.axes == "CYX" else 1
    if len(pages) != planes or any(page is None or page.parent is not tiff for page in pages):
        raise SourceError(f"{planes} channels, whose planes are missing, in other files, or not pages", str(path))
    return pages


def _check_kind(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, page: tifffile.TiffPage) -> None:
    """Refuse what would come out wrong, each with its reason."""
    for flag, name in _OTHERS.items():
        if getattr(tiff, f"is_{flag}", False):
            raise RefusedError(f"{name}, which the tiff reader leaves to others", str(path))
    compression, photometric = int(page.compression), int(page.photometric)
    reasons = {
        f"axes are {series.axes}; a slide is one plane: YX, YXS or CYX": series.axes not in {"YX", "YXS", "CYX"},
        f"pixels are {page.dtype}": page.dtype is None or page.dtype.kind not in "uif" or page.dtype.itemsize > 4,
        f"{page.samplesperpixel} samples per pixel": page.samplesperpixel not in {1, 3},
        f"colours are {page.photometric.name}": photometric not in {1, 2, 6},
        f"compression {compression} is not known": compression not in tifffile.TIFF.DECOMPRESSORS,
        "YCbCr that is not JPEG": photometric == 6 and compression not in _JPEG | _JPEG2000,
        "JPEG 2000 in YCbCr (33003)": compression == _APERIO_YCC,
        f"orientation is {_tag(page, 274)}, not top left": _tag(page, 274) not in {None, 1},
    }
    for reason, holds in reasons.items():
        if holds and _is_vendors(tiff):
            raise RefusedError(reason, str(path))
        if holds:
            # OpenSlide would take a TIFF of no vendor for its first page, and a hostile one can end the process in it.
            raise SourceError(reason, str(path), "If OpenSlide reads it rightly: --reader openslide.")


def _is_vendors(tiff: tifffile.TiffFile) -> bool:
    """Whether OpenSlide has rules of its own for the file, other than those named in `_OTHERS`: Aperio, Trestle."""
    return bool(tiff.is_svs) or _text(_tag(tiff.pages.first, 305) or "").startswith("MedScan")


def _check_extent(
    path: Path, size: Size, tile: Size, planes: tuple[_Plane, ...], page: tifffile.TiffPage, file_size: int
) -> None:
    expected = -(-size.x // tile.x) * -(-size.y // tile.y)
    if tile.x * tile.y * page.samplesperpixel * page.dtype.itemsize > MOST_TILE_BYTES:
        raise SourceError(f"its tiles or strips are {tile} pixels, too large to decode one by one", str(path))
    for plane in planes:
        if min(len(plane.offsets), len(plane.counts)) < expected:
            raise SourceError(
                f"{len(plane.offsets)} tiles listed where {size} in tiles of {tile} needs {expected}",
                str(path),
                "The file is damaged.",
            )
        _check_inside(path, "level 0", plane, file_size)


def _check_inside(path: Path, what: str, plane: _Plane, file_size: int) -> None:
    beyond = sum(offset + count > file_size for offset, count in zip(plane.offsets, plane.counts, strict=True))
    if beyond:
        raise SourceError(
            f"{what}: {beyond} of {len(plane.offsets)} tiles or strips lie past the file's end at byte {file_size}",
            str(path),
            "The file is truncated: copy it again.",
        )


def _tag(page: tifffile.TiffPage, code: int) -> Any:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _associated_pages(tiff: tifffile.TiffFile) -> Iterator[tuple[str, int]]:
    """Associated images: tifffile names their series; QPTIFF names them in each page's description."""
    roles = {"label": "label", "macro": "macro", "overview": "macro", "thumbnail": "thumbnail"}
    if tiff.is_qpi:
        for index, page in enumerate(tiff.pages):
            found = re.search(r"<ImageType>(\w+)</ImageType>", page.aspage().description)
            if found and found[1].lower() in roles:
                yield roles[found[1].lower()], index
        return
    for series in tiff.series[1:]:
        if series.name.lower() in roles:
            yield roles[series.name.lower()], series.keyframe.index


def _describe(
    path: Path, tiff: tifffile.TiffFile, size: Size, tile: Size, pages: dict[str, int], planes: tuple[_Plane, ...]
) -> SourceInfo:
    series = tiff.series[0]
    page = series.keyframe
    facts = metadata.Facts(format="generic TIFF", vendor="generic-tiff")
    if tiff.is_svs:
        facts = metadata.aperio(page.description)
    elif tiff.is_ome and tiff.ome_metadata:
        facts = metadata.ome(tiff.ome_metadata)
    elif tiff.is_qpi:
        facts = metadata.qptiff([p.description for p in series.pages if p is not None])
    rgb = page.samplesperpixel == 3
    count = 1 if rgb else len(series.pages)
    names = facts.channels if len(facts.channels) == count else [f"channel {i}" for i in range(count)]
    colors = facts.colors if len(facts.colors) == count else [PALETTE[i % len(PALETTE)] for i in range(count)]
    mpp, mpp_source = facts.mpp, facts.mpp_source
    if mpp is None and not tiff.is_svs:
        mpp, mpp_source = metadata.tag_mpp(_tag(page, 282), _tag(page, 283), _tag(page, 296))
    empty = sum(plane.counts.count(0) for plane in planes)
    tables = hashlib.sha256(repr([(p.offsets, p.counts) for p in planes]).encode()).digest()
    notes = (f"{empty} tiles are not stored in the file; they become background",) if empty else ()
    return SourceInfo(
        reader="tiff",
        format=facts.format,
        vendor=facts.vendor,
        size=size,
        channels=RGB if rgb else tuple(map(Channel, names, colors)),
        rgb=rgb,
        dtype=page.dtype.name,
        tile=tile,
        mpp=mpp,
        mpp_source=mpp_source,
        levels=tuple(Size(level.keyframe.imagewidth, level.keyframe.imagelength) for level in series.levels),
        files=(path,),
        objective_power=facts.objective_power,
        acquired=facts.acquired or metadata.tag_date(_tag(page, 306)),
        associated={r: Size(tiff.pages[i].imagewidth, tiff.pages[i].imagelength) for r, i in pages.items()},
        properties=facts.properties | _plain_tags(page),
        icc=_tag(page, 34675),
        tables=tables,
        notes=notes,
    )


def _plain_tags(page: tifffile.TiffPage) -> dict[str, str]:
    """Tags that describe the image in words or numbers, under OpenSlide's names."""
    names = [
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
    ]
    return {f"tiff.{name}": _text(page.tags[name].value) for name in names if name in page.tags}


def _text(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0] / value[1]:.10g}" if value[1] else "0"
    return str(getattr(value, "name", value)).strip("\x00 \r\n")
