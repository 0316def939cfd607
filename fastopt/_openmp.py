"""What the system says of threads: how OpenMP's wait, decided before its library is loaded, and the CPU quota."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# libgomp spins for milliseconds by default, which starves whoever shares the cores; a passive wait costs 10 to 40 µs a
# region. A short spin has the speed of the first on a quiet machine and the manners of the second on a busy one.
SPIN = {"GOMP_SPINCOUNT": "1000"}
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

#: What became of it: "set by fastopt", "chosen by the user", or "OpenMP was loaded before fastopt".
outcome = "not decided"


def loaded_runtimes() -> list[str]:
    """Paths of the OpenMP libraries in this process; empty where the system cannot tell."""
    try:
        with open("/proc/self/maps") as maps:
            files = {line.split(maxsplit=5)[5].strip() for line in maps if "omp" in line and "/" in line}
    except OSError:
        return []
    names = ("libgomp", "libomp", "libiomp")
    return sorted(path for path in files if os.path.basename(path).startswith(names))


@contextmanager
def calm_openmp() -> Iterator[None]:
    """While libgomp is loaded, ask it to spin briefly, unless the user chose a policy. Nothing stays set."""
    global outcome
    chosen = [name for name in CHOICES if name in os.environ]
    if chosen:
        outcome = f"chosen by the user: {chosen[0]}={os.environ[chosen[0]]}"
        yield
        return
    before = loaded_runtimes()
    os.environ.update(SPIN)
    try:
        yield
    finally:
        for name in SPIN:
            os.environ.pop(name, None)
    from fastopt.engine import openmp_library

    # A wheel brings a library of its own. Yet where another's symbols are global, PyTorch's for one, those are used.
    used = openmp_library()
    if before and (not used or os.path.realpath(used) in before):
        outcome = f"without effect: {os.path.basename(used or before[0])} was loaded before fastopt"
    else:
        outcome = "set by fastopt while loading OpenMP: " + ", ".join(f"{k}={v}" for k, v in SPIN.items())


def cpu_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """CPUs that this process's control group and those above it may use, rounded up; None without a limit."""
    try:
        with open(own) as file:
            entries = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    found = []
    for entry in entries:
        if len(entry) != 3 or not (entry[1] == "" or "cpu" in entry[1].split(",")):
            continue
        # Its own folder and all above it; without pathlib, whose import takes longer than all else here.
        parts = [part for part in entry[2].split("/") if part]
        for depth in range(len(parts), -1, -1):
            base = "/".join([f"{root}{'' if entry[1] == '' else '/cpu'}", *parts[:depth]])
            limit = _read_limit(base, unified=entry[1] == "")
            if limit is not None:
                found.append(limit)
    return min(found, default=None)


def _read_limit(folder: str, unified: bool) -> int | None:
    """The limit that one folder of the control-group tree sets."""
    words: list[str] = []
    try:
        for name in ("cpu.max",) if unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
            with open(f"{folder}/{name}") as file:
                words += file.read().split()
        if words[0] in ("max", "-1"):
            return None
        return max(1, -(-int(words[0]) // int(words[1])))
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None
