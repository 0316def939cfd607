"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.declare import DECOUPLED, STEP, Convention, Slot, public
from fastopt.optimizer import Optimizer
from fastopt.typing import Betas, CommonOptions, Hyperparameter, Params, Unpack


@public
class Lion(Optimizer):
    """Lion: every element moves by lr, in the direction of the sign of an interpolated momentum.

    In the order computed::

        u       = sign(beta1 * exp_avg + (1 - beta1) * g)       (sign(0) = 0, sign(NaN) = NaN)
        p       = p * (1 - lr * weight_decay) - lr * u
        exp_avg = beta2 * exp_avg + (1 - beta2) * g

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 1e-4 (paper), 1e-3 (keras); optax has none: give one.
    betas : pair of floats in [0, 1), or schedules
        Default (0.9, 0.99).
    weight_decay : float >= 0 or schedule
        Decoupled. Default 0 (paper, keras), 1e-3 (optax).
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``exp_avg``, like the parameter. DeepSpeed takes +-1 for the sign of zero.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Lion(w, lr=0.1)
    >>> opt.step(np.array([0.5, -50.0]))            # only the sign of the gradient counts
    >>> w.tolist()
    [0.9, -1.9]

    References
    ----------
    Chen et al., Symbolic discovery of optimization algorithms (2023).
    """

    hyperparameters = ("lr", "betas", "weight_decay")
    # Not flushed: however small a moment is, its sign moves the parameter by lr.
    slots = (STEP, Slot("exp_avg", narrow="moment"))
    conventions = {
        "paper": Convention({"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}, {True: DECOUPLED}),
        "keras": Convention({"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0}, {True: DECOUPLED}),
        "optax": Convention({"lr": None, "betas": (0.9, 0.99), "weight_decay": 1e-3}, {True: DECOUPLED}),
    }

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None,
        weight_decay: Hyperparameter | None = None, *,
        convention: Literal["paper", "keras", "optax"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "lion"
