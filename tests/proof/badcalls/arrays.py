"""Arrays that cannot stand where one is wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from proof.badcalls.world import FOREIGN, OTHER_TYPES, World
from support import values


def of_other_type(w: World, shape: Any) -> tuple[str, Any]:
    """Something that is no array of floats, whatever else is accepted."""
    if w.pick(True, True, False):
        dtype = np.dtype(w.pick(*OTHER_TYPES))
        swapped = w.pick(False, False, True)
        return f"dtype {dtype}", np.zeros(shape, dtype.newbyteorder() if swapped else dtype)
    what = w.pick(*FOREIGN)
    return what, FOREIGN[what]()


def of_other_float(w: World, shape: Any, dtypes: Any) -> tuple[str, np.ndarray]:
    """An array of floats, of a type that is none of those."""
    swapped = np.dtype(w.pick(np.float16, np.float32, np.float64)).newbyteorder()
    others = [d for d in map(np.dtype, "efdg") if d not in dtypes] + [swapped]
    dtype = w.pick(*others)
    return f"dtype {dtype.str}", np.ones(shape, dtype, w.pick("C", "F"))


def masked(w: World, shape: Any, dtype: Any) -> np.ndarray:
    a = values(shape, dtype)
    return np.ma.masked_array(a, w.pick(None, a > 0, True, False) if w.pick(False, True) else np.ma.nomask)


def off_layout(w: World, shape: Any, dtype: Any, orders: str) -> tuple[str, np.ndarray]:
    """An array that is misaligned, or contiguous in none of these orders."""
    dtype = np.dtype(dtype)
    if w.pick(True, True, True, False):
        steps = [w.pick(1, 1, -1, 2, -3, 0) for _ in shape]
        axes = w.rng.sample(range(len(shape)), len(shape))
        # Axis k of the array is axis axes[k] of the memory.
        room = [0] * len(shape)
        for n, step, axis in zip(shape, steps, axes, strict=True):
            room[axis] = n * abs(step) if step else 1
        base = np.ones(room, dtype).transpose(axes)
        a = base[tuple(slice(None, None, step or None) for step in steps)]
        a = np.broadcast_to(a, shape) if 0 in steps else a
        assert a.shape == tuple(shape)
        if not any({"C": a.flags.c_contiguous, "F": a.flags.f_contiguous}[order] for order in orders):
            return f"strides {a.strides}", a
    shift = w.pick(*range(1, dtype.itemsize, 2))
    raw = np.ones(int(np.prod(shape)) * dtype.itemsize + 8, np.uint8)
    a = np.ndarray(shape, dtype, raw, shift, order=orders[0])
    return f"an address of {a.ctypes.data % dtype.itemsize} modulo {dtype.itemsize}", a


def shifted_over(w: World, target: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """An array in the form of `like` over part of the memory of `target`; None where there is no room."""
    block = target.base if isinstance(target.base, np.ndarray) else target.ravel(order="K")
    raw = block.ravel(order="K").view(np.uint8)
    begin = target.ctypes.data - raw.ctypes.data
    low, high = max(0, begin - like.nbytes + 1), min(begin + target.nbytes - 1, raw.nbytes - like.nbytes)
    low += -(raw.ctypes.data + low) % like.itemsize
    shift = w.integer(0, 9999)  # addresses may not play into the choices, or they could not be repeated
    if low > high:
        return None
    at = low + like.itemsize * (shift % ((high - low) // like.itemsize + 1))
    return np.ndarray(like.shape, like.dtype, raw, at, order="C" if like.flags.c_contiguous else "F")
