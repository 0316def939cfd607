"""fastopt.norm beside a plain read of the same bytes, and beside the norms of PyTorch and NumPy.

``make bench ARGS="-k norm"`` runs it alone. No table in docs/ is made from it: the figures are in the terminal
and in the file of results.
"""

import importlib.util
import math
from typing import NamedTuple

import numpy as np
import pytest

import fastopt

SHAPES = {"1×65,536": (65_536,), "1×160 MB": None, "1,000×100": 1_000 * (100,), "1,000×10,000": 1_000 * (10_000,)}
BYTES = 160 * 2**20


class Norm(NamedTuple):
    """What is summed, in the words of `libraries.Case`."""

    ord: float
    sizes: tuple[int, ...]
    dtype: str
    threads: int
    gradients: str = "same"

    @property
    def optimizer(self):
        return f"ord={self.ord:g}"

    @property
    def shapes(self):
        return self.sizes

    @property
    def elements(self):
        return sum(self.sizes)

    @property
    def moved(self):
        return self.elements * np.dtype(self.dtype).itemsize


def steppers(case):
    """Name -> stepper, as `libraries.steppers` has them."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n, case.dtype) for n in case.sizes]
    found = {"fastopt": lambda: fastopt.norm(arrays, case.ord, n_threads=case.threads)}
    if importlib.util.find_spec("roofline"):
        from roofline import Reading

        reading = Reading(arrays)
        found["roofline"] = lambda: reading.read(case.threads)
    if importlib.util.find_spec("torch"):
        import torch

        tensors = [torch.from_numpy(a) for a in arrays]
        # What clip_grad_norm_ calls: of one tensor vector_norm, of several torch._foreach_norm and a norm of norms.
        found["torch foreach"] = lambda: torch.nn.utils.get_total_norm(tensors, case.ord, foreach=True).item()
        found["fastopt, tensors"] = lambda: fastopt.norm(tensors, case.ord, n_threads=case.threads)
    found["NumPy"] = lambda: np.linalg.norm([np.linalg.norm(a, case.ord) for a in arrays], case.ord)
    right = found["fastopt"]()
    for name in found.keys() - {"roofline"}:
        assert abs(found[name]() / right - 1) < 1e-2, name
    return {name: (None, step) for name, step in found.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ord", [2, math.inf])
def test_norm(race, threads, ord, dtype, shape):
    sizes = SHAPES[shape] or (BYTES // np.dtype(dtype).itemsize,)
    case = Norm(ord, sizes, dtype, threads)
    race(case, steppers(case), suite="norm", shape=shape)
