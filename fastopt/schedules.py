r"""Hyperparameters as functions of the step.

A schedule is called with the number of optimizer steps already taken, 0 at the first step, and returns the
value for the step about to be taken. It can stand wherever the optimizers take one: ``lr``, ``momentum``,
``weight_decay`` or an element of ``betas``::

    from fastopt import SGD
    from fastopt.schedules import Cosine, Warmup

    opt = SGD(params, lr=Warmup(100, Cosine(0.1, total_steps=900)), momentum=0.9)

All schedules but `ReduceOnPlateau` are frozen dataclasses: equal by value, hashable, picklable, and
``eval(repr(s)) == s``. Any other callable of the step works in their place.

Each is written in closed form, in double precision, from the step alone: no hidden counter, so a run that is
resumed at step ``n`` needs nothing but ``n``. PyTorch's schedulers instead multiply the current value again
and again, and agree only up to the rounding that this collects. Two habits hold for all: steps beyond
``total_steps`` keep the end value, and both ends of a curve are met exactly.

The unit of every step count is one optimizer step. To count in epochs, multiply by the steps in an epoch.
Values have the unit of the hyperparameter that they are handed to, which checks its own range at every step.
"""

# Design: a class is its fields, their ranges in `_check`, and its formula in `_at`. Fields are plain
# data (numbers, strings, tuples, other schedules), so that class name and fields say everything.

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Literal, NoReturn, SupportsFloat, SupportsIndex

from .errors import HyperparameterError

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "EmaWarmup",
    "Exponential",
    "InverseSqrt",
    "InverseTime",
    "Join",
    "Linear",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "Warmup",
]

#: What `Warmup` and `Join` take: a number, a schedule, or any other callable of the step.
ScheduleLike = float | Callable[[int], float]


# ---- checks: each reads fields of a new schedule and puts them back in their plain type ----


def _reject(owner: object, name: str, value: object, accepted: str) -> NoReturn:
    raise HyperparameterError(f"{type(owner).__name__}: {name} must be {accepted}, not {value!r}")


def _put(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # the dataclasses are frozen


def _as_number(x: object) -> float | None:
    """Return ``x`` as a finite float, or None. A bool is a slip, not a number."""
    if isinstance(x, bool) or not isinstance(x, Real):
        return None
    try:
        number = float(x)
    except OverflowError:  # an int beyond the largest double
        return None
    return number if math.isfinite(number) else None


def _as_int(x: object, least: int) -> int | None:
    """Return ``x`` as an int from ``least`` up, or None. Floats are refused, even whole ones."""
    try:
        number = operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        return None
    return None if isinstance(x, bool) or number < least else number


def _numbers(
    owner: object, *names: str, accepted: str = "a finite number", ok: Callable[[float], bool] | None = None
) -> None:
    for name in names:
        value = getattr(owner, name)
        number = _as_number(value)
        if number is None or (ok is not None and not ok(number)):
            _reject(owner, name, value, accepted)
        _put(owner, name, number)


def _positive(owner: object, *names: str) -> None:
    _numbers(owner, *names, accepted="a finite number > 0", ok=lambda x: x > 0)


def _not_negative(owner: object, *names: str) -> None:
    _numbers(owner, *names, accepted="a finite number >= 0", ok=lambda x: x >= 0)


def _ints(owner: object, *names: str, least: int) -> None:
    for name in names:
        value = getattr(owner, name)
        number = _as_int(value, least)
        if number is None:
            _reject(owner, name, value, f"an int >= {least}")
        _put(owner, name, number)


def _one_of(owner: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in choices:
        _reject(owner, name, value, " or ".join(map(repr, choices)))


def _increasing_ints(owner: object, name: str, least: int, strictly: bool) -> None:
    value = getattr(owner, name)
    accepted = f"a list of ints >= {least} in {'strictly increasing' if strictly else 'increasing'} order"
    if isinstance(value, (str, bytes)):
        _reject(owner, name, value, accepted)
    try:
        numbers = [_as_int(x, least) for x in value]
    except TypeError:  # not iterable
        _reject(owner, name, value, accepted)
    ints = [n for n in numbers if n is not None]
    wrong_order = operator.ge if strictly else operator.gt
    if len(ints) < len(numbers) or any(map(wrong_order, ints, ints[1:])):
        _reject(owner, name, value, accepted)
    _put(owner, name, tuple(ints))


def _schedule_like(owner: object, name: str, value: object) -> ScheduleLike:
    """Return ``value`` itself if it is callable, as a float if it is a number; otherwise raise."""
    # A class is callable too, but handing one over is a forgotten pair of brackets.
    if callable(value) and not isinstance(value, type):
        return value
    number = _as_number(value)
    if number is None:
        _reject(owner, name, value, "a finite number, a schedule or another callable of the step")
    return number


# ---- arithmetic that several schedules share ----


def _mix(a: float, b: float, w: float) -> float:
    """Return the value between that is ``a`` at w = 1 and ``b`` at w = 0, both exactly."""
    return a if w == 1.0 else b + (a - b) * w


def _half_cosine(x: float) -> float:
    """Return half a cosine wave, from 1 at x = 0 to 0 at x = 1, both exactly."""
    return (1.0 + math.cos(math.pi * x)) / 2.0


def _geometric(value: float, gamma: float, n: float) -> float:
    try:
        return value * math.pow(gamma, n)
    except OverflowError:  # where IEEE arithmetic gives infinity, which the optimizer then reports
        return math.copysign(math.inf, value) if value else 0.0


def _call(schedule: ScheduleLike, step: int) -> float:
    if not callable(schedule):
        return schedule
    value = schedule(step)
    if hasattr(value, "__float__") and not isinstance(value, bool):  # float() would also read a string
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise HyperparameterError(f"the schedule {schedule!r} returned {value!r} at step {step}; a number is needed")


class Schedule:
    """Base class of all schedules: ``schedule(step)`` is the value after ``step`` optimizer steps.

    Parameters
    ----------
    step : int
        The number of optimizer steps already taken, from 0. Anything with ``__index__`` is accepted.

    Raises
    ------
    HyperparameterError
        On a step that is not an int or is negative and, at construction, on an argument out of its range.

    Examples
    --------
    A schedule of your own is a dataclass, or any other callable of the step:

    >>> from dataclasses import dataclass
    >>> import numpy as np, fastopt
    >>> @dataclass(frozen=True)
    ... class Halving:
    ...     value: float
    ...     def __call__(self, step):
    ...         return self.value * 0.5**step
    >>> w = np.zeros(1)
    >>> opt = fastopt.SGD(w, lr=Halving(1.0))
    >>> for _ in range(3):
    ...     opt.step(np.ones(1))
    >>> w.tolist()                              # 1 + 1/2 + 1/4
    [-1.75]
    """

    def __post_init__(self) -> None:
        """Check the arguments and store them as plain floats, ints and tuples."""
        self._check()

    def __call__(self, step: SupportsIndex) -> float:
        """Return the value after ``step`` optimizer steps."""
        try:
            n = operator.index(step)
        except TypeError:
            n = -1
        if n < 0:
            _reject(self, "step", step, "an int >= 0")
        return self._at(n)

    def _check(self) -> None:
        raise NotImplementedError

    def _at(self, step: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step: ``value``.

    Parameters
    ----------
    value : float
        The value, a finite number.

    Notes
    -----
    optax: ``constant_schedule(value)``. torch's ``ConstantLR`` is another thing, a factor for the first ``T``
    steps: ``Join([factor * lr, lr], [T])``.

    Examples
    --------
    >>> from fastopt.schedules import Constant
    >>> lr = Constant(0.1)
    >>> [round(lr(step), 6) for step in (0, 1000)]
    [0.1, 0.1]
    """

    value: float

    def _check(self) -> None:
        _numbers(self, "value")

    def _at(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Step(Schedule):
    """Stairs of equal width: ``value * gamma ** floor(step / step_size)``.

    Parameters
    ----------
    value : float
        Value at step 0, a finite number.
    step_size : int
        Width of a stair in steps, at least 1.
    gamma : float, default 0.1
        Factor at each stair, at least 0.

    Notes
    -----
    torch: ``StepLR(step_size, gamma)``, which multiplies the current value at each stair (same up to
    rounding). optax: ``exponential_decay(value, step_size, gamma, staircase=True)``. Keras:
    ``ExponentialDecay`` with ``staircase=True``.

    Examples
    --------
    >>> from fastopt.schedules import Step
    >>> lr = Step(0.1, step_size=30)
    >>> [round(lr(step), 6) for step in (0, 29, 30, 60)]
    [0.1, 0.1, 0.01, 0.001]
    """

    value: float
    step_size: int
    gamma: float = 0.1

    def _check(self) -> None:
        _numbers(self, "value")
        _ints(self, "step_size", least=1)
        _not_negative(self, "gamma")

    def _at(self, step: int) -> float:
        return _geometric(self.value, self.gamma, step // self.step_size)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Stairs at given steps: ``value * gamma ** n``, where ``n`` counts the milestones ``m <= step``.

    Parameters
    ----------
    value : float
        Value before the first milestone, a finite number.
    milestones : sequence of int
        Steps from 0 up, in increasing order. The new value holds from the milestone itself on; a milestone
        that stands there twice counts twice.
    gamma : float, default 0.1
        Factor at each milestone, at least 0.

    Notes
    -----
    torch: ``MultiStepLR(milestones, gamma)``, which multiplies the current value (same up to rounding).
    optax: ``piecewise_constant_schedule(value, {m: gamma, ...})``. Keras' ``PiecewiseConstantDecay`` lists
    values instead of a factor, and keeps the old value at the milestone itself: its boundary is ``m - 1``.

    Examples
    --------
    >>> from fastopt.schedules import MultiStep
    >>> lr = MultiStep(0.1, milestones=[30, 80])
    >>> [round(lr(step), 6) for step in (29, 30, 80)]
    [0.1, 0.01, 0.001]
    """

    value: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def _check(self) -> None:
        _numbers(self, "value")
        _increasing_ints(self, "milestones", least=0, strictly=False)
        _not_negative(self, "gamma")

    def _at(self, step: int) -> float:
        return _geometric(self.value, self.gamma, bisect_right(self.milestones, step))


@dataclass(frozen=True)
class Exponential(Schedule):
    """Exponential decay: ``value * gamma ** (step / decay_steps)``.

    Parameters
    ----------
    value : float
        Value at step 0, a finite number.
    gamma : float
        Factor per ``decay_steps`` steps, at least 0. Above 1 the value grows, in the end to infinity, which
        the optimizer then refuses.
    decay_steps : int, default 1
        The number of steps in which the value falls by the factor ``gamma``, at least 1.

    Notes
    -----
    torch: ``ExponentialLR(gamma)``, which multiplies the current value at each step (same up to rounding).
    optax: ``exponential_decay(value, decay_steps, gamma)``; its ``transition_begin`` is `Join`, its
    ``staircase=True`` is `Step`, its ``end_value`` has no twin here. Keras: ``ExponentialDecay``.

    Examples
    --------
    >>> from fastopt.schedules import Exponential
    >>> lr = Exponential(0.1, gamma=0.5, decay_steps=10)
    >>> [round(lr(step), 6) for step in (0, 10, 20)]
    [0.1, 0.05, 0.025]
    """

    value: float
    gamma: float
    decay_steps: int = 1

    def _check(self) -> None:
        _numbers(self, "value")
        _not_negative(self, "gamma")
        _ints(self, "decay_steps", least=1)

    def _at(self, step: int) -> float:
        return _geometric(self.value, self.gamma, step / self.decay_steps)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial decay: ``end + (value - end) * (1 - s / total_steps) ** power``.

    Here ``s = min(step, total_steps)``.

    Parameters
    ----------
    value : float
        Value at step 0, a finite number.
    total_steps : int
        Step at which ``end`` is reached, at least 1; it holds from there on.
    power : float, default 1.0
        Exponent, above 0. 1 is a straight line; larger falls faster at first.
    end : float, default 0.0
        End value, a finite number.

    Notes
    -----
    torch: ``PolynomialLR(total_steps, power)``, which has no end value but 0 and multiplies the current value
    (same up to rounding). optax: ``polynomial_schedule(value, end, power, total_steps)``. Keras:
    ``PolynomialDecay(value, total_steps, end, power)``.

    Examples
    --------
    >>> from fastopt.schedules import Polynomial
    >>> lr = Polynomial(0.1, total_steps=100, power=2)
    >>> [round(lr(step), 6) for step in (0, 50, 100)]
    [0.1, 0.025, 0.0]
    """

    value: float
    total_steps: int
    power: float = 1.0
    end: float = 0.0

    def _check(self) -> None:
        _numbers(self, "value", "end")
        _ints(self, "total_steps", least=1)
        _positive(self, "power")

    def _at(self, step: int) -> float:
        left = max(self.total_steps - step, 0) / self.total_steps
        return _mix(self.value, self.end, left**self.power)


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line: ``start + (end - start) * min(step, total_steps) / total_steps``.

    Parameters
    ----------
    start, end : float
        Values at step 0 and from ``total_steps`` on, finite numbers. The line may rise or fall.
    total_steps : int
        Step at which ``end`` is reached, at least 1.

    Notes
    -----
    torch: ``LinearLR(start_factor, end_factor, total_steps)``, whose factors multiply the base value and lie
    between 0 and 1, and which multiplies the current value (same up to rounding). optax:
    ``linear_schedule(start, end, total_steps)``. Keras: ``PolynomialDecay`` with ``power=1``.

    Examples
    --------
    >>> from fastopt.schedules import Linear
    >>> lr = Linear(0.0, 0.1, total_steps=100)
    >>> [round(lr(step), 6) for step in (0, 50, 200)]
    [0.0, 0.05, 0.1]
    """

    start: float
    end: float
    total_steps: int

    def _check(self) -> None:
        _numbers(self, "start", "end")
        _ints(self, "total_steps", least=1)

    def _at(self, step: int) -> float:
        return _mix(self.end, self.start, min(step, self.total_steps) / self.total_steps)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave: ``end + (value - end) * (1 + cos(pi * s / total_steps)) / 2``.

    Here ``s = min(step, total_steps)``.

    Parameters
    ----------
    value : float
        Value at step 0, a finite number.
    total_steps : int
        Step at which ``end`` is reached, at least 1; it holds from there on.
    end : float, default 0.0
        End value, a finite number.

    Notes
    -----
    torch: ``CosineAnnealingLR(total_steps, end)``, which multiplies the current value (same up to rounding)
    and climbs again after ``total_steps``; here the end value holds. optax:
    ``cosine_decay_schedule(value, total_steps, alpha=end / value)`` with its ``exponent`` at 1. Keras:
    ``CosineDecay(value, total_steps, alpha=end / value)``.

    Examples
    --------
    >>> from fastopt.schedules import Cosine
    >>> lr = Cosine(0.1, total_steps=100)
    >>> [round(lr(step), 6) for step in (0, 50, 100)]
    [0.1, 0.05, 0.0]

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv:1608.03983.
    """

    value: float
    total_steps: int
    end: float = 0.0

    def _check(self) -> None:
        _numbers(self, "value", "end")
        _ints(self, "total_steps", least=1)

    def _at(self, step: int) -> float:
        return _mix(self.value, self.end, _half_cosine(min(step, self.total_steps) / self.total_steps))


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Cosine decay that starts again: ``end + (value - end) * (1 + cos(pi * s / T)) / 2``, without an end.

    ``T`` is the length of the current period, ``first_period * period_mult ** i`` in period
    ``i = 0, 1, ...``, and ``s < T`` the steps taken in it.

    Parameters
    ----------
    value : float
        Value at the start of each period, a finite number.
    first_period : int
        Length of the first period in steps, at least 1.
    period_mult : int, default 1
        Each period is this many times as long as the one before, at least 1.
    end : float, default 0.0
        The value that a period falls towards, a finite number. Since the restart takes its place, it is not
        itself met.

    Notes
    -----
    torch: ``CosineAnnealingWarmRestarts(first_period, period_mult, end)``, the same formula. optax:
    ``sgdr_schedule`` with one entry a period. Keras: ``CosineDecayRestarts``, which can also lower the peak
    (``m_mul``), and finds the period by a logarithm, not exactly.

    Examples
    --------
    >>> from fastopt.schedules import CosineRestarts
    >>> lr = CosineRestarts(0.1, first_period=100, period_mult=2)
    >>> [round(lr(step), 6) for step in (0, 50, 100, 200, 300)]
    [0.1, 0.05, 0.1, 0.05, 0.1]

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv:1608.03983.
    """

    value: float
    first_period: int
    period_mult: int = 1
    end: float = 0.0

    def _check(self) -> None:
        _numbers(self, "value", "end")
        _ints(self, "first_period", "period_mult", least=1)

    def _at(self, step: int) -> float:
        period = self.first_period
        if self.period_mult == 1:
            step %= period
        while step >= period:  # in whole numbers, since a logarithm can miss the period by one
            step -= period
            period *= self.period_mult
        return _mix(self.value, self.end, _half_cosine(step / period))


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Hyperbolic decay: ``value / (1 + rate * step / decay_steps)``.

    Parameters
    ----------
    value : float
        Value at step 0, a finite number.
    rate : float
        Speed of the decay, at least 0: after ``decay_steps / rate`` steps the value has halved.
    decay_steps : int, default 1
        The number of steps that ``rate`` refers to, at least 1.

    Notes
    -----
    Keras: ``InverseTimeDecay(value, decay_steps, rate)``. torch has it inside ``Adagrad`` (``lr_decay`` is
    ``rate``), otherwise as a ``LambdaLR``. optax has no twin.

    Examples
    --------
    >>> from fastopt.schedules import InverseTime
    >>> lr = InverseTime(0.1, rate=0.5, decay_steps=10)
    >>> [round(lr(step), 6) for step in (0, 20, 60)]
    [0.1, 0.05, 0.025]
    """

    value: float
    rate: float
    decay_steps: int = 1

    def _check(self) -> None:
        _numbers(self, "value")
        _not_negative(self, "rate")
        _ints(self, "decay_steps", least=1)

    def _at(self, step: int) -> float:
        return self.value / (1.0 + self.rate * (step / self.decay_steps))


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Linear warm-up to ``value``, then decay with the inverse square root of the step.

    ``start + (value - start) * step / warmup`` while ``step < warmup``, then ``value * sqrt(warmup / step)``.

    Parameters
    ----------
    value : float
        The peak, reached at step ``warmup``; a finite number.
    warmup : int
        Length of the warm-up in steps and time scale of the decay, at least 1. At ``4 * warmup`` the value
        has halved.
    start : float, default 0.0
        Value at step 0, a finite number. With ``start=value`` the warm-up is flat:
        ``value * sqrt(warmup) / sqrt(max(step, warmup))``, the form of T5.

    Notes
    -----
    The "Noam" schedule of the Transformer, ``d ** -0.5 * min(n ** -0.5, n * w ** -1.5)``, is
    ``InverseSqrt((d * w) ** -0.5, w)``, where Noam's ``n`` is ``step``. Code that counts ``n`` from 1 has at
    its first step what this has at ``step = 1``. torch, optax and Keras have no twin; torch users write a
    ``LambdaLR``.

    Examples
    --------
    >>> from fastopt.schedules import InverseSqrt
    >>> lr = InverseSqrt(0.1, warmup=100)
    >>> [round(lr(step), 6) for step in (50, 100, 400)]
    [0.05, 0.1, 0.05]

    References
    ----------
    Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, equation 3.
    """

    value: float
    warmup: int
    start: float = 0.0

    def _check(self) -> None:
        _numbers(self, "value", "start")
        _ints(self, "warmup", least=1)

    def _at(self, step: int) -> float:
        if step < self.warmup:
            return _mix(self.value, self.start, step / self.warmup)
        return self.value * math.sqrt(self.warmup / step)


@dataclass(frozen=True)
class EmaWarmup(Schedule):
    """For ``ema_decay``: small at first, ``min(decay, (2 + step) / (11 + step))``.

    So an average leaves its first values sooner.

    Parameters
    ----------
    decay : float in [0, 1]
        What it comes to.

    Notes
    -----
    torch_ema: ``ExponentialMovingAverage(params, decay)``, with ``ema_start=0``. Under thinc the decay of averages has
    this warm-up by itself, counted for each parameter.

    Examples
    --------
    >>> from fastopt.schedules import EmaWarmup
    >>> decay = EmaWarmup(0.999)
    >>> [round(decay(step), 3) for step in (0, 7, 89, 100_000)]
    [0.182, 0.5, 0.91, 0.999]
    """

    decay: float

    def _check(self) -> None:
        _numbers(self, "decay", accepted="a number from 0 to 1", ok=lambda x: 0 <= x <= 1)

    def _at(self, step: int) -> float:
        return min(self.decay, (2.0 + step) / (11.0 + step))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to a peak, then down to far below the start, once.

    From ``first = max_value / div_factor`` at step 0 to ``max_value`` at
    ``peak = pct_start * total_steps - 1``, then to ``last = first / final_div_factor`` at step
    ``total_steps - 1``, which holds from there on. Within a phase from ``a`` to ``b``, with ``x`` from 0 to
    1: ``b + (a - b) * (1 + cos(pi * x)) / 2`` for ``anneal="cos"``, ``a + (b - a) * x`` for ``"linear"``.
    ``peak`` need not be a whole number. If it is negative, there is no way up, and step 0 is already past the
    peak.

    Parameters
    ----------
    max_value : float
        The peak, a finite number.
    total_steps : int
        Length of the cycle in steps, at least 1.
    pct_start : float, default 0.3
        The fraction (not per cent) of the cycle spent going up, 0 to 1.
    div_factor : float, default 25.0
        The start is ``max_value / div_factor``; above 0.
    final_div_factor : float, default 1e4
        The end is the start divided by this; above 0.
    anneal : {"cos", "linear"}, default "cos"
        Shape of both phases.

    Notes
    -----
    torch: ``OneCycleLR`` with ``three_phase=False``, the same formula; it raises after ``total_steps``, here
    the end value holds. optax: ``cosine_onecycle_schedule`` turns at ``int(pct_start * total_steps)`` and
    ends at ``total_steps``, one step later each; ``linear_onecycle_schedule`` has three phases. Keras has
    none.

    torch also cycles the momentum, the other way round. Here that is a second schedule, since all values are
    defined by their ratios: down from 0.95 to 0.85 while the learning rate goes up, and back to 0.95, is
    ``momentum=OneCycle(0.85, total_steps, div_factor=0.85 / 0.95, final_div_factor=1)``, or the same as the
    first element of ``betas``.

    Examples
    --------
    >>> from fastopt.schedules import OneCycle
    >>> lr = OneCycle(0.1, total_steps=100)
    >>> [round(lr(step), 6) for step in (0, 29, 99)]
    [0.004, 0.1, 0.0]

    References
    ----------
    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    2017, arXiv:1708.07120.
    """

    max_value: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"

    def _check(self) -> None:
        _numbers(self, "max_value")
        _ints(self, "total_steps", least=1)
        _numbers(self, "pct_start", accepted="a number from 0 to 1", ok=lambda x: 0 <= x <= 1)
        _positive(self, "div_factor", "final_div_factor")
        _one_of(self, "anneal", ("cos", "linear"))

    def _at(self, step: int) -> float:
        first = self.max_value / self.div_factor
        last = first / self.final_div_factor
        peak, final = self.pct_start * self.total_steps - 1.0, self.total_steps - 1
        step = min(step, final)
        if step == peak:  # said apart, since a phase can have no length
            return self.max_value
        if step < peak:
            a, b, x = first, self.max_value, step / peak
        else:
            a, b, x = self.max_value, last, (step - peak) / (final - peak)
        return _mix(a, b, _half_cosine(x) if self.anneal == "cos" else 1.0 - x)


@dataclass(frozen=True)
class Warmup(Schedule):
    """A linear rise into another schedule, which begins, at its own step 0, when the rise is over.

    ``start + (after(0) - start) * step / steps`` while ``step < steps``, then ``after(step - steps)``.

    Parameters
    ----------
    steps : int
        Length of the warm-up in steps, at least 0; ``after`` takes over at step ``steps``.
    after : float, schedule or callable
        What follows. A number is held.
    start : float, default 0.0
        Value at step 0, a finite number. With the default the very first step has the value 0 and as a
        learning rate moves nothing; ``start=peak / steps`` begins with the first stair instead.

    Notes
    -----
    optax: ``warmup_constant_schedule``, ``warmup_cosine_decay_schedule`` (whose ``decay_steps`` includes the
    warm-up: ``Warmup(w, Cosine(peak, decay_steps - w, end), start)``), ``warmup_exponential_decay_schedule``.
    torch: ``SequentialLR([LinearLR(...), after], [steps])``, whose ``start_factor`` must be above 0. Keras:
    ``CosineDecay(start, decay_steps, warmup_target=..., warmup_steps=steps)``, ``decay_steps`` without the
    warm-up.

    Examples
    --------
    >>> from fastopt.schedules import Cosine, Warmup
    >>> lr = Warmup(100, Cosine(0.1, total_steps=900))
    >>> [round(lr(step), 6) for step in (0, 50, 100, 1000)]
    [0.0, 0.05, 0.1, 0.0]
    """

    steps: int
    after: ScheduleLike
    start: float = 0.0

    def _check(self) -> None:
        _ints(self, "steps", least=0)
        _put(self, "after", _schedule_like(self, "after", self.after))
        _numbers(self, "start")

    def _at(self, step: int) -> float:
        if step < self.steps:
            return _mix(_call(self.after, 0), self.start, step / self.steps)
        return _call(self.after, step - self.steps)


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after another: ``schedules[i](step - boundaries[i - 1])``.

    ``i`` counts the boundaries at or below ``step``; the first schedule is called with ``step`` itself.

    Parameters
    ----------
    schedules : sequence of float, schedule or callable
        One more than there are boundaries. Each is called with the steps taken since its own beginning.
    boundaries : sequence of int
        Steps at which the next schedule takes over, from 1 up, in strictly increasing order.

    Notes
    -----
    optax: ``join_schedules(schedules, boundaries)``, the same. torch: ``SequentialLR``, whose parts multiply
    the current value (same up to rounding).

    Examples
    --------
    >>> from fastopt.schedules import Join, Linear
    >>> lr = Join([0.1, Linear(0.1, 0.0, total_steps=100)], [50])
    >>> [round(lr(step), 6) for step in (0, 50, 100, 150)]
    [0.1, 0.1, 0.05, 0.0]
    """

    schedules: Sequence[ScheduleLike]
    boundaries: Sequence[int]

    def _check(self) -> None:
        _increasing_ints(self, "boundaries", least=1, strictly=True)
        accepted = f"a list of {len(self.boundaries) + 1} schedules (one more than boundaries)"
        if isinstance(self.schedules, (str, bytes)):
            _reject(self, "schedules", self.schedules, accepted)
        try:
            parts = tuple(self.schedules)
        except TypeError:
            _reject(self, "schedules", self.schedules, accepted)
        if len(parts) != len(self.boundaries) + 1:
            _reject(self, "schedules", self.schedules, accepted)
        parts = tuple(_schedule_like(self, f"schedules[{i}]", part) for i, part in enumerate(parts))
        _put(self, "schedules", parts)

    def _at(self, step: int) -> float:
        i = bisect_right(self.boundaries, step)
        return _call(self.schedules[i], step - self.boundaries[i - 1] if i else step)


@dataclass
class ReduceOnPlateau(Schedule):
    """A value that falls by a factor when a metric stops getting better.

    Called, it returns ``value``, whatever the step. `update`, called by the user (say, with the loss of each
    epoch), counts the updates in a row that did not better ``best``. At more than ``patience`` of them the
    value becomes ``max(value * factor, min_value)``, and the count starts again.

    Parameters
    ----------
    value : float
        The current value, a finite number. `update` lowers it.
    mode : {"min", "max"}, default "min"
        Whether a smaller or a larger metric is better.
    factor : float, default 0.1
        Factor by which the value falls, from 0 to below 1.
    patience : int, default 10
        The number of updates without improvement that are still tolerated, at least 0.
    threshold : float, default 1e-4
        By how much the metric must better ``best`` to count, at least 0.
    threshold_mode : {"rel", "abs"}, default "rel"
        ``"rel"``: ``metric < best * (1 - threshold)`` (for ``"max"``: ``> best * (1 + threshold)``), meant
        for a metric that is positive. ``"abs"``: ``metric < best - threshold`` (``> best + threshold``).
    cooldown : int, default 0
        The number of updates after a fall during which nothing is counted, at least 0.
    min_value : float, default 0.0
        The value never falls below this, a finite number.
    eps : float, default 1e-8
        A fall that is not larger than this is left out, at least 0.
    best : float or None, keyword only
        The best metric so far; None before the first. State, as are the next two: a new object begins with
        the defaults, and `repr`, ``==`` and pickling include it.
    bad_updates : int, keyword only
        Updates in a row without improvement.
    cooldown_left : int, keyword only
        Updates during which nothing is counted yet.

    Notes
    -----
    torch: ``ReduceLROnPlateau``, the same rule and argument order (``min_value`` is its ``min_lr``). Keras'
    callback and ``optax.contrib.reduce_on_plateau`` fall one update earlier for the same ``patience``. Keras
    knows only ``threshold_mode="abs"`` and counts its cooldown otherwise; optax scales the updates instead,
    and can average the metric over steps. A NaN is never an improvement. The object can be shared between
    groups; it is not hashable, since it changes.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.schedules import ReduceOnPlateau
    >>> lr = ReduceOnPlateau(0.1, factor=0.5, patience=1)
    >>> opt = fastopt.SGD(np.ones(3), lr=lr)
    >>> [lr.update(loss) for loss in (1.0, 0.9, 0.9, 0.9)]
    [0.1, 0.1, 0.1, 0.05]
    """

    value: float
    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_value: float = 0.0
    eps: float = 1e-8
    _: KW_ONLY
    best: float | None = None
    bad_updates: int = 0
    cooldown_left: int = 0

    def _check(self) -> None:
        _numbers(self, "value", "min_value")
        _one_of(self, "mode", ("min", "max"))
        _numbers(self, "factor", accepted="a number >= 0 and < 1", ok=lambda x: 0 <= x < 1)
        _ints(self, "patience", "cooldown", "bad_updates", "cooldown_left", least=0)
        _not_negative(self, "threshold", "eps")
        _one_of(self, "threshold_mode", ("rel", "abs"))
        infinite = isinstance(self.best, Real) and self.best in (math.inf, -math.inf)  # as metrics may be
        if self.best is not None and not infinite:
            _numbers(self, "best")

    def _at(self, step: int) -> float:
        return self.value

    def update(self, metric: SupportsFloat) -> float:
        """Take note of a metric, lower the value if it is time to, and return the value.

        Parameters
        ----------
        metric : float
            The latest value of what is watched. NaN and infinities are allowed.

        Returns
        -------
        float
            The value from now on.
        """
        try:
            current = float(metric)
        except (TypeError, ValueError, OverflowError):
            _reject(self, "metric", metric, "a number")
        if self._is_better(current):
            self.best = current
            self.bad_updates = 0
        else:
            self.bad_updates += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.bad_updates = 0
        if self.bad_updates > self.patience:
            lowered = max(self.value * self.factor, self.min_value)
            if self.value - lowered > self.eps:
                self.value = lowered
            self.cooldown_left = self.cooldown
            self.bad_updates = 0
        return self.value

    def _is_better(self, metric: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        best = sign * math.inf if self.best is None else self.best
        if self.threshold_mode == "rel":
            bar = best * (1.0 - sign * self.threshold)
        else:
            bar = best - sign * self.threshold
        return metric < bar if self.mode == "min" else metric > bar
