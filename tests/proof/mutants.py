"""Break the library in one place at a time, and see whether the tests notice.

    python tests/proof/mutants.py                  every mutant of mutants_list.py
    python tests/proof/mutants.py --only flush     those that --list shows with this pattern in them
    python tests/proof/mutants.py --list

The sources are copied to a temporary folder and built there; needs Cython, setuptools, a C compiler and what the tests
need, PyTorch among it. A mutant is killed when pytest reports a failure, dies by a signal, or does not come to an end.
Whatever else happens (a text that does not occur exactly once, a build that fails, tests that cannot be collected or
that fail without any mutant) is an error of the list, and no kill.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from mutants_list import MUTANTS, Mutant
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "results", "*.so", "*.egg-info")
# One instruction-set level is enough, and without optimization it is built the faster: the bits are the same.
FOR_SPEED = (
    ("setup.py", "class BuildExt(build_ext):", 'LEVELS = {"generic": ([], [])}\n\n\nclass BuildExt(build_ext):'),
    ("setup.py", '"-O3"', '"-O0"'),
)
COMPILED = (".pyx", ".pxi", ".pxd", ".c", ".h")
TIMEOUT = 300  # seconds for the tests of one mutant


class ListError(Exception):
    """What is wrong with the list, not with the tests."""


class Tree:
    """A copy of the sources, built in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        for file, old, new in FOR_SPEED:
            self.replace(file, old, new)
        self.build()

    def replace(self, file: str, old: str, new: str) -> str:
        """Replace a text that occurs once; returns the file as it was."""
        before = (self.folder / file).read_text()
        if before.count(old) != 1:
            raise ListError(f"occurs {before.count(old)} times in {file}: {old!r}")
        (self.folder / file).write_text(before.replace(old, new))
        return before

    def build(self) -> None:
        """Compile what is older than its sources; setuptools and Cython go by the times of the files."""
        self.stale = False  # whether an extension module is not what the sources say
        done = self.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], self.folder)
        if done.returncode:
            raise ListError("the build fails:\n" + done.stdout[-2000:])

    def test(self, selection: str) -> str | None:
        """The first test of the selection that fails, or what else says that they do; None if they pass."""
        options = ["-q", "-x", "-p", "no:cacheprovider", "--tb=no", "-rfE", "--hypothesis-seed=0"]
        arguments = [sys.executable, "-m", "pytest", *options, *shlex.split(selection)]
        try:
            done = self.run(arguments, self.folder / "tests", TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"no end after {TIMEOUT} s"
        if done.returncode == 0:
            return None
        if done.returncode < 0:
            return f"death by {signal.Signals(-done.returncode).name}"
        if done.returncode > 1:
            raise ListError(f"pytest {selection} could not run:\n{done.stdout[-2000:]}")
        said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return said[0].split(" ", 1)[1].split(" - ")[0]

    def run(
        self, arguments: list[str], folder: Path, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over this copy; whatever it has started ends with it."""
        environ = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            arguments, cwd=folder, env=environ, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                out, _ = process.communicate(timeout=timeout)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(arguments, process.returncode, out)

    def judge(self, mutant: Mutant) -> str | None:
        """Which of its tests kills a mutant, if any."""
        before = self.replace(mutant.file, mutant.old, mutant.new)
        self.stale = self.stale or mutant.file.endswith(COMPILED)
        try:
            if self.stale:
                self.build()
            return self.test(mutant.tests)
        finally:
            (self.folder / mutant.file).write_text(before)
            self.stale = mutant.file.endswith(COMPILED)


def failing(tree: Tree, mutants: list[Mutant]) -> dict[str, ListError]:
    """The selections of tests that do not pass without a mutant; raises unless it is the copy that is tested."""
    code = "import fastopt, fastopt.engine; print(fastopt.__file__, fastopt.engine.__file__)"
    said = tree.run([sys.executable, "-c", code], tree.folder / "tests").stdout
    if said.count(str(tree.folder)) != 2:
        raise ListError(f"another fastopt would be tested: {said}")
    wrong = {}
    for selection in dict.fromkeys(mutant.tests for mutant in mutants):
        try:
            if failed := tree.test(selection):
                wrong[selection] = ListError(f"pytest {selection} fails without a mutant: {failed}")
        except ListError as error:
            wrong[selection] = error
    return wrong


@contextlib.contextmanager
def trees(n: int) -> Iterator[list[Tree]]:
    """So many copies, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="fastopt-mutants-") as folder:
        with ThreadPoolExecutor(n) as pool:
            yield list(pool.map(Tree, [Path(folder).resolve() / str(k) for k in range(n)]))


def judge_all(mutants: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, str | None | ListError]]:
    """Every mutant with what killed it, None if nothing did, or what is wrong with its entry in the list."""
    with trees(jobs) as copies:
        wrong = failing(copies[0], mutants)
        free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in copies:
            free.put(tree)

        def judge(mutant: Mutant) -> str | None | ListError:
            if mutant.tests in wrong:
                return wrong[mutant.tests]
            tree = free.get()
            try:
                return tree.judge(mutant)
            except ListError as error:
                return error
            finally:
                free.put(tree)

        pool = ThreadPoolExecutor(jobs)
        try:
            running = {pool.submit(judge, mutant): mutant for mutant in mutants}
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    """Judge the mutants that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="mutants that --list shows with this in them")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at a time (default 1)")
    parser.add_argument("--list", action="store_true", help="print the mutants and judge none")
    args = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if re.search(args.only, f"{mutant.file}: {mutant.name}")]
    if len({mutant.name for mutant in MUTANTS}) < len(MUTANTS):
        parser.error("two mutants have one name")
    if not mutants:
        parser.error(f"no mutant is of the pattern {args.only!r}")
    if args.list:
        for mutant in mutants:
            print(f"{mutant.file}: {mutant.name}")
        return 0

    begin = time.monotonic()
    count = {"killed": 0, "SURVIVED": 0, "ERROR": 0}
    try:
        for mutant, result in tqdm(judge_all(mutants, args.jobs), total=len(mutants), disable=None):
            kind = "ERROR" if isinstance(result, ListError) else "killed" if result else "SURVIVED"
            count[kind] += 1
            tqdm.write(f"{kind:8}  {mutant.file}: {mutant.name}: {result or f'by none of {mutant.tests}'}")
            sys.stdout.flush()
    except ListError as error:
        sys.exit(f"{error}")
    minutes = (time.monotonic() - begin) / 60
    print(f"{len(mutants)} mutants in {minutes:.1f} minutes: {count['killed']} killed, {count['SURVIVED']} survived, "
          f"{count['ERROR']} errors of the list")  # fmt: skip
    return int(count["killed"] < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
