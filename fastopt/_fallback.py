"""Parameters that the compiled step cannot take: which they are, why, and PyTorch's own step for them."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fastopt._tensors import (
    Host,
    average_dtype,
    check_swap,
    count_tensor,
    has_dispatch,
    has_storage,
    in_shared_memory,
    is_dense,
    is_dtensor,
    local_of,
    number_tensor,
    reaches,
    share,
    span,
    steppable,
)
from fastopt.declare import AVERAGE
from fastopt.engine import clip_of_total, total
from fastopt.errors import (
    FastoptError,
    GradientError,
    HyperparameterError,
    StateDictError,
    TensorDTypeError,
    TensorLayoutError,
    TensorStateError,
    warn_caller,
)

CHOICES = ("warn", "silent", "error")
PYTORCH = os.path.join(os.path.dirname(str(torch.__file__)), "")
warned: set[str] = set()
"""The kinds of reasons that a warning was given for in this process."""


class Left(NamedTuple):
    """A parameter that is left to PyTorch. It holds no exception, whose traceback would keep the callers' frames."""

    place: int
    """Its place among all, in whose order PyTorch steps."""
    group: int
    param: torch.Tensor
    look: tuple[Any, ...]
    """What decided, for a comparison at the next step."""
    kind: str
    text: str
    shares: bool
    """Whether it shares memory, with itself or another, which only PyTorch's plain loop gets right."""
    label: str


class Mixed(NamedTuple):
    """What is left to PyTorch, and the plan for the other parameters."""

    plan: Any
    left: list[Left]
    parts: list[tuple[int, list[torch.Tensor], bool]]
    """For each group with such: its place, the parameters, and whether they need the plain loop."""

    def holds(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the same parameters are to be left as before, as far as they tell themselves."""
        return all(one.group < len(groups) and is_as_before(groups[one.group], one) for one in self.left)


def mixed(plan: Any, left: list[Left]) -> Mixed:
    """Both, with what is left sorted by its groups."""
    by_group: dict[int, list[Left]] = {}
    for one in left:
        by_group.setdefault(one.group, []).append(one)
    parts = [(g, [one.param for one in ones], any(one.shares for one in ones)) for g, ones in by_group.items()]
    return Mixed(plan, left, parts)


def check_choice(value: Any) -> None:
    """Raise unless a value of the argument ``fallback`` is one."""
    if not (isinstance(value, str) and value in CHOICES):
        raise HyperparameterError(f"fallback={value!r} must be one of {', '.join(map(repr, CHOICES))}")


# --- Which


def left_to_pytorch(
    groups: list[dict[str, Any]], state: Mapping[Any, Any], named: Callable[[dict[str, Any], int, int], str]
) -> list[Left]:
    """The parameters with a gradient that cannot be stepped compiled, in the order of the groups.

    `named` gives what messages call a parameter: of its group, its place there, and its place among all.
    """
    every: list[tuple[int, int, torch.Tensor, str]] = []
    place = 0
    for g, group in enumerate(groups):
        for k, param in enumerate(group["params"]):
            if param.grad is not None:
                every.append((place + k, g, param, named(group, k, place + k)))
        place += len(group["params"])
    found: dict[int, Left] = {}
    for i, (at, g, param, label) in enumerate(every):
        reason = reason_of(groups[g], param, label) or state_reason(state, param, label)
        if reason is not None:
            check_storages(param, state, label)
            found[i] = Left(at, g, param, look_at(groups[g], param), *reason, not reaches(param), label)
    for i, text in overlapping([(param, label) for _, _, param, label in every]).items():
        at, g, param, label = every[i]
        if i in found:
            found[i] = found[i]._replace(shares=True)
        else:
            look = look_at(groups[g], param)
            found[i] = Left(at, g, param, look, "memory shared with another tensor", text, True, label)
    return [found[i] for i in sorted(found)]


def reason_of(group: Mapping[str, Any], param: torch.Tensor, label: str) -> tuple[str, str] | None:
    """Why a parameter cannot be stepped compiled by itself: the kind of reason, and the words for it."""
    if group.get("differentiable"):
        return "differentiable=True", "differentiable=True is not supported by the compiled step"
    if (error := unfit(param, label)) is not None:
        own = local_of(param)
        if own.layout == torch.strided and not has_dispatch(own) and own.device.type == "cpu" and not has_storage(own):
            return None  # PyTorch would crash
        ordinary = own.dtype in (torch.float32, torch.float64) and own.layout == torch.strided
        return f"{type(own).__name__} {own.device.type} {own.layout} {own.dtype if not ordinary else ''}", str(error)
    if (shared := shared_reason(param, label)) is not None:
        return shared
    grad = param.grad
    if grad is None or is_dtensor(grad) or has_dispatch(grad):
        return None
    if grad.layout != torch.strided or grad.device.type != "cpu" or not grad.is_floating_point():
        return f"gradient {grad.layout} {grad.device.type}", (
            f"gradient of {label} has layout {grad.layout}, dtype {grad.dtype}, device {grad.device}; a dense floating "
            "tensor on the CPU is needed"
        )
    return None


def unfit(param: torch.Tensor, label: str) -> FastoptError | None:
    """Why the memory of a parameter cannot be stepped; None if it can."""
    try:
        steppable(param, label)
    except FastoptError as error:
        return error.with_traceback(None)
    return None


def shared_reason(param: torch.Tensor, label: str) -> tuple[str, str] | None:
    """Why a parameter in shared memory cannot be stepped compiled; one without gaps can, as safely as by PyTorch."""
    if is_dense(local_of(param)) or not in_shared_memory(local_of(param)):
        return None
    return "parameter with gaps in shared memory", (
        f"{label} has gaps between its elements and is in shared memory: a process that steps it at the same time "
        "would lose its steps, because the compiled step works on a copy"
    )


def state_reason(state: Mapping[Any, Any], param: torch.Tensor, label: str) -> tuple[str, str] | None:
    """Why state that a step of PyTorch's left cannot be stepped compiled: SGD's buffer is sparse as its gradients."""
    for name, value in (state[param] if param in state and isinstance(state[param], Mapping) else {}).items():
        if isinstance(value, torch.Tensor) and value.layout != torch.strided:
            return f"state {value.layout}", f"state {name!r} of {label} has layout {value.layout}; it has to be dense"
    return None


def look_at(group: Mapping[str, Any], param: torch.Tensor) -> tuple[Any, ...]:
    """What of a parameter decides whether it is left to PyTorch, its gradient's part last."""
    own, grad = local_of(param), param.grad
    memory = own.data_ptr() if own.layout == torch.strided and not has_dispatch(own) else 0
    gradient = None if grad is None else (grad.layout, grad.dtype, grad.device)
    return type(own), own.dtype, own.layout, own.device, memory, bool(group.get("differentiable")), gradient


def is_as_before(group: Mapping[str, Any], one: Left) -> bool:
    """Whether a parameter looks as it did; without a gradient, PyTorch's step passes it over."""
    now = look_at(group, one.param)
    return now[:-1] == one.look[:-1] and now[-1] in (None, one.look[-1])


def to_zero(
    groups: list[dict[str, Any]], named: Callable[[dict[str, Any], int, int], str],
    given: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients of groups with ``zero_grads``, all of which can be zeroed and share no memory.

    `given`: by the identity of their parameters, gradients in whose place others stand now.
    """
    params: list[tuple[torch.Tensor, str]] = []
    grads: list[tuple[torch.Tensor, str]] = []
    place = 0
    for group in groups:
        for k, param in enumerate(group["params"]):
            params.append((param, named(group, k, place + k)))
            if group.get("zero_grads") and (grad := given.get(id(param), param.grad)) is not None:
                label = f"gradient of {params[-1][1]}"
                Host.check_zeroing(grad, label)
                grads.append((grad, label))
        place += len(group["params"])
    if grads:
        Host.check_zeroed(grads, params)
    return [grad for grad, _ in grads]


def check_storages(param: torch.Tensor, state: Mapping[Any, Any], label: str) -> None:
    """Raise if the memory of a gradient or of state was freed: PyTorch would crash."""
    entry = state[param] if param in state and isinstance(state[param], Mapping) else {}
    named: list[tuple[type[FastoptError], str, Any]] = [(GradientError, f"gradient of {label}", param.grad)]
    named += [(StateDictError, f"state {name!r} of {label}", x) for name, x in entry.items()]
    for error, what, tensor in named:
        local = local_of(tensor) if isinstance(tensor, torch.Tensor) else None
        if local is None or has_dispatch(local) or local.layout != torch.strided or local.device.type != "cpu":
            continue
        if not has_storage(local):
            raise error(f"{what} has no storage for all of its elements: its memory was freed")


# --- What shares memory


def overlapping(params: list[tuple[torch.Tensor, str]]) -> dict[int, str]:
    """Which of some parameters, with their labels, share memory with another one or with a gradient, and the words."""
    spans = sorted((*at, i) for i, (param, _) in enumerate(params) if (at := span(param)) is not None)
    found: dict[int, str] = {}

    def note(i: int, j: int, of: str) -> None:
        text = f"{of}{params[i][1]} shares memory with {params[j][1]}; every parameter needs memory of its own"
        found.setdefault(i, text)
        found.setdefault(j, text)

    open_until: list[tuple[int, int]] = []  # where a parameter ends that has begun, and its place
    for low, high, i in spans:
        open_until = [(end, j) for end, j in open_until if end > low]
        for _, j in open_until:
            if share(params[i][0], params[j][0]):
                note(i, j, "")
        open_until.append((high, i))
    lows, farthest = [low for low, _, _ in spans], list(accumulate((high for _, high, _ in spans), max))
    seen: set[tuple[int, int]] = set()  # many parameters may have one gradient
    for i, (param, _) in enumerate(params):
        at = span(param.grad)
        if at is None or at in seen:
            continue
        k = bisect_left(lows, at[1]) - 1
        hit = False
        while k >= 0 and farthest[k] > at[0]:
            if spans[k][1] > at[0] and share(param.grad, params[spans[k][2]][0]):
                note(i, spans[k][2], "gradient of ")
                hit = True
            k -= 1
        if not hit:
            seen.add(at)
    return found


def may_meet(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a parameter may share memory with another one, or with the other's gradient, or the other way round."""
    pairs = [(a, b), (a, b.grad), (a.grad, b)]
    spans = [(one, other) for x, y in pairs if (one := span(x)) is not None and (other := span(y)) is not None]
    return any(one[0] < other[1] and other[0] < one[1] for one, other in spans)


# --- PyTorch's step


def tell(owner: str, left: Iterable[Left]) -> None:
    """Warn of what is left to PyTorch, once for each kind in a process, where a user's code called."""
    for one in left:
        if one.kind not in warned:
            warned.add(one.kind)
            warn_caller(
                f"{owner}: {one.text}. PyTorch's own step is taken for such parameters, the compiled step for all "
                "others. fallback='silent' turns this warning off, fallback='error' makes it an error.",
                PYTORCH,
            )


def plain_step(twin: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """The step of a class of PyTorch's, without the hooks and the profiler that PyTorch puts around it."""
    function: Any = twin.step
    while getattr(function, "hooked", False):
        function = function.__wrapped__
    return function


def gradient_total(one: Left, order: float, n_threads: int | None) -> float | None:
    """The float64 sum of which the norm of a gradient is made, of a parameter that is left to PyTorch.

    None without a gradient. Raises where it is not to be had.
    """
    grad: Any = one.param.grad
    if grad is None:
        return None
    try:
        with torch.no_grad():
            if is_dtensor(grad):
                grad = Host().local(grad, one.param)
            if grad.layout == torch.sparse_coo:
                grad = grad.coalesce().values()
            elif grad.layout != torch.strided:
                grad = grad.to_dense()
            if grad.is_complex():
                grad = grad.to(torch.complex128).abs() if order == inf else torch.view_as_real(grad.resolve_conj())
            array = grad.detach().to("cpu", torch.float64).contiguous().numpy()
    except Exception as error:  # whatever a tensor raises that is none
        raise GradientError(
            f"gradient of {one.label}, a {type(grad).__name__}, cannot be summed for the norm that clip_norm needs: "
            f"{error}"
        ) from error
    return total(array, order, n_threads)


class Around:
    """What is done around PyTorch's step of the parameters that are left to it; all is checked when this is made."""

    def __init__(
        self, state: Mapping[Any, Any], groups: list[dict[str, Any]], what: Mixed, settings: Mapping[str, Any],
        scale: Any, factor: float | None, named: Callable[[dict[str, Any], int, int], str],
        mirrors: Mapping[torch.Tensor, torch.Tensor],
    ) -> None:  # fmt: skip
        self.state = state
        to_zero(groups, named)
        host = Host(mirrors)
        for one in what.left if mirrors else ():
            host.mirror_of(one.param, local_of(one.param), one.label)
        self.limits: dict[int, tuple[float | None, float]] = {}
        """By the identity of a parameter: its factor of clipping, and what no element of its gradient is to exceed."""
        self.zeroed: list[torch.Tensor] = []
        self.averaged: list[tuple[torch.Tensor, float, float, torch.Tensor | None]] = []
        for one in what.left:
            group, param = groups[one.group], one.param
            if param.grad is None:
                continue
            self.limits[id(param)] = own_limits(group, one, settings, scale, factor)
            if group.get("zero_grads"):
                self.zeroed.append(param.grad)
            if group.get("ema_decay") is not None:
                start = float(1 if group.get("ema_start") is None else group["ema_start"])
                entry = state[param] if param in state else {}
                kept = average_of(entry, param, one.label)
                if kept is None and start == 0:
                    kept = first_average(param)
                self.averaged.append((param, float(group["ema_decay"]), start, kept))

    def average(self, counts: bool) -> None:
        """What becomes of averages after the step. `counts`: whether PyTorch counts the steps of each parameter."""
        with torch.no_grad():
            for param, decay, start, average in self.averaged:
                entry = self.state[param]
                if not counts:
                    entry["step"] = count_tensor(float(entry.get("step", 0)) + 1)
                if average is not None:
                    entry[AVERAGE.name] = average.lerp_(param.detach().to(average.dtype), 1 - decay)
                elif float(entry["step"]) >= start:
                    entry[AVERAGE.name] = first_average(param)

    def zero(self) -> None:
        """Zero gradients, after all have stepped."""
        Host.zero(self.zeroed)


def first_average(param: torch.Tensor) -> torch.Tensor:
    """The average of a parameter at the step at which it begins."""
    return param.detach().to(average_dtype(param), copy=True)


def average_of(entry: Mapping[str, Any], param: torch.Tensor, label: str) -> torch.Tensor | None:
    """The average of a parameter that is left to PyTorch, None if it has not begun; raises if it cannot be stepped."""
    number_tensor(entry.get("step", 0), f"state 'step' of {label}")
    if param.layout != torch.strided:
        raise TensorLayoutError(f"ema_decay: {label} has layout {param.layout}; torch.strided is needed for an average")
    kept = entry.get(AVERAGE.name)
    if kept is None:
        return None
    if not isinstance(kept, torch.Tensor) or is_dtensor(kept) != is_dtensor(param):
        raise TensorStateError(f"state 'ema' of {label} is a {type(kept).__name__}; a {type(param).__name__} is needed")
    if kept.dtype != (dtype := average_dtype(param)) and kept.is_floating_point() and param.is_floating_point():
        kept = kept.to(dtype)  # of before the parameter was cast
    check_swap(param, kept, label)
    return kept


def own_limits(
    group: Mapping[str, Any], one: Left, settings: Mapping[str, Any], scale: Any, factor: float | None
) -> tuple[float | None, float]:
    """The factor of clipping by norm of one gradient, or None, and what none of its elements is to exceed."""
    each, value = group.get("clip_norm_each"), group.get("clip_value")
    if each is not None and float(each) < inf:
        Host.check_each(one.param, one.label)
        factor = 1.0 if factor is None else factor
        total_of = gradient_total(one, settings["norm_type"], settings["n_threads"])
        if total_of is not None:
            by = 1.0 if scale is None else float(scale)
            norm, _ = clip_of_total(total_of, settings["norm_type"], by, inf)
            own = float(each) / (norm * factor + 1e-6)
            factor *= 1.0 if own > 1 else own
    if value is not None and float(value) < inf and one.param.grad is not None and one.param.grad.is_complex():
        raise TensorDTypeError(f"clip_value={value!r}: the gradient of {one.label} is complex, and has no order")
    return factor, inf if value is None else float(value)


def clamped(grad: torch.Tensor, limit: float) -> torch.Tensor:
    """A gradient with its elements between two bounds; of a sparse one, those that it has."""
    if grad.layout != torch.sparse_coo:
        return grad.clamp(-limit, limit)
    grad = grad.coalesce()
    return torch.sparse_coo_tensor(grad.indices(), grad.values().clamp(-limit, limit), grad.shape, is_coalesced=True)


def step_by_pytorch(
    optimizer: torch.optim.Optimizer, step: Callable[..., Any], groups: list[dict[str, Any]], what: Mixed, scale: Any,
    limits: Mapping[int, tuple[float | None, float]],
) -> None:  # fmt: skip
    """PyTorch's step of the parameters that are left to it: its own code, on the same options and state.

    The gradients are divided by `scale`, where that is given, and clipped by the `limits` of each, in copies.
    """
    fused = by_kernels(groups, what)
    every = [
        (param, param.grad, by_kernel) for (_, params, _), by_kernel in zip(what.parts, fused, strict=True)
        for param in params if param.grad is not None
    ]  # fmt: skip
    check_scale(groups, what, scale)
    taken = changed(every, scale, limits)
    names: tuple[str, ...] = ("grad_scale", "found_inf")
    own = {name: optimizer.__dict__.pop(name) for name in names if name in optimizer.__dict__}
    whole = optimizer.param_groups
    try:
        for param, _, copy in taken:
            param.grad = copy
        for (g, params, plain), by_kernel in zip(what.parts, fused, strict=True):
            part = {**groups[g], "params": params}
            optimizer.param_groups = [{**part, "fused": None, "foreach": False} if plain else part]
            if by_kernel:  # which takes a scaler's factor out by itself
                optimizer.__dict__.update(own)
            step(optimizer)
            for name in own:
                optimizer.__dict__.pop(name, None)
    finally:
        optimizer.param_groups = whole
        optimizer.__dict__.update(own)
        for param, grad, _ in taken:
            param.grad = grad


def by_kernels(groups: list[dict[str, Any]], what: Mixed) -> list[bool]:
    """For each part whether a fused kernel of PyTorch's steps it."""
    return [bool(groups[g].get("fused")) and not plain for g, _, plain in what.parts]


def check_scale(groups: list[dict[str, Any]], what: Mixed, scale: Any) -> None:
    """Raise as PyTorch does where gradients would have to be divided that cannot be."""
    if scale is None:
        return
    for (_, params, _), by_kernel in zip(what.parts, by_kernels(groups, what), strict=True):
        if not by_kernel and any(p.grad is not None and p.grad.dtype == torch.float16 for p in params):
            raise ValueError("Attempting to unscale FP16 gradients.")


def changed(
    every: list[tuple[torch.Tensor, torch.Tensor, bool]], scale: Any, limits: Mapping[int, tuple[float | None, float]]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Parameters whose gradient is another for the step: with that, and a copy divided by `scale`, and clipped.

    They come with whether a fused kernel steps them, which takes a scaler's factor out by itself, of the gradient, too.
    """
    taken = []
    inverse = None if scale is None else torch.as_tensor(scale).double().reciprocal().float()
    with torch.no_grad():
        for param, grad, by_kernel in every:
            factor, limit = limits[id(param)]
            copy = grad
            if inverse is not None and not by_kernel:
                copy = grad * inverse.to(grad.device)
            if factor is not None and factor != 1:
                copy = copy * factor
            if limit < inf:
                copy = clamped(copy, limit * float(scale) if by_kernel and inverse is not None else limit)
            elif factor is not None and copy is grad and by_kernel and inverse is not None:
                copy = grad.clone()
            if copy is not grad:
                taken.append((param, grad, copy))
    return taken
