"""A call that memory runs out for raises MemoryError, has changed nothing, and works when it is made again.

Every allocation of a call is made to fail, one after the other: Python's own through `_testcapi`, and the C library's
through a `malloc` loaded before it. Each call runs in a process of its own, which is this file as a program: a crash
is then a failed test that says which allocation it was.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import faulthandler
import gc
import itertools
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import build, frozen, frozen_optimizer, needed, three, values

import fastopt
from fastopt import FastoptError, Optimizer, engine, functional
from fastopt.declare import arrays_of, numbers_of

NUMPY_S = (SystemError, pickle.PicklingError)
"""What an array's `__reduce__` raises when it gets no memory, and what pickle makes of an import that failed."""
LOST = ("error return without exception set", "NULL object passed to Py_BuildValue")
"""CPython drops the exception at hand where it gets no memory for a frame's object, and says so in a SystemError: its
own, or, in 3.10, that of who goes on without it."""


# --- The calls


class Call(NamedTuple):
    """A call that memory is to run out for."""

    make: Callable[[], Any]
    """What it is about, the same every time."""
    act: Callable[[Any], Any]
    """The call; what it returns is compared, too."""
    errors: tuple[type[Exception], ...] = ()
    """What others raise in it, where they should raise MemoryError."""


def gradients(opt: Optimizer) -> list[np.ndarray]:
    return [values(p.shape, p.dtype, i + 20).copy("F" if p.flags.f_contiguous else "C")
            for i, p in enumerate(opt.params)]  # fmt: skip


def stepped(opt: Optimizer, steps: int = 2) -> Optimizer:
    for _ in range(steps):
        opt.step(gradients(opt))
    return opt


def with_gradients(opt: Optimizer, change: Callable[[np.ndarray], np.ndarray] = np.asarray) -> tuple[Any, ...]:
    return opt, [change(g) for g in gradients(opt)]


def step(subject: tuple[Any, ...]) -> None:
    subject[0].step(subject[1])


def clip_and_step(subject: tuple[Any, ...]) -> None:
    subject[0].clip_norm = 0.5
    step(subject)


def skip(subject: tuple[Any, ...]) -> None:
    subject[0].step(subject[1], found_inf=1)


def in_and_out(opt: Optimizer) -> list[Any]:
    """What is seen of an optimizer while averages stand in."""
    with opt.averaged():
        return [[p.copy() for p in opt.params], copy.deepcopy(opt.state_dict())]


def edited(opt: Optimizer, **options: Any) -> Optimizer:
    for group in opt.param_groups:
        group.update(options)
    return opt


def slower(k: int) -> float:
    return 0.1 / (1 + k)


def saved(opt: Optimizer) -> dict[str, Any]:
    return copy.deepcopy(stepped(edited(opt, lr=0.5)).state_dict())


def calls(cls: type[Optimizer], convention: str) -> dict[str, Call]:
    """Everything that one optimizer can be asked for, by what it is."""

    def made(params: Any = None, **options: Any) -> Optimizer:
        return build(cls, three() if params is None else params, convention, **options)

    whole: dict[str, Any] = {"clip_norm_each": 0.5, "ema_decay": slower, "ema_start": 2, "zero_grads": True}
    whole |= {"clip_value": 0.3, "clip_norm": 0.5} if convention != "keras" else {}
    found = {
        "constructor": Call(three, made),
        "constructor with groups": Call(
            three, lambda a: made([{"params": dict(zip("ab", a[:2], strict=True))}, {"params": {"c": a[2]}, "lr": 0.5}])
        ),
        "first step": Call(lambda: with_gradients(made()), step),
        "step": Call(lambda: with_gradients(stepped(made(flush_subnormal=False))), step),
        "step with copied gradients": Call(
            lambda: with_gradients(stepped(made(copy_grads=True)), lambda g: np.asfortranarray(g[::-1], np.float16)),
            step,
        ),
        "step with a schedule": Call(lambda: with_gradients(stepped(made(lr=slower))), step),
        "step that finds a NaN": Call(
            lambda: with_gradients(stepped(made(nonfinite="raise")), lambda g: g * np.float32(np.nan)), step
        ),
        "step on two threads": Call(
            lambda: with_gradients(stepped(made([values((200,)), values((3000,))], n_threads=2))), step
        ),
        "first step that clips": Call(lambda: with_gradients(made(clip_norm=0.5)), step),
        "step that clips by a schedule": Call(
            lambda: with_gradients(stepped(made(clip_norm=slower, nonfinite="skip"))), step
        ),
        "step that clips from now on": Call(
            lambda: with_gradients(stepped(made())), clip_and_step
        ),
        "step that clips on two threads": Call(
            lambda: with_gradients(made([values((200,)), values((3000,))], n_threads=2, clip_norm=0.5)), step
        ),
        "first step with all around it": Call(lambda: with_gradients(made(**whole)), step),
        "step with all around it": Call(lambda: with_gradients(stepped(made(**whole))), step),
        "step with all around it on two threads": Call(
            lambda: with_gradients(made([values((200,)), values((3000,))], n_threads=2, **whole)), step
        ),
        "step that averages from now on": Call(
            lambda: with_gradients(edited(stepped(made()), ema_decay=0.5, zero_grads=True)), step
        ),
        "step that is skipped": Call(lambda: with_gradients(stepped(made(**whole))), skip),
        "averaged": Call(lambda: stepped(made(**whole)), in_and_out),
        "averages": Call(lambda: stepped(made(**whole)), lambda opt: opt.averages),
        "load_state_dict that brings averages": Call(
            lambda: (stepped(made(), 1), saved(made(**whole))), lambda s: s[0].load_state_dict(s[1])
        ),
        "load_state_dict that ends averages": Call(
            lambda: (stepped(made(**whole)), saved(edited(made(**whole), ema_decay=None))),
            lambda s: s[0].load_state_dict(s[1]),
        ),
        "deepcopy of averages": Call(lambda: stepped(made(**whole)), copy.deepcopy, NUMPY_S),
        "state_dict": Call(lambda: stepped(made()), lambda opt: opt.state_dict()),
        "load_state_dict": Call(lambda: (stepped(made(), 1), saved(made())), lambda s: s[0].load_state_dict(s[1])),
        "load_state_dict of its own": Call(lambda: stepped(made()), lambda opt: opt.load_state_dict(opt.state_dict())),
        "add_param_group": Call(
            lambda: (stepped(made()), {"params": [values((6,)), values((70,))], "lr": 0.5}),
            lambda s: s[0].add_param_group(s[1]),
        ),
        "pickle.dumps": Call(lambda: stepped(made()), pickle.dumps, NUMPY_S),
        "pickle.loads": Call(lambda: pickle.dumps(stepped(made())), pickle.loads, NUMPY_S),
        "deepcopy": Call(lambda: stepped(made()), copy.deepcopy, NUMPY_S),
        "functional": Call(lambda: arguments(cls, convention, known=False), called),
        "functional of known arrays": Call(lambda: arguments(cls, convention), called),
        "functional of other arrays": Call(lambda: with_others(arguments(cls, convention)), called),
        "bind": Call(
            lambda: arguments(cls, convention),
            lambda s: functional.bind(cls, s[1][0], s[1][2:], convention=convention, **needed(cls, convention)).step(
                s[1][1], step=7
            ),
        ),
        "norm": Call(three, lambda arrays: [fastopt.norm(arrays), fastopt.norm(dict(enumerate(arrays)), np.inf)]),
        "rebind": Call(lambda: (stepped(made()), three()[1] + 1), lambda s: s[0].rebind(1, s[1])),
    }
    for option in ({"amsgrad": True}, {"centered": True}, {"momentum": 0.5}):
        (key,) = option
        if key in cls.conventions[convention].defaults and not cls.conventions[convention].defaults[key]:
            found[f"step that begins with {key}"] = Call(
                lambda option=option: with_gradients(edited(stepped(made()), **option)), step
            )
            found[f"load_state_dict that brings {key}"] = Call(
                lambda option=option: (stepped(made(), 1), saved(edited(made(), **option))),
                lambda s: s[0].load_state_dict(s[1]),
            )
    if hasattr(cls, "lookahead"):
        found["lookahead"] = Call(lambda: stepped(made()), lambda opt: opt.lookahead())
    return found


def called(subject: tuple[str, list[Any], dict[str, Any]]) -> bool:
    return getattr(functional, subject[0])(*subject[1], **subject[2])


def with_others(subject: tuple[str, list[Any], dict[str, Any]]) -> tuple[str, list[Any], dict[str, Any]]:
    """The same call, over arrays that take the place of those that were remembered."""
    others = [[a.copy() for a in subject[1]] for _ in range(MOST_KEPT + 1)]
    for arrays in others[1:]:
        called((subject[0], arrays, subject[2]))
    return subject[0], others[0], subject[2]


def arguments(cls: type[Optimizer], convention: str, known: bool = True) -> tuple[str, list[Any], dict[str, Any]]:
    """A call of the class's function: its name, and all that it takes. Are its arrays `known` from an earlier call?"""
    arrays = [values((50,)), values((50,), seed=1)]
    arrays += [np.abs(values((50,), seed=2)) for _ in arrays_of(cls, optional=False)]
    arrays += [np.full(1, 0.7) for slot in numbers_of(cls) if slot.like == "number"]
    arrays += [np.abs(values((50,), seed=3)) for _ in arrays_of(cls, optional=True)]
    name, options = f"{cls.__name__.lower()}_", {**needed(cls, convention), "step": 7, "convention": convention}
    if known:
        called((name, arrays, options))
    else:
        functional._KEPT[name].forget()
    return name, arrays, options


ON_TEAMS = {"step on two threads", "step with all around it on two threads"}
MOST_KEPT = 8
"""Plans that a function keeps."""
FEW = [(fastopt.AdamW, "torch"), (fastopt.SGD, "torch"), (fastopt.NAG, "paper"), (fastopt.NAdam, "keras")]
"""Among them: state that options bring, no state, a lookahead, a number carried from step to step."""
EACH = [(cls, next(iter(cls.conventions))) for cls in fastopt.OPTIMIZERS.values()]


# --- The failures: each function makes the call with allocation n failing; was it made at all?


def without_python_s(n: int, act: Callable[[Any], Any], subject: Any) -> tuple[Any, bool]:
    """Python's allocation n fails: of objects, of their memory, of `PyMem_RawMalloc`."""
    import _testcapi

    rest = range(n + 1)
    _testcapi.set_nomemory(n, n + 1)
    try:
        try:
            result = act(subject)
        except Exception as error:
            result = error
        try:
            for _ in rest:
                object()
        except MemoryError:  # it was still to come
            return result, False
        return result, True
    finally:
        _testcapi.remove_mem_hooks()


def without_libc_s(n: int, act: Callable[[Any], Any], subject: Any) -> tuple[Any, bool]:
    """Call n of malloc and its kin fails: NumPy's memory and, under PYTHONMALLOC=malloc, all of Python's."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    left, failed = ctypes.c_long.in_dll(library, "left"), ctypes.c_int.in_dll(library, "failed")
    failed.value = 0
    left.value = n
    try:
        result = act(subject)
    except Exception as error:
        result = error
    left.value = -1
    return result, bool(failed.value)


WAYS = {"python": without_python_s, "libc": without_libc_s}
SHIM = """
/* malloc and its kin, of which one call fails: when `left` calls more were made. None fails while it is negative. */
#include <errno.h>
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
long left = -1;
int failed;
static int fails(void)
{
    if (left < 0 || left-- > 0)
        return 0;
    failed = 1;
    errno = ENOMEM;
    return 1;
}
void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
void *memalign(size_t to, size_t n) { return fails() ? NULL : __libc_memalign(to, n); }
void *aligned_alloc(size_t to, size_t n) { return fails() ? NULL : __libc_memalign(to, n); }
int posix_memalign(void **p, size_t to, size_t n)
{
    if (fails())
        return ENOMEM;
    *p = __libc_memalign(to, n);
    return *p ? 0 : ENOMEM;
}
"""


# --- One process: every allocation of some calls


def snapshot(value: Any) -> Any:
    """All that can be seen of a value, comparable."""
    if isinstance(value, Optimizer):
        return frozen_optimizer(value)
    if isinstance(value, (list, tuple)):
        return [snapshot(item) for item in value]
    if isinstance(value, BaseException):
        return type(value), str(value)
    return frozen(value)


def afterwards(subject: Any, result: Any) -> Any:
    """What is there after a call, and after one more step of every optimizer."""
    there = [snapshot(subject), snapshot(result)]
    both = [*(subject if isinstance(subject, (list, tuple)) else [subject]), result]
    return there, [snapshot(stepped(opt, 1)) for opt in both if isinstance(opt, Optimizer)]


def outcome(call: Call, subject: Any) -> Any:
    """What the call returns or raises when there is memory."""
    try:
        return call.act(subject)
    except FastoptError as error:
        return error


def taken_up(call: Call) -> Any:
    """The snapshot beside the one before the call that a failed call may leave.

    Where options were edited, a step first makes what they need; it may be refused after that, as for a bad gradient.
    """
    subject = call.make()
    if isinstance(subject, tuple) and isinstance(subject[0], Optimizer):
        with contextlib.suppress(FastoptError):
            subject[0].step([])
    return subject


def run_out(
    call: Call, way: Callable[..., tuple[Any, bool]], numbers: Iterable[int], say: Callable[[int], None]
) -> int:
    """Let these allocations of a call fail, one after the other, until there are no more; how many did."""
    for _ in range(2):  # what is made once and kept is made now
        subject = call.make()
        want = afterwards(subject, outcome(call, subject))
    for done, n in enumerate(numbers):
        say(n)
        subject = call.make()
        allowed = [snapshot(subject), snapshot(taken_up(call))]
        result, came = way(n, call.act, subject)
        if failed(call, result) and snapshot(result) != want[0][1]:
            assert came, f"with memory for all: {result!r}"
            assert snapshot(subject) in allowed, f"{result!r}, but something was changed"
            result = outcome(call, subject)
        elif isinstance(result, Exception) and not isinstance(result, FastoptError):
            raise result
        # Else nobody missed that memory: what it is for can be done without.
        assert afterwards(subject, result) == want, "the call made again, or one step more, has other bits"
        if not came:
            return done
    raise AssertionError("the numbers are too few")


def failed(call: Call, result: Any) -> bool:
    """Whether a call ended as one has to that gets no memory."""
    lost = isinstance(result, SystemError) and str(result).endswith(LOST)
    return lost or isinstance(result, (MemoryError, FastoptError, *call.errors))


def careless(arrays: list[np.ndarray]) -> None:
    """What no call may be like: it writes, then asks for memory."""
    arrays[0] += 1
    arrays.append(np.zeros(3000))
    arrays.pop()


def main(which: str, first: str, stride: str, cls: str, convention: str, *only: str) -> None:
    faulthandler.enable()
    gc.disable()
    engine.set_serial_blocks(0)
    engine.set_most_alone(0)
    found = calls(fastopt.OPTIMIZERS[cls], convention)
    if only:
        found = {name: call for name, call in {**found, "careless": Call(three, careless)}.items() if name in only}
    if which == "libc":
        # OpenMP's library ends the process where it gets no memory for a team.
        found = {name: call for name, call in found.items() if name not in ON_TEAMS}
    for name, call in found.items():
        numbers = itertools.count(int(first), int(stride))
        n = run_out(call, WAYS[which], numbers, lambda n, name=name: os.write(1, f"{name}: allocation {n}\n".encode()))
        print(f"{name}: stood {n} failures", flush=True)


# --- The tests


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """environment(way): the variables that a process needs to run out of memory that way; skips where it cannot."""

    def variables(way: str) -> dict[str, str]:
        tests = str(Path(__file__).parents[1])
        path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
        if sys.version_info >= (3, 12):
            pytest.skip("CPython from 3.12 on crashes by itself where it gets no memory for a generator")
        if way == "python":
            pytest.importorskip("_testcapi", reason="this Python comes without _testcapi")
            return {**os.environ, "PYTHONPATH": path}
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if platform.libc_ver()[0] != "glibc" or not compiler:
            pytest.skip("malloc is replaced through names of glibc's, by a C compiler")
        folder = tmp_path_factory.mktemp("shim")
        (folder / "shim.c").write_text(SHIM)
        library = str(folder / "shim.so")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", str(folder / "shim.c"), "-o", library], check=True)
        return {**os.environ, "PYTHONPATH": path, "LD_PRELOAD": library, "PYTHONMALLOC": "malloc"}

    return variables


def process(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.parametrize("way", WAYS)
def test_calls_without_memory_change_nothing_and_work_when_repeated(way, environment, amount, tally):
    variables = environment(way)
    stride = amount(13, 1)
    for k, (cls, convention) in enumerate(amount(FEW, EACH)):
        done = process(variables, way, str(k % stride), str(stride), cls.__name__, convention)
        stood = dict(re.findall(r"^(.+): stood (\d+) failures$", done.stdout, re.MULTILINE))
        where = f"{way} {cls.__name__} {convention}, {''.join(done.stdout.splitlines()[-1:])}"
        assert done.returncode == 0, f"{where}\n{done.stderr}"
        missing = calls(cls, convention).keys() - stood.keys() - ON_TEAMS
        assert not missing and int(stood["constructor"]) >= 100 // stride, where
        tally(f"allocations of {way}'s failed, one at a time, and nothing was changed", sum(map(int, stood.values())))


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_writes_before_it_has_its_memory_is_found(way, environment):
    done = process(environment(way), way, "0", "1", "SGD", "torch", "careless")
    assert done.returncode == 1 and "but something was changed" in done.stderr, done.stdout + done.stderr


if __name__ == "__main__":
    main(*sys.argv[1:])
