"""The main job, end to end: take or synthesise a slide, convert it, find tissue, index tiles, show the result."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import ngfftile as nt

SIZE = (12_000, 9_000)  # 3 x 2.2 mm at 0.25 micrometres per pixel


def main() -> None:
    """Run the demo."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slide", nargs="?", help="a slide of yours; by default one is synthesised")
    arguments.add_argument("--out", type=Path, default=Path("demo"), help="folder to write into")
    given = arguments.parse_args()
    screen = Console(highlight=False, soft_wrap=True)
    try:
        run(given.slide, given.out, screen)
    except nt.errors.NgfftileError as error:
        screen.print(f"[red]error[/] {error}")
        raise SystemExit(error.exit_code) from None


def run(slide: str | None, out: Path, screen: Console) -> None:
    """Convert, tile and show one slide."""
    out.mkdir(parents=True, exist_ok=True)
    source = Path(slide) if slide else out / "synthetic.svs"
    if slide is None and not source.exists():
        begun = time.perf_counter()
        nt.synthetic.write_svs(source, *SIZE, seed=7)
        screen.print(f"synthesised {source} in {time.perf_counter() - begun:.1f} s\n")

    screen.rule("the plan, from headers only")
    screen.print(str(nt.plan(source)))

    screen.rule("convert")
    store = out / f"{source.stem}.ome.zarr"
    with Progress(console=screen, transient=True) as bar:
        task = bar.add_task("converting")
        done = nt.convert(source, store, progress=lambda d, total: bar.update(task, completed=d, total=total))
    screen.print(str(done))

    screen.rule("open, lazily")
    opened = nt.open(store)
    screen.print(str(opened))
    screen.print(f"\n{opened.image(level=0).data!r}")

    screen.rule("tissue and tiles")
    # Without a resolution in the file, tiles are taken from level 0.
    at = {"mpp": max(0.5, opened.mpp.x, opened.mpp.y)} if opened.mpp else {"level": 0}
    index = nt.tile(opened, nt.TileGrid(extent=256, **at), tissue="otsu", min_fraction=0.5)
    index.to_parquet(out / "index")
    screen.print(str(index))
    slides, tiles = index.slides.to_pandas(), index.tiles.to_pandas()
    screen.print("\nslides\n" + slides.head().T.to_string(header=False))
    screen.print("\ntiles\n" + tiles.drop(columns="slide_id").head().to_string())

    screen.rule("what to look at")
    picture = out / f"{source.stem}.tiles.png"
    index.picture().save(picture)
    for what, place in {"store": store, "tables": out / "index", "kept tiles over the slide": picture}.items():
        screen.print(f"{what:<26}{place}")


if __name__ == "__main__":
    main()
