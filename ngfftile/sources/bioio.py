"""Whatever an installed plug-in of bioio reads; and an example of a reader that comes by an entry point.

A package of yours brings a reader of its own with four lines in its pyproject.toml and one function::

    [project.entry-points."ngfftile.sources"]
    bioio = "ngfftile.sources.bioio:open_bioio"

bioio chooses its plug-in by the file's name, gives dask arrays (t, c, z, y, x), and counts sizes in micrometres.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ngfftile.errors import OptionError, SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import PALETTE, RGB, Channel
from ngfftile.sources import metadata
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo, unchanged, version


def open_bioio(path: Path, scene: int = 0) -> Source:
    """Open a file with the bioio plug-in that takes it.

    Raises
    ------
    RefusedError
        bioio is not installed, or no plug-in of it reads the file.
    OptionError
        The file has no such scene.
    SourceError
        A plug-in took it, and gives what is no slide.
    """
    try:
        from bioio import BioImage
    except ImportError as error:
        raise RefusedError("needs the package bioio", str(path), "pip install bioio, and its plug-in.") from error
    try:
        image = BioImage(path)
    # The plug-ins are many, and fail with any error; that there is none for the file is one of bioio's own.
    except Exception as error:
        known = type(error).__name__ == "UnsupportedFileFormatError"
        why = "no plug-in of bioio that is installed reads it" if known else f"bioio cannot open it ({error})"
        raise RefusedError(why, str(path)) from error
    try:
        return BioioSource(path, image, scene)
    except (SourceError, OptionError):
        raise
    except Exception as error:
        raise SourceError(f"bioio cannot read its headers ({error})", str(path), "The file is damaged.") from error


@lru_cache(maxsize=8)
def _again(path: Path, before: tuple[int, int], scene: int) -> Source:
    """The source in another process, opened once there for all its tasks."""
    return open_bioio(unchanged(path, before), scene)


class BioioSource:
    """A scene as bioio gives it; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path, image: Any, scene: int) -> None:
        if not 0 <= scene < len(image.scenes):
            raise OptionError(f"scene is {scene}", str(path), f"Use one of 0 to {len(image.scenes) - 1}.")
        image.set_scene(scene)
        self._path = path
        # Colour samples are an axis of their own, S, where there are any.
        self._pixels = image.get_image_dask_data("TCZYXS" if "S" in image.dims.order else "TCZYX")
        self._lock = Lock()
        self.info = _describe(path, image, self._pixels, scene)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, version(self._path), self.info.scene)

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Pixels of level 0; see `Source.read`."""
        info = self.info
        rest, z = divmod(plane, info.z)
        t, c = divmod(rest, len(info.channels) // info.depth)
        wanted = self._pixels[t, c, z, region.y : region.bottom, region.x : region.right]
        try:
            # A plug-in may share one open file among its tasks.
            with self._lock:
                pixels: Array = wanted.compute(scheduler="synchronous")
        except Exception as error:
            place = f"x {region.x}, y {region.y}, {region.width} x {region.height} of plane {plane}"
            what = f"{place} cannot be read ({error})"
            if damaged is None:
                raise SourceError(what, str(self._path), "The file is damaged there.") from error
            damaged(region, what)
            out[...] = info.background
        else:
            out[...] = pixels if pixels.ndim == 3 else pixels[..., None]

    def associated(self, role: str) -> Array:
        """None: bioio has no place for them."""
        raise OptionError(f"no {role} image by bioio", str(self._path), "Leave it out.")


def _describe(path: Path, image: Any, pixels: Any, scene: int) -> SourceInfo:
    t, c, z, height, width, *samples = pixels.shape
    kind = np.dtype(pixels.dtype)
    if samples not in ([], [3]) or kind.kind not in "buif":
        raise SourceError(f"{samples or [1]} samples of {kind} per pixel", str(path))
    rgb = bool(samples)
    sizes = image.physical_pixel_sizes
    x, y, step = (metadata.number(str(size)) for size in (sizes.X, sizes.Y, sizes.Z))
    mpp, mpp_source = metadata.plausible(Mpp(x, y or x) if x else None, "bioio's physical_pixel_sizes")
    names = [str(name) for name in image.channel_names or ()]
    names = names if len(names) == c else [f"channel {i}" for i in range(c)]
    channels = tuple(Channel(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(names))
    if rgb:
        channels = RGB if c == 1 else tuple(Channel(f"{name} {one.name}", one.color) for name in names for one in RGB)
    interval: Any = getattr(image, "time_interval", None)
    size = Size(width, height)
    return SourceInfo(
        reader="bioio",
        format=f"bioio ({type(image.reader).__module__.partition('.')[0]})",
        vendor="bioio",
        size=size,
        channels=channels,
        rgb=rgb,
        dtype=kind.name,
        tile=Size(*(int(side) for side in (pixels.chunksize[4], pixels.chunksize[3]))),
        mpp=mpp,
        mpp_source=mpp_source,
        levels=(size,),
        files=(path,),
        z=z,
        t=t,
        z_step=step if z > 1 else None,
        t_step=interval.total_seconds() if interval is not None and t > 1 else None,
        scenes=tuple(image.scenes) if len(image.scenes) > 1 else (),
        scene=scene,
    )
