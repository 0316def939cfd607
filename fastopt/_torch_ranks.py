"""The norm of all gradients on several ranks: who holds what, and the exchange of sums."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from fastopt._tensors import PLAIN, is_dtensor
from fastopt.errors import HyperparameterError, RankError

ZERO = "torch.distributed.optim.zero_redundancy_optimizer"

# What a rank says of its step. Where ranks say different things, the largest counts.
GOOD, SKIPS, UNLIKE, DIFFER, FAILED = range(5)
NEAR = 1e-5
"""How far the sums of replicas may be apart, as a share of all that their rank adds up."""


class LostGroup:
    """In the place of a process group that an optimizer had when it was pickled."""

    def __repr__(self) -> str:
        return "<a process group, which is not saved>"

    def __reduce__(self) -> str:
        return "LOST"


LOST = LostGroup()


class SavedGroup:
    """A process group on its way into a copy, which shares it, or into a pickle, which cannot have it."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: Any) -> SavedGroup:
        return self

    def __copy__(self) -> SavedGroup:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SavedGroup, (LOST,)


def savable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an optimizer for a copy or a pickle."""
    group = settings["clip_group"]
    return settings if group is None else {**settings, "clip_group": SavedGroup(group)}


def restored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings out of a copy or a pickle."""
    group = settings["clip_group"]
    return {**settings, "clip_group": group.group} if isinstance(group, SavedGroup) else settings


def check_group(value: Any) -> Any:
    """Raise unless a value of ``clip_group`` is a process group of this rank, or None."""
    if value is None or value is LOST:
        return value
    if dist.is_available() and isinstance(value, dist.ProcessGroup):
        return value
    raise HyperparameterError(
        f"clip_group={value!r} must be a torch.distributed.ProcessGroup that this rank is in (dist.group.WORLD after "
        "init_process_group), or None"
    )


# --- Where parameters are not all there is


def frames() -> Iterator[Any]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def zero_in_construction() -> Any:
    """The ZeroRedundancyOptimizer that is making an optimizer for its rank right now; None if there is none."""
    if ZERO not in sys.modules:
        return None
    code = sys.modules[ZERO].ZeroRedundancyOptimizer._init_local_optimizer.__code__
    return next((frame.f_locals["self"] for frame in frames() if frame.f_code is code), None)


def check_zero(zero: Any, clip_norm: Any, group: Any) -> None:
    """Raise if an optimizer that clips for a ZeroRedundancyOptimizer was not told the ranks, or not all of them."""
    if group is None:
        if clip_norm is not None:
            raise HyperparameterError(MISSING.format(why=IN_ZERO))
    elif not set(dist.get_process_group_ranks(zero.process_group)) <= set(dist.get_process_group_ranks(group)):
        raise HyperparameterError(
            f"clip_group has the ranks {dist.get_process_group_ranks(group)}; all of the ZeroRedundancyOptimizer's, "
            f"{dist.get_process_group_ranks(zero.process_group)}, are needed"
        )


def take_out(zero: Any, groups: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Take options that are none of a group's out of those that a ZeroRedundancyOptimizer hands to every group.

    They would be in its state dict, where no process group can be.
    """
    for options in (zero.defaults, *zero.param_groups, *groups):
        for name in names:
            options.pop(name, None)


MISSING = (
    "clip_norm needs clip_group here: {why}, so that the norm of them alone is not that of all gradients. Give "
    "clip_group=the process group over whose ranks the parameters are spread"
)
IN_ZERO = "ZeroRedundancyOptimizer gives each rank some of the parameters"


def check_alone(params: Sequence[torch.Tensor], group: Any, in_zero: bool) -> None:
    """Raise where parameters are known to be a part of all, and nothing says how to find the norm of all."""
    deepspeed = "deepspeed" in sys.modules
    zero = None
    if group is None and ZERO in sys.modules:
        zero = sys.modules[ZERO].ZeroRedundancyOptimizer._local_step.__code__
    if deepspeed or zero is not None:
        for frame in frames():
            if deepspeed and str(frame.f_globals.get("__name__")).startswith("deepspeed."):
                raise HyperparameterError(
                    "clip_norm has to be None under DeepSpeed, which shows an optimizer parts of the parameters, and "
                    'clips by itself: set "gradient_clipping" in its configuration'
                )
            in_zero = in_zero or frame.f_code is zero
    if group is None:
        if in_zero:
            raise HyperparameterError(MISSING.format(why=IN_ZERO))
        if any(getattr(param, "_fsdp_flattened", False) for param in params):
            raise HyperparameterError(
                MISSING.format(why="FullyShardedDataParallel (FSDP1) gives each rank a part of every parameter")
            )


# --- Who holds what


class Header(NamedTuple):
    """What a rank says of its step, beside its sums. All but the first two have to be the same everywhere."""

    status: float
    who: float
    """A rank that says so."""
    limit: float
    order: float
    scale: float


class Ranks:
    """How the sums over the gradients that the ranks hold make up the sum over all.

    A parameter belongs to a part: plain tensors to part 0; a `DTensor` to that of its mesh, and of the dimensions of
    the mesh over which it is sharded. Each rank adds up its parts. For every mesh, the ranks then exchange the sums
    along one dimension after the other, the last first: of what is sharded there, the sums are added in the order of
    the ranks; of what is replicated, the first rank's counts. At last the ranks of `group` add up what they have.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.meshes: list[Any] = []
        self.parts: dict[tuple[Any, ...], int] = {(): 0}
        self.params: list[torch.Tensor] = []
        self.places: list[int] = []
        """For every parameter its part."""

    def add(self, param: torch.Tensor, label: str) -> None:
        """Note where a parameter lies."""
        self.params.append(param)
        if type(param) in PLAIN or not is_dtensor(param):
            self.places.append(0)
            return
        mesh: Any = param.device_mesh  # type: ignore[attr-defined]
        sharded = tuple(is_sharded(placement, label) for placement in param.placements)  # type: ignore[attr-defined]
        if mesh not in self.meshes:
            if mesh.get_coordinate() is None:
                raise HyperparameterError(f"clip_norm: this rank is not in the mesh of {label}, {mesh}")
            if self.group is not None:
                check_apart(self.group, mesh, label)
            self.meshes.append(mesh)
        key = (self.meshes.index(mesh), *sharded)
        self.places.append(self.parts.setdefault(key, len(self.parts)))

    @contextlib.contextmanager
    def laid_out(self) -> Iterator[dict[int, torch.Tensor]]:
        """A context in which gradients lie over the ranks as their parameters do; by parameter, what others replace.

        Every rank has to come here before its checks, which may fail: it takes exchanges, one for each such gradient.
        """
        given: dict[int, torch.Tensor] = {}
        params: list[Any] = [param for param, part in zip(self.params, self.places, strict=True) if part]
        try:
            for param in params:
                grad, mesh, placements = param.grad, param.device_mesh, param.placements
                if is_dtensor(grad) and (grad.device_mesh, grad.placements) != (mesh, placements):
                    with torch.no_grad():
                        laid = grad.redistribute(mesh, placements)
                    given[id(param)] = grad
                    param.grad = laid
            yield given
        finally:
            for param in params:
                if id(param) in given:
                    param.grad = given[id(param)]

    @property
    def alone(self) -> bool:
        """Whether there is nobody to exchange anything with."""
        return (self.group is None or self.group.size() == 1) and all(mesh.size() == 1 for mesh in self.meshes)

    def total(self, sums: Sequence[float], status: int, limit: float, order: float, scale: float) -> float | None:
        """The sum over the gradients of all ranks, of those over the parts; None if a rank skips the step.

        Every rank has to call this at every step. Raises on all of them if one has failed; on that one, too.
        """
        head = Header(float(status), float(dist.get_rank()), limit, order, scale)
        total = sums[0]
        found = 0.0
        for k, mesh in enumerate(self.meshes):
            patterns = [tuple(bool(n >> i & 1) for i in range(mesh.ndim)) for n in range(2**mesh.ndim)]
            table = [sums[self.parts[key]] if (key := (k, *pattern)) in self.parts else 0.0 for pattern in patterns]
            for dim in range(mesh.ndim - 1, -1, -1):
                if mesh.size(dim) > 1:
                    adds = [pattern[dim] for pattern in patterns]
                    head, (total, *table) = exchanged(head, [total, *table], [False, *adds], mesh.get_group(dim), order)
            for one in table:
                found = combined(found, one, order)
        total = combined(total, found, order) if self.meshes else total
        if self.group is not None and self.group.size() > 1:
            head, (total,) = exchanged(head, [total], [True], self.group, order)
        if head.status > SKIPS:
            raise RankError(TEXTS[int(head.status)].format(int(head.who)))
        return None if head.status == SKIPS else total


TEXTS = {
    UNLIKE: "the gradients of parameters that every rank holds are not the same on all ranks (rank {} says so), so "
    "that there is no norm of all. Average them, or distribute the parameters; nothing was written",
    DIFFER: "clip_norm, norm_type or grad_scale are not the same on all ranks (rank {} says so); nothing was written",
    FAILED: "the step failed on rank {}, whose error says why; nothing was written on any rank",
}


def ranks_of(groups: Any, clip_group: Any, in_zero: bool) -> Ranks | None:
    """With whom the sums are exchanged; None if with nobody. Raises where that is not to be found out."""
    if clip_group is LOST:
        raise HyperparameterError(
            "the clip_group of this optimizer was lost when it was pickled: set opt.clip_group to a process group again"
        )
    params = [param for group in groups if isinstance(group, Mapping) for param in listed(group.get("params"))]
    if not (dist.is_available() and dist.is_initialized()):
        if in_zero and clip_group is None:
            raise HyperparameterError(MISSING.format(why=IN_ZERO))
        if clip_group is not None or any(map(is_shared, params)):
            raise HyperparameterError("clip_norm needs the other ranks here, and torch.distributed is not initialized")
        return None
    if dist.get_world_size() > 1 or in_zero:
        check_alone(params, clip_group, in_zero)
    ranks = Ranks(clip_group)
    for place, param in enumerate(params):
        ranks.add(param, f"parameter {place}")
    return None if ranks.alone else ranks


def listed(params: Any) -> Sequence[Any]:
    """The parameters of a group, of which others say what is wrong with it."""
    return params if isinstance(params, (list, tuple)) else ()


def is_sharded(placement: Any, label: str) -> bool:
    """Whether ranks along a dimension of a mesh hold different elements of a tensor."""
    if placement.is_shard() or type(placement).__name__ in ("_StridedShard", "_RaggedShard"):
        return True
    if placement.is_replicate():
        return False
    raise HyperparameterError(
        f"clip_norm: {label} has the placement {placement}; Shard or Replicate is needed for a norm of all gradients"
    )


def is_shared(param: Any) -> bool:
    """Whether a parameter is a `DTensor` of several ranks."""
    return is_dtensor(param) and param.device_mesh.size() > 1


def check_apart(group: Any, mesh: Any, label: str) -> None:
    """Raise if ranks that share a tensor are also said to hold disjoint parameters."""
    shared = set(dist.get_process_group_ranks(group)).intersection(mesh.mesh.flatten().tolist()) - {dist.get_rank()}
    if shared:
        raise HyperparameterError(
            f"clip_group says that its ranks hold disjoint parameters, but {label} is a DTensor over this rank and "
            f"{sorted(shared)} of them. Its placements say all there is to know: leave out clip_group"
        )


def exchanged(
    head: Header, values: list[float], adds: list[bool], group: Any, order: float
) -> tuple[Header, list[float]]:
    """What all ranks of a group make of their headers and values, each of which is added up or the same everywhere."""
    rows = gathered([*head, *values], group)
    heads, tables = [Header(*row[:5]) for row in rows], [row[5:] for row in rows]
    worst = max(heads, key=lambda one: one.status)
    status, who = worst.status, worst.who
    for other, table in zip(heads, tables, strict=True):
        if status < DIFFER and other[2:] != heads[0][2:]:
            status, who = DIFFER, other.who
        if status == GOOD and not all(
            is_near(a, b, max(sum(map(abs, table)), sum(map(abs, tables[0]))))
            for a, b, add in zip(table, tables[0], adds, strict=True) if not add
        ):  # fmt: skip
            status, who = UNLIKE, other.who
    found = list(tables[0])
    for k, add in enumerate(adds):
        if add:
            for table in tables[1:]:
                found[k] = combined(found[k], table[k], order)
    return Header(status, who, *heads[0][2:]), found


def gathered(row: list[float], group: Any) -> list[list[float]]:
    """The numbers of all ranks of a group, in their order."""
    device = "cpu"
    find = getattr(dist.distributed_c10d, "_get_object_coll_device", None)
    if find is not None:  # "cuda" where the group can do nothing on the CPU
        device = find(group)
    with torch.no_grad():
        mine = torch.tensor(row, dtype=torch.float64, device=device)
        rows = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(rows, mine, group=group)
        return [one.tolist() for one in rows]


def is_near(a: float, b: float, whole: float) -> bool:
    if not math.isfinite(a) or not math.isfinite(b):
        return a == b or (math.isnan(a) and math.isnan(b))
    return not abs(a - b) > NEAR * whole  # which is NaN where another part is


def combined(a: float, b: float, order: float) -> float:
    """Two sums as one; of largest magnitudes the larger, NaN if one is."""
    if order == 2:
        return a + b
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
