"""The ground of a picture, and paths drawn on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .race import Path, Race, Scene
from .style import Look, lay_out, legend, looks, new_figure, overlaid
from .surfaces import Array, Surface, Window

__all__ = [
    "backdrop",
    "draw_ground",
    "draw_path",
    "fit",
    "head",
    "levels",
    "on_paper",
    "shape",
    "values_at",
    "view",
    "within",
]

WIDTH = 7.5  # inches; 1200 pixels, shown at 800 or so
GRID = 111  # points along each side of the contours of a large panel
LEVELS = 12  # even, so that a saddle has the line through its middle
TINTS = ("#FFFFFF", "#DCDCDC")
LINES = "#BEBEBE"
MANY = 1000  # points of one line; more are small as pixels, and large as strokes
DOTS = 105  # the most points that get a dot each
BLACK: dict[str, Any] = {"markeredgecolor": "black", "linestyle": ""}
START = {**BLACK, "marker": "o", "markersize": 7, "markerfacecolor": "white"}
MINIMUM = {**BLACK, "marker": "x", "markersize": 11, "markeredgewidth": 1.3}
OUTWARDS = (90, 180, -90, 0)  # how a triangle is turned to point left, down, right, up


# --- the figure without the paths


def backdrop(race: Race) -> tuple[Any, dict[str, Any], dict[str, Look]]:
    """Return a figure with all but the paths, the axes that each runner's path goes into, and its look there."""
    scene, found = race.scene, looks(path.runner for path in race.paths.values())
    window = view(race)
    if scene.surface.dimensions == 1:
        return (*_curves(scene, window, found), found)
    found = overlaid(found)
    height = shape(window)
    beside = height > 0.6
    figure = new_figure(WIDTH, 0.8 + 5.3 * height if beside else 1.4 + 6.7 * height)
    axes = figure.subplots()
    draw_ground(axes, scene, window)
    axes.set_title(f"${scene.surface.formula}$", fontsize=8, color="#555555", pad=11)
    leaving = any(len(within(on_paper(path, scene.surface), window)[1]) for path in race.paths.values())
    handles, labels = _signs(found, scene.surface, leaving)
    if beside:
        legend(axes, handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1))
    else:
        legend(figure, handles, labels, loc="outside lower center", ncols=_columns(labels))
    return figure, dict.fromkeys(found, axes), found


def _curves(scene: Scene, window: Window, found: Mapping[str, Look]) -> tuple[Any, dict[str, Any]]:
    """Return the same for a function of one variable: a panel for each runner."""
    columns = next(n for n in (1, 2, 3, 4) if n * n >= len(found) or n == 4)
    lines = -(-len(found) // columns)
    figure = new_figure(WIDTH, 0.9 + lines * (2.4 if columns < 3 else 1.8))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, look) in zip(grid.flat, found.items(), strict=False):
        draw_ground(axes, scene, window)
        head(axes, name, look)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes in grid.flat:
        axes.label_outer()
    legend(figure, *_signs({}, scene.surface, False), loc="outside lower right", ncols=2)
    figure.supxlabel(f"${scene.surface.formula}$", fontsize=8, color="#555555", x=0.01, ha="left")
    return figure, dict(zip(found, grid.flat, strict=False))


def head(axes: Any, name: str, look: Look) -> None:
    """Write a runner's name above its panel, beside its line and mark: pale colours would not do for letters."""
    handles, labels = [_sign(look)], [name]
    legend(axes, handles, labels, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.1, borderaxespad=0.2)


def fit(figure: Any, ratio: float) -> None:
    """Make a figure as high as it needs to be for panels of that height over width, whatever stands around them."""
    for _ in range(2):  # the labels of the axes may change with the height
        lay_out(figure)
        panels = [axes for axes in figure.axes if axes.get_visible()]
        lines = panels[0].get_gridspec().nrows
        box = panels[0].get_position()
        width, height = figure.get_size_inches()
        figure.set_figheight(height + lines * (ratio * box.width * width - box.height * height))


def _sign(look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{**look.mark, **look.trail})


def _signs(found: Mapping[str, Look], surface: Surface, leaving: bool) -> tuple[list[Any], list[str]]:
    """Return handles and labels of a legend for paths: the runners, then what the other marks mean."""
    from matplotlib.lines import Line2D

    signs = [(_sign(look), name) for name, look in found.items()]
    signs.append((Line2D([], [], **START), "start"))
    if surface.minima:
        signs.append((Line2D([], [], **MINIMUM), "minimum" if len(surface.minima) == 1 else "minima"))
    if leaving:
        signs.append((Line2D([], [], **_arrow("#666666", 2)), "leaves the window"))
    return [sign for sign, _ in signs], [label for _, label in signs]


def _columns(labels: list[str]) -> int:
    """Return how many columns of a legend fit under a figure."""
    widest = 0.55 + 0.08 * max(map(len, labels))
    return max(1, min(len(labels), int(WIDTH / widest)))


# --- the window


def view(race: Race) -> Window:
    """Return the part of the surface's window in which something happens: paths, start and minima, and some room."""
    surface, start = race.scene.surface, np.array(race.scene.start)
    low, high = np.array(surface.window, np.float64).T
    low, high = np.minimum(low, start), np.maximum(high, start)
    points = np.concatenate([start[None], *(np.array(at)[None] for at in surface.minima), *_points(race)])
    inside = np.clip(points, low, high)
    first, last = inside.min(axis=0), inside.max(axis=0)
    # At least so much of each side: of a saddle, which has no minimum, more, or its form is not seen.
    least = (0.35 if surface.minima else 0.8) * (high - low)
    room = np.maximum(0.12 * (last - first), (least - (last - first)) / 2)
    return tuple(zip(np.maximum(first - room, low).tolist(), np.minimum(last + room, high).tolist(), strict=True))


def _points(race: Race) -> list[Array]:
    return [path.points for path in race.paths.values()]


def shape(window: Window) -> float:
    """Return height over width of the drawing: true to scale as long as that makes no strip or tower of it."""
    (left, right), (low, high) = window
    return float(np.clip((high - low) / (right - left), 0.36, 1.1))


# --- the ground


def draw_ground(axes: Any, scene: Scene, window: Window, grid: int = GRID) -> None:
    """Draw contours in light grey, or the curve of a function of one variable; start and minima."""
    surface = scene.surface
    names = surface.variables
    axes.set_xlim(*window[0])
    axes.set_xlabel(names[0])
    if surface.dimensions == 1:
        x = np.linspace(*window[0], 301)
        axes.plot(x, values_at(surface, x), color="#AAAAAA", linewidth=1.4, zorder=1)
        axes.set_ylabel(f"f({names[0]})")
        axes.margins(y=0.14)  # the cross of the minimum stands on the lowest point
    else:
        axes.set_ylim(*window[1])
        axes.set_ylabel(names[1])
        _draw_contours(axes, surface, window, grid)
    for marks, places in ((MINIMUM, surface.minima), (START, (scene.start,))):
        for at in places:
            height = () if surface.dimensions == 2 else (values_at(surface, np.array(at[0])),)
            axes.plot(*([number] for number in (*at, *height)), **marks, zorder=2.5 if marks is MINIMUM else 3.5)


def _draw_contours(axes: Any, surface: Surface, window: Window, grid: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    x, y = np.meshgrid(*(np.linspace(*side, grid) for side in window))
    heights = values_at(surface, x, y) - surface.floor
    finite = heights[np.isfinite(heights)]
    if not finite.size:  # a start so far outside that there is nothing to see
        return
    at = levels(finite, bool(surface.minima))
    tints = LinearSegmentedColormap.from_list("tints", TINTS)(np.linspace(0, 1, len(at) + 1))
    axes.contourf(x, y, heights, at, colors=tints, extend="both", zorder=0)
    axes.set_rasterization_zorder(0.25)  # areas of one tint are small as pixels, and large as outlines
    axes.contour(x, y, heights, at, colors=LINES, linewidths=0.5, linestyles="-", zorder=0.5)


def values_at(surface: Surface, *at: Array) -> Array:
    """Return values, NaN where they are larger than what can be drawn."""
    with np.errstate(all="ignore"):
        values = np.asarray(surface.value(*at), np.float64)
        return np.where(np.abs(values) < 1e100, values, np.nan)


def levels(heights: Array, has_minimum: bool) -> Array:
    """Return at which heights above the minimum contours show the form of a surface.

    Evenly on both sides of zero where there is no minimum; by powers of ten where the walls are so high that the valley
    would have no line; else closer together towards the minimum, so that a parabola has them at even distances.
    """
    top = float(np.max(np.abs(heights)))
    if not has_minimum:
        return np.linspace(-top, top, LEVELS + 1)[1:-1]
    if top > 8 * np.median(heights):
        low = np.log10(max(np.quantile(heights, 0.01), 1e-6 * top))
        return np.asarray(10 ** np.linspace(low, np.log10(top), LEVELS)[:-1])
    return top * (np.arange(1, LEVELS) / LEVELS) ** 2


# --- the paths


def draw_path(axes: Any, path: Path, look: Look, surface: Surface) -> None:
    """Draw where a runner went, a dot for each step where they are not too many, and its mark where it ended."""
    points = on_paper(path, surface)
    window = (axes.get_xlim(), axes.get_ylim())
    pieces, exits = within(points, window)
    axes.plot(*pieces.T, **look.trail, alpha=0.9, solid_joinstyle="round", zorder=3, rasterized=len(points) > MANY)
    if len(points) <= DOTS:
        axes.plot(*points.T, ".", color=look.color, markersize=4, zorder=3)
    for place in exits[:1]:
        axes.plot(*place[:, None], **_arrow(look.color, _side(place, window)), clip_on=False, zorder=5)
    if path.finite:
        axes.plot(*points[-1:].T, **look.mark, zorder=4)


def on_paper(path: Path, surface: Surface) -> Array:
    """Return the points in the plane of the drawing; on the curve for a function of one variable."""
    points = np.clip(path.points, -1e100, 1e100)  # beyond that, differences would overflow
    if surface.dimensions == 1:
        return np.column_stack([points[:, 0], np.clip(path.losses, -1e100, 1e100)])
    return points


def within(points: Array, window: Window) -> tuple[Array, Array]:
    """Return what of a path lies in the window, and the places where it leaves it.

    The path comes as points with a row of NaN between pieces, each cut off at the border.
    """
    if len(points) < 2:
        return points, points[:0]
    # Liang and Barsky: the share of each segment at which it enters and leaves the band of each coordinate.
    low, high = np.array(window, np.float64).T
    start, move = points[:-1], np.diff(points, axis=0)
    with np.errstate(all="ignore"):
        to_low, to_high = (low - start) / move, (high - start) / move
    still = move == 0
    between = (start >= low) & (start <= high)
    enter = np.where(still, np.where(between, -np.inf, np.inf), np.minimum(to_low, to_high)).max(axis=1).clip(0, None)
    leave = np.where(still, np.where(between, np.inf, -np.inf), np.maximum(to_low, to_high)).min(axis=1).clip(None, 1)
    seen = enter <= leave
    first, last = (start + np.where(seen, share, 0)[:, None] * move for share in (enter, leave))
    last[leave == 1] = points[1:][leave == 1]  # to the last bit
    first, last = first.clip(low, high), last.clip(low, high)  # what is left of the direction from very far away
    gap = np.full_like(first, np.nan)
    pieces = np.stack([first, last, gap], axis=1)
    # Where one segment goes on from the last one there is no gap, and no point twice.
    goes_on = np.append(seen[1:] & seen[:-1] & (leave[:-1] == 1) & (enter[1:] == 0), False)
    kept = np.stack([seen & ~np.append(False, goes_on[:-1]), seen, seen & ~goes_on], axis=1)
    return pieces[kept], last[seen & (leave < 1)]


def _side(place: Array, window: Window) -> int:
    """Return which border a place lies on: 0 left, 1 below, 2 right, 3 above."""
    low, high = np.array(window, np.float64).T
    share = (place - low) / (high - low)
    return int(np.argmin(np.abs(np.append(share, 1 - share))))


def _arrow(color: str, side: int) -> dict[str, Any]:
    turned = (3, 0, OUTWARDS[side])
    return {"marker": turned, "markersize": 9, "linestyle": "", "markerfacecolor": color, "markeredgecolor": "white"}
