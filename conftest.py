"""Fixtures for tests and doctests: a small synthetic slide, and real slides where there are some."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import ngfftile as nt

REAL = Path(os.environ.get("NGFFTILE_SLIDES", Path(__file__).parent.parent / "shared" / "slides"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``small.svs`` (600 x 400) and its store."""
    folder = tmp_path_factory.mktemp("made")
    slide = nt.synthetic.write_svs(folder / "small.svs", 600, 400, seed=1)
    nt.convert(slide, folder / "small.ome.zarr")
    return folder


@pytest.fixture(autouse=True)
def _doctest_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Doctests find the small slide and its store in the folder that they run in."""
    if request.node.__class__.__name__ == "DoctestItem":
        made = request.getfixturevalue("made")
        shutil.copy(made / "small.svs", tmp_path)
        shutil.copytree(made / "small.ome.zarr", tmp_path / "small.ome.zarr")
        monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic SVS of 2,600 x 1,900 pixels at 0.5 micrometres, with label, macro and thumbnail."""
    return nt.synthetic.write_svs(tmp_path_factory.mktemp("svs") / "tissue.svs", 2600, 1900, mpp=0.5, seed=3)


@pytest.fixture(scope="session")
def store(svs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic slide, converted with small shards so that there are several."""
    place = tmp_path_factory.mktemp("store") / "tissue.ome.zarr"
    nt.convert(svs, place, shard=1024)
    return place


@pytest.fixture
def slide(store: Path) -> nt.Slide:
    """The converted slide, open."""
    return nt.open(store)


def real_slides() -> list[Path]:
    """Real slides, if there are any: set NGFFTILE_SLIDES to their folder."""
    if not REAL.is_dir():
        return []
    files = [p for p in REAL.iterdir() if p.is_file() and p.suffix != ".json"]
    folders = [p for p in REAL.iterdir() if p.is_dir() and any(p.glob("*.dcm"))]
    return sorted(files + folders)


def broken_files() -> list[Path]:
    """Real broken files, if there are any."""
    return sorted(p for p in (REAL / "broken").rglob("*") if p.is_file()) if REAL.is_dir() else []
