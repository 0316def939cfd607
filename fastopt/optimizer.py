"""Optimizer: parameter groups, step, state and state_dict. The classes that derive from it only declare.

Design:
- A class says which hyperparameters it has, what each convention makes of them (`Convention`), and which rule of
  ``kernels/rules.pxi`` a group's options choose. `derive` turns that into a `Spec`, which the engine follows.
- What a convention does not list, its library does not offer: such an option has to keep its neutral value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from os import PathLike
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from fastopt._spelling import about_clipping, meant
from fastopt.engine import LAST_FLOAT_COUNT, SCHEDULABLE, Plan, is_array, is_number, listed
from fastopt.errors import (
    ConventionError,
    DeclarationError,
    HyperparameterError,
    ParameterError,
    UnknownAttributeError,
    UnknownOptionError,
)
from fastopt.typing import CommonOptions, Gradients, Nonfinite, Params, StateFactory

# How weight decay is applied; the numbers are the engine's.
L2, DECOUPLED, DECOUPLED_WITHOUT_LR, DECOUPLED_LAST = range(4)
EPS_PLACEMENTS = ("outside", "inside", "outside_uncorrected", "inside_uncorrected")
# Accepted values: from, to, whether "to" itself is excluded. Every value must be finite.
LIMITS: dict[str, tuple[float, float, bool]] = {
    "lr": (0.0, inf, False),
    "betas": (0.0, 1.0, True),
    "momentum": (0.0, 1.0, False),
    "dampening": (-inf, inf, False),
    "weight_decay": (0.0, inf, False),
    "eps": (0.0, inf, False),
    "eps_root": (0.0, inf, False),
    "alpha": (0.0, 1.0, False),
    "rho": (0.0, 1.0, False),
    "lr_decay": (0.0, inf, False),
    "momentum_decay": (0.0, inf, False),
    "initial_accumulator_value": (0.0, inf, False),
}
# What an option is where a convention does not offer it.
NEUTRAL: dict[str, Any] = {
    "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "centered": False, "amsgrad": False,
    "lr_decay": 0.0, "momentum_decay": 0.0, "initial_accumulator_value": 0.0, "eps_root": 0.0, "eps": 0.0,
    "bias_correction": False,
}  # fmt: skip
# State below this (in float32, in float64) has faded: it is flushed to 0. A moment at 2**-96 still has room for 64 more
# steps at beta = 0.9, and for a learning rate, before any product is subnormal. The root of a square at 2**-116, and a
# mean, are at 2**-58, 4 times that with the bias correction of step 64 (beta2 = 0.999): an eps of 2**-31 feels neither.
# With a smaller eps nothing is flushed.
MOMENT, SQUARE, MEAN = (2.0**-96, 2.0**-992), (2.0**-116, 2.0**-1012), (2.0**-58, 2.0**-506)
FLAGS = ("maximize", "decoupled_weight_decay", "flush_subnormal", "nesterov", "centered", "amsgrad", "bias_correction")
# Every option that a parameter group of some optimizer has, and the settings of the whole step.
OPTIONS = (*LIMITS, *FLAGS, "eps_placement")
SETTINGS = ("n_threads", "nonfinite", "copy_grads", "state_factory")


class Convention(NamedTuple):
    """What one library, or the paper, makes of an optimizer."""

    defaults: Mapping[str, Any]
    """The hyperparameters that it offers, with its defaults. None: it has no default, one must be given."""
    decay: Mapping[bool, int] = {}
    """decoupled_weight_decay -> how weight decay is applied; the first is the default."""
    forms: Mapping[str, float] = {}
    """What else its formula differs in: constants for the rule."""
    fixed: Mapping[str, Any] = {}
    """Hyperparameters that its formula has as constants."""
    names: Mapping[str, str] = {}
    """State whose unit or sign is not PyTorch's: PyTorch's name -> the name here (see `MEANINGS` in _state.py)."""


class Spec(NamedTuple):
    """What the engine needs to know of a parameter group."""

    rule: str
    slots: tuple[str, ...]
    """State slots, in the order of the rule."""
    limits: Mapping[str, tuple[float, float, bool]]
    """The numbers to read from the group and what is accepted for each."""
    watched: tuple[str, ...]
    """The options that, when edited, need another spec."""
    forms: Mapping[str, float]
    """Constants for the rule, by the name that its table entry uses."""
    decay: int
    maximize: bool
    numbers: tuple[float, ...]
    """First values of the numbers that each parameter carries from step to step; 0 for those left out."""
    initial: Mapping[str, float]
    """First values of state slots that do not start at 0."""
    low: Mapping[str, tuple[float, float]]
    """State slots that are flushed, unless eps is too small -> below what, in float32 and float64."""
    owner: str
    """How messages call the optimizer."""
    check_keys: Callable[[Mapping[str, Any]], bool] | None = None
    """Called with a group's options when their keys have changed: raises for names that should not be there, and says
    whether it has to be called again when values change."""


def check_kind(cls: type[Optimizer], key: str, value: Any, owner: str) -> None:
    """Raise unless an option is of the kind that it has to be; the engine checks the range of numbers."""
    if key in FLAGS:
        fits, accepted = isinstance(value, (bool, np.bool_)), "True or False"
    elif key == "eps_placement":
        fits = isinstance(value, str) and value in cls.eps_placements
        accepted = "one of " + ", ".join(map(repr, cls.eps_placements))
    elif key == "betas":
        fits = callable(value) or isinstance(value, (tuple, list))
        accepted = "a pair of numbers or schedules"
    else:
        fits = (key in SCHEDULABLE and not isinstance(value, type)) if callable(value) else is_number(value)
        accepted = "a number" + (" or a schedule" if key in SCHEDULABLE else "")
    if not fits:
        raise HyperparameterError(f"{owner}: {key}={value!r} must be {accepted}")


def is_neutral(key: str, value: Any) -> bool:
    """Whether an option is as where it does not exist."""
    return isinstance(value, (bool, int, float, np.generic)) and key in NEUTRAL and value == NEUTRAL[key]


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is switched off for good: a schedule never is."""
    return not callable(value) and value == 0


def derive(cls: type[Optimizer], convention: str, group: Mapping[str, Any], rename: bool = True) -> Spec:
    """The spec of a parameter group with these options; raises if they do not exist in the convention.

    With ``rename=False`` all state has PyTorch's names, also where it means something else.
    """
    offered = cls.conventions[convention]
    owner = f"{cls.__name__}(convention={convention!r})"
    constants = {}
    for key in cls.group_keys():
        if key not in group:
            raise HyperparameterError(f"{owner}: the parameter group has lost its {key!r}")
        check_kind(cls, key, group[key], owner)
        only = offered.fixed.get(key, NEUTRAL.get(key))
        if only is None or key in offered.defaults or key in cls.ours:
            continue
        if group[key] != only:
            having = [name for name, other in cls.conventions.items() if key in other.defaults]
            raise ConventionError(
                f"{owner} has no choice of {key}: {key}={group[key]!r} must be {only!r}"
                + (f"; conventions that have it: {', '.join(having)}" if having else "")
            )
        constants[key] = only
    if group.get("eps_root", 0) != 0 and group["eps_placement"] != "outside":
        raise HyperparameterError(
            f"{owner}: eps_root={group['eps_root']!r} needs eps_placement='outside', not {group['eps_placement']!r}"
        )
    decoupled = group["decoupled_weight_decay"]
    if offered.decay and decoupled not in offered.decay:
        raise ConventionError(f"{owner} has decoupled_weight_decay={not decoupled} only")
    rule, kept = chosen_rule(cls, group, convention)
    names = offered.names if rename else {}
    slots = tuple(names.get(name, name) for name in kept)
    forms = {
        "eps_placement": EPS_PLACEMENTS.index(group.get("eps_placement", "outside")),
        "eps_inside": group.get("eps_placement") == "inside",
        "bias_correction": group.get("bias_correction", True),
        **{key: value for key, value in constants.items() if key in LIMITS},
        **offered.forms,
    }
    numbers = [key for key in cls.hyperparameters if key in LIMITS and key not in constants]
    return Spec(
        rule=rule,
        slots=slots,
        limits={key: LIMITS[key] for key in numbers},
        watched=(
            "maximize", "decoupled_weight_decay", "flush_subnormal",
            *(key for key in cls.hyperparameters if key not in numbers or key in ("momentum", "eps_root")),
        ),
        forms={key: float(value) for key, value in forms.items()},
        decay=offered.decay.get(decoupled, L2),
        maximize=bool(group["maximize"]),
        numbers=(cls.carry,),
        initial={cls.accumulator: float(group["initial_accumulator_value"])} if cls.accumulator else {},
        low={names.get(name, name): cls.fading[name] for name in kept if name in cls.fading}
        if group["flush_subnormal"] else {},
        owner=owner,
        check_keys=partial(refuse_misspelt, cls, owner),
    )  # fmt: skip


def refuse_misspelt(cls: type[Optimizer], owner: str, options: Mapping[str, Any]) -> bool:
    """Raise if a key of a parameter group looks like an option, and is none; other keys are the user's own.

    Returns whether there are options of other optimizers, which have to stay switched off.
    """
    known = cls.group_keys()
    others = False
    for key, value in options.items():
        if not isinstance(key, str) or key in known or key == "params":
            continue
        text = f"{owner}: the parameter group has {key!r}, which does nothing"
        if key in SETTINGS:
            raise UnknownOptionError(f"{text}; it is an attribute of the optimizer")
        if key in OPTIONS:  # of another optimizer; PyTorch's groups may have it, switched off
            others = True
            if not is_neutral(key, value):
                raise UnknownOptionError(f"{text}; {cls.__name__} has: {', '.join(known)}")
        elif clipping := about_clipping(key):
            raise UnknownOptionError(f"{text}; {clipping}")
        elif close := meant(key, known, 0.9):
            raise UnknownOptionError(f"{text}; did you mean {close!r}?")
    return others


def known_convention(cls: type[Optimizer], convention: str | None) -> str:
    """The convention asked for, or the default of the class; raises if the class does not exist in it."""
    if not cls.conventions:
        check_declarations(cls)  # an abstract class
    if convention is None:
        return next(iter(cls.conventions))
    if not isinstance(convention, str) or convention not in cls.conventions:
        close = meant(convention, cls.conventions, 0.6) if isinstance(convention, str) else None
        raise ConventionError(
            f"{cls.__name__} has no convention={convention!r}; "
            f"{f'did you mean {close!r}? It' if close else 'it'} has: {', '.join(cls.conventions)}"
        )
    return convention


def with_defaults(cls: type[Optimizer], convention: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a class: those given, else (where None) the convention's."""
    offered = cls.conventions[convention]
    fallback = {**NEUTRAL, **cls.ours, **offered.fixed, **offered.defaults}
    options = {key: fallback.get(key) for key in cls.hyperparameters}
    options["maximize"] = False
    options["flush_subnormal"] = True
    options["decoupled_weight_decay"] = next(iter(offered.decay), False)
    return {**options, **{key: value for key, value in given.items() if value is not None}}


def refuse_unknown(cls: type[Optimizer], keys: Iterable[Any], more: Iterable[str] = ()) -> None:
    """Raise if one of the keys is neither an option of the class nor one of `more`."""
    known = (*cls.group_keys(), *more)
    for key in keys:
        if key in known:
            continue
        text = f"{cls.__name__} has no option {key!r}"
        if isinstance(key, str) and (clipping := about_clipping(key)):
            raise UnknownOptionError(f"{text}: {clipping}")
        close = meant(key, known) if isinstance(key, str) else None
        raise UnknownOptionError(
            f"{text}; {f'did you mean {close!r}? It' if close else 'it'} has: {', '.join(cls.group_keys())}"
        )


def require_all(cls: type[Optimizer], convention: str, options: Mapping[str, Any]) -> None:
    """Raise if a hyperparameter that the convention has no default for was not given."""
    for key in cls.hyperparameters:
        if options[key] is None:
            raise HyperparameterError(
                f"{cls.__name__}(convention={convention!r}) has no default for {key}; give one"
            )


def check_declarations(cls: type[Optimizer]) -> None:
    """Raise unless a class declares all that `Optimizer` asks of it, each of the right kind."""

    def need(fits: bool, name: str, wanted: str) -> None:
        if not fits:
            raise DeclarationError(f"{cls.__name__}.{name} = {getattr(cls, name, None)!r:.200} has to be {wanted}")

    def is_names(value: Any, among: Iterable[str] | None = None) -> bool:
        return isinstance(value, (tuple, list)) and all(
            isinstance(x, str) and (among is None or x in among) for x in value
        )

    need(
        isinstance(cls.conventions, Mapping) and bool(cls.conventions)
        and all(isinstance(k, str) and isinstance(c, Convention) for k, c in cls.conventions.items()),
        "conventions", "a dict with at least one entry, name -> fastopt.optimizer.Convention; the first is the default",
    )  # fmt: skip
    need(
        is_names(cls.hyperparameters) and "lr" in cls.hyperparameters
        and len(set(cls.hyperparameters)) == len(cls.hyperparameters),
        "hyperparameters", "a tuple of different names, 'lr' among them",
    )  # fmt: skip
    for name in ("slots", "optional_slots", "family"):
        need(is_names(getattr(cls, name)), name, "a tuple of names")
    need(is_names(cls.eps_placements, EPS_PLACEMENTS), "eps_placements", f"a tuple of names among {EPS_PLACEMENTS}")
    if "eps_root" in cls.hyperparameters:
        need("eps_placement" in cls.hyperparameters, "hyperparameters", "with 'eps_placement', which 'eps_root' needs")
    need("params" not in cls.hyperparameters, "hyperparameters", "without 'params', which is the group's parameters")
    state = (*cls.slots, *cls.optional_slots)
    need("step" not in state and len(set(state)) == len(state), "slots", "different names, and none of them 'step'")
    need(cls.carried is None or (isinstance(cls.carried, str) and cls.carried not in state), "carried",
         "None or a name of its own")  # fmt: skip
    for name in ("counts_in_state", "state_from_start"):
        need(isinstance(getattr(cls, name), bool), name, "True or False")
    need(
        cls.accumulator is None or "initial_accumulator_value" in cls.hyperparameters, "accumulator",
        "None, or the class has the hyperparameter 'initial_accumulator_value'",
    )  # fmt: skip
    need(cls.accumulator is None or cls.accumulator in cls.slots, "accumulator", f"None or one of {cls.slots}")
    need(is_number(cls.carry), "carry", "a number")
    need(isinstance(cls.ours, Mapping), "ours", "a dict, option -> value")
    need(
        isinstance(cls.fading, Mapping)
        and all(isinstance(x, tuple) and len(x) == 2 and all(map(is_number, x)) for x in cls.fading.values()),
        "fading", "a dict, state slot -> a pair of numbers",
    )  # fmt: skip
    need(cls.rule is not Optimizer.rule and callable(cls.rule), "rule", "a static method (group, convention) -> "
         "(name of a rule in kernels/rules.pxi, state slots in its order)")  # fmt: skip
    for key, convention in cls.conventions.items():
        for field, among in (("defaults", cls.hyperparameters), ("fixed", cls.hyperparameters), ("forms", None),
                             ("names", None)):  # fmt: skip
            value = getattr(convention, field)
            names = tuple(value) if isinstance(value, Mapping) else None
            if not is_names(names, among):
                wanted = "names" if among is None else f"hyperparameters of the class ({', '.join(among)})"
                raise DeclarationError(
                    f"{cls.__name__}.conventions[{key!r}].{field} = {value!r:.200} has to be a dict; keys: {wanted}"
                )
        for field, wanted, fits in (("forms", "numbers", is_number), ("names", "names", lambda x: isinstance(x, str))):
            value = getattr(convention, field)
            if not all(map(fits, value.values())):
                raise DeclarationError(
                    f"{cls.__name__}.conventions[{key!r}].{field} = {value!r:.200} has to hold {wanted}"
                )
        called = [convention.names.get(name, name) for name in state]
        if "step" in called or len(set(called)) != len(called):
            raise DeclarationError(
                f"{cls.__name__}.conventions[{key!r}].names has to give different names, and none of them 'step'; "
                f"the state is called {', '.join(called)}"
            )
        unknown = convention.names.keys() - {*state, cls.carried}
        if unknown:
            raise DeclarationError(
                f"{cls.__name__}.conventions[{key!r}].names has {sorted(unknown)}, which are no state of the class: "
                f"{', '.join(state) or 'none'}"
            )
        if not (isinstance(convention.decay, Mapping) and set(convention.decay) <= {False, True}
                and all(kind in range(4) for kind in convention.decay.values())):  # fmt: skip
            raise DeclarationError(
                f"{cls.__name__}.conventions[{key!r}].decay = {convention.decay!r:.200} has to be a dict: "
                "decoupled_weight_decay -> one of L2, DECOUPLED, DECOUPLED_WITHOUT_LR, DECOUPLED_LAST"
            )


def chosen_rule(cls: type[Optimizer], group: Mapping[str, Any], convention: str) -> tuple[str, tuple[str, ...]]:
    """What ``cls.rule`` says of a group; raises unless it is the name of a rule, and declared state slots."""
    try:
        answer = cls.rule(group, convention)
    except KeyError as error:
        raise DeclarationError(
            f"{cls.__name__}.rule() asks the group for {error}, which is no hyperparameter of the class: "
            f"{', '.join(cls.hyperparameters)}"
        ) from error
    declared = (*cls.slots, *cls.optional_slots)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], str)
            and isinstance(answer[1], (tuple, list)) and all(name in declared for name in answer[1])
            and len(set(answer[1])) == len(answer[1])):  # fmt: skip
        raise DeclarationError(
            f"{cls.__name__}.rule() returned {answer!r:.200}; (name of a rule, tuple of state slots) is needed, with "
            f"slots that the class declares: {', '.join(declared) or 'none'}"
        )
    return answer


class _NoAttribute:
    """In the place of a hyperparameter that users may look for: says where it is.

    A `__getattr__` could say it of every name, but makes a class look up all attributes in a slower way: a step over 10
    elements took 1.4 times as long.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, cls: type[Optimizer]) -> Any:
        _refuse_option(cls, self.name)


def _setting(name: str, doc: str) -> Any:
    """A setting of the step as an attribute: checked when it is set, refused in the middle of a step."""

    def get(optimizer: Optimizer) -> Any:
        return getattr(optimizer._plan, name)

    def put(optimizer: Optimizer, value: Any) -> None:
        _require_built(optimizer, name)
        optimizer._plan.run(optimizer._plan.configure, {name: value})

    return property(get, put, doc=doc)


class _ConstructorSignature:
    """What `inspect.signature` shows of a class: its constructor, with the options behind ``**common`` written out."""

    def __get__(self, optimizer: Any, cls: type[Optimizer]) -> Any:
        import inspect

        if optimizer is not None:  # of an object it would be that of a call
            raise AttributeError("__signature__")
        own = list(inspect.signature(cls.__init__).parameters.values())
        own = own[own[0].kind is not own[0].VAR_POSITIONAL :] if own else own  # without self
        every = inspect.signature(Optimizer.__init__).parameters
        shown: list[inspect.Parameter] = []
        for parameter in own:
            if parameter.kind is parameter.VAR_KEYWORD and "CommonOptions" in str(parameter.annotation):
                named = {parameter.name for parameter in own}
                shown += [every[name] for name in CommonOptions.__annotations__ if name not in named]
            else:
                shown.append(parameter)
        shown = [parameter.replace(annotation=_Unquoted.of(parameter.annotation)) for parameter in shown]
        return inspect.Signature(shown)


class _Unquoted(str):
    """An annotation that `help` shows as it is written."""

    __repr__ = str.__str__

    @classmethod
    def of(cls, annotation: Any) -> Any:
        return cls(annotation) if isinstance(annotation, str) else annotation


class Optimizer:
    """Base of all optimizers: steps arrays in place.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of group dicts
        What is stepped, in place: float32 or float64, contiguous in C or Fortran order, writable; NumPy arrays, or
        anything with the buffer protocol or ``__dlpack__`` on the CPU. Types may be mixed. A group dict has the key
        ``"params"`` and any hyperparameters of its own.
    options : dict, optional
        The hyperparameters of the class, which may be given by name instead; None stands for the convention's default.
    maximize : bool, default False
        Step up the gradient: it is negated first.
    decoupled_weight_decay : bool, optional
        False adds ``weight_decay * p`` to the gradient, True shrinks the parameter itself. The default, and which
        values exist, is the convention's.
    flush_subnormal : bool, default True
        At every 64th step of a parameter, state that has faded becomes 0: moments below 2**-96 (float64: 2**-992),
        averages of squares below 2**-116 (2**-1012), RMSprop's mean below 2**-58 (2**-506). Where gradients stay zero,
        steps would otherwise get 1.5 to 3 times as slow, and stay so, since at 0.9 a subnormal moment never becomes 0.
        No effect where eps (and eps_root) is below 2**-31, since the step would feel it, nor on Adagrad's sum and
        AMSGrad's maximum, nor on Lion, where a sign, however faint, moves the parameter.
    n_threads : int >= 1, optional
        The most threads for a step, up to 256; may be more than there are CPUs. Small steps take one, and so do, for up
        to 1,024 steps at a time, those whose threads keep coming late. None decides at every step,
        from the CPUs that the process may use, its control group's quota, and ``OMP_NUM_THREADS`` or threadpoolctl.
    nonfinite : {"propagate", "raise", "skip"}, default "propagate"
        When any gradient holds a NaN or an infinity: let it through; raise `NonFiniteError`; or skip the whole step,
        count none, and increment ``skipped_steps``. The last two look before the first write.
    copy_grads : bool, default False
        Accept gradients of another memory order or floating type, by copying them.
    convention : {"torch", "keras", "optax", "sklearn", "thinc", "paper"}, optional
        Whose formula and defaults to follow.
    state_factory : callable(name, shape, dtype) -> array, optional
        Supplies the memory of the state, such as a `numpy.memmap`; it is filled with the first values. When a memmap's
        ``flush()`` is called, and what a machine that stops leaves in its file, is the caller's to know: `save` writes
        checkpoints.

    Raises
    ------
    FastoptError
        Which is also the builtin that fits (ValueError, TypeError ...), and names the parameter; before anything was
        written.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    """Keys of a parameter group, in the order of the constructor."""
    conventions: ClassVar[Mapping[str, Convention]] = {}
    """The first is the default."""
    ours: ClassVar[Mapping[str, Any]] = {"eps_placement": "outside", "bias_correction": True}
    """What fastopt offers under every convention, and its value where the convention names none."""
    eps_placements: ClassVar[tuple[str, ...]] = EPS_PLACEMENTS
    """The placements of eps that it has."""
    slots: ClassVar[tuple[str, ...]] = ()
    """State that every rule of the class has, by PyTorch's names: see `Convention` for other ones."""
    optional_slots: ClassVar[tuple[str, ...]] = ()
    """State that some options bring."""
    carry: ClassVar[float] = 0.0
    """First value of the number that each parameter carries from step to step."""
    carried: ClassVar[str | None] = None
    """What PyTorch calls that number, if it has a name."""
    fading: ClassVar[Mapping[str, tuple[float, float]]] = {
        "exp_avg": MOMENT, "momentum_buffer": MOMENT, "velocity": MOMENT, "grad_avg": MEAN,
        "exp_avg_sq": SQUARE, "exp_inf": SQUARE, "square_avg": SQUARE, "acc_delta": SQUARE,
    }  # fmt: skip
    """State slot -> below what it is flushed."""
    accumulator: ClassVar[str | None] = None
    """The slot that initial_accumulator_value fills."""
    counts_in_state: ClassVar[bool] = True
    """Whether PyTorch stores "step" in the state of this optimizer."""
    state_from_start: ClassVar[bool] = False
    """Whether PyTorch makes the state in the constructor, so that state_dict() has it before the first step."""
    family: ClassVar[tuple[str, ...]] = ()
    """The optimizers whose state dicts it reads beside its own: state of the same kind."""

    defaults: dict[str, Any]
    """The options of groups that do not give their own."""
    n_threads: int | None = _setting(
        "n_threads", "The most threads for a step, or None: see the parameter. Can be set."
    )
    nonfinite: Nonfinite = _setting(
        "nonfinite", "What to do with NaN and infinities in gradients: see the parameter. Can be set."
    )
    copy_grads: bool = _setting(
        "copy_grads", "Whether gradients that do not fit are copied: see the parameter. Can be set."
    )
    state_factory: StateFactory | None = _setting(
        "state_factory", "What supplies memory for new state, or None. Can be set."
    )
    __signature__ = _ConstructorSignature()

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        """Check what a class declares; not one that is for others to derive from: ``abstract=True``, ABC, Generic."""
        super().__init_subclass__(**kwargs)
        if cls.conventions or not (abstract or {"ABC", "Generic"} & {base.__name__ for base in cls.__bases__}):
            check_declarations(cls)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> tuple[str, tuple[str, ...]]:
        """The rule in ``rules.pxi`` for a group, and its state slots in the rule's order."""
        raise NotImplementedError

    def __init__(
        self,
        params: Params,
        options: Mapping[str, Any] | None = None,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        flush_subnormal: bool = True,
        n_threads: int | None = None,
        nonfinite: Nonfinite = "propagate",
        copy_grads: bool = False,
        convention: str | None = None,
        state_factory: StateFactory | None = None,
        **unknown: Any,
    ) -> None:
        cls = type(self)
        refuse_unknown(cls, unknown, (*SETTINGS, "convention"))
        convention = known_convention(cls, convention)
        self._convention: str = convention
        given = {**(options or {}), **unknown, "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
                 "flush_subnormal": flush_subnormal}  # fmt: skip
        self.defaults = with_defaults(cls, convention, given)
        self._plan = Plan(
            partial(derive, cls, convention),
            n_threads=n_threads, nonfinite=nonfinite, copy_grads=copy_grads, state_factory=state_factory,
        )  # fmt: skip
        self._single = False
        groups: list[Any]
        if isinstance(params, Mapping) and params:
            groups = [{"params": params}]
        elif not is_array(params) and isinstance(params, Iterable) and not isinstance(params, (set, frozenset)):
            groups = list(params)
            if not groups:
                raise ParameterError(f"{cls.__name__} got no parameters: an empty {type(params).__name__}")
            if not any(isinstance(group, Mapping) for group in groups):
                groups = [{"params": groups}]
        else:
            self._single = True
            groups = [{"params": [params]}]
        for k, group in enumerate(groups, 1):
            self._add_group(group, last=k == len(groups))

    @property
    def convention(self) -> str:
        """The convention that it follows, by name. It cannot be changed: state and options follow it."""
        return self._convention

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DECLARED and getattr(type(self), name) is getattr(_library_class(type(self)), name):
            raise UnknownAttributeError(f"{name} is declared by the class {type(self).__name__}, not by one object")
        if not (name.startswith("_") or _declares(type(self), name)):
            _refuse_option(type(self), name)
        elif name == "convention":
            _require_built(self, name)
            raise UnknownAttributeError(
                f"the convention of {type(self).__name__} cannot be changed: build a new one with "
                f"convention={value!r}, and load the state dict of this one"
            )
        object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        hidden = {*_DECLARED, *_FOR_AUTHORS}
        hidden |= {name for name, value in vars(Optimizer).items() if isinstance(value, _NoAttribute)}
        return [name for name in super().__dir__() if name not in hidden]

    # --- Parameter groups

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One dict per group: ``params`` and the hyperparameters, which may be edited between steps."""
        return self._plan.options

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with hyperparameters of their own; what the dict leaves out is the optimizer's default."""
        self._add_group(group, last=True)

    @property
    def _originals(self) -> list[tuple[Any, ...]]:
        """The parameters of each group, as they were given."""
        return [group.params for group in self._plan.groups]

    def _add_group(self, group: Mapping[str, Any], last: bool) -> None:
        plan = self._plan
        if not isinstance(group, Mapping) or "params" not in group:
            raise ParameterError(
                "a parameter group is a dict with the key 'params', and groups cannot be mixed with arrays; "
                f"got {group!r:.80}"
            )
        params = group["params"]
        names: list[str | None]
        if isinstance(params, Mapping):
            names, arrays = list(params), list(params.values())
        else:
            members = listed(params)
            arrays = [params] if members is None else members
            names = [None] * len(arrays)
        known = {name for name in plan.names if name is not None}
        clash = known.intersection(name for name in names if name is not None)
        if clash:
            raise ParameterError(f"parameter names must be unique; twice: {sorted(map(str, clash))}")
        if arrays and plan.names and (names[0] is None) != (plan.names[0] is None):
            raise ParameterError("either all parameter groups name their parameters (a dict), or none does")
        refuse_unknown(type(self), [key for key in group if key != "params"])
        own = {key: value for key, value in group.items() if key != "params" and value is not None}
        options = {"params": tuple(arrays), **self.defaults, **own}
        require_all(type(self), self.convention, options)
        plan.add_group(options, arrays, names, last=last, twin=in_torch(type(self)))

    # --- Stepping

    def step(self, grads: Gradients, *, grad_scale: float | None = None) -> None:
        """Step every parameter that has a gradient, in place.

        Parameters
        ----------
        grads : list, tuple or other iterable of arrays, dict of arrays, or one array
            In the order of the parameters of all groups; a dict, with the same names, if the parameters were given
            as one; one array for a single parameter. Each has the shape, type and memory order of its parameter;
            None skips that parameter, and its step count stands still.
        grad_scale : float > 0, optional
            What the loss was multiplied by: gradients are divided by it as they are read, before anything else, and
            stay as they are in memory.

        Raises
        ------
        FastoptError
            Before anything was written: parameters, state and counts are then unchanged.
        """
        self._plan.step(grads, grad_scale)

    @property
    def steps(self) -> int:
        """Steps taken; what schedules are called with."""
        return self._plan.steps

    @property
    def skipped_steps(self) -> int:
        """Steps skipped by ``nonfinite="skip"``."""
        return self._plan.skipped

    @property
    def params(self) -> list[np.ndarray]:
        """The parameters of all groups, as arrays over their own memory."""
        return [np.asarray(p) for p in self._plan.arrays]

    # --- State

    @property
    def state(self) -> list[dict[str, Any]]:
        """One dict per parameter: ``step``, its count as an int, and the live state arrays by PyTorch's names."""
        plan = self._plan
        entries = []
        for i, state in enumerate(plan.states):
            count, (carry, *_) = plan.count(i)
            entries.append({"step": count, **self._extra_state(carry), **state})
        return entries

    def state_dict(self) -> dict[str, Any]:
        """State, groups and counts in PyTorch's layout, with NumPy arrays for tensors; the parameters are not in it.

        The arrays are the live ones, as in PyTorch: copy them (`copy.deepcopy`) to keep a moment, while no other
        thread steps; `save` looks to that by itself. ``step`` is float32 as PyTorch stores it, and float64 beyond
        2**24. What PyTorch has no place for is under the key ``fastopt``, which it ignores.
        """
        from fastopt._state import VERSION

        plan = self._plan
        if len(self.param_groups) != len(plan.groups):
            raise ParameterError("param_groups changed its length; use add_param_group()")
        counts = [plan.count(i)[0] for i in range(len(plan.arrays))]
        state = {i: entry for i in range(len(counts)) if (entry := self._state_entry(i)) is not None}
        groups, first = [], 0
        for group, params in zip(self.param_groups, self._originals, strict=True):
            n = len(params)
            packed = self._packed(group)
            packed["params"] = list(range(first, first + n))
            if plan.named:
                packed["param_names"] = plan.names[first : first + n]
            groups.append(packed)
            first += n
        own = {
            "version": VERSION, "optimizer": type(self).__name__, "convention": self.convention,
            "steps": plan.steps, "skipped_steps": plan.skipped, "counts": counts,
        }  # fmt: skip
        return {"state": state, "param_groups": groups, "fastopt": own}

    def _packed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's options, as a state dict lists them."""
        return {key: value for key, value in group.items() if key != "params"}

    def _state_entry(self, i: int) -> dict[str, Any] | None:
        count, (carry, *_) = self._plan.count(i)
        if count == 0 and not self.state_from_start:
            return None
        entry: dict[str, Any] = {}
        if self.counts_in_state:
            entry["step"] = np.array(count, np.float32 if count <= LAST_FLOAT_COUNT else np.float64)
        entry.update(self._extra_state(carry))
        if self.state_begun(carry):
            entry.update(self._plan.states[i])
        return entry or None

    def _extra_state(self, carry: float) -> dict[str, Any]:
        """What the carried number is called in PyTorch's state."""
        return {}

    @classmethod
    def slots_under(cls, convention: str) -> tuple[str, ...]:
        """The state slots that it can have under a convention, by their names there."""
        names = cls.conventions[convention].names
        return tuple(names.get(name, name) for name in (*cls.slots, *cls.optional_slots))

    @classmethod
    def carried_under(cls, convention: str) -> str | None:
        """What a state dict under a convention calls the carried number; None (or empty) if it is not in there."""
        return cls.conventions[convention].names.get(cls.carried, cls.carried) if cls.carried else None

    @classmethod
    def carry_from(cls, entry: Mapping[str, Any], convention: str) -> float:
        """The carried number, from an entry of a state dict; KeyError, TypeError or ValueError if it is no good."""
        return cls.carry

    @classmethod
    def state_begun(cls, carry: float) -> bool:
        """Whether a parameter that has taken steps has state to save, by its carried number."""
        return True

    @classmethod
    def carry_at(cls, step: int) -> float:
        """The carried number before a step of that count, where the count alone says it."""
        return cls.carry

    @classmethod
    def group_keys(cls) -> tuple[str, ...]:
        """The keys of a parameter group, but for ``params``."""
        return (*cls.hyperparameters, "maximize", "decoupled_weight_decay", "flush_subnormal")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, PyTorch's own included (its tensors converted with ``.numpy()``).

        Hyperparameters are replaced by the saved ones; state is copied into the optimizer's memory, cast to the type
        of its parameter. Parameters without an entry start anew. Everything is checked before anything is changed.

        Raises
        ------
        StateDictError
            For a dict of another layout, optimizer, convention or shape, or with state missing.
        HyperparameterError, ConventionError
            For hyperparameters out of range, or that the convention has not.
        """
        from fastopt._state import load

        load(self, state_dict)

    def save(self, path: str | bytes | PathLike[Any]) -> None:
        """Write the state, counts and parameter groups into a file: all but the parameters.

        The file is a safetensors file, made beside `path`, and takes its place when it has reached the disk: whoever
        stops the process finds the old file or the new one, whole. A process killed in the middle may leave a folder
        ``.<name>.*.saving``, which the next save of the same file removes. The format is in `fastopt.checkpoint`.

        Parameters
        ----------
        path : str, bytes or path-like
            The file to write or replace. What a link leads to is replaced.

        Raises
        ------
        CheckpointError
            If a parameter group holds what has no place in a file, such as a lambda for a schedule; if `path` is there
            and is no regular file; if there are too many arrays for a header of 100 MB, some 230,000 of them.
        OSError
            If the file cannot be written, for want of space or permission. The old one is then untouched; only where
            the system could rename the new file, but not bring the renaming to the disk, the new one is there.
        MissingExtraError
            Without the safetensors library, which ``fastopt[checkpoint]`` brings.
        """
        from fastopt.checkpoint import save

        save(self, path)

    def load(self, path: str | bytes | PathLike[Any]) -> None:
        """Continue from a file of `save`: `load_state_dict` of what `fastopt.load` reads, with their errors.

        The file may come from another thread count, instruction set or machine: the steps that follow have the same
        bits. Schedules are made anew; take a `ReduceOnPlateau` from ``param_groups`` to go on updating it.
        """
        from fastopt.checkpoint import load

        self.load_state_dict(load(path))

    # --- Copies and looks

    def __getstate__(self) -> dict[str, Any]:
        # Refused in the middle of another thread's step. The arrays are the live ones: one that follows is seen.
        return self._plan.run(self._getstate)

    def _getstate(self) -> dict[str, Any]:
        plan = self._plan
        groups: list[dict[str, Any]] = []
        names = iter(plan.names)
        for group, originals in zip(self.param_groups, self._originals, strict=True):
            params = list(originals)
            mine = [next(names) for _ in params]
            named = dict(zip(mine, params, strict=True)) if plan.named and mine else params
            groups.append({**group, "params": named})
        return {
            "convention": self.convention, "defaults": self.defaults,
            "settings": {name: getattr(plan, name) for name in SETTINGS},
            "single": self._single, "groups": groups, "state_dict": self.state_dict(),
        }  # fmt: skip

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._convention, self.defaults = saved["convention"], saved["defaults"]
        self._single = saved["single"]
        self._plan = Plan(partial(derive, type(self), self.convention), **saved["settings"])
        self._plan.set_steps(saved["state_dict"]["fastopt"]["steps"], 0)  # what schedules are called with
        for k, group in enumerate(saved["groups"], 1):
            self._add_group({key: group[key] for key in ("params", *self.group_keys())}, last=k == len(saved["groups"]))
        self.load_state_dict(saved["state_dict"])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (_blank, (type(self),), self.__getstate__())

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} (convention: {self.convention}"]
        arrays = iter(self._plan.arrays)
        for k, group in enumerate(self.param_groups):
            sizes = [next(arrays).size for _ in self._originals[k]]
            lines.append(f"Parameter Group {k}: {len(sizes)} array{'s' * (len(sizes) != 1)}, {sum(sizes):,} elements")
            lines += [f"    {key}: {group[key]!r}" for key in sorted(group, key=str) if key != "params"]
        return "\n".join([*lines, ")"])


def _library_class(cls: type[Optimizer]) -> type[Optimizer]:
    """The class of this library that a class is, or derives from."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("fastopt."))


def _require_built(optimizer: Optimizer, name: str) -> None:
    """Raise if an attribute is set before the constructor has run."""
    if "_plan" not in vars(optimizer):
        raise UnknownAttributeError(
            f"{name} cannot be set before {type(optimizer).__name__} is made: give it to super().__init__()"
        )


def _declares(cls: type, name: str) -> bool:
    """Whether a class, or one that it derives from, has an attribute or annotation of that name."""
    if hasattr(cls, name):
        return True
    annotated: set[str] = set()
    for base in cls.__mro__:
        with suppress(NameError):  # of an annotation that names what does not exist
            annotated.update(getattr(base, "__annotations__", ()))
    return name in annotated


def _refuse_option(cls: type[Optimizer], name: str) -> None:
    """Raise if an attribute that the class does not have looks like an option, a setting, or one misspelt."""
    text = f"{cls.__name__} has no attribute {name!r}"
    close = meant(name, (*OPTIONS, *SETTINGS, *_PUBLIC))
    if clipping := about_clipping(name):
        text += f": {clipping}"
    elif close is None:
        return
    elif close not in OPTIONS:
        text += f"; did you mean {close!r}?"
    elif close not in cls.group_keys():
        text += f", nor an option of that name; it has: {', '.join(cls.group_keys())}"
    else:
        text += f": hyperparameters belong to a parameter group, param_groups[0][{close!r}]"
    if not cls.__module__.startswith("fastopt."):
        text += f". To have an attribute of that name, declare it in the class: {name}: Any"
    raise UnknownAttributeError(text)


_DECLARED = (
    "hyperparameters", "conventions", "ours", "eps_placements", "slots", "optional_slots", "carry", "carried", "fading",
    "accumulator", "counts_in_state", "state_from_start", "family",
)  # fmt: skip
# What `dir` of an optimizer leaves out beside: methods for classes that derive from it.
_FOR_AUTHORS = ("rule", "group_keys", "slots_under", "carried_under", "carry_from", "carry_at", "state_begun")
_PUBLIC = tuple(name for name in vars(Optimizer) if not name.startswith("_"))
for _name in OPTIONS:
    setattr(Optimizer, _name, _NoAttribute(_name))

_O = TypeVar("_O", bound=Optimizer)


def _blank(cls: type[_O]) -> _O:
    return cls.__new__(cls)


def in_torch(cls: type[Optimizer]) -> str:
    """What `fastopt.torch` has in the place of a class, for messages."""
    ours = [base.__name__ for base in cls.__mro__ if base.__module__.startswith("fastopt.") and base is not Optimizer]
    if not ours:
        return "fastopt.torch"
    forms = {"Momentum": "SGD(momentum=...)", "NAG": "SGD(momentum=..., nesterov=True)"}
    return f"fastopt.torch.{forms.get(ours[0], ours[0])}"
