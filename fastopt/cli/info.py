"""``fastopt info``: what this installation is made of, and what it chose on this machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

from .. import _openmp

__all__ = ["add_parser", "collect", "run"]

_LABELS = {
    "version": "fastopt",
    "isa": "instruction set in use",
    "isa_forced": "forced by FASTOPT_ISA",
    "isa_available": "usable on this machine",
    "isa_built": "built",
    "cpu_level": "highest level of the CPU",
    "openmp": "OpenMP",
    "openmp_version": "OpenMP version",
    "openmp_runtimes": "OpenMP runtimes loaded",
    "wait_policy": "waiting policy",
    "threads": "threads",
    "threads_reason": "because",
    "serial_below_bytes": "one thread below",
}


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="show version, instruction set, OpenMP and threads",
        description="Show what this installation is made of and what it chose on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run, command="info")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    report = collect()
    if args.json:
        print(json.dumps(report, indent=2, sort_keys=True))
        return 0
    labels = {key: _LABELS.get(key, key.replace("_", " ")) for key in report}
    width = max(map(len, labels.values()))
    for key, value in report.items():
        unit = " bytes read and written" if key == "serial_below_bytes" else ""
        print(f"{labels[key]:<{width}}  {_text(value)}{unit}")
    return 0


def collect() -> dict[str, Any]:
    """Return the report as plain data: the engine's own, with what surrounds it."""
    import numpy as np

    from .. import __version__
    from ..engine import info as engine_info

    engine = engine_info()
    found = {
        "version": __version__,
        **engine,
        "openmp_runtimes": _openmp_runtimes(),
        "wait_policy": _openmp.outcome if engine["openmp"] else "none: there are no threads to wait",
    }
    in_order = {key: found.pop(key) for key in _LABELS if key in found}
    return {
        **in_order,
        **found,
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


def _openmp_runtimes() -> list[str]:
    """Return the OpenMP libraries in this process; two of them in one process share the cores badly."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return _openmp.loaded_runtimes()
    return sorted({pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp"})
