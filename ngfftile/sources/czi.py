"""Zeiss CZI by pylibCZIrw: one scene of the file, with its channels, focal planes and points in time.

OpenSlide reads brightfield CZI too, but shows all scenes on one canvas. Label and macro are files within the file,
which pylibCZIrw does not hand out; their places are read here.

Source: ZEISS, "CZI File Format", ZISRAW (CZI) design specification, for the offsets; libCZI's documentation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from struct import iter_unpack, unpack
from tempfile import TemporaryDirectory
from threading import local
from typing import Any
from xml.etree.ElementTree import Element

import imagecodecs
import numpy as np
from defusedxml.ElementTree import fromstring
from PIL.JpegImagePlugin import JpegImageFile

from ngfftile.errors import OptionError, SourceError, StoreError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import PALETTE, RGB, Channel
from ngfftile.sources import metadata
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo, unchanged, version
from ngfftile.store import LocalFile

_TYPES = {
    "Gray8": (1, "uint8"),
    "Gray16": (1, "uint16"),
    "Gray32Float": (1, "float32"),
    "Bgr24": (3, "uint8"),
    "Bgr48": (3, "uint16"),
}
_ROLES = {"Label": "label", "SlidePreview": "macro", "Thumbnail": "thumbnail"}
# Bytes: in the file's header, where the places of the tables stand; of a segment's own header; of what precedes the
# entries of a table; and of an attachment's entry.
_BLOCKS_AT, _ATTACHMENTS_AT, _HEADER, _BLOCKS, _ATTACHMENTS, _ATTACHMENT = 84, 104, 32, 128, 256, 128
_MOST_ATTACHED = 256 << 20
_MOST_TEXT = 4096
_TOLD = ("Information", "Scaling", "DisplaySetting")  # what describes the image; the rest is how it was planned


def open_czi(path: Path, scene: int = 0) -> Source:
    """Read the headers of a CZI file.

    Raises
    ------
    RefusedError
        Not CZI, or pylibCZIrw is not installed.
    OptionError
        The file has no such scene.
    SourceError
        Damaged, or of pixels that are not known.
    """
    with path.open("rb") as file:
        if file.read(10) != b"ZISRAWFILE":
            raise RefusedError("not a Zeiss CZI", str(path))
    try:
        import pylibCZIrw  # noqa: F401
    except ImportError as error:
        raise RefusedError("needs the package pylibCZIrw", str(path), "pip install 'ngfftile[czi]'") from error
    try:
        return CziSource(path, scene)
    except (SourceError, OptionError):
        raise
    # libCZI and the metadata meet damage with almost any error; each means that the headers cannot be read.
    except Exception as error:
        raise SourceError(f"its CZI headers cannot be read ({error})", str(path), "The file is damaged.") from error


@lru_cache(maxsize=8)
def _again(path: Path, before: tuple[int, int], scene: int) -> Source:
    """The source in another process, opened once there for all its tasks."""
    return open_czi(unchanged(path, before), scene)


class CziSource:
    """A scene of a CZI file; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path, scene: int) -> None:
        self._path = path
        self._threads = local()
        first = _first_indices(path)
        layout = _layout(path, self._reader, scene, first)
        self._layout = layout
        self._attached: dict[str, _Attached] = {}
        notes = []
        try:
            self._attached.update(_attachments(path))
        # The slide can be read without them, whatever is wrong there.
        except Exception as error:  # noqa: BLE001
            notes.append(f"label, macro or thumbnail cannot be read, and are left out ({error})")
        self.info = _describe(path, self._reader, layout, self._attached, tuple(notes))

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path), self._layout.scene)

    @property
    def _reader(self) -> Any:
        """A reader for each thread: they decode without the GIL, and nobody promises that one may be shared."""
        from pylibCZIrw import czi

        if not hasattr(self._threads, "reader"):
            self._threads.reader = czi.CziReader(str(self._path))
        return self._threads.reader

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Pixels of level 0; see `Source.read`."""
        try:
            out[...] = self._pixels(region, plane)
        except SourceError:
            if damaged is None:
                raise
            for part in _parts(region, self.info.tile):
                target = out[part.inside(region)]
                try:
                    target[...] = self._pixels(part, plane)
                except SourceError as error:
                    damaged(part, error.what)
                    target[...] = self.info.background

    def _pixels(self, region: Region, plane: int) -> Array:
        layout = self._layout
        rest, z = divmod(plane, layout.z)
        t, c = divmod(rest, layout.channels)
        t0, c0, z0 = layout.first
        white = 1.0 if layout.samples == 3 else 0.0
        place = f"x {region.x}, y {region.y}, {region.width} x {region.height} of plane {plane}"
        try:
            pixels: Array = self._reader.read(
                roi=(layout.left + region.x, layout.top + region.y, region.width, region.height),
                plane={"T": t0 + t, "C": c0 + c, "Z": z0 + z},
                scene=layout.number,
                background_pixel=(white, white, white),
            )
        # libCZI says little of what is wrong; whatever it is, this place cannot be read.
        except Exception as error:
            raise SourceError(
                f"{place} cannot be read ({error})", str(self._path), "The file is damaged there."
            ) from error
        return pixels[..., ::-1]  # blue comes first in the file

    def associated(self, role: str) -> Array:
        """One associated image, which is a file within the file."""
        try:
            return self._attached[role].read(self._path)
        except Exception as error:
            raise SourceError(
                f"its {role} image cannot be read ({error})", str(self._path), metadata.WITHOUT
            ) from error


def _first_indices(path: Path) -> dict[str, int]:
    """The lowest index of each dimension, which pylibCZIrw takes for 0; and a check of where blocks lie.

    The directory has an entry for each block, of 32 bytes and 20 for each dimension. The block begins with the sizes
    of its metadata, attachment and pixels, and with the entry again, in 256 bytes or more.

    Raises
    ------
    SourceError
        A block does not lie inside the file, or contradicts its entry: libCZI would end the process.
    """
    first: dict[str, int] = {}
    with LocalFile(path) as file:
        try:
            (directory,) = unpack("<q", file.read(_BLOCKS_AT, 8))
            name, used, count = unpack("<16s8xqI", file.read(directory, _HEADER + 4))
            if not name.startswith(b"ZISRAWDIRECTORY") or not _BLOCKS <= used <= file.size - directory - _HEADER:
                raise SourceError(f"no directory of blocks at byte {directory}", str(path), "The file is damaged.")
            entries = file.read(directory + _HEADER + _BLOCKS, used - _BLOCKS)
            at = 0
            for _ in range(count):
                position, dimensions = unpack("<6xq14xI", entries[at : at + 32])
                end = at + 32 + 20 * dimensions
                _check_block(file, position, dimensions)
                for axis, start in iter_unpack("<4si12x", entries[at + 32 : end]):
                    key = _word(axis)
                    first[key] = min(start, first.get(key, start))
                at = end
        except (StoreError, OSError) as error:
            raise SourceError(f"its blocks cannot be found ({error})", str(path), "The file is truncated.") from error
    return first


def _check_block(file: LocalFile, position: int, dimensions: int) -> None:
    name, about, attached, pixels, again = unpack("<16s16xIIq28xI", file.read(position, _HEADER + 48))
    inside = file.size - position - _HEADER - max(256, 48 + 20 * dimensions) - about - attached
    if not name.startswith(b"ZISRAWSUBBLOCK") or again != dimensions or not 0 <= pixels <= inside:
        raise SourceError(
            f"no block of {pixels} bytes at byte {position}", str(file.path), "The file is damaged or truncated."
        )


def _parts(region: Region, tile: Size) -> Iterator[Region]:
    for y in range(region.y, region.bottom, tile.y):
        for x in range(region.x, region.right, tile.x):
            yield Region(x, y, min(tile.x, region.right - x), min(tile.y, region.bottom - y))


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a scene lies on the file's canvas, and what it has.

    Parameters
    ----------
    scene, number
        From 0 without gaps, and as the file numbers it; None where the file has no scenes.
    numbers
        Of all scenes.
    first
        Of points in time, channels and focal planes, as the file numbers them.
    tile
        Most common size of what is compressed as one.
    """

    scene: int
    number: int | None
    numbers: tuple[int, ...]
    left: int
    top: int
    size: Size
    samples: int
    dtype: np.dtype[Any]
    channels: int
    z: int
    t: int
    first: tuple[int, int, int]
    tile: Size
    tables: bytes


def _layout(path: Path, reader: Any, scene: int, first: dict[str, int]) -> _Layout:
    scenes = reader.scenes_bounding_rectangle_no_pyramid
    numbers = tuple(sorted(scenes))
    if not 0 <= scene < max(1, len(numbers)):
        raise OptionError(f"scene is {scene}", str(path), f"Use one of 0 to {max(1, len(numbers)) - 1}.")
    box = reader.total_bounding_box_no_pyramid
    rest = {axis: end - start for axis, (start, end) in box.items() if axis not in "XYCZT"}
    if any(count > 1 for count in rest.values()):
        told = ", ".join(f"{axis} of {count}" for axis, count in rest.items() if count > 1)
        raise SourceError(f"it has axes that a slide has not: {told}", str(path))
    number = numbers[scene] if numbers else None
    place = reader.total_bounding_rectangle_no_pyramid if number is None else scenes[number]
    if place.w < 1 or place.h < 1:
        raise SourceError(f"the scene is {place.w} x {place.h} pixels", str(path), "The file is damaged.")
    blocks: list[tuple[int, ...]] = []

    def note(index: int, block: Any) -> bool:
        rect = block.logicalRect
        blocks.append((index, rect.x, rect.y, rect.w, rect.h, block.compressionModeRaw))
        return True

    reader.enumerate_subblocks_subset(note, roi=tuple(place), only_layer0=True)
    planes = box["C"][1] * box["Z"][1] * box["T"][1]
    if planes > 1000 * (1 + len(blocks)):
        raise SourceError(f"{planes} planes, and {len(blocks)} blocks of pixels", str(path), "The file is damaged.")
    numbered = range(first.get("C", 0), first.get("C", 0) + box["C"][1])
    samples, dtype = _pixel_type(path, [reader.get_channel_pixel_type(c) for c in numbered])
    size = Size(place.w, place.h)
    width, height = Counter(block[3:5] for block in blocks).most_common(1)[0][0] if blocks else (place.w, place.h)
    return _Layout(
        scene=scene,
        number=number,
        numbers=numbers,
        left=place.x,
        top=place.y,
        size=size,
        samples=samples,
        dtype=dtype,
        channels=box["C"][1],
        z=box["Z"][1],
        t=box["T"][1],
        first=(first.get("T", 0), first.get("C", 0), first.get("Z", 0)),
        tile=Size(min(width, size.x), min(height, size.y)),
        tables=hashlib.sha256(repr((place, blocks)).encode()).digest(),
    )


def _pixel_type(path: Path, types: Sequence[str]) -> tuple[int, np.dtype[Any]]:
    """Samples and type that all channels can be read as."""
    unknown = set(types) - set(_TYPES)
    kinds = [_TYPES[name] for name in types if name in _TYPES]
    if unknown or len({samples for samples, _ in kinds}) != 1:
        raise SourceError(f"its pixels are {', '.join(sorted(set(types)))}", str(path))
    return kinds[0][0], np.result_type(*(dtype for _, dtype in kinds))


@dataclass(frozen=True, slots=True)
class _Attached:
    """A picture within the file: its place, and its size in pixels."""

    kind: str
    start: int
    count: int
    size: Size

    def read(self, path: Path) -> Array:
        """Decode it, (height, width, 3) uint8."""
        data = _bytes(path, self.start, self.count)
        if self.kind == "JPG":
            return metadata.as_rgb(imagecodecs.jpeg8_decode(data))
        with TemporaryDirectory() as folder, _embedded(data, folder) as reader:
            # 16 bits become 8 by their higher byte.
            pixels: Array = reader.read(pixel_type="Bgr24", background_pixel=(1.0, 1.0, 1.0))
            return np.ascontiguousarray(pixels[..., ::-1])


def _attachments(path: Path) -> Iterator[tuple[str, _Attached]]:
    """Label, macro and thumbnail, where the file has them."""
    (directory,) = unpack("<q", _bytes(path, _ATTACHMENTS_AT, 8))
    if directory <= 0:
        return
    head = _bytes(path, directory, _HEADER + 4)
    if not head.startswith(b"ZISRAWATTDIR"):
        raise SourceError(f"no table of attachments at byte {directory}", str(path), "The file is damaged.")
    (count,) = unpack("<I", head[_HEADER:])
    entries = _bytes(path, directory + _HEADER + _ATTACHMENTS, min(count, 1000) * _ATTACHMENT)
    for at in range(0, len(entries), _ATTACHMENT):
        position, kind, name = unpack("<12xq20x8s80s", entries[at : at + _ATTACHMENT])
        role, kind = _ROLES.get(_word(name)), _word(kind)
        if role and kind in {"CZI", "JPG"}:
            (length,) = unpack("<I", _bytes(path, position + _HEADER, 4))
            start = position + _HEADER + _ATTACHMENTS
            yield role, _Attached(kind, start, length, _attached_size(kind, _bytes(path, start, length)))


def _attached_size(kind: str, data: bytes) -> Size:
    if kind == "JPG":
        with JpegImageFile(BytesIO(data)) as image:
            return Size(*image.size)
    with TemporaryDirectory() as folder, _embedded(data, folder) as reader:
        place = reader.total_bounding_rectangle_no_pyramid
        return Size(place.w, place.h)


def _embedded(data: bytes, folder: str) -> Any:
    """A reader of a CZI within a CZI: pylibCZIrw opens files only."""
    from pylibCZIrw import czi

    place = Path(folder) / "attached.czi"
    place.write_bytes(data)
    return czi.open_czi(str(place))


def _bytes(path: Path, start: int, count: int) -> bytes:
    if count > _MOST_ATTACHED:
        raise SourceError(f"an attachment of {count} bytes", str(path), f"{_MOST_ATTACHED} is the most that is read.")
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(count)
    if len(data) < count:
        raise SourceError(f"ends within {count} bytes from {start}", str(path), "The file is truncated.")
    return data


def _word(padded: bytes) -> str:
    return padded.split(b"\0", 1)[0].decode("latin-1")


def _describe(
    path: Path, reader: Any, layout: _Layout, attached: dict[str, _Attached], notes: tuple[str, ...]
) -> SourceInfo:
    text = reader.raw_metadata
    if len(text) > metadata.MOST_XML:
        raise SourceError(f"its XML has {len(text)} characters", str(path), f"{metadata.MOST_XML} is the most.")
    root: Element = fromstring(text)
    image = "Metadata/Information/Image"
    mpp, mpp_source = _mpp(root)
    step = _number(root, "Metadata/Scaling/Items/Distance[@Id='Z']/Value")
    interval = _number(root, f"{image}/Dimensions/T/Positions/Interval/Increment")
    return SourceInfo(
        reader="czi",
        format="Zeiss CZI",
        vendor="zeiss",
        size=layout.size,
        channels=_channels(root, layout),
        rgb=layout.samples == 3,
        dtype=layout.dtype.name,
        tile=layout.tile,
        mpp=mpp,
        mpp_source=mpp_source,
        levels=(layout.size,),
        files=(path,),
        objective_power=_objective(root),
        acquired=_told(root, f"{image}/AcquisitionDateAndTime"),
        associated={role: one.size for role, one in attached.items()},
        properties=dict(_properties(root)),
        tables=layout.tables,
        notes=notes,
        z=layout.z,
        t=layout.t,
        z_step=step * 1e6 if step and layout.z > 1 else None,
        t_step=interval if layout.t > 1 else None,
        scenes=_scenes(root, layout.numbers) if len(layout.numbers) > 1 else (),
        scene=layout.scene,
    )


def _told(root: Element, place: str) -> str | None:
    found = root.find(place)
    return (found.text or "").strip() or None if found is not None else None


def _number(root: Element, place: str) -> float | None:
    return metadata.number(_told(root, place))


def _mpp(root: Element) -> tuple[Mpp | None, str]:
    # Metres per pixel, whatever DefaultUnitFormat says, which is for display.
    x, y = (_number(root, f"Metadata/Scaling/Items/Distance[@Id='{axis}']/Value") for axis in "XY")
    return metadata.plausible(Mpp(x * 1e6, (y or x) * 1e6) if x else None, "CZI Scaling")


def _objective(root: Element) -> float | None:
    """Of the objective that the image names, or of the only one."""
    used = root.find("Metadata/Information/Image/ObjectiveSettings/ObjectiveRef")
    name = None if used is None else used.get("Id")
    found = root.findall("Metadata/Information/Instrument/Objectives/Objective")
    for objective in [o for o in found if o.get("Id") == name] or found[:1]:
        return _number(objective, "NominalMagnification")
    return None


def _scenes(root: Element, numbers: Sequence[int]) -> tuple[str, ...]:
    about = root.findall("Metadata/Information/Image/Dimensions/S/Scenes/Scene")
    names = {one.get("Index"): one.get("Name") for one in about}
    return tuple(names.get(str(number)) or f"scene {number}" for number in numbers)


def _channels(root: Element, layout: _Layout) -> tuple[Channel, ...]:
    found = root.findall("Metadata/Information/Image/Dimensions/Channels/Channel")
    shown = {one.get("Id"): one for one in root.findall("Metadata/DisplaySetting/Channels/Channel")}
    result: list[Channel] = []
    for i in range(layout.channels):
        about = found[i] if i < len(found) else Element("Channel")
        view = shown.get(about.get("Id"), Element("Channel"))
        name = about.get("Name") or view.get("Name") or _told(about, "Fluor") or f"channel {i}"
        if layout.samples == 3:
            result += RGB if layout.channels == 1 else [Channel(f"{name} {c.name}", c.color) for c in RGB]
            continue
        color = _told(view, "Color") or _told(about, "Color") or ""
        result.append(
            Channel(
                name,
                color[-6:].upper() if color.startswith("#") and len(color) in {7, 9} else PALETTE[i % len(PALETTE)],
                _window(view, layout.dtype),
                _number(about, "EmissionWavelength") or _number(view, "DyeMaxEmission"),
                _number(about, "ExcitationWavelength") or _number(view, "DyeMaxExcitation"),
            )
        )
    return tuple(result)


def _window(view: Element, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """What a channel was shown with; the file has parts of the type's range."""
    high = _number(view, "High")
    if high is None or dtype.kind != "u":
        return None
    low, most = _number(view, "Low") or 0.0, float(np.iinfo(dtype).max)
    return (low * most, high * most) if low < high <= 1 else None


def _properties(root: Element) -> Iterator[tuple[str, str]]:
    """What the metadata say of the image, by their own names; several of one kind are counted."""
    for section in root.findall("Metadata/*"):
        if section.tag in _TOLD:
            yield from _flat(section, f"zeiss.{section.tag}")


def _flat(element: Element, name: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{name}.{key}", value) for key, value in element.attrib.items())
    text = (element.text or "").strip()
    if text and len(text) <= _MOST_TEXT:
        yield name, text
    counts = Counter(child.tag for child in element)
    seen: Counter[str] = Counter()
    for child in element:
        index = f"[{seen[child.tag]}]" if counts[child.tag] > 1 else ""
        seen[child.tag] += 1
        yield from _flat(child, f"{name}.{child.tag}{index}")
