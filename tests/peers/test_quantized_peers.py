"""8-bit state of the real bitsandbytes and torchao: decoded to their bits, encoded to their codes, loaded by them."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastopt import StateDictError
from fastopt._quantized import (
    BITSANDBYTES_SLOTS,
    WRAPPED,
    bitsandbytes_codes,
    decode_bitsandbytes,
    decode_torchao,
    dynamic_map,
    encode_bitsandbytes,
    encode_torchao,
    kind_of_state,
    torchao_has_codes,
)

SHAPES = [(40, 128), (7, 5), (4103,), (16, 4, 5, 64), (4096,)]
BITSANDBYTES = {
    "Adam8bit": {}, "AdamW8bit": {}, "PagedAdamW8bit": {}, "Lion8bit": {}, "RMSprop8bit": {}, "Adagrad8bit": {},
    "SGD8bit": {"momentum": 0.9}, "AdamW": {},
}  # fmt: skip


def same(a, b):
    """The same bits; a and b are arrays or tensors of float32."""
    a, b = (np.ascontiguousarray(x.numpy() if isinstance(x, torch.Tensor) else x) for x in (a, b))
    assert a.dtype == b.dtype == np.float32 and a.shape == b.shape
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def tensors(parts):
    return {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in parts.items()}


def spread(n, kind, seed=0):
    """State as it is found: even, or over many orders of magnitude; "squares" is never negative."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) * (1 if kind == "even" else np.exp(rng.normal(0, 2 if kind == "squares" else 4, n)))
    return (x * x if kind == "squares" else x).astype(np.float32)


def parameters(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def train(optimizer, params, steps=3, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = (torch.randn(p.shape) * torch.exp(3 * torch.randn(p.shape))).to(p.dtype)
        optimizer.step()


# --- bitsandbytes


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes", exc_type=ImportError)


def in_pytorch(x, qmap):
    """Quantization as the library writes it in PyTorch, for devices without a kernel of their own."""
    op = torch.ops.bitsandbytes.quantize_blockwise.default
    codes, absmax = op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, x, qmap, 256)
    return codes.numpy(), absmax.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_state_of_bitsandbytes_decodes_to_its_own_bits(bnb, name, dtype, tally):
    params = parameters(dtype)
    optimizer = getattr(bnb.optim, name)(params, lr=1e-3, **BITSANDBYTES[name])
    assert kind_of_state(optimizer.state_dict()) is None  # there is no state yet
    train(optimizer, params)
    saved = optimizer.state_dict()
    assert kind_of_state(saved) == "bitsandbytes"
    slots = BITSANDBYTES_SLOTS[name.removeprefix("Paged").removesuffix("8bit")]
    coded = 0
    for i, p in enumerate(params):
        live = optimizer.state[p]
        out = decode_bitsandbytes(saved["state"][i], slots)
        assert list(out) == list(slots)
        for k, slot in enumerate(slots, 1):
            want = live[f"state{k}"]
            if want.dtype == torch.uint8:
                absmax, qmap = live[f"absmax{k}"], live[f"qmap{k}"]
                want = torch.ops.bitsandbytes.dequantize_blockwise(want, absmax, qmap, 256, torch.float32)
                assert same(qmap, dynamic_map(k == 1))
                coded += 1
            assert same(out[slot], want) and out[slot].shape == tuple(p.shape)
    assert coded == (0 if name == "AdamW" else 4 * len(slots))
    tally("state arrays of bitsandbytes decoded", len(params) * len(slots))


@pytest.mark.parametrize("signed", [True, False])
def test_any_scale_of_bitsandbytes_decodes_to_its_own_bits(bnb, signed):
    """Subnormal, huge, zero and not finite ones."""
    absmax = np.array([1e-45, 1e-42, 1e-38, 0, 3e38, np.inf, np.nan, -1.0, 1e-30], np.float32)
    codes = np.resize(np.arange(256, dtype=np.uint8), 8 * 256 + 100)
    qmap = dynamic_map(signed).copy()
    entry = {"state1": codes, "absmax1": absmax, "qmap1": qmap}
    parts = tensors(entry)
    want = torch.ops.bitsandbytes.dequantize_blockwise(
        parts["state1"], parts["absmax1"], parts["qmap1"], 256, torch.float32
    ).numpy()
    got = decode_bitsandbytes(entry, ["m"])["m"]
    assert ((got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", ["even", "wide", "squares"])
def test_codes_of_bitsandbytes_are_the_nearest(bnb, kind, signed, tally):
    """The library's code in PyTorch rounds the quotient to float32, so a code differs where that crosses a middle.

    Its CPU kernel (0.50) looks the quotient up in a table of 65,536 entries, and is never nearer.
    """
    n = 256 * 1000 + 7
    x = spread(n, kind)
    x = x if signed else np.abs(x)
    qmap = dynamic_map(signed)
    codes, absmax = bitsandbytes_codes(x, qmap)
    theirs, their_absmax = in_pytorch(torch.from_numpy(x), torch.from_numpy(qmap.copy()))
    assert same(absmax, their_absmax)
    apart = np.abs(codes.astype(int) - theirs)
    assert apart.max() <= 1 and (apart > 0).sum() <= 3
    tally("codes compared with bitsandbytes' in PyTorch", n)
    tally("of these differ, by 1", int((apart > 0).sum()))

    table, table_absmax = torch.ops.bitsandbytes.quantize_blockwise(
        torch.from_numpy(x), torch.from_numpy(qmap.copy()), 256
    )
    assert same(absmax, table_absmax)
    scale = np.repeat(absmax.astype(np.float64), 256)[:n]
    quotient = x / scale
    error, their_error = (np.abs(qmap[c].astype(np.float64) - quotient) for c in (codes, table.numpy()))
    assert (error <= their_error).all()
    apart = np.abs(codes.astype(int) - table.numpy())
    assert apart[np.abs(quotient) > 1e-3].max() <= 1 and apart.max() <= 7
    tally(f"of {n:,} codes differ from its CPU kernel ({kind}, signed={signed})", int((apart > 0).sum()))


def test_the_cpu_kernel_of_bitsandbytes_makes_a_small_number_of_zero(bnb):
    """If this fails, the library has been mended: change the docstring of `bitsandbytes_codes`."""
    x = torch.zeros(256)
    x[0] = 1
    qmap = torch.from_numpy(dynamic_map(False).copy())
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(x, qmap, 256)
    assert qmap[codes.long()][1] == pytest.approx(1.5625e-5)
    assert not bitsandbytes_codes(x.numpy(), qmap.numpy())[0][1:].any()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bitsandbytes_loads_what_was_encoded(bnb, name, wrapped):
    params = parameters()
    make = getattr(bnb.optim, name)
    optimizer = make(params, lr=1e-3, **BITSANDBYTES[name])
    train(optimizer, params)
    saved = optimizer.state_dict()
    slots = BITSANDBYTES_SLOTS[name.removeprefix("Paged").removesuffix("8bit")]
    built = {**saved, "state": {}}
    for i, entry in saved["state"].items():
        parts = tensors(encode_bitsandbytes(decode_bitsandbytes(entry, slots), slots))
        if name == "AdamW":  # 32-bit optimizers keep float32
            parts = {
                f"state{k}": torch.from_numpy(x) for k, x in enumerate(decode_bitsandbytes(entry, slots).values(), 1)
            }
        built["state"][i] = {"step": entry["step"], **({WRAPPED: parts} if wrapped else parts)}

    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = make(others, lr=1e-3, **BITSANDBYTES[name])
    other.load_state_dict(built)
    for i, (p, q) in enumerate(zip(params, others, strict=True)):
        live, wanted = other.state[q], built["state"][i].get(WRAPPED, built["state"][i])
        assert set(live) == set(optimizer.state[p])
        assert live["step"] == 3
        for key, value in live.items():
            if key != "step":
                assert value.dtype == optimizer.state[p][key].dtype and value.shape == optimizer.state[p][key].shape
                assert torch.equal(value, wanted[key])
    before = [q.detach().clone() for q in others]
    train(other, others, steps=1, seed=9)
    train(optimizer, params, steps=1, seed=9)
    for p, q, start in zip(params, others, before, strict=True):
        # The same state, but for one more rounding to 8 bits: the step is nearly the same.
        moved, wanted = (q - start).detach(), (p - start).detach()
        assert torch.isfinite(moved).all() and (moved - wanted).norm() <= 0.35 * wanted.norm()


def test_bitsandbytes_state_from_a_file(bnb):
    params = parameters()
    optimizer = bnb.optim.AdamW8bit(params, lr=1e-3)
    train(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for i, entry in optimizer.state_dict()["state"].items():
        a, b = (decode_bitsandbytes(e, BITSANDBYTES_SLOTS["AdamW"]) for e in (entry, saved["state"][i]))
        assert all(same(a[slot], b[slot]) for slot in a)


def test_ademamix_of_bitsandbytes_is_refused(bnb):
    """Its state1 is two averages, stacked."""
    params = parameters()
    optimizer = bnb.optim.AdEMAMix8bit(params, lr=1e-3)
    train(optimizer, params)
    for entry in optimizer.state_dict()["state"].values():
        with pytest.raises(StateDictError, match="absmax1 has shape|both must be the same"):
            decode_bitsandbytes(entry, BITSANDBYTES_SLOTS["AdamW"])


def test_channels_last_state_of_bitsandbytes_is_refused(bnb):
    p = torch.nn.Parameter(torch.randn(16, 16, 4, 5).to(memory_format=torch.channels_last))
    optimizer = bnb.optim.AdamW8bit([p], lr=1e-3)
    train(optimizer, [p], steps=1)
    entry = optimizer.state_dict()["state"][0]
    with pytest.raises(StateDictError, match="state1 is not in C order"):
        decode_bitsandbytes(entry, BITSANDBYTES_SLOTS["AdamW"])
    entry[WRAPPED] = {name: x.contiguous() for name, x in entry[WRAPPED].items()}
    assert decode_bitsandbytes(entry, BITSANDBYTES_SLOTS["AdamW"])["exp_avg"].shape == p.shape


# --- torchao


@pytest.fixture(scope="module")
def torchao_optim():
    return pytest.importorskip("torchao.optim", exc_type=ImportError)


@pytest.fixture
def uncompiled(monkeypatch):
    """torchao compiles its step, which takes 13 s; without, it computes the same."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


TORCHAO = ["Adam8bit", "AdamW8bit", "AdamFp8", "AdamWFp8"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TORCHAO)
def test_state_of_torchao_decodes_to_its_own_bits(torchao_optim, uncompiled, name, dtype, tally):
    params = parameters(dtype)
    optimizer = getattr(torchao_optim, name)(params, lr=1e-3)
    train(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    for saved in (optimizer.state_dict(), torch.load(file, weights_only=True)):
        assert kind_of_state(saved) == "torchao"
        for i, p in enumerate(params):
            for slot in ("exp_avg", "exp_avg_sq"):
                value = saved["state"][i][slot]
                assert (type(value) is not torch.Tensor) == torchao_has_codes(p.numel())
                if type(value) is not torch.Tensor:
                    assert same(decode_torchao(value), value.dequantize())
                    tally("state arrays of torchao decoded")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", ["even", "wide", "squares"])
def test_codes_of_torchao_are_its_own(torchao_optim, kind, signed, tally):
    from torchao.optim.subclass_8bit import OptimState8bit

    x = spread(256 * 2000, kind).reshape(500, -1)
    x = x if signed else np.abs(x)
    x[7:9], x[11] = 0, x[11] * np.float32(1e-38)
    theirs = OptimState8bit.zeros(x.shape, signed)
    theirs.copy_(torch.from_numpy(x))
    parts = encode_torchao(x, signed)
    assert same(parts["qmap"], theirs.qmap) and same(parts["scale"], theirs.scale)
    assert (parts["codes"] == theirs.codes.numpy()).all()
    assert same(decode_torchao(theirs), theirs.dequantize())
    tally("codes of torchao compared, all equal", x.size)


def test_float8_of_torchao_decodes_to_its_own_bits(torchao_optim):
    from torchao.optim.subclass_fp8 import OptimStateFp8

    codes = torch.arange(256, dtype=torch.uint8).repeat(9).view(torch.float8_e4m3fn).view(9, 256)
    scale = torch.tensor([1e-45, 1e-42, 1e-38, 0, 1e36, torch.inf, torch.nan, 3.0, 1e-30])
    value = OptimStateFp8(codes, scale)
    want = value.dequantize().numpy()
    float8 = pytest.importorskip("ml_dtypes").float8_e4m3fn
    array = SimpleNamespace(codes=codes.view(torch.uint8).numpy().view(float8), scale=scale.numpy())
    for got in (decode_torchao(value), decode_torchao(array)):
        assert ((got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchao_loads_what_was_encoded(torchao_optim, uncompiled, dtype):
    from torchao.optim.subclass_8bit import OptimState8bit

    params = parameters(dtype)
    optimizer = torchao_optim.AdamW8bit(params, lr=1e-3)
    train(optimizer, params)
    saved = optimizer.state_dict()  # which cannot be copied deeply: torchao's tensors have no clone()
    built = {**saved, "state": {i: dict(entry) for i, entry in saved["state"].items()}}
    for entry in built["state"].values():
        for slot, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            if torchao_has_codes(entry[slot].numel()):
                parts = tensors(encode_torchao(decode_torchao(entry[slot]), signed))
                entry[slot] = OptimState8bit(**parts, signed=signed, dtype=dtype)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = torchao_optim.AdamW8bit(others, lr=1e-3)
    other.load_state_dict(built)
    for i, q in enumerate(others):
        for slot in ("exp_avg", "exp_avg_sq"):
            live, wanted = other.state[q][slot], built["state"][i][slot]
            assert type(live) is type(wanted)
            if type(live) is not torch.Tensor:
                assert torch.equal(live.codes, wanted.codes) and torch.equal(live.scale, wanted.scale)
                assert live.signed == (slot == "exp_avg") and live.block_size == 256
    train(other, others, steps=1)
    assert all(torch.isfinite(q).all() for q in others)


def test_state_of_4_bits_and_other_blocks_of_torchao_are_refused(torchao_optim, uncompiled):
    params = parameters()
    optimizer = torchao_optim.AdamW4bit(params, lr=1e-3)
    train(optimizer, params, steps=1)
    saved = optimizer.state_dict()
    assert kind_of_state(saved) == "torchao"
    with pytest.raises(StateDictError, match=r"qmap has shape \(16,\); \(256,\) is needed, state of 8 bits"):
        decode_torchao(saved["state"][0]["exp_avg"])
    optimizer = torchao_optim.AdamW8bit(params, lr=1e-3, block_size=128)
    train(optimizer, params, steps=1)
    with pytest.raises(StateDictError, match="has blocks of 128 elements; blocks of 256"):
        decode_torchao(optimizer.state_dict()["state"][0]["exp_avg"])


def test_ordinary_state_of_pytorch_is_neither(uncompiled):
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=1e-3)
    train(optimizer, params, steps=1)
    assert kind_of_state(optimizer.state_dict()) is None
