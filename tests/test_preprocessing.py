"""`minmax_scale`, `standardize` and `Scaler`: the table of the lecture notes, training statistics on other samples."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import fastopt
from fastopt import Scaler, errors, minmax_scale, standardize

# Notes 000: feature_3 before, after min-max normalization, and after standardization.
RAW = [-81.977837, -78.493732, 51.682415, 45.883654, 15.080874, 90.150390, 57.606259, 64.846291, -5.383149, 130.638733,
       108.228715]  # fmt: skip
MINMAX = [0.0, 0.016387, 0.628645, 0.601371, 0.456496, 0.809571, 0.656506, 0.690558, 0.360248, 1.0, 0.894599]
STANDARD = [-1.707156, -1.656828, 0.223561, 0.139798, -0.305147, 0.779229, 0.309130, 0.413712, -0.600749, 1.364081,
            1.040369]  # fmt: skip


@pytest.mark.parametrize("shape", [(11,), (11, 1), (11, 1, 1)])
def test_the_table_of_the_notes_to_its_last_digit(shape):
    raw = np.array(RAW).reshape(shape)
    for found, printed in ((minmax_scale(raw), MINMAX), (standardize(raw, ddof=1), STANDARD)):
        assert found.shape == shape
        np.testing.assert_allclose(found.ravel(), printed, rtol=0, atol=5.1e-7)
    assert np.abs(standardize(raw).ravel() - STANDARD).max() > 0.05  # over n it is another table


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_standardized_features_have_mean_0_and_deviation_1(ddof):
    x = np.random.default_rng(0).normal([3, -1e6, 1e-6], [2, 1e-3, 5], (200, 3))
    found = standardize(x, ddof=ddof)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=0, ddof=ddof), 1, rtol=1e-6)
    scaler = Scaler.standard(x, ddof=ddof)
    np.testing.assert_allclose(scaler.offset, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(scaler.scale, x.std(axis=0, ddof=ddof), rtol=1e-14)
    np.testing.assert_array_equal(scaler.transform(x), (x - scaler.offset) / scaler.scale)


@pytest.mark.parametrize("feature_range", [(0, 1), (-1, 1), (0.1, 0.7), (-3, -0.3)])
def test_the_ends_of_the_range_are_reached_exactly(feature_range):
    x = np.random.default_rng(1).normal(0, [1, 1e-9, 1e9], (500, 3))
    found = minmax_scale(x, feature_range)
    assert set(found.min(axis=0)) == {feature_range[0]} and set(found.max(axis=0)) == {feature_range[1]}


@pytest.mark.parametrize("make", [Scaler.minmax, Scaler.standard, lambda x: Scaler.minmax(x, (-1, 1))])
def test_other_samples_are_scaled_by_the_training_samples_and_come_back(make):
    rng = np.random.default_rng(2)
    train, test = rng.normal(5, [1, 100], (50, 2)), rng.normal(5, [3, 300], (20, 2))
    scaler = make(train)
    scaled = scaler.transform(test)
    assert np.abs(scaled).max() > 1.5  # beyond the training range
    np.testing.assert_allclose(scaler.inverse_transform(scaled), test, rtol=1e-12)
    np.testing.assert_array_equal(scaled[:1], scaler.transform(test[:1]))  # whatever comes with them
    both = scaler.transform(np.concatenate([train, test]))
    np.testing.assert_array_equal(both, np.concatenate([scaler.transform(train), scaled]))


@pytest.mark.parametrize("function", [minmax_scale, standardize])
def test_a_constant_feature_becomes_0_and_comes_back(function):
    x = np.full((7, 2), 0.1)
    x[:, 1] = np.arange(7)
    found = function(x)
    assert (found[:, 0] == 0).all()
    scaler = {minmax_scale: Scaler.minmax, standardize: Scaler.standard}[function](x)
    assert scaler.scale[0] == 1 and scaler.inverse_transform(found)[0, 0] == 0.1
    assert scaler.transform([[0.6, 0.0]])[0, 0] == pytest.approx(0.5)
    assert (function(x[:1]) == 0).all()  # a single sample


@pytest.mark.parametrize("function", [minmax_scale, standardize])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "int64", "bool", ">f8", ">f4"])
def test_types_in_and_out(function, dtype):
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    before = x.copy()
    found = function(x)
    assert found.dtype == ("float32" if dtype in ("float32", ">f4") else "float64") and found.dtype.isnative
    assert x.tobytes() == before.tobytes() and not np.shares_memory(x, found)
    np.testing.assert_array_equal(found, function(x.astype(float)).astype(found.dtype))  # rounded once
    np.testing.assert_array_equal(found, function(np.asfortranarray(x)))
    np.testing.assert_array_equal(found, function(x[::-1])[::-1])


def test_float32_statistics_are_those_of_float64():
    x = np.random.default_rng(3).normal(1e4, 1, 100_000).astype(np.float32)
    assert Scaler.standard(x).offset == pytest.approx(x.astype(float).mean(), rel=1e-12)
    assert abs(standardize(x).astype(float).mean()) < 1e-6


@pytest.mark.parametrize("function", [minmax_scale, standardize])
def test_a_missing_value_is_left_out_and_stays_missing(function):
    x = np.array([[1.0, np.nan], [2.0, 4.0], [np.nan, 8.0], [6.0, 5.0]])
    found = function(x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    for column in range(2):
        known = ~np.isnan(x[:, column])
        np.testing.assert_array_equal(found[known, column], function(x[known, column]))


@pytest.mark.parametrize("factor", [1e200, 1e-200, 1e300, 1e-300])
def test_no_square_overflows_or_vanishes(factor):
    x = np.array([1.0, -3.0, 2.0, 0.5])
    np.testing.assert_allclose(standardize(factor * x), standardize(x), rtol=1e-14)
    np.testing.assert_allclose(minmax_scale(factor * x), minmax_scale(x), rtol=1e-14)


def test_a_scaler_is_immutable_copied_and_pickled():
    scaler = Scaler.minmax([[1.0, 2.0], [3.0, 8.0]], (-1, 1))
    for twin in (scaler, copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        np.testing.assert_array_equal(twin.offset, [1, 2])
        np.testing.assert_array_equal(twin.scale, [2, 6])
        assert twin.feature_range == (-1.0, 1.0)
        with pytest.raises(ValueError, match="read-only"):
            twin.offset[0] = 5
        with pytest.raises(AttributeError):
            twin.scale = 1
    known = Scaler([0.485, 0.456], [0.229, 0.224])  # published ones
    np.testing.assert_allclose(known.transform(np.float32([[0.485, 0.68]])), [[0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: standardize(3.0), errors.ShapeError, "x must hold at least one sample"),
        (lambda: standardize(np.float64(3)), errors.ShapeError, "x must hold at least one sample"),
        (lambda: minmax_scale(np.zeros((0, 3))), errors.ShapeError, "x must hold at least one sample"),
        (lambda: minmax_scale([[1, 2], [3]]), errors.ShapeError, "x must be an array, or lists of equal length"),
        (lambda: minmax_scale(["a", "b"]), errors.DTypeError, "x has dtype <U1"),
        (lambda: standardize(np.array([1 + 2j])), errors.DTypeError, "x has dtype complex128"),
        (lambda: standardize(np.float16([1, 2])), errors.DTypeError, "x has dtype float16"),
        (lambda: standardize(np.ma.array([1.0, 2.0])), errors.DTypeError, "x is a masked array"),
        (lambda: standardize([[1, 2], [3, np.inf]]), errors.NonFiniteError, "x[1, 1] is inf"),
        (lambda: minmax_scale([1, -np.inf]), errors.NonFiniteError, "x[1] is -inf"),
        (lambda: minmax_scale([[1, np.nan]] * 2), errors.NonFiniteError, "x[:, 1] holds no number"),
        (lambda: standardize([1e308, -1e308]), errors.NonFiniteError, "x[:] spans more"),
        (lambda: standardize([1, 2], ddof=2), errors.HyperparameterError, "ddof=2 needs at least 3 values"),
        (lambda: standardize([1, np.nan], ddof=1), errors.HyperparameterError, "ddof=1 needs at least 2 values"),
        (lambda: standardize([1, 2], ddof=-1), errors.HyperparameterError, "ddof must be an integer of at least 0"),
        (lambda: standardize([1, 2], ddof=0.5), errors.HyperparameterError, "ddof must be an integer of at least 0"),
        (lambda: standardize([1, 2], ddof=True), errors.HyperparameterError, "ddof must be an integer of at least 0"),
        *(
            (lambda r=r: minmax_scale([1, 2], r), errors.HyperparameterError, "feature_range must be two finite")
            for r in ((1, 0), (1, 1), (0, np.inf), (np.nan, 1), 3, "01x", (0, 1, 2), (-1e308, 1e308))
        ),
        (lambda: Scaler([1.0], [1.0, 2.0]), errors.ShapeError, "offset has shape (1,), scale (2,)"),
        (lambda: Scaler([1.0], [0.0]), errors.HyperparameterError, "scale must be above 0 everywhere, not 0"),
        (lambda: Scaler([np.nan], [1.0]), errors.HyperparameterError, "offset must be finite"),
        (
            lambda: Scaler.standard(np.eye(3)).transform(np.zeros((2, 4))),
            errors.ShapeError,
            "x has shape (2, 4); this scaler takes (samples, 3)",
        ),
        (
            lambda: Scaler.standard([1.0, 2.0]).inverse_transform(np.zeros((2, 1))),
            errors.ShapeError,
            "x has shape (2, 1); this scaler takes (samples,)",
        ),
    ],
)
def test_what_cannot_be_scaled_is_a_typed_error_that_names_it(call, error, said):
    with pytest.raises(error, match=re.escape(said)):
        call()


def test_the_numbers_are_those_of_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = np.random.default_rng(4).normal(3, [1, 50, 1e-3], (300, 3))
    x[5, 1] = np.nan
    np.testing.assert_allclose(standardize(x), preprocessing.scale(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(minmax_scale(x, (-1, 2)), preprocessing.minmax_scale(x, (-1, 2)), rtol=1e-9, atol=1e-12)
    assert fastopt.standardize is standardize


def test_infinities_stay_what_they_are_in_any_range():
    for feature_range in ((0, 1), (-1, 1), (2, 3), (0, 3), (-4, -2)):
        scaled = fastopt.Scaler.minmax([0.0, 1.0], feature_range).transform([np.inf, -np.inf, np.nan, 0.0, 1.0])
        np.testing.assert_array_equal(scaled, [np.inf, -np.inf, np.nan, *feature_range])


NO_RANGES = ["01", (0, "1"), (True, 2), (0, np.nan), (1, 0), (-1e308, 1e308), 3, (0, 1, 2)]


@pytest.mark.parametrize("feature_range", NO_RANGES)
def test_ranges_that_are_none(feature_range):
    with pytest.raises(fastopt.HyperparameterError, match="two finite numbers"):
        fastopt.minmax_scale([0.0, 1.0], feature_range)
