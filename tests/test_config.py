"""`fastopt.show_config`: what an installation says of itself."""

import ctypes
import doctest
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastopt
from fastopt import _config, _openmp, cli, engine

OPENMP = engine.info()["openmp"]
LIBRARY = engine.info().get("openmp_library", "")
needs_libgomp = pytest.mark.skipif(
    sys.platform != "linux" or "libgomp" not in LIBRARY, reason="not GNU's OpenMP on Linux"
)


def run(code, *arguments, env=None):
    """What a new process prints."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dicts_are_what_the_engine_says_and_what_is_around_it(capsys):
    config = fastopt.show_config("dicts")
    assert capsys.readouterr().out == ""
    for key, value in engine.info().items():
        assert config[key] == value
    assert config["version"] == fastopt.__version__
    assert config["numpy"] == np.__version__
    assert config["python"] == f"{platform.python_implementation()} {platform.python_version()}"
    assert config["platform"].startswith(f"{platform.system()}-{platform.release()}-{platform.machine()}")
    assert config["cpus"] == os.cpu_count()


def test_the_command_shows_the_same(capsys):
    assert fastopt.show_config() is None
    shown = capsys.readouterr().out
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fastopt.show_config("dicts")


def test_every_fact_is_shown_once_in_words_and_in_a_column(capsys):
    config = fastopt.show_config("dicts")
    labels = {key: label for section in _config._LABELS.values() for key, label in section.items()}
    assert set(config) == set(labels)
    fastopt.show_config()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [re.split("  +", line.strip())[0] for line in lines] == [labels[key] for key in config]
    assert len({re.match(r"  \S+( \S+)*  +", line).end() for line in lines}) == 1
    assert all(not line.endswith(" ") for line in lines)


def test_a_fact_without_words_is_shown_at_the_end():
    assert _config.as_text({"version": "1", "new_fact": []}).splitlines()[-1].split("  ")[1:2] == ["new fact"]


@pytest.mark.parametrize("mode", ["text", "", None, 1])
def test_another_mode_is_an_error(mode, capsys):
    with pytest.raises(fastopt.HyperparameterError, match=f"mode.*'stdout' or 'dicts', not {mode!r}"):
        fastopt.show_config(mode)
    assert capsys.readouterr().out == ""


def test_what_it_was_built_with():
    config = fastopt.show_config("dicts")
    assert re.search(r"(GCC|[Cc]lang|MSVC) \d", config["compiler"])
    assert re.match(r"3\.\d+", config["cython"])
    assert int(config["numpy_at_build"].split(".")[0]) >= 2
    exact = "/fp:precise" if config["compiler"].startswith("MSVC") else "-ffp-contract=off"
    assert exact in config["compiler_flags"].split()
    assert ("openmp" in config["compiler_flags"]) == config["openmp"]


def test_the_example_is_true():
    assert doctest.testmod(_config) == (0, 3)


def test_the_openmp_library_in_use_is_one_of_those_loaded():
    config = fastopt.show_config("dicts")
    if OPENMP and sys.platform == "linux":
        assert config["openmp_library"] in config["openmp_runtimes"]
    if not OPENMP:
        assert config["openmp_library"] == ""


# --- Which of several OpenMP libraries it is


@needs_libgomp
def test_another_library_that_is_not_used_does_not_keep_openmp_from_being_calmed(tmp_path):
    kernels = importlib.import_module(f"fastopt.kernels.{engine.info()['isa'].replace('-', '_')}")
    other = shutil.copy(kernels.__file__, tmp_path / "libgomp-other.so")
    said = run(
        """
        import ctypes, os, sys
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
            os.environ.pop(name, None)
        ctypes.CDLL(sys.argv[1])
        import fastopt
        config = fastopt.show_config("dicts")
        print(config["openmp_library"])
        print(config["wait_policy"])
        """,
        other,
    )
    library, policy = said.splitlines()
    assert library == LIBRARY != str(other)
    assert policy.startswith("set by fastopt")


@needs_libgomp
def test_a_library_with_global_symbols_is_used_and_found_even_if_it_is_not_our_own(tmp_path):
    """As PyTorch's is, where it was imported first."""
    other = shutil.copy(LIBRARY, tmp_path / "libgomp-other.so.1")
    said = run(
        """
        import ctypes, os, sys
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
            os.environ.pop(name, None)
        ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
        import fastopt
        config = fastopt.show_config("dicts")
        print(config["openmp_library"])
        print(config["wait_policy"])
        """,
        other,
    )
    library, policy = said.splitlines()
    assert library == str(other)
    assert policy == "without effect: libgomp-other.so.1 was loaded before fastopt"


@needs_libgomp
def test_the_library_is_the_one_whose_threads_are_counted():
    """What it is told by its own interface holds for a step."""
    library = ctypes.CDLL(LIBRARY)
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    try:
        assert engine.info()["threads"] == 1
    finally:
        library.omp_set_num_threads(before)


def test_it_starts_no_process():
    """`platform.platform` would: ``uname -p``, whichever is first on the path."""
    said = run(
        """
        import sys
        import fastopt
        events = []
        sys.addaudithook(lambda event, _: events.append(event))
        fastopt.show_config("dicts")
        print([event for event in events if event.startswith(("subprocess.", "os.exec", "os.fork", "os.posix_spawn"))])
        """
    )
    assert said == "[]\n"


# --- How many threads, where OpenMP binds them to CPUs

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
A, B = CPUS[0], CPUS[-1]
ALL = len(CPUS)
several_cpus = pytest.mark.skipif(ALL < 2, reason="one CPU cannot be told from all")
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
BOUND = [
    ("OMP_PROC_BIND", "true", ALL), ("OMP_PROC_BIND", "close", ALL), ("OMP_PROC_BIND", "spread", ALL),
    ("OMP_PLACES", "threads", ALL), ("OMP_PLACES", "cores", ALL), ("OMP_PLACES", f"{{{A}}},{{{B}}}", 2),
    ("GOMP_CPU_AFFINITY", f"{A} {B}", 2),
    # The whole team in one place, or no more than one CPU in all of them.
    ("OMP_PROC_BIND", "master", 1), ("OMP_PLACES", f"{{{B}}}", 1), ("OMP_PLACES", f"{{{A}}},{{{A}}}", 1),
    ("GOMP_CPU_AFFINITY", f"{B}", 1),
]  # fmt: skip


def threads(before="", **variables):
    """What a new process with these variables says, after some first lines: threads and why, then those of a thread."""
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", *BINDING)}
    said = run(
        before + """
import threading
from fastopt import engine
said = []
def look():
    said.append(engine.info())
look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
for info in said:
    print(info["threads"], info["threads_reason"])
""",
        env={**clean, **variables},
    )  # fmt: skip
    first, second = said.splitlines()
    assert first == second
    number, reason = first.split(maxsplit=1)
    return int(number), reason


def granted(cpus):
    """The threads that so many CPUs give under the quota of the control group."""
    return min(cpus, _openmp.cpu_quota() or cpus)


@needs_libgomp
@several_cpus
@pytest.mark.parametrize(("name", "value", "cpus"), BOUND)
def test_threads_that_are_bound_have_the_cpus_of_their_places(name, value, cpus):
    """The calling thread's own mask has no more than its place once the library is loaded."""
    number, reason = threads(**{name: value})
    assert number == granted(cpus)
    assert f"CPUs that OpenMP binds its threads to ({name}={value}) {cpus}" in reason


@needs_libgomp
@several_cpus
def test_places_without_binding_change_nothing():
    assert "binds its threads" in threads(OMP_PLACES=f"{{{A}}}")[1]
    number, reason = threads(OMP_PLACES=f"{{{A}}}", OMP_PROC_BIND="false")
    assert number == granted(ALL)
    assert reason.endswith(f"CPUs this process may use {ALL}") or "quota" in reason


@needs_libgomp
@several_cpus
def test_places_are_no_more_than_the_process_was_given():
    number, reason = threads(f"import os; os.sched_setaffinity(0, {{{B}}})", OMP_PROC_BIND="true")
    assert number == 1
    assert "CPUs that OpenMP binds its threads to (OMP_PROC_BIND=true) 1" in reason


@needs_libgomp
@several_cpus
@pytest.mark.parametrize(("value", "cpus"), [("true", ALL), (f"{{{A}}}", 1)])
def test_threads_that_are_bound_since_torch_was_imported(value, cpus):
    pytest.importorskip("torch")
    name = "OMP_PROC_BIND" if value == "true" else "OMP_PLACES"
    number, reason = threads("import torch", **{name: value})
    assert number == granted(cpus)
    assert f"({name}={value}) {cpus}" in reason


@needs_libgomp
@several_cpus
def test_a_step_in_a_thread_uses_the_places_that_were_counted():
    said = run(
        """
        import os, sys, threading
        import numpy as np
        import fastopt
        from fastopt import engine
        engine.set_serial_blocks(0)
        w, g = np.ones(2_000_000, np.float32), np.ones(2_000_000, np.float32)
        opt = fastopt.SGD(w, lr=0.5)
        def work():
            before = set(os.listdir("/proc/self/task"))
            opt.step(g)
            team = set(os.listdir("/proc/self/task")) - before
            print([sorted(os.sched_getaffinity(int(task))) for task in team], (w == 0.5).all())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        """,
        env={**{k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", *BINDING)},
             "OMP_PLACES": f"{{{A}}},{{{B}}}"},
    )  # fmt: skip
    assert said == (f"{[[B]]} True\n" if granted(2) == 2 else "[] True\n")


@needs_libgomp
def test_a_limit_of_openmp_is_heard():
    number, reason = threads(OMP_THREAD_LIMIT="1")
    assert number == 1 and "OpenMP's limit 1" in reason
