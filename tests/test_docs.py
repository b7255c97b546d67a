"""What the documents show is run: README's blocks, the examples; every command is documented."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ngfftile as nt
from ngfftile import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    nt.synthetic.write_svs(place / "slide.svs", 5000, 4000, seed=2)
    return place


def test_readme_runs_from_top_to_bottom(folder, monkeypatch):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for block in blocks("sh"):
        for line in block.splitlines():
            if line.startswith("ngfftile "):
                subprocess.run(line, shell=True, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
                ran += 1
            else:
                assert line.startswith("make ")
                subprocess.run(["make", "-n", line.split()[1]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert ran == 9
    monkeypatch.chdir(folder)
    names = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (folder / "kept.png").exists()
    assert len(names["index"]) == len(names["tiles"]) > 0
    assert 0 < len(names["dark"]) < 80


def test_every_command_is_in_the_readme():
    for command in cli.app.registered_commands:
        assert f"ngfftile {command.callback.__name__}" in README


def test_every_module_is_in_the_architecture():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in (ROOT / "ngfftile").glob("*.py"):
        assert f"`{path.stem}`" in text, path.stem
    for path in (ROOT / "ngfftile").glob("*/__init__.py"):
        assert f"`{path.parent.name}`" in text, path.parent.name


def test_links_in_the_documents_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert link.startswith("http") or (ROOT / link).exists(), f"{document.name}: {link}"


def test_public_names_are_these():
    assert sorted(nt.__all__) == [
        *(
            "Conversion",
            "ConversionPlan",
            "Index",
            "Level",
            "Mpp",
            "Region",
            "Report",
            "Size",
            "Slide",
            "SourceInfo",
            "TileGrid",
        ),
        *("View", "convert", "errors", "filters", "open", "open_source", "plan", "synthetic", "tile", "verify"),
    ]
    assert all(getattr(nt, name).__doc__ for name in nt.__all__)


def test_the_demo_shows_its_tables_and_its_picture(svs, tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--out", tmp_path / "demo", svs],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tissue_fraction" in result.stdout
    assert (tmp_path / "demo" / "tissue.tiles.png").exists()
    failed = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--out", tmp_path / "demo", "none.svs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert "nothing there" in failed.stdout
    assert "Traceback" not in failed.stderr


def test_no_file_names_a_package_registry_or_a_place_of_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    hosts = ("python" + "hosted", "py" + "pi.org", "registry.npm" + "js", str(Path.home()) + "/")
    for name in listed:
        if Path(name).suffix in {".png", ".gif"}:
            continue
        text = (ROOT / name).read_text()
        assert not any(host in text for host in hosts), name
