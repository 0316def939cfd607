"""Gradient descent: SGD, classical momentum, and Nesterov's accelerated gradient with a true lookahead."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Literal

import numpy as np

from fastopt.declare import DECOUPLED, DECOUPLED_LAST, L2, MOMENT, STEP, Convention, Slot, is_zero, public
from fastopt.errors import HyperparameterError
from fastopt.optimizer import Optimizer
from fastopt.typing import CommonOptions, Hyperparameter, Number, Params, Unpack


@public
class SGD(Optimizer):
    """Stochastic gradient descent, optionally with momentum or Nesterov momentum.

    In the order computed (``"torch"``, ``"optax"``: the learning rate outside the buffer)::

        g = g + weight_decay * p
        b = momentum * b + (1 - dampening) * g      (a new buffer: b = g)
        p = p - lr * b                              (nesterov: p - lr * (momentum * b + g))

    and with the learning rate inside (``"keras"``, ``"sklearn"``)::

        p = p * (1 - lr * weight_decay)             (Keras only)
        v = momentum * v - lr * g
        p = p + v                                   (nesterov: p + (momentum * v - lr * g))

    Without momentum, and always under ``"thinc"``: ``p = p - lr * g``.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Learning rate. Default 1e-3 (torch), 0.01 (keras), 0.1 (sklearn); optax and thinc have none: give one.
    momentum : float in [0, 1] or schedule
        Default 0 (sklearn: 0.9).
    dampening : float
        Default 0; torch only.
    weight_decay : float >= 0 or schedule
        Default 0; torch, keras, thinc (which shrinks after the update: ``p = p * (1 - lr * weight_decay)``, or adds
        it to the gradient with ``decoupled_weight_decay=False``).
    nesterov : bool
        Default False (sklearn: True). Under torch it needs a momentum and no dampening.
    **common
        ``maximize``, ``decoupled_weight_decay``, ``flush_subnormal``, ``n_threads``, ``nonfinite``, ``copy_grads``,
        ``convention``, ``state_factory``, ``clip_norm``, ``norm_type``, ``clip_value``, ``clip_norm_each``,
        ``ema_decay``, ``ema_start``, ``zero_grads``, ``state_dtype``, ``split``, ``rounding``, ``seed``,
        ``param_dtype``, ``grad_dtype``, ``mirrors``: see `Optimizer`.

    Notes
    -----
    State, like the parameter, only with momentum: ``momentum_buffer``, the b above; under keras and sklearn
    ``velocity``, the v above.
    The two forms agree for a constant lr only (b = -v / lr): when lr changes, the first rescales the whole history.
    Nesterov here is the rewritten form that needs the gradient at p itself; `NAG` is the lookahead.

    Raises
    ------
    HyperparameterError, ConventionError
        For a value out of range, or an option that the convention does not have.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w, b = np.array([1.0, -2.0]), np.zeros(1, np.float32)
    >>> opt = fastopt.SGD({"w": w, "b": b}, lr=0.1, momentum=0.9, nesterov=True)
    >>> opt.step({"w": np.array([0.5, -0.5]), "b": None})       # None: b has no gradient in this step
    >>> w.round(4).tolist(), opt.state[0]["momentum_buffer"].tolist()
    ([0.905, -1.905], [0.5, -0.5])

    References
    ----------
    Robbins & Monro, A stochastic approximation method (1951); Polyak, Some methods of speeding up the convergence of
    iteration methods (1964); Sutskever et al. (2013) for the form with lr inside.
    """

    hyperparameters = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    slots = (Slot("momentum_buffer", low=MOMENT, optional=True, narrow="moment"), Slot("begun", like="begun"))
    family = ("SGD", "Momentum", "NAG")
    conventions = {
        "torch": Convention(
            {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}, {False: L2}
        ),
        "keras": Convention(
            {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}, {True: DECOUPLED},
            names={"momentum_buffer": "velocity"},
        ),
        "optax": Convention({"lr": None, "momentum": 0.0, "nesterov": False}),
        "sklearn": Convention(
            {"lr": 0.1, "momentum": 0.9, "nesterov": True}, names={"momentum_buffer": "velocity"}
        ),
        "thinc": Convention({"lr": None, "weight_decay": 0.0}, {True: DECOUPLED_LAST, False: L2}),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, momentum: Hyperparameter | None = None,
        dampening: Number | None = None, weight_decay: Hyperparameter | None = None, nesterov: bool | None = None, *,
        convention: Literal["torch", "keras", "optax", "sklearn", "thinc"] | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
        }  # fmt: skip
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> tuple[str, tuple[str, ...]]:
        nesterov, still = group["nesterov"], is_zero(group["momentum"])
        if convention == "torch" and nesterov and (still or not is_zero(group["dampening"])):
            raise HyperparameterError(
                f"SGD(convention='torch'): nesterov=True needs momentum > 0 and dampening 0, not "
                f"momentum={group['momentum']!r}, dampening={group['dampening']!r}"
            )
        if still:
            return "sgd", ()
        if convention in ("keras", "sklearn"):
            return "velocity_nesterov" if nesterov else "velocity", ("momentum_buffer",)
        return "sgd_nesterov" if nesterov else "sgd_momentum", ("momentum_buffer",)


@public
class Momentum(Optimizer):
    """Classical momentum: the learning rate is inside the velocity.

    In the order computed::

        g = g + weight_decay * p
        v = momentum * v - lr * g
        p = p + v

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule, default 0.01
    momentum : float in [0, 1] or schedule, default 0.9
    weight_decay : float >= 0 or schedule, default 0
        With ``decoupled_weight_decay=True`` the parameter shrinks first, ``p = p * (1 - lr * weight_decay)``.
    **common
        See `Optimizer`, also for the errors. The only convention is ``"paper"``; the defaults are the customary ones,
        the paper has none.

    Notes
    -----
    State: ``velocity``, the v above, like the parameter. `SGD` in PyTorch's form keeps lr outside: the two
    differ when lr changes. The lecture-note form ``u = mu * u + lr * g; w = w - u`` is this one with u = -v.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Momentum(w, lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     opt.step(np.array([0.5, -0.5]))
    >>> w.round(4).tolist(), opt.state[0]["velocity"].round(4).tolist()
    ([0.855, -1.855], [-0.095, 0.095])

    References
    ----------
    Polyak, Some methods of speeding up the convergence of iteration methods (1964); Rumelhart, Hinton & Williams,
    Learning representations by back-propagating errors (1986); Sutskever et al., On the importance of initialization
    and momentum in deep learning (2013).
    """

    hyperparameters = ("lr", "momentum", "weight_decay")
    slots = (Slot("velocity", low=MOMENT, narrow="moment"),)
    family = SGD.family
    conventions = {
        "paper": Convention({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0}, {False: L2, True: DECOUPLED}),
    }

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, momentum: Hyperparameter | None = None,
        weight_decay: Hyperparameter | None = None, *,
        convention: Literal["paper"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "velocity"


@public
class NAG(Momentum):
    """Nesterov's accelerated gradient with a true lookahead: the gradient is evaluated where momentum leads.

    In the order computed, with g the gradient at ``w + momentum * v``, which `lookahead` returns::

        g = g + weight_decay * w
        v = momentum * v - lr * g
        w = w + v

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule, default 0.01
    momentum : float in [0, 1] or schedule, default 0.9
    weight_decay : float >= 0 or schedule, default 0
        Taken at w. With ``decoupled_weight_decay=True``, ``w = w * (1 - lr * weight_decay)`` first.
    **common
        See `Optimizer`, also for the errors. The only convention is ``"paper"``; the defaults are the customary ones,
        the paper has none.

    Notes
    -----
    State: ``velocity``, the v above, like the parameter. ``SGD(nesterov=True)`` of Keras and scikit-learn
    stores ``y = w + momentum * v`` instead of w; for a constant momentum both take the same path.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([4.0, -2.0])
    >>> opt = fastopt.NAG(w, lr=0.1, momentum=0.5)
    >>> for _ in range(100):
    ...     y = opt.lookahead()        # where to evaluate
    ...     opt.step(2 * y)            # the gradient of sum(y**2)
    >>> bool(np.abs(w).max() < 1e-6)
    True

    References
    ----------
    Nesterov (1983); Sutskever et al. (2013), equations 3 and 4.
    """

    def lookahead(self) -> Any:
        """The arrays at which to evaluate the gradient: exactly ``w + momentum * v``, in the form of ``params``.

        Momentum is the coming step's. The arrays belong to the optimizer, and the next call overwrites them. Of
        bfloat16 parameters they are bfloat16, rounded to the nearest.
        """
        plan = self._plan
        buffers = self.__dict__.setdefault("_lookahead", [])
        buffers += [np.empty_like(p, subok=False) for p in plan.arrays[len(buffers) :]]
        plan.lookahead(buffers)
        if self._single and len(buffers) == 1:
            return buffers[0]
        return dict(zip(plan.names, buffers, strict=True)) if plan.named else list(buffers)


@public
class ASGD(Optimizer):
    """Averaged stochastic gradient descent: SGD with a falling rate, and the average of its parameters beside it.

    In the order computed, with eta = lr and mu = 1 at the first step of a parameter::

        g   = g + weight_decay * p
        p   = p * (1 - lambd * eta) - eta * g
        ax  = p                                     where mu = 1
              ax + (p - ax) * mu                    else
        eta = lr / (1 + lambd * lr * t)**alpha      for the coming step
        mu  = 1 / max(1, t - t0)

    So a new lr takes effect one step late. The step never reads ``ax``, the average from step t0 on: that is for you to
    read, from ``opt.state``, or to load into the model.

    Parameters
    ----------
    params
        See `Optimizer`.
    lr : float >= 0 or schedule
        Default 0.01.
    lambd : float >= 0
        Pulls the parameter to zero, and slows it down. Default 1e-4.
    alpha : float in [0, 1]
        How fast the rate falls. Default 0.75.
    t0 : float >= 0
        The steps before averaging begins. Default 1e6: without another value, ``ax`` is a copy of the parameter.
    weight_decay : float >= 0 or schedule
        Default 0.
    **common
        See `Optimizer`, also for the errors.

    Notes
    -----
    State: ``ax``, like the parameter; ``eta`` and ``mu``, one number each. The form is PyTorch's, which keeps both
    numbers in float32, also beside float64 parameters.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.ASGD(w, lr=0.1, t0=100)
    >>> for t in range(400):
    ...     opt.step(w + (-1) ** t)                 # a gradient that is never right, but on average
    >>> bool(np.abs(opt.state[0]["ax"]).max() < np.abs(w).max() / 5)
    True

    References
    ----------
    Polyak & Juditsky, Acceleration of stochastic approximation by averaging (1992); Bottou, Large-scale machine
    learning with stochastic gradient descent (2010), for the rate.
    """

    hyperparameters = ("lr", "lambd", "alpha", "t0", "weight_decay")
    slots = (
        STEP, Slot("eta", like="number", storage="float32", limits=(0.0, inf)),
        Slot("mu", like="number", first=1.0, storage="float32", limits=(0.0, 1.0)), Slot("ax"),
    )  # fmt: skip
    conventions = {
        "torch": Convention(
            {"lr": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0}, {False: L2},
            {"single_eta": 1, "single_mu": 1},
        ),
    }  # fmt: skip

    def __init__(
        self, params: Params, lr: Hyperparameter | None = None, lambd: Number | None = None,
        alpha: Number | None = None, t0: Number | None = None, weight_decay: Hyperparameter | None = None, *,
        convention: Literal["torch"] | None = None, **common: Unpack[CommonOptions],
    ) -> None:  # fmt: skip
        options = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}
        super().__init__(params, options, convention=convention, **common)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str:
        return "asgd"
