"""TIFF of every kind: pixels equal to what was written, whatever the layout; and what is said of the slide."""

import pickle
import struct
from functools import partial
from itertools import product

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from conftest import REAL
from ngfftile.codecs import Jpeg, Jpeg2000
from ngfftile.errors import OptionError, SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.sources import open_source, streams
from ngfftile.sources.orientation import Orientation
from ngfftile.sources.protocol import RefusedError
from ngfftile.sources.tiff import open_any_tiff, open_tiff

RNG = np.random.default_rng(7)


def noise(shape, dtype="uint8"):
    if dtype == "bool":
        return RNG.random(shape) > 0.5
    values = RNG.random(shape) * (200 if np.dtype(dtype).itemsize == 1 else 30_000)
    return (values - (100 if np.dtype(dtype).kind == "i" else 0)).astype(dtype)


def smooth(height, width, samples=3):
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (20 + 3 * s)) * np.cos(y / (15 + s)) for s in range(samples)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def whole(source):
    """(t, c, z, y, x), or (t, z, y, x, 3) of a colour slide."""
    info = source.info
    out = np.empty((info.planes, info.size.y, info.size.x, info.depth), info.dtype)
    for plane in range(info.planes):
        source.read(Region(0, 0, info.size.x, info.size.y), plane, out[plane])
    shape = (info.t, info.planes // info.t // info.z, info.z, info.size.y, info.size.x)
    return out.reshape(info.t, info.z, info.size.y, info.size.x, 3) if info.rgb else out.reshape(shape)


def check_regions(source, pixels, count=12):
    """Random regions of the first plane equal those of ``pixels`` (y, x, depth)."""
    info = source.info
    for _ in range(count):
        x, y = RNG.integers(0, info.size.x), RNG.integers(0, info.size.y)
        width, height = RNG.integers(1, info.size.x - x + 1), RNG.integers(1, info.size.y - y + 1)
        out = np.zeros((height, width, info.depth), info.dtype)
        source.read(Region(int(x), int(y), int(width), int(height)), 0, out)
        assert np.array_equal(out, pixels[y : y + height, x : x + width])


def store_turned(upright, tag):
    """What TIFF 6.0 says of tag 274, word for word: where the 0th row and 0th column are."""
    stored = upright.swapaxes(0, 1) if tag >= 5 else upright
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[tag]
    stored = stored[::-1] if row in {"bottom", "right"} else stored
    return stored[:, ::-1] if column in {"bottom", "right"} else stored


@pytest.mark.parametrize(
    ("tag", "layout"), [*product(range(1, 9), [{"tile": (16, 32)}, {"rowsperstrip": 7}, {"planarconfig": "separate"}])]
)
def test_all_orientations_are_read_upright(tag, layout, tmp_path):
    upright = noise((45, 70, 3))
    stored = store_turned(upright, tag)
    planar = layout.get("planarconfig") == "separate"
    tifffile.imwrite(
        tmp_path / "x.tif",
        np.ascontiguousarray(np.moveaxis(stored, 2, 0) if planar else stored),
        photometric="rgb",
        extratags=[(274, 3, 1, tag, True)],
        resolution=(20_000, 10_000),
        resolutionunit="CENTIMETER",
        **layout,
    )
    source = open_tiff(tmp_path / "x.tif")
    assert source.info.size == Size(70, 45)
    assert source.info.levels == (Size(70, 45),)
    assert source.info.mpp == (Mpp(0.5, 1.0) if tag < 5 else Mpp(1.0, 0.5))
    assert source.info.rgb
    assert any("orientation" in note for note in source.info.notes) == (tag != 1)
    check_regions(source, upright)


@given(st.integers(1, 8), st.data())
def test_regions_map_to_stored_ones_and_back(tag, data):
    size = Size(data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50)))
    x, y = data.draw(st.integers(0, size.x - 1)), data.draw(st.integers(0, size.y - 1))
    region = Region(x, y, data.draw(st.integers(1, size.x - x)), data.draw(st.integers(1, size.y - y)))
    turned = Orientation(tag)
    upright = np.arange(size.x * size.y).reshape(size.y, size.x)
    stored = store_turned(upright, tag)
    where = turned.stored(region, size)
    assert turned.upright(where, size) == region
    assert turned.size(turned.size(size)) == size
    outer = Region(0, 0, *stored.shape[::-1])
    assert np.array_equal(turned.view(upright), stored)
    assert np.array_equal(
        turned.view(upright[region.inside(Region(0, 0, size.x, size.y))]), stored[where.inside(outer)]
    )


CODECS = {
    "none": {},
    "lzw": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "zstd": {"compression": "zstd"},
    "packbits": {"compression": "packbits"},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpeg2000": {"compression": "jpeg2000", "compressionargs": {"level": 0}},
    "jpeg": {"compression": "jpeg"},
    "jpeg rgb": {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
    "lerc": {"compression": "lerc"},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"tile": (32, 48)}, {"rowsperstrip": 32}, {}], ids=str)
def test_every_codec_in_tiles_and_strips(codec, layout, tmp_path):
    path = tmp_path / "x.tif"
    pixels = smooth(150, 203)
    tifffile.imwrite(path, pixels, photometric="rgb", **CODECS[codec], **layout)
    source = open_tiff(path)
    expected = tifffile.imread(path)
    assert "jpeg" in codec or np.array_equal(expected, pixels)
    assert np.array_equal(whole(source)[0, 0], expected)
    check_regions(source, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (33, 5), (64, 64)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool", "float32"])
def test_small_pictures(shape, dtype, tmp_path):
    pixels = noise(shape, dtype)
    for options in ({}, {"tile": (16, 16)}, {"bigtiff": True, "byteorder": ">"}):
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", **options)
        source = open_tiff(tmp_path / "x.tif")
        assert source.info.dtype == dtype
        assert np.array_equal(whole(source)[0, 0, 0], pixels)


@pytest.mark.parametrize(
    "dtype",
    ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64", "bool"],
)
@pytest.mark.parametrize("byteorder", "<>")
def test_every_dtype_comes_back(dtype, byteorder, tmp_path):
    pixels = noise((3, 50, 61), dtype)
    tifffile.imwrite(
        tmp_path / "x.tif", pixels, photometric="minisblack", byteorder=byteorder, metadata={"axes": "CYX"}
    )
    source = open_tiff(tmp_path / "x.tif")
    assert source.info.dtype == dtype
    assert np.array_equal(whole(source)[0, :, 0], pixels)


@pytest.mark.parametrize("dtype", ["complex64", "uint64", "int64"])
def test_dtypes_that_are_not_read_are_said(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((20, 20), dtype), photometric="minisblack")
    with pytest.raises(SourceError, match=f"pixels are {dtype}; bool, integers of up to 32 bits and floats are read"):
        open_tiff(tmp_path / "x.tif")


@pytest.mark.parametrize("axes", ["TCZYX", "TZCYX", "CTZYX", "ZCTYX", "CZTYX", "ZTCYX", "CYX", "ZYX", "TYX", "YX"])
@pytest.mark.parametrize("options", [{}, {"subifds": 2, "tile": (32, 32), "compression": "deflate"}], ids=str)
def test_ome_axes_of_every_order_with_pyramids(axes, options, tmp_path):
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 64, "X": 80}
    pixels = noise([sizes[a] for a in axes], "uint16")
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(pixels, photometric="minisblack", metadata={"axes": axes}, **options)
        for level in range(1, options.get("subifds", 0) + 1):
            writer.write(pixels[..., :: 2**level, :: 2**level], photometric="minisblack", subfiletype=1, tile=(32, 32))
    source = open_tiff(path)
    at = [axes.find(a) for a in "TCZYX"]
    expected = pixels.transpose([i for i in at if i >= 0]).reshape([sizes[a] if a in axes else 1 for a in "TCZYX"])
    assert (source.info.t, len(source.info.channels), source.info.z) == expected.shape[:3]
    assert [level.x for level in source.info.levels] == [80, 40, 20][: 1 + options.get("subifds", 0)]
    assert np.array_equal(whole(source), expected)


def test_rgb_keeps_t_and_z(tmp_path):
    pixels = noise((2, 3, 32, 48, 3))
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, photometric="rgb", metadata={"axes": "TZYXS"})
    source = open_tiff(tmp_path / "x.ome.tif")
    assert source.info.rgb
    assert np.array_equal(whole(source), pixels)


def test_colour_pictures_as_channels_are_six_channels(tmp_path):
    pixels = noise((2, 32, 48, 3))
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, photometric="rgb", metadata={"axes": "CYXS"})
    source = open_tiff(tmp_path / "x.ome.tif")
    assert [c.color for c in source.info.channels] == ["FF0000", "00FF00", "0000FF"] * 2
    assert np.array_equal(whole(source)[0, :, 0], np.moveaxis(pixels, 3, 1).reshape(6, 32, 48))


def test_sixty_channels(tmp_path):
    pixels = noise((60, 40, 50), "uint16")
    names = [f"marker {i}" for i in range(60)]
    tifffile.imwrite(
        tmp_path / "x.ome.tif", pixels, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": names}}
    )
    source = open_tiff(tmp_path / "x.ome.tif")
    assert [c.name for c in source.info.channels] == names
    assert np.array_equal(whole(source)[0, :, 0], pixels)
    tifffile.imwrite(tmp_path / "s.tif", np.moveaxis(pixels, 0, 2), photometric="minisblack", planarconfig="contig")
    assert np.array_equal(whole(open_tiff(tmp_path / "s.tif"))[0, :, 0], pixels)
    tifffile.imwrite(tmp_path / "p.tif", pixels, photometric="minisblack", planarconfig="separate", tile=(16, 16))
    assert np.array_equal(whole(open_tiff(tmp_path / "p.tif"))[0, :, 0], pixels)


FACTS = {
    "axes": "TCZYX",
    "PhysicalSizeX": 500,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 0.25,
    "PhysicalSizeZ": 1500,
    "PhysicalSizeZUnit": "nm",
    "TimeIncrement": 2,
    "TimeIncrementUnit": "min",
    "AcquisitionDate": "2020-01-02T03:04:05",
    "Channel": {
        "Name": ["DAPI", "CD3"],
        "Color": [65535, -16776961],
        "EmissionWavelength": [461, 0.52],
        "EmissionWavelengthUnit": ["nm", "µm"],
        "ExcitationWavelength": [358, 490],
    },
}


def test_ome_facts_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "x.ome.tif", noise((2, 2, 3, 20, 30)), photometric="minisblack", metadata=FACTS)
    source = open_tiff(tmp_path / "x.ome.tif")
    info = source.info
    assert (info.format, info.vendor) == ("OME-TIFF", "ome")
    assert info.mpp == Mpp(0.5, 0.25)
    assert (info.z_step, info.t_step) == (pytest.approx(1.5), 120)
    assert info.acquired == "2020-01-02T03:04:05"
    first, second = info.channels
    assert (first.name, first.color, first.emission, first.excitation) == ("DAPI", "0000FF", 461, 358)
    assert (second.name, second.color, second.emission, second.excitation) == ("CD3", "FF0000", 520, 490)
    assert info.ome_xml.startswith("<?xml")
    assert "DAPI" in info.ome_xml
    assert "tiff.ImageDescription" not in info.properties


def test_ome_images_are_scenes_and_labels_are_associated(tmp_path):
    a, b, label = noise((40, 50), "uint16"), noise((2, 30, 30), "uint16"), smooth(20, 24)
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(a, photometric="minisblack", metadata={"axes": "YX", "Name": "left", "PhysicalSizeX": 0.5})
        writer.write(label, photometric="rgb", metadata={"axes": "YXS", "Name": "label"})
        writer.write(b, photometric="minisblack", metadata={"axes": "CYX", "Name": "right", "PhysicalSizeX": 2.0})
    first, second = open_tiff(path), open_tiff(path, scene=1)
    assert first.info.scenes == second.info.scenes == ("left", "right")
    assert (first.info.scene, second.info.scene) == (0, 1)
    assert (first.info.mpp, second.info.mpp) == (Mpp(0.5, 0.5), Mpp(2.0, 2.0))
    assert np.array_equal(whole(first)[0, 0, 0], a)
    assert np.array_equal(whole(second)[0, :, 0], b)
    assert np.array_equal(second.associated("label"), label)
    again = pickle.loads(pickle.dumps(second))
    assert again.info == second.info
    assert np.array_equal(whole(again), whole(second))
    with pytest.raises(OptionError, match="scene is 2, the file has 2"):
        open_tiff(path, scene=2)
    with pytest.raises(OptionError, match="scene is -1"):
        open_tiff(path, scene=-1)


def ome_over_files(folder, planes, *, beside=".", missing=False):
    """Channels in a file each, the first with the XML of all."""
    (folder / beside).mkdir(exist_ok=True)
    names = ["a.ome.tif", *(f"{beside}/b{i}.ome.tif".removeprefix("./") for i in range(1, len(planes)))]
    parts = "".join(
        f'<TiffData FirstC="{i}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1"><UUID FileName="{n}">urn:uuid:{i}</UUID>'
        "</TiffData>"
        for i, n in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{i}" Name="c{i}" SamplesPerPixel="1"/>' for i in range(len(planes)))
    for i, name in enumerate(names):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{i}"><Image ID="Image:0" Name="all"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            f'Type="uint16" SizeX="{planes.shape[2]}" SizeY="{planes.shape[1]}" SizeZ="1" SizeC="{len(planes)}" '
            f'SizeT="1">{channels}{parts}</Pixels></Image></OME>'
        )
        if not (missing and i == 1):
            tifffile.imwrite(folder / name, planes[i], photometric="minisblack", metadata=None, description=xml)
    return folder / names[0]


def test_ome_over_several_files_of_a_folder(tmp_path):
    planes = noise((3, 40, 50), "uint16")
    path = ome_over_files(tmp_path, planes)
    source = open_tiff(path)
    assert [p.name for p in source.info.files] == ["a.ome.tif", "b1.ome.tif", "b2.ome.tif"]
    assert np.array_equal(whole(source)[0, :, 0], planes)
    assert source.info.encoding is None
    held = pickle.dumps(source)
    assert np.array_equal(whole(pickle.loads(held)), whole(source))
    with (tmp_path / "b2.ome.tif").open("ab") as file:
        file.write(b"\0")
    open_tiff.__globals__["_again"].cache_clear()
    with pytest.raises(SourceError, match="changed while it was read"):
        pickle.loads(held)


def test_missing_planes_become_background_and_are_noted(tmp_path):
    planes = noise((3, 40, 50), "uint16")
    source = open_tiff(ome_over_files(tmp_path, planes, missing=True))
    assert any("1 of 3 planes are not there" in note for note in source.info.notes)
    planes[1] = 0
    assert np.array_equal(whole(source)[0, :, 0], planes)


def test_files_of_other_folders_are_refused(tmp_path):
    (tmp_path / "here").mkdir()
    path = ome_over_files(tmp_path / "here", noise((2, 40, 50), "uint16"), beside="../elsewhere")
    with pytest.raises(SourceError, match="outside its folder"):
        open_tiff(path)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_transparent_pixels_are_laid_over_white(planar, dtype, kind, tmp_path):
    most = np.iinfo(dtype).max
    rgba = RNG.integers(0, most + 1, (50, 60, 4), dtype)
    rgba[:10, :, 3] = most
    if kind == "assocalpha":
        rgba[..., :3] = (rgba[..., :3].astype(float) * (rgba[..., 3:] / most)).astype(dtype)
    stored = rgba if planar == "contig" else np.moveaxis(rgba, 2, 0)
    options = {"photometric": "rgb", "planarconfig": planar, "extrasamples": [kind], "tile": (16, 16)}
    tifffile.imwrite(tmp_path / "x.tif", np.ascontiguousarray(stored), **options)
    source = open_tiff(tmp_path / "x.tif")
    share = rgba[..., 3:] / most
    front = rgba[..., :3] if kind == "assocalpha" else rgba[..., :3] * share
    expected = np.clip(np.floor(front + most * (1 - share) + 0.5 + 1e-9), 0, most)
    assert source.info.rgb
    assert any("transparent" in note for note in source.info.notes)
    found = whole(source)[0, 0]
    assert np.abs(found - expected).max() <= (0 if dtype == "uint8" else 1)
    check_regions(source, found)


def test_extra_samples_of_no_meaning_are_channels(tmp_path):
    pixels = noise((40, 50, 4))
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    source = open_tiff(tmp_path / "x.tif")
    assert not source.info.rgb
    assert [c.name for c in source.info.channels] == ["Red", "Green", "Blue", "extra"]
    assert np.array_equal(whole(source)[0, :, 0], np.moveaxis(pixels, 2, 0))
    grey = noise((40, 50, 2))
    grey[..., 1] = 255
    tifffile.imwrite(
        tmp_path / "g.tif", grey, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    assert np.array_equal(whole(open_tiff(tmp_path / "g.tif"))[0, 0, 0], grey[..., 0])


def test_other_colours(tmp_path):
    cmyk = noise((40, 50, 4))
    tifffile.imwrite(tmp_path / "c.tif", cmyk, photometric="separated")
    source = open_tiff(tmp_path / "c.tif")
    assert [c.name for c in source.info.channels] == ["Cyan", "Magenta", "Yellow", "Black"]
    assert np.array_equal(whole(source)[0, :, 0], np.moveaxis(cmyk, 2, 0))
    tifffile.imwrite(tmp_path / "w.tif", cmyk[..., 0], photometric="miniswhite")
    source = open_tiff(tmp_path / "w.tif")
    assert "WhiteIsZero" in source.info.notes[0]
    assert np.array_equal(whole(source)[0, 0, 0], cmyk[..., 0])


def test_a_palette_is_written_out_as_rgb(tmp_path):
    indices, palette = noise((40, 50)), noise((3, 256), "uint16")
    tifffile.imwrite(tmp_path / "x.tif", indices, photometric="palette", colormap=palette, tile=(16, 16))
    source = open_tiff(tmp_path / "x.tif")
    assert source.info.rgb
    assert source.info.dtype == "uint8"
    assert np.array_equal(whole(source)[0, 0], np.moveaxis(palette[:, indices] >> 8, 0, 2))


def test_ycbcr_without_jpeg_is_converted_where_it_is_simple(tmp_path):
    rgb = smooth(32, 48)
    ycbcr = imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(rgb, level=100, subsampling="444"), outcolorspace="ycbcr")
    tag = [(530, 3, 2, (1, 1), True)]
    options = {"photometric": "rgb", "compression": "deflate", "metadata": None}
    tifffile.imwrite(tmp_path / "x.tif", ycbcr, extratags=tag, **options)
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+") as tiff:
        tiff.pages[0].tags[262].overwrite(6)
    source = open_tiff(tmp_path / "x.tif")
    assert source.info.rgb
    assert np.abs(whole(source)[0, 0].astype(int) - rgb).max() <= 4
    tifffile.imwrite(tmp_path / "y.tif", ycbcr, extratags=[(530, 3, 2, (2, 2), True)], **options)
    with tifffile.TiffFile(tmp_path / "y.tif", mode="r+") as tiff:
        tiff.pages[0].tags[262].overwrite(6)
    with pytest.raises(SourceError, match="YCbCr that is not JPEG"):
        open_tiff(tmp_path / "y.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=str)
def test_imagej_hyperstacks(options, tmp_path):
    pixels = noise((2, 3, 4, 40, 50), "uint16")
    about = {"axes": "TZCYX", "unit": "micron", "spacing": 1.5, "finterval": 2.0}
    tifffile.imwrite(tmp_path / "x.tif", pixels, imagej=True, resolution=(4.0, 2.0), metadata=about, **options)
    source = open_tiff(tmp_path / "x.tif")
    info = source.info
    assert info.format == "ImageJ TIFF"
    assert (info.mpp, info.z_step, info.t_step) == (Mpp(0.25, 0.5), 1.5, 2.0)
    assert np.array_equal(whole(source), pixels.transpose(0, 2, 1, 3, 4))


@pytest.mark.parametrize(
    ("unit", "resolution", "mpp"),
    [("\\u00B5m", 4, 0.25), ("um", 4, 0.25), ("nm", 0.002, 0.5), ("mm", 2000, 0.5), ("pixel", 4, None), ("", 4, None)],
)
def test_imagejs_units(unit, resolution, mpp, tmp_path):
    about = {"axes": "ZYX", "spacing": 1, "unit": unit}
    options = {"imagej": True, "resolution": (resolution, resolution), "metadata": about}
    tifffile.imwrite(tmp_path / "x.tif", noise((3, 20, 20), "uint16"), **options)
    info = open_tiff(tmp_path / "x.tif").info
    assert (info.mpp and info.mpp.x) == (mpp and pytest.approx(mpp))
    assert info.z_step == (mpp and pytest.approx(mpp * resolution))


@pytest.mark.parametrize("mixed", [True, False])
def test_jpeg2000_marked_as_ycbcr_is_read_where_its_streams_mix_their_colours(mixed, tmp_path):
    pixels = smooth(64, 64)
    options = {"compression": "jpeg2000", "compressionargs": {"mct": mixed, "level": 0}, "tile": (64, 64)}
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", **options)
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+") as tiff:
        tiff.pages[0].tags[262].overwrite(6)
    if mixed:
        assert np.array_equal(whole(open_tiff(tmp_path / "x.tif"))[0, 0], pixels)
    else:
        with pytest.raises(SourceError, match="JPEG 2000 in YCbCr"):
            open_tiff(tmp_path / "x.tif")


@pytest.mark.parametrize(
    "kind", [{"imagej": True, "metadata": {"axes": "ZYX"}}, {"metadata": {"axes": "ZYX"}}], ids=str
)
def test_planes_behind_one_directory(kind, tmp_path):
    pixels = noise((5, 40, 50), "uint16")
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", truncate=True, **kind)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert len(tiff.pages) == 1
    source = open_tiff(tmp_path / "x.tif")
    assert source.info.z == 5
    assert np.array_equal(whole(source)[0, 0], pixels)


def test_volumes_of_layers(tmp_path):
    pixels = noise((20, 40, 50))
    for tile in ((1, 16, 16), (16, 16, 32)):
        tifffile.imwrite(
            tmp_path / "x.tif", pixels, photometric="minisblack", tile=tile, volumetric=True, compression="deflate",
            metadata={"axes": "ZYX"},
        )  # fmt: skip
        source = open_tiff(tmp_path / "x.tif")
        assert source.info.z == 20
        assert np.array_equal(whole(source)[0, 0], pixels)


def test_one_large_strip_that_is_not_compressed_is_read_in_parts(tmp_path):
    pixels = noise((1500, 1100), "uint16")
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", rowsperstrip=1500, byteorder=">")
    source = open_tiff(tmp_path / "x.tif")
    assert source.info.tile.y < 500
    assert np.array_equal(whole(source)[0, 0, 0], pixels)
    planar = noise((3, 800, 900))
    tifffile.imwrite(tmp_path / "y.tif", planar, photometric="rgb", planarconfig="separate", rowsperstrip=800)
    assert np.array_equal(whole(open_tiff(tmp_path / "y.tif"))[0, 0], np.moveaxis(planar, 0, 2))


def test_pages_of_unknown_meaning_are_channels_up_to_a_number(tmp_path):
    pixels = noise((5, 20, 30))
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", metadata=None)
    source = open_tiff(tmp_path / "x.tif")
    assert np.array_equal(whole(source)[0, :, 0], pixels)
    assert "pages of unknown meaning" in source.info.notes[0]
    tifffile.imwrite(tmp_path / "y.tif", noise((501, 2, 2)), photometric="minisblack", metadata=None)
    with pytest.raises(SourceError, match="501 pages of unknown meaning"):
        open_tiff(tmp_path / "y.tif")


def test_pages_that_get_smaller_are_levels_and_others_are_scenes(tmp_path):
    pixels, other = smooth(303, 406), smooth(100, 400)
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        for one in (pixels, pixels[::3, ::3], pixels[::20, ::20], other):
            writer.write(one, photometric="rgb", tile=(64, 64), metadata=None, contiguous=False)
    info = open_tiff(path).info
    assert [level.x for level in info.levels] == [406, 136, 21]
    assert len(info.scenes) == 2
    assert any("each a scene" in note for note in info.notes)
    assert np.array_equal(whole(open_tiff(path, scene=1))[0, 0], other)


def test_axes_that_are_no_planes_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", noise((30, 40, 5)), photometric="minisblack", metadata={"axes": "YXC"})
    with pytest.raises(SourceError, match="its axes are YXC"):
        open_tiff(tmp_path / "x.tif")


def test_planes_of_different_compression_are_refused(tmp_path):
    path = tmp_path / "x.ome.tif"
    pixels = noise((2, 64, 64))
    tifffile.imwrite(path, pixels, photometric="minisblack", compression="deflate", metadata={"axes": "CYX"})
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[1].tags[259].overwrite(5)
    with pytest.raises(SourceError, match="different sizes, pixels or compression"):
        open_tiff(path)


def kept(source, row, col, plane=0):
    """A tile as the codec gives it, of the bytes that the source keeps."""
    data = source.raw(plane, row, col)
    assert data is not None
    out = np.empty((len(source.info.channels), source.info.tile.y, source.info.tile.x), np.uint8)
    source.info.encoding.decode(source.info.encoding.seal(data), out)
    return out.transpose(1, 2, 0)


def check_kept(source, rows, cols):
    tile, size = source.info.tile, source.info.size
    for row, col in product(rows, cols):
        place = Region(col * tile.x, row * tile.y, tile.x, tile.y).clip(Region(0, 0, size.x, size.y))
        out = np.empty((place.height, place.width, source.info.depth), np.uint8)
        source.read(place, 0, out)
        assert np.array_equal(kept(source, row, col)[: place.height, : place.width], out)


@pytest.mark.parametrize(
    "name",
    [
        "aperio_CMU-1-Small-Region.svs",
        "tiff_CMU-1-Small-Region.jpeg.tiff",
        "aperio_TCGA-CR-7395-01A-01-TS1_jp2k.svs",
    ],
)
def test_tiles_of_real_slides_can_be_kept(name):
    if not (REAL / name).exists():
        pytest.skip("real slides are not at hand: set NGFFTILE_SLIDES")
    source = open_source(REAL / name)
    assert isinstance(source.info.encoding, Jpeg2000 if "jp2k" in name else Jpeg)
    size, tile = source.info.size, source.info.tile
    check_kept(source, [0, 3, (size.y - 1) // tile.y], [0, 5, (size.x - 1) // tile.x])


@pytest.mark.parametrize(
    ("samples", "options", "space"),
    [
        (3, {"compression": "jpeg"}, "ycbcr"),
        (3, {"compression": "jpeg", "subsampling": (2, 2), "compressionargs": {"level": 70}}, "ycbcr"),
        (3, {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}, "rgb"),
        (1, {"compression": "jpeg"}, "grayscale"),
        (3, {"compression": "jpeg2000"}, None),
        (1, {"compression": "jpeg2000"}, None),
    ],
    ids=str,
)
def test_tiles_of_every_colour_space_can_be_kept(samples, options, space, tmp_path):
    pixels = smooth(130, 150, samples)
    photometric = "rgb" if samples == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "x.tif", pixels.squeeze(), photometric=photometric, tile=(48, 48), **options)
    source = open_tiff(tmp_path / "x.tif")
    assert getattr(source.info.encoding, "space", None) == space
    if "subsampling" in options:
        assert (source.info.encoding.subsampling, source.info.encoding.quality) == ("420", 70)
    check_kept(source, range(3), range(4))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"compression": "lzw", "tile": (64, 64)}, "they are LZW, which Zarr readers do not know"),
        ({"compression": "jpeg", "rowsperstrip": 64}, "they are strips, not tiles"),
        ({"compression": "jpeg", "tile": (64, 128)}, "tiles are 128 x 64, not square"),
        ({"tile": (64, 64)}, "they are not compressed"),
        ({"compression": "jpeg", "tile": (64, 64), "extratags": [(274, 3, 1, 6, True)]}, "turned or mirrored"),
    ],
    ids=str,
)
def test_tiles_that_cannot_be_kept_say_why(options, why, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", smooth(130, 150), photometric="rgb", **options)
    info = open_tiff(tmp_path / "x.tif").info
    assert info.encoding is None
    assert why in info.recompress


def replace_tile(path, index, data):
    """Put other bytes in a tile's place, at the file's end."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offsets, counts = page.tags[324], page.tags[325]
        order, kinds = tiff.byteorder, [{3: "H", 4: "I", 16: "Q"}[int(t.dtype)] for t in (offsets, counts)]
        places = [t.valueoffset + index * struct.calcsize(k) for t, k in zip((offsets, counts), kinds, strict=True)]
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        file.write(data)
        for place, kind, value in zip(places, kinds, (end, len(data)), strict=True):
            file.seek(place)
            file.write(struct.pack(order + kind, value))


LIES = {
    "jpeg": partial(imagecodecs.jpeg8_encode, np.zeros((2048, 2048, 3), np.uint8)),
    "jpeg2000": partial(imagecodecs.jpeg2k_encode, np.zeros((2048, 2048, 3), np.uint8), codecformat="j2k"),
    "webp": partial(imagecodecs.webp_encode, np.zeros((2048, 2048, 3), np.uint8), lossless=True),
}


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"alpha": True}], ids=str)
def test_webp_headers_of_every_kind(options):
    pixels = np.dstack([smooth(40, 64), smooth(40, 64, 1)]) if "alpha" in options else smooth(40, 64)
    found = streams.frame(imagecodecs.webp_encode(pixels, lossless=options.get("lossless", False)), 50001)
    assert (found.width, found.height) == (64, 40)


@pytest.mark.parametrize("codec", LIES)
@pytest.mark.parametrize("tag", [1, 6])
def test_tiles_that_declare_another_size_are_named_and_not_decoded(codec, tag, tmp_path):
    path = tmp_path / "x.tif"
    pixels = smooth(130, 200)
    tifffile.imwrite(
        path, store_turned(pixels, tag), photometric="rgb", tile=(64, 64), extratags=[(274, 3, 1, tag, True)],
        **CODECS[codec],
    )  # fmt: skip
    before = whole(open_tiff(path))[0, 0]
    replace_tile(path, 1, LIES[codec]())
    source = open_tiff(path)
    out = np.zeros((130, 200, 3), np.uint8)
    with pytest.raises(SourceError, match=r"row 0, column 1 .*\(it declares 2048 x 2048 pixels\)"):
        source.read(Region(0, 0, 200, 130), 0, out)
    found = []
    source.read(Region(10, 5, 180, 120), 0, out[5:125, 10:190], lambda region, why: found.append((region, why)))
    (region, why), *more = found
    assert not more
    assert "declares" in why
    expected = before.copy()
    expected[region.inside(Region(0, 0, 200, 130))] = 255
    assert np.array_equal(out[5:125, 10:190], expected[5:125, 10:190])
    assert region == (Region(64, 5, 64, 59) if tag == 1 else Region(136, 64, 54, 61))


def test_a_damaged_tile_is_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "x.tif"
    pixels = noise((130, 200), "uint16")
    tifffile.imwrite(path, pixels, photometric="minisblack", tile=(64, 64), compression="deflate")
    replace_tile(path, 11, b"nothing of the kind")
    found, out = [], np.empty((130, 200, 1), np.uint16)
    open_tiff(path).read(Region(0, 0, 200, 130), 0, out, lambda *args: found.append(args))
    assert [region for region, _ in found] == [Region(192, 128, 8, 2)]
    pixels[128:, 192:] = 0
    assert np.array_equal(out[..., 0], pixels)


def test_directories_inside_each_other_are_refused(tmp_path):
    """Each 256-tag directory starts 64 bytes behind the one before: a thousand would be read from a small file."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8)) + bytes(64 * 1000 + 4096)
    for at in range(8, 64_000, 64):
        data[at : at + 2] = struct.pack("<H", 256)
        data[at + 2 + 256 * 12 : at + 6 + 256 * 12] = struct.pack("<I", at + 64)
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(SourceError, match=r"image directories with \d+ tags, more than it can hold"):
        open_tiff(tmp_path / "x.tif")


def test_vendors_of_others_are_left_to_openslide_and_taken_after_it(tmp_path):
    path = REAL / "hamamatsu_test3_DAPI.ndpi"
    if not path.exists():
        pytest.skip("real slides are not at hand: set NGFFTILE_SLIDES")
    with pytest.raises(RefusedError, match="Hamamatsu NDPI"):
        open_tiff(path)
    source = open_any_tiff(path)
    assert (source.info.reader, source.info.vendor) == ("tifffile", "hamamatsu")
    expected = tifffile.imread(path, series=0, level=0)
    check_regions(source, expected, 4)
    (tmp_path / "x.svs").write_bytes(b"no TIFF at all")
    with pytest.raises(RefusedError, match="not a TIFF"):
        open_any_tiff(tmp_path / "x.svs")


SCN = (
    '<?xml version="1.0" encoding="UTF-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection '
    'name="x" sizeX="200000" sizeY="100000"><image name="macro"><creationDate>2010-06-29T10:27:25.5Z</creationDate>'
    '<pixels sizeX="100" sizeY="50"><dimension sizeX="100" sizeY="50" r="0" c="0" ifd="0"/></pixels>'
    '<view sizeX="200000" sizeY="100000" offsetX="0" offsetY="0"/></image><image name="cells"><pixels sizeX="80" '
    'sizeY="60"><dimension sizeX="80" sizeY="60" r="0" c="0" ifd="1"/><dimension sizeX="80" sizeY="60" r="0" c="1" '
    'ifd="2"/></pixels><view sizeX="40000" sizeY="30000" offsetX="10" offsetY="20"/><scanSettings><objectiveSettings>'
    "<objective>20</objective></objectiveSettings><channelSettings><channel index='0' name='DAPI' rgb='#0000ff'/>"
    "<channel index='1' name='FITC' rgb='#00ff00'/></channelSettings></scanSettings></image></collection></scn>"
)


def test_fluorescence_of_leica_is_read_after_openslide(tmp_path):
    macro, cells = smooth(50, 100), noise((2, 60, 80))
    with tifffile.TiffWriter(tmp_path / "x.scn") as writer:
        writer.write(macro, photometric="rgb", metadata=None, description=SCN, tile=(16, 16))
        for one in cells:
            writer.write(one, photometric="minisblack", metadata=None, tile=(16, 16), contiguous=False)
    source = open_any_tiff(tmp_path / "x.scn")
    info = source.info
    assert (info.format, info.mpp, info.objective_power) == ("Leica SCN", Mpp(0.5, 0.5), 20)
    assert [(c.name, c.color) for c in info.channels] == [("DAPI", "0000FF"), ("FITC", "00FF00")]
    assert np.array_equal(whole(source)[0, :, 0], cells)
    assert np.array_equal(source.associated("macro"), macro)


@pytest.mark.parametrize("said", ['SizeT="1"', 'SizeT="1000000000"'])
def test_planes_by_the_billion_are_refused(said, tmp_path):
    path = ome_over_files(tmp_path, noise((1, 40, 50), "uint16"))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        text = tiff.pages[0].description.replace('SizeT="1"', said)
        if "1000000000" not in said:
            text = text.replace('PlaneCount="1"', 'PlaneCount="1000000000"')
        tiff.pages[0].tags[270].overwrite(text)
    with pytest.raises(SourceError, match="tells of 1000000000 planes"):
        open_tiff(path)
    about = '{"shape": [1000000000, 20, 20]}'
    tifffile.imwrite(tmp_path / "s.tif", noise((20, 20)), photometric="minisblack", description=about, metadata=None)
    with pytest.raises(SourceError, match="1000000000 planes"):
        open_tiff(tmp_path / "s.tif")


def test_a_height_that_the_file_cannot_hold_takes_no_time(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, noise((64, 64)), photometric="minisblack", metadata=None, rowsperstrip=64)
    with tifffile.TiffFile(path) as tiff:
        height, rows = (tiff.pages[0].tags[code].offset for code in (257, 278))
    data = bytearray(path.read_bytes())
    for at in (height, rows):
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 2**31)
    path.write_bytes(data)
    source = open_tiff(path)
    with pytest.raises(SourceError, match="row 0, column 0"):
        source.read(Region(0, 0, 8, 8), 0, np.empty((8, 8, 1), np.uint8))


def test_xml_bombs_are_refused(tmp_path):
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><OME>&b;</OME>'
    tifffile.imwrite(tmp_path / "x.tif", noise((20, 20)), photometric="minisblack", description=bomb, metadata=None)
    with pytest.raises(SourceError, match="its XML description cannot be read"):
        open_tiff(tmp_path / "x.tif")
