"""Steps whose gradients come and go, or after which something was exchanged: PyTorch's foreach and fused, and fastopt.

    python bench/sparse_gradients.py [--rounds 9] [--steps 40] [--against FOLDER] [CASE ...]

Needs the extra `torch`. AdamW, float32, one thread. Each variant has a process of its own. The processes take turns, in
another order each round, so that a noisy machine is noisy for all alike. Only the step (or the constructor, the load)
is timed, not what prepares it. Prints a table in Markdown: medians over the rounds of the median step in microseconds,
and of the ratios of each round. `--against` adds another build of fastopt, from its folder, as the variant `base`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("foreach", "fused", "fastopt")


# --- The cases: generators that prepare a step, then yield what is to be timed


def tensors(n: int = 1000, size: int = 100) -> list:
    import torch

    params = [torch.nn.Parameter(torch.randn(size)) for _ in range(n)]
    for p in params:
        p.grad = torch.randn(size)
    return params


def constant(make: Callable) -> Iterator[Callable]:
    opt = make(tensors())
    while True:
        yield opt.step


def small(make: Callable) -> Iterator[Callable]:
    opt = make(tensors(1, 10))
    while True:
        yield opt.step


def half(make: Callable) -> Iterator[Callable]:
    params, chance = tensors(), random.Random(0)
    opt = make(params)
    grads = [p.grad for p in params]
    while True:
        for p, g in zip(params, grads, strict=True):
            p.grad = g if chance.random() < 0.5 else None
        yield opt.step


def lacks_one(make: Callable) -> Iterator[Callable]:
    params, chance = tensors(), random.Random(0)
    opt = make(params)
    grads = [p.grad for p in params]
    while True:
        k = chance.randrange(len(params))
        params[k].grad = None
        yield opt.step
        params[k].grad = grads[k]


def experts(make: Callable) -> Iterator[Callable]:
    params, step = tensors(), 0
    opt = make(params)
    grads = [p.grad for p in params]
    while True:
        step += 1
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            p.grad = g if k * 8 // len(params) == step % 8 else None
        yield opt.step


def note(make: Callable) -> Iterator[Callable]:
    params, step = tensors(), 0
    opt = make(params)
    opt.step()
    while True:
        step += 1
        opt.state[params[500]]["note"] = float(step)
        yield opt.step


def data(make: Callable) -> Iterator[Callable]:
    params = tensors()
    opt = make(params)
    opt.step()
    while True:
        params[500].data = params[500].data.clone()
        yield opt.step


def state(make: Callable) -> Iterator[Callable]:
    params = tensors()
    opt = make(params)
    opt.step()
    while True:
        opt.state[params[500]]["exp_avg"] = opt.state[params[500]]["exp_avg"].clone()
        yield opt.step


def sam(make: Callable) -> Iterator[Callable]:
    params = tensors(42, 1000)
    opt = make(params)
    opt.step()
    while True:
        old = [p.data for p in params]
        for p in params:
            p.data = p.data + 0.01
        for p, x in zip(params, old, strict=True):
            p.data = x.clone()
        yield opt.step


def every_data(make: Callable) -> Iterator[Callable]:
    params = tensors()
    opt = make(params)
    opt.step()
    while True:
        for p in params:
            p.data = p.data.clone()
        yield opt.step


def mixture(make: Callable) -> Iterator[Callable]:
    """A layer with a gate that sends each token to one of 8 experts: small batches leave experts without a token."""
    import torch

    torch.manual_seed(0)
    embed, gate, head = torch.nn.Embedding(100, 64), torch.nn.Linear(64, 8), torch.nn.Linear(64, 100)
    some = [torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)) for _ in range(8)]
    model = torch.nn.ModuleList([embed, gate, head, *some])
    opt = make(list(model.parameters()))
    while True:
        tokens = torch.randint(0, 100, (6,))
        x = embed(tokens)
        weights, chosen = gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for k in chosen.unique().tolist():
            mine = chosen == k
            out[mine] = weights[mine, None] * some[k](x[mine])
        opt.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(head(x + out), tokens).backward()
        yield opt.step


def constructor(make: Callable, n: int = 10) -> Iterator[Callable]:
    params = tensors(n)
    while True:
        yield lambda: make(params)


def first(make: Callable, n: int = 1000) -> Iterator[Callable]:
    params = tensors(n)
    while True:
        yield make(params).step


def load(make: Callable) -> Iterator[Callable]:
    params = tensors(150)
    opt = make(params)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    while True:
        yield lambda: opt.load_state_dict(saved)


CASES = {
    "1 x 10": small,
    "constant set": constant,
    "random half None": half,
    "one lacks a gradient": lacks_one,
    "one of 8 experts": experts,
    "note in state": note,
    "one p.data exchanged": data,
    "one state tensor exchanged": state,
    "42 p.data exchanged": sam,
    "1,000 p.data exchanged": every_data,
    "mixture of experts": mixture,
    "constructor": constructor,
    "constructor, 150 tensors": partial(constructor, n=150),
    "constructor, 1,000 tensors": partial(constructor, n=1000),
    "first step": first,
    "first step, 1 tensor": partial(first, n=1),
    "load, 150 tensors": load,
}


# --- Processes that take turns


def work(variant: str) -> None:
    """Time cases as lines on the standard input say: a case and a number of steps."""
    import torch

    torch.set_num_threads(1)
    if variant in ("foreach", "fused"):
        make = {"foreach": lambda params: torch.optim.AdamW(params, foreach=True),
                "fused": lambda params: torch.optim.AdamW(params, fused=True)}[variant]  # fmt: skip
    else:
        import fastopt.torch

        make = fastopt.torch.AdamW
    running: dict[str, Iterator[Callable]] = {}
    for line in sys.stdin:
        case, steps = json.loads(line)
        if case not in running:
            running[case] = CASES[case](make)
            for _ in range(10):
                next(running[case])()
        times = []
        for _ in range(steps):
            call = next(running[case])
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        print(json.dumps(1e6 * median(times)), flush=True)


class Worker:
    """A process that times a variant when it is told to."""

    def __init__(self, variant: str, folder: Path, stack: ExitStack) -> None:
        self.process = stack.enter_context(subprocess.Popen(
            [sys.executable, __file__, "--worker", variant], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(folder)},
        ))  # fmt: skip

    def microseconds(self, case: str, steps: int) -> float:
        print(json.dumps([case, steps]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} has ended at {case!r}")
        return json.loads(line)


def row(case: str, times: dict[str, list[float]]) -> list[str]:
    ratios = [median(a / b for a, b in zip(times[name], times["fastopt"], strict=True))
              for name in times if name != "fastopt"]  # fmt: skip
    return [case, *(f"{median(some):.4g}" for some in times.values()), *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", default=[*CASES], help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each variant (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each turn (%(default)s)")
    parser.add_argument("--against", type=Path, help="folder of another build of fastopt")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    folders = dict.fromkeys(VARIANTS, ROOT) | ({"base": arguments.against} if arguments.against else {})
    rows = [["AdamW, us", *folders, *(f"{name} / fastopt" for name in folders if name != "fastopt")]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    with ExitStack() as stack:
        workers = {variant: Worker(variant, folder, stack) for variant, folder in folders.items()}
        for case in arguments.names:
            times: dict[str, list[float]] = {variant: [] for variant in workers}
            for _ in range(arguments.rounds):
                for variant in random.sample([*workers], len(workers)):
                    times[variant].append(workers[variant].microseconds(case, arguments.steps))
            rows.append(row(case, times))
        for worker in workers.values():
            worker.process.stdin.close()
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    main()
