"""Clipping by the norm of all gradients, beside the libraries that do it: 50 steps in float64, compared after each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import fastopt

SHAPES = [(30,), (4, 7), (), (1,), (5, 6, 7)]
STEPS, CLOSE = 50, 1e-12


def arrays(seed: int, by: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.array(by * rng.standard_normal(shape)) for shape in SHAPES]


def gradients() -> list[list[np.ndarray]]:
    """Of norms from 1 to 100: limits of 10 bind at about half of the steps."""
    return [arrays(k + 1, 10.0 ** (-1.2 + 2 * (k % 10) / 10)) for k in range(STEPS)]


def assert_close(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        assert (np.abs(a - b) <= CLOSE * (np.abs(b) + 1e-3)).all()


def assert_binds_at_times(norms: list[float], limit: float) -> None:
    binding = sum(norm > limit for norm in norms)
    assert STEPS // 5 < binding < STEPS - STEPS // 5


@pytest.mark.parametrize("norm_type", [2, np.inf])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {}), ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}), ("SGD", {"lr": 0.1, "maximize": True})],
)
def test_pytorch(name, options, foreach, norm_type):
    limit = 10.0 if norm_type == 2 else 1.5
    opt = getattr(fastopt, name)(arrays(0), clip_norm=limit, norm_type=norm_type, **options)
    theirs = [torch.from_numpy(p.copy()).requires_grad_() for p in arrays(0)]
    other = getattr(torch.optim, name)(theirs, **options)
    norms = []
    for g in gradients():
        opt.step(g)
        for p, x in zip(theirs, g, strict=True):
            p.grad = torch.from_numpy(x.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, limit, norm_type, foreach=foreach)
        other.step()
        assert opt.grad_norm == pytest.approx(float(norm), rel=CLOSE)
        norms.append(opt.grad_norm)
        assert_close(opt.params, [p.detach().numpy() for p in theirs])
    assert_binds_at_times(norms, limit)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pytorch_with_a_gradient_that_is_not_finite(bad):
    opt = fastopt.SGD(arrays(0), lr=0.1, clip_norm=1.0)
    theirs = [torch.from_numpy(p.copy()).requires_grad_() for p in arrays(0)]
    other = torch.optim.SGD(theirs, lr=0.1)
    g = arrays(1)
    g[1][2, 3] = bad
    opt.step(g)
    for p, x in zip(theirs, g, strict=True):
        p.grad = torch.from_numpy(x.copy())
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    other.step()
    for a, b in zip(opt.params, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12, atol=1e-15)


@contextmanager
def keras_in_float64() -> Iterator[Any]:
    keras = pytest.importorskip("keras")
    jax = pytest.importorskip("jax")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with jax.enable_x64(True):
            yield keras
    finally:
        keras.config.set_floatx(before)


def test_keras():
    with keras_in_float64() as keras:
        opt = fastopt.SGD(arrays(0), lr=0.1, momentum=0.9, clip_norm=10.0, convention="keras")
        variables = [keras.Variable(p, dtype="float64") for p in arrays(0)]
        other = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=10.0)
        norms = []
        for g in gradients():
            opt.step(g)
            other.apply([keras.ops.convert_to_tensor(x, dtype="float64") for x in g], variables)
            norms.append(opt.grad_norm)
            assert_close(opt.params, [np.array(v.value) for v in variables])
        assert_binds_at_times(norms, 10.0)


def test_optax():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    with jax.enable_x64(True):
        opt = fastopt.AdamW(arrays(0), lr=1e-2, clip_norm=10.0, convention="optax")
        chain = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(1e-2))
        params = [jax.numpy.asarray(p) for p in arrays(0)]
        state = chain.init(params)
        norms = []
        for g in gradients():
            opt.step(g)
            updates, state = chain.update([jax.numpy.asarray(x) for x in g], state, params)
            params = optax.apply_updates(params, updates)
            norms.append(opt.grad_norm)
            assert_close(opt.params, [np.array(p) for p in params])
        assert_binds_at_times(norms, 10.0)


def test_thinc_of_one_array():
    """thinc clips each array by itself, after its own L2: of one array, without that, it is the same."""
    thinc = pytest.importorskip("thinc.api")
    p = np.random.default_rng(0).standard_normal(200)
    opt = fastopt.SGD(p.copy(), lr=0.1, weight_decay=0.0, clip_norm=10.0, convention="thinc")
    other = thinc.SGD(0.1, L2=0.0, grad_clip=10.0, use_averages=False)
    theirs, norms = p.copy(), []
    for k in range(STEPS):
        g = 10.0 ** (-0.6 + (k % 10) / 6) * np.random.default_rng(k + 1).standard_normal(200)
        opt.step(g)
        theirs, _ = other((1, "w"), theirs, g.copy())
        norms.append(opt.grad_norm)
        assert_close(opt.params, [theirs])
    assert_binds_at_times(norms, 10.0)
