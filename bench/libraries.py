"""The libraries in the race: for a case, a function that takes one step, or None where a library has no such thing.

Every library is driven as its users drive it, with the arguments of fastopt's defaults under its own names, which
tests/peers translates. A stepper is a pair (prepare, step): what `prepare` returns is made outside the clock and is
what `step` is given; a prepare of None means that the step takes nothing.
"""

import functools
import importlib.util
import math
import os
from typing import NamedTuple

import numpy as np
import pytest

try:
    import torch as pytorch  # before fastopt: whoever loads libgomp first decides how all its threads wait
except ImportError:
    pytorch = None

from peers.oracles import CONSTRUCTORS, constructor, peer
from peers.oracles import Case as Named

import fastopt

THREADS = pytest.StashKey[int]()             # of pytest's configuration: with how many threads it runs
OPTIONS = {"AdamW": {"weight_decay": 0.01}}
LR = 1e-4
COLD_BYTES = 96 * 2**20
FUSED = ("SGD", "Momentum", "NAG", "Adagrad", "Adam", "AdamW")      # of torch's; the others have foreach=True
TORCH = {"Momentum": ("SGD", {"momentum": 0.9}), "NAG": ("SGD", {"momentum": 0.9, "nesterov": True})}
DEEPSPEED = {"Adam": ("adam", "DeepSpeedCPUAdam", {"adamw_mode": False}), "AdamW": ("adam", "DeepSpeedCPUAdam", {}),
             "Adagrad": ("adagrad", "DeepSpeedCPUAdagrad", {}), "Lion": ("lion", "DeepSpeedCPULion", {})}  # fmt: skip


class Case(NamedTuple):
    """What is stepped, and how."""

    optimizer: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    threads: int
    gradients: str = "same"
    """Of a step: the same arrays as before; fresh ones; or the same, and cold: nothing of it all is in a cache."""

    @property
    def fresh(self):
        return self.gradients == "fresh"

    @property
    def elements(self):
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def n_states(self):
        cls = fastopt.OPTIMIZERS[self.optimizer]
        return sum(np.ndim(array) > 0 for array in cls(np.zeros(1, np.float32), **self.options).state[0].values())

    @property
    def options(self):
        return {"lr": LR, **OPTIONS.get(self.optimizer, {})}

    @property
    def moved(self):
        """Bytes that a step reads and writes: the gradient once, the parameter and each state twice."""
        return self.elements * np.dtype(self.dtype).itemsize * (3 + 2 * self.n_states)

    @property
    def held(self):
        """Bytes that a library keeps, the gradients apart, which all share."""
        return self.elements * np.dtype(self.dtype).itemsize * (1 + self.n_states)

    def arrays(self, seed):
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(shape, self.dtype) for shape in self.shapes]


def copies(grads):
    return [g.copy() for g in grads]


@functools.cache
def other_memory():
    """As much as no cache holds: what a training step reads and writes between two steps of the optimizer."""
    return np.ones(COLD_BYTES // 8)


def turn(case, make, step):
    """The stepper of a case, from what makes the gradients of a step, and a step that takes them."""
    if case.gradients == "fresh":
        return make, step
    made = make()
    if case.gradients == "same":
        return None, functools.partial(step, made)

    def cool():
        other_memory().sum()
        return made

    return cool, step


def stepper(case, grads, step):
    """A step that takes a list of NumPy gradients."""
    return turn(case, lambda: copies(grads) if case.fresh else grads, step)


def ours(case, grads, threads=None):
    cls = fastopt.OPTIMIZERS[case.optimizer]
    return stepper(case, grads, cls(case.arrays(0), n_threads=threads or case.threads, **case.options).step)


def reference(case, grads):
    cls = fastopt.OPTIMIZERS[case.optimizer]
    if case.elements > 10_000_000:        # a second and more for a step
        return None
    return stepper(case, grads, fastopt.reference.twin(cls(case.arrays(0), n_threads=1, **case.options)).step)


def roofline(case, grads, threads=None):
    from roofline import Roofline

    line = Roofline(case.arrays(0), case.n_states)
    threads = threads or case.threads
    return turn(case, lambda: line.take(copies(grads) if case.fresh else grads), lambda _: line.step(threads))


def torch(case, grads, fused):
    name, more = TORCH.get(case.optimizer, (case.optimizer, {}))
    if fused != (case.optimizer in FUSED) or name not in pytorch.optim.__all__:
        return None
    params = [pytorch.from_numpy(p).requires_grad_() for p in case.arrays(0)]
    way = {"fused" if fused else "foreach": True}
    optimizer = getattr(pytorch.optim, name)(params, **way, **case.options, **more)
    return handing_over(case, grads, params, optimizer.step)


def drop_in(case, grads):
    """fastopt through the interface of torch's optimizers."""
    import fastopt.torch

    name, more = TORCH.get(case.optimizer, (case.optimizer, {}))
    if name not in fastopt.torch.__all__:
        return None
    params = [pytorch.from_numpy(p).requires_grad_() for p in case.arrays(0)]
    optimizer = getattr(fastopt.torch, name)(params, n_threads=case.threads, **case.options, **more)
    return handing_over(case, grads, params, optimizer.step)


def handing_over(case, grads, params, step):
    """torch's way: gradients are handed over by setting .grad, outside the clock."""

    def hand_over():
        for p, g in zip(params, grads, strict=True):
            p.grad = pytorch.from_numpy(g.copy() if case.fresh else g)

    return turn(case, hand_over, lambda _: step())


def deepspeed(case, grads):
    if case.optimizer not in DEEPSPEED or case.dtype != "float32":
        return None
    module, name, more = DEEPSPEED[case.optimizer]
    cls = getattr(importlib.import_module(f"deepspeed.ops.{module}"), name)
    params = [pytorch.from_numpy(p).requires_grad_() for p in case.arrays(0)]
    return handing_over(case, grads, params, cls(params, **case.options, **more).step)


def optax(case, grads):
    if case.optimizer not in CONSTRUCTORS["optax"] or (len(case.shapes) > 1 and case.optimizer != "AdamW"):
        return None                       # a thousand arrays take it seconds to compile
    import jax
    import optax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    name, arguments = peer(Named("optax", case.optimizer, case.options))
    transform = constructor("optax", name)(**arguments)
    values = [jax.numpy.array(p) for p in case.arrays(0)]
    held = [values, transform.init(values)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(values, state, grads):
        updates, state = transform.update(grads, state, values)
        return optax.apply_updates(values, updates), state

    def step(grads):
        held[:] = update(*held, grads)
        jax.block_until_ready(held)

    def prepare():
        return jax.block_until_ready([jax.numpy.array(g) for g in grads])

    return turn(case, prepare, step)


def numba(case, grads, tuned):
    """A jitted loop, called for one array after the other."""
    if case.optimizer != "AdamW":
        return None
    import jitted

    loop = jitted.compiled(jitted.tuned if tuned else jitted.plain, case.threads > 1)
    count, wd = 0.0, case.options["weight_decay"]
    arrays = [(p.ravel(), np.zeros(p.size, p.dtype), np.zeros(p.size, p.dtype)) for p in case.arrays(0)]

    def step(grads):
        nonlocal count
        count += 1
        for (p, m, v), g in zip(arrays, grads, strict=True):
            loop(p, g, m, v, count, LR, 0.9, 0.999, 1e-8, wd)

    return turn(case, lambda: [g.ravel() for g in (copies(grads) if case.fresh else grads)], step)


def thinc(case, grads):
    if case.optimizer not in CONSTRUCTORS["thinc"] or case.dtype != "float32" or case.threads > 1:
        return None
    name, arguments = peer(Named("thinc", case.optimizer, case.options))
    if case.optimizer == "AdamW":
        arguments["L2_is_weight_decay"] = True
    optimizer = constructor("thinc", name)(**arguments, grad_clip=0.0)
    params = case.arrays(0)

    def step(grads):
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            optimizer((k, "W"), p, g)

    def prepare():                        # always fresh: it multiplies the gradient by 0
        made = copies(grads)
        if case.gradients == "cold":
            other_memory().sum()
        return made

    return prepare, step


def sklearn(case, grads):
    if case.optimizer not in CONSTRUCTORS["sklearn"] or case.threads > 1:
        return None
    name, arguments = peer(Named("sklearn", case.optimizer, case.options))
    params = case.arrays(0)
    optimizer = constructor("sklearn", name)(params, **arguments)
    return stepper(case, grads, functools.partial(optimizer.update_params, params))


#: Name -> (module that must be there, the stepper's maker); the first is the one that all are compared with. Where
#: memory is short, the last ones are left out.
LIBRARIES = {
    "fastopt": ("fastopt", ours),
    "roofline": ("roofline", roofline),
    "fastopt.torch": ("torch", drop_in),
    "torch fused": ("torch", functools.partial(torch, fused=True)),
    "torch foreach": ("torch", functools.partial(torch, fused=False)),
    "Numba, tuned": ("numba", functools.partial(numba, tuned=True)),
    "DeepSpeed": ("deepspeed", deepspeed),
    "optax": ("optax", optax),
    "thinc": ("thinc", thinc),
    "scikit-learn": ("sklearn", sklearn),
    "Numba": ("numba", functools.partial(numba, tuned=False)),
    "NumPy reference": ("fastopt", reference),
}
ONE_THREAD = {
    "fastopt, one thread": functools.partial(ours, threads=1),
    "roofline, one thread": functools.partial(roofline, threads=1),
}


def room():
    """Bytes that the libraries of a case may take together."""
    return 0.6 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def steppers(case, names=tuple(LIBRARIES)):
    """Name -> stepper of every library that is installed and has this case."""
    grads = case.arrays(1)
    makers = {name: LIBRARIES[name][1] for name in names if importlib.util.find_spec(LIBRARIES[name][0])}
    if case.threads > 1:
        makers |= ONE_THREAD
    found = {}
    for name, make in makers.items():
        if (len(found) + 1) * case.held > room():
            continue
        made = make(case, grads)
        if made is not None:
            found[name] = made
    if pytorch and (n := pytorch.get_num_threads()) != case.threads:
        raise RuntimeError(f"torch would run on {n} threads, not {case.threads}: some other library has set that")
    return found


def use_threads(n):
    """Give every library so many threads; before those that read it at import are imported."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ["OMP_NUM_THREADS"] = str(n)             # DeepSpeed asks nothing else
    os.environ["NPROC"] = str(n)                       # XLA's pool
    os.environ["NUMBA_NUM_THREADS"] = str(n)           # Numba sets OpenMP's number for all others, too
    if n == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if pytorch:
        pytorch.set_num_threads(n)
