"""Run PyTorch's own optimizer tests on fastopt's classes, and count what passes, test by test.

    python upstream.py [--stock] [--not-differentiable] PATH/TO/pytorch/test/test_optim.py [pytest arguments]

The tests are not part of torch's wheel: they come from a checkout of PyTorch's sources, at the tag of the release that
is installed (`test/test_optim.py`, and `test/optim/` beside it, which it imports). What they walk is in the wheel:
`optim_db`, one entry an optimizer. Before the tests are imported, the classes there, and those of the same names in
`torch.optim`, are replaced by fastopt's; entries that fastopt has no class for are taken out; and the only device is
the CPU.

--stock                 leave PyTorch's classes: what fails then fails for another reason than fastopt
--not-differentiable    leave out the inputs with differentiable=True, which fastopt refuses: most tests walk all inputs
                        of an optimizer and stop at the first that raises

It needs pytest and expecttest. Without pytest arguments tracebacks are off; `--tb=short -k test_errors` and the like
follow the path. The exit status is pytest's.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from facts import with_convention

NAMES = with_convention("torch")
OUTCOMES = ("passed", "failed", "skipped")


class Table:
    """A pytest plugin: outcomes counted under the name that a test has in its source."""

    def __init__(self, path: Path) -> None:
        sources = [path, *path.parent.glob("optim/test_*.py")]
        names = {name for source in sources for name in re.findall(r"def (test_\w+)", source.read_text())}
        self.names = sorted(names, key=len, reverse=True)
        self.rows: dict[str, Counter[str]] = defaultdict(Counter)
        self.failed: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return  # of setup and teardown only what went wrong, or was skipped there
        full = report.nodeid.rpartition("::")[2]
        # PyTorch appends parameters, the optimizer's name, the device and the dtype to the name in the source.
        name = next((name for name in self.names if full.startswith(name)), full)
        self.rows[name][report.outcome] += 1
        if report.failed:
            self.failed[name].update(optimizer for optimizer in NAMES if optimizer in full.split("_"))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write = terminalreporter.write_line
        width = max(map(len, self.rows), default=0)
        write(f"\n{'test':{width}}  {'  '.join(OUTCOMES)}  failed for")
        total: Counter[str] = Counter()
        for name, row in sorted(self.rows.items()):
            counts = "  ".join(f"{row[outcome]:{len(outcome)}}" for outcome in OUTCOMES)
            write(f"{name:{width}}  {counts}  {', '.join(sorted(self.failed[name]))}".rstrip())
            total += row
        write(f"{'total':{width}}  {'  '.join(f'{total[outcome]:{len(outcome)}}' for outcome in OUTCOMES)}")


def prepare(stock: bool, differentiable: bool) -> None:
    """Shorten `optim_db` to the optimizers that both have, and put fastopt's classes where the tests look for them."""
    import torch
    from torch.testing._internal.common_optimizers import optim_db

    # In place: the tests import the list itself.
    optim_db[:] = [info for info in optim_db if info.name in NAMES]
    for info in optim_db:
        if not differentiable:
            info.supported_impls = tuple(impl for impl in info.supported_impls if impl != "differentiable")
    if stock:
        return
    import fastopt.torch  # while torch.optim still has the classes that these derive from

    for info in optim_db:
        info.optim_cls = getattr(fastopt.torch, info.name)
    for name in NAMES:
        setattr(torch.optim, name, getattr(fastopt.torch, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--not-differentiable", action="store_true")
    parser.add_argument("path", type=Path)
    options, rest = parser.parse_known_args()
    path = options.path.resolve()

    os.environ["PYTORCH_TESTING_DEVICE_ONLY_FOR"] = "cpu"  # read as torch's test library is imported
    import pytest

    prepare(options.stock, not options.not_differentiable)
    sys.path.insert(0, str(path.parent))  # for `import optim.test_lrscheduler` in there
    quiet = ["-q", "-p", "no:cacheprovider", f"--rootdir={path.parent}", "-W", "ignore::pytest.PytestWarning"]
    return pytest.main([*quiet, *(rest or ["--tb=no", "-rN"]), str(path)], plugins=[Table(path)])


if __name__ == "__main__":
    sys.exit(main())
