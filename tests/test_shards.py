"""Shards: what is written is read back by three readers, and no damage passes for pixels."""

import os
import pickle
import shutil
import struct
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ngfftile.codecs import Blosc, Zstd
from ngfftile.errors import StoreError
from ngfftile.geometry import Region, Size
from ngfftile.shards import ABSENT, Layout, LevelArray, create, shrink, write_shard
from ngfftile.store import Store

AXES = ("c", "y", "x")
CODEC = Zstd(1)


@st.composite
def images(draw):
    """Pixels of odd sizes, with some chunks all fill, and how they are cut."""
    chunk = draw(st.sampled_from([16, 32, 64]))
    shard = chunk * draw(st.sampled_from([1, 2, 4]))
    depth, fill, dtype = draw(st.tuples(st.sampled_from([1, 3]), st.sampled_from([0, 7, 255]), st.sampled_from("BH")))
    planes = draw(st.integers(1, 2)) if depth == 1 else 1
    height, width = (draw(st.integers(1, min(130, 3 * shard))) for _ in "yx")
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    pixels = random.integers(0, np.iinfo(dtype).max, (depth * planes, height, width), dtype, endpoint=True)
    for c, y, x in product(range(planes), range(0, height, chunk), range(0, width, chunk)):
        if random.random() < 0.4:
            pixels[c * depth : (c + 1) * depth, y : y + chunk, x : x + chunk] = fill
    return pixels, Layout(chunk, shard, depth, fill, draw(st.sampled_from([CODEC, Zstd(5), Blosc()])))


def parts(pixels, layout):
    _, height, width = pixels.shape
    for plane in range(len(pixels) // layout.depth):
        planes = pixels[plane * layout.depth : (plane + 1) * layout.depth]
        for y, x in product(range(0, height, layout.shard), range(0, width, layout.shard)):
            key = f"0/c/{plane}/{y // layout.shard}/{x // layout.shard}"
            yield key, planes[:, y : y + layout.shard, x : x + layout.shard]


def written(store, pixels, layout):
    create(store, "0", pixels.shape, pixels.dtype.name, layout)
    for key, part in parts(pixels, layout):
        write_shard(store, [key], part, layout)
    return LevelArray(store, "0", AXES, whole=True)


def everything(level):
    return level.read(Region(0, 0, level.size.x, level.size.y))


def mean_of_four(pixels):
    """With floor sizes, rounded half up; a dimension of one pixel is its own neighbour."""
    _, height, width = pixels.shape
    rows, cols = 2 * np.arange(max(1, height // 2)), 2 * np.arange(max(1, width // 2))
    wide = pixels.astype(np.int64)
    pairs = product((rows, np.minimum(rows + 1, height - 1)), (cols, np.minimum(cols + 1, width - 1)))
    return (sum(wide[:, r][:, :, c] for r, c in pairs) + 2) // 4


@settings(max_examples=120, deadline=None)
@given(images(), st.data())
def test_three_readers_read_what_was_written(image, data):
    pixels, layout = image
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        level = written(store, pixels, layout)
        assert np.array_equal(zarr.open_array(store.root / "0", mode="r")[...], pixels)
        driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.root}/0/"}}
        assert np.array_equal(ts.open(driver, read=True).result().read().result(), pixels)
        assert np.array_equal(everything(level), pixels)
        assert (level.size, level.channels) == (Size(*pixels.shape[:0:-1]), len(pixels))
        assert (level.dtype, level.fill) == (pixels.dtype, layout.fill)
        assert (level.chunk, level.unit) == (Size.of(layout.chunk), Size.of(layout.shard))
        for _ in range(4):
            x, y = data.draw(st.integers(0, level.size.x - 1)), data.draw(st.integers(0, level.size.y - 1))
            width, height = data.draw(st.integers(0, level.size.x - x)), data.draw(st.integers(0, level.size.y - y))
            found = level.read(Region(x, y, width, height))
            assert found.dtype == pixels.dtype
            assert np.array_equal(found, pixels[:, y : y + height, x : x + width])


@settings(max_examples=60, deadline=None)
@given(
    images(),
    st.booleans(),
    st.sampled_from([(True, 3), (False, 3), (False, 2)]),
    st.sampled_from(["cyx", "czyx", "tczyx"]),
)
def test_every_layout_is_read_back_by_us_and_by_zarr(image, planar, how, axes):
    pixels, layout = image
    sharded, zarr_format = how
    layout = replace(layout, planar=planar, sharded=sharded, zarr_format=zarr_format, axes=tuple(axes))
    planes = {"t": 2, "z": 3}
    lengths = {axis: planes[axis] for axis in axes if axis in planes}
    shape = [lengths.get(axis, n) for axis, n in zip(axes, (0,) * (len(axes) - 3) + pixels.shape, strict=True)]
    shape[axes.index("c")] = len(pixels)
    random = np.random.default_rng(1)
    whole = random.permutation(np.stack([pixels] * 6).reshape(6, *pixels.shape), axis=3)
    whole = (whole + np.arange(6, dtype=pixels.dtype).reshape(6, 1, 1, 1)).reshape(2, 3, *pixels.shape)
    side = layout.shard
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        create(store, "0", shape, pixels.dtype.name, layout)
        keys = []
        for t, z in product(range(lengths.get("t", 1)), range(lengths.get("z", 1))):
            for c, y, x in product(
                range(len(pixels) // layout.depth), range(0, shape[-2], side), range(0, shape[-1], side)
            ):
                part = whole[t, z, c * layout.depth : (c + 1) * layout.depth, y : y + side, x : x + side]
                at = {"t": t, "c": c, "z": z, "y": y // side, "x": x // side}
                region = Region(x, y, part.shape[2], part.shape[1])
                names = layout.objects("0", [at[axis] for axis in axes], region)
                assert [one.key for one in write_shard(store, names, part, layout)] == names
                keys += names
        assert len(set(keys)) == len(keys)
        level = LevelArray(store, "0", tuple(axes), whole=True)
        assert (level.t, level.z) == (lengths.get("t", 1), lengths.get("z", 1))
        theirs = zarr.open_array(store.root / "0", mode="r")[...]
        for t, z in product(range(level.t), range(level.z)):
            found = level.read(Region(0, 0, level.size.x, level.size.y), t, z)
            assert np.array_equal(found, whole[t, z])
            there = tuple({"t": t, "z": z}.get(axis, slice(None)) for axis in axes)
            assert np.array_equal(theirs[there], whole[t, z])
        (store.root / keys[-1]).unlink()
        with pytest.raises(StoreError):
            level.read(Region(0, 0, level.size.x, level.size.y), level.t - 1, level.z - 1)


@settings(max_examples=80, deadline=None)
@given(images())
def test_chunks_that_are_all_fill_are_absent_and_empty_shards_are_an_index_alone(image):
    pixels, layout = image
    across = layout.shard // layout.chunk
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        written(store, pixels, layout)
        found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
        assert found == {"0/zarr.json", *(key for key, _ in parts(pixels, layout))}
        for key, part in parts(pixels, layout):
            raw = (store.root / key).read_bytes()
            index = struct.unpack(f"<{2 * across**2}Q", raw[-16 * across**2 - 4 : -4])
            assert struct.unpack("<I", raw[-4:]) == (google_crc32c.value(raw[-16 * across**2 - 4 : -4]),)
            used = 0
            for k, (i, j) in enumerate(product(range(across), repeat=2)):
                y, x = i * layout.chunk, j * layout.chunk
                empty = (part[:, y : y + layout.chunk, x : x + layout.chunk] == layout.fill).all()
                assert (index[2 * k : 2 * k + 2] == (ABSENT, ABSENT)) == empty
                used += 0 if empty else index[2 * k + 1]
            assert len(raw) == used + 16 * across**2 + 4


@settings(max_examples=150, deadline=None)
@given(images())
def test_the_mean_is_that_of_four_pixels_with_floor_sizes(image):
    pixels, layout = image
    turned = np.ascontiguousarray(pixels.transpose(1, 2, 0)).transpose(2, 0, 1)  # as it comes from a decoder
    for (_, part), (_, other) in zip(parts(pixels, layout), parts(turned, layout), strict=True):
        expected = mean_of_four(part)
        means = [np.empty(expected.shape, pixels.dtype) for _ in range(3)]
        with tempfile.TemporaryDirectory() as place:
            store = Store(Path(place))
            write_shard(store, ["a"], part, layout, means[0])
            write_shard(store, ["b"], other, layout, means[1])
            assert (store.root / "a").read_bytes() == (store.root / "b").read_bytes()
        shrink(part, means[2], layout.chunk)
        for mean in means:
            assert np.array_equal(mean, expected)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A level of 2 x 2 shards, one of them empty, and its pixels."""
    pixels = np.random.default_rng(5).integers(0, 5, (3, 50, 61), np.uint8)
    pixels[:, 32:, 32:] = 255
    store = Store(tmp_path_factory.mktemp("sound"))
    return written(store, pixels, Layout(16, 32, 3, 255, CODEC)), pixels


@pytest.fixture
def copied(sound, tmp_path):
    """A copy to be damaged."""
    store = Store(tmp_path / "copy")
    shutil.copytree(sound[0].store.root, store.root)
    return LevelArray(store, "0", AXES, whole=True), sound[1]


def complaint(level, pixels):
    """What the reader says of damage, None if it reads the right pixels in spite of it."""
    try:
        assert np.array_equal(everything(level), pixels), "damage passed for pixels"
    except StoreError as error:
        return str(error)


def test_a_flipped_byte_is_found_or_changes_no_pixel(copied):
    level, pixels = copied
    random, found = np.random.default_rng(6), {"chunk": 0, "index": 0}
    for key in ("0/c/0/0/0", "0/c/0/0/1", "0/c/0/1/1"):
        path = level.store.root / key
        good = path.read_bytes()
        body = len(good) - 4 * 16 - 4
        places = [*random.integers(0, max(1, body), 60), *random.integers(body, len(good), 20), len(good) - 1]
        for sample, place in enumerate(places):
            damaged = bytearray(good)
            damaged[place] ^= random.integers(1, 256)
            path.write_bytes(damaged)
            os.utime(path, ns=(sample, sample))  # no clock is so coarse that the old index could stand in
            error = complaint(level, pixels)
            assert error is not None or place < body, f"byte {place} of the index of {key} is not checked"
            assert error is None or key in error
            found["chunk" if place < body else "index"] += error is not None
        path.write_bytes(good)
    assert found["chunk"] > 100
    assert found["index"] >= 60


@pytest.mark.parametrize("key", ["0/c/0/0/0", "0/c/0/1/0", "0/c/0/1/1"])
def test_a_missing_shard_is_damage_where_all_are_stored_and_fill_where_not(copied, key):
    level, pixels = copied
    (level.store.root / key).unlink()
    with pytest.raises(StoreError, match=key):
        everything(level)
    y, x = (32 * int(n) for n in key.split("/")[-2:])
    expected = pixels.copy()
    expected[:, y : y + 32, x : x + 32] = 255
    assert np.array_equal(everything(LevelArray(level.store, "0", AXES, whole=False)), expected)
    assert np.array_equal(level.read(Region(32, 0, 20, 20)), pixels[:, :20, 32:52])  # the others can be read


@pytest.mark.parametrize("left", [0, 1, 67, 68, 0.3, 0.9, -1])
def test_a_truncated_shard_is_an_error(copied, left):
    level, _ = copied
    path = level.store.root / "0/c/0/0/0"
    size = path.stat().st_size
    os.truncate(path, int(left * size) if isinstance(left, float) else left % size)
    with pytest.raises(StoreError, match="0/c/0/0/0"):
        everything(level)


@pytest.mark.parametrize("place", [(ABSENT, 5), (0, 0), (0, 2**62), (2**63, 9), (10**6, 9), (5, ABSENT), (3, 40)])
def test_an_index_that_points_nowhere_is_an_error_even_with_its_checksum_right(copied, place):
    level, _ = copied
    path = level.store.root / "0/c/0/0/0"
    raw = path.read_bytes()
    index = struct.pack("<2Q", *place) + raw[-4 * 16 - 4 + 16 : -4]
    path.write_bytes(raw[: -4 * 16 - 4] + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(StoreError, match="0/c/0/0/0"):
        everything(level)


def test_a_shard_written_again_is_read_anew_and_a_level_pickles(copied):
    level, pixels = copied
    assert np.array_equal(everything(level), pixels)
    write_shard(level.store, ["0/c/0/0/0"], pixels[:, 32:0:-1, 32:0:-1], Layout(16, 32, 3, 255, CODEC))
    expected = pixels.copy()
    expected[:, :32, :32] = pixels[:, 32:0:-1, 32:0:-1]
    assert np.array_equal(everything(pickle.loads(pickle.dumps(level))), expected)
    assert np.array_equal(everything(level), expected)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("chunks", "shards"),
    [
        ((3, 16, 16), (3, 32, 32)),
        ((1, 16, 16), (1, 32, 32)),
        ((1, 16, 32), (1, 48, 64)),
        ((1, 16, 16), (3, 32, 32)),  # several channels' chunks in a shard
        ((4, 16, 16), (4, 32, 32)),  # deeper than there are channels
        ((2, 16, 16), (2, 32, 32)),  # the last chunk along the channels hangs over
        ((3, 16, 16), None),
    ],
)
def test_a_level_by_another_writer_is_read_as_zarr_reads_it(tmp_path, chunks, shards, big):
    pixels = np.random.default_rng(7).integers(0, 999, (3, 50, 70), np.uint16)
    serializer = zarr.codecs.BytesCodec(endian="big" if big else "little")
    spec = {"shape": pixels.shape, "dtype": "uint16", "chunks": chunks, "shards": shards, "serializer": serializer}
    array = zarr.create_array(zarr.storage.LocalStore(tmp_path / "0"), **spec, compressors=[zarr.codecs.ZstdCodec()])
    array[...] = pixels
    level = LevelArray(Store(tmp_path), "0", AXES, whole=False)
    assert np.array_equal(everything(level), pixels)
