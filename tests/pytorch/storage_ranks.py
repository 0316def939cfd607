"""What one rank does for `test_storage_ranks.py`: ``storage_ranks.py FOLDER RANK WORLD JOB...``, as in `ranks.py`.

Parameters are bfloat16, and gradients are such that sums and means over ranks are exact in bfloat16, too.
"""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import ranks as base
import torch
import torch.distributed as dist
from ranks import MIDDLE, SHAPES, STEPS, Pair, Probe, Ranks, own
from torch import nn

import fastopt.torch as ft
from fastopt import errors

MODES: dict[str, dict[str, Any]] = {
    "default": {}, "split": {"split": True, "state_dtype": "float32"}, "clipped": {"clip_norm": 1.0, "ema_decay": 0.5},
    "stochastic": {"rounding": "stochastic", "seed": 2},
}  # fmt: skip
SHARES = {**SHAPES, "long": (4099, 3)}


def draw(ranks: Ranks) -> Any:
    """Gradients of up to 180 multiples of 1/256, around a mean that two and three ranks divide."""

    def drawn(step: int) -> dict[str, torch.Tensor]:
        made = torch.Generator().manual_seed(step)

        def grid(shape: Any, most: int) -> torch.Tensor:
            return torch.randint(-most, most + 1, shape, generator=made) * (6 / 256)

        lean = 2 * ranks.rank - ranks.world + 1
        return {name: (grid(shape, 20) + lean * grid(shape, 5)).bfloat16() for name, shape in SHARES.items()}

    return drawn


def sharded(ranks: Ranks, options: dict[str, Any], name: str = "AdamW") -> tuple[nn.Module, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    model = Pair().bfloat16()
    if not ranks.alone:
        mesh = init_device_mesh("cpu", (ranks.world,))
        for module in (model.first, model.second, model):
            fully_shard(module, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    return model, getattr(ft, name)(base.two_groups(model), fallback="error", **base.OPTIONS[name], **options)


def kinds(opt: Any) -> set[tuple[str, str, str]]:
    """What the state is made of."""
    return {
        (key, type(x).__name__, str(x.dtype)) for state in opt.state.values() for key, x in state.items()
        if key not in ("step", "mu_product")
    }  # fmt: skip


def fsdp(ranks: Ranks, mode: str, name: str = "AdamW") -> dict[str, Any]:
    """Shards that CPUOffloadPolicy keeps here; a checkpoint of two ranks is read by three and by one."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, opt = sharded(ranks, MODES[mode], name)
    path = base.train(model, opt, range(MIDDLE), draw(ranks))
    checkpoint = ranks.folder.parent / f"fsdp-{mode}-{name}"
    if ranks.world == 2:
        params, state = get_state_dict(model, opt)
        dcp.save({"model": params, "opt": state}, checkpoint_id=checkpoint)
    path += base.train(model, opt, range(MIDDLE, STEPS), draw(ranks))
    result = {"params": path, "kinds": kinds(opt), "norm": opt.grad_norm}
    if ranks.world != 2:
        model, opt = sharded(ranks, MODES[mode], name)
        params, state = get_state_dict(model, opt)
        dcp.load({"model": params, "opt": state}, checkpoint_id=checkpoint, no_dist=ranks.alone)
        set_state_dict(model, opt, model_state_dict=params, optim_state_dict=state)
        result["resumed"] = base.train(model, opt, range(MIDDLE, STEPS), draw(ranks))
        result["resumed kinds"] = kinds(opt)
    return result


def packed(ranks: Ranks) -> dict[str, Any]:
    """State in 8 bits of shards."""
    model, opt = sharded(ranks, {"state_dtype": "8bit"})
    before = [own(p).detach().clone() for p in model.parameters()]
    model(draw(ranks)(0)).backward()
    try:
        opt.step()
    except errors.TensorKindError as error:
        text = str(error)
    else:
        text = ""
    kept = all(torch.equal(own(p), x) for p, x in zip(model.parameters(), before, strict=True)) and not opt.state
    return {"text": text, "kept": kept}


def ddp(ranks: Ranks, mode: str) -> dict[str, Any]:
    """Every rank has all, and the same random numbers."""
    model: Any = Probe(SHARES).bfloat16()
    if not ranks.alone:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    opt = ft.AdamW(base.two_groups(model), fallback="error", **base.OPTIONS["AdamW"], **MODES[mode])
    path = base.train(model, opt, range(STEPS), draw(ranks))
    return {"params": [{key.removeprefix("module."): p for key, p in taken.items()} for taken in path]}


def zero(ranks: Ranks, mode: str) -> dict[str, Any]:
    """ZeroRedundancyOptimizer, and a checkpoint of all ranks."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def world() -> tuple[Any, Any]:
        model: Any = Probe(SHARES).bfloat16()
        options = {**base.OPTIONS["AdamW"], **MODES[mode], "fallback": "error"}
        if ranks.alone:
            return model, ft.AdamW(model.parameters(), **options)
        if "clip_norm" in options:
            options["clip_group"] = dist.group.WORLD
        wrapped = nn.parallel.DistributedDataParallel(model)
        return wrapped, ZeroRedundancyOptimizer(model.parameters(), ft.AdamW, **options)

    model, opt = world()
    path = base.train(model, opt, range(MIDDLE), draw(ranks))
    file = ranks.folder / f"zero-{mode}.pt"
    if not ranks.alone:
        opt.consolidate_state_dict(to=0)
    if ranks.rank == 0:
        torch.save({"model": copy.deepcopy(model.state_dict()), "opt": copy.deepcopy(opt.state_dict())}, file)
    path += base.train(model, opt, range(MIDDLE, STEPS), draw(ranks))
    if not ranks.alone:
        dist.barrier()
    saved = torch.load(file)
    model, opt = world()
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    inner = base.local(opt)
    resumed = base.train(model, opt, range(MIDDLE, STEPS), draw(ranks))
    plain = [[{key.removeprefix("module."): p for key, p in taken.items()} for taken in x] for x in (path, resumed)]
    return {"params": plain[0], "resumed": plain[1], "kinds": kinds(inner)}


JOBS: dict[str, Any] = {
    **{f"fsdp {mode}": (fsdp, {"mode": mode}) for mode in MODES},
    **{f"ddp {mode}": (ddp, {"mode": mode}) for mode in MODES},
    **{f"zero {mode}": (zero, {"mode": mode}) for mode in ("default", "split")},
    "fsdp SGD": (fsdp, {"mode": "default", "name": "SGD"}),
    "packed": (packed, {}),
}  # fmt: skip

if __name__ == "__main__":
    base.JOBS = JOBS
    status = base.main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as in ranks.py
