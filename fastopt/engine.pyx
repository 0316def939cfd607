# cython: profile=False
"""The engine: everything about a step but the mathematics.

`Plan` knows the arrays: it checks them, keeps them alive, and steps them all in one call and at most one parallel
region. The update rules come from the kernel module of one instruction-set level, chosen at import.

Design:
- All arrays form one virtual range of 64-byte blocks, whatever arrays that cuts through. The k-th n-th of it is thread
  k's share, taken in chunks; who has done its own takes what is left of the others'. State memory is first touched so,
  too, in the shares of all groups that the optimizer is made with.
- Everything that can go wrong is found before the first write: reading hyperparameters, checking arrays and computing
  scalars happen with the GIL and may raise; after that only `walk` runs, which cannot.
- A gradient may not overlap any parameter or state. Their intervals are sorted once (memory.pxi); each parameter
  remembers the gap between two intervals in which its last gradient lay, so that a fresh gradient usually costs two
  comparisons, as a reused one does.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF, Py_XINCREF
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cython.parallel cimport parallel
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport getenv, qsort
from libc.string cimport memcpy, memset, strcmp

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(PyObject *items, Py_ssize_t i)     # borrowed
    Py_ssize_t PyList_GET_SIZE(PyObject *items)

from fastopt.kernels.table cimport MAX_HYPER, MAX_SCALARS, MAX_STATES, TABLE_VERSION, Rule, Table

from fastopt._openmp import cpu_quota
from fastopt.errors import (
    ConcurrentStepError,
    DeclarationError,
    DTypeError,
    FastoptError,
    GradientError,
    HyperparameterError,
    LayoutError,
    NonFiniteError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    ShapeError,
    TensorStateError,
)

cdef extern from "fastopt_arrays.h" nogil:
    char *fo_array_data(PyObject *array)
    void fo_prefetch(const void *p, Py_ssize_t n)
    bint fo_array_fits(PyObject *array, int type, int nd, const cnp.npy_intp *dims, int flags)

cdef extern from "fastopt_build.h":
    const char *FO_COMPILER
    const char *FO_FLAGS
    const char *FO_CYTHON
    const char *FO_NUMPY

cdef extern from "fastopt_cpu.h" nogil:
    const char *fo_cpu_level()
    bint fo_cpu_has(const char *level)

cdef extern from "fastopt_fenv.h" nogil:
    ctypedef struct fo_fenv_t:
        pass
    fo_fenv_t fo_fenv_enter()
    void fo_fenv_leave(fo_fenv_t saved)

cdef extern from "fastopt_threads.h" nogil:
    void fo_threads_init()
    bint fo_in_forked_child()
    bint fo_have_openmp()
    int fo_omp_version()
    const char *fo_omp_library()
    int fo_omp_max_threads()
    int fo_omp_bound_cpus()
    int fo_omp_num_threads()
    int fo_omp_thread_num()
    double fo_omp_time()
    Py_ssize_t fo_take(Py_ssize_t *next, Py_ssize_t end, Py_ssize_t n)
    void fo_set_flag(int *flag)
    int fo_affinity_cpus()
    int fo_cpu()
    void fo_leave_cpu()
    void fo_barrier()

cnp.import_array()
fo_threads_init()

include "_engine/levels.pxi"
include "_engine/threads.pxi"
include "_engine/scalars.pxi"
include "_engine/program.pxi"
include "_engine/walk.pxi"
include "_engine/group.pxi"
include "_engine/memory.pxi"
include "_engine/arrays.pxi"
include "_engine/foreign.pxi"


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


cdef class Plan:
    """Arrays, their state, and the step over all of them.

    Parameters
    ----------
    derive : callable
        Group options -> `Spec` (see ``fastopt.optimizer``): called when a group is added and when one of its options
        changes.
    n_threads : int or None
        Threads for a step; None decides at every step.
    nonfinite : {"propagate", "raise", "skip"}
        What to do with NaN and infinities in gradients.
    copy_grads : bool
        Whether gradients of another memory order or floating type are copied into shape.
    state_factory : callable or None
        ``(name, shape, dtype) -> array`` supplies the memory of the state.
    """
    cdef readonly list groups
    cdef readonly list options        # their dicts; an entry may be replaced between steps
    cdef readonly list arrays         # the parameters, as arrays
    cdef readonly list names          # their names, or None for each
    cdef readonly list states         # per parameter: slot -> array
    cdef public bint named
    cdef readonly bint copy_grads
    cdef readonly object n_threads
    cdef int most_threads             # 0: automatic
    cdef int serial_left              # steps still to take on one thread, since a team came too late
    cdef int late_score               # of the last teams: LATE for each late one, less 1 for each on time
    cdef int backoff                  # how many they will be the next time
    cdef readonly str nonfinite
    cdef readonly object state_factory
    cdef readonly int64_t steps
    cdef readonly int64_t skipped
    cdef object derive
    cdef list converted               # the gradients of the step at hand, if they had to be converted
    cdef list untouched               # groups whose state has not been written yet
    cdef double grad_scale            # of the step at hand: gradients are divided by it first
    cdef dict arenas                  # memory of the states, by identity: views could be made to let go of it
    cdef bint busy
    cdef fo_fenv_t caller             # floating-point environment, while busy
    cdef bint foreign                 # whether some state came from a state_factory
    cdef Param *params
    cdef Param *copies                # as many, for what walks over other memory than a step does
    cdef Py_ssize_t n_params
    cdef Work *work
    cdef StepScalars *bank           # the scalars of the step at hand
    cdef Py_ssize_t n_scalars, room_for_scalars
    cdef Memory memory

    def __cinit__(self):
        self.groups, self.options, self.untouched = [], [], []
        self.arrays, self.names, self.states, self.arenas = [], [], [], {}
        self.backoff = FEWEST_ALONE

    def __init__(self, derive, *, n_threads=None, nonfinite="propagate", copy_grads=False, state_factory=None):
        read_quota()                  # now: it runs Python code, which no step may
        self.derive = derive
        self.configure({"n_threads": n_threads, "nonfinite": nonfinite, "copy_grads": copy_grads,
                        "state_factory": state_factory})

    def configure(self, dict settings):
        """Change settings of the step, by the names of the constructor: all of them, or an error and none."""
        for name, value in settings.items():
            if name == "n_threads":
                whole = isinstance(value, int) or isinstance(value, np.integer)
                good = value is None or (whole and not isinstance(value, bool) and value >= 1)
                accepted = "None (automatic) or an int >= 1"
            elif name == "nonfinite":
                good = isinstance(value, str) and value in ("propagate", "raise", "skip")
                accepted = "'propagate', 'raise' or 'skip'"
            elif name == "copy_grads":
                good, accepted = isinstance(value, bool) or isinstance(value, np.bool_), "True or False"
            else:
                good, accepted = value is None or callable(value), "None or callable(name, shape, dtype)"
            if not good:
                raise HyperparameterError(f"{name}={value!r} must be {accepted}")
        if "n_threads" in settings:
            n = settings["n_threads"]
            self.n_threads = None if n is None else int(n)
            self.most_threads = 0 if n is None else min(self.n_threads, MOST_THREADS)
        self.nonfinite = settings.get("nonfinite", self.nonfinite)
        self.copy_grads = bool(settings.get("copy_grads", self.copy_grads))
        self.state_factory = settings.get("state_factory", self.state_factory)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_params):       # the lists may be gone already
            PyMem_Free(self.params[i].dims)
        PyMem_Free(self.params)
        PyMem_Free(self.copies)
        PyMem_Free(self.work)
        PyMem_Free(self.bank)

    # --- Building

    def label(self, Py_ssize_t i):
        """How messages call parameter i."""
        return label_of(self.names, i)

    def add_group(self, dict options, list params, list names, list states=None, bint last=True, str twin=None):
        """Add parameters with their hyperparameters; nothing is added if any of it is wrong.

        `states` gives, per parameter, slot -> array: state that the caller owns, used instead of allocating. State that
        is allocated gets its first values with the `last` group of several: once for all, in one partition. `twin` is
        what messages recommend for tensors that require gradients.
        """
        cdef Group group
        cdef Memory memory
        cdef list all_arrays, all_states, all_groups, untouched
        cdef Py_ssize_t old = len(self.arrays), i, added = 0
        self.enter()
        try:
            all_names = self.names + names
            labels = [label_of(all_names, old + i) for i in range(len(params))]
            arrays = [as_parameter(p, label, twin) for p, label in zip(params, labels)]
            kinds = [(a.dtype, a.shape) for a in arrays]
            group = self.new_group(options, any(a.dtype == np.float32 for a in arrays), self.steps)
            group.first, group.n_params = old, len(arrays)
            fresh = [{} for _ in arrays] if states is None else [
                given_state(group.slots, state, array, label) for state, array, label in zip(states, arrays, labels)]
            memory = Memory(self.arrays + arrays, all_names, self.states + fresh)
            if states is None:
                self.allocate(group, group.slots, arrays, labels, fresh)
            else:
                self.foreign = True
            # Schedules and a state_factory have had their turn; from here on nothing can change the arrays.
            check_unchanged(arrays, labels, fresh)
            if kinds != [(a.dtype, a.shape) for a in arrays]:
                raise LayoutError("a parameter was changed while it was given to the optimizer")
            all_arrays, all_states, all_groups = self.arrays + arrays, self.states + fresh, [*self.groups, group]
            memory = Memory(all_arrays, all_names, all_states)
            untouched = self.untouched if states is not None else [*self.untouched, group]
            self.reserve(old + len(arrays))
            self.keep_memory(group, fresh)
            for i, array in enumerate(arrays):
                self.register(&self.params[old + i], array)
                self.params[old + i].carry = group.carry
                added += 1
            self.options.append(options)
            # Nothing below can fail.
            self.n_params, added = old + added, 0
            self.arrays, self.names, self.states, self.groups = all_arrays, all_names, all_states, all_groups
            self.untouched, self.named = untouched, bool(all_names) and all_names[0] is not None
            self.remap(memory)
            self.point(group)
            if last:
                for group in self.untouched:
                    self.fill(group, group.slots)
                self.untouched = []
        finally:
            for i in range(added):
                PyMem_Free(self.params[old + i].dims)
            self.leave()

    cdef reserve(self, Py_ssize_t n):
        """Memory for n parameters."""
        cdef void *block
        block = PyMem_Realloc(self.params, max(1, n) * sizeof(Param))
        if block == NULL:
            raise MemoryError()
        self.params = <Param *>block
        block = PyMem_Realloc(self.copies, max(1, n) * sizeof(Param))
        if block == NULL:
            raise MemoryError()
        self.copies = <Param *>block
        block = PyMem_Realloc(self.work, max(1, n) * sizeof(Work))
        if block == NULL:
            raise MemoryError()
        self.work = <Work *>block

    cdef register(self, Param *q, array):
        cdef cnp.ndarray a = array
        memset(q, 0, sizeof(Param))
        q.dims = <cnp.npy_intp *>PyMem_Malloc(max(1, a.ndim) * sizeof(cnp.npy_intp))
        if q.dims == NULL:
            raise MemoryError()
        if a.ndim:
            memcpy(q.dims, cnp.PyArray_DIMS(a), a.ndim * sizeof(cnp.npy_intp))
        q.array = <PyObject *>a
        q.p = <char *>cnp.PyArray_DATA(a)
        q.n = cnp.PyArray_SIZE(a)
        q.type = cnp.PyArray_TYPE(a)
        q.n_bytes = cnp.PyArray_NBYTES(a)
        q.blocks = (q.n_bytes + BLOCK - 1) // BLOCK
        q.nd = a.ndim
        q.order = cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(a) else cnp.NPY_ARRAY_F_CONTIGUOUS

    cdef allocate(self, Group group, list names, list arrays, list labels, list states):
        """State arrays for the named slots that the parameters do not have yet, in `states`.

        Each slot is one block of memory for the whole group, every array on a 64-byte boundary; not touched here.
        """
        cdef Py_ssize_t i, base, place, lead, apart
        for name in names:
            missing = [i for i, state in enumerate(states) if name not in state]
            if self.state_factory is not None:
                self.foreign = True
                for i in missing:
                    states[i][name] = self.made(name, arrays[i], labels[i])
                continue
            # Streams at one offset in their pages hold each other up: a load waits for any store whose address ends in
            # the same twelve bits. So slots lie a quarter page apart, those of large arrays from the parameter, too.
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

    cdef made(self, str name, array, str owner):
        label = f"state {name!r} of {owner}, from state_factory,"
        state = as_parameter(self.state_factory(name, array.shape, array.dtype), label)
        check_same(state, array, label)
        return state

    cdef remap(self, Memory memory):
        """Look gradients up in this memory from now on; where the last ones lay says nothing any more."""
        cdef Py_ssize_t i
        self.memory = memory
        for i in range(len(self.arrays)):
            self.params[i].gap_low = self.params[i].gap_high = NULL

    cdef keep_memory(self, Group group, list states):
        """Keep the memory of a group's states alive, whatever becomes of the arrays."""
        cdef object last = None
        for state in states:
            for name in group.slots:
                owner = state[name].base
                if owner is not last:
                    self.arenas[id(owner)] = last = owner

    cdef point(self, Group group):
        """Give the rule's pointers to its state slots."""
        cdef Py_ssize_t i, k
        cdef dict states
        for i in range(group.first, group.first + group.n_params):
            self.params[i].moved = self.params[i].blocks * (3 + 2 * group.program.rule.n_states)
            states = self.states[i]
            for k in range(len(group.slots)):
                self.params[i].s[k] = <char *>cnp.PyArray_DATA(<cnp.ndarray>states[group.slots[k]])

    cdef fill(self, Group group, list names):
        """Write the first values of state slots, in the partition of a step over all parameters that there are."""
        cdef Program program
        cdef StepScalars value
        cdef Job job
        cdef Param *copy = self.copies
        cdef Work *work = self.work
        cdef Py_ssize_t i, j, k
        rule_alone(&program, FILL, FILL)
        job.work, job.n_work, job.bank, job.scan_nonfinite, job.found = work, group.n_params, &value, False, 0
        for k in range(len(group.slots)):
            if group.slots[k] not in names:
                continue
            value.flush = False
            scale(&value.h, 0, group.initial.get(group.slots[k], 0.0))
            job.blocks = job.moved = 0
            for i in range(self.n_params):
                j = i - group.first
                if 0 <= j < group.n_params:
                    copy[j] = self.params[i]
                    copy[j].p = copy[j].s[k]
                    work[j].q, work[j].program, work[j].g, work[j].place = &copy[j], &program, NULL, 0
                    work[j].first_block = job.blocks
                job.blocks += self.params[i].blocks
                job.moved += self.params[i].moved       # as a step: the same threads are to touch it first
            self.launch(&job)

    # --- Stepping

    cdef enter(self):
        """Begin something that no other thread may interrupt, in a floating-point environment of our own."""
        if self.busy:
            raise ConcurrentStepError("this optimizer is in the middle of a step (another thread, or a schedule that "
                                      "calls back); one at a time")
        self.busy = True
        self.caller = fo_fenv_enter()

    cdef leave(self):
        fo_fenv_leave(self.caller)
        self.busy = False
        self.converted = None

    cdef int threads(self, const Job *job):
        cdef Py_ssize_t n
        if job.moved < serial_blocks or job.blocks < 2 or not fo_have_openmp() or fo_in_forked_child():
            return 1
        n = self.most_threads if self.most_threads else automatic_threads()
        return <int>min(n, job.blocks, MOST_THREADS)

    cdef launch(self, Job *job):
        """Run a job: on how many threads, and whether the GIL is given up for it, is decided here."""
        cdef int n_threads = self.threads(job)
        cdef bint late
        if n_threads > 1 and self.serial_left > 0:
            self.serial_left -= 1
            n_threads = 1
        if n_threads > 1:
            # A virtual machine's system may wake a thread on the CPU of the caller, beside an idle one, time and again.
            job.cpu = fo_cpu() if job.moved > LONG_BLOCKS or self.late_score >= 2 * LATE else -1
            with nogil:
                late = run_team(job, n_threads)
            if not job.found:
                self.judge(late)
        elif is_large(job):
            with nogil:
                run_alone(job)
        else:
            run_alone(job)

    cdef judge(self, bint late):
        """Where more than one team in twenty comes too late to be of use, other work has the cores: alone for a while.

        Not at once: a thread that slept has to be woken, and it may take the system some steps to give it a core.
        """
        self.late_score = self.late_score + LATE if late else max(self.late_score - 1, 0)
        if self.late_score >= LATE_TEAMS * LATE:
            self.serial_left = min(self.backoff, most_alone)
            self.backoff = min(2 * self.backoff, most_alone)
            self.late_score = LATE_TEAMS * LATE // 2       # the next time, half as many are enough
        elif not late:
            self.backoff = max(self.backoff - 1, FEWEST_ALONE)

    def step(self, grads, grad_scale=None, carried=()):
        """One step of every parameter that has a gradient. Raises before anything was written, or not at all.

        `carried` are arrays of one element that take the parameters' carried numbers.
        """
        self.enter()
        try:
            self.set_scale(grad_scale)
            self.take_step(grads, list(carried) if carried else None)
        finally:
            self.leave()

    cdef set_scale(self, grad_scale):
        """Note what the gradients of this step are to be divided by."""
        self.grad_scale = 1
        if grad_scale is not None:
            if not is_number(grad_scale) or not (isfinite(<double>float(grad_scale)) and float(grad_scale) > 0):
                raise HyperparameterError(f"grad_scale={grad_scale!r} must be a finite number above 0")
            self.grad_scale = float(grad_scale)

    cdef take_step(self, grads, list carried):
        cdef Job job
        cdef Work *w
        cdef cnp.ndarray array
        cdef Memory memory
        cdef list carries = None          # the numbers to be, made before anything is written
        cdef Py_ssize_t i
        cdef bint keep_refs
        if type(grads) is not list:
            grads = self.as_list(grads)
        self.refresh_groups()
        if not self.collect(&job, grads):
            grads = self.convert_all(grads)
            self.converted = grads
            if not self.collect(&job, grads):
                raise GradientError("gradients or parameters changed while the step looked at them")
        if self.foreign:
            self.check_states()
        job.scan_nonfinite, job.found = self.nonfinite != "propagate", 0
        if carried is not None:
            carries, memory = [], Memory(carried, self.names, [])
            for i in range(job.n_work):
                w = &job.work[i]
                if not memory.is_free(w.g, w.g + w.q.n_bytes):
                    raise OverlapError(f"gradient of {self.label(w.q - self.params)} overlaps the number that a "
                                       "parameter carries (mu_product); gradients need other memory")
                carries.append(np.array([job.bank[w.place].carry], carried[w.q - self.params].dtype))
        # Without the GIL, another thread may drop what the caller's list holds.
        keep_refs = is_large(&job) and self.converted is None
        if keep_refs:
            for i in range(job.n_work):
                Py_XINCREF(job.work[i].grad)
        try:
            self.launch(&job)
            if job.found and self.nonfinite == "raise":
                self.complain_nonfinite(job.n_work)
        finally:
            if keep_refs:
                for i in range(job.n_work):
                    Py_XDECREF(job.work[i].grad)
        if job.found:
            self.skipped += 1
            return
        for i in range(job.n_work):
            w = &job.work[i]
            w.q.t += 1
            w.q.carry = job.bank[w.place].carry
            if carries is not None:
                array = carried[w.q - self.params]
                memcpy(cnp.PyArray_DATA(array), cnp.PyArray_DATA(<cnp.ndarray>carries[i]), cnp.PyArray_ITEMSIZE(array))
        self.steps += 1

    cdef bint collect(self, Job *job, list grads) except -1:
        """Check parameters and gradients, and note what to step; False if a gradient is no plain, fitting array.

        No Python code runs in here but on the way to an error, so that what was checked stays as it was.
        """
        cdef Py_ssize_t n = len(self.arrays), i
        cdef Group group
        cdef Param *q
        cdef PyObject *g
        if len(grads) != n:
            raise GradientError(f"{len(grads)} gradients for {n} parameters; give one for each, None to skip one")
        self.begin_job(job)
        for group in self.groups:
            group.prepare(self.grad_scale)
            job.place = -1
            for i in range(group.first, group.first + group.n_params):
                q = &self.params[i]
                g = PyList_GET_ITEM(<PyObject *>grads, i)
                if not (q.p == fo_array_data(q.array) and fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE)):
                    self.complain_parameter(i)
                if g == <PyObject *>None:
                    continue
                if not (cnp.PyArray_CheckExact(<object>g) and fits(g, q, 0)):
                    return False
                self.add_work(job, group, q, g, fo_array_data(g))
        return True

    cdef inline void begin_job(self, Job *job) noexcept:
        job.work, job.n_work, job.blocks, job.moved = self.work, 0, 0, 0
        self.n_scalars = 0

    cdef inline bint is_apart(self, Param *q, char *data) noexcept:
        """Whether a gradient at `data` meets no parameter or state; the gap that it lies in is remembered."""
        if (q.gap_low <= data and data + q.n_bytes <= q.gap_high) or q.n == 0:
            return True
        if not self.memory.is_free(data, data + q.n_bytes):
            return False
        q.gap_low, q.gap_high = self.memory.gap_low, self.memory.gap_high
        return True

    cdef inline int add_work(self, Job *job, Group group, Param *q, PyObject *g, char *data) except -1:
        """Note that a parameter is to be stepped by the gradient at `data`; raises if that may not be."""
        cdef Work *w = &self.work[job.n_work]
        if not self.is_apart(q, data):
            self.complain_overlap(q - self.params, data)
        if job.place < 0 or q.t != job.t or q.carry != job.carry:       # most share their scalars with the one before
            job.place = self.new_scalars(group, q)
            job.t, job.carry, job.bank = q.t, q.carry, self.bank
        w.q, w.program, w.g, w.grad, w.place, w.first_block = q, &group.program, data, g, job.place, job.blocks
        job.blocks += q.blocks
        job.moved += q.moved
        job.n_work += 1
        return 0

    cdef list convert_all(self, list grads):
        """The gradients as plain arrays, each seen as one or copied if that was asked for, or the error."""
        grads = list(grads)               # what converts one may change the caller's list
        if len(grads) != len(self.arrays):
            raise GradientError(f"{len(grads)} gradients for {len(self.arrays)} parameters")
        return [None if g is None else self.convert(i, g) for i, g in enumerate(grads)]

    cdef refresh_groups(self):
        """Read every group's hyperparameters. Where an option was edited, or a dict replaced, commit another group.

        All that can fail happens before `commit_groups` begins to put the new groups in place.
        """
        cdef Group group, fresh
        cdef Py_ssize_t k
        cdef list edited = None       # a list at every step would cost a tenth of a small one
        cdef PyObject *options
        for k in range(len(self.groups)):
            # A schedule may edit the list, so it is looked at anew for each group.
            if PyList_GET_SIZE(<PyObject *>self.options) != PyList_GET_SIZE(<PyObject *>self.groups):
                raise HyperparameterError("param_groups changed its length; use add_param_group()")
            group = self.groups[k]
            options = PyList_GET_ITEM(<PyObject *>self.options, k)
            if options == <PyObject *>group.options and not group.refresh(self.steps):
                continue
            fresh = self.new_group(<object>options, group.hyper.has_float, self.steps)
            if fresh.params is not group.params:
                raise ParameterError("the 'params' of a group cannot be exchanged; use add_param_group()")
            fresh.first, fresh.n_params = group.first, group.n_params
            edited = edited or []
            edited.append((k, fresh, self.lacking(fresh, fresh.slots)))
        if edited is not None:
            self.commit_groups(edited)

    cdef commit_groups(self, list edited):
        """Put edited groups in place: (place, group, names of the state slots that its rule needs beside)."""
        cdef Group fresh
        cdef Memory memory
        cdef Py_ssize_t a, b
        if any(names for _, _, names in edited):
            states = list(self.states)
            for _, fresh, names in edited:
                a, b = fresh.first, fresh.first + fresh.n_params
                labels = [self.label(i) for i in range(a, b)]
                states[a:b] = [dict(state) for state in states[a:b]]
                self.allocate(fresh, names, self.arrays[a:b], labels, states[a:b])
                check_unchanged(self.arrays[a:b], labels, states[a:b])
            memory = Memory(self.arrays, self.names, states)
            for _, fresh, _ in edited:
                self.keep_memory(fresh, states[fresh.first:fresh.first + fresh.n_params])
            # Nothing below can fail.
            self.remap(memory)
            self.states = states
        for k, fresh, names in edited:
            self.groups[k] = fresh
            self.point(fresh)
            self.fill(fresh, names)

    cdef list lacking(self, Group group, names):
        """Which of these state slots the parameters of a group do not have yet."""
        return [name for name in names if name not in self.states[group.first]] if group.n_params else []

    cdef Group new_group(self, options, bint has_float, int64_t steps):
        """A group that reads these options; raises what a step with them would raise."""
        cdef Group group = Group()
        if not isinstance(options, dict):
            raise HyperparameterError(f"a parameter group is a dict, not a {type(options).__name__}")
        group.options, group.hyper.has_float, group.params = options, has_float, options.get("params")
        group.adopt(self.derive(options))
        group.refresh(steps)
        return group

    def check_options(self, options, bint has_float, int64_t steps):
        """Raise what a step with these options would raise after so many steps; else the state slots it needs."""
        return self.new_group(options, has_float, steps).slots

    def touches(self, cnp.ndarray array):
        """Whether an array may share memory with a parameter or a state."""
        return self.memory.meets(array)

    def run(self, function, *args):
        """What a function returns, called as one operation that no step may interrupt.

        Not in Python, where a KeyboardInterrupt could come between the beginning and a `try`.
        """
        self.enter()
        try:
            return function(*args)
        finally:
            self.leave()

    def resume(self, list options, list recorded, list records, list counts, int64_t steps, int64_t skipped):
        """Go on from elsewhere: all of it, or an error and nothing of it. Inside `run`.

        `options` are the groups', whose dicts take them over; `recorded` names, per group, the state slots that records
        have. A record is None for a parameter that starts anew, else the carried number and slot -> array, of the
        parameter's type and memory order, and no memory of this optimizer's.
        """
        cdef Group group, fresh
        cdef Py_ssize_t k, i
        cdef list edited = []
        for k, group in enumerate(self.groups):
            if self.options[k].get("params") is not group.params:
                raise ParameterError("the 'params' of a group cannot be exchanged; use add_param_group()")
            fresh = self.new_group(options[k], group.hyper.has_float, steps)
            fresh.options, fresh.params, fresh.first, fresh.n_params = (
                self.options[k], group.params, group.first, group.n_params)
            # Also what the options to come have no slot for: state of before must not be there when they change.
            present = list(self.states[group.first]) if group.n_params else []
            fresh.slots += [name for name in dict.fromkeys([*recorded[k], *present]) if name not in fresh.slots]
            if len(fresh.slots) > MAX_STATES:
                raise RuntimeError("MAX_STATES in table.pxd is too small")
            edited.append((k, fresh, self.lacking(fresh, fresh.slots)))
        self.check_states()
        for i, record in enumerate(records):
            for name, array in ({} if record is None else record[1]).items():
                if not fits(<PyObject *>array, &self.params[i], 0):
                    raise RuntimeError(f"state {name!r} of {self.label(i)} has another layout than its parameter")
        before = [dict(mine) for mine in self.options]
        try:
            for mine, new in zip(self.options, options):
                (<dict>mine).update(new)
            self.commit_groups(edited)
        except BaseException:
            for mine, old in zip(self.options, before):
                (<dict>mine).clear()
                (<dict>mine).update(old)
            raise
        # Nothing below can fail, and no Python code runs.
        self.steps, self.skipped = steps, skipped
        for group in self.groups:
            self.fill(group, group.slots)
            for i in range(group.first, group.first + group.n_params):
                self.params[i].t, self.params[i].carry = counts[i], group.carry
                if records[i] is not None:
                    self.overwrite(i, group, records[i][0], records[i][1])

    cdef overwrite(self, Py_ssize_t i, Group group, double carry, dict arrays):
        """Take over the carried number and the state of one parameter."""
        cdef Py_ssize_t k
        self.params[i].carry = carry
        for k in range(len(group.slots)):
            if group.slots[k] in arrays:
                memcpy(self.params[i].s[k], cnp.PyArray_DATA(<cnp.ndarray>arrays[group.slots[k]]),
                       self.params[i].n_bytes)

    cdef Py_ssize_t new_scalars(self, Group group, Param *q) except -1:
        """A place with the scalars that this parameter needs for its next step."""
        cdef void *block
        if self.n_scalars == self.room_for_scalars:
            block = PyMem_Realloc(self.bank, (2 * self.room_for_scalars + 1) * sizeof(StepScalars))
            if block == NULL:
                raise MemoryError()
            self.bank = <StepScalars *>block
            self.room_for_scalars = 2 * self.room_for_scalars + 1
        group.compute(&self.bank[self.n_scalars], q.t + 1, q.carry)
        self.n_scalars += 1
        return self.n_scalars - 1

    cdef list as_list(self, grads):
        """Gradients that came in no list, in one."""
        cdef Py_ssize_t n = len(self.arrays)
        cdef list members
        if n == 1 and cnp.PyArray_Check(grads):
            return [grads]
        if isinstance(grads, Mapping):
            if not self.named:
                raise GradientError("gradients in a dict need parameters in a dict")
            if grads.keys() != set(self.names):
                missing = [name for name in self.names if name not in grads]
                unknown = [name for name in grads if name not in set(self.names)]
                raise GradientError("gradients must have the names of the parameters; "
                                    f"missing: {missing!r}, unknown: {unknown!r}; None skips one")
            return [grads[name] for name in self.names]
        members = listed(grads, n + 1)
        if members is None and n != 1:
            raise GradientError(f"gradients are a list, one for each of {n} parameters, not {kind_of(grads)}")
        if members is None:
            return [grads]
        if len(members) > n and not isinstance(grads, (list, tuple)):      # it may be endless
            raise GradientError(f"more than {n} gradients for {n} parameters; give one for each, None to skip one")
        return members

    cdef convert(self, Py_ssize_t i, object g):
        """A gradient as a plain array that fits its parameter."""
        cdef Param *q = &self.params[i]
        label = f"gradient of {self.label(i)}"
        param = self.arrays[i]
        array = as_array(g, label, True)
        if array.dtype.kind != "f":
            raise wrong_dtype(label, dtype_name(array), str(param.dtype), True)
        if array.shape != param.shape:
            raise ShapeError(f"{label} has shape {array.shape}; the parameter has {param.shape}")
        if not fits(<PyObject *>array, q, 0):
            if not self.copy_grads:
                if array.dtype != param.dtype:
                    raise DTypeError(f"{label} has dtype {dtype_name(array)}; {param.dtype} is needed, "
                                     "or copy_grads=True")
                misaligned = "" if array.flags.aligned else ", misaligned"
                raise LayoutError(f"{label} has strides {array.strides}{misaligned}; "
                                  f"the parameter has {param.strides}: use the same memory order, or copy_grads=True")
            order = "C" if q.order == cnp.NPY_ARRAY_C_CONTIGUOUS else "F"
            with np.errstate(all="ignore"):       # a cast may overflow to infinity
                array = np.array(array, dtype=param.dtype, order=order, copy=True, subok=False)
        return np.asarray(array)

    # --- Errors

    cdef complain_parameter(self, Py_ssize_t i):
        """A parameter is no longer what it was."""
        cdef Param *q = &self.params[i]
        array, label = self.arrays[i], self.label(i)
        if not array.flags.writeable:
            raise ReadOnlyError(f"{label} has become read-only")
        shape = tuple([q.dims[k] for k in range(q.nd)])
        raise LayoutError(f"{label} was changed after it was given to the optimizer: it has shape {array.shape}, dtype "
                          f"{array.dtype}, strides {array.strides} (it had shape {shape}), or its memory has moved")

    cdef complain_overlap(self, Py_ssize_t i, char *data):
        cdef Param *q
        cdef Py_ssize_t k
        for k in range(self.n_params):
            q = &self.params[k]
            if data < q.p + q.n_bytes and q.p < data + self.params[i].n_bytes:
                same = "is" if k == i and data == q.p else "overlaps"
                raise OverlapError(f"gradient of {self.label(i)} {same} {self.label(k)}; gradients need other memory")
        raise OverlapError(f"gradient of {self.label(i)} overlaps the state of the optimizer; "
                           "gradients need other memory")

    cdef complain_nonfinite(self, Py_ssize_t n_work):
        cdef Py_ssize_t i
        cdef Work *w
        for i in range(n_work):
            w = &self.work[i]
            if any_nonfinite(w, 1, w.first_block, w.first_block + w.q.blocks):
                raise NonFiniteError(f"gradient of {self.label(w.q - self.params)} holds a NaN or an "
                                     "infinity; nothing was written")

    cpdef check_states(self):
        """Raise if a state array is not what it was: users can reach it, and may own its memory."""
        cdef Param *q
        cdef Group group
        cdef Py_ssize_t i, k
        cdef cnp.ndarray state
        for group in self.groups:
            for i in range(group.first, group.first + group.n_params):
                q = &self.params[i]
                for k, name in enumerate(group.slots):
                    state = self.states[i][name]
                    if <char *>cnp.PyArray_DATA(state) != q.s[k] or not fits(
                            <PyObject *>state, q, cnp.NPY_ARRAY_WRITEABLE):
                        raise LayoutError(f"state {name!r} of {self.label(i)} was changed after it was made: its "
                                          "memory, shape, type or writability")

    # --- What the optimizer reads and writes between steps

    def lookahead(self, list out):
        """Write parameter + momentum * velocity into `out`, one array for each parameter."""
        cdef Group group
        cdef Py_ssize_t i, n = len(self.arrays)
        cdef Job job
        cdef Program program
        cdef Param *q
        cdef Param *copy = self.copies
        cdef Work *work = self.work
        cdef StepScalars *mu = NULL
        cdef cnp.ndarray target
        self.enter()
        try:
            mu = <StepScalars *>PyMem_Malloc(max(1, len(self.groups)) * sizeof(StepScalars))
            if mu == NULL:
                raise MemoryError()
            rule_alone(&program, LOOKAHEAD, LOOKAHEAD)
            job.blocks = job.moved = 0
            self.refresh_groups()
            self.check_states()
            for k, group in enumerate(self.groups):
                mu[k].flush = False
                scale(&mu[k].h, 0, group.hyper.x[1])
                for i in range(group.first, group.first + group.n_params):
                    q = &self.params[i]
                    if not (q.p == fo_array_data(q.array) and fits(q.array, q, 0)):
                        self.complain_parameter(i)
                    target = out[i]
                    if not fits(<PyObject *>target, q, cnp.NPY_ARRAY_WRITEABLE):
                        raise LayoutError(f"the lookahead array of {self.label(i)} was changed after it was made")
                    copy[i] = q[0]
                    copy[i].p = <char *>cnp.PyArray_DATA(target)
                    work[i].q, work[i].program, work[i].g, work[i].place = &copy[i], &program, q.p, k
                    work[i].first_block = job.blocks
                    job.blocks += copy[i].blocks
                    job.moved += copy[i].moved
            job.work, job.n_work, job.bank, job.scan_nonfinite, job.found = work, n, mu, False, 0
            self.launch(&job)
        finally:
            PyMem_Free(mu)
            self.leave()

    def count(self, Py_ssize_t i):
        """Steps that parameter i has taken, and the number it carries from step to step."""
        return self.params[i].t, self.params[i].carry

    def set_count(self, Py_ssize_t i, int64_t t, double carry):
        self.params[i].t, self.params[i].carry = t, carry

    def set_steps(self, int64_t steps, int64_t skipped):
        self.steps, self.skipped = steps, skipped

    def scalars(self, Py_ssize_t i):
        """The scalars h that the next step would give parameter i, in double. For tests."""
        cdef StepScalars scalars
        for group in self.groups:
            if (<Group>group).first <= i < (<Group>group).first + (<Group>group).n_params:
                (<Group>group).refresh(self.steps)
                (<Group>group).compute(&scalars, self.params[i].t + 1, self.params[i].carry)
                return [scalars.h.d[k] for k in range((<Group>group).program.rule.n_scalars)]
        raise IndexError(i)


include "_engine/tensors.pxi"
include "_engine/probe.pxi"
