"""Saves that are killed, stopped, or fail at any moment: afterwards the file is the old state or the new one, whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from proof.scenes import check, play, played

import fastopt
from fastopt import schedules

pytest.importorskip("safetensors", reason="checkpoint files need safetensors, the extra checkpoint")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals, as POSIX has them")

COUNT, FAIL, FULL, SHORT, TORN, KILL, STOP = range(7)  # as in faulty_calls.c
SIZES = (30, 3_000, 30_000, 100_000, 400_000)          # elements: files of 1 KB to 6 MB


# --- The process that saves


def optimizer(n: int, seed: int) -> fastopt.Optimizer:
    """An optimizer whose state is known by its size and seed."""
    lr = schedules.Warmup(seed + 1, schedules.ReduceOnPlateau(0.1, patience=seed))
    opt = fastopt.AdamW([np.zeros(n, np.float32), np.zeros(n // 2)], lr=lr, n_threads=1)
    rng = np.random.default_rng(seed)
    opt.step([rng.normal(size=n).astype(np.float32), rng.normal(size=n // 2)])
    return opt


def content(state_dict: dict[str, Any]) -> str:
    """All of a state dict, as a string to compare."""
    arrays = {(i, name): (a.dtype.str, a.shape, hashlib.sha256(a.tobytes()).hexdigest())
              for i, entry in state_dict["state"].items() for name, a in entry.items()}  # fmt: skip
    return repr((arrays, state_dict["param_groups"], state_dict["fastopt"]))


@lru_cache
def known(n: int, seed: int) -> tuple[fastopt.Optimizer, str]:
    """Such an optimizer, and its content."""
    opt = optimizer(n, seed)
    return opt, content(opt.state_dict())


def held(path: Path) -> str | None:
    """The content of a file, None if there is none."""
    return content(fastopt.load(path)) if path.exists() else None


def forked(body: Callable[[], None]) -> int:
    """The id of a child that runs this and ends."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def kills(folder: Path, number: int, seed: int) -> Counter[str]:
    """Kill a process that saves two states in turn, again and again, after random times.

    The child says when a save begins and when it has ended: between the two, the file may hold either state; else it
    holds the one that was saved last. What killed saves left is removed by the next save, which may be killed, too.
    """
    rng, seen, path = random.Random(seed), Counter(), folder / "run"
    before = None
    for i in range(number):
        n = rng.choice(SIZES)
        opts, contents = zip(known(n, 0), known(n + 1, 1), strict=True)
        if i % 10 == 0:
            opts[1].save(path)
            check(os.listdir(folder) == ["run"], "left beside the file", i, seed, os.listdir(folder))
            before = contents[1]
        out, into = os.pipe()

        def saves(into: int = into, opts: Any = opts) -> NoReturn:
            for k in itertools.count():
                os.write(into, b"<")
                opts[k % 2].save(path)
                os.write(into, b">")

        child = forked(saves)
        os.close(into)
        said = os.read(out, 1)
        time.sleep(rng.uniform(0.0, 2.5 * duration(n, str(folder.parent))))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        check(os.WIFSIGNALED(status), "the child ended by itself", i, seed)
        while more := os.read(out, 1 << 16):
            said += more
        os.close(out)
        ended, begun = said.count(b">"), said.count(b"<")
        allowed = [contents[(ended - 1) % 2] if ended else before]
        if begun > ended:
            allowed.append(contents[(begun - 1) % 2])
            seen["in the middle of a save"] += 1
        before = held(path)
        check(before in allowed, "neither the old state nor the new one", f"kill {i}", f"seed {seed}", f"n {n}")
        seen["kills"] += 1
        seen["saves that had ended"] += ended
        seen["left something"] += len(os.listdir(folder)) > 1
        check(len(os.listdir(folder)) <= 2, "leftovers pile up", i, seed, os.listdir(folder))
        seen["old state"] += before == allowed[0]
    known(SIZES[0], 0)[0].save(path)
    check(os.listdir(folder) == ["run"], "left beside the file", os.listdir(folder))
    return seen


@lru_cache
def duration(n: int, folder: str) -> float:
    """About the time that a save takes."""
    path = Path(folder) / f"timed-{n}"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        known(n, 0)[0].save(path)
        times.append(time.perf_counter() - start)
    path.unlink()
    return sorted(times)[1]


class Calls:
    """The library that faulty_calls.c becomes, in this process."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self.library.faulty_calls.restype = ctypes.c_long
        self.library.faulty_name.restype = self.library.faulty_log.restype = ctypes.c_char_p
        self.library.faulty_arm.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long)

    @contextlib.contextmanager
    def armed(self, act: int, at: int, error: int = 0) -> Iterator[None]:
        """What is called in the body is counted, and meets `act` at call number `at`."""
        self.library.faulty_arm(act, error, at)
        try:
            yield
        finally:
            self.count = self.library.faulty_calls()
            self.name = (self.library.faulty_name() or b"").decode()
            self.log = [line.split(" ", 1) for line in self.library.faulty_log().decode().splitlines()]
            self.library.faulty_arm(COUNT, 0, 0)


SITUATIONS = ("nothing", "old", "link", "leftover")


def prepared(folder: Path, situation: str, calls: Calls) -> tuple[Path, Path, str | None]:
    """The folder anew, with what a save finds there: the path to save to, the file meant by it, and its content."""
    before = folder.with_name(situation)
    if not before.exists():
        before.mkdir()
        if situation != "nothing":
            known(30, 0)[0].save(before / "run")
        if situation == "link":
            (before / "link").symlink_to("run")
        for at in itertools.count(1) if situation == "leftover" else ():
            killed_at(calls, KILL, at, before / "run", known(200, 2)[0])
            if any(files and files != ["run"] for _, _, files in os.walk(before)):
                break                                           # with a file in it
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder, symlinks=True)
    path = folder / ("link" if situation == "link" else "run")
    return path, folder / "run", None if situation == "nothing" else known(30, 0)[1]


def killed_at(calls: Calls, act: int, at: int, path: Path, opt: fastopt.Optimizer) -> bool:
    """Save in a child that is killed at a call; whether it came that far."""

    def save() -> None:
        with calls.armed(act, at):
            opt.save(path)

    _, status = os.waitpid(forked(save), 0)
    check(status == 0 or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "status", status)
    return status != 0


def kills_at_every_call(folder: Path) -> Counter[str]:
    """Kill a save before each of its system calls, and in the middle of each write."""
    calls, seen = Calls(), Counter()
    new, new_content = known(3_000, 1)
    new.save(folder / "warm")
    for situation in SITUATIONS:
        at, more = 0, True
        while more:
            at += 1
            for act in (KILL, TORN):
                path, target, old_content = prepared(folder / "here", situation, calls)
                killed = killed_at(calls, act, at, path, new)
                if act == KILL:
                    more = killed
                where = situation, ("before call", "in call")[act == TORN], at
                found, there = held(target), os.listdir(target.parent)
                check(found in (old_content, new_content), "neither the old state nor the new one", *where)
                check(killed or found == new_content, "not saved", *where)
                check(len(there) <= 3, "leftovers pile up", *where, there)
                known(30, 2)[0].save(path)
                check(held(target) == known(30, 2)[1], "the next save failed", *where)
                there = os.listdir(target.parent)
                check(set(there) <= {"run", "link"}, "left by the next save", *where, there)
                seen["kills"] += killed
                seen["in a write"] += killed and act == TORN
                seen["new state"] += killed and found == new_content
    return seen


def save_log(calls: Calls, path: Path, opt: fastopt.Optimizer) -> list[list[str]]:
    """The calls of an ordinary save, with their files."""
    opt.save(path)
    with calls.armed(COUNT, 0):
        opt.save(path)
    return calls.log


def order(folder: Path) -> Counter[str]:
    """A save is on the disk before it takes its place, and the taking of the place is on the disk when it returns."""
    calls, path = Calls(), folder / "run"
    log = save_log(calls, path, known(3_000, 1)[0])
    at = {(name, file): i for i, (name, file) in enumerate(log)}   # the last of each
    (place,) = (i for i, (name, file) in enumerate(log) if name.startswith("rename") and file == str(path))
    written = [i for i, (name, _) in enumerate(log) if "write" in name or "truncate" in name]
    synced = [i for i, (name, file) in enumerate(log) if name == "fsync" and file != str(folder)]
    check(len(written) > 0 and max(written) < max(synced) < place, "not on the disk when it takes its place", log)
    check(place < at.get(("fsync", str(folder)), -1), "the folder does not reach the disk", log)
    check(all(file != str(path) for name, file in log if name != "read" and not name.startswith("rename")), log)
    return Counter(calls=len(log))


FAULTS = ((FULL, errno.ENOSPC), (FAIL, errno.EIO), (SHORT, 0), (FAIL, errno.ENOSPC), (FAIL, errno.EACCES))


def faults(folder: Path, kinds: int) -> Counter[str]:
    """Let each system call of a save fail, or write a part; let the disk be full from each of them on."""
    calls, seen = Calls(), Counter()
    new, new_content = known(3_000, 1)
    new.save(folder / "warm")
    for situation, (act, error) in itertools.product(SITUATIONS, FAULTS[:kinds]):
        for at in itertools.count(1):
            path, target, old_content = prepared(folder / "here", situation, calls)
            there, descriptors = set(os.listdir(folder / "here")), os.listdir("/proc/self/fd")
            raised: OSError | None = None
            with calls.armed(act, at, error):
                try:
                    new.save(path)
                except OSError as caught:
                    raised = caught
            where = situation, act, errno.errorcode.get(error, ""), f"call {at}: {calls.name}", repr(raised)
            failed = {FAIL: [at], FULL: range(at, calls.count + 1), SHORT: []}[act]
            placed = any(name.startswith("rename") and file == str(target) and i not in failed
                         for i, (name, file) in enumerate(calls.log, 1))  # fmt: skip
            check(os.listdir("/proc/self/fd") == descriptors, "descriptors left open", *where)
            check(held(target) == (new_content if placed else old_content), "wrong content", *where)
            check(raised is not None or placed, "an error was swallowed", *where)
            check(raised is None or raised.errno == error, "another error", *where)
            check(raised is None or act != SHORT, "a short write is no error", *where)
            if calls.name in ("fsync", "write", "ftruncate64", "mkdir") and act in (FAIL, FULL):
                check(raised is not None, "an error was swallowed", *where)
            if not placed:
                check(set(os.listdir(folder / "here")) <= there, "left", *where, os.listdir(folder / "here"))
            new.save(path)
            check(held(target) == new_content, "the next save failed", *where)
            check(set(os.listdir(folder / "here")) <= {"run", "link"}, "left by the next", *where)
            if calls.count < at:
                check(raised is None, "failed without a fault", *where)
                break
            seen["faults"] += 1
            seen["errors"] += raised is not None
    check(content(new.state_dict()) == new_content, "the optimizer has changed")
    return seen


def faulty_reads(folder: Path) -> Counter[str]:
    """Let each system call of a load fail: the error of the system, or the state."""
    calls, seen, path = Calls(), Counter(), folder / "run"
    opt, want = known(3_000, 1)
    opt.save(path)
    fastopt.load(path)
    for error in (errno.EIO, errno.EMFILE):
        for at in itertools.count(1):
            descriptors = os.listdir("/proc/self/fd")
            raised = saved = None
            with calls.armed(FAIL, at, error):
                try:
                    saved = fastopt.load(path)
                except OSError as caught:
                    raised = caught
            check(raised is None or raised.errno == error, "another error", at, calls.name, repr(raised))
            check(saved is None or content(saved) == want, "wrong state", at, calls.name)
            seen["errors"] += raised is not None
            check(os.listdir("/proc/self/fd") == descriptors, "descriptors left open", at, calls.name)
            if calls.count < at:
                break
            seen["faults"] += 1
    return seen


def stops(folder: Path) -> Counter[str]:
    """Stop a save before each of its system calls, save from another process, and let the first go on."""
    calls, seen = Calls(), Counter()
    mine, mine_content = known(200, 0)
    its, its_content = known(3_000, 1)
    for at in itertools.count(1):
        path, *_ = prepared(folder / "here", "old", calls)

        def save(at: int = at, path: Path = path) -> None:
            with calls.armed(STOP, at):
                its.save(path)

        child = forked(save)
        _, status = os.waitpid(child, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        try:
            placed = held(path) == its_content
            mine.save(path)
            check(held(path) == mine_content, "not saved beside a save that was stopped", at)
        finally:
            if stopped:
                os.kill(child, signal.SIGCONT)
                _, status = os.waitpid(child, 0)
        check(status == 0, "a save that was stopped failed", at, status)
        check(held(path) == (mine_content if placed else its_content), "not the last that took its place", at)
        check(os.listdir(folder / "here") == ["run"], "left", at, os.listdir(folder / "here"))
        if not stopped:
            return seen
        seen["stops"] += 1
    raise AssertionError


def crowd(folder: Path, rounds: int) -> Counter[str]:
    """Three processes save their states to one path, while another reads it."""
    path, states = folder / "run", [known(n, seed) for n, seed in ((30, 0), (3_000, 1), (30_000, 2))]
    states[0][0].save(path)
    children = [forked(lambda opt=opt: [opt.save(path) for _ in range(rounds)]) for opt, _ in states]
    allowed, seen = {what for _, what in states}, Counter()
    while children:
        check(held(path) in allowed, "a mixture was read")
        seen["reads"] += 1
        child, status = os.waitpid(-1, os.WNOHANG)
        check(status == 0, "a save failed", status)
        if child:
            children.remove(child)
    check(os.listdir(folder) == ["run"], "left", os.listdir(folder))
    return Counter(saves=3 * rounds, **seen)


def tried(path: Path, opt: fastopt.Optimizer, want: str, *errors: int) -> bool:
    """Save; whether it worked. If not, it was one of these errors, the old file is whole, and nothing is left."""
    before, there = held(path), sorted(os.listdir(path.parent))
    try:
        opt.save(path)
    except OSError as error:
        check(error.errno in errors, repr(error))
        check(held(path) == before and sorted(os.listdir(path.parent)) == there, "not as before", there)
        return False
    check(held(path) == want, "not saved")
    return True


def full_disk(folder: Path) -> Counter[str]:
    """On a file system of 64 KB and 10 files: larger and larger states, then less and less room, then no more files."""
    path, seen = folder / "run", Counter()
    for n in [*range(30, 6_000, 211), 30]:
        seen["saved" if tried(path, *known(n, 0), errno.ENOSPC) else "failed"] += 1
    check(min(seen["saved"], seen["failed"]) > 5, seen)
    size = 0
    while size < 64 and tried(path, *known(1_000, size % 2), errno.ENOSPC):
        size += 1
        with open(folder / "ballast", "ab") as file:
            file.write(bytes(1024))
    check(5 < size < 64, size)
    seen["failed"] += 1
    (folder / "ballast").unlink()
    files = 0
    while tried(path, *known(30, files % 2), errno.ENOSPC):
        files += 1
        (folder / str(files)).touch()
    seen["failed"] += 1
    check(3 < files < 10, files)
    (folder / "1").unlink(), (folder / "2").unlink(), (folder / "3").unlink()
    check(tried(path, *known(30, 1)), "not saved when there was room again")
    return seen


def limits(folder: Path) -> Counter[str]:
    """With limits on the size of files and on the number of open ones."""
    import resource

    path, seen = folder / "run", Counter()
    known(30, 0)[0].save(path)
    known(30, 1)[0].save(path)
    big, want = known(300, 2)
    big.save(folder / "big")
    size = os.path.getsize(folder / "big")
    (folder / "big").unlink()

    @contextlib.contextmanager
    def limited(what: int, value: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(what)
        resource.setrlimit(what, (value, hard))
        try:
            yield
        finally:
            resource.setrlimit(what, (soft, hard))

    for most in [*range(0, size, 97), size - 1, size]:
        before = held(path)
        with limited(resource.RLIMIT_FSIZE, most):
            try:
                big.save(path)
            except OSError as error:
                check(error.errno == errno.EFBIG and most < size, most, repr(error))
                check(held(path) == before and os.listdir(folder) == ["run"], "not as before", most)
                seen["failed"] += 1
            else:
                check(most >= size and held(path) == want, "saved beyond the limit", most)
    known(30, 0)[0].save(path)
    lowest = os.dup(0)                                          # the limit is on the number of a new descriptor
    os.close(lowest)
    for free in range(12):
        before = held(path)
        error = None
        with limited(resource.RLIMIT_NOFILE, lowest + free):
            try:
                big.save(path)
            except OSError as caught:
                error = caught
        check(error is None or error.errno == errno.EMFILE, free, repr(error))
        check(held(path) == (want if error is None else before), "wrong content", free, repr(error))
        check(os.listdir(folder) == ["run"], "left", free, repr(error), os.listdir(folder))
        check(free > 0 or error is not None, "saved without a descriptor")
        check(free < 6 or error is None, "needs too many", repr(error))
        seen["failed"] += error is not None
        big.save(path)
        check(os.listdir(folder) == ["run"], "left", free, os.listdir(folder))
        known(30, 1)[0].save(path)
    return seen


# --- The tests


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """faulty_calls.c, as a library to preload."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("system calls are made to fail by preloading a library: needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "faulty_calls.so"
    source = Path(__file__).with_name("faulty_calls.c")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-ldl"], check=True)
    return str(library)


def test_a_save_killed_at_a_random_moment_leaves_the_old_state_or_the_new_one(tmp_path, amount, tally):
    (tmp_path / "here").mkdir()
    seen = played(kills, tmp_path / "here", amount(40, 1200), 1)
    assert seen["in the middle of a save"] > 0.5 * seen["kills"]
    assert seen["left something"] > 0.1 * seen["kills"]            # else the kills fell beside the point
    assert 0 < seen["old state"] < seen["kills"]
    tally("saves killed at a random moment, the file whole", seen["in the middle of a save"])


def test_a_save_killed_at_any_system_call_leaves_the_old_state_or_the_new_one(shim, tmp_path, tally):
    seen = played(kills_at_every_call, tmp_path, preload=shim)
    assert 0 < seen["new state"] < seen["kills"] and seen["in a write"] >= len(SITUATIONS)
    tally("saves killed at a system call, the file whole", seen["kills"])


def test_a_save_reaches_the_disk_before_it_takes_its_place(shim, tmp_path):
    assert played(order, tmp_path, preload=shim)["calls"] > 5


def test_a_save_whose_system_calls_fail_is_an_error_and_leaves_no_trace(shim, tmp_path, amount, tally):
    seen = played(faults, tmp_path, amount(3, len(FAULTS)), preload=shim)
    assert 0.3 * seen["faults"] < seen["errors"] < seen["faults"]
    tally("failing system calls of a save survived", seen["faults"])


def test_a_load_whose_system_calls_fail_is_an_error_or_right(shim, tmp_path, tally):
    seen = played(faulty_reads, tmp_path, preload=shim)
    assert seen["errors"] > 2
    tally("failing system calls of a load survived", seen["faults"])


def test_a_save_that_stands_still_and_one_that_overtakes_it_both_come_through(shim, tmp_path, tally):
    tally("saves stopped at a system call, and overtaken", played(stops, tmp_path, preload=shim)["stops"])


def test_processes_that_save_to_one_path_at_once_leave_a_whole_file(tmp_path, amount, tally):
    (tmp_path / "here").mkdir()
    seen = played(crowd, tmp_path / "here", amount(30, 1000))
    assert seen["reads"] > 3
    tally("saves of three processes to one path", seen["saves"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")
def test_limits_of_the_process_are_errors_and_the_old_file_stays(tmp_path, tally):
    tally("saves over a limit of the process refused", played(limits, tmp_path)["failed"])


def test_a_full_disk_is_an_error_and_the_old_file_stays(tmp_path, tally):
    """On a file system of its own, with no room for more."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=11", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here (a failing write stands for it in other tests)")
    try:
        tally("saves to a full disk refused", played(full_disk, tmp_path)["failed"])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


if __name__ == "__main__":
    play(kills, kills_at_every_call, order, faults, faulty_reads, stops, crowd, full_disk, limits)
