"""Storage formats over all 2**32 float32: the bits of the twin, at every level; what is exact by other ways, too."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt import engine
from fastopt.reference import FORMATS

CHUNK = 2**14  # so much stays in cache
KEY = 0x12345678
TILE = 256


def chunk(name: str, k: int) -> np.ndarray:
    """All float32 are in these, each once. A block of an 8-bit format spans as many powers of two as its codes do.

    So its numbers meet every distance from the largest of their block. Others are taken in order.
    """
    width = {"e4m3": 2**27, "ue5m3": 2**28}.get(name)
    if width is None:
        return np.arange(k * CHUNK, (k + 1) * CHUNK, dtype=np.uint64).astype(np.uint32)
    apart, rows = width // TILE, CHUNK // TILE
    window, first = divmod(k, apart // rows)
    begins = np.arange(first * rows, (first + 1) * rows, dtype=np.uint32)
    return np.add.outer(begins, np.arange(0, width, apart, np.uint32)).ravel() + np.uint32(window * width)


def nothing(values) -> bool:
    return not np.asarray(values).any()


@pytest.mark.parametrize("name", FORMATS)
def test_bits_of_every_float32(name, nasties, amount, tally):
    seen, loads = 0, name in ("split", "e4m3", "ue5m3")  # of the others, test_formats.py loads all there are
    for k in range(0, 2**32 // CHUNK, amount(509, 1)):
        u = chunk(name, k)
        x, key = u.view(np.float32), (KEY + k * 0x9E377) % 2**32
        a, b = FORMATS[name].store(x, key)
        loaded = FORMATS[name].load(a, b).view(np.uint32) if loads else None
        for level in engine.available_levels():
            with nasties.level(level):
                got = engine.store_alone(name, x, key)
                assert nothing(got[0] != a) and nothing(got[1] != b), (level, hex(u[0]))
                assert not loads or nothing(engine.load_alone(name, a, b).view(np.uint32) != loaded), (level, hex(u[0]))
        if name == "split":
            assert nothing((loaded != u) & ~np.isnan(x)) and (np.isnan(loaded.view(np.float32)) == np.isnan(x)).all()
        if name == "float16":
            with np.errstate(all="ignore"):
                want = x.astype(np.float16)
            assert nothing((a != want.view(np.uint16)) & ~(np.isnan(want) & np.isnan(a.view(np.float16))))
        if name in ("e4m3", "ue5m3"):
            assert nothing((loaded << 1 == 0) & (u << 1 != 0)) or name == "e4m3"
            assert nothing(np.isfinite(loaded.view(np.float32)) != np.isfinite(x))
        seen += u.size
    assert seen == 2**32 or amount(True, False)
    tally(f"float32 in {name}, at every level", seen)


def test_ue5m3_is_unbiased(amount, tally):
    """Of all 2**20 random numbers that there are, as many round up as the lower bits say: at every element."""
    rng = np.random.default_rng(1)
    x = (0x40000000 + rng.integers(0, 2**26, 24)).astype(np.uint32).view(np.float32)
    x[0] = 2.0**16  # the largest
    (_, (base,)), cut = engine.store_alone("ue5m3", x, 0), x.view(np.uint32) & 0xFFFFF
    step = amount(2**4, 1)  # of the random numbers: so many in a row round alike, but for one
    up = sum((engine.store_alone("ue5m3", x, key)[0].astype(np.int64) + base - (x.view(np.uint32) >> 20))
             for key in range(0, 2**32, step * 2**12))  # fmt: skip
    assert (abs(up * step - cut.astype(np.int64)) < step).all()
    tally("elements rounded at random, counted", 2**20 // step * x.size)
