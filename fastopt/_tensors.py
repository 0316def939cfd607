"""Tensors of PyTorch as `fastopt.torch` needs them: where their memory is, and which of them can be stepped."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import _get_scalar_dtype

from fastopt.declare import Slot
from fastopt.engine import LAST_FLOAT_COUNT, SHIM, Arena, shape_like
from fastopt.errors import (
    FastoptError,
    GradientError,
    HyperparameterError,
    InferenceModeError,
    OverlapError,
    TensorDTypeError,
    TensorKindError,
    TensorLayoutError,
    TensorShapeError,
    TensorStateError,
)

PLAIN = (torch.Tensor, torch.nn.Parameter)


def address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


# C++ functions of PyTorch beside its C functions, by their mangled names.
INTERNAL = (
    "_ZN2at6native6is_negERKNS_6TensorE",
    "_ZN2at6native12is_inferenceERKNS_6TensorE",
    "_ZN5torch8autograd4impl15version_counterERKN2at6TensorE",
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
)


def stable_functions() -> tuple[list[int], torch.Tensor, Any, int] | None:
    """PyTorch's functions for looking at tensors, by address, and a tensor with its handle and its storage's address.

    None if it lacks the C functions; 0 for one in C++ that it lacks: the tensor's methods are asked then.
    """
    name = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    try:
        library = ctypes.CDLL(os.path.join(torch.__path__[0], "lib", name))
        addresses = [address(library, f"aoti_torch_{name}") for name in SHIM.split()]
        addresses += [address(library, name) if hasattr(library, name) else 0 for name in INTERNAL]
        tensor = torch.zeros(2, 3)
        handle = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor)
        return addresses, tensor, handle, tensor.untyped_storage()._cdata
    except (AttributeError, OSError):
        return None


PART = "is spread over several ranks, so that the norm of what is here is not that of its gradient"
SHARED = "{} shares memory with {}; zero_grads=True needs gradients that share none"


class Host:
    """What the engine asks of PyTorch, for one plan."""

    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    shim = stable_functions()
    plain = PLAIN
    modes = staticmethod(torch._C._len_torch_function_stack)
    bump = staticmethod(torch.autograd.graph.increment_version)

    def __init__(self) -> None:
        self.grad = torch._C.TensorBase.grad  # of a class it would ask the class
        self.requires_grad = torch._C.TensorBase.requires_grad
        self.copies: dict[torch.Tensor, torch.Tensor] = {}
        """Parameters with gaps between their elements -> the dense copies that are stepped in their place."""
        self.has_inference = False
        self.arena = Arena(self.exchange)

    def local(self, tensor: Any, like: Any) -> torch.Tensor | None:
        """What is stepped in the place of a parameter, or, given that, the gradient's part that belongs to it.

        Of a `DTensor` it is the tensor on this rank, the gradient's laid over the ranks as the parameter's; of a
        parameter with gaps its copy, brought up to date. None if it cannot be any more.
        """
        if like is None and tensor in self.copies:
            copy = self.copies[tensor]
            fits = (tensor.shape, tensor.dtype, tensor.device) == (copy.shape, copy.dtype, copy.device)
            return copy.copy_(tensor.detach()) if fits and extent(tensor) else None
        if like is not None and like in self.copies:
            return tensor
        if like is not None and not is_dtensor(tensor):
            raise TensorKindError(f"a gradient is a {type(tensor).__name__}; its parameter is a {type(like).__name__}")
        if like is not None and tensor._spec != like._spec and (
            tensor.device_mesh != like.device_mesh or tensor.placements != like.placements
        ):  # fmt: skip
            tensor = tensor.redistribute(like.device_mesh, like.placements)
        return local_of(tensor)

    def finish(self, stepped: list[torch.Tensor]) -> None:
        """Write the copies back, by a way that cannot fail."""
        if self.copies:
            for param in stepped:
                if param in self.copies:
                    np.copyto(param.detach().numpy(), self.copies[param].numpy())

    @staticmethod
    def check_zeroing(grad: torch.Tensor, label: str) -> None:
        """Raise unless a gradient can be zeroed."""
        if grad.grad_fn is not None and grad._is_view():  # as zero_grad() does
            raise GradientError(f"{label} is a view in a graph of autograd; zero_grads=True cannot detach it")
        if grad.is_inference() and not torch.is_inference_mode_enabled():
            raise InferenceModeError(f"{label} is an inference tensor; zero_grads=True cannot write to it here")
        if grad.layout == torch.strided and has_repeats(grad):
            raise TensorLayoutError(f"{label} has elements that share memory; zero_grads=True cannot write to them")

    @staticmethod
    def is_read(grad: torch.Tensor, taken: torch.Tensor) -> bool:
        """Whether what a step takes for a gradient is in the gradient's own memory."""
        return local_of(grad) is taken

    @staticmethod
    def check_each(param: torch.Tensor, label: str) -> None:
        """Raise if this rank has a part of a parameter, whose norm is not that of the whole gradient."""
        if type(param) in PLAIN or not is_dtensor(param):
            if getattr(param, "_fsdp_flattened", False) and world_size() > 1:
                raise HyperparameterError(f"clip_norm_each: {label} {PART}: FullyShardedDataParallel (FSDP1)")
            return
        spread: Any = param
        mesh, placements = spread.device_mesh, spread.placements
        if any(mesh.size(dim) > 1 and not placement.is_replicate() for dim, placement in enumerate(placements)):
            raise HyperparameterError(f"clip_norm_each: {label} {PART}: it is a DTensor with {tuple(placements)}")

    @staticmethod
    def check_zeroed(grads: list[tuple[torch.Tensor, str]], params: list[tuple[torch.Tensor, str]]) -> None:
        """Raise unless gradients, with their labels, share no memory with each other and with parameters."""
        seen: dict[int, str] = {}
        every: list[tuple[int, int, torch.Tensor, str, bool]] = []
        for tensor, label, zeroed in [*((*one, True) for one in grads), *((*one, False) for one in params)]:
            if zeroed and seen.setdefault(id(tensor), label) is not label:
                raise OverlapError(SHARED.format(label, f"the {seen[id(tensor)]}"))
            if (at := span(tensor)) is not None:
                every.append((*at, tensor, label, zeroed))
        open_until: list[tuple[int, int, torch.Tensor, str, bool]] = []
        for one in sorted(every, key=lambda one: one[:2]):
            open_until = [other for other in open_until if other[1] > one[0]]
            for other in open_until:
                if (one[4] or other[4]) and share(one[2], other[2]):
                    first, second = (one, other) if one[4] and not other[4] else (other, one)
                    if first[4] and second[4]:
                        first, second = second, first
                    raise OverlapError(SHARED.format(first[3], f"the {second[3]}" if second[4] else second[3]))
            open_until.append(one)

    @staticmethod
    def zero(grads: Iterable[torch.Tensor]) -> None:
        """Zero gradients, as ``zero_grad(set_to_none=False)`` does."""
        with torch.no_grad():
            for grad in grads:
                if grad.grad_fn is not None:
                    grad.detach_()
                else:
                    grad.requires_grad_(False)
                grad.zero_()

    @staticmethod
    def fit(grad: torch.Tensor, param: torch.Tensor, label: str) -> torch.Tensor:
        """A gradient that lies as its parameter does: a copy, or the error."""
        if grad.layout != torch.strided:
            raise TensorLayoutError(f"{label} has layout {grad.layout}; torch.strided is needed: call .to_dense()")
        if grad.device.type != "cpu":
            raise TensorKindError(f"{label} is a {type(grad).__name__} on {grad.device}; a tensor on the CPU is needed")
        if grad.shape != param.shape:
            raise TensorShapeError(f"{label} has shape {tuple(grad.shape)}; the parameter has {tuple(param.shape)}")
        if not grad.is_floating_point():
            raise TensorDTypeError(f"{label} has dtype {grad.dtype}; {param.dtype} is needed")
        if type(grad) in PLAIN and not has_storage(grad):
            raise GradientError(f"{label} has no storage for all of its elements: its memory was freed")
        fitting = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype, device="cpu")
        try:
            with torch.no_grad():
                fitting.copy_(grad)
        except Exception as error:  # whatever a tensor raises that is none
            raise GradientError(f"{label}, a {type(grad).__name__}, cannot be copied: {error}") from error
        return fitting


def world_size() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def has_repeats(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an expanded one, which has the same element in several places."""
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is one of many ranks."""
    return type(tensor) not in PLAIN and hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements")


def has_dispatch(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that answers for operations itself, so that its memory says nothing."""
    return type(tensor) not in PLAIN and type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def local_of(tensor: Any) -> torch.Tensor:
    """The tensor that a `DTensor` has on this rank; a plain tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    inner = tensor._local_tensor
    return inner.wait() if hasattr(inner, "wait") else inner


def extent(tensor: torch.Tensor) -> int:
    """How many elements lie between the first and the last, both included; 0 if two of them may share memory."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return 0
            reach += stride * (size - 1)
    return reach


def reach_of(tensor: torch.Tensor) -> int:
    """How many elements' room lies from the first to the last of a strided tensor, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether the storage of a strided tensor reaches as far as its elements: it may have been freed."""
    room = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    return tensor.numel() == 0 or reach_of(tensor) <= room


def in_shared_memory(tensor: torch.Tensor) -> bool:
    """Whether other processes may have the memory of a tensor, too."""
    return tensor.device.type == "cpu" and not has_dispatch(tensor) and tensor.untyped_storage().is_shared()


def steppable(tensor: Any, label: str) -> torch.Tensor:
    """The tensor whose memory could be stepped, this one or its part on this rank, or the error that says why not."""
    own = local_of(tensor)
    if own.layout != torch.strided:
        raise TensorLayoutError(f"{label} has layout {own.layout}; torch.strided is needed")
    if own.device.type != "cpu" or has_dispatch(own):
        raise TensorKindError(f"{label} is a {type(own).__name__} on {own.device}; a tensor on the CPU is needed")
    if own.dtype not in (torch.float32, torch.float64):
        raise TensorDTypeError(f"{label} has dtype {own.dtype}; torch.float32 or torch.float64 is needed")
    if own.numel() and (not extent(own) or not has_storage(own) or own.is_neg() or own._is_zerotensor()):
        raise TensorLayoutError(
            f"{label} has shape {tuple(own.shape)} and strides {own.stride()}; every element needs memory of its own, "
            "which expanded tensors, and those without storage, have not"
        )
    return own


def check_inference(host: Host, tensor: torch.Tensor, label: str) -> None:
    """Raise if a tensor that a step writes was made in inference mode, and this is outside of it."""
    try:  # not is_inference(): that asks what the tensor holds, which a user may have exchanged by way of .data
        tensor._version  # noqa: B018  # PyTorch writes to what counts its versions
    except RuntimeError:
        pass
    else:
        return
    host.has_inference = True
    if not torch.is_inference_mode_enabled():
        raise InferenceModeError(
            f"{label} is an inference tensor, which cannot be written to outside torch.inference_mode(): "
            "use its .clone(), or call step() in that mode"
        )


def check_swap(param: torch.Tensor, average: torch.Tensor, label: str) -> None:
    """Raise unless a parameter and its average can change places."""
    what = f"state 'ema' of {label}"
    if (average.shape, average.dtype, average.layout) != (param.shape, param.dtype, param.layout):
        raise TensorStateError(
            f"{what} has shape {tuple(average.shape)}, dtype {average.dtype} and layout {average.layout}; "
            f"the parameter has {tuple(param.shape)}, {param.dtype} and {param.layout}"
        )
    for tensor, name in ((average, what), (param, label)):
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise InferenceModeError(
                f"{name} is an inference tensor, which cannot be written to outside torch.inference_mode()"
            )
        if tensor.layout == torch.strided and has_repeats(tensor):
            raise TensorStateError(f"{name} has elements that share memory; it cannot be written to")


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements of a steppable tensor fill one piece of memory, in some order of the dimensions."""
    return extent(tensor) == tensor.numel() and tensor.data_ptr() % tensor.element_size() == 0 or tensor.numel() == 0


def check_disjoint(copied: Iterable[torch.Tensor], params: Mapping[torch.Tensor, str]) -> None:
    """Raise if a parameter that is stepped by way of a copy shares an element with another one."""
    for param in copied:
        for other in params:
            if other is not param and may_share(param, other):
                raise OverlapError(f"{params[param]} overlaps {params[other]}; every parameter needs memory of its own")


def reaches(param: torch.Tensor) -> int:
    """How far a parameter reaches in memory, 0 if two of its elements share memory; 1 where it has no strides."""
    own = local_of(param)
    return extent(own) if own.layout == torch.strided else 1


def span(tensor: Any) -> tuple[int, int] | None:
    """Where the memory of a strided tensor on the CPU begins and ends; None if it has none."""
    if tensor is None or has_dispatch(local := local_of(tensor)):
        return None
    if local.layout != torch.strided or local.device.type != "cpu" or not local.numel():
        return None
    begin = local.data_ptr()
    return begin, begin + reach_of(local) * local.element_size()


def share(a: Any, b: Any) -> bool:
    """Whether two tensors whose spans meet share an element: dense ones do, those with gaps may not."""
    if all(reaches(x) and is_dense(local_of(x)) for x in (a, b)):
        return True
    return a.dtype == torch.bfloat16 or b.dtype == torch.bfloat16 or may_share(a, b)  # NumPy has no such type


def may_share(a: torch.Tensor, b: torch.Tensor) -> bool:
    most: Any = 100_000  # steps of an exact test
    try:
        return np.shares_memory(local_of(a).detach().numpy(), local_of(b).detach().numpy(), max_work=most)
    except np.exceptions.TooHardError:
        return True


def state_dtype(slot: Slot, own: torch.Tensor) -> torch.dtype:
    """The type of a state slot of a parameter."""
    return own.dtype if slot.storage is None else getattr(torch, slot.storage)


def lies_as(state: torch.Tensor, own: torch.Tensor, slot: Slot) -> bool:
    """Whether the engine can walk a state tensor beside its parameter; one of another shape has to be contiguous."""
    if slot.like != "parameter":
        return state.is_contiguous()
    return state.stride() == own.stride() and is_dense(state)


def new_state(arena: Arena, param: torch.Tensor, own: torch.Tensor, place: int, slot: Slot) -> torch.Tensor:
    """A state tensor with its first values."""
    value = 0.0 if isinstance(slot.first, str) else slot.first
    if slot.like != "parameter":
        return torch.full(shape_like(slot.like, own.shape), value, dtype=state_dtype(slot, own), device="cpu")
    if slot.first == "copy":
        return new_state(arena, param, own, place, slot._replace(first=0.0)).copy_(param.detach())
    if param is own and type(own) in PLAIN and (made := arena.zeros(own, place)) is not None:
        return made.fill_(value) if value else made
    if value == 0:
        return torch.zeros_like(param)
    return torch.full_like(param, value, memory_format=torch.preserve_format, requires_grad=False)


def first_count(arena: Arena) -> torch.Tensor:
    """A step count of 0, of the type in which PyTorch counts."""
    made = arena.zero(_get_scalar_dtype() == torch.float64)
    return count_tensor(0) if made is None else made


def count_tensor(steps: int | float) -> torch.Tensor:
    """A step count as PyTorch stores it, and as float64 where float32 would stand still."""
    dtype = torch.float64 if steps >= LAST_FLOAT_COUNT else _get_scalar_dtype()
    return torch.full((), float(steps), dtype=dtype, device="cpu")


def number_tensor(value: Any, label: str) -> torch.Tensor:
    """A number of the state as a tensor on the CPU, the very one if it is one already."""
    if isinstance(value, torch.Tensor) and type(value) in PLAIN:
        if value.dim() == 0 and value.dtype in (torch.float32, torch.float64) and value.device.type == "cpu":
            return value
        if value.numel() == 1 and not value.is_meta:
            value = value.item()
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=_get_scalar_dtype(), device="cpu")
    raise TensorStateError(f"{label} is {value!r:.80}; a number is needed")


def state_tensor(value: Any, param: torch.Tensor, own: torch.Tensor, slot: Slot, label: str) -> torch.Tensor:
    """The local tensor of a state slot, or the error that says why it is none."""
    like = slot.like == "parameter"  # else it is a plain tensor, also beside a DTensor
    if not isinstance(value, torch.Tensor) or is_dtensor(value) != (is_dtensor(param) and like):
        raise TensorStateError(f"{label} is a {type(value).__name__}; a {type(param).__name__} is needed")
    local = local_of(value)
    if like and (value.shape != param.shape or local.shape != own.shape):
        raise TensorStateError(f"{label} has shape {tuple(local.shape)}; the parameter has {tuple(own.shape)}")
    if not like and local.shape != shape_like(slot.like, own.shape):
        shape = shape_like(slot.like, own.shape)
        raise TensorStateError(f"{label} has shape {tuple(local.shape)}; {shape} is needed")
    if local.dtype != state_dtype(slot, own):
        needed = f"the parameter has {own.dtype}" if like else f"{state_dtype(slot, own)} is needed"
        raise TensorStateError(f"{label} has dtype {local.dtype}; {needed}")
    try:
        return steppable(value, label)
    except FastoptError as error:
        raise TensorStateError(str(error)) from error
