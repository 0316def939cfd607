"""What an import and a step leave alone, the process and the arithmetic of others; what the modules declare."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastopt import engine, kernels

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
COMPILED = ["fastopt.engine", *(f"fastopt.kernels.{m.name}" for m in pkgutil.iter_modules(kernels.__path__))]
LEVELS = {level.replace("-", "_") for level in engine.available_levels()}
# Those that this CPU can run: importing another may end the process.
LOADABLE = [COMPILED[0], *(m for m in COMPILED[1:] if m.split(".")[2].removesuffix("_narrow") in LEVELS)]


def run(program: str, *args: object):
    """What a program says, as JSON on its last line, in a fresh interpreter; it prints nothing else."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    return json.loads(done.stdout)


# --- Fast-math

OBJDUMP = shutil.which("objdump")
needs_objdump = pytest.mark.skipif(sys.platform != "linux" or OBJDUMP is None, reason="objdump is not installed")
SETS_MODES = {"x86_64": r"\bv?ldmxcsr\b", "aarch64": r"\bmsr\s+fpcr\b"}.get(platform.machine())


def objdump(module: str, *options: str) -> str:
    command = [OBJDUMP, *options, find_spec(module).origin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_objdump
@pytest.mark.parametrize("module", COMPILED)
def test_nothing_runs_when_a_module_is_loaded(module):
    """Linked with -ffast-math, a module would have a constructor that switches off subnormals (gcc's crtfastmath)."""
    sections = re.findall(r"^ *\d+ (\.(?:init_array|ctors|preinit_array)\S*) +([0-9a-f]+)", objdump(module, "-h"), re.M)
    entries = sum(int(size, 16) for _, size in sections) // ctypes.sizeof(ctypes.c_void_p)
    assert entries <= 1, f"{module} has constructors beside the compiler's own: {sections}"
    assert "set_fast_math" not in objdump(module, "--syms")


@needs_objdump
@pytest.mark.skipif(SETS_MODES is None, reason="which instruction sets the modes is not known for this machine")
@pytest.mark.parametrize("module", COMPILED)
def test_only_the_engine_sets_floating_point_modes(module):
    listing = objdump(module, "-d", "--no-show-raw-insn")
    setters = {re.match(r"\s*\S+ <(.+)>:", f)[1] for f in listing.split("\n\n") if re.search(SETS_MODES, f)}
    stripped = "no symbols" in objdump(module, "--syms")
    if module == "fastopt.engine":
        assert setters and (stripped or all("fastopt" in name for name in setters)), setters
    else:
        assert not setters, f"{module}: {setters}"


SUBNORMALS = """
import ctypes, ctypes.util, json, sys, threading
import numpy as np
libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.fma.argtypes, libm.fma.restype = [ctypes.c_double] * 3, ctypes.c_double
libm.sinf.argtypes, libm.sinf.restype = [ctypes.c_float], ctypes.c_float

def survive():
    half = 0.5
    return [
        sys.float_info.min * half != 0,                                     # the interpreter's own arithmetic
        bool((np.full(37, np.finfo(np.float32).tiny) * np.float32(half) != 0).all()),       # NumPy's loops
        bool((np.full(37, np.finfo(np.float64).tiny) * half != 0).all()),
        bool((np.full(37, 5e-324) * np.full(37, 2.0) == 1e-323).all()),     # subnormals as operands
        libm.fma(sys.float_info.min, half, 0.0) != 0,                       # the C library's
        libm.sinf(1e-45) != 0,
    ]

def on_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.extend(survive()))
    thread.start()
    thread.join()
    return found

for module in sys.argv[1:]:
    __import__(module)
said = [survive(), on_a_new_thread()]
if "fastopt" in sys.modules:
    fastopt, engine = sys.modules["fastopt"], sys.modules["fastopt.engine"]
    engine.set_serial_blocks(0)
    p = np.full(100_000, 1e-310)
    fastopt.SGD(p, lr=0.5, n_threads=2).step(np.full(100_000, 1e-310))
    said += [survive(), on_a_new_thread(), [bool((p == 1e-310 - 0.5 * 1e-310).all())]]
print(json.dumps(said))
"""


@needs_linux
@pytest.mark.parametrize("modules", [["fastopt"], LOADABLE], ids=["fastopt", "each of its modules"])
def test_subnormals_survive_an_import_and_a_step_on_every_thread(modules):
    said = run(SUBNORMALS, *modules)
    assert all(all(part) for part in said), said


# --- The process, before and after

SNAPSHOT = """
import atexit, ctypes, gc, json, locale, os, random, resource, signal, sys, threading, time, warnings
import numpy as np

libc, libm = ctypes.CDLL(None), ctypes.CDLL("libm.so.6")

def environ_of_c():
    entries, out = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ"), []
    while entries[len(out)] is not None:
        out.append(entries[len(out)].decode("latin1"))
    return out

def environment():
    # Modes, and flags of what has happened; not the x87's flags, which NumPy sets.
    raw = (ctypes.c_ubyte * 64)()
    assert libm.fegetenv(raw) == 0
    word = lambda at: int.from_bytes(bytes(raw[at : at + 4]), "little")
    machine = os.uname().machine
    if machine == "x86_64":
        return {"x87": word(0) & 0xffff, "mxcsr": word(28) & ~0x3f}, word(28) & 0x3d
    return ({"fpcr": word(0)}, word(4)) if machine == "aarch64" else ({}, 0)

def status(name, path="/proc/self/status"):
    with open(path) as file:
        return [line.split(":")[1].strip() for line in file if line.startswith(name + ":")]

def files():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:                 # the listing's own
            pass
    return found

def children(task):
    try:
        with open(f"/proc/self/task/{task}/children") as file:
            return file.read()
    except OSError:                     # a kernel without them
        return ""

def snapshot():
    tasks = os.listdir("/proc/self/task")
    return {
        "floating-point modes": environment()[0],
        "rounding": libm.fegetround(), "traps": libm.fegetexcept(),
        "os.environ": dict(os.environ), "environ of C": environ_of_c(),
        "signal handlers": [str(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
        "signals of the system": [status(k) for k in ("SigCgt", "SigIgn", "SigBlk", "ShdPnd", "SigPnd")],
        "timers": [signal.getitimer(k) for k in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        "warnings": [list(map(str, warnings.filters)), str(warnings.showwarning)],
        "random": str(random.getstate()), "numpy.random": str(np.random.get_state()),
        "NumPy": [np.geterr(), str(np.geterrcall()), str(np.get_printoptions()), np.getbufsize()],
        "locale": [locale.setlocale(locale.LC_ALL), locale.localeconv()["decimal_point"]],
        "time zone": [time.tzname, time.timezone], "cwd": os.getcwd(),
        "umask": status("Umask"), "root": os.readlink("/proc/self/root"),
        "open files": files(), "standard streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "limits": [resource.getrlimit(getattr(resource, k)) for k in dir(resource) if k.startswith("RLIMIT")],
        "Python threads": threading.active_count(), "children": "".join(map(children, tasks)),
        "CPUs of every thread": sorted({str(status("Cpus_allowed", f"/proc/self/task/{t}/status")) for t in tasks}),
        "niceness": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)],
        "privileges": status("NoNewPrivs") + status("Seccomp") + status("CapEff"),
        "sys.path": sys.path[:], "importing": [list(map(str, sys.meta_path)), list(map(str, sys.path_hooks))],
        "hooks": [str(getattr(sys, k)) for k in ("excepthook", "displayhook", "unraisablehook")],
        "tracing": [sys.gettrace(), sys.getprofile(), str(threading.excepthook)],
        "sys": [sys.getrecursionlimit(), sys.getswitchinterval(), sys.dont_write_bytecode],
        "gc": [gc.isenabled(), gc.get_threshold(), len(gc.callbacks), gc.get_freeze_count()],
        "atexit": atexit._ncallbacks(), "builtins": sorted(vars(__builtins__)),
    }

def differing(before, after):
    return {key: [before[key], after[key]] for key in before if before[key] != after[key]}

for module in sys.argv[1].split():      # what is there already
    __import__(module)
modules, tasks = set(sys.modules), len(os.listdir("/proc/self/task"))
before = snapshot()
assert not differing(before, snapshot())
__import__(sys.argv[2])
after = snapshot()
said = {"import": differing(before, after), "threads": len(os.listdir("/proc/self/task")) - tasks}
new = {name.partition(".")[0] for name in set(sys.modules) - modules} - set(sys.stdlib_module_names) - {"numpy"}
said["modules"] = sorted(name for name in new if not name.startswith("_cython_"))
"""

STEPS = """
import fastopt
from fastopt import engine

engine.set_most_alone(0)
engine.set_serial_blocks(10**9)
params = [np.ones(300_000, np.float32), np.full((30, 40), 0.1).T]
opt = fastopt.AdamW(params, lr=lambda k: 0.1 / (3 + k), n_threads=2, nonfinite="skip", copy_grads=True)
grads = [np.full(300_000, 1 / 3), np.full((40, 30), 0.7)]
saved = opt.state_dict()
repr(opt), str(np.float64(0.1)), opt.state, opt.params      # whatever a first use prepares
for name, blocks, act in (
    ("a step on one thread", 10**9, lambda: opt.step(grads)),
    ("a step of two threads", 0, lambda: opt.step(grads)),
    ("a skipped step", 0, lambda: opt.step([np.full(300_000, np.nan), None])),
    ("a refused step", 0, lambda: opt.step([np.ones(3), None])),
    ("state_dict and load_state_dict", 0, lambda: opt.load_state_dict(saved)),
):
    engine.set_serial_blocks(blocks)
    before, tasks = snapshot(), len(os.listdir("/proc/self/task"))
    assert libm.feclearexcept(libm.fetestexcept(-1)) == 0
    try:
        act()
        refused = False
    except fastopt.ShapeError:
        refused = True
    raised = environment()[1]
    assert refused == (name == "a refused step")
    said[name] = differing(before, snapshot())
    if raised and name != "state_dict and load_state_dict":
        said[name]["exception flags"] = raised
    more = len(os.listdir("/proc/self/task")) - tasks
    assert more == (name == "a step of two threads" and engine.info()["openmp"]), (name, more)
print(json.dumps(said))
"""


GLIBC = platform.libc_ver()[0] == "glibc"
needs_glibc = pytest.mark.skipif(not GLIBC, reason="asks glibc for the floating-point environment")


@needs_linux
@needs_glibc
@pytest.mark.parametrize("policy", ["", "PASSIVE"], ids=["no wait policy", "a wait policy"])
def test_an_import_and_steps_leave_the_process_as_it_was(policy, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    said = run(SNAPSHOT + STEPS, "numpy ctypes", "fastopt")
    assert said.pop("modules") == ["cython_runtime", "fastopt"] and said.pop("threads") == 0
    assert said == dict.fromkeys(said, {})


@needs_linux
@needs_glibc
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_importing_the_adapter_leaves_the_process_as_it_was(amount):
    if not amount(False, True):
        pytest.skip("imports PyTorch, which takes seconds: with --long")
    said = run(SNAPSHOT + "print(json.dumps(said))", "numpy ctypes torch", "fastopt.torch")
    assert said == {"import": {}, "threads": 0, "modules": ["cython_runtime", "fastopt"]}


# --- What the modules declare


class Definition(ctypes.Structure):
    """PyModuleDef: what stands in it after the object's header."""

    _fields_ = [
        ("m_init", ctypes.c_void_p), ("m_index", ctypes.c_ssize_t), ("m_copy", ctypes.c_void_p),
        ("m_name", ctypes.c_char_p), ("m_doc", ctypes.c_void_p), ("m_size", ctypes.c_ssize_t),
        ("m_methods", ctypes.c_void_p), ("m_slots", ctypes.c_void_p),
    ]  # fmt: skip


class Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("value", ctypes.c_void_p)]


MULTIPLE_INTERPRETERS, GIL = 3, 4  # Py_mod_multiple_interpreters, Py_mod_gil
FREE_THREADED = hasattr(sys, "_is_gil_enabled") and "t" in sys.abiflags


def declared(module: str) -> dict[int, int | None]:
    """The slots of a compiled module's definition, by their numbers."""
    make = getattr(ctypes.PyDLL(find_spec(module).origin), "PyInit_" + module.rpartition(".")[2])
    make.restype = ctypes.c_void_p
    definition = Definition.from_address(make() + object.__basicsize__)
    assert definition.m_name.decode() == module.rpartition(".")[2] and definition.m_slots
    slots, out = ctypes.cast(definition.m_slots, ctypes.POINTER(Slot)), {}
    while slots[len(out)].slot:
        out[slots[len(out)].slot] = slots[len(out)].value
    return out


@pytest.mark.parametrize("module", LOADABLE)
def test_no_module_claims_to_do_without_the_gil_or_to_serve_several_interpreters(module):
    """Steps keep the GIL while they are small, and borrow references under it: see CONTRIBUTING."""
    slots = declared(module)
    assert slots.get(GIL) is None  # Py_MOD_GIL_USED is 0; only a free-threaded Python has the slot
    assert (GIL in slots) == FREE_THREADED
    assert slots.get(MULTIPLE_INTERPRETERS) is None  # not supported, or not said: then Cython refuses at import


@pytest.mark.skipif(not FREE_THREADED, reason="not a free-threaded Python")
def test_a_free_threaded_python_takes_the_gil_back_and_says_so():
    done = subprocess.run([sys.executable, "-c", "import numpy, sys; before = sys._is_gil_enabled(); import fastopt; "
                           "print(before, sys._is_gil_enabled())"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                               "PYTHONWARNINGS": "default"})  # fmt: skip
    assert done.stdout.split() == ["False", "True"] and "GIL" in done.stderr and "fastopt" in done.stderr


INTERPRETERS = find_spec("_interpreters") or find_spec("_xxsubinterpreters")
SECOND_INTERPRETER = """
import json, sys
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
load = '''
import importlib.machinery, importlib.util
loader = importlib.machinery.ExtensionFileLoader(name, path)
try:
    importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    said = "loaded"
except ImportError as error:
    said = str(error)
with open(out, "a") as file:
    print(said, file=file)
'''
name, path, out = sys.argv[1:]
exec(load)
for config in ("legacy", "isolated") if hasattr(_interpreters, "new_config") else (None,):
    other = _interpreters.create(*filter(None, [config]))
    error = _interpreters.run_string(other, f"name, path, out = {name!r}, {path!r}, {out!r}" + load)
    assert error is None, error
    _interpreters.destroy(other)
print(json.dumps(open(out).read().splitlines()))
"""


@pytest.mark.skipif(not INTERPRETERS, reason="this Python has no module for subinterpreters")
@pytest.mark.parametrize("module", LOADABLE)
def test_a_module_refuses_a_second_interpreter_by_itself(module, tmp_path):
    """Without NumPy, which would be the first to refuse."""
    first, *others = run(SECOND_INTERPRETER, module, find_spec(module).origin, tmp_path / "said")
    assert first == "loaded" and others
    assert all("nterpreter" in said for said in others), others


# --- What it needs


def test_the_core_needs_numpy_alone():
    supply = load_supply()
    needs = supply.requirements(supply.PYPROJECT)
    assert [supply.name_of(line) for line in needs["core"]] == ["numpy"]
    assert set(needs) >= {"core", "demo", "torch", "test", "lint"}
    for extra, lines in needs.items():
        assert all(supply.name_of(line) != "fastopt" for line in lines), f"{extra} was not resolved"
        assert not any("@" in line or "://" in line for line in lines), f"{extra} needs something from elsewhere"


def load_supply():
    spec = importlib.util.spec_from_file_location("supply", Path(__file__).with_name("supply.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
