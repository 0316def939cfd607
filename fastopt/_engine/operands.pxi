# Operands: the arrays that a step writes to. Where they are, what they are like, and the memory of the state.

cdef class Operands:
    """The parameters of all groups and their state. What `Plan` is built on."""
    cdef readonly list groups
    cdef readonly list arrays         # the parameters, as arrays
    cdef readonly list names          # their names, or None for each
    cdef readonly list states         # per parameter: slot -> array
    cdef readonly list mirrors        # per parameter: an array that takes a copy of it at each step, or None
    cdef readonly list streams        # per parameter: the number of its random stream, which no other has
    cdef public bint named
    cdef readonly object state_factory
    cdef bint plain                   # whether only float32 and float64 are accepted
    cdef bint foreign                 # whether some state came from a state_factory
    cdef bint flattened                 # whether arrays are tensors', with one dimension
    cdef bint copies_first            # whether some state starts as a copy of its parameter
    cdef dict arenas                  # memory of the states, by identity: views could be made to let go of it
    cdef Memory memory
    cdef Param *params
    cdef Param *copies                # as many, for what walks over other memory than a step does
    cdef Work *work                   # as many
    cdef Py_ssize_t n_params

    def __cinit__(self):
        self.groups, self.arrays, self.names, self.states, self.arenas = [], [], [], [], {}
        self.mirrors, self.streams = [], []

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_params):       # the lists may be gone already
            PyMem_Free(self.params[i].dims)
            PyMem_Free(self.params[i].stored)
        PyMem_Free(self.params)
        PyMem_Free(self.copies)
        PyMem_Free(self.work)

    def label(self, Py_ssize_t i):
        """How messages call parameter i."""
        return label_of(self.names, i)

    def count(self, Py_ssize_t i):
        """Steps that parameter i has taken, and the numbers that it carries from step to step."""
        return self.params[i].t, tuple([self.params[i].numbers[k] for k in range(MAX_NUMBERS)])

    def set_count(self, Py_ssize_t i, int64_t t, tuple numbers):
        """Set what `count` returns; numbers that are left out become 0."""
        read_numbers(self.params[i].numbers, numbers)
        self.params[i].t = t

    cdef bint reads_uint16(self, Py_ssize_t i) except -1:
        """Whether a gradient of uint16 holds bfloat16, for parameter i."""
        return self.group_of(i).grad_is_bfloat16 or self.arrays[i].dtype == np.uint16

    def touches(self, cnp.ndarray array):
        """Whether an array may share memory with a parameter or a state."""
        return self.memory.meets(array)

    cdef Group group_of(self, Py_ssize_t i):
        """The group that parameter i belongs to."""
        cdef Group group
        for group in self.groups:
            if group.first <= i < group.first + group.n_params:
                return group
        raise IndexError(i)

    # --- What is known of each parameter

    cdef reserve(self, Py_ssize_t n):
        """Memory for what is known of n parameters."""
        self.params = <Param *>renewed(self.params, n * <Py_ssize_t>sizeof(Param))
        self.copies = <Param *>renewed(self.copies, n * <Py_ssize_t>sizeof(Param))
        self.work = <Work *>renewed(self.work, n * <Py_ssize_t>sizeof(Work))

    cdef register(self, Param *q, array):
        """Note where a parameter is and what it is like."""
        memset(q, 0, sizeof(Param))
        describe(q, array)
        q.array = <PyObject *>array

    cdef point(self, Group group):
        """Give the rule's pointers to its state slots."""
        cdef Py_ssize_t i, k
        cdef dict states
        self.copies_first = self.copies_first or group.copied != 0
        for i in range(group.first, group.first + group.n_params):
            states = self.states[i]
            for k in range(len(group.slots)):
                self.params[i].s[k] = <char *>cnp.PyArray_DATA(<cnp.ndarray>states[group.slots[k]])
            if self.params[i].stored != NULL:
                self.note_formats(group, i)

    cdef note_formats(self, Group group, Py_ssize_t i):
        """Note the formats of a parameter and its state, for which there is memory."""
        cdef Stored *stored = self.params[i].stored
        cdef cnp.ndarray array
        self.put_formats(group, &self.params[i], is_narrow(self.arrays[i]), False)
        if i < len(self.streams):
            stored.stream = self.streams[i]
        stored.mirror, stored.copy = NULL, NULL
        if i < len(self.mirrors) and self.mirrors[i] is not None:
            array = self.mirrors[i]
            stored.mirror = <char *>cnp.PyArray_DATA(array)
            stored.copy = FLOAT16 if cnp.PyArray_TYPE(array) == NPY_HALF else BFLOAT16

    cdef put_formats(self, Group group, Param *q, bint narrow, bint like_param):
        """Note the formats of a parameter and its state. `like_param`: state is stored as its parameter by default."""
        cdef Stored *stored = q.stored
        cdef Py_ssize_t k
        cdef bint rounds = group.storage is not None and group.storage.rounding == "stochastic"
        stored.p = NULL
        if narrow:
            stored.p = SPLIT if group.low >= 0 else BFLOAT16_STOCHASTIC if rounds else BFLOAT16
        stored.low = q.s[group.low] if group.low >= 0 else NULL
        stored.seed = group.storage.seed if group.storage is not None else 0
        for k in range(MAX_SLOTS):
            stored.s[k] = NULL
        for k, name in enumerate(group.slots):
            if k != group.mean and k != group.low:
                stored.s[k] = format_of(group.kinds[name], q.n, like_param and narrow, rounds)
                stored.names[k] = hash_of(name)

    def random_streams(self):
        """The number of each parameter's random stream; None if none is drawn from, and they are 0, 1, 2 and so on."""
        cdef Py_ssize_t i
        for i in range(len(self.streams)):
            if self.streams[i] != i or (self.params[i].stored != NULL and draws(self.params[i].stored)):
                return list(self.streams)
        return None

    cdef list more_streams(self, Py_ssize_t n):
        """Numbers of random streams for n more parameters, which none has."""
        cdef set taken = set(self.streams)
        cdef list fresh = []
        cdef Py_ssize_t number = len(self.streams)
        while len(fresh) < n:
            if number not in taken:
                fresh.append(number)
            number += 1
        return fresh

    cdef void write_mirrors(self, Group group) noexcept:
        """Write the mirrors of the parameters of a group."""
        cdef Py_ssize_t i
        for i in range(group.first, group.first + group.n_params):
            self.write_mirror(&self.params[i])

    cdef void write_mirror(self, const Param *q) noexcept:
        """Write the mirror of a parameter, if it has one, as the parameter is now."""
        cdef Stored *stored = q.stored
        cdef float tile[FORMAT_TILE]
        cdef Py_ssize_t at, size
        if stored == NULL or stored.mirror == NULL:
            return
        for at from 0 <= at < q.n by FORMAT_TILE:
            size = min(q.n - at, FORMAT_TILE)
            put(stored.copy, stored.mirror, NULL, loaded(stored.p, tile, q.p, stored.low, at, size), at, size, 0)

    # --- Memory of the state

    cdef list lacking(self, Group group, names):
        """Which of these state slots the parameters of a group do not have yet."""
        return [name for name in names if name not in self.states[group.first]] if group.n_params else []

    cdef allocate(self, Group group, list names, list arrays, list labels, list states):
        """State arrays for the named slots that the parameters do not have yet, in `states`; not touched here."""
        for name in names:
            kind = group.kinds[name]
            missing = [i for i, state in enumerate(states) if name not in state]
            if self.state_factory is not None:
                self.foreign = True
                for i in missing:
                    states[i][name] = self.made(kind, arrays[i], labels[i])
            elif kind.like == "parameter":
                place_slot(kind, missing, arrays, states)
            else:
                for i in missing:
                    layout = layout_of(kind, arrays[i])
                    shape, dtype = layout
                    states[i][name] = np.empty(bytes_of(layout), np.uint8).view(dtype).reshape(shape)

    cdef made(self, kind, array, str owner):
        """State from the state_factory, checked."""
        label = f"state {kind.name!r} of {owner}, from state_factory,"
        shape, dtype = layout_of(kind, array)
        state = as_slot(kind, self.state_factory(kind.name, shape, dtype), label)
        check_state(kind, state, array, label, self.flattened)
        return state

    cdef keep_memory(self, Group group, list states):
        """Keep the memory of a group's states alive, whatever becomes of the arrays."""
        cdef object last = None
        for state in states:
            for name in group.slots:
                owner = state[name].base
                if owner is not last:
                    self.arenas[id(owner)] = last = owner

    cdef fill(self, Group group, list names, Team *team):
        """Write the first values of state slots, in the partition of a step over all parameters that there are.

        Parameters and state have to have been checked: this reads and writes by their pointers.
        """
        cdef Program value, stored, copy
        cdef StepScalars scalars
        cdef Job job
        cdef Group other
        cdef Py_ssize_t k
        rule_alone(&value, FILL, FILL)
        stored = value
        stored.walk, stored.bare, stored.bare_unclipped = walk_stored, False, False
        rule_alone(&copy, UNSCALE, UNSCALE)         # by 1: the value itself
        scalars.flush, scalars.t = False, 0
        for k in range(len(group.slots)):
            if group.slots[k] not in names:
                continue
            kind = group.kinds[group.slots[k]]
            is_copy = kind.first == "copy"
            scale(&scalars.h, 0, 1.0 if is_copy else kind.first)
            if kind.like != "parameter":
                self.fill_small(group, k, &scalars.h)
                continue
            if kind.storage == "low":
                self.fill_low(group, k)
                continue
            self.begin_job(&job, &scalars)
            for other in self.groups:     # as a step: the same threads are to touch the memory first
                self.add_fill(&job, other, &copy if is_copy else &value, &stored, k if other is group else -1, is_copy)
            launch(team, &job)

    cdef fill_low(self, Group group, Py_ssize_t k):
        """Write the low halves of parameters that begin as the bfloat16 that they are."""
        for i in range(group.first, group.first + group.n_params):
            memset(self.params[i].s[k], 0, cnp.PyArray_NBYTES(<cnp.ndarray>self.states[i][group.slots[k]]))

    cdef fill_small(self, Group group, Py_ssize_t k, Scaled *value):
        """Write the first values of a state slot that is not like its parameters."""
        cdef cnp.ndarray array
        for i in range(group.first, group.first + group.n_params):
            array = self.states[i][group.slots[k]]
            if cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE:
                FILL.f64(<double *>cnp.PyArray_DATA(array), NULL, NULL, value.d, cnp.PyArray_SIZE(array))
            else:
                FILL.f32(<float *>cnp.PyArray_DATA(array), NULL, NULL, value.f, cnp.PyArray_SIZE(array))

    cdef copy_first(self, const Job *job):
        """Copy parameters as they are before their first step into state that starts as such a copy.

        Unless a gradient that is not finite will end the step before it writes.
        """
        cdef Py_ssize_t i, k, at = 0
        cdef Group group
        cdef Param *q
        if job.scan_nonfinite and any_nonfinite(job.work, job.n_work, 0, job.blocks):
            return
        for i in range(job.n_work):
            q = job.work[i].q
            while q - self.params >= (<Group>self.groups[at]).first + (<Group>self.groups[at]).n_params:
                at += 1
            group = self.groups[at]
            if q.t == 0:
                for k in range(MAX_STATES):
                    if group.copied >> k & 1:
                        copy_param(q, k)

    cdef void add_fill(self, Job *job, Group group, const Program *program, const Program *program_stored,
                       Py_ssize_t k, bint reads) noexcept:
        """Add a program on the k-th state slot of a group, which `reads` its parameters; -1 leaves its blocks out."""
        cdef Param *q
        cdef Py_ssize_t i, before = job.blocks
        for i in range(group.first, group.first + group.n_params):
            q = &self.params[i]
            if reads and k >= 0 and q.stored != NULL:
                copy_param(q, k)
            if k < 0 or (reads and q.stored != NULL):
                job.blocks += blocks_of(q)
            elif q.stored == NULL or q.stored.s[k] == NULL:
                self.add_other(job, q, q.s[k], program, q.p if reads else NULL, 0)
            else:
                self.add_other(job, q, q.s[k] + beside_bytes(q.stored.s[k], q.n), program_stored, NULL, 0)
                memset(q.stored + 1, 0, sizeof(Stored))       # as if the slot were a parameter
                q.stored[1].p, q.stored[1].low, q.stored[1].name = q.stored.s[k], q.s[k], q.stored.names[k]
                q.stored[1].seed, q.stored[1].stream = q.stored.seed, q.stored.stream
                self.copies[job.n_work - 1].stored = q.stored + 1
        job.moved += moved_blocks(job.blocks - before, &group.program)

    cpdef check_states(self):
        """Raise if a state array is not what it was: users can reach it, and may own its memory."""
        for group in self.groups:
            self.check_state_of(group)

    cdef check_state_of(self, Group group):
        """The same for the state of one group."""
        cdef Py_ssize_t i
        for i in range(group.first, group.first + group.n_params):
            self.check_state_of_one(group, i)

    cdef check_state_of_one(self, Group group, Py_ssize_t i):
        """The same for the state of parameter i, of this group."""
        cdef Param *q = &self.params[i]
        cdef Py_ssize_t k
        cdef cnp.ndarray state
        for k, name in enumerate(group.slots):
            state = self.states[i][name]
            if <char *>cnp.PyArray_DATA(state) != q.s[k] or not (
                    fits(<PyObject *>state, q, cnp.NPY_ARRAY_WRITEABLE) if group.alike and q.stored == NULL else
                    fits_format(<PyObject *>state, q, k, k == group.low) or
                    self.fits_slot(group.kinds[name], state, i, cnp.NPY_ARRAY_WRITEABLE)):
                raise LayoutError(f"state {name!r} of {self.label(i)} was changed after it was made: its "
                                  "memory, shape, type or writability")

    cdef bint fits_slot(self, kind, array, Py_ssize_t i, int flags) except -1:
        """Whether an array can be this state slot of parameter i, and has these flags."""
        if kind.like == "parameter" and kind.storage is None and self.params[i].stored == NULL:
            return fits(<PyObject *>array, &self.params[i], flags)
        return (has_layout(kind, array, self.arrays[i], self.flattened)
                and (cnp.PyArray_FLAGS(<cnp.ndarray>array) & flags) == flags)

    cdef check_params(self, Group group):
        """Raise if a parameter of a group is not what it was."""
        cdef Py_ssize_t i
        for i in range(group.first, group.first + group.n_params):
            self.check_param(i)

    cdef int check_param(self, Py_ssize_t i) except -1:
        """The same for one of them."""
        cdef Param *q = &self.params[i]
        if not (q.p == fo_array_data(q.array) and fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE)):
            complain_parameter(self, i)
        return 0

    # --- Jobs

    cdef void begin_job(self, Job *job, const StepScalars *bank) noexcept:
        """An empty job, whose work takes its scalars from this bank."""
        clear_job(job, self.work, bank)

    cdef void add_other(self, Job *job, const Param *q, char *target, const Program *program, char *g,
                        Py_ssize_t place) noexcept:
        """Add a program on `target`, memory like a parameter's. The caller counts what it moves."""
        cdef Param *copy = &self.copies[job.n_work]
        cdef Work *w = &self.work[job.n_work]
        copy[0] = q[0]
        copy.p = target
        w.q, w.program, w.g, w.place, w.first_block = copy, program, g, place, job.blocks
        job.blocks += blocks_of(q)
        job.n_work += 1

    # --- Where gradients may be

    cdef remap(self, Memory memory):
        """Look gradients up in this memory from now on; where the last ones lay says nothing any more."""
        cdef Py_ssize_t i
        self.memory = memory
        for i in range(len(self.arrays)):
            self.params[i].gap_low = self.params[i].gap_high = NULL

    @cython.final                     # and so inline: once for each parameter
    cdef inline bint is_apart(self, Param *q, char *data) noexcept:
        """Whether a gradient at `data` meets no parameter or state; the gap that it lies in is remembered."""
        if (q.gap_low <= data and data + grad_bytes(q) <= q.gap_high) or q.n == 0:
            return True
        if not self.memory.is_free(data, data + grad_bytes(q)):
            return False
        q.gap_low, q.gap_high = self.memory.gap_low, self.memory.gap_high
        return True


cdef inline bint fits_format(PyObject *array, const Param *q, Py_ssize_t k, bint low) noexcept:
    """Whether an array is what the k-th state slot of a parameter is stored in, without Python calls.

    It knows the usual types only. Where it says no, `Operands.fits_slot` looks again.
    """
    cdef const Format *format = NULL
    cdef int type = cnp.PyArray_TYPE(<cnp.ndarray>array)
    if q.stored == NULL:
        return False
    format = q.stored.s[k]
    if format == BFLOAT16 or format == BFLOAT16_STOCHASTIC:
        if <PyObject *>cnp.PyArray_DESCR(<cnp.ndarray>array) != <PyObject *>bfloat16_made:
            return False
    elif format != NULL:
        return False
    elif q.stored.p == NULL:
        if low or type != q.type:         # of other parameters than bfloat16, low halves are empty
            return False
    elif type != <int>(cnp.NPY_SHORT if low else cnp.NPY_FLOAT):
        return False
    return fo_array_fits(array, type, q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)


cdef describe(Param *q, cnp.ndarray a):
    """Fill in where a parameter is and what it is like; or MemoryError, and nothing."""
    if q.dims == NULL or a.ndim != q.nd:
        q.dims = <cnp.npy_intp *>renewed(q.dims, a.ndim * <Py_ssize_t>sizeof(cnp.npy_intp))
    if a.ndim:
        memcpy(q.dims, cnp.PyArray_DIMS(a), a.ndim * sizeof(cnp.npy_intp))
    q.p = <char *>cnp.PyArray_DATA(a)
    q.n = cnp.PyArray_SIZE(a)
    q.type = cnp.PyArray_TYPE(a)
    q.nd = a.ndim
    q.order = cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(a) else cnp.NPY_ARRAY_F_CONTIGUOUS


cdef Stored *new_stored(Py_ssize_t i) except NULL:
    """Memory for what is stored of parameter i, and, beside it, of what takes its place for a while."""
    cdef Stored *stored = <Stored *>renewed(NULL, 2 * <Py_ssize_t>sizeof(Stored))
    memset(stored, 0, 2 * sizeof(Stored))
    stored.stream, stored.name = <uint32_t>i, hash_of("")
    return stored


cdef void copy_param(const Param *q, Py_ssize_t k) noexcept nogil:
    """Copy a parameter into its k-th state slot."""
    cdef const Stored *stored = q.stored
    cdef float tile[FORMAT_TILE]
    cdef float *x
    cdef char *a = q.s[k]
    cdef uint32_t key = 0
    cdef Py_ssize_t at, size
    if stored == NULL or (stored.p == NULL and stored.s[k] == NULL):
        memcpy(a, q.p, q.n << shift_of(q))
        return
    if stored.s[k] != NULL:
        a += beside_bytes(stored.s[k], q.n)
        key = stream_key(stored.seed, stored.stream, stored.names[k], 0)
    for at from 0 <= at < q.n by FORMAT_TILE:
        size = min(q.n - at, FORMAT_TILE)
        x = loaded(stored.p, tile, q.p, stored.low, at, size)
        if stored.s[k] == NULL:
            memcpy(a + at * sizeof(float), x, size * sizeof(float))
        else:
            put(stored.s[k], a, q.s[k], x, at, size, key)


cdef write_numbers(list pairs):
    """Write arrays of one element: (array, what it is to be)."""
    cdef cnp.ndarray array
    for array, value in pairs:
        memcpy(cnp.PyArray_DATA(array), cnp.PyArray_DATA(<cnp.ndarray>value), cnp.PyArray_ITEMSIZE(array))


cdef place_slot(kind, list missing, list arrays, list states):
    """A state slot of a group in one block of memory, for the arrays at `missing`, each on a 64-byte boundary.

    Streams at one offset in their pages hold each other up: a load waits for any store whose address ends in the same
    twelve bits. So slots lie a quarter page apart, those of large arrays from the parameter, too.
    """
    cdef Py_ssize_t i, base, place, lead, apart, n_bytes
    cdef list layouts = [layout_of(kind, arrays[i]) for i in missing]
    cdef list sizes = [bytes_of(layout) for layout in layouts]
    apart = (len(states[0]) + 1 if states else 0) * (PAGE // 4)
    arena = np.empty(PAGE + sum([size + (PAGE if size >= PAGE else BLOCK) for size in sizes]), np.uint8)
    base = place = <Py_ssize_t>cnp.PyArray_DATA(<cnp.ndarray>arena)
    place += (apart - place) & (PAGE - 1)
    for i, (shape, dtype), n_bytes in zip(missing, layouts, sizes):
        array = arrays[i]
        place += -place & (BLOCK - 1)
        if n_bytes >= PAGE:
            lead = <Py_ssize_t>cnp.PyArray_DATA(<cnp.ndarray>array) + apart
            place += (lead - lead % BLOCK - place) & (PAGE - 1)
        flat = arena[place - base:][:n_bytes].view(dtype)
        states[i][kind.name] = flat.reshape(shape, order="C" if array.flags.c_contiguous else "F")
        place += n_bytes
