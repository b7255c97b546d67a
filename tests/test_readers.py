"""What we write, opened by the readers that users have: the right pixels, colours, names and scale in each.

Every test compares a reader with the pixels that `ngfftile.open` gives, which `test_the_stores_hold_the_sources_pixels`
ties to the source files, and with the colours, names and scale that were put into those files.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import warnings
from functools import cached_property
from pathlib import Path

import dask.array as da
import fastslide
import ngff_zarr
import numpy as np
import ome_zarr
import ome_zarr_models
import pytest
import tensorstore
import tifffile
import xarray as xr
import yaozarrs
import zarr
import zarrista
from ome_zarr.io import parse_url
from ome_zarr.reader import Label, Reader
from PIL import ImageCms

import ngfftile as nt

NODE = Path(os.environ.get("NGFFTILE_NODE", Path(__file__).parent.parent / ".node"))
# How a store is written, each with the arguments that make it; the first is what a user gets unasked.
FORMS = {
    "0.5": {"shard": 256},
    "0.5-unsharded": {"shard": 0},
    "0.4": {"ngff": "0.4"},
    "0.6": {"ngff": "0.6", "shard": 256},
}
CHUNK = 128


@dataclasses.dataclass(frozen=True)
class Kind:
    """A source: what is put into it, and must come out."""

    file: str
    dtype: str
    names: tuple
    colors: tuple
    mpp: tuple  # x, y


KINDS = {
    # 1025 = 2 x 512 + 1: a shard one pixel wide, and levels that end one tile before a viewer thinks.
    "rgb": Kind("rgb.svs", "uint8", ("Red", "Green", "Blue"), ("FF0000", "00FF00", "0000FF"), (0.5, 0.5)),
    "two": Kind("two.ome.tif", "uint16", ("DAPI", "CD3"), ("0000FF", "00FF00"), (0.325, 0.65)),
    "float": Kind("float.ome.tif", "float32", ("density",), ("FFFFFF",), (0.25, 0.25)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A store, and what a reader must find in it."""

    kind: Kind
    form: str
    source: Path
    path: Path

    @cached_property
    def slide(self):
        return nt.open(self.path)

    @cached_property
    def levels(self):
        return [self.slide.image(level=k.index).to_numpy() for k in self.slide.levels]

    @property
    def version(self):
        return self.form.split("-")[0]

    @property
    def zarr_format(self):
        return 2 if self.version == "0.4" else 3

    @cached_property
    def window(self):
        """Rows and columns of a random part of level 0, across borders of chunks."""
        random = np.random.default_rng(11)
        height, width = self.levels[0].shape[1:]
        y, x = int(random.integers(1, height - 300)), int(random.integers(1, width - 300))
        return slice(None), slice(y, y + 290), slice(x, x + 270)

    def check_pixels(self, read):
        """``read(level)`` gives anything that numpy can cut and take for an array (c, y, x)."""
        for k, expected in enumerate(self.levels):
            pixels = np.asarray(read(k))
            assert pixels.dtype == expected.dtype
            assert np.array_equal(pixels, expected), k
        part = np.asarray(read(0)[self.window])
        assert np.array_equal(part, self.levels[0][self.window])

    def check_scale(self, level, scale, translation):
        """Micrometres along (c, y, x); a coarse pixel's centre lies in the middle of those that it is the mean of."""
        x, y = self.kind.mpp
        f = 2**level
        assert tuple(scale) == pytest.approx((1, y * f, x * f))
        assert tuple(translation) == pytest.approx((0, y * (f - 1) / 2, x * (f - 1) / 2))

    @cached_property
    def attributes(self):
        """Of the root, as they lie on the disk."""
        if self.zarr_format == 2:
            return json.loads((self.path / ".zattrs").read_text())
        return json.loads((self.path / "zarr.json").read_text())["attributes"]["ome"]

    def check_channels(self, channels):
        """The entries of ``omero.channels``; their windows as `test_windows_show_the_pixels` has checked them."""
        assert [c["label"] for c in channels] == list(self.kind.names)
        assert [c["color"] for c in channels] == list(self.kind.colors)
        assert [c["window"] for c in channels] == [c["window"] for c in self.attributes["omero"]["channels"]]


def cases(*forms):
    """Every kind of source in these forms, or in all, as parameters of the fixture ``case``."""
    each = [(kind, form) for kind in KINDS for form in forms or FORMS]
    return pytest.mark.parametrize("case", each, indirect=True, ids=[f"{kind}-{form}" for kind, form in each])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    nt.synthetic.write_svs(folder / KINDS["rgb"].file, 1025, 770, mpp=0.5, seed=5)
    random = np.random.default_rng(1)
    for name, shape, axes in (("two", (2, 500, 700), "CYX"), ("float", (500, 700), "YX")):
        kind = KINDS[name]
        pixels = random.normal(0, 9000, shape) if name == "float" else random.integers(0, 4000, shape)
        pixels[..., :300, :300] = 0  # whole chunks, and a shard, that are not stored
        about = {
            "axes": axes,
            "PhysicalSizeX": kind.mpp[0],
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": kind.mpp[1],
            "PhysicalSizeYUnit": "µm",
            "Channel": {"Name": list(kind.names), "Color": [signed_rgba(c) for c in kind.colors]},
        }
        tifffile.imwrite(
            folder / kind.file, pixels.astype(kind.dtype), photometric="minisblack", tile=(64, 64), metadata=about
        )
    return folder


def signed_rgba(color):
    """As OME-XML has colours: a signed number of 32 bits."""
    return int(np.array(int(color + "FF", 16), np.uint32).view(np.int32))


@pytest.fixture(scope="module")
def make(sources, tmp_path_factory):
    """A function that gives the case of a kind and a form; each store is written once, when first asked for."""
    folder, made = tmp_path_factory.mktemp("stores"), {}

    def case(kind, form):
        if (kind, form) not in made:
            source, path = sources / KINDS[kind].file, folder / f"{kind}-{form}.ome.zarr"
            nt.convert(source, path, chunk=CHUNK, **FORMS[form])
            made[kind, form] = Case(KINDS[kind], form, source, path)
        return made[kind, form]

    return case


@pytest.fixture
def case(request, make):
    return make(*request.param)


@cases()
def test_the_stores_hold_the_sources_pixels(case, make):
    source = tifffile.imread(case.source, series=0, level=0)
    source = source.transpose(2, 0, 1) if case.kind.dtype == "uint8" else source.reshape(case.levels[0].shape)
    assert np.array_equal(case.levels[0], source)
    first = make(next(name for name, kind in KINDS.items() if kind is case.kind), "0.5")
    assert len(case.levels) == len(first.levels) > 2
    assert all(map(np.array_equal, case.levels, first.levels))
    for fine, coarse in zip(case.levels, case.levels[1:], strict=False):
        assert coarse.shape[1:] == (fine.shape[1] // 2, fine.shape[2] // 2)


@cases()
def test_windows_show_the_pixels(case):
    for c, pixels in zip(case.attributes["omero"]["channels"], case.levels[0], strict=True):
        window = c["window"]
        assert window["min"] <= window["start"] < window["end"] <= window["max"]
        if case.kind.dtype == "uint8":  # else a stain's colour would change from slide to slide
            assert window == {"min": 0, "max": 255, "start": 0, "end": 255}
        elif case.kind.dtype == "uint16":
            assert (window["min"], window["max"]) == (0, 65535)
        shown = (pixels >= window["start"]) & (pixels <= window["end"])
        assert shown.mean() > 0.99


@cases()
def test_zarr_python(case):
    group = zarr.open_group(case.path, mode="r")
    case.check_pixels(lambda k: group[str(k)])
    assert group.metadata.zarr_format == case.zarr_format
    assert (group["0"].shards is not None) == (case.form in {"0.5", "0.6"})
    if case.zarr_format == 3:
        assert group["0"].metadata.dimension_names == ("c", "y", "x")


@cases()
def test_zarr_python_lists_the_root_without_a_warning(case):
    group = zarr.open_group(case.path, mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"0", "1", "2", "OME"} <= dict(group.members()).keys()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert str(case.levels[0].shape) in str(group.tree())
    # Any file in a group that is not Zarr's is warned of by whoever walks the whole tree; this one has its place by
    # convention, and Bio-Formats' converter puts it there too.
    assert {str(w.message).split()[2] for w in caught} <= {"METADATA.ome.xml"}


def test_zarr_python_lists_the_root_of_a_slide_with_a_profile_and_no_pictures_without_a_warning(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", tile=(32, 32), iccprofile=profile)
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    assert nt.open(tmp_path / "x.ome.zarr").icc == profile
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "0" in dict(zarr.open_group(tmp_path / "x.ome.zarr", mode="r").members())


@cases()
def test_zarrs_pipeline(case):
    pytest.importorskip("zarrs", reason="pip install zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns where it hands a codec back to zarr-python
        case.check_pixels(lambda k: zarr.open_array(case.path / str(k), mode="r"))


@cases()
def test_tensorstore(case):
    def read(level):
        driver = "zarr3" if case.zarr_format == 3 else "zarr"
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(case.path / str(level))}}
        array = tensorstore.open(spec).result()
        if case.zarr_format == 3:
            assert array.domain.labels == ("c", "y", "x")
        return array

    case.check_pixels(read)


@cases()
def test_zarrista(case):
    store = zarrista.store.FilesystemStore(case.path)
    group = zarrista.Group.open(store)
    assert ("multiscales" in group.attrs) == (case.zarr_format == 2)

    class Level:  # its arrays want an index: they are no array-likes
        def __init__(self, level):
            self.array = zarrista.Array.open(store, f"/{level}")

        def __getitem__(self, cut):
            return self.array[cut].to_numpy()

        def __array__(self, dtype=None, copy=None):
            return self[...]

    case.check_pixels(Level)


@cases()
def test_dask(case):
    case.check_pixels(lambda k: da.from_zarr(case.path / str(k)))


@cases()
def test_xarray_opens_a_level_with_named_axes(case):
    others = [str(k) for k in range(1, len(case.levels))]
    # Of Zarr v2 xarray takes the fill value for "no data", and would make white pixels NaN.
    options = {"mask_and_scale": False} if case.zarr_format == 2 else {}
    level = xr.open_zarr(case.path, drop_variables=others, consolidated=False, **options)["0"]
    assert level.dims == ("c", "y", "x")
    assert level.dtype == case.kind.dtype
    assert np.array_equal(level, case.levels[0])


# The reader invents axes t, c, z, y, x for 0.6; the pixels are right, and the classes below know 0.6.
@cases("0.5", "0.5-unsharded", "0.4")
def test_ome_zarr_reader(case):
    (node,) = Reader(parse_url(str(case.path)))()
    case.check_pixels(node.data.__getitem__)
    about = node.metadata
    assert [a["name"] for a in about["axes"]] == ["c", "y", "x"]
    assert [a.get("unit") for a in about["axes"]] == [None, "micrometer", "micrometer"]
    for k, (scale, translation) in enumerate(about["coordinateTransformations"]):
        case.check_scale(k, scale["scale"], translation["translation"])
    assert about["channel_names"] == list(case.kind.names)
    assert about["visible"] == [True] * len(case.kind.names)
    ends = [[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in case.kind.colors]
    assert about["colormap"] == [[[0, 0, 0], end] for end in ends]
    windows = [c["window"] for c in case.attributes["omero"]["channels"]]
    assert about["contrast_limits"] == [[w["start"], w["end"]] for w in windows]


@cases()
def test_ome_zarr_classes(case):
    found = ome_zarr.OMEZarrMultiscale.from_ome_zarr(str(case.path))
    case.check_pixels(lambda k: found.images[k].data)
    x, y = case.kind.mpp
    for k, image in enumerate(found.images):
        assert "".join(image.axes) == "cyx"
        assert image.scale == pytest.approx({"c": 1, "y": y * 2**k, "x": x * 2**k})
        assert image.axes_units == {"y": "micrometer", "x": "micrometer"}
    case.check_channels([c.model_dump() for c in found.omero.channels])


@cases()
def test_ngff_zarr(case):
    found = ngff_zarr.from_ngff_zarr(str(case.path), validate=True)
    case.check_pixels(lambda k: found.images[k].data)
    for k, image in enumerate(found.images):
        assert "".join(image.dims) == "cyx"
        assert image.axes_units == {"c": None, "y": "micrometer", "x": "micrometer"}
        case.check_scale(k, [image.scale[d] for d in "cyx"], [image.translation[d] for d in "cyx"])
    case.check_channels([dataclasses.asdict(c) for c in found.metadata.omero.channels])


@cases("0.5", "0.5-unsharded", "0.4")
def test_yaozarrs(case):
    yaozarrs.validate_zarr_store(str(case.path))
    about = yaozarrs.open_group(str(case.path)).ome_metadata()
    (image,) = about.multiscales
    assert [a.name for a in image.axes] == ["c", "y", "x"]
    for k, data in enumerate(image.datasets):
        scale, translation = data.coordinateTransformations
        case.check_scale(k, scale.scale, translation.translation)
    case.check_channels([c.model_dump() for c in about.omero.channels])


@cases()
def test_ome_zarr_models(case):
    group = ome_zarr_models.open_ome_zarr(zarr.open_group(case.path, mode="r"))
    assert group.ome_zarr_version == case.version
    assert [group.members[str(k)].shape for k in range(len(case.levels))] == [a.shape for a in case.levels]


# It reads no shards, no Zarr v2 and no metadata of 0.6.
@cases("0.5-unsharded")
def test_fastslide(case):
    slide = fastslide.FastSlide.from_file_path(case.path)
    assert slide.mpp == pytest.approx(case.kind.mpp)
    assert slide.level_dimensions == tuple(a.shape[:0:-1] for a in case.levels)
    # It divides sizes, so the downsample of a level whose size was rounded down is a little more than the power of 2.
    assert slide.level_downsamples == pytest.approx([2**k for k in range(len(case.levels))], rel=0.01)
    channels = slide.channel_metadata
    assert [c["name"] for c in channels] == list(case.kind.names)
    assert [c["color"] for c in channels] == [tuple(bytes.fromhex(c)) for c in case.kind.colors]

    def read(level):
        height, width = case.levels[level].shape[1:]
        image = slide.read_region((0, 0), level, (width, height))
        return image.to_separate().numpy()

    case.check_pixels(read)


@pytest.mark.parametrize("form", FORMS)
def test_associated_images_are_images_of_their_own(form, make):
    case = make("rgb", form)
    assert set(case.slide.associated) == {"label", "macro", "thumbnail"}
    for role, pixels in case.slide.associated.items():
        (image,) = ngff_zarr.from_ngff_zarr(str(case.path / "associated" / role), validate=True).images
        assert np.array_equal(np.asarray(image.data), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["0.5", "0.6"])
def test_labels(form, make, tmp_path):
    case = make("rgb", form)
    slide = nt.open(shutil.copytree(case.path, tmp_path / case.path.name))
    dark = case.levels[0].min(0) < 150
    slide.labels["dark"] = slide.image(level=0).min("c") < 150
    found = [node for node in Reader(parse_url(slide.url))() if node.load(Label)]
    assert [node.metadata["name"] for node in found] == ["dark"]
    assert np.array_equal(np.asarray(found[0].data[0])[0], dark)
    for k, pixels in enumerate(found[0].data):
        assert np.array_equal(np.asarray(pixels), slide.labels["dark"].image(level=k))
    mask = ngff_zarr.from_ngff_zarr(str(case.path.parent / slide.url / "labels" / "dark"), validate=True).images[0]
    assert np.array_equal(np.asarray(mask.data)[0], dark)


@pytest.fixture(scope="module")
def by_node(make, tmp_path_factory):
    """A function that gives what a script of tests/node says of all stores of a version."""
    if shutil.which("node") is None or not (NODE / "node_modules").is_dir():
        pytest.skip(f"no readers in JavaScript in {NODE}: make node")
    folder = tmp_path_factory.mktemp("node")
    for script in (Path(__file__).parent / "node").glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to((NODE / "node_modules").resolve(), target_is_directory=True)
    said = {}

    def ask(script, case):
        if (script, case.form) not in said:
            asked = {}
            for kind in KINDS:
                each = make(kind, case.form)
                _, y, x = each.window
                asked[each.path.name] = {"y": [y.start, y.stop], "x": [x.start, x.stop]}
            command = ["node", script, case.path.parent, json.dumps(asked)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            said[script, case.form] = json.loads(done.stdout)
        return said[script, case.form][case.path.name]

    return ask


def sha256(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


@cases()
def test_zarrita(case, by_node):
    said = by_node("zarrita.mjs", case)
    assert said["http"] == said["file"]
    case.check_channels(said["http"]["ome"]["omero"]["channels"])
    for level, pixels in zip(said["http"]["levels"], case.levels, strict=True):
        assert (level["shape"], level["dtype"]) == (list(pixels.shape), case.kind.dtype)
        assert level["names"] == ["c", "y", "x"]
        assert level["sha256"] == sha256(pixels)
    part = case.levels[0][case.window]
    assert said["http"]["region"] == {"shape": list(part.shape), "sha256": sha256(part)}
    # Chunks of a shard come as parts of it; without shards every chunk is a whole object.
    assert (said["parts"] > 0) == (case.form in {"0.5", "0.6"})


# Its loader knows no axes of 0.6: it takes (c, y, x) for (t, c, z, y, x).
@cases("0.5", "0.5-unsharded", "0.4")
def test_viv(case, by_node):
    said = by_node("viv.mjs", case)
    (image,) = said["ome"]["multiscales"]
    case.check_channels(said["ome"]["omero"]["channels"])
    for k, (level, pixels) in enumerate(zip(said["levels"], case.levels, strict=True)):
        scale, translation = image["datasets"][k]["coordinateTransformations"]
        case.check_scale(k, scale["scale"], translation["translation"])
        assert level["labels"] == ["c", "y", "x"]
        assert (level["shape"], level["dtype"].lower()) == (list(pixels.shape), case.kind.dtype)
        assert level["tileSize"] == CHUNK  # of a chunk, not of a shard
        assert level["sha256"] == level["tiles"] == sha256(pixels)
