"""RMSprop, plain and centered, with and without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.declare import DECOUPLED, L2, MEAN, MOMENT, SQUARE, STEP, Convention, Slot, is_zero, public
from fastopt.optimizer import Optimizer
from fastopt.typing import CommonOptions, Hyperparameter, Number, Params, Unpack


@public
class RMSprop(Optimizer):
    """RMSprop: the gradient divided by the root of the running average of its square.

    In the order computed::

        g          = g + weight_decay * p               (Keras: p = p * (1 - lr * weight_decay) first)
        square_avg = alpha * square_avg + (1 - alpha) * g * g
        grad_avg   = alpha * grad_avg + (1 - alpha) * g                 (centered)
        s          = square_avg                                         (centered: max(0, square_avg - grad_avg**2))
        d          = g / (sqrt(s) + eps)                                eps_placement="outside"
                     g / sqrt(s + eps)                                  eps_placement="inside"
        p          = p - lr * d                                         (no momentum)
        buf        = momentum * buf + d;  p = p - lr * buf              (torch)
        buf        = momentum * buf + lr * d;  p = p - buf              (keras, optax)

    ``nesterov`` (optax) steps by ``momentum * buf + d`` instead of ``buf``; ``bias_correction`` (optax) divides both
    averages by ``1 - alpha**t`` first. With ``eps=0``, an element whose ``s`` is zero has d = 0.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 0.01 (torch), 0.001 (keras, paper); optax has none: give one.
    alpha : float in [0, 1]
        Default 0.99 (torch), 0.9 (keras, optax, paper).
    eps : float >= 0
        Default 1e-8 (torch, optax), 1e-7 (keras), 0 (paper).
    weight_decay : float >= 0 or schedule
        Default 0; torch and keras.
    momentum : float in [0, 1] or schedule
        Default 0; not in the paper.
    centered : bool
        Default False; not in the paper.
    nesterov, bias_correction : bool
        Default False; optax only.
    eps_placement : {"outside", "inside"}
        Default "outside" (torch, paper), "inside" (keras, optax).
    initial_accumulator_value : float >= 0
        First value of ``square_avg`` (optax calls it initial_scale). Default 0; optax only.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State, like the parameter: ``square_avg``; centered ``grad_avg``; with momentum ``momentum_buffer``, under keras and
    optax, where it has lr in it, ``scaled_momentum_buffer``.
    A variance that rounding takes below zero counts as zero, where the libraries give NaN.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.RMSprop(w, lr=0.01, momentum=0.9, centered=True)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4).tolist(), sorted(opt.state[0])
    ([0.8995, -1.8995], ['grad_avg', 'momentum_buffer', 'square_avg', 'step'])

    References
    ----------
    Hinton, Neural networks for machine learning, lecture 6e (2012); Graves (2013) for the centered form.
    """

    hyperparameters = (
        "lr", "alpha", "eps", "weight_decay", "momentum", "centered", "nesterov", "eps_placement", "bias_correction",
        "initial_accumulator_value",
    )  # fmt: skip
    slots = (
        STEP,
        Slot("square_avg", first="initial_accumulator_value", low=SQUARE, narrow="square", wide_beside="grad_avg"),
        Slot("grad_avg", low=MEAN, optional=True), Slot("momentum_buffer", low=MOMENT, optional=True, narrow="moment"),
    )  # fmt: skip
    always_offered = {"eps_placement": "outside"}
    eps_placements = ("outside", "inside")
    conventions = {
        "torch": Convention(
            {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
            {False: L2}, {"lr_inside": 0},
        ),
        "keras": Convention(
            {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7, "weight_decay": 0.0, "momentum": 0.0, "centered": False,
             "eps_placement": "inside"},
            {True: DECOUPLED}, {"lr_inside": 1}, names={"momentum_buffer": "scaled_momentum_buffer"},
        ),
        "optax": Convention(
            {"lr": None, "alpha": 0.9, "eps": 1e-8, "momentum": 0.0, "centered": False, "nesterov": False,
             "eps_placement": "inside", "bias_correction": False, "initial_accumulator_value": 0.0},
            {}, {"lr_inside": 1}, names={"momentum_buffer": "scaled_momentum_buffer"},
        ),
        "paper": Convention({"lr": 1e-3, "alpha": 0.9, "eps": 0.0}, {}, {"lr_inside": 0}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, alpha: Number | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, momentum: Hyperparameter | None = None,
        centered: bool | None = None, *, nesterov: bool | None = None,
        eps_placement: Literal["outside", "inside"] | None = None, bias_correction: bool | None = None,
        initial_accumulator_value: Number | None = None,
        convention: Literal["torch", "keras", "optax", "paper"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
            "centered": centered, "nesterov": nesterov, "eps_placement": eps_placement,
            "bias_correction": bias_correction, "initial_accumulator_value": initial_accumulator_value,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> tuple[str, tuple[str, ...]]:
        name, slots = "rmsprop", ["square_avg"]
        if group["centered"]:
            name += "_centered"
            slots.append("grad_avg")
        if not is_zero(group["momentum"]):
            name += "_nesterov" if group["nesterov"] else "_momentum"
            slots.append("momentum_buffer")
        return name, tuple(slots)
