"""What ``steady.py`` measures: AdamW of each library, and the training loops that run between the steps.

As a script it is one worker: ``steady_worker.py LIBRARY CONDITION`` measures what it is told to, a line of JSON for
each turn, and answers with a line of JSON. ``steady_worker.py spin CORE`` keeps one core busy.

Nothing here imports a library before it is asked for: which of them loads OpenMP first decides how threads wait.
"""

import ctypes
import importlib.util
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import numpy as np

OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.01}
CORES = len(os.sched_getaffinity(0))
WARM_UP = 3          # steps of each turn that do not count
FEWEST = 5           # steps that count, also where time is up


def nothing():
    """Do nothing: what comes between the steps where no loop does, and before those that need no preparing."""


class Stepper(NamedTuple):
    """One optimizer with its parameters and gradients bound."""

    step: Callable[[], object]
    states: Callable[[], list[np.ndarray]]
    prepare: Callable[[], object] = nothing
    """What has to come before a step, outside the clock."""


def load_fastopt():
    import fastopt

    def make(params, grads, threads, optimizer="AdamW", **options):
        made = fastopt.OPTIMIZERS[optimizer](params, n_threads=threads, **options)

        def states():
            return [a for state in made.state for a in state.values() if np.ndim(a)]

        return Stepper(lambda: made.step(grads), states)

    return make


def load_torch():
    import torch

    def make(params, grads, threads, **options):
        tensors = [torch.from_numpy(p).requires_grad_() for p in params]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(g)
        made = torch.optim.AdamW(tensors, fused=True, **options)

        def states():
            return [a.numpy() for state in made.state.values() for a in state.values() if a.ndim]

        # Each time: between the steps, the training loop has used all cores.
        return Stepper(made.step, states, lambda: torch.set_num_threads(threads))

    return make


def load_numba():
    import jitted
    import numba

    def make(params, grads, threads, lr, betas, weight_decay, eps=1e-8):
        numba.set_num_threads(threads)
        loop, count = jitted.compiled(jitted.tuned, threads > 1), itertools.count(1)
        states = [(np.zeros_like(p), np.zeros_like(p)) for p in params]

        def step():
            t = float(next(count))
            for p, g, (m, v) in zip(params, grads, states, strict=True):
                loop(p, g, m, v, t, lr, *betas, eps, weight_decay)

        return Stepper(step, lambda: [a for pair in states for a in pair])

    for threads in range(1, min(CORES, 2) + 1):        # compiles, and loads the threading layer
        make([np.zeros(2, np.float32)], [np.zeros(2, np.float32)], threads, **OPTIONS).step()
    return make


LIBRARIES = {"fastopt": load_fastopt, "torch fused": load_torch, "Numba": load_numba}
MODULES = {"fastopt": "fastopt", "torch fused": "torch", "Numba": "numba"}
INSTALLED = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]

BATCH, WIDTHS = 256, (784, 256, 10)


def load_numpy_loop():
    """Forward and backward of a network with one hidden layer, as matrix products with BLAS's own threads."""
    rng = np.random.default_rng(2)
    x, w1, w2, y = (rng.standard_normal(shape, np.float32) for shape in (
        (BATCH, WIDTHS[0]), WIDTHS[:2], WIDTHS[1:], (BATCH, WIDTHS[2])))  # fmt: skip

    def iteration():
        h = np.maximum(x @ w1, 0)
        error = h @ w2 - y
        return x.T @ ((error @ w2.T) * (h > 0)), h.T @ error

    return iteration


def load_torch_loop():
    """The same in torch, with its threads on all cores."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(*WIDTHS[:2]), torch.nn.ReLU(), torch.nn.Linear(*WIDTHS[1:]))
    x, y = torch.randn(BATCH, WIDTHS[0]), torch.randn(BATCH, WIDTHS[2])

    def iteration():
        torch.set_num_threads(CORES)
        model.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()

    return iteration


def load_no_loop():
    return nothing


LOOPS = {
    "quiet": load_no_loop, "busy": load_no_loop, "numpy loop": load_numpy_loop,
    "torch loop": load_torch_loop, "torch loop, torch first": load_torch_loop,
}  # fmt: skip
CONDITIONS = tuple(LOOPS)


def arrays(shape, dtype, seed):
    """So many arrays of so many elements."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape[1], dtype) for _ in range(shape[0])]


def measure(stepper, loop, pause, steps, shortest, longest):
    """Nanoseconds of single steps: as many as asked for, in no less than `shortest` and about `longest` seconds.

    The loop comes between the pause and the step, as gradients come right before the step that uses them.
    """
    clock, times = time.perf_counter_ns, []
    start = clock()
    for turn in itertools.count():
        if pause:
            time.sleep(pause)
        loop()
        stepper.prepare()
        begin = clock()
        stepper.step()
        end = clock()
        if turn >= WARM_UP:
            times.append(end - begin)
        seconds = (end - start) / 1e9
        if len(times) >= FEWEST and (seconds > longest or (len(times) >= steps and seconds > shortest)):
            return times


def facts(order, loop):
    """What the figures of this process depend on; file names without their folders."""
    from threadpoolctl import threadpool_info

    ours = sys.modules.get("fastopt._openmp")
    pools = [(pool, os.path.join(*pool["filepath"].split(os.sep)[-2:])) for pool in threadpool_info()]
    return {
        "loaded": order,
        "versions": {name: metadata.version(name) for name in ("numpy", "torch", "numba") if name in sys.modules},
        "loop_ms": 1e3 * float(np.median([seconds(loop) for _ in range(20)])),
        "openmp": [file for pool, file in pools if pool["user_api"] == "openmp"],
        "blas": {file: pool["num_threads"] for pool, file in pools if pool["user_api"] == "blas"},
        "waiting": ours and ours.outcome,
    }


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def die_with_parent():
    """However it ends: nothing spins on, and nothing stays stopped. Ctrl-C ends this process without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)         # PR_SET_PDEATHSIG


def spin(core):
    os.sched_setaffinity(0, {core})
    print("spinning", flush=True)
    x = 0
    while True:
        x = (x * 5 + 1) & 0xFFFF


def work(library, condition):
    if condition == "torch loop, torch first":
        import torch  # noqa: F401
    make = LIBRARIES[library]()
    loop = LOOPS[condition]()
    # A dict keeps the order in which modules were first asked for.
    order = [name for name in sys.modules if name in MODULES.values()]
    print(json.dumps(facts(order, loop)), flush=True)
    held, stepper = None, None
    for line in sys.stdin:
        request = json.loads(line)
        shape, threads = request.pop("shape"), request.pop("threads")
        if held != (shape, threads):
            stepper = None                             # before the next is made: the largest hold much memory
            stepper = make(arrays(shape, np.float32, 0), arrays(shape, np.float32, 1), threads, **OPTIONS)
            held = shape, threads
        print(json.dumps(measure(stepper, loop, **request)), flush=True)


if __name__ == "__main__":
    die_with_parent()
    if sys.argv[1] == "spin":
        spin(int(sys.argv[2]))
    else:
        work(*sys.argv[1:])
