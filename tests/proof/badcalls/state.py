"""What can be wrong with state that the caller supplies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from proof.badcalls.arrays import masked, of_other_float, of_other_type, off_layout, shifted_over
from proof.badcalls.gradients import WITH_STATE, change
from proof.badcalls.parameters import columns, functional_call, group_of, read_only
from proof.badcalls.world import NO_INTS, Call, World, kind
from support import ALL, build, names_of, numbers_given

from fastopt import functional
from fastopt.errors import (
    DTypeError,
    HyperparameterError,
    LayoutError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    ShapeError,
    UnknownOptionError,
)


def wrong_array(w: World, like: np.ndarray, order: str) -> tuple[str, Any, type[Exception]]:
    """What cannot be the state of a parameter like this one: in form, type, layout, or read-only."""
    shape, dtype = like.shape, like.dtype
    way = w.pick("shape", "type", "float", "layout", "read-only", "masked")
    if way == "shape":
        other = w.pick((*shape, 1), (1, *shape), tuple(n + 1 for n in shape), (), shape[1:])  # `like` has an axis
        return f"shape {other}", np.zeros(other, dtype), ShapeError
    if way == "type":
        return *of_other_type(w, shape), DTypeError
    if way == "float":
        return *of_other_float(w, shape, [dtype]), DTypeError
    if way == "masked":
        return "a mask", masked(w, shape, dtype), DTypeError
    if way == "read-only":
        return "no writing", read_only(w, shape, dtype, order), ReadOnlyError
    return *off_layout(w, shape, dtype, "CF" if w.pick(False, True) else order), LayoutError


@kind("state from a state_factory", WITH_STATE, factory=True)
def state_factory(w: World) -> Call:
    name = w.pick(*w.slots)
    arrays = w.fresh(w.integer(1, 3))
    i = w.integer(0, len(arrays) - 1)
    way = w.pick("wrong", "wrong", "a parameter", "another state", "the state of another")
    made: list[Any] = []
    if way == "wrong":
        what, bad, error = wrong_array(w, arrays[i], "C")
    elif way == "a parameter":
        what, bad, error = way, arrays[i], OverlapError
    elif way == "the state of another":
        over = shifted_over(w, w.pick(*w.arrays_of(w.filled())[1:]), arrays[i])
        what, bad, error = (way, over, OverlapError) if over is not None else ("None", None, DTypeError)
    else:
        what, bad, error = way, None, OverlapError
    if what == "another state" and len(w.slots) == 1:
        what, bad, error = "a parameter", arrays[i], OverlapError
    count = Counter[str]()

    def fault(slot: str, shape: Any, dtype: Any) -> Any:
        count[slot] += 1
        if count[slot] - 1 == i and (slot == name or what == "another state"):
            if what == "another state":
                made.append(made[0] if made else np.zeros(shape, dtype))
                return made[-1]
            return bad
        return np.zeros(shape, dtype)

    new = what == "the state of another" or w.pick(False, True)
    if new:
        label = f"parameter 'new{i}'" if w.named else f"parameter {len(w.params) + i}"
        group = group_of(w, arrays)
        w.fault = fault
        do = lambda: w.opt.add_param_group(group)  # noqa: E731
    else:
        label = f"parameter {i}"
        do = lambda: build(w.cls, arrays, w.convention, state_factory=fault)  # noqa: E731
    slots = w.slots if what == "another state" else (name,)
    return Call(f"{'a new group' if new else 'the constructor'} with {what} for state {name!r} of {i}", do, error,
                (tuple(f"state {slot!r} of {label}" for slot in slots),), tuple(arrays),
                mend=lambda: setattr(w, "fault", None))  # fmt: skip


@kind("functional: state", [pair for pair in ALL if names_of(pair[0])])
def functional_state(w: World) -> Call:
    arrays = w.fresh(w.integer(1, 3))
    function, call = functional_call(w, arrays)
    i, name = w.integer(0, len(arrays) - 1), w.pick(*names_of(w.cls))
    label = f"state {name!r} of parameter {i}"
    good = columns(call)
    way = w.pick(
        "wrong", "wrong", "wrong", "missing", "None", "too few", "too many", "no list", "a parameter", "a state"
    )
    what, error, says = way, ParameterError, (name,)
    others = [slot for slot in names_of(w.cls) if slot != name]
    if way == "wrong" or (way == "a state" and not others):
        what, call[name][i], error = wrong_array(w, arrays[i], "C")
        says = (label,)
    elif way == "missing":
        call[name] = None
    elif way == "None":
        call[name][i], says = None, (repr(name), f"parameter {i}")
    elif way == "too few":
        call[name] = call[name][:-1]
    elif way == "too many":
        call[name] = [*call[name], np.zeros(3)]
    elif way == "no list":
        call[name] = w.pick(np.zeros(3), 3.0, "ab", iter([]), {})
    elif way == "a parameter":
        call[name][i], error, says = arrays[i], OverlapError, (label,)
    else:
        other = w.pick(*others)
        call[name][i], error, says = call[other][i], OverlapError, (f"of parameter {i}",)
    return Call(f"functional with {what} for {name!r} of {i}", lambda: function(**call), error, says, good)


@kind("functional: arguments")
def functional_arguments(w: World) -> Call:
    arrays = w.fresh(w.integer(1, 3))
    function, call = functional_call(w, arrays)
    i = w.integer(0, len(arrays) - 1)
    p = arrays[i]
    good = columns(call)
    way = w.pick("step", "step", "gradient", "layout", "overlap", "too few", "no list", "option", "accumulator")
    what, error, says = way, ParameterError, ("g must be a list",)
    if way == "step":
        call["step"] = w.pick(0, 2**63, 10**30, None, *NO_INTS, w.some("an int below 0"))
        what, error, says = f"step={call['step']!r}", HyperparameterError, (f"step={call['step']!r}",)
    elif way == "gradient":
        bad = np.ones((*p.shape, 1), p.dtype) if w.pick(False, True) else of_other_type(w, p.shape)[1]
        error = ShapeError if isinstance(bad, np.ndarray) and bad.dtype == p.dtype else DTypeError
        call["g"][i], says = bad, (f"gradient of parameter {i}",)
    elif way == "layout":
        what, call["g"][i] = off_layout(w, p.shape, p.dtype, "C")
        error, says = LayoutError, (f"gradient of parameter {i}",)
    elif way == "overlap":
        targets = [p, *(call[name][i] for name in names_of(w.cls))]
        call["g"][i], error, says = w.pick(*targets), OverlapError, (f"gradient of parameter {i}",)
    elif way == "too few":
        call["g"] = call["g"][:-1]
    elif way == "no list":
        call["g"] = w.pick(p, None, 3.0, {}, "ab")
    elif way == "option":
        name = w.pick("learning_rate", "beta", "state_factory", "foreach", "params")
        call[name], error, says = 0.1, UnknownOptionError, (repr(name),)
    else:
        call["initial_accumulator_value"], error, says = 0.1, UnknownOptionError, ("initial_accumulator_value",)
    return Call(f"functional with {what} for {i}", lambda: function(**call), error, says, good)


@kind("functional: a number", [pair for pair in ALL if numbers_given(pair[0])])
def functional_product(w: World) -> Call:
    arrays = w.fresh(w.integer(2, 3))
    function, call = functional_call(w, arrays)
    i = w.integer(1, len(arrays) - 1)
    name = w.pick(*numbers_given(w.cls))
    products = call[name]
    way = w.pick("a value", "a value", "no writing", "other memory", "another", "no list")
    error: Any = ParameterError
    if way == "a value":
        (highest,) = [slot.limits[1] for slot in w.cls.slots if slot.name == name]
        products[i] = w.pick(
            1.0, None, "1", np.ones(2), np.ones(0), np.ones(1, int), np.array([np.nan]), np.array(-0.5),
            np.array([w.some("a number above 1") if highest == 1 else -np.inf]),
        )  # fmt: skip
    elif way == "no writing":
        error, products[i] = ReadOnlyError, np.ones(1)
        products[i].setflags(write=False)
    elif way == "other memory":
        error, products[i] = OverlapError, call[w.pick("p", "g", *names_of(w.cls))][w.integer(0, i)].reshape(-1)[:1]
        products[i][...] = 1.0
    elif way == "another":
        error, products[i] = OverlapError, products[0]
    else:
        call[name] = w.pick(np.ones(1), [*products, np.ones(1)], [], 1.0)
    return Call(f"functional with {way} for {name} {i}: {products[i]!r}", lambda: function(**call), error,
                (name,), columns(call))  # fmt: skip


@kind("functional: bound arrays changed in place", WITH_STATE)
def bound_changed(w: World) -> Call:
    arrays = w.fresh(w.integer(1, 3))
    _, call = functional_call(w, arrays)
    g, step, convention = (call.pop(key) for key in ("g", "step", "convention"))
    good, state = columns(call), [call.pop(name, None) for name in functional._arguments(w.cls)[2:]]
    bound = functional.bind(w.cls, call.pop("p"), state, convention=convention, **call)
    bound.step(g, step=step)
    i = w.integer(0, len(arrays) - 1)
    name, column = w.pick(("p", arrays), *zip(names_of(w.cls), state, strict=False))
    what, _, _, _ = change(w, column[i], writing=True)
    return Call(f"a step of a bound rule with {name} {i}, {what}", lambda: bound.step(g, step=step + 1),
                (DTypeError, LayoutError, ReadOnlyError, ShapeError), (f"parameter {i}",), good)  # fmt: skip
