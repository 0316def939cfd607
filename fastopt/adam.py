"""Adam and its kin: Adam, AdamW, Adamax, NAdam, RAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fastopt.declare import (
    DECOUPLED,
    DECOUPLED_LAST,
    DECOUPLED_WITHOUT_LR,
    L2,
    MOMENT,
    SQUARE,
    STEP,
    Convention,
    Slot,
    public,
)
from fastopt.optimizer import Optimizer
from fastopt.typing import Betas, CommonOptions, EpsPlacement, Hyperparameter, Number, Params, Unpack

BETAS = {"betas": (0.9, 0.999)}
ADAM = {"lr": 1e-3, **BETAS, "eps": 1e-8}
MOMENTS = (STEP, Slot("exp_avg", low=MOMENT, narrow="moment"), Slot("exp_avg_sq", low=SQUARE, narrow="square"))


@public
class Adam(Optimizer):
    """Adam: averages of the gradient and of its square, both corrected for their start at zero.

    In the order computed, with ``bc1 = 1 - beta1**t``, ``bc2 = 1 - beta2**t`` (both 1 with ``bias_correction=False``)::

        g          = g + weight_decay * p               (where decay is coupled)
        exp_avg    = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        p          = p - (lr / bc1) * exp_avg / denominator

    and the denominator by ``eps_placement``::

        "outside"              sqrt(exp_avg_sq / bc2) + eps            torch, optax, paper
        "inside"               sqrt(exp_avg_sq / bc2 + eps)
        "outside_uncorrected"  (sqrt(exp_avg_sq) + eps) / sqrt(bc2)    keras, sklearn, thinc
        "inside_uncorrected"   sqrt(exp_avg_sq + eps) / sqrt(bc2)

    ``amsgrad`` puts the largest exp_avg_sq so far in its place: before its correction (torch, keras, paper) or after
    (optax). With ``eps=0``, an element whose denominator is zero does not move; PyTorch gives NaN or
    infinity there.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 1e-3; optax has none: give one.
    betas : pair of floats in [0, 1), or schedules
        Default (0.9, 0.999).
    eps : float >= 0
        Default 1e-8 (keras 1e-7).
    weight_decay : float >= 0 or schedule
        Default 0. torch adds it to the gradient (``decoupled_weight_decay=True`` shrinks first, as `AdamW`), keras
        shrinks first, thinc shrinks after the update (False: adds it to the gradient).
    amsgrad : bool
        Default False; torch, keras, optax, paper. Under paper, given to the constructor, it also means
        ``bias_correction=False`` and ``eps=0`` unless these are given, as in Reddi et al.
    eps_placement, bias_correction
        See above; available under every convention.
    eps_root : float >= 0
        optax only: ``sqrt(exp_avg_sq / bc2 + eps_root) + eps``. Default 0.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State, like the parameter: ``exp_avg``, ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``; under optax, where it is
    the maximum of corrected averages, ``max_exp_avg_sq_hat``.
    DeepSpeed and ONNX without correction are ``bias_correction=False``.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w, b = np.array([1.0, -2.0]), np.array([0.5])
    >>> opt = fastopt.Adam([w, b], lr=0.1)
    >>> opt.step([np.array([0.5, -0.5]), np.array([0.0])])
    >>> w.round(4).tolist(), b.tolist()
    ([0.9, -1.9], [0.5])
    >>> fastopt.Adam(w, convention="keras").defaults["eps"]
    1e-07

    References
    ----------
    Kingma & Ba, Adam (2015), algorithm 1; Reddi, Kale & Kumar, On the convergence of Adam and beyond (2018).
    """

    hyperparameters = (
        "lr", "betas", "eps", "weight_decay", "amsgrad", "eps_placement", "bias_correction", "eps_root",
    )  # fmt: skip
    slots = (*MOMENTS, Slot("max_exp_avg_sq", optional=True))
    family = ("Adam", "AdamW")
    conventions = {
        "torch": Convention(
            {**ADAM, "weight_decay": 0.0, "amsgrad": False}, {False: L2, True: DECOUPLED}, {"max_corrected": 0}
        ),
        "keras": Convention(
            {**ADAM, "eps": 1e-7, "weight_decay": 0.0, "amsgrad": False, "eps_placement": "outside_uncorrected"},
            {True: DECOUPLED}, {"max_corrected": 0},
        ),
        "optax": Convention(
            {**ADAM, "lr": None, "amsgrad": False, "eps_root": 0.0}, {}, {"max_corrected": 1},
            names={"max_exp_avg_sq": "max_exp_avg_sq_hat"},
        ),
        "sklearn": Convention({**ADAM, "eps_placement": "outside_uncorrected"}),
        "thinc": Convention(
            {**ADAM, "weight_decay": 0.0, "eps_placement": "outside_uncorrected"}, {True: DECOUPLED_LAST, False: L2}
        ),
        "paper": Convention({**ADAM, "amsgrad": False}, {}, {"max_corrected": 0}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, amsgrad: bool | None = None, *,
        eps_placement: EpsPlacement | None = None, bias_correction: bool | None = None, eps_root: Number | None = None,
        convention: Literal["torch", "keras", "optax", "sklearn", "thinc", "paper"] | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "eps_placement": eps_placement, "bias_correction": bias_correction, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str | tuple[str, tuple[str, ...]]:
        return ("amsgrad", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")) if group["amsgrad"] else "adam"

    @staticmethod
    def _implied(given: Mapping[str, Any], convention: str) -> Mapping[str, Any]:
        amsgrad = given.get("amsgrad")
        if convention == "paper" and isinstance(amsgrad, (bool, np.bool_)) and amsgrad:
            return {"bias_correction": False, "eps": 0.0}
        return {}


@public
class AdamW(Adam):
    """Adam with decoupled weight decay: the parameter itself shrinks, the averages do not see it.

    As `Adam`, but for weight decay::

        p = p * (1 - lr * weight_decay) first           torch, keras, optax
        p = p * (1 - weight_decay) first                paper: the schedule multiplier 1, lr does not scale the decay
        p = p * (1 - lr * weight_decay) last            thinc

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, eps_placement, bias_correction, eps_root
        See `Adam`. optax and the paper have no amsgrad here.
    weight_decay : float >= 0 or schedule
        Default 0.01 (torch), 0.004 (keras), 1e-4 (optax), 0 (thinc); the paper has none: give one.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``exp_avg``, ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``, like the parameter.
    The libraries' orders of rounding differ (Keras subtracts ``p * wd * lr``, optax adds ``wd * p`` to the update); the
    algebra does not.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w, b = np.array([1.0, -2.0]), np.array([0.5])
    >>> groups = [{"params": [w]}, {"params": [b], "weight_decay": 0.0}]
    >>> opt = fastopt.AdamW(groups, lr=0.1, weight_decay=0.01)
    >>> opt.step([np.zeros(2), np.zeros(1)])        # without a gradient, only the decay moves
    >>> w.tolist(), b.tolist()
    ([0.999, -1.998], [0.5])

    References
    ----------
    Loshchilov & Hutter, Decoupled weight decay regularization (2019).
    """

    conventions = {
        "torch": Convention(
            {**ADAM, "weight_decay": 0.01, "amsgrad": False}, {True: DECOUPLED}, {"max_corrected": 0}
        ),
        "keras": Convention(
            {**ADAM, "eps": 1e-7, "weight_decay": 0.004, "amsgrad": False, "eps_placement": "outside_uncorrected"},
            {True: DECOUPLED}, {"max_corrected": 0},
        ),
        "optax": Convention({**ADAM, "lr": None, "weight_decay": 1e-4, "eps_root": 0.0}, {True: DECOUPLED}),
        "thinc": Convention(
            {**ADAM, "weight_decay": 0.0, "eps_placement": "outside_uncorrected"}, {True: DECOUPLED_LAST}
        ),
        "paper": Convention({**ADAM, "weight_decay": None}, {True: DECOUPLED_WITHOUT_LR}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, amsgrad: bool | None = None, *,
        eps_placement: EpsPlacement | None = None, bias_correction: bool | None = None, eps_root: Number | None = None,
        convention: Literal["torch", "keras", "optax", "thinc", "paper"] | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, eps_placement=eps_placement,
            bias_correction=bias_correction, eps_root=eps_root, convention=convention, **common,
        )  # fmt: skip


@public
class Adamax(Optimizer):
    """Adamax: Adam with the infinity norm in place of the second moment.

    In the order computed, with ``bc1 = 1 - beta1**t`` (1 with ``bias_correction=False``)::

        g       = g + weight_decay * p                          (torch; keras, optax: p * (1 - lr * weight_decay) first)
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_inf = max(beta2 * exp_inf, |g| + eps)               (torch, optax)
        exp_inf = max(beta2 * exp_inf, |g|)                     (keras, paper)
        p       = p - (lr / bc1) * exp_avg / exp_inf            (keras: / (exp_inf + eps))

    Without eps, an element whose ``exp_inf`` is zero does not move.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 2e-3 (torch, paper), 1e-3 (keras); optax has none: give one.
    betas : pair of floats in [0, 1), or schedules
        Default (0.9, 0.999).
    eps : float >= 0
        Default 1e-8 (torch, optax), 1e-7 (keras); the paper has none.
    weight_decay : float >= 0 or schedule
        Default 0; torch, keras, optax (its adamaxw).
    bias_correction : bool, default True
        False leaves the average as it is: ``bc1 = 1``; available under every convention.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State, like the parameter: ``exp_avg``; ``exp_inf``, under keras and paper, where there is no eps in it,
    ``exp_inf_without_eps``.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Adamax(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4).tolist(), opt.state[0]["exp_inf"].round(4).tolist()
    ([0.9, -1.9], [0.5, 0.5])

    References
    ----------
    Kingma & Ba, Adam (2015), algorithm 2.
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay", "bias_correction")
    slots = (STEP, Slot("exp_avg", low=MOMENT, narrow="moment"), Slot("exp_inf", low=SQUARE, narrow="square"))
    conventions = {
        "torch": Convention({**ADAM, "lr": 2e-3, "weight_decay": 0.0}, {False: L2}, {"eps_inside": 1}),
        "keras": Convention(
            {**ADAM, "eps": 1e-7, "weight_decay": 0.0}, {True: DECOUPLED}, {"eps_inside": 0},
            names={"exp_inf": "exp_inf_without_eps"},
        ),
        "optax": Convention({**ADAM, "lr": None, "weight_decay": 0.0}, {True: DECOUPLED}, {"eps_inside": 1}),
        "paper": Convention({"lr": 2e-3, **BETAS}, names={"exp_inf": "exp_inf_without_eps"}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, *, bias_correction: bool | None = None,
        convention: Literal["torch", "keras", "optax", "paper"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "adamax"


@public
class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum, and a momentum that warms up.

    In the order computed, with ``mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay))`` and P the product of mu_1 to
    mu_t::

        g          = g + weight_decay * p               (where decay is coupled; else p * (1 - lr * weight_decay) first)
        exp_avg    = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        p          = p - (lr * (1 - mu_t) / (1 - P) * g + lr * mu_{t+1} / (1 - P * mu_{t+1}) * exp_avg) / denominator

    with the denominator of `Adam`. The paper averages with mu_t in place of beta1, ``exp_avg = mu_t * exp_avg +
    (1 - mu_t) * g``, and has ``beta2 * exp_avg_sq`` under the root; the libraries do neither. optax has no schedule of
    momenta: ``lr * (1 - beta1) / (1 - beta1**t) * g + lr * beta1 / (1 - beta1**(t + 1)) * exp_avg``.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 2e-3 (torch, paper), 1e-3 (keras); optax has none: give one.
    betas : pair of floats in [0, 1), or schedules
        Default (0.9, 0.999).
    eps : float >= 0
        Default 1e-8 (keras 1e-7).
    weight_decay : float >= 0 or schedule
        Default 0; torch (``decoupled_weight_decay`` as you like), keras and optax (nadamw): decoupled.
    momentum_decay : float >= 0
        Default 0.004 (torch, paper); keras has 1, optax none.
    eps_placement, eps_root
        See `Adam`.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``exp_avg``, ``exp_avg_sq``, like the parameter; the number P, ``mu_product``, called ``exp_avg_mu_product``
    under paper, whose exp_avg is averaged with these momenta. optax has no P. Under torch P is kept and
    multiplied in float32, as PyTorch does, also for float64 parameters; elsewhere in float64. Keras keeps one P for
    the whole optimizer, fastopt one for each parameter: they differ where gradients are None.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.NAdam(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4).tolist(), round(float(opt.state[0]["mu_product"]), 4)
    ([0.8944, -1.8944], 0.4501)

    References
    ----------
    Dozat, Incorporating Nesterov momentum into Adam (2016), algorithm 2; the defaults of betas are the customary ones.
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay", "momentum_decay", "eps_placement", "eps_root")
    slots = (*MOMENTS, Slot("mu_product", like="number", first=1.0, limits=(0.0, 1.0)))
    conventions = {
        "torch": Convention(
            {**ADAM, "lr": 2e-3, "weight_decay": 0.0, "momentum_decay": 0.004},
            {False: L2, True: DECOUPLED}, {"product": 1}, storage={"mu_product": "float32"},
        ),
        "keras": Convention(
            {**ADAM, "eps": 1e-7, "weight_decay": 0.0}, {True: DECOUPLED}, {"product": 0},
            {"momentum_decay": 1.0},
        ),
        "optax": Convention(
            {**ADAM, "lr": None, "weight_decay": 0.0, "eps_root": 0.0}, {True: DECOUPLED}, {"product": 2},
            names={"mu_product": ""},
        ),
        "paper": Convention(
            {**ADAM, "lr": 2e-3, "momentum_decay": 0.004}, {}, {"product": 3},
            names={"mu_product": "exp_avg_mu_product"},
        ),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, momentum_decay: Number | None = None, *,
        eps_placement: EpsPlacement | None = None, eps_root: Number | None = None,
        convention: Literal["torch", "keras", "optax", "paper"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay,
            "eps_placement": eps_placement, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "nadam"


@public
class RAdam(Optimizer):
    """RAdam: Adam that steps like momentum until its second moment can be trusted.

    In the order computed, with ``bc1 = 1 - beta1**t``, ``rho_inf = 2 / (1 - beta2) - 1`` and
    ``rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)``::

        g          = g + weight_decay * p               (where decay is coupled)
        exp_avg    = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        p          = p - (lr / bc1) * r * exp_avg / denominator         (rho > 5)
        p          = p - (lr / bc1) * exp_avg                           (else)

    with ``r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))`` and the denominator of
    `Adam`. The threshold is rho >= 5 in optax and thinc, rho > 4 in the paper. thinc takes t + 1 for t.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 1e-3; optax has none: give one.
    betas : pair of floats in [0, 1), or schedules
        Default (0.9, 0.999).
    eps : float >= 0
        Default 1e-8 (paper 0).
    weight_decay : float >= 0 or schedule
        Default 0; torch (``decoupled_weight_decay`` as you like), thinc (last, or with False into the gradient).
    eps_placement, eps_root
        See `Adam`. Default "outside_uncorrected" (torch, thinc), "outside" (optax, paper).
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``exp_avg``, ``exp_avg_sq``, like the parameter.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.schedules import Cosine, Warmup
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.RAdam(w, lr=Warmup(10, Cosine(0.1, 990), start=0.01))
    >>> for _ in range(2):
    ...     opt.step(np.array([0.5, -0.5]))
    >>> w.round(4).tolist()
    [0.9855, -1.9855]

    References
    ----------
    Liu et al., On the variance of the adaptive learning rate and beyond (2019), algorithm 2.
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay", "eps_placement", "eps_root")
    slots = MOMENTS
    conventions = {
        "torch": Convention(
            {**ADAM, "weight_decay": 0.0, "eps_placement": "outside_uncorrected"},
            {False: L2, True: DECOUPLED}, {"rho_min": 5, "rho_inclusive": 0, "t_shift": 0},
        ),
        "optax": Convention(
            {**ADAM, "lr": None, "eps_root": 0.0}, {}, {"rho_min": 5, "rho_inclusive": 1, "t_shift": 0}
        ),
        "thinc": Convention(
            {**ADAM, "weight_decay": 0.0, "eps_placement": "outside_uncorrected"},
            {True: DECOUPLED_LAST, False: L2}, {"rho_min": 5, "rho_inclusive": 1, "t_shift": 1},
        ),
        "paper": Convention({**ADAM, "eps": 0.0}, {}, {"rho_min": 4, "rho_inclusive": 0, "t_shift": 0}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, betas: Betas | None = None, eps: Number | None = None,
        weight_decay: Hyperparameter | None = None, *, eps_placement: EpsPlacement | None = None,
        eps_root: Number | None = None, convention: Literal["torch", "optax", "thinc", "paper"] | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "eps_placement": eps_placement, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "radam"
