"""The lazy slide: levels, resolutions, blocks, coordinates, and stores of other writers."""

import json
import pickle
import shutil

import dask
import numpy as np
import ome_zarr_models
import pytest
import tifffile
import xarray as xr
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import ngfftile as nt
from ngfftile.errors import MissingError, OptionError, ResolutionError, StoreError
from ngfftile.shards import LevelArray


def test_levels_and_facts(slide):
    assert [str(k.size) for k in slide.levels] == ["2600 x 1900", "1300 x 950", "650 x 475", "325 x 237", "162 x 118"]
    assert [k.downsample for k in slide.levels] == [2.0**k for k in range(5)]
    assert repr(slide.levels[1]) == "Level(1, 1300x950, mpp=1, downsample=2)"
    assert [k.mpp.x for k in slide.levels] == [0.5, 1, 2, 4, 8]
    assert (slide.vendor, slide.objective_power, slide.rgb) == ("aperio", 40, True)
    assert slide.properties["aperio.MPP"] == "0.5000"
    assert slide.channels == ("Red", "Green", "Blue")


def test_opening_and_picking_a_level_reads_no_pixel(slide, monkeypatch):
    monkeypatch.setattr(LevelArray, "read", lambda *_: pytest.fail("pixels were read"))
    again = nt.open(slide.url)
    image = again.image(level=0)
    assert image.shape == (3, 1900, 2600)
    assert again.image(mpp=3.0).shape == (3, 316, 433)
    assert len(again.tree.children) == 5
    repr(again)


def test_image_is_labelled_in_micrometres(slide):
    image = slide.image(level=2)
    assert image.dims == ("c", "y", "x")
    assert image.x.attrs["units"] == "µm"
    # The centre of the first pixel of level 2 lies 1.5 fine pixels from the centre of the first fine one.
    assert image.x.values[:2].tolist() == [0.75, 2.75]
    assert image.attrs["mpp_x"] == 2.0
    assert slide.image(mpp=1.02).attrs["mpp_requested"] == 1.02


def test_blocks_are_whole_shards_or_large_parts_never_chunks(slide, svs, tmp_path):
    assert slide.image(level=0).data.chunks == ((3,), (1024, 876), (1024, 1024, 552))
    assert slide.image(level=0, blocks=500).data.chunks[1] == (500, 500, 500, 400)
    nt.convert(svs, tmp_path / "x.ome.zarr")
    assert nt.open(tmp_path / "x.ome.zarr").image(level=0).data.numblocks == (1, 1, 1)


@pytest.mark.parametrize("mpp", [0.49, 0.5, 0.52])
def test_within_the_tolerance_the_stored_level_is_given_exactly(mpp, slide):
    image = slide.image(mpp=mpp)
    assert image.attrs["level"] == 0
    assert image.attrs["mpp_x"] == 0.5
    assert np.array_equal(image, slide.image(level=0))


def test_between_levels_the_next_finer_one_is_averaged(slide):
    image = slide.image(mpp=1.5)
    assert image.attrs["level"] == 1
    assert image.attrs["mpp_x"] == pytest.approx(1.5)
    assert image.shape == (3, int(950 / 1.5), int(1300 / 1.5))
    fine = slide.image(level=1).to_numpy().astype(float)
    # Output pixel (0, 1) covers columns 1.5 to 3 and rows 0 to 1.5 of the finer level.
    shares = np.outer([1, 0.5], [0.5, 1])
    expected = (fine[:, :2, 1:3] * shares).sum((1, 2)) / shares.sum()
    assert np.abs(image[:, 0, 1].to_numpy() - expected).max() <= 0.51


@settings(max_examples=15, deadline=None)
@given(mpp=st.floats(0.6, 9), blocks=st.integers(64, 700))
def test_a_resampled_view_is_the_same_for_every_chunking(mpp, blocks, made_slide):
    whole = made_slide.image(mpp=mpp, blocks=10_000).to_numpy()
    assert np.array_equal(made_slide.image(mpp=mpp, blocks=blocks).to_numpy(), whole)


@pytest.fixture(scope="module")
def made_slide(store):
    return nt.open(store)


def test_what_cannot_be_had_is_an_error_that_names_what_can(slide):
    with pytest.raises(ResolutionError, match=r"finer than its finest, 0\.5"):
        slide.image(mpp=0.2)
    with pytest.raises(ResolutionError, match="levels 0 to 4"):
        slide.image(level=9)
    with pytest.raises(OptionError, match="exactly one"):
        slide.image()
    with pytest.raises(OptionError, match="exactly one"):
        slide.image(level=0, mpp=1.0)


def test_a_slide_without_mpp_names_the_option_that_gives_it_one(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(32, 32))
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    with pytest.raises(ResolutionError, match="--mpp-override"):
        nt.open(tmp_path / "x.ome.zarr").image(mpp=1.0)


def test_rectangular_pixels_stay_rectangular_and_are_squared_on_request(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    tifffile.imwrite(
        tmp_path / "x.tif",
        pixels,
        photometric="rgb",
        tile=(64, 64),
        resolution=(10_000 / 0.5, 10_000 / 0.75),
        resolutionunit=3,
    )
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.5, 0.75))
    image = slide.image(mpp=1.5)
    assert image.shape == (3, 150, 133)
    assert (image.attrs["mpp_x"], image.attrs["mpp_y"]) == pytest.approx((1.5, 1.5))


def test_the_tree_has_every_level(slide):
    tree = slide.tree
    assert isinstance(tree, xr.DataTree)
    assert list(tree.children) == [f"level{k}" for k in range(5)]
    assert np.array_equal(tree["level4/image"], slide.image(level=4))


def test_associated_images_equal_the_sources(slide, svs):
    source = nt.open_source(svs)
    assert set(slide.associated) == {"label", "macro", "thumbnail"}
    for role, pixels in slide.associated.items():
        assert np.array_equal(pixels, source.associated(role))


def test_the_thumbnail_is_small_and_of_the_slide(slide):
    small = slide.thumbnail(100)
    assert small.shape == (73, 100, 3)
    coarse = slide.image(level=4).to_numpy().mean((1, 2))
    assert np.abs(small.mean((0, 1)) - coarse).max() < 2


def test_reprs(slide):
    assert "2600 x 1900, 3 x uint8, 0.5 µm/px, 40x" in repr(slide)
    html = slide._repr_html_()
    assert "data:image/png;base64," in html
    assert "<td>1300 x 950</td>" in html


def test_a_slide_is_small_when_pickled_and_works_elsewhere(slide):
    held = pickle.dumps(slide)
    assert len(held) < 10_000
    assert np.array_equal(pickle.loads(held).image(level=4), slide.image(level=4))
    with dask.config.set(scheduler="processes"):
        assert np.array_equal(slide.image(level=3), slide.image(level=3).compute(scheduler="threads"))


def test_the_id_survives_a_move_and_a_new_conversion(slide, svs, tmp_path):
    shutil.copytree(slide.url, tmp_path / "moved.zarr")
    assert nt.open(tmp_path / "moved.zarr").id == slide.id
    shutil.copy(svs, tmp_path / "renamed.svs")
    nt.convert(tmp_path / "renamed.svs", tmp_path / "again.ome.zarr", chunk=128)
    assert nt.open(tmp_path / "again.ome.zarr").id == slide.id


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_stores_of_other_writers_open(version, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 500, 700), np.uint8)
    place = tmp_path / "other.ome.zarr"
    write_other(place, pixels, version)
    slide = nt.open(place)
    assert slide.mpp == nt.Mpp(0.25, 0.25)
    assert np.array_equal(slide.image(level=0), pixels)
    assert np.array_equal(slide.image(level=1), pixels[:, ::2, ::2])
    assert slide.view(level=0).tile(nt.Region(690, 490, 20, 20))[-1, -1].tolist() == [255, 255, 255]


def write_other(place, pixels, version):
    """As ome-zarr-py writes: no shards, its own chunks, zarr's own fill value."""
    fmt = 2 if version == "0.4" else 3
    group = zarr.create_group(place, zarr_format=fmt)
    for k, data in enumerate((pixels, pixels[:, ::2, ::2])):
        group.create_array(str(k), data=data, chunks=(1, 100, 100))
    unit = {"type": "space", "unit": "micrometer"}
    image = {
        "axes": [{"name": "c", "type": "channel"}, {"name": "y", **unit}, {"name": "x", **unit}],
        "datasets": [
            {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1, 0.25 * 2**k, 0.25 * 2**k]}]}
            for k in range(2)
        ],
    }
    if version == "0.4":
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def test_others_stacks_have_their_axes_and_open_at_a_plane(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (2, 3, 4, 50, 60), np.uint8)
    for name, data in (("flat", pixels[:1, :, :1]), ("stack", pixels)):
        group = zarr.create_group(tmp_path / f"{name}.zarr")
        group.create_array("0", data=data)
        axes = [{"name": a, "type": t} for a, t in zip("tczyx", ["time", "channel", *["space"] * 3], strict=True)]
        axes[2]["unit"], axes[0]["unit"] = "nanometer", "second"
        scale = [{"type": "scale", "scale": [5.0, 1.0, 500.0, 1.0, 1.0]}]
        image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    assert np.array_equal(nt.open(tmp_path / "flat.zarr").image(level=0), pixels[0, :, 0])
    slide = nt.open(tmp_path / "stack.zarr")
    assert (slide.t, slide.z) == (2, 4)
    image = slide.image(level=0)
    assert image.dims == ("t", "c", "z", "y", "x")
    assert np.array_equal(image, pixels)
    assert image.coords["z"].to_numpy().tolist() == [0.0, 0.5, 1.0, 1.5]
    assert (image.coords["z"].units, image.coords["t"].units) == ("µm", "second")
    assert np.array_equal(slide.image(level=0, z=2), pixels[:, :, 2])
    assert np.array_equal(slide.image(level=0, z=3, t=1), pixels[1, :, 3])
    with pytest.raises(OptionError, match="no z 4"):
        slide.image(level=0, z=4)
    assert slide.thumbnail(20).shape == (17, 20, 3)


def test_what_is_not_a_store_is_one_clear_error(tmp_path, svs):
    with pytest.raises(MissingError, match="nothing there"):
        nt.open(tmp_path / "none.zarr")
    with pytest.raises(StoreError, match="ngfftile convert"):
        nt.open(svs)
    with pytest.raises(StoreError, match=r"no root zarr\.json"):
        nt.open(tmp_path)
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="no multiscales"):
        nt.open(tmp_path)
    (tmp_path / "zarr.json").write_text("not json")
    with pytest.raises(StoreError, match="not JSON"):
        nt.open(tmp_path)
    with pytest.raises(OptionError, match="s3://"):
        nt.open("s3://bucket/x.zarr")


@pytest.mark.parametrize("path", ["../other/0", "/etc", "file:x", "a/../../b"])
def test_level_paths_that_leave_the_store_are_refused(path, store, tmp_path):
    shutil.copytree(store, tmp_path / "x.zarr")
    root = json.loads((tmp_path / "x.zarr" / "zarr.json").read_text())
    root["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path
    (tmp_path / "x.zarr" / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError):
        nt.open(tmp_path / "x.zarr")


def test_a_missing_or_damaged_shard_is_an_error_never_white(store, tmp_path):
    shutil.copytree(store, tmp_path / "x.zarr")
    shard = tmp_path / "x.zarr" / "0" / "c" / "0" / "1" / "1"
    held = bytearray(shard.read_bytes())
    held[len(held) // 3] ^= 16
    shard.write_bytes(held)
    with pytest.raises(StoreError, match="0/c/0/1/1, chunk at row"):
        nt.open(tmp_path / "x.zarr").image(level=0).compute()
    shard.unlink()
    with pytest.raises(StoreError, match="0/c/0/1/1 is missing"):
        nt.open(tmp_path / "x.zarr").image(level=0).compute()


def test_a_mask_becomes_a_label_with_the_slides_levels(store, tmp_path):
    shutil.copytree(store, tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    mask = nt.filters.otsu(slide.image(mpp=8.0))
    slide.labels["tissue"] = mask
    assert list(slide.labels) == ["tissue"]
    label = slide.labels["tissue"]
    assert [k.size for k in label.levels] == [k.size for k in slide.levels]
    assert [k.mpp for k in label.levels] == [k.mpp for k in slide.levels]
    whole = mask.to_numpy()
    for level in label.levels:
        y, x = (((np.arange(n) + 0.5) * level.downsample / 16).astype(int) for n in (level.size.y, level.size.x))
        expected = np.pad(whole, ((0, 1), (0, 1)))[np.ix_(np.minimum(y, len(whole)), np.minimum(x, whole.shape[1]))]
        assert np.array_equal(label.image(level=level.index)[0].to_numpy(), expected)
        assert np.array_equal(zarr.open_array(label.store.root / str(level.index), mode="r")[0], expected)
    assert label.facts["made"]["filter"] == "otsu"
    assert set(np.unique(label.image(mpp=3.3))) <= {0, 1}
    yaozarrs.validate_zarr_store(str(tmp_path / "x.ome.zarr"))
    yaozarrs.validate_zarr_store(str(label.store.root))
    group = zarr.open_group(tmp_path / "x.ome.zarr", mode="r")
    assert group["labels"].attrs["ome"]["labels"] == ["tissue"]
    ome_zarr_models.open_ome_zarr(zarr.open_group(label.store.root, mode="r"))
    slide.labels["tissue"] = mask ^ True
    replaced = slide.labels["tissue"].image(level=4)[0].to_numpy()
    assert (replaced[:-2, :-2] != expected[:-2, :-2]).all()
    assert sorted(p.name for p in (tmp_path / "x.ome.zarr" / "labels").iterdir()) == ["tissue", "zarr.json"]


def test_labels_of_any_number_of_classes_and_what_cannot_be_one(store, tmp_path):
    shutil.copytree(store, tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    classes = xr.DataArray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 300, dims=("y", "x"))
    slide.labels["classes"] = classes
    image = slide.labels["classes"].image(level=0)[0].to_numpy()
    assert (image[0, 0], image[0, -1], image[-1, -1]) == (0, 900, 3300)
    for name in ("../x", "", ".hidden", "a/b", "x.partial"):
        with pytest.raises(OptionError):
            slide.labels[name] = classes
    with pytest.raises(OptionError, match="unsigned"):
        slide.labels["float"] = classes.astype(float)
    with pytest.raises(KeyError):
        slide.labels["none"]


@pytest.mark.parametrize("mpp", [0.4762, 0.4768, 0.4771])
def test_just_inside_the_tolerance_the_finest_level_is_given(mpp, slide):
    assert slide.view(mpp=mpp).exact
    with pytest.raises(ResolutionError):
        slide.view(mpp=0.476)


def test_metadata_that_lead_out_of_the_store_or_say_nonsense(store, tmp_path):
    place = tmp_path / "x.zarr"
    shutil.copytree(store, place)
    root = json.loads((place / "zarr.json").read_text())
    root["attributes"]["ngfftile"] |= {"icc": {"path": "../../secret"}, "objective_power": "40x", "source": None}
    root["attributes"]["ngfftile"]["associated"]["label"]["path"] = "/etc"
    root["attributes"]["ome"]["omero"] = {"channels": [None, {"window": None, "color": "red"}, 3]}
    (place / "zarr.json").write_text(json.dumps(root))
    slide = nt.open(place)
    assert slide.objective_power is None
    for asked in (lambda: slide.icc, lambda: slide.associated["label"]):
        with pytest.raises(StoreError, match="leaves the store"):
            asked()
    (place / "zarr.json").write_text("[" * 200_000)
    with pytest.raises(StoreError):
        nt.open(place)
    root["attributes"]["ome"] |= {"omero": None}
    root["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1, 0, 1]
    (place / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="not above 0"):
        nt.open(place)


def test_a_picture_of_a_slide_with_sixteen_bits(tmp_path):
    pixels = np.zeros((300, 400, 3), np.uint16)
    pixels[..., 0], pixels[:150, :, 1] = 65535, 32768
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", tile=(128, 128))
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert slide.rgb
    small = slide.thumbnail(200)
    assert (small[10, 10].tolist(), small[-10, 10].tolist()) == ([255, 127, 0], [255, 0, 0])
    assert slide.view(level=0).tile(nt.Region(390, 290, 20, 20))[-1, -1].tolist() == [65535] * 3
