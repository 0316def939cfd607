# distutils: extra_compile_args = -O3 -march=native -fopenmp
# distutils: extra_link_args = -fopenmp
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the bytes of a step cost: loops in the style of fastopt's kernels that read and write the same, and add.

No checks, no scalars, no hyperparameters: nothing but pointers, one call for all arrays, and one parallel region.
"""

import numpy as np

from cython.parallel cimport parallel
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from "omp.h" nogil:
    int omp_get_thread_num()
    int omp_get_num_threads()

cdef enum:
    PAGE = 4096
    MOST = 5                  # p, g and at most three states

ctypedef fused real:
    float
    double


cdef void move0(real *p, const real *g, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] + g[i]


cdef void move1(real *p, const real *g, real *a, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] = a[i] + g[i]
        p[i] = p[i] + g[i]


cdef void move2(real *p, const real *g, real *a, real *b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] = a[i] + g[i]
        b[i] = b[i] + g[i]
        p[i] = p[i] + g[i]


cdef void move3(real *p, const real *g, real *a, real *b, real *c, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] = a[i] + g[i]
        b[i] = b[i] + g[i]
        c[i] = c[i] + g[i]
        p[i] = p[i] + g[i]


cdef void move_and_zero(real *p, real *g, real *a, real *b, real *c, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] = a[i] + g[i]
        b[i] = b[i] + g[i]
        c[i] = c[i] + g[i]
        p[i] = p[i] + g[i]
        g[i] = 0


cdef void move(real **x, int n_states, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t n = last - first
    if n_states == 0:
        move0(x[0] + first, x[1] + first, n)
    elif n_states == 1:
        move1(x[0] + first, x[1] + first, x[2] + first, n)
    elif n_states == 2:
        move2(x[0] + first, x[1] + first, x[2] + first, x[3] + first, n)
    else:
        move3(x[0] + first, x[1] + first, x[2] + first, x[3] + first, x[4] + first, n)


cdef uint64_t read(const uint64_t *x, Py_ssize_t n) noexcept nogil:
    cdef uint64_t found = 0
    cdef Py_ssize_t i
    for i in range(n):
        found = found ^ x[i]
    return found


cdef enum Piece:              # what is done to a piece of an array
    MOVE
    READ                      # the gradient; whole words of it
    MOVE_AND_ZERO


cdef inline uint64_t run(Piece piece, real **x, int n_states, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if piece == READ:
        return read(<const uint64_t *>(x[1] + first), (last - first) * <Py_ssize_t>sizeof(real) // 8)
    if piece == MOVE:
        move(x, n_states, first, last)
    else:
        move_and_zero(x[0] + first, x[1] + first, x[2] + first, x[3] + first, x[4] + first, last - first)
    return 0


cdef class Roofline:
    """Moves the bytes of a step over these parameters, with so many states of the same size."""
    cdef list params, held
    cdef int n_states
    cdef bint double
    cdef Py_ssize_t n_arrays, total
    cdef char **x                         # MOST pointers for each array
    cdef Py_ssize_t *size

    def __init__(self, list params, int n_states):
        self.params, self.n_states, self.n_arrays = params, n_states, len(params)
        self.double = params[0].dtype == np.float64
        self.total = sum([p.size for p in params])
        self.x = <char **>malloc(MOST * self.n_arrays * sizeof(char *))
        self.size = <Py_ssize_t *>malloc(self.n_arrays * sizeof(Py_ssize_t))
        self.held = [params]
        for k in range(n_states):         # a quarter page apart, as fastopt lays them: the best placement known
            block = np.zeros(PAGE + sum([p.nbytes + PAGE for p in params]), np.uint8)
            place = block.ctypes.data
            for i, p in enumerate(params):
                lead = p.ctypes.data + (k + 1) * (PAGE // 4)
                place += (lead - lead % 64 - place) & (PAGE - 1) if p.nbytes >= PAGE else -place & 63
                self.x[MOST * i + 2 + k] = <char *><Py_ssize_t>place
                place += p.nbytes
            self.held.append(block)
        for i, p in enumerate(params):
            self.size[i] = p.size
            self.x[MOST * i] = <char *><Py_ssize_t>p.ctypes.data

    def __dealloc__(self):
        free(self.x)
        free(self.size)

    def take(self, list grads):
        """Use these gradients from now on."""
        self.held[0] = (self.params, grads)
        for i, g in enumerate(grads):
            self.x[MOST * i + 1] = <char *><Py_ssize_t>g.ctypes.data

    cdef uint64_t share(self, int k, int n, Piece piece) noexcept nogil:
        cdef Py_ssize_t begin = self.total * k // n, end = self.total * (k + 1) // n, at = 0, i, first, last
        cdef uint64_t found = 0
        for i in range(self.n_arrays):
            first, last = max(0, begin - at), min(self.size[i], end - at)
            at += self.size[i]
            if first < last and self.double:
                found = found ^ run[double](piece, <double **>&self.x[MOST * i], self.n_states, first, last)
            elif first < last:
                found = found ^ run[float](piece, <float **>&self.x[MOST * i], self.n_states, first, last)
        return found

    cdef uint64_t shares(self, int n_threads, Piece piece) noexcept nogil:
        """All shares of one pass."""
        cdef uint64_t found[256]
        cdef uint64_t both = 0
        cdef int k, n = min(n_threads, 256)
        if n == 1:
            return self.share(0, 1, piece)
        memset(found, 0, sizeof(found))
        with parallel(num_threads=n):
            found[omp_get_thread_num()] = self.share(omp_get_thread_num(), omp_get_num_threads(), piece)
        for k in range(n):
            both = both ^ found[k]
        return both

    def step(self, int n_threads):
        """Move once."""
        with nogil:
            self.shares(n_threads, MOVE)

    def whole_step(self, int n_threads):
        """Read the gradients; then move, with three states, and zero the gradients. Returns what depends on all."""
        cdef uint64_t found
        if self.n_states != 3:
            raise ValueError("two averages and the average of the weights are three states")
        with nogil:
            found = self.shares(n_threads, READ)
            self.shares(n_threads, MOVE_AND_ZERO)
        return found


cdef class Reading:
    """Reads arrays, whole words of them: what a sum cannot do without."""
    cdef list arrays
    cdef Py_ssize_t total
    cdef const uint64_t **x
    cdef Py_ssize_t *size

    def __init__(self, list arrays):
        self.arrays = arrays
        self.x = <const uint64_t **>malloc(len(arrays) * sizeof(uint64_t *))
        self.size = <Py_ssize_t *>malloc(len(arrays) * sizeof(Py_ssize_t))
        for i, a in enumerate(arrays):
            self.x[i], self.size[i] = <const uint64_t *><Py_ssize_t>a.ctypes.data, a.nbytes // 8
        self.total = sum([a.nbytes // 8 for a in arrays])

    def __dealloc__(self):
        free(self.x)
        free(self.size)

    cdef uint64_t share(self, int k, int n, Py_ssize_t n_arrays) noexcept nogil:
        cdef Py_ssize_t begin = self.total * k // n, end = self.total * (k + 1) // n, at = 0, i, first, last
        cdef uint64_t found = 0
        for i in range(n_arrays):
            first, last = max(0, begin - at), min(self.size[i], end - at)
            at += self.size[i]
            if first < last:
                found = found ^ read(self.x[i] + first, last - first)
        return found

    def read(self, int n_threads):
        """Read once; returns what depends on every word."""
        cdef uint64_t found[256]
        cdef uint64_t both = 0
        cdef Py_ssize_t n_arrays = len(self.arrays)
        cdef int k, n = min(n_threads, 256)
        for k in range(n):
            found[k] = 0
        if n == 1:
            with nogil:
                found[0] = self.share(0, 1, n_arrays)
        else:
            with nogil, parallel(num_threads=n):
                found[omp_get_thread_num()] = self.share(omp_get_thread_num(), omp_get_num_threads(), n_arrays)
        for k in range(n):
            both = both ^ found[k]
        return both
