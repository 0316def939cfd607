"""What several commands share: numbers, names, optimizers, a folder to write to, the extra, lines above a bar."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import HyperparameterError, MissingExtraError

__all__ = ["above_zero", "made_folder", "near", "need", "optimizers", "printer", "whole"]


def whole(least: int) -> Callable[[str], int]:
    """Return a type for argparse: whole numbers of at least `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return number

    return parse


def above_zero(text: str) -> float:
    """Return a finite number above 0: a type for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def near(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: which of the known ones were probably meant, if any."""
    from difflib import get_close_matches

    bare = {other.lower().lstrip("-"): other for other in known}
    found = [bare[match] for match in get_close_matches(name.lower().lstrip("-"), bare, n=2, cutoff=0.7)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def optimizers(names: Sequence[str] | None) -> dict[str, type[Any]] | None:
    """Return the classes of the names that ``--optimizer`` was given, in that order; None for None.

    Each of the names may be several with commas between them, in upper or lower case.
    """
    from .. import OPTIMIZERS as classes

    if names is None:
        return None
    by_lower = {name.lower(): name for name in classes}
    wanted = [name.strip().lower() for item in names for name in item.split(",")]
    for name in wanted:
        if name not in by_lower:
            raise HyperparameterError(f"--optimizer: {name!r} is none of {', '.join(classes)}{near(name, classes)}")
    return {by_lower[name]: classes[by_lower[name]] for name in wanted}


def need(command: str, *modules: str) -> None:
    """Make sure that what a command needs beside NumPy is there."""
    from importlib import import_module

    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(f'{error}; pip install "fastopt[demo]" brings what {command} needs') from error
        except ValueError as error:  # matplotlib of an MPLBACKEND that it does not know
            raise HyperparameterError(f"{module} does not load: {error}") from error


def made_folder(path: Path) -> Path:
    """Return the folder that ``--out`` names, made if missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise HyperparameterError(f"--out: cannot write to {path}: {error.strerror or error}") from error
    return path


def printer(quiet: bool) -> Callable[[str], None]:
    """Return what prints text at once, and above the progress bar where there is one; nothing if quiet."""
    from tqdm import tqdm

    def say(text: str) -> None:
        if not quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    return say
