"""Readers of foreign slides, and the choice among them by content.

A reader is a function from a path to a `Source`; it raises `RefusedError` with its reason where the file is not its
own. More come from installed packages: entry points of the group ``ngfftile.sources``, after the built-in ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

from ngfftile.errors import MissingError, OptionError, SourceError
from ngfftile.locations import local_path
from ngfftile.registry import resolve
from ngfftile.sources.protocol import RefusedError, Source, SourceInfo

__all__ = ["READERS", "RefusedError", "Source", "SourceInfo", "fingerprint", "open_source", "readers"]

Reader = Callable[[Path], Source]
READERS = {
    "tiff": "ngfftile.sources.tiff:open_tiff",
    "openslide": "ngfftile.sources.openslide:open_openslide",
}
# A fingerprint covers files up to the first size whole, of larger ones both ends and samples between: slides have
# gigabytes, and the tables of their tiles' places and sizes, which it covers too, change with their pixels.
_WHOLE, _EDGE, _SAMPLE, _SAMPLES = 16 << 20, 1 << 20, 4096, 1024


def readers() -> dict[str, str]:
    """All readers by name, in the order they are tried, as ``package.module:function``."""
    return READERS | {point.name: point.value for point in entry_points(group="ngfftile.sources")}


def open_source(path: str | Path, reader: str | None = None) -> Source:
    """Open a foreign slide by its content, whatever its name.

    Parameters
    ----------
    path
        A file, or a folder of DICOM files.
    reader
        Name of the only reader to try.

    Raises
    ------
    MissingError
        Nothing there.
    SourceError
        No reader takes it, and the message has each one's reason; or the file is damaged.
    """
    given = local_path(path)
    place = _main_file(given)
    known = readers()
    if reader is not None and reader not in known:
        raise OptionError(f"reader is {reader!r}", mend=f"Use one of {', '.join(known)}.")
    _check_content(place)
    reasons = []
    for name in [reader] if reader else known:
        try:
            source: Source = resolve(known[name], {}, "reader")(place)
        except RefusedError as error:
            reasons.append((name, error))
        else:
            return _only_one(source, given)
    told = "; ".join(f"{name}: {error.what}" for name, error in reasons)
    mends = [error.mend for _, error in reasons if error.mend]
    raise SourceError(f"no reader takes it ({told})", str(place), mends[0] if mends else "") from reasons[-1][1]


def _only_one(source: Source, given: Path) -> Source:
    """The source, unless its folder holds other slides, which would be left out unsaid."""
    others = {p for p in given.iterdir() if _is_dicom(p)} - set(source.info.files) if given.is_dir() else set()
    if others:
        raise SourceError(
            f"the folder holds {len(others)} DICOM files of other series", str(given), "Give a file of each slide."
        )
    return source


def _main_file(path: Path) -> Path:
    """The file to open: of a DICOM folder, any of its files."""
    if not path.exists():
        raise MissingError("nothing there", str(path), "Check the path.")
    if path.is_file():
        return path
    if not path.is_dir():
        raise SourceError("not a file", str(path), "Give a slide file.")
    slides = [p for p in sorted(path.iterdir()) if _is_dicom(p)]
    if not slides:
        raise SourceError("a folder without DICOM files", str(path), "Give a slide file, or its folder of DICOM files.")
    return slides[0]


def _is_dicom(path: Path) -> bool:
    # DICOM PS3.10, section 7.1: 128 bytes of preamble, then DICM.
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise SourceError("the file is empty", str(path), "Copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise SourceError("a Git LFS pointer, not the slide", str(path), "Fetch the slide with: git lfs pull.")


def fingerprint(info: SourceInfo) -> str:
    """Identity of a slide's content: the same after a move or a rename.

    As sha256. The order of the files is by content, so their names do not count.
    """
    whole = hashlib.sha256(info.tables)
    for digest in sorted(_digests(info.files)):
        whole.update(digest)
    return whole.hexdigest()


def _digests(files: tuple[Path, ...]) -> Iterator[bytes]:
    for path in files:
        size = path.stat().st_size
        part = hashlib.sha256(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            if size <= _WHOLE:
                part.update(file.read())
            else:
                part.update(file.read(_EDGE))
                for i in range(_SAMPLES):
                    file.seek(_EDGE + (size - 2 * _EDGE) * i // _SAMPLES)
                    part.update(file.read(_SAMPLE))
                file.seek(size - _EDGE)
                part.update(file.read())
        yield part.digest()
