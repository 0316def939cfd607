"""The adapters beside their libraries, end to end: the programs in clients/, each in a process of its own.

``make bench ARGS="-k clients"`` runs them alone. They take one thread; with more, this suite is skipped. A program
interleaves the library's own optimizer and fastopt's. What pytest-benchmark reports is the time of the whole program.
"""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import RESULTS

PROGRAMS = Path(__file__).parent / "clients"
LIBRARIES = ("thinc", "sklearn", "scipy", "keras")


@pytest.mark.parametrize("library", LIBRARIES)
def test_clients(benchmark, threads, library, tmp_path):
    if threads != 1:
        pytest.skip("measured on one thread")
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    found = tmp_path / "rows.json"
    command = [sys.executable, PROGRAMS / f"{library}_times.py", "--json", found]
    benchmark.pedantic(partial(subprocess.run, command, check=True), rounds=1)
    rows = json.loads(found.read_text(encoding="utf-8"))
    assert rows and all(row["fastopt_s"] > 0 and row["stock_s"] > 0 for row in rows)
    benchmark.extra_info["clients"] = rows
    for row in rows:
        times = {"fastopt": {"median": row["fastopt_s"]}, "library": {"median": row["stock_s"]}}
        RESULTS.append((f"clients {row['host']}: {row['what']}", times))
