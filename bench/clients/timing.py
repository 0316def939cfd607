"""Timing in pairs for the suite "clients": the host's own way, fastopt's, the host's own, fastopt's ..."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any


def pairs(
    stock: Callable[[], Any], ours: Callable[[], Any], repeats: int = 7, number: int = 1
) -> tuple[float, float]:  # fmt: skip
    """The median seconds of processor time of one call of each. Both are called once before, which is not counted."""
    stock()
    ours()
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for call, taken in zip((stock, ours), seconds, strict=True):
            begin = process_time()
            for _ in range(number):
                call()
            taken.append((process_time() - begin) / number)
    return median(seconds[0]), median(seconds[1])


def row(host: str, what: str, stock_s: float, fastopt_s: float) -> dict[str, Any]:
    return {"host": host, "what": what, "stock_s": stock_s, "fastopt_s": fastopt_s, "ratio": stock_s / fastopt_s}


def report(rows: Sequence[dict[str, Any]], json_path: str | None = None) -> None:
    """Print a table, and write the rows as JSON where a path is given."""
    print("| what | stock | fastopt | ratio |\n|---|---:|---:|---:|")
    for one in rows:
        times = f"{shown(one['stock_s'])} | {shown(one['fastopt_s'])} | {one['ratio']:.2f}"
        print(f"| {one['host']}: {one['what']} | {times} |")
    if json_path:
        Path(json_path).write_text(json.dumps(list(rows), indent=1), encoding="utf-8")


def shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e6:.2f} µs"


def json_argument() -> str | None:
    """The path after ``--json``, the only option of these programs."""
    arguments = sys.argv[1:]
    if arguments and (arguments[0] != "--json" or len(arguments) != 2):
        raise SystemExit(f"usage: python {sys.argv[0]} [--json FILE]")
    return arguments[1] if arguments else None
