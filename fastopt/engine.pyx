# cython: profile=False
"""The engine: everything about a step but the mathematics.

`Plan` checks arrays, keeps them alive, and steps them all in one call and at most one parallel region. The parts that
it is made of are in _engine/, one topic a file. The update rules come from the kernel module of one instruction-set
level, chosen at import.

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
from time import monotonic
from weakref import ref as weak_reference

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF, Py_XINCREF
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cython.parallel cimport parallel
from libc.math cimport INFINITY, NAN, copysign, isfinite
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport getenv, qsort
from libc.string cimport memcmp, memcpy, memmove, memset, strcmp

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(PyObject *items, Py_ssize_t i)     # borrowed
    Py_ssize_t PyList_GET_SIZE(PyObject *items)

from fastopt.kernels.table cimport (
    FORMAT_TILE, LATTICE, MAX_HYPER, MAX_NUMBERS, MAX_SCALARS, MAX_STATES, SUM_TILE, TABLE_VERSION, Format, Rule, Sum,
    Table,
)

from fastopt._openmp import cpu_quota
from fastopt.errors import (
    AveragedError,
    ConcurrentStepError,
    ConventionError,
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
    enum:
        NPY_HALF
        NPY_USERDEF
    char *fo_array_data(PyObject *array)
    void fo_prefetch(const void *p, Py_ssize_t n)
    void fo_prefetch_array(PyObject *array)
    void fo_prefetch_dims(PyObject *array)
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
include "_engine/storage.pxi"
include "_engine/walk.pxi"
include "_engine/team.pxi"
include "_engine/group.pxi"
include "_engine/bank.pxi"
include "_engine/memory.pxi"
include "_engine/arrays.pxi"
include "_engine/foreign.pxi"
include "_engine/operands.pxi"
include "_engine/gradients.pxi"
include "_engine/sums.pxi"


LONGEST_WAIT = 60.0           # seconds that leaving `averaged` waits for what another thread is in the middle of


cdef enum:                    # so many parameters ahead `collect` asks for what it will look at:
    FAR = 8                   # first for the arrays,
    NEAR = 4                  # then for what they point to;
    FEWEST_AHEAD = 64         # where there are so many parameters,
cdef double rested = 20e-6    # and other work came since the last step: of one that has just ended, caches hold it all


cdef struct Seen:             # a gradient, of a parameter
    Param *q
    char *g
    Py_ssize_t n              # its bytes


cdef class Plan(Operands):
    """Arrays, their state, and the step over all of them.

    Parameters
    ----------
    derive : callable
        Group options -> `Spec` (see ``fastopt.declare``): called when a group is added and when one of its options
        changes.
    n_threads : int or None
        Threads for a step; None decides at every step.
    nonfinite : {"propagate", "raise", "skip"}
        What to do with NaN and infinities in gradients.
    clip_norm : float, callable or None
        What the norm of all gradients is not to exceed; a schedule is called with the steps taken.
    norm_type : {2, inf}
        Which norm that is.
    clip_form : int
        How a factor comes from it: CLIP_TORCH and the others of sums.pxi.
    copy_grads : bool
        Whether gradients of another memory order or floating type are copied into shape.
    state_factory : callable or None
        ``(name, shape, dtype) -> array`` supplies the memory of the state.
    """
    cdef readonly list options        # the groups' dicts; an entry may be replaced between steps
    cdef readonly bint copy_grads
    cdef readonly object n_threads
    cdef readonly object clip_norm
    cdef readonly object norm_type
    cdef const Sum *norm_sum
    cdef Scratch scratch
    cdef Clip clip                    # of the step at hand; its norm stays
    cdef bint clips                   # whether the step at hand clips all gradients,
    cdef bint sums                    # whether it takes norms,
    cdef bint clipped                 # and whether the last one did
    cdef bint zeroes                  # whether it zeroes gradients,
    cdef bint averages_now            # and whether it averages parameters
    cdef readonly str nonfinite
    cdef readonly int64_t steps
    cdef readonly int64_t skipped
    cdef readonly bint averaged       # whether averages stand in the place of parameters
    cdef Memory gradients             # where they are that are to be zeroed
    cdef Seen *apart                  # gradients that are known to share no memory
    cdef Py_ssize_t n_apart
    cdef object derive
    cdef list converted               # the gradients of the step at hand, if they had to be converted
    cdef list untouched               # groups whose state has not been written yet
    cdef double ended                 # when the last step ended, where `collect` asks ahead
    cdef double grad_scale            # of the step at hand: gradients are divided by it first
    cdef bint busy
    cdef fo_fenv_t caller             # floating-point environment, while busy
    cdef Bank bank                    # of the step at hand
    cdef Team team

    def __cinit__(self):
        self.options, self.untouched = [], []
        self.gradients = Memory([], [], [])
        self.team.backoff = FEWEST_ALONE

    def __init__(self, derive, *, n_threads=None, nonfinite="propagate", copy_grads=False, state_factory=None,
                 clip_norm=None, norm_type=2, int clip_form=CLIP_TORCH):
        read_quota()                  # now: it runs Python code, which no step may
        self.derive = derive
        self.clip.form = clip_form
        self.configure({"n_threads": n_threads, "nonfinite": nonfinite, "copy_grads": copy_grads,
                        "state_factory": state_factory, "clip_norm": clip_norm, "norm_type": norm_type})

    def __dealloc__(self):
        PyMem_Free(self.bank.items)
        PyMem_Free(self.scratch.items)
        PyMem_Free(self.apart)

    def configure(self, dict settings):
        """Change settings of the step, by the names of the constructor: all of them, or an error and none."""
        cdef double limit = NAN
        for name, value in settings.items():
            if name == "n_threads":
                most_threads(value)
                continue
            elif name == "nonfinite":
                good = isinstance(value, str) and value in ("propagate", "raise", "skip")
                accepted = "'propagate', 'raise' or 'skip'"
            elif name == "copy_grads":
                good, accepted = isinstance(value, bool) or isinstance(value, np.bool_), "True or False"
            elif name == "clip_norm":
                good = value is None or (callable(value) and not isinstance(value, type))
                if not good:
                    limit = as_limit(value)
                    good = limit > 0
                accepted = f"{LIMIT}, a schedule, or None"
            elif name == "norm_type":
                good, accepted = is_number(value) and float(value) in (2, np.inf), "2 or inf"
            else:
                good, accepted = value is None or callable(value), "None or callable(name, shape, dtype)"
            if not good:
                raise HyperparameterError(f"{name}={value!r} must be {accepted}")
        if "clip_norm" in settings:
            clip_norm = limit if limit > 0 else settings["clip_norm"]
            for group in self.groups:
                (<Group>group).check_alone(clip_norm)
            for group in self.groups:
                (<Group>group).clip_norm = clip_norm
        if "n_threads" in settings:
            n = settings["n_threads"]
            self.n_threads = None if n is None else int(n)
            self.team.most_threads = most_threads(n)
        if "norm_type" in settings:
            self.norm_type = 2 if float(settings["norm_type"]) == 2 else np.inf
            self.norm_sum = sum_for(self.norm_type)
        if "clip_norm" in settings:
            self.clip_norm = clip_norm
        self.nonfinite = settings.get("nonfinite", self.nonfinite)
        self.copy_grads = bool(settings.get("copy_grads", self.copy_grads))
        self.state_factory = settings.get("state_factory", self.state_factory)

    @property
    def grad_norm(self):
        """The norm of the gradients of the last step, before clipping; None if that did not clip."""
        return self.clip.norm if self.clipped else None

    # --- One thing at a time

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

    def run(self, function, *args):
        """What a function returns, called as one operation that no step may interrupt.

        Not in Python, where a KeyboardInterrupt could come between the beginning and a `try`.
        """
        self.enter()
        try:
            return function(*args)
        finally:
            self.leave()

    # --- Building

    def add_group(self, dict options, list params, list names, list states=None, bint last=True, str twin=None,
                  list mirrors=None):
        """Add parameters with their hyperparameters; nothing is added if any of it is wrong.

        `states` gives, per parameter, slot -> array: state that the caller owns, used instead of allocating. State that
        is allocated gets its first values with the `last` group of several: once for all, in one partition. `twin` is
        what messages recommend for tensors that require gradients. `mirrors` take a copy of each parameter, or None.
        """
        cdef Group group
        cdef list fresh
        self.enter()
        try:
            self.refuse_averaged("add_param_group()")
            all_names = self.names + names
            labels = [label_of(all_names, len(self.arrays) + i) for i in range(len(params))]
            accepted = (PLAIN if self.plain else BFLOAT16_TYPED if options.get("param_dtype") is None
                        else BFLOAT16_IN_UINT16)
            arrays = [as_parameter(p, label, twin, accepted) for p, label in zip(params, labels)]
            kinds = [(a.dtype, a.shape) for a in arrays]
            group = self.new_group(options, any(a.dtype != np.float64 for a in arrays), self.steps)
            check_narrow(group, arrays, labels)
            copies = as_mirrors(mirrors or len(arrays) * [None], arrays, labels)
            group.first, group.n_params = len(self.arrays), len(arrays)
            fresh = [{} for _ in arrays] if states is None else [
                given_state(group, state, array, label, self.flattened)
                for state, array, label in zip(states, arrays, labels)]
            # Raises where two overlap.
            Memory(self.arrays + arrays, all_names, self.states + fresh, self.mirrors + copies)
            if states is None:
                self.allocate(group, group.slots, arrays, labels, fresh)
            else:
                self.foreign = True
            # Schedules and a state_factory have had their turn; from here on nothing can change the arrays.
            check_unchanged(group, arrays, labels, fresh, self.flattened)
            as_mirrors(copies, arrays, labels)
            for earlier in self.untouched:
                self.check_params(earlier)
                self.check_state_of(earlier)
                self.check_mirrors(earlier)
            if kinds != [(a.dtype, a.shape) for a in arrays]:
                raise LayoutError("a parameter was changed while it was given to the optimizer")
            self.append_group(group, arrays, all_names, fresh, states is None, copies)
            if last:
                for group in self.untouched:
                    self.fill(group, group.slots, &self.team)
                    self.write_mirrors(group)
                self.untouched = []
        finally:
            self.leave()

    cdef append_group(self, Group group, list arrays, list all_names, list states, bint fill, list copies):
        """Put a group in place that was checked, and whose state may have to be filled; or MemoryError, and nothing."""
        cdef Py_ssize_t i, old = len(self.arrays), added = 0
        cdef list all_arrays = self.arrays + arrays, all_states = self.states + states
        cdef list all_groups = [*self.groups, group]
        cdef list untouched = [*self.untouched, group] if fill else self.untouched
        cdef list all_mirrors = self.mirrors + copies
        cdef list all_streams = self.streams + self.more_streams(len(arrays))
        cdef Memory memory = Memory(all_arrays, all_names, all_states, all_mirrors)
        self.reserve(old + len(arrays))
        self.keep_memory(group, states)
        try:
            for i, array in enumerate(arrays):
                self.register(&self.params[old + i], array)
                copy_numbers(self.params[old + i].numbers, group.numbers)
                added += 1
                if group.storage is not None or is_narrow(array) or copies[i] is not None:
                    self.params[old + i].stored = new_stored(old + i)
            self.options.append(group.options)
            # Nothing below can fail.
            self.n_params, added = old + added, 0
            self.arrays, self.names, self.states, self.groups = all_arrays, all_names, all_states, all_groups
            self.untouched, self.named = untouched, bool(all_names) and all_names[0] is not None
            self.mirrors, self.streams = all_mirrors, all_streams
            self.remap(memory)
            self.point(group)
        finally:
            for i in range(added):
                PyMem_Free(self.params[old + i].dims)
                PyMem_Free(self.params[old + i].stored)

    cdef Group new_group(self, options, bint has_float, int64_t steps, spec=None):
        """A group that reads these options; raises what a step with them would raise. `spec`: that of the options."""
        cdef Group group = Group()
        if not isinstance(options, dict):
            raise HyperparameterError(f"a parameter group is a dict, not a {type(options).__name__}")
        group.options, group.hyper.has_float, group.params = options, has_float, options.get("params")
        group.clip_norm = self.clip_norm
        group.adopt(self.derive(options) if spec is None else spec)
        group.refresh(steps)
        return group

    def check_options(self, options, bint has_float, int64_t steps, spec=None):
        """Raise what a step with these options would raise after so many steps; else the group that has them."""
        return self.new_group(options, has_float, steps, spec)

    def rebind(self, Py_ssize_t i, obj, str twin=None):
        """Step another array in the place of parameter i, of the same type, shape and memory order; its state stays."""
        cdef Group group
        cdef Param *q
        cdef list arrays, originals
        cdef Memory memory
        cdef tuple params
        cdef Py_ssize_t k
        self.enter()
        try:
            self.refuse_averaged("rebind()")
            label, q, group = self.label(i), &self.params[i], self.group_of(i)
            array = as_parameter(obj, label, twin, BFLOAT16_IN_UINT16)
            check_as_bound(q, array, label)
            arrays, originals = list(self.arrays), list(group.params)
            arrays[i], originals[i - group.first] = array, obj
            params = tuple(originals)
            memory = Memory(arrays, self.names, self.states, self.mirrors)    # raises where two overlap
            k = self.groups.index(group)
            options = self.options[k] if k < len(self.options) else None
            if not isinstance(options, dict) or options.get("params") is not group.params:
                raise ParameterError("the 'params' of a group cannot be exchanged; use add_param_group()")
            as_parameter(array, label, None, BFLOAT16_IN_UINT16)  # code of a user may have run since
            check_as_bound(q, array, label)
            self.check_mirror(q)
            # Nothing below can fail.
            (<dict>options)["params"] = params
            group.options["params"] = group.params = params
            group.n_before, group.before = -1, None               # it holds the old ones
            self.arrays = arrays
            q.p, q.array = fo_array_data(<PyObject *>array), <PyObject *>array
            self.remap(memory)
            self.write_mirror(q)
        finally:
            self.leave()

    # --- Hyperparameters that changed

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
            self.check_storage(group, fresh)
            edited = edited or []
            edited.append((k, fresh, self.lacking(fresh, fresh.slots)))
        if edited is not None:
            self.commit_groups(edited)

    cdef check_storage(self, Group group, Group fresh):
        """Raise if the options of a group ask for arrays of other types than there are, or cannot be kept."""
        cdef Py_ssize_t a = fresh.first, b = fresh.first + fresh.n_params
        before = None if group.storage is None else group.storage.layout
        after = None if fresh.storage is None else fresh.storage.layout
        if before != after and (before or after):
            raise HyperparameterError(
                f"{fresh.owner}: state_dtype, split and param_dtype of a group cannot be edited: make another "
                "optimizer with them, and load the state dict of this one")
        check_narrow(fresh, self.arrays[a:b], [self.label(i) for i in range(a, b)])

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
            for _, fresh, _ in edited:    # after all of them: a state_factory can change the arrays of any group
                a, b = fresh.first, fresh.first + fresh.n_params
                labels = [self.label(i) for i in range(a, b)]
                check_unchanged(fresh, self.arrays[a:b], labels, states[a:b], self.flattened)
                self.check_params(fresh)
                self.check_mirrors(fresh)
            memory = Memory(self.arrays, self.names, states, self.mirrors)
            for _, fresh, _ in edited:
                self.keep_memory(fresh, states[fresh.first:fresh.first + fresh.n_params])
            # Nothing below can fail.
            self.remap(memory)
            self.states = states
        for k, fresh, names in edited:
            self.groups[k] = fresh
            self.point(fresh)
            self.fill(fresh, names, &self.team)
            if fresh.mean < 0:            # averages that are switched on again begin anew
                for a in range(fresh.first, fresh.first + fresh.n_params):
                    self.params[a].begun = False

    # --- Stepping

    def step(self, grads, grad_scale=None, found_inf=None, numbers=()):
        """One step of every parameter that has a gradient. Raises before anything was written, or not at all.

        `numbers` are triples: a number that parameters carry, by name and place, and the arrays of one element that
        take it. A step with `found_inf` is skipped.
        """
        self.enter()
        try:
            if self.averaged:
                self.refuse_averaged("step()")
            self.set_scale(grad_scale)
            self.take_step(grads, list(numbers) if numbers else None, found_inf is not None and is_found(found_inf))
        finally:
            self.leave()

    cdef set_scale(self, grad_scale):
        """Note what the gradients of this step are to be divided by."""
        self.grad_scale = 1
        if grad_scale is not None:
            if not is_number(grad_scale) or not (isfinite(<double>float(grad_scale)) and float(grad_scale) > 0):
                raise HyperparameterError(f"grad_scale={grad_scale!r} must be a finite number above 0")
            self.grad_scale = float(grad_scale)

    cdef take_step(self, grads, list numbers, bint found):
        cdef Job job
        cdef list after = None            # pairs of arrays: those in `numbers`, and what they are to be
        grads = self.begin_step(&job, grads)
        if numbers is not None:
            after = [pair for name, k, arrays in numbers for pair in self.numbers_after(&job, name, k, arrays)]
        if found:
            self.clipped = False
            zero_gradients(&job)
        else:
            if self.copies_first:
                self.copy_first(&job)
            self.launch_step(&job)
        if found or job.found:
            self.skipped += 1
            return
        self.end_step(&job)
        if after is not None:
            write_numbers(after)
        self.steps += 1

    cdef list begin_step(self, Job *job, grads):
        """Check all and note what to step; the gradients, in a list that has to outlive the step."""
        cdef list given = <list>grads if type(grads) is list else as_list(self, grads)
        self.clips = self.clip_norm is not None
        self.clip.limit = self.limit_of_now() if self.clips else INFINITY
        self.refresh_groups()
        if not self.collect(job, given):
            self.converted = given = convert_all(self, given, self.copy_grads)
            if not self.collect(job, given):
                raise GradientError("gradients or parameters changed while the step looked at them")
        if self.foreign:
            self.check_states()
        if self.zeroes:
            self.check_gradients_apart(job)
        job.scan_nonfinite = self.nonfinite != "propagate"
        if self.sums:
            self.ask_for_norms(job)
        return given

    cdef int ask_for_norms(self, Job *job) except -1:
        """Have a job find the norms of its gradients first, and clip by them."""
        self.clip.grad_scale = self.grad_scale
        ask_for_sum(job, self.norm_sum, &self.scratch)
        job.clip = &self.clip
        job.moved += job.blocks           # gradients are read twice
        return 0

    cdef double limit_of_now(self) except? -1:
        """What the norm of this step's gradients is not to exceed."""
        cdef object now
        cdef double limit
        if isinstance(self.clip_norm, float):
            return self.clip_norm
        now = self.clip_norm(self.steps)
        limit = as_limit(now)
        if not limit > 0:
            raise HyperparameterError(f"clip_norm={now!r} must be {LIMIT}")
        return limit

    cdef bint collect(self, Job *job, list grads) except -1:
        """Check parameters and gradients, and note what to step; False if a gradient is no plain, fitting array.

        No Python code runs in here but on the way to an error, so that what was checked stays as it was.
        """
        cdef Py_ssize_t n = len(self.arrays), i, before, end
        cdef bint asks = n >= FEWEST_AHEAD and fo_omp_time() - self.ended > rested
        cdef Group group
        cdef Param *q
        cdef PyObject *g
        cdef int flags
        if len(grads) != n:
            raise GradientError(f"{len(grads)} gradients for {n} parameters; give one for each, None to skip one")
        self.begin_job(job, NULL)
        self.bank.n = 0
        self.sums, self.zeroes, self.averages_now = self.clips, False, False
        for group in self.groups:
            group.prepare(self.grad_scale, self.clips)
            flags = 0
            if group.around:
                self.sums = self.sums or group.program.own_limit > 0
                self.averages_now = self.averages_now or group.mean >= 0
                if group.program.zeroes:
                    self.zeroes, flags = True, cnp.NPY_ARRAY_WRITEABLE
            job.place = -1
            before = job.blocks
            end = group.first + group.n_params
            for i in range(group.first, end):
                if asks and i + FAR < end:
                    fo_prefetch_array(self.params[i + FAR].array)
                    fo_prefetch_array(PyList_GET_ITEM(<PyObject *>grads, i + FAR))
                if asks and i + NEAR < end:
                    g = PyList_GET_ITEM(<PyObject *>grads, i + NEAR)
                    fo_prefetch_dims(self.params[i + NEAR].array)
                    if cnp.PyArray_CheckExact(<object>g):
                        fo_prefetch_dims(g)
                        fo_prefetch(fo_array_data(g), 1)
                q = &self.params[i]
                g = PyList_GET_ITEM(<PyObject *>grads, i)
                if not (q.p == fo_array_data(q.array) and fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE)):
                    complain_parameter(self, i)
                if g == <PyObject *>None:
                    continue
                if not cnp.PyArray_CheckExact(<object>g):
                    return False
                if q.stored == NULL and fits(g, q, flags):
                    self.add_work(job, group, &group.program, q, g, fo_array_data(g))
                elif not self.add_stored(job, group, q, g, flags):
                    return False
            job.moved += moved_blocks(job.blocks - before, &group.program)
        return True

    cdef bint add_stored(self, Job *job, Group group, Param *q, PyObject *g, int flags) except -1:
        """The same where something has a format, or may have; False if the gradient does not fit.

        Which of the two programs a step takes is decided here: a gradient can have another type at every step.
        """
        cdef int type = cnp.PyArray_TYPE(<cnp.ndarray>g)
        cdef const Format *format = NULL
        if self.plain:
            return False
        if type == NPY_HALF:
            format = FLOAT16
        elif type == cnp.NPY_USHORT and (group.grad_is_bfloat16 or q.type == cnp.NPY_USHORT):
            format = BFLOAT16
        elif type == bfloat16_type:
            format = BFLOAT16
        elif type != <int>(cnp.NPY_DOUBLE if q.type == cnp.NPY_DOUBLE else cnp.NPY_FLOAT):
            return False
        if (format != NULL and q.type == cnp.NPY_DOUBLE) or not fo_array_fits(
                g, type, q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED | flags):
            return False
        if q.stored == NULL:
            q.stored = new_stored(q - self.params)
        q.stored.g = format
        self.check_mirror(q)
        self.add_work(job, group, &group.stored if has_formats(q.stored) else &group.program, q, g, fo_array_data(g))
        return True

    cdef check_mirrors(self, Group group):
        """Raise if the mirror of a parameter of a group is not what it was."""
        cdef Py_ssize_t i
        for i in range(group.first, group.first + group.n_params):
            self.check_mirror(&self.params[i])

    cdef int check_mirror(self, const Param *q) except -1:
        """Raise if the mirror of a parameter is not what it was."""
        cdef PyObject *mirror
        if q.stored == NULL or q.stored.mirror == NULL:
            return 0
        mirror = PyList_GET_ITEM(<PyObject *>self.mirrors, q - self.params)
        if not (fo_array_data(mirror) == q.stored.mirror and fo_array_fits(
                mirror, NPY_HALF if q.stored.copy == FLOAT16 else cnp.PyArray_TYPE(<cnp.ndarray>mirror), q.nd,
                q.dims, q.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)):
            raise LayoutError(f"the mirror of {self.label(q - self.params)} was changed after it was given to the "
                              "optimizer: its memory, shape, type or writability")
        return 0

    @cython.final                     # and so inline: once for each parameter
    cdef inline int add_work(self, Job *job, Group group, const Program *program, Param *q, PyObject *g,
                             char *data) except -1:
        """Add the step of a parameter by the gradient at `data`, or raise. The caller counts what it moves."""
        if not self.is_apart(q, data):
            complain_overlap(self, q - self.params, data)
        return self.append_work(job, group, program, q, g, data)

    @cython.final
    cdef inline int append_work(self, Job *job, Group group, const Program *program, Param *q, PyObject *g,
                                char *data) except -1:
        """The same for a gradient that meets no parameter or state."""
        cdef Work *w = &self.work[job.n_work]
        # Most share their scalars with the one before.
        if (job.place < 0 or q.t != job.t or q.begun != job.begun
                or not same_numbers(q.numbers, job.numbers)):
            job.place = new_scalars(&self.bank, group, q)
            job.t, job.begun, job.bank = q.t, q.begun, self.bank.items
            copy_numbers(job.numbers, q.numbers)
        w.q, w.program, w.g, w.grad, w.place, w.first_block = q, program, data, g, job.place, job.blocks
        job.blocks += blocks_of(q)
        job.n_work += 1
        return 0

    cdef launch_step(self, Job *job):
        """Run the job. Without the GIL, another thread may drop what the caller's list holds: keep references."""
        cdef bint keep_refs = is_large(job) and self.converted is None
        cdef Py_ssize_t i
        if keep_refs:
            for i in range(job.n_work):
                Py_XINCREF(job.work[i].grad)
        try:
            launch(&self.team, job)
            self.clipped = self.sums
            if job.found and self.nonfinite == "raise":
                complain_nonfinite(self, job)
            if job.found:
                zero_gradients(job)
        finally:
            if keep_refs:
                for i in range(job.n_work):
                    Py_XDECREF(job.work[i].grad)

    cdef void end_step(self, const Job *job) noexcept:
        """Advance what was stepped: its count, and the numbers that it carries."""
        cdef Py_ssize_t i
        cdef Work *w
        for i in range(job.n_work):
            w = &job.work[i]
            w.q.t += 1
            copy_numbers(w.q.numbers, job.bank[w.place].numbers)
        if self.averages_now:
            for i in range(job.n_work):
                w = &job.work[i]
                if w.program.mean >= 0 and is_averaged(&job.bank[w.place].mean):
                    w.q.begun = True
        if self.n_params >= FEWEST_AHEAD:
            self.ended = fo_omp_time()

    cdef check_gradients_apart(self, const Job *job):
        """Raise if two gradients of a job share memory: zeroing one would change the other.

        No Python code runs in here but on the way to an error, as in `collect`.
        """
        cdef Memory memory
        cdef Py_ssize_t i
        cdef bint same = job.n_work == self.n_apart
        cdef Interval *x
        cdef const Work *w
        for i in range(job.n_work):
            w = &job.work[i]
            same = same and self.apart[i].q == w.q and self.apart[i].g == w.g and self.apart[i].n == grad_bytes(w.q)
        if same:
            return
        self.n_apart = 0
        self.apart = <Seen *>renewed(self.apart, job.n_work * <Py_ssize_t>sizeof(Seen))
        memory = self.gradients           # making one could run code of the user: that of the garbage collector
        memory.n = 0
        memory.reserve(job.n_work)
        for i in range(job.n_work):
            w = &job.work[i]
            self.apart[i] = Seen(w.q, w.g, grad_bytes(w.q))
            if w.q.n:
                memory.append(w.g, grad_bytes(w.q), w.q - self.params, -1)
        i = memory.sort()
        if i:
            x = &memory.intervals[i - 1]
            first, second = sorted([x[0].param, x[1].param])
            raise OverlapError(f"gradient of {self.label(second)} shares memory with the gradient of "
                               f"{self.label(first)}; zero_grads=True needs gradients that share none")
        self.n_apart = job.n_work

    cdef list numbers_after(self, const Job *job, str name, Py_ssize_t k, list arrays):
        """The arrays of a number that parameters carry, each with what it is to be after the step."""
        cdef Memory memory = Memory(arrays, self.names, [])
        cdef list pairs = []
        cdef Py_ssize_t i
        cdef Work *w
        for i in range(job.n_work):
            w = &job.work[i]
            if not memory.is_free(w.g, w.g + grad_bytes(w.q)):
                raise OverlapError(f"gradient of {self.label(w.q - self.params)} overlaps {name} of a parameter; "
                                   "gradients need other memory")
            array = arrays[w.q - self.params]
            pairs.append((array, np.array([job.bank[w.place].numbers[k]], array.dtype)))
        return pairs

    # --- Resuming

    def resume(self, list options, list recorded, list records, list counts, int64_t steps, int64_t skipped,
               list streams):
        """Go on from elsewhere: all of it, or an error and nothing of it. Inside `run`.

        `options` are the groups', whose dicts take them over; `recorded` names, per group, the state slots that records
        have. A record is None for a parameter that starts anew, else the tuple of carried numbers and slot -> array, of
        the type and memory order that its slot has, and no memory of this optimizer's. `streams` are the numbers of the
        parameters' random streams.
        """
        cdef Group group
        cdef Py_ssize_t i
        cdef list edited = self.resumed_groups(options, recorded, steps)
        for group in self.groups:
            self.check_params(group)
            self.check_state_of(group)
            self.check_mirrors(group)
        self.check_records(records)
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
        self.steps, self.skipped, self.streams = steps, skipped, streams
        for i in range(len(self.arrays)):
            if self.params[i].stored != NULL:
                self.params[i].stored.stream = self.streams[i]
        for group in self.groups:
            self.fill(group, group.slots, &self.team)
            for i in range(group.first, group.first + group.n_params):
                self.params[i].t = counts[i]
                copy_numbers(self.params[i].numbers, group.numbers)
                self.params[i].begun = records[i] is not None and MEAN_SLOT in records[i][1]
                if records[i] is not None:
                    self.overwrite(i, group, records[i][0], records[i][1])
            self.write_mirrors(group)     # of parameters that have got other low halves

    cdef list resumed_groups(self, list options, list recorded, int64_t steps):
        """Groups with these options and slots for all that is recorded, for `commit_groups`."""
        cdef Group group, fresh
        cdef Py_ssize_t k
        cdef list edited = []
        for k, group in enumerate(self.groups):
            if self.options[k].get("params") is not group.params:
                raise ParameterError("the 'params' of a group cannot be exchanged; use add_param_group()")
            fresh = self.new_group(options[k], group.hyper.has_float, steps)
            fresh.options, fresh.params, fresh.first, fresh.n_params = (
                self.options[k], group.params, group.first, group.n_params)
            self.check_storage(group, fresh)
            # Also what the options to come have no slot for: state of before must not be there when they change.
            present = list(self.states[group.first]) if group.n_params else []
            fresh.slots += [name for name in dict.fromkeys([*recorded[k], *present]) if name not in fresh.slots]
            fresh.alike = fresh.alike and all([fresh.kinds[name].like == "parameter" for name in fresh.slots])
            edited.append((k, fresh, self.lacking(fresh, fresh.slots)))
        return edited

    cdef check_records(self, list records):
        """Raise unless every record has numbers, and arrays that are like their parameter."""
        cdef double numbers[MAX_NUMBERS]
        cdef Group group
        for i, record in enumerate(records):
            if record is None:
                continue
            read_numbers(numbers, record[0])
            group = self.group_of(i)
            for name, array in record[1].items():
                if not self.fits_slot(group.kinds[name], array, i, 0):
                    raise RuntimeError(f"state {name!r} of {self.label(i)} has another layout than it needs")

    cdef overwrite(self, Py_ssize_t i, Group group, tuple numbers, dict arrays):
        """Take over the carried numbers and the state of one parameter."""
        cdef cnp.ndarray array
        cdef Py_ssize_t k
        read_numbers(self.params[i].numbers, numbers)
        for k in range(len(group.slots)):
            if group.slots[k] in arrays:
                array = arrays[group.slots[k]]
                memcpy(self.params[i].s[k], cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array))

    # --- Averages

    cpdef refuse_averaged(self, str what):
        """Raise if averages stand in the place of the parameters."""
        if self.averaged:
            raise AveragedError(f"{what} inside `with averaged():`, where the parameters hold their averages; leave it "
                                "first")

    def swap_averages(self, bint back):
        """Let parameters whose averages have begun, and those, change places, or change `back`."""
        cdef Group group
        cdef Program program, stored
        cdef StepScalars scalars
        cdef Job job
        cdef Param *q
        cdef Py_ssize_t i
        cdef bint plain
        cdef object fault = None
        self.enter()
        try:
            if back and not self.averaged:
                return                    # another thread has left it meanwhile
            if not back:
                self.refuse_averaged("averaged()")
                self.refresh_groups()
            rule_alone(&program, EXCHANGE, EXCHANGE)
            stored = program
            stored.walk, stored.bare, stored.bare_unclipped = exchange_stored, False, False
            scalars.flush = False
            scale(&scalars.h, 0, back)
            self.begin_job(&job, &scalars)
            for group in self.groups:
                for i in range(group.first, group.first + group.n_params):
                    if group.mean < 0 or not self.params[i].begun:
                        continue
                    q = &self.params[i]
                    try:
                        self.check_param(i)
                        self.check_state_of_one(group, i)
                        self.check_mirror(q)
                    except FastoptError as error:
                        if not back:
                            raise
                        fault = fault or error    # all others are to change back
                        continue
                    plain = q.stored == NULL or (q.stored.p == NULL and q.stored.mirror == NULL)
                    self.add_other(&job, q, q.p, &program if plain else &stored, NULL, 0)
                    self.copies[job.n_work - 1].s[0] = q.s[group.mean]
            job.moved = 4 * job.blocks
            launch(&self.team, &job)
            self.averaged = not back
        finally:
            self.leave()
        if fault is not None:
            raise fault

    def is_averaging(self):
        """Whether some parameter has an average, or is to have one."""
        return any([isinstance(options, dict) and options.get("ema_decay") is not None for options in self.options])

    def averages(self):
        """The average of every parameter, live; the parameter where that is the same, or has taken its place."""
        return [self.arrays[i] if not self.has_average(i) else self.find_average(i)[0] if self.averaged else
                self.states[i][MEAN_SLOT] for i in range(len(self.arrays))]

    cdef bint has_average(self, Py_ssize_t i) except -1:
        """Whether the average of a parameter has begun, and the option was not taken away since the last step."""
        return self.params[i].begun and self.group_of(i).options.get("ema_decay") is not None

    cdef tuple find_average(self, Py_ssize_t i):
        """An average that has taken the place of its parameter, and the lower halves of that if it is split, or None.

        The parameter itself, if that is float32 or float64.
        """
        cdef Param *q = &self.params[i]
        cdef cnp.ndarray average, low = None
        if q.stored == NULL or q.stored.p == NULL:
            return self.arrays[i], None
        average = np.empty_like(self.states[i][MEAN_SLOT], subok=False)
        if q.stored.p == SPLIT:
            low = np.empty_like(self.states[i][LOW_SLOT], subok=False)
        exchanged(q.stored, q.p, q.s[self.group_of(i).mean], <float *>cnp.PyArray_DATA(average),
                  NULL if low is None else <int16_t *>cnp.PyArray_DATA(low), q.n)
        return average, low

    def saved_state(self, Py_ssize_t i):
        """The state arrays of a parameter that a state dict has, by name."""
        cdef dict state = self.states[i]
        cdef bint begun = self.has_average(i)
        if LOW_SLOT in state and state[LOW_SLOT].size == 0:
            state = {name: array for name, array in state.items() if name != LOW_SLOT}
        if MEAN_SLOT in state and (self.averaged or not begun):
            state = dict(state)
            if begun:
                average, low = self.find_average(i)
                state[MEAN_SLOT] = np.array(average, order="K")
                if low is not None and LOW_SLOT in state:
                    state[LOW_SLOT] = low
            else:
                del state[MEAN_SLOT]
        return state

    # --- What the optimizer reads and writes between steps

    def lookahead(self, list out):
        """Write parameter + momentum * velocity into `out`, one array for each parameter."""
        cdef Group group
        cdef Py_ssize_t i, k, before
        cdef Job job
        cdef Program program, stored
        cdef StepScalars *mu = NULL
        cdef Param *q
        cdef bint formats
        self.enter()
        try:
            self.refuse_averaged("lookahead()")
            mu = <StepScalars *>renewed(NULL, len(self.groups) * <Py_ssize_t>sizeof(StepScalars))
            rule_alone(&program, LOOKAHEAD, LOOKAHEAD)
            stored = program
            stored.walk, stored.bare, stored.bare_unclipped = lookahead_stored, False, False
            self.begin_job(&job, mu)
            self.refresh_groups()
            self.check_states()
            for k, group in enumerate(self.groups):
                mu[k].flush = False
                scale(&mu[k].h, 0, group.hyper.x[1])
                before = job.blocks
                for i in range(group.first, group.first + group.n_params):
                    q = &self.params[i]           # with options of storage, one of float64 has a Stored, too: empty
                    formats = q.stored != NULL and has_formats(q.stored)
                    self.add_other(&job, q, self.target(i, out[i]), &stored if formats else &program, q.p, k)
                job.moved += moved_blocks(job.blocks - before, &group.program)
            launch(&self.team, &job)
        finally:
            PyMem_Free(mu)
            self.leave()

    cdef char *target(self, Py_ssize_t i, cnp.ndarray array) except? NULL:
        """The memory of a lookahead array, if it and its parameter still are what they were."""
        cdef Param *q = &self.params[i]
        if not (q.p == fo_array_data(q.array) and fits(q.array, q, 0)):
            complain_parameter(self, i)
        if not fits(<PyObject *>array, q, cnp.NPY_ARRAY_WRITEABLE):
            raise LayoutError(f"the lookahead array of {self.label(i)} was changed after it was made")
        return <char *>cnp.PyArray_DATA(array)

    def set_steps(self, int64_t steps, int64_t skipped):
        self.steps, self.skipped = steps, skipped

    def scalars(self, Py_ssize_t i):
        """The scalars h that the next step would give parameter i, in double. For tests."""
        cdef StepScalars scalars
        for group in self.groups:
            if (<Group>group).first <= i < (<Group>group).first + (<Group>group).n_params:
                (<Group>group).refresh(self.steps)
                (<Group>group).compute(&scalars, self.params[i].t + 1, self.params[i].numbers, self.params[i].begun)
                return [scalars.h.d[k] for k in range((<Group>group).program.rule.n_scalars)]
        raise IndexError(i)


cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock
    enum:
        NOWAIT_LOCK
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int flag)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag) nogil
    void PyThread_release_lock(PyThread_type_lock lock)


@cython.final
cdef class Averaged:
    """What `Optimizer.averaged` returns: `swap(back)` lets averages and parameters change places, and back.

    `is_swapped()` says whether they have. In C, so that no interrupt comes before the context is entered.
    """
    cdef object swap
    cdef object is_swapped
    cdef bint inside

    def __cinit__(self, swap, is_swapped):
        self.swap, self.is_swapped = swap, is_swapped

    def __enter__(self):
        cdef bint before = self.is_swapped()
        try:
            self.swap(False)
        except BaseException:             # an interrupt, maybe, after all was done
            if not before and self.is_swapped():
                self.swap(True)
            raise
        self.inside = True

    def __exit__(self, kind, error, traceback):       # no *arguments, a tuple that memory could be lacking for
        if not self.inside:
            return
        try:
            self.take_back()
        except ConcurrentStepError:
            raise
        except BaseException:                 # an interrupt, maybe, before anything was done
            if self.is_swapped():
                self.take_back()
            raise
        finally:                              # it can be tried again, if nothing was done
            self.inside = self.is_swapped()

    cdef take_back(self):
        """Swap back; where another thread is in the middle of something, wait for it."""
        cdef double until = monotonic() + LONGEST_WAIT
        while True:
            try:
                self.swap(True)
                return
            except ConcurrentStepError:
                if monotonic() > until:
                    raise
            give_way(1000)


cdef give_way(long microseconds):
    """Let other threads run for so long; no interrupt is heard meanwhile."""
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock == NULL:
        raise MemoryError
    PyThread_acquire_lock(lock, NOWAIT_LOCK)
    with nogil:
        PyThread_acquire_lock_timed(lock, microseconds, 0)
    PyThread_release_lock(lock)
    PyThread_free_lock(lock)


def swap_tensors(list pairs, clone, copy, dict noted, value, TensorPlan plan):
    """Let pairs of tensors exchange what they hold, and note a value as "_averaged"; all, or an error and none.

    A plan, where there is one, takes no step while the value is not None.
    `clone(x)` and `copy(x, y)` are C functions of their library, between which no Python code runs, nor an interrupt.
    """
    cdef Py_ssize_t done = 0
    try:
        for first, second in pairs:
            swap_two(first, second, clone, copy)
            done += 1
    except BaseException:
        for first, second in pairs[:done]:
            swap_two(first, second, clone, copy)
        raise
    noted["_averaged"] = value
    if plan is not None:
        plan.paused = value is not None


cdef swap_two(first, second, clone, copy):
    kept = clone(first)
    try:
        copy(first, second)
        copy(second, kept)
    except BaseException:
        copy(first, kept)
        raise


include "_engine/borrow.pxi"
include "_engine/tensors.pxi"
include "_engine/arena.pxi"
include "_engine/clipping.pxi"
include "_engine/probe.pxi"
