"""What the lecture notes claim of optimizers, each measured on the paths that were computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .race import Finding, Path, Race, Runner, run

__all__ = [
    "Claim", "all_before", "all_before_at_best", "best_rate", "changes_of_sign", "crossings", "distance", "each",
    "for_good", "judge", "late", "left_saddle", "length", "listed", "overshoot", "rises", "said", "settled", "turns",
]  # fmt: skip

Steps = int | None
RATES = tuple(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))
"""The learning rates of which each optimizer gets its best, where a claim is about optimizers and not about rates."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the notes, and how it is measured."""

    text: str
    source: str
    needs: tuple[str, ...]
    """The runners without whom there is nothing to measure."""
    measure: Callable[[Race], tuple[bool, str]]
    """Whether it holds, and the evidence."""


def judge(*claims: Claim) -> Callable[[Race], list[Finding]]:
    """Return what turns a race into findings: one for each claim whose runners took part."""

    def findings(race: Race) -> list[Finding]:
        judged = []
        for claim in claims:
            if all(name in race.paths and _came_to_its_end(race, name) for name in claim.needs):
                holds, measured = claim.measure(race)
                judged.append(Finding(claim.text, claim.source, bool(holds), measured))
        return judged

    return findings


def _came_to_its_end(race: Race, name: str) -> bool:
    """Return whether there is a whole path to measure; where a surface has no minimum, all of them go on for ever."""
    return race.paths[name].finite or not race.scene.surface.minima


# --- measures of one path


def changes_of_sign(values: npt.NDArray[np.float64]) -> int:
    """Return how often numbers went from one side of zero to the other."""
    side = np.sign(values[values != 0])
    return int(np.count_nonzero(side[1:] != side[:-1]))


def crossings(path: Path) -> int:
    """Return how often the last coordinate went from one side of zero to the other."""
    return changes_of_sign(path.points[:, -1])


def overshoot(path: Path) -> float:
    """Return how far the last coordinate went beyond zero, on the side that it did not start from."""
    beyond = -path.points[:, -1] * np.sign(path.points[0, -1])
    return float(max(beyond.max(), 0.0))


def length(path: Path) -> float:
    """Return the way travelled."""
    return float(np.linalg.norm(np.diff(path.points, axis=0), axis=1).sum())


def turns(path: Path) -> float:
    """Return the median angle between one step and the next, in degrees: 0 straight on, 180 back."""
    steps = np.diff(path.points, axis=0)
    sizes = np.linalg.norm(steps, axis=1)
    moved = sizes[1:] * sizes[:-1] > 0
    if not moved.any():
        return 0.0
    cosines = (steps[1:] * steps[:-1]).sum(axis=1)[moved] / (sizes[1:] * sizes[:-1])[moved]
    return float(np.degrees(np.median(np.arccos(np.clip(cosines, -1, 1)))))


def rises(path: Path) -> float:
    """Return the share of steps that ended higher than they began, by more than rounding."""
    return float(np.mean(np.diff(path.losses) > 1e-12)) if len(path.losses) > 1 else 0.0


def distance(path: Path, minima: Iterable[tuple[float, ...]]) -> npt.NDArray[np.float64]:
    """Return how far each point is from the nearest of the minima."""
    return np.min([np.linalg.norm(path.points - np.array(at), axis=1) for at in minima], axis=0)


def settled(path: Path, minima: Iterable[tuple[float, ...]], radius: float = 0.1) -> Steps:
    """Return the first step from which on it stays within the radius of a minimum; None if it does not."""
    return for_good(path, distance(path, minima) < radius)


def for_good(path: Path, there: npt.NDArray[np.bool_]) -> Steps:
    """Return the first step from which on `there`, a row for each point, stays true; None if it does not."""
    away = np.flatnonzero(~there)
    first = int(away[-1]) + 1 if len(away) else 0
    return first if path.finite and first < len(path.points) else None


def left_saddle(path: Path, height: float = 1.0) -> Steps:
    """Return the first step at which y has left the saddle's ridge, and x has not been driven up the walls."""
    k = path.first(np.abs(path.points[:, 1]) > height)
    within = k is not None and bool((np.abs(path.points[: k + 1, 0]) <= np.abs(path.points[0, 0])).all())
    return k if within else None


# --- comparisons


def said(steps: Steps) -> str:
    """Return a number of steps, or that there is none."""
    return "never" if steps is None else str(steps)


def each(values: dict[str, Any]) -> str:
    """Return names with their values, as a list in a sentence."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def late(steps: Steps) -> float:
    """Return the steps as a number that can be compared: never is later than all."""
    return float("inf") if steps is None else float(steps)


def _before(steps: Mapping[str, Steps], first: Iterable[str], then: Iterable[str]) -> bool:
    return max(late(steps[name]) for name in first) < min(late(steps[name]) for name in then)


def all_before(
    race: Race, first: Iterable[str], then: Iterable[str], when: Callable[[Path], Steps]
) -> tuple[bool, str]:
    """Return whether the slowest of the one group came before the fastest of the other, and the steps of all."""
    first, then = list(first), list(then)
    steps = {path.name: when(path) for path in race.of(*first, *then)}
    ordered = sorted(steps.items(), key=lambda item: late(item[1]))
    return _before(steps, first, then), "steps: " + each({name: said(k) for name, k in ordered})


def best_rate(race: Race, runner: Runner, when: Callable[[Path], Steps]) -> tuple[Steps, float]:
    """Return the fewest steps that this optimizer needs at any of `RATES`, and the rate."""
    tried = []
    for rate in RATES:
        path = run(race.scene, replace(runner, options={**runner.options, "lr": rate}))
        tried.append((when(path), rate))
    return min(tried, key=lambda item: late(item[0]))


def all_before_at_best(
    race: Race, first: Iterable[str], then: Iterable[str], when: Callable[[Path], Steps]
) -> tuple[bool, str]:
    """Return the same as `all_before`, each optimizer at the learning rate at which it is fastest."""
    first, then = list(first), list(then)
    best = {path.name: best_rate(race, path.runner, when) for path in race.of(*first, *then)}
    holds = _before({name: steps for name, (steps, _) in best.items()}, first, then)
    ordered = sorted(best.items(), key=lambda item: late(item[1][0]))
    return holds, "steps: " + each(
        {name: f"{k} (rate {rate:g})" if k is not None else "never, at any rate" for name, (k, rate) in ordered}
    )
