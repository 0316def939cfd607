"""Every scene by name, and how the command line changes one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from .landscapes import LANDSCAPES, SEVEN
from .lessons import LESSONS
from .race import Runner, Scene
from .rates import suited

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

    An optimizer that the scene does not list gets a learning rate that suits it: that of its portrait, or of `others`.
    """
    runners: Sequence[Runner] = scene.runners
    if optimizers is not None:
        known = {name: [r for r in scene.runners if r.optimizer == name] for name in optimizers}
        runners = [r for name in optimizers for r in known[name] or [_newcomer(name, scene)]]
    if lr is not None:
        # Labels that tell a rate would tell a wrong one; who then is the same runs once.
        runners = [
            replace(runner, options={**runner.options, "lr": lr}, label=re.sub(", rate .*", "", runner.label))
            for runner in runners
        ]
        runners = list({runner.name: runner for runner in runners}.values())
    return replace(scene, runners=tuple(runners), steps=steps or scene.steps, start=start or scene.start)


def _newcomer(name: str, scene: Scene) -> Runner:
    """Return a runner for an optimizer that a scene does not list."""
    batch_size = min((runner.batch_size for runner in scene.runners if runner.batch_size), default=None)
    return Runner(name, suited(name, scene), batch_size=batch_size)
