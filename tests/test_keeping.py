"""What must not be lost: the source beside its target, an interrupted replacement, what others' stores say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

import ngfftile as nt
from ngfftile.draft import Draft
from ngfftile.errors import ExistsError, OptionError, SourceError
from ngfftile.store import Store

COMMAND = Path(sys.executable).with_name("ngfftile")
RANDOM = np.random.default_rng(7)


def foreign(place, pixels, axes="cyx", scale=1.0, unit="micrometer", shift=0.0, omero=None, **array):
    """A store of one level as zarr-python writes it, version 0.4."""
    group = zarr.open_group(place, mode="w", zarr_format=2)
    made = group.create_array(
        "0",
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=tuple(min(64, n) if a in "yx" else 1 for a, n in zip(axes, pixels.shape, strict=True)),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        **array,
    )
    made[...] = pixels
    kinds = {"t": "time", "c": "channel"}
    units = {"unit": unit} if unit else {}
    about = [{"name": a, "type": kinds.get(a, "space")} | (units if a in "zyx" else {}) for a in axes]
    steps = [
        {"type": "scale", "scale": [scale if a in "yx" else 1.0 for a in axes]},
        {"type": "translation", "translation": [shift if a in "yx" else 0.0 for a in axes]},
    ]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": about, "datasets": datasets}]
    if omero:
        group.attrs["omero"] = omero
    return place


def test_a_target_never_swallows_its_source_or_a_folder_of_other_things(svs, store, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(svs, folder / "x.svs")
    shutil.copytree(store, tmp_path / "a.ome.zarr")
    cases = [(folder / "x.svs", folder), (tmp_path / "a.ome.zarr", tmp_path / "a.ome.zarr" / "0")]
    for source, target in cases:
        for overwrite in (False, True):
            with pytest.raises(OptionError, match="the target"):
                nt.convert(source, target, overwrite=overwrite)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExistsError, match="no store"):
        nt.convert(svs, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").exists()
    assert (folder / "x.svs").exists()
    # In place is well: the new store is made from the old one before it takes its place.
    before = nt.open(tmp_path / "a.ome.zarr").image(level=0).to_numpy()
    nt.convert(tmp_path / "a.ome.zarr", tmp_path / "a.ome.zarr", chunk=128, overwrite=True)
    assert np.array_equal(nt.open(tmp_path / "a.ome.zarr").image(level=0), before)


def test_a_replacement_that_was_killed_is_ended_or_undone(svs, tmp_path):
    place = tmp_path / "x.ome.zarr"
    nt.convert(svs, place)
    whole = {key: Store(place).whole(key) for key in Store(place).keys()}  # noqa: SIM118 (no dict)
    draft = Draft(place)
    for new_is_whole in (True, False):
        draft.folder.mkdir()
        place.rename(draft.folder / "replaced")
        if new_is_whole:
            shutil.copytree(draft.folder / "replaced", draft.store.root)
        nt.convert(svs, place)
        assert {key: Store(place).whole(key) for key in Store(place).keys()} == whole  # noqa: SIM118 (no dict)
        assert not (draft.folder / "replaced").exists()
        shutil.rmtree(draft.folder, ignore_errors=True)


@pytest.mark.parametrize("choice", [["--shard", "256"], ["--ngff", "0.4"]], ids=str)
def test_slides_of_several_channels_go_on_after_a_kill(choice, tmp_path):
    pixels = RANDOM.integers(0, 9000, (2, 600, 600), np.uint16)
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, metadata={"axes": "CYX"})
    arguments = ["convert", str(tmp_path / "x.ome.tif"), "--workers", "1", *choice]
    subprocess.run([COMMAND, *arguments, "-o", tmp_path / "a.ome.zarr"], check=True)
    for stop in (3, 7, 11):
        place = tmp_path / f"{stop}.ome.zarr"
        code = (
            "import os, sys; from ngfftile.store import Store; from ngfftile.cli import main\n"
            # In this process, not in one of its own.
            "sys.modules['ngfftile.cli.batch'].apart = "
            "lambda names, work, workers, _: ((n, work(n, workers, lambda *_: None)) for n in names)\n"
            "count, write = 0, Store.write\n"
            "def dying(self, key, *parts):\n"
            "    global count; count += key[0].isdigit()\n"
            f"    return os._exit(9) if count > {stop} else write(self, key, *parts)\n"
            "Store.write = dying; main()"
        )
        run = subprocess.run([sys.executable, "-c", code, *arguments, "-o", place], check=False)
        assert run.returncode == 9
        subprocess.run([COMMAND, *arguments, "-o", place], check=True)
        whole, again = (
            {k: Store(s).whole(k) for k in Store(s).keys()}  # noqa: SIM118 (no dict)
            for s in (tmp_path / "a.ome.zarr", place)
        )
        assert whole == again


def test_one_damaged_channel_leaves_the_others(tmp_path):
    pixels = RANDOM.integers(1, 200, (4, 200, 190), np.uint8)
    source = foreign(tmp_path / "o.zarr", pixels)
    (source / "0/2/1/1").write_bytes(b"garbage")
    done = nt.convert(source, tmp_path / "x.ome.zarr", damaged="fill")
    assert done.damaged == 1
    pixels[2, 64:128, 64:128] = 0
    assert np.array_equal(nt.open(tmp_path / "x.ome.zarr").image(level=0), pixels)
    findings = nt.verify(source).findings
    assert [f.place for f in findings] == ["0/2/1/1"]


def test_a_source_store_that_changed_is_converted_again(tmp_path):
    pixels = RANDOM.integers(0, 200, (1, 100, 100), np.uint8)
    foreign(tmp_path / "o.zarr", pixels, compressors=None)
    nt.convert(tmp_path / "o.zarr", tmp_path / "x.ome.zarr")
    zarr.open_array(tmp_path / "o.zarr/0")[...] = 255 - pixels
    with pytest.raises(ExistsError):
        nt.convert(tmp_path / "o.zarr", tmp_path / "x.ome.zarr")
    nt.convert(tmp_path / "x.ome.zarr", tmp_path / "y.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    slide.labels["a"] = slide.image(level=0).max("c") > 100
    with pytest.raises(ExistsError):
        nt.convert(tmp_path / "x.ome.zarr", tmp_path / "y.ome.zarr")


def test_others_labels_are_labels_stay_in_place_and_survive_damage(tmp_path):
    pixels = RANDOM.integers(1, 200, (1, 400, 400), np.uint8)
    store = foreign(tmp_path / "o.zarr", pixels, scale=0.25, shift=10.0)
    cells = np.where(np.arange(400) % 2, 100, 7).astype(np.int32)[None, :, None] * np.ones((1, 1, 400), np.int32)
    foreign(store / "labels" / "cells", cells, scale=0.5, shift=5.0)
    (store / "labels" / ".zgroup").write_text('{"zarr_format": 2}')
    (store / "labels" / ".zattrs").write_text('{"labels": ["cells"]}')
    nt.convert(store, tmp_path / "x.ome.zarr", mpp=1.0)
    slide = nt.open(tmp_path / "x.ome.zarr")
    label = slide.labels["cells"]
    assert [set(np.unique(label.image(level=k))) <= {7, 100} for k in range(len(label.levels))] == [True, True]
    # The user's mpp is four times the file's, for the label too; both keep where they lie.
    assert (slide.mpp, label.mpp) == (nt.Mpp(1.0, 1.0), nt.Mpp(2.0, 2.0))
    assert slide.image(level=0).coords["x"].to_numpy()[0] == 10.0
    assert label.image(level=0).coords["x"].to_numpy()[0] == 5.0
    assert 'PhysicalSizeX="1.0"' in slide.ome_xml
    (store / "labels/cells/0/0/0/0").write_bytes(b"garbage")
    nt.convert(store, tmp_path / "y.ome.zarr", damaged="fill")
    assert len(nt.open(tmp_path / "y.ome.zarr").labels["cells"].facts["damaged"]) == 1
    assert nt.verify(tmp_path / "y.ome.zarr").ok


def test_a_scale_without_unit_or_in_another_one_is_kept(tmp_path):
    pixels = RANDOM.integers(1, 200, (1, 50, 60), np.uint8)
    nt.convert(foreign(tmp_path / "o.zarr", pixels, scale=0.25, unit=None), tmp_path / "x.ome.zarr")
    (image,) = json.loads((tmp_path / "x.ome.zarr/zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 0.25, 0.25]
    assert nt.open(tmp_path / "x.ome.zarr").mpp is None
    nt.convert(foreign(tmp_path / "p.zarr", pixels, scale=2500.0, unit="angstrom"), tmp_path / "y.ome.zarr")
    assert nt.open(tmp_path / "y.ome.zarr").mpp == nt.Mpp(0.25, 0.25)


def test_fluorescence_in_red_green_and_blue_is_no_photograph(tmp_path):
    pixels = RANDOM.integers(1, 200, (3, 50, 60), np.uint8)
    colors = ("FF0000", "00FF00", "0000FF")
    for i, (names, end, rgb) in enumerate(
        [(("TRITC", "FITC", "DAPI"), 255, False), (("0", "1", "2"), 99, False), (("Channel 0", "g", "Blue"), 255, True)]
    ):
        window = {"min": 0, "max": 255, "start": 0, "end": end}
        channels = [{"label": n, "color": c, "window": window} for n, c in zip(names, colors, strict=True)]
        nt.convert(foreign(tmp_path / f"{i}.zarr", pixels, omero={"channels": channels}), tmp_path / f"{i}.ome.zarr")
        slide = nt.open(tmp_path / f"{i}.ome.zarr")
        assert slide.rgb == rgb
        if not rgb:
            assert slide.channels == names
            assert slide.multiscale.channels[0].window == (0, end)


def test_names_that_no_document_can_hold_are_mended(svs, tmp_path):
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.svs")
    shutil.copy(svs, bad)
    nt.convert(bad, tmp_path / "x.ome.zarr")
    text = (tmp_path / "x.ome.zarr/zarr.json").read_bytes().decode("utf-8")
    assert json.loads(text)["attributes"]["ome"]["omero"]["name"] == "caf?"
    tifffile.imwrite(
        tmp_path / "c.ome.tif",
        np.zeros((2, 20, 20), np.uint8),
        metadata={"axes": "CYX", "Channel": {"Name": ["A", "B"]}},
    )
    nt.convert(tmp_path / "c.ome.tif", tmp_path / "y.ome.zarr")
    assert nt.verify(tmp_path / "x.ome.zarr").ok


def test_deidentified_again_stays_so(tmp_path):
    svs = nt.synthetic.write_svs(tmp_path / "DOE_JOHN_12345.svs", 300, 200, seed=1)
    nt.convert(svs, tmp_path / "a.ome.zarr")
    nt.convert(tmp_path / "a.ome.zarr", tmp_path / "DOE_anon.ome.zarr", deidentify=True)
    for path in (tmp_path / "DOE_anon.ome.zarr").rglob("*"):
        assert path.is_dir() or b"DOE" not in path.read_bytes(), path
    nt.convert(tmp_path / "DOE_anon.ome.zarr", tmp_path / "c.ome.zarr")
    facts = nt.open(tmp_path / "c.ome.zarr").facts
    assert facts["associated_dropped"] == ["label", "macro"]
    assert "name" not in facts["source"]


def test_verify_takes_what_cannot_be_read_and_an_earlier_source(svs, tmp_path):
    nt.convert(svs, tmp_path / "a.ome.zarr")
    nt.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", codec="jpeg:90", shard=0)
    report = nt.verify(tmp_path / "b.ome.zarr", source=svs)
    assert report.ok, str(report)
    nt.convert(svs, tmp_path / "c.ome.zarr", shard=1024)
    place = tmp_path / "c.ome.zarr" / "0/c/0/0/0"
    place.unlink()
    place.mkdir()
    (finding,) = nt.verify(tmp_path / "c.ome.zarr").findings
    assert (finding.kind, finding.place) == ("missing", "0/c/0/0/0")


def test_metadata_of_another_form_are_one_error(store, tmp_path):
    for key, value in {"source": [1], "icc": "x", "notes": 5, "associated": [1]}.items():
        place = tmp_path / f"{key}.ome.zarr"
        shutil.copytree(store, place)
        root = json.loads((place / "zarr.json").read_text())
        root["attributes"]["ngfftile"][key] = value
        (place / "zarr.json").write_text(json.dumps(root))
        with pytest.raises(SourceError, match="metadata"):
            nt.convert(place, tmp_path / "out.ome.zarr")


def test_views_of_yes_or_no_pixels_are_nearest(tmp_path):
    pixels = RANDOM.random((300, 200)) > 0.5
    tifffile.imwrite(tmp_path / "x.tif", pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    assert nt.open(tmp_path / "x.ome.zarr").image(mpp=0.7).to_numpy().dtype == bool


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_a_stream_that_is_cut_short_is_damage(compression, tmp_path):
    pixels = RANDOM.integers(0, 255, (256, 384, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", tile=(128, 128), compression=compression)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        offset, count = tiff.pages[0].dataoffsets[4], tiff.pages[0].databytecounts[4]
    with (tmp_path / "x.tif").open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(count - count // 2))
    with pytest.raises(SourceError, match=r"row 1, column 1 .*cut short"):
        nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    done = nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr", damaged="fill")
    assert "1 damaged tile became background (x 128 y 128)" in str(done)
    nt.convert(tmp_path / "x.ome.zarr", tmp_path / "y.ome.zarr")
    assert len(nt.open(tmp_path / "y.ome.zarr").facts["damaged"]) == 1
    told = subprocess.run([COMMAND, "info", tmp_path / "y.ome.zarr"], check=True, capture_output=True, text=True).stdout
    assert "1 damaged tiles of the source are background: x 128 y 128" in told


@pytest.mark.parametrize("codec", ["jpeg:90", "source"])
def test_stacks_can_be_jpeg(codec, tmp_path):
    pixels = np.stack([np.full((200, 180), 40 * i, np.uint8) for i in range(6)]).reshape(2, 3, 200, 180)
    tifffile.imwrite(
        tmp_path / "x.ome.tif",
        pixels,
        metadata={"axes": "ZCYX"},
        tile=(64, 64),
        compression="jpeg",
        photometric="minisblack",
    )
    nt.convert(tmp_path / "x.ome.tif", tmp_path / "x.ome.zarr", codec=codec)
    found = nt.open(tmp_path / "x.ome.zarr").image(level=0).to_numpy()
    assert found.shape == (3, 2, 200, 180)
    assert np.abs(found.astype(int) - pixels.transpose(1, 0, 2, 3)).max() <= 2
    assert np.array_equal(zarr.open_array(tmp_path / "x.ome.zarr/0")[...], found)
    assert nt.verify(tmp_path / "x.ome.zarr", source=tmp_path / "x.ome.tif").ok


def test_tissue_is_found_on_stacks(tmp_path):
    pixels = RANDOM.integers(0, 255, (3, 600, 600), np.uint8)
    about = {"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, metadata=about)
    nt.convert(tmp_path / "x.ome.tif", tmp_path / "x.ome.zarr")
    index = nt.tile(tmp_path / "x.ome.zarr", nt.TileGrid(extent=64, level=0), tissue="otsu", min_fraction=0.0)
    assert np.array_equal(index.read(0)[..., 0], pixels[1, :64, :64])


def test_ome_xml_is_that_of_the_slide_and_not_of_its_label(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        tiff.write(np.zeros((50, 60, 3), np.uint8), photometric="rgb", metadata={"axes": "YXS", "Name": "label image"})
        tiff.write(
            np.zeros((200, 300, 3), np.uint8),
            photometric="rgb",
            metadata={"axes": "YXS", "Name": "slide", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
        )
    nt.convert(tmp_path / "x.ome.tif", tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert slide.size == nt.Size(300, 200)
    assert 'SizeX="300"' in slide.ome_xml
    assert 'SizeX="60"' not in slide.ome_xml


@pytest.mark.parametrize("value", [(11, 1, 20000.0), (4, 1, 20000), (5, 1, (20000, 1))], ids=str)
def test_resolution_tags_of_odd_types_are_numbers_too(value, tmp_path):
    kind, count, number = value
    tags = [(code, kind, count, number, True) for code in (282, 283)] + [(296, 3, 1, 3, True)]
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((40, 50), np.uint8), extratags=tags, resolution=None)
    info = nt.open_source(tmp_path / "x.tif").info
    assert info.size == nt.Size(50, 40)


def test_scenes_keep_their_names_and_fail_one_by_one(tmp_path):
    random = RANDOM.integers(0, 255, (256, 256), np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        for side in (256, 128):
            tiff.write(
                random[:side, :side], tile=(64, 64), compression="jpeg", metadata={"axes": "YX", "Name": f"of {side}"}
            )
    subprocess.run([COMMAND, "convert", tmp_path / "x.ome.tif", "-o", tmp_path / "a", "--scene", "1"], check=True)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.scene-1.ome.zarr"]
    told = subprocess.run([COMMAND, "info", tmp_path / "x.ome.tif"], check=True, capture_output=True, text=True).stdout
    assert "scene       0 of 2: of 256, of 128" in told
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        offset, count = tiff.series[0].keyframe.dataoffsets[5], tiff.series[0].keyframe.databytecounts[5]
    with (tmp_path / "x.ome.tif").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    run = subprocess.run(
        [COMMAND, "convert", tmp_path / "x.ome.tif", "-o", tmp_path / "b"], check=False, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "row 1, column 1" in run.stderr
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["x.scene-1.ome.zarr"]


def test_a_plain_tiff_that_is_called_ndpi_is_read_by_its_content(tmp_path):
    pixels = RANDOM.integers(0, 255, (90, 80, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.ndpi", pixels, photometric="rgb", compression="lzw", tile=(32, 32))
    nt.convert(tmp_path / "x.ndpi", tmp_path / "x.ome.zarr")
    assert np.array_equal(nt.open(tmp_path / "x.ome.zarr").image(level=0), pixels.transpose(2, 0, 1))
