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
    "RMSprop": {"lr": 0.3},
    "Adam": {"lr": 0.3},
    "AdamW": {"lr": 0.3},
    "Adamax": {"lr": 0.5},
    "NAdam": {"lr": 0.3},
    "RAdam": {"lr": 1.0},
    "Lion": {"lr": 0.13},
}
# An optimizer that has no rate of its own gets the rates of the one of these that it is most like.
_MODELS = ("SGD", "Momentum", "Adagrad", "RMSprop", "Adam")
_LIKE = {"ASGD": "SGD"}
"""Where the names of options and state would say another one."""


def suited(optimizer: str, scene: Scene | None = None) -> Mapping[str, Any]:
    """Return options with which an optimizer gets somewhere: those of its portrait, or what a scene has instead.

    The defaults of the classes are meant for networks: Lion's learning rate of 1e-4 moves it by 0.003 in 30 steps. An
    optimizer that has no rate here takes the learning rate of one that is like it.
    """
    if scene is not None and optimizer in scene.others:
        return scene.others[optimizer]
    if optimizer in _VALLEY:
        return _VALLEY[optimizer]
    model = like(optimizer)
    raced = scene.runners if scene is not None else ()
    found = [runner.options for runner in raced if runner.optimizer == model] + [suited(model, scene)]
    return {"lr": next(options["lr"] for options in found if "lr" in options)}


def like(optimizer: str) -> str:
    """Return the optimizer that one without a rate is most like: in `_LIKE`, its base class, or most in common.

    What counts are hyperparameters and state; of two that have as much in common, it is the one with less of its own.
    """
    from .. import OPTIMIZERS

    if optimizer in _LIKE:
        return _LIKE[optimizer]
    cls = OPTIMIZERS[optimizer]
    for base in cls.__mro__[1:]:
        if OPTIMIZERS.get(base.__name__) is base and base.__name__ in _VALLEY:
            return base.__name__

    def features(name: str) -> set[str]:
        return {*OPTIMIZERS[name].hyperparameters, *(slot.name for slot in OPTIMIZERS[name].slots)}

    own = features(optimizer)
    return max(_MODELS, key=lambda name: (len(own & features(name)), -len(features(name))))
