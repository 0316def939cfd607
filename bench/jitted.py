"""AdamW as loops for Numba: as one writes the formula, and with all that makes it faster and keeps IEEE arithmetic."""

import functools
import math

import numba


def plain(p, g, m, v, t, lr, b1, b2, eps, wd):
    c1, c2 = 1 - b1**t, 1 - b2**t
    for i in numba.prange(p.size):
        m[i] = b1 * m[i] + (1 - b1) * g[i]
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i]
        p[i] = p[i] * (1 - lr * wd) - lr * (m[i] / c1) / (math.sqrt(v[i] / c2) + eps)


def tuned(p, g, m, v, t, lr, b1, b2, eps, wd):
    real = p.dtype.type          # else float32 is computed in float64
    decay, c1, c2 = real(1 - lr * wd), real(1 - b1), real(1 - b2)
    size, root, eps = real(lr / (1 - b1**t)), real(1 / math.sqrt(1 - b2**t)), real(eps)
    b1, b2 = real(b1), real(b2)
    for i in numba.prange(p.size):
        m[i] = b1 * m[i] + c1 * g[i]
        v[i] = b2 * v[i] + c2 * g[i] * g[i]
        p[i] = p[i] * decay - size * m[i] / (math.sqrt(v[i]) * root + eps)


@functools.cache
def compiled(loop, parallel):
    """The loop, jitted; for arrays p, g, m, v, the count t as a float (an int takes a slower power), and numbers."""
    # Numba's default is to raise ZeroDivisionError, which keeps a loop scalar.
    return numba.njit(parallel=parallel, error_model="numpy" if loop is tuned else "python")(loop)
