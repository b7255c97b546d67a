"""Hostile files: whatever they declare, memory and time are bounded, and the command line says one error.

Each file is built here, and given to the command line in a process with limits. To spare the start of Python for each,
one command converts them all, and a process that has loaded all forks for each ``info``.
"""

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

import ngfftile as nt
from ngfftile import shards
from ngfftile.errors import SourceError, StoreError
from ngfftile.sources import child
from ngfftile.sources.child import Pool
from ngfftile.sources.openslide import OpenSlideSource

MEMORY, SECONDS = 6 << 30, 150  # addresses of a process, and time for one command over all files
INFO = """
import json, os, resource, signal, sys, time, traceback
import ngfftile.cli, pydicom, zarr
from ngfftile.sources import bioio, czi, dicom, ngff, openslide, picture, tiff

for line in sys.stdin:
    log, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        sys.argv, code = ["ngfftile", *arguments], 70
        try:
            ngfftile.cli.main()
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss >> 10]), flush=True)
"""
ENVIRONMENT = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def limit():
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# TIFF

KINDS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}
PLAIN = {256: (4, [64]), 257: (4, [64]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1])}
TILED = PLAIN | {322: (4, [64]), 323: (4, [64])}


def tiff(tags, data=b"", following=0, first=8):
    """A TIFF of one directory, and data right behind it; where a value is a bytes-like offset, give ``DATA`` + x."""
    count, at = len(tags), 8 + 2 + 12 * len(tags) + 4
    end = at + len(data)
    entries, blobs = b"", b""
    for code, (kind, values) in sorted(tags.items()):
        if isinstance(values, bytes):
            raw, number = values, len(values)
        else:
            raw = struct.pack(f"<{len(values)}{KINDS[kind]}", *(v + at + DATA if v < 0 else v for v in values))
            number = len(values)
        if len(raw) > 4:
            raw, blobs = struct.pack("<I", end + len(blobs)), blobs + raw
        entries += struct.pack("<HHI", code, kind, number) + raw.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", first) + struct.pack("<H", count) + entries + struct.pack("<I", following)
    return head + data + blobs


DATA = 1 << 40
HERE = -DATA  # the first byte of the data


def tile(data, compression, more=None):
    """A TIFF of one tile, 64 x 64, whose bytes are given."""
    places = {259: (3, [compression]), 324: (4, [HERE]), 325: (4, [len(data)])}
    return tiff(TILED | places | (more or {}), data)


# OpenSlide asks glib for the pixels of such a tile, and glib aborts.
ABORTS = {322: (4, [2**31 - 16]), 323: (4, [2**31 - 16])}


def many_tiles(side, tile_side, data, count=None):
    """A picture all of whose tiles are the same bytes."""
    tiles = (side // tile_side) ** 2
    number = len(data) if count is None else count
    return tiff(
        PLAIN
        | {256: (4, [side]), 257: (4, [side]), 322: (4, [tile_side]), 323: (4, [tile_side]), 259: (3, [8])}
        | {324: (4, [HERE if number else 0] * tiles), 325: (4, [number] * tiles)},
        data,
    )


def long_chain(count):
    """A directory after the other."""
    step = 2 + 12 + 4
    one = struct.pack("<HHHI", 1, 256, 4, 1) + struct.pack("<I", 64)
    chain = b"".join(one + struct.pack("<I", 8 + (i + 1) * step) for i in range(count))
    return b"II*\0" + struct.pack("<I", 8) + chain[:-4] + bytes(4)


def bigtiff(values):
    """A BigTIFF whose table of tiles has a number of entries that wraps in 64 bits."""
    entries = {code: (4, 1, struct.pack("<Q", v[0])) for code, (_, v) in TILED.items()}
    entries |= {324: (16, values, struct.pack("<Q", 16)), 325: (16, values, struct.pack("<Q", 16))}
    body = b"".join(struct.pack("<HHQ", code, kind, n) + raw for code, (kind, n, raw) in sorted(entries.items()))
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries)) + body + bytes(8)


# Streams within tiles


def jpeg2000(edit=None, shape=(64, 64), **options):
    """A codestream, its SIZ and COD changed by ``edit``: offsets from SOC to what is packed there."""
    pixels = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    data = bytearray(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", **options))
    for at, (form, *values) in (edit or {}).items():
        struct.pack_into(form, data, at, *values)
    return bytes(data)


def with_packets():
    """A codestream of 65,535 layers, in precincts of one pixel."""
    data = jpeg2000()
    at = data.index(b"\xff\x52")
    (length,) = struct.unpack_from(">H", data, at + 2)
    sizes = bytes(data[at + 9] + 1)
    style = bytearray(data[at : at + 2 + length] + sizes)
    style[4] |= 1
    struct.pack_into(">H", style, 2, length + len(sizes))
    struct.pack_into(">H", style, 6, 65535)
    return data[:at] + bytes(style) + data[at + 2 + length :]


def with_components(number):
    data = jpeg2000()
    (length,) = struct.unpack_from(">H", data, 4)
    size = bytearray(data[2 : 4 + length])
    size += bytes([7, 1, 1]) * (number - 1)
    struct.pack_into(">H", size, 2, length + 3 * (number - 1))
    struct.pack_into(">H", size, 38, number)
    return data[:2] + bytes(size) + data[4 + length :]


def jp2_with_decoy():
    """A JP2 file with a small codestream in a box of no meaning, before the one that is decoded."""
    small, large = jpeg2000(), jpeg2000({8: (">II", 2**15, 2**15), 24: (">II", 2**15, 2**15)})
    box = lambda kind, body: struct.pack(">I4s", 8 + len(body), kind) + body  # noqa: E731
    whole = imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), codecformat="jp2")
    at = whole.index(b"jp2c") - 4
    return whole[:at] + box(b"free", small) + box(b"jp2c", large)


def jpeg_of(side, data=None):
    """A JPEG that declares another size."""
    data = bytearray(data or imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8)))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    return bytes(data)


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan comes again and again."""
    place = BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(place, "JPEG", progressive=True)
    data = place.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def tables_with_picture():
    large, own = jpeg_of(65500), imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8))
    return tile(own, 7, {347: (7, large)})


LIES = {
    "png": (34933, imagecodecs.png_encode),
    "jpegxr": (34934, imagecodecs.jpegxr_encode),
    "jpegxl": (50002, partial(imagecodecs.jpegxl_encode, effort=1)),
    "jpegxl in a box": (50002, partial(imagecodecs.jpegxl_encode, effort=1, usecontainer=True)),
    "lerc": (34887, imagecodecs.lerc_encode),
    "webp": (50001, partial(imagecodecs.webp_encode, lossless=True)),
    "jpeg2000": (34712, imagecodecs.jpeg2k_encode),
    "jpeg": (7, imagecodecs.jpeg8_encode),
}

ZEROS = bytes(1 << 28)
BOMBS = {
    "deflate": (8, lambda: zlib.compress(ZEROS, 1)),
    "lzw": (5, lambda: imagecodecs.lzw_encode(ZEROS[: 1 << 26])),
    "zstd": (50000, lambda: imagecodecs.zstd_encode(ZEROS)),
    "lzma": (34925, lambda: lzma.compress(ZEROS[: 1 << 26], preset=0)),
    "packbits": (32773, lambda: b"\x81\0" * (1 << 20)),
}

BOMB = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">%b]><OME>&j;</OME>\0' % b"".join(
    b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)
)
ELSEWHERE = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><OME>&a;</OME>\0'
# Name: how it is made, and what the error says.
HEADERS = {
    "loop": (lambda: tiff(TILED, following=8), "run in a loop"),
    "first directory past the end": (lambda: tiff(TILED, first=1 << 30), "the file ends at"),
    "next directory past the end": (lambda: tiff(TILED, following=1 << 30), "the file ends at"),
    "100,000 directories": (lambda: long_chain(100_000), "image directories with"),
    "tag of 2^31 values": (lambda: bigtiff(2**31), "has 2147483648 values"),
    "tag whose bytes wrap": (lambda: bigtiff(2**61), "has 2305843009213693952 values"),
    "2^30 sub-directories": (lambda: tiff(TILED | {330: (4, [8] * 2000)}), "names 2000 sub-directories"),
    "tiles of 2^31": (lambda: tile(b"1234", 1, ABORTS), "too large to decode"),
    "tiles of 0": (lambda: tile(b"1234", 1, {322: (4, [0])}), ""),
    "picture of 2^31": (lambda: tile(b"1234", 1, {256: (4, [2**31 - 1]), 257: (4, [2**31 - 1])}), "1 tiles listed"),
    "strip of 2^32 rows": (
        lambda: tiff(PLAIN | {257: (4, [2**32 - 1]), 278: (4, [2**32 - 1]), 273: (4, [HERE]), 279: (4, [4])}, b"1234"),
        "bytes in all",
    ),
    "65,535 samples": (lambda: tile(b"1234", 1, {277: (3, [65535])}), "65535 planes"),
    "tiles past the end": (lambda: tiff(TILED | {324: (4, [2**31]), 325: (4, [4096])}), "past the file's end"),
    "tables of one half": (
        lambda: tiff(TILED | {256: (4, [128]), 324: (4, [8, 8]), 325: (4, [8])}),
        "1 tiles listed",
    ),
    "empty tiles of 2^20 pixels": (lambda: many_tiles(1 << 20, 1 << 14, b"", 0), "--allow-sparse"),
    "one tile for all of 40 gigapixels": (
        lambda: many_tiles(391 * 512, 512, zlib.compress(bytes(512 * 512))), "--allow-sparse",
    ),
    "JPEG tables with a picture": (tables_with_picture, "JPEG tables hold a picture"),
    "XML of a million entities": (lambda: tile(bytes(4096), 1, {270: (2, BOMB)}), "its XML description cannot be read"),
    "XML of a file elsewhere": (
        lambda: tile(bytes(4096), 1, {270: (2, ELSEWHERE)}),
        "its XML description cannot be read",
    ),
    "XML of 20 MB": (
        lambda: tile(bytes(4096), 1, {270: (2, b"<OME>" + b"<a></a>" * 3_000_000 + b"</OME>\0")}),
        "16777216 is the most",
    ),
}  # fmt: skip
STREAMS = {
    "JPEG of 65,500": (7, partial(jpeg_of, 65500), "declares 65500 x 65500 pixels"),
    "JPEG of 5,000 scans": (7, partial(jpeg_of_scans, 5000), "scans, 500 are the most"),
    "JPEG 2000 of 2^31": (34712, lambda: jpeg2000({8: (">II", 2**31, 2**31)}), "declares 2147483648 x 2147483648"),
    "JPEG 2000 behind another": (34712, jp2_with_decoy, "declares 32768 x 32768"),
    "JPEG 2000 of tiles of 1": (34712, lambda: jpeg2000({24: (">II", 1, 1)}), "4096 tiles of 1 components"),
    "JPEG 2000 of tiles far away": (
        34712,
        lambda: jpeg2000({8: (">4I", 2**31, 2**31, 2**31 - 64, 2**31 - 64), 24: (">II", 1, 1)}),
        "4611686018427387904 tiles",
    ),
    "JPEG 2000 of 16,384 components": (34712, lambda: with_components(16384), "declares 16384 samples"),
    "JPEG 2000 of 2^28 packets": (34712, with_packets, "packets, 16777216 are the most"),
    **{f"{name} of another size": (code, partial(encode, np.zeros((500, 500, 3), np.uint8)), "declares 500 x 500")
       for name, (code, encode) in LIES.items()},
}  # fmt: skip


# Pictures, DICOM, stores


def png_of(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def deflated_dicom():
    """A header that inflates to gigabytes, which a library does before anyone can look."""
    meta = b"".join(
        struct.pack("<HH2sH", 2, tag, b"UI", len(value)) + value
        for tag, value in ((2, b"1.2.840.10008.5.1.4.1.1.77.1.6"), (16, b"1.2.840.10008.1.2.1.99"))
    )
    head = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return bytes(128) + b"DICM" + head + meta + packer.compress(ZEROS) + packer.flush()


PICTURES = {
    "PNG of 2^31": ("png", partial(png_of, 2**31 - 1, 2**31 - 1), "the most"),
    "PNG of 30,000": ("png", partial(png_of, 30_000, 30_000), "cannot be"),
    "picture, JPEG of 65,500": ("jpg", partial(jpeg_of, 65500), "cannot be"),
    "picture, JPEG of 5,000 scans": ("jpg", partial(jpeg_of_scans, 5000), "scans, 500 are the most"),
    "picture, JPEG 2000 of 2^31": ("jp2", lambda: jpeg2000({8: (">II", 2**31, 2**31)}), "the most"),
    "picture, JPEG 2000 of tiles of 1": ("jp2", lambda: jpeg2000({24: (">II", 1, 1)}), "4096 tiles of 1"),
    "DICOM, deflated": ("dcm", deflated_dicom, "deflated"),
}


def store(change=None, chunk=None, attributes=None, zarr_format=3, levels=1, path="0"):
    """A store of one array, 64 x 64, of others; what ``change`` says replaces its metadata."""

    def make(folder):
        array = {
            "zarr_format": 3, "node_type": "array", "shape": [64, 64], "data_type": "uint8", "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64, 64]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3, "checksum": False}}],
        }  # fmt: skip
        if zarr_format == 2:
            array = {
                "zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": "|u1", "compressor": None,
                "fill_value": 0, "order": "C", "filters": None, "dimension_separator": "/",
            }  # fmt: skip
        axes = [{"name": axis, "type": "space"} for axis in "yx"]
        steps = [{"type": "scale", "scale": [1, 1]}]
        datasets = [{"path": path, "coordinateTransformations": steps}] * levels
        image = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]} | (attributes or {})
        if zarr_format == 2:
            image["multiscales"][0]["version"] = "0.4"
        place = folder / "0" / ("c/0" if zarr_format == 3 else "0")
        place.mkdir(parents=True)
        (place / "0").write_bytes(bytes(4096) if chunk is None else chunk())
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": image}}
        array |= change or {}
        if zarr_format == 2:
            (folder / ".zgroup").write_text('{"zarr_format": 2}')
            (folder / ".zattrs").write_text(json.dumps(image))
            (folder / "0" / ".zarray").write_text(json.dumps(array))
        else:
            (folder / "zarr.json").write_text(json.dumps(group))
            (folder / "0" / "zarr.json").write_text(json.dumps(array))

    return make


def linked(folder):
    """A chunk that is a link to a file elsewhere."""
    store()(folder)
    chunk = folder / "0" / "c" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to("/etc/passwd")


def codec(name, **configuration):
    return {"codecs": [{"name": "bytes"}, {"name": name, "configuration": configuration}]}


def grid(*shape):
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}}}


def blosc_of(size):
    data = bytearray(imagecodecs.blosc_encode(bytes(4096)))
    struct.pack_into("<I", data, 4, size)
    return bytes(data)


BLOSC = {"typesize": 1, "cname": "zstd", "clevel": 3, "shuffle": "noshuffle", "blocksize": 0}
TWICE = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}] * 2
MORE = "decodes to more than"
# Name: the store, what is said, and what `info` comes to.
STORES = {
    "zstd bomb": (store(chunk=lambda: imagecodecs.zstd_encode(ZEROS + b"0")), MORE, 0),
    "gzip bomb": (store(codec("gzip", level=1), lambda: gzip.compress(ZEROS + b"0", 1)), MORE, 0),
    "gzip bomb of two": (store(codec("gzip", level=1), lambda: gzip.compress(b"0") + gzip.compress(ZEROS, 1)), MORE, 0),
    "blosc bomb": (store(codec("blosc", **BLOSC), partial(blosc_of, 2**31 - 100)), MORE, 0),
    "bomb in a bomb": (store({"codecs": TWICE[:3] + TWICE[1:2]}), "compressed more than once", 1),
    "shape of 2^62": (store({"shape": [2**62, 2**62]}), "has the shape", 1),
    "sparse of 2^31": (store({"shape": [2**31, 2**31]}), "--allow-sparse", 0),
    "chunks of 2^31": (store(grid(2**31, 2**31)), "has chunks of", 1),
    "pickled chunks": (
        store({"dtype": "|O", "filters": [{"id": "pickle"}]}, zarr_format=2),
        "has pixels of object",
        None,
    ),
    "unknown codec": (store({"filters": [{"id": "pickle"}]}, zarr_format=2), "is compressed by pickle", None),
    "100 levels": (store(levels=100), "100 levels, 32 are the most", 1),
    "path outside": (store(path="../other"), "leaves the store", 1),
    "path of a scheme": (store(path="file:///etc"), "leaves the store", 1),
    "link outside": (linked, "leaves the store", 0),
    "metadata of 20 MB": (store(attributes={"x": "x" * (20 << 20)}), "zarr.json", 1),
}

CASES = {f"{kind}.tif": (*one, 1) for kind, one in HEADERS.items()}
CASES |= {f"{kind}.tif": (lambda make=make, code=code: tile(make(), code), said, 0)
          for kind, (code, make, said) in STREAMS.items()}  # fmt: skip
CASES |= {f"{kind}.{end}": (make, said, None) for kind, (end, make, said) in PICTURES.items()}
CASES |= {f"{kind}.zarr": one for kind, one in STORES.items()}


def named(case):
    return re.sub("[^A-Za-z0-9.]+", "-", case)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder of all hostile files."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits and forks are Linux's here")
    folder = tmp_path_factory.mktemp("hostile")
    for case, (make, *_) in CASES.items():
        if case.endswith(".zarr"):
            make(folder / named(case))
        elif case.endswith(".dcm"):
            (folder / "dicom").mkdir()
            (folder / "dicom" / named(case)).write_bytes(make())
        else:
            (folder / named(case)).write_bytes(make())
    return folder


def place(hostile, case):
    return hostile / ("dicom" if case.endswith(".dcm") else "") / named(case)


@pytest.fixture(scope="module")
def converted(hostile, tmp_path_factory):
    """What the command line says of all of them, in a process with limits, and the folder that it writes to."""
    folder = tmp_path_factory.mktemp("converted")
    command = [sys.executable, "-m", "ngfftile", "convert", *(place(hostile, case) for case in CASES), "-o", folder]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False,
        preexec_fn=limit,
    )  # fmt: skip
    return done, folder


def test_a_batch_of_hostile_files_ends_with_a_summary(converted):
    done, folder = converted
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert f"0 of {len(CASES)} slides done, {len(CASES)} failed" in done.stdout
    assert not list(folder.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_converting_a_hostile_file_is_one_error(case, hostile, converted):
    _, said, _ = CASES[case]
    lines = [line for line in converted[0].stderr.splitlines() if str(place(hostile, case)) in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert lines[0].startswith("failed ")


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    """Runs ``ngfftile info`` in a fork of a process that has loaded all: exit code, peak MiB, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", INFO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=limit,  # noqa: PLW1509 (no threads yet)
    )  # fmt: skip
    log = tmp_path_factory.mktemp("log") / "log"

    def run(path):
        log.unlink(missing_ok=True)
        process.stdin.write(json.dumps([str(log), "info", str(path)]) + "\n")
        process.stdin.flush()
        return *json.loads(process.stdout.readline()), log.read_text()

    yield run
    with process:
        process.stdin.close()


SPARSE = {"--allow-sparse", "bytes in all", "65535 planes"}


@pytest.mark.parametrize("case", CASES)
def test_what_a_hostile_file_is_takes_little(case, hostile, info):
    _, said, fails = CASES[case]
    path = place(hostile, case)
    code, memory, text = info(path)
    # What is too sparse to convert unasked may be looked at.
    assert code == (fails if fails is not None and said not in SPARSE else code)
    assert code in {0, 1}, text
    assert "Traceback" not in text
    assert memory < 600
    if code:
        assert text.startswith("error ")
        assert path.name in text
        assert said in text or "cannot be opened" in text  # zarr-python refuses some of itself


# Streams that decode to more than their tile


@pytest.mark.parametrize("kind", BOMBS)
def test_tiles_decode_to_no_more_than_a_tile(kind, tmp_path):
    """A bomb is damage, or what of it fills the tile; either way it takes no memory."""
    code, make = BOMBS[kind]
    path = tmp_path / "x.tif"
    path.write_bytes(tile(make(), code))
    source, out = nt.open_source(path), np.empty((64, 64, 1), np.uint8)
    tracemalloc.start()
    try:
        source.read(nt.Region(0, 0, 64, 64), 0, out, lambda *_: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert not out.any()


def test_one_tile_for_thousands_is_read(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(many_tiles(1600, 16, zlib.compress(bytes([7]) * 256)))
    source, out = nt.open_source(path), np.empty((1600, 1600, 1), np.uint8)
    source.read(nt.Region(0, 0, 1600, 1600), 0, out)
    assert (out == 7).all()


def test_a_sparse_slide_is_read_where_that_is_allowed(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(many_tiles(1 << 20, 1 << 14, b"", 0))
    with pytest.raises(SourceError, match="--allow-sparse"):
        nt.open_source(path)
    assert nt.open_source(path, allow_sparse=True).info.size.x == 1 << 20


def streamed(data):
    """A frame of zstd that does not say how much it holds."""
    return bytes.fromhex("28b52ffd0058") + b"".join(
        (len(part) << 3 | (at + 65536 >= len(data))).to_bytes(3, "little") + part
        for at in range(0, len(data), 65536)
        for part in [data[at : at + 65536]]
    )


MEMBERS = {
    "gzip": partial(gzip.compress, compresslevel=1), "bz2": partial(bz2.compress, compresslevel=1),
    "lzma": partial(lzma.compress, preset=0), "zstd": imagecodecs.zstd_encode, "zlib": partial(zlib.compress, level=1),
}  # fmt: skip


@pytest.mark.parametrize("kind", MEMBERS)
def test_all_members_of_a_chunk_count(kind):
    make = MEMBERS[kind]
    assert shards._decoded(make(b"x" * 10) + make(ZEROS + b"0"), kind) > shards.MOST_CHUNK_BYTES
    noise = np.random.default_rng(1).bytes(1 << 19)  # so much that it is looked at
    assert shards._decoded(make(noise) + make(noise), kind) == 1 << 20


def test_frames_of_zstd_that_say_no_size_or_hold_nothing_count():
    skip = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    data = np.random.default_rng(1).bytes(200_000)
    assert imagecodecs.zstd_decode(streamed(data), out=1 << 20) == data
    assert (
        shards._decoded(streamed(data) + skip + imagecodecs.zstd_encode(b"x" * 300) + streamed(data), "zstd") == 400_300
    )
    assert shards._decoded(imagecodecs.zstd_encode(b""), "zstd") == 0
    with pytest.raises(ValueError, match="cut short"):
        shards._decoded(streamed(data)[:-70_000], "zstd")


@pytest.mark.parametrize("kind", [kind for kind, one in STORES.items() if one[1] == MORE or kind == "link outside"])
def test_a_hostile_store_is_an_error_when_its_pixels_are_read(kind, hostile):
    with pytest.raises(StoreError, match=STORES[kind][1]):
        nt.open(place(hostile, f"{kind}.zarr")).image(level=0).to_numpy()


# Processes of OpenSlide


def aborting(path, **more):
    path.write_bytes(tile(b"1234", 1, ABORTS | more.get("tags", {})))
    return path


def test_a_file_that_ends_openslide_when_it_is_read_is_an_error(tmp_path):
    source = nt.open_source(aborting(tmp_path / "x.tif"), reader="openslide")
    out = np.ones((64, 64, 3), np.uint8)
    with pytest.raises(SourceError, match=r"x\.tif: x 0, y 0, .* cannot be read \(OpenSlide crashed \(SIG[A-Z]+\)\)"):
        source.read(nt.Region(0, 0, 64, 64), 0, out)
    found = []
    source.read(nt.Region(0, 0, 64, 64), 0, out, lambda region, why: found.append((region, why)))
    assert [region for region, _ in found] == [nt.Region(0, 0, 64, 64)]
    assert (out == 255).all()


def test_a_file_that_ends_openslide_when_it_is_opened_is_refused(tmp_path):
    path = aborting(
        tmp_path / "x.tif", tags={34675: (7, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())}
    )
    with pytest.raises(SourceError, match=r"openslide: OpenSlide crashed \(SIG[A-Z]+\)"):
        nt.open_source(path, reader="openslide")


SERVED = """
import builtins, os, signal, time
class Served:
    def __init__(self, word): self.word = word
    def echo(self, value): return [self.word, value]
    def fill(self, out, value): out[:] = bytes([value]) * len(out)
    def fail(self): raise ValueError("no such thing")
    def end(self, number): os.kill(os.getpid(), number)
    def leave(self): os._exit(3)
    def lack(self, kind, words): raise getattr(builtins, kind)(words)
    def wait(self): time.sleep(60)
    def print(self): print("no answer"); return os.system("echo no answer either")
    def pid(self): return os.getpid()
    def limits(self):
        import resource
        return [resource.getrlimit(k)[0] for k in (resource.RLIMIT_AS, resource.RLIMIT_CORE)]
"""


@pytest.fixture
def pool(tmp_path):
    module = tmp_path / "served.py"
    module.write_text(SERVED)
    return Pool(module, "word")


def ask(pool, *question, **more):
    with pool.child() as one:
        return one.ask(*question, **more)


def test_a_child_answers_fills_memory_and_says_errors(pool):
    assert ask(pool, "echo", [1, "ä"])[0] == ["word", [1, "ä"]]
    for room in (10, 5_000_000, 100):
        assert bytes(ask(pool, "fill", 7, room=room)[1]) == b"\7" * room
    with pytest.raises(child.AnswerError, match="no such thing") as caught:
        ask(pool, "fail")
    assert not isinstance(caught.value, child.CrashError)
    first = ask(pool, "pid")[0]
    assert ask(pool, "print")[0] == 0
    assert ask(pool, "pid")[0] == first
    assert ask(pool, "limits")[0] == [child.MOST_MEMORY, 0]


CRASHES = [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]


@pytest.mark.parametrize("number", CRASHES, ids=lambda number: number.name)
def test_a_child_that_crashes_is_told_and_replaced(number, pool):
    with pytest.raises(child.CrashError, match=rf"crashed \({number.name}\)"):
        pool.ask(lambda one: one.ask("end", number))
    assert ask(pool, "echo", 1)[0] == ["word", 1]


LOST = {
    "killed": (("end", signal.SIGKILL), r"was ended \(SIGKILL\)"),
    "terminated": (("end", signal.SIGTERM), r"was ended \(SIGTERM\)"),
    "left": (("leave",), r"ended \(exit code 3\)"),
    "late": (("wait",), r"gave no answer in 0\.5 s"),
    "memory": (("lack", "MemoryError", ""), "lacks something"),
    "disk": (("lack", "OSError", "x"), "lacks something"),
    "disk, in words": (
        ("lack", "ValueError", "read: " + os.strerror(errno.EIO)),
        "lacks something.*Input/output error",
    ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_child_that_is_lost_is_asked_for_twice(how, pool, monkeypatch):
    question, said = LOST[how]
    asked = []
    monkeypatch.setattr(child, "_PAUSE", 0)
    first = ask(pool, "pid")[0]  # in the time that it takes to start
    if how == "late":
        real = child.Timer
        monkeypatch.setattr(child, "Timer", lambda _, end: real(0.5 if asked else 30, end))
        monkeypatch.setattr(child, "SECONDS", 0.5)

    def use(one, questions):
        pid = one._process.pid
        asked.append(pid)
        return one.ask(*next(questions))

    with pytest.raises(child.LostError, match=said):
        pool.ask(partial(use, questions=iter([question, question])))
    assert asked[0] == first != asked[1]
    asked.clear()
    assert pool.ask(partial(use, questions=iter([question, ("echo", 1)])))[0] == ["word", 1]
    assert len(set(asked)) == 2


@pytest.mark.parametrize("after", [False, True], ids=["in the pool", "as it answers"])
def test_a_child_that_was_ended_is_not_handed_out(after, pool):
    with pool.child() as one:
        one.ask("pid")
        if after:
            one._end_late()
    if not after:
        one._process.kill()
        os.waitid(os.P_PID, one._process.pid, os.WEXITED | os.WNOWAIT)
    assert ask(pool, "pid")[0] != one._process.pid


def test_what_opened_once_and_does_no_more_is_lost(pool, tmp_path):
    ask(pool, "pid")
    (tmp_path / "served.py").write_text("raise ValueError('gone')")
    with pytest.raises(child.LostError, match="cannot be had again"), pool.child(fresh=True):
        pass


def lack(monkeypatch, how):
    """Take something from the children that come."""

    def fail(*_, **__):
        raise OSError(getattr(errno, how, errno.ENOMEM), os.strerror(getattr(errno, how, errno.ENOMEM)))

    def kill(one, *_, **__):
        one._process.kill()
        raise one._end()

    if how in {"EAGAIN", "EMFILE", "ENOMEM"}:
        monkeypatch.setattr(child, "Popen", fail)
        monkeypatch.setattr(Pool, "_rested", lambda _: None)
    elif how == "mmap":
        monkeypatch.setattr(child._Memory, "room", fail)
    else:
        monkeypatch.setattr(child.Child, "ask", kill)


@pytest.mark.parametrize("damaged", ["fail", "fill"])
@pytest.mark.parametrize("how", ["EAGAIN", "EMFILE", "ENOMEM", "mmap", "SIGKILL"])
def test_what_the_machine_lacks_is_no_damage_and_the_draft_stays(how, damaged, monkeypatch, tmp_path):
    path = nt.synthetic.write_svs(tmp_path / "x.svs", 600, 400, seed=1)
    target = tmp_path / "x.ome.zarr"
    monkeypatch.setattr(child, "_PAUSE", 0)

    def convert():
        return nt.convert(path, target, reader="openslide", damaged=damaged, associated=False, shard=256, workers=1)

    with monkeypatch.context() as patch:
        real = OpenSlideSource.read

        def strike(*arguments):
            lack(patch, how)
            return real(*arguments)

        patch.setattr(OpenSlideSource, "read", strike)
        with pytest.raises((SourceError, StoreError), match=r"x\.svs: cannot be read \(OpenSlide .*--workers"):
            convert()
    assert (tmp_path / "x.ome.zarr.partial").exists()
    assert convert().damaged == 0
    expected = nt.open_source(path, reader="openslide")
    out = np.empty((400, 600, 3), np.uint8)
    expected.read(nt.Region(0, 0, 600, 400), 0, out)
    assert np.array_equal(nt.open(target).image(level=0).to_numpy().transpose(1, 2, 0), out)


def test_an_associated_image_comes_from_a_new_child_where_one_was_ended(tmp_path):
    source = nt.open_source(nt.synthetic.write_svs(tmp_path / "x.svs", 600, 400, seed=1), reader="openslide")
    with source._children.child() as one:
        pass
    one._process.kill()
    assert source.associated("label").any()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_children_serve_a_process_without_standard_streams(closed, tmp_path):
    if os.name == "nt":
        pytest.skip("shells differ there")
    path = nt.synthetic.write_svs(tmp_path / "x.svs", 600, 400, seed=1)
    code = (
        "import sys; from pathlib import Path; import numpy as np; import ngfftile as nt\n"
        "source, out = nt.open_source(sys.argv[1], reader='openslide'), np.empty((400, 600, 3), np.uint8)\n"
        "source.read(nt.Region(0, 0, 600, 400), 0, out); Path(sys.argv[2]).write_bytes(out.tobytes())\n"
    )
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, path, tmp_path / "out"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    out = np.empty((400, 600, 3), np.uint8)
    nt.open_source(path, reader="openslide").read(nt.Region(0, 0, 600, 400), 0, out)
    assert (tmp_path / "out").read_bytes() == out.tobytes()


def test_threads_that_ask_at_once_have_children_of_their_own(pool):
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda i: ask(pool, "fill", i, room=1000), range(30)))
    with ExitStack() as stack:
        pids = {stack.enter_context(pool.child()).ask("pid")[0] for _ in range(3)}
    assert len(pids) == 3
    assert ask(pool, "pid")[0] in pids


def test_children_end_when_the_source_is_collected_and_when_the_process_ends(tmp_path):
    path = nt.synthetic.write_svs(tmp_path / "x.svs", 600, 400, seed=1)
    code = (
        "import gc, json, os, sys; import ngfftile as nt\n"
        "source = nt.open_source(sys.argv[1], reader='openslide')\n"
        "with source._children.child() as one: first = one._process.pid\n"
        "del source, one; gc.collect()\n"
        "gone = not os.path.exists(f'/proc/{first}')\n"
        "source = nt.open_source(sys.argv[1], reader='openslide')\n"
        "with source._children.child() as one: print(json.dumps([gone, one._process.pid]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, path], capture_output=True, text=True, check=True)
    gone, last = json.loads(done.stdout)
    assert done.stderr == ""
    if sys.platform.startswith("linux"):
        assert gone
        assert not os.path.exists(f"/proc/{last}")  # noqa: PTH110


def test_a_forked_process_has_children_of_its_own(pool):
    if not hasattr(os, "fork"):
        pytest.skip("no forks on this system")
    first = ask(pool, "pid")[0]
    forked = os.fork()
    if not forked:
        os._exit(0 if ask(pool, "pid")[0] != first else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert ask(pool, "pid")[0] == first
