"""Small slides, mutated at random and read whole, each in a process with limits.

python tests/fuzz/fuzz.py [--seconds 120] [--seed 0] [--only tiff|picture|dicom] [--keep FOLDER]

Whatever comes of a file must be pixels or a `NgfftileError`: a signal, another exception, more than 10 seconds of a
processor, 60 in all or a gigabyte is a finding, and the file is kept. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
from bioio import BioImage
from PIL import Image

import ngfftile as nt
from ngfftile.errors import NgfftileError
from ngfftile.sources import bioio, czi, dicom, openslide, picture, tiff  # loaded once, before the forks

assert all((BioImage, bioio, czi, dicom, openslide, picture, tiff))

MEMORY, SECONDS, MOST_PIXELS, LARGEST = 1 << 30, 10, 1 << 24, 4 << 20
REAL = Path(os.environ.get("NGFFTILE_SLIDES", Path(__file__).parents[3] / "shared" / "slides"))
FINE, REFUSED, UNEXPECTED = 0, 3, 70
ODD = (0, 1, 2, 3, 7, 8, 16, 255, 256, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
KINDS = {".tif": "tiff", ".svs": "tiff", ".ndpi": "tiff", ".qptiff": "tiff", ".tiff": "tiff", ".dcm": "dicom"}


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Something between a ramp and noise."""
    ramp = np.add.outer(np.arange(shape[-2] if len(shape) < 3 else shape[0]), np.arange(shape[-1]))
    noise = np.random.default_rng(0).integers(0, 40, shape)
    return (noise + (ramp[..., : shape[-1]] if ramp.shape == shape else 60)).astype(dtype)


def tiffs() -> Iterator[tuple[str, bytes]]:
    """TIFFs of all kinds."""
    codecs = [None, "lzw", "deflate", "zstd", "lzma", "packbits", "jpeg", "jpeg2000", "webp", "lerc", "png", "jpegxl"]
    options: list[tuple[tuple[int, ...], str, dict]] = [
        ((90, 100, 3), "uint8", {"photometric": "rgb", "tile": (32, 32), "compression": codec}) for codec in codecs
    ]
    grey = {"photometric": "minisblack"}
    options += [
        ((90, 100), "uint16", grey | {"rowsperstrip": 16, "compression": "deflate", "predictor": True}),
        ((90, 100), "float32", grey | {"tile": (32, 32), "compression": "zstd"}),
        ((90, 100), "bool", grey),
        ((3, 40, 50), "uint16", grey | {"bigtiff": True, "metadata": {"axes": "CYX"}}),
        ((2, 3, 40, 50), "uint8", grey | {"imagej": True}),
        ((3, 90, 100), "uint8", {"photometric": "rgb", "planarconfig": "separate", "tile": (32, 32)}),
        ((90, 100, 4), "uint8", {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (16, 16)}),
        ((90, 100), "uint8", {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
        ((6, 40, 50), "uint8", grey | {"volumetric": True, "tile": (2, 16, 16)}),
    ]
    for shape, dtype, how in options:
        place = BytesIO()
        tifffile.imwrite(place, pixels(*shape, dtype=dtype), **how)
        yield f"{how.get('compression')} {shape}.tif", place.getvalue()
    with TemporaryDirectory() as folder:
        path = nt.synthetic.write_svs(Path(folder) / "x.svs", 300, 200, seed=1)
        yield "synthetic.svs", path.read_bytes()
        tifffile.imwrite(Path(folder) / "x.ome.tif", pixels(2, 3, 40, 50), photometric="minisblack", tile=(16, 16),
                         metadata={"axes": "CZYX", "PhysicalSizeX": 0.5})  # fmt: skip
        yield "ome.tif", (Path(folder) / "x.ome.tif").read_bytes()


def pictures() -> Iterator[tuple[str, bytes]]:
    """Pictures of all kinds."""
    for kind in ("PNG", "JPEG", "JPEG2000", "WEBP", "BMP", "GIF"):
        for mode in ("RGB", "L", "RGBA", "P"):
            place = BytesIO()
            try:
                Image.fromarray(pixels(60, 70, 3)).convert(mode).save(place, kind)
            except OSError:
                continue
            yield f"{mode}.{kind.lower()}", place.getvalue()


def real() -> Iterator[tuple[str, bytes]]:
    """Small real slides and broken files, where there are any."""
    found = sorted(p for p in REAL.rglob("*") if p.is_file() and "reference" not in p.parts) if REAL.is_dir() else []
    yield from ((p.name, p.read_bytes()) for p in found if 0 < p.stat().st_size <= LARGEST and p.suffix != ".json")


def entries(data: bytes) -> list[tuple[str, int, int]]:
    """Places of the fields of a TIFF's directories: byte order, offset, and width."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return []
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    places, seen = [], set()
    while 8 <= at < len(data) - 8 and at not in seen and len(seen) < 50:
        seen.add(at)
        head, step = (8, 20) if big else (2, 12)
        count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
        for i in range(min(count, 200)):
            field = at + head + i * step
            widths = ((0, 2), (2, 2), (4, 8), (12, 8)) if big else ((0, 2), (2, 2), (4, 4), (8, 4), (8, 2))
            places += [(order, field + start, width) for start, width in widths]
        following = at + head + count * step
        places.append((order, following, 8 if big else 4))
        if following + 8 > len(data):
            break
        at = struct.unpack_from(order + ("Q" if big else "I"), data, following)[0]
    return places


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, numbers of directories or anywhere, runs moved, ends cut."""
    out = bytearray(data)
    fields = entries(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if len(out) < 16:
            break
        kind, at = rng.random(), rng.randrange(min(len(out), rng.choice((512, 4096, len(out)))) or 1)
        if fields and kind < 0.5:
            order, place, width = rng.choice(fields)
            value = rng.choice((*ODD, rng.randrange(len(out)), rng.getrandbits(8 * width)))
            if place + width <= len(out):
                form = order + {2: "H", 4: "I", 8: "Q"}[width]
                struct.pack_into(form, out, place, value & ((1 << 8 * width) - 1))
        elif kind < 0.7:
            out[at] ^= 1 << rng.randrange(8)
        elif kind < 0.85:
            width = rng.choice((1, 2, 4))
            out[at : at + width] = (rng.choice(ODD) & ((1 << 8 * width) - 1)).to_bytes(
                width, rng.choice(("little", "big"))
            )
        elif kind < 0.95:
            count, other = rng.randrange(1, 64), rng.randrange(len(out))
            out[at : at + count] = out[other : other + count]
        else:
            del out[rng.randrange(len(out)) :]
    return bytes(out)


def use(path: Path, reader: str | None) -> None:
    """Open it, read all of level 0 where that is small, and the associated images."""
    source = nt.open_source(path, reader=reader)
    info = source.info
    whole = nt.Region(0, 0, min(info.size.x, 2048), min(info.size.y, 2048))
    for plane in range(min(info.planes, 8)):
        out = np.empty((whole.height, whole.width, info.depth), info.dtype)
        source.read(whole, plane, out, lambda *_: None)
    for role in info.associated:
        try:
            source.associated(role)
        except NgfftileError:
            continue


def run(path: Path, reader: str | None, log: Path) -> tuple[int, float, int]:
    """Exit code or signal, seconds, and peak memory in KiB, of a fork that uses a file."""
    began, child = time.monotonic(), os.fork()
    if not child:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(6 * SECONDS)  # what waits takes no processor
        code = FINE
        try:
            use(path, reader)
        except NgfftileError:
            code = REFUSED
        except BaseException:
            code = UNEXPECTED
            log.write_text(traceback.format_exc())
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began, usage.ru_maxrss


def corpus(only: str | None) -> list[tuple[str, str, bytes]]:
    """Kind, name and bytes of what is mutated."""
    found = [("tiff", *one) for one in tiffs()] + [("picture", *one) for one in pictures()]
    found += [(KINDS.get(Path(name).suffix, "tiff"), name, data) for name, data in real()]
    return [one for one in found if only in {None, one[0]}]


def main() -> int:
    """Run for a time; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("tiff", "picture", "dicom"))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print("limits and forks are Linux's here")
        return 2
    logging.disable()
    rng, files, outcomes, findings = random.Random(options.seed), corpus(options.only), Counter(), []
    until, number = time.monotonic() + options.seconds, 0
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        while time.monotonic() < until:
            number += 1
            kind, name, data = rng.choice(files)
            # Every reader in turn costs OpenSlide a process of its own, so that few files go to all.
            reader = rng.choice(("tiff", "tifffile")) if kind == "tiff" else kind
            reader = None if rng.random() < 0.04 else reader
            path = Path(folder) / f"x{Path(name).suffix}"
            path.write_bytes(mutated(data, rng))
            log.unlink(missing_ok=True)
            code, seconds, memory = run(path, reader, log)
            outcomes["pixels" if code == FINE else "refused" if code == REFUSED else str(code)] += 1
            if code not in {FINE, REFUSED}:
                why = log.read_text() if log.exists() else f"signal {-code}" if code < 0 else f"exit code {code}"
                findings.append(name)
                options.keep.mkdir(parents=True, exist_ok=True)
                place = options.keep / f"{options.seed}-{number}-{path.name}"
                place.write_bytes(path.read_bytes())
                print(
                    f"FOUND {place} (of {name}, reader {reader}), {seconds:.1f} s, {memory >> 10} MB: {why}", flush=True
                )
    print(f"{number} files of {len(files)}: {dict(outcomes)}; {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
