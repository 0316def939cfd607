"""`save` and `load`: everything but the parameters in one file, the same bits afterwards, the old file until then."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import math
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ALL, ALL_IDS, build, frozen, frozen_optimizer, same_bits, three, unchanged, values

import fastopt
from fastopt import Adam, CheckpointError, ConcurrentStepError, HyperparameterError, StateDictError, engine, schedules
from fastopt.schedules import ReduceOnPlateau, Schedule, Warmup

safe = pytest.importorskip("safetensors.numpy", reason="checkpoint files need safetensors, the extra checkpoint")
posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and umask as POSIX has them")


def plain(value: Any) -> Any:
    """`frozen`, but for the memory order of arrays, which a file does not keep; it tells lists from tuples, and ints
    from bools and floats, by their types."""
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [plain(item) for item in value]
    return type(value), repr(value)


def gradients(opt: Any, seed: int) -> list[np.ndarray]:
    """One for each parameter, in its type and memory order."""
    out = [np.empty_like(p) for p in opt.params]
    for i, g in enumerate(out):
        g[...] = values(g.shape, g.dtype, seed + 100 * i)
    return out


def stepped(cls: type = Adam, convention: str | None = None, steps: int = 3, **options: Any) -> Any:
    opt = build(cls, three(), convention, **options)
    for seed in range(steps):
        opt.step(three(seed + 10))
    return opt


def twin(opt: Any) -> Any:
    """Another optimizer like this one, over copies of its parameters, that has taken no step."""
    groups, arrays = [], iter(opt.params)
    for group in opt.param_groups:
        groups.append({**group, "params": [next(arrays).copy("K") for _ in group["params"]]})
    return type(opt)(groups, convention=opt.convention)


def round_trip(opt: Any, path: Path) -> dict[str, Any]:
    """Save; what is read is what was saved, to the type and the bit."""
    opt.save(path)
    saved = fastopt.load(path)
    assert plain(saved) == plain(opt.state_dict())
    assert os.listdir(path.parent) == [path.name]
    return saved


# --- What is saved comes back

SCHEDULES = [
    schedules.Constant(0.25),
    schedules.Step(0.25, 2, gamma=0.3),
    schedules.MultiStep(0.25, [1, 3, 3], gamma=0.1),
    schedules.MultiStep(0.25, []),
    schedules.Exponential(0.25, 0.9, decay_steps=7),
    schedules.Polynomial(0.25, 40, power=2.5, end=0.01),
    schedules.Linear(0.1, 0.9, 40),
    schedules.Cosine(1 / 3, 40, end=5e-324),
    schedules.CosineRestarts(0.25, 5, period_mult=3, end=-0.0),
    schedules.InverseTime(0.25, 0.1, decay_steps=10),
    schedules.InverseSqrt(0.25, 10, start=0.1),
    schedules.EmaWarmup(1 / 3),
    schedules.OneCycle(0.25, 33, pct_start=0.45, div_factor=10, final_div_factor=1e300, anneal="linear"),
    schedules.Warmup(2**53 + 1, schedules.Cosine(0.25, 10**18)),
    schedules.Join([schedules.Linear(0.1, 0.3, 5), 0.3, Warmup(3, Warmup(2, ReduceOnPlateau(0.25)))], [2, 10**17]),
    ReduceOnPlateau(0.25, "max", 0.5, 3, 1e-3, "abs", 2, 0.01, 0.0, best=-1e300, bad_updates=2, cooldown_left=1),
]


def test_the_schedules_here_are_all_there_are():
    assert {type(s) for s in SCHEDULES} == {getattr(schedules, name) for name in schedules.__all__} - {Schedule}


def configurations(cls: type, convention: str) -> list[dict[str, Any]]:
    """Options that each bring a kind of state or of value: flags, momentum, and schedules wherever they may stand."""
    offered = cls.conventions[convention].defaults
    out: list[dict[str, Any]] = [{}, {"lr": SCHEDULES[7], "maximize": True, "flush_subnormal": False}]
    if "betas" in offered:
        out.append({"betas": (schedules.Linear(0.25, 0.75, 6), 0.75)})
    if "momentum" in offered:
        out += [{"momentum": 0.75}, {"momentum": schedules.Linear(0.25, 0.75, 6)}]
    if "weight_decay" in offered:
        out.append({"weight_decay": ReduceOnPlateau(0.25)})
    out += [{key: True} for key in ("amsgrad", "centered") if key in offered]
    if "initial_accumulator_value" in offered:
        out.append({"initial_accumulator_value": 1 / 3})
    return out


@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_a_loaded_optimizer_continues_bit_for_bit(cls, convention, tmp_path, tally):
    """Groups of both types and orders, one of them empty, one parameter skipped, before the first step and after."""
    for options in configurations(cls, convention):
        params = three()
        groups = [{"params": params[:2]}, {"params": []}, {"params": params[2:], "lr": 0.125}]
        opt = build(cls, groups, convention, **options)
        for steps in range(4):
            if steps:
                opt.step([three(steps)[0], None, three(steps)[2]] if steps == 2 else three(steps))
            saved = round_trip(opt, tmp_path / "run.safetensors")
            other, third = twin(opt), twin(opt)
            other.load(tmp_path / "run.safetensors")
            third.load_state_dict(copy.deepcopy(opt.state_dict()))
            assert frozen_optimizer(other) == frozen_optimizer(third) == frozen_optimizer(opt)
            assert all(array.flags.writeable for entry in saved["state"].values() for array in entry.values())
            tally("checkpoints written, read and compared to the bit")
        for seed in range(3):
            opt.step(three(seed + 20))
            other.step(three(seed + 20))
        assert frozen_optimizer(other) == frozen_optimizer(opt), options


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_come_back_as_equal_objects(schedule, tmp_path):
    opt = stepped(lr=schedule, betas=(0.5, schedules.Constant(0.75)))
    saved = round_trip(opt, tmp_path / "run")
    back = saved["param_groups"][0]["lr"]
    assert back == schedule and type(back) is type(schedule) and back is not schedule
    assert [back(k) for k in range(50)] == [schedule(k) for k in range(50)]


def test_a_plateau_goes_on_where_it_was_and_stays_one_object_where_groups_share_it(tmp_path):
    mine, *_ = plateaus = ReduceOnPlateau(0.5, patience=2, cooldown=1), ReduceOnPlateau(0.5, patience=2, cooldown=1)
    opt = Adam([{"params": values(), "lr": mine}, {"params": values(), "lr": mine}, {"params": [], "lr": plateaus[1]}])
    mine.update(1.0), mine.update(2.0)
    groups = round_trip(opt, tmp_path / "run")["param_groups"]
    assert groups[0]["lr"] is groups[1]["lr"] is not groups[2]["lr"]
    for metric in (3.0, 0.5, 4.0, 4.0, 4.0, math.nan, 5.0, 5.0):
        assert groups[0]["lr"].update(metric) == mine.update(metric)
        assert groups[0]["lr"] == mine
    opt.param_groups[0]["lr"] = warmup = Warmup(5, mine)        # shared from within another
    groups = round_trip(opt, tmp_path / "run")["param_groups"]
    assert groups[0]["lr"] == warmup and groups[0]["lr"].after is groups[1]["lr"]


@pytest.mark.parametrize("metric", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_that_has_seen_anything_comes_back_or_is_refused(metric, mode, tmp_path):
    plateau = ReduceOnPlateau(0.5, mode)
    plateau.update(metric)
    opt = stepped(lr=plateau)
    try:
        opt.save(tmp_path / "run")
    except CheckpointError as error:
        assert "param_groups[0]" in str(error) and "lr" in str(error) and os.listdir(tmp_path) == []
    else:
        assert fastopt.load(tmp_path / "run")["param_groups"][0]["lr"] == plateau


@pytest.mark.parametrize("names", [["w", "b"], ["", "ü\u2028\0\"\\"], ["x" * 5000, "\ud800"], [0, 1], [("a", 1), None]])
def test_names_of_parameters(names, tmp_path):
    opt = Adam(dict(zip(names, [values(), values((0, 3))], strict=True)))
    opt.step(dict.fromkeys(names))
    opt.step({names[0]: values(), names[1]: None})
    saved = round_trip(opt, tmp_path / "run")
    assert saved["param_groups"][0]["param_names"] == names
    opt.load(tmp_path / "run")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes(shape, order, dtype, tmp_path):
    opt = Adam([values(shape, dtype).copy(order), values((3, 2))])
    for seed in range(2):
        opt.step([values(shape, dtype, seed).copy(order), values((3, 2))])
    round_trip(opt, tmp_path / "run")
    other = Adam([values(shape, dtype).copy("C"), values((3, 2))])
    other.load(tmp_path / "run")                               # in whatever order the parameters are here
    assert plain(other.state_dict()) == plain(opt.state_dict())


def test_more_parameters_than_ten_keep_their_order(tmp_path):
    opt = Adam([values((i,)) for i in range(123)])
    opt.step([values((i,), seed=1) if i % 3 else None for i in range(123)])
    saved = round_trip(opt, tmp_path / "run")
    assert list(saved["state"]) == list(opt.state_dict()["state"])


@pytest.mark.parametrize("count", [2**24, 2**24 + 1, 2**53 + 1, 2**63 - 2**32])
@pytest.mark.parametrize("cls", [Adam, fastopt.SGD, fastopt.NAdam])
def test_counts_of_any_size(count, cls, tmp_path):
    opt = stepped(cls)
    saved = opt.state_dict()
    saved["fastopt"].update(counts=[count, 1, count - 1], steps=count, skipped_steps=count - 2)
    opt.load_state_dict(saved)
    round_trip(opt, tmp_path / "run")
    other = stepped(cls)
    other.load(tmp_path / "run")
    assert [entry["step"] for entry in other.state] == [count, 1, count - 1]
    assert (other.steps, other.skipped_steps) == (count, count - 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_kind_of_number_in_the_state(dtype, nasties, tmp_path):
    """Down to the payload of NaNs, signalling ones and the sign of zero."""
    numbers = nasties.nasty(dtype)
    bits = {4: np.uint32, 8: np.uint64}[numbers.itemsize]
    payload = np.array([1, 2**22, 12345], bits) | np.array([np.inf, -np.inf, np.nan], dtype).view(bits)
    numbers = np.concatenate([numbers, payload.view(dtype)])
    opt = Adam(np.zeros_like(numbers), amsgrad=True)
    opt.step(np.zeros_like(numbers))
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        opt.state[0][name].view(bits)[...] = numbers.view(bits)
    round_trip(opt, tmp_path / "run")
    other = Adam(np.zeros_like(numbers), amsgrad=True)
    other.load(tmp_path / "run")
    assert all(other.state[0][name].tobytes() == numbers.tobytes() for name in ("exp_avg", "max_exp_avg_sq"))


ODD = {
    "float": [0.1, 5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf, math.nan],
    "int": [True, False, 0, -1, 2**53 + 1, 10**400, -(2**63)],
    "numpy": [np.float32(0.1), np.float64(0.1), np.float16(0.1), np.int64(-3), np.uint8(255), np.bool_(True),
              np.array(0.1), np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)),
              np.array([], np.float32), np.array([[True], [False]])],
    "text": ["", "a\0b", "ü", "\ud800", "\u2028\"\\", "x" * 100_000, "$float", '"fastopt.digest":"' + "0" * 64 + '"'],
    "nested": [None, [], (), {}, [1, (2.0, [None, ("a",)])], {"$float": "1"}, {"$schedule": 0}, {1: {2.5: (3,)}},
               {None: 1, True: 2, (1, "a"): 3}, [schedules.Constant(0.5), (ReduceOnPlateau(0.5),)]],
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_whatever_else_a_group_holds_keeps_its_type(kind, tmp_path):
    """A key that fastopt does not know, such as PyTorch's "initial_lr"; numbers also where a hyperparameter is."""
    for value in ODD[kind]:
        opt = stepped()
        opt.param_groups[0]["tag"] = value
        assert plain(round_trip(opt, tmp_path / "run")["param_groups"][0]["tag"]) == plain(value), repr(value)
    opt.param_groups[0].update(lr=np.float32(0.1), eps=np.array(1e-3), betas=[0.5, np.float64(0.75)])
    round_trip(opt, tmp_path / "run")


def test_the_file_is_an_ordinary_safetensors_file(tmp_path):
    opt = stepped()
    opt.save(tmp_path / "run.safetensors")
    tensors = safe.load_file(tmp_path / "run.safetensors")
    want = {f"state.{i}.{k}": a for i, e in opt.state_dict()["state"].items() for k, a in e.items() if k != "step"}
    assert set(tensors) == set(want) and all(tensors[name].tobytes() == want[name].tobytes() for name in want)
    document = json.loads(metadata_of(tmp_path / "run.safetensors")["fastopt"])
    assert document["fastopt"] == opt.state_dict()["fastopt"]


def metadata_of(path: Path) -> dict[str, str]:
    """As any reader of safetensors files gets it."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_the_same_state_gives_the_same_document(tmp_path):
    texts = set()
    for _ in range(3):
        stepped(lr=ReduceOnPlateau(0.5)).save(tmp_path / "run")
        texts.add(metadata_of(tmp_path / "run")["fastopt"])
    assert len(texts) == 1


@pytest.mark.parametrize("convert", [str, Path, os.fsencode, os.fspath], ids=["str", "Path", "bytes", "fspath"])
def test_paths_of_every_kind(convert, tmp_path, monkeypatch):
    opt = stepped()
    for name in ("run", "läufe 1.safetensors", "*?" * (os.name == "posix") + "[a]", "-", ".hidden"):
        opt.save(convert(tmp_path / name))
        assert plain(fastopt.load(convert(tmp_path / name))) == plain(opt.state_dict())
        stepped().load(convert(tmp_path / name))
        os.remove(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    opt.save("here")
    assert os.listdir() == ["here"]
    assert plain(fastopt.load("here")) == plain(opt.state_dict())


def test_a_name_as_long_as_the_file_system_has(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") if hasattr(os, "pathconf") else 200
    round_trip(stepped(), tmp_path / ("x" * longest))
    with pytest.raises(OSError):
        stepped().save(tmp_path / ("y" * (longest + 1)))
    assert os.listdir(tmp_path) == ["x" * longest]


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    opt = stepped()
    saved = round_trip(opt, tmp_path / "run")
    before = plain(saved)
    with open(tmp_path / "run", "r+b") as file:     # in place: a view of a mapped file would show it
        file.write(bytes(os.path.getsize(tmp_path / "run")))
    assert plain(saved) == before


# --- The same run, elsewhere


def test_a_run_goes_on_with_other_threads_and_at_every_level(nasties, tmp_path):
    def start(n_threads: int) -> Any:
        params = [values((40_000,)), values((33, 5), np.float64).copy("F")]
        return fastopt.AdamW(params, lr=Warmup(3, schedules.Cosine(0.1, 9)), amsgrad=True, n_threads=n_threads)

    straight = start(1)
    with nasties.parallel_from(0):
        for level in engine.available_levels():
            for before, after in ((1, 2), (2, 1), (3, 3)):
                first, straight = start(before), start(1)
                for seed in range(8):
                    straight.step(gradients(straight, seed))
                for seed in range(4):
                    first.step(gradients(first, seed))
                first.save(tmp_path / "run")
                with nasties.level(level):
                    second = start(after)
                for p, q in zip(second.params, first.params, strict=True):
                    p[...] = q
                second.load(tmp_path / "run")
                for seed in range(4, 8):
                    second.step(gradients(second, seed))
                assert same_bits(second.params, straight.params), (level, before, after)
                assert frozen(second.state_dict()) == frozen(straight.state_dict())


def test_state_in_a_mapped_file_is_what_the_file_holds(tmp_path):
    """`state_factory` with numpy.memmap: a flush brings the state into it, and a checkpoint of it is as any other."""
    made: dict[str, np.memmap] = {}

    def factory(name: str, shape: tuple[int, ...], dtype: Any) -> np.memmap:
        path = tmp_path / f"{len(made)}.{name}"
        made[str(path)] = np.memmap(path, dtype, "w+", shape=shape)
        return made[str(path)]

    params = [values((30, 5)), values((7,), np.float64)]
    opt = Adam(params, amsgrad=True, state_factory=factory)
    plain_one = Adam([p.copy() for p in params], amsgrad=True)
    for seed in range(5):
        opt.step(gradients(opt, seed))
        plain_one.step(gradients(plain_one, seed))
    for array in made.values():
        array.flush()
    assert len(made) == 6
    state = [array for entry in opt.state for name, array in entry.items() if name != "step"]
    for array in state:
        held = [path for path, mapped in made.items() if np.shares_memory(mapped, array)]
        assert len(held) == 1 and Path(held[0]).read_bytes() == array.tobytes()
    (tmp_path / "checkpoint").mkdir()
    saved = round_trip(opt, tmp_path / "checkpoint" / "run")
    assert plain(saved) == plain(plain_one.state_dict())
    for array in made.values():
        array[...] = 0
    opt.load(tmp_path / "checkpoint" / "run")                      # into the mapped memory
    for path, array in made.items():
        array.flush()
        assert np.fromfile(path, array.dtype).any()
    assert plain(opt.state_dict()) == plain(plain_one.state_dict())


def test_the_skipped_steps_and_those_of_skipped_parameters_come_back(tmp_path):
    opt = stepped(nonfinite="skip")
    opt.step([three()[0], None, None])
    opt.step([None, None, np.full(7, np.nan)])
    round_trip(opt, tmp_path / "run")
    other = stepped(steps=9)
    other.load(tmp_path / "run")
    assert [entry["step"] for entry in other.state] == [4, 3, 3] and (other.steps, other.skipped_steps) == (4, 1)


# --- What cannot be written


class Thing:
    pass


@dataclasses.dataclass(frozen=True)
class OwnSchedule(schedules.Constant):
    """A schedule that the library does not have, though it derives from one that it has."""


class Text(str):
    pass


def not_plain() -> list[tuple[str, Any]]:
    """Keys of a group and values that no file can hold."""
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 0.25
    for _ in range(5000):
        deep = Warmup(1, deep)
    return [
        ("lr", lambda step: 0.1), ("lr", OwnSchedule(0.1)), ("lr", Warmup(3, lambda step: 0.1)), ("lr", math.sqrt),
        ("betas", (0.5, lambda step: 0.5)), ("weight_decay", schedules.Join([0.1, abs], [3])), ("tag", Thing()),
        ("tag", {1, 2}), ("tag", b"bytes"), ("tag", 1j), ("tag", np.array([1j])), ("tag", np.array([None])),
        ("tag", np.array(["a"])), ("tag", np.zeros(2, "f4,i4")), ("tag", np.datetime64(1, "s")), ("tag", Thing),
        ("tag", [1, {"a": (Thing(),)}]), ("tag", {frozenset(): 1}), ("tag", Text("a")), ("tag", range(3)),
        ("tag", np.ma.masked_array([1.0, 2.0], [True, False])), ("tag", loop), ("lr", deep), ("tag", 10**5000),
    ]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), not_plain(), ids=lambda x: type(x).__name__ if not isinstance(x, str) else x)
def test_what_cannot_be_written_is_named_and_the_old_file_stays(key, value, tmp_path):
    opt = stepped()
    opt.save(tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    opt.add_param_group({"params": values((3,))})
    opt.param_groups[1][key] = value
    opt.step([*three(), values((3,))]) if key == "tag" else None
    for path in ("run", "new"):
        with pytest.raises(CheckpointError) as caught:
            opt.save(tmp_path / path)
        assert isinstance(caught.value, fastopt.FastoptError) and isinstance(caught.value, ValueError)
        assert "param_groups[1]" in str(caught.value) and repr(key) in str(caught.value), caught.value
    assert os.listdir(tmp_path) == ["run"] and (tmp_path / "run").read_bytes() == before
    opt.param_groups[1].update(lr=0.1, betas=(0.5, 0.75), weight_decay=0.0, tag=1)
    round_trip(opt, tmp_path / "run")


@pytest.mark.parametrize("key", [1, None, ("a",), b"lr", Thing()], ids=lambda key: type(key).__name__)
def test_keys_of_a_group_that_are_no_strings(key, tmp_path):
    opt = stepped()
    opt.param_groups[0][key] = 1
    with pytest.raises(CheckpointError, match="group"):
        opt.save(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_what_could_not_be_read_is_not_written(tmp_path):
    """Headers of safetensors end at 100 MB."""
    opt = stepped()
    opt.save(tmp_path / "run")
    opt.param_groups[0]["tag"] = "x" * 100_000_001
    with pytest.raises(CheckpointError):
        opt.save(tmp_path / "run")
    del opt.param_groups[0]["tag"]
    assert plain(fastopt.load(tmp_path / "run")) == plain(opt.state_dict()) and os.listdir(tmp_path) == ["run"]


# --- What cannot be read, or does not fit


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    opt = stepped()
    for read in (fastopt.load, opt.load):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "run")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "no" / "run")
        with pytest.raises(OSError):
            read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0", b"{}", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(1000), b"\xff" * 64])
def test_other_files_are_refused_by_name(content, tmp_path):
    (tmp_path / "other.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="other.bin"):
        fastopt.load(tmp_path / "other.bin")
    opt = stepped()
    with unchanged(opt, CheckpointError, "other.bin"):
        opt.load(tmp_path / "other.bin")


def test_safetensors_files_of_others_are_refused(tmp_path):
    for metadata in (None, {"format": "pt"}, {"fastopt": "{}"}, {"fastopt": "{}", "fastopt.digest": "0" * 64}):
        safe.save_file({"weight": values()}, tmp_path / "model.safetensors", metadata)
        with pytest.raises(CheckpointError, match="model.safetensors"):
            fastopt.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: fastopt.RAdam(three()), StateDictError),
        (lambda: Adam(three()[:2]), StateDictError),
        (lambda: Adam([p.ravel(order="K")[1:] for p in three()]), StateDictError),
        (lambda: Adam([values((2, 10)), *three()[1:]]), StateDictError),
        (lambda: Adam([{"params": three()[:1]}, {"params": three()[1:]}]), StateDictError),
        (lambda: Adam(three(), amsgrad=True), None),
    ],
    ids=["class", "number", "size", "shape", "groups", "option"],
)
def test_a_file_that_does_not_fit_is_checked_as_a_state_dict_is(make, error, tmp_path):
    stepped().save(tmp_path / "run")
    opt = make()
    opt.step([np.ones_like(p) for p in opt.params])
    if error is None:                           # options are replaced by the saved ones
        opt.load(tmp_path / "run")
        assert opt.param_groups[0]["amsgrad"] is False
        return
    with unchanged(opt, error):
        opt.load(tmp_path / "run")


def test_hyperparameters_of_a_file_are_checked(tmp_path):
    opt = stepped()
    opt.param_groups[0]["lr"] = -1.0
    opt.save(tmp_path / "run")
    other = stepped(steps=1)
    with unchanged(other, HyperparameterError, "lr"):
        other.load(tmp_path / "run")


# --- The file in its folder


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o027])
def test_a_new_file_has_the_mode_of_new_files_and_a_replaced_one_keeps_its_own(mask, tmp_path):
    before = os.umask(mask)
    try:
        (tmp_path / "ordinary").touch()
        stepped().save(tmp_path / "run")
        assert mode(tmp_path / "run") == mode(tmp_path / "ordinary")
        for own in (0o600, 0o640, 0o666, 0o755):
            os.chmod(tmp_path / "run", own)
            stepped().save(tmp_path / "run")
            assert mode(tmp_path / "run") == own
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@posix
def test_what_a_link_leads_to_is_replaced(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir(), here.mkdir()
    os.symlink("../there/run", here / "link")                  # first to nothing, then to a file, then over two links
    os.symlink("link", here / "second")
    for name in ("link", "link", "second"):
        opt = stepped()
        opt.save(here / name)
        assert sorted(os.listdir(here)) == ["link", "second"] and os.listdir(there) == ["run"]
        assert os.path.islink(here / "link") and os.path.islink(here / "second")
        assert not os.path.islink(there / "run") and plain(fastopt.load(there / "run")) == plain(opt.state_dict())
    os.symlink("loop", here / "loop")
    with pytest.raises(OSError):
        stepped().save(here / "loop")


@posix
def test_a_hard_link_keeps_the_old_state(tmp_path):
    first, second = stepped(steps=1), stepped(steps=2)
    first.save(tmp_path / "run")
    os.link(tmp_path / "run", tmp_path / "kept")
    second.save(tmp_path / "run")
    assert plain(fastopt.load(tmp_path / "kept")) == plain(first.state_dict())
    assert plain(fastopt.load(tmp_path / "run")) == plain(second.state_dict())


def test_places_that_no_file_can_have(tmp_path):
    opt = stepped()
    with pytest.raises(FileNotFoundError):
        opt.save(tmp_path / "no" / "run")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(NotADirectoryError if os.name == "posix" else OSError):
        opt.save(tmp_path / "file" / "run")
    (tmp_path / "folder").mkdir()
    with pytest.raises((CheckpointError, OSError)):
        opt.save(tmp_path / "folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises((CheckpointError, OSError)):
            opt.save(tmp_path / "pipe")
        assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert set(os.listdir(tmp_path)) <= {"file", "folder", "pipe"}
    assert (tmp_path / "file").read_bytes() == b"mine" and os.listdir(tmp_path / "folder") == []


@posix
def test_a_folder_or_file_that_may_not_be_written(tmp_path):
    opt = stepped(steps=1)
    opt.save(tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    os.chmod(tmp_path / "run", 0o444)
    if os.access(tmp_path / "run", os.W_OK):
        pytest.skip("who runs this may write anywhere, as root")
    for path, allowed, back in ((tmp_path / "run", 0o444, 0o644), (tmp_path, 0o555, 0o755)):
        os.chmod(path, allowed)
        try:
            with pytest.raises(PermissionError):
                stepped().save(tmp_path / "run")
        finally:
            os.chmod(path, back)
    assert os.listdir(tmp_path) == ["run"] and (tmp_path / "run").read_bytes() == before
    os.chmod(tmp_path / "run", 0)
    with pytest.raises(PermissionError):
        fastopt.load(tmp_path / "run")


@posix
def test_what_lies_in_the_way_of_temporaries_does_not_hold_up_a_save(tmp_path, monkeypatch):
    """Such as what a killed save of another user left, which may not even be looked at."""
    opt = stepped()
    opt.save(tmp_path / "run")
    left = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *args: left.extend(os.listdir(tmp_path)) or interrupt())
        opt.save(tmp_path / "run")
    (left,) = set(left) - {"run"}                               # what temporaries are called
    (tmp_path / left).mkdir(0o700)
    opened = os.open

    def refusing(path: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(str(tmp_path / left)):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        opt.save(tmp_path / "run")
    assert plain(fastopt.load(tmp_path / "run")) == plain(opt.state_dict())
    assert sorted(os.listdir(tmp_path)) == sorted([left, "run"])
    opt.save(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupted_save_leaves_nothing_and_the_optimizer_usable(tmp_path, monkeypatch):
    opt = stepped()
    opt.save(tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    opt.step(three())
    for name in ("fsync", "chmod", "replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, name, interrupt)
            opt.save(tmp_path / "run")
        assert os.listdir(tmp_path) == ["run"] and (tmp_path / "run").read_bytes() == before, name
    opt.step(three())
    round_trip(opt, tmp_path / "run")


# --- Other threads, and the missing library


def test_a_step_and_a_save_at_once_are_refused_and_nothing_is_half_saved(tmp_path):
    """Whoever comes second gets the error; a file is of a moment between steps."""
    opt = Adam([np.zeros(200_000) for _ in range(2)], lr=0.5, betas=(0.0, 0.0), n_threads=1)
    opt.step([np.full(200_000, 1.0)] * 2)
    refused, failures, stop = [0, 0], [], threading.Event()

    def step() -> None:
        k = 2
        while not stop.is_set():
            try:
                opt.step([np.full(200_000, float(k))] * 2)
                k += 1
            except ConcurrentStepError:
                refused[0] += 1
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=step)
    thread.start()
    saves = 0
    try:
        for _ in range(2000):
            try:
                opt.save(tmp_path / "run")
            except ConcurrentStepError:
                refused[1] += 1
                time.sleep(0.001 * (refused[1] % 7))            # or it would be too early again and again
                continue
            saved = fastopt.load(tmp_path / "run")
            count = saved["fastopt"]["steps"]
            assert saved["fastopt"]["counts"] == [count, count]
            for entry in saved["state"].values():
                assert (entry["exp_avg"] == count).all() and entry["step"] == count
            saves += 1
            if saves >= 10 and sum(refused):
                break
    finally:
        stop.set()
        thread.join()
    assert not failures and saves and sum(refused)


def test_a_schedule_that_saves_its_optimizer_is_refused(tmp_path):
    opt = stepped()

    def schedule(step: int) -> float:
        opt.save(tmp_path / "run")
        return 0.1

    opt.param_groups[0]["lr"] = schedule
    with unchanged(opt, ConcurrentStepError):
        opt.step(three())
    assert os.listdir(tmp_path) == []


def test_two_threads_that_save_to_one_path_leave_a_whole_file(tmp_path):
    """Of two optimizers; one of them comes last."""
    opts = [stepped(steps=k + 1) for k in range(2)]
    allowed = [plain(opt.state_dict()) for opt in opts]
    failures: list[BaseException] = []

    def saves(opt: Any) -> None:
        try:
            for _ in range(40):
                opt.save(tmp_path / "run")
                assert plain(fastopt.load(tmp_path / "run")) in allowed
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=saves, args=(opt,)) for opt in opts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert os.listdir(tmp_path) == ["run"]


def test_without_safetensors_saving_names_the_extra_and_loading_works(tmp_path):
    opt = fastopt.Adam(np.zeros(3))
    opt.step(np.ones(3))
    opt.save(tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    code = """
import sys
sys.modules["safetensors"] = sys.modules["safetensors.numpy"] = None
import numpy as np, fastopt
opt = fastopt.Adam(np.zeros(3))
opt.step(np.ones(3))
opt.load(sys.argv[1])
assert opt.steps == fastopt.load(sys.argv[1])["fastopt"]["steps"] == 1
try:
    opt.save(sys.argv[1])
except fastopt.MissingExtraError as error:
    assert isinstance(error, ImportError) and "fastopt[checkpoint]" in str(error), error
else:
    raise AssertionError
opt.step(np.ones(3))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run").read_bytes() == before and os.listdir(tmp_path) == ["run"]


def test_safetensors_is_not_imported_before_it_is_needed():
    code = "import sys, numpy as np, fastopt; fastopt.Adam(np.zeros(3)).step(np.ones(3)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fastopt" in done.stdout.split() and "safetensors" not in done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="what only POSIX systems have")
def test_what_only_looks_like_a_leftover_is_left_alone_and_holds_nothing_up(tmp_path):
    (tmp_path / ".run.backup.saving").mkdir()
    (tmp_path / ".run.backup.saving" / "precious").write_text("mine")
    (tmp_path / ".run.12345678.saving").mkdir()
    (tmp_path / ".run.12345678.saving" / "precious").write_text("mine")
    os.mkfifo(tmp_path / ".run.abcdefgh.saving")
    os.symlink(tmp_path / ".run.backup.saving", tmp_path / ".run.zzzzzzzz.saving")
    before = sorted(os.listdir(tmp_path))
    opt = fastopt.Adam(np.zeros(3))
    opt.step(np.ones(3))
    opt.save(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "run"])
    assert [path.read_text() for path in sorted(tmp_path.glob(".run.*.saving/precious"))] == ["mine"] * 3
    assert fastopt.load(tmp_path / "run")["fastopt"]["steps"] == 1


def test_a_header_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    from fastopt import checkpoint

    opt = fastopt.Adam(np.zeros(3))
    opt.save(tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    monkeypatch.setattr(checkpoint, "LARGEST_HEADER", 100)
    with pytest.raises(CheckpointError, match=r"run would need a header of [\d,]+ bytes; 100 can be read"):
        opt.save(tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == before and os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("answer", ["EINVAL", "EIO"])
def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch, answer):
    """Where there is no such thing, it is done without; where the disk fails, it is told, and the file is whole."""
    sync = os.fsync

    def fails_for_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(getattr(errno, answer), os.strerror(getattr(errno, answer)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_for_folders)
    opt = fastopt.Adam(np.zeros(3))
    opt.step(np.ones(3))
    with contextlib.nullcontext() if answer == "EINVAL" else pytest.raises(OSError, match="Input/output"):
        opt.save(tmp_path / "run")
    assert fastopt.load(tmp_path / "run")["fastopt"]["steps"] == 1 and os.listdir(tmp_path) == ["run"]


def test_what_a_subclass_adds_to_its_state_dict_is_not_lost_in_silence(tmp_path):
    class Averaged(fastopt.Adam):
        def state_dict(self):
            return {**super().state_dict(), "ema": np.zeros(3)}

    with pytest.raises(CheckpointError, match="'ema'"):
        Averaged(np.zeros(3)).save(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_a_folder_as_path_is_no_name_for_a_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        fastopt.Adam(np.zeros(3)).save(f"{tmp_path}/new/")


def test_a_save_that_cannot_begin_removes_nothing_where_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("new", ".tmp123"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileNotFoundError):
        fastopt.Adam(np.zeros(3)).save("missing/run")
    assert sorted(os.listdir(tmp_path)) == [".tmp123", "new"]
