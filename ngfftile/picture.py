"""Pictures of what was kept, since people look before they read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ngfftile.geometry import Mpp, Size
from ngfftile.ngff import Channel

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


def composite(pixels: NDArray[Any], channels: Sequence[Channel]) -> NDArray[np.uint8]:
    """Channels (c, y, x) in their own colours, added up within their display windows: (height, width, 3)."""
    total = np.zeros((*pixels.shape[1:], 3), np.float32)
    for i, plane in enumerate(pixels):
        channel = channels[i] if i < len(channels) else Channel(str(i))
        low, high = channel.window or (float(plane.min()), float(plane.max()) or 1.0)
        share = np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
        total += share[..., None] * np.frombuffer(bytes.fromhex(channel.color), np.uint8)
    return np.clip(total, 0, 255).astype(np.uint8)


def card(
    title: str,
    thumbnail: NDArray[np.uint8],
    facts: Mapping[str, str],
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
) -> str:
    """A slide as HTML for a notebook: thumbnail, facts, and a table."""
    held = io.BytesIO()
    Image.fromarray(thumbnail).save(held, "PNG")
    about = "".join(f"<div><b>{escape(name)}</b> {escape(value)}</div>" for name, value in facts.items())
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div style="display:flex;gap:1.5em;align-items:flex-start">'
        f'<img alt="thumbnail" src="data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}">'
        f'<div><h4 style="margin:0 0 .4em">{escape(title)}</h4>{about}'
        f'<table style="margin-top:.6em"><tr>{head}</tr>{body}</table></div></div>'
    )
