# What a step does to the arrays of a group: its rule, and the stages before and after it, on one tile after the other.
#
# The order of the stages, of which most steps have none (docs/exactness.md has the table, reference.py the same):
#
#     unscale, rescale, clamp, negate or l2 | the rule | shrink | flush | the average | zero
#
# The last two write to what no other stage does: the average of the parameter, and the gradient's own memory.
# A new stage is a kernel in kernels/stages.pxi, its twin in STAGES of reference.py, and a line in `compile`.

cdef enum:
    STAGE_TILE = 256          # elements that the stages and the rule take in turns, of arrays beyond the L1 cache
    ONE_TILE = 1024           # elements up to which an array is one tile: fewer calls
    MOST_STAGES = 8           # of one program
    PARAM = 0                 # what a stage writes to: the parameter,
    GRAD = 1                  # a tile that from then on is the gradient,
    STATE = 2                 # or a state slot, this being the first
    MEAN = STATE + MAX_STATES     # where the average of the parameter is among the operands
    MAX_OPERANDS = MEAN + 1
    MAX_SLOTS = MAX_STATES + 1    # of a parameter: those of its class, and its average
    SHORT = 512               # elements up to which an array goes to the narrow kernels
    PAGE = 4096
    BLOCK = 64                # bytes of parameter that are never cut


cdef inline Py_ssize_t beside_bytes(const Format *format, Py_ssize_t n) noexcept nogil:
    """The bytes beside n elements in a format."""
    return format.beside * ((n + format.block - 1) // format.block if format.block else n)


cdef inline uint32_t lattice(uint32_t key, Py_ssize_t i) noexcept nogil:
    """The random number of element i."""
    return key + <uint32_t>i * <uint32_t>LATTICE


cdef struct Stage:
    const Rule *kernel
    int target
    float f[MOST_STAGE_SCALARS]     # its scalars, for each compute type
    double d[MOST_STAGE_SCALARS]

cdef struct Stored
cdef struct Program
ctypedef void (*Walk)(const Program *program, const StepScalars *scalars, double factor, const Stored *stored, char *p,
                      char *g, char *const *state, Py_ssize_t n, Py_ssize_t first, Py_ssize_t last) noexcept nogil

cdef struct Program:
    const Rule *rule
    const Rule *short_rule    # the same for short arrays
    bint bare                 # whether at most steps it is the rule alone,
    bint bare_unclipped       # or is, where nothing is clipped by norm
    int clip                  # the place of the stage that clips by norm, -1 for none: its factor comes with the step
    double own_limit          # of the norm of each gradient, 0 for none: the factors are each array's own
    int mean                  # the place of the average among the state slots, -1 for none
    bint zeroes               # whether gradients are zeroed
    Walk walk                 # over arrays some of which are stored in a format; NULL where none is
    int n_before              # stages before the rule,
    int n_after               # then those after it,
    int n_fading              # then those that are run only at steps that flush
    Stage stages[MOST_STAGES]


cdef void rule_alone(Program *program, const Rule *rule, const Rule *short_rule) noexcept nogil:
    """A program of a rule alone."""
    program.rule, program.short_rule, program.bare, program.bare_unclipped = rule, short_rule, True, True
    program.clip, program.own_limit, program.mean, program.zeroes, program.walk = -1, 0, -1, False, NULL
    program.n_before = program.n_after = program.n_fading = 0


cdef Stage *add(Program *program, int *count, const Rule *kernel, int target, double h0=0, double h1=0) except NULL:
    """Append a stage, counted in `count`, one of the three counts of the program."""
    cdef int place = program.n_before + program.n_after + program.n_fading
    cdef Stage *stage = &program.stages[place]
    if place == MOST_STAGES:
        raise RuntimeError("MOST_STAGES in program.pxi is too small")
    stage.kernel, stage.target = kernel, target
    stage.d[0], stage.d[1] = h0, h1
    stage.f[0], stage.f[1] = <float>h0, <float>h1
    count[0] += 1
    return stage


cdef int compile(Program *program, const Hyper *hyper, double grad_scale, bint clips, double shrink,
                 const Scaled *low, int mean) except -1:
    """The stages around the rule, for hyperparameters and a factor of the loss as they are now.

    `clips` says whether all gradients are clipped by their norm. `shrink` is what decay at the end multiplies
    parameters by. `low` holds, for every state slot, below what it has faded; 0 for never. `mean` is the place of the
    average.
    """
    cdef double wd = hyper.weight_decay
    cdef int n
    cdef Stage *stage
    cdef int k
    rule_alone(program, program.rule, program.short_rule)
    if grad_scale != 1:
        add(program, &program.n_before, UNSCALE, GRAD, grad_scale)
    if clips or hyper.clip_norm_each > 0:
        program.clip, program.own_limit = program.n_before, hyper.clip_norm_each
        add(program, &program.n_before, RESCALE, GRAD)
    if 0 < hyper.clip_value < INFINITY:
        add(program, &program.n_before, CLAMP, GRAD, -hyper.clip_value, hyper.clip_value)
    if wd != 0 and hyper.decay == DECAY_L2:
        add(program, &program.n_before, L2, GRAD, -1.0 if hyper.maximize else 1.0, wd)
    elif hyper.maximize:
        add(program, &program.n_before, NEGATE, GRAD)
    if wd != 0 and hyper.decay == DECAY_LAST:
        add(program, &program.n_after, SHRINK, PARAM, shrink)
    n = program.n_before + program.n_after
    program.mean, program.zeroes = mean, hyper.zeroes
    program.bare = n == 0 and mean < 0 and not hyper.zeroes
    program.bare_unclipped = n == (program.clip >= 0) and mean < 0 and not hyper.zeroes
    if hyper.fades:
        for k in range(program.rule.n_states):
            if low.d[k] > 0:
                stage = add(program, &program.n_fading, FLUSH, STATE + k)
                stage.f[0], stage.d[0] = low.f[k], low.d[k]
    return 0


# --- On one tile

ctypedef fused real:
    float
    double


cdef inline void apply(const Rule *rule, real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    if real is float:
        rule.f32(p, g, s, h, n)
    else:
        rule.f64(p, g, s, h, n)


cdef inline void run_stage(const Stage *stage, real *target, const real *seen, real **operands,
                           Py_ssize_t n) noexcept nogil:
    if real is float:
        stage.kernel.f32(target, seen, operands, stage.f, n)
    else:
        stage.kernel.f64(target, seen, operands, stage.d, n)


cdef inline real *beside(char *room, const real *p) noexcept nogil:
    """A tile in `room`, four pages, that lies three quarters of a page after p in its page.

    State lies one and two quarters after it: streams at one offset in their pages hold each other up.
    """
    cdef uintptr_t start = (<uintptr_t>room + PAGE - 1) & ~<uintptr_t>(PAGE - 1)
    return <real *>(start + ((<uintptr_t>p + 3 * (PAGE // 4)) & (PAGE - 1) & ~<uintptr_t>(BLOCK - 1)))


cdef inline void run_mean(const Mean *mean, real *average, real **operands, Py_ssize_t n) noexcept nogil:
    """What becomes of the average after the step."""
    if mean.copies:
        memcpy(average, operands[PARAM], n * sizeof(real))
    elif mean.kernel != NULL:
        apply(mean.kernel, average, <const real *>NULL, operands, <const real *>(mean.f if real is float else mean.d),
              n)


cdef inline void run_tile(const Program *program, const StepScalars *scalars, real by, real **operands,
                          const real *seen, const real *h, int n_stages, Py_ssize_t n) noexcept nogil:
    """Run the rule and so many stages on a tile. `by` is the factor of clipping by norm, `seen` the gradient."""
    cdef const Stage *stage
    cdef int k
    for k in range(program.n_before):
        if k != program.clip:
            run_stage(&program.stages[k], operands[GRAD], seen, operands, n)
        elif by != 1:
            apply(program.stages[k].kernel, operands[GRAD], seen, operands, &by, n)
        else:
            continue
        seen = operands[GRAD]
    if program.mean >= 0 and scalars.mean.copies_first:
        memcpy(operands[MEAN], operands[PARAM], n * sizeof(real))
    apply(program.rule, operands[PARAM], seen, operands + STATE, h, n)
    for k in range(program.n_before, n_stages):
        stage = &program.stages[k]
        run_stage(stage, operands[stage.target], seen, operands, n)


cdef void run_tiles(const Program *program, const StepScalars *scalars, double factor, real *p, real *g,
                    char *const *state, const real *h, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """Run a program on n elements of an array, from its element `first` on. `factor` is that of clipping by norm."""
    cdef char room[4 * PAGE]  # one to begin on a page, one to begin anywhere in it, and ONE_TILE doubles
    cdef real *operands[MAX_OPERANDS]
    cdef int n_stages = program.n_before + program.n_after + (program.n_fading if scalars.flush else 0)
    # Clipping by norm reads nothing that the rule reads, too.
    cdef bint clips_alone = n_stages == 1 and program.clip == 0 and program.mean < 0
    cdef Py_ssize_t size, tile = ONE_TILE if n <= ONE_TILE or clips_alone else STAGE_TILE
    cdef int k, n_operands = STATE + program.rule.n_states
    operands[PARAM] = p + first
    for k in range(STATE, n_operands):
        operands[k] = <real *>state[k - STATE] + first
    if program.mean >= 0:
        operands[MEAN] = <real *>state[program.mean] + first
    if g != NULL:
        g += first
    if n_stages == 0 and program.bare:
        apply(program.rule if n > SHORT else program.short_rule, operands[PARAM], g, operands + STATE, h, n)
        return
    while True:
        size = min(n, tile)
        operands[GRAD] = beside(room, operands[PARAM])
        run_tile(program, scalars, <real>factor, operands, <const real *>g, h, n_stages, size)
        if program.mean >= 0:
            run_mean(&scalars.mean, operands[MEAN], operands, size)
            operands[MEAN] += size
        if program.zeroes:
            memset(g, 0, size * sizeof(real))
        n -= size
        if n <= 0:
            return
        g += size
        operands[PARAM] += size
        for k in range(STATE, n_operands):
            operands[k] += size
