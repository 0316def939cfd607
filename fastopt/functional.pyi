# Written by tools/write_stubs.py (`make stubs`).

from typing import Literal, SupportsIndex

from fastopt.typing import Arrays, Betas, EpsPlacement, Hyperparameter, Nonfinite, Number, Pair

__all__: list[str]

def sgd_(
    p: Arrays,
    g: Arrays | None,
    momentum_buffer: Arrays | None = None,
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
) -> bool:
    """One step of `fastopt.SGD`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def momentum_(
    p: Arrays,
    g: Arrays | None,
    velocity: Arrays,
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
) -> bool:
    """One step of `fastopt.Momentum`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def nag_(
    p: Arrays,
    g: Arrays | None,
    velocity: Arrays,
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
) -> bool:
    """One step of `fastopt.ASGD`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adagrad_(
    p: Arrays,
    g: Arrays | None,
    sum: Arrays,
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
) -> bool:
    """One step of `fastopt.Adagrad`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adadelta_(
    p: Arrays,
    g: Arrays | None,
    square_avg: Arrays,
    acc_delta: Arrays,
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
) -> bool:
    """One step of `fastopt.AdamW`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adamax_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_inf: Arrays,
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
) -> bool:
    """One step of `fastopt.NAdam`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def radam_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
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
) -> bool:
    """One step of `fastopt.RAdam`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def adabelief_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
    exp_avg_var: Arrays,
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
) -> bool:
    """One step of `fastopt.AdaBelief`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def rprop_(
    p: Arrays,
    g: Arrays | None,
    prev: Arrays,
    step_size: Arrays,
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
) -> bool:
    """One step of `fastopt.Rprop`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """

def lion_(
    p: Arrays,
    g: Arrays | None,
    exp_avg: Arrays,
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
) -> bool:
    """One step of `fastopt.Lion`, in place: see there for the rule and the options.

    Returns True, or False if ``nonfinite="skip"`` skipped it. See the module for the other arguments.
    """
