"""OME-Zarr stores as sources: to upgrade, rechunk or re-encode them, whoever wrote them."""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from ngfftile import ngff
from ngfftile.errors import MissingError, OptionError, SourceError, StoreError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import PALETTE, RGB, Channel, Multiscale
from ngfftile.shards import MOST_CHUNK_BYTES, LevelArray
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo
from ngfftile.store import LABELS, Store

_SAMPLES, _EDGE = 1024, 1 << 16
MOST_LEVELS, MOST_SIDE = 32, 1 << 31
# What arrays of others may be compressed by. Of what is not here, numcodecs' pickle runs code that a chunk holds.
_COMPRESSORS = {"zstd", "gzip", "zlib", "blosc", "lz4", "bz2", "lzma"}
_FILTERS = {"bytes", "transpose", "crc32c", "crc32", "adler32", "sharding_indexed", "delta", "shuffle", "bitround"}
_FILTERS |= {"fixedscaleoffset", "quantize", "astype", "packbits"}
_SECONDS = {"second": 1.0, "millisecond": 1e-3, "minute": 60.0, "hour": 3600.0}


def open_ngff(path: Path, scene: int = 0) -> Source:
    """Open an OME-Zarr image as a source.

    Raises
    ------
    RefusedError
        Not an OME-Zarr image.
    SourceError
        One that breaks the specification, or is damaged.
    """
    if scene:
        raise OptionError(f"scene is {scene}", str(path), "An OME-Zarr image has one scene, 0.")
    if not path.is_dir():
        raise RefusedError("not an OME-Zarr store", str(path))
    try:
        return NgffSource(path)
    except MissingError as error:
        raise RefusedError("not an OME-Zarr store", str(path)) from error
    except StoreError as error:
        raise SourceError(error.what, str(path), error.mend) from error
    # What ``ngfftile`` holds may be anything, in stores that others changed.
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise SourceError(f"its metadata are not of the form that ngfftile writes ({error!r})", str(path)) from error


@lru_cache(maxsize=8)
def _again(path: Path, tables: bytes) -> Source:
    source = open_ngff(path)
    if source.info.tables != tables:
        raise SourceError("the store changed while it was read", str(path), "Convert it again when it is at rest.")
    return source


class NgffSource:
    """Level 0 of an OME-Zarr image; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        attributes = self._store.attributes("")
        facts = attributes.get("ngfftile")
        self._facts: Mapping[str, Any] = facts if isinstance(facts, dict) else {}
        self._image = ngff.parse(attributes, str(path))
        if len(self._image.datasets) > MOST_LEVELS:
            raise StoreError(f"it has {len(self._image.datasets)} levels, {MOST_LEVELS} are the most", str(path))
        for dataset in self._image.datasets:
            _check_array(self._store, self._store.inside(dataset.path))
        self._compressor = _compressor(_document(self._store, self._image.datasets[0].path))
        self._array = LevelArray(
            self._store,
            self._store.inside(self._image.datasets[0].path),
            self._image.axes,
            whole=self._facts.get("status") == "complete",
        )
        self.info = self._describe(attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._store.root, self.info.tables)

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Pixels of level 0; see `Source.read`."""
        depth, z = self.info.depth, self.info.z
        rest, at_z = divmod(plane, z)
        at_t, group = divmod(rest, len(self.info.channels) // depth)
        wanted = slice(group * depth, (group + 1) * depth)
        try:
            self._check_objects(region, at_t, at_z, wanted)
            pixels = self._array.read(region, at_t, at_z, wanted)
        except StoreError as error:
            if damaged is None:
                raise SourceError(error.what, str(self._store), "Verify it: ngfftile verify.") from error
            self._read_around(region, at_t, at_z, wanted, out, damaged)
            return
        out[...] = pixels.transpose(1, 2, 0)

    def _check_objects(self, region: Region, t: int, z: int, wanted: slice) -> None:
        """Whether what a region is read from lies in the store, and decodes to no more than a chunk."""
        array, unit = self._array, self._array.unit
        for c in range(wanted.start, wanted.stop, array.depth):
            for y in range(region.y // unit.y * unit.y, region.bottom, unit.y):
                for x in range(region.x // unit.x * unit.x, region.right, unit.x):
                    key = self._store.inside(array.key(t, c, z, Region(x, y, 1, 1)))
                    if self._compressor and (self._store.root / key).is_file():
                        _check_chunk(self._store, key, self._compressor)

    def _read_around(self, region: Region, t: int, z: int, wanted: slice, out: Array, damaged: Damaged) -> None:
        """Chunk by chunk, so that what can be read is."""
        side = self._array.chunk
        for y in range(region.y // side.y * side.y, region.bottom, side.y):
            for x in range(region.x // side.x * side.x, region.right, side.x):
                place = Region(x, y, side.x, side.y).clip(region)
                target = out[place.inside(region)]
                try:
                    self._check_objects(place, t, z, wanted)
                    target[...] = self._array.read(place, t, z, wanted).transpose(1, 2, 0)
                except StoreError as error:
                    damaged(place, error.what)
                    target[...] = self.info.background

    @cached_property
    def _associated(self) -> Mapping[str, str]:
        found = self._facts.get("associated")
        return {role: str(about["path"]) for role, about in found.items()} if isinstance(found, dict) else {}

    def associated(self, role: str) -> Array:
        """One associated image."""
        place = Store(self._store.root / self._store.inside(self._associated[role]))
        image = ngff.parse(place.attributes(""), str(place))
        array = LevelArray(place, image.datasets[0].path, image.axes, whole=True)
        return np.ascontiguousarray(array.read(Region(0, 0, array.size.x, array.size.y)).transpose(1, 2, 0))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the label images."""
        return self._store.labels()

    def label(self, name: str) -> Source:
        """A label image as a source of its own."""
        return open_ngff(self._store.root / LABELS / self._store.inside(name))

    def _describe(self, attributes: Mapping[str, Any]) -> SourceInfo:
        array, image, facts = self._array, self._image, self._facts
        origin = dict(facts.get("source") or {})
        unit = ngff.MICROMETRES.get(image.unit or "", 1.0)
        first = image.datasets[0]
        x, y = image.axes.index("x"), image.axes.index("y")
        rgb = image.rgb(array.channels, array.dtype)
        mpp = image.mpp()
        icc = facts.get("icc")
        return SourceInfo(
            reader="ngff",
            format=f"OME-Zarr {image.version}",
            vendor=str(origin.get("vendor") or "ome"),
            size=array.size,
            channels=RGB if rgb else _channels(image, array.channels, facts),
            rgb=rgb,
            dtype=array.dtype.name,
            tile=Size(min(array.chunk.x, array.size.x), min(array.chunk.y, array.size.y)),
            mpp=mpp,
            mpp_source=str(facts.get("mpp_source") or "the store's scale") if mpp else "the store does not say",
            levels=self._sizes(),
            files=(self._store.root,),
            objective_power=facts.get("objective_power"),
            acquired=facts.get("acquired"),
            associated={
                role: Size(about["width"], about["height"]) for role, about in (facts.get("associated") or {}).items()
            },
            properties=facts.get("properties") or {},
            icc=self._store.whole(self._store.inside(icc["path"])) if icc else None,
            tables=self._tables(attributes),
            notes=tuple(facts.get("notes") or ()),
            z=array.z,
            t=array.t,
            z_step=_step(image, "z", ngff.MICROMETRES),
            t_step=_step(image, "t", _SECONDS),
            label=image.label,
            ome_xml=self._ome_xml(),
            recompress="of OME-Zarr only the pixels are taken",
            origin=dict(facts) | {"image-label": _label_block(attributes)},
            plain=Mpp(first.scale[x], first.scale[y]),
            offset_x=first.translation[x] * unit,
            offset_y=first.translation[y] * unit,
        )

    def _sizes(self) -> tuple[Size, ...]:
        image = self._image
        return tuple(
            LevelArray(self._store, self._store.inside(d.path), image.axes, whole=False).size for d in image.datasets
        )

    def _ome_xml(self) -> str | None:
        try:
            return self._store.whole("OME/METADATA.ome.xml").decode()
        except (StoreError, UnicodeDecodeError):
            return None

    def _tables(self, attributes: Mapping[str, Any]) -> bytes:
        """What changes with the content: of a store of ours the manifests, of another's its objects."""
        digest = hashlib.sha256(json.dumps(attributes, sort_keys=True, default=str).encode())
        if not self._facts.get("manifest"):
            _sample(self._store, self._image.datasets[0].path, digest)
        for name in self.labels:
            label = Store(self._store.root / LABELS / name)
            digest.update(name.encode())
            try:
                about = label.attributes("")
                digest.update(json.dumps(about, sort_keys=True, default=str).encode())
                if "ngfftile" not in about:
                    _sample(label, ".", digest)
            except (StoreError, MissingError):
                continue  # opening the label says what is wrong
        return digest.digest()


def _document(store: Store, path: str) -> dict[str, Any]:
    """An array's metadata, of Zarr v3 or v2."""
    three = (store.root / path / "zarr.json").exists()
    return store.json(f"{path}/{'zarr.json' if three else '.zarray'}")


def _codecs(document: Mapping[str, Any]) -> Iterator[str]:
    """Names of all codecs, those inside shards too."""
    listed = [*(document.get("codecs") or ()), *(document.get("filters") or ()), document.get("compressor") or {}]
    for codec in filter(None, listed):
        yield str(codec.get("name") or codec.get("id")).removeprefix("numcodecs.")
        yield from _codecs(codec.get("configuration") or {})


def _compressor(document: Mapping[str, Any]) -> str:
    """What chunks that are objects are compressed by; empty where they are not, or lie in shards."""
    names = list(_codecs(document))
    return "" if "sharding_indexed" in names else next((name for name in names if name in _COMPRESSORS), "")


def _check_array(store: Store, path: str) -> None:
    """Refuse an array that would take memory or time without bounds, or run what it holds.

    Raises
    ------
    StoreError
        Sides, chunks or codecs that no slide has.
    """
    document = _document(store, path)
    kind = document.get("data_type", document.get("dtype"))
    grid = document.get("chunk_grid") or {}
    chunks = document.get("chunks") or grid.get("configuration", {}).get("chunk_shape") or ()
    inner = [c["configuration"]["chunk_shape"] for c in document.get("codecs", ()) if c["name"] == "sharding_indexed"]
    names = list(_codecs(document))
    foreign = [n for n in names if n not in _COMPRESSORS | _FILTERS and not n.startswith("imagecodecs_")]
    size = int(np.prod([int(side) for side in (inner or [chunks])[0]], dtype=object))
    try:
        dtype = np.dtype(str(kind))
    except TypeError as error:
        raise StoreError(f"the pixels of array {path!r} are {kind!r}", str(store)) from error
    size *= dtype.itemsize
    reasons = {
        f"has pixels of {dtype}": dtype.kind not in "biuf",
        f"is compressed by {', '.join(foreign)}": bool(foreign),
        "is compressed more than once": sum(name in _COMPRESSORS for name in names) > 1,
        f"has the shape {document.get('shape')}": max(document.get("shape") or [0]) > MOST_SIDE,
        f"has chunks of {size} bytes, {MOST_CHUNK_BYTES} are the most": not 0 < size <= MOST_CHUNK_BYTES,
    }
    for reason, holds in reasons.items():
        if holds:
            raise StoreError(f"array {path!r} {reason}", str(store), "It is damaged, or not to be trusted.")


def _check_chunk(store: Store, key: str, compressor: str) -> None:
    """Whether an object decodes to what a chunk can have, found without decoding more than that."""
    data = store.whole(key)
    try:
        count = _decoded(data, compressor)
    # Damaged bytes fail in each library's own way; the one that reads them says so.
    except Exception:  # noqa: BLE001
        return
    if count > MOST_CHUNK_BYTES:
        raise StoreError(f"{key} decodes to more than {MOST_CHUNK_BYTES} bytes", str(store), "It is damaged.")


def _decoded(data: bytes, compressor: str) -> int:
    """Bytes that a chunk decodes to, or one more than the most."""
    most = MOST_CHUNK_BYTES + 1
    if compressor == "blosc":  # its header: four bytes of versions and flags, then the decoded size
        return int.from_bytes(data[4:8], "little")
    if compressor == "lz4":  # numcodecs puts the size before it
        return int.from_bytes(data[:4], "little")
    if compressor == "zstd":
        return _of_zstd(data) or len(imagecodecs.zstd_decode(data, out=most))
    if compressor in {"gzip", "zlib"}:
        return len(zlib.decompressobj(47).decompress(data, most))  # either kind, by its header
    decoder = bz2.BZ2Decompressor() if compressor == "bz2" else lzma.LZMADecompressor()
    return len(decoder.decompress(data, most))


def _of_zstd(frame: bytes) -> int:
    """The size that a frame's header says; 0 where it does not. RFC 8878, 3.1.1.1."""
    single = frame[4] >> 5 & 1
    width = (single, 2, 4, 8)[frame[4] >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[frame[4] & 3]
    return int.from_bytes(frame[at : at + width], "little") + 256 * (width == 2)


def _sample(store: Store, path: str, digest: Any) -> None:
    """Names and sizes of all objects, and the bytes of both ends of up to 1,024 of them."""
    every = store.sizes(path)
    digest.update(repr(every).encode())
    step = -(-len(every) // _SAMPLES) or 1
    for name, size in every[::step]:
        with store.open(f"{path}/{name}") as file:
            head = min(size, _EDGE)
            digest.update(file.read(0, head) + file.read(size - head, head))


def _channels(image: Multiscale, count: int, facts: Mapping[str, Any]) -> tuple[Channel, ...]:
    if len(image.channels) != count:
        return tuple(Channel(f"channel {i}", PALETTE[i % len(PALETTE)]) for i in range(count))
    waves = facts.get("channels") or []
    more = waves if len(waves) == count else [{}] * count
    return tuple(
        Channel(c.name, c.color, c.window, about.get("emission_nm"), about.get("excitation_nm"))
        for c, about in zip(image.channels, more, strict=True)
    )


def _step(image: Multiscale, axis: str, units: Mapping[str, float]) -> float | None:
    factor = units.get(image.units.get(axis, ""))
    return image.datasets[0].scale[image.axes.index(axis)] * factor if factor else None


def _label_block(attributes: Mapping[str, Any]) -> dict[str, Any]:
    block = attributes.get("ome", attributes).get("image-label")
    return {k: v for k, v in block.items() if k != "version"} if isinstance(block, dict) else {}
