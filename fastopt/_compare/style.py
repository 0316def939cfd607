"""One colour, dash and mark for each optimizer, everywhere: told apart in grey and by every eye."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .race import Runner
from .results import whole_file

__all__ = [
    "COLORS",
    "DASHES",
    "MARKERS",
    "Look",
    "entitle",
    "house",
    "lay_out",
    "legend",
    "line",
    "look",
    "looks",
    "new_figure",
    "overlaid",
    "save",
]

# Found by a search. The seven of the lecture notes differ in lightness, too, so that a grey print shows them; all
# twelve differ by at least 11 (CIEDE2000) for normal sight and for each kind of colour blindness.
COLORS: dict[str, str] = {
    "SGD": "#000000",
    "Momentum": "#C48C31",
    "NAG": "#A80000",
    "Adagrad": "#07347A",
    "Adadelta": "#22BCFF",
    "RMSprop": "#007D4F",
    "Adam": "#E73989",
    "AdamW": "#2263C4",
    "Adamax": "#77B47A",
    "NAdam": "#4C4958",
    "RAdam": "#B596B2",
    "Lion": "#E20049",
}
# In turn for optimizers that have no look of their own, by their place in `OPTIMIZERS`. Found by the same search: they
# differ from the twelve and from each other by at least 10.
SPARE_COLORS = ("#4884FC", "#6C0C18", "#3000D8", "#606C6C", "#482430", "#9078B4")
OTHER = "#444444"  # a name that is no optimizer of fastopt

# Families share a dash: plain gradients solid, step sizes dashed, both solid or dotted.
DASHES: dict[str, Any] = {
    "SGD": "-", "Momentum": "-", "NAG": (0, (6, 1)),
    "Adagrad": (0, (4, 1.5)), "Adadelta": (0, (2, 1)), "RMSprop": (0, (6, 1.5, 1, 1.5)),
    "Adam": "-", "AdamW": (0, (4, 1)), "Adamax": (0, (1, 1)), "NAdam": (0, (3, 1, 1, 1)), "RAdam": (0, (2, 2)),
    "Lion": "-",
}  # fmt: skip

MARKERS: dict[str, str] = {
    "SGD": "o", "Momentum": "s", "NAG": "D", "Adagrad": "^", "Adadelta": "v", "RMSprop": "P", "Adam": "*",
    "AdamW": "X", "Adamax": "h", "NAdam": "<", "RAdam": ">", "Lion": "d",
}  # fmt: skip

SPARE_DASHES: tuple[Any, ...] = ((0, (8, 2)), (0, (3, 2)), (0, (8, 2, 2, 2)))
SPARE_MARKERS = ("p", "8", "H")

# Where one optimizer runs several times: its own look, then shades. Black has hues instead: on a grey ground
# shades of grey are not seen.
_VARIANTS: tuple[tuple[float, Any, str], ...] = (
    (0.0, "-", "o"), (0.45, (0, (4, 1)), "s"), (0.2, (0, (1.5, 0.8)), "^"), (0.68, (0, (6, 1, 1, 1)), "D"),
)  # fmt: skip
_VARIANTS_OF_BLACK = ("#000000", "#7A52B3", "#3F8F8F", "#8B6F4E")

_RC: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "fastopt",  # names inside the file are drawn by lot otherwise
}


@dataclass(frozen=True)
class Look:
    """How a runner's line and marks are drawn."""

    color: str
    dash: Any
    marker: str
    trail_dash: Any = "-"
    """Paths are solid, since dashes hide small turns, but where one optimizer runs several times."""
    width: float = 1.6

    @property
    def line(self) -> dict[str, Any]:
        """The keywords of a curve."""
        return {"color": self.color, "linestyle": self.dash, "linewidth": self.width}

    @property
    def trail(self) -> dict[str, Any]:
        """The keywords of a path."""
        return {**self.line, "linestyle": self.trail_dash}

    @property
    def mark(self) -> dict[str, Any]:
        """The keywords of a mark that stands out on a line of the same colour."""
        size = 9.0 if self.marker == "*" else 6.5  # a star is all points
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.8}
        return {"marker": self.marker, "markersize": size, "linestyle": "", "markerfacecolor": self.color, **edge}


def look(optimizer: str) -> Look:
    """Return the look of an optimizer: its own, or a spare one; a name that is no optimizer gets a plain grey one."""
    from .. import OPTIMIZERS

    if optimizer in COLORS:
        return Look(COLORS[optimizer], DASHES[optimizer], MARKERS[optimizer])
    without = [name for name in OPTIMIZERS if name not in COLORS]
    if optimizer not in without:
        return Look(OTHER, "-", "o")
    place = without.index(optimizer)
    color, dash, marker = (spare[place % len(spare)] for spare in (SPARE_COLORS, SPARE_DASHES, SPARE_MARKERS))
    return Look(color, dash, marker)


def looks(runners: Iterable[Runner]) -> dict[str, Look]:
    """Return the look of each runner by name: that of its optimizer, shades of it where that runs several times."""
    runners = list(runners)
    found: dict[str, Look] = {}
    for runner in runners:
        own = [other.name for other in runners if other.optimizer == runner.optimizer]
        found[runner.name] = look(runner.optimizer) if len(own) == 1 else _variant(runner, own.index(runner.name))
    return found


def _variant(runner: Runner, number: int) -> Look:
    number %= len(_VARIANTS)
    share, dash, marker = _VARIANTS[number]
    color = look(runner.optimizer).color
    shade = _VARIANTS_OF_BLACK[number] if color == "#000000" else _shade(color, share)
    return Look(shade, dash, marker, trail_dash=dash)


def _shade(color: str, share: float) -> str:
    """Return the colour with that share of white in it, or of black if it is light itself."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    other = 255 if sum(parts) < 380 else 0
    return "#" + "".join(f"{round(part + (other - part) * share):02X}" for part in parts)


def overlaid(found: Mapping[str, Look]) -> dict[str, Look]:
    """Return looks for lines on top of each other: the first ones wide, so that they show below the last."""
    widths = (2.5 - 1.2 * k / max(len(found) - 1, 1) for k in range(len(found)))
    return {name: replace(look, width=width) for (name, look), width in zip(found.items(), widths, strict=True)}


def line(optimizer: str) -> dict[str, Any]:
    """Return the keywords with which matplotlib draws a line of this optimizer."""
    return look(optimizer).line


@contextmanager
def house() -> Iterator[None]:
    """Draw with matplotlib's defaults and this house's, whatever the user has set."""
    from matplotlib import style

    with style.context(["default", _RC]):
        yield


def new_figure(width: float, height: float) -> Any:
    """Return a figure of that many inches that draws to memory, whatever backend the user has chosen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, stem: Path, formats: Iterable[str], title: str) -> tuple[Path, ...]:
    """Write a figure once in each format, without dates: the same figure gives the same bytes."""
    lay_out(figure)
    figure.set_layout_engine("none")  # the same for every format, and made only once
    files = []
    for suffix in formats:
        file = stem.with_name(f"{stem.name}.{suffix}")
        dateless = {"svg": {"Title": title, "Date": None}, "pdf": {"Title": title, "CreationDate": None}}
        with whole_file(file) as out:
            figure.savefig(out, metadata=dateless.get(suffix, {"Title": title}))
        files.append(file)
    return tuple(files)


def lay_out(figure: Any) -> None:
    """Let the layout engine place everything now."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def entitle(figure: Any, title: str) -> None:
    """Write a sentence above a figure, in as many lines as it needs, about equally long."""
    width = int(figure.get_figwidth() * 11.5)
    lines = len(textwrap.wrap(title, width))
    while width > 1 and len(textwrap.wrap(title, width - 1)) == lines > 1:
        width -= 1
    figure.suptitle(textwrap.fill(title, width), x=0.01, ha="left", fontsize=11, parse_math=False)


def legend(owner: Any, handles: Sequence[Any], labels: Sequence[str], **keywords: Any) -> None:
    """Give a figure or axes a legend that takes the labels as they are: an underscore or a dollar means nothing."""
    drawn = owner.legend(handles, [" "] * len(labels), **keywords)
    for text, label in zip(drawn.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)
