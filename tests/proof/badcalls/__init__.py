"""Bad calls of every kind: `KINDS`, and the check of them, `bad_calls`; by topic in the modules of this package."""

from proof.badcalls import callbacks, gradients, parameters, state, state_dicts, training  # noqa: F401  each fills KINDS
from proof.badcalls.hyperparameters import EVERY_OPTION, hyperparameter
from proof.badcalls.world import CALLS, KINDS, Kind, bad_calls

__all__ = ["CALLS", "EVERY_OPTION", "KINDS", "Kind", "bad_calls", "hyperparameter"]
