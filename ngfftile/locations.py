"""Where things are: paths and urls."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ngfftile.errors import OptionError

_URL = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether it is a url that leads to a server.

    Examples
    --------
    >>> is_url("https://example.org/1.ome.zarr"), is_url("file:///data/1.ome.zarr"), is_url("1.ome.zarr")
    (True, False, False)
    """
    return _URL.match(os.fspath(place)) is not None


def joined(base: Path, place: str) -> str:
    """A place that may be relative to a folder; a url is not."""
    return place if is_url(place) else str(base / place)


def local_path(url: str | os.PathLike[str]) -> Path:
    """The absolute path of a local path or ``file://`` url.

    Raises
    ------
    OptionError
        Any other scheme.
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text or not text:
        raise OptionError(f"{text!r} is not a local path", mend="Give a path or a file:// url.")
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 (resolve() would follow links)
