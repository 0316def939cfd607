"""fastopt.torch: what is done around the rule, in the same pass, has the bits of the optimizers for arrays."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch

import fastopt
import fastopt.torch as ft
from fastopt import AveragedError, OverlapError

CLASSES = [
    ("AdamW", {}), ("SGD", {}), ("SGD", {"momentum": 0.9}), ("Lion", {}), ("Adam", {"amsgrad": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9}), ("NAdam", {"weight_decay": 0.1}), ("ASGD", {}),
]  # fmt: skip
SETS = [
    {"ema_decay": 0.9}, {"ema_decay": 0.3}, {"ema_decay": 0.9, "ema_start": 0}, {"ema_decay": 0.9, "ema_start": 4},
    {"clip_value": 0.5}, {"clip_norm_each": 1.0}, {"clip_norm": 2.0, "clip_norm_each": 0.5},
    {"clip_norm": 1.0, "clip_value": 0.1, "ema_decay": 0.9, "zero_grads": True},
]  # fmt: skip
SHAPES = [(5,), (300,), (3000,), (70, 40), ()]


def pair(name, dtype, more, options):
    """The same optimizer over tensors, and over arrays."""
    rng = np.random.default_rng(0)
    data = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    params = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in data]
    arrays, cls = [x.copy() for x in data], getattr(fastopt, name)
    convention = {"convention": "torch"} if "torch" in cls.conventions else {}
    return (
        getattr(ft, name)(params, lr=0.01, **more, **options), params,
        cls(arrays, lr=0.01, **more, **options, **convention), arrays,
    )  # fmt: skip


def give(params, k, by=3.0):
    """New gradients, one of which is missing at times; as arrays, too."""
    rng = np.random.default_rng(100 + k)
    grads = [np.asarray(by * rng.standard_normal(p.shape), str(p.dtype)[6:]) for p in params]
    grads = [None if k % 3 == 1 and i == 1 else g for i, g in enumerate(grads)]
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else torch.from_numpy(g.copy())
    return grads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "more"), CLASSES, ids=[f"{n}-{len(m)}" for n, m in CLASSES])
@pytest.mark.parametrize("options", SETS, ids=lambda options: "-".join(options))
def test_bits_are_those_of_the_optimizers_for_arrays(name, more, options, dtype):
    opt, params, other, arrays = pair(name, dtype, more, options)
    for k in range(7):
        grads = give(params, k)
        versions = [None if p.grad is None else p.grad._version for p in params]
        opt.step()
        other.step(grads)
        assert opt.grad_norm == other.grad_norm
        for i, (p, q) in enumerate(zip(params, arrays, strict=True)):
            assert np.array_equal(p.detach().numpy(), q)
            mine, its = opt.state.get(p, {}), other.state[i]
            assert ("ema" in mine) == ("ema" in its)
            for slot, array in its.items():
                if slot in mine and slot != "step":
                    assert np.array_equal(mine[slot].numpy(), array), slot
            if options.get("zero_grads") and p.grad is not None:
                assert not p.grad.any() and p.grad._version > versions[i]
    if "ema_decay" in options:
        for mine, its in zip(opt.averages, other.averages, strict=True):
            assert np.array_equal(mine.numpy(), its)


def test_averaged_changes_places_and_back():
    opt, params, *_ = pair("AdamW", "float32", {}, {"ema_decay": 0.9})
    for k in range(3):
        give(params, k)
        opt.step()
    before, averages = [p.detach().clone() for p in params], [x.clone() for x in opt.averages]
    saved = copy.deepcopy(opt.state_dict())
    plan = opt._plan
    with pytest.raises(KeyError), opt.averaged():
        assert all(map(torch.equal, params, averages))
        assert repr(opt.state_dict()) == repr(saved)
        assert all(map(torch.equal, opt.averages, averages))
        for call in (opt.step, lambda: opt.load_state_dict(saved), lambda: pickle.dumps(opt),
                     lambda: copy.deepcopy(opt), lambda: opt.averaged().__enter__(),
                     lambda: opt.add_param_group({"params": [torch.ones(1, requires_grad=True)]}),
                     lambda: opt.step(lambda: pytest.fail("a closure"))):  # fmt: skip
            with pytest.raises(AveragedError, match="inside `with averaged"):
                call()
        raise KeyError
    assert all(map(torch.equal, params, before)) and all(map(torch.equal, opt.averages, averages))
    assert opt._plan is plan
    opt.step()


def test_state_dicts_and_pickles_carry_averages():
    for name, more in (("AdamW", {}), ("SGD", {"momentum": 0.9})):
        opt, params, *_ = pair(name, "float32", more, {"ema_decay": 0.9, "ema_start": 3, "clip_norm_each": 1.0})
        for k in range(4):
            give(params, k)
            opt.step()
        copied = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = getattr(ft, name)(copied, lr=0.5, **more)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.load_state_dict(copy.deepcopy(opt.state_dict()))
            made = pickle.loads(pickle.dumps(opt))
        also = [p for group in made.param_groups for p in group["params"]]
        for k in range(3):
            for members in (params, copied, also):
                give(members, k)
            for each in (opt, other, made):
                each.step()
            for members, each in ((copied, other), (also, made)):
                assert all(map(torch.equal, params, members))
                assert all(map(torch.equal, opt.averages, each.averages))


def test_a_dict_without_averages_starts_them_anew_with_a_warning():
    stock_params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    stock = torch.optim.AdamW(stock_params)
    give(stock_params, 0)
    stock.step()
    params = [torch.nn.Parameter(p.detach().clone()) for p in stock_params]
    opt = ft.AdamW(params, ema_decay=0.5, zero_grads=True, clip_value=1.0)
    with pytest.warns(UserWarning, match=r"no average \('ema'\) of parameter 0") as caught:
        opt.load_state_dict(copy.deepcopy(stock.state_dict()))
    assert caught[0].filename == __file__
    assert [opt.param_groups[0][key] for key in ("ema_decay", "zero_grads", "clip_value")] == [0.5, True, 1.0]
    give(params, 1)
    opt.step()
    assert all(map(torch.equal, opt.averages, [p.detach() for p in params])) and not params[0].grad.any()
    # and PyTorch's takes a dict with averages
    stock.load_state_dict(copy.deepcopy(opt.state_dict()))
    give(stock_params, 1)
    stock.step()


def test_state_goes_to_and_comes_from_an_averaged_model():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    reference = copy.deepcopy(model)
    averaged = AveragedModel(reference, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    opt = ft.AdamW(model.parameters(), ema_decay=0.9)
    stock = torch.optim.AdamW(reference.parameters())
    for k in range(5):
        give(list(model.parameters()), 3 * k)
        give(list(reference.parameters()), 3 * k)
        opt.step()
        stock.step()
        averaged.update_parameters(reference)
    mine = opt.averaged_state_dict(model)
    assert mine.keys() == averaged.state_dict().keys() and mine["n_averaged"] == averaged.n_averaged == 5
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-6)
    AveragedModel(model).load_state_dict(mine)
    other = ft.AdamW(copy.deepcopy(model).parameters(), ema_decay=0.9)
    with pytest.raises(fastopt.StateDictError, match="has no state yet"):
        fresh = torch.nn.Linear(3, 4)
        ft.AdamW(fresh.parameters(), ema_decay=0.9).load_averaged_state_dict(
            fresh, AveragedModel(fresh).state_dict()
        )
    twin = copy.deepcopy(model)
    other = ft.AdamW(twin.parameters(), ema_decay=0.9)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.load_averaged_state_dict(twin, averaged.state_dict())
    for (name, _), value in zip(twin.named_parameters(), other.averages, strict=True):
        assert torch.equal(value, averaged.state_dict()[f"module.{name}"])
    with pytest.raises(fastopt.StateDictError, match="module.0.weight"):
        other.load_averaged_state_dict(twin, {"n_averaged": torch.tensor(1)})


def test_gradients_that_are_copied_for_the_step_are_zeroed_themselves():
    p = torch.nn.Parameter(torch.ones(4, 3))
    opt = ft.SGD([p], lr=1.0, zero_grads=True)
    for grad in (torch.ones(3, 4).t(), torch.ones(3, 8).t()[::2]):
        p.grad = grad
        opt.step()
        assert not grad.any() and p.grad is grad
    p.grad = torch.ones(1, 1).expand(4, 3)
    before = p.detach().clone()
    with pytest.raises(fastopt.LayoutError, match="share memory; zero_grads=True"):
        opt.step()
    assert torch.equal(p, before)
    (p.grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    opt.step()
    assert not p.grad.any() and not p.grad.requires_grad and p.grad.grad_fn is None


def test_gradients_that_share_memory_are_not_zeroed():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = ft.AdamW([a, b], zero_grads=True)
    a.grad = b.grad = torch.ones(3)
    for _ in range(2):
        with pytest.raises(OverlapError, match="shares memory with the gradient of parameter 0"):
            opt.step()
        assert a.grad.all() and (a == 1).all() and not opt.state
    b.grad = torch.ones(3)
    opt.step()
    assert not a.grad.any() and not b.grad.any()


def test_a_step_that_a_scaler_skips_zeroes():
    p = torch.nn.Parameter(torch.ones(3))
    opt = ft.AdamW([{"params": [p], "zero_grads": True}, {"params": [q := torch.nn.Parameter(torch.ones(2))]}])
    p.grad, q.grad = torch.full((3,), torch.inf), torch.ones(2)
    opt.found_inf = torch.tensor(1.0)
    opt.step()
    assert not p.grad.any() and q.grad.all() and (p == 1).all() and not opt.state


@pytest.mark.parametrize("kind", ["float16", "sparse"])
@pytest.mark.filterwarnings("ignore")
def test_parameters_that_are_left_to_pytorch(kind):
    dtype = torch.float16 if kind == "float16" else torch.float32
    left, mine = torch.nn.Parameter(torch.ones(6, dtype=dtype)), torch.nn.Parameter(torch.ones(3))
    plain = torch.nn.Parameter(left.detach().clone())
    cls = ft.AdamW if kind == "float16" else ft.SGD
    eps = {"eps": 1e-3} if kind == "float16" else {}  # the usual one is zero in float16
    opt = cls(
        [left, mine], lr=0.1, ema_decay=0.5, ema_start=2, clip_value=0.25, clip_norm_each=2.0, zero_grads=True, **eps
    )
    stock = getattr(torch.optim, cls.__name__)([plain], lr=0.1, **eps)
    average = None
    for k in range(4):
        grad = torch.arange(6, dtype=dtype) + k
        left.grad = grad.to_sparse() if kind == "sparse" else grad.clone()
        mine.grad, given = torch.ones(3), left.grad
        norm = grad.double().norm()
        plain.grad = (grad * (2.0 / (norm + 1e-6)).clamp(max=1).item()).clamp(-0.25, 0.25)
        opt.step()
        stock.step()
        torch.testing.assert_close(left.detach(), plain.detach(), rtol=1e-2 if kind == "float16" else 1e-6, atol=1e-6)
        assert left.grad is given and not left.grad.to_dense().any() and not mine.grad.any()
        assert opt.grad_norm == pytest.approx((norm**2 + 3).sqrt().item())
        assert ("ema" in opt.state[left]) == ("ema" in opt.state[mine]) == (k >= 1)
        if k == 1:
            average = left.detach().clone()
        elif k > 1:
            average.lerp_(left.detach(), 0.5)
        if k:
            assert torch.equal(opt.state[left]["ema"], average)
    inside, outside = opt.state[left]["ema"].clone(), left.detach().clone()
    with opt.averaged():
        assert torch.equal(left, inside)
    assert torch.equal(left, outside)


def test_options_of_groups_can_be_edited():
    opt, params, other, arrays = pair("AdamW", "float32", {}, {})
    for key, value in (
        ("clip_value", 0.1), ("ema_decay", 0.9), ("clip_norm_each", 0.5), ("clip_value", None), ("ema_decay", 0.2),
        ("zero_grads", True), ("ema_decay", None), ("zero_grads", False),
    ):  # fmt: skip
        opt.param_groups[0][key] = other.param_groups[0][key] = value
        for k in range(2):
            grads = give(params, 3 * k)
            opt.step()
            other.step(grads)
            for p, q in zip(params, arrays, strict=True):
                assert np.array_equal(p.detach().numpy(), q), key
    with pytest.raises(AveragedError, match="give ema_decay"):
        _ = opt.averages


@pytest.mark.parametrize(
    ("key", "bad"),
    [("clip_value", 0), ("clip_norm_each", -1.0), ("ema_decay", 1.5), ("ema_start", 0.5), ("zero_grads", 1),
     ("ema_decay", lambda step: 0.5), ("clip_value", torch.ones(2))],
)  # fmt: skip
def test_bad_values_are_refused_before_anything_is_written(key, bad):
    p = torch.nn.Parameter(torch.ones(3))
    for make in (lambda: ft.AdamW([p], **{key: bad}), lambda: ft.AdamW([{"params": [p], key: bad}])):
        with pytest.raises(fastopt.HyperparameterError, match=key):
            make()
    opt = ft.AdamW([p])
    p.grad = torch.ones(3)
    opt.step()
    before = p.detach().clone()
    opt.param_groups[0][key] = bad
    with pytest.raises(fastopt.HyperparameterError, match=key):
        opt.step()
    assert torch.equal(p, before)


def test_words_of_other_libraries_are_answered_with_ours():
    p = torch.nn.Parameter(torch.ones(3))
    for word, meant in (("clipvalue", "clip_value"), ("use_ema", "ema_decay"), ("grad_clip", "clip_norm_each"),
                        ("max_grad_norm", "clip_norm")):  # fmt: skip
        with pytest.raises(fastopt.UnknownOptionError, match=f"did you mean '{meant}'"):
            ft.AdamW([p], **{word: 1.0})


def test_without_them_all_keys_are_pytorchs():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt, stock = ft.AdamW([p]), torch.optim.AdamW([q])
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    opt.step()
    stock.step()
    assert opt.state[p].keys() == stock.state[q].keys() and opt.param_groups[0].keys() == stock.param_groups[0].keys()
    assert opt.defaults.keys() == stock.defaults.keys()


def test_a_gradient_that_was_zeroed_is_not_kept_alive():
    p = torch.nn.Parameter(torch.zeros(4, 6))
    opt = ft.SGD([p], lr=0.1, zero_grads=True)
    for _ in range(2):
        p.grad = torch.ones(6, 4).t()  # which is stepped by a copy
        opt.step()
        assert not p.grad.any()
        kept, p.grad = weakref.ref(p.grad), None
        assert kept() is None


def averaging(cls=ft.AdamW, dtype=torch.float32, **options):
    """An optimizer with averages that took two steps, its parameter, and what that holds."""
    p = torch.nn.Parameter(torch.arange(4.0).to(dtype))
    opt = cls([p], lr=0.1, ema_decay=0.9, fallback="silent", **options)
    for k in range(2):
        p.grad = torch.ones(4, dtype=dtype) + k
        opt.step()
    return opt, p, p.detach().clone()


def in_inference(dtype=torch.float32):
    with torch.inference_mode():
        return torch.ones(4, dtype=dtype)


@pytest.mark.parametrize(
    "average",
    [in_inference, lambda: torch.ones(1), lambda: torch.ones(4).double(), lambda: torch.ones(1).expand(4),
     lambda: torch.ones(4).to_sparse()],
)  # fmt: skip
def test_an_average_that_cannot_change_places_is_refused(average):
    opt, p, before = averaging()
    opt.state[p]["ema"] = average()
    with pytest.raises((fastopt.TensorStateError, fastopt.InferenceModeError), match="state 'ema' of parameter 0"):
        opt.averaged().__enter__()
    assert torch.equal(p, before)
    with torch.no_grad():  # which the context would not do
        del opt.state[p]["ema"]
    opt.step()


def test_a_copy_that_fails_leaves_both_as_they_were():
    from fastopt.engine import swap_tensors

    def fails(x, y):
        if x is values[3]:
            raise KeyError
        x.copy_(y)

    values = [torch.full((2,), float(k)) for k in (1, 2, 3, 5)]
    noted = {}
    with pytest.raises(KeyError):
        swap_tensors([tuple(values[:2]), tuple(values[2:])], torch.Tensor.clone, fails, noted, [], None)
    assert [x[0].item() for x in values] == [1, 2, 3, 5] and not noted


@pytest.mark.parametrize(
    "average",
    [lambda: in_inference(torch.float16), lambda: torch.ones(3).half(), lambda: torch.ones(4).to_sparse(),
     lambda: 5.0],
)  # fmt: skip
def test_an_average_beside_pytorchs_step_is_checked_before_it(average):
    opt, p, before = averaging(dtype=torch.float16)
    opt.state[p]["ema"] = average()
    with pytest.raises((fastopt.TensorStateError, fastopt.InferenceModeError), match="'ema' of parameter 0"):
        opt.step()
    assert torch.equal(p, before) and opt.state[p]["step"] == 2
    opt.state[p]["ema"] = torch.ones(4)  # of before a cast to float16
    opt.step()
    assert opt.state[p]["ema"].dtype == torch.float16
    torch.testing.assert_close(opt.state[p]["ema"], torch.ones(4).half().lerp(p.detach(), 0.1))


def test_sparse_parameters_have_no_average():
    p = torch.nn.Parameter(torch.arange(4.0).to_sparse())
    opt = ft.SGD([p], lr=0.1, ema_decay=0.9, fallback="silent")
    p.grad = torch.ones(4).to_sparse()
    with pytest.raises(fastopt.TensorLayoutError, match="ema_decay: parameter 0 has layout"):
        opt.step()
    assert torch.equal(p.detach().to_dense(), torch.arange(4.0))


@pytest.mark.parametrize("kind", ["itself", "bfloat16", "float16", "copied", "skipped"])
def test_gradients_in_the_memory_of_a_parameter_are_not_zeroed(kind):
    memory = torch.arange(1.0, 9.0)
    p = torch.nn.Parameter((memory.to(getattr(torch, kind)) if "float16" in kind else memory)[:4])
    opt = ft.SGD([p], lr=0.1, zero_grads=True, fallback="silent")
    p.grad = memory[1::2] if kind == "copied" else p.data
    if kind == "skipped":
        opt.found_inf = torch.tensor(1.0)
    before = p.detach().clone()
    with pytest.raises(OverlapError, match="gradient of parameter 0 shares memory with parameter 0; zero_grads=True"):
        opt.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "one of them", "copied", "skipped", "sparse"])
def test_gradients_of_all_kinds_that_share_memory_are_not_zeroed(kind):
    shared = torch.ones(8)
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    p.grad = q.grad = {"copied": shared[::2], "sparse": torch.ones(4).to_sparse()}.get(kind, shared[:4])
    if kind in ("bfloat16", "float16", "one of them"):
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float16
        p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
        p.grad = shared[:2].view(dtype)
        if kind != "one of them":
            q = torch.nn.Parameter(torch.ones(4, dtype=dtype))
            q.grad = p.grad
    opt = ft.SGD([p, q], lr=0.1, zero_grads=True, fallback="silent")
    if kind == "skipped":
        opt.found_inf = torch.tensor(1.0)
    with pytest.raises(OverlapError, match="gradient of parameter 1 shares memory with the gradient of parameter 0"):
        opt.step()
    assert (p == 1).all() and (q == 1).all() and shared.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_view_in_a_graph_is_refused_before_the_step(dtype):
    p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    opt = ft.SGD([p], lr=0.1, zero_grads=True, fallback="silent")
    p.grad = (torch.ones(8, dtype=dtype, requires_grad=True) * 2)[:4]
    with pytest.raises(fastopt.GradientError, match="gradient of parameter 0 is a view in a graph"):
        opt.step()
    assert (p == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_gradient_is_kept(dtype):
    p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    opt = ft.SGD([p], lr=0.1, zero_grads=True, fallback="silent")
    for stride in (1, 2):  # the latter is copied for the step
        p.grad = torch.ones(8, dtype=dtype)[: 4 * stride : stride]
        opt.step()
        seen = weakref.ref(p.grad)
        p.grad = None
        assert seen() is None


def test_averages_of_a_model_are_taken_over_whole_or_not_at_all():
    from torch.optim.swa_utils import AveragedModel

    model = torch.nn.Linear(3, 2)
    opt = ft.SGD(model.parameters(), lr=0.1, ema_decay=0.9)  # which has no state yet, and needs none
    saved = AveragedModel(model).state_dict()
    saved = {name: value + 1 for name, value in saved.items()}
    opt.load_averaged_state_dict(model, saved)
    assert torch.equal(opt.averages[0], saved["module.weight"]) and opt.state[model.weight]["step"] == 1
    before = [x.clone() for x in opt.averages]
    for wrong in ({"module.bias": saved["module.bias"].to("meta")}, {"n_averaged": "x"}, {"n_averaged": None}):
        with pytest.raises(fastopt.StateDictError, match=next(iter(wrong))):
            opt.load_averaged_state_dict(model, {**saved, "module.weight": torch.zeros(2, 3), **wrong})
        assert all(map(torch.equal, opt.averages, before))
    with pytest.raises(fastopt.StateDictError, match="of type list"):
        opt.load_averaged_state_dict(model, [])


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize(("name", "more"), CLASSES, ids=[f"{n}-{len(m)}" for n, m in CLASSES])
def test_state_dicts_go_to_and_come_from_the_optimizers_for_arrays(name, more, start):
    opt, params, other, arrays = pair(name, "float32", more, {"ema_decay": 0.9, "ema_start": start})
    for k in range(3):
        other.step(give(params, k))
        opt.step()
    copied, taken = [torch.nn.Parameter(p.detach().clone()) for p in params], [x.copy() for x in arrays]
    mine = getattr(ft, name)(copied, lr=0.01, **more)
    mine.load_state_dict(copy.deepcopy(other.state_dict()))
    convention = {"convention": "torch"} if "torch" in type(other).conventions else {}
    its = type(other)(taken, lr=0.01, **more, **convention)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    its.load_state_dict(torch.load(file, weights_only=True))
    for k in range(3, 7):
        grads = give(params, k)
        give(copied, k)
        for each in (opt, mine):
            each.step()
        for each in (other, its):
            each.step(grads)
        for i, p in enumerate(params):
            for x in (copied[i].detach().numpy(), arrays[i], taken[i]):
                assert np.array_equal(p.detach().numpy(), x)
            assert ("ema" in opt.state[p]) == ("ema" in mine.state[copied[i]])
            for x in (mine.averages[i].numpy(), other.averages[i], its.averages[i]):
                assert np.array_equal(opt.averages[i].numpy(), x)


@pytest.mark.parametrize(("name", "more"), [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("SGD", {})])
@pytest.mark.parametrize("decay", [0.999, 0.5, 0.3])
def test_fifty_steps_have_the_averages_of_an_averaged_model(name, more, decay):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    twin = copy.deepcopy(model)
    averaged = AveragedModel(twin, multi_avg_fn=get_ema_multi_avg_fn(decay))
    opt = getattr(ft, name)(model.parameters(), lr=0.01, ema_decay=decay, **more)
    stock = getattr(torch.optim, name)(twin.parameters(), lr=0.01, **more)
    for _ in range(50):
        x = torch.randn(8, 5, dtype=torch.float64)
        for one, by in ((model, opt), (twin, stock)):
            by.zero_grad()
            one(x).square().sum().backward()
            by.step()
        averaged.update_parameters(twin)
    for mine, its in zip(opt.averages, averaged.module.parameters(), strict=True):
        torch.testing.assert_close(mine, its.detach(), rtol=1e-12, atol=1e-12)


def test_a_plan_that_another_thread_holds_takes_no_step_inside_averaged():
    opt, p, before = averaging()
    plan, average = opt._plan, opt.averages[0].clone()
    with opt.averaged():
        assert not plan.step_tensors(opt.param_groups, opt.state)
        for call in (opt._take_step, opt._skip_step):
            with pytest.raises(AveragedError, match=r"step\(\) inside"):
                call(None)
        assert torch.equal(p, average)
    assert torch.equal(p, before)
    opt.step()


def test_averaged_is_left_when_a_step_of_another_thread_is_in_the_way():
    opt, p, before = averaging()
    began = threading.Event()

    def busy():
        began.set()
        time.sleep(0.05)

    with opt.averaged():
        thread = threading.Thread(target=opt._stepping.run, args=(busy,))
        thread.start()
        began.wait()
    thread.join()
    assert torch.equal(p, before)


def test_an_interrupt_on_the_way_out_of_averaged_does_not_keep_the_averages(monkeypatch):
    opt, p, before = averaging()
    swap, calls = opt._swap_averages, []

    def interrupted(back):
        calls.append(back)
        if calls == [False, True]:
            raise KeyboardInterrupt
        swap(back)

    monkeypatch.setattr(opt, "_swap_averages", interrupted)
    with pytest.raises(KeyboardInterrupt), opt.averaged():
        pass
    assert torch.equal(p, before) and calls == [False, True, True]


def test_an_average_beside_pytorchs_step_from_the_start():
    p = torch.nn.Parameter(torch.ones(4).half())
    opt = ft.SGD([p], lr=0.5, ema_decay=0.5, ema_start=0, fallback="silent")
    p.grad = torch.ones(4).half()
    opt.step()
    assert (opt.averages[0] == 0.75).all()


def test_averages_of_bfloat16_are_float32_where_pytorch_steps_too():
    p = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    opt = ft.SGD([p], lr=0.125, ema_decay=0.999, fallback="silent")
    average = None
    for step in range(4):
        g = torch.ones(4, 3, dtype=torch.bfloat16)
        p.grad = g.to_sparse() if step % 3 else g  # PyTorch steps the sparse ones
        opt.step()
        value = p.detach().float()
        average = value.clone() if average is None else average.lerp_(value, 1 - 0.999)
        assert torch.equal(opt.state[p]["ema"], average)


@pytest.mark.parametrize("fallback", ["warn", "error"])
def test_averages_of_bfloat16_are_loaded_in_float32(fallback):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4).bfloat16()
        return model, ft.SGD(model.parameters(), lr=0.1, ema_decay=0.9, fallback=fallback)

    model, opt = made()
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn(p.shape).bfloat16()
        opt.step()
    other, into = made()
    into.load_averaged_state_dict(other, opt.averaged_state_dict(model))
    assert all(torch.equal(a, b) for a, b in zip(opt.averages, into.averages, strict=True))
    for p in other.parameters():
        p.grad = torch.zeros(p.shape).bfloat16()
    into.step()
