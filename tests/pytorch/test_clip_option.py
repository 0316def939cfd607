"""`clip_norm` of `fastopt.torch`: the bits of the optimizers for arrays, parity with PyTorch, and what is around it."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
from typing import Any

import conftest
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from facts import with_convention  # noqa: E402

import fastopt  # noqa: E402
import fastopt.torch as ft  # noqa: E402
from fastopt import _fallback, errors, reference  # noqa: E402
from fastopt._torch_ranks import LOST  # noqa: E402

NAMES = [*with_convention("torch"), "Lion"]
SHAPES = ((33, 40), (7,), (3000,), (), (0, 3), (5, 4))
MOMENTUM = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.5, "centered": True}}
every = pytest.mark.parametrize("name", NAMES)
orders = pytest.mark.parametrize("order", [2, math.inf])


def made(seed=0, shapes=SHAPES, dtypes=(torch.float32, torch.float64), by=1.0) -> list[Any]:
    """Parameters with gradients, of both types in turn."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for i, shape in enumerate(shapes):
        p = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtypes[i % len(dtypes)]))
        p.grad = (by * torch.randn(shape, generator=generator, dtype=torch.float64)).to(p.dtype)
        params.append(p)
    return params


def regrade(params, seed, by=1.0) -> None:
    """New gradients in the place of the old ones."""
    for p, q in zip(params, made(seed, [p.shape for p in params], [p.dtype for p in params], by), strict=True):
        p.grad = q.grad


def arrays_of(params) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in params]


def bits(tensors) -> list[bytes]:
    """The bits of tensors of any kind, which the gradients of two steps can be compared by."""
    out = []
    for x in tensors:
        x = x.detach()
        if x.layout != torch.strided:
            out.append(x.coalesce().indices().numpy().tobytes())
            x = x.coalesce().values()
        out.append(x.contiguous().clone().view(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return out


def frozen(opt) -> tuple[Any, ...]:
    """All that a step could write: parameters, gradients and state, to the bit."""
    params = [p for group in opt.param_groups for p in group["params"]]
    state = [x for p in params for x in opt.state.get(p, {}).values() if torch.is_tensor(x)]
    grads = [p.grad for p in params if p.grad is not None]
    return bits(params), bits(grads), bits(state), [p._version for p in params], opt.grad_norm


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(_fallback, "warned", set())


# --- The bits


@every
@orders
def test_a_step_has_the_bits_of_the_optimizer_for_arrays(name, order, way):
    for limit in (0.5, 1e9, math.inf):
        params, options = made(), {"clip_norm": limit, "norm_type": order, **MOMENTUM.get(name, {})}
        arrays = arrays_of(params)
        opt, core = getattr(ft, name)(params, **options), getattr(fastopt, name)(arrays, **options)
        for step in range(4):
            regrade(params, step)
            before = bits(p.grad for p in params)
            kept = [(p.grad, p.grad._version) for p in params]
            opt.step()
            core.step([p.grad.numpy() for p in params])
            assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]
            assert opt.grad_norm == core.grad_norm == fastopt.norm([p.grad.numpy() for p in params], order)
            assert all(p.grad is g and g._version == v for p, (g, v) in zip(params, kept, strict=True))
            assert bits(p.grad for p in params) == before
        assert opt._plan is not None, "a usual step goes the quick way"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_matter(threads):
    shapes = [(40_000,), (17,), (20_000,), (3, 5)]
    with conftest.parallel_from(1):
        params = made(shapes=shapes)
        arrays = arrays_of(params)
        opt = ft.AdamW(params, clip_norm=1.0, n_threads=threads)
        core = fastopt.AdamW(arrays, clip_norm=1.0, n_threads=1)
        for step in range(3):
            regrade(params, step)
            opt.step()
            core.step([p.grad.numpy() for p in params])
            assert opt.grad_norm == core.grad_norm
            assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]


def test_large_steps_that_give_up_the_gil_clip_too():
    params = made(shapes=[(600_000,), (500_001,)])
    arrays = arrays_of(params)
    opt, core = ft.Adam(params, clip_norm=1.0), fastopt.Adam(arrays, clip_norm=1.0)
    for step in range(2):
        regrade(params, step)
        opt.step()
        core.step([p.grad.numpy() for p in params])
    assert opt.grad_norm == core.grad_norm
    assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]


def test_groups_have_their_own_stages_and_one_norm():
    options: list[dict[str, Any]] = [{}, {"weight_decay": 0.1}, {"maximize": True}, {}, {"lr": 0.3}]
    params = made()
    parts = [params[:2], params[2:3], params[3:4], [], params[4:]]
    arrays = arrays_of(params)
    halves = [arrays[:2], arrays[2:3], arrays[3:4], [], arrays[4:]]
    opt = ft.Adam([{"params": p, **o} for p, o in zip(parts, options, strict=True)], clip_norm=0.4)
    core = fastopt.Adam([{"params": p, **o} for p, o in zip(halves, options, strict=True)], clip_norm=0.4)
    for step in range(70):  # one of which flushes
        regrade(params, step)
        if step % 3 == 1:
            params[0].grad = params[2].grad = None
        opt.step()
        core.step([None if p.grad is None else p.grad.numpy() for p in params])
        assert opt.grad_norm == core.grad_norm
    assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]


def test_without_gradients_the_norm_is_0(way):
    for params in (made(), made()[4:5]):
        for p in params:
            p.grad = None
        opt = ft.AdamW(params, clip_norm=1.0)
        assert opt.grad_norm is None
        opt.step()
        assert opt.grad_norm == 0.0
    opt = ft.AdamW([{"params": []}], clip_norm=1.0)
    opt.step()
    assert opt.grad_norm == 0.0


def test_gradients_of_another_order_or_type_and_parameters_with_gaps(way):
    def params() -> list[Any]:
        out = [torch.nn.Parameter(torch.zeros(4, 6)), torch.nn.Parameter(torch.ones(4, 12)[:, ::2])]
        for p in out:
            p.grad = torch.arange(24.0).reshape(6, 4).t()
        return out

    mine, plain = params(), params()
    opt, other = ft.SGD(mine, lr=0.1, clip_norm=1.0), ft.SGD(plain, lr=0.1)
    for _ in range(2):
        opt.step()
        norm = fastopt.norm([p.grad.numpy() for p in mine])
        assert opt.grad_norm == pytest.approx(norm, rel=1e-14)
        factor = reference.clip_factor("torch", opt.grad_norm, 1.0)
        for p in plain:
            p.grad = torch.arange(24.0).reshape(6, 4).t() * np.float32(factor)
        other.step()
        assert bits(mine) == bits(plain)


# --- Beside PyTorch


@every
@orders
def test_fifty_steps_are_those_of_clip_grad_norm_and_torch_optim(name, order):
    if name == "Lion":
        return  # PyTorch has none
    mine, theirs = (made(dtypes=(torch.float64,)) for _ in range(2))
    options = MOMENTUM.get(name, {})
    opt = getattr(ft, name)(mine, clip_norm=1.0, norm_type=order, **options)
    stock = getattr(torch.optim, name)(theirs, **options)
    for step in range(50):
        by = 10.0 ** (step % 5 - 3)  # some are clipped, some are not
        for params in (mine, theirs):
            regrade(params, step, by)
        opt.step()
        full = [p for p in theirs if p.numel()]  # PyTorch has no largest magnitude of nothing
        norm = torch.nn.utils.clip_grad_norm_(full, 1.0, order)
        stock.step()
        assert opt.grad_norm == pytest.approx(norm.item(), rel=1e-12)
        for p, q in zip(mine, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@orders
def test_what_is_not_finite_is_as_in_pytorch(value, order):
    mine, theirs = made(shapes=[(6,), (4, 5)]), made(shapes=[(6,), (4, 5)])
    for params in (mine, theirs):
        params[1].grad[2, 3] = value
    opt = ft.SGD(mine, lr=0.1, clip_norm=1.0, norm_type=order)
    opt.step()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0, order)
    torch.optim.SGD(theirs, lr=0.1).step()
    assert repr(opt.grad_norm) == repr(norm.item())
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)


def test_a_scalers_factor_is_taken_out_first():
    for scale in (torch.tensor(1024.0), torch.tensor([3.0]), 3.0):
        params = made()
        arrays = arrays_of(params)
        opt, core = ft.Adam(params, clip_norm=0.5), fastopt.Adam(arrays, clip_norm=0.5)
        opt.grad_scale, opt.found_inf = scale, torch.tensor(0.0)
        opt.step()
        core.step([p.grad.numpy() for p in params], grad_scale=float(scale))
        assert opt.grad_norm == core.grad_norm
        assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]
        before = frozen(opt)
        opt.found_inf = torch.tensor(1.0)
        opt.step()
        assert frozen(opt) == before


def test_a_grad_scaler_steps_and_skips():
    p = torch.nn.Parameter(torch.zeros(3))
    opt, scaler = ft.SGD([p], lr=1.0, clip_norm=1.0), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((p * torch.tensor([3.0, 0.0, 4.0])).sum()).backward()
    scaler.step(opt)
    scaler.update()
    assert opt.grad_norm == 5.0
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, 0.0, -0.8]))
    before = p.detach().clone()
    scaler.scale((p * math.inf).sum()).backward()
    scaler.step(opt)
    assert torch.equal(p, before)


# --- Beside parameters that are left to PyTorch


def left_params(kind: str) -> list[Any]:
    """Parameters of which some are left to PyTorch: the second, and the last."""
    params = made(shapes=[(30, 4), (8, 3), (50,), (6, 2)], dtypes=(torch.float32,))
    for k in (1, 3):
        p = params[k]
        if kind == "sparse":
            values = torch.randn(4, p.shape[1], generator=torch.Generator().manual_seed(k))
            p.grad = torch.sparse_coo_tensor([[0, 2, 2, 5]], values, p.shape, check_invariants=True)
        elif kind in ("bfloat16", "float16", "complex64"):
            dtype = getattr(torch, kind)
            grad = p.grad.to(dtype) * (1 + 1j if kind == "complex64" else 1)
            params[k] = torch.nn.Parameter(p.detach().to(dtype))
            params[k].grad = grad
    if kind == "twice":
        params[3] = torch.nn.Parameter(params[1].detach()[:4])
        params[3].grad = torch.ones(4, 3)
    return params


def stock_norm(params, order) -> float:
    """The norm in float64, taken apart from the library."""
    parts = []
    for p in params:
        g = p.grad.coalesce().to_dense() if p.grad.layout != torch.strided else p.grad
        parts.append(g.to(torch.complex128 if g.is_complex() else torch.float64).abs().reshape(-1))
    return torch.linalg.vector_norm(torch.cat(parts), order).item()


@pytest.mark.filterwarnings("ignore:fastopt.torch")
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "complex64", "sparse", "twice"])
@orders
@pytest.mark.parametrize("scale", [None, 8.0])
def test_what_is_left_to_pytorch_joins_the_norm_and_is_scaled(kind, order, scale):
    if scale is not None and kind in ("float16", "complex64", "sparse"):
        return
    mine, plain = left_params(kind), left_params(kind)
    opt, other = ft.SGD(mine, lr=0.1, momentum=0.9, clip_norm=0.5, norm_type=order), ft.SGD(plain, lr=0.1, momentum=0.9)
    for _ in range(3):
        kept, before = [(p.grad, p.grad._version) for p in mine], bits(p.grad for p in mine)
        if scale is not None:
            opt.grad_scale = other.grad_scale = scale
            opt.found_inf = other.found_inf = torch.tensor(0.0)
        opt.step()
        norm = stock_norm(mine, order) / (scale or 1)
        assert opt.grad_norm == pytest.approx(norm, rel=1e-13)
        factor = reference.clip_factor("torch", opt.grad_norm, 0.5)
        for p, q in zip(mine, plain, strict=True):
            q.grad = p.grad * factor
        other.step()
        assert bits(mine)[0] == bits(plain)[0]
        tolerance = {"rtol": 2e-2, "atol": 1e-3} if kind == "bfloat16" else {"rtol": 1e-6, "atol": 1e-7}
        for p, q in zip(mine, plain, strict=True):
            torch.testing.assert_close(p, q, **tolerance)
        assert all(p.grad is g and g._version == v for p, (g, v) in zip(mine, kept, strict=True))
        assert bits(p.grad for p in mine) == before


@pytest.mark.filterwarnings("ignore:fastopt.torch")
def test_the_sums_of_what_is_left_are_added_after_the_compiled_ones_in_order():
    params = left_params("float16")
    opt = ft.SGD(params, lr=0.1, clip_norm=1.0)
    opt.step()
    total = fastopt.norm([params[0].grad.numpy(), params[2].grad.numpy()]) ** 2
    parts = [fastopt.norm(params[k].grad.double().numpy()) ** 2 for k in (1, 3)]
    assert opt.grad_norm == pytest.approx(math.sqrt(total + parts[0] + parts[1]), rel=1e-15)
    alone = [p for p in left_params("float16") if p.dtype == torch.float16]
    opt = ft.SGD(alone, lr=0.1, clip_norm=1.0)  # nothing is compiled
    opt.step()
    assert opt.grad_norm == pytest.approx(stock_norm(alone, 2), rel=1e-14)


@pytest.mark.filterwarnings("ignore:fastopt.torch")
def test_fused_kernels_get_copies_too():
    """They write the unscaled gradient to what they are given."""
    for factor in (0.5, 1e9):
        params = made(shapes=[(30, 4)], dtypes=(torch.float32,))
        params.append(torch.nn.Parameter(torch.ones(6).half()))
        params[1].grad = torch.full((6,), 3.0).half()
        opt = ft.AdamW(params, fused=True, clip_norm=factor)
        opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        before = bits(p.grad for p in params)
        opt.step()
        assert bits(p.grad for p in params) == before
        assert opt.grad_norm == pytest.approx(stock_norm(params, 2) / 4, rel=1e-14)


@pytest.mark.filterwarnings("ignore:fastopt.torch")
def test_a_gradient_that_cannot_be_summed_is_an_error_before_any_write():
    p, q = made(shapes=[(3,), (4,)], dtypes=(torch.float32,))
    opt = ft.SGD([("first", p), ("second", q)], lr=0.1, clip_norm=1.0)
    opt.step()
    kept = q.grad
    meta = torch.nn.Parameter(torch.zeros(4, device="meta"))
    meta.grad = torch.zeros(4, device="meta")
    opt.add_param_group({"params": [("third", meta)]})
    before = bits([p, q]), p._version, opt.grad_norm
    with pytest.raises(errors.GradientError, match="gradient of parameter 'third'.*clip_norm"):
        opt.step()
    assert (bits([p, q]), p._version, opt.grad_norm) == before and q.grad is kept
    meta.grad = None
    opt.step()


@pytest.mark.filterwarnings("ignore:fastopt.torch")
def test_gradients_are_put_back_where_pytorchs_step_fails(monkeypatch):
    params = left_params("float16")
    opt = ft.SGD(params, lr=0.1, clip_norm=0.5)

    def broken(self):
        raise RuntimeError("out of order")

    monkeypatch.setattr(ft.SGD, "_twin_step", staticmethod(broken))
    before, grads = frozen(opt), [p.grad for p in params]
    with pytest.raises(RuntimeError, match="out of order"):
        opt.step()
    assert frozen(opt) == before and all(p.grad is g for p, g in zip(params, grads, strict=True))


def test_differentiable_steps_do_not_clip():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(errors.HyperparameterError, match="clip_norm is not supported with differentiable=True"):
        ft.SGD([p], differentiable=True, clip_norm=1.0)
    opt = ft.SGD([p], differentiable=True)
    with pytest.raises(errors.HyperparameterError, match="differentiable=True"):
        opt.clip_norm = 1.0
    assert opt.clip_norm is None
    opt = ft.SGD([p], clip_norm=1.0)
    p.grad = torch.ones(3)
    opt.step()
    opt.param_groups[0]["differentiable"] = True
    before = frozen(opt)
    with pytest.raises(errors.HyperparameterError, match="differentiable=True"):
        opt.step()
    assert frozen(opt) == before


# --- The settings


BAD = {
    "clip_norm": [0, -1.0, math.nan, "1", True, [1.0], torch.ones(2), float, lambda step: 1.0],
    "norm_type": [1, 0, -math.inf, "2", None, True, math.nan],
    "clip_group": [0, "world", object()],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name):
    params = made()
    opt = ft.Adam(params, clip_norm=1.0)
    opt.step()
    before = frozen(opt), opt.clip_norm, opt.norm_type, opt.clip_group
    for bad in BAD[name]:
        with pytest.raises(errors.HyperparameterError, match=f"{name}=.* must be"):
            ft.Adam(params, **{name: bad})
        with pytest.raises(errors.HyperparameterError, match=f"{name}=.* must be"):
            setattr(opt, name, bad)
    assert (frozen(opt), opt.clip_norm, opt.norm_type, opt.clip_group) == before


def test_numbers_of_all_kinds():
    for limit in (1, np.float32(0.5), torch.tensor(0.5), np.int64(2)):
        opt = ft.Adam(made(), clip_norm=limit, norm_type=np.float64(2))
        assert opt.clip_norm == float(limit) and type(opt.clip_norm) is float and opt.norm_type == 2


def test_words_of_other_libraries_name_the_option():
    for word in ("max_grad_norm", "max_norm", "global_clipnorm", "gradient_clipping", "clip_grad_norm"):
        with pytest.raises(errors.UnknownOptionError, match=f"has no option '{word}': did you mean 'clip_norm'"):
            ft.Adam(made(), **{word: 1.0})
    for options in ({"clip_norm": 1.0}, {"norm_type": 2}):
        with pytest.raises(errors.UnknownOptionError, match="option of the optimizer"):
            ft.Adam([{"params": made(), **options}])
        opt = ft.Adam(made())
        with pytest.raises(errors.UnknownOptionError, match="option of the optimizer"):
            opt.add_param_group({"params": made(1), **options})
        assert len(opt.param_groups) == 1


def test_it_can_be_set_between_steps(way):
    params = made()
    arrays = arrays_of(params)
    opt, core = ft.Adam(params), fastopt.Adam(arrays)
    for step, (limit, order) in enumerate([(None, 2), (0.5, 2), (0.25, 2), (0.25, math.inf), (None, 2), (9e9, 2)]):
        regrade(params, step)
        opt.clip_norm = core.clip_norm = limit
        opt.norm_type = core.norm_type = order
        plan = opt._plan
        opt.step()
        core.step([p.grad.numpy() for p in params])
        assert opt.grad_norm == core.grad_norm and (opt.grad_norm is None) == (limit is None)
        assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]
        assert opt._plan is plan or step not in (2, 3), "another number needs no other plan"


def test_what_is_set_while_averages_stand_in_the_place_of_parameters_holds_after_it():
    for first, then in ((1.0, 0.5), (None, 0.5), (1.0, None)):
        mine, plain = made(), made()
        opt, other = ft.SGD(mine, lr=0.1, ema_decay=0.5, clip_norm=first), ft.SGD(plain, lr=0.1, clip_norm=first)
        opt.step()
        other.step()
        with opt.averaged():
            opt.clip_norm = then
            opt.norm_type = math.inf
        other.clip_norm, other.norm_type = then, math.inf
        opt.step()
        other.step()
        assert opt.grad_norm == other.grad_norm
        assert bits(mine) == bits(plain)


def test_no_state_and_no_group_knows_of_it():
    opt, plain = ft.AdamW(made(), clip_norm=1.0, norm_type=math.inf), torch.optim.AdamW(made())
    for one in (opt, plain):
        one.step()
    mine, theirs = opt.state_dict(), plain.state_dict()
    assert [group.keys() for group in mine["param_groups"]] == [group.keys() for group in theirs["param_groups"]]
    assert [entry.keys() for entry in mine["state"].values()] == [entry.keys() for entry in theirs["state"].values()]
    plain.load_state_dict(mine)
    opt.load_state_dict(theirs)
    assert opt.clip_norm == 1.0 and opt.norm_type == math.inf


def test_copies_and_pickles_have_the_settings():
    opt = ft.AdamW(made(), clip_norm=0.5, norm_type=math.inf)
    opt.step()
    stream = io.BytesIO()
    torch.save(opt, stream)
    stream.seek(0)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), torch.load(stream, weights_only=False)):
        assert (other.clip_norm, other.norm_type, other.clip_group, other.grad_norm) == (0.5, math.inf, None, None)
        params = other.param_groups[0]["params"]
        for p, q in zip(params, opt.param_groups[0]["params"], strict=True):
            p.grad = q.grad
        again = copy.deepcopy(opt)
        for p, q in zip(again.param_groups[0]["params"], params, strict=True):
            p.grad = q.grad
        again.step()
        other.step()
        assert other.grad_norm == again.grad_norm == opt.grad_norm
        assert bits(params) == bits(again.param_groups[0]["params"])


def test_a_pickle_without_the_settings_loads():
    """As one of an earlier version is."""
    opt = ft.AdamW(made(), clip_norm=1.0)
    opt.step()
    state = opt.__getstate__()
    state["_settings"] = {"n_threads": 1, "flush_subnormal": False}
    other = ft.AdamW.__new__(ft.AdamW)
    other.__setstate__(state)
    assert other.clip_norm is None and other._settings["n_threads"] == 1
    other.step()
    assert other.grad_norm is None


# --- Closures, hooks, other threads


def test_closures_and_hooks():
    p = torch.nn.Parameter(torch.zeros(3))
    opt, seen = ft.SGD([p], lr=1.0, clip_norm=1.0), []

    def closure():
        opt.zero_grad()
        loss = (p * torch.tensor([3.0, 0.0, 4.0])).sum()
        loss.backward()
        return loss

    assert opt.step(closure) == 0.0 and opt.grad_norm == 5.0
    opt.register_step_pre_hook(lambda *_: setattr(opt, "clip_norm", 0.5))
    opt.register_step_post_hook(lambda *_: seen.append(opt.grad_norm))
    opt.step()
    assert seen == [5.0]
    torch.testing.assert_close(p.detach(), torch.tensor([-0.9, 0.0, -1.2]))


def test_a_failed_step_changes_nothing_and_the_next_one_is_right():
    params = made()
    opt = ft.AdamW(params, clip_norm=0.5, fallback="error")
    opt.step()
    norm, kept = opt.grad_norm, params[0].grad
    params[0].grad = None
    params[0].grad = kept.to_sparse()
    before = bits(params), opt.grad_norm
    with pytest.raises(errors.TensorLayoutError, match="gradient of parameter 0"):
        opt.step()
    assert (bits(params), opt.grad_norm) == before
    params[0].grad = kept
    opt.step()
    assert opt.grad_norm == norm


def test_it_is_not_changed_in_the_middle_of_a_step():
    inside, go_on = threading.Event(), threading.Event()

    class Slow(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                go_on.wait(60)
            return super().__torch_function__(function, types, args, kwargs or {})

    p = torch.nn.Parameter(torch.zeros(3))
    opt = ft.SGD([p], lr=0.1, clip_norm=1.0)
    p.grad = torch.ones(3).as_subclass(Slow)
    thread = threading.Thread(target=opt.step)
    thread.start()
    assert inside.wait(60)
    try:
        for name, value in (("clip_norm", 2.0), ("norm_type", 2), ("clip_group", None)):
            with pytest.raises(errors.ConcurrentStepError):
                setattr(opt, name, value)
    finally:
        go_on.set()
        thread.join()
    assert opt.clip_norm == 1.0


def test_plain_steps_take_no_norm():
    opt = ft.AdamW(made())
    opt.step()
    assert opt.grad_norm is None and (opt.clip_norm, opt.norm_type, opt.clip_group) == (None, 2, None)


def test_a_lost_process_group_is_not_forgotten():
    opt = ft.AdamW(made(), clip_norm=1.0)
    opt.clip_group = LOST
    other = pickle.loads(pickle.dumps(opt))
    assert other.clip_group is LOST
    for p, q in zip(other.param_groups[0]["params"], made(), strict=True):
        p.grad = q.grad
    before = frozen(other)
    with pytest.raises(errors.HyperparameterError, match="clip_group of this optimizer was lost"):
        other.step()
    assert frozen(other) == before
    other.clip_group = None
    other.step()
