"""State dicts of the real bitsandbytes and torchao 8-bit optimizers, loaded here, and those made for them here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastopt
from fastopt import StateDictError
from fastopt._quantized import BITSANDBYTES_SLOTS, decode_bitsandbytes, decode_torchao

SHAPES = [(40, 128), (7, 5), (4103,)]
NAMES = {
    "Adam": ("Adam8bit", {"weight_decay": 0.125}), "AdamW": ("AdamW8bit", {"weight_decay": 0.125}),
    "Lion": ("Lion8bit", {"weight_decay": 0.125}), "RMSprop": ("RMSprop8bit", {}), "Adagrad": ("Adagrad8bit", {}),
    "SGD": ("SGD8bit", {"momentum": 0.875, "weight_decay": 0.125}),
}  # fmt: skip
LR = 2.0**-6


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes", exc_type=ImportError)


@pytest.fixture(scope="module")
def ao():
    return pytest.importorskip("torchao.optim", exc_type=ImportError)


def gradients(k):
    rng = np.random.default_rng(k)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def train(optimizer, params, steps):
    for k in steps:
        for p, g in zip(params, gradients(k), strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()


def parameters():
    return [torch.nn.Parameter(torch.from_numpy(p)) for p in gradients(99)]


def near(mine, theirs, by=2e-6):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=0, atol=by)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_bitsandbytes_goes_on_here_and_back(bnb, name, tally):
    kind, options = NAMES[name]
    params = parameters()
    theirs = getattr(bnb.optim, kind)(params, lr=LR, **options)
    train(theirs, params, range(3))
    saved = theirs.state_dict()
    arrays = [p.detach().numpy().copy() for p in params]
    mine = getattr(fastopt, name)(arrays, lr=1.0)
    with pytest.raises(StateDictError, match="8 bits of bitsandbytes.*lossy"):
        mine.load_state_dict(saved)
    mine.load_state_dict(saved, convert="lossy")
    slots = BITSANDBYTES_SLOTS[name]
    for i, entry in enumerate(mine.state):
        for slot, want in decode_bitsandbytes(saved["state"][i], slots).items():
            assert (entry[slot] == want).all() and entry["step" if "step" in entry else slot] is not None
    assert mine.param_groups[0]["lr"] == LR and mine.steps == 3
    # What follows is one step of the same formula: theirs decodes the same numbers.
    mine.step(gradients(3))
    train(theirs, params, [3])
    near(arrays, params)

    there = mine.export_state_dict("bitsandbytes", convert="lossy")
    others = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in arrays]
    again = getattr(bnb.optim, kind)(others, lr=1.0, **{**options, "weight_decay": 0.0})
    again.load_state_dict(there)
    group, own = again.param_groups[0], theirs.param_groups[0]
    assert {key: group[key] for key in own if key != "params"} == {key: own[key] for key in own if key != "params"}
    back = getattr(fastopt, name)([p.copy() for p in arrays], lr=1.0)
    back.load_state_dict(again.state_dict(), convert="lossy")
    mine.load_state_dict(there, convert="lossy")  # it has been rounded once
    for p in (mine, back):
        p.step(gradients(4))
    train(again, others, [4])
    assert all((a == b).all() for a, b in zip(mine.params, back.params, strict=True))
    near(arrays, others)
    tally("state dicts exchanged with bitsandbytes", 3)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_run_of_torchao_goes_on_here_and_back(ao, name, tally, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    params = parameters()
    theirs = getattr(ao, name + "8bit")(params, lr=LR, weight_decay=0.125)
    train(theirs, params, range(3))
    saved = theirs.state_dict()
    arrays = [p.detach().numpy().copy() for p in params]
    mine = getattr(fastopt, name)(arrays, lr=1.0)
    with pytest.raises(StateDictError, match="8 bits of torchao.*lossy"):
        mine.load_state_dict(saved)
    mine.load_state_dict(saved, convert="lossy")
    for slot in ("exp_avg", "exp_avg_sq"):
        assert (mine.state[0][slot] == decode_torchao(saved["state"][0][slot])).all()
        assert (mine.state[2][slot] == saved["state"][2][slot].numpy()).all()
    assert mine.param_groups[0]["amsgrad"] is False and mine.steps == 3
    mine.step(gradients(3))
    train(theirs, params, [3])
    near(arrays, params)

    there = mine.export_state_dict("torchao", convert="lossy")
    others = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in arrays]
    again = getattr(ao, name + "8bit")(others)
    again.load_state_dict(there)
    assert float(again.param_groups[0]["lr"]) == LR and again.param_groups[0]["weight_decay"] == 0.125
    mine.load_state_dict(again.state_dict(), convert="lossy")
    mine.step(gradients(4))
    train(again, others, [4])
    near(arrays, others)
    tally("state dicts exchanged with torchao", 2)


def test_the_maximum_of_amsgrad_goes_to_torchao_and_back(ao):
    """Their step of it needs torch.compile, and takes minutes."""
    mine = fastopt.Adam(gradients(99), lr=LR, amsgrad=True)
    for k in range(3):
        mine.step(gradients(k))
    there = mine.export_state_dict("torchao", convert="lossy")
    theirs = ao.Adam8bit(parameters(), amsgrad=True)
    theirs.load_state_dict(there)
    back = fastopt.Adam(mine.params, lr=1.0)
    back.load_state_dict(theirs.state_dict(), convert="lossy")
    assert back.param_groups[0]["amsgrad"] is True
    for i, entry in enumerate(back.state):
        for slot in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            size = np.abs(mine.state[i][slot]).max()
            np.testing.assert_allclose(entry[slot], mine.state[i][slot], rtol=0, atol=size / 64 if i == 0 else 0)


@pytest.mark.parametrize("name", NAMES)
def test_state_of_bitsandbytes_is_taken_into_8_bits_here(bnb, name):
    kind, options = NAMES[name]
    params = parameters()
    theirs = getattr(bnb.optim, kind)(params, lr=LR, **options)
    train(theirs, params, range(3))
    more = {"momentum": 0.5} if name == "SGD" else {}
    arrays = [p.detach().numpy().copy() for p in params]
    mine = getattr(fastopt, name)(arrays, lr=1.0, state_dtype="8bit", **more)
    mine.load_state_dict(theirs.state_dict(), convert="lossy")
    assert all(mine.state[0][slot].dtype == np.uint8 for slot in BITSANDBYTES_SLOTS[name])
    mine.step(gradients(3))
    train(theirs, params, [3])
    near(mine.params, params, by=3 * LR)
