"""Tensors in bfloat16, state in bfloat16 and in 8 bits, low halves and stochastic rounding in `fastopt.torch`."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from facts import with_convention  # noqa: E402

import fastopt  # noqa: E402
import fastopt.torch as ft  # noqa: E402
from fastopt import errors  # noqa: E402
from fastopt._torch_state import order_of  # noqa: E402
from fastopt.engine import load_alone  # noqa: E402

BF16 = torch.bfloat16
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in (*with_convention("torch"), "Lion")},
    "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.5}, "AdamW": {"amsgrad": True},
}  # fmt: skip
every = pytest.mark.parametrize("name", OPTIONS)
N = 5000
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "bfloat16": {"state_dtype": "bfloat16", "rounding": "nearest"},
    "stochastic": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 3},
    "split": {"split": True, "state_dtype": "float32"},
    "8bit": {"split": True, "state_dtype": "8bit", "seed": 9},
}
modes = pytest.mark.parametrize("mode", MODES)
of_arrays = pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "default"])  # which have another one


def numbers(n: int = N, seed: int = 0, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def made(name: str, module: Any = ft, dtype: torch.dtype = BF16, n: int = N, **options: Any) -> tuple[Any, Any]:
    p = torch.nn.Parameter(numbers(n, dtype=dtype))
    return p, getattr(module, name)([p], lr=0.01, **{**OPTIONS[name], **options})


def train(p: Any, opt: Any, steps: Any, dtype: torch.dtype | None = None) -> None:
    """Steps by the gradients of these seeds."""
    for seed in steps if not isinstance(steps, int) else range(steps):
        if dtype is not None and hasattr(p, "grad_dtype"):
            p.grad_dtype = dtype
        p.grad = numbers(p.numel(), 100 + seed, dtype or p.dtype).reshape(p.shape)
        opt.step()


def bits(x: torch.Tensor) -> bytes:
    x = x.detach()
    return (x.view(torch.int16) if x.dtype == BF16 else x).numpy().tobytes()


def all_bits(p: torch.Tensor, opt: Any) -> dict[str, Any]:
    state = {key: (x.dtype, bits(x)) for key, x in opt.state[p].items() if x is not None}
    return {"p": bits(p), **state}


def arrays(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: x for key, x in state.items() if x is not None and x.dim()}


def ulp(x: torch.Tensor) -> torch.Tensor:
    return 2.0 ** (torch.floor(torch.log2(x.abs().clamp(min=2.0**-126))) - 7)


# --- One step


@every
def test_a_step_is_that_of_the_float32_class_from_the_widened_values_rounded_once(name):
    p, opt = made(name)
    train(p, opt, 3)
    q = torch.nn.Parameter(p.detach().float())
    other = getattr(ft, name)([q], lr=0.01, **OPTIONS[name])
    other.state[q] = {key: x.clone().float() if x is not None else x for key, x in opt.state[p].items()}
    train(p, opt, [7])
    q.grad = p.grad.float()
    other.step()
    assert torch.equal(p, q.detach().to(BF16))
    kept = arrays(opt.state[p])
    assert kept.keys() == arrays(other.state[q]).keys()
    for key, x in kept.items():
        assert x.dtype == BF16 and torch.equal(x, other.state[q][key].to(BF16)), key


@every
def test_a_step_is_near_that_of_pytorchs_loop_which_rounds_after_each_operation(name):
    if name not in torch.optim.__all__:
        pytest.skip("PyTorch has none")
    more = {"momentum": 0.0} if name == "RMSprop" else {}  # whose buffer is a difference of rounded numbers
    p, theirs = made(name, torch.optim, foreach=False, **more)
    train(p, theirs, 3)
    q = torch.nn.Parameter(p.detach().clone())
    mine = getattr(ft, name)([q], lr=0.01, **{**OPTIONS[name], **more})
    mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert {key: x.dtype for key, x in arrays(mine.state[q]).items()} == {
        key: x.dtype for key, x in arrays(theirs.state[p]).items()
    }
    before = p.detach().float()
    for x, opt in ((p, theirs), (q, mine)):
        train(x, opt, [7])
    after, got = p.detach().float(), q.detach().float()
    room = torch.stack([before.abs(), after.abs(), (after - before).abs()]).amax(0)
    most = 2.5 if name == "NAdam" else 1.6  # PyTorch writes its parameter twice, and it may be larger in between
    assert ((got - after).abs() / ulp(room)).max() <= most


@every
@of_arrays
def test_the_bits_are_those_of_the_optimizers_for_arrays(name, mode):
    p, opt = made(name, **MODES[mode])
    start = p.detach().view(torch.int16).numpy().view(np.uint16).copy()
    convention = {} if name == "Lion" else {"convention": "torch"}
    twin = getattr(fastopt, name)(
        start, lr=0.01, param_dtype="bfloat16", grad_dtype="bfloat16", **convention, **OPTIONS[name], **MODES[mode]
    )
    for seed in range(4):
        train(p, opt, [seed])
        twin.step(p.grad.view(torch.int16).numpy().view(np.uint16))
    assert bits(p) == start.tobytes()
    wanted = {key: x for key, x in twin.state[0].items() if isinstance(x, np.ndarray) and x.ndim}
    assert arrays(opt.state[p]).keys() == wanted.keys()
    for key, x in wanted.items():
        assert bits(opt.state[p][key]) == x.tobytes(), key


def test_random_numbers_go_by_the_place_of_a_parameter_among_all():
    """Also where one has no gradient, or is left to PyTorch, and in a plan that is made anew."""
    starts = [numbers(300, k) for k in range(4)]
    params = [torch.nn.Parameter(x.half() if k == 1 else x.clone()) for k, x in enumerate(starts)]
    options = {"lr": 0.01, "rounding": "stochastic", "seed": 4}
    opt = ft.Adam([{"params": params[:2]}, {"params": params[2:]}], fallback="silent", **options)
    twins = [x.view(torch.int16).numpy().view(np.uint16).copy() for x in starts]
    more = {"param_dtype": "bfloat16", "grad_dtype": "bfloat16", "state_dtype": "bfloat16", "convention": "torch"}
    twin = fastopt.Adam([{"params": twins[:2]}, {"params": twins[2:]}], **options, **more)
    for step in range(3):
        for k, p in enumerate(params):
            g = numbers(300, 10 * step + k)
            p.grad = None if (step, k) == (0, 0) else g.to(p.dtype)
        opt.step()
        grads = [None if p.grad is None else p.grad.bfloat16().view(torch.int16) for p in params]
        given = [None if g is None else g.numpy().view(np.uint16) for g in grads]
        twin.step(given)
        for k in (0, 2, 3):
            assert bits(params[k]) == twins[k].tobytes(), (step, k)
        opt._plan = opt._mixed = None


@every
def test_split_weights_are_the_float32_classs(name):
    p, opt = made(name, split=True, state_dtype="float32")
    q = torch.nn.Parameter(p.detach().float())
    other = getattr(ft, name)([q], lr=0.01, **OPTIONS[name])
    for seed in range(8):
        train(p, opt, [seed])
        q.grad = p.grad.float()
        other.step()
    low = opt.state[p]["low"]
    halves = (x.numpy().view(np.uint16) for x in (p.detach().view(torch.int16), low))
    assert np.array_equal(load_alone("split", *halves), q.detach().numpy())
    for key, x in arrays(opt.state[p]).items():
        assert key == "low" or torch.equal(x, other.state[q][key])


@every
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_gradients_in_half_precision_are_read_as_float32(name, dtype):
    p, opt = made(name, dtype=torch.float32)
    q, other = made(name, dtype=torch.float32)
    if not hasattr(p, "grad_dtype"):
        pytest.skip("needs PyTorch 2.10")
    for seed in range(3):
        train(p, opt, [seed], dtype)
        q.grad = p.grad.float()
        other.step()
    assert p.grad.dtype == dtype and all_bits(p, opt) == all_bits(q, other)


# --- Forms


def plain_run(start: torch.Tensor, options: dict[str, Any], grads: list[torch.Tensor]) -> torch.Tensor:
    p = torch.nn.Parameter(start.clone(memory_format=torch.contiguous_format))
    opt = ft.AdamW([p], lr=0.01, **options)
    for g in grads:
        p.grad = g.clone(memory_format=torch.contiguous_format)
        opt.step()
    return p.detach()


FORMS: dict[str, Any] = {
    "channels_last": lambda: numbers(8 * 6 * 10 * 10).reshape(8, 6, 10, 10).to(memory_format=torch.channels_last),
    "transposed": lambda: numbers(6000).reshape(60, 100).t(),
    "gaps": lambda: numbers(9000).reshape(90, 100)[:, :50],
    "empty": lambda: numbers(0),
    "0-d": lambda: numbers(1)[0],
    "one dimension of 1": lambda: numbers(5000).reshape(5000, 1),
}


@modes
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, mode):
    """With nearest rounding the order of memory does not matter; else a run by itself goes on from its checkpoint."""
    start = FORMS[form]()
    p = torch.nn.Parameter(start.detach())
    assert p.stride() == start.stride()
    opt = ft.AdamW([p], lr=0.01, **MODES[mode])
    grads = [numbers(p.numel(), 100 + k).reshape(p.shape) for k in range(3)]
    begin = start.clone(memory_format=torch.contiguous_format)
    for g in grads:
        p.grad = g.clone()
        opt.step()
    if mode in ("default", "split"):
        assert torch.equal(p.detach(), plain_run(begin, MODES[mode], grads))
    else:
        near = plain_run(begin, MODES["split"], grads)
        assert torch.allclose(p.detach().float(), near.float(), atol=0.05)
    q = torch.nn.Parameter(torch.empty_strided(p.shape, p.stride(), dtype=BF16).copy_(p.detach()))
    other = ft.AdamW([q], lr=0.5, **MODES[mode])
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for x, o in ((p, opt), (q, other)):
        x.grad = numbers(p.numel(), 200).reshape(p.shape)
        o.step()
    assert torch.equal(p, q)


def test_codes_do_not_follow_a_parameter_into_another_order_of_memory():
    p = torch.nn.Parameter(numbers(8 * 6 * 10 * 10).reshape(8, 6, 10, 10))
    opt = ft.AdamW([p], state_dtype="8bit")
    train(p, opt, 2)
    for other in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        (q,) = other.param_groups[0]["params"]
        q.data = q.data.to(memory_format=torch.channels_last)
        q.grad = torch.ones_like(q)
        before = q.detach().clone()
        with pytest.raises(errors.LayoutError, match="parameter 0 has its dimensions in another order"):
            other.step()
        assert torch.equal(q, before)


@pytest.mark.parametrize("form", ["channels_last", "transposed"])
def test_a_state_dict_says_in_which_order_codes_are(form):
    p = torch.nn.Parameter(FORMS[form]())
    opt = ft.AdamW([p], state_dtype="8bit")
    for k in range(2):
        p.grad = numbers(p.numel(), k).reshape(p.shape)
        opt.step()
    saved = opt.state_dict()
    assert order_of(p) != tuple(range(p.dim())) and "packed" in saved["fastopt"]
    q = torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    other = ft.AdamW([q], state_dtype="8bit")
    with pytest.raises(errors.StateDictError, match="in another order of memory"):
        other.load_state_dict(copy.deepcopy(saved))
    wide = ft.AdamW([q], state_dtype="float32")
    wide.load_state_dict(copy.deepcopy(saved))
    again = ft.AdamW([p], state_dtype="8bit")
    again.load_state_dict(wide.state_dict(), convert="lossy")
    first, second = opt.state[p]["exp_avg"], again.state[p]["exp_avg"]
    assert torch.equal(first, second)  # nearest: what was decoded is encoded to the same
    other.load_state_dict(copy.deepcopy(saved), convert="lossy")
    assert other.state[q]["exp_avg"].dtype == torch.uint8 and "fastopt" not in other.state_dict()


# --- Checkpoints


@every
@modes
@pytest.mark.parametrize("way", ["state dict", "file", "pickle", "deepcopy"])
def test_a_resumed_run_goes_on_to_the_bit(name, mode, way):
    p, opt = made(name, **MODES[mode])
    train(p, opt, 3)
    if way in ("pickle", "deepcopy"):
        q, other = pickle.loads(pickle.dumps((p, opt))) if way == "pickle" else copy.deepcopy((p, opt))
    else:
        q, other = made(name, **{**MODES[mode], "seed": 77})
        q.data.copy_(p.detach())
        saved = opt.state_dict()
        if way == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file)
        other.load_state_dict(copy.deepcopy(saved))
    assert all_bits(p, opt) == all_bits(q, other)
    for x, o in ((p, opt), (q, other)):
        train(x, o, range(3, 6))
    assert all_bits(p, opt) == all_bits(q, other)


@every
@of_arrays
def test_state_dicts_go_to_the_optimizers_for_arrays_and_back(name, mode):
    p, opt = made(name, **MODES[mode])
    train(p, opt, 3)
    array = p.detach().view(torch.int16).numpy().view(np.uint16).copy()
    convention = {} if name == "Lion" else {"convention": "torch"}
    twin = getattr(fastopt, name)(
        array, lr=0.5, param_dtype="bfloat16", grad_dtype="bfloat16", **convention, **OPTIONS[name],
        **{**MODES[mode], "seed": 5},
    )  # fmt: skip
    twin.load_state_dict(opt.state_dict())
    train(p, opt, [3])
    twin.step(p.grad.view(torch.int16).numpy().view(np.uint16))
    assert bits(p) == array.tobytes()
    q, other = made(name, **{**MODES[mode], "seed": 6})
    q.data.copy_(torch.from_numpy(array.view(np.int16)).view(BF16))
    other.load_state_dict(twin.state_dict())
    assert not {"param_dtype", "grad_dtype"} & other.param_groups[0].keys()
    train(q, other, [4])
    twin.step(q.grad.view(torch.int16).numpy().view(np.uint16))
    assert bits(q) == array.tobytes()
    for key, x in twin.state[0].items():
        if isinstance(x, np.ndarray) and x.ndim:
            assert bits(other.state[q][key]) == x.tobytes(), key


def loaded(opt: Any, into: dict[str, Any], dtype: torch.dtype = BF16, convert: Any = None) -> tuple[Any, Any]:
    """Another optimizer that has loaded the state of one, and its parameter."""
    (p,) = opt.param_groups[0]["params"]
    q = torch.nn.Parameter(p.detach().to(dtype))
    other = type(opt)([q], **into)
    before = copy.deepcopy(other.state_dict())
    try:
        other.load_state_dict(copy.deepcopy(opt.state_dict()), **({} if convert is None else {"convert": convert}))
    except errors.StateDictError:
        assert str(other.state_dict()) == str(before)
        raise
    return q, other


LOSSES = {
    "float32 into bfloat16": ({"state_dtype": "float32"}, {"state_dtype": "bfloat16"}, BF16),
    "float32 into 8 bits": ({"state_dtype": "float32"}, {"state_dtype": "8bit"}, BF16),
    "bfloat16 into 8 bits": ({}, {"state_dtype": "8bit"}, torch.float32),
    "float32 beside rounding": ({"state_dtype": "float32"}, {"rounding": "stochastic"}, BF16),
    "low into none": ({"split": True}, {}, BF16),
    "low into none, of float32": ({"split": True}, {"split": True}, torch.float32),
}


@pytest.mark.parametrize("case", LOSSES)
def test_what_loses_bits_has_to_be_allowed(case):
    source, into, dtype = LOSSES[case]
    p, opt = made("Adam", **source)
    train(p, opt, 2)
    with pytest.raises(errors.StateDictError, match='of parameter 0.*convert="lossy" allows it'):
        loaded(opt, into, dtype)
    q, other = loaded(opt, into, dtype, "lossy")
    state = other.state[q]
    assert ("low" in state) == bool(into.get("split")) and (not into.get("split") or state["low"].numel() == 0)
    wanted = {"8bit": torch.uint8, "bfloat16": BF16, None: dtype}[into.get("state_dtype")]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == wanted
    for layout in ("state_dtype", "split"):
        assert other.param_groups[0].get(layout) == into.get(layout)
    train(q, other, [5])
    with pytest.raises(errors.HyperparameterError, match="convert='x' must be None or 'lossy'"):
        loaded(opt, into, dtype, "x")


@pytest.mark.parametrize("into", [{"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}])
def test_what_is_rounded_by_loading_is_rounded_as_by_the_optimizers_for_arrays(into):
    p, opt = made("Adam", state_dtype="float32", seed=3)
    train(p, opt, 2)
    q, other = loaded(opt, into, convert="lossy")
    array = p.detach().view(torch.int16).numpy().view(np.uint16).copy()
    twin = fastopt.Adam(
        array, convention="torch", param_dtype="bfloat16", grad_dtype="bfloat16", rounding="nearest", **into
    )
    twin.load_state_dict(opt.state_dict(), convert="lossy")
    for key in ("exp_avg", "exp_avg_sq"):
        assert bits(other.state[q][key]) == twin.state[0][key].tobytes()


def test_state_in_8_bits_in_another_order_of_memory_goes_to_arrays_of_that_order_alone():
    p = torch.nn.Parameter(numbers(6000, dtype=torch.float32).reshape(60, 100).t())
    opt = ft.Adam([p], state_dtype="8bit")
    p.grad = torch.ones_like(p)
    opt.step()
    array = np.array(p.detach().numpy(), order="F")
    twin = fastopt.Adam(array, convention="torch", state_dtype="8bit")
    twin.load_state_dict(opt.state_dict())
    assert bits(opt.state[p]["exp_avg"]) == twin.state[0]["exp_avg"].tobytes()
    back = ft.Adam([torch.nn.Parameter(p.detach().clone())], state_dtype="8bit")
    back.load_state_dict(twin.state_dict())
    for o, x in ((opt, p), (back, back.param_groups[0]["params"][0])):
        x.grad = numbers(6000, 5, torch.float32).reshape(60, 100).t()
        o.step()
    twin.step(p.grad.numpy())
    assert torch.equal(p, x) and np.array_equal(p.detach().numpy(), array)
    images = torch.nn.Parameter(FORMS["channels_last"]().float())
    opt = ft.Adam([images], state_dtype="8bit")
    images.grad = torch.ones_like(images)
    opt.step()
    with pytest.raises(errors.StateDictError, match="'packed'"):
        fastopt.Adam(images.detach().numpy().copy(), convention="torch", state_dtype="8bit").load_state_dict(
            opt.state_dict()
        )


def test_without_options_a_dict_is_taken_as_by_pytorch():
    for source in ({"state_dtype": "float32"}, {}):
        p, opt = made("Adam", **source)
        train(p, opt, 2)
        saved = opt.state_dict()
        for group in saved["param_groups"]:
            group.pop("state_dtype", None)
        for dtype in (BF16, torch.float32):
            q, r = (torch.nn.Parameter(p.detach().to(dtype)) for _ in range(2))
            mine, theirs = ft.Adam([q]), torch.optim.Adam([r])
            for one in (mine, theirs):
                one.load_state_dict(copy.deepcopy(saved))
            for key, x in theirs.state[r].items():
                assert mine.state[q][key].dtype == x.dtype and torch.equal(mine.state[q][key], x)


def test_narrow_state_is_widened_without_a_loss():
    p, opt = made("Adam", state_dtype="8bit")
    train(p, opt, 2)
    q, wide = loaded(opt, {"state_dtype": "float32"}, torch.float32)
    assert wide.state[q]["exp_avg"].dtype == torch.float32
    r, narrow = loaded(opt, {}, BF16)
    assert narrow.state[r]["exp_avg"].dtype == BF16
    assert torch.equal(narrow.state[r]["exp_avg"].float(), wide.state[q]["exp_avg"])
    s, same = loaded(wide, {"state_dtype": "8bit"}, torch.float32, "lossy")
    assert torch.equal(same.state[s]["exp_avg"], opt.state[p]["exp_avg"])
    d, double = loaded(opt, {}, torch.float64)
    assert torch.equal(double.state[d]["exp_avg"].float(), wide.state[q]["exp_avg"])


def test_averages_of_bfloat16_stay_float32():
    p, opt = made("SGD", ema_decay=0.9)
    train(p, opt, 3)
    q, other = loaded(opt, {"lr": 0.1, "momentum": 0.9, "ema_decay": 0.9})
    assert other.state[q]["ema"].dtype == torch.float32 and torch.equal(other.state[q]["ema"], opt.state[p]["ema"])
    before = bits(q)
    with other.averaged():
        assert torch.equal(q, other.state[q]["ema"].to(BF16)) and other.averages[0].dtype == torch.float32
    assert bits(q) == before


def test_tensors_that_fit_are_taken_over_not_copied():
    p, opt = made("Adam", state_dtype="8bit", split=True)
    train(p, opt, 1)
    saved = opt.state_dict()
    other = ft.Adam([torch.nn.Parameter(p.detach().clone())], state_dtype="8bit", split=True)
    other.load_state_dict(saved)
    (entry,) = other.state.values()
    for key in ("exp_avg", "exp_avg_sq", "low"):
        assert entry[key] is opt.state[p][key]


def test_damaged_codes_are_refused():
    p, opt = made("Adam", state_dtype="8bit")
    train(p, opt, 1)
    for damage in ("short", "base"):
        saved = copy.deepcopy(opt.state_dict())
        if damage == "short":
            saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"][:-1].clone()
        else:
            saved["state"][0]["exp_avg"][:2] = 0x7F
        with pytest.raises(errors.StateDictError, match="'exp_avg' of parameter 0"):
            ft.Adam([torch.nn.Parameter(p.detach().clone())], state_dtype="8bit").load_state_dict(saved)


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_state_of_8_bit_optimizers_of_other_libraries(library):
    from fastopt._quantized import decode_bitsandbytes, encode_bitsandbytes, encode_torchao

    m, v = (numbers(5120, seed, torch.float32) for seed in (1, 2))
    v = v * v
    group = {"params": [0], "lr": 0.25, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.5}
    names = ("exp_avg", "exp_avg_sq")
    encoded = {"exp_avg": m.numpy(), "exp_avg_sq": v.numpy()}
    parts = encode_bitsandbytes(encoded, names)
    if library == "bitsandbytes":
        entry: dict[str, Any] = {"step": 7, **{key: torch.from_numpy(x) for key, x in parts.items()}}
        wanted = {key: torch.from_numpy(x) for key, x in decode_bitsandbytes(parts, names).items()}
        group["betas"] = (0.8, 0.9, 0.0)
    else:
        from types import SimpleNamespace

        from fastopt._quantized import decode_torchao

        entry, wanted = {"step": torch.tensor(7.0)}, {}
        for name, signed in zip(names, (True, False), strict=True):
            codes = {key: torch.from_numpy(x) for key, x in encode_torchao(encoded[name], signed).items()}
            entry[name] = SimpleNamespace(**codes)
            wanted[name] = torch.from_numpy(decode_torchao(entry[name]))
    saved = {"state": {0: entry}, "param_groups": [group]}
    for options, dtype in (({}, torch.float32), ({"state_dtype": "8bit"}, BF16), ({}, BF16)):
        p = torch.nn.Parameter(numbers(5120, dtype=dtype))
        opt = ft.AdamW([p], **options)
        with pytest.raises(errors.StateDictError, match=f'{library}.*convert="lossy" allows it'):
            opt.load_state_dict(saved)
        opt.load_state_dict(copy.deepcopy(saved), convert="lossy")
        assert opt.param_groups[0]["lr"] == 0.25 and opt.param_groups[0]["betas"] == (0.8, 0.9)
        assert opt.state[p]["step"] == 7 and opt.param_groups[0]["amsgrad"] is False
        if dtype == torch.float32:
            assert all(torch.equal(opt.state[p][name], wanted[name]) for name in names)
        else:
            assert opt.state[p]["exp_avg"].dtype == (torch.uint8 if options else BF16)
        p.grad = numbers(5120, 9, dtype)
        opt.step()
        assert opt.state[p]["step"] == 8


# --- What cannot be stored so


def refused(opt: Any, error: Any, match: str) -> None:
    """A step raises, before anything is written."""
    params = [p for group in opt.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params], str(opt.state_dict())
    with pytest.raises(error, match=match):
        opt.step()
    kept = [p.detach().clone() for p in params], str(opt.state_dict())
    assert kept[1] == before[1]
    assert all(torch.equal(x.to_dense(), y.to_dense()) for x, y in zip(kept[0], before[0], strict=True))


LEFT = {
    "float16": lambda: (torch.ones(9).half(), torch.ones(9).half()),
    "complex": lambda: (torch.ones(9, dtype=torch.complex64), torch.ones(9, dtype=torch.complex64)),
    "sparse gradient": lambda: (torch.ones(9), torch.ones(9).to_sparse()),
    "expanded": lambda: (torch.ones(1).expand(9), torch.ones(9)),
}


@pytest.mark.parametrize("fallback", ["warn", "silent", "error"])
@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"split": True}, {"state_dtype": "8bit"}])
@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_to_pytorch_cannot_be_stored_in_another_way(kind, options, fallback):
    p, (data, grad) = torch.nn.Parameter(torch.ones(3)), LEFT[kind]()
    q = torch.nn.Parameter(data)
    p.grad, q.grad = torch.ones(3), grad
    ((key, value),) = options.items()
    opt = ft.SGD([("a", p), ("b", q)], lr=0.1, momentum=0.9, fallback=fallback, **options)
    says = f"{key}={value!r} is for the compiled step.*Put parameter 'b' into a parameter group with {key}=None"
    refused(opt, errors.HyperparameterError if fallback != "error" else errors.FastoptError,
            says if fallback != "error" else "'b'")  # fmt: skip
    if fallback == "silent" and kind != "expanded":
        opt = ft.SGD([{"params": [p]}, {"params": [q], key: None}], lr=0.1, fallback=fallback, **options)
        opt.step()
        assert (q == 0.9).all() or kind != "float16"


def test_rounding_does_nothing_to_what_is_left_to_pytorch():
    ends = []
    for options in ({}, {"rounding": "stochastic", "seed": 1}):
        p = torch.nn.Parameter(numbers(dtype=torch.float16))
        opt = ft.Adam([p], fallback="silent", **options)
        train(p, opt, 2)
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("options", [
    {"state_dtype": "bfloat16"}, {"split": True}, {"state_dtype": "8bit"}, {"rounding": "stochastic"}, {"seed": 1},
])  # fmt: skip
def test_differentiable_steps_have_no_storage(options):
    ((key, value),) = options.items()
    with pytest.raises(errors.HyperparameterError, match=f"{key}={value!r} does not go with differentiable=True"):
        ft.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, differentiable=True, **options)
    p = torch.nn.Parameter(torch.ones(3))
    opt = ft.SGD([p], lr=0.1, **options)
    opt.param_groups[0]["differentiable"] = True
    p.grad = torch.ones(3)
    refused(opt, errors.HyperparameterError, "differentiable=True")


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"split": True}, {"state_dtype": "8bit"}])
@pytest.mark.parametrize("n", [3, N])
def test_float64_is_not_narrowed(options, n):
    p, opt = made("Adam", dtype=torch.float64, n=n, **options)
    p.grad = torch.ones_like(p)
    refused(opt, errors.DTypeError, "parameter 0 has dtype torch.float64.*state_dtype and split are for float32")
    q, other = made("Adam", dtype=torch.float64, rounding="stochastic", seed=1)
    train(q, other, 1)  # these say nothing of float64


EDITS = [
    ({}, {"state_dtype": "8bit"}), ({"state_dtype": "8bit"}, {"state_dtype": None}),
    ({"state_dtype": "bfloat16"}, {"state_dtype": "float32"}), ({}, {"state_dtype": "float32"}),
    ({"split": True}, {"split": None}), ({}, {"split": True}),
    ({"split": True, "state_dtype": "8bit"}, {"split": False}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "edit"), EDITS)
@pytest.mark.parametrize("fallback", ["warn", "error"])
def test_the_layout_of_state_cannot_be_edited(options, edit, fallback):
    for n in (N, 30):
        if n < 4096 and "8bit" in (*options.values(), *edit.values()):
            continue
        p, opt = made("Adam", n=n, fallback=fallback, **options)
        train(p, opt, 2)
        before = dict(opt.param_groups[0])
        opt.param_groups[0].update(edit)
        p.grad = numbers(n, 50)
        refused(opt, errors.FastoptError, "of parameter 0")
        opt.param_groups[0].clear()
        opt.param_groups[0].update(before)
        opt.step()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lion"])
def test_rounding_and_seed_can_be_edited_between_steps(name):
    p, opt = made(name)
    q, other = made(name)
    for o, x in ((opt, p), (other, q)):
        train(x, o, 2)
    opt.param_groups[0].update(rounding="stochastic", seed=5)
    train(p, opt, [2])
    train(q, other, [2])
    assert not torch.equal(p, q)
    r, resumed = made(name)
    r.data.copy_(p.detach())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert resumed.param_groups[0]["seed"] == 5
    for o, x in ((opt, p), (resumed, r)):
        train(x, o, [3, 4])
    assert all_bits(p, opt) == all_bits(r, resumed)
    resumed.param_groups[0]["seed"] = 6
    for o, x in ((opt, p), (resumed, r)):
        train(x, o, [5])
    assert not torch.equal(p, r)
    opt.param_groups[0].update(rounding=None)
    before = p.detach().float()
    train(p, opt, [6])
    assert torch.equal(p, p.detach()) and not torch.equal(p.detach().float(), before)


def test_steps_of_one_seed_differ():
    """The step is part of the key of a random number, in classes that do not count for PyTorch, too."""
    for name in ("SGD", "Lion", "Adam"):
        p, opt = made(name, rounding="stochastic", seed=1)
        moves = []
        for _ in range(2):
            p.data.copy_(numbers())
            for key, x in arrays(opt.state[p]).items():
                assert key and x.zero_() is x
            opt._plan = None  # a new plan goes on counting
            p.grad = numbers(seed=3) * 1e-3
            opt.step()
            moves.append(p.detach().clone())
        assert not torch.equal(*moves) and opt.state[p]["step"] == 2


# --- What is exchanged between steps


@modes
@pytest.mark.parametrize("what", ["data", "model state", "state", "state dict"])
def test_memory_that_is_exchanged_between_steps(mode, what):
    p, opt = made("AdamW", **MODES[mode])
    q, other = made("AdamW", **MODES[mode])
    for k in range(5):
        if k in (2, 3):
            if what == "data":
                p.data = p.data.clone()
            elif what == "model state":
                model = torch.nn.Module()
                model.p = p
                model.load_state_dict({"p": p.detach().clone()}, assign=False)
            elif what == "state":
                entry = opt.state[p]
                entry.update({key: x.clone() for key, x in entry.items()})
            else:
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        train(p, opt, [k])
        train(q, other, [k])
        assert all_bits(p, opt) == all_bits(q, other)


def test_a_parameter_that_was_cast_to_float32_goes_on_from_its_state():
    p, opt = made("Adam")
    train(p, opt, 2)
    kept = opt.state[p]["exp_avg"].float()
    p.data = p.data.float()
    q = torch.nn.Parameter(p.detach().clone())
    other = ft.Adam([q], lr=0.01)
    other.state[q] = {key: x.clone().float() for key, x in opt.state[p].items()}
    train(p, opt, [2])
    train(q, other, [2])
    assert opt.state[p]["exp_avg"].dtype == torch.float32 and torch.equal(p, q) and not torch.equal(
        opt.state[p]["exp_avg"], kept
    )


@modes
def test_the_compiled_step_takes_all_of_it(mode):
    """Under ``fallback="error"`` nothing can be left to PyTorch."""
    params = [torch.nn.Parameter(numbers(n, dtype=dtype)) for n in (30, N) for dtype in (BF16, torch.float32)]
    opt = ft.AdamW(params, fallback="error", **MODES[mode])
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert opt._plan is not None and opt._mixed is None


# --- Around the step


@every
def test_clipping_averages_and_zeroing_are_the_float32_classs(name):
    options = {"clip_norm": 0.5, "clip_value": 0.01, "clip_norm_each": 0.4, "ema_decay": 0.5, "zero_grads": True}
    p, opt = made(name, **options)
    train(p, opt, 1)
    q = torch.nn.Parameter(p.detach().float())
    other = getattr(ft, name)([q], lr=0.01, ema_decay=0.5, **OPTIONS[name])
    other.state[q] = {key: x.clone().float() if x is not None else x for key, x in opt.state[p].items()}
    g = numbers(seed=8)
    p.grad = g.clone()
    opt.step()
    norm = opt.grad_norm
    assert norm == pytest.approx(g.double().norm().item(), rel=1e-12)
    factor = 0.5 / (norm + 1e-6)
    factor *= 0.4 / (norm * factor + 1e-6)
    q.grad = (g.float() * torch.tensor(factor, dtype=torch.float32)).clamp(-0.01, 0.01)
    assert (q.grad.abs() == 0.01).any()
    other.step()
    assert not p.grad.any() and p.grad.dtype == BF16
    assert torch.equal(p, q.detach().to(BF16))
    for key, x in arrays(opt.state[p]).items():
        if key != "ema":
            assert torch.equal(x, other.state[q][key].to(BF16)), key
    # The average follows the parameter as it is stored.
    first = other.state[q]["ema"] - 0.5 * q.detach()
    torch.testing.assert_close(opt.state[p]["ema"], first + 0.5 * p.detach().float(), rtol=1e-6, atol=1e-7)
    assert opt.state[p]["ema"].dtype == torch.float32


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("mode", ["default", "split"])
def test_a_scalers_factor_is_taken_out(mode, unscaled):
    ends = []
    for scale in (1.0, 1024.0):
        p, opt = made("AdamW", clip_norm=1.0, **MODES[mode])
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for seed in range(3):
            p.grad = numbers(seed=seed) * scale
            scaler.scale(torch.ones(()))
            if unscaled:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
        ends.append((bits(p), opt.grad_norm))
    assert ends[0] == ends[1] and ends[0][1] == pytest.approx(numbers(seed=2).double().norm().item(), rel=1e-12)
    p.grad = numbers(seed=1)
    p.grad[0] = float("inf")
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    assert bits(p) == ends[1][0]


@modes
def test_averages_change_places_with_parameters(mode):
    p, opt = made("Adam", ema_decay=0.5, **MODES[mode])
    train(p, opt, 3)
    before = all_bits(p, opt)
    with opt.averaged():
        assert torch.equal(p, opt.averages[0].to(BF16))
    assert all_bits(p, opt) == before


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"split": True, "state_dtype": "bfloat16"}],
                         ids=["float32", "8 bits", "split"])  # fmt: skip
def test_state_goes_to_bitsandbytes_and_comes_back(options):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "split" in options else torch.float32
    params = [torch.nn.Parameter(torch.randn(size).to(dtype)) for size in ((70, 80), (9,))]
    opt = ft.AdamW(params, lr=0.02, **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape).to(dtype)
        opt.step()
    with pytest.raises(errors.StateDictError, match='convert="lossy" allows it'):
        opt.export_state_dict("bitsandbytes")
    exported = opt.export_state_dict("bitsandbytes", convert="lossy")
    assert exported["param_groups"][0]["lr"] == 0.02
    other = ft.AdamW([torch.nn.Parameter(p.detach().float()) for p in params])
    other.load_state_dict(exported, convert="lossy")
    wide = fastopt.AdamW([p.detach().float().numpy() for p in params])
    wide.load_state_dict(opt.state_dict(), convert="lossy" if "split" in options else None)
    for p, mine in zip(other.param_groups[0]["params"], wide.state, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            apart = np.abs(other.state[p][name].numpy() - mine[name])
            assert apart.max() <= 0.02 * np.abs(mine[name]).max()
        assert other.state[p]["step"] == 3


def test_8_bit_state_at_an_odd_address_is_copied():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(5000))]
    twin = [torch.nn.Parameter(params[0].detach().clone())]
    opts = [ft.AdamW(one, state_dtype="8bit") for one in (params, twin)]
    for k in range(3):
        g = torch.randn(5000)
        for (p,), opt in zip((params, twin), opts, strict=True):
            p.grad = g.clone()
            opt.step()
        if k == 1:
            state = opts[0].state[params[0]]
            room = torch.zeros(5041, dtype=torch.uint8)
            odd = room[1 - room.data_ptr() % 2 :][:5040]
            state["exp_avg"] = odd.copy_(state["exp_avg"])
    assert torch.equal(params[0], twin[0])
    assert opts[0].state[params[0]]["exp_avg"].data_ptr() % 2 == 0


def test_bitsandbytes_adam_goes_on_with_its_own_weight_decay():
    """It shrinks the parameter, as AdamW does; PyTorch's Adam would add it to the gradient."""
    p = torch.nn.Parameter(torch.randn(5000))
    wide = fastopt.Adam(p.detach().numpy().copy(), weight_decay=0.1, decoupled_weight_decay=True)
    wide.step(np.ones(5000, np.float32))
    saved = wide.export_state_dict("bitsandbytes", convert="lossy")
    opt = ft.Adam([p], weight_decay=0.1)
    opt.load_state_dict(saved, convert="lossy")
    assert opt.param_groups[0]["decoupled_weight_decay"] is True and opt.param_groups[0]["weight_decay"] == 0.1


def test_streams_matter_where_squares_are_rounded_at_random():
    ws = {name: np.zeros(5000, np.float32) for name in "ab"}
    first = fastopt.AdamW(ws, state_dtype="8bit")
    first.step({name: np.ones(5000, np.float32) for name in "ab"})
    saved = first.state_dict()
    saved["fastopt"]["streams"] = [1, 0]
    opt = ft.AdamW([torch.nn.Parameter(torch.zeros(5000)) for _ in "ab"], state_dtype="8bit")
    with pytest.raises(errors.StateDictError, match="'streams' of random numbers"):
        opt.load_state_dict(saved)
    opt.load_state_dict(saved, convert="lossy")
