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

Run as a program, it makes calls of all kinds, in a process of its own, and announces each before it is made: where the
process dies, the last line says of what.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from support import ALL, build, frozen, needed, values

import fastopt
from fastopt import errors, functional, schedules
from fastopt.errors import (
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
    NonFiniteError: ArithmeticError, ConcurrentStepError: RuntimeError,
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
    "momentum": UNIT, "alpha": UNIT, "rho": UNIT, "betas": UNIT, "dampening": ANY,
}  # fmt: skip
SCHEDULABLE = ("lr", "betas", "momentum", "weight_decay")
FLAGS = ("maximize", "decoupled_weight_decay", "flush_subnormal", "nesterov", "centered", "amsgrad", "bias_correction")
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

    def arrays_of(self, i: int) -> list[np.ndarray]:
        """A parameter and its state."""
        state = [self.opt.state[i].get(name) for name in (*self.cls.slots, *self.cls.optional_slots)]
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


# --- Gradients


@kind("a gradient's shape")
def gradient_shape(w: World) -> Call:
    i = w.any()
    shape = w.params[i].shape
    other = w.pick(
        shape[::-1], (w.params[i].size,), (1, *shape), (*shape, 1), shape[1:], shape[:-1], (), (0,), (*shape, 0),
        tuple(2 * n for n in shape), tuple(n + 1 for n in shape), w.some("a shape"),
    )  # fmt: skip
    other = tuple(other)
    if other == shape:
        other = (*shape, 1)
    g = np.ones(other, w.pick(w.params[i].dtype, np.float16, np.float32, np.float64), w.pick("C", "F"))
    grads = w.with_gradient(i, g)
    return Call(
        f"step with a gradient {i} of shape {other}, {g.dtype}", lambda: w.opt.step(grads), ShapeError,
        (f"gradient of {w.label(i)} has shape {other}; the parameter has {shape}",), (g,),
    )  # fmt: skip


def of_other_type(w: World, shape: Any) -> tuple[str, Any]:
    """Something that is no array of floats, whatever else is accepted."""
    if w.pick(True, True, False):
        dtype = np.dtype(w.pick(*OTHER_TYPES))
        swapped = w.pick(False, False, True)
        return f"dtype {dtype}", np.zeros(shape, dtype.newbyteorder() if swapped else dtype)
    what = w.pick(*FOREIGN)
    return what, FOREIGN[what]()


def of_other_float(w: World, shape: Any, dtypes: Any) -> tuple[str, np.ndarray]:
    """An array of floats, of a type that is none of those."""
    swapped = np.dtype(w.pick(np.float16, np.float32, np.float64)).newbyteorder()
    others = [d for d in map(np.dtype, "efdg") if d not in dtypes] + [swapped]
    dtype = w.pick(*others)
    return f"dtype {dtype.str}", np.ones(shape, dtype, w.pick("C", "F"))


@kind("a gradient's type")
def gradient_type(w: World) -> Call:
    i = w.any()
    p = w.params[i]
    what, g = of_other_float(w, p.shape, [p.dtype]) if not w.copy_grads and w.pick(False, True) else of_other_type(
        w, p.shape)  # fmt: skip
    grads = w.with_gradient(i, g)
    return Call(
        f"step with a gradient {i} of {what}", lambda: w.opt.step(grads), DTypeError, (f"gradient of {w.label(i)}",),
        (g,) if isinstance(g, np.ndarray) else (),
    )  # fmt: skip


def masked(w: World, shape: Any, dtype: Any) -> np.ndarray:
    a = values(shape, dtype)
    return np.ma.masked_array(a, w.pick(None, a > 0, True, False) if w.pick(False, True) else np.ma.nomask)


@kind("a masked array")
def masked_arrays(w: World) -> Call:
    i = w.any()
    bad = masked(w, w.params[i].shape, w.params[i].dtype)
    if w.pick(False, True):
        grads = w.with_gradient(i, bad)
        return Call(f"step with a masked gradient {i}", lambda: w.opt.step(grads), DTypeError,
                    (f"gradient of {w.label(i)} is a masked array",), (bad.data,))  # fmt: skip
    what, do, label, others = as_parameter(w, bad)
    return Call(f"{what} with a masked parameter", do, DTypeError, (f"{label} is a masked array",), (*others, bad.data))


def off_layout(w: World, shape: Any, dtype: Any, orders: str) -> tuple[str, np.ndarray]:
    """An array that is misaligned, or contiguous in none of these orders."""
    dtype = np.dtype(dtype)
    if w.pick(True, True, True, False):
        steps = [w.pick(1, 1, -1, 2, -3, 0) for _ in shape]
        axes = w.rng.sample(range(len(shape)), len(shape))
        # Axis k of the array is axis axes[k] of the memory.
        room = [0] * len(shape)
        for n, step, axis in zip(shape, steps, axes, strict=True):
            room[axis] = n * abs(step) if step else 1
        base = np.ones(room, dtype).transpose(axes)
        a = base[tuple(slice(None, None, step or None) for step in steps)]
        a = np.broadcast_to(a, shape) if 0 in steps else a
        assert a.shape == tuple(shape)
        if not any({"C": a.flags.c_contiguous, "F": a.flags.f_contiguous}[order] for order in orders):
            return f"strides {a.strides}", a
    shift = w.pick(*range(1, dtype.itemsize, 2))
    raw = np.ones(int(np.prod(shape)) * dtype.itemsize + 8, np.uint8)
    a = np.ndarray(shape, dtype, raw, shift, order=orders[0])
    return f"an address of {a.ctypes.data % dtype.itemsize} modulo {dtype.itemsize}", a


@kind("a gradient's layout", copy_grads=False)
def gradient_layout(w: World) -> Call:
    i = w.big
    p = w.params[i]
    what, g = off_layout(w, p.shape, p.dtype, "C" if p.flags.c_contiguous else "F")
    grads = w.with_gradient(i, g)
    return Call(f"step with a gradient {i} of {what}", lambda: w.opt.step(grads), LayoutError,
                (f"gradient of {w.label(i)} has strides {g.strides}",), (g,))  # fmt: skip


def shifted_over(w: World, target: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """An array in the form of `like` over part of the memory of `target`; None where there is no room."""
    block = target.base if isinstance(target.base, np.ndarray) else target.ravel(order="K")
    raw = block.ravel(order="K").view(np.uint8)
    begin = target.ctypes.data - raw.ctypes.data
    low, high = max(0, begin - like.nbytes + 1), min(begin + target.nbytes - 1, raw.nbytes - like.nbytes)
    low += -(raw.ctypes.data + low) % like.itemsize
    shift = w.integer(0, 9999)  # addresses may not play into the choices, or they could not be repeated
    if low > high:
        return None
    at = low + like.itemsize * (shift % ((high - low) // like.itemsize + 1))
    return np.ndarray(like.shape, like.dtype, raw, at, order="C" if like.flags.c_contiguous else "F")


@kind("a gradient over a parameter or state")
def gradient_overlap(w: World) -> Call:
    i, j = w.filled(), w.filled()
    arrays = w.arrays_of(j)
    k = w.integer(0, len(arrays) - 1)
    g = shifted_over(w, arrays[k], w.params[i])
    g = w.params[i][...] if g is None else g
    grads = w.with_gradient(i, g)
    return Call(f"step with a gradient {i} at {g.ctypes.data - arrays[k].ctypes.data} bytes from array {k} of {j}",
                lambda: w.opt.step(grads), OverlapError, (f"gradient of {w.label(i)} ",))  # fmt: skip


@kind("the number and container of gradients")
def gradient_container(w: World) -> Call:
    n = len(w.params)
    cases: dict[str, tuple[Callable[[], Any], Any]] = {
        "too few": (lambda: w.pick(list, tuple)(w.grads[: w.integer(0, n - 1)]), f"for {n} parameters"),
        "too many": (lambda: w.pick(list, tuple)([*w.grads, None]), f"{n + 1} gradients for {n} parameters"),
    }
    if w.several:
        cases |= {
            what: (make, f"{n} parameters") for what, make in {
                "None": lambda: None, "a number": lambda: 3.0, "an object": object, "an array": lambda: np.ones(n),
                "an array of arrays": lambda: np.ones((n, 3)), "a 0-d array": lambda: np.array(1.0),
                "an iterator": lambda: iter(w.grads[1:]), "a generator": lambda: (g for g in [*w.grads, None]),
            }.items()
        }  # fmt: skip
    known = dict(zip(w.names, w.grads, strict=True))
    if w.named:
        gone = w.pick(*w.names)
        rest = {k: g for k, g in known.items() if k != gone}
        cases |= {
            "a dict without one": (lambda: rest, f"missing: [{gone!r}], unknown: []"),
            "a dict with one more": (lambda: {**known, "new": None}, "missing: [], unknown: ['new']"),
            "a dict with another": (lambda: {**rest, "new": known[gone]}, f"missing: [{gone!r}], unknown: ['new']"),
            "an empty dict": (lambda: {}, f"missing: {w.names!r}, unknown: []"),
            "a dict by number": (lambda: dict(enumerate(w.grads)), f"missing: {w.names!r}, unknown: [0"),
        }
    else:
        cases |= {"a dict": (lambda: known, "a dict"), "an empty dict": (lambda: {}, "a dict")}
    what = w.pick(*cases)
    make, says = cases[what]
    grads = make()
    return Call(f"step with {what} of gradients", lambda: w.opt.step(grads), GradientError, ("gradients", says))


@kind("a gradient that is not finite", nonfinite="raise")
def gradient_nonfinite(w: World) -> Call:
    first = w.filled()
    grads: list[Any] = [g.copy("K") for g in w.grads]
    for i, g in enumerate(grads):
        if i < first:
            grads[i] = w.pick(g, None)
        elif i == first or (g.size and w.pick(False, True)):
            value = w.pick(np.nan, -np.nan, np.inf, -np.inf)
            g.ravel(order="K")[w.integer(0, g.size - 1)] = value
    if w.copy_grads and w.params[first].dtype == np.float32 and w.pick(False, True):
        grads[first] = np.full(w.params[first].shape, 1e300)  # an infinity as soon as it is copied
    offered = w.offer(grads)
    scale = w.pick(None, 0.5, 1024.0)
    return Call(f"step with a NaN or infinity in gradient {first}", lambda: w.opt.step(offered, grad_scale=scale),
                NonFiniteError, (f"gradient of {w.label(first)} holds a NaN or an infinity",),
                tuple(g for g in grads if g is not None))  # fmt: skip


@kind("grad_scale")
def grad_scale(w: World) -> Call:
    wrong = [0, 0.0, -0.0, np.nan, np.inf, -np.inf, *NO_NUMBERS, w.some("a number below 0")]
    if any(p.dtype == np.float32 for p in w.params):
        wrong += [1e39, 1e300, 1e-60, 5e-324]  # an infinity, or 0, in float32
    value = w.pick(*wrong)
    return Call(f"step with grad_scale={value!r}", lambda: w.opt.step(w.grads, grad_scale=value), HyperparameterError,
                (f"grad_scale={value!r}",))  # fmt: skip


def change(w: World, a: np.ndarray, *, writing: bool) -> tuple[str, type[Exception], Callable[[], Any], bool]:
    """Change an array in place: what was done, the error it deserves, how to mend it, and whether that cannot be."""
    shape, dtype, strides = a.shape, a.dtype, a.strides
    other = (*shape, 1)
    if a.flags.c_contiguous and a.ndim > 1:
        other = w.pick(other, shape[::-1] if shape[::-1] != shape else other, (a.size,))
    content = a.copy("K")
    ways = ["shape", "dtype"] + ["write"] * writing + ["strides"] * (not a.flags.owndata)
    if a.flags.owndata and a.flags.c_contiguous:
        ways += ["resize", "grow", "shrink", "memory"] if writing else ["resize", "grow", "shrink"]
    way = w.pick(*ways)
    if way == "write":
        a.setflags(write=False)
        return "made read-only", ReadOnlyError, lambda: a.setflags(write=True), False
    if way == "dtype":
        a.dtype = np.dtype(w.pick("i4", "u4", ">f4") if dtype == np.float32 else w.pick("i8", "M8[s]", ">f8"))
        return f"made {a.dtype.str}", DTypeError, lambda: setattr(a, "dtype", dtype), False
    if way == "strides":
        a.strides = tuple(0 for _ in shape)
        return "given strides of 0", LayoutError, lambda: setattr(a, "strides", strides), False
    if way == "shape":
        a.shape = other
        return f"made {a.shape}", ShapeError, lambda: setattr(a, "shape", shape), False
    if way == "memory":
        a.__setstate__(np.ones(a.size + 1, dtype).__reduce__()[2])
        return "given other memory", ShapeError, lambda: None, True
    now = {"resize": other, "grow": (a.size * 300,), "shrink": (1,)}[way]
    a.resize(now, refcheck=False)

    def mend() -> None:
        a.resize(shape, refcheck=False)
        a[...] = content

    return f"resized to {now}", ShapeError, mend, writing and way != "resize"


def move(a: np.ndarray) -> str:
    """Give an array other memory, of the same shape and content; another shape where that turns out to be the same."""
    before, shape, content = a.ctypes.data, a.shape, a.copy()
    a.resize((3000 * a.size,), refcheck=False)
    a.resize(shape, refcheck=False)
    a[...] = content
    if a.ctypes.data == before:
        a.shape = (*shape, 1)
    return "moved"


@kind("a gradient changed in place", copy_grads=False)
def gradient_changed(w: World) -> Call:
    i = w.big
    what, error, mend, _ = change(w, w.grads[i], writing=False)
    grads = w.with_gradient(i, w.grads[i])
    return Call(f"step with gradient {i}, {what}", lambda: w.opt.step(grads), error, (f"gradient of {w.label(i)}",),
                mend=mend)  # fmt: skip


@kind("a parameter changed in place")
def parameter_changed(w: World) -> Call:
    i, p = w.big, w.params[w.big]
    if p.flags.owndata and p.flags.c_contiguous and w.pick(True, False, False):
        what, error, mend, ruins = move(p), LayoutError, lambda: None, True
    else:
        what, error, mend, ruins = change(w, p, writing=True)
    grads = w.with_gradient(i, w.pick(w.grads[i], None))
    error = ReadOnlyError if error is ReadOnlyError else LayoutError
    call, do = "step", functools.partial(w.opt.step, grads)
    if hasattr(w.opt, "lookahead") and error is LayoutError and w.pick(False, True):  # which only reads parameters
        call, do = "lookahead", w.opt.lookahead
    return Call(f"{call} with parameter {i}, {what}", do, error, (w.label(i),), mend=mend, ruins=ruins)


@kind("a lookahead array changed in place", [pair for pair in ALL if pair[0] is fastopt.NAG])
def lookahead_changed(w: World) -> Call:
    w.opt.lookahead()
    what, _, mend, ruins = change(w, w.opt._lookahead[w.big], writing=True)
    return Call(f"lookahead with array {w.big}, {what}", w.opt.lookahead, LayoutError, (w.label(w.big), "lookahead"),
                mend=mend, ruins=ruins)  # fmt: skip


WITH_STATE = [(cls, convention) for cls, convention in ALL if cls.slots]


@kind("state changed in place", WITH_STATE, factory=True)
def state_changed(w: World) -> Call:
    i, name = w.big, w.pick(*w.cls.slots)
    what, _, mend, _ = change(w, w.opt.state[i][name], writing=True)
    saved = saved_by(w)
    do = w.pick(lambda: w.opt.step(w.grads), lambda: w.opt.load_state_dict(saved))
    return Call(f"step or load with state {name!r} of {i}, {what}", do, LayoutError,
                (f"state {name!r} of {w.label(i)}",), mend=mend)  # fmt: skip


# --- Parameters


def saved_by(w: World, foreign: bool = False) -> dict[str, Any]:
    """A good state dict in which everything is another than now; perhaps as PyTorch would save it, without our key."""
    saved = copy.deepcopy(w.twin.state_dict())
    own = saved["fastopt"]
    own.update(steps=own["steps"] + 5, skipped_steps=3, counts=[count + 5 * (count > 0) for count in own["counts"]])
    for entry in saved["state"].values():
        for name, value in entry.items():
            value += 5 if name == "step" else 0.25 if name != "mu_product" else 0
    for group in saved["param_groups"]:
        group["lr"] = 0.0625
    if foreign:
        del saved["fastopt"]
    return saved


def group_of(w: World, arrays: list[Any]) -> dict[str, Any]:
    """A new group for the optimizer of this world."""
    return {"params": {f"new{i}": a for i, a in enumerate(arrays)} if w.named else arrays}


def functional_call(w: World, arrays: list[Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of this world's class, and good arguments for a step over these arrays."""
    floats = (np.float32, np.float64)
    like = [a if isinstance(a, np.ndarray) and a.dtype in floats else np.ones(3) for a in arrays]
    state: dict[str, Any] = {
        name: [np.zeros_like(a, subok=False) for a in like] for name in (*w.cls.slots, *w.cls.optional_slots)
    }
    if w.cls.carried:
        state[w.cls.carried] = [np.ones(1) for _ in like]
    call = {"p": arrays, "g": [np.ones_like(a, subok=False) for a in like], **state, "step": w.integer(1, 9)}
    return getattr(functional, f"{w.cls.__name__.lower()}_"), {
        **call, "convention": w.convention, **needed(w.cls, w.convention)}  # fmt: skip


def columns(call: dict[str, Any]) -> tuple[Any, ...]:
    """All arrays of such a call."""
    return tuple(a for column in call.values() if isinstance(column, list) for a in column)


def as_parameter(w: World, bad: Any) -> tuple[str, Callable[[], Any], str, tuple[Any, ...]]:
    """A call that gives this as a parameter: its name, itself, how messages call the parameter, the other arrays."""
    others = w.fresh(w.integer(0, 2))
    at = w.integer(0, len(others))
    arrays = [*others[:at], bad, *others[at:]]
    way = w.pick("a list", "names", "groups", "add_param_group", "functional")
    label = f"parameter {at}"
    if way == "names":
        named = {f"new{i}": a for i, a in enumerate(arrays)}
        return way, lambda: build(w.cls, named, w.convention), f"parameter 'new{at}'", tuple(others)
    if way == "groups":
        groups = [{"params": [a]} for a in arrays]
        return way, lambda: build(w.cls, groups, w.convention), label, tuple(others)
    if way == "add_param_group":
        group = group_of(w, arrays)
        label = f"parameter 'new{at}'" if w.named else f"parameter {len(w.params) + at}"
        return way, lambda: w.opt.add_param_group(group), label, tuple(others)
    if way == "functional":
        function, call = functional_call(w, arrays)
        return way, lambda: function(**call), label, tuple(a for a in columns(call) if a is not bad)
    return way, lambda: build(w.cls, arrays, w.convention), label, tuple(others)


@kind("a parameter's type")
def parameter_type(w: World) -> Call:
    shape = w.pick(*SHAPES)
    what, bad = of_other_float(w, shape, [np.float32, np.float64]) if w.pick(False, True) else of_other_type(w, shape)
    if isinstance(bad, dict):
        what, bad = "None", None  # in a list, a dict would be a group
    way, do, label, others = as_parameter(w, bad)
    return Call(f"{way} with a parameter of {what}", do, DTypeError, (label,),
                (*others, bad) if isinstance(bad, np.ndarray) else others)  # fmt: skip


@kind("a parameter's layout")
def parameter_layout(w: World) -> Call:
    what, bad = off_layout(w, w.pick(*BIG), w.pick(np.float32, np.float64), "CF")
    way, do, label, others = as_parameter(w, bad)
    return Call(f"{way} with a parameter of {what}", do, LayoutError, (label,), (*others, bad))


def read_only(w: World, shape: Any, dtype: Any, order: str = "C") -> np.ndarray:
    a = values(shape, dtype).copy(order)
    if order == "C" and w.pick(False, True):
        return np.frombuffer(a.tobytes(), dtype).reshape(shape)
    a.setflags(write=False)
    return a


@kind("a read-only parameter")
def parameter_read_only(w: World) -> Call:
    bad = read_only(w, w.pick(*SHAPES), w.pick(np.float32, np.float64), w.pick("C", "F"))
    way, do, label, others = as_parameter(w, bad)
    return Call(f"{way} with a read-only parameter", do, ReadOnlyError, (label,), (*others, bad))


@kind("parameters that share memory")
def parameter_overlap(w: World) -> Call:
    says: tuple[Any, ...] = (("overlaps", "is the same memory as"),)
    if w.pick(False, True):
        j = w.filled()
        target = w.pick(*w.arrays_of(j))
        shared = shifted_over(w, target, np.empty(w.pick(*BIG), w.pick(np.float32, np.float64)))
        shared = target[...] if shared is None else shared
        new = [*w.fresh(w.integer(0, 2)), shared]
        group = group_of(w, new)
        label = f"parameter 'new{len(new) - 1}'" if w.named else f"parameter {len(w.params) + len(new) - 1}"
        return Call(f"add_param_group with an array at {shared.ctypes.data - target.ctypes.data} bytes from one of {j}",
                    lambda: w.opt.add_param_group(group), OverlapError, (label, *says))  # fmt: skip
    first = w.fresh()[0]
    part = np.ones(first.shape[:-1] or (1,), first.dtype)
    second = w.pick(lambda: first, lambda: first[...], lambda: first.T, lambda: shifted_over(w, first, part))()
    before, between = w.fresh(w.integer(0, 1)), w.fresh(w.integer(0, 1))
    arrays = [*before, first, *between, second]
    way, make = w.pick(
        ("a list", lambda: build(w.cls, arrays, w.convention)),
        ("names", lambda: build(w.cls, {f"new{i}": a for i, a in enumerate(arrays)}, w.convention)),
        ("groups", lambda: build(w.cls, [{"params": a} for a in arrays], w.convention)),
        ("functional", lambda: function(**call)),
    )
    function, call = functional_call(w, arrays)
    label = (lambda i: f"parameter 'new{i}'") if way == "names" else (lambda i: f"parameter {i}")
    return Call(f"{way} with parameters {len(before)} and {len(arrays) - 1} that overlap", make, OverlapError,
                (label(len(before)), label(len(arrays) - 1), *says), tuple(arrays))  # fmt: skip


@kind("the container of parameters")
def parameter_container(w: World) -> Call:
    a, b = w.fresh(2)
    build_with = functools.partial(build, w.cls, convention=w.convention)
    cases: dict[str, tuple[Any, Any, Any]] = {
        "an empty list": ([], ParameterError, "no parameters"), "an empty tuple": ((), ParameterError, "no parameters"),
        "an empty iterator": (iter([]), ParameterError, "no parameters"), "{}": ({}, ParameterError, "no parameters"),
        "an empty string": ("", ParameterError, "no parameters"), "None": (None, DTypeError, "parameter 0"),
        "a number": (3.0, DTypeError, "parameter 0"), "an object": (object(), DTypeError, "parameter 0"),
        "a list of numbers": ([1.0, 2.0], DTypeError, "parameter 0"), "a string": ("ab", DTypeError, "parameter 0"),
        "None in a list": ([a, None], DTypeError, "parameter 1"),
        "None by name": ({"a": a, "b": None}, DTypeError, "parameter 'b'"),
        "a list in a list": ([[a, b]], DTypeError, "parameter 0"),
        "a group without params": ([{"lr": 0.1}], ParameterError, "'params'"),
        "an empty group dict": ([{"params": [a]}, {}], ParameterError, "'params'"),
        "an array among groups": ([{"params": [a]}, b], ParameterError, "'params'"),
        "a group among arrays": ([a, {"params": [b]}], ParameterError, "'params'"),
        "a group of None": ([{"params": None}], DTypeError, "parameter 0"),
        "a name twice": ([{"params": {"a": a}}, {"params": {"a": b}}], ParameterError, "'a'"),
        "names in one group": ([{"params": {"a": a}}, {"params": [b]}], ParameterError, "name"),
        "names in the other": ([{"params": [a]}, {"params": {"b": b}}], ParameterError, "name"),
    }  # fmt: skip
    label = "parameter 'new0'" if w.named else f"parameter {len(w.params)}"
    added: dict[str, tuple[Any, Any, Any]] = {
        "None": (None, ParameterError, "'params'"), "an array": (a, ParameterError, "'params'"),
        "a list": ([a], ParameterError, "'params'"), "a string": ("params", ParameterError, "'params'"),
        "{}": ({}, ParameterError, "'params'"), "a group without params": ({"lr": 0.1}, ParameterError, "'params'"),
        "None in a group": (group_of(w, [None]), DTypeError, label),
        "a number in a group": (group_of(w, [1.0]), DTypeError, label),
        "names, or none": ({"params": [a] if w.named else {"a": a}}, ParameterError, "name"),
    }  # fmt: skip
    if w.named:
        name = w.pick(*w.names)
        added["a name that is there"] = ({"params": {name: a}}, ParameterError, repr(name))
    if w.pick(False, True):
        what = w.pick(*cases)
        given_params, error, says = cases[what]
        return Call(f"{what} as parameters", lambda: build_with(given_params), error, (says,), (a, b))
    what = w.pick(*added)
    given_group, error, says = added[what]
    return Call(f"add_param_group of {what}", lambda: w.opt.add_param_group(given_group), error, (says,), (a, b))


@kind("param_groups taken apart")
def groups_edited(w: World) -> Call:
    groups = w.opt.param_groups
    k = w.integer(0, len(groups) - 1)
    before, inside = list(groups), dict(groups[k])
    saved = saved_by(w)

    def mend() -> None:
        groups[:] = before
        before[k].clear()
        before[k].update(inside)

    what, act = w.pick(
        ("one more", lambda: groups.append(dict(inside))), ("one less", groups.pop), ("none", groups.clear),
        ("None for one", lambda: groups.__setitem__(k, None)),
        ("a list for one", lambda: groups.__setitem__(k, list(inside.items()))),
        ("other params", lambda: groups[k].update(params=tuple(w.fresh()))),
        ("a copy of params", lambda: groups[k].update(params=list(inside["params"]))),
        ("no params", lambda: groups[k].pop("params")), ("None for params", lambda: groups[k].update(params=None)),
        ("another dict, of other params", lambda: groups.__setitem__(k, {**inside, "params": tuple(w.fresh())})),
        ("an option gone", lambda: groups[k].pop("lr")), ("all gone", lambda: groups[k].clear()),
    )  # fmt: skip
    act()
    calls = {"step": lambda: w.opt.step(w.grads)}
    if "params" not in what or "dict" in what:
        calls["load_state_dict"] = lambda: w.opt.load_state_dict(saved)
    if hasattr(w.opt, "lookahead"):
        calls["lookahead"] = w.opt.lookahead
    if "option" in what or "all" in what:
        del calls["load_state_dict"]  # which brings it back
    call = w.pick(*calls)
    return Call(f"{call} with {what} in param_groups", calls[call],
                (HyperparameterError, ParameterError, StateDictError), (("param_groups", "group"),),
                mend=mend)  # fmt: skip


# --- State


def wrong_array(w: World, like: np.ndarray, order: str) -> tuple[str, Any, type[Exception]]:
    """What cannot be the state of a parameter like this one: in form, type, layout, or read-only."""
    shape, dtype = like.shape, like.dtype
    way = w.pick("shape", "type", "float", "layout", "read-only", "masked")
    if way == "shape":
        other = w.pick((*shape, 1), (1, *shape), tuple(n + 1 for n in shape), (), shape[1:])  # `like` has an axis
        return f"shape {other}", np.zeros(other, dtype), ShapeError
    if way == "type":
        return *of_other_type(w, shape), DTypeError
    if way == "float":
        return *of_other_float(w, shape, [dtype]), DTypeError
    if way == "masked":
        return "a mask", masked(w, shape, dtype), DTypeError
    if way == "read-only":
        return "no writing", read_only(w, shape, dtype, order), ReadOnlyError
    return *off_layout(w, shape, dtype, "CF" if w.pick(False, True) else order), LayoutError


@kind("state from a state_factory", WITH_STATE, factory=True)
def state_factory(w: World) -> Call:
    name = w.pick(*w.cls.slots)
    arrays = w.fresh(w.integer(1, 3))
    i = w.integer(0, len(arrays) - 1)
    way = w.pick("wrong", "wrong", "a parameter", "another state", "the state of another")
    made: list[Any] = []
    if way == "wrong":
        what, bad, error = wrong_array(w, arrays[i], "C")
    elif way == "a parameter":
        what, bad, error = way, arrays[i], OverlapError
    elif way == "the state of another":
        over = shifted_over(w, w.pick(*w.arrays_of(w.filled())[1:]), arrays[i])
        what, bad, error = (way, over, OverlapError) if over is not None else ("None", None, DTypeError)
    else:
        what, bad, error = way, None, OverlapError
    if what == "another state" and len(w.cls.slots) == 1:
        what, bad, error = "a parameter", arrays[i], OverlapError
    count = Counter[str]()

    def fault(slot: str, shape: Any, dtype: Any) -> Any:
        count[slot] += 1
        if count[slot] - 1 == i and (slot == name or what == "another state"):
            if what == "another state":
                made.append(made[0] if made else np.zeros(shape, dtype))
                return made[-1]
            return bad
        return np.zeros(shape, dtype)

    new = what == "the state of another" or w.pick(False, True)
    if new:
        label = f"parameter 'new{i}'" if w.named else f"parameter {len(w.params) + i}"
        group = group_of(w, arrays)
        w.fault = fault
        do = lambda: w.opt.add_param_group(group)  # noqa: E731
    else:
        label = f"parameter {i}"
        do = lambda: build(w.cls, arrays, w.convention, state_factory=fault)  # noqa: E731
    slots = w.cls.slots if what == "another state" else (name,)
    return Call(f"{'a new group' if new else 'the constructor'} with {what} for state {name!r} of {i}", do, error,
                (tuple(f"state {slot!r} of {label}" for slot in slots),), tuple(arrays),
                mend=lambda: setattr(w, "fault", None))  # fmt: skip


@kind("functional: state", [pair for pair in ALL if pair[0].slots])
def functional_state(w: World) -> Call:
    arrays = w.fresh(w.integer(1, 3))
    function, call = functional_call(w, arrays)
    i, name = w.integer(0, len(arrays) - 1), w.pick(*w.cls.slots)
    label = f"state {name!r} of parameter {i}"
    good = columns(call)
    way = w.pick(
        "wrong", "wrong", "wrong", "missing", "None", "too few", "too many", "no list", "a parameter", "a state"
    )
    what, error, says = way, ParameterError, (name,)
    others = [slot for slot in w.cls.slots if slot != name]
    if way == "wrong" or (way == "a state" and not others):
        what, call[name][i], error = wrong_array(w, arrays[i], "C")
        says = (label,)
    elif way == "missing":
        call[name] = None
    elif way == "None":
        call[name][i], says = None, (repr(name), f"parameter {i}")
    elif way == "too few":
        call[name] = call[name][:-1]
    elif way == "too many":
        call[name] = [*call[name], np.zeros(3)]
    elif way == "no list":
        call[name] = w.pick(np.zeros(3), 3.0, "ab", iter([]), {})
    elif way == "a parameter":
        call[name][i], error, says = arrays[i], OverlapError, (label,)
    else:
        other = w.pick(*others)
        call[name][i], error, says = call[other][i], OverlapError, (f"of parameter {i}",)
    return Call(f"functional with {what} for {name!r} of {i}", lambda: function(**call), error, says, good)


@kind("functional: arguments")
def functional_arguments(w: World) -> Call:
    arrays = w.fresh(w.integer(1, 3))
    function, call = functional_call(w, arrays)
    i = w.integer(0, len(arrays) - 1)
    p = arrays[i]
    good = columns(call)
    way = w.pick("step", "step", "gradient", "layout", "overlap", "too few", "no list", "option", "accumulator")
    what, error, says = way, ParameterError, ("g must be a list",)
    if way == "step":
        call["step"] = w.pick(0, 2**63, 10**30, None, *NO_INTS, w.some("an int below 0"))
        what, error, says = f"step={call['step']!r}", HyperparameterError, (f"step={call['step']!r}",)
    elif way == "gradient":
        bad = np.ones((*p.shape, 1), p.dtype) if w.pick(False, True) else of_other_type(w, p.shape)[1]
        error = ShapeError if isinstance(bad, np.ndarray) and bad.dtype == p.dtype else DTypeError
        call["g"][i], says = bad, (f"gradient of parameter {i}",)
    elif way == "layout":
        what, call["g"][i] = off_layout(w, p.shape, p.dtype, "C")
        error, says = LayoutError, (f"gradient of parameter {i}",)
    elif way == "overlap":
        targets = [p, *(call[name][i] for name in w.cls.slots)]
        call["g"][i], error, says = w.pick(*targets), OverlapError, (f"gradient of parameter {i}",)
    elif way == "too few":
        call["g"] = call["g"][:-1]
    elif way == "no list":
        call["g"] = w.pick(p, None, 3.0, {}, "ab")
    elif way == "option":
        name = w.pick("learning_rate", "beta", "state_factory", "foreach", "params")
        call[name], error, says = 0.1, UnknownOptionError, (repr(name),)
    else:
        call["initial_accumulator_value"], error, says = 0.1, UnknownOptionError, ("initial_accumulator_value",)
    return Call(f"functional with {what} for {i}", lambda: function(**call), error, says, good)


@kind("functional: mu_product", [pair for pair in ALL if pair[0].carried])
def functional_product(w: World) -> Call:
    arrays = w.fresh(w.integer(2, 3))
    function, call = functional_call(w, arrays)
    i = w.integer(1, len(arrays) - 1)
    products = call["mu_product"]
    way = w.pick("a value", "a value", "no writing", "other memory", "another", "no list")
    error: Any = ParameterError
    if way == "a value":
        products[i] = w.pick(
            1.0, None, "1", np.ones(2), np.ones(0), np.ones(1, int), np.array([np.nan]), np.array(-0.5),
            np.array([w.some("a number above 1")]),
        )  # fmt: skip
    elif way == "no writing":
        error, products[i] = ReadOnlyError, np.ones(1)
        products[i].setflags(write=False)
    elif way == "other memory":
        error, products[i] = OverlapError, call[w.pick("p", "g", *w.cls.slots)][w.integer(0, i)].reshape(-1)[:1]
        products[i][...] = 1.0
    elif way == "another":
        error, products[i] = OverlapError, products[0]
    else:
        call["mu_product"] = w.pick(np.ones(1), [*products, np.ones(1)], [], 1.0)
    return Call(f"functional with {way} for mu_product {i}: {products[i]!r}", lambda: function(**call), error,
                ("mu_product",), columns(call))  # fmt: skip


# --- Hyperparameters


def wrong_number(w: World, key: str, rounds: bool) -> Any:
    """What is no good value for a number; `rounds`: nor after rounding to float32."""
    low, high = RANGES[key]
    outside: list[Any] = []
    if low == 0:
        outside += [-1, np.float64(-0.5), np.array(-0.25), w.some("a number below 0")]
    if high == 1:
        outside += [2, np.float32(1.5), w.some("a number above 1")]
        outside += [1, 1.0] * (key == "betas") + [0.99999999999] * (key == "betas" and rounds)
    elif rounds:
        outside += [1e39, 1e300]
    if outside and w.pick(False, True):
        return w.pick(*outside)
    return w.pick(*NO_NUMBERS, np.nan, np.inf, -np.inf)


def wrong_value(w: World, key: str, rounds: bool) -> Any:
    """What is no good value for an option."""
    if key in FLAGS:
        return w.pick(*NO_FLAGS)
    if key == "eps_placement":
        return w.pick("under", "", "Outside", b"outside", 0, True, ("outside",), np.array("outside"))
    if key != "betas":
        return wrong_number(w, key, rounds)
    if w.pick(True, False, False):
        return w.pick(0.9, "ab", (), (0.9,), [0.9], (0.9, 0.99, 0.999), {0.9: 1, 0.8: 2}, np.ones(2) / 2, object())
    pair = [0.9, 0.99]
    pair[w.integer(0, 1)] = wrong_number(w, key, rounds) if w.pick(True, True, True, False) else None
    return w.pick(tuple, list)(pair)


def shown(key: str, value: Any) -> tuple[str, ...]:
    """How a message may show an option and its value."""
    out = [f"{key}={value!r}"]
    if key == "betas" and isinstance(value, (tuple, list)):
        out += [text for j, x in enumerate(value) for text in shown(f"betas[{j}]", x)] + [f"betas={tuple(value)!r}"]
    if isinstance(value, (float, np.floating)) or (isinstance(value, int) and abs(value) < 2**53) or (
            type(value) is np.ndarray and value.dtype.kind == "f" and value.ndim == 0):  # fmt: skip
        out.append(f"{key}={float(value)!r}")
    return tuple(out)


EVERYWHERE: tuple[str, ...] = (
    "constructor", "constructor", "group", "add_param_group", "edit", "edit", "load", "functional",
)  # fmt: skip


def everywhere(key: str) -> tuple[str, ...]:
    """The ways in of an option: functions have no first value of an accumulator."""
    return EVERYWHERE if key != "initial_accumulator_value" else EVERYWHERE[:-1]


def way_in(w: World, *ways: str) -> tuple[str, bool, Callable[..., Any], tuple[Any, ...], Callable[[], Any]]:
    """A way for options to come in.

    Returns its name, whether float32 counts there, what makes the call of them, arrays beside, and what mends.
    """
    way = w.pick(*ways)
    arrays = w.fresh(2)
    rounds = any(a.dtype == np.float32 for a in arrays)
    cls, convention = w.cls, w.convention
    if way == "constructor":
        return way, rounds, lambda **o: lambda: build(cls, arrays, convention, **o), tuple(arrays), lambda: None
    if way == "group":
        rounds = arrays[1].dtype == np.float32
        return way, rounds, lambda **o: lambda: build(
            cls, [{"params": arrays[0]}, {"params": arrays[1:], **o}], convention
        ), tuple(arrays), lambda: None  # fmt: skip
    if way == "add_param_group":
        group = group_of(w, arrays)
        return way, rounds, lambda **o: lambda: w.opt.add_param_group({**group, **o}), tuple(arrays), lambda: None
    if way == "functional":
        function, call = functional_call(w, arrays)
        return way, rounds, lambda **o: lambda: function(**{**call, **o}), columns(call), lambda: None
    k = w.integer(0, len(w.opt.param_groups) - 1)
    if way == "load":
        saved = saved_by(w)

        def loading(**options: Any) -> Any:
            saved["param_groups"][k].update(options)
            return lambda: w.opt.load_state_dict(saved)

        return way, w.has_float(k), loading, (), lambda: None
    group, before = w.opt.param_groups[k], dict(w.opt.param_groups[k])

    def edited(**options: Any) -> Any:
        group.update(options)
        calls = [lambda: w.opt.step(w.grads), lambda: w.opt.step([None] * len(w.params))]
        calls += [w.opt.lookahead] if hasattr(w.opt, "lookahead") else []
        return w.pick(*calls)

    return way, w.has_float(k), edited, (), lambda: group.update(before)


EVERY_OPTION = [
    (cls, convention, key) for cls, convention in ALL
    for key in (*cls.hyperparameters, "maximize", "decoupled_weight_decay", "flush_subnormal")
]  # fmt: skip
"""Class, convention and hyperparameter."""


@kind("a hyperparameter out of range or of the wrong kind")
def hyperparameter(w: World, key: str | None = None) -> Call:
    key = key or w.pick(*(key for cls, convention, key in EVERY_OPTION if (cls, convention) == (w.cls, w.convention)))
    way, rounds, place, others, mend = way_in(w, *everywhere(key))
    value = None if way == "edit" and w.integer(0, 19) == 0 else wrong_value(w, key, rounds)
    offered = w.cls.conventions[w.convention].defaults
    error = HyperparameterError if key in offered or key in FLAGS[:3] else (HyperparameterError, ConventionError)
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), error, (shown(key, value), w.cls.__name__),
                others, mend=mend)  # fmt: skip


@kind("an array or list of a hyperparameter changed in place")
def hyperparameter_changed(w: World) -> Call:
    key = w.pick(*(key for key in w.cls.conventions[w.convention].defaults if key in ("lr", "betas", "eps")))
    k = w.integer(0, len(w.opt.param_groups) - 1)
    group, before = w.opt.param_groups[k], dict(w.opt.param_groups[k])
    holder: Any = [0.9, 0.99] if key == "betas" else np.array(0.125)
    group[key] = holder
    with pytest.raises(GradientError):  # so that it has been read, and found good
        w.opt.step([None] * (len(w.params) + 1))
    if key == "betas":
        holder[w.integer(0, 1)] = wrong_number(w, key, w.has_float(k))
    else:
        holder[...] = w.pick(np.nan, np.inf, -1.0, w.some("a number below 0"))
    return Call(f"step after {key} became {holder!r} in place", lambda: w.opt.step(w.grads), HyperparameterError,
                (shown(key, holder),), mend=lambda: group.update(before))  # fmt: skip


def not_offered(cls: Any, convention: str) -> list[str]:
    """Options of a class that a convention has no choice of."""
    ours = ("eps_placement",) if cls is fastopt.RMSprop else ("eps_placement", "bias_correction")
    return [k for k in cls.hyperparameters if k not in (*cls.conventions[convention].defaults, *ours)]


@kind("an option that the convention has not", [pair for pair in ALL if not_offered(*pair)])
def not_of_the_convention(w: World) -> Call:
    key = w.pick(*not_offered(w.cls, w.convention))
    value = True if key == "bias_correction" else UNUSUAL[key]
    if not isinstance(value, bool):
        value = w.pick(value, w.some("a number between"))
    way, _, place, others, mend = way_in(w, *everywhere(key))
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), ConventionError,
                (f"{key}={value!r}", w.cls.__name__), others, mend=mend)  # fmt: skip


@kind("decay, conventions and defaults that do not exist")
def convention(w: World) -> Call:
    cls = w.cls
    conventions = {"torch", "keras", "optax", "sklearn", "thinc", "paper", "pytorch", ""} - set(cls.conventions)
    way, _, place, others, mend = way_in(w, "constructor", "functional")
    what = w.pick("convention", "no default", "decay")
    decays = cls.conventions[w.convention].decay
    if what == "decay" and len(decays) == 1:
        way, _, place, others, mend = way_in(w, *EVERYWHERE)
        value = next(iter(decays)) is False
        return Call(f"{way} with decoupled_weight_decay={value}", place(decoupled_weight_decay=value), ConventionError,
                    (f"decoupled_weight_decay={not value} only", cls.__name__), others, mend=mend)  # fmt: skip
    must = needed(cls, w.convention)
    if what == "no default" and must:
        key = w.pick(*must)
        return Call(f"{way} without {key}", place(**{key: None}), HyperparameterError, (f"no default for {key}",),
                    others)  # fmt: skip
    value = w.pick(*sorted(conventions), 3, ["torch"], b"torch", object())
    do = place(convention=value) if way == "functional" else lambda: cls(others[0], lr=0.1, convention=value)
    return Call(f"{way} with convention={value!r}", do, ConventionError, (f"convention={value!r}", cls.__name__),
                others)  # fmt: skip


OPTAX_ROOT = [pair for pair in ALL if pair[1] == "optax" and "eps_root" in pair[0].hyperparameters]
DECOUPLED = [(cls, c) for cls, c in ALL if True in cls.conventions[c].decay and (cls, c) != (fastopt.AdamW, "paper")]


@kind("hyperparameters that do not go together", [*OPTAX_ROOT, (fastopt.SGD, "torch"), *DECOUPLED])
def together(w: World) -> Call:
    pair = (w.cls, w.convention)
    if pair in DECOUPLED and (pair not in OPTAX_ROOT or w.pick(False, True)):
        # Each number is good by itself, but 1 - lr * weight_decay is no number; only the step multiplies them.
        group = w.opt.param_groups[w.group_of(w.any())]
        before = dict(group)
        group.update(lr=1e200, weight_decay=1e200, decoupled_weight_decay=True)
        return Call("step with a product that overflows", lambda: w.opt.step(w.grads), HyperparameterError,
                    ("lr=1e+200",), mend=lambda: group.update(before))  # fmt: skip
    if w.cls is fastopt.SGD:
        options: dict[str, Any] = {"nesterov": True, "momentum": w.pick(0.0, 0.5)}
        options["dampening"] = 0.25 if options["momentum"] else 0.0
    else:
        options = {"eps_root": 0.1, "eps_placement": w.pick("inside", "outside_uncorrected", "inside_uncorrected")}
    says = tuple(repr(value) for value in options.values())
    way, _, place, others, mend = way_in(w, *EVERYWHERE)
    return Call(f"{way} with {options}", place(**options), HyperparameterError, (next(iter(options)), *says), others,
                mend=mend)  # fmt: skip


@kind("options that nobody knows, and bad settings")
def unknown_option(w: World) -> Call:
    keys = {key for cls, _ in ALL for key in cls.hyperparameters} - set(w.cls.hyperparameters)
    if w.pick(False, True):
        way, _, place, others, mend = way_in(w, "constructor", "group", "add_param_group", "functional")
        if way in ("group", "add_param_group"):
            keys |= {"n_threads", "nonfinite", "copy_grads", "convention", "state_factory"}
        if way == "functional":
            keys -= {"initial_accumulator_value"}
        key = w.pick(*sorted(keys), "learning_rate", "beta1", "LR", "lr ", "foreach")
        return Call(f"{way} with {key}", place(**{key: 0.1}), UnknownOptionError, (repr(key), w.cls.__name__),
                    others)  # fmt: skip
    key = w.pick("n_threads", "n_threads", "nonfinite", "copy_grads", "state_factory")
    value = w.pick(*{
        "n_threads": (0, -1, -(10**30), True, np.True_, np.int64(0), *NO_INTS, w.some("an int below 0")),
        "nonfinite": ("ignore", "", "Raise", None, 1, True, b"raise", ["raise"], np.array(["raise", "x"]), object()),
        "copy_grads": (*NO_FLAGS, None), "state_factory": (3, "zeros", np.zeros(3), [np.zeros]),
    }[key])  # fmt: skip
    way, _, place, others, mend = way_in(w, "constructor", *(["functional"] if key != "state_factory" else []))
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), HyperparameterError, (f"{key}={value!r}",),
                others)  # fmt: skip


# --- Schedules, and other code of the caller's


def wrapped(w: World, schedule: Callable[[int], Any]) -> Any:
    """A schedule by itself, or inside another."""
    return w.pick(
        lambda: schedule, lambda: schedule, lambda: schedules.Warmup(0, schedule),
        lambda: schedules.Join([schedule, 0.1], [1000]),
    )()  # fmt: skip


def schedulable(w: World) -> str:
    """A hyperparameter of this world that may be a schedule."""
    return w.pick(*(k for k in w.cls.conventions[w.convention].defaults if k in SCHEDULABLE))


@kind("what a schedule returns")
def scheduled(w: World) -> Call:
    key = schedulable(w)
    way, rounds, place, others, mend = way_in(w, *EVERYWHERE)
    now = wrong_number(w, key, rounds) if w.pick(True, True, True, False) else None
    returns = lambda step: now  # noqa: E731
    plain = isinstance(now, (str, bytes, bool, complex, list, tuple, dict, int, float)) or now is None
    schedule: Any = wrapped(w, returns) if plain else returns
    says = ((*shown(key, now), repr(now)),)
    if key == "betas":
        pair = [0.9, 0.99]
        if w.pick(False, True):
            now = wrong_value(w, "betas", rounds)
            schedule, says = lambda step: now, (shown("betas", now),)
        else:
            j = w.integer(0, 1)
            pair[j] = schedule
            schedule, says = tuple(pair), ((*shown(f"betas[{j}]", now), repr(now)),)
    return Call(f"{way} with a schedule of {key} that returns {now!r}", place(**{key: schedule}), HyperparameterError,
                says, others, mend=mend)  # fmt: skip


@kind("a schedule where there can be none")
def no_schedule(w: World) -> Call:
    keys = [key for key in w.cls.conventions[w.convention].defaults if key not in SCHEDULABLE and key not in FLAGS]
    keys += ["maximize", "flush_subnormal"]
    key = w.pick(*keys)
    way, _, place, others, mend = way_in(w, *everywhere(key))
    value = w.pick(lambda step: 0.1, schedules.Constant(0.1))
    return Call(f"{way} with {key}={value!r}", place(**{key: value}), HyperparameterError, (f"{key}={value!r}",),
                others, mend=mend)  # fmt: skip


def boom(w: World) -> BaseException:
    """An exception of the caller's own."""
    kinds = (Boom, ZeroDivisionError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError,
             KeyboardInterrupt, SystemExit, errors.LayoutError, errors.StateDictError)  # fmt: skip
    return w.pick(*kinds)("mine")


def raising(error: BaseException, after: int = 0) -> Callable[..., Any]:
    """A function that raises an error at every call but the first ones."""
    calls = iter(range(after))

    def function(*args: Any) -> float:
        if next(calls, None) is None:
            raise error
        return 0.125

    return function


@kind("an error of the caller's own")
def own_error(w: World) -> Call:
    error = boom(w)
    way = w.pick("a schedule", "a schedule", "a schedule", "a state_factory", "an iterator", "fun", "lookahead")
    arrays = w.fresh(2)
    if way == "a state_factory" and w.cls.slots and isinstance(error, Exception):
        if w.factory and w.pick(False, True):
            w.fault = raising(error)
            group = group_of(w, arrays)
            return Call("add_param_group, where the state_factory raises", lambda: w.opt.add_param_group(group), error,
                        others=tuple(arrays), mend=lambda: setattr(w, "fault", None))  # fmt: skip
        return Call("the constructor, where the state_factory raises",
                    lambda: build(w.cls, arrays, w.convention, state_factory=raising(error)), error,
                    others=tuple(arrays))  # fmt: skip
    if way == "an iterator":

        def broken(items: Any) -> Any:
            yield from items
            raise error

        what, do = w.pick(
            ("step", lambda: w.opt.step(broken(w.grads[:1]))), ("constructor", lambda: build(w.cls, broken(arrays))),
            ("add_param_group", lambda: w.opt.add_param_group({"params": broken(arrays)})),
        )  # fmt: skip
        if what != "step" or w.several:
            return Call(f"{what} with an iterator that raises {error!r}", do, error, others=tuple(arrays))
    if way == "fun":
        return Call(f"minimize, where fun raises {error!r}",
                    lambda: fastopt.minimize(raising(error), w.arranged(w.params), w.opt), error)  # fmt: skip
    key = schedulable(w)
    way, _, place, others, mend = way_in(w, *EVERYWHERE)
    schedule: Any = wrapped(w, raising(error))
    if way == "load" and key == "lr":  # loading reads it twice before it changes anything
        schedule = raising(error, w.integer(0, 1))
    if key == "betas" and w.pick(False, True):
        schedule = (0.9, schedule) if w.pick(False, True) else (schedule, 0.9)
    return Call(f"{way} with a schedule of {key} that raises {error!r}", place(**{key: schedule}), error, others=others,
                mend=mend)  # fmt: skip


@kind("a call from within a call")
def calls_back(w: World) -> Call:
    opt = w.opt
    arrays = w.fresh(2)
    saved = saved_by(w)
    inner = {
        "step": lambda: opt.step(w.grads), "add_param_group": lambda: opt.add_param_group(group_of(w, arrays)),
        "load_state_dict": lambda: opt.load_state_dict(saved),
    }  # fmt: skip
    if hasattr(opt, "lookahead"):
        inner["lookahead"] = opt.lookahead
    what = w.pick(*inner)
    schedule = lambda step: (inner[what](), 0.125)[1]  # noqa: E731
    key = w.pick("lr", schedulable(w))
    way, _, place, others, mend = way_in(w, "edit", "add_param_group", "load")
    return Call(f"{way} with a schedule of {key} that calls {what}", place(**{key: schedule}), ConcurrentStepError,
                ("in the middle of a step",), (*others, *arrays), mend=mend)  # fmt: skip


# Fields of every schedule, and what each has to be.
NUMBER, POSITIVE, SIZE, FRACTION = "a finite number", "above 0", "0 or above", "from 0 to 1"
FIELDS: dict[str, dict[str, Any]] = {
    "Constant": {"value": NUMBER},
    "Step": {"value": NUMBER, "step_size": 1, "gamma": SIZE},
    "MultiStep": {"value": NUMBER, "milestones": "milestones", "gamma": SIZE},
    "Exponential": {"value": NUMBER, "gamma": SIZE, "decay_steps": 1},
    "Polynomial": {"value": NUMBER, "total_steps": 1, "power": POSITIVE, "end": NUMBER},
    "Linear": {"start": NUMBER, "end": NUMBER, "total_steps": 1},
    "Cosine": {"value": NUMBER, "total_steps": 1, "end": NUMBER},
    "CosineRestarts": {"value": NUMBER, "first_period": 1, "period_mult": 1, "end": NUMBER},
    "InverseTime": {"value": NUMBER, "rate": SIZE, "decay_steps": 1},
    "InverseSqrt": {"value": NUMBER, "warmup": 1, "start": NUMBER},
    "OneCycle": {"max_value": NUMBER, "total_steps": 1, "pct_start": FRACTION, "div_factor": POSITIVE,
                 "final_div_factor": POSITIVE, "anneal": "cos"},
    "Warmup": {"steps": 0, "after": "after", "start": NUMBER},
    "Join": {"schedules": "schedules", "boundaries": "boundaries"},
    "ReduceOnPlateau": {"value": NUMBER, "mode": "max", "factor": "below 1", "patience": 0, "threshold": SIZE,
                        "threshold_mode": "abs", "cooldown": 0, "min_value": NUMBER, "eps": SIZE, "best": "best",
                        "bad_updates": 0, "cooldown_left": 0},
}  # fmt: skip
GOOD_FIELD: dict[Any, Any] = {
    NUMBER: 0.5, POSITIVE: 2.0, SIZE: 0.5, FRACTION: 0.5, "below 1": 0.5, 0: 3, 1: 3, "cos": "cos", "max": "max",
    "abs": "abs", "milestones": [1, 3], "boundaries": [2], "schedules": [0.1, 0.2], "after": 0.1, "best": 1.0,
}  # fmt: skip


def wrong_field(w: World, wanted: Any) -> Any:
    """What is no good argument of a schedule."""
    if isinstance(wanted, int):
        return w.pick(True, np.True_, None, wanted - 1, *NO_INTS, wanted + w.some("an int below 0"))
    if wanted in ("cos", "max", "abs"):
        return w.pick("", "COS", "minimum", None, 1, b"cos", ["cos"], True)
    if wanted in ("milestones", "boundaries"):
        wrong = [[3, 1], [-1], [1.5], [1, None], [True], "12", b"12", 3, None, [[1]], object()]
        return w.pick(*wrong, *([[0], [2, 2], (1, 4, 4)] if wanted == "boundaries" else []))
    if wanted == "schedules":
        return w.pick([], [0.1], [0.1] * 3, "ab", b"ab", 0.1, None, [0.1, "x"], [0.1, None], [schedules.Cosine, 0.1],
                      (np.nan, 0.1), [True, 0.1])  # fmt: skip
    outside = [0, 0.0, -0.0] if wanted == POSITIVE else [1, 1.0] if wanted == "below 1" else []
    if wanted in (POSITIVE, SIZE, FRACTION, "below 1"):
        outside += [-1, w.some("a number below 0")]
    if wanted in (FRACTION, "below 1"):
        outside += [2, w.some("a number above 1")]
    if outside and w.pick(False, True):
        return w.pick(*outside)
    numbers = [x for x in NO_NUMBERS if not isinstance(x, (Fraction, np.floating))]
    return w.pick(*numbers, *([None, np.nan, np.inf, -np.inf, np.float32("nan")] if wanted != "best" else []))


@kind("arguments of schedules")
def schedule_arguments(w: World) -> Call:
    name, field = w.pick(*((name, field) for name, fields in FIELDS.items() for field in fields))
    cls, fields = getattr(schedules, name), FIELDS[name]
    arguments = {field: GOOD_FIELD[wanted] for field, wanted in fields.items()}
    schedule = cls(**arguments)
    if w.pick(True, False, False, False):
        step = w.pick(None, -1, *NO_INTS, w.some("an int below 0"))
        return Call(f"{name} at step {step!r}", lambda: schedule(step), HyperparameterError, (name, "step", repr(step)),
                    (schedule,))  # fmt: skip
    if name == "ReduceOnPlateau" and w.pick(False, False, False, True):
        metric = w.pick("low", None, 1j, [], {}, object(), 2**1024, np.array([1.0, 2.0]))
        return Call(f"update({metric!r})", lambda: schedule.update(metric), HyperparameterError,
                    (name, "metric", repr(metric)), (schedule,))  # fmt: skip
    value = arguments[field] = wrong_field(w, fields[field])
    shows = (repr(value), *(map(repr, value) if isinstance(value, (list, tuple)) else ()))
    return Call(f"{name} with {field}={value!r}", lambda: cls(**arguments), HyperparameterError, (name, field, shows))


# --- State dicts


def loading(w: World, what: str, saved: Any, says: tuple[Any, ...], error: Any = StateDictError) -> Call:
    """A call of load_state_dict."""
    return Call(f"load_state_dict with {what}", lambda: w.opt.load_state_dict(saved), error, says)


NO_MAPPING: tuple[Any, ...] = (None, 3, "state", b"state", [], [("state", {})], (), {1, 2}, object(), np.zeros(3), 1.5)

NO_COUNTS: tuple[Any, ...] = (
    -1, -0.5, 1.5, 2**63, 2**1024, 1e300, np.nan, np.inf, "3", "x", None, [1, 2], {}, object(), 1j, np.array(-2.0),
)  # fmt: skip


@kind("a state dict's form")
def state_dict_form(w: World) -> Call:
    saved = saved_by(w)
    groups = saved["param_groups"]
    k = w.integer(0, len(groups) - 1)
    group, junk = groups[k], w.pick(*NO_MAPPING)
    listed = [j for j, g in enumerate(groups) if g["params"]]
    first = groups[listed[0]]
    cases: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
        "a lost key": (lambda: saved.pop(w.pick("state", "param_groups")), ("'state' and 'param_groups'",)),
        "no mapping as state": (lambda: saved.update(state=junk), ("'state'",)),
        "no list of groups": (
            lambda: saved.update(param_groups=w.pick(None, 3, "x", {}, tuple(groups))), ("'param_groups'",)),
        "no mapping as group": (lambda: groups.__setitem__(k, junk), ("parameter group",)),
        "no mapping as 'fastopt'": (lambda: saved.update(fastopt=junk), ("'fastopt'",)),
        "a group without params": (lambda: group.pop("params"), ("'params'",)),
        "no list of params": (lambda: group.update(params=w.pick(None, 3, (0, 1), "01", {0: 1})), ("'params'",)),
        "one parameter more": (lambda: group["params"].append(99), ("parameters",)),
        "one parameter less": (lambda: first["params"].pop(), ("parameters",)),
        "a group more": (lambda: groups.append(dict(group)), ("parameters",)),
        "a group less": (lambda: groups.pop(), ("parameters",)),
        "no groups": (lambda: groups.clear(), ("parameters",)),
        "a bad index": (lambda: first["params"].__setitem__(0, w.pick(None, 1.0, (0,), b"0", 1j)), ("index",)),
        "state of a stranger": (lambda: saved["state"].update({w.pick(99, -1, "w", None, (0,)): {}}), ("state for",)),
        "itself for state": (lambda: saved.update(state=saved), ("state for",)),
        "state by names": (lambda: saved.update(state={"weight": {"step": 1}}), ("'weight'",)),
    }  # fmt: skip
    if w.several:
        twice = [g["params"] for g in groups]
        flat = [(j, i) for j, params in enumerate(twice) for i in range(len(params))]
        (a, b), (c, d) = flat[0], flat[-1]
        cases["a parameter twice"] = (lambda: twice[c].__setitem__(d, twice[a][b]), ("twice",))
    if w.pick(*[True] * 9, False):
        what = w.pick(*cases)
        damage, says = cases[what]
        damage()
        return loading(w, what, saved, says)
    return loading(w, f"{junk!r}", junk, ("state dict",))


@kind("a state dict's origin and counts")
def state_dict_origin(w: World) -> Call:
    saved = saved_by(w)
    own, n = saved["fastopt"], len(w.params)
    key = w.pick("optimizer", "convention", "version", "counts", "counts", "steps", "skipped_steps")
    wrong_counts = (*NO_COUNTS, w.some("an int below 0"), w.some("a number between"))
    if key in ("steps", "skipped_steps"):
        own[key] = w.pick(*wrong_counts)
        says: tuple[Any, ...] = ("of the optimizer", repr(own[key]))
    elif key == "counts" and w.pick(False, True):
        own[key] = w.pick(None, 3, "x" * n, {}, np.ones(n), [1] * (n + 1), [1] * (n - 1), object())
        says = ("counts",)
    elif key == "counts":
        i = w.any()
        own[key][i] = w.pick(*wrong_counts)
        says = (f"of {w.label(i)}", repr(own[key][i]))
    elif key == "version":
        own[key] = w.pick(0, 2, -1, None, "1", 1.5, [], np.zeros(3), object())
        says = ("version", repr(own[key]))
    else:
        own[key] = w.pick("Adagrid", "", None, 3, b"torch", [], np.zeros(3), object(), "Muon", "pytorch")
        says = (key, repr(own[key]))
    return loading(w, f"{key} {own[key]!r}", saved, says)


STATEFUL = [pair for pair in ALL if pair[0].slots]


@kind("a state dict's arrays and steps", STATEFUL, stepped=True)
def state_dict_state(w: World) -> Call:
    saved = saved_by(w, w.pick(False, True))
    i = w.filled()
    entry, label, cls, shape = saved["state"][i], w.label(i), w.cls, w.params[i].shape
    name = w.pick(*cls.slots)
    ways = ["array", "array", "array", "entry"]
    ways += ["step", "step", "missing"] if cls.counts_in_state else []
    ways += ["product"] if cls.carried else []
    way = w.pick(*ways)
    if way == "entry":
        saved["state"][i] = w.pick(3, "state", [], [("step", 1)], object(), np.zeros(3), 1.5, True)
        return loading(w, f"{saved['state'][i]!r} as an entry", saved, (label,))
    if way == "step":
        bad = w.pick(*NO_COUNTS, np.ones(2), np.array(np.nan), w.some("an int below 0"))
        entry["step"] = bad
        return loading(w, f"step {bad!r}", saved, (label, repr(bad)))
    if way == "missing":
        name = w.pick(name, "step")
        if name == "step" or w.pick(False, True):
            del entry[name]
        else:
            entry[name] = None
        return loading(w, f"no {name}", saved, (label, repr(name)))
    if way == "product":
        bad = w.pick("gone", np.nan, -0.5, 1.5, "x", None, [0.5], np.ones(2), np.inf, 2**1024, object(), 1j)
        entry["mu_product"] = bad
        if isinstance(bad, str) and bad == "gone":
            del entry["mu_product"]
        return loading(w, f"mu_product {bad!r}", saved, (label,))
    other = w.pick((*shape, 1), (1, *shape), (*shape, 2), tuple(n + 1 for n in shape) or (1,), (0,), shape[1:] or (2,))
    what, bad = w.pick(
        lambda: (f"shape {other}", np.zeros(other, w.pick("f2", "f4", "f8"))),
        lambda: of_other_type(w, shape),
        lambda: ("a mask", masked(w, shape, np.float32)),
        lambda: ("a ragged list", [[1.0], [1.0, 2.0]]),
    )()  # fmt: skip
    entry[name] = bad if not isinstance(bad, float) else "a string"  # a number is good for an array of no dimensions
    return loading(w, f"{what} for {name!r} of {i}", saved, (label, repr(name)))


# --- minimize and minibatches


@kind("arguments of minimize and minibatches")
def minimizing(w: World) -> Call:
    if w.pick(True, False, False):
        arguments: dict[str, Any] = {"n": 10, "batch_size": 3, "rng": 0}
        key = w.pick(*arguments)
        least = {"n": 0, "batch_size": 1, "rng": 0}[key]
        value = w.pick(True, least - 1, *([None] * (key != "rng")), *NO_INTS, least + w.some("an int below 0"))
        arguments[key] = value
        return Call(f"minibatches with {key}={value!r}", lambda: fastopt.minibatches(**arguments), HyperparameterError,
                    (f"{key} must be", repr(value)))  # fmt: skip
    params = w.arranged(w.params)
    data = np.ones((5, 2))
    i = w.any()
    misshapen, complexes = list(w.grads), list(w.grads)
    misshapen[i], complexes[i] = w.grads[i][..., None], w.grads[i] * 1j
    ints = (True, *NO_INTS)
    case, error, says, options = w.pick(
        lambda: ("max_steps", HyperparameterError, ("max_steps",),
                 {"max_steps": w.pick(None, -1, *ints, w.some("an int below 0"))}),
        lambda: ("tol", HyperparameterError, ("tol",),
                 {"tol": w.pick("small", None, [], np.nan, 1j, 2**1024, w.some("a number below 0"))}),
        lambda: ("batch_size", HyperparameterError, ("batch_size",),
                 {"data": data, "batch_size": w.pick(0, *ints, w.some("an int below 0"))}),
        lambda: ("batch_size without data", HyperparameterError, ("batch_size", "data"), {"batch_size": 2}),
        lambda: ("drop_last", HyperparameterError, ("drop_last", "batch_size"),
                 {"data": data, "batch_size": w.integer(6, 99), "drop_last": True}),
        lambda: ("rng", HyperparameterError, ("rng",), {"rng": w.pick(-1, *ints)}),
        lambda: ("data of no kind", DTypeError, ("data",),
                 {"data": w.pick(3, "abc", np.float64(3), {"x": 1.0}, [1.0], (data, None), object(), {1, 2})}),
        lambda: ("data of no length", ShapeError, ("data",),
                 {"data": w.pick((data, np.ones(4)), {"x": data, "y": np.ones(4)}, np.ones((0, 3)), (), [], {})}),
        lambda: ("optimizer", HyperparameterError, ("optimizer",), {"optimizer": w.pick(3, "adam", None, [], 1.5)}),
        lambda: ("params of another", HyperparameterError, ("optimizer", "params"), {"params": w.fresh(5)}),
        lambda: ("fun", HyperparameterError, ("fun",), {"fun": w.pick(3, "f", None, np.ones(3))}),
        lambda: ("callback", HyperparameterError, ("callback",), {"callback": w.pick(3, "f", np.ones(3), [print])}),
        lambda: ("what fun returns", GradientError, ("fun", "pair"),
                 {"fun": lambda p, b: w.pick(None, 1.0, (1.0,), (1.0, w.grads, 3), "ab", np.ones(2), {})}),
        lambda: ("a loss of a shape", ShapeError, ("loss",), {"fun": lambda p, b: (np.ones(1), w.grads)}),
        lambda: ("a loss that is none", DTypeError, ("loss",),
                 {"fun": lambda p, b: (w.pick("one", None, [], {}, 1j, 2**1024, object()), w.grads)}),
        lambda: ("a gradient's shape", ShapeError, (f"gradient of {w.label(i)}",),
                 {"fun": lambda p, b: (1.0, misshapen)}),
        lambda: ("a gradient's type", DTypeError, (f"gradient of {w.label(i)}",),
                 {"fun": lambda p, b: (1.0, complexes)}),
    )()  # fmt: skip
    call: dict[str, Any] = {"fun": lambda p, b: (1.0, w.grads), "params": params, "optimizer": w.opt, **options}
    return Call(f"minimize with a bad {case}", lambda: fastopt.minimize(**{"max_steps": 1, **call}), error, says,
                (w.params[i], data))  # fmt: skip


# --- A process of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", type=int, help="how many")
    parser.add_argument("--seed", default="0", help="the same calls for the same seed")
    arguments = parser.parse_args()
    done = Counter[str]()
    announce = functools.partial(print, flush=True)
    bad_calls(list(KINDS.values()), announce, done, arguments.calls, f"all kinds, {arguments.seed}")
    print(f"refused {sum(done.values())} calls of {len(done)} kinds")


if __name__ == "__main__":
    main()
