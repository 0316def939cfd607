"""Pictures of a race: where the runners went, how their loss fell, and how their effective learning rates changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np

from .animation import animate, frames
from .findings import came_down, for_good, length, listed
from .portraits import portrait
from .race import Path, Race
from .report import Picture
from .style import Look, entitle, house, legend, looks, new_figure, overlaid, save
from .surfaces import Array
from .terrain import MANY, WIDTH, backdrop, draw_ground, draw_path, fit, head, shape, values_at, view

__all__ = ["animate", "draw", "frames", "portrait"]

NEAR = 0.01  # the share of the starting height that counts as nearly down
DEEP = 1e-10  # below this share of the starting height nobody needs to look
HIGH = 100.0  # above this multiple of it neither
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}


@dataclass(frozen=True)
class Drawing:
    """A figure that is not yet in a file."""

    name: str
    figure: Any
    title: str
    alt: str
    ratio: float | None = None
    """Height over width of a panel, where it is to scale."""


def draw(race: Race, folder: File, formats: Iterable[str] = ("png", "svg")) -> list[Picture]:
    """Draw a race into files of a folder, which is made if missing.

    Parameters
    ----------
    race : Race
        A scene that has been run.
    folder : pathlib.Path
        Where the files go: ``NAME-paths.png`` and so on, with the scene's name.
    formats : iterable of str, optional
        The endings of the files.

    Returns
    -------
    list of Picture
        The paths; each path in a panel of its own where the scene asks for it; the loss against the step; the effective
        learning rates against the step, where any of them changes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    formats = tuple(formats)
    pictures = []
    with house():
        for sketch in (paths, panels, losses, rates):
            drawing = sketch(race)
            if drawing is not None:
                entitle(drawing.figure, drawing.title)
                if drawing.ratio is not None:
                    fit(drawing.figure, drawing.ratio)
                files = save(drawing.figure, folder / f"{race.scene.name}-{drawing.name}", formats, drawing.title)
                pictures.append(Picture(files, drawing.title, drawing.alt))
    return pictures


# --- where they went


def paths(race: Race) -> Drawing:
    """Draw all paths in one window; on the curve of a function of one variable each in its own."""
    figure, places, found = backdrop(race)
    for name, path in race.paths.items():
        draw_path(places[name], path, found[name], race.scene.surface)
    ground = "on its curve" if race.scene.surface.dimensions == 1 else "on the contours of the surface"
    alt = f"The ways of {_names(race)} {ground}. {_ends(race)}"
    return Drawing("paths", figure, race.headline, alt, _ratio(race))


def panels(race: Race) -> Drawing | None:
    """Draw each path in a panel of its own, and all of them in the last one if a place is left over."""
    surface, found = race.scene.surface, looks(path.runner for path in race.paths.values())
    if not race.scene.panels or surface.dimensions == 1 or len(found) < 2:
        return None
    window = view(race)
    columns = 2 if shape(window) < 0.6 or len(found) <= 4 else 4
    lines = -(-len(found) // columns)
    figure = new_figure(WIDTH, 0.7 + lines * (0.35 + shape(window) * (WIDTH - 0.7) / columns))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    spare = grid.flat[len(found) :]
    for axes, (name, path) in zip(grid.flat, race.paths.items(), strict=False):
        draw_ground(axes, race.scene, window, 180 // columns)
        draw_path(axes, path, found[name], surface)
        head(axes, name, found[name])
    for axes in spare[:1]:
        draw_ground(axes, race.scene, window, 180 // columns)
        axes.set_title("all")
        for path, look in zip(race.paths.values(), overlaid(found).values(), strict=True):
            draw_path(axes, path, look, surface)
    for axes in spare[1:]:
        axes.set_visible(False)
    for axes in grid.flat:
        axes.locator_params(nbins=5)
        axes.label_outer()
    alt = f"One panel for each of {_names(race)}. {_ends(race)}"
    return Drawing("panels", figure, _lengths(race), alt, _ratio(race))


def _ratio(race: Race) -> float | None:
    return None if race.scene.surface.dimensions == 1 else shape(view(race))


def _lengths(race: Race) -> str:
    """Return who goes the longest and who the shortest way, among those who get somewhere."""
    with np.errstate(over="ignore"):  # far outside the window
        ways = {path.name: length(path) for path in race.paths.values() if came_down(race, path)}
    if len(ways) < 2:
        return race.headline
    far, near = max(ways, key=ways.__getitem__), min(ways, key=ways.__getitem__)
    told = f"{far} goes the longest way, {ways[far]:.3g}; {near} the shortest, {ways[near]:.3g}"
    missing = [name for name in race.paths if name not in ways]
    if missing:
        who = listed(missing) if len(missing) <= 2 else f"{len(missing)} others"
        told += f"; not yet down: {who}"
    return told


def _names(race: Race) -> str:
    return listed(list(race.paths))


def _ends(race: Race) -> str:
    """Return where each one ended, in words."""
    said = []
    for path in race.paths.values():
        where = ", ".join(f"{number:.2g}" for number in path.points[-1]) if len(path.points) else "nowhere"
        said.append(f"{path.name} at ({where})" if path.finite else f"{path.name} leaves the finite numbers")
    return f"After {race.scene.steps} steps: {'; '.join(said)}."


# --- the loss


def losses(race: Race) -> Drawing:
    """Draw the height above the minimum against the step, and against the samples seen where these differ."""
    scene = race.scene
    found = looks(path.runner for path in race.paths.values())
    figure = new_figure(WIDTH, 3.6)
    sampled = scene.samples is not None
    by_samples = sampled and len({path.runner.batch_size for path in race.paths.values()}) > 1
    window = max(scene.steps // 50, 1) if sampled and scene.steps > MANY else 1  # else noise hides the curves
    grid = figure.subplots(1, 1 + by_samples, sharey=True, squeeze=False)[0]
    drawn = {}
    for name, path in race.paths.items():
        heights = smoothed(above(path, race), window)
        steps = np.arange(len(path.losses) - len(heights), len(path.losses))
        drawn[name] = _curve(grid[0], steps, heights, found[name])
        if by_samples:
            seen = steps > 0
            _curve(grid[1], path.samples[steps[seen]], heights[seen], found[name])
    grid[0].set_xlabel("step")
    mean = f", mean of {window} steps" if window > 1 else ""
    grid[0].set_ylabel(("loss above the minimum" if scene.surface.minima else "loss") + mean)
    if by_samples:
        grid[1].set_xlabel("samples seen")
        grid[1].set_xscale("log")
    _scale(grid[0], race)
    order = sorted(drawn, key=lambda name: -_last(race.paths[name]))  # as the ends of the curves are
    legend(grid[-1], [drawn[name] for name in order], order, **BESIDE)
    title = _first_down(race) if scene.surface.minima else _lowest(race)
    return Drawing("loss", figure, title, f"Loss against the step for {_names(race)}. {_final(race)}")


def above(path: Path, race: Race) -> Array:
    """Return the height above the minimum, the loss itself where there is none; no numbers that axes cannot take."""
    return np.clip(path.losses - (race.scene.surface.floor if race.scene.surface.minima else 0.0), -1e100, 1e100)


def smoothed(values: Array, window: int) -> Array:
    """Return the mean of each value and those before it, `window` in all, from where there are as many."""
    width = min(window, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid") if width > 1 else values


def _curve(axes: Any, at: Any, values: Array, look: Look) -> Any:
    """Draw a curve and return it."""
    many = len(values) > MANY
    style = {**look.line, "linewidth": 1.0} if many else look.line
    return axes.plot(at, values, rasterized=many, **style)[0]


def _start(race: Race) -> float:
    """Return the height of the start above the minimum."""
    with np.errstate(all="ignore"):
        return race.scene.surface.at(np.array(race.scene.start)) - race.scene.surface.floor


def _scale(axes: Any, race: Race) -> None:
    """Choose the scale: logarithmic above a minimum, else the heights of the window."""
    start = _start(race)
    if not race.scene.surface.minima:
        values = values_at(race.scene.surface, *np.meshgrid(*(np.linspace(*side, 51) for side in view(race))))
        if np.isfinite(values).any() and np.isfinite(start):
            axes.set_ylim(1.05 * float(np.nanmin(values)), 1.15 * max(start, 0.1))
        return
    if not any((above(path, race) > 0).any() for path in race.paths.values()):
        return  # all of them stay in the minimum
    axes.set_yscale("log")
    if np.isfinite(start) and start > 0:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, DEEP * start), min(high, HIGH * start))


def _last(path: Path) -> float:
    """Return the loss at the end, for sorting: endless if it left the finite numbers."""
    if not path.finite or not len(path.losses):
        return float("inf")
    return float(path.losses[-1])


def _first_down(race: Race) -> str:
    """Return who gets nearly down first, and who last; whoever swings or is thrown up again is not down."""
    limit = NEAR * _start(race)
    steps = {path.name: for_good(path, path.losses - race.scene.surface.floor <= limit) for path in race.paths.values()}
    there = sorted((step, name) for name, step in steps.items() if step is not None)
    if not there:
        return f"In {race.scene.steps} steps none stays below a hundredth of the starting height"
    first, last = there[0][0], there[-1][0]
    winners, losers = (listed([name for step, name in there if step == at]) for at in (first, last))
    said = [
        f"First to stay below a hundredth of the starting height: {winners}, after {first} "
        f"{'step' if first == 1 else 'steps'}"
    ]
    if last > first:
        said.append(f"last: {losers}, after {last}")
    missing = [name for name, step in steps.items() if step is None]
    if missing:
        who = listed(missing) if len(missing) <= 2 else f"{len(missing)} others"
        said.append(f"not in {race.scene.steps}: {who}")
    return "; ".join(said)


def _lowest(race: Race) -> str:
    ends = {path.name: path.losses[-1] for path in race.paths.values() if path.finite and len(path.losses)}
    if not ends:
        return "None stays within the finite numbers"
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if not any(came_down(race, race.paths[name]) for name in ends):
        return f"In {race.scene.steps} steps none gets clearly below the start"
    if low == high:
        return f"{low} ends at a loss of {ends[low]:.3g}"
    return f"Lowest after {race.scene.steps} steps: {low}, at {ends[low]:.3g}; highest: {high}, at {ends[high]:.3g}"


def _final(race: Race) -> str:
    said = [f"{path.name} {path.losses[-1]:.3g}" for path in race.paths.values() if len(path.losses)]
    return f"At the end: {', '.join(said)}."


# --- the effective learning rate


def rates(race: Race) -> Drawing | None:
    """Draw the effective learning rate of each coordinate against the step; None if nobody's changes."""
    changes = {path.name: _change(path) for path in race.paths.values()}
    if not any(abs(np.log(change)).max() > 0.01 for change in changes.values() if len(change)):
        return None
    found = overlaid(looks(path.runner for path in race.paths.values()))  # constants may be the same
    dimensions = race.scene.surface.dimensions
    figure = new_figure(WIDTH, 3.4)
    grid = figure.subplots(1, dimensions, sharey=True, squeeze=False)[0]
    for column, (axes, coordinate) in enumerate(zip(grid, race.scene.surface.variables, strict=True)):
        drawn = [
            _curve(axes, np.arange(1, len(path.rates) + 1), path.rates[:, column], found[name])
            for name, path in race.paths.items()
        ]
        axes.set(title=f"along {coordinate}", xlabel="step", yscale="log")
    grid[0].set_ylabel("effective learning rate")
    legend(grid[-1], drawn, list(race.paths), **BESIDE)
    alt = f"Effective learning rates of {_names(race)} against the step, one panel for each coordinate."
    return Drawing("rates", figure, _changes(changes), alt)


def _change(path: Path) -> Array:
    """Return what the rate of each coordinate has been multiplied by at the end."""
    found = []
    for column in path.rates.T:
        known = column[np.isfinite(column) & (column > 0)]
        if len(known):
            found.append(known[-1] / known[0])
    return np.array(found)


def _changes(changes: dict[str, Array]) -> str:
    """Return whose rate falls most and whose grows most."""
    told = {name: float(np.exp(np.log(change).mean())) for name, change in changes.items() if len(change)}
    down, up = min(told, key=told.__getitem__), max(told, key=told.__getitem__)
    said = []
    if told[down] < 0.99:
        said.append(f"that of {down} falls to {100 * told[down]:.2g} % of its first value")
    if told[up] > 1.01:
        said.append(f"that of {up} grows to {told[up]:.2g} times its first value")
    return "Effective learning rate: " + (", ".join(said) or "all come back to where they began")
