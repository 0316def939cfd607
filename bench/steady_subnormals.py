"""Whether moments that decay into the subnormals slow the step: real gradients, then zero gradients for long.

With a decay of 0.9 a moment is subnormal after some 830 zero gradients in float32 and 6,700 in float64, with 0.99 after
8,700 in float32; 0.999, the default of Adam's second moment, would take 87,000. So each optimizer is also measured with
faster decays than its own, and the share of state elements that are subnormal is counted. They do not all become 0: a
decay of 0.9 leaves the four smallest subnormals as they are, since the product rounds back.
"""

import functools
import time
from itertools import product

import numpy as np
from steady_worker import INSTALLED, LIBRARIES, OPTIONS, arrays

SHAPE = (1, 100_000)
REAL, HUNDRED = 200, 100
ZERO = {"float32": 12_000, "float64": 9_000}
SUBNORMAL = 0.1                        # the share of the state from which a hundred of steps counts as subnormal
FASTER = {"betas": (0.9, 0.9), "alpha": 0.9}
COMPARED = [{}, {"betas": (0.9, 0.99)}, {"betas": (0.9, 0.9)}]        # AdamW's, in every library


def cases():
    """(library, optimizer, options): fastopt's optimizers that have state, and AdamW of the others."""
    import fastopt

    for library, options in product(INSTALLED, COMPARED):
        yield library, "AdamW", options
    yield "fastopt", "AdamW", {"flush_subnormal": False}
    for name, cls in fastopt.OPTIMIZERS.items():
        optimizer = cls(arrays((1, 1), np.float32, 0), lr=1e-3)
        if name != "AdamW" and len(optimizer.state[0]) > 1:           # more than "step"
            yield "fastopt", name, {}
            faster = {key: value for key, value in FASTER.items() if key in optimizer.param_groups[0]}
            if faster:
                yield "fastopt", name, faster


def decay(make, optimizer, options, dtype, zero):
    """For each hundred zero gradients: a step's median, the steps' total, and the subnormal share of the state."""
    rng = np.random.default_rng(1)
    g = np.empty(SHAPE[1], dtype)
    shared = OPTIONS if optimizer == "AdamW" else {"lr": OPTIONS["lr"]}
    stepper = make(arrays(SHAPE, dtype, 0), [g], 1, **{**shared, **options})
    stepper.prepare()
    for _ in range(REAL):
        rng.standard_normal(dtype=dtype, out=g)
        stepper.step()
    g[:] = 0
    times, totals, shares = [], [], []
    for _ in range(zero // HUNDRED):
        hundred = [timed(stepper.step) for _ in range(HUNDRED)]
        times.append(float(np.median(hundred)))
        totals.append(sum(hundred))
        shares.append(subnormal_share(stepper.states()))
    return times, totals, shares


def timed(step):
    begin = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - begin


def subnormal_share(states):
    found = sum(np.count_nonzero((a != 0) & (abs(a) < np.finfo(a.dtype).smallest_normal)) for a in states)
    return found / sum(a.size for a in states)


def run(zero, progress):
    """One record for each case; `zero` overrides the number of zero gradients."""
    made = {}
    for (library, optimizer, options), dtype in progress(list(product(cases(), ZERO))):
        if library not in made:
            made[library] = LIBRARIES[library]()
        make = functools.partial(made[library], optimizer=optimizer) if library == "fastopt" else made[library]
        times, totals, shares = decay(make, optimizer, options, dtype, zero or ZERO[dtype])
        yield {"library": library, "optimizer": optimizer, "options": options, "dtype": dtype,
               **condensed(times, totals, shares), "hundreds_ns": times, "subnormal_shares": shares}  # fmt: skip


def condensed(times, totals, shares):
    """All of the steps, the slowest hundred and the subnormal ones, as multiples of the first hundred."""
    slowest, most = int(np.argmax(times)), int(np.argmax(shares))
    while_subnormal = [t for t, share in zip(times, shares, strict=True) if share >= SUBNORMAL]
    return {
        "first_us": times[0] / 1e3,
        "all": float(np.mean(totals)) / totals[0],
        "slowest": times[slowest] / times[0],
        "slowest_after": slowest * HUNDRED,
        "most_subnormal": shares[most],
        "most_after": most * HUNDRED,
        "while_subnormal": float(np.median(while_subnormal)) / times[0] if while_subnormal else None,
    }


def rows(records):
    yield ("library", "optimizer", "dtype", "first 100, µs", "all, × first", "slowest 100, × first", "after",
           "most subnormal", "after", "while subnormal, × first")  # fmt: skip
    for r in records:
        options = "".join(f" {name}={value}" for name, value in r["options"].items())
        ratio = r["while_subnormal"]
        yield (r["library"], r["optimizer"] + options, r["dtype"], f"{r['first_us']:.1f}", f"{r['all']:.2f}",
               f"{r['slowest']:.2f}", f"{r['slowest_after']:,}", f"{r['most_subnormal']:.0%}", f"{r['most_after']:,}",
               "-" if ratio is None else f"{ratio:.2f}")  # fmt: skip
