"""Bad calls of every kind, drawn by Hypothesis, and the check that one was refused and left everything as it was.

Design:
- A `World` is an optimizer whose arrays lie in guarded memory, a twin that sees the good calls only, and good gradients
  for both. All that is drawn for it (class, convention, shapes, types, orders, groups, names, settings) is as accepted.
- A kind of bad call is a function that makes something bad for a world and returns it as a `Call`. Where the world
  itself has to be tampered with, the function does so, and the call knows how to mend it.
- Hypothesis draws the numbers and shapes of an example. All of them together are the seed of its choices between ways,
  which are even so: none of a hundred is missed.
- What is good is written down here once more, on purpose, and not read from the library: a limit that the library gets
  wrong is to be noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from support import ALL, build, frozen, needed, values

from fastopt import schedules
from fastopt.declare import arrays_of
from fastopt.errors import (
    AveragedError,
    ConcurrentStepError,
    ConventionError,
    DTypeError,
    FastoptError,
    GradientError,
    HyperparameterError,
    LayoutError,
    NonFiniteError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    ShapeError,
    StateDictError,
    UnknownOptionError,
)

BUILTIN = {
    LayoutError: ValueError, DTypeError: TypeError, ShapeError: ValueError, ReadOnlyError: ValueError,
    OverlapError: ValueError, GradientError: ValueError, ParameterError: ValueError, HyperparameterError: ValueError,
    UnknownOptionError: TypeError, ConventionError: ValueError, StateDictError: ValueError,
    NonFiniteError: ArithmeticError, ConcurrentStepError: RuntimeError, AveragedError: RuntimeError,
}  # fmt: skip
CALLS = 10
"""Bad calls in one example, after which the optimizer and its twin take a good step."""
VALUES = {
    "a number below 0": st.floats(max_value=-5e-324), "a number above 1": st.floats(min_value=1, exclude_min=True),
    "a number between": st.floats(0.001, 0.9), "an int below 0": st.integers(max_value=-1),
    "a shape": st.lists(st.integers(0, 6), max_size=4),
}  # fmt: skip
"""What Hypothesis draws, some of each for an example."""
FILLER = 0x5A
ROOM = 256  # bytes of filler around every array of a world
BIG = ((7,), (4, 5), (3, 4, 2), (33,), (600,))  # shapes with an axis, and elements, to do something wrong with
SHAPES = (*BIG, (), (1,), (1, 5), (0,), (0, 3))
OTHER_TYPES = (*"?bBhHiIlLqQFDGO", "S3", "U3", "M8[s]", "m8[s]", "V4", [("x", "f4")], [("x", "f4"), ("y", "i2")])
FOREIGN = {
    "a list": lambda: [0.5, 0.5], "a string": lambda: "w", "a number": lambda: 1.5, "bytes": lambda: b"abcd",
    "a complex": lambda: 1j, "a range": lambda: range(3), "a set": lambda: {1.0}, "an object": object,
    "a dict": lambda: {"w": 1.0}, "a class": lambda: np.ndarray, "a memoryview of ints": lambda: memoryview(b"abc"),
    "a type with a bad __dlpack__": lambda: BadDLPack(),
}  # fmt: skip

# Which numbers are accepted, both ends included; but a beta is below 1.
NOT_NEGATIVE, UNIT, ANY = (0.0, np.inf), (0.0, 1.0), (-np.inf, np.inf)
RANGES = {
    "lr": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE, "eps": NOT_NEGATIVE, "eps_root": NOT_NEGATIVE,
    "lr_decay": NOT_NEGATIVE, "momentum_decay": NOT_NEGATIVE, "initial_accumulator_value": NOT_NEGATIVE,
    "momentum": UNIT, "alpha": UNIT, "rho": UNIT, "dampening": ANY,
    "lambd": NOT_NEGATIVE, "t0": NOT_NEGATIVE, "ema_decay": UNIT,
}  # fmt: skip
# The same of pairs; what of the ends of both ranges is excluded; and a good pair.
PAIRS: dict[str, tuple[Any, Any, tuple[float, float]]] = {
    "betas": ((UNIT, UNIT), ((1,), (1,)), (0.9, 0.99)),
    "etas": ((UNIT, (1.0, np.inf)), ((0, 1), (1,)), (0.5, 1.5)),
    "step_sizes": ((NOT_NEGATIVE, NOT_NEGATIVE), ((0,), (0,)), (0.01, 1.0)),
}  # fmt: skip
SCHEDULABLE = ("lr", "betas", "momentum", "weight_decay")
FLAGS = ("maximize", "decoupled_weight_decay", "flush_subnormal", "nesterov", "centered", "amsgrad", "bias_correction")
AROUND: dict[str, Any] = {
    "clip_value": 0.75, "clip_norm_each": 1.5, "ema_decay": 0.875, "ema_start": 2, "zero_grads": False,
}  # fmt: skip
"""What every group may have or not, with a good value."""
# A good value, for every option, that is not the neutral one.
UNUSUAL: dict[str, Any] = {
    "weight_decay": 0.125, "momentum": 0.5, "dampening": 0.25, "nesterov": True, "centered": True, "amsgrad": True,
    "lr_decay": 0.1, "momentum_decay": 0.01, "eps": 0.01, "eps_root": 0.1, "initial_accumulator_value": 0.3,
    "bias_correction": False,
}  # fmt: skip
NO_NUMBERS: tuple[Any, ...] = (
    "0.1", "fast", b"1", True, np.True_, 1j, np.complex64(1), [0.1], (), {}, object(), float, schedules.Cosine,
    np.array([0.1, 0.2]), np.array("0.1"), np.array(True), np.ma.masked, np.ma.array(0.1), Decimal("0.1"),
    Fraction(1, 2), np.datetime64(1, "s"), 2**1024, -(2**1024), np.float32("nan"), np.array(np.inf),
)  # fmt: skip
NO_FLAGS: tuple[Any, ...] = ("yes", "", 0, 1, 2, 0.5, [], (True,), np.array(True), np.array([True, False]), object())
NO_INTS: tuple[Any, ...] = (1.0, 2.5, "2", b"2", 1j, [1], {}, object(), np.nan, np.float32(1), np.array([1, 2]))


class BadDLPack:
    """Something that promises to be an array, and is not."""

    def __dlpack__(self, **options):
        raise BufferError("not today")

    def __dlpack_device__(self):
        return 1, 0


class Boom(Exception):
    """An error of the caller's own."""


@dataclass
class Call:
    """A bad call, and how it has to end."""

    what: str
    do: Callable[[], Any]
    error: Any
    """The types that may be raised; or the very exception, of the caller's own, that has to come through."""
    says: tuple[Any, ...] = ()
    """What the message must contain; a tuple among it: one of these."""
    others: tuple[Any, ...] = ()
    """Arrays outside the world that have to stay as they are."""
    mend: Callable[[], Any] = lambda: None
    ruins: bool = False
    """Whether the world cannot be mended."""


@dataclass(frozen=True)
class Kind:
    """A kind of bad call: what makes them, and of what worlds."""

    name: str
    make: Callable[[World], Call]
    among: tuple[Any, ...]
    needs: dict[str, Any]

    def fits(self, w: World) -> bool:
        """Whether a world is as these calls need it."""
        return (type(w.opt), w.convention) in self.among and all(getattr(w, k) == v for k, v in self.needs.items())


KINDS: dict[str, Kind] = {}


def kind(name: str, among: Any = ALL, **needs: Any) -> Callable[[Any], Any]:
    """Register a function that makes calls of a kind."""

    def register(make: Callable[[World], Call]) -> Callable[[World], Call]:
        KINDS[name] = Kind(name, make, tuple(among), needs)
        return make

    return register


class World:
    """An optimizer over guarded memory, and its twin.

    What is not fixed by name (``copy_grads=True`` ...) is chosen.
    """

    def __init__(self, drawn: dict[str, Any], rng: Random, among: Any = ALL, **fixed: Any) -> None:
        self.drawn, self.rng = drawn, rng
        cls, self.convention = self.pick(*among)
        self.cls = cls
        self.copy_grads = fixed.get("copy_grads", self.pick(False, True))
        self.nonfinite = fixed.get("nonfinite", self.pick("propagate", "raise", "skip"))
        self.factory = fixed.get("factory", self.pick(False, True))
        self.named = fixed.get("named", self.pick(False, True))
        self.owned = fixed.get("owned", self.pick(False, True))
        self.several = fixed.get("several", self.pick(True, True, False))
        self.stepped = fixed.get("stepped", self.pick(True, True, False))
        n = self.integer(2, 4) if self.several else 1
        self.big = self.integer(0, n - 1)
        forms = []
        for i in range(n):
            order = "C" if self.factory else self.pick("C", "F")  # a factory is not told the order
            forms.append((self.pick(*(BIG if i == self.big else SHAPES)), self.pick(np.float32, np.float64), order))
        self.names = [f"p{i}" for i in range(n)] if self.named else list(range(n))
        self.cut = self.pick(None, self.integer(0, n))  # where the second group begins
        self.single = not self.several and not self.named and self.cut is None and self.pick(False, True)
        offered = cls.conventions[self.convention].defaults
        self.options = needed(cls, self.convention)
        for key in ("momentum", "weight_decay", "centered", "amsgrad"):
            if key in offered and self.pick(False, True):
                self.options[key] = UNUSUAL[key]
        if self.pick(False, True):
            self.options["lr"] = schedules.Exponential(0.25, 0.5)
        self.options.update(copy_grads=self.copy_grads, nonfinite=self.nonfinite, n_threads=self.pick(None, 1, 2))
        self.options.update(clip_norm=self.pick(None, None, 0.5))
        limits = ("clip_value", "clip_norm_each")
        around = [key for key in AROUND if self.pick(False, False, True)]
        ways = (self.options["clip_norm"] is not None) + sum(key in around for key in limits)
        if self.convention == "keras" and ways > 1:
            around = [key for key in around if key not in limits]  # it clips in one way at a time
        self.options.update({key: AROUND[key] for key in around})
        self.memory: list[np.ndarray] = []
        self.fault: Any = None  # what the state factory does instead
        self.params, self.grads, theirs = (self.place(forms, self.owned) for _ in range(3))
        for p, g, t in zip(self.params, self.grads, theirs, strict=True):
            p[...], g[...] = values(p.shape, p.dtype), values(p.shape, p.dtype, 1)
            t[...] = p
        self.opt, self.twin = (
            build(cls, self.arranged(params), self.convention, **self.options,
                  state_factory=self.make_state if self.factory else None)
            for params in (self.params, theirs)
        )  # fmt: skip
        self.seed = 2
        for _ in range(self.integer(1, 2) if self.stepped else 0):
            self.good_step()

    # --- Choices

    def pick(self, *options: Any) -> Any:
        """One of the options."""
        return self.rng.choice(options)

    def integer(self, low: int, high: int) -> int:
        """A whole number."""
        return self.rng.randint(low, high)

    def some(self, what: str) -> Any:
        """One of the values that Hypothesis drew."""
        return self.rng.choice(self.drawn[what])

    def any(self) -> int:
        """The index of some parameter."""
        return self.integer(0, len(self.params) - 1)

    def filled(self) -> int:
        """The index of some parameter that has elements."""
        return self.pick(*(i for i, p in enumerate(self.params) if p.size))

    @property
    def slots(self) -> tuple[str, ...]:
        """The state that is always there, as the convention calls it."""
        return self.cls.slots_under(self.convention)[: len(arrays_of(self.cls, optional=False))]

    def arrays_of(self, i: int) -> list[np.ndarray]:
        """A parameter and its state."""
        state = [self.opt.state[i].get(name) for name in self.cls.slots_under(self.convention)]
        return [self.params[i], *(a for a in state if a is not None)]

    # --- Arrays

    def place(self, forms: Any, owned: bool) -> list[np.ndarray]:
        """Arrays of these shapes, types and orders: with memory of their own, or in one block, with filler around."""
        if owned:
            return [np.empty(shape, dtype, order) for shape, dtype, order in forms]
        raw = np.full(sum(8 * int(np.prod(shape)) + ROOM + 72 for shape, _, _ in forms), FILLER, np.uint8)
        self.memory.append(raw)
        out, at = [], ROOM // 2
        for shape, dtype, order in forms:
            at += -(raw.ctypes.data + at) % 64 + self.pick(0, 8)
            out.append(np.ndarray(shape, dtype, raw, at, order=order))
            at += out[-1].nbytes + ROOM // 2
        return out

    def make_state(self, name: str, shape: Any, dtype: Any) -> Any:
        """The state factory."""
        return self.place([(shape, dtype, "C")], False)[0] if self.fault is None else self.fault(name, shape, dtype)

    def fresh(self, n: int = 1) -> list[np.ndarray]:
        """Good arrays that are not the optimizer's."""
        return [values(self.pick(*BIG), self.pick(np.float32, np.float64), i) for i in range(n)]

    def arranged(self, arrays: list[Any]) -> Any:
        """Parameters in the container that this world gives them in."""
        if self.single:
            return arrays[0]
        named = (lambda a, b: dict(zip(self.names[a:b], arrays[a:b], strict=True))) if self.named else (
            lambda a, b: arrays[a:b])  # fmt: skip
        n = len(arrays)
        if self.cut is None:
            return named(0, n)
        return [{"params": named(0, self.cut)}, {"params": named(self.cut, n), "lr": 0.125}]

    def label(self, i: int) -> str:
        """How messages call parameter i."""
        return f"parameter {self.names[i]!r}"

    def group_of(self, i: int) -> int:
        """The group of parameter i."""
        return int(self.cut is not None and i >= self.cut)

    def has_float(self, group: int) -> bool:
        """Whether a group has a float32 array."""
        return any(p.dtype == np.float32 for i, p in enumerate(self.params) if self.group_of(i) == group)

    def offer(self, grads: list[Any]) -> Any:
        """Gradients in one of the containers that they may come in."""
        if self.named and self.pick(False, True):
            return dict(zip(self.names, grads, strict=True))
        return self.pick(list, tuple, list)(grads)

    def with_gradient(self, i: int, bad: Any) -> Any:
        """Good gradients, but for one; some others may be None."""
        grads = [g if j == i or self.pick(True, True, False) else None for j, g in enumerate(self.grads)]
        grads[i] = bad
        return self.offer(grads)

    # --- What must not change, and what must go on

    def picture(self, others: Any = ()) -> Any:
        """All that can be seen of the optimizer, and every byte of its memory, in a comparable form."""
        opt = self.opt
        state = opt.state
        groups = [
            {k: v if k == "params" else repr(v) for k, v in group.items()} if isinstance(group, dict) else group
            for group in opt.param_groups
        ]
        blocks = [a.base for entry in state for a in entry.values() if isinstance(a, np.ndarray)]
        blocks += [a.base for a in others if isinstance(a, np.ndarray)]
        seen = {id(block): block for block in blocks if isinstance(block, np.ndarray)}
        return frozen([
            opt.params, state, opt.steps, opt.skipped_steps, groups, opt.defaults, opt._plan.names,
            self.grads, self.memory, list(seen.values()), others,
        ])  # fmt: skip

    def good_step(self, calls: Any = ()) -> None:
        """A step with good gradients, of the optimizer and its twin: the same bits, in spite of these bad calls."""
        self.seed += 1
        rng = np.random.default_rng(self.seed)
        for g in self.grads:
            g[...] = rng.normal(size=g.shape)
        for opt in (self.opt, self.twin):
            opt.step(self.grads[0] if self.single else self.grads)
        mine, theirs = (frozen([o.params, o.state, o.steps, o.skipped_steps]) for o in (self.opt, self.twin))
        if mine != theirs:
            raise AssertionError(f"a good step of {self} has other bits than a twin's that saw no bad calls: {calls}")

    def __repr__(self) -> str:
        arrays = ", ".join(f"{p.dtype}{list(p.shape)}" for p in self.params)
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.cls.__name__}({arrays}; convention={self.convention!r}, {options}) after {self.opt.steps} steps"


def refused(w: World, call: Call) -> None:
    """The call raises what it should, says what it should, and has changed nothing."""
    before = w.picture(call.others)
    raised: BaseException | None = None
    try:
        call.do()
    except BaseException as error:
        if not isinstance(error, Exception) and error is not call.error:
            raise
        raised = error
    where = f"{call.what}; {w}"
    if raised is None:
        raise AssertionError(f"accepted: {where}")
    if isinstance(call.error, BaseException):
        assert raised is call.error, f"{raised!r} for {where}"
    else:
        accepted = call.error if isinstance(call.error, tuple) else (call.error,)
        if type(raised) not in accepted:
            raise AssertionError(f"{type(raised).__name__}: {raised}; for {where}") from raised
        assert isinstance(raised, FastoptError) and isinstance(raised, BUILTIN[type(raised)])
        for part in call.says:
            options = part if isinstance(part, tuple) else (part,)
            assert any(option in str(raised) for option in options), f"{str(raised)!r} lacks {part!r}; for {where}"
    assert w.picture(call.others) == before, f"changed something: {where}"
    call.mend()


def bad_calls(kinds: list[Kind], announce: Callable[[str], Any], done: Counter[str], n: int, repeat: str) -> None:
    """Make n bad calls at least, of these kinds, and count in `done`; the same ones for the same `repeat`."""

    @seed(repeat)
    @settings(
        max_examples=-(-n // CALLS), deadline=None, database=None, verbosity=Verbosity.quiet,
        phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.fixed_dictionaries({what: st.tuples(*[value] * 3) for what, value in VALUES.items()}))
    def example(drawn: dict[str, Any]) -> None:
        rng = Random(repr(drawn))
        first = rng.choice(kinds)

        def world() -> World:
            return World(drawn, rng, first.among, **first.needs)

        w, made = world(), []
        for i in range(CALLS):
            chosen = w.pick(*(k for k in kinds if k.fits(w))) if i else first
            call = chosen.make(w)
            made.append(call.what)
            announce(f"{chosen.name}: {call.what}; {w!r}")
            refused(w, call)
            done[chosen.name] += 1
            if call.ruins:
                w, made = world(), []
        w.good_step(made)

    example()
