"""Damage a store at random, ten thousand times, and count what `ngfftile.verify` does not find.

A damage is one flipped bit, one truncated object or one deleted object, drawn over all files of small stores of each
kind (0.5, 0.4 and 0.6; zstd, blosc, JPEG, the source's own tiles; a label, associated images). Run from the root:

    .venv/bin/python benchmarks/damages.py [COUNT]
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ngfftile as nt

KINDS: dict[str, dict[str, Any]] = {
    "0.5, zstd": {"shard": 256},
    "0.4, blosc": {"ngff": "0.4"},
    "0.6, zstd": {"ngff": "0.6"},
    "0.5, single chunks": {"shard": 0},
    "0.5, jpeg:80": {"codec": "jpeg:80"},
    "0.5, source": {"codec": "source", "shard": 256},
}


def damage(place: Path, data: bytes, draw: random.Random) -> str:
    """Flip, cut or delete; returns which."""
    kind = draw.choice(["flip", "cut", "delete"])
    if kind == "delete":
        place.unlink()
    elif kind == "cut":
        place.write_bytes(data[: draw.randrange(len(data))])
    else:
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        place.write_bytes(bytes(changed))
    return kind


def run(store: Path, count: int, draw: random.Random) -> Counter[str]:
    """Damage and mend ``count`` times; counts of what was done, and what was silent or found elsewhere."""
    files = sorted(p for p in store.rglob("*") if p.is_file() and p.stat().st_size)
    seen: Counter[str] = Counter()
    for _ in range(count):
        place = draw.choice(files)
        data = place.read_bytes()
        kind = damage(place, data, draw)
        seen[kind] += 1
        report = nt.verify(store, workers=1)
        key = place.relative_to(store).as_posix()
        seen["silent"] += report.ok
        if report.ok:
            print(f"silent: {kind} of {place.relative_to(store)}", file=sys.stderr)
        # An object of pixels must be named itself; the others may show as the metadata that they are.
        if "/c/" in key and not any(finding.place == key for finding in report.findings):
            seen["elsewhere"] += 1
        place.write_bytes(data)
    return seen


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    draw = random.Random(1)  # noqa: S311 (no secrets here)
    total: Counter[str] = Counter()
    begun = time.perf_counter()
    print("| store | objects | flips | cuts | deletions | silent | not located |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        svs = nt.synthetic.write_svs(Path(folder) / "s.svs", 600, 400, tile=256, seed=1)
        for i, (name, options) in enumerate(KINDS.items()):
            store = Path(folder) / f"{i}.ome.zarr"
            nt.convert(svs, store, **options)
            slide = nt.open(store)
            slide.labels["dark"] = slide.image(level=0).max("c") < 200
            seen = run(store, count // len(KINDS) + (i < count % len(KINDS)), draw)
            total += seen
            objects = sum(p.is_file() for p in store.rglob("*"))
            cells = [seen[k] for k in ("flip", "cut", "delete", "silent", "elsewhere")]
            print(f"| {name} | {objects} | {' | '.join(map(str, cells))} |", flush=True)
    damages = total["flip"] + total["cut"] + total["delete"]
    print(f"\n{damages} damages, {total['silent']} silent; {time.perf_counter() - begun:.0f} s")
    sys.exit(total["silent"] > 0)


if __name__ == "__main__":
    main()
