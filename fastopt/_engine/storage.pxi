# Arrays that are stored in another format than they are computed in: see kernels/formats.pxi. A tile of each is loaded,
# the stages and the rule of a program run over it in float32 as ever, and it is stored again. So formats, stages and
# rules add up, and none knows of another.
#
# Design:
# - What is computed in float32 is counted in blocks of 16 elements, whatever its bytes: tiles of sums and shares of
#   threads stay as they are. A piece of the walk begins and ends at a multiple of FORMAT_TILE elements, or at the end.
# - The state of a slot in 8 bits is one array: first the bases of all blocks, then the codes.
# - A random number depends on the seed, the parameter, the slot, its step and the element's place in memory alone.

cdef struct Stored:           # how the arrays of a parameter are stored. No format: in the type that is computed in
    const Format *p           # of the parameter,
    const Format *g           # of the gradient of the step at hand,
    const Format *s[MAX_SLOTS]    # of the state,
    const Format *copy        # and of the mirror
    char *low                 # what is beside the parameter
    char *mirror              # or NULL
    uint32_t name             # for the random numbers of the parameter,
    uint32_t names[MAX_SLOTS]     # and of its state
    uint32_t stream
    uint64_t seed


cdef uint32_t hash_of(str name) except? 0:
    """What the random numbers of a state slot are told apart by. The parameter itself has no name."""
    cdef uint32_t h = 0x811C9DC5U
    for byte in name.encode():
        h = (h ^ <uint32_t><int>byte) * 0x01000193U
    return h


cdef uint32_t stream_key(uint64_t seed, uint32_t stream, uint32_t name, uint64_t t) noexcept nogil:
    """The random number of element 0 at step t. `stream_key` of reference.py is the same."""
    cdef uint64_t z = 0
    cdef uint64_t parts[4]
    cdef int i
    parts[0], parts[1], parts[2], parts[3] = seed, stream, name, t
    for i in range(4):
        z += parts[i] + <uint64_t>0x9E3779B97F4A7C15U
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9U
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EBU
        z = z ^ (z >> 31)
    return <uint32_t>(z >> 32)


cdef inline bint has_formats(const Stored *stored) noexcept nogil:
    """Whether a step has to load or store anything."""
    cdef int k
    if stored.p != NULL or stored.g != NULL or stored.mirror != NULL:
        return True
    for k in range(MAX_SLOTS):
        if stored.s[k] != NULL:
            return True
    return False


cdef bint draws(const Stored *stored) noexcept:
    """Whether a step rounds something at random."""
    cdef int k
    if stored.p == BFLOAT16_STOCHASTIC:
        return True
    for k in range(MAX_SLOTS):
        if stored.s[k] != NULL and (stored.s[k] == BFLOAT16_STOCHASTIC or stored.s[k] == UE5M3):
            return True
    return False


cdef inline float *loaded(const Format *format, float *tile, char *a, char *b, Py_ssize_t at,
                          Py_ssize_t n) noexcept nogil:
    """n elements from `at` on: where they are, or in the tile, if they have a format."""
    if format == NULL:
        return <float *>a + at
    format.load(tile, a + at * format.size, b + beside_bytes(format, at), n)
    return tile


cdef inline void put(const Format *format, char *a, char *b, const float *x, Py_ssize_t at, Py_ssize_t n,
                     uint32_t key) noexcept nogil:
    """Store n elements from `at` on, if they have a format."""
    if format != NULL:
        format.store(a + at * format.size, b + beside_bytes(format, at), x, n, lattice(key, at))


cdef void walk_stored(const Program *program, const StepScalars *scalars, double factor, const Stored *stored, char *p,
                      char *g, char *const *state, Py_ssize_t n, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Run a program on the elements from `first` to `last` of n, as far as whole tiles of them begin here."""
    cdef char room[3 * PAGE]      # a page to begin in, 512 bytes into it, and a tile for each operand but the mean
    cdef float *tiles = <float *>((((<uintptr_t>room + PAGE - 1) & ~<uintptr_t>(PAGE - 1))) + 512)
    cdef float *operands[MAX_OPERANDS]
    cdef const float *seen
    cdef char *a[MAX_STATES]
    cdef char *b[MAX_STATES]
    cdef uint32_t key = 0
    cdef uint32_t keys[MAX_STATES]
    cdef int n_stages = program.n_before + program.n_after + (program.n_fading if scalars.flush else 0)
    cdef int k, n_states = program.rule.n_states
    cdef Py_ssize_t at, size, width = stored.g.size if stored.g != NULL else <Py_ssize_t>sizeof(float)
    cdef bint reads_back = (stored.p != NULL and stored.p != SPLIT
                            and (stored.mirror != NULL or program.mean >= 0))
    first -= first % FORMAT_TILE
    last -= last % FORMAT_TILE if last < n else 0
    if stored.p != NULL:
        key = stream_key(stored.seed, stored.stream, stored.name, scalars.t)
    for k in range(n_states):
        a[k] = b[k] = state[k]
        keys[k] = 0
        if stored.s[k] != NULL:
            a[k] += beside_bytes(stored.s[k], n)
            keys[k] = stream_key(stored.seed, stored.stream, stored.names[k], scalars.t)
    for at from first <= at < last by FORMAT_TILE:
        size = min(last - at, FORMAT_TILE)
        operands[PARAM] = loaded(stored.p, tiles, p, stored.low, at, size)
        operands[GRAD] = tiles + FORMAT_TILE
        seen = NULL if g == NULL else loaded(stored.g, operands[GRAD], g, NULL, at, size)
        for k in range(n_states):
            operands[STATE + k] = loaded(stored.s[k], tiles + (STATE + k) * FORMAT_TILE, a[k], b[k], at, size)
        if program.mean >= 0:
            operands[MEAN] = <float *>state[program.mean] + at
        run_tile(program, scalars, <float>factor, operands, seen, scalars.h.f, n_stages, size)
        put(stored.p, p, stored.low, operands[PARAM], at, size, key)
        for k in range(n_states):
            put(stored.s[k], a[k], b[k], operands[STATE + k], at, size, keys[k])
        if reads_back:
            stored.p.load(operands[PARAM], p + at * stored.p.size, NULL, size)
        if stored.mirror != NULL:
            put(stored.copy, stored.mirror, NULL, operands[PARAM], at, size, 0)
        if program.mean >= 0:
            run_mean(&scalars.mean, operands[MEAN], operands, size)
        if program.zeroes:
            memset(g + at * width, 0, size * width)


def encode_state(kind, cnp.ndarray param, cnp.ndarray x, uint64_t seed, uint32_t stream, uint64_t t):
    """State of a parameter in the storage of a slot: the bits that step `t` would write for these numbers.

    `kind` is a slot in bfloat16 or 8 bits; `x` is float32, in the shape and memory order of the parameter.
    """
    cdef const Format *format = format_of(kind, cnp.PyArray_SIZE(param), False, False)
    cdef uint32_t key = stream_key(seed, stream, hash_of(kind.name), t)
    cdef Py_ssize_t at, n = cnp.PyArray_SIZE(x)
    cdef cnp.ndarray out
    shape, dtype = layout_of(kind, param)
    if format == NULL or not has_form(x) or cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT or (<object>x).shape != (
            <object>param).shape or not in_order_of(x, param):
        raise RuntimeError(f"no state {kind.name!r} can be made of this array")
    out = np.empty(shape, dtype, order="C" if param.flags.c_contiguous else "F")
    for at from 0 <= at < n by FORMAT_TILE:
        put(format, cnp.PyArray_BYTES(out) + beside_bytes(format, n), cnp.PyArray_BYTES(out),
            <const float *>cnp.PyArray_DATA(x) + at, at, min(n - at, FORMAT_TILE), key)
    return out


def decode_state(kind, cnp.ndarray packed, Py_ssize_t n):
    """State of n elements that is stored in 8 bits, as a flat array of float32 in the order of the codes."""
    cdef const Format *format = UE5M3 if kind.narrow == "square" else E4M3
    cdef Py_ssize_t at
    cdef cnp.ndarray out = np.empty(n, np.float32)
    if cnp.PyArray_TYPE(packed) != cnp.NPY_UBYTE or not cnp.PyArray_IS_C_CONTIGUOUS(packed) or (
            cnp.PyArray_SIZE(packed) != beside_bytes(format, n) + n):
        raise RuntimeError(f"no state of {n} elements in 8 bits")
    for at from 0 <= at < n by FORMAT_TILE:
        format.load(<float *>cnp.PyArray_DATA(out) + at, cnp.PyArray_BYTES(packed) + beside_bytes(format, n) + at,
                    cnp.PyArray_BYTES(packed) + beside_bytes(format, at), min(n - at, FORMAT_TILE))
    return out


# --- Where a parameter and its average change places
#
# A parameter of bfloat16 takes the upper half of the average, as a split one does. The average's place takes what the
# parameter was: a split one as a float32, and of another its bits above the lower half of the average. Nothing is lost.

cdef void join_average(float *x, const uint16_t *upper, const uint32_t *kept, Py_ssize_t n) noexcept nogil:
    """The average whose upper halves are in the place of parameters, the lower ones among what is kept."""
    cdef int16_t low[FORMAT_TILE]
    cdef Py_ssize_t i
    for i in range(n):
        low[i] = <int16_t>(kept[i] & 0xFFFF)
    SPLIT.load(x, upper, low, n)


cdef void exchange_stored(const Program *program, const StepScalars *scalars, double factor, const Stored *stored,
                          char *p, char *g, char *const *state, Py_ssize_t n, Py_ssize_t first,
                          Py_ssize_t last) noexcept nogil:
    """Let a parameter and its average, state 0, change places, or, where scalar 0 is not 0, back."""
    cdef float tile[FORMAT_TILE]
    cdef uint16_t upper[FORMAT_TILE]
    cdef int16_t low[FORMAT_TILE]
    cdef uint16_t *halves
    cdef uint32_t *kept
    cdef float *average
    cdef float *x
    cdef Py_ssize_t at, size, i
    for at from first <= at < last by FORMAT_TILE:
        size = min(last - at, FORMAT_TILE)
        average = <float *>state[0] + at
        if stored.p == NULL or stored.p == SPLIT:
            x = loaded(stored.p, tile, p, stored.low, at, size)
            if stored.p == NULL:
                memcpy(tile, x, size * sizeof(float))
                memcpy(x, average, size * sizeof(float))
            put(stored.p, p, stored.low, average, at, size, 0)
            memcpy(average, tile, size * sizeof(float))
        else:
            halves, kept = <uint16_t *>p + at, <uint32_t *>average
            if scalars.h.d[0] != 0:
                join_average(tile, halves, kept, size)
                for i in range(size):
                    halves[i] = <uint16_t>(kept[i] >> 16)
                memcpy(average, tile, size * sizeof(float))
            else:
                SPLIT.store(upper, low, average, size, 0)
                for i in range(size):
                    kept[i] = <uint32_t>halves[i] << 16 | <uint16_t>low[i]
                memcpy(halves, upper, size * sizeof(uint16_t))
        if stored.mirror != NULL:
            put(stored.copy, stored.mirror, NULL, loaded(stored.p, tile, p, stored.low, at, size), at, size, 0)


cdef void exchanged(const Stored *stored, const char *p, const char *state, float *average, int16_t *low,
                    Py_ssize_t n) noexcept nogil:
    """While they have changed places: the average, and the lower halves of a split parameter, where they are asked."""
    cdef uint16_t upper[FORMAT_TILE]
    cdef Py_ssize_t at, size
    for at from 0 <= at < n by FORMAT_TILE:
        size = min(n - at, FORMAT_TILE)
        if stored.p == SPLIT:
            SPLIT.load(average + at, p + at * SPLIT.size, stored.low + beside_bytes(SPLIT, at), size)
            SPLIT.store(upper, low + at, <const float *>state + at, size, 0)
        else:
            join_average(average + at, <const uint16_t *>p + at, <const uint32_t *>state + at, size)


# --- Where NAG wants the gradient

cdef void lookahead_stored(const Program *program, const StepScalars *scalars, double factor, const Stored *stored,
                           char *out, char *p, char *const *state, Py_ssize_t n, Py_ssize_t first,
                           Py_ssize_t last) noexcept nogil:
    """Write parameter + momentum * velocity into `out`, which is of the parameter's type: to the nearest."""
    cdef float room[3][FORMAT_TILE]
    cdef float *target
    cdef float *velocity
    cdef char *a = state[0]
    cdef Py_ssize_t at, size
    first -= first % FORMAT_TILE
    last -= last % FORMAT_TILE if last < n else 0
    if stored.s[0] != NULL:
        a += beside_bytes(stored.s[0], n)
    for at from first <= at < last by FORMAT_TILE:
        size = min(last - at, FORMAT_TILE)
        target = <float *>out + at if stored.p == NULL else room[0]
        velocity = loaded(stored.s[0], room[1], a, state[0], at, size)
        program.rule.f32(target, loaded(stored.p, room[2], p, stored.low, at, size), &velocity, scalars.h.f, size)
        if stored.p != NULL:
            put(BFLOAT16, out, NULL, target, at, size, 0)


if (STATE + MAX_STATES) * FORMAT_TILE * sizeof(float) + 512 > 2 * PAGE:
    raise ImportError("the room of walk_stored in storage.pxi is too small")
