"""What cases.py does, for the classes of `fastopt.torch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from migration import cases

import fastopt.torch


def tensors(arrays: list[np.ndarray]) -> list[torch.nn.Parameter]:
    """Arrays as parameters."""
    return [torch.nn.Parameter(torch.from_numpy(array)) for array in arrays]


def build(case: Mapping[str, Any], params: list[torch.nn.Parameter], options: bool = True) -> torch.optim.Optimizer:
    """An optimizer with all options of the case, or with none, before its first step."""
    groups, rest = [], iter(enumerate(params))
    for group in case["groups"]:
        mine = [next(rest) for _ in group["params"]]
        members = [(case["names"][i], p) if case["names"] else p for i, p in mine]
        given = {key: cases.decoded(value) for key, value in group["options"].items()} if options else {}
        groups.append({"params": members, **given})
    return getattr(fastopt.torch, case["class"])(groups)


def step(
    opt: torch.optim.Optimizer, params: list[torch.nn.Parameter], folder: cases.Folder, case: Mapping[str, Any],
    sets: list[Any],
) -> None:  # fmt: skip
    """A step with each of these sets of gradients."""
    for which in sets:
        for p, grad in zip(params, cases.gradients(folder, case, which), strict=True):
            p.grad = None if grad is None else torch.from_numpy(grad.copy("K"))
        opt.step()


def reloaded(opt: torch.optim.Optimizer, case: Mapping[str, Any]) -> None:
    """Load an optimizer's own state dict where that changes it, as it changes what is loaded from a file.

    PyTorch's `load_state_dict` casts NAdam's product, a float32, to the type of the parameter. With float64 parameters
    the next product is then one of float64, there as here, and other last places follow.
    """
    if case["class"] == "NAdam":
        opt.load_state_dict(opt.state_dict())


def described(opt: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> dict[str, Any]:
    """Parameters and state, as ``cases.json`` has them."""
    state = [{name: cases.hexed(widened(name, x)) for name, x in opt.state.get(p, {}).items()} for p in params]
    return {"params": [cases.hexed(p.detach().numpy()) for p in params], "state": state}


def widened(name: str, value: torch.Tensor) -> np.ndarray:
    """The array of a state; NAdam's product as a float64, which it may have become (see `reloaded`)."""
    return value.double().numpy() if name == "mu_product" else value.numpy()
