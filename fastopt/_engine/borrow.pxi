# Borrowed arrays: steps over arrays that the caller owns, and gives again at every call (fastopt.functional).
#
# Design:
# - A `BorrowedPlan` is built like any plan, once, by `Plan.add_group`, which finds what is wrong and says so. Then it
#   drops its arrays: between calls it knows where they were and what they were like, and holds no reference to them.
# - A later call compares pointer, type, shape, memory order and flags of every array. An array that is another one is
#   bound in its place, and the intervals are sorted again, from the order that they had. Options are compared by
#   identity, strings and pairs of floats by value; another plain number is read anew.
# - Where this fast path meets anything unusual, an error of its own included, `Kept` returns None, with nothing
#   written. The caller then builds a new plan, which raises, converts or steps.
# - Options that can change by themselves (schedules, lists, arrays) are read as Python code, which may change the
#   caller's lists or step them itself. A plan with such an option is not kept: its calls all take the first way.
# - An average has begun at every step after its first one: the count of the call says so, not the plan.
# - A plan is taken out of `Kept` while it is used: a call from another thread finds another one, or none.

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(PyObject *items)      # of a list or tuple; borrowed
    Py_ssize_t Py_SIZE(PyObject *items)
    bint PyList_CheckExact(PyObject *x)
    bint PyTuple_CheckExact(PyObject *x)
    bint PyFloat_CheckExact(PyObject *x)
    bint PyLong_CheckExact(PyObject *x)
    bint PyUnicode_CheckExact(PyObject *x)
    int PyUnicode_Compare(PyObject *a, PyObject *b) except? -1
    double PyFloat_AS_DOUBLE(PyObject *x)
    int PyDict_Contains(PyObject *d, PyObject *key) except -1
    PyObject *PyTuple_GET_ITEM(PyObject *items, Py_ssize_t i)     # borrowed
    long long PyLong_AsLongLongAndOverflow(PyObject *x, int *overflow) except? -1

cdef enum:
    MOST_COLUMNS = STATE + MAX_SLOTS + MAX_NUMBERS    # PARAM, GRAD, then the state as the function has it
    MOST_KEPT = 8                 # plans of one function
    EASY_SORT = 8                 # places that an interval moves on average before sorting from scratch is quicker

cdef struct Borrowed:             # what one call gave; all borrowed from its arguments
    PyObject *column[MOST_COLUMNS]    # an array or a list of arrays; NULL where left out
    PyObject **items[MOST_COLUMNS]    # its members
    Py_ssize_t n                  # how many each column has
    int64_t step
    PyObject *key[MAX_WATCH]      # options
    PyObject *value[MAX_WATCH]
    int n_options

cdef struct NumberPlace:          # a number that the caller keeps for a parameter
    char *data
    bint is_double


cdef class Kept


cdef class BorrowedPlan(Plan):
    """A plan of one group over arrays that it does not hold between steps. See `Kept`."""
    cdef bint keeps                   # whether it can be kept
    cdef bint in_order                # whether the sorted intervals are those of the arrays that are bound
    cdef int n_slots
    cdef int slot_column[MAX_SLOTS]   # where a call has the state slots of the rule
    cdef int n_given                  # numbers that the caller keeps,
    cdef int number_column[MAX_NUMBERS]   # where a call has them,
    cdef int number_place[MAX_NUMBERS]    # their places among all numbers,
    cdef double number_low[MAX_NUMBERS]   # and what they may be
    cdef double number_high[MAX_NUMBERS]
    cdef bint begun                   # whether the first number says that steps were taken
    cdef NumberPlace *numbers         # n_given for each parameter
    cdef PyObject **refs              # to all arrays but the gradients, while other threads may run
    cdef Memory sorted                # with room for the intervals of all arrays of the caller's
    cdef list keys                    # the options of the last call,
    cdef list values
    cdef int scale                    # the place of grad_scale among them, -1 for none
    cdef int watch[MAX_WATCH]         # their places in the group's `kind`, -1 where it is no plain number,
    cdef int before[MAX_WATCH]        # and in the group's options
    cdef int64_t stamp                # of its last use

    def __cinit__(self):
        self.plain = True

    def __dealloc__(self):
        PyMem_Free(self.numbers)
        PyMem_Free(self.refs)

    cdef remember_form(self, Kept kept, list params, dict options):
        """Note what later calls look like; all memory for that."""
        cdef Group group = self.groups[0]
        cdef Memory memory
        cdef Py_ssize_t each
        cdef int k
        self.keeps = (group.alike and group.settled and len(params) > 0 and len(options) <= MAX_WATCH
                      and (self.clip_norm is None or type(self.clip_norm) is float))
        for p in params:
            self.keeps = self.keeps and cnp.PyArray_CheckExact(p)
        if not self.keeps:
            return
        self.n_slots, self.n_given, self.begun = <int>len(group.slots), <int>len(kept.numbers), kept.begun
        for k in range(self.n_slots):
            self.slot_column[k] = kept.places[group.slots[k]]
        for k in range(self.n_given):
            (self.number_column[k], self.number_place[k], self.number_low[k], self.number_high[k]) = kept.numbers[k]
        each = 1 + self.n_slots + self.n_given
        self.numbers = <NumberPlace *>renewed(self.numbers, self.n_params * self.n_given
                                              * <Py_ssize_t>sizeof(NumberPlace))
        memset(self.numbers, 0, self.n_params * self.n_given * sizeof(NumberPlace))
        self.refs = <PyObject **>renewed(self.refs, self.n_params * each * <Py_ssize_t>sizeof(PyObject *))
        memory = Memory([], [], [])
        memory.intervals = <Interval *>renewed(memory.intervals, self.n_params * each * <Py_ssize_t>sizeof(Interval))
        self.sorted = memory
        self.keys, self.values = list(options), list(options.values())
        self.scale = self.keys.index("grad_scale") if "grad_scale" in options else -1
        own = list(group.options)
        for k, key in enumerate(self.keys):
            places = [i for i, name in enumerate(group.keys) if name == key]
            number = len(places) == 1 and group.kind[<int>places[0]] == NUMBER and group.target[<int>places[0]] != -2
            self.watch[k], self.before[k] = (places[0], own.index(key)) if number else (-1, -1)

    cdef void let_go(self) noexcept:
        """Keep no reference to any array."""
        cdef Py_ssize_t i
        for i in range(self.n_params):
            self.params[i].array = NULL
        self.memory, self.in_order = self.sorted, False
        self.arrays = self.states = None
        self.arenas = None

    # --- Options

    cdef bint is_asked_the_same(self, const Borrowed *call) except -1:
        """Whether a call has the options of the last one, or only other plain numbers among them."""
        cdef Group group = self.groups[0]
        cdef PyObject *key
        cdef PyObject *value
        cdef PyObject *old
        cdef int k
        if call.n_options != PyList_GET_SIZE(<PyObject *>self.keys):
            return False
        for k in range(call.n_options):
            key, value, old = call.key[k], call.value[k], PyList_GET_ITEM(<PyObject *>self.values, k)
            if not same_text(key, PyList_GET_ITEM(<PyObject *>self.keys, k)):
                return False
            if value != old and not same_text(value, old) and not same_float(value, old) and not same_pair(
                    value, old) and not (
                    is_plain_number(value) and is_plain_number(old)
                    and (k == self.scale or PyDict_Contains(<PyObject *>group.options, key))):
                return False
        return True

    cdef take_options(self, const Borrowed *call, Group group):
        """Give the group the numbers that are others than at the last call."""
        cdef PyObject *value
        cdef PyObject *old
        cdef int k
        for k in range(call.n_options):
            value = call.value[k]
            old = PyList_GET_ITEM(<PyObject *>self.values, k)
            if value == old or not is_plain_number(value) or same_float(value, old):
                continue
            self.values[k] = <object>value
            if k == self.scale:
                continue
            group.options[self.keys[k]] = <object>value
            if self.watch[k] >= 0 and PyFloat_CheckExact(value):
                take_number(group, self.watch[k], self.before[k], <object>value)

    # --- Arrays

    cdef bint look(self, const Borrowed *call) except -1:
        """Compare all arrays but the gradients, and bind those that are others; False if something is odd."""
        cdef Py_ssize_t i
        cdef PyObject *array
        cdef char *data
        cdef Param *q
        cdef int k
        cdef bint begun = self.has_begun(call.step)
        for k in range(self.n_slots):
            if call.column[self.slot_column[k]] == NULL:
                return False
        for k in range(self.n_given):
            if call.column[self.number_column[k]] == NULL:
                return False
        for i in range(self.n_params):
            q = &self.params[i]
            array = call.items[PARAM][i]
            if not cnp.PyArray_CheckExact(<object>array):
                return False
            if not (fo_array_data(array) == q.p and fits(array, q, cnp.NPY_ARRAY_WRITEABLE)
                    or self.bind(q, <object>array)):
                return False
            for k in range(self.n_slots):
                array = call.items[self.slot_column[k]][i]
                if not (cnp.PyArray_CheckExact(<object>array) and fits(array, q, cnp.NPY_ARRAY_WRITEABLE)):
                    return False
                data = fo_array_data(array)
                if data != q.s[k]:
                    q.s[k], self.in_order = data, False
            q.t = call.step - 1
            q.begun = begun
            if self.begun:
                q.numbers[0] = q.t > 0
            for k in range(self.n_given):
                if not self.look_at_number(i, k, call.items[self.number_column[k]][i]):
                    return False
        return self.in_order or self.arrange()

    @cython.final
    cdef inline bint has_begun(self, int64_t step):
        """Whether averages have begun before this step."""
        cdef Group group = self.groups[0]
        return group.mean >= 0 and step > max(group.hyper.ema_start, 1)

    def set_count(self, Py_ssize_t i, int64_t t, tuple numbers):
        Plan.set_count(self, i, t, numbers)
        self.params[i].begun = self.has_begun(t + 1)

    cdef bint bind(self, Param *q, cnp.ndarray array) except -1:
        """Bind another array as a parameter, if it is one of the same type that can be stepped."""
        if not (cnp.PyArray_TYPE(array) == q.type and cnp.PyArray_ISNOTSWAPPED(array) and cnp.PyArray_ISALIGNED(array)
                and cnp.PyArray_ISWRITEABLE(array)
                and (cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array))):
            return False
        self.in_order = False
        describe(q, array)
        return True

    cdef bint look_at_number(self, Py_ssize_t i, int k, PyObject *array) noexcept:
        """Take the k-th number that the caller keeps for parameter i from its array, if that is a plain one."""
        cdef NumberPlace *at = &self.numbers[i * self.n_given + k]
        cdef cnp.ndarray a
        cdef double number
        if not cnp.PyArray_CheckExact(<object>array):
            return False
        a = <cnp.ndarray>array
        if not (cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) and cnp.PyArray_SIZE(a) == 1
                and cnp.PyArray_ISNOTSWAPPED(a) and cnp.PyArray_ISALIGNED(a) and cnp.PyArray_ISWRITEABLE(a)):
            return False
        at.is_double = cnp.PyArray_TYPE(a) == cnp.NPY_DOUBLE
        if at.data != <char *>cnp.PyArray_DATA(a):
            at.data, self.in_order = <char *>cnp.PyArray_DATA(a), False
        number = (<double *>at.data)[0] if at.is_double else (<float *>at.data)[0]
        if not self.number_low[k] <= number <= self.number_high[k]:
            return False
        self.params[i].numbers[self.number_place[k]] = number
        return True

    cdef bint arrange(self) noexcept:
        """Sort the intervals of the arrays that are bound; False if two overlap."""
        cdef Memory memory = self.sorted
        cdef Interval *x = memory.intervals
        cdef Interval moving
        cdef Py_ssize_t i, j, n = 0, moves = 0
        cdef int slot, each = 1 + self.n_slots + self.n_given
        cdef bint as_before
        for i in range(self.n_params):
            n += each if self.params[i].n else self.n_given
        as_before = memory.n == n
        for i in range(memory.n if as_before else 0):
            as_before = as_before and self.place(&x[i], x[i].param, x[i].slot)
        if not as_before:
            memory.n = 0
            for i in range(self.n_params):
                for slot in range(each):
                    memory.n += self.place(&x[memory.n], i, slot - 1)
        for i in range(1, n):
            if x[i - 1].low <= x[i].low:
                continue
            moving, j = x[i], i
            while j > 0 and x[j - 1].low > moving.low:
                x[j] = x[j - 1]
                j -= 1
            x[j] = moving
            moves += i - j
            if moves > EASY_SORT * n:
                qsort(x, n, sizeof(Interval), by_address)
                break
        memory.gap_low = memory.gap_high = NULL
        for i in range(self.n_params):
            self.params[i].gap_low = self.params[i].gap_high = NULL
        for i in range(1, n):
            if x[i - 1].high > x[i].low:
                return False
        self.in_order = True
        return True

    cdef bint place(self, Interval *x, Py_ssize_t i, int slot) noexcept:
        """Fill in the interval of parameter i (slot -1), of its state, or of a number; False if it is empty."""
        cdef Param *q = &self.params[i]
        cdef NumberPlace *at
        if slot >= self.n_slots:
            at = &self.numbers[i * self.n_given + slot - self.n_slots]
            x.low = at.data
            x.high = x.low + (8 if at.is_double else 4)
        else:
            x.low = q.p if slot < 0 else q.s[slot]
            x.high = x.low + (q.n << shift_of(q))
        x.param, x.slot = i, slot
        return x.high > x.low

    cdef bint gather(self, Job *job, const Borrowed *call, Group group) except -1:
        """Check everything and note what to step; False, with nothing written, if something is odd.

        No Python code runs in here but on the way to an error, so that what was checked stays as it was.
        """
        cdef PyObject **grads = call.items[GRAD]
        cdef PyObject *g
        cdef Py_ssize_t i
        cdef Param *q
        cdef int flags
        self.begin_job(job, NULL)
        job.place, job.scan_nonfinite, self.bank.n = -1, self.nonfinite != "propagate", 0
        self.clips = self.clip_norm is not None
        self.clip.limit = self.clip_norm if self.clips else INFINITY
        group.prepare(self.grad_scale, self.clips)
        self.sums = self.clips or (group.around and group.program.own_limit > 0)
        self.zeroes = group.around and group.program.zeroes
        flags = cnp.NPY_ARRAY_WRITEABLE if self.zeroes else 0
        if not self.look(call):
            return False
        for i in range(self.n_params):
            q, g = &self.params[i], grads[i]
            if g == <PyObject *>None:
                continue
            if not (cnp.PyArray_CheckExact(<object>g) and fits(g, q, flags)):
                return False
            self.add_work(job, group, &group.program, q, g, fo_array_data(g))
        job.moved = moved_blocks(job.blocks, &group.program)
        if self.zeroes:
            self.check_gradients_apart(job)
        if self.sums:
            self.ask_for_norms(job)
        return True

    @cython.final
    cdef inline bint take_scale(self, const Borrowed *call):
        """Note what gradients are to be divided by; False if it has to be said what is wrong with it."""
        cdef double scale = 1
        cdef PyObject *value = call.value[self.scale] if self.scale >= 0 else <PyObject *>None
        if value != <PyObject *>None:
            if not is_plain_number(value):
                return False
            try:
                scale = <object>value
            except OverflowError:     # an int
                return False
        self.grad_scale = scale
        return isfinite(scale) and scale > 0

    # --- Stepping

    cdef int step_borrowed(self, Borrowed *call, int n_columns) except -2:
        """1; 0 if the step was skipped; -1, with nothing written, if something is odd."""
        cdef Group group = self.groups[0]
        cdef Job job
        self.enter()
        try:
            self.steps = call.step - 1
            self.take_options(call, group)
            if not self.take_scale(call) or group.refresh(self.steps):
                return -1
            # A number with Python code of its own may have changed the lists.
            if not (unpack(call, n_columns) and call.n == self.n_params and self.gather(&job, call, group)):
                return -1
            if self.copies_first:
                self.copy_first(&job)
            if is_large(&job):
                self.launch_holding(&job, call)
            else:
                self.launch_step(&job)
                self.give_numbers(&job)
            return 0 if job.found else 1
        finally:
            self.leave()

    cdef launch_holding(self, Job *job, const Borrowed *call):
        """Run a job without the GIL, and write the caller's numbers.

        References are kept until then, since another thread may change the caller's lists.
        """
        cdef Py_ssize_t i, n = 0
        cdef int k
        for i in range(self.n_params):
            self.refs[n] = call.items[PARAM][i]
            n += 1
            for k in range(self.n_slots):
                self.refs[n] = call.items[self.slot_column[k]][i]
                n += 1
            for k in range(self.n_given):
                self.refs[n] = call.items[self.number_column[k]][i]
                n += 1
        for i in range(n):
            Py_XINCREF(self.refs[i])
        try:
            self.launch_step(job)
            self.give_numbers(job)
        finally:
            for i in range(n):
                Py_XDECREF(self.refs[i])

    cdef void give_numbers(self, const Job *job) noexcept:
        """Write the numbers that the caller keeps, as they are after the step, if it was not skipped."""
        cdef Py_ssize_t i
        cdef NumberPlace *at
        cdef double number
        cdef int k
        for i in range(job.n_work if self.n_given and not job.found else 0):
            for k in range(self.n_given):
                at = &self.numbers[(job.work[i].q - self.params) * self.n_given + k]
                number = job.bank[job.work[i].place].numbers[self.number_place[k]]
                if at.is_double:
                    (<double *>at.data)[0] = number
                else:
                    (<float *>at.data)[0] = <float>number


cdef class Kept:
    """The last few plans of one function, and the calls that go over them.

    Parameters
    ----------
    names : tuple of str
        The array arguments in their order: "p", "g", the state, the numbers that the caller keeps.
    needed : int
        How many of them, from the first, have to be given.
    numbers : list of tuple
        Of each number: its places in `names` and among all numbers of a parameter, its least and its largest value.
    begun : bool
        Whether the first number of a parameter says that it has taken steps.
    single : bool
        Whether all calls are over one set of arrays: others take the place of those before. Else there is a plan for
        each set, while there is room.
    """
    cdef dict places                  # name -> place
    cdef int n_columns
    cdef int needed
    cdef list numbers
    cdef bint begun
    cdef bint single
    cdef list plans                   # MOST_KEPT of them, or None
    cdef readonly object grad_norm    # of the last step, as `Plan.grad_norm`
    cdef int64_t clock

    def __init__(self, tuple names, int needed, list numbers, bint begun, bint single=False):
        self.places = {name: k for k, name in enumerate(names)}
        self.places["step"] = -1
        self.n_columns, self.needed, self.numbers, self.begun = <int>len(names), needed, numbers, begun
        self.plans, self.single = [None] * MOST_KEPT, single

    def call(self, tuple args, dict kwargs):
        """A call of the function: whether it was no skipped step; None if this is not the way to take it."""
        cdef Borrowed call
        cdef PyObject *step = NULL
        cdef PyObject *key
        cdef PyObject *value
        cdef PyObject *found
        cdef Py_ssize_t at = 0
        cdef int k, place, n = <int>len(args)
        if n > self.n_columns:
            return None
        for k in range(self.n_columns):
            call.column[k] = PyTuple_GET_ITEM(<PyObject *>args, k) if k < n else NULL
        call.n_options = 0
        while PyDict_Next(kwargs, &at, &key, &value):
            if not PyUnicode_CheckExact(key):      # its own code could run
                return None
            found = PyDict_GetItemWithError(self.places, <object>key)
            if found == NULL:
                if call.n_options == MAX_WATCH:
                    return None
                call.key[call.n_options], call.value[call.n_options] = key, value
                call.n_options += 1
                continue
            place = <object>found
            if place < 0:
                step = value
            elif place < n:           # given twice
                return None
            else:
                call.column[place] = value
        return self.step(&call, step)

    def step_bound(self, tuple columns, g, step, dict options):
        """The same of arrays in the order of `names`, but for the gradients."""
        cdef Borrowed call
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t at = 0
        cdef int k
        call.column[PARAM], call.column[GRAD] = PyTuple_GET_ITEM(<PyObject *>columns, 0), <PyObject *>g
        for k in range(STATE, self.n_columns):
            call.column[k] = PyTuple_GET_ITEM(<PyObject *>columns, k - 1)
        call.n_options = 0
        while PyDict_Next(options, &at, &key, &value):
            if call.n_options == MAX_WATCH or not PyUnicode_CheckExact(key):
                return None
            call.key[call.n_options], call.value[call.n_options] = key, value
            call.n_options += 1
        return self.step(&call, <PyObject *>step)

    cdef object step(self, Borrowed *call, PyObject *step):
        cdef BorrowedPlan plan
        cdef int k, done, overflow = 0
        if step == NULL or not PyLong_CheckExact(step):
            return None
        call.step = PyLong_AsLongLongAndOverflow(step, &overflow)
        if overflow or call.step < 1:
            return None
        for k in range(self.n_columns):
            if call.column[k] == <PyObject *>None and k != GRAD:
                call.column[k] = NULL
            if k < self.needed and call.column[k] == NULL:
                return None
        if not unpack(call, self.n_columns):
            return None
        plan = self.take(call)
        if plan is None:
            return None
        try:
            done = plan.step_borrowed(call, self.n_columns)
        except FastoptError:          # said again by the first way, in its order
            return None
        if done < 0:
            return None
        self.note_norm(plan)
        self.put(plan)
        return done == 1

    cdef BorrowedPlan take(self, const Borrowed *call):
        """Take out a plan for a call: that of its first parameter, else the one that was used longest ago; or None."""
        cdef BorrowedPlan plan
        cdef int64_t oldest = self.clock + 1
        cdef int k, best = -1
        cdef bint full = True, found   # also if other arrays may take the place of those before
        cdef PyObject *p = call.items[PARAM][0]
        if not cnp.PyArray_CheckExact(<object>p):
            return None
        for k in range(MOST_KEPT):
            if self.plans[k] is None:
                full = self.single
                continue
            plan = self.plans[k]
            if plan.n_params != call.n or not plan.is_asked_the_same(call):
                continue
            found = plan.params[0].p == fo_array_data(p)
            if found or plan.stamp < oldest:
                oldest, best = -1 if found else plan.stamp, k
            if found:
                break
        if best < 0 or not (full or oldest < 0):
            return None
        plan = self.plans[best]
        self.plans[best] = None
        return plan

    cdef put(self, BorrowedPlan plan):
        """Put a plan in, in the place of one for the same arrays and options, else of the one used longest ago."""
        cdef BorrowedPlan other
        cdef int64_t oldest = self.clock + 1
        cdef int k, place = 0
        for k in range(MOST_KEPT):
            other = self.plans[k]
            if (other is not None and other.n_params == plan.n_params and other.params[0].p == plan.params[0].p
                    and same_texts(other.keys, plan.keys)):
                place = k
                break
            if oldest >= 0 and (other is None or other.stamp < oldest):
                oldest, place = -1 if other is None else other.stamp, k
        self.clock += 1
        plan.stamp = self.clock
        self.plans[place] = plan      # may run Python code, of an option that is given up

    @cython.final
    cdef inline note_norm(self, BorrowedPlan plan):
        if plan.clipped or self.grad_norm is not None:
            self.grad_norm = plan.clip.norm if plan.clipped else None

    def prepare(self, BorrowedPlan plan, list params, dict options):
        """Get ready to keep a plan over these parameters, for calls with these options; or MemoryError."""
        plan.remember_form(self, params, options)

    def keep(self, BorrowedPlan plan):
        """Note what there is to note of a step, and keep its plan if it was prepared for that. Takes no memory."""
        self.note_norm(plan)
        if plan.keeps:
            plan.let_go()
            self.put(plan)

    def forget(self):
        """Keep no plan. For tests."""
        self.plans = [None] * MOST_KEPT

    def n_kept(self):
        """How many plans are kept. For tests."""
        return sum([plan is not None for plan in self.plans])


cdef inline bint is_list(PyObject *x) noexcept:
    return PyList_CheckExact(x) or PyTuple_CheckExact(x)


cdef bint unpack(Borrowed *call, int n_columns) noexcept:
    """Find the members of each column; False if they are neither single arrays nor lists of one length."""
    cdef PyObject *p = call.column[PARAM]
    cdef bint single = cnp.PyArray_CheckExact(<object>p)
    cdef int k
    if not (single or is_list(p)):
        return False
    call.n = 1 if single else Py_SIZE(p)
    for k in range(n_columns):
        if call.column[k] == NULL:
            continue
        if single:
            call.items[k] = &call.column[k]
        elif is_list(call.column[k]) and Py_SIZE(call.column[k]) == call.n:
            call.items[k] = PySequence_Fast_ITEMS(call.column[k])
        else:
            return False
    return call.n > 0


cdef inline bint is_plain_number(PyObject *x) noexcept:
    return PyFloat_CheckExact(x) or PyLong_CheckExact(x)


cdef inline bint same_text(PyObject *a, PyObject *b) except -1:
    """Whether two objects are the same, or strings of the same text."""
    return a == b or (PyUnicode_CheckExact(a) and PyUnicode_CheckExact(b) and PyUnicode_Compare(a, b) == 0)


cdef inline bint same_float(PyObject *a, PyObject *b) noexcept:
    """Whether two objects are floats with the same bits."""
    cdef double x
    cdef double y
    if not (PyFloat_CheckExact(a) and PyFloat_CheckExact(b)):
        return False
    x, y = PyFloat_AS_DOUBLE(a), PyFloat_AS_DOUBLE(b)
    return memcmp(&x, &y, sizeof(double)) == 0


cdef bint same_pair(PyObject *a, PyObject *b) noexcept:
    """Whether two objects are tuples of two floats, with the same bits."""
    cdef int i
    if not (PyTuple_CheckExact(a) and PyTuple_CheckExact(b) and Py_SIZE(a) == 2 and Py_SIZE(b) == 2):
        return False
    for i in range(2):
        if not same_float(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i)):
            return False
    return True


cdef bint same_texts(list a, list b) except -1:
    """Whether two lists of strings hold the same ones in the same order."""
    cdef Py_ssize_t i, n = PyList_GET_SIZE(<PyObject *>a)
    if n != PyList_GET_SIZE(<PyObject *>b):
        return False
    for i in range(n):
        if not same_text(PyList_GET_ITEM(<PyObject *>a, i), PyList_GET_ITEM(<PyObject *>b, i)):
            return False
    return True


cdef take_number(Group group, int i, int place, value):
    """Give a group that was read another float for option i, in its dict already, without reading all others again.

    A float out of range is left for `Group.refresh`.
    """
    cdef double x = value
    cdef double r = <double><float>x if group.hyper.has_float else x
    if not (group.settled and len(group.options) == group.n_before
            and is_within(x, &group.bounds[i][0]) and is_within(r, &group.bounds[i][0])):
        return
    if group.target[i] == -1:
        group.hyper.weight_decay = x
    else:
        group.hyper.x[group.target[i]] = x
    group.before[group.n_before + place] = value
    group.value_before[place] = <PyObject *>value
    group.stale = True
