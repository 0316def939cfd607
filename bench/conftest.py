"""Racing: every library's step in turn, in one run, so that a noisy machine is noisy for all of them alike."""

import time
from statistics import median

import pytest

RESULTS = []


def interleaved(steps, seconds=1.0, rounds=15):
    """Median seconds of one call of each step, their turns interleaved.

    A round calls each step in a batch long enough for the clock; a median over rounds forgets what else ran. A step may
    be a pair (prepare, step): then what prepare returns is made outside the clock and given to that one call, which is
    timed by itself.
    """
    batch = {}
    for name, step in steps.items():
        timed(step, 3)
        batch[name] = max(1, round(seconds / rounds / len(steps) / max(timed(step, 1), 1e-7)))
    taken = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(timed(step, batch[name]))
    return {name: median(times) for name, times in taken.items()}


def timed(step, repeat):
    """Seconds a call, over so many calls."""
    clock = time.perf_counter
    if callable(step):
        start = clock()
        for _ in range(repeat):
            step()
        return (clock() - start) / repeat
    prepare, step = step
    times = []
    for _ in range(min(repeat, 2000)):
        fresh = prepare()
        start = clock()
        step(fresh)
        times.append(clock() - start)
    return median(times)


@pytest.fixture
def race(benchmark, request):
    """Race the steps (name -> callable); the first is fastopt's, and is what pytest-benchmark reports."""

    def run(case, steps):
        times = interleaved(steps)
        ours = next(iter(steps))
        benchmark.extra_info.update({"case": case, "median_seconds": times})
        benchmark.extra_info["ratios"] = {name: t / times[ours] for name, t in times.items() if name != ours}
        RESULTS.append((case, times))
        if callable(steps[ours]):
            benchmark.pedantic(steps[ours], rounds=20, iterations=max(1, round(2e-3 / times[ours])), warmup_rounds=1)
        else:
            prepare, step = steps[ours]
            benchmark.pedantic(step, setup=lambda: ((prepare(),), {}), rounds=50, warmup_rounds=1)

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
