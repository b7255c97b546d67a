"""DICOM whole-slide images of every kind: many focal planes, optical paths and parts, sparse, RLE, 16 bits.

pydicom reads the headers, imagecodecs the frames: its decoders run without the GIL, on bytes that any thread may read.
OpenSlide reads the plain ones too, but shows one plane of many and does not say so.

Specification: DICOM PS3.3, A.32.8 (VL Whole Slide Microscopy Image IOD).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngfftile.codecs import Codec
from ngfftile.errors import OptionError, SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import PALETTE, RGB, Channel
from ngfftile.sources import metadata
from ngfftile.sources.dicom_file import FRAMES, Frame, Instance, first_of, size_of
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo, unchanged, version

if TYPE_CHECKING:
    from pydicom import Dataset

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class, VL Whole Slide Microscopy Image Storage (PS3.4, B.5)
# pydicom inflates all of them at once, whatever that comes to: PS3.5, A.5, and the JPIP and supplementary ones.
_DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
_ROLES = {"LABEL": "label", "OVERVIEW": "macro", "LOCALIZER": "macro", "THUMBNAIL": "thumbnail"}
_TO_MATRIX = 0x00480007  # TotalPixelMatrixRows: what tells the instances of a series apart stands before it


def open_dicom(path: Path, scene: int = 0) -> Source:
    """Read the headers of a DICOM slide: of all files in its folder that are of one series.

    Raises
    ------
    RefusedError
        Not DICOM, no whole-slide image, or pydicom is not installed.
    SourceError
        Damaged, incomplete, or compressed in a way that is not known.
    """
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            raise RefusedError("not DICOM", str(path))
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise RefusedError("needs the package pydicom", str(path), "pip install 'ngfftile[dicom]'") from error
    if scene:
        raise OptionError(f"scene is {scene}, and a DICOM series is one slide", str(path), "Use scene 0.")
    try:
        return DicomSource(path)
    except SourceError:
        raise
    # pydicom meets damage with almost any error; each means that the headers cannot be read.
    except Exception as error:
        raise SourceError(f"its DICOM headers cannot be read ({error!r})", str(path), "The file is damaged.") from error


@lru_cache(maxsize=8)
def _again(path: Path, before: tuple[int, int]) -> Source:
    """The source in another process, opened once there for all its tasks."""
    return open_dicom(unchanged(path, before))


class DicomSource:
    """A DICOM slide; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        heads = _series(path)
        volumes = {p: size_of(head) for p, head in heads.items() if _type(head) == "VOLUME"}
        if not volumes:
            raise SourceError("the series has no image of the whole slide (VOLUME)", str(path))
        sizes = sorted(set(volumes.values()), key=lambda size: -size.x * size.y)
        self._level = _Level(tuple(p for p, size in volumes.items() if size == sizes[0]))
        self._others: dict[str, _Level] = {}
        bad = []
        for role, other in _associated(heads).items():
            try:
                self._others[role] = _Level((other,))
            except SourceError as error:
                bad.append(f"its {role} image cannot be read, and is left out ({error.what})")
        self.info = _describe(self._level, self._others, tuple(sizes), tuple(sorted(heads)), bad)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path))

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Decode the frames that meet a region; see `Source.read`."""
        self._level.read(region, plane, out, self.info.background, damaged)

    def raw(self, plane: int, row: int, col: int) -> bytes | None:
        """The compressed frame at a place of the grid; see `RawSource.raw`."""
        frames = self._level.cells.get((plane, row, col))
        return self._level.instances[frames[0].instance].stream(frames[0]) if frames else None

    def associated(self, role: str) -> Array:
        """Decode one associated image."""
        level = self._others[role]
        out = np.empty((level.size.y, level.size.x, level.samples), level.dtype)
        try:
            level.read(Region(0, 0, level.size.x, level.size.y), 0, out, 255, None)
        except SourceError as error:
            raise SourceError(f"its {role} image: {error.what}", error.where, metadata.WITHOUT) from error
        return metadata.as_rgb(out if level.samples == 3 else out[..., 0])


class _Level:
    """One image of a series, in one instance or many: parts, optical paths and focal planes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        once = {i.uid: i for i in map(Instance, sorted(paths))}  # a file may lie there twice
        self.instances = list(once.values())
        first = self.instances[0]
        self.size, self.tile, self.dtype, self.samples = first.size, first.tile, first.dtype, first.samples
        _check_alike(self.instances)
        found = [frame for i, instance in enumerate(self.instances) for frame in instance.frames(i)]
        for instance in self.instances:
            # pydicom keeps kilobytes for each frame, and all that is needed of them is now known.
            instance.header.pop(FRAMES, None)
        self.depths = _depths(found, first.path)
        indices = {z: i for i, z in enumerate(self.depths)}
        used = {frame.path for frame in found}
        self.paths = [p for p in dict.fromkeys(p for i in self.instances for p in i.optical_paths) if p in used]
        order = {path: i * len(indices) for i, path in enumerate(self.paths)}
        self.cells: dict[tuple[int, int, int], list[Frame]] = {}
        for frame in found:
            plane = order[frame.path] + (indices[frame.z] if len(indices) > 1 else 0)
            # A sparse image may hold frames anywhere, so one can meet up to four cells of the grid.
            for row in {frame.y // self.tile.y, (frame.y + self.tile.y - 1) // self.tile.y}:
                for col in {frame.x // self.tile.x, (frame.x + self.tile.x - 1) // self.tile.x}:
                    self.cells.setdefault((plane, row, col), []).append(frame)
        grid = -(-self.size.x // self.tile.x) * -(-self.size.y // self.tile.y)
        self.tiles = grid * len(self.paths) * len(self.depths)
        self.stored = len(found)
        if self.stored < self.tiles and any(i.full for i in self.instances):
            raise SourceError(
                f"{self.stored} frames where {self.size} in tiles of {self.tile} needs {self.tiles}",
                str(first.path),
                "Put all parts of the slide into one folder.",
            )

    def read(self, region: Region, plane: int, out: Array, background: int, damaged: Damaged | None) -> None:
        out[...] = background
        cells = [
            self.cells.get((plane, row, col), ())
            for row in range(region.y // self.tile.y, -(-region.bottom // self.tile.y))
            for col in range(region.x // self.tile.x, -(-region.right // self.tile.x))
        ]
        for frame in dict.fromkeys(frame for cell in cells for frame in cell):
            place = Region(frame.x, frame.y, self.tile.x, self.tile.y)
            wanted = place.clip(region)
            if not wanted.width or not wanted.height:
                continue
            try:
                pixels = self.instances[frame.instance].decode(frame)
            except SourceError as error:
                if damaged is None:
                    raise
                damaged(wanted, error.what)
            else:
                out[wanted.inside(region)] = pixels[wanted.inside(place)]


def _series(path: Path) -> dict[Path, Dataset]:
    """The files of a slide: those in its folder that are of one series; each with the first part of its header."""
    own = _head(path)
    if own is None or str(own.get("SOPClassUID", "")) != SLIDE:
        raise RefusedError("a DICOM file that is no whole-slide image", str(path))
    found = {path: own}
    for other in sorted(path.parent.iterdir()):
        try:
            head = _head(other) if other != path and other.is_file() else None
        # As above: almost any error.
        except Exception as error:
            raise SourceError(
                f"its DICOM headers cannot be read ({error!r})", str(other), "Take it out of the slide's folder."
            ) from error
        if head is not None and head.get("SeriesInstanceUID") == own.SeriesInstanceUID:
            found[other] = head
    return {p: head for p, head in found.items() if str(head.get("SOPClassUID", "")) == SLIDE}


def _head(path: Path) -> Dataset | None:
    """The first part of a header, in which no element is long; None of what is not DICOM."""
    from pydicom.filereader import read_file_meta_info, read_partial

    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
        if str(read_file_meta_info(path).get("TransferSyntaxUID", "")) in _DEFLATED:
            raise SourceError("its header is deflated, which no slide's is", str(path))
        file.seek(0)
        return read_partial(file, lambda tag, vr, length: tag > _TO_MATRIX)  # noqa: ARG005 (pydicom names them)


def _type(header: Dataset) -> str:
    kinds = header.get("ImageType", ())
    return str(kinds[2]) if len(kinds) > 2 else ""


def _associated(heads: dict[Path, Dataset]) -> dict[str, Path]:
    """Files of the associated images by role, the first of each."""
    found: dict[str, Path] = {}
    for path, head in sorted(heads.items()):
        role = _ROLES.get(_type(head))
        if role:
            found.setdefault(role, path)
    return dict(sorted(found.items()))


def _check_alike(instances: list[Instance]) -> None:
    first = instances[0]
    for one in instances[1:]:
        if (one.tile, one.dtype, one.samples) != (first.tile, first.dtype, first.samples):
            raise SourceError(
                f"{one.tile} x {one.samples} {one.dtype}, where {first.path.name} has {first.tile} x {first.samples} "
                f"{first.dtype}, both of level 0",
                str(one.path),
            )
    parts = Counter(str(i.header.ConcatenationUID) for i in instances if "ConcatenationUID" in i.header)
    for one in instances:
        total = int(one.header.get("InConcatenationTotalNumber", 0) or 0)
        here = parts[str(one.header.get("ConcatenationUID", ""))]
        if here < total:
            raise SourceError(
                f"{here} of the {total} parts of level 0", str(one.path), "Put all parts of the slide into one folder."
            )


def _depths(found: list[Frame], path: Path) -> list[float]:
    """Focal planes, as their depths in micrometres."""
    most = Counter((f.path, f.x, f.y) for f in found).most_common(1)[0][1]
    depths = sorted({f.z for f in found})
    # Where no place is held twice there is one plane, which may follow the tissue and have many depths.
    if most == 1:
        return depths[:1]
    if len(depths) != most:
        raise SourceError(
            f"up to {most} frames at one place, of {len(depths)} focal depths in all: which is of which plane is not "
            "told",
            str(path),
        )
    return depths


def _describe(
    level: _Level, others: dict[str, _Level], levels: tuple[Size, ...], files: tuple[Path, ...], notes: list[str]
) -> SourceInfo:
    header = level.instances[0].header
    objective = first_of(header, "OpticalPathSequence").get("ObjectiveLensPower")
    rgb = level.samples == 3
    channels = tuple(c for i, path in enumerate(level.paths) for c in _channels(level, path, i))
    mpp, mpp_source = _mpp(level.instances[0])
    encoding, recompress = _encoding(level)
    tables = hashlib.sha256(b"".join(i.starts.tobytes() + i.counts.tobytes() for i in level.instances)).digest()
    if level.stored < level.tiles:
        notes.append(f"{level.tiles - level.stored} tiles are not stored in the file; they become background")
    if level.instances[0].colours == "MONOCHROME1":
        notes.append("its smallest value is meant to be shown white (MONOCHROME1); values are kept as they are")
    profile = first_of(header, "OpticalPathSequence").get("ICCProfile") or header.get("ICCProfile")
    return SourceInfo(
        reader="dicom",
        format="DICOM WSI",
        vendor="dicom",
        size=level.size,
        channels=channels,
        rgb=rgb,
        dtype=level.dtype.name,
        tile=level.tile,
        mpp=mpp,
        mpp_source=mpp_source,
        levels=levels,
        files=files,
        objective_power=float(objective) if objective else None,
        acquired=_acquired(header),
        associated={role: one.size for role, one in others.items()},
        properties=dict(_properties(header.file_meta, "dicom")) | dict(_properties(header, "dicom")),
        icc=bytes(profile) if profile and rgb else None,
        tables=tables,
        notes=tuple(notes),
        z=len(level.depths),
        z_step=_step(level),
        encoding=encoding,
        recompress=recompress,
    )


def _encoding(level: _Level) -> tuple[Codec | None, str]:
    """How the tiles are compressed, where a store can keep them; else why it cannot."""
    first = level.instances[0]
    codec = first.codec()
    if codec is None:
        return None, "they are not JPEG, nor JPEG 2000 of colours that it undoes itself"
    if level.tile.x != level.tile.y:
        return None, f"they are not square, {level.tile}"
    if any(
        len(frames) > 1 or frames[0].x % level.tile.x or frames[0].y % level.tile.y for frames in level.cells.values()
    ):
        return None, "they overlap, or are not on a grid"
    if any(one.codec() != codec for one in level.instances[1:]):
        return None, "they are compressed in more ways than one"
    return codec, ""


def _step(level: _Level) -> float | None:
    """Micrometres between focal planes, where the file says so and they are evenly spaced."""
    steps = np.diff(level.depths)
    even = len(steps) > 0 and all(i.depths_told for i in level.instances) and np.allclose(steps, steps[0], rtol=0.01)
    return float(steps[0]) if even else None


def _channels(level: _Level, path: str, index: int) -> tuple[Channel, ...]:
    """The channels of one optical path."""
    paths = (p for i in level.instances for p in i.header.get("OpticalPathSequence", ()))
    about: Any = next((p for p in paths if str(p.OpticalPathIdentifier) == path), {})
    name = str(about.get("OpticalPathDescription", "") or path)
    if level.samples == 3:
        return RGB if len(level.paths) == 1 else tuple(Channel(f"{name} {c.name}", c.color) for c in RGB)
    # Filters say more than the lamp: PS3.3, C.8.12.5.
    emission, *excitation = (
        metadata.number(str(about.get(kind, "")))
        for kind in (
            "ImagePathFilterPassThroughWavelength",
            "LightPathFilterPassThroughWavelength",
            "IlluminationWaveLength",
        )
    )
    lit = next(filter(None, excitation), None)
    return (Channel(name, _color(about) or PALETTE[index % len(PALETTE)], emission=emission, excitation=lit),)


def _color(path: Any) -> str | None:
    """The colour of the highest value, where an optical path has a palette of its own (PS3.3, C.8.12.5)."""
    palette = first_of(path, "PaletteColorLookupTableSequence")
    tables = [palette.get(f"{c}PaletteColorLookupTableData") for c in ("Red", "Green", "Blue")]
    # Entries are little-endian, so that the last byte is the last entry's highest.
    return "".join(f"{table[-1]:02X}" for table in tables) if all(tables) else None


def _mpp(instance: Instance) -> tuple[Mpp | None, str]:
    header, spacing = instance.header, instance.pixels_apart
    if spacing and len(spacing) == 2:
        # Millimetres between rows, that is along y, then between columns: PS3.3, 10.7.1.3.
        y, x = (metadata.number(str(value)) for value in spacing)
        return metadata.plausible(Mpp(x * 1000, y * 1000) if x and y else None, "DICOM PixelSpacing")
    width, height = (metadata.number(str(header.get(f"ImagedVolume{side}", ""))) for side in ("Width", "Height"))
    size = instance.size
    whole = Mpp(width * 1000 / size.x, height * 1000 / size.y) if width and height else None
    return metadata.plausible(whole, "DICOM ImagedVolumeWidth and -Height")


def _acquired(header: Dataset) -> str | None:
    """Date and time of the scan as ISO 8601; of DICOM's DT (PS3.5, 6.2), or of date and time apart."""
    apart = f"{header.get('AcquisitionDate', '') or ''}{header.get('AcquisitionTime', '') or ''}"
    text = str(header.get("AcquisitionDateTime", "") or apart).strip()
    for form in ("%Y%m%d%H%M%S.%f%z", "%Y%m%d%H%M%S.%f", "%Y%m%d%H%M%S%z", "%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d"):
        try:
            return datetime.strptime(text, form).isoformat()  # noqa: DTZ007 (most files do not say their zone)
        except ValueError:
            continue
    return None


def _properties(header: Dataset, prefix: str) -> Iterator[tuple[str, str]]:
    """What a header says in words and numbers, under OpenSlide's names; not of each frame, nor pixels or profiles."""
    for element in header:
        if element.keyword == FRAMES:
            continue
        # A private element has no name but its number; its creator's has one.
        private = "PrivateCreator" if element.tag.is_private_creator else str(element.tag)
        name = f"{prefix}.{element.keyword or private}"
        if element.VR == "SQ":
            for i, item in enumerate(element.value):
                yield from _properties(item, f"{name}[{i}]")
        elif element.VR == "AT":
            tags = [element.value] if element.VM == 1 else element.value
            parts = (part for tag in tags for part in (tag.group, tag.element))
            yield from ((f"{name}[{i}]", str(part)) for i, part in enumerate(parts))
        elif isinstance(element.value, str | int | float) or element.VM < 2:
            if not isinstance(element.value, bytes):
                yield name, "" if element.value is None else str(element.value).strip()
        else:
            yield from ((f"{name}[{i}]", str(value)) for i, value in enumerate(element.value))
