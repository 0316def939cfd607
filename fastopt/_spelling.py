"""What somebody who wrote an unknown name probably meant."""

from __future__ import annotations

from collections.abc import Iterable

# What other libraries, and habit, call an option -> what it is called here.
ALIASES = {
    "learning_rate": "lr", "learningrate": "lr", "learn_rate": "lr", "lr_rate": "lr", "lrs": "lr", "rate": "lr",
    "stepsize": "lr", "step_size": "lr", "eta": "lr", "epsilon": "eps", "decay": "weight_decay", "wd": "weight_decay",
    "wdecay": "weight_decay", "l2": "weight_decay", "beta": "betas", "beta1": "betas", "beta2": "betas",
    "beta_1": "betas", "beta_2": "betas", "b1": "betas", "b2": "betas", "mu": "momentum", "use_nesterov": "nesterov",
    "num_threads": "n_threads", "max_threads": "n_threads", "threads": "n_threads", "n_jobs": "n_threads",
    "num_workers": "n_threads", "copy_gradients": "copy_grads",
    "clipvalue": "clip_value", "clip_grad_value": "clip_value", "clip_grad_value_": "clip_value",
    "gradient_clip_value": "clip_value", "clipnorm": "clip_norm_each", "grad_clip": "clip_norm_each",
    "ema": "ema_decay", "use_ema": "ema_decay", "ema_momentum": "ema_decay", "averages": "ema_decay",
    "use_averages": "ema_decay", "zero_grad": "zero_grads", "zero_gradients": "zero_grads",
}  # fmt: skip

# Words for clipping by the norm of all gradients, ours first.
BY_NORM = (
    "clip_norm", "norm_type", "max_norm", "max_grad_norm", "max_gradient_norm", "clip_grad_norm", "clip_grad_norm_",
    "grad_clip_norm", "gradient_clip_norm", "gradient_clipping", "gradient_clip_val", "global_clipnorm",
    "clip_by_global_norm",
)  # fmt: skip
# What to say to them, by where they were given.
WHERE_TO_CLIP = {
    "optimizer": "did you mean 'clip_norm'?",
    "group": "the norm is that of all groups, so clip_norm is an option of the optimizer",
    "function": "did you mean 'clip_norm'?",
    "torch": "did you mean 'clip_norm'?",
}


def meant(name: str, known: Iterable[str], near: float = 0.85) -> str | None:
    """The known name that `name` probably stands for: itself, another library's word for it, or a near miss."""
    from difflib import get_close_matches

    known = list(known)
    plain = name.lower().replace("-", "_")
    for candidate in (name, plain, ALIASES.get(plain)):
        if candidate in known:
            return candidate
    return next(iter(get_close_matches(plain, known, 1, near)), None)


def about_clipping(name: str, where: str) -> str | None:
    """What to say to a word for clipping that is unknown there, a key of `WHERE_TO_CLIP`; None for another word."""
    plain = name.lower()
    return WHERE_TO_CLIP[where] if plain in BY_NORM else None
