"""`state_dict` and `load_state_dict`: PyTorch's layout, the same path afterwards, nothing half-loaded."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from facts import FACTS, ON, with_convention
from support import ALL, ALL_IDS, NUMBER_NAMES, build, frozen, same_bits, three, unchanged, values

import fastopt
from fastopt import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ConcurrentStepError,
    ConventionError,
    HyperparameterError,
    NAdam,
    RAdam,
    RMSprop,
    StateDictError,
)


def stepped(cls: type = Adam, convention: str | None = None, steps: int = 3, **options: Any) -> Any:
    opt = build(cls, three(), convention, **options)
    for seed in range(steps):
        opt.step(three(seed + 10))
    return opt


def foreign(opt: Any) -> dict[str, Any]:
    """What PyTorch would have saved: a copy without our own key."""
    saved = copy.deepcopy(opt.state_dict())
    del saved["fastopt"]
    return saved


# --- Layout

# (name, the options that bring state) -> the keys that PyTorch's state has
SLOTS = {
    (name, options): f"{FACTS[name].numbers} {slots}"
    for name in with_convention("torch") for options, slots in FACTS[name].slots.items()
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SLOTS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_state_has_pytorchs_keys_and_nothing_else(name, options):
    opt = stepped(OPTIMIZERS[name], "torch", **{key: ON[key] for key in options})
    saved = opt.state_dict()
    keys = set(SLOTS[name, options].split())
    assert list(saved["state"]) == ([0, 1, 2] if keys else [])
    for i, entry in saved["state"].items():
        assert set(entry) == keys
        for key, value in entry.items():
            assert isinstance(value, np.ndarray)
            if key in NUMBER_NAMES:
                assert value.shape == () and value.dtype == np.float32
            else:
                assert value.shape == opt.params[i].shape and value.dtype == opt.params[i].dtype
    assert set(saved) == {"state", "param_groups", "fastopt"}


def test_groups_list_their_parameters_by_running_index():
    opt = AdamW([{"params": three()[:2], "lr": 0.5}, {"params": []}, {"params": three()[2:]}])
    groups = opt.state_dict()["param_groups"]
    assert [group["params"] for group in groups] == [[0, 1], [], [2]]
    assert groups[0]["lr"] == 0.5 and groups[2]["lr"] == 1e-3
    torch_has = {
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "maximize",
        "decoupled_weight_decay",
        "params",
    }
    assert all(torch_has <= set(group) for group in groups)
    assert groups[0]["decoupled_weight_decay"] is True


def test_names_are_kept_beside_the_indices():
    opt = Adam({"weight": values(), "bias": values((5,))})
    opt.add_param_group({"params": {"scale": values((2,))}})
    groups = opt.state_dict()["param_groups"]
    assert [group["param_names"] for group in groups] == [["weight", "bias"], ["scale"]]
    assert all("param_names" not in group for group in Adam(three()).state_dict()["param_groups"])


def test_parameters_without_a_step_have_no_entry():
    opt = Adam(three())
    assert opt.state_dict()["state"] == {}
    opt.step([None, three()[1], None])
    assert list(opt.state_dict()["state"]) == [1]


def test_state_of_adagrad_is_there_from_the_start():
    opt = Adagrad(three(), initial_accumulator_value=0.25)
    entries = opt.state_dict()["state"]
    assert list(entries) == [0, 1, 2]
    assert all(e["step"] == 0 and (e["sum"] == 0.25).all() for e in entries.values())


@pytest.mark.parametrize(
    ("count", "dtype"),
    [
        (1, np.float32),
        (2**24, np.float32),
        (2**24 + 1, np.float64),
        (2**53, np.float64),
        (2**53 + 1, np.float64),
    ],
)
def test_step_is_float32_up_to_2_to_the_24_and_float64_beyond(count, dtype):
    saved = foreign(stepped())
    saved["state"][1]["step"] = count
    opt = Adam(three())
    opt.load_state_dict(saved)
    step = opt.state_dict()["state"][1]["step"]
    assert step.dtype == dtype and step.shape == () and step == dtype(count)
    again = Adam(three())
    again.load_state_dict(opt.state_dict())
    assert again.state[1]["step"] == count == opt.state[1]["step"]


def test_arrays_are_the_live_ones():
    opt = stepped()
    saved = opt.state_dict()
    assert saved["state"][0]["exp_avg"] is opt.state[0]["exp_avg"]
    kept = copy.deepcopy(saved)
    opt.step(three())
    live, then, now = saved["state"][0]["exp_avg"], kept["state"][0]["exp_avg"], opt.state[0]["exp_avg"]
    assert same_bits(live, now) and not same_bits(then, now)


def test_loading_ones_own_live_state_dict_changes_nothing():
    opt = stepped(NAdam)
    before = frozen([opt.params, opt.state, opt.state_dict()])
    opt.load_state_dict(opt.state_dict())
    assert frozen([opt.params, opt.state, opt.state_dict()]) == before
    saved = opt.state_dict()
    saved["state"][0]["exp_avg"], saved["state"][0]["exp_avg_sq"] = (
        saved["state"][0]["exp_avg_sq"], saved["state"][0]["exp_avg"])  # fmt: skip
    want = [saved["state"][0]["exp_avg"].copy(), saved["state"][0]["exp_avg_sq"].copy()]
    opt.load_state_dict(saved)  # the arrays change places
    assert same_bits([opt.state[0]["exp_avg"], opt.state[0]["exp_avg_sq"]], want)


# --- The same path


def options_of(cls: type, convention: str) -> list[dict[str, Any]]:
    """Options worth a run of their own: the default, schedules, and all that adds state."""
    offered = cls.conventions[convention].defaults
    out: list[dict[str, Any]] = [{}, {"lr": fastopt.schedules.Exponential(0.25, 0.75)}]
    if "momentum" in offered:
        out.append({"momentum": fastopt.schedules.Linear(0.25, 0.75, 6)})
        out.append({"momentum": 0.75, **({"dampening": 0.5} if "dampening" in offered else {})})
        out.append({"momentum": 0.75, "nesterov": True} if "nesterov" in offered else {})
    if "betas" in offered:
        out.append({"betas": (fastopt.schedules.Linear(0.25, 0.75, 6), 0.75)})
    if "weight_decay" in offered:
        out.append({"weight_decay": fastopt.schedules.Linear(0.25, 0.75, 6)})
    out += [{key: True} for key in ("amsgrad", "centered") if key in offered]
    if "initial_accumulator_value" in offered:
        out.append({"initial_accumulator_value": 0.25})
    return [options for i, options in enumerate(out) if i == 0 or options]


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_loaded_optimizer_continues_bit_for_bit(cls, convention):
    for options in options_of(cls, convention):
        opt = stepped(cls, convention, **options)
        opt.step([three(3)[0], None, three(3)[2]])
        saved = copy.deepcopy(opt.state_dict())
        fresh = build(cls, [p.copy("K") for p in opt.params], convention, **options)
        used = stepped(cls, convention, steps=5, **options)
        for p, q in zip(used.params, opt.params, strict=True):
            p[...] = q
        for other in (fresh, used):
            other.load_state_dict(saved)
            assert frozen(other.state_dict()) == frozen(opt.state_dict())
        for seed in range(4):
            for one in (opt, fresh, used):
                one.step(three(seed))
        for other in (fresh, used):
            assert same_bits(other.params, opt.params), options
            assert frozen(other.state) == frozen(opt.state)
            assert other.steps == opt.steps == 8


@pytest.mark.parametrize(("name", "options"), SLOTS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_pytorchs_own_dict_continues_bit_for_bit(name, options):
    """Without our key: counts come from "step", and for SGD from there being a buffer."""
    opt = stepped(OPTIMIZERS[name], "torch", **{key: ON[key] for key in options})
    fresh = OPTIMIZERS[name]([p.copy("K") for p in opt.params])
    fresh.load_state_dict(foreign(opt))
    for seed in range(3):
        opt.step(three(seed))
        fresh.step(three(seed))
    assert same_bits(fresh.params, opt.params)
    if name != "SGD":
        assert fresh.steps == opt.steps == 6


def test_loading_into_another_type_casts_the_state():
    opt = stepped()
    other = Adam([p.astype(np.float64 if p.dtype == np.float32 else np.float32) for p in opt.params])
    other.load_state_dict(opt.state_dict())
    for mine, theirs, p in zip(other.state, opt.state, other.params, strict=True):
        assert mine["step"] == theirs["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            assert mine[key].dtype == p.dtype and same_bits(mine[key], theirs[key].astype(p.dtype))
    other.step([p.astype(q.dtype) for p, q in zip(three(), other.params, strict=True)])


def test_state_dict_from_before_the_first_step_starts_anew():
    for cls, convention in ALL:
        opt, plain = stepped(cls, convention), stepped(cls, convention)
        opt.load_state_dict(build(cls, three(), convention).state_dict())
        new = build(cls, [p.copy("K") for p in plain.params], convention)
        assert opt.steps == 0 and [s["step"] for s in opt.state] == [0, 0, 0]
        for seed in range(2):
            opt.step(three(seed))
            new.step(three(seed))
        assert same_bits(opt.params, new.params), (cls, convention)


def test_loading_leaves_the_parameters_and_the_given_dict_alone():
    opt, saved = stepped(), stepped(steps=2).state_dict()
    before = frozen(opt.params), frozen(saved)
    opt.load_state_dict(saved)
    assert (frozen(opt.params), frozen(saved)) == before
    opt.step(three())
    assert frozen(saved) == before[1]
    opt.param_groups[0]["lr"] = 0.5
    assert saved["param_groups"][0]["lr"] == 1e-3


def test_counts_of_the_optimizer_come_back():
    opt = stepped(steps=2, nonfinite="skip")
    opt.step([None, None, np.full(7, np.nan)])
    opt.step([None, None, None])
    other = Adam(three())
    other.load_state_dict(opt.state_dict())
    assert (other.steps, other.skipped_steps) == (3, 1)


# --- Foreign dicts: what may be there, and what may be missing


def test_keys_we_do_not_know_are_kept():
    saved = foreign(stepped())
    saved["param_groups"][0].update(
        initial_lr=0.5, max_lr=1.0, foreach=None, fused=None, capturable=False, tag=[1, 2]
    )
    opt = Adam(three())
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["initial_lr"] == 0.5 and opt.param_groups[0]["tag"] == [1, 2]
    opt.step(three())
    again = Adam(three())
    again.load_state_dict(copy.deepcopy(opt).state_dict())
    assert again.param_groups[0]["initial_lr"] == 0.5


def test_missing_flags_and_none_keep_what_the_optimizer_has():
    saved = foreign(stepped())
    for key in (
        "amsgrad",
        "maximize",
        "decoupled_weight_decay",
        "flush_subnormal",
        "eps_placement",
        "bias_correction",
        "eps_root",
    ):
        del saved["param_groups"][0][key]
    saved["param_groups"][0].update(weight_decay=None, eps=None, lr=0.5)
    opt = Adam(three(), weight_decay=0.25)
    opt.load_state_dict(saved)
    group = opt.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["eps"], group["maximize"]) == (0.5, 0.25, 1e-8, False)
    opt.step(three())


@pytest.mark.parametrize("mine", [False, True])
@pytest.mark.parametrize("saved", [False, True, None, "missing"])
def test_flushing_is_as_saved_or_else_as_before(mine, saved):
    """At the 64th step of the loaded count; a dict without the key is PyTorch's, or one from before there was it."""
    state = stepped(steps=62).state_dict()
    if saved == "missing":
        del state["param_groups"][0]["flush_subnormal"]
    else:
        state["param_groups"][0]["flush_subnormal"] = saved
    opt = Adam(three(), flush_subnormal=mine)
    opt.load_state_dict(state)
    want = saved if isinstance(saved, bool) else mine
    assert opt.param_groups[0]["flush_subnormal"] is want
    assert opt.state_dict()["param_groups"][0]["flush_subnormal"] is want
    for flushes in (False, want, False):
        for entry in opt.state:
            entry["exp_avg"][...] = 2.0**-1000 if entry["exp_avg"].dtype == np.float64 else 2.0**-100
        opt.step([np.zeros_like(p) for p in opt.params])
        assert [not entry["exp_avg"].any() for entry in opt.state] == [flushes] * 3


def test_hyperparameters_are_replaced_by_the_saved_ones():
    opt = Adam([{"params": three()[:2], "lr": 0.1}, {"params": three()[2:], "lr": 0.2}])
    other = Adam([{"params": three()[:2], "lr": 0.3}, {"params": three()[2:], "lr": 0.4}], betas=(0.5, 0.75))
    opt.load_state_dict(other.state_dict())
    assert [group["lr"] for group in opt.param_groups] == [0.3, 0.4]
    assert [group["betas"] for group in opt.param_groups] == [(0.5, 0.75)] * 2
    assert [len(group["params"]) for group in opt.param_groups] == [2, 1]


@pytest.mark.parametrize(
    "step",
    [7, 7.0, np.float32(7), np.array(7.0, np.float32), np.array([7]), np.int64(7), np.array(7, np.uint8)],
)
def test_steps_of_any_kind(step):
    saved = foreign(stepped())
    for entry in saved["state"].values():
        entry["step"] = step
    opt = Adam(three())
    opt.load_state_dict(saved)
    assert [state["step"] for state in opt.state] == [7, 7, 7] and opt.steps == 7
    assert all(type(state["step"]) is int for state in opt.state)


def test_more_state_than_needed_is_kept_and_betas_may_be_a_list():
    saved = foreign(stepped(amsgrad=True))
    saved["param_groups"][0].update(amsgrad=False, betas=[0.9, 0.999])
    opt = Adam(three())
    opt.load_state_dict(saved)
    kept = opt.state_dict()["state"]
    assert set(kept[0]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}      # PyTorch keeps it, too
    for i, entry in kept.items():
        assert entry["max_exp_avg_sq"].tobytes() == saved["state"][i]["max_exp_avg_sq"].tobytes()


def test_copies_go_on_alike_when_momentum_comes_back():
    """The buffer outlives an edit that switches momentum off; one that has not begun is not taken for one that has."""
    params = three()
    opt = SGD(params, lr=0.1, momentum=0.9, dampening=0.25)
    for step in range(3):
        opt.step([*three(seed=step)[:2], None])
    opt.param_groups[0]["momentum"] = 0.0
    opt.step(three(seed=7))
    copies = copy.deepcopy((params, opt))
    for _, one in ((params, opt), copies):
        one.param_groups[0]["momentum"] = 0.9
        for step in range(3):
            one.step(three(seed=10 + step))
    assert [p.tobytes() for p in params] == [p.tobytes() for p in copies[0]]


def test_loading_is_one_operation_that_no_step_interrupts():
    opt = Adam(three(), lr=0.1)
    opt.step(three(seed=1))
    saved = copy.deepcopy(opt.state_dict())
    seen = []

    def lr(step):
        try:
            opt.step(three(seed=2))
        except ConcurrentStepError as error:
            seen.append(error)
        return 0.1

    saved["param_groups"][0]["lr"] = lr
    opt.load_state_dict(saved)
    assert seen and opt.steps == 1


def test_buffer_of_sgd_that_is_none_starts_anew():
    """PyTorch saves momentum_buffer=None where no step was taken with momentum."""
    saved = foreign(stepped(SGD, "torch", momentum=0.5, dampening=0.25))
    saved["state"][0]["momentum_buffer"] = None
    del saved["state"][2]
    opt, new = (SGD(three(), 1e-3, 0.5, 0.25) for _ in range(2))
    opt.load_state_dict(saved)
    opt.step(three())
    new.step(three())
    assert same_bits([opt.params[0], opt.params[2]], [new.params[0], new.params[2]])
    assert not same_bits(opt.params[1], new.params[1])


@pytest.mark.parametrize(("cls", "convention"), [(SGD, "keras"), (SGD, "torch"), (RMSprop, "torch"), (Adam, "torch")])
def test_state_of_before_a_load_is_gone_also_where_the_loaded_options_have_no_use_for_it(cls, convention):
    flag, on, off = ("amsgrad", True, False) if cls is Adam else ("momentum", 0.5, 0.0)
    saved = build(cls, three(), convention, **{flag: off}).state_dict()
    opt, new = stepped(cls, convention, **{flag: on}), build(cls, three(), convention, **{flag: off})
    for p, q in zip(opt.params, new.params, strict=True):
        p[...] = q
    opt.load_state_dict(saved)
    for one in (opt, new):
        one.param_groups[0][flag] = on
        for seed in range(2):
            one.step(three(seed))
    assert same_bits(opt.params, new.params)


@pytest.mark.parametrize("flag", ["amsgrad", "momentum", "centered"])
def test_loading_an_option_that_needs_more_state(flag):
    cls = Adam if flag == "amsgrad" else RMSprop
    other, opt = stepped(cls, "torch", **{flag: ON[flag]}), stepped(cls, "torch")
    for p, q in zip(opt.params, other.params, strict=True):
        p[...] = q
    opt.load_state_dict(foreign(other))
    for seed in range(2):
        opt.step(three(seed))
        other.step(three(seed))
    assert same_bits(opt.params, other.params) and frozen(opt.state) == frozen(other.state)


def test_pytorchs_real_dict():
    torch = pytest.importorskip("torch")
    for name, options in SLOTS:
        start = [torch.tensor(p) for p in three()]
        theirs = getattr(torch.optim, name)(start, lr=0.01, **{key: ON[key] for key in options})
        mine = OPTIMIZERS[name](three(), nonfinite="raise")
        for seed in range(4):
            if seed == 2:
                saved = theirs.state_dict()
                saved["state"] = {
                    i: {key: None if value is None else value.numpy().copy() for key, value in entry.items()}
                    for i, entry in saved["state"].items()
                }
                mine.load_state_dict(saved)
                for p, q in zip(mine.params, start, strict=True):
                    p[...] = q.numpy()
            for p, g in zip(start, three(seed), strict=True):
                p.grad = torch.tensor(g)
            theirs.step()
            if seed >= 2:
                mine.step(three(seed))
        for p, q in zip(mine.params, start, strict=True):
            np.testing.assert_allclose(p, q.numpy(), rtol=1e-5 if p.dtype == np.float32 else 1e-12, atol=1e-7)
        # And back: torch loads ours and takes the same steps.
        back = getattr(torch.optim, name)(start, lr=0.5, **{key: ON[key] for key in options})
        saved = copy.deepcopy(mine.state_dict())
        saved["state"] = {i: {k: torch.tensor(v) for k, v in e.items()} for i, e in saved["state"].items()}
        back.load_state_dict(saved)
        for p, q, g in zip(start, mine.params, three(9), strict=True):
            p.grad = torch.tensor(g)
            p.detach().copy_(torch.tensor(q))
        back.step()
        mine.step(three(9))
        for p, q in zip(mine.params, start, strict=True):
            np.testing.assert_allclose(p, q.numpy(), rtol=1e-5 if p.dtype == np.float32 else 1e-12, atol=1e-7)


# --- What is refused, with nothing changed


def spoil(saved: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set, or with `...` delete, the entry at a path such as "state/2/step"."""
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place: Any = saved
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return saved


REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("state/2/exp_avg_sq", np.zeros(6), StateDictError, "parameter 2"),
    ("state/2/exp_avg_sq", np.zeros((7, 1)), StateDictError, "parameter 2"),
    ("state/2/exp_avg_sq", 0.0, StateDictError, "parameter 2"),
    ("state/1/exp_avg", np.zeros((4, 3)), StateDictError, "parameter 1"),
    ("state/2/exp_avg_sq", ..., StateDictError, "parameter 2 lacks 'exp_avg_sq'"),
    ("state/2/exp_avg_sq", None, StateDictError, "parameter 2 lacks 'exp_avg_sq'"),
    ("state/2/step", ..., StateDictError, "parameter 2 lacks 'step'"),
    *(("state/2/step", bad, StateDictError, "step.*parameter 2")
      for bad in (1.5, -1, math.nan, math.inf, "3", None, np.array([1, 2]), 2**63, 1j, [])),
    ("state/2", 3, StateDictError, ""),
    ("state/2", [1, 2], StateDictError, ""),
    ("state", [], StateDictError, "state"),
    ("state", None, StateDictError, "state"),
    ("state", ..., StateDictError, "'state'"),
    ("param_groups", ..., StateDictError, "'param_groups'"),
    ("param_groups", 3, StateDictError, ""),
    ("param_groups", [], StateDictError, "groups"),
    ("param_groups", [None], StateDictError, ""),
    ("param_groups", [{}], StateDictError, ""),
    ("param_groups/0", {"params": [0, 1]}, StateDictError, "groups"),
    ("param_groups/0/params", [0, 1, 2, 3], StateDictError, "groups"),
    ("param_groups/0/params", 3, StateDictError, ""),
    ("param_groups/0/params", [0, 1, [2]], StateDictError, ""),
    ("param_groups/0/lr", -1.0, HyperparameterError, "lr"),
    ("param_groups/0/lr", math.nan, HyperparameterError, "lr"),
    ("param_groups/0/lr", "fast", HyperparameterError, "lr"),
    ("param_groups/0/betas", [0.9, 1.0], HyperparameterError, "betas"),
    ("param_groups/0/betas", [0.9, 0.99999999999], HyperparameterError, "betas"),
    ("param_groups/0/betas", 3, HyperparameterError, "betas"),
    ("param_groups/0/eps", 1e39, HyperparameterError, "eps"),
    ("param_groups/0/amsgrad", "yes", HyperparameterError, "amsgrad"),
    ("param_groups/0/amsgrad", True, StateDictError, "lacks 'max_exp_avg_sq'"),
    ("param_groups/0/eps_placement", "under", HyperparameterError, "eps_placement"),
    ("param_groups/0/flush_subnormal", "yes", HyperparameterError, "flush_subnormal='yes' must be True or False"),
    ("param_groups/0/eps_root", 0.5, ConventionError, "eps_root"),
    ("fastopt", 3, StateDictError, "fastopt"),
    ("fastopt/version", 1, StateDictError, "version"),
    ("fastopt/optimizer", "RAdam", StateDictError, "RAdam"),
    ("fastopt/convention", "sonnet", StateDictError, "convention 'sonnet'; Adam has: torch, keras"),
    ("fastopt/convention", 3, StateDictError, "convention 3"),
    ("fastopt/steps", -1, StateDictError, ""),
    ("fastopt/steps", 1.5, StateDictError, ""),
    ("fastopt/skipped_steps", "x", StateDictError, ""),
    ("fastopt/counts", 3, StateDictError, ""),
    ("fastopt/counts", [3, 3], StateDictError, ""),
    ("fastopt/counts/2", -3, StateDictError, ""),
    ("fastopt/counts/2", math.nan, StateDictError, ""),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "error", "match"), REFUSED, ids=lambda x: str(x)[:30])
def test_bad_dict_is_refused_and_nothing_is_changed(path, value, error, match):
    opt = stepped(steps=2)
    with unchanged(opt, error, match):
        opt.load_state_dict(spoil(copy.deepcopy(stepped(steps=5, lr=0.5).state_dict()), path, value))
    plain = stepped(steps=2)
    for one in (opt, plain):
        one.step(three())
    assert same_bits(opt.params, plain.params)


@pytest.mark.parametrize("bad", [None, 3, "x", [], {}, {"state": {}}, {"param_groups": []}])
def test_what_is_no_state_dict(bad):
    opt = stepped()
    with unchanged(opt, StateDictError):
        opt.load_state_dict(bad)


@pytest.mark.parametrize("count", [-3, math.nan, "x", 1.5, None])
def test_bad_count_of_a_parameter_without_state(count):
    opt = stepped(SGD, "torch", steps=2)
    saved = stepped(SGD, "torch", steps=5).state_dict()
    saved["fastopt"]["counts"][1] = count
    with unchanged(opt, StateDictError):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("product", [math.nan, math.inf, -0.5, 1.5, "x", None, [0.5, 0.5], ...])
def test_bad_product_of_nadam(product):
    opt = stepped(NAdam)
    with unchanged(opt, StateDictError, "parameter 2"):
        opt.load_state_dict(spoil(foreign(stepped(NAdam, steps=5)), "state/2/mu_product", product))


def test_dict_of_another_optimizer():
    with unchanged(opt := stepped(Adam, "torch"), StateDictError, "'RAdam'.*'Adam'"):
        opt.load_state_dict(stepped(RAdam).state_dict())
    with unchanged(opt, StateDictError, "has 'square_avg', which Adam.* cannot continue from; its state: 'exp_avg'"):
        opt.load_state_dict(foreign(stepped(RMSprop)))


def test_groups_of_other_sizes():
    opt = Adam([{"params": three()[:2]}, {"params": three()[2:]}])
    for other in (Adam(three()), Adam([{"params": three()[:1]}, {"params": three()[1:]}]), Adam(three()[:2])):
        with unchanged(opt, StateDictError, "groups of"):
            opt.load_state_dict(other.state_dict())


def test_schedule_that_is_bad_at_the_loaded_step_is_found_at_load():
    def schedule(step: int) -> float:
        return 0.5 if step < 5 else math.nan

    opt, saved = stepped(steps=2), stepped(steps=4, lr=schedule).state_dict()
    opt.load_state_dict(saved)
    assert opt.steps == 4
    opt, saved = stepped(steps=2), copy.deepcopy(stepped(steps=5, lr=schedule).state_dict())
    with unchanged(opt, HyperparameterError, "lr"):
        opt.load_state_dict(saved)


def test_schedule_is_not_asked_about_steps_of_before_the_load():
    def schedule(step: int) -> float:
        return math.nan if step < 3 else 0.5

    saved = copy.deepcopy(stepped(steps=4).state_dict())
    saved["param_groups"][0]["lr"] = schedule
    opt = stepped(steps=1)
    opt.load_state_dict(saved)
    opt.step(three())
    assert opt.steps == 5


def test_a_key_of_the_user_s_own_stays_as_it_is():
    opt = fastopt.Momentum(three())
    opt.param_groups[0]["dampening"] = 0.0  # of PyTorch's SGD, switched off
    opt.param_groups[0]["metas"] = [0.5, 1.2]
    opt.step(three(1))
    saved = opt.state_dict()
    assert saved["param_groups"][0]["dampening"] == 0.0
    opt.load_state_dict(copy.deepcopy(saved))
    assert opt.param_groups[0]["metas"] == [0.5, 1.2]
