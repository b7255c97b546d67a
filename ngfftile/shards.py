"""The thin path to the arrays that we write: sharded, zstd, chunk (c, y, x).

Layout: Zarr v3 ``sharding_indexed``, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/. A shard
is its chunks one after the other, then an index of (offset, bytes) as little-endian uint64, 2^64 - 1 for a chunk that
is all fill value, then crc32c of the index. Every shard is written, an empty one as its index alone: so a missing
object is always damage, never silence. Any other layout is read by zarr-python.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from ngfftile.codecs import Codec
from ngfftile.errors import StoreError
from ngfftile.geometry import Region, Size
from ngfftile.resample import halve
from ngfftile.store import Store

Array = NDArray[Any]
ABSENT = 2**64 - 1
MOST_CHUNK_BYTES = 256 << 20


def create(store: Store, path: str, shape: tuple[int, int, int], dtype: str, layout: Layout, codec: Codec) -> None:
    """Write the metadata of an array that `write_shard` fills."""
    store.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=(layout.depth, layout.chunk, layout.chunk),
        shards=(layout.depth, layout.shard, layout.shard),
        compressors=[codec.zarr()],
        fill_value=layout.fill,
        dimension_names=("c", "y", "x"),
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Sides of chunk and shard in pixels, channels in a chunk, and the value of what is not stored."""

    chunk: int
    shard: int
    depth: int
    fill: int


def write_shard(store: Store, key: str, pixels: Array, layout: Layout, codec: Codec, mean: Array | None = None) -> None:
    """Compress, and write, one shard; on the way shrink it for the level above.

    Parameters
    ----------
    pixels
        (depth, y, x), any strides, at most a shard.
    mean
        (depth, max(1, y // 2), max(1, x // 2)), written in place with the 2x mean.
    """
    side = layout.chunk
    height, width = pixels.shape[1:]
    chunk = np.empty((layout.depth, side, side), pixels.dtype)
    half = np.empty((layout.depth, side // 2, side // 2), pixels.dtype)
    across = layout.shard // side
    encoded: list[bytes | None] = [None] * across**2
    for y in range(0, height, side):
        for x in range(0, width, side):
            part = pixels[:, y : y + side, x : x + side]
            h, w = part.shape[1:]
            if (h, w) != (side, side):
                chunk[...] = layout.fill
            chunk[:, :h, :w] = part
            if chunk.flat[0] != layout.fill or not (chunk == layout.fill).all():
                encoded[y // side * across + x // side] = codec.encode(chunk.data)
            if mean is not None:
                _halve(chunk, half, mean[:, y // 2 : (y + side) // 2, x // 2 : (x + side) // 2], height, width)
    store.write(key, *assemble(encoded))


def shrink(pixels: Array, mean: Array, side: int) -> None:
    """The 2x mean of a shard's pixels (depth, y, x), in pieces of ``side`` that fit the cache."""
    height, width = pixels.shape[1:]
    chunk = np.zeros((len(pixels), side, side), pixels.dtype)
    half = np.empty((len(pixels), side // 2, side // 2), pixels.dtype)
    for y in range(0, height, side):
        for x in range(0, width, side):
            part = pixels[:, y : y + side, x : x + side]
            chunk[:, : part.shape[1], : part.shape[2]] = part
            _halve(chunk, half, mean[:, y // 2 : (y + side) // 2, x // 2 : (x + side) // 2], height, width)


def _halve(chunk: Array, half: Array, out: Array, height: int, width: int) -> None:
    # A level one pixel high or wide stays so: the pixel is its own neighbour.
    if height == 1:
        chunk[:, 1] = chunk[:, 0]
    if width == 1:
        chunk[:, :, 1] = chunk[:, :, 0]
    halve(chunk, half)
    out[...] = half[:, : out.shape[1], : out.shape[2]]


def assemble(chunks: Sequence[bytes | None]) -> Iterator[bytes]:
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
        Names of its dimensions, among t c z y x; t and z must be of length 1.
    whole
        Whether every shard is stored, as in what we write; then a missing one is an error, not fill value.
    """

    store: Store
    path: str
    axes: tuple[str, ...]
    whole: bool

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        array = self.store.open_array(self.path)
        long = [n for n, a in zip(array.shape, self.axes, strict=False) if a not in "cyx" and n != 1]
        if len(array.shape) != len(self.axes) or long or not {"y", "x"} <= set(self.axes):
            raise StoreError(
                f"array {self.path!r} of shape {array.shape} has axes {self.axes}",
                str(self.store),
                "A slide has axes c, y, x, or more of length 1.",
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
    def _thin(self) -> bool:
        """Whether the array has the layout that this module reads by itself."""
        codecs: tuple[Any, ...] = getattr(self._array.metadata, "codecs", ())
        if self.axes != ("c", "y", "x") or len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
            return False
        sharding = codecs[0]
        inner, index = sharding.codecs, sharding.index_codecs
        encoding = self._array.metadata.to_dict().get("chunk_key_encoding")
        return (
            [type(c) for c in inner] == [BytesCodec, ZstdCodec]
            and [type(c) for c in index] == [BytesCodec, Crc32cCodec]
            and _name(sharding.index_location) == "end"
            and (self.dtype.itemsize == 1 or _name(getattr(inner[0], "endian", None)) == "little")
            and self._array.shards is not None
            and self._array.shards[0] == self._array.chunks[0]
            and self.channels % self._array.chunks[0] == 0
            and encoding == {"name": "default", "configuration": {"separator": "/"}}
            and int(np.prod(self._array.chunks)) * self.dtype.itemsize <= MOST_CHUNK_BYTES
        )

    def read(self, region: Region) -> Array:
        """Pixels (c, y, x) of a region inside the level.

        Raises
        ------
        StoreError
            A shard that is missing, or a chunk that is damaged; the message names it.
        """
        if not self._thin:
            return self._read_any(region)
        out = np.empty((self.channels, region.height, region.width), self.dtype)
        depth = self._array.chunks[0]
        shard = self.unit
        for plane in range(self.channels // depth):
            for row in range(region.y // shard.y, -(-region.bottom // shard.y)):
                for col in range(region.x // shard.x, -(-region.right // shard.x)):
                    whole = Region(col * shard.x, row * shard.y, shard.x, shard.y)
                    wanted = whole.clip(region)
                    target = out[(slice(plane * depth, (plane + 1) * depth), *wanted.inside(region))]
                    self._read_shard(f"{self.path}/c/{plane}/{row}/{col}", whole, wanted, target)
        return out

    def _read_any(self, region: Region) -> Array:
        box = {"y": slice(region.y, region.bottom), "x": slice(region.x, region.right), "c": slice(None)}
        try:
            pixels = np.asarray(self._array[tuple(box.get(axis, 0) for axis in self.axes)])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise StoreError(f"level {self.path}, {region} cannot be read ({error})", str(self.store)) from error
        return pixels if "c" in self.axes else pixels[None]

    def _read_shard(self, key: str, whole: Region, wanted: Region, out: Array) -> None:
        if not self.whole and not (self.store.root / key).exists():
            out[...] = self.fill
            return
        side = self.chunk
        across, down = whole.width // side.x, whole.height // side.y
        shape = self._array.chunks
        buffer = np.empty(shape, self.dtype)
        raw = buffer.reshape(-1).view(np.uint8)
        with self.store.open(key) as file:
            index = _indexes.get((str(file.path), file.version), lambda: _read_index(file, key, across * down))
            for i in range((wanted.y - whole.y) // side.y, -(-(wanted.bottom - whole.y) // side.y)):
                for j in range((wanted.x - whole.x) // side.x, -(-(wanted.right - whole.x) // side.x)):
                    place = Region(whole.x + j * side.x, whole.y + i * side.y, side.x, side.y)
                    part = place.clip(wanted)
                    target = out[(slice(None), *part.inside(wanted))]
                    offset, count = (int(v) for v in index[i * across + j])
                    if offset == count == ABSENT:
                        target[...] = self.fill
                        continue
                    try:
                        if offset + count > file.size:
                            raise ValueError("the index points past the shard's end")  # noqa: TRY301
                        if len(imagecodecs.zstd_decode(file.read(offset, count), out=raw)) != len(raw):
                            raise ValueError("it decodes to fewer bytes than a chunk has")  # noqa: TRY301
                    except (imagecodecs.ZstdError, ValueError, StoreError) as error:
                        raise StoreError(
                            f"{key}, chunk at row {i}, column {j}: {error}", str(self.store), "It is damaged."
                        ) from error
                    target[...] = buffer[(slice(None), *part.inside(place))]


def _name(option: Any) -> str:
    """The word of an option that zarr-python holds as an enumeration or as a string."""
    return str(getattr(option, "value", option))


def _read_index(file: Any, key: str, chunks: int) -> Array:
    length = 16 * chunks + 4
    if file.size < length:
        raise StoreError(f"{key} has {file.size} bytes, its index alone needs {length}", mend="It is truncated.")
    raw = file.read(file.size - length, length)
    if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise StoreError(f"the index of {key} does not match its checksum", str(file.path), "It is damaged.")
    return np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)
