"""What a conversion will write, told from the headers of the source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngfftile import cluster
from ngfftile.codecs import Codec
from ngfftile.geometry import Mpp
from ngfftile.pyramid import PyramidPlan
from ngfftile.sources import SourceInfo, open_source

# Measured by benchmarks/convert.py on stained slides, JPEG sources: zstd-3 stores 0.2 to 0.4 of the raw bytes.
LIKELY_RATIO = 0.4
_BASE_BYTES = 220 << 20  # the interpreter with zarr, dask and the codecs loaded


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write; made from headers only, printed by ``print(plan)``.

    Parameters
    ----------
    source
        What the slide's headers say.
    pyramid
        Levels, chunks, shards.
    codec
        Compression.
    mpp, mpp_source
        Micrometres per pixel that the store will state, and where they come from.
    workers
        Tasks at one time, for the estimate of memory.
    """

    source: SourceInfo
    pyramid: PyramidPlan
    codec: Codec
    mpp: Mpp | None
    mpp_source: str
    associated: bool
    workers: int

    @property
    def objects(self) -> int:
        """Files or objects: shards, and metadata."""
        metadata = 2 + len(self.pyramid.levels) + bool(self.source.icc)
        sizes = list(self.source.associated.values()) if self.associated else []
        side = self.pyramid.shard
        around = sum(2 + -(-size.x // side) * -(-size.y // side) for size in sizes) + bool(sizes)
        return self.pyramid.objects + metadata + around

    @property
    def likely_bytes(self) -> int:
        """Bytes to expect for a stained slide; glass takes less, noise up to `PyramidPlan.raw_bytes`."""
        return int(self.pyramid.raw_bytes * LIKELY_RATIO)

    @property
    def peak_bytes(self) -> int:
        """Memory at the worst: what each worker holds, and what waits in the tree and along shard borders."""
        shard = self.pyramid.shard_bytes
        waiting = sum(3 * shard // 4 for size in self.pyramid.levels if max(size.x, size.y) > self.pyramid.shard)
        return _BASE_BYTES + self.workers * (5 * shard // 2 + waiting) + self.pyramid.seam_bytes

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        pyramid = self.pyramid
        return {
            "source": str(self.source.files[0]),
            "mpp_x": self.mpp.x if self.mpp else None,
            "mpp_y": self.mpp.y if self.mpp else None,
            "mpp_source": self.mpp_source,
            "dtype": pyramid.dtype,
            "channels": pyramid.channels,
            "chunk": pyramid.chunk,
            "shard": pyramid.shard,
            "codec": self.codec.name,
            "levels": [
                {
                    "level": k,
                    "width": size.x,
                    "height": size.y,
                    "shards": pyramid.grid(k).x * pyramid.grid(k).y * pyramid.planes,
                    "chunks": -(-size.x // pyramid.chunk) * -(-size.y // pyramid.chunk) * pyramid.planes,
                }
                for k, size in enumerate(pyramid.levels)
            ],
            "objects": self.objects,
            "raw_bytes": pyramid.raw_bytes,
            "likely_bytes": self.likely_bytes,
            "peak_memory_bytes": self.peak_bytes,
            "workers": self.workers,
            "notes": list(self.source.notes),
        }

    def __str__(self) -> str:
        facts = self.to_dict()
        mpp = f"{self.mpp} µm/px ({self.mpp_source})" if self.mpp else f"unknown: {self.mpp_source}"
        lines = [
            f"{self.source.files[0].name}: {self.source.format}, read by {self.source.reader}",
            f"  pixels       {self.pyramid.size}, {facts['channels']} x {facts['dtype']}",
            f"  mpp          {mpp}",
            f"  chunk, shard {facts['chunk']}, {facts['shard']}; {facts['codec']}",
            "  level      size             shards   chunks",
        ]
        for level in facts["levels"]:
            size = f"{level['width']} x {level['height']}"
            lines.append(f"  {level['level']:<10} {size:<16} {level['shards']:<8} {level['chunks']}")
        lines += [
            f"  objects      {facts['objects']}",
            f"  bytes        about {human_bytes(self.likely_bytes)}, at most {human_bytes(facts['raw_bytes'])}",
            f"  peak memory  {human_bytes(self.peak_bytes)} with {self.workers} workers",
        ]
        return "\n".join(lines + [f"  note         {note}" for note in self.source.notes])


def human_bytes(count: int) -> str:
    """A count of bytes for people."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def plan(
    source: str | Path,
    *,
    chunk: int = 256,
    shard: int = 4096,
    codec: str = "zstd",
    mpp: float | None = None,
    associated: bool = True,
    workers: int | None = None,
    reader: str | None = None,
) -> ConversionPlan:
    """Read a slide's headers, and tell what `convert` with the same arguments will write.

    Parameters
    ----------
    source
        A slide file, or a folder of DICOM files.
    chunk, shard
        Sides of the compressed unit and of the stored object, in pixels; powers of two.
    codec
        ``zstd`` or ``zstd:LEVEL``; lossless.
    mpp
        Micrometres per pixel of level 0, in place of what the file says.
    associated
        Whether the label, macro and thumbnail come along.
    workers
        Tasks at one time; by default the cores there are.
    reader
        The only reader to try; by default the content decides.

    Raises
    ------
    MissingError, SourceError, OptionError
        Nothing there; no reader takes it; an argument that cannot be meant.

    Examples
    --------
    >>> from ngfftile import synthetic
    >>> print(plan(synthetic.write_svs("small.svs", 600, 400, seed=1)))  # doctest: +ELLIPSIS
    small.svs: Aperio SVS, read by tiff
      pixels       600 x 400, 3 x uint8
      mpp          0.25 µm/px (aperio.MPP)
    ...
    """
    return plan_for(open_source(source, reader).info, chunk, shard, codec, mpp, associated, workers)


def plan_for(
    info: SourceInfo, chunk: int, shard: int, codec: str, mpp: float | None, associated: bool, workers: int | None
) -> ConversionPlan:
    """The plan of an open source; see `plan`."""
    cluster.check("threads", workers)
    pyramid = PyramidPlan(
        info.size,
        len(info.channels),
        info.dtype,
        depth=3 if info.rgb else 1,
        fill=info.background,
        chunk=chunk,
        shard=shard,
        tile=info.tile,
    )
    at, said = (Mpp.of(mpp), "given by the user") if mpp is not None else (info.mpp, info.mpp_source)
    return ConversionPlan(info, pyramid, Codec.named(codec), at, said, associated, workers or cluster.default_workers())
