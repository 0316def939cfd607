"""Checkpoint files that were cut, changed or forged: refused by a typed error, whatever happened to them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proof.scenes import check, play, played
from support import frozen, frozen_optimizer

import fastopt
from fastopt import CheckpointError, ConventionError, HyperparameterError, StateDictError, schedules

pytest.importorskip("safetensors", reason="checkpoint files need safetensors, the extra checkpoint")

BLANK = "0" * 64


# --- The format, as fastopt.checkpoint describes it


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a file, and the bytes of its arrays."""
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def sealed(header: Any, body: bytes) -> bytes:
    """A file of this header (JSON, or its text with zeros for the digest) with a digest that fits: a forger's work."""
    if not isinstance(header, str):
        with contextlib.suppress(KeyError, TypeError):          # where a forger has left no place for it
            header["__metadata__"]["fastopt.digest"] = BLANK
        header = json.dumps(header)
    text = header.replace('"fastopt.digest": ', '"fastopt.digest":').encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text
    return whole.replace(BLANK.encode(), hashlib.sha256(whole).hexdigest().encode(), 1) + body


def with_header(raw: bytes, change: Callable[[Any], Any]) -> bytes:
    """A file whose header was changed."""
    header, body = parts(raw)
    change(header)
    return sealed(header, body)


def with_document(raw: bytes, change: Callable[[Any], Any] | str) -> bytes:
    """A file whose document, the JSON in the header that is not about tensors, was changed, or is another text."""

    def anew(header: Any) -> None:
        text = change
        if not isinstance(change, str):
            document = json.loads(header["__metadata__"]["fastopt"])
            change(document)
            text = json.dumps(document)
        header["__metadata__"]["fastopt"] = text

    return with_header(raw, anew)


# --- The process that reads


def optimizer(seed: int) -> fastopt.Optimizer:
    """A small optimizer, which has of everything in its file: schedules, names, groups, both types, an average."""
    lr = schedules.Warmup(seed, schedules.Join([schedules.ReduceOnPlateau(0.1, patience=3), 0.5], [100]))
    params = [
        {"params": {"w": np.zeros(3, np.float32)}, "lr": lr, "clip_value": schedules.Linear(1.0, 0.5, 9)},
        {"params": {"b": np.zeros((2, 2))}, "ema_decay": 0.5, "ema_start": 2, "clip_norm_each": 2, "zero_grads": True},
    ]
    opt = fastopt.AdamW(params, lr=0.25, betas=(0.5, schedules.Constant(0.75)))
    opt.add_param_group({
        "params": {"h": np.zeros(3, np.uint16)}, "param_dtype": "bfloat16", "split": True,
        "state_dtype": {"exp_avg": "bfloat16", "exp_avg_sq": "bfloat16"}, "seed": seed,
    })  # fmt: skip
    rng = np.random.default_rng(seed)
    for _ in range(2):
        h = rng.normal(size=3).astype(np.float32)
        opt.step({"h": h, "w": rng.normal(size=3).astype(np.float32), "b": rng.normal(size=(2, 2))})
    return opt


class Reader:
    """Reads files in every way, and judges what comes of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "damaged.safetensors"
        self.raw, self.states = [], []
        for seed in (1, 2):
            opt = optimizer(seed)
            opt.save(self.path)
            self.raw.append(self.path.read_bytes())
            self.states.append(frozen(fastopt.load(self.path)))
            check(self.states[-1] == frozen(opt.state_dict()), "an untouched file is not read as it was")
        self.opt = optimizer(3)
        self.opt.load(self.path)                                # which imports what loading needs
        self.before = frozen_optimizer(self.opt)
        self.seen: Counter[str] = Counter()

    def refuses(self, raw: bytes, *what: Any) -> None:
        """A file that is not what was written: an error that names it, unless it is the same for all that."""
        self.write(raw)
        try:
            found = fastopt.load(self.path)
        except CheckpointError as error:
            check(str(self.path) in str(error), *what, "the error does not name the file", error)
            self.seen["refused"] += 1
            if self.seen["refused"] % 16 == 0:
                self.leaves_alone(CheckpointError, *what)
        else:
            check(frozen(found) in self.states, *what, "accepted, and is not what was saved")
            self.seen["the same"] += 1

    def write(self, raw: bytes) -> None:
        """The file, without making it anew: some file systems would bring every single one to the disk."""
        with open(self.path, "r+b") as file:
            file.write(raw)
            file.truncate()
        self.seen["files"] += 1

    def leaves_alone(self, errors: Any, *what: Any) -> None:
        """Loading the file into an optimizer is one of these errors, and changes nothing."""
        try:
            self.opt.load(self.path)
        except errors:
            check(frozen_optimizer(self.opt) == self.before, *what, "a load that failed has changed the optimizer")
        else:
            check(False, *what, "loaded")

    def survives(self, raw: bytes, *what: Any) -> bool:
        """A forged file is an error or works, and nothing else; whether it works."""
        self.write(raw)
        try:
            found = fastopt.load(self.path)
        except CheckpointError:
            self.leaves_alone(CheckpointError, *what)
            self.seen["refused"] += 1
            return False
        check(not [*strangers(found)], *what, "brought other things than data and schedules", *strangers(found))
        try:
            self.opt.load(self.path)
        except (StateDictError, HyperparameterError, ConventionError):
            check(frozen_optimizer(self.opt) == self.before, *what, "a load that failed has changed the optimizer")
            self.seen["do not fit"] += 1
            return False
        try:
            self.opt.step({"w": np.ones(3, np.float32), "b": np.ones((2, 2)), "h": np.ones(3, np.float32)})
            self.seen["loaded"] += 1
        except fastopt.FastoptError:                            # a hyperparameter for this very step
            self.seen["loaded, and refuse to step"] += 1
        self.opt = optimizer(3)
        self.before = frozen_optimizer(self.opt)
        return True


SCHEDULES = {getattr(schedules, name) for name in schedules.__all__} - {schedules.Schedule}


def strangers(value: Any) -> Iterator[str]:
    """What is in a state dict though it is neither plain data nor a schedule of the library."""
    if type(value) in SCHEDULES:
        value = vars(value)
    if type(value) in (list, tuple, dict):
        items = [*value.keys(), *value.values()] if type(value) is dict else value
        yield from itertools.chain.from_iterable(map(strangers, items))
    elif isinstance(value, (np.generic, np.ndarray)):
        if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
            yield repr(value)
    elif not isinstance(value, (type(None), bool, int, float, str)) or callable(value):
        yield repr(value)


def cuts(folder: Path) -> Counter[str]:
    """Every length that the file may have been cut to, and bytes after its end."""
    reader = Reader(folder)
    raw, other = reader.raw
    for n in range(len(raw)):
        reader.refuses(raw[:n], "cut to", n)
    for more in (b"\0", b"\n", b" ", b"\0" * 8, bytes(4096), other, raw):
        reader.refuses(raw + more, "longer by", len(more))
        reader.refuses(more + raw, "shifted by", len(more))
    check(reader.seen["refused"] == reader.seen["files"], reader.seen)
    return reader.seen


def flips(folder: Path) -> Counter[str]:
    """Every bit of the file, flipped."""
    reader = Reader(folder)
    raw = bytearray(reader.raw[0])
    for i in range(8 * len(raw)):
        raw[i // 8] ^= 1 << i % 8
        reader.refuses(bytes(raw), "flipped bit", i)
        raw[i // 8] ^= 1 << i % 8
    check(reader.seen["refused"] == reader.seen["files"], reader.seen)
    return reader.seen


# Each makes something else of a file, with the help of another.


def edited(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] = rng.choice((rng.randrange(256), 0, 0xFF, *b'"{}[]:,\\0129 '))
    return bytes(out)


def inserted(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    i, n = rng.randrange(len(raw) + 1), rng.choice((1, 1, 2, 8, 100))
    j = rng.randrange(len(other))
    return raw[:i] + rng.choice((rng.randbytes(n), bytes(n), b" " * n, other[j : j + n])) + raw[i:]


def deleted(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    i = rng.randrange(len(raw))
    return raw[:i] + raw[i + rng.choice((1, 1, 2, 8, 100)) :]


def swapped(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    n = rng.choice((1, 4, 8, 64, 300))
    i, j = sorted(rng.randrange(len(raw) - n) for _ in range(2))
    j = max(j, i + n)
    return raw[:i] + raw[j : j + n] + raw[i + n : j] + raw[i : i + n] + raw[j + n :]


def spliced(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of another: at the same place, at any place, or where the arrays begin."""
    i, j = rng.randrange(len(raw)), rng.randrange(len(other))
    ends = 8 + int.from_bytes(raw[:8], "little"), 8 + int.from_bytes(other[:8], "little")
    i, j = rng.choice(((i, i), (i, j), ends, (ends[0] + i % 97, ends[1] + i % 97)))
    return raw[:i] + other[j:]


def blanked(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """A block that never reached the disk."""
    n = rng.choice((16, 64, 512))
    i = rng.randrange(0, len(raw), n)
    return raw[:i] + bytes(len(raw[i : i + n])) + raw[i + n :]


def other_length(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    n = int.from_bytes(raw[:8], "little")
    n = rng.choice((n + rng.randrange(-64, 65), rng.getrandbits(64), rng.getrandbits(32), 0, 2**63, 2**64 - 1, 10**8))
    return (n % 2**64).to_bytes(8, "little") + raw[8:]


def other_json(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Another header that is JSON all the same, or another document in it, with the digest of the old one."""
    header, body = parts(raw)
    if rng.random() < 0.5:
        document = json.loads(header["__metadata__"]["fastopt"])
        bend(rng, document)
        header["__metadata__"]["fastopt"] = json.dumps(document)
    else:
        bend(rng, header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-320, 2**31, 2**53 + 1, 2**63, -(2**63), 2**64, 10**18, 10**400,
    "", "x", "0", "-1", "1e5", "F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "os.system",
    "__class__", "eval", "exp_avg", "state.0.exp_avg", "$schedule", BLANK, [], {}, [[]], [0], [3], [0, 12], [-1], ["x"],
    [10**18], [2**32, 2**32], {"a": 1}, {"$schedule": 0}, {"$schedule": -1}, {"$schedule": 10**9}, {"$schedule": "x"},
    {"$tuple": [0.5, 0.5]}, {"$tuple": 1}, {"$float": "nan"}, {"$float": "inf"}, {"$float": "x"}, {"$float": [1]},
    {"$dict": [[1, 2]]}, {"$dict": [[[], 2]]}, {"$array": ["<f8", [], "0" * 16]}, {"$array": ["O", [1], "0" * 16]},
    {"$array": ["<f8", [10**18], ""]}, {"$scalar": ["<f4", [], "0" * 8]}, {"$sha256": BLANK}, {"$x": 1},
    {"$a": 1, "$b": 2}, ["Constant", {"value": 0.5}], ["Constant", {"value": {"$float": "nan"}}],
    ["os.system", {"value": "true"}], ["Schedule", {}], ["Warmup", {"steps": 1, "after": {"$schedule": 0}}],
    ["ReduceOnPlateau", {"value": 1.0, "best": "x"}],
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value, with every key or index in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def bend(rng: random.Random, value: Any) -> None:
    """Put something else somewhere into a JSON value."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        there = list(places(value))
        if not there:
            return
        (where, key), (elsewhere, other) = rng.choice(there), rng.choice(there)
        kind, old = rng.randrange(8), where[key]
        if kind <= 2:
            where[key] = deepcopy(rng.choice(JUNK))
        elif kind == 3:
            del where[key]
        elif kind == 4:
            where[key] = deepcopy(elsewhere[other])
        elif kind == 5 and type(old) in (int, float):
            where[key] = rng.choice((old + 1, old - 1, -old, old * 1000, 0.1, "1"))
        elif kind == 6 and isinstance(where, dict):
            where[str(rng.choice((key + "x", key[1:], other, rng.choice(JUNK))))] = where.pop(key)
        else:
            where[key] = rng.choice(([old], {"$tuple": [old]}, {"$dict": [[0, old]]}, {str(key): old}, [old, old]))


MUTATIONS = (edited, inserted, deleted, swapped, spliced, blanked, other_length, other_json)


def mutations(folder: Path, number: int, seed: int) -> Counter[str]:
    """Files that went through one accident or several."""
    reader = Reader(folder)
    for i in range(number):
        rng = random.Random(f"{seed} {i}")
        raw, other = rng.sample(reader.raw, 2)
        for kind in rng.choices(MUTATIONS, k=rng.choice((1, 1, 1, 2, 3))):
            try:
                raw = kind(rng, raw, other) or b"\0"
            except (ValueError, KeyError, IndexError, TypeError):   # what came before left too little of the format
                continue
        reader.refuses(raw, "mutation", i, "seed", seed)
    return reader.seen


def forgeries(folder: Path, number: int, seed: int) -> Counter[str]:
    """Headers that are wrong, with digests that are right."""
    reader = Reader(folder)
    check(reader.survives(sealed(*parts(reader.raw[0]))), "a header sealed anew is refused: the tests forge nothing")
    with no_code():
        for i in range(number):
            rng = random.Random(f"{seed} {i}")
            change = with_document if rng.random() < 0.7 else with_header
            reader.survives(change(rng.choice(reader.raw), partial(bend, rng)), "forgery", i, "seed", seed)
    return reader.seen


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Whatever starts code is an error in the body."""
    random.Random("")  # from Python 3.13 on it imports a hash when first seeded with a text
    forbidden = {"exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
                 "pickle.find_class", "ctypes.dlopen", "marshal.loads", "code.__new__"}  # fmt: skip
    inside = True

    def hook(event: str, args: Any) -> None:
        if inside and event in forbidden:
            os.write(2, f"reading a file started code: {event} {args!r:.200}\n".encode())
            os._exit(3)

    sys.addaudithook(hook)
    try:
        yield
    finally:
        inside = False


# --- Forgeries one by one

TENSOR = {
    "shape": [
        [4], [2], [3, 1], [1, 3], [], [10**18], [2**63], [2**64], [2**32, 2**32], [2**62, 4], [-3], [-1], [3.0], ["3"],
        "3", None, {}, [[3]], [True], [0], [3, *[1] * 100], [3, *[1] * 10_000],
    ],
    "dtype": [
        "F64", "F16", "BF16", "I32", "U32", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "F4", "F7", "f32", "", None, 5,
    ],
    "data_offsets": [
        [0, 11], [1, 13], [24, 36], [12, 0], [-12, 0], [0, 10**18], [2**63, 2**63 + 12], [2**64 - 12, 2**64], [], [0],
        [0, 12, 24], [0.0, 12.0], ["0", "12"], None, {}, [True, 13],
    ],
}  # fmt: skip
"""Values for a field of a tensor in the header, of which none can be."""

DOCUMENTS = (
    "", "null", "[]", "{}", "1", '"x"', "{", "\0", "[" * 100_000, "[" * 100_000 + "]" * 100_000, "NaN", "1" * 5000,
    '{"a":' * 100_000 + "1" + "}" * 100_000, '{"version":1}',
)  # fmt: skip

FIELDS: tuple[tuple[tuple[Any, ...], list[Any]], ...] = (
    (("version",), [3, 0, "1", None, [1], 1e300]),
    (("state",), [None, [], 1, {"x": {}}, {"-1": {}}, {"0": []}, {"0": None}, {"9": {}}, {"0": {"exp_avg": 1}},
                  {"0": {"exp_avg": {"$sha256": BLANK}}}, {"1e999": {}}]),
    (("param_groups",), [None, {}, [], [1], [[]], [{}], "x"]),
    (("param_groups", 0, "params"), [None, [], [1], [0, 0], [[]], "0", {}]),
    (("fastopt",), [None, [1], 1, "x", {"counts": 5}]),
    (("fastopt", "counts"), [[1], [1, 1], [1, 1, 1, 1], [-1, 1, 1], ["x", 1, 1], [1.5, 1, 1], [1e400, 1, 1],
                             [10**30, 1, 1], [None, 1, 1], [[], 1, 1], {}, "111"]),
    (("fastopt", "streams"), [[0], [0, 1], [0, 1, 1], [0, 1, -1], [0, 1, 2**32], [0, 1, 2.0], [0, 1, "2"], {}, "012",
                              1]),
    (("fastopt", "steps"), [-1, "x", 2**70, {}, [1, 2], None]),
    (("fastopt", "skipped_steps"), [-1, "x"]),
    (("fastopt", "optimizer"), ["RAdam", None, 1, []]),
    (("fastopt", "convention"), ["sonnet", "", []]),
    (("fastopt", "version"), [1, 4, "2", None]),
    (("schedules",), [None, {}, 1, [], [1], [[]], [["Constant"]], [["Constant", {}]], [["Constant", {"value": 1}, 3]],
                      [["Constant", {"value": {"$schedule": 0}}]],
                      [["Warmup", {"steps": 1, "after": {"$schedule": 0}}]]]),
    (("schedules", 0), [["Schedule", {}], ["dataclass", {}], ["_as_number", {"x": 1}], ["float", {}]]),
    (("schedules", 0, 0), ["os.system", "builtins.eval", "Schedule", "ScheduleLike", "dataclass", "math", "Callable",
                           "__builtins__", "fastopt.schedules.Constant", "Step", "constant", "", None, 0, []]),
)  # fmt: skip
"""Places in the document, and values for them, of which none can be."""

VALUES = (
    {"$pickle": "gASVAAAA"}, {"$x": 1}, {"a": 1}, {}, {"$tuple": 5}, {"$tuple": None}, {"$float": "x"},
    {"$float": None}, {"$float": []}, {"$dict": [[[], 1]]}, {"$dict": [1]}, {"$dict": 1}, {"$array": 1}, {"$array": []},
    {"$array": ["O", [], "0" * 16]}, {"$array": ["V8", [], "0" * 16]}, {"$array": ["<f8", [], "zz"]},
    {"$array": ["<f8", [2], "0" * 16]}, {"$array": ["<f8", [10**18], ""]}, {"$array": ["<f8", [0, 10**30], ""]},
    {"$array": ["U1000000000", [0], ""]}, {"$array": ["<f8", [], ""]}, {"$array": ["(1000000000,)f8", [0], ""]},
    {"$array": [["f8"], [], "0" * 16]}, {"$array": ["x", [], ""]}, {"$scalar": ["<f8", [10**9], "0" * 16]},
    {"$sha256": BLANK}, {"$tuple": [0.1], "$float": "1"}, {"$float": "-" + "1" * 10_000}, {"$schedule": 99},
    {"$schedule": -99}, {"$schedule": "0"}, {"$schedule": 1.5}, {"$schedule": None}, {"$schedule": [0]},
    {"$schedule": 10**30}, "0.1", [], -1.0, 10**400,
)  # fmt: skip
"""What can be no learning rate, no pair of betas and no count."""

PLATEAU: dict[str, list[Any]] = {
    "value": ["x", None, {"$float": "nan"}, True, [1]], "mode": ["os", 1], "factor": [2.0, -1], "patience": [-1, 1.5],
    "best": ["x", []], "bad_updates": [-1], "__class__": [1], "extra": [1], "_at": [1],
}  # fmt: skip
"""What can be no field of a `ReduceOnPlateau`."""


def put(*path: Any, to: Any) -> Callable[[Any], None]:
    """A change of a JSON value: something put somewhere."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


def forged(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong, and a file in which it is so, with digests that are right."""
    header, body = parts(raw)
    tensor = "state.0.exp_avg"
    for field, values in TENSOR.items():
        for value in values:
            yield f"{field} {value!r:.40}", with_header(raw, put(tensor, field, to=value))
    second = header["state.0.exp_avg_sq"]["data_offsets"]
    yield "overlap", with_header(raw, put(tensor, "data_offsets", to=second))
    yield "tensor missing", with_header(raw, lambda h: h.pop(tensor))
    yield "tensor of another name", with_header(raw, lambda h: h.update({"state.9.exp_avg": h.pop(tensor)}))
    yield "tensor more", with_header(raw, put("more", to={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))
    start, last = max((header[key]["data_offsets"][0], key) for key in header if key != "__metadata__")
    for n in (10**18, 10**9):
        size = n * {"F32": 4, "F64": 8, "BF16": 2, "I16": 2}[header[last]["dtype"]]
        huge = {**header[last], "shape": [n], "data_offsets": [start, start + size]}
        yield f"tensor of {n}", with_header(raw, put(last, to=huge))
    yield "tensor without fields", with_header(raw, put(tensor, to={}))
    yield "tensor a list", with_header(raw, put(tensor, to=[]))
    yield "no document", with_header(raw, lambda h: h["__metadata__"].pop("fastopt"))
    for value in (None, 1, [], {}):
        yield f"document {value!r}", with_header(raw, put("__metadata__", "fastopt", to=value))

    anew = sealed(header, body)
    yield "a byte more", anew + b"\0"
    yield "a byte less", anew[:-1]
    yield "another byte", anew[:-1] + b"\x55"
    text = json.dumps({**header, "__metadata__": {**header["__metadata__"], "fastopt.digest": BLANK}})
    open_end = text[:-1]
    twin = json.dumps({**header[tensor], "dtype": "I32"})
    yield "tensor twice", sealed(f'{open_end},"{tensor}":{twin}}}', body)
    yield "metadata twice", sealed(open_end + ',"__metadata__":{"fastopt":"{}"}}', body)
    yield "digest twice", sealed(open_end + f',"x":{{"fastopt.digest":"{BLANK}"}}}}', body)
    yield "deep header", sealed(open_end + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}", body)
    yield "header that is no JSON", sealed(text.replace("{", "(", 1), body)

    for document in DOCUMENTS:
        yield f"document {document:.20}", with_document(raw, document)
    for path, values in FIELDS:
        for value in values:
            yield f"{path} {value!r:.40}", with_document(raw, put(*path, to=value))
    for key in ("version", "fastopt", "state", "param_groups", "schedules"):
        yield f"no {key}", with_document(raw, lambda d, key=key: d.pop(key))
    for value in VALUES:
        for path in (("param_groups", 0, "lr"), ("param_groups", 0, "betas"), ("state", "0", "step")):
            yield f"{path} {value!r:.50}", with_document(raw, put(*path, to=value))
    for field, values in PLATEAU.items():
        for value in values:
            made = ["ReduceOnPlateau", {"value": 0.1, field: value}]
            yield f"plateau {field} {value!r}", with_document(raw, lambda d, made=made: d["schedules"].append(made))


def one_by_one(folder: Path) -> Counter[str]:
    """No file of `forged` is loaded; none makes the process need much memory, or run code."""
    reader = Reader(folder)
    accepted = []
    with little_memory(256 << 20), no_code():
        for what, raw in forged(reader.raw[0]):
            if reader.survives(raw, what):
                accepted.append(what)
    check(not accepted, "accepted:", *accepted)
    return reader.seen


@contextlib.contextmanager
def little_memory(more: int) -> Iterator[None]:
    """No more memory than this in the body (where the system can limit it)."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def cut_while_read(folder: Path, cuts: int) -> Counter[str]:
    """A file that another process cuts, and writes again, while it is being read."""
    opt = fastopt.SGD([np.zeros(400_000, np.float32) for _ in range(8)], momentum=0.5)
    opt.step([np.ones(400_000, np.float32) for _ in range(8)])
    path, seen = folder / "run", Counter()
    opt.save(path)
    want = frozen(opt.state_dict())
    start = time.perf_counter()
    check(frozen(fastopt.load(path)) == want, "an untouched file is not read as it was")
    seconds = time.perf_counter() - start
    cutting = subprocess.Popen([sys.executable, "-c", CUT, str(path), str(cuts), str(seconds)])
    running = True
    while running:                                              # and once more when the file is whole again
        running = cutting.poll() is None
        try:
            found = fastopt.load(path)
        except CheckpointError:
            seen["refused"] += 1
        else:
            check(frozen(found) == want, "accepted, and is not what was saved")
            seen["whole"] += 1
    check(cutting.returncode == 0, "the other process failed")
    return seen


CUT = """
import os, random, sys, time
path, cuts, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
file, rng = os.open(path, os.O_RDWR), random.Random(1)
raw = os.read(file, os.path.getsize(path))
for _ in range(cuts):
    time.sleep(rng.uniform(0, 2 * seconds))
    os.truncate(file, rng.choice((0, 5, 4096, len(raw) // 2)))
    time.sleep(rng.uniform(0, 0.002))
    os.pwrite(file, raw, 0)
"""


# --- The tests


def test_a_file_cut_anywhere_or_with_bytes_added_is_refused(tmp_path, tally):
    tally("files cut or prolonged, refused", played(cuts, tmp_path)["refused"])


def test_a_file_with_any_one_bit_flipped_is_refused(tmp_path, tally):
    tally("files with one bit flipped, refused", played(flips, tmp_path)["refused"])


def test_no_accident_gives_a_file_that_is_read_as_something_else(tmp_path, amount, tally):
    seen = played(mutations, tmp_path, amount(5_000, 200_000), 1)
    assert seen["refused"] > 0.9 * seen["files"] and seen["the same"] > 0
    tally("mutated files, refused or the same", seen["files"])


def test_a_forged_file_is_refused_or_works_and_never_runs_code(tmp_path, amount, tally):
    seen = played(forgeries, tmp_path, amount(2_000, 100_000), 1)
    assert min(seen["refused"], seen["do not fit"], seen["loaded"]) > 0.01 * seen["files"]
    tally("forged files survived", seen["files"])


def test_forgeries_of_every_kind_are_refused_and_cost_no_memory(tmp_path, tally):
    tally("forged files refused", played(one_by_one, tmp_path)["files"])


@pytest.mark.skipif(os.name != "posix", reason="open files cannot be cut here")
def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path, amount):
    seen = played(cut_while_read, tmp_path, amount(25, 300))
    assert seen["refused"] > 0 and seen["whole"] > 0


if __name__ == "__main__":
    play(cuts, flips, mutations, forgeries, one_by_one, cut_while_read)
