"""``fastopt info``: what this installation is made of, and what it chose on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._config import as_text, collect

__all__ = ["add_parser", "run"]


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
    print(json.dumps(report, indent=2, sort_keys=True) if args.json else as_text(report))
    return 0
