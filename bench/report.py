"""Fills the tables of docs/benchmarks.md and draws its figures from files of ``--benchmark-json``.

One file for each number of threads. "All threads" are the largest number that was measured; those between are left out.
With --steady and --subnormals, the files of steady.py, it fills the tables of threads.md beside that page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import steady
import steady_subnormals
from compare import Case, UnusableError, count, load
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NOT_MEASURED = "Not measured."
WIDE = 9  # columns of a table that can still be read
GRADIENTS = ("cold", "same", "fresh")
WORDS = {"same": "same gradients", "fresh": "fresh gradients", "cold": "same gradients, cold caches"}
DROP_IN, PLAIN, LOOSE = "fastopt.torch", "fastopt, plain", "fastopt, loose"
SUITES = {"step": "", "whole": "whole step", "clip": "clipping", "low precision": "low precision"}
FLOAT32 = "fastopt, float32"


class PageError(Exception):
    """The page and the blocks do not fit together."""


class Results:
    """All cases of one run, and the machine that it ran on."""

    def __init__(self, cases: list[Case], runs: list[dict]):
        self.cases = cases
        self.runs = runs
        self.machine = runs[0]["machine_info"]["fastopt"]
        if any(run["machine_info"]["fastopt"] != self.machine for run in runs):
            raise UnusableError("the files come from different machines or versions")
        most = max((case.threads for case in cases), default=1)
        self.threads = {"1": 1, "all": most if most > 1 else None}

    def select(self, threads: str | None = None, **wanted) -> list[Case]:
        """The cases with these facts; None stands for any."""
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if threads is not None:
            wanted["threads"] = self.threads[threads]
        return [case for case in self.cases if all(getattr(case, name) == value for name, value in wanted.items())]


def three_figures(x: float) -> str:
    x = float(f"{x:.2e}")
    return f"{x:,.{max(0, 2 - math.floor(math.log10(abs(x))))}f}"


def microseconds(case: Case, name: str = "fastopt") -> str:
    return three_figures(1e6 * case.seconds[name].median)


def best_peer(case: Case) -> str | None:
    return min(case.libraries, key=case.ratio, default=None)


def table(header: list[str], rows: list[list[str]], align: str = "---:") -> str:
    rule = ["---", *[align] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


# --- the aims ---------------------------------------------------------------------------------------------


def over(name: str, case: Case) -> float | None:
    return case.ratio(name) if name in case.seconds else None


def over_best(case: Case) -> float | None:
    name = best_peer(case)
    return case.ratio(name) if name else None


def drop_in(case: Case) -> float | None:
    """How many times as long torch takes as fastopt through torch's interface."""
    name = torch_way(case)
    return case.ratio(name, DROP_IN) if name and DROP_IN in case.seconds else None


def torch_way(case: Case) -> str | None:
    names = ("torch fused", "torch foreach", "torch foreach + fused")
    return next((name for name in names if name in case.seconds), None)


def over_plain(case: Case, name: str = "fastopt") -> float | None:
    """How many times as long a step that clips takes as one that does not."""
    return case.ratio(name, PLAIN) if PLAIN in case.seconds else None


def speed_up(case: Case, name: str = "fastopt") -> float | None:
    one = f"{name}, one thread"
    return case.ratio(one, name) if one in case.seconds else None


def speed_up_at_best(case: Case) -> float | None:
    """The speed-up if both times lie where their quartiles favour all threads: below 1 these are surely slower."""
    one = case.seconds.get("fastopt, one thread")
    return one.high / case.seconds["fastopt"].low if one else None


def speed_up_over_roofline(case: Case) -> float | None:
    ours, line = speed_up(case), speed_up(case, "roofline")
    return ours / line if ours and line else None


#: What an aim is about -> its value in a case, None where a line is missing.
MEASURES: dict[str, Callable[[Case], float | None]] = {
    "µs": lambda case: 1e6 * case.seconds["fastopt"].median,
    "× best peer": over_best,
    "× torch fused": partial(over, "torch fused"),
    "× torch foreach": partial(over, "torch foreach"),
    "of the roofline": partial(over, "roofline"),
    "× torch, through its interface": drop_in,
    "× a step that does not clip": over_plain,
    "× one thread": speed_up,
    "× one thread, upper quartile over lower": speed_up_at_best,
    "of the roofline's speed-up": speed_up_over_roofline,
}


class Aim(NamedTuple):
    """At least `least`, or at most `most`, in every one of these cases; an empty tuple stands for all there are."""

    shapes: tuple[str, ...]
    measure: str
    least: float = -math.inf
    most: float = math.inf
    optimizers: tuple[str, ...] = ("AdamW",)
    dtype: str | None = "float32"
    threads: str = "1"
    gradients: str | None = None
    suite: str = "step"

    def cases(self, results: Results) -> list[Case]:
        named = itertools.product(self.optimizers or (None,), self.shapes or (None,))
        return [
            case for optimizer, shape in named for case in results.select(
                suite=self.suite, optimizer=optimizer, shape=shape, dtype=self.dtype, threads=self.threads,
                gradients=self.gradients)
        ]  # fmt: skip

    def row(self, results: Results) -> list[str]:
        """Where, what is aimed at, the worst value and its case, and whether the aim is reached."""
        what = f"≥ {self.least:g} {self.measure}" if self.least > -math.inf else f"≤ {self.most:g} {self.measure}"
        found = [(value, case) for case in self.cases(results) if (value := MEASURES[self.measure](case)) is not None]
        if not found:
            return [self.where, what, "–", "not measured"]
        value, case = (max if self.most < math.inf else min)(found, key=lambda pair: pair[0])
        return [self.where, what, f"{three_figures(value)} ({self.label(case)})", self.reached(value, found)]

    @property
    def where(self) -> str:
        parts = (SUITES[self.suite], ", ".join(self.optimizers) or "every optimizer", self.dtype or "both dtypes",
                 "one thread" if self.threads == "1" else "all threads", "; ".join(self.shapes) or "every shape",
                 WORDS[self.gradients] if self.gradients else "")  # fmt: skip
        return ", ".join(filter(None, parts))

    def label(self, case: Case) -> str:
        """What tells the case apart from the others of the aim, and who the best peer is."""
        parts = ("" if len(self.optimizers) == 1 else case.optimizer, case.shape, "" if self.dtype else case.dtype,
                 case.gradients)  # fmt: skip
        peer = f": {best_peer(case)}" if self.measure == "× best peer" else ""
        return " ".join(filter(None, parts)) + peer

    def reached(self, worst: float, found: list[tuple[float, Case]]) -> str:
        if not self.least <= worst <= self.most:
            return "no"
        wanted = set(itertools.product(self.optimizers, self.shapes))
        return "yes" if wanted <= {(case.optimizer, case.shape) for _, case in found} else "not all measured"


BETWEEN = ("1×1,000,000", "1,000×10,000")
AIMS = (
    Aim(("1×10", "1×1,000"), "× best peer", least=5),
    Aim(("1×10", "1×1,000"), "µs", most=0.6, gradients="same"),
    Aim(("1×10", "1×1,000"), "µs", most=0.8, gradients="fresh"),
    Aim(("1×30,000",), "× best peer", least=3),
    Aim(("1×1,000,000",), "× best peer", least=1),
    Aim(("1×1,000,000",), "× torch fused", least=1.6),
    Aim(("1×50,000,000",), "of the roofline", least=0.97),
    Aim(("1×50,000,000",), "× best peer", least=1),
    Aim(("1,000×100",), "× torch fused", least=80),
    Aim(("1,000×100",), "× best peer", least=35),
    Aim(("1,000×10,000",), "of the roofline", least=0.9),
    Aim(("1,000×10,000",), "× torch fused", least=1.7),
    Aim(("ResNet-50", "GPT-2-small"), "of the roofline", least=0.93),
    Aim(BETWEEN, "× torch foreach", least=4, optimizers=("RMSprop", "Adadelta", "NAdam", "RAdam", "Adamax")),
    Aim((), "× best peer", least=1, dtype="float64"),
    Aim(("1,000×100",), "× torch, through its interface", least=15),
    Aim(("1×1,000",), "× torch, through its interface", least=5),
    Aim(("1,000×10,000",), "× torch, through its interface", least=1.6),
    Aim(("1×50,000,000",), "× torch, through its interface", least=1),
    Aim(("1,000×10,000",), "× torch, through its interface", least=4, optimizers=("RMSprop", "Adadelta", "NAdam")),
    Aim(("1×30,000",), "× best peer", least=7, suite="whole"),
    Aim(("1,000×100",), "× best peer", least=60, suite="whole"),
    Aim(("1,000×100",), "× torch, through its interface", least=20, suite="whole"),
    Aim(("1×1,000,000",), "× best peer", least=1.9, suite="whole"),
    Aim(("1,000×10,000",), "× best peer", least=2.5, suite="whole"),
    Aim(("ResNet-50",), "× best peer", least=1.8, suite="whole"),
    Aim(("GPT-2-small", "1×50,000,000"), "× best peer", least=1.55, suite="whole"),
    Aim((BETWEEN[1], "ResNet-50", "GPT-2-small", "1×50,000,000"), "of the roofline", least=0.9, suite="whole"),
    Aim(("1×30,000", "1,000×100"), "× a step that does not clip", most=1.4, suite="clip"),
    Aim(BETWEEN, "× a step that does not clip", most=1.25, suite="clip"),
    Aim((), "× one thread, upper quartile over lower", least=1, optimizers=(), dtype=None, threads="all"),
    Aim(("1×1,000,000",), "× one thread", least=1.7, threads="all"),
    Aim(("1×50,000,000", "GPT-2-small"), "of the roofline's speed-up", least=0.95, threads="all"),
)


# --- the blocks -------------------------------------------------------------------------------------------


def machine_block(results: Results) -> str:
    machine = results.machine
    caches = ", ".join(f"{cache['name']} {size(cache['bytes'])}" for cache in machine["caches"])
    commits = {run["commit_info"]["id"][:12] + " with changes" * run["commit_info"]["dirty"] for run in results.runs}
    rows = [
        ["Processor", f"{machine['cpu']}, {count(machine['cores'], 'core')}, {machine['isa']}"],
        ["Memory", f"{machine['memory_gib']} GiB; {caches or 'caches unknown'}"],
        ["System", f"{machine['kernel']}, {machine['compiler']}"],
        ["Versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())],
        ["Measured", ", ".join(sorted({run["datetime"][:10] for run in results.runs}))],
        ["Commit", ", ".join(sorted(commits))],
    ]
    return "\n".join(f"- **{name}**: {value}" for name, value in rows)


def size(n: int) -> str:
    return f"{n // 2**20} MiB" if n >= 2**20 else f"{n // 2**10} KiB"


def targets_block(results: Results) -> str:
    return table(["where", "aim", "measured, at its worst", "reached"], [aim.row(results) for aim in AIMS], align="---")


def adamw_block(results: Results, dtype: str, threads: str) -> str:
    """A table for each kind of gradients."""
    parts = []
    for gradients in GRADIENTS:
        cases = results.select(suite="step", optimizer="AdamW", dtype=dtype, threads=threads, gradients=gradients)
        if cases:
            parts.append(f"AdamW, {dtype}, {count(cases[0].threads, 'thread')}, {WORDS[gradients]}:")
            parts.append(race_table(cases))
    return "\n\n".join(parts) or NOT_MEASURED


def lines(cases: list[Case]) -> list[str]:
    """Who took part in any of these cases, in the order of LOOKS; the one-thread lines are for comparing threads."""
    there = {name for case in cases for name in case.seconds if not name.endswith(", one thread")} - {DROP_IN}
    return [name for name in LOOKS if name in there] + sorted(there - LOOKS.keys())


def race_table(cases: list[Case]) -> str:
    """Microseconds of each line, and how many times fastopt's they are; only the latter where there are many lines."""
    names = lines(cases)
    wide = len(names) + 1 > WIDE

    def cell(case, name):
        if name not in case.seconds:
            return "–"
        times = f"{three_figures(case.ratio(name))}×"
        return times if wide else f"{microseconds(case, name)} ({times})"

    rows = [[case.shape, microseconds(case), *(cell(case, name) for name in names[1:])] for case in cases]
    return table(["shape", "fastopt µs", *(name if wide else f"{name} µs" for name in names[1:])], rows)


def optimizers_block(results: Results) -> str:
    """Every optimizer at two shapes: the speed, and what the others take."""
    parts = []
    for shape in BETWEEN:
        cases = results.select(suite="step", shape=shape, dtype="float32", threads="1", gradients="same")
        if cases:
            parts += [f"{shape}, float32, one thread, same gradients:", optimizers_table(cases)]
    return "\n\n".join(parts) or NOT_MEASURED


def optimizers_table(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        torch = torch_way(case)
        rows.append([
            case.optimizer, microseconds(case), three_figures(case.bytes / case.seconds["fastopt"].median / 1e9),
            percent(case.ratio("roofline")) if "roofline" in case.seconds else "–", times(case, torch),
            times(case, best_peer(case)),
        ])  # fmt: skip
    return table(["optimizer", "fastopt µs", "GB/s", "of the roofline", "torch", "best peer"], rows)


def drop_in_block(results: Results) -> str:
    """fastopt through torch's interface, and torch."""
    chosen = [*(case for gradients in GRADIENTS for case in results.select(
                suite="step", optimizer="AdamW", dtype="float32", threads="1", gradients=gradients)),
              *(case for case in results.select(suite="step", shape=BETWEEN[1], dtype="float32", threads="1")
                if case.optimizer != "AdamW")]  # fmt: skip
    rows = [
        [case.optimizer, case.shape, case.gradients, microseconds(case, DROP_IN), microseconds(case),
         f"{three_figures(ratio)}× ({torch_way(case)})"]
        for case in chosen if (ratio := drop_in(case))
    ]  # fmt: skip
    header = ["optimizer", "shape", "gradients", "fastopt.torch µs", "fastopt µs", "torch"]
    return table(header, rows) if rows else NOT_MEASURED


def whole_block(results: Results) -> str:
    """The whole step beside PyTorch's calls, and the roofline of the same bytes; then what clipping alone adds."""
    parts = []
    for threads in ("1", "all"):
        if cases := results.select(suite="whole", threads=threads):
            parts += [f"Clip, step, average and zero, {words(cases)}:", whole_table(cases)]
        if cases := results.select(suite="clip", threads=threads):
            parts += [f"Clipping alone, {count(cases[0].threads, 'thread')}:", clip_table(cases)]
    return "\n\n".join(parts) or NOT_MEASURED


def whole_table(cases: list[Case]) -> str:
    rows = [
        [case.shape, microseconds(case), times(case, torch_way(case)),
         *([microseconds(case, DROP_IN), f"{three_figures(drop_in(case))}×"] if drop_in(case) else ["–", "–"]),
         percent(case.ratio("roofline")) if "roofline" in case.seconds else "–"]
        for case in cases
    ]  # fmt: skip
    header = ["shape", "fastopt µs", "torch / fastopt", "fastopt.torch µs", "torch / fastopt.torch", "of the roofline"]
    return table(header, rows)


def clip_table(cases: list[Case]) -> str:
    rows = [[case.shape, case.dtype, microseconds(case, PLAIN), f"{three_figures(over_plain(case, LOOSE))}×",
             f"{three_figures(over_plain(case))}×"] for case in cases]  # fmt: skip
    return table(["shape", "dtype", "no limit µs", "a limit that does not bind", "one that binds"], rows)


def storage_block(results: Results) -> str:
    """Steps over arrays in bfloat16 and 8 bits, beside the plain step, and those who store so."""
    parts = []
    for threads in ("1", "all"):
        if cases := results.select(suite="low precision", threads=threads):
            parts += [f"AdamW, {count(cases[0].threads, 'thread')}:", storage_table(cases)]
    return "\n\n".join(parts) or NOT_MEASURED


def storage_table(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        stored, _, shape = case.shape.partition("; ")
        peers = [name for name in case.libraries if name != FLOAT32]
        rows.append([
            stored, shape, microseconds(case), f"{case.seconds['fastopt'].median / case.elements * 1e9:.2f}",
            times(case, FLOAT32).partition(" ")[0] if FLOAT32 in case.seconds else "–",
            ", ".join(f"{name} {three_figures(case.ratio(name))}×" for name in peers) or "–",
        ])  # fmt: skip
    return table(["stored", "shape", "fastopt µs", "ns an element", "float32 / this", "others / this"], rows)


def clients_block(results: Results) -> str:
    """The adapters beside their libraries."""
    rows = [
        [row["host"], row["what"], *(seconds(row[key]) for key in ("stock_s", "fastopt_s")),
         f"{three_figures(row['stock_s'] / row['fastopt_s'])}×"]
        for run in results.runs for row in run.get("clients", ())
    ]  # fmt: skip
    return table(["library", "what", "its own", "fastopt", "ratio"], rows) if rows else NOT_MEASURED


def seconds(x: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if x >= size:
            return f"{three_figures(x / size)} {unit}"
    return f"{three_figures(x * 1e6)} µs"


def times(case: Case, name: str | None) -> str:
    return f"{three_figures(case.ratio(name))}× ({name})" if name else "–"


def percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def threads_block(results: Results) -> str:
    """What the threads bring to fastopt, and to the roofline."""
    cases = [case for case in results.select(suite="step", optimizer="AdamW", threads="all", gradients="same")
             if "fastopt, one thread" in case.seconds]  # fmt: skip
    if not cases:
        return NOT_MEASURED
    rows = []
    for case in cases:
        ratios = (speed_up(case), speed_up(case, "roofline"), speed_up_over_roofline(case))
        rows.append([case.shape, case.dtype, microseconds(case, "fastopt, one thread"), microseconds(case),
                     *(three_figures(x) if x else "–" for x in ratios)])  # fmt: skip
    header = ["shape", "dtype", "one thread µs", f"{count(cases[0].threads, 'thread')} µs", "speed-up",
              "roofline's speed-up", "ratio"]  # fmt: skip
    return "AdamW, same gradients:\n\n" + table(header, rows)


BLOCKS: dict[str, Callable[[Results], str]] = {
    "machine": machine_block,
    "targets": targets_block,
    **{f"adamw-{dtype}-{threads}": partial(adamw_block, dtype=dtype, threads=threads)
       for dtype in ("float32", "float64") for threads in ("1", "all")},
    "optimizers": optimizers_block,
    "drop-in": drop_in_block,
    "whole": whole_block,
    "storage": storage_block,
    "clients": clients_block,
    "threads": threads_block,
}  # fmt: skip


def steady_blocks(steps: Path, subnormals: Path) -> dict[str, str]:
    """The tables of steady.py, as blocks."""
    found, faded = (json.loads(path.read_text(encoding="utf-8")) for path in (steps, subnormals))
    return {
        "verdicts": "\n".join(steady.verdicts(found["cells"], markdown=True)).strip(),
        "steps": "\n".join(steady.tables(found["cells"], markdown=True)).strip(),
        "processes": "\n".join(steady.processes(found["processes"], markdown=True)).strip(),
        "subnormals": "\n".join(steady.table(list(steady_subnormals.rows(faded["cases"])), markdown=True)).strip(),
    }


def fill(page: str, blocks: dict[str, str]) -> str:
    """The page with the text of every block between its two marks."""
    marks = re.findall(r"<!-- (begin|end) (\S+) -->", page)
    names = [name for kind, name in marks if kind == "begin"]
    if marks != [(kind, name) for name in names for kind in ("begin", "end")]:
        raise PageError("not every begin is followed by its end")
    if sorted(names) != sorted(blocks):
        odd = sorted(set(names) ^ set(blocks)) or sorted(name for name in set(names) if names.count(name) > 1)
        raise PageError(f"blocks unknown, missing or twice: {', '.join(odd)}; there are {', '.join(blocks)}")
    return re.sub(r"(<!-- begin (\S+) -->).*?(<!-- end \2 -->)",
                  lambda found: f"{found[1]}\n{blocks[found[2]]}\n{found[3]}", page, flags=re.DOTALL)  # fmt: skip


# --- the figures ------------------------------------------------------------------------------------------

# Okabe and Ito's colours, which the colour-blind tell apart, and markers, for print.
ORANGE, BLUE, GREEN, SKY, PURPLE, AMBER, GREY = (
    "#D55E00", "#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#999999")  # fmt: skip
LOOKS = {
    "fastopt": {"color": ORANGE, "marker": "o", "linewidth": 2.8, "zorder": 5},
    "roofline": {"color": "black", "linestyle": "--"},
    "torch fused": {"color": BLUE, "marker": "s"},
    "torch foreach": {"color": BLUE, "marker": "d"},
    "Numba, tuned": {"color": GREEN, "marker": "^"},
    "DeepSpeed": {"color": PURPLE, "marker": "v"},
    "optax": {"color": SKY, "marker": "D"},
    "thinc": {"color": AMBER, "marker": "P"},
    "scikit-learn": {"color": GREY, "marker": "X"},
    "Numba": {"color": GREEN, "marker": "<", "linestyle": ":"},
    "NumPy reference": {"color": GREY, "marker": "*"},
}
STYLE = {
    "svg.hashsalt": "fastopt", "font.size": 9, "lines.linewidth": 1.2, "lines.markersize": 4, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlelocation": "left",
    "axes.titlesize": 9, "axes.titlepad": 18, "grid.color": "0.9",
}  # fmt: skip


def words(cases: list[Case]) -> str:
    return f"{cases[0].optimizer}, {cases[0].dtype}, {count(cases[0].threads, 'thread')}"


def plot_time(ax, results: Results, dtype: str, threads: str) -> str | None:
    """Time against the size of one array, a line for each library."""
    cases = results.select(suite="step", optimizer="AdamW", dtype=dtype, threads=threads, gradients="same", arrays=1)
    if not cases:
        return None
    curves = {name: [(case.elements, 1e6 * case.seconds[name].median) for case in cases if name in case.seconds]
              for name in lines(cases)}  # fmt: skip
    for name, points in sorted(curves.items(), key=lambda curve: -curve[1][0][1]):      # the legend in their order
        ax.plot(*zip(*points, strict=True), label=name, **LOOKS.get(name, {"color": GREY}))
    ax.set(xscale="log", yscale="log", xlabel="elements of one array", ylabel="µs a step")
    ax.grid()
    ax.figure.legend(loc="outside right center")
    factors = [value for case in cases if (value := over_best(case))]
    if not factors:
        return f"{words(cases)}: fastopt and the roofline"
    return (f"{words(cases)}: fastopt is faster than every other library at {sum(f > 1 for f in factors)} of "
            f"{len(factors)} sizes;\nthe best of them takes {three_figures(min(factors))} to "
            f"{three_figures(max(factors))} times as long")  # fmt: skip


def plot_cost(ax, results: Results, suite: str, unit: str, threads: str) -> str | None:
    """Time for each element, or array, against their number."""
    cases = results.select(suite=suite, threads=threads)
    if not cases:
        return None
    for name, gradients in itertools.product(("fastopt", "roofline"), GRADIENTS):
        points = cost([case for case in cases if case.gradients == gradients], name, unit)
        if points:
            dashes = {"linestyle": "-" if gradients == "same" else ":"}
            ax.plot(*zip(*points, strict=True), label=f"{name}, {gradients} gradients", **{**LOOKS[name], **dashes})
    mark_caches(ax, results, cases[0], unit)
    ax.set(xscale="log", yscale="log", xlabel=unit, ylabel=f"ns for each of the {unit}")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    ax.grid(axis="y")
    ax.figure.legend(loc="outside right center")
    what = f"arrays of {cases[0].elements // cases[0].arrays:,}" if unit == "arrays" else "one array"
    return f"{words(cases)}, {what}: for each of the {unit}\n{in_words(cases, unit)}"


def cost(cases: list[Case], name: str, unit: str) -> list[tuple[int, float]]:
    """The number of units, and nanoseconds for each of them."""
    return [(getattr(case, unit), 1e9 * case.seconds[name].median / getattr(case, unit)) for case in cases
            if name in case.seconds]  # fmt: skip


def in_words(cases: list[Case], unit: str) -> str:
    """With how many fastopt is cheapest, and what the most take, beside the roofline."""
    same = [case for case in cases if case.gradients == "same"] or cases
    points, line = cost(same, "fastopt", unit), cost(same, "roofline", unit)
    at, least = min(points, key=lambda point: point[1])
    text = f"fastopt takes {three_figures(least)} ns at best, with {at:,}"
    if at != points[-1][0]:
        text += f", and {three_figures(points[-1][1])} with {points[-1][0]:,}"
    return text + (f", where the roofline takes {three_figures(line[-1][1])}" if line else "")


def mark_caches(ax, results: Results, case: Case, unit: str) -> None:
    """A line where what a step touches fills a cache: every array is moved twice, the gradient once."""
    gradient = case.elements * {"float32": 4, "float64": 8}[case.dtype]
    touched = (case.bytes + gradient) / 2 / getattr(case, unit)
    low, high = ax.dataLim.intervalx
    for cache in results.machine["caches"]:
        if low < (x := cache["bytes"] / touched) < high:
            ax.axvline(x, color="0.8", linewidth=1, zorder=0)
            ax.text(x, 1.01, cache["name"], color="0.4", ha="center", transform=ax.get_xaxis_transform())


def plot_roofline(ax, results: Results) -> str | None:
    """The fraction of the roofline that fastopt reaches, for every shape."""
    cases = [case for case in results.select(suite="step", optimizer="AdamW", dtype="float32", gradients="same")
             if "roofline" in case.seconds and case.threads in results.threads.values()]  # fmt: skip
    if not cases:
        return None
    shapes = list(dict.fromkeys(case.shape for case in cases))
    counts = [n for n in results.threads.values() if any(case.threads == n for case in cases)]
    height = 0.8 / len(counts)
    for k, (threads, color) in enumerate(zip(counts, (ORANGE, SKY), strict=False)):
        chosen = [case for case in cases if case.threads == threads]
        places = [shapes.index(case.shape) + (k - (len(counts) - 1) / 2) * height for case in chosen]
        bars = ax.barh(places, [100 * case.ratio("roofline") for case in chosen], 0.9 * height, color=color,
                       label=count(threads, "thread"))  # fmt: skip
        ax.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    ax.axvline(100, color="black", linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(shapes)), shapes)
    ax.set(xlabel="% of the roofline's speed")
    ax.invert_yaxis()
    ax.figure.legend(loc="outside right center")
    low, high = (f(cases, key=lambda case: case.ratio("roofline")) for f in (min, max))
    return (f"AdamW, float32: fastopt reaches {percent(low.ratio('roofline'))} ({low.shape}, "
            f"{count(low.threads, 'thread')}) to\n{percent(high.ratio('roofline'))} ({high.shape}, "
            f"{count(high.threads, 'thread')}) of the roofline's speed")  # fmt: skip


FIGURES: dict[str, Callable] = {
    "time-float32-1": partial(plot_time, dtype="float32", threads="1"),
    "time-float64-1": partial(plot_time, dtype="float64", threads="1"),
    "time-float32-all": partial(plot_time, dtype="float32", threads="all"),
    "size-1": partial(plot_cost, suite="size", unit="elements", threads="1"),
    "size-all": partial(plot_cost, suite="size", unit="elements", threads="all"),
    "count-1": partial(plot_cost, suite="count", unit="arrays", threads="1"),
    "count-all": partial(plot_cost, suite="count", unit="arrays", threads="all"),
    "roofline": plot_roofline,
}


def draw(path: Path, plot: Callable, results: Results) -> None:
    """Write one figure; where there is nothing to draw, remove the old one, which would show another run."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        ax = figure.add_subplot()
        title = plot(ax, results)
        if title is None:
            path.unlink(missing_ok=True)
            print(f"nothing to draw for {path.name}")
            return
        ax.set_title(title)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+", type=Path, help="files of pytest --benchmark-json")
    parser.add_argument("--steady", type=Path, metavar="FILE", help="of steady.py steps --json")
    parser.add_argument("--subnormals", type=Path, metavar="FILE", help="of steady.py subnormals --json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the page; figures/ beside it takes the figures")
    arguments = parser.parse_args(argv)
    try:
        cases, runs = load(arguments.json)
        results = Results(list(cases.values()), runs)
        pages = {arguments.docs: {name: f(results) for name, f in BLOCKS.items()}}
        if arguments.steady and arguments.subnormals:
            pages[arguments.docs.with_name("threads.md")] = steady_blocks(arguments.steady, arguments.subnormals)
        filled = {path: fill(path.read_text(encoding="utf-8"), blocks) for path, blocks in pages.items()}
    except (OSError, PageError, UnusableError) as error:
        sys.exit(str(error))
    for path, text in filled.items():
        path.write_text(text, encoding="utf-8")
    figures = arguments.docs.parent / "figures"
    figures.mkdir(exist_ok=True)
    for name, plot in FIGURES.items():
        draw(figures / f"{name}.svg", plot, results)


if __name__ == "__main__":
    main()
