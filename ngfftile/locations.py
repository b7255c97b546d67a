"""Where things are: paths and urls."""

from __future__ import annotations

import os
from pathlib import Path

from ngfftile.errors import OptionError


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
