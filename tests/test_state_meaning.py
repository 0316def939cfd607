"""A saved state means the same where it is loaded: converted, as it is, or refused; and it goes by the names."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from support import ALL, ALL_IDS, build, same_bits, unchanged, values

import fastopt
from fastopt import NAG, SGD, Adam, Adamax, AdamW, ConventionError, Momentum, NAdam, RMSprop, StateDictError

LR, MU = 0.1, 0.9


def stepped(cls: type, convention: str | None = None, steps: int = 5, dtype: Any = np.float64, **options: Any) -> Any:
    """An optimizer over one array that has taken a few steps."""
    opt = build(cls, [values((6,), dtype)], convention, **{"lr": LR, **options})
    for seed in range(steps):
        opt.step([values((6,), dtype, seed + 10)])
    return opt


def stripped(saved: dict[str, Any]) -> dict[str, Any]:
    """A copy without our own key: PyTorch's, as far as anyone can tell."""
    return {key: value for key, value in copy.deepcopy(saved).items() if key != "fastopt"}


def with_momentum(cls: type) -> dict[str, Any]:
    return {"momentum": MU} if cls in (SGD, RMSprop) else {"amsgrad": True} if cls is Adam else {}


def continued(opt: Any, saved: dict[str, Any], start: np.ndarray, seeds: range = range(3)) -> np.ndarray:
    """Where an optimizer gets to from `start` with this state."""
    opt.params[0][...] = start
    opt.load_state_dict(saved)
    for seed in seeds:
        opt.step([values(start.shape, start.dtype, seed)])
    return opt.params[0].copy()


# --- Velocities


def pytorchs_sgd(**group: Any) -> dict[str, Any]:
    """What torch.optim.SGD saves after five gradients of +1."""
    b = 0.0
    for _ in range(5):
        b = MU * b + 1.0
    defaults = {
        "lr": LR, "momentum": MU, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False,
        "foreach": None, "differentiable": False, "fused": None, "params": [0],
    }  # fmt: skip
    return {"state": {0: {"momentum_buffer": np.array([b])}}, "param_groups": [{**defaults, **group}]}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Momentum, {}), (NAG, {}), (SGD, {"momentum": MU}), (SGD, {"momentum": MU, "convention": "keras"}),
        (SGD, {"nesterov": False, "convention": "sklearn"}), (SGD, {"momentum": MU, "convention": "optax"}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else x.get("convention", "default"),
)  # fmt: skip
def test_pytorchs_momentum_goes_on_downhill(cls, options):
    w = np.zeros(1)
    opt = cls([w], lr=LR, **options)
    opt.load_state_dict(pytorchs_sgd())
    opt.step([np.ones(1)])
    assert w[0] == pytest.approx(-0.468559, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("state_dtype", [np.float32, np.float64])
def test_a_conversion_rounds_once(dtype, state_dtype):
    """In the wider of both types, with lr rounded to it, as a step would."""
    b = values((100,), state_dtype)
    wide = np.result_type(dtype, state_dtype).type
    saved = pytorchs_sgd()
    saved["state"][0]["momentum_buffer"] = b
    opt = Momentum([np.zeros(100, dtype)], lr=LR, momentum=MU)
    opt.load_state_dict(saved)
    assert same_bits(opt.state[0]["velocity"], (-wide(LR) * b.astype(wide)).astype(dtype))
    back = SGD([np.zeros(100, dtype)], lr=LR, momentum=MU)
    v = opt.state[0]["velocity"]
    back.load_state_dict(opt.state_dict())
    assert same_bits(back.state[0]["momentum_buffer"], v / -dtype(LR))


@pytest.mark.parametrize(
    ("saved_lr", "lr", "fits"),
    [
        (0.1, 0.1, True), (np.float64(0.1), 0.1, True), (np.array(0.1), 0.1, True), (0.1, 0.2, False),
        (0.0, 0.0, False), (1e-400, 1e-400, False), (fastopt.schedules.Constant(0.1), 0.1, False),
        (0.1, fastopt.schedules.Constant(0.1), False),
    ],
    ids=repr,
)  # fmt: skip
def test_a_conversion_needs_one_fixed_lr_that_is_not_0(saved_lr, lr, fits):
    opt = Momentum([np.zeros(1)], lr=lr)
    saved = pytorchs_sgd(lr=saved_lr)
    if fits:
        opt.load_state_dict(saved)
        return
    meanings = r"'momentum_buffer' \(b of the step p = p - lr \* b\).*'velocity' \(v of the step p = p \+ v\)"
    with unchanged(opt, StateDictError, meanings):
        opt.load_state_dict(saved)


def test_an_lr_that_is_0_in_the_type_of_the_parameter_does_not_convert():
    opt = Momentum([np.zeros(1, np.float32)], lr=1e-46)
    with unchanged(opt, StateDictError, "velocity"):
        opt.load_state_dict(pytorchs_sgd(lr=1e-46))


def test_a_parameter_without_dimensions_converts():
    saved = pytorchs_sgd()
    saved["state"][0]["momentum_buffer"] = np.array(2.0)
    opt = Momentum([np.array(0.0)], lr=LR)
    opt.load_state_dict(saved)
    assert opt.state[0]["velocity"] == -0.2


def test_what_a_conversion_makes_infinite_is_refused():
    saved = stripped(stepped(Momentum, lr=1e-30, dtype=np.float32).state_dict())
    saved["state"][0]["velocity"] = np.full(6, 1e20, np.float32)
    opt = SGD([np.zeros(6, np.float32)], lr=1e-30, momentum=MU)
    with unchanged(opt, StateDictError, "too large for float32"):
        opt.load_state_dict(saved)
    saved["state"][0]["velocity"] = np.array([math.inf, -math.inf, math.nan, 0, 1e-30, 0], np.float32)
    opt.load_state_dict(saved)  # what was not finite before may stay so
    assert np.isnan(opt.state[0]["momentum_buffer"][2]) and opt.state[0]["momentum_buffer"][0] == -math.inf


def test_a_buffer_that_has_not_begun_asks_for_no_lr():
    saved = pytorchs_sgd(lr=0.5)
    saved["state"][0]["momentum_buffer"] = None
    opt = Momentum([np.zeros(1)], lr=LR)
    opt.load_state_dict(saved)
    assert opt.state[0]["velocity"][0] == 0 and opt.param_groups[0]["lr"] == 0.5


# --- Every pair of conventions

PAIRS = [
    (cls, source, target) for cls, source in ALL for target in cls.conventions if source != target
]  # fmt: skip
REFUSED = {
    # State that one rounding does not convert.
    *((Adam, a, b) for a in ("torch", "keras", "paper") for b in ("optax",)),
    *((Adam, "optax", b) for b in ("torch", "keras", "paper")),
    *((Adamax, a, b) for a in ("torch", "optax") for b in ("keras", "paper")),
    *((Adamax, a, b) for a in ("keras", "paper") for b in ("torch", "optax")),
    *((NAdam, a, b) for a in NAdam.conventions for b in NAdam.conventions if (a, b) != ("keras", "torch")),
}  # fmt: skip


@pytest.mark.parametrize(("cls", "source", "target"), PAIRS, ids=lambda x: getattr(x, "__name__", x))
def test_every_pair_of_conventions_goes_on_from_the_same_state_or_refuses(cls, source, target):
    """What is loaded takes the path of an optimizer that was given the state by hand, in its own unit."""
    neutral = {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False, "initial_accumulator_value": 0.0}
    neutral |= {"eps_root": 0.0}
    both = [cls.conventions[name].defaults for name in (source, target)]
    neutral |= {"eps": 0.0} if "paper" in (source, target) else {}
    options = {key: value for key, value in neutral.items() if any(key in offered for offered in both)}
    options |= {key: value for key, value in with_momentum(cls).items() if all(key in offered for offered in both)}
    options = {key: value for key, value in options.items() if key in both[0]}
    here = stepped(cls, source, **options)
    there = stepped(cls, target, steps=1, **{key: value for key, value in options.items() if key in both[1]})
    if (cls, source, target) in REFUSED and (cls is not Adam or options.get("amsgrad")):
        saved = here.state_dict()
        if cls is NAdam:  # else its schedule is refused, before its state is looked at
            for group in saved["param_groups"]:
                group["momentum_decay"] = there.param_groups[0]["momentum_decay"]
        if not (cls is NAdam and (source, target) == ("torch", "keras")):
            says = "cannot continue from; its state|lacks 'mu_product' \\(the product|lacks 'exp_"
            with unchanged(there, StateDictError, says):
                there.load_state_dict(saved)
        with unchanged(there, (StateDictError, ConventionError)):
            there.load_state_dict(here.state_dict())
        return
    there.load_state_dict(here.state_dict())
    for name, got in there.state[0].items():
        unit = {name: 1.0, **units(name)}
        old = next((old for old in unit if old in here.state[0]), None)
        want = np.zeros(6) if old is None else unit[old] * np.asarray(here.state[0][old])
        np.testing.assert_allclose(got, want, rtol=1e-6 if name == "mu_product" else 1e-15)


def units(name: str) -> dict[str, float]:
    """The other names of a slot, and its unit in theirs."""
    return {
        "velocity": {"momentum_buffer": -LR}, "scaled_momentum_buffer": {"momentum_buffer": LR},
        "momentum_buffer": {"velocity": -1 / LR, "scaled_momentum_buffer": 1 / LR},
    }.get(name, {})  # fmt: skip


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_takes_the_same_path_in_both_forms(nesterov):
    start = values((6,), np.float64)
    want = None
    for source, target in (("torch", "keras"), ("keras", "torch"), ("keras", "sklearn"), ("optax", "keras")):
        here = stepped(SGD, source, momentum=MU, nesterov=nesterov)
        saved = here.state_dict()
        paths = [
            continued(stepped(SGD, name, steps=0, momentum=MU, nesterov=nesterov), given, start)
            for name, given in ((source, saved), (target, saved), (target, stripped(saved)))
        ]
        np.testing.assert_allclose(paths[1], paths[0], rtol=1e-13)
        np.testing.assert_allclose(paths[2], paths[0], rtol=1e-13)
        want = paths[0] if want is None else want
        np.testing.assert_allclose(paths[0], want, rtol=1e-13)


@pytest.mark.parametrize(("source", "target"), [("torch", "keras"), ("keras", "torch"), ("torch", "optax")])
def test_rmsprops_buffer_takes_the_same_path_in_both_forms(source, target):
    start = values((6,), np.float64)
    options = {"momentum": MU, "alpha": 0.9, "eps": 1e-3, "eps_placement": "inside"}
    here = stepped(RMSprop, source, **options)
    want = continued(stepped(RMSprop, source, steps=0, **options), here.state_dict(), start)
    got = continued(stepped(RMSprop, target, steps=0, **options), here.state_dict(), start)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert not np.allclose(got, continued(stepped(RMSprop, target, steps=0, **options), {
        **here.state_dict(), "state": {}}, start))  # fmt: skip  # the buffer counts


def test_maxima_of_amsgrad_are_told_apart():
    optax, torch = stepped(Adam, "optax", amsgrad=True), stepped(Adam, "torch", amsgrad=True)
    assert "max_exp_avg_sq_hat" in optax.state[0] and "max_exp_avg_sq" in torch.state[0]
    meanings = r"the maximum of exp_avg_sq\).*the maximum of exp_avg_sq / \(1 - beta2\*\*t\)"
    with unchanged(optax, StateDictError, meanings):
        optax.load_state_dict(stripped(torch.state_dict()))
    with unchanged(torch, StateDictError, "max_exp_avg_sq_hat"):
        torch.load_state_dict(stripped(optax.state_dict()))


def test_products_of_nadam_are_told_apart():
    kinds = {name: stepped(NAdam, name) for name in NAdam.conventions}
    names = {name: set(opt.state_dict()["state"][0]) - {"step", "exp_avg", "exp_avg_sq"} for name, opt in kinds.items()}
    assert names == {"torch": {"mu_product"}, "keras": {"mu_product"}, "optax": set(), "paper": {"exp_avg_mu_product"}}
    for source, target in (("torch", "paper"), ("paper", "torch"), ("optax", "torch"), ("paper", "keras")):
        with unchanged(kinds[target], (StateDictError, ConventionError), "product|momentum_decay"):
            kinds[target].load_state_dict(stripped(kinds[source].state_dict()))
    kinds["torch"].load_state_dict(kinds["keras"].state_dict())  # momentum_decay=1 comes along
    assert kinds["torch"].param_groups[0]["momentum_decay"] == 1.0
    with unchanged(kinds["keras"], ConventionError, "momentum_decay"):
        kinds["keras"].load_state_dict(stepped(NAdam, "torch").state_dict())


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_a_dict_that_lost_our_key_still_says_what_it_holds(cls, convention):
    options = {key: value for key, value in with_momentum(cls).items() if key in cls.conventions[convention].defaults}
    here = stepped(cls, convention, **options)
    start = values((6,), np.float64)
    if (cls, convention) == (AdamW, "paper"):  # but for its weight decay, of which the flag says too little
        with unchanged(stepped(cls, convention), StateDictError, "shrinks p by weight_decay alone"):
            stepped(cls, convention).load_state_dict(stripped(here.state_dict()))
        options["weight_decay"] = here.param_groups[0]["weight_decay"] = 0.0
    paths = [
        continued(stepped(cls, convention, steps=0, **options), saved, start)
        for saved in (here.state_dict(), stripped(here.state_dict()))
    ]
    assert same_bits(*paths)


# --- Options that mean something else


def test_kinds_of_weight_decay_are_told_apart():
    decayed = stepped(AdamW, "torch", weight_decay=0.1)
    paper = stepped(AdamW, "paper", weight_decay=0.1)
    with unchanged(paper, StateDictError, "shrinks p by lr \\* weight_decay before.*shrinks p by weight_decay alone"):
        paper.load_state_dict(decayed.state_dict())
    with unchanged(decayed, StateDictError, "shrinks p by weight_decay alone"):
        decayed.load_state_dict(paper.state_dict())
    thinc = stepped(AdamW, "thinc", weight_decay=0.1)
    with unchanged(thinc, StateDictError, "after the update"):
        thinc.load_state_dict(stripped(decayed.state_dict()))
    adam = stepped(Adam, "torch", decoupled_weight_decay=True, weight_decay=0.1)
    start = values((6,), np.float64)
    want = continued(stepped(AdamW, "torch", steps=0), decayed.state_dict(), start)
    assert same_bits(continued(adam, decayed.state_dict(), start), want)
    with unchanged(decayed, ConventionError):
        decayed.load_state_dict(stepped(Adam, "torch", weight_decay=0.1).state_dict())


def test_pytorchs_dict_without_the_flag_has_pytorchs_kind_of_decay():
    saved = pytorchs_sgd(weight_decay=0.25)
    keras = SGD([np.zeros(1)], lr=LR, momentum=MU, convention="keras")
    with unchanged(keras, StateDictError, "adds weight_decay \\* p to the gradient"):
        keras.load_state_dict(saved)
    for cls in (Momentum, NAG):
        opt = cls([np.zeros(1)], lr=LR, decoupled_weight_decay=True)
        opt.load_state_dict(pytorchs_sgd(weight_decay=0.0))
        assert opt.param_groups[0]["decoupled_weight_decay"] is True  # there is nothing to decay
        opt.load_state_dict(pytorchs_sgd(weight_decay=0.5))
        assert opt.param_groups[0]["decoupled_weight_decay"] is False
    thinc = SGD([np.zeros(1)], lr=LR, convention="thinc")
    saved = pytorchs_sgd(weight_decay=0.25, momentum=0)
    del saved["state"][0]
    thinc.load_state_dict(saved)
    assert thinc.param_groups[0]["decoupled_weight_decay"] is False


def test_pytorchs_dict_has_pytorchs_eps_and_bias_correction():
    """Without our key they mean torch's, like every option."""
    saved = stripped(stepped(RMSprop, "torch", eps=1e-2).state_dict())
    del saved["param_groups"][0]["eps_placement"]
    start = values((6,), np.float64)
    want = continued(stepped(RMSprop, "torch", steps=0), saved, start)
    assert same_bits(continued(stepped(RMSprop, "torch", steps=0, eps_placement="inside"), saved, start), want)
    np.testing.assert_allclose(continued(stepped(RMSprop, "keras", steps=0), saved, start), want, rtol=1e-13)
    saved = stripped(stepped(Adam, "torch", eps=1e-2).state_dict())
    del saved["param_groups"][0]["eps_placement"], saved["param_groups"][0]["bias_correction"]
    want = continued(stepped(Adam, "torch", steps=0), saved, start)
    for options in ({"bias_correction": False}, {"convention": "keras"}, {"eps_placement": "inside"}):
        opt = stepped(Adam, options.pop("convention", "torch"), steps=0, **options)
        assert same_bits(continued(opt, saved, start), want)


@pytest.mark.parametrize(
    ("cls", "group", "word"),
    [(Momentum, {"dampening": 0.5}, "dampening"), (Momentum, {"nesterov": True}, "nesterov"),
     (NAG, {"nesterov": True}, "nesterov")],
)  # fmt: skip
def test_options_that_the_optimizer_has_not_are_refused(cls, group, word):
    opt = cls([np.zeros(1)], lr=LR)
    with unchanged(opt, StateDictError, f"{word}=.* has no such option"):
        opt.load_state_dict(pytorchs_sgd(**group))


def test_options_that_the_dict_cannot_have_are_refused():
    saved = stepped(Momentum).state_dict()
    for options, word in (({"dampening": 0.5}, "dampening"), ({"nesterov": True}, "nesterov")):
        opt = stepped(SGD, "torch", momentum=MU, **options)
        for one in (saved, stripped(saved)):
            with unchanged(opt, StateDictError, f"no {word}, and the optimizer has"):
                opt.load_state_dict(one)
    for steps in (0, 1):  # also where no velocity has begun
        saved = stepped(SGD, "keras", steps=steps, momentum=MU).state_dict()
        with unchanged(opt := stepped(SGD, "torch", momentum=MU, dampening=0.5), StateDictError, "no dampening"):
            opt.load_state_dict(saved)
    keras = stepped(SGD, "keras", momentum=MU, nesterov=True)
    with unchanged(keras, StateDictError, "no nesterov"):  # its parameters are y = w + momentum * v, NAG's are w
        keras.load_state_dict(stripped(stepped(NAG).state_dict()))


def test_momentum_nag_and_sgd_read_each_other():
    start = values((6,), np.float64)
    saved = stepped(Momentum).state_dict()
    want = continued(stepped(Momentum, steps=0), saved, start)
    np.testing.assert_allclose(continued(stepped(SGD, "torch", steps=0, momentum=MU), saved, start), want, rtol=1e-13)
    assert same_bits(continued(stepped(SGD, "keras", steps=0, momentum=MU), saved, start), want)
    assert same_bits(continued(stepped(NAG, steps=0), saved, start), want)
    saved = stepped(SGD, "keras", momentum=MU).state_dict()
    want = continued(stepped(SGD, "keras", steps=0, momentum=MU), saved, start)
    assert same_bits(continued(stepped(Momentum, steps=0), saved, start), want)


def test_a_buffer_of_muon_is_an_average():
    opt = SGD([np.zeros(1)], lr=LR, momentum=MU)
    with unchanged(opt, StateDictError, "has ns_steps=5; SGD has no such option"):
        opt.load_state_dict(pytorchs_sgd(ns_steps=5))


@pytest.mark.parametrize("flag", ["yes", 1, [1], None])
def test_a_flag_that_is_none_is_refused_or_not_there(flag):
    opt = Momentum([np.zeros(1)], lr=LR)
    for wd in (0.0, 0.5):
        saved = pytorchs_sgd(weight_decay=wd, decoupled_weight_decay=flag)
        if flag is None:
            opt.load_state_dict(saved)
            continue
        with unchanged(opt, fastopt.HyperparameterError, "decoupled_weight_decay"):
            opt.load_state_dict(saved)


@pytest.mark.parametrize("name", ["exp_avg", "sum", "ax", "row_var", "old_dirs"])
def test_state_of_another_kind_of_optimizer_is_refused(name):
    saved = pytorchs_sgd()
    saved["state"][0] = {name: np.ones(1)}
    opt = SGD([np.zeros(1)], lr=LR, momentum=MU)
    with unchanged(opt, StateDictError, f"has '{name}', which SGD.*cannot continue from; its state: 'momentum_buffer'"):
        opt.load_state_dict(saved)


def test_what_hooks_keep_beside_the_state_is_passed_over():
    saved = pytorchs_sgd()
    saved["state"][0].update(step=5, slow_weights=np.ones(1), note="mine")
    opt = SGD([np.zeros(1)], lr=LR, momentum=MU)
    opt.load_state_dict(saved)
    assert opt.state[0]["momentum_buffer"] == saved["state"][0]["momentum_buffer"]


def test_both_forms_of_a_buffer_are_one_too_many():
    saved = pytorchs_sgd()
    saved["state"][0]["velocity"] = np.ones(1)
    opt = Momentum([np.zeros(1)], lr=LR)
    with unchanged(opt, StateDictError, "only one of them can be right"):
        opt.load_state_dict(saved)


# --- Names


def named(order: str, **options: Any) -> Any:
    """Adam over arrays of one shape, named by letters in an order."""
    return Adam({name: np.zeros(3) for name in order}, **options)


def gradients(order: str) -> dict[str, np.ndarray]:
    return {name: np.full(3, float(ord(name))) for name in order}


def first_moments(opt: Any) -> dict[str, float]:
    return {name: float(entry["exp_avg"][0]) for name, entry in zip(opt._plan.names, opt.state, strict=True)}


@pytest.mark.parametrize("way", ["dict", "file", "pickle"])
def test_state_goes_by_the_names(way, tmp_path):
    opt = named("wb")
    opt.step({**gradients("w"), "b": None})
    opt.step(gradients("wb"))
    other = named("bw")
    saved = opt.state_dict()
    if way == "file":
        opt.save(tmp_path / "x")
        other.load(tmp_path / "x")
    else:
        other.load_state_dict(pickle.loads(pickle.dumps(opt)).state_dict() if way == "pickle" else saved)
    assert first_moments(other) == first_moments(opt)
    assert [entry["step"] for entry in other.state] == [1, 2]  # counts, too
    other.step(gradients("bw"))
    opt.step(gradients("wb"))
    assert first_moments(other) == first_moments(opt)


@pytest.mark.parametrize(
    ("saved", "mine", "match"),
    [
        ("wb", "wc", "missing from the state dict: 'c'; not in the optimizer: 'b'"),
        ("wb", "w", "state dict: none; .*optimizer: 'b'"), ("w", "wb", "state dict: 'b'; .*optimizer: none"),
    ],
)  # fmt: skip
def test_other_names_are_listed(saved, mine, match):
    one = named(saved)
    one.step(gradients(saved))
    opt = named(mine)
    with unchanged(opt, StateDictError, match):
        opt.load_state_dict(one.state_dict())


def test_names_of_pytorchs_dicts_count_as_well():
    saved = stripped((one := named("wb")).state_dict())
    one.step(gradients("wb"))
    saved = stripped(one.state_dict())
    opt = named("bw")
    opt.load_state_dict(saved)
    assert first_moments(opt) == first_moments(one)


def test_without_names_on_one_side_state_goes_by_position():
    one = named("wb")
    one.step(gradients("wb"))
    saved = copy.deepcopy(one.state_dict())
    unnamed = Adam([np.zeros(3), np.zeros(3)])
    unnamed.load_state_dict(saved)
    assert [float(entry["exp_avg"][0]) for entry in unnamed.state] == list(first_moments(one).values())
    del saved["param_groups"][0]["param_names"]
    opt = named("bw")
    opt.load_state_dict(saved)
    assert list(first_moments(opt).values()) == list(first_moments(one).values())


def grouped(*orders: str, **options: Any) -> Any:
    """Adam over groups of named arrays, each group with a learning rate of its own."""
    rates = [0.1 * (1 + ord(order[0]) % 7) if order else 0.5 for order in orders]
    arrays = [{name: np.zeros(3) for name in order} for order in orders]
    return Adam([{"params": p, "lr": lr} for p, lr in zip(arrays, rates, strict=True)], **options)


def test_groups_are_matched_by_their_sets_of_names():
    one = grouped("ab", "c", "")
    one.step(gradients("abc"))
    opt = grouped("", "c", "ba")
    opt.load_state_dict(one.state_dict())
    assert first_moments(opt) == first_moments(one)
    assert [group["lr"] for group in opt.param_groups] == [one.param_groups[k]["lr"] for k in (2, 1, 0)]


@pytest.mark.parametrize("mine", [("a", "bc"), ("abc",), ("a", "b", "c"), ("ac", "b")])
def test_a_name_that_changed_its_group_is_an_error(mine):
    one = grouped("ab", "c")
    one.step(gradients("abc"))
    opt = grouped(*mine)
    with unchanged(opt, StateDictError, "group"):
        opt.load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["w", "w"], "of the same name: 'w'"), (["w"], "1 names for 2 parameters"), ("wb", "str"),
        ([["w"], "b"], "which is no name"), (3, "int"),
    ],
)  # fmt: skip
def test_bad_names_are_refused(names, match):
    one = named("wb")
    one.step(gradients("wb"))
    saved = copy.deepcopy(one.state_dict())
    saved["param_groups"][0]["param_names"] = names
    opt = named("bw")
    with unchanged(opt, StateDictError, match):
        opt.load_state_dict(saved)


def test_names_in_some_groups_only_are_refused():
    one = grouped("ab", "c")
    saved = copy.deepcopy(one.state_dict())
    del saved["param_groups"][1]["param_names"]
    with unchanged(opt := grouped("ab", "c"), StateDictError, "in some groups only"):
        opt.load_state_dict(saved)


def test_numbers_of_parameters_in_a_named_dict_may_be_in_any_order():
    """PyTorch's distributed checkpoints call parameters by their names, not by running numbers."""
    one = named("wb")
    one.step(gradients("wb"))
    saved = copy.deepcopy(one.state_dict())
    saved["param_groups"][0]["params"] = ["x1", "x0"]
    saved["state"] = {"x0": saved["state"][1], "x1": saved["state"][0]}
    opt = named("bw")
    opt.load_state_dict(saved)
    assert first_moments(opt) == first_moments(one)
