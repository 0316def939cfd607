"""Scenes: what tests play in a process of its own, so that a crash is seen as what it is.

A test file with scenes is also the program that plays them. It prints what a scene counted, as JSON; whatever is wrong
ends it with a traceback.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def check(fine: bool, *what: Any) -> None:
    """Raise, saying what was being done, unless things are as they should be."""
    if not fine:
        raise AssertionError(", ".join(map(str, what)))


def played(scene: Callable[..., Any], folder: Path, *numbers: int, preload: str = "") -> dict[str, int]:
    """What a scene counted. It gets a folder and numbers, and its process a library to preload."""
    arguments = [inspect.getfile(scene), scene.__name__, str(folder), *map(str, numbers)]
    env = {**os.environ, "PYTHONPATH": joined(str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))}
    if preload:
        env["LD_PRELOAD"] = joined(os.environ.get("LD_PRELOAD"), preload)
    done = subprocess.run([sys.executable, "-X", "faulthandler", *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


def joined(*paths: str | None) -> str:
    """A list of paths, as environment variables have it."""
    return os.pathsep.join(filter(None, paths))


def play(*scenes: Callable[..., Any]) -> None:
    """Be the program: play the scene that the command line names."""
    name, folder, *numbers = sys.argv[1:]
    (scene,) = (scene for scene in scenes if scene.__name__ == name)
    print(json.dumps(scene(Path(folder), *map(int, numbers))))
