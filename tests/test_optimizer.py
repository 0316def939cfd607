"""The interface of the optimizers: construction, hyperparameters, schedules, groups, conventions, copies."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from facts import FACTS, fact
from support import ALL, ALL_IDS, build, frozen, needed, same_bits, three, unchanged, values

import fastopt
from fastopt import (
    NAG,
    OPTIMIZERS,
    SGD,
    Adam,
    AdamW,
    ConventionError,
    HyperparameterError,
    Momentum,
    NonFiniteError,
    Optimizer,
    RMSprop,
)
from fastopt.declare import name_under
from fastopt.errors import ParameterError, UnknownOptionError

CONVENTIONS = ("torch", "keras", "optax", "sklearn", "thinc", "paper")


# --- Construction


def test_every_form_of_parameters_takes_the_same_path():
    def arrays():
        return [values((3,)), values((2, 2), seed=1)]

    grads = [values((3,), seed=2), values((2, 2), seed=3)]
    want = arrays()
    Adam(want, lr=0.1).step(grads)
    forms = {
        "tuple": tuple, "generator": lambda a: (x for x in a), "iterator": iter,
        "dict": lambda a: dict(zip("ab", a, strict=True)),
        "one group": lambda a: [{"params": a}],
        "groups": lambda a: [{"params": a[0]}, {"params": [a[1]]}],
        "groups of generators": lambda a: ({"params": iter([x])} for x in a),
        "groups of dicts": lambda a: [{"params": {"a": a[0]}}, {"params": {"b": a[1]}}],
        "an empty group": lambda a: [{"params": a}, {"params": []}],
        "lr by group": lambda a: [{"params": a[0], "lr": 0.1}, {"params": a[1], "lr": 0.1, "eps": None}],
    }  # fmt: skip
    for name, form in forms.items():
        got = arrays()
        opt = Adam(form(got), lr=0.1)
        opt.step(grads)
        assert same_bits(got, want), name
        assert same_bits(opt.params, want), name


def test_gradients_come_as_list_tuple_iterator_dict_or_one_array():
    g = [values((3,), seed=2), values((2,), seed=3)]
    named = dict(zip("ab", g, strict=True))
    want = [values((3,)), values((2,))]
    Adam(want).step(g)
    for grads in (
        MappingProxyType(named),
        tuple(g),
        iter(g),
        (x for x in g),
        named,
        dict(reversed(named.items())),
        dict.fromkeys("ab") | named,
    ):
        got = {"a": values((3,)), "b": values((2,))}
        Adam(got).step(grads)
        assert same_bits(list(got.values()), want)
    for grads in (g[0], [g[0]], (g[0],)):
        w = values((3,))
        Adam(w).step(grads)
        assert same_bits(w, want[0])
        w = values((3,))
        Adam([w]).step(grads)
        assert same_bits(w, want[0])


def test_groups_have_hyperparameters_of_their_own():
    alone = [values(seed=i) for i in range(3)]
    together = [values(seed=i) for i in range(3)]
    g = values(seed=9)
    AdamW(alone[0], lr=0.5).step(g)
    AdamW(alone[1], lr=0.25, betas=(0.5, 0.75)).step(g)
    AdamW(alone[2], lr=0.5, weight_decay=0, eps=0.125, maximize=True, amsgrad=True).step(g)
    groups = [
        {"params": together[0]},
        {"params": together[1], "lr": 0.25, "betas": (0.5, 0.75)},
        {"params": together[2], "weight_decay": 0, "eps": 0.125, "maximize": True, "amsgrad": True},
    ]
    AdamW(groups, lr=0.5).step([g, g, g])
    assert same_bits(together, alone)


@pytest.mark.parametrize("params", [[], (), iter([]), {}])
def test_no_parameters_at_all_is_an_error(params):
    with pytest.raises(ParameterError, match="empty"):
        SGD(params)


def test_group_without_parameters_is_fine():
    opt = SGD([{"params": []}, {"params": [], "lr": 0.5}])
    opt.step([])
    assert opt.steps == 1 and opt.params == [] and opt.state == []
    opt.add_param_group({"params": [values()]})
    opt.step([values()])


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ([{"lr": 0.1}], "'params'"),
        ([{}], "'params'"),
        ([{"params": {"a": values()}}, {"params": {"a": values()}}], "'a'"),
        ([{"params": {"a": values()}}, {"params": [values()]}], "name"),
    ],
)
def test_malformed_groups(params, match):
    with pytest.raises(ParameterError, match=match):
        SGD(params)


def test_unknown_keywords_are_named():
    for cls in OPTIMIZERS.values():
        text = f"{cls.__name__} has no option 'learning_rate'; did you mean 'lr'\\? It has: lr"
        with pytest.raises(UnknownOptionError, match=text):
            cls(values(), learning_rate=0.1)
        with pytest.raises(UnknownOptionError, match="'learning_rate'"):
            cls([{"params": values(), "learning_rate": 0.1}])
    opt = SGD(values())
    with unchanged(opt, UnknownOptionError, "betas"):
        opt.add_param_group({"params": values(), "betas": (0.9, 0.99)})


def test_add_param_group_between_steps():
    w, late = values(), values(seed=1)
    opt, first, second = Adam(w, lr=0.5), Adam(values(), lr=0.5), Adam(values(seed=1), lr=0.25)
    opt.step(values(seed=2))
    first.step(values(seed=2))
    opt.add_param_group({"params": late, "lr": 0.25})
    for seed in (3, 4):
        opt.step([values(seed=seed), values(seed=seed)])
        first.step(values(seed=seed))
        second.step(values(seed=seed))
    assert same_bits([w, late], first.params + second.params)
    assert [state["step"] for state in opt.state] == [3, 2] and opt.steps == 3
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.25]


def test_positional_arguments_are_in_the_order_of_pytorch():
    samples = {"nesterov": False, "centered": True, "amsgrad": True, "betas": (0.5, 0.75),
               "etas": (0.25, 1.5), "step_sizes": (0.25, 2.0)}  # fmt: skip
    for name, row in FACTS.items():
        given = {key: samples.get(key, (i + 1) / 16) for i, key in enumerate(row.positional)}
        group = OPTIMIZERS[name](values(), *given.values()).param_groups[0]
        assert {key: group[key] for key in given} == given


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_defaults_are_those_of_the_library(cls, convention):
    offer = fact(cls).offers[convention]
    want = {key: value for key, value in {**offer.options, **offer.also}.items() if value is not None}
    got = build(cls, values(), convention).param_groups[0]
    assert {key: got[key] for key in want} == want
    assert got["decoupled_weight_decay"] is next(iter(offer.decay), False)


def test_what_a_library_has_no_default_for_must_be_given():
    for cls, convention in ALL:
        for key in needed(cls, convention):
            with pytest.raises(HyperparameterError, match=rf"no default for {key}"):
                build(cls, values(), convention, **{key: None})


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_the_library_has_a_default_for_all_but_these(cls, convention):
    options = fact(cls).offers[convention].options
    assert needed(cls, convention).keys() == {key for key, value in options.items() if value is None}
    assert convention != "optax" or "lr" in options and options["lr"] is None  # optax has no default for any


# --- Hyperparameters: what is accepted

NOT_NUMBERS = ["0.1", "fast", True, False, 1j, [0.1], (), {}, object(), math.nan, math.inf, -math.inf,
               np.array([0.1, 0.2]), np.nan, b"1"]  # fmt: skip
OUT_OF_RANGE: dict[str, list[Any]] = {
    "lr": [-1e-3, -1], "weight_decay": [-1e-3], "eps": [-1e-8], "eps_root": [-1e-8], "lr_decay": [-0.1],
    "momentum_decay": [-0.004], "initial_accumulator_value": [-0.1], "dampening": [],
    "momentum": [-0.1, 1.0000001, 2], "alpha": [-0.1, 1.0000001], "rho": [-0.1, 1.0000001],
    "betas": [(-0.1, 0.9), (0.9, -0.1), (1.0, 0.9), (0.9, 1.0), (0.9, 1), (1.5, 0.9), (0.9,),
              (0.9, 0.99, 0.999), 0.9, "ab", (0.9, "0.99"), (True, 0.9), (0.9, math.nan), (0.9, None), None,
              (None, 0.9), {0.9: 1, 0.8: 2}],
    "lambd": [-1e-4], "t0": [-1.0],
    "etas": [(0.0, 1.2), (1.0, 1.2), (1.5, 1.2), (0.5, 1.0), (0.5, 0.5), (0.5,), 0.5, (0.5, math.inf), (0.5, None),
             None, ("0.5", 1.2)],
    "step_sizes": [(0.0, 1.0), (-1e-6, 1.0), (1e-6, 0.0), (1e-6, math.nan), (1e-6,), 1.0, "ab", (None, 1.0), None],
    "eps_placement": ["under", "", 1, True, "Outside"],
    "nesterov": ["yes", 2, 0.5], "centered": ["yes", 2], "amsgrad": ["yes", -1],
    "bias_correction": ["yes", 3],
    "maximize": ["yes", 2], "decoupled_weight_decay": ["yes", 2], "flush_subnormal": ["yes", 2, 1.0],
}  # fmt: skip
PAIRS = {"betas": 0, "etas": 2, "step_sizes": 1}  # option -> a whole number that its second number may be
SCHEDULABLE = ("lr", "momentum", "betas", "weight_decay")
COMMON_FLAGS = ("maximize", "decoupled_weight_decay", "flush_subnormal")
FLAGS = {"nesterov", "centered", "amsgrad", "bias_correction", *COMMON_FLAGS}
HYPERPARAMETERS = [(cls, key) for cls in OPTIMIZERS.values() for key in (*cls.hyperparameters, *COMMON_FLAGS)]
NUMBERS = [(cls, key) for cls, key in HYPERPARAMETERS if key not in (*FLAGS, "eps_placement")]


def bad_values(key: str) -> list[Any]:
    out = list(OUT_OF_RANGE[key])
    if key not in FLAGS and key not in (*PAIRS, "eps_placement"):
        out += NOT_NUMBERS
    return out


def by_name(rows: list[tuple[type[Optimizer], str]]) -> Any:
    return pytest.mark.parametrize(("cls", "key"), rows, ids=lambda x: getattr(x, "__name__", x))


def offering(cls: type[Optimizer], key: str) -> str:
    """A convention that has this hyperparameter."""
    return next(
        (name for name, c in cls.conventions.items() if key in c.defaults), next(iter(cls.conventions))
    )


@by_name(HYPERPARAMETERS)
def test_bad_hyperparameter_is_refused_wherever_it_comes_from(cls, key):
    convention = offering(cls, key)
    w, g = values(), values(seed=1)
    opt = build(cls, w, convention)
    opt.step(g)
    good = opt.param_groups[0][key]
    for bad in bad_values(key):
        if bad is not None:
            with pytest.raises(HyperparameterError, match=key):
                build(cls, values(), convention, **{key: bad})
            with pytest.raises(HyperparameterError, match=key):
                build(cls, [{"params": values(), key: bad}], convention)
            with unchanged(opt, HyperparameterError, key):
                opt.add_param_group({"params": values(), key: bad})
        opt.param_groups[0][key] = bad
        with unchanged(opt, HyperparameterError, key):
            opt.step(g)
        opt.param_groups[0][key] = good
        if key in SCHEDULABLE:
            with pytest.raises(HyperparameterError, match=key):
                build(cls, values(), convention, **{key: lambda t, bad=bad: bad})
    opt.step(g)
    assert opt.steps == 2


@by_name(NUMBERS)
def test_numbers_may_be_of_any_kind(cls, key):
    convention = offering(cls, key)
    kinds = [int, float, np.float32, np.float64, np.int64, np.array]
    numbers = [(0.5, kind(PAIRS[key])) if key in PAIRS else kind(0) for kind in kinds]
    paths = []
    for number in numbers:
        opt = build(cls, values(), convention, **{key: number})
        opt.step(values(seed=1))
        paths.append(opt.params[0])
    assert all(same_bits(path, paths[0]) for path in paths)


@by_name([(cls, key) for cls, key in NUMBERS if key not in ("momentum", "alpha", "rho")])
def test_values_that_only_float32_rounds_out_of_range(cls, key):
    too_large = {key: (0.9, 0.99999999999 if key == "betas" else 1e39) if key in PAIRS else 1e39}
    convention = offering(cls, key)
    build(cls, values(dtype=np.float64), convention, **too_large)
    with pytest.raises(HyperparameterError, match=f"{key}.*float32"):
        build(cls, values(), convention, **too_large)
    with pytest.raises(HyperparameterError, match=f"{key}.*float32"):
        build(cls, [values(dtype=np.float64), values()], convention, **too_large)
    groups = [{"params": values(dtype=np.float64), **too_large}, {"params": values()}]
    build(cls, groups, convention)  # each group by its own arrays
    for index in (0, 1):
        opt = build(cls, groups, convention)
        opt.param_groups[1].update(too_large)
        with unchanged(opt, HyperparameterError, f"{key}.*float32"):
            opt.step([values(dtype=np.float64), values()] if index else [None, None])


def test_scalars_that_overflow_are_refused_before_the_step():
    opt = Adam([values((3,)), values((3,), np.float64)], lr=1e38)  # lr / (1 - beta1) is beyond float32
    with unchanged(opt, HyperparameterError, "not finite.*lr=1e"):
        opt.step([values((3,)), values((3,), np.float64)])
    opt.param_groups[0]["lr"] = 1.0
    opt.step([None, values((3,), np.float64)])
    assert opt.steps == 1


def test_nesterov_of_pytorch_needs_momentum_and_no_dampening():
    with pytest.raises(HyperparameterError, match="nesterov"):
        SGD(values(), nesterov=True)
    with pytest.raises(HyperparameterError, match="nesterov"):
        SGD(values(), momentum=0.9, dampening=0.5, nesterov=True)
    SGD(values(), convention="sklearn", momentum=0.0)  # nesterov=True is its default


@pytest.mark.parametrize("cls", [Adam, AdamW, fastopt.NAdam, fastopt.RAdam])
@pytest.mark.parametrize("placement", ["inside", "outside_uncorrected", "inside_uncorrected"])
def test_eps_root_is_not_silently_ignored(cls, placement):
    with pytest.raises(HyperparameterError, match="eps_root"):
        cls(values(), 0.1, eps_root=0.1, eps_placement=placement, convention="optax")


@pytest.mark.parametrize("n_threads", [0, -1, 1.0, 2.5, "2", True, False, math.nan, [1]])
def test_number_of_threads_is_an_int_or_none(n_threads):
    with pytest.raises(HyperparameterError, match="n_threads"):
        SGD(values(), n_threads=n_threads)


def test_settings_are_checked():
    with pytest.raises(HyperparameterError, match="nonfinite='ignore'.*'propagate', 'raise' or 'skip'"):
        SGD(values(), nonfinite="ignore")
    with pytest.raises(HyperparameterError, match="state_factory"):
        SGD(values(), state_factory=3)
    for n in (None, 1, 3, np.int64(2), 64):
        SGD(values(), n_threads=n).step(values())


# --- Conventions

# What fastopt adds under every convention, but where a library has an option of that name (RMSprop's bias correction).
OURS = {"eps_placement", "bias_correction"}
OTHER_THAN_USUAL: dict[str, Any] = {
    "lr": 0.3, "betas": (0.5, 0.75), "eps": 0.01, "weight_decay": 0.125, "momentum": 0.5, "dampening": 0.25,
    "nesterov": True, "centered": True, "amsgrad": True, "lr_decay": 0.1, "momentum_decay": 0.01,
    "eps_root": 0.1, "initial_accumulator_value": 0.3, "alpha": 0.7, "rho": 0.7, "eps_placement": "inside",
    "bias_correction": False, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.02), "lambd": 0.01,
    "t0": 7.0,
}  # fmt: skip


@pytest.mark.parametrize("cls", OPTIMIZERS.values())
@pytest.mark.parametrize("convention", [*CONVENTIONS, "pytorch", "", 3, ["torch"]])
def test_convention_that_does_not_exist_lists_those_that_do(cls, convention):
    existing = fact(cls).offers
    if isinstance(convention, str) and convention in existing:
        assert build(cls, values(), convention).convention == convention
        return
    with pytest.raises(ConventionError) as caught:
        cls(values(), lr=0.1, convention=convention)
    assert all(name in str(caught.value) for name in existing)
    assert not any(name in str(caught.value).split("has:")[1] for name in set(CONVENTIONS) - set(existing))


def test_a_convention_that_is_nearly_one_is_recognised():
    for given in ("Keras", "kears", "TORCH"):
        text = f"no convention={given!r}; did you mean '(keras|torch)'\\? It has: torch"
        with pytest.raises(ConventionError, match=text):
            fastopt.Adam(values(), convention=given)


def test_default_convention():
    for name, row in FACTS.items():
        assert OPTIMIZERS[name](values()).convention == row.default == ("torch" if "torch" in row.offers else "paper")


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_options_exist_where_the_library_has_them(cls, convention):
    row = fact(cls)
    theirs = {key for offer in row.offers.values() for key in offer.options}
    offered = {*row.offers[convention].options, *(OURS - theirs)}
    for key in cls.hyperparameters:
        value = OTHER_THAN_USUAL[key]
        if key == "bias_correction" and key in theirs:  # where it is off by default
            value = True
        if key in offered:
            extra = {"momentum": 0.5} if key == "nesterov" else {}
            if key == "eps_placement" and row.offers[convention].options.get("eps_root"):
                extra = {"eps_root": 0.0}  # which goes with one placement only
            opt = build(cls, values(), convention, **{key: value}, **extra)
            assert opt.param_groups[0][key] == value
            opt.step(values())
            continue
        with pytest.raises(ConventionError, match=key) as caught:
            build(cls, values(), convention, **{key: value})
        having = [name for name, offer in row.offers.items() if key in offer.options]
        assert all(name in str(caught.value) for name in having)
        if key in ("lr", "momentum", "weight_decay"):
            with pytest.raises(ConventionError, match=key):
                build(cls, values(), convention, **{key: lambda t, value=value: value})
        opt = build(cls, values(), convention)
        opt.param_groups[0][key] = value
        with unchanged(opt, ConventionError, key):
            opt.step(values())


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_is_coupled_or_decoupled_as_the_library_has_it(cls, convention, decoupled):
    having = fact(cls).offers[convention].decay
    if not having or decoupled in having:
        options = {"weight_decay": 0.1} if having else {}
        build(cls, values(), convention, decoupled_weight_decay=decoupled, **options).step(values())
    else:
        with pytest.raises(ConventionError, match="decoupled_weight_decay"):
            build(cls, values(), convention, decoupled_weight_decay=decoupled, weight_decay=0.1)


# --- Schedules


class Recorded:
    """A schedule that remembers what it was called with."""

    def __init__(self, *values: Any) -> None:
        self.values, self.calls = values, []

    def __call__(self, step: int) -> Any:
        self.calls.append(step)
        return self.values[step % len(self.values)]


def test_schedules_are_called_with_the_steps_already_taken():
    lr, beta, decay = Recorded(0.1, 0.2, 0.3), Recorded(0.8, 0.9), Recorded(0.01, 0.02)
    opt = AdamW([values(), values(seed=1)], lr=lr, betas=(beta, 0.99), weight_decay=decay)
    for step in range(5):
        for schedule in (lr, beta, decay):
            schedule.calls.clear()
        opt.step(
            [values(), values()] if step % 2 else [None, values()]
        )  # a skipped parameter does not hold it back
        for schedule in (lr, beta, decay):
            assert schedule.calls == [step] and type(schedule.calls[0]) is int
    assert [state["step"] for state in opt.state] == [2, 5]


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_scheduled_path_is_the_path_of_edited_groups(cls, convention):
    steps = {"lr": (0.5, 0.25, 0.125), "momentum": (0.5, 0.75, 0.9), "weight_decay": (0.1, 0.0, 0.3),
             "betas": ((0.5, 0.75), (0.6, 0.8), (0.9, 0.99))}  # fmt: skip
    keys = [key for key in fact(cls).offers[convention].options if key in steps]
    for key in keys:
        start = {} if key == "momentum" else {"momentum": 0.5} if "momentum" in keys else {}
        variants = [Recorded(*steps[key])]
        if key == "betas":
            variants.append((Recorded(*(b for b, _ in steps[key])), Recorded(*(b for _, b in steps[key]))))
            variants.append([Recorded(*(b for b, _ in steps[key])), Recorded(*(b for _, b in steps[key]))])
        edited = build(cls, three(), convention, **{key: steps[key][0], **start})
        scheduled = [build(cls, three(), convention, **{key: variant, **start}) for variant in variants]
        for i in range(6):
            edited.param_groups[0][key] = steps[key][i % 3]
            for opt in (edited, *scheduled):
                opt.step(three(seed=i + 10))
        for opt in scheduled:
            assert same_bits(opt.params, edited.params), key
            assert frozen(opt.state) == frozen(edited.state), key


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, "fast", None, 1j])
def test_schedule_that_goes_wrong_changes_nothing(bad):
    for key in ("lr", "momentum", "weight_decay"):
        fine = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}
        opt = SGD(three(), **{**fine, key: Recorded(fine[key], fine[key], bad, fine[key])})
        for seed in (0, 1):
            opt.step(three(seed))
        for _ in range(2):
            with unchanged(opt, HyperparameterError, key):
                opt.step(three())
    opt = Adam(three(), betas=(0.9, Recorded(0.99, bad)))
    opt.step(three())
    with unchanged(opt, HyperparameterError, r"betas\[1\]"):
        opt.step(three())


def test_exception_of_a_schedule_comes_through_and_changes_nothing():
    def schedule(step: int) -> float:
        return 0.1 / (2 - step)

    opt = Adam(three(), lr=schedule)
    opt.step(three())
    opt.step(three())
    before = frozen(opt.state_dict()), frozen(opt.params)
    with pytest.raises(ZeroDivisionError):
        opt.step(three())
    assert (frozen(opt.state_dict()), frozen(opt.params)) == before
    opt.param_groups[0]["lr"] = 0.1
    opt.step(three())
    assert opt.steps == 3


# --- Editing groups between steps


def test_edited_hyperparameters_count_from_the_next_step_on():
    for edit in (0.25, np.float32(0.25), np.float64(0.25), np.array(0.25), lambda step: 0.25):
        edited, plain = Adam(values(), lr=0.5), Adam(values(), lr=0.5)
        edited.step(values(seed=1))
        plain.step(values(seed=1))
        new = Adam(values(), lr=0.25)
        new.load_state_dict({**plain.state_dict(), "param_groups": new.state_dict()["param_groups"]})
        new.params[0][...] = plain.params[0]
        edited.param_groups[0]["lr"] = edit
        edited.step(values(seed=2))
        new.step(values(seed=2))
        assert same_bits(edited.params, new.params)


def test_group_dict_may_be_replaced():
    opt, plain = Adam(values(), lr=0.5), Adam(values(), lr=0.5)
    opt.step(values(seed=1))
    plain.step(values(seed=1))
    opt.param_groups[0] = {**opt.param_groups[0], "lr": 0.25, "betas": (0.5, 0.75), "amsgrad": True}
    plain.param_groups[0].update(lr=0.25, betas=(0.5, 0.75), amsgrad=True)
    for seed in (2, 3):
        opt.step(values(seed=seed))
        plain.step(values(seed=seed))
    assert same_bits(opt.params, plain.params)
    assert frozen(opt.state) == frozen(plain.state)


@pytest.mark.parametrize("which", ["lr", "betas", "element of betas"])
def test_values_that_change_in_place_are_read_at_every_step(which):
    beta, value = np.array(0.5), {"lr": np.array(0.5), "betas": [0.5, 0.75], "element of betas": 0}[which]
    key = which.split()[-1]
    opt = Adam(values(), **{key: (beta, 0.75) if which == "element of betas" else value})
    plain = Adam(values(), **{key: 0.5 if key == "lr" else (0.5, 0.75)})
    for seed, now in enumerate([0.5, 0.25, 0.125]):
        if which == "betas":
            value[0] = now
        else:
            (value if which == "lr" else beta)[...] = now
        plain.param_groups[0][key] = now if key == "lr" else (now, 0.75)
        opt.step(values(seed=seed))
        plain.step(values(seed=seed))
    assert same_bits(opt.params, plain.params)


def test_momentum_switched_on_starts_a_new_buffer():
    for convention, options in [("torch", {"dampening": 0.5}), ("keras", {}), ("optax", {}), ("sklearn", {})]:
        w = values()
        opt = SGD(w, 0.1, momentum=0.0, convention=convention, **options)
        opt.step(values(seed=1))
        buffer = "velocity" if convention in ("keras", "sklearn") else "momentum_buffer"
        assert buffer not in opt.state[0]
        new = SGD(w.copy(), 0.1, momentum=0.9, convention=convention, **options)
        opt.param_groups[0]["momentum"] = 0.9
        for seed in (2, 3, 4):
            opt.step(values(seed=seed))
            new.step(values(seed=seed))
        assert same_bits(opt.params, new.params)
        assert same_bits(opt.state[0][buffer], new.state[0][buffer])


@pytest.mark.parametrize(
    ("cls", "convention", "start", "edit", "slot"),
    [
        (Adam, "torch", {}, {"amsgrad": True}, "max_exp_avg_sq"),
        (AdamW, "keras", {}, {"amsgrad": True}, "max_exp_avg_sq"),
        (RMSprop, "torch", {}, {"momentum": 0.5}, "momentum_buffer"),
        (RMSprop, "torch", {"momentum": 0.5}, {"centered": True}, "grad_avg"),
        (RMSprop, "optax", {"momentum": 0.5}, {"nesterov": True}, None),
        (SGD, "torch", {"momentum": 0.5}, {"nesterov": True}, None),
        (Adam, "torch", {}, {"eps_placement": "inside"}, None),
        (Adam, "torch", {}, {"maximize": True}, None),
        (Adam, "torch", {"weight_decay": 0.5}, {"decoupled_weight_decay": True}, None),
    ],
)
def test_option_switched_on_between_steps(cls, convention, start, edit, slot):
    """The next step is that of an optimizer which always had it: the same state, zeros where it is new."""
    opt = build(cls, three(), convention, **start)
    opt.step(three(5))
    old = [{k: v.copy("K") for k, v in s.items() if isinstance(v, np.ndarray)} for s in opt.state]
    w = [p.copy("K") for p in opt.params]
    opt.param_groups[0].update(edit)
    other = build(cls, w, convention, **start, **edit)
    zero = [np.zeros_like(p) for p in w]
    other.step(zero)  # one step, to have state to write to
    for p, before, mine, theirs in zip(w, opt.params, other.state, old, strict=True):
        p[...] = before
        for name in mine.keys() - {"step"}:
            mine[name][...] = theirs.get(name, 0)
    for seed in (6, 7):
        opt.step(three(seed))
        other.step(three(seed))
    assert same_bits(opt.params, other.params)
    assert frozen(opt.state) == frozen(other.state)
    assert slot is None or all(slot in state for state in opt.state)
    before = frozen(opt.params)
    opt.param_groups[0].update({key: opt.defaults[key] for key in edit})
    opt.step(three(8))  # and off again
    assert frozen(opt.params) != before


def test_failed_step_after_an_edit_changes_nothing():
    a, b = values(), values(seed=1)
    opt = Adam([{"params": a}, {"params": b}])
    opt.step([values(), values()])
    opt.param_groups[0]["amsgrad"] = True
    opt.param_groups[1]["lr"] = -1.0
    with unchanged(opt, HyperparameterError, "lr"):
        opt.step([values(), values()])


@pytest.mark.parametrize("edit", [lambda groups: groups.append({}), lambda groups: groups.clear(), list.pop])
def test_length_of_param_groups_may_not_change(edit):
    opt = Adam([{"params": values()}, {"params": values(seed=1)}])
    groups = list(opt.param_groups)
    edit(opt.param_groups)
    before = frozen(opt.params), frozen(opt.state)
    with pytest.raises(HyperparameterError, match="add_param_group"):
        opt.step([values(), values()])
    assert (frozen(opt.params), frozen(opt.state)) == before
    opt.param_groups[:] = groups
    opt.step([values(), values()])


@pytest.mark.parametrize(
    "edit", [lambda g, key=key: g.pop(key) for key in ("lr", "amsgrad", "eps_placement", "flush_subnormal")]
)
@pytest.mark.parametrize("replace", [False, True])
def test_group_that_lost_a_hyperparameter(edit, replace):
    opt = Adam([{"params": values()}, {"params": values(seed=1)}])
    group = dict(opt.param_groups[1]) if replace else opt.param_groups[1]
    edit(group)
    opt.param_groups[1] = group
    before = frozen(opt.params), frozen(opt.state)
    with pytest.raises(HyperparameterError):
        opt.step([values(), values()])
    opt.param_groups[1] = 3
    with pytest.raises(HyperparameterError):
        opt.step([values(), values()])
    assert (frozen(opt.params), frozen(opt.state), opt.steps) == (*before, 0)


# --- State that has faded


FADED = 2.0**-100  # a moment in float32 that a flush takes


def with_faded_moments(opt: Adam) -> Adam:
    for state in opt.state:
        state["exp_avg"][...] = FADED
    return opt


def flushed(opt: Adam) -> list[bool]:
    return [not state["exp_avg"].any() for state in opt.state]


def after(steps: int, opt: Adam) -> Adam:
    """The optimizer after that many steps in which nothing moved."""
    zeros = [np.zeros_like(p) for p in opt.params]
    for _ in range(steps - opt.steps):
        opt.step(zeros)
    return opt


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_faded_state_is_flushed_unless_one_says_not(cls, convention):
    assert build(cls, values(), convention).param_groups[0]["flush_subnormal"] is True
    assert build(cls, values(), convention, flush_subnormal=None).param_groups[0]["flush_subnormal"] is True
    assert build(cls, values(), convention, flush_subnormal=False).param_groups[0]["flush_subnormal"] is False


def test_parameters_that_were_skipped_flush_at_their_own_64th_step():
    opt = Adam([values() for _ in range(3)])
    seen = []
    for k in range(64 * 4):
        grads = [np.zeros_like(p) if k % (i + 1) == 0 else None for i, p in enumerate(opt.params)]
        with_faded_moments(opt).step(grads)
        seen += [(i, state["step"], k) for i, state in enumerate(opt.state) if flushed(opt)[i]]
    assert sorted(seen) == [(0, 64, 63), (0, 128, 127), (0, 192, 191), (0, 256, 255), (1, 64, 126), (1, 128, 254),
                            (2, 64, 189)]  # fmt: skip


def test_each_group_flushes_as_it_says():
    groups = [{"params": values(seed=i), "flush_subnormal": flag} for i, flag in enumerate((True, False, None, False))]
    opt = after(63, Adam([*groups, {"params": []}], flush_subnormal=True))
    after(64, with_faded_moments(opt))
    assert flushed(opt) == [True, False, True, False]
    opt = after(63, Adam([*groups, {"params": []}], flush_subnormal=False))
    after(64, with_faded_moments(opt))
    assert flushed(opt) == [True, False, False, False]


def test_flushing_is_switched_between_steps():
    opt = Adam([values(), values(seed=1)])
    for k, (flag, replace) in enumerate([(False, False), (np.True_, False), (False, True), (True, True)], start=1):
        after(64 * k - 1, opt)
        if replace:
            opt.param_groups[0] = {**opt.param_groups[0], "flush_subnormal": flag}
        else:
            opt.param_groups[0]["flush_subnormal"] = flag
        after(64 * k, with_faded_moments(opt))
        assert flushed(opt) == [bool(flag)] * 2
    opt.param_groups[0]["amsgrad"] = True  # another rule flushes, too
    after(64 * 5 - 1, opt)
    after(64 * 5, with_faded_moments(opt))
    assert flushed(opt) == [True, True]


def with_eps() -> list[Any]:
    """Every class in every convention with its default eps; smaller ones, and options that bring other state."""
    rows = [(cls, name, {}) for cls, name in ALL]
    rows += [(SGD, "torch", {"momentum": 0.9}), (RMSprop, "torch", {"centered": True, "momentum": 0.9}),
             (Adam, "torch", {"amsgrad": True}), (Adam, "torch", {"eps": 0.0}), (Adam, "torch", {"eps": 2.0**-32}),
             (Adam, "torch", {"eps": 2.0**-31}),
             (Adam, "optax", {"lr": 1e-3, "eps": 0.0, "eps_root": 1e-8})]  # fmt: skip
    return [pytest.param(*row, id="-".join([row[0].__name__, row[1], *row[2]])) for row in rows]


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-21), (np.float64, 1e-290)], ids=["float32", "float64"])
@pytest.mark.parametrize(("cls", "convention", "options"), with_eps())
def test_a_flush_does_not_show_in_the_parameters(cls, convention, options, dtype, bound):
    """Gradients of all sizes that fade, stop and come back: parameters near 1 keep their bits, others come this close.

    With an eps below 2**-31 it would show: averages of squares would start anew. Nothing is flushed there.
    """
    rng = np.random.default_rng(0)
    n = 500
    scale = 10.0 ** rng.uniform(np.log10(np.finfo(dtype).tiny), 0, n)
    start = np.stack([1 + rng.random(n), np.zeros(n)]).astype(dtype)
    keeping, flushing = (build(cls, start.copy(), convention, flush_subnormal=k, **options) for k in (False, True))
    n_flushed = 0
    for t in range(320):
        strength = 0.9**t if t < 100 else 0.0 if t < 240 else 1.0
        g = (rng.standard_normal(start.shape) * scale * strength).astype(dtype)
        for opt in (keeping, flushing):
            opt.step(g)
        for kept, state in zip(slot_arrays(keeping), slot_arrays(flushing), strict=True):
            n_flushed += int(((kept != 0) & (state == 0)).sum())
    group = keeping.param_groups[0]
    eps = max(group.get("eps", 1), group.get("eps_root", 0))
    felt = eps < 2.0**-31
    flushed = {name_under(cls, convention, slot) for slot in cls.slots if slot.low}
    assert (n_flushed > 1000) == (not felt and bool(keeping.state[0].keys() & flushed))
    assert n_flushed == 0 or not felt
    (near_1, near_0), (same, close) = keeping.params[0], flushing.params[0]
    if 0 < eps < 1e-8:  # smaller than any default: the bound grows, and a last place may round otherwise
        bound = bound * 1e-8 / eps + 2 * np.finfo(dtype).eps * np.abs(near_0)
    assert (near_1 == same).all() and (np.abs(near_0 - close) <= bound).all()


def slot_arrays(opt: Optimizer) -> list[np.ndarray]:
    return [value for value in opt.state[0].values() if isinstance(value, np.ndarray)]


# --- nonfinite


@pytest.fixture
def forced_threads(nasties):
    with nasties.parallel_from(0):
        yield


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [1, 17, 1000])
def test_nonfinite_gradient_is_found_before_the_first_write(forced_threads, n_threads, dtype, bad, size):
    params = {
        "a": values((40,)),
        "empty": values((0,)),
        "b": values((size,), dtype),
        "c": values((3,), np.float64),
    }
    grads = {name: values(p.shape, p.dtype, 1) for name, p in params.items()}
    spoiled = {name: g.copy() for name, g in grads.items()}
    spoiled["b"][-1] = spoiled["c"][0] = bad
    raising = Adam({k: v.copy() for k, v in params.items()}, nonfinite="raise", n_threads=n_threads)
    skipping = Adam({k: v.copy() for k, v in params.items()}, nonfinite="skip", n_threads=n_threads)
    plain = Adam({k: v.copy() for k, v in params.items()}, n_threads=n_threads)
    for opt in (raising, skipping, plain):
        opt.step(grads)
    with unchanged(raising, NonFiniteError, "^gradient of parameter 'b'"):
        raising.step(spoiled)
    before = frozen([skipping.params, skipping.state, skipping.steps])
    skipping.step(spoiled)
    skipping.step({**spoiled, "b": None})
    assert frozen([skipping.params, skipping.state, skipping.steps]) == before
    assert skipping.skipped_steps == 2 and raising.skipped_steps == 0
    for opt in (raising, skipping, plain):
        opt.step(grads)
    assert same_bits(raising.params, plain.params) and same_bits(skipping.params, plain.params)
    plain.step(spoiled)
    assert np.isfinite(plain.params[0]).all() and not np.isfinite(plain.params[2][-1])


def test_skipped_step_does_not_move_the_schedule():
    lr = Recorded(0.1, 0.2, 0.3)
    opt = SGD(values((3,)), lr=lr, nonfinite="skip")
    for g in (1, math.nan, math.inf, 1):
        opt.step(np.full(3, g, np.float32))
    assert lr.calls[-4:] == [0, 1, 1, 1] and opt.steps == 2 and opt.skipped_steps == 2


def test_largest_finite_numbers_are_finite():
    for dtype in (np.float32, np.float64):
        opt = fastopt.Lion(values((33,), dtype), nonfinite="raise")
        opt.step(np.full(33, np.finfo(dtype).max))
        opt.step(np.full(33, np.finfo(dtype).smallest_subnormal))
    opt = SGD(values((2,)), nonfinite="raise", copy_grads=True)
    with np.errstate(over="ignore"), unchanged(opt, NonFiniteError, "parameter 0"):
        opt.step(np.array([1.0, 1e300]))  # finite before it was copied to float32


# --- maximize


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_maximize_negates_the_gradient_and_nothing_else(cls, convention, decay):
    having = fact(cls).offers[convention].decay
    for decoupled in having or (False,):
        options = {"weight_decay": decay, "decoupled_weight_decay": decoupled} if having else {}
        up = build(cls, three(), convention, maximize=True, **options)
        down = build(cls, three(), convention, **options)
        for seed in (1, 2, 3):
            up.step(three(seed))
            down.step([-g for g in three(seed)])
        assert same_bits(up.params, down.params)


# --- NAG


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lookahead_is_exactly_parameter_plus_momentum_times_velocity(dtype):
    schedule = Recorded(0.3, 0.6, 0.9, 0.95)
    opt = NAG([values(dtype=dtype), values((3, 7), dtype, 1).copy("F")], lr=0.1, momentum=schedule)
    for step in range(4):
        mu = dtype(schedule.values[step])
        want = [w + mu * state["velocity"] for w, state in zip(opt.params, opt.state, strict=True)]
        before = frozen([opt.params, opt.state])
        got = opt.lookahead()
        assert same_bits(got, want) and frozen([opt.params, opt.state]) == before
        assert [a.flags.f_contiguous for a in got] == [False, True]
        opt.step([2 * a for a in got])
    assert opt.steps == 4


def test_lookahead_comes_in_the_form_of_the_parameters():
    w = values()
    assert isinstance(NAG(w).lookahead(), np.ndarray)
    assert isinstance(NAG([w]).lookahead(), list)
    opt = NAG({"a": w, "b": values(seed=1)})
    assert list(opt.lookahead()) == ["a", "b"]
    opt.step(opt.lookahead())
    assert not any(np.may_share_memory(y, p) for y in opt.lookahead().values() for p in opt.params)
    assert opt.lookahead()["a"] is opt.lookahead()["a"]  # the optimizer's own memory, as the docstring says
    opt.add_param_group({"params": {"c": values((3,))}, "momentum": 0.5})
    opt.step(opt.lookahead())
    assert same_bits(opt.lookahead()["c"], opt.params[2] + np.float32(0.5) * opt.state[2]["velocity"])


def test_lookahead_checks_what_the_step_would():
    opt = NAG(three())
    opt.step(three())
    for bad in (math.nan, 1.5, "fast", None):
        opt.param_groups[0]["momentum"] = bad
        with unchanged(opt, HyperparameterError, "momentum"):
            opt.lookahead()


# --- Copies


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_continue_the_same_path(cls, convention, duplicate):
    opt = build(cls, [{"params": three()}, {"params": [values((0,)), values(())], "lr": 0.5}], convention)
    grads = [[*three(seed), values((0,)), values((), seed=seed)] for seed in range(6)]
    fresh = duplicate(opt)
    for step in range(3):
        opt.step(grads[step] if step else [None, *grads[step][1:]])
        fresh.step(grads[step] if step else [None, *grads[step][1:]])
    used = duplicate(opt)
    assert frozen(used.state_dict()) == frozen(opt.state_dict())
    for step in range(3, 6):
        for one in (opt, fresh, used):
            one.step(grads[step])
    for other in (fresh, used):
        assert type(other) is cls and other.convention == convention
        assert same_bits(other.params, opt.params) and frozen(other.state) == frozen(opt.state)
        assert other.steps == opt.steps == 6 and repr(other) == repr(opt)
        assert [p.flags.f_contiguous for p in other.params] == [p.flags.f_contiguous for p in opt.params]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_flush_as_the_original_and_at_the_same_step(duplicate):
    groups = [{"params": values()}, {"params": values(seed=1), "flush_subnormal": True}]
    opt = duplicate(after(40, Adam(groups, flush_subnormal=False)))
    assert [group["flush_subnormal"] for group in opt.param_groups] == [False, True]
    after(63, with_faded_moments(opt))
    assert flushed(opt) == [False, False]
    after(64, with_faded_moments(opt))
    assert flushed(opt) == [False, True]
    opt.add_param_group({"params": values(seed=2)})
    assert opt.param_groups[2]["flush_subnormal"] is False


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_names_settings_schedules_and_counts(protocol):
    lr = fastopt.schedules.Exponential(0.5, 0.9)
    opt = NAG({"a": values(), "b": values(seed=1)}, lr=lr, nonfinite="skip", copy_grads=True, n_threads=2)
    opt.step({"a": values(), "b": values().astype(np.float16)})
    opt.step({"a": values() * np.nan, "b": None})
    same = pickle.loads(pickle.dumps(opt, protocol))
    assert same.steps == 1 and same.skipped_steps == 1
    for one in (opt, same):
        one.step({"b": values(), "a": values().astype(np.float64)})
        one.step({"b": values() * np.inf, "a": None})
    assert list(same.lookahead()) == ["a", "b"] and same.skipped_steps == 2
    assert same_bits(same.params, opt.params)
    assert isinstance(pickle.loads(pickle.dumps(NAG(values()))).lookahead(), np.ndarray)


def test_deep_copy_of_parameters_and_optimizer_together_stays_together():
    w, opt = copy.deepcopy((lambda w: (w, Adam(w)))(values()))
    opt.step(values(seed=1))
    plain = Adam(values())
    plain.step(values(seed=1))
    assert same_bits(w, plain.params[0])


def test_copy_is_independent():
    opt = Adam(three())
    opt.step(three())
    other = copy.deepcopy(opt)
    with_opt = frozen([opt.params, opt.state, opt.param_groups])
    other.param_groups[0]["lr"] = 0.5
    other.step(three())
    assert frozen([opt.params, opt.state, opt.param_groups]) == with_opt


# --- Counts


@pytest.mark.parametrize("count", [2**24 - 1, 2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**62 + 1])
def test_counts_are_exact_whole_numbers_however_large(count):
    opt = Adam([values(), values(seed=1)])
    opt.step([values(), values()])
    saved = opt.state_dict()
    saved = copy.deepcopy(saved)
    del saved["fastopt"]
    saved["state"][0]["step"] = count
    opt.load_state_dict(saved)
    opt.step([values(), values()])
    assert [state["step"] for state in opt.state] == [count + 1, 2]
    assert opt.steps == count + 1 and type(opt.state[0]["step"]) is int
    again = copy.deepcopy(opt)
    again.step([values(), None])
    assert again.state[0]["step"] == count + 2 and again.steps == count + 2


# --- Nobody else's data is touched, and nothing is kept


def test_callers_containers_are_left_alone():
    w, g, betas = values(), values(seed=1), [0.5, 0.75]
    groups = [{"params": [w], "betas": betas}]
    before = frozen(groups[0]["betas"])
    opt = Adam(groups, lr=0.5)
    opt.add_param_group(late := {"params": [values(seed=2)]})
    opt.step([g, g])
    assert groups[0].keys() == {"params", "betas"} and late.keys() == {"params"}
    assert frozen(betas) == before and len(groups) == 1 and groups[0]["params"] == [w]
    groups[0]["params"].append(values(seed=3))
    groups[0]["lr"] = -1
    opt.step([g, g])
    grads = [memoryview(g), g[::-1].copy()]
    first = grads[0]
    opt.step(grads)
    assert grads[0] is first and len(grads) == 2


def test_groups_and_optimizers_share_nothing():
    a, b = Adam([{"params": values()}, {"params": values(seed=1)}]), Adam(values())
    a.param_groups[0]["lr"] = 0.5
    assert a.param_groups[1]["lr"] == b.param_groups[0]["lr"] == Adam(values()).param_groups[0]["lr"] == 1e-3
    a.step([values(), values()])
    assert b.steps == 0 and b.state[0]["step"] == 0 and not b.state[0]["exp_avg"].any()


def test_two_optimizers_taking_turns_do_not_disturb_each_other():
    apart, together = [], []
    for cls in (Momentum, Adam):
        opt = build(cls, three())
        for seed in range(4):
            opt.step(three(seed))
        apart.append(opt)
        together.append(build(cls, three()))
    for seed in range(4):
        for opt in together:
            opt.step(three(seed))
    for one, other in zip(apart, together, strict=True):
        assert same_bits(one.params, other.params) and frozen(one.state) == frozen(other.state)


def test_views_that_are_handed_out_do_not_reach_inside():
    opt, plain = Adam(three()), Adam(three())
    opt.step(three(1))
    plain.step(three(1))
    opt.params.clear()
    opt.state.clear()
    opt.state[0]["step"] = 100
    opt.state[0]["exp_avg"] = np.zeros(3)
    opt.state_dict()["state"].clear()
    opt.state_dict()["param_groups"][0]["lr"] = 7
    opt.step(three(2))
    plain.step(three(2))
    assert same_bits(opt.params, plain.params)
    opt.state[0]["exp_avg"][...] = 0  # but the arrays are the live ones
    plain.state[0]["exp_avg"][...] = 0
    opt.step(three(3))
    plain.step(three(3))
    assert same_bits(opt.params, plain.params)


@pytest.mark.parametrize("size", [3, 100_000])
def test_memory_is_freed_at_once(size):
    gc.collect()
    gc.disable()
    try:
        w, g = values((size,)), values((size,), seed=1)
        opt = NAG(w)
        opt.step(g)
        with pytest.raises(fastopt.ShapeError):
            opt.step(g[1:])
        gradient = weakref.ref(g)
        del g
        assert gradient() is None
        kept = [weakref.ref(a) for a in (opt.state[0]["velocity"], opt.lookahead(), w)]
        del opt, w
        assert [ref() for ref in kept] == [None, None, None]
    finally:
        gc.enable()


def test_optimizer_in_a_reference_cycle_is_collected(capfd):
    class Model:
        pass

    model = Model()
    model.self, model.opt = model, Adam(values())
    model.opt.step(values())
    state = weakref.ref(model.opt.state[0]["exp_avg"])
    del model
    gc.collect()
    assert state() is None
    assert capfd.readouterr().err == ""


# --- repr


def test_repr_shows_the_groups():
    opt = Adam([{"params": [values(), values((1000, 3))]}, {"params": values((7,)), "lr": 0.5}], amsgrad=True)
    text = repr(opt)
    assert text.startswith("Adam (") and "torch" in text
    for part in (
        "Group 0",
        "Group 1",
        "lr: 0.001",
        "lr: 0.5",
        "betas: (0.9, 0.999)",
        "amsgrad: True",
        "3,020",
    ):
        assert part in text
    assert len(text) < 1500 and "array(" not in text
    for cls, convention in ALL:
        text = repr(build(cls, values(), convention))
        assert cls.__name__ in text and convention in text
        assert all(f"{key}:" in text for key in cls.hyperparameters)


# --- Scaled losses


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("scale", [65536.0, 3.0, 0.1])
def test_gradients_are_divided_by_grad_scale_as_they_are_read(cls, convention, scale):
    more = {"maximize": True} if scale == 3.0 else {}
    if "weight_decay" in cls.conventions[convention].defaults:
        more["weight_decay"] = 0.1
    params = [values((3000,)), values((700,), np.float64), values((5,))]  # beyond a tile, and below
    opt = build(cls, params, convention, **more)
    twin = fastopt.reference.twin(opt)
    for step in range(3):
        grads = [values(p.shape, p.dtype, 10 + step) for p in params]
        before = frozen(grads)
        opt.step(grads, grad_scale=scale)
        assert frozen(grads) == before
        twin.step(grads, grad_scale=scale)
    for mine, other in zip(opt.params, twin.params, strict=True):
        assert same_bits(mine, other)
    for mine, other in zip(opt.state, twin.state, strict=True):
        assert all(same_bits(mine[name], array) for name, array in other.items())


def test_a_grad_scale_of_a_power_of_two_is_exact():
    plain, scaled = values((40,)), values((40,))
    a, b = Adam(plain), Adam(scaled)
    for step in range(5):
        g = values((40,), seed=step)
        a.step(g)
        b.step(g * np.float32(2.0**16), grad_scale=2.0**16)
    assert same_bits(plain, scaled)


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "2", True, 1e-60, 1e60, [2.0], np.ones(2)])
def test_a_grad_scale_out_of_range_is_refused(scale):
    opt = Adam(values((4,)))
    with unchanged(opt, HyperparameterError, "grad_scale"):
        opt.step(values((4,), seed=1), grad_scale=scale)


def test_a_hyperparameter_may_be_a_tensor_of_one_element_and_is_read_anew():
    class Tensor:  # as much of one as is asked for
        value = 0.5
        __dlpack__ = None

        def item(self):
            return self.value

        def __float__(self):
            return self.value

    lr = Tensor()
    p, q = values((4,)), values((4,))
    opt, other = SGD(p, lr=lr), SGD(q, lr=0.5)
    for value in (0.5, 0.25):
        lr.value = other.param_groups[0]["lr"] = value
        opt.step(values((4,), seed=1))
        other.step(values((4,), seed=1))
    assert same_bits(p, q)
