"""What the tests say of each optimizer by themselves, not read from the library: one row for each class.

A row repeats facts that the class declares, so that a slip in the declaration shows. Everything else that a test needs
of a class is read from the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

# Which values of decoupled_weight_decay there are; the default is the first.
COUPLED, DECOUPLED, EITHER, EITHER_DECOUPLED_FIRST = (False,), (True,), (False, True), (True, False)
ON: dict[str, Any] = {"centered": True, "momentum": 0.5, "amsgrad": True}
"""Options that bring state slots, and values that switch them on."""


@dataclass(frozen=True)
class Offer:
    """An optimizer as one library, or its paper, has it."""

    options: Mapping[str, Any]
    """What one can choose, in the order of the signature, and the defaults. None: there is no default."""
    decay: tuple[bool, ...] = ()
    """How weight decay works; empty: there is none."""
    also: Mapping[str, Any] = field(default_factory=dict)
    """Options of fastopt that one cannot choose there, or that are fastopt's own, and their values."""
    names: Mapping[str, str] = field(default_factory=dict)
    """State that has another meaning than PyTorch's: PyTorch's name -> the name here ("": no such state)."""


@dataclass(frozen=True)
class Fact:
    """An optimizer class."""

    offers: Mapping[str, Offer]
    """By convention. The first is the default."""
    slots: Mapping[tuple[str, ...], str]
    """Options of `ON` that are on -> the state slots, in the order of the arguments of the function."""
    numbers: str = "step"
    """What PyTorch saves beside the slots: one number for each parameter."""
    never_flushed: str = ""
    """Slots that are not flushed here, although their name is in `FLUSHED`."""

    @property
    def default(self) -> str:
        """The default convention."""
        return next(iter(self.offers))

    @property
    def positional(self) -> tuple[str, ...]:
        """The options that are given by position, in their order."""
        return tuple(self.offers[self.default].options)

    def slots_of(self, convention: str | None = None, **options: Any) -> list[str]:
        """The state slots, by PyTorch's names, with these options and the defaults of the convention."""
        group = {**self.offers[convention or self.default].options, **options}
        return self.slots[tuple(key for key in ON if group.get(key))].split()


ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
MOMENTS = {(): "exp_avg exp_avg_sq"}
AMSGRAD = {**MOMENTS, ("amsgrad",): "exp_avg exp_avg_sq max_exp_avg_sq"}
UNCORRECTED, INSIDE = {"eps_placement": "outside_uncorrected"}, {"eps_placement": "inside"}

FACTS: dict[str, Fact] = {
    "SGD": Fact(
        {
            "torch": Offer(
                {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}, COUPLED
            ),
            "keras": Offer(
                {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}, DECOUPLED,
                names={"momentum_buffer": "velocity"},
            ),
            "optax": Offer({"lr": None, "momentum": 0.0, "nesterov": False}),
            "sklearn": Offer({"lr": 0.1, "momentum": 0.9, "nesterov": True}, names={"momentum_buffer": "velocity"}),
            "thinc": Offer({"lr": None, "weight_decay": 0.0}, EITHER_DECOUPLED_FIRST),
        },
        {(): "", ("momentum",): "momentum_buffer"},
        numbers="",
    ),
    "Momentum": Fact(
        {"paper": Offer({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0}, EITHER)}, {("momentum",): "velocity"}
    ),
    "NAG": Fact(
        {"paper": Offer({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0}, EITHER)}, {("momentum",): "velocity"}
    ),
    "ASGD": Fact(
        {"torch": Offer({"lr": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0}, COUPLED)},
        {(): "ax"},
        numbers="step eta mu",
    ),
    "Adagrad": Fact(
        {
            "torch": Offer(
                {"lr": 0.01, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
                COUPLED,
            ),
            "keras": Offer(
                {"lr": 1e-3, "weight_decay": 0.0, "initial_accumulator_value": 0.1, "eps": 1e-7}, DECOUPLED, INSIDE
            ),
            "optax": Offer({"lr": None, "initial_accumulator_value": 0.1, "eps": 1e-7}, also=INSIDE),
            "paper": Offer(
                {"lr": 0.01, "eps": 0.0}, also={"initial_accumulator_value": 0.0, "eps_placement": "outside"}
            ),
        },
        {(): "sum"},
    ),
    "Adadelta": Fact(
        {
            "torch": Offer({"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}, COUPLED),
            "keras": Offer({"lr": 1e-3, "rho": 0.95, "eps": 1e-7, "weight_decay": 0.0}, DECOUPLED),
            "optax": Offer({"lr": None, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}, COUPLED),
            "paper": Offer({"lr": 1.0, "rho": 0.95, "eps": 1e-6}),
        },
        {(): "square_avg acc_delta"},
    ),
    "RMSprop": Fact(
        {
            "torch": Offer(
                {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
                COUPLED,
            ),
            "keras": Offer(
                {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
                DECOUPLED, INSIDE, {"momentum_buffer": "scaled_momentum_buffer"},
            ),
            "optax": Offer(
                {"lr": None, "alpha": 0.9, "eps": 1e-8, "momentum": 0.0, "centered": False, "nesterov": False,
                 "bias_correction": False, "initial_accumulator_value": 0.0},
                (), INSIDE, {"momentum_buffer": "scaled_momentum_buffer"},
            ),
            "paper": Offer({"lr": 1e-3, "alpha": 0.9, "eps": 0.0}, also={"momentum": 0.0, "centered": False}),
        },
        {
            (): "square_avg",
            ("momentum",): "square_avg momentum_buffer",
            ("centered",): "square_avg grad_avg",
            ("centered", "momentum"): "square_avg grad_avg momentum_buffer",
        },
    ),
    "Adam": Fact(
        {
            "torch": Offer({**ADAM, "weight_decay": 0.0, "amsgrad": False}, EITHER),
            "keras": Offer({**ADAM, "eps": 1e-7, "weight_decay": 0.0, "amsgrad": False}, DECOUPLED, UNCORRECTED),
            "optax": Offer(
                {**ADAM, "lr": None, "amsgrad": False, "eps_root": 0.0}, names={"max_exp_avg_sq": "max_exp_avg_sq_hat"}
            ),
            "sklearn": Offer(ADAM, also=UNCORRECTED),
            "thinc": Offer({**ADAM, "weight_decay": 0.0}, EITHER_DECOUPLED_FIRST, UNCORRECTED),
            "paper": Offer({**ADAM, "amsgrad": False}, also={"eps_placement": "outside", "bias_correction": True}),
        },
        AMSGRAD,
    ),
    "AdamW": Fact(
        {
            "torch": Offer({**ADAM, "weight_decay": 0.01, "amsgrad": False}, DECOUPLED),
            "keras": Offer({**ADAM, "eps": 1e-7, "weight_decay": 0.004, "amsgrad": False}, DECOUPLED, UNCORRECTED),
            "optax": Offer({**ADAM, "lr": None, "weight_decay": 1e-4, "eps_root": 0.0}, DECOUPLED),
            "thinc": Offer({**ADAM, "weight_decay": 0.0}, DECOUPLED, UNCORRECTED),
            "paper": Offer({**ADAM, "weight_decay": None}, DECOUPLED),
        },
        AMSGRAD,
    ),
    "Adamax": Fact(
        {
            "torch": Offer({**ADAM, "lr": 2e-3, "weight_decay": 0.0}, COUPLED),
            "keras": Offer(
                {**ADAM, "eps": 1e-7, "weight_decay": 0.0}, DECOUPLED, names={"exp_inf": "exp_inf_without_eps"}
            ),
            "optax": Offer({**ADAM, "lr": None, "weight_decay": 0.0}, DECOUPLED),
            "paper": Offer(
                {"lr": 2e-3, "betas": (0.9, 0.999)}, also={"eps": 0.0}, names={"exp_inf": "exp_inf_without_eps"}
            ),
        },
        {(): "exp_avg exp_inf"},
    ),
    "NAdam": Fact(
        {
            "torch": Offer({**ADAM, "lr": 2e-3, "weight_decay": 0.0, "momentum_decay": 0.004}, EITHER),
            "keras": Offer({**ADAM, "eps": 1e-7, "weight_decay": 0.0}, DECOUPLED, {"momentum_decay": 1.0}),
            "optax": Offer(
                {**ADAM, "lr": None, "weight_decay": 0.0, "eps_root": 0.0}, DECOUPLED, names={"mu_product": ""}
            ),
            "paper": Offer(
                {**ADAM, "lr": 2e-3, "momentum_decay": 0.004}, names={"mu_product": "exp_avg_mu_product"}
            ),
        },
        MOMENTS,
        numbers="step mu_product",
    ),
    "RAdam": Fact(
        {
            "torch": Offer({**ADAM, "weight_decay": 0.0}, EITHER, UNCORRECTED),
            "optax": Offer({**ADAM, "lr": None, "eps_root": 0.0}),
            "thinc": Offer({**ADAM, "weight_decay": 0.0}, EITHER_DECOUPLED_FIRST, UNCORRECTED),
            "paper": Offer({**ADAM, "eps": 0.0}, also={"eps_placement": "outside"}),
        },
        MOMENTS,
    ),
    "AdaBelief": Fact(
        {
            "paper": Offer({"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}, DECOUPLED),
            "optax": Offer({"lr": None, "betas": (0.9, 0.999), "eps": 1e-16, "eps_root": 1e-16}),
        },
        {(): "exp_avg exp_avg_var"},
    ),
    "Rprop": Fact(
        {"torch": Offer({"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)})}, {(): "prev step_size"}
    ),
    "Lion": Fact(
        {
            "paper": Offer({"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}, DECOUPLED),
            "keras": Offer({"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0}, DECOUPLED),
            "optax": Offer({"lr": None, "betas": (0.9, 0.99), "weight_decay": 1e-3}, DECOUPLED),
        },
        {(): "exp_avg"},
        never_flushed="exp_avg",  # however small it is, its sign counts
    ),
}  # fmt: skip

# State below these (float32, float64) becomes 0 at every 64th step. A slot's name says it.
MOMENT, SQUARE, MEAN = (2.0**-96, 2.0**-992), (2.0**-116, 2.0**-1012), (2.0**-58, 2.0**-506)
FLUSHED = {
    **dict.fromkeys("exp_avg momentum_buffer velocity scaled_momentum_buffer".split(), MOMENT),
    **dict.fromkeys("exp_avg_sq exp_inf exp_inf_without_eps square_avg acc_delta".split(), SQUARE),
    "grad_avg": MEAN,
}
KEPT = {"sum", "max_exp_avg_sq", "max_exp_avg_sq_hat", "exp_avg_var", "prev", "step_size", "ax"}
"""Slots that are not flushed: they never fall, or have no use for small numbers."""


def no_row(name: str) -> str:
    """What is wrong where a class has no row."""
    return f"tests/facts.py has no row for {name}"


def fact(cls: type) -> Fact:
    """The row of a class. Without one `test_facts.py` fails, and tests that need it are skipped."""
    if cls.__name__ not in FACTS:
        pytest.skip(no_row(cls.__name__))
    return FACTS[cls.__name__]


def with_convention(convention: str) -> list[str]:
    """The names of the classes that a library has."""
    return [name for name, row in FACTS.items() if convention in row.offers]
