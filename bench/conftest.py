"""Racing: every library's step in turn, in one run, so that a noisy machine is noisy for all of them alike."""

import time
from statistics import median

import pytest

RESULTS = []


def interleaved(steps, seconds=1.0, rounds=15):
    """Median seconds of one call of each step, their turns interleaved.

    A round calls each step in a batch long enough for the clock; a median over rounds forgets what else ran.
    """
    batch = {}
    for name, step in steps.items():
        for _ in range(3):
            step()
        start = time.perf_counter()
        step()
        once = max(time.perf_counter() - start, 1e-7)
        batch[name] = max(1, round(seconds / rounds / len(steps) / once))
    taken = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            repeat = range(batch[name])
            start = time.perf_counter()
            for _ in repeat:
                step()
            taken[name].append((time.perf_counter() - start) / batch[name])
    return {name: median(times) for name, times in taken.items()}


@pytest.fixture
def race(benchmark, request):
    """Race the steps (name -> callable); the first is fastopt's, and is what pytest-benchmark reports."""

    def run(case, steps):
        times = interleaved(steps)
        ours = next(iter(steps))
        benchmark.extra_info.update({"case": case, "median_seconds": times})
        benchmark.extra_info["ratios"] = {name: t / times[ours] for name, t in times.items() if name != ours}
        RESULTS.append((case, times))
        benchmark.pedantic(steps[ours], rounds=20, iterations=max(1, round(2e-3 / times[ours])), warmup_rounds=1)

    return run


def pytest_terminal_summary(terminalreporter):
    """One row a case: microseconds of each, and how many times fastopt's they take."""
    if not RESULTS:
        return
    libraries = sorted({name for _, times in RESULTS for name in times}, key=lambda n: (n != "fastopt", n))
    write = terminalreporter.write_line
    terminalreporter.section("medians of interleaved rounds, one thread: µs a step (times fastopt's)")
    write(f"{'case':<44}" + "".join(f"{name:>22}" for name in libraries))
    for case, times in RESULTS:
        cells = []
        for name in libraries:
            if name not in times:
                cells.append(f"{'-':>22}")
                continue
            ratio = f" ({times[name] / times['fastopt']:.1f}x)" if name != "fastopt" else ""
            cells.append(f"{times[name] * 1e6:,.2f}{ratio}".rjust(22))
        write(f"{case:<44}" + "".join(cells))
