"""What test files share: ways to build every optimizer, and the proof that a failed call changed nothing."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastopt import OPTIMIZERS, FastoptError, Optimizer, reference
from fastopt.declare import arrays_of, numbers_of, saved_numbers

ALL = [(cls, convention) for cls in OPTIMIZERS.values() for convention in cls.conventions]
"""Every class under every convention that it exists in."""
ALL_IDS = [f"{cls.__name__}-{convention}" for cls, convention in ALL]


def values(shape: Any = (4, 5), dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Ordinary numbers, the same for the same seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def three(seed: int = 0) -> list[np.ndarray]:
    """Three arrays: float32 in C and in Fortran order, and float64."""
    return [values(seed=seed), values((3, 4), seed=seed + 1).copy("F"), values((7,), np.float64, seed + 2)]


def needed(cls: type[Optimizer], convention: str | None = None) -> dict[str, Any]:
    """Values for what a convention has no default for."""
    convention = convention or next(iter(cls.conventions))
    defaults = cls.conventions[convention].defaults
    return {key: {"lr": 0.02, "weight_decay": 0.03}[key] for key, value in defaults.items() if value is None}


def build(cls: type[Optimizer], params: Any, convention: str | None = None, **options: Any) -> Optimizer:
    """An optimizer with a value for everything that has no default."""
    return cls(params, **{**needed(cls, convention), "convention": convention, **options})


def frozen(value: Any) -> Any:
    """A comparable copy of plain data; arrays to the bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes(order="A")
    if isinstance(value, Mapping):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [frozen(item) for item in value]
    return type(value), repr(value)


NUMBER_NAMES = frozenset(
    {"step"} | {name for cls in OPTIMIZERS.values() for key in cls.conventions for name in saved_numbers(cls, key)}
)
"""What the state of a parameter holds beside arrays."""


def undecayed(cls: type[Optimizer]) -> dict[str, float]:
    """The option that says no weight decay, where a class has one: AdamW of the paper has to be given it."""
    return {"weight_decay": 0.0} if "weight_decay" in cls.hyperparameters else {}


TILE, STAGE_TILE = 1024, 256
SIZES = (0, 1, 15, STAGE_TILE + 1, TILE, TILE + 1, 3 * TILE + 7)
"""Elements of arrays around the borders of what is summed, and of what is stepped, at once."""


def arrays(sizes=SIZES, dtypes=(np.float32, np.float64), seed=0, by=1.0) -> list[np.ndarray]:
    """Arrays of several sizes and types in turn."""
    rng = np.random.default_rng(seed)
    return [(by * rng.standard_normal(n)).astype(dtypes[i % len(dtypes)]) for i, n in enumerate(sizes)]


def assert_like_the_twin(opt: Any, steps: int = 3, grads: Any = arrays, **more: Any) -> None:
    """Step an optimizer and its twin: the same bits of parameters, states and norms. Gradients stay, or are zeroed."""
    from conftest import differing  # which imports this module

    zeroes = [group.get("zero_grads") for group in opt.param_groups for _ in group["params"]]
    twin = reference.twin(opt)
    for k in range(steps):
        g = grads(seed=k + 1)
        before = copy.deepcopy(g)
        opt.step(g, **more)
        twin.step(before, **more)
        for mine, its in zip(opt.params, twin.params, strict=True):
            assert not differing(mine, its).any()
        for mine, its in zip(opt._plan.states, twin.state, strict=True):
            for name in mine:
                assert name == "ema" or not differing(np.asarray(mine[name]), its[name]).any(), name
        for i in range(len(zeroes)):
            saved = opt._plan.saved_state(i)
            assert twin.begun[i] == ("ema" in saved)
            assert not twin.begun[i] or not differing(saved["ema"], twin.state[i]["ema"]).any()
        assert repr(opt.grad_norm) == repr(twin.grad_norm)
        for now, then, zeroed in zip(g, before, zeroes, strict=True):
            assert (now is None and then is None) or same_bits(now, np.zeros_like(then) if zeroed else then)


def names_of(cls: type[Optimizer], optional: bool | None = False) -> tuple[str, ...]:
    """The names of state arrays: those that are always there, those that some options bring, or (None) all."""
    return tuple(slot.name for slot in arrays_of(cls, optional))


def numbers_given(cls: type[Optimizer]) -> tuple[str, ...]:
    """The numbers that ``fastopt.functional`` is given beside the state arrays."""
    return tuple(slot.name for slot in numbers_of(cls) if slot.like == "number")


def frozen_optimizer(opt: Optimizer) -> Any:
    """All that can be seen of an optimizer: parameters, live state, counts, carried numbers, groups."""
    return frozen([opt.params, opt.state, opt.steps, opt.skipped_steps, opt.param_groups, opt.state_dict()])


@contextmanager
def unchanged(opt: Optimizer, error: type[Exception], match: str = "", *others: np.ndarray) -> Iterator[None]:
    """The body raises this error, and neither the optimizer nor the other arrays have changed by a bit."""
    before = frozen_optimizer(opt), frozen(others)
    with pytest.raises(error, match=match or None) as caught:
        yield
    assert isinstance(caught.value, FastoptError)
    assert (frozen_optimizer(opt), frozen(others)) == before


def same_bits(a: Any, b: Any) -> bool:
    """Whether two lists of arrays (or two arrays) are equal to the bit."""
    return frozen(a if isinstance(a, np.ndarray) else list(a)) == frozen(
        b if isinstance(b, np.ndarray) else list(b)
    )


def optimizer_of(cls, **options):
    """An optimizer over one small tensor of PyTorch's, after one step."""
    import torch

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    opt = cls([p], **options)
    opt.step()
    return opt


README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(\S*).*?\n(.*?)^```", re.M | re.S)


def python_blocks(page: str) -> list[str]:
    """The Python code of a page, block by block."""
    return [body for kind, body in FENCE.findall(page) if kind == "python"]


def readme_blocks(torch: bool) -> dict[str, str]:
    """The Python blocks of README, by their first lines: those that import PyTorch, or the others."""
    blocks = python_blocks(README.read_text("utf-8"))
    return {body.split("\n")[0] + f" #{k}": body for k, body in enumerate(blocks) if torch == ("torch" in body)}


def runs_when_pasted(code: str, folder: Path) -> str:
    """What a program prints that is run by itself, in an empty folder; raises if it fails."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, encoding="utf-8", timeout=120, cwd=folder,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
