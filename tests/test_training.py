"""`minibatches` and `minimize`: the loops of the lecture notes."""

from __future__ import annotations

import functools
import math
import re
import sys
import typing
import warnings
from collections import namedtuple

import numpy as np
import pytest

import fastopt
from fastopt import errors
from fastopt.training import minibatches, minimize

# --- minibatches


@pytest.mark.parametrize("n", [0, 1, 2, 7, 12, 13])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 12, 100])
def test_every_sample_comes_exactly_once(n, batch_size):
    batches = list(minibatches(n, batch_size, np.random.default_rng(1)))
    assert [len(b) for b in batches] == [min(batch_size, n - i) for i in range(0, n, batch_size)]
    assert sorted(i for b in batches for i in b) == list(range(n))
    assert all(b.dtype == np.intp for b in batches)


@pytest.mark.parametrize(("n", "sizes"), [(10, [4, 4]), (12, [4, 4, 4]), (3, []), (0, [])])
def test_short_batch_is_dropped_on_request_only(n, sizes):
    batches = list(minibatches(n, 4, 0, drop_last=True))
    assert [len(b) for b in batches] == sizes
    assert len({int(i) for b in batches for i in b}) == sum(sizes)


def test_each_epoch_is_shuffled_anew_and_can_be_repeated():
    rng = np.random.default_rng(5)
    first, second = (np.concatenate(list(minibatches(100, 7, rng))) for _ in range(2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(100))
    again = np.concatenate(list(minibatches(100, 7, np.random.default_rng(5))))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(again, np.concatenate(list(minibatches(100, 7, 5))))


def test_every_order_is_equally_likely():
    rng = np.random.default_rng(0)
    orders = [tuple(np.concatenate(list(minibatches(3, 2, rng)))) for _ in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert 150 < min(counts) <= max(counts) < 250  # 200 expected, standard deviation 13


def test_legacy_random_state_and_fresh_entropy_are_accepted():
    assert len(list(minibatches(5, 2, np.random.RandomState(0)))) == 3
    assert len(list(minibatches(np.int64(5), np.int32(2)))) == 3


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 2, 0), "n"),
        ((2.0, 2, 0), "n"),
        ((True, 2, 0), "n"),
        ((5, 0, 0), "batch_size"),
        ((5, None, 0), "batch_size"),
        ((5, "2", 0), "batch_size"),
        ((5, 2, -1), "rng"),
        ((5, 2, "x"), "rng"),
    ],
)
def test_wrong_arguments_are_named_at_the_call(arguments, name):
    with pytest.raises(errors.HyperparameterError, match=f"^{name} must be"):
        minibatches(*arguments)


# --- the order of the samples


def joined(batches):
    return np.concatenate([[], *batches]).astype(int).tolist()


@pytest.mark.parametrize("rng", [5, np.random.RandomState])
def test_each_epoch_has_an_order_of_its_own_or_all_have_one_or_that_of_the_data(rng):
    def epochs(shuffle):
        source = rng(5) if callable(rng) else rng
        batches = list(minibatches(10, 4, source, shuffle=shuffle, epochs=3))
        assert [len(batch) for batch in batches] == [4, 4, 2] * 3 and all(b.dtype == np.intp for b in batches)
        return [joined(batches[k : k + 3]) for k in (0, 3, 6)]

    for shuffle in ("epoch", "once", False):
        assert all(sorted(order) == list(range(10)) for order in epochs(shuffle))
    a, b, c = epochs("epoch")
    assert len({tuple(a), tuple(b), tuple(c)}) == 3
    assert epochs("once") == [a, a, a]  # the order of the first epoch
    assert epochs(False) == [list(range(10))] * 3
    assert epochs(True) == epochs(np.True_) == [a, b, c] and epochs(np.False_) == epochs(False)


def test_several_epochs_are_several_calls_with_one_generator():
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    for options in ({}, {"replacement": True}, {"drop_last": True}):
        together = joined(minibatches(7, 3, a, epochs=2, **options))
        assert together == joined([*minibatches(7, 3, b, **options), *minibatches(7, 3, b, **options)])


def test_a_later_order_is_drawn_when_its_epoch_begins():
    rng = np.random.default_rng(0)
    batches = minibatches(4, 2, rng, epochs=2)
    after_one = rng.bit_generator.state
    first, second = next(batches), next(batches)
    assert rng.bit_generator.state == after_one and sorted([*first, *second]) == [0, 1, 2, 3]
    next(batches)
    assert rng.bit_generator.state != after_one
    state = rng.bit_generator.state
    list(minibatches(4, 2, rng, shuffle=False, epochs=2))
    list(minibatches(4, 2, rng, epochs=0))
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("rng", [np.random.default_rng, np.random.RandomState])
def test_with_replacement_each_sample_of_an_epoch_is_any_of_them(rng):
    n, epochs = 50, 400
    drawn = np.array(joined(minibatches(n, 8, rng(1), replacement=True, epochs=epochs))).reshape(epochs, n)
    assert drawn.min() == 0 and drawn.max() == n - 1
    counts = np.bincount(drawn.ravel())
    assert abs(counts - epochs).max() < 5 * math.sqrt(epochs)
    missed = [1 - len(set(epoch)) / n for epoch in drawn]
    assert np.mean(missed) == pytest.approx((1 - 1 / n) ** n, abs=0.02)  # 36 %
    once = np.array(joined(minibatches(n, 8, rng(1), replacement=True, shuffle="once", epochs=2))).reshape(2, n)
    assert once[0].tolist() == once[1].tolist() == drawn[0].tolist()  # one bootstrap sample


def test_endless_epochs_and_those_without_a_batch():
    batches = minibatches(3, 2, 0, epochs=None)
    assert [len(next(batches)) for _ in range(7)] == [2, 1] * 3 + [2]
    assert list(minibatches(0, 2, 0, epochs=5)) == list(minibatches(0, 2, 0, replacement=True)) == []
    for options in ({"n": 0}, {"n": 3, "batch_size": 4, "drop_last": True}):
        with pytest.raises(errors.HyperparameterError, match="epochs=None never ends"):
            minibatches(**{"batch_size": 2, "epochs": None, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shuffle": "always"}, 'shuffle must be "epoch" (or True), "once" or False, not \'always\''),
        ({"shuffle": 1}, "shuffle must be"),
        ({"shuffle": None}, "shuffle must be"),
        ({"replacement": 1}, "replacement must be True or False, not 1"),
        ({"replacement": True, "shuffle": False}, "replacement=True draws at random: shuffle must be"),
    ],
)
def test_an_order_that_there_is_not_is_an_error_before_the_first_step(options, said):
    with pytest.raises(errors.HyperparameterError, match=f"^{re.escape(said)}"):
        minibatches(5, 2, **options)
    for batch_size in (2, None):
        with pytest.raises(errors.HyperparameterError, match=f"^{re.escape(said)}"):
            minimize(bowl, np.ones(2), sgd(), data=np.arange(5), batch_size=batch_size, **options)


def test_replacement_without_mini_batches_has_no_meaning():
    for data in (None, np.arange(5)):
        with pytest.raises(errors.HyperparameterError, match=r"^replacement=True needs a batch_size"):
            minimize(bowl, np.ones(2), sgd(), data=data, replacement=True)


@pytest.mark.parametrize("options", [{}, {"shuffle": "once"}, {"shuffle": False}, {"replacement": True}], ids=str)
@pytest.mark.parametrize("drop_last", [False, True])
def test_minimize_takes_the_batches_of_minibatches(options, drop_last):
    seen, ends = [], []

    def fun(w, batch):
        seen.append(batch.tolist())
        return bowl(w, batch)

    minimize(fun, np.ones(2), sgd(), data=np.arange(10), batch_size=4, drop_last=drop_last, max_steps=9, rng=7,
             callback=lambda state: ends.append(state.epoch), **options)  # fmt: skip
    per_epoch = 2 if drop_last else 3
    wanted = minibatches(10, 4, 7, epochs=None, drop_last=drop_last, **options)
    assert seen == [next(wanted).tolist() for _ in range(9)]
    assert ends == [step // per_epoch for step in range(1, 10)]


def test_the_loop_of_notes_002():
    """Shuffle once; then mini-batch j = iteration % number of mini-batches, until the gradient is small."""
    x, y = line()
    order = np.random.default_rng(3).permutation(50)
    params, twin = ([np.zeros(1), np.zeros(1)] for _ in range(2))
    for iteration in range(30):
        index = order[8 * (iteration % 7) : 8 * (iteration % 7) + 8]
        for p, g in zip(twin, least_squares(twin, (x[index], y[index]))[1], strict=True):
            p -= 0.1 * g
    minimize(least_squares, params, sgd(0.1), data=(x, y), batch_size=8, shuffle="once", max_steps=30, rng=3)
    np.testing.assert_array_equal(np.concatenate(params), np.concatenate(twin))


# --- minimize


def bowl(w, _):
    """Half the squared distance from zero."""
    return 0.5 * float(w @ w), w.copy()


def least_squares(params, batch):
    """Mean squared error of a line, params [slope, intercept]."""
    slope, intercept = params
    x, y = batch
    error = slope * x + intercept - y
    return np.mean(error**2), [2 * np.mean(error * x, keepdims=True), 2 * np.mean(error, keepdims=True)]


def line(n=50):
    x = np.linspace(-1, 1, n)
    return x, 3 * x - 2


def sgd(lr=0.1, **options):
    return functools.partial(fastopt.SGD, lr=lr, **options)


def test_tol_is_tested_after_the_update_against_the_gradient_of_that_step():
    w = np.array([3.0, 4.0])  # the gradient norms are 5, 2.5, 1.25, 0.625 …
    result = minimize(bowl, w, sgd(0.5), tol=1.25)
    assert (result.reason, result.converged, result.steps) == ("tol", True, 4)
    assert result.grad_norm == 0.625
    np.testing.assert_array_equal(w, [3 / 16, 4 / 16])  # the fourth update was made
    np.testing.assert_array_equal(result.losses, [12.5, 12.5 / 4, 12.5 / 16, 12.5 / 64])


def test_max_steps_stops_and_parameters_are_the_callers_own():
    w = np.array([3.0, 4.0])
    result = minimize(bowl, w, sgd(0.5), max_steps=3)
    assert (result.reason, result.converged, result.steps, result.epochs) == ("max_steps", False, 3, 0)
    assert result.params is w
    assert result.losses.dtype == np.float64
    assert len(result.losses) == 3


def test_no_steps_change_nothing():
    w = np.array([3.0, 4.0])
    result = minimize(bowl, w, sgd(0.5), max_steps=0)
    assert (result.reason, result.steps, len(result.losses)) == ("max_steps", 0, 0)
    assert math.isnan(result.grad_norm)
    np.testing.assert_array_equal(w, [3.0, 4.0])


def test_callback_sees_every_step_and_can_stop():
    seen = []

    def callback(state):
        seen.append((state.step, state.loss, state.grad_norm))
        assert state.params is w
        np.testing.assert_allclose(state.params, state.grads / 2)  # after the update
        return state.step == 3

    w = np.array([3.0, 4.0])
    result = minimize(bowl, w, sgd(0.5), max_steps=None, callback=callback)
    assert (result.reason, result.steps) == ("callback", 3)
    assert seen == [(1, 12.5, 5.0), (2, 12.5 / 4, 2.5), (3, 12.5 / 16, 1.25)]


def test_callback_is_called_at_the_last_step_too_and_tol_is_the_reason():
    seen = []
    result = minimize(bowl, np.ones(2), sgd(0.5), tol=10.0, callback=lambda s: seen.append(s.step) or True)
    assert (result.reason, seen) == ("tol", [1])


def test_callback_may_change_the_hyperparameters():
    def callback(state):
        state.optimizer.param_groups[0]["lr"] = 0.0

    w = np.array([4.0])
    minimize(bowl, w, sgd(0.5), max_steps=5, callback=callback)
    assert w[0] == 2.0


def test_full_batch_is_the_data_itself():
    data, seen = line(), []

    def fun(params, batch):
        seen.append(batch is data)
        return least_squares(params, batch)

    params = [np.zeros(1), np.zeros(1)]
    result = minimize(fun, params, sgd(0.5), data=data, max_steps=500, tol=1e-9)
    assert result.reason == "tol"
    assert all(seen)
    assert result.epochs == result.steps
    np.testing.assert_allclose(np.concatenate(params), [3, -2], atol=1e-8)


@pytest.mark.parametrize(("batch_size", "per_epoch"), [(1, 50), (8, 7), (50, 1), (100, 1)])
def test_mini_batches_see_every_sample_once_an_epoch(batch_size, per_epoch):
    x, y = line()
    epochs, current = [], []

    def fun(params, batch):
        current.extend(batch[0])
        return least_squares(params, batch)

    def callback(state):
        if state.epoch > len(epochs):
            epochs.append(list(current))
            current.clear()

    params = [np.zeros(1), np.zeros(1)]
    result = minimize(
        fun,
        params,
        sgd(0.1),
        data=(x, y),
        batch_size=batch_size,
        max_steps=3 * per_epoch,
        callback=callback,
        rng=1,
    )
    assert result.epochs == len(epochs) == 3
    assert all(sorted(epoch) == sorted(x) for epoch in epochs)
    assert epochs[0] != epochs[1]  # shuffled anew


def test_stochastic_and_mini_batch_descent_find_the_line():
    for batch_size in (1, 8):
        params = [np.zeros(1), np.zeros(1)]
        minimize(least_squares, params, sgd(0.1), data=line(), batch_size=batch_size, rng=0)
        np.testing.assert_allclose(np.concatenate(params), [3, -2], atol=1e-6)


def test_drop_last_leaves_out_the_short_batch():
    sizes = []

    def fun(w, batch):
        sizes.append(len(batch))
        return bowl(w, batch)

    result = minimize(fun, np.ones(1), sgd(), data=np.arange(10), batch_size=4, drop_last=True, max_steps=6)
    assert sizes == [4] * 6
    assert result.epochs == 3


def test_same_seed_gives_the_same_bits():
    def go(seed):
        params = [np.zeros(1), np.zeros(1)]
        result = minimize(least_squares, params, fastopt.Adam, data=line(), batch_size=7, max_steps=40, rng=seed)
        return result.losses.tobytes() + params[0].tobytes()

    assert go(3) == go(3) != go(4)


def test_a_batch_has_the_structure_of_the_data():
    pair = namedtuple("pair", "x y")
    x, y = np.arange(6.0).reshape(6, 1), np.arange(6)
    for data in (x, (x, y), [x, y], {"x": x, "y": y}, pair(x, y)):
        seen = []

        def fun(w, batch, seen=seen):
            seen.append(batch)
            return bowl(w, batch)

        minimize(fun, np.ones(1), sgd(), data=data, batch_size=4, max_steps=2, rng=0)
        assert all(type(batch) is type(data) for batch in seen)
        if isinstance(data, dict):
            seen = [tuple(batch.values()) for batch in seen]
        if data is not x:
            assert all(np.array_equal(bx[:, 0], by) for bx, by in seen)


def test_no_data_gives_none_as_the_batch():
    batches = []
    minimize(lambda w, batch: batches.append(batch) or bowl(w, batch), np.ones(1), sgd(), max_steps=2)
    assert batches == [None, None]


@pytest.mark.parametrize("kind", ["list", "dict", "groups"])
def test_fun_gets_the_container_that_the_caller_gave(kind):
    a, b = np.array([1.0, 2.0]), np.array([3.0], np.float32)
    params = {
        "list": [a, b],
        "dict": {"a": a, "b": b},
        "groups": [{"params": [a]}, {"params": [b], "lr": 0.5}],
    }[kind]

    def fun(got, _):
        assert got is params
        grads = {"a": a.copy(), "b": b.copy()} if kind == "dict" else [a.copy(), b.copy()]
        return 0.0, grads

    result = minimize(fun, params, sgd(0.25), max_steps=1)
    assert result.grad_norm == math.sqrt(14)
    np.testing.assert_array_equal(a, [0.75, 1.5])
    assert b[0] == (1.5 if kind == "groups" else 2.25)


def test_an_optimizer_built_before_goes_on_from_its_state():
    w, again = np.array([3.0, 4.0]), np.array([3.0, 4.0])
    optimizer = fastopt.Adam(w, lr=0.1)
    for _ in range(2):
        result = minimize(bowl, w, optimizer, max_steps=5)
    assert result.optimizer is optimizer
    minimize(bowl, again, functools.partial(fastopt.Adam, lr=0.1), max_steps=10)
    assert w.tobytes() == again.tobytes()


def test_an_optimizer_of_other_arrays_is_refused():
    w = np.ones(3)
    for other in (np.ones(3), [w, np.ones(2)], w[:2]):
        with pytest.raises(errors.HyperparameterError, match="other arrays"):
            minimize(bowl, w, fastopt.SGD(other))


def test_anything_with_a_step_will_do():
    class Plain:
        def __init__(self, w):
            self.w = w

        def step(self, grads):
            self.w -= 0.5 * grads

    w = np.array([4.0])
    minimize(bowl, w, Plain(w), max_steps=1)
    minimize(bowl, w, Plain, max_steps=1)
    assert w[0] == 1.0


def test_nag_evaluates_at_the_lookahead_point():
    lr, momentum = 0.1, 0.9
    points = []

    def fun(at, _):
        points.append(at.copy())
        return bowl(at, None)

    w = np.array([1.0, -2.0])
    result = minimize(fun, w, lambda p: fastopt.NAG(p, lr=lr, momentum=momentum), max_steps=20)

    want, v = np.array([1.0, -2.0]), np.zeros(2)
    for point, loss in zip(points, result.losses, strict=True):
        np.testing.assert_allclose(point, want + momentum * v, rtol=1e-12)
        assert loss == bowl(point, None)[0]
        v = momentum * v - lr * (want + momentum * v)
        want = want + v
    np.testing.assert_allclose(w, want, rtol=1e-12)  # the parameters are w, not the lookahead point


# --- the norm, and no numbers


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1.0, 1e170, 1e300])
def test_norm_neither_overflows_nor_vanishes(scale):
    result = minimize(lambda w, _: (0.0, scale * np.array([3.0, 4.0])), np.ones(2), sgd(0.0), max_steps=1)
    assert result.reason == "max_steps"
    assert result.grad_norm == pytest.approx(5 * scale, rel=1e-14)


def test_norm_is_taken_in_float64_over_all_blocks():
    big = np.full((300, 1000), 1e-3, np.float32)
    grads = [np.full_like(big, 1e25), None, np.zeros((0, 3), np.float32)]
    params = [big, np.ones(2), np.zeros((0, 3), np.float32)]
    result = minimize(lambda p, _: (0.0, grads), params, sgd(0.0), max_steps=1)
    assert result.grad_norm == pytest.approx(float(np.float32(1e25)) * math.sqrt(300_000), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_a_number_stops_before_the_update(bad, where):
    def fun(w, _):
        if len(points) == 2:
            return (bad, w.copy()) if where == "loss" else (1.0, np.array([bad, 1.0]))
        points.append(w.copy())
        return bowl(w, None)

    points = []
    w = np.array([3.0, 4.0])
    seen = []
    result = minimize(fun, w, sgd(0.5), max_steps=10, callback=lambda s: seen.append(s.step))
    assert (result.reason, result.converged, result.steps) == ("nonfinite", False, 2)
    assert len(result.losses) == 3
    assert seen == [1, 2]
    assert math.isfinite(result.grad_norm) == (where == "loss")
    np.testing.assert_array_equal(w, [0.75, 1.0])  # the last good values


def test_the_optimizers_own_policy_for_nonfinite_goes_first():
    def fun(w, _):
        calls.append(1)
        return 1.0, np.full(2, np.nan) if len(calls) == 2 else w.copy()

    calls = []
    w = np.array([4.0, 8.0])
    result = minimize(fun, w, sgd(0.5, nonfinite="skip"), max_steps=3)
    assert (result.reason, result.steps) == ("max_steps", 3)
    assert (result.optimizer.skipped_steps, result.optimizer.steps) == (1, 2)
    np.testing.assert_array_equal(w, [1.0, 2.0])

    calls = []
    with pytest.raises(errors.NonFiniteError):
        minimize(fun, w, sgd(0.5, nonfinite="raise"), max_steps=3)
    np.testing.assert_array_equal(w, [0.5, 1.0])


# --- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": -1}, errors.HyperparameterError, "max_steps must be"),
        ({"max_steps": 1.5}, errors.HyperparameterError, "max_steps must be"),
        ({"max_steps": None}, errors.HyperparameterError, "never stops"),
        ({"tol": -1.0}, errors.HyperparameterError, "tol must be"),
        ({"tol": np.nan}, errors.HyperparameterError, "tol must be"),
        ({"tol": "small"}, errors.HyperparameterError, "tol must be"),
        ({"batch_size": 2}, errors.HyperparameterError, "batch_size needs data"),
        ({"rng": "x"}, errors.HyperparameterError, "rng must be"),
        ({"data": np.ones(4), "batch_size": 0}, errors.HyperparameterError, "batch_size must be"),
        ({"data": np.ones(4), "batch_size": 5, "drop_last": True}, errors.HyperparameterError, "no batch"),
        ({"data": (np.ones(4), np.ones(5))}, errors.ShapeError, r"'data\[0\]': 4, 'data\[1\]': 5"),
        ({"data": {"x": np.ones(4), "y": np.ones(5)}}, errors.ShapeError, "equally many"),
        ({"data": np.ones((0, 3))}, errors.ShapeError, "no samples"),
        ({"data": ()}, errors.ShapeError, "no samples"),
        ({"data": 3.0}, errors.DTypeError, "data must be an array"),
        ({"data": np.float64(3.0)}, errors.DTypeError, "data must be an array"),
        ({"data": [1.0, 2.0]}, errors.DTypeError, r"data\[0\] must be an array"),
    ],
)
def test_wrong_arguments_change_nothing(options, error, message):
    w = np.ones(2)
    with pytest.raises(error, match=message):
        minimize(bowl, w, sgd(), **options)
    np.testing.assert_array_equal(w, 1.0)


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (None, errors.GradientError),
        (1.0, errors.GradientError),
        ((1.0, np.ones(2), 3), errors.GradientError),
        (("one", np.ones(2)), errors.DTypeError),
        ((None, np.ones(2)), errors.DTypeError),
        ((1.0, np.ones(3)), errors.ShapeError),
        ((1.0, np.ones(2, complex)), errors.DTypeError),
    ],
)
def test_what_fun_returns_is_checked_before_the_update(returned, error):
    w = np.ones(2)
    with pytest.raises(error):
        minimize(lambda w, _: returned, w, sgd())
    np.testing.assert_array_equal(w, 1.0)


class Loss:
    """A loss that is no number, as a deleted array of JAX is."""

    ndim = 0

    def __float__(self):
        raise RuntimeError("deleted")


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (np.ones(1), errors.ShapeError, r"one number, not of shape \(1,\): take its sum, .*\.item\(\)"),
        (np.ones((2, 1)), errors.ShapeError, r"one number, not of shape \(2, 1\): take its sum"),
        ("1.5", errors.DTypeError, "one real number, not '1.5': of type str"),
        (b"1.5", errors.DTypeError, "one real number, not b'1.5': of type bytes"),
        (np.array("1.5"), errors.DTypeError, r"one real number, not array\('1.5'.*: of type <U3"),
        (True, errors.DTypeError, "one real number, not True: of type bool"),
        (np.True_, errors.DTypeError, "one real number, not np.True_: of type bool"),
        (np.complex128(1), errors.DTypeError, r"one real number, not np.complex128\(1\+0j\): of type complex128"),
        (np.array(1j), errors.DTypeError, r"one real number, not array\(0.\+1.j\): of type complex128"),
        (np.ma.masked, errors.DTypeError, "one real number, not masked"),
        (Loss(), errors.DTypeError, "one real number, not <.*Loss object.*: deleted"),
        ([1.0], errors.DTypeError, r"one real number, not \[1.0\]: float\(\) argument must be"),
    ],
    ids=range(12),
)
@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_no_real_number_is_named(loss, error, says):
    w = np.ones(2)
    with pytest.raises(error, match=f"^the loss that fun returns must be {says}"):
        minimize(lambda w, _: (loss, np.ones(2)), w, sgd())
    np.testing.assert_array_equal(w, 1.0)


def test_losses_of_pytorch_and_jax():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.tensor(1.5, requires_grad=True)
        assert minimize(lambda w, _: (tensor, w.copy()), np.ones(2), sgd(), max_steps=1).losses.tolist() == [1.5]
    for loss in (torch.tensor(1.5 + 1j), torch.tensor(True), torch.tensor(1.0, device="meta")):
        with pytest.raises(errors.DTypeError, match="must be one real number, not a torch.Tensor: "):
            minimize(lambda w, _, loss=loss: (loss, w), np.ones(2), sgd())
    jnp = pytest.importorskip("jax.numpy")
    gone = jnp.float32(1.5) + 0
    assert minimize(lambda w, _: (gone, w.copy()), np.ones(2), sgd(), max_steps=1).losses.tolist() == [1.5]
    gone.delete()
    with pytest.raises(errors.DTypeError, match="must be one real number, not a jaxlib.ArrayImpl: .*deleted"):
        minimize(lambda w, _: (gone, w), np.ones(2), sgd())


def test_what_fun_returns_instead_of_a_pair_is_counted():
    with pytest.raises(errors.GradientError, match=r"a pair \(loss, grads\), not a tuple of 3$"):
        minimize(lambda w, _: (1.0, w, None), np.ones(2), sgd())


@pytest.mark.parametrize(
    "answer", [np.array([True, False]), np.zeros((2, 1)), Ellipsis, [1.0], "go on", np.array([True]), float("nan")],
    ids=["two", "2-d", "object", "list", "text", "one in an array", "NaN"],
)  # fmt: skip
def test_a_callback_that_answers_neither_true_nor_false_is_named(answer):
    class Undecided:
        def __bool__(self):
            raise RuntimeError("who knows")

    answer = Undecided() if answer is Ellipsis else answer
    shape = rf" of shape {re.escape(str(answer.shape))}" if hasattr(answer, "shape") else ""
    says = f"(?s)^callback must return True to stop, or False or None to go on, not .*a {type(answer).__name__}{shape}$"
    with pytest.raises(errors.DTypeError, match=says):
        minimize(bowl, np.ones(2), sgd(), callback=lambda _: answer)


@pytest.mark.parametrize("answer", [True, 1, np.True_, np.array(True)], ids=str)
def test_a_callback_may_answer_by_anything_that_is_one_truth_value(answer):
    assert minimize(bowl, np.ones(2), sgd(), callback=lambda _: answer).reason == "callback"
    no = np.zeros_like(answer)
    assert minimize(bowl, np.ones(2), sgd(), callback=lambda _: no, max_steps=2).reason == "max_steps"


def test_a_callback_may_change_what_is_done_with_nan():
    def fun(w, _):
        calls.append(1)
        return 1.0, np.full(2, np.nan if len(calls) > 1 else 1.0)

    calls = []
    w = np.ones(2)
    opt = fastopt.SGD(w, lr=0.1)
    result = minimize(fun, w, opt, callback=lambda s: setattr(s.optimizer, "nonfinite", "skip"), max_steps=3)
    assert result.reason == "max_steps" and opt.skipped_steps == 2


@pytest.mark.parametrize("name", ["adam", "Adam", "ADAM", "AdamW", "adamw", "nag", "SGD", "rmsprop"])
def test_an_optimizer_by_name_is_the_class_with_its_defaults(name):
    cls = next(cls for key, cls in fastopt.OPTIMIZERS.items() if key.lower() == name.lower())
    w, again = np.array([3.0, -4.0]), np.array([3.0, -4.0])
    result = minimize(bowl, w, name, max_steps=5)
    assert type(result.optimizer) is cls
    minimize(bowl, again, cls, max_steps=5)
    assert w.tobytes() == again.tobytes() != np.array([3.0, -4.0]).tobytes()


@pytest.mark.parametrize(
    ("name", "near"), [("adamv", "Adam"), ("RMS-prop", "RMSprop"), ("nestrov", None), ("lyon", "Lion"), ("", None)]
)
def test_an_unknown_name_lists_the_known_and_suggests_the_nearest(name, near):
    known = ", ".join(fastopt.OPTIMIZERS)
    hint = f"; did you mean '{near}'?" if near else ""
    with pytest.raises(errors.HyperparameterError) as caught:
        minimize(bowl, np.ones(2), name)
    assert str(caught.value) == f"optimizer={name!r} is not known; known are {known}{hint}"


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(errors.HyperparameterError, match="or be the name of one, not 3"):
        minimize(bowl, np.ones(2), 3)
    for build in (dict, lambda params: None):
        with pytest.raises(errors.HyperparameterError, match="must build an optimizer; a (dict|NoneType) has no step"):
            minimize(bowl, np.ones((1, 2)), build)


def test_parameters_and_gradients_may_come_from_iterators():
    seen = []

    def fun(params, _):
        return 0.0, (p.copy() for p in params)

    arrays = [np.array([3.0, 4.0]), np.array([12.0])]
    result = minimize(fun, iter(arrays), sgd(0.5), max_steps=2, callback=lambda state: seen.append(state.grads))
    assert result.grad_norm == 6.5
    assert [a.tolist() for a in arrays] == [[0.75, 1.0], [3.0]]
    assert [[g.tolist() for g in grads] for grads in seen] == [[[3.0, 4.0], [12.0]], [[1.5, 2.0], [6.0]]]
    w = np.array([3.0, 4.0])
    assert minimize(lambda w, _: (0.0, iter([w.copy()])), w, sgd(0.5), max_steps=1).grad_norm == 5.0
    assert w.tolist() == [1.5, 2.0]


def test_an_error_in_fun_comes_through():
    def fun(w, _):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        minimize(fun, np.ones(2), sgd())


# --- progress


def test_progress_is_silent_where_there_is_no_terminal(capfd):
    pytest.importorskip("tqdm")
    minimize(bowl, np.ones(2), sgd(), max_steps=3, progress=True)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_a_bar_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    minimize(bowl, np.ones(2), sgd(), max_steps=3, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    assert "loss" in err


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    minimize(bowl, np.ones(2), sgd(), max_steps=1)  # not needed unless asked for
    with pytest.raises(errors.MissingExtraError, match=r"fastopt\[demo\]"):
        minimize(bowl, np.ones(2), sgd(), max_steps=1, progress=True)


@pytest.mark.parametrize("fun", [lambda w: (0.0, w), lambda: 0, lambda w, batch, more: 0, abs])
def test_a_function_of_other_arguments_is_refused_by_what_it_has_to_take(fun):
    w = np.ones(3)
    with pytest.raises(fastopt.HyperparameterError, match="two arguments, the parameters and the batch"):
        fastopt.minimize(fun, w, fastopt.SGD(w, lr=0.1))
    assert (w == 1).all()


def test_functions_that_do_not_say_what_they_take_and_those_with_more_defaults_are_called():
    class Silent:
        __signature__ = "none"

        def __call__(self, w, batch):
            return 0.0, w.copy()

    for fun in (Silent(), lambda w, batch=None, scale=1.0: (0.0, scale * w), lambda *args: (0.0, args[0].copy())):
        w = np.ones(3)
        assert fastopt.minimize(fun, w, fastopt.SGD(w, lr=0.5), max_steps=1).steps == 1 and (w == 0.5).all()


def test_the_result_shows_its_last_loss():
    w = np.array([3.0, -2.0])
    result = fastopt.minimize(lambda w, _: (w @ w / 2, w.copy()), w, fastopt.SGD(w, lr=0.5), max_steps=2)
    assert result.loss == result.losses[-1] == 13 / 8
    assert repr(result).startswith("MinimizeResult(loss=1.625, grad_norm=1.80277") and "steps=2" in repr(result)
    empty = fastopt.minimize(lambda w, _: (0, w), w, fastopt.SGD(w, lr=0.5), max_steps=0)
    assert np.isnan(empty.loss) and "loss=nan" in repr(empty)


@pytest.mark.parametrize("shuffle", ["once", False])
def test_whoever_writes_to_a_batch_changes_no_later_one(shuffle):
    batches = minibatches(4, 2, 0, shuffle=shuffle, epochs=3)
    first = [next(batches), next(batches)]
    wanted = [batch.tolist() for batch in first]
    for batch in first:
        batch[:] = 0
    assert [batch.tolist() for batch in batches] == wanted * 2


def test_hints_of_the_functions_can_be_had():
    for function in (fastopt.minimize, fastopt.minibatches):
        assert "shuffle" in typing.get_type_hints(function)
