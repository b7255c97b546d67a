"""What a command works on, and where its results go."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ngfftile.errors import ExistsError, MissingError, NgfftileError, OptionError
from ngfftile.locations import is_url, local_path

STORE, DRAFT = ".zarr", ".partial"
# What a folder is searched for. A file that is named is tried whatever its name.
_SLIDES = frozenset(
    [".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".qptiff", ".czi", ".svslide"]
)
# Beside slides they are thumbnails and labels, alone they are slides.
_PICTURES = frozenset([".png", ".jpg", ".jpeg", ".jp2", ".webp", ".bmp", ".gif"])


@dataclass
class Inputs:
    """Slides or stores to work on.

    Parameters
    ----------
    names
        Of them, each once.
    refused
        What was given and is none, with the reason.
    notes
        What was left out, a sentence each.
    """

    names: list[str] = field(default_factory=list)
    refused: dict[str, NgfftileError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_store(path: str) -> bool:
    """Whether a folder looks like an OME-Zarr store; a url is taken for one."""
    if is_url(path):
        return True
    folder = Path(path)
    return folder.is_dir() and any((folder / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))


def inputs(given: list[str], *, stores: bool) -> Inputs:
    """Files, folders and globs as slides; names that lead nowhere are kept, for the error they deserve.

    Raises
    ------
    MissingError
        Nothing of what was given can be worked on.
    """
    found = Inputs()
    for name in dict.fromkeys(given):
        try:
            for match in _matches(name):
                try:
                    found.names += _one(match, found.notes, stores=stores)
                except MissingError as error:
                    found.refused[match] = error
        except MissingError as error:
            found.refused[name] = error
    if not found.names:
        raise next(iter(found.refused.values()))
    found.names = list(dict.fromkeys(found.names))
    return found


def _matches(name: str) -> list[str]:
    if is_url(name) or not any(c in name for c in "*?[") or Path(name).exists():
        return [name]
    matches = sorted(glob.glob(name))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not matches:
        raise MissingError("no file matches", name, "Check the pattern.")
    return matches


def check_whole(name: str) -> None:
    """Refuse what a conversion has not finished.

    Raises
    ------
    MissingError
        It is an unfinished conversion.
    """
    if Path(name).suffix == DRAFT and Path(name).is_dir():
        raise MissingError("an unfinished conversion", name, "Run the same convert command again: it goes on.")


def _one(name: str, notes: list[str], *, stores: bool) -> list[str]:
    if is_url(name) or not Path(name).is_dir():
        return [name]
    check_whole(name)
    folder = Path(name)
    if folder.suffix == STORE or is_store(name):
        return [name]
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    drafts = [p.name for p in inside if p.suffix == DRAFT and p.is_dir()]
    if stores:
        found = [p for p in inside if is_store(str(p))]
        if drafts:
            notes.append(f"{folder}: unfinished conversions, {_some(drafts)}. The same convert command goes on.")
    else:
        found = _slides(folder, inside)
        # A folder beside an MRXS or VMS slide holds its data.
        known = {p.stem for p in found} | {p.name for p in found} | set(drafts)
        below = [p.name for p in inside if p.is_dir() and p.name not in known and not is_store(str(p))]
        if below and found:
            notes.append(f"{folder}: folders in it are not looked into, {_some(below)}. Name them too.")
    if not found:
        raise MissingError(f"no {'stores' if stores else 'slides'} in this folder", name, "Check the path.")
    return [str(p) for p in found]


def _slides(folder: Path, inside: list[Path]) -> list[Path]:
    dicom = any(p.suffix.lower() == ".dcm" for p in inside)
    # Folders are slides only where they hold DICOM.
    found = [folder] if dicom else []
    found += [p for p in inside if p.suffix.lower() in _SLIDES or (p.is_dir() and any(p.glob("*.dcm")))]
    # Stores beside slides are what earlier runs made of them; alone they are what is to be converted.
    found = found or [p for p in inside if is_store(str(p))]
    return found or [p for p in inside if p.suffix.lower() in _PICTURES]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def targets(found: Inputs, dest: str) -> dict[str, str]:
    """The store that each source becomes; sources that would become one store are refused.

    Raises
    ------
    OptionError
        Several sources, and one store.
    """
    dest = str(local_path(dest))
    if dest.rstrip("/").endswith(STORE):
        if len(found.names) > 1:
            raise OptionError(f"{len(found.names)} sources but one store", dest, "Give a folder as the output.")
        return {found.names[0]: dest}
    Path(dest).mkdir(parents=True, exist_ok=True)
    places = {source: str(Path(dest) / f"{_stem(source)}.ome{STORE}") for source in found.names}
    found.refused |= dict(_clashes(places))
    found.names = [name for name in found.names if name not in found.refused]
    return places


def _clashes(places: dict[str, str]) -> Iterator[tuple[str, NgfftileError]]:
    sources: dict[str, list[str]] = defaultdict(list)
    for source, place in places.items():
        sources[place].append(source)
    for place, names in sources.items():
        if len(names) > 1:
            mend = "Rename one, or convert them into different folders."
            yield from ((n, ExistsError(f"{_some(names)} would all become this store", place, mend)) for n in names)


def _stem(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return path.name.removesuffix(STORE).removesuffix(".ome")
    return path.stem.removesuffix(".ome")
