# Written by tools/write_stubs.py (`make stubs`).

from collections.abc import Callable, Sequence
from typing import Any, Literal, SupportsIndex

from fastopt.optimizer import Optimizer
from fastopt.typing import Arrays, Betas, EpsPlacement, Hyperparameter, Nonfinite, Number, Pair

__all__: list[str]

class Bound:
    """A rule bound to arrays that the caller owns: what `bind` returns.

    Every step compares the arrays with those of the last one. What is the same needs no more checks. Give the learning
    rate of each step as a number: if an option is a schedule, a list or an array, every step checks everything anew,
    which takes longer. The object keeps its arrays alive, and has no state of its own: the caller counts steps. Two
    threads may not step the same arrays at the same time.
    """

    def step(
        self,
        g: Arrays | None,
        *,
        step: SupportsIndex,
        **options: Any,
    ) -> bool:
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

    def rebind(
        self,
        p: Arrays,
    ) -> None:
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

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; None if that did not clip."""

def bind(
    optimizer: str | type[Optimizer],
    p: Arrays,
    state: Sequence[Arrays | None] = (),
    *,
    ema: Arrays | None = None,
    convention: str | None = None,
    **options: Any,
) -> Bound:
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

def make_state(
    optimizer: str | type[Optimizer],
    p: Arrays,
    *,
    convention: str | None = None,
    **options: Any,
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

def sgd_(
    p: Arrays,
    g: Arrays | None,
    momentum_buffer: Arrays | None = None,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    dampening: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    nesterov: bool | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "sklearn", "thinc"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.SGD`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def momentum_(
    p: Arrays,
    g: Arrays | None,
    velocity: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Momentum`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def nag_(
    p: Arrays,
    g: Arrays | None,
    velocity: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.NAG`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def asgd_(
    p: Arrays,
    g: Arrays | None,
    ax: Arrays,
    eta: Arrays,
    mu: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    lambd: Number | None = None,
    alpha: Number | None = None,
    t0: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.ASGD`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adagrad_(
    p: Arrays,
    g: Arrays | None,
    sum: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    lr_decay: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    eps: Number | None = None,
    eps_placement: Literal["outside", "inside"] | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Adagrad`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adadelta_(
    p: Arrays,
    g: Arrays | None,
    square_avg: Arrays,
    acc_delta: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    rho: Number | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Adadelta`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def rmsprop_(
    p: Arrays,
    g: Arrays | None,
    square_avg: Arrays,
    grad_avg: Arrays | None = None,
    momentum_buffer: Arrays | None = None,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    alpha: Number | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    centered: bool | None = None,
    nesterov: bool | None = None,
    eps_placement: Literal["outside", "inside"] | None = None,
    bias_correction: bool | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.RMSprop`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adam_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    max_exp_avg_sq: Arrays | None = None,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    amsgrad: bool | None = None,
    eps_placement: EpsPlacement | None = None,
    bias_correction: bool | None = None,
    eps_root: Number | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "sklearn", "thinc", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Adam`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adamw_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    max_exp_avg_sq: Arrays | None = None,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    amsgrad: bool | None = None,
    eps_placement: EpsPlacement | None = None,
    bias_correction: bool | None = None,
    eps_root: Number | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "thinc", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.AdamW`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adamax_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_inf: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    bias_correction: bool | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Adamax`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def nadam_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    mu_product: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    momentum_decay: Number | None = None,
    eps_placement: EpsPlacement | None = None,
    eps_root: Number | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "keras", "optax", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.NAdam`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def radam_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    eps_placement: EpsPlacement | None = None,
    eps_root: Number | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch", "optax", "thinc", "paper"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.RAdam`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adabelief_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_var: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    eps: Number | None = None,
    weight_decay: Hyperparameter | None = None,
    eps_root: Number | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["paper", "optax"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.AdaBelief`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def rprop_(
    p: Arrays,
    g: Arrays | None,
    prev: Arrays,
    step_size: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    etas: Pair | None = None,
    step_sizes: Pair | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["torch"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Rprop`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def lion_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    ema: Arrays | None = None,
    *,
    step: SupportsIndex,
    lr: Hyperparameter | None = None,
    betas: Betas | None = None,
    weight_decay: Hyperparameter | None = None,
    maximize: bool = False,
    decoupled_weight_decay: bool | None = None,
    flush_subnormal: bool = True,
    convention: Literal["paper", "keras", "optax"] | None = None,
    n_threads: int | None = None,
    nonfinite: Nonfinite = "propagate",
    copy_grads: bool = False,
    clip_norm: float | Callable[[int], float] | None = None,
    norm_type: float = 2,
    clip_value: Hyperparameter | None = None,
    clip_norm_each: Hyperparameter | None = None,
    ema_decay: Hyperparameter | None = None,
    ema_start: int | None = None,
    zero_grads: bool | None = None,
    grad_scale: float | None = None,
) -> bool:
    """One step of `fastopt.Lion`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """
