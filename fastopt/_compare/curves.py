"""What a race on real data comes to: the table, what the lecture notes claim of it, the curves as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from .findings import listed
from .learning import FACTORS, HIDDEN, MEASURED_PER_EPOCH, Curves
from .race import Finding
from .report import Table
from .results import whole_file

__all__ = ["findings", "headline", "leaders", "story", "table", "write_csv"]

WHOLE = "{:,.0f}".format


def story(curves: Curves) -> str:
    """Return what was learned, with what, and how to read the figures."""
    dataset, seeds = curves.dataset, len(curves.seeds)
    n_features, n_out = len(dataset.features), len(dataset.classes) or 1
    scaled = {"standard": "to mean 0 and standard deviation 1", "minmax": "to the range from 0 to 1"}[dataset.scale]
    if dataset.classes:
        loss = "The loss is the mean cross-entropy."
    else:
        loss = (
            "The loss is the mean squared error, in standard deviations of the training part, so that 1 is the loss of "
            "always guessing the mean."
        )
    repeated = (
        f"Figures are medians over {seeds} seeds, with the lowest and the highest in parentheses; a seed decides on "
        "split, weights and shuffles, for all optimizers alike."
        if seeds > 1
        else "Split, weights and shuffles are the same for all optimizers; with one seed, differences may be chance."
    )
    return (
        f"{dataset.description[0].upper()}{dataset.description[1:]}. {loss} "
        f"{curves.n_train:,} samples to train with, {len(dataset.y) - curves.n_train:,} to test with; "
        f"features are normalized {scaled} by what the training part is like. "
        f"Network {n_features}-{HIDDEN}-{n_out} with ReLU, float64; batches of {curves.batch_size}, "
        f"{curves.epochs} epoch{'s' * (curves.epochs > 1)}, measured {MEASURED_PER_EPOCH} times in each. {repeated} "
        "Who is ahead depends on the learning rates, which the table shows. Times, to a loss and of a step of the "
        "optimizer alone, are those of this machine, with whatever else it did."
    )


# --- the table


def table(curves: Curves) -> Table:
    """Return what each optimizer came to, a line each."""
    scores = ("test accuracy",) if curves.dataset.classes else ("test R²", "test RMSE")
    heads = (
        "optimizer",
        "settings",
        "training loss",
        *scores,
        f"steps to {_goal(curves)}",
        f"ms to {_goal(curves)}",
        "µs a step",
    )
    return Table(heads, tuple(_row(curves, runner) for runner in curves.runners))


def _row(curves: Curves, runner: Any) -> tuple[str, ...]:
    name, runs = runner.name, curves.of(runner.name)
    failed = sum(not run.learned for run in runs)
    losses = [spread(curves.finals(name), two_digits)] * (failed < len(runs))
    losses += [f"diverged ({failed} of {len(runs)})" if failed < len(runs) else "diverged"] * (failed > 0)
    if curves.dataset.classes:
        scores = [spread([100 * value for value in curves.finals(name, "scores")], "{:.1f}".format, " %")]
    else:
        scores = [spread(curves.finals(name, "scores"), "{:.2f}".format), spread(curves.finals(name, "rmse"), number)]
    settings = f"{runner.settings}, batch {runner.batch_size}" if runner.batch_size else runner.settings
    milliseconds = 1000 * median(curves.arrivals(name, "seconds"))
    # The median: other work on the machine interrupts some of the steps.
    a_step = [1e6 * np.median(np.diff(run.step_seconds) / np.diff(run.steps)) for run in runs if len(run.steps) > 1]
    timed = [
        spread(curves.arrivals(name), WHOLE),
        number(milliseconds) if milliseconds < math.inf else "never",
        two_digits(median(a_step)) if a_step else "–",
    ]
    return (name, settings, "; ".join(losses), *scores, *timed)


def spread(values: Sequence[float], form: Callable[[float], str], unit: str = "") -> str:
    """Return the median, with the lowest and the highest value in parentheses where they differ."""
    if not values:
        return "–"
    low, middle, high = (
        "never" if value == math.inf else form(value) for value in (min(values), median(values), max(values))
    )
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low}–{high})"


def two_digits(value: float) -> str:
    """Return a value with two digits."""
    return f"{value:#.2g}".rstrip(".")


def number(value: float) -> str:
    """Return a value with three digits, and commas rather than an exponent where it is large."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _goal(curves: Curves) -> str:
    """Return the loss that they race to; where nobody learned, there is none."""
    return "the loss" if math.isnan(curves.to_loss) else f"{curves.to_loss:g}"


# --- who is first


@dataclass(frozen=True)
class Lead:
    """Who came first to the loss, and whether the seeds agree on it."""

    order: tuple[str, ...]
    """Those who came there with most of the seeds, by their median."""
    level: tuple[str, ...]
    """Those of them whom the first did not beat clearly: with every seed, and by a tenth."""
    medians: dict[str, float]


def leaders(curves: Curves, quantity: str = "steps") -> Lead | None:
    """Return who came first, by steps or by ``"seconds"``; None if nobody came."""
    medians = {runner.name: median(curves.arrivals(runner.name, quantity)) for runner in curves.runners}
    order = sorted((name for name in medians if medians[name] < math.inf), key=medians.__getitem__)
    if not order:
        return None
    first = order[0]
    level = [name for name in order[1:] if not curves.before(first, name, quantity)]
    return Lead(tuple(order), tuple(level), medians)


def headline(curves: Curves, quantity: str = "steps") -> str:
    """Return who is the first to the loss, in a sentence; honest where the seeds do not agree."""
    if not any(run.learned for run in curves.runs):
        return f"No optimizer learns {curves.dataset.name} with these settings"
    lead = leaders(curves, quantity)
    goal = f"a training loss of {curves.to_loss:g}"
    some = [runner.name for runner in curves.runners if min(curves.arrivals(runner.name, quantity)) < math.inf]
    if lead is None:
        often = "with most seeds" if some else f"in {curves.epochs} epoch{'s' * (curves.epochs > 1)}"
        return f"None of the optimizers gets to {goal} {often}"

    def after(name: str) -> str:
        value = lead.medians[name]
        return f"{WHOLE(value)} steps" if quantity == "steps" else f"{number(1000 * value)} ms"

    first, *rest = lead.order
    if not rest:
        alone = "" if len(curves.runners) == 1 else " alone"
        often = "" if some == [first] else " with most seeds"
        return f"{first}{alone} gets to {goal}{often}, after {after(first)}"
    if lead.level:
        fastest, slowest = after(first), after(max(lead.level, key=lead.medians.__getitem__))
        between = fastest if fastest == slowest else f"{fastest.split()[0]} to {slowest}"
        if len(lead.level) > 2:
            return f"No clear winner: {len(lead.level) + 1} of {len(curves.runners)} get to {goal} first, in {between}"
        if all(lead.medians[name] <= 1.1 * lead.medians[first] for name in lead.level):
            return f"{listed([first, *lead.level])} get to {goal} about equally fast, in {between}"
        are = "is" if len(lead.level) == 1 else "are"
        return f"{first} is the first to {goal}, after {fastest}; with some seeds {listed(lead.level)} {are} as fast"
    seeds = " with every seed" if len(curves.seeds) > 1 else ""
    longer = f"; {rest[0]} needs {after(rest[0])}"
    return f"{first} is the first to {goal}{seeds}, after {after(first)}{longer}"


# --- what the lecture notes claim


CLAIMS = (
    ("Momentum converges faster than SGD", "notes 004, Momentum; 001, 8-1", "Momentum", "SGD"),
    ("NAG converges faster than Momentum", "notes 004, NAG", "NAG", "Momentum"),
    ("RMSprop is more effective than Adagrad", "notes 004, RMSprop", "RMSprop", "Adagrad"),
)
GENERALIZING = ("Adam", "SGD")
"""Those of whom something is claimed on the test samples."""
ADAPTIVE, PLAIN = ("Adagrad", "Adadelta", "RMSprop", "Adam"), ("SGD", "Momentum", "NAG")

Measured = tuple[bool | None, str]


def findings(curves: Curves, tuned: Curves | None = None, tuned_by_test: Curves | None = None) -> list[Finding]:
    """Return what the lecture notes claim of training, as far as the optimizers took part that it is about.

    A claim is about optimizers, but a race is between learning rates, too. `tuned` is the same race with each optimizer
    at the fastest rate of a few, and `tuned_by_test` one with Adam and SGD at those with the lowest test loss: what is
    claimed of speed rests on the first, what is claimed of the test samples on the second. A claim holds, or does not,
    where both races say so; else it cannot be told.
    """
    speed = [race for race in (curves, tuned) if race is not None]
    quality = [race for race in (curves, tuned_by_test) if race is not None]
    present, tested = (set.intersection(*map(_learners, races)) for races in (speed, quality))

    def judged(
        claim: str,
        source: str,
        measure: Callable[[Curves], Measured],
        races: Sequence[Curves] = speed,
        rate: str = f"its fastest rate of {len(FACTORS)}",
    ) -> Finding:
        verdicts, texts = zip(*map(measure, races), strict=True)
        holds = verdicts[0] if len(set(verdicts)) == 1 else None
        measured = f"; each at {rate}: ".join(texts)
        decides = "; the learning rate decides" if set(verdicts) == {True, False} else ""
        return Finding(claim, source, holds, measured + decides)

    found = [
        judged(claim, source, partial(_faster, first=first, then=then))
        for claim, source, first, then in CLAIMS
        if {first, then} <= present
    ]
    adaptive, others = ([name for name in names if name in present] for names in (ADAPTIVE, PLAIN))
    if adaptive and others:
        claim = "It is better to use an adaptive learning rate (Adagrad, Adadelta, RMSprop, Adam)"
        measure = partial(_fastest_of_each_kind, kinds=(adaptive, others))
        found.append(judged(claim, "notes 003, which optimizer to use", measure))
    if set(GENERALIZING) <= tested:
        claim = "Adam generalizes worse than plain SGD, as it may on some problems"
        rate = f"the rate of {len(FACTORS)} with the lowest test loss"
        found.append(judged(claim, "notes 004, Adam", _generalization, quality, rate))
    return found


def _learners(curves: Curves) -> set[str]:
    return {runner.name for runner in curves.runners if any(run.learned for run in curves.of(runner.name))}


def anything_claimed(names: Iterable[str]) -> bool:
    """Return whether `findings` has anything to say of these optimizers."""
    present = set(names)
    pairs = [{first, then} for _, _, first, then in CLAIMS]
    return any(pair <= present for pair in pairs) or bool(present & set(ADAPTIVE) and present & set(PLAIN))


def _faster(curves: Curves, first: str, then: str) -> Measured:
    return curves.lead(first, then), _steps_of(curves, (first, then))


def _fastest_of_each_kind(curves: Curves, kinds: Sequence[Sequence[str]]) -> Measured:
    first, then = (min(names, key=lambda name: median(curves.arrivals(name))) for names in kinds)
    return curves.lead(first, then), "the fastest of each kind: " + _steps_of(curves, (first, then))


def _steps_of(curves: Curves, names: Sequence[str]) -> str:
    rates = {runner.name: runner.settings for runner in curves.runners}
    said = [f"{name} {spread(curves.arrivals(name), WHOLE)} ({rates[name]})" for name in names]
    return f"steps to loss {_goal(curves)}: {', '.join(said)}"


def _generalization(curves: Curves) -> Measured:
    what, factor, form, unit = (
        ("test accuracy", 100, "{:.1f}".format, " %") if curves.dataset.classes else ("test R²", 1, "{:.2f}".format, "")
    )
    scores = {name: [factor * run.scores[-1] for run in curves.of(name)] for name in GENERALIZING}
    measured = f"{what} at the end: " + ", ".join(f"{name} {spread(v, form, unit)}" for name, v in scores.items())
    return _clearly_positive(np.subtract(scores["SGD"], scores["Adam"])), measured


def _clearly_positive(leads: npt.NDArray[np.float64]) -> bool | None:
    """Return whether leads, one for each seed, are above zero by more than their noise; False if below it.

    With every seed of the same sign, and on average two standard errors away from zero. One seed cannot tell.
    """
    if len(leads) < 2 or not np.isfinite(leads).all() or len(set(np.sign(leads))) > 1 or not leads[0]:
        return None
    far = abs(leads.mean()) > 2 * leads.std(ddof=1) / math.sqrt(len(leads))
    return bool(leads[0] > 0) if far else None


# --- the curves as CSV


def write_csv(curves: Curves, file: Path) -> Path:
    """Write a row for each time that a run was measured; what is not a number stays empty."""
    columns: dict[str, Callable[[Any], Any]] = {
        "step": lambda run: run.steps.astype(int),
        "epoch": lambda run: run.epochs,
        "training_loss": lambda run: run.losses,
        "batch_loss": lambda run: run.batch_losses,
        "test_loss": lambda run: run.test_losses,
        "test_accuracy" if curves.dataset.classes else "test_r2": lambda run: run.scores,
        **({} if curves.dataset.classes else {"test_rmse": lambda run: run.rmse}),
        "seconds": lambda run: run.seconds,
        "seconds_in_steps": lambda run: run.step_seconds,
    }
    with whole_file(file) as whole, open(whole, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["optimizer", "seed", *columns])
        for run in curves.runs:
            values = [column(run).tolist() for column in columns.values()]
            for row in zip(*values, strict=True):
                writer.writerow([run.runner.name, run.seed, *("" if value != value else value for value in row)])
    return file
