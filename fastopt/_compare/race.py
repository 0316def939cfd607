"""Optimizers run from one starting point with the compiled kernels, and leave their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..training import MinimizeState, minimize
from .surfaces import Surface

__all__ = ["Finding", "Path", "Race", "Runner", "Scene", "line_up", "run", "run_scene"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Runner:
    """An optimizer with its options."""

    optimizer: str
    """Its name in ``fastopt.OPTIMIZERS``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    """What tells it apart where one optimizer runs several times; else the optimizer's name."""
    batch_size: int | None = None
    """For scenes with samples: None takes all of them at every step."""
    shuffle: Any = "epoch"
    """How mini-batches are put together, as `minimize` takes it."""
    replacement: bool = False

    @property
    def name(self) -> str:
        """What it is called in legends and tables."""
        return self.label or self.optimizer

    @property
    def settings(self) -> str:
        """Its options, as the table shows them."""
        return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in self.options.items())  # fmt: skip


@dataclass(frozen=True)
class Path:
    """Where a runner went. Row 0 is the start; a path that left the finite numbers ends before that."""

    runner: Runner
    points: Array
    """(steps + 1, dimensions)."""
    losses: Array
    """(steps + 1,): the surface's value at each point."""
    gradients: Array
    """(steps, dimensions): what the optimizer was given: for NAG at its lookahead, with samples of a batch."""
    rates: Array
    """(steps, dimensions): the effective learning rate, what stands before the gradient (Adam: before the corrected
    average of gradients); NaN where that cannot be said."""
    samples: Array
    """(steps + 1,): samples seen so far; 0 without samples."""
    finite: bool
    """False if it ended because loss or gradient were no longer finite."""

    @property
    def name(self) -> str:
        """The runner's name."""
        return self.runner.name

    def first(self, hit: npt.NDArray[np.bool_]) -> int | None:
        """Return the first step for which `hit`, a row for each point, is true; None if there is none."""
        return int(np.argmax(hit)) if hit.any() else None


@dataclass(frozen=True)
class Finding:
    """A claim of the lecture notes, and whether the computed paths bear it out."""

    claim: str
    source: str
    """Where the notes say so."""
    holds: bool | None
    """None: cannot tell. The lead is within noise, or nothing happened from which to tell."""
    measured: str
    """What was measured, with the figures: the evidence for or against."""


@dataclass(frozen=True)
class Scene:
    """Who runs where, and what is to be seen."""

    name: str
    title: str
    story: str
    surface: Surface
    start: tuple[float, ...]
    steps: int
    runners: tuple[Runner, ...]
    findings: Callable[[Race], list[Finding]]
    headline: Callable[[Race], str]
    """The title of the picture: the finding in a sentence, from the computed paths."""
    panels: bool = False
    """One panel for each runner, beside the one with all."""
    animated: bool = False
    samples: tuple[Array, Array] | None = None
    """The surface is then the loss over all of them, and `batch_gradient` that over some."""
    batch_gradient: Callable[[Array, tuple[Array, Array]], Array] | None = None
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that suit optimizers which are none of the runners, where those of the portraits do not."""


@dataclass(frozen=True)
class Race:
    """A scene that has been run."""

    scene: Scene
    paths: dict[str, Path]
    """By the runner's name."""
    seed: int = 0

    @property
    def moved(self) -> Race:
        """The race without those whose first step already left the finite numbers."""
        return replace(self, paths={name: path for name, path in self.paths.items() if len(path.points) > 1})

    @property
    def headline(self) -> str:
        """The finding in a sentence."""
        moved = self.moved
        return self.scene.headline(moved) if moved.paths else "Every first step leaves the finite numbers"

    @property
    def found(self) -> list[Finding]:
        """What the notes claim of those who took part."""
        return self.scene.findings(self.moved)

    def of(self, *names: str) -> list[Path]:
        """Return the paths of these runners that took part."""
        return [self.paths[name] for name in names if name in self.paths]


def run_scene(scene: Scene, seed: int = 0, done: Callable[[int], Any] | None = None) -> Race:
    """Run every runner of a scene; `done` is told the number of steps after each."""
    paths = {}
    for runner in scene.runners:
        paths[runner.name] = run(scene, runner, seed)
        if done is not None:
            done(scene.steps)
    return Race(scene, paths, seed)


def run(scene: Scene, runner: Runner, seed: int = 0) -> Path:
    """Run one optimizer from the start of a scene."""
    from .. import OPTIMIZERS

    point = np.array(scene.start, np.float64)
    optimizer = OPTIMIZERS[runner.optimizer](point, **runner.options)
    points, gradients, rates, seen = [point.copy()], [], [], [0]

    def evaluate(at: Array, batch: Any) -> tuple[float, Array]:
        if batch is None or scene.batch_gradient is None:
            return scene.surface.at(at), scene.surface.gradient(at)
        return scene.surface.at(at), scene.batch_gradient(at, batch)

    def note(state: MinimizeState) -> None:
        points.append(point.copy())
        gradients.append(np.array(state.grads))
        rates.append(effective_rate(optimizer, state.grads, points[-2] - points[-1]))
        in_batch = 0 if scene.samples is None else runner.batch_size or len(scene.samples[0])
        seen.append(seen[-1] + in_batch)

    with np.errstate(all="ignore"):  # a rate that is too large shows in the picture
        result = minimize(
            evaluate,
            point,
            optimizer,
            data=scene.samples,
            batch_size=runner.batch_size,
            shuffle=runner.shuffle,
            replacement=runner.replacement,
            max_steps=scene.steps,
            callback=note,
            rng=seed,
        )
        where = np.array(points)
        losses = np.array([scene.surface.at(at) for at in points])
    good = np.isfinite(losses) & np.isfinite(where).all(axis=1)
    end = len(good) if good.all() else int(np.argmin(good))
    shape = (max(end - 1, 0), scene.surface.dimensions)
    return Path(
        runner,
        where[:end],
        losses[:end],
        np.array(gradients[: end - 1]).reshape(shape),
        np.array(rates[: end - 1]).reshape(shape),
        np.array(seen[:end], np.float64),
        finite=end == len(good) and result.reason != "nonfinite",
    )


def effective_rate(optimizer: Any, gradient: Array, fall: Array) -> Array:
    """Return what stands before the gradient in a step that lowered the parameter by `fall`.

    Before the corrected average of gradients where the optimizer keeps one. Momentum's velocity is a sum of
    gradients, each with the learning rate.
    """
    state, group = optimizer.state[0], optimizer.param_groups[0]
    if not state.keys().isdisjoint(("momentum_buffer", "velocity")):
        return np.full(gradient.shape, float(group["lr"]))
    direction = gradient
    if "exp_avg" in state:
        corrected = 1 - group["betas"][0] ** state["step"] if group.get("bias_correction", True) else 1.0
        direction = state["exp_avg"] / corrected
    with np.errstate(all="ignore"):
        return np.where(direction != 0, fall / direction, np.nan)


def line_up(names: Iterable[str], **options: Mapping[str, Any]) -> tuple[Runner, ...]:
    """Return runners for these optimizers, with options where some are given."""
    return tuple(Runner(name, options.get(name, {})) for name in names)
