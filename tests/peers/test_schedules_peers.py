"""Schedules beside their twins in torch, optax and Keras: to 1e-12 wherever the twin computes in float64.

torch multiplies the current value again and again; the rounding that this collects is inside the tolerance.
"""

from __future__ import annotations

import itertools
import math
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import jax
import keras
import numpy as np
import optax
import optax.contrib
import pytest
import torch
from torch.optim import lr_scheduler as ls

from fastopt.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    InverseTime,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Step,
    Warmup,
)

TOL = 1e-12
STEPS = 120
LR = 0.3


def assert_close(got, want, tol=TOL):
    np.testing.assert_allclose(got, want, rtol=tol, atol=1e-16)  # atol: where the end value is 0


def torch_optimizer(**options):
    return torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=LR, **options)


def torch_path(make, steps, key="lr", **options):
    opt = torch_optimizer(**options)
    scheduler = make(opt)
    path = []
    for _ in range(steps):
        path.append(float(opt.param_groups[0][key]))
        opt.step()
        scheduler.step()
    return path


def path(schedule, steps=STEPS):
    return [schedule(step) for step in range(steps)]


# fastopt, torch's twin (its base learning rate is LR), the number of steps over which the two are the same
TORCH = [
    (Join([0.5 * LR, LR], [7]), lambda o: ls.ConstantLR(o, 0.5, 7), STEPS),
    (Step(LR, 9), lambda o: ls.StepLR(o, 9), STEPS),
    (Step(LR, 1, gamma=0.97), lambda o: ls.StepLR(o, 1, gamma=0.97), STEPS),
    (MultiStep(LR, [3, 40, 40, 77]), lambda o: ls.MultiStepLR(o, [3, 40, 40, 77]), STEPS),
    (MultiStep(LR, [0, 5], gamma=0.5), lambda o: ls.MultiStepLR(o, [0, 5], gamma=0.5), STEPS),
    (Exponential(LR, 0.93), lambda o: ls.ExponentialLR(o, 0.93), STEPS),
    (Exponential(LR, 1.02), lambda o: ls.ExponentialLR(o, 1.02), STEPS),
    (Polynomial(LR, 90), lambda o: ls.PolynomialLR(o, 90), STEPS),
    (Polynomial(LR, 90, power=2.5), lambda o: ls.PolynomialLR(o, 90, power=2.5), STEPS),
    (Linear(LR / 3, LR, 50), lambda o: ls.LinearLR(o, total_iters=50), STEPS),
    (Linear(LR, 0.02 * LR, 50), lambda o: ls.LinearLR(o, 1.0, 0.02, total_iters=50), STEPS),
    (Cosine(LR, 100), lambda o: ls.CosineAnnealingLR(o, 100), 101),  # then torch climbs again
    (Cosine(LR, 100, end=0.02), lambda o: ls.CosineAnnealingLR(o, 100, eta_min=0.02), 101),
    (CosineRestarts(LR, 17), lambda o: ls.CosineAnnealingWarmRestarts(o, 17), STEPS),
    (
        CosineRestarts(LR, 5, period_mult=3, end=0.02),
        lambda o: ls.CosineAnnealingWarmRestarts(o, 5, T_mult=3, eta_min=0.02),
        STEPS,
    ),
    (InverseTime(LR, 0.3, decay_steps=7), lambda o: ls.LambdaLR(o, lambda n: 1 / (1 + 0.3 * n / 7)), STEPS),
    (
        InverseSqrt(LR, 20),
        lambda o: ls.LambdaLR(o, lambda n: 20**0.5 * min(max(n, 1) ** -0.5, n * 20**-1.5)),
        STEPS,
    ),
    (
        Warmup(10, Cosine(LR, 80, end=0.02), start=0.1 * LR),
        lambda o: ls.SequentialLR(
            o, [ls.LinearLR(o, 0.1, total_iters=10), ls.CosineAnnealingLR(o, 80, eta_min=0.02)], [10]
        ),
        91,
    ),
    (
        Join([0.5 * LR, Exponential(LR, 0.9), Step(LR, 6)], [7, 30]),
        lambda o: ls.SequentialLR(o, [ls.ConstantLR(o, 0.5, 100), ls.ExponentialLR(o, 0.9), ls.StepLR(o, 6)], [7, 30]),
        STEPS,
    ),
]


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's SequentialLR warns about its own call
@pytest.mark.parametrize(("schedule", "make", "steps"), TORCH, ids=[repr(row[0]) for row in TORCH])
def test_same_as_torch(schedule, make, steps):
    assert_close(path(schedule, steps), torch_path(make, steps))


ONE_CYCLE = list(itertools.product([1, 2, 7, 50, 100], [0.0, 0.3, 0.45, 1.0], ["cos", "linear"]))


@pytest.mark.parametrize(("total", "pct_start", "anneal"), ONE_CYCLE)
def test_one_cycle_is_torchs(total, pct_start, anneal):
    options = {"pct_start": pct_start, "div_factor": 10.0, "final_div_factor": 1e3}
    schedule = OneCycle(LR, total, anneal=anneal, **options)

    def make(opt):
        return ls.OneCycleLR(opt, LR, total, anneal_strategy=anneal, cycle_momentum=False, **options)

    if pct_start * total == 1:
        with pytest.raises(ZeroDivisionError):  # torch's first phase then has no length
            make(torch_optimizer())
        assert schedule(0) == LR
        return
    opt, want = torch_optimizer(), []
    scheduler = make(opt)
    for step in range(total):
        want.append(float(opt.param_groups[0]["lr"]))
        opt.step()
        if step + 1 < total:
            scheduler.step()
    assert_close(path(schedule, total), want)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_of_the_momentum_is_torchs(anneal):
    schedule = OneCycle(0.85, 60, div_factor=0.85 / 0.95, final_div_factor=1, anneal=anneal)

    def make(opt):
        return ls.OneCycleLR(opt, LR, 60, anneal_strategy=anneal)  # 0.95 and 0.85 are its defaults

    assert_close(path(schedule, 60), torch_path(make, 60, key="momentum", momentum=0.9))


PLATEAU = list(itertools.product(["min", "max"], ["rel", "abs"], [0, 1, 3], [0, 2], [(0.0, 1e-8), (0.01, 1e-3)]))


@pytest.mark.parametrize(("mode", "threshold_mode", "patience", "cooldown", "ends"), PLATEAU)
def test_reduce_on_plateau_is_torchs_to_the_bit(mode, threshold_mode, patience, cooldown, ends):
    options = {"mode": mode, "factor": 0.7, "patience": patience, "threshold": 0.05, "cooldown": cooldown}
    options |= {"threshold_mode": threshold_mode, "eps": ends[1]}
    rng = np.random.default_rng(4)
    trend = np.linspace(2, 1, STEPS) if mode == "min" else np.linspace(1, 2, STEPS)
    metrics = trend + 0.1 * rng.normal(size=STEPS)
    metrics[[5, 60]] = math.nan
    metrics[[9, 70]] = math.inf if mode == "min" else -math.inf
    opt = torch_optimizer()
    theirs, ours = (
        ls.ReduceLROnPlateau(opt, min_lr=ends[0], **options),
        ReduceOnPlateau(LR, min_value=ends[0], **options),
    )
    want, got = [], []
    for metric in metrics:
        theirs.step(metric)
        want.append(float(opt.param_groups[0]["lr"]))
        got.append(ours.update(metric))
        assert ours.best is None or ours.best == theirs.best
        assert (ours.bad_updates, ours.cooldown_left) == (theirs.num_bad_epochs, theirs.cooldown_counter)
    assert got == want
    assert len(set(got)) > 3  # the value did fall


# ---- optax ----

OPTAX = [
    (Constant(LR), lambda: optax.constant_schedule(LR)),
    (Step(LR, 9, gamma=0.5), lambda: optax.exponential_decay(LR, 9, 0.5, staircase=True)),
    (MultiStep(LR, [3, 40, 77]), lambda: optax.piecewise_constant_schedule(LR, {3: 0.1, 40: 0.1, 77: 0.1})),
    (Exponential(LR, 0.93), lambda: optax.exponential_decay(LR, 1, 0.93)),
    (Exponential(LR, 0.2, decay_steps=30), lambda: optax.exponential_decay(LR, 30, 0.2)),
    (Polynomial(LR, 90, power=2.5, end=0.02), lambda: optax.polynomial_schedule(LR, 0.02, 2.5, 90)),
    (Polynomial(LR, 90, power=0.5), lambda: optax.polynomial_schedule(LR, 0.0, 0.5, 90)),
    (Linear(0.02, LR, 50), lambda: optax.linear_schedule(0.02, LR, 50)),
    (Cosine(LR, 100), lambda: optax.cosine_decay_schedule(LR, 100)),
    (Cosine(LR, 100, end=0.02), lambda: optax.cosine_decay_schedule(LR, 100, alpha=0.02 / LR)),
    (
        CosineRestarts(LR, 13, period_mult=2, end=0.02),
        lambda: optax.sgdr_schedule(
            [
                {"init_value": LR, "peak_value": LR, "warmup_steps": 0, "decay_steps": n, "end_value": 0.02}
                for n in (13, 26, 52, 104)
            ]
        ),
    ),
    (Warmup(10, LR, start=0.01), lambda: optax.warmup_constant_schedule(0.01, LR, 10)),
    (
        Warmup(10, Cosine(LR, 80, end=0.02), start=0.01),
        lambda: optax.warmup_cosine_decay_schedule(0.01, LR, 10, 90, end_value=0.02),
    ),
    (
        Warmup(10, Exponential(LR, 0.5, decay_steps=20)),
        lambda: optax.warmup_exponential_decay_schedule(0.0, LR, 10, 20, 0.5),
    ),
    (
        Join([Linear(0.02, LR, 5), Cosine(LR, 30), 0.01], [5, 40]),
        lambda: optax.join_schedules(
            [
                optax.linear_schedule(0.02, LR, 5),
                optax.cosine_decay_schedule(LR, 30),
                optax.constant_schedule(0.01),
            ],
            [5, 40],
        ),
    ),
]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("schedule", "make"), OPTAX, ids=[repr(row[0]) for row in OPTAX])
def test_same_as_optax(schedule, make, x64):
    theirs = make()
    assert_close(path(schedule), [float(theirs(step)) for step in range(STEPS)])


@pytest.mark.parametrize(("patience", "cooldown"), [(0, 0), (2, 0), (2, 3)])
def test_reduce_on_plateau_falls_one_update_later_than_optax(patience, cooldown, x64):
    theirs = optax.contrib.reduce_on_plateau(factor=0.7, patience=patience + 1, rtol=0.05, cooldown=cooldown)
    ours = ReduceOnPlateau(1.0, factor=0.7, patience=patience, threshold=0.05, cooldown=cooldown, eps=0)
    params = np.zeros(1)
    state, update = theirs.init(params), jax.jit(theirs.update)
    metrics = np.linspace(2, 1, 60) + 0.1 * np.random.default_rng(5).normal(size=60)
    want, got = [], []
    for metric in metrics:
        _, state = update(params, state, value=metric)
        want.append(float(state.scale))
        got.append(ours.update(metric))
    assert_close(got, want)
    assert got[-1] < 0.5


# ---- Keras, for what the other two lack or the docstrings say of it ----

KERAS = keras.optimizers.schedules
FROM_KERAS = [
    (InverseTime(LR, 0.3), lambda: KERAS.InverseTimeDecay(LR, 1, 0.3)),
    (InverseTime(LR, 0.3, decay_steps=7), lambda: KERAS.InverseTimeDecay(LR, 7, 0.3)),
    (Exponential(LR, 0.2, decay_steps=30), lambda: KERAS.ExponentialDecay(LR, 30, 0.2)),
    (Step(LR, 9, gamma=0.5), lambda: KERAS.ExponentialDecay(LR, 9, 0.5, staircase=True)),
    (MultiStep(LR, [3, 40]), lambda: KERAS.PiecewiseConstantDecay([2, 39], [LR, 0.1 * LR, 0.01 * LR])),
    (Polynomial(LR, 90, power=2.5, end=0.02), lambda: KERAS.PolynomialDecay(LR, 90, 0.02, 2.5)),
    (Cosine(LR, 100, end=0.02), lambda: KERAS.CosineDecay(LR, 100, alpha=0.02 / LR)),
    (CosineRestarts(LR, 16, period_mult=1), lambda: KERAS.CosineDecayRestarts(LR, 16, t_mul=1.0)),
    (
        Warmup(10, Cosine(LR, 80, end=0.02), start=0.01),
        lambda: KERAS.CosineDecay(0.01, 80, alpha=0.02 / LR, warmup_target=LR, warmup_steps=10),
    ),
]


@pytest.fixture
def keras_float64(x64):
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.mark.parametrize(("schedule", "make"), FROM_KERAS, ids=[repr(row[0]) for row in FROM_KERAS])
def test_same_as_keras(schedule, make, keras_float64):
    theirs = make()
    # Its cosine is computed in float32 on the JAX backend, whatever the type of the argument.
    tol = 1e-5 if "Cosine" in repr(schedule) else TOL
    assert_close(path(schedule), [float(theirs(step)) for step in range(STEPS)], tol)
