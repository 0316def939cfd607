"""State in bfloat16 and in 8 bits between a state dict and an optimizer: what keeps every bit, and what does not.

Design:
- In a state dict, bfloat16 is an array of ml_dtypes' bfloat16, or of uint16 where that library is missing. State in 8
  bits is the optimizer's own array of uint8: two bytes for each block of 256 elements, then a byte for each element,
  in the memory order of the parameter.
- State that is stored in the same way is copied. Into a wider type it is decoded, which is exact. Whatever else loses
  bits, and needs ``convert="lossy"``.
- What is encoded gets the bits that the parameter's last step would have written for the same numbers: random numbers
  are those of the optimizer's seed, of the parameter's stream and of its step count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fastopt.declare import LOW, Slot
from fastopt.engine import STORAGE, Plan, decode_state, encode_state, layout_of
from fastopt.errors import HyperparameterError, StateDictError

BLOCK = 256
TOP = 0x7F7
"""The largest finite number of 8 bits: a base and a code add up to that at most. See kernels/formats.pxi."""
LOSSY = 'convert="lossy" allows it'


class Packed(NamedTuple):
    """What a state dict says of a parameter whose state is in 8 bits, since an array of codes does not."""

    order: str
    """The memory order: "C" or "F"."""
    shape: tuple[int, ...]


class Loading(NamedTuple):
    """What arrays of a state dict are made to fit."""

    plan: Plan
    lossy: bool
    packed: Sequence[Packed | None]
    """For each parameter of the optimizer."""
    counts: Sequence[int]
    streams: Sequence[int]


def check_convert(convert: Any) -> bool:
    """Whether bits may be lost; raises if it is neither None nor "lossy"."""
    if convert is not None and not (isinstance(convert, str) and convert == "lossy"):
        raise HyperparameterError(f"convert={convert!r:.80} must be None or 'lossy'")
    return convert is not None


def is_bfloat16(array: np.ndarray) -> bool:
    """Whether an array of a state dict holds bfloat16: in the type of ml_dtypes, or in uint16."""
    dtype = array.dtype  # the kind first: this is asked of all arrays
    if dtype.kind == "u":
        return dtype == np.uint16
    return dtype.kind == "V" and dtype.name == "bfloat16" and dtype.isnative


def is_packed(array: np.ndarray) -> bool:
    """Whether an array of a state dict is in 8 bits."""
    return array.dtype.kind == "u" and array.dtype == np.uint8


def widened(array: np.ndarray) -> np.ndarray:
    """An array of bfloat16 as float32, in the same memory order."""
    wide = array.view(np.uint16).astype(np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)
    return wide.view(np.float32)


def compute_type(param: np.ndarray) -> np.dtype:
    """The type in which a parameter is stepped."""
    return np.dtype(np.float64 if param.dtype == np.float64 else np.float32)


# --- Saving


def packed_entries(plan: Plan) -> list[list[Any] | None] | None:
    """Order and shape of each parameter with state in 8 bits, for a state dict; None if there is none."""
    entries = [
        ["C" if param.flags.c_contiguous else "F", *param.shape] if any(map(is_packed, state.values())) else None
        for param, state in zip(plan.arrays, plan.states, strict=True)
    ]
    return entries if any(entries) else None


def is_narrow(array: Any) -> bool:
    """Whether an array of a state dict has a type that earlier versions do not know."""
    return isinstance(array, np.ndarray) and array.dtype.kind != "f"


# --- Loading


def read_streams(own: Mapping[str, Any], places: Sequence[int]) -> list[int]:
    """The numbers of the random streams, for each parameter of the optimizer."""
    saved = own.get("streams")
    if saved is None:
        return list(places)
    if (
        not isinstance(saved, (list, tuple)) or len(saved) != len(places) or len(set(map(repr, saved))) != len(saved)
        or not all(type(number) is int and 0 <= number < 2**32 for number in saved)
    ):  # fmt: skip
        raise StateDictError(
            f"the state dict's 'streams' are {saved!r:.80}; a list of {len(places)} different whole numbers from 0 to "
            "2**32 - 1 is needed"
        )
    return [saved[place] for place in places]


def read_packed(own: Mapping[str, Any], places: Sequence[int]) -> list[Packed | None]:
    """What a state dict says of state in 8 bits, for each parameter of the optimizer."""
    saved = own.get("packed")
    if saved is None:
        return [None] * len(places)
    if not isinstance(saved, (list, tuple)) or len(saved) != len(places):
        raise StateDictError(f"the state dict's 'packed' is {saved!r:.80}; a list of {len(places)} is needed")
    entries: list[Packed | None] = []
    for place in places:
        entry = saved[place]
        if entry is not None and not (
            isinstance(entry, (list, tuple)) and entry and entry[0] in ("C", "F")
            and all(type(size) is int and size >= 0 for size in entry[1:])
        ):  # fmt: skip
            raise StateDictError(
                f"the state dict's 'packed' has {entry!r:.80}; None, or 'C' or 'F' and then a shape, is needed"
            )
        entries.append(None if entry is None else Packed(entry[0], tuple(entry[1:])))
    return entries


def carried_options(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a group takes over of a saved one's options that say how arrays are stored: how they are rounded."""
    if all(saved.get(key) is None for key in STORAGE):
        return {}
    carried = {}
    if saved.get("seed") is not None or mine.get("seed") is not None:
        carried["seed"] = 0 if saved.get("seed") is None else saved["seed"]
    if saved.get("rounding") is not None and not mine.get("split"):
        carried["rounding"] = saved["rounding"]
    return carried


def order_of(param: np.ndarray) -> Literal["C", "F"]:
    """The memory order of a parameter; "C" where there is one order only."""
    return "C" if param.flags.c_contiguous else "F"


def check_packed(array: np.ndarray, slot: Slot, packed: Packed | None, param: np.ndarray, what: str) -> np.ndarray:
    """State in 8 bits, checked, in one piece of memory; raises unless it can be a parameter's, and all finite.

    `packed` is what the state dict says of it; without that it is in C order.
    """
    shape = param.shape if packed is None else packed.shape
    if shape != param.shape:
        raise StateDictError(f"{what} has shape {shape}; the parameter has {param.shape}")
    if slot.narrow not in ("moment", "square"):
        raise StateDictError(f"{what} has dtype uint8; this state is not kept in 8 bits")
    blocks = -(-param.size // BLOCK)
    if array.shape != (param.size + 2 * blocks,):
        raise StateDictError(
            f"{what} has dtype uint8 and shape {array.shape}; for {param.size} elements ({param.size + 2 * blocks},) "
            "is needed"
        )
    array = np.require(array, None, ["ENSUREARRAY", "C"])
    bases = np.frombuffer(array[: 2 * blocks].tobytes(), np.uint16)
    most, special = (255, 253) if slot.narrow == "square" else (127, 125)
    wrong = (bases & 0x7FFF) > np.where(bases >> 15, TOP - special, TOP - most)
    if wrong.any():
        k = int(wrong.argmax())
        raise StateDictError(f"{what} is damaged: the base of block {k} is {int(bases[k]):#x}, too large for its codes")
    return array


def decoded(array: np.ndarray, slot: Slot, packed: Packed | None, param: np.ndarray) -> np.ndarray:
    """State of any storage, checked before, as an array of a floating type in the shape of the parameter; exact."""
    if is_packed(array):
        order: Any = "C" if packed is None else packed.order
        return decode_state(slot, array, param.size).reshape(param.shape, order=order)
    return widened(array) if is_bfloat16(array) else array


def stored_state(loading: Loading, i: int, slot: Slot, seed: int, array: np.ndarray) -> np.ndarray:
    """State of a dict, checked before, in the storage and memory order that a slot of parameter i has."""
    param, packed = loading.plan.arrays[i], loading.packed[i]
    order = order_of(param)
    if slot.like != "parameter":
        order = "C"
    if slot.storage is None and array.dtype.kind == param.dtype.kind == "f":  # as ever, and so without a look at more
        return np.require(array, param.dtype, ["ENSUREARRAY", "ALIGNED", order])
    _, dtype = layout_of(slot, param)
    what = f"state {slot.name!r} of {loading.plan.label(i)}"
    if slot.storage == LOW.storage:
        return np.require(array, dtype, ["ENSUREARRAY", "ALIGNED", order])
    if dtype == np.uint8 and is_packed(array):
        if same_order(packed, param):
            return array
        why = f"{what} is in 8 bits, in the other memory order; its blocks would be encoded again"
        require_lossy(loading.lossy, why)
    elif dtype.kind == "f":
        return np.require(decoded(array, slot, packed, param), dtype, ["ENSUREARRAY", "ALIGNED", order])
    elif dtype != np.uint8 and is_bfloat16(array):
        return np.require(array.view(dtype), None, ["ENSUREARRAY", "ALIGNED", order])
    elif dtype == np.uint8 or not is_packed(array):  # 8 bits are a bfloat16
        has = "8 bits" if is_packed(array) else "bfloat16" if is_bfloat16(array) else str(array.dtype)
        keeps = "8 bits" if dtype == np.uint8 else "bfloat16"
        require_lossy(loading.lossy, f"{what} is in {has}, and the optimizer keeps it in {keeps}: it would be rounded")
    wide = np.require(decoded(array, slot, packed, param), np.float32, ["ENSUREARRAY", "ALIGNED", order])
    check_squares(wide, slot, what)
    return encode_state(slot, param, wide, seed, loading.streams[i], loading.counts[i])


def same_order(packed: Packed | None, param: np.ndarray) -> bool:
    """Whether codes of a state dict are in the memory order of a parameter."""
    both = param.flags.c_contiguous and param.flags.f_contiguous
    return both or (packed.order if packed is not None else "C") == order_of(param)


def check_squares(wide: np.ndarray, slot: Slot, what: str) -> None:
    """Raise if state that is to be stored without a sign has one."""
    if slot.narrow == "square" and (np.nan_to_num(wide) < 0).any():
        raise StateDictError(f"{what} holds negative numbers; there are none in a sum or an average of squares")


def require_lossy(lossy: bool, why: str) -> None:
    """Raise unless bits may be lost."""
    if not lossy:
        raise StateDictError(f"{why}. {LOSSY}")
