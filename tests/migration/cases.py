"""The cases of this folder: how an optimizer is built from one, stepped, and described by its bits.

A folder of a version holds everything that its files were made from, so that this module can change and the files need
not:

``arrays.npz``
    ``start.<i>``, parameter i before the first step, and ``grad.<set>.<i>``, its gradient in a set of gradients. A
    gradient that is not there is None.
``cases.json``
    ``version`` and where it was written; ``libm``, a few results of the C library; ``cases``, by name:

    ====================== =========================================================================================
    class, convention      which optimizer
    names                  the names of the parameters, or null where they go by position
    single                 whether the optimizer was given one array, and not groups
    groups                 the indices of the parameters of each group, all its options, and keys of the user's own
    settings               what else the constructor was given
    before, after          the sets of gradients of the steps before the file was written, and after
    libm                   whether results of ``pow`` or ``cos`` are in the steps
    saved, end             parameters, state and counts, before the steps after, and behind them (see `described`)
    fastopt                what stood in the state dict under the key ``fastopt``
    ====================== =========================================================================================
``<case>.safetensors``, ``<case>.state.pickle``, ``<case>.optimizer.pickle``
    What `save` wrote; the pickle of `state_dict()`; the pickle of the optimizer, with its parameters.
``torch/``
    The same for `fastopt.torch`: ``cases.json``, and ``<case>.pt``, which `torch.save` made of the state dict.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt
from fastopt import schedules

HERE = Path(__file__).parent


class Folder(NamedTuple):
    """The cases of one version."""

    path: Path
    cases: dict[str, Any]
    arrays: Mapping[str, np.ndarray]
    same_libm: bool
    """Whether the C library here gives the results that it gave where the files were written."""


def folders(part: str = ".") -> list[Path]:
    """The folder of each version, or that part of it."""
    return sorted(found.parent for found in HERE.glob(f"*/{part}/cases.json"))


def read(path: Path) -> Folder:
    """The cases of a folder."""
    about = json.loads((path / "cases.json").read_text("utf-8"))
    arrays = path if (path / "arrays.npz").exists() else path.parent
    with np.load(arrays / "arrays.npz") as file:
        same = all(getattr(math, name)(*values).hex() == result for name, values, result in about["libm"])
        return Folder(path, about["cases"], dict(file), same)


# --- Options as JSON has them


def encoded(value: Any) -> Any:
    """An option in JSON."""
    if isinstance(value, schedules.Schedule):
        fields = {field.name: encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"schedule": type(value).__name__, "fields": fields}
    if isinstance(value, np.generic):
        return {"scalar": value.dtype.name, "value": value.item()}
    return [encoded(item) for item in value] if isinstance(value, (tuple, list)) else value


def decoded(value: Any) -> Any:
    """The option that JSON says."""
    if isinstance(value, dict) and "schedule" in value:
        return getattr(schedules, value["schedule"])(**{key: decoded(x) for key, x in value["fields"].items()})
    if isinstance(value, dict):
        return np.dtype(value["scalar"]).type(value["value"])
    return tuple(decoded(item) for item in value) if isinstance(value, list) else value


# --- Optimizers


def starts(folder: Folder, case: Mapping[str, Any]) -> list[np.ndarray]:
    """The parameters of a case before its first step, in memory of their own."""
    indices = [i for group in case["groups"] for i in group["params"]]
    return [folder.arrays[f"start.{i}"].copy("K") for i in indices]


def gradients(folder: Folder, case: Mapping[str, Any], which: Any) -> list[np.ndarray | None]:
    """A gradient for each parameter of a case."""
    return [folder.arrays.get(f"grad.{which}.{i}") for group in case["groups"] for i in group["params"]]


def grouped(case: Mapping[str, Any], params: list[np.ndarray], options: bool = True) -> Any:
    """What the constructor takes: the parameters in their groups, with or without the options of these."""
    if case["single"]:
        return params[0]
    groups, rest = [], iter(enumerate(params))
    for group in case["groups"]:
        mine = [next(rest) for _ in group["params"]]
        members = {case["names"][i]: p for i, p in mine} if case["names"] and mine else [p for _, p in mine]
        given = {key: decoded(value) for key, value in group["options"].items()} if options else {}
        groups.append({"params": members, **given})
    return groups


def build(case: Mapping[str, Any], params: list[np.ndarray]) -> fastopt.Optimizer:
    """An optimizer with all options of the case, before its first step."""
    cls = fastopt.OPTIMIZERS[case["class"]]
    options = {key: decoded(x) for key, x in case["groups"][0]["options"].items()} if case["single"] else {}
    # What has no default is given to the constructor, too; every group has a value of its own.
    needed = {key: 0.5 for key, value in cls.conventions[case["convention"]].defaults.items() if value is None}
    opt = cls(
        grouped(case, params), **{**needed, **options}, convention=case["convention"], **case["settings"]
    )  # fmt: skip
    for group, saved in zip(opt.param_groups, case["groups"], strict=True):
        group.update(saved["own_keys"])
    return opt


def step(opt: fastopt.Optimizer, folder: Folder, case: Mapping[str, Any], sets: list[Any]) -> None:
    """A step with each of these sets of gradients."""
    for which in sets:
        grads = gradients(folder, case, which)
        if case["single"]:
            opt.step(grads[0])
        else:
            opt.step(dict(zip(case["names"], grads, strict=True)) if case["names"] else grads)


# --- Bits


def hexed(array: np.ndarray) -> str:
    """Type, shape and bytes of an array: the bytes of little-endian numbers in C order."""
    kind = array.dtype.newbyteorder("<")
    return f"{kind.str} {','.join(map(str, array.shape))} {np.asarray(array, kind, order='C').tobytes().hex()}"


def unhexed(text: str) -> np.ndarray:
    """The array that `hexed` describes."""
    kind, shape, digits = text.split(" ")
    return np.frombuffer(bytes.fromhex(digits), kind).reshape([int(n) for n in shape.split(",") if n])


def described(opt: fastopt.Optimizer, case: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, state and counts of an optimizer, as `cases.json` has them: named parameters in the case's order."""
    state = [
        {name: hexed(value) if isinstance(value, np.ndarray) else value for name, value in entry.items()}
        for entry in opt.state
    ]
    params = [hexed(p) for p in opt.params]
    if case["names"]:
        names = [name for group in opt.state_dict()["param_groups"] for name in group["param_names"]]
        params, state = ([items[names.index(name)] for name in case["names"]] for items in (params, state))
    return {"params": params, "state": state, "steps": opt.steps, "skipped_steps": opt.skipped_steps}


def narrowed(found: Any, wanted: Any) -> Any:
    """`found` without the entries of dicts that `wanted` does not have: a later version may have more."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: narrowed(value, wanted[key]) for key, value in found.items() if key in wanted}
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        return [narrowed(x, y) for x, y in zip(found, wanted, strict=True)]
    return found


def near(found: Any, wanted: Any) -> bool:
    """Whether two descriptions agree but for what another C library makes of the last places."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(near(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(near, found, wanted))
    if not isinstance(wanted, str):
        return found == wanted
    a, b = unhexed(found), unhexed(wanted)
    tolerance = 2.0**-16 if b.dtype == np.float32 else 2.0**-32  # RAdam's rho is a small difference of large numbers
    return a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)
