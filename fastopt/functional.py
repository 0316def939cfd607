"""The update rules as plain in-place functions, for libraries that keep parameters, state and counts themselves.

Each function takes one step. ``p``, ``g`` and the state are one array each, or lists (or other iterables) with one
array a parameter; parameters and state are written in place, and no array is kept between calls. ``step`` is the number
of this step, 1 at the first. The options are the hyperparameters of the class of the same name (None: as the convention
has it) and ``maximize``, ``decoupled_weight_decay``, ``flush_subnormal``, ``convention``, ``n_threads``, ``nonfinite``,
``copy_grads``: see there for the rule, its order, ranges and sources. State starts at zero unless said otherwise, and
may be left out where the options do not need it; `make_state` makes it. Everything is checked before the first write,
as in `Optimizer.step`.

What stands around a step is done in the same pass, if the options of `fastopt.Optimizer` for it are given:
``clip_norm``, ``norm_type``, ``clip_norm_each``, ``clip_value``, ``zero_grads``, and ``ema_decay`` with ``ema_start``,
which needs the averages, the state ``ema``. An average begins at step ``ema_start`` (1 by default); what it held before
is ignored, except that thinc's moves from there, and has to be zero. Where that step has no gradient (None) or is
skipped, the average does not begin: later steps go on from what it held. So fill it first, as `make_state` does, and do
not count steps that return False. Gradients are divided by ``grad_scale`` first.

There is one function for each optimizer: ``sgd_``, ``momentum_``, ``nag_``, ``adagrad_``, ``adadelta_``, ``rmsprop_``,
``adam_``, ``adamw_``, ``adamax_``, ``nadam_``, ``radam_``, ``lion_``. Of some:

- Arguments have the same names under every convention. State that the class calls differently there is given by the
  name in the signature: the velocity of Keras's SGD is the ``momentum_buffer`` of ``sgd_(..., convention="keras")``.
- ``nag_``: g is the gradient at ``p + momentum * velocity``.
- ``adagrad_``, ``rmsprop_``: fill the accumulator with its initial value yourself, or have `make_state` do it.
- ``nadam_``: ``mu_product`` is an array of one float for each p, 1 before step 1, updated too.
- ``sgd_``: what the buffer held before step 1 is ignored, as the rule says.

Every function returns True, or False when ``nonfinite="skip"`` skipped the step.

A function remembers where the arrays of its last few calls were, and what they were like. A call with the same NumPy
arrays (or lists and tuples of them) and options only compares. `bind` does so for arrays that stay the same, with less
work at each step.

Examples
--------
>>> import numpy as np
>>> from fastopt.functional import adam_
>>> p = np.array([1.0, 2.0])
>>> m, v = np.zeros(2), np.zeros(2)
>>> adam_(p, np.array([0.5, -0.5]), m, v, step=1, lr=0.1)
True
>>> p.round(3).tolist()
[0.9, 2.1]
"""

# Design: `Kept.call` of _engine/borrow.pxi takes a call that is like an earlier one. Where it cannot, it returns
# None, with nothing written. `_take` then builds a new plan, which raises whatever there is to raise, and which is kept
# for later calls if its options are plain numbers.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, Signature, signature
from operator import index
from typing import Any, Literal, SupportsIndex  # noqa: F401

import numpy as np

from fastopt import OPTIMIZERS
from fastopt._spelling import meant
from fastopt.declare import (
    AVERAGE,
    CLIP_FORMS,
    Slot,
    arrays_of,
    derive,
    first_numbers,
    known_convention,
    numbers_at,
    numbers_of,
    refuse_unknown,
    remembered,
    require_all,
    with_defaults,
)
from fastopt.engine import AROUND, BorrowedPlan, Kept, Plan, listed, shown
from fastopt.errors import HyperparameterError, OverlapError, ParameterError, ReadOnlyError, UnknownOptionError
from fastopt.optimizer import Optimizer
from fastopt.state import as_number
from fastopt.typing import Arrays, Betas, EpsPlacement, Hyperparameter, Nonfinite, Number, Pair  # noqa: F401

ENGINE_OPTIONS = ("n_threads", "nonfinite", "copy_grads", "clip_norm", "norm_type")
FOR_STATE = ("initial_accumulator_value",)
"""Options that only say what state begins with."""


def _take(
    kept: Kept, cls: type[Optimizer], p: Any, g: Any, state: Mapping[str, Any], step: Any, options: Mapping[str, Any],
    asked: dict[str, Any],
) -> bool:  # fmt: skip
    """One step of the rule of `cls` over a new plan, which is kept for later calls that are `asked` the same."""
    try:
        count = index(step)
    except TypeError:
        count = 0
    if not 1 <= count < 2**63:
        raise HyperparameterError(f"step={step!r} must be an int >= 1, below 2**63: the number of this step")
    params, columns = _columns(p, {"g": g, **state})
    grads = columns.pop("g")
    options = dict(options)
    scale = options.pop("grad_scale", None)
    plan, given = _plan(cls, params, columns, count, options)
    kept.prepare(plan, params, asked)
    plan.step(grads, scale, numbers=given)
    kept.keep(plan)
    return plan.skipped == 0


def _plan(
    cls: type[Optimizer], params: list[Any], columns: dict[str, list[Any]], count: int, options: dict[str, Any]
) -> tuple[BorrowedPlan, list[tuple[str, int, list[Any]]]]:
    """A plan over these arrays, checked, before a step of that count; and the numbers that the caller keeps.

    These are triples: name, place, arrays.
    """
    numbers = [numbers_at(cls, count)] * len(params)
    given = []
    for at, slot in _given_numbers(cls):
        arrays = columns.pop(slot.name, [None] * len(params))
        given.append((slot.name, at, arrays))
        read = [_number(slot, array) for array in arrays]
        numbers = [(*mine[:at], number, *mine[at + 1 :]) for mine, number in zip(numbers, read, strict=True)]

    convention = known_convention(cls, options.pop("convention", None))
    settings = {key: options.pop(key) for key in ENGINE_OPTIONS if key in options}
    plan = BorrowedPlan(
        partial(derive, cls, convention, rename=False), clip_form=CLIP_FORMS.get(convention, 0), **settings
    )
    refuse_unknown(cls, options, "function")
    full = with_defaults(cls, convention, options)
    require_all(cls, convention, full)
    plan.set_steps(count - 1, 0)
    states = [{name: column[i] for name, column in columns.items()} for i in range(len(params))]
    plan.add_group(full, params, [None] * len(params), states)
    if given:
        _check_apart(plan, given)
    for i, mine in enumerate(numbers):
        plan.set_count(i, count - 1, mine)
    return plan, given


def _columns(p: Any, rest: Mapping[str, Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """The parameters as a list, and gradients and state as lists of the same length; None stays out."""
    params = listed(p)
    if params is None:
        return [p], {name: [array] for name, array in rest.items() if array is not None or name == "g"}
    columns = {}
    for name, column in rest.items():
        if column is None and name != "g":
            continue
        members = listed(column, len(params) + 1)
        if members is None or len(members) != len(params):
            raise ParameterError(f"{name} must be a list of {len(params)} arrays, like p")
        columns[name] = members
    return params, columns


@remembered
def _given_numbers(cls: type[Optimizer]) -> tuple[tuple[int, Slot], ...]:
    """The numbers that the caller keeps for each parameter, and their places among all."""
    return tuple((at, slot) for at, slot in enumerate(numbers_of(cls)) if slot.like == "number")


def _number(slot: Slot, array: Any) -> float:
    """A number that a parameter carries, from its array, checked."""
    if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind != "f":
        raise ParameterError(f"{slot.name} must be an array of one float (a list of them, like p), not {shown(array)}")
    if not array.flags.writeable:
        raise ReadOnlyError(f"{slot.name} is read-only; a step writes to it")
    try:
        return as_number(array, slot.name, slot, "state")
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _check_apart(plan: Plan, given: list[tuple[str, int, list[np.ndarray]]]) -> None:
    """Raise if the memory of a number meets a parameter, a state, or another number."""
    every = [(f"{name} of parameter {i}", array) for name, _, arrays in given for i, array in enumerate(arrays)]
    for label, array in every:
        if plan.touches(array):
            raise OverlapError(f"{label} overlaps a parameter or a state")
    places = sorted((array.ctypes.data, k) for k, (_, array) in enumerate(every))
    for (a, i), (b, j) in zip(places, places[1:], strict=False):
        if a + every[i][1].nbytes > b:
            low, high = every[min(i, j)][0], every[max(i, j)][0]
            same = low.partition(" ")[0] == high.partition(" ")[0]
            raise OverlapError(f"{high} overlaps {low.replace(low.partition(' ')[0], 'that') if same else low}")


def _required(cls: type[Optimizer]) -> tuple[str, ...]:
    """The state that the function of a class has to be given."""
    return tuple(slot.name for slot in (*arrays_of(cls, optional=False), *(slot for _, slot in _given_numbers(cls))))


def _signature(cls: type[Optimizer]) -> Signature:
    """What the function of an optimizer class takes: arrays by position, and the options of the class by name."""
    options = {**signature(Optimizer.__init__).parameters, **signature(cls).parameters}
    arrays = {
        "p": Parameter.empty, "g": Parameter.empty, **dict.fromkeys(_required(cls), Parameter.empty),
        **dict.fromkeys(_optional(cls)),
    }  # fmt: skip
    kinds = dict.fromkeys(("g", *_optional(cls)), "Arrays | None")
    by_name = [key for key in (*cls.group_keys(), "convention", *ENGINE_OPTIONS, *AROUND) if key not in FOR_STATE]
    return Signature(
        [
            *(
                Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kinds.get(name, "Arrays"))
                for name, default in arrays.items()
            ),
            Parameter("step", Parameter.KEYWORD_ONLY, annotation="SupportsIndex"),
            *(options[key].replace(kind=Parameter.KEYWORD_ONLY) for key in by_name),
            signature(Optimizer.step).parameters["grad_scale"].replace(kind=Parameter.KEYWORD_ONLY),
        ],
        return_annotation="bool",
    )


def _optional(cls: type[Optimizer]) -> tuple[str, ...]:
    """The state that the function of a class needs only with some options."""
    return (*(slot.name for slot in arrays_of(cls, optional=True)), AVERAGE.name)


@remembered
def _arguments(cls: type[Optimizer]) -> tuple[str, ...]:
    """The arrays that the function of a class takes, in their order."""
    return ("p", "g", *_required(cls), *_optional(cls))


def _kept(cls: type[Optimizer], single: bool = False) -> Kept:
    """What keeps the plans of a function of this class, or of `single` bound arrays."""
    names = _arguments(cls)
    numbers = [(names.index(slot.name), at, *slot.limits) for at, slot in _given_numbers(cls)]
    begun = any([slot.like == "begun" for slot in numbers_of(cls)])
    return Kept(names, 2 + len(_required(cls)), numbers, begun, single)


def _make(cls: type[Optimizer]) -> Callable[..., bool]:
    """The function of an optimizer class, with a signature that says what it takes."""
    shown = _signature(cls)
    positional, needed = _arguments(cls), {"p", "g", *_required(cls), "step"}
    filled = [slot.name for slot in arrays_of(cls) if slot.first in FOR_STATE]
    name = cls.__name__.lower() + "_"
    kept = _KEPT[name] = _kept(cls)
    fast = kept.call

    def function(*args: Any, **kwargs: Any) -> bool:
        stepped = fast(args, kwargs)
        return slowly(args, kwargs) if stepped is None else stepped

    def slowly(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        given = dict(zip(positional, args, strict=False))
        if len(args) > len(positional) or not given.keys().isdisjoint(kwargs):
            shown.bind(*args, **kwargs)  # raises what Python raises of such a call
        given.update(kwargs)
        if not needed <= given.keys():
            shown.bind(*args, **kwargs)
        if filled and not given.keys().isdisjoint(FOR_STATE):
            raise UnknownOptionError(_about_first_value(name, filled[0]))
        p, g, step = given.pop("p"), given.pop("g"), given.pop("step")
        state = {slot: given.pop(slot, None) for slot in positional[2:]}
        return _take(kept, cls, p, g, state, step, given, given)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"One step of `fastopt.{cls.__name__}`, in place: see there for the rule and the options.\n\n"
        "Returns True, or False if ``nonfinite=\"skip\"`` skipped it. See the module for the other arguments.\n"
    )
    function.__signature__ = shown  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in shown.parameters.values()} | {"return": "bool"}
    return function


def _about_first_value(function: str, slot: str) -> str:
    """What to say where an option was given that only says what state begins with."""
    return f"{FOR_STATE[0]} is not for {function}: fill {slot!r} yourself, or use make_state"


class Bound:
    """A rule bound to arrays that the caller owns: what `bind` returns.

    Every step compares the arrays with those of the last one. What is the same needs no more checks. Give the learning
    rate of each step as a number: if an option is a schedule, a list or an array, every step checks everything anew,
    which takes longer. The object keeps its arrays alive, and has no state of its own: the caller counts steps. Two
    threads may not step the same arrays at the same time.
    """

    __slots__ = ("_arrays", "_cls", "_kept", "_options")

    def __init__(self, cls: type[Optimizer], arrays: tuple[Any, ...], options: dict[str, Any], kept: Kept) -> None:
        self._cls, self._arrays, self._options, self._kept = cls, arrays, options, kept

    def step(self, g: Arrays | None, *, step: SupportsIndex, **options: Any) -> bool:
        """Take one step, in place.

        Parameters
        ----------
        g : array, or list of arrays
            The gradients, as many as there are parameters; each has the shape, type and memory order of its parameter.
            None instead of an array leaves its parameter as it is.
        step : int >= 1
            The number of this step.
        **options
            Hyperparameters and other options that are to replace those given to `bind` at this step; and
            ``grad_scale``, what gradients are divided by first.

        Returns
        -------
        bool
            True, or False if ``nonfinite="skip"`` skipped the step.

        Raises
        ------
        FastoptError
            As the function of the class. Nothing is modified then.
        """
        stepped = self._kept.step_bound(self._arrays, g, step, options)
        return self._slowly(g, step, options) if stepped is None else stepped

    def rebind(self, p: Arrays) -> None:
        """Step other parameters from the next step on, with the same state.

        Parameters
        ----------
        p : array, or list of arrays
            As many as before, each of the shape, type and memory order of its state. The next step checks it.

        Raises
        ------
        ParameterError
            For a list instead of an array, the reverse, or a list of another length.
        """
        members, mine = listed(p), self._arrays[0]
        n = len(mine) if isinstance(mine, list) else None
        if n != (None if members is None else len(members)):
            given = "an array" if members is None else f"a list of {len(members)}"
            raise ParameterError(f"p must be {'an array' if n is None else f'a list of {n} arrays'}, not {given}")
        self._arrays = (p if members is None else members, *self._arrays[1:])

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; None if that did not clip."""
        return self._kept.grad_norm

    def _slowly(self, g: Any, step: Any, options: dict[str, Any]) -> bool:
        _refuse_at_bound(self._cls, options)
        state = dict(zip(_arguments(self._cls)[2:], self._arrays[1:], strict=True))
        return _take(self._kept, self._cls, self._arrays[0], g, state, step, {**self._options, **options}, options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _bound, (self._cls, self._arrays, self._options)

    def __repr__(self) -> str:
        p = self._arrays[0]
        n = f"{len(p)} arrays" if isinstance(p, list) else "an array"
        return f"<{self._cls.__name__} bound to {n}{''.join(f', {k}={v!r}' for k, v in self._options.items())}>"


def _bound(cls: type[Optimizer], arrays: tuple[Any, ...], options: dict[str, Any]) -> Bound:
    return Bound(cls, arrays, options, _kept(cls, single=True))


def bind(
    optimizer: str | type[Optimizer], p: Arrays, state: Sequence[Arrays | None] = (), *, ema: Arrays | None = None,
    convention: str | None = None, **options: Any,
) -> Bound:  # fmt: skip
    """Bind a rule to arrays that the caller owns, for many steps.

    ``bind("adam", p, [m, v], lr=0.1).step(g, step=t)`` does the same as ``adam_(p, g, m, v, step=t, lr=0.1)``, to the
    last bit. Arrays and options are checked now. A step then checks the gradients, and that nothing else has changed.

    Parameters
    ----------
    optimizer : str or class
        Whose rule: the name of a class in `fastopt.OPTIMIZERS`, in any case, or a class that derives from
        `fastopt.Optimizer`.
    p : array, or list of arrays
        The parameters: float32 or float64, contiguous in C or Fortran order, writable.
    state : list
        The state in the order of the function, ``[m, v]`` for ``adam_(p, g, m, v)``: of each an array, or a list with
        one for each parameter, of its shape, type and memory order. Optional state may be left out, or None.
        `make_state` makes such a list.
    ema : array, or list of arrays, optional
        The averages of the parameters, for ``ema_decay``; the last of the state, which may be given there as well.
    convention : str, optional
        Whose formula and defaults to follow. It cannot be changed later.
    **options
        Those of the function: hyperparameters, ``n_threads``, ``nonfinite``, ``clip_norm`` ... A hyperparameter
        without a default may be left out here, and given at every step, as ``grad_scale`` is.

    Returns
    -------
    Bound
        An object with the methods ``step(g, step=..., **options)`` and ``rebind(p)``, and the attribute ``grad_norm``.

    Raises
    ------
    ParameterError
        For an optimizer that does not exist, or a list of state that is too short or too long.
    FastoptError
        For arrays and options, as the function. Nothing is modified then.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.functional import bind
    >>> p, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> bound = bind("adam", p, [m, v], lr=0.1)
    >>> for t in range(1, 4):
    ...     _ = bound.step(np.array([0.5, -0.5]), step=t)
    >>> p.round(3).tolist()
    [0.7, 2.3]
    """
    cls = _class_of(optimizer)
    names, needed = _arguments(cls)[2:], len(_required(cls))
    if not isinstance(state, (list, tuple)) or not needed <= len(state) <= len(names):
        takes = ", ".join([*names[:needed], *(f"{name} (optional)" for name in names[needed:])])
        given = f"{len(state)} of them" if isinstance(state, (list, tuple)) else shown(state)
        raise ParameterError(f"the state of {cls.__name__} must be a list of {takes or 'nothing'}; not {given}")
    _refuse_at_bound(cls, options)
    if "grad_scale" in options:
        raise UnknownOptionError("grad_scale is not for bind: give it to each step, which can have another one")
    every = dict(zip(names, state, strict=False))
    if ema is not None:
        if every.get(AVERAGE.name) is not None:
            raise ParameterError("ema is given twice: by name, and as the last of the state")
        every[AVERAGE.name] = ema
    members = listed(p)
    params, columns = _columns(p if members is None else members, every)
    arrays = [columns.get(name) for name in names]
    if members is None:
        arrays = [column and column[0] for column in arrays]
    if convention is not None:
        options["convention"] = convention
    full = with_defaults(cls, known_convention(cls, convention), options)
    lacking = [key for key in cls.hyperparameters if full[key] is None]
    plan, _ = _plan(cls, params, columns, 1, {**options, **dict.fromkeys(lacking, 0.0)})
    kept = _kept(cls, single=True)
    if not lacking:
        kept.prepare(plan, params, {})
        kept.keep(plan)
    return Bound(cls, (p if members is None else params, *arrays), options, kept)


def make_state(
    optimizer: str | type[Optimizer], p: Arrays, *, convention: str | None = None, **options: Any
) -> list[Any]:
    """Make the state of a rule as it is before its first step, for its function and for `bind`.

    The arrays are those that the class would make: with their first values, and in memory that suits the step. Arrays
    that lie a multiple of 4096 bytes apart slow each other down; large arrays of `numpy.zeros` do. Averages begin as
    the parameters, under thinc's convention as zero.

    Parameters
    ----------
    optimizer : str or class
        As for `bind`.
    p : array, or list of arrays
        The parameters. They are not written.
    convention : str, optional
        Whose defaults to follow.
    **options
        Those of the class that say which state there is, and what it begins with: ``amsgrad``, ``momentum``,
        ``initial_accumulator_value``, ``ema_decay`` ...

    Returns
    -------
    list
        The state in the order of the function: of each an array, or a list with one for each parameter; None for
        what these options do not need.

    Raises
    ------
    FastoptError
        As `bind`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.functional import bind, make_state
    >>> p = np.array([1.0, 2.0])
    >>> m, v, largest, ema = make_state("adam", p)
    >>> m, v, largest, ema
    (array([0., 0.]), array([0., 0.]), None, None)
    >>> bound = bind("adam", p, [m, v], lr=0.1)
    """
    cls = _class_of(optimizer)
    convention = known_convention(cls, convention)
    members = listed(p)
    params = [p] if members is None else members
    refuse_unknown(cls, options, "function", (*ENGINE_OPTIONS, *FOR_STATE))
    full = with_defaults(cls, convention, {key: value for key, value in options.items() if key not in ENGINE_OPTIONS})
    full |= {key: 0.0 for key in cls.hyperparameters if full[key] is None}
    plan = BorrowedPlan(partial(derive, cls, convention, rename=False))
    plan.add_group(full, params, [None] * len(params))
    numbers = dict(zip([slot.name for slot in numbers_of(cls)], first_numbers(cls), strict=True))
    given = {slot.name for _, slot in _given_numbers(cls)}
    state: list[Any] = []
    for name in _arguments(cls)[2:]:
        if name == AVERAGE.name and convention != "thinc":
            column = [each.get(name) for each in plan.states]
            for average, array in zip(column, plan.arrays, strict=True):
                if average is not None:
                    average[...] = array
        elif name in given:
            column = [np.full(1, numbers[name]) for _ in params]
        else:
            column = [each.get(name) for each in plan.states]
        needed = all(array is not None for array in column)
        state.append((column[0] if members is None else column) if needed else None)
    return state


def _class_of(optimizer: Any) -> type[Optimizer]:
    """The class that the first argument of `bind` means."""
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return optimizer
    named = {name.lower(): cls for name, cls in OPTIMIZERS.items()}
    if isinstance(optimizer, str) and optimizer.lower() in named:
        return named[optimizer.lower()]
    close = meant(optimizer.lower(), named, 0.6) if isinstance(optimizer, str) else None
    raise ParameterError(
        f"optimizer={optimizer!r:.80} must be a class of fastopt or its name; "
        + (f"did you mean {close!r}?" if close else f"it has: {', '.join(OPTIMIZERS)}")
    )


def _refuse_at_bound(cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    """Raise if options of a bound rule, or of one of its steps, hold what is no option there."""
    if not options.keys().isdisjoint(FOR_STATE):
        filled = [slot.name for slot in arrays_of(cls) if slot.first in FOR_STATE]
        if filled:
            raise UnknownOptionError(_about_first_value("bind", filled[0]))
    if "convention" in options:
        raise UnknownOptionError("convention is given to bind; it cannot be changed at a step")


_KEPT: dict[str, Kept] = {}
__all__ = ["Bound", "bind", "make_state", *(name.lower() + "_" for name in OPTIMIZERS)]
globals().update({name.lower() + "_": _make(cls) for name, cls in OPTIMIZERS.items()})
