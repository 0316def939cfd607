"""What can be wrong with hyperparameters, options and conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from proof.badcalls.parameters import columns, functional_call, group_of, saved_by
from proof.badcalls.world import (
    AROUND,
    FLAGS,
    NO_FLAGS,
    NO_INTS,
    NO_NUMBERS,
    PAIRS,
    RANGES,
    UNUSUAL,
    Call,
    World,
    kind,
)
from support import ALL, build, needed

import fastopt
from fastopt.engine import STORAGE
from fastopt.errors import ConventionError, GradientError, HyperparameterError, UnknownOptionError


def wrong_number(w: World, key: str, rounds: bool, j: int = 0) -> Any:
    """What is no good value for a number, or for that at j of a pair; `rounds`: nor after rounding to float32."""
    (low, high), ends = (PAIRS[key][0][j], PAIRS[key][1][j]) if key in PAIRS else (RANGES[key], ())
    outside: list[Any] = [end for number in ends for end in (number, float(number))]
    if low > -np.inf:
        outside += [low - 1, np.float64(low - 0.5), np.array(low - 0.25), low + w.some("a number below 0")]
    if high == 1:
        outside += [2, np.float32(1.5), w.some("a number above 1")]
        outside += [0.99999999999] * (1 in ends and rounds)
    elif rounds:
        outside += [1e39, 1e300]
    if outside and w.pick(False, True):
        return w.pick(*outside)
    return w.pick(*NO_NUMBERS, np.nan, np.inf, -np.inf)


def wrong_value(w: World, key: str, rounds: bool) -> Any:
    """What is no good value for an option."""
    if key in FLAGS or key == "zero_grads":
        return w.pick(*NO_FLAGS)
    if key == "ema_start":
        return w.pick(-1, -0.5, 1.5, 2**53, 1e300, np.nan, np.inf, *NO_NUMBERS, w.some("an int below 0"), lambda k: 1)
    if key in ("clip_value", "clip_norm_each"):
        numbers = [x for x in NO_NUMBERS if not (isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim == 0)]
        tiny = [1e-60] * (rounds and key == "clip_value")
        return w.pick(0, 0.0, -0.0, -1, -np.inf, np.nan, *tiny, *numbers, w.some("a number below 0"))
    if key == "eps_placement":
        return w.pick("under", "", "Outside", b"outside", 0, True, ("outside",), np.array("outside"))
    if key not in PAIRS:
        return wrong_number(w, key, rounds)
    if w.pick(True, False, False):
        return w.pick(0.9, "ab", (), (0.9,), [0.9], (0.9, 0.99, 0.999), {0.9: 1, 0.8: 2}, np.ones(2) / 2, object())
    j, pair = w.integer(0, 1), [*PAIRS[key][2]]
    pair[j] = wrong_number(w, key, rounds, j) if w.pick(True, True, True, False) else None
    return w.pick(tuple, list)(pair)


def shown(key: str, value: Any) -> tuple[str, ...]:
    """How a message may show an option and its value."""
    out = [f"{key}={value!r}"]
    if key in PAIRS and isinstance(value, (tuple, list)):
        out += [text for j, x in enumerate(value) for text in shown(f"{key}[{j}]", x)] + [f"{key}={tuple(value)!r}"]
    if isinstance(value, (float, np.floating)) or (isinstance(value, int) and abs(value) < 2**53) or (
            type(value) is np.ndarray and value.dtype.kind == "f" and value.ndim == 0):  # fmt: skip
        out.append(f"{key}={float(value)!r}")
    return tuple(out)


EVERYWHERE: tuple[str, ...] = (
    "constructor", "constructor", "group", "add_param_group", "edit", "edit", "load", "functional",
)  # fmt: skip


def everywhere(key: str) -> tuple[str, ...]:
    """The ways in of an option: functions have no first value of an accumulator."""
    return EVERYWHERE if key != "initial_accumulator_value" else EVERYWHERE[:-1]


def way_in(w: World, *ways: str) -> tuple[str, bool, Callable[..., Any], tuple[Any, ...], Callable[[], Any]]:
    """A way for options to come in.

    Returns its name, whether float32 counts there, what makes the call of them, arrays beside, and what mends.
    """
    way = w.pick(*ways)
    arrays = w.fresh(2)
    rounds = any(a.dtype == np.float32 for a in arrays)
    cls, convention = w.cls, w.convention
    if way == "constructor":
        return way, rounds, lambda **o: lambda: build(cls, arrays, convention, **o), tuple(arrays), lambda: None
    if way == "group":
        rounds = arrays[1].dtype == np.float32
        return way, rounds, lambda **o: lambda: build(
            cls, [{"params": arrays[0]}, {"params": arrays[1:], **o}], convention
        ), tuple(arrays), lambda: None  # fmt: skip
    if way == "add_param_group":
        group = group_of(w, arrays)
        return way, rounds, lambda **o: lambda: w.opt.add_param_group({**group, **o}), tuple(arrays), lambda: None
    if way == "functional":
        function, call = functional_call(w, arrays)
        return way, rounds, lambda **o: lambda: function(**{**call, **o}), columns(call), lambda: None
    k = w.integer(0, len(w.opt.param_groups) - 1)
    if way == "load":
        saved = saved_by(w)

        def loading(**options: Any) -> Any:
            saved["param_groups"][k].update(options)
            return lambda: w.opt.load_state_dict(saved)

        return way, w.has_float(k), loading, (), lambda: None
    group, before = w.opt.param_groups[k], dict(w.opt.param_groups[k])

    def edited(**options: Any) -> Any:
        group.update(options)
        calls = [lambda: w.opt.step(w.grads), lambda: w.opt.step([None] * len(w.params))]
        calls += [w.opt.lookahead] if hasattr(w.opt, "lookahead") else []
        return w.pick(*calls)

    def mend() -> None:
        group.clear()
        group.update(before)

    return way, w.has_float(k), edited, (), mend


EVERY_OPTION = [
    (cls, convention, key) for cls, convention in ALL
    for key in (*cls.hyperparameters, "maximize", "decoupled_weight_decay", "flush_subnormal", *AROUND)
]  # fmt: skip
"""Class, convention and hyperparameter."""


@kind("a hyperparameter out of range or of the wrong kind")
def hyperparameter(w: World, key: str | None = None) -> Call:
    key = key or w.pick(*(key for cls, convention, key in EVERY_OPTION if (cls, convention) == (w.cls, w.convention)))
    way, rounds, place, others, mend = way_in(w, *everywhere(key))
    lacks = way == "edit" and key not in AROUND and w.integer(0, 19) == 0
    value = None if lacks else wrong_value(w, key, rounds)
    offered = w.cls.conventions[w.convention].defaults
    everywhere_known = key in offered or key in (*FLAGS[:3], *AROUND)
    error = HyperparameterError if everywhere_known else (HyperparameterError, ConventionError)
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), error, (shown(key, value), w.cls.__name__),
                others, mend=mend)  # fmt: skip


@kind("an array or list of a hyperparameter changed in place")
def hyperparameter_changed(w: World) -> Call:
    key = w.pick(*(key for key in w.cls.conventions[w.convention].defaults if key in ("lr", "betas", "eps")))
    k = w.integer(0, len(w.opt.param_groups) - 1)
    group, before = w.opt.param_groups[k], dict(w.opt.param_groups[k])
    holder: Any = [0.9, 0.99] if key == "betas" else np.array(0.125)
    group[key] = holder
    with pytest.raises(GradientError):  # so that it has been read, and found good
        w.opt.step([None] * (len(w.params) + 1))
    if key == "betas":
        holder[w.integer(0, 1)] = wrong_number(w, key, w.has_float(k))
    else:
        holder[...] = w.pick(np.nan, np.inf, -1.0, w.some("a number below 0"))
    return Call(f"step after {key} became {holder!r} in place", lambda: w.opt.step(w.grads), HyperparameterError,
                (shown(key, holder),), mend=lambda: group.update(before))  # fmt: skip


def not_offered(cls: Any, convention: str) -> list[str]:
    """Options of a class that a convention has no choice of."""
    ours = ("eps_placement",) if cls is fastopt.RMSprop else ("eps_placement", "bias_correction")
    return [k for k in cls.hyperparameters if k not in (*cls.conventions[convention].defaults, *ours)]


@kind("an option that the convention has not", [pair for pair in ALL if not_offered(*pair)])
def not_of_the_convention(w: World) -> Call:
    key = w.pick(*not_offered(w.cls, w.convention))
    value = True if key == "bias_correction" else UNUSUAL[key]
    if not isinstance(value, bool):
        value = w.pick(value, w.some("a number between"))
    way, _, place, others, mend = way_in(w, *everywhere(key))
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), ConventionError,
                (f"{key}={value!r}", w.cls.__name__), others, mend=mend)  # fmt: skip


@kind("decay, conventions and defaults that do not exist")
def convention(w: World) -> Call:
    cls = w.cls
    conventions = {"torch", "keras", "optax", "sklearn", "thinc", "paper", "pytorch", ""} - set(cls.conventions)
    way, _, place, others, mend = way_in(w, "constructor", "functional")
    what = w.pick("convention", "no default", "decay")
    decays = cls.conventions[w.convention].decay
    if what == "decay" and len(decays) == 1:
        way, _, place, others, mend = way_in(w, *EVERYWHERE)
        value = next(iter(decays)) is False
        return Call(f"{way} with decoupled_weight_decay={value}", place(decoupled_weight_decay=value), ConventionError,
                    (f"decoupled_weight_decay={not value} only", cls.__name__), others, mend=mend)  # fmt: skip
    must = needed(cls, w.convention)
    if what == "no default" and must:
        key = w.pick(*must)
        return Call(f"{way} without {key}", place(**{key: None}), HyperparameterError, (f"no default for {key}",),
                    others)  # fmt: skip
    value = w.pick(*sorted(conventions), 3, ["torch"], b"torch", object())
    do = place(convention=value) if way == "functional" else lambda: cls(others[0], lr=0.1, convention=value)
    return Call(f"{way} with convention={value!r}", do, ConventionError, (f"convention={value!r}", cls.__name__),
                others)  # fmt: skip


OPTAX_ROOT = [
    pair for pair in ALL if pair[1] == "optax" and {"eps_root", "eps_placement"} <= {*pair[0].hyperparameters}
]  # fmt: skip
DECOUPLED = [(cls, c) for cls, c in ALL if True in cls.conventions[c].decay and (cls, c) != (fastopt.AdamW, "paper")]


@kind("hyperparameters that do not go together", [*OPTAX_ROOT, (fastopt.SGD, "torch"), *DECOUPLED])
def together(w: World) -> Call:
    pair = (w.cls, w.convention)
    if pair in DECOUPLED and (pair not in OPTAX_ROOT or w.pick(False, True)):
        # Each number is good by itself, but 1 - lr * weight_decay is no number; only the step multiplies them.
        group = w.opt.param_groups[w.group_of(w.any())]
        before = dict(group)
        group.update(lr=1e200, weight_decay=1e200, decoupled_weight_decay=True)
        return Call("step with a product that overflows", lambda: w.opt.step(w.grads), HyperparameterError,
                    ("lr=1e+200",), mend=lambda: group.update(before))  # fmt: skip
    if w.cls is fastopt.SGD:
        options: dict[str, Any] = {"nesterov": True, "momentum": w.pick(0.0, 0.5)}
        options["dampening"] = 0.25 if options["momentum"] else 0.0
    else:
        options = {"eps_root": 0.1, "eps_placement": w.pick("inside", "outside_uncorrected", "inside_uncorrected")}
    says = tuple(repr(value) for value in options.values())
    way, _, place, others, mend = way_in(w, *EVERYWHERE)
    return Call(f"{way} with {options}", place(**options), HyperparameterError, (next(iter(options)), *says), others,
                mend=mend)  # fmt: skip


KERAS = [pair for pair in ALL if pair[1] == "keras"]


@kind("clipping in two ways, where the convention has one at a time", KERAS)
def two_ways_to_clip(w: World) -> Call:
    way, _, place, others, mend = way_in(w, "constructor", "edit", "edit", "load", "functional")
    options = {"clip_value": 0.5, "clip_norm_each": 0.25}
    return Call(f"{way} with {options}", place(**options), ConventionError, ("only one of", w.cls.__name__), others,
                mend=mend)  # fmt: skip


@kind("options that nobody knows, and bad settings")
def unknown_option(w: World) -> Call:
    keys = {key for cls, _ in ALL for key in cls.hyperparameters} - set(w.cls.hyperparameters)
    if w.pick(False, True):
        way, _, place, others, mend = way_in(w, "constructor", "group", "add_param_group", "functional")
        if way in ("group", "add_param_group"):
            keys |= {"n_threads", "nonfinite", "copy_grads", "convention", "state_factory", "clip_norm", "norm_type"}
        if way == "functional":
            keys |= {*STORAGE}
            keys -= {"initial_accumulator_value"}
        key = w.pick(*sorted(keys), "learning_rate", "beta1", "LR", "lr ", "foreach", "max_grad_norm", "clipnorm")
        return Call(f"{way} with {key}", place(**{key: 0.1}), UnknownOptionError, (repr(key), w.cls.__name__),
                    others)  # fmt: skip
    key = w.pick("n_threads", "n_threads", "nonfinite", "copy_grads", "state_factory", "clip_norm", "norm_type")
    value = w.pick(*{
        "n_threads": (0, -1, -(10**30), True, np.True_, np.int64(0), *NO_INTS, w.some("an int below 0")),
        "nonfinite": ("ignore", "", "Raise", None, 1, True, b"raise", ["raise"], np.array(["raise", "x"]), object()),
        "copy_grads": (*NO_FLAGS, None), "state_factory": (3, "zeros", np.zeros(3), [np.zeros]),
        "clip_norm": (0, 0.0, -1, -np.inf, np.nan, True, "1", b"1", np.ones(2), [1.0], 1j, float, object()),
        "norm_type": (0, 1, -2, 3, -np.inf, np.nan, True, "2", "inf", None, np.ones(2), object()),
    }[key])  # fmt: skip
    everywhere = key != "state_factory"
    way, _, place, others, mend = way_in(w, "constructor", *(["functional"] if everywhere else []))
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), HyperparameterError, (f"{key}={value!r}",),
                others)  # fmt: skip
