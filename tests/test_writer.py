"""Conversion: pixels, pyramid, metadata, one pass, interruption."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import distributed
import ngff_zarr
import numpy as np
import ome_zarr_models
import openslide
import pytest
import tensorstore
import tifffile
import yaozarrs
import zarr
from dask.core import get_dependencies
from dask.order import order

import ngfftile as nt
from conftest import real_slides
from ngfftile import writer
from ngfftile.draft import Draft
from ngfftile.errors import ExistsError, MissingError, OptionError, SourceError, StoreError
from ngfftile.pyramid import PyramidPlan
from ngfftile.sources.raster import Raster
from ngfftile.store import Store


def tree(folder):
    """All objects of a store with a digest of their bytes."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def halves(pixels):
    """The 2x mean of (c, y, x) by the book: sums of four, rounded half up, odd ends dropped, a size of 1 kept."""
    wide = pixels.astype(np.int64)
    for axis in (1, 2):
        if wide.shape[axis] == 1:
            wide = np.repeat(wide, 2, axis)
        wide = np.take(wide, range(wide.shape[axis] // 2 * 2), axis)
    total = wide[:, 0::2, 0::2] + wide[:, 1::2, 0::2] + wide[:, 0::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).astype(pixels.dtype)


def ts_read(store, path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / path)}}
    return tensorstore.open(spec).result().read().result()


def test_level_0_equals_tifffile_and_openslide_bit_for_bit(svs, store):
    pixels = nt.open(store).image(level=0).to_numpy().transpose(1, 2, 0)
    assert np.array_equal(pixels, tifffile.imread(svs, series=0, level=0))
    slide = openslide.OpenSlide(svs)
    assert np.array_equal(pixels, np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")))


def test_each_level_is_the_exact_mean_of_the_one_before_and_every_reader_sees_the_same(store):
    slide = nt.open(store)
    before = None
    for level in slide.levels:
        pixels = slide.image(level=level.index).to_numpy()
        assert np.array_equal(pixels, zarr.open_array(store / str(level.index), mode="r")[:])
        assert np.array_equal(pixels, ts_read(store, str(level.index)))
        if before is not None:
            assert np.array_equal(pixels, halves(before))
        before = pixels
    assert max(before.shape) <= 256


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 600), (700, 2), (513, 257), (256, 256), (257, 1025)])
def test_odd_sizes(width, height, tmp_path):
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", tile=(48, 80))
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr", chunk=64, shard=256)
    slide = nt.open(tmp_path / "x.ome.zarr")
    expected = pixels.transpose(2, 0, 1)
    for level in slide.levels:
        assert np.array_equal(slide.image(level=level.index).to_numpy(), expected)
        expected = halves(expected)


def test_the_layout_on_disk_is_what_the_specification_of_the_house_says(store, svs, tmp_path):
    nt.convert(svs, tmp_path / "x.ome.zarr")
    about = json.loads((tmp_path / "x.ome.zarr" / "0" / "zarr.json").read_text())
    assert about["shape"] == [3, 1900, 2600]
    assert about["dimension_names"] == ["c", "y", "x"]
    assert about["fill_value"] == 255
    assert about["chunk_grid"]["configuration"]["chunk_shape"] == [3, 4096, 4096]
    (sharding,) = about["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [3, 256, 256]
    inner = sharding["configuration"]["codecs"]
    assert inner[-1] == {"name": "zstd", "configuration": {"level": 3, "checksum": True}}
    root = json.loads((tmp_path / "x.ome.zarr" / "zarr.json").read_text())
    ome, ours = root["attributes"]["ome"], root["attributes"]["ngfftile"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    assert [a["name"] for a in image["axes"]] == ["c", "y", "x"]
    assert [a.get("unit") for a in image["axes"]] == [None, "micrometer", "micrometer"]
    for k, data in enumerate(image["datasets"]):
        scale, translation = data["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.5 * 2**k]}
        assert translation == {"type": "translation", "translation": [0.0, 0.25 * (2**k - 1), 0.25 * (2**k - 1)]}
    assert [(c["label"], c["color"]) for c in ome["omero"]["channels"]] == [
        ("Red", "FF0000"),
        ("Green", "00FF00"),
        ("Blue", "0000FF"),
    ]
    assert all(c["window"] == {"min": 0, "max": 255, "start": 0, "end": 255} for c in ome["omero"]["channels"])
    assert ours["status"] == "complete"
    assert ours["source"]["vendor"] == "aperio"
    assert ours["objective_power"] == 40
    assert "bioformats2raw.layout" not in json.dumps(root)
    xml = (tmp_path / "x.ome.zarr" / "OME" / "METADATA.ome.xml").read_text()
    assert 'PhysicalSizeX="0.5"' in xml
    assert "MetadataOnly" in xml
    assert {p.name for p in (tmp_path / "x.ome.zarr" / "associated").iterdir() if p.is_dir()} == {
        "label",
        "macro",
        "thumbnail",
    }


def test_validators_accept_the_store(store):
    yaozarrs.validate_zarr_store(str(store))
    group = ome_zarr_models.open_ome_zarr(zarr.open_group(store, mode="r"))
    assert group.ome_zarr_version == "0.5"
    image = ngff_zarr.from_ome_zarr(str(store), validate=True).images[0]
    assert image.scale["x"] == 0.5
    assert image.axes_units["x"] == "micrometer"


@pytest.mark.parametrize("path", real_slides(), ids=lambda p: p.name)
def test_real_slides_convert_to_valid_stores_with_their_own_resolution(path, tmp_path):
    store = tmp_path / "x.ome.zarr"
    nt.convert(path, store)
    yaozarrs.validate_zarr_store(str(store))
    slide, info = nt.open(store), nt.open_source(path).info
    assert slide.mpp == info.mpp
    assert slide.size == info.size
    assert sorted(slide.associated) == sorted(info.associated)
    assert slide.icc == info.icc
    # A band across the middle, through an independent reader of the store and one of the source.
    y, height = info.size.y // 2, min(64, info.size.y - info.size.y // 2)
    band = zarr.open_array(store / "0", mode="r")[:, y : y + height]
    assert np.array_equal(band, ts_read_band(store, y, height))
    if path.is_dir() or info.reader == "openslide":
        read = openslide.OpenSlide(info.files[0]).read_region((0, y), 0, (info.size.x, height))
        assert np.array_equal(band, np.asarray(read.convert("RGB")).transpose(2, 0, 1))
    else:
        with tifffile.TiffFile(path) as tiff:
            pixels = zarr.open(tiff.aszarr(series=0, level=0), mode="r")
            theirs = pixels[:, y : y + height] if len(info.channels) > 1 and not info.rgb else pixels[y : y + height]
        theirs = np.asarray(theirs)
        if info.rgb:
            theirs = theirs.transpose(2, 0, 1)
        assert np.array_equal(band, theirs.reshape(band.shape))


def ts_read_band(store, y, height):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / "0")}}
    return tensorstore.open(spec).result()[:, y : y + height].read().result()


def test_each_source_tile_is_decoded_once(tmp_path, monkeypatch):
    # 240 does not divide 256: most tiles lie across a border of shards.
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 1500, 1100, tile=240, seed=2, associated=False)
    seen = Counter()
    decode = Raster.segment

    def count(self, page, part, layer, row, col):
        seen[row, col] += 1
        return decode(self, page, part, layer, row, col)

    monkeypatch.setattr(Raster, "segment", count)
    nt.convert(svs, tmp_path / "x.ome.zarr", chunk=64, shard=256)
    # The first tile once more at the opening, to see whether it could be kept as it is.
    assert seen.pop((0, 0)) == 2
    assert set(seen.values()) == {1}
    assert len(seen) == 7 * 5 - 1
    pixels = nt.open(tmp_path / "x.ome.zarr").image(level=0).to_numpy()
    assert np.array_equal(pixels.transpose(1, 2, 0), tifffile.imread(svs, series=0, level=0))


def test_each_shard_is_written_once_and_the_root_last(svs, tmp_path, monkeypatch):
    written = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, key, *parts: (written.append(key), write(self, key, *parts))[1])
    done = nt.convert(svs, tmp_path / "x.ome.zarr", shard=1024)
    shards = [key for key in written if "/c/" in key and not key.startswith("associated")]
    assert len(shards) == len(set(shards)) == done.written
    assert written[-1] == "zarr.json"


def test_nothing_opens_until_the_store_is_whole(svs, tmp_path, monkeypatch):
    place = tmp_path / "x.ome.zarr"

    def stop(*_):
        for found in (place, tmp_path / "x.ome.zarr.partial", tmp_path / "x.ome.zarr.partial" / "store"):
            with pytest.raises(nt.errors.NgfftileError):
                nt.open(found)
            with pytest.raises((FileNotFoundError, OSError)):
                zarr.open_group(found, mode="r")
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "root_attributes", stop)
    with pytest.raises(KeyboardInterrupt):
        nt.convert(svs, place)
    assert not place.exists()
    monkeypatch.undo()
    done = nt.convert(svs, place)
    assert (done.written, done.found) == (0, 5)
    nt.open(place)


def test_killed_and_started_again_gives_the_same_bytes(svs, store, tmp_path):
    place = tmp_path / "tissue.ome.zarr"
    code = f"import ngfftile as nt; nt.convert({str(svs)!r}, {str(place)!r}, shard=1024, workers=1)"
    partial = tmp_path / "tissue.ome.zarr.partial" / "store" / "0" / "c"
    killed = 0
    for wanted in (1, 3, 5):
        process = subprocess.Popen([sys.executable, "-c", code])
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            shards = [p for p in partial.rglob("*") if p.is_file() and not p.name.startswith(".")]
            if len(shards) >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        process.wait(60)
        killed += process.returncode == -signal.SIGKILL
        assert not place.exists() or process.returncode == 0
    assert killed
    done = nt.convert(svs, place, shard=1024)
    assert done.written == 0 or done.found > 0
    assert tree(place) == tree(store)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tissue.ome.zarr"]


@pytest.mark.parametrize("lost", ["0/c/0/0/1", "1/c/0/0/0", "3/c/0/0/0"])
def test_a_draft_with_a_shard_missing_is_completed_to_the_same_bytes(lost, svs, store, tmp_path, monkeypatch):
    place = tmp_path / "tissue.ome.zarr"
    monkeypatch.setattr(writer, "root_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        nt.convert(svs, place, shard=1024)
    monkeypatch.undo()
    (tmp_path / "tissue.ome.zarr.partial" / "store" / lost).unlink()
    nt.convert(svs, place, shard=1024)
    assert tree(place) == tree(store)


@pytest.mark.parametrize(("scheduler", "workers"), [("threads", 1), ("threads", 5), ("processes", 2)])
def test_every_scheduler_writes_the_same_bytes(scheduler, workers, svs, store, tmp_path):
    seen = []
    nt.convert(
        svs,
        tmp_path / "tissue.ome.zarr",
        shard=1024,
        scheduler=scheduler,
        workers=workers,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert tree(tmp_path / "tissue.ome.zarr") == tree(store)
    assert seen[0] == (0, 2600 * 1900)
    if scheduler == "threads":
        assert seen[-1] == (2600 * 1900, 2600 * 1900)


def test_memory_is_bounded_whatever_the_size_of_the_slide():
    """Walk the graph in dask's order, one worker: what waits is a few quarters per level, and the seams."""
    for side, tile in ((40_000, 256), (160_000, 256), (60_000, 240)):
        pyramid = PyramidPlan(nt.Size(side, side), 3, "uint8", 3, 255, tile=nt.Size(tile, tile))
        tasks = writer.graph(writer.Job(None, SimpleNamespace(pyramid=pyramid), None, None), set())
        ranks = order(tasks)
        needs = {key: get_dependencies(tasks, key) for key in tasks}
        users = Counter(need for found in needs.values() for need in found)
        held, most = {}, 0
        for key in sorted(tasks, key=ranks.get):
            if key[0] == "cell":
                region = tasks[key][3].region
                held[key] = region.width * region.height * 3
            elif key[0] == "shard":
                region = pyramid.region(tasks[key][2])
                held[key] = region.width * region.height * 3 // 4
            most = max(most, sum(held.values()))
            for need in needs[key]:
                users[need] -= 1
                if not users[need]:
                    held.pop(need, None)
        tree_bytes = sum(3 for size in pyramid.levels if size.x > 4096) * 4096 * 4096 * 3 // 4
        assert most <= tree_bytes + 2 * 4096 * 4096 * 3 // 4 + pyramid.seam_bytes, (side, most / 1e6)


def test_a_plan_of_a_million_by_a_million_pixels_is_made_in_seconds():
    begun = time.perf_counter()
    pyramid = PyramidPlan(nt.Size(1_000_000, 1_000_000), 3, "uint8", 3, 255, tile=nt.Size(256, 256))
    tasks = writer.graph(writer.Job(None, SimpleNamespace(pyramid=pyramid), None, None), set())
    assert len(tasks) == pyramid.count + 1
    assert time.perf_counter() - begun < 10


def test_a_finished_store_is_left_as_it_is_and_said_to_be(svs, tmp_path):
    place = tmp_path / "x.ome.zarr"
    nt.convert(svs, place)
    before = tree(place)
    again = nt.convert(svs, place)
    assert "up to date" in str(again)
    assert tree(place) == before
    with pytest.raises(ExistsError, match="--overwrite"):
        nt.convert(svs, place, chunk=512)
    assert tree(place) == before
    nt.convert(svs, place, chunk=512, overwrite=True)
    assert tree(place) != before
    assert [p.name for p in tmp_path.iterdir()] == ["x.ome.zarr"]


def test_a_store_of_other_parameters_or_another_source_is_told_apart(svs, tmp_path):
    place = tmp_path / "x.ome.zarr"
    nt.convert(svs, place, codec="zstd:9")
    with pytest.raises(ExistsError, match=r"exists, made with codec zstd:9 \(here zstd:3\)\. Use --overwrite"):
        nt.convert(svs, place)
    with pytest.raises(ExistsError, match=r"chunk 256 \(here 64\), shard 4096 \(here 512\), codec .*, and 2 more\."):
        nt.convert(svs, place, chunk=64, shard=512, ngff="0.6", planar=True)
    other = nt.synthetic.write_svs(tmp_path / "other.svs", 300, 200, seed=9)
    with pytest.raises(ExistsError, match="exists, made from another source"):
        nt.convert(other, place)


def test_numbers_are_said_as_people_say_them(tmp_path):
    done = nt.convert(nt.synthetic.write_svs(tmp_path / "x.svs", 300, 200, seed=9), tmp_path / "x.ome.zarr")
    assert "MP/s" in str(done)
    resumed = str(replace(done, found=1, damaged=1, places=("x 0 y 0",)))
    assert "MP/s" not in resumed  # of pixels that it found
    assert resumed.endswith("1 object of an earlier run kept; 1 damaged tile became background (x 0 y 0)")
    assert str(replace(done, found=2)).endswith("2 objects of an earlier run kept")
    one, two = (str(nt.plan(tmp_path / "x.svs", workers=n)) for n in (1, 2))
    assert " with 1 worker\n" in one + "\n"
    assert " with 2 workers\n" in two + "\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by Linux's /proc")
def test_the_plans_memory_holds_of_pixels_that_cannot_be_compressed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 8192, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, tile=(256, 256), photometric="rgb")
    code = """
import pathlib, re, sys, ngfftile as nt
nt.convert(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
print(1024 * int(re.search("VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]))
"""
    for workers in (1, 4):
        command = [sys.executable, "-c", code, tmp_path / "x.tif", tmp_path / f"{workers}.ome.zarr", str(workers)]
        peak = int(subprocess.run(command, check=True, capture_output=True).stdout)
        planned = nt.plan(tmp_path / "x.tif", workers=workers).peak_bytes
        assert peak < planned < 2 * peak


def test_with_overwrite_the_old_store_stays_until_the_new_one_is_whole(svs, tmp_path, monkeypatch):
    place = tmp_path / "x.ome.zarr"
    nt.convert(svs, place)
    before = tree(place)
    monkeypatch.setattr(writer, "root_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        nt.convert(svs, place, chunk=512, overwrite=True)
    assert tree(place) == before


def test_what_is_not_ours_is_never_replaced_unasked(svs, tmp_path):
    (tmp_path / "x.ome.zarr").mkdir()
    (tmp_path / "x.ome.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(ExistsError, match="not ours"):
        nt.convert(svs, tmp_path / "x.ome.zarr")
    assert (tmp_path / "x.ome.zarr" / "notes.txt").read_text() == "mine"


def test_another_conversions_draft_is_not_touched(svs, tmp_path, monkeypatch):
    place = tmp_path / "x.ome.zarr"
    monkeypatch.setattr(writer, "root_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        nt.convert(svs, place)
    with pytest.raises(ExistsError, match="unfinished conversion"):
        nt.convert(svs, place, shard=1024)
    monkeypatch.undo()
    nt.convert(svs, place, shard=1024, overwrite=True)
    assert nt.open(place).facts["conversion"]["shard"] == 1024


def test_of_two_processes_on_one_target_one_is_told(svs, tmp_path):
    place = tmp_path / "x.ome.zarr"
    with Draft(place).held(), pytest.raises(ExistsError, match="another process"):
        nt.convert(svs, place)
    nt.convert(svs, place)


def test_what_a_killed_run_had_half_written_does_not_stay(svs, store, tmp_path, monkeypatch):
    place = tmp_path / "tissue.ome.zarr"
    monkeypatch.setattr(writer, "root_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        nt.convert(svs, place, shard=1024)
    monkeypatch.undo()
    (tmp_path / "tissue.ome.zarr.partial" / "store" / "0" / "c" / "0" / "0" / ".1.4711.tmp").write_text("torn")
    nt.convert(svs, place, shard=1024)
    assert tree(place) == tree(store)


def test_a_store_that_lost_a_shard_is_never_finished(svs, tmp_path, monkeypatch):
    def lose(*arguments):
        (tmp_path / "x.ome.zarr.partial" / "store" / "1" / "c" / "0" / "0" / "0").unlink()
        return attributes(*arguments)

    attributes = writer.root_attributes
    monkeypatch.setattr(writer, "root_attributes", lose)
    with pytest.raises(StoreError, match="1/c/0/0/0"):
        nt.convert(svs, tmp_path / "x.ome.zarr")
    assert not (tmp_path / "x.ome.zarr").exists()


def test_background_chunks_are_not_stored(tmp_path):
    pixels = np.full((600, 600, 3), 255, np.uint8)
    pixels[10, 10] = 0
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", tile=(256, 256))
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    size = (tmp_path / "x.ome.zarr" / "0" / "c" / "0" / "0" / "0").stat().st_size
    assert size < 256 * 16 + 4 + 200
    assert np.array_equal(zarr.open_array(tmp_path / "x.ome.zarr" / "0", mode="r")[:], pixels.transpose(2, 0, 1))


def test_unknown_mpp_writes_no_unit_and_the_plain_factor(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((600, 600, 3), np.uint8), photometric="rgb", tile=(256, 256))
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    root = json.loads((tmp_path / "x.ome.zarr" / "zarr.json").read_text())
    (image,) = root["attributes"]["ome"]["multiscales"]
    assert all("unit" not in axis for axis in image["axes"])
    assert image["datasets"][1]["coordinateTransformations"][0]["scale"] == [1.0, 2.0, 2.0]
    assert nt.open(tmp_path / "x.ome.zarr").mpp is None
    nt.convert(tmp_path / "x.tif", tmp_path / "y.ome.zarr", mpp=0.3)
    assert nt.open(tmp_path / "y.ome.zarr").mpp == nt.Mpp(0.3, 0.3)


def test_what_can_name_a_person_is_kept_and_said_or_left_out_and_recorded(tmp_path):
    description = "Aperio Image Library v1\r\n64x64|AppMag = 20|MPP = 0.5|User = Jane Doe|Barcode = 123|Exposure = 7"
    svs = nt.synthetic.write_svs(tmp_path / "Doe-Jane.svs", 300, 200, seed=1)
    with tifffile.TiffFile(svs, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageDescription"].overwrite(description)
    done = nt.convert(svs, tmp_path / "x.ome.zarr")
    assert done.identifying == ("label", "macro", "aperio.Barcode", "aperio.User", "tiff.ImageDescription")
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert slide.properties["aperio.User"] == "Jane Doe"
    assert set(slide.associated) == {"label", "macro", "thumbnail"}
    done = nt.convert(svs, tmp_path / "y.ome.zarr", deidentify=True)
    assert done.identifying == ()
    slide = nt.open(tmp_path / "y.ome.zarr")
    assert slide.facts["properties_dropped"] == ["aperio.Barcode", "aperio.User", "tiff.ImageDescription"]
    assert slide.facts["associated_dropped"] == ["label", "macro"]
    assert slide.properties["aperio.Exposure"] == "7"
    assert list(slide.associated) == ["thumbnail"]
    for path in tree(tmp_path / "y.ome.zarr"):
        data = (tmp_path / "y.ome.zarr" / path).read_bytes()
        assert b"Jane" not in data, path
        assert not path.startswith(("associated/label", "associated/macro"))


def test_the_plan_tells_what_will_be_written(svs, tmp_path):
    plan = nt.plan(svs, shard=1024)
    nt.convert(svs, tmp_path / "x.ome.zarr", shard=1024)
    assert plan.objects == len(tree(tmp_path / "x.ome.zarr"))
    assert plan.pyramid.raw_bytes == sum(k.size.x * k.size.y * 3 for k in nt.open(tmp_path / "x.ome.zarr").levels)
    assert "2600 x 1900" in str(plan)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunk": 100}, OptionError),
        ({"shard": 128}, OptionError),
        ({"codec": "lzma"}, OptionError),
        ({"codec": "zstd:99"}, OptionError),
        ({"workers": 0}, OptionError),
        ({"scheduler": "magic"}, OptionError),
        ({"mpp": -1.0}, OptionError),
        ({"reader": "magic"}, OptionError),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, error, svs, tmp_path):
    with pytest.raises(error):
        nt.convert(svs, tmp_path / "x.ome.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_a_target_in_no_folder_is_an_error(svs, tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        nt.convert(svs, tmp_path / "none" / "x.ome.zarr")


def test_a_source_that_ends_early_leaves_nothing(svs, tmp_path):
    short = tmp_path / "short.svs"
    short.write_bytes(svs.read_bytes()[:-1000])
    with pytest.raises(SourceError):
        nt.convert(short, tmp_path / "x.ome.zarr")
    assert list(tmp_path.iterdir()) == [short]


def test_a_failed_conversion_leaves_nothing_that_a_later_one_takes_for_its_own(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "bad.tif"
    pixels = rng.integers(0, 255, (2048, 2048, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[20]
    held = bytearray(path.read_bytes())
    held[offset : offset + 100] = bytes(100)
    path.write_bytes(held)
    for _ in range(5):
        with pytest.raises(SourceError):
            nt.convert(path, tmp_path / "x.ome.zarr", shard=256, chunk=64, workers=4)
        assert list(tmp_path.iterdir()) == [path]
    stale = tmp_path / "x.ome.zarr.partial" / "store" / "0" / "c" / "0" / "0" / "0"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another slide")
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256))
    assert nt.convert(path, tmp_path / "x.ome.zarr", shard=256).found == 0
    assert np.array_equal(nt.open(tmp_path / "x.ome.zarr").image(level=0), pixels.transpose(2, 0, 1))


def test_two_conversions_on_one_scheduler_do_not_mix(tmp_path):
    slides = [nt.synthetic.write_svs(tmp_path / f"{s}.svs", 1500, 1100, seed=s, associated=False) for s in (1, 2)]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, processes=False, protocol="tcp"
        ) as cluster,
        ThreadPoolExecutor(2) as pool,
    ):
        jobs = [
            pool.submit(nt.convert, s, s.with_suffix(".ome.zarr"), shard=256, scheduler=cluster.scheduler_address)
            for s in slides
        ]
        for job in jobs:
            job.result()
    for path in slides:
        pixels = nt.open(path.with_suffix(".ome.zarr")).image(level=0).to_numpy()
        assert np.array_equal(pixels.transpose(1, 2, 0), tifffile.imread(path, series=0, level=0))


def test_a_link_to_a_store_is_followed_and_a_file_in_the_way_is_refused(svs, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "x.ome.zarr").symlink_to(tmp_path / "real" / "y.ome.zarr")
    nt.convert(svs, tmp_path / "x.ome.zarr")
    assert nt.open(tmp_path / "real" / "y.ome.zarr").size == nt.Size(2600, 1900)
    (tmp_path / "z.ome.zarr").write_text("a file")
    with pytest.raises(ExistsError, match="is a file"):
        nt.convert(svs, tmp_path / "z.ome.zarr", overwrite=True)
