"""What fastopt.torch does with tensors: which it steps, which it refuses, and what it notices between steps."""

from __future__ import annotations

import copy
import ctypes
import gc
import math
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections import OrderedDict, UserDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastopt  # noqa: E402
import fastopt.torch as ft  # noqa: E402
from fastopt import FastoptError, engine, errors  # noqa: E402
from fastopt._tensors import Host  # noqa: E402

CLASSES = [getattr(ft, name) for name in ft.__all__]
STATED = [cls for cls in CLASSES if cls is not ft.SGD]


pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """What the compiled step refuses is an error here; test_fallback.py has what is left to PyTorch."""
    monkeypatch.setitem(ft._Compiled.__init__.__kwdefaults__, "fallback", "error")


def tensor(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameter(shape=(3, 4), dtype=torch.float32, seed=0):
    p = torch.nn.Parameter(tensor(shape, dtype, seed))
    p.grad = tensor(shape, dtype, seed + 100)
    return p


def frozen(opt):
    """All that can be seen of an optimizer, to the bit."""

    def bits(x):
        if not torch.is_tensor(x) or x.layout != torch.strided or x.device.type != "cpu":
            return repr(x)
        return x.dtype, tuple(x.shape), bytes(x.detach().clone().contiguous().untyped_storage())

    params = [p for group in opt.param_groups for p in group["params"]]
    return (
        [bits(p) for p in params], [bits(p.grad) for p in params],
        [{k: bits(v) for k, v in opt.state[p].items()} for p in params if p in opt.state],
        [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups],
    )  # fmt: skip


def refuses(opt, error, match):
    """A step raises this error, and has changed nothing."""
    before = frozen(opt)
    with pytest.raises(error, match=match) as caught:
        opt.step()
    assert isinstance(caught.value, FastoptError)
    assert frozen(opt) == before


def stepped_alike(params, twins, opt, other, steps=3, tol=1e-12):
    for k in range(steps):
        for p, q in zip(params, twins, strict=True):
            g = tensor(p.shape, p.dtype, 1000 + k)
            p.grad, q.grad = torch.empty_like(p).copy_(g), torch.empty_like(q).copy_(g)
        opt.step()
        other.step()
    for p, q in zip(params, twins, strict=True):
        assert p.shape == q.shape
        torch.testing.assert_close(p, q, rtol=tol, atol=tol * 1e-3)


# --- Which tensors are stepped


def layouts(dtype=torch.float64):
    image = tensor((2, 3, 4, 5), dtype)
    return {
        "contiguous": tensor((3, 4), dtype), "transposed": tensor((4, 3), dtype).t(), "scalar": tensor((), dtype),
        "one element": tensor((1, 1), dtype), "empty": tensor((0, 3), dtype),
        "channels_last": image.contiguous(memory_format=torch.channels_last), "permuted": image.permute(3, 1, 0, 2),
        "channels_last_3d": tensor((1, 2, 3, 2, 2), dtype).contiguous(memory_format=torch.channels_last_3d),
        "a slice of rows": tensor((6, 4), dtype)[2:5], "odd offset": tensor((33,), dtype)[1:],
        "page and more": tensor((1500,), dtype), "a large transposed": tensor((400, 600), dtype).t(),
    }  # fmt: skip


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("cls", [ft.AdamW, ft.SGD, ft.NAdam, ft.Adagrad], ids=lambda cls: cls.__name__)
def test_every_dense_layout_is_stepped_as_torch_does(cls, layout):
    def make():
        return torch.nn.Parameter(layouts()[layout].clone(memory_format=torch.preserve_format))

    options = {"momentum": 0.9} if cls is ft.SGD else {}
    p, q = make(), make()
    assert p.stride() == q.stride()
    where = p.data_ptr()
    opt, other = cls([p], **options), getattr(torch.optim, cls.__name__)([q], **options)
    stepped_alike([p], [q], opt, other)
    assert p.data_ptr() == where
    for name, slot in opt.state[p].items():
        assert slot.shape == other.state[q][name].shape and slot.stride() == other.state[q][name].stride()
        torch.testing.assert_close(slot, other.state[q][name], rtol=1e-12, atol=1e-15, check_dtype=True)


@pytest.mark.parametrize("strides", ["transposed", "expanded", "sliced", "half", "negative view"])
def test_a_gradient_that_lies_otherwise_is_stepped_right(strides):
    p, q = parameter((4, 4)), parameter((4, 4))
    g = tensor((4, 4), seed=7)
    wide = torch.zeros(4, 8)
    wide[:, ::2] = g
    given = {
        "transposed": g.t().contiguous().t(), "expanded": g[:1].expand(4, 4), "sliced": wide[:, ::2],
        "half": g.bfloat16() if hasattr(p, "grad_dtype") else g, "negative view": torch.complex(g, -g).conj().imag,
    }[strides]  # fmt: skip
    if given.dtype != torch.float32:
        p.grad = None
        p.grad_dtype = given.dtype
    p.grad = given
    q.grad = given.to(torch.float32).contiguous().resolve_neg()
    opt, other = ft.SGD([p], lr=0.5, weight_decay=0.1), torch.optim.SGD([q], lr=0.5, weight_decay=0.1)
    opt.step()
    other.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert p.grad.dtype == given.dtype and torch.equal(p.grad, given)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (4, 5)])
def test_the_sign_of_a_gradient_may_be_a_flag(shape):
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = ft.SGD([p], lr=1.0)
    for grad in (torch.full(shape, 1 + 2j).conj().imag, torch._neg_view(torch.full(shape, 2.0))):
        p.data.zero_()
        p.grad = grad
        assert p.grad.is_neg()
        opt.step()
        assert p.unique().tolist() == [2.0]


def test_a_gradient_of_a_class_of_its_own_is_asked_for_its_values():
    class Twos(torch.Tensor):  # of ones, as its memory has it
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return func(*(torch.full((3,), 2.0) if isinstance(x, cls) else x for x in args), **(kwargs or {}))

    p = torch.nn.Parameter(torch.zeros(3))
    opt = ft.SGD([p], lr=1.0)
    for k in range(2):
        p.grad = torch.Tensor._make_subclass(Twos, torch.ones(3))
        opt.step()
        assert p.tolist() == 3 * [-2.0 * (k + 1)]


def test_a_parameter_with_a_gradient_of_its_own_making_is_stepped_by_it():
    class Own(torch.nn.Parameter):
        @property
        def grad(self):
            return torch.ones(3)

    p = Own(torch.zeros(3))
    opt = ft.SGD([p], lr=1.0)
    opt.step()
    opt.step()
    assert p.tolist() == 3 * [-2.0]


def test_the_collector_does_not_run_while_tensors_are_looked_at():
    def backward():
        for p in params:
            p.grad = None
        sum((p * 1.0).sum() for p in params).backward()

    def drop(phase, info):  # what zero_grad() in another thread would do
        if dropping and phase == "start":
            dropping.clear()
            for p in params:
                p.grad = None
            junk.extend(torch.full((60,), 1e9, dtype=torch.float64) for _ in range(50))

    dropping, junk = [], []
    thresholds = gc.get_threshold()
    gc.callbacks.append(drop)
    try:
        for first in range(5, 60, 6):
            params = [torch.nn.Parameter(torch.zeros(60, dtype=torch.float64)) for _ in range(50)]
            opt = ft.SGD(params, lr=1.0)
            backward()
            opt.step()
            backward()
            gc.collect()
            gc.set_threshold(first, 5, 5)
            dropping.append(True)
            opt.step()
            dropping.clear()
            gc.set_threshold(*thresholds)
            assert {x for p in params for x in p.unique().tolist()} <= {-1.0, -2.0}
    finally:
        gc.callbacks.remove(drop)
        gc.set_threshold(*thresholds)
    assert gc.isenabled()


def expanded():
    return torch.zeros(1).expand(5)


def overlapping():
    return torch.zeros(9).as_strided((4, 3), (2, 1))


REFUSED = {
    "expanded": (expanded, errors.LayoutError),
    "overlapping itself": (overlapping, errors.LayoutError),
    "float16": (lambda: torch.zeros(3, dtype=torch.float16), errors.DTypeError),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), errors.DTypeError),
    "sparse": (lambda: torch.eye(3).to_sparse(), errors.LayoutError),
    "meta": (lambda: torch.zeros(3, device="meta"), errors.ParameterError),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("cls", [ft.AdamW, ft.SGD], ids=lambda cls: cls.__name__)
def test_what_cannot_be_stepped_is_refused_before_any_write(cls, kind):
    make, error = REFUSED[kind]
    first, odd = parameter(), torch.nn.Parameter(make())
    odd.grad = torch.ones(3, 3).to_sparse() if kind == "sparse" else torch.ones_like(odd)
    opt = cls([first, odd])
    for _ in range(2):
        refuses(opt, error, "parameter 1")
    assert not opt.state
    odd.grad = None
    opt.step()  # without a gradient it does not matter
    assert first in opt.state or cls is ft.SGD


def misaligned():
    return torch.frombuffer(bytearray(4 * 12 + 1), dtype=torch.float32, offset=1)


GAPS = {
    "columns": lambda: tensor((100, 4))[:, :2], "every other": lambda: tensor((20,))[::2],
    "of a cube, transposed": lambda: tensor((4, 5, 6))[1:3, ::2, 1].t(), "misaligned": misaligned,
}  # fmt: skip


@pytest.mark.parametrize("kind", GAPS)
@pytest.mark.parametrize("cls", [ft.AdamW, ft.SGD], ids=lambda cls: cls.__name__)
def test_a_parameter_with_gaps_is_stepped_and_its_neighbours_are_left_alone(cls, kind):
    plain = parameter(GAPS[kind]().shape)
    mine, theirs = GAPS[kind](), GAPS[kind]()
    base = mine._base if mine._base is not None else mine
    outside = torch.ones_like(base, dtype=torch.bool)
    outside.as_strided(mine.shape, mine.stride(), mine.storage_offset() - base.storage_offset()).fill_(False)
    before = base.clone()
    p, q = torch.nn.Parameter(mine), torch.nn.Parameter(theirs)
    twin = parameter(plain.shape)
    opt, other = cls([plain, p], lr=0.1), getattr(torch.optim, cls.__name__)([twin, q], lr=0.1)
    for k in range(5):
        if k == 3:
            p.data, q.data = p.data + 1, q.data + 1  # dense from now on
        stepped_alike([plain, p], [twin, q], opt, other, steps=1, tol=1e-4)
        if k < 3:
            assert torch.equal(base[outside], before[outside]) and not torch.equal(base[~outside], before[~outside])
    versions = p._version
    opt.step()
    assert p._version > versions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_parameters_with_gaps_may_lie_between_each_other_but_not_share(dtype):
    big = torch.zeros(6, 4, dtype=dtype)
    a, b, c = (torch.nn.Parameter(x) for x in (big[:, :2], big[:, 2:], big[:, 1:3]))
    for p in (a, b, c):
        p.grad = torch.ones(6, 2, dtype=dtype)
    ft.SGD([a, b], lr=1.0, fallback="error").step()
    assert (big == -1).all()
    refuses(ft.SGD([a, c]), errors.OverlapError, "parameter 0 overlaps parameter 1")


def test_a_misaligned_gradient_is_copied():
    p = torch.nn.Parameter(torch.zeros(12))
    p.grad = misaligned()
    p.grad.fill_(2.0)
    ft.SGD([p], lr=1.0).step()
    assert p.tolist() == 12 * [-2.0]


def test_a_sparse_gradient_is_refused():
    p = parameter((5, 2))
    p.grad = torch.eye(5)[:, :2].to_sparse()
    refuses(ft.SGD([p, parameter()]), errors.LayoutError, "gradient of parameter 0.*to_dense")


def test_the_first_that_is_wrong_is_named_by_its_name():
    p = parameter((4,))
    p.grad = torch.eye(4)[0].to_sparse()
    refuses(ft.SGD([("weight", parameter()), ("bias", p)]), errors.LayoutError, "'bias'")


def test_gradients_may_not_lie_in_parameters_or_state():
    p, q = parameter((6,)), parameter((6,))
    p.grad = q.data
    refuses(ft.SGD([p, q]), errors.OverlapError, "gradient of parameter 0 overlaps parameter 1")
    p.grad = p.data
    refuses(ft.SGD([p, q]), errors.OverlapError, "gradient of parameter 0 is parameter 0")
    p.grad = q.grad  # two may share one
    ft.SGD([p, q]).step()


@pytest.mark.parametrize("what", ["data", "frozen", "state"])
def test_memory_that_was_given_up_may_hold_gradients(what):
    for _ in range(30):
        a, b = parameter((30, 40)), parameter((30, 40), seed=1)
        opt = ft.AdamW([a, b])
        opt.step()
        if what == "frozen":
            b.requires_grad_(False)
            b.grad = None
        a.grad = None
        if what == "state":
            opt.state[b]["exp_avg"] = opt.state[b]["exp_avg"].clone()
        else:
            b.data = b.data.clone()
        a.grad = torch.ones(30, 40)
        opt.step()


def test_gradients_that_python_makes_up_are_held_for_the_step():
    class Doubled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
                asked = getattr(func, "__name__", "") == "__get__" and func.__self__ is torch.Tensor.grad
                return result * 2 if asked and result is not None else result

    params = [torch.zeros(50).as_subclass(Doubled).requires_grad_() for _ in range(20)]
    opt = ft.SGD(params, lr=1.0)
    for _ in range(3):
        for k, p in enumerate(params):
            p.grad = torch.full((50,), float(k))
        opt.step()
    with torch._C.DisableTorchFunctionSubclass():
        assert [p.detach().unique().tolist() for p in params] == [[-6.0 * k] for k in range(20)]


def test_hooks_of_a_derived_class_run_once():
    class Mine(ft.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    calls = []
    opt = Mine([parameter()])
    opt.register_step_pre_hook(lambda *args: calls.append("before"))
    opt.register_step_post_hook(lambda *args: calls.append("after"))
    opt.step()
    assert calls == ["before", "after"] and float(opt.state[opt.param_groups[0]["params"][0]]["step"]) == 1


def test_parameters_may_not_overlap():
    flat = torch.zeros(10)
    a, b = torch.nn.Parameter(flat[:6]), torch.nn.Parameter(flat[5:])
    a.grad, b.grad = torch.ones(6), torch.ones(5)
    refuses(ft.SGD([a, b]), errors.OverlapError, "overlaps")


def test_views_that_do_not_overlap_are_stepped():
    flat = torch.zeros(10)
    a, b = torch.nn.Parameter(flat[:5]), torch.nn.Parameter(flat[5:])
    a.grad, b.grad = torch.ones(5), torch.full((5,), 2.0)
    ft.SGD([a, b], lr=1.0).step()
    assert flat.tolist() == 5 * [-1.0] + 5 * [-2.0]


def test_types_may_be_mixed():
    params = [parameter((7,), torch.float64), parameter((5,)), parameter((300,), torch.float64)]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    opt, other = ft.AdamW(params), torch.optim.AdamW(twins)
    stepped_alike(params, twins, opt, other, steps=1, tol=1e-4)
    assert [opt.state[p]["exp_avg"].dtype for p in params] == [p.dtype for p in params]


# --- Same bits as the arrays of NumPy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_tensors_and_arrays_take_the_same_path_to_the_bit(cls, dtype):
    params = [parameter(shape, dtype, k) for k, shape in enumerate([(3, 4), (700,), (1,), (2000,)])]
    arrays = [p.detach().numpy().copy() for p in params]
    options = {"weight_decay": 0.1} if "weight_decay" in cls.core.hyperparameters else {}
    options |= {"momentum": 0.9} if cls is ft.SGD else {}
    opt, core = cls(params, **options), cls.core(arrays, **options)
    assert core.convention == ("paper" if cls is ft.Lion else "torch")
    for k in range(70):  # past a flush
        for p in params:
            p.grad = tensor(p.shape, p.dtype, 1000 + k)
        opt.step()
        core.step([p.grad.numpy() for p in params])
    for p, array, state in zip(params, arrays, core.state, strict=True):
        assert p.detach().numpy().tobytes() == array.tobytes()
        for name, slot in opt.state[p].items():
            assert np.asarray(slot).tobytes() == np.asarray(state[name], slot.numpy().dtype).tobytes(), name


def test_any_number_of_threads_gives_the_same_bits():
    old, most = engine.set_serial_blocks(0), engine.set_most_alone(0)
    try:
        results = []
        for n in (1, 2, 3):
            params = [parameter((2000,), seed=k) for k in range(5)]
            opt = ft.AdamW(params, n_threads=n)
            for k in range(4):
                for p in params:
                    p.grad = tensor((2000,), seed=k)
                opt.step()
            results.append([p.detach().numpy().tobytes() for p in params])
        assert results[0] == results[1] == results[2]
    finally:
        engine.set_serial_blocks(old)
        engine.set_most_alone(most)


# --- What changes between steps is noticed


CHANGES = {
    "data exchanged": lambda p, s: setattr(p, "data", p.data.clone()),
    "data set": lambda p, s: p.data.set_(p.data.clone()),
    "storage shared": lambda p, s: p.data.share_memory_(),
    "state shared": lambda p, s: [t.share_memory_() for t in s.values()],
    "count shared": lambda p, s: s["step"].share_memory_(),
    "state exchanged": lambda p, s: s.update(exp_avg=s["exp_avg"].clone()),
    "state's data exchanged": lambda p, s: setattr(s["exp_avg"], "data", s["exp_avg"].clone()),
    "state's dict in another order": lambda p, s: s.update({k: s.pop(k) for k in list(s)[::-1]}),
    "something more in the state": lambda p, s: s.update(mine=torch.zeros(3)),
    "count exchanged": lambda p, s: s.update(step=s["step"].clone()),
    "count's data exchanged": lambda p, s: setattr(s["step"], "data", s["step"].clone()),
    "count as a number": lambda p, s: s.update(step=int(s["step"])),
    "count as float64": lambda p, s: s.update(step=s["step"].double()),
    "count set in place": lambda p, s: s["step"].fill_(float(s["step"])),
    "state in another layout": lambda p, s: s.update(exp_avg=s["exp_avg"].t().contiguous().t()),
    "gradient exchanged": lambda p, s: setattr(p, "grad", p.grad.clone()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_is_exchanged_between_steps_the_path_stays(what):
    p, q = parameter((30, 50)), parameter((30, 50))
    opt, other = ft.Adam([p]), ft.Adam([q])
    for k in range(6):
        if k in (2, 4):
            CHANGES[what](p, opt.state[p])
        for x in (p, q):
            x.grad.copy_(tensor((30, 50), seed=k))
        opt.step()
        other.step()
        assert torch.equal(p, q), k
        assert torch.equal(opt.state[p]["exp_avg"], other.state[q]["exp_avg"])
        assert float(opt.state[p]["step"]) == k + 1


def test_a_parameter_may_change_its_type_its_layout_and_its_place():
    model = torch.nn.Conv2d(3, 4, 2)
    twin = copy.deepcopy(model)
    opt, other = ft.SGD(model.parameters(), lr=0.1), torch.optim.SGD(twin.parameters(), lr=0.1)
    x = tensor((2, 3, 5, 5))
    for step in range(4):
        for m in (model, twin):
            if step == 1:
                m.to(memory_format=torch.channels_last)
            if step == 2:
                m.double()
            m.zero_grad()
            m(x.to(m.weight.dtype)).square().sum().backward()
        opt.step()
        other.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # the convolutions themselves differ from run to run


@pytest.mark.parametrize(("name", "value", "error"), [
    ("exp_avg", torch.zeros(2), "shape"), ("exp_avg", torch.zeros(3, 4, dtype=torch.float64), "dtype"),
    ("exp_avg", 3.0, "float"), ("step", torch.tensor(-1.0), "step"), ("step", torch.tensor(0.5), "step"),
    ("step", torch.tensor(math.nan), "step"), ("step", "three", "step"),
    ("exp_avg", torch.zeros(1, 4).expand(3, 4), "strides"), ("exp_avg", torch.zeros(3, 4).to_sparse(), "layout"),
])  # fmt: skip
def test_state_that_does_not_fit_is_refused(name, value, error):
    p = parameter()
    opt = ft.Adam([parameter(seed=5), p])
    opt.step()
    held, opt.state[p][name] = opt.state[p][name], value
    before = p.detach().clone()
    with pytest.raises(errors.StateDictError, match=error):
        opt.step()
    assert torch.equal(p, before)
    opt.state[p][name] = held
    opt.step()


def test_a_state_that_shrank_is_refused_not_overrun():
    p = parameter((1000,))
    opt = ft.Adam([p])
    opt.step()
    opt.state[p]["exp_avg"].data = torch.zeros(10)
    refuses(opt, errors.StateDictError, "shape")
    opt.state[p]["exp_avg"].data = torch.zeros(1000)
    p.data.untyped_storage().resize_(0)
    with pytest.raises(errors.LayoutError, match="storage"):
        opt.step()


def test_state_cleared_or_replaced_starts_anew():
    p, q = parameter(), parameter()
    opt, other = ft.Adam([p]), ft.Adam([q])
    opt.step()
    p.data.copy_(q.data)
    opt.state.clear()
    opt.step()
    other.step()
    assert torch.equal(p, q)
    opt.state[p] = {key: value.clone() for key, value in other.state[q].items()}
    opt.step()
    other.step()
    assert torch.equal(p, q) and float(opt.state[p]["step"]) == 2


def test_counts_go_on_beyond_what_float32_can_count():
    p = parameter()
    opt = ft.Adam([p])
    opt.step()
    opt.state[p]["step"].fill_(2.0**24 - 1)
    opt.step()
    assert opt.state[p]["step"].dtype == torch.float32
    for k in range(3):
        opt.step()
        assert opt.state[p]["step"].dtype == torch.float64 and int(opt.state[p]["step"]) == 2**24 + k + 1
    saved = copy.deepcopy(opt.state_dict())
    for fused in (None, True):
        other = ft.Adam([p], fused=fused)
        saved["param_groups"][0]["fused"] = fused
        other.load_state_dict(saved)
        assert int(other.state[p]["step"]) == 2**24 + 3
        other.step()
        assert int(other.state[p]["step"]) == 2**24 + 4
        assert int(saved["state"][0]["step"]) in (2**24 + 3, 2**24 + 4)


def test_the_count_may_be_set_in_place():
    p, q = parameter(), parameter()
    opt, other = ft.Adam([p]), torch.optim.Adam([q])
    for o, x in ((opt, p), (other, q)):
        o.step()
        o.state[x]["step"].fill_(100)
        o.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


# --- All or nothing


def test_state_is_made_only_by_a_step_that_happens():
    p, bad = parameter(), parameter((4,))
    bad.grad = torch.ones(4).to_sparse()
    for cls in STATED:
        opt = cls([p, bad])
        if cls is ft.Adagrad:
            continue  # PyTorch makes its state in the constructor
        with pytest.raises(errors.LayoutError):
            opt.step()
        assert not opt.state


@pytest.mark.parametrize(("option", "value"), [
    ("lr", math.nan), ("lr", "fast"), ("lr", lambda step: 0.1), ("betas", (0.9, math.nan)), ("betas", 0.9),
    ("eps", math.inf), ("weight_decay", math.inf), ("amsgrad", "yes"), ("maximize", 1.5), ("differentiable", True),
    ("lr", torch.tensor(math.nan)),
])  # fmt: skip
def test_options_out_of_range_are_refused_at_every_step(option, value):
    p = parameter()
    opt = ft.AdamW([p])
    opt.step()
    held, opt.param_groups[0][option] = opt.param_groups[0][option], value
    before = p.detach().clone()
    with pytest.raises(errors.HyperparameterError, match=option):
        opt.step()
    assert torch.equal(p, before)
    del opt.param_groups[0][option]
    with pytest.raises(errors.HyperparameterError if option != "differentiable" else ZeroDivisionError, match=option):
        opt.step()
        raise ZeroDivisionError(option)  # that one may be missing
    opt.param_groups[0][option] = held
    opt.step()


def test_differentiable_and_unknown_threads_are_refused_by_the_constructor():
    with pytest.raises(errors.HyperparameterError, match="differentiable"):
        ft.Adam([parameter()], differentiable=True)
    for n in (0, -1, 1.5, "2", True):
        with pytest.raises(errors.HyperparameterError, match="n_threads"):
            ft.Adam([parameter()], n_threads=n)


def test_an_option_of_a_newer_torch_is_refused(monkeypatch):
    monkeypatch.setattr(ft.Adam, "_unknown", {"novelty": False})
    ft.Adam([parameter()])
    with pytest.raises(errors.UnknownOptionError, match="novelty"):
        ft.Adam([parameter()], novelty=True)


# --- Loading


@pytest.mark.parametrize("change", [
    lambda d: d["state"][0].update(exp_avg=torch.zeros(2)), lambda d: d["state"][0].pop("exp_avg_sq"),
    lambda d: d["state"][0].pop("step"), lambda d: d["state"][0].update(step=math.nan),
    lambda d: d["param_groups"][0].update(lr=math.nan), lambda d: d["param_groups"][0].update(betas=(math.nan, 0.9)),
    lambda d: d["param_groups"][0].update(differentiable=True), lambda d: d["state"][0].update(step="x"),
    lambda d: d["state"][0].update(exp_avg="x"), lambda d: d["param_groups"][0].update(params=[0]),
])  # fmt: skip
def test_a_state_dict_that_does_not_fit_changes_nothing(change):
    params = [parameter(), parameter((5,))]
    opt = ft.AdamW(params)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    change(saved)
    opt.step()
    before = frozen(opt)
    with pytest.raises((ValueError, TypeError)):
        opt.load_state_dict(saved)
    assert frozen(opt) == before
    opt.step()


def test_the_state_dict_of_arrays_loads_and_back():
    p = parameter((6,), torch.float64)
    array = p.detach().numpy().copy()
    core, opt = fastopt.Adam([array]), ft.Adam([p])
    core.step([p.grad.numpy()])
    core.step([p.grad.numpy()])
    opt.load_state_dict(core.state_dict())
    p.data.copy_(torch.from_numpy(array))
    opt.step()
    back = fastopt.Adam([p.detach().numpy().copy()])
    back.load_state_dict({k: v for k, v in opt.state_dict().items()})
    core.step([p.grad.numpy()])
    assert p.detach().numpy().tobytes() == array.tobytes()
    assert back.state[0]["exp_avg"].tobytes() == core.state[0]["exp_avg"].tobytes() and back.state[0]["step"] == 3


def test_settings_survive_copies():
    given = {"n_threads": 3, "flush_subnormal": False, "clip_norm": 0.5, "norm_type": math.inf}
    opt = ft.Adam([parameter()], **given)
    assert copy.deepcopy(opt)._settings == {**given, "fallback": "error", "clip_group": None}


# --- Beside autograd


def test_autograd_notices_what_a_step_wrote():
    p = parameter((3,))
    loss = (p * p).sum()
    ft.SGD([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_versions_count_only_what_was_written():
    p, q = parameter(), parameter()
    q.grad = None
    opt = ft.SGD([p, q])
    versions = p._version, q._version
    opt.step()
    assert p._version > versions[0] and q._version == versions[1]


@pytest.mark.parametrize("lacks", ["nothing", "counts", "storage"])
def test_versions_count_once_a_step_whatever_pytorch_offers(lacks, monkeypatch):
    if Host.shim is not None:
        addresses, *rest, storage = Host.shim
        addresses = addresses[:-2] + ([0, 0] if lacks == "counts" else addresses[-2:])
        monkeypatch.setattr(Host, "shim", (addresses, *rest, 1 if lacks == "storage" else storage))
    params, twins = ([parameter((5,), seed=k) for k in range(4)] for _ in range(2))
    opt, other = ft.AdamW(params), torch.optim.AdamW(twins)
    for k in range(4):
        absent, given = params[k].grad, twins[k].grad
        params[k].grad = twins[k].grad = None
        opt.step()
        other.step()
        params[k].grad, twins[k].grad = absent, given
        assert [p._version for p in params] == [k + (i > k) for i in range(4)]
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q)


def test_a_function_mode_does_not_come_between():
    p = parameter()
    opt = ft.Adam([p])
    with torch.device("cpu"):
        opt.step()
        opt.step()
    assert float(opt.state[p]["step"]) == 2


def test_an_optimizer_and_what_it_held_go_when_nobody_needs_them():
    p = parameter((2000,))
    opt = ft.Adam([p])
    opt.step()
    opt.step()
    gone = [weakref.ref(x) for x in (opt, p, opt.state[p]["exp_avg"])]
    gc.collect()
    gc.disable()
    try:
        del opt, p
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_a_rate_that_a_scheduler_took_below_zero_by_rounding_is_no_error():
    p, q = parameter((4,), torch.float64), parameter((4,), torch.float64)
    opt, other = ft.AdamW([p]), torch.optim.AdamW([q])
    schedulers = [torch.optim.lr_scheduler.LinearLR(o, 0.1, 0.0, total_iters=10) for o in (opt, other)]
    for _ in range(12):
        for o, s in zip((opt, other), schedulers, strict=True):
            o.step()
            s.step()
    assert opt.param_groups[0]["lr"] < 0
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


def test_a_momentum_may_be_a_tensor_that_is_edited_in_place():
    p, q = parameter((4,), torch.float64), parameter((4,), torch.float64)
    opt, other = ft.SGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for o in (opt, other):
        o.param_groups[0]["momentum"] = torch.tensor(0.0, dtype=torch.float64)
    for momentum in (0.0, 0.5, 0.9, 0.9):
        for o in (opt, other):
            o.param_groups[0]["momentum"].fill_(momentum)
            o.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


def test_a_momentum_of_zero_switches_nesterov_off():
    p, q = parameter((4,), torch.float64), parameter((4,), torch.float64)
    opt, other = (m.SGD([x], lr=0.1, momentum=0.9, nesterov=True) for m, x in ((ft, p), (torch.optim, q)))
    for momentum in (0.9, 0.0, 0.9):
        for o in (opt, other):
            o.param_groups[0]["momentum"] = momentum
            o.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spoil", [
    lambda o, p: setattr(o, "state", UserDict(o.state)), lambda o, p: o.state.update({p: UserDict(o.state[p])}),
    lambda o, p: setattr(o, "param_groups", tuple(o.param_groups)), lambda o, p: o.state[p].pop("step"),
    lambda o, p: o.state[p].pop("exp_avg_sq"), lambda o, p: o.param_groups[0].update(params=(p,)),
])  # fmt: skip
def test_containers_of_other_kinds_are_errors_with_a_name(spoil):
    p = parameter()
    opt = ft.Adam([p])
    opt.step()
    spoil(opt, p)
    before = p.detach().clone()
    with pytest.raises(FastoptError):
        opt.step()
    assert torch.equal(p, before)


def test_a_group_may_be_given_as_any_dict_and_get_more_parameters():
    first, more = parameter(), parameter(seed=3)
    opt = ft.Adam([OrderedDict(params=[("first", first)])])
    opt.step()
    opt.param_groups[0]["params"].append(more)
    opt.step()
    assert float(opt.state[more]["step"]) == 1


def test_a_state_dict_that_lacks_an_option_is_refused():
    opt = ft.AdamW([parameter()])
    saved = opt.state_dict()
    del saved["param_groups"][0]["betas"]
    with pytest.raises(errors.HyperparameterError, match="betas"):
        opt.load_state_dict(saved)


def test_gradients_are_not_kept():
    for size in (10, 300_000):  # with the GIL, and without
        p = parameter((size,))
        opt = ft.Adam([p])
        opt.step()
        opt.step()
        gone = weakref.ref(p.grad)
        p.grad = None
        gc.collect()
        assert gone() is None


def test_a_gradient_that_another_thread_drops_during_a_step():
    """A step that gives up the GIL holds it: else its memory would go back to the system while it is read."""
    size, dropped = 20_000_000, 0
    p = torch.nn.Parameter(torch.zeros(size))
    values, opt = p.detach().numpy(), ft.SGD([p], lr=1.0, n_threads=1)

    def drop(step):
        nonlocal dropped
        while values[0] > -step:
            pass
        if values[-1] > -step:
            p.grad = None
            dropped += 1

    for step in range(1, 11):
        p.grad = torch.ones(size)
        thread = threading.Thread(target=drop, args=(step,))
        thread.start()
        opt.step()
        thread.join()
        assert (values == -step).all()
    assert dropped


# --- Where the state lies


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_lies_side_by_side_in_storages_of_their_own(dtype):
    shapes = [(5,), (6,), (3, 4), (100,), (2, 0), (), (9, 9, 9), (1000, 30), (513, 1025), (17,), (600, 700)]
    params = [parameter(shape, dtype) for shape in shapes]
    params[7].data = tensor((30, 1000), dtype).t()
    params[7].grad = tensor((30, 1000), dtype).t()
    opt = ft.AdamW(params, amsgrad=True)
    opt.step()
    taken = []
    for p in params:
        entry = opt.state[p]
        for place, name in enumerate(["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], 1):
            x = entry[name]
            assert (x.shape, x.stride(), x.dtype) == (p.shape, p.stride(), dtype) and not x.requires_grad
            assert x._base is None and x.storage_offset() == 0 and x.untyped_storage().nbytes() == p.nbytes
            if p.numel():
                assert x.data_ptr() % 64 == 0
                taken.append((x.data_ptr(), x.data_ptr() + x.nbytes))
            if p.nbytes >= 4096:
                assert (x.data_ptr() - p.data_ptr() // 64 * 64) % 4096 == place * 1024
        assert entry["step"].untyped_storage().nbytes() == entry["step"].nbytes
        taken.append((entry["step"].data_ptr(), entry["step"].data_ptr() + entry["step"].nbytes))
    taken.sort()
    assert all(high <= low for (_, high), (low, _) in zip(taken, taken[1:], strict=False))
    small = [opt.state[p]["exp_avg"].data_ptr() for p in params[2:4]]  # the first lies alone, or with one more
    assert small[1] - small[0] == 64 * -(-params[2].nbytes // 64)


def test_state_of_empty_tensors_of_two_types_is_saved(tmp_path):
    """What is empty lies nowhere: at the address of a neighbour of another type, torch.save would refuse both."""
    params = [parameter(shape, dtype) for dtype in (torch.float32, torch.float64) for shape in ((0,), (3,), (2, 0))]
    opt = ft.AdamW(params)
    opt.step()
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    other = ft.AdamW(params)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert frozen(other) == frozen(opt)


def test_the_state_of_one_small_parameter_takes_no_more_than_it_needs():
    """As with an optimizer for each parameter, or a group that is added after each step."""
    arena = engine.Arena(Host.exchange)
    for own in (torch.ones(3), torch.ones(5, dtype=torch.float64), torch.ones(1024)):
        lone = engine.Arena(Host.exchange)
        made = [(lone.zeros(own, place), lone.zero(False)) for place in range(2)]
        sizes = [piece.nbytes for piece in lone.pieces.values()]
        assert sum(sizes) <= (1 if own.nbytes < 4096 else 3) * (2 * own.nbytes + 8192 + 256) and made
    many = [arena.zeros(torch.ones(64), 0) for _ in range(1000)]
    assert arena.pieces[0].nbytes <= 2 * sum(x.nbytes for x in many)


def test_memory_of_state_that_was_exchanged_is_given_back():
    """The plan goes on, and new state may come from the same piece, but it does not keep that alive."""
    p, q = parameter((250_000,)), parameter((250_000,))
    absent, q.grad = q.grad, None
    opt = ft.AdamW([p, q])
    tracemalloc.start()
    try:
        opt.step()
        plan, before = opt._plan, tracemalloc.get_traced_memory()[0]
        opt.state[p]["exp_avg"].share_memory_()
        opt.state[p]["exp_avg_sq"].data = torch.ones(250_000)
        opt.step()
        gc.collect()
        assert before - tracemalloc.get_traced_memory()[0] > 2 * p.nbytes
    finally:
        tracemalloc.stop()
    q.grad = absent
    opt.step()
    assert opt._plan is plan and [opt.state[x]["step"] for x in (p, q)] == [3, 1]


def test_a_tensor_too_large_for_others_beside_it_displaces_no_piece():
    arena = engine.Arena(Host.exchange)
    arena.most = 2**15
    made = [arena.zeros(torch.ones(16), 0) for _ in range(3)]  # the first piece may have room for two
    piece = arena.pieces[0]
    made.append(arena.zeros(torch.ones(2**14), 0))
    made.append(arena.zeros(torch.ones(16), 0))
    assert arena.pieces[0] is piece and made[4].data_ptr() - made[2].data_ptr() == 64


class Exchange(ctypes.Structure):
    """What DLPack's capsule points to."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2), ("older", ctypes.c_void_p), ("others", ctypes.c_void_p * 2),
        ("make", ctypes.c_void_p), ("rest", ctypes.c_void_p * 2),
    )  # fmt: skip


@pytest.mark.parametrize("taken", [False, True], ids=["at once", "after it was taken over"])
def test_memory_of_a_tensor_that_is_not_made_is_given_back_once(taken):
    pointer, capsule = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_New
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    name, n_keepers = b"dlpack_exchange_api", []

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def make(managed, out):
        keeper, let_go = (ctypes.c_void_p * 2).from_address(managed + 8)
        piece = ctypes.cast(keeper, ctypes.py_object).value
        before = sys.getrefcount(piece)
        if taken:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(let_go)(managed)
        n_keepers.append((weakref.ref(piece), before - sys.getrefcount(piece)))
        return -1

    api = Exchange.from_buffer_copy(Exchange.from_address(pointer(Host.exchange, name)))
    api.make = ctypes.cast(make, ctypes.c_void_p).value
    arena = engine.Arena(capsule(ctypes.addressof(api), name, None))
    for make_one in (lambda: arena.zeros(torch.ones(3), 0), lambda: arena.zero(False)):
        with pytest.raises(MemoryError):
            make_one()
    assert [(piece(), given_back) for piece, given_back in n_keepers] == 2 * [(None, int(taken))] and not arena.pieces


def test_threads_that_let_go_of_state_leave_the_rest_as_it_is():
    arena = engine.Arena(Host.exchange)
    made = [arena.zeros(torch.ones(16), 0).fill_(i) for i in range(4000)]
    kept, parts = made[::100], [made[i::4] for i in range(4)]
    del made
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(list.clear, parts))
    assert [x.unique().item() for x in kept] == list(range(0, 4000, 100))
    del kept
    assert not arena.pieces


def test_state_of_more_dimensions_than_an_array_has():
    for module in (torch.optim, ft):
        p = parameter([1] * 40 + [3] + [1] * 30)
        opt = module.AdamW([p])
        opt.step()
        opt.step()
        assert opt.state[p]["exp_avg"].shape == p.shape


def test_state_of_a_class_of_a_users_is_of_that_class_as_pytorchs():
    class Mine(torch.Tensor):
        pass

    for module in (torch.optim, ft):
        p = torch.ones(3).as_subclass(Mine).requires_grad_()
        p.grad = torch.ones(3)
        opt = module.AdamW([p])
        opt.step()
        assert type(opt.state[p]["exp_avg"]) is Mine


@pytest.mark.parametrize("what", ["state", "parameter"])
def test_a_tensor_of_zeros_without_memory_is_refused(what):
    """PyTorch has one for derivatives that are known to be zero; its storage has a size, but no address."""
    p, q = parameter((3,)), parameter((3,))
    opt = ft.AdamW([p, q])
    opt.step()
    none = torch._efficientzerotensor(3)
    if what == "state":
        opt.state[p]["exp_avg"] = none
    else:
        p.data = none
    before = q.detach().clone()
    with pytest.raises((errors.TensorStateError, errors.TensorLayoutError), match="memory of its own"):
        opt.step()
    assert torch.equal(q, before)


def test_state_outlives_the_optimizer():
    opt = ft.Adam([p := parameter((100,))])
    opt.step()
    entry = opt.state[p]
    before = entry["exp_avg"].clone()
    del opt
    gc.collect()
    junk = [torch.full((100,), 7.0) for _ in range(100)]
    assert torch.equal(entry["exp_avg"], before) and entry["step"] == 1 and junk


def test_a_plan_that_another_thread_takes_away_at_the_beginning_of_a_step():
    class Taken(ft.Adam):
        looks = 0

        @property
        def _plan(self):
            plan = vars(self)["_plan"]
            if plan is not None:
                vars(self)["_plan"] = None  # as a step that fails does, between any two looks of this one
            return plan

        @_plan.setter
        def _plan(self, plan):
            vars(self)["_plan"] = plan

    opt = Taken([p := parameter()])
    for _ in range(3):
        opt.step()
    assert opt.state[p]["step"] == 3


def test_two_threads_in_one_optimizer_never_corrupt_it():
    p = parameter((400_000,))
    opt = ft.Adam([p])
    opt.step()
    refused = []

    def run():
        for _ in range(50):
            try:
                opt.step()
            except errors.ConcurrentStepError:
                refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert float(opt.state[p]["step"]) + len(refused) == 151


def test_default_dtype_float64_is_followed_as_in_torch():
    program = """
import torch, fastopt.torch as ft
torch.set_default_dtype(torch.float64)
results = []
for module in (torch.optim, ft):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5))
    opt = module.NAdam([p])
    for k in range(50):
        p.grad = torch.randn(5)
        opt.step()
    assert opt.state[p]["step"].dtype == opt.state[p]["mu_product"].dtype == torch.float64
    results.append(p.detach())
assert torch.allclose(*results, rtol=1e-13, atol=1e-16), results
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_fastopt_does_not_import_torch_nor_the_other_way_round():
    program = "import sys, fastopt; assert 'torch' not in sys.modules; import fastopt.torch; sys.modules['torch']"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- Groups are the very dicts that PyTorch keeps


class Options(dict):
    """A dict of a user's own."""


@pytest.mark.parametrize("kind", [dict, OrderedDict, Options])
@pytest.mark.parametrize("way", ["constructor", "add_param_group"])
def test_a_group_given_is_the_group_kept(kind, way):
    moved = []
    for module in (torch.optim, ft):
        w, other = parameter((1,)), parameter((1,), seed=1)
        before = w.detach().clone()
        group = kind(params=[w], lr=1.0)
        if way == "constructor":
            opt = module.SGD([group])
        else:
            opt = module.SGD([other])
            opt.add_param_group(group)
        assert opt.param_groups[-1] is group
        group["lr"] = 0.0
        opt.step()
        assert torch.equal(w.detach(), before)
        group["lr"] = 0.5
        opt.step()
        group["momentum"] = 0.5
        for _ in range(2):
            opt.step()
        moved.append((w.detach() - before).item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-6) and moved[0] != 0


def test_a_second_optimizer_over_the_groups_of_a_first_shares_them():
    for module in (torch.optim, ft):
        w = parameter((1,))
        first = module.SGD([w], lr=1.0)
        second = module.Adam(first.param_groups, lr=0.5)
        assert second.param_groups[0] is first.param_groups[0]
        first.param_groups[0]["lr"] = 0.0
        before = w.detach().clone()
        second.step()
        first.step()
        assert torch.equal(w.detach(), before)


def test_steps_over_a_group_of_a_users_own_kind_of_dict_are_bound_once(monkeypatch):
    w = parameter((3,))
    opt = ft.Adam([OrderedDict(params=[w])])
    opt.step()
    bound = []
    monkeypatch.setattr(type(opt), "_bound", lambda self, groups: bound.append(groups))
    for _ in range(3):
        opt.step()
    assert not bound


# --- Inference tensors


@pytest.mark.parametrize("case", ["parameter", "state", "first step", "gradient"])
def test_inference_tensors_are_written_to_in_inference_mode_only(case):
    """As in PyTorch, which raises a RuntimeError."""
    for module in (torch.optim, ft):
        p, g = torch.ones(3, requires_grad=True), torch.ones(3)
        if case == "parameter":
            with torch.inference_mode():
                p = torch.ones(3)
        if case == "gradient":
            with torch.inference_mode():
                g = torch.ones(3)
        p.grad = g
        opt = module.Adam([p], lr=0.25)
        with torch.inference_mode(case != "state"):
            opt.step()
        if case == "state":
            with torch.inference_mode():
                opt.state[p]["exp_avg"] = torch.ones(3)
        before = p.detach().clone()
        if case == "gradient":
            p = torch.ones(3, requires_grad=True)
            p.grad = g
            opt = module.Adam([p], lr=0.25)  # state made outside: the gradient is only read
            opt.step()
            assert p[0] == 0.75
            continue
        for _ in range(2):
            with pytest.raises(RuntimeError) as caught:
                opt.step()
            assert torch.equal(p.detach(), before)
        if module is ft:
            assert opt.state[p]["step"] == 1
            assert isinstance(caught.value, errors.InferenceModeError) and "torch.inference_mode()" in str(caught.value)
        with torch.inference_mode():
            opt.step()
        assert not torch.equal(p.detach(), before)


# --- State of fastopt's optimizers for arrays


def five_steps(cls, **options):
    """An optimizer for arrays after five steps of gradient 1, and how far the next takes it."""
    w = np.zeros(1)
    opt = cls([w], lr=0.1, **options)
    for _ in range(5):
        opt.step([np.ones(1)])
    saved, before = copy.deepcopy(opt.state_dict()), w.copy()
    opt.step([np.ones(1)])
    return saved, float((w - before)[0])


def as_tensors(saved):
    """What a user makes of arrays for stock PyTorch."""
    state = {i: {k: torch.as_tensor(np.asarray(x)) for k, x in entry.items()} for i, entry in saved["state"].items()}
    return {**saved, "state": state}


CONVERTED = [
    (fastopt.Momentum, {}, "SGD", {"momentum": 0.9}), (fastopt.NAG, {}, "SGD", {"momentum": 0.9}),
    (fastopt.SGD, {"convention": "keras", "momentum": 0.9}, "SGD", {"momentum": 0.9}),
    (fastopt.SGD, {"convention": "sklearn"}, "SGD", {"momentum": 0.9, "nesterov": True}),
    (fastopt.SGD, {"convention": "optax", "momentum": 0.9}, "SGD", {"momentum": 0.9}),
    (fastopt.RMSprop, {"convention": "keras", "momentum": 0.9}, "RMSprop", {"momentum": 0.9}),
    (fastopt.RMSprop, {"convention": "optax", "momentum": 0.9}, "RMSprop", {"momentum": 0.9}),
    (fastopt.NAdam, {"convention": "keras"}, "NAdam", {}), (fastopt.AdamW, {"weight_decay": 0.0}, "Adam", {}),
]  # fmt: skip


@pytest.mark.parametrize("key", [True, False], ids=["whole", "without the key"])
@pytest.mark.parametrize(("cls", "options", "name", "given"), CONVERTED, ids=lambda x: str(getattr(x, "__name__", x)))
def test_state_of_arrays_in_another_unit_goes_on(cls, options, name, given, key):
    saved, want = five_steps(cls, **options)
    if not key:
        del saved["fastopt"]
    for tensors in (False, True):
        p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        p.grad = torch.ones_like(p)
        opt = getattr(ft, name)([p], lr=0.1, **given)
        opt.load_state_dict(as_tensors(saved) if tensors else saved)
        opt.step()
        assert p.item() == pytest.approx(want, rel=1e-12)
        p.data.zero_()
        stock = getattr(torch.optim, name)([p], lr=0.1, **given)
        stock.load_state_dict(opt.state_dict())  # by way of fastopt.torch, it is PyTorch's
        assert set(stock.state[p]) == set(opt.state[p])


REFUSED_HERE = [
    (fastopt.Adam, {"convention": "optax", "amsgrad": True}, "Adam", "max_exp_avg_sq_hat"),
    (fastopt.Adamax, {"convention": "keras"}, "Adamax", "exp_inf_without_eps"),
    (fastopt.Adamax, {"convention": "paper"}, "Adamax", "exp_inf_without_eps"),
    (fastopt.NAdam, {"convention": "paper"}, "NAdam", "exp_avg_mu_product"),
    (fastopt.NAdam, {"convention": "optax"}, "NAdam", "lacks 'mu_product'"),
    (fastopt.AdamW, {"convention": "paper", "weight_decay": 0.1}, "AdamW", "shrinks p by weight_decay alone"),
    (fastopt.RAdam, {}, "Adam", "'RAdam'"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "options", "name", "match"), REFUSED_HERE, ids=str)
def test_state_of_arrays_that_means_something_else_is_refused(cls, options, name, match):
    saved, _ = five_steps(cls, **options)
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = getattr(ft, name)([p], lr=0.1)
    opt.step()
    before = frozen(opt)
    with pytest.raises(errors.StateDictError, match=match):
        opt.load_state_dict(saved)
    assert frozen(opt) == before


STOPS = [
    *(case for case in CONVERTED if case[0] in (fastopt.Momentum, fastopt.NAG, fastopt.RMSprop)),
    *(case for case in CONVERTED if case[0] is fastopt.SGD and case[1]["convention"] != "optax"),
    *((cls, options, name, {}) for cls, options, name, _ in REFUSED_HERE[:-2]),
]


@pytest.mark.parametrize(("cls", "options", "name", "given"), STOPS, ids=str)
def test_stock_pytorch_stops_at_state_that_means_something_else(cls, options, name, given):
    """It cannot be told what our state means; but it misses what it needs, before it has moved anything."""
    saved, _ = five_steps(cls, **options)
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = getattr(torch.optim, name)([p], lr=0.1, **given)
    with pytest.raises(KeyError):
        opt.load_state_dict(as_tensors(saved))
        opt.step()
    assert p.item() == 0


def test_an_lr_that_differs_is_refused_and_a_tensor_will_do():
    saved, want = five_steps(fastopt.Momentum)
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = ft.SGD([p], lr=0.2, momentum=0.9)
    match = r"'velocity' \(v of the step p = p \+ v\).*the lr of the state dict, 0.1; it has 0.2"
    with pytest.raises(errors.StateDictError, match=match):
        opt.load_state_dict(saved)
    opt.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)
    opt.load_state_dict(saved)
    opt.step()
    assert p.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("bad", [
    {}, {"state": {}}, {"param_groups": []}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": 3},
    {"state": {}, "param_groups": [5]}, {"state": {}, "param_groups": [{"params": 5}]},
    {"state": {}, "param_groups": [{"params": [[0]]}]}, {"state": {0: []}, "param_groups": [{"params": [0]}]},
    {"state": {}, "param_groups": [{"params": [0]}], "fastopt": {"optimizer": [1]}},
    {"state": {}, "param_groups": [{"params": [0]}], "fastopt": {"convention": 3}},
])  # fmt: skip
def test_what_is_no_state_dict_is_refused(bad):
    p = parameter()
    opt = ft.Adam([p])
    opt.step()
    before = frozen(opt)
    own = {"optimizer": "Adam", "convention": "torch", "version": 2}
    with pytest.raises(errors.FastoptError):
        opt.load_state_dict({"fastopt": own, **bad})
    with pytest.raises(Exception):  # noqa: B017  # what PyTorch raises of its own dicts
        opt.load_state_dict(bad)
    assert frozen(opt) == before


@pytest.mark.parametrize("bad", [
    torch.ones(1).to_sparse(), torch.ones(1, device="meta"), "x",
    torch.ones(1, dtype=torch.int64),
])  # fmt: skip
def test_a_velocity_that_is_no_array_is_refused(bad):
    saved, _ = five_steps(fastopt.Momentum)
    saved["state"][0]["velocity"] = bad
    opt = ft.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    with pytest.raises(errors.StateDictError, match="velocity"):
        opt.load_state_dict(saved)


def test_a_velocity_without_dimensions_converts():
    w = np.array(0.0)
    core = fastopt.Momentum([w], lr=0.1)
    core.step([np.array(1.0)])
    p = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    opt = ft.SGD([p], lr=0.1, momentum=0.9)
    opt.load_state_dict(core.state_dict())
    assert opt.state[p]["momentum_buffer"].item() == 1.0


def test_state_of_a_users_own_class_may_have_any_name():
    class Own(ft.SGD):
        pass

    p = parameter((3,))
    opt = Own([p], lr=0.1, momentum=0.9)
    opt.step()
    opt.state[p]["velocity"] = torch.ones(3)
    saved = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(saved)
    assert torch.equal(opt.state[p]["velocity"], torch.ones(3))


def test_parameters_exchanged_in_a_group_of_a_users_own_kind_of_dict():
    for module in (torch.optim, ft):
        a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
        a.grad, b.grad = torch.ones(1), torch.ones(1)
        group = OrderedDict(params=[a], lr=0.5, mask=np.zeros(3))
        opt = module.SGD([group])
        opt.step()
        group["params"], group["mask"] = [b], np.zeros(3)
        opt.step()
        assert (a.item(), b.item()) == (0.5, 0.5)


def test_gaps_do_not_hide_an_inference_tensor():
    for module in (torch.optim, ft):
        with torch.inference_mode():
            big = torch.ones(3, 4)
            p = big[:, :2]
        p.grad = torch.ones(3, 2)
        opt = module.SGD([p], lr=0.1)
        with pytest.raises(RuntimeError):
            opt.step()
    assert p[0, 0] == 1  # PyTorch finds out when it has written


def test_a_tensor_that_was_given_the_memory_of_an_inference_tensor_is_stepped():
    for module in (torch.optim, ft):
        p = torch.ones(3, requires_grad=True)
        with torch.inference_mode():
            x = torch.ones(3)
        p.data = x
        p.grad = torch.ones(3)
        module.SGD([p], lr=0.5).step()
        assert p[0] == 0.5


def test_an_inference_tensor_that_was_given_other_memory_is_refused():
    """Its versions are not counted, though what it holds is no inference tensor: PyTorch notices too late."""
    for module in (torch.optim, ft):
        with torch.inference_mode():
            p = torch.ones(3)
        p.data = torch.full((3,), 2.0)
        p.grad = torch.ones(3)
        assert not p.is_inference()
        opt = module.SGD([p], lr=0.5)
        with pytest.raises(RuntimeError):
            opt.step()
    assert p.tolist() == [2.0, 2.0, 2.0]
    with torch.inference_mode():
        opt.step()
    assert p.tolist() == [1.5, 1.5, 1.5]


@pytest.mark.parametrize("what", ["parameter", "state", "count"])
def test_an_inference_tensor_with_other_memory_is_refused_on_the_usual_way_too(what):
    """Where C alone looks at tensors: at a first step, and in the place of others."""
    with torch.inference_mode():
        x = torch.tensor(7.0) if what == "count" else torch.ones(3)
    x.data = torch.tensor(2.0) if what == "count" else torch.full((3,), 2.0)
    p = x if what == "parameter" else parameter((3,))
    p.grad = torch.ones(3)
    opt = ft.Adam([p], lr=0.5, fallback="silent")
    if what != "parameter":
        opt.step()
        opt.state[p]["step" if what == "count" else "exp_avg"] = x
    before = frozen(opt)
    for _ in range(2):
        with pytest.raises(errors.InferenceModeError):
            opt.step()
        assert frozen(opt) == before


def test_every_number_that_a_parameter_carries_has_a_tensor_of_its_own(way, monkeypatch):
    second, record = torch.tensor(0.25, dtype=torch.float64), ft.NAdam._record

    def with_a_second(self, *args):
        *rest, numbers, steps, begun = record(self, *args)
        return *rest, (*numbers, second), steps, begun

    monkeypatch.setattr(ft.NAdam, "_record", with_a_second)
    p, q = parameter(), parameter()
    opt, other = ft.NAdam([p]), torch.optim.NAdam([q])
    for value in (0.25, 0.75):
        second.fill_(value)
        for x in (p, q):
            x.grad = tensor((3, 4), seed=1)
        opt.step()
        other.step()
        assert opt._plan.count(0)[1] == (opt.state[p]["mu_product"].item(), value) and second.item() == value
    assert opt.state[p]["mu_product"].item() == other.state[q]["mu_product"].item()
