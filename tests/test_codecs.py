"""Codecs: what is encoded comes back, damage is found, and zarr-python agrees."""

import imagecodecs
import numpy as np
import pytest
import zarr

from ngfftile import codecs
from ngfftile.codecs import Blosc, Jpeg, Jpeg2000, JpegLs, Zstd, jpeg_quality, named, parse
from ngfftile.errors import OptionError
from ngfftile.geometry import Region
from ngfftile.resample import halve
from ngfftile.shards import Layout, create, write_shard
from ngfftile.store import Store

RANDOM = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
COLOUR = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]])
CHUNKS = {
    "uint8": COLOUR,
    "grey": COLOUR[:1].copy(),
    "uint16": RANDOM.integers(0, 60000, (1, 64, 64), np.uint16),
    "int16": RANDOM.integers(-3000, 3000, (1, 64, 64), np.int16),
    "float32": RANDOM.normal(size=(2, 64, 64)).astype(np.float32),
    "bool": COLOUR[:1] > 40,
}
LOSSLESS = [Zstd(), Zstd(9), Blosc(), JpegLs()]


HELD = [(c, k) for c in LOSSLESS for k in CHUNKS if not isinstance(c, JpegLs) or CHUNKS[k].dtype.kind == "u"]


@pytest.mark.parametrize(("codec", "kind"), HELD, ids=repr)
def test_lossless_codecs_give_back_what_they_got_and_find_each_flipped_byte(codec, kind):
    chunk = CHUNKS[kind]
    out = np.empty_like(chunk)
    data = codec.encode(chunk)
    codec.decode(data, out)
    assert np.array_equal(out, chunk)
    for at in RANDOM.integers(0, len(data), 40):
        changed = bytearray(data)
        changed[at] ^= 1 << int(RANDOM.integers(8))
        try:
            codec.decode(bytes(changed), out)
        except ValueError:
            continue
        assert np.array_equal(out, chunk)  # a bit of zstd's frame header that means nothing


@pytest.mark.parametrize("codec", [Jpeg(90), Jpeg(75, subsampling="420"), Jpeg(90).sharing()], ids=repr)
def test_jpeg_is_near_and_tables_can_be_shared(codec):
    out = np.empty_like(COLOUR)
    codec.decode(codec.encode(COLOUR), out)
    assert np.abs(out.astype(int) - COLOUR).mean() < 6
    with pytest.raises(ValueError, match="checksum"):
        codec.decode(codec.encode(COLOUR)[:-1] + b"x", out)


def test_shared_tables_change_the_size_and_no_pixel():
    alone, sharing = Jpeg(80), Jpeg(80).sharing()
    assert len(sharing.encode(COLOUR)) <= len(alone.encode(COLOUR)) - 130
    first, second = np.empty_like(COLOUR), np.empty_like(COLOUR)
    alone.decode(alone.encode(COLOUR), first)
    sharing.decode(sharing.encode(COLOUR), second)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 100])
def test_the_quality_of_a_stream_is_read_from_its_tables(quality):
    assert jpeg_quality(imagecodecs.jpeg8_encode(COLOUR[0].copy(), level=quality)) == quality


def test_a_stream_without_tables_is_taken_for_90():
    assert jpeg_quality(b"no jpeg") == 90


@pytest.mark.parametrize(
    ("codec", "kind"),
    [
        *((codec, kind) for codec in (Zstd(), Blosc()) for kind in CHUNKS),
        (Jpeg(85), "uint8"),
        (Jpeg(85).sharing(), "uint8"),
        (Jpeg(85, "grayscale"), "grey"),
        (JpegLs(), "uint8"),
    ],
    ids=repr,
)
def test_metadata_are_what_zarr_python_reads_and_we_know_again(codec, kind, tmp_path):
    chunk = CHUNKS[kind]
    layout = Layout(64, 64, len(chunk), 0, codec)
    store = Store(tmp_path)
    create(store, "0", chunk.shape, chunk.dtype.name, layout)
    write_shard(store, layout.objects("0", (0, 0, 0), Region(0, 0, 64, 64)), chunk, layout)
    array = zarr.open_array(tmp_path / "0", mode="r")
    out = np.empty_like(chunk)
    codec.decode(codec.encode(chunk), out)
    assert np.array_equal(array[...], out)
    again = parse(array.metadata.to_dict()["codecs"][0]["configuration"]["codecs"])
    assert type(again) is type(codec)
    again.decode(codec.encode(chunk), out)
    assert np.array_equal(array[...], out)


def test_names_are_those_of_the_command_line():
    assert named("zstd") == Zstd(3)
    assert named("zstd:19").name == "zstd:19"
    assert named("blosc") == Blosc()
    assert (named("jpeg:90").subsampling, named("jpeg:89").subsampling) == ("444", "420")
    for wrong in ("zstd:0", "zstd:23", "zstd:", "jpeg", "jpeg:0", "jpeg:101", "blosc:3", "lzw", ""):
        with pytest.raises(OptionError, match="codec"):
            named(wrong)


def test_what_a_codec_cannot_hold_is_refused():
    with pytest.raises(OptionError, match="uint16"):
        Jpeg().zarr3(np.dtype(np.uint16))
    for codec in (Jpeg(), Jpeg2000()):
        with pytest.raises(OptionError, match=r"0\.4"):
            codec.zarr2(np.dtype(np.uint8))


def test_other_codecs_are_left_to_zarr_python():
    assert parse([{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]) is None
    assert parse([{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "zstd"}]) is None
    assert parse([]) is None
    assert codecs.parse([{"name": "transpose", "configuration": {"order": [2, 0, 1]}}]) is None


@pytest.mark.parametrize("space", ["ycbcr", "rgb", "grayscale"])
@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_kept_tile_decoded_at_half_size_is_near_the_mean_of_its_pixels(space, subsampling, shared):
    depth = 1 if space == "grayscale" else 3
    codec = Jpeg(80, space, subsampling)
    codec = codec.sharing() if shared else codec
    y, x = np.mgrid[:64, :64]
    chunk = np.stack([128 + 60 * np.sin(x / (5 + c)) * np.cos(y / 7) for c in range(depth)]).astype(np.uint8)
    stream = codec.stream(chunk)
    decoded, mean, half = (np.empty((depth, n, n), np.uint8) for n in (64, 32, 32))
    codec.decode(codec.seal(stream), decoded)
    halve(decoded, mean)
    codec.half(stream, half)
    noise = np.sqrt(((mean.astype(float) - half) ** 2).mean())
    assert 20 * np.log10(255 / noise) > 40
    # What the stream says of its colours, rightly or not, does not count.
    codec.half(
        stream[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([space == "rgb"]) + stream[2:], again := half * 0
    )
    assert np.array_equal(again, half)
    for broken in (stream[:40], stream[:-60], b"", b"\xff\xd8\xff\xd9", bytes(1000)):
        with pytest.raises(ValueError):
            codec.half(broken, half)
