"""The norm of all gradients, or of any arrays, in one call: ``fastopt.norm``."""

from __future__ import annotations

from . import engine
from .typing import Gradients

__all__ = ["norm"]


def norm(arrays: Gradients, ord: float = 2, *, n_threads: int | None = None) -> float:
    """Norm of all elements of one or more arrays, computed in float64, with the same bits on every machine.

    Parameters
    ----------
    arrays : array, or iterable or mapping of arrays
        One array, or several in a list, tuple, dict or iterator: float32 or float64, also mixed, contiguous in C or
        Fortran order. Whatever an optimizer takes as a gradient is taken here: NumPy arrays, and what has the buffer
        protocol or ``__dlpack__``. None in the place of an array is left out, as a parameter without a gradient is.
    ord : {2, inf}
        2 is the square root of the sum of all squares (the Euclidean norm), ``inf`` the largest absolute value.
    n_threads : int or None
        Threads, at least 1. None decides as a step does (docs/threads.md): one for less than 4.6 MB.

    Returns
    -------
    float
        The norm; 0.0 if there are no elements.

    Raises
    ------
    DTypeError
        If an array has another type, or is something else than an array.
    LayoutError
        If an array is not contiguous, or misaligned.
    HyperparameterError
        If `ord` or `n_threads` has another value.

    Notes
    -----
    The order of the additions is specified. So the result has the same bits for any number of threads, any instruction
    set and any alignment, those of ``fastopt.reference.norm``:

    1. Elements are converted to float64 and squared.
    2. An array is cut into tiles of 1,024 elements, in the order of its memory. In a tile, lane j of 16 adds the
       elements j, j + 16, j + 32, ... in this order. The lanes are then added by halves: 8, 4, 2, 1.
    3. The sums of the tiles are added in the same way, 1,024 at a time, until one is left: the sum of the array.
    4. The sums of the arrays are added in the same way, in the order in which they are given.

    An array in C order and one in Fortran order with the same elements may differ in the last bit, since step 2 follows
    the memory.

    No square of a float32 overflows or underflows: the norm of ``[3e30, 4e30]`` is 5e30. Squares of float64 overflow
    above 1.3e154, where the norm is ``inf``, and vanish below 1.5e-162. A NaN anywhere gives NaN, for either `ord`.

    A NumPy array costs some 20 ns beside its elements; any other, which is read through the buffer protocol or DLPack,
    some 2.5 µs.

    Other libraries add the squares of float32 in float32. At 10,000,000 elements ``torch.linalg.vector_norm`` and
    ``torch.nn.utils.clip_grad_norm_`` are off by 3.7e-4 [1]_, and depend on how the elements are split into tensors;
    ``numpy.linalg.norm`` is off by 2e-5 to 5e-5. Both return ``inf`` where a float32 element is above 1.8e19.

    References
    ----------
    .. [1] PyTorch issue 68326, https://github.com/pytorch/pytorch/issues/68326
    .. [2] N. J. Higham. *The Accuracy of Floating Point Summation.* SIAM Journal on Scientific Computing 14 (4), 1993:
       the error of such a tree grows with its depth, not with the number of elements.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> grads = [np.full(3, 2.0, np.float32), None, np.array([[1.0, -4.0]])]
    >>> fastopt.norm(grads)
    5.385164807134504
    >>> fastopt.norm(grads, np.inf)
    4.0

    Gradients that are clipped to a norm of 1 by the caller:

    >>> factor = min(1.0, 1.0 / (fastopt.norm(grads) + 1e-6))
    >>> clipped = [g if g is None else g * g.dtype.type(factor) for g in grads]
    >>> round(fastopt.norm(clipped), 5)
    1.0
    """
    return engine.norm(arrays, ord, n_threads)
