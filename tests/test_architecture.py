"""Imports run one way: down the floors of ARCHITECTURE.md; each library through its door only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ngfftile"
FLOORS = [
    {"errors"},
    {"geometry", "registry", "locations"},
    {"grid", "coverage", "resample", "pyramid", "ngff"},
    {
        "store",
        "codecs.protocol",
        "codecs.lossless",
        "codecs.jpeg",
        "codecs",
        "cluster",
        "omexml",
        "color",
    },
    {"remote"},
    {"shards", "draft"},
    {
        "sources.protocol",
        "sources.ifd",
        "sources.metadata",
        "sources.describe",
        "sources.keep",
        "sources.ome",
        "sources.pages",
        "sources.raster",
        "sources.series",
        "sources.orientation",
        "sources.samples",
        "sources.streams",
        "sources.tiff",
        "sources.child",
        "sources.openslide_child",
        "sources.openslide",
        "sources.picture",
        "sources.dicom_file",
        "sources.dicom",
        "sources.czi",
        "sources.bioio",
        "sources.ngff",
        "sources",
    },
    {"view", "filters", "picture", "labels"},
    {"lazy"},
    {"slide"},
    {"index"},
    {
        "writer.plan",
        "writer.graph",
        "writer.around",
        "writer",
        "tiler",
        "verify.report",
        "verify.objects",
        "verify.pixels",
        "verify",
        "synthetic.textures",
        "synthetic.field",
        "synthetic.svs",
        "synthetic",
    },
    {"__init__", "cli.apart", "cli.batch", "cli.facts", "cli.names", "cli"},
    {"__main__"},
]
DOORS = {
    "zarr": {"store", "remote", "shards"},
    "obstore": {"remote"},
    "tifffile": {"sources.tiff", "synthetic.svs"},
    "openslide": {"sources.openslide_child"},
    "dask": {"cluster", "lazy", "filters"},
    "distributed": {"cluster"},
    "dask_jobqueue": {"cluster"},
    "pyarrow": {"index", "tiler"},
    "typer": {"cli", "cli.batch"},
    "rich": {"cli", "cli.batch"},
}
OPTIONAL = {"distributed", "dask_jobqueue", "wsidicom", "pydicom", "pylibCZIrw", "bioio", "obstore"}
# One package of siblings may call each other: the shelves of one room.
SHELVES = {"codecs", "sources", "synthetic", "writer", "verify", "cli"}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__") if name != "__init__" else name, ast.parse(path.read_text())


MODULES = list(_modules())
EACH = pytest.mark.parametrize(("name", "tree"), MODULES, ids=[n for n, _ in MODULES])


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in (
                "ngfftile",
                "ngfftile.codecs",
                "ngfftile.sources",
                "ngfftile.synthetic",
                "ngfftile.writer",
                "ngfftile.verify",
                "ngfftile.cli",
            ):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor(name):
    return next((i for i, names in enumerate(FLOORS) if name in names), None)


def ours(name):
    """The module of ours that an import names, or None."""
    parts = name.split(".")[1:] if name.startswith("ngfftile") else []
    while parts and floor(".".join(parts)) is None:
        parts.pop()
    return ".".join(parts) or None


@EACH
def test_imports_point_down(name, tree):
    assert floor(name) is not None, f"{name} has no floor"
    for target in filter(None, map(ours, imports(tree))):
        same_shelf = name.split(".")[0] == target.split(".")[0] in SHELVES
        assert floor(target) < floor(name) or (same_shelf and target != name), f"{name} imports {target}"


@EACH
def test_libraries_come_through_their_doors(name, tree):
    for target in imports(tree):
        doors = DOORS.get(target.split(".")[0])
        assert doors is None or name in doors, f"{name} imports {target}"


@EACH
def test_no_import_inside_a_function_but_optional_packages(name, tree):
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            inside = {t.split(".")[0] for t in imports(function)}
            assert inside <= OPTIONAL, f"{name}.{function.name} imports {inside}"


def test_no_cycle_among_the_sources():
    edges = {n: {t for t in map(ours, imports(tree)) if t and t != n} for n, tree in MODULES}
    seen = set()

    def visit(name, path):
        assert name not in path, f"cycle: {path} {name}"
        if name not in seen:
            for target in edges.get(name, ()):
                visit(target, (*path, name))
            seen.add(name)

    for name in edges:
        visit(name, ())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"numpy", "zarr", "dask", "xarray", "tifffile", "obstore"}
    code = f"import ngfftile, sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
