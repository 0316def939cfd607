"""What one rank does for `test_clip_ranks.py`: ``python clip_ranks.py FOLDER RANK WORLD JOB...``, as in `ranks.py`.

Everything is in float64, so that the norm of several ranks can be compared with that of one process to 1e-12.
"""

from __future__ import annotations

import copy
import os
import pickle
import sys
from typing import Any

import ranks as base
import torch
import torch.distributed as dist
from ranks import SHAPES, Pair, Probe, Ranks, factors, snapshot
from torch import nn

import fastopt.torch as ft
from fastopt import _torch_ranks, errors

STEPS = 4
LIMIT = 5.0
LIMITS = (LIMIT, LIMIT, 1e9, 0.25)
"""By step: that of the norm."""


def drawn(ranks: Ranks, step: int, shapes: Any = SHAPES) -> Any:
    return {name: x.double() for name, x in factors(step, ranks.rank, ranks.world, shapes).items()}


def trained(ranks: Ranks, model: nn.Module, opt: Any, inner: Any = None, shapes: Any = SHAPES) -> dict[str, Any]:
    """The parameters and the norm after every step."""
    inner = inner or opt
    path, norms = [], []
    for step, limit in enumerate(LIMITS):
        inner.clip_norm = limit
        opt.zero_grad()
        model(drawn(ranks, step, shapes)).backward()
        opt.step()
        path.append({name.removeprefix("module."): p for name, p in snapshot(model).items()})
        norms.append(inner.grad_norm)
    return {"params": path, "norms": norms}


def fsdp(ranks: Ranks, name: str, norm_type: float = 2, dtype: Any = torch.float64) -> dict[str, Any]:
    """FSDP2: uneven and empty shards, found from the placements."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Pair().to(dtype)
    if not ranks.alone:
        mesh = init_device_mesh("cpu", (ranks.world,))
        for module in (model.first, model.second, model):
            fully_shard(module, mesh=mesh)
    opt = getattr(ft, name)(
        base.two_groups(model), **base.OPTIONS[name], clip_norm=LIMIT, norm_type=norm_type, fallback="silent"
    )
    return trained(ranks, model, opt)


def zero(ranks: Ranks, name: str, shapes: Any = SHAPES) -> dict[str, Any]:
    """ZeroRedundancyOptimizer: `clip_group` comes through its defaults; a rank may have no parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model: Any = Probe(shapes).double()
    options = {**base.OPTIONS[name], "clip_norm": LIMIT}
    if ranks.alone:
        return trained(ranks, model, getattr(ft, name)(model.parameters(), **options), shapes=shapes)
    wrapped = nn.parallel.DistributedDataParallel(model)
    opt = ZeroRedundancyOptimizer(model.parameters(), getattr(ft, name), clip_group=dist.group.WORLD, **options)
    result = trained(ranks, wrapped, opt, opt.optim, shapes)
    opt.consolidate_state_dict(to=0)
    saved = opt.state_dict() if ranks.rank == 0 else {"param_groups": []}
    result["keys"] = sorted({key for group in [*saved["param_groups"], *opt.optim.param_groups] for key in group})
    pickle.dumps(saved)
    return {**result, "held": sum(len(group["params"]) for group in opt.optim.param_groups)}


def zero_refused(ranks: Ranks) -> dict[str, Any]:
    """What ZeroRedundancyOptimizer is not to be made with, and not to be stepped with."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    texts = []
    params = list(Probe(SHAPES).parameters())
    for p in params:
        p.grad = torch.ones_like(p)
    small = dist.new_group([ranks.rank], use_local_synchronization=True)
    for options in ({}, {"clip_group": small}):
        try:
            ZeroRedundancyOptimizer(params, ft.AdamW, clip_norm=1.0, **options)
        except errors.HyperparameterError as error:
            texts.append(str(error))
    for way in ("set later", "group taken away", "put in place"):
        if way == "put in place":  # of an optimizer that was not made by it
            opt = ZeroRedundancyOptimizer(params, torch.optim.AdamW)
            opt.optim = ft.AdamW(opt.optim.param_groups, clip_norm=1.0)
        else:
            opt = ZeroRedundancyOptimizer(params, ft.AdamW, clip_group=dist.group.WORLD)
            opt.optim.clip_norm = 1.0
            opt.optim.clip_group = None
        if way == "group taken away":
            opt.optim = copy.deepcopy(opt.optim)
        before = [p.detach().clone() for p in params]
        try:
            opt.step()
        except errors.HyperparameterError as error:
            texts.append(str(error))
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    return {"texts": texts}


def ddp(ranks: Ranks, name: str) -> dict[str, Any]:
    """DistributedDataParallel: every rank has all gradients, so that nothing is exchanged."""
    calls: list[int] = []
    model: Any = Probe(SHAPES).double()
    if not ranks.alone:
        model = nn.parallel.DistributedDataParallel(model)
    opt = getattr(ft, name)(base.two_groups(model), **base.OPTIONS[name], clip_norm=LIMIT)
    before, _torch_ranks.gathered = _torch_ranks.gathered, lambda *args: calls.append(1) or before(*args)
    result = trained(ranks, model, opt)
    _torch_ranks.gathered = before
    assert opt._plan is not None, "a usual step goes the quick way"
    return {**result, "exchanges": len(calls)}


def disjoint(ranks: Ranks) -> tuple[list[Any], Any]:
    """Parameters of this rank alone, one more on each, and an optimizer that is told so."""
    params = [nn.Parameter(torch.ones(3 + ranks.rank, dtype=torch.float64)) for _ in range(ranks.rank + 1)]
    for p in params:
        p.grad = torch.full_like(p, ranks.rank + 1.0)
    return params, ft.SGD([{"params": params}], lr=0.1, clip_norm=1.0, clip_group=dist.group.WORLD)


def told(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def failing(ranks: Ranks) -> dict[str, Any]:
    """The step of the last rank fails in its checks, in several ways: nothing is written anywhere."""
    params, opt = disjoint(ranks)
    last = ranks.rank == ranks.world - 1
    opt.step()
    result: dict[str, Any] = {"norm": opt.grad_norm, "texts": []}
    before = [p.detach().clone() for p in params]
    kept = [p.grad for p in params]

    def attempt() -> None:
        result["texts"].append(told(opt.step))
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True)), "a failed step has written"

    def spoil_lr() -> Any:
        opt.param_groups[0]["lr"] = float("nan")

    def spoil_grad() -> Any:
        params[0].grad = torch.ones(params[0].shape, dtype=torch.float64).to_sparse()
        opt._settings["fallback"] = "error"

    def spoil_groups() -> Any:
        del opt.param_groups[0]["momentum"]

    def skip() -> None:
        opt.found_inf, opt.grad_scale = torch.tensor(1.0), torch.tensor(1.0)

    for spoil in (spoil_lr, spoil_grad, spoil_groups):
        if last:
            spoil()
        attempt()
        opt._settings["fallback"] = "warn"
        opt.param_groups[0].update(lr=0.1, momentum=0)
        for p, g in zip(params, kept, strict=True):
            p.grad = g
    if last:
        opt.clip_norm = 2.0
    attempt()
    opt.clip_norm = 1.0
    if last:
        skip()
    attempt()  # all skip
    for name in ("found_inf", "grad_scale"):
        if last:
            delattr(opt, name)
    before_gathered, _torch_ranks.gathered = _torch_ranks.gathered, lambda *_: 1 / 0
    attempt()  # the exchange itself fails
    _torch_ranks.gathered = before_gathered

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    _torch_ranks.gathered = interrupt
    try:
        opt.step()
    except KeyboardInterrupt:
        result["texts"].append("interrupted")
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    _torch_ranks.gathered = before_gathered
    opt.step()
    moved = [bool((p != q).all()) for p, q in zip(params, before, strict=True)]
    return {**result, "after": opt.grad_norm, "moved": moved}


def dtensors(ranks: Ranks) -> dict[str, Any]:
    """Meshes of two dimensions, replicated and sharded; plain tensors beside them; Partial ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    shape = {2: (1, 2), 3: (3, 1), 4: (2, 2)}[ranks.world]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b"))
    torch.manual_seed(0)
    whole = [torch.randn(5, 7, dtype=torch.float64) for _ in range(6)]
    grads = [torch.randn(5, 7, dtype=torch.float64) for _ in range(6)]
    kinds: list[Any] = [
        [Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(1), Replicate()], [Replicate(), Replicate()], None,
        [Shard(0)],
    ]  # fmt: skip

    def distributed(x: torch.Tensor, kind: Any) -> Any:
        if kind is None:
            return x.clone()
        return distribute_tensor(x.clone(), mesh if len(kind) == 2 else mesh["b"], kind)

    def made(only: Any = None) -> list[Any]:
        params = []
        for x, g, kind in zip(whole, grads, kinds, strict=True):
            if only is None or only(kind):
                p = nn.Parameter(distributed(x, kind))
                p.grad = distributed(g, kind)
                params.append(p)
        return params

    result: dict[str, Any] = {}
    for order in (2, float("inf")):
        params = made()
        opt = ft.SGD(params, lr=0.1, clip_norm=1.0, norm_type=order)
        opt.step()
        plain = [nn.Parameter(x.clone()) for x in whole]
        for p, g in zip(plain, grads, strict=True):
            p.grad = g
        one = ft.SGD(plain, lr=0.1, clip_norm=1.0, norm_type=order)
        one.step()
        assert abs(opt.grad_norm - one.grad_norm) <= 1e-13 * one.grad_norm, (order, opt.grad_norm, one.grad_norm)
        for p, q in zip(params, plain, strict=True):
            torch.testing.assert_close(base.full(p), q.detach(), rtol=1e-13, atol=1e-13)
        result[str(order)] = opt.grad_norm
    p = made(lambda kind: kind == [Replicate(), Replicate()])[0]
    p.grad = DTensor.from_local(torch.ones(5, 7, dtype=torch.float64), mesh, [Partial(), Partial()])
    opt = ft.SGD([p], lr=0.1, clip_norm=1.0)
    opt.step()
    result["partial"] = opt.grad_norm / 35**0.5  # the sum over the ranks
    p = nn.Parameter(DTensor.from_local(torch.ones(2, dtype=torch.float64), mesh, [Partial(), Replicate()]))
    p.grad = DTensor.from_local(torch.ones(2, dtype=torch.float64), mesh, [Partial(), Replicate()])
    result["texts"] = [told(ft.SGD([p], lr=0.1, clip_norm=1.0).step)]
    p = made(lambda kind: kind == [Shard(0), Shard(1)])[0]
    result["texts"].append(told(ft.SGD([p], lr=0.1, clip_norm=1.0, clip_group=dist.group.WORLD).step))
    params = made(lambda kind: kind in (None, [Shard(0), Shard(1)]))
    params[1].grad *= 1 + ranks.rank  # which every rank should have
    result["texts"].append(told(ft.SGD(params, lr=0.1, clip_norm=1.0).step))
    return result


def unlike_placements(ranks: Ranks) -> dict[str, Any]:
    """Partial gradients take an exchange of their own, where a rank that fails must not be missed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = init_device_mesh("cpu", (ranks.world,))
    p = nn.Parameter(DTensor.from_local(torch.zeros(30), mesh, [Replicate()]))
    opt = ft.SGD([p], lr=1.0, momentum=0.9, clip_norm=5.0, zero_grads=True)
    result: dict[str, Any] = {"norms": [], "values": [], "texts": [], "kept": [], "zeroed": []}
    for spoil in ("", "lr", "state"):
        p.grad = given = DTensor.from_local(torch.ones(30), mesh, [Partial()])
        if ranks.rank == ranks.world - 1 and spoil == "lr":
            opt.param_groups[0]["lr"] = float("nan")
        if ranks.rank == ranks.world - 1 and spoil == "state":  # so that this rank alone needs a new plan
            opt.state[p]["momentum_buffer"] = opt.state[p]["momentum_buffer"].clone()
        result["texts"].append(told(opt.step))
        opt.param_groups[0]["lr"] = 1.0
        result["norms"].append(opt.grad_norm)
        result["values"].append(base.full(p).clone())
        result["kept"].append(p.grad is given and given.placements == (Partial(),))
        result["zeroed"].append(not given.to_local().any())
    return result


def each(ranks: Ranks) -> dict[str, Any]:
    """clip_norm_each of what is sharded, by whatever way it is asked for."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks.world,))

    def made(dtype: Any, *placements: Any) -> Any:
        p = nn.Parameter(distribute_tensor(torch.ones(5, 3, dtype=dtype), mesh, placements))
        p.grad = distribute_tensor(torch.ones(5, 3, dtype=dtype), mesh, placements)
        return p

    result: dict[str, Any] = {"texts": []}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for options in ({}, {"clip_norm": 1.0}):
            for way in ("given", "set", "set after a step"):
                p, q = nn.Parameter(torch.ones(2)), made(dtype, Shard(0))
                p.grad = torch.ones(2)
                opt = ft.SGD([{"params": [p]}, {"params": [q]}], lr=0.1, fallback="silent", **options)
                if way == "given":
                    opt = ft.SGD([p, q], lr=0.1, fallback="silent", clip_norm_each=1.0, **options)
                if way == "set after a step":
                    opt.step()
                opt.param_groups[-1]["clip_norm_each"] = 1.0
                before = [p.detach().clone(), q.detach().to_local().clone()]
                result["texts"].append(told(opt.step))
                assert torch.equal(p, before[0]) and torch.equal(q.detach().to_local(), before[1]), (dtype, way)
    q = made(torch.float64, Replicate())
    ft.SGD([q], lr=1.0, clip_norm_each=1.0).step()
    return {**result, "whole": (1 - base.full(q)).norm().item()}


def late(ranks: Ranks) -> dict[str, Any]:
    """What is left to PyTorch on the last rank alone cannot be clipped: all of them are told before the step."""
    params = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    if ranks.rank == ranks.world - 1:
        params.append(nn.Parameter(torch.ones(3, dtype=torch.complex128)))
    for p in params:
        p.grad = torch.ones_like(p)
    opt = ft.SGD(params, lr=0.1, clip_norm=1.0, clip_group=dist.group.WORLD, clip_value=1.0, fallback="silent")
    text = told(opt.step)
    return {"text": text, "kept": all(bool((p == 1).all()) for p in params)}


def skipping(ranks: Ranks) -> dict[str, Any]:
    """A step that one rank skips zeroes the gradients of all that ask for it."""
    params, _ = disjoint(ranks)
    opt = ft.SGD(params, lr=0.1, clip_norm=1.0, clip_group=dist.group.WORLD, zero_grads=True)
    if ranks.rank == 0:
        opt.found_inf, opt.grad_scale = torch.tensor(1.0), torch.tensor(1.0)
    opt.step()
    return {"kept": all(bool((p == 1).all()) for p in params), "zeroed": not any(p.grad.any() for p in params)}


def ended(ranks: Ranks) -> dict[str, Any]:
    """After the process group is gone nobody can say what the norm of all gradients is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks.world,))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    sharded = ft.SGD([p], lr=0.1, clip_norm=1.0)
    params, opt = disjoint(ranks)
    for one in (sharded, opt):
        one.step()
    before = [x.detach().clone() for x in (*params, p.detach().to_local())]
    dist.barrier()
    dist.destroy_process_group()
    texts = [told(one.step) for one in (sharded, opt)]
    kept = all(torch.equal(x, y) for x, y in zip((*params, p.detach().to_local()), before, strict=True))
    dist.init_process_group("gloo", init_method=f"file://{ranks.folder}/again", rank=ranks.rank, world_size=ranks.world)
    return {"texts": texts, "kept": kept}


def stages(ranks: Ranks) -> dict[str, Any]:
    """Shards over some ranks and other parameters on others, as with pipelines: a mesh, then `clip_group`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "shard"))
    stage = mesh.get_coordinate()[0]
    torch.manual_seed(stage)
    values = torch.randn(5, 3, dtype=torch.float64)
    p = nn.Parameter(distribute_tensor(values, mesh["shard"], [Shard(0)]))
    p.grad = distribute_tensor(values, mesh["shard"], [Shard(0)])
    opt = ft.SGD([p], lr=1.0, clip_norm=1.0, clip_group=mesh.get_group("stage"))
    opt.step()
    return {"norm": opt.grad_norm, "part": (values**2).sum().item(), "stage": stage}


def around(ranks: Ranks) -> dict[str, Any]:
    """Averages, zeroing and clipping by value of shards, under DDP and a ZeroRedundancyOptimizer; norms of each not."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.distributed.tensor import Replicate, distribute_tensor

    options = {"ema_decay": 0.5, "zero_grads": True, "clip_value": 0.25}
    mesh = init_device_mesh("cpu", (ranks.world,))
    made: dict[str, Any] = {}
    for kind in ("alone", "shards", "ddp", "zero"):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        if kind == "shards":
            fully_shard(model, mesh=mesh)
        elif kind != "alone":
            model = nn.parallel.DistributedDataParallel(model)
        if kind == "zero":
            refused = told(lambda made=model: ZeroRedundancyOptimizer(made.parameters(), ft.AdamW, **options))
            rest = {key: value for key, value in options.items() if key != "zero_grads"}
            opt: Any = ZeroRedundancyOptimizer(model.parameters(), ft.AdamW, lr=0.1, **rest)
        else:
            opt = ft.AdamW(model.parameters(), lr=0.1, **options)
        for k in range(3):
            model(torch.full((2, 7), k + 1.0, dtype=torch.float64)).sum().backward()
            opt.step()
            if kind == "zero":
                opt.zero_grad()
            assert not any(base.full(p.grad).any() for p in model.parameters() if p.grad is not None)
        inner = opt.optim if kind == "zero" else opt
        x = torch.ones(1, 7, dtype=torch.float64)
        with torch.no_grad():
            before = model(x)
            if kind == "shards":
                model.reshard()
            with inner.averaged():
                if kind != "zero":  # where each rank averages what it steps
                    made[kind] = model(x), {k: base.full(p).clone() for k, p in enumerate(model.parameters())}
                if kind == "shards":
                    model.reshard()
            assert torch.equal(model(x), before)
        if kind == "zero":
            place = {id(p): k for k, p in enumerate(model.parameters())}
            held = [p for group in inner.param_groups for p in group["params"]]
            own = {place[id(p)]: average for p, average in zip(held, inner.averages, strict=True)}
            assert all(torch.equal(average, made["ddp"][1][k]) for k, average in own.items())
        if kind == "shards":
            model.reshard()
            values = [p.to_local().clone() for p in model.parameters()]
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            opt.param_groups[0]["clip_norm_each"] = 1.0  # of a plan that is bound
            texts = [told(opt.step), told(ft.SGD(model.parameters(), lr=0.1, clip_norm_each=1.0).step)]
            half = nn.Parameter(distribute_tensor(torch.ones(4, 2).half(), mesh, list(p.placements)))
            half.grad = torch.ones_like(half)
            texts.append(told(ft.SGD([half], lr=0.1, clip_norm_each=1.0, fallback="silent").step))
            assert all(torch.equal(p.to_local(), x) for p, x in zip(model.parameters(), values, strict=True))
            assert (half.to_local() == 1).all()
    for kind in ("shards", "ddp"):
        torch.testing.assert_close(made[kind], made["alone"], rtol=1e-12, atol=1e-12)
    whole = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()]))
    whole.grad = torch.ones_like(whole)
    ft.SGD([whole], lr=1.0, clip_norm_each=1.0).step()
    torch.testing.assert_close(whole.to_local(), torch.full((4,), 0.5))
    return {"texts": texts, "refused": refused}


def fsdp1(ranks: Ranks) -> dict[str, Any]:
    """FullyShardedDataParallel, whose parameters do not tell that they are shards; clip_group does."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    result: dict[str, Any] = {"texts": [], "norms": []}
    for original in (False, True):
        torch.manual_seed(0)
        model = FullyShardedDataParallel(
            nn.Linear(7, 5).double(), device_id=torch.device("cpu"), use_orig_params=original
        )
        for group in (None, dist.group.WORLD):
            opt = ft.SGD(model.parameters(), lr=0.1, clip_norm=LIMIT, clip_group=group)
            opt.zero_grad()
            model(torch.arange(7.0, dtype=torch.float64)).sum().backward()
            text = told(opt.step)
            if group is None:
                result["texts"].append(text)
            else:
                result["norms"].append(opt.grad_norm)
    return result


def deepspeed(ranks: Ranks) -> dict[str, Any]:
    """A step that a module of DeepSpeed's calls."""
    opt = ft.SGD([nn.Parameter(torch.ones(3))], lr=0.1, clip_norm=1.0)
    sys.modules["deepspeed"] = type(sys)("deepspeed")
    code: dict[str, Any] = {"__name__": "deepspeed.runtime.engine", "opt": opt}
    exec("def step(): opt.step()", code)
    text = told(code["step"])
    del sys.modules["deepspeed"]
    return {"text": text}


def alike(ranks: Ranks) -> dict[str, Any]:
    """bfloat16 shards: with the norm of one process."""
    return fsdp(ranks, "SGD", dtype=torch.bfloat16)


JOBS: dict[str, Any] = {
    "fsdp AdamW": (fsdp, {"name": "AdamW"}),
    "fsdp SGD inf": (fsdp, {"name": "SGD", "norm_type": float("inf")}),
    "zero AdamW": (zero, {"name": "AdamW"}),
    "few SGD": (zero, {"name": "SGD", "shapes": {"long": SHAPES["long"]}}),
    "refused": (zero_refused, {}),
    "ddp AdamW": (ddp, {"name": "AdamW"}),
    "failing": (failing, {}),
    "dtensors": (dtensors, {}),
    "unlike placements": (unlike_placements, {}),
    "each": (each, {}),
    "late": (late, {}),
    "skipping": (skipping, {}),
    "ended": (ended, {}),
    "stages": (stages, {}),
    "around": (around, {}),
    "16 bits": (alike, {}),
    "fsdp1": (fsdp1, {}),
    "deepspeed": (deepspeed, {}),
}

if __name__ == "__main__":
    base.JOBS = JOBS
    status = base.main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as in ranks.py
