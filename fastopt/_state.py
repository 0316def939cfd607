"""Loading a state dict: everything is checked, then everything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastopt.engine import as_values, is_number, shown
from fastopt.errors import FastoptError, StateDictError

LARGEST = 2**63 - 2**32  # a count that a 64-bit integer holds, with room for the steps to come

if TYPE_CHECKING:
    from fastopt.engine import Plan
    from fastopt.optimizer import Optimizer


def load(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """See `Optimizer.load_state_dict`."""
    optimizer._plan.run(_load, optimizer, state_dict)


def _load(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    plan = optimizer._plan
    n = len(plan.arrays)
    expect(state_dict, Mapping, "a state dict")
    if not {"state", "param_groups"} <= set(state_dict):
        raise StateDictError("a state dict has the keys 'state' and 'param_groups'")
    own = expect(state_dict.get("fastopt", {}), Mapping, "the state dict's 'fastopt'")
    saved_groups, order = check_groups(optimizer, state_dict["param_groups"])
    check_origin(optimizer, own)
    saved_state = expect(state_dict["state"], Mapping, "the state dict's 'state'")
    listed = set(order)
    for key in saved_state:
        if key not in listed:
            raise StateDictError(f"the state dict has state for {key!r}, which is in none of its groups")

    entries = {}
    for i, key in enumerate(order):
        entry = saved_state.get(key)
        if entry is not None and expect(entry, Mapping, f"the state of {plan.label(i)}"):
            entries[i] = entry
    # PyTorch does not count for every optimizer; there, a state says that at least one step was taken.
    counts = [saved_count(optimizer, plan.label(i), entries.get(i)) for i in range(n)]
    if "counts" in own:
        counts = [as_count(count, plan.label(i)) for i, count in enumerate(own["counts"])]
    steps = as_count(own.get("steps", max(counts, default=0)), "the optimizer")
    skipped = as_count(own.get("skipped_steps", 0), "the optimizer")
    options: list[dict[str, Any]] = []
    held: list[set[str]] = []  # per group, the state slots that the dict has
    first = 0
    for mine, saved, params in zip(optimizer.param_groups, saved_groups, optimizer._originals, strict=True):
        merged = {**mine, **{k: v for k, v in saved.items() if k not in ("params", "param_names") and v is not None}}
        if isinstance(merged.get("betas"), list):
            merged["betas"] = tuple(merged["betas"])
        last = first + len(params)
        slots = plan.check_options(merged, any(a.dtype == np.float32 for a in plan.arrays[first:last]), steps)
        options.append(merged)
        held.append(set())
        for i in range(first, last):
            if i in entries:
                entries[i] = check_entry(optimizer, plan.label(i), plan.arrays[i], slots, entries[i])
                held[-1].update(entries[i]["slots"])
        first = last
    records = [
        (entry["carry"], {name: fitting(plan, i, array) for name, array in entry["slots"].items()})
        if (entry := entries.get(i)) is not None
        else None
        for i in range(n)
    ]
    plan.resume(options, [sorted(names) for names in held], records, counts, steps, skipped)


def fitting(plan: Plan, i: int, array: np.ndarray) -> np.ndarray:
    """State in the type and memory order of parameter i, and not in memory that loading writes to."""
    param = plan.arrays[i]
    order: Literal["C", "F"] = "C" if param.flags.c_contiguous else "F"
    with np.errstate(all="ignore"):  # a cast may overflow, which is not an error
        fit = np.require(array, param.dtype, ["ENSUREARRAY", "ALIGNED", order])
    # A state_factory, which has its turn after this, may hand out or change this very memory.
    return fit.copy(order) if plan.state_factory is not None or plan.touches(fit) else fit


def expect(value: Any, kind: Any, what: str) -> Any:
    """`value`, if it is of a kind; else the error that says so."""
    if not isinstance(value, kind):
        name = " or ".join(k.__name__.lower() for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise StateDictError(f"{what} is a {type(value).__name__}; {name} is needed")
    return value


def check_groups(optimizer: Optimizer, groups: Any) -> tuple[list[Mapping[str, Any]], list[Any]]:
    """The groups of a state dict, and the keys of its parameters in the order of all groups."""
    sizes = [len(params) for params in optimizer._originals]
    if len(optimizer.param_groups) != len(sizes):
        raise StateDictError("param_groups changed its length; use add_param_group()")
    for group in optimizer.param_groups:
        expect(group, dict, "a parameter group of the optimizer")
    for group in expect(groups, list, "the state dict's 'param_groups'"):
        expect(expect(group, Mapping, "a parameter group").get("params"), list, "a parameter group's 'params'")
    if [len(group["params"]) for group in groups] != sizes:
        raise StateDictError(
            f"the state dict has groups of {[len(g['params']) for g in groups]} parameters; the optimizer of {sizes}"
        )
    order = [expect(i, (int, str), "a parameter's index") for group in groups for i in group["params"]]
    if len(set(order)) != len(order):
        raise StateDictError("the state dict lists a parameter twice")
    return groups, order


def check_origin(optimizer: Optimizer, own: Mapping[str, Any]) -> None:
    """Raise if the dict was saved by another optimizer, or under a convention whose state means something else."""
    for key, mine in (("optimizer", type(optimizer).__name__), ("convention", optimizer.convention)):
        if key in own and not (isinstance(own[key], str) and own[key] == mine):
            raise StateDictError(f"the state dict was saved with {key} {own[key]!r}; this optimizer's is {mine!r}")
    if "version" in own and not (is_number(own["version"]) and own["version"] == 1):
        raise StateDictError(f"the state dict has version {own['version']!r}; version 1 can be read")
    n = len(optimizer._plan.arrays)
    if "counts" in own and len(expect(own["counts"], (list, tuple), "the counts")) != n:
        raise StateDictError(f"the state dict counts {len(own['counts'])} parameters, not {n}")


def check_entry(
    optimizer: Optimizer, label: str, param: np.ndarray, slots: list[str], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """One parameter's state, checked: slot arrays and carried number."""
    arrays = {}
    for name in dict.fromkeys((*slots, *optimizer.slots, *optimizer.optional_slots)):
        if entry.get(name) is None:
            if name not in slots or not optimizer.counts_in_state:
                continue
            raise StateDictError(f"state of {label} lacks {name!r}")
        try:
            array = as_values(entry[name], f"state {name!r} of {label}")
        except FastoptError as error:
            raise StateDictError(str(error)) from error
        except Exception as error:  # whatever a foreign type's conversion raises
            raise StateDictError(f"state {name!r} of {label} is no array: {error}") from error
        if array.shape != param.shape:
            raise StateDictError(f"state {name!r} of {label} has shape {array.shape}; the parameter has {param.shape}")
        if array.dtype.kind != "f":
            raise StateDictError(
                f"state {name!r} of {label} has dtype {array.dtype}; float16, 32 or 64 or longdouble is needed"
            )
        arrays[name] = array
    try:
        if (key := optimizer.carried) in entry and key is not None:
            entry = {**entry, key: as_values(entry[key], f"{key} of {label}").item()}
        carry = optimizer.carry_from(entry)
    except Exception as error:  # whatever a foreign type's conversion raises
        raise StateDictError(f"state of {label} cannot be read: {error!r}") from error
    return {"slots": arrays, "carry": carry}


def saved_count(optimizer: Optimizer, label: str, entry: Mapping[str, Any] | None) -> int:
    """The steps that a parameter has taken, as its entry says."""
    if not entry or not optimizer.counts_in_state:
        return int(bool(entry))
    if "step" not in entry:
        raise StateDictError(f"state of {label} lacks 'step'")
    return as_count(entry["step"], label)


def as_count(value: Any, label: str) -> int:
    """A step count as an int: a number, or an array of one, that is whole and not negative."""
    try:
        number = as_values(value, f"step of {label}").item()
        count = int(number)
    except Exception as error:  # whatever a foreign type's conversion raises
        raise StateDictError(f"step {shown(value)} of {label} is not a number") from error
    if count != number or not 0 <= count <= LARGEST:
        raise StateDictError(f"step {value!r} of {label} must be a whole number, from 0 to {LARGEST}")
    return count
