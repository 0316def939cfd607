"""fastopt.thinc against thinc's own optimizers, and thinc's own tests over it.

Everything runs with thinc 8, whose schedules are generators, and with thinc 9, whose schedules are objects.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import fastopt
import fastopt.functional

pytest.importorskip("thinc")

import thinc.api
import thinc.config
import thinc.optimizers
import thinc.schedules
from support import python_blocks

import fastopt.thinc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEY = (7, "W")
SCHEDULES = hasattr(thinc.schedules, "Schedule")  # thinc 9
#: What weights, moments and averages may differ by, divided by the largest of them: thinc computes in float32, its Adam
#: with 1 - beta in float32, too. Seen over all settings: 4e-6, 4e-7, 1.3e-5, 3.5e-6; RAdam and SGD 1.7e-6.
FAR = {"weights": 1e-5, "mom1": 1e-6, "mom2": 3e-5, "averages": 1e-5}


@pytest.fixture(autouse=True)
def steps_of_thinc(monkeypatch) -> Counter[str]:
    """Counts the calls that were left to thinc's own code."""
    taken: Counter[str] = Counter()
    own = thinc.optimizers.Optimizer.__call__

    def counted(self, *args, **kwargs):
        taken[type(self).__module__] += 1
        return own(self, *args, **kwargs)

    monkeypatch.setattr(thinc.optimizers.Optimizer, "__call__", counted)
    return taken


def problem(shape=(3, 5), n=50, seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    weights = random.standard_normal(shape).astype(np.float32)
    return weights, [(scale * random.standard_normal(shape)).astype(np.float32) for _ in range(n)]


def pair(name, *args, **kwargs):
    """thinc's optimizer, and ours, of the same arguments."""
    made = []
    for module in (thinc.optimizers, fastopt.thinc):
        copied = [list(x) if isinstance(x, list) else x for x in args]
        made.append(getattr(module, name)(*copied, **{k: list(v) if isinstance(v, list) else v
                                                      for k, v in kwargs.items()}))  # fmt: skip
    return made


def run(optimizer, weights, gradients, *, key=KEY, first=0, **kwargs):
    """Steps with one parameter; the weights after them. The gradient is zeroed each time, in its memory."""
    for g in gradients:
        gradient = g.copy()
        weights, returned = optimizer(key, weights, gradient, **kwargs)
        assert not gradient.any() and np.shares_memory(gradient, returned)
        optimizer.step_schedules()
    return weights


def distance(a, b):
    scale = max(np.abs(a).max(), 1e-30)
    return float(np.abs(np.asarray(a, np.float64) - b).max() / scale)


def close(theirs, ours, weights=None, key=KEY):
    """The state of both is the same but for rounding; so are the weights."""
    assert theirs.nr_update == ours.nr_update
    if weights is not None:
        assert distance(*weights) < FAR["weights"]
    for name in ("mom1", "mom2", "averages"):
        a, b = getattr(theirs, name), getattr(ours, name)
        assert (a is None) == (b is None)
        if a is None:
            continue
        assert a.keys() == b.keys()
        for k in a:
            assert a[k].shape == b[k].shape and b[k].dtype == np.float32
            assert distance(a[k], b[k]) < FAR[name], name


# --- Parity


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_every_setting_is_as_in_thinc(name, l2, decays, clip, steps, steps_of_thinc):
    for averages, scheduled, lr_scale in product((True, False), (False, True), (1.0, 0.5)):
        steps.clear(), steps_of_thinc.clear()
        rate = [0.05 * 0.95**i for i in range(40)] if scheduled else 0.05
        theirs, ours = pair(name, rate, L2=l2, L2_is_weight_decay=decays, grad_clip=clip, use_averages=averages)
        start, gradients = problem(scale=0.5)
        w, v = start.copy(), start.copy()
        w, v = run(theirs, w, gradients, lr_scale=lr_scale), run(ours, v, gradients, lr_scale=lr_scale)
        assert np.abs(w - start).max() > 0.02
        close(theirs, ours, (w, v))
        left = name == "RAdam" and lr_scale != 1
        assert steps[name] == (0 if left else 50) and steps_of_thinc["fastopt.thinc"] == (50 if left else 0)


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
@pytest.mark.parametrize("of", ["beta1", "beta2", "eps", "L2", "grad_clip"])
def test_any_number_can_change_by_a_schedule(name, of, steps, steps_of_thinc):
    if name == "SGD" and of in ("beta1", "beta2", "eps"):
        pytest.skip("SGD has none")
    numbers = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "L2": 0.01, "grad_clip": 2.0}
    values = [numbers[of] * (1 - 0.01 * (i % 7)) for i in range(60)]
    theirs, ours = pair(name, 0.05, **{of: values})
    start, gradients = problem()
    w, v = run(theirs, start.copy(), gradients), run(ours, start.copy(), gradients)
    close(theirs, ours, (w, v))
    assert steps[name] == 50 and not steps_of_thinc["fastopt.thinc"]


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_settings_switched_on_and_off_on_the_way(name, steps, steps_of_thinc):
    theirs, ours = pair(name, [0.05] * 60, L2=[0.0] * 10 + [0.1] * 10 + [0.0] * 10 + [0.02] * 30,
                        grad_clip=[1.0] * 15 + [0.0] * 10 + [0.5] * 35)  # fmt: skip
    start, gradients = problem()
    w, v = run(theirs, start.copy(), gradients[:25]), run(ours, start.copy(), gradients[:25])
    theirs.L2_is_weight_decay = ours.L2_is_weight_decay = False
    w, v = run(theirs, w, gradients[25:40]), run(ours, v, gradients[25:40])
    if name == "Adam":
        theirs.use_radam = ours.use_radam = True
    w, v = run(theirs, w, gradients[40:]), run(ours, v, gradients[40:])
    close(theirs, ours, (w, v))
    assert sum(steps.values()) == 50 and not steps_of_thinc["fastopt.thinc"]


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_the_bits_are_those_of_the_class(name, steps):
    """In three shapes, one of them beyond a page: those of fastopt's class, with the options of the whole step."""
    for shape in [(4,), (3, 5, 2), (70, 40)]:
        start, gradients = problem(shape)
        ours = getattr(fastopt.thinc, name)(0.05, L2=0.01)
        w = run(ours, start.copy(), gradients)
        p = start.copy()
        opt = getattr(fastopt, name)(p, lr=0.05, weight_decay=0.01, decoupled_weight_decay=True, convention="thinc",
                                     clip_norm_each=1.0, ema_decay=0.9999, zero_grads=True)  # fmt: skip
        for g in gradients:
            opt.step([g.copy()])
        assert (w == p).all() and (ours.averages[KEY] == opt.averages[0]).all()
        if name != "SGD":
            state = opt.state_dict()["state"][0]
            assert (ours.mom1[KEY].reshape(shape) == state["exp_avg"]).all()
            assert (ours.mom2[KEY].reshape(shape) == state["exp_avg_sq"]).all()


def test_keys_count_for_themselves(steps):
    theirs, ours = pair("Adam", 0.05)
    a, gradients = problem()
    b, others = problem((6,), seed=1)
    ends = []
    for optimizer in (theirs, ours):
        x, y = a.copy(), b.copy()
        for i, (g, h) in enumerate(zip(gradients, others, strict=True)):
            x, _ = optimizer((1, "W"), x, g.copy())
            if i % 3 == 0:
                y, _ = optimizer((1, "b"), y, h.copy())
        ends.append((x, y))
    close(theirs, ours)
    assert ours.nr_update == {(1, "W"): 50, (1, "b"): 17} and steps["Adam"] == 67
    assert distance(ends[0][1], ends[1][1]) < FAR["weights"]


# --- Arrays and state


def test_both_arrays_are_returned_and_the_gradient_is_zero():
    optimizer = fastopt.thinc.Adam(0.1)
    weights, (gradient,) = problem(n=1)
    w, g = optimizer(KEY, weights, gradient)
    assert w is weights and g is gradient and not gradient.any()


def test_an_empty_gradient_does_nothing(steps, steps_of_thinc):
    optimizer = fastopt.thinc.Adam(0.1)
    weights, empty = np.zeros((1, 2)), np.zeros(0)
    w, g = optimizer(KEY, weights, empty)
    assert w is weights and g is empty and not optimizer.nr_update and not optimizer.mom1 and not steps


def exchange_moments(optimizer):
    optimizer.mom1[KEY] = optimizer.mom1[KEY] * 0.5
    optimizer.mom2 = {k: v.copy() for k, v in optimizer.mom2.items()}


def exchange_second_moments(optimizer):
    optimizer.mom2[KEY] = optimizer.mom2[KEY] * 0.25


def forget_moments(optimizer):
    del optimizer.mom1[KEY]
    optimizer.mom2.clear()


def forget_averages(optimizer):
    optimizer.averages.clear()


def no_averages(optimizer):
    optimizer.averages = None


def other_averages(optimizer):
    optimizer.averages = {KEY: optimizer.averages[KEY] * 2}


def count_anew(optimizer):
    optimizer.nr_update.clear()


def count_on(optimizer):
    optimizer.nr_update[KEY] = 1000


def plain_counts(optimizer):
    optimizer.nr_update = dict(optimizer.nr_update)


def assign_rate(optimizer):
    optimizer.learn_rate = (lambda step, **extra: 0.002 * (1 + step)) if SCHEDULES else 0.002


def assign_clip(optimizer):
    optimizer.grad_clip = thinc.schedules.constant(0.3) if SCHEDULES else 0.3


def no_momentum(optimizer):
    optimizer.b1 = optimizer.b2 = thinc.schedules.constant(0.0) if SCHEDULES else 0.0


def in_numpys_numbers(optimizer):
    numbers = {"learn_rate": np.float64(0.01), "L2": np.float32(0.125), "grad_clip": 1, "eps": np.float64(1e-4)}
    for name, number in numbers.items():
        setattr(optimizer, name, thinc.schedules.constant(number) if SCHEDULES else number)


CHANGES = [
    exchange_moments, exchange_second_moments, forget_moments, forget_averages, no_averages, other_averages,
    count_anew, count_on, plain_counts, assign_rate, assign_clip, no_momentum, in_numpys_numbers,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["Adam", "RAdam"])
def test_what_is_exchanged_on_the_way_counts(name, change, steps, steps_of_thinc):
    theirs, ours = pair(name, 0.05, L2=0.01)
    start, gradients = problem()
    ends = []
    for optimizer in (theirs, ours):
        w = run(optimizer, start.copy(), gradients[:25])
        change(optimizer)
        ends.append(run(optimizer, w, gradients[25:]))
    close(theirs, ours, ends)
    assert sum(steps.values()) == 50 and not steps_of_thinc["fastopt.thinc"]


def other_memory(w):
    return w.copy()


def another_view(w):
    return w.reshape(-1).reshape(w.shape)


@pytest.mark.parametrize("exchange", [other_memory, another_view])
def test_weights_may_be_other_arrays_every_time(exchange, steps, steps_of_thinc):
    theirs, ours = pair("Adam", 0.05)
    start, gradients = problem()
    w, v = start.copy(), start.copy()
    for g in gradients:
        w, _ = theirs(KEY, exchange(w), g.copy())
        v, _ = ours(KEY, exchange(v), g.copy())
    close(theirs, ours, (w, v))
    assert steps["Adam"] == 50 and not steps_of_thinc["fastopt.thinc"]


def test_weights_of_another_shape_are_thincs_business(steps):
    """Their state does not fit: thinc raises, and so do we, with the same message."""
    said = []
    for optimizer in pair("Adam", 0.05):
        run(optimizer, np.ones((2, 3), np.float32), [np.ones((2, 3), np.float32)] * 3)
        with pytest.raises(ValueError) as caught:
            optimizer(KEY, np.ones(4, np.float32), np.ones(4, np.float32))
        said.append(str(caught.value))
    assert said[0] == said[1] and steps["Adam"] == 3


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, *(lambda x, k=k: pickle.loads(pickle.dumps(x, k))
                                                             for k in range(2, 6))])  # fmt: skip
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_copies_go_on_where_the_original_was(name, how, steps):
    start, gradients = problem()
    whole = getattr(fastopt.thinc, name)(0.05)
    expected = run(whole, start.copy(), gradients)
    first = getattr(fastopt.thinc, name)(0.05)
    w = run(first, start.copy(), gradients[:20])
    second = how(first)
    assert type(second) is fastopt.thinc.Optimizer and second is not first
    assert (run(second, w.copy(), gradients[20:]) == expected).all()
    assert steps[name] == 100
    if how is not copy.copy:  # which shares state
        before = {k: m.copy() for k, m in first.mom1.items()}
        run(second, w.copy(), gradients[:3])
        assert all((first.mom1[k] == m).all() for k, m in before.items())


@pytest.mark.skipif(SCHEDULES, reason="thinc 9 cannot: its schedules have slots")
def test_early_pickle_protocols_work_as_well():
    optimizer = fastopt.thinc.Adam(0.05)
    run(optimizer, np.ones(3, np.float32), [np.ones(3, np.float32)])
    for protocol in (0, 1):
        again = pickle.loads(pickle.dumps(optimizer, protocol))
        assert again.nr_update == optimizer.nr_update


def test_state_loads_into_thincs_own_and_back(steps):
    """In the middle of a run: each goes on with the state of the other."""
    start, gradients = problem()
    theirs, ours = pair("Adam", 0.05)
    expected = run(theirs, start.copy(), gradients)
    order = [fastopt.thinc.Adam(0.05), thinc.optimizers.Adam(0.05), fastopt.thinc.Adam(0.05)]
    w, before = start.copy(), ours
    for optimizer, part in zip(order, (gradients[:20], gradients[20:30], gradients[30:]), strict=True):
        for name in ("mom1", "mom2", "averages", "nr_update"):
            setattr(optimizer, name, getattr(before, name))
        w, before = run(optimizer, w, part), optimizer
    close(theirs, before, (expected, w))
    assert steps["Adam"] == 40


@pytest.mark.parametrize("state", [None, (1, 2), {"a": 1}])
def test_a_subclass_may_say_how_it_is_copied(state):
    class Mine(fastopt.thinc.Optimizer):
        def __reduce__(self):
            return (type(self), (0.25,)) if state is None else (type(self), (0.25,), state)

        def __setstate__(self, given):
            assert given == state

    assert copy.copy(Mine(0.25)).nr_update == {}


@pytest.mark.parametrize("name", ["_adam", "_radam"])
def test_a_subclass_with_a_rule_of_its_own_is_left_to_thinc(name, steps):
    def rule(self, ops, weights, gradient, lr_scale, key, nr_upd):
        weights -= 10 * gradient
        return weights, gradient

    mine = type("Mine", (fastopt.thinc.Optimizer,), {name: rule, "__slots__": ()})
    optimizer = mine(0.5, grad_clip=0.0, use_radam=name == "_radam")
    w = run(optimizer, np.ones(3, np.float32), [np.ones(3, np.float32)] * 2)
    assert (w == -19).all() and not steps


def test_the_class_is_locked_as_thincs():
    optimizer = fastopt.thinc.Adam(0.05)
    assert isinstance(optimizer, thinc.optimizers.Optimizer)
    with pytest.raises(AttributeError):
        optimizer.learning_rate = 0.1


def test_large_state_lies_apart_within_its_pages():
    optimizer = fastopt.thinc.Adam(0.05)
    weights, gradients = problem((300, 100), n=1)
    run(optimizer, weights, gradients)
    arrays = [weights, optimizer.mom1[KEY], optimizer.mom2[KEY], optimizer.averages[KEY]]
    places = sorted(array.ctypes.data % 4096 for array in arrays)
    gaps = np.diff([*places, places[0] + 4096])
    assert gaps.min() >= 512


# --- What is left to thinc


def transposed(w):
    return np.asfortranarray(w)


def with_gaps(w):
    spread = np.zeros((w.shape[0], 2 * w.shape[1]), np.float32)
    spread[:, ::2] = w
    return spread[:, ::2]


def subclass(w):
    return w.copy().view(np.memmap)


def as_float64(w):
    return w.astype(np.float64)


def off_by_a_byte(w):
    memory = np.zeros(w.nbytes + 1, np.uint8)
    moved = memory[1:].view(np.float32).reshape(w.shape)
    moved[...] = w
    return moved


@pytest.mark.parametrize("form", [transposed, with_gaps, subclass, as_float64, off_by_a_byte])
@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_other_arrays_are_left_to_thinc(name, form, steps, steps_of_thinc):
    """The same bits, returned arrays or errors as thinc's own, and the same memory written."""
    start, gradients = problem(n=5)
    ends = []
    for optimizer in pair(name, 0.05, L2=0.01):
        w, said, given = start, None, []
        try:
            for g in gradients:
                given.append(form(w))
                w, _ = optimizer(KEY, given[-1], g.copy())
        except (ValueError, TypeError) as error:
            said = f"{type(error).__name__}: {error}"
        ends.append((w, given, said, dict(optimizer.nr_update)))
    (w, written, *rest), (v, also, *same) = ends
    assert rest == same and (w == v).all() and all((a == b).all() for a, b in zip(written, also, strict=True))
    assert not steps and steps_of_thinc["fastopt.thinc"] == len(written)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradients_that_are_not_finite_are_left_to_thinc(name, bad, clip, steps, steps_of_thinc):
    start, gradients = problem(n=6)
    gradients[3][1, 2] = bad
    ends = []
    for optimizer in pair(name, 0.05, grad_clip=clip):
        w = start.copy()
        with np.errstate(all="ignore"):
            for g in gradients:
                gradient = g.copy()
                w, _ = optimizer(KEY, w, gradient)
        ends.append((w, gradient, optimizer))
    (w, g, theirs), (v, h, ours) = ends
    assert np.array_equal(np.isnan(w), np.isnan(v)) and np.allclose(w, v, 1e-4, 1e-6, equal_nan=True)
    assert np.array_equal(np.isnan(g), np.isnan(h)) and theirs.nr_update == ours.nr_update == {KEY: 6}
    assert steps_of_thinc["fastopt.thinc"] >= 1 and steps[name] >= 3
    assert steps[name] + steps_of_thinc["fastopt.thinc"] == 6


def test_a_gradient_of_a_subclass_is_left_to_thinc(steps, steps_of_thinc):
    start, gradients = problem(n=4)
    ends = []
    for optimizer in pair("RAdam", 0.05):
        w = start.copy()
        for g in gradients:
            w, _ = optimizer(KEY, w, subclass(g))
        ends.append(w)
    assert (ends[0] == ends[1]).all() and not steps and steps_of_thinc["fastopt.thinc"] == 4


@pytest.mark.parametrize("form", [lambda m: np.repeat(m, 2)[::2], np.float64])
def test_moments_of_another_form_are_left_to_thinc(form, steps, steps_of_thinc):
    """They are written where they are, as thinc does."""
    start, gradients = problem(n=10)
    ends = []
    for optimizer in pair("RAdam", 0.05):
        w = run(optimizer, start.copy(), gradients[:5])
        mom1 = optimizer.mom1[KEY] = form(optimizer.mom1[KEY])
        w = run(optimizer, w, gradients[5:])
        assert optimizer.mom1[KEY] is mom1
        ends.append((w, mom1))
    assert distance(ends[0][0], ends[1][0]) < 1e-5 and distance(ends[0][1], ends[1][1]) < 1e-6
    assert steps["RAdam"] == 5 == steps_of_thinc["fastopt.thinc"]


def itself(weights, gradient):
    return weights


def in_moments(weights, gradient):
    return None


def of_one_row(weights, gradient):
    return gradient[0]


def of_another_type(weights, gradient):
    return gradient.astype(np.float64)


def read_only(weights, gradient):
    gradient.flags.writeable = False
    return gradient


def flat(weights, gradient):
    return gradient.reshape(-1)


@pytest.mark.parametrize("form", [itself, in_moments, of_one_row, of_another_type, read_only, flat])
@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_other_gradients_are_left_to_thinc(name, decays, form, steps, steps_of_thinc):
    """The same memory written, and the same errors. Where L2 is added to the gradient, too."""
    start, (first, second) = problem((2, 3), n=2)
    ends = []
    for optimizer in pair(name, 0.05, L2=0.01, L2_is_weight_decay=decays):
        w, said = start.copy(), None
        optimizer(KEY, w, first.copy())
        state = [m[KEY] for m in (optimizer.mom1, optimizer.mom2, optimizer.averages) if KEY in m]
        gradient = state[-1].reshape(w.shape) if form is in_moments else form(w, second.copy())
        try:
            optimizer(KEY, w, gradient)
        except (ValueError, TypeError) as error:
            said = f"{type(error).__name__}: {error}"
        ends.append(([w, gradient, *state], said))
    (arrays, said), (same, also) = ends
    assert said == also and all(distance(a, b) < FAR["mom2"] for a, b in zip(arrays, same, strict=True))
    assert steps[name] == 1 == steps_of_thinc["fastopt.thinc"]


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_a_first_call_that_raises_leaves_no_averages(name, steps):
    """An average of zeros would be taken for weights by `use_params`."""
    for optimizer in pair(name, 0.05):
        for gradient in (np.ones(4, np.float32), [1.0, 2.0, 3.0]):
            with pytest.raises((ValueError, TypeError, AttributeError)):
                optimizer(KEY, np.ones(3, np.float32), gradient)
        assert not optimizer.averages and not any(m.any() for m in optimizer.mom1.values())
        run(optimizer, np.ones(3, np.float32), [np.ones(3, np.float32)])
        assert optimizer.averages[KEY].any() and bool(optimizer.mom1) == (name != "SGD")
    assert steps[name] == 1


def test_moments_of_another_size_raise_what_thinc_raises(steps):
    said = []
    for optimizer in pair("Adam", 0.05):
        w = run(optimizer, np.ones(4, np.float32), [np.ones(4, np.float32)])
        optimizer.mom2[KEY] = np.zeros(3, np.float32)
        with pytest.raises(ValueError) as caught:
            optimizer(KEY, w, np.ones(4, np.float32))
        said.append(str(caught.value))
    assert said[0] == said[1] and steps["Adam"] == 1


def test_a_gradient_that_is_the_weights(steps, steps_of_thinc):
    ends = []
    for optimizer in pair("SGD", 0.05):
        w = np.ones(3, np.float32)
        optimizer(KEY, w, w)
        ends.append(w)
    assert (ends[0] == ends[1]).all() and not steps and steps_of_thinc["fastopt.thinc"] == 1


def test_a_gradient_of_another_shape(steps, steps_of_thinc):
    """thinc's Adam steps it, since both are made flat."""
    start, gradients = problem((2, 3), n=4)
    ends = []
    for optimizer in pair("Adam", 0.05):
        w = start.copy()
        for g in gradients:
            w, _ = optimizer(KEY, w, g.reshape(-1).copy())
        ends.append(w)
    assert (ends[0] == ends[1]).all() and not steps and steps_of_thinc["fastopt.thinc"] == 4


def test_read_only_arrays_raise_what_thinc_raises(steps):
    for frozen in (0, 1):
        said = []
        for optimizer in pair("SGD", 0.05):
            arrays = [np.ones(3, np.float32), np.ones(3, np.float32)]
            arrays[frozen].flags.writeable = False
            with pytest.raises(ValueError) as caught:
                optimizer(KEY, *arrays)
            said.append(str(caught.value))
        assert said[0] == said[1]
    assert not steps


@pytest.mark.parametrize("numbers", [{"beta1": 0.0}, {"beta1": 1.5}, {"eps": -1e-3}, {"L2": -0.01}, {"grad_clip": -1.0},
                                     {"learn_rate": -0.01}, {"beta2": 0.0}])  # fmt: skip
def test_numbers_that_fastopt_refuses_are_left_to_thinc(numbers, steps, steps_of_thinc):
    start, gradients = problem(n=5)
    ends = []
    for optimizer in pair("Adam", **{"learn_rate": 0.05, **numbers}):
        w, said = start.copy(), None
        try:
            with np.errstate(all="ignore"):
                for g in gradients:
                    w, _ = optimizer(KEY, w, g.copy())
        except (NotImplementedError, ValueError, ZeroDivisionError, TypeError) as error:
            said = type(error)
        ends.append((w, said))
    assert ends[0][1] == ends[1][1]
    if "beta2" in numbers:  # SGD, which is stepped
        assert distance(ends[0][0], ends[1][0]) < FAR["weights"] and steps["SGD"] == 5
    else:
        assert np.array_equal(ends[0][0], ends[1][0], equal_nan=True)
        assert not steps and steps_of_thinc["fastopt.thinc"] >= 1
    assert (ends[0][1] is NotImplementedError) == (numbers == {"beta1": 0.0})


@pytest.mark.parametrize("scale", [np.array([0.5]), np.array([0.1, 0.2, 0.3], np.float32), 1 + 0j, None])
@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_an_lr_scale_that_is_no_number_is_left_to_thinc(name, scale, steps, steps_of_thinc):
    ends = []
    for optimizer in pair(name, 0.05):
        w, said = np.ones(3, np.float32), None
        try:
            optimizer(KEY, w, np.ones(3, np.float32), lr_scale=scale)
        except TypeError as error:
            said = f"{type(error).__name__}: {error}"
        ends.append((w, said, dict(optimizer.nr_update)))
    assert (ends[0][0] == ends[1][0]).all() and ends[0][1:] == ends[1][1:]
    assert not steps and steps_of_thinc["fastopt.thinc"] == 1


@pytest.mark.parametrize("name", ["Adam", "RAdam"])
def test_without_eps_a_weight_that_has_no_gradient_stays(name, steps):
    """thinc's becomes NaN, after five steps of RAdam."""
    ends = []
    for optimizer in pair(name, 0.05, eps=0.0):
        with np.errstate(all="ignore"):
            ends.append(run(optimizer, np.ones(3, np.float32), [np.array([0, 1, 2], np.float32)] * 8))
    (w, v) = ends
    assert np.isnan(w[0]) and v[0] == 1 and distance(w[1:], v[1:]) < FAR["weights"] and steps[name] == 8


@pytest.mark.skipif(not SCHEDULES, reason="thinc 8 has generators")
def test_a_schedule_that_raises_leaves_everything(steps):
    def rate(schedule, step, **extra):
        if step == 1:
            raise KeyboardInterrupt
        return 0.05

    optimizer = fastopt.thinc.Adam(thinc.schedules.Schedule("mine", rate))
    w = run(optimizer, np.ones(3, np.float32), [np.ones(3, np.float32)])
    before, gradient = w.copy(), np.ones(3, np.float32)
    with pytest.raises(KeyboardInterrupt):
        optimizer(KEY, w, gradient)
    assert (w == before).all() and gradient.all() and optimizer.nr_update == {KEY: 1}


def test_a_step_left_to_thinc_is_counted_once(steps, steps_of_thinc):
    """Between steps of ours: averages and corrections go by the count."""
    start, gradients = problem(n=30)
    theirs, ours = pair("Adam", 0.05)
    ends = []
    for optimizer in (theirs, ours):
        w = start.copy()
        for i, g in enumerate(gradients):
            gradient = with_gaps(g) if i % 4 == 1 else g.copy()
            w, _ = optimizer(KEY, w, gradient)
        ends.append(w)
    close(theirs, ours, ends)
    assert ours.nr_update == {KEY: 30} and steps["Adam"] + steps_of_thinc["fastopt.thinc"] == 30
    assert steps_of_thinc["fastopt.thinc"] == 8


def test_what_is_refused_is_not_tried_at_every_step(monkeypatch):
    """Only when something has changed."""
    tried = []
    bind = fastopt.thinc.bind
    monkeypatch.setattr(fastopt.thinc, "bind", lambda *args, **kwargs: (tried.append(1), bind(*args, **kwargs))[1])
    optimizer = fastopt.thinc.Adam(0.05, L2=-0.01)
    w = np.ones(3, np.float32)
    for _ in range(10):
        optimizer(KEY, w, np.ones(3, np.float32))
    assert 1 <= len(tried) <= 3


def test_arrays_of_cupy_never_reach_fastopt(monkeypatch, steps, steps_of_thinc):
    """Without a GPU: an object that is no array of NumPy goes to thinc as it is."""

    class Foreign:
        dtype, shape, size = np.dtype(np.float32), (2,), 2

        def __len__(self):
            return 2

    seen = []
    monkeypatch.setattr(thinc.optimizers.Optimizer, "__call__", lambda *args, **kwargs: seen.append((args, kwargs)))
    optimizer, weights, gradient = fastopt.thinc.Adam(0.1), Foreign(), Foreign()
    optimizer(KEY, weights, gradient, lr_scale=2.0)
    assert seen == [((optimizer, KEY, weights, gradient), {"lr_scale": 2.0})] and not optimizer.mom1 and not steps
    weights = np.ones(2, np.float32)
    optimizer(KEY, weights, gradient)
    assert seen[1] == ((optimizer, KEY, weights, gradient), {"lr_scale": 1.0}) and not optimizer.nr_update


# --- Schedules of thinc 9


@pytest.mark.skipif(not SCHEDULES, reason="thinc 8 has generators")
def test_schedules_are_asked_with_step_key_and_score(steps):
    asked = []

    def rate(schedule, step, **extra):
        asked.append((step, extra["key"], extra["last_score"]))
        return 0.01

    optimizer = fastopt.thinc.Adam(thinc.schedules.Schedule("mine", rate))
    run(optimizer, np.ones(3, np.float32), [np.ones(3, np.float32)] * 2)
    optimizer.last_score = 0.5
    run(optimizer, np.ones(3, np.float32), [np.ones(3, np.float32)])
    assert asked == [(0, KEY, None), (1, KEY, None), (2, KEY, (2, 0.5))] and steps["Adam"] == 3


@pytest.mark.skipif(not SCHEDULES, reason="thinc 8 has generators")
def test_a_constant_may_be_changed(steps):
    theirs, ours = pair("Adam", 0.05)
    start, gradients = problem()
    ends = []
    for optimizer in (theirs, ours):
        w = run(optimizer, start.copy(), gradients[:25])
        for name, value in {"learn_rate": 0.01, "b1": 0.5, "L2": 0.01}.items():
            getattr(optimizer, name).attrs["rate"] = value
        ends.append(run(optimizer, w, gradients[25:]))
    close(theirs, ours, ends)
    assert steps["Adam"] == 50


@pytest.mark.skipif(not SCHEDULES, reason="thinc 8 has none")
def test_plateau_looks_at_scores(steps):
    start, gradients = problem()
    ends = []
    for module in (thinc.optimizers, fastopt.thinc):
        rate = thinc.schedules.plateau(2, 0.5, thinc.schedules.constant(0.05))
        optimizer, w = module.Adam(rate), start.copy()
        for i, g in enumerate(gradients):
            w = run(optimizer, w, [g])
            if i % 5 == 4:
                optimizer.last_score = 0.5
        ends.append((optimizer, w))
    close(ends[0][0], ends[1][0], (ends[0][1], ends[1][1]))
    rates = [one.learn_rate(one.step, key=KEY, last_score=one.last_score) for one, _ in ends]
    assert rates[0] == rates[1] < 0.03 and steps["Adam"] == 50


# --- Models


def train(module, n=30, **kwargs):
    model = thinc.api.chain(thinc.api.Relu(8, 4), thinc.api.Softmax(3))
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 4)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[(x[:, 0] > 0).astype(int) + (x[:, 1] > 0)]
    thinc.api.fix_random_seed(0)
    model.initialize(X=x, Y=y)
    optimizer = module.Adam(0.02, L2=0.001, **kwargs)
    for _ in range(n):
        guess, backprop = model.begin_update(x)
        backprop((guess - y) / len(x))
        model.finish_update(optimizer)
        optimizer.step_schedules()
    return model, optimizer, x, y


def test_a_model_learns_the_same(steps, steps_of_thinc):
    (theirs, one, x, y), (ours, other, *_) = train(thinc.optimizers), train(fastopt.thinc)
    a, b = theirs.predict(x), ours.predict(x)
    assert np.abs(a - b).max() < 1e-5 and (b.argmax(1) == y.argmax(1)).mean() > 0.6
    with theirs.use_params(one.averages), ours.use_params(other.averages):
        c, d = theirs.predict(x), ours.predict(x)
    assert np.abs(c - d).max() < 1e-5 and np.abs(c - a).max() > 1e-3
    assert (ours.predict(x) == b).all()
    assert steps["Adam"] == 120 and not steps_of_thinc["fastopt.thinc"]
    assert ours.from_bytes(ours.to_bytes()).predict(x).tolist() == b.tolist()


def test_training_goes_on_inside_use_params(steps, steps_of_thinc):
    """The weights are the averages there: such a step is thinc's."""
    ends = []
    for module in (thinc.optimizers, fastopt.thinc):
        model, optimizer, x, y = train(module, n=10)
        with model.use_params(optimizer.averages):
            guess, backprop = model.begin_update(x)
            backprop((guess - y) / len(x))
            model.finish_update(optimizer)
        ends.append(model.predict(x))
    assert np.abs(ends[0] - ends[1]).max() < 1e-5
    assert steps["Adam"] == 40 and steps_of_thinc["fastopt.thinc"] == 4


def test_a_model_of_pytorch_is_stepped(steps, steps_of_thinc):
    """thinc makes new arrays over the tensors' memory at every step."""
    torch = pytest.importorskip("torch")
    ends = []
    for module in (thinc.optimizers, fastopt.thinc):
        torch.manual_seed(0)
        model = thinc.api.PyTorchWrapper(torch.nn.Linear(4, 2))
        x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        optimizer = module.Adam(0.05)
        for _ in range(50):
            guess, backprop = model.begin_update(x)
            backprop(guess - 1)
            model.finish_update(optimizer)
        assert {key[1]: n for key, n in optimizer.nr_update.items()} == {"weight": 50, "bias": 50}
        ends.append((model.predict(x), [m for _, m in sorted(optimizer.averages.items())]))
    assert np.abs(ends[0][0] - ends[1][0]).max() < 1e-5
    assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(ends[0][1], ends[1][1], strict=True))
    assert steps["Adam"] == 100 and not steps_of_thinc["fastopt.thinc"]


# --- Configurations


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_the_factories_take_what_thincs_take(name):
    own, ours = (inspect.signature(getattr(module, name)) for module in (thinc.optimizers, fastopt.thinc))
    assert own.parameters == ours.parameters


ENTRY = re.search(r'^\[project\.entry-points\.thinc_optimizers\]\n((?:".+\n)+)',
                  (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]  # fmt: skip
CONFIGURED = """
import sys
from thinc.api import Config, registry
for name in ("Adam", "RAdam", "SGD"):
    for rate in ("0.01", "[0.1, 0.01]", "warmup"):
        lines = ["[optimizer]", f'@optimizers = "fastopt.{name}.v1"', "L2 = 0.01"]
        if rate == "warmup":
            lines += ["[optimizer.learn_rate]", '@schedules = "warmup_linear.v1"', "initial_rate = 0.01",
                      "warmup_steps = 3", "total_steps = 9"]
        else:
            lines.append(f"learn_rate = {rate}")
        made = registry.resolve(Config().from_str("\\n".join(lines)))["optimizer"]
        print(type(made).__module__, type(made).__name__, name, made.use_radam)
"""


def test_a_configuration_finds_them_by_name(tmp_path):
    """In a new process, without an import, by the entry points of pyproject.toml."""
    info = tmp_path / "fastopt_points-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastopt-points\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[thinc_optimizers]\n" + ENTRY.replace('"', ""), encoding="utf-8")
    package = str(Path(fastopt.__file__).parents[1])
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {package!r}]\n" + CONFIGURED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    expected = [f"fastopt.thinc Optimizer {name} {name == 'RAdam'}" for name in ("Adam", "RAdam", "SGD")
                for _ in range(3)]  # fmt: skip
    assert done.stdout.splitlines() == expected, done.stderr


def test_the_installed_package_says_so():
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="thinc_optimizers")
              if point.name.startswith("fastopt.")}  # fmt: skip
    if not points:
        pytest.skip("fastopt is not installed here, or an earlier one is")
    assert points == {f"fastopt.{name}.v1": f"fastopt.thinc:{name}" for name in ("Adam", "RAdam", "SGD")}


# --- thinc's own tests

#: Its files that take steps, or make optimizers.
FILES = ["test_optimizers.py", "test_config.py", "model/test_model.py", "layers/test_linear.py",
         "layers/test_sparse_linear.py", "layers/test_lstm.py", "layers/test_mnist.py", "layers/test_basic_tagger.py",
         "layers/test_shim.py"]  # fmt: skip
WITH_TORCH = ["layers/test_pytorch_wrapper.py", "layers/test_torchscriptwrapper.py",
              "shims/test_pytorch_grad_scaler.py"]  # fmt: skip


def run_host(package, files, folder, *arguments):
    """The outcomes of the host's tests by name, and the steps."""
    report = folder / "report.json"
    done = subprocess.run([sys.executable, str(HERE / "thinc_host.py"), str(report), package, *files, "--", *arguments],
                          capture_output=True, text=True, cwd=folder)  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    said = json.loads(report.read_text(encoding="utf-8"))
    return said["outcomes"], said["steps"], done.stdout


def test_thincs_own_optimizer_tests_pass(tmp_path):
    outcomes, steps, said = run_host("thinc", ["test_optimizers.py"], tmp_path)
    assert set(outcomes.values()) == {"passed"}, said
    assert len(outcomes) == (21 if SCHEDULES else 20) and steps == {"fastopt": 2}


def test_thincs_own_trainings_pass(tmp_path):
    files = FILES + (WITH_TORCH if importlib.util.find_spec("torch") else [])
    outcomes, steps, said = run_host("thinc", files, tmp_path)
    assert set(outcomes.values()) <= {"passed", "skipped"}, said
    assert list(outcomes.values()).count("passed") >= 100
    assert steps.keys() == {"fastopt"} and steps["fastopt"] >= 400


# --- The page


def test_the_page_runs(steps, capsys):
    names: dict[str, object] = {}
    for block in python_blocks((ROOT / "docs" / "clients" / "thinc.md").read_text(encoding="utf-8")):
        exec(compile(block, "thinc.md", "exec"), names)
    assert float(capsys.readouterr().out) > 0.9 and steps["Adam"] == 400
