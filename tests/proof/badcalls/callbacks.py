"""What can be wrong with schedules, and with other code of the caller's."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from proof.badcalls.hyperparameters import EVERYWHERE, everywhere, shown, way_in, wrong_number, wrong_value
from proof.badcalls.parameters import group_of, saved_by
from proof.badcalls.world import FLAGS, NO_INTS, NO_NUMBERS, SCHEDULABLE, Boom, Call, World, kind
from support import build, names_of

import fastopt
from fastopt import errors, schedules
from fastopt.errors import ConcurrentStepError, HyperparameterError


def wrapped(w: World, schedule: Callable[[int], Any]) -> Any:
    """A schedule by itself, or inside another."""
    return w.pick(
        lambda: schedule, lambda: schedule, lambda: schedules.Warmup(0, schedule),
        lambda: schedules.Join([schedule, 0.1], [1000]),
    )()  # fmt: skip


def schedulable(w: World) -> str:
    """A hyperparameter of this world that may be a schedule."""
    return w.pick(*(k for k in w.cls.conventions[w.convention].defaults if k in SCHEDULABLE))


@kind("what a schedule returns")
def scheduled(w: World) -> Call:
    key = schedulable(w)
    way, rounds, place, others, mend = way_in(w, *EVERYWHERE)
    now = wrong_number(w, key, rounds) if w.pick(True, True, True, False) else None
    returns = lambda step: now  # noqa: E731
    plain = isinstance(now, (str, bytes, bool, complex, list, tuple, dict, int, float)) or now is None
    schedule: Any = wrapped(w, returns) if plain else returns
    says = ((*shown(key, now), repr(now)),)
    if key == "betas":
        pair = [0.9, 0.99]
        if w.pick(False, True):
            now = wrong_value(w, "betas", rounds)
            schedule, says = lambda step: now, (shown("betas", now),)
        else:
            j = w.integer(0, 1)
            pair[j] = schedule
            schedule, says = tuple(pair), ((*shown(f"betas[{j}]", now), repr(now)),)
    return Call(f"{way} with a schedule of {key} that returns {now!r}", place(**{key: schedule}), HyperparameterError,
                says, others, mend=mend)  # fmt: skip


@kind("a schedule where there can be none")
def no_schedule(w: World) -> Call:
    keys = [key for key in w.cls.conventions[w.convention].defaults if key not in SCHEDULABLE and key not in FLAGS]
    keys += ["maximize", "flush_subnormal"]
    key = w.pick(*keys)
    way, _, place, others, mend = way_in(w, *everywhere(key))
    value = w.pick(lambda step: 0.1, schedules.Constant(0.1))
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), HyperparameterError, (f"{key}={value!r}",),
                others, mend=mend)  # fmt: skip


def boom(w: World) -> BaseException:
    """An exception of the caller's own."""
    kinds = (Boom, ZeroDivisionError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError,
             KeyboardInterrupt, SystemExit, errors.LayoutError, errors.StateDictError)  # fmt: skip
    return w.pick(*kinds)("mine")


def raising(error: BaseException, after: int = 0) -> Callable[..., Any]:
    """A function that raises an error at every call but the first ones."""
    calls = iter(range(after))

    def function(*args: Any) -> float:
        if next(calls, None) is None:
            raise error
        return 0.125

    return function


@kind("an error of the caller's own")
def own_error(w: World) -> Call:
    error = boom(w)
    way = w.pick("a schedule", "a schedule", "a schedule", "a state_factory", "an iterator", "fun", "lookahead")
    arrays = w.fresh(2)
    if way == "a state_factory" and names_of(w.cls) and isinstance(error, Exception):
        if w.factory and w.pick(False, True):
            w.fault = raising(error)
            group = group_of(w, arrays)
            return Call("add_param_group, where the state_factory raises", lambda: w.opt.add_param_group(group), error,
                        others=tuple(arrays), mend=lambda: setattr(w, "fault", None))  # fmt: skip
        return Call("the constructor, where the state_factory raises",
                    lambda: build(w.cls, arrays, w.convention, state_factory=raising(error)), error,
                    others=tuple(arrays))  # fmt: skip
    if way == "an iterator":

        def broken(items: Any) -> Any:
            yield from items
            raise error

        what, do = w.pick(
            ("step", lambda: w.opt.step(broken(w.grads[:1]))), ("constructor", lambda: build(w.cls, broken(arrays))),
            ("add_param_group", lambda: w.opt.add_param_group({"params": broken(arrays)})),
        )  # fmt: skip
        if what != "step" or w.several:
            return Call(f"{what} with an iterator that raises {error!r}", do, error, others=tuple(arrays))
    if way == "fun":
        return Call(f"minimize, where fun raises {error!r}",
                    lambda: fastopt.minimize(raising(error), w.arranged(w.params), w.opt), error)  # fmt: skip
    key = schedulable(w)
    way, _, place, others, mend = way_in(w, *EVERYWHERE)
    schedule: Any = wrapped(w, raising(error))
    if way == "load" and key == "lr":  # loading reads it twice before it changes anything
        schedule = raising(error, w.integer(0, 1))
    if key == "betas" and w.pick(False, True):
        schedule = (0.9, schedule) if w.pick(False, True) else (schedule, 0.9)
    return Call(f"{way} with a schedule of {key} that raises {error!r}", place(**{key: schedule}), error, others=others,
                mend=mend)  # fmt: skip


@kind("a call from within a call")
def calls_back(w: World) -> Call:
    opt = w.opt
    arrays = w.fresh(2)
    saved = saved_by(w)
    inner = {
        "step": lambda: opt.step(w.grads), "add_param_group": lambda: opt.add_param_group(group_of(w, arrays)),
        "load_state_dict": lambda: opt.load_state_dict(saved),
    }  # fmt: skip
    if hasattr(opt, "lookahead"):
        inner["lookahead"] = opt.lookahead
    what = w.pick(*inner)
    schedule = lambda step: (inner[what](), 0.125)[1]  # noqa: E731
    key = w.pick("lr", schedulable(w))
    way, _, place, others, mend = way_in(w, "edit", "add_param_group", "load")
    return Call(f"{way} with a schedule of {key} that calls {what}", place(**{key: schedule}), ConcurrentStepError,
                ("in the middle of a step",), (*others, *arrays), mend=mend)  # fmt: skip


# Fields of every schedule, and what each has to be.
NUMBER, POSITIVE, SIZE, FRACTION = "a finite number", "above 0", "0 or above", "from 0 to 1"
FIELDS: dict[str, dict[str, Any]] = {
    "Constant": {"value": NUMBER},
    "Step": {"value": NUMBER, "step_size": 1, "gamma": SIZE},
    "MultiStep": {"value": NUMBER, "milestones": "milestones", "gamma": SIZE},
    "Exponential": {"value": NUMBER, "gamma": SIZE, "decay_steps": 1},
    "Polynomial": {"value": NUMBER, "total_steps": 1, "power": POSITIVE, "end": NUMBER},
    "Linear": {"start": NUMBER, "end": NUMBER, "total_steps": 1},
    "Cosine": {"value": NUMBER, "total_steps": 1, "end": NUMBER},
    "CosineRestarts": {"value": NUMBER, "first_period": 1, "period_mult": 1, "end": NUMBER},
    "InverseTime": {"value": NUMBER, "rate": SIZE, "decay_steps": 1},
    "InverseSqrt": {"value": NUMBER, "warmup": 1, "start": NUMBER},
    "OneCycle": {"max_value": NUMBER, "total_steps": 1, "pct_start": FRACTION, "div_factor": POSITIVE,
                 "final_div_factor": POSITIVE, "anneal": "cos"},
    "EmaWarmup": {"decay": FRACTION},
    "Warmup": {"steps": 0, "after": "after", "start": NUMBER},
    "Join": {"schedules": "schedules", "boundaries": "boundaries"},
    "ReduceOnPlateau": {"value": NUMBER, "mode": "max", "factor": "below 1", "patience": 0, "threshold": SIZE,
                        "threshold_mode": "abs", "cooldown": 0, "min_value": NUMBER, "eps": SIZE, "best": "best",
                        "bad_updates": 0, "cooldown_left": 0},
}  # fmt: skip
GOOD_FIELD: dict[Any, Any] = {
    NUMBER: 0.5, POSITIVE: 2.0, SIZE: 0.5, FRACTION: 0.5, "below 1": 0.5, 0: 3, 1: 3, "cos": "cos", "max": "max",
    "abs": "abs", "milestones": [1, 3], "boundaries": [2], "schedules": [0.1, 0.2], "after": 0.1, "best": 1.0,
}  # fmt: skip


def wrong_field(w: World, wanted: Any) -> Any:
    """What is no good argument of a schedule."""
    if isinstance(wanted, int):
        return w.pick(True, np.True_, None, wanted - 1, *NO_INTS, wanted + w.some("an int below 0"))
    if wanted in ("cos", "max", "abs"):
        return w.pick("", "COS", "minimum", None, 1, b"cos", ["cos"], True)
    if wanted in ("milestones", "boundaries"):
        wrong = [[3, 1], [-1], [1.5], [1, None], [True], "12", b"12", 3, None, [[1]], object()]
        return w.pick(*wrong, *([[0], [2, 2], (1, 4, 4)] if wanted == "boundaries" else []))
    if wanted == "schedules":
        return w.pick([], [0.1], [0.1] * 3, "ab", b"ab", 0.1, None, [0.1, "x"], [0.1, None], [schedules.Cosine, 0.1],
                      (np.nan, 0.1), [True, 0.1])  # fmt: skip
    outside = [0, 0.0, -0.0] if wanted == POSITIVE else [1, 1.0] if wanted == "below 1" else []
    if wanted in (POSITIVE, SIZE, FRACTION, "below 1"):
        outside += [-1, w.some("a number below 0")]
    if wanted in (FRACTION, "below 1"):
        outside += [2, w.some("a number above 1")]
    if outside and w.pick(False, True):
        return w.pick(*outside)
    numbers = [x for x in NO_NUMBERS if not isinstance(x, (Fraction, np.floating))]
    return w.pick(*numbers, *([None, np.nan, np.inf, -np.inf, np.float32("nan")] if wanted != "best" else []))


@kind("arguments of schedules")
def schedule_arguments(w: World) -> Call:
    name, field = w.pick(*((name, field) for name, fields in FIELDS.items() for field in fields))
    cls, fields = getattr(schedules, name), FIELDS[name]
    arguments = {field: GOOD_FIELD[wanted] for field, wanted in fields.items()}
    schedule = cls(**arguments)
    if w.pick(True, False, False, False):
        step = w.pick(None, -1, *NO_INTS, w.some("an int below 0"))
        return Call(f"{name} at step {step!r}", lambda: schedule(step), HyperparameterError, (name, "step", repr(step)),
                    (schedule,))  # fmt: skip
    if name == "ReduceOnPlateau" and w.pick(False, False, False, True):
        metric = w.pick("low", None, 1j, [], {}, object(), 2**1024, np.array([1.0, 2.0]))
        return Call(f"update({metric!r})", lambda: schedule.update(metric), HyperparameterError,
                    (name, "metric", repr(metric)), (schedule,))  # fmt: skip
    value = arguments[field] = wrong_field(w, fields[field])
    shows = (repr(value), *(map(repr, value) if isinstance(value, (list, tuple)) else ()))
    return Call(f"{name} with {field}={value!r}", lambda: cls(**arguments), HyperparameterError, (name, field, shows))
