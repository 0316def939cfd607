"""Parameters, gradients and state in bfloat16, float16 and 8 bits: a step has the bits of its twin in NumPy.

The twin is `Twin` of fastopt/reference.py, which loads and stores by its `FORMATS`. Which optimizers and options there
are is read from the library, as in test_bits.py. Arrays are compared by their bits; NaN equals NaN, as there.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import ALL, ALL_IDS, build, unchanged
from test_bits import CONFIGS, THREADS, Config

import fastopt
from fastopt import engine, reference
from fastopt.declare import LOW, derive, numbers_at
from fastopt.errors import HyperparameterError, LayoutError

try:
    from ml_dtypes import bfloat16 as BFLOAT16
except ImportError:
    BFLOAT16 = np.uint16  # with param_dtype and grad_dtype, which say what it holds

pytestmark = pytest.mark.xdist_group("storage")  # together, since the last test counts what the others compared

F32 = np.float32
STORED = {"param_dtype": "bfloat16"} if BFLOAT16 is np.uint16 else {}
PARAMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (F32, {"seed": 5}),
    "nearest": (BFLOAT16, {"rounding": "nearest", **STORED}),
    "stochastic": (BFLOAT16, {"rounding": "stochastic", "seed": 2**64 - 1, **STORED}),
    "split": (BFLOAT16, {"split": True, "seed": 7, **STORED}),
    "uint16 stochastic": (np.uint16, {"rounding": "stochastic", "param_dtype": "bfloat16"}),
    "uint16 split": (np.uint16, {"split": True, "param_dtype": "bfloat16"}),
}
GRADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (F32, {}),
    "bfloat16": (BFLOAT16, {"grad_dtype": "bfloat16"} if STORED else {}),
    "float16": (np.float16, {}),
    "uint16": (np.uint16, {"grad_dtype": "bfloat16"}),
}
STATES = ("float32", "bfloat16", "8bit", "dict")
KINDS = ("ordinary", "nasty", "fine", "subnormal")
COMBINATIONS = list(itertools.product(PARAMS, GRADS, STATES))
"""All 96. Every configuration takes some of them in turn, so that every rule meets each."""

# What is done around a step. Keras takes one limit at a time.
AROUND: list[dict[str, Any]] = [
    {}, {"clip_norm": 3.1}, {"ema_decay": 0.87}, {"clip_norm_each": 0.37, "zero_grads": True}, {"mirrors": "bfloat16"},
    {"clip_value": 0.41}, {"ema_decay": 0.3, "ema_start": 0, "mirrors": "float16"},
    {"clip_norm": np.inf, "nonfinite": "skip"}, {"zero_grads": True, "grad_scale": 2.37}, {"mirrors": "uint16"},
    {"ema_decay": 0.99, "ema_start": 5, "clip_norm": 0.2, "grad_scale": 64.0},
]  # fmt: skip
# Edges of tiles and blocks, with their neighbours, and of what 8 bits are for; in each an array in Fortran order, one
# without dimensions, and an empty one.
SHAPES: list[list[tuple[int, ...]]] = [
    [(255,), (256,), (4096,), (), (0,)],
    [(1,), (257,), (17, 241), (), (0, 3)],
    [(1023,), (5,), (4095,), (), (0,)],
    [(1025,), (511,), (64, 80), ()],
    [(4097,), (), (0,), (3, 4, 5)],
]


def bits(array: np.ndarray) -> np.ndarray:
    return reference.flat(np.asarray(array)).view(f"u{array.itemsize}")


def written(opt: fastopt.Optimizer) -> list[np.ndarray]:
    """All that a step writes to, by its bits."""
    plan = opt._plan
    return [bits(array) for i, p in enumerate(plan.arrays) for array in (p, *plan.states[i].values(), plan.mirrors[i])
            if array is not None]  # fmt: skip


def stored_as(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers in a type, to the nearest; uint16 is bfloat16 by its bits."""
    with np.errstate(all="ignore"):
        if dtype in (F32, np.float16):
            return x.astype(dtype)
    flat = reference.FORMATS["bfloat16"].store(np.ascontiguousarray(x, F32).ravel(), 0)[0]
    return flat.view(dtype).reshape(x.shape)


def in_memory(nasties, x: list[np.ndarray], offset: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Arrays in one buffer, filler behind each; those of two dimensions in Fortran order."""
    flat = np.concatenate([np.asarray(a).ravel(order="F") for a in x])
    raw, pieces = nasties.pieces(flat, [a.size for a in x], offset)
    return raw, [piece.reshape(a.shape, order="F") for piece, a in zip(pieces, x, strict=True)]


def state_dtype(config: Config, kind: str, turn: int = 0) -> dict[str, Any]:
    """The option for a way to store the state; "dict" gives each array a type of its own, of those that it can have."""
    if kind != "dict":
        return {} if kind == "float32" else {"state_dtype": kind}
    group = config.make(np.zeros(1)).param_groups[0]
    spec = derive(config.cls, config.options["convention"], group)
    table = {}
    for k, slot in enumerate(slot for slot in spec.slots if slot.like == "parameter"):
        if slot.narrow is not None and slot.wide_beside not in spec.names:
            table[slot.name] = "bfloat16" if slot.narrow == "sign" or (k + turn) % 2 else "8bit"
    return {"state_dtype": table}


def loaded(group: Any, param: np.ndarray, state: dict[str, np.ndarray], mirror: Any = None) -> dict[str, np.ndarray]:
    """What a parameter, its state and its mirror stand for, by name; "" is the parameter."""
    found = {"": reference.param_operand(param, state, group.storage).load()}
    for name, array in state.items():
        if name != LOW.name:
            found[name] = reference.state_operand(group.kinds[name], array, param, group.storage).load()
    if mirror is not None:
        found["mirror"] = half(mirror)
    return found


def half(array: np.ndarray) -> np.ndarray:
    """The float32 of a flat gradient or mirror."""
    return reference.Operand(reference.half_format(array), reference.flat(array), reference.NOTHING).load()


class Both:
    """An optimizer and its twin, and the comparison of all that they write."""

    def __init__(self, opt: fastopt.Optimizer, nasties: Any, count: Any) -> None:
        self.opt, self.twin, self.nasties, self.count = opt, reference.twin(opt), nasties, count
        self.groups = [group for group in opt._plan.groups for _ in group.params]

    def step(self, grads: list[Any], grad_scale: float | None = None) -> None:
        before, skipped = copy.deepcopy(grads), self.opt.skipped_steps
        self.opt.step(grads, grad_scale)
        if self.opt.skipped_steps == skipped:
            self.twin.step(before, grad_scale)
            return
        assert not all(np.isfinite(half(g)).all() for g in before if g is not None)
        self.twin._clip(before, grad_scale)

    def compare(self, where: str) -> None:
        plan, twin = self.opt._plan, self.twin
        assert repr(self.opt.grad_norm) == repr(twin.grad_norm), where
        for i, group in enumerate(self.groups):
            begun = "ema" in plan.saved_state(i)
            assert begun == twin.begun[i], where
            mine, its = [{name: array for name, array in state.items() if begun or name != "ema"}
                         for state in (plan.states[i], twin.state[i])]  # fmt: skip
            self.count.arrays += 1 + len(mine) + (plan.mirrors[i] is not None)
            pairs = [(plan.arrays[i], twin.params[i]), *((mine[name], its[name]) for name in mine)]
            if plan.mirrors[i] is not None:
                pairs.append((plan.mirrors[i], twin.mirrors[i]))
            if all((bits(a) == bits(b)).all() for a, b in pairs):
                continue
            got = loaded(group, plan.arrays[i], mine, plan.mirrors[i])
            want = loaded(group, twin.params[i], its, twin.mirrors[i])
            for name in got:
                wrong = np.flatnonzero(self.nasties.differing(got[name], want[name]))
                if len(wrong):
                    self.count.differing += 1
                    pytest.fail(f"{where}: {name or 'parameter'} of array {i}, {plan.arrays[i].shape}: {len(wrong)} "
                                f"elements differ, the first at {wrong[0]}: {got[name][wrong[0]]!r}, the reference has "
                                f"{want[name][wrong[0]]!r}")  # fmt: skip


def numbers(nasties, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    n = int(np.prod(shape))
    if kind == "subnormal":
        x = (rng.integers(0, 0x900000, n).astype(np.uint32) | (rng.integers(0, 2, n) << 31).astype(np.uint32)).view(F32)
    else:
        x = nasties.values(kind, n, F32, rng)
        x *= F32(1e-9 if kind == "fine" else 1)
    return x.reshape(shape, order="F")


class Way(NamedTuple):
    """One way to go through the matrix."""

    param: str
    grad: str
    state: str
    kind: str
    shapes: int
    threads: int
    around: int
    flushes: bool


def way(turn: int) -> Way:
    """The way of a turn. 96 turns in a row take every combination, and of any two of the first four every pair."""
    return Way(
        *COMBINATIONS[turn * 29 % len(COMBINATIONS)], KINDS[(turn // 4 + turn // 96) % 4],
        (turn + turn // 96) % len(SHAPES), THREADS[(turn + turn // 16) % 3], turn % len(AROUND), turn // 5 % 2 == 1,
    )  # fmt: skip


def run(config: Config, turn: int, nasties, count) -> None:
    """Some steps of one configuration in one way of storing, beside the twin."""
    rng, at = np.random.default_rng(turn), way(turn)
    kind, shapes, threads = at.kind, SHAPES[at.shapes], at.threads
    (p_type, p_options), (g_type, g_options) = PARAMS[at.param], GRADS[at.grad]
    more = dict(AROUND[at.around])
    scale, mirror = more.pop("grad_scale", None), more.pop("mirrors", None)
    if config.options["convention"] == "keras":
        more = {key: value for key, value in more.items() if key not in ("clip_norm_each", "clip_value")}
    given = [stored_as(numbers(nasties, kind, shape, rng), p_type) for shape in shapes]
    raw, params = in_memory(nasties, given, turn % 3)
    copies = None
    if mirror is not None:
        dtype = {"bfloat16": BFLOAT16, "float16": np.float16, "uint16": np.uint16}[mirror]
        raw_copies, copies = in_memory(nasties, [np.zeros(shape, dtype) for shape in shapes], turn % 5)
        every = list(copies)
        copies[turn % len(copies)] = None
    options = {**p_options, **g_options, **state_dtype(config, at.state, turn), **more}
    with nasties.level(engine.available_levels()[turn % len(engine.available_levels())]), nasties.parallel_from(0):
        opt = config.make(params, n_threads=threads, mirrors=copies, **options)
        if at.flushes:  # the second step
            for i in range(len(params)):
                opt._plan.set_count(i, 62, numbers_at(config.cls, 63))
        both = Both(opt, nasties, count)
        where = f"{config.label} {at}, turn {turn}"
        both.compare(f"{where}: at first")
        for k in range(8 if config.rule == "radam" else 3):
            given = [stored_as(numbers(nasties, kind, shape, rng), g_type) for shape in shapes]
            raw_grads, grads = in_memory(nasties, given, (turn + k) % 7)
            outside = [raw_grads, list(grads)]
            if k == 1:
                grads[turn % len(grads)] = None
            both.step(grads, scale)
            both.compare(f"{where}, step {k + 1}")
            if more.get("zero_grads"):
                assert not any(bits(g).any() for g in grads if g is not None), where
            assert nasties.outside_is_untouched(*outside), where
        assert nasties.outside_is_untouched(raw, params), where
        if copies is not None:
            assert nasties.outside_is_untouched(raw_copies, every), where


FELLOWS = {rule: [i for i, c in enumerate(CONFIGS) if c.rule == rule] for rule in {c.rule for c in CONFIGS}}


def turns(number: int, few: int) -> list[int]:
    """Which combinations a configuration takes: those of a rule share all of them; and `few` at least."""
    fellows = FELLOWS[CONFIGS[number].rule]
    place = fellows.index(number)
    return list(range(place, max(len(COMBINATIONS), few * len(fellows)), len(fellows)))


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=[c.label for c in CONFIGS])
def test_stored_steps_have_the_bits_of_their_twin(number, amount, nasties, bit_matrix):
    for turn in turns(number, 1):
        for again in range(amount(1, 24)):
            k = turn + again * len(COMBINATIONS)
            run(CONFIGS[number], k, nasties, bit_matrix)


def test_every_rule_meets_every_way_to_store():
    seen = {rule: [way(turn) for i in fellows for turn in turns(i, 1)] for rule, fellows in FELLOWS.items()}
    for rule, ways in seen.items():
        assert {at[:3] for at in ways} == set(COMBINATIONS), rule
        for k in range(8):
            assert len({at[k] for at in ways}) == len({at[k] for at in itertools.chain(*seen.values())}), rule
    every = [way(turn) for turn in range(5 * 96)]
    for j, k in itertools.combinations(range(8), 2):
        assert {(at[j], at[k]) for at in every} == set(itertools.product(*({at[i] for at in every} for i in (j, k))))


# --- One result


@pytest.mark.parametrize("turn", range(16))
def test_cuts_and_threads_change_no_bit(turn, amount, nasties, bit_matrix):
    """Large arrays, of which every thread gets a part; the twin, and one thread."""
    config = next(c for c in CONFIGS if c.rule == "adam" and c.options["convention"] == "torch")
    for k in range(turn, amount(turn + 1, 6 * 96), 16):
        at, rng = way(37 * k + 5), np.random.default_rng(k)
        (p_type, p_options), (g_type, g_options), more = PARAMS[at.param], GRADS[at.grad], dict(AROUND[at.around])
        scale, mirror = more.pop("grad_scale", None), more.pop("mirrors", None)
        sizes = [257, 70_000, 1025] if k % 2 else [40_000, 4096, 33_333]
        start = [stored_as(numbers(nasties, "ordinary", (n,), rng), p_type) for n in sizes]
        grads = [[stored_as(numbers(nasties, at.kind, (n,), rng), g_type) for n in sizes] for _ in range(2)]
        results = []
        for threads in (1, 2, 3):
            with nasties.parallel_from(0):
                copies = None if mirror is None else [np.zeros(n, np.float16 if mirror == "float16" else np.uint16)
                                                      for n in sizes]  # fmt: skip
                opt = config.make([p.copy() for p in start], n_threads=threads, mirrors=copies, **p_options,
                                  **g_options, **state_dtype(config, at.state), **more)  # fmt: skip
                both = Both(opt, nasties, bit_matrix)
                for g in grads:
                    (opt if results else both).step([x.copy() for x in g], scale)
                if not results:
                    both.compare(f"{at}, {k}")
                results.append([array.tobytes() for array in written(opt)])
                bit_matrix.arrays += len(results[-1])
        assert results[0] == results[1] == results[2], (at, k)


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("grad", GRADS)
def test_split_takes_the_path_of_float32(cls, convention, grad, nasties):
    """The weights of float32 to the bit, from the same gradients: what bfloat16 has of them, and the low halves."""
    rng, (g_type, g_options) = np.random.default_rng(0), GRADS[grad]
    start = [stored_as(rng.standard_normal(shape), BFLOAT16) for shape in ((), (300,), (3, 5), (4097,))]
    params = [np.asarray(half(p).reshape(p.shape)) for p in start]
    wide = build(cls, params, convention, ema_decay=0.9, **g_options)
    split = build(cls, [p.copy() for p in start], convention, ema_decay=0.9, split=True, **STORED, **g_options)
    for _ in range(5):
        grads = [stored_as(rng.standard_normal(p.shape), g_type) for p in start]
        wide.step(grads)
        split.step(grads)
    for i, p in enumerate(params):
        group, state = split._plan.groups[0], split._plan.states[i]
        got = loaded(group, split.params[i], state)
        assert bits(got.pop("")).tobytes() == bits(p).tobytes()
        for name, array in wide._plan.states[i].items():
            assert bits(got.pop(name)).tobytes() == bits(array).tobytes(), name
        assert not got


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_a_bfloat16_parameter_is_stepped_in_float32_and_rounded_once(cls, convention):
    rng = np.random.default_rng(0)
    start = stored_as(rng.standard_normal(777), BFLOAT16)
    opt = build(cls, start.copy(), convention, rounding="nearest", **STORED)
    for _ in range(3):
        wide = half(opt.params[0])
        plain = build(cls, wide, convention)
        plain._plan.set_count(0, *opt._plan.count(0))
        for name, array in opt._plan.states[0].items():
            plain._plan.states[0][name][...] = array
        g = rng.standard_normal(777).astype(F32)
        opt.step(g)
        plain.step(g)
        assert bits(opt.params[0]).tobytes() == bits(stored_as(wide, np.uint16)).tobytes()


# --- Random rounding


def stepped(seed: int | None = 0, place: int = 0, steps: int = 3, n: int = 5000, **more: Any) -> list[bytes]:
    """A parameter and its state after some steps, as the one at `place` of three."""
    params = [stored_as(np.linspace(-1, 1, n), BFLOAT16) for _ in range(3)]
    options = {"rounding": "stochastic", "state_dtype": "bfloat16", "lr": 0.001, "seed": seed, **STORED, **more}
    opt = fastopt.Adam(params, **options)
    for _ in range(steps):
        opt.step([np.linspace(1, 2, n).astype(F32)] * 3)
    return [bits(array).tobytes() for array in (params[place], *opt._plan.states[place].values())]


def test_the_same_seed_gives_the_same_bits_and_another_others():
    first = stepped()
    assert first == stepped() == stepped(seed=None)
    for other in (stepped(seed=1), stepped(seed=2**32), stepped(seed=2**63), stepped(place=1)):
        assert other[0] != first[0] and other[2] != first[2]
        assert other[1] == first[1]  # to the nearest
    assert stepped(state_dtype="8bit")[2] != stepped(state_dtype="8bit", seed=3)[2]
    assert stepped(state_dtype="8bit")[1] == stepped(state_dtype="8bit", seed=3)[1]


def test_every_step_array_and_slot_has_random_numbers_of_its_own():
    keys = {reference.stream_key(seed, stream, slot, t) for seed in (0, 1, 2**64 - 1) for stream in range(20)
            for slot in ("", "exp_avg_sq", "square_avg", "acc_delta") for t in range(20)}  # fmt: skip
    assert len(keys) == 3 * 20 * 4 * 20


def test_random_numbers_go_with_a_parameter_that_is_loaded_into_another_place(nasties, bit_matrix):
    """The twin of an optimizer that goes on from groups in another order, by their names."""
    rng = np.random.default_rng(0)
    arrays = {name: stored_as(rng.standard_normal(5000), BFLOAT16) for name in "abc"}
    options = {"rounding": "stochastic", "state_dtype": "8bit", **STORED}
    first = fastopt.Adam({name: p.copy() for name, p in arrays.items()}, **options)
    grads = {name: rng.standard_normal(5000).astype(F32) for name in "abc"}
    first.step(grads)
    other = fastopt.Adam({name: p.copy() for name, p in zip("cab", first.params, strict=True)}, **options)
    other.load_state_dict(first.state_dict())
    assert other._plan.streams == [2, 0, 1]
    both = Both(other, nasties, bit_matrix)
    for _ in range(2):
        both.step([grads[name] for name in "cab"])
        both.compare("another order")


def test_rounding_is_fair():
    """The mean of many steps is that of the number which was rounded."""
    p = np.ones(20_000, F32)
    exact = 1 - 0.001 * 64
    x = stored_as(p, BFLOAT16)
    opt = fastopt.SGD(x, lr=0.001, rounding="stochastic", **STORED)
    for _ in range(64):
        opt.step(p)
    assert abs(half(x).mean(dtype=np.float64) - exact) < 2e-4
    y = stored_as(p, BFLOAT16)
    nearest = fastopt.SGD(y, lr=0.001, rounding="nearest", **STORED)
    for _ in range(64):
        nearest.step(p)
    assert (half(y) == 1).all()  # which stands still


# --- Edits, and gradients of one type after the other


def test_every_step_can_bring_gradients_of_another_type(nasties, bit_matrix):
    rng = np.random.default_rng(0)
    for kind, (p_type, options) in PARAMS.items():
        params = [stored_as(rng.standard_normal(n), p_type) for n in (5000, 300)]
        opt = fastopt.Adam(params, state_dtype="8bit", clip_norm=1.0, zero_grads=True, **{
            **options, "grad_dtype": "bfloat16"})  # fmt: skip
        both = Both(opt, nasties, bit_matrix)
        for k in range(12):
            types = [list(GRADS.values())[(k + i + k // 4) % 4][0] for i in range(2)]
            both.step([stored_as(rng.standard_normal(p.size), t) for p, t in zip(params, types, strict=True)])
            both.compare(f"{kind} {types}")


def test_a_plain_optimizer_reads_short_gradients_and_then_long_ones(nasties, bit_matrix):
    """Without any option: nothing of a gradient's format is left to the next step."""
    rng = np.random.default_rng(0)
    both = Both(fastopt.Adam([rng.standard_normal(n).astype(F32) for n in (700, 300)]), nasties, bit_matrix)
    for k in range(6):
        types = (np.float16, F32, BFLOAT16 if not STORED else F32)
        both.step([stored_as(rng.standard_normal(n), types[(k + i) % 3]) for i, n in enumerate((700, 300))])
        both.compare(f"step {k}")


def test_seed_and_rounding_can_be_edited(nasties, bit_matrix):
    rng = np.random.default_rng(0)
    params = [stored_as(rng.standard_normal(n), BFLOAT16) for n in (5000, 300)]
    opt = fastopt.Adam(params, rounding="stochastic", state_dtype={"exp_avg_sq": "8bit"}, **STORED)
    both = Both(opt, nasties, bit_matrix)
    for k, edit in enumerate(({}, {"seed": 5}, {"rounding": "nearest"}, {"rounding": "stochastic", "seed": None})):
        opt.param_groups[0].update(edit)
        both.step([rng.standard_normal(p.size).astype(F32) for p in params])
        both.compare(f"edit {k}")


@pytest.mark.parametrize(
    "edit",
    [{"state_dtype": "bfloat16"}, {"state_dtype": None}, {"split": True}, {"split": True, "rounding": None},
     {"rounding": None}, {"seed": -1}, {"seed": 1.0}, {"rounding": "up"}, {"param_dtype": "float16"}],
)  # fmt: skip
def test_what_is_stored_cannot_be_edited(edit):
    p = stored_as(np.linspace(-1, 1, 5000), BFLOAT16)
    opt = fastopt.Adam(p, rounding="stochastic", state_dtype="8bit", **STORED)
    g = np.ones(5000, F32)
    opt.step(g)
    before, arrays = dict(opt.param_groups[0]), [array.copy() for array in written(opt)]
    opt.param_groups[0].update(edit)
    with pytest.raises(HyperparameterError):
        opt.step(g)
    assert all((a == b).all() for a, b in zip(arrays, written(opt), strict=True)) and opt.steps == 1
    opt.param_groups[0].clear()
    opt.param_groups[0].update(before)
    opt.step(g)
    assert opt.steps == 2


def test_a_dict_of_types_is_read_at_every_step():
    table = {"exp_avg": "bfloat16"}
    opt = fastopt.Adam(np.zeros(5000, F32), state_dtype=table)
    opt.step(np.ones(5000, F32))
    table["exp_avg"] = "8bit"
    with unchanged(opt, HyperparameterError, "cannot be edited"):
        opt.step(np.ones(5000, F32))
    table["exp_avg"] = "bfloat16"
    opt.step(np.ones(5000, F32))


# --- Gradients that are not finite


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("param", ["float32", "split", "nearest"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_nonfinite_gradients_are_found_before_the_first_write(grad, param, clip, nasties):
    (p_type, options), (g_type, g_options) = PARAMS[param], GRADS[grad]
    n = 5003
    for threads, zeroes in ((1, False), (3, True)):
        mirror = np.zeros(n, np.uint16)
        params = [stored_as(np.linspace(-1, 1, n), p_type), stored_as(np.linspace(-1, 1, 5), p_type)]
        opt = fastopt.AdamW(
            {"w": params[0], "b": params[1]}, nonfinite="skip", n_threads=threads, clip_norm=clip, zero_grads=zeroes,
            state_dtype="8bit", mirrors={"w": mirror}, **options, **g_options,
        )  # fmt: skip
        with nasties.parallel_from(0):
            biggest = stored_as(np.full(n, 65504.0), g_type)
            opt.step({"w": biggest.copy(), "b": None})
            kept = opt._plan.states[0], params[0].copy(), mirror.copy()
            state = {name: array.copy() for name, array in kept[0].items()}
            for k, bad in itertools.product((0, 1, 255, 256, 1023, 1024, 4096, n - 1), (np.nan, np.inf, -np.inf)):
                g = biggest.copy()
                g[k] = stored_as(np.array(bad), g_type)
                for policy in ("skip", "raise"):
                    opt.nonfinite = policy
                    if policy == "raise":
                        with pytest.raises(fastopt.errors.NonFiniteError, match="gradient of parameter 'w' holds"):
                            opt.step({"w": g, "b": None})
                    else:
                        opt.step({"w": g if not zeroes else (zeroed := g.copy()), "b": None})
                        assert not zeroes or not bits(zeroed).any()
                assert bits(params[0]).tobytes() == bits(kept[1]).tobytes() and (mirror == kept[2]).all()
                assert all((array == state[name]).all() for name, array in kept[0].items())
        opt.step({"w": biggest.copy(), "b": None}, None, 1.0)
        assert opt.steps == 1 and opt.skipped_steps == 25


# --- Mirrors


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("mirror", [BFLOAT16, np.uint16, np.float16])
def test_a_mirror_is_a_copy_from_the_start_and_after_every_step(param, mirror):
    rng, (p_type, options) = np.random.default_rng(0), PARAMS[param]
    params = {"w": stored_as(rng.standard_normal((300, 4)), p_type).copy("F"), "b": stored_as(np.array(2.5), p_type),
              "c": stored_as(rng.standard_normal(3), p_type)}  # fmt: skip
    mirrors = {name: np.empty_like(p, mirror) for name, p in params.items() if name != "c"}
    opt = fastopt.SGD(params, lr=0.01, momentum=0.9, mirrors=mirrors, **options)

    def check():
        for i, name in enumerate(mirrors):
            want = loaded(opt._plan.groups[0], opt.params[i], opt._plan.states[i])[""]
            assert (bits(mirrors[name]) == bits(stored_as(want, mirror))).all()

    check()
    for grads in ((1, 1, 1), (None, 1, 1), (1, None, None)):
        opt.step({name: None if g is None else rng.standard_normal(params[name].shape).astype(F32).copy("K")
                  if name != "w" else rng.standard_normal((300, 4)).astype(F32).copy("F")
                  for name, g in zip(params, grads, strict=True)})  # fmt: skip
        check()
    other = opt.params[1].copy()
    other[...] = stored_as(np.array(-7.0), p_type)
    opt.rebind(1, other)
    check()
    more = [np.zeros(3, mirror)]
    opt.add_param_group({"params": {"d": stored_as(np.ones(3), p_type)}, "mirrors": more})
    assert (half(more[0]) == 1).all()


def test_mirrors_are_one_array_a_list_or_a_dict():
    def w():
        return np.ones(3, F32)

    def m():
        return np.zeros(3, np.uint16)

    for params, mirrors in ((w(), m()), ([w()], [m()]), ([w(), w()], (None, m())), ({"a": w()}, {"a": m()}),
                            ({"a": w(), "b": w()}, {"b": m()}), ({"a": w()}, [m()]),
                            ([{"params": [w()], "mirrors": [m()]}, {"params": [w()]}], None)):  # fmt: skip
        opt = fastopt.SGD(params, lr=0.5, mirrors=mirrors)
        assert sum(mirror is not None for mirror in opt._plan.mirrors) == 1
        assert all((half(mirror) == 1).all() for mirror in opt._plan.mirrors if mirror is not None)


def read_only(a):
    a.flags.writeable = False
    return a


BAD_MIRRORS = {
    "float32": (lambda p: np.zeros((3, 4), F32), fastopt.errors.DTypeError, "mirror of parameter 'w' has dtype"),
    "shape": (lambda p: np.zeros((4, 3), np.uint16), fastopt.errors.ShapeError, "mirror of parameter 'w' has shape"),
    "order": (lambda p: np.zeros((3, 4), np.uint16, "F"), LayoutError, "mirror of parameter 'w' has s"),
    "strided": (lambda p: np.zeros((3, 8), np.uint16)[:, ::2], fastopt.errors.LayoutError, "mirror of parameter 'w'"),
    "read-only": (lambda p: read_only(np.zeros((3, 4), np.uint16)), fastopt.errors.ReadOnlyError, "of parameter 'w'"),
    "parameter": (lambda p: p.view(np.uint16)[:, :4], fastopt.errors.LayoutError, "mirror of parameter 'w'"),
    "overlap": (lambda p: p.view(np.uint16).ravel()[:12].reshape(3, 4), fastopt.errors.OverlapError, "mirror of par"),
    "a number": (lambda p: 1.0, fastopt.errors.DTypeError, "mirror of parameter 'w'"),
}


@pytest.mark.parametrize("case", BAD_MIRRORS)
def test_bad_mirrors_are_refused(case):
    make, error, match = BAD_MIRRORS[case]
    p = np.ones((3, 4), F32)
    with pytest.raises(error, match=match):
        fastopt.Adam({"w": p}, mirrors={"w": make(p)})
    opt = fastopt.Adam({"v": np.ones(2, F32)})
    with unchanged(opt, error, match):
        opt.add_param_group({"params": {"w": p}, "mirrors": {"w": make(p)}})
    assert (p == 1).all()


@pytest.mark.parametrize(
    ("params", "mirrors", "match"),
    [([np.ones(3, F32)] * 1, [], "one for each of 1"), ([np.ones(3, F32)], "m", "one for each"),
     ([np.ones(3, F32)], {"w": 1}, "names of the parameters"), ({"w": np.ones(3, F32)}, {"v": 1}, "names of the param"),
     ([{"params": [np.ones(3, F32)]}, {"params": [np.ones(3, F32)]}], [None, None], "key 'mirrors'")],
)  # fmt: skip
def test_mirrors_that_do_not_match_the_parameters_are_refused(params, mirrors, match):
    with pytest.raises(fastopt.errors.ParameterError, match=match):
        fastopt.SGD(params, lr=0.1, mirrors=mirrors)


def test_mirrors_are_memory_of_their_own():
    shared = np.zeros(8, np.uint16)
    w = [np.ones(5, F32), np.ones(5, F32)]
    with pytest.raises(fastopt.errors.OverlapError, match="mirror of parameter 1 overlaps mirror of parameter 0"):
        fastopt.SGD(w, lr=0.1, mirrors=[shared[:5], shared[3:]])
    with pytest.raises(fastopt.errors.DTypeError, match="parameter 0.*float64"):
        fastopt.SGD([np.ones(5)], lr=0.1, mirrors=[shared[:5]])
    opt = fastopt.SGD(w, lr=0.1, mirrors=[shared[:5], None], **GRADS["uint16"][1])
    with unchanged(opt, fastopt.errors.OverlapError, "gradient of parameter 1 overlaps.*mirror", shared):
        opt.step([None, shared[:5]])
    with unchanged(opt, fastopt.errors.OverlapError, "mirror of parameter 0", shared):
        opt.add_param_group({"params": [shared.view(F32)[1:2]]})


@pytest.mark.parametrize("change", ["read-only", "moved"])
def test_a_mirror_that_was_changed_later_is_noticed(change):
    w, mirror = np.ones(500, F32), np.zeros(500, np.uint16)
    opt = fastopt.SGD({"w": w}, lr=0.1, mirrors={"w": mirror}, ema_decay=0.5)
    opt.step([w.copy()])
    if change == "read-only":
        mirror.flags.writeable = False
    else:
        mirror.resize(100_000, refcheck=False)
    before = mirror.copy()
    for call in (lambda: opt.step([np.ones(500, F32)]), lambda: opt.averaged().__enter__(),
                 lambda: opt.rebind(0, w.copy())):  # fmt: skip
        with unchanged(opt, fastopt.errors.LayoutError, "the mirror of parameter 'w' was changed"):
            call()
        assert (mirror == before).all()


@pytest.mark.parametrize("changed", ["mirror", "state"])
@pytest.mark.parametrize("way", ["load", "edit"])
def test_what_a_factory_takes_away_from_another_group_is_not_written_to(changed, way):
    """New state of a later group is asked for when that of an earlier one is there already, and has been looked at."""
    n, made = 100_000, []
    mirrors = [np.zeros(n, np.uint16), np.zeros(n, np.uint16)]

    def factory(name, shape, dtype):
        if name == "max_exp_avg_sq":
            if made:  # for the second group: take away what the first has
                (mirrors[0] if changed == "mirror" else made[0]).resize(1, refcheck=False)
            made.append(np.zeros(shape, dtype))
            return made[-1]
        return np.zeros(shape, dtype)

    def groups(**more: Any) -> list[dict[str, Any]]:
        return [{"params": [np.ones(n, F32)], **({"mirrors": [mirrors[k]]} if more else {})} for k in range(2)]

    source = fastopt.Adam(groups(), amsgrad=True)
    opt = fastopt.Adam(groups(mirrored=True), state_factory=factory)
    grads = [np.ones(n, F32), np.ones(n, F32)]
    source.step(grads)
    opt.step(grads)
    before = [p.copy() for p in opt.params]
    with pytest.raises(fastopt.FastoptError, match=f"{changed} .*of parameter 0|mirror of parameter 0"):
        if way == "load":
            opt.load_state_dict(source.state_dict())
        else:
            for group in opt.param_groups:
                group["amsgrad"] = True
            opt.step(grads)
    assert all((p == q).all() for p, q in zip(opt.params, before, strict=True)) and opt.steps == 1


# --- Averages


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("param", PARAMS)
def test_averages_change_places_and_come_back_to_the_bit(param, convention, nasties):
    rng, (p_type, options) = np.random.default_rng(0), PARAMS[param]
    sizes, hard = (70_000, 257, 1, 0), nasties.nasty(F32)
    for threads in (1, 3):
        params = [stored_as(rng.standard_normal(n), p_type) for n in (*sizes, 3, len(hard))]
        mirrors = [np.zeros(p.size, np.uint16) if k % 2 else None for k, p in enumerate(params)]
        opt = fastopt.AdamW(params, lr=0.1, convention=convention, ema_decay=0.5, state_dtype="8bit", mirrors=mirrors,
                            n_threads=threads, **options)  # fmt: skip
        with nasties.parallel_from(0):
            for _ in range(3):
                opt.step([None if p.size == 3 else rng.standard_normal(p.size).astype(F32) for p in params])
            opt._plan.states[5]["ema"][...] = np.where(np.isnan(hard), F32(0), hard)
            averages = [np.array(a) for a in opt.averages]
            saved = copy.deepcopy(opt.state_dict())
            before = [array.copy() for array in written(opt)]
            with opt.averaged():
                inside = opt.state_dict()
                for k, (p, average) in enumerate(zip(params, averages, strict=True)):
                    if p.size == 3:  # without an average
                        assert average.dtype == p.dtype
                        continue
                    assert average.dtype == F32
                    want = average if p.itemsize == 4 else reference.FORMATS["split"].store(average, 0)[0]
                    assert (bits(p) == bits(want)).all()
                    if mirrors[k] is not None:
                        shown = average if "split" in param or p.itemsize == 4 else half(p)
                        assert (mirrors[k] == stored_as(shown, np.uint16)).all()
                    assert (bits(opt.averages[k]) == bits(average)).all()
                for key in saved["state"]:
                    assert saved["state"][key].keys() == inside["state"][key].keys()
                    for name, array in saved["state"][key].items():
                        same = np.asarray(array).tobytes() == np.asarray(inside["state"][key][name]).tobytes()
                        assert same and np.asarray(array).dtype == np.asarray(inside["state"][key][name]).dtype, name
                with pytest.raises(fastopt.errors.AveragedError):
                    opt.step([None] * len(params))
            assert all((a == b).all() for a, b in zip(before, written(opt), strict=True))


@pytest.mark.parametrize("param", ["nearest", "split"])
def test_what_is_written_to_a_parameter_inside_goes_to_its_average(param):
    p_type, options = PARAMS[param]
    p = stored_as(np.linspace(-1, 1, 300), p_type)
    opt = fastopt.SGD(p, lr=0.1, ema_decay=0.5, **options)
    for _ in range(3):
        opt.step(np.ones(300, F32))
    with opt.averaged():
        p[...] = stored_as(np.linspace(2, 3, 300), p_type)
    assert np.allclose(opt.averages[0], np.linspace(2, 3, 300), rtol=2**-7)
    assert half(p).max() < 1


# --- Lookahead


@pytest.mark.parametrize("state", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("param", PARAMS)
def test_lookahead_is_that_of_the_stored_arrays(param, state, nasties):
    rng, (p_type, options) = np.random.default_rng(0), PARAMS[param]
    params = [stored_as(rng.standard_normal(n), p_type) for n in (70_000, 255, 4097, 0, 1)]
    with nasties.parallel_from(0):
        opt = fastopt.NAG(params, lr=0.1, momentum=0.71, n_threads=3, state_dtype=state, **options)
        for _ in range(2):
            opt.step([rng.standard_normal(p.size).astype(F32) for p in params])
        before = [bits(p).copy() for p in params]
        ahead = opt.lookahead()
    for i, p in enumerate(params):
        x = loaded(opt._plan.groups[0], p, opt._plan.states[i])
        want = reference.lookahead(x[""], x["velocity"], F32(0.71))
        assert ahead[i].dtype == p.dtype and (bits(ahead[i]) == bits(stored_as(want, p_type))).all()
        assert (bits(p) == before[i]).all()


@pytest.mark.parametrize("options", [{"seed": 3}, {"rounding": "nearest"}, {"grad_dtype": "bfloat16"}])
def test_lookahead_of_float64_beside_options_of_storage_is_that_of_float64(options):
    """Options of storage mean nothing to float64: the engine keeps notes of formats for it, too, and they are empty."""
    ahead = []
    for more in ({}, options):
        opt = fastopt.NAG(np.linspace(1, 2, 777), lr=0.1, momentum=0.71, **more)
        opt.step(np.linspace(-1, 1, 777))
        ahead.append(opt.lookahead())
    assert ahead[0].tobytes() == ahead[1].tobytes()


# --- First values


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("state", ["bfloat16", "8bit"])
def test_first_values_are_stored_as_of_step_0(state, threads, nasties):
    sizes = [70_000, 4095, 4096, 5, 0]
    with nasties.parallel_from(0):
        opt = fastopt.Adagrad([np.ones(n, F32) for n in sizes], initial_accumulator_value=0.43, state_dtype=state,
                              n_threads=threads, seed=11)  # fmt: skip
    for i, n in enumerate(sizes):
        group, param = opt._plan.groups[0], opt.params[i]
        operand = reference.state_operand(group.kinds["sum"], opt._plan.states[i]["sum"], param, group.storage)
        assert (operand.format is None) == (state == "8bit" and n < 4096)
        want = np.full(n, 0.43, F32)
        if operand.format is None:
            assert (operand.a == want).all()
            continue
        a, b = reference.FORMATS[operand.format].store(want, reference.stream_key(11, i, "sum", 0))
        assert (operand.a == a).all() and (operand.b == b).all()
        assert n < 2 or len(np.unique(operand.load())) == 2  # above and below


class Anchored(fastopt.Optimizer):
    """Lion, whose average starts as the parameter."""

    hyperparameters = ("lr", "betas")
    slots = (fastopt.Slot("exp_avg", first="copy", narrow="moment"),)
    conventions = {"paper": fastopt.Convention({"lr": 1e-3, "betas": (0.9, 0.99)})}

    def __init__(self, params, lr=None, betas=None, *, convention=None, **common):
        super().__init__(params, {"lr": lr, "betas": betas}, convention=convention, **common)

    @staticmethod
    def rule(group, convention):
        return "lion"


class SquareAnchored(Anchored):
    slots = (fastopt.Slot("exp_avg", first="copy", narrow="square"),)


@pytest.mark.parametrize("cls", [Anchored, SquareAnchored])
@pytest.mark.parametrize("state", STATES[:3])
@pytest.mark.parametrize("param", PARAMS)
def test_state_that_starts_as_a_copy_is_stored(cls, param, state, nasties, bit_matrix):
    rng, (p_type, options) = np.random.default_rng(0), PARAMS[param]
    with nasties.parallel_from(0):
        params = [stored_as(rng.standard_normal(n), p_type) for n in (20_000, 255, 4097, 0)]
        opt = cls(params, n_threads=3, state_dtype=state, **options)
        for p in params:
            p[...] = stored_as(rng.standard_normal(p.size), p_type)  # before the first step
        both = Both(opt, nasties, bit_matrix)
        for k in range(3):
            both.step([rng.standard_normal(p.size).astype(F32) if k or p.size != 255 else None for p in params])
            both.compare(f"{param} {state} step {k}")


def test_a_factory_supplies_stored_state():
    asked = []

    def factory(name, shape, dtype):
        asked.append((name, shape, np.dtype(dtype)))
        return np.full(shape, 77, dtype) if dtype.kind in "ui" else np.full(shape, np.nan, dtype)

    p = stored_as(np.linspace(-1, 1, 5000), BFLOAT16)
    opt = fastopt.Adam(p, split=True, state_dtype="8bit", ema_decay=0.9, state_factory=factory, **STORED)
    q = p.copy()
    plain = fastopt.Adam(q, split=True, state_dtype="8bit", ema_decay=0.9, **STORED)
    for _ in range(2):
        opt.step(np.ones(5000, F32))
        plain.step(np.ones(5000, F32))
    assert asked == [("exp_avg", (5040,), np.uint8), ("exp_avg_sq", (5040,), np.uint8), ("ema", (5000,), F32),
                     ("low", (5000,), np.int16)]  # fmt: skip
    assert all((bits(a) == bits(b)).all() for a, b in zip(
        (p, *opt._plan.states[0].values()), (q, *plain._plan.states[0].values()), strict=True))  # fmt: skip
    for wrong in (np.zeros(5040, np.int8), np.zeros(5039, np.uint8), read_only(np.zeros(5040, np.uint8))):
        with pytest.raises(fastopt.FastoptError, match="state 'exp_avg' of parameter 0"):
            fastopt.Adam(p, split=True, state_dtype="8bit", state_factory=lambda *a, w=wrong: w, **STORED)


# --- What is refused

W, B16 = np.float64, BFLOAT16
REFUSED: dict[str, tuple[Any, dict[str, Any], Any, str]] = {
    "float64 with 8 bits": (W, {"state_dtype": "8bit"}, TypeError, "'w' has dtype float64.*float32 and bfloat16"),
    "float64 split": (W, {"split": True}, TypeError, "'w' has dtype float64.*float32 and bfloat16"),
    "float64 as bfloat16": (W, {"param_dtype": "bfloat16"}, TypeError, "'w' has dtype float64"),
    "bfloat16 alone": (B16, STORED, ValueError, "'w' has dtype bfloat16.*split=True.*rounding='stochastic'"),
    "bfloat16 with a seed": (B16, {"seed": 1, **STORED}, ValueError, "'w' has dtype bfloat16"),
    "uint16": (np.uint16, {"split": True}, TypeError, "'w' has dtype uint16.*param_dtype='bfloat16'"),
    "float16": (np.float16, {"split": True}, TypeError, "'w' has dtype float16.*bfloat16"),
    "split and rounded": (B16, {"split": True, "rounding": "nearest", **STORED}, ValueError, "split=True rounds no"),
    "split=1": (F32, {"split": 1}, ValueError, "split=1 must be True or False"),
    "rounding up": (F32, {"rounding": "up"}, ValueError, "'nearest' or 'stochastic'"),
    "a negative seed": (F32, {"seed": -1}, ValueError, "seed=-1"),
    "a seed of 65 bits": (F32, {"seed": 2**64}, ValueError, "below 2"),
    "a float seed": (F32, {"seed": 1.0}, ValueError, "seed=1.0"),
    "float16 gradients as uint16": (F32, {"grad_dtype": "float16"}, ValueError, "grad_dtype='float16'"),
    "4 bits": (F32, {"state_dtype": "4bit"}, ValueError, "'float32', 'bfloat16', '8bit'"),
    "a type": (F32, {"state_dtype": F32}, ValueError, "state_dtype"),
    "no such state": (F32, {"state_dtype": {"momentum": "8bit"}}, ValueError, "'momentum'.*exp_avg, exp_avg_sq"),
    "the average": (F32, {"state_dtype": {"ema": "8bit"}, "ema_decay": 0.9}, ValueError, "'ema'"),
    "the low halves": (F32, {"state_dtype": {"low": "8bit"}, "split": True}, ValueError, "'low'"),
    "a maximum": (F32, {"state_dtype": {"max_exp_avg_sq": "8bit"}, "amsgrad": True}, ValueError, "stays float32"),
}


@pytest.mark.skipif(BFLOAT16 is np.uint16, reason="ml_dtypes is not installed")
def test_bfloat16_in_the_other_byte_order_is_refused():
    swapped = np.ones(5000, np.uint16).view(np.dtype(BFLOAT16).newbyteorder())
    match = "has dtype bfloat16, byte-swapped"
    with pytest.raises(fastopt.errors.DTypeError, match=f"^parameter 0 {match}"):
        fastopt.SGD(swapped, lr=0.1, split=True)
    with pytest.raises(fastopt.errors.DTypeError, match=f"^mirror of parameter 0 {match}"):
        fastopt.SGD(np.ones(5000, F32), lr=0.1, mirrors=swapped)
    opt = fastopt.Adam(np.ones(5000, F32), copy_grads=True, state_dtype="bfloat16")
    with unchanged(opt, fastopt.errors.DTypeError, f"^gradient of parameter 0 {match}"):
        opt.step(swapped)
    opt.step(np.ones(5000, F32))
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["exp_avg"] = swapped
    with unchanged(opt, fastopt.StateDictError, "exp_avg.*has dtype"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("key", ["state_dtype", "split", "rounding", "seed", "param_dtype", "grad_dtype"])
def test_an_option_that_cannot_be_compared_is_refused_as_any_other(key):
    bad, g = np.array([1, 2]), np.ones(5, F32)
    with pytest.raises(HyperparameterError, match=key):
        fastopt.Adam(np.ones(5, F32), **{key: bad})
    opt = fastopt.Adam(np.ones(5, F32), seed=3)
    opt.step(g)
    saved = copy.deepcopy(opt.state_dict())
    if key in ("rounding", "seed"):  # which a state dict brings
        saved["param_groups"][0][key] = bad
        with unchanged(opt, HyperparameterError, key):
            opt.load_state_dict(saved)
    opt.param_groups[0][key] = bad
    with pytest.raises(HyperparameterError, match=key):
        opt.step(g)


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_exists(case):
    dtype, options, error, match = REFUSED[case]
    p = np.ones(5000, dtype)
    with pytest.raises(error, match=match) as caught:
        fastopt.Adam({"w": p}, **options)
    assert isinstance(caught.value, fastopt.FastoptError)
    opt = fastopt.Adam({"v": np.ones(3, F32)})
    with unchanged(opt, error, match):
        opt.add_param_group({"params": {"w": p}, **options})
    assert (p == 1).all()


def test_state_whose_sign_or_difference_counts_stays_wide():
    for cls, options, name in ((fastopt.Rprop, {}, "prev"), (fastopt.RMSprop, {"centered": True}, "square_avg")):
        with pytest.raises(HyperparameterError, match=f"'{name}'.*stays float32"):
            cls(np.ones(5000, F32), state_dtype={name: "8bit"}, **options)
        opt = cls(np.ones(5000, F32), state_dtype="8bit", **options)
        assert opt.state[0][name].dtype == F32
    assert fastopt.Rprop(np.ones(5000, F32), state_dtype={"prev": "bfloat16"}).state[0]["prev"].itemsize == 2


class Rows(Anchored):
    slots = (*Anchored.slots, fastopt.Slot("row", like="row", storage="float64", first=3.0))


def test_a_type_that_a_slot_declares_is_not_changed_by_options():
    for dtype in ("float32", "bfloat16", "8bit", {"exp_avg": "bfloat16"}):
        opt = Rows(np.ones((70, 80), F32), state_dtype=dtype)
        assert opt.state[0]["row"].dtype == np.float64 and (opt.state[0]["row"] == 3).all()
    with pytest.raises(HyperparameterError, match="'row'.*always float64"):
        Rows(np.ones((70, 80), F32), state_dtype={"row": "float32"})


BAD_GRADIENTS: dict[str, tuple[Any, Any, Any, dict[str, Any], str]] = {
    "uint16": (F32, np.uint16, "C", {}, "'w' has dtype uint16; float32, bfloat16 or float16.*grad_dtype='bfloat16'"),
    "uint16 of float64": (W, np.uint16, "C", {"grad_dtype": "bfloat16"}, "'w' has dtype uint16; float64 is needed"),
    "int16": (F32, np.int16, "C", {"grad_dtype": "bfloat16"}, "'w' has dtype int16"),
    "float64": (F32, W, "C", {}, "'w' has dtype float64; float32, bfloat16 or float16 is needed, or copy_grads=True"),
    "float16 of float64": (W, np.float16, "C", {}, "'w' has dtype float16; float64 is needed, or copy_grads=True"),
    "float16 in another order": (F32, np.float16, "F", {}, "'w' has strides.*copy_grads=True"),
    "uint16 in another order": (F32, np.uint16, "F", {"grad_dtype": "bfloat16"}, "'w' has strides.*copy_grads=True"),
    "to be zeroed": (F32, np.float16, "F", {"zero_grads": True, "copy_grads": True}, "'w' has strides.*zeroes it"),
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_bad_gradients_are_refused_before_anything_is_written(case):
    p_type, g_type, order, options, match = BAD_GRADIENTS[case]
    params = {"v": np.ones((3, 4), p_type), "w": np.ones((3, 4), p_type)}
    opt = fastopt.Adam(params, **options)
    good, bad = np.ones((3, 4), p_type), np.ones((3, 4), g_type, order)
    with unchanged(opt, fastopt.FastoptError, f"gradient of parameter {match}", good, bad):
        opt.step({"v": good, "w": bad})


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("param", PARAMS)
def test_copy_grads_takes_short_gradients_in_another_order(param, grad):
    (p_type, options), (g_type, g_options) = PARAMS[param], GRADS[grad]
    rng = np.random.default_rng(0)
    start, g = stored_as(rng.standard_normal((30, 40)), p_type), stored_as(rng.standard_normal((30, 40)), g_type)
    straight, odd, wide = (start.copy() for _ in range(3))
    fastopt.Adam(straight, **options, **g_options).step(g)
    opt = fastopt.Adam(odd, copy_grads=True, **options, **g_options)
    for other in (g.copy("F"), np.repeat(g, 2, axis=0)[::2]):
        odd[...] = start
        opt.load_state_dict(fastopt.Adam(start.copy(), **options, **g_options).state_dict())
        opt.step(other)
        assert (bits(odd) == bits(straight)).all()
    fastopt.Adam(wide, copy_grads=True, **options).step(half(g).reshape(g.shape).astype(np.float64).copy("F"))
    assert (bits(wide) == bits(straight)).all()


def test_functions_step_float32_and_float64_alone():
    p, short = np.ones(3, F32), np.ones(3, np.float16)
    for args, options, error, match in (
        ((p, short, p.copy(), p.copy()), {}, TypeError, "gradient of parameter 0 has dtype float16; float32 is needed"),
        ((short, p, p.copy(), p.copy()), {}, TypeError, "parameter 0 has dtype float16; float32 or float64"),
        ((p, p.copy(), short, p.copy()), {}, TypeError, "state 'exp_avg' of parameter 0 has dtype float16"),
        ((p, p.copy(), p.copy(), p.copy()), {"split": True}, TypeError, "'split' is an option of the class"),
        ((p, p.copy(), p.copy(), p.copy()), {"state_dtype": "8bit"}, TypeError, "float32 and float64 alone"),
    ):
        with pytest.raises(error, match=match) as caught:
            fastopt.functional.adam_(*args, step=1, **options)
        assert isinstance(caught.value, fastopt.FastoptError)
    if not STORED:
        half_p = np.ones(3, BFLOAT16)
        for args in ((half_p, p, p.copy(), p.copy()), (p, half_p, p.copy(), p.copy())):
            with pytest.raises(TypeError, match="dtype bfloat16; float32"):
                fastopt.functional.adam_(*args, step=1)
    assert (p == 1).all()


# --- Memory


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("param", PARAMS)
def test_a_gradient_may_lie_right_behind_a_parameter(param, grad):
    """And right before it; one byte nearer, and it is refused. Sizes are those of what is stored."""
    (p_type, options), (g_type, g_options) = PARAMS[param], GRADS[grad]
    n, a, b = 300, np.dtype(p_type).itemsize, np.dtype(g_type).itemsize
    raw = np.zeros(8 * n + n * a + 8 * n, np.uint8)
    at = 4 * n
    p = raw[at : at + n * a].view(p_type)
    p[...] = stored_as(np.linspace(-1, 1, n), p_type)
    opt = fastopt.Adam({"w": p}, **options, **g_options)
    want = fastopt.Adam({"w": p.copy()}, **options, **g_options)
    for place in (at + n * a, at - n * b):
        g = raw[place : place + n * b].view(g_type)
        g[...] = stored_as(np.linspace(1, 2, n), g_type)
        opt.step([g])
        want.step([g.copy()])
        assert (bits(p) == bits(want.params[0])).all()
    for place in (at + n * a - b, at - n * b + b):
        g = raw[place : place + n * b].view(g_type)
        with unchanged(opt, fastopt.errors.OverlapError, "gradient of parameter 'w' overlaps parameter 'w'"):
            opt.step([g])


@pytest.mark.parametrize("grad", ["float16", "uint16"])
def test_a_gradient_in_the_memory_of_stored_state_is_refused(grad):
    g_type, g_options = GRADS[grad]
    memory = np.zeros(22_000, np.uint8)
    places = iter((0, 6000))

    def factory(name, shape, dtype):
        start = next(places)
        return memory[start : start + shape[0]].view(dtype)

    opt = fastopt.Adam(np.ones(5000, F32), state_dtype="8bit", state_factory=factory, **g_options)
    for place in (0, 5038, 11_038):
        with unchanged(opt, fastopt.errors.OverlapError, "gradient of parameter 0 overlaps the state"):
            opt.step([memory[place : place + 10_000].view(g_type)])
    opt.step([memory[11_040 : 11_040 + 10_000].view(g_type)])
    assert opt.steps == 1


def test_zeroed_gradients_share_no_memory_whatever_their_type_was():
    """Two that fit side by side with two bytes an element overlap at the same places with four."""
    memory = np.zeros(900, np.uint16)
    params = [np.ones(300, F32), np.ones(300, F32)]
    opt = fastopt.SGD(params, lr=0.1, zero_grads=True, grad_dtype="bfloat16")
    memory[...] = stored_as(np.ones(900), np.uint16)
    opt.step([memory[:300], memory[300:600]])
    assert not memory[:600].any() and memory[600:].all()
    memory[...] = stored_as(np.ones(900), np.uint16)
    with unchanged(opt, fastopt.errors.OverlapError, "shares memory with the gradient of parameter 0", memory):
        opt.step([memory[:600].view(F32), memory[300:].view(F32)])


# --- The count


def test_many_stored_arrays_were_compared(request, bit_matrix):
    here = [item for item in request.session.items if item.fspath == request.node.fspath]
    if sum("bits_of_their_twin" in item.name for item in here) < len(CONFIGS):
        pytest.skip("only a part of the matrix was run")
    # Of 140,000, which workers share as they have time: this is one of them.
    assert bit_matrix.arrays >= 20_000 and bit_matrix.differing == 0


def test_8_bit_state_begins_at_an_even_address():
    room = np.zeros(10_001, np.uint8)
    odd = room[1 - room.ctypes.data % 2 :][:5040]
    assert odd.ctypes.data % 2 == 1
    with pytest.raises(LayoutError, match="state 'exp_avg' of parameter 0, from state_factory, begins at an odd"):
        fastopt.AdamW(np.zeros(5000, np.float32), state_dtype="8bit", state_factory=lambda name, shape, dtype: odd)
