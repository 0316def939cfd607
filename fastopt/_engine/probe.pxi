# For tests: the walk of a step, over arrays that no machine has room for.

cdef enum:
    MOST_NOTED = 16
cdef Py_ssize_t noted[MOST_NOTED][3]    # array, first element, elements
cdef Py_ssize_t n_noted = 0


cdef inline void note(real *p, real array, Py_ssize_t n) noexcept nogil:
    global n_noted
    noted[n_noted][0], noted[n_noted][1], noted[n_noted][2] = <Py_ssize_t>array, <uintptr_t>p // sizeof(real), n
    n_noted += 1


cdef void note_f32(float *p, const float *g, float **s, const float *h, Py_ssize_t n) noexcept nogil:
    note(p, h[0], n)


cdef void note_f64(double *p, const double *g, double **s, const double *h, Py_ssize_t n) noexcept nogil:
    note(p, h[0], n)


def shares(Py_ssize_t blocks, int n):
    """Where the shares of n threads begin, and the last one ends. For tests."""
    if n < 1 or blocks < 0:
        raise ValueError(f"{blocks} blocks for {n} threads")
    return [share_begin(blocks, k, n) for k in range(n + 1)]


def cut(list arrays, Py_ssize_t begin, Py_ssize_t end):
    """What of arrays, given as (elements, bytes of one), lies in the blocks from `begin` to `end`. For tests.

    A list of (array, first element, elements), as `walk` hands them to a rule; the arrays need no memory.
    """
    global n_noted
    cdef Param q[MOST_NOTED]
    cdef Work work[MOST_NOTED]
    cdef Slot slots[MOST_NOTED]
    cdef Around around
    cdef Rule rule
    cdef Py_ssize_t i, blocks = 0
    rule.n_states, rule.f32, rule.f64 = 0, note_f32, note_f64
    around.rule = around.short_rule = &rule
    around.bare = True
    if not all(width in (4, 8) for _, width in arrays):
        raise ValueError("an element has 4 or 8 bytes")
    for i, (n, width) in enumerate(arrays[:MOST_NOTED]):
        q[i].p, q[i].n, q[i].type = NULL, n, cnp.NPY_DOUBLE if width == 8 else cnp.NPY_FLOAT
        work[i].q, work[i].around, work[i].g, work[i].slot, work[i].first_block = &q[i], &around, NULL, i, blocks
        blocks += n // (BLOCK // <int>width) + (n % (BLOCK // <int>width) != 0)
        slots[i].flush = False
        scale(&slots[i].h, 0, i)
    n_noted = 0
    walk(work, min(<Py_ssize_t>len(arrays), MOST_NOTED), slots, begin, end)
    return [(noted[i][0], noted[i][1], noted[i][2]) for i in range(n_noted)]
