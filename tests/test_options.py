"""What a user can choose of a conversion: each choice does what it says, and a killed run still ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import ngfftile as nt
from ngfftile.errors import OptionError, SourceError
from ngfftile.pyramid import Shard
from ngfftile.resample import commonest, pick
from ngfftile.sources import open_source
from ngfftile.store import Store
from ngfftile.writer.graph import DAMAGED, Job, write_base

COMMAND = Path(sys.executable).with_name("ngfftile")
CHOICES = {
    "source": ["--codec", "source"],
    "source:zstd": ["--codec", "source:zstd"],
    "jpeg": ["--codec", "jpeg:75"],
    "0.4": ["--ngff", "0.4"],
    "single chunks": ["--shard", "0"],
    "planar": ["--planar", "--codec", "blosc"],
    "mode": ["--method", "mode"],
}


def tree(store):
    return {key: Store(store).whole(key) for key in Store(store).keys()}  # noqa: SIM118 (no dict)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return nt.synthetic.write_svs(tmp_path_factory.mktemp("big") / "big.svs", 3500, 2600, tile=240, seed=5)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_killed_conversion_goes_on_to_the_same_bytes(choice, big, tmp_path):
    arguments = ["convert", str(big), "--workers", "1", *CHOICES[choice]]
    if "--shard" not in arguments and "0.4" not in arguments:
        arguments += ["--shard", "512"]
    subprocess.run([COMMAND, *arguments, "-o", tmp_path / "a.ome.zarr"], check=True, capture_output=True)
    process = subprocess.Popen([COMMAND, *arguments, "-o", tmp_path / "b.ome.zarr"], stderr=subprocess.DEVNULL)
    partial = tmp_path / "b.ome.zarr.partial" / "store" / "0"
    while sum(p.is_file() for p in partial.rglob("*")) < 12:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b.ome.zarr").exists()
    again = subprocess.run(
        [COMMAND, *arguments, "-o", tmp_path / "b.ome.zarr"], check=True, capture_output=True, text=True
    )
    assert choice in {"0.4", "single chunks"} or "of an earlier run kept" in again.stdout
    assert tree(tmp_path / "a.ome.zarr") == tree(tmp_path / "b.ome.zarr")


def test_kept_tiles_are_the_sources_own_and_decode_to_the_same_pixels(big, tmp_path):
    nt.convert(big, tmp_path / "kept.ome.zarr", codec="source")
    nt.convert(big, tmp_path / "plain.ome.zarr")
    kept, plain = nt.open(tmp_path / "kept.ome.zarr"), nt.open(tmp_path / "plain.ome.zarr")
    assert np.array_equal(kept.image(level=0), plain.image(level=0))
    assert np.array_equal(zarr.open_array(tmp_path / "kept.ome.zarr" / "0")[...], plain.image(level=0))
    shard = (tmp_path / "kept.ome.zarr/0/c/0/0/0").read_bytes()
    with tifffile.TiffFile(big) as tiff:
        page = tiff.pages[0]
        for offset, count in list(zip(page.dataoffsets, page.databytecounts, strict=True))[:20]:
            tiff.filehandle.seek(offset)
            assert tiff.filehandle.read(count) in shard
    bytes_ = sum(len(data) for key, data in tree(tmp_path / "kept.ome.zarr").items() if "associated" not in key)
    assert bytes_ < 1.45 * big.stat().st_size
    # The other levels are near the lossless ones.
    for level in range(1, len(plain.levels)):
        difference = kept.image(level=level).to_numpy().astype(int) - plain.image(level=level).to_numpy()
        assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("width", range(296, 304))
def test_what_lies_beside_the_picture_in_its_last_tiles_does_not_shine_in(width, tmp_path):
    """Writers fill them up with black, within a block of 8 pixels that is decoded at half size."""
    grey = np.full((300, width, 3), 128, np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", grey, photometric="rgb", tile=(128, 128), compression="jpeg")
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr", codec="source")
    level = nt.open(tmp_path / "x.ome.zarr").image(level=1).to_numpy().astype(int)
    assert np.abs(level - 128).max() <= 2


def test_what_cannot_be_kept_is_refused_with_the_reason(tmp_path):
    pixels = np.zeros((300, 300, 3), np.uint8)
    tifffile.imwrite(tmp_path / "lzw.tif", pixels, photometric="rgb", tile=(128, 128), compression="lzw")
    for options, why in (({}, "LZW"), ({"ngff": "0.4"}, r"0\.4"), ({"shard": 0}, "shards")):
        with pytest.raises(OptionError, match=f"cannot be kept: .*{why}"):
            nt.plan(tmp_path / "lzw.tif", codec="source", **options)
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((30, 30), np.uint16))
    with pytest.raises(OptionError, match="jpeg cannot hold uint16"):
        nt.plan(tmp_path / "grey.tif", codec="jpeg:90")


@pytest.mark.parametrize("codec", ["zstd", "blosc", "jpeg:80", "jpeg:95"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("shard", [0, 128])
@pytest.mark.parametrize("rgb", [False, True])
def test_every_codec_writes_chunks_of_any_depth_that_all_can_read(codec, planar, shard, rgb, tmp_path):
    y, x = np.mgrid[:200, :300]
    pixels = np.stack([128 + 90 * np.sin(x / (20 + 5 * c)) * np.cos(y / 30) for c in range(3)], -1).astype(np.uint8)
    pixels = pixels if rgb else pixels[..., 0]
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb" if rgb else "minisblack", tile=(64, 64))
    done = nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr", codec=codec, planar=planar, shard=shard, chunk=64)
    theirs = zarr.open_array(tmp_path / "x.ome.zarr" / "0", mode="r")[...]
    assert np.array_equal(nt.open(tmp_path / "x.ome.zarr").image(level=0), theirs)
    noise = np.sqrt(((theirs - np.atleast_3d(pixels).transpose(2, 0, 1).astype(float)) ** 2).mean())
    assert noise < 4 if codec.startswith("jpeg") else noise == 0
    assert nt.verify(tmp_path / "x.ome.zarr", source=tmp_path / "x.tif").ok
    lossy = f"lossy: all levels are JPEG of quality {codec[5:]}"
    assert (lossy in done.notes) == (lossy in nt.open(done.path).facts["notes"]) == codec.startswith("jpeg")


def test_what_a_codec_loses_is_said_and_not_of_a_lossless_copy(svs, tmp_path):
    above = "levels above 0 are JPEG of quality 85, with loss; --codec source:zstd keeps them without"
    assert above in str(nt.plan(svs, codec="source"))
    kept = nt.convert(svs, tmp_path / "a.ome.zarr", codec="source")
    assert above in kept.notes
    assert above in nt.open(kept.path).facts["notes"]
    assert not nt.convert(kept.path, tmp_path / "b.ome.zarr").notes
    assert not nt.convert(svs, tmp_path / "c.ome.zarr", codec="source:zstd").notes


def test_kept_tiles_that_a_strict_decoder_refuses_are_told(tmp_path):
    y, x = np.mgrid[:512, :640]
    pixels = np.stack([(128 + 90 * np.sin(x / (7 + c)) * np.cos(y / 9)) for c in range(3)], -1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, tile=(256, 256), compression="jpeg", photometric="ycbcr")
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        at, count = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    with (tmp_path / "x.tif").open("r+b") as file:
        file.seek(at + count - 40)
        file.write(bytes(38))  # between the last codes and the end: bytes that mean nothing
    done = nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr", codec="source")
    assert not done.damaged
    (note,) = (note for note in done.notes if "strict" in note)
    assert note.startswith("strict JPEG decoders refuse 1 tile, kept as in the source (x 256 y 0: ")
    assert note in nt.open(done.path).facts["notes"]
    assert nt.verify(done.path, source=tmp_path / "x.tif").ok


def test_profiles_are_their_options_and_options_win(svs):
    web, qupath = nt.plan(svs, profile="web"), nt.plan(svs, profile="qupath")
    assert (web.pyramid.chunk, web.options.ngff) == (512, "0.5")
    assert (qupath.pyramid.chunk, qupath.options.ngff, qupath.codec.name) == (1024, "0.4", "blosc")
    assert qupath.options.planar
    assert nt.plan(svs, profile="qupath", chunk=256).pyramid.chunk == 256
    assert nt.plan(svs, profile="archive").keeps
    wrong = (
        {"profile": "x"},
        {"ngff": "0.3"},
        {"method": "x"},
        {"damaged": "x"},
        {"ngff": "0.4", "shard": 1024},
        {"codec": "source:lzw"},
    )
    for options in wrong:
        with pytest.raises(OptionError):
            nt.plan(svs, **options)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_commonest_of_four_is_found_whole_pixels_at_a_time(seed, channels):
    block = np.random.default_rng(seed).integers(0, 3, (channels, 8, 8), np.uint8)
    out, first = (np.empty((channels, 4, 4), np.uint8) for _ in range(2))
    commonest(block, out)
    pick(block, first)
    for y, x in product(range(4), repeat=2):
        four = [tuple(block[:, 2 * y + i, 2 * x + j]) for i, j in product(range(2), repeat=2)]
        assert tuple(out[:, y, x]) == max(four, key=lambda p: (four.count(p), -four.index(p)))
        assert tuple(first[:, y, x]) == four[0]


@pytest.mark.parametrize("method", ["nearest", "mode"])
def test_labels_are_never_averaged(method, tmp_path):
    names = np.random.default_rng(1).choice([0, 10, 200], (2, 700, 600)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", names, metadata={"axes": "CYX"})
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr", method=method)
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert [set(np.unique(slide.image(level=k))) for k in range(3)] == [{0, 10, 200}] * 3
    if method == "nearest":
        assert np.array_equal(slide.image(level=1), names[:, ::2, ::2])
        assert slide.image(level=1).coords["x"].to_numpy()[0] == 0.0
    assert nt.verify(tmp_path / "x.ome.zarr", source=tmp_path / "x.tif", full=True).ok


def test_yes_or_no_pixels_take_the_mode(tmp_path):
    pixels = np.random.default_rng(1).random((600, 500)) > 0.5
    tifffile.imwrite(tmp_path / "x.tif", pixels)
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert slide.dtype == bool
    assert np.array_equal(slide.image(level=0)[0], pixels)
    assert slide.facts["pyramid"]["method"] == "mode"
    with pytest.raises(OptionError, match="no mean"):
        nt.plan(tmp_path / "x.tif", method="mean")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_stacks_of_time_channels_and_planes_come_through(dtype, tmp_path):
    random = np.random.default_rng(2)
    pixels = random.integers(0, 120, (2, 3, 4, 300, 280)).astype(dtype)
    about = {
        "axes": "TCZYX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.4,
        "PhysicalSizeZ": 2.0,
        "TimeIncrement": 3.0,
        "Channel": {"Name": ["DAPI", "FITC", "Cy5"], "EmissionWavelength": [461, 519, 670]},
    }
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, metadata=about, tile=(128, 128))
    for version in ("0.5", "0.4", "0.6"):
        place = tmp_path / f"{version}.ome.zarr"
        nt.convert(tmp_path / "x.ome.tif", place, ngff=version)
        slide = nt.open(place)
        assert np.array_equal(slide.image(level=0), pixels)
        assert slide.channels == ("DAPI", "FITC", "Cy5")
        assert slide.mpp == nt.Mpp(0.5, 0.4)
        assert slide.image(level=0).coords["z"].to_numpy().tolist() == [0.0, 2.0, 4.0, 6.0]
        assert slide.image(level=1, z=1, t=1).dims == ("c", "y", "x")
        assert [c.get("emission_nm") for c in slide.facts["channels"]] == [461, 519, 670]
        report = nt.verify(place, source=tmp_path / "x.ome.tif", full=True)
        assert report.ok, str(report)


def test_sixty_channels(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 60000, (60, 200, 210), np.uint16)
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, metadata={"axes": "CYX"})
    nt.convert(tmp_path / "x.ome.tif", tmp_path / "x.ome.zarr")
    assert np.array_equal(nt.open(tmp_path / "x.ome.zarr").image(level=0), pixels)


@pytest.fixture
def damaged(tmp_path):
    """A slide with one tile of noise in the place of JPEG."""
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 1500, 1100, tile=240, seed=2)
    with tifffile.TiffFile(svs) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[9], page.databytecounts[9]
    with svs.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * count)
    return svs


def test_damaged_tiles_stop_or_become_background_and_are_recorded(damaged, tmp_path):
    with pytest.raises(SourceError, match="row 1, column 2"):
        nt.convert(damaged, tmp_path / "x.ome.zarr", shard=256)
    assert not list(tmp_path.glob("x.ome.zarr*"))
    for options in ({"shard": 256}, {"codec": "source"}):
        place = tmp_path / f"{len(options)}{options.get('codec')}.ome.zarr"
        done = nt.convert(damaged, place, damaged="fill", **options)
        assert done.damaged == 1
        assert "1 damaged tile became background" in str(done)
        (tile,) = nt.open(place).facts["damaged"]
        assert (tile["x"], tile["y"], tile["width"], tile["height"]) == (480, 240, 240, 240)
        assert (nt.open(place).image(level=0)[:, 240:480, 480:720] == 255).all()
        report = nt.verify(place, source=damaged)
        assert report.ok, str(report)


def test_a_record_of_damage_goes_when_the_region_reads_well_before_it_is_stored(svs, tmp_path):
    what, region, flaws = nt.plan(svs, damaged="fill", shard=512), nt.Region(0, 0, 512, 512), [True]

    def read(region, plane, out, tell):
        if flaws[0]:
            tell(region, "noise")

    job = Job(SimpleNamespace(read=read), what, Store(tmp_path / "store"), Store(tmp_path))
    record = tmp_path / job.recorded(DAMAGED, region, 0, "cell")
    job.store.root.mkdir()
    for stored in (False, True):
        flaws[0] = True
        assert job.read(region, 0, "cell", None) == [region]
        if stored:  # with the background
            job.store.write("0/c/0/0/0", b"")
        flaws[0] = False
        assert job.read(region, 0, "cell", None) == []
        assert record.exists() == stored


def test_a_kept_tile_that_was_damaged_and_reads_well_again_is_what_the_store_has(svs, tmp_path):
    slide, what = open_source(svs), nt.plan(svs, damaged="fill", codec="source")
    job, place = Job(slide, what, Store(tmp_path / "store"), Store(tmp_path)), nt.Region(0, 0, 256, 256)
    shard, record = Shard(0, 0, 0, 0), tmp_path / job.recorded(DAMAGED, place, 0, "tile")
    job.store.root.mkdir()
    job.record(DAMAGED, place, 0, "tile", [(place, "noise")])
    fresh = write_base(job, shard, []).mean
    assert not record.exists()
    job.record(DAMAGED, place, 0, "tile", [(place, "noise")])  # as if the shard had been written with it
    again = write_base(job, shard, []).mean
    assert record.exists()
    assert (again[:, :128, :128] == 255).all()
    assert np.array_equal(again[:, 128:], fresh[:, 128:])
    assert not (fresh[:, :128, :128] == 255).all()


def test_a_file_of_several_slides_becomes_a_store_each(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        for i, side in enumerate((300, 200)):
            tiff.write(np.full((side, side), i + 1, np.uint8), metadata={"axes": "YX", "Name": f"scene {i}"})
    with pytest.raises(OptionError, match=r"2 scenes .*scene=0"):
        nt.convert(tmp_path / "x.ome.tif", tmp_path / "y.ome.zarr")
    subprocess.run([COMMAND, "convert", tmp_path / "x.ome.tif", "-o", tmp_path / "out"], check=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x.scene-0.ome.zarr", "x.scene-1.ome.zarr"]
    for i, side in enumerate((300, 200)):
        slide = nt.open(tmp_path / "out" / f"x.scene-{i}.ome.zarr")
        assert slide.size == nt.Size(side, side)
        assert (slide.image(level=0) == i + 1).all()
    subprocess.run(
        [COMMAND, "convert", tmp_path / "x.ome.tif", "-o", tmp_path / "one.ome.zarr", "--scene", "1"], check=True
    )
    assert nt.open(tmp_path / "one.ome.zarr").size == nt.Size(200, 200)


@pytest.mark.parametrize("versions", [("0.5", "0.4", "0.5"), ("0.4", "0.6", "0.5")], ids=str)
def test_stores_are_sources_and_lose_nothing_on_the_way(versions, svs, tmp_path):
    place = tmp_path / "0.ome.zarr"
    nt.convert(svs, place, ngff=versions[0], shard=0, chunk=128)
    first = nt.open(place)
    first.labels["dark"] = first.image(level=1).max("c") < 150
    names = {name: first.labels[name].image(level=0).to_numpy() for name in first.labels}
    for i, version in enumerate(versions[1:], 1):
        nt.convert(place, tmp_path / f"{i}.ome.zarr", ngff=version)
        place = tmp_path / f"{i}.ome.zarr"
    last = nt.open(place)
    assert last.id == first.id
    for level in range(len(first.levels)):
        assert np.array_equal(last.image(level=level), first.image(level=level))
    facts = ("mpp", "objective_power", "acquired", "vendor", "properties", "icc", "channels", "bounds")
    for fact in facts:
        assert getattr(last, fact) == getattr(first, fact), fact
    assert set(last.associated) == set(first.associated)
    for role in last.associated:
        assert np.array_equal(last.associated[role], first.associated[role])
    assert set(last.labels) == set(names)
    for name, mask in names.items():
        assert np.array_equal(last.labels[name].image(level=0), mask)
    report = nt.verify(place, source=tmp_path / "1.ome.zarr", full=True)
    assert report.ok, str(report)


def test_what_is_kept_of_people_is_said_once(svs, tmp_path):
    def run(*arguments):
        return subprocess.run([COMMAND, "convert", *map(str, arguments)], capture_output=True, text=True, check=True)

    (tmp_path / "more").mkdir()
    for name in ("a.svs", "b.svs"):
        os.link(svs, tmp_path / "more" / name)
    said = run(tmp_path / "more", "-o", tmp_path / "out").stderr
    assert said.count("--deidentify") == 1
    assert "label, macro" in said
    for option in ("--deidentify", "--no-label"):
        assert run(tmp_path / "more" / "a.svs", "-o", tmp_path / f"{option}.ome.zarr", option).stderr == ""
        root = json.loads((tmp_path / f"{option}.ome.zarr" / "zarr.json").read_text())
        assert root["attributes"]["ngfftile"]["associated_dropped"] == ["label", "macro"]
