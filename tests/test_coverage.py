"""The area of a mask under rectangles, against exact fractions, pixel by pixel."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ngfftile.coverage import covered_area

masks = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def rectangles(numbers):
    sides = st.tuples(numbers, numbers).map(sorted)
    return st.lists(st.tuples(sides, sides), min_size=1, max_size=6)


def exact_area(mask, x, y):
    """The sum of each true pixel's intersection with the rectangle."""
    (x0, x1), (y0, y1) = ([Fraction(v) for v in side] for side in (x, y))
    area = Fraction(0)
    for i, j in np.argwhere(mask).tolist():
        width = min(x1, j + 1) - max(x0, j)
        height = min(y1, i + 1) - max(y0, i)
        if width > 0 and height > 0:
            area += width * height
    return area


def areas(mask, found):
    x0, x1, y0, y1 = ([r[i][k] for r in found] for i in (0, 1) for k in (0, 1))
    result = covered_area(mask, x0, y0, x1, y1)
    assert result.dtype == np.float64
    assert result.shape == (len(found),)
    return result


@settings(max_examples=250, deadline=None)
@given(masks, rectangles(st.floats(-4, 13)))
def test_any_rectangles_equal_exact_fractions(mask, found):
    expected = [float(exact_area(mask, x, y)) for x, y in found]
    np.testing.assert_allclose(areas(mask, found), expected, rtol=0, atol=1e-12 * mask.size**2)


@settings(max_examples=250, deadline=None)
@given(masks, rectangles(st.integers(-40, 110).map(lambda n: n / 8)))
def test_rectangles_on_eighths_of_pixels_are_exact_to_the_last_bit(mask, found):
    assert areas(mask, found).tolist() == [float(exact_area(mask, x, y)) for x, y in found]


@pytest.mark.parametrize("side", [(-9.5, -1.0), (-1.0, 0.0), (4.0, 4.5), (50.0, 60.0), (2.5, 2.5)])
def test_rectangles_outside_or_without_area_cover_nothing(side):
    mask = np.ones((4, 4), bool)
    assert covered_area(mask, [side[0], 1], [1, side[0]], [side[1], 3], [3, side[1]]).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3)])
def test_a_rectangle_around_all_covers_the_true_pixels(shape):
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 != 1
    assert covered_area(mask, [-1, 0], [-2, 0], [99, shape[1]], [99, shape[0]]).tolist() == [mask.sum()] * 2


def test_tiles_that_part_the_mask_share_its_area():
    mask = np.random.default_rng(0).random((37, 53)) < 0.4
    xs, ys = np.linspace(0, 53, 12), np.linspace(0, 37, 8)
    y0, x0 = (a.ravel() for a in np.meshgrid(ys[:-1], xs[:-1], indexing="ij"))
    y1, x1 = (a.ravel() for a in np.meshgrid(ys[1:], xs[1:], indexing="ij"))
    parts = covered_area(mask, x0, y0, x1, y1)
    assert parts.min() >= 0
    assert parts.sum() == pytest.approx(mask.sum(), abs=1e-9)


def test_a_large_mask_counts_without_overflow():
    mask = np.ones((300, 300), bool)
    assert covered_area(mask, [0.25], [0.5], [300], [400]).item() == (300 - 0.25) * (300 - 0.5)
