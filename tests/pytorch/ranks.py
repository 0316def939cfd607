"""What one rank does for `test_distributed.py`: ``python ranks.py FOLDER RANK WORLD JOB...``

A job trains something on all ranks and returns plain data, which goes to FOLDER, one file a rank and job. With WORLD 1
there is no process group and no wrapper: the job is then the run of a single process that the others are compared with.

The gradients of `Probe` are the numbers that it is given, which differ from rank to rank, and are made so that their
sums and means are exact in whatever order they are taken: what is left to differ is the optimizer's work.
"""

from __future__ import annotations

import copy
import datetime
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import fastopt.torch

STEPS, MIDDLE = 8, 4
EDIT = 2
"""The step before which the first group gets another learning rate."""
SHAPES = {"wide": (7, 5), "short": (2, 3), "row": (1, 6), "bias": (5,), "single": (1,), "long": (4099, 3)}
OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01, "initial_accumulator_value": 0.1},
    "NAdam": {"lr": 0.01, "weight_decay": 0.01, "decoupled_weight_decay": True},
}
Snapshot = dict[str, torch.Tensor]


# --- What is trained


class Probe(nn.Module):
    """A loss whose gradients are the factors it is called with; parameters without a factor take no part."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, factors: Snapshot) -> torch.Tensor:
        return sum((self.get_parameter(name) * factor).sum() for name, factor in factors.items())


class Pair(nn.Module):
    """Two modules that FSDP can shard apart."""

    def __init__(self) -> None:
        super().__init__()
        names = list(SHAPES)
        self.first, self.second = (Probe({name: SHAPES[name] for name in part}) for part in (names[:3], names[3:]))

    def forward(self, factors: Snapshot) -> torch.Tensor:
        first, second = ({name: f for name, f in factors.items() if name in dict(m.named_parameters(recurse=False))}
                         for m in (self.first, self.second))  # fmt: skip
        return self.first(first) + self.second(second)


def factors(step: int, rank: int, world: int, shapes: dict[str, tuple[int, ...]]) -> Snapshot:
    """This rank's gradients: multiples of 6/256, so that three and two ranks divide them, around a common mean."""
    made = torch.Generator().manual_seed(step)

    def grid(shape: tuple[int, ...], most: int) -> torch.Tensor:
        return torch.randint(-most, most + 1, shape, generator=made) * (6 / 256)

    return {name: grid(shape, 300) + (2 * rank - world + 1) * grid(shape, 100) for name, shape in shapes.items()}


class Cannot(Exception):
    """This machine does not have what a job is about."""


class Ranks:
    """Who we are, and where the files are."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder, self.rank, self.world = folder, rank, world

    @property
    def alone(self) -> bool:
        return self.world == 1

    def factors(self, step: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Snapshot:
        return factors(step, self.rank, self.world, shapes)


def optimizer(name: str, twin: bool = False) -> Any:
    """fastopt's class of that name, or its twin in PyTorch."""
    return getattr(torch.optim if twin else fastopt.torch, name)


def two_groups(model: nn.Module, skip: str = "") -> list[dict[str, Any]]:
    """The first half of the parameters, and the others at a rate of their own."""
    params = [p for name, p in model.named_parameters() if name != skip]
    half = (len(params) + 1) // 2
    return [{"params": params[:half]}, {"params": params[half:], "lr": 0.02, "weight_decay": 0.0}]


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor as a single process would have it."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def snapshot(model: nn.Module) -> Snapshot:
    return {name: full(p) for name, p in model.named_parameters()}


def state_bytes(opt: torch.optim.Optimizer) -> int:
    """The state that this rank holds."""
    tensors = [own(x) for state in opt.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors)


def places(model: nn.Module) -> list[int]:
    return [own(p).data_ptr() for p in model.parameters()]


def train(model: nn.Module, opt: Any, steps: range, draw: Callable[[int], Any]) -> list[Snapshot]:
    """The parameters after every step."""
    taken = []
    for step in steps:
        if step == EDIT:
            opt.param_groups[0]["lr"] = 0.003
        opt.zero_grad()
        model(draw(step)).backward()
        opt.step()
        taken.append(snapshot(model))
    return taken


# --- ZeroRedundancyOptimizer


def zero(ranks: Ranks, name: str, buckets: bool = False, twin: bool = False) -> dict[str, Any]:
    """Two groups, a parameter that has no gradient at one step, a third group that joins; a checkpoint halfway."""
    shapes = {**SHAPES, "scalar": (), "late": (3, 11)}

    def draw(step: int) -> Snapshot:
        given = ranks.factors(step, shapes)
        return {key: factor for key, factor in given.items() if (step, key) != (1, "bias")}

    model, wrapped, opt = zero_of(ranks, name, shapes, two_groups, buckets, twin)
    path = train(wrapped, opt, range(EDIT), draw)
    opt.add_param_group({"params": [model.late], "lr": 0.03})  # new buckets: parameters move
    before = places(model)
    path += train(wrapped, opt, range(EDIT, MIDDLE), draw)
    result: dict[str, Any] = {"held": zero_held(ranks, opt), "stayed": places(model) == before}
    state = consolidated(ranks, opt)
    result["consolidated"] = state
    file = ranks.folder.parent / f"zero-{name}-{buckets}.pt"  # written by two ranks, read by two and by three
    if state is not None and ranks.world == 2:
        torch.save({"model": model.state_dict(), "opt": state}, file)
    path += train(wrapped, opt, range(MIDDLE, STEPS), draw)
    result["params"] = [{key.removeprefix("module."): p for key, p in taken.items()} for taken in path]
    result["rates"] = [group["lr"] for group in local(opt).param_groups]
    if not ranks.alone:
        dist.barrier()
        saved = torch.load(file)

        def groups(model: nn.Module) -> list[dict[str, Any]]:
            return [*two_groups(model, skip="late"), {"params": [model.late]}]

        model, wrapped, opt = zero_of(ranks, name, shapes, groups, buckets)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        train(wrapped, opt, range(MIDDLE, STEPS), draw)
        result["resumed"] = snapshot(model)
        result["resumed rates"] = [group["lr"] for group in local(opt).param_groups]
    return result


def zero_of(ranks: Ranks, name: str, shapes: Any, groups: Any, buckets: bool = False, twin: bool = False) -> Any:
    """A model, its DistributedDataParallel, and the optimizer over its ranks."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, wanted = Probe(shapes), optimizer(name, twin)
    parts = two_groups(model, skip="late") if groups is two_groups else groups(model)
    if ranks.alone:
        return model, model, wanted(parts, **OPTIONS[name])
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=buckets)
    opt = ZeroRedundancyOptimizer(parts, wanted, parameters_as_bucket_view=buckets, **OPTIONS[name])
    return model, wrapped, opt


def local(opt: Any) -> torch.optim.Optimizer:
    return getattr(opt, "optim", opt)


def zero_held(ranks: Ranks, opt: Any) -> dict[str, int]:
    """What the optimizer of this rank has: parameters and bytes of state."""
    inner = local(opt)
    return {"params": sum(len(group["params"]) for group in inner.param_groups), "bytes": state_bytes(inner)}


def consolidated(ranks: Ranks, opt: Any) -> dict[str, Any] | None:
    """The state of all ranks, on the first."""
    if not ranks.alone:
        opt.consolidate_state_dict(to=0)
    return copy.deepcopy(opt.state_dict()) if ranks.rank == 0 else None


def few(ranks: Ranks, name: str) -> dict[str, Any]:
    """More ranks than parameters: some optimizers have none."""
    shapes = {"long": SHAPES["long"]}
    model, wrapped, opt = zero_of(ranks, name, shapes, lambda model: list(model.parameters()))
    train(wrapped, opt, range(MIDDLE), lambda step: ranks.factors(step, shapes))
    return {"held": zero_held(ranks, opt), "consolidated": consolidated(ranks, opt), "params": snapshot(model)}


# --- FSDP2


def fsdp_of(ranks: Ranks, name: str, policy: Any = None, twin: bool = False) -> tuple[Pair, Any]:
    """A model whose parameters are sharded over the ranks, and its optimizer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import OffloadPolicy, fully_shard

    model = Pair()
    if not ranks.alone:
        mesh = init_device_mesh("cpu", (ranks.world,))
        for module in (model.first, model.second, model):
            fully_shard(module, mesh=mesh, offload_policy=policy or OffloadPolicy())
    return model, optimizer(name, twin)(two_groups(model), **OPTIONS[name])


def fsdp(ranks: Ranks, name: str, twin: bool = False) -> dict[str, Any]:
    """Shards of all sizes; a checkpoint of all ranks halfway."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, opt = fsdp_of(ranks, name, twin=twin)
    path = train(model, opt, range(MIDDLE), ranks.factors)
    before = places(model)
    checkpoint = ranks.folder.parent / f"fsdp-{name}"  # written by two ranks, read by three and by one
    if ranks.world == 2:
        params, state = get_state_dict(model, opt)
        dcp.save({"model": params, "opt": state}, checkpoint_id=checkpoint)
    path += train(model, opt, range(MIDDLE, STEPS), ranks.factors)
    result = {
        "params": path, "shards": {key: tuple(own(p).shape) for key, p in model.named_parameters()},
        "bytes": state_bytes(opt), "stayed": places(model) == before,
    }  # fmt: skip
    if ranks.world != 2 and not twin:
        model, opt = fsdp_of(ranks, name)
        params, state = get_state_dict(model, opt)
        dcp.load({"model": params, "opt": state}, checkpoint_id=checkpoint, no_dist=ranks.alone)
        set_state_dict(model, opt, model_state_dict=params, optim_state_dict=state)
        result["resumed"] = train(model, opt, range(MIDDLE, STEPS), ranks.factors)
        result["resumed rates"] = [group["lr"] for group in opt.param_groups]
    return result


def offload(ranks: Ranks, pin: bool) -> dict[str, Any]:
    """Parameters that CPUOffloadPolicy keeps here; pinned memory takes an accelerator to pin it for."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    try:
        model, opt = fsdp_of(ranks, "AdamW", CPUOffloadPolicy(pin_memory=pin))
    except RuntimeError as error:
        if torch.accelerator.is_available() or not pin:
            raise
        raise Cannot(f"pinned memory: {str(error).splitlines()[0]}") from error
    return {"params": train(model, opt, range(MIDDLE), ranks.factors)}


# --- DistributedDataParallel


def ddp(ranks: Ranks, name: str, twin: bool = False) -> dict[str, Any]:
    """Every rank has all; gradients that lie in one buffer, at any offset."""
    model: Any = Probe(SHAPES)
    if not ranks.alone:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    opt = optimizer(name, twin)(two_groups(model), **OPTIONS[name])
    path = train(model, opt, range(STEPS), ranks.factors)
    return {"params": [{key.removeprefix("module."): p for key, p in taken.items()} for taken in path]}


def network(ranks: Ranks, name: str) -> dict[str, Any]:
    """A small network on its share of a batch of twelve."""
    model: Any = nn.Sequential(nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 3))
    if not ranks.alone:
        model = nn.parallel.DistributedDataParallel(model)
    opt = optimizer(name)(model.parameters(), **OPTIONS[name])
    x, y = torch.randn(STEPS, 12, 9), torch.randn(STEPS, 12, 3)
    for k in range(STEPS):
        opt.zero_grad()
        share = slice(ranks.rank, None, ranks.world)
        nn.functional.mse_loss(model(x[k, share]), y[k, share]).backward()
        opt.step()
    return {"params": {key.removeprefix("module."): p for key, p in snapshot(model).items()}}


# --- DeepSpeed


def prepared_deepspeed(ranks: Ranks) -> Any:
    """DeepSpeed on the CPU, within the process group that there is."""
    os.environ.update(
        DS_ACCELERATOR="cpu", RANK=str(ranks.rank), LOCAL_RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world),
    )  # fmt: skip
    try:
        import deepspeed
    except ImportError as error:
        raise Cannot(f"import deepspeed: {error}") from error
    deepspeed.logger.setLevel("ERROR")
    # A reduction through shared memory, for inference: with this nobody compiles it at first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    return deepspeed


def deepspeed_of(ranks: Ranks, name: str, stage: int, offload: bool, groups: Any = two_groups) -> tuple[Any, ...]:
    """A model, its engine, and the optimizer that was given to it."""
    model = Probe(SHAPES)
    opt = optimizer(name)(groups(model), **OPTIONS[name])
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,  # the default clips
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offload else {})},
    }
    engine, *_ = prepared_deepspeed(ranks).initialize(model=model, optimizer=opt, config=config)
    return model, engine, opt


def deepspeed_steps(model: Probe, engine: Any, ranks: Ranks, steps: range) -> list[Snapshot]:
    taken = []
    for step in steps:
        if step == EDIT:
            engine.optimizer.param_groups[0]["lr"] = 0.003
        engine.backward(engine(ranks.factors(step)))
        engine.step()
        taken.append(snapshot(model))
    return taken


def deepspeed(ranks: Ranks, name: str, stage: int, offload: bool = False) -> dict[str, Any]:
    """ZeRO stage 1 or 2: every group is one flat tensor, of which the optimizer gets this rank's part."""
    if ranks.alone:
        model = Probe(SHAPES)
        opt = optimizer(name)(two_groups(model), **OPTIONS[name])
        return {"params": train(model, opt, range(STEPS), ranks.factors)}
    model, engine, opt = deepspeed_of(ranks, name, stage, offload)
    path, tag = deepspeed_steps(model, engine, ranks, range(MIDDLE)), f"{name}-{stage}-{offload}"
    engine.save_checkpoint(str(ranks.folder), tag=tag)
    path += deepspeed_steps(model, engine, ranks, range(MIDDLE, STEPS))
    result = {
        "params": path, "given": engine.optimizer.optimizer is opt,
        "groups": [[p.numel() for p in group["params"]] for group in opt.param_groups],
        "state": [x.numel() for state in opt.state.values() for x in state.values()
                  if isinstance(x, torch.Tensor) and x.dim()],
    }  # fmt: skip
    model, engine, opt = deepspeed_of(ranks, name, stage, offload)
    engine.load_checkpoint(str(ranks.folder), tag=tag)
    result["resumed"] = deepspeed_steps(model, engine, ranks, range(MIDDLE, STEPS))
    return result


def deepspeed_adagrad(ranks: Ranks) -> dict[str, Any]:
    """Which class steps after DeepSpeed was given fastopt's Adagrad."""
    _, engine, _ = deepspeed_of(ranks, "Adagrad", 1, False, lambda model: list(model.parameters()))
    used = type(engine.optimizer.optimizer)
    return {"class": f"{used.__module__}.{used.__qualname__}"}


# --- All of them

ZERO = {"AdamW": False, "SGD": True, "Adagrad": False, "NAdam": True}
"""With which optimizers, and whether the parameters become views of one buffer a rank."""
DEEPSPEED = [("AdamW", 1), ("SGD", 1), ("AdamW", 2), ("SGD", 2), ("NAdam", 2)]
JOBS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
    **{f"zero {name}": (zero, {"name": name, "buckets": buckets}) for name, buckets in ZERO.items()},
    **{f"few {name}": (few, {"name": name}) for name in ("AdamW", "SGD")},
    **{f"fsdp {name}": (fsdp, {"name": name}) for name in OPTIONS},
    "offload": (offload, {"pin": False}),
    "offload pinned": (offload, {"pin": True}),
    **{f"ddp {name}": (ddp, {"name": name}) for name in OPTIONS},
    "network": (network, {"name": "AdamW"}),
    **{f"deepspeed {name} {stage}": (deepspeed, {"name": name, "stage": stage}) for name, stage in DEEPSPEED},
    "deepspeed AdamW 2 offload": (deepspeed, {"name": "AdamW", "stage": 2, "offload": True}),
    "deepspeed adagrad": (deepspeed_adagrad, {}),
}


def outcome(ranks: Ranks, job: str) -> dict[str, Any]:
    """What a job returns, beside that of PyTorch's own class in a single process."""
    function, options = JOBS[job]
    torch.manual_seed(0)
    try:
        result = function(ranks, **options)
    except Cannot as reason:
        return {"cannot": str(reason)}
    if ranks.alone and "twin" in inspect.signature(function).parameters:
        torch.manual_seed(0)
        result["twin"] = function(ranks, **options, twin=True)["params"]
    return result


def main(folder: str, rank: str, world: str, *jobs: str) -> int:
    ranks, code = Ranks(Path(folder), int(rank), int(world)), 0
    torch.set_num_threads(1)
    if not ranks.alone:
        dist.init_process_group(
            "gloo", init_method=f"file://{ranks.folder}/store", rank=ranks.rank, world_size=ranks.world,
            timeout=datetime.timedelta(seconds=60),
        )  # fmt: skip
    for job in jobs:
        try:
            part = ranks.folder / f"{rank}.part"  # whoever finds a file finds all of it
            torch.save(outcome(ranks, job), part)
            part.rename(ranks.folder / f"{rank} {job}.pt")
        except Exception:
            print(f"rank {rank} of {world}, job {job!r}:\n{traceback.format_exc()}", file=sys.stderr)
            code = 1
            break  # the others of this group cannot go on without us
    if code == 0 and not ranks.alone:
        dist.barrier()
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads may abort an interpreter that shuts down while they end
