"""What can be wrong with the arguments of minimize and minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np
from proof.badcalls.world import NO_INTS, Call, World, kind

import fastopt
from fastopt.errors import DTypeError, GradientError, HyperparameterError, ShapeError


@kind("arguments of minimize and minibatches")
def minimizing(w: World) -> Call:
    if w.pick(True, False, False):
        arguments: dict[str, Any] = {"n": 10, "batch_size": 3, "rng": 0}
        key = w.pick(*arguments)
        least = {"n": 0, "batch_size": 1, "rng": 0}[key]
        value = w.pick(True, least - 1, *([None] * (key != "rng")), *NO_INTS, least + w.some("an int below 0"))
        arguments[key] = value
        return Call(f"minibatches with {key}={value!r}", lambda: fastopt.minibatches(**arguments), HyperparameterError,
                    (f"{key} must be", repr(value)))  # fmt: skip
    params = w.arranged(w.params)
    data = np.ones((5, 2))
    i = w.any()
    misshapen, complexes = list(w.grads), list(w.grads)
    misshapen[i], complexes[i] = w.grads[i][..., None], w.grads[i] * 1j
    ints = (True, *NO_INTS)
    case, error, says, options = w.pick(
        lambda: ("max_steps", HyperparameterError, ("max_steps",),
                 {"max_steps": w.pick(None, -1, *ints, w.some("an int below 0"))}),
        lambda: ("tol", HyperparameterError, ("tol",),
                 {"tol": w.pick("small", None, [], np.nan, 1j, 2**1024, w.some("a number below 0"))}),
        lambda: ("batch_size", HyperparameterError, ("batch_size",),
                 {"data": data, "batch_size": w.pick(0, *ints, w.some("an int below 0"))}),
        lambda: ("batch_size without data", HyperparameterError, ("batch_size", "data"), {"batch_size": 2}),
        lambda: ("drop_last", HyperparameterError, ("drop_last", "batch_size"),
                 {"data": data, "batch_size": w.integer(6, 99), "drop_last": True}),
        lambda: ("rng", HyperparameterError, ("rng",), {"rng": w.pick(-1, *ints)}),
        lambda: ("data of no kind", DTypeError, ("data",),
                 {"data": w.pick(3, "abc", np.float64(3), {"x": 1.0}, [1.0], (data, None), object(), {1, 2})}),
        lambda: ("data of no length", ShapeError, ("data",),
                 {"data": w.pick((data, np.ones(4)), {"x": data, "y": np.ones(4)}, np.ones((0, 3)), (), [], {})}),
        lambda: ("optimizer", HyperparameterError, ("optimizer",),
                 {"optimizer": w.pick(3, "adams", None, [], 1.5, lambda params: None)}),
        lambda: ("params of another", HyperparameterError, ("optimizer", "params"), {"params": w.fresh(5)}),
        lambda: ("fun", HyperparameterError, ("fun",), {"fun": w.pick(3, "f", None, np.ones(3))}),
        lambda: ("callback", HyperparameterError, ("callback",), {"callback": w.pick(3, "f", np.ones(3), [print])}),
        lambda: ("what fun returns", GradientError, ("fun", "pair"),
                 {"fun": lambda p, b: w.pick(None, 1.0, (1.0,), (1.0, w.grads, 3), "ab", np.ones(2), {})}),
        lambda: ("a loss of a shape", ShapeError, ("loss",), {"fun": lambda p, b: (np.ones(1), w.grads)}),
        lambda: ("a loss that is none", DTypeError, ("loss",),
                 {"fun": lambda p, b: (w.pick("1.5", b"1", None, [], {}, 1j, True, np.complex64(1), 2**1024, object()),
                                       w.grads)}),
        lambda: ("a gradient's shape", ShapeError, (f"gradient of {w.label(i)}",),
                 {"fun": lambda p, b: (1.0, misshapen)}),
        lambda: ("a gradient's type", DTypeError, (f"gradient of {w.label(i)}",),
                 {"fun": lambda p, b: (1.0, complexes)}),
    )()  # fmt: skip
    call: dict[str, Any] = {"fun": lambda p, b: (1.0, w.grads), "params": params, "optimizer": w.opt, **options}
    return Call(f"minimize with a bad {case}", lambda: fastopt.minimize(**{"max_steps": 1, **call}), error, says,
                (w.params[i], data))  # fmt: skip
