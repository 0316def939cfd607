"""How long the small trainings of tests/frameworks take: PyTorch's default step, its fused one, fastopt's.

    python bench/framework_times.py [--rounds 9] [--steps 320] [TRAINING ...]

Needs the extra `frameworks`. Each variant has a process of its own with one thread. The processes take turns, in
another order each round, so that a noisy machine is noisy for all alike. Their first training is not counted. Prints a
table in Markdown: medians of the processor time of whole trainings, divided by their steps, and of the ratios of each
round.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from frameworks import trainings  # noqa: E402

VARIANTS = ("stock", "fused", "fastopt")
# One for each framework. Trainer's own default is fused already: it is compared with "adamw_torch" here.
NAMES = {one.section: name for name, one in trainings.TRAININGS.items() if name == one.stock and "bf16" not in name}
NAMES["Transformers"] = "transformers class"


class Worker:
    """A process that trains when it is told to."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.process = stack.enter_context(subprocess.Popen(
            [sys.executable, trainings.__file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        ))  # fmt: skip

    def seconds(self, variant: str, steps: int) -> float:
        print(variant, steps, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)}: {variant} has ended; run it alone to see why")
        return json.loads(line)["seconds"]


def measured(name: str, rounds: int, steps: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with ExitStack() as stack:
        workers = {variant: Worker(name, stack) for variant in VARIANTS}
        for variant, worker in workers.items():
            worker.seconds(variant, steps)
        for _ in range(rounds):
            for variant in random.sample(VARIANTS, len(VARIANTS)):
                seconds[variant].append(workers[variant].seconds(variant, steps))
        for worker in workers.values():
            worker.process.stdin.close()
    return seconds


def row(name: str, seconds: dict[str, list[float]], steps: int) -> list[str]:
    times = [f"{1e3 * median(seconds[variant]) / steps:.2f}" for variant in VARIANTS]
    ratios = [median(a / b for a, b in zip(seconds[variant], seconds["fastopt"], strict=True))
              for variant in VARIANTS[:2]]  # fmt: skip
    return [name, *times, *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TRAINING", default=[*NAMES.values()],
                        help=f"one of {', '.join(trainings.TRAININGS)}; default: one for each framework")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9, help="trainings of each variant (%(default)s)")
    parser.add_argument("--steps", type=int, default=320, help="steps of each training (%(default)s)")
    arguments = parser.parse_args()
    rows = [["", "default, ms a step", "fused", "fastopt", "default / fastopt", "fused / fastopt"]]
    rows.append(["---", *["---:"] * 5])
    sections = {name: section for section, name in NAMES.items()}
    for name in tqdm(arguments.names):
        seconds = measured(name, arguments.rounds, arguments.steps)
        rows.append(row(sections.get(name, name), seconds, arguments.steps))
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    main()
