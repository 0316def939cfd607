"""Attributes that look like settings work, or say where the setting is; classes declare what they have to."""

from __future__ import annotations

import copy
import pickle
from abc import ABC
from typing import Any, Generic, TypeVar

import numpy as np
import pytest
from support import ALL, ALL_IDS, build, same_bits, three, unchanged, values

import fastopt
from fastopt import (
    OPTIMIZERS,
    SGD,
    Adam,
    ConcurrentStepError,
    Convention,
    DeclarationError,
    HyperparameterError,
    NonFiniteError,
    Optimizer,
    Slot,
    UnknownAttributeError,
    UnknownOptionError,
)
from fastopt.declare import L2, MOMENT, SETTINGS, SQUARE, STEP

T = TypeVar("T")

# --- Settings of the step


def test_n_threads_can_be_set():
    opt = Adam(values())
    assert opt.n_threads is None
    for n in (3, np.int64(2), None):
        opt.n_threads = n
        assert opt.n_threads == n == opt._plan.n_threads
    opt.n_threads = 1
    opt.step(values(seed=1))
    for bad in (0, -1, 1.5, "2", True, [1]):
        with pytest.raises(HyperparameterError, match="n_threads=.* must be None .* or an int >= 1"):
            opt.n_threads = bad
        assert opt.n_threads == 1


def test_nonfinite_can_be_set():
    w, bad = np.ones(3), np.array([1.0, np.nan, 1.0])
    opt = SGD(w, lr=0.5)
    opt.nonfinite = "skip"
    opt.step(bad)
    assert (opt.steps, opt.skipped_steps) == (0, 1) and (w == 1).all()
    opt.nonfinite = "raise"
    with pytest.raises(NonFiniteError):
        opt.step(bad)
    for value in ("ignore", None, 1):
        with pytest.raises(HyperparameterError, match="nonfinite=.* must be 'propagate', 'raise' or 'skip'"):
            opt.nonfinite = value
    opt.nonfinite = "propagate"
    opt.step(bad)
    assert np.isnan(w[1])


def test_copy_grads_can_be_set():
    w = np.ones(3)
    opt = SGD(w, lr=0.5)
    with pytest.raises(fastopt.DTypeError):
        opt.step(np.ones(3, np.float32))
    opt.copy_grads = True
    opt.step(np.ones(3, np.float32))
    assert (w == 0.5).all()
    with pytest.raises(HyperparameterError, match="copy_grads=1 must be True or False"):
        opt.copy_grads = 1


def test_state_factory_can_be_set():
    made = []

    def supply(name: str, shape: Any, dtype: Any) -> np.ndarray:
        made.append(name)
        return np.empty(shape, dtype)

    opt = Adam(values())
    opt.state_factory = supply
    assert opt.state_factory is supply and not made
    opt.add_param_group({"params": [values(seed=1)]})
    assert made == ["exp_avg", "exp_avg_sq"]
    with pytest.raises(HyperparameterError, match="state_factory=3 must be None or callable"):
        opt.state_factory = 3


def test_settings_that_were_set_go_with_copies():
    opt = Adam(values())
    opt.n_threads, opt.nonfinite, opt.copy_grads = 3, "skip", True
    for one in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert (one.n_threads, one.nonfinite, one.copy_grads) == (3, "skip", True)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_not_changed_in_the_middle_of_a_step(name):
    seen = []

    def lr(step: int) -> float:
        if armed:
            with pytest.raises(ConcurrentStepError) as caught:
                setattr(opt, name, None if name in ("n_threads", "state_factory") else getattr(opt, name))
            seen.append(caught.value)
        return 0.1

    armed = []
    opt = SGD(values(), lr=lr)
    armed.append(1)
    opt.step(values(seed=1))
    assert len(seen) == 1 and opt.steps == 1


def test_the_convention_cannot_be_changed():
    opt = Adam(values())
    with pytest.raises(UnknownAttributeError, match="convention of Adam cannot be changed.*convention='keras'"):
        opt.convention = "keras"
    assert opt.convention == "torch" and opt.state_dict()["fastopt"]["convention"] == "torch"


# --- Names that are none


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_hyperparameters_are_no_attributes(cls, convention):
    opt = build(cls, three(), convention)
    for key in cls.group_keys():
        with unchanged(opt, UnknownAttributeError, rf"has no attribute '{key}'.*param_groups\[0\]\['{key}'\]"):
            setattr(opt, key, 0)
        with pytest.raises(AttributeError, match="param_groups"):
            getattr(opt, key)
        assert not hasattr(opt, key) and not hasattr(cls, key) and key not in dir(opt)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("learning_rate", r"param_groups\[0\]\['lr'\]"), ("LR", r"\['lr'\]"), ("wd", r"\['weight_decay'\]"),
        ("weight_decays", r"\['weight_decay'\]"), ("beta1", r"\['betas'\]"), ("epsilon", r"\['eps'\]"),
        ("n_thread", "did you mean 'n_threads'"), ("num_threads", "'n_threads'"), ("non_finite", "'nonfinite'"),
        ("copy_grad", "'copy_grads'"), ("conventions_", "'convention"), ("param_group", "'param_groups'"),
        ("momentum", "nor an option of that name; it has: lr, betas"), ("skipped_step", "'skipped_steps'"),
        ("clipnorm", r"\['clip_norm_each'\]"), ("clip_norms", "clip_norm"),
        ("max_grad_norm", "did you mean 'clip_norm'"),
    ],
)  # fmt: skip
def test_near_misses_say_what_was_meant(name, says):
    opt = Adam(values())
    with pytest.raises(UnknownAttributeError, match=f"Adam has no attribute '{name}'.*{says}"):
        setattr(opt, name, 1)
    assert name not in vars(opt) and not hasattr(opt, name)


def test_other_names_are_as_on_any_object():
    opt = Adam(values())
    opt.note, opt._step_count, opt.history = "mine", 1, []
    assert opt.note == "mine"
    with pytest.raises(AttributeError, match="'Adam' object has no attribute 'nothing'"):
        opt.nothing  # noqa: B018
    assert not hasattr(opt, "__array__") and not hasattr(opt, "_nothing")
    with pytest.raises(AttributeError):
        opt.steps = 3
    opt.step = lambda grads: None  # as schedulers of PyTorch wrap it


def test_a_class_that_declares_a_name_has_it():
    class Annotated(Adam):
        lr: float
        momentum = 0.0

    opt = Annotated(values())
    opt.lr, opt.momentum = 0.5, 0.9
    assert (opt.lr, opt.momentum) == (0.5, 0.9) and opt.param_groups[0]["lr"] == 1e-3

    class WithProperty(Adam):
        @property
        def lr(self) -> float:
            return self.param_groups[0]["lr"]

        @lr.setter
        def lr(self, value: float) -> None:
            self.param_groups[0]["lr"] = value

    opt = WithProperty(values())
    opt.lr = 0.25
    assert opt.param_groups[0]["lr"] == opt.lr == 0.25


# --- Options of the constructor and of groups


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("word", ["clipnorm", "global_clipnorm", "max_gradient_norm", "clip_by_global_norm"])
def test_words_for_clipping_say_what_clips(cls, word):
    for make in (lambda: cls(three(), **{word: 1.0}), lambda: cls([{"params": three(), word: 1.0}])):
        with pytest.raises(UnknownOptionError, match=f"{cls.__name__} has no option '{word}'[:;] .*clip_norm"):
            make()


def test_declarations_of_the_class_are_not_set_on_an_object():
    opt = Adam(values())
    for name in ("slots", "conventions", "hyperparameters", "family"):
        with pytest.raises(UnknownAttributeError, match=f"{name} is declared by the class Adam"):
            setattr(opt, name, ())


def test_a_class_of_a_users_own_hears_how_to_have_such_a_name():
    class Clipped(Adam):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.max_norm = 5.0

    with pytest.raises(UnknownAttributeError, match="declare it in the class: max_norm: Any"):
        Clipped(values())

    class Declared(Clipped):
        max_norm: Any

    assert Declared(values()).max_norm == 5.0


def test_near_misses_of_options_say_what_was_meant():
    for word, meant in (("weight_decays", "weight_decay"), ("n_thread", "n_threads"), ("beta_1", "betas")):
        with pytest.raises(UnknownOptionError, match=f"no option '{word}'; did you mean '{meant}'"):
            Adam(three(), **{word: 1})


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("learning_rate", "did you mean 'lr'"), ("weight_decays", "'weight_decay'"), ("max_grad_norm", "of all groups"),
        ("momentum", "Adam has: lr"), ("n_threads", "an attribute of the optimizer"),
    ],
)  # fmt: skip
def test_a_key_of_a_group_that_looks_like_an_option_is_an_error_at_the_next_step(key, says):
    for lr in (0.1, lambda step: 0.1):
        opt = Adam(three(), lr=lr)
        opt.step(three(1))
        opt.param_groups[0][key] = 0.5
        with unchanged(opt, UnknownOptionError, f"the parameter group has '{key}', which does nothing; .*{says}"):
            opt.step(three(2))
        del opt.param_groups[0][key]
        opt.step(three(2))


def test_other_keys_of_a_group_are_the_users_own():
    opt = Adam(three())
    keys = ("initial_lr", "max_lr", "max_momentum", "foreach", "name", "lr_scale", "no_weight_decay", "metas", 3)
    for k, key in enumerate(keys):
        opt.param_groups[0][key] = 1
        opt.step(three(k))
    opt.param_groups[0]["nesterov"] = False  # of PyTorch's SGD, switched off
    opt.step(three())
    steps = opt.steps
    assert steps == 10
    for lr in (0.1, lambda step: 0.1):
        opt.param_groups[0]["lr"] = lr
        opt.step(three())
        held = opt.param_groups[0].pop("name")
        opt.param_groups[0]["learning_rate"] = 0.1  # as many keys as before
        with unchanged(opt, UnknownOptionError, "'learning_rate'"):
            opt.step(three())
        del opt.param_groups[0]["learning_rate"]
        opt.param_groups[0]["name"] = held
    opt.param_groups[0]["nesterov"] = True  # the same keys
    with unchanged(opt, UnknownOptionError, "'nesterov'"):
        opt.step(three())


# --- What a class declares

GOOD = {
    "hyperparameters": ("lr",),
    "conventions": {"own": Convention({"lr": 0.1})},
    "rule": staticmethod(lambda group, convention: ("sgd", ())),
    "__init__": lambda self, params, lr=None, **common: Optimizer.__init__(self, params, {"lr": lr}, **common),
}


def own(**fields: Any) -> dict[str, Convention]:
    """One convention with these fields."""
    return {"own": Convention({"lr": 0.1}, **fields)}


def declared(**changes: Any) -> type[Optimizer]:
    return type("Own", (Optimizer,), {k: v for k, v in {**GOOD, **changes}.items() if v is not ...})


def test_a_class_of_ones_own_steps():
    w = np.ones(3)
    declared()(w).step(np.ones(3))
    assert same_bits(w, np.full(3, 0.9))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"conventions": ...}, r"Own.conventions = \{\} has to be a dict with at least one entry"),
        ({"conventions": {}}, "conventions"), ({"conventions": [Convention({})]}, "conventions"),
        ({"conventions": {"own": {"lr": 0.1}}}, "fastopt.Convention"),
        ({"conventions": {"own": Convention({"lr": 0.1, "eps": 1})}}, r"conventions\['own'\].defaults"),
        ({"conventions": {"own": Convention(("lr",))}}, "defaults"),
        ({"conventions": own(forms=3)}, "forms"),
        ({"conventions": {"own": Convention({"lr": 0.1}, decay={"yes": 1})}}, "decay"),
        ({"hyperparameters": ...}, "hyperparameters"), ({"hyperparameters": ("lr", "lr")}, "hyperparameters"),
        ({"hyperparameters": ("lr", 3)}, "hyperparameters"), ({"hyperparameters": "lr"}, "hyperparameters"),
        ({"always_offered": ("eps",)}, "always_offered"), ({"rule": ...}, "rule"), ({"rule": "sgd"}, "rule"),
        ({"conventions": {"own": Convention({"lr": 0.1}, {False: 9})}}, "decay"),
        ({"conventions": own(names={"bufer": "b"})}, "'bufer'.*no state of the class"),
        ({"conventions": own(forms={"eps": "x"})}, "forms.*numbers"),
        ({"conventions": own(names={"sum": 3})}, "names"),
        ({"hyperparameters": ("eps",)}, "hyperparameters"), ({"eps_placements": ("under",)}, "eps_placements"),
        ({"hyperparameters": ("lr", "params")}, "without 'params'"),
        ({"slots": None}, "slots"), ({"slots": "exp_avg"}, "slots = 'exp_avg' has to be a tuple of fastopt.Slot"),
        ({"slots": (Slot("a"), 3)}, "slots"), ({"slots": (Slot(3),)}, "each with a name"),
        ({"slots": (Slot("a"), Slot("a"))}, "different names"),
        ({"slots": (Slot("step"),)}, "'step' if, and only if"),
        ({"slots": (Slot("t", like="count"),)}, "'step' if, and only if"),
        ({"slots": (Slot("a", like="rows"),)}, "like= one of 'parameter'"),
        ({"slots": (Slot("a", storage="float32"),)}, "storage=None"),
        ({"slots": (Slot("a", like="row", storage="int8"),)}, "storage=None, or 'float32'"),
        ({"slots": (Slot("a", like="row", first="copy"),)}, "first='copy' only if"),
        ({"slots": (Slot("a", first="eps"),)}, "first= a number, 'copy'"),
        ({"slots": (Slot("a", first=None),)}, "first= a number"),
        ({"slots": (Slot("a", like="number", first="lr"),)}, "first= a number"),
        ({"slots": (Slot("sum", first="initial_accumulator_value"),)}, "first= a number"),
        ({"slots": (Slot("a", low=1.0),)}, "low=None, or a pair"),
        ({"slots": (Slot("a", like="one", low=(1, 1)),)}, "low=None, or a pair"),
        ({"slots": tuple(Slot(name, like="number") for name in "abc")}, "at most 2"),
        ({"slots": (Slot("a"),), "conventions": own(names={"a": "step"})}, "none of them 'step'"),
        ({"slots": (Slot("a"),), "conventions": own(storage={"a": "int"})}, "storage"),
        ({"slots": (Slot("a"), Slot("b")), "conventions": own(names={"a": "b"})}, "different names"),
    ],
    ids=lambda x: str(x)[:60],
)  # fmt: skip
def test_a_class_that_lacks_a_declaration_is_an_error_at_its_creation(changes, match):
    with pytest.raises(DeclarationError, match=match) as caught:
        declared(**changes)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("answer", "slots", "match"),
    [
        (("sgdd", ()), (), "'sgdd'.*rules.pxi.*sgd"), (7, (), r"rule\(\) returned 7"),
        (("sgd", ("b",)), (), r"rule\(\) returned"), (None, (), r"rule\(\) returned None"),
        (("sgd_momentum", ("momentum_buffer",)), (), "slots that the class declares: none"),
        (("sgd", ("velocity",)), ("velocity",), r"'sgd' has 0 state slot\(s\); rule\(\) names 1: velocity"),
        (("adagrad", ("sum",)), ("sum",), "'adagrad' needs '(lr_decay|eps)'"),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_fit_is_an_error_where_it_is_asked_for(answer, slots, match):
    cls = declared(rule=staticmethod(lambda group, convention: answer), slots=tuple(map(Slot, slots)))
    with pytest.raises(DeclarationError, match=match):
        cls(np.ones(3))


def test_a_class_over_a_rule_of_the_library_is_twenty_lines():
    """TensorFlow's first RMSprop, as docs/building.md has it: averages start at 1, eps in the root."""

    class RMSpropTF(Optimizer):
        hyperparameters = ("lr", "alpha", "eps", "momentum", "weight_decay")
        slots = (STEP, Slot("square_avg", first=1.0, low=SQUARE), Slot("momentum_buffer", low=MOMENT))
        conventions = {
            "timm": Convention(
                {"lr": 0.01, "alpha": 0.9, "eps": 1e-10, "momentum": 0.9, "weight_decay": 0.0}, decay={False: L2},
                forms={"eps_inside": 1, "lr_inside": 1, "bias_correction": 0},
            )
        }  # fmt: skip

        @staticmethod
        def rule(group: Any, convention: str) -> str:
            return "rmsprop_momentum"

    w, square, m = np.array([1.0, -2.0, 0.5]), np.ones(3), np.zeros(3)
    opt = RMSpropTF(w.copy(), lr=0.05, weight_decay=0.1)
    twin = fastopt.reference.twin(opt)
    for t in range(5):
        g = np.array([0.5, -1.0, 0.0]) * (t + 1)
        opt.step(g)
        twin.step([g])
        g = g + 0.1 * w
        square = 0.9 * square + 0.1 * g * g
        m = 0.9 * m + 0.05 * g / np.sqrt(square + 1e-10)
        w = w - m
    assert np.allclose(opt.params[0], w, rtol=1e-14, atol=0) and same_bits(opt.params, twin.params)
    other = RMSpropTF(w.copy(), lr=0.05)
    other.load_state_dict(opt.state_dict())
    assert list(other.state_dict()["state"][0]) == ["step", "square_avg", "momentum_buffer"]
    assert other.param_groups[0]["weight_decay"] == 0.1 and "RMSpropTF" not in fastopt.OPTIMIZERS


def test_a_rule_that_asks_for_what_is_not_there_is_an_error_of_the_class():
    cls = declared(rule=staticmethod(lambda group, convention: ("sgd", ()) if group["momentum"] else None))
    with pytest.raises(DeclarationError, match="asks the group for 'momentum', which is no hyperparameter"):
        cls(np.ones(3))


def test_a_class_that_others_derive_from_may_declare_nothing():
    class Said(Optimizer, abstract=True):
        pass

    class WithABC(Optimizer, ABC):
        pass

    class WithGeneric(Optimizer, Generic[T]):
        pass

    for base in (Said, WithABC, WithGeneric):
        with pytest.raises(DeclarationError, match=f"{base.__name__}.conventions"):
            base(np.ones(3), {})  # it was a StopIteration, which a loop takes for the end
        w = np.ones(3)
        type("Own", (base,), GOOD)(w).step(np.ones(3))
        assert same_bits(w, np.full(3, 0.9))
        type("Mixed", (base, Adam), {})(np.ones(3)).step(np.ones(3))
    with pytest.raises(DeclarationError, match="conventions"):
        type("Lacking", (Optimizer,), {})


def test_a_class_may_have_an_option_of_its_own():
    class Halving(Adam):
        hyperparameters = (*Adam.hyperparameters, "half")

        def __init__(self, params: Any, half: float = 0.0, **options: Any) -> None:
            Optimizer.__init__(self, params, {"half": half, **options})

    opt = Halving(np.ones(3), half=1.0)
    opt.step(np.ones(3))
    assert opt.param_groups[0]["half"] == 1.0


def test_settings_before_the_constructor_say_where_they_go():
    class Early(Adam):
        def __init__(self, params: Any, name: str) -> None:
            setattr(self, name, 1)
            super().__init__(params)

    for name in ("n_threads", "convention"):
        with pytest.raises(UnknownAttributeError, match=rf"{name} cannot be set .*super\(\).__init__\(\)"):
            Early(np.ones(3), name)
