"""Every scene by name, and how the command line changes one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from .landscapes import LANDSCAPES, SEVEN
from .lessons import LESSONS
from .race import Runner, Scene

__all__ = ["SCENES", "SEVEN", "changed"]

SCENES: dict[str, Scene] = {scene.name: scene for scene in (*LANDSCAPES, *LESSONS)}
"""Every scene by name, in the order shown."""


def changed(
    scene: Scene,
    optimizers: Sequence[str] | None = None,
    lr: float | None = None,
    steps: int | None = None,
    start: tuple[float, ...] | None = None,
) -> Scene:
    """Return the scene with other optimizers, learning rate, number of steps or starting point.

    An optimizer that the scene does not know runs with the defaults of its class.
    """
    runners: Sequence[Runner] = scene.runners
    if optimizers is not None:
        known = {name: [r for r in scene.runners if r.optimizer == name] for name in optimizers}
        batch_size = min((r.batch_size for r in scene.runners if r.batch_size), default=None)
        runners = [r for name in optimizers for r in known[name] or [Runner(name, batch_size=batch_size)]]
    if lr is not None:
        # Labels that tell a rate would tell a wrong one; who then is the same runs once.
        runners = [
            replace(runner, options={**runner.options, "lr": lr}, label=re.sub(", rate .*", "", runner.label))
            for runner in runners
        ]
        runners = list({runner.name: runner for runner in runners}.values())
    return replace(scene, runners=tuple(runners), steps=steps or scene.steps, start=start or scene.start)
