"""The tests of bits on the builds of several compilers, and the results of these builds compared to the bit.

    python tests/proof/compilers.py gcc clang-14 aarch64

Each builds a copy of the sources in a folder of its own, by the Cython, setuptools and NumPy of this interpreter, runs
the tests there, and computes a corpus of results (corpus.py), which has to be that of the first build. "aarch64" is a
cross build that runs in an emulator (aarch64.py). The exit status is 1 if anything differs or fails, and 2 if something
could not be run, which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

import aarch64
from aarch64 import NotHere

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ("test_bits.py", "proof/test_metamorphic.py")
MADE = shutil.ignore_patterns(".*", "__pycache__", "*.so", "*.egg-info", "build", "dist")


class Build(NamedTuple):
    """A compiler, and the interpreter that its build is for."""

    cc: str
    python: list[str]
    env: dict[str, str]

    def run(self, folder: pathlib.Path, *arguments: str, output=None) -> None:
        """Run Python on the build in `folder`, or on its way to be one; raises if that fails."""
        path = os.pathsep.join([str(folder), self.env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        # clang's OpenMP has idle threads spin for 0.2 s: the tests, with more threads than cores, would take for ever.
        env = {"OMP_WAIT_POLICY": "passive", **os.environ, "CC": self.cc, "LDSHARED": f"{self.cc} -shared",
               **self.env, "PYTHONPATH": path}  # fmt: skip
        cwd = folder if arguments[0] == "setup.py" else folder / "tests"
        subprocess.run([*self.python, *arguments], cwd=cwd, env=env, stdout=output, check=True)


def build_of(name: str, folder: pathlib.Path) -> Build:
    """What a name on the command line stands for."""
    if name == "aarch64":
        return Build(aarch64.COMPILER, *aarch64.prepare(folder / "machine"))
    if shutil.which(shlex.split(name)[0]) is None:
        raise NotHere(f"there is no {name}")
    try:
        import Cython  # noqa: F401
        import setuptools  # noqa: F401
    except ImportError as error:
        raise NotHere(f"{error.name} is needed to build: pip install cython setuptools") from error
    return Build(name, [sys.executable], {})


def check_compiler(build: Build, folder: pathlib.Path) -> None:
    """Raise unless this very compiler made every module: nothing else may have been compared."""
    version = subprocess.run([*shlex.split(build.cc), "--version"], capture_output=True, text=True, check=True).stdout
    name, number = ("clang version" if "clang" in version else "GCC"), re.search(r"\d+\.\d+\.\d+", version)[0]
    for module in folder.glob("fastopt/**/*.so"):
        if not re.search(rf"{name}[^\0]*{re.escape(number)}".encode(), module.read_bytes()):
            raise AssertionError(f"{module} was not made by {build.cc}")


def examine(name: str, folder: pathlib.Path, more: list[str]) -> dict:
    """Build, test, and compute the corpus."""
    build = build_of(name, folder)
    print(f"== {name}: build", flush=True)
    sources = folder / "sources"
    shutil.copytree(ROOT, sources, ignore=MADE)
    build.run(sources, "setup.py", "-q", "build_ext", "--inplace")
    check_compiler(build, sources)
    print(f"== {name}: tests", flush=True)
    build.run(sources, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more, *TESTS)
    print(f"== {name}: corpus", flush=True)
    with open(folder / "corpus.json", "w") as file:
        build.run(sources, "proof/corpus.py", output=file)
    corpus = json.loads((folder / "corpus.json").read_text())
    if not corpus["about"]["fastopt"].startswith(str(sources)):
        raise AssertionError(f"another fastopt was run: {corpus['about']['fastopt']}")
    print(f"== {name}: {corpus['about']}", flush=True)
    return corpus["results"]


def compare(name: str, got: dict, first: str, want: dict) -> bool:
    """Say how two corpora compare; whether they are equal where their scalars are, which come from the C library."""
    assert got.keys() == want.keys()
    others = [what for what in want if got[what][0] != want[what][0]]
    wrong = [what for what in want if got[what][0] == want[what][0] and got[what][1] != want[what][1]]
    print(f"== {name} and {first}: {len(want) - len(others):,} results compared, {len(wrong):,} differ"
          + (f"; {len(others):,} not compared, since pow or cos gave other scalars" if others else ""))  # fmt: skip
    for what in wrong[:10]:
        print(f"   {what}")
    return not wrong and len(others) < len(want) // 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("builds", nargs="+", metavar="COMPILER", help="a command such as gcc or clang, or aarch64")
    parser.add_argument("--folder", type=pathlib.Path, help="where to build, and leave it (default: temporary)")
    parser.add_argument("-k", metavar="EXPRESSION", help="run only the tests that match, as pytest's -k")
    parser.add_argument("--long", action="store_true", help="the long run of the tests")
    args = parser.parse_args()
    more = [*(["-k", args.k] if args.k else []), *(["--long"] if args.long else [])]
    with tempfile.TemporaryDirectory() as temporary:
        place = (args.folder or pathlib.Path(temporary)).resolve()
        corpora, failed, missing = {}, [], []
        for name in args.builds:
            folder = place / name.replace("/", "-")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder / "sources", ignore_errors=True)
            try:
                corpora[name] = examine(name, folder, more)
            except NotHere as error:
                missing.append(f"{name}: {error}")
            except (subprocess.CalledProcessError, AssertionError) as error:
                failed.append(f"{name}: {error}")
        for name in list(corpora)[1:]:
            first = next(iter(corpora))
            if not compare(name, corpora[name], first, corpora[first]):
                failed.append(f"{name}: the results are not those of {first}")
    for word, builds in (("not run", missing), ("FAILED", failed)):
        for line in builds:
            print(f"== {word}: {line}")
    return 1 if failed else 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
