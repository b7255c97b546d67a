"""Pictures of one level: PNG, JPEG, JPEG 2000, WebP, BMP and GIF, decoded whole and held in memory.

Pillow reads the headers; imagecodecs decodes, without the GIL. BMP and GIF are left to Pillow, since only there the
header tells whether a palette makes the picture grey or coloured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import unpack
from threading import Lock
from typing import Any

import imagecodecs
import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from ngfftile.errors import OptionError, SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import RGB, Channel
from ngfftile.sources import metadata, streams
from ngfftile.sources.orientation import Orientation
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo, unchanged, version

MOST_BYTES = 4 << 30  # decoded; what is larger belongs in tiles
# One byte of deflate gives 1,032 at most, and of the other codecs not many more, but headers of a few bytes can ask for
# gigabytes. OpenJPEG decodes to 4 bytes a sample.
_SMALL, _MOST_RATIO = 64 << 20, 5000
# Beginnings of files, and the class of Pillow that reads their headers: Image.open() would try them all, and warn of
# sizes that are common for slides.
_KINDS: dict[bytes, tuple[str, type[Any]]] = {
    rb"\x89PNG\r\n\x1a\n": ("PNG", PngImagePlugin.PngImageFile),
    rb"\xff\xd8\xff": ("JPEG", JpegImagePlugin.JpegImageFile),
    rb"\0\0\0\x0cjP  \r\n\x87\n": ("JPEG 2000", Jpeg2KImagePlugin.Jpeg2KImageFile),
    rb"\xff\x4f\xff\x51": ("JPEG 2000", Jpeg2KImagePlugin.Jpeg2KImageFile),
    rb"RIFF....WEBP": ("WebP", WebPImagePlugin.WebPImageFile),
    rb"BM....\0\0\0\0": ("BMP", BmpImagePlugin.BmpImageFile),
    rb"GIF8[79]a": ("GIF", GifImagePlugin.GifImageFile),
}
# Markers in JPEG other than stuffed bytes, restarts and padding: ISO 10918-1, B.1.1.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ORIENTATION, _DATE, _EXIF, _ORIGINAL_DATE = 0x0112, 0x0132, 0x8769, 0x9003
_BAND = 256  # rows laid over white at once


def open_picture(path: Path, scene: int = 0) -> Source:
    """Read the header of a picture.

    Raises
    ------
    RefusedError
        Not a picture that is known.
    SourceError
        Damaged, too large, or of colours that are not known.
    """
    with path.open("rb") as file:
        head = file.read(16)
    kind, plugin = next((about for mark, about in _KINDS.items() if re.match(mark, head, re.DOTALL)), (None, None))
    if kind is None or plugin is None:
        raise RefusedError("not PNG, JPEG, JPEG 2000, WebP, BMP or GIF", str(path))
    if path.suffix.lower() == ".mrxs":
        # Its JPEG is only the overview; OpenSlide takes it where the slide is there.
        raise RefusedError("an MRXS slide without its data", str(path), f"Put its folder {path.stem} beside it.")
    if scene:
        raise OptionError(f"scene is {scene}, and a picture is one slide", str(path), "Use scene 0.")
    try:
        with path.open("rb") as file, plugin(file) as image:
            return PictureSource(path, _header(path, kind, image))
    except SourceError:
        raise
    # Damage shows itself in Pillow as almost any error; each means that the header cannot be read.
    except Exception as error:
        raise SourceError(f"its {kind} header cannot be read ({error})", str(path), "The file is damaged.") from error


@lru_cache(maxsize=2)
def _again(path: Path, before: tuple[int, int]) -> Source:
    """The source in another process, opened and decoded once there for all its tasks."""
    return open_picture(unchanged(path, before))


@dataclass(frozen=True, slots=True)
class _Header:
    """What a picture is, before its orientation is applied.

    Parameters
    ----------
    samples
        Per pixel, transparency not counted: 1 or 3.
    about
        Pillow's table of what else the header says.
    exif
        Tags by number, of the two directories that describe a picture.
    """

    kind: str
    size: Size
    samples: int
    alpha: bool
    dtype: np.dtype[Any]
    about: Mapping[Any, Any]
    exif: Mapping[int, Any]
    notes: tuple[str, ...]

    @property
    def orientation(self) -> Orientation:
        """As EXIF has it, which is TIFF's: Exif 2.32, 4.6.4."""
        return Orientation.of(self.exif.get(_ORIENTATION))


class PictureSource:
    """A picture; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path, header: _Header) -> None:
        self._path = path
        self._header = header
        self._lock = Lock()
        self._decoded: Array | None = None
        self.info = _describe(path, header)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path))

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:  # noqa: ARG002
        """Pixels of the picture, which the first call decodes whole; see `Source.read`."""
        try:
            pixels = self._pixels()
        except SourceError as error:
            if damaged is None:
                raise
            damaged(region, error.what)
            out[...] = self.info.background
        else:
            out[...] = pixels[region.y : region.bottom, region.x : region.right]

    def associated(self, role: str) -> Array:
        """A picture has none."""
        raise OptionError(f"no {role} image in a picture", str(self._path), "Leave it out.")

    def _pixels(self) -> Array:
        with self._lock:
            if self._decoded is None:
                self._decoded = self._decode()
            return self._decoded

    def _decode(self) -> Array:
        header = self._header
        try:
            pixels = _decode(self._path, header)
        # Any failure of a decoder is damage of the picture.
        except Exception as error:
            raise SourceError(
                f"the picture does not decode ({error})", str(self._path), "The file is damaged: copy it again."
            ) from error
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        shape = (header.size.y, header.size.x, header.samples + header.alpha)
        if pixels.shape != shape or pixels.dtype != header.dtype:
            raise SourceError(
                f"it decodes to {pixels.shape} {pixels.dtype} where its header says {shape} {header.dtype}",
                str(self._path),
            )
        upright = np.empty((self.info.size.y, self.info.size.x, header.samples), header.dtype)
        header.orientation.view(upright)[...] = _over_white(pixels) if header.alpha else pixels
        return upright


def _decode(path: Path, header: _Header) -> Array:
    """The picture as its file has it, (y, x) or (y, x, sample)."""
    pixels: Array
    if header.kind in {"BMP", "GIF"}:
        plugin = BmpImagePlugin.BmpImageFile if header.kind == "BMP" else GifImagePlugin.GifImageFile
        with path.open("rb") as file, plugin(file) as image:
            return np.asarray(image.convert(("RGB" if header.samples == 3 else "L") + "A" * header.alpha))
    data = path.read_bytes()
    code = {"JPEG": 7, "JPEG 2000": 34712}.get(header.kind, 0)  # as TIFF counts them
    if why := streams.excess(data, code):
        raise ValueError(why)
    if header.kind == "JPEG":
        if not _is_whole(data):
            raise ValueError("it has no end: the file is truncated")
        # A decoder that is given an array does not reserve one of a size that a second header says.
        shape = (header.size.y, header.size.x)
        pixels = np.empty(shape if header.samples == 1 else (*shape, 3), header.dtype)
        imagecodecs.jpeg8_decode(data, out=pixels)
    elif header.kind == "PNG":
        pixels = imagecodecs.png_decode(data)
    elif header.kind == "WebP":
        pixels = imagecodecs.webp_decode(data, hasalpha=header.alpha)
    else:
        pixels = imagecodecs.jpeg2k_decode(data)
    return pixels


def _is_whole(jpeg: bytes) -> bool:
    """Whether a JPEG comes to its end, where decoders fill what is missing with grey and do not say so."""
    at = 2
    while found := _MARKER.search(jpeg, at):
        at = found.end()
        if found[0] == b"\xff\xd9":
            return True
        if found[0] not in {b"\xff\x01", b"\xff\xd8"} and at + 2 <= len(jpeg):
            at += int.from_bytes(jpeg[at : at + 2])
    return False


def _over_white(pixels: Array) -> Array:
    """Lay what is transparent over white, as a viewer does; nearest integers."""
    most = int(np.iinfo(pixels.dtype).max)
    out = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), pixels.dtype)
    for y in range(0, len(pixels), _BAND):
        band = pixels[y : y + _BAND].astype(np.uint32)  # 65,535 squared is below 2 ** 32
        alpha = band[..., -1:]
        out[y : y + _BAND] = (band[..., :-1] * alpha + most * (most - alpha) + most // 2) // most
    return out


def _header(path: Path, kind: str, image: Image.Image) -> _Header:
    about: dict[Any, Any] = dict(image.info)
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    samples, alpha = _of_mode(path, kind, image)
    if kind == "PNG":
        chunks = dict(_png_chunks(path))
        depth, colours = chunks[b"IHDR"][8:10]
        alpha = colours in {4, 6} or b"tRNS" in chunks
        dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
        if b"eXIf" in chunks:  # it may stand behind the pixels, where Pillow has not looked
            about["exif"] = chunks[b"eXIf"]
    elif kind == "JPEG 2000":
        dtype, samples = _of_jpeg2000(path)
        alpha, samples = samples in {2, 4}, samples - (samples in {2, 4})
    size = Size(*image.size)
    _check_size(path, size, size.x * size.y * (samples + alpha) * (4 if kind == "JPEG 2000" else dtype.itemsize))
    notes = ["transparent pixels are laid over white"] if alpha else []
    try:
        exif = _exif(about.get("exif", b""))
    # A picture can be read without: cameras and programs write almost anything there.
    except Exception as error:  # noqa: BLE001
        exif = {}
        notes.append(f"its EXIF tags cannot be read, and its orientation is not known ({error})")
    return _Header(kind, size, samples, alpha, dtype, about, exif, tuple(notes))


def _check_size(path: Path, size: Size, count: int) -> None:
    """Refuse what would need more memory than a picture is worth; ``count`` bytes, as the decoder needs them."""
    if count > MOST_BYTES:
        raise SourceError(
            f"{size} pixels decode to {count / (1 << 30):.1f} GiB at once; {MOST_BYTES >> 30} GiB is the most",
            str(path),
            "Make a tiled TIFF of it first.",
        )
    held = path.stat().st_size
    if count > max(_SMALL, _MOST_RATIO * held):
        raise SourceError(f"{size} pixels in {held} bytes cannot be", str(path), "The file is damaged.")


def _of_mode(path: Path, kind: str, image: Image.Image) -> tuple[int, bool]:
    """Samples per pixel, and whether there is transparency."""
    if image.mode not in {"1", "L", "LA", "I", "I;16", "P", "PA", "RGB", "RGBA"}:
        raise SourceError(f"its colours are {image.mode}", str(path), f"Make it an RGB {kind} first.")
    samples = 1 if image.mode in {"1", "L", "LA", "I", "I;16"} else 3
    return samples, "A" in image.mode or (kind == "GIF" and "transparency" in image.info)


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The chunks that describe a PNG: PNG specification, 5.3; the pixels' are only counted."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        at = 8
        while at + 12 <= end:
            file.seek(at)
            length, name = unpack(">I4s", file.read(8))
            if name in {b"IHDR", b"tRNS", b"eXIf"}:
                yield name, file.read(min(length, 1 << 20))
            at += 12 + length
            if name == b"IEND" and at <= end:
                return
    raise SourceError("it has no end (IEND)", str(path), "The file is truncated: copy it again.")


def _of_jpeg2000(path: Path) -> tuple[np.dtype[Any], int]:
    """Type and number of the samples: ISO 15444-1, A.5.1."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0:
        raise SourceError("no codestream in its first megabyte", str(path), "The file is damaged.")
    count = int.from_bytes(head[at + 40 : at + 42])
    components = {head[at + 42 + 3 * i : at + 45 + 3 * i] for i in range(min(count, 5))}
    depth, *steps = next(iter(components))
    if len(components) > 1 or count > 4 or steps != [1, 1] or (depth & 127) > 15:
        raise SourceError(
            f"{count} components of {len(components)} kinds",
            str(path),
            "Give a picture of 1 to 4, all with the same bits, 16 at most, and size.",
        )
    return np.dtype(f"{'i' if depth & 128 else 'u'}{1 if (depth & 127) < 8 else 2}"), count


def _exif(data: bytes) -> dict[int, Any]:
    if not data:
        return {}
    exif = Image.Exif()
    exif.load(data)
    return dict(exif) | dict(exif.get_ifd(_EXIF))


def _describe(path: Path, header: _Header) -> SourceInfo:
    size = header.orientation.size(header.size)
    mpp, mpp_source = _mpp(header.about.get("dpi"), header.orientation)
    return SourceInfo(
        reader="picture",
        format=header.kind,
        vendor="picture",
        size=size,
        channels=RGB if header.samples == 3 else (Channel("Grey"),),
        rgb=header.samples == 3,
        dtype=header.dtype.name,
        tile=size,
        mpp=mpp,
        mpp_source=mpp_source,
        levels=(size,),
        files=(path,),
        acquired=metadata.tag_date(header.exif.get(_ORIGINAL_DATE) or header.exif.get(_DATE)),
        properties=dict(_properties(header)),
        icc=header.about.get("icc_profile") or None,
        notes=header.notes,
        held=size.x * size.y * header.samples * header.dtype.itemsize,
    )


def _mpp(dpi: Any, orientation: Orientation) -> tuple[Mpp | None, str]:
    try:
        x, y = (metadata.number(str(value)) for value in dpi)
    except (TypeError, ValueError):
        x = y = None
    if not x or not y:
        return None, "the file does not say"
    return metadata.plausible(orientation.mpp(Mpp(25_400 / x, 25_400 / y)), "its resolution in dots per inch")


def _properties(header: _Header) -> Iterator[tuple[str, str]]:
    """What the header says in words: texts of a PNG, comments, EXIF tags."""
    for name, value in header.about.items():
        text = value.decode("latin-1") if name == "comment" and isinstance(value, bytes) else value
        if isinstance(text, str):
            yield f"{header.kind.lower().replace(' ', '')}.{name}", text.strip("\0 ")
    for tag, value in header.exif.items():
        if not isinstance(value, bytes | dict):
            yield f"exif.{ExifTags.TAGS.get(tag, f'{tag:#06x}')}", str(value).strip("\0 ")
