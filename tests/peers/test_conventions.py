"""Every convention follows the installed library: 60 steps, every option, compared after every step.

The measure is |difference| <= tolerance * (|expected| + 1e-3). In float64 the tolerance is 1e-12 throughout.
In float32 it is what the library's own float32 allows, see below. The gradients do not depend on the
parameters, so that rounding differences add up but do not feed themselves.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from facts import FACTS
from peers import oracles
from peers.oracles import Arrays, Case, Grads

import fastopt
from fastopt.errors import ConventionError

STEPS = 60
FLOAT64 = 1e-12

#: float32: p is rounded at every step after operations in another order, which weighs most where p passes close
#: to zero. torch adds fused multiply-adds and a square root that is one ulp off now and then; sklearn forms Adam's
#: update in float64 and rounds it once. The worst that was seen is 5e-5.
FLOAT32 = 1e-4
#: Keras and optax form 1 - beta ** t, thinc 1 - beta, in float32: 1.3e-5 off for beta = 0.999. Seen: 2e-4.
FLOAT32_POWERS = 5e-4
#: optax forms RAdam's rho = rho_inf - 2 t b2^t / (1 - b2^t) in float32, where nearly all digits cancel. Seen: 3e-3.
FLOAT32_OPTAX_RADAM = 1e-2

# --- the cases -------------------------------------------------------------------------------------------


def grid(convention: str, optimizer: str, **options: Sequence[Any]) -> list[Case]:
    """Every combination of the options that the library accepts."""
    combinations = (dict(zip(options, values, strict=True)) for values in itertools.product(*options.values()))
    return [Case(convention, optimizer, o) for o in combinations if _meaningful(convention, optimizer, o)]


def _meaningful(convention: str, optimizer: str, o: Mapping[str, Any]) -> bool:
    if optimizer == "SGD" and convention == "torch":
        if o["nesterov"] and (o["momentum"] == 0 or o["dampening"] != 0):
            return False  # torch refuses
        if o["dampening"] and o["momentum"] == 0:
            return False  # without effect
    if o.get("decoupled_weight_decay") is not None and o["weight_decay"] == 0:
        return False  # without effect
    if optimizer == "RMSprop" and convention == "optax":
        if o["nesterov"] and o["momentum"] == 0:
            return False  # without effect
        if o["centered"] and o["bias_correction"] and o["initial_accumulator_value"] == 0:
            return False  # at the first step the corrected variance is the rounding error of g * g - g * g
    return True


EPS = (1e-8, 1e-2)  # the second so large that its place shows
WD = (0.0, 0.1)
BETAS = ((0.9, 0.999), (0.8, 0.95))
SHORT = (0.9, 0.6)  # RAdam's rho stays below its threshold, and rho_inf - 4 is zero
BOTH = (False, True)
STYLES = (None, False, True)  # of weight decay: the default, added to the gradient, decoupled

CASES: list[Case] = [
    *grid(
        "torch", "SGD",
        lr=(0.003,), momentum=(0.0, 0.9), dampening=(0.0, 0.3), weight_decay=WD, nesterov=BOTH, maximize=BOTH,
    ),
    *grid(
        "torch", "Adagrad",
        lr=(0.01,), lr_decay=(0.0, 0.01), weight_decay=WD, initial_accumulator_value=(0.0, 0.1),
        eps=(1e-10, 1e-2), maximize=BOTH,
    ),
    *grid("torch", "Adadelta", lr=(0.1,), rho=(0.9, 0.8), eps=(1e-6, 1e-2), weight_decay=WD, maximize=BOTH),
    *grid(
        "torch", "RMSprop",
        lr=(0.003,), alpha=(0.95,), eps=EPS, weight_decay=WD, momentum=(0.0, 0.8), centered=BOTH,
        maximize=BOTH,
    ),
    *grid(
        "torch", "Adam",
        lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, amsgrad=BOTH, decoupled_weight_decay=STYLES,
        maximize=BOTH,
    ),
    *grid("torch", "AdamW", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, amsgrad=BOTH, maximize=BOTH),
    *grid("torch", "Adamax", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, maximize=BOTH),
    *grid(
        "torch", "NAdam",
        lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, momentum_decay=(0.004, 0.5),
        decoupled_weight_decay=STYLES, maximize=BOTH,
    ),
    *grid(
        "torch", "RAdam",
        lr=(0.003,), betas=(SHORT, *BETAS), eps=EPS, weight_decay=WD, decoupled_weight_decay=STYLES,
        maximize=BOTH,
    ),
    *grid("keras", "SGD", lr=(0.003,), momentum=(0.0, 0.9), nesterov=BOTH, weight_decay=WD, maximize=BOTH),
    *grid(
        "keras", "Adagrad",
        lr=(0.01,), initial_accumulator_value=(0.1, 0.3), eps=(1e-7, 1e-2), weight_decay=WD,
    ),
    *grid("keras", "Adadelta", lr=(0.1,), rho=(0.95, 0.8), eps=(1e-7, 1e-2), weight_decay=WD),
    *grid(
        "keras", "RMSprop",
        lr=(0.003,), alpha=(0.95,), eps=EPS, weight_decay=WD, momentum=(0.0, 0.8), centered=BOTH,
    ),
    *grid("keras", "Adam", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, amsgrad=BOTH),
    *grid("keras", "AdamW", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, amsgrad=BOTH),
    *grid("keras", "Adamax", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD),
    *grid("keras", "NAdam", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD),
    *grid("keras", "Lion", lr=(0.003,), betas=((0.9, 0.99), (0.8, 0.95)), weight_decay=WD),
    *grid("optax", "SGD", lr=(0.003,), momentum=(0.0, 0.9), nesterov=BOTH, maximize=BOTH),
    *grid("optax", "Adagrad", lr=(0.01,), initial_accumulator_value=(0.0, 0.1), eps=(1e-7, 1e-2)),
    *grid("optax", "Adadelta", lr=(0.1,), rho=(0.9, 0.8), eps=(1e-6, 1e-2), weight_decay=WD),
    *grid(
        "optax", "RMSprop",
        lr=(0.003,), alpha=(0.95,), eps=(1e-2,), momentum=(0.0, 0.8), centered=BOTH, nesterov=BOTH,
        eps_placement=("inside", "outside"), bias_correction=BOTH, initial_accumulator_value=(0.0, 0.1),
    ),
    *grid("optax", "Adam", lr=(0.003,), betas=BETAS, eps=EPS, eps_root=(0.0, 1e-3)),
    *grid(
        "optax", "Adam",
        lr=(0.003,), betas=BETAS, eps=EPS, eps_root=(0.0, 1e-3), amsgrad=(True,), bias_correction=BOTH,
    ),
    *grid("optax", "AdamW", lr=(0.003,), betas=BETAS, eps=EPS, eps_root=(0.0, 1e-3), weight_decay=WD),
    *grid("optax", "Adamax", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD),
    *grid("optax", "NAdam", lr=(0.003,), betas=BETAS, eps=EPS, eps_root=(0.0, 1e-3), weight_decay=WD),
    *grid("optax", "RAdam", lr=(0.003,), betas=(SHORT, *BETAS), eps=EPS, eps_root=(0.0, 1e-3)),
    *grid("optax", "Lion", lr=(0.003,), betas=((0.9, 0.99), (0.8, 0.95)), weight_decay=WD),
    *grid("sklearn", "SGD", lr=(0.003,), momentum=(0.0, 0.9), nesterov=BOTH, maximize=BOTH),
    *grid("sklearn", "Adam", lr=(0.003,), betas=BETAS, eps=EPS),
    *grid("thinc", "SGD", lr=(0.003,), weight_decay=WD, decoupled_weight_decay=STYLES, maximize=BOTH),
    *grid("thinc", "Adam", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD, decoupled_weight_decay=STYLES),
    *grid("thinc", "AdamW", lr=(0.003,), betas=BETAS, eps=EPS, weight_decay=WD),
    *grid(
        "thinc", "RAdam",
        lr=(0.003,), betas=(SHORT, *BETAS), eps=EPS, weight_decay=WD, decoupled_weight_decay=STYLES,
    ),
]  # fmt: skip
CASES = [Case(c.convention, c.optimizer, {k: v for k, v in c.options.items() if v is not None}) for c in CASES]

EXISTING = [(convention, name) for convention, names in oracles.CONSTRUCTORS.items() for name in names]
#: Values of the options of optimizers that are not listed above: those have every combination of what is offered.
USUAL = {
    "lr": (0.003,), "betas": BETAS, "eps": EPS, "eps_root": (0.0, 1e-3), "weight_decay": WD, "momentum": (0.0, 0.9),
    "alpha": (0.95,), "rho": (0.9, 0.8), "nesterov": BOTH, "centered": BOTH, "amsgrad": BOTH,
    "etas": ((0.5, 1.2), (0.4, 1.5)), "step_sizes": ((1e-6, 50.0), (1e-3, 0.02)),
    "lambd": (1e-4, 0.1), "t0": (1e6, 10.0),
}  # fmt: skip


def usual(convention: str, name: str) -> list[Case]:
    """The cases of an optimizer that is not listed; none where it has an option that is not in `USUAL`."""
    options = FACTS[name].offers[convention].options if name in FACTS else {"": None}
    more = {"maximize": BOTH} if convention == "torch" else {}
    known = options.keys() <= USUAL.keys()
    return grid(convention, name, **{key: USUAL[key] for key in options}, **more) if known else []


for pair in EXISTING:
    if pair not in {(case.convention, case.optimizer) for case in CASES}:
        CASES += usual(*pair)

#: One case per optimizer and convention, with as many options at work as go together.
RICH = list({(c.convention, c.optimizer): c for c in CASES}.values())


# --- tools -----------------------------------------------------------------------------------------------


def data(dtype: type, steps: int = STEPS) -> tuple[Arrays, list[Arrays]]:
    """Parameters and gradients of many magnitudes; some gradients are zero.

    One array starts at zero and two close to it, so that the way itself is compared; the fourth starts so far
    away that it never crosses zero, where rounding would be all that is left.
    """
    rng = np.random.default_rng(20240229)
    params = [
        np.zeros((8, 16)),
        0.05 * rng.normal(size=37),  # no multiple of 16: vector loops have a tail here
        0.05 * rng.normal(size=1),
        rng.choice([-1.0, 1.0], size=64) * (1.0 + rng.random(64)),
    ]
    scales = [10.0 ** rng.uniform(-2.0, 0.3, size=p.shape) for p in params]
    grads = [
        [(s * rng.normal(size=s.shape) * (rng.random(s.shape) > 0.03)).astype(dtype) for s in scales]
        for _ in range(steps)
    ]
    return [p.astype(dtype) for p in params], grads


def need(convention: str) -> None:
    """Skip where the library is not installed."""
    for module in oracles.MODULES[convention]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def build(case: Case, params: Any, **more: Any) -> Any:
    """The fastopt optimizer of a case."""
    return getattr(fastopt, case.optimizer)(params, **{**case.options, **more}, convention=case.convention)


def tolerance(case: Case, dtype: type) -> float:
    if dtype is np.float64:
        return FLOAT64
    if (case.convention, case.optimizer) == ("optax", "RAdam"):
        return FLOAT32_OPTAX_RADAM
    small = case.options.get("betas", (0, 0))[1] >= 0.999
    return FLOAT32_POWERS if small and case.convention in ("keras", "optax", "thinc") else FLOAT32


def check(got: np.ndarray, want: np.ndarray, tol: float, where: str) -> None:
    """The measure of this module, with the worst element in the message."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, where
    excess = np.abs(got - want) / (np.abs(want) + 1e-3)
    worst = float(np.max(excess, initial=0.0))
    assert worst <= tol, f"{where}: {worst:.2e} > {tol:.0e}"  # a NaN fails, too


def check_path(optimizer: Any, params: Arrays, grads: Grads, path: oracles.Path, tol: float) -> None:
    """Step, and compare the parameters after every step; in float64 torch's state, too.

    (In float32 a moment near zero that comes from gradients near one has no digits to compare.)
    """
    state = path.state if path.state and tol == FLOAT64 else [[]] * len(grads)
    for k, step in enumerate(grads):
        optimizer.step([None if g is None else g.copy() for g in step])
        for i, want in enumerate(path.params[k]):
            check(params[i], want, tol, f"step {k + 1}, parameter {i}")
        for i, slots in enumerate(state[k]):
            for name, want in slots.items():
                check(optimizer.state[i][name], want, tol, f"step {k + 1}, parameter {i}, {name}")


# --- the tests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_follows_the_library(case: Case, dtype: type) -> None:
    need(case.convention)
    if case.convention == "thinc" and dtype is np.float64 and case.optimizer != "SGD":
        pytest.skip("thinc keeps its moments in float32")
    start, grads = data(dtype)
    path = oracles.path(case, start, grads)
    params = [p.copy() for p in start]
    check_path(build(case, params), params, grads, path, tolerance(case, dtype))


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.convention == "torch" and c.optimizer in ("SGD", "Adagrad", "Adam", "AdamW")],
    ids=str,
)
def test_follows_torch_fused(case: Case, dtype: type) -> None:
    need("torch")
    start, grads = data(dtype)
    path = oracles.path(case, start, grads, fused=True)
    params = [p.copy() for p in start]
    check_path(build(case, params), params, grads, path, tolerance(case, dtype))


@pytest.mark.parametrize("case", RICH, ids=str)
def test_follows_a_learning_rate_that_changes(case: Case) -> None:
    """Tells conventions apart that have the learning rate inside the velocity from those that do not."""
    need(case.convention)
    dtype = np.float32 if case.convention == "thinc" else np.float64
    start, grads = data(dtype)
    lrs = [case.options["lr"] * (1.0 - 0.01 * k) for k in range(STEPS)]
    path = oracles.path(case, start, grads, lrs)
    tol = tolerance(case, dtype)
    params = [p.copy() for p in start]
    check_path(build(case, params, lr=lambda k: lrs[k]), params, grads, path, tol)
    params = [p.copy() for p in start]
    edited = build(case, params)
    for k, step in enumerate(grads):  # and the same by hand
        edited.param_groups[0]["lr"] = lrs[k]
        edited.step(step)
    for i, want in enumerate(path.params[-1]):
        check(params[i], want, tol, f"edited, parameter {i}")


def test_every_convention_of_every_optimizer_is_compared():
    compared = {(case.convention, case.optimizer) for case in CASES}
    for name, cls in fastopt.OPTIMIZERS.items():
        for convention in set(cls.conventions) - {"paper"}:
            where = f"{name} under {convention}"
            assert (convention, name) in EXISTING, f"tests/peers/oracles.py has no constructor for {where}"
            assert (convention, name) in compared, f"tests/peers/test_conventions.py has no case of {where}"


def test_an_optimizer_without_cases_of_its_own_gets_those_of_its_row():
    found = usual("optax", "Adam")
    assert len(found) == 2 * 2 * 2 * 2 and {case.options["eps_root"] for case in found} == {0.0, 1e-3}
    assert len(usual("torch", "AdamW")) == 2 * 2 * 2 * 2 * 2
    assert usual("torch", "SGD") == []  # dampening has no usual values


@pytest.mark.parametrize(("convention", "name"), EXISTING, ids="-".join)
def test_defaults_are_the_librarys(convention: str, name: str) -> None:
    need(convention)
    wanted = oracles.defaults(convention, name)
    given = {} if "lr" in wanted else {"lr": 0.1}  # where the library requires it
    (group,) = getattr(fastopt, name)([np.zeros(3)], convention=convention, **given).param_groups
    assert {key: group[key] for key in wanted} == wanted


@pytest.mark.parametrize("convention", oracles.CONSTRUCTORS)
@pytest.mark.parametrize("name", FACTS)
def test_an_optimizer_that_the_library_lacks_is_an_error(convention: str, name: str) -> None:
    if (convention, name) in EXISTING or convention in fastopt.OPTIMIZERS[name].conventions:
        pytest.skip("exists")  # in both: test_every_convention_of_every_optimizer_is_compared
    with pytest.raises(ConventionError) as caught:
        getattr(fastopt, name)([np.zeros(3)], lr=0.1, convention=convention)
    for other, existing in EXISTING:
        assert existing != name or other in str(caught.value), f"{other} is not listed"


@pytest.mark.parametrize(
    ("convention", "name", "options"),
    [
        ("torch", "SGD", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        ("torch", "Adamax", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        ("torch", "RMSprop", {"momentum": 0.9, "nesterov": True}),
        ("torch", "RMSprop", {"bias_correction": True}),
        ("torch", "RMSprop", {"initial_accumulator_value": 0.1}),
        ("torch", "Adam", {"eps_root": 1e-3}),
        ("torch", "AdamW", {"decoupled_weight_decay": False}),
        ("keras", "SGD", {"momentum": 0.9, "dampening": 0.1}),
        ("keras", "Adagrad", {"lr_decay": 0.1}),
        ("keras", "RMSprop", {"momentum": 0.9, "nesterov": True}),
        ("keras", "Adam", {"weight_decay": 0.1, "decoupled_weight_decay": False}),
        ("keras", "Adam", {"eps_root": 1e-3}),
        ("keras", "NAdam", {"momentum_decay": 0.01}),
        ("optax", "SGD", {"weight_decay": 0.1}),
        ("optax", "SGD", {"momentum": 0.9, "dampening": 0.1}),
        ("optax", "Adagrad", {"weight_decay": 0.1}),
        ("optax", "Adagrad", {"lr_decay": 0.1}),
        ("optax", "Adadelta", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        ("optax", "RMSprop", {"weight_decay": 0.1}),
        ("optax", "Adam", {"weight_decay": 0.1}),
        ("optax", "AdamW", {"amsgrad": True}),
        ("optax", "NAdam", {"momentum_decay": 0.01}),
        ("optax", "RAdam", {"weight_decay": 0.1}),
        ("sklearn", "SGD", {"weight_decay": 0.1}),
        ("sklearn", "SGD", {"dampening": 0.1}),
        ("sklearn", "Adam", {"weight_decay": 0.1}),
        ("sklearn", "Adam", {"amsgrad": True}),
        ("thinc", "SGD", {"momentum": 0.9}),
        ("thinc", "Adam", {"amsgrad": True}),
        ("thinc", "Adam", {"eps_root": 1e-3}),
    ],
)
def test_an_option_that_the_library_lacks_is_an_error(convention: str, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConventionError):
        getattr(fastopt, name)([np.zeros(3)], lr=0.1, convention=convention, **options)


@pytest.mark.parametrize(
    ("convention", "name", "options"),
    [
        ("torch", "Adagrad", {"eps_placement": "inside"}),
        ("torch", "Adam", {"bias_correction": False}),
        ("torch", "Adam", {"eps_placement": "inside"}),
        ("keras", "RMSprop", {"eps_placement": "outside"}),
        ("optax", "Adam", {"bias_correction": False}),
    ],
)
def test_the_forms_of_the_lecture_notes_can_be_said_under_every_convention(
    convention: str, name: str, options: dict[str, Any]
) -> None:
    # The notes' forms move eps, or leave out the correction, of the default formula: these options are fastopt's own.
    opt = getattr(fastopt, name)([np.zeros(3)], lr=0.1, convention=convention, **options)
    assert {key: opt.param_groups[0][key] for key in options} == options


def _with_gaps(grads: list[Arrays]) -> list[list[np.ndarray | None]]:
    """Every parameter misses some steps, and the last one misses the first forty."""
    return [
        [None if (k + i) % (3 + i) == 0 or (i == 3 and k < 40) else g for i, g in enumerate(step)]
        for k, step in enumerate(grads)
    ]


@pytest.mark.parametrize("case", [c for c in RICH if c.convention in ("torch", "thinc")], ids=str)
def test_a_parameter_without_gradient_is_skipped(case: Case) -> None:
    """Its count stands still, too. Keras counts for all parameters at once; optax and sklearn cannot skip."""
    need(case.convention)
    dtype = np.float32 if case.convention == "thinc" else np.float64
    start, grads = data(dtype)
    gaps = _with_gaps(grads)
    path = oracles.path(case, start, gaps)
    params = [p.copy() for p in start]
    check_path(build(case, params), params, gaps, path, tolerance(case, dtype))


def _torch_groups(case: Case, params: Sequence[Any]) -> list[dict[str, Any]]:
    """Three groups that differ in every hyperparameter of the case that can differ."""
    other = {"lr": 0.001, "weight_decay": 0.02, "eps": 1e-3, "momentum": 0.5, "betas": (0.7, 0.9), "rho": 0.7}
    changed = {key: value for key, value in other.items() if key in case.options}
    return [
        {"params": [params[0]]},
        {"params": [params[1], params[2]], **changed},
        {"params": [params[3]], "lr": 0.005},
    ]


TORCH = [c for c in RICH if c.convention == "torch"]


@pytest.mark.parametrize("case", TORCH, ids=str)
def test_groups_have_their_own_hyperparameters(case: Case) -> None:
    need("torch")
    start, grads = data(np.float64)
    tensors = oracles.torch_params(start)
    theirs = oracles.constructor("torch", case.optimizer)(_torch_groups(case, tensors), **case.options)
    params = [p.copy() for p in start]
    ours = build(case, _torch_groups(case, params))
    for k, step in enumerate(grads):
        oracles.torch_step(theirs, tensors, step)
        ours.step(step)
        for i, want in enumerate(oracles.torch_arrays(tensors)):
            check(params[i], want, FLOAT64, f"step {k + 1}, parameter {i}")


@pytest.mark.parametrize("case", TORCH, ids=str)
def test_a_group_added_on_the_way_starts_at_step_one(case: Case) -> None:
    need("torch")
    start, grads = data(np.float64)
    tensors, params = oracles.torch_params(start), [p.copy() for p in start]
    theirs = oracles.constructor("torch", case.optimizer)(tensors[:3], **case.options)
    ours = build(case, params[:3])
    for k, step in enumerate(grads):
        if k == 20:
            theirs.add_param_group({"params": [tensors[3]], "lr": 0.005})
            ours.add_param_group({"params": [params[3]], "lr": 0.005})
        count = 3 if k < 20 else 4
        oracles.torch_step(theirs, tensors[:count], step[:count])
        ours.step(step[:count])
        for i, want in enumerate(oracles.torch_arrays(tensors)):
            check(params[i], want, FLOAT64, f"step {k + 1}, parameter {i}")


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", TORCH, ids=str)
def test_a_torch_checkpoint_continues_the_same_path_and_back(case: Case, dtype: type) -> None:
    """Torch for 20 steps, fastopt for 20, torch for 20, against torch for 60.

    The optimizers that load are built with the defaults: hyperparameters come from the checkpoint. The last
    parameter has no gradient before step 41, so that it has no state in the first checkpoint.
    """
    need("torch")
    start, grads = data(dtype)
    gaps = _with_gaps(grads)
    tensors = oracles.torch_params(start)
    make = oracles.constructor("torch", case.optimizer)
    whole = make(_torch_groups(case, tensors), **case.options)
    tol = tolerance(case, dtype)
    for step in gaps[:20]:
        oracles.torch_step(whole, tensors, step)

    params = oracles.torch_arrays(tensors)
    ours = getattr(fastopt, case.optimizer)(_bare_groups(params), convention="torch")
    saved = oracles.to_numpy(whole.state_dict())
    saved["param_groups"][0]["initial_lr"] = 0.5  # as torch's schedulers leave behind
    ours.load_state_dict(saved)
    for k, step in enumerate(gaps[20:40], 20):
        oracles.torch_step(whole, tensors, step)
        ours.step(step)
        for i, want in enumerate(oracles.torch_arrays(tensors)):
            check(params[i], want, tol, f"fastopt at step {k + 1}, parameter {i}")

    others = oracles.torch_params(params)
    back = make(_bare_groups(others))
    back.load_state_dict(oracles.to_torch(ours.state_dict()))
    for k, step in enumerate(gaps[40:], 40):
        oracles.torch_step(whole, tensors, step)
        oracles.torch_step(back, others, step)
        for i, want in enumerate(oracles.torch_arrays(tensors)):
            check(oracles.torch_arrays(others)[i], want, tol, f"back in torch at step {k + 1}, parameter {i}")


def _bare_groups(params: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"params": [params[0]]}, {"params": [params[1], params[2]]}, {"params": [params[3]]}]


def test_momentum_is_keras_sgd_with_momentum() -> None:
    """`Momentum` has no convention of a library's own, but Keras' SGD is the same rule."""
    need("keras")
    start, grads = data(np.float64)
    lrs = [0.003 * (1.0 - 0.01 * k) for k in range(STEPS)]
    path = oracles.path(Case("keras", "SGD", {"lr": 0.003, "momentum": 0.9}), start, grads, lrs)
    params = [p.copy() for p in start]
    ours = fastopt.Momentum(params, lr=lambda k: lrs[k], momentum=0.9)
    check_path(ours, params, grads, path, FLOAT64)


def test_nag_at_the_lookahead_is_keras_nesterov() -> None:
    """Keras stores the lookahead point y = w + momentum * v; with the same gradients there, y agrees."""
    need("keras")
    start, grads = data(np.float64)
    path = oracles.path(Case("keras", "SGD", {"lr": 0.003, "momentum": 0.9, "nesterov": True}), start, grads)
    params = [p.copy() for p in start]
    ours = fastopt.NAG(params, lr=0.003, momentum=0.9)
    for k, step in enumerate(grads):
        ours.step(step)
        for i, got in enumerate(ours.lookahead()):
            check(got, path.params[k][i], FLOAT64, f"step {k + 1}, parameter {i}")
