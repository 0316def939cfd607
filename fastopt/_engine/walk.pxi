# What a step walks, and the walk: no Python in here but the types.

cdef enum:
    MOST_THREADS = 256        # OpenMP ends the process if it cannot get them
    FEWEST_BLOCKS = 512       # of a chunk that a thread takes at a time
    MOST_BLOCKS = 4096

cdef enum:
    PARAM_BYTES = 128         # two cache lines; 64 bytes more cost 3 to 4 % at 1,000 x 10

cdef struct Param:
    char *p
    char *s[MAX_SLOTS]
    Py_ssize_t n              # elements
    Stored *stored            # if some of its arrays have a format, or a gradient had; then two of them, see add_other
    short type                # NumPy's type number
    short begun               # whether its average has begun
    short nd
    short order               # flag of the memory order shared with gradient and state
    cnp.npy_intp *dims
    int64_t t                 # steps taken
    double numbers[MAX_NUMBERS]     # carried from step to step
    char *gap_low             # free memory in which its last gradient lay
    char *gap_high
    PyObject *array           # borrowed from Plan.arrays

cdef struct Work:             # one array of the step at hand
    Param *q
    const Program *program
    char *g
    PyObject *grad            # the array of g
    Py_ssize_t place          # of its scalars in the bank
    Py_ssize_t first_block


if sizeof(Param) > PARAM_BYTES:
    raise ImportError(f"struct Param of walk.pxi has {sizeof(Param)} bytes; {PARAM_BYTES} are allowed")


cdef inline int shift_of(const Param *q) noexcept nogil:
    """By how many bits the number of elements is shifted to give their bytes, where they are computed with."""
    return 3 if q.type == cnp.NPY_DOUBLE else 2


cdef inline Py_ssize_t blocks_of(const Param *q) noexcept nogil:
    return ((q.n << shift_of(q)) + BLOCK - 1) // BLOCK


cdef inline Py_ssize_t param_bytes(const Param *q) noexcept nogil:
    return q.n * q.stored.p.size if q.stored != NULL and q.stored.p != NULL else q.n << shift_of(q)


cdef inline Py_ssize_t grad_bytes(const Param *q) noexcept nogil:
    """Of the gradient of the step at hand."""
    return q.n * q.stored.g.size if q.stored != NULL and q.stored.g != NULL else q.n << shift_of(q)


cdef inline Py_ssize_t moved_blocks(Py_ssize_t blocks, const Program *program) noexcept nogil:
    """Blocks that a step reads and writes for so many of parameters: these twice, gradients once, each state twice."""
    return blocks * (3 + 2 * (program.rule.n_states + (program.mean >= 0)) + program.zeroes)


cdef inline bint fits(PyObject *array, const Param *q, int flags) noexcept:
    """Whether a rule can walk an array like parameter q: type, shape, memory order, alignment, and these flags."""
    return fo_array_fits(array, q.type, q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED | flags)


cdef inline Py_ssize_t array_at(const Work *work, Py_ssize_t n_work, Py_ssize_t block) noexcept nogil:
    """The place of the array that a block of the virtual range belongs to."""
    cdef Py_ssize_t low = 0, high = n_work, middle
    while high - low > 1:
        middle = (low + high) // 2
        if work[middle].first_block <= block:
            low = middle
        else:
            high = middle
    return low


cdef inline Py_ssize_t elements_per_block(const Work *w) noexcept nogil:
    return BLOCK >> shift_of(w.q)


cdef bint any_nonfinite(Work *work, Py_ssize_t n_work, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Whether a gradient in the blocks from `begin` to `end` holds a NaN or an infinity."""
    cdef Py_ssize_t i, first, last, per_block
    cdef float f = 0
    cdef double d = 0
    for i in range(n_work):
        if work[i].first_block >= end:
            break
        if work[i].first_block + blocks_of(work[i].q) <= begin:
            continue
        per_block = elements_per_block(&work[i])
        first = max(0, begin - work[i].first_block) * per_block
        last = min((end - work[i].first_block) * per_block, work[i].q.n)
        if work[i].program.walk != NULL and work[i].q.stored.g != NULL:
            f = has_nonfinite(work[i].q.stored.g, work[i].g, first, last)
        elif work[i].q.type == cnp.NPY_DOUBLE:
            NONFINITE.f64(&d, <const double *>work[i].g + first, NULL, NULL, last - first)
        else:
            NONFINITE.f32(&f, <const float *>work[i].g + first, NULL, NULL, last - first)
        if f != 0 or d != 0:
            return True
    return False


cdef bint has_nonfinite(const Format *format, const char *g, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The same for the elements from `first` to `last` of a gradient in a format."""
    cdef float tile[SUM_TILE]
    cdef float found = 0
    cdef Py_ssize_t at, n
    for at from first <= at < last by SUM_TILE:
        n = min(last - at, SUM_TILE)
        format.load(tile, g + at * format.size, NULL, n)
        NONFINITE.f32(&found, tile, NULL, NULL, n)
        if found != 0:
            return True
    return False


cdef inline Py_ssize_t share_begin(Py_ssize_t blocks, int k, int n) noexcept nogil:
    """Where the share of thread k of n begins: blocks * k // n, which could overflow as such."""
    return blocks // n * k + blocks % n * k // n


cdef struct Share:            # blocks of the virtual range, taken in chunks; on a cache line of its own
    Py_ssize_t next
    Py_ssize_t end
    char apart[48]

cdef struct Clip:             # of a step that clips gradients by the norm of all
    double limit              # which the norm is not to exceed
    int form                  # how a factor comes from both: see clip_factor
    double grad_scale         # what the gradients are multiplied by
    bint known                # whether the factor is that of the job already
    double norm               # found with the step: of the gradients without that factor

cdef struct Job:
    Work *work
    Py_ssize_t n_work
    const StepScalars *bank
    Py_ssize_t place          # in the bank, of the last noted work; -1 at the start of a group
    int64_t t                 # what those scalars are for,
    bint begun
    double numbers[MAX_NUMBERS]
    Py_ssize_t blocks
    Py_ssize_t moved
    bint scan_nonfinite       # look for NaN and infinities before the first write
    int found
    const Sum *sum            # of the gradients, taken before a step that clips, or instead of one; NULL for none
    double *sums              # of tiles, arrays, and all of them: see sums.pxi. Then the factors of arrays of their own
    Clip *clip                # NULL where there is a sum and no step
    double factor             # of clipping all gradients, once that is known
    Share *shares             # of a team
    int n_shares
    Py_ssize_t chunk
    int cpu                   # of the caller, which the others are to leave; -1 to let them
    Py_ssize_t own_blocks     # what thread 0 did, in so many seconds
    double own_seconds


cdef void clear_job(Job *job, Work *work, const StepScalars *bank) noexcept:
    """An empty job with room for its work, which takes its scalars from this bank."""
    job.work, job.n_work, job.bank, job.blocks, job.moved = work, 0, bank, 0, 0
    job.scan_nonfinite, job.found, job.sum, job.clip, job.factor = False, 0, NULL, NULL, 1


cdef bint is_large(const Job *job) noexcept:
    """Whether a job gives up the GIL: every one that may go to a team, and every one that takes long."""
    return job.moved >= serial_blocks or job.blocks >= gil_blocks


cdef inline void walk_array(const Job *job, Py_ssize_t i, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Step array i from element `first` to `last`."""
    cdef const Work *w = &job.work[i]
    cdef const StepScalars *scalars = &job.bank[w.place]
    cdef double factor
    cdef bint clips_alone
    if first >= last:
        return
    # A whole array, or its beginning, and nothing around the rule: nothing to prepare.
    if w.program.bare and first == 0 and not scalars.flush:
        walk_bare(w, scalars, last)
        return
    factor = job.factor if w.program.own_limit == 0 else job.sums[i]
    if w.program.walk != NULL:
        w.program.walk(w.program, scalars, factor, w.q.stored, w.q.p, w.g, w.q.s, w.q.n, first, last)
        return
    clips_alone = w.program.bare_unclipped and first == 0 and not scalars.flush
    if clips_alone and factor == 1:
        walk_bare(w, scalars, last)
    elif clips_alone and last <= ONE_TILE:
        walk_clipped(w, scalars, factor, last)
    elif w.q.type == cnp.NPY_DOUBLE:
        run_tiles(w.program, scalars, factor, <double *>w.q.p, <double *>w.g, w.q.s, scalars.h.d, first, last - first)
    else:
        run_tiles(w.program, scalars, factor, <float *>w.q.p, <float *>w.g, w.q.s, scalars.h.f, first, last - first)


cdef void walk_clipped(const Work *w, const StepScalars *scalars, double factor, Py_ssize_t n) noexcept nogil:
    """Run the rule on the first n elements of an array, of one tile, whose gradient is clipped by norm, and no more."""
    cdef char room[4 * PAGE]
    cdef const Program *program = w.program
    cdef const Rule *clip = program.stages[program.clip].kernel
    cdef const Rule *rule = program.rule if n > SHORT else program.short_rule
    cdef double *d = beside(room, <const double *>w.q.p)
    cdef float *f = <float *>d
    cdef float by = <float>factor
    if w.q.type == cnp.NPY_DOUBLE:
        clip.f64(d, <const double *>w.g, NULL, &factor, n)
        rule.f64(<double *>w.q.p, d, <double **>w.q.s, scalars.h.d, n)
    else:
        clip.f32(f, <const float *>w.g, NULL, &by, n)
        rule.f32(<float *>w.q.p, f, <float **>w.q.s, scalars.h.f, n)


cdef inline void walk_bare(const Work *w, const StepScalars *scalars, Py_ssize_t n) noexcept nogil:
    """Run the rule alone on the first n elements of an array."""
    cdef const Rule *rule = w.program.rule if n > SHORT else w.program.short_rule
    if w.q.type == cnp.NPY_DOUBLE:
        rule.f64(<double *>w.q.p, <const double *>w.g, <double **>w.q.s, scalars.h.d, n)
    else:
        rule.f32(<float *>w.q.p, <const float *>w.g, <float **>w.q.s, scalars.h.f, n)


cdef inline void prefetch_gradient(const Job *job, Py_ssize_t i) noexcept nogil:
    """Small fresh gradients lie scattered, where the hardware does not expect them: at array i, ask for i + 2."""
    cdef Work *ahead = &job.work[min(i + 2, job.n_work - 1)]
    fo_prefetch(ahead.g, min(ahead.q.n << shift_of(ahead.q), 512))


cdef void zero_gradients(Job *job) noexcept nogil:
    """Zero what a step would have zeroed that was skipped: the next gradients may be added to these."""
    cdef Py_ssize_t i
    for i in range(job.n_work):
        if job.work[i].program.zeroes:
            memset(job.work[i].g, 0, grad_bytes(job.work[i].q))


cdef void walk_all(Job *job) noexcept nogil:
    """Step all arrays, one after the other."""
    cdef Py_ssize_t i
    for i in range(job.n_work):
        if job.sum == NULL:       # else they were just read
            prefetch_gradient(job, i)
        walk_array(job, i, 0, job.work[i].q.n)


# What a thread does with the blocks from `begin` to `end`.
ctypedef void (*Piece)(Job *job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil


cdef void step_blocks(Job *job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Step the blocks from `begin` to `end` of the virtual range."""
    cdef Py_ssize_t i = array_at(job.work, job.n_work, begin), per_block
    cdef Work *w
    while i < job.n_work and job.work[i].first_block < end:
        w = &job.work[i]
        per_block = elements_per_block(w)
        walk_array(job, i, max(0, begin - w.first_block) * per_block,
                   min((end - w.first_block) * per_block, w.q.n))
        i += 1


cdef Py_ssize_t take_shares(Job *job, int k, Piece piece) noexcept nogil:
    """Thread k takes its share, then what is left of the others': nobody waits for the work of one that comes late."""
    cdef Py_ssize_t begin, end, done = 0
    cdef Share *share
    cdef int i
    for i in range(job.n_shares):
        share = &job.shares[(k + i) % job.n_shares]
        begin = fo_take(&share.next, share.end, job.chunk)
        while begin < share.end:
            end = min(begin + job.chunk, share.end)
            piece(job, begin, end)
            done += end - begin
            begin = fo_take(&share.next, share.end, job.chunk)
    return done


cdef void run_member(Job *job, int k, int n) noexcept nogil:
    """Thread k of a team of n, in a floating-point environment of our own; thread 0, the caller, has it already."""
    cdef Py_ssize_t done = 0
    cdef double start = fo_omp_time() if k == 0 else 0
    cdef fo_fenv_t saved
    if k > 0:
        saved = fo_fenv_enter()
        if job.cpu >= 0 and fo_cpu() == job.cpu:
            fo_leave_cpu()
    if job.sum != NULL:
        done = take_shares(job, k, sum_blocks)
        if k == 0:
            job.own_seconds = fo_omp_time() - start
        if job.clip != NULL:
            fo_barrier()
            if k == 0:
                join_tiles(job)
                settle_clip(job)
                share_out(job, job.n_shares)
            fo_barrier()
    elif job.scan_nonfinite:
        if any_nonfinite(job.work, job.n_work, share_begin(job.blocks, k, n),
                         share_begin(job.blocks, k + 1, n)):
            fo_set_flag(&job.found)
        fo_barrier()
    if not job.found and (job.sum == NULL or job.clip != NULL):
        if k == 0:
            start = fo_omp_time()
        done += take_shares(job, k, step_blocks)
        if k == 0:
            job.own_seconds += fo_omp_time() - start
    if k == 0:
        job.own_blocks = done
    else:
        fo_fenv_leave(saved)


cdef void run_alone(Job *job) noexcept nogil:
    if job.sum != NULL:
        sum_all(job)
        if job.clip == NULL:
            return
        settle_clip(job)
    elif job.scan_nonfinite and any_nonfinite(job.work, job.n_work, 0, job.blocks):
        job.found = 1
    if not job.found:
        walk_all(job)


cdef void share_out(Job *job, int n_threads) noexcept nogil:
    """Give every thread its share of all blocks."""
    cdef int k
    for k in range(n_threads):
        job.shares[k].next = share_begin(job.blocks, k, n_threads)
        job.shares[k].end = share_begin(job.blocks, k + 1, n_threads)


cdef bint run_team(Job *job, int n_threads) noexcept nogil:
    """Run a job on a team; whether that took longer than the caller alone would have needed, at its own pace."""
    cdef Share shares[MOST_THREADS]
    cdef double start = fo_omp_time()
    job.shares, job.n_shares = shares, n_threads
    job.own_blocks, job.own_seconds = 0, 0.0
    job.chunk = max(FEWEST_BLOCKS, min(MOST_BLOCKS, job.blocks // (16 * n_threads)))
    share_out(job, n_threads)
    with parallel(num_threads=n_threads):
        run_member(job, fo_omp_thread_num(), fo_omp_num_threads())
    if job.sum != NULL and job.clip == NULL:
        join_tiles(job)
    if job.own_blocks == 0:           # the others did it all, beside a caller who was kept from going on
        return True
    return (fo_omp_time() - start) * job.own_blocks > job.own_seconds * job.blocks * (1 if job.clip == NULL else 2)
