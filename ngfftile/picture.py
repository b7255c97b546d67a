"""Pictures of what was kept, since people look before they read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ngfftile.geometry import Mpp, Size

_INK = (16, 110, 60)
_STRIP = 26  # pixels of the caption below the slide


def kept_tiles(
    thumbnail: NDArray[np.uint8], size: Size, boxes: NDArray[np.float64], caption: str, mpp: Mpp | None
) -> Image.Image:
    """Draw tiles over a slide's thumbnail, with a caption and a scale bar.

    Parameters
    ----------
    thumbnail
        (height, width, 3) of the whole slide.
    size
        Of level 0, in pixels.
    boxes
        (n, 4): x, y, width, height of each tile in level-0 pixels.
    mpp
        Of level 0; None leaves the scale bar out.
    """
    height, width = thumbnail.shape[:2]
    scale = np.array([width / size.x, height / size.y] * 2)
    base = Image.fromarray(thumbnail).convert("RGBA")
    cover = Image.new("RGBA", base.size)
    draw = ImageDraw.Draw(cover)
    edge = min(base.size) > 256
    for x, y, w, h in boxes * scale:
        corners = (x, y, min(x + w, width) - 1, min(y + h, height) - 1)
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            draw.rectangle(corners, (*_INK, 40), (*_INK, 255) if edge and w >= 4 and h >= 4 else None)
    page = Image.new("RGB", (max(width, 420), height + _STRIP), "white")
    page.paste(Image.alpha_composite(base, cover).convert("RGB"))
    text = ImageDraw.Draw(page)
    text.text((6, height + 5), caption, fill="black", font=ImageFont.load_default(14))
    if mpp is not None:
        _scale_bar(text, page.width, height, mpp.x * size.x / width)
    return page


def _scale_bar(draw: Any, right: int, top: int, mpp: float) -> None:
    lengths: Iterable[int] = (10**k * m for k in range(1, 6) for m in (1, 2, 5))
    fitting = [micrometres for micrometres in lengths if micrometres / mpp <= 140]
    if not fitting:
        return
    length = fitting[-1]
    x0, y = right - 8 - round(length / mpp), top + _STRIP - 5
    draw.line((x0, y, right - 8, y), "black", 3)
    name = (
        f"{length / 1000:g} mm" if length >= 1000 else f"{length} um"
    )  # the font that comes with Pillow has no micro sign
    draw.text(((x0 + right - 8) / 2, y - 3), name, fill="black", font=ImageFont.load_default(12), anchor="mb")
