"""`fastopt.torch` with state of every kind: the toy class of tests/test_slots.py over tensors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_slots import ARRAYS, SHAPES, Toy, some

from fastopt import errors
from fastopt.torch import _Compiled


class Twin(torch.optim.Optimizer):
    """The constructor that PyTorch would have."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9, *, maximize: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "maximize": maximize})

    def step(self, closure: Any = None) -> None:
        raise AssertionError("the compiled step takes all of these")


class TorchToy(_Compiled, Twin):
    core = Toy


def made(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[torch.nn.Parameter], TorchToy]:
    params = [torch.nn.Parameter(torch.from_numpy(x).to(dtype)) for x in some(seed)]
    return params, TorchToy(params, fallback="error")


def step(params: list[torch.nn.Parameter], opt: TorchToy, seed: int) -> None:
    for p, g in zip(params, some(seed), strict=True):
        p.grad = torch.from_numpy(g).to(p.dtype)
    opt.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_has_the_shape_and_type_that_its_slot_says(dtype):
    params, opt = made(dtype)
    with torch.no_grad():
        for p in params:
            p += 1.0
    before = [p.detach().clone() for p in params]
    arrays = Toy([p.numpy().copy() for p in before])
    step(params, opt, 1)
    arrays.step([p.grad.numpy() for p in params])
    for p, (row, column), mine in zip(params, SHAPES.values(), arrays.state, strict=True):
        state = opt.state[p]
        assert list(state) == ["step", "begun", "kept", *ARRAYS]
        assert [tuple(state[name].shape) for name in ARRAYS] == [tuple(p.shape), row, column, (1,)]
        assert [state[name].dtype for name in ARRAYS] == [dtype, dtype, torch.float64, torch.float32]
        assert all(state[name].numpy().tobytes() == mine[name].tobytes() for name in ARRAYS)
        assert (float(state["begun"]), float(state["kept"])) == (1.0, 0.5)
    assert all(p.detach().numpy().tobytes() == w.tobytes() for p, w in zip(params, arrays.params, strict=True))


def test_a_state_dict_is_loaded_and_continues_to_the_bit():
    params, opt = made()
    for seed in (1, 2):
        step(params, opt, seed)
    for state in opt.state.values():
        state["per_column"].fill_(1 / 3)  # no float32: PyTorch would cast it to one
        state["per_row"].fill_(7.0)
    saved = copy.deepcopy(opt.state_dict())
    others, other = made(seed=9)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load_state_dict(saved)
    for k in range(2):
        step(params, opt, 20 + k)
        step(others, other, 20 + k)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        for name, value in opt.state[p].items():
            assert other.state[q][name].dtype == value.dtype and torch.equal(other.state[q][name], value), name


def test_arrays_and_tensors_exchange_their_state():
    params, opt = made()
    arrays = Toy([p.detach().numpy().copy() for p in params])
    for seed in (1, 2):
        step(params, opt, seed)
        arrays.step(some(seed))
    again = Toy([p.detach().numpy().copy() for p in params])
    again.load_state_dict(opt.state_dict())
    others, other = made()
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load_state_dict(arrays.state_dict())
    for seed in (3, 4):
        step(params, opt, seed)
        step(others, other, seed)
        arrays.step(some(seed))
        again.step(some(seed))
    for p, q, a, b in zip(params, others, arrays.params, again.params, strict=True):
        assert p.detach().numpy().tobytes() == q.detach().numpy().tobytes() == a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["per_row", "per_column", "alone"])
def test_state_of_another_shape_is_refused(name):
    params, opt = made()
    step(params, opt, 1)
    opt.state[params[0]][name] = torch.zeros(9)
    before = [p.detach().clone() for p in params]
    with pytest.raises(errors.TensorStateError, match=f"{name}.* is needed"):
        step(params, opt, 2)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    saved = copy.deepcopy(made()[1].state_dict())
    saved["state"] = {0: {**opt.state[params[0]]}}
    saved["state"][0]["per_column"] = torch.zeros(4, dtype=torch.float64) if name != "per_column" else torch.zeros(9)
    with pytest.raises(errors.TensorStateError, match=name):
        made()[1].load_state_dict(saved)


def test_a_state_tensor_that_is_exchanged_is_seen():
    params, opt = made()
    step(params, opt, 1)
    opt.state[params[0]]["per_row"] = torch.full((3,), 4.0)
    step(params, opt, 2)
    assert (opt.state[params[0]]["per_row"] == 4).all()
    assert np.isfinite(params[0].detach().numpy()).all()
