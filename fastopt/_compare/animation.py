"""The paths of a race as they grow, in a GIF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as File
from typing import Any

import numpy as np
import numpy.typing as npt

from .race import Race
from .report import Picture
from .results import whole_file
from .style import entitle, house, lay_out
from .terrain import backdrop, fit, on_paper, shape, view

__all__ = ["animate", "frames"]

Pixels = npt.NDArray[np.uint8]

MOST = 100  # frames
SECONDS = 7.0
REST = 2000  # milliseconds that the last frame stays
DPI = 100


def frames(race: Race) -> int:
    """Return how many frames `animate` draws."""
    return len(_shown(race))


def _shown(race: Race) -> list[int]:
    """Return the steps that have a frame: each of them, or the early ones closer together, when most happens."""
    last = max((len(path.points) for path in race.paths.values()), default=1) - 1
    if last < MOST:
        return list(range(max(last, 0) + 1))
    return sorted({round(last * (k / (MOST - 1)) ** 1.7) for k in range(MOST)})


def animate(race: Race, path: File, on_frame: Callable[[], Any] | None = None) -> Picture:
    """Draw the paths growing step by step, without end; the last frame stays for two seconds.

    Parameters
    ----------
    race : Race
        A scene that has been run.
    path : pathlib.Path
        The GIF.
    on_frame : callable, optional
        Called after each of the `frames`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = _shown(race)
    images = []
    with house():
        film = _Film(race)
        palette = _Palette(film.at(shown[-1]))
        for step in shown:
            images.append(palette.image(film.at(step)))
            if on_frame is not None:
                on_frame()
    each = int(1000 * np.clip(SECONDS / len(images), 0.05, 0.25))
    times = [each] * (len(images) - 1) + [REST]
    with whole_file(path) as file:
        images[0].save(file, save_all=True, append_images=images[1:], duration=times, loop=0)
    title = f"{race.scene.title}, step by step"
    return Picture((path,), title, f"An animation: the ways of {', '.join(race.paths)} growing over {shown[-1]} steps.")


class _Palette:
    """The colours of all frames: were there one palette for each, areas that stay the same would not be the same.

    The most frequent colours of one picture are taken exactly, for those of edges and letters the nearest of them;
    Pillow's own search for the nearest makes white grey.
    """

    def __init__(self, picture: Pixels) -> None:
        found, counts = np.unique(_packed(picture), return_counts=True)
        self.colors = _unpacked(found[np.argsort(-counts, kind="stable")[:255]])  # GIF keeps one for "as before"
        self.nearest = np.full(1 << 24, -1, np.int16)

    def image(self, picture: Pixels) -> Any:
        """Return the picture as an image of Pillow's in these colours."""
        from PIL import Image

        packed = _packed(picture)
        new = np.unique(packed[self.nearest[packed] < 0])
        away = ((_unpacked(new)[:, None] - self.colors) ** 2).sum(axis=2)
        self.nearest[new] = away.argmin(axis=1)
        image = Image.fromarray(self.nearest[packed].astype(np.uint8))
        image.putpalette(self.colors.astype(np.uint8).tobytes())
        return image


def _packed(picture: Pixels) -> npt.NDArray[np.int32]:
    red, green, blue = np.moveaxis(picture.astype(np.int32), 2, 0)
    return red << 16 | green << 8 | blue


def _unpacked(colors: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)


class _Film:
    """A figure whose ground is a picture, drawn once; only lines and marks are drawn for each frame."""

    def __init__(self, race: Race) -> None:
        back, places, found = backdrop(race)
        entitle(back, race.scene.title)
        back.set_dpi(DPI)
        if race.scene.surface.dimensions == 2:
            fit(back, shape(view(race)))
        lay_out(back)
        back.canvas.draw()
        self.figure = _copy_of(back)
        self.counter = self.figure.text(0.99, 0.985, "", ha="right", va="top", fontsize=10)
        surface = race.scene.surface
        self.trails = []
        for name, path in race.paths.items():
            axes = _bare(self.figure, places[name])
            look = found[name]
            (line,) = axes.plot([], [], **look.trail, alpha=0.9)
            (head,) = axes.plot([], [], **look.mark)
            self.trails.append((on_paper(path, surface), line, head))

    def at(self, step: int) -> Pixels:
        """Return the paths up to a step: rows and columns of red, green and blue."""
        self.counter.set_text(f"step {step}")
        for points, line, head in self.trails:
            line.set_data(*points[: step + 1].T)
            head.set_data(*points[step : step + 1].T)
        self.figure.canvas.draw()
        return np.array(self.figure.canvas.buffer_rgba())[..., :3]


def _copy_of(back: Any) -> Any:
    """Return a figure of the same size that shows nothing but the picture of this one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=back.get_size_inches(), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.figimage(np.asarray(back.canvas.buffer_rgba()).copy(), zorder=-1)
    return figure


def _bare(figure: Any, like: Any) -> Any:
    """Return axes in the same place, without a frame."""
    axes = figure.add_axes(like.get_position(), xlim=like.get_xlim(), ylim=like.get_ylim())
    axes.axis("off")
    return axes
