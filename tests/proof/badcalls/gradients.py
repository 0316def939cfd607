"""What can be wrong with gradients, and with arrays that change after they were given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from proof.badcalls.arrays import masked, of_other_float, of_other_type, off_layout, shifted_over
from proof.badcalls.parameters import as_parameter, saved_by
from proof.badcalls.world import NO_NUMBERS, Call, World, kind
from support import ALL, names_of

import fastopt
from fastopt.errors import (
    DTypeError,
    GradientError,
    HyperparameterError,
    LayoutError,
    NonFiniteError,
    OverlapError,
    ReadOnlyError,
    ShapeError,
)


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


@kind("a gradient's type")
def gradient_type(w: World) -> Call:
    i = w.any()
    p = w.params[i]
    good = [p.dtype] if p.dtype == np.float64 else [p.dtype, np.float16]
    what, g = of_other_float(w, p.shape, good) if not w.copy_grads and w.pick(False, True) else of_other_type(
        w, p.shape)  # fmt: skip
    grads = w.with_gradient(i, g)
    return Call(
        f"step with a gradient {i} of {what}", lambda: w.opt.step(grads), DTypeError, (f"gradient of {w.label(i)}",),
        (g,) if isinstance(g, np.ndarray) else (),
    )  # fmt: skip


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


@kind("a gradient's layout", copy_grads=False)
def gradient_layout(w: World) -> Call:
    i = w.big
    p = w.params[i]
    what, g = off_layout(w, p.shape, p.dtype, "C" if p.flags.c_contiguous else "F")
    grads = w.with_gradient(i, g)
    return Call(f"step with a gradient {i} of {what}", lambda: w.opt.step(grads), LayoutError,
                (f"gradient of {w.label(i)} has strides {g.strides}",), (g,))  # fmt: skip


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


WITH_STATE = [(cls, convention) for cls, convention in ALL if names_of(cls)]


@kind("state changed in place", WITH_STATE, factory=True)
def state_changed(w: World) -> Call:
    i, name = w.big, w.pick(*w.slots)
    what, _, mend, _ = change(w, w.opt.state[i][name], writing=True)
    saved = saved_by(w)
    do = w.pick(lambda: w.opt.step(w.grads), lambda: w.opt.load_state_dict(saved))
    return Call(f"step or load with state {name!r} of {i}, {what}", do, LayoutError,
                (f"state {name!r} of {w.label(i)}",), mend=mend)  # fmt: skip
