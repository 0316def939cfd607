"""The pictures of the pages, drawn when they are built, as SVG."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pages
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from fastopt.schedules import ReduceOnPlateau

mpl.rcParams.update({"svg.hashsalt": "fastopt", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # of Okabe and Ito: told apart by every eye
PALE = {BLUE: "#DCEBF5", ORANGE: "#FBEFD5", GREEN: "#D8F0E8", "#000000": "#EEEEEE"}


def save(figure: Figure, path: Path) -> None:
    """Write a picture that is the same at every build."""
    figure.savefig(path, facecolor="white", metadata={"Date": None})


def draw(name: str, path: Path) -> None:
    """Draw a picture by its name: one of ``DRAWINGS``, or "portrait-" and the name of an optimizer."""
    kind, _, optimizer = name.partition("-")
    if kind == "portrait":
        portrait(optimizer, path)
    else:
        DRAWINGS[name](path)


# --- Where optimizers come from


COLORS = {"gradient": "#000000", "direction": BLUE, "step size": ORANGE, "both": GREEN}
LANES = (("which direction", 0.5, BLUE), ("both", 2.0, GREEN), ("how long a step", 3.5, ORANGE))


def genealogy(path: Path) -> None:
    """Draw the family tree: from gradient descent by direction, by step size, and by both."""
    tree = [pages.FIRST, *pages.pages()]
    places = pages.places(tree)
    right = max(pages.COLUMNS, max(x for x, _ in places.values()) + 0.5)
    bottom = max(row for _, row in places.values())
    figure = Figure(figsize=(1.37 * (right + 0.08), 0.924 * (bottom + 1.14)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.04, right + 0.04), ylim=(bottom + 0.42, -0.72))
    axes.axis("off")
    for member in tree:
        box(axes, member, places[member.name])
        for parent in member.parents:
            arrow(axes, places[parent], places[member.name])
    for text, x, color in LANES:
        axes.text(x, -0.6, text, ha="center", va="center", color=color, weight="bold", size=10)
    save(figure, path)


def source(member: pages.Page) -> str:
    """Authors and year, as far as they fit in a box."""
    first, *others = re.split(", | & ", member.by)
    both = f"{first}, {', '.join(others)}, {member.year}" if others else f"{first}, {member.year}"
    if len(both) <= 20:
        return both
    return f"{first} et al., {member.year}" if len(others) > 1 else f"{first}, {member.year}"


def box(axes: Any, member: pages.Page, place: tuple[float, int]) -> None:
    """Draw an optimizer: its name, its source, its idea."""
    x, row = place
    color = COLORS[member.family]
    shape = FancyBboxPatch(
        (x - 0.42, row - 0.22), 0.84, 0.46, boxstyle="round,pad=0.04", mutation_aspect=1.3, facecolor=PALE[color],
        edgecolor=color, linewidth=1.2, zorder=3,
    )  # fmt: skip
    axes.add_patch(shape)
    for text, dy, size, style in (
        (member.name, -0.13, 8.4 if len(member.name) > 12 else 9.5, {"weight": "bold"}),
        (source(member), 0.03, 7.6, {}),
        (member.idea, 0.18, 7.6, {"style": "italic"}),
    ):
        axes.text(x, row + dy, text, ha="center", va="center", size=size, zorder=4, **style)


def arrow(axes: Any, start: tuple[float, int], end: tuple[float, int]) -> None:
    """Draw a line of descent, from the lower edge of a box to the upper edge of another."""
    (x0, y0), (x1, y1) = start, end
    aside = 0.12 * ((x1 > x0) - (x1 < x0))
    axes.add_patch(
        FancyArrowPatch(
            (x0 + 2.8 * aside, y0 + 0.28), (x1 - aside, y1 - 0.27), arrowstyle="-|>", mutation_scale=9, color="#555555",
            linewidth=1.1, shrinkA=0, shrinkB=0, zorder=2,
        )
    )  # fmt: skip


DRAWINGS: dict[str, Callable[[Path], None]] = {"genealogy": genealogy}


# --- Schedules

STEPS = 100


def schedule(values: Any, path: Path) -> None:
    """Draw a schedule over its first 100 steps."""
    figure = Figure(figsize=(3.3, 1.55), layout="constrained")
    axes = figure.subplots()
    axes.step(range(STEPS + 1), along(values), where="post", color=BLUE, linewidth=1.8)
    axes.set_xlim(0, STEPS)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    save(figure, path)


def along(values: Any) -> list[float]:
    """A schedule's values; `ReduceOnPlateau` is shown a metric that gets better for 30 steps, and then no more."""
    out = []
    for step in range(STEPS + 1):
        out.append(values(step))
        if isinstance(values, ReduceOnPlateau):
            values.update(max(0.0, 30.0 - step))
    return out


# --- Optimizers


def portrait(name: str, path: Path) -> None:
    """Draw how an optimizer moves."""
    from fastopt._compare.pictures import portrait as draw_portrait

    draw_portrait(name, path)
