"""What a step costs past one process: expected from the bytes that it moves, and measured, on one, two and three ranks.

    python bench/scaling.py            # a few minutes, 6 GB; prints the tables of docs/scaling.md
    python bench/scaling.py --elements 24_000_000 --ranks 1 2

Design:
- The ranks are processes of this machine, with one thread each, that talk over gloo. They take every measurement
  together, from a barrier on; the time is that of the slowest rank, the median over the rounds.
- The bandwidth is that of ``a += b`` over as many bytes as a rank's step of AdamW moves, all ranks at once, between the
  steps: whatever else the machine does, it does to both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from fastopt.torch import AdamW

MOVED = 28              # bytes an element: p, m, v read and written, g read
MOVED_BY_ADD = 12       # a read and written, b read
LAYERS = 12             # of equal size: two and three ranks share them evenly


class Layer(nn.Module):
    def __init__(self, elements):
        super().__init__()
        self.weight = nn.Parameter(torch.full((elements // LAYERS // 1000, 1000), 0.5))


def layers(elements):
    return nn.ModuleList(Layer(elements) for _ in range(LAYERS))


def with_grads(model):
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.01)
    return model


# --- What every rank does


def measurements(world, elements, n_threads):
    """What is measured, by name: a function, and another that puts things back."""
    share = MOVED * elements // world // MOVED_BY_ADD
    a, b = torch.ones(share), torch.full((share,), 1e-6)
    whole = with_grads(layers(elements))
    plain = AdamW(whole.parameters(), n_threads=n_threads)
    zero = ZeroRedundancyOptimizer(whole.parameters(), AdamW, parameters_as_bucket_view=True, n_threads=n_threads)
    sharded = layers(elements)
    mesh = init_device_mesh("cpu", (world,))
    for layer in sharded:
        fully_shard(layer, mesh=mesh)
    fsdp = AdamW(with_grads(sharded).parameters(), n_threads=n_threads)

    def gather():
        for layer in sharded:
            layer.unshard()

    def drop():
        for layer in sharded:
            layer.reshard()

    return {
        "bandwidth": (lambda: a.add_(b), None),
        "plain": (plain.step, None),
        "zero": (zero.optim.step, None),
        "zero, with broadcast": (zero.step, None),
        "fsdp": (fsdp.step, None),
        "fsdp, all-gather": (gather, drop),
    }


def measure(world, elements, n_threads, rounds):
    """Seconds of the slowest rank, by name; the median over the rounds."""
    todo = measurements(world, elements, n_threads)
    taken = {name: [] for name in todo}
    for turn in range(rounds + 2):
        for name, (work, restore) in todo.items():
            dist.barrier()
            start = time.perf_counter()
            work()
            seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            if restore:
                restore()
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            if turn >= 2:                              # the first ones make state and touch memory
                taken[name].append(float(seconds))
    return {name: median(times) for name, times in taken.items()}


def worker(args):
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", init_method=f"file://{args.store}", rank=args.rank, world_size=args.world)
    seconds = measure(args.world, args.elements, args.threads, args.rounds)
    if args.rank == 0:
        print(json.dumps(seconds), flush=True)
    dist.barrier()
    os._exit(0)                                        # gloo's threads may abort an interpreter that shuts down


# --- Who starts them


def run(args, world, threads):
    """The measurements of so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--elements", str(args.elements), "--rounds", str(args.rounds),
                   "--world", str(world), "--threads", str(threads), "--store", f"{folder}/store"]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=env, text=True, stdout=subprocess.PIPE)
                 for rank in range(world)]  # fmt: skip
        said = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise SystemExit(f"scaling: a rank ended with {[rank.returncode for rank in ranks]}")
    return json.loads(said[0])


def tables(args, results):
    """The tables of the page."""
    cores = len(os.sched_getaffinity(0))
    yield f"{args.elements:,} elements in {LAYERS} arrays, float32, {cores} cores, medians of {args.rounds} rounds.\n"
    yield "| ranks × threads | GB/s a rank | GB/s in all |"
    yield "|---|---|---|"
    for (world, threads), seconds in results.items():
        rate = MOVED * args.elements / world / seconds["bandwidth"] / 1e9
        yield f"| {world} × {threads} | {rate:.1f} | {rate * world:.1f} |"
    yield "\n| ranks × threads | step of | MB a rank moves | expected, ms | measured, ms | ratio | communication, ms |"
    yield "|---|---|---|---|---|---|---|"
    for (world, threads), seconds in results.items():
        broadcast = seconds["zero, with broadcast"] - seconds["zero"]
        for name, label, sharers, beside in (
            ("plain", "AdamW, all on every rank", 1, None),
            ("zero", "AdamW in ZeroRedundancyOptimizer", world, broadcast),
            ("fsdp", "AdamW under fully_shard", world, seconds["fsdp, all-gather"]),
        ):
            moved = MOVED * args.elements / sharers
            expected, got = seconds["bandwidth"] * world / sharers, seconds[name]
            other = "–" if beside is None or world == 1 else f"{beside * 1e3:.0f}"
            yield (f"| {world} × {threads} | {label} | {moved / 1e6:,.0f} | {expected * 1e3:.1f} | {got * 1e3:.1f} | "
                   f"{got / expected:.2f} | {other} |")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=48_000_000, help="in all; rounded to equal layers")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    for name in ("--world", "--rank", "--threads"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.elements -= args.elements % (LAYERS * 1000 * 6)
    if args.world:
        return worker(args)
    groups = [(1, 2), *((world, 1) for world in args.ranks)]
    results = {group: run(args, *group) for group in groups}
    print("\n".join(tables(args, results)))


if __name__ == "__main__":
    main()
