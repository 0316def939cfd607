"""What may not matter to the bits of a run: each is changed by itself, and the two runs compared after every step.

No reference is asked: the runs need only agree with each other. A problem follows from its number, which a failure
names, so that running the test again repeats it.
"""

from __future__ import annotations

import copy
import pickle
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import ALL, build
from test_bits import CONFIGS, DTYPES, SIZES, fading

from fastopt import Optimizer, engine
from fastopt.declare import numbers_at
from fastopt.schedules import Exponential

KINDS = ("ordinary", "nasty", "fading")
N_STATES = 3  # the most that a rule has


@pytest.fixture(scope="module")
def draw(nasties):
    """draw(kind, dtype, n, rng): an array out of a pool, since making such numbers takes longer than steps do."""

    def numbers(kind, dtype):
        rngs = [np.random.default_rng(k) for k in range(100)]
        if kind == "fading":
            return np.concatenate([fading(200, dtype, rng, nasties) for rng in rngs])
        return np.concatenate([nasties.values(kind, 200, dtype, rng) for rng in rngs])

    pools = {(kind, dtype): numbers(kind, dtype) for kind in KINDS for dtype in DTYPES}
    return lambda kind, dtype, n, rng: pools[kind, dtype][rng.integers(0, 20_000, n)]


def around(rng: np.random.Generator) -> dict[str, Any]:
    """What a step does around its rule, of which each by chance."""
    options = {
        "clip_value": rng.uniform(0.1, 2), "clip_norm_each": rng.uniform(0.5, 10), "ema_decay": rng.uniform(0, 1),
        "ema_start": int(rng.integers(0, 4)), "zero_grads": True,
    }  # fmt: skip
    both = bool(rng.random() < 0.5)  # Keras clips in one way at a time
    chosen = {key: value for key, value in options.items() if rng.random() < 0.3}
    chosen.pop("clip_value" if both else "clip_norm_each", None)
    if "ema_decay" in chosen and rng.random() < 0.3:
        chosen["ema_decay"] = Exponential(chosen["ema_decay"], 0.9)
    return chosen


class Problem:
    """An optimizer's groups, arrays to start with, and the gradients of a few steps, some of them None."""

    def __init__(self, number: int, rng: np.random.Generator, draw) -> None:
        self.cls, self.convention = ALL[number % len(ALL)]
        mine = [c.options for c in CONFIGS if (c.cls, c.options["convention"]) == (self.cls, self.convention)]
        self.groups = [self.vary(mine[rng.integers(len(mine))], rng) for _ in range(rng.integers(1, 3))]
        self.group_of = sorted(rng.integers(0, len(self.groups), rng.integers(1, 5)).tolist())
        self.kind = KINDS[rng.integers(3)]
        # A flush comes at every 64th step, and RAdam turns adaptive at its fifth or sixth.
        self.counts = [int(rng.choice([0, 0, 3, 62, 63, 2**24 - 2])) for _ in self.group_of]
        kinds = [(DTYPES[rng.integers(2)], int(rng.choice(SIZES))) for _ in self.group_of]
        self.params = [draw(self.kind, *kind, rng) for kind in kinds]
        # A parameter that has taken no step has no state to be saved: it keeps the first values.
        self.states = [[draw(self.kind, *kind, rng) for _ in range(N_STATES if count else 0)]
                       for kind, count in zip(kinds, self.counts, strict=True)]  # fmt: skip
        self.grads = [[draw(self.kind, *kind, rng) if rng.random() < 0.85 else None for kind in kinds]
                      for _ in range(rng.integers(2, 7))]  # fmt: skip
        self.scales = [rng.choice([None, None, 1024.0, 3.7]) for _ in self.grads]
        self.nonfinite = "skip" if rng.random() < 0.15 else "propagate"
        if self.nonfinite == "skip" and self.kind == "ordinary" and self.grads[0][0] is not None:
            self.grads[0][0][-1:] = np.inf

    @staticmethod
    def vary(options: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """These options with other numbers; zeros and flags say which form of a rule it is, and stay."""
        group = {k: v * rng.uniform(0.5, 1) if type(v) is float else v for k, v in options.items() if k != "convention"}
        if "betas" in group:
            group["betas"] = tuple(b * rng.uniform(0.5, 1) for b in group["betas"])
        if rng.random() < 0.3:
            group["lr"] = Exponential(group["lr"], 0.9)
        return {**group, "flush_subnormal": bool(rng.random() < 0.8), **around(rng)}

    def __repr__(self) -> str:
        arrays = [f"{p.dtype}[{p.size}] in group {k}, {n} steps old"
                  for p, k, n in zip(self.params, self.group_of, self.counts, strict=True)]  # fmt: skip
        return (f"{self.cls.__name__}(convention={self.convention!r}, nonfinite={self.nonfinite!r}), "
                f"groups {self.groups}, {self.kind} arrays {arrays}")  # fmt: skip


class Piece(NamedTuple):
    array: int
    begin: int
    end: int


class Way(NamedTuple):
    """How a problem is computed: all that may not matter."""

    groups: list[tuple[int, list[Piece]]]
    """Which of the problem's groups each one is, and its parameters."""
    level: str
    threads: int
    offsets: tuple[int, int, int] = (0, 0, 0)
    """Of parameters, gradients and states, in elements from a 64-byte boundary."""
    gap: int = 64
    """Bytes between the pieces of an array."""

    @property
    def pieces(self) -> list[Piece]:
        return [piece for _, pieces in self.groups for piece in pieces]


class Runner:
    """Runs problems, with the fixtures that this takes."""

    def __init__(self, nasties, path) -> None:
        self.nasties, self.path = nasties, path

    def place(self, way: Way, arrays, offset: int) -> list[np.ndarray | None]:
        """Copies of the pieces of arrays, in the order of the parameters; those of one array in one memory."""
        placed: dict[Piece, np.ndarray | None] = {}
        pieces = sorted(way.pieces)
        for i, array in enumerate(arrays):
            mine = [piece for piece in pieces if piece.array == i]
            parts = [None] * len(mine)
            if array is not None:
                parts = self.nasties.pieces(array, [p.end - p.begin for p in mine], offset, way.gap)[1]
            placed.update(zip(mine, parts, strict=True))
        return [placed[piece] for piece in way.pieces]

    def make(self, problem: Problem, way: Way, arrays, **instead) -> Optimizer:
        """The problem's optimizer over copies of arrays, before its first step."""

        def factory(name, shape, dtype):
            return self.nasties.pieces(np.zeros(shape, dtype), [shape[0]], way.offsets[2])[1][0]

        params = iter(self.place(way, arrays, way.offsets[0]))
        groups = [{**problem.groups[k], **instead, "params": [next(params) for _ in pieces]}
                  for k, pieces in way.groups]  # fmt: skip
        return build(problem.cls, groups, problem.convention, nonfinite=problem.nonfinite, n_threads=way.threads,
                     state_factory=factory if way.offsets[2] else None)  # fmt: skip

    def begin(self, problem: Problem, way: Way) -> Optimizer:
        """The problem's optimizer, its parameters as old as the problem says, with state of such an age."""
        opt = self.make(problem, way, problem.params)
        for i, (piece, state) in enumerate(zip(way.pieces, opt.state, strict=True)):
            count = problem.counts[piece.array]
            if count:
                opt._plan.set_count(i, count, numbers_at(problem.cls, count + 1))
            slots = self.nasties.slots(state).values()
            for slot, start in zip(slots, problem.states[piece.array], strict=False):
                slot[...] = start[piece.begin : piece.end]
        return opt

    def resume(self, how: str, opt: Optimizer, problem: Problem, way: Way) -> Optimizer:
        """The optimizer saved and loaded into another, over a copy of the parameters, which goes on another way."""
        if how == "pickle":
            return pickle.loads(pickle.dumps(opt))
        if how == "deepcopy":
            return copy.deepcopy(opt)
        fresh = self.make(problem, way, [array for array, *_ in self.look(opt, way)[0]], lr=0.5)
        if how == "file":
            opt.save(self.path)
            fresh.load(self.path)
        else:
            fresh.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
        return fresh

    def look(self, opt: Optimizer, way: Way) -> tuple[list[list[np.ndarray]], Any]:
        """Parameters and states, a list for each array of the problem, and all numbers: what must not differ."""
        rows: dict[int, list[Any]] = {}
        numbers = {}
        found = zip(way.pieces, opt.params, opt.state, strict=True)
        for piece, param, state in sorted(found, key=lambda item: item[0]):
            slots = self.nasties.slots(state)
            rows.setdefault(piece.array, []).append([param, *slots.values()])
            others = {name: value for name, value in state.items() if name not in slots}
            assert numbers.setdefault(piece.array, others) == others
        arrays = [[np.concatenate(parts) for parts in zip(*rows[i], strict=True)] for i in sorted(rows)]
        if opt._plan.is_averaging():
            before = [param.copy() for param in opt.params]
            with opt.averaged():
                assert all(not self.nasties.differing(p, state.get("ema", was)).any()
                           for p, state, was in zip(opt.params, opt.state, before, strict=True))  # fmt: skip
            assert not any(self.nasties.differing(p, was).any() for p, was in zip(opt.params, before, strict=True))
        return arrays, (numbers, opt.steps, opt.skipped_steps)

    def run(self, problem: Problem, way: Way, at: int | None = None, how: str = "", then: Way | None = None):
        """What there is to see after each step; `at` a step, the run is saved, loaded, and goes on another way."""
        n = len(problem.grads)
        legs = [(0, n, way)] if at is None else [(0, at, way), (at, n, then)]
        seen, opt = [], None
        for first, last, way in legs:
            with self.nasties.level(way.level), self.nasties.parallel_from(0):
                opt = self.begin(problem, way) if opt is None else self.resume(how, opt, problem, way)
                for t in range(first, last):
                    opt.step(self.place(way, problem.grads[t], way.offsets[1]), grad_scale=problem.scales[t])
                    seen.append(self.look(opt, way))
        return seen


@pytest.fixture
def runner(nasties, tmp_path):
    return Runner(nasties, tmp_path / "checkpoint")


# --- The relations: (problem, way, rng) -> arguments of the second run


def any_way(problem: Problem, rng: np.random.Generator) -> Way:
    """Whole arrays in the problem's groups, on any level, with any number of threads, anywhere in memory."""
    groups = [
        (k, [Piece(i, 0, len(p)) for i, p in enumerate(problem.params) if problem.group_of[i] == k])
        for k in range(len(problem.groups))
    ]
    return Way(groups, str(rng.choice(engine.available_levels())), int(rng.integers(1, 9)),
               tuple(rng.integers(0, 3, 3).tolist()))  # fmt: skip


def cut(problem: Problem, way: Way, rng: np.random.Generator) -> dict[str, Any]:
    """Arrays cut anywhere, with and without room between the pieces, some of which make a group of their own."""
    for options in problem.groups:
        options.pop("clip_norm_each", None)  # the norm of an array is not that of its pieces
    groups = []
    for k, pieces in way.groups:
        parts = []
        for i, _, n in pieces:
            ends = sorted(rng.integers(0, n + 1, rng.integers(0, 5)).tolist())
            parts += [Piece(i, *ends) for ends in pairwise([0, *ends, n])]
        here = int(rng.integers(0, len(parts) + 1))
        groups += [(k, parts[:here]), (k, parts[here:])]
    return {"way": way._replace(groups=groups, gap=int(rng.choice([0, 64])))}


def threads(problem: Problem, way: Way, rng: np.random.Generator) -> dict[str, Any]:
    """Any other number of threads."""
    return {"way": way._replace(threads=int(rng.choice([n for n in range(1, 9) if n != way.threads])))}


def level(problem: Problem, way: Way, rng: np.random.Generator) -> dict[str, Any]:
    """Any other instruction-set level."""
    others = [name for name in engine.available_levels() if name != way.level]
    if not others:
        pytest.skip("this build has one instruction-set level")
    return {"way": way._replace(level=str(rng.choice(others)))}


def resumed(problem: Problem, way: Way, rng: np.random.Generator, how: str) -> dict[str, Any]:
    """Saved before any step but the first, loaded, and gone on with at any level, with any number of threads."""
    then = any_way(problem, rng)
    if how in ("pickle", "deepcopy"):  # a state_factory is pickled with its optimizer, ours cannot be
        way = way._replace(offsets=(*way.offsets[:2], 0))
    return {"way": way, "at": int(rng.integers(1, len(problem.grads))), "how": how, "then": then}


def permuted(problem: Problem, way: Way, rng: np.random.Generator) -> dict[str, Any]:
    """Groups, and the parameters of each, in any order."""
    groups = [(k, [pieces[i] for i in rng.permutation(len(pieces))]) for k, pieces in way.groups]
    return {"way": way._replace(groups=[groups[i] for i in rng.permutation(len(groups))])}


def offset(problem: Problem, way: Way, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters, gradients and states anywhere in a 64-byte block, each by itself."""
    return {"way": way._replace(offsets=tuple(rng.integers(0, 16, 3).tolist()))}


RELATIONS = {
    **{relation.__name__: relation for relation in (cut, threads, level, permuted, offset)},
    **{f"resumed by {how}": partial(resumed, how=how) for how in ("state_dict", "pickle", "deepcopy", "file")},
}


@pytest.mark.filterwarnings("ignore:the state dict has no average")  # that has not begun when it is saved
@pytest.mark.parametrize("name", RELATIONS)
def test_bits_do_not_change(name, amount, tally, draw, runner, same_bits):
    if name == "resumed by file":
        pytest.importorskip("safetensors")
    relation = RELATIONS[name]
    for number in range(amount(200, 10_000)):
        rng = np.random.default_rng([number, *name.encode()])
        problem = Problem(number, rng, draw)
        way = any_way(problem, rng)
        other = relation(problem, way, rng)
        for t, (want, got) in enumerate(zip(runner.run(problem, way), runner.run(problem, **other), strict=True)):
            where = f"{name} {number}, step {t + 1} of {problem}: {other} against {way}"
            assert got[1] == want[1], where
            same_bits(where, sum(got[0], []), sum(want[0], []))
            tally(f"arrays compared: {name}", sum(map(len, want[0])))
        tally(f"runs with their bits unchanged: {name}")
