"""A plugin of pytest for SciPy's own tests: methods that they ask for by name become fastopt's.

    python -m pytest -p clients.scipy_host .../scipy/optimize/tests/test_optimize.py

Where a test asks `minimize` for BFGS, L-BFGS-B or CG, it gets `METHOD`, with BFGS's own default of `gtol`. With
``--steps FILE`` the outcome of each test is written there, and how many steps fastopt took in it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import scipy.optimize as optimize
from scipy.optimize import _dual_annealing, _minimize

import fastopt.scipy
from fastopt.optimizer import Optimizer

REPLACED = ("bfgs", "l-bfgs-b", "cg")


def falling(t: int) -> float:
    """A learning rate that falls from 0.1 to 1e-4 within 3,000 steps."""
    return 0.1 * 1e-3 ** min(t / 3000, 1.0)


METHOD = fastopt.scipy.Adam(lr=falling, betas=(0.9, 0.99))
STEPS = {"all": 0, "before": 0}
SEEN: dict[str, list] = {}
stock = _minimize.minimize


@functools.wraps(stock)
def minimize(fun, x0, args=(), method=None, *more, **named):
    if isinstance(method, str) and method.lower() in REPLACED:
        method = METHOD
        named["options"] = {"maxiter": 5000, "gtol": named.get("tol") or 1e-5, **(named.get("options") or {})}
    return stock(fun, x0, args, method, *more, **named)


def pytest_addoption(parser):
    parser.addoption("--steps", help="a file to write outcome and steps of each test to")


def pytest_configure(config):
    optimize.minimize = _minimize.minimize = _dual_annealing.minimize = minimize
    step = Optimizer.step

    def counted(self, *args, **kwargs):
        done = step(self, *args, **kwargs)
        STEPS["all"] += 1
        return done

    Optimizer.step = counted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        name = item.nodeid.rpartition("/")[2]
        SEEN[name] = [report.outcome, STEPS["all"] - STEPS["before"]]
    STEPS["before"] = STEPS["all"]
    return report


def pytest_sessionfinish(session):
    if file := session.config.getoption("--steps"):
        Path(file).write_text(json.dumps(SEEN))
