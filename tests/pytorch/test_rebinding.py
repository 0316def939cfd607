"""What changes between steps is bound anew by itself: the plan stays, and the steps are those of a fresh optimizer."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastopt.torch as ft  # noqa: E402
from fastopt import errors  # noqa: E402

CLASSES = [getattr(ft, name) for name in ft.__all__]
SHAPES = [(3, 4), (70,), (1,), (), (2, 3, 5), (0,), (200,), (9, 9), (17,), (4, 4)]


pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture(params=["error", "silent"], autouse=True)
def fallback(request, monkeypatch):
    monkeypatch.setitem(ft._Compiled.__init__.__kwdefaults__, "fallback", request.param)
    return request.param


@pytest.fixture
def plans(monkeypatch):
    """How often a plan was made."""
    made = []
    bound = ft._Compiled._bound
    monkeypatch.setattr(ft._Compiled, "_bound", lambda *args: made.append(1) or bound(*args))
    return made


def tensor(shape, seed, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameters(dtype=torch.float32, shapes=SHAPES):
    return [torch.nn.Parameter(tensor(shape, k, dtype)) for k, shape in enumerate(shapes)]


def options_of(cls):
    options = {"weight_decay": 0.1} if "weight_decay" in cls.core.hyperparameters else {}
    return options | ({"momentum": 0.9} if cls is ft.SGD else {})


def set_gradients(params, step, mask):
    for k, p in enumerate(params):
        p.grad = tensor(p.shape, 1000 * step + k, p.dtype) if mask[k] else None


def bits(x):
    return x.dtype, tuple(x.shape), x.detach().clone().contiguous().numpy().tobytes()


def seen(opt, params):
    """All that can be seen of an optimizer and its parameters, to the bit."""
    state = [{k: bits(x) if torch.is_tensor(x) else x for k, x in opt.state[p].items()} if p in opt.state else None
             for p in params]  # fmt: skip
    return [bits(p) for p in params], state


class Fresh:
    """An optimizer that forgets its plan before each step."""

    def __init__(self, cls, params, **options):
        self.opt = cls(params, **options)

    def step(self):
        self.opt._plan = self.opt._mixed = self.opt._guarded = None
        self.opt.step()


def masks(pattern, n, step, chance):
    if pattern == "random":
        return [chance.random() < 0.5 for _ in range(n)]
    if pattern == "turns":
        return [k % 4 == step % 4 for k in range(n)]
    if pattern == "frozen":
        return [k < n // 2 or step >= 5 for k in range(n)]
    return [k != step % n for k in range(n)]  # one lacks its gradient


# --- Gradients that come and go


@pytest.mark.parametrize("pattern", ["random", "turns", "frozen", "one"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_gradients_come_and_go_and_one_plan_serves(cls, pattern, plans):
    params, twins = parameters(), parameters()
    opt, fresh = cls(params, **options_of(cls)), Fresh(cls, twins, **options_of(cls))
    chance = random.Random(3)
    made = 0
    for step in range(14):
        mask = masks(pattern, len(params), step, chance)
        set_gradients(params, step, mask)
        set_gradients(twins, step, mask)
        before = len(plans)
        opt.step()
        made += len(plans) - before
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins), step
    assert made == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_tensors_and_arrays_take_the_same_path_where_gradients_come_and_go(cls, dtype):
    params = parameters(dtype)
    arrays = [p.detach().numpy().copy() for p in params]
    opt, core = cls(params, **options_of(cls)), cls.core(arrays, **options_of(cls))
    chance = random.Random(5)
    for step in range(20):
        set_gradients(params, step, masks("random", len(params), step, chance))
        opt.step()
        core.step([None if p.grad is None else p.grad.numpy() for p in params])
    for p, array in zip(params, arrays, strict=True):
        assert p.detach().numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("cls", [ft.ASGD, ft.Rprop, ft.NAdam], ids=lambda cls: cls.__name__)
def test_a_first_gradient_after_the_rate_changed_starts_with_the_rate_of_then(cls, plans):
    """ASGD's eta and Rprop's step sizes begin as lr."""
    params, twins = parameters(shapes=[(3,), (4,)]), parameters(shapes=[(3,), (4,)])
    opt, fresh = cls(params, lr=0.01), Fresh(cls, twins, lr=0.01)
    for step in range(4):
        for o in (opt, fresh.opt):
            o.param_groups[0]["lr"] = 0.01 / (step + 1)
        for some in (params, twins):
            set_gradients(some, step, [True, step >= 2])
        opt.step()
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)


def test_no_state_before_the_first_gradient():
    params = parameters(shapes=[(3,), (4,)])
    opt = ft.AdamW(params)
    set_gradients(params, 0, [True, False])
    opt.step()
    assert params[1] not in opt.state
    set_gradients(params, 1, [False, True])
    opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [1, 1]


def test_a_first_gradient_that_does_not_fit_changes_nothing():
    params = parameters(shapes=[(3,), (4,), (5,)])
    opt = ft.AdamW(params)
    set_gradients(params, 0, [True, False, False])
    opt.step()
    before = seen(opt, params)
    for _ in range(2):
        set_gradients(params, 1, [True, True, True])
        params[2].grad.untyped_storage().resize_(0)
        with pytest.raises(errors.FastoptError, match="storage"):
            opt.step()
        assert seen(opt, params) == before and params[1] not in opt.state
    set_gradients(params, 1, [True, True, True])
    opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [2, 1, 1]


def test_only_what_was_stepped_is_counted_as_written():
    params = parameters(shapes=[(3,), (4,), (5,)])
    opt = ft.AdamW(params)
    for step in range(4):
        mask = [step % 2 == 0, True, False]
        set_gradients(params, step, mask)
        versions = [p._version for p in params]
        opt.step()
        assert [p._version - v for p, v in zip(params, versions, strict=True)] == [int(m) for m in mask]


# --- What is exchanged


def exchanged(p, s, what, step):
    if what == "data":
        p.data = p.data.clone()
    elif what == "state":
        s["exp_avg"] = s["exp_avg"].clone()
    elif what == "state's data":
        s["exp_avg_sq"].data = s["exp_avg_sq"].data.clone()
    elif what == "count":
        s["step"] = s["step"].clone()
    elif what == "note":
        s["note"] = step
    elif what == "note as a tensor":
        s["note"] = torch.ones(3)
    elif what == "note gone":
        s["note"] = step
        s.pop("note")
        s["other"] = 2.0
    elif what == "layout":
        p.data = p.data.t().contiguous().t() if step % 2 else p.data.contiguous()
    elif what == "shape":
        for x in (p, s["exp_avg"], s["exp_avg_sq"]):
            x.data = x.data.reshape(-1).reshape((20, 30) if step % 2 else (30, 20)).clone()


EXCHANGED = ["data", "state", "state's data", "count", "note", "note as a tensor", "note gone", "layout"]


@pytest.mark.parametrize("every", [True, False], ids=["all", "one"])
@pytest.mark.parametrize("what", [*EXCHANGED, "shape"])
def test_what_was_exchanged_is_bound_anew_and_one_plan_serves(what, every, plans):
    shapes = [(20, 30)] * 25
    params, twins = parameters(shapes=shapes), parameters(shapes=shapes)
    opt, other = ft.AdamW(params), torch.optim.AdamW(twins)
    pure = ft.AdamW(still := parameters(shapes=shapes))
    for step in range(8):
        if step:
            for k in range(25) if every else [step]:
                exchanged(params[k], opt.state[params[k]], what, step)
        for some in (params, still, twins):
            for k, p in enumerate(some):
                p.grad = tensor((20, 30), 100 * step + k).reshape(p.shape)
        opt.step()
        pure.step()
        other.step()
        for p, q in zip(params, still, strict=True):
            assert torch.equal(p.reshape(-1), q.reshape(-1)), step
            assert torch.equal(opt.state[p]["exp_avg"].reshape(-1), pure.state[q]["exp_avg"].reshape(-1))
            assert float(opt.state[p]["step"]) == step + 1
    if what != "shape":
        assert len(plans) == 2


def test_data_exchanged_and_back_as_sam_does(plans):
    shapes = [(30, 40), (40,), (7, 40), (7,)]
    params, twins = parameters(shapes=shapes), parameters(shapes=shapes)
    opt, fresh = ft.AdamW(params), Fresh(ft.AdamW, twins)
    made = 0
    for step in range(8):
        for some in (params, twins):
            set_gradients(some, step, 4 * [True])
            old = [p.data for p in some]
            for p in some:
                p.data = p.data + 0.05 * p.grad
            set_gradients(some, step + 50, 4 * [True])
            for p, data in zip(some, old, strict=True):
                p.data = data if step % 2 else data.clone()
        before = len(plans)
        opt.step()
        made += len(plans) - before
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)
    assert made == 1


def test_two_parameters_may_swap_their_memory(plans):
    params = parameters(shapes=[(30,), (30,), (30,)])
    opt = ft.SGD(params, lr=1.0)
    set_gradients(params, 0, 3 * [True])
    opt.step()
    made = len(plans)
    a, b, c = params
    a.data, b.data = b.data, a.data
    before = [p.detach().clone() for p in params]
    set_gradients(params, 1, 3 * [True])
    opt.step()
    for p, x in zip(params, before, strict=True):
        assert torch.equal(p, x - p.grad)
    assert len(plans) == made


def test_state_may_swap_between_parameters():
    params, twins = parameters(shapes=[(30,), (30,)]), parameters(shapes=[(30,), (30,)])
    opt, fresh = ft.Adam(params), Fresh(ft.Adam, twins)
    for step in range(4):
        for some, o in ((params, opt), (twins, fresh.opt)):
            set_gradients(some, step, 2 * [True])
            if step:
                s, t = (o.state[p] for p in some)
                s["exp_avg"], t["exp_avg"] = t["exp_avg"], s["exp_avg"]
        opt.step()
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)


def test_what_is_let_go_of_runs_its_code_after_the_step():
    params, twins = parameters(shapes=[(30,)] * 5), parameters(shapes=[(30,)] * 5)
    opt, fresh = ft.AdamW(params), Fresh(ft.AdamW, twins)
    gone = []

    class Note:
        def __del__(self):
            gone.append([float(opt.state[p]["step"]) for p in params])
            for p in params:
                p.data = p.data.clone()
                p.grad = None
            opt.state[params[4]]["exp_avg"] = opt.state[params[4]]["exp_avg"].clone()

    for step in range(6):
        for some in (params, twins):
            set_gradients(some, step, 5 * [True])
        if step:
            opt.state[params[2]]["note"] = Note()
        opt.step()
        fresh.step()
        opt.state[params[2]].pop("note", None)
        assert [bits(p) for p in params] == [bits(p) for p in twins]
    assert [set(counts) for counts in gone] == [{3.0}, {4.0}, {5.0}, {6.0}]


# --- Memory that overlaps


@pytest.mark.parametrize("first", [True, False], ids=["stepped before", "first gradient"])
def test_an_overlap_that_appears_is_found(first, fallback):
    flat = torch.zeros(40)
    params = parameters(shapes=[(10,), (10,), (10,)])
    opt = ft.AdamW(params)
    set_gradients(params, 0, [True, True, first])
    opt.step()
    params[0].data = flat[:10]
    params[2].data = flat[5:15]
    set_gradients(params, 1, 3 * [True])
    if fallback == "error":
        before = seen(opt, params)
        for _ in range(2):
            with pytest.raises(errors.OverlapError, match="parameter 2 overlaps parameter 0"):
                opt.step()
        assert seen(opt, params) == before
    else:
        opt.step()
        assert [one.place for one in opt._mixed.left] == [0, 2]


def test_state_that_overlaps_is_refused():
    params = parameters(shapes=[(10,), (10,)])
    opt = ft.AdamW(params)
    set_gradients(params, 0, 2 * [True])
    opt.step()
    opt.state[params[1]]["exp_avg"] = opt.state[params[0]]["exp_avg_sq"]
    before = seen(opt, params)
    with pytest.raises(errors.OverlapError, match="exp_avg"):
        opt.step()
    assert seen(opt, params) == before


@pytest.mark.parametrize("what", ["data", "state"])
def test_a_gradient_that_lies_in_exchanged_memory_is_found(what, fallback):
    params = parameters(shapes=[(10,), (10,), (10,)])
    opt = ft.AdamW(params)
    for step in range(2):
        set_gradients(params, step, 3 * [True])
        opt.step()
    set_gradients(params, 2, 3 * [True])
    memory = params[0].grad
    if what == "data":
        params[2].data = memory
    else:
        opt.state[params[2]]["exp_avg"] = memory
    if fallback == "error" or what == "state":
        before = seen(opt, params)
        with pytest.raises(errors.OverlapError, match="gradient of parameter 0"):
            opt.step()
        assert seen(opt, params) == before
    else:
        opt.step()
        assert [one.place for one in opt._mixed.left] == [0, 2]


def test_memory_that_was_given_up_may_hold_the_gradient_of_another(plans):
    params, twins = parameters(shapes=[(1000,)] * 3), parameters(shapes=[(1000,)] * 3)
    opt, fresh = ft.AdamW(params), Fresh(ft.AdamW, twins)
    for step in range(6):
        for some in (params, twins):
            old = some[2].data
            some[2].data = old.clone()
            set_gradients(some, step, 3 * [True])
            some[0].grad = old.copy_(some[0].grad)
        opt.step()
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)


# --- Beside what makes another plan


def test_a_group_added_in_the_middle():
    params, twins = parameters(), parameters()
    opt, fresh = ft.AdamW(params[:4]), Fresh(ft.AdamW, twins[:4])
    chance = random.Random(1)
    for step in range(10):
        if step == 5:
            opt.add_param_group({"params": params[4:], "lr": 0.1})
            fresh.opt.add_param_group({"params": twins[4:], "lr": 0.1})
        mask = masks("random", len(params), step, chance)
        set_gradients(params, step, mask)
        set_gradients(twins, step, mask)
        opt.step()
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)


def test_a_load_in_the_middle():
    params, twins = parameters(), parameters()
    opt, fresh = ft.NAdam(params), Fresh(ft.NAdam, twins)
    chance = random.Random(2)
    for step in range(10):
        if step in (3, 6):
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        mask = masks("random", len(params), step, chance)
        set_gradients(params, step, mask)
        set_gradients(twins, step, mask)
        opt.step()
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)


@pytest.mark.parametrize("kind", ["sparse gradient", "float16", "gaps", "own class", "mirror", "hook", "double"])
def test_beside_other_kinds_the_steps_are_the_same(kind, fallback):
    if fallback == "error" and kind in ("sparse gradient", "float16"):
        pytest.skip("refused")

    def world():
        params = parameters()
        if kind == "float16":
            params[3] = torch.nn.Parameter(tensor((5,), 3).half())
        elif kind == "gaps":
            params[3] = torch.nn.Parameter(tensor((5, 4), 3)[:, :2])
        elif kind == "own class":
            params[3] = type("Own", (torch.nn.Parameter,), {})(params[3].data)
        elif kind == "double":
            params[3] = torch.nn.Parameter(params[3].detach().double())
        group = OrderedDict(params=params) if kind == "mirror" else {"params": params}
        return params, [group]

    (params, groups), (twins, twin_groups) = world(), world()
    cls = ft.Adagrad if kind == "sparse gradient" else ft.Adam
    opt, fresh = cls(groups), Fresh(cls, twin_groups)
    if kind == "hook":
        for o in (opt, fresh.opt):
            o.register_step_pre_hook(lambda *_: None)
    chance = random.Random(4)
    for step in range(12):
        mask = masks("random", len(params), step, chance)
        for some in (params, twins):
            set_gradients(some, step, mask)
            if kind == "sparse gradient" and step % 3 == 0:
                some[0].grad = tensor((3, 4), step).to_sparse()
            if step == 7:
                some[5].data = some[5].data.clone()
        opt.step()
        fresh.step()
        assert seen(opt, [p for p in params if p.dtype != torch.float16]) == seen(
            fresh.opt, [p for p in twins if p.dtype != torch.float16]
        )
        assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


def test_a_first_gradient_in_float32_among_float64_takes_another_plan():
    params = [torch.nn.Parameter(tensor((3,), 0, torch.float64)), torch.nn.Parameter(tensor((3,), 1))]
    opt = ft.SGD(params)
    opt.param_groups[0]["lr"] = 1e300
    set_gradients(params, 0, [True, False])
    opt.step()
    set_gradients(params, 1, [True, True])
    with pytest.raises(errors.HyperparameterError, match="float32"):
        opt.step()


def test_a_scalers_factor_reaches_parameters_whose_gradients_come_later():
    params = parameters(shapes=[(3,), (4,)])
    opt = ft.SGD(params, lr=1.0)
    for step, mask in enumerate([[True, False], [True, True]]):
        before = [p.detach().clone() for p in params]
        set_gradients(params, step, mask)
        opt.grad_scale = torch.tensor(4.0)
        opt.step()
        for p, x in zip(params, before, strict=True):
            assert torch.equal(p, x if p.grad is None else x - p.grad / 4)


def test_inference_tensors_put_in_place_of_others_are_refused():
    params = parameters(shapes=[(3,), (4,)])
    opt = ft.Adam(params)
    set_gradients(params, 0, [True, True])
    opt.step()
    with torch.inference_mode():
        opt.state[params[1]]["exp_avg"] = torch.ones(4)
    before = seen(opt, params)
    with pytest.raises(errors.InferenceModeError):
        opt.step()
    assert seen(opt, params) == before


def test_state_whose_memory_was_freed_is_refused():
    params = parameters(shapes=[(300,), (400,)])
    opt = ft.Adam(params)
    set_gradients(params, 0, [True, True])
    opt.step()
    held = opt.state[params[1]]["exp_avg"]
    freed = torch.ones(400)
    freed.untyped_storage().resize_(40)
    opt.state[params[1]]["exp_avg"] = freed
    before = np.copy(params[0].detach().numpy())
    with pytest.raises(errors.FastoptError, match="storage"):
        opt.step()
    assert np.array_equal(before, params[0].detach().numpy())
    opt.state[params[1]]["exp_avg"] = held
    opt.step()


@pytest.mark.parametrize("what", ["data", "state", "state's data", "count", "note", "note as a tensor", "gradients"])
def test_tensors_in_the_place_of_others_like_them_are_bound_without_python(what, way, monkeypatch):
    if way != "shim":
        pytest.skip("C does not see all there")
    params = parameters(shapes=[(20, 30)] * 25)
    opt = ft.AdamW(params)
    set_gradients(params, 0, 25 * [True])
    opt.step()
    monkeypatch.setattr(type(opt), "_record", lambda *args: pytest.fail("a new record"))
    monkeypatch.setattr(type(opt), "_take_another_step", lambda *args: pytest.fail("another plan"))
    chance = random.Random(0)
    for step in range(1, 6):
        set_gradients(params, step, masks("random", 25, step, chance) if what == "gradients" else 25 * [True])
        for k in [3] if step < 4 else range(25):
            exchanged(params[k], opt.state[params[k]], what, step)
        opt.step()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_gradients_come_and_go_beside_one_that_is_left_to_pytorch(name, plans, fallback):
    if fallback == "error":
        pytest.skip("refused")
    seen_by = []
    for fresh in (False, True):
        params = [*parameters(), torch.nn.Parameter(tensor((5,), 3).half())]
        opt = getattr(ft, name)(params, lr=0.01)
        chance = random.Random(6)
        for step in range(10):
            set_gradients(params, step, [*masks("random", len(params) - 1, step, chance), True])
            if fresh:
                opt._mixed = None
            if step == 6:
                params[1].data = params[1].data.clone()
            opt.step()
        seen_by.append([bits(p.float()) for p in params])
        if not fresh:
            assert len(plans) <= 2  # PyTorch's part makes its state in the first step
    assert seen_by[0] == seen_by[1]


def test_state_exchanged_together_with_a_first_gradient_elsewhere():
    params, twins = parameters(shapes=[(30,), (40,)]), parameters(shapes=[(30,), (40,)])
    opt, fresh = ft.AdamW(params), Fresh(ft.AdamW, twins)
    for step in range(3):
        for some, o in ((params, opt), (twins, fresh.opt)):
            set_gradients(some, step, [True, step > 0])
            if step == 1:
                o.state[some[0]]["exp_avg"] = o.state[some[0]]["exp_avg"] * 2
        opt.step()
        fresh.step()
        assert seen(opt, params) == seen(fresh.opt, twins)


def test_data_in_the_memory_of_what_is_left_to_pytorch_is_left_too(fallback):
    if fallback == "error":
        pytest.skip("refused")
    flat = torch.zeros(20)
    params = [*parameters(shapes=[(5,), (6,)]), torch.nn.Parameter(flat.view(torch.float16)[:8])]
    opt = ft.SGD(params, lr=0.1)
    for step in range(3):
        set_gradients(params, step, 3 * [True])
        if step == 2:
            params[0].data = flat[:5]
        opt.step()
    assert [one.place for one in opt._mixed.left] == [0, 2]
