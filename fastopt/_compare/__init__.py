"""Optimizers side by side: what ``fastopt compare`` computes, finds and draws.

``surfaces`` holds functions of one and two variables, ``race`` runs optimizers down them, ``landscapes`` and
``lessons`` say who runs where (``scenes``: all of them by name), ``findings`` measures what the lecture notes claim of
it, and ``pictures`` draws it. ``data`` and ``learning`` do the same with real data, ``curves`` draws that. ``stage``
does a whole scene or data set, and ``page`` puts a whole run into one HTML file. ``style`` is the one place for
colours.

Nothing here is part of the public interface but the command. Needs the extra ``demo``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["portrait"]


def __getattr__(name: str) -> Any:
    # Not imported before it is asked for: what draws needs matplotlib.
    if name == "portrait":
        from .portraits import portrait

        return portrait
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
