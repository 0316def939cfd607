"""SciPy's `minimize` with fastopt's Adam beside an Adam of NumPy, and the recipes beside their libraries' optimizers.

    python bench/clients/scipy_times.py [--json FILE]

One thread, in pairs, medians. What is not installed (pyribs, Flower, autograd) is left out. A step is timed within a
run of many, divided by their number. The first table is what a step costs over the function that is minimized: there
the least of 15 runs, since other work on the machine only adds.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]

from scipy.optimize import OptimizeResult, minimize  # noqa: E402
from timing import json_argument, pairs, report, row  # noqa: E402

import fastopt.scipy  # noqa: E402

Rows = list[dict[str, Any]]


def numpy_adam(fun, x0, args=(), *, jac, maxiter, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, **rest):
    """Adam as one writes it for `minimize`, with a bare loop around it."""
    x, m, v = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
    for t in range(1, maxiter + 1):
        g = jac(x, *args)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        x = x - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return OptimizeResult(x=x, fun=fun(x, *args), jac=jac(x, *args), nit=maxiter, success=True)


def constant(n: int):
    """A function that costs next to nothing."""
    gradient = np.full(n, 1e-3)
    return lambda x: (0.5, gradient)


def bowl(x):
    away = x - 1.0
    return float(away @ away), 2 * away


STEPS = {2: 5000, 10: 5000, 1000: 2000, 100_000: 100}


def overhead() -> None:
    """What a step costs, over calls of the function alone."""
    print("| over the function, a step of | without tol | with tol | with bounds and tol | of it `Adam.step` |")
    print("|---|---:|---:|---:|---:|")
    for n, steps in STEPS.items():
        fun, x0 = constant(n), np.ones(n)
        taken: dict[str, list[float]] = {"fun": [], "none": [], "tol": [], "bounds": [], "step": []}
        optimizer, g = fastopt.Adam(x0.copy(), lr=1e-3), fun(x0)[1]

        def bare(fun=fun, x0=x0, steps=steps):
            for _ in range(steps):
                fun(x0)

        def stepping(step=optimizer.step, g=g, steps=steps):
            for _ in range(steps):
                step(g)

        def ours(fun=fun, x0=x0, steps=steps, **given):
            minimize(fun, x0, jac=True, method=fastopt.scipy.Adam(lr=1e-3), options={"maxiter": steps}, **given)

        for _ in range(15):
            for name, call, given in (
                ("fun", bare, {}), ("none", ours, {}), ("tol", ours, {"tol": 1e-9}),
                ("bounds", ours, {"tol": 1e-9, "bounds": [(-9, 9)] * n}), ("step", stepping, {}),
            ):  # fmt: skip
                begin = perf_counter()
                call(**given)
                taken[name].append((perf_counter() - begin) / steps)
        base = min(taken["fun"])
        cells = [f"{(min(taken[name]) - base) * 1e6:.1f} µs" for name in ("none", "tol", "bounds")]
        print(f"| {n:,} | {' | '.join(cells)} | {min(taken['step']) * 1e6:.1f} µs |")
    print()


def against_numpy() -> Rows:
    rows = []
    for n, steps in STEPS.items():
        if n == 10:
            continue
        x0, options = np.zeros(n), {"maxiter": steps}

        def run(method, x0=x0, options=options):
            return minimize(bowl, x0, jac=True, method=method, options=options)

        stock, ours = pairs(lambda run=run: run(numpy_adam), lambda run=run: run(fastopt.scipy.Adam(lr=1e-3)), 9)
        rows.append(row("SciPy", f"a step and its function, {n:,} elements", stock / steps, ours / steps))
    return rows


def recipes() -> dict[str, dict[str, Any]]:
    """What the blocks of docs/clients/recipes.md define, where their library is installed."""
    from clients.test_recipes import names_of

    sections = {"pyribs": "ribs", "Flower": "flwr", "HIPS autograd": "autograd"}
    return {section: names_of(section) for section, module in sections.items() if find_spec(module)}


def pyribs(ours: type) -> Rows:
    from ribs.emitters.opt import AdamOpt

    rows = []
    for n, steps in ((10, 5000), (100_000, 100)):
        one, other = (cls(theta0=np.zeros(n), lr=1e-3) for cls in (AdamOpt, ours))
        gradient = np.random.default_rng(0).standard_normal(n)
        stock, fast = pairs(lambda: one.step(gradient), lambda: other.step(gradient), 9, steps)  # noqa: B023
        rows.append(row("pyribs", f"a step, {n:,} elements", stock, fast))
    return rows


def flower(ours: type) -> Rows:
    """The server's aggregation for two clients, as in the middle of a run."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAdam

    logging.getLogger("flwr").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    shapes = [(512, 512), (512,)] * 8
    given = {f"w{k}": rng.standard_normal(shape, np.float32) for k, shape in enumerate(shapes)}
    records = []
    for _ in range(2):
        trained = {name: array + rng.standard_normal(array.shape, np.float32) * 0.01 for name, array in given.items()}
        records.append(ArrayRecord({name: Array(array) for name, array in trained.items()}))
    replies = [
        SimpleNamespace(
            content=RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 10})}),
            has_error=lambda: False,
        )
        for record in records
    ]

    def aggregation(cls):
        strategy = cls()

        def run():
            strategy.current_arrays = {name: array.copy() for name, array in given.items()}
            strategy.aggregate_train(3, replies)

        return run

    stock, fast = pairs(aggregation(FedAdam), aggregation(ours), 9)
    return [row("Flower", f"aggregate_train, {sum(a.size for a in given.values()):,} elements", stock, fast)]


def autograd(ours: Any) -> Rows:
    import autograd as ag
    import autograd.numpy as anp
    from autograd.misc.optimizers import adam

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 64)), rng.standard_normal((32, 8))
    start = [rng.standard_normal((64, 32)) / 8, np.zeros(32), rng.standard_normal((32, 8)) / 8]

    def loss(params, i):
        w, b, u = params
        return anp.mean((anp.dot(anp.tanh(anp.dot(x, w) + b), u) - y) ** 2)

    grad = ag.grad(loss)
    stock, fast = pairs(lambda: adam(grad, start, num_iters=100), lambda: ours(grad, start, num_iters=100), 9)
    return [row("autograd", "an iteration of a small MLP", stock / 100, fast / 100)]


def main() -> None:
    path = json_argument()
    overhead()
    rows = against_numpy()
    found = recipes()
    if "pyribs" in found:
        rows += pyribs(found["pyribs"]["Adam"])
    if "Flower" in found:
        rows += flower(found["Flower"]["FastFedAdam"])
    if "HIPS autograd" in found:
        rows += autograd(found["HIPS autograd"]["adam"])
    report(rows, path)


if __name__ == "__main__":
    main()
