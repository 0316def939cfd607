"""The pictures of the lecture notes, and others like them: surfaces with everybody on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .findings import (
    Claim,
    Verdict,
    all_before,
    all_before_at_best,
    all_of,
    at_rest,
    before,
    came_down,
    crossings,
    distance,
    each,
    enough,
    for_good,
    in_order,
    judge,
    late,
    left_saddle,
    length,
    listed,
    moving,
    over_seeds,
    rises,
    said,
    settled,
    spread,
    turns,
)
from .race import Path, Race, Runner, Scene, line_up, run
from .surfaces import SURFACES, Array, Surface

__all__ = ["LANDSCAPES"]

FOUR = ("SGD", "Momentum", "Adagrad", "Adam")
SEVEN = ("SGD", "Momentum", "NAG", "Adagrad", "Adadelta", "RMSprop", "Adam")
PLAIN = ("SGD", "Momentum", "NAG")
ADAPTIVE = ("Adagrad", "Adadelta", "RMSprop")


# --- x²/20 + y²: the four panels of notes 000


def _crossings(race: Race) -> dict[str, int]:
    """Return how often each path that came down crossed the floor of the valley; who stays above crosses nothing."""
    return {path.name: crossings(path) for path in race.paths.values() if came_down(race, path)}


def _zig_zag(race: Race) -> tuple[Verdict, str]:
    if few := enough(race):
        return None, few
    sgd = race.paths["SGD"]
    steps = len(sgd.points) - 1
    over = {**_crossings(race), "SGD": crossings(sgd)}
    others = [over[name] for name in over if name != "SGD"]
    if not others:
        return None, f"nobody else comes down in {steps} steps"
    return over["SGD"] > 2 * max(others) and turns(sgd) > 90, (
        f"crossings of the valley floor in {steps} steps: {each(over)}; "
        f"SGD turns by {turns(sgd):.0f} degrees from one step to the next (median)"
    )


def _even_rates(race: Race) -> tuple[Verdict, str]:
    rates = race.paths["Adagrad"].rates
    x, y = rates[-1]
    return x > 2 * y, f"after {len(rates)} steps: {x:.3g} along x (gentle), {y:.3g} along y (steep)"


def _sooner_along_x(race: Race) -> tuple[Verdict, str]:
    """Measure it with one learning rate for both, until x stays near: Momentum swings past the minimum at first."""
    scene = replace(race.scene, steps=1000)
    momentum, sgd = (race.paths[name].runner for name in ("Momentum", "SGD"))
    rate = momentum.options["lr"]
    steps = {}
    for name, runner in (
        (f"Momentum {rate:g}", momentum),
        (f"SGD {rate:g}", replace(sgd, options={**sgd.options, "lr": rate})),
        (f"SGD {sgd.options['lr']:g}", sgd),
    ):
        path = run(scene, runner)
        steps[name] = for_good(path, np.abs(path.points[:, 0]) < 0.5)
    holds = before(steps, [f"Momentum {rate:g}"], [f"SGD {rate:g}"])
    return holds, "steps until |x| stays below 0.5, by learning rate: " + each({k: said(v) for k, v in steps.items()})


def _damps(race: Race) -> tuple[Verdict, str]:
    """Measure the swing at a learning rate just beyond 1, where plain descent on y² must fly apart."""
    if race.scene.start[1] == 0:
        return None, "from a start on the floor of the valley nothing swings"
    beyond = replace(race.scene, steps=60)
    ends = {}
    for name, options in (("SGD", {}), ("Momentum", {"momentum": 0.9}), ("NAG", {"momentum": 0.9})):
        path = run(beyond, Runner(name, {"lr": 1.02, **options}))
        ends[name] = float(np.abs(path.points[-10:, 1]).max())
    return ends["Momentum"] < 0.5 * abs(race.scene.start[1]) < ends["SGD"], (
        "widest |y| in the last ten of 60 steps with learning rate 1.02: "
        + each({name: f"{value:.2g}" for name, value in ends.items()})
    )


def _ravine_headline(race: Race) -> str:
    over = _crossings(race)
    if not over:
        return f"In {race.scene.steps} steps none comes down"
    most, least = max(over, key=over.__getitem__), min(over, key=over.__getitem__)
    if over[most] == over[least]:
        return f"Times that the floor of the valley is crossed in {race.scene.steps} steps: {each(over)}"
    return (
        f"{most} crosses the floor of the valley {over[most]} times in {race.scene.steps} steps, {least} {over[least]}"
    )


RAVINE = Scene(
    name="ravine",
    title="A long valley: who zig-zags",
    story="The slope along y is twenty times that along x, so the gradient hardly ever points at the minimum. "
    "Rates and start are those of the textbook picture that the notes show.",
    surface=SURFACES["ravine"],
    start=(-7.0, 2.0),
    steps=30,
    runners=line_up(
        FOUR,
        SGD={"lr": 0.95},
        Momentum={"lr": 0.1, "momentum": 0.9},
        Adagrad={"lr": 1.5},
        Adam={"lr": 0.3},
    ),
    findings=judge(
        Claim("SGD zig-zags on f(x, y) = x²/20 + y²", "notes 000, comparison; 004", ("SGD", "Momentum"), _zig_zag),
        Claim(
            "AdaGrad gives the parameter that is updated little the larger learning rate",
            "notes 001, 8-3",
            ("Adagrad",),
            _even_rates,
        ),
        Claim(
            "Momentum reaches the minimum sooner than SGD at the same learning rate: steps add up on a steady slope",
            "notes 001, 8-1; 004",
            ("SGD", "Momentum"),
            _sooner_along_x,
            own_runs=True,
        ),
        Claim(
            "Momentum damps the oscillation that too large a learning rate causes",
            "notes 001, 8-1; 002",
            ("SGD", "Momentum"),
            _damps,
            own_runs=True,
        ),
    ),
    headline=_ravine_headline,
    others={"Lion": {"lr": 0.2}},
    panels=True,
    animated=True,
)


# --- the same valley as a mean over samples: the seven methods of the last slide of notes 000

SAMPLES = 64
GD = "GD"


def _centers() -> tuple[Array, Array]:
    """Return where the bowls of the samples have their minima: around the origin, which is their mean."""
    half = np.random.default_rng(5).normal(0, 1, (2, SAMPLES // 2))
    both = np.concatenate([half, -half], axis=1)
    x, y = both / both.std(axis=1, keepdims=True) * [[1.0], [0.3]]
    return x, y


CENTERS = _centers()
_HEIGHT = float(np.mean(CENTERS[0] ** 2 / 20 + CENTERS[1] ** 2))
BOWLS = Surface(
    "bowls",
    r"f(x, y) = \frac{1}{N} \sum_i \left( (x - p_i)^2/20 + (y - q_i)^2 \right) = x^2/20 + y^2 + c",
    lambda x, y: x**2 / 20 + y**2 + _HEIGHT,
    lambda x, y: (x / 10, 2 * y),
    ((-10, 10), (-4, 4)),
    ((0.0, 0.0),),
    floor=_HEIGHT,
)


def _bowl_gradient(point: Array, batch: tuple[Array, Array]) -> Array:
    p, q = batch
    return np.array([np.mean(point[0] - p) / 10, 2 * np.mean(point[1] - q)])


def _height_at_the_end(path: Path) -> float:
    """Return the mean height above the minimum over the last quarter of the steps."""
    return float(path.losses[-max(len(path.losses) // 4, 1) :].mean() - BOWLS.floor)


def _gd_is_steady(race: Race) -> tuple[Verdict, str]:
    up = {name: over_seeds(race, name, rises) for name in (GD, "SGD")}
    told = {name: spread([100 * share for share in shares], ".0f") + " %" for name, shares in up.items()}
    return in_order(up[GD], up["SGD"]), f"steps after which the loss was higher: {each(told)}"


def _gd_is_more_accurate(race: Race) -> tuple[Verdict, str]:
    ends = {name: over_seeds(race, name, _height_at_the_end) for name in (GD, "SGD")}
    told = {name: spread(values) for name, values in ends.items()}
    return in_order(ends[GD], ends["SGD"]), f"mean height above the minimum in the last quarter: {each(told)}"


def _keeps_its_direction(race: Race) -> tuple[Verdict, str]:
    angles = {name: over_seeds(race, name, turns) for name in ("Momentum", "SGD")}
    told = {name: spread(values, ".0f") for name, values in angles.items()}
    return in_order(angles["Momentum"], angles["SGD"]), f"turn from step to step, in degrees: {each(told)}"


def _adam_is_straighter(race: Race) -> tuple[Verdict, str]:
    ways = {name: over_seeds(race, name, length) for name in ("Adam", "Momentum", "RMSprop")}
    told = {name: spread(values, ".3g") for name, values in ways.items()}
    holds = all_of(in_order(ways["Adam"], ways["Momentum"]), in_order(ways["Adam"], ways["RMSprop"]))
    return holds, f"way travelled: {each(told)}"


def _seven_headline(race: Race) -> str:
    down = [path for path in race.paths.values() if came_down(race, path)]
    if len(down) < 2:
        return f"In {race.scene.steps} steps {'only ' + down[0].name if down else 'none'} comes down"
    most, least = max(down, key=turns), min(down, key=turns)
    who = f"All {len(down)}" if len(down) == len(race.paths) else f"{len(down)} of {len(race.paths)}"
    return (
        f"{who} come down: {most.name} turns by {turns(most):.0f} degrees from step to step, "
        f"{least.name} by {turns(least):.0f}"
    )


SEVEN_METHODS = Scene(
    name="seven",
    title="Seven methods in one picture: GD, SGD, Momentum, NAG, AdaGrad, RMSProp, Adam",
    story=f"The long valley again, now as the mean of {SAMPLES} bowls, one for each sample, whose minima lie around "
    "the origin. GD takes all the samples at every step, the other methods one of them, drawn without replacement.",
    surface=BOWLS,
    start=(-7.0, 2.0),
    steps=40,
    runners=(
        Runner("SGD", {"lr": 0.7}, GD),
        Runner("SGD", {"lr": 0.7}, "SGD", batch_size=1),
        Runner("Momentum", {"lr": 0.1, "momentum": 0.9}, batch_size=1),
        Runner("NAG", {"lr": 0.1, "momentum": 0.9}, batch_size=1),
        Runner("Adagrad", {"lr": 1.5}, batch_size=1),
        Runner("RMSprop", {"lr": 0.3}, batch_size=1),
        Runner("Adam", {"lr": 0.3}, batch_size=1),
    ),
    findings=judge(
        Claim("GD converges more steadily than SGD", "notes 000, GD and SGD", (GD, "SGD"), _gd_is_steady, down=True),
        Claim("SGD may end less accurately than GD", "notes 000, SGD; 004", (GD, "SGD"), _gd_is_more_accurate),
        Claim("Momentum keeps its direction, where SGD turns at every step", "notes 000, Momentum",
              ("SGD", "Momentum"), _keeps_its_direction, down=True),
        Claim("Adam, which is Momentum and RMSProp together, goes a shorter way than either", "notes 000, comparison",
              ("Momentum", "RMSprop", "Adam"), _adam_is_straighter, down=True),
    ),
    headline=_seven_headline,
    panels=True,
    animated=True,
    samples=CENTERS,
    batch_gradient=_bowl_gradient,
)  # fmt: skip


# --- x² - y²: the saddle of notes 001


def _saddle_headline(race: Race) -> str:
    steps = {path.name: left_saddle(path) for path in race.paths.values()}
    order = sorted(steps, key=lambda name: late(steps[name]))
    first, last = order[0], order[-1]
    if steps[first] is None:
        who = "none of them leaves" if len(order) > 1 else f"{first} does not leave"
        return f"In {race.scene.steps} steps {who} the saddle"
    if steps[first] == steps[last]:
        return f"{listed(order)} leave{'s' * (len(order) == 1)} the saddle after {steps[first]} steps"
    tail = f"{last} not in {race.scene.steps}" if steps[last] is None else f"{last} after {steps[last]}"
    return f"{first} leaves the saddle after {steps[first]} steps, {tail}"


def _nearer(race: Race) -> tuple[Verdict, str]:
    """Measure how many steps more it takes from a start a thousand times nearer, with time enough for all."""
    x, y = race.scene.start
    far, near = (replace(race.scene, start=(x, start), steps=1000) for start in (y, y / 1000))
    more, held = {}, []
    for path in race.of(*ADAPTIVE, *PLAIN):
        from_far, from_near = (left_saddle(run(scene, path.runner)) for scene in (far, near))
        if from_far is None:
            held.append(path.name)
        more[path.name] = late(from_near) - late(from_far) if from_far is not None else float("inf")
    if held:
        return None, f"not even from this start {listed(held)} left{'s' * (len(held) == 1)} the saddle in 1000 steps"
    holds = max(more[name] for name in ADAPTIVE) < 0.5 * min(more[name] for name in PLAIN)
    return holds, "steps more: " + each({name: f"{steps:.0f}" for name, steps in more.items()})


SADDLE = Scene(
    name="saddle",
    title="A saddle: who leaves it",
    story="The start is a thousandth off the ridge, where the gradient that leads away is next to nothing. Methods "
    "that divide by the gradient's size do not mind; the others have to wait until it has grown.",
    surface=SURFACES["saddle"],
    start=(-1.0, 1e-3),
    steps=120,
    runners=line_up(
        SEVEN,
        SGD={"lr": 0.01},
        Momentum={"lr": 0.01, "momentum": 0.9},
        NAG={"lr": 0.01, "momentum": 0.9},
        Adagrad={"lr": 0.1},
        RMSprop={"lr": 0.02},
        Adam={"lr": 0.02},
    ),
    findings=judge(
        Claim(
            "AdaGrad, AdaDelta and RMSProp leave the saddle easily, SGD, Momentum and NAG do not",
            "notes 001, 8-7",
            (*ADAPTIVE, *PLAIN),
            lambda race: all_before(race, ADAPTIVE, PLAIN, left_saddle),
        ),
        Claim(
            "With every method at its best learning rate, AdaGrad, AdaDelta and RMSProp leave the saddle first",
            "notes 001, 8-7",
            (*ADAPTIVE, *PLAIN),
            lambda race: all_before_at_best(race, ADAPTIVE, PLAIN, left_saddle),
            own_runs=True,
        ),
        Claim(
            "A start a thousand times nearer to the ridge delays SGD, Momentum and NAG, but not the adaptive methods",
            "what lies behind it",
            (*ADAPTIVE, *PLAIN),
            _nearer,
        ),
        Claim(
            "Momentum helps to get away from a saddle",
            "notes 001, 8-1; 004",
            ("SGD", "Momentum"),
            lambda race: all_before(race, ["Momentum"], ["SGD"], left_saddle),
        ),
    ),
    headline=_saddle_headline,
    animated=True,
)


# --- Beale: who reaches the minimum


def _arrives(path: Path) -> int | None:
    return settled(path, SURFACES["beale"].minima, 0.1)


def _arrival_headline(where: str) -> Callable[[Race], str]:
    def headline(race: Race) -> str:
        steps = {path.name: settled(path, race.scene.surface.minima) for path in race.paths.values()}
        if 0 in steps.values():
            return f"The start is within 0.1 of the minimum of {where} already"
        there = sorted((k, name) for name, k in steps.items() if k is not None)
        if not there:
            return f"None of them settles within 0.1 of the minimum of {where} in {race.scene.steps} steps"
        missing = [name for name, k in steps.items() if k is None]
        tail = f"; {listed(missing)} not in {race.scene.steps}" if 0 < len(missing) <= 3 else ""
        return f"{there[0][1]} is the first to settle in the minimum of {where}, after {there[0][0]} steps{tail}"

    return headline


BEALE = Scene(
    name="beale",
    title="Beale's function: who reaches the minimum first",
    story="The start is beside the saddle at (0, 1), the minimum lies at (3, 0.5) at the end of a long, flat valley. "
    "Settled: within 0.1 of the minimum, from then on.",
    surface=SURFACES["beale"],
    start=(0.05, 1.02),
    steps=1000,
    runners=line_up(
        SEVEN,
        SGD={"lr": 0.01},
        Momentum={"lr": 0.01, "momentum": 0.9},
        NAG={"lr": 0.01, "momentum": 0.9},
        Adagrad={"lr": 0.1},
        RMSprop={"lr": 0.01},
        Adam={"lr": 0.05},
    ),
    others={"AdamW": {"lr": 0.05}, "NAdam": {"lr": 0.03}, "RAdam": {"lr": 0.1}, "Lion": {"lr": 0.01}},
    findings=judge(
        Claim(
            "After the saddle, Momentum and NAG are the fastest to the minimum",
            "notes 001, 8-7",
            SEVEN,
            lambda race: all_before(race, ("Momentum", "NAG"), ("SGD", *ADAPTIVE, "Adam"), _arrives),
        ),
        Claim(
            "With every method at its best learning rate, Momentum and NAG are the fastest to the minimum",
            "notes 001, 8-7",
            SEVEN,
            lambda race: all_before_at_best(race, ("Momentum", "NAG"), ("SGD", *ADAPTIVE, "Adam"), _arrives),
            own_runs=True,
        ),
        Claim(
            "AdaGrad and RMSProp are slower to the minimum than AdaDelta",
            "notes 001, 8-4 and 8-7",
            ADAPTIVE,
            lambda race: all_before(race, ["Adadelta"], ("Adagrad", "RMSprop"), _arrives),
        ),
        Claim(
            "With every method at its best learning rate, AdaGrad and RMSProp are slower than AdaDelta",
            "notes 001, 8-4 and 8-7",
            ADAPTIVE,
            lambda race: all_before_at_best(race, ["Adadelta"], ("Adagrad", "RMSprop"), _arrives),
            own_runs=True,
        ),
        Claim(
            "AdaGrad, AdaDelta and RMSProp leave the saddle of Beale's function first",
            "notes 001, 8-7",
            (*ADAPTIVE, *PLAIN),
            lambda race: all_before(
                race,
                ADAPTIVE,
                PLAIN,
                lambda path: path.first(distance(path, [(0.0, 1.0)]) > 1),
            ),
        ),
    ),
    headline=_arrival_headline("Beale's function"),
    animated=True,
)


# --- Rosenbrock, Himmelblau, Rastrigin


def _settles_sooner(race: Race) -> tuple[Verdict, str]:
    minima = race.scene.surface.minima
    return all_before(race, ["Momentum"], ["SGD"], lambda path: settled(path, minima))


ROSENBROCK = Scene(
    name="rosenbrock",
    title="Rosenbrock's function: a bent, flat valley",
    story="Finding the valley takes a few steps, following it to (1, 1) the rest: its floor falls a thousand times "
    "more gently than its walls.",
    surface=SURFACES["rosenbrock"],
    start=(-1.5, 2.0),
    steps=1500,
    runners=line_up(
        SEVEN,
        SGD={"lr": 0.001},
        Momentum={"lr": 0.001, "momentum": 0.9},
        NAG={"lr": 0.001, "momentum": 0.9},
        Adagrad={"lr": 0.5},
        RMSprop={"lr": 0.01},
        Adam={"lr": 0.1},
    ),
    others={"AdamW": {"lr": 0.1}, "NAdam": {"lr": 0.02}, "RAdam": {"lr": 0.01}, "Lion": {"lr": 0.003}},
    findings=judge(
        Claim(
            "Momentum converges faster than SGD at the same learning rate",
            "notes 001, 8-1",
            ("SGD", "Momentum"),
            _settles_sooner,
        ),
    ),
    headline=_arrival_headline("Rosenbrock's function"),
    animated=True,
)


def _ends(race: Race) -> dict[str, tuple[float, ...]]:
    """Return the minimum that each one ended in, or not far from; without those that ended elsewhere."""
    ends = {}
    for path in race.paths.values():
        away, at = min((float(np.linalg.norm(path.points[-1] - np.array(at))), at) for at in race.scene.surface.minima)
        if path.finite and away < 0.5:
            ends[path.name] = at
    return ends


def _spot(at: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{number:.3g}" for number in at) + ")"


def _himmelblau_headline(race: Race) -> str:
    ends = list(_ends(race).values())
    if not ends:
        return f"In {race.scene.steps} steps none of them gets to a minimum"
    common = max(sorted(set(ends)), key=ends.count)
    others = [name for name, at in _ends(race).items() if at != common]
    rest = f", {listed(others)} to another" if others else ""
    missing = len(race.paths) - len(ends)
    rest += f"; {missing} not yet at any" if missing else ""
    most = f"{ends.count(common)} of {len(race.paths)} go to {_spot(common)}"
    return f"One start, {len(set(ends))} of four minima: {most}{rest}"


def _other_starts(race: Race) -> tuple[Verdict, str]:
    ends = {}
    for start in ((0.0, 0.0), (0.0, 4.0), (-0.3, -1.0)):
        moved = replace(race.scene, start=start)
        path = run(moved, race.paths["SGD"].runner)
        ends[_spot(start)] = _ends(Race(moved, {"SGD": path})).get("SGD")
    said = ", ".join(f"from {a} to {_spot(b) if b else 'no minimum'}" for a, b in ends.items())
    return None if None in ends.values() else len(set(ends.values())) > 1, f"SGD: {said}"


HIMMELBLAU = Scene(
    name="himmelblau",
    title="Himmelblau's function: four minima, equally deep",
    story="All start from one point. Where they end depends on the start, and on how far they shoot.",
    surface=SURFACES["himmelblau"],
    start=(0.0, 0.0),
    steps=200,
    runners=line_up(
        SEVEN,
        SGD={"lr": 0.01},
        Momentum={"lr": 0.01, "momentum": 0.9},
        NAG={"lr": 0.01, "momentum": 0.9},
        Adagrad={"lr": 0.5},
        Adadelta={"eps": 1e-4},
        RMSprop={"lr": 0.05},
        Adam={"lr": 0.2},
    ),
    others={"RAdam": {"lr": 0.05}, "Lion": {"lr": 0.05}},
    findings=judge(
        Claim("The starting point decides where descent ends", "notes 000, review", ("SGD",), _other_starts),
    ),
    headline=_himmelblau_headline,
)


def _stuck(path: Path) -> Verdict:
    """Return whether it has come to rest in a minimum that is not the global one; None if it is not at rest."""
    return bool(path.losses[-1] > 0.5) if np.abs(path.gradients[-1]).max() < 0.01 else None


def _many_minima(race: Race) -> tuple[Verdict, str]:
    lowest = {path.name: f"{path.losses[-1]:.3g}" for path in race.paths.values()}
    stuck = _stuck(race.paths["SGD"])
    where = {
        True: "has come to rest above the global minimum, which is 0",
        False: "has come to rest in the global minimum",
        None: "has not come to rest",
    }
    return stuck, f"SGD {where[stuck]}; f at the end: {each(lowest)}"


def _escapes_lower(race: Race) -> tuple[Verdict, str]:
    sgd, momentum = race.paths["SGD"].losses[-1], race.paths["Momentum"].losses[-1]
    mu = race.paths["Momentum"].runner.options.get("momentum")
    stuck = _stuck(race.paths["SGD"])
    rests = stuck and at_rest(race.paths["Momentum"])  # SGD has to be in one, to be left behind there
    on = moving(race, "Momentum")
    return bool(momentum < sgd - 0.5) if rests else None, (
        f"f at the end: SGD {sgd:.3g}, Momentum ({mu}) {momentum:.3g}{on}"
    )


def _rastrigin_headline(race: Race) -> str:
    ends = {path.name: float(path.losses[-1]) for path in race.paths.values()}
    best = min(ends, key=ends.__getitem__)
    if not any(came_down(race, path) or path.losses[-1] < path.losses[0] - 0.5 for path in race.paths.values()):
        return "None gets out of the dent that it starts in"
    found = sum(value < 0.5 for value in ends.values())
    if found:
        return f"{found} of {len(ends)} find the global minimum among a hundred local ones"
    return f"None finds the global minimum among a hundred; {best} gets lowest, f = {ends[best]:.2g}"


RASTRIGIN = Scene(
    name="rastrigin",
    title="Rastrigin's function: local minima everywhere",
    story="A bowl with a hundred dents. Momentum and NAG run with a momentum of 0.98: less does not get out of a dent.",
    surface=SURFACES["rastrigin"],
    start=(2.4, 1.6),
    steps=400,
    runners=line_up(
        SEVEN,
        SGD={"lr": 0.002},
        Momentum={"lr": 0.002, "momentum": 0.98},
        NAG={"lr": 0.002, "momentum": 0.98},
        Adagrad={"lr": 1.0},
        Adadelta={"eps": 1e-4},
        RMSprop={"lr": 0.1},
        Adam={"lr": 0.3},
    ),
    others={"RAdam": {"lr": 0.01}, "Lion": {"lr": 0.04}},
    findings=judge(
        Claim("Where there are many local minima, descent ends in one of them", "notes 002", ("SGD",), _many_minima),
        Claim("Momentum can get out of local minima", "notes 001, 8-1; 000", ("SGD", "Momentum"), _escapes_lower),
    ),
    headline=_rastrigin_headline,
)


LANDSCAPES = (RAVINE, SEVEN_METHODS, SADDLE, BEALE, ROSENBROCK, HIMMELBLAU, RASTRIGIN)
"""The scenes of this file, in the order shown."""
