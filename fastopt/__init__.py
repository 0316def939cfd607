"""fastopt: fused optimizer steps for NumPy arrays, bit for bit equal to a NumPy reference."""

from typing import TYPE_CHECKING

from fastopt._openmp import calm_openmp

try:
    with calm_openmp():
        import fastopt.engine as _engine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "fastopt.engine":
        raise
    import sys as _sys

    raise ImportError(
        f"fastopt has no compiled engine for Python {_sys.version_info[0]}.{_sys.version_info[1]} in {__path__[0]}. "
        "If that is in a checkout of the sources, start Python in another folder to use the installed package, or "
        "build into the checkout with: python setup.py build_ext --inplace. Otherwise reinstall it with this Python."
    ) from None

from fastopt.declare import OPTIMIZERS as _OPTIMIZERS
from fastopt.declare import Convention, Slot
from fastopt.errors import (
    AveragedError,
    CheckpointError,
    ConcurrentStepError,
    ConventionError,
    DeclarationError,
    DTypeError,
    FastoptError,
    GradientError,
    HyperparameterError,
    InferenceModeError,
    InstallError,
    LayoutError,
    MissingExtraError,
    NonFiniteError,
    OverlapError,
    ParameterError,
    RankError,
    ReadOnlyError,
    ShapeError,
    StateDictError,
    TensorDTypeError,
    TensorKindError,
    TensorLayoutError,
    TensorNonFiniteError,
    TensorShapeError,
    TensorStateError,
    UnknownAttributeError,
    UnknownOptionError,
)
from fastopt.norms import norm
from fastopt.optimizer import Optimizer

# The order is that of `OPTIMIZERS`.
# isort: off
from fastopt.sgd import SGD, Momentum, NAG, ASGD
from fastopt.adagrad import Adagrad, Adadelta
from fastopt.rmsprop import RMSprop
from fastopt.adam import Adam, AdamW, Adamax, NAdam, RAdam
from fastopt.adabelief import AdaBelief
from fastopt.rprop import Rprop
from fastopt.lion import Lion
# isort: on

OPTIMIZERS: dict[str, type[Optimizer]] = _OPTIMIZERS
"""Every optimizer by name: what tests, benchmarks and documentation walk."""

__all__ = [
    "ASGD",
    "NAG",
    "OPTIMIZERS",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AveragedError",
    "CheckpointError",
    "ConcurrentStepError",
    "Convention",
    "ConventionError",
    "DTypeError",
    "DeclarationError",
    "FastoptError",
    "GradientError",
    "HyperparameterError",
    "InferenceModeError",
    "InstallError",
    "LayoutError",
    "Lion",
    "MinimizeResult",
    "MinimizeState",
    "MissingExtraError",
    "Momentum",
    "NAdam",
    "NonFiniteError",
    "Optimizer",
    "OverlapError",
    "ParameterError",
    "RAdam",
    "RMSprop",
    "RankError",
    "Rprop",
    "ReadOnlyError",
    "Scaler",
    "ShapeError",
    "Slot",
    "StateDictError",
    "TensorDTypeError",
    "TensorKindError",
    "TensorLayoutError",
    "TensorNonFiniteError",
    "TensorShapeError",
    "TensorStateError",
    "UnknownAttributeError",
    "UnknownOptionError",
    "functional",
    "load",
    "minibatches",
    "minimize",
    "minmax_scale",
    "norm",
    "reference",
    "schedules",
    "show_config",
    "standardize",
]

if TYPE_CHECKING:  # else `__getattr__`, at the end, imports them
    from fastopt import functional as functional
    from fastopt import reference as reference
    from fastopt import schedules as schedules
    from fastopt._config import show_config as show_config
    from fastopt.checkpoint import load as load
    from fastopt.preprocessing import Scaler as Scaler
    from fastopt.preprocessing import minmax_scale as minmax_scale
    from fastopt.preprocessing import standardize as standardize
    from fastopt.training import MinimizeResult as MinimizeResult
    from fastopt.training import MinimizeState as MinimizeState
    from fastopt.training import minibatches as minibatches
    from fastopt.training import minimize as minimize

    __version__: str

_LAZY = {
    "load": "checkpoint",
    "show_config": "_config",
    "minimize": "training", "minibatches": "training", "MinimizeResult": "training", "MinimizeState": "training",
    "Scaler": "preprocessing", "minmax_scale": "preprocessing", "standardize": "preprocessing",
}  # fmt: skip

if not TYPE_CHECKING:  # else a misspelt name would be an object to them

    def __getattr__(name: str) -> object:
        # What a step does not need is imported when first asked for.
        from importlib import import_module, metadata

        if name == "__version__":
            try:
                return metadata.version("fastopt")
            except metadata.PackageNotFoundError:  # built into the source tree, not installed
                return "0+unknown"
        if name in _LAZY:
            return getattr(import_module(f"fastopt.{_LAZY[name]}"), name)
        if name in __all__:
            return import_module(f"fastopt.{name}")
        raise AttributeError(f"module 'fastopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "typing"])
