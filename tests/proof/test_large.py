"""Sizes and counts at which an integer or a float of too few bits would show."""

from __future__ import annotations

import copy
import pickle
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ALL, ALL_IDS, build, frozen_optimizer, same_bits, three

import fastopt
from fastopt import engine, reference
from fastopt.declare import counts_in_state
from fastopt.errors import NonFiniteError, StateDictError
from fastopt.optimizer import Optimizer
from fastopt.state import LARGEST

BLOCK = 64  # bytes that are never cut
LIMIT = 2**63 - 1  # bytes of all arrays together

# --- The partition of a step


def up_to(limit: int) -> st.SearchStrategy[int]:
    """Whole numbers of any length in bits alike; `st.integers` would mostly give small ones."""
    lengths = st.integers(0, limit.bit_length())
    return lengths.flatmap(lambda bits: st.integers((1 << bits) >> 1, min(max(0, (1 << bits) - 1), limit)))


def test_shares_are_even_and_whole_up_to_2_to_the_63(amount, tally):
    @settings(max_examples=amount(50, 5_000), derandomize=True, deadline=None)
    @given(blocks=up_to(LIMIT), n=st.integers(1, 256))
    def check(blocks, n):
        assert engine.shares(blocks, n) == [blocks * k // n for k in range(n + 1)]
        tally("partitions of up to 2**63 blocks", 1)

    check()


def block_count(n: int, width: int) -> int:
    return -(-n * width // BLOCK)


@st.composite
def partitions(draw):
    """Arrays as (elements, bytes of one), and where the walk over them is cut: at shares and wherever else."""
    arrays, room = [], LIMIT
    for _ in range(draw(st.integers(1, 12))):
        width = draw(st.sampled_from([4, 8]))
        most = max(0, (room - BLOCK) // width)
        n = draw(up_to(most) | st.integers(max(0, most - 100), most))
        arrays.append((n, width))
        room -= block_count(n, width) * BLOCK
    blocks = sum(block_count(*array) for array in arrays)
    cuts = set(engine.shares(blocks, draw(st.integers(1, 256))))
    cuts.update(draw(st.lists(up_to(blocks), max_size=20)))
    edge = 0
    for array in arrays:  # beside the ends of arrays
        edge += block_count(*array)
        cuts.update(x for x in (edge - 1, edge, edge + 1) if 0 <= x <= blocks)
    return arrays, sorted(cuts)


def test_every_element_is_stepped_once_whatever_the_cuts_up_to_2_to_the_63_bytes(amount, tally):
    @settings(max_examples=amount(50, 5_000), derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(partition=partitions())
    def check(partition):
        arrays, cuts = partition
        done = [0] * len(arrays)
        for begin, end in pairwise(cuts):
            for i, first, n in engine.cut(arrays, begin, end):
                size, width = arrays[i]
                assert n > 0 and first == done[i], (i, first, n)
                done[i] += n
                assert done[i] * width % BLOCK == 0 or done[i] == size, "cut within a block"
        assert done == [n for n, _ in arrays]
        tally("walks over arrays of up to 2**63 bytes", 1)

    check()


# --- One very large array

ELEMENTS = 2_200_000_000  # of 4 bytes: beyond 2**31 elements, and 2**33 bytes
STRIDE = 1_048_583  # a prime: no two chunks lie alike in pages or blocks
NEEDED = 19 * 2**30


def available_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


def test_an_array_of_more_than_2_to_the_31_elements(amount, tally):
    if not amount(False, True):
        pytest.skip("takes 17.6 GB: with --long")
    if available_memory() < NEEDED:
        pytest.skip(f"{available_memory() / 2**30:.1f} GiB are available (0: the system does not tell); 19 are needed")
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    p_base, g_base = rng.standard_normal((2, STRIDE)).astype(np.float32)
    lr = 0.3

    def chunk(k: int) -> tuple[slice, np.ndarray, np.ndarray]:
        """Where chunk k lies, and what parameter and gradient hold there: in every chunk something else."""
        n = min(STRIDE, ELEMENTS - k * STRIDE)
        return slice(k * STRIDE, k * STRIDE + n), p_base[:n] + np.float32(k), g_base[:n] - np.float32(k)

    def differing(stepped: bool) -> list[int]:
        """The chunks in which the parameter is not as it was, or not as the reference steps it."""
        wrong = []
        for k in range(chunks):
            where, want, grad = chunk(k)
            if stepped:
                want, _ = reference.sgd(want, grad, [], reference.rounded([1.0, lr], p.dtype))
            if not (p[where].view(np.uint32) == want.view(np.uint32)).all():
                wrong.append(k)
        return wrong

    chunks = -(-ELEMENTS // STRIDE)
    p, g = np.empty(ELEMENTS, np.float32), np.empty(ELEMENTS, np.float32)
    for k in range(chunks):
        where, *values = chunk(k)
        p[where], g[where] = values
    opt = fastopt.SGD([p], lr=lr, n_threads=2, nonfinite="raise")
    last = g[-1]
    g[-1] = np.nan
    with pytest.raises(NonFiniteError):
        opt.step([g])
    g[-1] = last
    assert opt.steps == 0 and differing(stepped=False) == []
    opt.step([g])
    for i in (0, 1, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, ELEMENTS - 2, ELEMENTS - 1):
        where, was, grad = chunk(i // STRIDE)
        at = i - where.start
        assert p[i] == was[at] - np.float32(lr) * grad[at], i
    assert differing(stepped=True) == []
    tally("elements of one array stepped and compared", ELEMENTS)
    tally("seconds for that", round(time.perf_counter() - start))


def test_a_norm_of_more_than_2_to_the_31_elements(tally):
    """Memory of zeros that was never written to takes no room, but where the few others are."""
    try:
        x = np.zeros(ELEMENTS, np.float32)
    except MemoryError:
        pytest.skip("the system does not lend so much memory, even if little of it is used")
    for places in ((0, 2**31), (2**31 - 1, 2**31 + 1024), (2**29 + 1, ELEMENTS - 1)):
        x[list(places)] = 3.0, -4.0
        for threads in (1, 3):
            assert (fastopt.norm(x, n_threads=threads), fastopt.norm(x, np.inf, n_threads=threads)) == (5.0, 4.0)
        x[list(places)] = 0
    tally("elements of one array summed", ELEMENTS)


# --- Very many arrays


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_hundred_thousand_arrays_in_one_step(n_threads, nasties, amount, tally):
    count, rng = amount(70_000, 100_000), np.random.default_rng(n_threads)
    dtypes = [(np.float32, np.float64)[int(k)] for k in rng.integers(0, 2, count)]
    sizes = rng.integers(0, 40, count)
    sizes[:: count // 10] = 5_000
    params = [rng.standard_normal(n).astype(d) for n, d in zip(sizes, dtypes, strict=True)]
    skipped = {int(i) for i in rng.integers(0, count, count // 100)}
    grads = [None if i in skipped else rng.standard_normal(p.size).astype(p.dtype) for i, p in enumerate(params)]
    stepped = [i for i in range(count) if i not in skipped]
    kept = {i: params[i].copy() for i in skipped}

    def joined(arrays, which=stepped):
        """The arrays of each type, end to end: the rules see elements only, so this is one step of the reference."""
        return [np.concatenate([arrays[i] for i in which if dtypes[i] is d]) for d in (np.float32, np.float64)]

    twin = reference.twin(fastopt.AdamW(joined(params), lr=0.1))
    opt = fastopt.AdamW(params, lr=0.1, n_threads=n_threads)
    with nasties.parallel_from(0):
        for _ in range(2):
            opt.step(grads)
            twin.step(joined(grads))
    assert same_bits(joined(params), twin.params)
    for name, slot in twin.state[0].items():
        got = joined([state[name] for state in opt._plan.states])
        assert same_bits(got, [slot, twin.state[1][name]]), name
    assert all((params[i] == kept[i]).all() for i in skipped)
    assert [opt._plan.count(i)[0] for i in range(count)] == [0 if i in skipped else 2 for i in range(count)]
    tally("arrays in one step", len(stepped))


# --- Very many steps

COUNTS = [2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**62]


def counted(opt: Optimizer, count: int) -> dict:
    """The state dict of an optimizer, as if it had taken so many steps."""
    saved = copy.deepcopy(opt.state_dict())
    saved["fastopt"].update(steps=count, counts=[count] * len(opt.params))
    for entry in saved["state"].values():
        if "step" in entry:
            entry["step"] = np.array(count, np.float64)
    return saved


def slow(cls: type[Optimizer], convention: str, bits: int) -> dict:
    """Options with which the scalars still change after 2**bits steps."""
    offered = {"betas": (1 - 2.0**-bits, 1 - 1.5 * 2.0**-bits), "lr_decay": 2.0**-bits, "momentum_decay": 2.0**-bits}
    return {key: value for key, value in offered.items() if key in cls.conventions[convention].defaults}


@pytest.mark.parametrize("bits", [23, 31, 50])
@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_counts_beyond_24_31_and_53_bits(cls, convention, bits, monkeypatch, tally):
    scalars = []
    rounded = reference.rounded
    monkeypatch.setattr(reference, "rounded", lambda h, dtype: (scalars.append(list(h)), rounded(h, dtype))[1])
    # Betas so near to 1 are 1 in float32.
    params, grads = [[a if bits < 24 else a.astype(np.float64) for a in three(seed)] for seed in (0, 9)]
    options = slow(cls, convention, bits)
    opt = build(cls, params, convention, **options)
    opt.step(grads)
    for count in COUNTS:
        opt.load_state_dict(counted(opt, count))
        twin = reference.twin(opt)
        assert twin.counts == [count] * 3
        for _ in range(2):
            mine, scalars[:] = [opt._plan.scalars(i) for i in range(3)], []
            opt.step(grads)
            twin.step(grads)
            assert mine == scalars, f"the scalars of step {twin.counts[0]}"
        assert same_bits(opt.params, twin.params), count
        assert same_bits([entry[name] for entry in opt._plan.states for name in entry],
                         [entry[name] for entry in twin.state for name in entry]), count  # fmt: skip
        assert [entry["step"] for entry in opt.state] == [count + 2] * 3 and opt.steps == count + 2
        saved = opt.state_dict()
        for entry in saved["state"].values():
            if counts_in_state(cls):
                assert entry["step"].dtype == (np.float32 if count + 2 <= 2**24 else np.float64)
                assert entry["step"] == np.float64(count + 2)
        again = build(cls, [p.copy("K") for p in opt.params], convention, **options)
        again.load_state_dict(saved)
        assert frozen_optimizer(again) == frozen_optimizer(opt) == frozen_optimizer(pickle.loads(pickle.dumps(opt)))
        tally("optimizers at counts from 2**24 to 2**62", 1)


@pytest.mark.parametrize("count", COUNTS)
def test_counts_come_back_from_a_file(count, tmp_path):
    pytest.importorskip("safetensors", reason="files need safetensors, the extra checkpoint")
    opt, other = fastopt.Adam(three()), fastopt.Adam(three())
    opt.step([g.copy("K") for g in three(9)])
    opt.load_state_dict(counted(opt, count))
    opt.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    assert other.steps == count and [entry["step"] for entry in other.state] == [count] * 3


def test_the_largest_count_steps_and_a_larger_one_is_refused():
    opt = fastopt.Adam(three())
    grads = [g.copy("K") for g in three(9)]
    opt.step(grads)
    opt.load_state_dict(counted(opt, LARGEST))
    opt.step(grads)
    assert opt.steps == LARGEST + 1 and opt.state[2]["step"] == LARGEST + 1
    before = frozen_optimizer(opt)
    for count in (LARGEST + 1, 2**63, 2**64, 2**200):
        with pytest.raises(StateDictError):
            opt.load_state_dict(counted(opt, count))
    assert frozen_optimizer(opt) == before
