"""What a reader of foreign slides must give, and what it says of a slide.

A `Source` reads level 0 and the associated images; coarser levels are made by us, the same for every scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ngfftile.codecs import Codec
from ngfftile.errors import SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import Channel, clean

Array = NDArray[Any]
Damaged = Callable[[Region, str], None]


def version(path: Path) -> tuple[int, int]:
    """What changes when a file does: time of change and size."""
    about = path.stat()
    return about.st_mtime_ns, about.st_size


def unchanged(path: Path, before: tuple[int, int]) -> Path:
    """The path, if its file is as it was.

    Raises
    ------
    SourceError
        It was changed or replaced in between.
    """
    if version(path) != before:
        raise SourceError("the file changed while it was read", str(path), "Convert it again when it is at rest.")
    return path


def states(paths: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    """What changes when files do, or others take their place; those that are not there are left out.

    Only on one machine: others may number the files in their own way.
    """
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = _state(path)
    return found


def watched(source: Source, given: Path, before: Mapping[Path, tuple[int, ...]]) -> dict[Path, tuple[int, ...]]:
    """States of all files that a source reads; of those known from before it was opened, the state they had then."""
    found = states([given, *source.info.files, *getattr(source, "objects", ())])
    return {path: before.get(path, state) for path, state in found.items()}


def _state(path: Path) -> tuple[int, ...]:
    about = path.stat()
    # What is written into a folder, labels or what a desktop leaves, is no concern of who reads its pixels.
    return (about.st_ino,) if S_ISDIR(about.st_mode) else (about.st_ino, about.st_mtime_ns, about.st_size)


def check_states(before: Mapping[Path, tuple[int, ...]]) -> None:
    """Compare with what `states` found.

    Raises
    ------
    SourceError
        A file was changed, replaced or removed in between: what was read may be a part of each.
    """
    for path, state in before.items():
        try:
            found = "changed" if _state(path) != state else None
        except FileNotFoundError:
            found = "vanished"
        if found:
            raise SourceError(f"the file {found} while it was read", str(path), "Convert it again when it is at rest.")


class RefusedError(SourceError):
    """The file is not this reader's: another may take it. Any other `SourceError` of a reader is final."""


_PLAIN = Mpp(1.0, 1.0)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """All that the headers of a slide file say; nothing here needs a pixel.

    Parameters
    ----------
    reader
        Name of the reader that opened it.
    format, vendor
        File format, and scanner maker in lower case as OpenSlide names them.
    size
        Level 0 in pixels.
    channels
        Names and colours; `ngfftile.ngff.RGB` for a colour slide.
    rgb
        Whether the channels are red, green and blue of one picture.
    dtype
        Of a pixel, as numpy names it.
    tile
        The file's own tile size, the unit that `Source.read` decodes.
    mpp
        Micrometres per pixel of level 0, or None if the file does not say, or says what cannot be.
    mpp_source
        Where the mpp was read, or why it is unknown.
    levels
        Sizes of the levels that the file holds; only the first is read.
    associated
        Associated images by role (label, macro, thumbnail), with their sizes.
    properties
        Everything else that the file says, by the vendor's own names.
    tables
        The tables of the tiles' places and sizes, or their digest; part of the slide's fingerprint.
    notes
        What a user should know before trusting the slide, a sentence each.
    files
        The files that the slide consists of; of an OME-Zarr store its folder.
    z, t
        Focal planes, and points in time.
    z_step, t_step
        Micrometres between focal planes, seconds between points in time; None if the file does not say.
    label
        Whether the values are names, which must not be averaged.
    scenes, scene
        Names of the slides that the file holds, where there are several, and which of them this is.
    ome_xml
        The file's own OME-XML.
    encoding
        How the tiles of level 0 are compressed, where a store can keep them as they are (`Source.raw`).
    recompress
        Why it cannot, where it cannot.
    held
        Bytes that the reader keeps in memory: all pixels, of formats that are decoded as one.
    origin
        ``attributes.ngfftile`` of a store that we wrote ourselves.
    plain, offset_x, offset_y
        Of an OME-Zarr source: its scale where that has no unit, and where its first pixel lies.
    """

    reader: str
    format: str
    vendor: str
    size: Size
    channels: tuple[Channel, ...]
    rgb: bool
    dtype: str
    tile: Size
    mpp: Mpp | None
    mpp_source: str
    levels: tuple[Size, ...]
    files: tuple[Path, ...]
    objective_power: float | None = None
    acquired: str | None = None
    associated: Mapping[str, Size] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    icc: bytes | None = None
    tables: bytes = b""
    notes: tuple[str, ...] = ()
    z: int = 1
    t: int = 1
    z_step: float | None = None
    t_step: float | None = None
    label: bool = False
    scenes: tuple[str, ...] = ()
    scene: int = 0
    ome_xml: str | None = None
    encoding: Codec | None = None
    recompress: str = "its reader hands out pixels, not compressed tiles"
    held: int = 0
    origin: Mapping[str, Any] = field(default_factory=dict)
    plain: Mpp = _PLAIN
    offset_x: float = 0.0
    offset_y: float = 0.0

    @property
    def name(self) -> str:
        """The slide's name: the file's, without its ending, and the scene where there are several."""
        path = self.files[0]
        stem = path.name.removesuffix(".zarr") if path.is_dir() else path.stem
        return clean(stem.removesuffix(".ome")) + (f".scene-{self.scene}" if self.scenes else "")

    @property
    def depth(self) -> int:
        """Channels that are read together: 3 of an RGB slide, else 1."""
        return 3 if self.rgb else 1

    @property
    def planes(self) -> int:
        """How many times `depth` channels there are: over t, then c, then z, which runs fastest."""
        return self.t * (len(self.channels) // self.depth) * self.z

    @property
    def background(self) -> int:
        """Value of what the file does not hold: white where the slide is RGB, else 0."""
        if not self.rgb:
            return 0
        return int(np.iinfo(self.dtype).max) if np.dtype(self.dtype).kind in "iu" else 1


class Source(Protocol):
    """A foreign slide, open for reading; safe to use from many threads, and picklable by path."""

    @property
    def info(self) -> SourceInfo:
        """What the headers say."""

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Write pixels of level 0 into ``out``.

        Parameters
        ----------
        region
            Inside level 0. Each source tile that it meets is decoded once; give whole tiles to waste nothing.
        plane
            Which of `SourceInfo.planes`.
        out
            (height, width, `SourceInfo.depth`) of the source's dtype, any strides; transparent pixels get the
            background.
        damaged
            Called with the place of each tile that does not decode, and the reason; the tile becomes background.

        Raises
        ------
        SourceError
            A tile that is damaged, where ``damaged`` is None; the message names its place.
        """

    def associated(self, role: str) -> Array:
        """One associated image, (height, width, 3) uint8."""


class RawSource(Source, Protocol):
    """A source whose `SourceInfo.encoding` is not None: it gives its tiles as the file has them."""

    def raw(self, plane: int, row: int, col: int) -> bytes | None:
        """The compressed bytes of one tile of level 0; None where the file stores none."""
