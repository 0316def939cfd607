"""Types for annotations: what the functions and constructors of fastopt accept.

For functions of your own that pass something on to fastopt::

    from fastopt.typing import Hyperparameter, Params

    def tuned(params: Params, lr: Hyperparameter = 1e-3) -> fastopt.Optimizer:
        return fastopt.AdamW(params, lr, weight_decay=0.01)

Type checkers see `lr="fast"`, `nonfinite="rasie"` or an unknown option as errors. Values are checked when the program
runs, too; a few that are accepted there are not in these types, such as a NumPy array without dimensions for a number.
"""

# Design: everything here exists when the program runs, so that `typing.get_type_hints` works on every constructor.
# Which conventions exist is said by each class, in `conventions` and again in its constructor: a test compares them.

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, TypedDict

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
elif sys.version_info >= (3, 11):
    from typing import Unpack
else:

    class Unpack:
        """In the place of `typing.Unpack`, which Python 3.10 does not have."""

        def __class_getitem__(cls, item):
            """Any options."""
            return Any


__all__ = [
    "Array",
    "Arrays",
    "Betas",
    "CommonOptions",
    "EpsPlacement",
    "Gradients",
    "Hyperparameter",
    "Nonfinite",
    "Number",
    "Pair",
    "Params",
    "StateFactory",
    "SupportsBuffer",
    "SupportsDLPack",
]


class SupportsBuffer(Protocol):
    """An object with the buffer protocol: `array.array`, `memoryview`."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """The memory of the object."""


class SupportsDLPack(Protocol):
    """An array of a library with DLPack: PyTorch, JAX, CuPy (in the memory of the CPU)."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """The memory of the array, in a capsule."""


Array = np.ndarray[Any, Any] | SupportsBuffer | SupportsDLPack
"""One parameter, gradient or state."""

# What is in a container is not checked: to mypy, a list of arrays of several shapes or types is a list[object].
Arrays = Array | Iterable[Any]
"""One array, or a container with one for each parameter."""

Params = Array | Iterable[Any] | Mapping[Any, Any]
"""What an optimizer steps: an array, several, arrays by name, or parameter groups."""

Gradients = Array | Iterable[Any] | Mapping[Any, Any]
"""What `Optimizer.step` takes: an array, several, or arrays by name; None in the place of one skips its parameter."""

Number = float | np.floating[Any] | np.integer[Any]
"""A hyperparameter that is the same at every step."""

Hyperparameter = Number | Callable[[int], SupportsFloat]
"""A number, or a schedule: a callable that gets the number of steps taken."""

Betas = tuple[Hyperparameter, Hyperparameter] | list[Number] | list[float] | Callable[[int], tuple[Number, Number]]
"""A pair of numbers or schedules, or a schedule of pairs."""

Pair = tuple[Number, Number] | list[Number] | list[float]
"""A pair of numbers."""

EpsPlacement = Literal["outside", "inside", "outside_uncorrected", "inside_uncorrected"]
"""Where eps is added; Adagrad and RMSprop have the first two."""

Nonfinite = Literal["propagate", "raise", "skip"]
"""What a step does with NaN and infinities in gradients."""

StateFactory = Callable[[str, tuple[int, ...], np.dtype[Any]], Any]
"""Returns the memory of a state slot, by its name, shape and dtype."""


StateDtype = Literal["float32", "bfloat16", "8bit"]
"""How a state array is stored."""

Rounding = Literal["nearest", "stochastic"]
"""How a parameter of bfloat16 is rounded after its step."""

Mirrors = Array | Iterable[Any] | Mapping[Any, Any]
"""Arrays that take a copy of each parameter, None for none: one array, several, or arrays by name."""


class CommonOptions(TypedDict, total=False):
    """The options that every optimizer has beside its convention: see `fastopt.Optimizer`.

    A constructor of your own that passes them on takes ``**common: Unpack[CommonOptions]``, with `typing.Unpack`.
    """

    maximize: bool
    decoupled_weight_decay: bool | None
    flush_subnormal: bool
    n_threads: int | None
    nonfinite: Nonfinite
    copy_grads: bool
    state_factory: StateFactory | None
    clip_norm: float | Callable[[int], float] | None
    norm_type: float
    clip_value: Hyperparameter | None
    clip_norm_each: Hyperparameter | None
    ema_decay: Hyperparameter | None
    ema_start: int | None
    zero_grads: bool | None
    state_dtype: StateDtype | Mapping[str, StateDtype] | None
    split: bool | None
    rounding: Rounding | None
    seed: int | None
    param_dtype: Literal["bfloat16"] | None
    grad_dtype: Literal["bfloat16"] | None
    mirrors: Mirrors | None
