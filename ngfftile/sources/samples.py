"""What the samples of a TIFF's pixels are: colours, transparency, places in a palette, or channels of their own.

TIFF 6.0, sections 8 (palette), 16 (CMYK), 18 (associated alpha), 21 (YCbCr) and 23 (CIE L*a*b*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ngfftile.sources import streams
from ngfftile.sources.metadata import rounded
from ngfftile.sources.protocol import Array

_RGB = ("Red", "Green", "Blue")
_NAMES = {5: ("Cyan", "Magenta", "Yellow", "Black"), 8: ("L*", "a*", "b*"), 9: ("L*", "a*", "b*")}
_BLACK, _ALPHA = {0, 1, 4}, {1, 2}
# The codecs that carry a picture, and give red, green and blue whatever TIFF's tag says of the stored colours.
_PICTURES = streams.JPEG | streams.JPEG2000 | streams.WEBP | {22610, 34933, 34934, 50002, 52546}
_LUMA = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)


@dataclass(frozen=True, slots=True)
class Samples:
    """How decoded samples become pixels.

    Parameters
    ----------
    names
        Of the channels that one page holds; empty where it has no name.
    rgb
        Whether they are red, green and blue of one picture.
    dtype
        Of what comes out.
    convert
        From stored samples (height, width, sample) to channels; None where they are the same.
    notes
        What a user should know.
    """

    names: tuple[str, ...]
    rgb: bool
    dtype: np.dtype[Any]
    convert: Callable[[Array], Array] | None = None
    notes: tuple[str, ...] = ()


def refusal(page: Any) -> str:
    """Why the pixels of a page cannot be had, if they cannot."""
    dtype, photometric = page.dtype, int(page.photometric)
    if dtype is None:
        return f"pixels are of sample format {page.sampleformat} with {page.bitspersample} bits"
    if dtype.kind not in "buif" or (dtype.kind in "ui" and dtype.itemsize > 4):
        return f"pixels are {dtype}; bool, integers of up to 32 bits and floats are read"
    if photometric == 3:
        entries = np.asarray(page.colormap)
        fits = entries.shape == (3, 2 ** int(page.bitspersample)) and entries.dtype.kind == "u"
        return "" if fits and dtype.kind == "u" and page.samplesperpixel == 1 else "a palette that is no whole one"
    return _ycbcr_refusal(page) if photometric == 6 else ""


def _ycbcr_refusal(page: Any) -> str:
    if page.samplesperpixel != 3:
        return f"YCbCr of {page.samplesperpixel} samples"
    if int(page.compression) in _PICTURES:
        return "" if int(page.planarconfig) == 1 else "YCbCr in streams of one sample each"
    if page.is_subsampled or page.dtype != np.uint8:
        return "YCbCr that is not JPEG, its colours subsampled or not of 8 bits"
    return "" if _is_plain_ycbcr(page) else "YCbCr of coefficients or ranges other than the usual"


def understand(page: Any, *, values: bool) -> Samples:
    """What the samples of a page are, of which `refusal` says nothing.

    Parameters
    ----------
    page
        tifffile's.
    values
        Whether a palette only displays values of a measurement, as in ImageJ's files and stacks.
    """
    photometric, dtype, count = int(page.photometric), np.dtype(page.dtype), int(page.samplesperpixel)
    extra = tuple(int(e) for e in page.extrasamples)
    clear = dtype.kind == "u" and len(extra) == 1 and extra[0] in _ALPHA
    if photometric == 3 and not values:
        note = "colours of a palette are written out as RGB"
        return Samples(_RGB, True, np.dtype(np.uint8), partial(_looked_up, _palette(page)), (note,))
    if photometric in {2, 6} and count == 3 and not extra:
        plain = photometric == 2 or int(page.compression) in _PICTURES
        return Samples(_RGB, True, dtype, None if plain else _from_ycbcr)
    if clear and ((photometric == 2 and count == 4) or (photometric in {0, 1} and count == 2)):
        rgb = count == 4
        ground = np.iinfo(dtype).max if rgb else 0
        note = f"transparent pixels are laid over {'white' if rgb else '0'}"
        convert = partial(_laid_over, ground=ground, associated=extra[0] == 1)
        return Samples(_RGB if rgb else ("",), rgb, dtype, convert, (note,))
    names = _RGB if photometric == 2 else _NAMES.get(photometric, ())
    names = (*names, *("extra" for _ in extra))[:count] if names else ()
    names += ("",) * (count - len(names))
    return Samples(names, False, dtype, notes=tuple(_remarks(page, photometric, count)))


def _remarks(page: Any, photometric: int, count: int) -> list[str]:
    if photometric == 0:
        return ["low values are the bright ones (WhiteIsZero); they are kept as they are"]
    if photometric == 3:
        return ["its palette is left out, the values are kept"]
    if photometric in {2, 6}:
        return [f"its {count} samples per pixel are kept as channels"]
    if photometric not in _BLACK:
        return [f"colours are {getattr(page.photometric, 'name', photometric)}, and kept as channels"]
    return []


def _palette(page: Any) -> Array:
    """(entry, 3) uint8."""
    entries = np.asarray(page.colormap)
    # TIFF wants 16 bits; some writers put 8 in them, and no entry is then above 255 (libtiff's rule).
    return np.ascontiguousarray((entries >> 8 if entries.max() > 255 else entries).astype(np.uint8).T)


def _looked_up(palette: Array, pixels: Array) -> Array:
    found: Array = palette.take(pixels[..., 0], axis=0, mode="clip")
    return found


def _laid_over(pixels: Array, *, ground: int, associated: bool) -> Array:
    """What shows of a picture with alpha before a ground of one value; rounded half up."""
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    most = int(np.iinfo(pixels.dtype).max)
    if alpha.min(initial=most) == most:
        return colours
    wide, share = colours.astype(np.uint64), alpha.astype(np.uint64)
    behind = ground * (most - share)
    front = wide * most if associated else wide * share
    laid: Array = np.minimum((front + behind + most // 2) // most, most).astype(pixels.dtype)
    return laid


def _from_ycbcr(pixels: Array) -> Array:
    """ITU-R BT.601, as JFIF has it: red, green and blue, clipped to 8 bits."""
    y, blue, red = (pixels[..., i].astype(np.float32) for i in range(3))
    blue, red = blue - 128, red - 128
    mixed = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return rounded(np.clip(mixed, 0, 255))


def _is_plain_ycbcr(page: Any) -> bool:
    def ratios(code: int) -> list[float]:
        flat = page.tags[code].value if code in page.tags else ()
        return [flat[i] / (flat[i + 1] or 1) for i in range(0, len(flat), 2)]

    luma, reach = ratios(529), ratios(532)
    return np.allclose(luma or _LUMA, _LUMA, atol=1e-3) and np.allclose(reach or _FULL_RANGE, _FULL_RANGE)
