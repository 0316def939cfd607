"""What a step does around its rule beside clipping by the norm of all: clip by value and each, average, zero."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import signal
import threading
import warnings
from typing import Any

import conftest
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import (
    ALL,
    ALL_IDS,
    SIZES,
    TILE,
    arrays,
    assert_like_the_twin,
    build,
    frozen,
    frozen_optimizer,
    same_bits,
    three,
    unchanged,
)

import fastopt
from fastopt import (
    SGD,
    Adam,
    AdamW,
    AveragedError,
    ConcurrentStepError,
    ConventionError,
    DeclarationError,
    DTypeError,
    HyperparameterError,
    LayoutError,
    NonFiniteError,
    Optimizer,
    OverlapError,
    ReadOnlyError,
    UnknownAttributeError,
    UnknownOptionError,
    engine,
    reference,
    schedules,
)

AROUND: dict[str, Any] = {
    "clip_value": 0.3, "clip_norm_each": 0.7, "ema_decay": 0.9, "ema_start": 2, "zero_grads": True,
}  # fmt: skip


def options_of(convention: str) -> dict[str, Any]:
    """All options, or those that the convention has at once."""
    left_out = {"clip_value"} if convention == "keras" else set()
    return {key: value for key, value in AROUND.items() if key not in left_out}


# --- The bits


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_every_option_has_the_bits_of_the_twin(cls, convention):
    decay = {"weight_decay": 0.1} if cls.conventions[convention].decay else {}
    limits = ({}, {"clip_norm": 0.5}, {"clip_norm": 1e9}) if convention != "keras" else ({},)
    for limit in limits:
        for more in ({}, {"maximize": True, **decay}):
            assert_like_the_twin(build(cls, arrays(), convention, **options_of(convention), **limit, **more), 4)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("level", engine.available_levels())
def test_threads_and_levels_do_not_matter(threads, level):
    sizes = (*SIZES, 40 * TILE + 3, 5, 20 * TILE)
    sets: list[dict[str, Any]] = [
        {"clip_norm": 1e9, "ema_decay": 0.99, "zero_grads": True},  # whose factor is 1
        {"clip_norm": 0.5, "clip_norm_each": 0.01, "ema_decay": 0.3, "ema_start": 0},
        {"clip_norm_each": 40.0},  # some are clipped, some not, and nothing else is done
        {"clip_value": 0.1},
    ]
    with conftest.level(level), conftest.parallel_from(1):
        for k, options in enumerate(sets):
            opt = AdamW(arrays(sizes), n_threads=threads, **options)
            steps = 66 if k == 0 and threads == 2 else 3  # once with a flush
            assert_like_the_twin(opt, steps, grads=lambda seed: arrays(sizes, seed=seed))


@given(
    seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    norm=st.sampled_from([None, 1e-30, 0.3, 50.0, math.inf]), each=st.sampled_from([None, 0.2, 30.0, math.inf]),
    value=st.sampled_from([None, 1e-30, 0.2, 3.0, math.inf]), decay=st.sampled_from([None, 0, 0.2, 0.5, 0.9, 1]),
    start=st.integers(0, 4), zero=st.sampled_from([None, False, True]), scale=st.sampled_from([None, 3.7, 2.0**40]),
    norm_type=st.sampled_from([2, math.inf]), threads=st.integers(1, 3), lacks=st.integers(0, 2**18 - 1),
    convention=st.sampled_from(sorted(Adam.conventions)), by=st.sampled_from([1e-30, 1.0, 1e30]),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_whatever_is_given_the_bits_are_the_twins(
    seed, sizes, norm, each, value, decay, start, zero, scale, norm_type, threads, lacks, convention, by
):
    if convention == "keras":
        norm, each, value = norm, None if norm else each, None if norm or each else value

    def grads(seed):
        made = arrays(sizes, seed=seed, by=by)
        return [None if lacks >> (seed % 3 * 6 + i) & 1 else g for i, g in enumerate(made)]

    with conftest.parallel_from(1):
        opt = build(
            Adam, arrays(sizes, seed=seed), convention, clip_norm=norm, norm_type=norm_type, n_threads=threads,
            clip_norm_each=each, clip_value=value, ema_decay=decay, ema_start=start, zero_grads=zero,
        )  # fmt: skip
        assert_like_the_twin(opt, 5, grads, grad_scale=scale)


def test_groups_have_their_own():
    every = arrays([100, 2000, 3, 700, 9, 1500])
    sets = [{}, {"clip_value": 0.1}, {"clip_norm_each": 0.2}, {"ema_decay": None}, {"zero_grads": True, "ema_start": 3}]
    for threads in (1, 2):
        with conftest.parallel_from(1):
            groups = [{"params": [every[k].copy()], **options} for k, options in enumerate(sets)]
            opt = Adam([*groups, {"params": []}], n_threads=threads, lr=0.1, clip_norm=1.0, ema_decay=0.9)
            assert "clip_value" not in opt.param_groups[0] and opt.param_groups[3]["ema_decay"] is None
            assert_like_the_twin(opt, 5, lambda seed: arrays([100, 2000, 3, 700, 9], seed=seed))
            assert ["ema" in state for state in opt.state] == [True, True, True, False, True]


@pytest.mark.parametrize("kind", ["number", "schedule"])
def test_options_can_be_edited(kind):
    made = float if kind == "number" else lambda value: lambda step: value
    opt = Adam(arrays(), lr=0.1)
    group = opt.param_groups[0]
    for key, value in (
        ("clip_value", made(0.1)), ("clip_value", None), ("clip_norm_each", made(0.2)), ("clip_value", made(math.inf)),
        ("ema_decay", made(0.9)), ("ema_decay", made(0.2)), ("ema_start", 50), ("zero_grads", True),
        ("clip_norm_each", made(math.inf)), ("zero_grads", False), ("ema_decay", None), ("ema_start", 0),
        ("ema_decay", made(0.5)), ("zero_grads", None),
    ):  # fmt: skip
        group[key] = value
        assert_like_the_twin(opt, 2)
    for key in AROUND:
        group.pop(key, None)
        assert_like_the_twin(opt, 1)


def test_arrays_of_every_shape_and_a_factory():
    def shaped(seed):
        rng = np.random.default_rng(seed)
        return [np.asfortranarray(rng.standard_normal((40, 50))), np.array(rng.standard_normal()), np.zeros((0, 3)),
                rng.standard_normal((3, 4, 5)).astype(np.float32)]  # fmt: skip

    assert_like_the_twin(Adam(shaped(0), **AROUND), grads=shaped)
    garbage = {"state_factory": lambda name, shape, dtype: np.full(shape, np.nan, dtype)}
    for convention in ("torch", "thinc"):
        assert_like_the_twin(build(Adam, arrays(), convention, **AROUND, **garbage))


def test_the_order_of_the_stages():
    """Unscale, by the norm of all, by that of each, by value, negate, L2; then the rule; then the average."""
    opt = SGD(
        [np.array([10.0, 0.0]), np.array([0.0])], lr=1.0, weight_decay=0.25, maximize=True, convention="torch",
        clip_norm=2.5, clip_norm_each=1.5, clip_value=1.0, norm_type=math.inf, ema_decay=0.0, zero_grads=True,
    )  # fmt: skip
    g = [np.array([8.0, -1.6]), np.array([1.6])]  # 4, -.8, .8 unscaled; all by 2.5 / 4, then the first by 1.5 / 2.5
    opt.step(g, grad_scale=2.0)
    by, own = 2.5 / (4 + 1e-6), 1.5 / (4 * (2.5 / (4 + 1e-6)) + 1e-6)
    want = [10 - (-1.0 + 0.25 * 10), 0 - -(-0.8 * (by * own))]
    assert opt.params[0].tolist() == want and opt.params[1].tolist() == [0.8 * by]
    assert opt.grad_norm == 4.0
    assert same_bits(opt.averages, opt.params) and not any(x.any() for x in g)


# --- Clipping


def test_what_the_factor_of_each_is():
    def factor(convention, limit, g):
        opt = build(SGD, np.zeros(2), convention, lr=1.0, clip_norm_each=limit)
        opt.step(np.array(g))
        assert opt.grad_norm == 5.0
        return -opt.params[0][0] / g[0]

    g = [4.0, 3.0]  # of norm 5
    assert factor("torch", 1.0, g) == 1 / (5 + 1e-6)
    assert factor("torch", 5.1, g) == 1
    for convention in ("keras", "optax", "thinc"):
        assert factor(convention, 1.0, g) == 0.2
        assert factor(convention, 5.0, g) == factor(convention, 6.0, g) == factor(convention, math.inf, g) == 1


def test_values_that_are_not_finite_are_clipped_as_in_the_libraries():
    opt = SGD(np.zeros(4), lr=1.0, clip_value=0.5)
    opt.step(np.array([math.inf, -math.inf, math.nan, -0.0]))
    assert repr((-opt.params[0]).tolist()) == repr([0.5, -0.5, math.nan, -0.0])
    for convention in ("torch", "keras", "optax"):
        opt = build(SGD, [np.zeros(2), np.zeros(1)], convention, lr=1.0, clip_norm_each=1.0)
        opt.step([np.array([math.inf, 3.0]), np.array([0.5])])
        assert math.isnan(opt.params[0][0]) and opt.params[0][1] == 0.0 and opt.params[1][0] == -0.5
        assert opt.grad_norm == math.inf


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_nonfinite_is_answered_by_the_sums_of_each(nonfinite, threads):
    g = arrays((3000, 2000, 5000))
    g[1][1234] = math.nan
    with conftest.parallel_from(1):
        opt = Adam(
            arrays((3000, 2000, 5000)), clip_norm_each=1.0, nonfinite=nonfinite, n_threads=threads, ema_decay=0.5,
            zero_grads=True,
        )  # fmt: skip
        before = copy.deepcopy(g)
        if nonfinite == "raise":
            with unchanged(opt, NonFiniteError, "gradient of parameter 1"):
                opt.step(g)
            assert same_bits(g, before)
        else:
            params = [p.copy() for p in opt.params]
            opt.step(g)
            assert (opt.steps, opt.skipped_steps) == (0, 1) and same_bits(opt.params, params)
            assert not any(x.any() for x in g), "the next gradients may be added to these"
            assert "ema" not in opt.state[0]
        opt.step(arrays((3000, 2000, 5000), seed=1))
        assert opt.steps == 1 and "ema" in opt.state[0]


def test_keras_clips_in_one_way():
    for pair in ({"clip_norm": 1.0, "clip_value": 1.0}, {"clip_norm": 1.0, "clip_norm_each": 1.0},
                 {"clip_value": 1.0, "clip_norm_each": 1.0}):  # fmt: skip
        with pytest.raises(ConventionError, match="only one of clip_norm, clip_norm_each and clip_value"):
            Adam(three(), convention="keras", **pair)
        for convention in ("torch", "optax", "thinc"):
            build(Adam, three(), convention, **pair)
    opt = Adam(three(), convention="keras", clip_value=1.0)
    with unchanged(opt, ConventionError, "only one of"):
        opt.clip_norm = 1.0
    opt.clip_norm = math.inf  # the norm is taken, and nothing is clipped
    opt.step(three(1))
    assert opt.grad_norm == fastopt.norm(three(1))
    opt.param_groups[0]["clip_norm_each"] = 1.0
    with unchanged(opt, ConventionError, "only one of"):
        opt.step(three(1))
    opt.param_groups[0]["clip_value"] = None
    opt.step(three(1))
    opt.param_groups[0]["clip_norm_each"] = None
    opt.clip_norm = 1.0
    opt.param_groups[0]["clip_value"] = 1.0
    with unchanged(opt, ConventionError, "only one of"):
        opt.step(three(1))
    with pytest.raises(ConventionError, match="only one of"):
        opt.add_param_group({"params": [np.zeros(3)], "clip_norm_each": 1.0})


# --- Averages


def test_when_an_average_begins():
    def averages(start, steps=4, decay=0.5, convention="torch"):
        opt = build(SGD, np.array([1.0]), convention, lr=1.0, ema_decay=decay, ema_start=start)
        seen = []
        for _ in range(steps):
            opt.step(np.array([1.0]))  # 1 -> 0, -1, -2, -3
            seen.append(("ema" in opt.state[0], opt.averages[0].item()))
        return seen

    assert averages(1) == averages(None) == [(True, 0.0), (True, -0.5), (True, -1.25), (True, -2.125)]
    assert averages(0) == [(True, 0.5), (True, -0.25), (True, -1.125), (True, -2.0625)]
    assert averages(3) == [(False, 0.0), (False, -1.0), (True, -2.0), (True, -2.5)]
    assert averages(2, decay=1.0) == [(False, 0.0), (True, -1.0), (True, -1.0), (True, -1.0)]
    assert averages(1, decay=0.0) == [(True, 0.0), (True, -1.0), (True, -2.0), (True, -3.0)]
    # thinc's moves from zero, by (1 + t) / (10 + t) at first
    opt = build(SGD, np.array([1.0]), "thinc", lr=0.0, ema_decay=0.25)
    want = 0.0
    for t in range(1, 6):
        opt.step(np.array([1.0]))
        want += (1 - min(0.25, (1 + t) / (10 + t))) * (1 - want)
        assert opt.averages[0].item() == want


def test_a_skipped_parameter_and_a_skipped_step_do_not_average():
    opt = SGD([np.array([1.0]), np.array([1.0])], lr=1.0, ema_decay=0.5, nonfinite="skip", ema_start=2)
    one = np.array([1.0])
    opt.step([one, None])
    opt.step([one, None])
    assert ["ema" in s for s in opt.state] == [True, False]
    opt.step([one, np.array([math.nan])])
    opt.step([one, one], found_inf=1.0)
    assert opt.skipped_steps == 2
    assert same_bits(opt.averages, [np.array([-1.0]), np.array([1.0])])
    opt.step([None, one])
    assert ["ema" in s for s in opt.state] == [True, False]
    opt.step([None, one])
    assert same_bits(opt.averages, [np.array([-1.0]), np.array([-1.0])])


def test_averaged_changes_places_and_back():
    for threads in (1, 2):
        with conftest.parallel_from(1):
            every = arrays([100, 2000, 3, 700])
            opt = Adam(
                [{"params": every[:2]}, {"params": every[2:3], "ema_decay": None}, {"params": every[3:]}],
                ema_decay=0.9, n_threads=threads,
            )  # fmt: skip
            for k in range(3):
                opt.step([*arrays([100, 2000, 3], seed=k), None])
            before, averages = copy.deepcopy(every), copy.deepcopy(opt.averages)
            memory = [p.ctypes.data for p in opt.params]
            saved = copy.deepcopy(opt.state_dict())
            with opt.averaged() as nothing:
                assert nothing is None
                assert same_bits(every, averages) and same_bits(opt.averages, averages)
                assert [p.ctypes.data for p in opt.params] == memory
                assert frozen(opt.state_dict()) == frozen(saved)
                held = opt.state[0]["ema"]
            assert same_bits(every, before) and same_bits(opt.averages, averages)
            assert same_bits(held, averages[0])
            assert same_bits(opt.averages[2], before[2]) and same_bits(opt.averages[3], before[3])


def test_averages_have_the_names_of_the_parameters():
    opt = Adam({"w": np.ones(3), "b": np.zeros(2)}, ema_decay=0.9)
    assert list(opt.averages) == ["w", "b"] and opt.averages["w"] is not None
    opt.step({"w": np.ones(3), "b": None})
    assert np.shares_memory(opt.averages["w"], opt.state[0]["ema"])
    assert np.shares_memory(opt.averages["b"], opt.params[1])


def test_an_exception_inside_changes_back():
    opt = Adam(three(), ema_decay=0.5)
    for k in range(2):
        opt.step(three(k))
    before = frozen_optimizer(opt)
    with pytest.raises(KeyError), opt.averaged():
        raise KeyError
    assert frozen_optimizer(opt) == before
    context = opt.averaged()
    with context:
        pass
    with context:  # again
        pass
    assert frozen_optimizer(opt) == before


def test_what_may_not_happen_inside(tmp_path):
    opt = Adam(three(), ema_decay=0.5)
    for k in range(2):
        opt.step(three(k))
    saved = copy.deepcopy(opt.state_dict())
    opt.save(tmp_path / "outside")
    new = np.zeros((4, 5), np.float32)
    before = frozen_optimizer(opt)
    with opt.averaged():
        inside = frozen_optimizer(opt)
        for call in (
            lambda: opt.step(three(3)), lambda: opt.step(three(3), found_inf=1), lambda: opt.load_state_dict(saved),
            lambda: opt.load(tmp_path / "outside"), lambda: opt.add_param_group({"params": [np.zeros(2)]}),
            lambda: opt.rebind(0, new), lambda: opt.averaged().__enter__(), lambda: pickle.dumps(opt),
            lambda: copy.copy(opt), lambda: copy.deepcopy(opt),
        ):  # fmt: skip
            with pytest.raises(AveragedError, match="inside `with averaged"):
                call()
            assert frozen_optimizer(opt) == inside
        opt.save(tmp_path / "inside")
    assert frozen_optimizer(opt) == before
    assert frozen(fastopt.load(tmp_path / "inside")) == frozen(fastopt.load(tmp_path / "outside"))
    opt.step(three(3))


def test_without_averages_there_are_none():
    opt = Adam(three())
    for call in (lambda: opt.averaged(), lambda: opt.averages):
        with pytest.raises(AveragedError, match="keeps no averages of its parameters: give ema_decay"):
            call()
    opt.param_groups[0]["ema_decay"] = 0.5
    opt.step(three(1))
    assert len(opt.averages) == 3


def test_memory_that_has_gone_is_not_written_to():
    opt = Adam([np.ones(5), np.ones(6)], ema_decay=0.5)
    for _ in range(2):
        opt.step([np.ones(5), np.ones(6)])
    before, average = opt.params[1].copy(), opt.averages[1].copy()
    with pytest.raises(LayoutError, match="parameter 0"), opt.averaged():
        opt._plan.arrays[0].resize(50_000, refcheck=False)
        assert same_bits(opt.params[1], average)
    assert same_bits(opt.params[1], before) and same_bits(opt.averages[1], average)
    opt = Adam([np.ones(5)], ema_decay=0.5)
    opt.step([np.ones(5)])
    opt.params[0].flags.writeable = False
    opt._plan.arrays[0].flags.writeable = False
    with pytest.raises(ReadOnlyError), opt.averaged():
        pytest.fail("it went in")
    opt._plan.arrays[0].flags.writeable = True
    opt.step([np.ones(5)])


def test_another_thread_cannot_step_inside():
    opt, errors = Adam(three(), ema_decay=0.5), []
    opt.step(three(1))

    def step():
        try:
            opt.step(three(2))
        except AveragedError as error:
            errors.append(error)

    with opt.averaged():
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert len(errors) == 1 and opt.steps == 1


def busy_until(opt, free):
    """A thread in the middle of an operation on an optimizer, as of saving it, until an event."""
    begun = threading.Event()
    thread = threading.Thread(target=lambda: opt._plan.run(lambda: begun.set() or free.wait(60)))
    thread.start()
    assert begun.wait(60)
    return thread


def test_leaving_waits_for_another_thread():
    opt, free = Adam(three(), ema_decay=0.5), threading.Event()
    for k in range(2):
        opt.step(three(k))
    before = frozen_optimizer(opt)
    with opt.averaged():
        thread = busy_until(opt, free)
        threading.Timer(0.2, free.set).start()
    thread.join()
    assert frozen_optimizer(opt) == before
    opt.step(three(3))


def test_two_threads_that_leave_at_once_leave_once():
    opt, free = Adam(three(), ema_decay=0.5), threading.Event()
    for k in range(2):
        opt.step(three(k))
    before = frozen_optimizer(opt)
    context = opt.averaged()
    context.__enter__()
    busy = busy_until(opt, free)
    threads = [threading.Thread(target=context.__exit__, args=(None, None, None)) for _ in range(2)]
    for thread in threads:
        thread.start()
    free.set()
    for thread in (busy, *threads):
        thread.join()
    assert frozen_optimizer(opt) == before


@pytest.fixture
def interruptible():
    """Have SIGINT raise KeyboardInterrupt: a shell starts what is in the background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_an_interrupt_while_leaving_waits_comes_after_it(interruptible):
    opt, free = Adam(three(), ema_decay=0.5), threading.Event()
    for k in range(2):
        opt.step(three(k))
    before = frozen_optimizer(opt)
    with pytest.raises(KeyboardInterrupt), opt.averaged():
        thread = busy_until(opt, free)
        for seconds in np.linspace(0.2, 0.45, 9):  # one may come between two looks, where it is not noticed
            threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
        threading.Timer(0.5, free.set).start()
    assert free.is_set() and frozen_optimizer(opt) == before
    thread.join()


def test_leaving_can_be_tried_again(monkeypatch):
    opt, free = Adam(three(), ema_decay=0.5), threading.Event()
    for k in range(2):
        opt.step(three(k))
    before = frozen_optimizer(opt)
    context = opt.averaged()
    monkeypatch.setattr(engine, "LONGEST_WAIT", 0.01)
    with pytest.raises(ConcurrentStepError), context:
        thread = busy_until(opt, free)
    free.set()
    thread.join()
    with pytest.raises(AveragedError):
        opt.step(three(3))
    context.__exit__(None, None, None)
    assert frozen_optimizer(opt) == before
    context.__exit__(None, None, None)
    assert frozen_optimizer(opt) == before


def test_a_schedule_cannot_go_in():
    opt = Adam(three(), ema_decay=0.5)
    opt.param_groups[0]["ema_decay"] = lambda step: opt.averaged().__enter__() or 0.5
    with unchanged(opt, ConcurrentStepError):
        opt.step(three(1))


@pytest.mark.parametrize("convention", ["torch", "keras", "thinc"])
@pytest.mark.parametrize("cls", [SGD, Adam])
def test_state_dicts_files_and_copies_carry_averages(cls, convention, tmp_path):
    def fresh(seed):
        return build(cls, three(seed), convention, lr=0.1, ema_decay=0.9, ema_start=2, zero_grads=True)

    opt = fresh(0)
    for k in range(4):
        opt.step([*three(k)[:2], three(k)[2] if k == 3 else None])
    assert ["ema" in opt.state_dict()["state"].get(i, {}) for i in range(3)] == [True, True, False]
    opt.save(tmp_path / "file")
    made = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), fresh(5), fresh(6)]
    made[2].load_state_dict(copy.deepcopy(opt.state_dict()))
    made[3].load(tmp_path / "file")
    for other in made:
        for mine, its in zip(other.params, opt.params, strict=True):
            mine[...] = its
    for k in range(3):
        opt.step(three(k))
        for other in made:
            other.step(three(k))
            assert same_bits(other.params, opt.params) and same_bits(other.averages, opt.averages)
            assert frozen(other.state_dict()) == frozen(opt.state_dict())


def test_a_dict_without_averages_starts_them_anew_with_a_warning():
    plain, averaging = Adam(three()), Adam(three(), ema_decay=0.5)
    for k in range(3):
        for o in (plain, averaging):
            o.step(three(k))
    saved = copy.deepcopy(plain.state_dict())
    with pytest.warns(UserWarning, match=r"no average \('ema'\) of parameter 0: averages begin anew") as caught:
        averaging.load_state_dict(saved)
    assert caught[0].filename == __file__
    assert averaging.param_groups[0]["ema_decay"] == 0.5 and "ema" not in averaging.state[0]
    assert_like_the_twin(averaging, grads=three)
    assert "ema" in averaging.state[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Adam(three(), ema_decay=0.5).load_state_dict(Adam(three()).state_dict())  # which has no state at all
        plain.load_state_dict(copy.deepcopy(averaging.state_dict()))  # brings the option, too
    assert same_bits(plain.averages[0], averaging.averages[0])


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_a_warning_that_is_an_error_comes_before_anything_is_loaded(cls):
    """Also where the dict has no state at all but counts, as of plain SGD."""
    plain, averaging = build(cls, three(), "torch"), build(cls, three(), "torch", ema_decay=0.5)
    for k in range(3):
        plain.step(three(k))
        averaging.step(three(k + 5))
    before, saved = frozen_optimizer(averaging), copy.deepcopy(plain.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no average"):
            averaging.load_state_dict(saved)
    assert frozen_optimizer(averaging) == before
    with pytest.warns(UserWarning, match="no average"):
        averaging.load_state_dict(saved)
    assert averaging.state_dict()["fastopt"] == plain.state_dict()["fastopt"]


def test_a_dict_that_says_none_turns_it_off():
    opt, other = Adam(three(), ema_decay=0.5), Adam(three(), ema_decay=0.9)
    opt.step(three(1))
    opt.param_groups[0]["ema_decay"] = None
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert other.param_groups[0]["ema_decay"] is None and "ema" not in other.state[0]
    for made in (opt, other, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert made.param_groups[0]["ema_decay"] is None
        with pytest.raises(AveragedError):
            _ = made.averages


def test_averages_that_were_switched_off_begin_anew():
    opt = Adam(three(), ema_decay=0.5)
    for k in range(2):
        opt.step(three(k))
    opt.param_groups[0]["ema_decay"] = None
    opt.step(three(2))
    assert "ema" not in opt.state[0] and "ema" not in opt.state_dict()["state"][0]
    opt.param_groups[0]["ema_decay"] = 0.5
    opt.step(three(3))
    assert same_bits(opt.averages, opt.params)
    opt.step(three(4))
    assert not same_bits(opt.averages, opt.params)


def test_what_others_call_ema_is_ignored_where_there_are_no_averages():
    opt = Adam(three())
    opt.step(three(1))
    before = frozen_optimizer(opt)
    for other in (1.0, "x", np.zeros(3), object()):
        saved = copy.deepcopy(opt.state_dict())
        saved["state"][0]["ema"] = other
        opt.load_state_dict(saved)
        assert frozen_optimizer(opt) == before


def test_loading_inside_does_not_warn_before_it_is_refused():
    opt = Adam(three(), ema_decay=0.5)
    opt.step(three(1))
    plain = Adam(three())
    plain.step(three(1))
    with warnings.catch_warnings(), opt.averaged():
        warnings.simplefilter("error")
        with pytest.raises(AveragedError):
            opt.load_state_dict(plain.state_dict())


def test_an_average_of_another_shape_is_refused():
    opt = Adam(three(), ema_decay=0.5)
    opt.step(three(1))
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][1]["ema"] = np.zeros((4, 3), np.float32)
    with unchanged(opt, fastopt.StateDictError, "state 'ema' of parameter 1 has shape"):
        opt.load_state_dict(saved)


# --- Zeroing


def test_gradients_that_cannot_be_zeroed_are_refused():
    opt = Adam(three(), zero_grads=True, copy_grads=True)
    g = three(1)
    g[1].flags.writeable = False
    with unchanged(opt, ReadOnlyError, "gradient of parameter 1 is read-only; zero_grads=True writes to it"):
        opt.step(g)
    g = three(1)
    g[1] = g[1].astype(np.float64)
    with unchanged(opt, DTypeError, "gradient of parameter 1 .*cannot be copied, because zero_grads=True"):
        opt.step(g)
    g = three(1)
    g[1] = g[1].copy("C")
    with unchanged(opt, LayoutError, "gradient of parameter 1 .*cannot be copied, because zero_grads=True"):
        opt.step(g)
    opt.step(three(1))


def test_gradients_that_share_memory_are_not_zeroed():
    memory = np.ones(20)
    opt = Adam([{"params": [np.ones(10), np.ones(10)]}, {"params": [np.ones(10)], "zero_grads": False}],
               zero_grads=True)  # fmt: skip
    for k, g in enumerate(([memory[:10], memory[5:15], np.ones(10)], [memory[:10], np.ones(10), memory[9:19]])):
        before = memory.copy()
        match = f"gradient of parameter {k + 1} shares memory with the gradient of parameter 0"
        for _ in range(2):
            with unchanged(opt, OverlapError, match):
                opt.step(g)
            assert same_bits(memory, before)
    good = [memory[:10], memory[10:], np.ones(10)]
    for _ in range(2):
        memory[...] = 1
        opt.step(good)
        assert not memory.any() and good[2].all()
    memory[...] = 1
    with unchanged(opt, OverlapError, "shares memory"):
        opt.step([memory[:10], memory[1:11], np.ones(10)])
    opt.step([memory[:10], None, memory[10:]])
    assert not memory[:10].any() and memory[10:].all()
    both = Adam([np.ones(0), np.ones(0), np.ones(3)], zero_grads=True)
    none = np.ones(0)
    both.step([none, none, np.ones(3)])


def test_arrays_of_others_are_zeroed():
    from array import array

    memory = array("d", [1.0, 2.0])
    opt = SGD(np.zeros(2), lr=1.0, zero_grads=True)
    opt.step([memory])
    assert memory.tolist() == [0.0, 0.0] and opt.params[0].tolist() == [-1.0, -2.0]
    with unchanged(opt, fastopt.FastoptError):
        opt.step([memoryview(b"\0" * 16).cast("d")])


# --- A scaler


@pytest.mark.parametrize("found", [1, 1.0, True, np.True_, np.float32(1), np.array(1.0), np.array([1.0]), math.nan, -1])
def test_what_a_scaler_found_skips_the_step(found):
    opt = Adam(three(), ema_decay=0.5, zero_grads=True, clip_norm=1.0)
    opt.step(three(1))
    g, params, state = three(2), copy.deepcopy(opt.params), frozen(opt.state)
    g[0][0, 0] = math.inf
    opt.step(g, found_inf=found, grad_scale=2.0)
    assert (opt.steps, opt.skipped_steps, opt.grad_norm) == (1, 1, None)
    assert same_bits(opt.params, params) and frozen(opt.state) == state
    assert not any(x.any() for x in g)


@pytest.mark.parametrize("found", [None, 0, 0.0, False, np.False_, np.array(0.0), np.array([0])])
def test_nothing_found_is_a_step(found):
    opt, plain = Adam(three()), Adam(three())
    opt.step(three(1), found_inf=found)
    plain.step(three(1))
    assert opt.steps == 1 and same_bits(opt.params, plain.params)


def test_a_number_beyond_floats_is_found_too():
    opt = Adam(three())
    for found in (2**1024, -(2**1024)):
        opt.step(three(1), found_inf=found)
    assert (opt.steps, opt.skipped_steps) == (0, 2)


@pytest.mark.parametrize("found", ["1", [1.0], np.ones(2), 1j, {}])
def test_what_nobody_can_have_found_is_refused(found):
    opt = Adam(three())
    with unchanged(opt, HyperparameterError, "found_inf="):
        opt.step(three(1), found_inf=found)


def test_a_step_that_would_be_refused_is_not_skipped_without_a_word():
    opt = Adam(three())
    with unchanged(opt, fastopt.GradientError):
        opt.step(three(1)[:2], found_inf=1)


# --- The options


BAD = {
    "clip_value": [0, -1.0, math.nan, "1", True, [1.0], np.ones(2), 1j, 1e-60],
    "clip_norm_each": [0, -1.0, math.nan, "1", True, [1.0], np.ones(2), 1j],
    "ema_decay": [-0.1, 1.1, math.nan, math.inf, "1", True, [0.5], np.ones(2)],
    "ema_start": [-1, 0.5, math.nan, math.inf, "1", True, [1], 2**60, lambda step: 1],
    "zero_grads": [0, 1, "yes", 0.0, [True], lambda step: True],
}


@pytest.mark.parametrize(("key", "bad"), [(key, bad) for key in BAD for bad in BAD[key]])
def test_bad_values_are_refused(key, bad):
    with pytest.raises(HyperparameterError, match=f"{key}="):
        Adam(three(), **{key: bad})
    with pytest.raises(HyperparameterError, match=f"{key}="):
        Adam([{"params": three(), key: bad}])
    opt = Adam(three(), ema_decay=0.5)
    opt.step(three(1))
    before = opt.param_groups[0].get(key)
    opt.param_groups[0][key] = bad
    with unchanged(opt, HyperparameterError, f"{key}="):
        opt.step(three(1))
    if key not in ("ema_start", "zero_grads") and not callable(bad):
        opt.param_groups[0][key] = lambda step: bad
        with unchanged(opt, HyperparameterError, f"{key}="):
            opt.step(three(1))
    opt.param_groups[0][key] = before
    opt.step(three(1))


def test_clip_value_only_has_to_be_above_0_where_it_is_rounded():
    opt = Adam(np.ones(3), clip_value=1e-60)
    opt.step(np.ones(3))
    with pytest.raises(HyperparameterError, match="also in float32"):
        Adam(np.ones(3, np.float32), clip_value=1e-60)
    Adam(np.ones(3, np.float32), clip_norm_each=1e-60, ema_decay=1 - 1e-12)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("clipvalue", "clip_value"), ("clipnorm", "clip_norm_each"), ("grad_clip", "clip_norm_each"),
     ("use_ema", "ema_decay"), ("ema_momentum", "ema_decay"), ("zero_grad", "zero_grads"), ("ema_decoy", "ema_decay"),
     ("max_grad_norm", "clip_norm"), ("global_clipnorm", "clip_norm"), ("gradient_clipping", "clip_norm")],
)  # fmt: skip
def test_words_of_other_libraries_are_answered_with_ours(word, meant):
    with pytest.raises(UnknownOptionError, match=f"did you mean '{meant}'"):
        Adam(three(), **{word: 1.0})
    if meant != "clip_norm":
        with pytest.raises(UnknownOptionError, match=f"did you mean '{meant}'"):
            Adam([{"params": three(), word: 1.0}])


def test_options_are_no_attributes():
    opt = Adam(three())
    for key in AROUND:
        with pytest.raises(UnknownAttributeError, match=f"param_groups\\[0\\]\\['{key}'\\]"):
            setattr(opt, key, 1.0)


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_without_them_all_keys_are_those_of_before(cls, convention):
    opt = build(cls, three(), convention)
    opt.step(three(1))
    assert not {*AROUND, "ema"} & {*opt.param_groups[0], *opt.state[0], *opt.defaults}
    assert not {*AROUND} & {*opt.state_dict()["param_groups"][0]}


def test_a_class_cannot_take_the_names():
    for attribute, value in (("slots", (fastopt.Slot("ema"),)), ("hyperparameters", ("lr", "ema_decay"))):
        with pytest.raises(DeclarationError, match="ema"):
            type("Mine", (SGD,), {attribute: value})


@pytest.mark.parametrize("key", AROUND)
def test_a_function_has_each_of_them_by_itself(key):
    """One option alone, which makes the smallest difference to the options of a plain step."""
    p, m, v, ema = (np.full(3, fill) for fill in (1.0, 0.0, 0.0, 0.0))
    opt = Adam(p.copy(), **{key: AROUND[key]})
    for t in range(1, 4):
        g = np.full(3, 0.25 * t)
        opt.step(mine := g.copy())
        fastopt.functional.adam_(p, g, m, v, ema=ema, step=t, **{key: AROUND[key]})
        assert p.tobytes() == opt._plan.arrays[0].tobytes() and g.tobytes() == mine.tobytes()
        assert ema.tobytes() == opt.state[0].get("ema", np.zeros(3)).tobytes()


def test_nothing_is_kept_alive():
    import weakref

    opt = Adam(three(), ema_decay=0.5, zero_grads=True)
    g = three(1)
    refs = [weakref.ref(x) for x in g]
    opt.step(g)
    context = opt.averaged()
    ref = weakref.ref(opt)
    del g
    gc.collect()
    assert not any(r() is not None for r in refs)
    del opt, context
    gc.collect()
    assert ref() is None


# --- All of it in any order

CHOICES: dict[str, list[Any]] = {
    "clip_value": [0.2, schedules.Linear(1.0, 0.1, 9), None], "clip_norm_each": [0.7, math.inf, None],
    "ema_decay": [0.0, 0.3, 0.9, schedules.Linear(0.2, 0.9, 9), None], "ema_start": [0, 1, 3, None],
    "zero_grads": [True, False, None],
}  # fmt: skip
CHOSEN = st.fixed_dictionaries({}, optional={key: st.sampled_from(CHOICES[key]) for key in CHOICES})
SEEDS = st.integers(0, 2**32)


class Life(RuleBasedStateMachine):
    """An optimizer that lives through calls in any order, beside a twin in the reference."""

    @initialize(
        which=st.sampled_from(ALL), groups=st.lists(CHOSEN, min_size=1, max_size=3), threads=st.integers(1, 2),
        defaults=CHOSEN,
    )  # fmt: skip
    def begin(self, which, groups, threads, defaults):
        self.cls, self.convention = which
        self.defaults = {key: value for key, value in defaults.items() if not key.startswith("clip")}
        sizes = [[3, TILE + 1], [0, 257], [1]]
        members = [{"params": arrays(sizes[k]), **self.allowed(options)} for k, options in enumerate(groups)]
        self.opt: Optimizer = build(self.cls, members, self.convention, n_threads=threads, **self.defaults)
        self.twin = reference.twin(self.opt)

    def allowed(self, options):
        """These options, without a second way to clip where the convention has one."""
        if self.convention == "keras" and options.get("clip_value") is not None:
            options = {**options, "clip_norm_each": None}
        return options

    def state_and_options(self):
        options = [{key: repr(group.get(key)) for key in CHOICES} for group in self.opt.param_groups]
        return frozen(self.opt.state_dict()["state"]), options

    def gradients(self, seed, lacks=0):
        made = zip(arrays([p.size for p in self.opt.params], seed=seed), self.opt.params, strict=True)
        return [None if lacks >> i & 1 else g.astype(p.dtype) for i, (g, p) in enumerate(made)]

    @rule(seed=SEEDS, lacks=st.integers(0, 7), scale=st.sampled_from([None, 3.7]))
    def step(self, seed, lacks, scale):
        g = self.gradients(seed, lacks)
        before = copy.deepcopy(g)
        self.opt.step(g, grad_scale=scale)
        self.twin.step(before, grad_scale=scale)

    @rule(seed=SEEDS)
    def skip(self, seed):
        self.opt.step(self.gradients(seed), found_inf=1)

    @rule(chosen=CHOSEN, k=st.integers(0, 5), replaced=st.booleans())
    def edit(self, chosen, k, replaced):
        k %= len(self.opt.param_groups)
        group = {**self.opt.param_groups[k], **chosen}
        if replaced:
            self.opt.param_groups[k] = self.allowed(group)
        else:
            self.opt.param_groups[k].update(self.allowed(group))
        self.opt.step([None] * len(self.opt.params))  # which takes it up
        self.twin = reference.twin(self.opt)

    @rule(key=st.sampled_from([*CHOICES]), k=st.integers(0, 5))
    def take_away(self, key, k):
        self.opt.param_groups[k % len(self.opt.param_groups)].pop(key, None)
        self.opt.step([None] * len(self.opt.params))
        self.twin = reference.twin(self.opt)

    @precondition(lambda self: self.opt._plan.is_averaging())
    @rule(raises=st.booleans(), seed=SEEDS)
    def look_at_averages(self, raises, seed):
        before, averages, saved = frozen_optimizer(self.opt), frozen(self.opt._plan.averages()), self.opt.state_dict()
        saved = frozen(saved)
        try:
            with self.opt.averaged():
                assert frozen(self.opt.params) == averages and frozen(self.opt.state_dict()) == saved
                with pytest.raises(AveragedError):
                    self.opt.step(self.gradients(seed))
                if raises:
                    raise KeyError
        except KeyError:
            assert raises
        assert frozen_optimizer(self.opt) == before

    @rule(how=st.sampled_from(["deepcopy", "pickle", "state dict", "a live state dict"]))
    def go_on_elsewhere(self, how):
        before = self.state_and_options()
        if how == "deepcopy":
            self.opt = copy.deepcopy(self.opt)
        elif how == "pickle":
            self.opt = pickle.loads(pickle.dumps(self.opt))
        else:
            saved = self.opt.state_dict()
            members = [{"params": [p.copy() for p in group["params"]]} for group in self.opt.param_groups]
            given = {key: self.defaults[key] for key in self.defaults if all(key in g for g in self.opt.param_groups)}
            self.opt = build(self.cls, members, self.convention, **given)
            self.opt.load_state_dict(copy.deepcopy(saved) if how == "state dict" else saved)
        assert self.state_and_options() == before
        self.twin._optimizer = self.opt

    @precondition(lambda self: len(self.opt.params) < 8)
    @rule(chosen=CHOSEN)
    def add_a_group(self, chosen):
        self.opt.add_param_group({"params": arrays([5, 300]), **self.allowed(chosen)})
        self.twin = reference.twin(self.opt)

    @rule()
    def refuse(self):
        with unchanged(self.opt, fastopt.FastoptError):
            self.opt.step([np.ones((2, 2))] * len(self.opt.params))

    @invariant()
    def is_like_the_twin(self):
        if not hasattr(self, "opt"):
            return
        assert not any(conftest.differing(a, b).any() for a, b in zip(self.opt.params, self.twin.params, strict=True))
        for i, its in enumerate(self.twin.state):
            saved = self.opt._plan.saved_state(i)
            assert self.twin.begun[i] == ("ema" in saved)
            assert not any(conftest.differing(np.asarray(saved[name]), its[name]).any() for name in saved)


@pytest.mark.filterwarnings("ignore:the state dict has no average")  # that has not begun when it is saved
class TestLife(Life.TestCase):
    settings = settings(deadline=None, max_examples=200, stateful_step_count=12)
