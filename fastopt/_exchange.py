"""State dicts of the 8-bit optimizers of bitsandbytes and torchao: into PyTorch's layout, and out of an optimizer.

Design: what comes from them is turned into a dict as PyTorch's class of the same name would save it, and is then loaded
like one. What goes to them has tensors, since they load nothing else: so PyTorch is imported here, and only then. An
option that they do not have is an error, since the steps that follow would be others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fastopt._quantized import (
    BITSANDBYTES_SLOTS,
    WRAPPED,
    decode_bitsandbytes,
    decode_torchao,
    encode_bitsandbytes,
    encode_torchao,
    kind_of_state,
    torchao_has_codes,
)
from fastopt._stored import LOSSY, Packed, check_convert, decoded, order_of
from fastopt.declare import DECOUPLED, L2, Declaration, is_neutral, named_arrays
from fastopt.engine import PAIRS, Plan
from fastopt.errors import HyperparameterError, MissingExtraError, StateDictError

Layout = Literal["bitsandbytes", "torchao"]
LAYOUTS: dict[str, tuple[str, ...]] = {"bitsandbytes": tuple(BITSANDBYTES_SLOTS), "torchao": ("Adam", "AdamW")}
"""Each library -> the classes that it has in 8 bits."""


class Form(NamedTuple):
    """What an optimizer of theirs does, as options here say it."""

    decay: int
    """How it applies weight decay."""
    fixed: Mapping[str, Any]
    """Options that it does not have, and what they are there."""


ADAM = {"eps_root": 0.0, "eps_placement": "outside", "bias_correction": True}
FORMS: dict[tuple[str, str], Form] = {
    ("bitsandbytes", "Adam"): Form(DECOUPLED, {**ADAM, "amsgrad": False}),
    ("bitsandbytes", "AdamW"): Form(DECOUPLED, {**ADAM, "amsgrad": False}),
    ("bitsandbytes", "Lion"): Form(DECOUPLED, {}),
    ("bitsandbytes", "RMSprop"): Form(
        L2, {"momentum": 0.0, "centered": False, "eps_placement": "outside", "bias_correction": False}
    ),
    ("bitsandbytes", "SGD"): Form(L2, {"dampening": 0.0, "nesterov": False}),
    ("bitsandbytes", "Adagrad"): Form(L2, {"lr_decay": 0.0, "eps_placement": "outside"}),
    ("torchao", "Adam"): Form(L2, ADAM),
    ("torchao", "AdamW"): Form(DECOUPLED, ADAM),
}


def twin_of(cls: type[Declaration], layout: str) -> str:
    """What a library calls the optimizer of a class; raises if it has none in 8 bits."""
    for name in (*(base.__name__ for base in cls.__mro__), *cls.family):
        if name in LAYOUTS[layout]:
            return name
    raise StateDictError(f"{layout} has no 8-bit {cls.__name__}; it has: {', '.join(LAYOUTS[layout])}")


# --- From them


def in_pytorchs_layout(cls: type[Declaration], state_dict: Mapping[str, Any], lossy: bool) -> Mapping[str, Any]:
    """A state dict as it is, or one of theirs as PyTorch's class would save it, for an optimizer of this class."""
    layout = kind_of_state(state_dict)
    if layout is None:
        return state_dict
    name, state = twin_of(cls, layout), {}
    for key, entry in state_dict["state"].items():
        label = f"state of parameter {key!r}"
        if not isinstance(entry, Mapping):
            raise StateDictError(f"{label} is of type {type(entry).__name__}; a dict is needed")
        if not lossy and has_codes(entry):
            raise StateDictError(
                f"{label} is in the 8 bits of {layout}, which no optimizer here goes on with: it would be decoded. "
                f"{LOSSY}"
            )
        state[key] = from_bitsandbytes(entry, name, label) if layout == "bitsandbytes" else from_torchao(entry, label)
    groups = state_dict.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise StateDictError("the state dict's 'param_groups' is no list of dicts")
    return {"state": state, "param_groups": [options_from(layout, name, group) for group in groups]}


def has_codes(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of theirs has state in 8 bits."""
    parts = entry.get(WRAPPED, entry)
    return isinstance(parts, Mapping) and (
        any(str(key).startswith("absmax") for key in parts) or any(hasattr(value, "codes") for value in entry.values())
    )


def from_bitsandbytes(entry: Mapping[str, Any], name: str, label: str) -> dict[str, Any]:
    """An entry of bitsandbytes with float32 arrays by PyTorch's names."""
    if WRAPPED not in entry and "state1" not in entry:
        return dict(entry)
    arrays = decode_bitsandbytes(entry, BITSANDBYTES_SLOTS[name], label=label)
    return {"step": entry.get("step"), **arrays}


def from_torchao(entry: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An entry of torchao with float32 arrays in the place of its tensors with codes."""
    return {
        key: decode_torchao(value, label=f"{label}: {key}") if hasattr(value, "codes") else value
        for key, value in entry.items()
    }


def options_from(layout: str, name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of theirs with the options of PyTorch's class."""
    options = {key: group[key] for key in ("lr", "eps", "weight_decay", "amsgrad", "betas") if key in group}
    options |= {key: group[key] for key in ("params", "param_names") if key in group}
    if hasattr(options.get("lr"), "item"):  # torchao keeps it in a tensor
        options["lr"] = options["lr"].item()
    if layout == "torchao":
        return options
    betas = options.get("betas")
    if betas is not None and not (isinstance(betas, (tuple, list)) and len(betas) == 2):
        raise StateDictError(f"the state dict has betas={betas!r:.80}; bitsandbytes' {name} has a pair")
    if name in ("SGD", "RMSprop", "Adagrad", "Lion"):
        if name != "Lion":
            options.pop("betas", None)
        if name in ("SGD", "Lion"):
            options.pop("eps", None)
        if betas is not None and name in ("SGD", "RMSprop"):
            options["momentum" if name == "SGD" else "alpha"] = betas[0]
    form = FORMS[layout, name]
    options |= {key: value for key, value in form.fixed.items() if key not in ADAM}
    options["decoupled_weight_decay"] = form.decay == DECOUPLED
    return options


# --- To them


def exported(
    cls: type[Declaration], convention: str, plan: Plan, state_dict: Mapping[str, Any], layout: Any, convert: Any
) -> dict[str, Any]:
    """See `Optimizer.export_state_dict`; `state_dict` is the optimizer's own."""
    if not (isinstance(layout, str) and layout in LAYOUTS):
        raise HyperparameterError(f"layout={layout!r:.80} must be one of {', '.join(map(repr, LAYOUTS))}")
    name = twin_of(cls, layout)
    if not check_convert(convert):
        raise StateDictError(f"a state dict in the layout of {layout} has state rounded to its 8 bits. {LOSSY}")
    groups = []
    for group in state_dict["param_groups"]:
        options = {key: at_step(key, value, plan.steps) for key, value in group.items()}
        groups.append(options_for(cls, convention, layout, name, options))
    torch = require_torch(layout)
    if layout == "torchao":
        groups = [{**group, "lr": torch.tensor(group["lr"])} for group in groups]
    state = {}
    for i, entry in state_dict["state"].items():
        arrays, count = wide_arrays(cls, convention, plan, i, entry), plan.count(i)[0]
        if layout == "bitsandbytes":
            state[i] = bitsandbytes_entry(torch, name, arrays, count)
        else:
            state[i] = torchao_entry(torch, plan.arrays[i], arrays, count)
    return {"state": {i: entry for i, entry in state.items() if entry}, "param_groups": groups}


def require_torch(layout: str) -> Any:
    """PyTorch, or the error that says what needs it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(f"a state dict of {layout} holds tensors: it needs PyTorch") from error
    return torch


def at_step(key: str, value: Any, step: int) -> Any:
    """An option as a number: a schedule's value after so many steps."""
    if key in PAIRS and isinstance(value, (tuple, list)):
        return tuple(at_step("", part, step) for part in value)
    return at_step(key, value(step), step) if callable(value) else value


def options_for(
    cls: type[Declaration], convention: str, layout: str, name: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """A group of theirs; raises for options that they do not have."""
    form, owner = FORMS[layout, name], f"{layout}'s {name}"
    for key, only in {**form.fixed, "maximize": False}.items():
        if key in options and options[key] != only:
            raise StateDictError(f"the optimizer has {key}={options[key]!r:.80}; {owner} has {only!r} only")
    decay = cls.conventions[convention].decay.get(options.get("decoupled_weight_decay", False), L2)
    decays = (form.decay, DECOUPLED) if layout == "torchao" else (form.decay,)
    if options.get("weight_decay", 0.0) != 0 and decay not in decays:
        raise StateDictError(
            f"the optimizer has weight_decay={options['weight_decay']!r:.80} of another kind than {owner}, which "
            + ("shrinks the parameter by lr * weight_decay" if form.decay == DECOUPLED else "adds it to the gradient")
        )
    if name == "SGD" and is_neutral("momentum", options["momentum"]):
        raise StateDictError(f"the optimizer has momentum=0; {owner} needs one")
    betas = {"SGD": (options.get("momentum"), 0.0), "RMSprop": (options.get("alpha"), 0.0), "Adagrad": (0.0, 0.0)}
    out = {
        "lr": float(options["lr"]), "betas": tuple(map(float, betas.get(name) or options["betas"])),
        "eps": float(options.get("eps", 0.0)), "weight_decay": float(options.get("weight_decay", 0.0)),
    }  # fmt: skip
    if layout == "torchao":
        out["amsgrad"] = bool(options.get("amsgrad", False))
    elif len(BITSANDBYTES_SLOTS[name]) == 2:
        out |= {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
    out |= {key: options[key] for key in ("params", "param_names") if key in options}
    return out


def wide_arrays(
    cls: type[Declaration], convention: str, plan: Plan, i: int, entry: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The state arrays of a parameter in a floating type, in C order."""
    slots, param = named_arrays(cls, convention), plan.arrays[i]
    packed = Packed(order_of(param), param.shape)
    wide = {name: decoded(entry[name], slot, packed, param) for name, slot in slots.items() if name in entry}
    return {name: np.array(array, order="C") for name, array in wide.items()}


def bitsandbytes_entry(torch: Any, name: str, arrays: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
    """An entry for bitsandbytes; an empty one where there is no state yet."""
    slots = BITSANDBYTES_SLOTS[name]
    if slots[0] not in arrays:
        if arrays.keys() - {"ema"}:
            keeps = ", ".join(map(repr, arrays))
            raise StateDictError(f"the optimizer keeps {keeps}; bitsandbytes' {name} has {slots[0]!r}")
        return {}
    parts = encode_bitsandbytes(arrays, slots)
    return {"step": count, **{key: torch.from_numpy(part) for key, part in parts.items()}}


def torchao_entry(torch: Any, param: np.ndarray, arrays: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
    """An entry for torchao."""
    entry: dict[str, Any] = {"step": torch.tensor(float(count))}
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        if name not in arrays:
            continue
        array, signed = arrays[name], name == "exp_avg"
        if torchao_has_codes(array.size):
            parts = {key: torch.from_numpy(part) for key, part in encode_torchao(array, signed).items()}
            dtype = {8: torch.float64, 4: torch.float32, 2: torch.bfloat16}[param.itemsize]
            entry[name] = torchao_state()(**parts, signed=signed, dtype=dtype)
        else:
            entry[name] = torch.from_numpy(array.astype(np.float32))
    return entry


def torchao_state() -> Any:
    """The class of 8-bit state in torchao, or the error that says what brings it."""
    try:
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise MissingExtraError("a state dict of torchao holds its tensors: pip install torchao") from error
    return OptimState8bit
