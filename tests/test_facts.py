"""tests/facts.py has a complete row for each optimizer: the one place that fails where a new class has none."""

from __future__ import annotations

import pytest
from facts import COUPLED, FACTS, FLUSHED, KEPT, Fact, Offer, no_row

from fastopt import OPTIMIZERS
from fastopt.declare import arrays_of


def test_every_optimizer_has_a_row():
    missing, foreign = OPTIMIZERS.keys() - FACTS.keys(), FACTS.keys() - OPTIMIZERS.keys()
    if missing:
        pytest.fail(no_row(", ".join(sorted(missing))), pytrace=False)
    assert not foreign, "tests/facts.py has rows of what is no optimizer"


@pytest.mark.parametrize("name", [name for name in FACTS if name in OPTIMIZERS])
def test_a_row_has_every_convention_and_every_slot(name):
    cls, row = OPTIMIZERS[name], FACTS[name]
    assert list(row.offers) == list(cls.conventions), f"the conventions of {name} in tests/facts.py"
    slots = {slot for names in row.slots.values() for slot in names.split()}
    assert slots == {slot.name for slot in arrays_of(cls)}, f"the slots of {name} in tests/facts.py"
    for convention, offer in row.offers.items():
        assert dict(cls.conventions[convention].names) == offer.names, f"renamed state of {name} under {convention}"
        assert tuple(cls.conventions[convention].decay) == offer.decay, f"weight decay of {name} under {convention}"
        for slot in slots:
            here = offer.names.get(slot, slot)
            assert here in FLUSHED or here in KEPT, f"tests/facts.py does not say whether {here} is flushed"


def test_no_slot_is_both_flushed_and_kept():
    assert not FLUSHED.keys() & KEPT


def test_a_row_tells_which_slots_options_bring():
    row = Fact(
        {"paper": Offer({"lr": 0.1, "momentum": 0.0}, COUPLED), "torch": Offer({"lr": None, "momentum": 0.9})},
        {(): "a", ("momentum",): "a b"},
    )
    assert (row.default, row.positional) == ("paper", ("lr", "momentum"))
    assert row.slots_of() == ["a"]
    assert row.slots_of("torch") == row.slots_of(momentum=0.1) == ["a", "b"]
