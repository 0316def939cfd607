"""What holds for every adapter: its examples run, and nothing of fastopt but itself needs its library."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

ADAPTERS = ("thinc", "sklearn", "scipy", "keras")  # the libraries have the same names
EXAMPLES = """
import doctest, importlib, sys
found = doctest.testmod(importlib.import_module(sys.argv[1]))
sys.exit(found.failed or not found.attempted)
"""
BLOCKED = """
import sys
from importlib import import_module
sys.modules[sys.argv[1]] = None          # as if it were not installed
for name in ("fastopt", "fastopt.functional", "fastopt.training", "fastopt.cli"):
    import_module(name)
try:
    import_module(f"fastopt.{sys.argv[1]}")
except ImportError as error:
    print(error)
"""


def run(program: str, *arguments: str) -> str:
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments], capture_output=True, text=True, timeout=120,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_examples_of_an_adapter_run(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    run(EXAMPLES, f"fastopt.{name}")


@pytest.mark.parametrize("name", ADAPTERS)
def test_without_its_library_only_the_adapter_is_missing(name):
    assert name in run(BLOCKED, name)
