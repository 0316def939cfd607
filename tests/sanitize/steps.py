"""What Valgrind watches: every rule at every level that it can run, on arrays of 1 to 70 elements.

    valgrind ... python steps.py LIBRARY

LIBRARY is checks.c compiled: it asks Valgrind whether all that a step wrote depends on nothing but what it was given.
"""

from __future__ import annotations

import ctypes
import itertools
import sys

import numpy as np
from conftest import level
from test_bits import CONFIGS, DTYPES, FADING, start_at

import fastopt
from fastopt import engine

LENGTHS = range(1, 71)


def main(library: str) -> None:
    first_undefined = ctypes.CDLL(library).first_undefined
    rng = np.random.default_rng(0)
    values = {dtype: [rng.standard_normal(n).astype(dtype) for n in LENGTHS] for dtype in DTYPES}
    done = 0
    for number, name, dtype in itertools.product(FADING, engine.available_levels(), DTYPES):
        config, arrays = CONFIGS[number], [v.copy() for v in values[dtype]]
        with level(name):
            # Not from the arena of all arrays: memory of its own for each, which ends where it ends.
            opt = config.make(arrays, state_factory=lambda _, shape, dtype: np.empty(shape, dtype), nonfinite="skip")
            for count in (0, 63):
                start_at(count, config, opt)
                opt.clip_norm = 0.5 if count else None
                opt.step(values[dtype], grad_scale=2.0 if count else None)
            if isinstance(opt, fastopt.NAG):
                arrays += opt.lookahead()
            arrays += [np.array(fastopt.norm(values[dtype], ord)) for ord in (2, np.inf)]
        assert opt.steps == 2
        for state in opt.state:
            arrays += [a for a in state.values() if isinstance(a, np.ndarray)]
        for a in arrays:
            if first_undefined(ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(a.nbytes)):
                sys.exit(f"undefined: {config.label}, {name}, {np.dtype(dtype)}, {a.size} elements")
        done += 2 * len(values[dtype])
    print(f"{done} arrays stepped at {', '.join(engine.available_levels())}")


if __name__ == "__main__":
    main(sys.argv[1])
