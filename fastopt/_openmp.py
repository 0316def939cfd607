"""How OpenMP's threads wait, decided in the moment before its library is loaded."""

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
    if before:
        outcome = f"without effect: {os.path.basename(before[0])} was loaded before fastopt"
    else:
        outcome = "set by fastopt while loading OpenMP: " + ", ".join(f"{k}={v}" for k, v in SPIN.items())
