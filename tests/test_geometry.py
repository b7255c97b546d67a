"""Sizes, resolutions and rectangles: they check themselves, and meet as sets of pixels do."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngfftile.errors import OptionError
from ngfftile.geometry import Mpp, Region, Size

NOT_A_SIZE = [0, -1, 1.5, True, False, float("nan"), float("inf"), "3"]
NOT_A_RESOLUTION = [0, -0.5, float("nan"), float("inf"), float("-inf")]
regions = st.builds(Region, st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 9), st.integers(0, 9))


def pixels(region):
    return {(x, y) for x in range(region.x, region.right) for y in range(region.y, region.bottom)}


@pytest.mark.parametrize("value", NOT_A_SIZE)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_size_is_whole_pixels_one_or_more(axis, value):
    with pytest.raises(OptionError) as caught:
        Size(**{"x": 5, "y": 5, axis: value})
    assert caught.value.what == f"{axis} is {value!r}"
    assert (caught.value.where, bool(caught.value.mend)) == ("Size", True)


def test_a_size_from_one_number_is_square():
    assert Size.of(7) == Size(7, 7)
    assert Size.of(Size(3, 4)) == Size(3, 4)
    assert Size.of(np.int64(7)) == Size(7, 7)
    assert str(Size(3, 4)) == "3 x 4"
    with pytest.raises(OptionError):
        Size.of(0)


@pytest.mark.parametrize("value", NOT_A_RESOLUTION)
def test_a_resolution_is_above_zero_and_finite(value):
    for call in (lambda: Mpp(value, 1), lambda: Mpp(1, value), lambda: Mpp.of(value)):
        with pytest.raises(OptionError) as caught:
            call()
        assert repr(value) in caught.value.what or repr(float(value)) in caught.value.what
        assert (caught.value.where, bool(caught.value.mend)) == ("Mpp", True)


def test_a_resolution_shrinks_along_each_axis():
    assert Mpp(0.25, 0.5).times(2, 4) == Mpp(0.5, 2.0)
    assert Mpp.of(1) == Mpp(1.0, 1.0)
    assert Mpp.of(Mpp(1, 2)) == Mpp(1, 2)
    assert (str(Mpp(0.25, 0.25)), str(Mpp(0.252345, 0.5))) == ("0.25", "0.2523 x 0.5")


@pytest.mark.parametrize(("width", "height"), [(-1, 3), (3, -1)])
def test_a_region_is_of_no_negative_size(width, height):
    with pytest.raises(OptionError) as caught:
        Region(0, 0, width, height)
    assert f"{width} x {height}" in caught.value.what
    assert (caught.value.where, bool(caught.value.mend)) == ("Region", True)


def test_a_region_may_be_empty_and_anywhere():
    region = Region(-3, 9, 0, 4)
    assert (region.right, region.bottom) == (-3, 13)


@settings(max_examples=300, deadline=None)
@given(regions, regions)
def test_clip_is_the_intersection_of_pixels(one, other):
    both = one.clip(other)
    assert pixels(both) == pixels(one) & pixels(other)
    assert pixels(both) == pixels(other.clip(one))


@settings(max_examples=200, deadline=None)
@given(regions, regions)
def test_inside_finds_the_pixels_in_an_array_of_the_outer_region(one, outer):
    part = one.clip(outer)
    if not pixels(part):
        return
    y, x = np.mgrid[outer.y : outer.bottom, outer.x : outer.right]
    rows, cols = y[part.inside(outer)], x[part.inside(outer)]
    assert rows.shape == (part.height, part.width)
    assert set(zip(cols.ravel().tolist(), rows.ravel().tolist(), strict=True)) == pixels(part)


@pytest.mark.parametrize("value", [Size(1, 2), Mpp(0.5, 1), Region(1, 2, 3, 4)])
def test_values_are_frozen_hashable_and_pickle(value):
    assert pickle.loads(pickle.dumps(value)) == value
    assert len({value, dataclasses.replace(value)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.x = 9


def test_an_mpp_is_one_number_where_pixels_are_square():
    assert float(Mpp(0.25, 0.25)) == 0.25
    with pytest.raises(OptionError, match="rectangular"):
        float(Mpp(0.25, 0.5))
