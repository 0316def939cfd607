"""What the lecture notes claim of optimizers, each measured on the paths that were computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .race import Finding, Path, Race, Runner, run

__all__ = [
    "Claim", "ENOUGH", "all_before", "all_before_at_best", "all_of", "at_rest", "before", "best_rate", "came_down",
    "changes_of_sign", "crossings", "distance", "each", "ended", "enough", "for_good", "in_order", "judge", "late",
    "left_saddle", "length", "less", "listed", "moved", "moving", "over_seeds", "overshoot", "rises", "said",
    "settled", "spread", "turns",
]  # fmt: skip

Steps = int | None
Verdict = bool | None
"""Holds, does not hold, or, None, cannot be told."""
LEAD = 1.1
"""A lead of less than a tenth is within noise: one step, one rate of the grid, or one seed may turn it round."""
SEEDS = 5
"""Where the samples of a step are drawn, a verdict has to be the same with so many seeds."""
STILL = 0.01
"""Who stays within this share of the distance to the minimum did nothing that can be judged."""
DOWN = 0.1
"""The share of the starting height at which a path counts as having come down."""
ENOUGH = 20
"""Fewer steps tell neither how wide somebody swings nor where they end."""
REST = 0.05
"""Who is at rest moves, in the last quarter of the steps, by less than this share of how far it got from its start."""
RATES = tuple(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))
"""The learning rates of which each optimizer gets its best, where a claim is about optimizers and not about rates."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the notes, and how it is measured."""

    text: str
    source: str
    needs: tuple[str, ...]
    """The runners without whom there is nothing to measure."""
    measure: Callable[[Race], tuple[Verdict, str]]
    """Whether it holds, and the evidence."""
    down: bool = False
    """Whether its runners have to come down: who hardly moves has a short, steady and straight way."""
    own_runs: bool = False
    """Whether the measure makes runs of its own, so that it can tell even where nobody in the race moved."""


def judge(*claims: Claim) -> Callable[[Race], list[Finding]]:
    """Return what turns a race into findings: one for each claim whose runners took part.

    Nothing can be told of a runner that did not move: it never overshoots, crosses nothing and goes the shortest way.
    """

    def findings(race: Race) -> list[Finding]:
        judged = []
        for claim in claims:
            if all(name in race.paths and _came_to_its_end(race, name) for name in claim.needs):
                still = [name for name in claim.needs if not moved(race, race.paths[name])]
                high = [name for name in claim.needs if claim.down and not came_down(race, race.paths[name])]
                holds: Verdict
                if still and not claim.own_runs:
                    holds, measured = None, _barely(race, still)
                elif high:
                    holds, measured = None, _not_down(race, high)
                else:
                    holds, measured = claim.measure(race)
                judged.append(Finding(claim.text, claim.source, None if holds is None else bool(holds), measured))
        return judged

    return findings


def _came_to_its_end(race: Race, name: str) -> bool:
    """Return whether there is a whole path to measure; where a surface has no minimum, all of them go on for ever."""
    return race.paths[name].finite or not race.scene.surface.minima


# --- who did something


def _away(path: Path) -> float:
    """Return how far a path ever got from its start."""
    with np.errstate(over="ignore"):  # far outside the window
        return float(np.linalg.norm(path.points - path.points[0], axis=1).max())


def moved(race: Race, path: Path) -> bool:
    """Return whether a path left its start by more than `STILL` of the distance to the minimum, or of the window."""
    surface = race.scene.surface
    scale = float(distance(path, surface.minima)[0]) if surface.minima else 0.0
    scale = scale or float(np.linalg.norm([high - low for low, high in surface.window]))
    return not path.finite or _away(path) > STILL * scale


def _barely(race: Race, names: Sequence[str]) -> str:
    ways = each({name: f"{_away(race.paths[name]):.2g}" for name in names})
    return f"farthest from the start in {race.scene.steps} steps: {ways}; that is too little to tell"


def _not_down(race: Race, names: Sequence[str]) -> str:
    what = "does" if len(names) == 1 else "do"
    return f"{listed(names)} {what} not come down in {race.scene.steps} steps"


def came_down(race: Race, path: Path) -> bool:
    """Return whether a path ended low, at `DOWN` of its starting height, and at most half as far from the minimum.

    Without a minimum: whether it ended below its start. A path that did not come down is neither praised for a short
    way nor for crossing nothing. A valley's wall alone does not count: most of the height is there.
    """
    surface = race.scene.surface
    if not path.finite or len(path.losses) < 2 or not moved(race, path):
        return False
    if not surface.minima:
        return bool(path.losses[-1] < path.losses[0])
    last = slice(-max(len(path.losses) // 10, 1), None)  # one sample may throw the last step anywhere
    away = distance(path, surface.minima)
    low = path.losses[last].mean() - surface.floor <= DOWN * (path.losses[0] - surface.floor)
    return bool(low and away[last].mean() <= away[0] / 2)


# --- who had time enough


def enough(race: Race, steps: int = ENOUGH) -> str:
    """Return an empty text if a race is long enough to judge swings and ends, else that it is not."""
    return "" if race.scene.steps >= steps else f"{race.scene.steps} steps are too few to tell; it takes {steps}"


def _last_quarter(path: Path) -> slice:
    return slice(-max(len(path.points) // 4, ENOUGH // 2), None)


def at_rest(path: Path) -> bool:
    """Return whether a path has come to rest; who creeps on, swings on or had too few steps has not."""
    if not path.finite or len(path.points) <= ENOUGH:
        return False
    return float(np.ptp(path.points[_last_quarter(path)], axis=0).max()) <= REST * _away(path)


def ended(path: Path, there: npt.NDArray[np.bool_], rest: bool = True) -> Verdict:
    """Return whether a path ended where `there`, a row for each point, is true; None if it is not at rest.

    Without `rest`, whether it spent the whole last quarter of its steps there, or none of it; else None.
    """
    if len(path.points) <= ENOUGH or rest and not at_rest(path):
        return None
    last = there[_last_quarter(path)]
    return bool(last[-1]) if last.all() or not last.any() else None


def moving(race: Race, *names: str) -> str:
    """Return which of these runners have not come to rest, to be added to what was measured."""
    on = [name for name in names if not at_rest(race.paths[name])]
    return f"; {listed(on)} {'has' if len(on) == 1 else 'have'} not come to rest" if on else ""


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


def less(a: float, b: float) -> Verdict:
    """Return whether a measure above 0 is less than another by a tenth at least; None if neither of the two is."""
    if a < b and LEAD * a <= b:
        return True
    return False if b < a and LEAD * b <= a else None


def in_order(*values: Sequence[float]) -> Verdict:
    """Return whether each measure is less than the next, by a tenth and with every seed.

    False if one of them is more than the next, by a tenth and with every seed; else None.
    """
    verdicts = []
    for lower, higher in pairwise(values):
        each_seed = {less(a, b) for a, b in zip(lower, higher, strict=True)}
        verdicts.append(each_seed.pop() if len(each_seed) == 1 else None)
    return all_of(*verdicts)


def all_of(*verdicts: Verdict) -> Verdict:
    """Return whether all hold: not if one does not, and it cannot be told if one of them cannot."""
    if any(verdict is not None and not verdict for verdict in verdicts):
        return False
    return None if None in verdicts else True


def over_seeds(race: Race, name: str, measure: Callable[[Path], float]) -> list[float]:
    """Return a measure of a runner's path with each of `SEEDS` seeds, the race's own first."""
    path = race.paths[name]
    if path.runner.batch_size is None:  # takes all the samples, whatever the seed
        return [measure(path)] * SEEDS
    return [measure(path), *(measure(run(race.scene, path.runner, race.seed + k)) for k in range(1, SEEDS))]


def spread(values: Sequence[float], form: str = ".2g") -> str:
    """Return the lowest and the highest of the values of several seeds, as text; one of them if they are the same."""
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def before(steps: Mapping[str, Steps], first: Iterable[str], then: Iterable[str]) -> Verdict:
    """Return whether the slowest of the one group came before the fastest of the other, by a tenth at least.

    False if anyone of the other group came before one of the first, by a tenth; else None: nobody, or about equally.
    """
    first, then = list(first), list(then)
    holds = less(max(late(steps[name]) for name in first), min(late(steps[name]) for name in then))
    refuted = any(less(late(steps[b]), late(steps[a])) for a in first for b in then)
    return True if holds else False if refuted else None


def all_before(
    race: Race, first: Iterable[str], then: Iterable[str], when: Callable[[Path], Steps]
) -> tuple[Verdict, str]:
    """Return `before` for the steps at which something happens on the paths, and the steps of all."""
    first, then = list(first), list(then)
    steps = {path.name: when(path) for path in race.of(*first, *then)}
    ordered = sorted(steps.items(), key=lambda item: late(item[1]))
    return before(steps, first, then), "steps: " + each({name: said(k) for name, k in ordered})


def best_rate(race: Race, runner: Runner, when: Callable[[Path], Steps]) -> tuple[Steps, float]:
    """Return the fewest steps that this optimizer needs at any of `RATES`, and the rate."""
    tried = []
    for rate in RATES:
        path = run(race.scene, replace(runner, options={**runner.options, "lr": rate}))
        tried.append((when(path), rate))
    return min(tried, key=lambda item: late(item[0]))


def all_before_at_best(
    race: Race, first: Iterable[str], then: Iterable[str], when: Callable[[Path], Steps]
) -> tuple[Verdict, str]:
    """Return the same as `all_before`, each optimizer at the learning rate at which it is fastest."""
    first, then = list(first), list(then)
    best = {path.name: best_rate(race, path.runner, when) for path in race.of(*first, *then)}
    holds = before({name: steps for name, (steps, _) in best.items()}, first, then)
    ordered = sorted(best.items(), key=lambda item: late(item[1][0]))
    return holds, "steps: " + each(
        {name: f"{k} (rate {rate:g})" if k is not None else "never, at any rate" for name, (k, rate) in ordered}
    )
