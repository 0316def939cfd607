"""Sums over all elements have the bits of the reference, whatever the level, threads or cut; and `fastopt.norm`."""

from __future__ import annotations

import array
import itertools
import math
import sys
import threading
from functools import cache

import conftest
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import DTypeError, FastoptError, HyperparameterError, LayoutError, engine, reference

DTYPES = (np.float32, np.float64)
THREADS = (1, 2, 3, 8)
ORDERS = {2: "squares", math.inf: "maximum"}
TILE = 1024  # as in table.pxd
# Ends of lanes, of tiles and of the second level of the tree, each with its neighbours.
SHORT = (0, 1, 2, 15, 16, 17, 31, 33, 63, 65, 100, 1007, 1008, 1009)
TILES = (TILE - 1, TILE, TILE + 1, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1, 16 * TILE, 17 * TILE + 5)
SECOND_LEVEL = TILE * TILE + 1
KINDS = ("ordinary", "nasty", "finite", "huge", "tiny", "negative zeros", "one NaN", "one infinity",
         "subnormal")  # fmt: skip


@cache
def made(kind: str, n: int, dtype, seed: int = 0) -> np.ndarray:
    """`n` numbers of a kind; "huge" and "tiny" are those whose squares a float32 cannot hold."""
    rng = np.random.default_rng([seed, n, KINDS.index(kind)])
    if kind in ("ordinary", "nasty"):
        return conftest.values(kind, n, dtype, rng)
    x = rng.standard_normal(n).astype(dtype)
    if kind == "finite":  # specials but for NaN and infinities, so that there is something to round
        special = conftest.nasty(dtype)
        special = special[np.isfinite(special) & (np.abs(special) < np.sqrt(np.finfo(dtype).max))]
        return np.where(rng.random(n) < 0.3, rng.choice(special, n), x)
    if kind == "negative zeros":
        return np.full(n, -0.0, dtype)
    if kind == "subnormal":
        return (x * 1000).astype(np.int64) * np.finfo(dtype).smallest_subnormal
    if kind.startswith("one"):
        x[rng.integers(0, n, 1)[:n]] = np.nan if kind == "one NaN" else -np.inf
        return x
    return x * dtype({"huge": 1e30, "tiny": 1e-30}[kind])


# --- The bits


def test_every_sum_has_a_twin():
    assert set(engine.sums()) == set(reference.SUMS) == set(ORDERS.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ORDERS.values())
def test_bits_of_the_sums_of_tiles_are_those_of_the_twin(name, dtype, nasties, same_bits):
    """Each kernel by itself: at every level, of every length around lanes and tiles, at every offset."""
    for level, kind in itertools.product(engine.available_levels(), KINDS):
        with nasties.level(level):
            for n, offset in itertools.product((*SHORT[1:], *TILES), range(4)):
                x = made(kind, n, dtype)
                _, (placed,) = nasties.pieces(x, [n], offset)
                with np.errstate(all="ignore"):
                    want = reference.SUMS[name][0](x)
                same_bits(f"{name} {level} {kind} {n} {offset}", [engine.run_sum_alone(name, placed)], [want])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ord", ORDERS)
def test_bits_of_a_norm_are_those_of_the_reference(ord, dtype, nasties, same_bits, amount):
    """Of arrays by themselves and of all together, at every level, on every number of threads, at every offset."""
    sizes = [*SHORT, *TILES, 0, 7 * TILE + 3, *SHORT]
    for kind in KINDS:
        flat = np.concatenate([made(kind, n, dtype, seed) if n else np.zeros(0, dtype)
                               for seed, n in enumerate(sizes)])  # fmt: skip
        want = reference.norm(np.split(flat, np.cumsum(sizes)[:-1]), ord)
        each = [reference.norm([a], ord) for a in np.split(flat, np.cumsum(sizes)[:-1])]
        for k, (level, threads) in enumerate(itertools.product(engine.available_levels(), THREADS)):
            for offset in range(amount(1, 4)):
                raw, arrays = nasties.pieces(flat, sizes, (k + offset) % 4, gap=0 if k % 3 == 0 else 64)
                with nasties.level(level), nasties.parallel_from(0):
                    got = fastopt.norm(arrays, ord, n_threads=threads)
                    alone = [fastopt.norm(a, ord, n_threads=threads) for a in arrays]
                where = f"norm {ord} {kind} {level} {threads} threads"
                same_bits(where, [np.array([got])], [np.array([want])])
                same_bits(f"{where}, one by one", [np.array(alone)], [np.array(each)])
                assert nasties.outside_is_untouched(raw, arrays)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [SECOND_LEVEL - 2, SECOND_LEVEL, 3 * 1024 * 1024 + 5])
def test_bits_of_a_norm_of_more_tiles_than_a_tile_has_elements(n, dtype, nasties, same_bits):
    x = made("ordinary", n, dtype)
    for ord in ORDERS:
        want = reference.norm([x], ord)
        for level, threads in itertools.product(engine.available_levels(), (1, 2, 3)):
            with nasties.level(level), nasties.parallel_from(0):
                got = fastopt.norm(x, ord, n_threads=threads)
            same_bits(f"norm {ord} of {n}, {level}, {threads} threads", [np.array([got])], [np.array([want])])


@pytest.mark.parametrize("count", [TILE - 1, TILE, TILE + 1, 2 * TILE + 17])
def test_bits_of_a_norm_of_more_arrays_than_a_tile_has_elements(count, nasties, same_bits):
    """Of both types, some of them empty, some of several tiles, some left out."""
    rng = np.random.default_rng(count)
    sizes = rng.choice([0, 1, 3, 16, 100, 1025, 2500], count, p=[0.1, 0.2, 0.2, 0.2, 0.2, 0.05, 0.05])
    arrays = [nasties.values("ordinary", n, DTYPES[k % 2], rng) if k % 11 else None for k, n in enumerate(sizes)]
    for ord, threads in itertools.product(ORDERS, THREADS):
        with nasties.parallel_from(0):
            got = fastopt.norm(arrays, ord, n_threads=threads)
        same_bits(f"norm {ord}", [np.array([got])], [np.array([reference.norm(arrays, ord)])])


def blocks_of(a: np.ndarray) -> int:
    return -(-a.nbytes // 64)


def whole(arrays) -> list[tuple[int, int]]:
    """The blocks of arrays as one piece."""
    return [(0, sum(map(blocks_of, arrays)))]


@st.composite
def cut_arrays(draw):
    """Arrays, and pieces of their blocks in any order."""
    size = st.sampled_from([0, 1, 16, 100, 1023, 1024, 1025, 2048, 3000, 5000]) | st.integers(0, 6000)
    forms = draw(st.lists(st.tuples(size, st.sampled_from(DTYPES)), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = [rng.standard_normal(n).astype(dtype) for n, dtype in forms]
    blocks = sum(map(blocks_of, arrays))
    cuts = sorted({0, blocks, *draw(st.lists(st.integers(0, blocks), max_size=12))})
    return arrays, draw(st.permutations(list(itertools.pairwise(cuts))))


@settings(max_examples=150, deadline=None)
@given(case=cut_arrays(), level=st.sampled_from(engine.available_levels()), ord=st.sampled_from(list(ORDERS)))
def test_the_range_may_be_cut_anywhere_and_its_pieces_taken_in_any_order(case, level, ord, nasties, same_bits):
    arrays, pieces = case
    with nasties.level(level):
        got, sums = engine.sum_in_pieces(ORDERS[ord], arrays, pieces)
    same_bits("the sum", [np.array([got])], [np.array([reference.group_sum(ORDERS[ord], arrays)])])
    same_bits("the sums of arrays", [np.array(sums)], [np.array([reference.array_sum(ORDERS[ord], a) for a in arrays])])


def by_hand(terms: list[float], tile: int = TILE, width: int = 16) -> float:
    """The sum of numbers by the tree, written once more in plain Python."""
    while len(terms) > 1:
        tiles = []
        for begin in range(0, len(terms), tile):
            lanes = [0.0] * width
            for i, term in enumerate(terms[begin : begin + tile]):
                lanes[i % width] += term
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = [lanes[j] + lanes[j + half] for j in range(half)]
            tiles += lanes
        terms = tiles
    return terms[0] if terms else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_additions_is_the_one_in_the_documentation(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype(dtype) for n in (1, 0, 50, 1024, 3001)]
    sums = [by_hand([x * x for x in a.tolist()]) for a in arrays]
    total = by_hand(sums)
    assert engine.sum_in_pieces("squares", arrays, whole(arrays)) == (total, sums)
    assert fastopt.norm(arrays) == reference.norm(arrays) == math.sqrt(total)
    # In another order there are other bits: this test would notice.
    many = [[x * x for x in rng.standard_normal(5001).astype(dtype).tolist()] for _ in range(40)]
    right = [by_hand(terms) for terms in many]
    for form in ((TILE // 2, 16), (2 * TILE, 16), (TILE, 8), (TILE, 32), (10_000, 1)):
        assert [by_hand(terms, *form) for terms in many] != right


def test_norms_are_right():
    """Beside sums that round once."""
    rng = np.random.default_rng(0)
    for dtype, n in itertools.product(DTYPES, (1, 1000, 300_000)):
        x = rng.standard_normal(n).astype(dtype)
        right = math.sqrt(math.fsum((x.astype(float) ** 2).tolist()))
        assert abs(fastopt.norm(x) - right) <= 4e-16 * right
        assert fastopt.norm(x, math.inf) == abs(x).max()


@pytest.mark.parametrize(("x", "two", "largest"), [
    ([3e30, -4e30], 5e30, 4e30), ([3e-30, -4e-30], 5e-30, 4e-30), ([-0.0], 0.0, 0.0), ([], 0.0, 0.0),
    ([1.0, -np.inf], math.inf, math.inf), ([np.inf, np.nan, 1.0], math.nan, math.nan), ([-np.nan], math.nan, math.nan),
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_values_that_squares_cannot_hold(x, two, largest, dtype):
    for ord, want in ((2, two), (math.inf, largest)):
        got = fastopt.norm(np.array(x, dtype), ord)
        assert type(got) is float and got == pytest.approx(want, rel=1e-7, abs=0, nan_ok=True)
        assert math.isnan(got) or math.copysign(1, got) == 1


def test_norms_of_what_float64_cannot_hold():
    assert fastopt.norm(np.array([1e200, 1.0])) == math.inf
    assert fastopt.norm(np.array([1e-200])) == 0.0
    assert fastopt.norm(np.array([1e200, -3e200, 1e-300]), np.inf) == 3e200


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_found_wherever_it_is(dtype, nasties):
    for level, bad in itertools.product(engine.available_levels(), (np.nan, -np.nan)):
        with nasties.level(level):
            for n in (*SHORT[1:], *TILES[:4]):
                for k in {0, n // 2, n - 1}:
                    x = np.full(n, np.inf, dtype)
                    assert fastopt.norm(x) == fastopt.norm(x, np.inf) == math.inf
                    x[k] = bad
                    assert math.isnan(fastopt.norm(x)) and math.isnan(fastopt.norm(x, np.inf)), (n, k)


# --- What it takes


X = np.array([[1.0, -2.0, 2.0], [4.0, 5.0, -14.0]], np.float32)


def forms() -> dict[str, object]:
    """Ways to give these numbers."""
    read_only = X.copy()
    read_only.flags.writeable = False

    class Mine(np.ndarray):
        pass

    return {
        "an array": X, "a list": [X], "a tuple": (X[0], X[1]), "a dict": {"w": X[0], 3: X[1]},
        "an iterator": iter([X[0], X[1]]), "a generator": (row for row in X), "Fortran order": X.copy("F"),
        "float64": X.astype(float), "both types": [X[0], None, X[1].astype(float)], "None": [None, X, None],
        "empty arrays": [X, np.zeros((0, 3)), X[:0]], "numbers of NumPy": [*X[0], X[1]],
        "arrays of no dimension": [np.array(x) for x in X.ravel()], "a memoryview": memoryview(X),
        "an array.array": array.array("d", X.ravel().tolist()), "a read-only array": read_only,
        "a subclass": X.view(Mine), "a list with a subclass": [X.view(Mine)],
    }  # fmt: skip


@pytest.mark.parametrize("form", forms())
def test_arrays_may_come_in_many_forms(form):
    assert fastopt.norm(forms()[form]) == pytest.approx(math.sqrt(246), rel=1e-15)
    assert fastopt.norm(forms()[form], ord=np.inf) == 14.0


def test_a_norm_of_nothing_is_zero():
    for nothing in ([], (), {}, [None], {"w": None}, np.zeros(0), [np.zeros((0, 3), np.float32)], iter(())):
        assert fastopt.norm(nothing) == 0.0
    assert fastopt.norm([], math.inf) == 0.0


def test_none_is_left_out_and_the_order_of_a_dict_is_its_own():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n) for n in (5, 1000, 70)]
    assert fastopt.norm([None, arrays[0], None, *arrays[1:]]) == fastopt.norm(arrays)
    assert fastopt.norm({name: a for name, a in zip("cab", arrays, strict=True)}) == fastopt.norm(arrays)


def test_elements_are_taken_in_the_order_of_memory():
    x = np.random.default_rng(0).standard_normal((37, 41)).copy("F")
    assert fastopt.norm(x) == reference.norm([x]) == fastopt.norm(x.T) == fastopt.norm(x.ravel(order="F"))
    assert fastopt.norm(x) != fastopt.norm(x.copy("C"))  # for these numbers


@pytest.mark.parametrize("ord", [2, 2.0, np.int64(2), np.float32(2), np.array(2), math.inf, np.float64("inf")])
def test_orders_may_be_any_kind_of_number(ord):
    assert fastopt.norm(X, ord) == (14.0 if ord == math.inf else reference.norm([X]))


def test_tensors_are_read_through_dlpack():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X.copy())
    for form in (x, [x], {"w": x[0], "b": x[1]}, iter(x), [x.t()], [x[0], X[1]], [-x], torch.nn.Parameter(x).detach()):
        assert fastopt.norm(form) == pytest.approx(math.sqrt(246), rel=1e-15)
    complex_ = torch.complex(torch.zeros(2, 3), x)
    assert fastopt.norm([complex_.conj().imag.contiguous()], math.inf) == 14.0  # with the negative flag
    with pytest.raises(DTypeError, match=r"arrays\[1\] is a tensor that requires gradients: give its .detach\(\)"):
        fastopt.norm([x, torch.nn.Parameter(x)])
    with pytest.raises(LayoutError, match=r"arrays\['w'\] has layout torch.sparse_coo"):
        fastopt.norm({"w": x.to_sparse()})
    with pytest.raises(LayoutError, match=r"arrays\[0\] is a torch.Tensor whose memory was freed"):
        freed = torch.ones(3)
        freed.untyped_storage().resize_(0)
        fastopt.norm([freed])


def misaligned() -> np.ndarray:
    return np.zeros(17, np.uint8)[1:].view(np.float64)


@pytest.mark.parametrize(("arrays", "error", "says"), [
    (3.0, DTypeError, "arrays is a float; one array, or a list, tuple or dict of them, is needed"),
    (None, DTypeError, "arrays is a NoneType; one array"),
    ("abc", DTypeError, "arrays is a str; one array"),
    ({1.0, 2.0}, DTypeError, "arrays is a set; one array"),
    (b"abcd", DTypeError, "arrays has dtype uint8; float32 or float64"),
    ([3.0, 4.0], DTypeError, r"arrays\[0\] is a float; an array of float32 or float64 is needed"),
    ([X, [X]], DTypeError, r"arrays\[1\] is a list"),
    ({"w": {"b": X}}, DTypeError, r"arrays\['w'\] is a dict"),
    ([("w", X)], DTypeError, r"arrays\[0\] is a tuple.*dict\(pairs\)"),
    (X.astype(int), DTypeError, "arrays has dtype int64; float32 or float64"),
    ([X, X.astype(np.float16)], DTypeError, r"arrays\[1\] has dtype float16; .*: convert it to float32"),
    ([X * 1j], DTypeError, r"arrays\[0\] has dtype complex64"),
    ([X.astype(">f4")], DTypeError, r"arrays\[0\] has dtype float32, byte-swapped"),
    ([np.ma.masked_array(X)], DTypeError, r"arrays\[0\] is a masked array"),
    ({"w": X[:, ::2]}, LayoutError, r"arrays\['w'\] has shape \(2, 2\) and strides \(12, 8\); .*ascontiguousarray"),
    (X[:, 1:], LayoutError, r"arrays has shape \(2, 2\) and strides"),
    ([X, misaligned()], LayoutError, r"arrays\[1\] is misaligned"),
])  # fmt: skip
def test_what_is_no_array_to_sum_is_refused_by_name(arrays, error, says):
    for ord in (2, math.inf):
        with pytest.raises(error, match=says) as caught:
            fastopt.norm(arrays, ord)
        assert isinstance(caught.value, FastoptError)


@pytest.mark.parametrize("ord", [1, 0, -2, -math.inf, math.nan, 2.5, True, "2", "inf", "fro", None, [2], np.array([2])])
def test_other_orders_are_refused(ord):
    with pytest.raises(HyperparameterError, match=r"^ord=.* must be 2 or inf$"):
        fastopt.norm(X, ord)


@pytest.mark.parametrize("n_threads", [0, -1, 1.0, True, "2", [1]])
def test_numbers_of_threads_that_there_are_not_are_refused(n_threads):
    with pytest.raises(HyperparameterError, match="n_threads=.* must be None"):
        fastopt.norm(X, n_threads=n_threads)
    with pytest.raises(TypeError):
        fastopt.norm(X, 2, 1)


def test_errors_of_the_caller_s_own_come_through():
    class Boom(Exception):
        pass

    def arrays():
        yield X
        raise Boom

    with pytest.raises(Boom):
        fastopt.norm(arrays())


def test_an_array_that_is_resized_by_another_member_is_read_where_it_is_then():
    grown = np.ones(3)

    class Resizes:
        def __dlpack__(self, **options):
            grown.resize(400_000, refcheck=False)
            return np.zeros(1).__dlpack__()

        def __dlpack_device__(self):
            return 1, 0

    assert fastopt.norm([grown, Resizes()]) == math.sqrt(3)
    assert grown.size == 400_000


def test_arrays_are_kept_while_they_are_summed_and_let_go_of_afterwards():
    """Without the interpreter lock, another thread may drop the only other reference."""
    given = [np.ones(3_000_000) for _ in range(3)]
    stop = threading.Event()

    def drop():
        while not stop.is_set():
            given[:] = [np.ones(3_000_000) for _ in range(3)]

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for _ in range(20):
            assert fastopt.norm(given) == 3000.0
    finally:
        stop.set()
        thread.join()
    last = np.ones(3)
    before = sys.getrefcount(last)
    fastopt.norm([last])
    assert sys.getrefcount(last) == before


def test_norms_on_several_python_threads_at_once(nasties):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n) for n in (300_000, 5, 90_000)]
    want, wrong = reference.norm(arrays), []

    def work(threads):
        for _ in range(50):
            if fastopt.norm(arrays, n_threads=threads) != want:
                wrong.append(threads)

    with nasties.parallel_from(0):
        workers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong
