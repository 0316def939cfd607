"""What changed between two runs of the benchmarks: fastopt against itself, the drift of the machine taken out.

The machine is not the same in both runs, so in each case fastopt's change is divided by that of the roofline and the
other libraries. What is left is called slower or faster when it lies beyond the noise and beyond 3 %, and unclear when
it does but the others disagree about the drift.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import NamedTuple

OURS = ("fastopt", "fastopt.torch", "fastopt, one thread", "fastopt, loose", "fastopt, plain", "NumPy reference")
ROOFLINES = ("roofline", "roofline, one thread")
LEAST = 0.03  # a smaller change is not reported, however quiet the machine was
DOUBT = 0.1  # where the other lines disagree by more about the drift, it is not known


class UnusableError(Exception):
    """Input from which nothing can be said."""


def notch(middle: float, low: float, high: float, n: int) -> float:
    """How far a median of n numbers may be off, from their quartiles, as a fraction of it: half a box plot's notch."""
    return 1.57 * (high - low) / math.sqrt(n) / middle


class Spread(NamedTuple):
    """Seconds of one step: the quartiles over so many rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def noise(self) -> float:
        return notch(self.median, self.low, self.high, self.rounds)


@dataclass(frozen=True)
class Case:
    """One benchmark: the same step, and how long each took for it."""

    suite: str
    optimizer: str
    shape: str
    dtype: str
    threads: int
    gradients: str
    arrays: int
    elements: int
    bytes: int
    seconds: dict[str, Spread]

    @property
    def key(self) -> tuple:
        return self.suite, self.optimizer, self.shape, self.dtype, self.threads, self.gradients

    def __str__(self):
        return (f"{self.suite}: {self.optimizer} {self.shape} {self.dtype}, "
                f"{count(self.threads, 'thread')}, {self.gradients} gradients")  # fmt: skip

    @property
    def libraries(self) -> list[str]:
        """The true libraries but fastopt: neither the roofline nor the specification is one."""
        return [name for name in self.seconds if name not in OURS + ROOFLINES]

    def ratio(self, name: str, to: str = "fastopt") -> float:
        return self.seconds[name].median / self.seconds[to].median


def count(n: int, noun: str) -> str:
    return f"one {noun}" if n == 1 else f"{n:,} {noun}s"


def read_case(info: dict) -> Case:
    facts = {field.name: info[field.name] for field in fields(Case)}
    seconds = {name: Spread(*(s[part] for part in Spread._fields)) for name, s in facts.pop("seconds").items()}
    if not all(s.median > 0 for s in seconds.values()) or "fastopt" not in seconds:
        raise ValueError(f"no times of fastopt's, or some that are not positive: {seconds}")
    return Case(**facts, seconds=seconds)


def load(paths: list[Path]) -> tuple[dict[tuple, Case], list[dict]]:
    """The cases of all files by their key, and what else each file says, the rows of bench_clients.py among it."""
    cases: dict[tuple, Case] = {}
    runs = []
    for path in paths:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            every = [benchmark["extra_info"] for benchmark in run.pop("benchmarks")]
            found = [read_case(info) for info in every if "clients" not in info]
            run["clients"] = [row for info in every for row in info.get("clients", ())]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnusableError(f"{path}: {type(error).__name__}: {error}") from error
        if not every:
            raise UnusableError(f"{path}: no benchmarks")
        for case in found:
            if case.key in cases:
                raise UnusableError(f"{path}: this case was there before: {case}")
            cases[case.key] = case
        runs.append(run)
    return cases, runs


class Change(NamedTuple):
    """What became of one case: `factor` is fastopt's new time over the old, the drift taken out.

    `noise` is how far it may be off, and `doubt` the part of it that comes from the disagreement about the drift.
    """

    old: Case
    new: Case
    drift: float
    factor: float
    noise: float
    doubt: float

    @property
    def verdict(self) -> str:
        limit = 1 + max(self.noise, LEAST)
        if 1 / limit <= self.factor <= limit:
            return "same"
        if self.doubt > DOUBT:
            return "unclear"
        return "slower" if self.factor > 1 else "faster"


def change(old: Case, new: Case) -> Change | None:
    """fastopt's change in a case; None if no other line tells the drift."""

    def ratio(name):
        return new.seconds[name].median / old.seconds[name].median

    def noise(name):
        return math.hypot(old.seconds[name].noise, new.seconds[name].noise)

    others = [name for name in (*old.libraries, *ROOFLINES) if name in old.seconds and name in new.seconds]
    if not others:
        return None
    ratios = [ratio(name) for name in others]
    drift = median(ratios)
    # The lines disagree where some of them run threads and some do not, and other work has come to the cores.
    doubt = disagreement(ratios)
    total = math.hypot(noise("fastopt"), median(noise(name) for name in others), doubt)
    return Change(old, new, drift, ratio("fastopt") / drift, total, doubt)


def disagreement(ratios: list[float]) -> float:
    """The notch of the lines' ratios, from their median deviation, which one line that stands apart does not change."""
    middle = median(ratios)
    off = median(abs(ratio - middle) for ratio in ratios)
    return notch(middle, middle - off, middle + off, len(ratios))


def differences(old: list[dict], new: list[dict]) -> list[str]:
    """What else changed between the runs than fastopt: then a drift is not the machine's alone."""
    before, after = (runs[0].get("machine_info", {}).get("fastopt", {}) for runs in (old, new))
    pairs = {key: (before.get(key), after.get(key)) for key in before.keys() | after.keys() if key != "versions"}
    versions = [machine.get("versions", {}) for machine in (before, after)]
    pairs |= {key: tuple(found.get(key) for found in versions) for key in versions[0] if key != "fastopt"}
    return [f"{key}: {a} -> {b}" for key, (a, b) in sorted(pairs.items()) if a != b]


def table(changes: list[Change]) -> str:
    rows = [("", "old µs", "new µs", "drift", "change", "noise", "case")]
    for c in changes:
        rows.append((
            c.verdict, *(f"{1e6 * case.seconds['fastopt'].median:,.2f}" for case in (c.old, c.new)),
            f"{c.drift - 1:+.1%}", f"{c.factor - 1:+.1%}", f"{c.noise:.1%}", str(c.new),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "\n".join("  ".join([*map(str.rjust, row, widths), row[-1]]) for row in rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit code: 0 nothing became slower, 1 something did, 2 unusable input",
    )  # fmt: skip
    parser.add_argument("old", nargs="+", type=Path, metavar="OLD", help="files of --benchmark-json, one run's")
    parser.add_argument("--new", nargs="+", type=Path, required=True, help="those of the run to compare with it")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        (old, old_runs), (new, new_runs) = load(arguments.old), load(arguments.new)
        both = [key for key in old if key in new]
        changes = [found for key in both if (found := change(old[key], new[key]))]
        if not changes:
            raise UnusableError("no case is in both runs with another line to tell the drift")
    except UnusableError as error:
        print(error, file=sys.stderr)
        return 2
    for line in differences(old_runs, new_runs):
        print(f"not the same in both runs, {line}", file=sys.stderr)
    verdicts = Counter(c.verdict for c in changes)
    changed = sorted((c for c in changes if c.verdict != "same"), key=lambda c: -c.factor)
    if changed:
        print(table(changed))
    print(f"{count(len(both), 'case')}: {verdicts['slower']} slower, {verdicts['faster']} faster, "
          f"{verdicts['unclear']} unclear, {verdicts['same']} the same; {len(both) - len(changes)} with no other line "
          f"to tell the drift, {len(old.keys() ^ new.keys())} in one run only")  # fmt: skip
    return int(verdicts["slower"] > 0)


if __name__ == "__main__":
    sys.exit(main())
