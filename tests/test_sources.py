"""Readers: equal to independent ones, and clear about what they cannot read."""

import io
import os
import pickle
import shutil

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

import ngfftile as nt
from conftest import REAL, broken_files, real_slides
from ngfftile.errors import MissingError, NgfftileError, OptionError, SourceError
from ngfftile.sources import fingerprint, openslide_child
from ngfftile.sources.metadata import iso_date
from ngfftile.sources.openslide import open_openslide

SMALL = [p for p in real_slides() if not p.name.startswith(("dicom_ohif", "tiff_gandlf"))]


def level_0(source):
    """(y, x, channel) of the first focal plane and point in time."""
    info = source.info
    out = np.empty((info.size.y, info.size.x, len(info.channels)), info.dtype)
    for group in range(len(info.channels) // info.depth):
        target = out[..., group * info.depth : (group + 1) * info.depth]
        source.read(nt.Region(0, 0, info.size.x, info.size.y), group * info.z, target)
    return out


def by_tifffile(path):
    pixels = tifffile.imread(path, series=0, level=0)
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels if pixels.shape[2] == 3 else np.moveaxis(pixels, 0, 2)


def by_openslide(path):
    slide = openslide.OpenSlide(path)
    return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


@pytest.mark.parametrize("path", SMALL, ids=lambda p: p.name)
def test_level_0_of_real_slides_equals_independent_readers(path):
    source = nt.open_source(path)
    pixels = level_0(source)
    compared = 0
    for reader in (by_tifffile, by_openslide):
        try:
            other = reader(source.info.files[0])
        except (tifffile.TiffFileError, openslide.OpenSlideError):
            continue
        compared += 1
        assert np.array_equal(pixels, other), reader.__name__
    assert compared


@pytest.mark.parametrize("path", real_slides(), ids=lambda p: p.name)
def test_facts_of_real_slides_equal_openslides(path):
    info = nt.open_source(path).info
    try:
        slide = openslide.OpenSlide(info.files[0])
    except openslide.OpenSlideError:
        assert info.reader == "tiff"
        return
    assert (info.size.x, info.size.y) == slide.dimensions
    assert info.vendor == slide.properties["openslide.vendor"]
    assert [(s.x, s.y) for s in info.levels] == list(slide.level_dimensions)
    assert set(info.associated) == set(slide.associated_images) & {"label", "macro", "thumbnail"}
    said = slide.properties.get("openslide.mpp-x")
    if info.mpp is not None:
        assert info.mpp.x == pytest.approx(float(said))
    else:
        assert said is None or not 0.05 <= float(said) <= 25
    for role in info.associated:
        theirs = np.asarray(slide.associated_images[role].convert("RGB"))
        assert np.array_equal(nt.open_source(path).associated(role), theirs), role


@pytest.mark.parametrize(
    ("name", "mpp", "power"),
    [
        ("aperio_CMU-1-Small-Region.svs", (0.499, 0.499), 20),
        ("aperio_TCGA-CR-7395-01A-01-TS1_jp2k.svs", None, None),
        ("dicom_ohif_WE12_7354_7level_noconcat", (0.624999986, 0.887784117), None),
        ("hamamatsu_test3_DAPI.ndpi", (0.2281750559, 0.2281750559), 40),
        ("ometiff_xenium_morphology_focus.ome.tif", (0.2125, 0.2125), None),
        ("perkinelmer_small_vectra.qptiff", (0.49653463, 0.49653463), 10),
        ("tiff_CMU-1-Small-Region.jpeg.tiff", None, None),
        ("tiff_gandlf_labelmap_15360x23552.tiff", (0.4520182615, 0.4520182615), None),
    ],
)
def test_resolution_and_objective_of_real_slides(name, mpp, power):
    path = REAL / name
    if not path.exists():
        pytest.skip("real slides are not at hand: set NGFFTILE_SLIDES")
    info = nt.open_source(path).info
    if mpp is None:
        assert info.mpp is None
    else:
        assert (info.mpp.x, info.mpp.y) == pytest.approx(mpp, rel=1e-6)
    assert info.objective_power == power


def test_a_bogus_resolution_tag_is_reported(tmp_path):
    path = tmp_path / "print.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", resolution=(72, 72), resolutionunit=2)
    info = nt.open_source(path).info
    assert info.mpp is None
    assert "352.8" in info.mpp_source


# Others break on these; here they open, and must then be right.
ODD = {"test-image.tiff", "test_two_ifds.tif", "testfax3_bug_513.tiff", "tiff_with_subifd_chain.tif"}


@pytest.mark.parametrize("path", [p for p in broken_files() if p.name not in ODD], ids=lambda p: p.name)
def test_broken_files_give_one_clear_error_and_leave_nothing(path, tmp_path):
    with pytest.raises(NgfftileError) as caught:
        nt.convert(path, tmp_path / "out.ome.zarr")
    assert path.name in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [p for p in broken_files() if p.name in ODD], ids=lambda p: p.name)
def test_odd_files_are_read_rightly(path):
    found = level_0(nt.open_source(path))
    if path.read_bytes()[:2] in {b"II", b"MM"}:
        expected = tifffile.imread(path, key=0)
        assert np.array_equal(found[..., 0], expected)
    else:
        assert np.array_equal(found, np.asarray(Image.open(path).convert("RGB")))


def write_tiff(path, shape=(300, 500, 3), **options):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, shape, np.uint8)
    tifffile.imwrite(path, pixels, **({"photometric": "rgb", "tile": (64, 64)} | options))
    return pixels


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("this is not a slide\n" * 100),
    "lfs": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "truncated": lambda p: (write_tiff(p), cut(p)),
    "header only": lambda p: p.write_bytes(b"II*\0\x08\0\0\0"),
    "complex numbers": lambda p: tifffile.imwrite(p, np.zeros((64, 64), np.complex64), photometric="minisblack"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gives_one_clear_error_and_leaves_nothing(kind, tmp_path):
    path = tmp_path / "bad.svs"
    BAD[kind](path)
    with pytest.raises(SourceError, match=r"bad\.svs"):
        nt.convert(path, tmp_path / "out.ome.zarr")
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(MissingError, match=r"none\.svs: nothing there"):
        nt.plan(tmp_path / "none.svs")


def test_a_damaged_tile_is_named_and_leaves_nothing(svs, tmp_path):
    path = tmp_path / "damaged.svs"
    shutil.copy(svs, path)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset = page.dataoffsets[7]
        across = -(-page.imagewidth // page.tilewidth)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 64)
    with pytest.raises(SourceError, match=f"row {7 // across}, column {7 % across}"):
        nt.convert(path, tmp_path / "out.ome.zarr")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw", "predictor": True},
        {"compression": "deflate"},
        {"compression": "zstd"},
        {"compression": "webp", "compressionargs": {"lossless": True}},
        {"compression": "jpeg2000", "compressionargs": {"level": 0}},
        {"tile": None, "rowsperstrip": 7},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
    ids=str,
)
def test_generic_tiff_of_many_kinds_comes_back_bit_for_bit(options, tmp_path):
    path = tmp_path / "x.tif"
    pixels = write_tiff(path, **options)
    nt.convert(path, tmp_path / "x.ome.zarr", shard=256)
    assert np.array_equal(nt.open(tmp_path / "x.ome.zarr").image(level=0).to_numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_dtypes_and_channels_come_back(dtype, tmp_path):
    rng = np.random.default_rng(0)
    pixels = (rng.random((4, 300, 333)) * 1000 - (0 if dtype == "uint16" else 500)).astype(dtype)
    path = tmp_path / "x.ome.tif"
    about = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25}
    names = {"Channel": {"Name": ["DAPI", "CD3", "CD8", "panCK"]}}
    tifffile.imwrite(path, pixels, photometric="minisblack", tile=(64, 64), metadata=about | names)
    nt.convert(path, tmp_path / "x.ome.zarr", shard=256)
    slide = nt.open(tmp_path / "x.ome.zarr")
    assert np.array_equal(slide.image(level=0).to_numpy(), pixels)
    assert slide.channels == ("DAPI", "CD3", "CD8", "panCK")
    assert slide.mpp == nt.Mpp(0.5, 0.25)
    assert slide.dtype == dtype


def test_tiles_that_the_file_does_not_store_become_background_and_are_reported(tmp_path):
    path = tmp_path / "sparse.tif"
    pixels = np.full((128, 256, 3), 90, np.uint8)
    blank = (pixels[:64, i : i + 64] if i != 64 else None for i in range(0, 256, 64))
    rest = (pixels[64:, i : i + 64] for i in range(0, 256, 64))
    tiles = [*blank, *rest]
    tifffile.imwrite(path, iter(tiles), shape=pixels.shape, dtype=np.uint8, photometric="rgb", tile=(64, 64))
    info = nt.open_source(path).info
    assert "1 tiles are not stored" in info.notes[0]
    pixels[:64, 64:128] = 255
    assert np.array_equal(level_0(nt.open_source(path)), pixels)


def test_transparent_pixels_become_background_not_black():
    rgba = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [100, 100, 100, 128]]], np.uint8)
    opaque = np.empty((1, 3, 3), np.uint8)
    openslide_child.opaque(rgba, np.full(3, 255, np.uint8), opaque)
    assert opaque[0, 0].tolist() == [10, 20, 30]
    assert opaque[0, 1].tolist() == [255, 255, 255]
    assert opaque[0, 2].tolist() == [177, 177, 177]


def test_the_reader_is_chosen_by_content_not_by_name(svs, tmp_path):
    path = tmp_path / "slide.jpg"
    shutil.copy(svs, path)
    assert nt.open_source(path).info.vendor == "aperio"
    assert nt.open_source(path, reader="openslide").info.reader == "openslide"
    with pytest.raises(OptionError, match="tiff, openslide"):
        nt.open_source(path, reader="bioformats")


def test_both_readers_agree_on_an_aperio_slide(svs):
    assert np.array_equal(level_0(nt.open_source(svs)), level_0(nt.open_source(svs, reader="openslide")))


def test_a_source_travels_to_another_process(svs):
    source = nt.open_source(svs)
    held = pickle.dumps(source)
    again = pickle.loads(held)
    assert pickle.loads(held) is again
    assert again.info.size == source.info.size
    assert np.array_equal(level_0(again), level_0(source))


def test_a_source_that_changed_on_the_way_is_not_read(svs, tmp_path):
    path = tmp_path / "x.svs"
    shutil.copy(svs, path)
    held = pickle.dumps(nt.open_source(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed while it was read"):
        pickle.loads(held)


def test_openslide_reads_a_tiff_of_no_vendor_when_it_is_asked_to(tmp_path):
    pixels = write_tiff(tmp_path / "x.tif", (300, 500, 3), compression="deflate")
    assert np.array_equal(level_0(nt.open_source(tmp_path / "x.tif", reader="openslide")), pixels)


def test_the_fingerprint_follows_content_not_place(svs, tmp_path):
    moved = tmp_path / "renamed.tiff"
    shutil.copy(svs, moved)
    first, second = (fingerprint(nt.open_source(p).info) for p in (svs, moved))
    assert first == second
    with moved.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, io.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert fingerprint(nt.open_source(moved).info) != first


def test_slides_that_differ_in_the_middle_only_are_two(tmp_path):
    prints = []
    for value in (255, 0):
        pixels = np.full((2048, 2048, 3), 255, np.uint8)
        pixels[900:1100, 900:1100] = value
        tifffile.imwrite(tmp_path / f"{value}.tif", pixels, photometric="rgb", tile=(256, 256))
        prints.append(fingerprint(nt.open_source(tmp_path / f"{value}.tif").info))
    assert prints[0] != prints[1]


def test_openslide_names_damaged_tiles_and_reads_the_rest(svs, tmp_path):
    path = tmp_path / "damaged.svs"
    shutil.copy(svs, path)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across, tile = -(-page.imagewidth // page.tilewidth), page.tilewidth
        with path.open("r+b") as file:
            for index in (7, across + 2):
                file.seek(page.dataoffsets[index])
                file.write(b"\0" * page.databytecounts[index])
    source = nt.open_source(path, reader="openslide")
    whole = nt.Region(0, 0, source.info.size.x, source.info.size.y)
    out, found = np.empty((whole.height, whole.width, 3), np.uint8), []
    with pytest.raises(SourceError, match=f"x {7 * tile}, y 0, {tile} x {tile} cannot be read"):
        source.read(whole, 0, out)
    source.read(whole, 0, out, lambda *args: found.append(args[0]))
    assert {(r.x // tile, r.y // tile) for r in found} == {(7, 0), (2, 1)}
    expected = level_0(nt.open_source(svs, reader="openslide"))
    for region in found:
        expected[region.inside(whole)] = 255
    assert np.array_equal(out, expected)


def test_openslide_has_one_scene(svs):
    with pytest.raises(OptionError, match="scene is 1, OpenSlide gives one"):
        open_openslide(svs, scene=1)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2017:02:07 13:06:43", "2017-02-07T13:06:43"),
        ("20210813092818.000000", "2021-08-13T09:28:18"),
        ("20091229095915", "2009-12-29T09:59:15"),
        ("2010-06-29T10:27:25Z", "2010-06-29T10:27:25+00:00"),
        ("20/07/2009 11:50:13", "2009-07-20T11:50:13"),
        ("7/1/2015 3:04:05 PM", "2015-07-01T15:04:05"),
        ("2011/05/23", "2011-05-23"),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_dates_of_vendors_become_iso_8601(said, meant):
    assert iso_date(said) == meant


def test_a_folder_of_two_dicom_series_is_refused(tmp_path):
    if not (REAL / "dicom_CMU-1-Small-Region_napari-wsi").exists():
        pytest.skip("real slides are not at hand: set NGFFTILE_SLIDES")
    for folder in ("dicom_CMU-1-Small-Region_napari-wsi", "dicom_ohif_WE12_7354_7level_noconcat"):
        smallest = sorted((REAL / folder).glob("*.dcm"), key=lambda p: p.stat().st_size)
        for path in smallest[:1] if "ohif" in folder else smallest:
            shutil.copy(path, tmp_path)
    with pytest.raises(SourceError, match="other series"):
        nt.open_source(tmp_path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    with pytest.raises(SourceError, match="not a file"):
        nt.open_source(tmp_path / "pipe.svs")
