"""ngfftile against other converters on the same slide, each a fresh process, taking turns.

make bench-peers                                              # installs the peers into .bench, measures all cores
make bench-peers ARGS='--slide SLIDE.tif --workers 1 2'       # a TIFF slide of yours
make bench-peers ARGS='--slide FOLDER --wrap --rounds 2'      # a DICOM slide: its tiles, unchanged, as a TIFF first

Ours runs before and after each peer; a ratio is the peer's cost over the mean of these two. Start-up counts. All are
held to the same cores, and told how many. What each wrote is read from its metadata, and level 0 compared with the
slide. The peers do not sync to the disk, ours does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    HERE,
    Cost,
    Figure,
    clear,
    command,
    cores,
    facts,
    fresh,
    ratio,
    save,
    show,
    spread,
    table,
    workspace,
)

PEERS = HERE.parent / ".bench/bin/python"
API = "import sys, ngfftile; ngfftile.convert(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))"
# Threads that a tool would start beside the cores that it is held to.
THREADS = ("DASK_NUM_WORKERS", "VIPS_CONCURRENCY", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TIFFFILE_NUM_THREADS")
TITLES = {
    "api": "ngfftile.convert, a process",
    "ome_zarr_default": "ome-zarr-py, as documented",
    "ome_zarr_fair": "ome-zarr-py, same layout, mean",
    "ngff_zarr_default": "ngff-zarr command, defaults",
    "ngff_zarr_fair": "ngff-zarr command, same layout, mean",
    "vips_dzsave": "vips dzsave (DeepZoom, lossy)",
    "vips_tiffsave": "vips tiffsave (pyramid, deflate)",
}
GOALS = {"ome_zarr_default": ">= 10", "ngff_zarr_default": ">= 4"}
SMALLER = ("ome_zarr_default", "ngff_zarr_default")  # whose memory ours must not reach


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a peer, between two of ours."""

    before: Cost
    peer: Cost
    after: Cost

    def ours(self, what: str) -> float:
        """Our mean of a cost."""
        return float(getattr(self.before, what) + getattr(self.after, what)) / 2

    def theirs(self, what: str) -> float:
        """The peer's."""
        return float(getattr(self.peer, what))


class Bench:
    """One slide, converted by all.

    Parameters
    ----------
    slide
        In TIFF.
    folder
        Where stores go.
    python
        Of the peers' environment.
    limit
        Seconds that a peer may take.
    """

    def __init__(self, slide: Path, folder: Path, python: Path, limit: float) -> None:
        self.slide, self.folder, self.python, self.limit = slide, folder, python, limit
        self.about = fresh("slides.py", "describe", slide)
        self.megapixels = self.about["width"] * self.about["height"] / 1e6
        self.written: dict[str, dict[str, Any]] = {}

    def run(self, name: str, workers: int) -> Cost:
        """Convert once; the disk is quiet before it begins."""
        target = self.folder / f"{name}.ome.zarr"
        for path in self.folder.glob(f"{target.name}*"):
            clear(path) if path.is_dir() else path.unlink()
        os.sync()
        words: dict[str, list[str | Path | int]] = {
            "ours": [ngfftile(), "convert", self.slide, "-o", target, "--workers", workers],
            "api": [sys.executable, "-c", API, self.slide, target, workers],
        }
        theirs: list[str | Path | int] = [self.python, HERE / "peer.py", name, self.slide, target]
        env = dict.fromkeys(THREADS, str(workers)) | {"XDG_CACHE_HOME": str(self.folder / "cache")}
        variables = {} if name in words else env
        cost = command(words.get(name, theirs), workers=workers, limit=self.limit, env=variables)
        if name not in self.written:
            self.written[name] = found(target, self.slide)
        return cost

    def turns(self, name: str, workers: int, rounds: int) -> list[Turn]:
        """Runs of a peer, each between two of ours."""
        turns: list[Turn] = []
        for _ in range(rounds):
            before = turns[-1].after if turns else self.run("ours", workers)
            turns.append(Turn(before, self.run(name, workers), self.run("ours", workers)))
            print(f"{name}, {workers} workers: {turns[-1].peer}, ours {turns[-1].after}", file=sys.stderr, flush=True)
        return turns

    def figures(self, names: list[str], workers: int, rounds: int) -> Iterator[Figure]:
        """Each peer against ours."""
        at = f"{workers} worker{'s' * (workers > 1)}"
        for name in names:
            title = f"{TITLES[name]}, {at}"
            try:
                turns = self.turns(name, workers, rounds)
            except RuntimeError as error:
                yield Figure(title, None, "", "", str(error).splitlines()[-1][:100])
                continue
            yield from self.compared(name, title, turns)

    def compared(self, name: str, title: str, turns: list[Turn]) -> Iterator[Figure]:
        """A peer's costs over ours."""

        def columns(what: str) -> tuple[list[float], list[float]]:
            return [turn.theirs(what) for turn in turns], [turn.ours(what) for turn in turns]

        theirs, ours = columns("seconds")
        wall = f"{statistics.median(theirs):.1f} s, {self.megapixels / statistics.median(theirs):.1f} MP/s; ours "
        wall += f"{statistics.median(ours):.1f} s, {self.megapixels / statistics.median(ours):.1f} MP/s"
        yield Figure(f"{title}: time / ours", ratio(theirs, ours), "x", GOALS.get(name, ""), wall)
        theirs, ours = columns("cpu")
        cpu = f"{statistics.median(theirs):.1f} s, ours {statistics.median(ours):.1f} s; {spread(theirs, ours)}"
        yield Figure("  processor time / ours", ratio(theirs, ours), "x", "", cpu)
        theirs, ours = columns("peak")
        memory = f"{statistics.median(theirs) / 1e6:.0f} MB, ours {statistics.median(ours) / 1e6:.0f} MB"
        yield Figure("  peak memory / ours", ratio(theirs, ours), "x", ">= 1" if name in SMALLER else "", memory)

    def results(self) -> list[list[str]]:
        """What each store has, as a table."""
        told = f"slide: {self.about['mpp']:.4g}" if self.about["mpp"] else "slide has none"
        head = ["what is written", "NGFF", "levels", "last", f"mpp x ({told})", "chunk", "shard", "codec"]
        rows = [[*head, "level 0 equal", "associated", "ICC", "files", "MB"]]
        for name, one in self.written.items():
            rows.append([TITLES.get(name, "ngfftile convert"), *map(str, one.values())])
        return rows


def ngfftile() -> Path:
    """Our command, of the environment that this runs in."""
    return Path(sys.executable).with_name("ngfftile")


def found(target: Path, slide: Path) -> dict[str, Any]:
    """What a store has, by its own metadata; of a result that is no OME-Zarr its files and bytes."""
    files = [
        p for path in target.parent.glob(f"{target.name}*") for p in ([path] if path.is_file() else path.rglob("*"))
    ]
    files = [p for p in files if p.is_file()]
    row: dict[str, Any] = dict.fromkeys(
        ["ngff", "levels", "last", "mpp", "chunk", "shard", "codec", "equal", "associated", "icc"], "-"
    )
    if (target / "zarr.json").exists():
        row |= read(target)
        first = row.pop("path")
        row["equal"] = f"{fresh('slides.py', 'compare', slide, target / first)['equal']:.0%}"
    return row | {"files": len(files), "MB": round(sum(p.stat().st_size for p in files) / 1e6)}


def read(store: Path) -> dict[str, Any]:
    """The facts of a store's root, and of its arrays."""
    ome = json.loads((store / "zarr.json").read_text())["attributes"]["ome"]
    image = ome["multiscales"][0]
    arrays = [json.loads((store / one["path"] / "zarr.json").read_text()) for one in image["datasets"]]
    scale = next(t for t in image["datasets"][0]["coordinateTransformations"] if t["type"] == "scale")["scale"][-1]
    unit = image["axes"][-1].get("unit")
    shape, codecs = arrays[0]["chunk_grid"]["configuration"]["chunk_shape"], arrays[0]["codecs"]
    sharded = codecs[0]["name"] == "sharding_indexed"
    inner = codecs[0]["configuration"] if sharded else {"chunk_shape": shape, "codecs": codecs}
    steps = [
        f"{c['name']}:{c['configuration']['level']}" for c in inner["codecs"] if "level" in c.get("configuration", {})
    ]
    return {
        "ngff": ome["version"],
        "levels": len(arrays),
        "last": "x".join(map(str, reversed(arrays[-1]["shape"][-2:]))),
        "mpp": f"{scale:.4g} {unit}" if unit else f"lost ({scale:g}, no unit)",
        "chunk": "x".join(map(str, inner["chunk_shape"])),
        "shard": "x".join(map(str, shape)) if sharded else "-",
        "codec": " ".join(steps) or inner["codecs"][-1]["name"],
        "associated": "yes" if (store / "associated").is_dir() else "-",
        "icc": "yes" if (store / "associated/icc").exists() else "-",
        "path": image["datasets"][0]["path"],
    }


def parse() -> argparse.Namespace:
    """Options."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slide", type=Path, help="by default a synthetic SVS")
    arguments.add_argument("--size", default="12000x9000", help="of the synthetic slide; default 12000x9000")
    arguments.add_argument(
        "--wrap", action="store_true", help="first put its JPEG tiles, as they are, into a flat TIFF"
    )
    arguments.add_argument("--workers", type=int, nargs="+", default=[cores()], help="by default all cores")
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), help="of the contenders")
    arguments.add_argument("--limit", type=float, default=7200, help="seconds that a peer may take; default 7200")
    arguments.add_argument("--peers", type=Path, default=PEERS, help="python of the environment of the peers")
    arguments.add_argument("--json", type=Path, help="write the figures there, too")
    return arguments.parse_args()


def prepared(given: argparse.Namespace, folder: Path) -> Path:
    """The slide that all read. Made by another process: the memory of this one would count as a command's."""
    slide: Path = given.slide
    if slide is None:
        slide = folder / "synthetic.svs"
        fresh("slides.py", "svs", slide, given.size)
    if given.wrap:
        flat = folder / f"{slide.stem}.tif"
        fresh("slides.py", "wrap", slide, flat)
        return flat
    return slide


def main() -> None:
    """Measure one slide."""
    given = parse()
    for name, value in facts().items():
        print(f"{name:<12} {value}")
    with workspace() as folder:
        bench = Bench(prepared(given, folder), folder, given.peers, given.limit)
        print(f"{'slide':<12} {bench.slide.name}, {bench.megapixels:.0f} MP, {bench.about['bytes'] / 1e6:.0f} MB\n")
        bench.run("ours", cores())  # the slide and the libraries come into memory
        figures = [f for workers in given.workers for f in bench.figures(given.only, workers, given.rounds)]
        show(figures)
        print()
        table(bench.results())
    if given.json:
        save(given.json, figures)


if __name__ == "__main__":
    main()
