"""What ThreadSanitizer watches: teams, and Python threads, at everything that an optimizer does with memory.

All steps give up the GIL and go to teams of any size that is asked for, as large ones do.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable

import numpy as np
from conftest import parallel_from
from test_bits import CONFIGS, DTYPES, FADING, start_at

import fastopt
from fastopt import reference
from fastopt.errors import ConcurrentStepError

SIZES = (20_000, 1, 513, 17_000, 0, 1030)


def arrays(dtype, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(dtype) for n in SIZES]


def together(*works: Callable[[], None]) -> None:
    """Run functions on a thread each, from the same moment on; raises what any of them raises."""
    start, errors = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def teams() -> int:
    """Every rule, in every company, on teams of 2 and 3: plain, scaled gradients, flushing, clipping, and NaN."""
    done = 0
    for number, dtype, threads in itertools.product(FADING, DTYPES, (2, 3)):
        config, grads = CONFIGS[number], arrays(dtype, 1)
        opt = config.make(arrays(dtype, 0), n_threads=threads, nonfinite="skip")
        for count in (0, 63):
            start_at(count, config, opt)
            opt.step(grads, grad_scale=2.0 if count else None)
        if isinstance(opt, fastopt.NAG):
            opt.lookahead()
        for limit in (1e9, 0.5, None):
            opt.clip_norm = limit
            opt.step(grads)
        for limit in (None, None, 0.5, 0.5):
            opt.clip_norm = limit
            opt.step([np.full_like(g, np.nan) for g in grads])
        assert opt.steps == 5 and opt.skipped_steps == 4
        for ord in (2, np.inf):
            assert fastopt.norm(grads, ord, n_threads=threads) == reference.norm(grads, ord)
        done += 9
    return done


def adam(seed: int, threads: int) -> fastopt.Optimizer:
    return fastopt.Adam(arrays(np.float32, seed), n_threads=threads)


def apart(threads: int) -> int:
    """Two Python threads, each with an optimizer: steps, loads, new groups, copies; they share gradients."""
    grads = arrays(np.float32, 9)

    def work(seed: int) -> None:
        opt = adam(seed, threads)
        for _ in range(10):
            opt.step(grads)
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
            opt.param_groups[0]["amsgrad"] = not opt.param_groups[0]["amsgrad"]
        opt.add_param_group({"params": arrays(np.float32, seed + 5)})
        opt.step(2 * grads)

    together(lambda: work(0), lambda: work(1))
    return 22


def at_once(threads: int) -> int:
    """Two Python threads with one optimizer: whoever comes while the other is in it is refused."""
    opt, grads, refused = adam(0, threads), arrays(np.float32, 9), []
    saved = copy.deepcopy(adam(3, threads).state_dict())

    def work(act: Callable[[], None]) -> None:
        for _ in range(200):
            try:
                act()
            except ConcurrentStepError:
                refused.append(act)

    together(lambda: work(lambda: opt.step(grads)), lambda: work(lambda: opt.step(grads)))
    assert opt.steps + len(refused) == 400
    together(lambda: work(lambda: opt.step(grads)), lambda: work(lambda: opt.load_state_dict(saved)))
    return 600


def main() -> None:
    with parallel_from(0):
        done = teams()
        for threads in (1, 2):
            done += apart(threads) + at_once(threads)
    print(f"{done} steps")


if __name__ == "__main__":
    main()
