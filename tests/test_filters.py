"""Tissue: the same mask for any chunking, the threshold of the whole slide, the rule of ratiopath."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

import ngfftile as nt
from ngfftile.errors import OptionError


def glass(shape=(160, 200), seed=0):
    """A slide at 8 micrometres: noisy glass, a few pieces of tissue with holes, specks."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 12)
    tissue = field > np.quantile(field, 0.7)
    tissue ^= (rng.random(shape) < 0.01) & (rng.random() < 0.9)
    pixels = rng.integers(238, 246, (3, *shape))
    pixels[:, tissue] = rng.integers(0, 40, (3, tissue.sum())) + np.array([[200], [120], [180]])
    return pixels.astype(np.uint8), tissue


def image(pixels, chunks, **attrs):
    data = da.from_array(pixels, chunks=chunks)
    return xr.DataArray(data, dims=("c", "y", "x"), attrs={"mpp_x": 8.0, "mpp_y": 8.0, "rgb": True} | attrs)


def cuts(total):
    """Up to seven chunks of any size that add up to ``total``."""
    places = st.sets(st.integers(1, total - 1), max_size=6)
    return places.map(lambda p: tuple(np.diff([0, *sorted(p), total]).tolist()))


def whole_slide_otsu(pixels, mpp=8.0):
    """The same steps on the whole array at once, by the libraries' own functions."""
    high, low = pixels.max(0).astype(int), pixels.min(0).astype(int)
    saturation = ((high - low) * 255 // np.maximum(high, 1)).astype(np.uint8)
    saturation = ndimage.median_filter(saturation, size=3)
    mask = saturation > max(threshold_otsu(saturation), 12)
    y, x = np.ogrid[-3:4, -3:4]
    disc = (y / 3.5) ** 2 + (x / 3.5) ** 2 <= 1
    mask = ndimage.binary_erosion(ndimage.binary_dilation(mask, disc), disc, border_value=1)
    y, x = np.ogrid[-2:3, -2:3]
    disc = (y / 2.5) ** 2 + (x / 2.5) ** 2 <= 1
    mask = ndimage.binary_dilation(ndimage.binary_erosion(mask, disc, border_value=1), disc)
    mask = remove_small_objects(mask, max_size=int(np.ceil(20_000 / mpp**2)) - 1)
    return remove_small_holes(mask, max_size=int(np.ceil(50_000 / mpp**2)) - 1)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_mask_is_that_of_the_whole_slide_for_every_chunking(data):
    pixels, _ = glass(seed=data.draw(st.integers(0, 5)))
    chunks = tuple(data.draw(cuts(n)) for n in pixels.shape[1:])
    mask = nt.filters.otsu(image(pixels, ((3,), *chunks)))
    assert np.array_equal(mask.to_numpy(), whole_slide_otsu(pixels))


def test_the_mask_finds_the_tissue():
    pixels, tissue = glass()
    mask = nt.filters.otsu(image(pixels, (3, 64, 64))).to_numpy()
    both, either = (mask & tissue).sum(), (mask | tissue).sum()
    assert both / either > 0.9


def test_the_mask_is_lazy_labelled_and_says_what_made_it():
    pixels, _ = glass()
    with dask.config.set(scheduler=lambda *_a, **_k: pytest.fail("computed")):
        mask = nt.filters.otsu(image(pixels, (3, 64, 64)))
    assert mask.dims == ("y", "x")
    assert mask.dtype == bool
    assert mask.attrs["filter"] == "otsu"
    assert mask.attrs["options"]["smooth_um"] == 24.0


def test_saturation_is_that_of_hsv():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 60), np.uint8)
    ours = nt.filters._saturation(pixels, np.zeros((), bool))
    theirs = rgb2hsv(pixels.transpose(1, 2, 0))[..., 1] * 255
    assert np.abs(ours - theirs).max() < 1.001


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_slide_has_no_tissue(value):
    pixels = np.full((3, 80, 90), value, np.uint8)
    assert not nt.filters.otsu(image(pixels, (3, 30, 30))).any()


def test_the_noise_of_an_empty_slide_is_not_tissue():
    pixels = np.random.default_rng(0).integers(236, 246, (3, 200, 200)).astype(np.uint8)
    assert not nt.filters.otsu(image(pixels, (3, 64, 64))).any()


@pytest.mark.parametrize(("dtype", "rgb"), [("uint8", True), ("uint8", False), ("uint16", False), ("float32", False)])
def test_on_a_dark_ground_tissue_is_what_shines(dtype, rgb):
    _, tissue = glass()
    rng = np.random.default_rng(1)
    scale = {"uint8": 1, "uint16": 100, "float32": 0.01}[dtype]
    plane = np.where(tissue, 120, 8) + rng.integers(0, 8, tissue.shape)
    pixels = np.stack([plane * 0, plane * 0, plane]) * scale if rgb else (plane * scale)[None]
    mask = nt.filters.otsu(image(pixels.astype(dtype), (1, 64, 64), rgb=rgb)).to_numpy()
    assert (mask & tissue).sum() / (mask | tissue).sum() > 0.9


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (5, 17), (40, 2)])
def test_tiny_images(shape):
    pixels, _ = glass()
    assert nt.filters.otsu(image(pixels[:, : shape[0], : shape[1]], (3, 4, 4))).shape == shape


def test_morphology_is_in_micrometres():
    pixels, _ = glass()
    fine = image(np.kron(pixels, np.ones((1, 2, 2), np.uint8)), (3, 100, 100), mpp_x=4.0, mpp_y=4.0)
    coarse = nt.filters.otsu(image(pixels, (3, 64, 64))).to_numpy()
    again = nt.filters.otsu(fine).to_numpy()[::2, ::2]
    assert (again != coarse).mean() < 0.02


@pytest.mark.parametrize(
    "options", [{"value": "hue"}, {"smooth_um": -1}, {"close_um": float("nan")}, {"least_um2": float("inf")}]
)
def test_bad_options_are_refused(options):
    pixels, _ = glass()
    with pytest.raises(OptionError):
        nt.filters.otsu(image(pixels, (3, 64, 64)), **options)


def test_an_image_of_other_dimensions_is_refused():
    with pytest.raises(OptionError, match="dimensions"):
        nt.filters.otsu(xr.DataArray(np.zeros((5, 5)), dims=("y", "x")))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.integers(0, 255),
    spread=st.integers(0, 60),
    dtype=st.sampled_from(["uint8", "uint16"]),
)
def test_std_is_the_population_standard_deviation_of_all_values_strictly_above_8(seed, low, spread, dtype):
    tile = np.random.default_rng(seed).integers(low, low + spread + 1, (9, 7, 3)).clip(0, 255).astype(dtype)
    deviation = np.std(tile.astype(np.float64))
    if abs(deviation - 8) > 1e-9:
        assert nt.filters.std(tile) == (deviation > 8)


def test_std_on_the_border_is_decided_exactly():
    tile = np.zeros((512, 512, 3), np.uint8)
    tile[::2] = 16
    assert np.std(tile) == 8
    assert not nt.filters.std(tile)
    tile[0, 0, 0] = 17
    assert nt.filters.std(tile)


@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 1), ("uint16", 257)])
def test_on_bright_ground_tissue_is_what_is_dark_or_stained_at_any_depth(dtype, factor):
    pixels, tissue = glass()
    deep = pixels.astype(dtype) * np.array(factor, dtype)
    for mask in (nt.filters.otsu(image(deep, (3, 64, 64))), nt.filters.otsu(image(deep[1:2], (1, 64, 64), rgb=False))):
        found = mask.to_numpy()
        assert (found & tissue).sum() / (found | tissue).sum() > 0.9
