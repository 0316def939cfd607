"""Run fastopt under the tools that see wrong memory accesses, undefined behaviour and data races; fail at any report.

    python run.py [--folder FOLDER] [--pytest ARGUMENTS] [address] [valgrind] [thread]

- address: the test suite, with the extension modules compiled for gcc's AddressSanitizer and
  UndefinedBehaviorSanitizer.
- valgrind: the modules as they are installed, at the levels that Valgrind can run; every rule on 1 to 70 elements.
- thread: the modules compiled by clang for ThreadSanitizer, with LLVM's OpenMP, whose archer tells it what a team is;
  every rule on teams, and Python threads with one optimizer and with several.

Before each a fault is planted, which has to be reported. Needs Linux on x86-64, gcc, clang and libomp (14 or newer),
Valgrind; and in this Python what builds fastopt and tests it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS, ROOT = HERE.parent, HERE.parents[1]

# What of the test suite is not run under AddressSanitizer, and why.
PRELOADS = "loads a library before all others, where AddressSanitizer has to be"
LEFT_OUT = {
    "test_engine.py::test_a_step_enters_one_region_however_many_arrays_and_none_if_small": PRELOADS,
    "test_engine.py::test_where_a_team_comes_too_late_steps_are_taken_alone_for_a_while_with_the_same_bits": PRELOADS,
    "test_engine.py::test_the_thread_count_follows_the_environment_and_threadpoolctl_at_every_step": PRELOADS,
    "proof/test_no_memory.py::test_calls_without_memory_change_nothing_and_work_when_repeated[libc]": PRELOADS,
    "proof/test_no_memory.py::test_a_call_that_writes_before_it_has_its_memory_is_found[libc]": PRELOADS,
    "proof/test_killed_saves.py": "watches and forges system calls, and AddressSanitizer makes some of its own",
    "proof/test_surface.py::test_nothing_runs_when_a_module_is_loaded": "AddressSanitizer adds what runs then",
    "test_engine.py::test_forty_thousand_arrays_are_cheap": "takes longer than it may",
    "proof/test_large.py::test_a_norm_of_more_than_2_to_the_31_elements": "the shadow takes an eighth as much memory",
    "test_foreign.py::test_an_optimizer_in_a_worker_of_joblib": "joblib's workers take longer than they may",
    "test_vectorized.py": "reads machine code, which is another here",
    "test_bench_tools.py": "no code of the extension modules",
    "test_bench_steady.py": "no code of the extension modules",
    "test_examples.py": "whole programs, which call nothing that the other tests do not",
    "test_compare.py": "likewise",
    "test_compare_data.py": "likewise",
    "test_compare_honest.py": "likewise",
    "test_compare_pictures.py": "likewise",
    "test_compare_stopped.py": "likewise",
    "test_docs.py": "likewise",
}


class Failure(Exception):
    """A report, a planted fault without one, or a tool that did not work."""


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=TESTS, env={**os.environ, **environ})


def output(done: subprocess.CompletedProcess[str]) -> str:
    """What a program printed that had to succeed."""
    if done.returncode:
        raise Failure(f"{' '.join(map(str, done.args))} failed ({done.returncode})\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def program(*names: str) -> str:
    """The first of these programs that is installed."""
    found = [path for path in map(shutil.which, names) if path]
    if not found:
        raise Failure(f"not installed: {' or '.join(names)}")
    return found[0]


def part(compiler: str, name: str) -> str:
    """The path of a library that comes with a compiler."""
    said = Path(output(run(compiler, f"-print-file-name={name}")))
    for path in (said, Path(compiler).resolve().parents[1] / "lib" / name):
        if path.is_file():
            return str(path.resolve())
    raise Failure(f"{compiler} comes without {name}")


def build(folder: Path, compiler: str, *flags: str) -> str:
    """Build the package with these flags, after all others; the place that Python is to find it in."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapper = folder / "cc"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {" ".join(flags)}\n')
    wrapper.chmod(0o755)
    output(subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder / "build")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CC": str(wrapper)},
    ))  # fmt: skip
    return str(next((folder / "build").glob("lib*")))


def python_path(*places: str) -> str:
    return os.pathsep.join([*places, str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def reports(log: Path) -> list[str]:
    """What was written to log.<process>, by any process; and nothing is left there."""
    texts = []
    for path in sorted(log.parent.glob(log.name + ".*")):
        texts.append(path.read_text(errors="replace"))
        path.unlink()
    return texts


def expect(name: str, sign: str, text: str) -> None:
    """Raise unless a planted fault was reported, in a function of fastopt's."""
    if not re.search(sign, text) or "fastopt" not in text:
        raise Failure(f"the planted fault {name!r} was not reported\n{text}")


def address(folder: Path, arguments: Sequence[str]) -> str:
    """The test suite under AddressSanitizer and UndefinedBehaviorSanitizer."""
    gcc, log = program("gcc"), folder / "report"
    # Python's flags make signed integers wrap, which would hide what overflows.
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", "-fsanitize=address,undefined",
             "-fno-sanitize-recover=undefined"]  # fmt: skip
    environ = {
        "PYTHONPATH": python_path(build(folder, gcc, *flags)),
        "LD_PRELOAD": f"{part(gcc, 'libasan.so')} {part(gcc, 'libstdc++.so')}",  # the second's exceptions are watched
        "PYTHONMALLOC": "malloc",  # each object in a block of its own
        # Python never frees all; some tests expect a fault or want more memory than there is.
        "ASAN_OPTIONS": f"detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1:log_path={log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={log}",
    }
    for name, sign in (("overrun", "heap-buffer-overflow"), ("overflow", "signed integer overflow")):
        done = run(sys.executable, str(HERE / "plants.py"), name, **environ)
        expect(name, sign, done.stderr + "".join(reports(log)))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    command += [*arguments, ".", "--ignore=peers", "--ignore=pytorch", "--ignore=frameworks", "--ignore=clients"]
    command += [f"--deselect=tests/{test}" for test in LEFT_OUT]
    done = run(*command, **environ)
    found = reports(log)
    if done.returncode or found:
        raise Failure("\n".join([done.stdout, done.stderr, *found]))
    tests = re.findall(r"(\d+ passed.*) in ", done.stdout)[-1]
    left_out = "".join(f"\n  left out: {test}: {why}" for test, why in LEFT_OUT.items())
    return f"ASan+UBSan: {tests}, 0 reports; planted faults caught{left_out}"


def valgrind(folder: Path, arguments: Sequence[str]) -> str:
    """Every rule under Valgrind, in the modules as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    library, xml = folder / "checks.so", folder / "valgrind.xml"
    output(run(program("cc", "gcc"), "-O1", "-shared", "-fPIC", str(HERE / "checks.c"), "-o", str(library)))
    environ = {"PYTHONPATH": python_path(), "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    # Strict: a vector that reaches past the end by a part of itself is a fault, too.
    command = [program("valgrind"), "-q", "--partial-loads-ok=no", "--num-callers=30", "--xml=yes", f"--xml-file={xml}",
               sys.executable]  # fmt: skip

    def ours() -> list[str]:
        """The errors with a function of fastopt's, or in what it wrote. Python itself has others, and frees not all."""
        errors = [e for e in ElementTree.parse(xml).iter("error") if not e.findtext("kind", "").startswith("Leak")]
        texts = [re.sub(r"\s*\n\s*", " ", "".join(e.itertext())) for e in errors]
        return [text for text in texts if re.search(r"/fastopt/\S*\.so |first_undefined", text)]

    for name, sign in (("overrun", "InvalidRead"), ("undefined", "UninitCondition")):
        run(*command, str(HERE / "plants.py"), name, **environ)
        expect(name, sign, "\n".join(ours()))
    done = output(run(*command, str(HERE / "steps.py"), str(library), **environ))
    if found := ours():
        raise Failure("\n".join(found))
    return f"Valgrind: {done}, 0 errors; planted faults caught"


def thread(folder: Path, arguments: Sequence[str]) -> str:
    """Teams and threads under ThreadSanitizer."""
    clang, log = program("clang", *(f"clang-{n}" for n in range(25, 13, -1))), folder / "report"
    options = f"log_path={log}:ignore_noninstrumented_modules=1"
    environ = {
        "PYTHONPATH": python_path(build(folder, clang, "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=thread")),
        "LD_PRELOAD": part(program("gcc"), "libtsan.so"),  # gcc's: clang's own cannot be preloaded
        "OMP_TOOL_LIBRARIES": part(clang, "libarcher.so"),
        "ARCHER_OPTIONS": "verbose=1",
        "TSAN_OPTIONS": options,
    }
    for name in ("race",):
        run(sys.executable, str(HERE / "plants.py"), name, **{**environ, "TSAN_OPTIONS": f"{options}:halt_on_error=1"})
        expect(name, "data race", "".join(reports(log)))
    done = output(run(sys.executable, str(HERE / "threads.py"), **environ))
    if found := reports(log):
        raise Failure("\n".join(found))
    if "Archer detected" not in done:
        raise Failure(f"ThreadSanitizer was not told of OpenMP's teams\n{done}")
    return f"TSan: {done.splitlines()[-1]}, 0 reports; planted race caught"


def main() -> None:
    checks = {f.__name__: f for f in (address, valgrind, thread)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[*checks, []], metavar="CHECK", help="all of them by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitize", help="where to build")
    parser.add_argument("--pytest", type=str.split, default=[], metavar="ARGUMENTS", help="more arguments for pytest")
    args = parser.parse_args()
    failed = False
    for name in args.checks or checks:
        try:
            print(checks[name](args.folder / name, args.pytest), flush=True)
        except Failure as failure:
            failed = True
            print(f"{name}: FAILED\n{failure}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
