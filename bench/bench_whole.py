"""The whole step: clipping by norm, AdamW, the average of the weights, and gradients of zero; and clipping alone.

``make bench ARGS="-k whole"`` runs it alone. Beside fastopt's one call stand PyTorch's four, each in its fastest form,
and a roofline that only reads and writes the same arrays in the same two passes. Before each step, outside the clock,
the gradients are written anew for every library alike, as backpropagation does: the step leaves zeros, on which the
averages would fade into subnormal numbers.

Of clipping alone, "fastopt" has a limit that binds, "loose" one that does not, and "plain" none.
"""

import functools
import gc
import importlib.util

import numpy as np
import pytest
from bench_step import SHAPES
from libraries import LR, Case, room

import fastopt

LIMIT, DECAY = 1.0, 0.999
WHOLE = ("1×30,000", "1,000×100", "1×1,000,000", "1,000×10,000", "ResNet-50", "GPT-2-small", "1×50,000,000")
CLIPPED = ("1×30,000", "1,000×100", "1×1,000,000", "1,000×10,000")
LIMITS = {"fastopt": LIMIT, "fastopt, loose": 1e9, "fastopt, plain": None}


class Whole(Case):
    """A case of the whole step."""

    __slots__ = ()

    @property
    def moved(self):
        """Bytes: the gradient is read twice and written once; parameter, averages and average are read and written."""
        return self.elements * np.dtype(self.dtype).itemsize * (3 + 2 * (self.n_states + 2))

    @property
    def held(self):
        return self.elements * np.dtype(self.dtype).itemsize * (self.n_states + 2)


class Libraries:
    """Makes the steps of a case, over gradients that all of them share."""

    def __init__(self, case):
        self.case, self.source = case, case.arrays(1)
        self.grads = [np.empty_like(g) for g in self.source]
        self.params = {}                      # name -> the arrays that a library steps

    def refill(self):
        for g, source in zip(self.grads, self.source, strict=True):
            np.copyto(g, source)

    def arrays(self, name):
        self.params[name] = self.case.arrays(0)
        return self.params[name]

    def tensors(self, name):
        import torch

        params = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.arrays(name)]
        for p, g in zip(params, self.grads, strict=True):
            p.grad = torch.from_numpy(g)
        return params

    def ours(self, name, threads):
        opt = one_call(fastopt.AdamW, self.arrays(name), self.case, threads)
        return lambda _: opt.step(self.grads)

    def drop_in(self, name, threads):
        import fastopt.torch

        opt = one_call(fastopt.torch.AdamW, self.tensors(name), self.case, threads)
        return lambda _: opt.step()

    def torch(self, name, threads):
        import torch

        params = self.tensors(name)
        opt = torch.optim.AdamW(params, **self.case.options, fused=True)
        values = [p.detach() for p in params]
        averages = [p.clone() for p in values]
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY)

        def step(_):
            torch.nn.utils.clip_grad_norm_(params, LIMIT, foreach=True)
            opt.step()
            average(averages, values, 1)
            opt.zero_grad(set_to_none=False)

        return step

    def roofline(self, name, threads):
        from roofline import Roofline

        line = Roofline(self.case.arrays(0), self.case.n_states + 1)
        line.take(self.grads)
        return lambda _: line.whole_step(threads)


def one_call(cls, params, case, threads):
    return cls(params, n_threads=threads, clip_norm=LIMIT, ema_decay=DECAY, zero_grads=True, **case.options)


def whole_steppers(case):
    """Name -> stepper, as `libraries.steppers` has them; all that have parameters came to the same ones."""
    made = Libraries(case)
    makers = {"fastopt": ("fastopt", made.ours), "roofline": ("roofline", made.roofline),
              "fastopt.torch": ("torch", made.drop_in), "torch foreach + fused": ("torch", made.torch)}  # fmt: skip
    if case.threads > 1:
        makers |= {f"{name}, one thread": makers[name] for name in ("fastopt", "roofline")}
    found = {}
    for name, (module, make) in makers.items():
        if importlib.util.find_spec(module) and (len(found) + 1) * case.held < room():
            step = make(name, 1 if name.endswith("one thread") else case.threads)
            made.refill()
            step(None)
            assert not any(g.any() for g in made.grads), name
            found[name] = (made.refill, step)
    for name, params in made.params.items():
        for p, q in zip(params, made.params["fastopt"], strict=True):
            assert abs(p - q).max() < 0.01 * LR, name
    return found


@pytest.mark.parametrize("shape", WHOLE)
def test_whole(race, threads, shape):
    case = Whole("AdamW", SHAPES[shape], "float32", threads)
    race(case, whole_steppers(case), suite="whole", shape=shape)
    gc.collect()          # the largest hold gigabytes


@pytest.mark.parametrize("shape", CLIPPED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_of_the_whole(race, threads, dtype, shape):
    case = Case("AdamW", SHAPES[shape], dtype, threads)
    grads, found = case.arrays(1), {}
    for name, limit in LIMITS.items():
        opt = fastopt.AdamW(case.arrays(0), n_threads=case.threads, clip_norm=limit, **case.options)
        found[name] = (None, functools.partial(opt.step, grads))
    race(case, found, suite="clip", shape=shape)
