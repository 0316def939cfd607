# Operands: the arrays that a step writes to. Where they are, what they are like, and the memory of the state.

cdef class Operands:
    """The parameters of all groups and their state. What `Plan` is built on."""
    cdef readonly list groups
    cdef readonly list arrays         # the parameters, as arrays
    cdef readonly list names          # their names, or None for each
    cdef readonly list states         # per parameter: slot -> array
    cdef public bint named
    cdef readonly object state_factory
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

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_params):       # the lists may be gone already
            PyMem_Free(self.params[i].dims)
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
                place_slot(name, missing, arrays, states)
            else:
                for i in missing:
                    shape, dtype = shape_like(kind.like, arrays[i].shape), storage_of(kind, arrays[i])
                    memory = np.empty(int(np.prod(shape)) * dtype.itemsize, np.uint8)
                    states[i][name] = memory.view(dtype).reshape(shape)

    cdef made(self, kind, array, str owner):
        """State from the state_factory, checked."""
        label = f"state {kind.name!r} of {owner}, from state_factory,"
        shape = shape_like(kind.like, array.shape)
        state = as_parameter(self.state_factory(kind.name, shape, storage_of(kind, array)), label)
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
        cdef Program value, copy
        cdef StepScalars scalars
        cdef Job job
        cdef Group other
        cdef Py_ssize_t k
        rule_alone(&value, FILL, FILL)
        rule_alone(&copy, UNSCALE, UNSCALE)         # by 1: the value itself
        scalars.flush = False
        for k in range(len(group.slots)):
            if group.slots[k] not in names:
                continue
            kind = group.kinds[group.slots[k]]
            is_copy = kind.first == "copy"
            scale(&scalars.h, 0, 1.0 if is_copy else kind.first)
            if kind.like != "parameter":
                self.fill_small(group, k, &scalars.h)
                continue
            self.begin_job(&job, &scalars)
            for other in self.groups:     # as a step: the same threads are to touch the memory first
                self.add_fill(&job, other, &copy if is_copy else &value, k if other is group else -1, is_copy)
            launch(team, &job)

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
                        memcpy(q.s[k], q.p, bytes_of(q))

    cdef void add_fill(self, Job *job, Group group, const Program *program, Py_ssize_t k, bint reads) noexcept:
        """Add a program on the k-th state slot of a group, which `reads` its parameters; -1 leaves its blocks out."""
        cdef Param *q
        cdef Py_ssize_t i, before = job.blocks
        for i in range(group.first, group.first + group.n_params):
            q = &self.params[i]
            if k >= 0:
                self.add_other(job, q, q.s[k], program, q.p if reads else NULL, 0)
            else:
                job.blocks += q.blocks
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
                    fits(<PyObject *>state, q, cnp.NPY_ARRAY_WRITEABLE) if group.alike else
                    self.fits_slot(group.kinds[name], state, i, cnp.NPY_ARRAY_WRITEABLE)):
                raise LayoutError(f"state {name!r} of {self.label(i)} was changed after it was made: its "
                                  "memory, shape, type or writability")

    cdef bint fits_slot(self, kind, array, Py_ssize_t i, int flags) except -1:
        """Whether an array can be this state slot of parameter i, and has these flags."""
        if kind.like == "parameter":
            return fits(<PyObject *>array, &self.params[i], flags)
        return (is_like(kind, array, self.arrays[i], self.flattened)
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
        job.blocks += q.blocks
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
        if (q.gap_low <= data and data + bytes_of(q) <= q.gap_high) or q.n == 0:
            return True
        if not self.memory.is_free(data, data + bytes_of(q)):
            return False
        q.gap_low, q.gap_high = self.memory.gap_low, self.memory.gap_high
        return True


cdef describe(Param *q, cnp.ndarray a):
    """Fill in where a parameter is and what it is like; or MemoryError, and nothing."""
    if q.dims == NULL or a.ndim != q.nd:
        q.dims = <cnp.npy_intp *>renewed(q.dims, a.ndim * <Py_ssize_t>sizeof(cnp.npy_intp))
    if a.ndim:
        memcpy(q.dims, cnp.PyArray_DIMS(a), a.ndim * sizeof(cnp.npy_intp))
    q.p = <char *>cnp.PyArray_DATA(a)
    q.n = cnp.PyArray_SIZE(a)
    q.type = cnp.PyArray_TYPE(a)
    q.blocks = (bytes_of(q) + BLOCK - 1) // BLOCK
    q.nd = a.ndim
    q.order = cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(a) else cnp.NPY_ARRAY_F_CONTIGUOUS


cdef write_numbers(list pairs):
    """Write arrays of one element: (array, what it is to be)."""
    cdef cnp.ndarray array
    for array, value in pairs:
        memcpy(cnp.PyArray_DATA(array), cnp.PyArray_DATA(<cnp.ndarray>value), cnp.PyArray_ITEMSIZE(array))


cdef place_slot(str name, list missing, list arrays, list states):
    """A state slot of a group in one block of memory, for the arrays at `missing`, each on a 64-byte boundary.

    Streams at one offset in their pages hold each other up: a load waits for any store whose address ends in the same
    twelve bits. So slots lie a quarter page apart, those of large arrays from the parameter, too.
    """
    cdef Py_ssize_t i, base, place, lead, apart
    apart = (len(states[0]) + 1 if states else 0) * (PAGE // 4)
    arena = np.empty(PAGE + sum([arrays[i].nbytes + (PAGE if arrays[i].nbytes >= PAGE else BLOCK)
                                 for i in missing]), np.uint8)
    base = place = <Py_ssize_t>cnp.PyArray_DATA(<cnp.ndarray>arena)
    place += (apart - place) & (PAGE - 1)
    for i in missing:
        array = arrays[i]
        place += -place & (BLOCK - 1)
        if array.nbytes >= PAGE:
            lead = <Py_ssize_t>cnp.PyArray_DATA(<cnp.ndarray>array) + apart
            place += (lead - lead % BLOCK - place) & (PAGE - 1)
        flat = arena[place - base:][:array.nbytes].view(array.dtype)
        states[i][name] = flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")
        place += array.nbytes
