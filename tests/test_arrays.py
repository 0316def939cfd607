"""Which arrays are accepted as parameter, gradient and state, and what is said of the others.

Every refusal is checked to be all or nothing: the bad array comes last, after two good steps, and parameters,
state and counts have to keep their bits.
"""

from __future__ import annotations

import array
import ctypes
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import NUMBER_NAMES, build, frozen, same_bits, unchanged, values

import fastopt
from fastopt import (
    OPTIMIZERS,
    Adam,
    DTypeError,
    GradientError,
    LayoutError,
    OverlapError,
    ReadOnlyError,
    ShapeError,
    StateDictError,
    functional,
)

SHAPE = (4, 5)


def misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.empty(a.nbytes + 1, np.uint8)[1:]
    out = raw.view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


def strided(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=1)[:, ::2]


def structured(a: np.ndarray) -> np.ndarray:
    return np.zeros(a.shape, [("x", np.float32)])


Change = Callable[[np.ndarray], Any]

WRONG_TYPE: dict[str, Change] = {
    "int32": lambda a: a.astype(np.int32),
    "int64": lambda a: a.astype(np.int64),
    "bool": lambda a: a.astype(bool),
    "complex64": lambda a: a.astype(np.complex64),
    "complex128": lambda a: a.astype(np.complex128),
    "object": lambda a: a.astype(object),
    "string": lambda a: a.astype("U8"),
    "structured": structured,
    "masked": lambda a: np.ma.masked_array(a, a > 0),
    "masked without a mask": lambda a: np.ma.masked_array(a),
    "memoryview of int": lambda a: memoryview(a.astype(np.int32)),
    "list": lambda a: a.tolist(),
    "a string": lambda a: "w",
    "a number": lambda a: 1.0,
}
FLOAT16: dict[str, Change] = {"float16": lambda a: a.astype(np.float16)}
OTHER_FLOAT: dict[str, Change] = {
    "longdouble": lambda a: a.astype(np.longdouble),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
}
WRONG_LAYOUT: dict[str, Change] = {
    "strided": strided,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "misaligned": misaligned,
}
READ_ONLY: dict[str, Change] = {
    "read-only": read_only,
    "bytes": lambda a: memoryview(a.tobytes()).cast("B").cast(a.dtype.char, a.shape),
}


def cases(*tables: tuple[dict[str, Change], type[Exception]]) -> Any:
    rows = [pytest.param(change, error, id=name) for table, error in tables for name, change in table.items()]
    return pytest.mark.parametrize(("change", "error"), rows)


# --- Parameters

BAD_PARAMETERS = cases(
    (WRONG_TYPE, DTypeError),
    ({**FLOAT16, **OTHER_FLOAT}, DTypeError),
    (WRONG_LAYOUT, LayoutError),
    (READ_ONLY, ReadOnlyError),
)


@BAD_PARAMETERS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bad_parameter_is_refused_by_index_and_by_name(change, error, dtype):
    good, bad = values(), change(values(dtype=dtype))
    before = frozen(good)
    with pytest.raises(error, match=r"^parameter 2\b") as caught:
        Adam([good, values(seed=1), bad])
    assert isinstance(caught.value, fastopt.FastoptError)
    with pytest.raises(error, match=r"^parameter 'bias'"):
        Adam({"weight": good, "bias": bad})
    with pytest.raises(error, match=r"^parameter 1\b"):
        Adam([{"params": [good]}, {"params": [bad]}])
    assert frozen(good) == before


@BAD_PARAMETERS
def test_bad_parameter_in_a_new_group_leaves_the_optimizer_as_it_was(change, error):
    opt, grads = three()
    with unchanged(opt, error, r"^parameter 4\b"):
        opt.add_param_group({"params": [values(seed=9), change(values())]})
    opt.step(grads)


def test_other_permutations_of_the_axes_are_refused():
    with pytest.raises(LayoutError, match="C or Fortran order"):
        Adam(values((2, 3, 4)).transpose(1, 0, 2))
    opt = Adam(values((2, 3, 4)))
    with unchanged(opt, LayoutError, "gradient of parameter 0"):
        opt.step(values((3, 2, 4)).transpose(1, 0, 2))


def test_messages_tell_what_is_there_and_what_is_needed():
    with pytest.raises(LayoutError, match=r"strides \(40, 8\)"):
        Adam(strided(values()))
    with pytest.raises(DTypeError, match="int32; float32, float64 or bfloat16 in native byte order is needed"):
        Adam(values().astype("<i4"))
    with pytest.raises(DTypeError, match="float32, byte-swapped; float32, float64 or bfloat16 in native byte order"):
        Adam(values().astype(">f4"))
    with pytest.raises(LayoutError, match="misaligned"):
        Adam(misaligned(values()))
    with pytest.raises(DTypeError, match="masked"):
        Adam(np.ma.masked_array(values()))


def test_every_error_is_also_the_builtin_that_fits():
    kinds = {
        "LayoutError": ValueError, "DTypeError": TypeError, "ShapeError": ValueError,
        "ReadOnlyError": ValueError, "OverlapError": ValueError, "GradientError": ValueError,
        "ParameterError": ValueError, "HyperparameterError": ValueError, "ConventionError": ValueError,
        "StateDictError": ValueError, "NonFiniteError": ArithmeticError, "ConcurrentStepError": RuntimeError,
        "MissingExtraError": ImportError, "RankError": RuntimeError,
    }  # fmt: skip
    for name, kind in kinds.items():
        assert {fastopt.FastoptError, kind} <= set(getattr(fastopt, name).__mro__)


# --- Gradients


def three(cls: type = Adam, **options: Any) -> tuple[Any, list[np.ndarray]]:
    """An optimizer two steps old, of a float64, a Fortran-ordered and a last array; and gradients for it."""
    params = [values((10,), np.float64, 1), np.asfortranarray(values((3, 4), seed=2)), values(seed=3)]
    grads = [values(p.shape, p.dtype, 10 + i).copy("F" if i == 1 else "C") for i, p in enumerate(params)]
    opt = build(cls, params, **options)
    opt.step(grads)
    opt.step(grads)
    return opt, grads


BAD_GRADIENTS = cases(
    (WRONG_TYPE, DTypeError),
    (OTHER_FLOAT, DTypeError),
    ({"float64": lambda a: a.astype(np.float64)}, DTypeError),
    (WRONG_LAYOUT, LayoutError),
    ({"Fortran order": np.asfortranarray}, LayoutError),
    (
        {
            "transposed": lambda a: a.T,
            "flat": lambda a: a.ravel(),
            "broadcastable": lambda a: a[:1].copy(),
            "one more axis": lambda a: a[None],
            "longer": lambda a: np.concatenate([a, a]),
            "empty": lambda a: a[:0],
            "0-d": lambda a: np.array(1.0, np.float32),
        },
        ShapeError,
    ),
)


@BAD_GRADIENTS
def test_bad_gradient_is_refused_before_anything_is_written(change, error):
    opt, grads = three()
    bad = [grads[0], grads[1], change(grads[2].copy())]
    with unchanged(opt, error, r"^gradient of parameter 2\b", *grads):
        opt.step(bad)
    opt.step(grads)
    assert opt.steps == 3


@BAD_GRADIENTS
def test_bad_gradient_is_named_after_its_parameter(change, error):
    params = {"weight": values(), "bias": values(seed=1)}
    opt = Adam(params)
    with unchanged(opt, error, r"^gradient of parameter 'bias'"):
        opt.step({"weight": values(), "bias": change(values())})


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
@pytest.mark.parametrize("kind", ["float64", "read-only parameter"])
def test_every_optimizer_is_all_or_nothing(cls, kind):
    opt, grads = three(cls)
    if kind == "float64":
        with unchanged(opt, DTypeError, "parameter 2"):
            opt.step([*grads[:2], grads[2].astype(np.float64)])
    else:
        opt.params[2].flags.writeable = False
        with unchanged(opt, ReadOnlyError, "parameter 2"):
            opt.step(grads)
        opt.params[2].flags.writeable = True
    opt.step(grads)


@pytest.mark.parametrize(
    ("grads", "match"),
    [
        ([], "0 gradients for 3 parameters"),
        ([None, None], "2 gradients for 3"),
        ([None] * 4, "4 gradients for 3"),
        ((None, None), "2 gradients for 3"),
        (np.zeros(3, np.float32), "list"),
        (None, "list"),
        (3.0, "list"),
        ({0: None, 1: None, 2: None}, "dict"),
    ],
)
def test_wrong_container_or_number_of_gradients(grads, match):
    opt, _ = three()
    with unchanged(opt, GradientError, match):
        opt.step(grads)


@pytest.mark.parametrize(
    "grads", [{}, {"a": None}, {"a": None, "c": None}, {"a": None, "b": None, "c": None}]
)
def test_gradients_by_name_need_exactly_the_names_of_the_parameters(grads):
    opt = Adam({"a": values(), "b": values()})
    with unchanged(opt, GradientError, "missing|unknown"):
        opt.step(grads)


# --- Containers of gradients

ITERABLES: dict[str, Callable[[list[Any]], Any]] = {
    "generator": lambda grads: (g for g in grads),
    "map": lambda grads: map(np.asarray, grads),
    "zip": lambda grads: (g for g, _ in zip(grads, grads, strict=True)),
    "iterator": iter,
    "reversed": lambda grads: reversed(grads[::-1]),
    "values of a dict": lambda grads: dict(enumerate(grads)).values(),
    "deque": deque,
}


@pytest.mark.parametrize("make", ITERABLES.values(), ids=ITERABLES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients_come_in_any_iterable_for_any_number_of_parameters(make, n):
    shapes = [(4, 5), (3,), ()][:n]
    opt, plain = (Adam([values(shape, seed=i) for i, shape in enumerate(shapes)]) for _ in range(2))
    alone, twin = (Adam(values(seed=7)) for _ in range(2))
    p, q = ([values(shape, seed=i) for i, shape in enumerate(shapes)] for _ in range(2))
    for seed in range(1, 4):
        grads = [values(shape, seed=10 * seed + i) for i, shape in enumerate(shapes)]
        opt.step(make(grads))
        plain.step(grads)
        functional.sgd_(make(p), make(grads), step=seed, lr=0.5)
        functional.sgd_(q, grads, step=seed, lr=0.5)
        alone.step(make([values(seed=seed)]))
        twin.step([values(seed=seed)])
    assert same_bits([*opt.params, *alone.params, *p], [*plain.params, *twin.params, *q])
    with unchanged(opt, GradientError, f"0 gradients for {n} parameters"):
        opt.step(make([]))
    with unchanged(opt, GradientError, f"^more than {n} gradients for {n} parameters"):
        opt.step(make([*grads, values()]))


def test_gradients_without_end_are_too_many():
    opt = Adam(values())
    with unchanged(opt, GradientError, "^more than 1 gradients for 1 parameters"):
        opt.step(itertools.repeat(values()))
    with pytest.raises(fastopt.ParameterError, match="g must be a list of 1 arrays"):
        functional.sgd_([values()], itertools.repeat(values()), step=1)


def test_a_set_has_no_order():
    several = {DLPack(values()), DLPack(values(seed=1))}
    opt = Adam([values(), values(seed=1)])
    with unchanged(opt, GradientError, "gradients are a list, one for each of 2 parameters, not set"):
        opt.step(several)
    for params in (several, frozenset(several), {"params": several}):
        with pytest.raises(DTypeError, match="^parameter 0 is a (frozen)?set; an array"):
            Adam([params] if isinstance(params, dict) else params)
    with pytest.raises(DTypeError, match="^parameter 0 is a set; an array"):
        functional.sgd_(several, several, step=1)


def test_an_iterable_that_fails_changes_nothing():
    def grads():
        yield values()
        raise ZeroDivisionError("mine")

    opt = Adam(values())
    before = frozen([opt.params, opt.state])
    with pytest.raises(ZeroDivisionError, match="mine"):
        opt.step(grads())
    assert frozen([opt.params, opt.state]) == before
    opt.step(values())


# --- Overlap


def overlapping(opt: Any, grads: list[np.ndarray]) -> dict[str, np.ndarray]:
    p, state = opt.params[2], opt.state[2]
    return {
        "the parameter": p,
        "a view of the parameter": p[:],
        "the parameter, in other clothes": p.reshape(-1).view(np.uint8).view(np.float32).reshape(p.shape),
        "its state": state["exp_avg"],
        "its other state": state["exp_avg_sq"],
        "another parameter": opt.params[0].view(np.float32).reshape(p.shape),
    }


@pytest.mark.parametrize("which", overlapping(*three()))
@pytest.mark.parametrize("copy_grads", [False, True])
def test_gradient_that_is_a_parameter_or_a_state(which, copy_grads):
    opt, grads = three(copy_grads=copy_grads)
    with unchanged(opt, OverlapError, r"^gradient of parameter 2\b"):
        opt.step([*grads[:2], overlapping(opt, grads)[which]])


@pytest.mark.parametrize("shift", [-31, -1, 0, 1, 31])
def test_gradient_that_overlaps_a_parameter_by_some_elements(shift):
    memory = np.zeros(96, np.float32)
    w, g = memory[32:64], memory[32 + shift : 64 + shift]
    opt = Adam([values((3,)), w])
    with unchanged(opt, OverlapError, r"^gradient of parameter 1\b"):
        opt.step([values((3,)), g])


@pytest.mark.parametrize("shift", [-32, 32])
def test_gradient_next_to_a_parameter_is_fine(shift):
    memory = np.ones(96, np.float32)
    opt = Adam(memory[32:64])
    opt.step(memory[32 + shift : 64 + shift])
    assert (memory[32:64] != 1).all() and (memory[:32] == 1).all() and (memory[64:] == 1).all()


def test_parameters_that_share_memory():
    memory, w = values((64,)), values()
    with pytest.raises(OverlapError, match="^parameter 2 is the same memory as parameter 0"):
        Adam([w, values(), w])
    with pytest.raises(OverlapError, match="^parameter 'b' overlaps parameter 'a'"):
        Adam({"a": memory[:33], "b": memory[32:]})
    with pytest.raises(OverlapError, match="^parameter 1 is the same memory as parameter 0"):
        Adam([{"params": [w]}, {"params": [w.T]}])
    with pytest.raises(OverlapError, match="^parameter 2 overlaps parameter 0"):
        Adam([memory[:48], memory[48:], memory[8:12]])
    with pytest.raises(OverlapError, match="^parameter 1"):
        Adam([memory, memory[:2].view(np.float64)])
    Adam([memory[:32], memory[32:]])  # neighbours do not overlap
    Adam([memory[:0], memory[:0], memory])  # and nothing overlaps with nothing


def test_new_group_that_shares_memory_with_what_is_there():
    opt, grads = three()
    with unchanged(opt, OverlapError, "^parameter 4 is the same memory as parameter 1"):
        opt.add_param_group({"params": [values(), opt.params[1]]})
    with unchanged(opt, OverlapError, "state 'exp_avg' of parameter 2"):
        opt.add_param_group({"params": [values(), opt.state[2]["exp_avg"]]})
    opt.step(grads)
    assert len(opt.params) == 3


# --- Parameters that are changed behind the optimizer's back


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p: p.setflags(write=False), ReadOnlyError),
        (lambda p: setattr(p, "shape", (5, 4)), LayoutError),
        (lambda p: setattr(p, "dtype", np.int32), LayoutError),
    ],
    ids=["read-only", "shape", "dtype"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameter_that_is_no_longer_what_it_was(change, error):
    w = values()
    opt = Adam([values((3,), seed=1), w])
    opt.step([values((3,)), values()])
    change(opt.params[1])
    with unchanged(opt, error, "^parameter 1"):
        opt.step([values((3,)), values()])


# --- State: from a state_factory, and loaded

BAD_STATES = cases(
    (WRONG_TYPE, DTypeError), ({**FLOAT16, **OTHER_FLOAT}, DTypeError), (WRONG_LAYOUT, LayoutError),
    (READ_ONLY, ReadOnlyError), ({"float64": lambda a: a.astype(np.float64)}, DTypeError),
    ({"Fortran order": np.asfortranarray}, LayoutError),
    ({"other shape": lambda a: a[:3].copy(), "transposed": lambda a: a.T.copy()}, ShapeError),
)  # fmt: skip


@BAD_STATES
def test_bad_state_from_a_factory_is_refused(change, error):
    def factory(name, shape, dtype):
        state = np.zeros(shape, dtype)
        return change(values()) if name == "exp_avg_sq" and shape == SHAPE else state

    with pytest.raises(error, match="state 'exp_avg_sq'.*parameter 'bias'"):
        Adam({"weight": values((3,)), "bias": values()}, state_factory=factory)
    opt = Adam([values((3,))], state_factory=factory)
    opt.step([values((3,))])
    with unchanged(opt, error, "state 'exp_avg_sq'.*parameter 1"):
        opt.add_param_group({"params": values()})


def test_state_from_a_factory_may_not_share_memory():
    w, arena = values(), np.zeros(20, np.float32)
    with pytest.raises(OverlapError, match="parameter 0"):
        Adam(w, state_factory=lambda name, shape, dtype: w)
    with pytest.raises(OverlapError, match="state 'exp_avg"):
        Adam(w, state_factory=lambda name, shape, dtype: arena.reshape(shape))
    assert same_bits(w, values())


@pytest.mark.parametrize("what", ["is the parameter", "is too short", "fails"])
def test_factory_that_fails_when_an_option_is_switched_on(what):
    w, g = values(), values(seed=1)

    def factory(name, shape, dtype):
        if name != "max_exp_avg_sq" or mended:
            return np.zeros(shape, dtype)
        if what == "fails":
            raise fastopt.StateDictError("no room")
        return w if what == "is the parameter" else np.zeros(3, dtype)

    mended = False
    opt, plain = Adam(w, state_factory=factory), Adam(values())
    opt.step(g)
    plain.step(g)
    opt.param_groups[0]["amsgrad"] = plain.param_groups[0]["amsgrad"] = True
    for _ in range(2):
        with unchanged(opt, fastopt.FastoptError):
            opt.step(g)
    mended = True
    opt.step(g)
    plain.step(g)
    assert same_bits(opt.params, plain.params)


def test_state_may_live_in_a_memmap(tmp_path):
    def factory(name, shape, dtype):
        return np.memmap(tmp_path / name, dtype, "w+", shape=shape)

    opt, plain = Adam(values(), state_factory=factory), Adam(values())
    for seed in range(3):
        opt.step(values(seed=seed))
        plain.step(values(seed=seed))
    assert same_bits(opt.params, plain.params)
    stored = np.memmap(tmp_path / "exp_avg", np.float32, "r", shape=SHAPE)
    assert same_bits(np.asarray(stored), plain.state[0]["exp_avg"])


def test_state_from_a_factory_starts_at_its_first_value():
    def factory(name, shape, dtype):
        return np.full(shape, np.nan, dtype)

    opt = fastopt.Adagrad(values(), initial_accumulator_value=0.25, state_factory=factory)
    assert (opt.state[0]["sum"] == 0.25).all()


@pytest.mark.parametrize("what", ["read-only", "shape"])
@pytest.mark.parametrize("call", ["step", "load_state_dict"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_state_of_a_factory_that_is_no_longer_what_it_was(what, call):
    made = []

    def factory(name, shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    opt = Adam([values(), values(seed=1)], state_factory=factory)
    opt.step([values(), values(seed=1)])
    twin = Adam([values(), values(seed=1)])
    twin.step([values(), values(seed=2)])
    if what == "shape":
        made[-1].shape = (5, 4)
    else:
        made[-1].flags.writeable = False
    argument = [values(), values()] if call == "step" else twin.state_dict()
    with unchanged(opt, (LayoutError, ReadOnlyError), "state 'exp_avg_sq' of parameter 1"):
        getattr(opt, call)(argument)


REFUSED_ON_LOAD = {
    **{name: change for name, change in WRONG_TYPE.items() if name != "list"},
    "other shape": lambda a: a[:3].copy(),
    "transposed": lambda a: a.T.copy(),
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "None": lambda a: None,
}


@pytest.mark.parametrize("change", REFUSED_ON_LOAD.values(), ids=REFUSED_ON_LOAD)
def test_bad_state_is_refused_on_load(change):
    opt, grads = three()
    other, _ = three()
    other.step(grads)
    saved = other.state_dict()
    saved["state"][2]["exp_avg_sq"] = change(saved["state"][2]["exp_avg_sq"])
    with unchanged(opt, StateDictError, "exp_avg_sq.*parameter 2|parameter 2.*exp_avg_sq"):
        opt.load_state_dict(saved)


TAKEN_ON_LOAD = {**WRONG_LAYOUT, **READ_ONLY, "Fortran order": np.asfortranarray,
                 "float64": lambda a: a.astype(np.float64), "byte-swapped": OTHER_FLOAT["byte-swapped"],
                 "longdouble": OTHER_FLOAT["longdouble"], "list": lambda a: a.tolist()}  # fmt: skip


@pytest.mark.parametrize("change", TAKEN_ON_LOAD.values(), ids=TAKEN_ON_LOAD)
def test_loaded_state_is_copied_so_its_layout_does_not_matter(change):
    opt, grads = three()
    other, _ = three()
    other.step(grads)
    saved = other.state_dict()
    saved["state"][2]["exp_avg_sq"] = change(saved["state"][2]["exp_avg_sq"].copy())
    opt.load_state_dict(saved)
    assert frozen(opt.state) == frozen(other.state)
    assert not np.may_share_memory(opt.state[2]["exp_avg"], other.state[2]["exp_avg"])


# --- What is accepted

Make = Callable[[np.ndarray], tuple[Any, np.ndarray]]


def buffer(data: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape)


def array_array(a: np.ndarray) -> tuple[Any, np.ndarray]:
    out = array.array(a.dtype.char, a.ravel().tolist())
    return out, buffer(out, a.dtype, (a.size,))


def byte_array(a: np.ndarray) -> tuple[Any, np.ndarray]:
    out = bytearray(a.tobytes())
    return memoryview(out).cast(a.dtype.char), buffer(out, a.dtype, (a.size,))


def ctypes_array(a: np.ndarray) -> tuple[Any, np.ndarray]:
    kind = ctypes.c_float if a.dtype == np.float32 else ctypes.c_double
    out = (kind * a.size)(*a.ravel().tolist())
    return out, buffer(out, a.dtype, (a.size,))


class Subclass(np.ndarray):
    """An array that would do something else if it were asked."""

    def __array_finalize__(self, obj: Any) -> None:
        self.label = getattr(obj, "label", "mine")

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("a step does not index its arrays")


class DLPack:
    """An array that only speaks DLPack."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __dlpack__(self, **options: Any) -> Any:
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.a.__dlpack_device__()


def itself(a: np.ndarray) -> tuple[Any, np.ndarray]:
    return a, a


ACCEPTED: dict[str, Make] = {
    "C order": itself,
    "Fortran order": lambda a: itself(np.asfortranarray(a)),
    "a column": lambda a: itself(a.reshape(-1, 1)),
    "3-d": lambda a: itself(a.reshape(2, 2, 5)),
    "a part of a larger one": lambda a: itself(np.concatenate([a, a, a])[4:8]),
    "subclass": lambda a: (a.view(Subclass), a),
    "matrix": lambda a: (np.matrix(a, copy=False), a),
    "memoryview": lambda a: (memoryview(a), a),
    "array.array": array_array,
    "bytearray": byte_array,
    "ctypes": ctypes_array,
    "DLPack": lambda a: (DLPack(a), a),
}


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_accepted_as_parameter_and_as_gradient(make, dtype):
    given, seen = make(values(dtype=dtype))
    start = seen.copy(order="K")
    plain = Adam(seen.copy(order="K"))
    opt = Adam(given)
    gradients = [make(values(dtype=dtype, seed=seed)) for seed in range(1, 4)]
    for given_gradient, gradient in gradients:
        opt.step(given_gradient)
        plain.step(gradient)
    assert same_bits(seen, plain.params[0])
    assert (seen != start).all()
    assert frozen(opt.state) == frozen(plain.state)


def test_memmap_parameters_and_gradients(tmp_path):
    w = np.memmap(tmp_path / "w", np.float32, "w+", shape=SHAPE)
    g = np.memmap(tmp_path / "g", np.float32, "w+", shape=SHAPE)
    w[...], g[...] = values(), values(seed=1)
    g.flush()
    plain, opt = Adam(values()), Adam(w)
    for _ in range(2):
        plain.step(values(seed=1))
        opt.step(np.memmap(tmp_path / "g", np.float32, "r", shape=SHAPE))
    w.flush()
    assert same_bits(np.fromfile(tmp_path / "w", np.float32).reshape(SHAPE), plain.params[0])
    with pytest.raises(ReadOnlyError, match="parameter 0"):
        Adam(np.memmap(tmp_path / "w", np.float32, "r", shape=SHAPE))


@pytest.mark.parametrize("change", [*READ_ONLY.values(), lambda a: np.broadcast_to(a, SHAPE)])
def test_read_only_gradient_is_fine(change):
    opt, plain = Adam(values()), Adam(values())
    opt.step(change(values(seed=1)))
    plain.step(values(seed=1))
    assert same_bits(opt.params, plain.params)


def test_gradients_may_share_memory_with_each_other():
    opt, plain = (Adam([values(), values(seed=1), values((20,), seed=2)]) for _ in range(2))
    g = values(seed=3)
    for _ in range(3):
        opt.step([g, g, g.reshape(-1)])
        plain.step([g.copy(), g.copy(), g.ravel().copy()])
    assert same_bits(opt.params, plain.params)
    assert same_bits(g, values(seed=3))


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_dimensions_are_one_element(cls, dtype):
    w, flat = np.array(0.75, dtype), np.array([0.75], dtype)
    scalar, vector = build(cls, w), build(cls, flat)
    for g in (0.5, -0.25, 0.125):
        scalar.step(np.array(g, dtype))
        vector.step(np.array([g], dtype))
    assert w.shape == () and w.tobytes() == flat.tobytes() != np.array(0.75, dtype).tobytes()
    assert all(value.shape == () for value in scalar.state[0].values() if isinstance(value, np.ndarray))
    scalar.step(dtype(0.5))  # a NumPy scalar is 0-d too
    assert scalar.steps == 4


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_empty_arrays_count_their_steps(cls, shape):
    w, empty = values(), np.zeros(shape, np.float32)
    opt, plain = build(cls, [empty, w, empty.copy()]), build(cls, values())
    for _ in range(2):
        opt.step([empty, values(seed=1), empty])  # its own gradient: there is nothing to overlap
        plain.step(values(seed=1))
    assert same_bits(w, plain.params[0])
    assert [state["step"] for state in opt.state] == [2, 2, 2]
    with unchanged(opt, ShapeError, "parameter 2"):
        opt.step([empty, values(), np.zeros((*shape, 0), np.float32)])


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
def test_none_skips_a_parameter_and_its_count(cls):
    opt, alone = build(cls, [values(), values((3,), np.float64, 1)]), build(cls, [values()])
    untouched = frozen(opt.params[1])
    for seed in range(3):
        opt.step([values(seed=seed), None])
        alone.step([values(seed=seed)])
    assert frozen(opt.params[1]) == untouched
    assert same_bits(opt.params[0], alone.params[0])
    assert [state["step"] for state in opt.state] == [3, 0] and opt.steps == 3
    opt.step([None, None])
    assert [state["step"] for state in opt.state] == [3, 0] and opt.steps == 4
    # What was skipped starts like new, at its own first step.
    late, new = opt, build(cls, [values((3,), np.float64, 1)])
    late.step([None, values((3,), np.float64, 5)])
    new.step([values((3,), np.float64, 5)])
    assert same_bits(late.params[1], new.params[0])


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
def test_float32_and_float64_in_one_optimizer(cls):
    dtypes = [np.float32, np.float64, np.float32, np.float64]
    shapes = [(17,), (3, 5), (1,), (33,)]
    params = [values(s, d, i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]
    alone = [build(cls, p.copy()) for p in params]
    opt = build(cls, params)
    for seed in range(3):
        grads = [values(p.shape, p.dtype, 50 + seed) for p in params]
        opt.step(grads)
        for single, g in zip(alone, grads, strict=True):
            single.step(g)
    assert same_bits(params, [single.params[0] for single in alone])
    for state, p in zip(opt.state, params, strict=True):
        assert {state[key].dtype for key in state.keys() - NUMBER_NAMES} <= {p.dtype}


@pytest.mark.parametrize("order", ["C", "F"])
def test_state_has_the_memory_order_of_its_parameter(order):
    opt = Adam(values().copy(order))
    for state in (v for v in opt.state[0].values() if isinstance(v, np.ndarray)):
        assert state.flags.c_contiguous == (order == "C") and state.flags.f_contiguous == (order == "F")


def test_axes_of_length_one_have_no_order():
    g = np.lib.stride_tricks.as_strided(values((5,)), (1, 5), (999 * 4, 4))
    opt, plain = Adam(values((1, 5), seed=1)), Adam(values((1, 5), seed=1))
    opt.step(g)
    plain.step(values((5,)).reshape(1, 5))
    assert same_bits(opt.params, plain.params)


# --- copy_grads

COPIED = {**WRONG_LAYOUT, **FLOAT16, **OTHER_FLOAT, "Fortran order": np.asfortranarray,
          "float64": lambda a: a.astype(np.float64) / 3,
          "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
          "strided float16": lambda a: strided(a).astype(np.float16)[:, ::-1]}  # fmt: skip


@pytest.mark.parametrize("change", COPIED.values(), ids=COPIED)
@pytest.mark.parametrize("order", ["C", "F"])
def test_copy_grads_takes_any_layout_and_floating_type(change, order):
    params = [values((3,), np.float64), values(seed=1).copy(order)]
    opt, plain = (Adam([p.copy(order="K") for p in params], copy_grads=yes) for yes in (True, False))
    for seed in range(3):
        odd = change(values(seed=seed))
        before = frozen(np.asarray(odd))
        grads = [values((3,), np.float32, seed), odd]
        opt.step(grads)
        assert grads[1] is odd and frozen(np.asarray(odd)) == before
        plain.step([grads[0].astype(np.float64), np.array(odd, np.float32, order=order)])
    assert same_bits(opt.params, plain.params)


@cases(
    (WRONG_TYPE, DTypeError),
    ({"flat": lambda a: a.ravel(), "longer": lambda a: np.repeat(a, 2, 0)}, ShapeError),
)
def test_copy_grads_still_refuses(change, error):
    opt, grads = three(copy_grads=True)
    with unchanged(opt, error, "gradient of parameter 2"):
        opt.step([*grads[:2], change(grads[2])])


# --- torch tensors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_tensors_through_dlpack(dtype):
    torch = pytest.importorskip("torch")
    w, g = (torch.tensor(values(dtype=dtype, seed=seed)) for seed in (0, 1))
    opt, plain = Adam([w]), Adam([values(dtype=dtype)])
    for _ in range(3):
        opt.step([g])
        plain.step([g.numpy().copy()])
    assert same_bits(w.numpy(), plain.params[0])


def test_torch_tensors_that_cannot_be_stepped():
    torch = pytest.importorskip("torch")
    with pytest.raises(DTypeError, match=r"parameter 0.*detach\(\)"):
        Adam([torch.zeros(3, requires_grad=True)])
    with pytest.raises(DTypeError, match="parameter 0"):
        Adam([torch.zeros(3, dtype=torch.bfloat16)])
    with pytest.raises(LayoutError, match="parameter 1"):
        Adam([torch.zeros(3), torch.zeros(4, 5)[:, ::2]])
    opt = Adam([np.zeros(3, np.float32)])
    with unchanged(opt, DTypeError, "gradient of parameter 0"):
        opt.step([torch.zeros(3, dtype=torch.int32)])
