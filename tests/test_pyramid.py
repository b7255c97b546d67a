"""The cut of a slide into levels, shards and cells, against counting over pixels and tiles."""

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ngfftile.errors import OptionError
from ngfftile.geometry import Region, Size
from ngfftile.pyramid import PyramidPlan, Shard, axis_spans, level_sizes

sides = st.sampled_from([16, 32, 64, 128])
lengths = st.integers(1, 300)
tiles = st.integers(1, 150)


def plan(x, y, shard=32, tile=(1, 1), depths=(3, 3)):
    channels, depth = depths
    return PyramidPlan(Size(x, y), channels, "uint8", depth, 0, 16, shard, Size(*tile))


def shards_met(start, stop, shard):
    return {p // shard for p in range(start, stop)}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 300))
def test_levels_halve_and_round_down_until_one_is_small(x, y, stop):
    sizes = level_sizes(Size(x, y), stop)
    assert sizes[0] == Size(x, y)
    for k, size in enumerate(sizes):
        assert (size.x, size.y) == (max(1, x >> k), max(1, y >> k))
        assert (max(size.x, size.y) <= stop) == (k == len(sizes) - 1)


def test_known_levels():
    assert level_sizes(Size(256, 256)) == (Size(256, 256),)
    assert level_sizes(Size(257, 1)) == (Size(257, 1), Size(128, 1))
    assert level_sizes(Size(1000, 3)) == (Size(1000, 3), Size(500, 1), Size(250, 1))
    assert len(level_sizes(Size(100_000, 80_000))) == 10
    assert plan(1000, 3).levels == level_sizes(Size(1000, 3), 256)


@settings(max_examples=300, deadline=None)
@given(lengths, sides, tiles)
@example(1000, 512, 240)
@example(300, 16, 150)
def test_spans_part_an_axis_along_tile_borders(size, shard, tile):
    spans = axis_spans(size, shard, tile)
    assert [p for s in spans for p in range(s.start, s.stop)] == list(range(size))
    for span in spans:
        assert span.start % tile == 0
        assert span.stop % tile == 0 or span.stop == size
        assert shards_met(span.start, span.stop, shard) == set(range(span.first, span.last + 1))
    assert {k for s in spans for k in range(s.first, s.last + 1)} == set(range(-(-size // shard)))
    for tile_start in range(0, size, tile):
        last = min(size, tile_start + tile)
        assert sum(s.start <= tile_start and last <= s.stop for s in spans) == 1, "a tile is cut"


@settings(max_examples=300, deadline=None)
@given(lengths, sides, tiles)
def test_each_tile_of_a_span_meets_the_shards_of_the_span_and_spans_are_as_large_as_can_be(size, shard, tile):
    spans = axis_spans(size, shard, tile)
    assert all((a.first, a.last) != (b.first, b.last) for a, b in pairwise(spans))
    for span in spans:
        for start in range(span.start, span.stop, tile):
            assert shards_met(start, min(size, start + tile), shard) == set(range(span.first, span.last + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 130), st.integers(1, 130), sides, st.integers(3, 70), st.integers(3, 70))
@example(300, 200, 64, 48, 60)
def test_each_source_tile_lies_in_one_cell_so_it_is_decoded_once(x, y, shard, tile_x, tile_y):
    assume(max(tile_x, tile_y) <= shard)
    cut = plan(x, y, shard, (tile_x, tile_y))
    found = {}
    for at in cut.shards(0):
        for cell in cut.cells(at):
            assert found.setdefault((cell.row, cell.col), cell) == cell
    times = np.zeros((y, x), np.uint8)
    for cell in found.values():
        times[cell.region.y : cell.region.bottom, cell.region.x : cell.region.right] += 1
    assert (times == 1).all()
    homes = Counter()
    for top, left in product(range(0, y, tile_y), range(0, x, tile_x)):
        tile = Region(left, top, tile_x, tile_y).clip(Region(0, 0, x, y))
        homes[sum(cell.region.clip(tile) == tile for cell in found.values())] += 1
    assert set(homes) == {1}


def test_strips_wider_than_a_shard_are_not_shared_so_that_none_waits():
    cut = plan(300, 200, 64, (300, 8))
    assert not any(cell.shared for at in cut.shards(0) for cell in cut.cells(at))
    assert cut.seam_bytes == 0


@settings(max_examples=80, deadline=None)
@given(lengths, lengths, sides, tiles, tiles)
def test_the_cells_of_a_shard_cover_it_and_are_shared_when_several_shards_meet_them(x, y, shard, tile_x, tile_y):
    cut = plan(x, y, shard, (tile_x, tile_y))
    for at in cut.shards(0):
        region, cells = cut.region(at), cut.cells(at)
        parts = [cell.region.clip(region) for cell in cells]
        assert all(part.width and part.height for part in parts), "a cell that the shard does not need"
        assert sum(part.width * part.height for part in parts) == region.width * region.height
        places = Counter((part.x, part.y) for part in parts)
        assert max(places.values()) == 1
        for cell in cells:
            across = shards_met(cell.region.x, cell.region.right, shard)
            down = shards_met(cell.region.y, cell.region.bottom, shard)
            assert cell.shared == (len(across) * len(down) > 1)


def test_no_cell_is_shared_where_tiles_divide_the_shards():
    cut = plan(1000, 700, 128, (64, 32))
    assert not any(cell.shared for at in cut.shards(0) for cell in cut.cells(at))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), sides, st.sampled_from([(3, 3), (1, 1), (4, 1), (6, 3)]))
def test_shards_part_each_level_and_are_counted(x, y, shard, depths):
    channels, depth = depths
    cut = plan(x, y, shard, (1, 1), depths)
    keys = set()
    for level, size in enumerate(cut.levels):
        every = list(cut.shards(level))
        assert {(s.plane, s.row, s.col) for s in every} == set(
            product(range(channels // depth), range(-(-size.y // shard)), range(-(-size.x // shard)))
        )
        area = 0
        for at in every:
            region = cut.region(at)
            assert (region.x, region.y) == (at.col * shard, at.row * shard)
            assert (region.right, region.bottom) == (min(size.x, region.x + shard), min(size.y, region.y + shard))
            area += region.width * region.height
        assert area == size.x * size.y * (channels // depth)
        keys |= {(level, *cut.place(at)) for at in every}
    assert len(keys) == cut.count


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), sides, st.sampled_from([1, 2]))
def test_the_children_of_a_shard_hold_the_pixels_that_it_is_the_mean_of(x, y, shard, planes):
    cut = plan(x, y, shard, (1, 1), (planes, 1))
    assert not any(cut.children(at) for at in cut.shards(0))
    for level in range(1, len(cut.levels)):
        fine, finer = cut.levels[level - 1], set(cut.shards(level - 1))
        for at in cut.shards(level):
            region = cut.region(at)
            right, bottom = min(fine.x, 2 * region.right), min(fine.y, 2 * region.bottom)
            cols, rows = shards_met(2 * region.x, right, shard), shards_met(2 * region.y, bottom, shard)
            needed = {Shard(level - 1, at.plane, r, c) for r, c in product(rows, cols)}
            children = cut.children(at)
            assert set(children) >= needed
            assert len(set(children)) == len(children)
            assert set(children) <= finer


@pytest.mark.parametrize("shard", [32, 64])
@pytest.mark.parametrize("x", [257, 300, 511, 512, 513, 514, 1023, 1025, 2047, 2049])
@pytest.mark.parametrize("y", [1, 200, 321, 641])
def test_every_shard_but_the_last_levels_has_one_parent(x, y, shard):
    cut = plan(x, y, shard)
    for level in range(1, len(cut.levels)):
        born = Counter(child for at in cut.shards(level) for child in cut.children(at))
        assert born == Counter(cut.shards(level - 1)), f"level {level - 1}"


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, sides, st.tuples(tiles, tiles), st.sampled_from([1, 2]))
def test_bytes_are_those_of_arrays_of_these_sizes(x, y, shard, tile, wide):
    cut = PyramidPlan(Size(x, y), 3, f"uint{8 * wide}", 3, 255, 16, shard, Size(*tile))
    assert cut.raw_bytes == sum(3 * size.x * size.y * wide for size in cut.levels)
    largest = max((cut.region(at) for at in cut.shards(0)), key=lambda r: r.width * r.height)
    assert cut.shard_bytes == largest.width * largest.height * 3 * wide
    shared = [cell for at in cut.shards(0) for cell in cut.cells(at) if cell.shared]
    assert bool(cut.seam_bytes) == bool(shared)
    for cell in shared:
        assert cell.region.width * cell.region.height * 3 * wide <= cut.seam_bytes


@pytest.mark.parametrize("chunk", [0, -16, 1, 8, 15, 17, 100, 255])
def test_a_chunk_that_cannot_be_is_refused(chunk):
    with pytest.raises(OptionError) as caught:
        PyramidPlan(Size(9, 9), 3, "uint8", 3, 255, chunk=chunk)
    assert str(chunk) in caught.value.what
    assert caught.value.where
    assert caught.value.mend


@pytest.mark.parametrize(("chunk", "shard"), [(256, 128), (256, 0), (256, -512), (256, 768), (256, 300), (16, 8)])
def test_a_shard_that_cannot_be_is_refused(chunk, shard):
    with pytest.raises(OptionError) as caught:
        PyramidPlan(Size(9, 9), 3, "uint8", 3, 255, chunk=chunk, shard=shard)
    assert str(shard) in caught.value.what
    assert caught.value.where
    assert str(chunk) in caught.value.mend


@pytest.mark.parametrize(("chunk", "shard"), [(16, 16), (16, 32), (256, 256), (256, 4096), (1024, 8192)])
def test_a_shard_of_a_power_of_two_of_chunks_is_taken(chunk, shard):
    cut = PyramidPlan(Size(9, 9), 3, "uint8", 3, 255, chunk=chunk, shard=shard)
    assert cut.grid(0) == Size(1, 1)
