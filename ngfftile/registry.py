"""Names that stand for functions: built-in names, and ``package.module:function``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ngfftile.errors import OptionError


def resolve(name: str, known: Mapping[str, str], what: str) -> Callable[..., Any]:
    """The function that a name stands for.

    Parameters
    ----------
    name
        A key of ``known``, or ``package.module:function``.
    known
        Built-in names, each with its ``package.module:function``.
    what
        The word for the error's message: filter, reader.

    Raises
    ------
    OptionError
        No such name, module or function; or it cannot be called.

    Examples
    --------
    >>> resolve("sqrt", {"sqrt": "math:sqrt"}, "function")(9)
    3.0
    """
    place = known.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        raise OptionError(
            f"{what} {name!r} is not known", mend=f"Use one of {', '.join(known)}, or package.module:function."
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: no name, a relative one
        raise OptionError(f"{what} {name!r} cannot be imported ({error})", mend="Check the module's name.") from error
    if not callable(found):
        raise OptionError(f"{what} {name!r} is not a function", mend="Name a function of that module.")
    function: Callable[..., Any] = found
    return function
