"""`reference.twin`: the double of a whole optimizer. The rules themselves are compared in test_bits.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import ALL, ALL_IDS, NUMBER_NAMES, build, frozen, same_bits, values

from fastopt import NAG, SGD, Adam, reference, schedules


def groups() -> list[dict[str, Any]]:
    """Groups of their own, an empty one among them, of all that arrays can be."""
    return [
        {"params": [values(), values((3, 4), seed=1).copy("F")]},
        {"params": []},
        {"params": [values((7,), np.float64, 2), values((), seed=3), values((0, 2), seed=4)], "lr": 0.25},
    ]


def grads(seed: int) -> list[np.ndarray]:
    return [values(p.shape, p.dtype, seed).copy("F" if p.ndim == 2 and p.flags.f_contiguous else "C")
            for group in groups() for p in group["params"]]  # fmt: skip


def slots(state: dict[str, Any]) -> Any:
    return frozen({name: value for name, value in state.items() if name not in NUMBER_NAMES})


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_twin_walks_beside_the_optimizer_from_wherever_it_stands(cls, convention):
    opt = build(cls, groups(), convention, lr=schedules.InverseTime(0.5, 0.25))
    twins = []
    for seed in range(6):
        if seed in (0, 3):
            twins.append(reference.twin(opt))
        g = grads(seed)
        if seed in (1, 4):
            g[1] = g[3] = None
        opt.step(g)
        for twin in twins:
            twin.step(g)
            assert same_bits(twin.params, opt.params), seed
            assert [slots(s) for s in twin.state] == [slots(s) for s in opt.state]
            assert [p.flags.f_contiguous for p in twin.params] == [p.flags.f_contiguous for p in opt.params]


def test_twin_shares_no_memory_with_the_optimizer():
    opt = Adam(groups())
    opt.step(grads(0))
    before = frozen([opt.params, opt.state, opt.steps])
    twin = reference.twin(opt)
    twin.step(grads(1))
    assert frozen([opt.params, opt.state, opt.steps]) == before
    assert not same_bits(twin.params, opt.params)


def test_twin_follows_edits_of_the_groups():
    opt = SGD([values()], 0.5, momentum=0.5)
    twin = reference.twin(opt)
    edits = [{}, {"lr": np.float32(0.1)}, {"lr": np.array(0.2), "momentum": 0.75}, {"maximize": True}]
    for seed, edit in enumerate(edits):
        opt.param_groups[0].update(edit)
        opt.step([values(seed=seed)])
        twin.step([values(seed=seed)])
        assert same_bits(twin.params, opt.params)


def test_lookahead_of_the_reference_is_that_of_the_optimizer():
    opt = NAG(values(), 0.1, 0.7)
    for seed in range(3):
        opt.step(values(seed=seed))
        want = reference.lookahead(opt.params[0], opt.state[0]["velocity"], np.float32(0.7))
        assert same_bits(opt.lookahead(), want)
