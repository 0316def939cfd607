"""Loading a state dict: everything is checked, then everything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.errors import StateDictError

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer


def load(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """See `Optimizer.load_state_dict`."""
    plan = optimizer._plan
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise StateDictError("a state dict has the keys 'state' and 'param_groups'")
    own = state_dict.get("fastopt", {})
    check_origin(optimizer, own)
    groups = state_dict["param_groups"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group["params"]) for group in groups] != sizes:
        raise StateDictError(
            f"the state dict has groups of {[len(g['params']) for g in groups]} parameters; the optimizer of {sizes}"
        )
    options, entries, first = [], {}, 0
    order = [i for group in groups for i in group["params"]]
    for mine, saved in zip(optimizer.param_groups, groups, strict=True):
        merged = {**mine, **{k: v for k, v in saved.items() if k not in ("params", "param_names") and v is not None}}
        if isinstance(merged.get("betas"), list):
            merged["betas"] = tuple(merged["betas"])
        last = first + len(mine["params"])
        slots = plan.check_options(merged, any(a.dtype == np.float32 for a in plan.arrays[first:last]))
        options.append(merged)
        for i in range(first, last):
            entry = state_dict["state"].get(order[i])
            if entry:
                entries[i] = check_entry(optimizer, plan.label(i), plan.arrays[i], slots, entry)
        first = last
    counts = own.get("counts")
    for k, i in enumerate(entries):
        entry = entries[i]
        if counts is not None:
            entry["step"] = as_count(counts[i], plan.label(i))
        elif entry["step"] is None:
            # PyTorch does not count here: a buffer says that at least one step was taken.
            entry["step"] = 1
    steps = as_count(own.get("steps", max((e["step"] for e in entries.values()), default=0)), "the optimizer")
    skipped = as_count(own.get("skipped_steps", 0), "the optimizer")

    # Nothing below can fail but for want of memory.
    previous = [dict(group) for group in optimizer.param_groups]
    for mine, merged in zip(optimizer.param_groups, options, strict=True):
        mine.update(merged)
    try:
        plan.refresh()
    except BaseException:
        for mine, before in zip(optimizer.param_groups, previous, strict=True):
            mine.clear()
            mine.update(before)
        raise
    plan.restart()
    for i, entry in entries.items():
        for name, array in entry["slots"].items():
            plan.states[i][name][...] = array
        plan.set_count(i, entry["step"], entry["carry"])
    if counts is not None:
        for i in set(range(len(plan.arrays))) - set(entries):
            plan.set_count(i, int(counts[i]), plan.count(i)[1])
    plan.set_steps(steps, skipped)


def check_origin(optimizer: Optimizer, own: Any) -> None:
    """Raise if the dict was saved by another optimizer, or under a convention whose state means something else."""
    if not isinstance(own, Mapping):
        raise StateDictError(f"the state dict's key 'fastopt' holds a {type(own).__name__}, not a dict")
    for key, mine in (("optimizer", type(optimizer).__name__), ("convention", optimizer.convention)):
        if own.get(key, mine) != mine:
            raise StateDictError(f"the state dict was saved with {key} {own[key]!r}; this optimizer's is {mine!r}")
    if own.get("version", 1) != 1:
        raise StateDictError(f"the state dict has version {own['version']!r}; version 1 can be read")
    counts = own.get("counts")
    if counts is not None and len(counts) != len(optimizer._plan.arrays):
        raise StateDictError(f"the state dict counts {len(counts)} parameters, not {len(optimizer._plan.arrays)}")


def check_entry(
    optimizer: Optimizer, label: str, param: np.ndarray, slots: list[str], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """One parameter's state, checked: slot arrays, step count, carried number."""
    arrays = {}
    for name in slots:
        if entry.get(name) is None:
            if not optimizer.counts_in_state:
                continue
            raise StateDictError(f"state of {label} lacks {name!r}")
        array = np.asarray(entry[name])
        if array.shape != param.shape:
            raise StateDictError(f"state {name!r} of {label} has shape {array.shape}; the parameter has {param.shape}")
        if array.dtype.kind != "f":
            raise StateDictError(f"state {name!r} of {label} has dtype {array.dtype}; a floating type is needed")
        arrays[name] = array
    step = None
    if optimizer.counts_in_state:
        if "step" not in entry:
            raise StateDictError(f"state of {label} lacks 'step'")
        step = as_count(entry["step"], label)
    try:
        carry = optimizer._carry_from(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise StateDictError(f"state of {label} cannot be read: {error!r}") from error
    return {"slots": arrays, "step": step, "carry": carry}


def as_count(value: Any, label: str) -> int:
    """A step count as an int: a number, or an array of one, that is whole and not negative."""
    try:
        number = np.asarray(value).item()
        count = int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise StateDictError(f"step {value!r} of {label} is not a number") from error
    if count != number or not 0 <= count < 2**63:
        raise StateDictError(f"step {value!r} of {label} must be a whole number, at least 0")
    return count
