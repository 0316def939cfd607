"""What bench/steady.py makes of the times that it measured; the measuring itself is not tested."""

import sys

import numpy as np
import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("bench/steady.py pins and stops processes as Linux does", allow_module_level=True)

import steady
import steady_subnormals
import steady_worker


def cell(condition="quiet", threads=1, median=10.0, p90=10.0, p99=10.0, library="fastopt", size="1×10", pause=0):
    return {"condition": condition, "pause": pause, "size": size, "threads": threads, "library": library,
            "median": median, "p90": p90, "p99": p99, "max": p99, "steps": 200}  # fmt: skip


@pytest.mark.parametrize(("text", "label", "shape"), [("50x10000", "50×10,000", (50, 10_000)),
                                                      ("1×1,000,000", "1×1,000,000", (1, 1_000_000))])  # fmt: skip
def test_sizes_are_read_as_typed_and_as_printed(text, label, shape):
    assert steady.size(text) == label
    assert steady.shape(label) == shape


@pytest.mark.parametrize("text", ["", "10", "axb", "1x2x3"])
def test_a_size_that_is_none(text):
    with pytest.raises(ValueError):
        steady.size(text)


def test_summary_is_in_microseconds():
    assert steady.summary([1000 * k for k in range(101)]) == {
        "median": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0, "steps": 101}  # fmt: skip


def test_two_threads_are_compared_with_one_of_the_same_case():
    cells = [cell("busy", 1, p90=10), cell("busy", 2, p90=20), cell("busy", 1, p90=10, size="1×20"),
             cell("busy", 2, p90=21, size="1×20"), cell("busy", 2, p90=99, size="1×30")]  # fmt: skip
    lines = list(steady.verdicts(cells, markdown=False))
    assert "- fastopt: 1 of 2 cells, the worst 2.1 ×" in lines
    assert [line for line in lines if line.startswith("  - ")] == ["  - busy, pause 0 ms, 1×20, 2 threads: 2.1 ×"]


def test_only_quiet_cells_are_asked_for_their_p99():
    cells = [cell(p99=30), cell(p99=31, library="Numba"), cell("busy", p99=500)]
    lines = list(steady.verdicts(cells, markdown=False))
    assert "- fastopt: 1 of 1 cells, the worst 3.0 ×" in lines
    assert "- Numba: 0 of 1 cells, the worst 3.1 ×" in lines


def test_tables_have_a_column_for_each_library():
    cells = [cell(), cell(library="Numba", median=1234.0), cell("busy", 2)]
    lines = list(steady.tables(cells, markdown=True))
    assert [word.strip() for word in lines[1].split("|")[1:-1]] == ["size", "threads", "fastopt", "Numba", "steps"]
    assert lines[3].split("|")[4] == " 1,234 / 10.0 / 10.0 "
    assert len({len(line) for line in lines[1:4]}) == 1


def test_a_turn_has_the_steps_asked_for():
    calls = []
    stepper = steady_worker.Stepper(lambda: calls.append("step"), list, lambda: calls.append("prepare"))
    times = steady_worker.measure(stepper, lambda: calls.append("loop"), 0, steps=7, shortest=0, longest=60)
    assert len(times) == 7
    assert calls == ["loop", "prepare", "step"] * (7 + steady_worker.WARM_UP)


def test_a_turn_out_of_time_has_a_few_steps():
    times = steady_worker.measure(steady_worker.Stepper(bool, list), bool, 0, steps=10**9, shortest=0, longest=0)
    assert len(times) == steady_worker.FEWEST


def test_subnormals_are_counted_by_their_own_dtype():
    states = [np.array([0, 1e-40, 1, 1e-44], np.float32), np.array([1e-40, 1e-310, 0, -1e-320])]
    assert steady_subnormals.subnormal_share(states) == 0.5


def test_hundreds_are_condensed_to_multiples_of_the_first():
    times, totals, shares = [2000.0, 4000.0, 3000.0, 5000.0], [200, 500, 300, 600], [0.0, 0.5, 0.2, 0.0]
    assert steady_subnormals.condensed(times, totals, shares) == {
        "first_us": 2.0, "all": 2.0, "slowest": 2.5, "slowest_after": 300, "most_subnormal": 0.5, "most_after": 100,
        "while_subnormal": 1.75,
    }  # fmt: skip
    assert steady_subnormals.condensed([1.0], [1], [0.0])["while_subnormal"] is None
