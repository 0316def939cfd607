"""What the pages say of all optimizers together, from the classes and the headers of their pages. Without Sphinx.

The header of ``docs/optimizers/NAME.md``::

    ---
    short: a step, in a few words (table of the index)
    year: when it was first described
    by: its authors
    new: what was new in it (table of the genealogy)
    idea: the same in three words (picture of the genealogy)
    family: gradient, direction, step size or both
    parents: the optimizers that it comes from, with commas between
    ---
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import library

import fastopt
from fastopt.declare import arrays_of
from fastopt.optimizer import Optimizer

FOLDER = Path(__file__).parents[1] / "optimizers"
FAMILIES = {
    "gradient": "The gradient alone", "direction": "Direction", "step size": "Step size", "both": "Both",
}  # fmt: skip


class Page(NamedTuple):
    """The header of a page, or a method that has no page of its own."""

    name: str
    file: str
    short: str
    year: int
    by: str
    new: str
    idea: str
    family: str
    parents: tuple[str, ...]


FIRST = Page("Gradient descent", "sgd", "", 1847, "Cauchy", "go down the gradient of all the data (full batch)",
             "all the data", "gradient", ())  # fmt: skip
AMSGRAD = Page("AMSGrad", "adam", "", 2018, "Reddi, Kale & Kumar", "the second moment never falls "
               "(`Adam(amsgrad=True)`)", "", "both", ("Adam",))  # fmt: skip


def page(name: str) -> Page:
    """The header of an optimizer's page; raises ValueError if the page or one of its lines is missing."""
    path = FOLDER / f"{name.lower()}.md"
    if not path.exists():
        raise ValueError(f"docs/optimizers/{path.name} is missing: every optimizer has a page")
    head = re.match(r"---\n(.*?)\n---\n", path.read_text("utf-8"), re.S)
    found = dict(re.findall(r"^(\w+): (.+)$", head[1] if head else "", re.M))
    wanted = [key for key in Page._fields if key not in ("name", "file")]
    if [*found] != wanted:
        raise ValueError(f"docs/optimizers/{path.name} has to begin with a header of these lines: {', '.join(wanted)}")
    if found["family"] not in FAMILIES:
        raise ValueError(f"docs/optimizers/{path.name}: family has to be one of {', '.join(FAMILIES)}")
    parents = tuple(found["parents"].split(", "))
    for parent in parents:
        if parent not in fastopt.OPTIMIZERS and parent != FIRST.name:
            raise ValueError(f"docs/optimizers/{path.name}: parents has {parent!r}, which is no optimizer")
    return Page(name, path.stem, found["short"], int(found["year"]), found["by"], found["new"], found["idea"],
                found["family"], parents)  # fmt: skip


def pages() -> list[Page]:
    """The headers of all optimizers."""
    return [page(name) for name in fastopt.OPTIMIZERS]


# --- Tables


def arrays(cls: type[Optimizer]) -> str:
    """How many state arrays an optimizer has."""
    least, most = len(arrays_of(cls, optional=False)), len(arrays_of(cls))
    return str(least) if least == most else f"{least} {'or' if most - least == 1 else 'to'} {most}"


def index() -> str:
    """The table of the index."""
    rows = [[f"[{p.name}]({p.file}.md)", p.short, arrays(fastopt.OPTIMIZERS[p.name]), str(p.year)] for p in pages()]
    return library.table(["", "a step, in short", "state", "since"], rows)


def contents() -> str:
    """The table of contents of the index, which is not shown."""
    return "\n".join(["```{toctree}", ":hidden:", "", *(p.file for p in pages()), "```"])


def genealogy() -> str:
    """Every method, in the order of the years."""
    rows = [[f"[{p.name}](optimizers/{p.file}.md)", str(p.year), f"{p.by}: {p.new}"]
            for p in sorted([FIRST, *pages(), AMSGRAD], key=lambda p: p.year)]  # fmt: skip
    return library.table(["", "year", "what was new"], rows)


def listed(names: Iterable[str]) -> str:
    """Names with commas and "and"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def descent() -> str:
    """The family tree in words, for those who do not see the picture."""
    tree = [FIRST, *pages()]
    children = {parent.name: [p.name for p in tree if parent.name in p.parents] for parent in tree}
    said = [f"From {parent} comes {listed(names)}." for parent, names in children.items() if names]
    return " ".join(["A family tree.", *said])


def families() -> str:
    """The families and their members."""
    rows = [[title, ", ".join(f"[{p.name}](optimizers/{p.file}.md)" for p in pages() if p.family == family)]
            for family, title in FAMILIES.items()]  # fmt: skip
    return library.table(["family", "optimizers"], rows)


def own_options() -> str:
    """The options that are fastopt's own, and the optimizers that have them."""
    rows = [["`maximize`, `flush_subnormal`", "every optimizer"]]
    for key in Optimizer.always_offered:
        having = [name for name, cls in fastopt.OPTIMIZERS.items()
                  if key in cls.hyperparameters and key in cls.always_offered]  # fmt: skip
        rows.append([f"`{key}`", listed(having)])
    return library.table(["option", "optimizers"], rows)


# --- The picture of the family tree

COLUMNS, MOST_COLUMNS = 4, 5


def places(tree: Iterable[Page]) -> dict[str, tuple[float, int]]:
    """Where each box stands: its column and row. Parents come before their children, wherever they are listed.

    A box stands below its parents, in the row after the last of them, or in the first row after that which has a place.
    """
    waiting = list(tree)
    found: dict[str, tuple[float, int]] = {}
    width = COLUMNS
    while waiting:
        ready = [p for p in waiting if all(parent in found for parent in p.parents)]
        if not ready:
            raise ValueError(f"these are their own ancestors: {listed(p.name for p in waiting)}")
        p = min(ready, key=lambda p: (depth(p, found), waiting.index(p)))
        waiting.remove(p)
        row = depth(p, found)
        if p.family == "gradient":
            found[p.name] = (COLUMNS / 2, row)
            continue
        above = [found[parent][0] for parent in p.parents]
        side = {"direction": 0.5, "step size": COLUMNS - 0.5}.get(p.family, sum(above) / max(len(above), 1))
        while True:
            free = [k + 0.5 for k in range(width) if (k + 0.5, row) not in found.values()]
            if free:
                break
            if width < MOST_COLUMNS:
                width += 1
            else:
                row += 1
        found[p.name] = (min(free, key=lambda x: (abs(x - side), -x)), row)
    return found


def depth(p: Page, found: dict[str, tuple[float, int]]) -> int:
    """The row below all parents."""
    return 1 + max((found[parent][1] for parent in p.parents), default=-1)
