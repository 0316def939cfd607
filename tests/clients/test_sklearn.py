"""fastopt.sklearn: the estimators beside scikit-learn's own, and scikit-learn's tests with fastopt in its place.

    python test_sklearn.py subclasses|use test_mlp …

runs test files of scikit-learn that way, and prints their outcomes and the number of fastopt's steps.
"""

from __future__ import annotations

import copy
import doctest
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections import Counter

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn import neural_network as stock  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits, make_regression  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.neural_network import _multilayer_perceptron as perceptron  # noqa: E402
from sklearn.neural_network import _stochastic_optimizers as stock_optimizers  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import fastopt.sklearn as ours  # noqa: E402
from fastopt import functional  # noqa: E402
from fastopt.errors import InstallError  # noqa: E402

VERSION = tuple(map(int, sklearn.__version__.split(".")[:2]))
both = pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
floats = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@pytest.fixture(autouse=True)
def no_convergence_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def data(name, dtype=np.float64, n=300):
    if name == "MLPClassifier":
        X, y = load_digits(n_class=4, return_X_y=True)
        X = X / 16
    else:
        X, y = make_regression(n, 8, noise=1.0, random_state=0)
        y = (y / 100).astype(dtype)
    return X[:n].astype(dtype), y[:n]


def fitted(name, dtype=np.float64, **options):
    """An estimator of scikit-learn and one of fastopt, fitted alike."""
    X, y = data(name, dtype)
    options = {"hidden_layer_sizes": (12, 7), "batch_size": 50, "max_iter": 20, "random_state": 0, **options}
    return [getattr(module, name)(**options).fit(X, y) for module in (stock, ours)]


def arrays(model):
    return [*model.coefs_, *model.intercepts_]


def same(a, b, rtol=0.0):
    """Compare all that fit sets, and the optimizer."""
    assert vars(a).keys() == vars(b).keys()
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.dtype == y.dtype and x.flags.c_contiguous == y.flags.c_contiguous
        np.testing.assert_allclose(y, x, rtol=rtol, atol=rtol / 10)
    assert a.n_iter_ == b.n_iter_ and a.t_ == b.t_ and a._no_improvement_count == b._no_improvement_count
    for key in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_", "loss_"):
        want = getattr(a, key)
        if want is None:
            assert getattr(b, key) is None
        else:
            np.testing.assert_allclose(getattr(b, key), want, rtol=rtol, err_msg=key)
    same_optimizers(a._optimizer, b._optimizer, rtol)


def same_optimizers(a, b, rtol=0.0):
    assert isinstance(b, type(a)) and list(vars(a)) == list(vars(b))
    for key, want in vars(a).items():
        got = vars(b)[key]
        assert type(got) is type(want)
        if isinstance(want, list):
            for x, y in zip(want, got, strict=True):
                assert type(x) is type(y) and x.dtype == y.dtype
                if x.dtype == object:
                    assert x.tolist() == y.tolist()
                    continue
                np.testing.assert_allclose(y, x, rtol=rtol, atol=rtol * max(np.abs(x).max(initial=0), 1e-300))
        else:
            assert got == want, key


# --- Every option of the solvers


@both
@floats
@pytest.mark.parametrize("learning_rate", ["constant", "invscaling", "adaptive"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, True), (0, False), (1.0, True)])
def test_sgd_has_the_bits_of_scikit_learn(name, dtype, learning_rate, momentum, nesterov, steps):
    a, b = fitted(
        name, dtype, solver="sgd", learning_rate=learning_rate, momentum=momentum, nesterovs_momentum=nesterov,
        learning_rate_init=0.01 if momentum < 1 else 1e-4, power_t=0.3, tol=1e-2, n_iter_no_change=2, max_iter=40,
    )  # fmt: skip
    same(a, b)
    assert steps == {"SGD" if momentum else "Momentum": 6 * b.n_iter_}
    if learning_rate == "adaptive" and name == "MLPRegressor" and momentum == 0.9:
        assert b._optimizer.learning_rate < 0.01


@both
@pytest.mark.parametrize("options", [
    {}, {"beta_1": 0, "beta_2": 0.5}, {"epsilon": 1e-3}, {"learning_rate_init": np.float64(0.01)}, {"alpha": 0.1},
    {"beta_1": np.float64(0.8)}, {"activation": "tanh"}, {"shuffle": False}, {"batch_size": 300}, {"batch_size": 7},
    {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 60}, {"learning_rate_init": 1},
])  # fmt: skip
def test_adam_is_within_rounding_of_scikit_learn(name, options, steps):
    a, b = fitted(name, **options)
    same(a, b, rtol=1e-12)
    n = 270 if "early_stopping" in options else 300
    assert steps == {"Adam": b.n_iter_ * -(-n // options.get("batch_size", 50))}


@both
def test_adam_in_float32_is_within_rounding_of_scikit_learn(name, steps):
    """scikit-learn forms the update in float64. tanh has no kink, where a last bit would decide."""
    a, b = fitted(name, np.float32, activation="tanh")
    same(a, b, rtol=2e-4)
    assert abs(b.loss_ / a.loss_ - 1) < 1e-6
    assert steps == {"Adam": 120}


@floats
@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "SGDOptimizer"])
def test_two_hundred_steps_over_any_numbers(optimizer, dtype, steps):
    rng = np.random.default_rng(0)
    p = [rng.standard_normal(shape).astype(dtype) for shape in [(30, 20), (20,), (1,), (0, 3)]]
    q = [a.copy() for a in p]
    a, b = getattr(stock_optimizers, optimizer)(p, 0.01), getattr(ours, optimizer)(q, 0.01)
    for _ in range(200):
        g = [(rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-9, 1)).astype(dtype) for x in p]
        a.update_params(p, g)
        b.update_params(q, g)
    rtol = 0 if optimizer == "SGDOptimizer" else 1e-13 if dtype == np.float64 else 2e-5
    for x, y in zip(p, q, strict=True):
        np.testing.assert_allclose(y, x, rtol=rtol, atol=rtol / 10)
    same_optimizers(a, b, rtol)
    assert steps.total() == 200


@both
def test_lbfgs_is_scipys(name, steps):
    a, b = fitted(name, solver="lbfgs")
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not hasattr(b, "_optimizer") and steps.total() == 0


def test_the_digits_are_learned_with_the_same_losses(steps):
    X, y = load_digits(return_X_y=True)
    a, b = (module.MLPClassifier(max_iter=60, random_state=0).fit(X[:1400] / 16, y[:1400]) for module in (stock, ours))
    same(a, b, rtol=1e-12)
    assert b.loss_curve_[-1] < 0.1 < b.loss_curve_[20] and steps == {"Adam": 60 * 7}
    assert b.score(X[1400:] / 16, y[1400:]) == a.score(X[1400:] / 16, y[1400:]) > 0.85


# --- What is done with estimators


@both
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_over_pickles_copies_and_replaced_arrays(name, solver, steps):
    X, y = data(name)
    models = [getattr(module, name)((9,), solver=solver, random_state=0) if name == "MLPClassifier"
              else getattr(module, name)(hidden_layer_sizes=(9,), solver=solver, random_state=0)
              for module in (stock, ours)]  # fmt: skip
    more = {"classes": np.unique(y)} if name == "MLPClassifier" else {}
    for again in (
        lambda m: m,
        lambda m: pickle.loads(pickle.dumps(m)),
        copy.deepcopy,
        lambda m: m,
        lambda m: setattr(m, "coefs_", [np.asfortranarray(c) for c in m.coefs_]) or m,
        lambda m: setattr(m, "intercepts_", [c.copy() for c in m.intercepts_]) or m,
        lambda m: m.coefs_[0].__imul__(0.5) is None or m,
        lambda m: m,
    ):
        models = [again(m).partial_fit(X, y, **more) for m in models]
        same(*models, rtol=1e-12 if solver == "adam" else 0)
        assert type(models[1]._optimizer) is (ours.AdamOptimizer if solver == "adam" else ours.SGDOptimizer)
    assert steps.total() == 16


@both
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_warm_start_goes_on(name, solver, steps):
    X, y = data(name)
    models = fitted(name, solver=solver, warm_start=True)
    for model in models:
        model.fit(X, y)
    same(*models, rtol=1e-12 if solver == "adam" else 0)
    assert len(models[1].loss_curve_) == 40 and steps.total() == 240


@pytest.mark.skipif(VERSION < (1, 7), reason="sample_weight came with scikit-learn 1.7")
def test_sample_weight_and_sparse_data(steps):
    from scipy.sparse import csr_matrix

    X, y = data("MLPClassifier")
    weight = np.arange(len(y)) % 3 + 0.5
    a, b = (module.MLPClassifier(12, max_iter=5, random_state=0).fit(csr_matrix(X), y, sample_weight=weight)
            for module in (stock, ours))  # fmt: skip
    same(a, b, rtol=1e-12)
    assert steps == {"Adam": 10}


def test_grid_search_pipeline_and_clone(steps):
    X, y = data("MLPClassifier")
    grid = {"mlpclassifier__solver": ["adam", "sgd"], "mlpclassifier__alpha": np.logspace(-4, -2, 2)}
    found = []
    for module in (stock, ours):
        model = make_pipeline(StandardScaler(), module.MLPClassifier(8, max_iter=5, random_state=0))
        search = GridSearchCV(clone(model), grid, cv=2, n_jobs=2).fit(X, y)
        found.append(search.cv_results_["mean_test_score"])
        assert type(search.best_estimator_[-1]) is module.MLPClassifier
    np.testing.assert_array_equal(*found)
    assert steps.total() == 10  # here the best one was fitted again; the rest are in the workers


@both
def test_an_estimator_tells_of_itself_what_scikit_learns_tells(name):
    a, b = getattr(stock, name)(), getattr(ours, name)()
    assert a.get_params() == b.get_params() and repr(a) == repr(b)
    assert not hasattr(b, "_optimizer")
    with pytest.raises(AttributeError, match="no attribute '_optimizer'"):
        b._optimizer  # noqa: B018
    a, b = fitted(name, max_iter=1)
    del b._optimizer
    assert not hasattr(b, "_optimizer") and "_optimizer" not in vars(b)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_float64_targets_beside_float32_data_are_scikit_learns(solver, steps):
    """Its gradients are float64 then, and so is its state."""
    X, y = data("MLPRegressor")
    a, b = (module.MLPRegressor(hidden_layer_sizes=12, solver=solver, max_iter=5, random_state=0)
            .fit(X.astype(np.float32), y) for module in (stock, ours))  # fmt: skip
    same(a, b)
    assert steps.total() == 0


def test_the_examples_of_the_module(steps):
    assert doctest.testmod(ours).failed == 0 and steps.total() > 500


# --- The optimizers by themselves


def pair(optimizer, params, *args, **options):
    twin = [p.copy(order="K") for p in params]
    a = getattr(stock_optimizers, optimizer)(params, *args, **options)
    return (a, params), (getattr(ours, optimizer)(twin, *args, **options), twin)


@pytest.mark.parametrize(("optimizer", "names"), [("AdamOptimizer", ("ms", "vs")), ("SGDOptimizer", ("velocities",))])
def test_state_that_was_read_or_set_is_not_written_to(optimizer, names, steps):
    p = [np.ones((3, 2)), np.ones(2)]
    g = [np.full((3, 2), 0.5), np.full(2, 0.5)]
    opt = getattr(ours, optimizer)(p)
    opt.update_params(p, g)
    for name in names:
        seen = getattr(opt, name)
        before = copy.deepcopy(seen)
        assert getattr(opt, name) is seen
        opt.update_params(p, g)
        assert getattr(opt, name) is not seen
        mine = [np.full_like(a, 0.25) for a in p]
        setattr(opt, name, mine)
        assert getattr(opt, name) is mine
        opt.update_params(p, g)
        opt.update_params(p, g)
        for a, b in zip(seen, before, strict=True):
            np.testing.assert_array_equal(a, b)
        assert all((a == 0.25).all() for a in mine)
    for copied in (copy.copy, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))):
        other, before = copied(opt), copy.deepcopy(opt)
        opt.update_params(p, g)
        twin = ours._made(type(opt), vars(other))
        same_optimizers(before, twin)
        before = copy.deepcopy(opt)
        other.update_params([a.copy() for a in p], g)
        same_optimizers(before, opt)
    assert steps.total() == 1 + 3 * len(names) + 5  # what was unpickled is scikit-learn's


@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "SGDOptimizer"])
def test_a_pickle_is_scikit_learns(optimizer):
    p = [np.ones((3, 2)), np.ones(2)]
    opt = getattr(ours, optimizer)(p)
    opt.update_params(p, p)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        saved = pickle.dumps(opt, protocol)
        assert b"fastopt" not in saved
        loaded = pickle.loads(saved)
        assert type(loaded) is getattr(stock_optimizers, optimizer)
        assert list(vars(loaded)) == list(vars(opt))
    copied = copy.deepcopy(opt)
    assert type(copied) is type(copy.copy(opt)) is type(opt)
    same_optimizers(loaded, copied)


FALLS_BACK = {
    "float16": lambda p, o: ([a.astype(np.float16) for a in p], o),
    "longdouble": lambda p, o: ([a.astype(np.longdouble) for a in p], o),
    "object": lambda p, o: ([a.astype(object) for a in p], o),
    "no dimension": lambda p, o: ([np.array(1.0)], o),
    "another byte order": lambda p, o: ([a.astype(">f8") for a in p], o),
    "strided": lambda p, o: ([np.repeat(a, 2, axis=-1)[..., ::2] for a in p], o),
    "lr 1e400": lambda p, o: (p, {**o, "learning_rate_init": float("inf")}),
    "lr negative": lambda p, o: (p, {**o, "learning_rate_init": -0.1}),
}


@pytest.mark.parametrize("case", FALLS_BACK)
@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "SGDOptimizer"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_scikit_learn_steps_what_fastopt_does_not(optimizer, case, steps):
    if (case, optimizer) == ("object", "AdamOptimizer"):
        pytest.skip("np.sqrt has no objects")
    params, options = FALLS_BACK[case]([np.ones((3, 2)), np.ones(2)], {"learning_rate_init": 0.1})
    params = [p if p.flags.forc else p.copy()[..., :] for p in params]
    (a, p), (b, q) = pair(optimizer, params, **options)
    if case == "strided":
        q = [np.repeat(x, 2, axis=-1)[..., ::2] for x in q]
    for _ in range(3):
        g = [np.full(x.shape, 0.5, x.dtype) for x in p]
        a.update_params(p, g)
        b.update_params(q, g)
    for x, y in zip(p, q, strict=True):
        np.testing.assert_array_equal(x, y)
    same_optimizers(a, b)
    assert steps.total() == 0


@pytest.mark.parametrize(("optimizer", "options"), [
    ("AdamOptimizer", {"beta_1": np.float64(0.9)}), ("AdamOptimizer", {"beta_2": np.float64(0.9)}),
    ("AdamOptimizer", {"epsilon": np.float64(0.1)}), ("AdamOptimizer", {"epsilon": 1e-40}),
    ("AdamOptimizer", {"epsilon": 0}), ("AdamOptimizer", {"beta_1": 1.0}),
    ("SGDOptimizer", {"momentum": np.float64(0.9)}), ("SGDOptimizer", {"momentum": 1.5}),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_scikit_learn_steps_numbers_that_fastopt_would_take_otherwise(optimizer, options, steps):
    """NumPy's float64 beside float32 arrays makes the state float64, from NumPy 2 on."""
    (a, p), (b, q) = pair(optimizer, [np.ones((3, 2), np.float32)], 0.1, **options)
    for k in range(3):
        try:
            a.update_params(p, [np.full((3, 2), 0.5 * k, np.float32)])
        except ZeroDivisionError:
            with pytest.raises(ZeroDivisionError):
                b.update_params(q, [np.full((3, 2), 0.5 * k, np.float32)])
        else:
            b.update_params(q, [np.full((3, 2), 0.5 * k, np.float32)])
    np.testing.assert_array_equal(p[0], q[0])
    same_optimizers(a, b)
    assert steps.total() == 0


@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "SGDOptimizer"])
def test_gradients_of_another_type_or_order(optimizer, steps):
    rng = np.random.default_rng(0)
    start = [np.asfortranarray(rng.standard_normal((5, 4)).astype(np.float32)), np.ones(4, np.float32)]
    (a, p), (b, q) = pair(optimizer, start, 0.1)
    for dtype in (np.float32, np.float32, np.float64, np.float32):
        g = [rng.standard_normal(x.shape).astype(dtype) for x in p]
        a.update_params(p, g)
        b.update_params(q, g)
        taken = steps.total()
    for x, y in zip(p, q, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-6)
        assert x.flags.f_contiguous == y.flags.f_contiguous
    same_optimizers(a, b, 1e-6)  # with the state in float64, from the third step on
    assert taken == 2


@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "SGDOptimizer"])
@pytest.mark.parametrize("wrong", ["none", "shape", "few", "read-only", "twice", "shared"])
def test_odd_calls_end_as_in_scikit_learn(optimizer, wrong, steps):
    (a, p), (b, q) = pair(optimizer, [np.ones((3, 2)), np.ones((3, 2))], 0.1)
    for opt, params in ((a, p), (b, q)):
        g = [np.full((3, 2), 0.5), np.full((3, 2), 0.25)]
        opt.update_params(params, g)
        if wrong == "none":
            g[1] = None
        elif wrong == "shape":
            g[1] = np.full(2, 0.5)
        elif wrong == "few":
            g.pop()
        elif wrong == "read-only":
            params[1].flags.writeable = False
        elif wrong == "twice":
            params = [params[0], params[0]]
        elif wrong == "shared":
            g[0] = params[1]
        try:
            opt.update_params(params, g)
        except (TypeError, ValueError) as error:
            said = type(error), str(error)
        else:
            said = None
        if opt is a:
            expected = said
    assert said == expected and (said is None) == (wrong not in ("none", "read-only"))
    for x, y in zip(p, q, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-14)
    same_optimizers(a, b, 1e-14)


def test_attributes_can_be_set_between_steps(steps):
    rng = np.random.default_rng(0)
    (a, p), (b, q) = pair("AdamOptimizer", [rng.standard_normal((5, 4))])
    (c, r), (d, s) = pair("SGDOptimizer", [rng.standard_normal((5, 4))])
    for adam, sgd in [
        ({}, {}), ({"learning_rate_init": 0.1}, {"learning_rate": 0.01}), ({"beta_1": 0.5}, {"momentum": 0.5}),
        ({"t": 100}, {"nesterov": False}), ({"t": np.int64(7)}, {"momentum": 0}), ({"epsilon": 1.0}, {"momentum": 1}),
    ]:  # fmt: skip
        for opt, values in ((a, adam), (b, adam), (c, sgd), (d, sgd)):
            for key, value in values.items():
                setattr(opt, key, value)
        g = [rng.standard_normal((5, 4))]
        for opt, params in ((a, p), (b, q), (c, r), (d, s)):
            opt.update_params(params, g)
    np.testing.assert_allclose(p[0], q[0], rtol=1e-14)
    np.testing.assert_array_equal(r[0], s[0])
    same_optimizers(a, b, 1e-14)
    same_optimizers(c, d)
    assert steps == {"Adam": 4, "SGD": 5, "Momentum": 1}  # two with a count of NumPy's are scikit-learn's


NUMPYS = [np.float32(0.1), np.float64(0.1)]


@floats
@pytest.mark.parametrize(("optimizer", "name", "value"), [
    *(("AdamOptimizer", key, x) for key in ("learning_rate_init", "beta_1", "beta_2", "epsilon") for x in NUMPYS),
    *(("SGDOptimizer", key, x) for key in ("learning_rate", "momentum")
      for x in (*NUMPYS, np.array([0.1, 0.2, 0.3, 0.4]))),
])  # fmt: skip
def test_a_number_of_another_type_is_another_number(optimizer, name, value, dtype):
    """np.float32(0.1) == 0.1 holds from NumPy 2 on, but a float64 array times it is not the array times 0.1."""
    rng = np.random.default_rng(0)
    (a, p), (b, q) = pair(optimizer, [rng.standard_normal((5, 4)).astype(dtype)])
    for number in (0.1, 0.1, value, value):
        g = [rng.standard_normal((5, 4)).astype(dtype)]
        for opt, params in ((a, p), (b, q)):
            setattr(opt, name, number)
            opt.update_params(params, g)
    rtol = 0 if optimizer == "SGDOptimizer" else 1e-13 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(q[0], p[0], rtol=rtol, atol=rtol)
    for state in a.__dict__.keys() & {"ms", "vs", "velocities"}:
        np.testing.assert_allclose(getattr(b, state)[0], getattr(a, state)[0], rtol=rtol, atol=rtol)
        assert getattr(b, state)[0].dtype == getattr(a, state)[0].dtype


class Halved(np.ndarray):
    """An array with arithmetic of its own."""

    def __iadd__(self, other):
        return super().__iadd__(0.5 * other)


@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "SGDOptimizer"])
@pytest.mark.parametrize("cls", [Halved, np.matrix, np.ma.MaskedArray])
def test_arrays_of_other_classes_are_scikit_learns(optimizer, cls, steps):
    start = np.arange(6.0).reshape(3, 2).view(cls)
    if cls is np.ma.MaskedArray:
        start[0, 1] = np.ma.masked
    (a, p), (b, q) = pair(optimizer, [start], 0.1)
    for k in range(3):
        a.update_params(p, [np.full((3, 2), k - 0.5)])
        b.update_params(q, [np.full((3, 2), k - 0.5)])
    assert type(q[0]) is cls and steps.total() == 0
    np.testing.assert_array_equal(np.asarray(p[0]), np.asarray(q[0]))
    for state in a.__dict__.keys() & {"ms", "vs", "velocities"}:
        assert type(getattr(b, state)[0]) is type(getattr(a, state)[0])


class ClippedAdam(ours.AdamOptimizer):
    def _get_updates(self, grads):
        return super()._get_updates([np.clip(g, -0.1, 0.1) for g in grads])


class CountingSGD(ours.SGDOptimizer):
    taken = 0

    def update_params(self, params, grads):
        self.taken += 1
        super().update_params(params, grads)


def test_derived_optimizers_keep_what_they_override(steps, monkeypatch):
    g = [np.full((3, 2), 0.5)]
    opt, p = ClippedAdam([np.ones((3, 2))]), [np.ones((3, 2))]
    opt.update_params(p, g)
    np.testing.assert_allclose(opt.ms[0], 0.01)
    assert steps.total() == 0
    sgd = CountingSGD(p)
    for again in (lambda o: o, copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        opt, sgd = again(opt), again(sgd)
        opt.update_params(p, g)
        sgd.update_params(p, g)
        assert type(opt) is ClippedAdam and type(sgd) is CountingSGD
    assert opt.t == 5 and sgd.taken == 4 and steps == {"SGD": 4}
    made = ours.SGDOptimizer.__new__(ours.SGDOptimizer)  # as libraries for saved models do
    made.__dict__.update(vars(ours.SGDOptimizer(p)))
    made.update_params(p, g)
    assert steps == {"SGD": 5}
    monkeypatch.setattr(stock_optimizers.SGDOptimizer, "_get_updates", lambda self, grads: grads)
    before = p[0].copy()
    ours.SGDOptimizer(p).update_params(p, g)
    np.testing.assert_array_equal(p[0], before + 0.5)
    assert steps == {"SGD": 5}


def test_an_interrupt_at_a_step_leaves_the_count_of_the_state(monkeypatch):
    p = [np.ones((3, 2))]
    opt = ours.AdamOptimizer(p)
    step = functional.Bound.step

    def interrupted(self, *args, **kwargs):
        step(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(functional.Bound, "step", interrupted)
        opt.update_params(p, [np.ones((3, 2))])
    assert opt.t == 1 and opt.ms[0].all()


# --- use()


def optimizers():
    return perceptron.AdamOptimizer, perceptron.SGDOptimizer


STOCK = stock_optimizers.AdamOptimizer, stock_optimizers.SGDOptimizer
OURS = ours.AdamOptimizer, ours.SGDOptimizer


@both
def test_use_is_for_estimators_that_were_made_before(name, steps):
    X, y = data(name)
    model = getattr(stock, name)(hidden_layer_sizes=12, max_iter=5, random_state=0)
    plain = pickle.loads(pickle.dumps(clone(model).fit(X, y)))
    assert steps.total() == 0
    with ours.use():
        model.fit(X, y)
        assert type(model._optimizer) is ours.AdamOptimizer
    assert steps == {"Adam": 10} and optimizers() == STOCK
    same(plain, model, rtol=1e-12)
    saved = pickle.dumps(model)
    assert b"fastopt" not in saved
    loaded = pickle.loads(saved)
    assert type(loaded._optimizer) is stock_optimizers.AdamOptimizer
    for again in (plain, model, loaded):
        again.partial_fit(X, y)
    same(plain, model, rtol=1e-12)
    same(plain, loaded, rtol=1e-12)
    assert steps == {"Adam": 12}


def test_use_nests_and_is_undone_in_any_order():
    first = ours.use()
    with ours.use() as second:
        assert optimizers() == OURS
        first.undo()
        first.undo()
        assert optimizers() == OURS
    assert optimizers() == STOCK
    with pytest.raises(InstallError, match="undone"), second:
        pass
    with pytest.raises(ZeroDivisionError), ours.use():
        1 / 0  # noqa: B018
    assert optimizers() == STOCK


def test_use_in_many_threads():
    stop, wrong = threading.Event(), []

    def run():
        while not stop.is_set():
            with ours.use():
                if optimizers() != OURS:
                    wrong.append(optimizers())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and optimizers() == STOCK


def test_use_leaves_what_another_library_has_replaced(monkeypatch):
    class Another(stock_optimizers.SGDOptimizer):
        pass

    with monkeypatch.context() as patch:
        patch.setattr(perceptron, "SGDOptimizer", Another)
        with pytest.raises(InstallError, match="SGDOptimizer.*Another"):
            ours.use()
        assert optimizers() == (STOCK[0], Another)
    with ours.use():
        perceptron.SGDOptimizer = Another
        with pytest.raises(InstallError, match="SGDOptimizer.*Another"):
            ours.use()
    assert optimizers() == (STOCK[0], Another)
    perceptron.SGDOptimizer = STOCK[1]


@pytest.mark.parametrize(("lose", "says"), [
    ("import sys; sys.modules['sklearn'] = None", 'fastopt.sklearn needs scikit-learn: pip install "fastopt[sklearn]"'),
    ("import sklearn.neural_network as n; del n._multilayer_perceptron.AdamOptimizer",
     "no neural_network._multilayer_perceptron.AdamOptimizer"),
    ("import sklearn.neural_network as n; del n._stochastic_optimizers.SGDOptimizer",
     "no neural_network._stochastic_optimizers.SGDOptimizer"),
    ("import sklearn.neural_network as n; "
     "n._stochastic_optimizers.BaseOptimizer.update_params = lambda self, grads: None",
     "no AdamOptimizer.update_params(params, grads)"),
    ("import sklearn.neural_network as n; del n._stochastic_optimizers.AdamOptimizer._get_updates",
     "no AdamOptimizer._get_updates"),
    ("import sklearn.neural_network as n; "
     "n._multilayer_perceptron.BaseMultilayerPerceptron._fit_stochastic = lambda self: None",
     "no BaseMultilayerPerceptron._fit_stochastic that steps self._optimizer"),
])  # fmt: skip
def test_a_scikit_learn_without_the_hook_is_an_import_error(lose, says):
    done = subprocess.run([sys.executable, "-c", f"{lose}\nimport fastopt.sklearn"], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError" in last and says in last


# --- scikit-learn's own tests


@both
@pytest.mark.filterwarnings("ignore:Skipping check")
def test_check_estimator(name, steps, tally):
    model = getattr(ours, name)(max_iter=100)
    if VERSION < (1, 6):
        check_estimator(model)  # raises what fails, and returns nothing
    else:
        outcomes = Counter(check["status"] for check in check_estimator(model, on_fail=None))
        assert outcomes.keys() <= {"passed", "skipped"} and outcomes["passed"] > 50
        tally("checks of scikit-learn passed by the estimators of fastopt.sklearn", outcomes["passed"])
    assert steps.total() > 1000


#: scikit-learn's tests that fail with fastopt, and why.
EXPLAINED = {
    "test_stochastic_optimizers.py::test_adam_optimizer": (
        "compares every bit with (1 - beta_2) * (g * g); fastopt's Adam computes (1 - beta_2) * g * g"
    ),
}


def hosts_tests(how, *files):
    """The outcome of each test of these files, with fastopt's classes in the place of scikit-learn's; and the steps."""
    folder = os.path.join(os.path.dirname(stock.__file__), "tests")
    if not os.path.isdir(folder):
        pytest.skip("this scikit-learn comes without its tests")
    paths = [os.path.join(folder, f"{file}.py") for file in files]
    done = subprocess.run([sys.executable, __file__, how, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["outcomes"], found["steps"]


def test_scikit_learns_own_tests_of_estimators_and_optimizers(tally):
    outcomes, steps = hosts_tests("subclasses", "test_mlp", "test_stochastic_optimizers")
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    assert failed == EXPLAINED.keys(), failed
    skipped = {name.partition("[")[0] for name, outcome in outcomes.items() if outcome == "skipped"}
    assert skipped <= {"test_mlp.py::test_preserve_feature_names"}  # without pandas
    assert len(outcomes) > 50 and steps > 5000
    tally("tests of scikit-learn passed with fastopt.sklearn", [*outcomes.values()].count("passed"))


def test_scikit_learns_own_tests_under_use(amount):
    if not amount(False, True):
        pytest.skip("the same tests once more: with --long")
    outcomes, steps = hosts_tests("use", "test_mlp")
    assert "failed" not in outcomes.values() and len(outcomes) > 50 and steps > 5000


def main(how: str, paths: list[str]) -> None:
    """Run tests of scikit-learn with fastopt's classes in the place of its own."""
    if how == "use":
        ours.use()
    else:  # before the tests import them
        stock.MLPClassifier, stock.MLPRegressor = ours.MLPClassifier, ours.MLPRegressor
    taken: Counter[str] = Counter()
    step = functional.Bound.step

    def counted(self, *args, **kwargs):
        taken["steps"] += 1
        return step(self, *args, **kwargs)

    functional.Bound.step = counted  # type: ignore[method-assign]
    outcomes = {}

    class Plugin:
        def pytest_collection_modifyitems(self, items):
            for module in {item.module for item in items if hasattr(item.module, "AdamOptimizer")}:
                module.AdamOptimizer, module.SGDOptimizer = OURS

        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.nodeid.rpartition("/")[2]] = report.outcome

    home = os.path.dirname(sklearn.__file__)  # with its conftest.py, and without any configuration from above
    settings = ["-c", os.devnull, "--rootdir", home, "--confcutdir", home, "-q", "-p", "no:cacheprovider"]
    pytest.main([*settings, *paths], plugins=[Plugin()])
    print(json.dumps({"outcomes": outcomes, "steps": taken["steps"]}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
