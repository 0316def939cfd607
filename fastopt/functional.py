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
from fastopt.declare import (
    Slot,
    arrays_of,
    derive,
    known_convention,
    numbers_at,
    numbers_of,
    refuse_unknown,
    remembered,
    require_all,
    with_defaults,
)
from fastopt.engine import Plan, listed, shown
from fastopt.errors import HyperparameterError, OverlapError, ParameterError, ReadOnlyError, UnknownOptionError
from fastopt.optimizer import Optimizer
from fastopt.state import as_number
from fastopt.typing import Arrays, Betas, EpsPlacement, Hyperparameter, Nonfinite, Number, Pair  # noqa: F401

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
    numbers = [numbers_at(cls, count)] * len(params)
    given = []  # name, place and arrays of the numbers that the caller keeps
    for at, slot in _given_numbers(cls):
        arrays = columns.pop(slot.name, [None] * len(params))
        given.append((slot.name, at, arrays))
        read = [_number(slot, array) for array in arrays]
        numbers = [(*mine[:at], number, *mine[at + 1 :]) for mine, number in zip(numbers, read, strict=True)]

    convention = known_convention(cls, options.pop("convention", None))
    settings = {key: options.pop(key) for key in ENGINE_OPTIONS if key in options}
    plan = Plan(partial(derive, cls, convention, rename=False), **settings)
    refuse_unknown(cls, options)
    full = with_defaults(cls, convention, options)
    require_all(cls, convention, full)
    plan.set_steps(count - 1, 0)
    states = [{name: column[i] for name, column in columns.items()} for i in range(len(params))]
    plan.add_group(full, params, [None] * len(params), states)
    if given:
        _check_apart(plan, given)
    for i, mine in enumerate(numbers):
        plan.set_count(i, count - 1, mine)
    plan.step(grads, numbers=given)
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


@remembered
def _given_numbers(cls: type[Optimizer]) -> tuple[tuple[int, Slot], ...]:
    """The numbers that the caller keeps for each parameter, and their places among all."""
    return tuple((at, slot) for at, slot in enumerate(numbers_of(cls)) if slot.like == "number")


def _number(slot: Slot, array: Any) -> float:
    """A number that a parameter carries, from its array, checked."""
    if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind != "f":
        raise ParameterError(f"{slot.name} must be an array of one float (a list of them, like p), not {shown(array)}")
    if not array.flags.writeable:
        raise ReadOnlyError(f"{slot.name} is read-only; a step writes to it")
    try:
        return as_number(array, slot.name, slot, "state")
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _check_apart(plan: Plan, given: list[tuple[str, int, list[np.ndarray]]]) -> None:
    """Raise if the memory of a number meets a parameter, a state, or another number."""
    every = [(f"{name} of parameter {i}", array) for name, _, arrays in given for i, array in enumerate(arrays)]
    for label, array in every:
        if plan.touches(array):
            raise OverlapError(f"{label} overlaps a parameter or a state")
    places = sorted((array.ctypes.data, k) for k, (_, array) in enumerate(every))
    for (a, i), (b, j) in zip(places, places[1:], strict=False):
        if a + every[i][1].nbytes > b:
            low, high = every[min(i, j)][0], every[max(i, j)][0]
            same = low.partition(" ")[0] == high.partition(" ")[0]
            raise OverlapError(f"{high} overlaps {low.replace(low.partition(' ')[0], 'that') if same else low}")


def _required(cls: type[Optimizer]) -> tuple[str, ...]:
    """The state that the function of a class has to be given."""
    return tuple(slot.name for slot in (*arrays_of(cls, optional=False), *(slot for _, slot in _given_numbers(cls))))


def _signature(cls: type[Optimizer]) -> Signature:
    """What the function of an optimizer class takes: arrays by position, and the options of the class by name."""
    options = {**signature(Optimizer.__init__).parameters, **signature(cls).parameters}
    arrays = {
        "p": Parameter.empty, "g": Parameter.empty, **dict.fromkeys(_required(cls), Parameter.empty),
        **{slot.name: None for slot in arrays_of(cls, optional=True)},
    }  # fmt: skip
    kinds = {"g": "Arrays | None", **{slot.name: "Arrays | None" for slot in arrays_of(cls, optional=True)}}
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
    required = _required(cls)
    shown = _signature(cls)
    slots = (*required, *(slot.name for slot in arrays_of(cls, optional=True)))
    filled = [slot.name for slot in arrays_of(cls) if slot.first == "initial_accumulator_value"]
    positional, needed = ("p", "g", *slots), {"p", "g", *required, "step"}
    name = cls.__name__.lower() + "_"

    def function(*args: Any, **kwargs: Any) -> bool:
        given = dict(zip(positional, args, strict=False))
        if len(args) > len(positional) or not given.keys().isdisjoint(kwargs):
            shown.bind(*args, **kwargs)  # raises what Python raises of such a call
        given.update(kwargs)
        if not needed <= given.keys():
            shown.bind(*args, **kwargs)
        if filled and "initial_accumulator_value" in given:
            raise UnknownOptionError(f"initial_accumulator_value is not for {name}: fill {filled[0]!r} yourself")
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
