"""One optimizer step, float32, one thread: fastopt through its class, beside the NumPy reference and torch.

``make bench`` runs it; ``make bench ARGS=--benchmark-json=out.json`` keeps the figures, the race's under extra_info.
"""

import numpy as np
import pytest

import fastopt

try:
    import torch
except ImportError:
    torch = None

SIZES = [(1, 1_000), (1, 30_000), (1, 1_000_000), (1_000, 100), (1_000, 10_000)]
OPTIMIZERS = {
    "AdamW": (fastopt.AdamW, {"lr": 1e-3, "weight_decay": 0.01}, "AdamW"),
    "SGD momentum": (fastopt.SGD, {"lr": 1e-3, "momentum": 0.9}, "SGD"),
}


def arrays(count, size, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, np.float32) for _ in range(count)]


def stepper(step, grads, fresh):
    """A call of the step with the same gradient arrays; or a pair that makes new ones every time."""
    if fresh:
        return (lambda: [g.copy() for g in grads]), step
    return lambda: step(grads)


def torch_stepper(name, options, count, size, fresh):
    """The same through torch's fused step; gradients are handed over by setting .grad, outside the clock."""
    params = [torch.from_numpy(p).requires_grad_() for p in arrays(count, size, 0)]
    grads = [torch.from_numpy(g) for g in arrays(count, size, 1)]
    optimizer = getattr(torch.optim, name)(params, fused=True, **options)

    def hand_over():
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()

    hand_over()
    return (hand_over, lambda _: optimizer.step()) if fresh else optimizer.step


@pytest.mark.parametrize("gradients", ["same", "fresh"])
@pytest.mark.parametrize(("count", "size"), SIZES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step(race, optimizer, count, size, gradients):
    cls, options, torch_name = OPTIMIZERS[optimizer]
    fresh = gradients == "fresh"
    grads = arrays(count, size, 1)
    ours = cls(arrays(count, size, 0), n_threads=1, **options)
    twin = fastopt.reference.twin(cls(arrays(count, size, 0), **options))
    steps = {
        "fastopt": stepper(ours.step, grads, fresh),
        "NumPy reference": stepper(twin.step, grads, fresh),
    }
    if torch is not None:
        torch.set_num_threads(1)
        steps["torch fused"] = torch_stepper(torch_name, options, count, size, fresh)
    race(f"{optimizer} {count:,} x {size:,} {gradients} gradients", steps)
