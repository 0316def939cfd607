"""fastopt.scipy: every optimizer as a method of `scipy.optimize.minimize`."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from support import python_blocks

import fastopt

optimize = pytest.importorskip("scipy.optimize")
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning, minimize, rosen, rosen_der  # noqa: E402

import fastopt.scipy  # noqa: E402
from fastopt.scipy import Method  # noqa: E402

NAMES = list(fastopt.OPTIMIZERS)
every_optimizer = pytest.mark.parametrize("name", NAMES)


# Rates at which a method finds the minimum of Rosenbrock's function from (-1, 1.5) within 20,000 steps.
def falling(first, factor):
    return lambda t: first * factor**t


OPTIONS = {
    "SGD": {"lr": 1e-3, "momentum": 0.9}, "Momentum": {"lr": 1e-3}, "NAG": {"lr": 1e-3},
    "ASGD": {"lr": 2e-3, "lambd": 0.0}, "Adagrad": {"lr": 0.5}, "Adadelta": {"lr": falling(20.0, 0.999)},
    "RMSprop": {"lr": falling(0.02, 0.999)}, "Adam": {"lr": 0.02}, "AdamW": {"lr": 0.02, "weight_decay": 0.0},
    "Adamax": {"lr": 0.05}, "NAdam": {"lr": 0.005}, "RAdam": {"lr": 0.02, "clip_norm": 1.0},
    "AdaBelief": {"lr": 0.02}, "Rprop": {"lr": 0.01, "step_sizes": (1e-10, 0.01)},
    "Lion": {"lr": falling(0.02, 0.9985)},
}  # fmt: skip


def method(name: str, **options) -> Method:
    return getattr(fastopt.scipy, name)(**{**OPTIONS[name], **options})


def bowl(x, scale=1.0):
    """A bowl that is not round, with its minimum at (1, 2, 3 ...), and its gradient."""
    away = x - np.arange(1, x.size + 1)
    steep = scale * np.linspace(1, 3, x.size)
    return float((steep * away**2).sum()), (2 * steep * away).astype(x.dtype)


def halves(fun=bowl):
    return lambda x, *args: fun(x, *args)[0], lambda x, *args: fun(x, *args)[1]


# --- The steps are those of the class


@every_optimizer
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_have_the_bits_of_a_loop_over_the_class(name, dtype, steps):
    x0 = np.array([4.0, -1.0, 0.5, 7.0], dtype)
    more = {"clip_norm": 3.0, "clip_value": 1.5, "lr": lambda t: 0.05 / (1 + t)}
    x = x0.copy()
    optimizer = getattr(fastopt, name)(x, **{**OPTIONS[name], **more})
    lookahead = getattr(optimizer, "lookahead", lambda: x)
    points, values = [lookahead().copy()], [bowl(lookahead())[0]]
    for _ in range(60):
        optimizer.step(bowl(lookahead())[1])
        points.append(lookahead().copy())
        values.append(bowl(lookahead())[0])
    steps.clear()

    told = []
    result = minimize(
        bowl, x0, jac=True, method=method(name, **more), options={"maxiter": 60, "return_all": True},
        callback=lambda intermediate_result: told.append(intermediate_result),
    )  # fmt: skip
    assert steps == {name: 60}
    assert result.x.dtype == dtype and result.x.tobytes() == points[-1].tobytes()
    assert np.array(result.allvecs).tobytes() == np.array(points).tobytes()
    assert [one.fun for one in told] == values[1:] and result.fun == values[-1]
    assert [one.x.tobytes() for one in told] == [point.tobytes() for point in points[1:]]
    assert [one.nit for one in told] == list(range(1, 61))
    assert (result.jac == bowl(points[-1])[1]).all() and (result.nit, result.nfev, result.njev) == (60, 61, 61)


@every_optimizer
def test_steps_are_those_of_fastopt_minimize(name, steps):
    x = np.array([4.0, -1.0])
    optimizer = getattr(fastopt, name)(x, **OPTIONS[name])
    ran = fastopt.minimize(lambda x, _: bowl(x), x, optimizer, max_steps=40)
    steps.clear()
    result = minimize(bowl, [4, -1], jac=True, method=method(name), options={"maxiter": 40})
    assert steps == {name: 40}
    assert result.x.tobytes() == (x if name != "NAG" else optimizer.lookahead()).tobytes()
    assert ran.steps == result.nit


@every_optimizer
@pytest.mark.parametrize("form", ["jac=True", "jac", "differences"])
def test_the_minimum_of_a_bowl(name, form, steps):
    fun, jac = (bowl, True) if form == "jac=True" else halves()
    jac = None if form == "differences" else jac
    rates = {"lr": 2.0 if name == "Adagrad" else falling(0.1, 0.995) if name in ("RMSprop", "Lion") else 0.1}
    rates = {} if name in ("Adadelta", "Rprop") else rates
    result = minimize(fun, [5.0, -3.0], jac=jac, method=method(name, **rates), tol=1e-3, options={"maxiter": 20_000})
    assert result.success and result.status == 0 and np.abs(result.jac).max() <= 1e-3
    assert np.allclose(result.x, [1, 2], atol=1e-3)
    assert steps[name] == result.nit > 0 and result.njev == result.nit + 1
    assert result.nfev == (result.nit + 1) * (3 if form == "differences" else 1)


@every_optimizer
def test_the_minimum_of_rosenbrocks_function(name, steps):
    result = minimize(rosen, [-1.0, 1.5], jac=rosen_der, method=method(name), tol=1e-4, options={"maxiter": 20_000})
    assert result.success, result
    assert np.allclose(result.x, 1, atol=1e-2) and steps[name] == result.nit > 0


def test_a_class_of_ones_own(steps):
    class Mine(Method):
        optimizer = fastopt.SGD

    result = minimize(bowl, [0.0], jac=True, method=Mine(lr=0.1), options={"maxiter": 3})
    assert steps == {"SGD": 3} and np.isclose(result.x, 1 - 0.8**3)


# --- When it stops


def test_without_tol_it_stops_at_maxiter_alone(steps):
    result = minimize(bowl, [1.0], jac=True, method=fastopt.scipy.Adam(lr=0.1))  # the minimum
    assert (result.nit, result.status, result.success) == (1000, 0, True) and steps == {"Adam": 1000}
    assert "maxiter=1000" in result.message


@pytest.mark.parametrize("maxiter", [0, 1, 7, np.int64(7), 6.5])
def test_maxiter_is_the_number_of_steps(maxiter, steps):
    result = minimize(bowl, [9.0], jac=True, method=fastopt.scipy.SGD(lr=0.01), tol=1e-9, options={"maxiter": maxiter})
    assert result.nit == steps["SGD"] == np.ceil(maxiter) and result.nfev == result.nit + 1
    assert (result.status, result.success) == (1, False) and result.message.startswith("Maximum number of iterations")


def test_numbers_beyond_all_floats_are_infinite(steps):
    options = {"maxiter": 10**400}
    result = minimize(bowl, [9.0], jac=True, method=fastopt.scipy.SGD(lr=0.1), tol=1e-3, options=options)
    assert result.success and steps["SGD"] == result.nit > 9
    assert minimize(bowl, [9.0], jac=True, method=fastopt.scipy.SGD(), tol=10**400).nit == 0


@pytest.mark.parametrize("given", [{"tol": 1e-3}, {"options": {"gtol": 1e-3}}, {"tol": 9, "options": {"gtol": 1e-3}}])
def test_tol_is_about_the_largest_element_of_the_gradient(given, steps):
    seen = []
    result = minimize(
        bowl, [3.0, 3.0], jac=True, method=fastopt.scipy.SGD(lr=0.1),
        callback=lambda intermediate_result: seen.append(np.abs(intermediate_result.jac).max()), **given,
    )  # fmt: skip
    assert result.success and seen[-1] <= 1e-3 < min(seen[:-1]) and steps["SGD"] == result.nit == len(seen)


def test_at_the_minimum_no_step_is_taken(steps):
    result = minimize(bowl, [1.0, 2.0], jac=True, method=fastopt.scipy.Adam(), tol=1e-6)
    assert result.success and (result.nit, result.nfev, steps) == (0, 1, {})


def log(x):
    """Is not finite where x is negative."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.log(x).sum()), 1 / x


def same_array(x, kept=np.empty(2)):  # noqa: B008
    value, kept[:] = log(x)
    return value, kept


def infinite_gradient(x):
    return 0.0, np.where(x < 0, np.inf, 1 / x)


@pytest.mark.parametrize("fun", [log, same_array, infinite_gradient])
def test_a_value_that_is_not_finite_ends_it(fun, steps):
    result = minimize(fun, [1.0, 2.0], jac=True, method=fastopt.scipy.SGD(lr=0.4, ema_decay=0.5))
    assert (result.success, result.status, result.nit) == (False, 3, 1) and "not finite" in result.message
    assert steps == {"SGD": 2} and "ema" not in result
    assert np.isclose(result.x, [0.6, 1.8]).all()
    value, gradient = fun(result.x)
    assert result.fun == value and (result.jac == gradient).all()
    again = minimize(fun, [1.0, 2.0], jac=True, method=fastopt.scipy.SGD(lr=0.4), options={"maxiter": result.nit})
    assert again.success and (again.x == result.x).all() and again.fun == result.fun


def test_a_value_that_is_not_finite_at_the_beginning(steps):
    result = minimize(lambda x: (np.nan, x), [1.0, 2.0], jac=True, method=fastopt.scipy.Adam())
    assert (result.status, result.nit, result.x.tolist(), steps) == (3, 0, [1, 2], {}) and np.isnan(result.fun)


def test_an_x_that_is_not_finite_ends_it():
    for gradient, lr in ((1e200, 1e200), (5.0, 1e308)):
        method_ = fastopt.scipy.SGD(lr=lr)
        result = minimize(lambda x: (0.0, np.full(2, gradient)), [1.0, 2.0], jac=True, method=method_)  # noqa: B023
        assert (result.status, result.x.tolist()) == (3, [1.0, 2.0])


def test_large_finite_values_do_not_end_it(steps):
    result = minimize(
        lambda x: (1e308, np.full(3, 1e300)), np.full(3, 1e300), jac=True, method=fastopt.scipy.SGD(lr=1e-3),
        options={"maxiter": 4},
    )  # fmt: skip
    assert result.success and steps == {"SGD": 4}


# --- What the function is given, and gives


def test_the_function_may_keep_and_overwrite_its_x(steps):
    kept = []

    def keeping(x):
        kept.append((x, x.copy()))
        return bowl(x)

    minimize(keeping, [4.0, 5.0], jac=True, method=fastopt.scipy.Adam(lr=0.1), options={"maxiter": 5})
    assert len(kept) == 6 and all((x == copy).all() for x, copy in kept)
    assert len({x.ctypes.data for x, _ in kept}) == 6

    def spoiling(x):
        value, gradient = bowl(x)
        x[:] = np.nan
        return value, gradient

    for fun, jac in ((spoiling, True), halves(spoiling), (halves(spoiling)[0], None)):
        result = minimize(fun, [4.0, 5.0], jac=jac, method=fastopt.scipy.Adam(lr=0.1), tol=1e-5)
        assert result.success and np.allclose(result.x, [1, 2], atol=1e-5)


def test_x_itself_may_be_the_gradient():
    result = minimize(
        lambda x: (x @ x / 2, x), [4.0], jac=True, method=fastopt.scipy.SGD(lr=0.5), options={"maxiter": 3}
    )
    assert result.x.tolist() == [0.5] and result.jac.tolist() == [0.5]


def test_a_callback_may_call_a_function_that_writes_all_gradients_into_one_array():
    buffer = np.zeros(2)

    def jac(x):
        buffer[:] = bowl(x)[1]
        return buffer

    fun, adam, options = halves()[0], fastopt.scipy.Adam(lr=0.1), {"maxiter": 9}
    alone = minimize(fun, [4.0, 5.0], jac=jac, method=adam, options=options)
    told = minimize(fun, [4.0, 5.0], jac=jac, method=adam, options=options, callback=lambda x: jac(0 * x))
    assert told.x.tolist() == alone.x.tolist() and told.jac.tolist() == alone.jac.tolist()


def test_x0_stays_as_it_is():
    x0 = np.array([4.0, 5.0])
    minimize(bowl, x0, jac=True, method=fastopt.scipy.Adam(lr=0.1))
    assert x0.tolist() == [4, 5]


@pytest.mark.parametrize(
    "x0", [3, 3.0, [3], np.float32(3), np.array([3], ">f8"), np.array([3], np.float16), np.array(3)]
)
def test_x0_of_other_kinds(x0):
    result = minimize(bowl, x0, jac=True, method=fastopt.scipy.Adam(lr=0.1), tol=1e-3)
    assert result.x.dtype == (np.float32 if getattr(x0, "dtype", 0) == np.float32 else np.float64)
    assert result.success and result.x.shape == (1,) and np.allclose(result.x, 1, atol=1e-3)


@pytest.mark.parametrize("x0", [[1j], np.array([1], np.longdouble), ["a"], [None]], ids=str)
def test_x0_that_is_refused(x0):
    with pytest.raises(fastopt.DTypeError, match="x0 must be float32 or float64"):
        minimize(bowl, x0, jac=True, method=fastopt.scipy.Adam())


@pytest.mark.parametrize("give", [
    list, lambda g: g.astype(np.float32), lambda g: np.stack([g, g], 1)[:, 0], lambda g: g.astype(">f8"),
    lambda g: g.astype(object).tolist(), lambda g: np.frombuffer(g.tobytes()),
])  # fmt: skip
def test_gradients_of_other_kinds(give, steps):
    fun, jac = halves()
    plain = minimize(fun, [4.0, 6.0], jac=jac, method=fastopt.scipy.SGD(lr=0.125), options={"maxiter": 5})
    result = minimize(
        fun, [4.0, 6.0], jac=lambda x: give(jac(x)), method=fastopt.scipy.SGD(lr=0.125), options={"maxiter": 5}
    )
    assert np.allclose(result.x, plain.x, rtol=1e-6) and steps == {"SGD": 10}


@pytest.mark.parametrize(("fun", "error", "said"), [
    (lambda x: (1j, x), fastopt.DTypeError, "one real number, not 1j"),
    (lambda x: (None, x), fastopt.DTypeError, "one real number, not None"),
    (lambda x: (x, x), fastopt.ShapeError, "must return a scalar value"),
    (lambda x: (1.0, 1j * x), fastopt.DTypeError, "gradient must be an array of real numbers"),
    (lambda x: (1.0, None), fastopt.DTypeError, "gradient must be an array of real numbers"),
    (lambda x: (1.0, x[:1]), fastopt.ShapeError, re.escape("the shape of x, (2,), not (1,)")),
])  # fmt: skip
def test_what_a_function_must_not_return(fun, error, said, steps):
    with pytest.raises(error, match=said):
        minimize(fun, [1.0, 2.0], jac=True, method=fastopt.scipy.Adam())
    assert not steps


def test_args_are_passed_on():
    for fun, jac in ((bowl, True), halves(), (halves()[0], None)):
        result = minimize(fun, [0.0], args=(0.5,), jac=jac, method=fastopt.scipy.SGD(lr=0.1), options={"maxiter": 2})
        assert np.isclose(result.x, 1 - 0.9**2)


@pytest.mark.parametrize("bounds", [None, [(2.0, 3.0), (None, None)]])
def test_differences_are_those_of_scipy(bounds):
    fun, seen = halves()[0], []

    def watched(x):
        seen.append(x.copy())
        return fun(x)

    ours = minimize(watched, [3.0, 5.0], method=fastopt.scipy.SGD(lr=0.1), bounds=bounds, options={"maxiter": 0})
    mine = [x.tolist() for x in seen]
    seen.clear()
    eps = fastopt.scipy.STEP_OF_DIFFERENCES  # BFGS's
    minimize(watched, [3.0, 5.0], method="L-BFGS-B", bounds=bounds, options={"maxiter": 0, "eps": eps})
    assert mine == [x.tolist() for x in seen[:3]] and ours.nfev == 3 and ours.njev == 1
    assert (mine[1][0] > 3) == (bounds is None)
    if bounds is None:
        theirs = minimize(fun, [3.0, 5.0], method="BFGS", options={"maxiter": 0})
        assert ours.jac.tobytes() == theirs.jac.tobytes()
    other = minimize(fun, [3.0, 5.0], method=fastopt.scipy.SGD(), options={"maxiter": 0, "finite_diff_rel_step": 1e-4})
    wide = minimize(fun, [3.0, 5.0], method=fastopt.scipy.SGD(), options={"maxiter": 0, "eps": 0.5})
    assert 0 < np.abs(other.jac - ours.jac).max() < 1e-2 < np.abs(wide.jac - ours.jac).max()


def test_the_private_pair_of_scipy_is_not_needed(monkeypatch):
    expected = minimize(bowl, [4.0, 5.0], jac=True, method=fastopt.scipy.Adam(lr=0.1), options={"maxiter": 9})
    monkeypatch.setattr(fastopt.scipy, "MemoizeJac", None)
    result = minimize(bowl, [4.0, 5.0], jac=True, method=fastopt.scipy.Adam(lr=0.1), options={"maxiter": 9})
    assert result.x.tobytes() == expected.x.tobytes() and result.nfev == expected.nfev


# --- Callbacks, disp


def test_both_forms_of_callback(steps):
    old, new = [], []

    class Callback:
        def __call__(self, intermediate_result):
            new.append(intermediate_result)

    for callback in (old.append, lambda xk: old.append(xk), Callback()):
        minimize(
            bowl, [4.0, 5.0], jac=True, method=fastopt.scipy.Adam(lr=0.1), callback=callback, options={"maxiter": 3}
        )
    assert [x.tolist() for x in old[:3]] == [x.tolist() for x in old[3:]] == [one.x.tolist() for one in new]
    assert not any(np.may_share_memory(a, b) for a, b in zip(old, old[1:], strict=False)) and steps == {"Adam": 9}
    for one in new:
        value, gradient = bowl(one.x)
        assert isinstance(one, OptimizeResult) and one.fun == value and (one.jac == gradient).all()


def test_stop_iteration_stops(steps):
    def callback(xk):
        if steps["SGD"] == 4:
            raise StopIteration

    result = minimize(bowl, [4.0], jac=True, method=fastopt.scipy.SGD(lr=0.1), callback=callback)
    assert (result.nit, result.status, result.success) == (4, 99, False) and steps == {"SGD": 4}
    assert result.message == "`callback` raised `StopIteration`."


def test_disp(capsys):
    minimize(bowl, [4.0], jac=True, method=fastopt.scipy.SGD(lr=0.1), tol=1e-3, options={"disp": True})
    printed = capsys.readouterr().out
    minimize(bowl, [4.0], jac=True, method="BFGS", options={"disp": True})
    assert re.sub(r"\d+", "0", printed) == re.sub(r"\d+", "0", capsys.readouterr().out)
    with pytest.warns(OptimizeWarning, match="Maximum number of iterations") as caught:
        minimize(bowl, [4.0], jac=True, method=fastopt.scipy.SGD(), tol=1e-3, options={"disp": True, "maxiter": 1})
    assert caught[0].filename == __file__ and "Iterations: 1" in capsys.readouterr().out


# --- Bounds, averages


@every_optimizer
@pytest.mark.parametrize("bounds", [[(2, 5), (None, 1.5)], Bounds([2, -np.inf], [5, 1.5])], ids=["pairs", "Bounds"])
def test_bounds_hold_everywhere(name, bounds, steps):
    seen = []

    def watched(x):
        seen.append(x.copy())
        return bowl(x)

    rates = {"lr": falling(0.1, 0.995)} if name in ("RMSprop", "Lion") else {}
    result = minimize(watched, [9.0, 9.0], jac=True, method=method(name, **rates), bounds=bounds, tol=1e-6)
    assert seen[0].tolist() == [5, 1.5]
    assert all(2 <= a <= 5 and b <= 1.5 for a, b in seen)
    assert result.success or name in ("Adagrad", "ASGD", "SGD", "Momentum", "NAG", "Rprop"), result
    assert np.allclose(result.x, [2, 1.5], atol=0.3) and steps[name] == result.nit


def test_bounds_are_a_projection_after_each_step(steps):
    x = np.array([4.0, -1.0])
    optimizer = fastopt.Momentum(x, lr=0.2)
    for _ in range(30):
        optimizer.step(bowl(x)[1])
        np.clip(x, [0.5, -1], [4, 1.25], out=x)
    steps.clear()
    result = minimize(
        bowl, [4.0, -1.0], jac=True, method=fastopt.scipy.Momentum(lr=0.2), bounds=[(0.5, 4), (-1, 1.25)],
        options={"maxiter": 30},
    )  # fmt: skip
    assert result.x.tobytes() == x.tobytes() and steps == {"Momentum": 30}


@pytest.mark.parametrize(("bounds", "slope", "inside"), [((0.1, 0.3), -1, 0), ((0.7, 0.9), 1, 1)])
def test_bounds_are_not_left_by_rounding(bounds, slope, inside):
    result = minimize(
        lambda x: (x.sum(), np.float32([slope])), np.float32([0.5]), jac=True, method=fastopt.scipy.SGD(lr=1.0),
        bounds=[bounds], options={"maxiter": 2},
    )  # fmt: skip
    bound = bounds[slope < 0]
    rounded = np.float32(bound)
    assert slope * float(rounded) < slope * bound <= slope * float(result.x[0])
    assert result.x.dtype == np.float32 and result.x[0] == np.nextafter(rounded, np.float32(inside))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_are_taken_where_numpy_raises_for_rounding(dtype):
    bounds = [(0, 1e-50), (-1e300, 1e300), (None, 2)]
    with np.errstate(all="raise"):
        result = minimize(bowl, np.ones(3, dtype), jac=True, method=fastopt.scipy.SGD(lr=0.1), bounds=bounds, tol=1e-3)
    assert result.success and np.allclose(result.x, [0, 2, 2], atol=1e-3)


def test_elements_that_bounds_fix():
    fun, jac = halves()
    exact = minimize(fun, [4.0, 9.0], jac=jac, method=fastopt.scipy.Adam(lr=0.1), bounds=[(0, 5), (3, 3)], tol=1e-6)
    result = minimize(fun, [4.0, 9.0], method=fastopt.scipy.Adam(lr=0.1), bounds=[(0, 5), (3, 3)], tol=1e-6)
    assert exact.success and result.success and np.allclose(result.x, [1, 3], atol=1e-5)
    assert np.isnan(result.jac[1]) and np.isclose(exact.jac[1], 6) and result.nfev == 2 * result.nit + 2
    told = []
    minimize(
        fun, [4.0, 9.0], method=fastopt.scipy.Adam(), bounds=[(0, 5), (3, 3)], options={"maxiter": 2},
        callback=lambda intermediate_result: told.append(intermediate_result.jac),
    )  # fmt: skip
    assert [np.isnan(jac).tolist() for jac in told] == [[False, True]] * 2
    fixed = minimize(fun, [4.0, 9.0], method=fastopt.scipy.Adam(), bounds=[(1, 1), (3, 3)])
    assert (fixed.success, fixed.nit, fixed.nfev) == (True, 0, 1)
    assert fixed.message == "All independent variables were fixed by bounds."


@pytest.mark.parametrize(("bounds", "said"), [
    ([(0, 1)] * 3, "number of bounds is not compatible"), ([(0, 1), (2, 1)], "upper bound is less than"),
    (Bounds([0, 0, 0], [1, 1, 1]), "number of bounds is not compatible"), ([(0, 1), (np.nan, 1)], "bounds hold NaN"),
    (5, "must be pairs"), ([(0, 1), 2], "must be pairs"), ([(0, 1), ("a", 2)], "must be pairs"),
])  # fmt: skip
def test_bounds_that_are_none(bounds, said):
    with pytest.raises(fastopt.ParameterError, match=said):
        minimize(bowl, [0.5, 0.5], jac=True, method=fastopt.scipy.Adam(), bounds=bounds)


def test_averages(steps):
    x = np.array([4.0, 5.0])
    optimizer = fastopt.Adam(x, lr=0.1, ema_decay=0.9)
    for _ in range(20):
        optimizer.step(bowl(x)[1])
    averaging = fastopt.scipy.Adam(lr=0.1, ema_decay=0.9)
    result = minimize(bowl, [4.0, 5.0], jac=True, method=averaging, options={"maxiter": 20})
    assert result.ema.tobytes() == optimizer.averages[0].tobytes() and result.x.tobytes() == x.tobytes()
    assert minimize(bowl, [4.0, 5.0], jac=True, method=averaging, options={"maxiter": 0}).ema.tolist() == [4, 5]
    with pytest.raises(fastopt.HyperparameterError, match="ema_decay with bounds"):
        minimize(bowl, [4.0, 5.0], jac=True, method=averaging, bounds=[(0, 9), (0, 9)])
    result = minimize(bowl, [4.0, 5.0], jac=True, method=fastopt.scipy.ASGD(lr=0.1, t0=0), options={"maxiter": 20})
    assert (result.ax != result.x).all() and np.abs(result.ax - result.x).max() < 4
    for method in (fastopt.scipy.ASGD(), averaging):  # no step is taken: the average is that of x0
        none = minimize(bowl, [1.0, 2.0], jac=True, method=method, tol=1e-3)
        assert none.nit == 0 and none["ema" if method is averaging else "ax"].tolist() == [1, 2]
    assert "ema" not in result and "ax" not in minimize(bowl, [4.0], jac=True, method=fastopt.scipy.Adam())
    assert "ax" not in minimize(bowl, [4.0], jac=True, method=fastopt.scipy.ASGD(t0=0), bounds=[(0, 9)])


def test_state_in_bfloat16(steps):
    x = np.float32([4.0, 5.0])
    optimizer = fastopt.Adam(x, lr=0.1, state_dtype="bfloat16", seed=3)
    for _ in range(20):
        optimizer.step(bowl(x)[1])
    steps.clear()
    method_ = fastopt.scipy.Adam(lr=0.1, state_dtype="bfloat16", seed=3)
    result = minimize(bowl, np.float32([4.0, 5.0]), jac=True, method=method_, options={"maxiter": 20})
    assert result.x.tobytes() == x.tobytes() and steps == {"Adam": 20}
    with pytest.raises(fastopt.FastoptError, match="state_dtype"):
        minimize(bowl, [4.0, 5.0], jac=True, method=method_)


# --- What is refused, and what is warned about


@every_optimizer
def test_options_are_those_of_the_class(name):
    cls = getattr(fastopt.scipy, name)
    options = set(inspect.signature(cls).parameters)
    assert options == set(inspect.signature(fastopt.OPTIMIZERS[name]).parameters) - {"params", *fastopt.scipy.REFUSED}
    assert {"lr", "convention", "clip_norm", "clip_norm_each", "clip_value", "ema_decay", "n_threads"} <= options
    assert cls.__doc__ and cls.__module__ == "fastopt.scipy" and name in fastopt.scipy.__all__


@pytest.mark.parametrize(("options", "error", "said"), [
    ({"learning_rate": 0.1}, fastopt.UnknownOptionError, "did you mean 'lr'"),
    ({"lr": -1.0}, fastopt.HyperparameterError, "lr=-1.0"),
    ({"convention": "optax"}, fastopt.HyperparameterError, "no default for lr"),
    ({"convention": "none"}, fastopt.ConventionError, "convention='none'"),
    ({"ema_decay": 2}, fastopt.HyperparameterError, "ema_decay=2"),
    ({"state_dtype": "4bit"}, fastopt.HyperparameterError, "state_dtype='4bit'"),
    *(({name: None}, fastopt.UnknownOptionError, f"{name} is not an option of Adam") for name in fastopt.scipy.REFUSED),
])  # fmt: skip
def test_options_are_checked_when_the_method_is_made(options, error, said):
    with pytest.raises(error, match=said):
        fastopt.scipy.Adam(**options)


@pytest.mark.parametrize(("given", "error", "said"), [
    ({"constraints": {"type": "eq", "fun": sum}}, fastopt.ParameterError, "cannot handle constraints"),
    ({"options": {"lr": 0.1}}, fastopt.UnknownOptionError, re.escape("Adam(lr=...)")),
    ({"options": {"clip_norm": 0.1}}, fastopt.UnknownOptionError, re.escape("Adam(clip_norm=...)")),
    ({"tol": -1}, fastopt.HyperparameterError, "tol must be"),
    ({"tol": "a"}, fastopt.HyperparameterError, "tol must be"),
    ({"options": {"gtol": np.nan}}, fastopt.HyperparameterError, "gtol must be"),
    ({"options": {"maxiter": True}}, fastopt.HyperparameterError, "maxiter must be"),
    ({"options": {"maxiter": np.inf}}, fastopt.HyperparameterError, "never stops"),
])  # fmt: skip
def test_what_minimize_must_not_be_given(given, error, said, steps):
    with pytest.raises(error, match=said):
        minimize(bowl, [1.0], jac=True, method=fastopt.scipy.Adam(), **given)
    assert not steps


def test_warnings_are_those_of_scipy():
    for given, category, said in (
        ({"hess": optimize.rosen_hess}, RuntimeWarning, "Method {} does not use Hessian information (hess)."),
        ({"hessp": optimize.rosen_hess_prod}, RuntimeWarning,
         "Method {} does not use Hessian-vector product information (hessp)."),
        ({"options": {"maxiters": 3}}, OptimizeWarning, "Unknown solver options: maxiters"),
    ):  # fmt: skip
        for method_, name in ((fastopt.scipy.Adam(), "Adam"), ("CG", "CG")):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                minimize(rosen, [1.0, 1.0], jac=rosen_der, method=method_, **given)
            assert [(w.category, str(w.message)) for w in caught] == [(category, said.format(name))]
            assert name == "CG" or caught[0].filename == __file__


def test_a_method_has_no_state(steps):
    adam = fastopt.scipy.Adam(lr=0.1, betas=(0.8, 0.9))
    first = minimize(bowl, [4.0, 5.0], jac=True, method=adam, options={"maxiter": 9})
    inner = []

    def nested(x):
        inner.append(minimize(bowl, [4.0, 5.0], jac=True, method=adam, options={"maxiter": 9}).x)
        return bowl(x)

    for one in (adam, pickle.loads(pickle.dumps(adam))):
        assert (
            minimize(nested, [4.0, 5.0], jac=True, method=one, options={"maxiter": 9}).x.tobytes() == first.x.tobytes()
        )
    assert all(x.tobytes() == first.x.tobytes() for x in inner) and len(inner) == 20
    assert repr(adam) == "Adam(lr=0.1, betas=(0.8, 0.9))" and steps == {"Adam": 9 * 23}


# --- Within SciPy's global optimizers


def test_basinhopping(steps):
    def wavy(x):
        value = np.cos(14.5 * x - 0.3) + (x + 0.2) * x
        return float(value[0]), -14.5 * np.sin(14.5 * x - 0.3) + 2 * x + 0.2

    for tol in (None, 1e-6):
        steps.clear()
        kwargs = {"method": fastopt.scipy.Adam(lr=0.01), "jac": True, "tol": tol}
        result = optimize.basinhopping(wavy, [1.0], niter=40, rng=1, minimizer_kwargs=kwargs)
        assert result.lowest_optimization_result.success and np.isclose(result.x, -0.195, atol=1e-3)
        assert result.nfev == result.njev == steps["Adam"] + 41


def test_dual_annealing(steps):
    kwargs = {"method": fastopt.scipy.Adam(lr=0.05), "jac": rosen_der, "bounds": [(-2, 2)] * 2}
    result = optimize.dual_annealing(rosen, [(-2, 2)] * 2, maxiter=20, rng=1, minimizer_kwargs=kwargs)
    assert np.allclose(result.x, 1, atol=1e-3) and steps["Adam"] == result.njev - result.njev // 1001 > 0


# --- SciPy's own tests

# Tests of SciPy that ask for BFGS, L-BFGS-B or CG, or for any method. See scipy_host.py for what they get.
HOST_TESTS = (
    "test_finite_differences_jac", "callback_copies", "test_callback_stop", "respect_maxiter", "coerce_args",
    "nan_values", "no_increase", "duplicate", "gh1953", "with_scalar", "result_x_shape", "maxiter_noninteger",
    "all_bounds_equal", "obj_func", "l_bfgs_b_bounds", "test_njev", "test_pass_callback",
)  # fmt: skip
MORE_HOST_TESTS = (
    "test_cg", "test_bfgs", "c1_c2", "l_bfgs", "tol_parameter", "initial_step", "attributes", "equal_bounds",
    "overwritten", "TestWorkers", "TestBasinHopping", "TestDualAnnealing",
)  # fmt: skip
# Those that fail, and why.
OF_BFGS = "an option of BFGS alone, or hess_inv in its result"
OF_LBFGSB = "an option, or the message, of L-BFGS-B alone"
NO_SEARCH = "there is no line search: a step goes along the gradient as given, as far as the learning rate says"
EXACT = "asks for more digits than a first-order method has in so few steps"
OTHERS = {
    "test_cg": "counts the evaluations of CG",
    "test_bfgs": OF_BFGS, "test_bfgs_hess_inv0_neg": OF_BFGS, "test_bfgs_hess_inv0_semipos": OF_BFGS,
    "test_bfgs_c1": OF_BFGS, "test_bfgs_c2": OF_BFGS, "test_invalid_c1_c2": OF_BFGS,
    "test_l_bfgs_b_maxiter": OF_LBFGSB, "test_minimize_l_bfgs_b_ftol": OF_LBFGSB,
    "test_minimize_l_bfgs_maxls": OF_LBFGSB,
    "test_bfgs_infinite": NO_SEARCH + ", which does not reach infinity",
    "test_no_increase": NO_SEARCH + ", and x is the last iterate", "test_initial_step_scaling": NO_SEARCH,
    "test_minimize_l_bfgs_b_bounds": EXACT, "test_minimize_l_bfgs_b_bounds_FD": EXACT, "test_low_dim": EXACT,
    "test_high_dim": EXACT, "test_fun_args_ls": EXACT, "test_from_docstring": EXACT, "test_bounds_class": EXACT,
    "test_max_fun_ls": "a local search of L-BFGS-B takes fewer evaluations than its maxiter of 100",
    "test_deprecated_local_search_options_bounds": "expects the warning that CG has no bounds",
    "test_minimizer_kwargs_bounds": "expects the warning that CG has no bounds",
}  # fmt: skip


def test_scipys_own_tests(amount, tmp_path):
    folder = Path(optimize.__file__).parent / "tests"
    if not folder.exists():
        pytest.skip("this SciPy came without its tests")
    files = [str(folder / name) for name in ("test_optimize.py", "test__basinhopping.py", "test__dual_annealing.py")]
    which, least, fewest_steps = amount((HOST_TESTS, 33, 5_000), (HOST_TESTS + MORE_HOST_TESTS, 115, 500_000))
    out = tmp_path / "steps.json"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "clients.scipy_host"]
    command += ["--steps", str(out), "--rootdir", str(tmp_path), "-k", " or ".join(which), *files]
    environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environ, cwd=tmp_path, timeout=1800)
    assert out.exists(), done.stdout + done.stderr
    seen = {name: (outcome, taken) for name, (outcome, taken) in json.loads(out.read_text()).items() if taken}
    failed = [name for name, (outcome, _) in seen.items() if outcome == "failed"]
    unexplained = {name for name in failed if name.partition("[")[0].rpartition("::")[2] not in OTHERS}
    assert not unexplained, done.stdout[-6000:]
    passed = sum(outcome == "passed" for outcome, _ in seen.values())
    taken = sum(taken for _, taken in seen.values())
    print(f"fastopt took {taken:,} steps in {len(seen)} of SciPy's tests; {passed} pass, {len(failed)} are explained")
    assert passed >= least and taken >= fewest_steps


# --- The page


def test_the_page_runs_as_one_program(steps):
    page = Path(__file__).parents[2] / "docs" / "clients" / "scipy.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the tests")
    names: dict = {}
    for block in python_blocks(page.read_text("utf-8")):
        exec(compile(block, str(page), "exec"), names)
        assert names["result"].success and steps["Adam"] > 100
        steps.clear()
