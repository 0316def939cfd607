"""State of `fastopt.torch` from a state dict, in the type that each slot has.

Design:
- PyTorch's loading casts every state tensor to the type of its parameter, codes and low halves, too. What is loaded
  here is taken from the dict again, as it was there.
- The rules are those of the optimizers for arrays, see `_stored.py`: what is stored in the same way is taken over, into
  a wider type it is decoded, and whatever else loses bits needs ``convert="lossy"``. Where options say nothing of how
  state is stored, state is cast to the type of its parameter, as PyTorch does it.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastopt._exchange import in_pytorchs_layout
from fastopt._quantized import kind_of_state
from fastopt._stored import Packed, check_packed, check_squares, is_bfloat16, require_lossy, widened
from fastopt._tensors import is_dtensor, is_packed, local_of, state_dtype
from fastopt.declare import LOW, Slot, Spec, counts_in_state
from fastopt.engine import decode_state, encode_state
from fastopt.errors import StateDictError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Place(NamedTuple):
    """The parameter of which state is loaded."""

    param: torch.Tensor
    label: str
    place: int
    """Among all of the optimizer."""
    packed: Packed | None
    """What the dict says of its state in 8 bits."""
    steps: int


def order_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of a dense tensor that have more than one element, the slowest first."""
    dims = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    return tuple(sorted(dims, key=lambda dim: -tensor.stride()[dim]))


def named_order(order: str | Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The same of what a state dict calls "C" or "F", or lists."""
    dims = range(len(shape)) if order == "C" else range(len(shape) - 1, -1, -1) if order == "F" else order
    return tuple(int(dim) for dim in dims if shape[int(dim)] > 1)


def packed_entry(shape: Sequence[int], order: tuple[int, ...]) -> list[Any]:
    """What a state dict says of a parameter with state in 8 bits: the order of memory, then the shape."""
    known = next((name for name in ("C", "F") if named_order(name, shape) == order), None)
    return [list(order) if known is None else known, *shape]


def read_packed(own: Mapping[str, Any], n: int) -> list[Packed | None]:
    """What a state dict says of state in 8 bits, for each of n parameters."""
    saved = own.get("packed")
    if saved is None:
        return [None] * n
    found: list[Packed | None] = []
    for entry in saved if isinstance(saved, (list, tuple)) and len(saved) == n else (0,):
        if entry is None:
            found.append(None)
            continue
        good = isinstance(entry, (list, tuple)) and entry and all(type(size) is int for size in entry[1:])
        if good and entry[0] not in ("C", "F"):
            big = [dim for dim, size in enumerate(entry[1:]) if size > 1]
            good = isinstance(entry[0], (list, tuple)) and sorted(entry[0], key=str) == big
        if not good:
            raise StateDictError(
                f"the state dict's 'packed' is {saved!r:.80}; a list of {n} is needed: None, or 'C', 'F' or a list of "
                "dimensions, and then a shape"
            )
        found.append(Packed(entry[0], tuple(entry[1:])))
    return found


# --- Values


def dense_like(own: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A dense tensor in the order in which a parameter is stepped, and as one row of its memory."""
    return torch.empty_like(own, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)


def row_of(dense: torch.Tensor) -> torch.Tensor:
    return dense.as_strided((dense.numel(),), (1,))


def from_array(array: np.ndarray) -> torch.Tensor:
    """An array of a state dict as a tensor of its own: uint16, too, holds bfloat16."""
    array = np.array(array, order="K")
    if is_bfloat16(array):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def decoded(codes: torch.Tensor, slot: Slot, to: Place) -> torch.Tensor:
    """State in 8 bits as float32, in the shape of the parameter; raises if it cannot be the parameter's."""
    own = local_of(to.param)
    what: Any = types.SimpleNamespace(shape=tuple(own.shape), size=own.numel())
    array = check_packed(codes.detach().numpy(), slot, to.packed, what, f"state {slot.name!r} of {to.label}")
    row = torch.from_numpy(decode_state(slot, array, own.numel()))
    order = named_order("C" if to.packed is None else to.packed.order, own.shape)
    rest = [dim for dim in range(own.dim()) if dim not in order]
    sizes = [own.shape[dim] for dim in (*rest, *order)]
    back = np.argsort([*rest, *order]).tolist()
    return row.reshape(sizes).permute(back)


def encoded(value: torch.Tensor, slot: Slot, seed: int, to: Place) -> torch.Tensor:
    """State of a floating type as the parameter's last step would have stored it."""
    own = local_of(to.param)
    dense = dense_like(own, torch.float32).copy_(value)
    row = row_of(dense).numpy()
    check_squares(row, slot, f"state {slot.name!r} of {to.label}")
    stored = encode_state(slot, row, row, seed, to.place, to.steps)
    if stored.dtype == np.uint8:
        return torch.from_numpy(stored)
    out = dense_like(own, torch.bfloat16)
    row_of(out).copy_(from_array(stored))
    return out


def fitted(value: Any, slot: Slot, spec: Spec, lossy: bool, to: Place) -> Any:
    """A value of a state dict in the type of a slot. What is no such state is returned as it is, to be refused."""
    own, what = local_of(to.param), f"state {slot.name!r} of {to.label}"
    needed = state_dtype(slot, own)
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return value
    if slot.name == LOW.name or (value.dtype == needed and value.dtype != torch.uint8):
        return value
    if value.dtype == torch.uint8:
        if is_dtensor(value) or slot.like != "parameter":
            return value
        wide = decoded(value, slot, to)
        order = named_order("C" if to.packed is None else to.packed.order, own.shape)
        if needed == torch.uint8:
            if order == order_of(own):
                return value
            require_lossy(lossy, f"{what} is in 8 bits, in another order of memory; its blocks would be encoded again")
            return encoded(wide, slot, seed_of(spec), to)
        return dense_like(own, needed).copy_(wide)  # exact: 8 bits have three of mantissa, and every type has more
    if value.dtype not in FLOATS:
        return value
    if is_packed(slot, own):
        if value.shape != to.param.shape or is_dtensor(value):
            return value
    elif spec.storage is None or needed in (torch.float32, torch.float64):
        return value.to(needed)
    keeps = "8 bits" if is_packed(slot, own) else "bfloat16"
    name = str(value.dtype).removeprefix("torch.")
    require_lossy(lossy, f"{what} is in {name}, and the optimizer keeps it in {keeps}: it would be rounded")
    if slot.storage is None and spec.storage is not None and spec.storage.rounding == "stochastic":
        slot = slot._replace(storage="bfloat16")
    if slot.storage is None or is_dtensor(value) or slot.like != "parameter":
        return value.to(needed)
    return encoded(value, slot, seed_of(spec), to)


def seed_of(spec: Spec) -> int:
    return 0 if spec.storage is None else spec.storage.seed


def fit_entry(
    entry: dict[str, Any], saved: Mapping[str, Any], spec: Spec, slots: Mapping[str, Slot], lossy: bool, to: Place
) -> None:  # fmt: skip
    """Put the state that a dict has into an entry that PyTorch loaded, in the types that a parameter's slots have."""
    low = saved.get(LOW.name)
    keeps_low = LOW in spec.slots and local_of(to.param).dtype == torch.bfloat16
    for name in slots.keys() & saved.keys():
        if saved[name] is not None:
            entry[name] = fitted(saved[name], slots[name], spec, lossy, to)
    if low is not None and isinstance(low, torch.Tensor):
        if low.numel() and not keeps_low:
            require_lossy(
                lossy, f"state {LOW.name!r} of {to.label} is what a bfloat16 parameter with split=True lacks of a "
                "float32, and the optimizer has no place for it: it would be dropped"
            )  # fmt: skip
        if not (low.numel() and keeps_low):
            entry.pop(LOW.name, None)
    if LOW in spec.slots and LOW.name not in entry:  # a parameter that was not split has no low half: it is 0
        if keeps_low:
            entry[LOW.name] = torch.zeros_like(to.param, dtype=torch.int16, requires_grad=False)
        else:
            entry[LOW.name] = torch.zeros(0, dtype=torch.int16)


def wide_array(value: Any) -> Any:
    """State of a dict as an array of float32 or float64, for arithmetic; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        value = value.detach().float().numpy()
    elif isinstance(value, np.ndarray) and is_bfloat16(value):
        value = widened(value)
    return value


# --- Of other libraries


def of_another_library(cls: type, given: Any, groups: Sequence[Mapping[str, Any]], lossy: bool) -> Any:
    """A state dict of an 8-bit optimizer of bitsandbytes or torchao as one of PyTorch's; another one as it is.

    Groups keep the optimizer's own options where the library's say nothing.
    """
    library = kind_of_state(given)
    if library is None:
        return given
    saved = given.get("param_groups")
    if library == "bitsandbytes" and isinstance(saved, list):  # of three betas the last is AdEMAMix's, which is refused
        given = {**given, "param_groups": [with_pair(group) for group in saved]}
    found = in_pytorchs_layout(cls, given, lossy)
    counts = counts_in_state(cls)
    state = {
        key: {name: as_tensor(value) for name, value in entry.items() if counts or name != "step"}
        for key, entry in found["state"].items()
    }
    saved = found["param_groups"]
    merged = []
    for mine, other in zip(groups, saved, strict=True) if len(groups) == len(saved) else ((x, x) for x in saved):
        known = {key: value for key, value in other.items() if key in mine}
        kept = {key: value for key, value in mine.items() if key != "param_names"}
        merged.append({**kept, **known, "params": other["params"]})
    return {"state": state, "param_groups": merged}


def with_pair(group: Any) -> Any:
    betas = group.get("betas") if isinstance(group, Mapping) else None
    return {**group, "betas": betas[:2]} if isinstance(betas, (tuple, list)) else group


def as_tensor(value: Any) -> Any:
    return from_array(value) if isinstance(value, np.ndarray) and value.ndim else value
