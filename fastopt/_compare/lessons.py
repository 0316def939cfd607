"""One thing at a time: learning rate, overshoot, batches, their order, effective rates, first steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..schedules import Linear
from .findings import (
    ENOUGH,
    Claim,
    Verdict,
    all_of,
    at_rest,
    came_down,
    crossings,
    each,
    ended,
    enough,
    in_order,
    judge,
    length,
    less,
    listed,
    moving,
    over_seeds,
    overshoot,
    rises,
    spread,
    turns,
)
from .race import Path, Race, Runner, Scene, run
from .surfaces import SURFACES, Array, Surface, Window

__all__ = ["LESSONS"]


# --- one variable, two minima: learning rates, and momentum

LOW, TOP = SURFACES["dip"].minima[0][0], 0.12705084  # the global minimum, and the ridge between the two
SMALL, SUITED, LARGE = "SGD, rate 0.005", "SGD, rate 0.1", "SGD, rate 0.9"
ROLLING, LOOKING = "Momentum, rate 0.1", "NAG, rate 0.1"


def _end(path: Path) -> float:
    return float(path.points[-1, 0])


def _swing(path: Path, last: int = 10) -> float:
    """Return how wide it swings in ten steps, the last ones up to the one that is given from the end."""
    return float(np.ptp(path.points[-last:][:10, 0]))


def _left(path: Path) -> npt.NDArray[np.bool_]:
    """Return at which points it is on the left of the ridge, not thrown far away."""
    x = path.points[:, 0]
    return (x < TOP) & (x >= SURFACES["dip"].window[0][0])


def _escaped(path: Path) -> bool:
    """Return whether it started on the right of the ridge and is on the left."""
    return float(path.points[0, 0]) > TOP and bool(_left(path)[-1])


def _too_small(race: Race) -> tuple[Verdict, str]:
    small, suited = race.paths[SMALL], race.paths[SUITED]
    gap = abs(_end(small) - _end(suited))
    if not at_rest(suited):
        return None, f"after {race.scene.steps} steps they are {gap:.3g} apart" + moving(race, SMALL, SUITED)
    creeps = gap > 0.05 and abs(small.gradients[-1, 0]) > 10 * abs(suited.gradients[-1, 0])
    return True if creeps else False if at_rest(small) else None, (
        f"after {race.scene.steps} steps it is still {gap:.3g} away from where rate 0.1 has come to rest"
    )


def _too_large(race: Race) -> tuple[Verdict, str]:
    large, suited = race.paths[LARGE], race.paths[SUITED]
    widths = (
        f"width of the swing in the last ten steps: {_swing(large):.2g} with rate 0.9, {_swing(suited):.2g} with "
        "rate 0.1"
    )
    if few := enough(race):
        return None, f"{widths}; {few}"
    if not at_rest(suited):
        return None, widths + moving(race, SUITED)
    if at_rest(large):
        return False, widths
    shrinks = less(_swing(large), _swing(large, 20))
    return True if _swing(large) > 0.1 and not shrinks else None, widths


def _beyond_the_ridge(race: Race) -> bool:
    """Return whether the start is where one has to get out of the local minimum."""
    return race.scene.start[0] > TOP


def _large_escapes(race: Race) -> tuple[Verdict, str]:
    if not _beyond_the_ridge(race):
        return None, "from this start there is no local minimum to leave"
    ends = {name: f"x = {_end(race.paths[name]):.3g}" for name in (SMALL, SUITED, LARGE)}
    large, small = race.paths[LARGE], race.paths[SMALL]
    out = ended(large, _left(large), rest=False)
    if not out and not at_rest(large):  # on the right it has to be at rest: else it may get out yet
        out = None
    creeps_out = ended(small, _left(small), rest=False)  # it may be slow, but is to be on one side
    holds = all_of(out, None if creeps_out is None else not creeps_out)
    return holds, f"at the end (ridge at {TOP:.2f}): {each(ends)}"


def _momentum_escapes(race: Race) -> tuple[Verdict, str]:
    if not _beyond_the_ridge(race):
        return None, "from this start there is no local minimum to leave"
    sgd, momentum = race.paths[SUITED], race.paths[ROLLING]
    holds = ended(momentum, _left(momentum)) if ended(sgd, _left(sgd)) is False else None
    return holds, (
        f"at the same learning rate SGD ends at x = {_end(sgd):.3g}, f = {sgd.losses[-1]:.2g}; "
        f"Momentum at x = {_end(momentum):.3g}, f = {momentum.losses[-1]:.2g}{moving(race, SUITED, ROLLING)}"
    )


def _nag_escapes(race: Race) -> tuple[Verdict, str]:
    if not _beyond_the_ridge(race):
        return None, "from this start there is no local minimum to leave"
    nag, momentum = race.paths[LOOKING], race.paths[ROLLING]
    holds = ended(nag, _left(nag))
    why = ": the gradient from ahead brakes it on the way up the ridge as well" if holds is False else ""
    return holds, (
        f"NAG ends at x = {_end(nag):.3g}, Momentum at x = {_end(momentum):.3g}{why}{moving(race, LOOKING, ROLLING)}"
    )


def _dip_headline(race: Race) -> str:
    out = [name for name, path in race.paths.items() if _escaped(path)]
    held = [name for name in race.paths if name not in out]
    if race.scene.start[0] <= TOP:
        return "At the end: " + each({name: f"x = {_end(path):.3g}" for name, path in race.paths.items()})
    if not out or not held:
        return f"{'All of them get' if out else 'None of them gets'} out of the local minimum"
    return f"Out of the local minimum: {listed(out)}"


DIP = Scene(
    name="dip",
    title="A local minimum: learning rates, and momentum",
    story="A ball that starts on the right meets the shallow minimum first. A small step creeps, a suitable one "
    "settles there, a large one jumps out but does not come to rest; momentum rolls through.",
    surface=SURFACES["dip"],
    start=(1.5,),
    steps=80,
    runners=(
        Runner("SGD", {"lr": 0.005}, SMALL),
        Runner("SGD", {"lr": 0.1}, SUITED),
        Runner("SGD", {"lr": 0.9}, LARGE),
        Runner("Momentum", {"lr": 0.1, "momentum": 0.9}, ROLLING),
        Runner("NAG", {"lr": 0.1, "momentum": 0.9}, LOOKING),
        Runner("Adam", {"lr": 0.1}, "Adam, rate 0.1"),
    ),
    findings=judge(
        Claim("Too small a learning rate takes too long", "notes 002, learning rate", (SMALL, SUITED), _too_small),
        Claim("Too large a learning rate oscillates and does not settle", "notes 002", (SUITED, LARGE), _too_large),
        Claim("A large learning rate can leave a false local minimum, a small one cannot", "notes 002",
              (SMALL, SUITED, LARGE), _large_escapes),
        Claim("Momentum leaves the local minimum that gradient descent falls into", "notes 001, 8-1; 000; 004",
              (SUITED, ROLLING), _momentum_escapes),
        Claim("NAG, which brakes before a deep minimum is left, still leaves the shallow one", "notes 002, NAG",
              (ROLLING, LOOKING), _nag_escapes),
    ),
    headline=_dip_headline,
    panels=True,
)  # fmt: skip


# --- an ill-conditioned quadratic: momentum against NAG


def _less_overshoot(race: Race) -> tuple[Verdict, str]:
    if few := enough(race):
        return None, few
    far = {name: overshoot(race.paths[name]) for name in ("Momentum", "NAG")}
    if far["Momentum"] == 0:
        return None, f"in {race.scene.steps} steps Momentum does not cross the floor of the valley"
    return less(far["NAG"], far["Momentum"]), "farthest beyond the valley floor: " + each(
        {name: f"{value:.2f}" for name, value in far.items()}
    )


def _less_swing(race: Race) -> tuple[Verdict, str]:
    if few := enough(race):
        return None, few
    half = race.scene.steps // 2
    left = {name: float(np.abs(race.paths[name].points[half:, 1]).max()) for name in ("Momentum", "NAG")}
    ways = {name: f"{length(race.paths[name]):.1f}" for name in ("Momentum", "NAG")}
    swings = each({name: f"{value:.2g}" for name, value in left.items()})
    if not crossings(race.paths["Momentum"]):
        return None, f"in {race.scene.steps} steps Momentum does not cross the floor of the valley"
    return less(
        left["NAG"], left["Momentum"]
    ), f"widest swing after {half} steps: {swings}; way travelled: {each(ways)}"


def _over_all_rates(race: Race) -> tuple[Verdict, str]:
    """Whether NAG overshoots less at every learning rate and momentum of a grid, not only at those of the picture."""
    if few := enough(race):
        return None, few
    ratios = []
    for lr in (0.02, 0.05, 0.1, 0.2):
        for momentum in (0.8, 0.9, 0.95):
            options = {"lr": lr, "momentum": momentum}
            nag, plain = (overshoot(run(race.scene, Runner(name, options))) for name in ("NAG", "Momentum"))
            if plain > 0:
                ratios.append(nag / plain)
    if not ratios:
        return None, f"in {race.scene.steps} steps from this start Momentum does not overshoot at all"
    return max(ratios) < 1, f"NAG's overshoot is {min(ratios):.2f} to {max(ratios):.2f} times that of Momentum"


def _let_down(race: Race) -> tuple[Verdict, str]:
    """Measure what a momentum that falls to a half does to the swing, and to the way forward."""
    steps = race.scene.steps
    if few := enough(race, 2 * ENOUGH):  # half of them at the lower momentum
        return None, few
    options = race.paths["Momentum"].runner.options
    falling = run(
        race.scene, Runner("Momentum", {**options, "momentum": Linear(options["momentum"], 0.5, max(steps // 2, 1))})
    )
    swing, ahead, widest = {}, {}, {}
    for name, path in (("held", race.paths["Momentum"]), ("let down", falling)):
        widest[name] = float(np.abs(path.points[-ENOUGH:, 1]).max())
        swing[name] = f"{widest[name]:.1g}"
        ahead[name] = f"{path.points[-1, 0]:.2f}"
    if not crossings(race.paths["Momentum"]):
        return None, f"in {steps} steps Momentum does not oscillate"
    stops = widest["let down"] < 0.1 * widest["held"]
    smaller = less(widest["let down"], widest["held"])  # but it is there
    holds = True if stops else None if smaller or not widest["held"] else False
    return holds, f"widest swing in the last {ENOUGH} steps: {each(swing)}; but x at the end: {each(ahead)}"


def _overshoot_headline(race: Race) -> str:
    far = {path.name: overshoot(path) for path in race.paths.values()}
    if not any(far.values()):
        return f"In {race.scene.steps} steps nobody crosses the floor of the valley"
    if {"Momentum", "NAG"} <= far.keys():
        return f"Momentum shoots {far['Momentum']:.2f} beyond the floor of the valley, NAG {far['NAG']:.2f}"
    return "Beyond the floor of the valley: " + each({name: f"{value:.2f}" for name, value in far.items()})


OVERSHOOT = Scene(
    name="overshoot",
    title="Overshoot: momentum against Nesterov's look ahead",
    story="The slope along y is two hundred times that along x. Learning rate and momentum are the same; NAG takes the "
    "gradient from where momentum would carry it.",
    surface=SURFACES["canyon"],
    start=(-10.0, 2.0),
    steps=100,
    runners=(
        Runner("SGD", {"lr": 0.1}),
        Runner("Momentum", {"lr": 0.1, "momentum": 0.9}),
        Runner("NAG", {"lr": 0.1, "momentum": 0.9}),
    ),
    findings=judge(
        Claim("NAG overshoots less than Momentum", "notes 001, 8-2; 002; 004", ("Momentum", "NAG"), _less_overshoot),
        Claim("NAG oscillates less than Momentum", "notes 001, 8-2; 004", ("Momentum", "NAG"), _less_swing),
        Claim("NAG overshoots less at other learning rates (0.02 to 0.2) and momenta (0.8 to 0.95), too",
              "notes 001, 8-2", ("Momentum", "NAG"), _over_all_rates),
        Claim("A momentum that is let down near the minimum stops the oscillation", "notes 001, 8-1",
              ("Momentum",), _let_down),
    ),
    headline=_overshoot_headline,
    panels=True,
    animated=True,
)  # fmt: skip


# --- samples with noise: the three gradient descents

FULL, MINI, ONE, ROLLED = "Full batch", "Mini-batches of 8", "Stochastic", "Stochastic, momentum"
SAMPLES = 64


def _samples() -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    x = rng.normal(0, 1, SAMPLES)
    return x, 1.5 * x - 0.7 + rng.normal(0, 0.8, SAMPLES)


X, Y = _samples()


def _batch_gradient(point: Array, batch: tuple[Array, Array]) -> Array:
    x, y = batch
    error = point[0] * x + point[1] - y
    return np.array([np.mean(error * x), np.mean(error)])


def _line_through(name: str, samples: tuple[Array, Array], window: Window) -> Surface:
    """Return the loss of a straight line through samples, by its slope and its height at 0."""
    x, y = samples

    def mean_squares(w: Any, b: Any) -> npt.NDArray[np.float64]:
        w, b = np.asarray(w)[..., None], np.asarray(b)[..., None]
        return np.asarray(np.mean((w * x + b - y) ** 2, axis=-1) / 2)

    best = np.linalg.lstsq(np.stack([x, np.ones(len(x))], axis=1), y, rcond=None)[0]
    return Surface(
        name,
        r"f(w, b) = \frac{1}{2N} \sum_i (w x_i + b - y_i)^2",
        mean_squares,
        lambda w, b: tuple(_batch_gradient(np.array([w, b]), samples)),
        window,
        (tuple(best),),
        float(mean_squares(*best)),
        letters="wb",
    )


LINE = _line_through("line", (X, Y), ((-1.5, 3.0), (-2.5, 2.0)))


def _heights(path: Path) -> Array:
    return path.losses - LINE.floor


def _steady(race: Race) -> tuple[Verdict, str]:
    share = {name: over_seeds(race, name, rises) for name in (FULL, MINI, ONE)}
    way = {name: over_seeds(race, name, length) for name in (FULL, MINI, ONE)}
    higher = each({name: spread([100 * value for value in values], ".0f") + " %" for name, values in share.items()})
    return all_of(in_order(share[FULL], share[MINI]), in_order(*way.values())), (
        f"steps after which the loss was higher: {higher}; way travelled: "
        + each({name: spread(values, ".1f") for name, values in way.items()})
    )


def _last_height(path: Path) -> float:
    """Return the mean height above the minimum in the last 30 steps."""
    return max(float(_heights(path)[-30:].mean()), 0.0)


def _unsettled(race: Race) -> tuple[Verdict, str]:
    last = {name: over_seeds(race, name, _last_height) for name in (FULL, MINI, ONE)}
    return in_order(*last.values()), "mean height above the minimum in the last 30 steps: " + each(
        {name: spread(values, ".1g") for name, values in last.items()}
    )


def _looked_at(path: Path) -> float:
    """Return how many samples were looked at until the path was 0.1 above the minimum."""
    k = path.first(_heights(path) < 0.1)
    return math.inf if k is None else float(path.samples[k])


def _cheaper(race: Race) -> tuple[Verdict, str]:
    seen = {name: over_seeds(race, name, _looked_at) for name in (ONE, MINI, FULL)}
    return in_order(*seen.values()), "samples looked at until 0.1 above the minimum: " + each(
        {name: spread(values, ",.0f") for name, values in seen.items()}
    )


def _noise_cancels(race: Race) -> tuple[Verdict, str]:
    one, rolled = race.paths[ONE], race.paths[ROLLED]
    rates = {"without": one.runner.options["lr"]}
    rates["with momentum"] = rolled.runner.options["lr"] / (1 - rolled.runner.options["momentum"])
    way, turn = ({name: over_seeds(race, name, what) for name in (ONE, ROLLED)} for what in (length, turns))
    holds = all_of(in_order(way[ROLLED], way[ONE]), in_order(turn[ROLLED], turn[ONE]))
    return holds, (
        f"learning rate in all, lr / (1 - momentum): {each({k: f'{v:.3g}' for k, v in rates.items()})}; "
        f"way travelled {spread(way[ONE], '.3g')} without, {spread(way[ROLLED], '.3g')} with momentum; "
        f"turn from step to step {spread(turn[ONE], '.0f')} and {spread(turn[ROLLED], '.0f')} degrees"
    )


def _noise_headline(race: Race) -> str:
    down = [race.paths[name] for name in (FULL, MINI, ONE) if name in race.paths and came_down(race, race.paths[name])]
    ways = [length(path) for path in down]
    if len(ways) == 3 and ways == sorted(set(ways)):
        up = rises(race.paths[ONE])
        return f"The fewer samples in a step, the more its path wanders: {up:.0%} of the stochastic steps go up"
    share = {path.name: f"{rises(path):.0%}" for path in race.paths.values()}
    return "Steps after which the loss was higher: " + each(share)


BATCHES = Scene(
    name="batches",
    title="Three gradient descents: full batch, mini-batch, stochastic",
    story=f"A straight line through {SAMPLES} noisy samples: the surface is the loss over all of them, the gradient "
    "that of the samples in the batch.",
    surface=LINE,
    start=(-1.0, 1.5),
    steps=128,
    runners=(
        Runner("SGD", {"lr": 0.1}, FULL),
        Runner("SGD", {"lr": 0.1}, MINI, batch_size=8),
        Runner("SGD", {"lr": 0.1}, ONE, batch_size=1),
        Runner("Momentum", {"lr": 0.01, "momentum": 0.9}, ROLLED, batch_size=1),
    ),
    findings=judge(
        Claim("The full batch converges steadily, the fewer samples the less so", "notes 000; 002",
              (FULL, MINI, ONE), _steady, down=True),
        Claim("Stochastic descent does not come to rest: it goes on oscillating around the minimum", "notes 000; 004",
              (FULL, MINI, ONE), _unsettled),
        Claim("Stochastic descent learns faster for the samples that it looks at", "notes 000; 002; 004",
              (FULL, MINI, ONE), _cheaper),
        Claim("Momentum averages the noise out", "notes 001, 8-1", (ONE, ROLLED), _noise_cancels, down=True),
    ),
    headline=_noise_headline,
    panels=True,
    animated=True,
    samples=(X, Y),
    batch_gradient=_batch_gradient,
    others={"NAG": {"lr": 0.01}},
)  # fmt: skip


# --- samples in the order in which they came: correlated mini-batches

ORDERED, ONCE, ANEW, DRAWN = "In order", "Shuffled once", "Shuffled each epoch", "With replacement"
PER_BATCH = 8


def _kinds() -> tuple[Array, Array]:
    """Return samples as they come out of a file that is sorted: the left half falls, the right half rises."""
    rng = np.random.default_rng(11)
    x = np.sort(rng.uniform(-2, 2, SAMPLES))
    return x, np.where(x < 0, -1.0, 1.5) * x + rng.normal(0, 0.3, SAMPLES)


KINDS = _kinds()
BENT = _line_through("bent", KINDS, ((-2.5, 2.5), (-2.0, 3.0)))


def _late_height(path: Path) -> float:
    """Return the mean height above the minimum over the second half of the steps."""
    return float((path.losses - BENT.floor)[len(path.losses) // 2 :].mean())


def _correlated(race: Race) -> tuple[Verdict, str]:
    late = {name: over_seeds(race, name, _late_height) for name in (ORDERED, ANEW)}
    way = {name: spread(over_seeds(race, name, length), ".3g") for name in (ORDERED, ANEW)}
    heights = each({name: spread(values) for name, values in late.items()})
    return in_order(late[ANEW], late[ORDERED]), (
        f"mean height above the minimum in the second half: {heights}; way travelled: {each(way)}"
    )


def _once_is_enough(race: Race) -> tuple[Verdict, str]:
    late = {name: over_seeds(race, name, _late_height) for name in (ORDERED, ONCE)}
    return in_order(late[ONCE], late[ORDERED]), "mean height above the minimum in the second half: " + each(
        {name: spread(values) for name, values in late.items()}
    )


def _anew_is_better(race: Race) -> tuple[Verdict, str]:
    late = {name: over_seeds(race, name, _late_height) for name in (ANEW, ONCE)}
    return in_order(late[ANEW], late[ONCE]), "mean height above the minimum in the second half: " + each(
        {name: spread(values) for name, values in late.items()}
    )


def _drawn_is_worse(race: Race) -> tuple[Verdict, str]:
    late = {name: over_seeds(race, name, _late_height) for name in (ANEW, DRAWN)}
    left_out = (1 - 1 / SAMPLES) ** SAMPLES
    return in_order(late[ANEW], late[DRAWN]), (
        f"an epoch with replacement leaves out {left_out:.0%} of the samples on average; mean height above the minimum "
        f"in the second half: {each({name: spread(values) for name, values in late.items()})}"
    )


def _order_headline(race: Race) -> str:
    late = {path.name: _late_height(path) for path in race.paths.values() if came_down(race, path)}
    if {ORDERED, ANEW} <= late.keys() and less(late[ANEW], late[ORDERED]):
        times = late[ORDERED] / late[ANEW]
        return f"Batches of neighbours stay {times:.2g} times as high above the minimum as shuffled ones"
    return "Mean height above the minimum in the second half: " + each({k: f"{v:.2g}" for k, v in late.items()})


ORDER = Scene(
    name="order",
    title="The order of the samples: neighbours in a batch, or shuffled",
    story=f"A straight line through {SAMPLES} samples, in mini-batches of {PER_BATCH}. The samples are sorted: those "
    "on the left fall, those on the right rise. In that order a batch holds samples of one kind, and pulls the line "
    "towards them; the next batches pull it back.",
    surface=BENT,
    start=(-1.5, -1.0),
    steps=240,
    runners=(
        Runner("SGD", {"lr": 0.2}, ORDERED, PER_BATCH, shuffle=False),
        Runner("SGD", {"lr": 0.2}, DRAWN, PER_BATCH, replacement=True),
        Runner("SGD", {"lr": 0.2}, ANEW, PER_BATCH),
        Runner("SGD", {"lr": 0.2}, ONCE, PER_BATCH, shuffle="once"),
    ),
    findings=judge(
        Claim("Where the samples of a mini-batch are correlated, the parameters oscillate and hardly converge",
              "notes 002, stochastic gradient descent", (ORDERED, ANEW), _correlated),
        Claim("To shuffle the data once, before the training, makes it converge better",
              "notes 002, mini-batches", (ORDERED, ONCE), _once_is_enough),
        Claim("A new order for each epoch is better than one for all of them", "what lies behind it",
              (ONCE, ANEW), _anew_is_better),
        Claim("Sampling that repeats and leaves out samples is worse than to take each of them equally often",
              "notes 002, stochastic gradient descent", (ANEW, DRAWN), _drawn_is_worse),
    ),
    headline=_order_headline,
    panels=True,
    animated=True,
    samples=KINDS,
    batch_gradient=_batch_gradient,
    others={"NAG": {"lr": 0.02}, "Momentum": {"lr": 0.02}, "SGD": {"lr": 0.2}, "Lion": {"lr": 0.02}},
)  # fmt: skip


# --- effective learning rates, under noise that does not end


def _middle(rates: Array) -> float:
    """Return the median of what can be said; NaN where nothing can."""
    known = rates[np.isfinite(rates)]
    return float(np.median(known)) if known.size else math.nan


def _change(path: Path) -> float:
    """Return by what factor the effective rate changed over the last three quarters of the run: a fourfold of steps."""
    n, width = len(path.rates), max(len(path.rates) // 50, 1)
    before = _middle(path.rates[max(n // 4 - width, 0) : n // 4 + width])
    return _middle(path.rates[-2 * width :]) / before if before else math.nan


def _fades(change: float) -> Verdict:
    """Return whether a rate fades, to less than 0.7; not if it stays above 0.8; else, and of NaN, it cannot be told."""
    return True if change < 0.7 else False if change > 0.8 else None


def _decays(race: Race) -> tuple[Verdict, str]:
    path = race.paths["Adagrad"]
    first, last = _middle(path.rates[:1]), _middle(path.rates[-20:])
    return _fades(_change(path)), (
        f"{first:.2g} at the first step, {last:.2g} after {len(path.rates):,}; times {_change(path):.2f} over the last "
        "three quarters, where 1/sqrt(t) would be times 0.5"
    )


def _stays(name: str) -> Any:
    def measure(race: Race) -> tuple[Verdict, str]:
        change = _change(race.paths[name])
        fades = _fades(change)
        return (
            None if fades is None else not fades,
            f"times {change:.2f} over the last three quarters of {len(race.paths[name].rates):,} steps",
        )

    return measure


def _decay_needs_gradients(race: Race) -> tuple[Verdict, str]:
    """Without noise the gradients fade, and the sum of their squares stops growing."""
    steps = 100  # later the gradients are nothing but rounding
    still = run(replace(race.scene, steps=steps), Runner("Adagrad", race.paths["Adagrad"].runner.options))
    return _fades(_change(still)), (
        f"with the full batch, whose gradients fade: times {_change(still):.2f} "
        f"over the last three quarters of {steps} steps"
    )


def _rates_headline(race: Race) -> str:
    changes = {path.name: _change(path) for path in race.paths.values()}
    if not changes.get("Adagrad", 1.0) < 0.7:
        return "Effective learning rate over the last three quarters of the run: times " + each(
            {name: f"{change:.2f}" for name, change in changes.items()}
        )
    others = [name for name in ("RMSprop", "Adadelta") if changes.get(name, 0) > 0.8]
    tail = f", those of {listed(others)} do not" if others else ""
    return f"AdaGrad's learning rates fade (times {changes['Adagrad']:.2f} in the last three quarters){tail}"


RATES = Scene(
    name="rates",
    title="Effective learning rates: AdaGrad's fade",
    story="One sample a step, so that the gradients never end. The effective learning rate is what stands before the "
    "gradient of each coordinate.",
    surface=LINE,
    start=(1.0, -0.5),
    steps=4000,
    runners=(
        Runner("SGD", {"lr": 0.02}, batch_size=1),
        Runner("Adagrad", {"lr": 0.1}, batch_size=1),
        Runner("Adadelta", {}, batch_size=1),
        Runner("RMSprop", {"lr": 0.01}, batch_size=1),
        Runner("Adam", {"lr": 0.01}, batch_size=1),
    ),
    findings=judge(
        Claim("AdaGrad's effective learning rate goes to zero", "notes 001, 8-3; 000; 002 to 004",
              ("Adagrad",), _decays),
        Claim("RMSProp's effective learning rate does not go to zero", "notes 001, 8-4; 002 to 004",
              ("RMSprop",), _stays("RMSprop")),
        Claim("AdaDelta's effective learning rate does not go to zero", "notes 001, 8-4; 003; 004",
              ("Adadelta",), _stays("Adadelta")),
        Claim("AdaGrad's effective learning rate goes to zero whatever the gradients do", "notes 001, 8-3",
              ("Adagrad",), _decay_needs_gradients, own_runs=True),
    ),
    headline=_rates_headline,
    samples=(X, Y),
    batch_gradient=_batch_gradient,
    others={
        **dict.fromkeys(("Momentum", "NAG"), {"lr": 0.002}),
        **dict.fromkeys(("AdamW", "Adamax", "NAdam", "RAdam"), {"lr": 0.01}),
        "Lion": {"lr": 0.001},
    },
)  # fmt: skip


# --- first steps: bias correction, and AdaDelta's eps

CORRECTED, UNCORRECTED = "Adam", "Adam, uncorrected"
TINY_EPS, LARGE_EPS = "Adadelta, eps 1e-6", "Adadelta, eps 1e-2"


def _first_step(path: Path) -> float:
    return float(np.abs(path.points[1] - path.points[0]).max())


def _correction(race: Race) -> tuple[Verdict, str]:
    with_it, without = race.paths[CORRECTED], race.paths[UNCORRECTED]
    rate = with_it.runner.options["lr"]
    return abs(_first_step(with_it) / rate - 1) < 0.01 and _first_step(without) > 2 * rate, (
        f"learning rate {rate}: first step {_first_step(with_it):.3f} with, {_first_step(without):.3f} without the "
        "correction (times (1 - b1) / sqrt(1 - b2) = 3.16); way travelled "
        f"{length(with_it):.1f} and {length(without):.1f}"
    )


def _eps_decides(race: Race) -> tuple[Verdict, str]:
    first = {name: _first_step(race.paths[name]) for name in (TINY_EPS, LARGE_EPS)}
    return first[LARGE_EPS] > 10 * first[TINY_EPS], "first step: " + each({k: f"{v:.2g}" for k, v in first.items()})


def _first_headline(race: Race) -> str:
    first = {path.name: f"{_first_step(path):.2g}" for path in race.paths.values()}
    return f"The first step: {each(first)}"


FIRST = Scene(
    name="first-steps",
    title="The first steps: bias correction, and AdaDelta's eps",
    story="Averages that begin at zero are too small at first. Adam corrects them; AdaDelta lets eps decide.",
    surface=SURFACES["ravine"],
    start=(-7.0, 2.0),
    steps=60,
    runners=(
        Runner("Adam", {"lr": 0.3}, CORRECTED),
        Runner("Adam", {"lr": 0.3, "bias_correction": False}, UNCORRECTED),
        Runner("Adadelta", {"eps": 1e-6}, TINY_EPS),
        Runner("Adadelta", {"eps": 1e-2}, LARGE_EPS),
    ),
    findings=judge(
        Claim("Adam's averages begin at zero and have to be corrected", "notes 003; 001, 8-5",
              (CORRECTED, UNCORRECTED), _correction),
        Claim("AdaDelta needs no learning rate, but its eps sets it going", "notes 003",
              (TINY_EPS, LARGE_EPS), _eps_decides),
    ),
    headline=_first_headline,
    panels=True,
)  # fmt: skip

LESSONS = (DIP, OVERSHOOT, BATCHES, ORDER, RATES, FIRST)
"""The scenes of this file, in the order shown."""
