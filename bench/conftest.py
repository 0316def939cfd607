"""Racing: every library's step in turn, in one run, so that a noisy machine is noisy for all of them alike."""

import os
import platform
import re
import subprocess
import time
from importlib import metadata, util
from pathlib import Path
from statistics import median, quantiles

import libraries
import pytest
from libraries import THREADS

import fastopt
from fastopt import engine

RESULTS = []
VERSIONS = {name: name for name in ("numpy", "torch", "numba", "deepspeed", "jax", "optax", "thinc")}
VERSIONS["scikit-learn"] = "sklearn"


def pytest_addoption(parser):
    parser.addoption("--threads", default="1", help="threads for every library: a number, or 'all' (default: 1)")


def pytest_configure(config):
    n = config.getoption("--threads")
    n = engine.info()["threads"] if n == "all" else int(n)
    libraries.use_threads(n)
    config.stash[THREADS] = n


@pytest.fixture
def threads(request):
    return request.config.stash[THREADS]


def interleaved(steppers, seconds=0.4, rounds=15, most=2000):
    """Seconds of one call of each step: their turns interleaved, quartiles over the rounds.

    A turn is a batch of calls long enough for the clock, after some that fill the caches and wake the threads;
    quartiles over rounds forget what else ran. Where one call of each takes long, there are fewer rounds. `most` calls
    are made in a turn where each needs something new.
    """
    for stepper in steppers.values():
        timed(stepper, 3)            # some compile at the first call, others at the second
    single = {name: timed(stepper, 3) for name, stepper in steppers.items()}
    rounds = max(5, min(rounds, round(3 * seconds / sum(single.values()))))
    batch = {name: max(1, round(seconds / rounds / len(steppers) / max(t, 1e-7))) for name, t in single.items()}
    taken = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            timed(stepper, -(-batch[name] // 3) if single[name] < 0.01 else 0, most // 3)
            taken[name].append(timed(stepper, batch[name], most))
    return {name: spread(times) for name, times in taken.items()}


def spread(times):
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "rounds": len(times)}


def timed(stepper, repeat, most=2000):
    """Seconds a call, over so many calls; one by one, and their median, where each needs something new."""
    clock = time.perf_counter
    if repeat == 0:
        return 0.0
    prepare, step = stepper
    if prepare is None:
        turns = range(repeat)
        start = clock()
        for _ in turns:
            step()
        return (clock() - start) / repeat
    times = []
    for _ in range(min(repeat, most)):
        fresh = prepare()
        start = clock()
        step(fresh)
        times.append(clock() - start)
    return median(times)


@pytest.fixture
def race(benchmark):
    """Race the steppers of a case; the first is fastopt's, and is what pytest-benchmark reports."""

    def run(case, steppers, **facts):
        times = interleaved(steppers, most=12 if case.gradients == "cold" else 2000)
        benchmark.extra_info.update(
            facts, optimizer=case.optimizer, arrays=len(case.shapes), elements=case.elements, dtype=case.dtype,
            threads=case.threads, gradients=case.gradients, bytes=case.moved, seconds=times,
        )  # fmt: skip
        RESULTS.append((f"{facts['suite']} {case.optimizer} {facts['shape']} {case.dtype}"
                        + f" {case.gradients}" * (case.gradients != "same"), times))
        prepare, step = steppers["fastopt"]
        once = times["fastopt"]["median"]
        if prepare is None:
            benchmark.pedantic(step, rounds=5, iterations=max(1, round(2e-3 / once)))
        else:
            benchmark.pedantic(step, setup=lambda: ((prepare(),), {}), rounds=5)

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    """What the figures depend on besides the code; nothing that names the machine."""
    machine_info.pop("node", None)
    found = {name: metadata.version(name) for name, module in VERSIONS.items() if util.find_spec(module)}
    machine_info["fastopt"] = {
        "cpu": first_match(r"model name\s*: (.*)", "/proc/cpuinfo") or platform.processor(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "compiler": subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout.partition("\n")[0],
        "isa": engine.info()["isa"],
        "versions": {"fastopt": fastopt.__version__, "Python": platform.python_version(), **found},
    }


def first_match(pattern, file):
    found = re.search(pattern, Path(file).read_text()) if Path(file).exists() else None
    return found and found[1]


def caches():
    """Sizes of the first core's caches, smallest first: [{"name": "L1d", "bytes": 32768}, ...]."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found.append({"name": f"L{level}{'d' * (kind == 'Data')}", "bytes": int(size.rstrip("K")) * 1024})
    return found


def pytest_terminal_summary(terminalreporter):
    """One row a case: microseconds of each, and how many times fastopt's they take."""
    if not RESULTS:
        return
    there = dict.fromkeys(name for _, times in RESULTS for name in times)
    names = [name for name in (*libraries.LIBRARIES, *libraries.ONE_THREAD) if name in there]
    names += [name for name in there if name not in names]
    write = terminalreporter.write_line
    terminalreporter.section("medians of interleaved rounds: µs a step (times fastopt's)")
    write(f"{'case':<44}" + "".join(f"{name:>20}" for name in names))
    for case, times in RESULTS:
        base = times["fastopt"]["median"]
        cells = [f"{t['median'] * 1e6:,.2f} ({t['median'] / base:.2f})" if (t := times.get(name)) else "-"
                 for name in names]  # fmt: skip
        write(f"{case:<44}" + "".join(f"{cell:>20}" for cell in cells))
