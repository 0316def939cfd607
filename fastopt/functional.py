"""The update rules as plain in-place functions, for libraries that keep parameters, state and counts themselves.

Each function takes one step. ``p``, ``g`` and the state are one array each, or lists of arrays of equal length;
parameters and state are written in place, and nothing is kept between calls. ``step`` is the number of this step, 1 at
the first. ``options`` are the hyperparameters of the class of the same name, with its defaults, and ``maximize``,
``decoupled_weight_decay``, ``convention``, ``n_threads``, ``nonfinite``, ``copy_grads``: see there for the rule, its
order, ranges and sources. State starts at zero unless said otherwise, and may be left out where the options do not
need it. Everything is checked before the first write, as in `Optimizer.step`.

Every function returns True, or False when ``nonfinite="skip"`` skipped the step.

Examples
--------
>>> import numpy as np
>>> from fastopt.functional import adam_
>>> p = np.array([1.0, 2.0])
>>> m, v = np.zeros(2), np.zeros(2)
>>> adam_(p, np.array([0.5, -0.5]), m, v, step=1, lr=0.1)
True
>>> p.round(3).tolist()
[0.9, 2.1]
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import index
from typing import Any

import numpy as np

from fastopt.adagrad import Adadelta, Adagrad
from fastopt.adam import Adam, Adamax, AdamW, NAdam, RAdam
from fastopt.engine import Plan
from fastopt.errors import HyperparameterError, OverlapError, ParameterError, ReadOnlyError
from fastopt.lion import Lion
from fastopt.optimizer import Optimizer, derive, known_convention, require_all, with_defaults
from fastopt.rmsprop import RMSprop
from fastopt.sgd import SGD, Momentum

__all__ = [
    "adadelta_", "adagrad_", "adam_", "adamax_", "adamw_", "lion_", "momentum_", "nadam_", "nag_", "radam_",
    "rmsprop_", "sgd_",
]  # fmt: skip

ENGINE_OPTIONS = ("n_threads", "nonfinite", "copy_grads")


def _take(
    cls: type[Optimizer], p: Any, g: Any, state: Mapping[str, Any], step: int, options: dict[str, Any],
    carry: list[float] | None = None, products: list[np.ndarray] | None = None,
) -> bool:  # fmt: skip
    """One step of the rule of `cls`.

    `carry` gives the carried number of each parameter, `products` the arrays to write it back to.
    """
    try:
        count = index(step)
    except TypeError:
        count = 0
    if not 1 <= count < 2**63:
        raise HyperparameterError(f"step={step!r} must be an int >= 1, below 2**63: the number of this step")
    many = isinstance(p, (list, tuple))
    params = list(p) if many else [p]
    columns = {}
    for name, arrays in {**state, "g": g}.items():
        column = arrays if many else [arrays]
        if column is None:
            continue
        if not isinstance(column, (list, tuple)) or len(column) != len(params):
            raise ParameterError(f"{name} must be a list of {len(params)} arrays, like p")
        columns[name] = column
    grads = list(columns.pop("g", [None] * len(params)))
    convention = known_convention(cls, options.pop("convention", None))
    plan = Plan(partial(derive, cls, convention), **{key: options.pop(key) for key in ENGINE_OPTIONS if key in options})
    known = (*cls.hyperparameters, "maximize", "decoupled_weight_decay")
    for key in options:
        if key not in known or key == "initial_accumulator_value":
            raise TypeError(f"{cls.__name__} has no option {key!r}; there are: {', '.join(known)}")
    full = with_defaults(cls, convention, options)
    require_all(cls, convention, full)
    states = [{name: column[i] for name, column in columns.items()} for i in range(len(params))]
    plan.set_steps(count - 1, 0)
    plan.add_group(full, params, [None] * len(params), states)
    for i, product in enumerate(products or []):
        if plan.touches(product) or any(np.may_share_memory(product, other) for other in (products or [])[:i]):
            raise OverlapError(f"mu_product of parameter {i} overlaps a parameter, a state or another mu_product")
    for i in range(len(params)):
        plan.set_count(i, count - 1, plan.count(i)[1] if carry is None else carry[i])
    plan.step(grads)
    for i, product in enumerate(products or []):
        product[...] = plan.count(i)[1]
    return plan.skipped == 0


def sgd_(p: Any, g: Any, momentum_buffer: Any = None, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.SGD`. The buffer's old content is ignored at step 1, as the rule says."""
    n = len(p) if isinstance(p, (list, tuple)) else 1
    return _take(SGD, p, g, {"momentum_buffer": momentum_buffer}, step, options, [float(step > 1)] * n)


def momentum_(p: Any, g: Any, momentum_buffer: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.Momentum`."""
    return _take(Momentum, p, g, {"momentum_buffer": momentum_buffer}, step, options)


def nag_(p: Any, g: Any, momentum_buffer: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.NAG`: g is the gradient at ``p + momentum * momentum_buffer``."""
    return _take(Momentum, p, g, {"momentum_buffer": momentum_buffer}, step, options)


def adagrad_(p: Any, g: Any, sum: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.Adagrad`. Fill ``sum`` with the initial accumulator value yourself."""
    return _take(Adagrad, p, g, {"sum": sum}, step, options)


def adadelta_(p: Any, g: Any, square_avg: Any, acc_delta: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.Adadelta`."""
    return _take(Adadelta, p, g, {"square_avg": square_avg, "acc_delta": acc_delta}, step, options)


def rmsprop_(
    p: Any, g: Any, square_avg: Any, grad_avg: Any = None, momentum_buffer: Any = None, *, step: int, **options: Any
) -> bool:
    """One step of `fastopt.RMSprop`; ``grad_avg`` if centered, ``momentum_buffer`` with momentum."""
    state = {"square_avg": square_avg, "grad_avg": grad_avg, "momentum_buffer": momentum_buffer}
    return _take(RMSprop, p, g, state, step, options)


def adam_(
    p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any = None, *, step: int, **options: Any
) -> bool:
    """One step of `fastopt.Adam`; ``max_exp_avg_sq`` with ``amsgrad=True``."""
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    return _take(Adam, p, g, state, step, options)


def adamw_(
    p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any = None, *, step: int, **options: Any
) -> bool:
    """One step of `fastopt.AdamW`; ``max_exp_avg_sq`` with ``amsgrad=True``."""
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    return _take(AdamW, p, g, state, step, options)


def adamax_(p: Any, g: Any, exp_avg: Any, exp_inf: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.Adamax`."""
    return _take(Adamax, p, g, {"exp_avg": exp_avg, "exp_inf": exp_inf}, step, options)


def nadam_(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, mu_product: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.NAdam`; ``mu_product`` is an array of one float for each p, 1 before step 1, updated too."""
    n = len(p) if isinstance(p, (list, tuple)) else 1
    products = list(mu_product) if isinstance(p, (list, tuple)) else [mu_product]
    if len(products) != n:
        raise ParameterError(f"mu_product must be a list of {n} arrays, like p; not of {len(products)}")
    for product in products:
        if not isinstance(product, np.ndarray) or product.size != 1 or product.dtype.kind != "f":
            raise ParameterError(f"mu_product must be an array of one float (a list of them, like p), not {product!r}")
        if not product.flags.writeable:
            raise ReadOnlyError("mu_product is read-only; a step writes to it")
    carry = [float(product.item()) for product in products]
    return _take(NAdam, p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step, options, carry, products)


def radam_(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.RAdam`."""
    return _take(RAdam, p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step, options)


def lion_(p: Any, g: Any, exp_avg: Any, *, step: int, **options: Any) -> bool:
    """One step of `fastopt.Lion`."""
    return _take(Lion, p, g, {"exp_avg": exp_avg}, step, options)
