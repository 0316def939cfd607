"""Learning rates that show the character of each optimizer, where nobody has chosen others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .race import Scene

__all__ = ["suited"]

# On the long valley x²/20 + y². The first ones are those of the textbook picture in the lecture notes.
_VALLEY: dict[str, Mapping[str, Any]] = {
    "SGD": {"lr": 0.95},
    "Momentum": {"lr": 0.1},
    "NAG": {"lr": 0.1},
    "Adagrad": {"lr": 1.5},
    "Adadelta": {"eps": 0.01},
    "Adamax": {"lr": 0.5},
    "RAdam": {"lr": 1.0},
    "Lion": {"lr": 0.13},
}
_OTHERS = {"lr": 0.3}


def suited(optimizer: str, scene: Scene | None = None) -> Mapping[str, Any]:
    """Return options with which an optimizer gets somewhere: those of its portrait, or what a scene has instead.

    The defaults of the classes are meant for networks: Lion's learning rate of 1e-4 moves it by 0.003 in 30 steps.
    """
    if scene is not None and optimizer in scene.others:
        return scene.others[optimizer]
    return _VALLEY.get(optimizer, _OTHERS)
