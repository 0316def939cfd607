"""The functions that optimizers run down: values, gradients, minima, and the window to look at them through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SURFACES", "Surface"]

Array = npt.NDArray[np.float64]
Window = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Surface:
    """A function of one or two variables, and how to look at it."""

    name: str
    formula: str
    """In matplotlib's mathtext, without the dollar signs."""
    value: Callable[..., Any]
    """``value(x)`` or ``value(x, y)``: numbers or arrays, element by element."""
    slope: Callable[..., tuple[Any, ...]]
    """The same arguments: the partial derivatives."""
    window: Window
    """(lowest, highest) of each variable, as drawn."""
    minima: tuple[tuple[float, ...], ...] = ()
    """The global minima, as far as there are any."""
    floor: float = 0.0
    """The value at the global minima; what a logarithm of the height above them needs."""
    letters: str = "xy"
    """What the formula calls its variables."""

    @property
    def dimensions(self) -> int:
        """How many variables it has."""
        return len(self.window)

    @property
    def variables(self) -> list[str]:
        """The names of the variables."""
        return list(self.letters[: self.dimensions])

    def at(self, point: Array) -> float:
        """Return the value at a point."""
        return float(self.value(*point))

    def gradient(self, point: Array) -> Array:
        """Return the gradient at a point."""
        return np.array(self.slope(*point), np.float64)


def _beale_terms(x: Any, y: Any) -> tuple[Any, Any, Any]:
    return 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3


def _beale_slope(x: Any, y: Any) -> tuple[Any, Any]:
    a, b, c = _beale_terms(x, y)
    by_x = 2 * (a * (y - 1) + b * (y**2 - 1) + c * (y**3 - 1))
    by_y = 2 * x * (a + 2 * y * b + 3 * y**2 * c)
    return by_x, by_y


def _himmelblau_slope(x: Any, y: Any) -> tuple[Any, Any]:
    a, b = x**2 + y - 11, x + y**2 - 7
    return 4 * x * a + 2 * b, 2 * a + 4 * y * b


_TAU = 2 * np.pi

# Himmelblau's minima but for the first, and the lower minimum of the dip, are roots of cubics: to the last digit.
_ALL = (
    Surface(
        "ravine",
        r"f(x, y) = x^2/20 + y^2",
        lambda x, y: x**2 / 20 + y**2,
        lambda x, y: (x / 10, 2 * y),
        ((-10, 10), (-4, 4)),
        ((0.0, 0.0),),
    ),
    Surface(
        "saddle",
        r"f(x, y) = x^2 - y^2",
        lambda x, y: x**2 - y**2,
        lambda x, y: (2 * x, -2 * y),
        ((-1.5, 1.5), (-1.5, 1.5)),
    ),
    Surface(
        "beale",
        r"f(x, y) = (1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2",
        lambda x, y: sum(term**2 for term in _beale_terms(x, y)),
        _beale_slope,
        ((-4.5, 4.5), (-4.5, 4.5)),
        ((3.0, 0.5),),
    ),
    Surface(
        "rosenbrock",
        r"f(x, y) = (1 - x)^2 + 100 (y - x^2)^2",
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        ((-2.0, 2.0), (-1.0, 3.0)),
        ((1.0, 1.0),),
    ),
    Surface(
        "himmelblau",
        r"f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2",
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        _himmelblau_slope,
        ((-6, 6), (-6, 6)),
        (
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.779310253377747, -3.283185991286170),
            (3.584428340330492, -1.848126526964404),
        ),
    ),
    Surface(
        "rastrigin",
        r"f(x, y) = 20 + x^2 + y^2 - 10 \cos 2\pi x - 10 \cos 2\pi y",
        lambda x, y: 20 + x**2 + y**2 - 10 * (np.cos(_TAU * x) + np.cos(_TAU * y)),
        lambda x, y: (2 * x + 10 * _TAU * np.sin(_TAU * x), 2 * y + 10 * _TAU * np.sin(_TAU * y)),
        ((-5.12, 5.12), (-5.12, 5.12)),
        ((0.0, 0.0),),
    ),
    Surface(
        "canyon",
        r"f(x, y) = x^2/200 + y^2",
        lambda x, y: x**2 / 200 + y**2,
        lambda x, y: (x / 100, 2 * y),
        ((-12, 12), (-3, 3)),
        ((0.0, 0.0),),
    ),
    Surface(
        "dip",
        r"f(x) = x^4/4 - x^2/2 + x/8",
        lambda x: x**4 / 4 - x**2 / 2 + x / 8,
        lambda x: (x**3 - x + 1 / 8,),
        ((-2.0, 2.2),),
        ((-1.057453770738378,),),
        floor=-0.3786884103189264,
    ),
)

SURFACES: dict[str, Surface] = {surface.name: surface for surface in _ALL}
"""Every surface by name."""
