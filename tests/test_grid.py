"""Grids of tiles, against literal loops and the known values of semantics.md."""

from itertools import pairwise
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngfftile.errors import OptionError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.grid import TileGrid, axis_starts

EDGES = ("keep", "drop", "shift")
sizes = st.integers(1, 90)
extents = st.integers(1, 30)
strides = st.integers(1, 45)
edges = st.sampled_from(EDGES)


def walk(size, extent, stride, edge):
    """The starts, one step at a time."""
    starts = [0]
    if edge == "drop":
        while starts[-1] + extent <= size:
            starts.append(starts[-1] + stride)
        return starts[:-1]
    while starts[-1] + extent < size:
        starts.append(starts[-1] + stride)
    if edge == "keep":
        return [s for s in starts if s < size]
    return [max(0, min(s, size - extent)) for s in starts]


@settings(max_examples=400, deadline=None)
@given(sizes, extents, strides, edges)
def test_starts_equal_a_walk_along_the_axis(size, extent, stride, edge):
    found = axis_starts(size, extent, stride, edge)
    assert found.dtype == np.int64
    assert found.tolist() == walk(size, extent, stride, edge)


@settings(max_examples=300, deadline=None)
@given(sizes, extents, strides)
def test_keep_covers_every_pixel_with_as_few_tiles_as_can_be(size, extent, stride):
    starts = axis_starts(size, extent, stride, "keep").tolist()
    covered = {p for s in starts for p in range(s, s + extent)}
    assert starts[0] == 0
    assert all(s < size for s in starts)
    assert all(b - a == stride for a, b in pairwise(starts))
    if stride <= extent:
        assert covered >= set(range(size))
        without_last = {p for s in starts[:-1] for p in range(s, s + extent)}
        assert not without_last >= set(range(size)), "the last tile is not needed"


@settings(max_examples=300, deadline=None)
@given(sizes, extents, strides)
def test_drop_takes_every_whole_tile_and_no_other(size, extent, stride):
    starts = axis_starts(size, extent, stride, "drop").tolist()
    assert starts == [s for s in range(0, size, stride) if s + extent <= size]


@settings(max_examples=300, deadline=None)
@given(sizes, extents, strides)
def test_shift_stays_inside_reaches_the_border_and_repeats_nothing(size, extent, stride):
    starts = axis_starts(size, extent, stride, "shift").tolist()
    assert len(set(starts)) == len(starts)
    assert starts == sorted(starts)
    if size < extent:
        assert starts == [0]
        return
    assert all(s >= 0 and s + extent <= size for s in starts)
    assert starts[-1] + extent == size
    assert starts[:-1] == [k * stride for k in range(len(starts) - 1)]
    if stride <= extent:
        assert {p for s in starts for p in range(s, s + extent)} == set(range(size))


@pytest.mark.parametrize(
    ("size", "extent", "stride", "edge", "expected"),
    [
        (5, 2, 2, "drop", [0, 2]),
        (5, 2, 2, "keep", [0, 2, 4]),
        (5, 2, 2, "shift", [0, 2, 3]),
        (5, 2, 1, "keep", [0, 1, 2, 3]),
        (4, 2, 2, "keep", [0, 2]),
        (2, 5, 3, "drop", []),
        (2, 5, 3, "keep", [0]),
        (2, 5, 3, "shift", [0]),
        (5, 5, 1, "drop", [0]),
        (5, 2, 5, "keep", [0]),  # the second start would be past the border
        (6, 2, 5, "keep", [0, 5]),
        (10**9, 512, 512, "drop", None),
    ],
)
def test_known_axes(size, extent, stride, edge, expected):
    found = axis_starts(size, extent, stride, edge)
    if expected is None:
        assert (len(found), found[-1]) == (10**9 // 512, (10**9 // 512 - 1) * 512)
    else:
        assert found.tolist() == expected


@pytest.mark.parametrize(
    ("extent", "edge", "count"), [(300, "drop", 63), (300, "keep", 80), (500, "drop", 20), (500, "keep", 30)]
)
def test_counts_of_pathml_on_its_own_slide(extent, edge, count):
    assert len(TileGrid(extent=extent, level=0, edge=edge).tiles(Size(2220, 2967))) == count


@pytest.mark.parametrize(("edge", "axis"), [("drop", [0, 2]), ("keep", [0, 2, 4]), ("shift", [0, 2, 3])])
def test_x_runs_fastest_on_five_by_five(edge, axis):
    tiles = TileGrid(extent=2, level=0, edge=edge).tiles(Size(5, 5))
    assert list(zip(tiles.x, tiles.y, strict=True)) == [(x, y) for y in axis for x in axis]
    n = len(axis)
    assert list(zip(tiles.col, tiles.row, strict=True)) == [(c, r) for r in range(n) for c in range(n)]
    assert {a.dtype for a in (tiles.x, tiles.y, tiles.row, tiles.col)} == {np.dtype(np.int64)}


@settings(max_examples=150, deadline=None)
@given(st.tuples(sizes, sizes), st.tuples(extents, extents), st.tuples(strides, strides), edges)
def test_a_grid_is_the_product_of_its_axes_and_overhang_is_counted_pixels(size, extent, stride, edge):
    bounds = Size(*size)
    tiles = TileGrid(extent=Size(*extent), stride=Size(*stride), level=0, edge=edge).tiles(bounds)
    xs, ys = (walk(s, t, d, edge) for s, t, d in zip(size, extent, stride, strict=True))
    expected = [(x, y, r, c) for r, y in enumerate(ys) for c, x in enumerate(xs)]
    assert list(zip(tiles.x, tiles.y, tiles.row, tiles.col, strict=True)) == expected
    assert (tiles.bounds, tiles.extent) == (bounds, Size(*extent))
    slide = np.zeros((bounds.y + extent[1], bounds.x + extent[0]), bool)
    slide[bounds.y :] = slide[:, bounds.x :] = True
    counted = [slide[y : y + extent[1], x : x + extent[0]].mean() for x, y, _, _ in expected]
    np.testing.assert_allclose(tiles.overhang, counted, atol=1e-12)
    if edge == "drop" or (edge == "shift" and bounds.x >= extent[0] and bounds.y >= extent[1]):
        assert not tiles.overhang.any()


def test_stride_is_the_extent_unless_given():
    assert TileGrid(extent=Size(3, 4), level=0).stride == Size(3, 4)
    assert TileGrid(extent=7, level=0).extent == Size(7, 7)
    assert TileGrid(extent=7, stride=2, level=0).stride == Size(2, 2)


def test_choosing_tiles_by_mask_or_by_number_keeps_their_columns_together():
    tiles = TileGrid(extent=Size(3, 2), level=0).tiles(Size(10, 5))
    for chosen in (tiles.overhang == 0, np.array([5, 1, 1])):
        some = tiles[chosen]
        for name in ("x", "y", "row", "col", "overhang"):
            assert np.array_equal(getattr(some, name), getattr(tiles, name)[chosen]), name
        assert (some.extent, some.bounds) == (tiles.extent, tiles.bounds)
        assert len(some) == len(some.x)


def test_the_region_of_a_tile_may_hang_over():
    tiles = TileGrid(extent=Size(3, 2), level=0).tiles(Size(10, 5))
    assert tiles.region(0) == Region(0, 0, 3, 2)
    assert tiles.region(len(tiles) - 1) == Region(9, 4, 3, 2)
    assert type(tiles.region(1).x) is int


def test_a_million_tiles_take_well_under_a_second():
    grid = TileGrid(extent=256, stride=100, level=0, edge="shift")

    def once():
        start = perf_counter()
        tiles = grid.tiles(Size(100_000, 100_100))
        assert len(tiles) > 990_000
        assert tiles.overhang.max() == 0
        return perf_counter() - start

    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"extent": 0, "level": 0}, "0"),
        ({"extent": -3, "level": 0}, "-3"),
        ({"extent": 2.5, "level": 0}, "2.5"),
        ({"extent": float("nan"), "level": 0}, "nan"),
        ({"extent": True, "level": 0}, "True"),
        ({"stride": 0, "level": 0}, "0"),
        ({"edge": "wrap", "level": 0}, "wrap"),
        ({}, "None"),
        ({"mpp": 0.5, "level": 0}, "0.5"),
        ({"level": -1}, "-1"),
        ({"mpp": 0}, "0"),
        ({"mpp": -0.25}, "-0.25"),
        ({"mpp": float("nan")}, "nan"),
        ({"mpp": float("inf")}, "inf"),
    ],
)
def test_a_grid_that_cannot_be_says_what_where_and_how_to_mend_it(arguments, said):
    with pytest.raises(OptionError) as caught:
        TileGrid(**arguments)
    assert said in caught.value.what
    assert caught.value.where
    assert caught.value.mend


def test_resolution_or_level_is_enough():
    assert TileGrid(mpp=0.5).mpp == 0.5
    assert TileGrid(level=3).level == 3
    assert Mpp.of(0.5) == Mpp(0.5, 0.5)
