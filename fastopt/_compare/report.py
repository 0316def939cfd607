"""What a run comes to, whatever was run: sections of text, table, findings and pictures, for terminal and page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .race import Finding

__all__ = ["Picture", "Section", "Table", "as_text", "numbers", "stem"]


@dataclass(frozen=True)
class Picture:
    """A drawing in one or more files."""

    files: tuple[Path, ...]
    """The same drawing in each format: PNG, SVG; or one GIF."""
    title: str
    """The finding that it shows, in a sentence."""
    alt: str
    """What is to be seen, for those who do not see it."""


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads; numbers to the right."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """One scene, or one data set."""

    name: str
    title: str
    story: str
    table: Table
    findings: tuple[Finding, ...] = ()
    pictures: tuple[Picture, ...] = ()
    files: tuple[Path, ...] = field(default=())
    """Others that belong to it: the paths as CSV."""


def stem(name: str) -> str:
    """Return what the files of a section begin with: letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.-]+", "-", name)


def numbers(table: Table) -> list[bool]:
    """Return of which columns the cells are numbers; words among them (never, diverged) do not matter."""
    return [any(re.match(r"[-+−]?\.?\d", row[k]) for row in table.rows) for k in range(len(table.heads))]


def as_text(table: Table) -> str:
    """Return a table as lines of text, numbers to the right."""
    rows = [table.heads, *table.rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.heads))]
    right = numbers(table)
    lines = (
        "  ".join(f"{cell:{'>' if r else '<'}{width}}" for cell, r, width in zip(row, right, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
