"""The command line, as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import ngfftile as nt

COMMAND = Path(sys.executable).with_name("ngfftile")


def run(*arguments, code=0, cwd=None, **environment):
    result = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def fastest(code, rounds=5):
    """Least wall time of a command: what it costs when the machine is not busy with other things."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        subprocess.run(code, capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    return min(times)


def test_help_answers_at_once_and_names_every_command():
    assert fastest([COMMAND, "--help"]) < 0.5
    out = run("--help").stdout
    assert all(name in out for name in ("info", "plan", "convert", "tile"))


def test_version_and_module():
    assert run("--version").stdout.strip() == version("ngfftile")
    module = subprocess.run([sys.executable, "-m", "ngfftile", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout.strip() == version("ngfftile")


def test_the_package_imports_at_once():
    bare = fastest([sys.executable, "-c", "pass"])
    assert fastest([sys.executable, "-c", "import ngfftile"]) - bare < 0.3


def test_info_of_a_slide_and_of_its_store_agree(svs, store):
    source, ours = (json.loads(run("info", p, "--json").stdout) for p in (svs, store))
    keys = (
        *("format", "vendor", "width", "height", "dtype", "channels", "mpp_x", "mpp_y", "objective_power", "levels"),
        *("associated", "properties"),
    )
    assert all(key in source for key in keys)
    assert all(key in ours for key in keys)
    for key in ("vendor", "width", "height", "dtype", "channels", "mpp_x", "mpp_y", "objective_power"):
        assert source[key] == ours[key]
    assert sorted(source["associated"]) == sorted(ours["associated"]) == ["label", "macro", "thumbnail"]
    assert set(ours["levels"][1]) == {"level", "width", "height", "downsample", "mpp_x", "mpp_y"}
    assert ours["levels"][1]["mpp_x"] == 1.0
    text = run("info", svs).stdout
    assert "2600 x 1900" in text
    assert "0.5 x 0.5 µm/px" in text


def test_plan_prints_what_convert_writes(svs):
    facts = json.loads(run("plan", svs, "--json").stdout)
    assert [k["width"] for k in facts["levels"]] == [2600, 1300, 650, 325, 162]
    assert facts["objects"] > 0
    assert facts["peak_memory_bytes"] > 0
    assert "peak memory" in run("plan", svs).stdout


def test_convert_and_tile(svs, tmp_path):
    out = run("convert", svs, "-o", tmp_path / "x.ome.zarr").stdout
    assert out.startswith("x.ome.zarr: 4.9 MP in ")
    assert len(out.splitlines()) == 1
    again = run("convert", svs, "-o", tmp_path / "x.ome.zarr").stdout
    assert "up to date" in again
    out = run("tile", tmp_path / "x.ome.zarr", "-o", tmp_path / "t", "--mpp", 1, "--extent", 128).stdout
    assert "kept" in out
    index = nt.Index.from_parquet(tmp_path / "t")
    assert 0 < len(index) < 11 * 8
    assert list(nt.open(tmp_path / "x.ome.zarr").labels) == ["tissue"]
    picture = Image.open(tmp_path / "t" / "pictures" / f"x-{index.slides['id'][0].as_py()[:8]}.png")
    assert picture.width >= 420


def test_many_slides_one_bad_and_the_rest_are_done(svs, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(svs, slides / "good.svs")
    (slides / "bad.svs").write_text("not a slide")
    (slides / "notes.json").write_text("{}")
    result = run("convert", slides, "-o", tmp_path / "out", "--log-file", tmp_path / "log", code=1)
    assert "1 of 2 slides done, 1 failed" in result.stdout
    assert "bad.svs: no reader takes it" in result.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.ome.zarr"]
    rows = [line.split("\t") for line in (tmp_path / "log").read_text().splitlines()]
    assert [row[1] for row in rows] == ["begin", *sorted(["done", "failed"], key=[r[1] for r in rows].index), "end"]
    assert {row[2] for row in rows[1:-1]} == {str(slides / "good.svs"), str(slides / "bad.svs")}
    run("convert", str(slides / "g*.svs"), "-o", tmp_path / "out2")
    run("tile", tmp_path / "out", "-o", tmp_path / "t", "--level", 0, "--filter", "std")
    assert len(nt.Index.from_parquet(tmp_path / "t")) > 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["info", "none.svs"], 2, "none.svs: nothing there"),
        (["convert", "none.svs", "-o", "x.ome.zarr"], 2, "nothing there"),
        (["convert", "text.svs", "-o", "x.ome.zarr"], 1, "no reader takes it"),
        (["convert", "SVS", "-o", "x.ome.zarr", "--chunk", "100"], 2, "power of two"),
        (["convert", "SVS", "-o", "x.ome.zarr", "--codec", "lzw"], 2, "zstd"),
        (["convert", "SVS", "-o", "no/such/x.ome.zarr"], 2, "does not exist"),
        (["convert", "SVS", "text.svs", "-o", "x.ome.zarr"], 2, "folder"),
        (["convert", "*.none", "-o", "x"], 2, "no file matches"),
        (["tile", "SVS", "-o", "t", "--level", "0"], 1, "ngfftile convert"),
        (["tile", "STORE", "-o", "t"], 2, "--level"),
        (["tile", "STORE", "-o", "t", "--mpp", "0.1"], 2, "finer than its finest"),
        (["tile", "STORE", "-o", "t", "--level", "0", "--filter", "magic"], 2, "otsu, std"),
        (["tile", "STORE", "-o", "t", "--level", "0", "--extent", "0"], 2, "1 or more"),
        (["convert", "SVS"], 2, "Missing option"),
        (["frobnicate"], 2, "No such command"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_users_mistake_gets_one_line_a_code_and_leaves_nothing(arguments, code, said, svs, store, tmp_path):
    (tmp_path / "text.svs").write_text("hello")
    filled = [{"SVS": str(svs), "STORE": str(store)}.get(a, a) for a in arguments]
    result = run(*filled, code=code, cwd=tmp_path, COLUMNS="300")
    assert said in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["text.svs"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_an_interrupt_stops_cleanly_and_the_same_command_goes_on(stop, tmp_path):
    svs = nt.synthetic.write_svs(tmp_path / "big.svs", 9000, 5000, seed=5, associated=False)
    arguments = [COMMAND, "convert", svs, "-o", tmp_path / "x.ome.zarr", "--shard", "512", "--workers", "1"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "x.ome.zarr.partial").rglob("c/0/*/*"))) < 20:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + stop
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "x.ome.zarr").exists()
    assert "objects of an earlier run kept" in run(*arguments[1:]).stdout


def test_a_full_disk_is_said_and_the_same_command_goes_on(svs, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no leave to mount a small disk here")
    try:
        result = run("convert", svs, "-o", disk / "x.ome.zarr", code=2)
        assert f"{disk}/x.ome.zarr.partial" in result.stderr
        assert "No space left on device" in result.stderr
        assert not (disk / "x.ome.zarr").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        run("convert", svs, "-o", disk / "x.ome.zarr")
        nt.open(disk / "x.ome.zarr").image(level=0).compute()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_target_that_may_not_be_written_is_said(svs, tmp_path):
    # A file where the folder should be fails for root too.
    (tmp_path / "x.ome.zarr.partial").write_text("in the way")
    result = run("convert", svs, "-o", tmp_path / "x.ome.zarr", code=2)
    assert "x.ome.zarr.partial" in result.stderr


def test_a_store_that_may_not_be_written_is_tiled_with_no_label(store, tmp_path):
    shutil.copytree(store, tmp_path / "x.ome.zarr")
    (tmp_path / "x.ome.zarr" / "labels").write_text("in the way, as for a user without leave to write")
    result = run("tile", tmp_path / "x.ome.zarr", "-o", tmp_path / "t", "--level", 0, code=1)
    assert "--no-label" in result.stderr
    run("tile", tmp_path / "x.ome.zarr", "-o", tmp_path / "t", "--level", 0, "--no-label")


def test_a_filter_of_ones_own_from_the_command_line(store, tmp_path):
    (tmp_path / "mine.py").write_text("def bright(image):\n    return image.max('c') > 250\n")
    run(
        *(
            "tile",
            store,
            "-o",
            tmp_path / "t",
            "--level",
            1,
            "--filter",
            "mine:bright",
            "--min-fraction",
            0.01,
            "--no-label",
        ),
        PYTHONPATH=str(tmp_path),
    )
    assert nt.Index.from_parquet(tmp_path / "t").slides["filter"][0].as_py() == "mine:bright"
