"""What every optimizer makes of fixed random numbers, as digests: every build on every machine must print the same.

    python tests/proof/corpus.py >here.json

All levels of the build, with one thread and with three, have to agree before there is a digest. The numbers are made
of random bits by operations that are exact, so that they are the same everywhere; NaNs are counted as one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import pathlib
import platform
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from conftest import BITS, level, parallel_from, slots
from test_bits import CONFIGS, DTYPES

import fastopt
from fastopt import engine

SIZES = (1031, 515, 77, 3)
COUNTS = (0, 61)  # steps taken before; the others lead over the 64th, with its flush
STEPS = 6  # RAdam turns adaptive at its sixth
N_STATES = 3  # the most that a rule has
SEEDS = 2


def numbers(n: int, dtype, rng: np.random.Generator) -> np.ndarray:
    """Random bits, and beside them numbers between 2**-14 and 8."""
    view = BITS[np.dtype(dtype)]
    bits = rng.integers(0, np.iinfo(view).max, n, view, endpoint=True).view(dtype)
    with np.errstate(invalid="ignore"):  # a NaN is cast
        plain = np.ldexp(rng.random(n) - 0.5, rng.integers(-12, 5, n)).astype(dtype)
    return np.where(rng.random(n) < 0.3, bits, plain)


def digest(arrays) -> str:
    """Of the bits of arrays; all NaNs are equal."""
    text = hashlib.sha256()
    for array in arrays:
        text.update(np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes())
    return text.hexdigest()[:32]


@functools.cache
def draw(dtype, count: int, seed: int):
    """Parameters, states, and the gradients of every step."""
    rng = np.random.default_rng([seed, count, np.dtype(dtype).itemsize])
    params, *rest = [[numbers(n, dtype, rng) for n in SIZES] for _ in range(1 + N_STATES + STEPS)]
    return params, rest[:N_STATES], rest[N_STATES:]


def run(config, dtype, count: int, seed: int, threads: int) -> tuple[str, str, int]:
    """Digests of the scalars, and of parameters and states after each step; and how many arrays those are."""
    params, states, grads = draw(dtype, count, seed)
    opt = config.make([p.copy() for p in params], n_threads=threads)
    arrays = [list(slots(state).values()) for state in opt.state]
    for i in range(len(params)):
        opt._plan.set_count(i, count, (config.cls.carry_at(count + 1),))
        for array, start in zip(arrays[i], states, strict=False):
            array[...] = np.abs(start[i]) if count else array
    everything = [*opt.params, *itertools.chain.from_iterable(arrays)]
    scalars, seen = [], []
    for g in grads:
        scalars.append(np.array(opt._plan.scalars(0)))
        opt.step(g)
        seen.append(np.concatenate(everything))
    return digest(scalars), digest(seen), len(grads) * len(everything)


def main() -> None:
    found, arrays = {}, 0
    for (i, config), dtype, count, seed in itertools.product(enumerate(CONFIGS), DTYPES, COUNTS, range(SEEDS)):
        what = f"{i} {config.label} {np.dtype(dtype)} after {count}, seed {seed}"
        for name, threads in itertools.product(engine.available_levels(), (1, 3)):
            with level(name), parallel_from(0):
                scalars, bits, n = run(config, dtype, count, seed, threads)
            if found.setdefault(what, [scalars, bits]) != [scalars, bits]:
                sys.exit(f"{what}: {name} with {threads} threads differs")
        arrays += n
    info = {key: engine.info()[key] for key in ("isa_available", "openmp")}
    about = {"fastopt": fastopt.__file__, "machine": platform.machine(), **info, "arrays": arrays}
    json.dump({"about": about, "results": found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
