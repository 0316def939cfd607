"""`fastopt.torch` beside its twins in `torch.optim`: the same path, state and errors, wherever PyTorch code takes them.

What there is to walk comes from torch itself: `optim_db`, the table of PyTorch's own optimizer tests, has every class
with the options that matter and the calls that must fail; `torch.optim.lr_scheduler` has the schedulers.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# A module inside: "torch" alone could be the folder that this file is in.
pytest.importorskip("torch.optim", reason="PyTorch is not installed")
pytest.importorskip("expecttest", reason="torch.testing._internal, which has optim_db, needs expecttest")

import torch
from facts import with_convention
from support import NUMBER_NAMES, numbers_given
from torch.nn import Parameter
from torch.optim import lr_scheduler, swa_utils
from torch.optim import optimizer as torch_optimizer
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import fastopt.torch

NAMES = tuple(with_convention("torch"))
DB = {info.name: info for info in optim_db if info.name in NAMES}
# Momentum from the start: PyTorch's RMSprop makes its buffer at the first step or never.
WITH_MOMENTUM: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.5}}


def decayed(name: str) -> dict[str, float]:
    """Weight decay, where PyTorch's class has it."""
    return {"weight_decay": 0.1} if "weight_decay" in inspect.signature(getattr(torch.optim, name)).parameters else {}


every = pytest.mark.parametrize("name", NAMES)

# Both compute in the same order from the same scalars. What remains: torch's loops contract to fused multiply-adds and
# its square root is now and then off by an ulp. In float32 that is 6e-8, of whatever an element was before it came near
# zero, and a hundred steps add to it: hence the floor.
FLOAT64 = {"tolerance": 1e-12, "floor": 1e-3}
FLOAT32 = {"tolerance": 5e-6, "floor": 1.0}

Side = tuple[Any, list[Parameter]]


def both(name: str, options: dict[str, Any] | None = None, theirs: dict[str, Any] | None = None,
         dtype: torch.dtype = torch.float64) -> tuple[Side, Side]:  # fmt: skip
    """The twin and ours, with the same options (or the twin with its own), each over its own, equal parameters."""
    sides = []
    for module, given in ((torch.optim, options if theirs is None else theirs), (fastopt.torch, options)):
        params = parameters(dtype)
        sides.append((getattr(module, name)(params, **copy.deepcopy(given or {})), params))
    return sides[0], sides[1]


# --- Problems


def draw(*shape: int) -> torch.Tensor:
    """Numbers of either sign that stay away from zero, so that relative errors mean something."""
    rng = torch.Generator().manual_seed(sum(shape))
    size = torch.rand(shape, generator=rng, dtype=torch.float64) * 1.5 + 0.5
    return torch.where(torch.rand(shape, generator=rng) < 0.5, -size, size)


def parameters(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    """One of each kind: long, 0-d, empty, and laid out in other orders of the dimensions."""
    tensors = [
        draw(1030),
        draw(),
        draw(0),
        draw(3, 0, 2),
        draw(6, 5),
        draw(5, 7).t(),
        draw(2, 3, 4, 5).to(memory_format=torch.channels_last),
        draw(2, 3, 4).permute(2, 0, 1),
    ]
    return [Parameter(tensor.to(dtype)) for tensor in tensors]


def noise(param: torch.Tensor, step: int, place: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1000 * step + place)
    return torch.randn(param.shape, generator=rng, dtype=torch.float64).to(param.dtype)


def set_gradients(params: Iterable[torch.Tensor], step: int) -> None:
    """Gradients of a noisy bowl: in C order at odd steps, laid out as their parameters at even ones."""
    for place, param in enumerate(params):
        grad = 0.1 * param.detach() + noise(param, step, place)
        param.grad = grad.contiguous() if step % 2 else torch.empty_like(param, requires_grad=False).copy_(grad)


def evaluation(
    opt: Any, params: list[Parameter], step: int, scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss
) -> Callable[[], torch.Tensor]:
    """The closure of one step: the same bowl, through autograd."""

    def evaluate() -> torch.Tensor:
        opt.zero_grad()
        loss = sum((0.05 * p.square() + p * noise(p, step, k)).sum() for k, p in enumerate(params) if p.requires_grad)
        scale(loss).backward()
        return loss

    return evaluate


def advance(side: Side, steps: Iterable[int], closure: bool = False) -> list[float]:
    """Step, with gradients at hand, or with a closure that makes them and returns the loss."""
    opt, params = side
    losses = []
    for step in steps:
        if closure:
            losses.append(opt.step(evaluation(opt, params, step)).item())
        else:
            set_gradients(params, step)
            assert opt.step() is None
    return losses


# --- Comparisons


def assert_near(
    got: torch.Tensor, want: torch.Tensor, what: str, tolerance: float = 1e-12, floor: float = 1e-3
) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype, what
    got, want = got.detach(), want.detach()
    assert want.isfinite().all(), f"{what}: nothing to compare with"
    excess = (got - want).abs() / (tolerance * (want.abs() + floor))
    # Said so that NaN fails.
    assert (excess <= 1).all(), f"{what}: off by {excess.max():.3g} times the tolerance"


def assert_alike(theirs: Side, mine: Side, tolerance: float = 1e-12, floor: float = 1e-3) -> None:
    """The same parameters; and the same state, in type and shape, laid out as its parameter is."""
    (their_opt, their_params), (my_opt, my_params) = theirs, mine
    for k, (p, q) in enumerate(zip(their_params, my_params, strict=True)):
        assert_near(q, p, f"parameter {k}", tolerance, floor)
        assert (p in their_opt.state) == (q in my_opt.state), f"state of parameter {k}"
        if p not in their_opt.state:
            continue
        want, got = their_opt.state[p], my_opt.state[q]
        assert set(got) == set(want), f"state of parameter {k}"
        for key, value in want.items():
            what = f"state {key!r} of parameter {k}"
            assert isinstance(got[key], torch.Tensor), what
            assert value.dim() == 0 or got[key].stride() == q.stride(), what
            if key in NUMBER_NAMES and key != "step" and value.dtype == torch.float32:
                assert_near(got[key], value, what, **FLOAT32)
            else:
                assert_near(got[key], value, what, tolerance, floor)
    assert layout(my_opt.state_dict()) == layout(their_opt.state_dict())


def layout(saved: Any) -> Any:
    """A state dict with types and shapes in the place of values."""
    if isinstance(saved, torch.Tensor):
        return saved.dtype, tuple(saved.shape), saved.device.type
    if isinstance(saved, dict):
        return {key: layout(value) for key, value in saved.items()}
    return [layout(value) for value in saved] if isinstance(saved, list) else type(saved)


def bits(side: Side) -> list[bytes]:
    """Everything that a step changes, as bytes."""
    opt, params = side
    tensors = [*params, *(t for p in params if p in opt.state for _, t in sorted(opt.state[p].items()))]
    return [tensor.detach().contiguous().numpy().tobytes() for tensor in tensors]


def assert_one_path(theirs: Side, mine: Side, *, start: int = 0, steps: int = 5) -> None:
    """Step both, and compare."""
    for side in (theirs, mine):
        advance(side, range(start, start + steps))
    assert_alike(theirs, mine)


# --- The options that PyTorch tests


def in_float64(value: Any) -> Any:
    """Hyperparameters as float64 tensors: PyTorch computes in the type that they have, fastopt in double always."""
    if isinstance(value, torch.Tensor):
        return value.double()
    return tuple(map(in_float64, value)) if isinstance(value, tuple) else value


def db_options(name: str, k: int) -> dict[str, Any]:
    """Options of one entry, with fresh tensors. Asked for a GPU, the table has inputs with ``capturable=True``, too."""
    return DB[name].optim_inputs_func("cuda")[k].kwargs


def without(options: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in keys}


entries = pytest.mark.parametrize(
    ("name", "k"),
    [
        pytest.param(name, k, id=f"{name}-{entry.desc}")
        for name, info in DB.items()
        for k, entry in enumerate(info.optim_inputs_func("cuda"))
    ],
)


def test_every_class_with_a_twin_is_walked():
    assert set(DB) == set(NAMES) == {name for name in fastopt.torch.__all__ if hasattr(torch.optim, name)}


@pytest.mark.parametrize("closure", [False, True], ids=["gradients", "closure"])
@entries
def test_float64_takes_the_path_of_the_twin(name, k, closure):
    options = {key: in_float64(value) for key, value in db_options(name, k).items()}
    # The twin refuses capturable=True on the CPU; ours accepts it, and it changes nothing.
    theirs, mine = both(name, options, without(options, "capturable"))
    losses = [advance(side, range(100), closure) for side in (theirs, mine)]
    assert_near(torch.tensor(losses[1]), torch.tensor(losses[0]), "losses")
    assert_alike(theirs, mine)


@entries
def test_float32_stays_near_the_path_of_the_twin(name, k):
    options = db_options(name, k)
    theirs, mine = both(name, options, without(options, "capturable"), torch.float32)
    for side in (theirs, mine):
        advance(side, range(100))
    assert_alike(theirs, mine, **FLOAT32)


@every
def test_float32_and_float64_mix_in_one_group(name):
    sides = []
    for module in (torch.optim, fastopt.torch):
        params = [p for pair in zip(parameters(torch.float32), parameters(), strict=True) for p in pair]
        sides.append((getattr(module, name)(params), params))
        advance(sides[-1], range(20))
    assert_alike(*sides, **FLOAT32)


@every
def test_flags_that_choose_an_implementation_change_nothing(name):
    plain = both(name)[1]
    advance(plain, range(5))
    offered = inspect.signature(getattr(torch.optim, name)).parameters
    for flag in ("foreach", "fused", "capturable"):
        if flag not in offered:
            with pytest.raises(TypeError, match=flag):
                getattr(fastopt.torch, name)(parameters(), **{flag: True})
            continue
        flagged = both(name, {flag: True}, {})[1]
        advance(flagged, range(5))
        assert bits(flagged) == bits(plain)


@every
def test_counts_and_products_follow_the_default_dtype(name):
    torch.set_default_dtype(torch.float64)
    try:
        assert_one_path(*both(name), steps=20)
    finally:
        torch.set_default_dtype(torch.float32)


# --- Errors


def raised(module: Any, name: str, params: Any, **options: Any) -> tuple[type, str] | None:
    """Type and message of what a constructor raises; of what it warns of, if it only warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            getattr(module, name)(params, **options)
        except Exception as error:
            return type(error), str(error)
    return (caught[0].category, str(caught[0].message)) if caught else None


@every
def test_what_the_twin_refuses_is_refused_in_the_same_words(name):
    for entry in DB[name].optim_error_inputs_func("cpu", torch.float32):
        assert entry.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR, "an error of another kind: compare it, too"
        given = entry.optimizer_error_input
        params = parameters() if given.params is None else given.params  # None: any will do
        want = raised(torch.optim, name, params, **given.kwargs)
        assert want is not None and issubclass(want[0], entry.error_type), given.desc
        assert raised(fastopt.torch, name, params, **given.kwargs) == want, given.desc


@every
def test_every_hyperparameter_out_of_range_is_refused_in_the_same_words(name):
    refused = 0
    for key, value in getattr(torch.optim, name)(parameters()).defaults.items():
        if isinstance(value, bool) or not isinstance(value, (float, int, tuple)):
            continue
        for wrong in [(-1.0, 0.5), (0.5, -1.0), (0.5, 1.0)] if isinstance(value, tuple) else [-1.0]:
            want = raised(torch.optim, name, parameters(), **{key: wrong})
            if want is not None:  # the twin checks most of them, not all
                refused += 1
                assert raised(fastopt.torch, name, parameters(), **{key: wrong}) == want, (key, wrong)
    assert refused >= 2


@every
def test_differentiable_steps_are_refused(name):
    with pytest.raises(fastopt.FastoptError, match="differentiable"):
        getattr(fastopt.torch, name)(parameters(), differentiable=True, fallback="error")


# --- Checkpoints


@entries
def test_checkpoints_go_both_ways_in_mid_run(name, k):
    options = {key: in_float64(value) for key, value in without(db_options(name, k), "capturable").items()}
    sources = both(name, options)
    for side in sources:
        advance(side, range(8))
    loaded = []
    for opt, params in sources:
        for module in (torch.optim, fastopt.torch):
            copies = [Parameter(p.detach().clone()) for p in params]
            reader = getattr(module, name)(copies, **copy.deepcopy(options))
            reader.load_state_dict(copy.deepcopy(opt.state_dict()))
            loaded.append((reader, copies))
    # PyTorch casts state to the parameters' type as it loads: a number in float32, such as NAdam's product, is a
    # float64 from then on, so that only those that have loaded take one path.
    sides = loaded if numbers_given(fastopt.OPTIMIZERS[name]) else [*loaded, *sources]
    for side in sides:
        advance(side, range(8, 16))
    for side in sides[1:]:
        assert_alike(sides[0], side)


@every
def test_checkpoints_of_older_versions_load(name):
    theirs, mine = both(name)
    for opt, _ in (theirs, mine):
        advance((opt, _), range(3))
        saved = copy.deepcopy(opt.state_dict())
        for group in saved["param_groups"]:
            for flag in DB[name].not_og_supported_flags:
                group.pop(flag, None)
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = state["step"].item()
        opt.load_state_dict(saved)
    assert_one_path(theirs, mine, start=3)


@pytest.mark.parametrize(("saver", "loader"), [("Adam", "AdamW"), ("AdamW", "Adam")])
def test_adam_and_adamw_load_each_others_checkpoints_as_pytorchs_do(saver, loader):
    (their_saver, their_params), (my_saver, my_params) = sides = both(saver, {"weight_decay": 0.1})
    for side in sides:
        advance(side, range(3))
    theirs = getattr(torch.optim, loader)(their_params), their_params
    mine = getattr(fastopt.torch, loader)(my_params), my_params
    theirs[0].load_state_dict(their_saver.state_dict())
    mine[0].load_state_dict(my_saver.state_dict())
    assert_one_path(theirs, mine, start=3)


@entries
def test_copies_in_mid_run_go_on_with_the_same_bits(name, k):
    # In float32: PyTorch casts state to the parameters' type as it loads, NAdam's product, too.
    side = both(name, db_options(name, k), {}, torch.float32)[1]
    advance(side, range(4))
    copies = [copy.deepcopy(side), pickle.loads(pickle.dumps(side))]
    file = io.BytesIO()
    torch.save(side[0].state_dict(), file)
    file.seek(0)
    params = [Parameter(p.detach().clone()) for p in side[1]]
    opt = getattr(fastopt.torch, name)(params)
    opt.load_state_dict(torch.load(file, weights_only=True))
    copies.append((opt, params))
    before = bits(side)
    for other in copies:
        assert bits(other) == before
        advance(other, range(4, 12))
    assert bits(side) == before  # nothing is shared
    advance(side, range(4, 12))
    assert all(bits(other) == bits(side) for other in copies)


# --- Schedulers


def cycles_momentum(opt: Any) -> bool:
    return "momentum" in opt.defaults or "betas" in opt.defaults


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.95),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, step_size=4, gamma=0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, milestones=[3, 9], gamma=0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, factor=0.5, total_iters=5),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.2, total_iters=8),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=12, power=0.9),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=6, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=3, T_mult=2),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, cooldown=1, factor=0.5),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(
        opt, base_lr=1e-4, max_lr=1e-2, step_size_up=3, cycle_momentum=cycles_momentum(opt)
    ),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(
        opt, max_lr=1e-2, total_steps=20, cycle_momentum=cycles_momentum(opt)
    ),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(opt, T_max=8)],
        milestones=[4],
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, factor=0.5, total_iters=4), lr_scheduler.ExponentialLR(opt, gamma=0.9)]
    ),
    "SWALR": lambda opt: swa_utils.SWALR(opt, swa_lr=1e-4, anneal_epochs=5),
}


def test_every_scheduler_is_walked():
    assert set(SCHEDULERS) == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@every
def test_schedulers_drive_both_alike(name, tensor, scheduler):
    options = {**WITH_MOMENTUM.get(name, {}), "lr": torch.tensor(0.005, dtype=torch.float64) if tensor else 0.005}
    runs, lrs = [], []
    for opt, params in both(name, options):
        # A second group with its own learning rate: schedulers write to every group.
        opt.add_param_group({"params": [Parameter(draw(9))], "lr": copy.deepcopy(options["lr"]) * 2})
        params.extend(opt.param_groups[-1]["params"])
        schedule = SCHEDULERS[scheduler](opt)
        seen = []
        with warnings.catch_warnings():
            # It wraps opt.step to see whether it is called.
            warnings.filterwarnings("error", message="Detected call of `lr_scheduler.step")
            for step in range(16):
                set_gradients(params, step)
                opt.step()
                schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
                seen.append([(float(g["lr"]), g.get("momentum"), g.get("betas")) for g in opt.param_groups])
        runs.append((opt, params))
        lrs.append(seen)
    assert lrs[0] == lrs[1]
    assert len({str(groups) for groups in lrs[0]}) > 1, "the scheduler changed nothing"
    assert_alike(*runs)


# --- Groups, edited by hand

EDITS: dict[str, Any] = {
    "lr": 0.003, "betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.05, "momentum": 0.7, "dampening": 0.25,
    "nesterov": True, "maximize": True, "rho": 0.8, "alpha": 0.9, "lr_decay": 0.01, "momentum_decay": 0.02,
    "decoupled_weight_decay": True, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.02),
    "lambd": 0.02, "t0": 2.0,
}  # fmt: skip
WITHOUT_EFFECT = {("Rprop", "lr"), ("ASGD", "t0")}  # on parameters: only on the first step, and on the average
# What says how state is made at the start, and what chooses between implementations of PyTorch's.
NO_EDITS = {"amsgrad", "centered", "initial_accumulator_value", "foreach", "fused", "capturable", "differentiable"}


@every
def test_every_option_is_edited(name):
    assert set(getattr(torch.optim, name)(parameters()).defaults) <= {*EDITS, *NO_EDITS}


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in NAMES for key in EDITS
     if key in inspect.signature(getattr(torch.optim, name)).parameters],
)  # fmt: skip
def test_an_edited_option_counts_from_the_next_step(name, key):
    options = {**WITH_MOMENTUM.get(name, {}), **({"weight_decay": 0.1} if key == "decoupled_weight_decay" else {})}
    if key == "nesterov":
        options["dampening"] = 0.0
    theirs, mine = both(name, options)
    untouched = both(name, options)[1]
    before = mine[0].param_groups[0][key]
    for value in (before, EDITS[key], before):
        for opt, _ in (theirs, mine):
            opt.param_groups[0][key] = value
        for side in (theirs, mine, untouched):
            advance(side, range(4))
    assert_alike(theirs, mine)
    assert (bits(mine) == bits(untouched)) == ((name, key) in WITHOUT_EFFECT), "whether the edit made a difference"


@every
def test_learning_rates_as_tensors_count_when_they_change_in_place(name):
    theirs, mine = both(name)
    edits: list[Callable[[dict], Any]] = [
        lambda g: g.update(lr=torch.tensor(0.004, dtype=torch.float64)),
        lambda g: g["lr"].fill_(0.002),
        lambda g: g["lr"].mul_(0.5),
        lambda g: g.update(lr=torch.tensor([0.003], dtype=torch.float64)),
        lambda g: g["lr"].copy_(torch.tensor([0.001])),
        lambda g: g.update(lr=0.002),
    ]
    for k, edit in enumerate(edits):
        for opt, _ in (theirs, mine):
            edit(opt.param_groups[0])
        assert_one_path(theirs, mine, start=3 * k, steps=3)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_as_tensors_count_when_they_change_in_place(name):
    theirs, mine = both(name, {"betas": tuple(torch.tensor(b, dtype=torch.float64) for b in (0.9, 0.99))})
    assert_one_path(theirs, mine)
    for opt, _ in (theirs, mine):
        opt.param_groups[0]["betas"][0].fill_(0.7)
        opt.param_groups[0]["betas"][1].fill_(0.98)
    assert_one_path(theirs, mine, start=5)


def test_momentum_can_be_switched_on_off_and_on_again():
    theirs, mine = both("SGD")
    for k, momentum in enumerate([0.0, 0.9, 0.0, 0.5]):
        for opt, _ in (theirs, mine):
            opt.param_groups[0]["momentum"] = momentum
        assert_one_path(theirs, mine, start=3 * k, steps=3)


@every
def test_a_group_can_be_added_in_mid_run(name):
    theirs, mine = both(name)
    assert_one_path(theirs, mine)
    for opt, params in (theirs, mine):
        params.extend(Parameter(tensor) for tensor in (draw(11), draw(4, 3).t()))
        opt.add_param_group({"params": params[-2:], "lr": 0.01, "weight_decay": 0.1})
    assert_one_path(theirs, mine, start=5)


@every
def test_a_parameter_may_lack_a_gradient_at_first_and_in_between(name):
    theirs, mine = both(name)
    without_gradient = {0: {4}, 1: {0, 4}, 3: set(range(8)), 4: {4}, 6: {0}}
    for step in range(9):
        for opt, params in (theirs, mine):
            set_gradients(params, step)
            for k in without_gradient.get(step, ()):
                params[k].grad = None
            opt.step()
        assert_alike(theirs, mine)


@every
def test_parameters_can_be_frozen_and_unfrozen(name):
    theirs, mine = both(name)
    frozen = {2: False, 5: True}
    for step in range(8):
        for opt, params in (theirs, mine):
            if step in frozen:
                for k in (0, 5):
                    params[k].requires_grad_(frozen[step])
            opt.step(evaluation(opt, params, step))
        assert_alike(theirs, mine)


@every
def test_zeroed_gradients_are_gradients(name):
    theirs, mine = both(name, decayed(name))
    assert_one_path(theirs, mine)
    for opt, _ in (theirs, mine):
        opt.zero_grad(set_to_none=False)
        opt.step()
    assert_alike(theirs, mine)


REPLACED: dict[str, Callable[[Any, list[Parameter]], None]] = {
    "parameters in other memory": lambda opt, params: [setattr(p, "data", p.data.clone()) for p in params],
    "parameters written in place": lambda opt, params: [p.data.mul_(0.5) for p in params],
    "state in other memory": lambda opt, params: [s.update({k: v.clone() for k, v in s.items()})
                                                  for s in opt.state.values()],
    "state written in place": lambda opt, params: [v.mul_(0.5) for s in opt.state.values()
                                                   for k, v in s.items() if v.dim() and k != "step"],
    "counts written in place": lambda opt, params: [s["step"].fill_(2.0) for s in opt.state.values() if "step" in s],
    "a parameter taken out": lambda opt, params: opt.state.pop(opt.param_groups[0]["params"].pop(4), None),
    "parameters in another order": lambda opt, params: opt.param_groups[0]["params"].reverse(),
    "a new list of groups": lambda opt, params: setattr(opt, "param_groups", [dict(g) for g in opt.param_groups]),
    "a new dict of state": lambda opt, params: setattr(opt, "state", copy.copy(opt.state)),
    "state of one parameter forgotten": lambda opt, params: opt.state.pop(params[5], None),
    "all state forgotten": lambda opt, params: opt.state.clear(),
}  # fmt: skip


@pytest.mark.parametrize("what", REPLACED)
@every
def test_whatever_is_replaced_between_steps_is_noticed(name, what):
    if name == "Adagrad" and what.endswith("forgotten"):
        pytest.skip("PyTorch's Adagrad makes its state in the constructor only, and fails without")
    theirs, mine = both(name, WITH_MOMENTUM.get(name))
    for side in (theirs, mine):
        advance(side, range(4))
        REPLACED[what](*side)
    assert_one_path(theirs, mine, start=4)


# --- Hooks


@contextmanager
def removed(handles: list[Any]) -> Iterator[list[Any]]:
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def heard_at_step(opt: Any, call: Callable[[Any], Any], register: Iterable[str]) -> list[tuple]:
    """The hooks that a step calls, in their order, with what they are given; at last what it returns."""
    heard: list[tuple] = []

    def hear(label: str) -> Callable[..., None]:
        def hook(given: Any, args: tuple, kwargs: dict) -> None:
            assert given is opt and args[0] is opt
            heard.append((label, len(args[1:]), sorted(kwargs), opt.param_groups[0]["params"][0][0].item()))

        return hook

    places = {
        "pre": opt.register_step_pre_hook,
        "post": opt.register_step_post_hook,
        "global pre": torch_optimizer.register_optimizer_step_pre_hook,
        "global post": torch_optimizer.register_optimizer_step_post_hook,
    }
    with removed([]) as handles:
        handles += [places[label](hear(label)) for label in register]
        heard.append(("returned", call(opt)))
    call(opt)  # their hooks are gone: nothing more is heard
    return heard


ALL_HOOKS = ("global pre", "pre", "post", "global post")


def assert_heard_alike(name: str, register: tuple[str, ...], call: Callable[[Any], Any]) -> None:
    theirs, mine = both(name)
    heard = []
    for opt, params in (theirs, mine):
        set_gradients(params, 0)
        heard.append(heard_at_step(opt, call, register))
    assert [label for label, *_ in heard[0]] == [*register, "returned"]
    for want, got in zip(*heard, strict=True):
        assert got[:-1] == want[:-1]
        # A parameter says whether the step was before or after the hook.
        assert got[-1] == (want[-1] if want[-1] is None else pytest.approx(want[-1], rel=1e-12))
    assert_alike(theirs, mine)


@pytest.mark.parametrize("closure", [None, lambda: 1.5], ids=["gradients", "closure"])
@pytest.mark.parametrize("register", [ALL_HOOKS, *((label,) for label in ALL_HOOKS)], ids=" and ".join)
@every
def test_step_hooks_hear_what_they_hear_from_the_twin(name, register, closure):
    assert_heard_alike(name, register, lambda opt: opt.step() if closure is None else opt.step(closure))


@every
def test_step_hooks_hear_of_a_closure_by_keyword_as_one_by_keyword(name):
    assert_heard_alike(name, ALL_HOOKS, lambda opt: opt.step(closure=lambda: 1.5))


@every
def test_a_step_hook_can_replace_the_closure_and_edit_the_group(name):
    def loss_of_two(opt, args, kwargs):
        opt.param_groups[0]["lr"] = 0.003
        return (opt, lambda: torch.tensor(2.0)), {}

    theirs, mine = both(name)
    for opt, params in (theirs, mine):
        opt.register_step_pre_hook(loss_of_two)
        set_gradients(params, 0)
        assert opt.step(lambda: torch.tensor(1.0)) == 2
    assert_alike(theirs, mine)


@every
def test_a_step_hook_that_returns_something_else_is_refused(name):
    _, (opt, params) = both(name)
    opt.register_step_pre_hook(lambda *_: "nonsense")
    set_gradients(params, 0)
    before = bits((opt, params))
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        opt.step()
    assert bits((opt, params)) == before


@every
def test_state_dict_hooks_run_and_can_change_the_dict(name):
    theirs, mine = both(name)
    dicts = []
    for opt, params in (theirs, mine):
        advance((opt, params), range(3))
        opt.register_state_dict_pre_hook(lambda opt: opt.param_groups[0].update(note="seen"))
        opt.register_state_dict_post_hook(lambda opt, saved: {**saved, "more": 1})
        dicts.append(opt.state_dict())
        assert dicts[-1]["more"] == 1 and dicts[-1]["param_groups"][0]["note"] == "seen"
    assert layout(dicts[0]) == layout(dicts[1])


@pytest.mark.parametrize("returns", [False, True], ids=["in place", "returned"])
@every
def test_load_hooks_run_and_can_change_the_dict(name, returns):
    def change(opt, saved):
        if returns:
            saved = copy.deepcopy(saved)
        saved["param_groups"][0]["lr"] = 0.007
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = torch.tensor(5.0)
        return saved if returns else None

    theirs, mine = both(name)
    for opt, params in (theirs, mine):
        advance((opt, params), range(3))
        seen = []
        with removed([
            opt.register_load_state_dict_pre_hook(change),
            opt.register_load_state_dict_post_hook(lambda opt, seen=seen: seen.append(opt.param_groups[0]["lr"])),
        ]):  # fmt: skip
            opt.load_state_dict(opt.state_dict())
        assert seen == [0.007]
        if name != "SGD":
            assert opt.state[params[0]]["step"] == 5
    assert_one_path(theirs, mine, start=3)


@every
def test_profilers_see_the_step_under_the_name_that_they_know(name):
    _, (opt, params) = both(name)
    set_gradients(params, 0)
    opt.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert f"Optimizer.step#{name}.step" in {event.name for event in profile.events()}


# --- Around the step


def scaled_run(side: Side, bad_steps: Iterable[int], unscale: bool) -> list[float]:
    """Eight steps with scaled losses, with an inf in a gradient of the bad steps; the scales after each."""
    opt, params = side
    # Powers of two: for others PyTorch rounds the reciprocal to float32.
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scales = []
    for step in range(8):
        evaluation(opt, params, step, scaler.scale)()
        if step in bad_steps:
            params[4].grad[2, 3] = float("inf")
        if unscale:
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        before, grads = bits(side), [p.grad.numpy().tobytes() for p in params]
        scaler.step(opt)
        assert (bits(side) == before) == (step in bad_steps)
        if isinstance(opt, fastopt.torch._Compiled):  # a twin's are divided
            assert [p.grad.numpy().tobytes() for p in params] == grads
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("bad_steps", [(), (0, 3)], ids=["finite", "with inf"])
@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled and clipped"])
@every
def test_grad_scalers_take_both_alike(name, unscale, bad_steps):
    theirs, mine = both(name)
    want, got = (scaled_run(side, bad_steps, unscale) for side in (theirs, mine))
    assert got == want and len(set(want)) > 1
    assert_alike(theirs, mine)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam", "AdamW"])
def test_scale_and_found_inf_mean_what_they_mean_to_fused_twins(name):
    theirs, mine = both(name, {"fused": True})
    for step, found in enumerate([0.0, 1.0, 0.0]):
        for opt, params in (theirs, mine):
            set_gradients(params, step)
            for p in params:
                p.grad *= 48
            opt.grad_scale, opt.found_inf = torch.tensor(48.0), torch.tensor(found)
            before = bits((opt, params))
            opt.step()
            assert (bits((opt, params)) == before) == (found == 1)
    assert_alike(theirs, mine)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    return torch.nn.Sequential(*layers).double()


def train(opt: Any, net: Any, steps: int = 6, each: Callable[[], None] = lambda: None) -> None:
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        opt.zero_grad()
        net(torch.randn(16, 4, generator=rng, dtype=torch.float64)).square().mean().backward()
        each()
        opt.step()


def trained(module: Any, name: str, prepare: Callable[[Any], Any] = lambda net: net) -> Side:
    net = model()
    opt = getattr(module, name)(net.parameters(), lr=0.01)
    train(opt, prepare(net))
    return opt, list(net.parameters())


@every
def test_clipped_gradients_step_both_alike(name):
    sides = []
    for module in (torch.optim, fastopt.torch):
        net = model()
        opt = getattr(module, name)(net.parameters(), lr=0.01)
        train(opt, net, each=lambda net=net: torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05))
        sides.append((opt, list(net.parameters())))
    assert_alike(*sides)


@pytest.mark.parametrize("average", ["mean", "ema"])
@every
def test_averaged_models_see_every_step(name, average):
    averages, options = [], {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)} if average == "ema" else {}
    for module in (torch.optim, fastopt.torch):
        net = model()
        averaged = swa_utils.AveragedModel(net, **options)
        opt = getattr(module, name)(net.parameters(), lr=0.01)
        opt.register_step_post_hook(lambda *_, averaged=averaged, net=net: averaged.update_parameters(net))
        train(opt, net)
        averages.append(list(averaged.module.parameters()))
    for k, (want, got) in enumerate(zip(*averages, strict=True)):
        assert_near(got, want, f"average of parameter {k}")


@every
def test_named_parameters_keep_their_names(name):
    nets = [model(), model()]
    theirs, mine = (
        (getattr(module, name)([{"params": net.named_parameters(), "lr": 0.01}]), list(net.parameters()))
        for module, net in zip((torch.optim, fastopt.torch), nets, strict=True)
    )
    for (opt, _), net in zip((theirs, mine), nets, strict=True):
        train(opt, net)
    assert_alike(theirs, mine)
    names = [key for key, _ in nets[1].named_parameters()]
    assert mine[0].state_dict()["param_groups"][0]["param_names"] == names
    nets[1][0].weight.grad = torch.ones(8, 4, dtype=torch.float64).to_sparse()
    mine[0]._settings["fallback"] = "error"
    with pytest.raises(fastopt.FastoptError, match="0.weight"):
        mine[0].step()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@every
def test_a_compiled_model_trains_alike(name, backend, fresh_compiler):
    def compiled(net: Any) -> Any:
        return torch.compile(net, backend=backend)

    assert_alike(trained(torch.optim, name, compiled), trained(fastopt.torch, name, compiled))


# Tracing takes seconds: one without state, one with counts, one with a product beside them.
@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam"])
def test_a_compiled_step_gives_the_same_bits(name, fresh_compiler):
    plain, compiled = both(name)[1], both(name)[1]
    step = torch.compile(compiled[0].step, backend="eager")
    for k in range(5):
        set_gradients(plain[1], k)
        plain[0].step()
        set_gradients(compiled[1], k)
        step()
    assert bits(compiled) == bits(plain)
