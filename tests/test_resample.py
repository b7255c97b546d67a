"""Shrinking, against plain integers, exact fractions, and itself cut at other places."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ngfftile.resample import area_mean, halve, input_range, to_dtype, weights

ratios = st.one_of(
    st.floats(1, 9), st.integers(1, 9).map(float), st.sampled_from([1.0000001, 0.5 / 0.2508, 4.0004, 2.5, 3.999])
)


def halved(block):
    """The mean of four, one pixel at a time; integers by plain integer arithmetic."""
    c, h, w = block.shape
    out = np.empty((c, h // 2, w // 2), block.dtype)
    for k, i, j in np.ndindex(out.shape):
        four = block[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel().tolist()
        out[k, i, j] = (sum(four) + 2) // 4 if block.dtype.kind in "iu" else sum(four) / 4
    return out


def shares(size, count, ratio):
    """Dense weights (count, size) of the area mean, by exact fractions; past the border its last pixel goes on."""
    ratio, table = Fraction(ratio), np.zeros((count, size))
    for j in range(count):
        for i in range(int(j * ratio), int((j + 1) * ratio) + 1):
            part = min((j + 1) * ratio, i + 1) - max(j * ratio, i)
            table[j, min(i, size - 1)] += float(max(0, part) / ratio)
    return table


def outputs(size, ratio):
    return max(1, int(size / ratio))


def blocks(dtype):
    limits = {"elements": st.floats(-1000, 1000, width=32)} if np.dtype(dtype).kind == "f" else {}
    shape = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).map(lambda s: (s[0], 2 * s[1], 2 * s[2]))
    return hnp.arrays(dtype, shape, **limits)


DTYPES = ["uint8", "uint16", "int8", "int16", "uint32", "int32", "float32", ">u2"]


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(DTYPES).flatmap(blocks))
def test_halve_is_the_mean_of_four_rounded_half_up(block):
    out = np.empty((block.shape[0], block.shape[1] // 2, block.shape[2] // 2), block.dtype)
    before = block.copy()
    halve(block, out)
    assert np.array_equal(out, halved(block))
    assert np.array_equal(block, before)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32"])
def test_halve_of_extreme_values_neither_wraps_nor_drifts(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = np.array([low, low + 1, low + 2, high - 1, high], dtype)
    fours = np.stack(np.meshgrid(*[values] * 4), -1).reshape(1, -1, 2, 2).transpose(0, 2, 1, 3).reshape(1, 2, -1)
    block = np.ascontiguousarray(fours)
    out = np.empty((1, 1, block.shape[2] // 2), dtype)
    halve(block, out)
    assert np.array_equal(out, halved(block))
    assert (out.min(), out.max()) == (low, high)


def test_halve_writes_into_a_part_of_a_larger_array():
    block = np.random.default_rng(0).integers(0, 255, (3, 8, 6), np.uint8)
    large = np.full((3, 9, 9), 7, np.uint8)
    halve(block, large[:, 2:6, 1:4])
    assert np.array_equal(large[:, 2:6, 1:4], halved(block))
    large[:, 2:6, 1:4] = 7
    assert (large == 7).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), ratios)
def test_shares_sum_to_one_and_their_pixels_are_in_the_input_range(first, count, ratio):
    indices, parts = weights(first, count, ratio)
    low, high = input_range(first, count, ratio, 10**8)
    assert indices.shape == parts.shape == (count, indices.shape[1])
    assert (parts >= 0).all()
    np.testing.assert_allclose(parts.sum(1), 1, atol=1e-6)
    assert low <= indices[parts > 0].min()
    assert indices[parts > 0].max() < high
    assert high - low <= (count + 1) * ratio + 4
    assert input_range(first, count, ratio, low + 1) == (low, low + 1)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 70), ratios, st.integers(0, 2), st.integers(0, 2**32 - 1), st.sampled_from(["u1", "u2", "f4"]))
@example(40, 1.0, 2, 0, "u2")
def test_area_mean_equals_exact_shares(size, ratio, axis, seed, dtype):
    shape = [3, 2, 4]
    shape[axis] = size
    pixels = (np.random.default_rng(seed).random(shape) * (60_000 if dtype == "u2" else 255)).astype(dtype)
    count = outputs(size, ratio)
    found = area_mean(pixels, axis, 0, 0, count, ratio)
    expected = np.moveaxis(np.tensordot(shares(size, count, ratio), pixels.astype(np.float64), (1, axis)), 0, axis)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 120), ratios, st.integers(0, 2), st.data())
def test_a_part_computed_alone_is_the_same_to_the_last_bit(size, ratio, axis, data):
    count = outputs(size, ratio) + data.draw(st.integers(0, 1))  # a last pixel that hangs over, too
    first = data.draw(st.integers(0, count - 1))
    part = data.draw(st.integers(1, count - first))
    shape = [2, 3, 2]
    shape[axis] = size
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape, np.float32)
    low, high = input_range(first, part, ratio, size)
    if low >= size:
        return
    whole = area_mean(pixels, axis, 0, 0, count, ratio)
    block = pixels.take(range(low, high), axis)
    alone = area_mean(block, axis, low, first, part, ratio)
    assert alone.tobytes() == whole.take(range(first, first + part), axis).tobytes()


@pytest.mark.parametrize("ratio", [2, 3, 4, 7, 16])
def test_a_whole_ratio_is_the_mean_of_blocks(ratio):
    pixels = np.random.default_rng(ratio).integers(0, 256, (3, 5 * ratio, 4 * ratio), np.uint8)
    both = area_mean(area_mean(pixels, 1, 0, 0, 5, ratio), 2, 0, 0, 4, ratio)
    expected = pixels.reshape(3, 5, ratio, 4, ratio).mean((2, 4))
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_ratio_two_agrees_with_halve():
    pixels = np.random.default_rng(2).integers(0, 256, (3, 64, 48), np.uint8)
    out = np.empty((3, 32, 24), np.uint8)
    halve(pixels, out)
    both = area_mean(area_mean(pixels, 1, 0, 0, 32, 2.0), 2, 0, 0, 24, 2.0)
    assert np.array_equal(to_dtype(both, np.uint8), out)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_ratio_one_changes_nothing(dtype):
    pixels = (np.random.default_rng(1).random((2, 9, 11)) * 30_000).astype(dtype)
    for axis in range(3):
        same = to_dtype(area_mean(pixels, axis, 0, 0, pixels.shape[axis], 1.0), dtype)
        assert same.dtype == dtype
        assert np.array_equal(same, pixels)


@pytest.mark.parametrize("ratio", [1.0, 1.1, 0.5 / 0.2508, 7.7, 63.9, 512.7])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 0), ("uint8", 255), ("uint16", 65535), ("int16", -32768), ("int16", 32767), ("float32", 1e30)],
)
def test_a_constant_image_stays_constant(ratio, dtype, value):
    size = int(4 * ratio) + 1
    pixels = np.full((1, size, size), value, dtype)
    both = area_mean(area_mean(pixels, 1, 0, 0, 4, ratio), 2, 0, 0, 4, ratio)
    np.testing.assert_allclose(to_dtype(both, dtype), pixels[:, :4, :4], rtol=1e-5 * (dtype == "float32"))


@pytest.mark.parametrize("dtype", ["uint32", "int32"])
def test_the_brightest_pixels_of_wide_integers_stay_bright(dtype):
    pixels = np.full((1, 1, 8), np.iinfo(dtype).max, dtype)
    with np.errstate(invalid="ignore"):
        out = to_dtype(area_mean(pixels, 2, 0, 0, 4, 2.0), dtype)
    np.testing.assert_allclose(out.astype(np.float64), float(np.iinfo(dtype).max), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_without_a_number_spoils_no_output_that_it_is_not_part_of(value):
    pixels = np.array([[[1, 2, value, 4, 5, 6]]], np.float32)
    with np.errstate(invalid="ignore"):
        assert area_mean(pixels, 2, 0, 0, 3, 2.0)[0, 0, [0, 2]].tolist() == [1.5, 5.5]


def test_rounding_is_half_up_for_integers_and_none_for_floats():
    values = np.array([0.49, 0.5, 1.5, 2.5, 254.5, -0.5, -1.5], np.float32)
    assert to_dtype(values, np.int16).tolist() == [0, 1, 2, 3, 255, 0, -1]
    assert to_dtype(values[:5], np.uint8).tolist() == [0, 1, 2, 3, 255]
    assert np.array_equal(to_dtype(values, np.float32), values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32"])
def test_rounding_saturates_and_never_wraps(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = np.array([low - 1.0, low - 0.4, high + 0.6, high + 300.0], np.float64)
    assert to_dtype(values, dtype).tolist() == [low, low, high, high]
