"""How long scikit-learn's MLPs take to fit, with their own optimizers and with fastopt's.

    python bench/clients/sklearn_times.py [--json FILE]

One thread; whole fits to the digits of scikit-learn (1,797 × 64, ten classes), interleaved; medians. The second half of
the table has the optimizers alone, ``update_params``, and their share of a fit in processor time. What else a fit does
is scikit-learn's in both, so the first half cannot gain more than that share.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from sklearn import neural_network as stock
from sklearn.datasets import load_digits
from sklearn.neural_network import _stochastic_optimizers as stock_optimizers
from timing import json_argument, pairs, report, row

import fastopt.sklearn as ours

#: what -> options, type, epochs of a fit
CASES: dict[str, tuple[dict[str, Any], type, int]] = {
    f"{solver} {sizes}, batch {batch}, {dtype.__name__}": (
        {"solver": solver, "hidden_layer_sizes": sizes, "batch_size": batch}, dtype, epochs,
    )
    for solver in ("adam", "sgd")
    for sizes, batch, epochs in (((100,), 200, 30), ((100,), 32, 8), ((256, 256), 32, 3))
    for dtype in (np.float64, np.float32)
}  # fmt: skip


def fit(module: Any, options: dict[str, Any], dtype: type, epochs: int) -> Callable[[], Any]:
    """A fit of the classifier of scikit-learn or of fastopt."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(dtype)
    return lambda: module.MLPClassifier(**options, max_iter=epochs, random_state=0).fit(X, y)


@contextmanager
def watched(*classes: Any) -> Iterator[list[float]]:
    """The seconds of every call of ``update_params`` of these classes."""
    taken: list[float] = []
    before = {cls: cls.update_params for cls in classes}

    def watch(update: Callable[..., None]) -> Callable[..., None]:
        def timed(self: Any, params: Any, grads: Any) -> None:
            begin = process_time()
            update(self, params, grads)
            taken.append(process_time() - begin)

        return timed

    for cls, update in before.items():
        cls.update_params = watch(update)
    try:
        yield taken
    finally:
        for cls, update in before.items():
            cls.update_params = update


def shares(options: dict[str, Any], dtype: type, epochs: int) -> tuple[float, float, float]:
    """Seconds a step: scikit-learn's optimizer, fastopt's, and the rest."""
    own: tuple[list[float], list[float]] = [], []
    rest = []
    with watched(stock_optimizers.BaseOptimizer, ours.AdamOptimizer, ours.SGDOptimizer) as taken:
        for module, kept in (*zip((stock, ours), own, strict=True),) * 5:
            taken.clear()
            begin = process_time()
            fit(module, options, dtype, epochs)()
            rest.append((process_time() - begin - sum(taken)) / len(taken))
            kept.append(median(taken))
    return median(own[0]), median(own[1]), median(rest)


def main() -> None:
    warnings.simplefilter("ignore")  # of fits that end before they converge
    path = json_argument()
    rows = []
    for what, (options, dtype, epochs) in CASES.items():
        rows.append(row("scikit-learn", f"fit {what}", *pairs(fit(stock, options, dtype, epochs),
                                                              fit(ours, options, dtype, epochs))))  # fmt: skip
    for what, (options, dtype, epochs) in CASES.items():
        before, after, rest = shares(options, dtype, epochs)
        share = f"{100 * before / (before + rest):.0f} → {100 * after / (after + rest):.0f} % of a fit"
        rows.append(row("scikit-learn", f"step {what}, {share}", before, after))
    report(rows, path)


if __name__ == "__main__":
    main()
