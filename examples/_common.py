"""What the examples share: their options, their verdict, and the look of their pictures."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

try:
    import matplotlib  # noqa: F401
    import sklearn  # noqa: F401
    import tqdm  # noqa: F401
    from matplotlib.figure import Figure
except ImportError as error:
    print(f'{error}; pip install "fastopt[demo,checkpoint]" brings what the examples need', file=sys.stderr)
    sys.exit(2)

# Okabe and Ito's colours, which a colour-blind eye tells apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #7F7F7F".split()


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and makes the folder for what the example writes."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_args(self, *args, **kwargs):
        options = super().parse_args(*args, **kwargs)
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            if not os.access(options.out, os.W_OK):
                raise PermissionError(None, "not writable")
        except OSError as error:
            self.error(f"--out: cannot write to {options.out}: {error.strerror}")
        return options


def parser(doc: str, seed: bool = True) -> Parser:
    """The options that the examples share; the first line of its docstring describes each."""
    p = Parser(
        description=f"{doc.partition(chr(10))[0]} Defaults are in parentheses.",
        epilog="exit code: 0 good, 1 if something that the example claims does not hold, 2 if it could not start",
    )
    if seed:
        whole_number = whole(0, 2**32 - 1)
        p.add_argument("--seed", type=whole_number, default=0, metavar="N", help="for all that is random (%(default)s)")
    p.add_argument(
        "--out", type=Path, default=Path("fastopt-examples"), metavar="DIR",
        help="folder for what it writes, made if missing (%(default)s)",
    )  # fmt: skip
    return p


def whole(least: int, most: int):
    """The type of an option that takes a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return parse


def verdict(claims: dict[str, bool], *files: Path) -> int:
    """Print what was written and, claim by claim, whether it holds; returns the exit code."""
    print()
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}  {claim}")
    for path in files:
        print(f"wrote  {path}")
    return 0 if all(claims.values()) else 1


def figure(title: str, width: float = 7.5, height: float = 4.0) -> Figure:
    """An empty figure, with what it shows as its title; it needs no display."""
    fig = Figure(figsize=(width, height), dpi=200, layout="constrained")
    fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    return fig


def tidy(axes, title: str = "") -> None:
    """Give axes the look of the others: title on the left, no frame, small numbers."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
