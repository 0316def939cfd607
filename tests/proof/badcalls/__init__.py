"""Bad calls of every kind: `KINDS`, and the check of them, `bad_calls`; by topic in the modules of this package."""

from proof.badcalls import (  # noqa: F401  each fills KINDS
    callbacks,
    gradients,
    norms,
    parameters,
    state,
    state_dicts,
    training,
    whole_step,
)
from proof.badcalls.hyperparameters import EVERY_OPTION, hyperparameter
from proof.badcalls.world import CALLS, KINDS, Kind, bad_calls

__all__ = ["CALLS", "EVERY_OPTION", "KINDS", "Kind", "bad_calls", "hyperparameter"]
