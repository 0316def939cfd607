"""What can be wrong with gradients that are to be zeroed, with a scaler's word, and inside `averaged`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
from proof.badcalls.parameters import group_of, saved_by
from proof.badcalls.world import AROUND, NO_NUMBERS, Call, World, kind

from fastopt.errors import AveragedError, DTypeError, HyperparameterError, LayoutError, OverlapError, ReadOnlyError


def with_option(w: World, **options: Any) -> Any:
    """Edit every group; returns what puts them back as they were."""
    before = [(group, dict(group)) for group in w.opt.param_groups]
    for group, _ in before:
        group.update(options)

    def mend() -> None:
        for group, mine in before:
            group.clear()
            group.update(mine)

    return mend


@kind("a gradient that cannot be zeroed")
def not_to_be_zeroed(w: World) -> Call:
    i = w.big
    p, g = w.params[i], w.grads[i]
    other = np.float64 if p.dtype == np.float32 else np.float32
    fixed = g.copy("K")
    fixed.flags.writeable = False
    strided = np.zeros((*p.shape, 2), p.dtype)[..., 0]
    what, bad, error = w.pick(
        ("a read-only one", fixed, ReadOnlyError), ("of another type", g.astype(other), DTypeError),
        ("of another order", strided, LayoutError),
    )  # fmt: skip
    mend = with_option(w, zero_grads=True)
    offered = w.with_gradient(i, bad)
    return Call(f"zeroing {what}", lambda: w.opt.step(offered), error,
                (f"gradient of {w.label(i)}", "zero_grads=True"), (bad,), mend)  # fmt: skip


@kind("gradients to be zeroed that share memory", several=True)
def zeroed_twice(w: World) -> Call:
    filled = [i for i, p in enumerate(w.params) if p.size]
    i = w.big
    j = w.pick(*range(len(w.params)))
    if i == j or j not in filled:
        j = next((k for k in filled if k != i), None)
    if j is None:  # only one has elements: read-only will do
        return not_to_be_zeroed(w)
    first, second = sorted((i, j))
    memory = np.full(max(w.params[i].nbytes, w.params[j].nbytes), 1, np.uint8)
    bad = list(w.grads)
    for k in (i, j):
        p = w.params[k]
        bad[k] = np.ndarray(p.shape, p.dtype, memory, order="C" if p.flags.c_contiguous else "F")
    mend = with_option(w, zero_grads=w.pick(True, np.True_))
    says = f"gradient of {w.label(second)} shares memory with the gradient of {w.label(first)}"
    offered = w.offer(bad)
    return Call("zeroing what shares memory", lambda: w.opt.step(offered), OverlapError, (says,), (memory,), mend)


@kind("what no scaler can have found")
def found(w: World) -> Call:
    numbers = [x for x in NO_NUMBERS if not isinstance(x, (bool, np.bool_, int, np.floating))
               and not (isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "fb")]  # fmt: skip
    value = w.pick(*numbers, np.ones(2), np.ones(0))
    return Call(f"step with found_inf={value!r}", lambda: w.opt.step(w.grads, found_inf=value), HyperparameterError,
                ("found_inf=",))  # fmt: skip


@kind("what may not happen while averages stand in", stepped=True)
def inside(w: World) -> Call:
    mend = with_option(w, ema_decay=AROUND["ema_decay"]) if w.options.get("ema_decay") is None else lambda: None
    saved = saved_by(w)
    context = w.opt.averaged()
    context.__enter__()
    arrays = w.fresh(2)
    i = w.any()
    calls = {
        "step": lambda: w.opt.step(w.grads), "a step that is skipped": lambda: w.opt.step(w.grads, found_inf=1),
        "load_state_dict": lambda: w.opt.load_state_dict(saved),
        "add_param_group": lambda: w.opt.add_param_group(group_of(w, arrays)),
        "rebind": lambda: w.opt.rebind(i, w.params[i].copy("K")),
        "averaged": lambda: w.opt.averaged().__enter__(), "once more": lambda: context.__enter__(),
        "deepcopy": lambda: copy.deepcopy(w.opt), "pickling": lambda: pickle.dumps(w.opt),
    }  # fmt: skip
    if hasattr(w.opt, "lookahead"):
        calls["lookahead"] = w.opt.lookahead
    what = w.pick(*calls)

    def leave() -> None:
        context.__exit__(None, None, None)
        mend()

    return Call(f"{what} inside averaged", calls[what], AveragedError, ("inside `with averaged():`",), tuple(arrays),
                leave)  # fmt: skip


@kind("averages that are not kept")
def no_averages(w: World) -> Call:
    mend = with_option(w, ema_decay=None)
    do = w.pick(lambda: w.opt.averaged(), lambda: w.opt.averages)
    return Call("averages that are not kept", do, AveragedError, ("give ema_decay", w.cls.__name__), mend=mend)
