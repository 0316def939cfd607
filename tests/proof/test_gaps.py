"""What a mutant or the coverage showed to be untested elsewhere."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ALL, ALL_IDS, build, same_bits, three, unchanged, values

import fastopt
from fastopt import (
    SGD,
    Adam,
    CheckpointError,
    ConventionError,
    HyperparameterError,
    LayoutError,
    RAdam,
    ReadOnlyError,
    ShapeError,
    StateDictError,
    _openmp,
    engine,
    functional,
    reference,
)
from fastopt.errors import ParameterError, UnknownOptionError
from fastopt.schedules import Join

OPENMP = engine.info()["openmp"]
needs_openmp = pytest.mark.skipif(not OPENMP, reason="built without OpenMP")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's own ways")


def run(code: str, **environ: str) -> str:
    """What a fresh interpreter prints; fails if it fails."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environ})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- Rules


@pytest.mark.parametrize("momentum", [0.0, 0.71])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("cls", "convention"), ALL, ids=ALL_IDS)
def test_every_rule_has_the_reference_s_bits_beside_every_weight_decay(cls, convention, decoupled, momentum, nasties):
    options = {"lr": 0.0371, "weight_decay": 0.137, "decoupled_weight_decay": decoupled}
    if "momentum" in cls.hyperparameters:
        options["momentum"] = momentum
    try:
        opt = build(cls, [values((700,), d, k) for k, d in enumerate((np.float32, np.float64))], convention, **options)
    except (ConventionError, UnknownOptionError):
        return  # which test_optimizer.py makes sure of
    twin = reference.twin(opt)
    for seed in range(3):
        grads = [values((700,), d, 5 + 2 * seed + k) for k, d in enumerate((np.float32, np.float64))]
        opt.step(grads)
        twin.step(grads)
    assert same_bits(opt.params, twin.params)


def length_of_average(beta2: float, t: int) -> float:
    """RAdam's rho, as its docstring has it."""
    power = beta2**t
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    return rho_inf - 2.0 * t * power / (1.0 - power)


def beta2_where(rho: float, t: int) -> float:
    """A beta2 with which the average of t squares has exactly this length."""
    low, high = 0.01, 0.99
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if length_of_average(middle, t) < rho else (low, middle)
    near = [low - k * math.ulp(low) for k in range(-1000, 1000)]
    return next((beta2 for beta2 in near if length_of_average(beta2, t) == rho), math.nan)


@pytest.mark.parametrize(("convention", "threshold", "adaptive"), [("torch", 5, 0), ("optax", 5, 1), ("paper", 4, 0)])
def test_radam_at_its_very_threshold_is_as_the_convention_has_it(convention, threshold, adaptive):
    found = {t: beta2 for t in range(6, 40) if not math.isnan(beta2 := beta2_where(threshold, t))}
    assert found, "for some count there is a double that meets the threshold"
    for t, beta2 in found.items():
        opt = build(RAdam, values((5,), np.float64), convention, betas=(0.9, beta2))
        opt._plan.set_count(0, t - 1, (0.0,))
        assert opt._plan.scalars(0)[10] == adaptive, (t, beta2)


# --- Threads


@needs_openmp
@pytest.mark.parametrize("n", ["256", "257", "1000"])
def test_more_threads_than_there_is_room_for_are_not_taken(n):
    said = run(
        """
        import numpy as np, fastopt
        from fastopt import engine
        engine.set_serial_blocks(0)
        engine.set_most_alone(0)
        p, g = np.random.default_rng(0).standard_normal((2, 100_003), np.float32)
        opt = fastopt.AdamW([p])
        twin = fastopt.reference.twin(opt)
        for _ in range(2):
            opt.step([g])
            twin.step([g])
        print(engine.info()["threads"], p.tobytes() == twin.params[0].tobytes())
        """,
        OMP_NUM_THREADS=n,
    )
    assert said == f"{n} True\n"


@needs_openmp
def test_no_more_threads_than_the_quota_of_the_control_group():
    said = run(
        """
        import os
        os.environ.pop("OMP_NUM_THREADS", None)
        from fastopt import engine
        engine.cpu_quota = lambda: 1            # before it is asked for the first time
        info = engine.info()
        print(info["threads"], "CPU quota of the control group 1" in info["threads_reason"])
        """
    )
    assert said == "1 True\n"


@needs_linux
@needs_openmp
def test_threads_that_left_the_caller_s_cpu_may_run_on_every_cpu_again():
    """Four of them on one or two CPUs: some find themselves beside the caller, and go elsewhere for a moment."""
    said = run(
        """
        import os, numpy as np, fastopt
        from fastopt import engine
        engine.set_most_alone(0)
        cpus = set(sorted(os.sched_getaffinity(0))[:2])
        os.sched_setaffinity(0, cpus)
        p, g = np.zeros((2, 3_000_000), np.float32)
        opt = fastopt.Adam([p], n_threads=4)
        for _ in range(30):
            opt.step([g])
        print(all(os.sched_getaffinity(int(task)) == cpus for task in os.listdir("/proc/self/task")))
        """
    )
    assert said == "True\n"


# --- The build


def test_kernels_of_another_build_are_refused():
    said = run(
        """
        import ctypes, sys, types
        from importlib.machinery import ModuleSpec

        class Table(ctypes.Structure):
            _fields_ = [("version", ctypes.c_int), ("n", ctypes.c_int)]

        table = Table(999, 0)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        name = ctypes.create_string_buffer(b"fastopt.kernels.table")

        class Other:
            def find_spec(self, name, path=None, target=None):
                return ModuleSpec(name, self) if name == "fastopt.kernels.generic" else None

            def create_module(self, spec):
                return types.ModuleType(spec.name)

            def exec_module(self, module):
                module.__table__ = new(ctypes.addressof(table), name, None)

        sys.meta_path.insert(0, Other())
        try:
            import fastopt
        except ImportError as error:
            print(error)
        """,
        FASTOPT_ISA="generic",
    )
    assert said == "fastopt.kernels.generic belongs to another build of fastopt; reinstall it\n"


# --- Machines that this one is not

SOURCES = Path(__file__).parents[2] / "src_c"
CPUID_HARNESS = r"""
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
/* A CPU that has everything, but for one bit of one register of one leaf. */
static unsigned lost_leaf, lost_register, lost_bits, xcr0_bits = ~0u;
static int fake(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d)
{
    unsigned *registers[] = {a, b, c, d};
    (void)subleaf;
    *a = *b = *c = *d = ~0u;
    if (leaf == lost_leaf)
        *registers[lost_register] &= ~lost_bits;
    return 1;
}
#define __get_cpuid_count fake
#include "fastopt_cpu.c"
int main(int n, char **word)
{
    lost_leaf = (unsigned)strtoul(word[1], 0, 0);
    lost_register = (unsigned)atoi(word[2]);
    lost_bits = (unsigned)strtoul(word[3], 0, 0);
    xcr0_bits = (unsigned)strtoul(word[4], 0, 0);
    printf("%s %d %d %d %d %d\n", fo_cpu_level(), fo_cpu_has("generic"), fo_cpu_has("x86-64-v2"),
           fo_cpu_has("x86-64-v3"), fo_cpu_has("x86-64-v4"), fo_cpu_has("x86-64-v5"));
    return n != 5;
}
"""
XGETBV = '__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));'
# From the psABI: (leaf, register of eax ebx ecx edx, bits). What is lost costs the level, and those above.
FEATURES = {
    "x86-64-v2": [(1, 2, {0: "sse3", 9: "ssse3", 13: "cx16", 19: "sse4.1", 20: "sse4.2", 23: "popcnt"}),
                  (0x80000001, 2, {0: "lahf"})],
    "x86-64-v3": [(1, 2, {12: "fma", 22: "movbe", 27: "osxsave", 28: "avx", 29: "f16c"}),
                  (7, 1, {3: "bmi1", 5: "avx2", 8: "bmi2"}), (0x80000001, 2, {5: "lzcnt"})],
    "x86-64-v4": [(7, 1, {16: "avx512f", 17: "avx512dq", 28: "avx512cd", 30: "avx512bw", 31: "avx512vl"})],
}  # fmt: skip
X86_64 = ("generic", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def compiled(source: str, folder: Path) -> str:
    """A program of this source, which includes ours; skips where there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("needs a C compiler and the sources")
    (folder / "main.c").write_text(source)
    subprocess.run([compiler, "-w", "-I", str(folder), "-I", str(SOURCES), str(folder / "main.c"), "-o",
                    str(folder / "main")], check=True)  # fmt: skip
    return str(folder / "main")


def printed(*command: Any) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32", reason="for x86-64")
def test_a_level_needs_every_one_of_its_features_and_the_system_s_support(tmp_path):
    source = (SOURCES / "fastopt_cpu.c").read_text() if SOURCES.is_dir() else ""
    assert not source or source.count(XGETBV) == 1
    (tmp_path / "fastopt_cpu.c").write_text(source.replace(XGETBV, "eax = xcr0_bits; (void)edx;"))
    program = compiled(CPUID_HARNESS, tmp_path)

    def expect(level: str, *machine: Any) -> None:
        has = [int(X86_64.index(name) <= X86_64.index(level)) for name in X86_64]
        assert printed(program, *machine) == " ".join(map(str, [level, *has, 0])) + "\n", machine

    expect("x86-64-v4", 0, 0, 0, 0xE6)
    expect("x86-64-v4", 7, 1, ~sum(1 << bit for words in FEATURES.values() for leaf, _, bits in words if leaf == 7
                                   for bit in bits) & 0xFFFFFFFF, 0xE6)  # fmt: skip
    for level, words in FEATURES.items():
        below = X86_64[X86_64.index(level) - 1]
        for leaf, register, bits in words:
            for bit in bits:
                expect(below, leaf, register, 1 << bit, 0xE6)
    for bit in (1, 2):  # xmm, ymm: a system that does not save them leaves no level that has them
        expect("x86-64-v2", 0, 0, 0, 0xE6 & ~(1 << bit))
    for bit in (5, 6, 7):  # opmask, and the two halves of zmm
        expect("x86-64-v3", 0, 0, 0, 0xE6 & ~(1 << bit))


AFFINITY_HARNESS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* A system with room for so many CPUs in its masks, so many of them in this process's; or one that does not tell. */
static size_t room;
static int cpus, error, online;
static int fake_affinity(int process, size_t size, cpu_set_t *mask)
{
    int i;
    (void)process;
    if (error || size * 8 < room) {
        errno = error ? error : EINVAL;
        return -1;
    }
    memset(mask, 0, size);
    for (i = 0; i < cpus; i++)
        CPU_SET_S(i, size, mask);
    return 0;
}
#define sched_getaffinity fake_affinity
#define sysconf(what) online
#include "fastopt_threads.c"
int main(int n, char **word)
{
    room = (size_t)atoi(word[1]), cpus = atoi(word[2]), error = atoi(word[3]), online = atoi(word[4]);
    printf("%d\n", fo_affinity_cpus());
    return n != 5;
}
"""


@needs_linux
def test_the_cpus_of_large_machines_and_of_systems_that_do_not_tell_are_counted(tmp_path):
    program = compiled(AFFINITY_HARNESS, tmp_path)
    for room, cpus, error, online, want in (
        (1024, 3, 0, 8, 3), (1025, 1025, 0, 8, 1025), (2048, 1500, 0, 8, 1500), (8192, 5000, 0, 8, 5000),
        (1024, 3, 38, 8, 8), (1024, 3, 1, -1, 1), (2**30, 3, 0, 8, 8),
    ):  # fmt: skip
        assert printed(program, room, cpus, error, online) == f"{want}\n", (room, cpus, error, online)


# --- Options


def test_eps_root_that_is_edited_needs_its_placement():
    opt = Adam(values(), 0.1, convention="optax", eps_placement="inside")
    opt.step(values(seed=1))
    opt.param_groups[0]["eps_root"] = 0.1
    with unchanged(opt, HyperparameterError, "eps_root=0.1 needs eps_placement='outside'"):
        opt.step(values(seed=2))


def test_a_group_that_lost_its_last_key_is_told():
    opt = Adam(values())
    opt.step(values(seed=1))
    opt.step(values(seed=1))
    *_, last = opt.param_groups[0]
    kept = opt.param_groups[0].pop(last)
    with pytest.raises(HyperparameterError, match=last):
        opt.step(values(seed=2))
    assert opt.steps == 2
    opt.param_groups[0][last] = kept
    opt.step(values(seed=2))


def test_an_option_that_does_not_exist_is_refused_in_a_group_too():
    opt = SGD(values())
    with unchanged(opt, UnknownOptionError, "no option 'alpha'"):
        opt.add_param_group({"params": values(), "alpha": 0.5})
    with pytest.raises(UnknownOptionError, match="no option 'alpha'"):
        SGD([{"params": values(), "alpha": 0.5}])


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.nan, math.inf, "2"])
def test_a_grad_scale_that_float64_cannot_be_divided_by(scale):
    opt = Adam(values((4,), np.float64))
    with unchanged(opt, HyperparameterError, "grad_scale"):
        opt.step(values((4,), np.float64, 1), grad_scale=scale)


class From:
    """A schedule that is right from some step on only."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: int) -> float:
        return 0.1 if step >= self.step else -1.0


class Unwilling:
    def __float__(self):
        raise OverflowError


@pytest.mark.parametrize("value", ["0.1", None, True, [0.1], Unwilling()])
def test_a_part_of_a_schedule_that_gives_no_number_is_told(value):
    schedule = Join([0.1, lambda step: value], [2])
    assert schedule(1) == 0.1
    with pytest.raises(HyperparameterError, match="at step 0; a number is needed"):
        schedule(2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_asks_no_schedule_about_steps_of_before(duplicate):
    opt = SGD(values(), lr=0.1)
    for seed in range(3):
        opt.step(values(seed=seed))
    opt.param_groups[0]["lr"] = From(3)
    other = duplicate(opt)
    for one in (opt, other):
        one.step(values(seed=4))
    assert same_bits(opt.params, other.params) and other.steps == 4


# --- State


@pytest.mark.parametrize("back", [False, True])
def test_state_of_a_factory_whose_memory_was_exchanged(back):
    made = []

    def factory(name, shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    opt, g = SGD(np.ones(10), lr=0.1, momentum=0.9, state_factory=factory), np.ones(10)
    opt.step(g)
    before = made[0].ctypes.data
    made[0].resize(100_000, refcheck=False)
    taken = [np.zeros(10) for _ in range(100)]  # where it was, among others
    if back:
        made[0].resize(10, refcheck=False)
        if made[0].ctypes.data == before:
            pytest.skip(f"the memory did not move, for all {len(taken)} arrays")
    with pytest.raises(LayoutError, match="momentum_buffer"):
        opt.step(g)  # a new one might lie where the state was
    assert opt.steps == 1


def test_a_factory_that_shrinks_what_it_gave_before_when_an_option_is_edited():
    given = []

    def factory(name, shape, dtype):
        if name == "max_exp_avg_sq":
            given[0].resize(1, refcheck=False)
        given.append(np.zeros(shape, dtype))
        return given[-1]

    opt = Adam(np.ones(1000), state_factory=factory)
    opt.step(np.ones(1000))
    opt.param_groups[0]["amsgrad"] = True
    before = opt.params[0].copy()
    with pytest.raises(ShapeError, match="exp_avg"):
        opt.step(np.ones(1000))
    assert (opt.params[0] == before).all() and opt.steps == 1


def saved(steps: int = 3, **options: Any) -> dict[str, Any]:
    opt = Adam(three(), **options)
    for seed in range(steps):
        opt.step(three(seed))
    return copy.deepcopy(opt.state_dict())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["param_groups"][0].update(params=[0, 1, 1]), "lists a parameter twice"),
        (lambda d: d["state"].update({7: d["state"][2]}), "state for 7, which is in none of its groups"),
        (lambda d: d["fastopt"].update(steps=2**63 - 2**31), "must be a whole number"),
        (lambda d: d["fastopt"]["counts"].__setitem__(1, 2**63 - 2**31), "must be a whole number"),
    ],
)
def test_a_state_dict_that_contradicts_itself_changes_nothing(change, match):
    opt = Adam(three())
    opt.step(three(5))
    bad = saved()
    change(bad)
    with unchanged(opt, StateDictError, match):
        opt.load_state_dict(bad)


def test_a_load_after_param_groups_changed_its_length_changes_nothing():
    opt = Adam(three())
    opt.step(three(5))
    before = opt.params[0].copy()
    opt.param_groups.append(dict(opt.param_groups[0]))
    with pytest.raises(StateDictError, match="length"):
        opt.load_state_dict(saved())
    opt.param_groups.pop()
    assert same_bits(opt.params[0], before) and opt.steps == 1


def test_a_load_that_fails_for_want_of_state_changes_nothing():
    """The dict needs a slot that the optimizer's factory does not give."""

    def factory(name, shape, dtype):
        if name == "max_exp_avg_sq":
            raise StateDictError("no room")
        return np.zeros(shape, dtype)

    opt = Adam([values()], lr=0.5, state_factory=factory)
    opt.step([values(seed=1)])
    other = Adam([values()], lr=0.25, amsgrad=True)
    for seed in range(3):
        other.step([values(seed=seed)])
    with unchanged(opt, StateDictError, "no room"):
        opt.load_state_dict(other.state_dict())


@pytest.mark.parametrize("view", [np.flip, lambda a: a[::-1, ::-1], lambda a: a[:, ::-1]])
def test_state_from_reversed_views_of_one_s_own_live_state(view):
    opt, other = ([Adam([values((4, 4)), values((4, 4), seed=1)]) for _ in range(2)])
    for seed in range(3):
        for one in (opt, other):
            one.step([values((4, 4), seed=seed), values((4, 4), seed=seed + 7)])
    live, apart = opt.state_dict(), copy.deepcopy(other.state_dict())
    for d in (live, apart):
        first, second = d["state"][0]["exp_avg"], d["state"][1]["exp_avg"]
        d["state"][0]["exp_avg"], d["state"][1]["exp_avg"] = view(second), view(first)
    opt.load_state_dict(live)
    other.load_state_dict(apart)
    assert same_bits([s["exp_avg"] for s in opt.state], [s["exp_avg"] for s in other.state])


def test_a_header_with_two_digests_is_refused(tmp_path):
    """Of two keys of one name JSON keeps the last; the digest that is checked is the first that is found."""
    pytest.importorskip("safetensors")
    path = tmp_path / "run"
    opt = Adam(three())
    opt.step(three(5))
    opt.save(path)
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    entry = re.search(rb'"fastopt\.digest":"([0-9a-f]{64})"', data[8 : 8 + n])
    header = data[8 : 8 + n].replace(entry[0], entry[0] + b"," + entry[0])
    head, digest = len(header).to_bytes(8, "little") + header, entry[1]
    right = hashlib.sha256(head.replace(digest, b"0" * 64, 1)).hexdigest().encode()
    path.write_bytes(head.replace(digest, right, 1) + data[8 + n :])
    with unchanged(opt, CheckpointError, "has 2 digests, not one"):
        opt.load(path)


# --- Functions


def test_schedules_of_functions_are_called_with_the_steps_already_taken():
    calls = []
    p, q = np.ones(3), np.ones(3)
    functional.sgd_(p, np.ones(3), step=5, lr=lambda step: (calls.append(step), 0.25)[1])
    functional.sgd_(q, np.ones(3), step=5, lr=0.25)
    assert set(calls) == {4} and same_bits(p, q)


def test_a_product_that_is_read_only_is_refused():
    p, m, v, product = np.ones(3), np.zeros(3), np.zeros(3), np.ones(1)
    product.flags.writeable = False
    with pytest.raises(ReadOnlyError, match="mu_product is read-only"):
        functional.nadam_(p, np.ones(3), m, v, product, step=1)
    assert p.tolist() == [1, 1, 1] and not m.any() and not v.any()


@pytest.mark.parametrize("product", [math.nan, -0.5, 1.5])
def test_a_product_out_of_range_is_refused(product):
    p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    with pytest.raises(ParameterError, match="mu_product=.* must be in"):
        functional.nadam_(p, np.ones(3), m, v, np.array([product]), step=1)
    assert p.tolist() == [1, 1, 1] and not m.any() and not v.any()


def test_functions_are_called_as_their_signatures_say():
    p, g, m, v = (np.ones(3) for _ in range(4))
    for call in (
        lambda: functional.adam_(p, g, m, step=1),
        lambda: functional.adam_(p, g, m, v),
        lambda: functional.adam_(p, g, m, v, v, v, v, step=1),
        lambda: functional.adam_(p, g, m, v, exp_avg=m, step=1),
    ):
        with pytest.raises(TypeError, match="argument"):
            call()
    with pytest.raises(UnknownOptionError, match="fill 'sum' yourself"):
        functional.adagrad_(p, g, m, step=1, initial_accumulator_value=0.5)
    assert all(x.tolist() == [1, 1, 1] for x in (p, g, m, v))


# --- Where the system does not tell, and types of others


def test_no_openmp_library_is_seen_where_the_system_does_not_tell(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(_openmp, "open", refuse, raising=False)
    assert _openmp.loaded_runtimes() == []


def test_minimize_takes_gradients_that_have_nothing_but_dlpack():
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    w, plain = np.array([3.0, -2.0]), np.array([3.0, -2.0])
    mine = fastopt.minimize(lambda w, _: (w @ w / 2, Foreign(w.copy())), w, SGD(w, lr=0.5), tol=1e-6)
    same = fastopt.minimize(lambda w, _: (w @ w / 2, w.copy()), plain, SGD(plain, lr=0.5), tol=1e-6)
    assert same_bits(w, plain) and mine.steps == same.steps and mine.reason == "tol"


def test_minimize_calls_what_can_be_called_and_norms_what_is_a_number():
    class Lenient:
        def step(self, grads):
            pass

    w = np.ones(2)
    for bad in ({"fun": 3}, {"fun": lambda w, _: (0.0, w), "callback": 3}):
        fun = bad.pop("fun")
        with pytest.raises(HyperparameterError, match="must be callable, not 3"):
            fastopt.minimize(fun, w, SGD(w), **bad)
    with pytest.raises((TypeError, ValueError)):  # though the optimizer takes it
        fastopt.minimize(lambda w, _: (0.0, np.array(["no", "number"])), w, Lenient())
