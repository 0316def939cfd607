"""Whether a step is steady: median, p90 and p99 of single AdamW steps, float32, alone and beside other work.

    python bench/steady.py steps --markdown --json steady.json
    python bench/steady.py steps --only fastopt --condition busy --threads 2 --size 1x1000000 --pause 0
    python bench/steady.py show steady.json --markdown
    python bench/steady.py subnormals

Design:
- Each library has, under each condition, a process of its own (``steady_worker.py``): in one process, the library that
  loads OpenMP first decides for all of them how threads wait. Environment variables reach the workers.
- The workers take short turns, so that a noisy machine is noisy for all alike. Who does not have its turn is
  stopped (SIGSTOP): none of its threads spins beside the step of another. It runs on Linux only.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import steady_subnormals
from steady_worker import CONDITIONS, CORES, INSTALLED, LIBRARIES
from tqdm import tqdm

SIZES = ("1×30,000", "50×10,000", "1×1,000,000", "1×10,000,000")
QUICK_SIZES = ("1×30,000", "1×1,000,000")
PAUSES = (0, 1, 20)
THREADS = (1, 2)
LOADS = ("busy", "numpy loop", "torch loop", "torch loop, torch first")
WORKER = (sys.executable, str(Path(__file__).with_name("steady_worker.py")))
# Of one turn: steps if there is time, and seconds at least and (about) at most.
FULL = {"steps": 80, "shortest": 0.05, "longest": 0.7}
QUICK = {"steps": 40, "shortest": 0.02, "longest": 0.1}
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMBA_", "FASTOPT_")


class Worker:
    """A process that measures one library under one condition when it is asked, and is stopped otherwise."""

    def __init__(self, library, condition):
        self.name = f"{library}, {condition}"
        self.process = subprocess.Popen([*WORKER, library, condition], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"steady: the worker for {self.name} ended with code {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def times(self, **request):
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()


@contextlib.contextmanager
def ended(process):
    """Whatever happens inside, the process has ended after it."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def busy_cores():
    """One process on each core that computes all the time."""
    with contextlib.ExitStack() as stack:
        spinners = [stack.enter_context(ended(subprocess.Popen([*WORKER, "spin", str(core)], stdout=subprocess.PIPE)))
                    for core in os.sched_getaffinity(0)]  # fmt: skip
        for spinner in spinners:
            spinner.stdout.readline()
        yield


def start(condition, libraries, stack):
    """The workers of one condition by library, and the facts they tell."""
    if condition == "torch loop, torch first":         # a question of fastopt's alone
        libraries = [name for name in libraries if name == "fastopt"]
    if "torch" in condition and "torch fused" not in INSTALLED:
        return {}, {}
    workers, facts = {}, {}
    for library in libraries:                          # one after the other: they time their loops
        workers[library] = Worker(library, condition)
        stack.enter_context(ended(workers[library].process))
        facts[library] = workers[library].answer()
    return workers, facts


def steps(args):
    plan = list(product(args.size, args.threads, args.pause))
    rounds, turn = (1, QUICK) if args.quick else (3, FULL)
    cells, facts, began = [], {}, time.monotonic()
    progress = tqdm(total=len(args.condition) * len(plan), unit="cell", disable=None)
    for condition in args.condition:
        with contextlib.ExitStack() as stack:
            workers, facts[condition] = start(condition, args.only, stack)
            if condition == "busy":
                stack.enter_context(busy_cores())
            for size, threads, pause in plan:
                progress.set_postfix_str(f"{condition}, {size}, {threads} threads, pause {pause:g} ms")
                pooled = {library: [] for library in workers}
                for _ in range(rounds):
                    for library, worker in workers.items():
                        pooled[library] += worker.times(shape=shape(size), threads=threads, pause=pause / 1e3, **turn)
                case = {"condition": condition, "pause": pause, "size": size, "threads": threads}
                cells += [{**case, "library": library, **summary(times)} for library, times in pooled.items()]
                progress.update()
        if progress.disable:
            print(f"{condition}: measured after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    progress.close()
    result = {"machine": machine(), "seconds": time.monotonic() - began, "processes": facts, "cells": cells}
    write(args.json, result)
    report(result, args.markdown)


def machine():
    """What the figures depend on besides the code; nothing that names the machine."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": CORES,
        "python": platform.python_version(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)},
    }


def shape(size):
    """Arrays and elements of each: "50×10,000" -> (50, 10000)."""
    count, elements = size.replace(",", "").split("×")
    return int(count), int(elements)


def size(text):
    """A size as the tables write it: "50x10000" -> "50×10,000"."""
    return "{:,}×{:,}".format(*shape(text.replace("x", "×")))


def summary(times):
    """Microseconds from nanoseconds."""
    median, p90, p99 = np.percentile(times, (50, 90, 99)) / 1e3
    return {"median": median, "p90": p90, "p99": p99, "max": max(times) / 1e3, "steps": len(times)}


def write(path, result):
    if path:
        Path(path).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def report(result, markdown):
    cells = result["cells"]
    for lines in (tables(cells, markdown), processes(result["processes"], markdown), verdicts(cells, markdown)):
        print("\n".join(lines))
    print(f"\n{len(cells)} cells in {result['seconds']:.0f} s.")


def tables(cells, markdown):
    """For each condition and pause a table: rows size and threads, columns libraries."""
    for (condition, pause), chosen in grouped(cells, "condition", "pause").items():
        libraries = list(grouped(chosen, "library"))
        rows = [("size", "threads", *(name for (name,) in libraries), "steps")]
        for (size, threads), line in grouped(chosen, "size", "threads").items():
            counts = sorted(cell["steps"] for cell in line)
            span = f"{counts[0]:,}" + f" to {counts[-1]:,}" * (counts[0] < counts[-1])
            rows.append((size, str(threads), *map(three, line), span))
        yield f"\n{'### ' * markdown}{condition}, pause {pause:g} ms: median / p90 / p99 of a step in µs\n"
        yield from table(rows, markdown)


def grouped(cells, *names):
    """The cells by their values under these names, in the order of their coming."""
    found = {}
    for cell in cells:
        found.setdefault(tuple(cell[name] for name in names), []).append(cell)
    return found


def three(cell):
    return " / ".join(f"{cell[name]:,.{0 if cell[name] >= 100 else 1}f}" for name in ("median", "p90", "p99"))


def table(rows, markdown):
    """Columns of equal width, the first to the left; in Markdown with pipes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows = [rows[0], ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *rows[1:]]
    left, between, right = ("| ", " | ", " |") if markdown else ("", "   ", "")
    for first, *others in rows:
        words = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        yield left + between.join(words) + right


def processes(facts, markdown):
    """Of every process: what was loaded first, which OpenMP it has, and how long the loop between the steps takes."""
    rows = [("condition", "library", "loaded in this order", "OpenMP", "loop, ms")]
    for condition, libraries in facts.items():
        for library, fact in libraries.items():
            loaded, openmp = ", ".join(fact["loaded"]), ", ".join(fact["openmp"])
            rows.append((condition, library, loaded, openmp, f"{fact['loop_ms']:.1f}"))
    return ["", *table(rows, markdown)]


def verdicts(cells, markdown):
    """The two questions, answered for each library with the cells that fail."""
    beside = [cell for cell in cells if cell["condition"] in LOADS]
    loaded = []
    for pair in grouped(beside, "library", "condition", "pause", "size").values():
        p90 = {cell["threads"]: cell["p90"] for cell in pair}
        loaded += [(cell, cell["p90"] / p90[1]) for cell in pair if cell["threads"] == 2 and 1 in p90]
    quiet = [(cell, cell["p99"] / cell["median"]) for cell in cells if cell["condition"] == "quiet"]
    yield from verdict("Under load, p90 with two threads at most 2 × p90 with one", loaded, 2, markdown)
    yield from verdict("Quiet, p99 at most 3 × the median", quiet, 3, markdown)


def verdict(question, ratios, limit, markdown):
    """Of each library, how many of its cells keep the limit, and those that do not, the worst first."""
    yield f"\n{'**' * markdown}{question}{'**' * markdown}{'' if ratios else ': not measured'}\n"
    for library in dict.fromkeys(cell["library"] for cell, _ in ratios):
        own = sorted(((ratio, cell) for cell, ratio in ratios if cell["library"] == library),
                     key=lambda pair: pair[0], reverse=True)  # fmt: skip
        failing = [(ratio, cell) for ratio, cell in own if ratio > limit]
        yield f"- {library}: {len(own) - len(failing)} of {len(own)} cells, the worst {own[0][0]:.1f} ×"
        for ratio, cell in failing:
            place = f"{cell['condition']}, pause {cell['pause']:g} ms, {cell['size']}"
            yield f"  - {place}, {cell['threads']} thread{'s' * (cell['threads'] > 1)}: {ratio:.1f} ×"


def show(args):
    report(json.loads(Path(args.file).read_text()), args.markdown)


def subnormals(args):
    records = list(steady_subnormals.run(args.zero, lambda cases: tqdm(cases, disable=None)))
    write(args.json, {"machine": machine(), "cases": records})
    print("\n".join(table(list(steady_subnormals.rows(records)), args.markdown)))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)

    found = commands.add_parser("steps", help="median, p90 and p99 of a step (up to 15 minutes)")
    found.add_argument("--quick", action="store_true", help="one short round of two sizes (a minute)")
    found.add_argument("--only", nargs="+", choices=INSTALLED, default=INSTALLED)
    found.add_argument("--condition", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    found.add_argument("--size", nargs="+", type=size, help=f"as 50x10000 (default: {', '.join(SIZES)})")
    found.add_argument("--pause", nargs="+", type=float, default=PAUSES, help="milliseconds (default: 0 1 20)")
    found.add_argument("--threads", nargs="+", type=int, default=THREADS, help="default: 1 2")
    found.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    found.set_defaults(run=steps)

    earlier = commands.add_parser("show", help="the tables of an earlier run")
    earlier.add_argument("file")
    earlier.set_defaults(run=show)

    vanishing = commands.add_parser("subnormals", help="does a step slow down where its moments are subnormal?")
    vanishing.add_argument("--zero", type=int, metavar="N", help="steps with zero gradients, in hundreds")
    vanishing.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    vanishing.set_defaults(run=subnormals)

    for command in (found, earlier, vanishing):
        command.add_argument("--markdown", action="store_true", help="tables for the documentation")
    args = parser.parse_args()
    if args.run is steps and not args.size:
        args.size = QUICK_SIZES if args.quick else SIZES
    return args


if __name__ == "__main__":
    missing = set(LIBRARIES) - set(INSTALLED)
    if missing:
        print(f"steady: not installed, left out: {', '.join(sorted(missing))}", file=sys.stderr)
    chosen = arguments()
    try:
        chosen.run(chosen)
    except KeyboardInterrupt:
        sys.exit(130)
