"""Tiles and the index: exact fractions, order, tables that anyone can read, pixels."""

import functools
import hashlib
import json
import shutil

import dask.array as da
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import tifffile
import xarray as xr

import ngfftile as nt
from ngfftile import index as tables
from ngfftile.errors import MissingError, OptionError, ResolutionError, StoreError

GRID = nt.TileGrid(extent=200, mpp=0.5)


@pytest.fixture(scope="module")
def kept(store):
    return nt.tile(store, GRID)


def test_fractions_equal_brute_force(slide):
    """Level-0 pixels of each tile, each looked up in the mask: the tissue's share of the tile's whole area."""
    mask = nt.filters.otsu(slide.image(mpp=8.0))
    index = nt.tile(slide, GRID, min_fraction=0.0)
    fine = np.zeros((slide.size.y, slide.size.x), bool)
    big = np.kron(mask.to_numpy(), np.ones((16, 16), bool))
    fine[: big.shape[0], : big.shape[1]] = big[: fine.shape[0], : fine.shape[1]]
    assert len(index) == 13 * 10
    for row in index.tiles.to_pylist():
        x, y = row["tile_x"], row["tile_y"]
        assert row["tissue_fraction"] == pytest.approx(fine[y : y + 200, x : x + 200].sum() / 200**2, abs=1e-9)
    assert 0.2 < np.mean(index.tiles["tissue_fraction"].to_numpy()) < 0.95


def test_kept_are_those_with_enough_tissue(slide, kept):
    every = nt.tile(slide, GRID, min_fraction=0.0).tiles.to_pandas()
    wanted = every[every.tissue_fraction >= 0.5]
    assert 0 < len(kept) == len(wanted) < len(every)
    assert set(zip(kept.tiles["tile_x"].to_pylist(), kept.tiles["tile_y"].to_pylist(), strict=True)) == set(
        zip(wanted.tile_x, wanted.tile_y, strict=True)
    )


def test_overhang_counts_as_no_tissue(slide):
    full = xr.DataArray(np.ones((19, 26), bool), dims=("y", "x"))
    index = nt.tile(slide, nt.TileGrid(extent=1000, level=0), tissue=full, min_fraction=0.0)
    rows = {(r["col"], r["row"]): r for r in index.tiles.to_pylist()}
    assert rows[0, 0]["tissue_fraction"] == 1
    assert rows[2, 1]["tissue_fraction"] == pytest.approx(0.6 * 0.9)
    assert rows[2, 1]["overhang"] == pytest.approx(1 - 0.6 * 0.9)


@pytest.mark.parametrize("edge", ["keep", "drop", "shift"])
@pytest.mark.parametrize("where", [{"level": 0}, {"level": 2}, {"mpp": 1.0}, {"mpp": 1.3}])
def test_read_gives_exactly_the_pixels_of_the_lazy_image(edge, where, slide):
    index = nt.tile(slide, nt.TileGrid(extent=nt.Size(210, 130), stride=190, edge=edge, **where), tissue=None)
    whole = slide.image(**where).to_numpy().transpose(1, 2, 0)
    padded = np.full((whole.shape[0] + 210, whole.shape[1] + 210, 3), 255, np.uint8)
    padded[: whole.shape[0], : whole.shape[1]] = whole
    for i in range(len(index)):
        x, y = (index.tiles[c][i].as_py() for c in ("tile_x", "tile_y"))
        assert np.array_equal(index.read(i), padded[y : y + 130, x : x + 210])


def test_read_takes_only_tiles_that_there_are(kept):
    assert np.array_equal(kept.read(-1), kept.read(len(kept) - 1))
    with pytest.raises(OptionError, match="no tile"):
        kept.read(len(kept))


def test_level_0_coordinates(slide):
    index = nt.tile(slide, nt.TileGrid(extent=100, mpp=1.3), tissue=None)
    tiles = index.tiles.to_pandas()
    assert np.allclose(tiles.x0, tiles.tile_x * 2.6)
    assert index.slides["downsample"][0].as_py() == pytest.approx(2.6)


def test_neighbours_on_disk_are_neighbours_in_the_table(slide):
    tiles = nt.tile(slide, nt.TileGrid(extent=128, level=0), tissue=None).tiles.to_pandas()
    shard = list(zip(tiles.tile_y // 1024, tiles.tile_x // 1024, strict=True))
    assert shard == sorted(shard)
    assert len(set(shard)) == 6


def test_std_keeps_what_a_plain_loop_keeps(slide):
    index = nt.tile(slide, nt.TileGrid(extent=128, level=0), tissue="std")
    whole = np.full((1920, 2688, 3), 255, np.uint8)
    whole[:1900, :2600] = slide.image(level=0).to_numpy().transpose(1, 2, 0)
    wanted = {
        (x, y)
        for y in range(0, 1900, 128)
        for x in range(0, 2600, 128)
        if np.std(whole[y : y + 128, x : x + 128].astype(np.float64)) > 8
    }
    found = set(zip(index.tiles["tile_x"].to_pylist(), index.tiles["tile_y"].to_pylist(), strict=True))
    assert found == wanted
    assert 0 < len(found) < 15 * 21


def test_any_callable_is_a_filter(slide):
    def left_half(image):
        return xr.DataArray(da.ones(image.shape[1:], dtype=bool), dims=("y", "x")) & (image.x < 650)

    index = nt.tile(slide, GRID, tissue=left_half, min_fraction=1.0)
    assert set(index.tiles["col"].to_pylist()) == set(range(6))
    assert "left_half" in index.slides["filter"][0].as_py()

    @nt.filters.per_tile
    def dark(tile):
        return tile.mean() < 200

    picked = nt.tile(slide, GRID, tissue=dark)
    assert all(picked.read(i).mean() < 200 for i in range(len(picked)))
    assert 0 < len(picked) < 130


def test_a_mask_of_any_resolution_covers_the_slide(slide):
    mask = xr.DataArray(np.array([[True, False]]), dims=("y", "x"))
    index = nt.tile(slide, nt.TileGrid(extent=650, level=0), tissue=mask, min_fraction=0.01)
    assert set(index.tiles["col"].to_pylist()) == {0, 1}


def digest(folder):
    return {
        p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))
    }


def test_the_same_input_gives_the_same_bytes_whoever_computes(store, tmp_path):
    for name, options in {
        "a": {"workers": 1},
        "b": {"workers": 3},
        "c": {"scheduler": "processes", "workers": 2},
    }.items():
        nt.tile(store, GRID, tissue="std", **options).to_parquet(tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


def test_the_tables_have_the_documented_columns_and_nothing_of_the_machine(kept, tmp_path, store):
    kept.to_parquet(tmp_path / "t")
    (about,) = (tmp_path / "t" / "slides").iterdir()
    table = pq.read_table(about)
    assert table.column_names == [
        "id",
        "path",
        "source",
        "extent_x",
        "extent_y",
        "tile_extent_x",
        "tile_extent_y",
        "stride_x",
        "stride_y",
        "mpp_x",
        "mpp_y",
        "level",
        "downsample",
        "mpp_requested",
        "edge",
        "filter",
        "min_fraction",
        "n_tiles",
        "n_kept",
        "params_id",
        "status",
        "error",
    ]
    row = table.to_pylist()[0]
    assert row["source"] == "tissue.svs"
    assert row["status"] == "complete"
    assert not row["path"].startswith("/")
    assert (tmp_path / "t" / row["path"]).resolve() == store.resolve()
    (tiles,) = (tmp_path / "t" / "tiles").iterdir()
    assert pq.read_schema(tiles).names == [
        *("slide_id", "tile_x", "tile_y", "x0", "y0", "row", "col", "tissue_fraction", "overhang")
    ]
    note = json.loads(pq.read_schema(tiles).metadata[b"ngfftile"])
    assert note["filter"] == "otsu"
    assert note["schema_version"] == 1


def test_the_tables_open_in_pandas_polars_duckdb_and_pyarrow(kept, tmp_path):
    kept.to_parquet(tmp_path)
    folder = str(tmp_path / "tiles")
    first = kept.tiles["tissue_fraction"].to_pylist()
    assert pd.read_parquet(folder)["tissue_fraction"].tolist() == first
    assert pl.read_parquet(f"{folder}/*.parquet")["tissue_fraction"].to_list() == first
    assert [r[0] for r in duckdb.sql(f"SELECT tissue_fraction FROM '{folder}/*.parquet'").fetchall()] == first
    assert ds.dataset(folder).to_table()["tissue_fraction"].to_pylist() == first


def test_the_index_comes_back_from_parquet_and_reads_the_same_pixels(kept, tmp_path):
    kept.to_parquet(tmp_path)
    again = nt.Index.from_parquet(tmp_path)
    assert again.tiles.equals(kept.tiles)
    assert np.array_equal(again.read(3), kept.read(3))
    assert repr(again) == repr(kept)


def test_many_slides_share_the_tables_and_one_is_replaced_as_a_whole(store, tmp_path):
    other = nt.synthetic.write_svs(tmp_path / "other.svs", 900, 700, mpp=0.5, seed=9)
    nt.convert(other, tmp_path / "other.ome.zarr")
    for place in (store, tmp_path / "other.ome.zarr"):
        nt.tile(place, GRID, tissue=None).to_parquet(tmp_path / "t")
    nt.tile(store, nt.TileGrid(extent=400, mpp=0.5), tissue=None).to_parquet(tmp_path / "t")
    index = nt.Index.from_parquet(tmp_path / "t")
    rows = {r["source"]: r for r in index.slides.to_pylist()}
    assert (rows["tissue.svs"]["n_kept"], rows["other.svs"]["n_kept"]) == (35, 20)
    assert len(index) == 55
    both = nt.Index.concat([nt.tile(store, GRID, tissue=None), nt.tile(tmp_path / "other.ome.zarr", GRID, tissue=None)])
    assert both.read(0).shape == both.read(len(both) - 1).shape == (200, 200, 3)


def test_a_flipped_byte_in_a_table_is_never_read_as_data(kept, tmp_path):
    kept.to_parquet(tmp_path)
    (path,) = (tmp_path / "tiles").iterdir()
    whole = path.read_bytes()
    silent = 0
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        try:
            silent += not nt.Index.from_parquet(tmp_path).tiles.equals(kept.tiles)
        except StoreError:
            continue
    assert silent <= len(whole) / 23 * 0.02  # the footer's statistics and names have no checksum in Parquet


def test_a_moved_or_changed_store_is_said_to_be(kept, store, tmp_path):
    kept.to_parquet(tmp_path / "t")
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "t", moved / "deeper" / "t")
    with pytest.raises(MissingError, match="nothing there"):
        nt.Index.from_parquet(moved / "deeper" / "t").read(0)
    with pytest.raises(MissingError, match="no slides/"):
        nt.Index.from_parquet(tmp_path / "none")


def test_params_id_follows_the_parameters(store):
    ids = [
        nt.tile(store, grid, tissue=None, min_fraction=f).slides["params_id"][0].as_py()
        for grid, f in ((GRID, 0.5), (GRID, 0.5), (GRID, 0.6), (nt.TileGrid(extent=200, mpp=0.5, edge="drop"), 0.5))
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_the_picture_shows_the_slide_and_its_tiles(kept, slide):
    picture = np.asarray(kept.picture(most=650))
    assert picture.shape[1] == 650
    plain = slide.thumbnail(650)
    changed = np.abs(picture[:475].astype(int) - plain).sum(2) > 20
    tile = kept.tiles.to_pylist()[0]
    y, x = int(tile["y0"] / 4) + 25, int(tile["x0"] / 4) + 25
    assert changed[y, x]
    kept_area = len(kept) * 50 * 50
    assert changed.sum() == pytest.approx(kept_area, rel=0.15)


def test_a_slide_without_mpp_is_tiled_at_a_level(tmp_path):
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 1500, 1200, seed=4)
    with tifffile.TiffFile(svs, mode="r+") as tiff:
        page = tiff.pages[0]
        page.tags["ImageDescription"].overwrite(page.description.replace("|MPP = 0.2500", "|XXX = 0.2500"))
    nt.convert(svs, tmp_path / "x.ome.zarr")
    index = nt.tile(tmp_path / "x.ome.zarr", nt.TileGrid(extent=256, level=0), min_fraction=0.0)
    assert len(index) == 30
    assert index.slides["mpp_x"][0].as_py() is None
    with pytest.raises(ResolutionError, match="--mpp-override"):
        nt.tile(tmp_path / "x.ome.zarr", nt.TileGrid(extent=256, mpp=0.5))


def test_a_slide_smaller_than_a_tile(tmp_path):
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 100, 80)
    nt.convert(svs, tmp_path / "x.ome.zarr")
    index = nt.tile(tmp_path / "x.ome.zarr", nt.TileGrid(extent=256, level=0), tissue=None)
    assert index.read(0).shape == (256, 256, 3)
    assert (index.read(0)[80:] == 255).all()
    assert len(nt.tile(tmp_path / "x.ome.zarr", nt.TileGrid(extent=256, level=0, edge="drop"))) == 0


@pytest.mark.parametrize(
    "options",
    [{"min_fraction": 1.5}, {"tissue": "magic"}, {"tissue": "os:nothing"}, {"tissue": 3}, {"workers": 0}],
)
def test_bad_options_are_refused(options, store):
    with pytest.raises(OptionError):
        nt.tile(store, GRID, **options)


def test_an_index_of_nothing():
    index = nt.Index.concat([])
    assert len(index) == 0
    assert index.slides.schema.equals(tables.SLIDES)
    assert isinstance(index.tiles, pa.Table)


def test_a_mask_that_is_not_one_of_the_slide_is_refused(slide):
    mask = nt.filters.otsu(slide.image(mpp=8.0))
    whole = nt.tile(slide, GRID, tissue=mask, min_fraction=0.0).tiles
    assert nt.tile(slide, GRID, tissue=mask.transpose("x", "y"), min_fraction=0.0).tiles.equals(whole)
    for wrong in (mask[::2, ::2], mask[:50], mask.astype(float), mask.expand_dims("c"), mask.rename(x="z")):
        with pytest.raises(OptionError):
            nt.tile(slide, GRID, tissue=wrong)


def test_a_filter_may_return_a_bare_array_of_the_images_shape(slide):
    named = nt.tile(slide, GRID, tissue=nt.filters.otsu, min_fraction=0.0).tiles["tissue_fraction"]
    bare = nt.tile(slide, GRID, tissue=lambda image: nt.filters.otsu(image).to_numpy(), min_fraction=0.0)
    assert bare.tiles["tissue_fraction"].equals(named)
    with pytest.raises(OptionError, match="one bool for each pixel"):
        nt.tile(slide, GRID, tissue=lambda _: np.ones((3, 3), bool))


def test_params_id_tells_what_differs_and_not_how_numbers_are_written(slide):
    def made(grid=GRID, **options):
        return nt.tile(slide, grid, **options).slides["params_id"][0].as_py()

    same = {made(nt.TileGrid(extent=np.int64(200), mpp=m)) for m in (1, 1.0, np.float32(1))}
    assert len(same) == 1
    masks = [nt.filters.otsu(slide.image(mpp=8.0), least_um2=v) for v in (20_000, 1e9)]
    ids = [made(tissue=m) for m in masks]
    ids += [made(tissue=functools.partial(nt.filters.std, below=v)) for v in (5, 9)]
    ids += [
        made(tissue=f)
        for f in (nt.filters.per_tile(lambda t: t.mean() < 9), nt.filters.per_tile(lambda t: t.mean() < 99))
    ]
    assert len(set(ids)) == 6


def test_tiles_of_another_run_than_the_slides_row_are_an_error(kept, slide, tmp_path):
    kept.to_parquet(tmp_path / "a")
    nt.tile(slide, nt.TileGrid(extent=100, mpp=1.0)).to_parquet(tmp_path / "b")
    (tiles,) = (tmp_path / "b" / "tiles").iterdir()
    shutil.copy(tiles, tmp_path / "a" / "tiles")
    with pytest.raises(StoreError, match="two runs"):
        nt.Index.from_parquet(tmp_path / "a")


def test_an_index_of_a_store_that_was_converted_anew_with_another_mpp_is_an_error(tmp_path):
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 1200, 900, mpp=0.5)
    nt.convert(svs, tmp_path / "x.ome.zarr")
    index = nt.tile(tmp_path / "x.ome.zarr", nt.TileGrid(extent=128, mpp=1.0), tissue=None)
    index.to_parquet(tmp_path / "t")
    nt.convert(svs, tmp_path / "x.ome.zarr", mpp=0.25, overwrite=True)
    with pytest.raises(StoreError, match="Index it again"):
        nt.Index.from_parquet(tmp_path / "t").read(0)


def test_one_slide_twice_is_no_index(kept):
    with pytest.raises(OptionError, match="twice"):
        nt.Index.concat([kept, kept])


def test_masks_between_levels_fit_slides_of_any_size(tmp_path):
    # Level 4 of 4,063 pixels has 253, at 4.8 micrometres; 8 micrometres make 151 of them, and 4,063 px hold 152.4.
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 4063, 300, mpp=0.3, seed=4, associated=False)
    nt.convert(svs, tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert slide.view(mpp=8.0).size == nt.Size(151, 10)
    assert len(nt.tile(slide, nt.TileGrid(extent=256, level=0), min_fraction=0.0, label="tissue")) == 16 * 2
