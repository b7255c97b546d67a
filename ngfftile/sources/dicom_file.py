"""One file of a DICOM slide: where its frames lie, what each shows, and their decoding.

Specification: DICOM PS3.5, A.4 (encapsulated frames); PS3.3, C.7.6.17 (the matrix that frames are tiles of).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from struct import unpack
from typing import TYPE_CHECKING, Any, NamedTuple

import imagecodecs
import numpy as np

from ngfftile.codecs import Codec, Jpeg, Jpeg2000
from ngfftile.errors import SourceError, StoreError
from ngfftile.geometry import Size
from ngfftile.sources import metadata, streams
from ngfftile.sources.protocol import Array
from ngfftile.store import LocalFile

if TYPE_CHECKING:
    from pydicom import Dataset

# Transfer syntaxes, PS3.6 annex A.
_IMPLICIT = "1.2.840.10008.1.2"
_NATIVE = {_IMPLICIT, "1.2.840.10008.1.2.1"}
_RLE = "1.2.840.10008.1.2.5"
_JPEG = {f"1.2.840.10008.1.2.4.{i}" for i in (50, 51)}
_JPEG_LOSSLESS = {f"1.2.840.10008.1.2.4.{i}" for i in (57, 70)}
_JPEG_LS = {f"1.2.840.10008.1.2.4.{i}" for i in (80, 81)}
_JPEG2000 = {f"1.2.840.10008.1.2.4.{i}" for i in (90, 91, 201, 202, 203)}
_AS_TIFF_JPEG, _AS_TIFF_JPEG2000 = 7, 34712
_KNOWN = _NATIVE | {_RLE} | _JPEG | _JPEG_LOSSLESS | _JPEG_LS | _JPEG2000
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "MONOCHROME1", "MONOCHROME2"}
FRAMES, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
_DEPTH = "ZOffsetInSlideCoordinateSystem"
_ITEM, _END, _PIXELS = 0xE000FFFE, 0xE0DDFFFE, 0x00107FE0  # tags as they lie in a file, group first
_MOST_FRAME_BYTES = 1 << 30


class Frame(NamedTuple):
    """Where a frame is stored and what it shows: column and row of its first pixel, from 0."""

    instance: int
    number: int
    path: str
    z: float
    x: int
    y: int


class Instance:
    """One DICOM file, open: its header, and where its frames lie."""

    def __init__(self, path: Path) -> None:
        from pydicom import dcmread

        self.path = path
        with path.open("rb") as file:
            self.header = h = dcmread(file, stop_before_pixels=True)
            at = file.tell()
        self.uid = str(h.SOPInstanceUID)
        self.size, self.tile = size_of(h), Size(int(h.Columns), int(h.Rows))
        self.samples, self.count = int(h.SamplesPerPixel), int(h.get("NumberOfFrames", 1) or 1)
        self.colours = str(h.PhotometricInterpretation)
        self.syntax = str(h.file_meta.TransferSyntaxUID)
        self.full = h.get("DimensionOrganizationType", "") == "TILED_FULL" or FRAMES not in h
        self.planes = int(h.get("TotalPixelMatrixFocalPlanes", 1) or 1)
        # Micrometres, as the frames' depths; the header's are millimetres (PS3.3, C.7.6.16.2.1).
        measures = nested(h, SHARED, "PixelMeasuresSequence") or nested(h, FRAMES, "PixelMeasuresSequence")
        self.spacing = 1000 * float(measures.get("SpacingBetweenSlices", 0) or 0)
        self.pixels_apart = measures.get("PixelSpacing")
        self.depths_told = not self.full or self.planes == 1 or self.spacing > 0
        self.optical_paths = [str(p.OpticalPathIdentifier) for p in h.get("OpticalPathSequence", ())] or ["1"]
        self.shape = (self.tile.y, self.tile.x, self.samples)
        _check_kind(self)
        self.dtype = np.dtype(f"{'i' if h.PixelRepresentation else 'u'}{h.BitsAllocated // 8}")
        self._file = LocalFile(path)
        try:
            self.starts, self.counts = self._find(at)
        except StoreError as error:
            raise SourceError(error.what, str(path), "The file is truncated: copy it again.") from error
        beyond = int(np.count_nonzero(self.starts + self.counts > self._file.size))
        if beyond:
            raise SourceError(
                f"{beyond} of {self.count} frames lie past the file's end at byte {self._file.size}",
                str(path),
                "The file is truncated: copy it again.",
            )

    def _find(self, at: int) -> tuple[Array, Array]:
        """Starts of the frames in the file, and their bytes; ``at`` is where the header ends."""
        if at + 12 > self._file.size or unpack("<I", self._file.read(at, 4)) != (_PIXELS,):
            raise SourceError("no pixel data in it", str(self.path), "The file is truncated or not an image.")
        at += 8 if self.syntax == _IMPLICIT else 12  # implicit or explicit VR: PS3.5, 7.1
        if self.syntax not in _NATIVE:
            return _encapsulated(self._file, at, self.count, self.header)
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        if at + size * self.count > self._file.size:
            raise StoreError(f"ends at byte {self._file.size}, {self.count} frames of {size} bytes need more")
        return at + size * np.arange(self.count, dtype=np.int64), np.full(self.count, size, np.int64)

    def frames(self, index: int) -> Iterator[Frame]:
        """Every frame with its place; PS3.3, C.7.6.17.3 for the order where they have none of their own."""
        if not self.full:
            yield from self._sparse(index)
            return
        across = -(-self.size.x // self.tile.x)
        each = across * -(-self.size.y // self.tile.y)
        planes = self.planes
        origin = float(first_of(self.header, "TotalPixelMatrixOriginSequence").get(_DEPTH, 0) or 0)
        before = int(self.header.get("ConcatenationFrameOffsetNumber", 0) or 0)
        if before < 0 or before + self.count > each * planes * len(self.optical_paths):
            raise SourceError(
                f"{before + self.count} frames where {self.size} in tiles of {self.tile}, {planes} focal planes and "
                f"{len(self.optical_paths)} optical paths make {each * planes * len(self.optical_paths)}",
                str(self.path),
                "The file is damaged.",
            )
        for number in range(self.count):
            plane, tile = divmod(before + number, each)
            path, z = divmod(plane, planes)
            row, col = divmod(tile, across)
            depth = origin + z * (self.spacing or 1)
            yield Frame(index, number, self.optical_paths[path], depth, col * self.tile.x, row * self.tile.y)

    def _sparse(self, index: int) -> Iterator[Frame]:
        items = self.header[FRAMES].value
        if len(items) != self.count:
            raise SourceError(f"{self.count} frames, and places of {len(items)}", str(self.path), "It is damaged.")
        shared = nested(self.header, SHARED, "OpticalPathIdentificationSequence").get("OpticalPathIdentifier")
        for number, item in enumerate(items):
            place = first_of(item, "PlanePositionSlideSequence")
            path = first_of(item, "OpticalPathIdentificationSequence").get("OpticalPathIdentifier", shared)
            yield Frame(
                index,
                number,
                self.optical_paths[0] if path is None else str(path),
                float(place.get(_DEPTH, 0) or 0),
                int(place.ColumnPositionInTotalImagePixelMatrix) - 1,
                int(place.RowPositionInTotalImagePixelMatrix) - 1,
            )

    def codec(self) -> Codec | None:
        """How frames are compressed, where a store can hold them as they are."""
        if self.dtype != np.uint8 or self.colours == "YBR_FULL":
            return None
        if self.syntax in _JPEG2000 and (self.samples == 1 or self.colours != "YBR_FULL_422"):
            return Jpeg2000()
        if self.syntax not in _JPEG:
            return None
        space = "grayscale" if self.samples == 1 else "rgb" if self.colours == "RGB" else "ycbcr"
        try:
            told = streams.frame(_joined(self._stored(0)), _AS_TIFF_JPEG)
        except ValueError:  # its first frame is damaged
            return None
        return None if told is None else Jpeg(space=space, subsampling=told.subsampling)

    def _stored(self, number: int) -> bytes:
        return self._file.read(int(self.starts[number]), int(self.counts[number]))

    def stream(self, frame: Frame) -> bytes:
        """One compressed frame as it is stored."""
        data = _joined(self._stored(frame.number))
        if _ends(data):
            return data
        raise self._error(frame, "its stream is cut short")

    def _error(self, frame: Frame, why: object) -> SourceError:
        return SourceError(
            f"frame {frame.number + 1} of {self.path.name} (x {frame.x}, y {frame.y}) does not decode ({why})",
            str(self.path),
            "The file is damaged there: copy or scan it again.",
        )

    def decode(self, frame: Frame) -> Array:
        """One frame, (y, x, sample)."""
        try:
            data = self._stored(frame.number)
            return self._pixels(data if self.syntax in _NATIVE else self.stream(frame))
        except SourceError:
            raise
        # Any failure of a decoder is damage of this frame, and the message must name it.
        except Exception as error:
            raise self._error(frame, error) from error

    def _pixels(self, data: bytes) -> Array:
        if self.syntax in _NATIVE or self.syntax == _RLE:
            pixels, colours = self._raw(data), self.colours
        else:
            # Each decoder compares the frame's own size with this array's.
            pixels = np.empty(self.shape if self.samples > 1 else self.shape[:2], self.dtype)
            colours = _decode(data, self.syntax, self.colours, pixels)
            pixels = pixels.reshape(self.shape)
        return _from_ybr(pixels) if colours.startswith("YBR") else pixels

    def _raw(self, data: bytes) -> Array:
        if self.syntax == _RLE:
            return _from_rle(data, self.shape, self.dtype)
        flat = np.frombuffer(data, self.dtype.newbyteorder("<"))
        if self.samples > 1 and self.header.get("PlanarConfiguration", 0):
            return np.moveaxis(flat.reshape(self.samples, *self.shape[:2]), 0, 2)
        return flat.reshape(self.shape)


def _from_rle(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A frame of PackBits segments, one for each byte of a sample, the highest first: PS3.5, annex G.

    imagecodecs' own decoder of the whole frame ends the process where a segment's place is wrong.
    """
    height, width, samples = shape
    count, *starts = unpack("<16I", data[:64])
    if count != samples * dtype.itemsize:
        raise ValueError(f"{count} segments where {samples} samples of {dtype} have {samples * dtype.itemsize}")
    edges = pairwise([*starts[:count], len(data)])
    planes = [imagecodecs.packbits_decode(data[start:end])[: height * width] for start, end in edges]
    if any(len(plane) < height * width for plane in planes):
        raise ValueError("a segment of it ends early")
    stacked = np.frombuffer(b"".join(planes), np.uint8).reshape(samples, dtype.itemsize, -1).transpose(2, 0, 1)
    return np.ascontiguousarray(stacked).view(dtype.newbyteorder(">")).reshape(shape)


def _decode(data: bytes, syntax: str, colours: str, out: Array) -> str:
    """Decode a compressed frame into ``out``, and give what its colours are then."""
    if why := streams.excess(data, _AS_TIFF_JPEG2000 if syntax in _JPEG2000 else _AS_TIFF_JPEG):
        raise ValueError(why)
    if syntax in _JPEG:
        # The header has the last word on what the samples are; the marker that says so in JPEG is often missing.
        stored = None if out.ndim == 2 else "RGB" if colours == "RGB" else "YCBCR"
        imagecodecs.jpeg8_decode(data, colorspace=stored, outcolorspace=stored and "RGB", out=out)
        return "RGB"
    if syntax in _JPEG_LOSSLESS:
        stored = None if out.ndim == 2 else "RGB"
        imagecodecs.jpeg8_decode(data, colorspace=stored, outcolorspace=stored, out=out)
        return colours
    if syntax in _JPEG_LS:
        imagecodecs.jpegls_decode(data, out=out)
        return colours
    # OpenJPEG reserves what the stream's header says before anyone can object.
    told = streams.frame(data, _AS_TIFF_JPEG2000)
    if told is None or (told.height, told.width) != out.shape[:2]:
        raise ValueError(f"it says {told} where a tile has {out.shape[1]} x {out.shape[0]} pixels")
    if told.samples > 4:
        raise ValueError(f"it says {told.samples} samples of a pixel")
    imagecodecs.jpeg2k_decode(data, out=out)
    # These two are transforms of JPEG 2000 itself, which its decoder undoes.
    return "RGB" if colours in {"YBR_ICT", "YBR_RCT"} else colours


def _from_ybr(pixels: Array) -> Array:
    """RGB of YBR_FULL, uint8: PS3.3, C.7.6.3.1.2."""
    y, b, r = np.moveaxis(pixels.astype(np.float32), 2, 0)
    b, r = b - 128, r - 128
    rgb = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], axis=2)
    return metadata.rounded(rgb.clip(0, 255))


def _encapsulated(file: LocalFile, at: int, count: int, header: Dataset) -> tuple[Array, Array]:
    """Starts and bytes of compressed frames, items' headers included; ``at`` is where the pixel data begin."""
    tag, length = unpack("<II", file.read(at, 8))
    if tag != _ITEM or length not in {0, 4 * count}:
        raise SourceError(f"its offset table has {length} bytes for {count} frames", str(file.path), "It is damaged.")
    if at + 8 + length > file.size:
        raise StoreError(f"ends at byte {file.size}, in its offset table")
    table = np.frombuffer(file.read(at + 8, length), "<u4").astype(np.int64)
    first = at + 8 + length
    if "ExtendedOffsetTable" in header:
        starts, counts = (
            np.frombuffer(header[name].value, "<u8").astype(np.int64)
            for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
        )
        if len(starts) != count or len(counts) != count or min(starts.min(), counts.min()) < 0:
            raise SourceError(f"its offset table has no {count} frames", str(file.path), "It is damaged.")
        return first + starts, counts + 8
    # Tables of more than 4 GiB wrap around: then the items are counted, as where there is no table.
    if length and table[0] == 0 and (np.diff(table) > 0).all():
        ends = [end for _, end in _items(file, first + int(table[-1]))]
        edges = np.append(first + table, ends[-1] if ends else file.size + 1)
        return edges[:-1], np.diff(edges)
    items = list(_items(file, first))
    if count == 1 and items:
        items = [(items[0][0], items[-1][1])]
    if len(items) != count:
        raise SourceError(
            f"{len(items)} fragments of {count} frames, and no table that says which belongs to which",
            str(file.path),
            "The file is truncated, or needs an offset table.",
        )
    found = np.array(items, np.int64)
    return found[:, 0], found[:, 1] - found[:, 0]


def _items(file: LocalFile, at: int) -> Iterator[tuple[int, int]]:
    """Start and end of each item from ``at`` to the delimiter."""
    while True:
        tag, length = unpack("<II", file.read(at, 8))
        if tag == _END:
            return
        if tag != _ITEM:
            raise SourceError(f"no frame at byte {at}", str(file.path), "The file is damaged there.")
        yield at, at + 8 + length
        at += 8 + length


def _joined(data: bytes) -> bytes:
    """A frame's bytes, of its fragments."""
    parts, at = [], 0
    while at + 8 <= len(data):
        tag, length = unpack("<II", data[at : at + 8])
        if tag != _ITEM:
            raise ValueError(f"no fragment {at} bytes behind its start")
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return parts[0] if len(parts) == 1 else b"".join(parts)


def size_of(header: Dataset) -> Size:
    """Size of the whole image that a file's frames are tiles of."""
    return Size(
        int(header.get("TotalPixelMatrixColumns", 0) or header.Columns),
        int(header.get("TotalPixelMatrixRows", 0) or header.Rows),
    )


def first_of(header: Dataset, name: str) -> Dataset:
    """The first item of a sequence, or an empty one."""
    from pydicom import Dataset

    items = header.get(name)
    return items[0] if items else Dataset()


def nested(header: Dataset, outer: str, inner: str) -> Dataset:
    """The first item of a sequence in the first item of another."""
    return first_of(first_of(header, outer), inner)


def _check_kind(instance: Instance) -> None:
    """Refuse what would come out wrong, each with its reason."""
    h, bits = instance.header, instance.header.BitsAllocated
    tile = int(np.prod(instance.shape)) * max(1, bits // 8)
    subsampled = instance.colours == "YBR_FULL_422" and instance.syntax not in _JPEG
    reasons = {
        f"transfer syntax {h.file_meta.TransferSyntaxUID.name} is not known": instance.syntax not in _KNOWN,
        f"{bits} bits are allocated for a sample; 8, 16 or 32 can be read": bits not in {8, 16, 32},
        f"{instance.samples} samples per pixel": instance.samples not in {1, 3},
        f"colours are {instance.colours}": instance.colours not in _COLOURS or subsampled,
        f"colours are {instance.colours} of {bits} bits": instance.colours == "YBR_FULL" and bits != 8,
        f"its tiles are {instance.tile} pixels, too large to decode one by one": tile > _MOST_FRAME_BYTES,
        f"{instance.count} frames": instance.count < 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise SourceError(reason, str(instance.path))


def _ends(data: bytes) -> bool:
    """Whether a stream that begins as JPEG or JPEG 2000 has its end (FFD9), which DICOM pads with zeros."""
    begins = data.startswith((b"\xff\xd8", b"\xff\x4f"))
    return not begins or data.rstrip(b"\0").endswith(b"\xff\xd9")
