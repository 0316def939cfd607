"""The 8-bit optimizer state of bitsandbytes and torchao, as float32 arrays and back.

Both libraries cut a flattened state array into blocks of 256 elements. A block is one float32, the scale, and a code of
8 bits for each element. A table of 256 float32 (`qmap`) says what a code means: an element is ``qmap[code] * scale``.

Design: conversion happens once, at load and save, so it is plain NumPy. Decoding is one rounded product, the same bits
as the library's own. Encoding takes the nearest number of the table; where a number is halfway, bitsandbytes takes the
lower code and torchao the upper one. Nothing here imports PyTorch: a tensor is what has ``numpy()``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fastopt.errors import StateDictError

__all__ = ["decode_bitsandbytes", "decode_torchao", "encode_bitsandbytes", "encode_torchao", "kind_of_state"]

BLOCK = 256
SMALLEST = 4096
"""Both libraries keep state of fewer elements as it is, without codes."""
WRAPPED = "__bnb_optimizer_quant_state__"
"""Where an entry has bitsandbytes' arrays since version 0.49.2; before that, they are in the entry itself."""
BITSANDBYTES_SLOTS = {
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Lion": ("exp_avg",),
    "RMSprop": ("square_avg",),
    "SGD": ("momentum_buffer",),
    "Adagrad": ("sum",),
}
"""What bitsandbytes' state1 and state2 are called in PyTorch, by PyTorch's class (Lion: fastopt's)."""
SMALLEST_SCALE = np.float32(1e-12)  # torchao's, which divides by the scale also in a block of zeros
ROWS = 1024  # blocks that are encoded at a time, which bounds the temporary memory to a few MB


def kind_of_state(state_dict: object) -> Literal["bitsandbytes", "torchao"] | None:
    """Which library's 8-bit state a state dict holds, or None; other state, and what is no state dict, is None, too.

    Looks at the keys of an entry and once at each type of value. Entries of bitsandbytes' 32-bit optimizers, and those
    of small parameters, have bitsandbytes' names and count as its state.
    """
    state = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    ordinary: set[type] = set()
    for entry in state.values() if isinstance(state, Mapping) else ():
        if not isinstance(entry, Mapping):
            continue
        if WRAPPED in entry or "state1" in entry:
            return "bitsandbytes"
        for value in entry.values():
            kind = type(value)
            if kind not in ordinary:
                if hasattr(value, "codes") and hasattr(value, "scale"):
                    return "torchao"
                ordinary.add(kind)
    return None


def decode_bitsandbytes(
    entry: Mapping[str, Any], slots: Sequence[str], *, label: str = "bitsandbytes' state"
) -> dict[str, np.ndarray]:
    """The state arrays of one parameter from its entry in a state dict of bitsandbytes.

    Parameters
    ----------
    entry
        What the dict has under ``state`` for the parameter, in either layout (see `WRAPPED`). What is not state
        (``step``, ``unorm_vec``) is ignored.
    slots
        The names of ``state1`` and, if there are two, of ``state2``.
    label
        How messages call the entry.

    Returns
    -------
    dict
        A float32 array by slot name, in the shape of the parameter. State without codes is returned as it is, not
        copied.

    Raises
    ------
    StateDictError
        If something is missing, has another type or shape, or blocks of another size. Nothing is decoded before all is
        checked.
    """
    check_slots(slots)
    if not isinstance(entry, Mapping):
        raise StateDictError(f"{label} is of type {type(entry).__name__}; a dict with state1 is needed")
    parts = entry.get(WRAPPED, entry)
    if not isinstance(parts, Mapping):
        raise StateDictError(f"{label}: {WRAPPED} is of type {type(parts).__name__}; a dict with state1 is needed")
    if len(slots) == 1 and parts.get("state2") is not None:
        raise StateDictError(f"{label} has state1 and state2; the optimizer has one state array, {slots[0]!r}")
    checked = [bitsandbytes_parts(parts, str(k), label) for k in range(1, len(slots) + 1)]
    first, last = checked[0][0], checked[-1][0]
    if first.shape != last.shape:
        raise StateDictError(f"{label}: state1 has shape {first.shape} and state2 {last.shape}; both must be the same")
    return {
        name: state if scale is None or qmap is None else decoded(looked_up(qmap, state), scale)
        for name, (state, scale, qmap) in zip(slots, checked, strict=True)
    }


def encode_bitsandbytes(arrays: Mapping[str, np.ndarray], slots: Sequence[str]) -> dict[str, np.ndarray]:
    """The entry of one parameter for a state dict of bitsandbytes, without ``step``.

    Parameters
    ----------
    arrays
        State arrays by slot name, of one shape and of a floating type; they are rounded to float32.
    slots
        The slots that become ``state1`` and ``state2``. As in the library, the map of state1 is signed and that of
        state2 unsigned.

    Returns
    -------
    dict
        ``state1``, ``qmap1``, ``absmax1``, and the same for state2; for less than 4,096 elements only the float32
        states. This is the flat layout, which each version of the library loads. The arrays share no memory with
        `arrays`; the library loads tensors (``torch.from_numpy``).

    Raises
    ------
    StateDictError
        If an array is missing, holds NaN or infinity, or negative numbers that the map of state2 does not have, or if
        shapes differ.
    """
    check_slots(slots)
    states = []
    for k, name in enumerate(slots):
        if arrays.get(name) is None:
            raise StateDictError(f"there is no array {name!r}; bitsandbytes' state{k + 1} is made from it")
        states.append(encodable(arrays[name], repr(name), signed=k == 0))
    if states[0].shape != states[-1].shape:
        raise StateDictError(
            f"{slots[0]!r} has shape {states[0].shape} and {slots[-1]!r} {states[-1].shape}; both must be the same"
        )
    entry = {}
    for k, state in enumerate(states, 1):
        if state.size < SMALLEST:
            entry[f"state{k}"] = np.array(state, order="C")
            continue
        qmap = dynamic_map(signed=k == 1)
        entry[f"state{k}"], entry[f"absmax{k}"] = bitsandbytes_codes(state, qmap)
        entry[f"qmap{k}"] = qmap.copy()
    return entry


def decode_torchao(value: Any, *, label: str = "torchao's state") -> np.ndarray:
    """The float32 array that an 8-bit state tensor of torchao stands for.

    Parameters
    ----------
    value
        An `OptimState8bit`, or anything with its attributes ``codes`` (uint8), ``scale`` and ``qmap`` (float32); or an
        `OptimStateFp8`, with codes in float8_e4m3fn and without ``qmap``.
    label
        How messages call the tensor.

    Raises
    ------
    StateDictError
        If an attribute is missing, has another type or shape, or if the blocks have another size than 256. State of 4
        bits is refused.
    """
    parts = {name: getattr(value, name, None) for name in ("codes", "scale", "qmap")}
    if parts["qmap"] is None:
        codes = part(parts, "codes", label, "float8_e4m3fn", "uint8")
        if codes.dtype == np.uint8:
            raise StateDictError(f"{label}: qmap is missing; codes in uint8 need one, of 256 float32")
    else:
        codes = part(parts, "codes", label, "uint8")
    scale = part(parts, "scale", label, "float32")
    qmap = None if parts["qmap"] is None else check_map(part(parts, "qmap", label, "float32"), "qmap", label)
    block = getattr(value, "block_size", BLOCK)
    if block != BLOCK:
        raise StateDictError(f"{label} has blocks of {block} elements; blocks of {BLOCK} are needed")
    check_scale(scale, codes.size, "scale", label)
    if codes.size % BLOCK:
        raise StateDictError(f"{label}: codes has {codes.size} elements; a multiple of {BLOCK} is needed")
    return decoded(codes if qmap is None else looked_up(qmap, codes), scale)


def encode_torchao(array: np.ndarray, signed: bool) -> dict[str, np.ndarray]:
    """The parts of torchao's `OptimState8bit` for a state array: ``codes``, ``scale`` and ``qmap``.

    With ``parts = {name: torch.from_numpy(part) for name, part in encode_torchao(array, signed).items()}`` the tensor
    is ``OptimState8bit(**parts, signed=signed, dtype=parameter.dtype)``.

    Parameters
    ----------
    array
        State of a floating type, rounded to float32; the number of elements must be a multiple of 256. torchao keeps
        all other state, and that of less than 4,096 elements, as an ordinary tensor: see `torchao_has_codes`.
    signed
        Whether numbers may be negative: True for exp_avg, False for exp_avg_sq and max_exp_avg_sq.

    Raises
    ------
    StateDictError
        If the number of elements is no multiple of 256, or if numbers are NaN, infinite, or negative with
        ``signed=False``.
    """
    state = encodable(array, "the array", signed)
    if state.size % BLOCK or not state.size:
        raise StateDictError(
            f"the array has {state.size} elements; torchao's codes need a multiple of {BLOCK}, other state is kept as "
            "an ordinary tensor"
        )
    qmap = dynamic_map(signed)
    rows = state.reshape(-1, BLOCK)
    codes, scale = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
    for i in range(0, len(rows), ROWS):
        row = rows[i : i + ROWS]
        scale[i : i + ROWS] = np.maximum(np.abs(row).max(1), SMALLEST_SCALE)
        with np.errstate(under="ignore"):
            x = row / scale[i : i + ROWS, None]
        # All in float32, as torchao does: a difference that is rounded decides which code is the nearest.
        low = np.maximum(np.searchsorted(qmap, x, side="right") - 1, 0)
        high = np.minimum(low + 1, BLOCK - 1)
        up = x - qmap[low] >= (qmap[high] - qmap[low]) * np.float32(0.5)
        codes[i : i + ROWS] = np.where(up, high, low)
    return {"codes": codes.reshape(state.shape), "scale": scale, "qmap": qmap.copy()}


def torchao_has_codes(size: int) -> bool:
    """Whether torchao keeps state of so many elements in codes, with its usual block size."""
    return size >= SMALLEST and size % BLOCK == 0


# --- The map and the blocks


@functools.cache
def dynamic_map(signed: bool) -> np.ndarray:
    """The 256 numbers of the dynamic map (arXiv:1511.04561) in rising order, which both libraries use.

    For each exponent from -6 to 0 the range from 0.1 to 1 is cut into equal parts: 1 part for the smallest exponent,
    then 2, 4, ... 64 (without signs 2, 4, ... 128). The middles of the parts, times the power of ten, are the numbers;
    then 0 and 1. There is no -1: the largest magnitude of a block is exact only if it is positive.
    """
    numbers = [np.array([0, 1], np.float32)]
    start, stop = np.float32(0.1), np.float32(1)
    for i in range(7):
        n = 2**i if signed else 2 ** (i + 1)
        # PyTorch's linspace: from both ends, with a step in float32 and one rounding for each number.
        step, k = float((stop - start) / np.float32(n)), np.arange(n + 1)
        edges = np.where(k < (n + 1) // 2, float(start) + step * k, float(stop) - step * (n - k)).astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        numbers += [middles, -middles] if signed else [middles]
    out = np.sort(np.concatenate(numbers))
    out.flags.writeable = False
    return out


def bitsandbytes_codes(state: np.ndarray, qmap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The code of the nearest number for each element of a float32 array, and the largest magnitude of each block.

    The quotient is computed in float64, so it is the nearest one. The library's CPU kernel (0.50) looks a rounded
    quotient up in a table of 65,536 entries instead, which cannot tell numbers below 3e-5 of the block's largest apart
    and makes 1.5e-5 of a zero. In a block of zeros every code is 0, as in the library.
    """
    n = -(-state.size // BLOCK)
    rows = np.zeros((n, BLOCK), np.float32)
    rows.ravel()[: state.size] = state.reshape(-1)
    absmax, codes = np.empty(n, np.float32), np.empty((n, BLOCK), np.uint8)
    wide = qmap.astype(np.float64)
    middles = (wide[:-1] + wide[1:]) / 2
    for i in range(0, n, ROWS):
        largest = np.abs(rows[i : i + ROWS]).max(1)
        zero = largest == 0
        quotient = rows[i : i + ROWS] / np.where(zero, 1, largest).astype(np.float64)[:, None]
        some = np.searchsorted(middles, quotient).astype(np.uint8)
        some[zero] = 0
        absmax[i : i + ROWS], codes[i : i + ROWS] = largest, some
    return codes.ravel()[: state.size].reshape(state.shape).copy(), absmax


def looked_up(qmap: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """What the codes mean, in a new C-contiguous array of their shape, also if they have no dimensions."""
    return np.asarray(qmap[codes.reshape(-1)]).reshape(codes.shape)


def decoded(numbers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``numbers``, a new C-contiguous float32 array, times the scale of each block of 256; the last may be shorter."""
    flat, whole = numbers.reshape(-1), numbers.size // BLOCK
    with np.errstate(all="ignore"):  # a scale may be NaN or infinite, and a product a subnormal
        rows = flat[: whole * BLOCK].reshape(whole, BLOCK)
        np.multiply(rows, scale[:whole, None], out=rows)
        np.multiply(flat[whole * BLOCK :], scale[whole:], out=flat[whole * BLOCK :])
    return numbers


# --- Checks


def check_slots(slots: Sequence[str]) -> None:
    """Raise unless there are one or two slots."""
    if not 1 <= len(slots) <= 2:
        raise StateDictError(f"bitsandbytes has one or two state arrays for a parameter, not {len(slots)}: {slots!r}")


def bitsandbytes_parts(
    parts: Mapping[str, Any], k: str, label: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """``state<k>`` of an entry, its absmax and its qmap, checked; the last two are None for state in float32."""
    name = "state" + k
    state = part(parts, name, label, "uint8", "float32")
    if not state.flags.c_contiguous:
        # On a GPU the library goes by memory, on the CPU by index: a state dict does not say which of them it was.
        raise StateDictError(f"{label}: {name} is not in C order; a contiguous array is needed (tensor.contiguous())")
    codes = state.dtype == np.uint8
    if not codes and parts.get("absmax" + k) is not None:
        raise StateDictError(f"{label}: {name} has dtype float32 beside absmax{k}; codes in uint8 are needed")
    if not codes:
        return state, None, None
    absmax = part(parts, "absmax" + k, label, "float32")
    qmap = check_map(part(parts, "qmap" + k, label, "float32"), "qmap" + k, label)
    check_scale(absmax, state.size, "absmax" + k, label)
    return state, absmax, qmap


def part(parts: Mapping[str, Any], name: str, label: str, *dtypes: str) -> np.ndarray:
    """An array of an entry, which must be of one of these types; float8 becomes a new array of float32."""
    value, needed = parts.get(name), " or ".join(dtypes)
    if value is None:
        raise StateDictError(f"{label}: {name} is missing; an array of {needed} is needed")
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if not dtype:
        raise StateDictError(f"{label}: {name} is of type {type(value).__name__}; an array of {needed} is needed")
    if dtype not in dtypes:
        raise StateDictError(f"{label}: {name} has dtype {dtype}; {needed} is needed")
    narrow = dtype.startswith("float8")
    try:
        if isinstance(value, np.ndarray):
            return np.array(value, np.float32, order="C") if narrow else value
        for method in ("detach", "cpu", *(["float"] if narrow else []), "numpy"):
            if hasattr(value, method) or method in ("float", "numpy"):
                value = getattr(value, method)()
        return np.array(value, np.float32, order="C") if narrow else np.asarray(value)
    except Exception as error:  # whatever a foreign type's conversion raises
        raise StateDictError(f"{label}: {name} cannot be read as an array: {error}") from error


def check_map(qmap: np.ndarray, name: str, label: str) -> np.ndarray:
    """`qmap`, if it has a number for each code."""
    if qmap.shape != (BLOCK,):
        raise StateDictError(f"{label}: {name} has shape {qmap.shape}; ({BLOCK},) is needed, state of 8 bits")
    return qmap


def check_scale(scale: np.ndarray, size: int, name: str, label: str) -> None:
    """Raise unless there is one scale for each block of 256 of so many codes."""
    blocks = -(-size // BLOCK)
    if scale.shape != (blocks,):
        raise StateDictError(
            f"{label}: {name} has shape {scale.shape}; {size} codes in blocks of {BLOCK} need ({blocks},), "
            "blocks of another size are not supported"
        )


def encodable(array: Any, what: str, signed: bool) -> np.ndarray:
    """`array` in float32, if its numbers can be encoded."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        is_now = f"has dtype {array.dtype}" if isinstance(array, np.ndarray) else f"is of type {type(array).__name__}"
        raise StateDictError(f"{what} {is_now}; a NumPy array of float32 is needed")
    with np.errstate(all="ignore"):
        state = array.astype(np.float32, copy=False)
    if not np.isfinite(state).all():
        raise StateDictError(f"{what} holds NaN, infinity or numbers too large for float32, which 8 bits cannot keep")
    if not signed and (state < 0).any():
        raise StateDictError(f"{what} holds negative numbers; the unsigned 8-bit map has numbers from 0 on")
    return state
