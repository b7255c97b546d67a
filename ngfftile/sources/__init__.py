"""Readers of foreign slides, and the choice among them by content.

A reader is a function from a path (and, where its format has several, the number of a scene) to a `Source`; it raises
`RefusedError` with its reason where the file is not its own. More come from installed packages: entry points of the
group ``ngfftile.sources``, after the built-in ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from inspect import Parameter, signature
from pathlib import Path

from ngfftile.errors import MissingError, OptionError, SourceError
from ngfftile.locations import local_path
from ngfftile.registry import resolve
from ngfftile.sources.protocol import RefusedError, Source, SourceInfo

__all__ = ["READERS", "RefusedError", "Source", "SourceInfo", "fingerprint", "open_source", "readers"]

Reader = Callable[..., Source]
READERS = {
    "tiff": "ngfftile.sources.tiff:open_tiff",
    "openslide": "ngfftile.sources.openslide:open_openslide",
    "tifffile": "ngfftile.sources.tiff:open_any_tiff",
    "picture": "ngfftile.sources.picture:open_picture",
    "dicom": "ngfftile.sources.dicom:open_dicom",
    "czi": "ngfftile.sources.czi:open_czi",
    "ngff": "ngfftile.sources.ngff:open_ngff",
}
_STORE = ("zarr.json", ".zattrs", ".zgroup")
# What a file begins with, and the reader that is made for it. OpenSlide would take some of these as well, but shows
# the scenes of a CZI on one canvas, and of a DICOM slide one focal plane or optical path, without a word. Pictures are
# not here: the main file of an MRXS slide is a JPEG, and OpenSlide's.
_HOME = (
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),
    (0, b"MM\0+", "tiff"),
    (128, b"DICM", "dicom"),  # PS3.10, 7.1
    (0, b"ZISRAWFILE", "czi"),
)
_DICOMDIR = b"1.2.840.10008.1.3.10"  # SOP class of an index of DICOM files, which is no slide
# Pixels that a byte may stand for: deflate's most is 1,032 bytes, and of stained tissue a byte holds 2 to 30. Below so
# many pixels nothing takes long; a small plane takes as long as one of a megapixel.
_MOST_RATIO, _FEW, _AS_PLANE = 1000, 1 << 30, 1 << 20
# A fingerprint covers files up to the first size whole, of larger ones both ends and samples between: slides have
# gigabytes, and the tables of their tiles' places and sizes, which it covers too, change with their pixels.
_WHOLE, _EDGE, _SAMPLE, _SAMPLES = 16 << 20, 1 << 20, 4096, 1024


def readers() -> dict[str, str]:
    """All readers by name, in the order they are tried, as ``package.module:function``."""
    return READERS | _plug_ins()


@cache
def _plug_ins() -> dict[str, str]:
    # Looking through all that is installed takes longer than to open a slide.
    return {point.name: point.value for point in entry_points(group="ngfftile.sources")}


def open_source(
    path: str | Path, reader: str | None = None, scene: int | None = None, *, allow_sparse: bool = False
) -> Source:
    """Open a foreign slide by its content, whatever its name.

    Parameters
    ----------
    path
        A file, a folder of DICOM files, or an OME-Zarr store.
    reader
        Name of the only reader to try.
    scene
        Which of the slides that the file holds, from 0; None is the first.
    allow_sparse
        Whether it may have more than 1,000 pixels for each byte of its files (and 2^30 in all).

    Raises
    ------
    MissingError
        Nothing there.
    OptionError
        No such reader, or no such scene.
    SourceError
        No reader takes it, and the message has each one's reason; or the file is damaged, or too sparse.
    """
    given = local_path(path)
    place = _main_file(given)
    known = readers()
    if reader is not None and reader not in known:
        raise OptionError(f"reader is {reader!r}", mend=f"Use one of {', '.join(known)}.")
    home = _home(place)
    reasons: dict[str, RefusedError] = {}
    for name in [reader] if reader else _order(home, known):
        try:
            source = _open(name, known, place, scene or 0)
        except RefusedError as error:
            reasons[name] = error
        else:
            if not allow_sparse:
                _check_dense(source.info)
            return _only_one(source, given)
    told = "; ".join(f"{name}: {error.what}" for name, error in reasons.items())
    # What the reader at home in the format advises helps more than what others do.
    mends = [reasons[home].mend] if home in reasons else []
    mends += [error.mend for error in reasons.values()]
    last = list(reasons.values())[-1]
    raise SourceError(f"no reader takes it ({told})", str(place), next(filter(None, mends), "")) from last


def _check_dense(info: SourceInfo) -> None:
    """Refuse what would take days to write out of a file of kilobytes."""
    pixels = max(info.size.x * info.size.y, _AS_PLANE) * info.planes
    if pixels <= _FEW:
        return
    held = sum(p.stat().st_size for path in info.files for p in ([path] if path.is_file() else path.rglob("*")))
    if pixels > _MOST_RATIO * held:
        raise SourceError(
            f"{info.size} pixels in {info.planes} planes, and {held} bytes in all",
            str(info.files[0]),
            "If nearly all of it is empty on purpose: --allow-sparse (allow_sparse=True).",
        )


def _order(home: str | None, known: Mapping[str, str]) -> list[str]:
    """Readers as they are tried: the one at home in the format, then the rest; of a store no other."""
    if home is None:
        return [name for name in known if name != "ngff"]
    return [home] if home == "ngff" else [home, *(name for name in known if name not in {home, "ngff"})]


def _open(name: str, known: Mapping[str, str], place: Path, scene: int) -> Source:
    """Call a reader; one that knows no scenes is asked for the first only."""
    function: Reader = resolve(known[name], {}, "reader")
    if scene == 0:
        return function(place)
    parameters = signature(function).parameters
    if "scene" not in parameters and all(p.kind is not Parameter.VAR_KEYWORD for p in parameters.values()):
        raise RefusedError("it reads the first scene only", str(place))
    return function(place, scene=scene)


def _home(place: Path) -> str | None:
    """The reader that is made for a format, by the content's first bytes.

    Raises
    ------
    SourceError
        There is no content.
    """
    if place.is_dir():
        return "ngff"
    with place.open("rb") as file:
        head = file.read(256)
    if not head:
        raise SourceError("the file is empty", str(place), "Copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise SourceError("a Git LFS pointer, not the slide", str(place), "Fetch the slide with: git lfs pull.")
    return next((name for at, mark, name in _HOME if head.startswith(mark, at)), None)


def _only_one(source: Source, given: Path) -> Source:
    """The source, unless its folder holds other slides, which would be left out unsaid."""
    folder = given.is_dir() and given not in source.info.files
    others = {p for p in given.iterdir() if _is_dicom(p)} - set(source.info.files) if folder else set()
    if others:
        raise SourceError(
            f"the folder holds {len(others)} DICOM files of other series", str(given), "Give a file of each slide."
        )
    return source


def _main_file(path: Path) -> Path:
    """What to open: a file, an OME-Zarr store's folder, or any file of a DICOM folder."""
    if not path.exists():
        raise MissingError("nothing there", str(path), "Check the path.")
    if path.is_file():
        return path
    if not path.is_dir():
        raise SourceError("not a file", str(path), "Give a slide file.")
    if any((path / name).is_file() for name in _STORE):
        return path
    slides = [p for p in sorted(path.iterdir()) if _is_dicom(p)]
    if not slides:
        raise SourceError(
            "a folder without DICOM files, and no OME-Zarr store",
            str(path),
            "Give a slide file, its folder of DICOM files, or a store.",
        )
    return slides[0]


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(b"DICM", 128) and _DICOMDIR not in head


def fingerprint(info: SourceInfo) -> str:
    """Identity of a slide's content: the same after a move or a rename.

    As sha256. The order of the files is by content, so their names do not count; of a store, which is a folder, the
    tables stand for its content.
    """
    whole = hashlib.sha256(info.tables)
    for digest in sorted(_digests(info.files)):
        whole.update(digest)
    return whole.hexdigest()


def _digests(files: tuple[Path, ...]) -> Iterator[bytes]:
    for path in files:
        if path.is_dir():
            continue
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
