"""Whatever is wrong with a call: a typed error that names it, nothing changed by a bit, and the next good step as ever.

The calls are the same at every run; ``--hypothesis-seed=N``, or ``random``, makes others.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from proof.badcalls import CALLS, EVERY_OPTION, KINDS, Kind, bad_calls, hyperparameter


@pytest.fixture(scope="module")
def chosen_seed(request):
    return str(request.config.getoption("--hypothesis-seed", None))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, where arrays are changed in place
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_call_is_refused_by_name_and_changes_nothing(kind, amount, tally, chosen_seed):
    n = amount(100, 5_000)
    done: Counter[str] = Counter()
    bad_calls([KINDS[kind]], lambda what: None, done, n, f"{kind}, {chosen_seed}")
    assert done[kind] >= n
    tally("bad calls refused", done[kind])
    tally("good steps after bad calls, equal to a twin's that saw none", n // CALLS)
    tally(f"bad calls refused: {kind}", done[kind])


def test_every_option_of_every_convention_is_checked_wherever_it_comes_from(amount, tally, chosen_seed):
    done: Counter[str] = Counter()
    for cls, convention, key in EVERY_OPTION[:: amount(30, 1)]:
        what = f"{key} of {cls.__name__}, {convention}"
        kind = Kind(what, functools.partial(hyperparameter, key=key), ((cls, convention),), {})
        bad_calls([kind], lambda what: None, done, amount(CALLS, 50), f"{what}, {chosen_seed}")
    assert len(done) == len(EVERY_OPTION[:: amount(30, 1)]) > 12
    tally("bad calls refused", sum(done.values()))
    tally("bad calls refused: every hyperparameter of every class and convention", sum(done.values()))


def test_bad_calls_of_all_kinds_one_after_another_in_a_process_that_could_crash(amount, tally, chosen_seed):
    n = amount(200, 5_000)
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-m", "proof.badcalls", str(n)]
    command += ["--seed", chosen_seed]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1800)
    lines = run.stdout.splitlines() or ["none"]
    assert run.returncode == 0, f"exit {run.returncode}; the last call: {lines[-1]}\n{run.stderr[-5000:]}"
    refused, kinds = map(int, re.findall(r"\d+", lines[-1]))
    assert refused >= n and kinds >= amount(len(KINDS) // 2, len(KINDS) - 1)
    tally("bad calls refused", refused)
    tally("bad calls refused: of all kinds, in a process of their own", refused)
