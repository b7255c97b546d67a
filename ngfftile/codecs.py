"""Named compression presets: what the zarr metadata say, and the function that does the same on one chunk.

The default is zstd with its own checksum. It finds every flipped byte, costs nothing that can be measured, and every
zstd reader checks it; without it most flipped bytes pass unseen. Shuffling is useless on bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from numcodecs import zstd
from zarr.codecs import ZstdCodec

from ngfftile.errors import OptionError


@dataclass(frozen=True, slots=True)
class Codec:
    """A compression preset.

    Parameters
    ----------
    level
        Of zstd, 1 to 22: higher is smaller and slower. 3 keeps the encoder as fast as a JPEG decoder.

    Examples
    --------
    >>> Codec.named("zstd:9")
    Codec(level=9)
    """

    level: int = 3

    @classmethod
    def named(cls, name: str) -> Codec:
        """From ``zstd`` or ``zstd:LEVEL``.

        Raises
        ------
        OptionError
            Any other name.
        """
        match = re.fullmatch(r"zstd(?::(\d+))?", name)
        level = int(match[1] or 3) if match else 0
        if not 1 <= level <= 22:
            raise OptionError(f"codec is {name!r}", where="codec", mend="Use zstd, or zstd:LEVEL with a level 1 to 22.")
        return cls(level)

    @property
    def name(self) -> str:
        """The name that `named` takes."""
        return f"zstd:{self.level}"

    def zarr(self) -> ZstdCodec:
        """The codec as zarr writes it into metadata."""
        return ZstdCodec(level=self.level, checksum=True)

    def encode(self, chunk: bytes | memoryview) -> bytes:
        """Compress one chunk; releases the GIL."""
        encoded: bytes = zstd.compress(chunk, self.level, True)
        return encoded
