"""What an installation costs: megabytes in a fresh environment, and the time to import and to print the help.

Needs the package index. Dependencies come from wheels only, so that a missing one is an error, not a compilation.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distributions
from pathlib import Path

from common import HERE, Figure, show, workspace

RUNS = 5
_INSTALLER = ("pip", "setuptools")


def install(folder: Path) -> Path:
    """Build our wheel, and install it into a fresh environment without extras; returns the environment."""
    home, wheels, env = HERE.parent, folder / "wheels", folder / "env"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", wheels, home], check=True)
    subprocess.run([sys.executable, "-m", "venv", env], check=True)
    constraints = home / "constraints.txt"
    (wheel,) = wheels.glob("ngfftile-*.whl")
    pip = [program(env, "python"), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*pip, "--only-binary", ":all:", "-c", constraints, wheel], check=True)
    return env


def program(env: Path, name: str) -> Path:
    """Where an environment keeps a program."""
    return Path(sysconfig.get_path("scripts", "venv", {"base": str(env), "platbase": str(env)})) / name


def packages(site: Path) -> dict[str, int]:
    """Bytes of each installed package, by its own list of files; the installer left out."""
    found = {}
    for one in distributions(path=[str(site)]):
        paths = [Path(str(one.locate_file(file))) for file in one.files or ()]
        found[one.metadata["Name"]] = sum(path.stat().st_size for path in paths if path.is_file())
    return {name: size for name, size in found.items() if name not in _INSTALLER}


def seconds(command: list[str | Path]) -> float:
    """Median wall time of a whole process, after one run that warms the disk."""
    times = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def measure(folder: Path) -> list[Figure]:
    """All figures; prints nothing."""
    env = install(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(env), "platbase": str(env)}))
    total = sum(p.stat().st_size for p in site.rglob("*") if p.is_file() and not p.is_symlink())
    sizes = packages(site)
    installer = sum(
        p.stat().st_size for name in _INSTALLER for top in site.glob(f"{name}*") for p in top.rglob("*") if p.is_file()
    )
    python = program(env, "python")
    figures = [
        Figure("installed, without extras", (total - installer) / 1e6, "MB", "< 800", f"{len(sizes)} packages, wheels"),
        Figure("import ngfftile", seconds([python, "-c", "import ngfftile"]), "s", "< 0.3", "a whole process; lazy"),
        Figure(
            "  and ngfftile.convert", seconds([python, "-c", "import ngfftile as n; n.convert"]), "s", "", "loads it"
        ),
        Figure("  python alone", seconds([python, "-c", "pass"]), "s"),
        Figure("ngfftile --help", seconds([program(env, "ngfftile"), "--help"]), "s", "< 0.5", "a whole process"),
    ]
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:10]
    return figures + [Figure(f"  {name}", size / 1e6, "MB") for name, size in largest]


if __name__ == "__main__":
    with workspace() as place:
        show(measure(place))
