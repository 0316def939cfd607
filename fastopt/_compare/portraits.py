"""One optimizer's picture: its way down a long valley, and its loss, with the others behind it in grey."""

from __future__ import annotations

from functools import cache
from pathlib import Path as File
from typing import Any

import numpy as np

from .findings import changes_of_sign
from .race import Path, Runner, Scene, run
from .rates import suited
from .style import entitle, house, look, new_figure, save
from .surfaces import SURFACES
from .terrain import WIDTH, draw_ground, draw_path, fit, shape

__all__ = ["portrait"]

STEPS = 60
WINDOW = ((-8.5, 3.5), (-3.0, 3.0))
NEAR = 0.01  # the share of the starting height that counts as arrived

_VALLEY = Scene(
    name="portrait",
    title="A long valley",
    story="",
    surface=SURFACES["ravine"],
    start=(-7.0, 2.0),
    steps=STEPS,
    runners=(),
    findings=lambda race: [],
    headline=lambda race: "",
)


def portrait(name: str, path: File) -> File:
    """Draw one optimizer on f(x, y) = x²/20 + y², those of the lecture notes in grey behind it.

    Parameters
    ----------
    name : str
        Its name in ``fastopt.OPTIMIZERS``.
    path : pathlib.Path
        The file; its ending says the format.

    Returns
    -------
    pathlib.Path
        The file.
    """
    from .landscapes import SEVEN

    own, others = _way(name), [_way(other) for other in SEVEN if other != name]
    path.parent.mkdir(parents=True, exist_ok=True)
    with house():
        figure = new_figure(WIDTH, 2.7)
        left, right = figure.subplots(1, 2, width_ratios=(5, 3))
        draw_ground(left, _VALLEY, WINDOW)
        own_look = look(name)
        for other in others:
            left.plot(*other.points.T, color="#A0A0A0", linewidth=0.7, zorder=2)
            right.plot(_heights(other), color="#B4B4B4", linewidth=0.9)
        draw_path(left, own, own_look, _VALLEY.surface)
        right.plot(_heights(own), color=own_look.color, linewidth=2)
        right.set(yscale="log", ylim=(1e-6, 30), xlabel="step", title="loss")
        right.minorticks_off()
        note = f"{own.runner.settings}; grey: {'the others' if name in SEVEN else 'the seven'} of the lecture notes"
        left.set_title(note, fontsize=8, color="#555555")
        title = _character(own)
        entitle(figure, title)
        fit(figure, shape(WINDOW))
        save(figure, path.with_suffix(""), (path.suffix[1:],), title)
    return path


@cache
def _way(name: str) -> Path:
    return run(_VALLEY, Runner(name, suited(name)))


def _heights(path: Path) -> Any:
    return np.where(path.losses > 0, path.losses, np.nan)


def _character(path: Path) -> str:
    """Return what is to be seen, in a sentence."""
    outside = np.flatnonzero(path.losses >= NEAR * path.losses[0])
    arrived = int(outside[-1]) + 1 if len(outside) else 0
    over = _crossings(path, arrived)
    times = {0: "without crossing the floor of the valley", 1: "crossing the floor of the valley once"}
    way = times.get(over, f"crossing the floor of the valley {over} times")
    if not path.finite:
        return f"{path.name} leaves the finite numbers, {way}"
    if arrived > STEPS:
        left = f"{path.losses[-1] / path.losses[0]:.0%} of the starting height"
        return f"{path.name} is at {left} after {STEPS} steps, {way}"
    return f"{path.name} is down to a hundredth of the starting height after {arrived} steps, {way}"


def _crossings(path: Path, until: int) -> int:
    """Return how often y changed sides on the way down, as far as the eye can see."""
    y = path.points[: until + 1, 1]
    return changes_of_sign(y[np.abs(y) > 0.05])
