"""What can be wrong with parameters and their groups."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from proof.badcalls.arrays import of_other_float, of_other_type, off_layout, shifted_over
from proof.badcalls.world import BIG, SHAPES, Call, World, kind
from support import NUMBER_NAMES, build, names_of, needed, numbers_given, values

from fastopt import functional
from fastopt.errors import (
    DTypeError,
    FastoptError,
    HyperparameterError,
    LayoutError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    StateDictError,
)
from fastopt.state import decays_of


def saved_by(w: World, foreign: bool = False) -> dict[str, Any]:
    """A good state dict in which everything is another than now; perhaps as PyTorch would save it, without our key."""
    saved = copy.deepcopy(w.twin.state_dict())
    own = saved["fastopt"]
    own.update(steps=own["steps"] + 5, skipped_steps=3, counts=[count + 5 * (count > 0) for count in own["counts"]])
    for entry in saved["state"].values():
        for name, value in entry.items():
            value += 5 if name == "step" else 0.25 if name not in NUMBER_NAMES else 0
    for group in saved["param_groups"]:
        group["lr"] = 0.0625
    here, there = w.cls.conventions[w.convention].decay, decays_of(w.cls, {})
    if foreign and all(there.get(flag, kind) == kind for flag, kind in here.items()):  # else it is taken for PyTorch's
        del saved["fastopt"]
    return saved


def group_of(w: World, arrays: list[Any]) -> dict[str, Any]:
    """A new group for the optimizer of this world."""
    return {"params": {f"new{i}": a for i, a in enumerate(arrays)} if w.named else arrays}


def functional_call(w: World, arrays: list[Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of this world's class, and good arguments for a step over these arrays."""
    floats = (np.float32, np.float64)
    like = [a if isinstance(a, np.ndarray) and a.dtype in floats else np.ones(3) for a in arrays]
    state: dict[str, Any] = {
        name: [np.zeros_like(a, subok=False) for a in like] for name in (*names_of(w.cls, optional=None), "ema")
    }
    state |= {name: [np.ones(1) for _ in like] for name in numbers_given(w.cls)}
    call = {"p": arrays, "g": [np.ones_like(a, subok=False) for a in like], **state, "step": w.integer(1, 9)}
    call |= {"convention": w.convention, **needed(w.cls, w.convention)}
    function = getattr(functional, f"{w.cls.__name__.lower()}_")
    if w.pick(False, True):
        function = functools.partial(through_bind, w.cls)
    elif w.pick(False, True):
        with contextlib.suppress(FastoptError):  # a bad array is among them already
            function(**call)  # which is remembered: the bad call is like it but for what is bad
    return function, call


def through_bind(cls: Any, p: Any, g: Any, step: Any, convention: Any, **rest: Any) -> bool:
    """The step of a function by way of `fastopt.functional.bind`."""
    state = [rest.pop(name, None) for name in functional._arguments(cls)[2:]]
    return functional.bind(cls, p, state, convention=convention, **rest).step(g, step=step)


def columns(call: dict[str, Any]) -> tuple[Any, ...]:
    """All arrays of such a call."""
    return tuple(a for column in call.values() if isinstance(column, list) for a in column)


def as_parameter(w: World, bad: Any) -> tuple[str, Callable[[], Any], str, tuple[Any, ...]]:
    """A call that gives this as a parameter: its name, itself, how messages call the parameter, the other arrays."""
    others = w.fresh(w.integer(0, 2))
    at = w.integer(0, len(others))
    arrays = [*others[:at], bad, *others[at:]]
    way = w.pick("a list", "names", "groups", "add_param_group", "functional")
    label = f"parameter {at}"
    if way == "names":
        named = {f"new{i}": a for i, a in enumerate(arrays)}
        return way, lambda: build(w.cls, named, w.convention), f"parameter 'new{at}'", tuple(others)
    if way == "groups":
        groups = [{"params": [a]} for a in arrays]
        return way, lambda: build(w.cls, groups, w.convention), label, tuple(others)
    if way == "add_param_group":
        group = group_of(w, arrays)
        label = f"parameter 'new{at}'" if w.named else f"parameter {len(w.params) + at}"
        return way, lambda: w.opt.add_param_group(group), label, tuple(others)
    if way == "functional":
        function, call = functional_call(w, arrays)
        return way, lambda: function(**call), label, tuple(a for a in columns(call) if a is not bad)
    return way, lambda: build(w.cls, arrays, w.convention), label, tuple(others)


@kind("a parameter's type")
def parameter_type(w: World) -> Call:
    shape = w.pick(*SHAPES)
    what, bad = of_other_float(w, shape, [np.float32, np.float64]) if w.pick(False, True) else of_other_type(w, shape)
    if isinstance(bad, dict):
        what, bad = "None", None  # in a list, a dict would be a group
    way, do, label, others = as_parameter(w, bad)
    return Call(f"{way} with a parameter of {what}", do, DTypeError, (label,),
                (*others, bad) if isinstance(bad, np.ndarray) else others)  # fmt: skip


@kind("a parameter's layout")
def parameter_layout(w: World) -> Call:
    what, bad = off_layout(w, w.pick(*BIG), w.pick(np.float32, np.float64), "CF")
    way, do, label, others = as_parameter(w, bad)
    return Call(f"{way} with a parameter of {what}", do, LayoutError, (label,), (*others, bad))


def read_only(w: World, shape: Any, dtype: Any, order: str = "C") -> np.ndarray:
    a = values(shape, dtype).copy(order)
    if order == "C" and w.pick(False, True):
        return np.frombuffer(a.tobytes(), dtype).reshape(shape)
    a.setflags(write=False)
    return a


@kind("a read-only parameter")
def parameter_read_only(w: World) -> Call:
    bad = read_only(w, w.pick(*SHAPES), w.pick(np.float32, np.float64), w.pick("C", "F"))
    way, do, label, others = as_parameter(w, bad)
    return Call(f"{way} with a read-only parameter", do, ReadOnlyError, (label,), (*others, bad))


@kind("parameters that share memory")
def parameter_overlap(w: World) -> Call:
    says: tuple[Any, ...] = (("overlaps", "is the same memory as"),)
    if w.pick(False, True):
        j = w.filled()
        target = w.pick(*w.arrays_of(j))
        shared = shifted_over(w, target, np.empty(w.pick(*BIG), w.pick(np.float32, np.float64)))
        shared = target[...] if shared is None else shared
        new = [*w.fresh(w.integer(0, 2)), shared]
        group = group_of(w, new)
        label = f"parameter 'new{len(new) - 1}'" if w.named else f"parameter {len(w.params) + len(new) - 1}"
        return Call(f"add_param_group with an array at {shared.ctypes.data - target.ctypes.data} bytes from one of {j}",
                    lambda: w.opt.add_param_group(group), OverlapError, (label, *says))  # fmt: skip
    first = w.fresh()[0]
    part = np.ones(first.shape[:-1] or (1,), first.dtype)
    second = w.pick(lambda: first, lambda: first[...], lambda: first.T, lambda: shifted_over(w, first, part))()
    before, between = w.fresh(w.integer(0, 1)), w.fresh(w.integer(0, 1))
    arrays = [*before, first, *between, second]
    way, make = w.pick(
        ("a list", lambda: build(w.cls, arrays, w.convention)),
        ("names", lambda: build(w.cls, {f"new{i}": a for i, a in enumerate(arrays)}, w.convention)),
        ("groups", lambda: build(w.cls, [{"params": a} for a in arrays], w.convention)),
        ("functional", lambda: function(**call)),
    )
    function, call = functional_call(w, arrays)
    label = (lambda i: f"parameter 'new{i}'") if way == "names" else (lambda i: f"parameter {i}")
    return Call(f"{way} with parameters {len(before)} and {len(arrays) - 1} that overlap", make, OverlapError,
                (label(len(before)), label(len(arrays) - 1), *says), tuple(arrays))  # fmt: skip


@kind("the container of parameters")
def parameter_container(w: World) -> Call:
    a, b = w.fresh(2)
    build_with = functools.partial(build, w.cls, convention=w.convention)
    cases: dict[str, tuple[Any, Any, Any]] = {
        "an empty list": ([], ParameterError, "no parameters"), "an empty tuple": ((), ParameterError, "no parameters"),
        "an empty iterator": (iter([]), ParameterError, "no parameters"), "{}": ({}, ParameterError, "no parameters"),
        "an empty string": ("", ParameterError, "no parameters"), "None": (None, DTypeError, "parameter 0"),
        "a number": (3.0, DTypeError, "parameter 0"), "an object": (object(), DTypeError, "parameter 0"),
        "a list of numbers": ([1.0, 2.0], DTypeError, "parameter 0"), "a string": ("ab", DTypeError, "parameter 0"),
        "None in a list": ([a, None], DTypeError, "parameter 1"),
        "None by name": ({"a": a, "b": None}, DTypeError, "parameter 'b'"),
        "a list in a list": ([[a, b]], DTypeError, "parameter 0"),
        "a group without params": ([{"lr": 0.1}], ParameterError, "'params'"),
        "an empty group dict": ([{"params": [a]}, {}], ParameterError, "'params'"),
        "an array among groups": ([{"params": [a]}, b], ParameterError, "'params'"),
        "a group among arrays": ([a, {"params": [b]}], ParameterError, "'params'"),
        "a group of None": ([{"params": None}], DTypeError, "parameter 0"),
        "a name twice": ([{"params": {"a": a}}, {"params": {"a": b}}], ParameterError, "'a'"),
        "names in one group": ([{"params": {"a": a}}, {"params": [b]}], ParameterError, "name"),
        "names in the other": ([{"params": [a]}, {"params": {"b": b}}], ParameterError, "name"),
    }  # fmt: skip
    label = "parameter 'new0'" if w.named else f"parameter {len(w.params)}"
    added: dict[str, tuple[Any, Any, Any]] = {
        "None": (None, ParameterError, "'params'"), "an array": (a, ParameterError, "'params'"),
        "a list": ([a], ParameterError, "'params'"), "a string": ("params", ParameterError, "'params'"),
        "{}": ({}, ParameterError, "'params'"), "a group without params": ({"lr": 0.1}, ParameterError, "'params'"),
        "None in a group": (group_of(w, [None]), DTypeError, label),
        "a number in a group": (group_of(w, [1.0]), DTypeError, label),
        "names, or none": ({"params": [a] if w.named else {"a": a}}, ParameterError, "name"),
    }  # fmt: skip
    if w.named:
        name = w.pick(*w.names)
        added["a name that is there"] = ({"params": {name: a}}, ParameterError, repr(name))
    if w.pick(False, True):
        what = w.pick(*cases)
        given_params, error, says = cases[what]
        return Call(f"{what} as parameters", lambda: build_with(given_params), error, (says,), (a, b))
    what = w.pick(*added)
    given_group, error, says = added[what]
    return Call(f"add_param_group of {what}", lambda: w.opt.add_param_group(given_group), error, (says,), (a, b))


@kind("param_groups taken apart")
def groups_edited(w: World) -> Call:
    groups = w.opt.param_groups
    k = w.integer(0, len(groups) - 1)
    before, inside = list(groups), dict(groups[k])
    saved = saved_by(w)

    def mend() -> None:
        groups[:] = before
        before[k].clear()
        before[k].update(inside)

    what, act = w.pick(
        ("one more", lambda: groups.append(dict(inside))), ("one less", groups.pop), ("none", groups.clear),
        ("None for one", lambda: groups.__setitem__(k, None)),
        ("a list for one", lambda: groups.__setitem__(k, list(inside.items()))),
        ("other params", lambda: groups[k].update(params=tuple(w.fresh()))),
        ("a copy of params", lambda: groups[k].update(params=list(inside["params"]))),
        ("no params", lambda: groups[k].pop("params")), ("None for params", lambda: groups[k].update(params=None)),
        ("another dict, of other params", lambda: groups.__setitem__(k, {**inside, "params": tuple(w.fresh())})),
        ("an option gone", lambda: groups[k].pop("lr")), ("all gone", lambda: groups[k].clear()),
    )  # fmt: skip
    act()
    calls = {"step": lambda: w.opt.step(w.grads)}
    if "params" not in what or "dict" in what:
        calls["load_state_dict"] = lambda: w.opt.load_state_dict(saved)
    if hasattr(w.opt, "lookahead"):
        calls["lookahead"] = w.opt.lookahead
    if "option" in what or "all" in what:
        del calls["load_state_dict"]  # which brings it back
    call = w.pick(*calls)
    return Call(f"{call} with {what} in param_groups", calls[call],
                (HyperparameterError, ParameterError, StateDictError), (("param_groups", "group"),),
                mend=mend)  # fmt: skip
