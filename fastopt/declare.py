"""What an optimizer class declares: hyperparameters, conventions, state; and the `Spec` that the engine makes of it.

Design:
- A class says which hyperparameters it has, what each convention makes of them (`Convention`), which state it keeps
  (`Slot`), and which rule of ``kernels/rules.pxi`` a group's options choose. `derive` turns that into a `Spec`.
- An option that a convention does not list does not exist in that library: it has to keep its neutral value.
- Nothing here steps or allocates: optimizers for arrays and for tensors, `fastopt.functional`, the reference and the
  documentation all read the same declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from math import inf
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from fastopt._spelling import about_clipping, meant
from fastopt.engine import (
    AROUND,
    LOW_SLOT,
    MEAN_SLOT,
    MOST_NUMBERS,
    MOST_STATES,
    PAIRS,
    SCHEDULABLE,
    STORAGE,
    is_number,
)
from fastopt.errors import ConventionError, DeclarationError, HyperparameterError, UnknownOptionError

# How weight decay is applied; the numbers are the engine's.
L2, DECOUPLED, DECOUPLED_WITHOUT_LR, DECOUPLED_LAST = range(4)
EPS_PLACEMENTS = ("outside", "inside", "outside_uncorrected", "inside_uncorrected")


class Range(NamedTuple):
    """The numbers that an option accepts; they have to be finite, too."""

    low: float = -inf
    high: float = inf
    above: bool = False
    """Whether `low` itself is excluded,"""
    below: bool = False
    """or `high`."""

    def __str__(self) -> str:
        if self.high == inf:
            at_least = "" if self.low == -inf else f", {'above' if self.above else 'at least'} {self.low:g}"
            return f"a finite number{at_least}"
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


NOT_NEGATIVE, UNIT, BELOW_ONE = Range(0.0), Range(0.0, 1.0), Range(0.0, 1.0, below=True)
# What each number among the options accepts, or each of the two of a pair.
LIMITS: dict[str, tuple[Range, ...]] = {
    "lr": (NOT_NEGATIVE,),
    "betas": (BELOW_ONE, BELOW_ONE),
    "momentum": (UNIT,),
    "dampening": (Range(),),
    "weight_decay": (NOT_NEGATIVE,),
    "eps": (NOT_NEGATIVE,),
    "eps_root": (NOT_NEGATIVE,),
    "alpha": (UNIT,),
    "rho": (UNIT,),
    "lr_decay": (NOT_NEGATIVE,),
    "momentum_decay": (NOT_NEGATIVE,),
    "initial_accumulator_value": (NOT_NEGATIVE,),
    "lambd": (NOT_NEGATIVE,),
    "t0": (NOT_NEGATIVE,),
    "etas": (Range(0.0, 1.0, above=True, below=True), Range(1.0, above=True)),
    "step_sizes": (Range(0.0, above=True), Range(0.0, above=True)),
}
# Numbers that also decide which rule it is, or whether the options fit together.
DECIDING = ("momentum", "eps_root", *(key for key in PAIRS if key not in SCHEDULABLE))
# What an option is where a convention does not offer it.
NEUTRAL: dict[str, Any] = {
    "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "centered": False, "amsgrad": False,
    "lr_decay": 0.0, "momentum_decay": 0.0, "initial_accumulator_value": 0.0, "eps_root": 0.0, "eps": 0.0,
    "bias_correction": False,
}  # fmt: skip
# For `Slot.low`: state below this (in float32, in float64) has decayed to near zero, and is set to zero. A moment at
# 2**-96 still has room for 64 more steps at beta = 0.9, and for a learning rate, before any product is subnormal. The
# root of a square at 2**-116, and a mean, are at 2**-58, 4 times that with the bias correction of step 64 (beta2 =
# 0.999): an eps of 2**-31 feels neither. With a smaller eps nothing is flushed.
MOMENT, SQUARE, MEAN = (2.0**-96, 2.0**-992), (2.0**-116, 2.0**-1012), (2.0**-58, 2.0**-506)
FLAGS = ("maximize", "decoupled_weight_decay", "flush_subnormal", "nesterov", "centered", "amsgrad", "bias_correction")
# Every option that a parameter group of some optimizer has, and the settings of the whole step.
OPTIONS = (*LIMITS, *FLAGS, "eps_placement", *AROUND, *STORAGE)
SETTINGS = ("n_threads", "nonfinite", "copy_grads", "state_factory", "clip_norm", "norm_type")
# How a factor comes from the norm of all gradients: see `clip_factor` in reference.py. 0 where it is not said.
CLIP_FORMS = {"keras": 1, "optax": 2, "thinc": 2}


class Slot(NamedTuple):
    """One piece of state that an optimizer keeps for each parameter."""

    name: str
    """What PyTorch calls it, if PyTorch has it. `Convention.names` renames it under a convention."""
    like: str = "parameter"
    """The shape: that of the parameter; ``"row"``, one element for each index of all axes but the last;
    ``"column"``, one for each index of all axes but the last but one; ``"one"``, an array of one element.

    Or no array: ``"number"``, which the rule's scalars carry from step to step; ``"count"``, the steps taken;
    ``"begun"``, a number that is 0 until the first step with state. It is not saved: a state dict leaves out state that
    has not begun."""
    storage: str | None = None
    """The type: "float32", "float64", or None for that in which the parameter is computed (of numbers: float64). In a
    `Spec` also as options ask for it: "bfloat16", "8bit", "low"."""
    first: float | str = 0.0
    """The first value: a number, the name of an option that gives it, or ``"copy"``: the parameter before its first
    step."""
    low: tuple[float, float] | None = None
    """Below this, in float32 and in float64, state is set to zero at every 64th step; None: never."""
    optional: bool = False
    """Whether only some options bring it."""
    from_start: bool = False
    """Whether `Optimizer.state_dict` has it before the first step."""
    limits: tuple[float, float] = (-inf, inf)
    """What a number may be when it is loaded."""
    narrow: str | None = None
    """What ``state_dtype`` can make of it: ``"moment"``, an average of either sign, rounded to the nearest bfloat16 or
    to a sign and 7 bits; ``"square"``, an average or sum of what is not negative, rounded stochastically to bfloat16
    or to 8 bits; ``"sign"``, of which the sign counts: bfloat16 alone; None: it stays float32."""
    wide_beside: str | None = None
    """A slot beside which it stays float32: their difference is taken."""

    @property
    def is_array(self) -> bool:
        """Whether it is an array, and not a number or a count."""
        return self.like in ARRAYS

    @property
    def is_number(self) -> bool:
        """Whether it is a number that the rule's scalars carry from step to step."""
        return self.like in NUMBERS


ARRAYS = ("parameter", "row", "column", "one")
"""What a state slot can be like that is an array,"""
NUMBERS = ("number", "begun")
"""and what it can be that is a number which each parameter carries."""
FORMER = (
    "optional_slots", "fading", "accumulator", "carry", "carried", "counts_in_state", "state_from_start", "carry_from",
    "carry_at", "carried_under", "state_begun", "_extra_state", "_packed",
)  # fmt: skip
"""What `Slot` has taken the place of: a class that still says it would be misunderstood."""
AVERAGE = Slot(MEAN_SLOT)
"""The average of a parameter, in the state of those whose group has ``ema_decay``."""
AVERAGE_FORMS = {"keras": 1, "thinc": 2}
"""How an average follows its parameter: see `find_mean` in reference.py. 0 where it is not said."""
LOW = Slot(LOW_SLOT, storage="low")
"""What a bfloat16 parameter with ``split=True`` lacks of a float32: int16."""
STORAGES = ("float32", "bfloat16", "8bit")
"""How state can be stored."""
STEP = Slot("step", like="count")
"""The count, in the state of every optimizer for which PyTorch keeps it there."""


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
    """State whose unit or sign is not PyTorch's: PyTorch's name -> the name here (see `MEANINGS` in state.py). An empty
    name: a number that is not saved."""
    storage: Mapping[str, str] = {}
    """Numbers of the state -> the type in which it keeps them."""


def are_equal(a: Any, b: Any) -> bool:
    """Whether two values of an option are equal; not if they cannot be compared, as arrays."""
    try:
        return bool(a == b)
    except Exception:  # whatever a foreign type's comparison raises
        return False


class Storage(NamedTuple):
    """What the options in ``STORAGE`` say of a parameter group."""

    given: Mapping[str, Any]
    """The options, as they were read."""
    state: Mapping[str, str]
    """State slot -> one of `STORAGES`, where something is said."""
    split: bool
    rounding: str | None
    seed: int
    in_uint16: bool
    """Whether parameters of uint16 hold bfloat16,"""
    grad_is_bfloat16: bool
    """and gradients of uint16."""

    @property
    def layout(self) -> tuple[Any, ...]:
        """What cannot be edited; empty where nothing was asked for."""
        state = ((name, dtype) for name, dtype in self.state.items() if dtype != "float32")
        layout = (tuple(sorted(state)), self.split, self.in_uint16)
        return () if layout == ((), False, False) else layout

    @property
    def narrows(self) -> bool:
        """Whether it asks for what float64 parameters do not have."""
        return bool(self.state) or self.split or self.in_uint16

    def differs(self, options: Mapping[str, Any]) -> bool:
        """Whether options of a group are no longer as they were read."""
        return any(not are_equal(options.get(key), self.given.get(key)) for key in STORAGE)


class Spec(NamedTuple):
    """What the engine needs to know of a parameter group."""

    rule: str
    slots: tuple[Slot, ...]
    """State arrays by their names under the convention: those that the rule steps, in its order, then the others."""
    kinds: Mapping[str, Slot]
    """Every array that the class can have under the convention, by name: other options may have left it there."""
    numbers: tuple[float, ...]
    """First values of the numbers that each parameter carries from step to step."""
    limits: Mapping[str, tuple[Range, ...]]
    """The numbers to read from the group, and what is accepted for each, or for both of a pair."""
    watched: tuple[str, ...]
    """The options that, when edited, need another spec."""
    forms: Mapping[str, float]
    """Constants for the rule, by the name that its table entry uses."""
    decay: int
    maximize: bool
    mean: int
    """How averages follow their parameters: 0, or one of `AVERAGE_FORMS`."""
    owner: str
    """How messages call the optimizer."""
    storage: Storage | None = None
    """How parameters and state are stored, if options say so."""
    check_keys: Callable[[Mapping[str, Any]], bool] | None = None
    """Called with a group's options when their keys have changed: raises for names that should not be there, and says
    whether it has to be called again when values change."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the state arrays."""
        return tuple(slot.name for slot in self.slots)


class Declaration:
    """What a class of optimizers says of itself. `fastopt.Optimizer` derives from it, and adds the step."""

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    """Keys of a parameter group, in the order of the constructor."""
    conventions: ClassVar[Mapping[str, Convention]] = {}
    """The first is the default."""
    always_offered: ClassVar[Mapping[str, Any]] = {"eps_placement": "outside", "bias_correction": True}
    """What fastopt offers under every convention, and its value where the convention names none."""
    eps_placements: ClassVar[tuple[str, ...]] = EPS_PLACEMENTS
    """The placements of eps that it has."""
    slots: ClassVar[tuple[Slot, ...]] = ()
    """The state of a parameter."""
    family: ClassVar[tuple[str, ...]] = ()
    """The optimizers whose state dicts it reads beside its own: state of the same kind."""

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        """Check what a class declares; not one that is for others to derive from: ``abstract=True``, ABC, Generic."""
        super().__init_subclass__(**kwargs)
        if cls.conventions or not (abstract or {"ABC", "Generic"} & {base.__name__ for base in cls.__bases__}):
            check_declarations(cls)

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> str | tuple[str, tuple[str, ...]]:
        """The rule in ``rules.pxi`` for a group, and the names of its state arrays in the rule's order.

        The name alone stands for a rule with all arrays of the class that are not optional.
        """
        raise NotImplementedError

    @staticmethod
    def _implied(given: Mapping[str, Any], convention: str) -> Mapping[str, Any]:
        """Defaults that are others because of the options that are given."""
        return {}

    @classmethod
    def group_keys(cls) -> tuple[str, ...]:
        """The keys of a parameter group, but for ``params``."""
        return (*cls.hyperparameters, "maximize", "decoupled_weight_decay", "flush_subnormal")

    @classmethod
    def slots_under(cls, convention: str) -> tuple[str, ...]:
        """The state arrays that it can have under a convention, by their names there."""
        return tuple(named_arrays(cls, convention))


_Class = TypeVar("_Class", bound=type[Declaration])
_Function = TypeVar("_Function", bound=Callable[..., Any])
OPTIMIZERS: dict[str, Any] = {}
"""Every public optimizer by name, in the order of their definition."""


def public(cls: _Class) -> _Class:
    """Enter a class in `OPTIMIZERS`, which ``fastopt.functional``, tests, benchmarks and documentation walk."""
    OPTIMIZERS[cls.__name__] = cls
    return cls


def remembered(function: _Function) -> _Function:
    """A function of a class, which is asked for the same answer at every load, save and edit."""
    return lru_cache(maxsize=1024)(function)  # type: ignore[return-value]


@remembered
def arrays_of(cls: type[Declaration], optional: bool | None = None) -> tuple[Slot, ...]:
    """The state slots of a class that are arrays: all, or those that only some options bring, or those that all do."""
    return tuple(slot for slot in cls.slots if slot.is_array and optional in (None, slot.optional))


@remembered
def numbers_of(cls: type[Declaration]) -> tuple[Slot, ...]:
    """The state slots of a class that are numbers, in the order in which its rules carry them."""
    return tuple(slot for slot in cls.slots if slot.is_number)


@remembered
def named_arrays(cls: type[Declaration], convention: str) -> Mapping[str, Slot]:
    """The state arrays that a class can have under a convention, by their names there."""
    arrays = {name_under(cls, convention, slot): slot for slot in arrays_of(cls)}
    return MappingProxyType({**arrays, AVERAGE.name: AVERAGE})


@remembered
def saved_numbers(cls: type[Declaration], convention: str) -> Mapping[str, int]:
    """The numbers that a state dict under a convention holds: name there -> place among all numbers of the class."""
    named = [(name_under(cls, convention, slot), k, slot) for k, slot in enumerate(numbers_of(cls))]
    return MappingProxyType({name: k for name, k, slot in named if name and slot.like == "number"})


@remembered
def counts_in_state(cls: type[Declaration]) -> bool:
    """Whether a state dict has "step" in the state of each parameter, as PyTorch's has."""
    return any(slot.like == "count" for slot in cls.slots)


@remembered
def state_from_start(cls: type[Declaration]) -> bool:
    """Whether a state dict has the state of parameters that have taken no step."""
    return any(slot.from_start for slot in cls.slots)


def name_under(cls: type[Declaration], convention: str, slot: Slot) -> str:
    """What a convention calls a piece of state."""
    return cls.conventions[convention].names.get(slot.name, slot.name)


def numbers_at(cls: type[Declaration], step: int) -> tuple[float, ...]:
    """The numbers before a step of that count, as far as the count alone says them."""
    return tuple(float(step > 1) if slot.like == "begun" else float(slot.first) for slot in numbers_of(cls))


def check_kind(cls: type[Declaration], key: str, value: Any, owner: str) -> None:
    """Raise unless an option is of the kind that it has to be; the engine checks the range of numbers."""
    if key in FLAGS:
        fits, accepted = isinstance(value, (bool, np.bool_)), "True or False"
    elif key == "eps_placement":
        fits = isinstance(value, str) and value in cls.eps_placements
        accepted = "one of " + ", ".join(map(repr, cls.eps_placements))
    elif key in PAIRS:
        fits = (key in SCHEDULABLE and callable(value)) or isinstance(value, (tuple, list))
        accepted = "a pair of numbers" + (" or schedules" if key in SCHEDULABLE else "")
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


def derive(cls: type[Declaration], convention: str, group: Mapping[str, Any], rename: bool = True) -> Spec:
    """The spec of a parameter group with these options; raises if they do not exist in the convention.

    With ``rename=False`` all state has PyTorch's names, also where it means something else.
    """
    offered = cls.conventions[convention]
    owner = f"{cls.__name__}(convention={convention!r})"
    constants = check_options(cls, convention, group, owner)
    rule, chosen = chosen_rule(cls, group, convention)
    names = offered.names if rename else {}
    kinds = state_kinds(cls, convention if rename else None)
    if not group["flush_subnormal"]:
        kinds = {name: kind._replace(low=None) for name, kind in kinds.items()}
    for name in named_by_options(cls):
        name = names.get(name, name)
        kinds = {**kinds, name: kinds[name]._replace(first=float(group[str(kinds[name].first)]))}
    storage = read_storage(kinds, [names.get(name, name) for name in chosen], group, owner)
    if storage is not None and storage.state:
        kinds = {
            name: kind._replace(storage=storage.state[name]) if name in storage.state else kind
            for name, kind in kinds.items()
        }
    more = [AVERAGE] if group.get("ema_decay") is not None else []
    more += [LOW] if storage is not None and storage.split else []
    slots = (*(kinds[names.get(name, name)] for name in chosen), *more)
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
        kinds=kinds,
        numbers=first_numbers(cls),
        limits={key: LIMITS[key] for key in numbers},
        watched=(
            "maximize", "decoupled_weight_decay", "flush_subnormal",
            *(key for key in cls.hyperparameters if key not in numbers or key in DECIDING),
        ),
        forms={key: float(value) for key, value in forms.items()},
        decay=offered.decay.get(group["decoupled_weight_decay"], L2),
        maximize=bool(group["maximize"]),
        mean=AVERAGE_FORMS.get(convention, 0),
        owner=owner,
        storage=storage,
        check_keys=partial(refuse_misspelt, cls, owner),
    )  # fmt: skip


def read_storage(
    kinds: Mapping[str, Slot], chosen: Sequence[str], group: Mapping[str, Any], owner: str
) -> Storage | None:
    """What a group's options say of how it is stored, or None; raises if they cannot be meant so.

    `kinds` are the state arrays by name, `chosen` the names of those that the group's rule has.
    """
    given = {key: group[key] for key in STORAGE if group.get(key) is not None}
    if not given:
        return None
    wanted, split, rounding, seed = [given.get(key) for key in ("state_dtype", "split", "rounding", "seed")]
    if split is not None and not isinstance(split, (bool, np.bool_)):
        raise HyperparameterError(f"{owner}: split={split!r} must be True or False")
    if rounding is not None and not (isinstance(rounding, str) and rounding in ("nearest", "stochastic")):
        raise HyperparameterError(f"{owner}: rounding={rounding!r} must be 'nearest' or 'stochastic'")
    if split and rounding is not None:
        raise HyperparameterError(f"{owner}: split=True rounds no parameter: leave rounding={rounding!r} out")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))
                             or not 0 <= seed < 2**64):  # fmt: skip
        raise HyperparameterError(f"{owner}: seed={seed!r} must be an int, at least 0 and below 2**64")
    for key in ("param_dtype", "grad_dtype"):
        if not (isinstance(given.get(key, "bfloat16"), str) and given.get(key, "bfloat16") == "bfloat16"):
            raise HyperparameterError(
                f"{owner}: {key}={given[key]!r} must be 'bfloat16', which is what arrays of uint16 then hold"
            )
    if isinstance(wanted, Mapping):
        given["state_dtype"] = dict(wanted)
    return Storage(
        given, stored_state(kinds, chosen, wanted, owner), bool(split), rounding, int(seed or 0),
        "param_dtype" in given, "grad_dtype" in given,
    )  # fmt: skip


def stored_state(
    kinds: Mapping[str, Slot], chosen: Sequence[str], wanted: Any, owner: str
) -> dict[str, str]:
    """How the state arrays of a group are stored, as far as ``state_dtype=wanted`` says it."""
    every = isinstance(wanted, str)
    table = dict.fromkeys(kinds, wanted) if every else {} if wanted is None else wanted
    if not isinstance(table, Mapping) or not all(isinstance(x, str) and x in STORAGES for x in table.values()):
        raise HyperparameterError(
            f"{owner}: state_dtype={wanted!r} must be one of {', '.join(map(repr, STORAGES))}, or a dict: name of a "
            "state array -> one of them"
        )
    stored = {}
    for name, dtype in table.items():
        slot = kinds.get(name)
        if slot is None or slot.name in (AVERAGE.name, LOW.name):
            names = [name for name in kinds if name not in (AVERAGE.name, LOW.name)]
            if every and slot is not None:
                continue
            raise HyperparameterError(
                f"{owner}: state_dtype has {name!r}, which is no state array; there are: {', '.join(names) or 'none'}"
            )
        if slot.storage is not None:  # a type of its own, which no option changes
            if every or dtype == slot.storage:
                continue
            raise HyperparameterError(f"{owner}: state_dtype={{{name!r}: {dtype!r}}}: it is always {slot.storage}")
        why = None
        if slot.narrow is None:
            why = f"{name!r} loses too much by it"
        elif slot.wide_beside in chosen:
            why = f"the difference of {name!r} and {slot.wide_beside!r} is taken"
        elif slot.narrow == "sign" and dtype == "8bit":
            why = f"what is small in {name!r} would lose its sign; 'bfloat16' keeps it"
        if why is None or dtype == "float32" or every:
            stored[name] = dtype if why is None else "float32"
        else:
            raise HyperparameterError(f"{owner}: state_dtype={{{name!r}: {dtype!r}}}: {why}: it stays float32")
    return stored


def check_options(
    cls: type[Declaration], convention: str, group: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    """Raise unless a group's options exist in a convention; else those that it has as constants."""
    offered = cls.conventions[convention]
    constants = {}
    for key in cls.group_keys():
        if key not in group:
            raise HyperparameterError(f"{owner}: the parameter group has lost its {key!r}")
        check_kind(cls, key, group[key], owner)
        only = offered.fixed.get(key, NEUTRAL.get(key))
        if only is None or key in offered.defaults or key in cls.always_offered:
            continue
        if group[key] != only:
            having = [name for name, other in cls.conventions.items() if key in other.defaults]
            raise ConventionError(
                f"{owner} has no choice of {key}: {key}={group[key]!r} must be {only!r}"
                + (f"; conventions that have it: {', '.join(having)}" if having else "")
            )
        constants[key] = only
    if group.get("eps_root", 0) != 0 and group.get("eps_placement", "outside") != "outside":
        raise HyperparameterError(
            f"{owner}: eps_root={group['eps_root']!r} needs eps_placement='outside', not {group['eps_placement']!r}"
        )
    decoupled = group["decoupled_weight_decay"]
    if offered.decay and decoupled not in offered.decay:
        raise ConventionError(f"{owner} has decoupled_weight_decay={not decoupled} only")
    return constants


@remembered
def state_kinds(cls: type[Declaration], convention: str | None) -> Mapping[str, Slot]:
    """The state arrays of a class by their names under a convention, which are theirs here; None: PyTorch's names."""
    if convention is None:
        return MappingProxyType({slot.name: slot for slot in (*arrays_of(cls), AVERAGE, LOW)})
    named = {n: slot._replace(name=n) for n, slot in named_arrays(cls, convention).items()}
    return MappingProxyType({**named, LOW.name: LOW})


@remembered
def named_by_options(cls: type[Declaration]) -> tuple[str, ...]:
    """The state arrays whose first values options give."""
    return tuple(slot.name for slot in arrays_of(cls) if isinstance(slot.first, str) and slot.first != "copy")


@remembered
def first_numbers(cls: type[Declaration]) -> tuple[float, ...]:
    """The numbers that a parameter carries before its first step."""
    return numbers_at(cls, 1)


def refuse_misspelt(cls: type[Declaration], owner: str, options: Mapping[str, Any]) -> bool:
    """Raise if a key of a parameter group looks like an option, and is none; other keys are the user's own.

    Returns whether there are options of other optimizers, which have to stay switched off.
    """
    known = cls.group_keys()
    others = False
    for key, value in options.items():
        if not isinstance(key, str) or key in known or key in AROUND or key in STORAGE or key == "params":
            continue
        text = f"{owner}: the parameter group has {key!r}, which does nothing"
        if key in SETTINGS:
            raise UnknownOptionError(f"{text}; it is an attribute of the optimizer")
        if key in OPTIONS:  # of another optimizer; PyTorch's groups may have it, switched off
            others = True
            if not is_neutral(key, value):
                raise UnknownOptionError(f"{text}; {cls.__name__} has: {', '.join(known)}")
        elif clipping := about_clipping(key, "group"):
            raise UnknownOptionError(f"{text}; {clipping}")
        elif close := meant(key, (*known, *AROUND, *STORAGE), 0.9):
            raise UnknownOptionError(f"{text}; did you mean {close!r}?")
    return others


def known_convention(cls: type[Declaration], convention: str | None) -> str:
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


def with_defaults(cls: type[Declaration], convention: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a class: those given, else (where None) the convention's."""
    offered = cls.conventions[convention]
    fallback = {
        **NEUTRAL, **cls.always_offered, **offered.fixed, **offered.defaults, **cls._implied(given, convention)
    }  # fmt: skip
    options = {key: fallback.get(key) for key in cls.hyperparameters}
    options["maximize"] = False
    options["flush_subnormal"] = True
    options["decoupled_weight_decay"] = next(iter(offered.decay), False)
    return {**options, **{key: value for key, value in given.items() if value is not None}}


def refuse_unknown(cls: type[Declaration], keys: Iterable[Any], where: str, more: Iterable[str] = ()) -> None:
    """Raise if one of the keys is neither an option of the class nor one of `more`. `where`: see `about_clipping`."""
    known = (*cls.group_keys(), *more, *AROUND, *(STORAGE if where in ("optimizer", "group") else ()))
    for key in keys:
        if key in known:
            continue
        text = f"{cls.__name__} has no option {key!r}"
        if where == "function" and key in (*STORAGE, "mirrors"):
            text = f"{key!r} is an option of the class: functions step float32 and float64 alone"
            raise UnknownOptionError(f"{text}; fastopt.{cls.__name__} stores in fewer bits")
        if isinstance(key, str) and (clipping := about_clipping(key, where)):
            raise UnknownOptionError(f"{text}: {clipping}")
        close = meant(key, known) if isinstance(key, str) else None
        raise UnknownOptionError(
            f"{text}; {f'did you mean {close!r}? It' if close else 'it'} has: {', '.join(cls.group_keys())}"
        )


def require_all(cls: type[Declaration], convention: str, options: Mapping[str, Any]) -> None:
    """Raise if a hyperparameter that the convention has no default for was not given."""
    for key in cls.hyperparameters:
        if options[key] is None:
            raise HyperparameterError(
                f"{cls.__name__}(convention={convention!r}) has no default for {key}; give one"
            )


def check_declarations(cls: type[Declaration]) -> None:
    """Raise unless a class declares all that `Optimizer` asks of it, each of the right kind."""
    need = partial(require, cls)
    need(
        isinstance(cls.conventions, Mapping) and bool(cls.conventions)
        and all(isinstance(k, str) and isinstance(c, Convention) for k, c in cls.conventions.items()),
        "conventions", "a dict with at least one entry, name -> fastopt.Convention; the first is the default",
    )  # fmt: skip
    need(
        is_names(cls.hyperparameters) and "lr" in cls.hyperparameters
        and len(set(cls.hyperparameters)) == len(cls.hyperparameters),
        "hyperparameters", "a tuple of different names, 'lr' among them",
    )  # fmt: skip
    need(is_names(cls.family), "family", "a tuple of names")
    need(is_names(cls.eps_placements, EPS_PLACEMENTS), "eps_placements", f"a tuple of names among {EPS_PLACEMENTS}")
    need("params" not in cls.hyperparameters, "hyperparameters", "without 'params', which is the group's parameters")
    need(not {*AROUND, *STORAGE} & {*cls.hyperparameters}, "hyperparameters",
         f"without {(*AROUND, *STORAGE)}, which every optimizer has")  # fmt: skip
    for name in FORMER:
        if name in vars(cls):
            raise DeclarationError(f"{cls.__name__}.{name} has no effect: state is declared by slots, of fastopt.Slot")
    need(isinstance(cls.always_offered, Mapping), "always_offered", "a dict, option -> value")
    check_slots(cls)
    need(cls.rule is not Declaration.rule and callable(cls.rule), "rule", "a static method (group, convention) -> "
         "(name of a rule in kernels/rules.pxi, state arrays in its order)")  # fmt: skip
    for key, convention in cls.conventions.items():
        check_convention(cls, key, convention)


def require(cls: type[Declaration], fits: bool, name: str, wanted: str) -> None:
    """Raise that an attribute of a class has to be something else, unless it fits."""
    if not fits:
        raise DeclarationError(f"{cls.__name__}.{name} = {getattr(cls, name, None)!r:.200} has to be {wanted}")


def is_names(value: Any, among: Iterable[str] | None = None) -> bool:
    """Whether a value is a tuple or list of names, of those in `among` if that is given."""
    return isinstance(value, (tuple, list)) and all(
        isinstance(x, str) and (among is None or x in among) for x in value
    )


def check_slots(cls: type[Declaration]) -> None:
    """Raise unless the state slots of a class can be what they are declared to be."""
    need = partial(require, cls)
    need(
        isinstance(cls.slots, (tuple, list)) and all(isinstance(slot, Slot) and isinstance(slot.name, str)
                                                     for slot in cls.slots),
        "slots", "a tuple of fastopt.Slot, each with a name",
    )  # fmt: skip
    names = [slot.name for slot in cls.slots]
    need(len(set(names)) == len(names), "slots", "of different names")
    numbers = [slot for slot in cls.slots if slot.is_number]
    need(len(numbers) <= MOST_NUMBERS, "slots", f"with at most {MOST_NUMBERS} that are like a number")
    arrays = [slot for slot in cls.slots if slot.is_array]
    need(len(arrays) <= MOST_STATES, "slots", f"with at most {MOST_STATES} that are arrays")
    begun = [k for k, slot in enumerate(numbers) if slot.like == "begun"]
    need(begun in ([], [0]), "slots", "with one like='begun' at most, before other numbers")
    need(AVERAGE.name not in names, "slots", f"without {AVERAGE.name!r}, which is the average of the parameter")
    need(LOW.name not in names, "slots", f"without {LOW.name!r}, which is the low half of a parameter")
    for slot in cls.slots:
        fault = fault_of(cls, slot)
        if fault:
            raise DeclarationError(f"{cls.__name__}.slots: {slot!r:.200} has to have {fault}")


def fault_of(cls: type[Declaration], slot: Slot) -> str | None:
    """What a state slot of a class would have to have to be possible; None if it is."""
    kinds = (*ARRAYS, *NUMBERS, "count")
    if slot.like not in kinds:
        return f"like= one of {', '.join(map(repr, kinds))}"
    if not slot.name or (slot.name == "step") != (slot.like == "count"):
        return "a name, which is 'step' if, and only if, it is like='count'"
    if slot.like in ("count", "begun") and slot[2:] != Slot("")[2:]:
        return "nothing else beside a name and like="
    if not isinstance(slot.optional, bool) or not isinstance(slot.from_start, bool):
        return "optional= and from_start= True or False"
    if not slot.is_array and (slot.optional or slot.from_start):
        return "optional=False and from_start=False if it is no array"
    if slot.storage not in (None, "float32", "float64") or (slot.like == "parameter" and slot.storage is not None):
        return "storage=None, or 'float32' or 'float64' where it is not like the parameter"
    if slot.low is not None and not (slot.like == "parameter" and are_numbers(slot.low)):
        return "low=None, or a pair of numbers if it is like the parameter"
    if slot.narrow not in (None, "moment", "square", "sign") or (slot.narrow and slot.like != "parameter"):
        return "narrow=None, or 'moment', 'square' or 'sign' if it is like the parameter"
    if not (are_numbers(slot.limits) and slot.limits[0] <= slot.limits[1]):
        return "limits= a pair of numbers, the lower one first"
    return fault_of_first(cls, slot)


def fault_of_first(cls: type[Declaration], slot: Slot) -> str | None:
    """What the first value of a state slot would have to be to be possible; None if it is."""
    if slot.first == "copy" and isinstance(slot.first, str):
        return None if slot.like == "parameter" else "first='copy' only if it is like the parameter"
    if isinstance(slot.first, str):
        options = [key for key in cls.hyperparameters if key in LIMITS and key not in (*PAIRS, *SCHEDULABLE)]
        if slot.is_array and slot.first in options:
            return None
        return f"first= a number, 'copy' or, for an array, an option of the class: {', '.join(options) or 'none'}"
    return None if is_number(slot.first) and slot.first == slot.first else "first= a number, 'copy' or an option"


def are_numbers(value: Any) -> bool:
    """Whether a value is a pair of numbers, neither of them NaN."""
    return isinstance(value, tuple) and len(value) == 2 and all(is_number(x) and x == x for x in value)


def check_convention(cls: type[Declaration], key: str, convention: Convention) -> None:
    """Raise unless a convention of a class is made of what it has to be."""
    for field, among in (("defaults", cls.hyperparameters), ("fixed", cls.hyperparameters), ("forms", None),
                         ("names", None), ("storage", None)):  # fmt: skip
        value = getattr(convention, field)
        names = tuple(value) if isinstance(value, Mapping) else None
        if not is_names(names, among):
            wanted = "names" if among is None else f"hyperparameters of the class ({', '.join(among)})"
            raise DeclarationError(
                f"{cls.__name__}.conventions[{key!r}].{field} = {value!r:.200} has to be a dict; keys: {wanted}"
            )
    for field, wanted, fits in (
        ("forms", "numbers", is_number), ("names", "names", lambda x: isinstance(x, str)),
        ("storage", "'float32' or 'float64'", lambda x: x in ("float32", "float64")),
    ):  # fmt: skip
        value = getattr(convention, field)
        if not all(map(fits, value.values())):
            raise DeclarationError(
                f"{cls.__name__}.conventions[{key!r}].{field} = {value!r:.200} has to hold {wanted}"
            )
    named = [slot for slot in cls.slots if slot.like not in ("count", "begun")]
    called = [convention.names.get(slot.name, slot.name) for slot in named]
    called = [name for slot, name in zip(named, called, strict=True) if name or slot.is_array]
    if {"step", AVERAGE.name} & {*called} or len(set(called)) != len(called):
        raise DeclarationError(
            f"{cls.__name__}.conventions[{key!r}].names has to give different names, none of them 'step' or 'ema'; "
            f"the state is called {', '.join(called)}"
        )
    unknown = convention.names.keys() - {slot.name for slot in cls.slots if slot.like != "count"}
    unknown |= convention.storage.keys() - {slot.name for slot in cls.slots if slot.like == "number"}
    if unknown:
        raise DeclarationError(
            f"{cls.__name__}.conventions[{key!r}] names or stores {sorted(unknown)}, which is no state of the class: "
            f"{', '.join(called) or 'none'}"
        )
    if not (isinstance(convention.decay, Mapping) and set(convention.decay) <= {False, True}
            and all(kind in range(4) for kind in convention.decay.values())):  # fmt: skip
        raise DeclarationError(
            f"{cls.__name__}.conventions[{key!r}].decay = {convention.decay!r:.200} has to be a dict: "
            "decoupled_weight_decay -> one of L2, DECOUPLED, DECOUPLED_WITHOUT_LR, DECOUPLED_LAST"
        )


def chosen_rule(cls: type[Declaration], group: Mapping[str, Any], convention: str) -> tuple[str, tuple[str, ...]]:
    """What ``cls.rule`` says of a group; raises unless it is the name of a rule, and those of declared state arrays."""
    try:
        answer = cls.rule(group, convention)
    except KeyError as error:
        raise DeclarationError(
            f"{cls.__name__}.rule() asks the group for {error}, which is no hyperparameter of the class: "
            f"{', '.join(cls.hyperparameters)}"
        ) from error
    if isinstance(answer, str):
        return answer, tuple(slot.name for slot in arrays_of(cls, optional=False))
    declared = [slot.name for slot in arrays_of(cls)]
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], str)
            and isinstance(answer[1], (tuple, list)) and all(name in declared for name in answer[1])
            and len(set(answer[1])) == len(answer[1])):  # fmt: skip
        raise DeclarationError(
            f"{cls.__name__}.rule() returned {answer!r:.200}; (name of a rule, tuple of state slots) is needed, with "
            f"slots that the class declares: {', '.join(declared) or 'none'}"
        )
    return answer[0], tuple(answer[1])
