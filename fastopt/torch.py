"""Drop-in for ``torch.optim`` on the CPU: the same classes, stepped in compiled code.

Change one import, ``from torch.optim import AdamW`` to ``from fastopt.torch import AdamW``; checkpoints, schedulers,
scalers and distributed engines stay as they are.

``import fastopt.torch as optim`` has the rest of ``torch.optim``, too (``optim.lr_scheduler``, ``optim.LBFGS``), which
is PyTorch's own. `install` replaces the names in ``torch.optim`` itself.

Every class here derives from its twin in ``torch.optim``: constructor, parameter groups, hooks and ``state_dict`` are
PyTorch's own, ``state`` holds tensors under PyTorch's names, and only `step` is fastopt's. It works in the tensors'
own memory, in one call and at most one parallel region for all of them.

What is stepped
    float32, float64 and bfloat16 tensors on the CPU, dense in any order of dimensions (contiguous, channels_last,
    transposed), and `DTensor` whose local tensors are such. Gradients of float32 and bfloat16 parameters may be
    float32, bfloat16 or float16 (``p.grad_dtype``): they are read in place. A gradient in another order, or of another
    floating type, is copied into shape; a parameter with gaps between its elements (``big[:, :2]``) is stepped by way
    of a copy.

    Other parameters are stepped by PyTorch's own code, on the same state: float16 parameters, complex numbers, sparse
    gradients, other devices, tensors that share memory, ``differentiable=True``. All checks of the compiled step come
    first, then PyTorch's part runs, then the compiled part. If PyTorch raises, the compiled part was not written.

bfloat16 parameters
    State has the type of its parameter, as in PyTorch, but averages (``ema``), which are float32. A step widens the
    stored values to float32, computes as for a float32 parameter, and rounds each stored array once, to nearest even.
    Such rounding loses small steps, and averages of squares stand still: ``split=True`` or ``rounding="stochastic"``
    helps. With ``split=True`` state is float32 where ``state_dtype`` says nothing else.

More arguments, all by name
    n_threads : int >= 1, optional
        See `fastopt.Optimizer`; by default as many as ``torch.set_num_threads`` and the machine allow.
    flush_subnormal : bool, default True
        See `fastopt.Optimizer`.
    fallback : {"warn", "silent", "error"}, default "warn"
        What to do with parameters that the compiled step cannot take: leave them to PyTorch, with one warning for each
        kind and process, or without; or raise a typed error that names the parameter, before anything is written.
    clip_norm : float > 0, optional
        What the norm of all gradients, of all groups, is not to exceed. The step multiplies them by
        ``min(1, clip_norm / (norm + 1e-6))`` as it reads them; ``p.grad`` stays as it is. The norm is that of
        `fastopt.norm`, summed in float64, and the factor is rounded once to the type of each parameter: the bits are
        those of fastopt's optimizers for arrays with ``clip_norm`` and ``convention="torch"``. ``opt.grad_norm`` is the
        norm of the last step, before clipping, None if that did not clip. With ``inf`` nothing is clipped, and the norm
        is there. Not with ``differentiable=True``.
    norm_type : {2, inf}, default 2
        Which norm: the Euclidean one, or the largest magnitude.
    clip_group : torch.distributed.ProcessGroup, optional
        Says that the ranks of this group hold parameters of their own, whose sums make up the norm.
        `ZeroRedundancyOptimizer` needs it beside ``clip_norm``. Not for `DTensor`, whose placements say so.

    clip_value : float > 0, optional
        What no element of a gradient is to exceed: each is put between -clip_value and clip_value, after clipping by
        norm.
    clip_norm_each : float > 0, optional
        What the norm of each gradient by itself is not to exceed, after clipping by the norm of all. Not for sharded
        `DTensor`.
    ema_decay : float in [0, 1], optional
        Keep an average of each parameter, in the state ``ema``: the parameter after its first step, from the second on
        ``torch.lerp(ema, p, 1 - ema_decay)``, as ``AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))``
        has it that is updated after every step. ``opt.averages`` has them, and ``with opt.averaged():`` lets them stand
        in for the parameters: see `fastopt.Optimizer.averaged`. ``opt.averaged_state_dict(model)`` and
        ``opt.load_averaged_state_dict(model, state_dict)`` go to and come from an ``AveragedModel``.
    ema_start : int >= 0, default 1
        The step of a parameter at which its average begins; see `fastopt.Optimizer`. An average that is in the state
        goes on, also where ``ema_decay`` was None for a while: delete it there to begin anew. Classes whose state has
        no ``step`` in PyTorch (`SGD`, `Lion`) have one while they average.
    zero_grads : bool, default False
        Zero the gradients after they are read, as ``zero_grad(set_to_none=False)`` does, also those of a step that a
        scaler skips. Gradients that share memory with each other are refused.

    state_dtype : {"float32", "bfloat16", "8bit"} or dict, optional
        How state arrays are stored: all, or by the names in a dict. None stores them as their parameter. With
        "bfloat16" and "8bit" averages of gradients are rounded to nearest, and averages and sums of squares
        stochastically; AMSGrad's maximum stays float32. State in 8 bits is a tensor of uint8, of ``n + 2 *
        ceil(n / 256)`` bytes in the order of the parameter's memory; arrays of less than 4,096 elements stay float32.
    split : bool, default False
        Keep what a bfloat16 parameter lacks of a float32 in the state ``low`` (int16). Both together are the float32
        parameter that is stepped, to the bit. Says nothing of float32 parameters, nor of other state, which stays
        bfloat16 and is rounded to nearest: give ``state_dtype``, too.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How bfloat16 parameters are rounded, and averages of squares that are stored like them. Not with ``split``,
        which rounds no parameter.
    seed : int >= 0, default 0
        Of stochastic rounding. A random number depends on the seed, the place of the parameter among all, the state
        array, the step and the place of the element: a resumed run goes on to the bit, with any number of threads.
        Classes whose state has no ``step`` in PyTorch have one with ``rounding="stochastic"``.
    mirrors : sequence of torch.Tensor or None, optional
        For each parameter a bfloat16 or float16 tensor that takes a rounded copy of it at each step, or None.

    ``clip_norm``, ``norm_type``, ``clip_group`` and ``mirrors`` are properties, too, and can be set between steps. They
    are saved by `pickle`, but for the group, and are neither in parameter groups nor in state dicts. ``clip_value`` to
    ``seed`` are options of a parameter group, there if they are given; a group that has None goes without. Loading a
    state dict without them leaves them as they are. The formulas, and their order in a step, are those of
    `fastopt.Optimizer` under ``convention="torch"``.

Storage
    - ``state_dtype`` and ``split`` are for parameters that are stepped compiled, in float32 or bfloat16. A parameter
      that is left to PyTorch, or is float64, raises: put it into a group without them. ``rounding`` and ``seed`` do
      nothing there. None of them goes with ``differentiable=True``.
    - ``rounding`` and ``seed`` can be edited between steps. ``state_dtype`` and ``split`` cannot, once there is state
      that they would change: make another optimizer and load the state dict.
    - `load_state_dict` keeps the types of state, which PyTorch's own casts to that of the parameter. What would lose
      bits needs ``convert="lossy"``. Load 8-bit state, ``low`` and ``ema`` with these classes alone.
    - State dicts are interchangeable with those of fastopt's optimizers for arrays, bfloat16 and 8 bits included.
    - Codes in 8 bits follow the order of memory in which the parameter was. If a parameter gets memory of another
      order, the step raises; if it is not the usual order, the state dict says which, under the key ``fastopt``.
    - Of `DTensor`, state in bfloat16, float32 and ``low`` is in shards, too. State in 8 bits of a `DTensor` in shards
      raises. Shards have random numbers of their own: stochastic rounding depends on the number of ranks.

Clipping on several ranks
    Of `DTensor`, sums are added over the dimensions of the mesh with ``Shard`` and counted once over those with
    ``Replicate``; a ``Partial`` gradient is redistributed first. Then the ranks of `clip_group` add up theirs. The sums
    are gathered and added in the order of the ranks, so that all have the same factor. Every rank has to call `step`,
    also without gradients. If the checks of one rank fail, it raises its error, and all others `fastopt.RankError`,
    before anything is written; if a scaler's ``found_inf`` skips the step of one, all skip it. Other ranks are not told
    of an error in a closure or hook, or in PyTorch's own step.

    Plain tensors are taken to have the same gradients on all ranks, as with `DistributedDataParallel`, and nothing is
    exchanged for them; beside `DTensor` they are compared. Where ranks are known to hold parts of plain tensors
    (`ZeroRedundancyOptimizer`, FSDP1) and there is no ``clip_group``, the step raises, as under DeepSpeed, which clips
    by itself.

What differs from ``torch.optim``
    - ``foreach``, ``fused`` and ``capturable`` are accepted and change nothing: they choose between PyTorch's own
      implementations, the last for CUDA graphs. Parameters that are left to PyTorch are stepped as these say.
    - A `GradScaler`'s factor is taken out as gradients are read, for every optimizer; ``p.grad`` stays as it is.
    - bfloat16 is rounded once a step, not after each operation: after one step the parameter is within 1.6 units in
      the last place of PyTorch's, of the largest of the parameter before, after, and the way between (NAdam 2.5;
      RMSprop's momentum may cancel, and differ by more).
    - The numbers in NAdam's and ASGD's state of a bfloat16 parameter are not rounded to bfloat16 by loading.
    - ``step`` counts on beyond 2**24, where a float32 stands still: the tensor becomes float64 there.
    - With ``eps=0`` an element whose accumulator is zero does not move (PyTorch: NaN). RMSprop's variance that rounding
      took below zero counts as zero (PyTorch: NaN). Hyperparameters have to be finite numbers at every step.
    - State has memory of its own, which is not PyTorch's: ``exp_avg.resize_`` to more than it has raises.
    - State may be exchanged or edited between steps, but for a tensor whose shape is edited in place while its memory
      stays where it is (``exp_avg.t_()``): the step goes on in the order of the memory.
    - A step either happens or does not: PyTorch steps the first tensors, then raises at the one that is wrong.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from fastopt.errors import MissingExtraError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError('fastopt.torch needs PyTorch: pip install "fastopt[torch]"') from error
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    raise MissingExtraError(
        f'fastopt.torch needs PyTorch 2.10 or newer, not {torch.__version__}: pip install --upgrade "fastopt[torch]"'
    )
from torch.autograd import profiler
from torch.optim import optimizer as torch_optimizer

import fastopt
from fastopt import _fallback, _torch_clip, _torch_install, _torch_ranks, _torch_state
from fastopt._spelling import about_clipping, meant
from fastopt._stored import carried_options, check_convert, require_lossy
from fastopt._tensors import (
    PLAIN,
    Host,
    average_dtype,
    check_disjoint,
    check_inference,
    check_mirror,
    check_mirrors,
    check_swap,
    count_tensor,
    first_count,
    is_dense,
    is_sharded,
    lies_as,
    local_of,
    new_state,
    number_tensor,
    state_dtype,
    state_tensor,
    steppable,
)
from fastopt._torch_clip import clip_grad_norm_ as clip_grad_norm_
from fastopt._torch_clip import clip_grad_value_ as clip_grad_value_
from fastopt._torch_install import STOCK, TwinType
from fastopt._torch_install import install as install
from fastopt._torch_install import installed as installed
from fastopt._torch_install import uninstall as uninstall
from fastopt.declare import (
    AVERAGE,
    FLAGS,
    LOW,
    Range,
    Slot,
    Spec,
    arrays_of,
    counts_in_state,
    derive,
    is_zero,
    named_arrays,
    remembered,
    saved_numbers,
    with_defaults,
)
from fastopt.engine import (
    AROUND,
    FEWEST_PACKED,
    LAST_FLOAT_COUNT,
    LIMIT,
    NO_SCHEDULES,
    Averaged,
    BusyGuard,
    LastNorm,
    TensorPlan,
    clip_of_total,
    is_number,
    plain_key,
    swap_tensors,
)
from fastopt.errors import (
    AveragedError,
    FastoptError,
    HyperparameterError,
    ParameterError,
    StateDictError,
    TensorDTypeError,
    TensorKindError,
    TensorLayoutError,
    UnknownOptionError,
    warn_caller,
)
from fastopt.state import MEANINGS, VERSION, check_layout, check_origin, described, expect, merged_options, translated

if TYPE_CHECKING:  # what `__getattr__`, at the end, forwards
    from torch.optim import LBFGS as LBFGS
    from torch.optim import Adafactor as Adafactor
    from torch.optim import Muon as Muon
    from torch.optim import Optimizer as Optimizer
    from torch.optim import SparseAdam as SparseAdam
    from torch.optim import lr_scheduler as lr_scheduler
    from torch.optim import swa_utils as swa_utils
    from torch.optim import swap_in_optimizer_params_and_state as swap_in_optimizer_params_and_state

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
]

# What PyTorch's constructors take that is none of the rule's business.
ENGINE_OPTIONS = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})


DEFAULTS = {
    "n_threads": None, "flush_subnormal": True, "fallback": "warn", "clip_norm": None, "norm_type": 2,
    "clip_group": None,
}  # fmt: skip
CLIPPING = ("clip_norm", "norm_type", "clip_group")
LAYOUT = ("state_dtype", "split")
"""Options that say which arrays there are, so that they stay the optimizer's own when a state dict is loaded;"""
ROUNDING = ("rounding", "seed")
"""those that come with the dict;"""
OF_ARRAYS = ("param_dtype", "grad_dtype")
"""those that only fastopt's optimizers for arrays have;"""
OPTIONAL = (*AROUND, *LAYOUT, *ROUNDING)
"""and all that a parameter group may have or not."""
MOST_KNOWN = 256  # sets of options that each class remembers
MORE_DECIDES = frozenset({"product", "single_mu", "single_eta"})  # forms that depend on the state and the default dtype


class Known(NamedTuple):
    """What has been found out about options: that they are in range, and what the engine needs to know of them."""

    spec: Spec | None
    """None if more decides."""
    has_float: bool
    """Whether they are also in range when rounded to float32."""


class _Compiled(torch.optim.Optimizer, metaclass=TwinType):
    """What the classes below add to their twins: the step."""

    core: ClassVar[type[fastopt.Optimizer]]
    """The class that says which rule and which state; its first convention is followed."""
    _step_supports_amp_scaling = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "core" in vars(cls):
            taken = [p for p in inspect.signature(super().__init__).parameters.values() if p.name != "self"]
            own = inspect.signature(_Compiled.__init__).parameters.values()
            more = [p for p in own if p.kind is p.KEYWORD_ONLY]
            cls.__signature__ = inspect.Signature(taken + more)  # type: ignore[attr-defined]
            known = {*cls.core.group_keys(), *ENGINE_OPTIONS}
            cls._twin_step = staticmethod(_fallback.plain_step(cls.__bases__[-1]))
            cls._unknown = {p.name: p.default for p in taken if p.name not in known}
            cls._known = {}
            ours = fastopt.OPTIMIZERS.get(cls.core.__name__) is cls.core  # the rule() of a user's may look at anything
            cls._deciding = (*cls.core.group_keys(), *OPTIONAL, "differentiable") if ours else None
        elif "__init__" in vars(cls):  # of a user
            cls.__signature__ = None  # type: ignore[attr-defined]

    _twin_step: ClassVar[Callable[..., Any]]
    """PyTorch's own step, for what the compiled one cannot take."""
    _mixed: _fallback.Mixed | None = None
    """Where some parameters are left to PyTorch: those, and the plan for the others."""
    _guarded: TensorPlan | None = None
    """A plan over inference tensors, for steps in inference mode."""
    _around: Mapping[str, Any] = {}
    """During construction: the options that a group may have or not."""
    _averaged: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    """Parameters and the state in which their values are, while averages stand in their place."""
    _orders: Mapping[torch.Tensor, tuple[int, ...]] = {}
    """Parameters with state in 8 bits -> the order of memory that the codes follow."""
    _lossy: bool = False
    """Whether the state dict that is being loaded may lose bits."""
    _mirrors: Mapping[torch.Tensor, torch.Tensor] = {}
    """Parameters -> their mirrors, which take a copy at each step."""
    _in_zero: bool = False
    """Whether a ZeroRedundancyOptimizer made this optimizer, for some of its parameters."""
    _loading: dict[str, Any] | None = None
    """The state dict that is being loaded."""
    _plain_copies: Mapping[int, tuple[Any, dict[str, Any]]] = {}
    """By identity: a parameter group that is no plain dict, and a plain one that holds the same."""
    _unknown: ClassVar[dict[str, Any]] = {}
    """Options of a PyTorch newer than this module, which it would not follow, and their defaults."""
    _deciding: ClassVar[tuple[str, ...] | None]
    """The options that a spec depends on, with the settings; None if there may be others."""
    _known: ClassVar[dict[tuple[Any, ...] | None, Known]]
    """By the values of those: what has been found out about them."""

    def __init__(
        self, params: Any, *args: Any, n_threads: int | None = None, flush_subnormal: bool = True,
        fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None, norm_type: float = 2,
        clip_group: Any = None, clip_value: float | None = None, clip_norm_each: float | None = None,
        ema_decay: float | None = None, ema_start: int | None = None, zero_grads: bool | None = None,
        state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
        rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
        mirrors: Sequence[torch.Tensor | None] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        for name, default in self._unknown.items():
            if kwargs.get(name, default) != default:
                raise UnknownOptionError(f"fastopt.torch.{type(self).__name__} does not know the option {name!r} yet")
        for name in kwargs:
            says = about_clipping(name, "torch")
            if says is None and name not in signature_of(type(self)) and (close := meant(name, OPTIONAL)):
                says = f"did you mean {close!r}?"
            if says is not None:
                raise UnknownOptionError(f"fastopt.torch.{type(self).__name__} has no option {name!r}: {says}")
        _fallback.check_choice(fallback)
        self._settings: dict[str, Any] = {
            "n_threads": n_threads, "flush_subnormal": flush_subnormal, "fallback": fallback,
            "clip_norm": checked("clip_norm", clip_norm), "norm_type": checked("norm_type", norm_type),
            "clip_group": checked("clip_group", clip_group),
        }  # fmt: skip
        self._plan: TensorPlan | None = None
        self._stepping = BusyGuard()
        self._last = LastNorm()
        if n_threads is not None:
            self._empty_plan()  # raises for one out of range
        zero = _torch_ranks.zero_in_construction()
        if zero is not None:
            self._in_zero = True
            _torch_ranks.check_zero(zero, clip_norm, clip_group)
            _torch_ranks.take_out(zero, params, CLIPPING)
        around = (
            clip_value, clip_norm_each, ema_decay, ema_start, zero_grads, state_dtype, split, rounding, seed
        )  # fmt: skip
        self._around = {key: value for key, value in zip(OPTIONAL, around, strict=True) if value is not None}
        super().__init__(params, *args, **kwargs)
        self.defaults.update(self._around)
        self._around = {}
        for group in self.param_groups:
            self._check_options(group)
        if self._stores(self.param_groups):
            self._store_first_state()
        if mirrors is not None:
            self.mirrors = mirrors

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in PyTorch."""
        for name in CLIPPING:
            if isinstance(param_group, Mapping) and name in param_group:
                raise UnknownOptionError(
                    f"{self._owner()}: a parameter group has no option {name!r}: the norm is that of all groups, so "
                    "it is an option of the optimizer"
                )
        self._refuse_averaged("add_param_group()")
        if self._around:
            param_group = {**self._around, **param_group}
        super().add_param_group(param_group)

    # --- Stepping

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step every parameter that has a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model again and returns the loss, which is returned.

        Raises
        ------
        FastoptError
            Or the builtin that fits (ValueError, TypeError, RuntimeError), naming the parameter; before anything was
            written.
        """
        if (
            self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks
            or profiler._is_profiler_enabled
        ) and type(self).step is _Compiled.step:  # fmt: skip  # PyTorch wraps a step of a class derived from this
            return self._hooked_step(*args, **kwargs)
        plan = self._plan  # read once: another thread, whose step fails, takes it away
        if plan is None or args or kwargs or hasattr(self, "found_inf") or hasattr(self, "grad_scale"):
            return self._bare_step(*args, **kwargs)
        try:  # the usual case, by a short way: after other work each function on it costs half a microsecond
            if self._stepping.run(plan.step_tensors, self.param_groups, self.state):
                return None
        except FastoptError:  # it is raised again, unless the parameter is left to PyTorch
            pass
        except BaseException:
            self._plan = None
            raise
        return self._bare_step()

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch would wrap it in what _hooked_step has, at every call

    def _bare_step(self, closure: Callable[[], Any] | None = None) -> Any:
        self._refuse_averaged("step()")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found is not None and float(found) != 0:
            self._stepping.run(self._skip_step, scale)
            return loss
        self._stepping.run(self._take_step, scale)
        return loss

    def _skip_step(self, scale: Any) -> None:
        """A step that a scaler skips: gradients are zeroed, and ranks that wait for the sums of this one are told."""
        self._refuse_averaged("step()")
        grads = _fallback.to_zero(self.param_groups, named)
        ranks = self._ranks()
        if ranks is not None:
            with ranks.laid_out():
                self._agreed(ranks, [0.0] * len(ranks.parts), _torch_ranks.SKIPS, scale)
        Host.zero(grads)

    def _take_step(self, scale: Any) -> None:
        try:
            if self._plan is not None and self._plan.step_tensors(self.param_groups, self.state, scale):
                return
        except FastoptError:  # a gradient of another kind, for one, which may be left to PyTorch
            self._plan = None
        except BaseException:
            self._plan = None
            raise
        try:
            self._take_another_step(scale)
        except BaseException:
            self._plan = self._mixed = self._guarded = None  # what was made for this step is not in place
            raise

    def _take_another_step(self, scale: Any) -> None:
        """A step after which something is no longer as it was bound, or that is the first, or of several kinds."""
        self._refuse_averaged("step()")
        ranks = self._ranks()
        if ranks is not None:
            self._take_shared_step(ranks, scale)
            return
        groups = self._plain_groups()
        if self._mixed is not None and self._mixed.holds(groups):
            if self._tries(self._mixed.plan, groups, scale, check_only=True):
                self._take_mixed_step(groups, self._mixed, scale)
                return
        elif self._plan is not None and self._plain_copies and self._tries(self._plan, groups, scale):
            return
        elif self._guarded is not None and torch.is_inference_mode_enabled():
            if self._tries(self._guarded, groups, scale):
                return
        self._plan = self._mixed = self._guarded = None
        if self._settings["fallback"] == "error":
            left = []
        elif self._takes_ordinary_step(groups, scale):
            return
        else:
            left = self._left(groups)
        plan, keep = self._bound(groups, left)
        if not plan.step_tensors(groups, self.state, scale, check_only=bool(left)):
            raise ParameterError("parameters, groups or state changed while the step looked at them")
        if left:
            self._take_mixed_step(groups, self._told(plan, left), scale)
        elif keep:
            self._plan = plan
        else:
            self._guarded = plan

    def _takes_ordinary_step(self, groups: list[dict[str, Any]], scale: Any) -> bool:
        """A step with a new plan over tensors of the usual kind; False, with nothing written, if there are others."""
        if torch.is_inference_mode_enabled() or any(group.get("differentiable") for group in groups):
            return False
        if not all(self._empty_plan().are_ordinary(group["params"]) for group in groups):
            return False
        try:
            plan, keep = self._bound(groups, [], True)
            if not keep or not plan.step_tensors(groups, self.state, scale):
                return False
        except FastoptError:  # which is raised again, unless it is for PyTorch to say
            return False
        self._plan = plan
        return True

    def _tries(self, plan: TensorPlan, groups: list[dict[str, Any]], scale: Any, check_only: bool = False) -> bool:
        """A step by a plan that was kept; False, with nothing written, if anything has changed."""
        plan.sum_apart([], 1)
        try:
            return plan.step_tensors(groups, self.state, scale, check_only=check_only)
        except FastoptError:  # it is raised again by a new plan, unless the parameter is left to PyTorch
            return False

    def _told(self, plan: TensorPlan, left: list[_fallback.Left]) -> _fallback.Mixed:
        """A plan and what is left to PyTorch, of which a warning tells if it has to."""
        if self._settings["fallback"] == "warn":
            _fallback.tell(self._owner(), left)
        return _fallback.mixed(plan, left)

    def _take_mixed_step(self, groups: list[dict[str, Any]], mixed: _fallback.Mixed, scale: Any) -> None:
        """PyTorch's step for some parameters, then the compiled one, which was checked, for the others."""
        if not self._takes_norm():
            self._finish_step(groups, mixed, scale)
        else:
            (total,) = self._totals(mixed, [0] * len(mixed.left), 1)
            self._finish_step(groups, mixed, scale, *self._clip_of(total, scale))

    def _finish_step(
        self, groups: list[dict[str, Any]], mixed: _fallback.Mixed, scale: Any, norm: float = 0.0,
        factor: float | None = None, keep: bool = True,
    ) -> None:  # fmt: skip
        """Write, after all checks, the gradients times the factor of clipping, where there is one."""
        if mixed.left:
            around = _fallback.Around(self.state, groups, mixed, self._settings, scale, factor, named, self._mirrors)
            _fallback.step_by_pytorch(self, self._twin_step, groups, mixed, scale, around.limits)
            around.average(counts_in_state(self.core))
        if not mixed.plan.step_tensors(groups, self.state, scale, factor=factor):  # PyTorch has made state
            plan, keep = self._bound(groups, mixed.left)
            if not plan.step_tensors(groups, self.state, scale, factor=factor):
                raise ParameterError("parameters, groups or state changed while the step looked at them")
            mixed = mixed._replace(plan=plan)
        if mixed.left:
            self._write_mirrors(one.param for one in mixed.left)
            around.zero()
        if factor is not None:
            self._last.note(norm)
        self._mixed = mixed if keep else None

    # --- Clipping by the norm of all gradients, of several plans or ranks

    def _takes_norm(self) -> bool:
        """Whether a step takes norms of gradients."""
        each = any(group.get("clip_norm_each") is not None for group in self.param_groups)
        return each or self._settings["clip_norm"] is not None

    def _ranks(self) -> _torch_ranks.Ranks | None:
        """With which ranks the norm is found, at a step that clips; None if with none."""
        if self._settings["clip_norm"] is None:
            return None
        return _torch_ranks.ranks_of(self.param_groups, self._settings["clip_group"], self._in_zero)

    def _take_shared_step(self, ranks: _torch_ranks.Ranks, scale: Any) -> None:
        """A step that finds the norm with other ranks: all of them take it, or none does."""
        self._plan = self._guarded = None
        with ranks.laid_out() as given:
            try:
                groups = self._plain_groups()
                mixed, keep = self._checked(groups, scale, ranks)
                _fallback.check_scale(groups, mixed, scale)
                _fallback.Around(  # for what it raises
                    self.state, groups, mixed, self._settings, scale, None, named, self._mirrors
                )
                to_zero = _fallback.to_zero(groups, named, given)
                of = dict(zip(map(id, ranks.params), ranks.places, strict=True))
                totals = self._totals(mixed, [of[id(one.param)] for one in mixed.left], len(ranks.parts))
            except Exception:
                with contextlib.suppress(Exception):  # the first one says more
                    self._agreed(ranks, [0.0] * len(ranks.parts), _torch_ranks.FAILED, None)
                raise
            total = self._agreed(ranks, totals, _torch_ranks.GOOD, scale)
            if total is not None:
                self._finish_step(groups, mixed, scale, *self._clip_of(total, scale), keep)
        if total is None or given:
            Host.zero(to_zero)

    def _checked(
        self, groups: list[dict[str, Any]], scale: Any, ranks: _torch_ranks.Ranks
    ) -> tuple[_fallback.Mixed, bool]:
        """The plan of a step, all of which was checked, and what it leaves to PyTorch; whether both may be kept."""

        def checks(plan: TensorPlan, left: list[_fallback.Left]) -> bool:
            out = {id(one.param) for one in left}
            parts = zip(ranks.params, ranks.places, strict=True)
            plan.sum_apart([part for param, part in parts if id(param) not in out], len(ranks.parts))
            return plan.step_tensors(groups, self.state, scale, check_only=True)

        if self._mixed is not None and self._mixed.holds(groups):
            with contextlib.suppress(FastoptError):  # it is raised again, unless the parameter is left to PyTorch
                if checks(self._mixed.plan, self._mixed.left):
                    return self._mixed, True
        self._mixed = None
        left = [] if self._settings["fallback"] == "error" else self._left(groups)
        plan, keep = self._bound(groups, left)
        if not checks(plan, left):
            raise ParameterError("parameters, groups or state changed while the step looked at them")
        return self._told(plan, left), keep

    def _left(self, groups: list[dict[str, Any]]) -> list[_fallback.Left]:
        left = _fallback.left_to_pytorch(groups, self.state, named)
        for one in left:
            group = groups[one.group]
            for key in LAYOUT if self._stores([group]) else ():
                if group.get(key):
                    raise HyperparameterError(
                        f"{key}={group[key]!r} is for the compiled step, and {one.text}. Put {one.label} into a "
                        f"parameter group with {key}=None"
                    )
        return left

    def _totals(self, mixed: _fallback.Mixed, parts: list[int], n_parts: int) -> list[float]:
        """The sums over the gradients of a step that was checked, part by part; `parts` are those of what is left."""
        totals = list(mixed.plan.totals or [0.0] * n_parts)
        order = self._settings["norm_type"]
        for one, part in zip(mixed.left, parts, strict=True):
            found = _fallback.gradient_total(one, order, self._settings["n_threads"])
            if found is not None:
                totals[part] = _torch_ranks.combined(totals[part], found, order)
        return totals

    def _agreed(self, ranks: _torch_ranks.Ranks, totals: list[float], status: int, scale: Any) -> float | None:
        settings = self._settings
        factor = 1.0 if scale is None else float(scale)
        return ranks.total(totals, status, settings["clip_norm"], settings["norm_type"], factor)

    def _clip_of(self, total: float, scale: Any) -> tuple[float, float]:
        """The norm, and the factor that gradients are multiplied by."""
        factor, limit = 1.0 if scale is None else float(scale), self._settings["clip_norm"]
        return clip_of_total(total, self._settings["norm_type"], factor, math.inf if limit is None else limit)

    def _change(self, name: str, value: Any) -> None:
        """Set one of the settings of clipping."""
        value = checked(name, value)
        if name == "clip_norm" and value is not None:
            if any(group.get("differentiable") for group in self.param_groups):
                raise HyperparameterError(NOT_DIFFERENTIABLE)
        numbers = name == "norm_type" or (name == "clip_norm" and value is not None and self.clip_norm is not None)
        plans = (self._plan, self._guarded, self._mixed.plan if self._mixed is not None else None)
        if not numbers:  # who is asked for the norm may be another
            self._plan = self._mixed = self._guarded = None
        for plan in plans:
            if numbers and plan is not None:
                plan.configure({name: value})
        self._settings = {**self._settings, name: value}

    @property
    def clip_norm(self) -> float | None:
        """What the norm of all gradients is not to exceed, or None. Can be set."""
        return self._settings["clip_norm"]  # type: ignore[no-any-return]

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        self._stepping.run(self._change, "clip_norm", value)

    @property
    def norm_type(self) -> float:
        """Which norm `clip_norm` is about: 2 or inf. Can be set."""
        return self._settings["norm_type"]  # type: ignore[no-any-return]

    @norm_type.setter
    def norm_type(self, value: float) -> None:
        self._stepping.run(self._change, "norm_type", value)

    @property
    def clip_group(self) -> Any:
        """The process group whose ranks hold disjoint parameters, or None. Can be set."""
        return self._settings["clip_group"]

    @clip_group.setter
    def clip_group(self, value: Any) -> None:
        self._stepping.run(self._change, "clip_group", value)

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients at the last step, before clipping; None if that step did not clip."""
        return self._last.value

    @property
    def mirrors(self) -> list[torch.Tensor | None]:
        """The tensors that take a copy of each parameter at each step, None for none. Can be set, to as many.

        They are written when they are set, too.
        """
        return [self._mirrors.get(param) for group in self.param_groups for param in group["params"]]

    @mirrors.setter
    def mirrors(self, mirrors: Sequence[torch.Tensor | None] | None) -> None:
        self._stepping.run(self._set_mirrors, mirrors)

    def _set_mirrors(self, mirrors: Sequence[torch.Tensor | None] | None) -> None:
        self._refuse_averaged("setting mirrors")
        params = [param for group in self.param_groups for param in group["params"]]
        given = [None] * len(params) if mirrors is None else list(mirrors)
        if len(given) != len(params):
            raise ParameterError(f"{len(given)} mirrors for {len(params)} parameters; None is for none")
        names = [name for g, place in self._places() for name in names_of(g, place)]
        copies = {}
        for param, mirror, name in zip(params, given, names, strict=True):
            if mirror is not None:
                check_mirror(mirror, local_of(param), f"parameter {name!r}")
                check_inference(Host(), mirror, f"mirror of parameter {name!r}")
                copies[param] = mirror
        check_mirrors(copies, {param: f"parameter {name!r}" for param, name in zip(params, names, strict=True)})
        self._plan = self._mixed = self._guarded = None
        self._mirrors = copies
        self._write_mirrors(params)

    def _places(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Every group, and the place of its first parameter among all."""
        place = 0
        for group in self.param_groups:
            yield group, place
            place += len(group["params"])

    def _write_mirrors(self, params: Iterable[torch.Tensor]) -> None:
        """Copy parameters into their mirrors, where they have some."""
        with torch.no_grad():
            for param in params if self._mirrors else ():
                if (mirror := self._mirrors.get(param)) is not None:
                    mirror.copy_(local_of(param))

    def _plain_groups(self) -> list[dict[str, Any]]:
        """The parameter groups; for one that is another kind of dict, a plain one with the same in it."""
        if type(self.param_groups) is not list or not isinstance(self.state, dict):
            raise ParameterError("the optimizer's param_groups have to be a list, and its state a dict")
        copies, groups = {}, []
        for group in self.param_groups:
            self._require(group)
            if type(group) is not dict:
                _, plain_group = copies[id(group)] = self._plain_copies.get(id(group), (group, {}))
                plain_group.clear()
                plain_group.update((key, group[key]) for key in group)
                group = plain_group
            groups.append(group)
        self._plain_copies = copies
        return groups

    _profiled_step = torch.optim.Optimizer.profile_hook_step(_bare_step)

    def _hooked_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._profiled_step(*args, **kwargs)

    step.__signature__ = inspect.signature(_bare_step)  # type: ignore[attr-defined]

    def _derive(self, group: Mapping[str, Any]) -> Spec:
        """What the engine needs to know of a parameter group; raises if it asks for what there is not."""
        core = self.core
        convention = next(iter(core.conventions))
        options = with_defaults(core, convention, {"flush_subnormal": self._settings["flush_subnormal"]})
        options |= {key: group[key] for key in OPTIONAL if key in group}
        for key in core.group_keys():
            if key in group:
                options[key] = plain(group[key])
                if key in FLAGS and options[key] in (0, 1):
                    options[key] = bool(options[key])
                if callable(options[key]):
                    raise HyperparameterError(f"{key}={group[key]!r} must be a number: use torch.optim.lr_scheduler")
        if group.get("differentiable") and self._settings["fallback"] == "error":
            raise HyperparameterError("differentiable=True is not supported: the step is no operation of autograd")
        if group.get("differentiable"):
            if self._settings["clip_norm"] is not None:
                raise HyperparameterError(NOT_DIFFERENTIABLE)
            if given := [key for key in OPTIONAL if group.get(key) is not None]:
                raise HyperparameterError(f"{given[0]}={group[given[0]]!r} does not go with differentiable=True")
        if options.get("nesterov") and is_zero(options["momentum"]):
            options["nesterov"] = False  # as PyTorch does where a momentum was edited to 0
        spec = derive(core, convention, options)
        if spec.storage is not None and spec.storage.split:  # state in bfloat16 would lose what the weights keep
            kinds = {name: in_float32(kind) for name, kind in spec.kinds.items()}
            spec = spec._replace(kinds=kinds, slots=tuple(map(in_float32, spec.slots)))
        forms = dict(spec.forms)
        if forms.get("product") == 1 and self._has_double_number(group, "mu_product"):
            forms["product"] = 0.0
        if "single_mu" in forms:  # both are computed in the default dtype, but eta in that of an lr that is a tensor
            double, lr = torch_optimizer._get_scalar_dtype() == torch.float64, group["lr"]
            wide = double or (isinstance(lr, torch.Tensor) and lr.dtype == torch.float64)
            forms["single_mu"] = float(not (double and self._has_double_number(group, "mu")))
            forms["single_eta"] = float(not (wide and self._has_double_number(group, "eta")))
        return spec._replace(
            forms=forms,
            # PyTorch's constructors say what is in range; what schedulers and users make of it later, it lets pass.
            limits={key: (Range(),) * len(limits) for key, limits in spec.limits.items() if key in group},
            watched=tuple(key for key in (*spec.watched, "differentiable") if key in group),
            owner=self._owner(),
            check_keys=None,  # PyTorch looks at none that it does not know
        )

    def _has_double_number(self, group: Mapping[str, Any], name: str) -> bool:
        """Whether PyTorch keeps a number of the state in float64: by default dtype, or since it was loaded so."""
        entries = (self.state[p] for p in group["params"] if p in self.state)
        numbers = (entry.get(name) for entry in entries if isinstance(entry, Mapping))
        dtypes = {value.dtype for value in numbers if isinstance(value, torch.Tensor)}
        return torch.float64 in (dtypes or {torch_optimizer._get_scalar_dtype()})

    def _empty_plan(self, host: Host | None = None, left: Sequence[_fallback.Left] = ()) -> TensorPlan:
        ref = weakref.ref(self)  # else a plan, and all that it holds, would wait for the cyclic collector
        asked = host or Host()
        return TensorPlan(
            partial(spec_of, ref), partial(record_of, ref, asked, left), asked,
            number_names=self._number_names(), n_threads=self._settings["n_threads"],
            clip_norm=self._settings["clip_norm"], norm_type=self._settings["norm_type"], last=self._last,
        )  # fmt: skip

    def _owner(self) -> str:
        """How messages call this optimizer."""
        return f"fastopt.torch.{type(self).__name__}"

    def _require(self, group: Any) -> None:
        """Raise unless a parameter group is a dict with all options, and a list of parameters."""
        if not isinstance(group, dict) or type(group.get("params")) is not list:
            raise ParameterError(f"{self._owner()}: a parameter group has to be a dict, and its 'params' a list")
        lost = [key for key in self.defaults if key not in group]
        if lost and (known := [key for key in lost if key in self.core.group_keys()]):
            raise HyperparameterError(f"{self._owner()}: a parameter group has lost its {known[0]!r}")
        if self._in_zero and group.get("zero_grads"):
            raise HyperparameterError(
                f"zero_grads=True: {_torch_ranks.IN_ZERO}, so that the gradients of the others would stay; call "
                "zero_grad() instead"
            )

    def _key(self, group: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """A key for what depends on the options of a group and the settings alone; None if they can make none."""
        if self._deciding is None:
            return None
        settings = self._settings
        return plain_key(
            group, self._deciding, type(self).__name__, settings["flush_subnormal"], settings["fallback"],
            settings["clip_norm"] is not None,
        )  # fmt: skip

    def _spec_of(self, group: Mapping[str, Any]) -> Spec:
        """What `_derive` returns, which is not asked again where it is known."""
        known = self._known.get(self._key(group))
        return self._derive(group) if known is None or known.spec is None else known.spec

    def _check_options(self, group: Mapping[str, Any]) -> None:
        """Raise what a step with these options would raise, unless it is known that nothing would."""
        self._require(group)
        key = self._key(group)
        known = self._known.get(key)
        if known is not None and known.has_float:  # and in float64, too
            return
        has_float = any(p.dtype != torch.float64 for p in group["params"])
        if known is not None and not has_float:
            return
        options = dict(group)
        spec = self._derive(options)
        self._empty_plan().check_options(options, has_float, NO_SCHEDULES, spec)
        if key is not None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = Known(frozen(spec) if MORE_DECIDES.isdisjoint(spec.forms) else None, has_float)

    def _bound(
        self, groups: list[dict[str, Any]], left: list[_fallback.Left], ordinary: bool = False
    ) -> tuple[TensorPlan, bool]:
        """A plan over groups, parameters and state as they are now, and whether it may serve for more than one step.

        Without the parameters that are left to PyTorch. `ordinary` says that all with a gradient are known to be.

        With inference tensors it may not: whether they can be written to depends on where the next step is called.
        """
        host = Host(self._mirrors)
        plan = self._empty_plan(host, left)
        labels: dict[torch.Tensor, str] = {}
        place = 0
        out = {id(one.param) for one in left}
        for group in groups:
            spec, params, names = self._spec_of(group), [], []
            records: list[tuple[Any, ...] | None] = []
            places: list[int] = []
            for k, (param, name) in enumerate(zip(group["params"], names_of(group, place), strict=True)):
                if out and id(param) in out:
                    continue
                places.append(place + k)
                params.append(param)
                names.append(name)
                if param.grad is None:
                    records.append(None)
                else:
                    label = f"parameter {name!r}"
                    if not ordinary:
                        labels[param] = label
                    records.append(self._record(param, group, spec, label, host, plan if ordinary else None))
            plan.bind(group, spec, params, records, names, places)
            place += len(group["params"])
        check_disjoint(host.copies, labels)
        plan.watch(self.state, alone=not left and not host.copies)
        return plan, not host.has_inference

    def _record_anew(
        self, param: torch.Tensor, group: dict[str, Any], spec: Spec, label: str, host: Host,
        left: Sequence[_fallback.Left],
    ) -> tuple[Any, ...] | None:  # fmt: skip
        """A record of a parameter for a plan that was kept, or None if another plan has to be made."""
        if self._settings["fallback"] != "error" and (
            _fallback.reason_of(group, param, label) or _fallback.state_reason(self.state, param, label)
            or any(_fallback.may_meet(param, one.param) for one in left)
        ):  # fmt: skip
            return None
        record = self._record(param, group, spec, label, host)
        return None if host.copies or host.has_inference else record

    def _record(
        self, param: torch.Tensor, group: Mapping[str, Any], spec: Spec, label: str, host: Host,
        plan: TensorPlan | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """A record for `TensorPlan.bind`; state that the parameter lacks is made, to be put in place with the step.

        A plan is given for an ordinary parameter, of which nothing more has to be checked.
        """
        own = param if plan else steppable(param, label)
        if spec.storage is not None:
            check_narrow(param, own, spec, label)
        if plan is None:
            if self._settings["fallback"] == "error" and (reason := _fallback.shared_reason(param, label)):
                raise TensorLayoutError(reason[1])
            check_inference(host, own, label)
            if not is_dense(own):
                own = torch.empty_like(own, memory_format=torch.preserve_format, requires_grad=False)
                host.copies[param] = own
        inner = self.state.get(param, {})
        if not isinstance(inner, dict):
            raise StateDictError(f"state of {label} is a {type(inner).__name__}; a dict is needed")
        if inner and LOW.name in {*inner, *(slot.name for slot in spec.slots)}:
            check_split(inner, spec, label)
        averages = AVERAGE in spec.slots
        counted = averages or draws(spec)  # whether it counts steps even where PyTorch does not
        if plan and not inner and not counted:
            if (record := self._first_record(param, inner, spec, host, plan)) is not None:
                return record
        counts = counts_in_state(self.core)
        if inner and counts:
            self._check_complete(inner, label)
        entries: dict[str, Any] = {}
        arrays: dict[str, Any] = {}  # entries, too, after the others
        slots: dict[str, Any] = {}
        begins, average_begun = "step" not in inner, averages and inner.get(AVERAGE.name) is not None
        count: Any = None
        if counts or counted:
            count = first_count(host.arena) if begins else number_tensor(inner["step"], f"state 'step' of {label}")
        for place, slot in enumerate(spec.slots):
            name, given = slot.name, inner.get(slot.name)
            if given is None and slot is AVERAGE:
                if float(count) + 1 < self._start_of(group):
                    slots[name] = None
                    continue
                slot = slot._replace(first="copy")  # what it would be if the step ended in the middle
            if given is None:
                arrays[name] = given = new_state(host.arena, param, own, place, slot)
            if plan and slot.like == "parameter" and slot.storage is None and plan.is_like(given, param):
                slots[name] = given
                continue
            plain_type = slot.storage is None and type(given) in PLAIN and given.is_floating_point()
            if self._settings["fallback"] != "error" and plain_type:
                if given.dtype != state_dtype(slot, own):  # PyTorch's step left it, before the parameter was cast
                    arrays[name] = given = given.to(state_dtype(slot, own))
            local = state_tensor(given, param, own, slot, f"state {name!r} of {label}")
            if not lies_as(local, own, slot):
                arrays[name] = new_state(host.arena, param, own, place, slot._replace(first=0.0))
                local = state_tensor(arrays[name], param, own, slot, label).copy_(local)
            check_inference(host, local, f"state {name!r} of {label}")
            if local.dtype == torch.uint8:
                self._note_order(param, own, label)
            slots[name] = local
        kept = [inner.get(name) is not None for name in slots if name != AVERAGE.name]
        begun = 0 if counts else int(all(kept) and bool(kept))  # which a state without a count says itself
        if count is None:
            return param, inner, arrays, own, slots, None, (), begun, False
        is_other = count is not inner.get("step")
        if begins:
            entries["step"] = count
        elif is_other or (count.dtype == torch.float32 and count.item() >= LAST_FLOAT_COUNT):
            entries["step"] = count = count_tensor(count.item())
        if not (begins and plan):
            check_inference(host, count, f"state 'step' of {label}")
        numbers: list[torch.Tensor] = []
        for name in self._number_names() if spec.numbers else ():
            given = inner.get(name, spec.numbers[len(numbers)])
            numbers.append(number_tensor(given, f"state {name!r} of {label}"))
            if numbers[-1] is not given:
                entries[name] = numbers[-1]
            check_inference(host, numbers[-1], f"state {name!r} of {label}")
        entries = in_order({**entries, **arrays})
        return param, inner, entries, own, slots, count, tuple(numbers), begun, average_begun

    def _note_order(self, param: torch.Tensor, own: torch.Tensor, label: str) -> None:
        """Note the order of memory that the codes of a parameter follow; raises if it has another one by now."""
        order = _torch_state.order_of(own)
        if self._orders.get(param, order) != order:
            raise TensorLayoutError(
                f"{label} has its dimensions in another order of memory than its state in 8 bits, which cannot follow: "
                "give it memory of the old order, or load a state dict into another optimizer"
            )
        if param not in self._orders:
            self._orders = {**self._orders, param: order}

    @staticmethod
    def _start_of(group: Mapping[str, Any]) -> float:
        """The step at which the average of a parameter begins, the first being 1."""
        start = group.get("ema_start")
        return 1.0 if start is None else float(plain(start))

    def _first_record(
        self, param: torch.Tensor, inner: dict[str, Any], spec: Spec, host: Host, plan: TensorPlan
    ) -> tuple[Any, ...] | None:
        """`_record` for an ordinary parameter without state, as at a first step; None if its state is not ordinary."""
        slots = {}
        for place, slot in enumerate(spec.slots):
            slots[slot.name] = made = new_state(host.arena, param, param, place, slot)
            if slot.like != "parameter" or slot.storage is not None or not plan.is_like(made, param):
                return None
        if not counts_in_state(self.core):
            return param, inner, slots, param, slots, None, (), 0, False
        scalars = {"step": first_count(host.arena)}
        for name, first in zip(self._number_names(), spec.numbers, strict=False) if spec.numbers else ():
            scalars[name] = number_tensor(first, name)
        count, *numbers = scalars.values()
        return param, inner, in_order({**scalars, **slots}), param, slots, count, tuple(numbers), 0, False

    # --- State

    def load_state_dict(self, state_dict: Mapping[str, Any], convert: Literal["lossy"] | None = None) -> None:
        """Continue from a `state_dict`: of this class, of its twin in ``torch.optim``, or of fastopt's for arrays.

        As in PyTorch, tensors that fit are taken over, not copied, and state goes by the position of parameters. State
        of fastopt's optimizers for arrays that has another unit or sign than PyTorch's is converted, or refused.

        ``state_dtype`` and ``split`` stay the optimizer's own; ``rounding`` and ``seed`` come from the dict, if that
        has them. State that is stored as this optimizer stores it is taken over bit for bit, and into a wider type it
        is converted without a loss. Where none of these options is given, other state is cast to the type of the
        parameter, as in PyTorch.

        Parameters
        ----------
        convert : "lossy", optional
            Allows what loses bits: state in float32 that becomes bfloat16 or 8 bits, bfloat16 that becomes 8 bits,
            ``low`` of a parameter that is not split here, and the state of an 8-bit optimizer of bitsandbytes or
            torchao. It is rounded as by a step.

        Raises
        ------
        StateDictError, HyperparameterError
            For state of another shape, kind or meaning, or that lacks something, or would lose bits, and for options
            out of range; the optimizer is then as it was.
        """
        lossy = check_convert(convert)

        def translate(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            if (uncast := self._uncast(self._with_around(given))) is not None:
                return uncast
            given = self._with_around(_torch_state.of_another_library(self.core, given, self.param_groups, lossy))
            self._loading, self._lossy = with_tensors(self._translated(given)), lossy
            return self._loading

        self._refuse_averaged("load_state_dict()")
        hook = self.register_load_state_dict_pre_hook(translate)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            hook.remove()
            self._loading, self._lossy = None, False
        self._tell_of_averages()

    def _with_around(self, given: Any) -> Any:
        """A state dict whose groups have what a group may have or not, and this optimizer's have, too."""
        groups = given.get("param_groups") if isinstance(given, Mapping) else None
        if not isinstance(groups, (list, tuple)) or len(groups) != len(self.param_groups):
            return given  # which is refused, or needs none
        if not all(isinstance(group, Mapping) for group in groups) or not any(
            key in group for group in (*self.param_groups, *groups) for key in (*OPTIONAL, *OF_ARRAYS)
        ):
            return given
        merged = []
        for own, saved in zip(self.param_groups, groups, strict=True):
            mine = {key: own[key] for key in OPTIONAL if key in own}
            rounds = carried_options(mine, saved)
            layout = {key: value for key, value in mine.items() if key in LAYOUT}
            merged.append({**mine, **without(saved, (*LAYOUT, *ROUNDING, *OF_ARRAYS)), **layout, **rounds})
        return {**given, "param_groups": merged}

    def _tell_of_averages(self) -> None:
        """Warn if averages are to be there, and the state has none."""
        every = [(group, param) for group in self.param_groups for param in group["params"]]
        for k, (group, param) in enumerate(every):
            entry = self.state.get(param)
            if group.get("ema_decay") is not None and isinstance(entry, Mapping) and AVERAGE.name not in entry:
                if float(entry.get("step", 1)) >= self._start_of(group):
                    warn_caller(
                        f"the state dict has no average ('ema') of parameter {k}: averages begin anew with the next "
                        "step", _fallback.PYTORCH,
                    )  # fmt: skip
                    return

    def _uncast(self, given: Any) -> dict[str, Any] | None:
        """A state dict with its state by parameter, which PyTorch takes as it is; None if some has to be converted.

        None has where the dict is of PyTorch's own form, and every tensor of the type and form that it has to be.
        PyTorch would find that out by three calls for each tensor, and then make new dicts that hold the same ones.
        """
        kinds, required = ordinary_state(self.core)
        if kinds is None or type(given) is not dict or "fastopt" in given or Host.modes():
            return None
        if self._stores(self.param_groups):
            return None
        state, saved, groups = given.get("state"), given.get("param_groups"), self.param_groups
        if type(state) is not dict or type(saved) is not list or not {*map(type, state.values())} <= {dict}:
            return None
        if not all(type(group) is dict and type(group.get("params")) is list for group in (*saved, *groups)):
            return None
        params = [param for group in groups for param in group["params"]]
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
            return None
        places = list(range(len(params)))
        if [key for group in saved for key in group["params"]] != places or not state.keys() <= {*places}:
            return None
        by_param = {params[int(key)]: entry.copy() for key, entry in state.items()}
        single = any(group.get("fused") or group.get("capturable") for group in saved)  # PyTorch casts such counts
        if not self._empty_plan().is_ordinary_state(by_param, kinds, required, single):
            return None
        return {**given, "state": by_param}

    def _stores(self, groups: Iterable[Any]) -> bool:
        """Whether options of groups say that state has another type than its parameter."""
        return any(group.get(key) for group in groups if isinstance(group, Mapping) for key in LAYOUT)

    def _store_first_state(self) -> None:
        """Give state that PyTorch's constructor made, Adagrad's, the types that the options say."""
        for group, param, entry, label in self._entries(self.state, self.param_groups):
            if self._stores([group]) and _fallback.unfit(param, label) is None:
                for place, slot in enumerate(self._derive(group).slots):
                    if slot.name in entry or slot.name == LOW.name:
                        entry[slot.name] = new_state(Host().arena, param, local_of(param), place, slot)

    def _fit_state(self) -> None:
        """Take state as the dict has it that is loaded: PyTorch has cast it to the type of the parameter."""
        loading = self._loading
        if loading is None:
            return
        places = [(group, param) for group in self.param_groups for param in group["params"]]
        own = loading["fastopt"] if isinstance(loading.get("fastopt"), Mapping) else {}
        packed = _torch_state.read_packed(own, len(places))
        keys = [key for group in loading["param_groups"] for key in group["params"]]
        specs = {id(group): self._derive(group) for group in self.param_groups}
        streams, self._orders = own.get("streams"), {}
        if streams is not None and list(streams) != [*range(len(places))] and any(map(draws, specs.values())):
            require_lossy(
                self._lossy, f"the state dict's 'streams' of random numbers are {streams!r:.80}; those here are the "
                "places of the parameters"
            )  # fmt: skip
        for k, ((group, param), key) in enumerate(zip(places, keys, strict=True)):
            saved = loading["state"].get(key)
            entry = self.state.get(param)
            if not isinstance(saved, Mapping) or not isinstance(entry, dict) or not saved:
                continue
            label = f"parameter {k}"
            if _fallback.unfit(param, label) is not None:
                continue
            spec = specs[id(group)]
            count = entry.get("step", 0)
            to = _torch_state.Place(param, label, k, packed[k], int(count))
            _torch_state.fit_entry(entry, saved, spec, spec.kinds, self._lossy, to)
            if param.dtype == torch.bfloat16:  # in which no number would be what it was
                entry.update({name: saved[name] for name in self._number_names() if name in saved})

    def _translated(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state dict in PyTorch's terms; raises if its state or options mean something that PyTorch has not."""
        own = check_layout(given)
        core, convention = self.core, next(iter(self.core.conventions))
        entries = expect(given["state"], Mapping, "the state dict's 'state'")
        groups = expect(given["param_groups"], list, "the state dict's 'param_groups'")
        foreign = MEANINGS.keys() - {*core.slots_under(convention), *self._number_names()}
        if not own:  # and a name that is another's here may be a class's own where PyTorch's is there, too
            wanted = {*core.slots_under(convention)} - {AVERAGE.name}
            held = [entry for entry in entries.values() if isinstance(entry, Mapping)]
            if not any(foreign.intersection(entry) and not wanted <= {*entry} for entry in held):
                return given  # PyTorch's own
        sizes = [len(expect(expect(g, Mapping, "a parameter group").get("params"), list, "'params'")) for g in groups]
        if sizes != [len(group["params"]) for group in self.param_groups]:
            return given  # which PyTorch refuses
        if isinstance(own.get("optimizer"), str) and own["optimizer"] not in fastopt.OPTIMIZERS:  # a class of a user's
            own = {key: value for key, value in own.items() if key != "optimizer"}
        check_origin(core, own)
        state, new_groups = dict(entries), []
        counts = iter(own["counts"]) if isinstance(own.get("counts"), (list, tuple)) else None
        counts = None if counts_in_state(core) else counts  # else the state has them
        for group, saved in zip(self.param_groups, groups, strict=True):
            mine = with_defaults(core, convention, {k: plain(v) for k, v in group.items() if k in core.group_keys()})
            keys = [expect(key, (int, str), "a parameter's index") for key in saved["params"]]
            listed = {key: entries[key] for key in keys if isinstance(entries.get(key), Mapping)}
            names = {name for entry in listed.values() for name in entry}
            options = {key: plain(value) if key in core.group_keys() else value for key, value in saved.items()}
            merged = merged_options(core, convention, mine, options, own, names)
            # What its source has not, PyTorch would miss.
            settled = {key: merged[key] for key in ("dampening", "nesterov", "decoupled_weight_decay") if key in merged}
            new_groups.append({**saved, **settled})
            for key, param in zip(keys, group["params"], strict=True):
                if key in listed:
                    entry = {
                        name: _torch_state.wide_array(as_array(x)) if name in foreign else x
                        for name, x in listed[key].items()
                    }
                    dtype = np.dtype(np.float64 if param.dtype == torch.float64 else np.float32)
                    state[key] = translated(
                        core, convention, entry, f"state of parameter {key!r}", options.get("lr"), mine["lr"], dtype
                    )
                count = None if counts is None else next(counts, None)
                # By it an average begins, and random numbers are drawn.
                if count and (saved.get("ema_decay") is not None or saved.get("rounding") == "stochastic"):
                    state[key] = {"step": count_tensor(count), **state.get(key, {})}
        return {**given, "state": state, "param_groups": new_groups}

    # --- Averages

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which every parameter holds its average, for evaluation; after it, its own value again.

        As `fastopt.Optimizer.averaged`: the contents of the parameters and of ``ema`` in the state change places, and
        back, also after an exception. Inside, `step`, `load_state_dict`, `add_param_group`, pickling and another
        `averaged` raise `AveragedError`; `state_dict` and `averages` give what they give outside.

        FSDP2 keeps the outermost module gathered after a forward pass without a backward one: call ``model.reshard()``
        before this is entered and before it is left, or the model goes on with what was gathered.
        """
        self._require_averages()
        return Averaged(partial(self._stepping.run, self._swap_averages), lambda: self._averaged is not None)

    @property
    def averages(self) -> list[torch.Tensor] | dict[Any, torch.Tensor]:
        """The averages of the parameters, in their order; by name, if the groups have ``param_names``.

        The tensors are the live ones. Where no average has begun, the parameter itself, detached.

        Raises
        ------
        AveragedError
            If no group has ``ema_decay``.
        """
        self._require_averages()
        params = [param for group in self.param_groups for param in group["params"]]
        found = [self._average_of(param) for param in params]
        if all("param_names" in group for group in self.param_groups):
            names = [name for group in self.param_groups for name in group["param_names"]]
            return dict(zip(names, found, strict=True))
        return found

    def averaged_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """The averages as the state dict of ``torch.optim.swa_utils.AveragedModel(model)``.

        Parameters
        ----------
        model : torch.nn.Module
            Whose parameters this optimizer steps. Others, and buffers, are in the dict as they are in the model.

        Examples
        --------
        ::

            averaged = torch.optim.swa_utils.AveragedModel(model)
            averaged.load_state_dict(opt.averaged_state_dict(model))
        """
        self._require_averages()
        begun = [float(self.state[param].get("step", 1)) - max(self._start_of(group), 1) + 1
                 for group in self.param_groups for param in group["params"] if self._has_average(param)]  # fmt: skip
        found: dict[str, Any] = {"n_averaged": torch.tensor(int(max(begun, default=0)))}
        own = {name: param for name, param in model.named_parameters(remove_duplicate=False)}
        for name, value in model.state_dict().items():
            found[f"module.{name}"] = self._average_of(own[name]) if name in own else value
        return found

    def load_averaged_state_dict(self, model: torch.nn.Module, state_dict: Mapping[str, Any]) -> None:
        """Take over averages from the state dict of an ``AveragedModel``, for the parameters of `model`.

        The optimizer has to have state for them, unless PyTorch has no count in it (`SGD`): load its own state dict
        first. Values are copied. With an
        ``n_averaged`` of 0, which means that no average has begun, averages begin with the next step.

        Raises
        ------
        StateDictError
            If an average is missing or of another shape, or a parameter has no state; nothing has changed then.
        AveragedError
            If no group has ``ema_decay``, or inside `averaged`.
        """
        self._require_averages()
        self._refuse_averaged("load_averaged_state_dict()")
        stepped = {id(param): group for group in self.param_groups for param in group["params"]}
        number = expect(state_dict, Mapping, "the state dict of an AveragedModel").get("n_averaged")
        try:
            n_averaged = int(number)
        except (TypeError, ValueError, RuntimeError):
            raise StateDictError(
                f"'n_averaged' is {number!r:.80}; a number is needed, as in the state dict of an AveragedModel"
            ) from None
        counts, found = counts_in_state(self.core), []
        for name, param in model.named_parameters():
            group = stepped.get(id(param))
            if group is None or group.get("ema_decay") is None:
                continue
            value = state_dict.get(f"module.{name}")
            if not isinstance(value, torch.Tensor) or value.shape != param.shape:
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else value
                raise StateDictError(f"the average 'module.{name}' is {shape!r:.80}; {tuple(param.shape)} is needed")
            if counts and not self.state.get(param):
                raise StateDictError(f"parameter {name!r} has no state yet: load the optimizer's state dict first")
            try:
                with torch.no_grad():
                    average = torch.empty_like(param, dtype=average_dtype(param), requires_grad=False)
                    found.append((param, average.copy_(value)))
            except (TypeError, ValueError, RuntimeError) as error:
                raise StateDictError(f"the average 'module.{name}' cannot be copied: {error}") from error
        for param, value in found:
            if n_averaged == 0:
                self.state.get(param, {}).pop(AVERAGE.name, None)
                continue
            entry = self.state[param]
            if not counts and "step" not in entry:
                entry["step"] = count_tensor(n_averaged)
            entry[AVERAGE.name] = value

    def state_dict(self) -> dict[str, Any]:
        """The state, in PyTorch's layout. Inside `averaged` averages are copied, since they are in the parameters."""
        found = super().state_dict()
        if self._averaged is None and not self._orders:
            return found
        params = [param for group in self.param_groups for param in group["params"]]
        if (packed := self._packed(params)) is not None:
            found = {**found, "fastopt": {"version": VERSION, "packed": packed}}
        if self._averaged is not None:
            keys = [key for group in found["param_groups"] for key in group["params"]]
            state = dict(found["state"])
            for key, param in zip(keys, params, strict=True):
                if key in state and self._has_average(param) and self._stands_in(param):
                    state[key] = {**state[key], AVERAGE.name: param.detach().clone()}
            found = {**found, "state": state}
        return found

    def _packed(self, params: list[torch.Tensor]) -> list[Any] | None:
        """For a state dict, the order of memory of parameters with state in 8 bits; None if that is the usual one."""
        shapes = [tuple(local_of(param).shape) for param in params]
        orders = [self._orders.get(param) for param in params]
        entries = [None if order is None else _torch_state.packed_entry(shape, order)
                   for shape, order in zip(shapes, orders, strict=True)]  # fmt: skip
        return entries if any(entry is not None and entry[0] != "C" for entry in entries) else None

    def export_state_dict(
        self, layout: Literal["bitsandbytes", "torchao"], *, convert: Literal["lossy"] | None = None
    ) -> dict[str, Any]:
        """A state dict for an 8-bit optimizer of another library: see `fastopt.Optimizer.export_state_dict`.

        `load_state_dict` reads such dicts, with ``convert="lossy"``. Not for `DTensor`.
        """
        groups = []
        for k, group in enumerate(self.param_groups):
            for param in group["params"]:
                if local_of(param) is not param:
                    raise TensorKindError(f"group {k} has a {type(param).__name__}; only whole tensors can be exported")
            dtypes = [np.float64 if param.dtype == torch.float64 else np.float32 for param in group["params"]]
            arrays = [np.empty(tuple(p.shape), dtype) for p, dtype in zip(group["params"], dtypes, strict=True)]
            groups.append({"params": arrays})
        twin = self.core(groups)
        twin.load_state_dict(self.state_dict(), convert=convert)  # exact but for low halves: it becomes float32
        return twin.export_state_dict(layout, convert=convert)

    def _has_average(self, param: torch.Tensor) -> bool:
        entry = self.state.get(param)
        return isinstance(entry, Mapping) and isinstance(entry.get(AVERAGE.name), torch.Tensor)

    def _stands_in(self, param: torch.Tensor) -> bool:
        """Whether the average of a parameter is in the parameter, inside `averaged`, and not in the state."""
        return self._averaged is not None and self.state[param][AVERAGE.name].dtype == param.dtype

    def _average_of(self, param: torch.Tensor) -> torch.Tensor:
        """The average of a parameter: its own value where it has none, or where that stands in its place."""
        if self._has_average(param) and not self._stands_in(param):
            return self.state[param][AVERAGE.name]  # type: ignore[no-any-return]
        return param.detach()

    def _require_averages(self) -> None:
        if all(group.get("ema_decay") is None for group in self.param_groups):
            raise AveragedError(f"{self._owner()} keeps no averages of its parameters: give ema_decay")

    def _refuse_averaged(self, what: str) -> None:
        """Raise if averages stand in the place of the parameters."""
        if self._averaged is not None:
            raise AveragedError(
                f"{what} inside `with averaged():`, where the parameters hold their averages; leave it first"
            )

    def _swap_averages(self, back: bool) -> None:
        """Let parameters and their averages change places."""
        if back:
            pairs = self._averaged or []
        else:
            self._refuse_averaged("averaged()")
            pairs, place = [], 0
            for group in self.param_groups:
                for param, name in zip(group["params"], names_of(group, place), strict=True):
                    if group.get("ema_decay") is not None and self._has_average(param):
                        average = self.state[param][AVERAGE.name]
                        check_swap(param, average, f"parameter {name!r}")
                        if average.dtype != param.dtype:  # it stays in the state, and a rounded copy takes part
                            average = average.to(param.dtype)
                        pairs.append((param, average))
                place += len(group["params"])
        with torch.no_grad():
            swap_tensors(
                pairs, torch.Tensor.clone, torch.Tensor.copy_, self.__dict__, None if back else pairs, self._plan
            )
            self._write_mirrors(param for param, _ in pairs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = dict(self.__dict__)
        if "_settings" in state:
            state = {**state, "_settings": _torch_ranks.restored({**DEFAULTS, **state["_settings"]})}
        self.__dict__.setdefault("_settings", {**DEFAULTS, **state.get("_settings", {})})
        self.__dict__.setdefault("_stepping", BusyGuard())
        self.__dict__.setdefault("_last", LastNorm())
        self._plan = self._mixed = self._guarded = None
        try:
            if "state" in state and "param_groups" in state:
                kinds, required = ordinary_state(self.core)
                ordinary = (
                    kinds is not None and not self._stores(state["param_groups"])
                    and self._empty_plan().is_ordinary_state(state["state"], kinds, required)
                )  # fmt: skip
                loaded = self._loading is not None
                if not ordinary:
                    self._check_numbers(state["state"], state["param_groups"])
                super().__setstate__(state)
                for group in self.param_groups:
                    self._check_options(group)
                if loaded:
                    self._fit_state()
                if not ordinary or loaded:
                    self._check_state()
            else:
                super().__setstate__(state)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        self._settings = {**DEFAULTS, **self._settings}

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_averaged("pickling or copying")
        state = {**super().__getstate__(), "_settings": _torch_ranks.savable(self._settings)}
        state |= {name: kept for name in ("_mirrors", "_orders") if (kept := getattr(self, name))}
        return {**state, "_in_zero": True} if self._in_zero else state

    def _entries(
        self, state: Mapping[torch.Tensor, Any], groups: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], torch.Tensor, dict[str, Any], str]]:
        """Every parameter that has state: its group, itself, its entry, and how messages call it."""
        params = [(group, param) for group in groups for param in group["params"]]
        for k, (group, param) in enumerate(params):
            if param in state and state[param]:
                yield group, param, state[param], f"parameter {k}"

    def _number_names(self) -> tuple[str, ...]:
        """The numbers that the state of a parameter has, beside its step count."""
        return number_names(self.core)

    def _check_complete(self, entry: Mapping[str, Any], label: str) -> None:
        for name in required_names(self.core):
            if name not in entry:
                raise StateDictError(f"state of {label} lacks {described(name)}")

    def _check_numbers(self, state: Mapping[torch.Tensor, Any], groups: list[dict[str, Any]]) -> None:
        """Raise unless counts and the like are there and are such; make tensors of plain numbers."""
        if not counts_in_state(self.core):
            return
        names = ("step", *self._number_names())
        for _, _, entry, label in self._entries(state, groups):
            self._check_complete(entry, label)
            for name in names:
                number = number_tensor(entry[name], f"state {name!r} of {label}")
                if name == "step" and not ((value := float(number)) >= 0 and value.is_integer()):
                    raise StateDictError(f"state 'step' of {label} is {entry[name]!r}; a count is needed")
                if not isinstance(entry[name], torch.Tensor):
                    entry[name] = count_tensor(entry[name]) if name == "step" else number

    def _check_state(self) -> None:
        """Raise unless every parameter's state can be stepped."""
        plan = self._empty_plan()
        slots = {id(group): self._derive(group).slots for group in self.param_groups}
        for group, param, entry, label in self._entries(self.state, self.param_groups):
            if all(slot.like == "parameter" and slot.storage is None and plan.is_like(entry.get(slot.name), param)
                   for slot in slots[id(group)]):  # fmt: skip
                continue
            lenient = self._settings["fallback"] != "error"
            if lenient and _fallback.reason_of(group, param, label) is not None:
                continue
            for slot in slots[id(group)]:
                name, kept = slot.name, entry.get(slot.name)
                if lenient and isinstance(kept, torch.Tensor) and (
                    kept.layout != torch.strided or (kept.dtype != param.dtype and kept.is_floating_point())
                ):  # fmt: skip  # of a step of PyTorch's, before the parameter or its gradient became another
                    continue
                if entry.get(name) is not None:
                    state_tensor(entry[name], param, local_of(param), slot, f"state {name!r} of {label}")


NOT_DIFFERENTIABLE = (
    "clip_norm is not supported with differentiable=True: the factor of clipping would be a constant to autograd"
)


def checked(name: str, value: Any) -> Any:
    """A setting of clipping as it is kept, or the error."""
    if name == "clip_group":
        return _torch_ranks.check_group(value)
    if name == "clip_norm":
        if value is None:
            return None
        good, accepted = is_number(value) and float(value) > 0, f"{LIMIT}, or None"
        if callable(value):
            accepted += "; schedules are for fastopt's optimizers of arrays: set opt.clip_norm between steps"
    else:
        good, accepted = is_number(value) and float(value) in (2, np.inf), "2 or inf"
    if not good:
        raise HyperparameterError(f"{name}={value!r} must be {accepted}")
    return 2 if name == "norm_type" and float(value) == 2 else float(value)


def spec_of(ref: weakref.ref[_Compiled], group: Mapping[str, Any]) -> Spec:
    """What a plan asks its optimizer for where the options of a group have changed."""
    optimizer = ref()
    assert optimizer is not None
    return optimizer._spec_of(group)


def record_of(
    ref: weakref.ref[_Compiled], host: Host, left: Sequence[_fallback.Left],
    param: torch.Tensor, group: dict[str, Any], spec: Spec, label: str,
) -> tuple[Any, ...] | None:  # fmt: skip
    """What a plan asks its optimizer for where a parameter is no longer as it was bound."""
    optimizer = ref()
    assert optimizer is not None
    return optimizer._record_anew(param, group, spec, label, host, left)


def frozen(spec: Spec) -> Spec:
    """A spec that nobody can change."""
    return spec._replace(
        kinds=MappingProxyType({**spec.kinds}),
        limits=MappingProxyType({**spec.limits}),
        forms=MappingProxyType({**spec.forms}),
    )


def without(options: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Options but for those of these names."""
    return {key: value for key, value in options.items() if key not in keys}


def draws(spec: Spec) -> bool:
    """Whether something is rounded stochastically, by numbers that depend on the step of its parameter."""
    squares = any(slot.narrow == "square" and slot.storage in ("bfloat16", "8bit") for slot in spec.slots)
    return squares or (spec.storage is not None and spec.storage.rounding == "stochastic")


def check_narrow(param: torch.Tensor, own: torch.Tensor, spec: Spec, label: str) -> None:
    """Raise if a parameter cannot be stored as the options of its group say."""
    if spec.storage is None or not spec.storage.narrows:
        return
    if own.dtype == torch.float64:
        raise TensorDTypeError(
            f"{label} has dtype torch.float64, and is computed with in float64: state_dtype and split are for float32 "
            "and bfloat16"
        )
    if param is not own and is_sharded(param) and param.numel() >= FEWEST_PACKED:
        if any(slot.storage == "8bit" for slot in spec.slots):
            raise TensorKindError(
                f"state_dtype='8bit': {label} is a DTensor in shards, and a distributed checkpoint would take state in "
                "8 bits, which is no DTensor, for the same on all ranks; 'bfloat16' is kept as a DTensor"
            )


def check_split(entry: Mapping[str, Any], spec: Spec, label: str) -> None:
    """Raise if a parameter was not split when its state began, and is to be now, or the other way round."""
    has, keeps = entry.get(LOW.name) is not None, any(slot.name == LOW.name for slot in spec.slots)
    begun = any(entry.get(slot.name) is not None for slot in spec.slots if slot.name not in (AVERAGE.name, LOW.name))
    if has != keeps and (has or begun):
        raise HyperparameterError(
            f"split={keeps}: state of {label} was begun with split={has}; options of storage cannot be edited: make "
            "another optimizer, and load the state dict of this one"
        )


def in_float32(slot: Slot) -> Slot:
    """State that is float32 where nothing else is said, also beside a bfloat16 parameter."""
    said = slot.storage is not None or slot.like != "parameter" or slot.name == AVERAGE.name
    return slot if said else slot._replace(storage="float32")


def in_order(entries: dict[str, Any]) -> dict[str, Any]:
    """New entries of the state, given by a class's own order, as PyTorch orders them: RMSprop's grad_avg comes last."""
    if "grad_avg" in entries:
        entries["grad_avg"] = entries.pop("grad_avg")
    return entries


@remembered
def number_names(core: type[fastopt.Optimizer]) -> tuple[str, ...]:
    """The numbers that the state of a parameter has, beside its step count."""
    return tuple(saved_numbers(core, next(iter(core.conventions))))


@remembered
def ordinary_state(core: type[fastopt.Optimizer]) -> tuple[dict[str, str] | None, tuple[str, ...]]:
    """`kinds` and `required` for `TensorPlan.is_ordinary_state`; no kinds where arrays are not like the parameter."""
    arrays, counts = named_arrays(core, next(iter(core.conventions))), counts_in_state(core)
    if any(slot.like != "parameter" for slot in arrays.values()):
        return None, ()
    kinds = dict.fromkeys(arrays, "parameter") | dict.fromkeys(number_names(core), "number")
    return kinds | ({"step": "count"} if counts else {}), required_names(core) if counts else ()


@remembered
def required_names(core: type[fastopt.Optimizer]) -> tuple[str, ...]:
    """What the state of a parameter that was stepped has in any case."""
    return ("step", *number_names(core), *(slot.name for slot in arrays_of(core, optional=False)))


def name_of(group: Mapping[str, Any], k: int, place: int) -> Any:
    """What a parameter is called: its name, or its place among all."""
    names = group.get("param_names", ())
    return names[k] if k < len(names) else place


@remembered
def signature_of(cls: type[torch.optim.Optimizer]) -> frozenset[str]:
    """The names of what PyTorch's constructor of a class takes."""
    twin: Any = cls.__mro__[cls.__mro__.index(_Compiled) + 1]
    return frozenset(inspect.signature(twin.__init__).parameters)


def names_of(group: Mapping[str, Any], place: int) -> list[Any]:
    """What the parameters of a group are called, the first of which has this place among all: see `name_of`."""
    n = len(group["params"])
    names = list(group.get("param_names", ())[:n])
    return names + list(range(place + len(names), place + n))


def named(group: Mapping[str, Any], k: int, place: int) -> str:
    """What messages call a parameter."""
    return f"parameter {name_of(group, k, place)!r}"


def plain(value: Any) -> Any:
    """A hyperparameter without tensors."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise HyperparameterError(f"{value!r} must be a number, or a tensor of one element")
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else value


def as_array(value: Any) -> Any:
    """A tensor as an array over its memory; anything else, and what is no such tensor, as it is."""
    if isinstance(value, torch.Tensor):
        with contextlib.suppress(TypeError, RuntimeError):  # which a load then refuses by its name
            return value.detach().numpy()
    return value


def with_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with tensors in the place of arrays, and with counts that PyTorch would round as plain numbers."""

    def convert(key: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = _torch_state.from_array(value)
        if key == "step" and isinstance(value, torch.Tensor) and value.numel() == 1:
            ordinary = value.dtype == torch.float32 and value.device.type == "cpu"
            if (value.item() if ordinary else value) >= LAST_FLOAT_COUNT:
                value = int(value.item()) if float(value).is_integer() else value
        return value

    def converted(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: convert(key, value) if key == "step" or isinstance(value, np.ndarray) else value
            for key, value in entry.items()
        }

    state = {k: converted(entry) if isinstance(entry, Mapping) else entry for k, entry in state_dict["state"].items()}
    return {**state_dict, "state": state}


# --- One for each of PyTorch's


class SGD(_Compiled, torch.optim.SGD):
    """``torch.optim.SGD``, compiled: momentum with the learning rate outside, dampening, Nesterov.

    The rule is `fastopt.SGD`'s under ``convention="torch"``; arguments and state (``momentum_buffer``) are PyTorch's.
    See `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.SGD

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-3, momentum: float = 0,
            dampening: float = 0, weight_decay: float | torch.Tensor = 0, nesterov: bool = False, *,
            maximize: bool = False, foreach: bool | None = None, differentiable: bool = False,
            fused: bool | None = None,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class ASGD(_Compiled, torch.optim.ASGD):
    """``torch.optim.ASGD``, compiled: SGD with a falling rate, and the average of its parameters beside it.

    The rule is `fastopt.ASGD`'s; arguments and state (``step``, ``eta``, ``mu``, ``ax``) are PyTorch's. See
    `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.ASGD

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-2, lambd: float = 1e-4,
            alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0, foreach: bool | None = None,
            maximize: bool = False, differentiable: bool = False, capturable: bool = False, *,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class Adagrad(_Compiled, torch.optim.Adagrad):
    """``torch.optim.Adagrad``, compiled: steps divided by the root of the sum of all squares.

    The rule is `fastopt.Adagrad`'s under ``convention="torch"``; arguments and state (``step``, ``sum``) are PyTorch's.
    See `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.Adagrad

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 0.01, lr_decay: float = 0,
            weight_decay: float = 0, initial_accumulator_value: float = 0, eps: float = 1e-10,
            foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
            fused: bool | None = None,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class Adadelta(_Compiled, torch.optim.Adadelta):
    """``torch.optim.Adadelta``, compiled: steps in the units of the parameter.

    The rule is `fastopt.Adadelta`'s under ``convention="torch"``; arguments and state (``step``, ``square_avg``,
    ``acc_delta``) are PyTorch's. See `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.Adadelta

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1.0, rho: float = 0.9,
            eps: float = 1e-6, weight_decay: float = 0, foreach: bool | None = None, *, capturable: bool = False,
            maximize: bool = False, differentiable: bool = False,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class RMSprop(_Compiled, torch.optim.RMSprop):
    """``torch.optim.RMSprop``, compiled: steps divided by the root of an average of squares.

    The rule is `fastopt.RMSprop`'s under ``convention="torch"``; arguments and state (``step``, ``square_avg``, and
    ``momentum_buffer``, ``grad_avg`` where asked for) are PyTorch's. See `fastopt.torch` for more arguments,
    what is stepped, and what differs.
    """

    core = fastopt.RMSprop

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 0.01, alpha: float = 0.99,
            eps: float = 1e-8, weight_decay: float = 0, momentum: float = 0, centered: bool = False,
            capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
            differentiable: bool = False, *,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class Adam(_Compiled, torch.optim.Adam):
    """``torch.optim.Adam``, compiled: averages of the gradient and of its square, both corrected for their start.

    The rule is `fastopt.Adam`'s under ``convention="torch"``; arguments and state (``step``, ``exp_avg``,
    ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``) are PyTorch's. See `fastopt.torch` for more arguments, what
    is stepped, and what differs.
    """

    core = fastopt.Adam

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-3,
            betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999), eps: float = 1e-8,
            weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
            capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
            decoupled_weight_decay: bool = False,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class AdamW(_Compiled, torch.optim.AdamW):
    """``torch.optim.AdamW``, compiled: `Adam`, with weight decay that shrinks the parameter itself.

    The rule is `fastopt.AdamW`'s under ``convention="torch"``; arguments and state (``step``, ``exp_avg``,
    ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``) are PyTorch's. See `fastopt.torch` for more arguments, what
    is stepped, and what differs.
    """

    core = fastopt.AdamW

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-3,
            betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999), eps: float = 1e-8,
            weight_decay: float = 0.01, amsgrad: bool = False, *, maximize: bool = False,
            foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
            fused: bool | None = None,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class Adamax(_Compiled, torch.optim.Adamax):
    """``torch.optim.Adamax``, compiled: Adam with the infinity norm.

    The rule is `fastopt.Adamax`'s under ``convention="torch"``; arguments and state (``step``, ``exp_avg``,
    ``exp_inf``) are PyTorch's. See `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.Adamax

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 2e-3,
            betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
            foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
            capturable: bool = False,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class NAdam(_Compiled, torch.optim.NAdam):
    """``torch.optim.NAdam``, compiled: Adam with Nesterov's momentum, on a schedule of its own.

    The rule is `fastopt.NAdam`'s under ``convention="torch"``; arguments and state (``step``, ``mu_product``,
    ``exp_avg``, ``exp_avg_sq``) are PyTorch's. See `fastopt.torch` for more arguments, what is stepped, and
    what differs.
    """

    core = fastopt.NAdam

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 2e-3,
            betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
            momentum_decay: float = 0.004, decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
            maximize: bool = False, capturable: bool = False, differentiable: bool = False,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class RAdam(_Compiled, torch.optim.RAdam):
    """``torch.optim.RAdam``, compiled: Adam whose step is rectified while the average of squares is young.

    The rule is `fastopt.RAdam`'s under ``convention="torch"``; arguments and state (``step``, ``exp_avg``,
    ``exp_avg_sq``) are PyTorch's. See `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.RAdam

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-3,
            betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
            decoupled_weight_decay: bool = False, *, foreach: bool | None = None, maximize: bool = False,
            capturable: bool = False, differentiable: bool = False,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class Rprop(_Compiled, torch.optim.Rprop):
    """``torch.optim.Rprop``, compiled: a step size for each element, which grows while the gradient keeps its sign.

    The rule is `fastopt.Rprop`'s; arguments and state (``step``, ``prev``, ``step_size``) are PyTorch's. See
    `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.Rprop

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 0.01,
            etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[float, float] = (1e-6, 50), *,
            capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
            differentiable: bool = False,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


class _Lion(torch.optim.Optimizer):
    """The constructor that PyTorch would have."""

    def __init__(
        self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-4,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.99), weight_decay: float = 0.0, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= lr or not 0 <= weight_decay:
            raise HyperparameterError(f"lr={lr!r} and weight_decay={weight_decay!r} must be 0 or more")
        defaults = {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "foreach": foreach, "maximize": maximize,
            "capturable": capturable, "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch_optimizer._use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step as PyTorch would, for what the compiled step cannot take."""
        for group in self.param_groups:
            lr, (beta1, beta2), sign = group["lr"], group["betas"], -1 if group["maximize"] else 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise RuntimeError("Lion does not support sparse gradients")
                state = self.state[p]
                if not state:
                    state["step"] = count_tensor(0)
                    state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["step"] += 1
                w, g, m = (torch.view_as_real(x) if x.is_complex() else x for x in (p, sign * p.grad, state["exp_avg"]))
                w.mul_(1 - lr * group["weight_decay"])
                w.add_(torch.sign(beta1 * m + (1 - beta1) * g), alpha=-lr)
                m.mul_(beta2).add_(g, alpha=1 - beta2)


class Lion(_Compiled, _Lion):
    """Lion, which ``torch.optim`` does not have: steps of lr, by the sign of an interpolated momentum.

    The rule is `fastopt.Lion`'s under ``convention="paper"``: lr 1e-4, betas (0.9, 0.99), weight decay 0, decoupled.
    State: ``step``, ``exp_avg``. See `fastopt.torch` for more arguments, what is stepped, and what differs.
    """

    core = fastopt.Lion

    if TYPE_CHECKING:

        def __init__(
            self, params: torch_optimizer.ParamsT, lr: float | torch.Tensor = 1e-4,
            betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.99), weight_decay: float = 0.0, *,
            foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
            differentiable: bool = False, fused: bool | None = None,
            n_threads: int | None = None, flush_subnormal: bool = True,
            fallback: Literal["warn", "silent", "error"] = "warn", clip_norm: float | None = None,
            norm_type: float = 2, clip_group: torch.distributed.ProcessGroup | None = None,
            clip_value: float | None = None, clip_norm_each: float | None = None, ema_decay: float | None = None,
            ema_start: int | None = None, zero_grads: bool | None = None,
            state_dtype: str | Mapping[str, str] | None = None, split: bool | None = None,
            rounding: Literal["nearest", "stochastic"] | None = None, seed: int | None = None,
            mirrors: Sequence[torch.Tensor | None] | None = None,
        ) -> None: ...  # fmt: skip


# --- How torch.compile meets them


def untraced(*functions: Callable[..., Any], inside: bool) -> None:
    """Have ``torch.compile`` run functions as they are: in them is nothing that it could compile.

    With `inside`, what they call, too. It is what ``torch.compiler.disable`` does, but for its wrapper around each call
    and for the import of the compiler, which takes a second. Where PyTorch has no such switch, the compiler looks into
    the step, in vain: that costs time, and warnings.
    """
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    try:
        skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
        strategy = frames._FrameExecStrategy(skip, skip if inside else default)
        for function in functions:
            frames.set_code_exec_strategy(function.__code__, strategy)  # where they are called,
            function._torchdynamo_disable = True  # type: ignore[attr-defined]  # and where they would be inlined
    except AttributeError:
        pass


untraced(_Compiled.step, _Compiled._bare_step, inside=False)  # a closure is compiled
untraced(
    _Compiled._hooked_step, _Compiled._take_step, _Compiled._skip_step, _Compiled.__init__, _Compiled.load_state_dict,
    clip_grad_norm_, clip_grad_value_,
    _Compiled._refuse_averaged, _Compiled._swap_averages,
    spec_of, record_of, Host.local, Host.fit, Host.finish, Host.is_read, Host.check_each, Host.check_zeroing,
    Host.check_zeroed, Host.zero, Host.mirror_of,  # which a plan calls, maybe from `step` itself
    inside=True,
)  # fmt: skip


# --- How the classes are found


# jsonargparse, and Lightning's CLI with it, finds "Adam" by the last part of a class's path, among all that derive from
# `Optimizer` and have a path without an underscore. Only PyTorch's may: so ours go by a second name, in pickles, too.
for _cls in (SGD, ASGD, Adagrad, Adadelta, RMSprop, Adam, AdamW, Adamax, NAdam, RAdam, Rprop):
    STOCK[_cls] = _cls.__bases__[-1]
    _cls.__qualname__ = f"_{_cls.__name__}"
    globals()[_cls.__qualname__] = _cls

STOCK.update({clip_grad_norm_: _torch_clip.STOCK_NORM, clip_grad_value_: _torch_clip.STOCK_VALUE})

# Modules without optimizers are PyTorch's, under our name: `from fastopt.torch.lr_scheduler import StepLR`. That of a
# class (`torch.optim.adamw`) is not: it holds PyTorch's class.
for _module in ("lr_scheduler", "optimizer", "swa_utils"):
    sys.modules[f"{__name__}.{_module}"] = sys.modules[f"torch.optim.{_module}"]

if not TYPE_CHECKING:  # else a misspelt name would be Any to them

    def __getattr__(name: str) -> Any:
        if not name.startswith("_") and hasattr(torch.optim, name):
            return getattr(torch.optim, name)
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}, and torch.optim has none either",
            name=name, obj=sys.modules[__name__],
        )  # fmt: skip


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return sorted({*special, *__all__, *_torch_install.__all__, *_torch_clip.__all__, *torch.optim.__all__})
