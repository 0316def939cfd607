"""Runs test files of thinc or spaCy with fastopt's optimizers in the place of thinc's, and counts steps.

    python thinc_host.py REPORT PACKAGE FILE... [-- ARGUMENT...]

Files are relative to the package's `tests` folder; arguments are pytest's. Writes a JSON object: the outcomes of the
tests by name, and how many steps fastopt and thinc took.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import unittest.mock
from collections import Counter
from pathlib import Path

import pytest
import thinc.api
import thinc.config
import thinc.optimizers

NAMES = ("Adam", "RAdam", "SGD", "Optimizer")


class Outcomes:
    """What became of each test."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("/tests/")[2] or report.nodeid
        if report.when == "call" or report.outcome != "passed":
            expected = hasattr(report, "wasxfail") and report.outcome == "skipped"
            self.of[name] = "xfailed" if expected else report.outcome

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.of[report.nodeid] = "not collected"


def count(owner: type, method: str, name: str, steps: Counter[str]) -> None:
    original = getattr(owner, method)

    def counted(self, *args, **kwargs):
        done = original(self, *args, **kwargs)
        steps[name] += 1
        return done

    setattr(owner, method, counted)


def main() -> None:
    report, package, *rest = sys.argv[1:]
    files, arguments = (rest[: rest.index("--")], rest[rest.index("--") + 1 :]) if "--" in rest else (rest, [])
    steps: Counter[str] = Counter()
    count(thinc.optimizers.Optimizer, "__call__", "thinc", steps)  # what `super` finds

    import fastopt.functional
    import fastopt.thinc

    count(fastopt.functional.Bound, "step", "fastopt", steps)
    for name in NAMES:
        for module in (thinc.optimizers, thinc.api):
            setattr(module, name, getattr(fastopt.thinc, name))
        if name != "Optimizer":
            thinc.config.registry.optimizers.register(f"{name}.v1", func=getattr(fastopt.thinc, name))
    if importlib.util.find_spec("mock") is None:  # some files import the package of this name
        sys.modules["mock"] = unittest.mock
    folder = Path(importlib.util.find_spec(package).origin).parent / "tests"
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", *arguments, *(str(folder / file) for file in files)],
                plugins=[outcomes])  # fmt: skip
    Path(report).write_text(json.dumps({"outcomes": outcomes.of, "steps": steps}), encoding="utf-8")


if __name__ == "__main__":
    main()
