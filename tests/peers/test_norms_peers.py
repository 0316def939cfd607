"""`fastopt.norm` beside the norms of other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastopt

SHAPES = [(3000,), (40, 70), (), (0,), (1,), (5, 6, 7)]


def tensors(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


@pytest.mark.parametrize("ord", [2, math.inf])
def test_norms_of_float64_are_pytorchs_and_numpys(ord):
    for seed in range(20):
        xs = tensors(torch.float64, seed)
        for x in xs[:3] + xs[4:]:
            want = torch.linalg.vector_norm(x, ord).item()
            assert fastopt.norm(x, ord) == pytest.approx(want, rel=1e-12)
            assert fastopt.norm(x.numpy(), ord) == pytest.approx(np.linalg.norm(x.numpy().ravel(), ord), rel=1e-12)
        want = torch.nn.utils.get_total_norm([x for x in xs if x.numel()], ord).item()
        assert fastopt.norm(xs, ord) == pytest.approx(want, rel=1e-12)


def test_norms_of_float32_are_pytorchs_up_to_its_rounding():
    xs = tensors(torch.float32)
    assert fastopt.norm(xs) == pytest.approx(torch.nn.utils.get_total_norm(xs).item(), rel=1e-6)
    assert fastopt.norm(xs, math.inf) == max(x.abs().max().item() for x in xs if x.numel())
    wide = [x.double() for x in xs]
    assert fastopt.norm(xs) == pytest.approx(torch.nn.utils.get_total_norm(wide).item(), rel=1e-15)


def test_norms_of_float64_are_optaxs():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    with jax.enable_x64(True):
        xs = [jax.numpy.asarray(x.numpy()) for x in tensors(torch.float64)]
        assert fastopt.norm(xs) == pytest.approx(float(optax.tree.norm(xs)), rel=1e-12)


def test_pytorchs_norms_of_large_float32_tensors_are_off_as_the_documentation_says():
    """PyTorch issue 68326. If this fails, they have been mended: change the docstring of `fastopt.norm`."""
    x = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    right = torch.linalg.vector_norm(x.double()).item()
    assert fastopt.norm(x) == pytest.approx(right, rel=1e-12)
    assert 1e-5 < abs(torch.linalg.vector_norm(x).item() / right - 1) < 1e-2
    assert abs(float(np.linalg.norm(x.numpy())) / right - 1) > 1e-7
    huge = torch.full((3,), 1e20)
    with np.errstate(over="ignore"):
        assert torch.linalg.vector_norm(huge).item() == np.linalg.norm(huge.numpy()) == math.inf
    assert fastopt.norm(huge) == pytest.approx(math.sqrt(3) * 1e20)
