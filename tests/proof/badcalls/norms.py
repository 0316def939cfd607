"""What can be wrong with the arguments of norm."""

from __future__ import annotations

import numpy as np
from proof.badcalls.arrays import masked, of_other_float, of_other_type, off_layout
from proof.badcalls.world import NO_INTS, NO_NUMBERS, Call, World, kind

import fastopt
from fastopt.errors import DTypeError, HyperparameterError, LayoutError


@kind("an array of a norm")
def norm_array(w: World) -> Call:
    i = w.big
    shape, dtype = w.params[i].shape, w.params[i].dtype
    what, bad, error = w.pick(
        lambda: (*of_other_type(w, shape), DTypeError),
        lambda: (*of_other_float(w, shape, [np.dtype(np.float32), np.dtype(np.float64)]), DTypeError),
        lambda: ("a masked array", masked(w, shape, dtype), DTypeError),
        lambda: (*off_layout(w, shape, dtype, "CF"), LayoutError),
    )()
    named = w.named and w.pick(False, True)
    members = [*w.params, *w.grads, None]
    members[i] = bad
    arrays = dict(zip("abcdefghi", members, strict=False)) if named else w.pick(list, tuple, iter)(members)
    label = f"arrays[{'abcdefghi'[i]!r}]" if named else f"arrays[{i}]"
    ord = w.pick(2, np.inf)
    return Call(f"norm of {what}", lambda: fastopt.norm(arrays, ord), error, (label,),
                (bad,) if isinstance(bad, np.ndarray) else ())  # fmt: skip


@kind("arguments of norm")
def norm_arguments(w: World) -> Call:
    case, error, says, options = w.pick(
        lambda: ("ord", HyperparameterError, ("ord=", "2 or inf"),
                 {"ord": w.pick(0, 1, 3, -2, -np.inf, np.nan, None, *NO_NUMBERS[:-1], w.some("a number between"))}),
        lambda: ("n_threads", HyperparameterError, ("n_threads=", "int >= 1"),
                 {"n_threads": w.pick(0, -1, True, *NO_INTS, w.some("an int below 0"))}),
        lambda: ("arrays", DTypeError, ("arrays is a ", "one array, or a list"),
                 {"arrays": w.pick(None, 1.5, "w", 1j, {1.0}, frozenset(), object(), len)}),
    )()  # fmt: skip
    call = {"arrays": w.arranged(w.grads) if w.cut is None else w.grads, **options}
    return Call(f"norm with a bad {case}", lambda: fastopt.norm(**call), error, says)
