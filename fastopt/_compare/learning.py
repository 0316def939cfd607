"""Optimizers that learn one data set: the same network, split, weights and shuffles for each, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..training import MinimizeState, minimize
from .data import Dataset, Split, split
from .models import (
    HIDDEN,
    LEARNING_RATES,
    OPTIONS,
    REGRESSION_RATES,
    accuracy,
    cross_entropy,
    initial_weights,
    loss_and_gradients,
    outputs,
    r_squared,
    squared_error,
)
from .race import Runner
from .results import finite

__all__ = ["FACTORS", "Band", "Curves", "Run", "entrants", "race", "total_steps", "tuned"]

Array = npt.NDArray[np.float64]

MEASURED_PER_EPOCH = 5
MEASURED = ("steps", "epochs", "losses", "batch_losses", "test_losses", "scores", "seconds", "step_seconds")
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""What `tuned` tries, times the learning rate that a runner has."""


@dataclass(frozen=True)
class Run:
    """One optimizer with one seed. Arrays have a row for each time that it was measured, the start included."""

    runner: Runner
    seed: int
    steps: Array
    epochs: Array
    losses: Array
    """Mean over all the training samples."""
    batch_losses: Array
    """Mean over the batches since the row before; NaN at the start."""
    test_losses: Array
    """Mean over all the test samples."""
    scores: Array
    """On the test samples: accuracy, or R² for a regression."""
    seconds: Array
    """What training took up to then, without measuring."""
    step_seconds: Array
    """That part of it which the optimizer's steps took."""
    unit: float
    """By which a regression's target was divided."""
    finite: bool
    """False if loss or gradient left the finite numbers, where the run then ended."""

    @property
    def learned(self) -> bool:
        """Whether it came to its end, and lower than it began."""
        return self.finite and bool(self.losses[-1] < self.losses[0])

    @property
    def rmse(self) -> Array:
        """For a regression: the root of the mean squared error of the test samples, in the target's own units."""
        return np.sqrt(self.test_losses) * self.unit

    def reached(self, loss: float) -> int | None:
        """Return the first row whose training loss is at or below `loss`; None if there is none."""
        hit = self.losses <= loss
        return int(np.argmax(hit)) if hit.any() else None


@dataclass(frozen=True)
class Band:
    """A curve over several seeds: its lowest, median and highest value at each epoch."""

    epochs: Array
    low: Array
    middle: Array
    high: Array


@dataclass(frozen=True)
class Curves:
    """All the runs of a race."""

    dataset: Dataset
    runners: tuple[Runner, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    n_train: int
    runs: tuple[Run, ...]
    to_loss: float
    """The training loss that they race to."""
    chosen_loss: bool = False
    """Whether the user said so; else a round one that three quarters of the optimizers reach."""

    def of(self, name: str) -> list[Run]:
        """Return a runner's runs, one for each seed."""
        return [run for run in self.runs if run.runner.name == name]

    def band(self, name: str, quantity: str = "losses") -> Band:
        """Return a quantity of `Run` over the seeds, as far as all of them got."""
        runs = self.of(name)
        end = min(len(run.steps) for run in runs)
        rows = np.array([getattr(run, quantity)[:end] for run in runs])
        return Band(runs[0].epochs[:end], rows.min(axis=0), np.median(rows, axis=0), rows.max(axis=0))

    def arrivals(self, name: str, quantity: str = "steps") -> list[float]:
        """Return for each seed the steps, or ``"seconds"``, to the loss; infinite where it was not reached."""
        rows = [(run, run.reached(self.to_loss)) for run in self.of(name)]
        return [math.inf if row is None else float(getattr(run, quantity)[row]) for run, row in rows]

    def finals(self, name: str, quantity: str = "losses") -> list[float]:
        """Return where a quantity ended, for each seed with which the runner learned."""
        return [float(getattr(run, quantity)[-1]) for run in self.of(name) if run.learned]

    def before(self, first: str, then: str, quantity: str = "steps", least: float = 1.1) -> bool:
        """Return whether the other took longer to the loss with every seed, `least` times as long at least."""
        pairs = zip(self.arrivals(first, quantity), self.arrivals(then, quantity), strict=True)
        return all(a < b and least * a <= b for a, b in pairs)

    def lead(self, first: str, then: str) -> bool | None:
        """Return whether the one is before the other; False if it is the other way round, None if neither is so.

        With a single seed nobody knows how much of a lead is chance: it has to be twofold.
        """
        least = 1.1 if len(self.seeds) > 1 else 2.0
        if self.before(first, then, least=least):
            return True
        return False if self.before(then, first, least=least) else None

    @property
    def learned(self) -> list[str]:
        """The names of the runners that learned with every seed."""
        return [runner.name for runner in self.runners if all(run.learned for run in self.of(runner.name))]

    def as_json(self) -> dict[str, Any]:
        """Return everything but the samples, ready for ``json.dump``: null stands for what is not finite."""
        dataset = self.dataset
        report: dict[str, Any] = finite(
            {
                "data": dataset.name,
                "task": dataset.task,
                "target": dataset.target,
                "classes": dataset.classes,
                "features": dataset.features,
                "scale": dataset.scale,
                "samples": len(dataset.y),
                "training_samples": self.n_train,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "seeds": self.seeds,
                "to_loss": self.to_loss,
                "runs": [
                    {
                        "optimizer": run.runner.optimizer,
                        "name": run.runner.name,
                        "options": dict(run.runner.options),
                        "seed": run.seed,
                        "learned": run.learned,
                        "unit": run.unit,
                        **{name: getattr(run, name).tolist() for name in MEASURED},
                    }
                    for run in self.runs
                ],
            }
        )
        return report


def entrants(dataset: Dataset, names: Iterable[str], lr: float | None = None) -> tuple[Runner, ...]:
    """Return these optimizers with a learning rate each: the one given, or what suits the network and the task."""
    from .. import OPTIMIZERS

    classes: Mapping[str, Any] = OPTIMIZERS
    rates = LEARNING_RATES if dataset.classes else REGRESSION_RATES

    def rate(name: str) -> float:
        return float(lr or rates.get(name) or classes[name](np.zeros(1)).param_groups[0]["lr"])

    return tuple(Runner(name, {"lr": rate(name), **OPTIONS.get(name, {})}) for name in names)


def total_steps(
    dataset: Dataset,
    runners: Sequence[Runner],
    *,
    epochs: int = 15,
    batch_size: int = 32,
    seeds: Sequence[int] = (0, 1, 2),
) -> int:
    """Return how many steps `race` will make, for a progress bar."""
    n_train = len(split(dataset, 0).train[1])
    return len(seeds) * sum(epochs * (n_train // _batch_size(n_train, runner, batch_size)) for runner in runners)


def race(
    dataset: Dataset,
    runners: Sequence[Runner],
    *,
    epochs: int = 15,
    batch_size: int = 32,
    seeds: Sequence[int] = (0, 1, 2),
    to_loss: float | None = None,
    on_step: Callable[[str, int], Any] | None = None,
) -> Curves:
    """Let each optimizer learn the data set with each seed.

    Parameters
    ----------
    dataset : Dataset
        From `data.load`.
    runners : sequence of Runner
        The optimizers; `entrants` makes them. A runner's own `batch_size` goes before that of the race.
    epochs, batch_size : int
        Passes through the training samples, and samples in a step.
    seeds : sequence of int
        Each decides on split, weights and shuffles, for all optimizers alike.
    to_loss : float, optional
        The training loss that they race to; by default the lowest round one that three quarters of the optimizers
        reach with every seed.
    on_step : callable, optional
        Told the runner's name and how many steps it has made since, after each; a run that diverges tells the
        steps that it will not make, so that they always add up to `total_steps`.
    """
    runs = []
    for seed in seeds:
        parts = split(dataset, seed)
        for runner in runners:
            with np.errstate(all="ignore"):  # a learning rate that is too large shows in the table
                runs.append(
                    _learn(dataset, parts, runner, seed, epochs, batch_size, on_step or (lambda name, steps: None))
                )
    goal = _common_loss(runs) if to_loss is None else to_loss
    n_train = len(parts.train[1])
    return Curves(
        dataset, tuple(runners), tuple(seeds), epochs, batch_size, n_train, tuple(runs), goal, to_loss is not None
    )


def tuned(
    dataset: Dataset,
    runners: Sequence[Runner],
    *,
    epochs: int = 15,
    batch_size: int = 32,
    seed: int,
    to_loss: float,
    on_step: Callable[[str, int], Any] | None = None,
) -> tuple[tuple[Runner, ...], tuple[Runner, ...]]:
    """Return the runners twice, each with the best rate among its own times `FACTORS`.

    First by the test loss, the lowest of which counts; then by the steps to the training loss `to_loss`, and among
    equals by the lowest training loss: what is best for the one is often too small, or too large, for the other.

    `seed` should be one that is not raced with. It takes ``len(FACTORS)`` times as many steps as a race with one seed.
    """
    by_test: list[Runner] = []
    by_steps: list[Runner] = []
    for runner in runners:
        rates = [float(f"{factor * runner.options['lr']:.3g}") for factor in FACTORS]
        tried = [replace(runner, options={**runner.options, "lr": rate}, label=f"{rate:g}") for rate in rates]
        curves = race(dataset, tried, epochs=epochs, batch_size=batch_size, seeds=(seed,), on_step=on_step)
        for best, badness in ((by_test, _test_loss), (by_steps, partial(_slowness, to_loss=to_loss))):
            good = min(curves.runs, key=badness)
            best.append(replace(good.runner, label=runner.label))
    return tuple(by_test), tuple(by_steps)


def _test_loss(run: Run) -> float:
    return float(run.test_losses.min()) if run.learned else math.inf


def _slowness(run: Run, to_loss: float) -> tuple[float, float]:
    """Return the steps to a training loss, infinite if it is not reached, and the lowest training loss."""
    if not run.learned:
        return math.inf, math.inf
    row = run.reached(to_loss)
    return math.inf if row is None else float(run.steps[row]), float(run.losses.min())


def _batch_size(n_train: int, runner: Runner, batch_size: int) -> int:
    return min(runner.batch_size or batch_size, n_train)


class _Timed:
    """An optimizer whose steps are timed."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.seconds = 0.0
        if hasattr(optimizer, "lookahead"):
            self.lookahead = optimizer.lookahead

    def step(self, grads: Any) -> None:
        start = perf_counter()
        self.optimizer.step(grads)
        self.seconds += perf_counter() - start


class _Record:
    """What is measured in the course of a run, and when."""

    def __init__(self, dataset: Dataset, parts: Split, params: Any, optimizer: _Timed, per_epoch: int) -> None:
        self.parts, self.params, self.optimizer, self.per_epoch = parts, params, optimizer, per_epoch
        self.loss, self.score = (cross_entropy, accuracy) if dataset.classes else (squared_error, r_squared)
        self.rows: list[tuple[float, ...]] = []
        self.batches: list[float] = []  # their losses, since the row before
        self.seconds = 0.0
        self.measure(0)
        self.resume()

    def measure(self, step: int) -> None:
        train, test = (self.loss(outputs(self.params, x)[1], y)[0] for x, y in (self.parts.train, self.parts.test))
        batch = float(np.mean(self.batches)) if self.batches else math.nan
        score = self.score(self.params, self.parts.test)
        at = step / self.per_epoch
        self.rows.append((step, at, train, batch, test, score, self.seconds, self.optimizer.seconds))
        self.batches.clear()

    def note(self, state: MinimizeState, last: int) -> None:
        self.seconds += perf_counter() - self.started
        self.batches.append(state.loss)
        if state.step % math.ceil(self.per_epoch / MEASURED_PER_EPOCH) == 0 or state.step == last:
            self.measure(state.step)

    def resume(self) -> None:
        self.started = perf_counter()  # what measuring and reporting took does not count

    def run(self, runner: Runner, seed: int, complete: bool) -> Run:
        table = np.array(self.rows)
        good = np.isfinite(table[:, 2])  # the training loss
        end = len(good) if good.all() else int(np.argmin(good))
        columns: dict[str, Any] = dict(zip(MEASURED, table[:end].T, strict=True))
        return Run(runner=runner, seed=seed, unit=self.parts.unit, finite=complete and end == len(good), **columns)


def _learn(
    dataset: Dataset,
    parts: Split,
    runner: Runner,
    seed: int,
    epochs: int,
    batch_size: int,
    on_step: Callable[[str, int], Any],
) -> Run:
    from .. import OPTIMIZERS

    rng = np.random.default_rng(seed)
    params = initial_weights((len(dataset.features), HIDDEN, len(dataset.classes) or 1), rng, "float64")
    optimizer = _Timed(OPTIMIZERS[runner.optimizer](params, **runner.options))
    if not dataset.classes:
        params[2][:] = 0  # begins with guessing the mean, a loss of 1, whatever the seed
    n_train = len(parts.train[1])
    size = _batch_size(n_train, runner, batch_size)
    per_epoch = n_train // size
    last = epochs * per_epoch
    record = _Record(dataset, parts, params, optimizer, per_epoch)

    def note(state: MinimizeState) -> None:
        record.note(state, last)
        on_step(runner.name, 1)
        record.resume()

    result = minimize(
        partial(loss_and_gradients, loss=record.loss),
        params,
        optimizer,
        data=parts.train,
        batch_size=size,
        drop_last=True,  # a batch of one or two samples would throw the plain methods off at the end of each epoch
        max_steps=last,
        callback=note,
        rng=rng,
    )
    if result.steps < last:
        on_step(runner.name, last - result.steps)
    return record.run(runner, seed, complete=result.reason != "nonfinite")


def _common_loss(runs: Sequence[Run]) -> float:
    """Return the lowest loss of two digits that three quarters of the optimizers which learn reach with every seed."""
    lowest: dict[str, float] = {}
    for run in runs:
        reached = float(run.losses.min()) if run.learned else math.inf
        lowest[run.runner.name] = max(lowest.get(run.runner.name, 0.0), reached)
    good = sorted(value for value in lowest.values() if value < math.inf)
    return _rounded_up(good[math.ceil(0.75 * len(good)) - 1]) if good else math.nan


def _rounded_up(value: float) -> float:
    """Return the next number of two digits that is not below a value."""
    if value <= 0:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.3g}")
