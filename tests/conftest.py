"""Shared by all tests: arrays that are hard on kernels, the comparison of bits, and the count of what was compared."""

from __future__ import annotations

import contextlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from support import NUMBER_NAMES

import fastopt
from fastopt import Convention, Slot, engine

COUNT: pytest.StashKey[SimpleNamespace] = pytest.StashKey()
TALLY: pytest.StashKey[Counter[str]] = pytest.StashKey()
BITS = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}
FILLER = 0x5A  # the byte around arrays: whoever writes there is found


def nasty(dtype) -> np.ndarray:
    """Every kind of number that arithmetic treats specially, once each."""
    info = np.finfo(dtype)
    eps = float(info.eps)
    positive = np.array(
        [
            0.0, np.inf,
            info.smallest_subnormal, info.smallest_subnormal * 3, info.tiny / 2, info.tiny * (1 - eps),
            info.tiny, info.tiny * (1 + eps), info.max, info.max * 0.5, info.max * (1 - eps),
            np.sqrt(info.tiny), np.sqrt(info.max), np.cbrt(info.max), 1.0, 1 + eps, 1 - eps / 2, 1 / 3, 2.0**-13,
            65521.0,
        ],
        dtype,
    )  # fmt: skip
    return np.concatenate([positive, -positive, np.array([np.nan], dtype)])


def values(kind: str, n: int, dtype, rng: np.random.Generator) -> np.ndarray:
    """`n` numbers: "ordinary" ones over a few orders of magnitude, or a mixture with those of `nasty`."""
    x = (rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 1, n)).astype(dtype)
    if kind == "nasty":
        x = np.where(rng.random(n) < 0.6, rng.choice(nasty(dtype), n), x)
    return x


def pieces(flat: np.ndarray, sizes, offset: int = 0, gap: int = 64) -> tuple[np.ndarray, list[np.ndarray]]:
    """`flat` copied into one buffer as arrays of these sizes; returns the buffer, as bytes, and the arrays.

    Each starts `offset` elements after a 64-byte boundary and is followed by at least `gap` bytes of filler; with
    `gap` 0 the arrays touch, and only the first starts there.
    """
    size = flat.itemsize
    room = [n * size if gap == 0 else -(-(n * size + gap + offset * size) // 64) * 64 for n in sizes]
    raw = np.full(sum(room) + 256 + offset * size, FILLER, np.uint8)
    start = 64 - raw.ctypes.data % 64 + offset * size
    out, at = [], 0
    for n, step in zip(sizes, room, strict=True):
        array = raw[start : start + n * size].view(flat.dtype)
        array[...] = flat[at : at + n]
        out.append(array)
        start, at = start + step, at + n
    return raw, out


def outside_is_untouched(raw: np.ndarray, arrays) -> bool:
    """Whether a buffer of `pieces` holds nothing but filler around its arrays."""
    inside = np.zeros(len(raw), bool)
    for a in arrays:
        begin = a.ctypes.data - raw.ctypes.data
        inside[begin : begin + a.nbytes] = True
    return bool((raw[~inside] == FILLER).all())


def differing(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where two arrays differ in a bit. NaN equals NaN: their payloads are outside the promise."""
    assert got.dtype == want.dtype and got.shape == want.shape
    view = BITS[got.dtype]
    same = np.ascontiguousarray(got).view(view) == np.ascontiguousarray(want).view(view)
    return ~(same | (np.isnan(got) & np.isnan(want)))


def slots(state: dict) -> dict[str, np.ndarray]:
    """The arrays of one parameter's state, without the numbers that `Optimizer.state` also shows."""
    return {name: array for name, array in state.items() if name not in NUMBER_NAMES}


@contextlib.contextmanager
def level(name: str):
    """The rules of one instruction-set level, for the optimizers made inside."""
    before = engine.info()["isa"]
    engine.use_level(name)
    try:
        yield
    finally:
        engine.use_level(before)


@contextlib.contextmanager
def parallel_from(blocks: int):
    """Another serial threshold; 0 sends arrays of two blocks and more to a team, however late its threads come."""
    before = engine.set_serial_blocks(blocks), engine.set_most_alone(0)
    try:
        yield
    finally:
        engine.set_serial_blocks(before[0])
        engine.set_most_alone(before[1])


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the amounts that docs/reliability.md reports, not a sample")


def pytest_configure(config):
    config.stash[COUNT] = SimpleNamespace(arrays=0, differing=0)
    config.stash[TALLY] = Counter()


@pytest.fixture(scope="session")
def amount(request):
    """`amount(few, many)`: how much of something a test does, in `make test` and in the long runs (--long)."""
    return lambda few, many: many if request.config.getoption("--long") else few


@pytest.fixture(scope="session")
def tally(request):
    """`tally("bad calls refused", n)`: counts what was done; the totals are shown at the end of the run."""

    def count(what: str, n: int = 1) -> None:
        request.config.stash[TALLY][what] += n

    return count


@pytest.fixture(scope="session")
def bit_matrix(request):
    """The number of arrays compared to the bit so far, and of those that differed."""
    return request.config.stash[COUNT]


@pytest.fixture(scope="session")
def same_bits(bit_matrix):
    """`same_bits(what, got, want)`: compare lists of arrays and count them; fails with the first that differs."""

    def check(what: str, got, want) -> None:
        got, want = list(got), list(want)
        assert len(got) == len(want)
        bit_matrix.arrays += len(got)
        if not got:
            return
        # One comparison for all of them; which one it was is asked only when there is something to say.
        flat = [np.concatenate([a.ravel(order="K") for a in arrays]) for arrays in (got, want)]
        if not differing(*flat).any():
            return
        wrong = [(i, np.flatnonzero(differing(a.ravel(order="K"), b.ravel(order="K"))))
                 for i, (a, b) in enumerate(zip(got, want, strict=True))]  # fmt: skip
        wrong = [(i, where) for i, where in wrong if len(where)]
        bit_matrix.differing += len(wrong)
        i, where = wrong[0]
        k = where[0]
        pytest.fail(
            f"{what}: {len(wrong)} of {len(got)} arrays differ; array {i} of {got[i].size} elements in {len(where)}, "
            f"the first at {k}: {got[i].ravel(order='K')[k]!r}, the reference has {want[i].ravel(order='K')[k]!r}"
        )

    return check


@pytest.fixture
def newcomer(monkeypatch):
    """The name of an optimizer that no table knows, in ``fastopt.OPTIMIZERS`` for one test: Lion, less what it can."""

    class Newcomer(fastopt.Optimizer):
        hyperparameters = ("lr", "betas")
        slots = (Slot("exp_avg"),)
        conventions = {"paper": Convention({"lr": 1e-3, "betas": (0.9, 0.99)})}

        def __init__(self, params, lr=None, betas=None, *, convention=None, **common):
            super().__init__(params, {"lr": lr, "betas": betas}, convention=convention, **common)

        @staticmethod
        def rule(group, convention):
            return "lion"

    monkeypatch.setitem(fastopt.OPTIMIZERS, "Newcomer", Newcomer)
    return "Newcomer"


@pytest.fixture(scope="session")
def nasties():
    """The functions of this file, for tests."""
    return SimpleNamespace(
        nasty=nasty, values=values, pieces=pieces, outside_is_untouched=outside_is_untouched, differing=differing,
        slots=slots, level=level, parallel_from=parallel_from,
    )  # fmt: skip


def pytest_sessionfinish(session):
    """What a worker of pytest-xdist has counted, sent to the process that it works for."""
    if hasattr(session.config, "workeroutput"):
        count, tallied = session.config.stash[COUNT], session.config.stash[TALLY]
        session.config.workeroutput["counted"] = (count.arrays, count.differing, dict(tallied))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node):
    """Add what a worker has counted."""
    arrays, differing, tallied = getattr(node, "workeroutput", {}).get("counted", (0, 0, {}))
    count = node.config.stash[COUNT]
    count.arrays += arrays
    count.differing += differing
    node.config.stash[TALLY].update(tallied)


def pytest_terminal_summary(terminalreporter, config):
    count = config.stash[COUNT]
    if count.arrays:
        terminalreporter.write_line(f"bit matrix: {count.arrays:,} arrays compared, {count.differing:,} differ")
    for what, n in config.stash[TALLY].items():
        terminalreporter.write_line(f"tally: {n:,} {what}")
