"""Time whole training iterations in PyTorch: with its optimizer, with its fused one, and with fastopt.torch.

    python bench/iterations.py                      # a table; five minutes
    python bench/iterations.py --rounds 5 --only mlp

An iteration is zero_grad, forward pass, backward pass and step, on one thread. The three trainings start from the same
weights, see the same batches, and take turns of some tens of milliseconds, in an order that changes from round to
round; a ratio is the median over the rounds. What counts is the process's CPU time, which with one thread is the time
that an idle machine takes. The optimizer's share is what the step takes of an iteration with PyTorch's default. The
losses of all three have to agree after the first ten iterations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fastopt.torch

try:
    from tqdm import tqdm
except ModuleNotFoundError:  # no progress bar, then

    def tqdm(rounds: Iterable[int], **options: Any) -> Iterable[int]:
        return rounds


TURN = 0.05  # seconds
WARM_UP = 5  # iterations


@dataclass
class Case:
    """A model, and a batch for it with its loss."""

    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = mse_loss


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Bag(nn.Module):
    """Words to classes: a table of vectors whose gradients are dense, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20_000, 64), nn.Linear(64, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(words).mean(dim=1))


class GPT(nn.Module):
    """Four layers of 128, a context of 64 characters."""

    def __init__(self, vocabulary: int = 96, width: int = 128, layers: int = 4, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(x) + self.places.weight
        return self.head(self.blocks(hidden, mask=self.mask, is_causal=True)).flatten(0, 1)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape)


CASES = {
    "mlp": Case(
        "tabular MLP, 20-64-64-1, batches of 32",
        lambda: mlp(20, 64, 64, 1), lambda: (torch.randn(32, 20), torch.randn(32, 1)),
    ),
    "deep": Case(
        "MLP, 30 layers of 32, batches of 32",
        lambda: mlp(*[32] * 31), lambda: (torch.randn(32, 32), torch.randn(32, 32)),
    ),
    "embedding": Case(
        "embedding, 20,000 x 64, dense gradients, batches of 32",
        Bag, lambda: (integers(20_000, 32, 20), integers(4, 32)), cross_entropy,
    ),
    "gpt": Case(
        "small GPT, 4 layers of 128, batches of 12 x 64",
        GPT, lambda: (integers(96, 12, 64), integers(96, 12 * 64)), cross_entropy,
    ),
    "cnn": Case(
        "small CNN, 8 x 8 pixels, batches of 64",
        cnn, lambda: (torch.randn(64, 1, 8, 8), integers(10, 64)), cross_entropy,
    ),
}  # fmt: skip

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "default": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "fastopt": lambda params: fastopt.torch.AdamW(params, lr=1e-3),
}


class Training:
    """One model with one optimizer, some iterations at a time."""

    def __init__(self, case: Case, optimizer: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        torch.manual_seed(0)
        self.model, self.loss_of, self.batches = case.model(), case.loss, batches
        self.opt = OPTIMIZERS[optimizer](self.model.parameters())
        self.taken = 0
        self.in_step = 0.0
        self.loss = torch.zeros(())

    def iterations(self, count: int) -> float:
        """Seconds an iteration."""
        begin = time.process_time()
        for _ in range(count):
            x, y = self.batches[self.taken % len(self.batches)]
            self.opt.zero_grad()
            self.loss = self.loss_of(self.model(x), y)
            self.loss.backward()
            self.opt.step()
            self.taken += 1
        return (time.process_time() - begin) / count

    def share(self, count: int) -> float:
        """The part of an iteration that the step takes."""
        step, spent = self.opt.step, 0.0

        def timed() -> None:
            nonlocal spent
            begin = time.process_time()
            step()
            spent += time.process_time() - begin

        self.opt.step = timed  # type: ignore[method-assign]
        try:
            whole = self.iterations(count) * count
        finally:
            del self.opt.step
        return spent / whole


def measure(case: Case, rounds: Iterable[int]) -> dict[str, Any]:
    """Medians of a case: milliseconds, ratios to fastopt's time, and the share of the step."""
    torch.manual_seed(1)
    batches = [case.batch() for _ in range(8)]
    trainings = {name: Training(case, name, batches) for name in OPTIMIZERS}
    for training in trainings.values():
        training.iterations(WARM_UP)
    slowest = max(training.iterations(WARM_UP) for training in trainings.values())
    losses = [training.loss.item() for training in trainings.values()]
    if not all(abs(loss - losses[0]) <= 1e-4 * abs(losses[0]) for loss in losses):
        raise SystemExit(f"{case.title}: after {2 * WARM_UP} iterations the losses differ: {losses}")
    count = max(1, round(TURN / slowest))
    times: dict[str, list[float]] = {name: [] for name in trainings}
    shares: dict[str, list[float]] = {name: [] for name in trainings}
    for k in rounds:
        for name in [*trainings][k % 3 :] + [*trainings][: k % 3]:
            times[name].append(trainings[name].iterations(count))
            shares[name].append(trainings[name].share(count))
    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times["fastopt"], strict=True))

    return {
        "title": case.title, "milliseconds": {name: 1e3 * statistics.median(t) for name, t in times.items()},
        "share": {name: statistics.median(s) for name, s in shares.items()},
        "against default": ratio("default"), "against fused": ratio("fused"), "iterations": trainings["default"].taken,
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, as README has it."""
    yield "| one iteration | PyTorch, ms | share of the step | fastopt, ms | speed-up | over `fused=True` |"
    yield "|---|---|---|---|---|---|"
    for r in results:
        ms, share = r["milliseconds"], r["share"]
        yield (
            f"| {r['title']} | {ms['default']:.3g} | {share['default']:.0%} | {ms['fastopt']:.3g} | "
            f"{r['against default']:.2f}x | {r['against fused']:.2f}x |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each training (default %(default)s)")
    parser.add_argument("--only", choices=CASES, help="one case alone")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name, case in CASES.items():
        if options.only in (None, name):
            rounds = tqdm(range(options.rounds), desc=name, unit="round", disable=None)  # only on a terminal
            results.append(measure(case, rounds))
    print(*table(results), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
