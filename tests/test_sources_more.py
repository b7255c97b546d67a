"""Pictures, DICOM, CZI, bioio, and the choice among all readers: equal to independent ones, clear where they refuse."""

import hashlib
import io
import os
import pickle
import shutil
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

import ngfftile as nt
from conftest import REAL
from ngfftile import sources
from ngfftile.errors import MissingError, OptionError, SourceError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.sources import fingerprint, open_source
from ngfftile.sources.openslide import _files
from ngfftile.sources.protocol import RefusedError

RNG = np.random.default_rng(7)


def smooth(height, width, samples=3, dtype=np.uint8, seed=0):
    """A picture that lossy codecs can hold: waves."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + i + seed)) + np.cos(y / (7 + 2 * i)) for i in range(samples)]
    scaled = (np.stack(waves, axis=2) + 2) / 4 * np.iinfo(dtype).max
    return scaled.astype(dtype)


def read(source, region=None, plane=0, damaged=None):
    info = source.info
    region = region or Region(0, 0, info.size.x, info.size.y)
    out = np.full((region.height, region.width, info.depth), 77, info.dtype)
    source.read(region, plane, out, damaged)
    return out


def check_regions(source, plane=0):
    """Any region, read on its own or by many threads, is that part of the whole; also in another process."""
    whole = read(source, plane=plane)
    size = source.info.size
    regions = [Region(0, 0, 1, 1), Region(size.x // 3, size.y // 2, size.x // 2, size.y // 3 + 1)]
    regions += [Region(size.x - 1, 0, 1, size.y), Region(0, size.y - 1, size.x, 1)] * 2
    with ThreadPoolExecutor(4) as pool:
        for region, part in zip(regions, pool.map(lambda r: read(source, r, plane), regions), strict=True):
            assert np.array_equal(part, whole[region.inside(Region(0, 0, size.x, size.y))])
    held = pickle.dumps(source)
    again = pickle.loads(held)
    assert pickle.loads(held) is again
    assert again.info == source.info
    assert np.array_equal(read(again, plane=plane), whole)


# --- the choice among readers ---


SMALL = {"size": Size(1, 1), "planes": 1}


def reader_of(name, refuses=""):
    def open_it(path, scene=0):
        if refuses:
            raise RefusedError(refuses, str(path), f"mend of {name}")
        return SimpleNamespace(info=SimpleNamespace(files=(path,), scene=scene, **SMALL), name=name)

    return open_it


@pytest.fixture
def only(monkeypatch):
    """The given functions are all readers there are."""

    def use(**functions):
        monkeypatch.setattr(sources, "readers", lambda: {name: f"x:{name}" for name in functions})
        monkeypatch.setattr(sources, "resolve", lambda place, *_: functions[place.partition(":")[2]])

    return use


@pytest.mark.parametrize(
    ("head", "first"),
    [
        (b"II*\0", "tiff"),
        (b"\0" * 128 + b"DICM", "dicom"),
        (b"II*\0" + b"\0" * 124 + b"DICM", "tiff"),
        (b"ZISRAWFILE", "czi"),
        (b"\xff\xd8\xff", "tiff"),
        (b"something else", "tiff"),
    ],
)
def test_the_reader_at_home_in_the_content_is_asked_first(head, first, only, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(head)
    names = ["tiff", "openslide", "picture", "dicom", "czi", "ngff"]
    only(**{name: reader_of(name) for name in names})
    assert open_source(path).name == first


def test_a_failed_open_names_each_reader_and_advises_what_the_one_at_home_says(only, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"ZISRAWFILE")
    only(tiff=reader_of("tiff", "no TIFF"), czi=reader_of("czi", "needs a package"), ngff=reader_of("ngff", "no store"))
    with pytest.raises(SourceError, match=r"czi: needs a package; tiff: no TIFF\). mend of czi$") as caught:
        open_source(path)
    assert "no store" not in str(caught.value)


def test_scenes_reach_the_readers_that_know_them(only, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"x")
    info = SimpleNamespace(files=(path,), **SMALL)
    only(old=lambda _: SimpleNamespace(info=info, name="old"), new=reader_of("new"))
    assert open_source(path).name == "old"
    assert open_source(path, scene=0).name == "old"
    found = open_source(path, scene=3)
    assert (found.name, found.info.scene) == ("new", 3)
    with pytest.raises(SourceError, match="old: it reads the first scene only"):
        open_source(path, "old", scene=1)


@pytest.mark.parametrize("marker", ["zarr.json", ".zattrs", ".zgroup"])
def test_a_store_goes_to_its_reader_only(marker, only, tmp_path):
    (tmp_path / marker).write_text("{}")
    only(tiff=reader_of("tiff"), ngff=reader_of("ngff"))
    assert open_source(tmp_path).name == "ngff"


def test_what_is_no_slide_is_told_apart(tmp_path):
    with pytest.raises(MissingError):
        open_source(tmp_path / "none")
    with pytest.raises(SourceError, match="no OME-Zarr store"):
        open_source(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(SourceError, match="the file is empty"):
        open_source(tmp_path / "empty")
    (tmp_path / "x").write_bytes(b"not a slide at all" * 99)
    with pytest.raises(SourceError, match=r"picture: not PNG.*dicom: not DICOM.*czi: not a Zeiss CZI"):
        open_source(tmp_path / "x")
    with pytest.raises(OptionError, match="picture, dicom, czi"):
        open_source(tmp_path / "x", "bioformats")


def test_a_fingerprint_of_a_folder_is_that_of_its_tables(tmp_path):
    (tmp_path / "zarr.json").write_text("{}")
    prints = {fingerprint(SimpleNamespace(files=(tmp_path,), tables=tables)) for tables in (b"a", b"b")}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("head", "module", "extra"),
    [(b"\0" * 128 + b"DICM", "pydicom", "dicom"), (b"ZISRAWFILE", "pylibCZIrw", "czi")],
)
def test_a_package_that_is_missing_is_named_where_it_would_help(head, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "x.bin"
    path.write_bytes(head + b"\0" * 1000)
    with pytest.raises(SourceError, match=rf"{extra}: needs the package {module}.*pip install 'ngfftile\[{extra}\]'"):
        open_source(path)
    path.write_bytes(b"else" * 100)
    with pytest.raises(SourceError) as caught:
        open_source(path)
    assert "pip install 'ngfftile" not in str(caught.value)


# --- pictures ---


def encode(picture, kind, **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def noise(mode, width=37, height=23):
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, np.uint8), mode)


def over_white(picture):
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    laid = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
    rounded = np.floor(laid + 0.5).astype(np.uint8)
    return rounded if picture.mode not in {"1", "L", "LA"} else rounded[..., :1]


PLAIN, SIXTEEN = noise("RGB"), RNG.integers(0, 65536, (23, 37, 3), np.uint16)
PICTURES = {
    "png": (encode(PLAIN, "PNG"), PLAIN),
    "png, one pixel": (encode(noise("RGB", 1, 1), "PNG"), None),
    "png, grey": (encode(PLAIN.convert("L"), "PNG"), PLAIN.convert("L")),
    "png, 1 bit": (encode(PLAIN.convert("1"), "PNG"), PLAIN.convert("1").convert("L")),
    "png, palette": (encode(PLAIN.quantize(50), "PNG"), PLAIN.quantize(50).convert("RGB")),
    "png, 16 bits": (imagecodecs.png_encode(SIXTEEN), SIXTEEN),
    "png, 16 bits grey": (imagecodecs.png_encode(SIXTEEN[..., 0].copy()), SIXTEEN[..., 0]),
    "jpeg": (encode(PLAIN, "JPEG", quality=80), imagecodecs.jpeg8_decode(encode(PLAIN, "JPEG", quality=80))),
    "jpeg, grey": (encode(PLAIN.convert("L"), "JPEG"), None),
    "jpeg, progressive": (encode(PLAIN, "JPEG", progressive=True, restart_marker_rows=1), None),
    "jpeg, with a tail": (encode(PLAIN, "JPEG") + b"tail", None),
    "webp": (encode(PLAIN, "WEBP", lossless=True), PLAIN),
    "bmp": (encode(PLAIN, "BMP"), PLAIN),
    "bmp, palette": (encode(PLAIN.quantize(20), "BMP"), PLAIN.quantize(20).convert("RGB")),
    "bmp, grey": (encode(PLAIN.convert("L"), "BMP"), PLAIN.convert("L")),
    "gif": (encode(PLAIN.quantize(20), "GIF"), PLAIN.quantize(20).convert("RGB")),
    "jp2": (encode(PLAIN, "JPEG2000"), PLAIN),
    "j2k, 16 bits": (imagecodecs.jpeg2k_encode(SIXTEEN, level=0, codecformat="j2k"), SIXTEEN),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_come_back_as_they_are(kind, tmp_path):
    data, expected = PICTURES[kind]
    path = tmp_path / "picture.tif"  # the name does not matter
    path.write_bytes(data)
    expected = np.asarray(Image.open(path)) if expected is None else np.asarray(expected)
    source = open_source(path)
    info = source.info
    assert np.array_equal(read(source), expected.reshape(*expected.shape[:2], -1))
    assert (info.reader, info.rgb, info.dtype) == ("picture", expected.ndim == 3, expected.dtype.name)
    assert info.tile == info.size == Size(*expected.shape[1::-1])
    assert info.held == expected.nbytes
    assert (info.mpp, info.notes) == (None, ())
    if min(expected.shape[:2]) > 1:
        check_regions(source)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGB", "PNG", {"transparency": (1, 2, 3)}),
        ("L", "PNG", {"transparency": 7}),
        ("P", "PNG", {"transparency": 3}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("RGBA", "JPEG2000", {}),
        ("LA", "JPEG2000", {}),
        ("P", "GIF", {"transparency": 3}),
    ],
)
def test_transparent_pixels_are_laid_over_white_and_said(mode, kind, options, tmp_path):
    path = tmp_path / "x"
    picture = noise("L").quantize(9) if mode == "P" else noise(mode)
    path.write_bytes(encode(picture, kind, **options))
    source = open_source(path)
    assert np.array_equal(read(source), over_white(Image.open(path)))
    assert source.info.notes == ("transparent pixels are laid over white",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_tag_says(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[274], exif[306], exif[271] = orientation, "2021:03:04 05:06:07", "Maker"
    path = tmp_path / "x"
    path.write_bytes(encode(PLAIN, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    source = open_source(path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(read(source), expected)
    assert source.info.size == Size(*expected.shape[1::-1])
    assert source.info.acquired == "2021-03-04T05:06:07"
    assert source.info.properties["exif.Make"] == "Maker"


def test_headers_of_pictures_tell_resolution_profile_and_texts(tmp_path):
    path = tmp_path / "x.png"
    profile = imagecodecs.cms_profile("srgb")
    texts = PngInfo()
    texts.add_text("Stain", "HE")
    path.write_bytes(encode(PLAIN, "PNG", dpi=(50_800, 25_400), icc_profile=profile, pnginfo=texts))
    info = open_source(path).info
    assert (info.mpp.x, info.mpp.y) == pytest.approx((0.5, 1), rel=1e-4)
    assert info.icc == profile
    assert info.properties["png.Stain"] == "HE"
    path.write_bytes(encode(PLAIN, "PNG", dpi=(72, 72)))
    info = open_source(path).info
    assert info.mpp is None
    assert "µm per pixel, which no slide scanner has" in info.mpp_source


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG 2000", "WEBP", "BMP", "GIF", "progressive"])
@pytest.mark.parametrize("left", [0.5, 0.98])
def test_truncated_pictures_are_errors_not_grey(kind, left, tmp_path):
    options = {"progressive": {"progressive": True}}.get(kind, {})
    data = encode(noise("RGB", 300, 200), {"progressive": "JPEG", "JPEG 2000": "JPEG2000"}.get(kind, kind), **options)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(SourceError, match=r"cut: .*(truncated|damaged)"):
        read(open_source(path, "picture"))


def test_a_damaged_picture_can_become_background(tmp_path):
    data = encode(noise("RGB", 300, 200), "JPEG")
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    told = []
    pixels = read(open_source(path), damaged=lambda region, why: told.append((region, why)))
    assert (pixels == 255).all()
    assert told == [(Region(0, 0, 300, 200), told[0][1])]
    assert "truncated" in told[0][1]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_pictures_that_cannot_be_are_refused_by_their_headers(tmp_path):
    path = tmp_path / "x"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(SourceError, match=r"60000 x 60000 pixels decode to 10.1 GiB"):
        open_source(path)
    bomb = bytearray(imagecodecs.jpeg2k_encode(smooth(64, 64), level=0, codecformat="j2k"))
    bomb[8:16] = struct.pack(">II", 16_000, 16_000)
    path.write_bytes(bomb)
    with pytest.raises(SourceError, match=r"16000 x 16000 pixels in \d+ bytes cannot be"):
        open_source(path)
    path.write_bytes(encode(noise("CMYK"), "JPEG"))
    with pytest.raises(SourceError, match="colours are CMYK"):
        open_source(path)
    path.write_bytes(encode(PLAIN, "PNG")[:20])
    with pytest.raises(SourceError, match="PNG header cannot be read"):
        open_source(path)
    path.write_bytes(encode(PLAIN, "PNG"))
    with pytest.raises(OptionError, match="scene is 1"):
        open_source(path, scene=1)
    with pytest.raises(OptionError, match="no label image"):
        open_source(path).associated("label")


def test_the_overview_of_a_slide_is_not_taken_for_the_slide(tmp_path):
    path = tmp_path / "x.mrxs"
    path.write_bytes(encode(PLAIN, "JPEG"))
    with pytest.raises(SourceError, match=r"an MRXS slide without its data.* Put its folder x beside it"):
        open_source(path)


def test_a_picture_that_changed_is_not_read_elsewhere(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(encode(PLAIN, "PNG"))
    held = pickle.dumps(open_source(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed while it was read"):
        pickle.loads(held)


# --- DICOM ---

SYNTAX = {
    "raw": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg, rgb": "1.2.840.10008.1.2.4.50",
    "lossless jpeg": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg 2000": "1.2.840.10008.1.2.4.90",
    "ht jpeg 2000": "1.2.840.10008.1.2.4.201",
}
LOSSLESS = [kind for kind in SYNTAX if kind not in {"jpeg", "jpeg, rgb"}]


def rle(tile):
    """One segment of literal runs for each byte of a sample, the highest first: PS3.5, annex G."""
    big = tile.astype(tile.dtype.newbyteorder(">")).reshape(*tile.shape[:2], -1, 1).view(np.uint8)
    segments = []
    for sample in np.moveaxis(big.reshape(*tile.shape[:2], -1), 2, 0):
        raw = sample.tobytes()
        runs = b"".join(bytes([len(raw[i : i + 128]) - 1]) + raw[i : i + 128] for i in range(0, len(raw), 128))
        segments.append(runs + b"\0" * (len(runs) % 2))
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    header = np.zeros(16, "<u4")
    header[0], header[1 : 1 + len(starts)] = len(starts), starts
    return header.tobytes() + b"".join(segments)


ENCODERS = {
    "raw": np.ndarray.tobytes,
    "implicit": np.ndarray.tobytes,
    "rle": lambda tile: rle(np.atleast_3d(tile)),
    "jpeg": lambda tile: imagecodecs.jpeg8_encode(tile, level=92, subsampling="422" if tile.ndim == 3 else None),
    "jpeg, rgb": lambda tile: imagecodecs.jpeg8_encode(tile, level=92, colorspace="RGB", outcolorspace="RGB"),
    "lossless jpeg": lambda tile: imagecodecs.jpeg8_encode(tile, lossless=True, bitspersample=8 * tile.itemsize),
    "jpeg-ls": imagecodecs.jpegls_encode,
    "jpeg 2000": lambda tile: imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", mct=tile.ndim == 3),
    "ht jpeg 2000": imagecodecs.htj2k_encode,
}


def encode_tile(kind, tile):
    return ENCODERS[kind](np.ascontiguousarray(tile[..., 0] if tile.shape[2] == 1 else tile))


COLOURS = {"jpeg": "YBR_FULL_422", "jpeg 2000": "YBR_RCT", "ht jpeg 2000": "YBR_RCT"}
TILE = 64


def items(**values):
    """A dataset of one item each where a value is a dictionary."""
    from pydicom import Dataset

    made = Dataset()
    for name, value in values.items():
        setattr(made, name, [items(**value)] if isinstance(value, dict) else value)
    return made


def header(series, pixels, kind, image_type="VOLUME"):
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import generate_uid

    height, width, samples = pixels.shape
    bits = 8 * pixels.itemsize
    made = items(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6",
        SOPInstanceUID=generate_uid(),
        SeriesInstanceUID=series,
        StudyInstanceUID=generate_uid(),
        FrameOfReferenceUID=generate_uid(),
        InstanceNumber=1,
        Modality="SM",
        PatientName="Doe^Jane",
        Manufacturer="Acme",
        ManufacturerModelName="One",
        DeviceSerialNumber="7",
        AcquisitionDateTime="20240131101112.5+0200",
        ImageType=["ORIGINAL", "PRIMARY", image_type, "NONE"],
        SamplesPerPixel=samples,
        PhotometricInterpretation=COLOURS.get(kind, "RGB") if samples == 3 else "MONOCHROME2",
        Rows=TILE,
        Columns=TILE,
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=0,
        TotalPixelMatrixColumns=width,
        TotalPixelMatrixRows=height,
        ImagedVolumeWidth=width * 0.00025,
        ImagedVolumeHeight=height * 0.0005,
        ImagedVolumeDepth=0.001,
        ImageOrientationSlide=[0, -1, 0, -1, 0, 0],
        TotalPixelMatrixOriginSequence={"XOffsetInSlideCoordinateSystem": 0, "YOffsetInSlideCoordinateSystem": 0},
        SharedFunctionalGroupsSequence={
            "PixelMeasuresSequence": {
                "PixelSpacing": [0.0005, 0.00025],
                "SpacingBetweenSlices": 0.002,
                "SliceThickness": 0.001,
            }
        },
    )
    if samples == 3:
        made.PlanarConfiguration = 0
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = SYNTAX[kind]
    return made


def tiles(pixels):
    """Row, column and pixels of every tile, padded to its size."""
    padded = np.pad(pixels, [(0, -pixels.shape[0] % TILE), (0, -pixels.shape[1] % TILE), (0, 0)])
    for y in range(0, padded.shape[0], TILE):
        for x in range(0, padded.shape[1], TILE):
            yield y, x, padded[y : y + TILE, x : x + TILE]


def save(path, made, frames, kind, tables="basic"):
    from pydicom.encaps import encapsulate, encapsulate_extended

    made.NumberOfFrames = len(frames)
    if kind in {"raw", "implicit"}:
        made.PixelData = b"".join(frames)
    elif tables == "extended":
        made.PixelData, made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        pieces = 3 if tables == "fragments" else 1
        made.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot=tables != "none")
    made["PixelData"].VR = "OW" if kind == "implicit" or made.BitsAllocated > 8 else "OB"
    made["PixelData"].is_undefined_length = kind not in {"raw", "implicit"}
    made.save_as(path, enforce_file_format=True)


def write_dicom(folder, planes, kind="raw", parts=1, sparse=None, tables="basic", series=None, change=None):
    """A slide of ``planes``, pixels by optical path and depth; ``sparse`` says which tiles are stored."""
    from pydicom.uid import generate_uid

    folder.mkdir(exist_ok=True)
    paths = list(dict.fromkeys(path for path, _ in planes))
    first = next(iter(planes.values()))
    series, whole = series or generate_uid(), generate_uid()
    found = [(path, z, y, x, tile) for (path, z), pixels in planes.items() for y, x, tile in tiles(pixels)]
    found = [one for one in found if sparse is None or sparse(*one[:4])]
    each = -(-len(found) // parts)
    for part in range(parts):
        some = found[part * each : (part + 1) * each]
        made = header(series, first, kind)
        made.OpticalPathSequence = [items(OpticalPathIdentifier=path, ObjectiveLensPower=40) for path in paths]
        made.NumberOfOpticalPaths = len(paths)
        if sparse is None:
            made.DimensionOrganizationType = "TILED_FULL"
            made.TotalPixelMatrixFocalPlanes = len(planes) // len(paths)
        else:
            made.DimensionOrganizationType = "TILED_SPARSE"
            made.PerFrameFunctionalGroupsSequence = [
                items(
                    OpticalPathIdentificationSequence={"OpticalPathIdentifier": path},
                    PlanePositionSlideSequence={
                        "ColumnPositionInTotalImagePixelMatrix": x + 1,
                        "RowPositionInTotalImagePixelMatrix": y + 1,
                        "XOffsetInSlideCoordinateSystem": 0,
                        "YOffsetInSlideCoordinateSystem": 0,
                        "ZOffsetInSlideCoordinateSystem": z,
                    },
                )
                for path, z, y, x, _ in some
            ]
        if parts > 1:
            made.ConcatenationUID, made.SOPInstanceUIDOfConcatenationSource = whole, whole
            made.ConcatenationFrameOffsetNumber = part * each
            made.InConcatenationNumber, made.InConcatenationTotalNumber = part + 1, parts
        if change:
            change(made)
        save(folder / f"part {part}", made, [encode_tile(kind, tile) for *_, tile in some], kind, tables)
    return folder


@pytest.fixture(autouse=True)
def _dicom(request):
    if "dicom" in request.node.name and "package" not in request.node.name:
        pytest.importorskip("pydicom")
    if "czi" in request.node.name and "package" not in request.node.name:
        pytest.importorskip("pylibCZIrw")


@pytest.mark.parametrize(
    ("kind", "samples"), [(kind, 3) for kind in SYNTAX] + [(kind, 1) for kind in SYNTAX if kind != "jpeg, rgb"]
)
def test_dicom_frames_of_every_syntax(kind, samples, tmp_path):
    pixels = smooth(150, 200, samples)
    source = open_source(write_dicom(tmp_path / "slide", {("0", 0): pixels}, kind))
    assert source.info.reader == "dicom"
    if kind in LOSSLESS:
        assert np.array_equal(read(source), pixels)
    else:
        for y, x, tile in tiles(pixels):
            expected = imagecodecs.jpeg8_decode(
                encode_tile(kind, tile), colorspace="RGB" if "rgb" in kind else None
            ).reshape(tile.shape)
            part = Region(x, y, min(TILE, 200 - x), min(TILE, 150 - y))
            assert np.array_equal(read(source, part), expected[: part.height, : part.width])
    assert np.abs(read(source).astype(int) - pixels).max() < 60
    check_regions(source)


@pytest.mark.parametrize("kind", ["raw", "jpeg", "jpeg, rgb", "jpeg 2000"])
def test_dicom_that_openslide_reads_too_is_the_same(kind, tmp_path):
    pixels = smooth(150, 200)
    source = open_source(write_dicom(tmp_path / "slide", {("0", 0): pixels}, kind))
    with openslide.OpenSlide(tmp_path / "slide" / "part 0") as slide:
        assert np.array_equal(read(source), np.asarray(slide.read_region((0, 0), 0, (200, 150)).convert("RGB")))
        theirs = {k: v for k, v in slide.properties.items() if k.startswith("dicom.")}
    ours = source.info.properties
    assert set(theirs) <= set(ours)
    assert all(ours[k] == v or float(ours[k]) == float(v) for k, v in theirs.items())
    assert ours["dicom.PatientName"] == "Doe^Jane"


def test_dicom_facts(tmp_path):
    def change(made):
        made.OpticalPathSequence[0].ICCProfile = b"a profile!"

    folder = write_dicom(tmp_path / "slide", {("0", 0): smooth(150, 200)}, change=change)
    series = open_source(folder).info.properties["dicom.SeriesInstanceUID"]
    small = header(series, smooth(75, 100), "raw")
    small.ImageType[3] = "RESAMPLED"
    save(folder / "small", small, [tile.tobytes() for *_, tile in tiles(smooth(75, 100))], "raw")
    label = header(series, smooth(TILE, TILE, seed=3), "raw", "LABEL")
    save(folder / "label", label, [smooth(TILE, TILE, seed=3).tobytes()], "raw")
    source = open_source(folder)
    info = source.info
    assert info.mpp == Mpp(0.25, 0.5)  # PixelSpacing has rows first
    assert (info.objective_power, info.acquired) == (40, "2024-01-31T10:11:12.500000+02:00")
    assert (info.format, info.vendor, info.icc) == ("DICOM WSI", "dicom", b"a profile!")
    assert info.levels == (Size(200, 150), Size(100, 75))
    assert (info.size, info.tile) == (Size(200, 150), Size(TILE, TILE))
    assert {p.name for p in info.files} == {"part 0", "small", "label"}
    assert info.properties["dicom.Manufacturer"] == "Acme"
    assert dict(info.associated) == {"label": Size(TILE, TILE)}
    assert np.array_equal(source.associated("label"), smooth(TILE, TILE, seed=3))
    assert (info.z, info.t, info.scenes, info.notes) == (1, 1, (), ())
    with pytest.raises(OptionError, match="scene is 2"):
        open_source(folder, scene=2)
    write_dicom(folder / "..", {("0", 0): smooth(70, 70)})
    shutil.copy(folder / ".." / "part 0", folder / "other")
    with pytest.raises(SourceError, match="1 DICOM files of other series"):
        open_source(folder)
    assert open_source(folder / "label").info.size == Size(200, 150)


@pytest.mark.parametrize("sparse", [None, lambda *_: True], ids=["full", "sparse"])
@pytest.mark.parametrize("parts", [1, 3])
def test_dicom_optical_paths_and_focal_planes(sparse, parts, tmp_path):
    planes = {
        (path, z): smooth(150, 200, 1, np.uint16, seed=10 * i + j)
        for i, path in enumerate(["a", "b"])
        for j, z in enumerate([0.0, 2.0, 4.0])
    }

    def change(made):
        about = made.OpticalPathSequence[1]
        about.OpticalPathDescription, about.IlluminationWaveLength = "DAPI", 405
        about.PaletteColorLookupTableSequence = [
            items(
                RedPaletteColorLookupTableData=b"\0\0\1\x10",
                GreenPaletteColorLookupTableData=b"\0\0\1\x20",
                BluePaletteColorLookupTableData=b"\0\0\1\xff",
            )
        ]

    folder = write_dicom(tmp_path / "slide", planes, "rle", parts=parts, sparse=sparse, change=change)
    source = open_source(folder)
    info = source.info
    assert (info.z, info.z_step, info.planes, info.dtype, info.rgb) == (3, 2.0, 6, "uint16", False)
    assert [c.name for c in info.channels] == ["a", "DAPI"]
    assert (info.channels[1].color, info.channels[1].excitation) == ("1020FF", 405)
    assert info.notes == ()
    for plane, pixels in enumerate(planes.values()):
        assert np.array_equal(read(source, plane=plane), pixels)
    check_regions(source, plane=4)
    if parts > 1:
        (folder / "part 1").unlink()
        with pytest.raises(SourceError, match=r"2 of the 3 parts of level 0.*into one folder"):
            open_source(folder)


def test_dicom_channels_in_files_of_their_own(tmp_path):
    from pydicom.uid import generate_uid

    series, planes = generate_uid(), [smooth(100, 90, 1, np.uint16, seed=i) for i in range(2)]
    for name, pixels in zip("ab", planes, strict=True):
        write_dicom(tmp_path / name, {(name, 0): pixels}, series=series)
        shutil.copy(tmp_path / name / "part 0", tmp_path / f"channel {name}")
        shutil.rmtree(tmp_path / name)
    source = open_source(tmp_path)
    assert [c.name for c in source.info.channels] == ["a", "b"]
    assert all(np.array_equal(read(source, plane=i), pixels) for i, pixels in enumerate(planes))


def test_dicom_of_two_optical_paths_in_colour_keeps_both(tmp_path):
    planes = {("bright", 0): smooth(100, 90), ("polarised", 0): smooth(100, 90, seed=5)}
    source = open_source(write_dicom(tmp_path / "slide", planes))
    assert source.info.planes == 2
    assert source.info.channels[3].name == "polarised Red"
    assert all(np.array_equal(read(source, plane=i), pixels) for i, pixels in enumerate(planes.values()))


@pytest.mark.parametrize("samples", [3, 1])
def test_dicom_tiles_that_are_not_stored_become_background(samples, tmp_path):
    pixels = smooth(150, 200, samples)
    missing = {(64, 128), (0, 0)}
    source = open_source(
        write_dicom(tmp_path / "slide", {("0", 0): pixels}, "jpeg-ls", sparse=lambda *place: place[2:] not in missing)
    )
    for y, x in missing:
        pixels[y : y + TILE, x : x + TILE] = 255 if samples == 3 else 0
    assert np.array_equal(read(source), pixels)
    assert source.info.notes == ("2 tiles are not stored in the file; they become background",)
    assert source.raw(0, 0, 0) is None


def test_dicom_frames_off_the_grid_and_at_any_depth_are_one_plane(tmp_path):
    pixels = smooth(150, 200)

    def change(made):
        for i, item in enumerate(made.PerFrameFunctionalGroupsSequence):
            place = item.PlanePositionSlideSequence[0]
            place.ZOffsetInSlideCoordinateSystem = i / 10  # the focus follows the tissue
            place.ColumnPositionInTotalImagePixelMatrix += 5

    source = open_source(write_dicom(tmp_path / "slide", {("0", 0): pixels}, sparse=lambda *_: True, change=change))
    assert source.info.z == 1
    expected = np.full_like(pixels, 255)
    expected[:, 5:] = pixels[:, :195]
    assert np.array_equal(read(source), expected)
    assert source.info.encoding is None


@pytest.mark.parametrize("tables", ["basic", "none", "extended", "fragments"])
def test_dicom_frames_are_found_by_every_kind_of_table(tables, tmp_path):
    pixels = smooth(150, 200)
    source = open_source(write_dicom(tmp_path / "slide", {("0", 0): pixels}, "jpeg 2000", tables=tables))
    assert np.array_equal(read(source), pixels)


def test_dicom_runs_whose_places_are_wrong_are_damage(tmp_path):
    folder = write_dicom(tmp_path / "slide", {("0", 0): smooth(TILE, TILE)}, "rle")
    data = bytearray((folder / "part 0").read_bytes())
    at = data.find(struct.pack("<II", 3, 64))  # segments, and the place of the first
    data[at + 4 : at + 8] = struct.pack("<I", 2**31)
    (folder / "part 0").write_bytes(data)
    with pytest.raises(SourceError, match="a segment of it ends early"):
        read(open_source(folder))


@pytest.mark.parametrize("kind", ["raw", "rle", "jpeg-ls"])
def test_dicom_luma_and_chroma_become_rgb(kind, tmp_path):
    pixels = smooth(100, 90)
    luma = Image.fromarray(pixels).convert("YCbCr")
    stored, expected = np.asarray(luma), np.asarray(luma.convert("RGB"))
    source = open_source(
        write_dicom(
            tmp_path / "slide",
            {("0", 0): stored},
            kind,
            change=lambda made: setattr(made, "PhotometricInterpretation", "YBR_FULL"),
        )
    )
    assert np.abs(read(source).astype(int) - expected).max() <= 1


def test_dicom_planes_of_colour_are_put_together(tmp_path):
    pixels = smooth(TILE, TILE)
    folder = write_dicom(tmp_path / "slide", {("0", 0): pixels})
    from pydicom import dcmread

    made = dcmread(folder / "part 0")
    made.PlanarConfiguration, made.PixelData = 1, np.moveaxis(pixels, 2, 0).tobytes()
    made.save_as(folder / "part 0")
    assert np.array_equal(read(open_source(folder)), pixels)


@pytest.mark.parametrize(("kind", "space"), [("jpeg", "ycbcr"), ("jpeg, rgb", "rgb"), ("jpeg 2000", None)])
def test_dicom_tiles_can_be_kept_as_they_are(kind, space, tmp_path):
    pixels = smooth(130, 200)
    source = open_source(write_dicom(tmp_path / "slide", {("0", 0): pixels}, kind))
    codec = source.info.encoding
    assert getattr(codec, "space", None) == space
    out = np.empty((3, TILE, TILE), np.uint8)
    codec.decode(codec.seal(source.raw(0, 1, 2)), out)
    assert np.array_equal(out.transpose(1, 2, 0), read(source, Region(128, 64, TILE, TILE)))


def first_frame(path):
    return path.read_bytes().find(b"\xff\xd8\xff", 500)


def test_dicom_frames_that_are_damaged_are_named(tmp_path):
    folder = write_dicom(tmp_path / "slide", {("0", 0): smooth(130, 200)}, "jpeg")
    path = folder / "part 0"
    data = bytearray(path.read_bytes())
    at = first_frame(path)
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    source = open_source(folder)
    with pytest.raises(SourceError, match=r"frame 1 of part 0 \(x 0, y 0\) does not decode"):
        read(source)
    told = []
    pixels = read(source, damaged=lambda region, _: told.append(region))
    assert told == [Region(0, 0, TILE, TILE)]
    assert (pixels[:TILE, :TILE] == 255).all()
    assert pixels[:TILE, TILE:].min() < 255


def test_dicom_frames_of_another_size_are_not_decoded(tmp_path):
    large = imagecodecs.jpeg2k_encode(smooth(300, 300), level=0, codecformat="j2k")
    made = header("1.2.3", smooth(TILE, TILE), "jpeg 2000")
    save(tmp_path / "x", made, [large], "jpeg 2000")
    with pytest.raises(SourceError, match=r"width=300, height=300.* where a tile has 64 x 64"):
        read(open_source(tmp_path / "x"))


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_dicom_that_is_truncated_is_refused_at_once(kind, tmp_path):
    folder = write_dicom(tmp_path / "slide", {("0", 0): smooth(130, 200)}, kind, tables="extended")
    data = (folder / "part 0").read_bytes()
    (folder / "part 0").write_bytes(data[:-3000])
    with pytest.raises(SourceError, match=r"truncated"):
        open_source(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NumberOfFrames": 2**31 - 1}, "truncated"),
        ({"NumberOfFrames": 5}, "5 frames where 200 x 130"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colours are PALETTE COLOR"),
        ({"SamplesPerPixel": 2}, "2 samples per pixel"),
        ({"BitsAllocated": 1}, "1 bits are allocated"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}, "no image of the whole slide"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "no whole-slide image"),
        ({"Rows": 0}, "headers cannot be read"),
    ],
)
def test_dicom_that_would_come_out_wrong_is_refused(change, message, tmp_path):
    from pydicom import dcmread

    folder = write_dicom(tmp_path / "slide", {("0", 0): smooth(130, 200)})
    made = dcmread(folder / "part 0")
    for name, value in change.items():
        setattr(made, name, value)
    made.save_as(folder / "part 0")
    with pytest.raises(SourceError, match=message):
        open_source(folder, "dicom")


def test_dicom_by_wsidicom_is_the_same(tmp_path):
    wsidicom = pytest.importorskip("wsidicom")
    folder = write_dicom(tmp_path / "slide", {("0", 0): smooth(150, 200)}, "rle", sparse=lambda *place: any(place[2:]))
    (folder / "part 0").rename(folder / "one.dcm")
    with wsidicom.WsiDicom.open(folder) as slide:
        theirs = np.asarray(slide.read_region((0, 0), 0, (200, 150)).convert("RGB"))
    assert np.array_equal(read(open_source(folder)), theirs)


def test_dicom_real_slides_equal_openslide():
    folder = REAL / "dicom_CMU-1-Small-Region_napari-wsi"
    if not folder.exists():
        pytest.skip("real slides are not at hand: set NGFFTILE_SLIDES")
    source = open_source(folder, "dicom")
    digest = hashlib.sha256(read(source).tobytes()).hexdigest()
    assert digest == "c3a70ffb365917fbf3e23f3d4cbc3952d491828e381fec963968b8b3ecc39dd2"  # of MANIFEST.json
    with openslide.OpenSlide(source.info.files[0]) as slide:
        for role in source.info.associated:
            theirs = np.asarray(slide.associated_images[role].convert("RGB"))
            assert np.array_equal(source.associated(role), theirs), role
        assert set(source.info.associated) == set(slide.associated_images)
        assert source.info.icc == slide.color_profile.tobytes()
    folder = REAL / "dicom_ohif_WE12_7354_7level_noconcat"
    source = open_source(folder, "dicom")
    with openslide.OpenSlide(source.info.files[0]) as slide:
        theirs = np.asarray(slide.read_region((11_000, 7000), 0, (1500, 900)).convert("RGB"))
        assert tuple((s.x, s.y) for s in source.info.levels) == slide.level_dimensions
    assert np.array_equal(read(source, Region(11_000, 7000, 1500, 900)), theirs)
    assert (source.info.mpp.x, source.info.mpp.y) == pytest.approx((0.624999986, 0.887784117))


# --- CZI ---


def write_czi(path, planes, metadata=None, **options):
    """Planes by scene, then (t, c, z); places of scenes are 1,000 pixels apart, from -50, 20."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path), exist_ok=True, **options) as file:
        for scene, some in planes.items():
            for (t, c, z), pixels in some.items():
                stored = np.ascontiguousarray(pixels[..., ::-1])
                file.write(stored, location=(1000 * scene - 50, 20), plane={"T": t, "C": c, "Z": z}, scene=scene)
        file.write_metadata("x", **(metadata or {}))
    return path


def test_czi_scenes_channels_planes_and_times(tmp_path):
    from pylibCZIrw import czi

    planes = {
        scene: {
            (t, c, z): RNG.integers(0, 65536, (90 + scene, 130, 1), np.uint16)
            for t in range(2)
            for c in range(2)
            for z in range(3)
        }
        for scene in range(2)
    }
    shown = czi.ChannelDisplaySettingsDataClass(
        True, czi.TintingMode.Color, czi.Rgb8Color(np.uint8(1), np.uint8(2), np.uint8(255)), 0.25, 0.5
    )
    about = {"channel_names": {0: "DAPI", 1: "Cy5"}, "display_settings": {0: shown}}
    about |= {"scale_x": 5e-7, "scale_y": 2.5e-7, "scale_z": 2e-6}
    path = write_czi(tmp_path / "x.czi", planes, about, compression_options="zstd1:")
    for scene in range(2):
        source = open_source(path, scene=scene)
        info = source.info
        assert (info.reader, info.scene, info.scenes) == ("czi", scene, ("scene 0", "scene 1"))
        assert (info.size, info.dtype, info.t, info.z) == (Size(130, 90 + scene), "uint16", 2, 3)
        assert (info.mpp, info.z_step) == (Mpp(0.5, 0.25), pytest.approx(2))
        assert [c.name for c in info.channels] == ["DAPI", "Cy5"]
        assert (info.channels[0].color, info.channels[0].window) == ("0102FF", (65535 / 4, 65535 / 2))
        assert info.properties["zeiss.Information.Document.Title"] == "x"
        for plane, pixels in enumerate(planes[scene].values()):
            assert np.array_equal(read(source, plane=plane), pixels)
        check_regions(source, plane=7)
    assert open_source(path).info.scene == 0
    assert fingerprint(open_source(path).info) != fingerprint(open_source(path, scene=1).info)
    with pytest.raises(OptionError, match=r"scene is 2. Use one of 0 to 1"):
        open_source(path, scene=2)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_czi_in_colour_is_white_where_nothing_is_stored(dtype, tmp_path):
    from pylibCZIrw import czi

    left, right = (RNG.integers(0, 256, (60, 70, 3)).astype(dtype) for _ in range(2))
    with czi.create_czi(str(tmp_path / "x.czi")) as file:
        file.write(np.ascontiguousarray(left[..., ::-1]), location=(0, 0), plane={"C": 0})
        file.write(np.ascontiguousarray(right[..., ::-1]), location=(100, 30), plane={"C": 0})
    source = open_source(tmp_path / "x.czi")
    info = source.info
    assert (info.size, info.rgb, info.dtype, info.scenes) == (Size(170, 90), True, dtype, ())
    assert (info.tile, info.mpp, info.mpp_source) == (Size(70, 60), None, "the file does not say")
    expected = np.full((90, 170, 3), info.background, dtype)
    expected[:60, :70], expected[30:, 100:] = left, right
    assert np.array_equal(read(source), expected)
    check_regions(source)


def attach(path, attached):
    """Append attachments, by name, kind and bytes, to a CZI."""
    data = bytearray(path.read_bytes())

    def segment(name, payload):
        data.extend(name.ljust(16, b"\0") + struct.pack("<qq", len(payload), len(payload)) + payload)

    entries = b""
    for name, kind, payload in attached:
        entry = struct.pack("<2s10xqi16s8s80s", b"A1", len(data), 0, bytes(16), kind.encode(), name.encode())
        segment(b"ZISRAWATTACH", struct.pack("<I12x", len(payload)) + entry + bytes(112) + payload)
        entries += entry
    data[104:112] = struct.pack("<q", len(data))
    segment(b"ZISRAWATTDIR", struct.pack("<I252x", len(attached)) + entries)
    path.write_bytes(data)


def test_czi_label_and_macro_are_files_within(tmp_path):
    label, macro = smooth(50, 40), smooth(30, 80, dtype=np.uint16)
    thumbnail = imagecodecs.jpeg8_encode(smooth(20, 20))
    path = write_czi(tmp_path / "x.czi", {0: {(0, 0, 0): smooth(90, 130)}})
    plain = fingerprint(open_source(path).info)
    attached = []
    for name, pixels in (("Label", label), ("SlidePreview", macro)):
        inner = write_czi(tmp_path / "inner.czi", {0: {(0, 0, 0): pixels}})
        attached.append((name, "CZI", inner.read_bytes()))
        inner.unlink()
    attach(path, [*attached, ("Thumbnail", "JPG", thumbnail), ("TimeStamps", "CZTIMS", b"12345678")])
    source = open_source(path)
    expected = {
        "label": label,
        "macro": (macro >> 8).astype(np.uint8),
        "thumbnail": imagecodecs.jpeg8_decode(thumbnail),
    }
    assert {r: (s.y, s.x) for r, s in source.info.associated.items()} == {r: p.shape[:2] for r, p in expected.items()}
    for role, pixels in expected.items():
        assert np.array_equal(source.associated(role), pixels), role
    assert np.array_equal(read(source), smooth(90, 130))
    assert fingerprint(source.info) != plain
    attach(path, [("Label", "CZI", b"no CZI at all")])
    info = open_source(path).info
    assert (info.associated, "left out" in info.notes[0]) == ({}, True)


def test_czi_that_counts_from_more_than_0(tmp_path):
    planes = {(4, c, z): smooth(60, 70, 1, seed=c + z) for c in (2, 3) for z in (5, 6, 7)}
    source = open_source(write_czi(tmp_path / "x.czi", {0: planes}))
    assert (len(source.info.channels), source.info.z, source.info.t) == (2, 3, 1)
    for plane, pixels in enumerate(planes.values()):
        assert np.array_equal(read(source, plane=plane), pixels)


def test_czi_of_floats(tmp_path):
    pixels = RNG.random((60, 70, 1)).astype(np.float32)
    path = write_czi(tmp_path / "x.czi", {0: {(0, 0, 0): pixels}})
    assert np.array_equal(read(open_source(path)), pixels)
    path = write_czi(tmp_path / "y.czi", {0: {(0, 0, 0): np.repeat(pixels, 3, axis=2)}})
    with pytest.raises(SourceError, match="its pixels are Bgr96Float"):
        open_source(path)


def test_czi_that_is_damaged_is_an_error(tmp_path):
    path = write_czi(tmp_path / "x.czi", {0: {(0, 0, 0): smooth(600, 2500)}}, compression_options="zstd0:")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"no directory of blocks|blocks cannot be found"):
        open_source(path, "czi")
    at = data.find(b"ZISRAWSUBBLOCK") + 47  # the highest byte of its pixels' count, with which libCZI would crash
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    with pytest.raises(SourceError, match="no block of 72057594"):
        open_source(path, "czi")
    at = data.find(b"\x28\xb5\x2f\xfd")  # the first zstd frame
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(SourceError, match=r"x 0, y 0, 2500 x 600 of plane 0 cannot be read"):
        read(source)
    told = []
    pixels = read(source, damaged=lambda region, _: told.append(region))
    assert told == [Region(0, 0, source.info.tile.x, 600)]
    assert (pixels[:, : told[0].width] == 255).all()
    assert np.array_equal(pixels[:, told[0].width :], smooth(600, 2500)[:, told[0].width :])


def test_czi_comes_to_openslide_where_the_package_is_missing(monkeypatch, tmp_path):
    path = write_czi(tmp_path / "x.czi", {0: {(0, 0, 0): smooth(90, 130)}})
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    with pytest.raises(SourceError, match=r"openslide: .*pip install 'ngfftile\[czi\]'"):
        open_source(path)


# --- bioio ---


def test_bioio_reads_what_its_plug_ins_do(tmp_path):
    pytest.importorskip("bioio_tifffile")
    path = tmp_path / "x.tif"
    pixels = RNG.integers(0, 65536, (2, 3, 4, 60, 70), np.uint16)
    about = {"axes": "TZCYX", "spacing": 1.5, "unit": "um"}
    tifffile.imwrite(path, pixels, imagej=True, resolution=(2.0, 4.0), metadata=about)
    source = open_source(path, "bioio")
    info = source.info
    assert (info.reader, info.t, info.z, len(info.channels), info.planes) == ("bioio", 2, 3, 4, 24)
    assert info.format == "bioio (bioio_tifffile)"
    assert (info.mpp.x, info.mpp.y, info.z_step) == pytest.approx((0.5, 0.25, 1.5))
    for plane, (t, c, z) in enumerate((t, c, z) for t in range(2) for c in range(4) for z in range(3)):
        assert np.array_equal(read(source, plane=plane)[..., 0], pixels[t, z, c])
    check_regions(source, plane=5)
    with pytest.raises(OptionError, match="scene is 9"):
        open_source(path, "bioio", scene=9)


def test_bioio_in_colour(tmp_path):
    pytest.importorskip("bioio_tifffile")
    pixels = smooth(60, 70)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb")
    source = open_source(tmp_path / "x.tif", "bioio")
    assert source.info.rgb
    assert np.array_equal(read(source), pixels)


def test_bioio_refuses_what_no_plug_in_reads(tmp_path, monkeypatch):
    path = Path(tmp_path / "x.nothing")
    path.write_bytes(b"nothing" * 100)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "bioio", None)
        with pytest.raises(SourceError, match="bioio: needs the package bioio"):
            open_source(path, "bioio")
    pytest.importorskip("bioio")
    with pytest.raises(SourceError, match="bioio: no plug-in of bioio"):
        open_source(path, "bioio")


# What changes while it is read


def converted(source, target, change, **more):
    """Convert, and let something happen when the first pixels are done."""
    happened = []

    def progress(done, _):
        if done and not happened:
            happened.append(change())

    return nt.convert(source, target, progress=progress, workers=1, **more)


def strangers(folder):
    def change():
        (folder / ".DS_Store").write_text("2")
        (folder / "log.txt").write_text("22")
        (folder / "new").write_text("")

    (folder / ".DS_Store").write_text("")
    (folder / "log.txt").write_text("")
    (folder / ".lock").symlink_to("nowhere")
    return change


@pytest.fixture
def stored(tmp_path):
    path = nt.synthetic.write_svs(tmp_path / "x.svs", 900, 700, seed=1)
    nt.convert(path, tmp_path / "source.ome.zarr", shard=256, chunk=128)
    return tmp_path / "source.ome.zarr"


def test_strangers_in_a_store_may_change_while_it_is_read(stored, tmp_path):
    change = strangers(stored)
    strangers(stored / "0")()
    assert converted(stored, tmp_path / "out.ome.zarr", change, codec="zstd:1").pixels == 900 * 700


def test_strangers_in_a_dicom_folder_may_change_while_it_is_read(tmp_path):
    folder = tmp_path / "slide"
    write_dicom(folder, {("0", 0): smooth(150, 200)})
    assert converted(folder, tmp_path / "out.ome.zarr", strangers(folder)).pixels


@pytest.mark.parametrize("what", ["replaced", "removed", "label"])
def test_objects_of_a_store_that_change_while_it_is_read_are_an_error(what, stored, tmp_path):
    slide = nt.open(stored)
    slide.labels["bright"] = slide.image(level=1).max("c") > 200

    def change():
        if what == "label":
            (stored / "labels" / "bright" / "0" / "zarr.json").touch()
            return
        objects = sorted((stored / "0" / "c" / "0").glob("*/*"))
        if what == "replaced":
            shutil.copy(objects[0], tmp_path / "other")
            (tmp_path / "other").replace(objects[-1])
        else:
            objects[-1].unlink()

    with pytest.raises(SourceError, match="while it was read"):
        converted(stored, tmp_path / "out.ome.zarr", change, codec="zstd:1", shard=256)
    assert not (tmp_path / "out.ome.zarr.partial").exists()


def test_a_key_file_names_the_files_of_its_slide(tmp_path):
    for name in ("a.jpg", "b.opt", "b.jpg", ".a.jpg.swp"):
        (tmp_path / name).write_text("")
    (tmp_path / "x.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nOptimisationFile=b.opt\n")
    found = _files(tmp_path / "x.vms", "hamamatsu", "")
    assert [path.name for path in found] == ["a.jpg", "b.opt", "x.vms"]
