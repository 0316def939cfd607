"""Mirrors in fastopt.torch: copies of parameters in bfloat16 or float16, written in the pass of the step."""

from __future__ import annotations

import copy
import pickle

import pytest

pytest.importorskip("torch.nn", reason="these are mirrors of torch's parameters")

import torch
from torch import nn

import fastopt.torch
from fastopt.errors import (
    FastoptError,
    InferenceModeError,
    OverlapError,
    ParameterError,
    TensorDTypeError,
    TensorKindError,
    TensorLayoutError,
    TensorShapeError,
)

SIZES = ((), (0,), (3,), (17, 15), (70, 70))
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(size).to(dtype)) for size in SIZES]


def give_gradients(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.randn(p.shape).to(p.dtype)


def agree(mirrors: list[torch.Tensor | None], params: list[nn.Parameter]) -> bool:
    """Whether every mirror is its parameter, rounded to the nearest."""
    pairs = zip(mirrors, params, strict=True)
    return all(m is None or torch.equal(m.detach(), p.detach().to(m.dtype)) for m, p in pairs)


def other_bits(mirrors: list[torch.Tensor]) -> None:
    for m in mirrors:
        m.data.fill_(77.0)


@half
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Rprop"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0, "ema_decay": 0.9, "zero_grads": True}, {"split": True}],
                         ids=["plain", "around", "split"])  # fmt: skip
def test_a_step_writes_mirrors(name, dtype, options):
    params = parameters(torch.bfloat16 if "split" in options else torch.float32)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    mirrors = [nn.Parameter(torch.zeros(p.shape, dtype=dtype)) for p in params]  # of a model that computes in it
    opt = getattr(fastopt.torch, name)(params, lr=0.1, mirrors=mirrors, **options)
    plain = getattr(fastopt.torch, name)(twins, lr=0.1, **options)
    assert agree(mirrors, params)  # they are written when they are given
    for _ in range(3):
        give_gradients(params)
        for p, q in zip(params, twins, strict=True):
            q.grad = p.grad.clone()
        other_bits(mirrors)
        versions = [m._version for m in mirrors]
        opt.step()
        plain.step()
        assert [m._version for m in mirrors] == [v + 1 for v in versions]
        assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
        if "split" not in options or dtype == torch.bfloat16:
            pairs = zip(mirrors, params, strict=True)
            assert max((m.float() - p.float()).abs().max() if p.numel() else 0 for m, p in pairs) < 0.02
        if "split" not in options:  # of that the mirror is of the whole float32
            assert agree(mirrors, params)


def test_none_for_none_and_none_for_all():
    params = parameters()
    mirrors = [None, None, torch.zeros(3, dtype=torch.bfloat16), None, None]
    opt = fastopt.torch.AdamW(params, mirrors=mirrors)
    give_gradients(params)
    opt.step()
    assert agree(mirrors, params)
    assert opt.mirrors == mirrors
    opt.mirrors = None
    other_bits([mirrors[2]])
    give_gradients(params)
    opt.step()
    assert opt.mirrors == [None] * 5
    assert (mirrors[2] == 77).all()


def test_a_parameter_without_a_gradient_and_a_skipped_step_leave_them():
    params = parameters()
    mirrors = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in params]
    opt = fastopt.torch.AdamW(params, mirrors=mirrors)
    give_gradients(params)
    params[3].grad = None
    other_bits(mirrors)
    opt.step()
    assert (mirrors[3] == 77).all()
    assert torch.equal(mirrors[4], params[4].detach().bfloat16())
    other_bits(mirrors)
    opt.found_inf = torch.tensor(1.0)
    opt.step()
    assert all((m == 77).all() for m in mirrors)


def test_averages_are_mirrored_while_they_stand_in():
    params = parameters()
    mirrors = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in params]
    opt = fastopt.torch.AdamW(params, lr=0.1, ema_decay=0.5, mirrors=mirrors)
    for _ in range(3):
        give_gradients(params)
        opt.step()
    averages = [a.clone() for a in opt.averages]
    with opt.averaged():
        assert all(torch.equal(m, a.bfloat16()) for m, a in zip(mirrors, averages, strict=True))
        with pytest.raises(FastoptError, match="averaged"):
            opt.mirrors = None
    assert agree(mirrors, params)


def test_a_mirror_with_other_memory_is_found():
    params = parameters()
    mirrors = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in params]
    opt = fastopt.torch.AdamW(params, mirrors=mirrors)
    for _ in range(3):
        give_gradients(params)
        opt.step()
        mirrors[4].data = torch.zeros(70, 70, dtype=torch.bfloat16)
    give_gradients(params)
    opt.step()
    assert agree(mirrors, params)
    before = [p.detach().clone() for p in params]
    mirrors[4].data = torch.zeros(70, dtype=torch.bfloat16)
    give_gradients(params)
    with pytest.raises(TensorShapeError, match=r"mirror of parameter 4 has shape \(70,\)"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_parameters_that_are_left_to_pytorch_are_mirrored():
    params = [nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(9).half())]
    mirrors = [torch.zeros(9, dtype=torch.bfloat16) for _ in params]
    opt = fastopt.torch.SGD(params, lr=0.1, fallback="silent", mirrors=mirrors)
    give_gradients(params)
    opt.step()
    assert agree(mirrors, params)


def pickled(opt: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return pickle.loads(pickle.dumps(opt))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_of_the_optimizer_have_copies_of_them(duplicate):
    params = parameters()
    mirrors = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in params]
    opt = fastopt.torch.AdamW(params, mirrors=mirrors)
    give_gradients(params)
    opt.step()
    other = duplicate(opt)
    own = other.param_groups[0]["params"]
    other_bits(mirrors)
    give_gradients(own)
    other.step()
    assert agree(other.mirrors, own)
    assert all((m == 77).all() for m in mirrors)
    assert "mirrors" not in other.state_dict()["param_groups"][0]


def test_several_groups():
    params = parameters()
    mirrors = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in params]
    opt = fastopt.torch.AdamW([{"params": params[:2], "lr": 0.5}, {"params": params[2:]}], mirrors=mirrors)
    give_gradients(params)
    opt.step()
    assert agree(mirrors, params)
    extra = nn.Parameter(torch.randn(4))
    opt.add_param_group({"params": [extra]})  # it has none until they are set again
    assert opt.mirrors == [*mirrors, None]
    opt.mirrors = [*mirrors, torch.zeros(4, dtype=torch.float16)]
    give_gradients([*params, extra])
    opt.step()
    assert agree(opt.mirrors, [*params, extra])


def base() -> torch.Tensor:
    return torch.zeros(40, dtype=torch.bfloat16)


WRONG = {
    "of another type": (lambda: torch.zeros(4, 5), TensorDTypeError, "mirror of parameter 0 has dtype torch.float32"),
    "of another shape": (lambda: base()[:19], TensorShapeError, r"mirror of parameter 0 has shape \(19,\)"),
    "of another order": (lambda: base()[:20].view(5, 4).t(), TensorLayoutError, "mirror of parameter 0 has strides"),
    "with gaps": (lambda: base().view(4, 10)[:, :5], TensorLayoutError, "mirror of parameter 0 has strides"),
    "no tensor": (lambda: [0.0], TensorKindError, "mirror of parameter 0 is a list"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_a_mirror_is_refused(wrong):
    make, error, match = WRONG[wrong]
    p = nn.Parameter(torch.randn(4, 5))
    with pytest.raises(error, match=match):
        fastopt.torch.AdamW([p], mirrors=[make()])


def test_mirrors_that_share_memory_are_refused():
    params = [nn.Parameter(torch.randn(20)), nn.Parameter(torch.randn(20))]
    same = base()
    for mirrors in ([same[:20], same[:20]], [same[:20], same[10:30]]):
        with pytest.raises(OverlapError, match="mirror of parameter 0 overlaps mirror of parameter 1"):
            fastopt.torch.AdamW(params, mirrors=mirrors)
    inside = params[1].detach().view(torch.bfloat16)[:20]
    with pytest.raises(OverlapError, match="parameter 1"):
        fastopt.torch.AdamW(params, mirrors=[inside, None])
    for mirrors in ([], [None], 3 * [None]):
        with pytest.raises(ParameterError, match=f"{len(mirrors)} mirrors for 2 parameters"):
            fastopt.torch.AdamW(params, mirrors=mirrors)


def test_mirrors_of_float64_are_refused():
    with pytest.raises(TensorDTypeError, match="parameter 0 has dtype torch.float64; mirrors are for float32"):
        fastopt.torch.AdamW([nn.Parameter(torch.zeros(3).double())], mirrors=[torch.zeros(3, dtype=torch.bfloat16)])


def test_a_gradient_over_a_mirror_is_refused():
    p = nn.Parameter(torch.randn(20))
    mirror = base()[:20]
    opt = fastopt.torch.AdamW([p], mirrors=[mirror])
    p.grad = torch.randn(20)
    opt.step()
    p.grad = None
    p.grad_dtype = torch.bfloat16
    p.grad = mirror.detach()
    before = p.detach().clone()
    with pytest.raises(OverlapError, match="mirror"):
        opt.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("damage", ["freed", "another shape"])
def test_a_mirror_that_no_longer_fits_what_is_left_to_pytorch_stops_the_step(damage):
    params = [nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(9).half())]
    mirrors = [torch.zeros(9, dtype=torch.bfloat16) for _ in params]
    opt = fastopt.torch.SGD(params, lr=0.1, fallback="silent", mirrors=mirrors)
    give_gradients(params)
    opt.step()
    if damage == "freed":
        mirrors[1].untyped_storage().resize_(0)  # to write there would end the process
    else:
        mirrors[1].data = torch.zeros(3, dtype=torch.bfloat16)
    before = [p.detach().clone() for p in params]
    with pytest.raises(FastoptError, match="mirror of parameter 1"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_a_mirror_of_inference_mode_is_refused_and_changes_nothing():
    p = nn.Parameter(torch.randn(5))
    with torch.inference_mode():
        mirror = torch.zeros(5, dtype=torch.bfloat16)
    opt = fastopt.torch.AdamW([p])
    with pytest.raises(InferenceModeError, match="mirror of parameter 0 is an inference tensor"):
        opt.mirrors = [mirror]
    assert opt.mirrors == [None]


def test_a_parameter_with_gaps_has_no_mirror():
    p = nn.Parameter(torch.zeros(4, 8)[:, :3])
    with pytest.raises(TensorLayoutError, match="parameter 0 has gaps between its elements, and can have no mirror"):
        fastopt.torch.AdamW([p], mirrors=[torch.zeros(4, 3, dtype=torch.bfloat16)])
