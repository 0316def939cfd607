"""What a step leaves alone and stands: the floating-point environment, forks, threads, the memory of others."""

from __future__ import annotations

import array
import ast
import ctypes
import functools
import gc
import itertools
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import fastopt
from fastopt import engine, reference
from fastopt._openmp import cpu_quota
from fastopt.errors import (
    ConcurrentStepError,
    FastoptError,
    HyperparameterError,
    LayoutError,
    OverlapError,
    ReadOnlyError,
)

OPENMP = engine.info()["openmp"]
needs_openmp = pytest.mark.skipif(not OPENMP, reason="built without OpenMP")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's own ways")


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """build(C source) -> path of a shared library; skips where there is no C compiler."""

    def compile_(source: str, *optional: str) -> str:
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "cc", "gcc", "clang"))), None)
        if compiler is None or sys.platform == "win32":
            pytest.skip("needs a C compiler")
        folder = tmp_path_factory.mktemp("c")
        (folder / "a.c").write_text(source)
        files = ["-shared", "-fPIC", str(folder / "a.c"), "-o", str(folder / "a.so"), "-ldl"]
        for flags in ([*optional], []):
            done = subprocess.run([compiler, "-O1", *flags, *files], capture_output=True, text=True)
            if done.returncode == 0:
                return str(folder / "a.so")
        pytest.skip(f"the compiler did not build a helper: {done.stderr[-300:]}")

    return compile_


def run(code: str, timeout: float = 60, **environ: str) -> str:
    """What a fresh interpreter prints; fails if it fails, or says a word on stderr."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, **environ})  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout


def problem(dtype=np.float32, n=3000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n).astype(dtype), rng.standard_normal(n).astype(dtype)


# --- The floating-point environment

FENV_SOURCE = """
#if defined(__SSE2__)
#include <xmmintrin.h>
enum { ZERO = 0x8040, UP = 0x4000, DOWN = 0x2000, CUT = 0x6000, TRAPS = 0x0680, BASE = 0x1f80, FLAGS = 0x3f };
unsigned long long get(void) { return _mm_getcsr(); }
void set(unsigned long long x) { _mm_setcsr((unsigned)x); }
unsigned long long mode(int k)
{
    return k == 0 ? BASE | ZERO : k == 1 ? BASE | UP : k == 2 ? BASE | DOWN : k == 3 ? BASE | CUT : BASE & ~TRAPS;
}
#elif defined(__aarch64__)
enum { FLAGS = 0 };
unsigned long long get(void) { unsigned long long x; __asm__ volatile("mrs %0, fpcr" : "=r"(x)); return x; }
void set(unsigned long long x) { __asm__ volatile("msr fpcr, %0" : : "r"(x) : "memory"); }
unsigned long long mode(int k)
{
    return k == 0 ? 1ull << 24 : k == 1 ? 1ull << 22 : k == 2 ? 2ull << 22 : k == 3 ? 3ull << 22 : 0;
}
#else
#error "no way to change the environment is written for this machine"
#endif
/* In every thread of OpenMP's team; if this is built without OpenMP, in the calling thread. */
void set_all(unsigned long long x, int n)
{
    #pragma omp parallel num_threads(n)
    set(x);
}
int count_all(unsigned long long x, int n)
{
    int found = 0;
    #pragma omp parallel num_threads(n) reduction(+ : found)
    found += ((get() ^ x) & ~(unsigned long long)FLAGS) == 0;
    return found;
}
"""
MODES = {"flush to zero": 0, "upward": 1, "downward": 2, "toward zero": 3, "traps": 4}


@pytest.fixture(scope="session")
def fenv(build):
    """A foreign library that changes the floating-point environment, of the threads that OpenMP keeps too."""
    library = ctypes.CDLL(build(FENV_SOURCE, "-fopenmp"))
    for name in ("get", "mode"):
        getattr(library, name).restype = ctypes.c_ulonglong
    library.set.argtypes = [ctypes.c_ulonglong]
    library.set_all.argtypes = library.count_all.argtypes = [ctypes.c_ulonglong, ctypes.c_int]
    return library


class Foreign:
    """Inside, the environment is a foreign one; afterwards it was still that one, and is put back."""

    def __init__(self, library, mode, threads=1):
        self.library, self.mode, self.threads = library, library.mode(MODES[mode]), threads

    def __enter__(self):
        self.before = self.library.get()
        self.library.set_all(self.mode, self.threads)
        self.team = self.library.count_all(self.mode, self.threads)

    def __exit__(self, *exception):
        team = self.library.count_all(self.mode, self.threads)
        self.library.set_all(self.before, self.threads)
        if exception[0] is None:
            assert team == self.team, "the step changed the environment that it was called in"


def test_the_foreign_library_does_what_it_says(fenv):
    tiny, third = np.array([1e-308 * 0.9]), np.array([1.0])
    with Foreign(fenv, "flush to zero"):
        flushed = tiny * 0.5
    with Foreign(fenv, "upward"):
        up = third / 3
    assert flushed[0] == 0 and tiny[0] * 0.5 != 0
    assert up[0] > third[0] / 3


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_the_floating_point_environment(mode, threads, fenv, nasties, same_bits):
    rng = np.random.default_rng(threads)
    for dtype, cls in itertools.product((np.float32, np.float64), (fastopt.AdamW, fastopt.SGD, fastopt.RMSprop)):
        params = [nasties.values(kind, 500, dtype, rng) for kind in ("ordinary", "nasty")]
        grads = [nasties.values(kind, 500, dtype, rng) for kind in ("ordinary", "nasty")]
        opt = cls(params, lr=0.3, weight_decay=0.7, n_threads=threads)
        twin = reference.twin(opt)
        with nasties.parallel_from(0):
            for _ in range(3):
                with Foreign(fenv, mode, threads):
                    opt.step(grads)
                twin.step(grads)
        same_bits(f"{cls.__name__} under {mode}", opt.params, twin.params)
        same_bits(f"{cls.__name__} under {mode}: state", [s for e in opt.state for s in nasties.slots(e).values()],
                  [s for e in twin.state for s in e.values()])  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("mode", MODES)
def test_norms_do_not_depend_on_the_floating_point_environment(mode, threads, fenv, nasties, same_bits):
    """The squares of some are subnormal; NaN and infinities raise what would be trapped."""
    rng = np.random.default_rng(threads)
    for dtype, ord in itertools.product((np.float32, np.float64), (2, np.inf)):
        scaled = [dtype(1), np.finfo(dtype).smallest_subnormal * 7, dtype(1e-30) if dtype is np.float32 else 1e-160]
        lists = [[(rng.standard_normal(n) * scale).astype(dtype) for n in (5000, 1, 70)] for scale in scaled]
        lists += [[nasties.values(kind, 500, dtype, rng)] for kind in ("ordinary", "nasty")]
        for arrays in lists:
            with nasties.parallel_from(0), Foreign(fenv, mode, threads):
                got = fastopt.norm(arrays, ord, n_threads=threads)
            same_bits(f"norm {ord} under {mode}", [np.array([got])], [np.array([reference.norm(arrays, ord)])])


@pytest.mark.parametrize("value", [0.1, 0.7, 0.3, 0.9])
@pytest.mark.parametrize("what", ["schedule", "first value", "lookahead"])
@pytest.mark.parametrize("mode", ["upward", "downward"])
def test_nothing_else_is_rounded_by_a_foreign_mode(mode, what, value, fenv, same_bits):
    def result(foreign):
        p, g = problem(n=100)
        before = fenv.get()
        opt = fastopt.NAG(p, lr=0.3, momentum=value)
        opt.step(g)
        if foreign:
            fenv.set(fenv.mode(MODES[mode]))
        try:
            if what == "schedule":
                fastopt.SGD(p, lr=lambda k: value / (3 + k)).step(g)
                return p
            if what == "first value":
                return fastopt.Adagrad(p, initial_accumulator_value=value).state[0]["sum"]
            return opt.lookahead()
        finally:
            fenv.set(before)

    same_bits(what, [result(True)], [result(False)])


# --- Fork


@needs_linux
@needs_openmp
def test_a_forked_child_steps_serially_with_the_same_bits():
    said = run(
        """
        import os, warnings, numpy as np, fastopt
        from fastopt import engine, reference
        warnings.simplefilter("ignore")     # Python warns of a fork beside threads; that is what is tested
        engine.set_serial_blocks(0)
        engine.set_most_alone(0)
        p, g = np.random.default_rng(0).standard_normal((2, 100_000))
        opt = fastopt.Adam([p], n_threads=2)
        twin = reference.twin(opt)
        opt.step([g]); twin.step([g])
        child = os.fork()
        opt.step([g]); twin.step([g])                      # a new team would hang in the child
        good = (p == twin.params[0]).all() and fastopt.norm([p, g], n_threads=2) == reference.norm([p, g])
        if child == 0:
            good = good and engine.info()["threads"] == 1
            new = fastopt.SGD([p.copy()], n_threads=2)     # as would filling the state of a new optimizer
            new.step([g])
            grandchild = os.fork()
            opt.step([g]); twin.step([g])
            good = good and (p == twin.params[0]).all() and "fork" in engine.info()["threads_reason"]
            if grandchild:
                good = good and os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
            os._exit(0 if good else 1)
        print(good, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert said == "True 0\n"


# --- Python threads


def test_two_threads_in_one_optimizer_are_told_and_nothing_is_corrupted():
    p, g = problem(np.float64, 2_000_000)
    opt = fastopt.Adam([p], n_threads=1)
    twin = reference.twin(opt)
    taken, refused, failed, stop = [], [], [], threading.Event()

    def other():
        while not stop.is_set():
            try:
                opt.step([g])
                taken.append(1)
            except ConcurrentStepError:
                refused.append(1)
            except BaseException as error:
                failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    deadline = time.monotonic() + 20
    while not (len(refused) > 3 and len(taken) > 1) and time.monotonic() < deadline:
        try:
            opt.step([g])
            taken.append(1)
        except ConcurrentStepError:
            refused.append(1)
    stop.set()
    thread.join()
    assert not failed and refused and opt.steps == len(taken)
    for _ in taken:
        twin.step([g])
    assert (p == twin.params[0]).all() and (opt.state[0]["exp_avg_sq"] == twin.state[0]["exp_avg_sq"]).all()


def test_a_schedule_that_steps_is_told_and_nothing_changes():
    p, g = problem(n=10)
    holder = []

    def schedule(k):
        for opt in holder:
            opt.step([g])
        return 0.1

    opt = fastopt.SGD([p], lr=schedule)
    before = p.copy()
    holder.append(opt)
    with pytest.raises(ConcurrentStepError):
        opt.step([g])
    assert (p == before).all() and opt.steps == 0
    holder[:] = [SimpleNamespace(step=lambda _: opt.add_param_group({"params": [np.zeros(2)]}))]
    with pytest.raises(ConcurrentStepError):
        opt.step([g])
    assert len(opt.params) == 1
    holder.clear()
    opt.step([g])
    assert opt.steps == 1


@pytest.mark.parametrize("what", ["step", "norm"])
def test_the_interpreter_lock_is_released_during_a_large_step(what):
    p, g = problem(np.float32, 4_000_000)
    opt = fastopt.Adam([p], n_threads=1)
    act = {"step": lambda: opt.step([g]), "norm": lambda: fastopt.norm([p, g], n_threads=1)}[what]
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(1)
            time.sleep(1e-5)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        sys.setswitchinterval(100)      # nobody is asked to give up the lock
        heard = 0
        for _ in range(20):
            before = len(ticks)
            act()
            heard += len(ticks) > before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert heard


# --- OpenMP

COUNTER_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
static int regions, last;
typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);
void GOMP_parallel(void (*f)(void *), void *data, unsigned n, unsigned flags)
{
    static parallel_t real;
    if (!real) real = (parallel_t)dlsym(dlopen("LIBGOMP", RTLD_LAZY | RTLD_NOLOAD), "GOMP_parallel");
    regions++;
    last = (int)n;
    real(f, data, n, flags);
}
int count(void) { int n = regions; regions = 0; return n; }
int team(void) { return last; }
"""
COUNTED = """
import ctypes, os, numpy as np, fastopt
from fastopt import engine
counter = ctypes.CDLL(os.environ["LD_PRELOAD"])
engine.set_most_alone(0)
def regions(opt, grads):
    counter.count()
    opt.step(grads)
    return counter.count(), counter.team()
"""


@pytest.fixture(scope="session")
def counter(build):
    """A library that counts GNU's parallel regions when it is loaded before all others."""
    if sys.platform != "linux" or not OPENMP or not libgomp():
        pytest.skip("regions can be counted only with GNU's OpenMP on Linux")
    return build(COUNTER_SOURCE.replace("LIBGOMP", libgomp()))


@functools.cache
def libgomp() -> str:
    """The path of GNU's OpenMP library that fastopt alone loads; empty if it is not used.

    Asked of another process: this one may hold a second library, which some wheel brought along.
    """
    return run(
        "import fastopt; from fastopt._openmp import loaded_runtimes;"
        "print(next((path for path in loaded_runtimes() if 'libgomp' in path), ''))"
    ).strip()


def test_a_step_enters_one_region_however_many_arrays_and_none_if_small(counter):
    said = run(
        COUNTED
        + """
def arrays(n, size, dtype=np.float32):
    return [np.ones(size, dtype) for _ in range(n)]
for name, cls in fastopt.OPTIMIZERS.items():
    params = arrays(1000, 700) + arrays(3, 70_000, np.float64)
    grads = [np.ones_like(p) for p in params]
    decay = {"weight_decay": 0.1} if next(iter(cls.conventions.values())).decay else {}
    opt = cls(params, **decay, n_threads=2, nonfinite="skip", maximize=True)
    assert regions(opt, grads) == (1, 2), name
    opt = cls([{"params": arrays(5, 70_000), "lr": 0.1}, {"params": arrays(5, 70_000), "lr": 0.2}], n_threads=2,
              **decay)
    assert regions(opt, arrays(10, 70_000)) == (1, 2), name
    opt.clip_norm = 1.0
    assert regions(opt, arrays(10, 70_000)) == (1, 2), name
    assert regions(opt, [None] * 10) == (0, 2), name
opt = fastopt.Adam(arrays(1, 8_000_000), n_threads=3)
assert regions(opt, arrays(1, 8_000_000)) == (1, 3)
opt = fastopt.Adam(arrays(1000, 100), n_threads=2)
assert regions(opt, arrays(1000, 100))[0] == 0
opt = fastopt.Adam(arrays(1, 8_000_000), n_threads=1)
assert regions(opt, arrays(1, 8_000_000))[0] == 0
# AdamW moves 7 blocks for each of its parameter's, and 8 where it clips.
old = engine.set_serial_blocks(7500)
for options, teams in (({}, 0), ({"clip_norm": 1.0}, 1), ({"clip_norm": 1e9}, 1)):
    opt = fastopt.AdamW(arrays(1, 16_000), n_threads=2, **options)
    assert regions(opt, arrays(1, 16_000))[0] == teams, options
engine.set_serial_blocks(old)
class Norm:
    def __init__(self, **options):
        self.step = lambda arrays: fastopt.norm(arrays, **options)
for ord in (2, np.inf):
    assert regions(Norm(ord=ord, n_threads=2), arrays(1000, 7_000) + arrays(3, 70_000, np.float64)) == (1, 2)
    assert regions(Norm(ord=ord, n_threads=3), arrays(1, 8_000_000)) == (1, 3)
    assert regions(Norm(ord=ord, n_threads=2), arrays(1, 1_100_000))[0] == 0
    assert regions(Norm(ord=ord, n_threads=1), arrays(1, 8_000_000))[0] == 0
print("good")
""",
        LD_PRELOAD=counter,
        timeout=120,
    )
    assert said == "good\n"


@needs_linux
def test_where_a_team_comes_too_late_steps_are_taken_alone_for_a_while_with_the_same_bits(counter):
    """Two threads on one CPU: the caller has done all of the work before the other begins."""
    said = run(
        COUNTED
        + """
engine.set_most_alone(64)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
p, g = np.random.default_rng(0).standard_normal((2, 500_000), np.float32)
opt = fastopt.AdamW([p], n_threads=2)
twin = fastopt.reference.twin(opt)
found = []
for _ in range(300):
    counter.count()
    opt.step([g])
    found.append(counter.count())
for _ in range(300):
    twin.step([g])
assert (p.view(np.int32) == twin.params[0].view(np.int32)).all()
print(sum(found), len(found) - found[::-1].index(1))
""",
        LD_PRELOAD=counter,
        timeout=120,
    )
    teams, last = map(int, said.split())
    assert 3 <= teams <= 60, "a team every 17, then 33, then 65 steps; a few of them may come in time"
    assert last > 200, "and it is tried again and again"


@needs_openmp
@pytest.mark.parametrize("limit", ["1", "2"])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_a_team_smaller_than_asked_for_does_all_of_the_work(limit, nonfinite):
    said = run(
        f"""
        import numpy as np, fastopt
        from fastopt import engine
        engine.set_serial_blocks(0)
        engine.set_most_alone(0)
        sizes = [1, 100_000, 17, 0, 30_000, 5_000]
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(n, np.float32) for n in sizes]
        grads = [rng.standard_normal(n, np.float32) for n in sizes]
        opt = fastopt.AdamW(params, n_threads=5, nonfinite={nonfinite!r})
        twin = fastopt.reference.twin(opt)
        for _ in range(3):
            opt.step(grads)
            twin.step(grads)
        assert all((a.view(np.int32) == b.view(np.int32)).all() for a, b in zip(params, twin.params))
        print("good")
        """,
        OMP_THREAD_LIMIT=limit,
    )
    assert said == "good\n"


def test_the_thread_count_follows_the_environment_and_threadpoolctl_at_every_step(counter):
    code = COUNTED + """
p, g = np.ones(1_000_000), np.ones(1_000_000)
opt = fastopt.SGD([p])
print(engine.info()["threads"], *regions(opt, [g]))
import threadpoolctl
with threadpoolctl.threadpool_limits(limits=2, user_api="openmp"):
    print(engine.info()["threads"], *regions(opt, [g]))
with threadpoolctl.threadpool_limits(limits=1, user_api="openmp"):
    print(engine.info()["threads"], regions(opt, [g])[0])
print(engine.info()["threads"], *regions(opt, [g]))
"""
    pytest.importorskip("threadpoolctl")
    said = run(code, LD_PRELOAD=counter, OMP_NUM_THREADS="3").split("\n")
    assert said[:4] == ["3 1 3", "2 1 2", "1 0", "3 1 3"]


@needs_openmp
def test_the_environment_s_thread_count_is_said():
    said = run("from fastopt import engine; i = engine.info(); print(i['threads'], i['threads_reason'])",
               OMP_NUM_THREADS="7")  # fmt: skip
    assert said.startswith("7 OMP_NUM_THREADS=7")


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_no_more_threads_than_cpus_that_the_process_may_use():
    code = """
    import os
    cpus = sorted(os.sched_getaffinity(0))
    BEFORE
    from fastopt import engine
    AFTER
    print(engine.info()["threads"], len(os.sched_getaffinity(0)))
    """
    narrow = "os.sched_setaffinity(0, cpus[:1])"
    for before, after in ((narrow, ""), ("", narrow)):
        source = textwrap.dedent(code).replace("BEFORE", before).replace("AFTER", after)
        source = "import os; os.environ.pop('OMP_NUM_THREADS', None)\n" + source
        assert run(source) == "1 1\n"


def test_more_threads_than_cores_and_than_blocks_are_fine(nasties):
    p, g = problem(np.float32, 5000)
    for threads in (64, 5000):
        with nasties.parallel_from(0):
            opt = fastopt.Adam([p.copy()], n_threads=threads)
            twin = reference.twin(opt)
            opt.step([g])
            twin.step([g])
        assert (opt.params[0] == twin.params[0]).all()


# Elements of float32 and float64 in the smallest and the largest chunk that a thread takes at a time.
SMALL_CHUNKS = (512 * 16, 512 * 8)
LARGE_CHUNKS = (4096 * 16, 4096 * 8)


def cut_by_chunks(chunks, blocks: int, rng) -> list[np.ndarray]:
    """Arrays of both types and about so many blocks: around the size of a chunk, tiny, empty, and one long one."""
    arrays, used = [], 0
    while used < blocks // 2:
        for dtype, n in zip((np.float32, np.float64), chunks, strict=True):
            sizes = [n + int(rng.integers(-1, 2)), n // 2 + 1, *rng.integers(0, 100, 20).tolist()]
            arrays += [rng.standard_normal(size).astype(dtype) for size in sizes]
        used = sum(-(-a.nbytes // 64) for a in arrays)
    arrays.insert(len(arrays) // 2, rng.standard_normal((blocks - used) * 16, np.float32))
    return arrays


@pytest.mark.parametrize("cls", [fastopt.SGD, fastopt.Adam, fastopt.RMSprop])
@pytest.mark.parametrize(
    ("chunks", "blocks"), [(SMALL_CHUNKS, 30_000), (LARGE_CHUNKS, 140_000)], ids=["small", "large"]
)
def test_chunks_that_cut_arrays_do_not_show(cls, chunks, blocks, nasties, same_bits):
    """Shares of more chunks than there are threads: some are taken over. The 64th step is a flush, too."""
    rng = np.random.default_rng(0)
    start = cut_by_chunks(chunks, blocks, rng)
    grads = [np.where(rng.random(p.size) < 0.5, p.dtype.type(0), p[::-1]) for p in start]

    def make(threads):
        opt = cls([p.copy() for p in start], lr=0.1, weight_decay=0.25, n_threads=threads)
        for i, state in enumerate(opt.state):
            opt._plan.set_count(i, 62, (1.0,))
            for s in nasties.slots(state).values():
                s[...] = 2.0**-118 if s.dtype == np.float32 else 2.0**-1014
        return opt

    twin = reference.twin(make(1))
    for _ in range(2):
        twin.step(grads)
    with nasties.parallel_from(0):
        for threads in range(1, 8):
            opt = make(threads)
            for _ in range(2):
                opt.step(grads)
            for dtype in (np.float32, np.float64):
                mine = [i for i, p in enumerate(start) if p.dtype == dtype]
                same_bits(f"{threads} threads", [opt.params[i] for i in mine], [twin.params[i] for i in mine])
                same_bits(f"{threads} threads: state", [s for i in mine for s in nasties.slots(opt.state[i]).values()],
                          [s for i in mine for s in twin.state[i].values()])  # fmt: skip


# --- Memory


def test_state_lies_on_64_byte_boundaries(nasties):
    rng = np.random.default_rng(0)
    for cls in fastopt.OPTIMIZERS.values():
        params = [np.zeros(n, d) for n in rng.integers(0, 100, 20) for d in (np.float32, np.float64)]
        for state in cls(params, lr=0.1).state:
            assert all(a.ctypes.data % 64 == 0 for a in nasties.slots(state).values() if a.size)


def test_the_streams_of_a_large_array_lie_apart_in_their_pages(nasties):
    """A load waits for a store to the same offset in another page: parameter and state keep a quarter page apart."""
    params = [np.zeros(n, d) for n in (1024, 5000, 1_000_000) for d in (np.float32, np.float64)]
    opt = fastopt.Adam(params, lr=0.1, amsgrad=True)
    for p, state in zip(params, opt.state, strict=True):
        slots = nasties.slots(state).values()
        offsets = [(a.ctypes.data - p.ctypes.data) % 4096 for a in slots]
        assert len(offsets) == 3
        assert all(abs(offset - 1024 * k) < 64 for k, offset in enumerate(offsets, 1)), offsets
        assert all(a.ctypes.data % 64 == 0 for a in slots)


@pytest.mark.parametrize(("count", "n"), [(20, 100), (2_000, 100), (20, 100_000)])
def test_a_step_allocates_nothing(count, n):
    params = [np.zeros(n, np.float32) for _ in range(count)]
    grads = [np.ones(n, np.float32) for _ in range(count)]
    opt = fastopt.AdamW(params, lr=0.01, n_threads=1)
    for _ in range(5):
        opt.step(grads)
    gc.collect()
    gc.disable()
    try:
        blocks = sys.getallocatedblocks()
        for _ in range(50):
            opt.step(grads)
        assert sys.getallocatedblocks() - blocks < 25
        tracemalloc.start()
        opt.step(grads)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        opt.step(grads)
        now, peak = tracemalloc.get_traced_memory()
        assert now - before <= 256
        assert peak - before <= 600         # what Python itself makes of a call
    finally:
        tracemalloc.stop()
        gc.enable()


def test_editing_an_option_at_every_step_costs_no_memory():
    params = [np.zeros(10, np.float32) for _ in range(200)]
    grads = [np.ones(10, np.float32) for _ in range(200)]
    opt = fastopt.SGD(params, lr=0.01, momentum=0.9)

    def steps(n):
        for k in range(n):
            opt.param_groups[0]["momentum"] = 0.9 if k % 2 else 0.0
            opt.step(grads)

    tracemalloc.start()
    try:
        steps(10)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        steps(200)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 4096
    finally:
        tracemalloc.stop()


def test_a_parameter_of_a_subclass_that_was_resized_is_seen():
    class Mine(np.ndarray):
        pass

    p = np.ones(1000).view(np.ndarray).copy().view(Mine)
    mine = Mine(1000)
    mine[...] = p
    opt = fastopt.SGD(mine, lr=0.1)
    opt.step(np.ones(1000))
    mine.resize(100_000, refcheck=False)
    with pytest.raises(LayoutError, match="parameter 0 was changed"):
        opt.step(np.ones(1000))


def test_parameters_are_kept_alive_and_their_buffers_held():
    a = array.array("d", [1.0] * 8)
    p = np.ones(3)
    alive = weakref.ref(p)
    opt = fastopt.SGD([p, a, memoryview(a)[:0]], lr=0.5)
    del p
    gc.collect()
    assert alive() is not None
    with pytest.raises(BufferError):
        a.append(2.0)
    opt.step([np.ones(3), np.ones(8), np.ones(0)])
    assert a[0] == 0.5 and alive()[0] == 0.5
    del opt
    gc.collect()
    a.append(2.0)
    assert alive() is None


def test_gradients_are_let_go_after_the_step():
    g = array.array("d", [1.0] * 8)
    h = np.ones(100_000)
    count = sys.getrefcount(h)
    opt = fastopt.SGD([np.ones(8), np.ones(100_000)], lr=0.5)
    opt.step([g, h])
    g.append(1.0)
    assert sys.getrefcount(h) == count
    with pytest.raises(FastoptError):
        opt.step([g, h])        # of another length now
    g.append(1.0)
    assert sys.getrefcount(h) == count


def reshape(p):
    p.shape = (5, 2)


def move(p):
    before = p.ctypes.data
    p.resize(100_000, refcheck=False)
    taken = [np.zeros(len(p) // 10_000) for _ in range(100)]    # where it was, among others
    p.resize(10, refcheck=False)
    if p.ctypes.data == before:
        pytest.skip(f"the memory did not move, for all {len(taken)} arrays")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p: p.resize(20, refcheck=False), LayoutError),
        (lambda p: p.resize(100_000, refcheck=False), LayoutError),
        (lambda p: p.resize(3, refcheck=False), LayoutError),
        (lambda p: p.resize(0, refcheck=False), LayoutError),
        (move, LayoutError),
        (reshape, LayoutError),
        (lambda p: p.setflags(write=False), ReadOnlyError),
        (lambda p: setattr(p, "dtype", np.int64), LayoutError),
        (lambda p: setattr(p, "dtype", ">f8"), LayoutError),
    ],
    ids=["grown", "grown far", "shrunk", "emptied", "moved", "reshaped", "read-only", "other type", "byte-swapped"],
)
def test_a_parameter_that_is_no_longer_what_it_was_is_an_error_and_nothing_changes(change, error):
    first, p = np.ones(5), np.ones(10)
    opt = fastopt.Adam([first, p])
    grads = [np.ones(5), np.ones(10)]
    opt.step(grads)
    before = first.copy(), opt.state[0]["exp_avg"].copy(), opt.state[1]["exp_avg"].copy()
    change(p)
    for gradient in (grads[1], None):
        with pytest.raises(error, match="parameter 1"):
            opt.step([grads[0], gradient])
    now = first, opt.state[0]["exp_avg"], opt.state[1]["exp_avg"]
    assert all((a == b).all() for a, b in zip(now, before, strict=True))
    assert opt.steps == 1 and opt.state[0]["step"] == 1


def test_state_memory_of_the_user_that_was_resized_is_an_error():
    made = []

    def factory(name, shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[-1]

    p, g = np.ones(10), np.ones(10)
    opt = fastopt.Adam([p], state_factory=factory)
    made[1].resize(1000, refcheck=False)
    with pytest.raises(LayoutError, match="exp_avg_sq"):
        opt.step([g])
    assert (p == 1).all() and opt.steps == 0


def test_touching_neighbours_are_fine_and_a_shared_element_is_not():
    memory = np.zeros(100)
    p, q, g, h = memory[10:20], memory[30:40], memory[20:30], memory[40:50]
    opt = fastopt.SGD([p, q], lr=0.5)
    opt.step([g, h])                                # p g q h, without gaps
    opt.step([h, g])
    opt.step([memory[:10], memory[0:10]])           # gradients may share memory with each other
    for bad in (memory[11:21], memory[1:11], p, q, memory[29:39], memory[39:49], memory[12:22]):
        for grads in ([bad, h], [g, bad], [bad, None], [None, bad]):
            with pytest.raises(OverlapError, match="gradient of parameter"):
                opt.step(grads)
    assert opt.steps == 3 and (memory == 0).all()
    opt.step([g, h])


def test_half_an_element_of_another_type_is_an_overlap():
    raw = np.zeros(256, np.uint8)
    raw = raw[-raw.ctypes.data % 8 :]
    p, q = raw[64:128].view(np.float64), np.zeros(4, np.float32)
    opt = fastopt.SGD([p, q])
    for start in (48, 128):
        opt.step([None, raw[start : start + 16].view(np.float32)])
    for start in (52, 124):
        with pytest.raises(OverlapError, match="gradient of parameter 1"):
            opt.step([None, raw[start : start + 16].view(np.float32)])


class Buffer:
    """Memory in which arrays are put at random, none over another."""

    def __init__(self, total, rng):
        self.memory, self.used, self.rng = np.zeros(total), np.zeros(total, bool), rng

    def anywhere(self, n):
        return int(self.rng.integers(0, len(self.memory) - n))

    def place(self, n):
        at = self.anywhere(n)
        while self.used[at : at + n].any():
            at = self.anywhere(n)
        self.used[at : at + n] = True
        return self.memory[at : at + n]


@pytest.mark.parametrize("seed", range(8))
def test_gradients_that_move_are_refused_exactly_where_they_overlap(seed):
    """Parameters, states and gradients all over one buffer; the optimizer remembers gaps, and must not trust them."""
    rng = np.random.default_rng(seed)
    buffer = Buffer(4000, rng)
    sizes = rng.integers(0, 9, 25).tolist()
    opt = fastopt.SGD([buffer.place(n) for n in sizes[:15]], momentum=0.5,
                      state_factory=lambda name, shape, dtype: buffer.place(*shape))  # fmt: skip
    starts: list[int] = []
    steps = 0
    for k in range(400):
        if k == 200:
            opt.add_param_group({"params": [buffer.place(n) for n in sizes[15:]]})
        count = len(opt.params)
        if k % 4 == 0:
            starts = [buffer.anywhere(n) for n in sizes[:count]]
        else:                       # the others are where they were
            moved = int(rng.integers(count))
            starts[moved] = buffer.anywhere(sizes[moved])
        spans = [slice(at, at + n) if rng.random() < 0.3 else None for at, n in zip(starts, sizes, strict=False)]
        grads = [buffer.memory[span] if span else None for span in spans]
        if any(buffer.used[span].any() for span in spans if span):
            with pytest.raises(OverlapError):
                opt.step(grads)
        else:
            opt.step(grads)
            steps += 1
    assert opt.steps == steps > 20


def test_a_state_array_as_gradient_is_refused():
    p, q = np.ones(10), np.ones(10)
    opt = fastopt.Adam([p, q])
    before = {name: a.copy() for name, a in opt.state[1].items() if name != "step"}
    with pytest.raises(OverlapError, match="state"):
        opt.step([np.ones(10), opt.state[1]["exp_avg_sq"]])
    assert all((opt.state[1][name] == a).all() for name, a in before.items())


@pytest.mark.parametrize("second", [slice(0, 10), slice(9, 19), slice(2, 3)], ids=["the same", "one shared", "inside"])
def test_parameters_that_share_memory_are_refused(second):
    memory = np.zeros(40)
    with pytest.raises(OverlapError, match="parameter 2"):
        fastopt.SGD([memory[0:10], np.zeros(3), memory[second]])
    opt = fastopt.SGD([memory[0:10]])
    with pytest.raises(OverlapError, match="parameter 1"):
        opt.add_param_group({"params": [memory[second]]})
    opt.add_param_group({"params": [memory[10:20]]})
    assert len(opt.params) == 2


def python_calls(function):
    """How often Python or C functions are called from Python code while a function runs."""
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event in ("call", "c_call") else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls)


def test_a_step_runs_no_python_code_for_an_array_and_a_constructor_little():
    """What a compiled step is for. How long they take with many arrays is bench/bench_step.py's."""
    steps, made = [], []
    for n in (10, 10_000):
        params, grads = ([np.ones(10, np.float32) for _ in range(n)] for _ in range(2))
        opts = []
        made.append(python_calls(lambda params=params, opts=opts: opts.append(fastopt.Adam(params))))
        for _ in range(3):                # the first, the second, and one with gradients that are new
            steps.append(python_calls(lambda grads=grads, opt=opts[0]: opt.step(grads)))
            grads = [g.copy() for g in grads]
    assert len(set(steps)) == 1
    assert made[1] - made[0] < 6 * 9_990


def test_a_refused_hyperparameter_leaves_nothing_behind():
    p, g = problem(n=10)
    opt = fastopt.Adam([p], lr=0.1, betas=(0.9, 0.99))
    twin = reference.twin(opt)
    group = opt.param_groups[0]
    good = dict(group)
    for bad in ({"betas": (0.5, 2.0)}, {"betas": (0.5, np.nan)}, {"lr": 0.7, "eps": -1}, {"amsgrad": "yes"},
                {"lr": lambda k: np.nan}, {"weight_decay": 0.3, "betas": (2, 0.5)}):  # fmt: skip
        group.update(bad)
        with pytest.raises(HyperparameterError):
            opt.step([g])
        group.update(good)
        opt.step([g])
        twin.step([g])
    assert (p == twin.params[0]).all()


# --- The import


def test_fastopt_isa_chooses_each_level():
    for level in engine.available_levels():
        code = "from fastopt import engine; i = engine.info(); print(i['isa'], i['isa_forced'])"
        assert run(code, FASTOPT_ISA=level) == f"{level} True\n"
    assert run("from fastopt import engine; print(engine.info()['isa'])", FASTOPT_ISA="") == (
        engine.available_levels()[0] + "\n"
    )


@pytest.mark.skipif("FASTOPT_BUILD_LEVELS" in os.environ, reason="make try builds the level of this CPU")
def test_all_levels_are_built():
    assert "generic" in engine.available_levels()
    if platform.machine() == "x86_64":
        assert engine.info()["isa_built"] == list(engine.LEVELS)


def test_no_module_of_a_level_that_the_cpu_lacks_is_imported():
    """Its own code may be of that level, and end the process."""
    said = run("""
        import sys
        from fastopt import engine
        engine.info()
        print([name.split(".")[2] for name in sys.modules if name.startswith("fastopt.kernels.")])
    """)  # fmt: skip
    levels = {name.replace("_", "-").removesuffix("-narrow") for name in ast.literal_eval(said)}
    assert levels <= set(engine.available_levels())


@pytest.mark.parametrize("level", ["x86-64-v5", "avx2", "X86-64-V3", " generic"])
def test_an_unknown_level_is_an_import_error_that_lists_what_is_possible(level):
    code = """
    try:
        import fastopt
    except ImportError as error:
        print(error)
    """
    said = run(code, FASTOPT_ISA=level)
    assert repr(level) in said and all(name in said for name in engine.available_levels())


def test_an_unsupported_level_is_an_import_error_too():
    """As on a machine, or in a build, that lacks it."""
    lacking, *rest = engine.available_levels()
    if not rest:
        pytest.skip("there is one level only")
    said = run(
        f"""
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name == "fastopt.kernels.{lacking.replace("-", "_")}":
                    raise ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Missing())
        try:
            import fastopt
        except ImportError as error:
            print(error)
        """,
        FASTOPT_ISA=lacking,
    )
    assert repr(lacking) in said
    assert said.partition("possible:")[2].strip().split(", ") == rest


def test_importing_leaves_the_process_as_it_was(fenv):
    said = run(
        f"""
        import ctypes, os, sys, threading
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
            os.environ.pop(name, None)
        import numpy as np
        fenv = ctypes.CDLL({fenv._name!r})
        fenv.get.restype = ctypes.c_ulonglong
        c_environ = ctypes.CDLL(None).getenv
        c_environ.restype = ctypes.c_char_p
        mode, environ, cwd, path = fenv.get(), dict(os.environ), os.getcwd(), list(sys.path)
        threads, modules = threading.active_count(), set(sys.modules)
        import fastopt
        assert fenv.get() == mode and dict(os.environ) == environ and os.getcwd() == cwd and sys.path == path
        assert c_environ(b"GOMP_SPINCOUNT") is None and threading.active_count() == threads
        optional = {{"torch", "sklearn", "matplotlib", "tqdm", "scipy", "safetensors", "threadpoolctl"}}
        assert not optional & (set(sys.modules) - modules)
        assert np.finfo(np.float32).tiny * np.float32(0.5) != 0
        """
    )
    assert said == ""


@needs_linux
@needs_openmp
def test_how_openmp_waits_is_set_in_passing_and_left_to_the_user():
    if not libgomp():
        pytest.skip("not GNU's OpenMP")
    clear = """
        import os
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
            os.environ.pop(name, None)
    """
    report = """
        import fastopt
        from fastopt import _openmp
        print(_openmp.outcome)
    """
    assert run(textwrap.dedent(clear) + textwrap.dedent(report)).startswith("set by fastopt")
    said = run(report, OMP_WAIT_POLICY="active")
    assert said == "chosen by the user: OMP_WAIT_POLICY=active\n"
    said = run(textwrap.dedent(clear) + f"import ctypes; ctypes.CDLL({libgomp()!r})\n" + textwrap.dedent(report))
    assert said.startswith("without effect: libgomp")
    # What libgomp says of itself. It has read its environment before the variable was taken away again.
    code = textwrap.dedent(clear) + "import fastopt"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "OMP_DISPLAY_ENV": "verbose"}).stderr  # fmt: skip
    assert "GOMP_SPINCOUNT = '1000'" in said


# --- The CPU quota of control groups


@pytest.mark.parametrize(
    ("own", "files", "want"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2),
        ("4:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "150000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "what is this"}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_control_group_and_of_those_above_it(tmp_path, own, files, want):
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    assert cpu_quota(str(tmp_path / "tree"), str(tmp_path / "own")) == want
    assert cpu_quota(str(tmp_path / "tree"), str(tmp_path / "missing")) is None


# --- What a parameter carries from step to step


def test_a_parameter_carries_as_many_numbers_as_the_engine_keeps():
    opt = fastopt.NAdam([np.ones(3), np.ones(3)])
    plan = opt._plan
    assert plan.count(0) == (0, (1.0, 0.0))
    plan.set_count(0, 3, (0.5,))
    assert plan.count(0) == (3, (0.5, 0.0))
    with pytest.raises(RuntimeError, match="MAX_NUMBERS"):
        plan.set_count(0, 4, (0.5, 0.25, 0.125))
    with pytest.raises(TypeError):
        plan.set_count(0, 4, (0.25, "0.25"))
    assert plan.count(0) == (3, (0.5, 0.0))


def test_parameters_that_differ_in_any_number_they_carry_do_not_share_scalars():
    opt = fastopt.NAdam([np.ones(3), np.ones(3)])
    plan = opt._plan
    for i, second in enumerate((0.25, 0.75)):
        plan.set_count(i, 3, (0.5, second))
    opt.step([np.ones(3), np.ones(3)])
    (_, one), (_, other) = plan.count(0), plan.count(1)
    assert one[0] == other[0] < 0.5 and (one[1], other[1]) == (0.25, 0.75)


def test_a_record_puts_all_numbers_back():
    opt = fastopt.NAdam([np.ones(3)])
    plan, options = opt._plan, [dict(opt.param_groups[0])]
    arrays = {name: np.full(3, 0.5) for name in ("exp_avg", "exp_avg_sq")}
    resume = functools.partial(plan.run, plan.resume, options, [sorted(arrays)])
    resume([((0.5, 0.25), arrays)], [7], 7, 0, [0])
    assert plan.count(0) == (7, (0.5, 0.25)) and (plan.states[0]["exp_avg"] == 0.5).all()
    for numbers, error in (((1.0, 2.0, 3.0), RuntimeError), (("a",), TypeError)):
        with pytest.raises(error):
            resume([(numbers, {name: a * 2 for name, a in arrays.items()})], [8], 8, 0, [0])
        assert plan.count(0) == (7, (0.5, 0.25)) and (plan.states[0]["exp_avg"] == 0.5).all() and opt.steps == 7


# --- Options as a key


class Number(float):
    pass


PLAIN = [
    None, True, False, 0, 1, 2**70, 0.0, 1.0, 0.5, float("inf"), "", "a", (), (1,), (True,), (1.0,), (1, 1),
    (1, 2), (1, 2.0), (1, 2, 3), ("a", None),
]  # fmt: skip


def test_a_key_of_plain_options_tells_all_of_them_apart():
    keys = {engine.plain_key({"a": x, "b": y}, ("a", "b"), z) for x in PLAIN for y in PLAIN for z in PLAIN}
    keys |= {engine.plain_key({"b": y}, ("a", "b"), z) for y in PLAIN for z in PLAIN}
    assert len(keys) == (len(PLAIN) + 1) * len(PLAIN) * len(PLAIN) and None not in keys
    assert engine.plain_key({"b": 1.0, "a": (0.5,), "c": []}, ("a", "b")) == engine.plain_key(
        {"a": (0.5,), "b": 1.0}, ("a", "b")
    )
    assert engine.plain_key({"a": 1}, ("a", "b")) != engine.plain_key({"a": 1, "b": None}, ("a", "b"))


@pytest.mark.parametrize(
    "value",
    [-0.0, Number(1.0), np.float64(1.0), np.array(1.0), np.bool_(True), [1.0], (1.0, [2.0]), (np.float32(1),), ((),),
     (1, (2, 3)), {}, {1}, 1j, b"a", ..., abs, float, lambda step: 0.1, SimpleNamespace()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_may_change_or_equals_another_makes_no_key(value):
    assert engine.plain_key({"a": value}, ("a",)) is None
    assert engine.plain_key({}, (), value) is None
    assert engine.plain_key({"a": value}, ()) == ()


def test_tuples_one_in_the_other_make_no_key_however_many():
    value = ()
    for _ in range(200_000):
        value = (value,)
    assert engine.plain_key({"a": value}, ("a",)) is None


def test_only_a_plain_dict_makes_a_key():
    class Mine(dict):
        pass

    assert engine.plain_key(Mine(a=1), ("a",)) is None
    assert engine.plain_key([("a", 1)], ("a",)) is None
