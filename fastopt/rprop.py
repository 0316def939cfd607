"""Rprop: steps that know only the sign of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.declare import STEP, Convention, Slot, public
from fastopt.optimizer import Optimizer
from fastopt.typing import CommonOptions, Hyperparameter, Pair, Params, Unpack


@public
class Rprop(Optimizer):
    """Rprop: each element has a step size of its own, which grows while the gradient keeps its sign.

    In the order computed, with s, the step size, which is lr before the first step::

        s    = s * etas[1]  where g * prev > 0,   s * etas[0]  where g * prev < 0
        s    = min(max(s, step_sizes[0]), step_sizes[1])
        g    = 0            where g * prev < 0          (the parameter waits for a step)
        p    = p - s * sign(g)
        prev = g

    It is meant for gradients of the whole data: noise changes signs, and the steps shrink.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        The step size at the first step of a parameter; later values have no effect. Default 0.01.
    etas : pair of floats
        The factors after a change of sign, in (0, 1), and after none, above 1. Default (0.5, 1.2).
    step_sizes : pair of floats > 0
        The smallest and the largest step size. Default (1e-6, 50).
    **common
        See `Optimizer`, also for the errors. There is no weight decay: with it, the sign would be that of another sum.

    Notes
    -----
    State, like the parameter: ``prev``, ``step_size``. The form is PyTorch's, which is known as iRprop-.
    The product ``g * prev`` may underflow: gradients below 1e-23 (float32) never change the step size, as in PyTorch.
    An element whose gradient is NaN does not move, and its step size stays for two steps.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -100.0])
    >>> opt = fastopt.Rprop(w, lr=0.1)
    >>> for _ in range(100):
    ...     opt.step(2 * w)                         # the gradient of sum(w**2); its size does not matter
    >>> bool(np.abs(w).max() < 1e-4)
    True

    References
    ----------
    Riedmiller & Braun, A direct adaptive method for faster backpropagation learning (1993); Igel & Huesken, Improving
    the Rprop learning algorithm (2000), for this form.
    """

    hyperparameters = ("lr", "etas", "step_sizes")
    slots = (STEP, Slot("prev", narrow="sign"), Slot("step_size"))
    conventions = {"torch": Convention({"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)})}

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, etas: Pair | None = None,
        step_sizes: Pair | None = None, *, convention: Literal["torch"] | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {"lr": lr, "etas": etas, "step_sizes": step_sizes}
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "rprop"
