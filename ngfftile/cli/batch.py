"""Many inputs, one after the other: a bad one never stops the rest, and a summary says what happened to each."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ngfftile.errors import ExistsError, MissingError, NgfftileError, OptionError
from ngfftile.locations import local_path

out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
STORE = ".zarr"
# What a folder is searched for. A file that is named is tried whatever its name.
_SLIDES = frozenset(
    [".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".qptiff", ".czi", ".svslide"]
)
# Beside slides they are thumbnails and labels, alone they are slides.
_PICTURES = frozenset([".png", ".jpg", ".jpeg", ".jp2", ".webp", ".bmp", ".gif"])


def is_store(path: str) -> bool:
    """Whether a folder looks like an OME-Zarr store."""
    folder = Path(path)
    return folder.is_dir() and any((folder / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))


def inputs(given: list[str], *, stores: bool) -> list[str]:
    """Files, folders and globs as a list of slides; names that lead nowhere are kept, for the error they deserve."""
    found: list[str] = []
    for name in given:
        pattern = any(c in name for c in "*?[") and not Path(name).exists()
        matches = sorted(glob.glob(name)) if pattern else [name]  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise MissingError("no file matches", name, "Check the pattern.")
        for match in matches:
            found += _folder(Path(match), stores=stores) if Path(match).is_dir() else [match]
    return list(dict.fromkeys(found))


def _folder(folder: Path, *, stores: bool) -> list[str]:
    if folder.suffix == STORE or is_store(str(folder)):
        return [str(folder)]
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if stores:
        found = [str(p) for p in inside if is_store(str(p))]
    else:
        dicom = any(p.suffix.lower() == ".dcm" for p in inside)
        # A folder beside an MRXS or VMS slide holds its data; folders are slides only where they hold DICOM.
        found = [str(folder)] if dicom else []
        found += [str(p) for p in inside if p.suffix.lower() in _SLIDES or (p.is_dir() and any(p.glob("*.dcm")))]
        # Stores beside slides are what earlier runs made of them; alone they are what is to be converted.
        found = found or [str(p) for p in inside if is_store(str(p))]
        found = found or [str(p) for p in inside if p.suffix.lower() in _PICTURES]
    if not found:
        raise MissingError(f"no {'stores' if stores else 'slides'} in this folder", str(folder), "Check the path.")
    return found


def targets(names: list[str], dest: str) -> dict[str, str]:
    """The store that each source becomes."""
    dest = str(local_path(dest))
    if dest.rstrip("/").endswith(STORE):
        if len(names) > 1:
            raise OptionError(f"{len(names)} sources but one store", dest, "Give a folder as the output.")
        return {names[0]: dest}
    Path(dest).mkdir(parents=True, exist_ok=True)
    found = {source: str(Path(dest) / f"{_stem(source)}.ome{STORE}") for source in names}
    twice = [name for name in found.values() if list(found.values()).count(name) > 1]
    if twice:
        raise ExistsError("two sources would become this store", twice[0], "Convert them into different folders.")
    return found


def _stem(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return path.name.removesuffix(STORE).removesuffix(".ome")
    return path.stem.removesuffix(".ome")


class _Rate(ProgressColumn):
    """What a second brings, in the batch's unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = (task.speed or 0) / (1e6 if unit == "MP" else 1)
        return Text(f"{speed:6.1f} {unit}/s" if task.speed else "")


@dataclass(frozen=True, slots=True)
class _Outcome:
    line: str
    code: int


def batch(
    names: list[str],
    one: Callable[[str, Callable[[int, int], None]], str],
    unit: str,
    log_file: Path | None,
    *,
    quiet: bool = False,
) -> None:
    """Do one slide after the other; a bad one never stops the rest. Exits 1 or 2 if any failed."""
    outcomes = []
    if log_file is not None:
        log_file.open("a", encoding="utf-8").close()  # what cannot be written shows now, not after the work
    for name in names:
        with _progress(Path(name).name, unit) as report:
            outcome = _attempt(name, one, report)
        outcomes.append(outcome)
        if not quiet or outcome.code == 2:
            (err if outcome.code else out).print(("[red]failed[/] " if outcome.code else "") + escape(outcome.line))
        if log_file is not None:
            with log_file.open("a", encoding="utf-8") as log:
                log.write(("failed " if outcome.code else "") + outcome.line + "\n")
    failed = [outcome for outcome in outcomes if outcome.code]
    if len(names) > 1 and not quiet:
        out.print(f"{len(names) - len(failed)} of {len(names)} slides done, {len(failed)} failed")
    if failed:
        # One slide: its own code. Of many, those that are done are good: the data of the others are bad.
        raise typer.Exit(failed[0].code if len(names) == 1 else 1)


def _attempt(
    name: str, one: Callable[[str, Callable[[int, int], None]], str], report: Callable[[int, int], None]
) -> _Outcome:
    try:
        return _Outcome(one(name, report), 0)
    except NgfftileError as error:
        return _Outcome(str(error), error.exit_code)
    except KeyboardInterrupt:
        err.print(f"stopped at {escape(name)}; the same command goes on from here")
        raise typer.Exit(130) from None
    except Exception as error:  # noqa: BLE001 (a filter's or a plug-in's own failure fails its slide, not the rest)
        if not isinstance(error, OSError):
            return _Outcome(f"{name}: {type(error).__name__}: {error}", 1)
        # A full disk or a folder without leave to write: the system's own words, and what to do.
        place = error.filename or name
        return _Outcome(f"{place}: {error.strerror or error}. Mend it and run the same command again.", 1)


@contextmanager
def _progress(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    if not err.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        task = bar.add_task(escape(name), total=None, unit=unit)
        yield lambda done, total: bar.update(task, completed=done, total=total)
