"""Learning curves, drawn: a panel for each optimizer, and how long each takes to get to the loss."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .curves import WHOLE, headline, leaders, number, spread
from .learning import Curves
from .report import Picture
from .style import entitle, house, looks, new_figure, save

__all__ = ["draw"]

WIDTH = 7.5  # inches: 1200 pixels, shown at 800 or so
GREY = "0.82"
TIMES = (("steps", "steps", 1), ("seconds", "milliseconds", 1000))


def draw(curves: Curves, stem: Path, formats: tuple[str, ...]) -> list[Picture]:
    """Draw training loss, test score and time to the loss into files that begin with `stem`."""
    pictures = []
    sketches = {"curves": losses, "scores": scores, "time": times}
    if leaders(curves) is None:
        del sketches["time"]
    with house():
        for name, sketch in sketches.items():
            figure, title, alt = sketch(curves)
            entitle(figure, title)
            files = save(figure, stem.with_name(f"{stem.name}-{name}"), formats, title)
            pictures.append(Picture(files, title, alt))
    return pictures


def losses(curves: Curves) -> tuple[Any, str, str]:
    """Draw the training loss."""
    figure, panels = _panels(curves, "losses", "training loss")
    start = max(float(run.losses[0]) for run in curves.runs)
    lowest = min((float(value) for run in curves.runs for value in run.losses if value > 0), default=start)
    start = start if start > 0 else 1.0
    bottom, top = max(lowest, start * 1e-9) / 1.3, start * 1.5  # what diverges leaves through the ceiling
    for axes in panels:
        axes.set_yscale("log", subs=[2, 5])
        axes.set_ylim(bottom, top)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if top / bottom < 50 else "")
        axes.tick_params(axis="y", which="minor", labelsize=8)
        axes.axhline(curves.to_loss, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    alt = _alt(curves, "the training loss, on a logarithmic scale,", "A dotted line marks the loss that they race to.")
    return figure, headline(curves), alt


def scores(curves: Curves) -> tuple[Any, str, str]:
    """Draw what is got right of the test samples: accuracy, or R²."""
    what = "test accuracy" if curves.dataset.classes else "test R²"
    figure, panels = _panels(curves, "scores", what)
    bottom, top = _score_limits(curves)
    for axes in panels:
        axes.set_ylim(bottom, top)
        if curves.dataset.classes:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    return figure, _score_title(curves, what), _alt(curves, f"the {what}")


def times(curves: Curves) -> tuple[Any, str, str]:
    """Draw how many steps, and how many milliseconds, each optimizer takes to the loss."""
    order = sorted(curves.runners, key=lambda runner: median(curves.arrivals(runner.name)), reverse=True)
    figure = new_figure(WIDTH, 1.3 + 0.27 * len(order))
    named = looks(curves.runners)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (quantity, label, factor) in zip(panels, TIMES, strict=True):
        for row, runner in enumerate(order):
            values = [factor * value for value in curves.arrivals(runner.name, quantity)]
            _bar(axes, row, values, named[runner.name].color)
        axes.set_xlim(0, None)
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlabel(f"{label} to a training loss of {curves.to_loss:g}")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(order)), [runner.name for runner in order], parse_math=False)
    steps = (f"{runner.name} {spread(curves.arrivals(runner.name), WHOLE)}" for runner in reversed(order))
    alt = f"Bars, a dot for each seed. Steps to a training loss of {curves.to_loss:g}: {', '.join(steps)}."
    title = headline(curves, "seconds")
    title = title.replace("winner", "winner by the clock", 1) if title.startswith("No") else f"By the clock: {title}"
    return figure, title, alt


def _bar(axes: Any, row: int, values: list[float], color: str) -> None:
    """Draw the median as a bar, each seed as a dot on it, and say the median at the right."""
    arrived, middle = [value for value in values if value < math.inf], median(values)
    if middle < math.inf:
        axes.barh(row, middle, height=0.62, color=color, alpha=0.35)
    dots = {"color": color, "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.plot(arrived, [row] * len(arrived), "o", **dots)
    missing = f"{len(values) - len(arrived)} of {len(values)} never" if arrived else "never"
    said = [number(middle)] * (middle < math.inf) + [missing] * (len(arrived) < len(values))
    axes.text(1.03, row, "; ".join(said), transform=axes.get_yaxis_transform(), va="center", fontsize=8, color="0.25")


def _panels(curves: Curves, quantity: str, label: str) -> tuple[Any, list[Any]]:
    """Draw a panel for each runner, the others grey behind it, and one with all where there is room."""
    from matplotlib.ticker import MaxNLocator

    names = [runner.name for runner in curves.runners]
    columns = {1: 1, 2: 3, 5: 3, 6: 3}.get(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(WIDTH, 1.0 + 1.75 * rows)
    axes_of = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    bands, named = {name: curves.band(name, quantity) for name in names}, looks(curves.runners)
    for axes, name in zip(axes_of, names, strict=False):
        for other in names:
            if other != name:
                axes.plot(bands[other].epochs, bands[other].middle, color=GREY, linewidth=0.7, zorder=1)
        band, color = bands[name], named[name].color
        axes.fill_between(band.epochs, band.low, band.high, color=color, alpha=0.25, linewidth=0, zorder=2)
        axes.plot(band.epochs, band.middle, color=color, linewidth=1.5, zorder=3)
        axes.set_title(name, loc="left", fontweight="bold", color=color, parse_math=False)
        failed = sum(not run.learned for run in curves.of(name))
        if failed:
            said = "diverged" if failed == len(curves.seeds) else f"diverged with {failed} of {len(curves.seeds)} seeds"
            axes.text(0.5, 0.9, said, transform=axes.transAxes, ha="center", fontsize=8)
    used = axes_of[: len(names)]
    if len(names) > 1 and len(axes_of) > len(names):
        together = axes_of[len(names)]
        for name in names:
            together.plot(bands[name].epochs, bands[name].middle, **named[name].line | {"linewidth": 1.2})
        together.set_title("all", loc="left", fontweight="bold")
        used.append(together)
    for axes in axes_of[len(used) :]:
        axes.set_visible(False)
    for i, axes in enumerate(used):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelbottom=i + columns >= len(used))  # the lowest panel of each column
    band_note = f"band: lowest to highest of {len(curves.seeds)} seeds" if len(curves.seeds) > 1 else ""
    notes = [note for note in (band_note, "grey: the other optimizers" if len(names) > 1 else "") if note]
    figure.supxlabel(f"epoch ({'; '.join(notes)})" if notes else "epoch", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure, used


def _score_limits(curves: Curves) -> tuple[float, float]:
    """Return a range that shows how the curves end, and not only that all of them begin at chance."""
    ends = [float(run.scores[-1]) for run in curves.runs if run.learned and np.isfinite(run.scores[-1])]
    after_one = [float(np.interp(1, run.epochs, run.scores)) for run in curves.runs if run.learned]
    top = max([float(run.scores.max()) for run in curves.runs if run.learned], default=1.0)
    low = float(np.nanmedian(after_one)) if after_one else 0.0
    bottom = min([low, *ends])
    margin = 0.06 * (top - bottom) or 0.01
    return bottom - margin, top + margin


def _score_title(curves: Curves, what: str) -> str:
    """Return whether the optimizers differ in what they get right by more than the seeds do."""
    names = curves.learned
    if not names:
        return f"No optimizer learns {curves.dataset.name} with every seed"
    factor, form, unit = (100, "{:.1f}", " %") if curves.dataset.classes else (1, "{:.2f}", "")
    ends = {name: [factor * score for score in curves.finals(name, "scores")] for name in names}
    medians = {name: median(values) for name, values in ends.items()}
    worst, best = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    low, high = form.format(medians[worst]), form.format(medians[best])
    if low == high:
        return f"The {what} at the end is {low}{unit}" + f" with each of the {len(names)} optimizers" * (len(names) > 1)
    if max(max(values) - min(values) for values in ends.values()) >= medians[best] - medians[worst]:
        return f"The {what} ends at {low} to {high}{unit}: the seed makes more of a difference than the optimizer"
    return f"{best} ends with the best {what}, {high}{unit}, {worst} with the lowest, {low}{unit}"


def _alt(curves: Curves, what: str, more: str = "") -> str:
    names = ", ".join(runner.name for runner in curves.runners)
    return f"Curves of {what} against the epoch, a panel for each of {names}. {more}".strip()
