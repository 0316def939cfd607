"""8-bit state of bitsandbytes and torchao: what they mean by their codes, without either library.

The literal values were recorded from bitsandbytes 0.50.2 and torchao 0.18.0 with PyTorch 2.13 on a CPU;
tests/peers/test_quantized_peers.py asks the libraries themselves.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastopt
from fastopt import StateDictError
from fastopt._quantized import (
    BITSANDBYTES_SLOTS,
    SMALLEST,
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

ADAM = ("exp_avg", "exp_avg_sq")
CODES = {
    True: bytes.fromhex(
        "00c03dba6b5a986c938873887a78837c827f7d8033d9ac4aaa6c5e926f908675877b79827c827f7ed73bc8a255a26d658f718d837785"
        "7b83817d817f0bc643bf995c9d6f6b8b74897e78837c82807d803e27bb51ad905f94716e8876877c7a827d82807ee34736a959a48967"
        "90748e8677867d7b827d817f17cb513ea15e9f776c8d768a8479847d7c817e80ad2dc158b1996296766e897788827a837d7c807eee93"
        "39b05da69269917771877886817b827e7d8023d16140a560a08f6d8f7774867a84807c817e80c733c460509f6799896f8b7876847b83"
        "7f7c807efab93cb86459966c928672887978837b827e7d802ed7a647a8685e916e8f8375867a858200e15439"
    ),
    False: bytes.fromhex(
        "ff818376274a322527111812090f07070600030298b45a6a5526412520210d130f080b0605050003af87914553452334201c1b07100b"
        "070804040300e78d788033463b2028171513020e08060702030281af775c5c223f2a1c22111110050a0704050102c76f91534b491330"
        "22161e0e0f0d040805030401d0985b814342400f261c1215090c0904070303035ba3834d6434392e112114101107090703050202de27"
        "8b62444d252b24101c100e0e040706030401b8a43b7e4b3e411f241f0f150d0a0a02060402038f97893e5d402f331420170e11090808"
        "00050302f5748571364b2e26260f19110b0f070706010302a1b04e70522d4224212007130f090b05ffc4558b"
    ),
}
"""The codes of numbers(260) with the signed map, and of their magnitudes with the other: both libraries' for the first
256, bitsandbytes' (its implementation in PyTorch) for the rest."""


def numbers(n):
    """Numbers of either sign over six decades, by exact arithmetic."""
    k = np.arange(n, dtype=np.int64)
    return ((k * 2654435761 % 2**32 / 2**32 - 0.5) * 2.0 ** -(k % 20)).astype(np.float32)


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


def ordinary(shape=(40, 130), seed=0):
    rng = np.random.default_rng(seed)
    m = (rng.standard_normal(shape) * np.exp(rng.normal(0, 3, shape))).astype(np.float32)
    return {"exp_avg": m, "exp_avg_sq": m * m}


def entry_of_bitsandbytes(shape=(2, 130), signed=True):
    """Every code, in two blocks, the second shorter."""
    n = int(np.prod(shape))
    return {
        "step": 3,
        "state1": (np.arange(n) % 256).astype(np.uint8).reshape(shape),
        "absmax1": np.array([0.3, 7e-3], np.float32),
        "qmap1": dynamic_map(signed).copy(),
    }


def tensor_of_torchao(size=512, **changed):
    parts = encode_torchao(np.resize(numbers(256), size), signed=True)
    return SimpleNamespace(**{**parts, "signed": True, "block_size": 256, **changed})


# --- The libraries' values


@pytest.mark.parametrize(("signed", "want"), [(True, "e732639a65f497b4"), (False, "305f002cc11278fb")])
def test_the_map_has_the_libraries_bits(signed, want):
    qmap = dynamic_map(signed)
    assert digest(qmap) == want
    assert qmap.dtype == np.float32 and (np.diff(qmap) > 0).all() and qmap[-1] == 1 and (qmap == 0).sum() == 1
    assert qmap[0] == (np.float32(-0.992968738079071) if signed else 0)
    assert not qmap.flags.writeable


@pytest.mark.parametrize(("signed", "want", "some"), [
    (True, "1d52c936de94aa08", {0: -0.29789063334465027, 100: -0.002240624977275729, 200: 0.07007812708616257,
                                255: 0.30000001192092896, 256: -0.006950781214982271, 259: -0.006655468605458736}),
    (False, "0b62ec88815a3133", {0: 0.0, 1: 9.750001339625669e-08, 200: 0.18503905832767487, 254: 0.2989453375339508,
                                 255: 0.30000001192092896, 259: 1.487499901031697e-08}),
])  # fmt: skip
def test_bitsandbytes_codes_decode_to_the_librarys_bits(signed, want, some):
    out = decode_bitsandbytes(entry_of_bitsandbytes((260,), signed), ["exp_avg"])
    assert list(out) == ["exp_avg"] and out["exp_avg"].dtype == np.float32
    assert {i: float(out["exp_avg"][i]) for i in some} == some
    assert digest(out["exp_avg"]) == want
    square = decode_bitsandbytes(entry_of_bitsandbytes((2, 130), signed), ["exp_avg"])["exp_avg"]
    assert square.shape == (2, 130) and digest(square) == want


@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_codes_are_the_librarys(signed):
    x = numbers(260) if signed else np.abs(numbers(260))
    codes, absmax = bitsandbytes_codes(x, dynamic_map(signed))
    assert codes.tobytes() == CODES[signed]
    assert absmax.tolist() == [0.5, 4.322805580159184e-06]


@pytest.mark.parametrize(("signed", "want"), [(True, "c0612a896d33ebbf"), (False, "a19e711fffc8cd26")])
def test_torchaos_codes_are_the_librarys(signed, want):
    x = numbers(512).reshape(2, 256)
    parts = encode_torchao(x if signed else np.abs(x), signed)
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == {
        "codes": (np.uint8, (2, 256)), "scale": (np.float32, (2,)), "qmap": (np.float32, (256,)),
    }  # fmt: skip
    assert parts["codes"][0].tobytes() == CODES[signed][:256]
    assert parts["scale"].tolist() == [0.5, 0.48300662636756897]
    out = decode_torchao(SimpleNamespace(**parts))
    assert out.shape == (2, 256) and out.dtype == np.float32 and digest(out) == want


class Float8:
    """A float8 tensor, as far as it is looked at; its float32 copy has another order of memory."""

    dtype = "torch.float8_e4m3fn"
    shape = (256, 2)

    def float(self):
        first = np.array([-448.0, 52.0, -60.0, 40.0, -1.5, -11.0], np.float32)
        array = np.asfortranarray(np.resize(first, 512).reshape(self.shape))
        return SimpleNamespace(numpy=lambda: array)


def test_torchaos_float8_decodes_to_the_librarys_bits():
    scale = np.array([0.0011160714784637094, 0.0010781397577375174], np.float32)
    out = decode_torchao(SimpleNamespace(codes=Float8(), scale=scale, block_size=256))
    assert out.shape == (256, 2) and out.flags.c_contiguous and out.dtype == np.float32
    assert out.ravel()[:6].tolist() == [
        -0.5, 0.0580357164144516, -0.066964291036129, 0.0446428582072258, -0.001674107275903225, -0.012276786379516125,
    ]  # fmt: skip
    assert out.ravel()[256] == np.float32(-1.5) * scale[1]  # 256 = 6 * 42 + 4


def test_halfway_bitsandbytes_takes_the_lower_code_and_torchao_the_upper():
    x = np.zeros(256, np.float32)
    x[:2] = 1, dynamic_map(False)[1] / 2
    assert bitsandbytes_codes(x, dynamic_map(False))[0][:3].tolist() == [255, 0, 0]
    assert encode_torchao(x, signed=False)["codes"][:3].tolist() == [255, 1, 0]


def test_bitsandbytes_quotient_is_not_rounded_to_float32():
    """Rounded, these quotients are halfway, and would get the codes below."""
    x = np.zeros(256, np.float32)
    x[:4] = 3, 0.00016500000492669642, 0.024937501177191734, 0.19031250476837158
    assert bitsandbytes_codes(x, dynamic_map(True))[0][:4].tolist() == [255, 133, 156, 178]


# --- Round trips


@pytest.mark.parametrize("shape", [(4096,), (40, 130), (5, 7, 331), (300_000,)])
def test_bitsandbytes_round_trip_takes_the_nearest_number(shape):
    arrays = ordinary(shape)
    entry = encode_bitsandbytes(arrays, ADAM)
    out = decode_bitsandbytes(entry, ADAM)
    blocks = -(-out["exp_avg"].size // 256)
    assert set(entry) == {"state1", "absmax1", "qmap1", "state2", "absmax2", "qmap2"}
    for k, (name, x) in enumerate(arrays.items(), 1):
        codes, absmax, qmap = (entry[f"{part}{k}"] for part in ("state", "absmax", "qmap"))
        assert (codes.shape, codes.dtype) == (shape, np.uint8) and (absmax.shape, absmax.dtype) == (
            (blocks,),
            np.float32,
        )
        assert (bits(qmap) == bits(dynamic_map(k == 1))).all()
        quotient = x.ravel() / np.repeat(absmax.astype(np.float64), 256)[: x.size]
        each = np.abs(quotient[:5000, None] - qmap.astype(np.float64))
        assert (each[np.arange(len(each)), codes.ravel()[:5000]] == each.min(1)).all()
        assert out[name].shape == shape and out[name].dtype == np.float32 and out[name].flags.c_contiguous
        # Half of the widest gap of the map, on the whole range of the block.
        error = np.abs(out[name] - x).ravel() / np.repeat(absmax, 256)[: x.size]
        assert error.max() <= (0.0071 if k == 1 else 0.0036)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [256, 4096, 300_032])
def test_torchaos_round_trip_takes_the_nearest_number(signed, size):
    x = ordinary((size // 128, 128))["exp_avg" if signed else "exp_avg_sq"]
    parts = encode_torchao(x, signed)
    out = decode_torchao(SimpleNamespace(**parts))
    error = np.abs(out - x).reshape(-1, 256) / parts["scale"][:, None]
    assert error.max() <= (0.0071 if signed else 0.0036)
    assert out.shape == x.shape and len(parts["scale"]) == size // 256


def test_small_state_of_bitsandbytes_stays_as_it_is():
    for shape in [(SMALLEST - 1,), (3, 4), (), (0,)]:
        arrays = ordinary(shape) if shape else {name: np.array(0.5, np.float32) for name in ADAM}
        entry = encode_bitsandbytes(arrays, ADAM)
        assert list(entry) == ["state1", "state2"]
        out = decode_bitsandbytes({"step": 1, **entry}, ADAM)
        for name, x in arrays.items():
            assert out[name].shape == x.shape and (bits(out[name]) == bits(x)).all()
            assert not np.shares_memory(entry["state1"], x)
    assert set(encode_bitsandbytes(ordinary((SMALLEST,)), ADAM)) > {"absmax1", "absmax2"}


def test_both_layouts_of_bitsandbytes_are_read():
    entry = encode_bitsandbytes(ordinary(), ADAM)
    flat = decode_bitsandbytes({"step": 7, "unorm_vec": np.zeros(1, np.float32), **entry}, ADAM)
    wrapped = decode_bitsandbytes({"step": 7, WRAPPED: entry}, ADAM)
    for name in ADAM:
        assert (bits(flat[name]) == bits(wrapped[name])).all()


def test_blocks_of_zeros():
    zero = np.zeros(4096, np.float32)
    entry = encode_bitsandbytes({"exp_avg": zero, "exp_avg_sq": zero}, ADAM)
    assert not entry["state1"].any() and not entry["state2"].any() and not entry["absmax1"].any()
    assert all((out == 0).all() for out in decode_bitsandbytes(entry, ADAM).values())
    for signed in (True, False):
        parts = encode_torchao(zero, signed)
        assert (parts["scale"] == np.float32(1e-12)).all()
        assert (bits(decode_torchao(SimpleNamespace(**parts))) == 0).all()


def test_numpys_floating_point_errors_are_not_raised():
    x = np.zeros(4096, np.float32)
    x[:512] = np.resize(np.array([1e-45, 1e-30, 3e38, -1e-20], np.float32), 512)
    x[512:514] = 1e-45, 1e-44
    with np.errstate(all="raise"):
        decode_bitsandbytes(encode_bitsandbytes({"m": x}, ["m"]), ["m"])
        decode_torchao(SimpleNamespace(**encode_torchao(x, True)))
        with pytest.raises(StateDictError, match="too large for float32"):
            encode_torchao(np.full(256, 1e300), True)


def test_a_zero_beside_large_numbers_stays_zero():
    x = np.zeros(4096, np.float32)
    x[::256] = 1e30
    for signed in (True, False):
        codes, absmax = bitsandbytes_codes(x, dynamic_map(signed))
        assert (dynamic_map(signed)[codes][x == 0] == 0).all() and (absmax == np.float32(1e30)).all()


def test_subnormal_and_largest_numbers_are_encoded():
    x = np.resize(np.array([1e-45, 3e-42, 0, -1e-44], np.float32), 4096)
    out = decode_bitsandbytes(encode_bitsandbytes({"m": x}, ["m"]), ["m"])["m"]
    assert np.abs(out - x).max() <= np.float32(3e-42) * 0.0072
    big = np.resize(np.array([np.finfo(np.float32).max, 1.0], np.float32), 4096)
    assert decode_bitsandbytes(encode_bitsandbytes({"m": big}, ["m"]), ["m"])["m"][0] == big[0]
    assert decode_torchao(SimpleNamespace(**encode_torchao(big, True)))[0] == big[0]


def test_order_of_memory_does_not_matter_to_encoding():
    x = np.asfortranarray(ordinary((64, 128))["exp_avg"])
    c = np.ascontiguousarray(x)
    for a, b in zip(
        (*bitsandbytes_codes(x, dynamic_map(True)), *encode_torchao(x, True).values()),
        (*bitsandbytes_codes(c, dynamic_map(True)), *encode_torchao(c, True).values()),
        strict=True,
    ):
        assert a.flags.c_contiguous and (a == b).all()
    parts = encode_torchao(c, True)
    fortran = SimpleNamespace(**{**parts, "codes": np.asfortranarray(parts["codes"])})
    assert (decode_torchao(fortran) == decode_torchao(SimpleNamespace(**parts))).all()


def test_other_floats_are_rounded_to_float32():
    x = ordinary((4096,))["exp_avg"]
    want = encode_bitsandbytes({"m": x}, ["m"])
    got = encode_bitsandbytes({"m": x.astype(np.float64) * (1 + 1e-12)}, ["m"])
    assert all((got[name] == want[name]).all() and got[name].dtype == want[name].dtype for name in want)
    assert encode_bitsandbytes({"m": np.ones(3)}, ["m"])["state1"].dtype == np.float32


def test_nothing_that_was_given_is_changed_or_shared():
    arrays = ordinary()
    before = {name: x.copy() for name, x in arrays.items()}
    entry = encode_bitsandbytes(arrays, ADAM)
    kept = {name: x.copy() for name, x in entry.items()}
    for x in entry.values():
        assert x.flags.writeable and not np.shares_memory(x, dynamic_map(True))
        x.flags.writeable = False
    out = decode_bitsandbytes(entry, ADAM)
    for name, x in out.items():
        assert (arrays[name] == before[name]).all() and x.flags.writeable
    assert all((entry[name] == kept[name]).all() for name in kept)
    assert encode_torchao(arrays["exp_avg"].ravel()[:512], True)["qmap"].flags.writeable


class Tensor:
    """As much of a tensor as is used."""

    def __init__(self, array):
        self.array, self.dtype = array, f"torch.{array.dtype}"

    def numpy(self):
        return self.array


def test_tensors_are_read_by_their_numpy():
    entry = entry_of_bitsandbytes()
    tensors = {name: Tensor(part) if isinstance(part, np.ndarray) else part for name, part in entry.items()}
    assert (decode_bitsandbytes(tensors, ["m"])["m"] == decode_bitsandbytes(entry, ["m"])["m"]).all()
    value = tensor_of_torchao()
    tensor = SimpleNamespace(codes=Tensor(value.codes), scale=Tensor(value.scale), qmap=Tensor(value.qmap))
    assert (decode_torchao(tensor) == decode_torchao(value)).all()


def test_the_module_does_not_import_pytorch():
    code = "import fastopt._quantized, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_slot_names_are_those_of_fastopts_classes():
    for name, slots in BITSANDBYTES_SLOTS.items():
        declared = [slot.name for slot in getattr(fastopt, name).slots]
        assert set(slots) <= set(declared)


def test_torchao_has_codes_for_whole_blocks_of_large_state():
    assert [size for size in (0, 256, 4095, 4096, 4097, 4352, 10_000) if torchao_has_codes(size)] == [4096, 4352]


# --- Whose state it is


def test_kind_of_state():
    entry = encode_bitsandbytes(ordinary(), ADAM)
    small = encode_bitsandbytes(ordinary((3,)), ADAM)
    plain = {"step": np.float32(1), "exp_avg": np.zeros(3), "exp_avg_sq": np.zeros(3)}
    kinds = {
        "bitsandbytes": [
            {0: {"step": 1, **entry}},
            {0: {"step": 1, WRAPPED: entry}},
            {0: {}, 1: small},
            {0: 3, 1: small},
        ],
        "torchao": [{0: plain, 1: {**plain, "exp_avg": tensor_of_torchao()}}],
        None: [{}, {0: plain, 1: plain}, {0: {}}, {0: None}, [], None, {0: [1]}],
    }
    for kind, states in kinds.items():
        for state in states:
            assert kind_of_state({"state": state, "param_groups": []}) == kind
    for none in ({}, [], None, 3, {"state": 5}, {"param_groups": []}):
        assert kind_of_state(none) is None


def test_kind_of_state_looks_once_at_each_type():
    looked = []

    class Value:
        def __getattr__(self, name):
            looked.append(name)
            raise AttributeError(name)

    state = {i: {"exp_avg": Value(), "exp_avg_sq": Value()} for i in range(100)}
    assert kind_of_state({"state": state}) is None
    assert looked == ["codes"]


# --- What is refused


def changed(entry, **parts):
    return {name: value for name, value in {**entry, **parts}.items() if value is not None}


ENTRY = entry_of_bitsandbytes()
TWO = encode_bitsandbytes(ordinary(), ADAM)
FLOAT = encode_bitsandbytes(ordinary((3, 4)), ADAM)
MAP = dynamic_map(True)
BAD_ENTRIES = [
    (changed(ENTRY, state1=None), "state1 is missing; an array of uint8 or float32"),
    ({"step": 3}, "state1 is missing"),
    (changed(ENTRY, absmax1=None), "absmax1 is missing; an array of float32"),
    (changed(ENTRY, qmap1=None), "qmap1 is missing; an array of float32"),
    (changed(ENTRY, state1=ENTRY["state1"].astype(np.int8)), "state1 has dtype int8; uint8 or float32"),
    (changed(ENTRY, state1=np.zeros(4, np.float64)), "state1 has dtype float64; uint8 or float32"),
    (changed(ENTRY, state1=np.zeros(4, np.float32)), "state1 has dtype float32 beside absmax1; codes in uint8"),
    (changed(ENTRY, state1=np.asfortranarray(ENTRY["state1"])), "state1 is not in C order; a contiguous array"),
    (changed(ENTRY, state1=[1, 2]), "state1 is of type list; an array of uint8 or float32"),
    (changed(ENTRY, absmax1=np.ones(2, np.float64)), "absmax1 has dtype float64; float32"),
    (
        changed(ENTRY, absmax1=np.ones(1, np.float32)),
        r"absmax1 has shape \(1,\); 260 codes in blocks of 256 need \(2,\)",
    ),
    (changed(ENTRY, absmax1=np.ones(3, np.float32)), r"absmax1 has shape \(3,\).* blocks of another size"),
    (changed(ENTRY, absmax1=np.ones((2, 1), np.float32)), r"absmax1 has shape \(2, 1\)"),
    (changed(ENTRY, absmax1=0.5), "absmax1 is of type float"),
    (changed(ENTRY, qmap1=MAP[:16].copy()), r"qmap1 has shape \(16,\); \(256,\) is needed"),
    (changed(ENTRY, qmap1=MAP.astype(np.float64)), "qmap1 has dtype float64"),
    (changed(ENTRY, qmap1=np.zeros((256, 1), np.float32)), r"qmap1 has shape \(256, 1\)"),
    (changed(ENTRY, qmap1=MAP.astype(">f4")), "qmap1 has dtype >f4"),
    (changed(ENTRY, state1=SimpleNamespace(dtype="torch.uint8")), "state1 cannot be read as an array"),
    (changed(ENTRY, state2=ENTRY["state1"]), "has state1 and state2; the optimizer has one state array, 'm'"),
    ({WRAPPED: 3}, f"{WRAPPED} is of type int"),
    (3, "is of type int; a dict with state1"),
]


@pytest.mark.parametrize(("entry", "message"), BAD_ENTRIES, ids=lambda x: x[:40] if isinstance(x, str) else "")
def test_bad_entries_of_bitsandbytes_are_refused(entry, message):
    with pytest.raises(StateDictError, match=message) as raised:
        decode_bitsandbytes(entry, ["m"], label="the state of w")
    assert str(raised.value).startswith("the state of w")


def test_blocks_of_2048_are_refused():
    """Those of bitsandbytes before 0.44."""
    entry = changed(ENTRY, state1=np.zeros(8192, np.uint8), absmax1=np.ones(4, np.float32))
    with pytest.raises(StateDictError, match=r"absmax1 has shape \(4,\); 8192 codes in blocks of 256 need \(32,\)"):
        decode_bitsandbytes(entry, ["m"])


@pytest.mark.parametrize(("entry", "message"), [
    (changed(TWO, state2=None), "state2 is missing"),
    (changed(TWO, absmax2=None), "absmax2 is missing"),
    (changed(TWO, qmap2=MAP[:255].copy()), r"qmap2 has shape \(255,\)"),
    (changed(TWO, **{f"{name}2": TWO[f"{name}1"][:20] for name in ("state", "absmax")}), r"absmax2 has shape \(20,\)"),
    (changed(FLOAT, state2=np.zeros((4, 3), np.float32)), r"state1 has shape \(3, 4\) and state2 \(4, 3\)"),
])  # fmt: skip
def test_the_second_state_is_checked_too_before_the_first_is_decoded(entry, message, monkeypatch):
    monkeypatch.setattr("fastopt._quantized.decoded", lambda *_: pytest.fail("decoded before all was checked"))
    with pytest.raises(StateDictError, match=message):
        decode_bitsandbytes(entry, ADAM)


@pytest.mark.parametrize("slots", [(), ("a", "b", "c")])
def test_one_or_two_slots_are_needed(slots):
    for call in (decode_bitsandbytes, encode_bitsandbytes):
        with pytest.raises(StateDictError, match="one or two state arrays"):
            call({}, slots)


GOOD = tensor_of_torchao()
BAD_TENSORS = [
    ({"codes": None}, "codes is missing; an array of uint8"),
    ({"scale": None}, "scale is missing; an array of float32"),
    ({"qmap": None}, "qmap is missing; codes in uint8 need one"),
    ({"qmap": None, "codes": np.zeros(512, np.int8)}, "codes has dtype int8; float8_e4m3fn or uint8"),
    ({"codes": np.zeros(512, np.int8)}, "codes has dtype int8; uint8"),
    ({"codes": Float8()}, "codes has dtype float8_e4m3fn; uint8"),
    ({"scale": GOOD.scale.astype(np.float64)}, "scale has dtype float64; float32"),
    ({"scale": GOOD.scale[:1]}, r"scale has shape \(1,\); 512 codes in blocks of 256 need \(2,\)"),
    ({"scale": GOOD.scale.reshape(1, 2)}, r"scale has shape \(1, 2\)"),
    ({"qmap": MAP[:16]}, r"qmap has shape \(16,\); \(256,\) is needed, state of 8 bits"),
    ({"qmap": MAP.astype(np.float64)}, "qmap has dtype float64"),
    ({"block_size": 128}, "has blocks of 128 elements; blocks of 256"),
    ({"codes": GOOD.codes[:-1]}, "codes has 511 elements; a multiple of 256"),
]


@pytest.mark.parametrize(("parts", "message"), BAD_TENSORS, ids=[message[:40] for _, message in BAD_TENSORS])
def test_bad_tensors_of_torchao_are_refused(parts, message):
    with pytest.raises(StateDictError, match=message) as raised:
        decode_torchao(tensor_of_torchao(**parts), label="exp_avg of w")
    assert str(raised.value).startswith("exp_avg of w")


def with_one(x, shape=4096):
    out = np.ones(shape, np.float64)
    out[5] = x
    return out


@pytest.mark.parametrize(("array", "message"), [
    (with_one(np.nan), "holds NaN, infinity"), (with_one(-np.inf), "holds NaN, infinity"),
    (with_one(1e39), "too large for float32"), (with_one(-1e-3), "holds negative numbers"),
    (np.ones(4096, np.int64), "has dtype int64"), ([1.0] * 4096, "is of type list"),
])  # fmt: skip
def test_what_has_no_codes_is_not_encoded(array, message):
    with pytest.raises(StateDictError, match=message):
        encode_torchao(array, signed=False)
    with pytest.raises(StateDictError, match=message):
        encode_bitsandbytes({"exp_avg": np.ones(4096, np.float32), "exp_avg_sq": array}, ADAM)


def test_negative_zero_is_not_negative():
    assert encode_torchao(with_one(-0.0), signed=False)["codes"][5] == 0


def test_arrays_that_do_not_fit_are_not_encoded():
    with pytest.raises(StateDictError, match="no array 'exp_avg_sq'; bitsandbytes' state2 is made from it"):
        encode_bitsandbytes({"exp_avg": np.ones(3)}, ADAM)
    with pytest.raises(StateDictError, match=r"'exp_avg' has shape \(3,\) and 'exp_avg_sq' \(4,\)"):
        encode_bitsandbytes({"exp_avg": np.ones(3), "exp_avg_sq": np.ones(4)}, ADAM)
    for size in (0, 255, 4100):
        with pytest.raises(StateDictError, match=f"has {size} elements; torchao's codes need a multiple of 256"):
            encode_torchao(np.ones(size, np.float32), signed=True)
