"""What cannot be stepped compiled is left to PyTorch's own step, parameter by parameter, and goes on from there."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from facts import with_convention  # noqa: E402

import fastopt.torch as ft  # noqa: E402
from fastopt import _fallback, errors  # noqa: E402
from fastopt._tensors import Host  # noqa: E402
from fastopt.engine import TensorPlan  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in with_convention("torch")},
    "SGD": {"momentum": 0.9}, "AdamW": {"amsgrad": True}, "RMSprop": {"momentum": 0.5, "centered": True},
}  # fmt: skip
every = pytest.mark.parametrize("name", OPTIONS)
both = (torch.optim, ft)


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    """Every test begins without a warning given."""
    monkeypatch.setattr(_fallback, "warned", set())


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def float16() -> list[torch.Tensor]:
    return [random(4, 3).half()]


def imaginary() -> list[torch.Tensor]:
    return [random(4, 3, dtype=torch.complex64)]


def overlapping() -> list[torch.Tensor]:
    base = random(12)
    return [base[:8], base[4:]]


KINDS = {"float16": float16, "complex": imaginary, "overlapping": overlapping}


def parameters(kind: str) -> list[torch.Tensor]:
    """Ordinary parameters around those of a kind."""
    return [p.detach().requires_grad_() for p in (random(5, seed=1), *KINDS[kind](), random(2, 3, seed=2))]


def set_gradients(params: list[torch.Tensor], seed: int) -> None:
    for i, p in enumerate(params):
        dtype = torch.complex64 if p.is_complex() else torch.float32
        p.grad = random(*p.shape, seed=100 * seed + i, dtype=dtype).to(p.dtype)


def trained(module: Any, name: str, kind: str, steps: int = 4, **options: Any) -> tuple[Any, list[torch.Tensor]]:
    params = parameters(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opt = getattr(module, name)(params, lr=0.01, **OPTIONS[name], **options)
        for step in range(steps):
            set_gradients(params, step)
            opt.step()
    return opt, params


def assert_alike(one: list[torch.Tensor], other: list[torch.Tensor], tol: float = 1e-5) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tol, atol=1e-6)


@every
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_and_the_state_are_pytorchs(name, kind):
    (theirs, wanted), (mine, got) = (trained(module, name, kind) for module in both)
    assert_alike(got, wanted)
    for p, q in zip(got, wanted, strict=True):
        a, b = mine.state[p], theirs.state[q]
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    for p, q in zip(got[1:-1], wanted[1:-1], strict=True):
        assert torch.equal(p, q)  # it is PyTorch's own step


@every
def test_ordinary_parameters_are_stepped_compiled_beside_them(name, monkeypatch):
    """Their bits are those of an optimizer of their own."""
    opt, params = trained(ft, name, "float16")
    alone = [random(5, seed=1).requires_grad_(), random(2, 3, seed=2).requires_grad_()]
    other = getattr(ft, name)(alone, lr=0.01, **OPTIONS[name])
    for step in range(4):
        set_gradients([alone[0], random(4, 3).half().requires_grad_(), alone[1]], step)
        other.step()
    assert torch.equal(params[0], alone[0]) and torch.equal(params[2], alone[1])


def test_the_plan_of_the_others_is_kept(monkeypatch):
    opt, params = trained(ft, "Adam", "float16", steps=2)
    bound = []
    monkeypatch.setattr(type(opt), "_bound", lambda *args: bound.append(args))
    for step in range(3):
        set_gradients(params, step)
        opt.step()
    assert not bound


@every
def test_sparse_gradients_are_as_in_pytorch(name):
    """Stepped or refused, as PyTorch does; where it refuses, nothing of the others was written."""
    seen = []
    for module in both:
        dense, table = random(5).requires_grad_(), random(4, 3, seed=1).requires_grad_()
        opt = getattr(module, name)([dense, table], lr=0.1)
        error = None
        for step in range(3):
            dense.grad = random(5, seed=step)
            table.grad = torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), random(3, 3, seed=step + 9), (4, 3))
            if step == 2:
                table.grad = table.grad.to_dense()  # dense again: the compiled step goes on from the state
            try:
                opt.step()
            except RuntimeError as caught:
                error = str(caught)
                if module is ft:
                    assert torch.equal(dense, random(5)) and not torch.equal(table.grad.to_dense(), table)
                break
        seen.append((error, dense, table))
    assert seen[0][0] == seen[1][0]
    if seen[0][0] is None:
        assert_alike(seen[1][1:], seen[0][1:])


def test_meta_tensors_and_fake_ones_are_stepped():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for module in both:
        p = torch.zeros(3, device="meta", requires_grad=True)
        p.grad = torch.ones(3, device="meta")
        module.AdamW([p]).step()
        with FakeTensorMode():
            q = torch.zeros(3, requires_grad=True)
            q.grad = torch.ones(3)
            module.SGD([q], lr=0.1).step()


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_gradient_that_is_the_parameter_is_as_in_pytorch(name):
    moved = []
    for module in both:
        p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
        opt = getattr(module, name)([p, q], lr=0.5)
        for _ in range(2):
            p.grad, q.grad = p.detach(), torch.ones(3)
            opt.step()
        moved.append([p, q])
    assert_alike(moved[1], moved[0])


def test_differentiable_steps_are_operations_of_autograd():
    """As in PyTorch's own tests: the gradient of a step by its learning rate."""
    slopes = []
    for module in both:
        p = torch.ones(3, dtype=torch.float64)
        g = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
        w = p.clone().requires_grad_().clone()
        w.grad = g
        opt = module.SGD([p.requires_grad_()], lr=0.1, differentiable=True)
        opt.param_groups[0]["params"] = [w]
        opt.step()
        w.sum().backward()
        slopes.append(g.grad)
    assert torch.equal(slopes[0], slopes[1]) and slopes[0][0] == -0.1


@pytest.mark.parametrize("case", ["expanded", "expanded, fused", "overlapping, fused"])
def test_what_pytorch_gets_wrong_is_stepped_by_its_plain_loop_or_refused(case):
    params = [random(4, 1).expand(4, 3)] if "expanded" in case else overlapping()
    params = [p.detach().requires_grad_() for p in params]
    options = {"fused": True} if "fused" in case else {}
    opt = ft.Adam(params, lr=0.1, fallback="silent", **options)
    before = [p.detach().clone() for p in params]
    set_gradients(params, 0)
    if "expanded" in case:
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            opt.step()
        return
    opt.step()
    plain = [p.detach().requires_grad_() for p in overlapping()]
    set_gradients(plain, 0)
    torch.optim.Adam(plain, lr=0.1, foreach=False).step()
    assert_alike(params, plain, 0.0)
    assert not torch.equal(params[0], before[0])


def test_a_parameter_without_storage_is_never_passed_on():
    p = torch.ones(1000, requires_grad=True)
    p.grad = torch.ones(1000)
    opt = ft.Adam([p])
    opt.step()
    p.data.untyped_storage().resize_(0)
    with pytest.raises(errors.LayoutError, match="storage"):
        opt.step()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion"])
def test_a_parameter_that_was_cast_goes_on_compiled(name):
    options = {"momentum": 0.9} if name == "SGD" else {}
    p = random(8).half().requires_grad_()
    opt = getattr(ft, name)([p], lr=0.01, fallback="silent", **options)
    for step in range(2):
        p.grad = random(8, seed=step).half()
        opt.step()
    assert opt._plan is None
    slot = "momentum_buffer" if name == "SGD" else "exp_avg"
    kept, before = opt.state[p][slot].float(), p.detach().float()
    p.data = p.data.float()
    p.grad = random(8, seed=7)
    opt.step()
    assert opt._plan is not None and opt.state[p][slot].dtype == torch.float32
    q = before.clone().requires_grad_()
    other = getattr(ft, name)([q], lr=0.01, **options)
    q.grad = random(8, seed=7)
    other.state[q][slot] = kept.clone()
    if name != "SGD":
        other.state[q].update({key: value.float() for key, value in opt.state[p].items() if key != slot})
        other.state[q]["step"] = torch.tensor(2.0)
        if name == "AdamW":
            other.state[q]["exp_avg_sq"] = (opt.state[p]["exp_avg_sq"] - 0.001 * q.grad**2) / 0.999
    other.step()
    assert_alike([p], [q], 1e-3)


def test_lion_in_half_precision_is_lion():
    p, q = random(64).double().requires_grad_(), random(64).requires_grad_()
    half = random(64).half().requires_grad_()
    options = {"lr": 0.01, "weight_decay": 0.1, "fallback": "silent"}
    one, other = ft.Lion([p, half], **options), ft.Lion([q], **options)
    for step in range(5):
        p.grad, q.grad, half.grad = (random(64, seed=step).to(x.dtype) for x in (p, q, half))
        one.step()
        other.step()
    assert_alike([p.float()], [q])
    assert (half.float() - q).abs().max() < 0.05 and one.state[half]["step"] == 5


@pytest.mark.parametrize("made", ["parameters", "state"])
def test_steps_in_inference_mode_are_bound_once(made, monkeypatch):
    with torch.inference_mode(made == "parameters"):
        params = [torch.ones(3) for _ in range(3)]
    for p in params:
        p.grad = torch.ones(3)
    opt = ft.Adam(params, lr=0.1)
    with torch.inference_mode():
        opt.step()
        monkeypatch.setattr(type(opt), "_bound", lambda *args: pytest.fail("bound again"))
        opt.step()
    assert all(opt.state[p]["step"] == 2 for p in params)
    monkeypatch.undo()
    with pytest.raises(errors.InferenceModeError):
        opt.step()
    assert all(opt.state[p]["step"] == 2 for p in params)


# --- What changes between steps


def dense_then_sparse(kind: type[dict]) -> list[Any]:
    """Both modules: a group whose second parameter gets a dense gradient, a sparse one, and a dense one."""
    seen = []
    for module in both:
        a, b = random(4).half().requires_grad_(), random(4, 3, seed=1).requires_grad_()
        group = kind(params=[a, b])
        opt = module.SGD([group], lr=0.1, momentum=0.9, **({"fallback": "silent"} if module is ft else {}))
        for step in range(4):
            a.grad, b.grad = random(4, seed=step).half(), random(4, 3, seed=step + 9)
            if step in (1, 2):
                b.grad = b.grad.to_sparse()
            opt.step()
        seen.append((a, b))
    return seen


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_gradients_that_become_sparse_and_dense_again(kind):
    """Beside a parameter that is left to PyTorch anyway."""
    theirs, mine = dense_then_sparse(kind)
    assert_alike(mine, theirs)


def test_a_group_that_is_removed_is_not_stepped():
    params = parameters("float16")
    opt = ft.SGD([{"params": [params[0]]}, {"params": params[1:]}], lr=0.1, fallback="silent")
    set_gradients(params, 0)
    opt.step()
    removed = opt.param_groups.pop()
    before = params[1].detach().clone()
    opt.step()
    assert torch.equal(params[1], before)
    opt.param_groups.append(removed)
    opt.step()
    assert not torch.equal(params[1], before)


def test_gradients_that_come_and_go_keep_the_plan(monkeypatch):
    opt, params = trained(ft, "SGD", "float16", steps=2, fallback="silent")
    monkeypatch.setattr(type(opt), "_bound", lambda *args: pytest.fail("bound again"))
    for step in range(4):
        set_gradients(params, step)
        if step % 2:
            params[1].grad = None
        opt.step()


def test_nothing_of_the_callers_is_kept():
    """Not by the traceback of an error that said why a parameter is left."""

    class Batch:
        pass

    def train() -> tuple[Any, Any]:
        batch = Batch()
        params = parameters("float16")
        set_gradients(params, 0)
        opt = ft.SGD(params, lr=0.1, fallback="silent")
        opt.step()
        return opt, weakref.ref(batch)

    gc.disable()
    try:
        opt, batch = train()
        assert batch() is None
        gone = weakref.ref(opt)
        del opt
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
@pytest.mark.parametrize("case", ["sparse momentum", "cast"])
def test_state_that_pytorch_left_can_be_copied_and_loaded(case, way):
    p = random(4, 3).requires_grad_() if case == "sparse momentum" else random(4, 3).half().requires_grad_()
    opt = ft.SGD([p], lr=0.1, momentum=0.9, fallback="silent")
    p.grad = random(4, 3).to(p.dtype).to_sparse() if case == "sparse momentum" else random(4, 3).half()
    opt.step()
    if case == "cast":
        p.data = p.data.float()
    p.grad = None
    other = way(opt)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    q = other.param_groups[0]["params"][0]
    for one, optimizer in ((p, opt), (q, other)):
        one.grad = torch.ones(4, 3).to_sparse() if case == "sparse momentum" else torch.ones(4, 3)
        optimizer.step()
    assert torch.equal(p, q)
    if case == "sparse momentum":  # to which PyTorch cannot add a dense gradient
        p.grad = torch.ones(4, 3)
        with pytest.raises(RuntimeError):
            opt.step()


def test_a_partner_in_memory_of_what_is_left_is_left_too():
    """As a tied embedding: PyTorch's order counts."""
    seen = []
    for module in both:
        base = random(4, 3)
        d, e = base.requires_grad_(), base.detach().requires_grad_()
        opt = module.Adagrad([d, e], lr=0.1, weight_decay=0.0, **({"fallback": "silent"} if module is ft else {}))
        for step in range(3):
            d.grad, e.grad = random(4, 3, seed=step), random(4, 3, seed=step + 5).to_sparse()
            opt.step()
        seen.append([d])
    assert_alike(seen[1], seen[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("what", ["gradient", "state"])
def test_freed_memory_is_never_passed_on(dtype, what):
    p = random(1000).to(dtype).requires_grad_()
    p.grad = random(1000).to(dtype)
    opt = ft.Adam([p], fallback="silent")
    opt.step()
    p.grad = random(1000, seed=1).to(dtype)
    opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"].clone()  # PyTorch cannot resize memory that came from NumPy
    freed = p.grad if what == "gradient" else opt.state[p]["exp_avg"]
    freed.untyped_storage().resize_(0)
    if dtype == torch.float16:
        opt._mixed = None
    with pytest.raises(errors.FastoptError, match="storage"):
        opt.step()


def test_many_parameters_with_one_gradient_are_looked_through_in_no_time():
    g = torch.ones(3)
    params = [torch.ones(3, requires_grad=True) for _ in range(20_000)]
    for p in params:
        p.grad = g
    assert _fallback.overlapping([(p, "p") for p in params]) == {}
    assert len(_fallback.overlapping([(params[0], "a"), (params[0].detach().requires_grad_(), "b")])) in (0, 2)


# --- Options and warnings


def test_one_warning_a_kind_and_process():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            params = parameters("float16")
            opt = ft.AdamW(params)
            for step in range(3):
                set_gradients(params, step)
                opt.step()
        params = parameters("complex")
        set_gradients(params, 0)
        ft.SGD(params, lr=0.1).step()
    assert [str(w.message).split(";")[0] for w in seen] == [
        "fastopt.torch.AdamW: parameter 1 has dtype torch.float16",
        "fastopt.torch.SGD: parameter 1 has dtype torch.complex64",
    ]
    assert all("fallback='silent'" in str(w.message) and w.filename == __file__ for w in seen)


def test_the_choices():
    for choice, error in (("silent", None), ("error", errors.DTypeError)):
        params = parameters("float16")
        set_gradients(params, 0)
        opt = ft.Adam(params, fallback=choice)
        before = [p.detach().clone() for p in params]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if error is None:
                opt.step()
                continue
            with pytest.raises(error, match="parameter 1 has dtype torch.float16"):
                opt.step()
        assert all(map(torch.equal, params, before))
    for bad in ("ignore", None, True):
        with pytest.raises(errors.HyperparameterError, match="fallback=.* must be one of 'warn', 'silent', 'error'"):
            ft.Adam(parameters("float16"), fallback=bad)


def test_copies_and_checkpoints_have_everything():
    opt, params = trained(ft, "AdamW", "float16", fallback="silent")
    theirs, wanted = trained(torch.optim, "AdamW", "float16")
    _, loaded = trained(ft, "AdamW", "float16", steps=0)
    for p, q in zip(loaded, params, strict=True):
        p.data.copy_(q.data)
    reader = ft.AdamW(loaded, lr=0.5, amsgrad=True, fallback="silent")
    reader.load_state_dict(copy.deepcopy(opt.state_dict()))
    theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
    both_copies = pickle.loads(pickle.dumps((params, opt)))
    for ps, one in ((loaded, reader), (wanted, theirs), both_copies):
        set_gradients(ps, 50)
        one.step()
    set_gradients(params, 50)
    opt.step()
    assert all(map(torch.equal, params, loaded)) and all(map(torch.equal, params, both_copies[0]))
    assert_alike(params, wanted, 1e-4)


@every
def test_ranges_are_pytorchs(name):
    """What its constructors let pass is stepped; what a scheduler makes of an option, too."""
    edits = {"momentum": 1.25} if name == "SGD" else {"lr": -1e-9}
    paths = []
    for module in both:
        p = random(6, dtype=torch.float64).requires_grad_()
        opt = getattr(module, name)([p], lr=0.01, **OPTIONS[name])
        for step in range(4):
            p.grad = random(6, seed=step, dtype=torch.float64)
            opt.step()
            opt.param_groups[0].update(edits)
        paths.append(p)
    assert_alike([paths[1]], [paths[0]], 1e-12)
    with pytest.raises(ValueError):
        getattr(ft, name)([random(3)], lr=-1.0)


# --- Scalers, hooks, closures


class Scaler(torch.amp.GradScaler):
    def __init__(self) -> None:
        super().__init__("cpu", init_scale=1024.0)


def test_gradients_stay_as_they_are_and_a_shared_one_is_divided_once():
    a, b = torch.ones(3).bfloat16().requires_grad_(), torch.ones(3).bfloat16().requires_grad_()
    a.grad = b.grad = torch.full((3,), 1024.0).bfloat16()
    opt, scaler = ft.SGD([a, b], lr=0.5, fallback="silent"), Scaler()
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    assert a[0] == b[0] == 0.5 and a.grad[0] == 1024 and a.grad is b.grad


def test_fused_float16_takes_the_factor_out_by_itself():
    paths = []
    for module in both:
        p = torch.ones(8).half().requires_grad_()
        p.grad = torch.full((8,), 1024.0).half()
        opt, scaler = module.SGD([p], lr=0.5, fused=True, **({"fallback": "silent"} if module is ft else {})), Scaler()
        scaler.scale(torch.ones(()))
        scaler.step(opt)
        paths.append([p])
    assert torch.equal(paths[0][0], paths[1][0]) and paths[0][0][0] == 0.5


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scalers_factor_is_taken_out(unscaled):
    paths = []
    for module in both:
        params, scaler = parameters("overlapping"), Scaler()
        opt = module.SGD(params, lr=0.1, momentum=0.9, **({"fallback": "silent"} if module is ft else {}))
        for step in range(3):
            set_gradients(params, step)
            scaler.scale(torch.ones(()))
            for p in params:
                p.grad = p.grad * 1024
            if unscaled:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
        paths.append(params)
    assert_alike(paths[1], paths[0])
    assert torch.equal(paths[1][1], paths[0][1])


def test_a_step_with_infinities_is_skipped_for_all():
    params, scaler = parameters("overlapping"), Scaler()
    opt = ft.AdamW(params, fallback="silent")
    set_gradients(params, 0)
    params[1].grad[0] = float("inf")
    before = [p.detach().clone() for p in params]
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    assert all(map(torch.equal, params, before)) and not opt.state


def test_unscaling_float16_gradients_is_refused_as_in_pytorch():
    for module in both:
        params, scaler = parameters("float16"), Scaler()
        opt = module.SGD(params, lr=0.1)
        set_gradients(params, 0)
        before = [p.detach().clone() for p in params]
        scaler.scale(torch.ones(()))
        with warnings.catch_warnings(), pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
            warnings.simplefilter("ignore")
            scaler.step(opt)
        assert all(map(torch.equal, params, before))


def test_hooks_and_closures_run_once():
    calls = []
    params = parameters("float16")
    stock = torch.optim.Adam([torch.ones(1, requires_grad=True)])  # which wraps PyTorch's step in its hooks
    stock.step()
    opt = ft.Adam(params, fallback="silent")
    opt.register_step_pre_hook(lambda *args: calls.append("pre"))
    opt.register_step_post_hook(lambda *args: calls.append("post"))

    def closure() -> float:
        calls.append("closure")
        set_gradients(params, 0)
        return 0.5

    assert opt.step(closure) == 0.5
    assert calls == ["pre", "closure", "post"]


def test_an_error_of_pytorchs_leaves_the_compiled_part_alone():
    """And the groups, and the scaler's numbers, in their places."""
    dense, table = torch.ones(3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    opt = ft.Adam([dense, table], fallback="silent")
    dense.grad, table.grad = torch.ones(3), torch.ones(4, 3).to_sparse()
    groups = opt.param_groups
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert torch.equal(dense, torch.ones(3)) and dense not in opt.state
    assert opt.param_groups is groups and groups[0]["params"][0] is dense
    assert opt.grad_scale == 2 and opt.found_inf == 0
    table.grad = torch.ones(4, 3)
    del opt.grad_scale, opt.found_inf
    opt.step()
    assert opt.state[dense]["step"] == opt.state[table]["step"] == 1


def test_ordinary_optimizers_are_not_looked_through(monkeypatch):
    """Only what is bound anew is asked whether it can be stepped."""
    p = torch.ones(3, requires_grad=True)
    opt = ft.Adam([p])
    p.grad = torch.ones(3)
    opt.step()
    monkeypatch.setattr(_fallback, "left_to_pytorch", lambda *args: pytest.fail("looked"))
    for _ in range(3):
        p.grad = torch.ones(3)
        opt.step()
    assert isinstance(opt._plan, TensorPlan)


# --- Memory that other processes have


@pytest.mark.parametrize("kind", [torch.nn.Parameter, type("Own", (torch.nn.Parameter,), {})])
def test_parameters_in_shared_memory_are_stepped_compiled_if_they_have_no_gaps(kind):
    whole, part = random(6).share_memory_(), random(4, 6).share_memory_()
    p, q = kind(whole), kind(part[:, :3])
    assert q.is_shared()
    opt = ft.SGD([p, q], lr=0.1)
    p.grad, q.grad = torch.ones(6), torch.ones(4, 3)
    wanted = [(x - 0.1 * x.grad).detach() for x in (p, q)]
    with pytest.warns(UserWarning, match="parameter 1 has gaps between its elements and is in shared memory"):
        opt.step()
    assert_alike([p, q], wanted)
    assert [one.place for one in opt._mixed.left] == [1]


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_a_count_that_another_process_advances_meanwhile_is_advanced_not_replaced(name):
    """A thread stands in for the process. It writes when the step has written its first element, and not the last."""
    p = torch.zeros(8_000_000).requires_grad_()
    opt = getattr(ft, name)([p], lr=0.1, n_threads=1)
    p.grad = torch.ones(len(p))
    opt.step()
    numbers = {key: opt.state[p][key].numpy() for key in ("step", "mu_product") if key in opt.state[p]}
    seen, ends = p.detach().numpy(), (0, -1)
    for _ in range(20):
        before = [seen[k] for k in ends]
        taken = {key: float(x) for key, x in numbers.items()}
        in_time = []

        def other() -> None:
            deadline = time.monotonic() + 20
            while seen[0] == before[0] and time.monotonic() < deadline:  # noqa: B023
                pass
            for key, number in numbers.items():
                number[...] = number + 1000 if key == "step" else number / 2
            in_time.append(seen[-1] == before[1])  # noqa: B023

        thread = threading.Thread(target=other)
        thread.start()
        opt.step()
        thread.join()
        if in_time == [True]:
            break
    else:
        raise AssertionError("the thread never came in time")
    assert numbers["step"] == taken["step"] + 1001
    if name == "NAdam":
        momentum = 0.9 * (1 - 0.5 * 0.96 ** (0.004 * (taken["step"] + 1)))
        assert numbers["mu_product"] == pytest.approx(taken["mu_product"] / 2 * momentum, rel=1e-6)


# --- fallback="error"


def expanded(p: torch.Tensor, opt: Any) -> None:
    p.data = torch.ones(1, 3).expand(4, 3)


def sparse_gradient(p: torch.Tensor, opt: Any) -> None:
    p.grad = torch.ones(4, 3).to_sparse()


def another_shape(p: torch.Tensor, opt: Any) -> None:
    p.data = torch.ones(5, 7)


def state_of_another_shape(p: torch.Tensor, opt: Any) -> None:
    opt.step()
    opt.state[p]["exp_avg"] = torch.ones(5, 7)


def on_meta(p: torch.Tensor, opt: Any) -> None:
    elsewhere = torch.ones(4, 3, device="meta", requires_grad=True)
    elsewhere.grad = torch.ones(4, 3, device="meta")
    opt.param_groups[0].update(params=[elsewhere], fused=True)


def imaginary_gradient(p: torch.Tensor, opt: Any) -> None:
    p.grad.data = torch.ones(4, 3, dtype=torch.complex64)


def whole_gradient(p: torch.Tensor, opt: Any) -> None:
    p.grad.data = torch.ones(4, 3, dtype=torch.int32)


def state_of_another_dtype(p: torch.Tensor, opt: Any) -> None:
    opt.step()
    opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"].to(torch.complex64)


def no_count(p: torch.Tensor, opt: Any) -> None:
    opt.step()
    opt.state[p]["step"] = None


def count_below_zero(p: torch.Tensor, opt: Any) -> None:
    opt.step()
    opt.state[p]["step"].fill_(-3)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (expanded, errors.LayoutError), (sparse_gradient, errors.LayoutError), (another_shape, errors.ShapeError),
        (state_of_another_shape, errors.StateDictError),
        (on_meta, errors.ParameterError), (imaginary_gradient, errors.DTypeError), (whole_gradient, errors.DTypeError),
        (state_of_another_dtype, errors.StateDictError), (no_count, errors.StateDictError),
        (count_below_zero, errors.StateDictError),
    ],
)  # fmt: skip
def test_what_pytorch_raises_as_a_runtime_error_is_one(make, error):
    for module, options in ((torch.optim, {}), (ft, {"fallback": "error"})):
        p = torch.ones(4, 3, requires_grad=True)
        p.grad = torch.ones(4, 3)
        opt = module.Adam([p], **options)
        make(p, opt)
        with pytest.raises(RuntimeError) as caught:
            opt.step()
    assert isinstance(caught.value, error)


def test_a_gradient_on_another_device_is_a_runtime_error():
    """Autograd lets none be assigned; tensors that compute by themselves may still turn out so."""
    with pytest.raises(RuntimeError) as caught:
        Host.fit(torch.ones(3, device="meta"), torch.ones(3), "the gradient")
    assert isinstance(caught.value, errors.GradientError)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("SGD", "Adagrad")])
def test_sparse_gradients_are_a_runtime_error_where_they_are_in_pytorch(name):
    for module, options in ((torch.optim, {}), (ft, {}), (ft, {"fallback": "error"})):
        p = torch.ones(4, 3, requires_grad=True)
        p.grad = torch.ones(4, 3).to_sparse()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="sparse"):
                getattr(module, name)([p], **options).step()


def test_a_parameter_with_gaps_in_shared_memory_is_an_error():
    p = random(4, 6).share_memory_()[:, :3].detach().requires_grad_()
    opt = ft.Adam([p], fallback="error")
    p.grad = torch.ones(4, 3)
    before = p.detach().clone()
    with pytest.raises(errors.LayoutError, match="in shared memory"):
        opt.step()
    assert torch.equal(p, before)
