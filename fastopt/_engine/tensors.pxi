# Stepping tensors of another library (PyTorch), whose optimizer keeps parameters and state: see fastopt/torch.py.
#
# Design:
# - What a step needs is bound once: groups, parameters, state tensors and where their memory is. Every step looks at
#   all of it again, so that whatever the user or a library exchanged in between is noticed. Looking costs some 10 ns a
#   tensor, or 36 through DLPack's exchange protocol.
# - Only what was exchanged is bound anew. A plan has a binding for every parameter, empty until the first gradient. A
#   tensor in the place of one like it is bound on the way, in C (`follow`); anything else by a record, for which the
#   caller is asked (`rebind`). Where that does not do, `step_tensors` gives False and the caller makes another plan.
# - Arrays are taken flat, in the order of their memory: parameter, state and gradient have the same strides.
# - First everything that may run Python code (gradients are asked for), then the looking, which cannot, then the step.

cdef extern from "fastopt_tensors.h":
    ctypedef struct fo_tensor_t:
        void *data
        int ndim
        int64_t *shape
        int64_t *strides
    ctypedef int (*fo_look_t)(void *object, fo_tensor_t *out) except -1
    fo_look_t fo_exchange_look(capsule) except? NULL
    int fo_tensor_type(const fo_tensor_t *t)
    bint fo_can_step(int type)
    int fo_width(int type)
    bint fo_tensor_has(const fo_tensor_t *t, int ndim, const int64_t *shape_and_strides)
    const char *FO_SHIM
    enum:
        FO_UNFIT
        FO_FLOAT
        FO_DOUBLE
        FO_HALF
        FO_BFLOAT16
    ctypedef struct fo_shim_t:
        Py_ssize_t place
        Py_ssize_t storage_place
        void *is_neg
        void *is_inference
    ctypedef struct fo_trail_t:
        const char *object
        const char *impl
        const char *storage
    void fo_shim_fill(fo_shim_t *s, const uintptr_t *addresses)
    void *fo_shim_fits(const fo_shim_t *s, PyObject *object, int type, int ndim, const int64_t *form) noexcept
    bint fo_shim_same(const fo_shim_t *s, PyObject *object, const void *data, int type, int ndim,
                      const int64_t *form) noexcept
    Py_ssize_t fo_shim_find(object, void *handle)
    Py_ssize_t fo_shim_find_storage(const fo_shim_t *s, object, uintptr_t storage)
    void fo_shim_trail(const fo_shim_t *s, PyObject *object, fo_trail_t *trail) noexcept
    void fo_prefetch_trail(const fo_trail_t *trail) noexcept
    const char *fo_shim_beside(const fo_shim_t *s, const fo_trail_t *trail) noexcept
    const char *fo_shim_counter(const fo_shim_t *s, PyObject *object) noexcept
    void fo_shim_bump(const fo_shim_t *s, PyObject *object) noexcept
    const char *fo_dict_entries(PyObject *d) noexcept
    char *fo_shim_writable(const fo_shim_t *s, PyObject *object, int type, int ndim, const int64_t *form,
                           int64_t n) noexcept
    int fo_shim_look(const fo_shim_t *s, PyObject *object, fo_tensor_t *out) noexcept
    uint64_t fo_dict_version(PyObject *d) noexcept
    object fo_get(descriptor, object)

cdef extern from "Python.h":
    Py_ssize_t PyDict_Size(PyObject *d)
    list PyDict_Values(object d)
    bint PyDict_CheckExact(PyObject *d)
    void *Py_TYPE(PyObject *tensor)
    int PyGC_Disable()
    int PyGC_Enable()

from types import GetSetDescriptorType

SHIM = (<bytes>FO_SHIM).decode()    # names of the C functions

cpdef enum:
    LAST_FLOAT_COUNT = 1 << 24    # up to here float32 counts

cdef enum:
    MOST_BOUND = MAX_SLOTS + 1 + MAX_NUMBERS     # tensors beside the parameter: its state, step count, and numbers
    COUNT = MAX_SLOTS             # their places
    NUMBERS = MAX_SLOTS + 1
    MOST_ORDINARY_DIMS = 8
    TENSORS_AHEAD = 3             # for so many it asks ahead
    MOST_MOVES = 16               # intervals that are moved one by one; for more all are sorted again
    TO_BIND = 2                   # of `gather`: some bindings need a new record

cdef struct BoundTensor:                 # a tensor, and where its memory was
    PyObject *tensor
    char *data
    int type

cdef struct Binding:                  # what belongs to a parameter of the plan; all borrowed from lists of the plan
    PyObject *owner               # what has the gradient
    PyObject *state               # its dict in the optimizer's state
    PyObject *values              # list of what that dict holds
    uint64_t version              # of that dict, when it was last compared
    BoundTensor own
    BoundTensor other[MOST_BOUND]
    BoundTensor mirror            # takes a copy of the parameter, or NULL
    int n_numbers                 # tensors of carried numbers
    int ndim
    int64_t *form                 # sizes, then strides
    bint wrapped                  # whether `own` is an attribute of the owner
    bint pending                  # whether its state is put in place with the step at hand
    bint stale                    # whether it needs a new record

cdef struct Trails:                   # of a binding: what `gather` will look at, asked for ahead. Some may be gone
    int n
    fo_trail_t at[MOST_BOUND + 2]     # the last gradient, the parameter, then its state
    const char *autograd              # of the parameter
    const char *versions
    PyObject *state
    const char *entries
    char *count

cdef struct Move:                     # of a parameter or a state slot (-1: the parameter) to other memory
    Py_ssize_t param
    int slot
    char *old                     # or NULL
    char *low
    Py_ssize_t n_bytes


cdef class TensorPlan(Plan):
    """A plan over tensors. `step_tensors` takes the place of `step`.

    Parameters
    ----------
    derive, n_threads
        As for `Plan`.
    record : callable
        ``(parameter, options of its group, spec, label)`` -> a record (see `bind`) of a parameter that got its first
        gradient, or is not as it was bound; None if that takes another plan.
    host : object
        What the library is asked for: ``exchange``, DLPack's capsule, or None; ``shim``, the addresses of its C
        functions (`SHIM`), a tensor, a capsule with a handle for it, and where its storage is, or None (one of the
        two there has to be);
        ``grad``, the descriptor of the attribute; ``modes()``, whether asking for it may run Python code;
        ``local(parameter, None)``, the tensor that is stepped in its place, and ``local(gradient, parameter)``;
        ``fit(gradient, tensor, label)``, one that fits, or the error; ``finish(parameters)``, after a step with such;
        ``bump(parameters)``, to note that they were written to; ``mirrors``, empty if no parameter has one, and
        ``mirror_of(parameter, tensor, label)``, what takes a copy of it, or None.
    number_names : tuple of str
        What the state calls the carried numbers.
    clip_norm, norm_type
        As for `Plan`, but for schedules.
    last : LastNorm or None
        Takes the norm of each step.
    """
    cdef object record
    cdef tuple number_names
    cdef bint alone                   # whether no memory but that of the bindings is to be kept apart
    cdef bint can_follow              # whether C sees all that there is to check
    cdef object host
    cdef bint has_mirrors             # whether the host may have some
    cdef object grad
    cdef object requires_grad
    cdef object bump
    cdef public bint paused           # whether averages stand in the place of the parameters: no step is taken
    cdef list to_zero                 # gradients to zero after the step at hand, or None
    cdef bint asks_each               # whether the host is to say of whose parameters norms can be taken
    cdef bint own_sums                # whether it clips gradients each by its norm
    cdef fo_look_t exchange           # or NULL
    cdef fo_shim_t shim               # or with place 0
    cdef Binding *bindings
    cdef Trails *trails               # one for each
    cdef Py_ssize_t n_bindings
    cdef object tensor_type, parameter_type
    cdef bint special                 # whether gradients are wrapped, come from Python, or have flags that C cannot see
    cdef list owners                  # parameters that are stepped, in the order of the plan
    cdef list keep_refs               # per owner: all that its binding refers to
    cdef list retired                 # what `follow` replaced there: letting go of it may run Python code
    cdef list specs                   # per group
    cdef Move moves[MOST_MOVES]       # since `memory` was last brought up to date
    cdef int n_moves
    cdef bint unsorted                # whether there were more, or two intervals overlapped on the way
    cdef list members                 # per group: its list of parameters, and a copy of that list
    cdef list outer                   # keys and values of the optimizer's state, in turn
    cdef object state                 # the optimizer's, some kind of dict
    cdef uint64_t version             # of the optimizer's state, when it was last compared
    cdef bint check_only              # whether the step at hand ends before it writes
    cdef bint has_factor              # whether the factor of clipping is known before the step at hand:
    cdef double factor                # this one
    cdef list parts                   # per parameter: in which part of the sum it counts; None where there is one part
    cdef int n_parts
    cdef readonly list totals         # of a step that was only checked, and clips: the sum of each part
    cdef LastNorm last
    cdef list fresh                   # (place, dict, entries): state to be put in place with the step at hand

    def __cinit__(self):
        self.flattened = True
        self.owners, self.keep_refs, self.retired, self.specs, self.streams = [], [], [], [], []
        self.members, self.outer, self.fresh = [], [], []

    def __init__(self, derive, record, host, *, number_names=(), n_threads=None, clip_norm=None, norm_type=2,
                 LastNorm last=None):
        Plan.__init__(self, derive, n_threads=n_threads, clip_norm=clip_norm, norm_type=norm_type)
        self.n_parts, self.last = 1, last
        self.record, self.number_names = record, tuple(number_names)
        self.memory = Memory([], [], [])
        self.host, self.bump = host, host.bump
        self.has_mirrors = bool(host.mirrors)
        self.grad = host.grad if isinstance(host.grad, GetSetDescriptorType) else None
        self.requires_grad = host.requires_grad
        self.exchange = fo_exchange_look(host.exchange) if host.exchange is not None else NULL
        self.take_shim(host.shim)
        self.special = not (self.shim.place and self.shim.is_neg != NULL)
        self.can_follow = not self.special and self.shim.is_inference != NULL
        self.tensor_type, self.parameter_type = host.plain
        if self.exchange == NULL and not self.shim.place:
            raise ImportError("this version of PyTorch offers no way to look at its tensors from C; 2.10 does")

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_bindings):
            PyMem_Free(self.bindings[i].form)
        PyMem_Free(self.bindings)
        PyMem_Free(self.trails)

    cdef take_shim(self, shim):
        cdef uintptr_t addresses[24]
        memset(&self.shim, 0, sizeof(fo_shim_t))
        if shim is None:
            return
        for k, address in enumerate(shim[0]):
            addresses[k] = address
        fo_shim_fill(&self.shim, addresses)
        self.shim.place = fo_shim_find(shim[1], PyCapsule_GetPointer(shim[2], PyCapsule_GetName(shim[2])))
        if self.shim.place:
            self.shim.storage_place = fo_shim_find_storage(&self.shim, shim[1], shim[3])

    # --- Binding

    def bind(self, dict options, spec, list params, list records, list names, list places):
        """Add a group, with its parameters, and a record for each that has a gradient; None for the others.

        `places` are those of the parameters among all that the optimizer has.

        A record is (owner, its dict of state, entries to put there, local tensors: of the owner, of its state slots by
        name, of the count or None, a tuple of those of carried numbers; steps so far, where there is no count).
        """
        cdef Group group
        cdef Py_ssize_t i, first = self.n_params, n = len(params)
        cdef bint has_float = False
        cdef fo_tensor_t t
        for record in records:
            if record is not None and not has_float:
                self.view(<PyObject *>record[3], &t)
                has_float = fo_tensor_type(&t) != FO_DOUBLE
        group = self.new_group(options, has_float, self.steps)
        group.first, group.n_params = first, n
        self.reserve(first + n)
        self.bindings = <Binding *>renewed(self.bindings, (first + n) * <Py_ssize_t>sizeof(Binding))
        self.trails = <Trails *>renewed(self.trails, (first + n) * <Py_ssize_t>sizeof(Trails))
        memset(&self.trails[first], 0, n * sizeof(Trails))
        memset(&self.params[first], 0, n * sizeof(Param))
        memset(&self.bindings[first], 0, n * sizeof(Binding))
        self.n_bindings = self.n_params = first + n
        self.groups.append(group)
        self.options.append(options)
        self.specs.append(spec)
        self.names = self.names + names
        self.owners += params
        self.streams += places
        self.keep_refs += n * [None]
        self.members.append((options["params"], list(options["params"])))
        for i in range(first, first + n):
            owner, record = params[i - first], records[i - first]
            self.bindings[i].owner = <PyObject *>owner
            self.special = self.special or not self.is_plain(<PyObject *>owner)
            copy_numbers(self.params[i].numbers, group.numbers)
            if record is not None and not self.bind_one(i, group, record):
                raise RuntimeError(f"{self.label(i)} changed while it was bound")

    def are_ordinary(self, list params):
        """Whether parameters with a gradient are contiguous tensors of PyTorch's own classes, as their gradients are.

        Nothing but shared memory can keep such from being stepped. False where C cannot see all of that.
        """
        cdef fo_tensor_t t
        cdef int64_t form[2 * MOST_ORDINARY_DIMS]
        cdef Py_ssize_t n
        cdef int type
        if not self.can_follow:
            return False
        for owner in params:
            grad = self.grad_of(owner)
            if grad is None:
                continue
            if not (self.is_plain(<PyObject *>owner) and self.is_plain(<PyObject *>grad)
                    and self.can_view(<PyObject *>owner, &t) and t.ndim <= MOST_ORDINARY_DIMS):
                return False
            type, n = fo_tensor_type(&t), contiguous_form(&t, form)
            if (type not in (FO_FLOAT, FO_DOUBLE) or n == 0
                    or fo_shim_writable(&self.shim, <PyObject *>owner, type, t.ndim, form, n) == NULL
                    or fo_shim_fits(&self.shim, <PyObject *>grad, type, t.ndim, form) == NULL):
                return False
        return True

    def is_like(self, tensor, param):
        """Whether a tensor can be state of an ordinary parameter, as far as C sees; False if it has to be looked at."""
        cdef fo_tensor_t t
        cdef int64_t form[2 * MOST_ORDINARY_DIMS]
        cdef Py_ssize_t n
        if not (self.can_follow and self.is_plain(<PyObject *>tensor) and self.is_plain(<PyObject *>param)
                and self.can_view(<PyObject *>param, &t) and t.ndim <= MOST_ORDINARY_DIMS):
            return False
        n = contiguous_form(&t, form)
        return n != 0 and fo_shim_writable(&self.shim, <PyObject *>tensor, fo_tensor_type(&t), t.ndim, form, n) != NULL

    def is_ordinary_state(self, state, dict kinds, tuple required, bint single=False):
        """Whether all state is of ordinary parameters and complete, and every tensor of the type and form it has to be.

        False where C cannot tell. `kinds` has what an entry may hold: name -> "parameter" (like it, or None), "number"
        or "count". One that is not empty has to hold all that is `required`. `single`: counts have to be float32.
        """
        cdef Py_ssize_t place = 0
        cdef PyObject *param
        cdef PyObject *entry
        if not isinstance(state, dict):
            return False
        while PyDict_Next(state, &place, &param, &entry):
            if not (PyDict_CheckExact(entry) and self.is_ordinary_entry(param, <dict>entry, kinds, required, single)):
                return False
        return True

    cdef bint is_ordinary_entry(self, PyObject *param, dict entry, dict kinds, tuple required, bint single) except -1:
        """Whether one entry of the state is so. No Python code runs in here."""
        cdef fo_tensor_t t
        cdef int64_t form[2 * MOST_ORDINARY_DIMS]
        cdef Py_ssize_t n, place = 0
        cdef PyObject *name
        cdef PyObject *value
        cdef int type
        if not (self.can_follow and self.is_plain(param) and self.can_view(param, &t)
                and t.ndim <= MOST_ORDINARY_DIMS):
            return False
        type, n = fo_tensor_type(&t), contiguous_form(&t, form)
        if type not in (FO_FLOAT, FO_DOUBLE) or n == 0:
            return False
        while PyDict_Next(entry, &place, &name, &value):
            kind = kinds.get(<object>name) if PyUnicode_CheckExact(name) else None
            if kind is None or not (self.is_plain(value) or (kind == "parameter" and value == <PyObject *>None)):
                return False
            if kind == "count":
                if not self.is_ordinary_count(value, single):
                    return False
            elif kind == "number":
                if fo_shim_writable(&self.shim, value, type, 0, NULL, 1) == NULL:
                    return False
            elif (value != <PyObject *>None
                  and fo_shim_writable(&self.shim, value, type, t.ndim, form, n) == NULL):
                return False
        if entry:
            for wanted in required:
                if wanted not in entry:
                    return False
        return True

    cdef bint is_ordinary_count(self, PyObject *tensor, bint single) noexcept:
        """Whether a tensor is a count that float32 can hold, of that type or, unless `single`, float64."""
        cdef BoundTensor count
        cdef double x
        count.type, count.data = cnp.NPY_FLOAT, fo_shim_writable(&self.shim, tensor, cnp.NPY_FLOAT, 0, NULL, 1)
        if count.data == NULL and not single:
            count.type, count.data = cnp.NPY_DOUBLE, fo_shim_writable(&self.shim, tensor, cnp.NPY_DOUBLE, 0, NULL, 1)
        if count.data == NULL:
            return False
        x = number_at(&count)
        return 0 <= x < LAST_FLOAT_COUNT and x == <double><int64_t>x

    cdef bint bind_one(self, Py_ssize_t i, Group group, record) except -1:
        """Bind a parameter, for the first time or anew; False if the plan does not fit it any more."""
        owner, inner, entries, own, slots, count, numbers, steps, begun = record
        cdef Binding *binding = &self.bindings[i]
        cdef Param *q = &self.params[i]
        cdef fo_tensor_t t
        cdef BoundTensor bound
        cdef char *old
        cdef char *before
        cdef int k, type
        self.view(<PyObject *>own, &t)
        type = fo_tensor_type(&t)
        if ((binding.own.tensor != NULL and type != binding.own.type)
                or (type != FO_DOUBLE and not group.hyper.has_float)):
            return False
        if binding.pending:
            self.fresh = [one for one in self.fresh if one[0] != i]
        old = q.p if binding.own.tensor != NULL else NULL
        binding.form = <int64_t *>renewed(binding.form, 2 * t.ndim * <Py_ssize_t>sizeof(int64_t))
        binding.ndim = t.ndim
        q.n = 1
        for k in range(t.ndim):
            binding.form[k], binding.form[t.ndim + k] = t.shape[k], t.strides[k]
            q.n *= t.shape[k]
        values = list(({**inner, **entries} if inner else entries).values())
        self.retired.append(self.keep_refs[i])
        self.keep_refs[i] = (owner, inner, values, own, slots, count, numbers)
        binding.state, binding.values, binding.version = <PyObject *>inner, <PyObject *>values, 0
        binding.wrapped, binding.stale, binding.pending = own is not owner, False, bool(entries)
        self.note(&binding.own, own)
        q.p, q.type = binding.own.data, <short>type
        mirror = self.host.mirror_of(owner, own, self.label(i)) if self.has_mirrors else None
        if binding.mirror.tensor != NULL or mirror is not None:
            before = binding.mirror.data if binding.mirror.tensor != NULL else NULL
            self.note(&binding.mirror, mirror)
            self.add_move(i, -2, before, binding.mirror.data, 0 if mirror is None else 2 * q.n)
        if q.stored == NULL and (type == FO_BFLOAT16 or group.storage is not None or mirror is not None):
            q.stored = new_stored(i)
        if q.stored != NULL:
            self.note_formats(group, i)
        self.add_move(i, -1, old, q.p, param_bytes(q))
        for k, name in enumerate(group.slots):
            self.note(&bound, slots[name])
            if bound.tensor == NULL:      # an average that does not begin yet
                bound.data = NULL
                binding.other[k], q.s[k] = bound, NULL
                continue
            if not group.alike and <uintptr_t>bound.data % fo_width(bound.type):
                raise TensorStateError(f"state {name!r} of {self.label(i)} is misaligned")
            self.add_move(i, k, binding.other[k].data if binding.other[k].tensor != NULL else NULL, bound.data,
                          self.state_bytes(group, q, k, slots[name]))
            binding.other[k] = bound
            q.s[k] = bound.data
        if group.low >= 0:
            q.stored.low = q.s[group.low]
        self.note(&binding.other[COUNT], count)
        for k, number in enumerate(numbers):
            self.note(&binding.other[NUMBERS + k], number)
        binding.n_numbers = <int>len(<tuple>numbers)
        q.t, q.begun = steps, begun
        copy_numbers(q.numbers, group.numbers)
        if not numbers and steps:         # a state without a count says itself whether it has begun
            q.numbers[0] = 1
        self.special = self.special or binding.wrapped
        self.note_trails(i, group.n_slots)
        if entries:
            self.fresh.append((i, inner, entries))
        return True

    cdef note_formats(self, Group group, Py_ssize_t i):
        cdef Param *q = &self.params[i]
        cdef const BoundTensor *mirror = &self.bindings[i].mirror
        self.put_formats(group, q, q.type == FO_BFLOAT16, True)
        q.stored.stream = self.streams[i]
        q.stored.mirror = mirror.data if mirror.tensor != NULL else NULL
        q.stored.copy = FLOAT16 if mirror.type == FO_HALF else BFLOAT16

    cdef Py_ssize_t state_bytes(self, Group group, const Param *q, int k, tensor) except -1:
        """The bytes of the k-th state slot of a parameter, this tensor."""
        if not group.alike:
            return self.size_of(tensor)
        return q.n << shift_of(q) if k == group.mean else param_bytes(q)

    cdef note(self, BoundTensor *bound, tensor):
        """Bind a tensor; the two ways to look at it, where there are two, have to agree."""
        cdef fo_tensor_t t, u
        if tensor is None:
            bound.tensor = NULL
            return
        self.view(<PyObject *>tensor, &t)
        bound.tensor, bound.data, bound.type = <PyObject *>tensor, <char *>t.data, fo_tensor_type(&t)
        if self.shim.place and self.exchange != NULL:
            self.exchange(<PyObject *>tensor, &u)
            if u.data != t.data or fo_tensor_type(&u) != bound.type or u.ndim != t.ndim:
                raise RuntimeError("this version of PyTorch has another layout of its tensors than was found at first")

    cdef void note_trails(self, Py_ssize_t i, int n_slots) noexcept:
        """Note where looking at a parameter and its state leads."""
        cdef Binding *binding = &self.bindings[i]
        cdef Trails *trails = &self.trails[i]
        cdef int k
        if not self.shim.place:
            return
        fo_shim_trail(&self.shim, binding.own.tensor, &trails.at[1])
        trails.n = 2
        for k in range(MOST_BOUND):
            if (k < n_slots or (k >= COUNT and k < NUMBERS + binding.n_numbers)) and binding.other[k].tensor != NULL:
                fo_shim_trail(&self.shim, binding.other[k].tensor, &trails.at[trails.n])
                trails.n += 1
        trails.autograd = fo_shim_beside(&self.shim, &trails.at[1])
        trails.versions = fo_shim_counter(&self.shim, binding.own.tensor)
        trails.state, trails.entries = binding.state, fo_dict_entries(binding.state)
        trails.count = binding.other[COUNT].data

    cdef Py_ssize_t size_of(self, tensor) except -1:
        """The bytes of a dense tensor."""
        cdef fo_tensor_t t
        cdef Py_ssize_t n
        cdef int k
        self.view(<PyObject *>tensor, &t)
        n = fo_width(fo_tensor_type(&t))
        for k in range(t.ndim):
            n *= t.shape[k]
        return n

    cdef point(self, Group group):
        cdef Py_ssize_t i
        cdef int k
        for i in range(group.first, group.first + group.n_params):
            for k in range(group.n_slots):
                self.params[i].s[k] = self.bindings[i].other[k].data
            if self.params[i].stored != NULL:
                self.note_formats(group, i)

    def watch(self, state, bint alone):
        """Note the optimizer's state as it is: the plan holds as long as it stays so. Raises where memory overlaps.

        Parameters that get other memory are bound without a new record if the plan's are `alone`.
        """
        self.alone = alone
        if not self.map_memory(True):
            raise RuntimeError("overlapping memory was not found again")
        self.note_state(state)

    cdef note_state(self, state):
        self.state, self.version = state, 0
        self.outer = [x for pair in state.items() for x in pair]

    # --- Binding anew

    cdef bint rebind(self) except -1:
        """Bind what is stale by new records; False if that takes another plan."""
        cdef Group group
        cdef Py_ssize_t i
        for group, bound_spec in zip(self.groups, self.specs):
            spec = None
            for i in range(group.first, group.first + group.n_params):
                if self.bindings[i].stale:
                    if spec is None:      # options may have changed, and with them the first values of state
                        spec = self.derive(group.options)
                        if spec.forms != bound_spec.forms or types_of(spec) != types_of(bound_spec):
                            return False
                    record = self.record(self.owners[i], group.options, spec, self.label(i))
                    if record is None or not self.bind_one(i, group, record):
                        return False
        return True

    cdef bint bind_absent(self, list grads) except -1:
        """Bind the parameters that have their first gradient; False if that takes another plan."""
        cdef Py_ssize_t i
        cdef bint found = False
        for i in range(self.n_bindings):
            if self.bindings[i].own.tensor == NULL and grads[i] is not None:
                self.bindings[i].stale = found = True
        return not found or self.rebind()

    cdef bint follow(self, Group group, Py_ssize_t i) except -1:
        """Bind a parameter anew whose tensors were exchanged for others like them; False if it needs a record.

        No Python code runs in here, so that what was looked at before stays as it was.
        """
        cdef Binding *binding = &self.bindings[i]
        cdef Param *q = &self.params[i]
        cdef BoundTensor now[MOST_BOUND]
        cdef char *data = q.p
        cdef bint same
        cdef int k
        if (not self.can_follow or not group.alike or binding.wrapped or binding.pending
                or not PyDict_CheckExact(binding.state)):
            return False
        if not self.is_same(&binding.own, binding):
            data = fo_shim_writable(&self.shim, binding.owner, q.type, binding.ndim, binding.form, q.n)
            if data == NULL or not self.alone:
                return False
        if q.stored != NULL and binding.mirror.tensor != NULL and not self.is_same(&binding.mirror, binding):
            return False
        same = same_values(binding.state, binding.values)
        memcpy(now, binding.other, sizeof(now))
        for k in range(group.n_slots):
            if now[k].tensor == NULL:
                if not same:              # there may be one now
                    return False
            elif not self.find_like(&now[k], binding, same, group.slots[k], binding.ndim, binding.form, q.n):
                return False
        if now[COUNT].tensor != NULL and not self.find_like(&now[COUNT], binding, same, "step", 0, NULL, 1):
            return False
        for k in range(binding.n_numbers):
            if not self.find_like(&now[NUMBERS + k], binding, same, self.number_names[k], 0, NULL, 1):
                return False
        if not same:
            self.keep_values(i)
        if data != q.p:
            self.add_move(i, -1, q.p, data, param_bytes(q))
            q.p = binding.own.data = data
        for k in range(group.n_slots):
            if now[k].data != q.s[k]:
                self.add_move(i, k, q.s[k], now[k].data, q.n << shift_of(q) if k == group.mean else param_bytes(q))
                q.s[k] = now[k].data
        memcpy(binding.other, now, sizeof(now))
        self.note_trails(i, group.n_slots)
        return self.is_current(binding, q, group.n_slots)

    cdef bint find_like(self, BoundTensor *bound, const Binding *binding, bint same, str name, int ndim,
                        const int64_t *form, Py_ssize_t n) except -1:
        """Take the tensor that the state has under a name now, if it is like the one that was bound."""
        cdef PyObject *tensor = bound.tensor if same else value_of(binding.state, <PyObject *>name)
        cdef char *data
        if tensor == NULL or not self.is_plain(tensor):
            return False
        if tensor == bound.tensor and self.is_same(bound, NULL):
            return True
        data = fo_shim_writable(&self.shim, tensor, bound.type, ndim, form, n)
        if data == NULL:
            return False
        bound.tensor, bound.data = tensor, data
        return True

    cdef keep_values(self, Py_ssize_t i):
        """Keep what the state of a parameter holds now; what it held before is let go of after the step."""
        cdef Binding *binding = &self.bindings[i]
        cdef bint collects = PyGC_Disable()           # a new object could start it
        try:
            inner = <object>binding.state
            values = PyDict_Values(inner)
            self.retired.append(self.keep_refs[i])
            self.keep_refs[i] = (self.owners[i], inner, values)
            binding.values, binding.version = <PyObject *>values, 0
        finally:
            if collects:
                PyGC_Enable()

    cdef void add_move(self, Py_ssize_t param, int slot, char *old, char *low, Py_ssize_t n_bytes) noexcept:
        """Note that a parameter or a state slot has other memory."""
        if self.n_moves == MOST_MOVES:
            self.unsorted = True
        else:
            self.moves[self.n_moves] = Move(param, slot, old, low, n_bytes)
            self.n_moves += 1

    cdef bint move(self) except -1:
        """Bring the sorted memory up to date; False if two intervals overlap, maybe only until more is bound anew."""
        cdef Move *x
        cdef Param *q
        cdef Py_ssize_t i
        cdef int k
        if self.unsorted:
            return self.map_memory(False)
        for k in range(self.n_moves):
            if self.moves[k].old != NULL:
                self.memory.remove(self.moves[k].old, self.moves[k].param, self.moves[k].slot)
        for k in range(self.n_moves):
            x = &self.moves[k]
            if x.n_bytes and not self.memory.insert(x.low, x.n_bytes, x.param, x.slot):
                self.unsorted = True
                return False
        for i in range(self.n_params):
            q = &self.params[i]
            for k in range(self.n_moves):
                x = &self.moves[k]
                if q.gap_low < x.low + x.n_bytes and x.low < q.gap_high:
                    q.gap_low = q.gap_high = NULL
        self.n_moves = 0
        return True

    cdef bint map_memory(self, bint raises) except -1:
        """Sort the memory of all that is bound; False or OverlapError if two intervals overlap."""
        cdef Memory memory = self.memory
        cdef Group group
        cdef Binding *binding
        cdef Py_ssize_t i, n_bytes, room = self.n_params
        cdef int k
        self.n_moves, self.unsorted = 0, True
        for group in self.groups:
            room += group.n_params * (group.n_slots + 1)
        if room > memory.room:
            memory.reserve(room)
        memory.n = 0
        for group in self.groups:
            for i in range(group.first, group.first + group.n_params):
                binding = &self.bindings[i]
                if binding.own.tensor == NULL:
                    continue
                if param_bytes(&self.params[i]):
                    memory.append(binding.own.data, param_bytes(&self.params[i]), i, -1)
                if binding.mirror.tensor != NULL and self.params[i].n:
                    memory.append(binding.mirror.data, 2 * self.params[i].n, i, -2)
                for k in range(group.n_slots):
                    if binding.other[k].tensor == NULL:
                        continue
                    n_bytes = self.state_bytes(group, &self.params[i], k, <object>binding.other[k].tensor)
                    if n_bytes:
                        memory.append(binding.other[k].data, n_bytes, i, k)
        for i in range(self.n_params):
            self.params[i].gap_low = self.params[i].gap_high = NULL
        i = memory.sort()
        if i and raises:
            states = []
            for group in self.groups:
                states += group.n_params * [dict.fromkeys(group.slots)]
            raise OverlapError(clash(&memory.intervals[i - 1], &memory.intervals[i], self.names, states))
        self.unsorted = i != 0
        return i == 0

    # --- Stepping

    def sum_apart(self, list parts, int n_parts):
        """Have `totals` hold so many sums; `parts` gives, for each parameter of the plan, in which it counts."""
        if n_parts > 1 and len(parts) != self.n_bindings:
            raise ParameterError("parameters changed while the step looked at them")
        self.parts, self.n_parts = parts if n_parts > 1 else None, n_parts

    def step_tensors(self, groups, state, grad_scale=None, bint check_only=False, factor=None):
        """One step; False, with nothing written, if something is no longer as it was bound.

        With `check_only` all is checked that a step checks, and nothing is written; the gradients are summed if the
        plan clips. With a `factor` they are multiplied by that, and not summed.
        """
        if self.paused:
            return False
        self.enter()
        try:
            self.check_only = check_only
            self.clips = self.clip_norm is not None
            self.has_factor = factor is not None
            if self.has_factor:
                self.factor = factor
            self.set_scale(grad_scale)
            return self.is_bound(groups, state) and self.step_bound()
        finally:
            self.leave()
            self.to_zero = None
            if PyList_GET_SIZE(<PyObject *>self.retired):
                self.retired.clear()

    @cython.final
    cdef inline bint is_plain(self, PyObject *tensor) noexcept:
        """Whether an object is of PyTorch's own classes, which have no Python code to run."""
        cdef PyObject *kind = <PyObject *>Py_TYPE(tensor)
        return kind == <PyObject *>self.tensor_type or kind == <PyObject *>self.parameter_type

    cdef bint is_bound(self, groups, state) except -1:
        """Whether groups, their parameters and options, and the state are those that were bound."""
        cdef Group group
        cdef Py_ssize_t k
        if type(groups) is not list or len(groups) != len(self.groups) or state is not self.state:
            return False
        for k in range(len(self.groups)):
            group = self.groups[k]
            now, then = self.members[k]
            if groups[k] is not group.options or group.options.get("params") is not now or not same_items(now, then):
                return False
            if group.refresh(no_schedules) and not self.take_options(k, group):
                return False
        if self.version == 0 or self.version != fo_dict_version(<PyObject *>state):
            if not same_entries(state, self.outer):
                return False
            self.version = fo_dict_version(<PyObject *>state)
        return True

    cdef bint take_options(self, Py_ssize_t k, Group group) except -1:
        """Take over edited options, if the rule stays the same."""
        cdef Group fresh = self.new_group(group.options, group.hyper.has_float, no_schedules)
        if fresh.program.rule != group.program.rule or fresh.slots != group.slots:
            return False
        if storage_of(fresh) != storage_of(group):        # state is of another type, or steps are to be counted
            return False
        fresh.first, fresh.n_params = group.first, group.n_params
        self.commit_groups([(k, fresh, [])])
        return True

    cdef bint step_bound(self) except -1:
        """One step, if all is bound still."""
        cdef Job job
        cdef list grads, given
        cdef int fits = -1
        self.to_zero = None
        if not (self.special or self.fresh or self.grad is None or self.host.modes()):
            fits = self.step_lightly(&job)
        if fits == 0 or fits == 1:
            return fits
        for _ in range(3):                # binding anew runs Python code, so that all is looked at again
            if fits == TO_BIND and not self.rebind():
                return False
            grads = [self.grad_of(owner) for owner in self.owners]
            if not (self.bind_absent(grads) and self.unwrap(grads)):
                return False
            given = list(grads)
            self.fit(grads)
            fits = self.gather(&job, grads)
            if fits != TO_BIND:
                break
        if fits == 1 and self.asks_each:
            self.check_each()
            fits = self.gather(&job, grads)
        if fits == 1 and self.zeroes:
            self.check_gradients_apart(&job)
            self.to_zero = self.zeroed_apart(given, grads)
            fits = self.gather(&job, grads)
        if fits == 1 and self.fresh and not self.check_only:
            self.settle()             # so does this
            fits = self.gather(&job, grads)
        if fits < 0:
            raise GradientError("gradients changed while the step looked at them")
        if fits == 1:
            self.set_up_clip(&job)
            self.run_job(&job)
            if self.to_zero is not None and not self.check_only:
                self.host.zero(self.to_zero)
                self.to_zero = None
        return fits == 1

    cdef check_each(self):
        """Raise where a norm by itself would be that of a part of a gradient."""
        cdef Group group
        cdef Py_ssize_t i
        for group in self.groups:
            if group.program.own_limit > 0 and not group.are_whole:
                for i in range(group.first, group.first + group.n_params):
                    self.host.check_each(self.owners[i], self.label(i))
                group.are_whole = True

    cdef list zeroed_apart(self, list given, list grads):
        """The gradients to zero that a step does not zero as it reads them; None if there are none."""
        cdef Group group
        cdef Py_ssize_t i
        cdef list found = []
        cdef bint unseen = False          # whether there are gradients of which the engine reads a copy
        for group in self.groups:
            if group.program.zeroes:
                for i in range(group.first, group.first + group.n_params):
                    if given[i] is not None and (given[i] is not grads[i] or self.bindings[i].wrapped
                                                 or not self.can_zero(<PyObject *>given[i])):
                        grad = self.grad_of(self.owners[i])
                        self.host.check_zeroing(grad, f"gradient of {self.label(i)}")
                        found.append(grad)
                        unseen = unseen or not self.host.is_read(grad, grads[i])
        if unseen:
            labels = [self.label(i) for i in range(self.n_bindings)]
            every = [(self.grad_of(self.owners[i]), f"gradient of {labels[i]}")
                     for group in self.groups if group.program.zeroes
                     for i in range(group.first, group.first + group.n_params) if given[i] is not None]
            self.host.check_zeroed(every, list(zip(self.owners, labels)))
        return found or None

    cdef int step_lightly(self, Job *job) except -2:
        """A step without a list of the gradients: 1; else as `gather`.

        From the first look to the last write no other Python code may run: it could let go of what was looked at. The
        cyclic collector is what could start some. A large step, which gives up the GIL, keeps references.
        """
        cdef bint collects = PyGC_Disable(), large
        cdef Py_ssize_t i
        cdef int fits
        try:
            fits = self.gather(job, None)
            if fits == 1:
                self.set_up_clip(job)
            large = fits == 1 and is_large(job)
            if large:
                for i in range(job.n_work):
                    Py_XINCREF(job.work[i].grad)
            elif fits == 1:
                self.run_job(job)
        finally:
            if collects:
                PyGC_Enable()
        if large:
            try:
                self.run_job(job)
            finally:
                for i in range(job.n_work):
                    Py_XDECREF(job.work[i].grad)
        return fits

    cdef inline int set_up_clip(self, Job *job) except -1:
        """Have a job that clips sum the gradients first, or only that; or give it the factor that is known."""
        if self.zeroes:
            self.check_gradients_apart(job)
        self.clip.known = self.has_factor
        if self.has_factor:
            job.factor = self.factor
        if not self.sums or (self.has_factor and not self.own_sums):
            return 0
        ask_for_sum(job, self.norm_sum, &self.scratch)
        if self.check_only:
            job.moved = job.blocks
            return 0
        self.clip.limit, self.clip.grad_scale = self.clip_norm if self.clips else INFINITY, self.grad_scale
        job.clip = &self.clip
        job.moved += job.blocks           # gradients are read twice
        return 0

    cdef run_job(self, Job *job):
        if self.check_only:
            if job.sum != NULL:
                launch(&self.team, job)
                self.totals = self.part_totals(job)
            return
        launch(&self.team, job)
        if self.last is not None and not self.has_factor:
            self.last.clipped, self.last.norm = self.sums, self.clip.norm
        self.write_back(job)

    cdef list part_totals(self, const Job *job):
        """The sum of each part, by the same tree as of all, once all arrays are summed."""
        cdef double *sums
        cdef Py_ssize_t i, n
        cdef int k
        if self.parts is None:
            return [join_arrays(job)] + (self.n_parts - 1) * [0.0]
        sums = <double *>renewed(NULL, (job.n_work + 1) * <Py_ssize_t>sizeof(double))
        try:
            totals = []
            for k in range(self.n_parts):
                n = 0
                for i in range(job.n_work):
                    if <int>self.parts[job.work[i].q - self.params] == k:
                        sums[n] = job.sums[i]
                        n += 1
                totals.append(join(job.sum, sums, sums, n))
            return totals
        finally:
            PyMem_Free(sums)

    cdef grad_of(self, owner):
        return fo_get(self.grad, owner) if self.grad is not None and self.is_plain(<PyObject *>owner) else owner.grad

    cdef bint unwrap(self, list grads) except -1:
        """Local tensors in the place of wrapped gradients; False if a parameter wraps another tensor than it did.

        And a gradient whose sign is only a flag is written out, where C does not see the flag.
        """
        cdef Py_ssize_t i
        for i in range(self.n_bindings):
            if self.bindings[i].wrapped:
                own = self.host.local(self.owners[i], None)
                if <PyObject *>own != self.bindings[i].own.tensor:
                    return False
                if grads[i] is not None:
                    grads[i] = self.host.local(grads[i], self.owners[i])
            if self.shim.is_neg == NULL and grads[i] is not None and grads[i].is_neg():
                grads[i] = grads[i].resolve_neg()
        return True

    cdef fit(self, list grads):
        """Gradients that fit in the place of those that do not, or the error."""
        cdef Py_ssize_t i
        cdef int type
        for i in range(self.n_bindings):
            g = grads[i]
            if g is not None and (self.params[i].n or not self.is_plain(<PyObject *>g)) and self.fitting(
                    <PyObject *>g, &self.bindings[i], &type) == NULL:
                grads[i] = self.host.fit(g, <object>self.bindings[i].own.tensor, f"gradient of {self.label(i)}")

    @cython.final
    cdef inline char *fitting(self, PyObject *g, const Binding *binding, int *type):
        """The memory of a gradient that has the sizes and strides of its parameter, and its type; else NULL.

        Or a type that is read as float32, of a parameter that is computed with in float32.
        """
        cdef char *data = NULL
        if not self.is_plain(g):
            return NULL
        type[0] = binding.own.type
        data = self.fitting_as(g, binding, type[0])
        if data == NULL and type[0] != FO_DOUBLE:
            type[0] = FO_BFLOAT16 if type[0] == FO_FLOAT else FO_FLOAT
            data = self.fitting_as(g, binding, type[0])
            if data == NULL:
                type[0] = FO_HALF
                data = self.fitting_as(g, binding, type[0])
        return NULL if <uintptr_t>data % fo_width(type[0]) else data      # misaligned

    @cython.final
    cdef inline char *fitting_as(self, PyObject *g, const Binding *binding, int type):
        """The memory of a gradient that has this type, and the sizes and strides of its parameter; else NULL."""
        cdef fo_tensor_t t
        if self.shim.place:
            return <char *>fo_shim_fits(&self.shim, g, type, binding.ndim, binding.form)
        if self.can_view(g, &t) and fo_tensor_type(&t) == type and fo_tensor_has(&t, binding.ndim, binding.form):
            return <char *>t.data
        return NULL

    cdef const Program *program_for(self, Group group, Param *q, int type) except NULL:
        """The program for a parameter, and a gradient of this type: something has a format, or may have."""
        if q.stored == NULL:
            q.stored = new_stored(q - self.params)
        q.stored.g = BFLOAT16 if type == FO_BFLOAT16 else FLOAT16 if type == FO_HALF else NULL
        return &group.stored if has_formats(q.stored) else &group.program

    cdef inline bint can_view(self, PyObject *tensor, fo_tensor_t *t):
        """`view`, where it is no error that there is nothing to see."""
        if self.shim.place:
            return fo_shim_look(&self.shim, tensor, t) == 0
        try:
            return self.exchange(tensor, t) == 0
        except Exception:
            return False

    cdef inline int view(self, PyObject *tensor, fo_tensor_t *t) except -1:
        if self.shim.place:
            if fo_shim_look(&self.shim, tensor, t) == 0:
                return 0
            raise BufferError("a tensor without memory on the CPU")
        return self.exchange(tensor, t)

    @cython.final
    cdef inline bint is_same(self, const BoundTensor *bound, const Binding *binding):
        """Whether a bound tensor has its memory, type and form (but for a count's) still."""
        cdef fo_tensor_t t
        if self.shim.place:
            return fo_shim_same(&self.shim, bound.tensor, bound.data, bound.type,
                                -1 if binding == NULL else binding.ndim, NULL if binding == NULL else binding.form)
        return (self.can_view(bound.tensor, &t) and t.data == bound.data and fo_tensor_type(&t) == bound.type
                and (binding == NULL or fo_tensor_has(&t, binding.ndim, binding.form)))

    @cython.final
    cdef inline bint is_current(self, Binding *binding, Param *q, int n_slots) except -1:
        """Whether a parameter and its state are as they were bound; takes count and numbers from their tensors."""
        cdef int k
        if binding.version == 0 or binding.version != fo_dict_version(binding.state):
            if not binding.pending:
                if not same_values(binding.state, binding.values):
                    return False
                binding.version = fo_dict_version(binding.state)
        if not self.is_same(&binding.own, binding):
            return False
        if q.stored != NULL and binding.mirror.tensor != NULL and not self.is_same(&binding.mirror, binding):
            return False
        for k in range(n_slots):
            if binding.other[k].tensor != NULL and not self.is_same(&binding.other[k], NULL):
                return False              # its form was compared when it was bound
        if binding.other[COUNT].tensor != NULL:
            if not (self.is_same(&binding.other[COUNT], NULL) and self.read_count(q, &binding.other[COUNT])):
                return False
        for k in range(binding.n_numbers):
            if not self.is_same(&binding.other[NUMBERS + k], NULL):
                return False
            q.numbers[k] = number_at(&binding.other[NUMBERS + k])
        return True

    cdef int gather(self, Job *job, list grads) except -2:
        """Check tensors and note what to step: 1, or why not.

        0 if that takes another plan; -1 if a gradient does not fit; TO_BIND if bindings are stale.

        Without a list, gradients are asked for on the way, and no references are kept: for steps that keep the GIL.
        No Python code runs in here but on the way to an error, so that what was checked stays as it was.
        """
        cdef Group group
        cdef Param *q
        cdef Binding *binding
        cdef PyObject *g
        cdef Trails *trails
        cdef char *data
        cdef Py_ssize_t i, before, asked = 0
        cdef const Program *program
        cdef int k, type = FO_UNFIT
        cdef bint stale = False, apart = True
        self.begin_job(job, NULL)
        self.bank.n = 0
        self.sums, self.own_sums, self.zeroes, self.averages_now = self.clips, False, False, False
        self.asks_each = False
        for group in self.groups:
            group.prepare(self.grad_scale, self.clips)
            if group.around:
                self.own_sums = self.own_sums or group.program.own_limit > 0
                self.asks_each = self.asks_each or (group.program.own_limit > 0 and not group.are_whole)
                self.sums = self.sums or self.own_sums
                self.zeroes = self.zeroes or group.program.zeroes
                self.averages_now = self.averages_now or group.mean >= 0
            job.place = -1
            before = job.blocks
            for i in range(group.first, group.first + group.n_params):
                q, binding = &self.params[i], &self.bindings[i]
                while asked < self.n_bindings and asked <= i + TENSORS_AHEAD:
                    trails = &self.trails[asked]
                    asked += 1
                    for k in range(trails.n):
                        fo_prefetch_trail(&trails.at[k])
                    fo_prefetch(trails.autograd, 64)
                    fo_prefetch(trails.versions, 1)
                    fo_prefetch(trails.state, 1)
                    fo_prefetch(trails.entries, 1)
                    fo_prefetch(trails.count, 1)
                if grads is None:
                    mine = fo_get(self.grad, <object>binding.owner)     # from now on kept alive by its parameter
                    g = <PyObject *>mine
                else:
                    g = PyList_GET_ITEM(<PyObject *>grads, i)
                if g == <PyObject *>None:
                    continue
                if binding.own.tensor == NULL or not (self.is_current(binding, q, group.n_slots)
                                                      or self.follow(group, i)):
                    binding.stale = stale = True
                    continue
                if group.mean >= 0 and binding.other[group.mean].tensor == NULL and q.t + 1 >= group.hyper.ema_start:
                    binding.stale = stale = True      # its average begins
                    continue
                data = self.fitting(g, binding, &type)
                if data == NULL and (q.n or not self.is_plain(g)):
                    return -1
                if group.program.zeroes and grads is None and not self.can_zero(g):
                    return -1
                if g != <PyObject *>self.trails[i].at[0].object and self.shim.place:
                    fo_shim_trail(&self.shim, g, &self.trails[i].at[0])
                program = &group.program
                if q.stored != NULL or type != q.type:
                    program = self.program_for(group, q, type)
                apart = self.is_apart(q, data) and apart
                self.append_work(job, group, program, q, g, data)
            job.moved += moved_blocks(job.blocks - before, &group.program)
        if self.n_moves or self.unsorted:
            apart = False
            if not self.move() and not stale:
                return 0
        if stale:
            return TO_BIND
        if self.asks_each and grads is None:
            return -1
        return 1 if apart else self.are_apart(job)

    @cython.final
    cdef inline bint can_zero(self, PyObject *g):
        """Whether a gradient can be zeroed in its memory, and nothing else has to be done to it."""
        return self.can_count(g) and fo_get(self.requires_grad, <object>g) is False

    cdef bint are_apart(self, const Job *job) except -1:
        """Whether no gradient meets a parameter or state, now that all of them are bound.

        What lies there may have been given up since: only a plan that was just bound knows for certain, and raises.
        """
        cdef Work *w
        cdef Py_ssize_t i
        for i in range(job.n_work):
            w = &job.work[i]
            if not self.is_apart(w.q, w.g):
                if self.steps == 0:
                    complain_overlap(self, w.q - self.params, w.g)
                return False
        return True

    cdef bint read_count(self, Param *q, const BoundTensor *count) except -1:
        """Take the steps so far from their tensor; False if they are more than it can count on from."""
        cdef double x = number_at(count)
        if not (0 <= x < LAST_COUNT) or x != <double><int64_t>x:
            raise TensorStateError(f"state 'step' of {self.label(q - self.params)} is {x!r}; a whole number from 0 on "
                                   "is needed")
        q.t = <int64_t>x
        return count.type == cnp.NPY_DOUBLE or q.t < LAST_FLOAT_COUNT

    cdef settle(self):
        """Put the state that was made for this step in its place."""
        cdef Py_ssize_t i
        for i, inner, entries in self.fresh:
            inner.update(entries)
            if self.owners[i] not in self.state:
                self.state[self.owners[i]] = inner
            self.bindings[i].pending = False
        self.fresh = []
        self.note_state(self.state)

    cdef write_back(self, Job *job):
        """Counts and carried numbers into their tensors, and a note for the library of what was written."""
        cdef Work *w
        cdef Binding *binding
        cdef Py_ssize_t i
        cdef int k
        cdef bint asks = False            # whether there are versions that C cannot count
        for i in range(job.n_work):
            w = &job.work[i]
            binding = &self.bindings[w.q - self.params]
            # A process with the same state in shared memory may have written since this step began: its count counts.
            advance(&binding.other[COUNT], <double>w.q.t, <double>(w.q.t + 1), True)
            for k in range(binding.n_numbers):
                advance(&binding.other[NUMBERS + k], w.q.numbers[k], job.bank[w.place].numbers[k], False)
            w.q.t += 1
            copy_numbers(w.q.numbers, job.bank[w.place].numbers)
            if self.can_count(binding.owner):
                fo_shim_bump(&self.shim, binding.owner)
            else:
                asks = True
            if w.q.stored != NULL and binding.mirror.tensor != NULL:
                if self.can_count(binding.mirror.tensor):
                    fo_shim_bump(&self.shim, binding.mirror.tensor)
                else:
                    asks = True
            if self.averages_now and w.program.mean >= 0 and is_averaged(&job.bank[w.place].mean):
                w.q.begun = True
            if self.zeroes and w.program.zeroes and self.can_count(w.grad):
                fo_shim_bump(&self.shim, w.grad)
        if self.special or asks:          # not before: a new object may start the collector, and that Python code
            stepped = [self.owners[job.work[i].q - self.params] for i in range(job.n_work)]
            if self.special:
                self.host.finish(stepped)
            if asks:
                stepped += [<object>self.bindings[job.work[i].q - self.params].mirror.tensor for i in range(job.n_work)
                            if self.bindings[job.work[i].q - self.params].mirror.tensor != NULL]
                self.bump([owner for owner in stepped if not self.can_count(<PyObject *>owner)])
        self.steps += 1

    @cython.final
    cdef inline bint can_count(self, PyObject *owner) noexcept:
        """Whether C can count the version of a parameter; where that is an error, Python is left to say so."""
        return self.shim.place and self.is_plain(owner) and fo_shim_counter(&self.shim, owner) != NULL


cdef list types_of(spec):
    return [(slot.name, slot.storage) for slot in spec.slots]


cdef storage_of(Group group):
    """What decides in which types the state of a group is, and whether its steps are counted."""
    if group.storage is None:
        return None
    return group.storage.rounding, [group.kinds[name].storage for name in group.slots]


cdef double number_at(const BoundTensor *bound) noexcept:
    return (<double *>bound.data)[0] if bound.type == cnp.NPY_DOUBLE else (<float *>bound.data)[0]


cdef void advance(const BoundTensor *bound, double before, double after, bint adds) noexcept:
    """Take a number from `before` to `after`; one that is no longer `before`, by as much, added or as a factor."""
    cdef double now
    if bound.tensor == NULL:
        return
    now = number_at(bound)
    if now != before:
        after = now + (after - before) if adds else now * (after / before)
    if bound.type == cnp.NPY_DOUBLE:
        (<double *>bound.data)[0] = after
    else:
        (<float *>bound.data)[0] = <float>after


cdef bint same_items(list now, list then):
    """Whether two lists hold the very same objects."""
    cdef Py_ssize_t i, n = PyList_GET_SIZE(<PyObject *>then)
    if PyList_GET_SIZE(<PyObject *>now) != n:
        return False
    for i in range(n):
        if PyList_GET_ITEM(<PyObject *>now, i) != PyList_GET_ITEM(<PyObject *>then, i):
            return False
    return True


cdef bint same_entries(now, list then):
    """Whether a dict holds the very keys and values that a list gives in turn."""
    cdef Py_ssize_t place = 0, i = 0
    cdef PyObject *key
    cdef PyObject *value
    if 2 * PyDict_Size(<PyObject *>now) != PyList_GET_SIZE(<PyObject *>then):
        return False
    while PyDict_Next(now, &place, &key, &value):
        if key != PyList_GET_ITEM(<PyObject *>then, i) or value != PyList_GET_ITEM(<PyObject *>then, i + 1):
            return False
        i += 2
    return True


cdef bint same_values(PyObject *now, PyObject *then):
    """Whether a dict holds the very values of a list."""
    cdef Py_ssize_t place = 0, i = 0
    cdef PyObject *value
    if PyDict_Size(now) != PyList_GET_SIZE(then):
        return False
    for i in range(PyList_GET_SIZE(then)):
        if not PyDict_Next(<object>now, &place, NULL, &value) or value != PyList_GET_ITEM(then, i):
            return False
    return True


cdef Py_ssize_t contiguous_form(const fo_tensor_t *t, int64_t *form) noexcept:
    """The sizes and strides that a contiguous tensor of this shape has, and how many elements."""
    cdef Py_ssize_t n = 1
    cdef int k
    for k in range(t.ndim - 1, -1, -1):
        form[k], form[t.ndim + k] = t.shape[k], n
        n *= t.shape[k]
    return n


cdef PyObject *value_of(PyObject *entries, PyObject *name) noexcept:
    """The value in a dict under a name, borrowed, or NULL; found without code of other keys."""
    cdef Py_ssize_t place = 0
    cdef PyObject *key
    cdef PyObject *value
    while PyDict_Next(<object>entries, &place, &key, &value):
        if key == name or (PyUnicode_CheckExact(key) and PyUnicode_Compare(key, name) == 0):
            return value
    return NULL


cdef class LastNorm:
    """The norm of the last step of an optimizer, whose plans come and go."""
    cdef double norm
    cdef bint clipped

    @property
    def value(self):
        """The norm, None if the step did not clip."""
        return self.norm if self.clipped else None

    def note(self, double norm):
        """Take a norm that was not found by one plan alone."""
        self.norm, self.clipped = norm, True


cdef class BusyGuard:
    """Lets one function run at a time. Not a lock and a `try` in Python, between which an interrupt could come."""
    cdef bint busy

    def run(self, function, *args):
        if self.busy:
            raise ConcurrentStepError("this optimizer is in the middle of a step (another thread, or something that "
                                      "calls back); one at a time")
        self.busy = True
        try:
            return function(*args)
        finally:
            self.busy = False
