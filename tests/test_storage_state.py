"""State in bfloat16 and 8 bits that leaves an optimizer and comes back: dicts, files, pickles, and other storage."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import parallel_from
from support import build, frozen, unchanged, undecayed

import fastopt
from fastopt import HyperparameterError, StateDictError
from fastopt.declare import named_arrays

SAVES = importlib.util.find_spec("safetensors") is not None
SHAPES = [((64, 70), "C"), ((70, 65), "F"), ((7,), "C")]  # more than 4,096 elements, twice, and fewer
NAMES = ["w", "v", "b"]
STATEFUL: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "Adagrad": {},
}  # fmt: skip
SPLIT = {"param_dtype": "bfloat16", "split": True}
STORAGES: dict[str, dict[str, Any]] = {
    "split": SPLIT,
    "split, 8 bits": {**SPLIT, "state_dtype": "8bit", "seed": 2**63 + 5},
    "stochastic, bfloat16": {"param_dtype": "bfloat16", "rounding": "stochastic", "state_dtype": "bfloat16", "seed": 7},
    "nearest": {"param_dtype": "bfloat16", "rounding": "nearest"},
    "8 bits": {"state_dtype": "8bit"},
    "mixed": {"state_dtype": "mixed", "seed": 3},
    "averaged": {"state_dtype": "bfloat16", "ema_decay": 0.75, "seed": 1},
    "split, averaged": {**SPLIT, "ema_decay": 0.75},
    "stochastic, averaged": {"param_dtype": "bfloat16", "rounding": "stochastic", "ema_decay": 0.75},
}
every_optimizer = pytest.mark.parametrize("cls", fastopt.OPTIMIZERS.values(), ids=lambda cls: cls.__name__)
every_storage = pytest.mark.parametrize("storage", STORAGES)


def numbers(shape, order="C", seed=0) -> np.ndarray:
    """Numbers of several orders of magnitude."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.normal(size=shape) * np.exp(rng.normal(size=shape))).astype(np.float32).copy(order)


def gradients(k: int) -> list[np.ndarray]:
    return [numbers(shape, order, 100 + k) for shape, order in SHAPES]


def upper(x: np.ndarray) -> np.ndarray:
    """The upper half of float32 numbers, as uint16 that holds bfloat16."""
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def starts(narrow: bool) -> list[np.ndarray]:
    params = [numbers(shape, order) for shape, order in SHAPES]
    return [upper(p) for p in params] if narrow else params


def options_of(cls, storage: dict[str, Any]) -> dict[str, Any]:
    """A storage as options of a class, with options that give it state; "mixed": its slots in turn."""
    options = {**STATEFUL.get(cls.__name__, {}), **storage}
    if storage.get("state_dtype") == "mixed":
        convention = next(iter(cls.conventions))
        slots = [slot for slot in named_arrays(cls, convention).values() if slot.narrow]
        kinds = ["8bit" if k % 2 == 0 and slot.narrow != "sign" else "bfloat16" for k, slot in enumerate(slots)]
        options["state_dtype"] = {slot.name: kind for slot, kind in zip(slots, kinds, strict=True)}
    return options


def made(cls, options: dict[str, Any], params: list[np.ndarray], names: Any = None, **more: Any) -> Any:
    given = params if names is None else {name: params[NAMES.index(name)] for name in names}
    return build(cls, given, **{"lr": 0.01, **options, **more})


def step(opt: Any, *ks: int) -> None:
    for k in ks:
        grads = gradients(k)
        names = opt._plan.names
        opt.step(grads if names[0] is None else {name: grads[NAMES.index(name)] for name in names})


def bits(opt: Any) -> Any:
    """Parameters, state, counts and streams, by name."""
    plan = opt._plan
    names = plan.names if plan.named else NAMES
    states = [frozen(state) for state in opt.state]
    return {
        name: (frozen(p), state, stream)
        for name, p, state, stream in zip(names, opt.params, states, plan.streams, strict=True)
    }, opt.steps


def copied(opt: Any) -> list[np.ndarray]:
    """Copies of the parameters, in the order of `NAMES`."""
    named = dict(zip(opt._plan.names if opt._plan.named else NAMES, opt.params, strict=True))
    return [named[name].copy("K") for name in NAMES]


def by_dict(opt, new, path):
    new.load_state_dict(copy.deepcopy(opt.state_dict()))
    return new


def by_file(opt, new, path):
    opt.save(path)
    new.load(path)
    return new


def by_pickle(opt, new, path):
    return pickle.loads(pickle.dumps(opt))


def by_copy(opt, new, path):
    return copy.deepcopy(opt)


@every_optimizer
@every_storage
@pytest.mark.parametrize("names", [None, NAMES[::-1]], ids=["by place", "by name, in another order"])
def test_a_run_that_is_resumed_has_the_bits_of_one_that_went_on(cls, storage, names, tmp_path, tally):
    """Under another number of threads, and by an optimizer that was built with another seed."""
    ways = [by_dict, by_pickle, *([by_file] if SAVES else [])]
    if cls.__name__ in ("AdamW", "SGD"):
        ways.append(by_copy)
    options = options_of(cls, STORAGES[storage])
    if storage == "mixed" and not options["state_dtype"]:
        return
    narrow = "param_dtype" in options
    opt = made(cls, options, starts(narrow), None if names is None else NAMES, n_threads=1)
    step(opt, 0, 1, 2)
    for way in ways:
        new = made(cls, {**options, "lr": 1.0}, copied(opt), names, n_threads=2, seed=999)
        resumed = way(opt, new, tmp_path / "run")
        assert bits(resumed) == bits(opt)
        resumed.n_threads = 3
        fellow = copy.deepcopy(opt)
        with parallel_from(1):
            step(resumed, 3, 4, 5)
        step(fellow, 3, 4, 5)
        assert bits(resumed) == bits(fellow)
        # And once more, from the resumed one: what is by name may have streams in another order.
        again = way(resumed, made(cls, options, copied(resumed), names), tmp_path / "run")
        step(again, 6)
        step(fellow, 6)
        assert bits(again) == bits(fellow)
        tally("resumed runs compared to the bit")


def test_a_parameter_that_is_added_later_gets_a_stream_that_nobody_has():
    options = {"state_dtype": "8bit"}
    opt = made(fastopt.AdamW, options, starts(False), NAMES)
    step(opt, 0)
    other = made(fastopt.AdamW, options, [p.copy("K") for p in opt.params], ["b", "w", "v"])
    other.load_state_dict(opt.state_dict())
    assert other._plan.streams == [2, 0, 1] == other.state_dict()["fastopt"]["streams"]
    other.add_param_group({"params": {"more": np.zeros(3, np.float32)}})
    assert other._plan.streams == [2, 0, 1, 3]
    saved = opt.state_dict()
    saved["fastopt"]["streams"] = [4, 3, 7]
    opt.load_state_dict(saved)
    opt.add_param_group({"params": {name: np.zeros(3, np.float32) for name in "xyz"}})
    assert opt._plan.streams == [4, 3, 7, 5, 6, 8]


def test_streams_are_saved_only_where_they_matter():
    plain = made(fastopt.AdamW, {}, starts(False), NAMES)
    step(plain, 0)
    assert {"streams", "packed"}.isdisjoint(plain.state_dict()["fastopt"])
    nearest = made(fastopt.AdamW, {"state_dtype": {"exp_avg": "8bit"}}, starts(False))
    assert "streams" not in nearest.state_dict()["fastopt"]
    other = made(fastopt.AdamW, {}, starts(False), NAMES[::-1])
    other.load_state_dict(plain.state_dict())
    assert other.state_dict()["fastopt"]["streams"] == [2, 1, 0]
    for storage in ("stochastic, bfloat16", "8 bits"):
        options = STORAGES[storage]
        opt = made(fastopt.AdamW, options, starts("param_dtype" in options))
        assert opt.state_dict()["fastopt"]["streams"] == [0, 1, 2]


# --- What a dict has


def dtype_name(array: np.ndarray) -> str:
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def test_a_state_dict_has_the_live_arrays_in_their_own_types():
    opt = made(fastopt.AdamW, STORAGES["split, 8 bits"], starts(True))
    step(opt, 0)
    entry, small = opt.state_dict()["state"][0], opt.state_dict()["state"][2]
    assert {name: dtype_name(array) for name, array in entry.items()} == {
        "step": "float32", "exp_avg": "uint8", "exp_avg_sq": "uint8", "low": "int16",
    }  # fmt: skip
    assert [dtype_name(small[name]) for name in ("exp_avg", "exp_avg_sq", "low")] == ["float32", "float32", "int16"]
    for name in ("exp_avg", "low"):
        assert entry[name] is opt._plan.states[0][name]
    assert opt.state_dict()["fastopt"]["packed"] == [["C", 64, 70], ["F", 70, 65], None]
    opt = made(fastopt.AdamW, STORAGES["stochastic, bfloat16"], starts(True))
    step(opt, 0)
    assert {dtype_name(opt.state_dict()["state"][i]["exp_avg"]) for i in range(3)} == {"bfloat16"}
    assert "low" not in opt.state_dict()["state"][0]


def test_a_low_half_without_elements_is_left_out():
    opt = made(fastopt.AdamW, {"split": True}, starts(False))
    step(opt, 0)
    assert all("low" not in entry for entry in [*opt.state, *opt.state_dict()["state"].values()])


def test_a_low_half_is_saved_before_a_buffer_begins_and_begins_none():
    opt = made(fastopt.SGD, SPLIT, starts(True))
    step(opt, 0, 1)
    saved = copy.deepcopy(opt.state_dict())
    assert all(set(entry) == {"low"} for entry in saved["state"].values())
    new = made(fastopt.SGD, SPLIT, [p.copy("K") for p in opt.params])
    new.load_state_dict(saved)
    for each in (opt, new):
        each.param_groups[0]["momentum"] = 0.9
        each.param_groups[0]["dampening"] = 0.5  # which the first step with a buffer does not know
        step(each, 2, 3)
    assert bits(new) == bits(opt)


@every_optimizer
def test_low_halves_that_are_there_before_the_first_step_are_saved(cls):
    """Who has the weights in float32 gives a parameter its upper halves, and writes the lower ones."""
    opt = build(cls, [np.ones(5, np.uint16), np.ones(3, np.uint16)], **SPLIT)
    opt.state[0]["low"][...] = 7
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), opt):
        if other is opt:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        assert [state["low"][0] for state in other.state] == [7, 0]
        assert [state["step"] for state in other.state] == [0, 0]


def test_storage_is_the_optimizers_own_and_seed_and_rounding_are_the_dicts():
    opt = made(fastopt.AdamW, {**STORAGES["stochastic, bfloat16"], "grad_dtype": "bfloat16"}, starts(True))
    step(opt, 0)
    saved = opt.state_dict()
    own = {"param_dtype": "bfloat16", "rounding": "nearest", "seed": 1, "state_dtype": {"exp_avg": "float32"}}
    new = made(fastopt.AdamW, own, [p.copy("K") for p in opt.params])
    new.load_state_dict(saved)
    group = new.param_groups[0]
    assert (group["seed"], group["rounding"], group["state_dtype"]) == (7, "stochastic", {"exp_avg": "float32"})
    assert "split" not in group and "grad_dtype" not in group
    split = made(fastopt.AdamW, SPLIT, [p.copy("K") for p in opt.params])
    split.load_state_dict(saved)  # a split parameter is not rounded
    assert split.param_groups[0].get("rounding") is None and split.param_groups[0]["seed"] == 7
    # A dict that says nothing of storage leaves the seed alone; one that does, and has no seed, had 0.
    plain, eight = made(fastopt.AdamW, {}, starts(False)), made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    new = made(fastopt.AdamW, {"state_dtype": "8bit", "seed": 5}, starts(False))
    new.load_state_dict(plain.state_dict())
    assert new.param_groups[0]["seed"] == 5
    new.load_state_dict(eight.state_dict())
    assert new.param_groups[0]["seed"] == 0


# --- Into other storage


def by_hand(packed: np.ndarray, n: int, squares: bool) -> np.ndarray:
    """What state in 8 bits stands for: the specification, element by element."""
    blocks = -(-n // 256)
    bases, codes = packed[: 2 * blocks].view(np.uint16), packed[2 * blocks :].astype(np.uint32)
    base = np.repeat(bases, 256)[:n].astype(np.uint32)
    sign = np.uint32(0) if squares else codes >> 7 << 31
    c = codes if squares else codes & 0x7F
    wide = np.where(c, (c + (base & 0x7FFF)) << 20, 0)
    top = 255 if squares else 127
    wide = np.where((base >> 15 == 1) & (c == top), 0x7F800000, wide)
    wide = np.where((base >> 15 == 1) & (c == top - 1), 0x7FC00000, wide)
    return (wide.astype(np.uint32) | sign).view(np.float32)


def wide(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_narrow_state_loads_into_a_wider_type_exactly_and_silently(dtype):
    eight = made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    sixteen = made(fastopt.AdamW, {"state_dtype": "bfloat16"}, starts(False))
    for opt in (eight, sixteen):
        step(opt, 0, 1)
        params = [p.astype(dtype) for p in opt.params]
        params[1] = np.ascontiguousarray(params[1])  # the other order
        new = made(fastopt.AdamW, {}, params)
        new.load_state_dict(opt.state_dict())
        for i, (state, then) in enumerate(zip(new.state, opt.state, strict=True)):
            for name in ("exp_avg", "exp_avg_sq"):
                want = then[name]
                if want.dtype == np.uint8:
                    want = by_hand(want, np.prod(SHAPES[i][0]), name == "exp_avg_sq")
                    want = want.reshape(SHAPES[i][0], order=SHAPES[i][1])
                elif opt is sixteen:
                    want = wide(want)
                assert state[name].dtype == dtype and (state[name] == want).all()
        assert new.steps == 2


def test_not_finite_state_comes_through_8_bits():
    opt = made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    grads = gradients(0)
    grads[0][3, 4], grads[0][9, 9], grads[1][0, 0] = np.nan, np.inf, -np.inf
    opt.step(grads)
    new = made(fastopt.AdamW, {}, starts(False))
    new.load_state_dict(opt.state_dict())
    assert np.isnan(new.state[0]["exp_avg"][3, 4]) and new.state[1]["exp_avg"][0, 0] == -np.inf
    assert np.isinf(new.state[0]["exp_avg_sq"][9, 9]) and np.isnan(new.state[0]["exp_avg_sq"]).sum() == 1
    other = made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    other.load_state_dict(opt.state_dict())
    assert frozen(other.state) == frozen(opt.state)


def test_8_bits_are_a_bfloat16():
    rng = np.random.default_rng(0)
    w = rng.standard_normal(5000).astype(np.float32)
    opt = fastopt.AdamW(w, state_dtype="8bit")
    for _ in range(3):
        opt.step(rng.standard_normal(5000).astype(np.float32))
    narrow = fastopt.AdamW(w.copy(), state_dtype="bfloat16", seed=7)
    narrow.load_state_dict(opt.state_dict())
    wide = [fastopt.AdamW(w.copy()), fastopt.AdamW(w.copy())]
    wide[0].load_state_dict(opt.state_dict())
    wide[1].load_state_dict(narrow.state_dict())
    assert frozen(wide[0].state) == frozen(wide[1].state)


PAIRS = [
    ("float32", "8bit", "is in float32, and the optimizer keeps it in 8 bits"),
    ("float32", "bfloat16", "is in float32, and the optimizer keeps it in bfloat16"),
    ("bfloat16", "8bit", "is in bfloat16, and the optimizer keeps it in 8 bits"),
]


@pytest.mark.parametrize(("kind", "target", "message"), PAIRS)
def test_what_would_be_rounded_is_refused_unless_it_is_said(kind, target, message, tmp_path):
    pytest.importorskip("safetensors")
    opt = made(fastopt.AdamW, {"state_dtype": kind}, starts(False))
    step(opt, 0)
    new = made(fastopt.AdamW, {"state_dtype": target}, starts(False))
    step(new, 5)
    with unchanged(new, StateDictError, f"state 'exp_avg' of parameter 0 {message}.*convert=\"lossy\""):
        new.load_state_dict(opt.state_dict())
    opt.save(tmp_path / "run")
    with unchanged(new, StateDictError, 'convert="lossy"'):
        new.load(tmp_path / "run")
    with unchanged(new, HyperparameterError, "convert='most' must be None or 'lossy'"):
        new.load_state_dict(opt.state_dict(), convert="most")
    new.load(tmp_path / "run", convert="lossy")
    other = made(fastopt.AdamW, {"state_dtype": target}, starts(False))
    other.load_state_dict(opt.state_dict(), convert="lossy")
    assert frozen(new.state) == frozen(other.state)
    exact = made(fastopt.AdamW, {}, starts(False))
    exact.load_state_dict(opt.state_dict())
    back = made(fastopt.AdamW, {}, starts(False))
    back.load_state_dict(new.state_dict())
    for a, b in zip(back.state, exact.state, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            # Half a digit or, at random, a whole one; in 8 bits also what is far below its block's largest.
            lost = 2.0**-7 if target == "bfloat16" else 2.0**-3
            floor = 0 if target == "bfloat16" else np.abs(b[name]).max() * 2.0**-14
            assert (np.abs(a[name] - b[name]) <= np.maximum(np.abs(b[name]) * lost, floor)).all()


@pytest.mark.parametrize("target", ["8bit", "bfloat16"])
@pytest.mark.parametrize("cls", [fastopt.AdamW, fastopt.RMSprop, fastopt.Lion, fastopt.AdaBelief])
def test_what_is_encoded_has_the_bits_that_the_last_step_would_have_written(cls, target):
    """After one step both optimizers have computed the same numbers."""
    options = {"state_dtype": target, "seed": 11}
    opt, plain = made(cls, options, starts(False)), made(cls, {}, starts(False))
    step(opt, 0)
    step(plain, 0)
    new = made(cls, options, [p.copy("K") for p in plain.params])
    new.load_state_dict(plain.state_dict(), convert="lossy")
    assert bits(new) == bits(opt)
    step(opt, 1)
    step(new, 1)
    assert bits(new) == bits(opt)
    other = made(cls, {**options, "seed": 12}, [p.copy("K") for p in plain.params])
    other.load_state_dict(plain.state_dict(), convert="lossy")
    assert (frozen(other.state) != frozen(plain.state)) and (
        cls is fastopt.Lion or frozen(other._plan.states) != frozen(opt._plan.states)
    )


def test_codes_in_the_other_memory_order_are_encoded_anew_only_if_it_is_said():
    options = {"state_dtype": "8bit"}
    opt = made(fastopt.AdamW, options, starts(False))
    step(opt, 0)
    turned = [np.asarray(p, order="F" if p.flags.c_contiguous else "C").copy("K") for p in opt.params]
    new = made(fastopt.AdamW, options, turned)
    with unchanged(new, StateDictError, "state 'exp_avg' of parameter 0 is in 8 bits, in the other memory order"):
        new.load_state_dict(opt.state_dict())
    new.load_state_dict(opt.state_dict(), convert="lossy")
    for i in range(2):
        shape, order = SHAPES[i]
        then = by_hand(opt.state[i]["exp_avg"], np.prod(shape), False).reshape(shape, order=order)
        now = by_hand(new.state[i]["exp_avg"], np.prod(shape), False).reshape(shape, order="F" if order == "C" else "C")
        assert (np.abs(now - then) <= np.abs(then) / 8 + 2.0**-14).all() and (now == then).mean() > 0.9
    # A vector has one order only.
    opt, new = (made(fastopt.AdamW, options, [np.zeros((1, 5000), np.float32, order)] * 1) for order in "CF")
    opt.step([numbers((1, 5000))])
    new.load_state_dict(opt.state_dict())
    assert frozen(new.state) == frozen(opt.state)


def test_a_low_half_is_dropped_only_if_it_is_said():
    opt = made(fastopt.AdamW, SPLIT, starts(True))
    step(opt, 0, 1)
    saved = opt.state_dict()
    exact = [(upper_and_low(p, state["low"])) for p, state in zip(opt.params, opt.state, strict=True)]
    for options, params in (
        ({"param_dtype": "bfloat16", "rounding": "nearest"}, [p.copy("K") for p in opt.params]),
        ({}, [p.copy("K") for p in exact]),
        ({"split": True}, [p.copy("K") for p in exact]),
    ):
        new = made(fastopt.AdamW, options, params)
        with unchanged(new, StateDictError, "state 'low' of parameter 0 is what a bfloat16 parameter.*\"lossy\""):
            new.load_state_dict(saved)
        new.load_state_dict(saved, convert="lossy")
        assert "low" not in new.state[0] and (new.state[0]["exp_avg"] == opt.state[0]["exp_avg"]).all()


def upper_and_low(p: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The float32 numbers of a split parameter."""
    return (wide(p).view(np.uint32) + low.astype(np.int32).view(np.uint32)).view(np.float32)


def test_a_dict_without_low_halves_loads_into_split_parameters():
    plain = made(fastopt.AdamW, {}, starts(False))
    step(plain, 0)
    new = made(fastopt.AdamW, SPLIT, starts(True))
    step(new, 1)
    assert any(state["low"].any() for state in new.state)
    new.load_state_dict(plain.state_dict())
    assert not any(state["low"].any() for state in new.state)
    assert (new.state[1]["exp_avg"] == plain.state[1]["exp_avg"]).all()


def test_state_of_another_meaning_is_converted_from_its_numbers():
    """A velocity from a buffer, which is -lr times it."""
    opt = fastopt.SGD(starts(False), lr=0.5, momentum=0.9, state_dtype="8bit")
    step(opt, 0)
    new = fastopt.Momentum(starts(False), lr=0.5, momentum=0.9)
    new.load_state_dict(opt.state_dict())
    want = -0.5 * by_hand(opt.state[0]["momentum_buffer"], 4480, False).reshape(64, 70)
    assert (new.state[0]["velocity"] == want).all()
    eight = fastopt.Momentum(starts(False), lr=0.5, momentum=0.9, state_dtype="8bit")
    with unchanged(eight, StateDictError, "'velocity' of parameter 0 is in float32"):
        eight.load_state_dict(opt.state_dict())


def test_options_that_need_other_arrays_than_there_are_are_refused():
    """The variance of a centered RMSprop is a difference, so both terms stay float32."""
    opt = made(fastopt.RMSprop, {"centered": True}, starts(False))
    step(opt, 0)
    new = made(fastopt.RMSprop, {"state_dtype": "8bit"}, starts(False))
    with unchanged(new, HyperparameterError, "cannot be edited"):
        new.load_state_dict(opt.state_dict(), convert="lossy")


# --- Damaged state


def changed(entry, name, change):
    array = entry[name].copy()
    entry[name] = change(array)


def with_base(value, block=3):
    def change(array):
        array.view(np.uint16)[block] = value
        return array

    return change


DAMAGE = [
    ("exp_avg", lambda a: a[:-1], r"has dtype uint8 and shape \(4515,\); for 4480 elements \(4516,\) is needed"),
    ("exp_avg", lambda a: np.concatenate([a, a[:1]]), r"\(4516,\) is needed"),
    ("exp_avg", lambda a: a.reshape(2, -1), r"shape \(2, 2258\)"),
    ("exp_avg", lambda a: a[:0], r"shape \(0,\)"),
    ("exp_avg", lambda a: a.astype(np.int8), "dtype int8"),
    ("exp_avg", lambda a: a.astype(np.int32), "dtype int32"),
    ("exp_avg", lambda a: a.astype(bool), "dtype bool"),
    ("exp_avg", with_base(0x7F7 - 126), "damaged: the base of block 3 is 0x779, too large for its codes"),
    ("exp_avg", with_base(0x7FFF), "damaged: the base of block 3"),
    ("exp_avg", with_base(0xFFFF), "damaged: the base of block 3"),
    ("exp_avg", with_base(0x8000 | (0x7F7 - 124)), "damaged: the base of block 3"),
    ("exp_avg_sq", with_base(0x7F7 - 254, 17), "damaged: the base of block 17"),
    ("exp_avg_sq", with_base(0x8000 | (0x7F7 - 252)), "damaged: the base of block 3"),
    ("max_exp_avg_sq", lambda a: np.zeros(4516, np.uint8), "this state is not kept in 8 bits"),
    ("low", lambda a: a.astype(np.int32), "dtype int32; int16 is needed"),
    ("low", lambda a: a.astype(np.float32), "dtype float32; int16 is needed"),
    ("low", lambda a: a[:-1], r"shape \(63, 70\); the parameter has \(64, 70\)"),
    ("low", lambda a: "x", "'low' of parameter 0"),
]


@pytest.mark.parametrize(("name", "change", "message"), DAMAGE)
def test_damaged_state_is_refused_before_anything_changes(name, change, message):
    options = {**SPLIT, "state_dtype": "8bit", "amsgrad": True}
    opt = made(fastopt.Adam, options, starts(True))
    step(opt, 0)
    saved = copy.deepcopy(opt.state_dict())
    changed(saved["state"][0], name, change)
    new = made(fastopt.Adam, options, starts(True))
    step(new, 1)
    for convert in (None, "lossy"):
        with unchanged(new, StateDictError, message):
            new.load_state_dict(saved, convert=convert)
    plain = made(fastopt.Adam, {"amsgrad": True}, starts(False))
    with unchanged(plain, StateDictError, message):
        plain.load_state_dict(saved, convert="lossy")


def test_the_largest_bases_that_a_step_can_write_are_accepted():
    opt = made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    step(opt, 0)
    for name, most, special in (("exp_avg", 127, 125), ("exp_avg_sq", 255, 253)):
        bases = opt.state[0][name].view(np.uint16)
        bases[0], bases[1] = 0x7F7 - most, 0x8000 | (0x7F7 - special)
    new = made(fastopt.AdamW, {}, starts(False))
    new.load_state_dict(opt.state_dict())
    assert np.isfinite(new.state[0]["exp_avg_sq"].ravel()[:256]).all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("streams", [0, 1], "streams.*3 different whole numbers"),
        ("streams", [0, 1, 1], "streams"),
        ("streams", [0, 1, -1], "streams"),
        ("streams", [0, 1, 2**32], "streams"),
        ("streams", [0, 1, True], "streams"),
        ("streams", "012", "streams"),
        ("packed", [None], "'packed'.*a list of 3"),
        ("packed", [["C", 64, 70], ["F", 70, 65], "x"], "'packed' has 'x'"),
        ("packed", [["A", 64, 70], ["F", 70, 65], None], "'packed' has"),
        ("packed", [["C", 64, -70], ["F", 70, 65], None], "'packed' has"),
        ("packed", [["C", 70, 64], ["F", 70, 65], None], r"shape \(70, 64\); the parameter has \(64, 70\)"),
        ("version", 4, "versions 2 and 3 can be read"),
    ],
)
def test_a_dict_that_says_wrong_things_of_its_arrays_is_refused(key, value, message):
    opt = made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    step(opt, 0)
    saved = copy.deepcopy(opt.state_dict())
    saved["fastopt"][key] = value
    new = made(fastopt.AdamW, {"state_dtype": "8bit"}, starts(False))
    with unchanged(new, StateDictError, message):
        new.load_state_dict(saved)


def test_negative_squares_are_refused():
    plain = made(fastopt.AdamW, {}, starts(False))
    step(plain, 0)
    saved = copy.deepcopy(plain.state_dict())
    saved["state"][0]["exp_avg_sq"][5, 5] = -1e-30
    for kind in ("8bit", "bfloat16"):
        new = made(fastopt.AdamW, {"state_dtype": kind}, starts(False))
        with unchanged(new, StateDictError, "exp_avg_sq.*negative"):
            new.load_state_dict(saved, convert="lossy")


@pytest.mark.parametrize("storage", ["averaged", "split, averaged", "stochastic, averaged"])
def test_a_dict_made_where_averages_stand_is_the_same(storage, tmp_path):
    pytest.importorskip("safetensors")
    options = STORAGES[storage]
    opt = made(fastopt.AdamW, options, starts("param_dtype" in options))
    step(opt, 0, 1, 2)
    outside = frozen(opt.state_dict())
    with opt.averaged():
        assert frozen(opt.state_dict()) == outside
        opt.save(tmp_path / "run")
    new = made(fastopt.AdamW, options, copied(opt))
    new.load(tmp_path / "run")
    assert bits(new) == bits(opt)


# --- Files


def header_of(path) -> dict[str, Any]:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def test_a_file_has_the_types_of_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    opt = made(fastopt.AdamW, {**SPLIT, "state_dtype": {"exp_avg": "bfloat16", "exp_avg_sq": "8bit"}}, starts(True))
    step(opt, 0)
    opt.save(tmp_path / "run")
    header = header_of(tmp_path / "run")
    found = {name: entry["dtype"] for name, entry in header.items() if name.startswith("state.0.")}
    assert found == {"state.0.exp_avg": "BF16", "state.0.exp_avg_sq": "U8", "state.0.low": "I16"}
    document = json.loads(header["__metadata__"]["fastopt"])
    assert (document["version"], document["fastopt"]["version"]) == (2, 3)  # which earlier readers refuse by name
    read = fastopt.load(tmp_path / "run")
    assert frozen(read["state"]) == frozen({i: {n: np.ascontiguousarray(a) if a.ndim else a for n, a in e.items()}
                                            for i, e in opt.state_dict()["state"].items()})  # fmt: skip
    assert read["param_groups"][0]["state_dtype"] == {"exp_avg": "bfloat16", "exp_avg_sq": "8bit"}
    plain = made(fastopt.AdamW, {}, starts(False))
    step(plain, 0)
    plain.save(tmp_path / "plain")
    document = json.loads(header_of(tmp_path / "plain")["__metadata__"]["fastopt"])
    assert (document["version"], document["fastopt"]["version"]) == (1, 2)  # as ever


def contents(path) -> Any:
    """The header, without its digest, and the arrays. The library writes the metadata in any order."""
    header = header_of(path)
    header["__metadata__"].pop("fastopt.digest")
    raw = path.read_bytes()
    return header, raw[8 + int.from_bytes(raw[:8], "little") :]


WITHOUT = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, fastopt
params = [np.arange(6000, dtype=np.uint16), np.arange(6, dtype=np.uint16).reshape(2, 3)]
opt = fastopt.AdamW(params, lr=0.01, param_dtype="bfloat16", split=True, seed=3,
                    state_dtype={"exp_avg": "bfloat16", "exp_avg_sq": "8bit"})
opt.step([np.linspace(-1, 1, p.size, dtype=np.float32).reshape(p.shape) for p in params])
if len(sys.argv) > 2:
    opt.load(sys.argv[2])
assert opt.state[0]["exp_avg"].dtype == np.uint16
opt.save(sys.argv[1])
"""


def test_a_file_is_the_same_with_and_without_ml_dtypes(tmp_path):
    pytest.importorskip("safetensors")
    pytest.importorskip("ml_dtypes")
    here, there, again = tmp_path / "here", tmp_path / "there", tmp_path / "again"
    subprocess.run([sys.executable, "-c", WITHOUT, str(there)], check=True)
    params = [np.arange(6000, dtype=np.uint16), np.arange(6, dtype=np.uint16).reshape(2, 3)]
    kinds = {"exp_avg": "bfloat16", "exp_avg_sq": "8bit"}
    opt = fastopt.AdamW(params, lr=0.01, seed=3, state_dtype=kinds, **SPLIT)
    opt.step([np.linspace(-1, 1, p.size, dtype=np.float32).reshape(p.shape) for p in params])
    assert dtype_name(opt.state[0]["exp_avg"]) == "bfloat16" != opt.state[0]["exp_avg"].dtype.str
    opt.save(here)
    assert contents(here) == contents(there)
    before = frozen(opt.state)
    opt.load(there)
    assert frozen(opt.state) == before
    subprocess.run([sys.executable, "-c", WITHOUT, str(again), str(here)], check=True)
    assert contents(again) == contents(here)


# --- Pickles, mirrors


def test_mirrors_and_parameters_stay_the_same_arrays_in_one_pickle():
    params, mirrors = starts(True), [np.zeros(shape, np.uint16, order) for shape, order in SHAPES]
    opt = made(fastopt.AdamW, STORAGES["split, 8 bits"], params, mirrors=mirrors)
    step(opt, 0, 1)
    for again, p, m in (pickle.loads(pickle.dumps((opt, params, mirrors))), copy.deepcopy((opt, params, mirrors))):
        assert bits(again) == bits(opt) and frozen(m) == frozen(mirrors)
        before = frozen(mirrors)
        step(again, 2)
        assert again.params[0] is p[0] and frozen(again.params) == frozen(p) != frozen(params)
        assert frozen(m) != before == frozen(mirrors) and frozen(again._plan.mirrors) == frozen(m)


def test_mirrors_show_the_loaded_parameters():
    """A low half changes what a split parameter is, and so what is nearest to it in float16."""
    params, mirrors = starts(True), [np.zeros(shape, np.float16, order) for shape, order in SHAPES]
    opt = made(fastopt.AdamW, SPLIT, params, mirrors=mirrors)
    step(opt, 0, 1)
    fresh = [np.zeros_like(m) for m in mirrors]
    new = made(fastopt.AdamW, SPLIT, [p.copy("K") for p in params], mirrors=fresh)
    assert frozen(fresh) != frozen(mirrors)
    new.load_state_dict(opt.state_dict())
    assert frozen(fresh) == frozen(mirrors)


def test_a_mirror_that_was_changed_keeps_a_dict_from_being_loaded():
    mirrors = [np.zeros(shape, np.uint16, order) for shape, order in SHAPES]
    opt = made(fastopt.AdamW, SPLIT, starts(True), mirrors=mirrors)
    step(opt, 0)
    saved = copy.deepcopy(opt.state_dict())
    mirrors[2].flags.writeable = False
    with unchanged(opt, fastopt.LayoutError, "the mirror of parameter 2"):
        opt.load_state_dict(saved)


# --- For other libraries (the real ones: tests/peers/test_exchange_peers.py)


@pytest.mark.parametrize(
    ("cls", "layout", "options", "error", "message"),
    [
        (fastopt.AdamW, "numpy", {}, HyperparameterError, "layout='numpy' must be one of 'bitsandbytes', 'torchao'"),
        (fastopt.Rprop, "bitsandbytes", {}, StateDictError, "bitsandbytes has no 8-bit Rprop; it has: Adam, AdamW"),
        (fastopt.Lion, "torchao", {}, StateDictError, "torchao has no 8-bit Lion"),
        (fastopt.Adam, "bitsandbytes", {"amsgrad": True}, StateDictError, "amsgrad=True"),
        (fastopt.Adam, "bitsandbytes", {"weight_decay": 0.1}, StateDictError, "weight_decay=0.1 of another kind"),
        (fastopt.AdamW, "bitsandbytes", {"maximize": True}, StateDictError, "maximize=True"),
        (fastopt.AdamW, "torchao", {"convention": "keras"}, StateDictError, "eps_placement='outside_uncorrected'"),
        (fastopt.AdamW, "torchao", {"convention": "thinc"}, StateDictError, "eps_placement="),
        (fastopt.AdamW, "torchao", {"convention": "paper", "weight_decay": 0.1}, StateDictError, "another kind"),
        (fastopt.SGD, "bitsandbytes", {}, StateDictError, "momentum=0"),
        (fastopt.SGD, "bitsandbytes", {"momentum": 0.9, "nesterov": True}, StateDictError, "nesterov=True"),
        (fastopt.RMSprop, "bitsandbytes", {"centered": True}, StateDictError, "centered=True"),
        (fastopt.Adagrad, "bitsandbytes", {"lr_decay": 0.1}, StateDictError, "lr_decay=0.1"),
    ],
)
def test_what_another_library_does_not_have_is_no_state_dict_for_it(cls, layout, options, error, message):
    opt = build(cls, starts(False), **options)
    with unchanged(opt, error, message):
        opt.export_state_dict(layout, convert="lossy")


def test_an_export_says_that_it_loses_bits():
    opt = made(fastopt.AdamW, {}, starts(False))
    with unchanged(opt, StateDictError, "layout of bitsandbytes has state rounded to its 8 bits.*convert=\"lossy\""):
        opt.export_state_dict("bitsandbytes")


def a_dict_of_bitsandbytes(opt) -> dict[str, Any]:
    """Such a dict with arrays for tensors, which needs no PyTorch."""
    from fastopt._quantized import encode_bitsandbytes

    state = {i: {"step": int(entry["step"]), **encode_bitsandbytes(entry, ["exp_avg", "exp_avg_sq"])}
             for i, entry in enumerate(opt.state)}  # fmt: skip
    group = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-6, "weight_decay": 0.125, "alpha": 0.0, "t_alpha": None,
             "t_beta3": None, "params": [0, 1, 2]}  # fmt: skip
    return {"state": state, "param_groups": [group]}


def test_a_dict_of_bitsandbytes_brings_its_options_counts_and_numbers():
    opt = made(fastopt.AdamW, undecayed(fastopt.AdamW), starts(False))
    step(opt, 0, 1)
    saved = a_dict_of_bitsandbytes(opt)
    for cls in (fastopt.AdamW, fastopt.Adam):
        new = made(cls, {"eps_placement": "inside"}, starts(False))
        with unchanged(new, StateDictError, "state of parameter 0 is in the 8 bits of bitsandbytes.*convert=\"lossy\""):
            new.load_state_dict(saved)
        new.load_state_dict(saved, convert="lossy")
        group = new.param_groups[0]
        brought = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-6, "weight_decay": 0.125}
        brought |= {"decoupled_weight_decay": True, "eps_placement": "outside"}
        assert {key: group[key] for key in brought} == brought
        assert new.steps == 2 and not {"alpha", "t_alpha"} & {*group}
        now, then = new.state[1]["exp_avg"], opt.state[1]["exp_avg"]
        assert np.abs(now - then).max() < np.abs(then).max() / 32
        assert frozen(new.state[2]) == frozen(opt.state[2])  # fewer elements than have codes
    only = copy.deepcopy(saved)
    only["state"] = {2: only["state"][2]}
    made(fastopt.AdamW, {}, starts(False)).load_state_dict(only)  # of which nothing is lost
    rprop = made(fastopt.Rprop, {}, starts(False))
    with unchanged(rprop, StateDictError, "bitsandbytes has no 8-bit Rprop"):
        rprop.load_state_dict(saved, convert="lossy")
    for change in (lambda d: d["state"][0].pop("absmax1"), lambda d: d["param_groups"][0].update(betas=(1, 2, 3)),
                   lambda d: d["state"].update({0: 5}), lambda d: d.update(param_groups=5)):  # fmt: skip
        damaged = copy.deepcopy(saved)
        change(damaged)
        with unchanged(new, StateDictError):
            new.load_state_dict(damaged, convert="lossy")


