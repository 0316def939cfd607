"""Faults on purpose, one for each tool, in the modules that it watches: what does not report them watches nothing.

    python plants.py overrun | overflow | undefined | race

fastopt refuses or cannot make these mistakes by itself, so it is lied to.
"""

from __future__ import annotations

import ctypes
import sys
import threading

import numpy as np

import fastopt


def from_malloc(n: int, given: int) -> np.ndarray:
    """An array that says it has n elements, in memory for so many that nobody has written to."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(4 * given))
    return np.frombuffer((ctypes.c_float * n).from_address(block), np.float32)


def overrun() -> None:
    """A step reads one element that was not given."""
    g = from_malloc(100, 99)
    fastopt.SGD(np.zeros(100, np.float32), lr=0.1).step(g)


def overflow() -> None:
    """The count of a parameter's steps goes beyond 64 bits."""
    opt = fastopt.SGD(np.zeros(3, np.float32), lr=0.1)
    opt._plan.set_count(0, 2**63 - 1, (0.0,))
    opt.step(np.zeros(3, np.float32))


def undefined() -> None:
    """A step depends on memory that nobody has written to."""
    fastopt.SGD(np.zeros(100, np.float32), lr=0.1, nonfinite="skip").step(from_malloc(100, 100))


def race() -> None:
    """Two threads step the same parameter, each with an optimizer of its own."""
    p, g = np.zeros(1_000_000, np.float32), np.ones(1_000_000, np.float32)
    start = threading.Barrier(2)

    def work() -> None:
        opt = fastopt.SGD(p, lr=0.1, n_threads=1)
        start.wait()
        for _ in range(20):
            opt.step(g)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    {f.__name__: f for f in (overrun, overflow, undefined, race)}[sys.argv[1]]()
