"""Constructors, loads and first steps that do not ask again: what they find, refuse and keep is the same."""

from __future__ import annotations

import copy
from types import MappingProxyType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastopt  # noqa: E402
import fastopt.torch as ft  # noqa: E402
from fastopt import errors  # noqa: E402
from fastopt._tensors import Host  # noqa: E402

CLASSES = [getattr(ft, name) for name in ft.__all__]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Each test begins as a process does."""
    for cls in CLASSES:
        monkeypatch.setattr(cls, "_known", {})


def parameter(shape=(3, 4), dtype=torch.float32, seed=0):
    some = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(shape, dtype=dtype, generator=some))
    p.grad = torch.randn(shape, dtype=dtype, generator=some)
    return p


# --- Options


@pytest.mark.parametrize(
    ("cls", "good", "bad"),
    [
        (ft.AdamW, {"weight_decay": 0}, {"weight_decay": False}),
        (ft.AdamW, {"lr": 1.0}, {"lr": True}),
        (ft.AdamW, {"amsgrad": False}, {"amsgrad": ""}),
        (ft.SGD, {"momentum": 0}, {"momentum": False}),
        (ft.SGD, {"lr": 0.1}, {"lr": np.array([0.1, 0.1])}),
        (ft.Rprop, {"etas": (0.5, 2)}, {"etas": (0.5, 2, 2)}),
        (ft.Adagrad, {"flush_subnormal": True}, {"flush_subnormal": 1}),
        (ft.RMSprop, {"fallback": "warn", "differentiable": True}, {"fallback": "error", "differentiable": True}),
    ],
)
def test_options_that_equal_known_ones_are_refused_if_their_kind_is(cls, good, bad):
    p = parameter()

    def refusal():
        with pytest.raises((ValueError, TypeError)) as caught:
            cls([p], **bad)
        return type(caught.value), str(caught.value)

    want = refusal()
    for _ in range(2):
        cls([p], **good)
        assert refusal() == want


def test_what_is_known_of_float64_is_not_known_of_float32():
    narrow, wide = parameter(), parameter(dtype=torch.float64)
    for _ in range(2):
        ft.AdamW([wide], lr=1e39)
        for params in ([narrow], [wide, narrow]):
            with pytest.raises(errors.HyperparameterError, match="inf in float32"):
                ft.AdamW(params, lr=1e39)
    for first, second in ((narrow, wide), (wide, narrow)):
        ft.AdamW._known.clear()
        ft.AdamW([first])
        ft.AdamW([second])
        assert [known.has_float for known in ft.AdamW._known.values()] == [True]


def test_messages_name_the_class_that_is_asked():
    class Mine(ft.AdamW):
        pass

    p = parameter()
    for cls, name in ((ft.AdamW, "AdamW"), (Mine, "Mine"), (ft.AdamW, "AdamW")):
        opt = cls([p])
        assert opt._spec_of(opt.param_groups[0]).owner == f"fastopt.torch.{cls.__name__}"
        opt.step()
        opt.param_groups[0]["lr"] = float("nan")
        with pytest.raises(errors.HyperparameterError, match=rf"fastopt\.torch\._?{name}: lr"):
            opt.step()


@pytest.mark.parametrize("cls", CLASSES)
def test_known_options_are_not_derived_again(monkeypatch, cls):
    cls([parameter()], lr=0.25)
    monkeypatch.setattr(cls, "_derive", lambda *_: pytest.fail("derived"))
    opt = cls([parameter()], lr=0.25)
    if cls not in (ft.NAdam, ft.ASGD):
        opt.step()


def test_few_options_are_remembered():
    p = parameter()
    for k in range(2 * ft.MOST_KNOWN):
        ft.AdamW([p], lr=0.1 + k)
    assert 0 < len(ft.AdamW._known) <= ft.MOST_KNOWN


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_remembered_cannot_be_changed_and_depends_on_options_alone(cls):
    cls([parameter()])
    (known,) = cls._known.values()
    if cls in (ft.NAdam, ft.ASGD):  # which look at the state and the default dtype
        assert known.spec is None
    else:
        assert isinstance(known.spec.slots, tuple) and known.spec.check_keys is None
        assert {type(x) for x in (known.spec.kinds, known.spec.limits, known.spec.forms)} == {MappingProxyType}


def test_a_rule_of_a_users_is_asked_every_time():
    asked = []

    class Core(fastopt.AdamW):
        @staticmethod
        def rule(group, convention):
            asked.append(convention)
            return fastopt.AdamW.rule(group, convention)

    class Mine(ft._Compiled, torch.optim.AdamW):
        core = Core

    for _ in range(2):
        asked.clear()
        Mine([parameter()])
        assert asked


def test_options_that_cannot_be_remembered_are_read_as_ever():
    for lr in (torch.tensor(0.5), np.float32(0.5), np.array(0.5)):
        p, q = parameter(), parameter()
        opt = ft.AdamW([p], lr=lr)
        ft.AdamW([q], lr=0.5).step()
        opt.step()
        assert torch.equal(p, q)
    assert len(ft.AdamW._known) == 1


# --- Loads


def trained(cls=ft.AdamW, shapes=((3, 4), (5,), ()), steps=2, dtype=torch.float32, **options):
    params = [parameter(shape, dtype, k) for k, shape in enumerate(shapes)]
    opt = cls(params, **options)
    for _ in range(steps):
        opt.step()
    return params, opt


def outcome(make, saved, monkeypatch, slow):
    """What a load leaves, or says: state by place, with the very tensors that were in the dict, and the groups."""
    params, opt = make()
    with monkeypatch.context() as patch:
        if slow:
            patch.setattr(ft, "ordinary_state", lambda _: (None, ()))
        try:
            opt.load_state_dict(saved)
        except Exception as error:
            return type(error), str(error)
    given = {k: entry for k, entry in saved["state"].items() if isinstance(entry, dict)}
    of = {id(x): (k, name) for k, entry in given.items() for name, x in entry.items()}

    def seen(x):
        if torch.is_tensor(x) and id(x) not in of:
            return x.dtype, x.to_dense().tolist()
        return of.get(id(x), x)

    places = {p: k for k, p in enumerate(params)}
    state = [(places.get(p, p), type(e), [(n, seen(x)) for n, x in e.items()] if isinstance(e, dict) else e)
             for p, e in opt.state.items()]  # fmt: skip
    return state, [{**group, "params": len(group["params"])} for group in opt.param_groups], type(opt.state)


def same_both_ways(make, saved, monkeypatch):
    assert repr(outcome(make, saved, monkeypatch, True)) == repr(outcome(make, saved, monkeypatch, False))


def edits():
    """Names -> what is done to a state dict."""

    def entry(name, value, k=0):
        return lambda saved: saved["state"][k].__setitem__(name, value)

    def option(name, value):
        return lambda saved: saved["param_groups"][0].__setitem__(name, value)

    wide, good = torch.tensor(3.0, dtype=torch.float64), torch.ones(3, 4)
    yield "nothing", lambda saved: None
    for key in ("fused", "capturable"):
        yield key, option(key, True)
        yield f"{key} and a count in float64", lambda saved, key=key: (
            option(key, True)(saved), entry("step", wide)(saved)
        )  # fmt: skip
    for what, value in {
        "in float64": wide, "an int": 3, "a float": 3.0, "negative": torch.tensor(-1.0), "half": torch.tensor(2.5),
        "nan": torch.tensor(torch.nan), "with a dimension": torch.tensor([3.0]), "beyond": torch.tensor(2.0**24),
        "far beyond": torch.tensor(2.0**60), "in half": torch.tensor(3.0).half(), "a whole number": torch.tensor(3),
        "None": None, "negated": torch._neg_view(torch.tensor(-3.0)),
    }.items():  # fmt: skip
        yield f"a count {what}", entry("step", value)
    for what, value in {
        "in float64": good.double(), "in half": good.half(), "in complex64": good.to(torch.complex64),
        "of another shape": torch.ones(4, 3), "flat": torch.ones(12), "in another order": torch.ones(4, 3).t(),
        "None": None, "a number": 1.0, "an array": np.ones((3, 4), np.float32), "a list": [1.0],
        "a parameter": torch.nn.Parameter(good.clone()), "sparse": good.to_sparse(),
        "expanded": torch.ones(1).expand(3, 4), "negated": torch._neg_view(good.clone()), "on meta": good.to("meta"),
    }.items():  # fmt: skip
        yield f"a moment {what}", entry("exp_avg", value)
    yield "a note", entry("note", 7)
    yield "a note that is text", entry("note", "ab")
    yield "a key that is no text", entry(7, torch.zeros(()))
    yield "a maximum", entry("max_exp_avg_sq", torch.ones(3, 4))
    yield "a maximum of another shape", entry("max_exp_avg_sq", torch.ones(4, 3))
    yield "another's momentum", entry("momentum_buffer", torch.ones(3, 4))
    yield "no count", lambda saved: saved["state"][0].pop("step")
    yield "no moment", lambda saved: saved["state"][0].pop("exp_avg")
    yield "an empty entry", lambda saved: saved["state"].__setitem__(0, {})
    yield "no dict", lambda saved: saved["state"].__setitem__(0, [torch.ones(2)])
    yield "nothing at all", lambda saved: saved["state"].__setitem__(0, None)
    yield "no entry", lambda saved: saved["state"].pop(0)
    yield "no state", lambda saved: saved["state"].clear()
    yield "another order", lambda saved: saved["state"].__setitem__(0, saved["state"].pop(0))
    yield "state of none", lambda saved: saved["state"].__setitem__(3, saved["state"][0])
    yield "state under a name", lambda saved: saved["state"].__setitem__("note", {"a": 1})
    yield "a key of another type", lambda saved: saved["state"].__setitem__(0.0, saved["state"].pop(0))
    yield "other keys", lambda saved: (
        saved["param_groups"][0].__setitem__("params", [2, 1, 0]), saved["state"].__setitem__(0, saved["state"][2])
    )  # fmt: skip
    yield "a parameter too few", lambda saved: saved["param_groups"][0]["params"].pop()
    yield "a group too many", lambda saved: saved["param_groups"].append({"params": []})
    yield "no groups", lambda saved: saved.pop("param_groups")
    yield "params no list", option("params", (0, 1, 2))
    yield "an option out of range", option("lr", float("nan"))
    yield "an option more", option("mine", [1])
    yield "fastopt's own", lambda saved: saved.__setitem__("fastopt", {"version": 2, "optimizer": "AdamW"})
    yield "fastopt's, of another", lambda saved: saved.__setitem__("fastopt", {"version": 2, "optimizer": "Lion"})


@pytest.mark.parametrize("fallback", ["error", "silent"])
@pytest.mark.parametrize(("name", "edit"), [*edits()], ids=[name for name, _ in edits()])
def test_a_state_dict_loads_as_by_pytorchs_way(monkeypatch, name, edit, fallback):
    _, opt = trained()
    saved = copy.deepcopy(opt.state_dict())
    edit(saved)
    same_both_ways(lambda: trained(steps=1, fallback=fallback), saved, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_loads_as_by_pytorchs_way(monkeypatch, cls, dtype):
    _, opt = trained(cls, dtype=dtype)
    saved = copy.deepcopy(opt.state_dict())
    same_both_ways(lambda: trained(cls, steps=1, dtype=dtype), saved, monkeypatch)


@pytest.mark.parametrize(
    "keys", [[2, 1, 0], [0, 0, 1], [True, 0, 2], ["a", "b", "c"], [7, 8, 9], [1, 2, 0.0]], ids=repr
)
def test_state_goes_by_the_keys_of_the_groups(monkeypatch, keys):
    shapes = ((3, 4),) * 3
    _, opt = trained(shapes=shapes)
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0]["params"] = keys
    saved["state"] = dict(zip(keys, saved["state"].values(), strict=True))
    same_both_ways(lambda: trained(shapes=shapes, steps=0), saved, monkeypatch)


@pytest.mark.parametrize(
    "value",
    [None, 0.5, torch.tensor(0.5), torch.tensor(0.5).double(), torch.tensor(0.5).half(), torch.tensor([0.5]), "", []],
    ids=repr,
)
def test_numbers_load_as_by_pytorchs_way(monkeypatch, value):
    _, opt = trained(ft.NAdam)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["mu_product"] = value
    same_both_ways(lambda: trained(ft.NAdam, steps=0), saved, monkeypatch)


@pytest.mark.skipif(Host.shim is None, reason="C does not see all there")
@pytest.mark.parametrize("cls", CLASSES)
def test_an_ordinary_state_dict_is_not_cast(monkeypatch, cls):
    _, opt = trained(cls)
    saved = copy.deepcopy(opt.state_dict())
    name = "_process_value_according_to_param_policy"
    monkeypatch.setattr(torch.optim.Optimizer, name, lambda *_, **__: pytest.fail("cast"))
    monkeypatch.setattr(ft._Compiled, "_check_numbers", lambda *_: pytest.fail("looked at one by one"))
    monkeypatch.setattr(ft._Compiled, "_check_state", lambda *_: pytest.fail("looked at one by one"))
    opt.load_state_dict(saved)
    opt.step()


def test_hooks_of_a_load_see_what_pytorch_shows_them():
    seen = []
    _, opt = trained()
    saved = copy.deepcopy(opt.state_dict())
    opt.register_load_state_dict_pre_hook(lambda _, given: seen.append([*given["state"]]))
    opt.register_load_state_dict_post_hook(lambda it: seen.append([float(e["step"]) for e in it.state.values()]))
    opt.load_state_dict(saved)
    assert seen == [[0, 1, 2], [2.0, 2.0, 2.0]]


def test_what_a_derived_class_makes_of_a_load_is_looked_at():
    class Mine(ft.AdamW):
        def __setstate__(self, state):
            for entry in state["state"].values():
                entry["exp_avg"] = torch.zeros(7)
            super().__setstate__(state)

    params, opt = trained()
    saved = opt.state_dict()
    mine = Mine(params, fallback="error")
    with pytest.raises(errors.StateDictError, match="'exp_avg' of parameter 0 has shape"):
        mine.load_state_dict(saved)
    assert not mine.state


def test_a_loaded_dict_can_be_loaded_again_and_elsewhere():
    _, opt = trained()
    saved = copy.deepcopy(opt.state_dict())
    want = copy.deepcopy(saved)
    others = [trained(steps=0) for _ in range(2)]
    for _, other in others:
        other.load_state_dict(saved)
        other.state[other.param_groups[0]["params"][0]]["note"] = 1
    assert str(saved) == str(want)
    assert [*saved["state"]] == [0, 1, 2] and saved["param_groups"][0]["params"] == [0, 1, 2]


# --- First steps


@pytest.mark.parametrize("cls", CLASSES)
def test_first_state_is_in_pytorchs_order_whichever_way_it_is_made(monkeypatch, cls):
    options = {"centered": True, "momentum": 0.9} if cls is ft.RMSprop else {"momentum": 0.9} if cls is ft.SGD else {}
    (p, *_), opt = trained(cls, steps=1, **options)
    monkeypatch.setattr(ft._Compiled, "_first_record", lambda *_: None)
    (q, *_), other = trained(cls, steps=1, **options)
    assert list(opt.state[p]) == list(other.state[q])
    assert all(x.dtype == y.dtype and torch.equal(x, y)
               for x, y in zip(opt.state[p].values(), other.state[q].values(), strict=True))  # fmt: skip
    assert torch.equal(p, q)
    if cls is not ft.Lion:
        stock = getattr(torch.optim, cls.__name__.lstrip("_"))([w := parameter()], **options)
        stock.step()
        assert list(stock.state[w]) == list(opt.state[p])
