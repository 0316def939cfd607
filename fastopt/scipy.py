"""fastopt's optimizers as methods of `scipy.optimize.minimize`.

There is one class for each optimizer in `fastopt.OPTIMIZERS`, of the same name: ``Adam``, ``SGD``, ``RMSprop`` ... Each
takes the options of the fastopt class by name, and is what SciPy calls a custom method: `Method` says what it does.

Examples
--------
>>> import fastopt.scipy
>>> from scipy.optimize import minimize, rosen, rosen_der
>>> adam = fastopt.scipy.Adam(lr=0.02)
>>> result = minimize(rosen, [-1.0, 2.0], jac=rosen_der, method=adam, tol=1e-6, options={"maxiter": 10_000})
>>> result.success, result.x.round(4).tolist()
(True, [1.0, 1.0])
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from math import inf, isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning
from scipy.optimize._numdiff import approx_derivative

from fastopt import OPTIMIZERS
from fastopt.engine import shown
from fastopt.errors import DTypeError, HyperparameterError, ParameterError, ShapeError, UnknownOptionError
from fastopt.norms import norm
from fastopt.optimizer import Optimizer

try:
    from scipy.optimize._optimize import MemoizeJac
except ImportError:  # a SciPy that has it no more: both halves of `fun` are then asked for one after the other
    MemoizeJac = None  # type: ignore[assignment,misc,unused-ignore]

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]

# Options of the class that make no sense here, and what to do instead.
REFUSED = {
    "maximize": "minimize minimizes: negate the function and its gradient",
    "nonfinite": "minimize stops where the function or its gradient is not finite",
    "copy_grads": "gradients are converted as they need to be",
    "zero_grads": "the gradient is part of the result",
    "state_factory": "the state is new for each call of minimize",
    **dict.fromkeys(("split", "rounding", "param_dtype", "grad_dtype", "mirrors"), "x0 is stepped in its own type"),
}
CONVERGED, LIMIT, NOT_FINITE, STOPPED = 0, 1, 3, 99  # status, as of SciPy's own methods
FIXED = -1  # no status: nothing can move
STEP_OF_DIFFERENCES = float(np.finfo(float).eps) ** 0.5  # as of SciPy's own methods


class Method:
    """A method of `scipy.optimize.minimize` that steps with an optimizer of fastopt.

    Use one of the classes that derive from it, ``minimize(fun, x0, jac=True, method=fastopt.scipy.Adam(lr=0.1))``, or
    derive one with a class of your own as `optimizer`. An object has no state: it can be used again, also at the same
    time, by `basinhopping` for example.

    Each iteration takes one step along the gradient, with no line search: the learning rate is yours to choose. The
    steps are those of a loop over the fastopt class, to the last bit.

    Parameters
    ----------
    **options
        Those of the fastopt class by name: hyperparameters (numbers or schedules), ``convention``, ``clip_norm``,
        ``clip_norm_each``, ``clip_value``, ``ema_decay`` ... All but ``maximize``, ``nonfinite``, ``copy_grads``,
        ``zero_grads``, ``state_factory``, ``mirrors``, and what concerns bfloat16 parameters.

    Raises
    ------
    HyperparameterError, ConventionError, UnknownOptionError
        As the fastopt class, when the object is made.

    Notes
    -----
    What `minimize` is given:

    fun, jac, args
        ``jac=True``, a callable, or None for forward differences with SciPy's own code (``jac="3-point"`` becomes None
        in SciPy). The function gets a copy of x, which it may keep or overwrite. What it returns has to be real.
    x0
        float32 is stepped in float32; integers and float16 become float64. Other types are a `DTypeError`.
    bounds
        Pairs (one for all, or one for each element) or a `scipy.optimize.Bounds`. x0, and x after each step, are put
        between them. The function is never evaluated outside. By differences, jac is NaN where bounds fix an element,
        as in SciPy. Not together with ``ema_decay``, which would average points outside.
    tol
        Stop when the largest absolute element of the gradient is at most `tol`; with bounds of the projected gradient,
        ``x - clip(x - gradient)``. The gradient is that of `fun`, without clipping and weight decay. None: never.
    callback
        ``callback(xk)``, or ``callback(intermediate_result=...)`` with x, fun, jac and nit, after each iteration; x and
        jac are copies. StopIteration stops.
    options
        ``maxiter`` (default 1000), ``disp``, ``return_all``, ``gtol`` (goes before `tol`); for differences ``eps`` and
        ``finite_diff_rel_step``. Others are an `OptimizeWarning`; hyperparameters of the class an `UnknownOptionError`.
    constraints
        A `ParameterError`, since the result would be wrong. ``hess`` and ``hessp`` are a RuntimeWarning.

    The result has x, fun, jac, nit, nfev, njev, success, status and message (``allvecs`` with ``return_all``). x is the
    last iterate, not the best; fun and jac are those at x, so that nfev is ``nit + 1``, but for differences and
    status 3. With `NAG`, whose gradient belongs to the lookahead, x is the lookahead everywhere, in the callback, too.
    With ``ema_decay``, ``ema`` is the average of the iterates; of `ASGD`, ``ax`` is its own (not with bounds).

    ======  =======  =========================================================================================
    status  success
    ======  =======  =========================================================================================
    0       True     the gradient is within `tol`; or without `tol`, ``maxiter`` steps are taken; or all elements
                     are fixed by bounds (nit is 0)
    1       False    with `tol`: ``maxiter`` steps are taken, and the gradient is not within `tol`
    3       False    the function, its gradient or x is not finite after a step; x, fun and jac are those before
                     that step, which nit does not count (at x0: x0), and there is no average
    99      False    the callback raised StopIteration
    ======  =======  =========================================================================================

    Examples
    --------
    >>> import fastopt.scipy
    >>> from scipy.optimize import minimize
    >>> def fun(x):
    ...     return ((x - 3) ** 2).sum(), 2 * (x - 3)
    >>> result = minimize(fun, [0.0, 5.0], jac=True, method=fastopt.scipy.Momentum(lr=0.05), tol=1e-8)
    >>> result.success, result.x.round(6).tolist()
    (True, [3.0, 3.0])
    """

    optimizer: ClassVar[type[Optimizer]] = Optimizer
    """The class of fastopt that takes the steps."""

    def __init__(self, **options: Any) -> None:
        for name in REFUSED.keys() & options.keys():
            raise UnknownOptionError(f"{name} is not an option of {type(self).__qualname__}: {REFUSED[name]}")
        self.options = options
        self._over(np.zeros(1, np.float32 if "state_dtype" in options else np.float64))  # raises what there is to raise

    def _over(self, x: np.ndarray) -> Optimizer:
        return self.optimizer(x, **self.options, copy_grads=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def __call__(
        self, fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, jac: Callable[..., Any] | None = None,
        hess: Any = None, hessp: Any = None, bounds: Any = None, constraints: Any = (),
        callback: Callable[..., Any] | None = None, tol: Any = None, gtol: Any = None, maxiter: Any = None,
        disp: bool = False, return_all: bool = False, eps: Any = STEP_OF_DIFFERENCES, finite_diff_rel_step: Any = None,
        **unknown: Any,
    ) -> OptimizeResult:  # fmt: skip
        """What `minimize` calls, with its own arguments and its options by name."""
        self._refuse(constraints, unknown)
        name = type(self).__name__
        if hess is not None:
            _warn(f"Method {name} does not use Hessian information (hess).", RuntimeWarning)
        if hessp is not None:
            _warn(f"Method {name} does not use Hessian-vector product information (hessp).", RuntimeWarning)
        if unknown:
            _warn(f"Unknown solver options: {', '.join(map(str, unknown))}", OptimizeWarning)
        tol = _number("tol", tol) if gtol is None else _number("gtol", gtol)
        limit = _number("maxiter", maxiter)
        if limit is None:
            limit = 1000.0
        if limit == inf and tol is None and callback is None:
            raise HyperparameterError("maxiter=inf never stops: give a tol or a callback")
        tell = _teller(callback)

        x = _start(x0)
        box = None if bounds is None else _box(bounds, x)
        if box is not None:
            if self.options.get("ema_decay") is not None:
                raise HyperparameterError("ema_decay with bounds: the average would be that of points outside")
            _into(x, box)
        objective = _Objective(fun, jac, args, x, box, eps, finite_diff_rel_step)
        optimizer = self._over(x)

        # The point where the function is evaluated is x itself, but for NAG.
        step, evaluate, lookahead = optimizer.step, objective.evaluate, getattr(optimizer, "lookahead", None)
        point, kept = x, np.empty_like(x)
        value, gradient = evaluate(point)
        points = [point.copy()] if return_all else None
        nit, status = 0, None if _finite(value, gradient, point) else NOT_FINITE
        if status is None and box is not None and (box[0] == box[1]).all():
            status = FIXED
        while status is None:
            if tol is not None and _size(gradient, point, box) <= tol:
                status = CONVERGED
            elif nit >= limit:
                status = LIMIT
            else:
                kept[...] = point
                step(gradient)
                if box is not None:
                    _into(x, box)
                if lookahead is not None:
                    point = lookahead() if box is None else _into(lookahead(), box)
                new_value, new_gradient = evaluate(point)
                if not _finite(new_value, new_gradient, point):
                    status, point = NOT_FINITE, kept
                    if np.may_share_memory(gradient, new_gradient):  # the function writes all gradients into one array
                        value, gradient = evaluate(point)
                    break
                value, gradient, nit = new_value, new_gradient, nit + 1
                if points is not None:
                    points.append(point.copy())
                if tell is not None:
                    gradient = gradient.copy()  # the callback may call a function that writes all into one array
                    try:
                        tell(point, value, objective.shown(gradient), nit)
                    except StopIteration:
                        status = STOPPED

        success = status in (CONVERGED, FIXED) or (status == LIMIT and tol is None)
        result = OptimizeResult(
            x=point.copy(), fun=value, jac=objective.shown(gradient), nit=nit, nfev=objective.nfev, njev=objective.njev,
            success=success, status=CONVERGED if success else status, message=_message(status, tol, nit),
        )  # fmt: skip
        if points is not None:
            result["allvecs"] = points
        if status != NOT_FINITE:
            if self.options.get("ema_decay") is not None:
                result["ema"] = optimizer.averages[0].copy()
            if "ax" in optimizer.state[0] and box is None:
                result["ax"] = optimizer.state[0]["ax"].copy() if nit else point.copy()
        if disp:
            if not success:
                _warn(result.message, OptimizeWarning)
            _show(result)
        return result

    def _refuse(self, constraints: Any, unknown: dict[str, Any]) -> None:
        name = type(self).__name__
        if constraints is not None and np.any(constraints):
            raise ParameterError(f"constraints={constraints!r:.60}: {name} cannot handle constraints, only bounds")
        for key in unknown.keys() & _signature(self.optimizer).parameters.keys():
            raise UnknownOptionError(f"options={{{key!r}: ...}}: give it to the method, {name}({key}=...)")


class _Objective:
    """The function and its gradient, counted. `evaluate` gives both at a point, checked."""

    def __init__(
        self, fun: Any, jac: Any, args: tuple[Any, ...], x: np.ndarray,
        box: tuple[np.ndarray, np.ndarray] | None, eps: Any, rel_step: Any,
    ) -> None:  # fmt: skip
        self.nfev = self.njev = 0
        self._fun, self._jac, self._args = fun, jac, args
        self._dtype, self._shape = x.dtype, x.shape
        self._differences = {
            "rel_step": rel_step, "abs_step": eps if rel_step is None else None, "bounds": box or (-inf, inf)
        }  # fmt: skip
        self.unknown = None  # where a derivative cannot be had by differences: there is no room for one
        if not callable(jac) and box is not None and (box[0] == box[1]).any():
            self.unknown = box[0] == box[1]
            self._differences["bounds"] = box[0][~self.unknown], box[1][~self.unknown]
        # Of jac=True, SciPy makes two functions that share their last value. The function behind them is called
        # directly: to compare each x with the last one takes longer than a step.
        shared = MemoizeJac is not None and type(fun) is MemoizeJac and jac == fun.derivative
        if shared:
            self._fun = fun.fun
        self._both = self._pair if shared else self._one_by_one if callable(jac) else self._by_differences

    def evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self._both(x)
        if (
            type(gradient) is np.ndarray and gradient.dtype == self._dtype and gradient.shape == self._shape
            and gradient.flags.c_contiguous
        ):  # fmt: skip
            return value, gradient
        return value, self._gradient(gradient)

    def _pair(self, x: np.ndarray) -> tuple[float, Any]:
        self.nfev += 1
        self.njev += 1
        both = self._fun(x.copy(), *self._args)
        value = both[0]
        return value if type(value) is float else _value(value), both[1]

    def _one_by_one(self, x: np.ndarray) -> tuple[float, Any]:
        self.nfev += 1
        self.njev += 1
        value = _value(self._fun(x.copy(), *self._args))
        return value, self._jac(x.copy(), *self._args)

    def _by_differences(self, x: np.ndarray) -> tuple[float, Any]:
        value = self._counted(x)
        self.njev += 1
        if not isfinite(value):
            return value, np.full_like(x, np.nan)
        if self.unknown is None:
            return value, approx_derivative(self._counted, x, method="2-point", f0=value, **self._differences)
        gradient, free, moved = np.zeros_like(x), ~self.unknown, x.copy()

        def of_free(part: np.ndarray) -> float:
            moved[free] = part
            return self._counted(moved)

        if free.any():
            gradient[free] = approx_derivative(of_free, x[free], method="2-point", f0=value, **self._differences)
        return value, gradient

    def shown(self, gradient: np.ndarray) -> np.ndarray:
        """A copy of a gradient for the caller, with NaN for what is not known."""
        gradient = gradient.copy()
        if self.unknown is not None:
            gradient[self.unknown] = np.nan
        return gradient

    def _counted(self, x: np.ndarray) -> float:
        self.nfev += 1
        return _value(self._fun(x.copy(), *self._args))

    def _gradient(self, given: Any) -> np.ndarray:
        """A gradient that is no contiguous array of the shape and type of x, as one."""
        gradient = np.atleast_1d(np.asarray(given))
        if gradient.dtype.kind not in "fiub":
            raise DTypeError(f"the gradient must be an array of real numbers, not {shown(given)}")
        if gradient.shape != self._shape:
            raise ShapeError(f"the gradient must have the shape of x, {self._shape}, not {gradient.shape}")
        return gradient.astype(self._dtype)  # a copy, contiguous


def _value(given: Any) -> float:
    """What a function returned, as a float: one real number, or an array of one."""
    if isinstance(given, float):  # NumPy's float64, too
        return float(given)
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"the function must return one real number, not {shown(given)}")
    if array.size != 1:
        raise ShapeError(
            "The user-provided objective function must return a scalar value. "
            f"This one returned an array of shape {array.shape}"
        )
    return float(array.item())


def _finite(value: float, gradient: np.ndarray, point: np.ndarray) -> bool:
    if not isfinite(value):
        return False
    if isfinite(norm([gradient, point])):
        return True
    return bool(np.isfinite(gradient).all() and np.isfinite(point).all())  # their squares may be too large


def _into(x: np.ndarray, box: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Put x between the bounds, in place: over few elements in a third of the time of `numpy.clip`."""
    np.maximum(x, box[0], out=x)
    return np.minimum(x, box[1], out=x)


def _size(gradient: np.ndarray, point: np.ndarray, box: tuple[np.ndarray, np.ndarray] | None) -> float:
    """The largest absolute element of a gradient; with bounds, of the way that is left along it."""
    if box is None:
        return norm(gradient, inf)
    way = _into(point - gradient, box)
    return norm(np.subtract(point, way, out=way), inf)


def _start(x0: Any) -> np.ndarray:
    """A copy of x0 to be stepped."""
    given = np.atleast_1d(np.asarray(x0))
    if given.ndim != 1:
        raise ShapeError(f"'x0' must only have one dimension, not the shape {given.shape}")
    kind, size = given.dtype.kind, given.dtype.itemsize
    if kind not in "iubf" or (kind == "f" and size > 8):
        raise DTypeError(f"x0 must be float32 or float64, or integers; not {shown(given)}")
    return np.array(given, np.float32 if kind == "f" and size == 4 else np.float64, order="C")


def _box(bounds: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds, in the shape and type of x."""
    try:
        if isinstance(bounds, Bounds):
            given = [bounds.lb, bounds.ub]
        else:
            pairs = [(-inf if low is None else low, inf if high is None else high) for low, high in bounds]
            given = [[low for low, _ in pairs], [high for _, high in pairs]]
        low, high = (np.asarray(side, np.float64) for side in given)
    except (TypeError, ValueError):
        raise ParameterError(
            f"bounds={bounds!r:.60} must be pairs (low, high), one for each element of x0, or a scipy.optimize.Bounds"
        ) from None
    if np.isnan(low).any() or np.isnan(high).any():
        raise ParameterError("bounds hold NaN; None or an infinity stands for no bound")
    try:
        low, high = np.broadcast_to(low, x.shape), np.broadcast_to(high, x.shape)
    except ValueError:
        raise ParameterError(
            f"The number of bounds is not compatible with the length of `x0`. bounds have {low.size}, x0 has {x.size}"
        ) from None
    # In float32, the next number inside.
    with np.errstate(all="ignore"):
        least, most = low.astype(x.dtype), high.astype(x.dtype)
        least = np.where(least < low, np.nextafter(least, np.asarray(inf, x.dtype)), least)
        most = np.where(most > high, np.nextafter(most, np.asarray(-inf, x.dtype)), most)
    if (least > most).any():
        i = int(np.argmax(least > most))
        raise ParameterError(
            f"An upper bound is less than the corresponding lower bound. bounds of element {i}: {low[i]}, {high[i]}"
        )
    return least, most


def _number(name: str, value: Any) -> float | None:
    """An option that is a number of at least 0, or None."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or value != value or value < 0:
        raise HyperparameterError(f"{name} must be a number of at least 0, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:  # an int beyond all floats
        return inf


def _teller(callback: Callable[..., Any] | None) -> Callable[[np.ndarray, float, np.ndarray, int], None] | None:
    """What calls a callback in the one of SciPy's two forms that it takes."""
    if callback is None:
        return None
    try:
        new = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # a builtin that does not say
        new = False

    def tell(point: np.ndarray, value: float, gradient: np.ndarray, nit: int) -> None:
        if new:
            callback(intermediate_result=OptimizeResult(x=point.copy(), fun=value, jac=gradient, nit=nit))
        else:
            callback(point.copy())

    return tell


def _message(status: int, tol: float | None, nit: int) -> str:
    if status == CONVERGED:
        return "Optimization terminated successfully."
    if status == FIXED:
        return "All independent variables were fixed by bounds."
    if status == STOPPED:
        return "`callback` raised `StopIteration`."
    if status == NOT_FINITE:
        return f"NaN result encountered. The function, its gradient or x is not finite after iteration {nit}."
    if tol is None:
        return f"maxiter={nit} iterations are done (without tol, nothing else was to stop them)."
    return "Maximum number of iterations has been exceeded."


def _warn(text: str, category: type[Warning]) -> None:
    """Warn where `minimize` was called."""
    warnings.warn(text, category, stacklevel=4)  # from here, `Method.__call__` and `minimize`


def _show(result: OptimizeResult) -> None:
    """Print what SciPy's own methods print."""
    if result.success:
        print(result.message)
    print(f"         Current function value: {result.fun:f}")
    print(f"         Iterations: {result.nit:d}")
    print(f"         Function evaluations: {result.nfev:d}")
    print(f"         Gradient evaluations: {result.njev:d}")


def _signature(cls: type[Optimizer]) -> inspect.Signature:
    """The options of a class, by name."""
    options = [p for name, p in inspect.signature(cls).parameters.items() if name not in ("params", *REFUSED)]
    return inspect.Signature([option.replace(kind=option.KEYWORD_ONLY) for option in options])


def _method(name: str, cls: type[Optimizer]) -> type[Method]:
    """The method of an optimizer."""
    doc = f"`fastopt.{name}` as a method of `scipy.optimize.minimize`: its options there, all else at `Method`."
    members = {"optimizer": cls, "__doc__": doc, "__module__": __name__, "__signature__": _signature(cls)}
    return type(name, (Method,), members)


__all__ = ["Method", *OPTIMIZERS]
globals().update({name: _method(name, cls) for name, cls in OPTIMIZERS.items()})

if TYPE_CHECKING:  # what the last line made

    def __getattr__(name: str) -> type[Method]: ...
