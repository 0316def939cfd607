"""What can be wrong with state dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from proof.badcalls.arrays import masked, of_other_type
from proof.badcalls.parameters import saved_by
from proof.badcalls.world import Call, World, kind
from support import ALL, names_of

from fastopt.declare import counts_in_state, saved_numbers
from fastopt.errors import StateDictError


def loading(w: World, what: str, saved: Any, says: tuple[Any, ...], error: Any = StateDictError) -> Call:
    """A call of load_state_dict."""
    return Call(f"load_state_dict with {what}", lambda: w.opt.load_state_dict(saved), error, says)


NO_MAPPING: tuple[Any, ...] = (None, 3, "state", b"state", [], [("state", {})], (), {1, 2}, object(), np.zeros(3), 1.5)

NO_COUNTS: tuple[Any, ...] = (
    -1, -0.5, 1.5, 2**63, 2**1024, 1e300, np.nan, np.inf, "3", "x", None, [1, 2], {}, object(), 1j, np.array(-2.0),
)  # fmt: skip


@kind("a state dict's form")
def state_dict_form(w: World) -> Call:
    saved = saved_by(w)
    groups = saved["param_groups"]
    k = w.integer(0, len(groups) - 1)
    group, junk = groups[k], w.pick(*NO_MAPPING)
    listed = [j for j, g in enumerate(groups) if g["params"]]
    first = groups[listed[0]]
    cases: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
        "a lost key": (lambda: saved.pop(w.pick("state", "param_groups")), ("'state' and 'param_groups'",)),
        "no mapping as state": (lambda: saved.update(state=junk), ("'state'",)),
        "no list of groups": (
            lambda: saved.update(param_groups=w.pick(None, 3, "x", {}, tuple(groups))), ("'param_groups'",)),
        "no mapping as group": (lambda: groups.__setitem__(k, junk), ("parameter group",)),
        "no mapping as 'fastopt'": (lambda: saved.update(fastopt=junk), ("'fastopt'",)),
        "a group without params": (lambda: group.pop("params"), ("'params'",)),
        "no list of params": (lambda: group.update(params=w.pick(None, 3, (0, 1), "01", {0: 1})), ("'params'",)),
        "one parameter more": (lambda: group["params"].append(99), ("parameters",)),
        "one parameter less": (lambda: first["params"].pop(), ("parameters",)),
        "a group more": (lambda: groups.append(dict(group)), ("parameters",)),
        "a group less": (lambda: groups.pop(), ("parameters",)),
        "no groups": (lambda: groups.clear(), ("parameters",)),
        "a bad index": (lambda: first["params"].__setitem__(0, w.pick(None, 1.0, (0,), b"0", 1j)), ("index",)),
        "state of a stranger": (lambda: saved["state"].update({w.pick(99, -1, "w", None, (0,)): {}}), ("state for",)),
        "itself for state": (lambda: saved.update(state=saved), ("state for",)),
        "state by names": (lambda: saved.update(state={"weight": {"step": 1}}), ("'weight'",)),
    }  # fmt: skip
    if w.several:
        twice = [g["params"] for g in groups]
        flat = [(j, i) for j, params in enumerate(twice) for i in range(len(params))]
        (a, b), (c, d) = flat[0], flat[-1]
        cases["a parameter twice"] = (lambda: twice[c].__setitem__(d, twice[a][b]), ("twice",))
    if w.pick(*[True] * 9, False):
        what = w.pick(*cases)
        damage, says = cases[what]
        damage()
        return loading(w, what, saved, says)
    return loading(w, f"{junk!r}", junk, ("state dict",))


@kind("a state dict's origin and counts")
def state_dict_origin(w: World) -> Call:
    saved = saved_by(w)
    own, n = saved["fastopt"], len(w.params)
    key = w.pick("optimizer", "convention", "version", "counts", "counts", "steps", "skipped_steps")
    wrong_counts = (*NO_COUNTS, w.some("an int below 0"), w.some("a number between"))
    if key in ("steps", "skipped_steps"):
        own[key] = w.pick(*wrong_counts)
        says: tuple[Any, ...] = ("of the optimizer", repr(own[key]))
    elif key == "counts" and w.pick(False, True):
        own[key] = w.pick(None, 3, "x" * n, {}, np.ones(n), [1] * (n + 1), [1] * (n - 1), object())
        says = ("counts",)
    elif key == "counts":
        i = w.any()
        own[key][i] = w.pick(*wrong_counts)
        says = (f"of {w.label(i)}", repr(own[key][i]))
    elif key == "version":
        own[key] = w.pick(0, 1, 4, -1, None, "2", 1.5, [], np.zeros(3), object())
        says = ("version", repr(own[key]))
    else:
        own[key] = w.pick("Adagrid", "", None, 3, b"torch", [], np.zeros(3), object(), "Muon", "pytorch")
        says = (key, repr(own[key]))
    return loading(w, f"{key} {own[key]!r}", saved, says)


STATEFUL = [pair for pair in ALL if names_of(pair[0])]


@kind("a state dict's arrays and steps", STATEFUL, stepped=True)
def state_dict_state(w: World) -> Call:
    saved = saved_by(w, w.pick(False, True))
    i = w.filled()
    entry, label, cls, shape = saved["state"][i], w.label(i), w.cls, w.params[i].shape
    name = w.pick(*w.slots)
    ways = ["array", "array", "array", "entry"]
    ways += ["step", "step", "missing"] if counts_in_state(cls) else []
    product = next(iter(saved_numbers(cls, w.convention)), None)
    ways += ["product"] if product else []
    way = w.pick(*ways)
    if way == "entry":
        saved["state"][i] = w.pick(3, "state", [], [("step", 1)], object(), np.zeros(3), 1.5, True)
        return loading(w, f"{saved['state'][i]!r} as an entry", saved, (label,))
    if way == "step":
        bad = w.pick(*NO_COUNTS, np.ones(2), np.array(np.nan), w.some("an int below 0"))
        entry["step"] = bad
        return loading(w, f"step {bad!r}", saved, (label, repr(bad)))
    if way == "missing":
        name = w.pick(name, "step")
        if name == "step" or w.pick(False, True):
            del entry[name]
        else:
            entry[name] = None
        return loading(w, f"no {name}", saved, (label, repr(name)))
    if way == "product":
        bad = w.pick("gone", np.nan, -0.5, 1.5, "x", None, [0.5, 0.5], np.ones(2), np.inf, 2**1024, object(), 1j)
        entry[product] = bad
        if isinstance(bad, str) and bad == "gone":
            del entry[product]
        return loading(w, f"{product} {bad!r}", saved, (label,))
    other = w.pick((*shape, 1), (1, *shape), (*shape, 2), tuple(n + 1 for n in shape) or (1,), (0,), shape[1:] or (2,))
    what, bad = w.pick(
        lambda: (f"shape {other}", np.zeros(other, w.pick("f2", "f4", "f8"))),
        lambda: of_other_type(w, shape),
        lambda: ("a mask", masked(w, shape, np.float32)),
        lambda: ("a ragged list", [[1.0], [1.0, 2.0]]),
    )()  # fmt: skip
    if isinstance(bad, np.ndarray) and bad.dtype == np.uint16:  # which holds bfloat16
        what, bad = "dtype int16", bad.astype(np.int16)
    entry[name] = bad if not isinstance(bad, float) else "a string"  # a number is good for an array of no dimensions
    return loading(w, f"{what} for {name!r} of {i}", saved, (label, repr(name)))
