"""fastopt.functional: the same bits as the classes, state in the caller's hands, everything checked first."""

import numpy as np
import pytest
from facts import FACTS
from support import numbers_given

import fastopt
from fastopt import OPTIMIZERS, errors, functional
from fastopt.declare import numbers_at, saved_numbers

# Calls with more options than the defaults.
CALLS = {
    "SGD": (
        {}, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "maximize": True}, {"convention": "sklearn"},
    ),
    "Momentum": ({"momentum": 0.7},),
    "NAG": ({"momentum": 0.7},),
    "Adagrad": ({"lr_decay": 0.1},),
    "Adadelta": ({"rho": 0.7},),
    "RMSprop": ({}, {"centered": True, "momentum": 0.5}),
    "Adam": (
        {"betas": (0.7, 0.9)}, {"amsgrad": True}, {"convention": "thinc", "weight_decay": 0.1},
        {"convention": "paper", "amsgrad": True},
    ),
    "RAdam": ({"betas": (0.9, 0.6)},),
    "Lion": ({"weight_decay": 0.3},),
}  # fmt: skip
# Function, class, options, state slots in the order of the arguments.
CASES = [
    (getattr(functional, f"{name.lower()}_"), cls, options, FACTS[name].slots_of(**options))
    for name, cls in OPTIMIZERS.items() if name in FACTS and not numbers_given(cls)
    for options in CALLS.get(name, ({},))
]  # fmt: skip


def here(cls, options, name):
    """What the class calls a slot that the function knows by PyTorch's name."""
    return cls.conventions[options.get("convention", next(iter(cls.conventions)))].names.get(name, name)


def some(rng, dtypes=(np.float32, np.float64), shapes=((3, 5), (17,))):
    return [rng.standard_normal(shape).astype(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]


@pytest.mark.parametrize(("function", "cls", "options", "slots"), CASES)
def test_a_list_takes_the_path_of_the_class(function, cls, options, slots):
    rng = np.random.default_rng(1)
    params = some(rng)
    p = [x.copy() for x in params]
    state = {name: [np.zeros_like(x) for x in p] for name in slots}
    opt = cls(params, lr=0.05, **options)
    for t in range(1, 8):
        g = some(rng)
        opt.step(g)
        assert function(p, g, **state, step=t, lr=0.05, **options) is True
        for i, (x, want) in enumerate(zip(p, params, strict=True)):
            assert x.tobytes() == want.tobytes(), (t, i)
            for name in slots:
                assert state[name][i].tobytes() == opt.state[i][here(cls, options, name)].tobytes(), (t, i, name)


@pytest.mark.parametrize("convention", ["torch", "keras", "optax", "paper"])
def test_nadam_carries_its_product_in_the_caller_s_array(convention):
    rng = np.random.default_rng(2)
    params = some(rng)
    p, m, v = ([f(x) for x in params] for f in (np.copy, np.zeros_like, np.zeros_like))
    mu = [np.ones((), np.float64) for _ in p]
    opt = fastopt.NAdam(params, lr=0.1, convention=convention)
    for t in range(1, 8):
        g = some(rng)
        opt.step(g)
        functional.nadam_(p, g, m, v, mu, step=t, lr=0.1, convention=convention)
        assert [x.tobytes() for x in p] == [x.tobytes() for x in params]
    if convention != "optax":
        (name,) = saved_numbers(fastopt.NAdam, convention)
        assert mu[0] == opt.state_dict()["state"][0][name] != 1


@pytest.mark.parametrize("flush", [None, True, False])
@pytest.mark.parametrize(("function", "cls", "options", "slots"), CASES)
def test_faded_state_is_flushed_at_steps_64_and_128_as_in_the_class(function, cls, options, slots, flush):
    rng = np.random.default_rng(3)
    for t in (63, 64, 65, 128):
        params = some(rng)
        p = [x.copy() for x in params]
        opt = cls(params, lr=0.05, flush_subnormal=flush, **options)
        state = {name: [np.empty_like(x) for x in p] for name in slots}
        for i, x in enumerate(p):
            opt._plan.set_count(i, t - 1, numbers_at(cls, t))
            for name in slots:
                low = 2.0**-120 if x.dtype == np.float32 else 2.0**-1016
                state[name][i][...] = opt.state[i][here(cls, options, name)][...] = low
        g = [np.zeros_like(x) for x in p]
        opt.step(g)
        function(p, g, **state, step=t, lr=0.05, flush_subnormal=flush, **options)
        for i, (x, want) in enumerate(zip(p, params, strict=True)):
            assert x.tobytes() == want.tobytes(), (t, i)
            for name in slots:
                assert state[name][i].tobytes() == opt.state[i][here(cls, options, name)].tobytes(), (t, i, name)
        if cls is fastopt.Momentum:
            assert [not s.any() for s in state["velocity"]] == [t % 64 == 0 and flush is not False] * 2


def test_one_array_and_a_skipped_one():
    p, v = np.ones(4), np.zeros(4)
    functional.momentum_(p, np.ones(4), v, step=1, lr=0.5)
    assert p.tolist() == [0.5] * 4 and v.tolist() == [-0.5] * 4
    q = [np.ones(2), np.ones(3)]
    functional.sgd_(q, [None, np.ones(3)], step=1, lr=1.0)
    assert q[0].tolist() == [1, 1] and q[1].tolist() == [0, 0, 0]


def test_a_skipped_step_says_so_and_changes_nothing():
    p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    g = np.array([1.0, np.nan, 1.0])
    assert functional.adam_(p, g, m, v, step=1, nonfinite="skip") is False
    assert p.tolist() == [1, 1, 1] and not m.any() and not v.any()


p3, z3, f3 = np.ones(3), np.zeros(3), np.zeros(3, np.float32)
BAD = {
    "step 0": (errors.HyperparameterError, "step=0", lambda p, m, v: functional.adam_(p, p * 2, m, v, step=0)),
    "step 1.0": (errors.HyperparameterError, "step=1.0", lambda p, m, v: functional.adam_(p, p * 2, m, v, step=1.0)),
    "option": (TypeError, "no option 'beta'", lambda p, m, v: functional.adam_(p, p * 2, m, v, step=1, beta=0.9)),
    "flag": (errors.HyperparameterError, "flush_subnormal='yes' must be True or False",
             lambda p, m, v: functional.adam_(p, p * 2, m, v, step=64, flush_subnormal="yes")),
    "range": (errors.HyperparameterError, "lr=-1.0", lambda p, m, v: functional.adam_(p, p * 2, m, v, step=1, lr=-1)),
    "convention": (errors.ConventionError, "sklearn",
                   lambda p, m, v: functional.lion_(p, p * 2, m, step=1, convention="sklearn")),
    "no lr": (errors.HyperparameterError, "no default for lr",
              lambda p, m, v: functional.adam_(p, p * 2, m, v, step=1, convention="optax")),
    "state missing": (errors.ParameterError, "max_exp_avg_sq",
                      lambda p, m, v: functional.adam_(p, p * 2, m, v, step=1, amsgrad=True)),
    "state shape": (errors.ShapeError, "exp_avg_sq",
                    lambda p, m, v: functional.adam_(p, p * 2, m, np.zeros(4), step=1)),
    "state dtype": (errors.DTypeError, "exp_avg_sq",
                    lambda p, m, v: functional.adam_(p, p * 2, m, np.zeros(3, np.float32), step=1)),
    "state twice": (errors.OverlapError, "exp_avg", lambda p, m, v: functional.adam_(p, p * 2, m, m, step=1)),
    "state is p": (errors.OverlapError, "exp_avg_sq", lambda p, m, v: functional.adam_(p, p * 2, m, p, step=1)),
    "gradient is p": (errors.OverlapError, "gradient", lambda p, m, v: functional.adam_(p, p, m, v, step=1)),
    "gradient shape": (errors.ShapeError, "gradient", lambda p, m, v: functional.adam_(p, z3[:2], m, v, step=1)),
    "list and array": (errors.ParameterError, "g must be a list",
                       lambda p, m, v: functional.adam_([p], z3, [m], [v], step=1)),
    "products": (errors.ParameterError, "a list of 1",
                 lambda p, m, v: functional.nadam_([p], [z3], [m], [v], [np.ones(1), np.ones(1)], step=1)),
    "product in p": (errors.OverlapError, "mu_product",
                     lambda p, m, v: functional.nadam_(p, z3, m, v, p[:1], step=1)),
    "step 2**63": (errors.HyperparameterError, "below", lambda p, m, v: functional.adam_(p, p * 2, m, v, step=2**63)),
    "short list": (errors.ParameterError, "exp_avg_sq must be a list of 1",
                   lambda p, m, v: functional.adam_([p], [z3], [m], [v, v], step=1)),
    "product": (errors.ParameterError, "mu_product", lambda p, m, v: functional.nadam_(p, z3, m, v, 1.0, step=1)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_raises_and_writes_nothing(case):
    error, text, call = BAD[case]
    p, m, v = np.arange(1.0, 4.0), np.full(3, 0.25), np.full(3, 0.5)
    before = [x.tobytes() for x in (p, m, v)]
    with pytest.raises(error, match=text.replace("(", r"\(")):
        call(p, m, v)
    assert [x.tobytes() for x in (p, m, v)] == before


def test_every_class_has_its_function():
    names = {name.lower() + "_" for name in OPTIMIZERS}
    assert names == set(functional.__all__) - {"Bound", "bind", "make_state"}
