"""The errors that fastopt raises.

Each derives from `FastoptError` and from the builtin that fits, so that both ``except fastopt.FastoptError``
and the habitual ``except ValueError`` catch it.
"""

from __future__ import annotations

import os
import sys
import warnings

__all__ = [
    "AveragedError",
    "CheckpointError",
    "ConcurrentStepError",
    "ConventionError",
    "DTypeError",
    "DeclarationError",
    "FastoptError",
    "GradientError",
    "HyperparameterError",
    "InferenceModeError",
    "InstallError",
    "LayoutError",
    "MissingExtraError",
    "NonFiniteError",
    "OverlapError",
    "ParameterError",
    "RankError",
    "ReadOnlyError",
    "ShapeError",
    "StateDictError",
    "TensorDTypeError",
    "TensorKindError",
    "TensorLayoutError",
    "TensorNonFiniteError",
    "TensorShapeError",
    "TensorStateError",
    "UnknownAttributeError",
    "UnknownOptionError",
]


def warn_caller(text: str, *inside: str) -> None:
    """Warn where a user's code called: outside of this library, and of more folders."""
    folders = (os.path.join(os.path.dirname(__file__), ""), *inside)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(folders):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


class FastoptError(Exception):
    """Base class of every error that fastopt raises on purpose."""


class LayoutError(FastoptError, ValueError):
    """Raised when an array's strides, order or alignment cannot be stepped in place."""


class DTypeError(FastoptError, TypeError):
    """Raised when an array has a type that is not supported where it stands."""


class ShapeError(FastoptError, ValueError):
    """Raised when two arrays that belong together differ in shape."""


class ReadOnlyError(FastoptError, ValueError):
    """Raised when a parameter or a state array cannot be written to."""


class OverlapError(FastoptError, ValueError):
    """Raised when arrays that must be distinct share memory."""


class GradientError(FastoptError, ValueError):
    """Raised when the gradients come in the wrong container, number or with the wrong keys."""


class ParameterError(FastoptError, ValueError):
    """Raised when the parameters come in the wrong container, or with names that clash."""


class HyperparameterError(FastoptError, ValueError):
    """Raised when a hyperparameter is of the wrong kind or outside its range."""


class UnknownOptionError(FastoptError, TypeError):
    """Raised when an option is given that the optimizer does not have under any convention."""


class ConventionError(FastoptError, ValueError):
    """Raised when an option or optimizer does not exist in the chosen convention."""


class InferenceModeError(FastoptError, RuntimeError):
    """Raised when `fastopt.torch` would write to a tensor made in inference mode, outside of it."""


class TensorLayoutError(LayoutError, RuntimeError):
    """Raised by `fastopt.torch` for a `LayoutError`, which PyTorch raises as a RuntimeError."""


class TensorDTypeError(DTypeError, RuntimeError):
    """Raised by `fastopt.torch` for a `DTypeError`, which PyTorch raises as a RuntimeError."""


class TensorShapeError(ShapeError, RuntimeError):
    """Raised by `fastopt.torch` for a `ShapeError`, which PyTorch raises as a RuntimeError."""


class TensorKindError(ParameterError, GradientError, RuntimeError):
    """Raised by `fastopt.torch` for a parameter or gradient that is on another device, or of a class of its own."""


class InstallError(FastoptError, RuntimeError):
    """Raised when `fastopt.torch.install` finds another library's class in the place of PyTorch's."""


class UnknownAttributeError(FastoptError, AttributeError):
    """Raised when an attribute is set or read that looks like an option and is none."""


class DeclarationError(FastoptError, TypeError):
    """Raised when a class that derives from `Optimizer` lacks a declaration, or has one of the wrong kind."""


class StateDictError(FastoptError, ValueError):
    """Raised when a state dict does not fit the optimizer that loads it."""


class TensorStateError(StateDictError, RuntimeError):
    """Raised by `fastopt.torch` for a state tensor that does not fit its parameter."""


class CheckpointError(FastoptError, ValueError):
    """Raised when something cannot be written to a checkpoint file, or a file is not a whole, unchanged one."""


class NonFiniteError(FastoptError, ArithmeticError):
    """Raised under ``nonfinite="raise"`` when a gradient holds a NaN or an infinity; by a scaler for an infinity."""


class TensorNonFiniteError(NonFiniteError, RuntimeError):
    """Raised by `fastopt.torch.clip_grad_norm_` for a `NonFiniteError`, which PyTorch raises as a RuntimeError."""


class ConcurrentStepError(FastoptError, RuntimeError):
    """Raised when two threads step one optimizer at the same time."""


class AveragedError(FastoptError, RuntimeError):
    """Raised for averages that are not kept, and for what may not happen while they stand in for parameters."""


class RankError(FastoptError, RuntimeError):
    """Raised by a step with ``clip_norm`` that failed on another rank, or for which the ranks do not say the same."""


class MissingExtraError(FastoptError, ImportError):
    """Raised when a feature is asked for whose optional dependency is not installed."""
