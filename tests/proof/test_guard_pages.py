"""No step reads or writes a byte outside its arrays: memory that may not be touched lies against each of them.

Every parameter, gradient and state has pages of its own, between two that fault when they are touched: the arrays begin
right behind the first, or end right before the second. Steps run in another process, which is this file as a program
and says what it is about to do: a fault there is a failed test here that names the case.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import level, parallel_from
from test_bits import CONFIGS, DTYPES, FADING, Config, start_at

import fastopt
from fastopt import engine

EDGES = ("start", "end")
# Every length up to 600, beyond that of the widest kernels' remainders; then the ends of tiles.
LENGTHS = (*range(1, 601), 1023, 1024, 1025, 2047, 2048, 2049)
# Of single arrays that a team cuts: around the ends of a chunk of 512 blocks of 64 bytes, and of shares.
CUT = tuple(chunks * 512 * per_block + k for chunks in (1, 2, 4) for per_block in (8, 16) for k in (-17, -1, 0, 1, 15))
# Of each rule one, one in every company of what is done around it, and every form.
NUMBERS = {
    "rules": list({c.rule: i for i, c in enumerate(CONFIGS)}.values()),
    "company": FADING,
    "all": list(range(len(CONFIGS))),
}
KINDS = ("parameter", "gradient", "state 0", "state 1", "state 2")
OVERRUNS = ("parameter", "gradient", "state")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="protects pages with mprotect")


# --- The process that steps


class Guarded:
    """Memory for arrays of these lengths, each against a page that may not be touched."""

    def __init__(self, lengths: Sequence[int]) -> None:
        page = mmap.PAGESIZE
        self.rooms = []  # where the pages of each begin and end
        place = page
        for n in lengths:
            room = -(-max(1, n) * 8 // page) * page
            self.rooms.append((place, place + room))
            place += room + page
        self.memory = mmap.mmap(-1, place)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for low in (0, *(high for _, high in self.rooms)):
            if libc.mprotect(ctypes.c_void_p(self.address + low), ctypes.c_size_t(page), 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")

    def array(self, k: int, n: int, dtype, edge: str, beyond: int = 0) -> np.ndarray:
        """Array k, of n elements at one of its edges; or so many elements beyond it."""
        low, high = self.rooms[k]
        size = n * np.dtype(dtype).itemsize
        at = low if edge == "start" else high - size
        at += beyond * np.dtype(dtype).itemsize * (-1 if edge == "start" else 1)
        return np.frombuffer(self.memory, dtype, n, at)


def say(what: str) -> None:
    """Tell the parent what comes next, before it can go wrong."""
    os.write(1, (what + "\n").encode())


class Walk:
    """Steps of arrays in guarded memory."""

    def __init__(self, lengths: Sequence[int], edge: str, beyond: str = "") -> None:
        self.lengths, self.edge, self.beyond = lengths, edge, beyond
        self.memory = {(kind, dtype): Guarded(lengths) for kind in KINDS for dtype in map(np.dtype, DTYPES)}
        rng = np.random.default_rng(0)
        for (_, dtype), memory in self.memory.items():
            values = rng.standard_normal(max(lengths)).astype(dtype)
            for k, n in enumerate(lengths):
                memory.array(k, n, dtype, edge)[...] = values[:n]

    def arrays(self, kind: str, dtype, which: Sequence[int]) -> list[np.ndarray]:
        memory, beyond = self.memory[kind, np.dtype(dtype)], int(kind.startswith(self.beyond or "-"))
        return [memory.array(k, self.lengths[k], dtype, self.edge, beyond) for k in which]

    def optimizer(self, config: Config, dtype, which: Sequence[int], **options) -> fastopt.Optimizer:
        """An optimizer whose parameters and states lie there."""
        slots: dict[str, Iterator[np.ndarray]] = {}

        def supply(name, shape, dtype):
            if name not in slots:
                slots[name] = iter(self.arrays(f"state {len(slots)}", dtype, which))
            return next(slots[name])

        return config.make(self.arrays("parameter", dtype, which), state_factory=supply, **options)

    def step(self, config: Config, dtype, which: Sequence[int], threads: int) -> int:
        """All that a step can do to arrays: alone, with scaled gradients, looking for NaN, flushing; how many.

        And the norm of the gradients.
        """
        gradients = self.arrays("gradient", dtype, which)
        opt = self.optimizer(config, dtype, which, n_threads=threads, nonfinite="skip")
        for count in (0, 63):  # the second begins with a flush
            start_at(count, config, opt)
            opt.step(gradients)
            opt.step(gradients, grad_scale=2.0)
        assert opt.steps == 4 and opt.skipped_steps == 0
        if isinstance(opt, fastopt.NAG):
            opt.lookahead()
        for ord in (2, np.inf):
            fastopt.norm(gradients, ord, n_threads=threads)
        return 4 * len(which)


def walk_all(edge: str, threads: int, configs: str, beyond: str, only: str) -> None:
    """Step all lengths together, with these configs, at every level; then, on threads, some arrays that are cut."""
    done = 0
    for lengths, apart in ((LENGTHS, False), *([(CUT, True)] if threads > 1 else [])):
        walk = Walk(lengths, edge, beyond)
        whole = range(len(lengths))
        for number, name, dtype in itertools.product(NUMBERS[configs], engine.available_levels(), DTYPES):
            config = CONFIGS[number]
            case = f"{config.label} rule {config.rule}, {name}, {np.dtype(dtype)}, {'cut' if apart else 'all'}"
            if only not in case:
                continue
            with level(name), parallel_from(0):
                # After a fault, `only` asks for one case, and each length by itself says which it was.
                for which in [[k] for k in whole] if apart or only else [whole]:
                    say(f"{case}: {'lengths 1 to 600 and tiles' if len(which) > 1 else lengths[which[0]]}")
                    done += walk.step(config, dtype, which, threads)
    print("arrays stepped:", done)


def refuse_all(edge: str) -> None:
    """Calls that are refused: what finds the reason, and words it, stays inside the arrays, too."""
    walk, done = Walk(range(1, 40), edge), 0
    for memory in walk.memory.values():
        for low, high in memory.rooms:  # no byte is 0, which would end what is taken for a string
            np.frombuffer(memory.memory, np.uint8, high - low, low)[...] = 1
    for k, dtype in itertools.product(range(1, 39), DTYPES):
        (p,), (g,), (m,), (v,) = (walk.arrays(kind, dtype, [k]) for kind in KINDS[:4])
        slots = iter((m, v))
        opt = fastopt.Adam(p, lr=0.1, nonfinite="raise", state_factory=lambda *_, slots=slots: next(slots))
        nan, saved = g * np.nan, opt.state_dict()
        saved["state"] = {0: {"step": 1, "exp_avg": m[:-1], "exp_avg_sq": v}}
        for what, call in {
            "a parameter twice": lambda p=p: fastopt.SGD([p, p], lr=0.1),
            "parameters that overlap": lambda p=p: fastopt.SGD({"a": p, "b": p[1:]}, lr=0.1),
            "a group of state": lambda opt=opt, m=m: opt.add_param_group({"params": m}),
            "a gradient that is the parameter": lambda opt=opt, p=p: opt.step(p),
            "a gradient that is state": lambda opt=opt, v=v: opt.step([v]),
            "a gradient of another length": lambda opt=opt, g=g: opt.step(g[1:]),
            "a gradient with a NaN": lambda opt=opt, nan=nan: opt.step(nan),
            "state of another length": lambda opt=opt, saved=saved: opt.load_state_dict(saved),
        }.items():
            say(f"{what}: {walk.lengths[k]} of {np.dtype(dtype)}")
            try:
                call()
            except fastopt.FastoptError:
                done += 1
            else:
                raise AssertionError("it was not refused")
    print("calls refused:", done)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("edge", choices=EDGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--configs", choices=NUMBERS, default="company")
    parser.add_argument("--beyond", default="", help="let arrays of this kind reach one element beyond their edge")
    parser.add_argument("--only", default="", help="only the cases with this in their name, each length by itself")
    parser.add_argument("--refused", action="store_true", help="calls that are refused, instead of steps")
    args = parser.parse_args()
    if args.refused:
        return refuse_all(args.edge)
    walk_all(args.edge, args.threads, args.configs, args.beyond, args.only)


# --- The tests


def walk(*arguments: str) -> tuple[int, str]:
    """Exit code of a process that steps, and the last it said."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True, text=True, timeout=1800, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    said = done.stdout.splitlines()[-1:] or [done.stderr]
    return done.returncode, said[0] if done.returncode <= 0 else f"{said[0]}\n{done.stderr}"


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("edge", EDGES)
def test_no_byte_outside_the_arrays_is_touched(edge, threads, amount, tally):
    configs = amount({1: "company", 2: "rules", 3: ""}[threads], "all")
    if not configs:
        pytest.skip("two threads are enough but with --long")
    arguments = (edge, "--threads", str(threads), "--configs", configs)
    code, said = walk(*arguments)
    if code < 0:  # killed: say by which length, if it is one alone
        again, by = walk(*arguments, "--only", said.partition(": ")[0])
        where = by if again < 0 else said
        pytest.fail(f"{edge} of the arrays, {threads} threads: {signal.Signals(-code).name} at {where}")
    assert code == 0, said
    tally("arrays stepped between pages that fault", int(said.rpartition(" ")[2]))


@pytest.mark.parametrize("edge", EDGES)
def test_calls_that_are_refused_touch_no_byte_outside_the_arrays(edge, tally):
    code, said = walk(edge, "--refused")
    assert code == 0, (code, said)
    tally("calls refused between pages that fault", int(said.rpartition(" ")[2]))


@pytest.mark.parametrize("kind", OVERRUNS)
@pytest.mark.parametrize("edge", EDGES)
def test_a_walk_that_goes_one_element_too_far_faults(edge, kind):
    """The arrays of one kind are said to begin one element beyond the edge of their pages: the first step faults."""
    code, said = walk(edge, "--beyond", kind, "--configs", "rules")
    assert code in (-signal.SIGSEGV, -signal.SIGBUS) and "lengths" in said, (code, said)


if __name__ == "__main__":
    main()
