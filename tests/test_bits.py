"""The first promise: every rule gives the bits of its NumPy reference, whatever the level, threads, alignment or cut.

Which optimizers, options and conventions there are is read from the library; a new one is compared without a line
here, unless it has a hyperparameter of a new name.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from facts import FLUSHED, fact
from hypothesis import given, settings
from hypothesis import strategies as st
from support import undecayed

import fastopt
from fastopt import engine, reference
from fastopt.declare import DECOUPLED, DECOUPLED_LAST, DECOUPLED_WITHOUT_LR, L2, derive, numbers_at, numbers_of
from fastopt.errors import ConventionError, HyperparameterError

pytestmark = pytest.mark.xdist_group("bits")  # together, since the last test counts what the others compared

# --- What there is to compare

# No two values are equal, or the complement of each other, so that no two scalars can be swapped unseen. An eps that
# shows in float32, too.
VALUES: dict[str, tuple[Any, ...]] = {
    "lr": (0.0371,),
    "betas": ((0.83, 0.9171),),
    "etas": ((0.53, 1.29),),
    "step_sizes": ((0.0041, 0.61),),
    "lambd": (0.057,),
    "t0": (3.0,),
    "momentum": (0.71, 0.0),
    "dampening": (0.23, 0.0),
    "nesterov": (False, True),
    "weight_decay": (0.137, 0.0),
    "eps": (0.0123, 0.0),
    "eps_root": (0.0077, 0.0),
    "eps_placement": ("outside", "inside", "outside_uncorrected", "inside_uncorrected"),
    "bias_correction": (True, False),
    "alpha": (0.87,),
    "rho": (0.79,),
    "lr_decay": (0.19,),
    "momentum_decay": (0.31,),
    "initial_accumulator_value": (0.43,),
    "amsgrad": (False, True),
    "centered": (False, True),
}
AROUND = ("weight_decay", "decoupled_weight_decay", "maximize")  # options of what happens around a rule
# Rules of no optimizer of their own.
HELPERS = {"exchange", "fill", "lookahead", "nonfinite"}


class Config(NamedTuple):
    """One optimizer with its options."""

    cls: type[fastopt.Optimizer]
    options: dict[str, Any]
    rule: str

    def make(self, params, **more) -> fastopt.Optimizer:
        return self.cls(params, **self.options, **more)

    @property
    def label(self) -> str:
        silent = ("convention", *(key for key, values in VALUES.items() if len(values) == 1))
        said = [f"{k}={v}" for k, v in self.options.items() if k not in silent and v is not False]
        return f"{self.cls.__name__}({','.join([self.options['convention'], *said])})"


def attempt(cls, options):
    """An optimizer of these options, or None where they do not exist together."""
    try:
        return cls(np.zeros(1), **options)
    except (ConventionError, HyperparameterError):
        return None


def offered(cls, convention, keys) -> dict[str, list[Any]]:
    """The values of each option that this convention has."""
    base = {"convention": convention, "lr": 0.5, **undecayed(cls)}
    choices: dict[str, list[Any]] = {}
    for key in keys:
        possible = []
        for value in VALUES.get(key, (False, True)):
            try:
                cls(np.zeros(1), **{**base, key: value})
            except ConventionError:
                continue
            except HyperparameterError as error:
                # nesterov without momentum, and the like: it exists, in the right company.
                if "must be one of" in str(error):
                    continue
            possible.append(value)
        if possible:
            choices[key] = possible
    return choices


def product_of(choices: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(choices, combination, strict=True)) for combination in itertools.product(*choices.values())]


def configs() -> list[Config]:
    """Every form of every rule, in every company of weight decay and maximize that its convention has."""
    found: list[Config] = []
    seen = set()
    for cls in fastopt.OPTIMIZERS.values():
        unknown = set(cls.hyperparameters) - set(VALUES)
        assert not unknown, f"give values for {unknown} in VALUES"
        for convention in cls.conventions:
            keys = {*cls.hyperparameters, *AROUND[1:]}
            around = product_of(offered(cls, convention, [k for k in AROUND if k in keys]))
            inside = product_of(offered(cls, convention, [k for k in cls.hyperparameters if k not in AROUND]))
            fresh, usable = [], []
            for options in inside:
                opt = attempt(cls, {"convention": convention, **undecayed(cls), **options})
                if opt is None:
                    continue
                spec = derive(cls, convention, opt.param_groups[0])
                hyper = engine.rules()[spec.rule][0]
                zero = tuple(k for k, v in options.items() if isinstance(v, float) and v == 0)
                key = (spec.rule, tuple(spec.forms.get(name) for name in hyper), spec.numbers, zero)
                usable.append((options, spec.rule))
                if key not in seen:
                    seen.add(key)
                    fresh.append((options, spec.rule))
            pairs = fresh or usable[:1]
            chosen = list(itertools.product(pairs, around))
            if len(chosen) > 24:  # what happens around a rule does not know which one it is: take turns
                chosen = [(pairs[k], around[(k + k // len(around)) % len(around)]) for k in range(len(pairs))]
            for (options, rule), company in chosen:
                both = {"convention": convention, **options, **company}
                assert attempt(cls, both) is not None, (cls, both)
                found.append(Config(cls, both, rule))
    return found


CONFIGS = configs()
DTYPES = (np.float32, np.float64)
THREADS = (1, 2, 3, 8)
TILE, SHORT = 256, 512  # as in program.pxi
# Ends of vectors, 64-byte blocks, tiles, and of the share of a thread, each with its neighbours.
SIZES = (
    0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 49, 63, 65, 127, 129, 0, SHORT, SHORT + 1, TILE - 1, TILE, TILE + 1,
    2 * TILE - 1, 4 * TILE - 1, 4 * TILE, 4 * TILE + 1, 8 * TILE + 1, 5,
)  # fmt: skip
TOTAL = sum(SIZES)
OFFSETS = list(itertools.product(range(3), repeat=3))  # of parameters, gradients and states, in elements
LAYOUTS = ("sizes", "whole", "cut", "edge")


def turns(number: int) -> list[int]:
    """Which of the ways to place arrays in memory a config goes through; those of a rule share 27 or more."""
    rule = CONFIGS[number].rule
    fellows = [i for i, c in enumerate(CONFIGS) if c.rule == rule]
    return list(range(fellows.index(number), max(27, len(fellows)), len(fellows)))


def n_steps(config: Config) -> int:
    """RAdam turns adaptive after its fifth or sixth step."""
    return 8 if config.rule == "radam" else 3


def around_thresholds(dtype) -> np.ndarray:
    """State that the next step takes to just below, onto and just above each threshold of `FLUSHED`, of either sign.

    Where the gradient is 0 a step only multiplies by a decay rate, or leaves the state as it is.
    """
    rates = [1.0, 0.5, VALUES["momentum"][0], VALUES["alpha"][0], VALUES["rho"][0], *VALUES["betas"][0]]
    lows = {low[dtype is np.float64] for low in FLUSHED.values()}
    values = np.array([low / rate for low in lows for rate in rates], dtype)
    steps = 1 + np.arange(-4, 5, dtype=dtype) * np.finfo(dtype).epsneg
    return np.outer((1, -1), np.outer(values, steps)).ravel().astype(dtype)


def fading(n: int, dtype, rng: np.random.Generator, nasties) -> np.ndarray:
    """`n` numbers: half of them zeros of either sign, the others around the thresholds, or as `nasties.values` has."""
    x = nasties.values("nasty", n, dtype, rng)
    x = np.where(rng.random(n) < 0.6, rng.choice(around_thresholds(dtype), n), x)
    return np.where(rng.random(n) < 0.5, rng.choice(np.array([0.0, -0.0], dtype), n), x)


@pytest.fixture(scope="module")
def data(nasties):
    """data(dtype, kind, again) -> flat parameters, gradients of every step, and starting states for up to three slots.

    Each time `again`, in the long run, they are others.
    """

    @cache
    def flat(dtype, kind, again=0):
        rng = np.random.default_rng([7, np.dtype(dtype).itemsize, len(kind), again])
        if kind == "fading":
            draw = [fading(TOTAL, dtype, rng, nasties) for _ in range(1 + 8 + 3)]
        else:
            draw = [nasties.values(kind, TOTAL, dtype, rng) for _ in range(1 + 8 + 3)]
        return draw[0], draw[1:9], draw[9:]

    return flat


@pytest.fixture(scope="module")
def gradients(data, nasties):
    """The gradients in pieces; they are the same for all rules, so each layout is made once."""

    @cache
    def cut(dtype, kind, again, sizes, offset, gap):
        n = sum(sizes)
        return [nasties.pieces(g[:n], sizes, offset, gap) for g in data(dtype, kind, again)[1]]

    return lambda *key: [arrays for _, arrays in cut(*key)]


def layout(name: str, dtype, threads: int, k: int) -> tuple[tuple[int, ...], int]:
    """Sizes of the pieces, and the bytes of filler between them."""
    if name == "sizes":
        return SIZES, 64
    if name == "whole":
        return (TOTAL,), 64
    if name == "edge":  # one array that ends at the edge of a thread's share, one element before, or one after
        return (64 // np.dtype(dtype).itemsize * threads * 3 + k % 3 - 1,), 64
    rng = np.random.default_rng(k % 5)
    cuts = np.sort(rng.choice(TOTAL, 17, replace=False))
    return tuple(np.diff(np.concatenate([[0], cuts[:1] + 1, cuts[1:] + 1, [TOTAL]])).tolist()), 0


def start_at(count: int, config: Config, opt: fastopt.Optimizer) -> None:
    """Make every parameter one that has taken so many steps."""
    if count:
        for i in range(len(opt.params)):
            opt._plan.set_count(i, count, numbers_at(config.cls, count + 1))


def reference_path(config: Config, flat, kind: str, slots, count: int, more):
    """Parameters and states after each step by the reference, over the flat arrays; and the states before."""
    p, grads, states = flat
    opt = config.make(p.copy(), **more)
    start_at(count, config, opt)
    arrays = slots(opt.state[0]).values()
    if kind != "ordinary":
        for array, start in zip(arrays, states, strict=False):
            array[...] = start
    before = [array.copy() for array in arrays]
    twin = reference.twin(opt)
    path = []
    for g in grads[: n_steps(config)]:
        twin.step([g])
        path.append((twin.params[0].copy(), [array.copy() for array in twin.state[0].values()]))
    return before, path


def split(flat: np.ndarray, sizes) -> list[np.ndarray]:
    return np.split(flat[: sum(sizes)], np.cumsum(sizes)[:-1])


@pytest.fixture(scope="module")
def compare(data, gradients, nasties, same_bits):
    """compare(config, dtype, kind, turns): the bits of a few steps, at every level with every number of threads.

    `count` is the number of steps taken before; `more` are options besides those of the config.
    """

    def walk(config, dtype, kind, turns, count=0, again=0, **more):
        flat = data(dtype, kind, again)
        before, path = reference_path(config, flat, kind, nasties.slots, count, more)
        places = itertools.product(turns, enumerate(itertools.product(engine.available_levels(), THREADS)))
        for turn, (i, (level, threads)) in places:
            name = LAYOUTS[(turn + i + i // 4) % 4]
            sizes, gap = layout(name, dtype, threads, turn + i)
            off_p, off_g, off_s = OFFSETS[(7 * turn + 5 * i) % 27]
            raw, params = nasties.pieces(flat[0][: sum(sizes)], sizes, off_p, gap)
            raw_states = []
            factory = None
            if off_s:
                waiting: dict[str, Any] = {}

                def factory(slot, shape, _, sizes=sizes, gap=gap, off_s=off_s, waiting=waiting, raws=raw_states):
                    if slot not in waiting:
                        memory, arrays = nasties.pieces(np.zeros(sum(sizes), dtype), sizes, off_s, gap)
                        raws.append((memory, arrays))
                        waiting[slot] = iter(arrays)
                    return next(waiting[slot])

            with nasties.level(level), nasties.parallel_from(0):
                opt = config.make(params, n_threads=threads, state_factory=factory, **more)
                start_at(count, config, opt)
                states = [nasties.slots(state) for state in opt.state]
                slots = {name: [state[name] for state in states] for name in states[0]}
                for arrays, start in zip(slots.values(), before, strict=True):
                    if kind == "ordinary":
                        same_bits("first values of the state", arrays, split(start, sizes))
                    for array, value in zip(arrays, split(start, sizes), strict=True):
                        array[...] = value
                for t, grads in enumerate(gradients(dtype, kind, again, sizes, off_g, gap)[: len(path)]):
                    opt.step(grads)
                    where = (f"{config.label} {kind} {level} {threads} threads, {name}, "
                             f"offsets {off_p, off_g, off_s}, step {count + t + 1}")  # fmt: skip
                    want_p, want_s = path[t]
                    same_bits(f"{where}: parameters", params, split(want_p, sizes))
                    for (slot, arrays), want in zip(slots.items(), want_s, strict=True):
                        same_bits(f"{where}: {slot}", arrays, split(want, sizes))
            for memory, arrays in [(raw, params), *raw_states]:
                assert nasties.outside_is_untouched(memory, arrays), f"written outside the arrays: {where}"

    return walk


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=[c.label for c in CONFIGS])
def test_bits_are_those_of_the_reference(number, dtype, amount, compare):
    for again, kind in itertools.product(range(amount(1, 4)), ("ordinary", "nasty")):
        compare(CONFIGS[number], dtype, kind, [turn + again for turn in turns(number)], again=again)


def test_every_rule_option_and_company_is_among_the_compared():
    assert {c.rule for c in CONFIGS} == set(engine.rules()) - HELPERS == set(reference.RULES)
    assert {(c.cls.__name__, c.options["convention"]) for c in CONFIGS} == {
        (name, convention) for name, cls in fastopt.OPTIMIZERS.items() for convention in cls.conventions
    }
    company = set()
    for c in CONFIGS:
        group = c.make(np.zeros(1)).param_groups[0]
        spec = derive(c.cls, c.options["convention"], group)
        company.add((spec.decay, group.get("weight_decay", 0.0) != 0, spec.maximize))
    assert company >= {(decay, decays, maximize) for decay in range(4) for decays in (False, True)
                       for maximize in (False, True)}  # fmt: skip
    for rule, forms in {"adam": 16, "amsgrad": 32, "nadam": 18, "radam": 24, "rmsprop_centered_nesterov": 6}.items():
        assert sum(c.rule == rule for c in CONFIGS) >= forms, rule


# --- State that has faded


def around(config: Config) -> tuple[str, bool]:
    """What happens to a tile before and after the rule."""
    group = config.make(np.zeros(1)).param_groups[0]
    spec = derive(config.cls, config.options["convention"], group)
    decays = group.get("weight_decay", 0.0) != 0
    prologue = "coupled" if decays and spec.decay == L2 else "negated" if spec.maximize else "plain"
    return prologue, decays and spec.decay == DECOUPLED_LAST


# One of every rule, in every company of what is done to a tile.
FADING = list({(c.rule, *around(c)): i for i, c in enumerate(CONFIGS)}.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("number", FADING, ids=[CONFIGS[i].label for i in FADING])
def test_bits_of_a_flush_are_those_of_the_reference(number, dtype, amount, compare):
    """Steps 64, 65, 66 and 127, 128, 129: a flush comes before the others, and between them, or not at all."""
    for again in range(amount(1, 4)):
        turn = number + again
        compare(CONFIGS[number], dtype, "fading", [turn % 27], count=63, again=again)
        compare(CONFIGS[number], dtype, "fading", [(turn + 13) % 27], count=126, again=again)
        compare(CONFIGS[number], dtype, "fading", [(turn + 5) % 27], count=63, again=again, flush_subnormal=False)


def test_flushes_meet_every_rule_and_what_is_done_around_it():
    assert {CONFIGS[i].rule for i in FADING} == set(reference.RULES)
    company = {around(CONFIGS[i]) for i in FADING}
    assert company == set(itertools.product(("plain", "negated"), (False, True))) | {("coupled", False)}


# With these, a gradient of 0 halves moments and averages; a smaller eps, and nothing is flushed.
HALVING = {"betas": (0.5, 0.5), "momentum": 0.5, "alpha": 0.5, "rho": 0.5, "weight_decay": 0.0, "eps": 2.0**-31}


def after_one_step(config: Config, dtype, count: int, nasties, **more) -> dict[str, np.ndarray]:
    """Parameters and state after the step that follows `count` others; gradients are zeros of either sign."""
    rng = np.random.default_rng(0)
    start = np.tile(np.concatenate([around_thresholds(dtype), nasties.nasty(dtype)]), 16)
    opt = config.make(rng.choice(np.array([0, 1, -3], dtype), len(start)), **more)
    opt.param_groups[0].update({key: HALVING[key] for key in HALVING if config.options.get(key)})
    start_at(count, config, opt)
    arrays = nasties.slots(opt.state[0])
    for array in arrays.values():
        array[...] = rng.permutation(start)
    opt.step(rng.choice(np.array([0.0, -0.0], dtype), len(start)))
    return {"parameters": opt.params[0], **arrays}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("rule", sorted(reference.RULES))
def test_a_flush_takes_what_is_below_the_threshold_and_nothing_else(rule, dtype, nasties, same_bits):
    """Said without the reference: beside the same step without a flush, with the thresholds of this file."""
    # Not PyTorch's Adamax, which adds eps to its maximum.
    config = next(c for c in CONFIGS if c.rule == rule and (rule, c.options["convention"]) != ("adamax", "torch"))
    never = fact(config.cls).never_flushed.split()
    for count in (0, 31, 62, 63, 64, 95, 126, 127, 128, 6399, 2**40 - 1, 2**40):
        flushed = after_one_step(config, dtype, count, nasties)
        for slot, kept in after_one_step(config, dtype, count, nasties, flush_subnormal=False).items():
            flushes = slot in FLUSHED and slot not in never and (count + 1) % 64 == 0
            low = dtype(FLUSHED[slot][dtype is np.float64] if flushes else 0)
            want = np.where(np.abs(kept) < low, dtype(0), kept)
            same_bits(f"{rule}: {slot} after step {count + 1}", [flushed[slot]], [want])
            if flushes:
                assert_meets_the_threshold(kept, low, slot)


def assert_meets_the_threshold(s: np.ndarray, low, slot: str) -> None:
    """Whether state before a flush has all that the flush could treat wrongly."""
    finite = s[np.isfinite(s)].tolist()
    below, above = (np.nextafter(low, low.dtype.type(k)) for k in (0, 1))
    assert {below, low, above} <= set(finite) and np.isnan(s).any(), slot
    if slot in ("exp_avg", "momentum_buffer", "velocity", "scaled_momentum_buffer", "grad_avg"):
        assert {-below, -low, -above} <= set(finite) and np.isinf(s).any() and (np.signbit(s) & (s == 0)).any(), slot


# The scalars of each stage: no two alike, none a power of two, one that ordinary numbers fall below.
STAGE_SCALARS = {
    "unscale": [2.37], "rescale": [0.4271], "clamp": [-0.35, 0.8], "l2": [-1.0, 0.137], "negate": [],
    "shrink": [0.9371], "flush": [0.3], "lerp": [0.0713], "lerp_back": [0.713], "blend": [0.0713, 0.9287],
}  # fmt: skip


def test_every_stage_has_a_twin_and_values():
    assert {name: len(h) for name, h in STAGE_SCALARS.items()} == engine.stages()
    assert reference.STAGES.keys() == STAGE_SCALARS.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STAGE_SCALARS)
def test_bits_of_a_stage_are_those_of_its_twin(name, dtype, data, nasties, same_bits):
    """At every level, for every end of a vector, every offset, and gradients in place and from elsewhere."""
    h = [dtype(value) for value in STAGE_SCALARS[name]]
    for kind, level, offsets in itertools.product(("ordinary", "nasty"), engine.available_levels(), OFFSETS):
        p, (g, *_), (x, *_) = data(dtype, kind)
        for n in sorted({*SIZES}):
            flat = [np.zeros(n + 3, dtype)[k:][:n] for k in offsets]
            for array, values in zip(flat, (x, g, p), strict=True):
                array[...] = values[:n]
            with np.errstate(all="ignore"):
                want = reference.STAGES[name](flat[0].copy(), flat[1], flat[2], h)
            with nasties.level(level):
                engine.run_stage_alone(name, *flat, STAGE_SCALARS[name])
            same_bits(f"{name} {level} {kind} {n} {offsets}", flat, [want, g[:n], p[:n]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lookahead_is_the_reference_s(dtype, data, nasties, same_bits):
    for kind, level, threads in itertools.product(("ordinary", "nasty"), engine.available_levels(), THREADS):
        p, _, (v, *_) = data(dtype, kind)
        _, params = nasties.pieces(p, SIZES, 1)
        with nasties.level(level), nasties.parallel_from(0), np.errstate(all="ignore"):
            opt = fastopt.NAG(params, momentum=0.71, n_threads=threads)
            for state, value in zip(opt.state, split(v, SIZES), strict=True):
                state["velocity"][...] = value
            want = reference.lookahead(p, v, np.dtype(dtype).type(0.71))
            same_bits(f"lookahead {kind} {level} {threads}", opt.lookahead(), split(want, SIZES))
            same_bits("parameters after lookahead()", params, split(p, SIZES))


def test_nonfinite_gradients_are_found_wherever_they_are(nasties):
    for dtype, level, threads in itertools.product(DTYPES, engine.available_levels(), (1, 3)):
        with nasties.level(level), nasties.parallel_from(0):
            n = 300
            p, g = np.ones(n, dtype), np.full(n, np.finfo(dtype).max)
            opt = fastopt.SGD(p, lr=0.5, n_threads=threads, nonfinite="skip")
            for k, bad in itertools.product((0, 1, 15, 16, 17, n - 2, n - 1), (np.nan, np.inf, -np.inf)):
                g[k] = bad
                opt.step(g)
                g[k] = -np.finfo(dtype).max
            assert opt.skipped_steps == 21 and opt.steps == 0 and (p == 1).all()
            opt.step(g)
            assert opt.skipped_steps == 21 and opt.steps == 1


# --- Scalars


def expected_scalars(spec, group, t: int, numbers: tuple[float, ...]) -> list[float]:
    """The scalars of step t by the reference."""
    x = {key: value for key, value in group.items() if isinstance(value, float)} | dict(spec.forms)
    for key in engine.PAIRS.keys() & group.keys():
        x.update(zip(engine.PAIRS[key], group[key], strict=True))
    wd = x.get("weight_decay", 0.0)
    decay = {DECOUPLED: 1.0 - x["lr"] * wd, DECOUPLED_WITHOUT_LR: 1.0 - wd}.get(spec.decay, 1.0)
    return [decay, *reference.SCALARS[spec.rule](x, t, numbers)[0]]


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=[c.label for c in CONFIGS])
def test_scalars_are_the_reference_s(number):
    config = CONFIGS[number]
    rng = np.random.default_rng(number)
    opt = config.make(np.zeros(1))
    group = opt.param_groups[0]
    spec = derive(config.cls, config.options["convention"], group)
    for t in [*range(1, 40), 99, 1000, 10_007, 1_000_003, 2**24 + 1, 10**9 + 7, 2**31 + 1]:
        for key, value in config.options.items():
            if key in engine.PAIRS:
                below = 1 - 10.0 ** rng.uniform(-4, -0.2, 2)
                group[key] = (below[0], below[1] + (key == "etas"))
            elif isinstance(value, float) and value != 0:
                group[key] = 10.0 ** rng.uniform(-4, -0.1)
        kinds = [slot.like for slot in numbers_of(config.cls)]
        numbers = tuple(float(t > 1) if kind == "begun" else rng.random() for kind in kinds)
        opt._plan.set_count(0, t - 1, numbers)
        every = (*numbers, 0.0, 0.0)[: engine.MOST_NUMBERS]
        assert opt._plan.scalars(0) == expected_scalars(spec, group, t, every), (t, group)


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=[c.label for c in CONFIGS])
def test_scalars_are_the_reference_s_where_the_power_is_left_out(number):
    """Beyond 40 time constants b^t is taken for nothing, before with its value: 1 - b^t is 1 from 37.4 on."""
    config = CONFIGS[number]
    opt = config.make(np.zeros(1))
    group = opt.param_groups[0]
    spec = derive(config.cls, config.options["convention"], group)
    rates = [1 - 10.0**k for k in (-1, -2.2, -3, -4.1, -7)]
    for b, constants in itertools.product(rates, (1, 30, 36, 37, 37.3, 37.5, 39, 40, 41, 1000)):
        for t in (int(constants / (1 - b)) + k for k in (-1, 0, 1)):
            for key in {"alpha", "rho", "betas"} & group.keys():
                group[key] = (b, 1 - (1 - b) / 3) if key == "betas" else b
            other = {"betas": group["betas"][::-1]} if "betas" in group else {}
            for edit in ({}, other):
                group.update(edit)
                opt._plan.set_count(0, t - 1, (1.0, 0.5))
                assert opt._plan.scalars(0) == expected_scalars(spec, group, t, (1.0, 0.5)), (t, group)


def test_a_bias_correction_beyond_forty_time_constants_is_one():
    rates = np.concatenate([[0.0, 2.0**-53, 0.5], np.random.default_rng(0).random(500), 1 - np.logspace(-9, -0.3, 500)])
    for b in rates.tolist():
        t = int(40 / (1 - b))
        while (1.0 - b) * t <= 40.0:
            t += 1
        assert 1.0 - b**t == 1.0 == 1.0 - b ** float(t + 1), (b, t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2)])
def test_reference_stays_in_the_type_of_the_arrays(dtype, shape):
    """Under every version of NumPy's promotion, for arrays of no dimension too."""
    for name, rule in reference.RULES.items():
        n_states, n_scalars = engine.rules()[name][1:]
        a = np.full(shape, 0.5, dtype)
        with np.errstate(all="ignore"):
            p, state = rule(a, a, [a] * n_states, reference.rounded([0.3] * n_scalars, a.dtype))
        assert len(state) == n_states
        assert all(x.dtype == dtype and x.shape == shape for x in (p, *state)), name


def test_scalars_are_rounded_once():
    """To float32 from double, not computed in float32; a value half-way between two floats shows the difference."""
    lr, wd = 0.3, 0.7
    p = np.ones(1, np.float32)
    fastopt.AdamW(p, lr=lr, weight_decay=wd).step(np.zeros(1, np.float32))
    assert p[0] == np.float32(1 - lr * wd) != np.float32(1) - np.float32(lr) * np.float32(wd)


@pytest.mark.parametrize("rule", sorted(reference.RULES))
def test_parameters_that_were_skipped_get_the_scalars_of_their_own_count(rule, nasties, same_bits):
    config = next(c for c in CONFIGS if c.rule == rule)
    rng = np.random.default_rng(0)
    params = [nasties.values("ordinary", 40, np.float64, rng) for _ in range(5)]
    options = {k: v for k, v in config.options.items() if k != "convention"}
    opt = config.cls([{"params": params[:3], **options}, {"params": params[3:], **options, "lr": 0.21}],
                     convention=config.options["convention"], lr=0.5, **undecayed(config.cls))  # fmt: skip
    twin = reference.twin(opt)
    for k in range(24):
        grads = [nasties.values("ordinary", 40, np.float64, rng) if k % (i + 1) == 0 else None for i in range(5)]
        opt.step(grads)
        twin.step(grads)
        same_bits("parameters", opt.params, twin.params)
    assert [state["step"] for state in opt.state] == twin.counts
    assert twin.counts == [24, 12, 8, 6, 5]


@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_equal_counts_with_another_past_have_scalars_of_their_own(convention, same_bits):
    """NAdam's product of momenta remembers which betas a parameter has seen."""
    params, g = [np.ones(5), np.ones(5)], np.linspace(-1, 1, 5)
    opt = fastopt.NAdam(params, betas=lambda k: (0.5 + k / 10, 0.9), convention=convention)
    twin = reference.twin(opt)
    for grads in ([g, None], [None, g], [g, g], [g, g]):
        opt.step(grads)
        twin.step(grads)
    same_bits("parameters", opt.params, twin.params)
    assert twin.numbers[0] != twin.numbers[1] and twin.counts == [3, 3]


# --- Anything at once


@st.composite
def problems(draw):
    """Groups of parameters of any shape, type and options, with gradients, some of them None, for a few steps."""
    cls = draw(st.sampled_from(list(fastopt.OPTIMIZERS.values())))
    mine = [c for c in CONFIGS if c.cls is cls]
    convention = draw(st.sampled_from(sorted({c.options["convention"] for c in mine})))
    mine = [c for c in mine if c.options["convention"] == convention]
    shape = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 17, 33, 300]), max_size=2).map(tuple)
    param = st.tuples(shape, st.sampled_from(DTYPES), st.sampled_from("CF"), st.integers(0, 2))
    groups = draw(st.lists(st.tuples(st.sampled_from(mine), st.lists(param, min_size=1, max_size=4)), min_size=1,
                           max_size=3))  # fmt: skip
    n = sum(len(params) for _, params in groups)
    mask = st.lists(st.booleans(), min_size=n, max_size=n)
    return cls, convention, groups, draw(st.lists(mask, min_size=1, max_size=4))


@settings(max_examples=200, deadline=None)
@given(
    problem=problems(), kind=st.sampled_from(["ordinary", "nasty"]), seed=st.integers(0, 2**32 - 1),
    level=st.sampled_from(engine.available_levels()), threads=st.sampled_from(THREADS), scheduled=st.booleans(),
)  # fmt: skip
def test_any_optimizer_takes_the_reference_s_path(problem, kind, seed, level, threads, scheduled, nasties, same_bits):
    cls, convention, groups, masks = problem
    rng = np.random.default_rng(seed)

    def array(shape, dtype, order, offset):
        n = int(np.prod(shape))
        _, (flat,) = nasties.pieces(nasties.values(kind, n, dtype, rng), [n], offset)
        return flat.reshape(shape, order=order)

    with nasties.level(level), nasties.parallel_from(0):
        opt = cls(
            [{"params": [array(*param) for param in params],
              **{k: v for k, v in config.options.items() if k != "convention"}} for config, params in groups],
            convention=convention, n_threads=threads,
            **undecayed(cls), lr=0.5,
        )  # fmt: skip
        if scheduled:
            opt.param_groups[-1]["lr"] = lambda k: 0.3 / (1 + k)
        twin = reference.twin(opt)
        shapes = [param for _, params in groups for param in params]
        for mask in masks:
            grads = [array(*param) if there else None for param, there in zip(shapes, mask, strict=True)]
            opt.step(grads)
            twin.step(grads)
        for dtype in DTYPES:
            chosen = [i for i, p in enumerate(opt.params) if p.dtype == dtype]
            same_bits("parameters", [opt.params[i] for i in chosen], [twin.params[i] for i in chosen])
            same_bits("states", [s for i in chosen for s in nasties.slots(opt.state[i]).values()],
                      [s for i in chosen for s in twin.state[i].values()])  # fmt: skip
        assert [state["step"] for state in opt.state] == twin.counts


# --- The count


def test_at_least_a_hundred_thousand_arrays_were_compared(request, bit_matrix):
    here = [item for item in request.session.items if item.fspath == request.node.fspath]
    if sum("test_bits_are" in item.name for item in here) < len(CONFIGS) * len(DTYPES):
        pytest.skip("only a part of the matrix was run")
    assert bit_matrix.arrays >= 100_000 and bit_matrix.differing == 0
