"""Arrays that the caller owns (functional, bind, rebind): what is remembered of them never shows in a result."""

import copy
import ctypes
import gc
import itertools
import pickle
import random
import re
import sys
import threading
import weakref

import numpy as np
import pytest
from support import frozen, numbers_given, same_bits, unchanged
from test_functional import CASES, here, some

import fastopt
from fastopt import errors, functional, schedules
from fastopt.functional import adam_, bind, nadam_, sgd_


def kept(function):
    """What keeps the plans of a function."""
    return functional._KEPT[function.__name__]


@pytest.fixture(autouse=True)
def nothing_kept():
    for each in functional._KEPT.values():
        each.forget()


def arrays(n=5, dtype=np.float64):
    """p, g, m, v of one parameter."""
    return np.ones(n, dtype), np.full(n, 0.5, dtype), np.zeros(n, dtype), np.zeros(n, dtype)


# --- Bits


@pytest.mark.parametrize(("function", "cls", "options", "slots"), CASES)
@pytest.mark.parametrize("form", [list, tuple, "one"])
def test_a_bound_rule_takes_the_path_of_the_class(function, cls, options, slots, form):
    rng = np.random.default_rng(1)
    params = some(rng) if form != "one" else some(rng)[:1]
    p = [x.copy() for x in params]
    state = {name: [np.zeros_like(x) for x in p] for name in slots}
    opt = cls(params, **options, lr=0.05)
    every = functional._arguments(cls)[2:]
    given = [None if name not in state else state[name][0] if form == "one" else form(state[name]) for name in every]
    bound = bind(cls.__name__, p[0] if form == "one" else form(p), given, **options)
    for t in range(1, 140):
        g = some(rng)[: len(p)]
        if t % 7 == 0:
            g[0] = None
        opt._plan.set_count(0, t - 1, opt._plan.count(0)[1])  # a function is told the count, skipped or not
        opt.param_groups[0]["lr"] = lr = 0.05 if t < 50 else 0.05 / t
        opt.step(g)
        assert bound.step(g[0] if form == "one" else form(g), step=t, lr=lr) is True
        assert same_bits(p, params), t
        for name in slots:
            assert same_bits(state[name], [mine[here(cls, options, name)] for mine in opt.state]), (t, name)
    assert bound._kept.n_kept() == 2  # with lr, and from bind without


@pytest.mark.parametrize("threads", [1, 2])
def test_large_steps_have_the_bits_of_the_class(threads):
    rng = np.random.default_rng(2)
    params = [rng.standard_normal(400_000).astype(np.float32) for _ in range(3)]
    p = [x.copy() for x in params]
    m, v = ([np.zeros_like(x) for x in p] for _ in range(2))
    opt = fastopt.AdamW(params, n_threads=threads)
    for t in range(1, 5):
        g = [rng.standard_normal(400_000).astype(np.float32) for _ in p]
        opt.step(g)
        functional.adamw_(p, g, m, v, step=t, n_threads=threads)
    assert same_bits(p, params) and kept(functional.adamw_).n_kept() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name, cls in fastopt.OPTIMIZERS.items() if numbers_given(cls)])
def test_numbers_that_the_caller_keeps_are_those_of_a_new_plan(name, dtype, monkeypatch):
    cls = fastopt.OPTIMIZERS[name]
    monkeypatch.setattr(functional, "_KEPT", {})
    function = functional._make(cls)
    keeper = functional._KEPT.pop(function.__name__)
    forgetful = functional._make(cls)
    mine, theirs = (
        [np.ones(4), *(np.ones(1, dtype) if slot in numbers_given(cls) else np.zeros(4) for slot in slots)]
        for slots in [functional._arguments(cls)[2:]] * 2
    )
    for t in range(1, 20):
        g = np.random.default_rng(t).standard_normal(4)
        function(mine[0], g, *mine[1:], step=t)
        kept(forgetful).forget()
        forgetful(theirs[0], g, *theirs[1:], step=t)
        assert same_bits(mine, theirs), t
        if t % 5 == 0:  # other arrays, in the place of those that are known
            mine = [x.copy() for x in mine]
    assert keeper.n_kept() == 4


def test_a_skipped_step_of_known_arrays_says_so_and_changes_nothing():
    p, g, m, v = arrays()
    bad = np.array([1.0, np.nan, 1.0, 1.0, 1.0])
    for t in (1, 2):
        assert adam_(p, g, m, v, step=t, nonfinite="skip") is True
    before = frozen([p, m, v])
    assert adam_(p, bad, m, v, step=3, nonfinite="skip") is False
    assert adam_(p, bad, m, v, step=3, nonfinite="skip") is False
    assert frozen([p, m, v]) == before and adam_(p, g, m, v, step=3, nonfinite="skip") is True
    assert adam_(p, g, m, v, step=4, nonfinite="raise") is True
    before = frozen([p, m, v])
    for _ in range(2):
        with pytest.raises(errors.NonFiniteError, match="gradient of parameter 0"):
            adam_(p, bad, m, v, step=5, nonfinite="raise")
    assert frozen([p, m, v]) == before


# --- What stands around a step

WHOLE = {
    "all": {"clip_norm": 0.5, "clip_value": 0.1, "ema_decay": 0.9, "zero_grads": True},
    "largest": {"clip_norm": 0.25, "norm_type": np.inf, "ema_decay": 0.25, "ema_start": 0},
    "each": {"clip_norm_each": 0.5, "ema_decay": 0.9999, "zero_grads": True, "convention": "thinc"},
    "one option": {"ema_decay": 0.75},
    "keras": {"clip_norm": 0.5, "ema_decay": 0.9, "ema_start": 4, "convention": "keras"},
    "skipping": {"clip_norm": 0.5, "ema_decay": 0.5, "zero_grads": True, "nonfinite": "skip"},
    "a schedule": {"clip_norm": schedules.Exponential(1.0, 0.9), "ema_decay": schedules.Exponential(0.5, 0.99)},
}


@pytest.mark.parametrize("form", ["bound", "function", "one"])
@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_step_is_that_of_the_class(case, form):
    options, rng = WHOLE[case], np.random.default_rng(7)
    params = some(rng)[: 1 if form == "one" else 2]
    p = [x.copy() for x in params]
    m, v, average = ([np.full_like(x, fill) for x in p] for fill in (0, 0, 0 if "convention" in options else 9))
    opt = fastopt.Adam(params, lr=0.05, **options)
    if form == "one":
        bound = bind("adam", p[0], [m[0], v[0]], ema=average[0], lr=0.05, **options)
    else:
        bound = bind("adam", p, [m, v], ema=average, lr=0.05, **options)
    taken = 0
    for t in range(1, 30):
        g = some(rng)[: len(p)]
        scale = [None, 4.0, 8][t % 3]
        if t % 5 == 0 and form != "one":
            g[0] = None
        if t % 7 == 0 and "nonfinite" in options:
            g[-1][-1] = np.nan
        mine = [x if x is None else x.copy() for x in g]
        for i in range(len(p)):  # functions are told one count for all
            opt._plan.set_count(i, t - 1, opt._plan.count(i)[1])
        opt._plan.set_steps(t - 1, 0)
        opt.step(g, grad_scale=scale)
        if form == "function":
            stepped = adam_(p, mine, m, v, ema=average, step=t, lr=0.05, grad_scale=scale, **options)
        else:
            stepped = bound.step(mine[0] if form == "one" else mine, step=t, grad_scale=scale)
            assert same_bits([np.array(bound.grad_norm)], [np.array(opt.grad_norm)])
        taken += stepped
        assert same_bits(p, params) and stepped == (opt.skipped_steps == 0), t
        assert [x if x is None else x.tobytes() for x in mine] == [x if x is None else x.tobytes() for x in g], t
        for name, column in {"exp_avg": m, "exp_avg_sq": v}.items():
            assert same_bits(column, [state[here(type(opt), options, name)] for state in opt.state]), (t, name)
        if t >= 5:
            assert same_bits(average, [state["ema"] for state in opt.state]), t
    assert taken > 20 and (opt.grad_norm is None) == (not {"clip_norm", "clip_norm_each"} & {*options})


def test_options_around_a_step_need_no_new_plan(monkeypatch):
    p, g, m, v = arrays()
    average = np.zeros(5)
    options = {"clip_norm_each": 1.0, "ema_decay": 0.5, "zero_grads": True, "clip_norm": 2.0}
    adam_(p, g, m, v, ema=average, step=1, grad_scale=1.0, **options)
    monkeypatch.setattr(functional, "_take", None)
    for t in range(2, 9):
        g[...] = t
        options |= {"clip_norm_each": 1.0 / t, "ema_decay": 0.5 / t, "clip_norm": float("2")}  # another object
        assert adam_(p, g, m, v, ema=average, step=t, grad_scale=1.0 * t, **options) and not g.any()


@pytest.mark.parametrize("form", ["list", "one"])
def test_a_bound_rule_goes_on_with_other_parameters_and_the_same_state(form, monkeypatch):
    rng = np.random.default_rng(3)
    p, m, v = np.ones((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))
    bound = bind("adam", [p] if form == "list" else p, [[m], [v]] if form == "list" else [m, v])
    opt = fastopt.Adam(twin := p.copy())
    monkeypatch.setattr(functional, "_take", None)  # none of this needs a new plan
    for t in range(1, 9):
        if t % 3 == 0:
            p = p.copy()
            opt.rebind(0, twin := twin.copy())
            bound.rebind([p] if form == "list" else p)
        g = rng.standard_normal((2, 3))
        bound.step([g] if form == "list" else g, step=t)
        opt.step(g)
        assert p.tobytes() == twin.tobytes() and same_bits([m, v], [opt.state[0][x] for x in ("exp_avg", "exp_avg_sq")])
    monkeypatch.undo()
    with pytest.raises(errors.ParameterError, match="p must be"):
        bound.rebind(p if form == "list" else [p])
    with pytest.raises(errors.ParameterError, match="p must be"):
        bound.rebind([p, p])
    before = frozen([p, m, v])
    for bad, error in ((np.ones(6), errors.ShapeError), (np.ones((2, 3), np.float32), errors.DTypeError),
                       (m, errors.OverlapError)):  # fmt: skip
        bound.rebind([bad] if form == "list" else bad)
        with pytest.raises(error):
            bound.step([g.astype(bad.dtype)] if form == "list" else g.astype(bad.dtype), step=9)
        assert frozen([p, m, v]) == before


def test_a_known_call_with_a_grad_scale_beyond_all_floats_says_so():
    p, g, m, v = arrays()
    assert adam_(p, g, m, v, step=1, grad_scale=1)
    before = frozen([p, g, m, v])
    with pytest.raises(errors.HyperparameterError, match="grad_scale"):
        adam_(p, g, m, v, step=2, grad_scale=10**400)
    assert frozen([p, g, m, v]) == before


def test_an_average_begins_when_it_is_said_whatever_it_held():
    for start, begun in ((None, 1), (1, 1), (0, 1), (4, 4)):
        p, g, m, v = arrays()
        average = np.full(5, np.nan)
        for t in range(1, 7):
            before = p.copy()
            adam_(p, g, m, v, ema=average, step=t, ema_decay=0.75, ema_start=start)
            assert np.isfinite(average).all() == (t >= begun)
            if t == begun:
                want = p if start != 0 else before + 0.25 * (p - before)
                assert average.tobytes() == want.tobytes()


def test_gradients_that_are_zeroed_are_apart_and_writable():
    p, m, v = [np.ones(3), np.ones(3)], [np.zeros(3), np.zeros(3)], [np.zeros(3), np.zeros(3)]
    memory = np.ones(5)
    for bad in [memory[:3], memory[2:]], [memory[:3]] * 2:
        good = [np.ones(3), np.ones(3)]
        for _ in range(2):
            before = frozen([*p, *m, *v, memory])
            with pytest.raises(errors.OverlapError):
                adam_(p, bad, m, v, step=1, zero_grads=True)
            assert frozen([*p, *m, *v, memory]) == before
            assert adam_(p, good, m, v, step=1, zero_grads=True)
    fixed = np.ones(3)
    fixed.flags.writeable = False
    with pytest.raises(errors.ReadOnlyError, match="zero_grads"):
        adam_(p, [np.ones(3), fixed], m, v, step=2, zero_grads=True)
    assert adam_(p, [np.ones(3), fixed], m, v, step=2)


# --- State from make_state


@pytest.mark.parametrize("name", fastopt.OPTIMIZERS)
@pytest.mark.parametrize("single", [True, False])
def test_the_state_that_is_made_is_that_of_the_class(name, single):
    cls = fastopt.OPTIMIZERS[name]
    for convention in cls.conventions:
        options = {"ema_decay": 0.9, "convention": convention}
        options |= {key: 0.05 for key in ("lr", "weight_decay") if key in cls.conventions[convention].defaults}
        params = some(np.random.default_rng(8))[: 1 if single else 2]
        p = [x.copy() for x in params]
        opt = cls(params, **options)
        made = functional.make_state(name, p[0] if single else p, **options)
        bound = bind(name, p[0] if single else p, made, **options)
        rng = np.random.default_rng(9)
        for t in range(1, 6):
            g = some(rng)[: len(p)]
            opt.step(g)
            bound.step(g[0] if single else g, step=t)
            assert same_bits(p, params), t
        columns = dict(zip(functional._arguments(cls)[2:], made, strict=True))
        for slot, column in columns.items():
            if column is not None and slot not in numbers_given(cls):
                want = [state[here(cls, options, slot)] for state in opt.state]
                assert same_bits([column] if single else column, want), slot


def test_first_values_and_options_are_the_state_s():
    (total, average) = functional.make_state("adagrad", np.ones(3), initial_accumulator_value=0.5)
    assert total.tolist() == [0.5] * 3 and average is None
    made = functional.make_state("adam", [np.ones(3, np.float32)], amsgrad=True, ema_decay=0.5)
    assert [column[0].dtype for column in made] == [np.float32] * 4
    for convention, begins in (("torch", [1.0, 2.0]), ("keras", [1.0, 2.0]), ("thinc", [0.0, 0.0])):
        made = functional.make_state("adam", np.array([1.0, 2.0]), ema_decay=0.5, convention=convention)
        assert made[-1].tolist() == begins
    assert functional.make_state("sgd", np.ones(3)) == [None, None]
    assert functional.make_state("sgd", np.ones(3), momentum=0.9)[0].tolist() == [0] * 3
    large = np.ones(100_000, np.float32)
    places = {x.ctypes.data % 4096 for x in (large, *functional.make_state("adam", large, ema_decay=0.5)[:2])}
    assert len(places) == 3
    for bad in ({"beta": 1}, {"state_dtype": "8bit"}, {"convention": "keras2"}, {"amsgrad": 2}):
        with pytest.raises(errors.FastoptError):
            functional.make_state("adam", np.ones(3), **bad)
    with pytest.raises(errors.DTypeError, match="uint16; float32 or float64 in native byte order is needed$"):
        functional.make_state("adam", np.ones(3, np.uint16))  # as bind, which steps no bfloat16


# --- Anything may change between two calls


class Twins:
    """Two sets of arrays with the same history: one for a function that remembers, one for the same without memory."""

    def __init__(self, seed, cls):
        self.rng, self.names = random.Random(seed), (*functional._required(cls), "ema")
        self.repair()

    def repair(self):
        """Good arrays and options, of other shapes than before perhaps."""
        self.options, self.sets = {"lr": 0.01}, ([], [])  # of each: per parameter, its arrays by name
        for _ in range(self.rng.randrange(1, 4)):
            self.add()

    def add(self):
        shape = self.rng.choice([(3,), (2, 3), (1, 4), (0,), (), (5, 1), (700,)])
        dtype = self.rng.choice([np.float32, np.float64])
        first = {"p": 1.0, "g": 0.25, **dict.fromkeys(NUMBERS, 0.75)}
        for mine in self.sets:
            mine.append({name: np.full(1 if name in NUMBERS else shape, first.get(name, 0.0), dtype)
                         for name in ("p", "g", *self.names)})  # fmt: skip

    def change(self):
        """Change something, in both sets alike; what it was."""
        rng, value, names = self.rng, self.rng.random(), ("p", "g", *self.names)
        if not self.sets[0]:
            return self.add()
        what = rng.choice([*ARRAYS, *OPTIONS])
        if what in OPTIONS:
            key, option = OPTIONS[what](rng)
            self.options[key] = option
            return what
        i, j = (rng.randrange(len(self.sets[0])) for _ in range(2))
        name, other = rng.choice(names), rng.choice(names)
        for mine in self.sets:
            if what == "swap":
                mine[i], mine[j] = mine[j], mine[i]
            elif what == "remove":
                del mine[i]
            elif what == "overlap":
                mine[i][name] = mine[j][other]
            elif what == "gradients":
                for x in mine:
                    x["g"] = np.full_like(x["p"], value, subok=False) if isinstance(x["p"], np.ndarray) else None
            elif isinstance(mine[i][name], np.ndarray):
                mine[i][name] = ARRAYS[what](mine[i][name], value)
        return what

    def call(self, function, mine, t, single):
        columns = {name: mine[0][name] if single else [x[name] for x in mine] for name in ("p", "g", *self.names)}
        try:
            return function(**columns, step=t, **self.options)
        except Exception as error:
            return type(error), str(error)


def made_read_only(a, value):
    a.flags.writeable = False
    return a


def resized(a, value):
    # A read-only one would get memory that nobody has written.
    if a.flags.owndata and a.flags.c_contiguous and a.flags.writeable and type(a) is np.ndarray:
        a.resize((4,), refcheck=False)
    return a


NUMBERS = ("mu_product", "eta", "mu")
ARRAYS = {
    "copy": lambda a, value: a.copy("K"), "copy again": lambda a, value: a.copy("K"), "gradients": None, "swap": None,
    "remove": None, "overlap": None, "read-only": made_read_only, "resized": resized,
    "dtype": lambda a, value: a.astype(np.float32 if a.dtype == np.float64 else np.float64),
    "half": lambda a, value: a.astype(np.float16), "swapped": lambda a, value: a.astype(a.dtype.newbyteorder()),
    "order": lambda a, value: a.copy("F"), "shape": lambda a, value: np.full((*a.shape, 2), value, a.dtype),
    "strided": lambda a, value: np.full((*a.shape, 2), value, a.dtype)[..., 0],
    "masked": lambda a, value: np.ma.masked_array(a), "none": lambda a, value: None, "text": lambda a, value: "text",
    "nan": lambda a, value: np.full_like(a, np.nan), "number": lambda a, value: np.full(1, 3 * value - 1, a.dtype),
}  # fmt: skip
OPTIONS = {
    "lr": lambda rng: ("lr", rng.random()), "another lr": lambda rng: ("lr", rng.choice([rng.random(), 0, 1, 1e39])),
    "bad lr": lambda rng: ("lr", rng.choice([-1.0, "fast", np.nan, [0.1], None, True, -1])),
    "schedule": lambda rng: ("lr", schedules.Exponential(0.1, 0.9)),
    "array": lambda rng: ("lr", np.array(0.25)),
    "decay": lambda rng: ("weight_decay", rng.choice([0.0, 0.1, -1.0, 1e300])),
    "setting": lambda rng: (rng.choice(["n_threads", "copy_grads", "nonfinite", "maximize"]),
                            rng.choice([1, 2, 0, True, False, "skip", "raise", "propagate"])),
    "unknown": lambda rng: ("learning_rate", 0.1),
    "clip": lambda rng: (rng.choice(["clip_norm", "clip_norm_each", "clip_value"]),
                         rng.choice([None, 0.1, rng.random(), 1, np.inf, -1.0, np.nan, "much"])),
    "clip by a schedule": lambda rng: (rng.choice(["clip_norm", "clip_norm_each"]), schedules.Exponential(0.1, 0.9)),
    "norm": lambda rng: ("norm_type", rng.choice([2, np.inf, None, 1])),
    "average": lambda rng: ("ema_decay", rng.choice([None, 0.5, 0.9, rng.random(), 1, 1.5])),
    "begin": lambda rng: ("ema_start", rng.choice([None, 0, 1, rng.randrange(600), 10**6, -1])),
    "zero": lambda rng: ("zero_grads", rng.choice([None, True, False, 1])),
    "scale": lambda rng: ("grad_scale", rng.choice([None, 1024.0, rng.random(), 2, 0, -1.0, np.inf, True, "big",
                                                    10**400, np.float32(4)])),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD", "ASGD", "AdamW"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_changes_between_calls_a_call_ends_as_with_a_new_plan(name, seed, monkeypatch):
    cls = fastopt.OPTIMIZERS[name]
    monkeypatch.setattr(functional, "_KEPT", {})
    function = functional._make(cls)
    keeper = functional._KEPT.pop(function.__name__)
    forgetful = functional._make(cls)
    twins, outcomes, history = Twins(seed, cls), [], []
    for t in range(1, 1200):
        single = len(twins.sets[0]) == 1 and twins.rng.random() < 0.5
        got = twins.call(function, twins.sets[0], t, single)
        kept(forgetful).forget()
        want = twins.call(forgetful, twins.sets[1], t, single)
        assert got == want, (t, history[-5:])
        assert frozen(twins.sets[0]) == frozen(twins.sets[1]), (t, history[-5:])
        outcomes.append(got if isinstance(got, bool) else got[0])
        broken = not isinstance(got, bool)
        if broken and twins.rng.random() < 0.6:
            twins.repair()
            history.append("repair")
        elif broken or twins.rng.random() < 0.7:
            history.append(twins.change())
    assert {True, errors.OverlapError, errors.HyperparameterError, errors.ReadOnlyError} <= {*outcomes}
    assert outcomes.count(True) > 100 and keeper.n_kept() <= 8


def test_a_view_of_the_same_memory_may_have_another_form():
    buffer = np.zeros(40)
    m, v = np.zeros(40), np.zeros(40)
    for shape in ((4,), (2, 2), (8,), (4, 1), (2, 3), (4,)):
        n = int(np.prod(shape))
        p, g = buffer[:n].reshape(shape), np.ones(shape)
        with pytest.raises(errors.ShapeError):
            adam_(p, g, m[: n + 1], v[:n].reshape(shape), step=1)
        assert adam_(p, g, m[:n].reshape(shape), v[:n].reshape(shape), step=1) is True
    with pytest.raises(errors.OverlapError, match="state 'exp_avg' of parameter 0 overlaps parameter 0"):
        adam_(buffer[:4], np.ones(4), buffer[2:6], v[:4], step=1)
    with pytest.raises(errors.LayoutError, match="strides"):
        adam_(buffer[:8:2], np.ones(4), m[:4], v[:4], step=1)
    floats = buffer.view(np.float32)
    with pytest.raises(errors.DTypeError, match="state 'exp_avg' of parameter 0"):
        adam_(floats[:4], np.ones(4, np.float32), m[:4], v[:4], step=1)


def test_an_array_is_exchanged_in_a_list_without_a_new_plan():
    ps, gs, ms, vs = (list(x) for x in zip(*(arrays() for _ in range(4)), strict=True))
    twins = [[a.copy() for a in x] for x in (ps, gs, ms, vs)]
    t = itertools.count(1)
    adam_(ps, gs, ms, vs, step=1)
    adam_(*twins, step=next(t))
    for column, i in itertools.product((ps, gs, ms, vs), range(4)):
        column[i] = column[i].copy()
        count = next(t)
        adam_(ps, gs, ms, vs, step=count)
        adam_(*twins, step=count)
        assert same_bits(ps + ms + vs, twins[0] + twins[2] + twins[3])
    assert kept(adam_).n_kept() <= 3
    ms[2] = vs[3]
    with pytest.raises(errors.OverlapError, match="'exp_avg_sq' of parameter 3 is the same memory as state 'exp_avg'"):
        adam_(ps, gs, ms, vs, step=next(t))


def test_calls_with_one_option_more_do_not_push_each_other_out():
    p, g, m, v = arrays()
    bound = bind("adam", p, [m, v])
    for t in range(1, 30):
        bound.step(g, step=t)
        bound.step(g, step=t, lr=0.1 / t)
        adam_(p, g, m, v, step=t)
        adam_(p, g, m, v, step=t, betas=(0.5, 1 / (t + 1)))
    assert bound._kept.n_kept() == 2 and kept(adam_).n_kept() == 2


def test_few_plans_are_kept():
    many = [arrays() for _ in range(50)]
    for t in range(1, 4):
        for p, g, m, v in many:
            adam_(p, g, m, v, step=t)
    assert kept(adam_).n_kept() == 8
    assert same_bits([p for p, _, _, _ in many], [many[0][0]] * 50)


# --- References


def test_no_array_is_kept_alive_by_a_function():
    p, g, m, v = arrays()
    mu = np.ones(1)
    for t in (1, 2):
        adam_(p, g, m, v, step=t)
        nadam_([p], [g], [m], [v], [mu], step=t)
    refs = [weakref.ref(x) for x in (p, g, m, v, mu)]
    assert kept(adam_).n_kept() == kept(nadam_).n_kept() == 1
    del p, g, m, v, mu
    assert [ref() for ref in refs] == [None] * 5


def test_a_bound_object_keeps_its_arrays_and_no_others():
    p, g, m, v = arrays()
    bound = bind("adam", p, [m, v])
    bound.step(g, step=1)
    refs = [weakref.ref(x) for x in (p, m, v)]
    gone = weakref.ref(g)
    del p, g, m, v
    assert gone() is None and all(ref() is not None for ref in refs)
    del bound
    assert [ref() for ref in refs] == [None] * 3


def test_memory_that_was_given_back_and_taken_again_is_another_array():
    for t in range(1, 200):
        p, g, m, v = arrays(3 + t % 3)  # of one size class: the allocator gives the same blocks again
        adam_(p, g, m, v, step=1)
        assert p[0] == pytest.approx(1 - 1e-3) and same_bits(p, np.full(len(p), p[0]))
        del p, g, m, v
        gc.collect(0)


# --- Other code, in the middle


def test_a_schedule_may_call_the_same_function_over_the_same_arrays():
    p, g, m, v = arrays()
    depth = []

    def lr(step):
        if len(depth) < 3:
            depth.append(step)
            adam_(p, g, m, v, step=1, lr=lr)
        return 0.1

    for t in (1, 2, 3):
        depth.clear()
        adam_(p, g, m, v, step=t, lr=lr)
    assert np.isfinite(p).all() and len(depth) == 3


def test_a_schedule_may_change_the_lists_of_the_call():
    lists = [[x] for x in arrays()]
    act = [lambda: None]

    def lr(step):
        act[0]()
        return 0.1

    changes = {"emptied": lambda column: column.clear(), "longer": lambda column: column.append(np.ones(5)),
               "another": lambda column: column.__setitem__(0, np.ones(5)),
               "text": lambda column: column.__setitem__(0, "text")}  # fmt: skip
    for what, column in itertools.product(changes, range(4)):
        given, twins = [list(x) for x in lists], [x[0].copy() for x in lists]
        was = [x[0] for x in given]
        act[0] = lambda: None
        assert adam_(*given, step=1, lr=lr) and adam_(*twins, step=1, lr=0.1)
        act[0] = lambda: changes[what](given[column])  # noqa: B023
        assert adam_(*given, step=2, lr=lr) and adam_(*twins, step=2, lr=0.1)  # over what was given
        assert same_bits(was, twins), what


@pytest.mark.parametrize("options", [
    lambda call: {"lr": call}, lambda call: {"betas": (0.9, call)}, lambda call: {"betas": [0.9, 0.5]},
    lambda call: {"lr": np.array(0.1)},
])  # fmt: skip
def test_options_that_can_change_by_themselves_are_read_once_a_call_and_not_kept(options):
    class Call:
        n = 0

        def __call__(self, step):
            self.n += 1
            return 0.5

    call = Call()
    p, g, m, v = arrays()
    adam_(p, g, m, v, step=1, **options(call))
    each = call.n
    for t in range(2, 6):
        adam_(p, g, m, v, step=t, **options(call))
        with pytest.raises(errors.ShapeError):
            adam_(p, np.ones(6), m, v, step=t, **options(call))
    assert call.n == 9 * each and kept(adam_).n_kept() == 0
    known = weakref.ref(call)
    del call
    gc.collect()
    assert known() is None


def test_a_number_is_not_written_after_its_array_is_given_up():
    n = 2_000_000
    p, g, m, v = (np.ones(n, np.float32) for _ in range(4))
    old = sys.getswitchinterval()
    for _ in range(3):
        memory = (ctypes.c_double * 1)(1.0)

        class Owner:
            def __init__(self, memory=memory):
                self.memory = memory
                self.__array_interface__ = {
                    "shape": (), "typestr": "<f8", "data": (ctypes.addressof(memory), False), "version": 3,
                }  # fmt: skip

            def __del__(self):
                self.memory[0] = -123.0  # from now on somebody else's

        mu, gone = [np.asarray(Owner())], threading.Event()

        def other(mu=mu, gone=gone):
            gone.wait()
            mu[0] = None

        nadam_([p], [g], [m], [v], mu, step=1)
        assert memory[0] != 1 and kept(nadam_).n_kept()
        thread = threading.Thread(target=other)
        thread.start()
        try:
            sys.setswitchinterval(30)  # so that the other thread runs while the step does
            gone.set()
            nadam_([p], [g], [m], [v], mu, step=2)
        finally:
            sys.setswitchinterval(old)
        thread.join()
        gc.collect()
        assert memory[0] == -123


@pytest.mark.parametrize("form", ["class", "function"])
def test_a_gradient_of_a_skipped_step_is_not_zeroed_after_it_is_given_up(form):
    n = 2_000_000
    p, g, m, v = (np.ones(n, np.float32) for _ in range(4))
    opt = fastopt.Adam([p], nonfinite="skip", zero_grads=True)
    old = sys.getswitchinterval()
    for t in range(1, 4):
        memory = (ctypes.c_float * n)(np.nan)

        class Owner:
            def __init__(self, memory=memory):
                self.memory = memory
                self.__array_interface__ = {
                    "shape": (n,), "typestr": "<f4", "data": (ctypes.addressof(memory), False), "version": 3,
                }  # fmt: skip

            def __del__(self):
                self.memory[1] = -123.0  # from now on somebody else's

        grads, gone = [np.asarray(Owner())], threading.Event()

        def other(grads=grads, gone=gone):
            gone.wait()
            grads[0] = None

        if form == "function":
            adam_([p], [g], [m], [v], step=t, nonfinite="skip", zero_grads=True)
            assert kept(adam_).n_kept() == 1
        thread = threading.Thread(target=other)
        thread.start()
        try:
            sys.setswitchinterval(30)  # so that the other thread runs while the step does
            gone.set()
            if form == "function":
                assert not adam_([p], grads, [m], [v], step=t, nonfinite="skip", zero_grads=True)
            else:
                opt.step(grads)
        finally:
            sys.setswitchinterval(old)
        thread.join()
        gc.collect()
        assert memory[0] == 0 and memory[1] == -123
    assert form == "function" or opt.skipped_steps == 3


def test_a_gradient_that_calls_back_finds_everything_whole():
    p, g, m, v = arrays()

    class Calls:
        def __array__(self, *args, **kwargs):
            adam_(p, g, m, v, step=2)
            return g

        def __dlpack__(self, *args, **kwargs):
            adam_(p, g, m, v, step=2)
            return g.__dlpack__()

        def __dlpack_device__(self):
            return g.__dlpack_device__()

    for t in (1, 2, 3):
        adam_(p, g, m, v, step=t)
        adam_(p, Calls(), m, v, step=t)
    assert np.isfinite(p).all()


def test_an_error_of_a_schedule_comes_through_and_changes_nothing():
    p, g, m, v = arrays()

    def lr(step):
        if step == 2:
            raise KeyError("mine")
        return 0.1

    for t in (1, 2):
        adam_(p, g, m, v, step=t, lr=lr)
    before = p.copy()
    with pytest.raises(KeyError, match="mine"):
        adam_(p, g, m, v, step=3, lr=lr)
    assert same_bits(p, before) and adam_(p, g, m, v, step=4, lr=lr)


def test_options_may_change_from_call_to_call(monkeypatch):
    p, g, m, v = arrays()
    q = [x.copy() for x in (p, g, m, v, v)]
    top = v.copy()
    monkeypatch.setattr(functional, "_KEPT", {})
    fresh = functional._make(fastopt.Adam)
    calls = [
        {}, {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.2, "amsgrad": True}, {"lr": 1}, {"lr": np.float32(0.5)},
        {"betas": (0.5, 0.6)}, {"betas": [0.5, 0.7]}, {"weight_decay": 0.0}, {"weight_decay": 0.25},
        {"weight_decay": 0}, {"eps": 1e-30}, {"maximize": True}, {"convention": "keras"},
        {"".join(["convent", "ion"]): "".join(["ker", "as"])}, {"lr": schedules.Exponential(0.1, 0.5)}, {"lr": None},
        {"nonfinite": "skip"}, {"lr": 0.1, "n_threads": 1},
    ]  # fmt: skip
    for t, (options, _) in enumerate(itertools.product(calls + calls[::-1], range(2)), 1):
        adam_(p, g, m, v, top, step=t, **options)
        functional._KEPT["adam_"].forget()
        fresh(*q, step=t, **options)
        assert same_bits([p, m, v, top], [q[0], *q[2:]]), (t, options)


def test_a_new_pair_of_the_same_floats_needs_no_new_plan(monkeypatch):
    p, g, m, v = arrays()
    opt = fastopt.Adam(q := p.copy())
    plans, make = [], functional._plan
    monkeypatch.setattr(functional, "_plan", lambda *args: plans.append(args) or make(*args))
    pairs = [(0.5, 0.25), (0.5, 0.25), (0.5, 0.5), (0.25, 0.5), (0.0, 0.5), (0.0, 0.5), (-0.0, 0.5), (0, 0.5)]
    for t, (first, second) in enumerate(pairs, 1):
        opt.param_groups[0]["betas"] = (first, second)
        opt.step(g)
        adam_(p, g, m, v, step=t, betas=(first, second))
        assert same_bits(p, q), t
    assert len(plans) == 6


def test_an_option_that_chooses_another_rule_is_noticed():
    p, g, b, _ = arrays()
    opt = fastopt.SGD(q := p.copy(), lr=0.1)
    for t, momentum in enumerate([0.0, 0.5, 0.5, 0, 0.0, 0.25, 0.75, 0.5], 1):
        opt.param_groups[0]["momentum"] = momentum
        opt.step(g)
        sgd_(p, g, b, step=t, lr=0.1, momentum=momentum)
        assert same_bits(p, q), t


@pytest.mark.parametrize("n", [10, 300_000])
def test_threads_may_call_one_function(n):
    failures = []

    def work(seed):
        try:
            rng = np.random.default_rng(seed)
            p, g, m, v = arrays(n, np.float32)
            twin = p.copy()
            opt = fastopt.Adam(twin, n_threads=1)
            for t in range(1, 200 if n == 10 else 12):
                g[...] = rng.standard_normal(n)
                opt.step(g)
                adam_(p, g, m, v, step=t, n_threads=1)
                assert same_bits(p, twin)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_lists_may_be_emptied_while_a_long_step_runs():
    n = 2_000_000
    ps, gs, ms, vs = ([x] for x in arrays(n, np.float32))
    adam_(ps, gs, ms, vs, step=1, n_threads=1)
    p = ps[0]
    for t in range(2, 8):
        now = [list(x) for x in (ps, gs, ms, vs)]
        started = threading.Event()
        thread = threading.Thread(target=lambda now=now, t=t, go=started: (go.set(), adam_(*now, step=t, n_threads=1)))
        thread.start()
        started.wait()
        for column in now:
            column.clear() if t % 2 else None
        thread.join()
    assert np.isfinite(p).all()


# --- bind


def test_a_bound_rule_says_what_it_is():
    p, _, m, v = arrays()
    assert repr(bind("adam", p, [m, v], lr=0.5)) == "<Adam bound to an array, lr=0.5>"
    assert repr(bind(fastopt.Adam, [p], [[m], [v]])) == "<Adam bound to 1 arrays>"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_bound_rule_has_arrays_of_its_own(copied):
    p, g, m, v = arrays()
    bound = bind("adam", p, [m, v], lr=0.5, convention="keras")
    bound.step(g, step=1)
    before = frozen([p, m, v])
    other = copied(bound)
    other.step(g, step=2)
    assert frozen([p, m, v]) == before
    bound.step(g, step=2)
    assert same_bits([p, m, v], other._arrays[:3])


def test_bind_takes_a_class_of_the_user_s_own():
    class Mine(fastopt.Adam):
        pass

    p, g, m, v = arrays()
    q, _, n, w = arrays()
    bind(Mine, p, [m, v]).step(g, step=1)
    adam_(q, g, n, w, step=1)
    assert same_bits([p, m, v], [q, n, w])


def test_what_has_no_default_can_be_given_at_every_step():
    p, g, m, v = arrays()
    bound = bind("adamw", p, [m, v], convention="optax")
    with pytest.raises(errors.HyperparameterError, match="no default for lr"):
        bound.step(g, step=1)
    assert p.tolist() == [1] * 5 and bound.step(g, step=1, lr=0.1)


p5, m5 = np.ones(5), np.zeros(5)
BAD = {
    "no such": (errors.ParameterError, "did you mean 'adam'", lambda: bind("adamm", p5, [m5, m5 + 0])),
    "no class": (errors.ParameterError, "must be a class of fastopt or its name", lambda: bind(3, p5, [m5])),
    "torch's": (errors.ParameterError, "must be a class of fastopt or its name", lambda: bind(dict, p5, [m5])),
    "too few": (errors.ParameterError, "exp_avg, exp_avg_sq, max_exp_avg_sq (optional), ema (optional); not 1",
                lambda: bind("adam", p5, [m5])),
    "too many": (errors.ParameterError, "momentum_buffer (optional), ema (optional); not 3",
                 lambda: bind("sgd", p5, [m5, m5, m5])),
    "an array": (errors.ParameterError, "the state of Adam must be a list", lambda: bind("adam", p5, m5)),
    "option": (TypeError, "no option 'beta'", lambda: bind("adam", p5, [m5, m5 + 0], beta=1)),
    "no average": (errors.ParameterError, "needs the state 'ema'",
                   lambda: bind("adam", p5, [m5, m5 + 0], ema_decay=0.5)),
    "average twice": (errors.ParameterError, "ema is given twice",
                      lambda: bind("lion", p5, [m5, m5 + 1], ema=m5 + 2, ema_decay=0.5)),
    "average in p": (errors.OverlapError, "state 'ema'|overlap",
                     lambda: bind("lion", p5, [m5], ema=p5, ema_decay=0.5)),
    "clipping twice": (errors.ConventionError, "only one of clip_norm", lambda: bind(
        "lion", p5, [m5], convention="keras", clip_norm=1.0, clip_value=1.0, lr=0.1)),
    "clipping": (errors.HyperparameterError, "clip_norm_each=-1", lambda: bind("lion", p5, [m5], clip_norm_each=-1)),
    "max_norm": (TypeError, "did you mean 'clip_norm'", lambda: bind("lion", p5, [m5], max_norm=1)),
    "scale": (errors.UnknownOptionError, "grad_scale is not for bind", lambda: bind("lion", p5, [m5], grad_scale=2.0)),
    "scale later": (errors.HyperparameterError, "grad_scale=-1",
                    lambda: bind("lion", p5, [m5]).step(p5 + 1, step=1, grad_scale=-1)),
    "range": (errors.HyperparameterError, "lr=-1", lambda: bind("adam", p5, [m5, m5 + 0], lr=-1)),
    "convention": (errors.ConventionError, "sklearn", lambda: bind("lion", p5, [m5], convention="sklearn")),
    "overlap": (errors.OverlapError, "exp_avg_sq", lambda: bind("adam", p5, [m5, m5])),
    "none": (errors.ParameterError, "needs the state 'exp_avg_sq'", lambda: bind("adam", p5, [m5, None])),
    "list": (errors.ParameterError, "exp_avg must be a list of 1", lambda: bind("adam", [p5], [m5, m5])),
    "accumulator": (errors.UnknownOptionError, "fill 'sum' yourself",
                    lambda: bind("adagrad", p5, [m5], initial_accumulator_value=0.5)),
    "convention later": (errors.UnknownOptionError, "convention is given to bind",
                         lambda: bind("lion", p5, [m5]).step(p5 + 1, step=1, convention="paper")),
    "option later": (TypeError, "no option 'beta'", lambda: bind("lion", p5, [m5]).step(p5 + 1, step=1, beta=1)),
    "lr later": (errors.HyperparameterError, "lr=-1", lambda: bind("lion", p5, [m5]).step(p5 + 1, step=1, lr=-1)),
    "step": (errors.HyperparameterError, "step=0", lambda: bind("lion", p5, [m5]).step(p5 + 1, step=0)),
    "gradient": (errors.OverlapError, "gradient of parameter 0 is parameter 0",
                 lambda: bind("lion", p5, [m5]).step(p5, step=1)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_binding_raises_and_writes_nothing(case):
    error, text, call = BAD[case]
    with pytest.raises(error, match="|".join(map(re.escape, text.split("|")))):
        call()
    assert p5.tolist() == [1] * 5 and not m5.any()


# --- Optimizer.rebind


def test_a_rebound_parameter_goes_on_with_its_state():
    rng = np.random.default_rng(4)
    params = some(rng)
    opt, twin = fastopt.Adam([x.copy() for x in params]), fastopt.Adam(params)
    for t in range(6):
        g = some(rng)
        opt.rebind(t % 2, opt.params[t % 2].copy())
        opt.step(g)
        twin.step(g)
        assert same_bits(opt.params, twin.params) and opt.state[0]["step"] == t + 1
    assert [group["params"] for group in opt.param_groups][0][0] is opt._plan.arrays[0]


def test_the_old_array_of_a_rebound_parameter_is_let_go_of():
    p = np.ones(3)
    opt = fastopt.SGD(p, lr=1.0)
    ref = weakref.ref(p)
    opt.rebind(0, np.full(3, 5.0))
    del p
    assert ref() is None
    opt.step(np.ones(3))
    assert opt.params[0].tolist() == [4] * 3
    opt.load_state_dict(opt.state_dict())


def test_rebinding_refuses_what_does_not_fit():
    opt = fastopt.Adam({"a": np.ones((2, 3)), "b": np.ones(3, np.float32)})
    opt.step({"a": np.ones((2, 3)), "b": np.ones(3, np.float32)})
    a, b = opt.params
    fixed = np.ones((2, 3))
    fixed.flags.writeable = False
    for i, array, error, text in [
        (2, np.ones(3), errors.ParameterError, "no such parameter"), (-1, np.ones(3), errors.ParameterError, "no such"),
        ("a", a, errors.ParameterError, "no such"), (0, np.ones(3), errors.ShapeError, "parameter 'a' has shape"),
        (1, np.ones(3), errors.DTypeError, "float64; float32 is needed"),
        (0, np.ones((3, 2)).T, errors.LayoutError, "strides"), (0, fixed, errors.ReadOnlyError, "read-only"),
        (0, "text", errors.DTypeError, "parameter 'a'"), (1, [1.0], errors.DTypeError, "parameter 'b'"),
        (1, a.view(np.float32)[0, :3], errors.OverlapError, "overlaps"),
        (0, opt.state[0]["exp_avg"], errors.OverlapError, "same memory"),
    ]:  # fmt: skip
        with unchanged(opt, error, text):
            opt.rebind(i, array)
    opt.rebind(0, a)
    opt.step({"a": np.ones((2, 3)), "b": None})
    assert b is not None


def test_rebinding_in_the_middle_of_a_step_is_refused():
    def lr(step):
        if made:
            with pytest.raises(errors.ConcurrentStepError):
                made[0].rebind(0, np.ones(3))
        return 0.1

    made = []
    opt = fastopt.Adam(np.ones(3), lr=lr)
    made.append(opt)
    opt.step(np.ones(3))
