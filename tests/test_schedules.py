"""Schedules: the formula of each by hand, and the promises that all of them keep."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from fastopt import schedules
from fastopt.errors import FastoptError, HyperparameterError
from fastopt.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    EmaWarmup,
    Exponential,
    InverseSqrt,
    InverseTime,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Step,
    Warmup,
)

# At least one of each class; the promises below are checked for all of them.
EXAMPLES = [
    Constant(0.25),
    Step(0.3, 10),
    Step(0.3, step_size=7, gamma=0.5),
    MultiStep(0.3, [3, 8, 8, 20], gamma=0.5),
    MultiStep(0.3, []),
    Exponential(0.3, 0.9),
    Exponential(0.3, 0.1, decay_steps=50),
    Polynomial(0.3, 40),
    Polynomial(0.3, 40, power=2.5, end=0.01),
    Linear(0.1, 0.9, 40),
    Linear(0.9, 0.1, 40),
    Cosine(0.3, 40),
    Cosine(0.3, 40, end=0.01),
    CosineRestarts(0.3, 7),
    CosineRestarts(0.3, 5, period_mult=3, end=0.01),
    InverseTime(0.3, 0.5),
    InverseTime(0.3, 0.5, decay_steps=10),
    InverseSqrt(0.3, 10),
    InverseSqrt(0.3, 10, start=0.3),
    EmaWarmup(0.9),
    OneCycle(0.3, 40),
    OneCycle(0.3, 33, pct_start=0.45, div_factor=10, final_div_factor=100, anneal="linear"),
    Warmup(10, 0.3),
    Warmup(10, Cosine(0.3, 30, end=0.01), start=0.02),
    Join([Linear(0.1, 0.3, 5), 0.3, Warmup(3, Exponential(0.3, 0.9))], [5, 12]),
    ReduceOnPlateau(0.3, patience=2),
]
FROZEN = [s for s in EXAMPLES if not isinstance(s, ReduceOnPlateau)]
each = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
each_frozen = pytest.mark.parametrize("schedule", FROZEN, ids=repr)


def test_every_public_schedule_has_an_example():
    public = {getattr(schedules, name) for name in schedules.__all__} - {Schedule}
    assert public == {type(s) for s in EXAMPLES}


# ---- the formulas ----


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (Constant(2), {0: 2.0, 10**9: 2.0}),
        (Step(1.0, 3, gamma=0.5), {0: 1.0, 2: 1.0, 3: 0.5, 5: 0.5, 6: 0.25}),
        (MultiStep(1.0, [2, 4, 4], gamma=0.5), {1: 1.0, 2: 0.5, 3: 0.5, 4: 0.125, 99: 0.125}),
        (MultiStep(1.0, [0], gamma=0.5), {0: 0.5}),
        (Exponential(3.0, 0.5), {0: 3.0, 1: 1.5, 3: 0.375}),
        (Exponential(3.0, 0.25, decay_steps=2), {0: 3.0, 1: 1.5, 2: 0.75}),
        (Exponential(3.0, 0.0), {0: 3.0, 1: 0.0}),
        (Polynomial(1.0, 4), {0: 1.0, 1: 0.75, 3: 0.25, 4: 0.0, 5: 0.0}),
        (Polynomial(3.0, 4, power=2, end=1.0), {0: 3.0, 2: 1.5, 4: 1.0, 9: 1.0}),
        (Linear(1.0, 3.0, 4), {0: 1.0, 1: 1.5, 3: 2.5, 4: 3.0, 9: 3.0}),
        (Cosine(2.0, 4), {0: 2.0, 1: 1 + math.sqrt(0.5), 2: 1.0, 4: 0.0, 5: 0.0}),
        (Cosine(3.0, 4, end=1.0), {0: 3.0, 2: 2.0, 4: 1.0, 99: 1.0}),
        (
            CosineRestarts(2.0, 4),
            {0: 2.0, 2: 1.0, 3: 1 - math.sqrt(0.5), 4: 2.0, 6: 1.0, 8 * 10**12 + 10: 1.0},
        ),
        (CosineRestarts(2.0, 2, period_mult=2), {0: 2.0, 1: 1.0, 2: 2.0, 4: 1.0, 6: 2.0, 10: 1.0, 14: 2.0}),
        (EmaWarmup(0.5), {0: 2 / 11, 1: 0.25, 6: 8 / 17, 7: 0.5, 8: 0.5, 10**9: 0.5}),
        (InverseTime(3.0, 0.5), {0: 3.0, 1: 2.0, 2: 1.5, 4: 1.0}),
        (InverseTime(3.0, 0.5, decay_steps=10), {0: 3.0, 10: 2.0, 20: 1.5}),
        (InverseSqrt(2.0, 4), {0: 0.0, 1: 0.5, 4: 2.0, 16: 1.0, 64: 0.5}),
        (InverseSqrt(2.0, 4, start=2.0), {0: 2.0, 3: 2.0, 4: 2.0, 16: 1.0}),
        # The peak lies at 0.5 * 10 - 1 = 4, the end at 9.
        (
            OneCycle(4.0, 10, pct_start=0.5, div_factor=4, final_div_factor=2),
            {0: 1.0, 2: 2.5, 4: 4.0, 9: 0.5, 10: 0.5, 99: 0.5},
        ),
        (
            OneCycle(4.0, 10, pct_start=0.5, div_factor=4, final_div_factor=2, anneal="linear"),
            {0: 1.0, 1: 1.75, 4: 4.0, 5: 3.3, 9: 0.5, 10: 0.5},
        ),
        (Warmup(4, 2.0), {0: 0.0, 1: 0.5, 3: 1.5, 4: 2.0, 99: 2.0}),
        (Warmup(2, Exponential(4.0, 0.5), start=2.0), {0: 2.0, 1: 3.0, 2: 4.0, 3: 2.0}),
        (Warmup(0, Exponential(4.0, 0.5)), {0: 4.0, 1: 2.0}),
        (Join([1.0, Exponential(4.0, 0.5), 7], [2, 5]), {0: 1.0, 1: 1.0, 2: 4.0, 4: 1.0, 5: 7.0, 99: 7.0}),
        (Join([Constant(1)], []), {0: 1.0, 99: 1.0}),
    ],
    ids=repr,
)
def test_formula(schedule, want):
    assert {step: schedule(step) for step in want} == pytest.approx(want, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("pct_start", [0, 0.2, 1 / 3, 0.5, 1])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_is_finite_when_a_phase_has_no_length(steps, pct_start, anneal):
    schedule = OneCycle(1.0, steps, pct_start=pct_start, anneal=anneal)
    assert all(1 / 25e4 <= schedule(step) <= 1.0 for step in range(steps + 2))


def test_one_cycle_can_cycle_the_momentum():
    momentum = OneCycle(0.85, 10, pct_start=0.5, div_factor=0.85 / 0.95, final_div_factor=1)
    assert [momentum(s) for s in (0, 4, 9, 20)] == pytest.approx([0.95, 0.85, 0.95, 0.95], rel=1e-15)


def test_inverse_sqrt_is_the_noam_schedule():
    d, w = 512, 400
    schedule = InverseSqrt((d * w) ** -0.5, w)
    for n in range(1, 2000):
        assert schedule(n) == pytest.approx(d**-0.5 * min(n**-0.5, n * w**-1.5), rel=1e-14)


def test_growth_beyond_the_largest_double_is_infinite_not_an_overflow_error():
    assert Exponential(1.0, 10.0)(400) == math.inf
    assert Exponential(-1.0, 10.0)(400) == -math.inf
    assert Exponential(0.0, 10.0)(400) == 0.0
    assert Exponential(1.0, 0.1)(400) == 0.0


@pytest.mark.parametrize("cls", [Polynomial, Cosine])
def test_decay_meets_both_ends_exactly_and_never_rises(cls):
    rng = np.random.default_rng(1)
    for _ in range(50):
        end, value = sorted(rng.lognormal(size=2))
        total = int(rng.integers(1, 200))
        schedule = cls(value, total, end=end)
        path = [schedule(step) for step in range(total + 3)]
        assert path[0] == value
        assert path[total:] == [end] * 3
        assert all(a >= b for a, b in zip(path, path[1:], strict=False))


def test_linear_meets_both_ends_exactly():
    rng = np.random.default_rng(2)
    for _ in range(50):
        start, end = map(float, rng.normal(size=2))
        schedule = Linear(start, end, 13)
        assert (schedule(0), schedule(13), schedule(14)) == (start, end, end)
    assert {Linear(0.1, 0.1, 13)(s) for s in range(20)} == {0.1}


# ---- what all of them promise ----


@each
def test_value_is_a_finite_python_float_at_every_step(schedule):
    for step in [*range(60), 10**6, 2**40, 2**63]:
        value = schedule(step)
        assert type(value) is float
        assert 0 <= value <= 1


@each
def test_value_depends_on_the_step_alone(schedule):
    path = [schedule(step) for step in range(50)]
    assert [schedule(step) for step in reversed(range(50))] == path[::-1]


@each
def test_step_may_be_anything_with_index(schedule):
    assert schedule(np.int32(11)) == schedule(np.uint8(11)) == schedule(11) == schedule(step=11)


@each
@pytest.mark.parametrize("step", [-1, np.int64(-5), 1.0, np.float32(2), "3", None])
def test_step_must_be_an_int_from_zero(schedule, step):
    with pytest.raises(HyperparameterError, match=r"step must be an int >= 0, not .*" + str(step)):
        schedule(step)


@each
def test_repr_evaluates_to_an_equal_schedule(schedule):
    assert eval(repr(schedule), vars(schedules).copy()) == schedule


@each
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_copy_give_an_equal_schedule(schedule, protocol):
    for twin in (
        pickle.loads(pickle.dumps(schedule, protocol)),
        copy.deepcopy(schedule),
        copy.copy(schedule),
    ):
        assert twin == schedule
        assert repr(twin) == repr(schedule)
        assert [twin(s) for s in range(50)] == [schedule(s) for s in range(50)]


@each
def test_fields_are_plain_data_that_json_keeps(schedule):
    def tree(x):
        return {"class": type(x).__name__, **vars(x)} if isinstance(x, Schedule) else x

    def build(record):
        return getattr(schedules, record.pop("class"))(**record)

    text = json.dumps(schedule, default=tree, allow_nan=False)
    assert json.loads(text, object_hook=build) == schedule


@each
def test_it_is_a_schedule(schedule):
    assert isinstance(schedule, Schedule)


def test_schedules_are_equal_by_value_only():
    for i, a in enumerate(EXAMPLES):
        for j, b in enumerate(EXAMPLES):
            assert (a == b) is (i == j)
    assert Constant(1) == Constant(1.0) == Constant(np.float64(1)) == Constant(Fraction(1))
    assert MultiStep(1, [2, 3]) == MultiStep(1, (2, 3)) == MultiStep(1, np.array([2, 3]))
    assert Warmup(3, 1) == Warmup(3, 1.0) != Warmup(3, Constant(1))


@each_frozen
def test_frozen_schedules_hash_and_cannot_be_changed(schedule):
    assert hash(copy.deepcopy(schedule)) == hash(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 0.5)


# ---- composition ----


def test_parts_may_be_any_callable_of_the_step():
    assert Warmup(2, lambda n: 4.0 - n)(1) == 2.0
    assert Warmup(2, lambda n: np.float32(4.0 - n))(3) == 3.0
    assert Join([lambda n: n + 10, lambda n: n + 20], [3])(4) == 21.0
    assert type(Join([lambda n: n], [])(4)) is float


def test_warmup_follows_a_value_that_falls_during_the_rise():
    plateau = ReduceOnPlateau(1.0, factor=0.5, patience=0)
    schedule = Warmup(10, plateau)
    assert schedule(5) == 0.5
    plateau.update(1.0)
    plateau.update(1.0)
    assert (schedule(5), schedule(10)) == (0.25, 0.5)


def test_compositions_nest():
    inner = Warmup(5, Cosine(1.0, 20))
    schedule = Join([inner, inner], [25])
    assert [schedule(s) for s in range(25, 60)] == [inner(s) for s in range(35)]


# ---- arguments out of range ----

NOT_NUMBERS = [math.nan, math.inf, -math.inf, "1", None, True, 1j, [1.0], np.array(1.0), 10**400]
NOT_INTS = [1.0, "1", None, True, math.nan, [1]]
NOT_INCREASING = [3, "12", None, [1, 0], [1, 2.0], [-1], [True], ["1"]]

BAD = [
    *[(Constant, {"value": 1.0}, "value", bad) for bad in NOT_NUMBERS],
    *[(Step, {"value": 1.0, "step_size": 3}, "step_size", bad) for bad in [0, -1, *NOT_INTS]],
    *[(Step, {"value": 1.0, "step_size": 3}, "gamma", bad) for bad in [-0.1, *NOT_NUMBERS]],
    *[(MultiStep, {"value": 1.0}, "milestones", bad) for bad in NOT_INCREASING],
    (MultiStep, {"value": 1.0, "milestones": [1]}, "gamma", -1),
    (Exponential, {"value": 1.0}, "gamma", -1),
    (Exponential, {"value": 1.0, "gamma": 0.9}, "decay_steps", 0),
    (Polynomial, {"value": 1.0}, "total_steps", 0),
    *[(Polynomial, {"value": 1.0, "total_steps": 9}, "power", bad) for bad in [0, -1, *NOT_NUMBERS]],
    (Polynomial, {"value": 1.0, "total_steps": 9}, "end", math.nan),
    (Linear, {"end": 1.0, "total_steps": 9}, "start", math.inf),
    (Linear, {"start": 1.0, "total_steps": 9}, "end", None),
    (Linear, {"start": 1.0, "end": 9}, "total_steps", 0),
    (Cosine, {"value": 1.0}, "total_steps", 2.5),
    (Cosine, {"value": 1.0, "total_steps": 9}, "end", "0"),
    (CosineRestarts, {"value": 1.0}, "first_period", 0),
    (CosineRestarts, {"value": 1.0, "first_period": 3}, "period_mult", 1.5),
    (CosineRestarts, {"value": 1.0, "first_period": 3}, "end", math.nan),
    (EmaWarmup, {}, "decay", 1.5),
    (InverseTime, {"value": 1.0}, "rate", -0.1),
    (InverseTime, {"value": 1.0, "rate": 1.0}, "decay_steps", 0),
    (InverseSqrt, {"value": 1.0}, "warmup", 0),
    (InverseSqrt, {"value": 1.0, "warmup": 3}, "start", math.nan),
    (OneCycle, {"total_steps": 9}, "max_value", math.nan),
    (OneCycle, {"max_value": 1.0}, "total_steps", 0),
    *[(OneCycle, {"max_value": 1.0, "total_steps": 9}, "pct_start", x) for x in [-0.1, 1.1, *NOT_NUMBERS]],
    (OneCycle, {"max_value": 1.0, "total_steps": 9}, "div_factor", 0),
    (OneCycle, {"max_value": 1.0, "total_steps": 9}, "final_div_factor", -1),
    *[(OneCycle, {"max_value": 1.0, "total_steps": 9}, "anneal", bad) for bad in ["cosine", None, []]],
    (Warmup, {"after": 1.0}, "steps", -1),
    *[(Warmup, {"steps": 3}, "after", bad) for bad in [Cosine, *NOT_NUMBERS]],
    (Warmup, {"steps": 3, "after": 1.0}, "start", math.nan),
    *[(Join, {"schedules": [1, 2]}, "boundaries", bad) for bad in [[0], [2, 2], *NOT_INCREASING]],
    *[(Join, {"boundaries": [4]}, "schedules", bad) for bad in [[1], [1, 2, 3], 5, "12", None]],
    (ReduceOnPlateau, {}, "value", math.nan),
    *[(ReduceOnPlateau, {"value": 1.0}, "mode", bad) for bad in ["minimum", None, 0]],
    *[(ReduceOnPlateau, {"value": 1.0}, "factor", bad) for bad in [1, 1.5, -0.1, *NOT_NUMBERS]],
    (ReduceOnPlateau, {"value": 1.0}, "patience", -1),
    (ReduceOnPlateau, {"value": 1.0}, "threshold", -1),
    (ReduceOnPlateau, {"value": 1.0}, "threshold_mode", "relative"),
    (ReduceOnPlateau, {"value": 1.0}, "cooldown", 1.0),
    (ReduceOnPlateau, {"value": 1.0}, "min_value", math.inf),
    (ReduceOnPlateau, {"value": 1.0}, "eps", -1e-8),
    (ReduceOnPlateau, {"value": 1.0}, "best", math.nan),
    (ReduceOnPlateau, {"value": 1.0}, "bad_updates", -1),
    (ReduceOnPlateau, {"value": 1.0}, "cooldown_left", None),
]


@pytest.mark.parametrize(("cls", "good", "name", "bad"), BAD)
def test_bad_argument_is_an_error_that_names_argument_value_and_what_is_accepted(cls, good, name, bad):
    with pytest.raises(HyperparameterError) as caught:
        cls(**{**good, name: bad})
    message = str(caught.value)
    assert message.startswith(f"{cls.__name__}: {name} must be ")
    assert message.endswith(f", not {bad!r}")


def test_every_argument_has_a_bad_value_in_the_table():
    seen = {(cls, name) for cls, _, name, _ in BAD}
    shared = {"value"}  # one check for all, shown on Constant
    for cls in {type(s) for s in EXAMPLES}:
        for field in dataclasses.fields(cls):
            assert (cls, field.name) in seen or field.name in shared, (cls, field.name)


def test_bad_part_of_a_join_is_named_by_its_index():
    with pytest.raises(HyperparameterError, match=r"Join: schedules\[1\] must be .* not nan"):
        Join([1.0, math.nan], [3])


def test_the_error_is_also_the_habitual_one():
    with pytest.raises(ValueError):
        Step(1.0, 0)
    with pytest.raises(FastoptError):
        Step(1.0, 0)


# ---- ReduceOnPlateau ----


def run(schedule, metrics):
    return [schedule.update(metric) for metric in metrics]


def test_plateau_falls_after_more_than_patience_bad_updates():
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=2)
    assert run(schedule, [5, 5, 5, 5, 5, 5, 5]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert schedule(0) == schedule(10**6) == 0.25


def test_plateau_starts_counting_again_after_an_improvement():
    assert run(ReduceOnPlateau(1.0, factor=0.5, patience=1), [5, 5, 4, 4, 3, 3, 3]) == [1, 1, 1, 1, 1, 1, 0.5]


@pytest.mark.parametrize(
    ("options", "better", "not_better"),
    [
        ({"mode": "min", "threshold_mode": "rel"}, 8.9, 9.1),
        ({"mode": "max", "threshold_mode": "rel"}, 11.1, 10.9),
        ({"mode": "min", "threshold_mode": "abs"}, 9.8, 9.95),
        ({"mode": "max", "threshold_mode": "abs"}, 10.2, 10.05),
    ],
)
def test_plateau_threshold(options, better, not_better):
    for metric, best, bad_updates in [(better, better, 0), (not_better, 10.0, 1)]:
        schedule = ReduceOnPlateau(1.0, threshold=0.1, **options)
        run(schedule, [10.0, metric])
        assert (schedule.best, schedule.bad_updates) == (best, bad_updates)


def test_plateau_counts_nothing_during_the_cooldown():
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=0, cooldown=2)
    assert run(schedule, [5] * 8) == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_plateau_stops_at_the_smallest_value_and_leaves_out_tiny_falls():
    assert run(ReduceOnPlateau(1.0, factor=0.1, patience=0, min_value=0.05), [5] * 4) == [1, 0.1, 0.05, 0.05]
    assert run(ReduceOnPlateau(1.0, factor=0.5, patience=0, eps=0.3), [5] * 4) == [1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_takes_nan_for_no_improvement(mode):
    schedule = ReduceOnPlateau(1.0, mode=mode, factor=0.5, patience=0)
    assert run(schedule, [math.nan, 3.0, math.nan]) == [0.5, 0.5, 0.25]
    assert schedule.best == 3.0


def test_plateau_metric_may_be_a_numpy_scalar_but_must_be_a_number():
    schedule = ReduceOnPlateau(1.0)
    schedule.update(np.float32(2))
    assert type(schedule.best) is float
    before = copy.copy(schedule)
    for bad in [None, "low", [1.0, 2.0], 10**400]:
        with pytest.raises(HyperparameterError, match="metric must be a number"):
            schedule.update(bad)
    assert schedule == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)),
                                       lambda s: eval(repr(s), vars(schedules).copy())])  # fmt: skip
def test_plateau_goes_on_from_a_copy_of_its_state(duplicate):
    rng = np.random.default_rng(3)
    metrics = rng.uniform(1, 2, size=60)
    whole = run(ReduceOnPlateau(1.0, factor=0.5, patience=2, cooldown=3), metrics)
    for cut in (0, 1, 7, 23, 59):
        schedule = ReduceOnPlateau(1.0, factor=0.5, patience=2, cooldown=3)
        first = run(schedule, metrics[:cut])
        assert first + run(duplicate(schedule), metrics[cut:]) == whole


def test_plateau_is_equal_by_value_with_its_state_and_not_hashable():
    a, b = ReduceOnPlateau(1.0), ReduceOnPlateau(1.0)
    assert a == b
    a.update(1.0)
    assert a != b
    with pytest.raises(TypeError):
        hash(a)


# ---- import ----


def test_the_module_itself_imports_nothing_beyond_the_standard_library():
    # Loaded by path in a package of its own, so that only what schedules.py asks for is there.
    code = """
import importlib, os, sys, types
package = types.ModuleType("alone")
package.__path__ = [os.path.dirname(sys.argv[1])]
sys.modules["alone"] = package
importlib.import_module("alone.schedules")
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"fastopt", "numpy", "torch", "tqdm", "matplotlib", "sklearn"}))
"""
    args = [sys.executable, "-c", code, schedules.__file__]
    assert subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip() == "[]"
