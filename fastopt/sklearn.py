"""scikit-learn's multilayer perceptrons, stepped by fastopt.

`MLPClassifier` and `MLPRegressor` are those of scikit-learn, with compiled steps for the solvers "adam" and "sgd".
`use` does the same for programs that make scikit-learn's own classes. Needs scikit-learn 1.3 or later:
``pip install "fastopt[sklearn]"``.

Examples
--------
>>> from sklearn.datasets import load_digits
>>> from fastopt.sklearn import MLPClassifier
>>> X, y = load_digits(return_X_y=True)
>>> model = MLPClassifier(hidden_layer_sizes=(32,), batch_size=32, max_iter=300, random_state=0).fit(X / 16, y)
>>> model.score(X / 16, y) > 0.99
True
"""

# Design: scikit-learn has no public hook. `BaseMultilayerPerceptron._fit_stochastic` makes an AdamOptimizer or an
# SGDOptimizer, keeps it as `self._optimizer`, and calls three methods of it. In the classes here `_optimizer` is a
# descriptor that puts the class of this module in the place of scikit-learn's, so nothing of scikit-learn is replaced.
#
# scikit-learn never writes into a state array: every step makes new ones. fastopt writes in place. So it steps arrays
# that nobody else has seen: whoever sets or reads `ms`, `vs` or `velocities` makes the next step copy them first.

from __future__ import annotations

import copy
import copyreg
import inspect
import math
import threading
from operator import is_
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from fastopt.errors import FastoptError, InstallError, LayoutError, MissingExtraError
from fastopt.functional import Bound, bind

try:
    import sklearn
    from sklearn import neural_network
except ModuleNotFoundError as error:
    raise MissingExtraError('fastopt.sklearn needs scikit-learn: pip install "fastopt[sklearn]"') from error
try:
    from sklearn.neural_network import _multilayer_perceptron as _perceptron
    from sklearn.neural_network import _stochastic_optimizers as _stock
except ImportError:
    _perceptron = _stock = None

__all__ = ["AdamOptimizer", "MLPClassifier", "MLPRegressor", "Replacement", "SGDOptimizer", "use"]


def _lacking() -> str:
    """The first private name that this module needs and the installed scikit-learn lacks; "" if there is none."""
    for name in ("AdamOptimizer", "SGDOptimizer"):
        if not hasattr(_stock, name):
            return f"neural_network._stochastic_optimizers.{name}"
        if list(inspect.signature(getattr(_stock, name).update_params).parameters) != ["self", "params", "grads"]:
            return f"{name}.update_params(params, grads)"
        if not hasattr(getattr(_stock, name), "_get_updates"):
            return f"{name}._get_updates"
        if not hasattr(_perceptron, name):
            return f"neural_network._multilayer_perceptron.{name}"
    fit = getattr(getattr(_perceptron, "BaseMultilayerPerceptron", None), "_fit_stochastic", None)
    if fit is None or not {"_optimizer", "update_params", "AdamOptimizer", "SGDOptimizer"} <= {*fit.__code__.co_names}:
        return "BaseMultilayerPerceptron._fit_stochastic that steps self._optimizer"
    return ""


if _lacking():
    raise MissingExtraError(
        f"fastopt.sklearn works with scikit-learn 1.3 to 1.9. Version {sklearn.__version__} is installed, which has no "
        f'{_lacking()}. Install another: pip install "scikit-learn>=1.3,<1.10"; or a newer fastopt'
    )

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
ARRAYS = (np.ndarray, np.memmap)
"""Other classes of arrays may do arithmetic of their own, masked ones for instance."""
NUMBERS = (float, int, np.float64)
SMALLEST_EPSILON = float(np.finfo(np.float32).tiny)
"""Below it, epsilon could be 0 in float32. Where both sides are 0, fastopt's division gives 0, and NumPy's NaN."""


# --- The optimizers


class _State:
    """A list of state arrays under scikit-learn's name, in the place where scikit-learn keeps it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        if self.name not in optimizer.__dict__:
            raise AttributeError(f"{type(optimizer).__name__!r} object has no attribute {self.name!r}")
        optimizer._bound = None
        return optimizer.__dict__[self.name]

    def __set__(self, optimizer: Any, arrays: Any) -> None:
        optimizer._bound = None
        optimizer.__dict__[self.name] = arrays


class _Compiled:
    """What both optimizers share: which steps are compiled, over which arrays, and what copies and pickles hold."""

    # Slots: so vars() of an optimizer holds what it holds in scikit-learn, and nothing else.
    __slots__ = ("_asked", "_bound", "_params", "_reorders")

    stock: ClassVar[Any]
    own: ClassVar[Any]
    """scikit-learn's method that computes the update. The step of a class or object with another is not compiled."""
    states: ClassVar[tuple[str, ...]]

    _bound: Bound | None
    """The compiled step, over private state; None if the next step has to copy the state first."""
    _asked: tuple[Any, ...]
    """The hyperparameters that it was made for, after their types: 0.9 == np.float32(0.9), but not in arithmetic."""
    _params: list[np.ndarray]
    """The parameters that it was made for."""
    _reorders: bool
    """Whether gradients have another memory order than their parameters, and are copied."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().__new__(cls)
        optimizer._bound = None
        return optimizer

    def _rule(self, plain: tuple[type, ...]) -> tuple[str, dict[str, Any]] | None:
        """The rule that the attributes ask for, and its options; None if fastopt has none that computes the same.

        `plain` are the types of numbers that leave the type of an array in arithmetic as it is.
        """
        raise NotImplementedError

    def _bind(self, params: list[Any] | tuple[Any, ...], asked: tuple[Any, ...]) -> Bound | None:
        """A new step over these parameters and private copies of the state; None if fastopt does not have it."""
        if getattr(self._get_updates, "__func__", None) is not type(self).own:  # type: ignore[attr-defined]
            return None
        columns = [self.__dict__[name] for name in self.states]
        if not all(isinstance(column, list) and len(column) == len(params) for column in columns):
            return None
        if not all(map(_fits, params, *columns)):
            return None
        rule = self._rule(NUMBERS if all(p.dtype == np.float64 for p in params) else (float, int))
        if rule is None:
            return None
        mine = [[_like(p, array) for p, array in zip(params, column, strict=True)] for column in columns]
        try:
            bound = bind(rule[0], list(params), mine, flush_subnormal=False, **rule[1])
        except FastoptError:
            return None
        self.__dict__.update(zip(self.states, mine, strict=True))
        self._bound, self._asked, self._params, self._reorders = bound, asked, list(params), False
        return bound

    def _step(self, params: Any, grads: Any, asked: tuple[Any, ...], step: int, **options: float) -> bool:
        """Take the step compiled; False, with nothing written, if scikit-learn's own code has to take it."""
        if not (isinstance(params, (list, tuple)) and isinstance(grads, (list, tuple))):
            return False
        if set(map(type, grads)) != {np.ndarray}:
            return False
        bound = self._bound
        if (
            bound is None or self._asked != asked
            or len(params) != len(self._params) or not all(map(is_, params, self._params))
        ):  # fmt: skip
            bound = self._bind(params, asked)
            if bound is None:
                return False
        try:
            if not self._reorders:
                try:
                    bound.step(grads, step=step, **options)
                    return True
                except LayoutError:
                    self._reorders = True
            if not all(map(_fits, self._params, grads)):
                return False
            bound.step(list(map(_like, self._params, grads)), step=step, **options)
        except FastoptError:
            return False
        return True

    # A pickle holds scikit-learn's class, so that it loads where fastopt is not installed; that of a class derived from
    # this one holds the derived class. A copy is of the same class.

    def __getstate__(self) -> dict[str, Any]:
        self._bound = None
        return dict(self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self) is not CLASSES[self.stock]:
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        return copyreg._reconstructor, (self.stock, object, None), self.__getstate__()  # type: ignore[attr-defined]

    def __copy__(self) -> Any:
        return _made(type(self), self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _made(type(self), copy.deepcopy(self.__getstate__(), memo))


class AdamOptimizer(_Compiled, _stock.AdamOptimizer):
    """scikit-learn's optimizer for ``solver="adam"``, with a compiled step.

    Constructor, attributes (``ms``, ``vs``, ``t``, ``learning_rate``, ``learning_rate_init``, ``beta_1``, ``beta_2``,
    ``epsilon``) and methods are scikit-learn's. All attributes can be set between steps.

    Notes
    -----
    **Formula.** That of ``fastopt.Adam(..., convention="sklearn")``. The squared gradient is multiplied in another
    order than in scikit-learn, ``(1 - beta_2) * g * g`` for ``(1 - beta_2) * (g * g)``. So a float64 step may differ
    from scikit-learn's in the last bits, by less than 1e-15 of the update. With float32, scikit-learn forms the update
    in float64 and rounds it once, where NumPy is 2.0 or later. Here it is formed in float32, and is up to 3e-7 off
    (relative), for gradients from 1e-30 to 1e18.

    **State.** As in scikit-learn, arrays that were read from ``ms`` and ``vs``, or set there, are not written to.

    **Other steps** are taken by scikit-learn's own code: arrays that are not float32 or float64, not contiguous, or
    overlap, or of a class derived from NumPy's; gradients or state of another type than the parameter; epsilon below
    1.2e-38; hyperparameters out of range, or of NumPy's types beside float32 arrays, since those make scikit-learn's
    state float64. So are those of a derived class that overrides ``_get_updates``.

    A pickle holds scikit-learn's class, so that it can be loaded without fastopt; that of a derived class holds that.
    """

    t: int
    stock = _stock.AdamOptimizer
    own = _stock.AdamOptimizer._get_updates
    states = ("ms", "vs")
    ms = _State()
    vs = _State()

    def update_params(self, params: Any, grads: Any) -> None:
        t = self.t
        numbers = self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon
        if not (type(t) is int and t >= 0):
            super().update_params(params, grads)
            return
        self.t = t + 1  # before the step, as in scikit-learn: a KeyboardInterrupt comes right after it
        if not self._step(params, grads, (*map(type, numbers), *numbers), t + 1):
            self.t = t
            super().update_params(params, grads)
            return
        t += 1
        # math.sqrt and np.sqrt round the same; scikit-learn's is a float64 of NumPy.
        self.learning_rate = (
            self.learning_rate_init * np.float64(math.sqrt(1 - self.beta_2**t)) / (1 - self.beta_1**t)
        )  # fmt: skip

    def _rule(self, plain: tuple[type, ...]) -> tuple[str, dict[str, Any]] | None:
        betas, eps, lr = (self.beta_1, self.beta_2), self.epsilon, self.learning_rate_init
        if not (type(betas[0]) in plain and type(betas[1]) in plain and type(eps) in plain):
            return None
        # The learning rate becomes a float64 of NumPy in any case.
        if type(lr) not in NUMBERS or not eps >= SMALLEST_EPSILON:
            return None
        options = {"lr": float(lr), "betas": (float(betas[0]), float(betas[1])), "eps": float(eps)}
        return "Adam", {"convention": "sklearn", **options}


class SGDOptimizer(_Compiled, _stock.SGDOptimizer):
    """scikit-learn's optimizer for ``solver="sgd"``, with a compiled step.

    Constructor, attributes (``velocities``, ``learning_rate``, ``learning_rate_init``, ``lr_schedule``, ``momentum``,
    ``nesterov``, ``power_t``) and methods are scikit-learn's. All attributes can be set between steps.

    Notes
    -----
    **Formula.** That of ``fastopt.SGD(..., convention="sklearn")``: the bits are those of scikit-learn.

    **State.** As in scikit-learn, arrays that were read from ``velocities``, or set there, are not written to.

    **Other steps** are taken by scikit-learn's own code: arrays that are not float32 or float64, not contiguous, or
    overlap, or of a class derived from NumPy's; gradients or state of another type than the parameter; hyperparameters
    out of range, or of NumPy's types beside float32 arrays, since those make scikit-learn's state float64. So are those
    of a derived class that overrides ``_get_updates``.

    A pickle holds scikit-learn's class, so that it can be loaded without fastopt; that of a derived class holds that.
    """

    stock = _stock.SGDOptimizer
    own = _stock.SGDOptimizer._get_updates
    states = ("velocities",)
    velocities = _State()

    def update_params(self, params: Any, grads: Any) -> None:
        lr = self.learning_rate
        # Every step of this rule is the same, so none is counted.
        asked = type(lr), type(self.momentum), self.momentum, self.nesterov
        if not (type(lr) in NUMBERS and self._step(params, grads, asked, 1, lr=float(lr))):
            super().update_params(params, grads)

    def _rule(self, plain: tuple[type, ...]) -> tuple[str, dict[str, Any]] | None:
        momentum = self.momentum
        if not (type(momentum) in plain and type(self.learning_rate) in plain):
            return None
        if momentum == 0:  # fastopt's SGD has no velocity then; with the velocity, Nesterov's update is the plain one
            return "Momentum", {"momentum": 0.0}
        return "SGD", {"convention": "sklearn", "momentum": float(momentum), "nesterov": bool(self.nesterov)}


def _fits(p: Any, *arrays: Any) -> bool:
    """Whether a parameter can be stepped in place, with arrays of its type and shape.

    One without dimensions cannot: scikit-learn's state is NumPy's scalars then.
    """
    return (
        type(p) in ARRAYS and p.ndim > 0 and p.dtype in FLOATS and p.flags.forc and p.flags.behaved
        and all(type(a) in ARRAYS and a.dtype == p.dtype and a.shape == p.shape for a in arrays)
    )  # fmt: skip


def _like(p: np.ndarray, array: np.ndarray) -> np.ndarray:
    """A copy of an array, in the memory order of a parameter."""
    out = np.empty_like(p, subok=False)
    np.copyto(out, array)
    return out


def _made(cls: Any, attributes: dict[str, Any]) -> Any:
    """An optimizer of a class of this module with these attributes."""
    optimizer = cls.__new__(cls)
    optimizer.__dict__.update(attributes)
    return optimizer


CLASSES = {cls.stock: cls for cls in (AdamOptimizer, SGDOptimizer)}
"""scikit-learn's optimizer classes -> those of this module."""


# --- The estimators


class _Optimizer:
    """The attribute ``_optimizer`` of an estimator: an optimizer of this module where scikit-learn's was put.

    It is looked at when it is read, since an unpickled estimator has scikit-learn's.
    """

    def __get__(self, estimator: Any, owner: type | None = None) -> Any:
        if estimator is None:
            return self
        try:
            optimizer = estimator.__dict__["_optimizer"]
        except KeyError:
            raise AttributeError(f"{type(estimator).__name__!r} object has no attribute '_optimizer'") from None
        if type(optimizer) in CLASSES:
            optimizer = _made(CLASSES[type(optimizer)], optimizer.__dict__)
            estimator.__dict__["_optimizer"] = optimizer
        return optimizer

    def __set__(self, estimator: Any, optimizer: Any) -> None:
        estimator.__dict__["_optimizer"] = optimizer

    def __delete__(self, estimator: Any) -> None:
        self.__get__(estimator)
        del estimator.__dict__["_optimizer"]


class MLPClassifier(neural_network.MLPClassifier):
    """scikit-learn's `MLPClassifier`, with compiled steps for ``solver="adam"`` and ``solver="sgd"``.

    Parameters, attributes, methods and errors are those of ``sklearn.neural_network.MLPClassifier``. The solver
    "lbfgs" is SciPy's, as it is there.

    See Also
    --------
    AdamOptimizer, SGDOptimizer : How close the steps are to scikit-learn's, and which ones scikit-learn takes itself.
    use : The same for scikit-learn's own class.

    Notes
    -----
    Nothing of scikit-learn is replaced: the attribute ``_optimizer`` of these classes holds an optimizer of this
    module. A pickle of the estimator needs fastopt to be loaded, and goes on with compiled steps.

    Examples
    --------
    >>> from fastopt.sklearn import MLPClassifier
    >>> model = MLPClassifier(8, solver="sgd", learning_rate_init=0.1, max_iter=1000, random_state=0)
    >>> model.fit([[0.0], [1.0], [2.0], [3.0]], ["low", "low", "high", "high"]).predict([[0.5], [2.5]]).tolist()
    ['low', 'high']
    """

    _optimizer = _Optimizer()


class MLPRegressor(neural_network.MLPRegressor):
    """scikit-learn's `MLPRegressor`, with compiled steps for ``solver="adam"`` and ``solver="sgd"``.

    Parameters, attributes, methods and errors are those of ``sklearn.neural_network.MLPRegressor``. For all else see
    `MLPClassifier`.

    Examples
    --------
    >>> from fastopt.sklearn import MLPRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 2.0, 3.0]
    >>> model = MLPRegressor(hidden_layer_sizes=16, learning_rate_init=0.1, max_iter=1000, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.99
    True
    """

    _optimizer = _Optimizer()


# --- scikit-learn's own estimators

_lock = threading.RLock()
_lasting: list[Replacement] = []
"""The replacements that are not undone."""


class Replacement:
    """What `use` returns: undoes it by `undo`, or at the end of a ``with`` block."""

    __slots__ = ()

    def undo(self) -> None:
        """Undo this call of `use`. The last one puts scikit-learn's classes back. Undone twice, it has no effect."""
        with _lock:
            if self not in _lasting:
                return
            _lasting.remove(self)
            for stock, cls in () if _lasting else CLASSES.items():
                if getattr(_perceptron, stock.__name__) is cls:  # else another library has replaced it since
                    setattr(_perceptron, stock.__name__, stock)

    def __enter__(self) -> Replacement:
        with _lock:
            if self not in _lasting:
                raise InstallError("this replacement is undone already: call fastopt.sklearn.use() again")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


def use() -> Replacement:
    """Make scikit-learn's own ``MLPClassifier`` and ``MLPRegressor`` take compiled steps, in the whole process.

    For existing programs, and for libraries that make these estimators. It replaces the two optimizer classes that
    ``sklearn.neural_network`` instantiates when a fit begins, so estimators and names that were imported before are
    included. It may be called more than once: scikit-learn's classes are back when every call is undone.

    Returns
    -------
    Replacement
        With the method ``undo()``; or for a block, ``with fastopt.sklearn.use(): ...``.

    Raises
    ------
    InstallError
        If another library has replaced one of the two classes before. Nothing is replaced then.

    Notes
    -----
    **Running fits.** A fit uses the optimizer that was made at its beginning. ``partial_fit`` goes on with the one of
    the call before, also after ``undo``. An unpickled estimator has scikit-learn's optimizer until the next fit.

    **Pickles** hold scikit-learn's classes only, and load where fastopt is not installed.

    **Threads and processes.** All threads see the change; `use` and ``undo`` may be called from any of them. Worker
    processes do not see it (``n_jobs=2`` in a grid search): use `MLPClassifier` and `MLPRegressor` of this module
    there, which work in every process.

    Examples
    --------
    >>> import fastopt.sklearn
    >>> from sklearn.neural_network import MLPRegressor
    >>> with fastopt.sklearn.use():
    ...     model = MLPRegressor(hidden_layer_sizes=4).partial_fit([[0.0], [1.0]], [0.0, 1.0])
    """
    with _lock:
        for stock, cls in CLASSES.items():
            found = getattr(_perceptron, stock.__name__)
            if found not in (stock, cls):
                raise InstallError(
                    f"sklearn.neural_network._multilayer_perceptron.{stock.__name__} is {found!r}, not "
                    "scikit-learn's own: something else has replaced it. Call fastopt.sklearn.use() before that"
                )
        for stock, cls in CLASSES.items():
            setattr(_perceptron, stock.__name__, cls)
        replacement = Replacement()
        _lasting.append(replacement)
        return replacement
