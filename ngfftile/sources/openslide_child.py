"""OpenSlide, in a process of its own: a hostile file can end that. Run by `ngfftile.sources.child`, never imported.

It imports OpenSlide and numpy only, and nothing of ngfftile, so that it starts at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

Array = NDArray[Any]


class Served:
    """A slide that OpenSlide reads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._slide: openslide.OpenSlide | None = openslide.OpenSlide(path)
        color = self._slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = np.frombuffer(bytes.fromhex(color), np.uint8)

    @property
    def _open(self) -> openslide.OpenSlide:
        """The slide; after an error another handle, since one that failed once fails for ever."""
        if self._slide is None:
            try:
                self._slide = openslide.OpenSlide(self._path)
            except openslide.OpenSlideError as error:  # it could be opened before
                raise OSError(f"cannot be opened again ({error})") from error
        return self._slide

    def about(self) -> dict[str, Any]:
        """Sizes of the levels, the vendor's properties, and the colour profile in hexadecimal digits."""
        slide = self._open
        profile: bytes | None = None
        if slide.color_profile is not None:
            # `color_profile` is littlecms' own copy. Beside a picture stand the file's own bytes, and one pixel of the
            # coarsest level costs least.
            profile = slide.read_region((0, 0), slide.level_count - 1, (1, 1)).info.get("icc_profile")
        return {
            "levels": slide.level_dimensions,
            "properties": {name: str(value) for name, value in slide.properties.items()},
            "icc": profile and profile.hex(),
        }

    def read(self, out: memoryview, x: int, y: int, width: int, height: int) -> None:
        """Lay (height, width, 3) pixels of level 0 into memory."""
        try:
            rgba = np.asarray(self._open.read_region((x, y), 0, (width, height)))
        except openslide.OpenSlideError:
            self._slide = None
            raise
        opaque(rgba, self._background, np.frombuffer(out, np.uint8).reshape(height, width, 3))

    def associated(self, out: memoryview, role: str, width: int, height: int) -> None:
        """Lay an associated image into memory, (height, width, 3)."""
        try:
            rgba = np.asarray(self._open.associated_images[role])
        except openslide.OpenSlideError:
            self._slide = None
            raise
        opaque(rgba, self._background, np.frombuffer(out, np.uint8).reshape(height, width, 3))


def opaque(rgba: Array, background: Array, out: Array) -> None:
    """Lay what is transparent over the slide's background, as a viewer does; nearest integers."""
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        # Sample by sample: numpy's copy of three of four takes six times as long (benchmarks/isolate.py).
        for i in range(3):
            out[..., i] = rgba[..., i]
        return
    share = alpha[..., None].astype(np.float32) / 255
    out[...] = np.floor(rgba[..., :3] * share + background.astype(np.float32) * (1 - share) + 0.5)
