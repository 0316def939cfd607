"""Gradients clipped by the norm of all: the bits of the reference, and what is around a step that clips."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from typing import Any

import conftest
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    ALL,
    ALL_IDS,
    SIZES,
    TILE,
    arrays,
    assert_like_the_twin,
    build,
    frozen_optimizer,
    same_bits,
    three,
    unchanged,
)

import fastopt
import fastopt.functional as functional
from fastopt import (
    SGD,
    Adam,
    AdamW,
    ConcurrentStepError,
    HyperparameterError,
    NonFiniteError,
    UnknownAttributeError,
    UnknownOptionError,
    engine,
    reference,
)

# --- The bits


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("norm_type", [2, math.inf])
def test_a_step_that_clips_has_the_bits_of_the_twin(cls, convention, norm_type):
    decay = {"weight_decay": 0.1} if cls.conventions[convention].decay else {}
    for limit in (0.5, 1e9, math.inf):
        for more in ({}, decay, {"maximize": True, **decay}):
            opt = build(cls, arrays(), convention, clip_norm=limit, norm_type=norm_type, n_threads=1, **more)
            assert_like_the_twin(opt)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("level", engine.available_levels())
def test_threads_and_levels_do_not_matter(threads, level):
    sizes = (*SIZES, 40 * TILE + 3, 5, 20 * TILE)
    with conftest.level(level), conftest.parallel_from(1):
        for convention, limit in (("torch", 1.0), ("optax", 300.0), ("keras", 1.0), ("torch", 1e9)):
            opt = build(AdamW, arrays(sizes), convention, clip_norm=limit, n_threads=threads)
            assert_like_the_twin(opt, grads=lambda seed: arrays(sizes, seed=seed))
    assert opt.grad_norm == fastopt.norm(arrays(sizes, seed=3))


@given(
    seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8),
    limit=st.sampled_from([1e-30, 0.3, 1.0, 50.0, 1e300, math.inf]), scale=st.sampled_from([None, 1, 3.7, 2.0**40]),
    norm_type=st.sampled_from([2, math.inf]), threads=st.integers(1, 3), lacks=st.integers(0, 255),
    convention=st.sampled_from(sorted(Adam.conventions)), by=st.sampled_from([1e-30, 1.0, 1e30]),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_whatever_is_given_the_bits_are_the_twins(
    seed, sizes, limit, scale, norm_type, threads, lacks, convention, by
):
    def grads(seed):
        made = arrays(sizes, seed=seed, by=by)
        return [None if lacks >> i & 1 else g for i, g in enumerate(made)]

    with conftest.parallel_from(1):
        opt = build(Adam, arrays(sizes, seed=seed), convention, clip_norm=limit, norm_type=norm_type,
                    n_threads=threads)  # fmt: skip
        assert_like_the_twin(opt, 2, grads, grad_scale=scale)


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_groups_have_their_own_stages_and_one_norm(cls):
    sets = [{}, {"weight_decay": 0.1, "decoupled_weight_decay": False}, {"maximize": True}, {"weight_decay": 0.2}]
    every = arrays([100, 2000, 3, 700, 9, 1500])
    with conftest.parallel_from(1):
        for threads in (1, 2):
            groups: list[dict[str, Any]] = [{"params": [every[k].copy()], **options} for k, options in enumerate(sets)]
            groups[1:1] = [{"params": []}]
            groups += [{"params": [p.copy() for p in every[4:]]}]
            opt = cls(groups, clip_norm=0.5, n_threads=threads, lr=0.1, **({"momentum": 0.9} if cls is SGD else {}))
            assert_like_the_twin(opt, 70, lambda seed: arrays([100, 2000, 3, 700, 9, 1500], seed=seed))
            for limit in (1e9, 0.5, None, 0.25):  # a stage that is left out, and back
                opt.clip_norm = limit
                assert_like_the_twin(opt, 2, lambda seed: arrays([100, 2000, 3, 700, 9, 1500], seed=seed))


def test_arrays_of_every_shape():
    def shaped(seed):
        rng = np.random.default_rng(seed)
        return [np.asfortranarray(rng.standard_normal((40, 50))), np.array(rng.standard_normal()), np.zeros((0, 3)),
                rng.standard_normal((3, 4, 5)).astype(np.float32)]  # fmt: skip

    assert_like_the_twin(Adam(shaped(0), clip_norm=0.1), grads=shaped)


def test_what_the_factor_is():
    def factor(convention, limit, g):
        opt = build(SGD, np.zeros(2), convention, lr=1.0, clip_norm=limit)
        opt.step(np.array(g))
        return -opt.params[0][0] / g[0]

    g = [4.0, 3.0]  # of norm 5
    assert factor("torch", 1.0, g) == 1 / (5 + 1e-6)
    assert factor("torch", 5.0, g) == 5 / (5 + 1e-6)
    assert factor("torch", 5.1, g) == 1
    assert factor("keras", 1.0, g) == 0.2
    assert factor("optax", 1.0, g) == 0.2
    assert factor("optax", 5.0, g) == factor("optax", 6.0, g) == 1
    for convention in ("torch", "keras", "optax", "thinc"):
        assert factor(convention, math.inf, g) == 1


def test_the_norm_is_of_unscaled_gradients():
    for scale in (1024.0, 3.0):
        plain, scaled = (SGD(np.zeros(3), lr=1.0, clip_norm=1.0) for _ in range(2))
        g = np.array([3.0, 0.0, 4.0])
        plain.step(g)
        scaled.step(g * scale, grad_scale=scale)
        assert plain.grad_norm == scaled.grad_norm == 5.0
        assert same_bits(plain.params[0], scaled.params[0])


def test_a_factor_of_one_is_the_plain_step():
    plain, loose = AdamW(arrays()), AdamW(arrays(), clip_norm=1e9)
    for k in range(3):
        plain.step(arrays(seed=k))
        loose.step(arrays(seed=k))
    assert same_bits(plain.params, loose.params)


# --- What the norm can be


def test_no_gradients_have_the_norm_0():
    opt = Adam(three(), clip_norm=1.0)
    assert opt.grad_norm is None
    opt.step([None] * 3)
    assert opt.grad_norm == 0.0 and opt.steps == 1
    for convention in ("torch", "keras", "optax"):
        opt = build(SGD, three(), convention, clip_norm=1.0, lr=0.1)
        before = [p.copy("K") for p in opt.params]
        opt.step([np.zeros_like(p) for p in opt.params])
        assert opt.grad_norm == 0.0
        assert same_bits(opt.params, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("norm_type", [2, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_is_answered_by_the_norm(bad, norm_type, threads):
    g = arrays((3000, 2000, 5000))
    g[1][1234] = bad
    with conftest.parallel_from(1):
        opt = Adam(arrays((3000, 2000, 5000)), clip_norm=1.0, norm_type=norm_type, nonfinite="raise", n_threads=threads)
        with unchanged(opt, NonFiniteError, "gradient of parameter 1"):
            opt.step(g)
        assert not math.isfinite(opt.grad_norm)
        opt.nonfinite = "skip"
        before = [p.copy() for p in opt.params]
        opt.step(g)
        assert (opt.steps, opt.skipped_steps) == (0, 1) and same_bits(opt.params, before)
        opt.step(arrays((3000, 2000, 5000), seed=1))
        assert opt.steps == 1 and math.isfinite(opt.grad_norm)


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
def test_finite_gradients_whose_squares_overflow_are_no_infinities(nonfinite):
    for convention in ("torch", "optax", "keras"):
        opt = build(SGD, np.zeros(3), convention, lr=1.0, clip_norm=1.0, nonfinite=nonfinite)
        opt.step(np.array([1e200, 1.0, -1e300]))
        assert opt.grad_norm == math.inf and opt.skipped_steps == 0 and opt.steps == 1
        assert np.isnan(opt.params[0]).all() if convention == "keras" else (opt.params[0] == 0).all()
    opt = SGD(np.zeros(3), lr=1.0, clip_norm=1.0, norm_type=math.inf, nonfinite=nonfinite)
    opt.step(np.array([1e200, 1.0, -1e300]))
    assert opt.grad_norm == 1e300 and opt.params[0][2] == 1.0


def test_what_propagates_is_as_in_the_libraries():
    for g, norm in (([1.0, math.inf], math.inf), ([1.0, math.nan], math.nan)):
        for convention in ("torch", "keras", "optax"):
            opt = build(SGD, np.zeros(2), convention, lr=1.0, clip_norm=1.0)
            opt.step(np.array(g))
            assert repr(opt.grad_norm) == repr(norm)
            nan = [math.isnan(norm) or convention == "keras", True]
            assert np.isnan(opt.params[0]).tolist() == nan


# --- The setting


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, "1", True, np.True_, [1.0], np.ones(2), float, 10**400, 1j, 1e-400])
def test_bad_limits_are_refused(bad):
    with pytest.raises(HyperparameterError, match="clip_norm="):
        Adam(three(), clip_norm=bad)
    opt = Adam(three(), clip_norm=1.0)
    with unchanged(opt, HyperparameterError, "clip_norm=.* must be a number above 0"):
        opt.clip_norm = bad
    assert opt.clip_norm == 1.0
    if not callable(bad):
        opt.clip_norm = lambda step: bad
        with unchanged(opt, HyperparameterError, "clip_norm=.* must be a number above 0"):
            opt.step(three(1))


@pytest.mark.parametrize("bad", [1, 0, -math.inf, "2", None, True, math.nan, [2]])
def test_bad_norm_types_are_refused(bad):
    with pytest.raises(HyperparameterError, match="norm_type=.* must be 2 or inf"):
        Adam(three(), norm_type=bad)
    opt = Adam(three())
    with unchanged(opt, HyperparameterError, "norm_type=.* must be 2 or inf"):
        opt.norm_type = bad


def test_numbers_of_all_kinds():
    for limit in (1, np.float32(0.5), np.array(0.5), np.int64(2)):
        opt = Adam(three(), clip_norm=limit, norm_type=np.float64(2))
        assert opt.clip_norm == float(limit) and type(opt.clip_norm) is float and opt.norm_type == 2
        opt.clip_norm = lambda step, limit=limit: limit
        opt.step(three(1))


def test_it_can_be_set_between_steps():
    opt, plain, clipped = Adam(three()), Adam(three()), Adam(three(), clip_norm=0.1)
    for o in (opt, plain):
        o.step(three(1))
    assert opt.grad_norm is None and same_bits(opt.params, plain.params)
    opt.clip_norm = 0.1
    assert opt.grad_norm is None
    clipped.load_state_dict(copy.deepcopy(opt.state_dict()))
    for mine, its in zip(clipped.params, opt.params, strict=True):
        mine[...] = its
    for o in (opt, clipped):
        o.step(three(2))
    assert opt.grad_norm == clipped.grad_norm == fastopt.norm(three(2))
    assert same_bits(opt.params, clipped.params)
    opt.clip_norm = None
    assert opt.grad_norm == clipped.grad_norm  # of the last step
    opt.step(three(3))
    assert opt.grad_norm is None


def test_a_schedule_is_called_with_the_steps_taken():
    seen = []
    opt = Adam(three(), clip_norm=lambda step: seen.append(step) or 0.5 ** (step + 1))
    assert_like = reference.twin(opt)
    for k in range(3):
        opt.step(three(k))
    assert seen == [0, 1, 2]
    assert assert_like.grad_norm is None
    assert_like_the_twin(Adam(arrays(), clip_norm=fastopt.schedules.Exponential(2.0, 0.5)), 5)


def test_schedules_that_misbehave_change_nothing():
    opt = Adam(three(), clip_norm=lambda step: 1 / 0)
    before = frozen_optimizer(opt)
    with pytest.raises(ZeroDivisionError):
        opt.step(three(1))
    assert frozen_optimizer(opt) == before
    opt.clip_norm = lambda step: opt.step(three(2))
    with unchanged(opt, ConcurrentStepError):
        opt.step(three(1))
    for name, value in (("clip_norm", None), ("norm_type", math.inf), ("nonfinite", "skip")):
        opt.clip_norm = lambda step, name=name, value=value: setattr(opt, name, value)
        with unchanged(opt, ConcurrentStepError):
            opt.step(three(1))
    opt.clip_norm = 1.0
    opt.step(three(1))
    assert opt.grad_norm == fastopt.norm(three(1))


class Odd(float):
    """A number that is another one when it is asked again."""

    def __float__(self) -> float:
        self.asked = getattr(self, "asked", 0) + 1
        return 1.0 if self.asked < 3 else -1.0


def test_a_number_that_changes_is_read_once():
    opt, plain = Adam(three(), clip_norm=lambda step: Odd(1.0)), Adam(three(), clip_norm=1.0)
    for k in range(5):
        opt.step(three(k))
        plain.step(three(k))
    assert same_bits(opt.params, plain.params)


def test_a_schedule_may_edit_the_groups():
    opt = Adam(three(), clip_norm=lambda step: opt.param_groups[0].update(lr=0.5) or 1.0)
    other = Adam(three(), clip_norm=1.0, lr=0.5)
    for o in (opt, other):
        o.step(three(1))
    assert same_bits(opt.params, other.params)


@pytest.mark.parametrize("threads", [1, 2])
def test_another_thread_cannot_set_it_in_the_middle_of_a_step(threads):
    inside, go_on = threading.Event(), threading.Event()

    def wait(step: int) -> float:
        inside.set()
        assert go_on.wait(60)
        return 1.0

    opt = Adam(three(), clip_norm=wait, n_threads=threads)
    stepping = threading.Thread(target=lambda: opt.step(three(1)))
    stepping.start()
    assert inside.wait(60)
    try:
        for name, value in (("clip_norm", 2.0), ("norm_type", 2)):
            with pytest.raises(ConcurrentStepError):
                setattr(opt, name, value)
    finally:
        go_on.set()
        stepping.join()
    assert opt.steps == 1


# --- With what else there is


def test_gradients_may_be_read_only_and_copied():
    g = three(1)
    for x in g:
        x.flags.writeable = False
    Adam(three(), clip_norm=0.1).step(g)
    copied, plain = Adam(three(), clip_norm=0.1, copy_grads=True), Adam(three(), clip_norm=0.1)
    wide = [x.astype(np.float64 if x.dtype == np.float32 else x.dtype, order="C") for x in g]
    copied.step(wide)
    plain.step(g)
    assert copied.grad_norm == plain.grad_norm
    assert same_bits(copied.params, plain.params)


def test_lookahead_does_not_clip():
    opt, other = (fastopt.NAG(three(), lr=0.1, momentum=0.9, clip_norm=0.5) for _ in range(2))
    for k in range(3):
        for o in (opt, other):
            o.step(three(k))
        other.clip_norm = None
        assert same_bits([x.copy() for x in opt.lookahead()], [x.copy() for x in other.lookahead()])
        other.clip_norm = 0.5


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_keys_of_state_and_groups_are_those_of_before(cls, convention):
    plain, clips = (build(cls, three(), convention, clip_norm=limit) for limit in (None, 0.5))
    for o in (plain, clips):
        o.step(three(1))
    assert repr(plain.param_groups[0].keys()) == repr(clips.param_groups[0].keys())
    assert [sorted(s) for s in plain.state] == [sorted(s) for s in clips.state]
    a, b = plain.state_dict(), clips.state_dict()
    assert a.keys() == b.keys() and a["fastopt"].keys() == b["fastopt"].keys()
    assert [g.keys() for g in a["param_groups"]] == [g.keys() for g in b["param_groups"]]
    assert "clip" not in repr(clips) and {"clip_norm", "norm_type", "grad_norm"} <= set(dir(clips))


def test_copies_have_the_settings(tmp_path):
    opt = Adam(three(), clip_norm=0.5, norm_type=math.inf, convention="keras")
    opt.step(three(1))
    for made in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert (made.clip_norm, made.norm_type, made.grad_norm) == (0.5, math.inf, None)
        assert_like_the_twin(made, grads=three)  # with the factor of the convention
        assert made.grad_norm == fastopt.norm(three(3), math.inf)
    opt.clip_norm = lambda step: 1.0
    assert copy.deepcopy(opt).clip_norm is opt.clip_norm
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(opt)
    opt.clip_norm = fastopt.schedules.Exponential(1.0, 0.5)
    assert pickle.loads(pickle.dumps(opt)).clip_norm == opt.clip_norm


def test_a_file_does_not_have_the_settings(tmp_path):
    opt = Adam(three(), clip_norm=lambda step: 0.5)
    opt.step(three(1))
    opt.save(tmp_path / "state")
    other = Adam(three(), clip_norm=0.25)
    other.load(tmp_path / "state")
    assert other.clip_norm == 0.25 and other.steps == 1
    plain = Adam(three())
    plain.load(tmp_path / "state")
    assert plain.clip_norm is None


def test_state_from_a_factory_and_minimize():
    opt = Adam(arrays(), clip_norm=0.5, state_factory=lambda name, shape, dtype: np.empty(shape, dtype))
    assert_like_the_twin(opt)

    x, y = np.array([3.0, 4.0]), np.array([3.0, 4.0])
    fastopt.minimize(lambda x, *_: (x @ x, 2 * x), x, lambda p: SGD(p, lr=0.1, clip_norm=1.0), max_steps=1)
    opt = SGD(y, lr=0.1, clip_norm=1.0)
    opt.step(2 * y)
    assert opt.grad_norm == 10.0 and same_bits(x, y)


def test_teams_that_come_late_leave_it_to_one_thread():
    old = engine.set_most_alone(4)
    try:
        with conftest.parallel_from(1):
            sizes = (300_000, 70_001)
            opt = AdamW(arrays(sizes), clip_norm=0.5, n_threads=64)  # more than there are cores
            assert_like_the_twin(opt, 30, lambda seed: arrays(sizes, seed=seed % 3))
    finally:
        engine.set_most_alone(old)


# --- Other libraries' words

NORM_WORDS = ["max_grad_norm", "max_norm", "global_clipnorm", "gradient_clipping", "clip_grad_norm"]


@pytest.mark.parametrize("word", NORM_WORDS)
def test_words_of_other_libraries(word):
    says = "did you mean 'clip_norm'"
    with pytest.raises(UnknownOptionError, match=f"Adam has no option '{word}': .*{says}"):
        Adam(three(), **{word: 1.0})
    with pytest.raises(UnknownAttributeError, match=f"Adam has no attribute '{word}': .*{says}"):
        setattr(Adam(three()), word, 1.0)
    with pytest.raises(UnknownOptionError, match=f"no option '{word}': .*clip_norm"):
        Adam([{"params": three(), word: 1.0}])
    opt = Adam(three())
    opt.param_groups[0][word] = 1.0
    with unchanged(opt, UnknownOptionError, f"has '{word}', which does nothing; .*clip_norm"):
        opt.step(three(1))


@pytest.mark.parametrize("word", NORM_WORDS)
def test_functions_say_what_it_is_called(word):
    p, g, m, v = (np.ones(3) for _ in range(4))
    for call in (
        lambda: functional.adam_(p, g, m, v, step=1, **{word: 2}),
        lambda: functional.bind("adam", p, [m, v], **{word: 2}),
        lambda: functional.bind("adam", p, [m, v]).step(g, step=1, **{word: 2}),
    ):
        with pytest.raises(UnknownOptionError, match=f"no option '{word}': did you mean 'clip_norm'"):
            call()
        assert (p == 1).all() and (m == 1).all()


@pytest.mark.parametrize("name", ["clip_norm", "norm_type"])
def test_it_is_no_option_of_a_group(name):
    with pytest.raises(UnknownOptionError, match="clip_norm is an option of the optimizer"):
        Adam([{"params": three(), name: 2}])
    opt = Adam(three())
    opt.param_groups[0][name] = 2
    with unchanged(opt, UnknownOptionError, f"has '{name}', which does nothing; it is an attribute of the optimizer"):
        opt.step(three(1))


def test_the_norm_cannot_be_set():
    with pytest.raises(AttributeError):
        Adam(three()).grad_norm = 1.0  # type: ignore[misc]
