"""Parameters that the compiled step cannot take: which they are, why, and PyTorch's own step for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from fastopt._tensors import extent, has_dispatch, is_dense, is_dtensor, local_of, may_share, steppable
from fastopt.errors import FastoptError, HyperparameterError, LayoutError, OverlapError

CHOICES = ("warn", "silent", "error")
warned: set[str] = set()
"""The kinds of reasons that a warning was given for in this process."""


class Left(NamedTuple):
    """A parameter that is left to PyTorch."""

    place: int
    """Its place among all, in whose order PyTorch steps."""
    group: int
    param: torch.Tensor
    look: tuple[Any, ...]
    """What decided, for a comparison at the next step."""
    kind: str
    error: FastoptError


def check_choice(value: Any) -> None:
    """Raise unless a value of the argument ``fallback`` is one."""
    if not (isinstance(value, str) and value in CHOICES):
        raise HyperparameterError(f"fallback={value!r} must be one of {', '.join(map(repr, CHOICES))}")


def left_to_pytorch(groups: list[dict[str, Any]], named: Callable[[dict[str, Any], int, int], str]) -> list[Left]:
    """The parameters with a gradient that cannot be stepped compiled, in the order of the groups.

    `named` gives what messages call a parameter: of its group, its place there, and its place among all.
    """
    found: list[Left] = []
    rest: list[tuple[int, int, torch.Tensor, str]] = []
    place = 0
    for g, group in enumerate(groups):
        for k, param in enumerate(group["params"]):
            if param.grad is not None:
                label = named(group, k, place + k)
                reason = reason_of(group, param, label)
                if reason is not None:
                    found.append(Left(place + k, g, param, look_at(group, param), *reason))
                else:
                    rest.append((place + k, g, param, label))
        place += len(group["params"])
    for i, error in overlapping([(param, label) for _, _, param, label in rest]).items():
        at, g, param, _ = rest[i]
        found.append(Left(at, g, param, look_at(groups[g], param), "memory shared with another tensor", error))
    return sorted(found, key=lambda left: left.place)


def reason_of(group: Mapping[str, Any], param: torch.Tensor, label: str) -> tuple[str, FastoptError] | None:
    """Why a parameter cannot be stepped compiled by itself: the kind of reason, and the error that says it."""
    if group.get("differentiable"):
        return "differentiable=True", HyperparameterError(
            "differentiable=True is not supported by the compiled step, which is no operation of autograd"
        )
    try:
        steppable(param, label)
    except FastoptError as error:
        own = local_of(param)
        if own.layout == torch.strided and not has_dispatch(own) and own.device.type == "cpu" and not has_storage(own):
            return None  # PyTorch would crash
        ordinary = own.dtype in (torch.float32, torch.float64) and own.layout == torch.strided
        return f"{type(own).__name__} {own.device.type} {own.layout} {own.dtype if not ordinary else ''}", error
    grad = param.grad
    if grad is None or is_dtensor(grad) or has_dispatch(grad):
        return None
    if grad.layout != torch.strided or grad.device.type != "cpu" or not grad.is_floating_point():
        return f"gradient {grad.layout} {grad.device.type}", LayoutError(
            f"gradient of {label} has layout {grad.layout}, dtype {grad.dtype}, device {grad.device}; a dense floating "
            "tensor on the CPU is needed"
        )
    return None


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether the storage of a strided tensor reaches as far as its elements."""
    room = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == 0 or reach <= room


def look_at(group: Mapping[str, Any], param: torch.Tensor) -> tuple[Any, ...]:
    """What of a parameter decides whether it is left to PyTorch, but for what it shares memory with."""
    own, grad = local_of(param), param.grad
    gradient = None if grad is None else (type(grad), grad.layout, grad.dtype, grad.device)
    memory = (own.data_ptr(), own.stride()) if own.layout == torch.strided and not has_dispatch(own) else None
    return type(own), own.dtype, own.layout, own.device, memory, gradient, bool(group.get("differentiable"))


def overlapping(params: list[tuple[torch.Tensor, str]]) -> dict[int, FastoptError]:
    """Which of some parameters, with their labels, share memory with another one, or with a gradient."""
    spans = []
    for i, (param, _) in enumerate(params):
        spans.append((*span(param), i, False))
        if param.grad is not None and not is_dtensor(param.grad) and not has_dispatch(param.grad):
            spans.append((*span(param.grad), i, True))
    spans.sort()
    found: dict[int, FastoptError] = {}
    open_until: list[tuple[int, int, bool]] = []  # spans that have not ended, and at least one of each
    for low, high, i, is_grad in spans:
        open_until = [other for other in open_until if other[0] > low]
        for _, j, other_grad in open_until:
            a, b = (params[n][0].grad if grad else params[n][0] for n, grad in ((i, is_grad), (j, other_grad)))
            if (is_grad and other_grad) or low == high or not share(a, b):
                continue
            for k in (i, j):
                found.setdefault(k, OverlapError(
                    f"{'gradient of ' if is_grad else ''}{params[i][1]} shares memory with "
                    f"{'gradient of ' if other_grad else ''}{params[j][1]}; every parameter needs memory of its own"
                ))  # fmt: skip
        open_until.append((high, i, is_grad))
    return found


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """Where the memory of a strided tensor begins and ends."""
    local = local_of(tensor)
    if local.layout != torch.strided or local.device.type != "cpu" or not local.numel():
        return 0, 0
    reach = 1 + sum((size - 1) * stride for size, stride in zip(local.shape, local.stride(), strict=True))
    begin = local.data_ptr()
    return begin, begin + reach * local.element_size()


def share(a: Any, b: Any) -> bool:
    """Whether two tensors whose spans meet share an element: dense ones do, those with gaps may not."""
    return all(is_dense(local_of(x)) and extent(local_of(x)) > 0 for x in (a, b)) or may_share(a, b)


def tell(owner: str, left: Iterable[Left]) -> None:
    """Warn of what is left to PyTorch, once for each kind in a process."""
    for one in left:
        if one.kind not in warned:
            warned.add(one.kind)
            warnings.warn(
                f"{owner}: {one.error}. PyTorch's own step is taken for such parameters, the compiled step for all "
                "others. fallback='silent' turns this warning off, fallback='error' makes it an error.",
                stacklevel=6,
            )


def plain_step(twin: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """The step of a class of PyTorch's, without the hooks and the profiler that PyTorch puts around it."""
    function: Any = twin.step
    while getattr(function, "hooked", False):
        function = function.__wrapped__
    return function


def unscale(params: Iterable[torch.Tensor], scale: Any) -> None:
    """Divide gradients by a scaler's factor, in place, as `GradScaler.unscale_` does."""
    grads = [param.grad for param in params if param.grad is not None]
    if any(grad.dtype == torch.float16 for grad in grads):
        raise ValueError("Attempting to unscale FP16 gradients.")  # as PyTorch says it
    inverse = torch.as_tensor(scale).double().reciprocal().float()
    with torch.no_grad():
        for grad in grads:
            (grad._values() if grad.layout == torch.sparse_coo else grad).mul_(inverse.to(grad.device))


def step_by_pytorch(
    optimizer: torch.optim.Optimizer,
    step: Callable[..., Any],
    groups: list[dict[str, Any]],
    left: list[Left],
    scale: Any,
) -> None:
    """PyTorch's step of the parameters that are left to it: its own code, on the same options and state."""
    if scale is not None:
        unscale([one.param for one in left], scale)
    parts = []
    for g, group in enumerate(groups):
        params = [one.param for one in left if one.group == g]
        if params:
            parts.append({**group, "params": params})
            if any(isinstance(one.error, OverlapError) or not extent_of(one.param) for one in left if one.group == g):
                parts[-1].update(fused=None, foreach=False)  # which write to shared memory in any order
    own = {name: optimizer.__dict__.pop(name) for name in ("grad_scale", "found_inf") if name in optimizer.__dict__}
    whole = optimizer.param_groups
    optimizer.param_groups = parts
    try:
        step(optimizer)
    finally:
        optimizer.param_groups = whole
        optimizer.__dict__.update(own)


def extent_of(param: torch.Tensor) -> int:
    """How far a parameter reaches in memory, 0 if two of its elements share memory; 1 where it has no strides."""
    own = local_of(param)
    return extent(own) if own.layout == torch.strided else 1
