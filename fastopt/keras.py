"""Optimizers of Keras 3 whose steps are fastopt's: same names, same arguments, same variables, same files.

Write ``from fastopt.keras import Adam`` instead of ``from keras.optimizers import Adam``. The classes derive from those
of Keras and have their options, defaults and state. The state is in Keras' variables, so saving, loading,
``get_config`` and ``set_weights`` are Keras' own code. Each step is one compiled pass over all variables, by the rule
of ``convention="keras"``. On the torch backend clipping, weight decay, ``loss_scale_factor`` and the averages of
``use_ema`` are in the same pass.

They work on Keras' backends torch and numpy. Importing this module on another one raises `ImportError`: under JAX and
TensorFlow, XLA fuses the operations of a step already, and tensors cannot be written in place.

What the compiled step cannot do as Keras does is done by Keras' own code, with the same variables:

- Variables that are not float32 or float64, or not on the CPU, or not contiguous: each by itself. Where their dtypes
  differ, all on the torch backend, since Keras computes there with the scalars of the first one's dtype.
- Each by itself: gradients of another type or shape than their variable, and sparse ones. The whole step: gradients
  that share memory with a variable, a variable that is given twice, another number of gradients than of variables.
- Hyperparameters that fastopt refuses, such as a negative learning rate.
- Variables with ``overwrite_with_gradient``, the sums of ``gradient_accumulation_steps``, constraints, the weight decay
  of some but not all variables. Around a step over some of the variables, and on the numpy backend, also clipping and
  averages. The step between them is compiled.
- ``stateless_apply``, code under `torch.compile`, and classes that derive from these and override a part of the step.

``left_to_keras`` of an optimizer says what was left at its last step, and why.

Examples
--------
>>> import keras
>>> from fastopt.keras import Adam
>>> model = keras.Sequential([keras.layers.Dense(1)])
>>> model.compile(optimizer=Adam(1e-3), loss="mse")
"""

# Design: `apply` takes the common case on the torch backend in one go. All else goes through Keras' `apply`, which
# calls `_backend_update_step`: there the compiled step takes the place of Keras' arithmetic, and nothing more. The
# classes derive from what Keras makes on its backend (on torch, its classes with foreach operations), so that whatever
# is left to Keras is left to its fastest code.

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import is_
from typing import Any

import keras
import numpy as np
from keras.src import backend as _backend

from fastopt.errors import FastoptError
from fastopt.functional import Bound, bind

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "Nadam", "RMSprop"]

BACKEND = keras.backend.backend()
if BACKEND not in ("torch", "numpy"):
    why = (
        "XLA fuses the operations of a step already, and tensors cannot be written in place"
        if BACKEND in ("jax", "tensorflow")
        else "fastopt steps NumPy arrays and tensors of PyTorch on the CPU"
    )
    raise ImportError(
        f"fastopt.keras does not support the Keras backend {BACKEND!r}: {why}. It supports 'torch' and 'numpy' "
        "(set KERAS_BACKEND); on others use keras.optimizers"
    )
if BACKEND == "torch":
    import torch

    # Unbound, so that map() calls them without looking them up for each tensor.
    _address = torch.Tensor.data_ptr
    _is_contiguous = torch.Tensor.is_contiguous
    _PLAIN = (torch.Tensor, torch.nn.Parameter)
    _FLOATS = (torch.float32, torch.float64)

FLOATX = {"float32": np.float32, "float64": np.float64}
"""The types to which Keras may round its constants."""
PLANS = 8
"""Plans kept for an optimizer: one for each list of variables that it is given."""

UPDATE = (
    "update_step", "_parallel_update_step", "assign", "assign_add", "assign_sub", "_get_variable_index", "_var_key",
)  # fmt: skip
"""What a class may override of the update of variables,"""
AROUND = (
    "_backend_update_step", "_backend_apply_gradients", "_clip_gradients", "_clip_by_norm", "_apply_weight_decay",
    "_use_weight_decay", "_get_current_learning_rate", "learning_rate", "iterations", "_filter_empty_gradients",
    "_overwrite_variables_directly_with_gradients", "_overwrite_variable_with_gradient", "_check_variables_are_known",
    "_update_model_variables_moving_average",
)  # fmt: skip
"""and of what is around it."""


NO_GRADIENT = "its gradient is not a dense one of its dtype and shape"


class _Plan:
    """The compiled step of some variables: bound to their memory, as long as that stays."""

    def __init__(self, optimizer: Any, variables: list[Any], whole: bool) -> None:
        self.variables = variables
        self.whole = whole
        """Whether clipping and averages are in the step, not done by Keras around it."""
        self.rule, self.options, self.state = self.settings(optimizer)
        places = [optimizer._get_variable_index(variable) for variable in variables]
        self.columns = [None if s is None else [s[place] for place in places] for s in self.state]
        self.unfit = [self.why_unfit(k) for k in range(len(variables))]
        self.chosen = [k for k, why in enumerate(self.unfit) if why is None]
        self.left = [k for k, why in enumerate(self.unfit) if why is not None]
        self.refused: str | None = None
        """Why no variable can be stepped."""
        self.bound: Bound | None = None
        self.members = [s and list(s) for s in self.state]
        self.iterations_variable = optimizer._iterations
        rate = optimizer._learning_rate
        self.rate_of_plan = rate
        self.rate_variable = rate if isinstance(rate, keras.Variable) else None
        self.product_variable = optimizer._u_product if self.rule == "nadam" else None
        taken = [self.variables, *(column for column in self.columns if column is not None)]
        self.written = [column[k] for column in taken for k in self.chosen]
        numbers = [v for v in (optimizer._iterations, self.product_variable, self.rate_variable) if v is not None]
        self.watched = [*self.written, *numbers]
        self.tensors = [variable._value for variable in self.watched]
        self.bumped = self.tensors[: len(self.tensors) - (self.rate_variable is not None)]
        """The tensors that a step writes."""
        self.decays: bool | None = None
        """Whether every variable decays; None: not known."""
        self.excluded: Any = None
        """What Keras remembers of variables that do not decay: another one after each change."""
        self.addresses: list[int] | None = None
        dtypes = sorted({str(variable.dtype) for variable in variables})
        if self.left and len(dtypes) > 1:
            self.refused = f"their dtypes are {', '.join(dtypes)}; Keras computes with scalars of the first one's"
            return
        if any(type(tensor) not in _PLAIN or tensor.device.type != "cpu" for tensor in self.tensors):
            self.refused = "the numbers of the optimizer are not on the CPU"
            return
        if any(tensor.dtype == torch.bfloat16 for tensor in self.tensors):
            self.refused = "the numbers of the optimizer are bfloat16"
            return
        self.addresses = list(map(_address, self.tensors))
        try:
            self.bind()
        except FastoptError as error:
            self.refused = str(error)

    def settings(self, optimizer: Any) -> tuple[str, dict[str, Any], list[Any]]:
        """The rule, its options, and the lists of variables that are its state."""
        rule, options, state = optimizer._rule()
        if self.whole:
            if optimizer.clipnorm and optimizer.clipnorm > 0:
                options["clip_norm_each"] = _finite(optimizer.clipnorm)
            elif optimizer.global_clipnorm and optimizer.global_clipnorm > 0:
                options["clip_norm"] = _finite(optimizer.global_clipnorm)
            elif optimizer.clipvalue and optimizer.clipvalue > 0:
                options["clip_value"] = _constant(optimizer.clipvalue)
            if optimizer.use_ema:
                options["ema_decay"] = _constant(optimizer.ema_momentum)
                state.append(optimizer._model_variables_moving_average)
        return rule, options, state

    def bind(self) -> None:
        """Bind the rule to the memory of the tensors."""
        arrays = [tensor.detach().numpy() for tensor in self.tensors]
        n = len(self.chosen)
        columns: list[list[np.ndarray] | None] = []
        taken = n
        for column in self.columns:
            if column is None:
                columns.append(None)
            else:
                columns.append(arrays[taken : taken + n])
                taken += n
        ema = columns.pop() if "ema_decay" in self.options else None
        self.iterations, *rest = arrays[taken:]
        if self.product_variable is not None:
            self.product = rest.pop(0)
            self.products = np.ones(n)
            columns.append([self.products[k : k + 1] for k in range(n)])
        if self.rate_variable is not None:
            (self.rate,) = rest
        self.arrays = arrays[:n]
        self.bound = bind(self.rule, self.arrays, columns, ema=ema, convention="keras", **self.options)

    def why_unfit(self, k: int) -> str | None:
        """Why a variable is left to Keras, or None."""
        members = [self.variables[k], *(column[k] for column in self.columns if column is not None)]
        if any(member is None for member in members):
            return "it has no state"
        tensors: list[Any] = [getattr(member, "_value", None) for member in members]
        first = tensors[0]
        for tensor in tensors:
            if type(tensor) not in _PLAIN or tensor.layout != torch.strided:
                return f"its value is a {type(tensor).__name__}, not a plain tensor"
            if tensor.device.type != "cpu":
                return f"it is on {tensor.device}"
            if tensor.dtype not in _FLOATS:
                return f"it has dtype {tensor.dtype}; torch.float32 or torch.float64 is needed"
            if tensor.dtype != first.dtype:
                return f"it has dtype {first.dtype}, and its state {tensor.dtype}"
            if not tensor.is_contiguous() or tensor.shape != first.shape:
                return f"it is not contiguous: shape {tuple(tensor.shape)}, strides {tensor.stride()}"
            if tensor.is_inference() or (tensor.numel() and not tensor.data_ptr()):
                return "its tensor was made in inference mode, or has no memory"
        return None

    def holds(self, optimizer: Any) -> bool:
        """Whether all is as it was when this plan was made."""
        _, options, state = self.settings(optimizer)
        return (
            self.addresses is not None
            and options == self.options
            and len(state) == len(self.state)
            and all(map(is_, state, self.state))
            and all([s is None or _same(s, kept) for s, kept in zip(state, self.members, strict=True)])
            and optimizer._iterations is self.iterations_variable
            and all(map(is_, [variable._value for variable in self.watched], self.tensors))
            and list(map(_address, self.tensors)) == self.addresses
            and all(map(_is_contiguous, self.tensors))
            and optimizer._learning_rate is self.rate_of_plan
            and (not self.left or [self.why_unfit(k) for k in range(len(self.unfit))] == self.unfit)
        )

    def fitting(self, grads: list[np.ndarray | None]) -> list[np.ndarray | None]:
        """The gradients that are as their variables; None in the place of others."""
        return [
            grad if grad is not None and grad.dtype == array.dtype and grad.shape == array.shape else None
            for grad, array in zip(grads, self.arrays, strict=True)
        ]

    def take(self, grads: list[np.ndarray | None], before: int, rate: float, done: bool, **options: Any) -> None:
        """One step, after as many as `before`.

        `done`: whether the product of Nadam is to be stored; Keras stores it if it steps others, too.
        """
        assert self.bound is not None
        if self.product_variable is not None:
            self.products.fill(self.product.item())
        self.bound.step(grads, step=before + 1, lr=rate, **options)
        if self.product_variable is not None and done:
            self.product[...] = self.products[next(k for k, grad in enumerate(grads) if grad is not None)]
        torch.autograd.graph.increment_version(self.bumped)


def _constant(number: float) -> float:
    """A constant as Keras computes with it; raises KeyError if it rounds to a type that NumPy has not."""
    return float(FLOATX[keras.config.floatx()](number))


def _finite(limit: float) -> float:
    """A limit of norms; raises KeyError if it is infinite, by which Keras' clipping gives NaN."""
    if limit == np.inf:
        raise KeyError(limit)
    return float(limit)


def _array_of(grad: Any, plan: _Plan) -> np.ndarray | None:
    """An array over the memory of a gradient, or of a contiguous copy; None if it cannot be had.

    No copy of what shares memory with a variable: the step refuses it, as it would one that is contiguous.
    """
    if type(grad) not in _PLAIN or grad.layout != torch.strided or grad.device.type != "cpu":
        return None
    try:
        grad = grad.detach()
        memory = grad.untyped_storage().data_ptr()
        if all(tensor.untyped_storage().data_ptr() != memory for tensor in plan.tensors):
            grad = grad.contiguous()
        return grad.numpy() if grad.data_ptr() or not grad.numel() else None
    except (TypeError, RuntimeError):
        return None


def _arrays_of(grads: Sequence[Any], plan: _Plan) -> list[np.ndarray | None]:
    """The same of all of them, quickly where they are as usual."""
    try:
        if all([type(grad) is torch.Tensor for grad in grads]) and all(map(_is_contiguous, grads)):
            if 0 not in map(_address, grads):
                return [grad.numpy() for grad in grads]
    except (TypeError, RuntimeError):
        pass
    return [_array_of(grad, plan) for grad in grads]


def _same(some: list[Any], others: list[Any]) -> bool:
    """Whether two lists have the same variables."""
    return len(some) == len(others) and all(map(is_, some, others))


def _in_scope() -> bool:
    """Whether variables may stand for other values than their own."""
    return _backend.in_stateless_scope() or _backend.get_autocast_scope() is not None


class _Worker:
    """What takes the steps of one optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.left: list[str] = []
        self.plans: dict[tuple[Any, ...], _Plan] = {}
        self.plan: _Plan | None = None
        self.look(optimizer)

    def look(self, optimizer: Any) -> None:
        """What the class, or the optimizer itself, has of its own."""
        self.attributes = len(optimizer.__dict__)
        cls = type(optimizer)
        own = next(base for base in cls.__mro__ if base.__module__ == __name__)
        changed = [
            name for name in (*UPDATE, *AROUND)
            if name in vars(optimizer) or getattr(cls, name, None) is not getattr(own, name, None)
        ]  # fmt: skip
        self.by_variable = "update_step" in changed
        """Whether a class has an `update_step` of its own, which Keras then calls for each variable."""
        self.kept_away = f"{cls.__name__} has its own {changed[0]}" if changed else None
        self.changed_update = not set(UPDATE).isdisjoint(changed)

    def find(self, optimizer: Any, variables: list[Any], whole: bool) -> _Plan:
        """The plan of these variables, a new one if need be."""
        plan = self.plan
        if plan is None or plan.whole is not whole or not _same(variables, plan.variables):
            plan = self.plans.get((whole, *map(id, variables)))
        if plan is None or not plan.holds(optimizer):
            if len(self.plans) >= PLANS:
                self.plans.clear()
            plan = _Plan(optimizer, list(variables), whole)
            key = (whole, *map(id, variables))
            self.plans[key] = plan
        self.plan = plan
        return plan

    def apply(self, optimizer: Any, grads: Sequence[Any], variables: list[Any] | None) -> bool:
        """The whole of `apply` in the common case; False if it is not that, and nothing is done."""
        if not optimizer.built or self.kept_away or optimizer.gradient_accumulation_steps:
            return False
        if variables is None:
            variables = optimizer._trainable_variables
        if len(grads) != len(variables) or not variables or _in_scope():
            return False
        if optimizer.use_ema and not _same(variables, optimizer._trainable_variables):
            return False
        try:
            plan = self.find(optimizer, variables, True)
        except (KeyError, AttributeError, IndexError):  # of which Keras speaks in its own words
            return False
        if plan.left or plan.bound is None:
            return False
        constrained = False
        for variable in variables:
            if variable.overwrite_with_gradient:
                return False
            constrained = constrained or variable.constraint is not None
        arrays = _arrays_of(grads, plan)
        if any([array is None for array in arrays]):
            return False
        options: dict[str, Any] = {}
        if optimizer.loss_scale_factor is not None:
            options["grad_scale"] = float(optimizer.loss_scale_factor)
        decays = optimizer.weight_decay is not None
        rates: list[Any] = []
        """The learning rates asked for, in order: they may come from a function that counts its calls."""
        kept = self.kept(optimizer, plan, rates) if decays else None
        by_keras = decays and kept is None
        if by_keras:
            optimizer._apply_weight_decay(variables)
        if plan.rate_variable is None:
            rates.append(optimizer.learning_rate)
            rate = float(rates[-1])
        else:
            rate = plan.rate.item()
        if kept is not None and not (rate > 0 and kept <= 1):
            optimizer._apply_by_keras(grads, variables, rates)
            return True
        if kept is not None:
            options["weight_decay"] = (1 - kept) / rate  # the compiled step multiplies by 1 - lr * weight_decay
        self.left = []
        try:
            plan.take(arrays, plan.iterations.item(), rate, True, **options)
        except FastoptError:
            optimizer._apply_by_keras(grads, variables, rates, decayed=by_keras)
            return True
        if optimizer.use_ema and optimizer.ema_overwrite_frequency:
            if (plan.iterations.item() + 1) % optimizer.ema_overwrite_frequency == 0:
                optimizer._overwrite_model_variables_with_average_value(variables)
        if constrained:
            for variable in variables:
                if variable.constraint is not None:
                    variable.assign(variable.constraint(variable))
        plan.iterations += 1
        return True

    def kept(self, optimizer: Any, plan: _Plan, rates: list[Any]) -> float | None:
        """What of each variable weight decay leaves, rounded as Keras does; None: not all variables decay.

        The learning rate, if it had to be asked for, is added to `rates`.
        """
        if plan.decays is None or plan.excluded is not optimizer._exclude_from_weight_decay_cache:
            plan.decays = all([optimizer._use_weight_decay(variable) for variable in plan.variables])
            plan.excluded = optimizer._exclude_from_weight_decay_cache
        if not plan.decays:
            return None
        if plan.rate_variable is None:
            rates.append(optimizer.learning_rate)
            return float(1 - optimizer.weight_decay * rates[-1])
        rate = plan.rate[()]
        return float(1 - rate.dtype.type(optimizer.weight_decay) * rate)

    def may_update(self, grads: Sequence[Any], variables: list[Any]) -> bool:
        """Whether an update of variables is one that can be compiled; if not, `left` says why."""
        self.left = []
        if self.changed_update or _in_scope():
            self.left = [f"all variables: {self.kept_away or 'their values are those of a scope'}"]
        elif len(grads) != len(variables):
            self.left = [f"all variables: {len(grads)} gradients of {len(variables)} variables"]
        return not self.left

    def update(self, optimizer: Any, grads: Sequence[Any], variables: list[Any], rate: Any) -> bool:
        """The update of variables alone, between what Keras does; False if nothing was done."""
        if not self.may_update(grads, variables):
            return False
        plan = self.find(optimizer, list(variables), False)
        if plan.bound is None:
            self.left = [f"all variables: {plan.refused}"]
            return False
        arrays = plan.fitting(_arrays_of([grads[k] for k in plan.chosen], plan))
        left = [*plan.left, *(k for k, array in zip(plan.chosen, arrays, strict=True) if array is None)]
        if len(left) < len(variables):
            before = int(optimizer.iterations) if optimizer.gradient_accumulation_steps else plan.iterations.item()
            number = float(rate.value if isinstance(rate, keras.Variable) else rate)
            try:
                plan.take(arrays, before, number, not left)
            except FastoptError as error:
                self.left = [f"all variables: {error}"]
                return False
        if left:
            left.sort()
            self.left = [f"{variables[k].path}: {plan.unfit[k] or NO_GRADIENT}" for k in left]
            optimizer._update_by_keras([grads[k] for k in left], [variables[k] for k in left], rate)
        return True


class _CopyingWorker(_Worker):
    """The same over NumPy arrays, which Keras replaces at each step: new arrays are stepped, and take their place."""

    def apply(self, optimizer: Any, grads: Sequence[Any], variables: list[Any] | None) -> bool:
        return False

    def update(self, optimizer: Any, grads: Sequence[Any], variables: list[Any], rate: Any) -> bool:
        if not self.may_update(grads, variables):
            return False
        if len(set(map(id, variables))) < len(variables):
            self.left = ["all variables: one of them is given twice"]
            return False
        rule, options, state = optimizer._rule()
        chosen, arrays, left = [], [], []
        for k, (variable, grad) in enumerate(zip(variables, grads, strict=True)):
            place = optimizer._get_variable_index(variable)
            members = [variable, *(column[place] for column in state if column is not None)]
            why = self.why_unfit(members, grad)
            if why is None:
                value = variable._value
                chosen.append((k, members))
                arrays.append([np.array(member._value, order="C") for member in members])
                arrays[-1].append(np.asarray(grad, dtype=value.dtype, order="C"))
            else:
                left.append(k)
                self.left.append(f"{variable.path}: {why}")
        if chosen:
            try:
                self.take(optimizer, rule, options, state, arrays, rate, not left)
            except FastoptError as error:
                self.left = [f"all variables: {error}"]
                return False
            for (_, members), stepped in zip(chosen, arrays, strict=True):
                for member, array in zip(members, stepped, strict=False):
                    member._value = array
        if left:
            optimizer._update_by_keras([grads[k] for k in left], [variables[k] for k in left], rate)
        return True

    @staticmethod
    def why_unfit(members: list[Any], grad: Any) -> str | None:
        """Why a variable is left to Keras, or None."""
        if any(member is None for member in members):
            return "it has no state"
        first = members[0]._value
        for member in members:
            value = member._value
            if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64):
                return f"it has dtype {member.dtype}; float32 or float64 is needed"
            if value.dtype != first.dtype or value.shape != first.shape:
                return "its state has another dtype or shape"
        if not isinstance(grad, (np.ndarray, np.generic)) or grad.shape != first.shape or grad.dtype.kind != "f":
            return NO_GRADIENT
        return None

    @staticmethod
    def take(
        optimizer: Any, rule: str, options: dict[str, Any], state: list[Any], arrays: list[list[np.ndarray]], rate: Any,
        done: bool,
    ) -> None:  # fmt: skip
        """One step of the arrays of each variable: itself, its state, its gradient."""
        every = [list(column) for column in zip(*arrays, strict=True)]
        following = iter(every[1:])
        columns: list[Any] = [None if column is None else next(following) for column in state]
        products = np.full(len(arrays), float(optimizer._u_product.value)) if rule == "nadam" else None
        if products is not None:
            columns.append([products[k : k + 1] for k in range(len(products))])
        count = int(optimizer.iterations) + 1
        number = float(rate.value if isinstance(rate, keras.Variable) else rate)
        bind(rule, every[0], columns, convention="keras", lr=number, **options).step(every[-1], step=count)
        if products is not None and done:
            optimizer._u_product.assign(products[0])


class _Compiled:
    """What the classes here have in the place of Keras' update."""

    _public: Any
    """The class of Keras."""
    weight_decay: Any

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Take a step, as Keras' method of this name."""
        if trainable_variables is not None and not isinstance(trainable_variables, list):
            trainable_variables = list(trainable_variables)
        if _being_compiled():
            self._worker().left = ["all variables: torch.compile has compiled the step"]
            super().apply(grads, trainable_variables)  # type: ignore[misc]
        elif not self._worker().apply(self, grads, trainable_variables):
            super().apply(grads, trainable_variables)  # type: ignore[misc]

    def _backend_update_step(self, grads: Sequence[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        if _being_compiled() or not self._worker().update(self, grads, trainable_variables, learning_rate):
            self._update_by_keras(grads, trainable_variables, learning_rate)

    def _update_by_keras(self, grads: Sequence[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        """Keras' own update of some variables."""
        if self._worker().by_variable:  # as Keras does for classes that derive from its public ones
            self._public._backend_update_step(self, grads, trainable_variables, learning_rate)
        else:
            super()._backend_update_step(grads, trainable_variables, learning_rate)  # type: ignore[misc]

    def _apply_by_keras(
        self, grads: Sequence[Any], trainable_variables: list[Any], rates: list[Any], decayed: bool = False
    ) -> None:
        """Keras' own `apply`, where learning rates were asked for, and variables may have decayed, already."""
        kept = {name: self.__dict__[name] for name in ("_learning_rate", "weight_decay")}
        if rates:
            self.__dict__["_learning_rate"] = partial(next, iter(rates))
        if decayed:
            self.__dict__["weight_decay"] = None
        try:
            super().apply(grads, trainable_variables)  # type: ignore[misc]
        finally:
            self.__dict__.update(kept)

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        """The rule of fastopt, its options, and the lists of Keras' variables that are its state, in its order."""
        raise NotImplementedError

    @property
    def left_to_keras(self) -> list[str]:
        """Which variables Keras' own code updated at the last step, and why: one line each, or one for all.

        Clipping, decay and averages that Keras does around a compiled step are not listed.
        """
        return list(self._worker().left)

    def _worker(self) -> _Worker:
        worker: _Worker | None = self.__dict__.get("_fastopt_worker")
        if worker is None:
            # Past Keras' __setattr__, which keeps account of what optimizers hold.
            worker = self.__dict__["_fastopt_worker"] = _Worker(self) if BACKEND == "torch" else _CopyingWorker(self)
        if worker.attributes != len(self.__dict__):  # one of them may be a method
            worker.look(self)
        return worker


def _being_compiled() -> bool:
    """Whether `torch.compile` is reading the code, which is to see Keras' operations."""
    return BACKEND == "torch" and bool(torch.compiler.is_compiling())


def _host(public: Any) -> Any:
    """What Keras makes of a class of its own on this backend: on torch a class with foreach operations."""
    return type(public.__new__(public))


def _adam_options(optimizer: Any) -> tuple[dict[str, Any], list[Any]]:
    """The options and the state of Adam and of AdamW."""
    options = {
        "betas": (float(optimizer.beta_1), float(optimizer.beta_2)),
        "eps": float(optimizer.epsilon),
        "amsgrad": bool(optimizer.amsgrad),
    }
    maxima = optimizer._velocity_hats if optimizer.amsgrad else None
    return options, [optimizer._momentums, optimizer._velocities, maxima]


_SGD: Any = _host(keras.optimizers.SGD)
_Adagrad: Any = _host(keras.optimizers.Adagrad)
_Adadelta: Any = _host(keras.optimizers.Adadelta)
_RMSprop: Any = _host(keras.optimizers.RMSprop)
_Adam: Any = _host(keras.optimizers.Adam)
_AdamW: Any = _host(keras.optimizers.AdamW)
_Adamax: Any = _host(keras.optimizers.Adamax)
_Nadam: Any = _host(keras.optimizers.Nadam)
_Lion: Any = _host(keras.optimizers.Lion)
_saved = keras.saving.register_keras_serializable(package="fastopt")


@_saved
class SGD(_Compiled, _SGD):
    """`keras.optimizers.SGD`, stepped by `fastopt.SGD` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.

    Examples
    --------
    >>> from fastopt.keras import SGD
    >>> optimizer = SGD(0.01, momentum=0.9, nesterov=True)
    """

    _public = keras.optimizers.SGD

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        if self.momentum == 0:
            return "sgd", {}, []
        return "sgd", {"momentum": float(self.momentum), "nesterov": bool(self.nesterov)}, [self.momentums]


@_saved
class Adagrad(_Compiled, _Adagrad):
    """`keras.optimizers.Adagrad`, stepped by `fastopt.Adagrad` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.

    Examples
    --------
    >>> from fastopt.keras import Adagrad
    >>> optimizer = Adagrad(0.01, initial_accumulator_value=0.1)
    """

    _public = keras.optimizers.Adagrad

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        return "adagrad", {"eps": float(self.epsilon)}, [self._accumulators]


@_saved
class Adadelta(_Compiled, _Adadelta):
    """`keras.optimizers.Adadelta`, stepped by `fastopt.Adadelta` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.

    Examples
    --------
    >>> from fastopt.keras import Adadelta
    >>> optimizer = Adadelta(1.0, rho=0.95)
    """

    _public = keras.optimizers.Adadelta

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        state = [self._accumulated_grads, self._accumulated_delta_vars]
        return "adadelta", {"rho": float(self.rho), "eps": float(self.epsilon)}, state


@_saved
class RMSprop(_Compiled, _RMSprop):
    """`keras.optimizers.RMSprop`, stepped by `fastopt.RMSprop` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.
    With ``centered=True``, a variance that rounding took below zero counts as zero; Keras gives NaN where it is below
    ``-epsilon``.

    Examples
    --------
    >>> from fastopt.keras import RMSprop
    >>> optimizer = RMSprop(1e-3, rho=0.9, centered=True)
    """

    _public = keras.optimizers.RMSprop

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        options = {
            "alpha": float(self.rho),
            "eps": float(self.epsilon),
            "momentum": float(self.momentum),
            "centered": bool(self.centered),
        }
        averages = self._average_gradients if self.centered else None
        return "rmsprop", options, [self._velocities, averages, self._momentums if self.momentum > 0 else None]


@_saved
class Adam(_Compiled, _Adam):
    """`keras.optimizers.Adam`, stepped by `fastopt.Adam` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.
    Bias corrections are computed in float64; Keras computes them in the variable's type, which is about 1e-5 off in
    float32 at the first steps.

    Examples
    --------
    >>> from fastopt.keras import Adam
    >>> optimizer = Adam(1e-3, amsgrad=True, global_clipnorm=1.0)
    """

    _public = keras.optimizers.Adam

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        return "adam", *_adam_options(self)


@_saved
class AdamW(_Compiled, _AdamW):
    """`keras.optimizers.AdamW`, stepped by `fastopt.AdamW` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.
    Bias corrections as in `Adam`.

    Examples
    --------
    >>> from fastopt.keras import AdamW
    >>> optimizer = AdamW(1e-3, weight_decay=0.01)
    """

    _public = keras.optimizers.AdamW

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        options, state = _adam_options(self)
        return "adamw", {**options, "weight_decay": 0.0}, state


@_saved
class Adamax(_Compiled, _Adamax):
    """`keras.optimizers.Adamax`, stepped by `fastopt.Adamax` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.
    Bias corrections as in `Adam`.

    Examples
    --------
    >>> from fastopt.keras import Adamax
    >>> optimizer = Adamax(2e-3)
    """

    _public = keras.optimizers.Adamax

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        return (
            "adamax",
            {"betas": (float(self.beta_1), float(self.beta_2)), "eps": float(self.epsilon)},
            [self._m, self._u],
        )


@_saved
class Nadam(_Compiled, _Nadam):
    """`keras.optimizers.Nadam`, stepped by `fastopt.NAdam` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.
    Bias corrections as in `Adam`. The product of the momenta is one for all variables, as in Keras.

    Examples
    --------
    >>> from fastopt.keras import Nadam
    >>> optimizer = Nadam(1e-3)
    """

    _public = keras.optimizers.Nadam

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        options = {"betas": (float(self.beta_1), float(self.beta_2)), "eps": float(self.epsilon)}
        return "nadam", options, [self._momentums, self._velocities]


@_saved
class Lion(_Compiled, _Lion):
    """`keras.optimizers.Lion`, stepped by `fastopt.Lion` under ``convention="keras"``.

    Parameters, variables and errors are those of Keras' class. `fastopt.keras` says what is left to Keras' own code.
    Where a gradient is NaN the variable becomes NaN; Keras leaves it as it is on torch, not on numpy.

    Examples
    --------
    >>> from fastopt.keras import Lion
    >>> optimizer = Lion(1e-4, weight_decay=0.01)
    """

    _public = keras.optimizers.Lion

    def _rule(self) -> tuple[str, dict[str, Any], list[Any]]:
        return "lion", {"betas": (float(self.beta_1), float(self.beta_2))}, [self._momentums]
