"""Synthetic slides: same bytes, no seams, and readable as what they claim to be."""

import numpy as np
import openslide
import pytest
import tifffile

from ngfftile import synthetic
from ngfftile.errors import OptionError
from ngfftile.synthetic import TissueField, write_svs

SIZES = [(1, 1), (17, 5), (3000, 2000)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("synthetic") / "slide.svs", 3000, 2000, seed=4)


@pytest.fixture(scope="module")
def field():
    return TissueField(5000, 4000, mpp=0.5, seed=2)


def test_same_arguments_give_the_same_bytes(slide, tmp_path):
    again = write_svs(tmp_path / "another name.svs", 3000, 2000, seed=4)
    assert again.read_bytes() == slide.read_bytes()


def test_the_number_of_threads_does_not_show(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic.svs.os, "cpu_count", lambda: 7)
    assert write_svs(tmp_path / "slide.svs", 3000, 2000, seed=4).read_bytes() == slide.read_bytes()


def test_another_seed_gives_another_slide(field):
    other = TissueField(5000, 4000, mpp=0.5, seed=3)
    assert not np.array_equal(field.render(0, 0, 2000, 2000), other.render(0, 0, 2000, 2000))


@pytest.mark.parametrize("step", [16, 256, 333, 700])
def test_seamless_for_every_tile_size(field, step):
    x0, y0, width, height = 1800, 1500, 1400 if step > 16 else 160, 900 if step > 16 else 160
    whole = field.render(x0, y0, width, height)
    for y in range(0, height, step):
        for x in range(0, width, step):
            tile = field.render(x0 + x, y0 + y, step, step)
            part = whole[y : y + step, x : x + step]
            assert np.array_equal(tile[: part.shape[0], : part.shape[1]], part)


def test_seamless_from_anywhere_to_anywhere(field):
    whole = field.render(-300, -300, 5600, 4600)
    random = np.random.default_rng(0)
    for _ in range(40):
        x, y = (int(random.integers(0, end)) for end in (5400, 4400))
        width, height = (int(v) for v in random.integers(1, 200, 2))
        tile = field.render(x - 300, y - 300, width, height)
        assert np.array_equal(tile, whole[y : y + height, x : x + width])


def test_glass_is_nearly_the_background():
    field = TissueField(60000, 40000, background=(250, 200, 255))
    corner = field.render(0, 0, 256, 256).reshape(-1, 3).astype(int)
    assert abs(corner.mean(axis=0) - (250, 200, 253)).max() < 0.2
    assert 1 <= np.ptp(corner, axis=0).max() <= 4


def test_looks_stained(field):
    image = field.render(0, 0, 5000, 4000)[::4, ::4].reshape(-1, 3).astype(float)
    tissue = image[np.ptp(image, axis=1) > 25]
    nuclei = tissue[tissue[:, 0] < 110]
    assert 0.15 < len(tissue) / len(image) < 0.85
    assert 0.02 < len(nuclei) / len(tissue) < 0.5
    red, green, blue = tissue[tissue[:, 0] > 200].mean(axis=0)
    assert red > blue > green  # eosin
    red, green, blue = nuclei.mean(axis=0)
    assert blue > red > green - 15  # haematoxylin


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_openslide_and_tifffile_agree(width, height, tmp_path):
    path = write_svs(tmp_path / "slide.svs", width, height, mpp=0.5, objective_power=20)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_svs
        assert [s.name for s in tif.series] == ["Baseline", "Thumbnail", "Label", "Macro"]
        levels = [level.asarray() for level in tif.series[0].levels]
        assert tif.series[0].attrs["magnification"] == 20
    with openslide.OpenSlide(path) as slide:
        assert slide.detect_format(path) == "aperio"
        assert slide.dimensions == (width, height)
        assert slide.properties["openslide.mpp-x"] == slide.properties["openslide.mpp-y"] == "0.5"
        assert slide.properties["openslide.objective-power"] == "20"
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert slide.level_dimensions == tuple((a.shape[1], a.shape[0]) for a in levels)
        for k, level in enumerate(levels):
            pixels = np.asarray(slide.read_region((0, 0), k, slide.level_dimensions[k]))
            assert np.array_equal(pixels[..., :3], level)


def test_levels_are_averages_of_the_level_below(slide):
    with tifffile.TiffFile(slide) as tif:
        fine, coarse = (level.asarray().astype(float) for level in tif.series[0].levels)
    assert coarse.shape == (500, 750, 3)
    error = fine.reshape(500, 4, 750, 4, 3).mean(axis=(1, 3)) - coarse
    assert abs(error.mean()) < 0.5  # what remains is JPEG
    assert error.std() < 8


def test_large_slides_have_levels_until_small(tmp_path):
    path = write_svs(tmp_path / "slide.svs", 9000, 20)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((9000, 20), (2250, 5), (562, 1))


def test_layout_is_aperios(slide):
    with tifffile.TiffFile(slide) as tif:
        baseline, thumbnail, level, label, macro = tif.pages
    start = "Aperio Image Library v12.0.15 \r\n3000x2000 "
    assert baseline.description.startswith(start + "[0,0 3000x2000] (256x256) JPEG/RGB Q=85|AppMag = 40|")
    assert thumbnail.description.startswith(start + "-> 750x500 - |AppMag = 40|")
    assert level.description.startswith(start + "[0,0 3000x2000] (256x256) -> 750x500 JPEG/RGB Q=85|")
    assert "|MPP = 0.2500|" in baseline.description
    assert "|ScanScope ID = SYNTHETIC|" in baseline.description
    assert [p.is_tiled for p in (baseline, thumbnail, level, label, macro)] == [True, False, True, False, False]
    assert (baseline.subfiletype, label.subfiletype, macro.subfiletype) == (0, 1, 9)
    assert baseline.jpegtables
    assert baseline.photometric == tifffile.PHOTOMETRIC.YCBCR
    assert label.description.endswith(f"label {label.imagewidth}x{label.imagelength}")
    assert macro.description.endswith(f"macro {macro.imagewidth}x{macro.imagelength}")


@pytest.mark.parametrize("size", [(100, 80), (2500, 300)])
def test_without_associated_images(size, tmp_path):
    path = write_svs(tmp_path / "slide.svs", *size, associated=False, tile=64)
    with openslide.OpenSlide(path) as slide:
        assert slide.detect_format(path) == "aperio"
        assert not slide.associated_images
        assert slide.level_count == 1 + (size[0] > 2000)


def test_tiles_hold_the_rendering(tmp_path):
    path = write_svs(tmp_path / "slide.svs", 700, 500, tile=128, quality=100)
    drawn = TissueField(700, 500).render(0, 0, 700, 500).astype(float)
    stored = tifffile.imread(path, key=0).astype(float)
    assert abs(stored - drawn).mean() < 3  # chroma is subsampled


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"height": -1},
        {"width": 10.5},
        {"width": True},
        {"mpp": 0},
        {"mpp": float("nan")},
        {"tile": 100},
        {"tile": 0},
        {"quality": 0},
        {"quality": 101},
        {"objective_power": 0},
        {"background": (1, 2)},
        {"background": (0, 0, 256)},
        {"seed": 0.5},
    ],
)
def test_wrong_arguments_are_refused(wrong, tmp_path):
    with pytest.raises(OptionError):
        write_svs(tmp_path / "slide.svs", **{"width": 10, "height": 10, **wrong})
    assert not list(tmp_path.iterdir())


def test_wrong_regions_are_refused(field):
    with pytest.raises(OptionError):
        field.render(0, 0, 0, 5)


def test_an_interrupted_run_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "slide.svs"
    path.write_bytes(b"before")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic.svs, "_macro", stop)
    with pytest.raises(KeyboardInterrupt):
        write_svs(path, 300, 200)
    assert [p.name for p in tmp_path.iterdir()] == ["slide.svs"]
    assert path.read_bytes() == b"before"


def test_an_error_in_a_thread_is_raised(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(TissueField, "render", fail)
    with pytest.raises(MemoryError):
        write_svs(tmp_path / "slide.svs", 3000, 3000)
    assert not list(tmp_path.iterdir())
