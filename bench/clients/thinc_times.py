"""One step of thinc's Adam beside that of fastopt.thinc, and trainings in spaCy, if it is installed.

    python bench/clients/thinc_times.py [--json FILE]

One thread, in pairs, medians. A step clips, averages and zeroes, as is thinc's default. Gradients are filled again
before each step, outside of the time. Trainings with averages, and without, as in spaCy's default configuration.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "clients")]

import thinc.optimizers  # noqa: E402
from thinc.about import __version__  # noqa: E402
from timing import json_argument, report, row  # noqa: E402

import fastopt.thinc  # noqa: E402

Rows = list[dict[str, Any]]
KEY = (1, "W")
STEPS = {100: 2000, 1000: 2000, 100_000: 200}


def steps_of(optimizer: Any, n: int) -> Any:
    """A function that takes some steps over n elements, and returns the seconds of one."""
    random = np.random.default_rng(0)
    weights = random.standard_normal(n).astype(np.float32)
    gradient, values = np.zeros(n, np.float32), random.standard_normal(n).astype(np.float32)

    def run(count: int) -> float:
        taken = []
        for _ in range(count):
            np.copyto(gradient, values)
            begin = perf_counter()
            optimizer(KEY, weights, gradient)
            taken.append(perf_counter() - begin)
        return median(taken)

    run(10)
    return run


def steps() -> Rows:
    """A single step, by itself."""
    clock = median([-(perf_counter() - perf_counter()) for _ in range(1000)])
    rows = []
    for name, options in {"Adam": {}, "Adam, a schedule": {"learn_rate": [0.001, 0.002]}, "RAdam": {}}.items():
        for n, count in STEPS.items():
            stock, ours = (steps_of(getattr(module, name.partition(",")[0])(**options), n)
                           for module in (thinc.optimizers, fastopt.thinc))  # fmt: skip
            times = [(stock(count), ours(count)) for _ in range(15)]
            rows.append(row(f"thinc {__version__}", f"{name}, {n:,} elements",
                            *(median(one) - clock for one in zip(*times, strict=True))))  # fmt: skip
    return rows


def trainings() -> Rows:
    """Whole trainings: the processor time of an epoch."""
    import spacy_trainings

    rows = []
    for pipe, batch in (("tagger", 4), ("tagger", 32), ("textcat", 4), ("textcat", 32)):
        for averages in ("true", "false"):
            sides = []
            for module in (thinc.optimizers, fastopt.thinc):
                nlp, train = spacy_trainings.prepared(pipe)
                optimizer = module.Adam(0.001, L2=0.01, use_averages=averages == "true")
                spacy_trainings.epochs(nlp, train[:8], optimizer, 1, batch)
                sides.append((nlp, train, optimizer))
            times: list[tuple[float, float]] = []
            for _ in range(7):
                both = []
                for nlp, train, optimizer in sides:
                    begin = process_time()
                    spacy_trainings.epochs(nlp, train, optimizer, 1, batch)
                    both.append(process_time() - begin)
                times.append((both[0], both[1]))
            what = f"spaCy, {pipe}, batches of {batch}" + (", averages" if averages == "true" else "")
            rows.append(row(f"thinc {__version__}", what, *map(median, zip(*times, strict=True))))
    return rows


if __name__ == "__main__":
    path = json_argument()
    report([*steps(), *(trainings() if find_spec("spacy") else [])], path)
