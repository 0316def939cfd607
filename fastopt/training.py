"""The loops of the lecture notes: shuffled mini-batches, and gradient descent until something says stop.

`minimize` is the plain loop, written once: evaluate, step, test. It needs nothing of an optimizer but
``step(grads)`` (and ``lookahead()``, where there is one), so that anything that steps arrays in place can be
put into it.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import OPTIMIZERS
from ._spelling import meant
from .engine import as_values, is_array, shown
from .errors import DTypeError, GradientError, HyperparameterError, MissingExtraError, ShapeError
from .optimizer import Optimizer

__all__ = ["MinimizeResult", "MinimizeState", "minibatches", "minimize"]

Rng = np.random.Generator | np.random.RandomState | int | None
Shuffle = Literal["epoch", "once"] | bool
Reason = Literal["tol", "max_steps", "callback", "nonfinite"]

_NORM_BLOCK = 1 << 16  # elements squared at a time: the float64 copy of a gradient never grows large


def minibatches(
    n: int,
    batch_size: int,
    rng: Rng = None,
    *,
    shuffle: Shuffle = "epoch",
    replacement: bool = False,
    epochs: int | None = 1,
    drop_last: bool = False,
) -> Iterator[npt.NDArray[np.intp]]:
    """Return an iterator over the index arrays of an epoch's mini-batches, or of several epochs'.

    An epoch takes `n` samples in some order, and cuts them into batches of `batch_size`, from the first on.

    Parameters
    ----------
    n : int
        Number of samples, at least 0.
    batch_size : int
        Samples in a batch, at least 1. The last batch of an epoch is shorter where `batch_size` does not divide `n`.
    rng : numpy.random.Generator, RandomState, int or None
        Source of randomness. A generator goes on from call to call; the same int gives the same batches every time.
        None takes fresh entropy from the operating system. Nothing is drawn with ``shuffle=False``.
    shuffle : {"epoch", "once", False}, default "epoch"
        ``"epoch"`` draws a new order for each epoch; True means the same, as in PyTorch's ``DataLoader``. ``"once"``
        draws one order at the start, which all epochs share. False takes the samples in the order of the data:
        neighbours, which are often alike, then share a batch.
    replacement : bool, default False
        False: every sample comes exactly once in an epoch. True: each of the `n` samples of an epoch is drawn from
        all of them, so that some come several times and some, about 37 % of a large data set, not at all. With
        ``shuffle="once"`` all epochs share one such draw, a bootstrap sample. Not possible with ``shuffle=False``.
    epochs : int or None, default 1
        How many epochs, at least 0. None: without end, which needs at least one batch in an epoch.
    drop_last : bool, default False
        Leave out the last batch of an epoch where it is shorter than the others. Without replacement, its samples are
        then not seen in this epoch.

    Returns
    -------
    iterator of ndarray of intp
        To be used as ``x[index]``. The arguments are checked, and the order of the first epoch is drawn, when the
        function is called; the order of a later epoch is drawn when that epoch begins.

    Raises
    ------
    HyperparameterError
        If an argument is of the wrong kind or out of range, or if arguments contradict each other.

    Notes
    -----
    Without replacement, the order is ``rng.permutation(n)``; with it, ``rng.integers(n, size=n)``.

    Examples
    --------
    >>> import fastopt
    >>> [len(batch) for batch in fastopt.minibatches(10, 4, 0)]
    [4, 4, 2]
    >>> [batch.tolist() for batch in fastopt.minibatches(4, 2, shuffle=False, epochs=2)]
    [[0, 1], [2, 3], [0, 1], [2, 3]]
    >>> [batch.tolist() for batch in fastopt.minibatches(4, 2, 0, shuffle="once", epochs=2)]
    [[2, 0], [1, 3], [2, 0], [1, 3]]
    """
    n = _integer("n", n, 0)
    batch_size = _integer("batch_size", batch_size, 1)
    once, draw = _sampling(n, shuffle, replacement, _generator(rng))
    limit = None if epochs is None else _integer("epochs", epochs, 0)
    starts = range(0, n - n % batch_size if drop_last else n, batch_size)
    if limit is None and not starts:
        raise HyperparameterError(f"epochs=None never ends: n={n} with batch_size={batch_size} has no batch")
    if limit == 0:
        return iter(())
    first = draw()

    def batches() -> Iterator[npt.NDArray[np.intp]]:
        for epoch in itertools.count() if limit is None else range(limit):
            order = first if epoch == 0 or once else draw()
            for start in starts:
                batch = order[start : start + batch_size]
                yield batch.copy() if once else batch  # all epochs share the order: nobody is to write to it

    return batches()


@dataclass(frozen=True)
class MinimizeState:
    """What `minimize` tells its callback after every step."""

    step: int
    """Steps made so far, 1 after the first."""
    epoch: int
    """Complete passes through the data so far; always 0 without data."""
    loss: float
    """Loss that `fun` returned for this step, before the update."""
    grad_norm: float
    """Euclidean norm over all the gradients of this step, in float64."""
    params: Any = field(repr=False)
    """The parameters after the update: the caller's own arrays, in the caller's container."""
    grads: Any = field(repr=False)
    """The gradients as `fun` returned them; those of an iterator as a list."""
    optimizer: Any = field(repr=False)
    """The optimizer, whose hyperparameters a callback may change."""


@dataclass(frozen=True, repr=False)
class MinimizeResult:
    """What `minimize` returns: the parameters, and how it went."""

    params: Any
    """The parameters: the caller's own arrays, in the caller's container, updated in place."""
    losses: npt.NDArray[np.float64]
    """The loss of every evaluation, each before its update; one more than `steps` if "nonfinite"."""
    grad_norm: float
    """Euclidean norm of the last gradient, in float64; NaN if `fun` was never called."""
    steps: int
    """Calls of ``optimizer.step``, those that ``nonfinite="skip"`` passed over included."""
    epochs: int
    """Complete passes through the data; 0 without data."""
    reason: Reason
    """Why it stopped: ``"tol"``, ``"max_steps"``, ``"callback"`` or ``"nonfinite"``."""
    optimizer: Any
    """The optimizer that was used, ready to go on."""

    @property
    def loss(self) -> float:
        """The last of `losses`; NaN if there is none."""
        return float(self.losses[-1]) if len(self.losses) else float("nan")

    def __repr__(self) -> str:
        names = ("loss", "grad_norm", "steps", "epochs", "reason")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def converged(self) -> bool:
        """Whether it stopped because the gradient norm fell below `tol`."""
        return self.reason == "tol"


def minimize(
    fun: Callable[[Any, Any], tuple[Any, Any]],
    params: Any,
    optimizer: str | Callable[[Any], Any] | Any,
    *,
    data: Any = None,
    batch_size: int | None = None,
    shuffle: Shuffle = "epoch",
    replacement: bool = False,
    drop_last: bool = False,
    max_steps: int | None = 1000,
    tol: float = 0.0,
    callback: Callable[[MinimizeState], bool | np.bool_ | None] | None = None,
    progress: bool = False,
    rng: Rng = None,
) -> MinimizeResult:
    """Descend along the gradients of `fun`: full batch, mini-batch, stochastic, or without data at all.

    Each step evaluates ``loss, grads = fun(params, batch)``, calls ``optimizer.step(grads)``, then tests, in
    this order: the norm of that gradient against `tol`, the answer of `callback`, `max_steps`.

    Parameters
    ----------
    fun : callable ``(params, batch) -> (loss, grads)``
        `params` comes in the container that the caller gave (an iterator as a list); `grads` goes to the optimizer as
        it is. The loss is one real number, or an array or tensor without dimensions that holds one. The
        gradient of a batch is whatever `fun` returns, by custom the mean over its samples. With `NAG` (any
        optimizer that has a ``lookahead``), `fun` is evaluated at ``optimizer.lookahead()``, losses included;
        for groups that is a list of arrays.
    params : array, list, dict or list of group dicts
        What the optimizer steps, in place.
    optimizer : Optimizer, callable ``(params) -> Optimizer``, or str
        An optimizer already built over these `params`, which continues from its state; or what builds one: a
        class (``fastopt.Adam``), ``functools.partial(fastopt.Adam, lr=0.1)``, a lambda; or the name of a class in
        `fastopt.OPTIMIZERS`, in upper or lower case (``"adam"``), which is built with its defaults.
    data : array, or tuple, list or dict of arrays, optional
        The samples, along the first dimension, equally many in each array. A batch has the same structure.
        None: `fun` gets None as its batch, which is plain minimization of a function.
    batch_size : int, optional
        None: the whole of `data`, neither copied nor shuffled, at every step (full batch). 1: stochastic.
        Else mini-batches, by default shuffled anew for each epoch, every sample exactly once.
    shuffle : {"epoch", "once", False}, default "epoch"
        The order in which mini-batches take the samples: drawn anew for each epoch (True means the same), drawn once
        at the start, or that of the data. `minibatches` has the details.
    replacement : bool, default False
        Draw each sample of a mini-batch from all the samples, so that an epoch repeats some and leaves out others.
        Needs `batch_size`, and a `shuffle` that is not False.
    drop_last : bool, default False
        Leave out the last batch of an epoch where it is shorter than the others.
    max_steps : int or None, default 1000
        Steps to make at most. None: no limit, which needs a `tol` or a `callback`.
    tol : float, default 0
        Stop when the Euclidean norm over all the gradients of the step, taken in float64 and before any
        weight decay, is below `tol`. It is tested after the update, so the last update is made. 0: never.
        With mini-batches it is the norm of one batch's gradient.
    callback : callable, optional
        Called after every step with a `MinimizeState`. It returns True to stop; False or None to go on.
    progress : bool, default False
        Show a tqdm bar on standard error, only where that is a terminal. Needs the extra ``fastopt[demo]``.
    rng : numpy.random.Generator, RandomState, int or None
        Source of the shuffles and draws; give it for a run that can be repeated.

    Returns
    -------
    MinimizeResult

    Raises
    ------
    HyperparameterError, ShapeError, DTypeError
        If an argument is of the wrong kind, out of range, or the optimizer steps other arrays than `params`.
    GradientError, ShapeError, DTypeError
        If `fun` returns something else than a pair, or a loss that is no single real number (text, a bool, a complex
        number); if `callback` returns what is neither true nor false, such as an array of several elements.
    MissingExtraError
        If `progress` is asked for without tqdm.

    Notes
    -----
    A loss or gradient that is NaN or infinite ends the run with ``reason="nonfinite"`` *before* the update,
    so that the parameters keep their last good values. The optimizer's own ``nonfinite="skip"`` or
    ``"raise"`` goes first: with ``"skip"`` the run goes on, and with ``"raise"`` such a gradient is a
    `NonFiniteError`.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([3.0, -2.0])
    >>> result = fastopt.minimize(lambda w, _: (w @ w / 2, w.copy()), w, fastopt.SGD(w, lr=0.5), tol=1e-6)
    >>> result.reason, result.steps
    ('tol', 23)
    """
    for name, function in (("fun", fun), ("callback", callback)):
        if not callable(function) and (name == "fun" or function is not None):
            raise HyperparameterError(f"{name} must be callable, not {function!r:.40}")
    _takes_two(fun)
    limit = math.inf if max_steps is None else _integer("max_steps", max_steps, 0)
    tol = _tolerance(tol)
    if limit == math.inf and tol == 0 and callback is None:
        raise HyperparameterError("max_steps=None never stops: give max_steps, a tol above 0, or a callback")
    batches = _batches(data, batch_size, shuffle, replacement, drop_last, _generator(rng))
    params = _kept(params)
    optimizer = _built(optimizer, params)
    lookahead = getattr(optimizer, "lookahead", None)

    losses: list[float] = []
    grad_norm, steps, epochs = math.nan, 0, 0
    reason: Reason | None = None if limit else "max_steps"
    bar = _progress_bar(max_steps) if progress else None
    try:
        while reason is None:
            batch, ends_epoch = next(batches)
            loss, grads = _evaluate(fun, params if lookahead is None else lookahead(), batch)
            losses.append(loss)
            grad_norm = _norm_or_step_error(grads, optimizer)
            finite = math.isfinite(grad_norm)
            policy = getattr(optimizer, "nonfinite", "propagate")  # which a callback may change
            left_to_optimizer = policy == "skip" or (policy == "raise" and not finite)
            if not (finite and math.isfinite(loss)) and not left_to_optimizer:
                reason = "nonfinite"
                break
            optimizer.step(grads)
            steps += 1
            epochs += ends_epoch
            if bar is not None:
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update()
            wants_stop = callback is not None and _answer(
                callback(MinimizeState(steps, epochs, loss, grad_norm, params, grads, optimizer))
            )
            if grad_norm < tol:
                reason = "tol"
            elif wants_stop:
                reason = "callback"
            elif steps >= limit:
                reason = "max_steps"
    finally:
        if bar is not None:
            bar.close()
    return MinimizeResult(params, np.array(losses, np.float64), grad_norm, steps, epochs, reason, optimizer)


# --- arguments


def _takes_two(fun: Callable[..., Any]) -> None:
    """Raise unless `fun` can be called with parameters and a batch, as far as it says what it takes."""
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):  # it does not say
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise HyperparameterError(
            f"fun={fun!r:.60} must take two arguments, the parameters and the batch (None without data), and return "
            "the loss and the gradients"
        ) from None


def _integer(name: str, value: Any, least: int) -> int:
    """Return `value` as an int of at least `least`; anything with ``__index__`` will do, except bool."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise HyperparameterError(f"{name} must be an integer of at least {least}, not {shown(value)}")
    return number


def _tolerance(value: Any) -> float:
    try:
        tol = float(value)
    except (TypeError, ValueError, OverflowError):
        tol = math.nan
    if not tol >= 0:  # NaN too
        raise HyperparameterError(f"tol must be a number of at least 0, not {value!r}")
    return tol


def _generator(rng: Rng) -> np.random.Generator | np.random.RandomState:
    if isinstance(rng, (np.random.Generator, np.random.RandomState)):
        return rng
    try:
        return np.random.default_rng(None if rng is None else _integer("rng", rng, 0))
    except HyperparameterError:
        raise HyperparameterError(
            f"rng must be a numpy.random.Generator or RandomState, an integer of at least 0, or None, not {rng!r:.60}"
        ) from None


def _leaves(params: Any) -> list[Any]:
    """Return the arrays of any container of parameters, in the optimizer's order."""
    if isinstance(params, Mapping):
        return list(params.values())
    if is_array(params) or not isinstance(params, Iterable):
        return [params]
    return [leaf for p in params for leaf in (_leaves(p["params"]) if isinstance(p, Mapping) else [p])]


def _kept(items: Any) -> Any:
    """Return what can be walked over more than once: the items of an iterator in a list, all else as it is."""
    return list(items) if isinstance(items, Iterator) else items


def _named(name: str) -> type[Optimizer]:
    """Return the optimizer of a name, in upper or lower case."""
    classes = {key.lower(): cls for key, cls in OPTIMIZERS.items()}
    if name.lower() in classes:
        return classes[name.lower()]
    near = meant(name, classes, 0.6)
    hint = f"; did you mean {classes[near].__name__!r}?" if near else ""
    raise HyperparameterError(f"optimizer={name!r} is not known; known are {', '.join(OPTIMIZERS)}{hint}")


def _built(optimizer: Any, params: Any) -> Any:
    """Return the optimizer over `params`: built now, or built before and, by a look at its arrays, over these."""
    if isinstance(optimizer, str):
        optimizer = _named(optimizer)
    if isinstance(optimizer, type) or not hasattr(optimizer, "step"):
        if not callable(optimizer):
            raise HyperparameterError(
                f"optimizer must be one, build one from params, or be the name of one, not {optimizer!r}"
            )
        built = optimizer(params)
        if not hasattr(built, "step"):
            raise HyperparameterError(
                f"optimizer={optimizer!r} must build an optimizer; a {type(built).__name__} has no step()"
            )
        return built
    if hasattr(optimizer, "param_groups"):
        stepped = _leaves(optimizer.param_groups)
        given = _leaves(params)
        if len(stepped) != len(given) or not all(map(_same_memory, stepped, given)):
            raise HyperparameterError("optimizer steps other arrays than params: build it over these params")
    return optimizer


def _same_memory(a: Any, b: Any) -> bool:
    if a is b or not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return True  # what is no NumPy array cannot be told from the view that the optimizer made of it
    return a.__array_interface__["data"] == b.__array_interface__["data"] and a.shape == b.shape


# --- data


def _batches(
    data: Any, batch_size: int | None, shuffle: Any, replacement: Any, drop_last: bool, rng: Any
) -> Iterator[tuple[Any, bool]]:
    """Check the data, and return an endless iterator over (batch, whether it ends an epoch)."""
    if batch_size is None:
        _sampling(0, shuffle, replacement, rng)  # checks the arguments
        if replacement:
            raise HyperparameterError("replacement=True needs a batch_size: a full batch is not drawn")
    if data is None:
        if batch_size is not None:
            raise HyperparameterError("batch_size needs data")
        return itertools.repeat((None, False))
    n = _samples(data)
    if batch_size is None:
        return itertools.repeat((data, True))
    size = _integer("batch_size", batch_size, 1)
    if drop_last and size > n:
        raise HyperparameterError(f"batch_size={size} with drop_last leaves no batch of the {n} samples")
    _sampling(n, shuffle, replacement, rng)
    per_epoch = n // size if drop_last else -(-n // size)

    def taken() -> Iterator[tuple[Any, bool]]:
        # Made when the first batch is asked for: until then nothing is drawn from a generator that others use, too.
        order = minibatches(n, size, rng, shuffle=shuffle, replacement=replacement, epochs=None, drop_last=drop_last)
        for number, index in enumerate(order, start=1):
            yield _take(data, index), number % per_epoch == 0

    return taken()


def _sampling(n: int, shuffle: Any, replacement: Any, rng: Any) -> tuple[bool, Callable[[], npt.NDArray[np.intp]]]:
    """Check how samples are to be taken; return whether all epochs share one order, and what draws an order."""
    known = isinstance(shuffle, (bool, np.bool_)) or (isinstance(shuffle, str) and shuffle in ("epoch", "once"))
    if not known:
        raise HyperparameterError(f'shuffle must be "epoch" (or True), "once" or False, not {shown(shuffle)}')
    if not isinstance(replacement, (bool, np.bool_)):
        raise HyperparameterError(f"replacement must be True or False, not {shown(replacement)}")
    ordered = not isinstance(shuffle, str) and not shuffle
    if replacement and ordered:
        raise HyperparameterError('replacement=True draws at random: shuffle must be "epoch" or "once", not False')

    def draw() -> npt.NDArray[np.intp]:
        if ordered:
            return np.arange(n, dtype=np.intp)
        if not replacement:
            order = rng.permutation(n)
        elif isinstance(rng, np.random.RandomState):
            order = rng.randint(0, max(n, 1), size=n)
        else:
            order = rng.integers(0, max(n, 1), size=n)
        return order.astype(np.intp, copy=False)

    return ordered or (isinstance(shuffle, str) and shuffle == "once"), draw


def _samples(data: Any) -> int:
    """Return how many samples the data holds, the same number in each of its arrays."""
    if isinstance(data, dict):
        named = {f"data[{key!r}]": value for key, value in data.items()}
    elif isinstance(data, (tuple, list)):
        named = {f"data[{i}]": value for i, value in enumerate(data)}
    else:
        named = {"data": data}
    for name, value in named.items():
        # A pandas frame has a shape as well, but indexes its columns; ask for an array rather than guess.
        if not getattr(value, "shape", ()) or hasattr(value, "iloc"):
            raise DTypeError(f"{name} must be an array of at least one dimension, not {type(value).__name__}")
    lengths = {name: value.shape[0] for name, value in named.items()}
    if len(set(lengths.values())) > 1:
        raise ShapeError(f"data must have equally many samples in each array, not {lengths}")
    if not lengths or 0 in lengths.values():
        raise ShapeError("data holds no samples")
    return int(next(iter(lengths.values())))


def _take(data: Any, index: npt.NDArray[np.intp]) -> Any:
    """Return the same structure of the samples at `index`."""
    if isinstance(data, dict):
        return {key: value[index] for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        taken = [value[index] for value in data]
        if hasattr(data, "_make"):  # a named tuple stays one
            return data._make(taken)
        return taken if isinstance(data, list) else tuple(taken)
    return data[index]


# --- evaluation


def _evaluate(fun: Callable[[Any, Any], tuple[Any, Any]], params: Any, batch: Any) -> tuple[float, Any]:
    out = fun(params, batch)
    if not (isinstance(out, (tuple, list)) and len(out) == 2):
        many = f" of {len(out)}" if isinstance(out, (tuple, list)) else ""
        raise GradientError(f"fun must return a pair (loss, grads), not a {type(out).__name__}{many}")
    return _loss(out[0]), _kept(out[1])


def _loss(value: Any) -> float:
    """Return a loss as a float: a real number, or an array or tensor without dimensions."""
    if getattr(value, "ndim", 0) != 0:
        raise ShapeError(
            f"the loss that fun returns must be one number, not of shape {tuple(value.shape)}: take its sum, its mean, "
            "or .item() of a single element"
        )
    dtype = getattr(value, "dtype", None)
    refused = (
        isinstance(value, (str, bytes, bool, np.ma.MaskedArray))
        or getattr(dtype, "kind", None) in ("S", "U")
        or any(word in str(dtype) for word in ("bool", "complex"))
    )
    try:
        if refused:
            raise TypeError(f"of type {dtype or type(value).__name__}")
        return float(value.detach() if hasattr(value, "detach") else value)
    except Exception as error:  # whatever a foreign type's conversion raises
        raise DTypeError(f"the loss that fun returns must be one real number, not {shown(value)}: {error}") from error


def _answer(value: Any) -> bool:
    """Return whether a callback wants to stop: a bool, None, a number, or an array or tensor without dimensions."""
    scalar = value is None or isinstance(value, (bool, int, float, np.bool_, np.number))
    try:
        if (scalar or (hasattr(value, "shape") and tuple(value.shape) == ())) and value == value:  # no NaN
            return bool(value)
    except Exception:  # whatever a foreign type raises
        pass
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise DTypeError(
        f"callback must return True to stop, or False or None to go on, not {shown(value)}, a "
        f"{type(value).__name__}{shape}"
    )


def _norm_or_step_error(grads: Any, optimizer: Any) -> float:
    try:
        return _norm(grads)
    except (TypeError, ValueError, RuntimeError):
        optimizer.step(grads)  # its error says which gradient is wrong, and how
        raise


def _norm(grads: Any) -> float:
    """Return the Euclidean norm over all the gradients in float64, without overflow."""
    arrays = [as_values(g, "a gradient") for g in _leaves(grads) if g is not None]
    with np.errstate(all="ignore"):
        total = sum(_sum_of_squares(a, 1.0) for a in arrays)
        if 1e-280 < total < math.inf:
            return math.sqrt(total)
        # The squares left the range of float64, or there is nothing but zeros, or a NaN or infinity.
        largest = float(np.max([np.abs(a).max(initial=0) for a in arrays if a.size], initial=0))
        if largest == 0 or not math.isfinite(largest):
            return largest
        return largest * math.sqrt(sum(_sum_of_squares(a, largest) for a in arrays))


def _sum_of_squares(a: npt.NDArray[Any], scale: float) -> float:
    # Fixed blocks and NumPy's pairwise sums, not `dot`: BLAS would let the threads decide the last bits.
    flat = a.ravel(order="K")
    total = 0.0
    for start in range(0, flat.size, _NORM_BLOCK):
        block = flat[start : start + _NORM_BLOCK]
        if scale != 1.0:
            block = np.divide(block, scale, dtype=np.float64)
        total += float(np.square(block, dtype=np.float64).sum())
    return total


def _progress_bar(total: int | None) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError('progress=True needs tqdm: pip install "fastopt[demo]"') from error
    return tqdm(total=total, unit="step", disable=None)  # None: only where standard error is a terminal
