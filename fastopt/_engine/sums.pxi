# Sums over the elements of arrays. The order of the additions is in kernels/sums.pxi: one tree for each array, over its
# tiles, and one over the arrays. Here: where the sums of tiles are kept, which thread takes which tile, and `norm`.
#
# Design:
# - A job that sums reads the arrays that a step reads as gradients: `g` of its work. The other fields of a step's work
#   are not looked at, so that a step can sum its gradients before it walks them.
# - A thread that takes blocks of the virtual range sums the tiles that begin in them, each to its end. So every tile
#   is summed once, by one thread, however the range is cut.
# - A tile has TILE_BLOCKS blocks or more. So the sums of array i can begin at the place i + first_block // TILE_BLOCKS
#   of the scratch memory, beyond those of the arrays before it, and no work needs to keep its place.
# - Tiles are added up by one thread, after all are summed: a thousandth of the work.

cdef enum:
    TILE_BLOCKS = 64          # of float32: SUM_TILE * 4 // BLOCK

cdef struct Scratch:          # memory that is kept from one job to the next
    double *items
    Py_ssize_t room


if TILE_BLOCKS * BLOCK != SUM_TILE * 4:
    raise ImportError("TILE_BLOCKS of sums.pxi does not fit SUM_TILE of table.pxd")


cdef inline Py_ssize_t tiles_of(Py_ssize_t n) noexcept nogil:
    """The number of tiles of n elements."""
    return n // SUM_TILE + (n % SUM_TILE != 0)


cdef inline double *sums_of(const Job *job, Py_ssize_t i) noexcept nogil:
    """Where the sums of the tiles of array i are kept."""
    return job.sums + i + job.work[i].first_block // TILE_BLOCKS


cdef int ask_for_sum(Job *job, const Sum *sum, Scratch *scratch) except -1:
    """Make a job whose work is complete one that sums; it keeps its sums in the scratch memory, which may grow."""
    cdef Py_ssize_t needed = job.n_work + job.blocks // TILE_BLOCKS + 1 + tiles_of(job.n_work)
    if needed > scratch.room:
        scratch.items = <double *>renewed(scratch.items, needed * <Py_ssize_t>sizeof(double))
        scratch.room = needed
    job.sum, job.sums = sum, scratch.items
    return 0


cdef inline void sum_tiles(const Job *job, Py_ssize_t i, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Sum the tiles of array i from `first` to `last`."""
    cdef const Work *w = &job.work[i]
    cdef Py_ssize_t start = first * SUM_TILE, n = min(last * SUM_TILE, w.q.n) - start
    if first >= last:
        return
    sum_elements(job, w, sums_of(job, i) + first, start, n)


cdef inline void sum_elements(const Job *job, const Work *w, double *sums, Py_ssize_t start,
                              Py_ssize_t n) noexcept nogil:
    """Sum n elements of an array, from its element `start` on, where a tile begins."""
    if w.q.stored != NULL and w.q.stored.g != NULL:
        sum_format(job.sum, w.q.stored.g, sums, w.g, start, n)
    elif w.q.type == cnp.NPY_DOUBLE:
        job.sum.f64(sums, <const double *>w.g + start, n)
    else:
        job.sum.f32(sums, <const float *>w.g + start, n)


cdef void sum_format(const Sum *sum, const Format *format, double *sums, const char *g, Py_ssize_t start,
                     Py_ssize_t n) noexcept nogil:
    """The same of a gradient in a format."""
    cdef float tile[SUM_TILE]
    cdef Py_ssize_t at, size
    for at from start <= at < start + n by SUM_TILE:
        size = min(start + n - at, SUM_TILE)
        format.load(tile, g + at * format.size, NULL, size)
        sum.f32(sums + (at - start) // SUM_TILE, tile, size)


cdef void sum_blocks(Job *job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Sum the tiles that begin in the blocks from `begin` to `end` of the virtual range."""
    cdef Py_ssize_t i = array_at(job.work, job.n_work, begin), per_block
    cdef const Work *w
    while i < job.n_work and job.work[i].first_block < end:
        w = &job.work[i]
        per_block = elements_per_block(w)
        sum_tiles(job, i, tiles_of(max(0, begin - w.first_block) * per_block),
                  tiles_of(min(end - w.first_block, blocks_of(w.q)) * per_block))
        i += 1


cdef double join(const Sum *sum, double *to, double *x, Py_ssize_t n) noexcept nogil:
    """The sum of n numbers by the tree; what lies between is written to `to`, which may be x."""
    while n > 1:
        sum.join(to, x, n)
        x = to
        n = tiles_of(n)
    return x[0] if n else 0.0


cdef void sum_all(Job *job) noexcept nogil:
    """Sum all arrays, one after the other: job.sums[i] is then the sum of array i.

    The tiles of array i lie from there on: those of the arrays before it are joined by then.
    """
    cdef const Work *w
    cdef double *sums
    cdef Py_ssize_t i
    for i in range(job.n_work):
        prefetch_gradient(job, i)
        w, sums = &job.work[i], job.sums + i
        sum_elements(job, w, sums, 0, w.q.n)
        if w.q.n > SUM_TILE or w.q.n == 0:        # of one tile, the sum is that of the array
            sums[0] = join(job.sum, sums, sums, tiles_of(w.q.n))


cdef void join_tiles(Job *job) noexcept nogil:
    """Once a team has summed all tiles: job.sums[i] is then the sum of array i."""
    cdef double *sums
    cdef Py_ssize_t i
    for i in range(job.n_work):
        sums = sums_of(job, i)
        job.sums[i] = join(job.sum, sums, sums, tiles_of(job.work[i].q.n))


cdef double join_arrays(const Job *job) noexcept nogil:
    """The sum over all arrays, each of which is summed."""
    return join(job.sum, job.sums + job.n_work, job.sums, job.n_work)


# --- Clipping by the norm of all gradients

cdef enum:
    CLIP_TORCH = 0            # how the factor comes from the norm: as PyTorch computes it,
    CLIP_KERAS = 1            # as Keras does,
    CLIP_ABOVE = 2            # or as optax and thinc do


LIMIT = "a number above 0 (inf: the norm is taken, and nothing is clipped)"


cdef double as_limit(value) except? -1:
    """A value as what a norm is not to exceed, if it is a number: it has to be above 0. NaN if not."""
    return float(value) if is_number(value) else NAN


cdef double clip_factor(int form, double norm, double limit) noexcept nogil:
    """What gradients with this norm are multiplied by. `clip_factor` of reference.py is the same."""
    cdef double factor
    if limit == INFINITY:
        return 1
    if form == CLIP_KERAS:
        return limit * min(1 / norm, 1 / limit) if isfinite(norm) else NAN
    if form == CLIP_ABOVE and norm < limit:
        return 1
    factor = limit / (norm + 1e-6 if form == CLIP_TORCH else norm)
    return 1 if factor > 1 else factor     # NaN stays


cdef void settle_clip(Job *job) noexcept nogil:
    """Once all arrays are summed: the norm, and the factors that come from it; or that it is not finite."""
    cdef Clip *clip = job.clip
    clip.norm = job.sum.norm(join_arrays(job)) / clip.grad_scale
    if job.scan_nonfinite and not isfinite(clip.norm) and any_nonfinite(job.work, job.n_work, 0, job.blocks):
        job.found = 1         # of finite float64 numbers, too, the sum of squares may be infinite
        return
    set_factors(job)


cdef void set_factors(Job *job) noexcept nogil:
    """The factors of a step that clips, from the norm of all gradients and the sums of each."""
    cdef const Clip *clip = job.clip
    cdef double limit
    cdef Py_ssize_t i
    if not clip.known:
        job.factor = clip_factor(clip.form, clip.norm, clip.limit)
    for i in range(job.n_work):
        limit = job.work[i].program.own_limit
        if limit > 0:             # what is left of its norm. Keras clips one array, and all, by two formulas
            job.sums[i] = job.factor * clip_factor(CLIP_ABOVE if clip.form == CLIP_KERAS else clip.form,
                                                   job.sum.norm(job.sums[i]) / clip.grad_scale * job.factor, limit)


def clip_of_total(double total, ord, double grad_scale, double limit):
    """The norm of gradients that are divided by `grad_scale`, of their total sum, and PyTorch's factor of it."""
    cdef const Sum *sum = sum_for(ord)
    cdef fo_fenv_t caller = fo_fenv_enter()
    cdef double norm = sum.norm(total) / grad_scale
    cdef double factor = clip_factor(CLIP_TORCH, norm, limit)
    fo_fenv_leave(caller)
    return norm, factor


# --- Norms of the caller's arrays

cdef Team norm_team           # what is known of the teams that took norms
norm_team.most_threads = norm_team.serial_left = norm_team.late_score = 0
norm_team.backoff = FEWEST_ALONE


def norm(arrays, ord, n_threads):
    """See `fastopt.norm`."""
    return sum_up(arrays, ord, n_threads, False)


def total(arrays, ord, n_threads):
    """The sum of which `fastopt.norm` is made: of squares, or the largest magnitude."""
    return sum_up(arrays, ord, n_threads, True)


cdef double sum_up(arrays, ord, n_threads, bint only_total) except? -1:
    cdef int most = most_threads(n_threads)
    cdef const Sum *sum = sum_for(ord)
    cdef Summands summands = Summands(arrays)
    summands.collect(sum)
    norm_team.most_threads = most
    return summands.take(&norm_team, only_total)


@cython.final
cdef class Summands:
    """Arrays of a caller's that a job sums."""
    cdef list labels                   # the names of a dict, [None] for one array, else None
    cdef list members                  # plain arrays and None, kept until the sum is taken
    cdef Param *params
    cdef Work *work
    cdef Scratch scratch
    cdef Job job

    def __cinit__(self, arrays):
        cdef Py_ssize_t n
        self.labels, self.members = readable_members(arrays)
        n = len(self.members)
        self.params = <Param *>renewed(NULL, n * <Py_ssize_t>sizeof(Param))
        self.work = <Work *>renewed(NULL, n * <Py_ssize_t>sizeof(Work))

    def __dealloc__(self):
        PyMem_Free(self.params)
        PyMem_Free(self.work)
        PyMem_Free(self.scratch.items)

    cdef collect(self, const Sum *sum):
        """Check the arrays and make the job. No Python code runs from here on but for an error: they stay like that."""
        cdef cnp.ndarray a
        cdef Py_ssize_t i
        clear_job(&self.job, self.work, NULL)
        for i in range(len(self.members)):
            if self.members[i] is not None:
                a = self.members[i]
                if not has_form(a):
                    check_form(a, member_label(self.labels, i), True)
                add_summand(&self.job, &self.params[i], cnp.PyArray_TYPE(a), cnp.PyArray_SIZE(a),
                            <char *>cnp.PyArray_DATA(a))
        self.job.moved = self.job.blocks
        ask_for_sum(&self.job, sum, &self.scratch)

    cdef double take(self, Team *team, bint only_total) except? -1:
        """The norm, of whatever order, over all; or the total sum that it is made of."""
        cdef fo_fenv_t caller = fo_fenv_enter()
        cdef double found
        try:
            launch(team, &self.job)
            found = join_arrays(&self.job)
            return found if only_total else self.job.sum.norm(found)
        finally:
            fo_fenv_leave(caller)


cdef const Sum *sum_for(ord) except NULL:
    """What a norm of this order is made of, or the error."""
    if is_number(ord) and float(ord) == 2:
        return SQUARES
    if is_number(ord) and float(ord) == np.inf:
        return MAXIMUM
    raise HyperparameterError(f"ord={shown(ord)} must be 2 or inf")


cdef void add_summand(Job *job, Param *q, int type, Py_ssize_t n, char *data) noexcept:
    """Add n elements at `data` to a job that sums; `q` takes what has to be known of them."""
    cdef Work *w = &job.work[job.n_work]
    q.type, q.n = <short>type, n
    q.stored = NULL
    w.q, w.g, w.first_block = q, data, job.blocks
    job.blocks += blocks_of(q)
    job.n_work += 1


cdef tuple readable_members(arrays):
    """The labels (see Summands) of what a caller gave as arrays, and the arrays as plain ones, or None."""
    cdef list labels = None, members
    cdef Py_ssize_t i
    if isinstance(arrays, np.ndarray):
        labels, members = [None], [arrays]
    elif isinstance(arrays, (list, tuple)):
        members = list(arrays)
    elif isinstance(arrays, Mapping):
        labels, members = list(arrays), [arrays[name] for name in arrays]
    elif is_array(arrays):
        labels, members = [None], [arrays]
    else:
        members = listed(arrays)
        if members is None:
            raise DTypeError(f"arrays is a {kind_of(arrays)}; one array, or a list, tuple or dict of them, is needed")
    for i in range(len(members)):
        if members[i] is not None and not cnp.PyArray_CheckExact(members[i]):
            members[i] = np.asarray(as_array(members[i], member_label(labels, i), True))
    return labels, members


cdef str member_label(list labels, Py_ssize_t i):
    """How messages call a member of `arrays`."""
    if labels is None:
        return f"arrays[{i}]"
    return "arrays" if labels[i] is None else f"arrays[{labels[i]!r}]"
