"""thinc's and spaCy's optimizers, stepped in compiled code.

Write ``from fastopt.thinc import Adam`` instead of ``from thinc.api import Adam``, or ``@optimizers =
"fastopt.Adam.v1"`` in a configuration of spaCy or thinc, which needs no import. For thinc 8.1 and later, also 9.

`Optimizer` derives from thinc's own class: constructor, schedules, ``step_schedules``, ``last_score`` and attributes
are thinc's. State is where thinc keeps it, in ``mom1``, ``mom2``, ``averages`` and ``nr_update``, by thinc's keys. It
may be replaced, loaded, pickled and copied at any time. A call clips, steps, averages and zeroes the gradient in one
pass.

What is stepped
    float32 arrays of NumPy, contiguous in C order, with a gradient of the same shape, for Adam, RAdam and SGD. The
    rules are those of `fastopt.Adam`, `fastopt.RAdam` and `fastopt.SGD` with ``convention="thinc"``,
    ``clip_norm_each``, ``ema_decay=0.9999`` and ``zero_grads=True``.

    Every other call is left to thinc's own code, on the same state: other arrays (CuPy, subclasses of ndarray, float64,
    other memory orders, arrays that share memory), gradients that are not finite, hyperparameters that fastopt refuses
    (below 0, betas from 1 on), Adam with ``beta1=0`` and ``beta2 > 0``, RAdam with an ``lr_scale`` other than 1, and
    subclasses with an ``_adam`` or ``_radam`` of their own.

Differences
    - The weights and the gradient are returned as they are. thinc's Adam and RAdam return new views of them.
    - Norms are summed in float64. thinc's norm is infinite from 1.8e19 on, which makes the gradient 0.
    - Coefficients are computed in float64 and rounded once. thinc's Adam computes 1 - beta in float32, which is off by
      1.3e-5 of itself for beta2 = 0.999. Updates differ by about as much.
    - Each schedule is called once for each parameter and step. thinc calls some of them several times.
    - ``_radam_buffer``, in which thinc's RAdam keeps its last ten step sizes, is not used. The buffer matters only
      where betas change and some parameters are not stepped every time, or where they differ by key: thinc then may
      take a step size of other betas.
    - With ``eps=0``, a weight whose gradient has always been 0 stays as it is. In thinc it becomes NaN.
    - If a schedule of thinc 9 raises, the step is not counted. thinc has counted it by then.
    - The optimizer keeps references to the weights and the state of the last step of each key.

Examples
--------
>>> import numpy as np
>>> from fastopt.thinc import Adam
>>> optimizer = Adam(0.1)
>>> weights, gradient = np.ones(2, np.float32), np.array([0.5, -0.5], np.float32)
>>> weights, gradient = optimizer((0, "W"), weights, gradient)
>>> weights.round(3), gradient
(array([0.9, 1.1], dtype=float32), array([0., 0.], dtype=float32))
"""

# Annotations are objects here: thinc's registry reads those of the factories.

from collections.abc import Callable
from math import inf
from numbers import Real
from typing import Any

import numpy as np
from numpy import ndarray
from thinc import optimizers as _host
from thinc import schedules as _schedules

from fastopt.errors import FastoptError
from fastopt.functional import Bound, bind, make_state

_HostOptimizer: Any = _host.Optimizer
_Rate: Any = getattr(_host, "ScheduleT", None) or getattr(_host, "FloatOrSeq")  # noqa: B009
_Schedule: Any = getattr(_schedules, "Schedule", None)
_constant: Any = getattr(_schedules, "_constant_schedule", None)
_ABSENT = object()
_DECAY = 0.9999  # of averages: the default of thinc's `update_averages`


class _Record:
    """What is bound for a key, and the objects that it is bound to, which the next call compares."""

    __slots__ = (
        "average", "bound", "changed", "l2", "mom1", "mom2", "options", "rate", "rule", "settings", "step", "weights",
    )  # fmt: skip

    def __init__(self, weights: Any, settings: tuple[Any, ...], rule: str, l2: float, options: dict[str, Any]) -> None:
        self.weights, self.settings, self.rule = weights, settings, rule
        self.l2 = l2  # what is added to the gradient, times the weights
        self.options = options  # numbers that were given to `bind`,
        self.changed: dict[str, Any] = {}  # and to every step, once one of them is another
        self.rate: float | None = None  # the learning rate that was given to `bind`
        self.mom1: Any = None
        self.mom2: Any = None
        self.average: Any = None
        self.bound: Bound | None = None
        self.step: Callable[..., bool] | None = None  # that of `bound`; None: thinc's own code steps


class Optimizer(_HostOptimizer):
    """thinc's optimizer, stepped in compiled code: Adam, RAdam or SGD.

    See `thinc.optimizers.Optimizer` for parameters, attributes and methods, and `fastopt.thinc` for what is different.
    """

    __slots__ = ("_records",)

    _records: dict[Any, _Record]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Optimizer":
        self = super().__new__(cls)
        self._records = {}
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(max(2, protocol))
        state = made[2] if isinstance(made, tuple) and len(made) > 2 else None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # attributes and slots
            slots = {name: value for name, value in state[1].items() if name != "_records"}
            made = (*made[:2], (state[0], slots), *made[3:])
        return made

    def __call__(self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        """Step one array, in place, and zero its gradient. Returns both.

        Parameters
        ----------
        key : tuple of int and str
            Which parameter it is: the id of a node of the model, and a name.
        weights : array
            The parameter.
        gradient : array
            Its gradient. An empty one leaves everything as it is.
        lr_scale : float, default 1.0
            A factor of the learning rate. RAdam uses it for L2 alone, as in thinc.
        """
        if len(gradient) < 1:
            return weights, gradient
        if _Schedule is None:
            rate = self.learn_rate
            settings = (self.L2, self.grad_clip, self.b1, self.b2, self.eps, self.use_radam, self.L2_is_weight_decay)
        else:
            rate, settings = self._scheduled(key)
        averages = self.averages
        record: _Record | None
        try:
            record = self._records[key]
            current = (
                record.weights is weights
                and record.settings == settings
                and (record.average is None if averages is None else record.average is averages[key])
                and (record.rule == "sgd" or (record.mom1 is self.mom1[key] and record.mom2 is self.mom2[key]))
            )
        except KeyError:
            current = False
        if not current:
            record = self._prepare(key, weights, rate, settings)
        if record is None or record.step is None or type(gradient) is not ndarray:
            return super().__call__(key, weights, gradient, lr_scale=lr_scale)
        if rate is not record.rate or type(lr_scale) is not float or lr_scale != 1.0:
            if (
                type(rate) is not float and not isinstance(rate, Real)
                or type(lr_scale) is not float and not isinstance(lr_scale, Real)
                or record.rule == "radam" and lr_scale != 1.0
            ):  # fmt: skip
                return super().__call__(key, weights, gradient, lr_scale=lr_scale)
            rate = float(rate) * float(lr_scale)
        count = self.nr_update[key] + 1
        try:
            if record.l2:  # thinc adds it before it clips, fastopt's rules after that
                if not _can_be_added_to(gradient, record):
                    return super().__call__(key, weights, gradient, lr_scale=lr_scale)
                total = record.l2 * weights
                total += gradient
                record.step(total, step=count, lr=rate, **record.changed)
                gradient.fill(0)
            elif rate is record.rate and not record.changed:
                record.step(gradient, step=count)
            elif record.changed:
                record.step(gradient, step=count, lr=rate, **record.changed)
            else:
                record.step(gradient, step=count, lr=rate)
        except FastoptError:  # nothing was written
            return super().__call__(key, weights, gradient, lr_scale=lr_scale)
        self.nr_update[key] = count
        if not current:  # not before: a call that raises leaves no state, as in thinc
            if record.rule != "sgd":
                self.mom1[key], self.mom2[key] = record.mom1, record.mom2
            if averages is not None:
                averages[key] = record.average
        return weights, gradient

    def _scheduled(self, key: Any) -> tuple[Any, tuple[Any, ...]]:
        """The learning rate and the settings of this step where they are schedules, as in thinc 9."""
        values = []
        for schedule in (self.L2, self.grad_clip, self.b1, self.b2, self.eps, self.learn_rate):
            if type(schedule) is _Schedule and schedule._schedule is _constant:
                values.append(schedule._attrs["rate"])
            else:
                values.append(schedule(self.step, **self._schedule_args(key)))
        return values.pop(), (*values, self.use_radam, self.L2_is_weight_decay)

    def _prepare(self, key: Any, weights: Any, rate: Any, settings: tuple[Any, ...]) -> _Record | None:
        """The record of a key, after something was exchanged; None where these weights are left to thinc."""
        if type(weights) is not ndarray or weights.dtype != np.float32:
            return None
        record = self._records.get(key)
        average = None if self.averages is None else self.averages.get(key, _ABSENT)
        if (
            record is None or record.bound is None or record.average is not average
            or record.rule != "sgd" and (record.mom1 is not self.mom1.get(key) or record.mom2 is not self.mom2.get(key))
        ):  # fmt: skip
            return self._bind(key, weights, average, rate, settings)
        if record.settings != settings:
            asked = _asked(settings)
            if asked is None or asked[0] != record.rule or asked[2].keys() != record.options.keys():
                return self._bind(key, weights, average, rate, settings)
            record.settings = settings
            _, record.l2, record.changed = asked
        if record.weights is not weights:  # the step sees where they are, and binds them in the place of the others
            record.weights = weights
            record.bound.rebind(weights)
        return record

    def _bind(
        self, key: Any, weights: np.ndarray, average: Any, rate: Any, settings: tuple[Any, ...]
    ) -> _Record | None:
        """A new record of a key, with new state where there is none; None where these weights are left to thinc."""
        asked = _asked(settings)
        if asked is None or not (_fits(weights, weights.shape) and weights.flags.writeable):
            return None
        if type(self)._adam is not _HostOptimizer._adam or type(self)._radam is not _HostOptimizer._radam:
            return None  # a subclass has rules of its own
        record = self._records[key] = _Record(weights, settings, *asked)
        record.mom1, record.mom2, record.average = self.mom1.get(key), self.mom2.get(key), average
        fresh = make_state(record.rule, weights, convention="thinc", ema_decay=_DECAY)  # laid out for the step
        moments = [record.mom1, record.mom2] if record.rule != "sgd" else []
        for place, moment in enumerate(moments):
            if moment is None:
                moments[place] = fresh[place].reshape(-1)
            elif not _fits(moment, (weights.size,)):
                return record
        around = {}
        if average is not None:
            average = fresh[-1] if average is _ABSENT else average
            around = {"ema": average, "ema_decay": _DECAY}
        lr = rate if type(rate) is float and 0 <= rate < inf else None  # a step may have another
        try:
            record.bound = bind(
                record.rule, weights, [moment.reshape(weights.shape) for moment in moments], convention="thinc",
                decoupled_weight_decay=True, zero_grads=True, nonfinite="raise", lr=lr, **record.options, **around,
            )  # fmt: skip
        except FastoptError:
            return record
        record.step, record.rate, record.average = record.bound.step, lr, average
        if moments:
            record.mom1, record.mom2 = moments
        return record


def _asked(settings: tuple[Any, ...]) -> tuple[str, float, dict[str, Any]] | None:
    """What these hyperparameters ask for: the rule, L2 of the gradient, the options; None where thinc has to do it."""
    *values, radam, decays = settings
    if not all([isinstance(value, Real) for value in values]):
        return None
    l2, clip, beta1, beta2, eps = map(float, values)
    rule = "radam" if radam else "adam" if beta1 > 0 and beta2 > 0 else "sgd"
    if rule == "sgd" and beta2 > 0:  # thinc raises NotImplementedError
        return None
    options: dict[str, Any] = {"weight_decay": l2 if decays else 0.0}
    if clip:
        options["clip_norm_each"] = clip
    if rule != "sgd":
        options.update(betas=(beta1, beta2), eps=eps)
    return rule, 0.0 if decays else l2, options


def _fits(array: Any, shape: tuple[int, ...]) -> bool:
    """Whether an array is one that can be bound as it is."""
    return (
        type(array) is ndarray and array.dtype == np.float32 and array.shape == shape
        and array.flags.c_contiguous and array.flags.aligned
    )  # fmt: skip


def _can_be_added_to(gradient: np.ndarray, record: _Record) -> bool:
    """Whether a sum can be stepped in the place of this gradient: what a step checks of the gradient itself."""
    arrays = (record.weights, record.mom1, record.mom2, record.average)
    return (
        _fits(gradient, record.weights.shape)
        and gradient.flags.writeable
        and not any([type(array) is ndarray and np.may_share_memory(gradient, array) for array in arrays])
    )


# The factories have the signatures of thinc's, which its registry checks configurations by.


def Adam(
    learn_rate: _Rate = 0.001,
    *,
    L2: _Rate = 0.0,
    beta1: _Rate = 0.9,
    beta2: _Rate = 0.999,
    eps: _Rate = 1e-08,
    grad_clip: _Rate = 1.0,
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Optimizer:
    """Adam, as `thinc.api.Adam`: in a configuration, ``@optimizers = "fastopt.Adam.v1"``.

    Parameters
    ----------
    learn_rate : float, list, generator or schedule, default 0.001
        The learning rate. Everything but the last two may change by a schedule.
    L2 : float >= 0, default 0
        See ``L2_is_weight_decay``.
    beta1, beta2 : float in [0, 1), default 0.9, 0.999
        How much of the averages of gradients, and of their squares, stays at each step.
    eps : float >= 0, default 1e-8
        Added to the root of the average of squares.
    grad_clip : float >= 0, default 1
        What the norm of each gradient is not to exceed; 0: they are not clipped.
    L2_is_weight_decay : bool, default True
        Whether L2 shrinks the weights after the step, by ``1 - learn_rate * L2``, or is added to the gradient before
        clipping.
    use_averages : bool, default True
        Whether to keep averages of the weights, in ``averages``.
    """
    return Optimizer(
        learn_rate, L2=L2, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip, use_averages=use_averages,
        L2_is_weight_decay=L2_is_weight_decay,
    )  # fmt: skip


def RAdam(
    learn_rate: _Rate = 0.001,
    *,
    beta1: _Rate = 0.9,
    beta2: _Rate = 0.999,
    eps: _Rate = 1e-08,
    L2: _Rate = 0.0,
    L2_is_weight_decay: bool = True,
    grad_clip: _Rate = 1.0,
    use_averages: bool = True,
) -> Optimizer:
    """Rectified Adam, as `thinc.api.RAdam`: in a configuration, ``@optimizers = "fastopt.RAdam.v1"``.

    Parameters and defaults are those of `Adam`.
    """
    return Optimizer(
        learn_rate, L2=L2, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip, use_averages=use_averages,
        L2_is_weight_decay=L2_is_weight_decay, use_radam=True,
    )  # fmt: skip


def SGD(
    learn_rate: _Rate,
    *,
    L2: _Rate = 0.0,
    grad_clip: _Rate = 1.0,
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Optimizer:
    """Gradient descent, as `thinc.api.SGD`: in a configuration, ``@optimizers = "fastopt.SGD.v1"``.

    Parameters are those of `Adam`; the learning rate has no default.
    """
    return Optimizer(
        learn_rate, L2=L2, grad_clip=grad_clip, beta1=0.0, beta2=0.0, use_averages=use_averages,
        L2_is_weight_decay=L2_is_weight_decay,
    )  # fmt: skip


__all__ = ["Adam", "Optimizer", "RAdam", "SGD"]
