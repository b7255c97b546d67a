"""The slides that a TIFF holds, and which page has which plane, out of what tifffile calls series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ngfftile.errors import OptionError, SourceError

MOST_PLANES = 100_000
MOST_UNNAMED = 500  # channels that pages of unknown meaning may become
_ROLES = {"label": "label", "macro": "macro", "overview": "macro", "thumbnail": "thumbnail"}
_ROLE = re.compile(r"(label|macro|overview|thumbnail)(?: image)?", re.IGNORECASE)
# The kinds of series whose file may hold more pictures than one; in all others, what follows the first is associated.
_UNSORTED = {"generic", "uniform", "shaped", "geotiff"}
_SEVERAL = {"ome", "scn", "mmstack", "ndtiff", "flimage"}


@dataclass(frozen=True, slots=True)
class Scene:
    """One slide of a file.

    Parameters
    ----------
    name
        As the file has it.
    levels
        tifffile's series of its levels, the finest first.
    number
        Of the first, among the file's series.
    """

    name: str
    levels: tuple[Any, ...]
    number: int


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a file holds: slides, associated images by role (tifffile's pages), and what to say of them."""

    scenes: tuple[Scene, ...]
    associated: dict[str, Any]
    notes: tuple[str, ...] = ()

    def scene(self, index: int, path: Path) -> Scene:
        """One of the slides.

        Raises
        ------
        OptionError
            There are fewer.
        """
        if 0 <= index < len(self.scenes):
            return self.scenes[index]
        count = len(self.scenes)
        raise OptionError(
            f"scene is {index}, the file has {count}", str(path), f"Use 0 to {count - 1}." if count > 1 else "Use 0."
        )


@dataclass(frozen=True, slots=True)
class Order:
    """Which page of a series is where.

    Parameters
    ----------
    pages
        Numbers of pages, (t, c, z).
    unnamed
        Letters of the axes that are kept as channels, though the file does not say that they are.
    """

    pages: np.ndarray[Any, np.dtype[np.intp]]
    unnamed: str


def contents(tiff: Any, macros: Sequence[bool] = ()) -> Contents:
    """Sort a file's series.

    Parameters
    ----------
    tiff
        tifffile's file.
    macros
        Of a Leica SCN, which of its series show the whole glass.
    """
    series = list(tiff.series)
    kind = series[0].kind if series else ""
    roles = dict(_qptiff_roles(tiff)) if kind == "qpi" else {}
    kept: list[tuple[int, Any]] = []
    for number, one in enumerate(series):
        role = _role(one, kind)
        if number < len(macros) and macros[number]:
            role = "macro"
        if role and len(series) > 1 and (number > 0 or kind in _SEVERAL):
            if kind != "qpi":
                roles.setdefault(role, one.keyframe)
        elif number == 0 or kind in _UNSORTED | _SEVERAL:
            kept.append((number, one))
    scenes, notes = _families(kept) if kind in _UNSORTED else (_each(kept), ())
    return Contents(scenes or _each(list(enumerate(series))[:1]), roles, notes)


def _role(series: Any, kind: str) -> str:
    """The role that a series' name, or in files of no vendor its description, gives it."""
    texts = [series.name or ""]
    if kind in _UNSORTED:
        texts.append(str(series.keyframe.description or ""))
    found = next((match for text in texts if (match := _ROLE.fullmatch(text.strip()))), None)
    return _ROLES[found[1].lower()] if found else ""


def _qptiff_roles(tiff: Any) -> Iterator[tuple[str, Any]]:
    for page in tiff.pages:
        found = re.search(r"<ImageType>(\w+)</ImageType>", page.aspage().description)
        if found and found[1].lower() in _ROLES:
            yield _ROLES[found[1].lower()], page.aspage()


def _each(kept: list[tuple[int, Any]]) -> tuple[Scene, ...]:
    return tuple(Scene(one.name or f"image {number}", tuple(one.levels), number) for number, one in kept)


def _families(kept: list[tuple[int, Any]]) -> tuple[tuple[Scene, ...], tuple[str, ...]]:
    """Series of one picture at several sizes, put together; and what is left out."""
    families: list[list[tuple[int, Any]]] = []
    left = 0
    for number, one in kept:
        home = next((f for f in families if _is_level(f[0][1], one)), None)
        if home is not None:
            home.append((number, one))
        elif families and (one.keyframe.is_reduced or one.keyframe.is_mask):
            left += 1
        else:
            families.append([(number, one)])
    scenes = []
    for family in families:
        levels = [(level, number) for number, one in family for level in one.levels]
        levels.sort(key=lambda pair: -pair[0].keyframe.imagewidth)
        page = levels[0][0].keyframe
        name = f"page {page.index}, {page.imagewidth} x {page.imagelength}"
        scenes.append(Scene(name, tuple(level for level, _ in levels), levels[0][1]))
    notes = [f"{left} reduced images or masks that are no levels of it are left out"] if left else []
    if len(scenes) > 1:
        notes.append(f"it holds {len(scenes)} pictures of different sizes or kinds, each a scene")
    return tuple(scenes), tuple(notes)


def _is_level(one: Any, other: Any) -> bool:
    """Whether two series can be one picture at two sizes: alike, of one shape, and one well smaller."""
    a, b = one.keyframe, other.keyframe
    if (a.dtype, a.samplesperpixel, a.photometric) != (b.dtype, b.samplesperpixel, b.photometric):
        return False
    if a.imagewidth < b.imagewidth:
        a, b = b, a
    ratio = a.imagewidth / max(1, b.imagewidth)
    # Writers round, drop or add the last odd pixel, over several levels.
    slack = max(2.0, 0.01 * b.imagelength)
    return ratio >= 1.5 and abs(a.imagelength / ratio - b.imagelength) <= slack and len(one) == len(other)


def order(series: Any, path: Path) -> Order:
    """Which of a series' pages has which plane.

    Raises
    ------
    SourceError
        Its axes are not planes of y and x in t, c and z.
    """
    shape, axes = series.shape, series.axes
    count = prod(shape) // prod(series.keyframe.shape) if series.is_truncated else len(series)
    if count > MOST_PLANES:
        raise SourceError(f"{count} planes", str(path), f"{MOST_PLANES} are the most that are read.")
    depth = next((i for i in range(len(shape) + 1) if prod(shape[:i]) == count), None)
    lead = axes[:depth] if depth is not None else axes
    if depth is None or any(letter in "XY" and size > 1 for letter, size in zip(lead, shape, strict=False)):
        raise SourceError(
            f"its axes are {axes} of {shape} in {count} pages, which are not planes of y and x", str(path)
        )
    kinds = {"T": 0, "Z": 2}
    rows = sorted(range(depth), key=lambda i: kinds.get(lead[i], 1))
    sizes = [prod(shape[i] for i in rows if kinds.get(lead[i], 1) == kind) for kind in range(3)]
    unnamed = "".join(letter for letter, size in zip(lead, shape, strict=False) if letter not in "TCZS" and size > 1)
    if unnamed and sizes[1] > MOST_UNNAMED:
        raise SourceError(f"{sizes[1]} pages of unknown meaning", str(path), f"{MOST_UNNAMED} are kept as channels.")
    pages = np.arange(count).reshape(shape[:depth]).transpose(rows).reshape(sizes)
    return Order(pages, unnamed)
