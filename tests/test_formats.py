"""Storage formats have the bits of their twins at every level, and keep what they promise.

The twins are `FORMATS` of fastopt/reference.py. Stored elements, what stands beside them, and what is loaded from both
are compared with `==`, NaN and its payload included. tests/proof/test_every_float32.py does it for all 2**32 numbers.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastopt import engine, reference
from fastopt.reference import FORMATS

KEY = 0xDEADBEEF
TILE = 256  # as in table.pxd
HALVES = np.arange(2**16, dtype=np.uint16)
INFINITY = 0x7F800000
FLT_MAX = np.finfo(np.float32).max
NEAREST = ("bfloat16", "float16", "split", "e4m3")
NAMES = pytest.mark.parametrize("name", FORMATS)


def of_bits(u) -> np.ndarray:
    """The float32 of these bits."""
    return np.asarray(u, np.uint32).view(np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.itemsize}")


def sweep(stride: int = 2039) -> np.ndarray:
    """Numbers all over float32; and every upper half, with the lower halves around what is rounded up."""
    low = [0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    edges = (HALVES.astype(np.uint32)[:, None] << 16) + np.array(low, np.uint32)
    return of_bits(np.concatenate([np.arange(0, 2**32, stride, np.uint64).astype(np.uint32), edges.ravel()]))


def kinds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays that are hard on blocks."""
    rng = np.random.default_rng(seed)
    ordinary = rng.standard_normal(n).astype(np.float32)
    outlier = ordinary.copy()
    outlier[rng.integers(n)] = 1e30
    special = rng.choice(of_bits([INFINITY, 0xFF800000, 0x7FC00000, 0xFF800001]), n)
    return {
        "ordinary": ordinary,
        "all over": of_bits(rng.integers(0, INFINITY, n) | rng.integers(0, 2, n) << 31),
        "zeros": np.zeros(n, np.float32),
        "negative zeros": np.full(n, -0.0, np.float32),
        "subnormal": of_bits(rng.integers(0, 0x800000, n)),
        "huge": rng.choice(np.array([FLT_MAX, -FLT_MAX, 3e38, -1e38, 1e37], np.float32), n),
        "one outlier": outlier,
        "zeros and a few": np.where(rng.random(n) < 0.9, np.float32(-0.0), ordinary),
        "mixed": np.where(rng.random(n) < 0.2, special, ordinary),
        "infinities alone": np.full(n, -np.inf, np.float32),
        "zeros and a NaN": np.where(np.arange(n) == n // 2, np.float32(np.nan), np.float32(0)),
    }


def round_trip(name: str, x: np.ndarray, key: int = KEY) -> np.ndarray:
    return engine.load_alone(name, *engine.store_alone(name, x, key))


@pytest.fixture
def agree(nasties, tally):
    """`agree(name, x, key)`: store and load at every level, and compare with the twin; returns (a, b, loaded)."""

    def check(name: str, x: np.ndarray, key: int = KEY):
        a, b = FORMATS[name].store(x, key)
        y = FORMATS[name].load(a, b)
        for level in engine.available_levels():
            with nasties.level(level):
                for what, got, want in [*zip("ab", engine.store_alone(name, x, key), (a, b), strict=True),
                                        ("load", engine.load_alone(name, a, b), y)]:  # fmt: skip
                    assert got.dtype == want.dtype and got.shape == want.shape
                    wrong = np.flatnonzero(bits(got) != bits(want))
                    assert not len(wrong), (
                        f"{name} {level}: {what} differs in {len(wrong)} of {got.size}, the first at {wrong[0]}: "
                        f"{got[wrong[0]]!r}, the reference has {want[wrong[0]]!r}"
                    )
                    tally("elements in formats, and what stands beside them, compared with the twin", got.size)
        return a, b, y

    return check


def agree_on_loads(name: str, a: np.ndarray, b: np.ndarray, nasties, tally) -> np.ndarray:
    want = FORMATS[name].load(a, b)
    for level in engine.available_levels():
        with nasties.level(level):
            got = engine.load_alone(name, a, b)
        assert not (wrong := np.flatnonzero(bits(got) != bits(want))).size, (level, wrong[:5], got[wrong[:5]])
        tally("elements in formats, and what stands beside them, compared with the twin", got.size)
    return want


# --- The bits


def test_every_format_has_a_twin():
    assert set(engine.formats()) == set(FORMATS)


@NAMES
def test_bits_of_numbers_all_over_float32(name, agree):
    x = sweep(509)
    for first in range(0, x.size, 2**18):  # so much is faster than all at once
        agree(name, x[first : first + 2**18], KEY + first)


@NAMES
def test_bits_of_every_length_at_every_offset(name, agree):
    """Of a block, of two, and of a few elements more; x, `a` and `b` begin anywhere."""
    for n in range(1, 521):
        for k, (kind, x) in enumerate(kinds(n + 16).items()):
            offset = (n + k) % 16
            if n % 11 == k or n in (1, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1):
                a, b, y = agree(name, x[offset : offset + n], n * 0x10001)
                shifted = [np.concatenate([np.zeros(offset, part.dtype), part])[offset:] for part in (a, b)]
                assert (bits(engine.load_alone(name, *shifted)) == bits(y)).all(), (name, kind, n)


@NAMES
def test_bits_of_no_element(name, agree):
    a, b, y = agree(name, np.empty(0, np.float32))
    assert a.size == b.size == y.size == 0


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_bits_of_loads_of_every_half(name, nasties, tally):
    agree_on_loads(name, HALVES, np.empty(0, np.uint16), nasties, tally)


def test_bits_of_split_loads_of_every_upper_half(nasties, tally):
    for low in (0, 1, 2, 0x1234, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        agree_on_loads("split", HALVES, np.full(2**16, low, np.uint16), nasties, tally)


@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
def test_bits_of_loads_of_every_code_with_every_base(name, nasties, tally):
    codes = np.tile(np.arange(256, dtype=np.uint8), 2**12)
    for bases in np.split(HALVES, 2**4):
        agree_on_loads(name, codes, bases, nasties, tally)


# --- What is near: against other ways to say it than the twins'


def to_nearest(x: np.ndarray, fraction: int, least: int, largest: float) -> np.ndarray:
    """Float32 rounded, in float64, to so many bits after the first, and to multiples of 2**least; beyond, infinity."""
    y = x.astype(np.float64)
    unit = np.exp2(np.maximum(np.frexp(y)[1] - 1 - fraction, least))
    y = np.rint(y / unit) * unit
    return np.where(np.abs(y) > largest, np.copysign(np.inf, y), y)


@pytest.mark.parametrize(
    ("name", "form"), [("bfloat16", (7, -133, float(of_bits(0x7F7F0000)))), ("float16", (10, -24, 65504.0))]
)
def test_nearest_is_nearest_and_of_two_the_even_one(name, form):
    x = sweep()
    x = x[np.isfinite(x)]
    assert (bits(round_trip(name, x)) == bits(to_nearest(x, *form).astype(np.float32))).all()


def test_float16_is_that_of_numpy(nasties):
    x = sweep()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        want = x.astype(np.float16)
    a, _ = engine.store_alone("float16", x)
    assert ((a == want.view(np.uint16)) | (np.isnan(want) & np.isnan(a.view(np.float16)))).all()
    loaded = engine.load_alone("float16", HALVES, np.empty(0, np.uint16))
    assert not nasties.differing(loaded, HALVES.view(np.float16).astype(np.float32)).any()


def test_split_loses_no_bit(nasties):
    x = sweep()
    a, b = engine.store_alone("split", x)
    assert not nasties.differing(engine.load_alone("split", a, b), x).any()
    other = a != engine.store_alone("bfloat16", x)[0]
    assert (np.isnan(x[other]) | (bits(x)[other] & 0x1FFFF == 0x8000)).all()  # ties, to the even one


@pytest.mark.parametrize("upper", [0x0000, 0x8000, 0x7F80, 0xFF80])
def test_split_has_a_zero_or_an_infinity_that_somebody_else_wrote(upper):
    """A lower half that was left there is of another number: it never makes a NaN of what was written."""
    x = engine.load_alone("split", np.full(2**16, upper, np.uint16), HALVES)
    low = HALVES.view(np.int16)
    stale = low < 0 if upper & 0x7FFF == 0 else low > 0
    assert not np.isnan(x).any()
    assert (bits(x)[stale] == upper << 16).all()
    assert (bits(x)[~stale] == (upper << 16) + low[~stale].astype(np.int64)).all()


@NAMES
def test_signs_of_zero(name):
    x = np.array([0.0, -0.0] * 200, np.float32)
    assert (np.signbit(round_trip(name, x)) == (np.signbit(x) & (name != "ue5m3"))).all()


@NAMES
def test_nan_and_infinities_keep_their_place_and_sign(name):
    for n in (1, 5, 255, 256, 257, 1000):
        for kind, x in kinds(n).items():
            y = round_trip(name, x)
            assert (np.isnan(y) == np.isnan(x)).all(), kind
            assert np.isinf(y)[np.isinf(x)].all(), kind
            beyond = {"float16": 65519, "bfloat16": 3.389e38, "bfloat16_stochastic": 3.389e38}.get(name, FLT_MAX)
            assert not np.isinf(y)[np.abs(x) <= beyond].any(), kind
            assert (np.signbit(y) == (np.signbit(x) & (name != "ue5m3")))[~np.isnan(x)].all(), kind


@pytest.mark.parametrize("name", NEAREST)
def test_nearest_formats_store_what_they_load_as_it_was(name):
    for n in (1, 255, 256, 300, 1000):
        for kind, x in kinds(n).items():
            a, b = engine.store_alone(name, x)
            again = engine.store_alone(name, engine.load_alone(name, a, b))
            assert (a == again[0]).all() and (b == again[1]).all(), kind


# --- Blocks of 8 bits

EIGHT = pytest.mark.parametrize(("name", "codes"), [("e4m3", 127), ("ue5m3", 255)])


def in_blocks(n: int):
    return (slice(first, first + TILE) for first in range(0, n, TILE))


@EIGHT
def test_the_largest_of_a_block_has_the_largest_code(name, codes):
    """Or the one before, if it was rounded down at random."""
    for n, (kind, x) in itertools.product((1, 100, 256, 700), kinds(700).items()):
        x = x[:n]
        a, b = engine.store_alone(name, x)
        for block, base in zip(in_blocks(n), b, strict=True):
            finite = np.isfinite(x[block])
            special = not finite.all()
            assert base >> 15 == special, kind
            c = (a[block] & codes)[finite]
            top = np.abs(x[block])[finite].max(initial=0)
            if top >= 2.0**-90:  # smaller ones have a base of 0
                assert c[np.abs(x[block])[finite] == top].min() >= codes - 2 * special - (name == "ue5m3"), kind
            assert c.max(initial=0) <= codes - 2 * special


@EIGHT
def test_errors_are_small_within_the_range_of_a_block(name, codes):
    """To the nearest of 8 numbers for each power of two, e4m3; to one of the two beside it, ue5m3.

    The range is that of 15, or 31, powers of two below the largest. Subnormal numbers are as near as the least of the
    others.
    """
    bound, powers = {"e4m3": (1 / 16, 15), "ue5m3": (1 / 8, 31)}[name]
    for n, seed in itertools.product((1, 256, 700), range(5)):
        for kind, x in kinds(n, seed).items():
            y = round_trip(name, x, seed).astype(np.float64)
            x = np.where(np.isnan(x), np.inf, np.abs(x) if name == "ue5m3" else x).astype(np.float64)
            for block in in_blocks(n):
                finite = np.isfinite(x[block])
                u, v = x[block][finite], y[block][finite]
                assert np.isfinite(v).all(), kind
                least = np.abs(u).max(initial=0) / 2**powers
                inside = np.abs(u) >= max(least, 2.0**-126)
                assert (np.abs(v - u) <= bound * np.abs(u))[inside].all(), kind
                assert (np.abs(v - u) <= max(least, 2.0**-129))[~inside].all(), kind


@EIGHT
def test_the_largest_float32_never_becomes_infinite(name, codes):
    x = np.full(300, FLT_MAX, np.float32)
    for key in range(0, 2**32, 2**27 + 1):
        y = round_trip(name, x, key)
        assert (y == of_bits(0x7F700000)).all()
        assert (round_trip(name, of_bits([0x7F77FFFF, 0x7F780000, 0x7F700001]), key) <= of_bits(0x7F700000)).all()


def test_ue5m3_is_zero_for_zero_only():
    """Else a second moment that is small beside others would divide by nearly nothing."""
    for seed in range(20):
        for kind, x in kinds(700, seed).items():
            x = x.copy()
            x[::50] = of_bits(1)
            y = round_trip("ue5m3", x, seed * 0x01234567)
            assert ((y == 0) == (x == 0)).all(), kind


# --- Random rounding


def test_fnv1a_and_splitmix_have_their_published_values():
    assert [reference.fnv1a(name) for name in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]
    assert reference.mixed(0, 0) == 0xE220A8397B1DCDAF
    assert reference.mixed(0, 0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


def test_a_stream_is_of_its_seed_array_slot_and_step():
    parts = itertools.product((0, 1, 2, 2**63), range(4), ("", "exp_avg", "exp_avg_sq"), range(1, 100))
    keys = [reference.stream_key(*each) for each in parts]
    assert len(set(keys)) == len(keys) and max(keys) < 2**32
    assert reference.stream_key(7, 3, "exp_avg", 12) == 0x9F335E0C


def test_neighbours_have_random_numbers_a_golden_section_apart():
    r = reference.lattice(KEY, 1000)
    assert r[0] == KEY and r.dtype == np.uint32
    assert (np.diff(r) == 0x9E3779B9).all()
    assert abs(0x9E3779B9 / 2**32 - (5**0.5 - 1) / 2) < 2**-32


def test_bfloat16_stochastic_is_unbiased():
    """Of all 2**16 random numbers that there are, as many round up as the lower half says: at every element."""
    rng = np.random.default_rng(1)
    x = of_bits(rng.integers(0, 0x7F7F0000, 24) | rng.integers(0, 2, 24) << 31)
    x[:3] = of_bits([0x3F800001, 0x3F80FFFF, 0x3F800000])
    up = sum((engine.store_alone("bfloat16_stochastic", x, key)[0] - (bits(x) >> 16)).astype(np.int64)
             for key in range(0, 2**32, 2**16))  # fmt: skip
    assert (up == bits(x) & 0xFFFF).all()


@pytest.mark.parametrize(("name", "shift"), [("bfloat16_stochastic", 16), ("ue5m3", 20)])
def test_random_rounding_is_spread_evenly_over_an_array(name, shift, tally):
    """What is rounded up is what the bits that are cut say, to a few elements of 65,536, whatever the key."""
    n = 2**16
    for seed, cut in enumerate([1, 0x1234, 0x5555, 0x8000, 0xFEDC, 0xFFFF]):
        fraction = cut / 2**16
        below = 0x40400000
        x = np.full(n, of_bits(below + int(fraction * 2**shift)), np.float32)
        x[::TILE] = of_bits(0x42000000)  # the largest of its block
        y = bits(round_trip(name, x, seed * 0x1ABCDEF1))
        inner = np.arange(n) % TILE != 0
        assert set(np.unique(y[inner])) <= {below, below + (1 << shift)}
        assert abs((y[inner] != below).sum() - fraction * inner.sum()) < 40
        tally("elements rounded at random, counted", n)


def test_random_numbers_go_on_from_block_to_block():
    x = np.full(3 * TILE, of_bits(0x3F808000), np.float32)
    a, _ = engine.store_alone("bfloat16_stochastic", x, KEY)
    assert (a - 0x3F80 == reference.lattice(KEY, x.size) >> 31).all()
