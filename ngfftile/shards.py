"""The thin path to the arrays that we write: shards, or single chunks, of pixels (c, y, x).

Layout: Zarr v3 ``sharding_indexed``, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/. A shard
is its chunks one after the other, then an index of (offset, bytes) as little-endian uint64, 2^64 - 1 for a chunk that
is all fill value, then crc32c of the index. Every object is written, an empty shard as its index alone: so a missing
object is always damage, never silence. Any other layout is read by zarr-python.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from threading import Lock
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from ngfftile import codecs
from ngfftile.codecs import Blosc, Codec
from ngfftile.errors import StoreError
from ngfftile.geometry import Region, Size
from ngfftile.resample import METHODS
from ngfftile.store import Readable, Store, StoredFile, Written

Array = NDArray[Any]
ABSENT = 2**64 - 1
MOST_LEVELS, MOST_SIDE, MOST_CHUNK_BYTES = 32, 1 << 31, 256 << 20
_MOST_OVERHEAD = 1 << 16  # bytes of a chunk's headers and tables, beyond twice its pixels
_DEFLATED = 1032  # bytes that one of deflate can stand for
# What arrays of others may be compressed by. Of what is not here, numcodecs' pickle runs code that a chunk holds.
_COMPRESSORS = {"zstd", "gzip", "zlib", "blosc", "lz4", "bz2", "lzma"}
_FILTERS = {"bytes", "transpose", "crc32c", "crc32", "adler32", "sharding_indexed", "delta", "shuffle", "bitround"}
_FILTERS |= {"fixedscaleoffset", "quantize", "astype", "packbits"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is stored.

    Parameters
    ----------
    chunk, shard
        Sides in pixels.
    depth
        Channels in a shard.
    fill
        Value of what is not stored.
    codec
        Of the chunks.
    axes
        Names of the dimensions: c, y, x, and t and z where there are several.
    planar
        Whether a chunk holds one channel, not the shard's ``depth``.
    sharded
        Whether a shard is one object; else each chunk is, and the shard is the unit of work only.
    zarr_format
        3, or 2 for OME-Zarr 0.4, which has no shards.
    """

    chunk: int
    shard: int
    depth: int
    fill: int
    codec: Codec
    axes: tuple[str, ...] = ("c", "y", "x")
    planar: bool = False
    sharded: bool = True
    zarr_format: int = 3

    def sides(self, channels: int, side: int) -> tuple[int, ...]:
        """A chunk's, or shard's, shape."""
        return tuple({"c": channels, "y": side, "x": side}.get(axis, 1) for axis in self.axes)

    @property
    def chunk_depth(self) -> int:
        """Channels in a chunk."""
        return 1 if self.planar else self.depth

    def objects(self, path: str, place: Sequence[int], region: Region) -> list[str]:
        """Keys of the objects that hold a shard.

        Parameters
        ----------
        path
            Of the array.
        place
            Of the shard in the array's grid of shards.
        region
            Its pixels.
        """
        prefix = f"{path}/" if self.zarr_format == 2 else f"{path}/c/"
        if self.sharded:
            return [prefix + "/".join(map(str, place))]
        planes = self.depth // self.chunk_depth
        rows = range(region.y // self.chunk, -(-region.bottom // self.chunk))
        cols = range(region.x // self.chunk, -(-region.right // self.chunk))
        return [
            prefix + "/".join(map(str, self._chunk(place, p, i, j))) for p in range(planes) for i in rows for j in cols
        ]

    def _chunk(self, place: Sequence[int], plane: int, row: int, col: int) -> tuple[int, ...]:
        c = place[self.axes.index("c")] * (self.depth // self.chunk_depth) + plane
        found = {"c": c, "y": row, "x": col}
        return tuple(found.get(axis, at) for axis, at in zip(self.axes, place, strict=True))


def create(store: Store, path: str, shape: Sequence[int], dtype: str, layout: Layout) -> list[Written]:
    """Write the metadata of an array that `write_shard` fills.

    Raises
    ------
    OptionError
        A codec that cannot hold these pixels.
    """
    kind = np.dtype(dtype)
    chunks = layout.sides(layout.chunk_depth, layout.chunk)
    fill = bool(layout.fill) if kind.kind == "b" else layout.fill
    if layout.zarr_format == 2:
        document = {
            "zarr_format": 2,
            "shape": list(shape),
            "chunks": list(chunks),
            "dtype": kind.newbyteorder("<").str,
            "compressor": layout.codec.zarr2(kind),
            "fill_value": fill,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        # What xarray reads names of dimensions from.
        return [
            store.write_json(f"{path}/.zarray", document),
            store.write_json(f"{path}/.zattrs", {"_ARRAY_DIMENSIONS": list(layout.axes)}),
        ]
    inner = layout.codec.zarr3(kind, layout.axes)
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunks),
            "codecs": inner,
            "index_codecs": index,
            "index_location": "end",
        },
    }
    document = {
        "shape": list(shape),
        "data_type": kind.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {
                "chunk_shape": list(layout.sides(layout.depth, layout.shard) if layout.sharded else chunks)
            },
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": float(fill) if kind.kind == "f" else fill,
        "codecs": [sharding] if layout.sharded else inner,
        "attributes": {},
        "dimension_names": list(layout.axes),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return [store.write_json(f"{path}/zarr.json", document)]


Chunks = Sequence["bytes | None"]


def write_shard(
    store: Store,
    keys: Sequence[str],
    pixels: Array,
    layout: Layout,
    mean: Array | None = None,
    method: str = "mean",
) -> list[Written]:
    """Compress, and write, one shard of pixels (depth, y, x), any strides; arguments as for `write_bands`."""
    return write_bands(store, keys, [pixels], pixels.shape[1:], layout, mean, method)


def write_bands(
    store: Store,
    keys: Sequence[str],
    bands: Iterable[Array],
    shape: tuple[int, ...],
    layout: Layout,
    mean: Array | None = None,
    method: str = "mean",
    kept: Callable[[], Chunks] | None = None,
) -> list[Written]:
    """Compress, and write, one shard that comes band by band; on the way shrink it for the level above.

    Parameters
    ----------
    keys
        `Layout.objects` of the shard.
    bands
        Its pixels (depth, y, x), any strides: rows of chunks, from the top. One is done with when the next is asked
        for.
    shape
        Rows and columns of all bands together, at most a shard.
    mean
        (depth, max(1, y // 2), max(1, x // 2)), written in place with the pixels shrunk by ``method``.
    method
        One of `ngfftile.resample.METHODS`.
    kept
        Gives the shard's chunks as the source has them, row by row, when the bands are done; else the pixels are
        compressed.
    """
    side, depth = layout.chunk, layout.chunk_depth
    height, width = shape
    across, planes = layout.shard // side, layout.depth // depth
    encoded: list[bytes | None] = [None] * (planes * across**2)
    chunk = half = np.empty(0)
    for y, x, part in _parts(bands, side):
        h, w = part.shape[1:]
        if chunk.dtype != part.dtype or not len(half):
            chunk = np.empty((layout.depth, side, side), part.dtype)
            half = np.empty((layout.depth, side // 2, side // 2), part.dtype)
        if (h, w) != (side, side):
            chunk[...] = layout.fill
        chunk[:, :h, :w] = part
        if not layout.codec.lossless:
            _round_off(chunk, h, w)
        # First, while the chunk is in the cache: a compressor's tables drive it out.
        if mean is not None:
            _halve(chunk, half, mean[:, y // 2 : (y + side) // 2, x // 2 : (x + side) // 2], height, width, method)
        for plane in range(planes if kept is None else 0):
            piece = chunk[plane * depth : (plane + 1) * depth]
            # A single chunk is always an object; in a shard the index can say that it is all fill value.
            if not layout.sharded or piece.flat[0] != layout.fill or not (piece == layout.fill).all():
                encoded[(plane * across + y // side) * across + x // side] = encode(layout, piece)
    if kept is not None:
        return write_kept(store, keys, kept(), -(-width // side), layout)
    if layout.sharded:
        return [store.write(keys[0], *assemble(encoded))]
    single = [c for c in encoded if c is not None]
    return [store.write(key, data) for key, data in zip(keys, single, strict=True)]


def _parts(bands: Iterable[Array], side: int) -> Iterator[tuple[int, int, Array]]:
    """Row, column and pixels of each chunk."""
    top = 0
    for band in bands:
        for y, x in product(range(0, band.shape[1], side), range(0, band.shape[2], side)):
            yield top + y, x, band[:, y : y + side, x : x + side]
        top += band.shape[1]


def write_kept(store: Store, keys: Sequence[str], kept: Chunks, across: int, layout: Layout) -> list[Written]:
    """Write one shard of chunks that are compressed, row by row, ``across`` in a row."""
    whole = layout.shard // layout.chunk
    encoded: list[bytes | None] = [None] * whole**2
    for i, chunk in enumerate(kept):
        encoded[i // across * whole + i % across] = chunk
    return [store.write(keys[0], *assemble(encoded))]


def _round_off(chunk: Array, height: int, width: int) -> None:
    """Go on with the picture's last row and column to the next 16: an edge inside a JPEG block costs bytes."""
    right, bottom = -(-width // 16) * 16, -(-height // 16) * 16
    chunk[:, :height, width:right] = chunk[:, :height, width - 1 : width]
    chunk[:, height:bottom, :right] = chunk[:, height - 1 : height, :right]


def encode(layout: Layout, chunk: Array) -> bytes:
    """One chunk, compressed as the layout's Zarr format has it."""
    bare = layout.zarr_format == 2 and isinstance(layout.codec, Blosc)
    return layout.codec.bare(chunk) if bare else layout.codec.encode(chunk)  # type: ignore[attr-defined]


def shrink(pixels: Array, mean: Array, side: int, method: str = "mean") -> None:
    """The next level of a shard's pixels (depth, y, x), in pieces of ``side`` that fit the cache."""
    height, width = pixels.shape[1:]
    chunk = np.zeros((len(pixels), side, side), pixels.dtype)
    half = np.empty((len(pixels), side // 2, side // 2), pixels.dtype)
    for y in range(0, height, side):
        for x in range(0, width, side):
            part = pixels[:, y : y + side, x : x + side]
            chunk[:, : part.shape[1], : part.shape[2]] = part
            _halve(chunk, half, mean[:, y // 2 : (y + side) // 2, x // 2 : (x + side) // 2], height, width, method)


def _halve(chunk: Array, half: Array, out: Array, height: int, width: int, method: str) -> None:
    # A level one pixel high or wide stays so: the pixel is its own neighbour.
    if 1 in {height, width}:
        chunk = chunk.copy()
    if height == 1:
        chunk[:, 1] = chunk[:, 0]
    if width == 1:
        chunk[:, :, 1] = chunk[:, :, 0]
    METHODS[method](chunk, half)
    out[...] = half[:, : out.shape[1], : out.shape[2]]


def assemble(chunks: Chunks) -> Iterator[bytes]:
    """The bytes of a shard: chunks, index, checksum.

    Examples
    --------
    >>> [len(part) for part in assemble([b"abc", None])]
    [3, 32, 4]
    """
    index = np.full((len(chunks), 2), ABSENT, "<u8")
    offset = 0
    for i, chunk in enumerate(chunks):
        if chunk is not None:
            index[i] = offset, len(chunk)
            offset += len(chunk)
            yield chunk
    table = index.tobytes()
    yield table
    yield google_crc32c.value(table).to_bytes(4, "little")


class _Recent:
    """The shard indexes read last, by object and its version; bounded by their bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._held: OrderedDict[object, Array] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, read: Callable[[], Array]) -> Array:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        value = read()
        with self._lock:
            self._held[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._most and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return value


_indexes = _Recent(32 << 20)  # 4 KiB each at chunk 256 and shard 4096


@dataclass(frozen=True)
class LevelArray:
    """One stored level, read by region.

    Parameters
    ----------
    store, path
        Where.
    axes
        Names of its dimensions, among t c z y x.
    whole
        Whether every object is stored, as in what we write; then a missing one is an error, not fill value.
    """

    store: Readable
    path: str
    axes: tuple[str, ...]
    whole: bool

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        array = self.store.open_array(self.store.inside(self.path), whole=self.whole)
        check_array(array.metadata.to_dict(), self.path, str(self.store))
        if len(array.shape) != len(self.axes) or not {"y", "x"} <= set(self.axes) <= set("tczyx"):
            raise StoreError(
                f"array {self.path!r} of shape {array.shape} has axes {self.axes}",
                str(self.store),
                "A slide has axes y and x, and may have t, c and z.",
            )
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("store", "path", "axes", "whole")}

    def _along(self, values: Sequence[int], axis: str) -> int:
        return values[self.axes.index(axis)] if axis in self.axes else 1

    @cached_property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self._along(self._array.shape, "x"), self._along(self._array.shape, "y"))

    @cached_property
    def channels(self) -> int:
        """How many."""
        return self._along(self._array.shape, "c")

    @cached_property
    def z(self) -> int:
        """Focal planes."""
        return self._along(self._array.shape, "z")

    @cached_property
    def t(self) -> int:
        """Points in time."""
        return self._along(self._array.shape, "t")

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of a pixel."""
        return np.dtype(self._array.dtype)

    @cached_property
    def fill(self) -> Any:
        """Value of what is not stored."""
        value = self._array.fill_value
        return 0 if value is None else value

    @cached_property
    def unit(self) -> Size:
        """The stored object in pixels: the shard, or the chunk where there are none."""
        shape = self._array.shards or self._array.chunks
        return Size(self._along(shape, "x"), self._along(shape, "y"))

    @cached_property
    def chunk(self) -> Size:
        """The compressed unit in pixels."""
        return Size(self._along(self._array.chunks, "x"), self._along(self._array.chunks, "y"))

    @cached_property
    def depth(self) -> int:
        """Channels in a stored object."""
        return self._along(self._array.shards or self._array.chunks, "c")

    def key(self, t: int, c: int, z: int, region: Region) -> str:
        """Name of the object that holds the first pixel of a region."""
        shape = self._array.shards or self._array.chunks
        at = {"t": t, "c": c, "z": z, "y": region.y, "x": region.x}
        place = [str(at[axis] // self._along(shape, axis)) for axis in self.axes]
        prefix = [] if self._array.metadata.zarr_format == 2 else ["c"]
        return "/".join([self.path, *prefix, *place])

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of the dimensions, as the array itself has them; Zarr v2 has none."""
        found = self._array.metadata.to_dict().get("dimension_names")
        return tuple(str(name) for name in found) if isinstance(found, list | tuple) else None

    @property
    def lossless(self) -> bool:
        """Whether its codecs give back what was written; those that we do not know are taken to."""
        if self._thin is not None:
            return self._thin.codec.lossless
        return "jpeg" not in repr(self._array.metadata.to_dict().get("codecs", ""))

    @cached_property
    def _thin(self) -> _Thin | None:
        """How this module reads the array by itself, or None where zarr-python must."""
        about = self._array.metadata.to_dict()
        sharding = _only(about.get("codecs"))
        inner = sharding.get("codecs", [])
        codec = codecs.parse(inner, self.axes)
        shard, chunk = self._array.shards, self._array.chunks
        single = [axis for axis in self.axes if axis in "tz"]
        if (
            codec is None
            or shard is None
            or "c" not in self.axes
            or self.axes != tuple(a for a in "tczyx" if a in self.axes)
        ):
            return None
        plain = (
            list(sharding.get("index_codecs", [])) == _INDEX_CODECS
            and sharding.get("index_location", "end") == "end"
            and about.get("chunk_key_encoding") == {"name": "default", "configuration": {"separator": "/"}}
            and all(self._along(shard, axis) == 1 for axis in single)
            and self.channels % self._along(shard, "c") == 0
            and int(np.prod(chunk)) * self.dtype.itemsize <= MOST_CHUNK_BYTES
        )
        return _Thin(codec, self._along(shard, "c"), self._along(chunk, "c")) if plain else None

    def read(self, region: Region, t: int = 0, z: int = 0, channels: slice | None = None) -> Array:
        """Pixels (c, y, x) of a region inside the level, at one point in time and focal plane.

        Parameters
        ----------
        channels
            Those wanted, start and stop; None is all. Objects of others are not touched.

        Raises
        ------
        StoreError
            An object that is missing, or a chunk that is damaged; the message names it.
        """
        thin = self._thin
        wanted_channels = channels or slice(0, self.channels)
        if thin is None:
            return self._read_any(region, t, z, wanted_channels)
        first = wanted_channels.start // thin.depth
        last = -(-wanted_channels.stop // thin.depth)
        out = np.empty(((last - first) * thin.depth, region.height, region.width), self.dtype)
        shard = self.unit
        for group in range(first, last):
            for row in range(region.y // shard.y, -(-region.bottom // shard.y)):
                for col in range(region.x // shard.x, -(-region.right // shard.x)):
                    place = {"t": t, "c": group, "z": z, "y": row, "x": col}
                    key = "/".join([self.path, "c", *(str(place[axis]) for axis in self.axes)])
                    whole = Region(col * shard.x, row * shard.y, shard.x, shard.y)
                    wanted = whole.clip(region)
                    at = (group - first) * thin.depth
                    target = out[(slice(at, at + thin.depth), *wanted.inside(region))]
                    self._read_shard(key, thin, whole, wanted, target)
        skip = wanted_channels.start - first * thin.depth
        return out[skip : skip + wanted_channels.stop - wanted_channels.start]

    def _read_any(self, region: Region, t: int, z: int, channels: slice) -> Array:
        self._check_objects(region, t, z, channels)
        box: dict[str, Any] = {
            "y": slice(region.y, region.bottom),
            "x": slice(region.x, region.right),
            "c": channels,
            "t": t,
            "z": z,
        }
        try:
            pixels = np.asarray(self._array[tuple(box[axis] for axis in self.axes)])
            self.store.confirm()
        # Codecs of other libraries fail on damaged bytes in ways of their own, SystemError among them.
        except Exception as error:
            raise StoreError(f"level {self.path}, {region} cannot be read ({error})", str(self.store)) from error
        left = [axis for axis in self.axes if axis in "cyx"]
        if "c" not in left:
            return pixels.transpose([left.index(axis) for axis in "yx"])[None]
        return pixels.transpose([left.index(axis) for axis in "cyx"])

    def _check_objects(self, region: Region, t: int, z: int, channels: slice) -> None:
        """Whether what a region is read from lies in the store, and decodes to no more than a chunk.

        Behind a url nothing is asked: what a server sends is bounded there, and would have to come twice.
        """
        if not isinstance(self.store, Store):
            return
        unit, compressor = self.unit, _compressor(self._array.metadata.to_dict())
        for c in range(channels.start // self.depth * self.depth, channels.stop, self.depth):
            for y in range(region.y // unit.y * unit.y, region.bottom, unit.y):
                for x in range(region.x // unit.x * unit.x, region.right, unit.x):
                    key = self.store.inside(self.key(t, c, z, Region(x, y, 1, 1)))
                    if compressor and (self.store.root / key).is_file():
                        _check_chunk(self.store, key, compressor)

    @cached_property
    def _inside(self) -> set[str]:
        """Shards that are known to lie in the store."""
        return set()

    def _read_shard(self, key: str, thin: _Thin, whole: Region, wanted: Region, out: Array) -> None:
        if key not in self._inside:
            self._inside.add(self.store.inside(key))
        if not self.whole and not self.store.exists(key):
            self.store.confirm()
            out[...] = self.fill
            return
        side = self.chunk
        across, down = whole.width // side.x, whole.height // side.y
        planes = thin.depth // thin.chunk_depth
        buffer = np.empty((thin.chunk_depth, side.y, side.x), self.dtype)
        rows = range((wanted.y - whole.y) // side.y, -(-(wanted.bottom - whole.y) // side.y))
        cols = range((wanted.x - whole.x) // side.x, -(-(wanted.right - whole.x) // side.x))
        with self.store.open(key) as file:
            index = _indexes.get((str(file.path), file.version), lambda: read_index(file, key, planes * across * down))
            numbers = [(plane * down + i) * across + j for plane, i, j in product(range(planes), rows, cols)]
            file.ahead((offset, count) for offset, count in index[numbers].tolist() if offset + count <= file.size)
            for plane, i, j in product(range(planes), rows, cols):
                place = Region(whole.x + j * side.x, whole.y + i * side.y, side.x, side.y)
                part = place.clip(wanted)
                channels = slice(plane * thin.chunk_depth, (plane + 1) * thin.chunk_depth)
                target = out[(channels, *part.inside(wanted))]
                offset, count = (int(v) for v in index[(plane * down + i) * across + j])
                if offset == count == ABSENT:
                    target[...] = self.fill
                    continue
                try:
                    if offset + count > file.size:
                        raise ValueError("the index points past the shard's end")  # noqa: TRY301
                    if count > 2 * buffer.nbytes + _MOST_OVERHEAD:
                        raise ValueError(f"it is {count} bytes of {buffer.nbytes} pixels")  # noqa: TRY301
                    thin.codec.decode(file.read(offset, count), buffer)
                except (ValueError, StoreError) as error:
                    where = f"plane {plane}, " if planes > 1 else ""
                    # A disk or a server that fails is not damage.
                    told = error if isinstance(error, StoreError) else StoreError(str(error), mend="It is damaged.")
                    raise StoreError(
                        f"{key}, chunk at {where}row {i}, column {j}: {told.what}", str(self.store), told.mend
                    ) from error
                target[...] = buffer[(slice(None), *part.inside(place))]


@dataclass(frozen=True, slots=True)
class _Thin:
    """Codec of the chunks, and channels in a shard and in a chunk."""

    codec: Codec
    depth: int
    chunk_depth: int


_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def _only(codecs_: Any) -> dict[str, Any]:
    """Configuration of the sharding codec, where it is the only one of an array."""
    if not isinstance(codecs_, list | tuple) or len(codecs_) != 1 or codecs_[0].get("name") != "sharding_indexed":
        return {}
    found: dict[str, Any] = dict(codecs_[0].get("configuration") or {})
    return found


def read_index(file: StoredFile, key: str, chunks: int) -> Array:
    """The index of a shard, (chunks, 2): offset and bytes of each chunk.

    Raises
    ------
    StoreError
        Too short for one, or its checksum does not match.
    """
    length = 16 * chunks + 4
    if file.size < length:
        raise StoreError(
            f"{key} has {file.size} bytes, its index alone needs {length}", str(file.path), "It is truncated."
        )
    raw = file.read(file.size - length, length)
    if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise StoreError(f"the index of {key} does not match its checksum", str(file.path), "It is damaged.")
    return np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)


def _codecs(document: Mapping[str, Any]) -> Iterator[str]:
    """Names of all codecs of an array, those inside shards too."""
    listed = [*(document.get("codecs") or ()), *(document.get("filters") or ()), document.get("compressor") or {}]
    for codec in filter(None, listed):
        yield str(codec.get("name") or codec.get("id")).removeprefix("numcodecs.")
        yield from _codecs(codec.get("configuration") or {})


def _compressor(document: Mapping[str, Any]) -> str:
    """What chunks that are objects are compressed by; empty where they are not, or lie in shards."""
    names = list(_codecs(document))
    return "" if "sharding_indexed" in names else next((name for name in names if name in _COMPRESSORS), "")


def check_array(document: Mapping[str, Any], path: str, where: str) -> None:
    """Refuse an array that would take memory or time without bounds, or run what it holds.

    Parameters
    ----------
    document
        Its metadata, of Zarr v3 or v2.
    path, where
        The array, and its store.

    Raises
    ------
    StoreError
        Sides, chunks or codecs that no slide has.
    """
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
        raise StoreError(f"the pixels of array {path!r} are {kind!r}", where) from error
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
            raise StoreError(f"array {path!r} {reason}", where, "It is damaged, or not to be trusted.")


def _check_chunk(store: Store, key: str, compressor: str) -> None:
    """Whether an object decodes to what a chunk can have, found without decoding more than that."""
    data = store.whole(key)
    try:
        count = _decoded(data, compressor)
    # Damaged bytes fail in each library's own way.
    except Exception as error:
        raise StoreError(f"{key} does not decode ({error or repr(error)})", str(store), "It is damaged.") from error
    if count > MOST_CHUNK_BYTES:
        raise StoreError(f"{key} decodes to more than {MOST_CHUNK_BYTES} bytes", str(store), "It is damaged.")


def _decoded(data: bytes, compressor: str) -> int:
    """Bytes that a chunk decodes to at most, all its members or frames together, or more than the most."""
    if compressor == "blosc":  # its header: four bytes of versions and flags, then the decoded size
        return int.from_bytes(data[4:8], "little")
    if compressor == "lz4":  # numcodecs puts the size before it
        return int.from_bytes(data[:4], "little")
    if compressor in {"gzip", "zlib"} and len(data) * _DEFLATED <= MOST_CHUNK_BYTES:
        return len(data) * _DEFLATED
    count = 0
    while data and count <= MOST_CHUNK_BYTES:
        most = MOST_CHUNK_BYTES + 1 - count
        if compressor == "zstd":
            size, frame = _of_zstd(data)
            count += len(imagecodecs.zstd_decode(data[:frame], out=most)) if size is None else size
            data = data[frame:]
            continue
        decoder = _DECODERS[compressor]()
        count += len(decoder.decompress(data, most))
        data = decoder.unused_data.lstrip(b"\0")  # gzip lets zeros follow
    return count


_DECODERS: Mapping[str, Callable[[], Any]] = {
    "gzip": partial(zlib.decompressobj, 47),  # either kind, by its header
    "zlib": partial(zlib.decompressobj, 47),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


def _of_zstd(data: bytes) -> tuple[int | None, int]:
    """The first frame's decoded size, None where its header does not say it; and its bytes. RFC 8878, 3.1."""
    if data[1:4] == b"\x2a\x4d\x18" and data[0] >> 4 == 5:  # a frame to skip
        return 0, 8 + int.from_bytes(data[4:8], "little")
    flags = data[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    size = int.from_bytes(data[at : at + width], "little") + 256 * (width == 2) if width else None
    at += width
    last = False
    while not last:  # blocks: 1 bit for the last one, 2 of its kind, 21 of its size
        head = int.from_bytes(data[at : at + 3], "little")
        if len(data) < at + 3:
            raise ValueError("it is cut short")
        last = bool(head & 1)
        at += 3 + (1 if head >> 1 & 3 == 1 else head >> 3)
    return size, at + 4 * (flags >> 2 & 1)
