# For tests: the walk of a step, over arrays that no machine has room for; a stage or format by itself, and sums in any
# pieces.

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

    A list of (array, first element, elements), as `step_blocks` hands them to a rule; the arrays need no memory.
    """
    global n_noted
    cdef Param q[MOST_NOTED]
    cdef Work work[MOST_NOTED]
    cdef StepScalars bank[MOST_NOTED]
    cdef Program program
    cdef Rule rule
    cdef Job job
    cdef Py_ssize_t i, blocks = 0
    rule.n_states, rule.f32, rule.f64 = 0, note_f32, note_f64
    rule_alone(&program, &rule, &rule)
    if not all(width in (4, 8) for _, width in arrays):
        raise ValueError("an element has 4 or 8 bytes")
    for i, (n, width) in enumerate(arrays[:MOST_NOTED]):
        q[i].p, q[i].n, q[i].type = NULL, n, cnp.NPY_DOUBLE if width == 8 else cnp.NPY_FLOAT
        q[i].stored = NULL
        work[i].q, work[i].program, work[i].g, work[i].place, work[i].first_block = &q[i], &program, NULL, i, blocks
        blocks += n // (BLOCK // <int>width) + (n % (BLOCK // <int>width) != 0)
        bank[i].flush = False
        scale(&bank[i].h, 0, i)
    n_noted = 0
    clear_job(&job, work, bank)
    job.n_work = min(<Py_ssize_t>len(arrays), MOST_NOTED)
    step_blocks(&job, begin, end)
    return [(noted[i][0], noted[i][1], noted[i][2]) for i in range(n_noted)]


def run_stage_alone(str name, cnp.ndarray target, cnp.ndarray gradient, cnp.ndarray param, scalars):
    """Run a stage once, at the level in use, over flat arrays of one length and type. For tests."""
    cdef Stage stage
    cdef float *f32[1]
    cdef double *f64[1]
    cdef Py_ssize_t n = target.shape[0]
    stage.kernel = find_stage(name)
    if not (target.dtype == gradient.dtype == param.dtype and target.shape[0] == gradient.shape[0] == param.shape[0]
            and len(scalars) == stage.kernel.n_scalars <= MOST_STAGE_SCALARS):
        raise ValueError(f"the stage {name!r} takes arrays of one type and length, and its scalars")
    for i, value in enumerate(scalars):
        stage.f[i], stage.d[i] = <float><double>value, value
    if target.dtype == np.float32:
        f32[0] = <float *>cnp.PyArray_DATA(param)
        run_stage(&stage, <float *>cnp.PyArray_DATA(target), <const float *>cnp.PyArray_DATA(gradient), f32, n)
    else:
        f64[0] = <double *>cnp.PyArray_DATA(param)
        run_stage(&stage, <double *>cnp.PyArray_DATA(target), <const double *>cnp.PyArray_DATA(gradient), f64, n)


def store_alone(str name, cnp.ndarray x, uint32_t key=0):
    """Flat float32 in a format, at the level in use, tile by tile: (elements, what is beside them). For tests.

    `key` is the random number of the first element.
    """
    cdef const Format *format = find_format(name)
    cdef Py_ssize_t n = x.shape[0], first
    cdef cnp.ndarray a = np.empty(n * format.size, np.uint8), b = np.empty(beside_bytes(format, n), np.uint8)
    if not has_form(x) or cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT:
        raise ValueError(f"the format {name!r} takes flat arrays of float32")
    for first from 0 <= first < n by FORMAT_TILE:
        format.store(cnp.PyArray_BYTES(a) + first * format.size, cnp.PyArray_BYTES(b) + beside_bytes(format, first),
                     <const float *>cnp.PyArray_DATA(x) + first, min(n - first, FORMAT_TILE),
                     lattice(key, first))
    return a.view(np.dtype(f"u{format.size}")), b.view(np.uint16)


def load_alone(str name, cnp.ndarray a, cnp.ndarray b):
    """What `store_alone` gave, as float32. For tests."""
    cdef const Format *format = find_format(name)
    cdef Py_ssize_t n = a.shape[0], first
    cdef cnp.ndarray x = np.empty(n, np.float32)
    if a.dtype.itemsize != format.size or b.nbytes != beside_bytes(format, n):
        raise ValueError(f"the format {name!r} has {format.size} bytes for each element, and "
                         f"{beside_bytes(format, n)} beside {n} elements")
    for first from 0 <= first < n by FORMAT_TILE:
        format.load(<float *>cnp.PyArray_DATA(x) + first, cnp.PyArray_BYTES(a) + first * format.size,
                    cnp.PyArray_BYTES(b) + beside_bytes(format, first), min(n - first, FORMAT_TILE))
    return x


def run_sum_alone(str name, cnp.ndarray x):
    """What a sum gives for each tile of a flat array, at the level in use. For tests."""
    cdef const Sum *sum = find_sum(name)
    cdef cnp.ndarray out = np.empty(tiles_of(x.shape[0]))
    if not has_form(x):
        raise ValueError(f"the sum {name!r} takes flat arrays of float32 or float64")
    if cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE:
        sum.f64(<double *>cnp.PyArray_DATA(out), <const double *>cnp.PyArray_DATA(x), x.shape[0])
    else:
        sum.f32(<double *>cnp.PyArray_DATA(out), <const float *>cnp.PyArray_DATA(x), x.shape[0])
    return out


def sum_in_pieces(str name, list arrays, list pieces):
    """A sum over all arrays, and that of each, with the blocks of the virtual range taken in pieces.

    A piece is (begin, end); no two may meet. For tests.
    """
    cdef Summands summands = Summands(arrays)
    summands.collect(find_sum(name))
    for begin, end in pieces:
        if not 0 <= begin <= end <= summands.job.blocks:
            raise ValueError(f"({begin}, {end}) is no piece of {summands.job.blocks} blocks")
        sum_blocks(&summands.job, begin, end)
    join_tiles(&summands.job)
    total = join_arrays(&summands.job)
    return total, [summands.job.sums[i] for i in range(summands.job.n_work)]
