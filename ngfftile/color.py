"""Colours as they were meant: pixels through the slide's ICC profile, by littlecms (imagecodecs has it)."""

from __future__ import annotations

from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ngfftile.errors import StoreError

Array = NDArray[Any]
SPACES = ("stored", "srgb")


@cache
def _srgb() -> bytes:
    profile: bytes = imagecodecs.cms_profile("srgb")
    return profile


def to_srgb(pixels: Array, profile: bytes) -> Array:
    """Pixels (3, y, x) of uint8 or uint16 in the space of an ICC profile, as sRGB; perceptual intent.

    Raises
    ------
    StoreError
        A profile that littlecms refuses.
    """
    if not pixels.size:
        return pixels
    interleaved = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    try:
        shown = imagecodecs.cms_transform(interleaved, profile, _srgb(), colorspace="rgb", outcolorspace="rgb")
    except (imagecodecs.CmsError, ValueError) as error:
        raise StoreError(
            f"its ICC profile cannot be used ({error})", mend='Read the colours as stored: color="stored".'
        ) from error
    return np.ascontiguousarray(shown.transpose(2, 0, 1))
