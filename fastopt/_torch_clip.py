"""Clipping of gradients in place, as ``torch.nn.utils`` has it: `clip_grad_norm_`, `clip_grad_value_`."""

from __future__ import annotations

import types
from collections.abc import Iterable
from math import inf, isfinite, isnan
from typing import Any

import torch
from torch.nn.utils import clip_grad as stock

from fastopt._tensors import Host
from fastopt.engine import GradientClipper
from fastopt.errors import ConcurrentStepError, TensorNonFiniteError

__all__ = ["clip_grad_norm_", "clip_grad_value_"]

STOCK_NORM, STOCK_VALUE = stock.clip_grad_norm_, stock.clip_grad_value_


def _no_options(*_: Any) -> Any:
    raise RuntimeError("a clipper has no parameters")


def _new_clipper() -> GradientClipper:
    return GradientClipper(_no_options, _no_options, Host())


_clipper: GradientClipper | None = None


def _clipped(method: str, *args: Any) -> Any:
    """What a method of the clipper returns; of another one while another thread uses it."""
    global _clipper
    if _clipper is None:
        _clipper = _new_clipper()
    try:
        return getattr(_clipper, method)(*args)
    except ConcurrentStepError:
        return getattr(_new_clipper(), method)(*args)


def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0,
    error_if_nonfinite: bool = False, foreach: bool | None = None,
) -> torch.Tensor:  # fmt: skip
    """Drop-in for ``torch.nn.utils.clip_grad_norm_``: clip the norm of all gradients, in place.

    The gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``. The norm is that of `fastopt.norm`: it is
    summed in float64, in an order that does not depend on the threads, where PyTorch sums in the gradients' own type
    (of 10,000,000 float32 elements it is off by 4e-4). The factor is computed in float64 and rounded once.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Whose gradients are clipped; those without one are left out.
    max_norm : float
        What the norm is not to exceed.
    norm_type : float, default 2.0
        2 or ``inf``, the largest magnitude; any other order is left to PyTorch.
    error_if_nonfinite : bool, default False
        Whether a norm that is infinite or NaN is an error. Nothing is written then.
    foreach : bool, optional
        As in PyTorch, which takes the gradients that are left to it; else without effect.

    Returns
    -------
    Tensor
        The norm before clipping, of no dimension: float64 if a gradient is, else float32.

    Raises
    ------
    TensorNonFiniteError
        Which is a RuntimeError: see `error_if_nonfinite`.

    Notes
    -----
    If any gradient is not a dense float32 or float64 tensor on the CPU of PyTorch's own class (a `DTensor`, a sparse
    one, half precision, one that shares memory with another), PyTorch's function takes them all.

    Examples
    --------
    With PyTorch installed::

        import torch, fastopt.torch

        model = torch.nn.Linear(3, 1)
        model(torch.ones(2, 3)).sum().backward()
        norm = fastopt.torch.clip_grad_norm_(model.parameters(), 1.0)
    """
    params = _listed(parameters)
    order = float(norm_type)
    if params and order in (2.0, inf):
        found = _clipped("clip_norm", params, float(max_norm), order, bool(error_if_nonfinite))
        if found is not None:
            norm, has_double = found
            if error_if_nonfinite and not isfinite(norm):
                raise TensorNonFiniteError(
                    f"The total norm of order {order} for gradients from `parameters` is non-finite ({norm}), so it "
                    "cannot be clipped. To disable this error and scale the gradients by the non-finite norm anyway, "
                    "set `error_if_nonfinite=False`"
                )
            return torch.full((), norm, dtype=torch.float64 if has_double else torch.float32, device="cpu")
    return STOCK_NORM(_as_given(parameters, params), max_norm, norm_type, error_if_nonfinite, foreach)


def clip_grad_value_(
    parameters: torch.Tensor | Iterable[torch.Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Drop-in for ``torch.nn.utils.clip_grad_value_``: put every element of all gradients in a range, in place.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Whose gradients are clipped; those without one are left out.
    clip_value : float
        Elements beyond ``-clip_value`` or ``clip_value`` become these; NaN stays.
    foreach : bool, optional
        As for `clip_grad_norm_`, of which the notes are true here, too.
    """
    params, limit = _listed(parameters), float(clip_value)
    if isnan(limit) or _clipped("clip_value", params, limit) is None:
        given = [p for p in params if p.grad is not None]
        if given:  # PyTorch's function raises where there is none
            STOCK_VALUE(given, clip_value, foreach)


def _listed(parameters: Any) -> list[torch.Tensor]:
    return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)


def _as_given(parameters: Any, params: list[torch.Tensor]) -> Any:
    """The parameters for PyTorch's function, which warns of an empty generator."""
    return parameters if isinstance(parameters, types.GeneratorType) and not params else params
