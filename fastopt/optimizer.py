"""Optimizer: parameter groups, step and state. The classes that derive from it only declare (see declare.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from operator import index
from os import PathLike
from typing import Any, Literal, TypeVar

import numpy as np

from fastopt._spelling import about_clipping, meant
from fastopt.declare import (
    CLIP_FORMS,
    LOW,
    OPTIONS,
    SETTINGS,
    Declaration,
    derive,
    known_convention,
    refuse_unknown,
    require_all,
    with_defaults,
)
from fastopt.engine import AROUND, STORAGE, Averaged, Plan, is_array, listed
from fastopt.errors import AveragedError, ParameterError, UnknownAttributeError
from fastopt.state import live, load, snapshot
from fastopt.typing import (
    Array,
    CommonOptions,
    Gradients,
    Hyperparameter,
    Mirrors,
    Nonfinite,
    Params,
    Rounding,
    StateDtype,
    StateFactory,
)


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


class Optimizer(Declaration, abstract=True):
    """Base of all optimizers: steps arrays in place.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of group dicts
        What is stepped, in place: float32, float64 or bfloat16 (of ``ml_dtypes``), contiguous in C or Fortran order,
        writable; NumPy arrays, or anything with the buffer protocol or ``__dlpack__`` on the CPU. Types may be mixed.
        Parameters in bfloat16 are computed in float32, and need ``split`` or ``rounding``. A group dict has the key
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
    clip_norm : float > 0 or callable, optional
        What the norm of all gradients, those of all groups together, is not to exceed: if it does, the step multiplies
        them by a factor as it reads them. They are divided by ``grad_scale`` first, and stay as they are in memory.
        The norm is that of `fastopt.norm`, in float64, divided by ``grad_scale``. The factor is computed in float64 and
        rounded once to the type of the parameter: ``min(1, clip_norm / (norm + 1e-6))`` (torch, sklearn, paper),
        ``clip_norm * min(1 / norm, 1 / clip_norm)`` (keras: its ``global_clipnorm``), or ``clip_norm / norm`` where the
        norm is ``clip_norm`` or more (optax; thinc, which does so array by array). If the norm is NaN, all gradients
        become NaN; if it is infinite, finite ones become 0 and infinite ones NaN (keras: all NaN), unless ``nonfinite``
        says otherwise. A schedule is called with the steps taken. With ``inf`` nothing is clipped, but
        ``grad_norm`` is known.
    norm_type : {2, inf}, default 2
        Which norm that is: the square root of the sum of squares, or the largest absolute value.
    clip_value : float > 0 or schedule, optional
        What no element of a gradient is to exceed: each is put between -clip_value and clip_value, after clipping by
        norm; NaN stays. With a value for each group, as the next four: a group that has None, or for the first two
        ``inf``, goes without.
    clip_norm_each : float > 0 or schedule, optional
        What the norm of each gradient by itself is not to exceed, after clipping by the norm of all (keras: its
        ``clipnorm``; thinc: its ``grad_clip``). Both factors are multiplied in float64, then rounded once. The one is
        ``min(1, clip_norm_each / (norm + 1e-6))`` (torch, sklearn, paper), or ``clip_norm_each / norm`` where the norm
        is ``clip_norm_each`` or more (keras, optax, thinc). Under keras only one of ``clip_norm``, ``clip_norm_each``
        and ``clip_value`` may be given.
    ema_decay : float in [0, 1] or schedule, optional
        Keep an average of the parameters, in the state slot ``ema``, for `averaged` and `averages`. After each step
        it moves to the parameter, by ``d = ema_decay``::

            ema + (1 - d) * (p - ema)               torch, optax, sklearn, paper; from the other side,
            p - d * (p - ema)                       as torch.lerp, where 1 - d is 0.5 or more
            d * ema + (1 - d) * p                   keras (its ``use_ema`` with ``ema_momentum=d``)
            ema + (1 - d) * (p - ema)               thinc, with d = min(ema_decay, (1 + t) / (10 + t)) at step t

        It begins as the parameter after its first step (thinc: as zero before it). A skipped step does not average.
    ema_start : int >= 0, default 1
        The step of a parameter at which its average begins, as the parameter after that step. 0: as the parameter
        before its first step. The average that begins later, because ``ema_decay`` was set later or a loaded state has
        none, begins with the next step.
    zero_grads : bool, default False
        Set the gradients to zero in the same pass, after they are read; also those of a skipped step. They have to be
        writable, to fit without a copy, and to share no memory with each other.
    state_dtype : {"float32", "bfloat16", "8bit"} or dict, optional
        How the state of float32 and bfloat16 parameters is stored; each step computes in float32. A dict gives the
        type of each state array by name, float32 where it has none. Float32 is the default. First moments are rounded
        to the nearest; squares and sums at random, since rounded to the nearest they would stand still. In 8 bits an
        array needs one byte an element and two for each block of 256, in one uint8 array (first the two bytes of every
        block, then the elements), where the parameter has 4,096 elements or more; below it stays float32. So do
        AMSGrad's maximum, ASGD's ``ax``, Rprop's ``step_size``, the average ``ema``, and the averages of centered
        RMSprop whose difference is taken; Rprop's ``prev`` has bfloat16 alone.
    split : bool, default False
        Keep beside each bfloat16 parameter what it lacks of a float32, in the int16 state array ``low``. A step then
        loses nothing: the weights take the path of float32 to the bit, and the parameter is its upper half, rounded to
        the nearest. float32 parameters are stepped as without it; float64 ones are refused, as by ``state_dtype``: they
        need a group of their own.
    rounding : {"nearest", "stochastic"}, optional
        How bfloat16 parameters are rounded after each step, if they are not split. ``"stochastic"`` rounds up with the
        chance that makes the mean right. ``"nearest"`` loses every step below half the last digit, which is 1/256 of
        the parameter, and so most of a training.
    seed : int in [0, 2**64), default 0
        Of all random rounding. A random number depends on the seed, the place of the parameter, the name of the state
        array, the step count of the parameter, and the place of the element alone: not on threads or machines. A run
        that is resumed has the same bits.
    param_dtype : {"bfloat16"}, optional
        What parameters of uint16 hold: for programs without ``ml_dtypes``.
    grad_dtype : {"bfloat16"}, optional
        What gradients of uint16 hold, if the parameter is not uint16 itself. Gradients of the types bfloat16 and
        float16 need no option.
    mirrors : list of arrays, dict of arrays, or one array, optional
        An array for each parameter that takes a copy of it, in the same pass as each step: bfloat16 (uint16 holds it,
        too) or float16, of the same shape and memory order, in memory of its own; None for none. It is written when
        the optimizer is made, and by `rebind`, `load_state_dict` and `averaged`, too. What is copied is the parameter
        as it is stored, and of a split one the float32, to the nearest. Several groups have them under their key
        ``"mirrors"``.
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

    defaults: dict[str, Any]
    """The options of groups that do not give their own."""
    n_threads: int | None = _setting(
        "n_threads", "The most threads for a step, or None: see the parameter. Can be set."
    )
    nonfinite: Nonfinite = _setting(
        "nonfinite", "What to do with NaN and infinities in gradients: see the parameter. Can be set."
    )
    clip_norm: float | Callable[[int], float] | None = _setting(
        "clip_norm", "What the norm of all gradients is not to exceed, or None: see the parameter. Can be set."
    )
    norm_type: float = _setting("norm_type", "Which norm clip_norm is about: 2 or inf. Can be set.")
    copy_grads: bool = _setting(
        "copy_grads", "Whether gradients that do not fit are copied: see the parameter. Can be set."
    )
    state_factory: StateFactory | None = _setting(
        "state_factory", "What supplies memory for new state, or None. Can be set."
    )
    __signature__ = _ConstructorSignature()

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
        clip_norm: float | Callable[[int], float] | None = None,
        norm_type: float = 2,
        clip_value: Hyperparameter | None = None,
        clip_norm_each: Hyperparameter | None = None,
        ema_decay: Hyperparameter | None = None,
        ema_start: int | None = None,
        zero_grads: bool | None = None,
        state_dtype: StateDtype | Mapping[str, StateDtype] | None = None,
        split: bool | None = None,
        rounding: Rounding | None = None,
        seed: int | None = None,
        param_dtype: Literal["bfloat16"] | None = None,
        grad_dtype: Literal["bfloat16"] | None = None,
        mirrors: Mirrors | None = None,
        **unknown: Any,
    ) -> None:
        cls = type(self)
        refuse_unknown(cls, unknown, "optimizer", (*SETTINGS, "convention"))
        convention = known_convention(cls, convention)
        self._convention: str = convention
        given = {
            **(options or {}), **unknown, "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
            "flush_subnormal": flush_subnormal, "clip_value": clip_value, "clip_norm_each": clip_norm_each,
            "ema_decay": ema_decay, "ema_start": ema_start, "zero_grads": zero_grads,
            "state_dtype": state_dtype, "split": split, "rounding": rounding, "seed": seed,
            "param_dtype": param_dtype, "grad_dtype": grad_dtype,
        }  # fmt: skip
        self.defaults = with_defaults(cls, convention, given)
        self._plan = Plan(
            partial(derive, cls, convention),
            n_threads=n_threads, nonfinite=nonfinite, copy_grads=copy_grads, state_factory=state_factory,
            clip_norm=clip_norm, norm_type=norm_type, clip_form=CLIP_FORMS.get(convention, 0),
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
            mirrors = mirrors if mirrors is None or listed(mirrors) is not None else [mirrors]
        if mirrors is not None:
            if any("mirrors" in group or len(groups) > 1 for group in groups if isinstance(group, Mapping)):
                raise ParameterError("mirrors of several parameter groups are given in the groups: their key 'mirrors'")
            groups = [{**groups[0], "mirrors": mirrors}]
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

    def rebind(self, i: int, array: Array) -> None:
        """Step another array in the place of parameter `i` from now on. Its state and its count stay.

        Nothing is copied. The old array is no longer referenced.

        Parameters
        ----------
        i : int >= 0
            Which parameter, in the order of `params`: that of all groups.
        array : array
            Of the same shape, type and memory order as the parameter, writable, in memory of its own.

        Raises
        ------
        FastoptError
            If there is no such parameter, or if the array does not fit. Nothing has changed then.
        """
        try:
            place = index(i)
        except TypeError:
            place = -1
        n = len(self._plan.names)
        if not 0 <= place < n:
            raise ParameterError(f"rebind({i!r}, ...): there is no such parameter; there are {n}, from 0 on")
        self._plan.rebind(place, array, in_torch(type(self)))

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
        refuse_unknown(type(self), [key for key in group if key not in ("params", "mirrors")], "group")
        own = {key: value for key, value in group.items() if value is not None or key in (*AROUND, *STORAGE)}
        own = {key: value for key, value in own.items() if key not in ("params", "mirrors")}
        options = {"params": tuple(arrays), **self.defaults, **own}
        require_all(type(self), self.convention, options)
        mirrors = _aligned(group.get("mirrors"), names, len(arrays))
        plan.add_group(options, arrays, names, last=last, twin=in_torch(type(self)), mirrors=mirrors)

    # --- Stepping

    # No argument is keyword-only: filling in the default of one takes a tenth of a small step.
    def step(self, grads: Gradients, grad_scale: float | None = None, found_inf: float | bool | None = None) -> None:
        """Step every parameter that has a gradient, in place.

        Parameters
        ----------
        grads : list, tuple or other iterable of arrays, dict of arrays, or one array
            In the order of the parameters of all groups; a dict, with the same names, if the parameters were given
            as one; one array for a single parameter. Each has the shape and memory order of its parameter, and its
            type; beside float32 and bfloat16, any of float32, bfloat16 and float16, which may change from step to step.
            None skips that parameter, and its step count stands still.
        grad_scale : float > 0, optional
            What the loss was multiplied by: gradients are divided by it as they are read, before anything else, and
            stay as they are in memory.
        found_inf : number or bool, optional
            What a scaler of the loss found: anything but 0 skips the step, as ``nonfinite="skip"`` does where a
            gradient is not finite. A number, a bool, or an array of one.

        Raises
        ------
        FastoptError
            Before anything was written: parameters, state and counts are then unchanged.
        """
        self._plan.step(grads, grad_scale, found_inf)

    @property
    def steps(self) -> int:
        """Steps taken; what schedules are called with."""
        return self._plan.steps

    @property
    def skipped_steps(self) -> int:
        """Steps skipped by ``nonfinite="skip"`` or ``found_inf``."""
        return self._plan.skipped

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; None if that step clipped by no norm.

        It is infinite or NaN after a step that ``nonfinite`` skipped or refused, and None after one that ``found_inf``
        skipped.
        """
        return self._plan.grad_norm

    # --- Averages

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which every parameter holds its average, for evaluation; after it, its own value again.

        The contents change places, in the parameters' own memory and that of the state ``ema``, and back, also after an
        exception; nothing is copied. A parameter without an average keeps its value. What is written to a parameter
        inside goes to its average. A bfloat16 parameter holds its average rounded to the nearest (of two as near, to
        the one farther from 0); the lower half of the average waits in ``low``, or without that in ``ema``, so that all
        comes back to the bit. Inside, `step`, `load_state_dict`, `load`, `add_param_group`, `rebind`, pickling and
        another `averaged` raise `AveragedError`; `state_dict`, `save` and `averages` give what they give outside.
        Leaving waits until no other thread is in the middle of one of these.

        Raises
        ------
        AveragedError
            On entry, if no group has ``ema_decay``.
        LayoutError
            If a parameter, or its average, was changed to other memory; after the context, all others have changed back
            then.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> w = np.array([1.0])
        >>> opt = fastopt.SGD(w, lr=1.0, ema_decay=0.5)
        >>> for _ in range(2):
        ...     opt.step(np.array([1.0]))
        >>> with opt.averaged():
        ...     print(w)
        [-0.5]
        >>> w
        array([-1.])
        """
        self._require_averages()
        plan = self._plan
        return Averaged(plan.swap_averages, lambda: plan.averaged)

    @property
    def averages(self) -> list[np.ndarray] | dict[Any, np.ndarray]:
        """The averages of the parameters, in their order; by name, if they have names.

        The arrays are the live ones: copy them to keep a moment. Where no average has begun, the parameter itself.
        Averages of bfloat16 parameters are float32; inside `averaged` they are copies.

        Raises
        ------
        AveragedError
            If no group has ``ema_decay``.
        """
        self._require_averages()
        averages = [np.asarray(array) for array in self._plan.averages()]
        return dict(zip(self._plan.names, averages, strict=True)) if self._plan.named else averages

    def _require_averages(self) -> None:
        if not self._plan.is_averaging():
            raise AveragedError(f"this {type(self).__name__} keeps no averages of its parameters: give ema_decay")

    @property
    def params(self) -> list[np.ndarray]:
        """The parameters of all groups, as arrays over their own memory."""
        return [np.asarray(p) for p in self._plan.arrays]

    # --- State

    @property
    def state(self) -> list[dict[str, Any]]:
        """One dict per parameter: ``step``, its count as an int, and the live state arrays by PyTorch's names."""
        return live(type(self), self.convention, self._plan)

    def state_dict(self) -> dict[str, Any]:
        """State, groups and counts in PyTorch's layout, with NumPy arrays for tensors; the parameters are not in it.

        The arrays are the live ones, as in PyTorch: copy them (`copy.deepcopy`) to keep a moment, while no other
        thread steps; `save` looks to that by itself. ``step`` is float32 as PyTorch stores it, and float64 beyond
        2**24. What PyTorch has no place for is under the key ``fastopt``, which it ignores.
        """
        return snapshot(type(self), self.convention, self._plan)

    def export_state_dict(
        self, layout: Literal["bitsandbytes", "torchao"], *, convert: Literal["lossy"] | None = None
    ) -> dict[str, Any]:
        """A state dict for an 8-bit optimizer of another library, with its tensors, names and options.

        The arrays are copies. Schedules become the number that they give now. Averages (``ema``) and the ``low`` of
        split parameters are left out, since the libraries have no place for them. PyTorch has to be installed, and for
        "torchao" that library, too. `load_state_dict` reads such dicts.

        Parameters
        ----------
        layout : {"bitsandbytes", "torchao"}
            "bitsandbytes" has Adam, AdamW, Lion, RMSprop, SGD with momentum and Adagrad; "torchao" Adam and AdamW
            (``Adam8bit``, ``AdamW8bit``).
        convert : {"lossy"}
            Has to be given, since all state of 4,096 elements or more is rounded to the library's 8 bits.

        Raises
        ------
        StateDictError
            Without ``convert="lossy"``; for an optimizer or an option that the library does not have; if state is not
            finite.
        MissingExtraError
            Without PyTorch, or torchao.
        """
        from fastopt._exchange import exported

        plan = self._plan
        return plan.run(
            lambda: exported(type(self), self.convention, plan, self.state_dict(), layout, convert)
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], convert: Literal["lossy"] | None = None) -> None:
        """Continue from a `state_dict`, PyTorch's own included (its tensors converted with ``.numpy()``).

        Hyperparameters are replaced by the saved ones, but for ``state_dtype``, ``split``, ``param_dtype`` and
        ``grad_dtype``, which stay the optimizer's own. State is copied into the optimizer's memory, in the type that
        it has there. Parameters without an entry start anew. Everything is checked before anything is changed.

        Parameters
        ----------
        state_dict : dict
            What to continue from: of any optimizer of the same kind, of PyTorch, or (lossy) of the 8-bit optimizers of
            bitsandbytes and torchao.
        convert : {None, "lossy"}, default None
            What may be lost. With None, state keeps every bit: bfloat16 and 8 bits load into float32, and what is
            stored in the same way on both sides loads as it is. "lossy" also rounds float32 to bfloat16 or 8 bits, or
            bfloat16 and 8 bits to each other, encodes 8 bits in another memory order anew, drops the ``low`` of a
            dict whose parameters were split, and decodes what bitsandbytes and torchao keep in 8 bits. What is rounded
            at random gets the bits that the last step before would have written.

        Raises
        ------
        StateDictError
            For a dict of another layout, optimizer, convention or shape, with state missing or damaged, or of which
            bits would be lost.
        HyperparameterError, ConventionError
            For hyperparameters out of range, or that the convention has not.
        """
        self._plan.run(load, type(self), self.convention, self._plan, state_dict, convert)

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
        from fastopt.checkpoint import require_safetensors, save

        require_safetensors()
        # Refused in the middle of another thread's step, which is what would write to the arrays meanwhile.
        slots = (*self.slots_under(self.convention), LOW.name)
        self._plan.run(lambda: save(self.state_dict(), slots, path))

    def load(self, path: str | bytes | PathLike[Any], convert: Literal["lossy"] | None = None) -> None:
        """Continue from a file of `save`: `load_state_dict` of what `fastopt.load` reads, with their errors.

        The file may come from another thread count, instruction set or machine: the steps that follow have the same
        bits. Schedules are made anew; take a `ReduceOnPlateau` from ``param_groups`` to go on updating it.
        """
        from fastopt.checkpoint import load as read

        self.load_state_dict(read(path), convert)

    # --- Copies and looks

    def __getstate__(self) -> dict[str, Any]:
        # Refused in the middle of another thread's step. The arrays are the live ones: one that follows is seen.
        return self._plan.run(self._getstate)

    def _getstate(self) -> dict[str, Any]:
        plan = self._plan
        plan.refuse_averaged("pickling or copying")
        groups: list[dict[str, Any]] = []
        names, mirrors, left = iter(plan.names), plan.mirrors, len(plan.mirrors)
        for group, originals in zip(self.param_groups, self._originals, strict=True):
            params = list(originals)
            mine = [next(names) for _ in params]
            named = dict(zip(mine, params, strict=True)) if plan.named and mine else params
            groups.append({**group, "params": named})
            if any(mirror is not None for mirror in mirrors[len(mirrors) - left : len(mirrors) - left + len(mine)]):
                groups[-1]["mirrors"] = mirrors[len(mirrors) - left : len(mirrors) - left + len(mine)]
            left -= len(mine)
        return {
            "convention": self.convention, "defaults": self.defaults,
            "settings": {name: getattr(plan, name) for name in SETTINGS},
            "single": self._single, "groups": groups, "state_dict": self.state_dict(),
        }  # fmt: skip

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._convention, self.defaults = saved["convention"], saved["defaults"]
        self._single = saved["single"]
        form = CLIP_FORMS.get(self.convention, 0)
        self._plan = Plan(partial(derive, type(self), self.convention), **saved["settings"], clip_form=form)
        self._plan.set_steps(saved["state_dict"]["fastopt"]["steps"], 0)  # what schedules are called with
        for k, group in enumerate(saved["groups"], 1):
            own = {key: group[key] for key in ("params", *self.group_keys())}
            own |= {key: group.get(key) for key in (*AROUND, *STORAGE) if key in group or key in self.defaults}
            own["mirrors"] = group.get("mirrors")
            self._add_group(own, last=k == len(saved["groups"]))
        self._plan.run(load, type(self), self.convention, self._plan, saved["state_dict"], None, False)

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


def _aligned(mirrors: Any, names: list[str | None], n: int) -> list[Any] | None:
    """Mirrors in the order of the parameters of a group, or None."""
    if mirrors is None:
        return None
    if isinstance(mirrors, Mapping):
        if mirrors.keys() - set(names) or not n or names[0] is None:
            raise ParameterError("mirrors in a dict have the names of the parameters, which are given in a dict, too")
        return [mirrors.get(name) for name in names]
    members = listed(mirrors)
    if members is None or len(members) != n:
        raise ParameterError(f"mirrors are a list, one for each of {n} parameters, None for none; got {mirrors!r:.80}")
    return members


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
    if clipping := about_clipping(name, "optimizer"):
        text += f": {clipping}"
    elif close is None:
        return
    elif close not in OPTIONS:
        text += f"; did you mean {close!r}?"
    elif close not in (*cls.group_keys(), *AROUND, *STORAGE):
        text += f", nor an option of that name; it has: {', '.join(cls.group_keys())}"
    else:
        text += f": hyperparameters belong to a parameter group, param_groups[0][{close!r}]"
    if not cls.__module__.startswith("fastopt."):
        text += f". To have an attribute of that name, declare it in the class: {name}: Any"
    raise UnknownAttributeError(text)


_DECLARED = tuple(Declaration.__annotations__)
# What `dir` of an optimizer leaves out beside: methods for classes that derive from it.
_FOR_AUTHORS = ("rule", "group_keys", "slots_under")
_PUBLIC = tuple(name for name in (*vars(Declaration), *vars(Optimizer)) if not name.startswith("_"))
for _name in OPTIONS:
    setattr(Optimizer, _name, _NoAttribute(_name))

_O = TypeVar("_O", bound=Optimizer)


def _blank(cls: type[_O]) -> _O:
    return cls.__new__(cls)


def in_torch(cls: type[Optimizer]) -> str | None:
    """What `fastopt.torch` has in the place of a class, for messages; None if it has nothing."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("fastopt.") and issubclass(base, Optimizer)]
    if ours[0] is Optimizer:
        return "fastopt.torch"
    forms = {"Momentum": "SGD(momentum=...)", "NAG": "SGD(momentum=..., nesterov=True)", "Lion": "Lion"}
    name = forms.get(ours[0].__name__, ours[0].__name__ if "torch" in ours[0].conventions else None)
    return f"fastopt.torch.{name}" if name else None
