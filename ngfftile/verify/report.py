"""What a verification found: errors as data, each with its place."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

_SHARD = re.compile(r"(?P<level>\d+)/(?:c/)?(?P<place>\d+(?:/\d+)+)$")
MOST_LISTED = 20  # findings that are printed; JSON has all


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Parameters
    ----------
    kind
        ``missing``, ``size``, ``checksum``: an object against the manifest. ``structure``: metadata against the
        specification, or themselves. ``chunk``: does not decode. ``level``: differs from the mean of the finer one.
        ``source``: differs from the source.
    place
        Key of the object, or what else is meant.
    what
        Found, and expected.
    level
        Of the pyramid; None where it is none of its pixels.
    chunks
        Rows and columns of the level's chunks that are hit, as far as known.
    """

    kind: str
    place: str
    what: str
    level: int | None = None
    chunks: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        at = f" (level {self.level})" if self.level is not None else ""
        hit = ", ".join(f"{row},{col}" for row, col in self.chunks[:6]) + (", ..." if len(self.chunks) > 6 else "")
        return f"{self.kind:<10} {self.place}{at}{f', chunk {hit}' if hit else ''}: {self.what}"


def level_of(key: str) -> int | None:
    """The level that an object of pixels belongs to, by its key."""
    found = _SHARD.match(key)
    return int(found["level"]) if found else None


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` did and found.

    Parameters
    ----------
    url
        The store.
    findings
        What is wrong; none where all is well.
    notes
        What is not wrong, but limits what was proved.
    objects, bytes
        Compared with the manifest.
    pixels
        Decoded, of all levels.
    compared
        Pixels of level 0 compared with the source's.
    seconds
        It took.
    """

    url: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    objects: int = 0
    bytes: int = 0
    pixels: int = 0
    compared: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self) | {"ok": self.ok}

    def __str__(self) -> str:
        head = f"{self.url}: {'good' if self.ok else _counted(len(self.findings))}"
        done = f"  {self.objects} objects, {self.bytes / 1e6:.1f} MB; {self.pixels / 1e6:.1f} MP decoded"
        done += f"; {self.compared / 1e6:.1f} MP compared with the source" if self.compared else ""
        lines = [f"  {finding}" for finding in self.findings[:MOST_LISTED]]
        if len(self.findings) > MOST_LISTED:
            lines.append(f"  and {len(self.findings) - MOST_LISTED} more: --json lists all")
        return "\n".join(
            [head, f"{done}; {self.seconds:.1f} s", *lines, *(f"  note       {note}" for note in self.notes)]
        )


def _counted(count: int) -> str:
    return "1 finding" if count == 1 else f"{count} findings"
