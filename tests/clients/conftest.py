"""What the tests of the adapters share."""

from __future__ import annotations

from collections import Counter

import pytest

from fastopt import functional
from fastopt.optimizer import Optimizer


@pytest.fixture
def steps(monkeypatch) -> Counter[str]:
    """Counts the steps that fastopt takes, by the name of the optimizer: a test that takes none proves nothing."""
    taken: Counter[str] = Counter()

    def count(owner, name_of):
        step = owner.step

        def counted(self, *args, **kwargs):
            done = step(self, *args, **kwargs)
            taken[name_of(self)] += 1
            return done

        monkeypatch.setattr(owner, "step", counted)

    count(functional.Bound, lambda bound: bound._cls.__name__)
    count(Optimizer, lambda optimizer: type(optimizer).__name__)
    return taken
