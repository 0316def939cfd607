"""The whole step: gradients clipped by the norm of all, and AdamW; beside AdamW alone, and beside PyTorch's two calls.

``make bench ARGS="-k whole"`` runs it alone. No table in docs/ is made from it: the figures are in the terminal and in
the file of results. "fastopt" has a limit that binds, "loose" one that does not, and "plain" none.
"""

import importlib.util

import pytest
from libraries import Case

import fastopt

SHAPES = {
    "1×30,000": ((30_000,),), "1×1,000,000": ((1_000_000,),), "1,000×100": 1_000 * ((100,),),
    "1,000×10,000": 1_000 * ((10_000,),),
}  # fmt: skip
LIMITS = {"fastopt": 1.0, "fastopt, loose": 1e9, "fastopt, plain": None}


def steppers(case):
    """Name -> stepper, as `libraries.steppers` has them."""
    grads, found = case.arrays(1), {}
    for name, limit in LIMITS.items():
        opt = fastopt.AdamW(case.arrays(0), n_threads=case.threads, clip_norm=limit)
        found[name] = lambda opt=opt: opt.step(grads)
    if importlib.util.find_spec("torch"):
        import torch

        params = [torch.nn.Parameter(torch.from_numpy(p)) for p in case.arrays(0)]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g.copy())
        adamw = torch.optim.AdamW(params, fused=True)

        def clip_and_step():
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            adamw.step()

        found["torch foreach + fused"] = clip_and_step
        mine = fastopt.AdamW(case.arrays(0), n_threads=1, clip_norm=1.0)
        mine.step(grads)
        clip_and_step()
        for p, q in zip(mine.params, params, strict=True):
            assert abs(p - q.detach().numpy()).max() < 1e-5
    return {name: (None, step) for name, step in found.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole(race, threads, dtype, shape):
    race(case := Case("AdamW", SHAPES[shape], dtype, threads), steppers(case), suite="whole step", shape=shape)
