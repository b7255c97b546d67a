"""What can go wrong, and what to do about it.

::

    NgfftileError                    every error that ngfftile raises on purpose
    |- OptionError (ValueError)      an argument that cannot be meant: correct the call        exit 2
    |- MissingError (FileNotFoundError)  nothing there: correct the path                       exit 2
    |- ExistsError (FileExistsError) the target is taken: `overwrite`, or another target       exit 2
    |- ResolutionError (LookupError) no level has, or can give, that resolution                exit 2
    |- ClusterError (ConnectionError)  a scheduler or its workers are lost: the same call goes on  exit 2
    |- SourceError (ValueError)      a slide that is damaged, hostile or of no known format    exit 1
    |- StoreError (OSError)          an OME-Zarr store that is damaged, incomplete or foreign  exit 1

Each message has three parts: what is wrong (the value found, the values allowed), where (url, level, region), and
how to mend it. The cause is kept in ``__cause__``.
"""

from __future__ import annotations

from typing import ClassVar


class NgfftileError(Exception):
    """Root of all errors that ngfftile raises on purpose.

    Parameters
    ----------
    what
        What is wrong: the value found, and the values allowed.
    where
        The url, level or region it was found at.
    mend
        The call or option that mends it.

    Examples
    --------
    >>> str(OptionError("chunk is 100", where="plan", mend="Use a power of two, such as 256."))
    'plan: chunk is 100. Use a power of two, such as 256.'
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text.rstrip('.')}. {self.mend}".rstrip() if self.mend else text


class OptionError(NgfftileError, ValueError):
    """An argument or option that cannot be meant. Correct the call."""

    exit_code = 2


class MissingError(NgfftileError, FileNotFoundError):
    """There is nothing at that path or url. Correct it."""

    exit_code = 2


class ExistsError(NgfftileError, FileExistsError):
    """The target exists, or somebody else's unfinished conversion does. Use ``overwrite`` or another target."""

    exit_code = 2


class ResolutionError(NgfftileError, LookupError):
    """No stored level has, or can give, the resolution asked for. Ask for one that the message names."""

    exit_code = 2


class ClusterError(NgfftileError, ConnectionError):
    """A scheduler or its workers cannot be had, or are lost. Mend that; an interrupted conversion goes on."""

    exit_code = 2


class SourceError(NgfftileError, ValueError):
    """A slide file that is damaged, hostile, or of a format that no reader knows. The file must be mended."""


class StoreError(NgfftileError, OSError):
    """An OME-Zarr store that is damaged, incomplete, or not a slide. Convert it again, or verify it."""
