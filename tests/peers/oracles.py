"""Drive the installed libraries: the same parameters and gradients in, the parameters after every step out.

A `Case` is written in fastopt's words; this module translates it into the library's constructor and its
arguments (`peer`), steps that library (`path`), and reads the library's own defaults from its signature
(`defaults`). No formula is written here: whatever the installed library computes is the expectation.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
Grads = Sequence[Sequence[np.ndarray | None]]
Rates = Sequence[float] | None

#: What has to be importable for each convention.
MODULES = {
    "torch": ("torch",),
    "keras": ("keras", "jax"),
    "optax": ("optax", "jax"),
    "sklearn": ("sklearn",),
    "thinc": ("thinc",),
}

#: fastopt's class -> the library's constructor. What is missing here does not exist there.
CONSTRUCTORS: dict[str, dict[str, str]] = {
    "torch": {
        name: name
        for name in (
            "SGD", "ASGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Rprop"
        )
    },
    "keras": {
        "SGD": "SGD", "Adagrad": "Adagrad", "Adadelta": "Adadelta", "RMSprop": "RMSprop", "Adam": "Adam",
        "AdamW": "AdamW", "Adamax": "Adamax", "NAdam": "Nadam", "Lion": "Lion",
    },
    "optax": {
        "SGD": "sgd", "Adagrad": "adagrad", "Adadelta": "adadelta", "RMSprop": "rmsprop", "Adam": "adam",
        "AdamW": "adamw", "Adamax": "adamax", "NAdam": "nadam", "RAdam": "radam", "Lion": "lion",
        "AdaBelief": "adabelief",
    },
    "sklearn": {"SGD": "SGDOptimizer", "Adam": "AdamOptimizer"},
    "thinc": {"SGD": "SGD", "Adam": "Adam", "AdamW": "Adam", "RAdam": "RAdam"},
}  # fmt: skip

#: fastopt's argument -> the library's; a pair is the two betas. An argument not listed keeps its name.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "torch": {},
    "keras": {
        "lr": "learning_rate", "betas": ("beta_1", "beta_2"), "eps": "epsilon", "alpha": "rho",
    },
    "optax": {"lr": "learning_rate", "betas": ("b1", "b2"), "alpha": "decay"},
    "sklearn": {"lr": "learning_rate_init", "betas": ("beta_1", "beta_2"), "eps": "epsilon"},
    "thinc": {
        "lr": "learn_rate", "betas": ("beta1", "beta2"),
        "weight_decay": "L2", "decoupled_weight_decay": "L2_is_weight_decay",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One optimizer under one convention, with options in fastopt's words (`lr` always among them)."""

    convention: str
    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = (f"{name}={value}".replace(" ", "") for name, value in self.options.items())
        return "-".join([self.convention, self.optimizer, *options])


@dataclass
class Path:
    """The parameters after every step; for torch also the state of every parameter after every step."""

    params: list[Arrays]
    state: list[list[dict[str, np.ndarray]]] | None = None


# --- translation -----------------------------------------------------------------------------------------


def constructor(convention: str, name: str) -> Callable[..., Any]:
    """The library's constructor of that name."""
    module = {
        "torch": "torch.optim",
        "keras": "keras.optimizers",
        "optax": "optax",
        "sklearn": "sklearn.neural_network._stochastic_optimizers",
        "thinc": "thinc.optimizers",
    }[convention]
    return getattr(importlib.import_module(module), name)


def peer(case: Case) -> tuple[str, dict[str, Any]]:
    """The library's constructor name and its arguments for a case."""
    name, options = CONSTRUCTORS[case.convention][case.optimizer], dict(case.options)
    if case.convention != "torch":
        options.pop("maximize", None)  # `path` negates the gradients instead
    if case.convention == "optax":
        name, options = _optax_form(case.optimizer, name, options)
    arguments: dict[str, Any] = {}
    for key, value in options.items():
        target = ARGUMENTS[case.convention].get(key, key)
        if isinstance(target, tuple):
            arguments.update(zip(target, value, strict=True))
        else:
            arguments[target] = value
    return name, arguments


def _optax_form(optimizer: str, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """optax has separate functions where fastopt has options."""
    if options.pop("amsgrad", False):
        name = "amsgrad"
        corrected = options.pop("bias_correction", True)
        options.update(bias_correction_mu=corrected, bias_correction_nu=corrected)
    if optimizer in ("Adamax", "NAdam"):
        if options.get("weight_decay"):
            name += "w"
        else:
            options.pop("weight_decay", None)
    if optimizer == "RMSprop":
        if "eps_placement" in options:
            options["eps_in_sqrt"] = options.pop("eps_placement") == "inside"
        if "initial_accumulator_value" in options:
            options["initial_scale"] = options.pop("initial_accumulator_value")
    return name, options


def defaults(convention: str, optimizer: str) -> dict[str, Any]:
    """The hyperparameters' defaults in the library's own signature, under fastopt's names.

    An argument that the library requires (`lr` in optax) is absent from the result.
    """
    function = constructor(convention, CONSTRUCTORS[convention][optimizer])
    signature = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    theirs = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    ours: dict[str, Any] = {}
    names = {**{name: name for name in _PLAIN}, **ARGUMENTS[convention]}
    if convention == "keras" and optimizer == "Adadelta":
        del names["alpha"]  # Keras says rho for both; only RMSprop's is torch's alpha
    elif convention == "keras":
        del names["rho"]
    if convention == "optax" and optimizer == "RMSprop":
        names["initial_accumulator_value"] = "initial_scale"
    for name, target in names.items():
        if isinstance(target, tuple) and target[0] in theirs:
            ours[name] = tuple(theirs[part] for part in target)
        elif not isinstance(target, tuple) and target in theirs:
            ours[name] = theirs[target]
    if convention == "optax" and optimizer not in ("SGD", "RMSprop"):
        ours.pop("nesterov", None)  # there it tells adam from nadam, which are classes here
    if "eps_in_sqrt" in theirs:
        ours["eps_placement"] = "inside" if theirs["eps_in_sqrt"] else "outside"
    for name in ("momentum", "weight_decay"):  # None is how Keras and optax say 0
        if name in ours and ours[name] is None:
            ours[name] = 0.0
    if ours.get("lr", 0) is None:  # optax.adadelta(None) does not descend: no rate and no sign
        del ours["lr"]
    return ours


_PLAIN = (
    "lr", "momentum", "dampening", "weight_decay", "nesterov", "lr_decay", "initial_accumulator_value", "eps",
    "rho", "alpha", "centered", "betas", "amsgrad", "momentum_decay", "decoupled_weight_decay", "eps_root",
    "bias_correction", "etas", "step_sizes", "lambd", "t0",
)  # fmt: skip


# --- stepping --------------------------------------------------------------------------------------------


def path(case: Case, params: Arrays, grads: Grads, lrs: Sequence[float] | None = None, **extra: Any) -> Path:
    """Step the installed library.

    `lrs` are learning rates step by step, given in the way that the library offers; `extra` goes to its
    constructor (torch's `fused=True`).
    """
    name, arguments = peer(case)
    if case.convention != "torch" and case.options.get("maximize"):
        grads = [[None if g is None else -g for g in step] for step in grads]
    return _STEPPERS[case.convention](name, {**arguments, **extra}, params, grads, lrs)


def torch_params(params: Arrays) -> list[Any]:
    """Torch parameters that own copies of the arrays."""
    import torch

    return [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]


def torch_step(optimizer: Any, params: list[Any], grads: Sequence[np.ndarray | None]) -> None:
    """One step of a torch optimizer with the given gradients."""
    import torch

    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else torch.from_numpy(g.copy())
    optimizer.step()


def torch_arrays(params: list[Any]) -> Arrays:
    """Copies of torch parameters as NumPy arrays."""
    return [p.detach().numpy().copy() for p in params]


def torch_state(optimizer: Any, params: list[Any]) -> list[dict[str, np.ndarray]]:
    """A torch optimizer's state per parameter, as NumPy copies; absent slots are left out."""
    return [{k: v.numpy().copy() for k, v in optimizer.state.get(p, {}).items() if v is not None} for p in params]


def to_numpy(state_dict: Any) -> Any:
    """A torch state dict with `.numpy()` in the place of every tensor."""
    import torch

    if isinstance(state_dict, torch.Tensor):
        return state_dict.numpy().copy()
    if isinstance(state_dict, dict):
        return {k: to_numpy(v) for k, v in state_dict.items()}
    if isinstance(state_dict, list):
        return [to_numpy(v) for v in state_dict]
    return state_dict


def to_torch(state_dict: Any) -> Any:
    """The way back of `to_numpy`."""
    import torch

    if isinstance(state_dict, np.ndarray | np.generic):
        return torch.from_numpy(np.array(state_dict))
    if isinstance(state_dict, dict):
        return {k: to_torch(v) for k, v in state_dict.items()}
    if isinstance(state_dict, list):
        return [to_torch(v) for v in state_dict]
    return state_dict


def _torch(name: str, arguments: dict[str, Any], params: Arrays, grads: Grads, lrs: Rates) -> Path:
    tensors = torch_params(params)
    optimizer = constructor("torch", name)(tensors, **arguments)
    result = Path([], [])
    for k, step in enumerate(grads):
        if lrs is not None:
            optimizer.param_groups[0]["lr"] = lrs[k]
        torch_step(optimizer, tensors, step)
        result.params.append(torch_arrays(tensors))
        result.state.append(torch_state(optimizer, tensors))
    return result


@contextmanager
def _jax_precision(dtype: np.dtype) -> Iterator[None]:
    """float64 needs the x64 switch; float32 runs without, as a user of float32 would run it."""
    import jax

    with jax.enable_x64(dtype == np.float64):
        yield


def _keras(name: str, arguments: dict[str, Any], params: Arrays, grads: Grads, lrs: Rates) -> Path:
    import keras

    assert keras.backend.backend() == "jax", "only this backend is float64 throughout"
    dtype, before = params[0].dtype, keras.config.floatx()
    keras.config.set_floatx(dtype.name)  # the learning rate is a variable of this type
    try:
        with _jax_precision(dtype):
            variables = [keras.Variable(p, dtype=dtype.name) for p in params]
            optimizer = constructor("keras", name)(**arguments)
            result = Path([])
            for k, step in enumerate(grads):
                if lrs is not None:
                    optimizer.learning_rate = lrs[k]
                optimizer.apply([keras.ops.convert_to_tensor(g, dtype=dtype.name) for g in step], variables)
                result.params.append([np.array(v.value) for v in variables])
            return result
    finally:
        keras.config.set_floatx(before)


def _optax(name: str, arguments: dict[str, Any], params: Arrays, grads: Grads, lrs: Rates) -> Path:
    import jax
    import optax

    with _jax_precision(params[0].dtype):
        if lrs is not None:
            rates = jax.numpy.asarray(lrs, dtype=params[0].dtype)
            arguments["learning_rate"] = lambda count: rates[count]
        transform = constructor("optax", name)(**arguments)
        values = [jax.numpy.asarray(p) for p in params]
        state = transform.init(values)

        @jax.jit  # as it is used; the powers of the betas outside of jit are up to 20 ulp off
        def update(step: Any, state: Any, values: Any) -> Any:
            updates, state = transform.update(step, state, values)
            return optax.apply_updates(values, updates), state

        result = Path([])
        for step in grads:
            values, state = update([jax.numpy.asarray(g) for g in step], state, values)
            result.params.append([np.array(v) for v in values])
        return result


def _sklearn(name: str, arguments: dict[str, Any], params: Arrays, grads: Grads, lrs: Rates) -> Path:
    values = [p.copy() for p in params]
    optimizer = constructor("sklearn", name)(values, **arguments)
    result = Path([])
    for k, step in enumerate(grads):
        if lrs is not None:  # Adam derives learning_rate from the first at every step; SGD uses the second
            optimizer.learning_rate_init = optimizer.learning_rate = lrs[k]
        optimizer.update_params(values, list(step))
        result.params.append([v.copy() for v in values])
    return result


def _thinc(name: str, arguments: dict[str, Any], params: Arrays, grads: Grads, lrs: Rates) -> Path:
    values = [p.copy() for p in params]
    if lrs is not None:
        arguments["learn_rate"] = list(lrs)
    # Clipping is no part of the update rule, and averages are a copy on the side.
    optimizer = constructor("thinc", name)(**{"grad_clip": 0.0, "use_averages": False, **arguments})
    result = Path([])
    for step in grads:
        for i, g in enumerate(step):
            if g is not None:  # thinc zeroes the gradient that it is given
                values[i], _ = optimizer((i, "p"), values[i], g.copy())
        optimizer.step_schedules()
        result.params.append([v.copy() for v in values])
    return result


_STEPPERS: dict[str, Callable[[str, dict[str, Any], Arrays, Grads, Rates], Path]] = {
    "torch": _torch,
    "keras": _keras,
    "optax": _optax,
    "sklearn": _sklearn,
    "thinc": _thinc,
}
