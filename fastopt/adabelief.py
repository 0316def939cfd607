"""AdaBelief: Adam that trusts a gradient the more, the closer it is to the average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.declare import DECOUPLED, MOMENT, STEP, Convention, Slot, public
from fastopt.optimizer import Optimizer
from fastopt.typing import Betas, CommonOptions, Hyperparameter, Number, Params, Unpack


@public
class AdaBelief(Optimizer):
    """AdaBelief: Adam, divided by the distance of the gradient from its average instead of its size.

    In the order computed, with ``bc1 = 1 - beta1**t``, ``bc2 = 1 - beta2**t``::

        exp_avg     = beta1 * exp_avg + (1 - beta1) * g
        d           = g - exp_avg
        exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * d * d + eps_root
        p           = p - (lr / bc1) * exp_avg / (sqrt(exp_avg_var / bc2) + eps)

    The paper adds ``eps`` where optax adds ``eps_root``.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 1e-3; optax has none: give one.
    betas : pair of floats in [0, 1), or schedules
        Default (0.9, 0.999).
    eps : float >= 0
        Default 1e-8 (paper), 1e-16 (optax). Under the paper it is in the root, too: the square of what one would give
        to `Adam` has about the same effect.
    weight_decay : float >= 0 or schedule
        Default 0; paper only: ``p = p * (1 - lr * weight_decay)`` first.
    eps_root : float >= 0
        Default 1e-16; optax only.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``exp_avg``, ``exp_avg_var``, like the parameter, as the authors' package for PyTorch calls them. Its form is
    the paper's with ``rectify=False``; ``rectify=True``, its default, is not offered, nor is optax's ``nesterov=True``.
    ``exp_avg_var`` is not flushed: it is never below ``eps_root``.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.AdaBelief(w, lr=0.1)
    >>> for g in ([0.5, 0.5], [0.5, -0.5]):         # the first is sure of its direction, the second is not
    ...     opt.step(np.array(g))
    >>> w.round(3).tolist()
    [0.772, -2.106]

    References
    ----------
    Zhuang et al., AdaBelief optimizer: adapting stepsizes by the belief in observed gradients (2020), algorithm 2.
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay", "eps_root")
    slots = (STEP, Slot("exp_avg", low=MOMENT, narrow="moment"), Slot("exp_avg_var", narrow="square"))
    conventions = {
        "paper": Convention(
            {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}, {True: DECOUPLED}, {"eps_twice": 1}
        ),
        "optax": Convention(
            {"lr": None, "betas": (0.9, 0.999), "eps": 1e-16, "eps_root": 1e-16}, {}, {"eps_twice": 0}
        ),
    }

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, *, eps_root: Number | None = None,
        convention: Literal["paper", "optax"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "eps_root": eps_root}
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "adabelief"
