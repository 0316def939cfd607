"""fastopt.torch.clip_grad_norm_ and clip_grad_value_ in the place of PyTorch's."""

from __future__ import annotations

import math
import threading
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastopt.torch as ft  # noqa: E402
from fastopt import _torch_clip, errors, reference  # noqa: E402
from fastopt._tensors import Host  # noqa: E402

SHAPES = [(32, 32), (1,), (), (7, 5, 3), (1025,), (3, 1, 4)]
DTYPES = {
    "float64": [torch.float64], "mixed": [torch.float32, torch.float64], "bfloat16": [torch.bfloat16],
}  # fmt: skip
sees = pytest.mark.skipif(Host.shim is None, reason="C sees nothing of this PyTorch's tensors")


class Own(torch.Tensor):
    pass


def model(kind="float32", seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    grads = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    dtypes = DTYPES.get(kind, [torch.float32])
    for k, (p, g) in enumerate(zip(params, grads, strict=True)):
        p.data, p.grad = p.data.to(dtypes[k % len(dtypes)]), None
        p.grad = g.to(p.dtype)
    if kind == "without":
        params[1].grad = params[3].grad = None
    elif kind == "channels_last":
        params.append(torch.nn.Parameter(torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)))
        params[-1].grad = torch.randn(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    elif kind == "transposed":
        params[0].grad = params[0].grad.t()
    elif kind == "gaps":
        params[0].grad = torch.randn(32, 64, generator=generator)[:, ::2]
    elif kind == "expanded":
        params[0].grad = torch.randn(32, 1, generator=generator).expand(32, 32).contiguous()
    elif kind == "sparse":
        params[0].grad = params[0].grad.to_sparse()
    elif kind == "shared":
        params[2].grad = params[0].grad.view(-1)[3]
    elif kind == "twice":
        params.append(params[0])
    elif kind == "empty":
        params.append(torch.nn.Parameter(torch.zeros(0, 3)))
        params[-1].grad = torch.zeros(0, 3)
    elif kind == "subclass":
        params[0].grad = params[0].grad.as_subclass(Own)
    return params


COMPILED = ["float32", "float64", "mixed", "without", "channels_last", "transposed", "expanded", "empty"]
LEFT = ["bfloat16", "gaps", "shared", "twice", "subclass"]


def alike(kind, call, stock, seed=0, tolerance=None):
    """What two functions make of the same gradients, and what they return."""
    (mine, theirs), found = (model(kind, seed), model(kind, seed)), []
    for params, function in ((mine, call), (theirs, stock)):
        found.append(function(params))
    for p, q in zip(mine, theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.stride() == q.grad.stride() and p.grad.dtype == q.grad.dtype
            assert (p.grad._version > 0) == (q.grad._version > 0)
            a, b = (x.grad.as_subclass(torch.Tensor) for x in (p, q))
            torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}), equal_nan=True)
    return found


@pytest.mark.parametrize("order", [2, 2.0, math.inf, "inf", 1, 3.5])
@pytest.mark.parametrize("limit", [0.5, 1e6, 0, -1.0, math.inf, 3])
@pytest.mark.parametrize("kind", COMPILED + LEFT)
def test_the_norm_is_clipped_as_pytorch_does(kind, limit, order):
    if kind == "empty" and order in (math.inf, "inf"):
        return  # PyTorch's foreach has no such norm of nothing
    mine, theirs = alike(
        kind,
        lambda params: ft.clip_grad_norm_(params, limit, order),
        lambda params: torch.nn.utils.clip_grad_norm_(params, limit, order),
        tolerance={"rtol": 3e-2 if kind == "bfloat16" else 2e-6, "atol": 1e-9},
    )
    assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and not mine.requires_grad
    torch.testing.assert_close(mine.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor), rtol=2e-6, atol=0)


@pytest.mark.parametrize("limit", [0.7, -0.2, 0, math.inf, math.nan])
@pytest.mark.parametrize("kind", COMPILED + LEFT)
def test_values_are_clipped_as_pytorch_does(kind, limit):
    alike(
        kind,
        lambda params: ft.clip_grad_value_(params, limit),
        lambda params: torch.nn.utils.clip_grad_value_(params, limit),
    )


@pytest.fixture
def left(monkeypatch):
    """How often a call was left to PyTorch."""
    calls = []
    for name in ("STOCK_NORM", "STOCK_VALUE"):
        stock = getattr(_torch_clip, name)
        monkeypatch.setattr(_torch_clip, name, lambda *args, stock=stock: calls.append(1) or stock(*args))
    return calls


@sees
@pytest.mark.parametrize("kind", COMPILED + LEFT)
def test_what_is_left_to_pytorch(kind, left):
    ft.clip_grad_norm_(model(kind), 1.0)
    ft.clip_grad_value_(model(kind), 1.0)
    assert len(left) == (2 if kind in LEFT else 0)


@sees
@pytest.mark.parametrize("order", [2, math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed"])
def test_norm_and_factor_are_those_of_the_reference(dtype, order, left):
    params = model(dtype, shapes=[*SHAPES, (300_000,), (70_000,)])
    before = [p.grad.numpy().copy() for p in params]
    norm = ft.clip_grad_norm_(params, 0.5, order)
    wanted = reference.norm(before, order)
    factor = reference.clip_factor("torch", wanted, 0.5)
    assert norm.item() == norm.numpy().dtype.type(wanted) and factor < 1 and not left
    for p, g in zip(params, before, strict=True):
        assert p.grad.numpy().tobytes() == (g * g.dtype.type(factor)).tobytes()


@sees
def test_gradients_within_the_limit_keep_their_bits_and_count_a_version(left):
    params = model()
    before = [p.grad.clone() for p in params]
    ft.clip_grad_norm_(params, 1e6)
    assert all(torch.equal(p.grad, g) and p.grad._version == 1 for p, g in zip(params, before, strict=True))


def test_one_tensor_a_generator_and_nothing():
    p = model()[0]
    norm = torch.linalg.vector_norm(p.grad.double())
    torch.testing.assert_close(ft.clip_grad_norm_(p, 1.0).double(), norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.linalg.vector_norm(p.grad), torch.tensor(1.0))
    params = model()
    ft.clip_grad_norm_((p for p in params), 1.0)
    total = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in params))
    assert total == pytest.approx(1.0, rel=1e-6)
    for nothing in ([], [torch.nn.Parameter(torch.zeros(3))]):
        assert ft.clip_grad_norm_(nothing, 1.0).item() == 0.0
        ft.clip_grad_value_(nothing, 1.0)
    with pytest.warns(UserWarning, match="empty generator"):
        ft.clip_grad_norm_((p for p in ()), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ft.clip_grad_norm_([], 1.0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_norm_that_is_not_finite(value):
    for module in (torch.nn.utils, ft):
        params = model()
        params[0].grad[3, 4] = value
        before = [p.grad.clone() for p in params]
        with pytest.raises(RuntimeError, match=r"total norm of order 2.0 .*error_if_nonfinite=False") as caught:
            module.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
        assert module is not ft or isinstance(caught.value, errors.TensorNonFiniteError) or Host.shim is None
        for p, g in zip(params, before, strict=True):
            assert torch.equal(p.grad.nan_to_num(7.0), g.nan_to_num(7.0)) and p.grad._version <= 1
    alike_values = []
    for module in (torch.nn.utils, ft):
        params = model()
        params[0].grad[3, 4] = value
        alike_values.append((module.clip_grad_norm_(params, 1.0), [p.grad for p in params]))
    (norm, grads), (other, others) = alike_values
    torch.testing.assert_close(norm, other, equal_nan=True)
    for a, b in zip(grads, others, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@sees
def test_large_and_tiny_gradients_have_a_norm():
    """In float32 their squares are inf and 0."""
    p = torch.nn.Parameter(torch.zeros(4))
    for size in (1e30, 1e-30):
        p.grad = torch.full((4,), size)
        assert ft.clip_grad_norm_([p], math.inf).item() == pytest.approx(2 * size, rel=1e-6)


@sees
def test_a_thread_that_comes_while_another_clips(left):
    params = [model(seed=k, shapes=[(2_000_000,)]) for k in range(4)]
    found = [None] * 4

    def run(k):
        for _ in range(20):
            found[k] = ft.clip_grad_norm_(params[k], 1.0).item()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pytest.approx([1.0] * 4, rel=1e-5) and not left


def test_a_function_mode_sees_pytorchs_function():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Mode():
        ft.clip_grad_norm_(model(), 1.0)
    assert len(seen) > 3


def test_gradients_made_in_inference_mode_are_left_to_pytorch():
    for module in (torch.nn.utils, ft):
        params = model()
        with torch.inference_mode():
            params[0].grad = torch.ones(32, 32)
        with pytest.raises(RuntimeError, match="[Ii]nference"):
            module.clip_grad_norm_(params, 1.0)


def test_a_gradient_whose_sign_is_a_flag_is_left_to_pytorch():
    """Which has no way to write to it."""
    for module in (torch.nn.utils, ft):
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3, dtype=torch.complex64).conj().imag
        with pytest.raises(RuntimeError, match="negation"):
            module.clip_grad_norm_([p], 1.0)


def test_a_step_after_clipping_sees_the_clipped_gradients():
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([3.0, 0.0, 4.0])
    ft.clip_grad_norm_([p], 1.0)
    ft.SGD([p], lr=1.0).step()
    np.testing.assert_allclose(p.detach().numpy(), [-0.6, 0.0, -0.8], rtol=1e-5)


def test_a_compiled_training_step_calls_it_as_it_is():
    p = torch.nn.Parameter(torch.zeros(3))

    @torch.compile(backend="eager")
    def train():
        loss = (p * torch.tensor([3.0, 0.0, 4.0])).sum()
        loss.backward()
        return ft.clip_grad_norm_([p], 1.0)

    assert train().item() == 5.0
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.0, 0.8]))
