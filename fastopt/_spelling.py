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
    "num_workers": "n_threads", "copy_gradients": "copy_grads", "max_grad_norm": "clip_norm", "max_norm": "clip_norm",
    "global_clipnorm": "clip_norm", "gradient_clipping": "clip_norm", "clip_grad_norm": "clip_norm",
    "clip_by_global_norm": "clip_norm",
}  # fmt: skip


def meant(name: str, known: Iterable[str], near: float = 0.85) -> str | None:
    """The known name that `name` probably stands for: itself, another library's word for it, or a near miss."""
    from difflib import get_close_matches

    known = list(known)
    plain = name.lower().replace("-", "_")
    for candidate in (name, plain, ALIASES.get(plain)):
        if candidate in known:
            return candidate
    return next(iter(get_close_matches(plain, known, 1, near)), None)


def about_clipping(name: str) -> str | None:
    """What to say to a word for clipping of another kind than ours; None for another word."""
    plain = name.lower()
    if ALIASES.get(plain) == "clip_norm":
        return "did you mean 'clip_norm'?"
    if "clip" not in plain and not (plain.startswith("max_") and plain.endswith("norm")):
        return None
    return "fastopt clips gradients by the norm of all of them (clip_norm=), in no other way: do that before step()"
