"""The update rules as plain in-place functions, for libraries that keep parameters, state and counts themselves.

Each function takes one step. ``p``, ``g`` and the state are one array each, or lists (or other iterables) with one
array a parameter; parameters and state are written in place, and nothing is kept between calls. ``step`` is the number
of this step, 1 at the first. The options are the hyperparameters of the class of the same name (None: as the convention
has it) and ``maximize``, ``decoupled_weight_decay``, ``flush_subnormal``, ``convention``, ``n_threads``, ``nonfinite``,
``copy_grads``: see there for the rule, its order, ranges and sources. State starts at zero unless said otherwise, and
may be left out where the options do not need it. Everything is checked before the first write, as in `Optimizer.step`.

There is one function for each optimizer: ``sgd_``, ``momentum_``, ``nag_``, ``adagrad_``, ``adadelta_``, ``rmsprop_``,
``adam_``, ``adamw_``, ``adamax_``, ``nadam_``, ``radam_``, ``lion_``. Of some:

- Arguments have the same names under every convention. State that the class calls differently there is given by the
  name in the signature: the velocity of Keras's SGD is the ``momentum_buffer`` of ``sgd_(..., convention="keras")``.
- ``nag_``: g is the gradient at ``p + momentum * velocity``.
- ``adagrad_``, ``rmsprop_``: fill the accumulator with its initial value yourself.
- ``nadam_``: ``mu_product`` is an array of one float for each p, 1 before step 1, updated too.
- ``sgd_``: what the buffer held before step 1 is ignored, as the rule says.

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

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, Signature, signature
from operator import index
from typing import Any, Literal, SupportsIndex  # noqa: F401

import numpy as np

from fastopt import OPTIMIZERS
from fastopt.engine import Plan, listed, shown
from fastopt.errors import HyperparameterError, OverlapError, ParameterError, ReadOnlyError, UnknownOptionError
from fastopt.optimizer import Optimizer, derive, known_convention, refuse_unknown, require_all, with_defaults
from fastopt.typing import Arrays, Betas, EpsPlacement, Hyperparameter, Nonfinite, Number  # noqa: F401

ENGINE_OPTIONS = ("n_threads", "nonfinite", "copy_grads")


def _take(cls: type[Optimizer], p: Any, g: Any, state: Mapping[str, Any], step: int, options: dict[str, Any]) -> bool:
    """One step of the rule of `cls`."""
    try:
        count = index(step)
    except TypeError:
        count = 0
    if not 1 <= count < 2**63:
        raise HyperparameterError(f"step={step!r} must be an int >= 1, below 2**63: the number of this step")
    params, columns = _columns(p, {"g": g, **state})
    grads = columns.pop("g")
    carried = columns.pop(cls.carried, None) if cls.carried else None
    carry = [cls.carry_at(count)] * len(params) if carried is None else [_number(cls, a) for a in carried]

    convention = known_convention(cls, options.pop("convention", None))
    settings = {key: options.pop(key) for key in ENGINE_OPTIONS if key in options}
    plan = Plan(partial(derive, cls, convention, rename=False), **settings)
    refuse_unknown(cls, options)
    full = with_defaults(cls, convention, options)
    require_all(cls, convention, full)
    plan.set_steps(count - 1, 0)
    states = [{name: column[i] for name, column in columns.items()} for i in range(len(params))]
    plan.add_group(full, params, [None] * len(params), states)
    for i, array in enumerate(carried or []):
        if plan.touches(array):
            raise OverlapError(f"{cls.carried} of parameter {i} overlaps a parameter or a state")
    places = sorted((array.ctypes.data, i, array.nbytes) for i, array in enumerate(carried or []))
    for (a, i, size), (b, j, _) in zip(places, places[1:], strict=False):
        if a + size > b:
            raise OverlapError(f"{cls.carried} of parameter {max(i, j)} overlaps that of parameter {min(i, j)}")
    for i, value in enumerate(carry):
        plan.set_count(i, count - 1, (value,))
    plan.step(grads, carried=carried or ())
    return plan.skipped == 0


def _columns(p: Any, rest: Mapping[str, Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """The parameters as a list, and gradients and state as lists of the same length; None stays out."""
    params = listed(p)
    if params is None:
        return [p], {name: [array] for name, array in rest.items() if array is not None or name == "g"}
    columns = {}
    for name, column in rest.items():
        if column is None and name != "g":
            continue
        members = listed(column, len(params) + 1)
        if members is None or len(members) != len(params):
            raise ParameterError(f"{name} must be a list of {len(params)} arrays, like p")
        columns[name] = members
    return params, columns


def _number(cls: type[Optimizer], array: Any) -> float:
    """The carried number from its array, checked."""
    if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind != "f":
        raise ParameterError(
            f"{cls.carried} must be an array of one float (a list of them, like p), not {shown(array)}"
        )
    if not array.flags.writeable:
        raise ReadOnlyError(f"{cls.carried} is read-only; a step writes to it")
    try:
        return cls.carry_from({str(cls.carried): array.item()}, known_convention(cls, None))
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _signature(cls: type[Optimizer]) -> Signature:
    """What the function of an optimizer class takes: arrays by position, and the options of the class by name."""
    options = {**signature(Optimizer.__init__).parameters, **signature(cls).parameters}
    arrays = {
        "p": Parameter.empty, "g": Parameter.empty, **dict.fromkeys(cls.slots, Parameter.empty),
        **({cls.carried: Parameter.empty} if cls.carried else {}), **dict.fromkeys(cls.optional_slots, None),
    }  # fmt: skip
    kinds = {"g": "Arrays | None", **dict.fromkeys(cls.optional_slots, "Arrays | None")}
    by_name = [key for key in (*cls.group_keys(), "convention", *ENGINE_OPTIONS) if key != "initial_accumulator_value"]
    return Signature(
        [
            *(
                Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kinds.get(name, "Arrays"))
                for name, default in arrays.items()
            ),
            Parameter("step", Parameter.KEYWORD_ONLY, annotation="SupportsIndex"),
            *(options[key].replace(kind=Parameter.KEYWORD_ONLY) for key in by_name),
        ],
        return_annotation="bool",
    )


def _make(cls: type[Optimizer]) -> Callable[..., bool]:
    """The function of an optimizer class, with a signature that says what it takes."""
    required = (*cls.slots, *([cls.carried] if cls.carried else []))
    shown = _signature(cls)
    slots = (*required, *cls.optional_slots)
    positional, needed = ("p", "g", *slots), {"p", "g", *required, "step"}
    name = cls.__name__.lower() + "_"

    def function(*args: Any, **kwargs: Any) -> bool:
        given = dict(zip(positional, args, strict=False))
        if len(args) > len(positional) or not given.keys().isdisjoint(kwargs):
            shown.bind(*args, **kwargs)  # raises what Python raises of such a call
        given.update(kwargs)
        if not needed <= given.keys():
            shown.bind(*args, **kwargs)
        if "initial_accumulator_value" in given:
            raise UnknownOptionError(f"initial_accumulator_value is not for {name}: fill {cls.accumulator!r} yourself")
        p, g, step = given.pop("p"), given.pop("g"), given.pop("step")
        return _take(cls, p, g, {slot: given.pop(slot, None) for slot in slots}, step, given)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"One step of `fastopt.{cls.__name__}`, in place: see there for the rule and the options.\n\n"
        "Returns True, or False if ``nonfinite=\"skip\"`` skipped it. See the module for the other arguments.\n"
    )
    function.__signature__ = shown  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in shown.parameters.values()} | {"return": "bool"}
    return function


__all__ = [name.lower() + "_" for name in OPTIMIZERS]
globals().update({name.lower() + "_": _make(cls) for name, cls in OPTIMIZERS.items()})
