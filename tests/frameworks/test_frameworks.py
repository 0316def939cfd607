"""docs/frameworks.md: each framework trains on fastopt as on stock PyTorch, and the steps are fastopt's.

A framework that is not installed is a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest
from frameworks import trainings
from frameworks.trainings import TRAININGS

STEPS = 40
# Measured in float32: up to 3e-7. Where weights are rounded to bfloat16 for the forward pass, the last bit of a weight
# may become one of bfloat16: 5e-5, and as much between PyTorch's own implementations. Of a model in bfloat16 weights
# are rounded at each step, by PyTorch after each operation.
TOLERANCE = dict.fromkeys(TRAININGS, 2e-6) | {
    "peft": 1e-3, "transformers autocast": 1e-3, "transformers bf16": 2e-2,
}  # fmt: skip
INSTALLING = [name for name, one in TRAININGS.items() if trainings.INSTALL in trainings.code_of(one)]

# One worker of pytest-xdist runs what is compared with the same stock training.
every_training = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(one.stock)) for name, one in TRAININGS.items()]
)


@cache
def answers(name: str, *variants: str) -> list[dict]:
    """What a training answers, in a process of its own."""
    command = [sys.executable, trainings.__file__, name, "--count"]
    given = "".join(f"{variant} {STEPS}\n" for variant in variants)
    done = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def stock(name: str) -> dict:
    return answers(TRAININGS[name].stock, "stock")[0]


def ours(name: str) -> dict:
    return answers(name, "fastopt", "idle")[0]


def idle(name: str) -> dict:
    return answers(name, "fastopt", "idle")[1]


def apart(one: dict, other: dict) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(one["losses"], other["losses"], strict=True))


@every_training
def test_the_curve_is_that_of_stock_pytorch(name):
    difference = apart(ours(name), stock(name))
    assert difference <= TOLERANCE[name]


@every_training
def test_every_step_is_compiled(name):
    steps, tensors = stock(name)["steps"], stock(name)["tensors"]
    # A step that is left to PyTorch is a compiled one over no tensor.
    compiled = 0 if name == "transformers bf16" else tensors
    assert (ours(name)["steps"], ours(name)["tensors"]) == (steps, compiled)
    assert steps >= STEPS // 2


@every_training
def test_a_step_that_does_nothing_is_noticed(name):
    difference = apart(idle(name), stock(name))
    assert difference > max(10 * TOLERANCE[name], 1e-3)
    steps = idle(name)["steps"]
    assert steps == 0


@pytest.mark.parametrize("name", INSTALLING)
def test_without_install_no_step_is_compiled(name):
    steps = answers(name, "forgotten")[0]["steps"]
    assert steps == 0


def test_every_block_of_the_page_is_run():
    assert {*trainings.blocks()} == {(one.section, one.place) for one in TRAININGS.values()}
