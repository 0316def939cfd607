"""State as a plain dict: a snapshot of a plan, and loading one: everything is checked, then everything is changed.

Design: the name of a state slot says what it holds. State in another unit or of another sign than PyTorch's has another
name (`MEANINGS`), so that no library reads it for what it is not. Where one rounding leads from one to the other, it is
converted here (`CONVERSIONS`); else it is refused.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._exchange import in_pytorchs_layout
from fastopt._stored import (
    Loading,
    carried_options,
    check_convert,
    check_packed,
    compute_type,
    decoded,
    is_bfloat16,
    is_narrow,
    is_packed,
    packed_entries,
    read_packed,
    read_streams,
    require_lossy,
    stored_state,
)
from fastopt.declare import (
    AVERAGE,
    DECOUPLED,
    DECOUPLED_LAST,
    DECOUPLED_WITHOUT_LR,
    L2,
    LOW,
    NEUTRAL,
    OPTIMIZERS,
    Declaration,
    Slot,
    counts_in_state,
    is_neutral,
    named_arrays,
    numbers_of,
    saved_numbers,
    state_from_start,
)
from fastopt.engine import (
    AROUND,
    LAST_FLOAT_COUNT,
    PAIRS,
    STORAGE,
    Group,
    Plan,
    as_values,
    is_number,
    shape_like,
    shown,
)
from fastopt.errors import FastoptError, ParameterError, StateDictError, warn_caller

VERSION = 3
"""Of what stands under the key ``fastopt``. Version 1 had one name, momentum_buffer, for state of three meanings.
Version 2 had state in the type of its parameter alone."""
READABLE = (2, 3)
LARGEST = 2**63 - 2**32  # a count that a 64-bit integer holds, with room for the steps to come

MEANINGS = {
    "momentum_buffer": "b of the step p = p - lr * b",
    "velocity": "v of the step p = p + v",
    "scaled_momentum_buffer": "b of the step p = p - b, with lr in b",
    "max_exp_avg_sq": "the maximum of exp_avg_sq",
    "max_exp_avg_sq_hat": "the maximum of exp_avg_sq / (1 - beta2**t)",
    "mu_product": "the product of NAdam's momenta, beside an exp_avg averaged with beta1",
    "exp_avg_mu_product": "the product of NAdam's momenta, which exp_avg was averaged with",
    "exp_inf": "the decayed maximum of abs(g) + eps",
    "exp_inf_without_eps": "the decayed maximum of abs(g)",
}
"""What state of several meanings holds, by name; state that is not here means the same everywhere."""
PYTORCHS = ("row_var", "col_var", "variance", "old_dirs", "func_evals")
"""State of those optimizers of PyTorch that are not here."""
MUONS = ("ns_coefficients", "ns_steps")
"""Options of Muon, whose momentum_buffer is an average, and not a sum as SGD's."""
DECAYS = {
    L2: "adds weight_decay * p to the gradient",
    DECOUPLED: "shrinks p by lr * weight_decay before the update",
    DECOUPLED_LAST: "shrinks p by lr * weight_decay after the update",
    DECOUPLED_WITHOUT_LR: "shrinks p by weight_decay alone",
}
CONVERSIONS: dict[tuple[str, str], tuple[str, Callable[[Any, Any], Any]]] = {
    ("momentum_buffer", "velocity"): ("v = -lr * b", lambda b, lr: -lr * b),
    ("velocity", "momentum_buffer"): ("b = v / -lr", lambda v, lr: v / -lr),
    ("momentum_buffer", "scaled_momentum_buffer"): ("lr * b", lambda b, lr: lr * b),
    ("scaled_momentum_buffer", "momentum_buffer"): ("b / lr", lambda b, lr: b / lr),
}
"""(name in the state dict, name wanted) -> how it is said, and the function of the array and lr."""


def live(cls: type[Declaration], convention: str, plan: Plan) -> list[dict[str, Any]]:
    """See `Optimizer.state`."""
    states = [plan.saved_state(i) for i in range(len(plan.states))]
    if not saved_numbers(cls, convention):
        return [{"step": plan.count(i)[0], **arrays} for i, arrays in enumerate(states)]
    entries = []
    for i, arrays in enumerate(states):
        count, numbers = plan.count(i)
        entries.append({"step": count, **number_arrays(cls, convention, numbers), **arrays})
    return entries


def snapshot(cls: type[Declaration], convention: str, plan: Plan) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    if len(plan.options) != len(plan.groups):
        raise ParameterError("param_groups changed its length; use add_param_group()")
    counts, entries = saved_entries(cls, convention, plan)
    groups, first = [], 0
    for options, group in zip(plan.options, plan.groups, strict=True):
        last = first + len(group.params)
        packed = packed_options(cls, convention, options)
        packed["params"] = list(range(first, last))
        if plan.named:
            packed["param_names"] = plan.names[first:last]
        groups.append(packed)
        first = last
    own = {
        "version": VERSION, "optimizer": cls.__name__, "convention": convention,
        "steps": plan.steps, "skipped_steps": plan.skipped, "counts": counts,
    }  # fmt: skip
    stored = any(group.storage is not None for group in plan.groups)
    more = {"streams": plan.random_streams(), "packed": packed_entries(plan) if stored else None}
    own.update({key: value for key, value in more.items() if value is not None})
    if len(own) == 6 and not (stored and any(is_narrow(array) for e in entries.values() for array in e.values())):
        own["version"] = 2  # which earlier versions of the library read, too
    return {"state": entries, "param_groups": groups, "fastopt": own}


def packed_options(cls: type[Declaration], convention: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A group's options, as a state dict lists them."""
    packed = {key: value for key, value in options.items() if key != "params"}
    if isinstance(packed.get("state_dtype"), Mapping):
        packed["state_dtype"] = dict(packed["state_dtype"])
    if "dampening" in cls.hyperparameters and "velocity" in named_arrays(cls, convention):
        # PyTorch's SGD would ignore the velocity, and begin a new buffer without a word: so it fails at this.
        momentum = packed.get("momentum", 0)
        if not (is_number(momentum) and momentum == 0):
            packed.pop("dampening", None)
    return packed


def saved_entries(
    cls: type[Declaration], convention: str, plan: Plan
) -> tuple[list[int], dict[int, dict[str, Any]]]:
    """The counts of all parameters, and the state of those that have some, as a state dict has it."""
    from_start, counted = state_from_start(cls), counts_in_state(cls)
    saved, slots = saved_numbers(cls, convention), numbers_of(cls)
    flagged = bool(slots) and slots[0].like == "begun"
    counts, entries = [], {}
    for i in range(len(plan.states)):
        arrays = plan.saved_state(i)
        count, numbers = plan.count(i)
        counts.append(count)
        # Low halves can be there before the first step: of a parameter that was made from a float32.
        if count == 0 and not from_start and not (LOW.name in arrays and arrays[LOW.name].any()):
            continue
        entry: dict[str, Any] = {}
        if counted:
            entry["step"] = np.array(count, np.float32 if count <= LAST_FLOAT_COUNT else np.float64)
        if saved:
            entry.update(number_arrays(cls, convention, numbers))
        if flagged and numbers[0] == 0:  # it has not begun
            arrays = {name: array for name, array in arrays.items() if name in (AVERAGE.name, LOW.name)}
        entry.update(arrays)
        if entry:
            entries[i] = entry
    return counts, entries


def number_arrays(cls: type[Declaration], convention: str, numbers: Sequence[float]) -> dict[str, np.ndarray]:
    """The numbers of a parameter by their names under a convention, as arrays without dimensions."""
    kinds, slots = cls.conventions[convention].storage, numbers_of(cls)
    return {
        name: np.array(numbers[k], kinds.get(slots[k].name, slots[k].storage or "float64"))
        for name, k in saved_numbers(cls, convention).items()
    }


def load(
    cls: type[Declaration], convention: str, plan: Plan, state_dict: Mapping[str, Any], convert: Any = None,
    warns: bool = True,
) -> None:  # fmt: skip
    """See `Optimizer.load_state_dict`; inside ``plan.run``. `warns`: of averages that the dict does not have."""
    plan.refuse_averaged("load_state_dict()")
    lossy = check_convert(convert)
    check_layout(state_dict)
    state_dict = in_pytorchs_layout(cls, state_dict, lossy)
    n = len(plan.arrays)
    own = check_layout(state_dict)
    check_origin(cls, own)
    saved_groups, order, places = check_groups(plan, state_dict["param_groups"])
    entries = check_entries(plan, state_dict["state"], order)
    if "counts" in own and len(expect(own["counts"], (list, tuple), "the counts")) != n:
        raise StateDictError(f"the state dict counts {len(own['counts'])} parameters, not {n}")
    # PyTorch does not count for every optimizer; there, a state says that at least one step was taken.
    counts = [saved_count(cls, plan.label(i), entries.get(i)) for i in range(n)]
    if "counts" in own:
        counts = [as_count(own["counts"][places[i]], plan.label(i)) for i in range(n)]
    steps = as_count(own.get("steps", max(counts, default=0)), "the optimizer")
    skipped = as_count(own.get("skipped_steps", 0), "the optimizer")
    streams = read_streams(own, places)
    loading = Loading(plan, lossy, read_packed(own, places), counts, streams)
    options: list[dict[str, Any]] = []
    recorded: list[list[str]] = []  # per group, the state slots that the dict has
    records: list[Any] = [None] * n
    lacking: list[str] = []  # averages
    first = 0
    for mine, saved, group in zip(plan.options, saved_groups, plan.groups, strict=True):
        last = first + len(group.params)
        names = {name for i in range(first, last) for name in entries.get(i, ())}
        merged = merged_options(cls, convention, mine, saved, own, names)
        chosen = plan.check_options(merged, any(a.dtype != np.float64 for a in plan.arrays[first:last]), steps)
        slots = chosen.slots
        options.append(merged)
        for i in range(first, last):
            if i in entries:
                records[i] = record_of(cls, convention, loading, i, chosen, entries[i], saved.get("lr"), mine["lr"])
            if AVERAGE.name in slots and counts[i] >= (merged.get("ema_start") or 1):
                if records[i] is None or AVERAGE.name not in records[i][1]:
                    lacking.append(plan.label(i))
        recorded.append(sorted({name for record in records[first:last] if record is not None for name in record[1]}))
        first = last
    if lacking and warns:  # before anything is written: a filter may make an error of it
        warn_caller(f"the state dict has no average ('ema') of {lacking[0]}: averages begin anew with the next step")
    plan.resume(options, recorded, records, counts, steps, skipped, streams)


def check_entries(plan: Plan, saved: Any, order: Sequence[Any]) -> dict[int, Mapping[str, Any]]:
    """The entries of a state dict by the place of their parameter in the optimizer."""
    expect(saved, Mapping, "the state dict's 'state'")
    listed = set(order)
    for key in saved:
        if key not in listed:
            raise StateDictError(f"the state dict has state for {key!r}, which is in none of its groups")
    entries = {}
    for i, key in enumerate(order):
        entry = saved.get(key)
        if entry is not None and expect(entry, Mapping, f"the state of {plan.label(i)}"):
            entries[i] = entry
    return entries


def record_of(
    cls: type[Declaration], convention: str, loading: Loading, i: int, group: Group, entry: Mapping[str, Any],
    saved_lr: Any, lr: Any,
) -> tuple[tuple[float, ...], dict[str, np.ndarray]]:  # fmt: skip
    """What the engine takes over for parameter i, in a group with the options to come: numbers, and arrays by name."""
    plan = loading.plan
    label, param = f"state of {plan.label(i)}", plan.arrays[i]

    def slot_of(name: str) -> Slot:
        return group.kinds[name] if name in group.kinds else slot_called(name)

    def read(value: Any, what: str, name: str) -> np.ndarray:
        array = as_state(value, what, narrow=True)
        if is_packed(array):
            return check_packed(array, slot_of(name), loading.packed[i], param, what)
        return array

    def wide(value: Any, what: str, name: str) -> np.ndarray:
        return decoded(read(value, what, name), slot_of(name), loading.packed[i], param)

    entry = translated(cls, convention, entry, label, saved_lr, lr, compute_type(param), wide)
    arrays = check_entry(cls, convention, label, param, group.slots, entry, read)
    check_low(loading, i, group, entry, arrays)
    seed = 0 if group.storage is None else group.storage.seed
    with np.errstate(all="ignore"):  # a cast may overflow, which is not an error
        fit = {name: stored_state(loading, i, group.kinds[name], seed, array) for name, array in arrays.items()}
    for name in fit:
        # A state_factory, which has its turn after this, may hand out or change this very memory.
        if plan.state_factory is not None or plan.touches(fit[name]):
            fit[name] = fit[name].copy("K")
    return check_numbers(cls, convention, label, entry), fit


def check_low(
    loading: Loading, i: int, group: Group, entry: Mapping[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Add the low half of a parameter to its arrays, where it keeps one; raises if it would be lost."""
    if entry.get(LOW.name) is None:
        return
    param, what = loading.plan.arrays[i], f"state {LOW.name!r} of {loading.plan.label(i)}"
    array = as_state(entry[LOW.name], what, "i")
    if array.dtype != np.int16:
        raise StateDictError(f"{what} has dtype {array.dtype}; int16 is needed")
    if array.shape != param.shape:
        raise StateDictError(f"{what} has shape {array.shape}; the parameter has {param.shape}")
    if LOW.name in group.slots and compute_type(param) != param.dtype:
        arrays[LOW.name] = array
    elif array.size:
        require_lossy(
            loading.lossy, f"{what} is what a bfloat16 parameter with split=True lacks of a float32, and the optimizer "
            "has no place for it: it would be dropped"
        )  # fmt: skip


@functools.cache
def slot_called(name: str) -> Slot:
    """The state slot of that name, of any class."""
    for cls in OPTIMIZERS.values():
        for convention in cls.conventions:
            slots = named_arrays(cls, convention)
            if name in slots:
                slot: Slot = slots[name]
                return slot
    return Slot(name)


def expect(value: Any, kind: Any, what: str) -> Any:
    """`value`, if it is of a kind; else the error that says so."""
    if not isinstance(value, kind):
        name = " or ".join(k.__name__.lower() for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise StateDictError(f"{what} is of type {type(value).__name__}; {name} is needed")
    return value


# --- Whose it is


def check_layout(state_dict: Any) -> Mapping[str, Any]:
    """What a state dict says of itself under the key ``fastopt``; raises if it is no state dict."""
    expect(state_dict, Mapping, "a state dict")
    if not {"state", "param_groups"} <= set(state_dict):
        raise StateDictError("a state dict has the keys 'state' and 'param_groups'")
    return expect(state_dict.get("fastopt", {}), Mapping, "the state dict's 'fastopt'")


def source_of(cls: type[Declaration], own: Mapping[str, Any]) -> type[Declaration]:
    """The class whose state dict it is, as far as it says: `own` is what stands under its key ``fastopt``."""
    name = own.get("optimizer", cls.__name__)
    return cls if name == cls.__name__ else OPTIMIZERS.get(name, cls)


def check_origin(cls: type[Declaration], own: Mapping[str, Any]) -> None:
    """Raise if a dict was saved by an optimizer whose state is of another kind, or by another version."""
    name = cls.__name__
    if "optimizer" in own and not (isinstance(own["optimizer"], str) and own["optimizer"] in (name, *cls.family)):
        raise StateDictError(
            f"the state dict was saved with optimizer {own['optimizer']!r}; this optimizer's is {name!r}"
        )
    conventions = source_of(cls, own).conventions
    if "convention" in own and not (isinstance(own["convention"], str) and own["convention"] in conventions):
        raise StateDictError(
            f"the state dict was saved with convention {own['convention']!r}; "
            f"{own.get('optimizer', name)} has: {', '.join(conventions)}"
        )
    if "version" in own and not (is_number(own["version"]) and own["version"] in READABLE):
        known = " and ".join(map(str, READABLE))
        raise StateDictError(f"the state dict has version {own['version']!r}; versions {known} can be read")


def merged_options(
    cls: type[Declaration],
    convention: str,
    mine: Mapping[str, Any],
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    names: Iterable[str],
) -> dict[str, Any]:
    """A group's options with the saved ones in their place; raises if they mean something else there.

    Parameters
    ----------
    mine, saved
        The group of the optimizer, and that of the state dict.
    own
        What stands under the dict's key ``fastopt``. Without it the dict is PyTorch's.
    names
        The names of state that the dict has for parameters of the group.
    """
    given = {
        key: value for key, value in saved.items()
        if key not in ("params", "param_names", *STORAGE) and (value is not None or key in AROUND)
    }  # fmt: skip
    merged = {**mine, **given, **carried_options(mine, saved)}
    for key in PAIRS.keys() & cls.hyperparameters:
        if isinstance(merged.get(key), list):
            merged[key] = tuple(merged[key])
    keys = cls.group_keys()
    for key, value in given.items():
        if key in MUONS or (key in NEUTRAL and key not in keys and not is_neutral(key, value)):
            raise StateDictError(
                f"the state dict has {key}={value!r:.80}; {cls.__name__} has no such option"
                + (f": only {NEUTRAL[key]!r} fits" if key in NEUTRAL else "")
            )
    if own or "velocity" in names:
        # Saved where there is no such option. Velocities of a Nesterov momentum belong to other parameters, too.
        for key in (key for key in ("dampening", "nesterov") if key in keys and key not in given):
            if not is_neutral(key, mine[key]):
                raise StateDictError(
                    f"the state dict has no {key}, and the optimizer has {key}={mine[key]!r:.80}: "
                    f"only {NEUTRAL[key]!r} fits"
                )
            merged[key] = NEUTRAL[key]
    elif "torch" in cls.conventions:
        offered = cls.conventions["torch"]
        for key in {"eps_placement", "bias_correction"} & cls.always_offered.keys() & {*keys} - given.keys():
            merged[key] = offered.defaults.get(key, cls.always_offered[key])
    foreign = not MEANINGS.keys().isdisjoint(set(names) - {*cls.slots_under(convention)})
    merge_decay(cls, convention, mine, given, merged, own, foreign)
    return merged


def merge_decay(
    cls: type[Declaration],
    convention: str,
    mine: Mapping[str, Any],
    given: Mapping[str, Any],
    merged: dict[str, Any],
    own: Mapping[str, Any],
    foreign: bool,
) -> None:
    """Settle decoupled_weight_decay in `merged`; raises if weight decay is of another kind in the state dict.

    What the flag says depends on the convention. A dict of PyTorch's may lack it: there it is PyTorch's only kind, if
    there is one only.
    """
    key, wd = "decoupled_weight_decay", merged.get("weight_decay", 0.0)
    here, there = cls.conventions[convention].decay, decays_of(cls, own)
    if key in given and not isinstance(given[key], (bool, np.bool_)):
        return  # which is refused for that
    if not callable(wd) and is_number(wd) and wd == 0:
        # No decay of one kind is none of another, if it is a kind that there is where the dict comes from.
        if (foreign or given.get(key) in (there or {False})) and merged[key] not in here:
            merged[key] = mine[key]
        return
    if not there or (key not in given and len(there) > 1):
        return
    kind = there.get(given[key]) if key in given else next(iter(there.values()))
    if key not in given:
        merged[key] = next((flag for flag, other in here.items() if other == kind), merged.get(key))
    if kind is not None and here.get(merged[key], kind) != kind:
        raise StateDictError(
            f"weight_decay={wd!r:.80} of the state dict {DECAYS[kind]}; that of {cls.__name__}"
            f"(convention={convention!r}) {DECAYS[here[merged[key]]]}"
        )


def decays_of(cls: type[Declaration], own: Mapping[str, Any]) -> Mapping[bool, int]:
    """The kinds of weight decay where a state dict comes from; without an entry of its own, that is PyTorch."""
    convention = own.get("convention", "torch")
    for source in (source_of(cls, own), *(OPTIMIZERS[name] for name in cls.family)):
        if convention in source.conventions:
            return source.conventions[convention].decay
    return {}


# --- Groups and names


def check_groups(plan: Plan, groups: Any) -> tuple[list[Mapping[str, Any]], list[Any], list[int]]:
    """The groups of a state dict, the keys of its parameters, and their places there: in the optimizer's order.

    State goes by name where both sides name their parameters, else by position.
    """
    sizes = [len(group.params) for group in plan.groups]
    if len(plan.options) != len(sizes):
        raise StateDictError("param_groups changed its length; use add_param_group()")
    for group in plan.options:
        expect(group, dict, "a parameter group of the optimizer")
    for group in expect(groups, list, "the state dict's 'param_groups'"):
        expect(expect(group, Mapping, "a parameter group").get("params"), list, "a parameter group's 'params'")
    names = saved_names(groups) if plan.named else None
    if names is None and [len(group["params"]) for group in groups] != sizes:
        raise StateDictError(other_sizes(groups, sizes))
    order = [expect(i, (int, str), "a parameter's index") for group in groups for i in group["params"]]
    if len(set(order)) != len(order):
        raise StateDictError("the state dict lists a parameter twice")
    if names is None:
        return groups, order, list(range(len(order)))
    groups, places = by_name(plan.names, sizes, groups, names)
    return groups, [order[place] for place in places], places


def other_sizes(groups: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> str:
    """What to say of groups that cannot be matched."""
    return f"the state dict has groups of {[len(g['params']) for g in groups]} parameters; the optimizer of {sizes}"


def saved_names(groups: Sequence[Mapping[str, Any]]) -> list[list[Any]] | None:
    """The names of the parameters of each group of a state dict; None if it has none."""
    named = [group.get("param_names") is not None for group in groups if group["params"]]
    if not any(named):
        return None
    if not all(named):
        raise StateDictError("the state dict has 'param_names' in some groups only; all are needed, or none")
    names = [expect(g.get("param_names") or [], (list, tuple), "a group's 'param_names'") for g in groups]
    for k, (group, mine) in enumerate(zip(groups, names, strict=True)):
        if len(mine) != len(group["params"]):
            raise StateDictError(
                f"group {k} of the state dict has {len(mine)} names for {len(group['params'])} parameters"
            )
        for name in mine:
            try:
                hash(name)
            except TypeError:
                raise StateDictError(
                    f"group {k} of the state dict has the name {name!r:.80}, which is no name"
                ) from None
    every = [name for mine in names for name in mine]
    twice = sorted({repr(name) for name in every if every.count(name) > 1}) if len(set(every)) != len(every) else []
    if twice:
        raise StateDictError(f"the state dict has parameters of the same name: {', '.join(twice)}")
    return [list(mine) for mine in names]


def by_name(
    mine: Sequence[Any], sizes: Sequence[int], groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[Any]]
) -> tuple[list[Mapping[str, Any]], list[int]]:
    """The saved group for each of the optimizer's, by the set of its names, and the saved place of each parameter."""
    place = {name: i for i, name in enumerate(name for group in names for name in group)}
    known = set(mine)
    missing, unknown = [name for name in mine if name not in place], [name for name in place if name not in known]
    if missing or unknown:
        raise StateDictError(
            "the state dict names other parameters than the optimizer; "
            f"missing from the state dict: {quoted(missing)}; not in the optimizer: {quoted(unknown)}"
        )
    group_of = {name: k for k, group in enumerate(names) for name in group}
    empty = iter([k for k, group in enumerate(names) if not group])
    matched, first = [], 0
    for k, size in enumerate(sizes):
        own = mine[first : first + size]
        first += size
        source = group_of[own[0]] if own else next(empty, None)
        if source is None or set(own) != set(names[source]):
            moved = [n for n in own if source is None or group_of[n] != source]
            moved += [n for n in (names[source] if source is not None else ()) if n not in set(own)]
            raise StateDictError(
                f"parameter group {k} of the optimizer has these parameters: {quoted(own)}. No group of the state dict "
                "has the same" + (f"; in another group there: {quoted(moved)}" if moved else "")
            )
        matched.append(groups[source])
    if len(matched) != len(groups):
        raise StateDictError(other_sizes(groups, sizes))
    return matched, [place[name] for name in mine]


def quoted(names: Sequence[Any], most: int = 20) -> str:
    """Names for a message; of many, the first."""
    text = ", ".join(map(repr, names[:most])) or "none"
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


# --- What the state of a parameter means


def translated(
    cls: type[Declaration], convention: str, entry: Mapping[str, Any], label: str, saved_lr: Any, lr: Any,
    dtype: np.dtype, read: Callable[[Any, str, str], np.ndarray] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One parameter's entry, with state of another meaning converted to that of the optimizer's, or the error.

    Parameters
    ----------
    saved_lr, lr
        The learning rate of the state dict's group, and that of the optimizer's own.
    dtype : numpy dtype
        The type that the parameter is computed in: so are conversions, or in the state's own if that is wider.
    read : callable(value, label, name) -> array, optional
        What reads an array of a floating type.
    """
    wanted, numbers = named_arrays(cls, convention), saved_numbers(cls, convention)
    known = {"step", LOW.name, *wanted, *numbers}
    out = dict(entry)
    if known.issuperset(out):
        return out
    states = state_names()  # other names are a hook's or wrapper's, and are passed over
    for name in entry:
        if name in known or name not in states or out[name] is None:
            continue
        value = out.pop(name)
        owner = f"{cls.__name__}(convention={convention!r})"
        has = f"{label} has {described(name)}"
        target = next((other for other in wanted if (name, other) in CONVERSIONS), None)
        if target is None:
            keeps = ", ".join(described(x) for x in (*wanted, *numbers))
            raise StateDictError(f"{has}, which {owner} cannot continue from; its state: {keeps or 'none'}")
        if entry.get(target) is not None:
            raise StateDictError(f"{has} and {described(target)}; only one of them can be right")
        formula, convert = CONVERSIONS[name, target]
        rate = as_rate(saved_lr, dtype)
        if not rate:
            raise StateDictError(
                f"{has}; {owner} keeps {described(target)}. It is converted, {formula}, if the state dict's lr is a "
                f"number that is not 0, also when rounded to {dtype}; it is {saved_lr!r:.80}"
            )
        if rate != as_rate(lr, dtype):
            raise StateDictError(
                f"{has}; {owner} keeps {described(target)}. It is converted, {formula}, if the optimizer has the lr of "
                f"the state dict, {saved_lr!r:.80}; it has {lr!r:.80}. Set the optimizer's lr before loading"
            )
        what = f"state {name!r} of {label.removeprefix('state of ')}"
        array = as_state(value, what) if read is None else read(value, what, name)
        wide = np.result_type(array.dtype, dtype)
        with np.errstate(all="ignore"):
            converted = np.asarray(convert(array.astype(wide), wide.type(as_rate(saved_lr, wide))), dtype)
        if (np.isfinite(array) & ~np.isfinite(converted)).any():
            raise StateDictError(f"{has}; {formula} with lr={saved_lr!r} is too large for {dtype}")
        out[target] = converted
    return out


@functools.cache
def state_names() -> frozenset[str]:
    """Every name that is state of an optimizer, here or in PyTorch."""
    every = {slot.name for cls in OPTIMIZERS.values() for slot in cls.slots if slot.is_array or slot.like == "number"}
    return frozenset({*every, *MEANINGS, *PYTORCHS})


def described(name: str) -> str:
    """A state slot with its meaning, for messages."""
    return f"{name!r} ({MEANINGS[name]})" if name in MEANINGS else repr(name)


def as_rate(lr: Any, dtype: np.dtype) -> float | None:
    """A learning rate, rounded to a type; None for a schedule, and for what is no number."""
    if callable(lr):
        return None
    try:
        return float(dtype.type(float(lr)))
    except (TypeError, ValueError, OverflowError):
        return None


def as_state(value: Any, what: str, kinds: str = "f", narrow: bool = False) -> np.ndarray:
    """The array of a state slot in a state dict, of any shape; raises if it is none.

    `kinds` are NumPy's letters for the types that it may have; `narrow` allows bfloat16 and 8 bits, too.
    """
    try:
        array = bits_of(value) if narrow and is_pytorchs_bfloat16(value) else as_values(value, what)
    except FastoptError as error:
        raise StateDictError(str(error)) from error
    except Exception as error:  # whatever a foreign type's conversion raises
        raise StateDictError(f"{what} is no array: {error}") from error
    if array.dtype.kind not in kinds and not (narrow and (is_bfloat16(array) or is_packed(array))):
        needed = "int16" if kinds == "i" else "float16, 32 or 64 or longdouble"
        raise StateDictError(f"{what} has dtype {array.dtype}; {needed} is needed")
    return array


def is_pytorchs_bfloat16(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch in bfloat16, which it makes no array of."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def bits_of(tensor: Any) -> np.ndarray:
    """The bits of such a tensor on the CPU, which NumPy has no type for, as uint16 over the same memory."""
    bits: np.ndarray = tensor.detach().view(sys.modules["torch"].int16).numpy().view(np.uint16)
    return bits


def check_entry(
    cls: type[Declaration], convention: str, label: str, param: np.ndarray, slots: Sequence[str],
    entry: Mapping[str, Any], read: Callable[[Any, str, str], np.ndarray],
) -> dict[str, np.ndarray]:  # fmt: skip
    """The state arrays of one parameter, checked; those in 8 bits by `read`, their shape included."""
    arrays = {}
    declared = named_arrays(cls, convention)
    for name in declared:
        if name == AVERAGE.name and name not in slots:
            continue  # not asked for, or another's
        if entry.get(name) is None:
            if name not in slots or name == AVERAGE.name or not counts_in_state(cls):
                continue
            raise StateDictError(f"{label} lacks {described(name)}")
        what = f"state {name!r} of {label.removeprefix('state of ')}"
        array, like = read(entry[name], what, name), declared[name].like
        shape = param.shape if like == "parameter" else shape_like(like, param.shape)
        if array.shape != shape and not is_packed(array):
            needed = f"the parameter has {shape}" if shape == param.shape else f"{shape} is needed"
            raise StateDictError(f"{what} has shape {array.shape}; {needed}")
        arrays[name] = array
    return arrays


def check_numbers(
    cls: type[Declaration], convention: str, label: str, entry: Mapping[str, Any]
) -> tuple[float, ...]:
    """The numbers that a parameter carries, as its entry says them."""
    slots = numbers_of(cls)
    if not slots:
        return ()
    begun = any(entry.get(name) is not None for name in named_arrays(cls, convention) if name != AVERAGE.name)
    numbers = [float(begun) if slot.like == "begun" else float(slot.first) for slot in slots]
    for name, k in saved_numbers(cls, convention).items():
        if name not in entry:
            raise StateDictError(f"{label} lacks {described(name)}")
        try:
            numbers[k] = as_number(entry[name], name, slots[k], label)
        except Exception as error:  # whatever a foreign type's conversion raises
            raise StateDictError(f"{name!r} in {label} cannot be read: {error!r}") from error
    return tuple(numbers)


def as_number(value: Any, name: str, slot: Slot, label: str) -> float:
    """A number of the state, within its limits; ValueError and others if it is none."""
    number = float(as_values(value, f"{name} of {label}").item())
    low, high = slot.limits
    if not low <= number <= high:
        raise ValueError(f"{name}={number!r} must be in [{low:g}, {high:g}]")
    return number


def saved_count(cls: type[Declaration], label: str, entry: Mapping[str, Any] | None) -> int:
    """The steps that a parameter has taken, as its entry says."""
    if not entry:
        return 0
    if "step" not in entry:
        if not counts_in_state(cls):
            return 1
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
