"""What of each slide's facts and pixels comes through a conversion: one row of Markdown for each slide of a folder.

``yes``: the file has it, and the store gives it back the same. ``-``: the file has none. ``lost``: the file has it, and
the store lacks it or says something else. What a file has is what our reader says of it, and what OpenSlide and
tifffile say; pixels are compared with theirs, the store's read by zarr-python.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
import zarr
from common import clear, workspace
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray
from PIL import Image

import ngfftile as nt
from ngfftile.errors import NgfftileError

Array = NDArray[Any]
# From a region of level 0 and a plane (of SourceInfo.planes) to pixels (height, width, SourceInfo.depth).
Read = Callable[[nt.Region, int], Array]
WHOLE = 100_000_000  # pixels up to which all of level 0 is compared; of larger slides a sample
BAND, SIDE, SAMPLES = 512, 256, 100
MICROSCOPES = (0.05, 25.0)  # micrometres per pixel; what lies outside is a print resolution, or a slip
DATES = {"date", "datetime", "created", "acquisitiondatetime", "scandate"}
OF_PIXELS = {"TiffData", "BinData", "MetadataOnly"}  # elements of OME-XML that say where pixels lie


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one slide."""

    slide: str
    format: str
    reader: str
    size: str
    pixels: str
    mpp: str
    power: str
    date: str
    icc: str
    channels: str
    properties: str
    associated: str
    ome_xml: str
    equal: str


TITLES = (
    "slide",
    "format",
    "reader",
    "size",
    "dtype x channels",
    "mpp",
    "power",
    "date",
    "ICC",
    "channel names, colours",
    "properties",
    "associated",
    "OME-XML",
    "pixels equal",
)


@dataclass(frozen=True, slots=True)
class Others:
    """What other readers say of a file; empty where none opens it."""

    slide: openslide.OpenSlide | None
    tiff: tifffile.TiffFile | None

    @classmethod
    def of(cls, path: Path) -> Others:
        """Open a file with OpenSlide and with tifffile."""
        slide = tiff = None
        with suppress(openslide.OpenSlideError):
            slide = openslide.OpenSlide(path)
        if path.is_file():
            with suppress(tifffile.TiffFileError):
                tiff = tifffile.TiffFile(path)
        return cls(slide, tiff)

    @property
    def properties(self) -> Mapping[str, str]:
        """The vendor's properties, by OpenSlide's names; those that OpenSlide works out itself left out."""
        given = self.slide.properties if self.slide else {}
        found = {k: v for k, v in given.items() if not k.startswith("openslide.") and v.strip()}
        if self.tiff and 296 not in self.tiff.pages.first.tags:
            found.pop("tiff.ResolutionUnit", None)  # the standard's default, not the file's word
        if self.tiff and self.tiff.is_ome:
            found.pop("tiff.ImageDescription", None)  # OME-XML, which has a column of its own
        return found

    @property
    def icc(self) -> bytes | None:
        """The ICC profile as the file has it (the bytes of ``color_profile`` are LittleCMS's own)."""
        if self.slide and self.slide.color_profile:
            profile: bytes = self.slide.read_region((0, 0), 0, (1, 1)).info["icc_profile"]
            return profile
        tag = self.tiff.pages.first.tags.get(34675) if self.tiff else None
        return None if tag is None else bytes(tag.value)

    def number(self, name: str) -> float | None:
        """One of OpenSlide's standard properties."""
        return float(self.slide.properties[name]) if self.slide and name in self.slide.properties else None


def cell(*, there: bool, kept: bool, more: str = "") -> str:
    """One cell: yes, lost or -."""
    return "-" if not there else f"{'yes' if kept else 'lost'}{f' ({more})' if more else ''}"


def shown(value: str, *, kept: bool) -> str:
    """A fact that every slide has: itself, or what became of it."""
    return value if kept else f"lost ({value})"


def mpp_cell(info: nt.SourceInfo, others: Others, slide: nt.Slide) -> str:
    """Micrometres per pixel; what no microscope has does not count."""
    low, high = MICROSCOPES
    theirs = [others.number(f"openslide.mpp-{axis}") for axis in "xy"]
    if any(mpp is None or not low <= mpp <= high for mpp in theirs):
        theirs = []
    wanted = theirs or ([info.mpp.x, info.mpp.y] if info.mpp else [])
    kept = slide.mpp is not None and np.allclose([slide.mpp.x, slide.mpp.y], wanted or [0, 0], rtol=1e-6)
    return cell(there=bool(wanted), kept=kept)


def properties_cell(info: nt.SourceInfo, others: Others, slide: nt.Slide) -> str:
    """How many of the vendor's properties are kept, by name and value, and which are lost."""
    lost = [name for name, value in info.properties.items() if slide.properties.get(name) != value]
    lost += [name for name in others.properties if name not in slide.properties and name not in lost]
    count = len(info.properties.keys() | others.properties.keys())
    few = f": {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}" if lost else ""
    return cell(there=count > 0, kept=not lost, more=f"{len(lost)} of {count}{few}" if lost else str(count))


def associated_cell(source: Any, others: Others, slide: nt.Slide) -> str:
    """Associated images, each pixel the same as our reader's, and none missing that OpenSlide has."""
    theirs = set(others.slide.associated_images) & {"label", "macro", "thumbnail"} if others.slide else set()
    roles = sorted(theirs | set(source.info.associated))
    lost = [role for role in roles if not same_picture(role, source, others, slide)]
    return cell(there=bool(roles), kept=not lost, more=", ".join(lost) or str(len(roles)))


def same_picture(role: str, source: Any, others: Others, slide: nt.Slide) -> bool:
    """Whether the store's associated image has the pixels of the file's."""
    if role not in slide.associated:
        return False
    if others.slide and role in others.slide.associated_images:
        return np.array_equal(slide.associated[role], np.asarray(others.slide.associated_images[role].convert("RGB")))
    return np.array_equal(slide.associated[role], source.associated(role))


def channels_cell(info: nt.SourceInfo, slide: nt.Slide) -> str:
    """Names and colours as the store's own metadata have them."""
    found = [(c.name, c.color.upper()) for c in slide.multiscale.channels]
    return cell(there=True, kept=found == [(c.name, c.color.upper()) for c in info.channels])


def xml_cell(others: Others, slide: nt.Slide) -> str:
    """The file's OME-XML: all its elements with all they say, but where the pixels lie."""
    given = others.tiff.ome_metadata if others.tiff and others.tiff.is_ome else None
    if not given:
        return "-"
    lost = Counter(elements(given)) - Counter(elements(slide.ome_xml or "<OME/>"))
    return cell(there=True, kept=not lost, more=", ".join(sorted({name for name, *_ in lost})))


def elements(xml: str) -> Iterator[tuple[str, ...]]:
    """Each element by name, attributes and text; ours may say MetadataOnly in the place of the pixels."""
    for element in fromstring(xml).iter():
        name = element.tag.rpartition("}")[2]
        if name not in OF_PIXELS | {"UUID", "OME"}:
            yield name, repr(sorted(element.attrib.items())), (element.text or "").strip()


def cut(array: Any, axes: Sequence[str], region: nt.Region, at: Mapping[str, int], depth: int) -> Array:
    """A region of one plane of any array with named axes, as (height, width, depth)."""
    samples = "s" if "s" in axes else "c"
    first = 0 if samples == "s" else at["c"] * depth
    places = {
        "y": slice(region.y, region.bottom),
        "x": slice(region.x, region.right),
        samples: slice(first, first + depth),
    }
    pixels = np.asarray(array[tuple(places.get(axis, at.get(axis, 0)) for axis in axes)])
    left = [axis for axis in axes if axis in places]
    if samples not in left:
        return pixels[..., None]
    return pixels.transpose([left.index(axis) for axis in ("y", "x", samples)])


def place(info: nt.SourceInfo, plane: int) -> dict[str, int]:
    """Point in time, group of channels and focal plane of a plane."""
    groups = len(info.channels) // info.depth
    return {"t": plane // (info.z * groups), "c": plane // info.z % groups, "z": plane % info.z}


def by_zarr(store: Path, info: nt.SourceInfo) -> Read:
    """Level 0 of an OME-Zarr store, through zarr-python."""
    slide = nt.open(store)
    array = zarr.open_array(store / slide.multiscale.datasets[0].path, mode="r")
    return lambda region, plane: cut(array, slide.multiscale.axes, region, place(info, plane), info.depth)


def by_tifffile(tiff: tifffile.TiffFile, info: nt.SourceInfo) -> Read:
    """Level 0 of a TIFF."""
    series = tiff.series[info.scene]
    array = zarr.open(series.aszarr(level=0), mode="r")
    axes = series.levels[0].axes.lower()
    return lambda region, plane: cut(array, axes, region, place(info, plane), info.depth)


def by_openslide(slide: openslide.OpenSlide) -> Read:
    """Level 0 of an RGB slide, laid over the vendor's background colour where it is transparent."""
    paper = f"#{slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, 'FFFFFF')}"

    def read(region: nt.Region, _: int) -> Array:
        pixels = slide.read_region((region.x, region.y), 0, (region.width, region.height))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", pixels.size, paper), pixels).convert("RGB"))

    return read


def readers(path: Path, info: nt.SourceInfo, others: Others) -> Iterator[tuple[str, Read]]:
    """Readers of the file that are not ours."""
    if info.files[0].is_dir():
        yield "zarr-python", by_zarr(path, info)
    if others.slide and info.rgb and info.dtype == "uint8" and others.slide.dimensions == (info.size.x, info.size.y):
        yield "OpenSlide", by_openslide(others.slide)
    if others.tiff and len(others.tiff.series) > info.scene:
        shape = dict(zip(others.tiff.series[info.scene].axes, others.tiff.series[info.scene].shape, strict=True))
        if (shape.get("X"), shape.get("Y")) == (info.size.x, info.size.y):
            yield "tifffile", by_tifffile(others.tiff, info)


def regions(size: nt.Size) -> list[nt.Region]:
    """All of level 0 in bands; of a large slide a sample, the same each time, with its four corners."""
    if size.x * size.y <= WHOLE:
        return [nt.Region(0, y, size.x, min(BAND, size.y - y)) for y in range(0, size.y, BAND)]
    right, low = size.x - SIDE, size.y - SIDE
    random = np.random.default_rng(5)
    somewhere = zip(random.integers(0, right, SAMPLES).tolist(), random.integers(0, low, SAMPLES).tolist(), strict=True)
    return [nt.Region(x, y, SIDE, SIDE) for x, y in [(0, 0), (right, 0), (0, low), (right, low), *somewhere]]


def equal_cell(path: Path, info: nt.SourceInfo, others: Others, store: Path) -> str:
    """Whether other readers see the same pixels in the file as zarr-python does in the store."""
    ours, places = by_zarr(store, info), regions(info.size)
    part = "" if info.size.x * info.size.y <= WHOLE else f", {len(places)} samples"
    said = []
    for name, read in readers(path, info, others):
        off = differs(ours, read, places, info.planes)
        said.append(f"yes ({name}{part})" if off is None else f"lost ({name}{part}: {off})")
    return ", ".join(said) or "no other reader"


def differs(ours: Read, theirs: Read, places: Iterable[nt.Region], planes: int) -> str | None:
    """How far two readers differ, at the worst; None where they do not."""
    worst, pixels = 0.0, 0
    for plane in range(planes):
        for region in places:
            a, b = ours(region, plane), theirs(region, plane)
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{b.dtype} {b.shape}, ours {a.dtype} {a.shape}"
            off = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(2)
            # Not-a-number is equal to itself here.
            off[np.isnan(off) & (np.isnan(a) == np.isnan(b)).all(2)] = 0
            worst, pixels = max(worst, float(off.max(initial=0))), pixels + int(np.count_nonzero(off))
    return f"{pixels} pixels, by up to {worst:g}" if pixels else None


def row(path: Path, folder: Path, version: str | None) -> Row:
    """Convert a slide, and compare."""
    source = nt.open_source(path)
    info, store = source.info, folder / "slide.ome.zarr"
    clear(store)
    nt.convert(path, store, ngff=version)
    slide, others = nt.open(store), Others.of(info.files[0])
    power = others.number(openslide.PROPERTY_NAME_OBJECTIVE_POWER) or info.objective_power
    dated = info.acquired or any(name.rpartition(".")[2].lower() in DATES for name in others.properties)
    icc = others.icc or info.icc
    return Row(
        path.name,
        info.format,
        info.reader,
        shown(str(info.size), kept=slide.size == info.size),
        shown(
            f"{info.dtype} x {len(info.channels)}",
            kept=(slide.dtype, len(slide.channels)) == (info.dtype, len(info.channels)),
        ),
        mpp_cell(info, others, slide),
        cell(there=power is not None, kept=slide.objective_power == power),
        cell(there=bool(dated), kept=slide.acquired is not None and slide.acquired == info.acquired),
        cell(there=icc is not None, kept=slide.icc == icc),
        channels_cell(info, slide),
        properties_cell(info, others, slide),
        associated_cell(source, others, slide),
        xml_cell(others, slide),
        equal_cell(path, info, others, store),
    )


def slides(given: Sequence[Path]) -> list[Path]:
    """The slides given, and those in folders given: files, folders of DICOM files, OME-Zarr stores."""
    found = []
    for path in given:
        if path.is_dir() and not is_slide(path):
            found += sorted(p for p in path.iterdir() if (p.is_file() and p.suffix != ".json") or is_slide(p))
        else:
            found.append(path)
    return found


def is_slide(folder: Path) -> bool:
    """Whether a folder is a slide itself."""
    return folder.is_dir() and (folder.suffix == ".zarr" or any(folder.glob("*.dcm")))


def home() -> Path:
    """Where the tests' real slides are."""
    return Path(os.environ.get("NGFFTILE_SLIDES", Path(__file__).parents[2] / "shared" / "slides"))


def main() -> None:
    """Print the table, each row as it is done; then the slides that failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slides", nargs="*", type=Path, help="slides, or folders of them; default NGFFTILE_SLIDES")
    arguments.add_argument("--ngff", help="version of OME-Zarr; by default the one that convert writes unasked")
    given = arguments.parse_args()
    failed = []
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    with workspace() as folder:
        for path in slides(given.slides or [home()]):
            begun = time.perf_counter()
            try:
                cells = row(path, folder, given.ngff)
            except NgfftileError as error:
                failed.append(f"- {path.name}: {error}")
                continue
            print(f"| {' | '.join(getattr(cells, f.name) for f in fields(cells))} |", flush=True)
            print(f"{path.name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    if failed:
        print("\nNot converted:\n\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
