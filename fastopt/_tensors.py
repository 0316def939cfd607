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

from fastopt.declare import AVERAGE, Slot
from fastopt.engine import FEWEST_PACKED, LAST_FLOAT_COUNT, SHIM, Arena, packed_size, packed_value, shape_like
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

    def __init__(self, mirrors: Mapping[torch.Tensor, torch.Tensor] | None = None) -> None:
        self.grad = torch._C.TensorBase.grad  # of a class it would ask the class
        self.requires_grad = torch._C.TensorBase.requires_grad
        self.copies: dict[torch.Tensor, torch.Tensor] = {}
        """Parameters with gaps between their elements -> the dense copies that are stepped in their place."""
        self.mirrors: Mapping[torch.Tensor, torch.Tensor] = mirrors or {}
        """Parameters -> the tensors that take a copy of them at each step."""
        self.has_inference = False
        self.arena = Arena(self.exchange)

    def mirror_of(self, param: torch.Tensor, own: torch.Tensor, label: str) -> torch.Tensor | None:
        """What takes a copy of a parameter at each step, or None."""
        mirror = self.mirrors.get(param)
        if mirror is not None:
            check_mirror(mirror, own, label)
            check_inference(self, mirror, f"mirror of {label}")
        return mirror

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
                    np.copyto(as_numpy(param.detach()), as_numpy(self.copies[param]))

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
        elif is_sharded(param):
            placements = getattr(param, "placements", ())
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
        dtype = param.dtype
        if dtype != torch.float64 and grad.dtype != dtype:  # which a step reads as float32
            dtype = grad.dtype if grad.dtype in (torch.bfloat16, torch.float16) else torch.float32
        fitting = torch.empty_strided(param.shape, param.stride(), dtype=dtype, device="cpu")
        try:
            with torch.no_grad():
                fitting.copy_(grad)
        except Exception as error:  # whatever a tensor raises that is none
            raise GradientError(f"{label}, a {type(grad).__name__}, cannot be copied: {error}") from error
        return fitting


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array over the memory of a tensor; NumPy has no bfloat16."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


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


def is_sharded(spread: Any) -> bool:
    """Whether ranks have different parts of a `DTensor`."""
    mesh, placements = spread.device_mesh, spread.placements
    return any(mesh.size(dim) > 1 and not placement.is_replicate() for dim, placement in enumerate(placements))


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


STEPPED = (torch.float32, torch.float64, torch.bfloat16)
"""What a parameter can be,"""
STATE_TYPES = (*STEPPED, torch.int16, torch.uint8)
"""and its state."""


def steppable(tensor: Any, label: str, types: tuple[torch.dtype, ...] = STEPPED) -> torch.Tensor:
    """The tensor whose memory could be stepped, this one or its part on this rank, or the error that says why not."""
    own = local_of(tensor)
    if own.layout != torch.strided:
        raise TensorLayoutError(f"{label} has layout {own.layout}; torch.strided is needed")
    if own.device.type != "cpu" or has_dispatch(own):
        raise TensorKindError(f"{label} is a {type(own).__name__} on {own.device}; a tensor on the CPU is needed")
    if own.dtype not in types:
        raise TensorDTypeError(
            f"{label} has dtype {own.dtype}; torch.float32, torch.float64 or torch.bfloat16 is needed"
        )
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


def check_mirror(mirror: Any, own: torch.Tensor, label: str) -> None:
    """Raise unless a tensor can take a copy of a parameter, the one that is stepped in its place."""
    what = f"mirror of {label}"
    if not isinstance(mirror, torch.Tensor) or type(mirror) not in PLAIN or mirror.device.type != "cpu":
        raise TensorKindError(f"{what} is a {type(mirror).__name__}; a plain tensor on the CPU is needed")
    if mirror.dtype not in (torch.bfloat16, torch.float16):
        raise TensorDTypeError(f"{what} has dtype {mirror.dtype}; torch.bfloat16 or torch.float16 is needed")
    if own.dtype == torch.float64:
        raise TensorDTypeError(f"{label} has dtype torch.float64; mirrors are for float32 and bfloat16")
    if mirror.shape != own.shape:
        raise TensorShapeError(f"{what} has shape {tuple(mirror.shape)}; the parameter has {tuple(own.shape)}")
    if own.layout == torch.strided and not is_dense(own):
        raise TensorLayoutError(f"{label} has gaps between its elements, and can have no mirror: give None for it")
    if mirror.layout != torch.strided or mirror.stride() != own.stride() or not is_dense(mirror):
        raise TensorLayoutError(
            f"{what} has strides {tuple(mirror.stride())}; those of its parameter, {tuple(own.stride())}, are needed, "
            "without gaps"
        )
    if mirror.numel() and not has_storage(mirror):
        raise TensorLayoutError(f"{what} has no storage for all of its elements: its memory was freed")


def check_mirrors(mirrors: Mapping[torch.Tensor, torch.Tensor], params: Mapping[torch.Tensor, str]) -> None:
    """Raise if a mirror shares memory with another one, or with a parameter, all of which have labels."""
    every = [(*at, f"mirror of {params[param]}", True) for param, x in mirrors.items() if (at := span(x))]
    every += [(*at, label, False) for param, label in params.items() if (at := span(param))]
    end, last, writes = 0, "", False
    for low, high, label, is_mirror in sorted(every):
        if low < end and (writes or is_mirror):
            raise OverlapError(f"{last} overlaps {label}; every parameter and mirror needs memory of its own")
        if high > end:
            end, last, writes = high, label, is_mirror


def average_dtype(param: torch.Tensor) -> torch.dtype:
    """The type of the average of a parameter: float32 for bfloat16, else the parameter's own."""
    return torch.float32 if param.dtype == torch.bfloat16 else param.dtype


def check_swap(param: torch.Tensor, average: torch.Tensor, label: str) -> None:
    """Raise unless a parameter and its average can change places."""
    what = f"state 'ema' of {label}"
    dtypes = (average_dtype(param), param.dtype)
    if (average.shape, average.layout) != (param.shape, param.layout) or average.dtype not in dtypes:
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
    return all(reaches(x) and is_dense(local_of(x)) for x in (a, b)) or may_share(a, b)


def may_share(a: torch.Tensor, b: torch.Tensor) -> bool:
    most: Any = 100_000  # steps of an exact test
    try:
        return np.shares_memory(as_numpy(local_of(a).detach()), as_numpy(local_of(b).detach()), max_work=most)
    except np.exceptions.TooHardError:
        return True


def is_packed(slot: Slot, own: torch.Tensor) -> bool:
    """Whether a state slot of a parameter is stored in 8 bits: one row of bytes, of the part on this rank."""
    return slot.storage == "8bit" and own.numel() >= FEWEST_PACKED


def state_dtype(slot: Slot, own: torch.Tensor) -> torch.dtype:
    """The type of a state slot of a parameter: the parameter's own, but for averages, and where options say more."""
    computed = torch.float64 if own.dtype == torch.float64 else torch.float32
    if slot.storage is None:
        return computed if slot.name == AVERAGE.name else own.dtype
    if slot.storage == "8bit":
        return torch.uint8 if is_packed(slot, own) else computed
    return torch.int16 if slot.storage == "low" else getattr(torch, slot.storage)


def own_shape(slot: Slot, own: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of a state slot that is not like the parameter; None for one that is."""
    if is_packed(slot, own):
        return (packed_size(own.numel()),)
    if slot.storage == "low" and own.dtype != torch.bfloat16:
        return (0,)
    return None if slot.like == "parameter" else shape_like(slot.like, own.shape)


def lies_as(state: torch.Tensor, own: torch.Tensor, slot: Slot) -> bool:
    """Whether the engine can walk a state tensor beside its parameter; one of another shape has to be contiguous."""
    if own_shape(slot, own) is not None:  # two bytes of a base come first in 8-bit state
        return state.is_contiguous() and state.data_ptr() % 2 == 0
    return state.stride() == own.stride() and is_dense(state)


def new_state(arena: Arena, param: torch.Tensor, own: torch.Tensor, place: int, slot: Slot) -> torch.Tensor:
    """A state tensor with its first values."""
    value = 0.0 if isinstance(slot.first, str) else slot.first
    shape, dtype = own_shape(slot, own), state_dtype(slot, own)
    if is_packed(slot, own) and value:
        return torch.from_numpy(packed_value(float(value), own.numel(), slot.narrow == "square"))
    plain = param is own and type(own) in PLAIN
    kind = None if dtype == own.dtype else str(dtype).removeprefix("torch.")
    if is_packed(slot, own) and plain and (made := arena.zeros(own, place, kind, packed_size(own.numel()))) is not None:
        return made
    if shape is not None:
        return torch.full(shape, value, dtype=dtype, device="cpu")
    if slot.first == "copy":
        return new_state(arena, param, own, place, slot._replace(first=0.0)).copy_(param.detach())
    if plain and (made := arena.zeros(own, place, kind)) is not None:
        return made.fill_(value) if value else made
    if value == 0:
        return torch.zeros_like(param, dtype=dtype, requires_grad=False)
    return torch.full_like(param, value, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)


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
    other = own_shape(slot, own)
    like = other is None  # else it is a plain tensor, also beside a DTensor
    if not isinstance(value, torch.Tensor) or is_dtensor(value) != (is_dtensor(param) and like):
        raise TensorStateError(f"{label} is a {type(value).__name__}; a {type(param).__name__} is needed")
    local = local_of(value)
    if like and (value.shape != param.shape or local.shape != own.shape):
        raise TensorStateError(f"{label} has shape {tuple(local.shape)}; the parameter has {tuple(own.shape)}")
    if not like and local.shape != other:
        raise TensorStateError(f"{label} has shape {tuple(local.shape)}; {other} is needed")
    if local.dtype != (needed := state_dtype(slot, own)):
        of = f"the parameter has {own.dtype}" if needed == own.dtype else f"{needed} is needed"
        raise TensorStateError(f"{label} has dtype {local.dtype}; {of}")
    try:
        return steppable(value, label, STATE_TYPES)
    except FastoptError as error:
        raise TensorStateError(str(error)) from error
