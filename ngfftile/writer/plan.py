"""What a conversion will write, told from the headers of the source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ngfftile import cluster, codecs, ngff
from ngfftile.codecs import Codec, Jpeg, Zstd
from ngfftile.errors import OptionError
from ngfftile.geometry import Mpp
from ngfftile.pyramid import PyramidPlan, Shard
from ngfftile.resample import METHODS
from ngfftile.shards import MOST_CHUNK_BYTES, Layout
from ngfftile.sources import SourceInfo, open_source

# Measured by benchmarks/convert.py on stained slides, JPEG sources: zstd-3 stores 0.2 to 0.4 of the raw bytes.
LIKELY_RATIO = 0.4
_BASE_BYTES = 200 << 20  # the interpreter with zarr, dask, the codecs and every reader loaded: 196 MiB
# Named sets of options, for those who read the store.
PROFILES: dict[str, dict[str, Any]] = {
    "web": {"chunk": 512},  # fewer requests for a viewer
    "qupath": {"ngff": "0.4", "chunk": 1024, "codec": "blosc", "planar": True},  # what Bio-Formats reads
    "archive": {"codec": "source"},
}
IDENTIFYING = frozenset(["label", "macro"])  # images of the glass, with what is written on it
DAMAGED = ("fail", "fill")
_LOSSY, _ABOVE = "lossy: all levels are JPEG of quality", "levels above 0 are JPEG of quality"


@dataclass(frozen=True, slots=True)
class Options:
    """What a user chose, checked; see `plan`."""

    chunk: int
    shard: int
    codec: str
    ngff: str
    method: str | None
    planar: bool
    mpp: float | None
    associated: bool
    deidentify: bool
    damaged: str
    sharded: bool = True

    @classmethod
    def of(cls, profile: str | None, chosen: dict[str, Any]) -> Options:
        """The options that were chosen, the profile's where none was, else the defaults."""
        if profile is not None and profile not in PROFILES:
            raise OptionError(f"profile is {profile!r}", mend=f"Use one of {', '.join(PROFILES)}.")
        found = {"planar": False} | PROFILES.get(profile or "", {}) | {k: v for k, v in chosen.items() if v is not None}
        version = found.setdefault("ngff", ngff.VERSION)
        if version not in ngff.VERSIONS:
            raise OptionError(f"ngff is {version!r}", mend=f"Use one of {', '.join(ngff.VERSIONS)}.")
        found.setdefault("codec", "blosc" if version == "0.4" else "zstd")
        chunk = found.setdefault("chunk", 256)
        if chunk < 16 or chunk & (chunk - 1):
            raise OptionError(f"chunk is {chunk}", "plan", "Use a power of two from 16, such as 256.")
        # Without shards each chunk is an object; the unit of work stays.
        found["sharded"] = version != "0.4" and found.get("shard") != 0
        if version == "0.4" and found.get("shard"):
            raise OptionError("OME-Zarr 0.4 has no shards", "plan", "Leave --shard out, or use --ngff 0.5.")
        found["shard"] = found.get("shard") or max(4096, chunk)
        for name, allowed in (("method", METHODS), ("damaged", DAMAGED)):
            if found.get(name) is not None and found[name] not in allowed:
                raise OptionError(f"{name} is {found[name]!r}", mend=f"Use one of {', '.join(allowed)}.")
        given: dict[str, Any] = {"method": None, "mpp": None} | found
        return cls(**given)


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write; made from headers only, printed by ``print(plan)``.

    Parameters
    ----------
    source
        What the slide's headers say.
    pyramid
        Levels, chunks, shards.
    options
        What the user chose.
    codec, coarse
        Compression of level 0, and of the levels that we make.
    method
        How four pixels become one.
    mpp, mpp_source
        Micrometres per pixel that the store will state, and where they come from.
    workers
        Tasks at one time, for the estimate of memory.
    """

    source: SourceInfo
    pyramid: PyramidPlan
    options: Options
    codec: Codec
    coarse: Codec
    method: str
    mpp: Mpp | None
    mpp_source: str
    workers: int

    @property
    def codec_name(self) -> str:
        """What the user would ask for."""
        return self.codec.name if not self.keeps else f"{self.options.codec} ({self.codec.name}; {self.coarse.name})"

    @property
    def keeps(self) -> bool:
        """Whether level 0 keeps the source's own compressed tiles."""
        return self.options.codec.startswith("source")

    @property
    def scaled(self) -> bool:
        """Whether kept tiles are decoded at half size for level 1, since that will be JPEG anyway."""
        # Of a slide one pixel high the other row of blocks is not of the picture.
        thick = min(self.pyramid.size.x, self.pyramid.size.y) > 1
        return (
            self.keeps and isinstance(self.codec, Jpeg) and not self.coarse.lossless and thick and self.method == "mean"
        )

    def readable(self, level: int) -> bool:
        """Whether a stored level gives back the very pixels that its parent was made of."""
        return self.layout(level).codec.lossless or (self.keeps and level == 0)

    def layout(self, level: int) -> Layout:
        """Of a level's array."""
        return self._layouts[level]

    @cached_property
    def _layouts(self) -> tuple[Layout, ...]:
        pyramid, options = self.pyramid, self.options
        first = Layout(
            pyramid.chunk,
            pyramid.shard,
            pyramid.depth,
            pyramid.fill,
            self.codec,
            pyramid.axes,
            options.planar,
            options.sharded,
            ngff.zarr_format(options.ngff),
        )
        levels = (replace(first, codec=self.coarse if k else self.codec) for k in range(len(pyramid.levels)))
        # The index of a shard has 16 bytes for every chunk that it could hold; beside kept tiles that would count.
        small = (_enough(first, max(size.x, size.y)) if self.keeps else first.shard for size in pyramid.levels)
        return tuple(replace(layout, shard=shard) for layout, shard in zip(levels, small, strict=True))

    def keys(self, shard: Shard) -> list[str]:
        """Names of the objects that hold a shard."""
        at, region = self.pyramid.place(shard), self.pyramid.region(shard)
        return self.layout(shard.level).objects(str(shard.level), at, region)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: of the slide, and of what the codec loses."""
        inherited = tuple(note for note in self.source.notes if not note.startswith((_LOSSY, _ABOVE)))
        if not isinstance(self.coarse, Jpeg) or (self.keeps and len(self.pyramid.levels) == 1):
            return inherited
        quality = self.coarse.quality
        above = f"{_ABOVE} {quality}, with loss; --codec source:zstd keeps them without"
        return (*inherited, above if self.keeps else f"{_LOSSY} {quality}")

    @property
    def roles(self) -> list[str]:
        """Associated images that come along."""
        if not self.options.associated:
            return []
        dropped = IDENTIFYING if self.options.deidentify else frozenset()
        return [role for role in self.source.associated if role not in dropped]

    @property
    def objects(self) -> int:
        """Files or objects of pixels, and of metadata; labels that come along not counted."""
        each = 2 if self.options.ngff == "0.4" else 1
        sizes = [self.source.associated[role] for role in self.roles]
        around = sum(2 * each + self._count(size.x, size.y) for size in sizes) + each * bool(sizes)
        # The root, the manifest, the levels' metadata; OME-XML and its group, and the ICC profile.
        metadata = each * (3 + len(self.pyramid.levels)) + 1 + bool(self.source.icc)
        planes = self.pyramid.planes
        return sum(self._count(k.x, k.y) for k in self.pyramid.levels) * planes + around + metadata

    def _count(self, width: int, height: int) -> int:
        """Objects of one plane of a level."""
        side = self.pyramid.shard if self.options.sharded else self.pyramid.chunk
        planes = 1 if self.options.sharded or not self.options.planar else self.pyramid.depth
        return -(-width // side) * -(-height // side) * planes

    @property
    def likely_bytes(self) -> int:
        """Bytes to expect for a stained slide; glass takes less, noise up to `PyramidPlan.raw_bytes`."""
        if self.keeps:
            return int(sum(f.stat().st_size for f in self.source.files) * 1.35)
        return int(self.pyramid.raw_bytes * (LIKELY_RATIO if self.codec.lossless else 0.1))

    @property
    def peak_bytes(self) -> int:
        """Memory at the worst: what each worker holds, and what waits in the tree and along shard borders."""
        pyramid, shard, workers = self.pyramid, self.pyramid.shard_bytes, self.workers
        raw, upper = pyramid.raw_bytes, pyramid.raw_bytes // 4  # of all levels, and of all means
        large = sum(max(size.x, size.y) > pyramid.shard for size in pyramid.levels)
        # Three of four means wait on each level; the fourth, and the one that it goes into.
        means = min(workers * (large * 3 * shard // 4 + shard // 2), upper)
        bands = workers * shard * pyramid.band_rows(0) // pyramid.shard
        # Shards compressed, of pixels that cannot be; of kept tiles there are no more than the source has.
        kept = sum(f.stat().st_size for f in self.source.files if f.is_file()) + upper
        packed = min(workers * shard, kept if self.keeps else raw)
        return _BASE_BYTES + bands + means + packed + pyramid.seam_bytes + self.source.held

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
            "axes": "".join(pyramid.axes),
            "shape": list(pyramid.shape(0)),
            "scenes": list(self.source.scenes),
            "ngff": self.options.ngff,
            "chunk": pyramid.chunk,
            "shard": pyramid.shard if self.options.sharded else None,
            "codec": self.codec_name,
            "method": self.method,
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
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        facts = self.to_dict()
        mpp = f"{self.mpp} µm/px ({self.mpp_source})" if self.mpp else f"unknown: {self.mpp_source}"
        stack = "".join(f" x {n} {axis}" for axis, n in (("z", self.pyramid.z), ("t", self.pyramid.t)) if n > 1)
        shard = f"shard {facts['shard']}" if self.options.sharded else "no shards"
        lines = [
            f"{self.source.files[0].name}: {self.source.format}, read by {self.source.reader}",
            f"  pixels       {self.pyramid.size}{stack}, {facts['channels']} x {facts['dtype']}",
            f"  mpp          {mpp}",
            f"  OME-Zarr     {self.options.ngff}, chunk {facts['chunk']}, {shard}; {self.codec_name}; {self.method}",
            "  level      size             shards   chunks",
        ]
        for level in facts["levels"]:
            size = f"{level['width']} x {level['height']}"
            lines.append(f"  {level['level']:<10} {size:<16} {level['shards']:<8} {level['chunks']}")
        lines += [
            f"  objects      {facts['objects']}",
            f"  bytes        about {human_bytes(self.likely_bytes)}, at most {human_bytes(facts['raw_bytes'])}",
            f"  peak memory  at most {human_bytes(self.peak_bytes)} with {counted(self.workers, 'worker')}",
        ]
        if self.source.scenes:
            lines.append(
                f"  scene        {self.source.scene} of {len(self.source.scenes)}: {', '.join(self.source.scenes)}"
            )
        return "\n".join(lines + [f"  note         {note}" for note in self.notes])


def human_bytes(count: int) -> str:
    """A count of bytes for people."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def counted(count: int, noun: str) -> str:
    """So many of something.

    Examples
    --------
    >>> counted(1, "tile"), counted(2, "tile")
    ('1 tile', '2 tiles')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def plan(
    source: str | Path,
    *,
    chunk: int | None = None,
    shard: int | None = None,
    codec: str | None = None,
    ngff: str | None = None,
    profile: str | None = None,
    method: str | None = None,
    planar: bool | None = None,
    mpp: float | None = None,
    associated: bool = True,
    deidentify: bool = False,
    damaged: str = "fail",
    workers: int | None = None,
    reader: str | None = None,
    scene: int | None = None,
    allow_sparse: bool = False,
) -> ConversionPlan:
    """Read a slide's headers, and tell what `convert` with the same arguments will write.

    Parameters
    ----------
    source
        A slide file, a folder of DICOM files, or an OME-Zarr store.
    chunk, shard
        Sides of the compressed unit and of the stored object, in pixels; powers of two, by default 256 and 4096.
        Shard 0 stores each chunk as an object of its own.
    codec
        ``zstd`` (the default), ``zstd:LEVEL`` and ``blosc`` (the default of version 0.4) are lossless. ``jpeg:QUALITY``
        is not. ``source`` keeps the source's own compressed tiles in level 0, bit for bit, and makes the other levels
        JPEG of the source's quality; ``source:zstd`` keeps those lossless. Only zarr-python, with the package
        imagecodecs-zarr, reads JPEG in Zarr.
    ngff
        Version of OME-Zarr: 0.5, 0.4 (for QuPath and Bio-Formats) or 0.6.
    profile
        Options for a purpose, where none are given: ``web`` (chunk 512), ``qupath`` (0.4, chunk 1024, blosc, planar),
        ``archive`` (codec source).
    method
        How four pixels become one: ``mean``, ``nearest``, or ``mode`` (the commonest). By default the mean; the mode
        for labels and for yes-or-no pixels.
    planar
        Chunks of one channel each, where RGB has three.
    mpp
        Micrometres per pixel of level 0, in place of what the file says.
    associated
        Whether the label, macro and thumbnail come along.
    deidentify
        Leave out the label and macro images, and the properties that can name a person.
    damaged
        What becomes of tiles that do not decode: ``fail`` names the first and stops; ``fill`` makes them background,
        and records their places.
    workers
        Tasks at one time; by default the cores there are.
    reader
        The only reader to try; by default the content decides.
    scene
        Which slide of a file that holds several.
    allow_sparse
        Whether the file may have more than 1,000 pixels for each of its bytes: nearly all of it empty, on purpose.

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
    options = Options.of(
        profile,
        {
            "chunk": chunk,
            "shard": shard,
            "codec": codec,
            "ngff": ngff,
            "method": method,
            "planar": planar,
            "mpp": mpp,
            "associated": associated,
            "deidentify": deidentify,
            "damaged": damaged,
        },
    )
    return plan_for(open_source(source, reader, scene, allow_sparse=allow_sparse).info, options, workers)


def plan_for(info: SourceInfo, options: Options, workers: int | None = None) -> ConversionPlan:
    """The plan of an open source; see `plan`."""
    cluster.check("threads", workers)
    codec, coarse = _codecs(info, options)
    dtype = np.dtype(info.dtype)
    for one in (codec, coarse):  # what they cannot hold is said now, not by the conversion
        _ = one.zarr2(dtype) if options.ngff == "0.4" else one.zarr3(dtype)
    decoded = options.chunk**2 * info.depth * dtype.itemsize
    if decoded > MOST_CHUNK_BYTES:
        raise OptionError(
            f"a chunk of {options.chunk} would have {decoded} bytes", "plan", f"At most {MOST_CHUNK_BYTES} are read."
        )
    pyramid = PyramidPlan(
        info.size,
        len(info.channels),
        info.dtype,
        depth=info.depth,
        fill=info.background,
        tile=info.tile,
        z=info.z,
        t=info.t,
        **_sides(info, options),
    )
    at, said = (Mpp.of(options.mpp), "given by the user") if options.mpp is not None else (info.mpp, info.mpp_source)
    method = options.method or ("mode" if info.label or info.dtype == "bool" else "mean")
    if method == "mean" and info.dtype == "bool":
        raise OptionError("yes-or-no pixels have no mean", str(info.files[0]), "Use --method mode or nearest.")
    workers = workers or cluster.default_workers()
    return ConversionPlan(info, pyramid, options, codec, coarse, method, at, said, workers)


def _codecs(info: SourceInfo, options: Options) -> tuple[Codec, Codec]:
    """Of level 0, and of the levels that we make."""
    if not options.codec.startswith("source"):
        codec = codecs.named(options.codec)
        codec = _coloured(codec, info, planar=options.planar) if isinstance(codec, Jpeg) else codec
        return codec, codec
    if options.codec not in {"source", "source:zstd"}:
        raise OptionError(f"codec is {options.codec!r}", "codec", "Use source, or source:zstd.")
    why = info.recompress if info.encoding is None else ""
    if options.ngff == "0.4":
        why = "OME-Zarr 0.4 has no codec for them"
    elif not options.sharded or options.planar:
        why = "chunks without shards, or of one channel, were asked for"
    if why or info.encoding is None:
        raise OptionError(
            f"its compressed tiles cannot be kept: {why}", str(info.files[0]), "Use --codec zstd, or jpeg:Q."
        )
    if options.codec == "source:zstd" or info.dtype != "uint8":
        return info.encoding, Zstd()
    like = info.encoding if isinstance(info.encoding, Jpeg) else Jpeg(80, subsampling="420")
    return info.encoding, _coloured(replace(like, tables=None, space="ycbcr"), info).sharing()


def _enough(layout: Layout, longest: int) -> int:
    """The side of a shard that holds a whole small level."""
    side = layout.chunk
    while side < min(longest, layout.shard):
        side *= 2
    return side


def _coloured(codec: Jpeg, info: SourceInfo, *, planar: bool = False) -> Jpeg:
    """JPEG for chunks of three colours, or of one channel."""
    if info.dtype != "uint8":
        raise OptionError(f"codec jpeg cannot hold {info.dtype}", str(info.files[0]), "Use --codec zstd.")
    return codec if info.rgb and not planar else replace(codec, space="grayscale", subsampling="444")


def _sides(info: SourceInfo, options: Options) -> dict[str, int]:
    """Chunk and shard; with the source's own tiles a chunk is a tile."""
    if not options.codec.startswith("source"):
        return {"chunk": options.chunk, "shard": options.shard}
    side = info.tile.x
    return {"chunk": side, "shard": side << max(0, (max(options.shard, side) // side).bit_length() - 1)}
