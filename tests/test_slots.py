"""State slots of every kind, by a rule of our own: like the parameter, per row, per column, one element, numbers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from support import frozen_optimizer, same_bits, unchanged

import fastopt
from fastopt import Convention, Slot, errors, functional, reference
from fastopt.declare import STEP
from fastopt.typing import Params


class Toy(fastopt.Optimizer):
    """The rule of `fastopt.Momentum`, whose velocity starts as a copy of the parameter, and state that it ignores."""

    hyperparameters = ("lr", "momentum")
    slots = (
        STEP, Slot("velocity", first="copy"), Slot("per_row", like="row", first=2.0),
        Slot("per_column", like="column", storage="float64"), Slot("alone", like="one", first=-1.0, storage="float32"),
        Slot("begun", like="number"), Slot("kept", like="number", first=0.5, storage="float32", limits=(0.0, 1.0)),
    )  # fmt: skip
    conventions = {"mine": Convention({"lr": 0.1, "momentum": 0.9})}

    def __init__(self, params: Params, lr: float | None = None, momentum: float | None = None, **common: Any) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, **common)

    @staticmethod
    def rule(group: Any, convention: str) -> str:
        return "velocity"


ARRAYS = ("velocity", "per_row", "per_column", "alone")
SHAPES = {(3, 4): ((3,), (4,)), (5,): ((), (5,)), (): ((), ()), (2, 3, 4): ((2, 3), (2, 4)), (0, 3): ((0,), (3,))}


def some(seed: int = 0, dtype: Any = np.float32, order: Any = "C") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), dtype, order=order) for shape in SHAPES]


def stepped(steps: int = 3, **options: Any) -> Toy:
    opt = Toy(some(), **options)
    for t in range(steps):
        opt.step([None if (i == 1 and t == 0) else g for i, g in enumerate(some(t + 1))])
    for state in opt.state:  # what a later rule would write there
        state["per_row"][...] = 7.0
        state["per_column"][...] = 1.0 / 3.0  # no float32
        state["alone"][...] = 5.0
    return opt


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_has_the_shape_and_type_that_its_slot_says(dtype, order):
    params = some(0, dtype, order)
    opt = Toy(params)
    for p, state, (row, column) in zip(params, opt.state, SHAPES.values(), strict=True):
        assert [state[name].shape for name in ARRAYS] == [p.shape, row, column, (1,)]
        assert [state[name].dtype for name in ARRAYS] == [dtype, dtype, np.float64, np.float32]
        assert same_bits(state["velocity"], p)
        assert p.size == 0 or state["velocity"].strides == p.strides
        assert (state["per_row"] == 2).all() and (state["per_column"] == 0).all() and (state["alone"] == -1).all()
        assert (state["begun"], state["kept"]) == (0, 0.5)
        assert (state["begun"].dtype, state["kept"].dtype) == (np.float64, np.float32)


def test_a_copy_is_made_before_the_first_step_of_each_parameter():
    params = some()
    opt = Toy(params, lr=0.25, momentum=0.5)
    for p in params:
        p += 1.0  # such as weights that are loaded after the optimizer was made
    before, g = [p.copy() for p in params], some(1)
    opt.step([*g[:-1], None])
    for p, old, grad, state in list(zip(params, before, g, opt.state, strict=True))[:-1]:
        v = np.asarray(np.float32(0.5) * old - np.float32(0.25) * grad)
        assert same_bits(state["velocity"], v) and same_bits(p, np.asarray(old + v))
    opt.step(g)
    assert not same_bits(opt.state[0]["velocity"], params[0])


def test_the_twin_takes_the_same_path():
    opt = Toy(some())
    twin = reference.twin(opt)
    for t in range(4):
        g = [None if i == t else g for i, g in enumerate(some(t + 1))]
        opt.step(g)
        twin.step(g)
        assert same_bits(opt.params, twin.params)
        for state, other in zip(opt.state, twin.state, strict=True):
            assert all(same_bits(state[name], other[name]) for name in ARRAYS)


@pytest.mark.parametrize("way", ["state_dict", "file", "pickle", "deepcopy"])
def test_all_of_it_is_saved_and_continues_to_the_bit(way, tmp_path):
    opt = stepped()
    if way in ("state_dict", "file"):
        other = Toy([p.copy() for p in opt.params])
        if way == "file":
            opt.save(tmp_path / "state")
            other.load(tmp_path / "state")
        else:
            other.load_state_dict(copy.deepcopy(opt.state_dict()))
    else:
        other = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
    assert frozen_optimizer(other) == frozen_optimizer(opt)
    for k in range(2):
        opt.step(some(20 + k))
        other.step(some(20 + k))
    assert frozen_optimizer(other) == frozen_optimizer(opt)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("per_row", np.zeros(4), errors.StateDictError), ("per_column", np.zeros((3, 4)), errors.StateDictError),
        ("alone", np.zeros(2), errors.StateDictError), ("alone", None, errors.StateDictError),
        ("kept", 1.5, errors.StateDictError), ("begun", "x", errors.StateDictError),
    ],
)  # fmt: skip
def test_state_that_does_not_fit_its_slot_is_refused(name, value, error):
    opt = stepped()
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0][name] = value
    with unchanged(opt, error, name):
        opt.load_state_dict(saved)
    del saved["state"][0][name]
    with unchanged(opt, error, name):
        opt.load_state_dict(saved)


def test_state_is_cast_to_the_type_of_its_slot():
    opt = stepped()
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        entry["alone"] = entry["alone"].astype(np.float64)
        entry["per_column"] = entry["per_column"].astype(np.float16)
    opt.load_state_dict(saved)
    assert opt.state[0]["alone"].dtype == np.float32 and opt.state[0]["per_column"].dtype == np.float64
    assert opt.state[0]["per_column"][0] == np.float16(1 / 3)


def test_a_state_factory_is_asked_for_the_shape_and_type_of_the_slot():
    asked = []

    def factory(name: str, shape: Any, dtype: Any) -> np.ndarray:
        asked.append((name, shape, dtype))
        return np.full(shape, 9.0, dtype)

    opt = Toy(np.ones((3, 4), np.float32), state_factory=factory)
    assert asked == [
        ("velocity", (3, 4), np.float32), ("per_row", (3,), np.float32), ("per_column", (4,), np.float64),
        ("alone", (1,), np.float32),
    ]  # fmt: skip
    assert (opt.state[0]["per_row"] == 2).all() and (opt.state[0]["velocity"] == 1).all()
    opt.step(np.ones((3, 4), np.float32))
    for name, wrong, error in (
        ("per_row", lambda shape, dtype: np.zeros((*shape, 1), dtype), errors.ShapeError),
        ("per_column", lambda shape, dtype: np.zeros(shape, np.float32), errors.DTypeError),
        ("alone", lambda shape, dtype: np.zeros(2, dtype)[::2][:0], errors.ShapeError),
    ):

        def bad(asked: str, shape: Any, dtype: Any, name: str = name, wrong: Any = wrong) -> np.ndarray:
            return wrong(shape, dtype) if asked == name else np.zeros(shape, dtype)

        with pytest.raises(error, match=name):
            Toy(np.ones((3, 4), np.float32), state_factory=bad)


def test_state_of_rows_is_in_c_order():
    def factory(name: str, shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype, order="F" if name == "per_row" else "C")

    with pytest.raises(errors.LayoutError, match="per_row.*C order is needed"):
        Toy(np.ones((2, 3, 4)), state_factory=factory)


def test_a_state_array_that_was_changed_is_refused():
    made: dict[str, np.ndarray] = {}

    def factory(name: str, shape: Any, dtype: Any) -> np.ndarray:
        made[name] = np.zeros(shape, dtype)
        return made[name]

    opt = Toy(np.ones((3, 4)), state_factory=factory)
    opt.step(np.ones((3, 4)))
    opt.state[0]["per_row"].setflags(write=False)
    with pytest.raises(errors.LayoutError, match="per_row"):
        opt.step(np.ones((3, 4)))


def test_no_state_array_overlaps_another():
    memory = np.zeros(12)

    def factory(name: str, shape: Any, dtype: Any) -> np.ndarray:
        return memory[: int(np.prod(shape))].reshape(shape) if name != "alone" else np.zeros(shape, dtype)

    with pytest.raises(errors.OverlapError, match="per_row"):
        Toy(np.ones((3, 4)), state_factory=factory)


def test_the_function_takes_every_number_and_every_array():
    toy_ = functional._make(Toy)
    p, other = some(), Toy(some(), lr=0.3)
    state = {name: [entry[name].copy() for entry in other.state] for name in ARRAYS}
    begun, kept = [np.zeros(()) for _ in p], [np.full(1, 0.5, np.float32) for _ in p]
    for t in range(1, 4):
        toy_(p, some(t), *state.values(), begun, kept, step=t, lr=0.3)
        other.step(some(t))
        assert same_bits(p, other.params)
        assert [float(x) for x in begun] == [1.0] * len(p) and [float(x[0]) for x in kept] == [0.5] * len(p)
    with pytest.raises(errors.ShapeError, match="per_row"):
        toy_(p, some(), state["velocity"], p, state["per_column"], state["alone"], begun, kept, step=4)
    with pytest.raises(errors.OverlapError, match="kept of parameter 0 overlaps"):
        toy_(p, some(), *state.values(), begun, [begun[0].reshape(1), *kept[1:]], step=4)
    with pytest.raises(errors.ParameterError, match="kept"):
        toy_(p, some(), *state.values(), begun, [np.full(1, 1.5) for _ in p], step=4)


# --- What is refused, and before anything is read or written


def over(slots: tuple[Slot, ...], order: tuple[str, ...] | None = None, **more: Any) -> type[fastopt.Optimizer]:
    """A class over the rule of `fastopt.Momentum` with these slots."""
    rule = staticmethod(lambda group, convention: "velocity" if order is None else ("velocity", order))
    conventions = {"mine": Convention({"lr": 0.1, "momentum": 0.5}, **more)}
    return type("Over", (fastopt.Optimizer,), {
        "hyperparameters": ("lr", "momentum"), "slots": (STEP, *slots), "conventions": conventions, "rule": rule,
    })  # fmt: skip


V = Slot("velocity")


@pytest.mark.parametrize(
    ("slots", "match"),
    [
        ((V, *(Slot(f"one{k}", like="one") for k in range(4))), "at most 4 that are arrays"),
        ((Slot("a", like="number"), Slot("begun", like="begun"), V), "like='begun' at most, before other numbers"),
        ((V, Slot("a", like="number", limits=(1.0, 0.0))), "limits= a pair of numbers, the lower one first"),
        ((V, Slot("a", like="number", limits=None)), "limits="), ((V, Slot("")), "a name"),
        ((V, Slot("a", optional=3)), "optional="), ((V, Slot("a", like="number", optional=True)), "optional=False"),
        ((V, Slot("begun", like="begun", first=0.5)), "nothing else"), ((V, Slot("a", first=np.nan)), "first="),
        ((V, Slot("a", low=(np.nan, 1.0))), "low="), ((V, Slot("a", like="row", first="momentum")), "first="),
    ],
)  # fmt: skip
def test_a_slot_that_cannot_be_is_an_error_at_the_class(slots, match):
    with pytest.raises(errors.DeclarationError, match=match):
        over(slots)


def test_names_of_numbers_may_not_collide():
    for names in ({"n": "velocity"}, {"n": "step"}):
        with pytest.raises(errors.DeclarationError, match="different names, none of them 'step' or 'ema'"):
            over((V, Slot("n", like="number")), names=names)
    with pytest.raises(errors.DeclarationError, match="names or stores"):
        over((V,), storage={"velocity": "float32"})


def test_arrays_that_the_rule_steps_come_first():
    with pytest.raises(errors.DeclarationError, match="name the arrays that are like the parameter first"):
        over((V, Slot("r", like="row")), ("r", "velocity"))(np.ones((2, 2)))


@pytest.mark.parametrize("name", ["fading", "carry", "optional_slots", "counts_in_state", "carry_from", "_packed"])
def test_a_class_that_says_what_slots_have_replaced_is_refused(name):
    with pytest.raises(errors.DeclarationError, match=f"{name} has no effect: state is declared by slots"):
        type("Old", (fastopt.Adam,), {name: {}})


def resized(p: np.ndarray) -> None:
    p.resize(4, refcheck=False)


def test_state_is_not_filled_from_a_parameter_that_was_resized():
    copying = over((Slot("velocity", first="copy"),))
    p = np.ones(1_000_000)
    opt = copying(p)
    saved = opt.state_dict()
    resized(p)
    for call in (lambda: opt.step(np.ones(4)), lambda: opt.load_state_dict(saved)):
        with pytest.raises(errors.LayoutError, match="parameter 0 was changed"):
            call()


def test_an_option_that_brings_a_copy_does_not_read_a_parameter_that_was_resized():
    class Switched(fastopt.Optimizer):
        hyperparameters = ("lr", "momentum")
        slots = (STEP, Slot("velocity", first="copy", optional=True))
        conventions = {"mine": Convention({"lr": 0.1, "momentum": 0.0})}

        @staticmethod
        def rule(group: Any, convention: str) -> tuple[str, tuple[str, ...]]:
            return ("velocity", ("velocity",)) if group["momentum"] else ("sgd", ())

    p = np.ones(1_000_000)
    opt = Switched(p)
    opt.param_groups[0]["momentum"] = 0.5
    opt.step(np.ones_like(p))
    assert np.allclose(opt.state[0]["velocity"], 0.5 - 0.1)
    p = np.ones(1_000_000)
    opt = Switched(p)
    opt.param_groups[0]["momentum"] = 0.5
    resized(p)
    with pytest.raises(errors.LayoutError, match="parameter 0 was changed"):
        opt.step(np.ones(4))


@pytest.mark.parametrize("what", ["parameter", "state"])
def test_a_state_factory_of_a_later_group_cannot_change_an_earlier_one(what):
    p, made = np.ones(1_000_000), []

    def factory(name: str, shape: Any, dtype: Any) -> np.ndarray:
        if len(made) == 1:
            resized(p if what == "parameter" else made[0])
        made.append(np.zeros(shape, dtype))
        return made[-1]

    with pytest.raises(errors.LayoutError, match="was changed"):
        over((Slot("velocity", first="copy"),))([{"params": [p]}, {"params": [np.ones(3)]}], state_factory=factory)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_copy_is_not_made_where_a_gradient_ends_the_step(nonfinite):
    p = np.ones(3)
    opt = over((Slot("velocity", first="copy"),))(p, nonfinite=nonfinite)
    p += 6.0
    if nonfinite == "raise":
        with pytest.raises(errors.NonFiniteError):
            opt.step(np.array([np.nan, 0.0, 0.0]))
    else:
        opt.step(np.array([np.nan, 0.0, 0.0]))
    assert (opt.state[0]["velocity"] == 1).all() and (p == 7).all() and opt.state[0]["step"] == 0
    opt.step(np.zeros(3))
    assert (opt.state[0]["velocity"] == 3.5).all()


def test_a_large_copy_is_filled_by_a_team():
    p = np.arange(3_000_000, dtype=np.float32)
    opt = over((Slot("velocity", first="copy"),))(p, n_threads=2)
    assert same_bits(opt.state[0]["velocity"], p)
