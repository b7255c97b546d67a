"""Colours through the slide's profile: as littlecms in Pillow, lazily, and never by default."""

import io
from functools import cache

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import ngfftile as nt
from ngfftile.color import to_srgb
from ngfftile.errors import OptionError, StoreError

RANDOM = np.random.default_rng(1)


@cache
def swapping():
    """A profile unlike sRGB; once, since it holds the time of its making."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red's and blue's primaries changed places: tags rXYZ and bXYZ of the tag table.
    return profile.replace(b"rXYZ", b"temp").replace(b"bXYZ", b"rXYZ").replace(b"temp", b"bXYZ")


@pytest.fixture
def slide(tmp_path):
    pixels = RANDOM.integers(0, 255, (300, 400, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", tile=(128, 128), iccprofile=swapping())
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    return nt.open(tmp_path / "x.ome.zarr"), pixels


def test_colours_are_as_stored_by_default_and_as_pillow_makes_them_on_demand(slide):
    slide, pixels = slide
    assert slide.icc == swapping()
    assert np.array_equal(slide.image(level=0), pixels.transpose(2, 0, 1))
    shown = slide.image(level=0, color="srgb", blocks=100)
    assert shown.attrs["color"] == "srgb"
    assert shown.data.numblocks == (1, 3, 4)
    made = ImageCms.profileToProfile(
        Image.fromarray(pixels), ImageCms.ImageCmsProfile(io.BytesIO(slide.icc)), ImageCms.createProfile("sRGB")
    )
    assert np.array_equal(shown, np.asarray(made).transpose(2, 0, 1))
    assert not np.array_equal(shown, slide.image(level=0))


def test_a_slide_without_a_profile_is_taken_for_srgb_and_others_have_no_colours(store, tmp_path):
    slide = nt.open(store)
    assert slide.icc is None
    assert np.array_equal(slide.image(level=1, color="srgb"), slide.image(level=1))
    with pytest.raises(OptionError, match="color is 'cmyk'"):
        slide.image(level=0, color="cmyk")
    tifffile.imwrite(tmp_path / "g.tif", np.zeros((50, 60), np.uint8))
    nt.convert(tmp_path / "g.tif", tmp_path / "g.ome.zarr")
    with pytest.raises(OptionError, match="red, green and blue"):
        nt.open(tmp_path / "g.ome.zarr").image(level=0, color="srgb")


def test_a_profile_that_is_none_is_an_error():
    with pytest.raises(StoreError, match="profile"):
        to_srgb(np.zeros((3, 4, 4), np.uint8), b"not a profile")
