"""Clipping by value and each, and averages, beside the libraries that have them: 50 steps, compared after each.

All in float64, but for thinc's averages, which are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peers.test_clipping_peers import (
    SHAPES,
    arrays,
    assert_binds_at_times,
    assert_close,
    gradients,
    keras_in_float64,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastopt

EACH, VALUE = 2.0, 0.9
"""Limits that bind for some arrays and elements, at some of the steps."""
DECAYS = (0.0, 0.3, 0.5, 0.9, 0.999, 1.0)


def tensors(seed: int) -> list[torch.Tensor]:
    return [torch.from_numpy(p).requires_grad_() for p in arrays(seed)]


def give(theirs: list[torch.Tensor], grads: list[np.ndarray]) -> None:
    for p, g in zip(theirs, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())


def plain(theirs: Any) -> list[np.ndarray]:
    return [p.detach().numpy() for p in theirs]


def largest() -> list[float]:
    """The largest absolute value of the gradients of each step."""
    return [max(np.abs(g).max() for g in grads) for grads in gradients()]


def norms_of_each() -> list[float]:
    """The norms of the first array's gradients, which have to be clipped at some steps."""
    return [float(np.linalg.norm(grads[0])) for grads in gradients()]


def test_the_limits_bind_at_times():
    assert_binds_at_times(largest(), VALUE)
    assert_binds_at_times(norms_of_each(), EACH)


# --- PyTorch


@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {}), ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}), ("SGD", {"lr": 0.1, "maximize": True})],
)
@pytest.mark.parametrize("how", ["value", "each", "all, then each, then value"])
def test_pytorch_clips(how, name, options):
    limits = {"value": {"clip_value": VALUE}, "each": {"clip_norm_each": EACH}}.get(
        how, {"clip_norm": 10.0, "clip_norm_each": EACH, "clip_value": VALUE}
    )
    opt = getattr(fastopt, name)(arrays(0), **limits, **options)
    theirs = tensors(0)
    other = getattr(torch.optim, name)(theirs, **options)
    for g in gradients():
        opt.step(g)
        give(theirs, g)
        if "clip_norm" in limits:
            clip_grad_norm_(theirs, limits["clip_norm"])
        if "clip_norm_each" in limits:
            for p in theirs:
                clip_grad_norm_([p], EACH)
        if "clip_value" in limits:
            clip_grad_value_(theirs, VALUE)
        other.step()
        assert_close(opt.params, plain(theirs))


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("decay", DECAYS)
def test_pytorch_averages(decay, start):
    opt = fastopt.AdamW(arrays(0), lr=0.1, ema_decay=decay, ema_start=start)
    model = torch.nn.ParameterList(tensors(0))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    other = torch.optim.AdamW(model.parameters(), lr=0.1)
    for t, g in enumerate(gradients(), 1):
        opt.step(g)
        give(list(model), g)
        other.step()
        if t >= start:
            average.update_parameters(model)
        assert_close(opt.averages, plain(average.module if t >= start else model))


class AsTorchEma:
    """`ExponentialMovingAverage` of the package torch_ema 0.3: what it computes."""

    def __init__(self, params: list[torch.Tensor], decay: float) -> None:
        self.decay, self.updates, self.shadow_params = decay, 0, [p.detach().clone() for p in params]

    def update(self, params: list[torch.Tensor]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for shadow, p in zip(self.shadow_params, params, strict=True):
            shadow.sub_((shadow - p.detach()) * (1.0 - decay))


def torch_ema() -> list[Any]:
    """What it computes, and the package itself where it is installed."""
    try:
        from torch_ema import ExponentialMovingAverage
    except ImportError:
        return [AsTorchEma]
    return [AsTorchEma, ExponentialMovingAverage]


@pytest.mark.parametrize("made", torch_ema())
@pytest.mark.parametrize("decay", [0.3, 0.6, 0.999])
def test_torch_ema_warms_up(made, decay):
    schedule = lambda steps: min(decay, (2 + steps) / (11 + steps))  # noqa: E731
    opt = fastopt.SGD(arrays(0), lr=0.1, ema_decay=schedule, ema_start=0)
    theirs = tensors(0)
    other, average = torch.optim.SGD(theirs, lr=0.1), made(theirs, decay)
    for g in gradients():
        opt.step(g)
        give(theirs, g)
        other.step()
        average.update(theirs)
        assert_close(opt.averages, plain(average.shadow_params))


# --- Keras


@pytest.mark.parametrize(
    ("mine", "its"),
    [({"clip_norm_each": EACH}, {"clipnorm": EACH}), ({"clip_value": VALUE}, {"clipvalue": VALUE}),
     *(({"ema_decay": d}, {"use_ema": True, "ema_momentum": d}) for d in (0.3, 0.99))],
)  # fmt: skip
def test_keras(mine, its):
    with keras_in_float64() as keras:
        opt = fastopt.SGD(arrays(0), lr=0.1, momentum=0.9, convention="keras", **mine)
        variables = [keras.Variable(p, dtype="float64") for p in arrays(0)]
        other = keras.optimizers.SGD(0.1, momentum=0.9, **its)
        for g in gradients():
            opt.step(g)
            other.apply([keras.ops.convert_to_tensor(x, dtype="float64") for x in g], variables)
            assert_close(opt.params, [np.array(v.value) for v in variables])
            if "ema_decay" in mine:
                assert_close(opt.averages, [np.array(v.value) for v in other._model_variables_moving_average])


# --- optax


@pytest.mark.parametrize("how", ["value", "each", "all, then each, then value"])
def test_optax_clips(how):
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    each = optax.partition({k: optax.clip_by_global_norm(EACH) for k in range(len(SHAPES))}, [*range(len(SHAPES))])
    limits, first = {
        "value": ({"clip_value": VALUE}, [optax.clip(VALUE)]),
        "each": ({"clip_norm_each": EACH}, [each]),
    }.get(how, (
        {"clip_norm": 10.0, "clip_norm_each": EACH, "clip_value": VALUE},
        [optax.clip_by_global_norm(10.0), each, optax.clip(VALUE)],
    ))  # fmt: skip
    with jax.enable_x64(True):
        opt = fastopt.AdamW(arrays(0), lr=1e-2, convention="optax", **limits)
        chain = optax.chain(*first, optax.adamw(1e-2))
        params = [jax.numpy.asarray(p) for p in arrays(0)]
        state, update = chain.init(params), jax.jit(chain.update)
        for g in gradients():
            opt.step(g)
            updates, state = update([jax.numpy.asarray(x) for x in g], state, params)
            params = optax.apply_updates(params, updates)
            assert_close(opt.params, [np.array(p) for p in params])


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_optax_averages(decay):
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    with jax.enable_x64(True):
        opt = fastopt.SGD(arrays(0), lr=0.1, ema_decay=decay, convention="optax")
        sgd = optax.sgd(0.1)
        params = [jax.numpy.asarray(p) for p in arrays(0)]
        state, average = sgd.init(params), None
        for g in gradients():
            opt.step(g)
            updates, state = sgd.update([jax.numpy.asarray(x) for x in g], state, params)
            params = optax.apply_updates(params, updates)
            average = params if average is None else optax.incremental_update(params, average, 1 - decay)
            assert_close(opt.averages, [np.array(a) for a in average])


# --- thinc


def test_thinc_clips_each():
    thinc = pytest.importorskip("thinc.api")
    opt = fastopt.SGD([p for p in arrays(0) if p.ndim], lr=0.1, weight_decay=0.0, clip_norm_each=EACH,
                      convention="thinc")  # fmt: skip
    other = thinc.SGD(0.1, L2=0.0, grad_clip=EACH, use_averages=False)
    theirs = [p.copy() for p in opt.params]
    for grads in gradients():
        given = [g for g in grads if g.ndim]
        opt.step(given)
        theirs = [other((k, "w"), p, g.copy())[0] for k, (p, g) in enumerate(zip(theirs, given, strict=True))]
        assert_close(opt.params, theirs)


def test_thinc_averages():
    """In an optimizer, whose limit is far off; and by the function that computes them, with one that counts."""
    thinc = pytest.importorskip("thinc.api")
    ops = thinc.NumpyOps()
    start = [p for p in arrays(0) if p.ndim]
    for decay in (0.9999, 0.3):
        opt = fastopt.SGD([p.copy() for p in start], lr=0.1, weight_decay=0.0, ema_decay=decay, convention="thinc")
        other = thinc.SGD(0.1, L2=0.0, grad_clip=0.0, use_averages=decay == 0.9999)
        theirs = [p.copy() for p in start]
        averages = [np.zeros(p.shape, np.float32) for p in start]
        for t, grads in enumerate(gradients(), 1):
            given = [g for g in grads if g.ndim]
            opt.step(given)
            theirs = [other((k, "w"), p, g.copy())[0] for k, (p, g) in enumerate(zip(theirs, given, strict=True))]
            if decay == 0.9999:
                averages = [other.averages[k, "w"] for k in range(len(start))]
            else:
                for average, p in zip(averages, theirs, strict=True):
                    ops.update_averages(average, p, t, max_decay=decay)
            for mine, its in zip(opt.averages, averages, strict=True):
                np.testing.assert_allclose(mine, its, rtol=2e-6, atol=2e-6)  # theirs are float32
