"""Every learning-rate schedule of fastopt, drawn, and checked against the steps that an optimizer takes with it.

    python schedule_zoo.py --out pictures

A schedule is a function of the number of steps taken so far. It stands where an optimizer takes a number: for the
learning rate, the momentum, the weight decay, one of the betas. `Warmup` and `Join` make new ones out of others, and
any other callable will do. The names are those of PyTorch, optax and Keras; the docstring of each has its formula and
its source. What is drawn is looked up in `fastopt.schedules`: a schedule without a row below is an error.
"""

from __future__ import annotations

import sys

import numpy as np
from _common import BLUE, GREEN, GREY, ORANGE, figure, parser, tidy, verdict

import fastopt
from fastopt import schedules
from fastopt.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    EmaWarmup,
    Exponential,
    InverseSqrt,
    InverseTime,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Step,
    Warmup,
)

STEPS = 1000

ZOO = {
    "Constant": Constant(0.1),
    "Step": Step(0.1, 250, gamma=0.5),
    "MultiStep": MultiStep(0.1, [500, 750], gamma=0.2),
    "Exponential": Exponential(0.1, 0.1, decay_steps=STEPS),
    "InverseTime": InverseTime(0.1, 1.0, decay_steps=200),
    "InverseSqrt": InverseSqrt(0.1, 100),
    "Linear": Linear(0.1, 0.0, STEPS),
    "Polynomial": Polynomial(0.1, STEPS, power=2.0),
    "Cosine": Cosine(0.1, STEPS),
    "CosineRestarts": CosineRestarts(0.1, 150, period_mult=2),
    "OneCycle": OneCycle(0.1, STEPS),
    "ReduceOnPlateau": ReduceOnPlateau(0.1, factor=0.5, patience=9),
    "Warmup": Warmup(100, 0.1),
    "EmaWarmup": EmaWarmup(0.95),
    "Join": Join([0.1, Linear(0.1, 0.02, 300), 0.02], [300, 600]),
    # Combinations, and the momentum's turn:
    "Warmup, then Cosine": Warmup(100, Cosine(0.1, STEPS - 100)),
    "warm up, stay, fall": Join([Warmup(100, 0.1), Linear(0.1, 0.0, 200)], [800]),
    "any function of the step": lambda step: 0.1 / (1 + step // 100),
    "momentum for OneCycle": OneCycle(0.85, STEPS, div_factor=0.85 / 0.95, final_div_factor=1),
}
MOMENTUM = "momentum for OneCycle"


def losses():
    """What `ReduceOnPlateau` is shown after every 20 steps: a loss that gets stuck twice."""
    n = np.arange(STEPS // 20)
    return 0.5 ** np.minimum(n, 10) + 0.5 ** np.clip(n - 20, 0, 10)


def rate_taken(optimizer, p):
    """How far a step moves one number against a gradient of 1: under SGD that is the learning rate."""
    p[:] = 0
    optimizer.step(np.ones(1))
    return abs(p[0])


def momentum_taken(optimizer):
    """What a step leaves of a velocity of 1, without a gradient: that is the momentum."""
    velocity = optimizer.state[0]["velocity"]
    velocity[:] = 1
    optimizer.step(np.zeros(1))
    return velocity[0]


def drive(name, schedule):
    """The values that an optimizer takes from the schedule, and those that the schedule gives by itself."""
    p, watched = np.zeros(1), losses()
    if name == MOMENTUM:
        optimizer = fastopt.Momentum(p, lr=1.0, momentum=schedule)
    else:
        optimizer = fastopt.SGD(p, lr=schedule)
    taken, given = [], []
    for step in range(STEPS):
        if isinstance(schedule, ReduceOnPlateau) and step and step % 20 == 0:
            schedule.update(watched[step // 20 - 1])
        given.append(schedule(step))
        taken.append(momentum_taken(optimizer) if name == MOMENTUM else rate_taken(optimizer, p))
    return np.array(taken), np.array(given)


def plot(axes, name, values):
    tidy(axes, name)
    if name in (MOMENTUM, "EmaWarmup"):  # no learning rates
        axes.plot(values, color=GREEN, linewidth=1.8)
        axes.set_ylim(0.8 if name == MOMENTUM else 0.0, 1.0)
        return
    axes.plot(values, color=ORANGE if " " in name else BLUE, linewidth=1.8)
    axes.set_ylim(-0.004, 0.108)
    if name == "ReduceOnPlateau":
        axes.plot(np.arange(20, STEPS + 1, 20), losses() / 20, color=GREY, linewidth=1, linestyle=":")
        axes.text(0.95, 0.9, "dotted: the loss", fontsize=7, color=GREY, ha="right", transform=axes.transAxes)


def main() -> int:
    args = parser(__doc__, seed=False).parse_args()
    fig = figure("A hyperparameter can be any function of the step", height=9.4)
    panels = list(fig.subplots(-(-len(ZOO) // 3), 3, sharex=True).flat)
    for spare in panels[len(ZOO) :]:
        spare.set_visible(False)
    exact = {}
    print(f"{'schedule':<28}{'first':>10}{'half-way':>10}{'last':>10}  to the bit")
    for axes, (name, schedule) in zip(panels, ZOO.items(), strict=False):
        taken, given = drive(name, schedule)
        exact[name] = np.array_equal(taken, given)
        plot(axes, name, taken)
        figures = "".join(f"{value:>10.4f}" for value in (taken[0], taken[STEPS // 2], taken[-1]))
        print(f"{name:<28}{figures}  {'yes' if exact[name] else 'NO'}")
    fig.supxlabel("step", fontsize=9)
    fig.supylabel("learning rate (green: momentum, decay of averages)", fontsize=9)
    picture = args.out / "schedule_zoo.png"
    fig.savefig(picture)
    missing = sorted(set(schedules.__all__) - {"Schedule"} - ZOO.keys())
    claims = {
        "all schedules of fastopt.schedules are here" + "".join(f", not {name}" for name in missing): not missing,
        "what the optimizer takes is the schedule's value, to the bit, at every step": all(exact.values()),
        "ReduceOnPlateau fell by half each time the loss got stuck, twice": ZOO["ReduceOnPlateau"].value == 0.1 / 4,
    }
    return verdict(claims, picture)


if __name__ == "__main__":
    sys.exit(main())
