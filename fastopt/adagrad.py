"""Learning rates that adapt by what each element has seen: Adagrad and Adadelta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.declare import DECOUPLED, L2, SQUARE, STEP, Convention, Slot, public
from fastopt.optimizer import Optimizer
from fastopt.typing import CommonOptions, Hyperparameter, Number, Params, Unpack


@public
class Adagrad(Optimizer):
    """Adagrad: each element's learning rate falls with the sum of its squared gradients.

    In the order computed::

        g   = g + weight_decay * p                  (Keras: p = p * (1 - lr * weight_decay) first)
        sum = sum + g * g
        p   = p - (lr / (1 + (t - 1) * lr_decay)) * g / (sqrt(sum) + eps)       eps_placement="outside"
                                                      / sqrt(sum + eps)         eps_placement="inside"

    With ``eps=0``, an element whose ``sum`` is zero does not move; PyTorch gives NaN or infinity there.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 0.01 (torch, paper), 0.001 (keras); optax has none: give one.
    lr_decay : float >= 0
        Default 0; torch only.
    weight_decay : float >= 0 or schedule
        Default 0; torch and keras.
    initial_accumulator_value : float >= 0
        First value of ``sum``: 0 (torch), 0.1 (keras, optax); the paper has none.
    eps : float >= 0
        Default 1e-10 (torch), 1e-7 (keras, optax), 0 (paper).
    eps_placement : {"outside", "inside"}
        Default "outside" (torch, paper), "inside" (keras, optax).
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``sum``, like the parameter; in `state_dict` from the start, as in PyTorch.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Adagrad(w, lr=0.1)
    >>> for _ in range(2):
    ...     opt.step(np.array([0.5, -50.0]))        # however large a gradient is, the first step is lr
    >>> w.round(4).tolist(), opt.state[0]["sum"].tolist()
    ([0.8293, -1.8293], [0.5, 5000.0])

    References
    ----------
    Duchi, Hazan & Singer, Adaptive subgradient methods (2011): the diagonal form.
    """

    hyperparameters = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "eps_placement")
    slots = (STEP, Slot("sum", first="initial_accumulator_value", from_start=True, narrow="square"))
    eps_placements = ("outside", "inside")
    conventions = {
        "torch": Convention(
            {"lr": 0.01, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
            {False: L2},
        ),
        "keras": Convention(
            {"lr": 1e-3, "weight_decay": 0.0, "initial_accumulator_value": 0.1, "eps": 1e-7,
             "eps_placement": "inside"},
            {True: DECOUPLED},
        ),
        "optax": Convention(
            {"lr": None, "initial_accumulator_value": 0.1, "eps": 1e-7, "eps_placement": "inside"}
        ),
        "paper": Convention({"lr": 0.01, "eps": 0.0}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, lr_decay: Number | None = None,
        weight_decay: Hyperparameter | None = None, initial_accumulator_value: Number | None = None,
        eps: Number | None = None, *, eps_placement: Literal["outside", "inside"] | None = None,
        convention: Literal["torch", "keras", "optax", "paper"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps, "eps_placement": eps_placement,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "adagrad"


@public
class Adadelta(Optimizer):
    """Adadelta: the step is scaled by the ratio of the averages of past updates and of gradients.

    In the order computed::

        g          = g + weight_decay * p               (Keras: p = p * (1 - lr * weight_decay) first)
        square_avg = rho * square_avg + (1 - rho) * g * g
        d          = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
        acc_delta  = rho * acc_delta + (1 - rho) * d * d
        p          = p - lr * d

    The average of updates is the one before this step. With ``eps=0`` nothing ever moves, since it starts at 0.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 1 (torch, paper), 0.001 (keras). optax has none: give one (there None would also drop the sign).
    rho : float in [0, 1]
        Default 0.9 (torch, optax), 0.95 (keras, paper).
    eps : float >= 0
        Inside both roots. Default 1e-6, 1e-7 (keras).
    weight_decay : float >= 0 or schedule
        Default 0; torch, keras, optax.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``square_avg``, ``acc_delta``, like the parameter.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Adadelta(w)                   # lr is 1: the steps find their own size
    >>> for _ in range(1000):
    ...     opt.step(2 * w)                         # the gradient of sum(w**2)
    >>> bool(np.abs(w).max() < 1e-3)
    True

    References
    ----------
    Zeiler, ADADELTA: an adaptive learning rate method (2012).
    """

    hyperparameters = ("lr", "rho", "eps", "weight_decay")
    slots = (STEP, Slot("square_avg", low=SQUARE, narrow="square"), Slot("acc_delta", low=SQUARE, narrow="square"))
    conventions = {
        "torch": Convention({"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}, {False: L2}),
        "keras": Convention({"lr": 1e-3, "rho": 0.95, "eps": 1e-7, "weight_decay": 0.0}, {True: DECOUPLED}),
        "optax": Convention({"lr": None, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}, {False: L2}),
        "paper": Convention({"lr": 1.0, "rho": 0.95, "eps": 1e-6}),
    }

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, rho: Number | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, *,
        convention: Literal["torch", "keras", "optax", "paper"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "adadelta"
