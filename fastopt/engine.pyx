# cython: profile=False
"""The engine: everything about a step but the mathematics.

`Plan` knows the arrays: it checks them, keeps them alive, and steps them all in one call and at most one parallel
region. The update rules come from the kernel module of one instruction-set level, chosen at import.

Design:
- All arrays form one virtual range of 64-byte blocks. Thread k of n walks the k-th n-th of it, whatever arrays that
  cuts through. State memory is first touched by the same partition.
- Everything that can go wrong is found before the first write: reading hyperparameters, checking arrays and computing
  scalars happen with the GIL and may raise; after that only `walk` runs, which cannot.
- A gradient may not overlap any parameter or state. Their intervals are sorted once; each parameter remembers the gap
  between two intervals in which its last gradient lay, so that a fresh gradient usually costs two comparisons, a
  reused one the same.
"""

import os
from collections.abc import Mapping

import numpy as np

cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cython.parallel cimport parallel
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset, strcmp

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(PyObject *items, Py_ssize_t i)     # borrowed

from fastopt.kernels.table cimport MAX_HYPER, MAX_SCALARS, MAX_STATES, TABLE_VERSION, Rule, Table

from fastopt.errors import (
    ConcurrentStepError,
    DTypeError,
    GradientError,
    HyperparameterError,
    LayoutError,
    NonFiniteError,
    OverlapError,
    ParameterError,
    ReadOnlyError,
    ShapeError,
)

cdef extern from "fastopt_arrays.h" nogil:
    char *fo_array_data(PyObject *array)
    bint fo_array_fits(PyObject *array, int type, int nd, const cnp.npy_intp *dims, int flags)

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
    int fo_omp_max_threads()
    int fo_omp_num_threads()
    int fo_omp_thread_num()
    int fo_affinity_cpus()
    void fo_barrier()

cnp.import_array()
fo_threads_init()

# --- The level -------------------------------------------------------------------------------------------------------

LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "generic")
# On x86-64-v4 short arrays are left to a build with vectors half as wide: fewer of their elements are in the remainder
# that no vector fills. The bits are the same.
NARROW = {"x86-64-v4": "x86-64-v4-narrow"}
cdef const Table *TABLE = NULL
cdef const Table *SHORT_TABLE = NULL
cdef const Rule *L2 = NULL
cdef const Rule *NEGATE = NULL
cdef const Rule *SHRINK = NULL
cdef const Rule *FILL = NULL
cdef const Rule *LOOKAHEAD = NULL
cdef const Rule *NONFINITE = NULL
cdef str isa = ""


def _kernels(str level):
    """The kernel module of a level, or None if it was not built."""
    name = "fastopt.kernels." + level.replace("-", "_")
    try:
        return __import__(name, fromlist=["__table__"])
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def available_levels():
    """The levels that are built and that this machine can run, best first."""
    return [level for level in LEVELS if fo_cpu_has(level.encode()) and _kernels(level) is not None]


def use_level(str level):
    """Take the rules of one instruction-set level for every plan made from now on.

    Meant for tests and benchmarks; users set ``FASTOPT_ISA`` before the import.
    """
    global TABLE, SHORT_TABLE, L2, NEGATE, SHRINK, FILL, LOOKAHEAD, NONFINITE, isa
    if level not in LEVELS or not fo_cpu_has(level.encode()) or _kernels(level) is None:
        raise ImportError(f"FASTOPT_ISA={level!r} is not possible here; possible: {', '.join(available_levels())}")
    TABLE = table_of(_kernels(level))
    SHORT_TABLE = table_of(_kernels(NARROW.get(level, level)) or _kernels(level))
    L2, NEGATE, SHRINK, FILL = find_rule("l2"), find_rule("negate"), find_rule("shrink"), find_rule("fill")
    LOOKAHEAD, NONFINITE = find_rule("lookahead"), find_rule("nonfinite")
    isa = level


cdef const Table *table_of(module) except NULL:
    cdef const Table *table = <const Table *>PyCapsule_GetPointer(module.__table__, b"fastopt.kernels.table")
    if table.version != TABLE_VERSION:
        raise ImportError(f"{module.__name__} belongs to another build of fastopt; reinstall it")
    return table


cdef const Rule *find_rule(str name) except NULL:
    cdef bytes key = name.encode()
    for i in range(TABLE.n):
        if strcmp(TABLE.rules[i].name, key) == 0:
            return &TABLE.rules[i]
    raise KeyError(name)


def rules():
    """Every rule: name -> (names of its hyperparameters in order, number of state slots, number of scalars)."""
    return {
        (<bytes>TABLE.rules[i].name).decode(): (
            tuple((<bytes>TABLE.rules[i].hyper).decode().split()), TABLE.rules[i].n_states, TABLE.rules[i].n_scalars)
        for i in range(TABLE.n)
    }


def _choose_level():
    wanted = os.environ.get("FASTOPT_ISA")
    if wanted:
        return use_level(wanted)
    for level in LEVELS:
        if fo_cpu_has(level.encode()) and _kernels(level) is not None:
            return use_level(level)
    raise ImportError("fastopt was built without any kernel module")


_choose_level()

# --- Threads ---------------------------------------------------------------------------------------------------------

# Below this many 64-byte blocks of parameters a step stays on the calling thread: entering a region costs more.
cdef Py_ssize_t serial_blocks = 8192
# Below this many it keeps the GIL: giving it up and asking for it back costs more than the step.
cdef Py_ssize_t gil_blocks = 512
cdef int quota_cpus = -1


def set_serial_blocks(Py_ssize_t blocks):
    """Set the serial threshold, in 64-byte blocks of parameters; returns the old one. For tests and benchmarks."""
    global serial_blocks
    old, serial_blocks = serial_blocks, blocks
    return old


cdef int read_quota():
    """CPUs that the control group may use, rounded up; 0 without a limit. Read once: it is a file."""
    global quota_cpus
    if quota_cpus >= 0:
        return quota_cpus
    quota_cpus = 0
    for path, split in (("/sys/fs/cgroup/cpu.max", True), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", False)):
        try:
            with open(path) as file:
                words = file.read().split()
            if not split:
                with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                    words += file.read().split()
            if words[0] not in ("max", "-1"):
                quota_cpus = max(1, -(-int(words[0]) // int(words[1])))
            break
        except (OSError, ValueError, IndexError):
            continue
    return quota_cpus


cdef int automatic_threads():
    cdef int n = fo_omp_max_threads(), quota
    if "OMP_NUM_THREADS" in os.environ:
        return n
    quota = read_quota()
    n = min(n, fo_affinity_cpus())
    return min(n, quota) if quota else n


def info():
    """What the engine found and chose, as plain data (see ``fastopt info``)."""
    n, omp, cpus, quota = automatic_threads(), fo_omp_max_threads(), fo_affinity_cpus(), read_quota()
    if not fo_have_openmp():
        reason = "built without OpenMP"
    elif fo_in_forked_child():
        n, reason = 1, "this process is a fork: OpenMP cannot be used here"
    elif "OMP_NUM_THREADS" in os.environ:
        reason = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, OpenMP now grants {omp}"
    else:
        limits = {"OpenMP's limit": omp, "CPUs this process may use": cpus}
        if quota:
            limits["CPU quota of the control group"] = quota
        reason = "the least of: " + ", ".join(f"{name} {value}" for name, value in limits.items())
    return {
        "isa": isa,
        "isa_available": available_levels(),
        "isa_built": [level for level in LEVELS if _kernels(level) is not None or level == isa],
        "isa_forced": bool(os.environ.get("FASTOPT_ISA")),
        "cpu_level": (<bytes>fo_cpu_level()).decode(),
        "openmp": bool(fo_have_openmp()),
        "openmp_version": fo_omp_version(),
        "threads": n,
        "threads_reason": reason,
        "serial_below_bytes": serial_blocks * 64,
    }


# --- What a step walks -----------------------------------------------------------------------------------------------

cdef enum:
    TILE = 1024               # elements around which prologue and epilogue stay in the L1 cache
    SHORT = 512               # elements up to which an array goes to the narrow kernels
    BLOCK = 64                # bytes of parameter that are never cut
    MAX_WATCH = 24
    NUMBER = 0                # kinds of what is watched in a group
    PAIR = 1
    OPTION = 2
    PLAIN = 0                 # kinds of prologue
    NEGATED = 1
    COUPLED = 2
    DECAY_L2 = 0              # weight decay: gradient += wd * p
    DECAY_FIRST = 1           # p *= 1 - lr * wd, then the update
    DECAY_PAPER = 2           # p *= 1 - wd, then the update
    DECAY_LAST = 3            # the update, then p *= 1 - lr * wd

cdef struct Scaled:           # scalars rounded once to each compute type
    float f[MAX_SCALARS]
    double d[MAX_SCALARS]

cdef struct Slot:             # the scalars of one step count in one group
    int64_t t
    double carry
    Scaled h

cdef struct Around:           # what a group does to a tile, and with which rule
    const Rule *rule
    const Rule *short_rule
    int prologue
    bint shrink
    Scaled pre
    Scaled post

cdef struct Param:
    char *p
    char *s[MAX_STATES]
    Py_ssize_t n              # elements
    Py_ssize_t n_bytes
    Py_ssize_t blocks
    int type                  # NumPy's type number
    int nd
    int order                 # flag of the memory order shared with gradient and state
    cnp.npy_intp *dims
    int64_t t                 # steps taken
    double carry
    char *gap_low             # free memory in which its last gradient lay
    char *gap_high
    PyObject *array           # borrowed from Plan.arrays

cdef struct Interval:         # memory that no gradient may touch
    char *low
    char *high
    Py_ssize_t param
    int slot                  # place in the parameter's state, -1 for the parameter itself

cdef struct Work:             # one array of the step at hand
    Param *q
    const Around *around
    char *g
    Py_ssize_t slot
    Py_ssize_t first_block


cdef inline void scale(Scaled *h, int i, double value) noexcept nogil:
    h.d[i] = value
    h.f[i] = <float>value


ctypedef fused real:
    float
    double


cdef inline void apply(const Rule *rule, real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    if real is float:
        rule.f32(p, g, s, h, n)
    else:
        rule.f64(p, g, s, h, n)


cdef inline void walk_array(real *p, const real *g, char *const *state, Py_ssize_t n, const Around *a,
                            const real *h, const real *pre, const real *post, Py_ssize_t first) noexcept nogil:
    cdef real *s[MAX_STATES]
    cdef real *w[1]
    cdef real tile[TILE]
    cdef const real *seen
    cdef Py_ssize_t k, size
    for k in range(a.rule.n_states):
        s[k] = <real *>state[k] + first
    p += first
    if g != NULL:
        g += first
    if a.prologue == PLAIN and not a.shrink:
        apply(a.rule if n > SHORT else a.short_rule, p, g, s, h, n)
        return
    while n > 0:
        size = min(n, TILE)
        seen = g
        w[0] = p
        if a.prologue != PLAIN:
            apply(L2 if a.prologue == COUPLED else NEGATE, tile, g, w, pre, size)
            seen = tile
        apply(a.rule, p, seen, s, h, size)
        if a.shrink:
            apply(SHRINK, p, seen, s, post, size)
        n -= size
        p += size
        g += size
        for k in range(a.rule.n_states):
            s[k] += size


cdef void walk(Work *work, Py_ssize_t n_work, const Slot *slots, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Step the blocks from `begin` to `end` of the virtual range."""
    cdef Py_ssize_t low = 0, high = n_work, middle, first, last, per_block
    cdef Work *w
    cdef const Slot *slot
    while high - low > 1:
        middle = (low + high) // 2
        if work[middle].first_block <= begin:
            low = middle
        else:
            high = middle
    while begin < end and low < n_work:
        w = &work[low]
        slot = &slots[w.slot]
        per_block = BLOCK // (8 if w.q.type == cnp.NPY_DOUBLE else 4)
        first = (begin - w.first_block) * per_block
        last = min((end - w.first_block) * per_block, w.q.n)
        if w.q.type == cnp.NPY_DOUBLE:
            walk_array(<double *>w.q.p, <const double *>w.g, w.q.s, last - first, w.around,
                       slot.h.d, w.around.pre.d, w.around.post.d, first)
        else:
            walk_array(<float *>w.q.p, <const float *>w.g, w.q.s, last - first, w.around,
                       slot.h.f, w.around.pre.f, w.around.post.f, first)
        begin = min(end, w.first_block + w.q.blocks)
        low += 1


cdef bint any_nonfinite(Work *work, Py_ssize_t n_work, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Whether a gradient in the blocks from `begin` to `end` holds a NaN or an infinity."""
    cdef Py_ssize_t i, first, last, per_block
    cdef float f = 0
    cdef double d = 0
    for i in range(n_work):
        if work[i].first_block >= end:
            break
        if work[i].first_block + work[i].q.blocks <= begin:
            continue
        per_block = BLOCK // (8 if work[i].q.type == cnp.NPY_DOUBLE else 4)
        first = max(0, begin - work[i].first_block) * per_block
        last = min((end - work[i].first_block) * per_block, work[i].q.n)
        if work[i].q.type == cnp.NPY_DOUBLE:
            NONFINITE.f64(&d, <const double *>work[i].g + first, NULL, NULL, last - first)
        else:
            NONFINITE.f32(&f, <const float *>work[i].g + first, NULL, NULL, last - first)
        if f != 0 or d != 0:
            return True
    return False


cdef struct Job:
    Work *work
    Py_ssize_t n_work
    const Slot *slots
    Py_ssize_t blocks
    bint look                 # for NaN and infinities, before the first write
    int found


cdef void run_share(Job *job, int k, int n) noexcept nogil:
    """Thread k of n: its share of the virtual range, in a floating-point environment of its own."""
    cdef Py_ssize_t begin = job.blocks * k // n, end = job.blocks * (k + 1) // n
    cdef fo_fenv_t saved = fo_fenv_enter()
    if job.look:
        if any_nonfinite(job.work, job.n_work, begin, end):
            job.found = 1
        if n > 1:
            fo_barrier()
    if not job.found:
        walk(job.work, job.n_work, job.slots, begin, end)
    fo_fenv_leave(saved)


cdef void run(Job *job, int n_threads) noexcept nogil:
    if n_threads <= 1:
        run_share(job, 0, 1)
    else:
        with parallel(num_threads=n_threads):
            run_share(job, fo_omp_thread_num(), fo_omp_num_threads())


# --- Hyperparameters -------------------------------------------------------------------------------------------------

cdef object UNSEEN = object()


cdef class Group:
    """The hyperparameters of one parameter group: read from its dict, checked, and given to the rule in its order.

    A value is read again only if it is another object than last time, or one that can change by itself: a schedule
    (called at every step) or a list.
    """
    cdef public dict options
    cdef public list slots            # names of the state slots, in the order of the rule
    cdef public dict initial          # state slot -> first value, where it is not 0
    cdef Around around
    cdef double x[MAX_HYPER]
    cdef double weight_decay
    cdef int decay
    cdef bint maximize
    cdef bint has_float
    cdef double carry
    cdef Py_ssize_t first, n_params
    cdef int n_watch
    cdef tuple keys
    cdef list seen
    cdef int kind[MAX_WATCH]
    cdef int target[MAX_WATCH]        # place in x; -1 weight_decay; -2 nowhere
    cdef double low[MAX_WATCH]
    cdef double high[MAX_WATCH]
    cdef bint open[MAX_WATCH]         # whether high itself is excluded
    cdef bint scheduled[MAX_WATCH]
    cdef str owner

    def __cinit__(self):
        self.n_watch = 0

    def holds(self, Py_ssize_t i):
        """Whether parameter i belongs to this group."""
        return self.first <= i < self.first + self.n_params

    cdef adopt(self, spec):
        """Take over what the optimizer class derived from the group's options (see `Spec` in optimizer.py)."""
        cdef const Rule *rule = find_rule(spec.rule)
        cdef list watch = []
        places = {name: i for i, name in enumerate((<bytes>rule.hyper).decode().split())}
        for key, limits in spec.limits.items():
            if key == "weight_decay":
                watch.append((key, NUMBER, -1, limits))
            elif key == "betas":
                watch.append((key, PAIR, places.pop("beta1"), limits))
                places.pop("beta2")
            else:
                watch.append((key, NUMBER, places.pop(key, -2), limits))
        for name in list(places):
            self.x[places.pop(name)] = spec.forms[name]
        for key in spec.watched:
            watch.append((key, OPTION, -2, (0, 0, False)))
        if len(watch) > MAX_WATCH or len(spec.slots) != rule.n_states:
            raise RuntimeError(f"the class of rule {spec.rule!r} does not fit its table entry")
        self.around.rule = rule
        self.around.short_rule = &SHORT_TABLE.rules[rule - TABLE.rules]
        self.decay, self.maximize, self.carry = spec.decay, spec.maximize, spec.carry
        self.slots, self.initial, self.owner = list(spec.slots), spec.initial, spec.owner
        self.keys = tuple(key for key, _, _, _ in watch)
        self.seen = [self.options[key] if kind == OPTION else UNSEEN for key, kind, _, _ in watch]
        self.n_watch = len(watch)
        for i, (_, kind, target, (low, high, is_open)) in enumerate(watch):
            self.kind[i], self.target[i], self.scheduled[i] = kind, target, False
            self.low[i], self.high[i], self.open[i] = low, high, is_open

    cdef bint refresh(self, int64_t steps) except -1:
        """Read what changed; True if an option did, so that the class has to be asked for another spec."""
        cdef PyObject *value
        cdef int i
        cdef bint changed = False
        for i in range(self.n_watch):
            value = PyDict_GetItemWithError(self.options, self.keys[i])
            if value == NULL:
                raise HyperparameterError(f"{self.owner}: the parameter group has lost its {self.keys[i]!r}")
            if <object>value is self.seen[i] and not self.scheduled[i]:
                continue
            if self.kind[i] == OPTION:
                changed = True
            else:
                self.read(i, <object>value, steps)
        return changed

    cdef read(self, int i, object value, int64_t steps):
        cdef bint scheduled = callable(value), fixed = True
        cdef object now = value(steps) if scheduled else value
        key = self.keys[i]
        if self.kind[i] == PAIR:
            if not isinstance(now, (tuple, list)) or len(now) != 2:
                raise HyperparameterError(f"{self.owner}: {key}={now!r} must be a pair of numbers in [0, 1)")
            for j in range(2):
                part = now[j]
                if callable(part):
                    scheduled = True
                    part = part(steps)
                self.x[self.target[i] + j] = self.number(i, f"{key}[{j}]", part)
            fixed = isinstance(value, tuple)
        else:
            number = self.number(i, key, now)
            if self.target[i] >= 0:
                self.x[self.target[i]] = number
            elif self.target[i] == -1:
                self.weight_decay = number
            fixed = not isinstance(value, np.ndarray)
        self.scheduled[i] = scheduled
        self.seen[i] = value if fixed else UNSEEN

    cdef double number(self, int i, str name, object value) except? -1:
        """`value` as a float within the limits, also after rounding to float32 where the group has such arrays."""
        cdef double x, r
        try:
            if isinstance(value, (str, bytes, bytearray, bool, np.bool_)):
                raise TypeError
            x = float(value)
        except (TypeError, ValueError, OverflowError):
            raise HyperparameterError(f"{self.owner}: {name}={value!r} is not a number") from None
        r = <double><float>x if self.has_float else x
        if not (isfinite(x) and isfinite(r) and self.low[i] <= x <= self.high[i]) or (
                self.open[i] and (x == self.high[i] or r == self.high[i])):
            raise HyperparameterError(self.complaint(i, name, x, r))
        return x

    cdef str complaint(self, int i, str name, double x, double r):
        low, high = f"{self.low[i]:g}", f"{self.high[i]:g}"
        if self.low[i] == self.high[i]:
            accepted = f"{low}: this convention does not have it for this optimizer"
        elif self.high[i] == float("inf"):
            accepted = f"a finite number, at least {low}"
        else:
            accepted = f"in [{low}, {high}{')' if self.open[i] else ']'}"
        rounded = f" ({r!r} in float32)" if x != r and x == x else ""
        return f"{self.owner}: {name}={x!r}{rounded} must be {accepted}"

    cdef prepare(self):
        """What the group does around the rule at this step."""
        cdef Around *a = &self.around
        cdef double wd = self.weight_decay
        a.prologue = NEGATED if self.maximize else PLAIN
        if wd != 0 and self.decay == DECAY_L2:
            a.prologue = COUPLED
            scale(&a.pre, 0, -1.0 if self.maximize else 1.0)
            scale(&a.pre, 1, wd)
        a.shrink = wd != 0 and self.decay == DECAY_LAST
        if a.shrink:
            scale(&a.post, 0, 1.0 - self.x[0] * wd)

    cdef compute(self, Slot *slot, int64_t t, double carry):
        """The scalars of step t, in double, then rounded once."""
        cdef int i
        cdef double wd = self.weight_decay
        slot.t = t
        slot.carry = carry
        slot.h.d[0] = (1.0 - self.x[0] * wd if self.decay == DECAY_FIRST
                       else 1.0 - wd if self.decay == DECAY_PAPER else 1.0)
        self.around.rule.scalars(self.x, <double>t, &slot.carry, slot.h.d)
        for i in range(self.around.rule.n_scalars):
            slot.h.f[i] = <float>slot.h.d[i]
            if not isfinite(slot.h.d[i]) or (self.has_float and not isfinite(slot.h.f[i])):
                raise HyperparameterError(
                    f"{self.owner}: the scalars of step {t} are not finite; hyperparameters: "
                    + ", ".join(f"{k}={self.options[k]!r}" for k in self.keys))


# --- The plan --------------------------------------------------------------------------------------------------------

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
    cdef public bint copy_grads
    cdef public object n_threads
    cdef public str nonfinite
    cdef public object state_factory
    cdef readonly int64_t steps
    cdef readonly int64_t skipped
    cdef object derive
    cdef list held                    # gradients that were converted or copied for the step at hand
    cdef bint busy
    cdef bint foreign                 # whether some state came from a state_factory
    cdef Param *params
    cdef Work *work
    cdef Slot *slots
    cdef Py_ssize_t n_slots, room_for_slots
    cdef Interval *intervals          # the memory of all parameters and states, sorted
    cdef Py_ssize_t n_intervals
    cdef char *gap_low
    cdef char *gap_high

    def __cinit__(self):
        self.groups, self.options, self.held = [], [], []
        self.arrays, self.names, self.states = [], [], []

    def __init__(self, derive, *, n_threads=None, nonfinite="propagate", copy_grads=False, state_factory=None):
        if n_threads is not None and (isinstance(n_threads, bool) or not isinstance(n_threads, (int, np.integer))
                                      or n_threads < 1):
            raise HyperparameterError(f"n_threads={n_threads!r} must be None (automatic) or an int >= 1")
        if nonfinite not in ("propagate", "raise", "skip"):
            raise HyperparameterError(f"nonfinite={nonfinite!r} must be 'propagate', 'raise' or 'skip'")
        if state_factory is not None and not callable(state_factory):
            raise HyperparameterError(f"state_factory={state_factory!r} must be None or callable(name, shape, dtype)")
        self.derive = derive
        self.n_threads = None if n_threads is None else int(n_threads)
        self.nonfinite, self.copy_grads, self.state_factory = nonfinite, bool(copy_grads), state_factory

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.params != NULL:
            for i in range(len(self.arrays)):
                PyMem_Free(self.params[i].dims)
        PyMem_Free(self.params)
        PyMem_Free(self.work)
        PyMem_Free(self.slots)
        PyMem_Free(self.intervals)

    # --- Building

    def label(self, Py_ssize_t i):
        """How messages call parameter i."""
        return f"parameter {self.names[i]!r}" if self.names[i] is not None else f"parameter {i}"

    def add_group(self, dict options, list params, list names, list states=None):
        """Add parameters with their hyperparameters; nothing is added if any of it is wrong.

        `states` gives, per parameter, slot -> array: state that the caller owns, used instead of allocating.
        """
        cdef Group group
        cdef Py_ssize_t old = len(self.arrays), i, found
        self.enter()
        try:
            labels = [f"parameter {n!r}" if n is not None else f"parameter {old + i}" for i, n in enumerate(names)]
            arrays = [as_parameter(p, label) for p, label in zip(params, labels)]
            group = self.new_group(options, any(a.dtype == np.float32 for a in arrays))
            group.first, group.n_params = old, len(arrays)
            fresh = [{} for _ in arrays] if states is None else [
                given_state(group.slots, state, array, label) for state, array, label in zip(states, arrays, labels)]
            PyMem_Free(self.sort_memory(self.arrays + arrays, self.names + names, self.states + fresh, &found))
            if states is None:
                self.allocate(group, arrays, fresh)
                if self.state_factory is not None:
                    PyMem_Free(self.sort_memory(self.arrays + arrays, self.names + names, self.states + fresh, &found))
            self.reserve(old + len(arrays))
            for i, array in enumerate(arrays):
                self.register(&self.params[old + i], array)
                self.params[old + i].carry = group.carry
                self.arrays.append(array)
            self.names += names
            self.states += fresh
            self.groups.append(group)
            self.options.append(options)
            self.point(group)
            if states is None:
                self.fill(group, group.slots)
            self.index_memory(self.states)
        finally:
            self.busy = False

    cdef reserve(self, Py_ssize_t n):
        """Memory for n parameters."""
        cdef void *block
        block = PyMem_Realloc(self.params, max(1, n) * sizeof(Param))
        if block == NULL:
            raise MemoryError()
        self.params = <Param *>block
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
        memcpy(q.dims, cnp.PyArray_DIMS(a), a.ndim * sizeof(cnp.npy_intp))
        q.array = <PyObject *>a
        q.p = <char *>cnp.PyArray_DATA(a)
        q.n = cnp.PyArray_SIZE(a)
        q.type = cnp.PyArray_TYPE(a)
        q.n_bytes = cnp.PyArray_NBYTES(a)
        q.blocks = (q.n_bytes + BLOCK - 1) // BLOCK
        q.nd = a.ndim
        q.order = cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(a) else cnp.NPY_ARRAY_F_CONTIGUOUS

    cdef allocate(self, Group group, list arrays, list states):
        """State arrays for the slots that the rule needs and the parameters do not have yet, in `states`.

        Each slot is one block of memory for the whole group, every array on a 64-byte boundary; not touched here.
        """
        for name in group.slots:
            missing = [i for i, state in enumerate(states) if name not in state]
            if self.state_factory is not None:
                self.foreign = True
                for i in missing:
                    states[i][name] = self.made(name, arrays[i], group.first + i)
                continue
            sizes = [-(-arrays[i].nbytes // BLOCK) * BLOCK for i in missing]
            arena = np.empty(sum(sizes) + BLOCK, np.uint8)
            start = -arena.ctypes.data % BLOCK
            for i, size in zip(missing, sizes):
                array = arrays[i]
                flat = arena[start:start + array.nbytes].view(array.dtype)
                states[i][name] = flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")
                start += size

    cdef made(self, str name, array, Py_ssize_t i):
        label = f"state {name!r} of parameter {i}, from state_factory,"
        state = as_parameter(self.state_factory(name, array.shape, array.dtype), label)
        check_same(state, array, label)
        return state

    cdef point(self, Group group):
        """Give the rule's pointers to its state slots."""
        cdef Py_ssize_t i, k
        cdef cnp.ndarray state
        for i in range(group.first, group.first + group.n_params):
            for k, name in enumerate(group.slots):
                state = self.states[i][name]
                self.params[i].s[k] = <char *>cnp.PyArray_DATA(state)

    cdef fill(self, Group group, list names):
        """Write the first values of state slots, in the partition that later walks them."""
        cdef Around around
        cdef Slot value
        cdef Job job
        cdef Param *copy = <Param *>PyMem_Malloc(max(1, group.n_params) * sizeof(Param))
        cdef Work *work = <Work *>PyMem_Malloc(max(1, group.n_params) * sizeof(Work))
        cdef Py_ssize_t i, k
        try:
            if copy == NULL or work == NULL:
                raise MemoryError()
            memset(&around, 0, sizeof(Around))
            around.rule = around.short_rule = FILL
            for name in names:
                k = group.slots.index(name)
                scale(&value.h, 0, group.initial.get(name, 0.0))
                job.blocks = 0
                for i in range(group.n_params):
                    copy[i] = self.params[group.first + i]
                    copy[i].p = copy[i].s[k]
                    work[i].q, work[i].around, work[i].g, work[i].slot = &copy[i], &around, NULL, 0
                    work[i].first_block = job.blocks
                    job.blocks += copy[i].blocks
                job.work, job.n_work, job.slots = work, group.n_params, &value
                job.look, job.found = False, 0
                run(&job, self.threads(job.blocks))
        finally:
            PyMem_Free(copy)
            PyMem_Free(work)

    # --- Memory: who overlaps whom

    cdef Interval *sort_memory(self, list arrays, list names, list states, Py_ssize_t *n) except NULL:
        """The sorted intervals of parameters and states; raises if two of them share memory."""
        cdef Py_ssize_t i, size = len(arrays)
        cdef Interval *found
        cdef dict state
        for state in states:
            size += len(state)
        found = <Interval *>PyMem_Malloc(max(1, size) * sizeof(Interval))
        if found == NULL:
            raise MemoryError()
        n[0] = 0
        for i in range(len(arrays)):
            note(found, n, arrays[i], i, -1)
            if i < len(states):
                for slot, array in enumerate((<dict>states[i]).values()):
                    note(found, n, array, i, slot)
        qsort(found, n[0], sizeof(Interval), by_address)
        for i in range(1, n[0]):
            if found[i - 1].high > found[i].low:
                message = clash(found[i - 1], found[i], names, states)
                PyMem_Free(found)
                raise OverlapError(message)
        return found

    cdef index_memory(self, list states):
        """Keep the intervals for the gradients to be looked up in."""
        cdef Py_ssize_t i, n = 0
        cdef Interval *found = self.sort_memory(self.arrays, self.names, states, &n)
        PyMem_Free(self.intervals)
        self.intervals, self.n_intervals = found, n
        self.gap_low = self.gap_high = NULL
        for i in range(len(self.arrays)):
            self.params[i].gap_low = self.params[i].gap_high = NULL

    cdef bint is_free(self, Param *q, char *low, char *high) noexcept:
        """Whether [low, high) meets no parameter and no state. Gradients come in runs: try the last one's gap first."""
        cdef Py_ssize_t a = 0, b = self.n_intervals, middle
        if not (self.gap_low <= low and high <= self.gap_high):
            while a < b:                      # the first interval that ends above low
                middle = (a + b) // 2
                if self.intervals[middle].high <= low:
                    a = middle + 1
                else:
                    b = middle
            self.gap_low = self.intervals[a - 1].high if a > 0 else NULL
            self.gap_high = self.intervals[a].low if a < self.n_intervals else <char *><uintptr_t>-1
            if high > self.gap_high:
                return False
        q.gap_low, q.gap_high = self.gap_low, self.gap_high
        return True

    # --- Stepping

    cdef enter(self):
        if self.busy:
            raise ConcurrentStepError("this optimizer is in the middle of a step (another thread, or a schedule that "
                                      "calls back); one at a time")
        self.busy = True

    cdef int threads(self, Py_ssize_t blocks):
        cdef Py_ssize_t n
        if blocks < serial_blocks or blocks < 2 or not fo_have_openmp() or fo_in_forked_child():
            return 1
        n = automatic_threads() if self.n_threads is None else <Py_ssize_t>self.n_threads
        return <int>min(n, blocks, 4096)

    def step(self, grads):
        """One step of every parameter that has a gradient. Raises before anything was written, or not at all."""
        cdef fo_fenv_t saved
        self.enter()
        saved = fo_fenv_enter()
        try:
            self.take_step(grads)
        finally:
            fo_fenv_leave(saved)
            self.busy = False
            if self.held:
                self.held = []

    cdef take_step(self, grads):
        cdef Py_ssize_t n = len(self.arrays), i, n_work = 0, blocks = 0, slot = -1
        cdef int64_t t                # of the parameter before, and what it carries: most share their scalars
        cdef double carry = 0
        cdef Job job
        cdef Group group
        cdef Param *params
        cdef Param *q
        cdef Work *work
        cdef Work *w
        cdef PyObject *g
        cdef int n_threads
        if type(grads) is not list:
            grads = self.as_list(grads)
        if len(<list>grads) != n:
            raise GradientError(f"{len(grads)} gradients for {n} parameters; give one for each, None to skip one")
        self.refresh_groups()
        self.n_slots = 0
        params, work = self.params, self.work
        # From here to the step itself no Python code runs but in `convert`: borrowed references stay good.
        for group in self.groups:
            group.prepare()
            t = -1
            for i in range(group.first, group.first + group.n_params):
                q = &params[i]
                g = PyList_GET_ITEM(<PyObject *>grads, i)
                if not (q.p == fo_array_data(q.array) and fo_array_fits(
                        q.array, q.type, q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)):
                    self.complain_parameter(i)
                if g == <PyObject *>None:
                    continue
                if not (cnp.PyArray_CheckExact(<object>g) and fo_array_fits(
                        g, q.type, q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED)):
                    if not self.held:
                        grads = list(grads)
                        self.held.append(grads)
                    g = self.convert(i, <object>g)
                w = &work[n_work]
                w.g = fo_array_data(g)
                if not (q.gap_low <= w.g and w.g + q.n_bytes <= q.gap_high) and q.n > 0:
                    if not self.is_free(q, w.g, w.g + q.n_bytes):
                        self.complain_overlap(i, <object>g)
                if q.t != t or q.carry != carry:
                    slot = self.new_slot(group, q)
                    t, carry = q.t, q.carry
                w.q, w.around, w.slot, w.first_block = q, &group.around, slot, blocks
                blocks += q.blocks
                n_work += 1
        if self.foreign:
            self.check_states()
        job.work, job.n_work, job.slots, job.blocks = work, n_work, self.slots, blocks
        job.look, job.found = self.nonfinite != "propagate", 0
        n_threads = self.threads(job.blocks)
        if job.blocks < gil_blocks:
            run(&job, n_threads)
        else:
            if not self.held:
                self.held.append(list(grads))      # another thread may drop the caller's
            with nogil:
                run(&job, n_threads)
        if job.found:
            if self.nonfinite == "raise":
                self.complain_nonfinite(n_work)
            self.skipped += 1
            return
        for i in range(n_work):
            w = &self.work[i]
            w.q.t += 1
            w.q.carry = self.slots[w.slot].carry
        self.steps += 1

    cdef refresh_groups(self):
        """Read every group's hyperparameters. Where an option was edited, or a dict replaced, take up another rule.

        All that can fail happens in the first loop; the second puts the new groups in place.
        """
        cdef Group group, fresh
        cdef Py_ssize_t k
        cdef list edited = []
        if len(self.options) != len(self.groups):
            raise HyperparameterError("param_groups changed its length; use add_param_group()")
        for k in range(len(self.groups)):
            group = self.groups[k]
            if group.options is self.options[k] and not group.refresh(self.steps):
                continue
            fresh = self.new_group(self.options[k], group.has_float)
            fresh.first, fresh.n_params = group.first, group.n_params
            edited.append((k, fresh, self.new_states(fresh)))
        if edited:
            self.take_up(edited)

    cdef take_up(self, list edited):
        """Put edited groups in place: (place, group, states with the slots that the new rule needs)."""
        cdef Group fresh
        states = list(self.states)
        added = []
        for k, fresh, part in edited:
            before = set(states[fresh.first]) if fresh.n_params else set()
            added.append([name for name in fresh.slots if name not in before])
            states[fresh.first:fresh.first + fresh.n_params] = part
        self.index_memory(states)
        self.states = states
        for (k, fresh, _), names in zip(edited, added):
            self.groups[k] = fresh
            self.point(fresh)
            self.fill(fresh, names)

    cdef list new_states(self, Group group):
        """Copies of the states of a group's parameters, with memory for what its rule needs beside."""
        cdef list part = [dict(state) for state in self.states[group.first:group.first + group.n_params]]
        self.allocate(group, self.arrays[group.first:group.first + group.n_params], part)
        return part

    cdef Group new_group(self, options, bint has_float):
        """A group that reads these options; raises what a step with them would raise."""
        cdef Group group = Group()
        if not isinstance(options, dict):
            raise HyperparameterError(f"a parameter group is a dict, not a {type(options).__name__}")
        group.options, group.has_float = options, has_float
        group.adopt(self.derive(options))
        group.refresh(self.steps)
        return group

    def check_options(self, options, bint has_float):
        """Raise what a step with these options would raise; else the state slots it needs. Changes nothing."""
        return self.new_group(options, has_float).slots

    def restart(self):
        """State and counts as before the first step."""
        cdef Group group
        cdef Py_ssize_t i
        self.enter()
        try:
            for group in self.groups:
                self.fill(group, group.slots)
                for i in range(group.first, group.first + group.n_params):
                    self.params[i].t, self.params[i].carry = 0, group.carry
            self.set_steps(0, 0)
        finally:
            self.busy = False

    cdef Py_ssize_t new_slot(self, Group group, Param *q) except -1:
        """A place with the scalars that this parameter needs for its next step."""
        cdef void *block
        if self.n_slots == self.room_for_slots:
            block = PyMem_Realloc(self.slots, (2 * self.room_for_slots + 1) * sizeof(Slot))
            if block == NULL:
                raise MemoryError()
            self.slots = <Slot *>block
            self.room_for_slots = 2 * self.room_for_slots + 1
        group.compute(&self.slots[self.n_slots], q.t + 1, q.carry)
        self.n_slots += 1
        return self.n_slots - 1

    cdef list as_list(self, grads):
        if isinstance(grads, Mapping):
            if not self.named:
                raise GradientError("gradients in a dict need parameters in a dict")
            if grads.keys() != set(self.names):
                missing = [name for name in self.names if name not in grads]
                unknown = [name for name in grads if name not in set(self.names)]
                raise GradientError("gradients must have the names of the parameters; "
                                    f"missing: {missing!r}, unknown: {unknown!r}; None skips one")
            return [grads[name] for name in self.names]
        if isinstance(grads, (tuple, list)):
            return list(grads)
        if len(self.arrays) == 1:
            return [grads]
        if isinstance(grads, np.ndarray) or not hasattr(grads, "__iter__"):
            raise GradientError(f"gradients are a list, one for each of {len(self.arrays)} parameters, "
                                f"not {type(grads).__name__}")
        return list(grads)

    cdef PyObject *convert(self, Py_ssize_t i, object g) except NULL:
        """A gradient that is no plain, fitting array: seen as one, copied if that was asked for, or refused."""
        cdef Param *q = &self.params[i]
        label = f"gradient of {self.label(i)}"
        param = self.arrays[i]
        array = as_array(g, label)
        if array.dtype.kind != "f":
            raise DTypeError(f"{label} has dtype {array.dtype}; {param.dtype} is needed")
        if array.shape != param.shape:
            raise ShapeError(f"{label} has shape {array.shape}; the parameter has {param.shape}")
        if not fo_array_fits(<PyObject *>array, q.type, q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED):
            if not self.copy_grads:
                if array.dtype != param.dtype:
                    raise DTypeError(f"{label} has dtype {array.dtype.str}; {param.dtype.str} is needed, "
                                     "or copy_grads=True")
                raise LayoutError(f"{label} has strides {array.strides}{'' if array.flags.aligned else ', misaligned'}; "
                                  f"the parameter has {param.strides}: use the same memory order, or copy_grads=True")
            order = "C" if q.order == cnp.NPY_ARRAY_C_CONTIGUOUS else "F"
            array = np.array(array, dtype=param.dtype, order=order, copy=True, subok=False)
        self.held.append(array)
        return <PyObject *>array

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

    cdef complain_overlap(self, Py_ssize_t i, g):
        for k, array in enumerate(self.arrays):
            if np.may_share_memory(g, array):
                same = "is" if k == i and g.ctypes.data == array.ctypes.data else "overlaps"
                raise OverlapError(f"gradient of {self.label(i)} {same} {self.label(k)}; gradients need other memory")
        raise OverlapError(f"gradient of {self.label(i)} overlaps the state of the optimizer; "
                           "gradients need other memory")

    cdef complain_nonfinite(self, Py_ssize_t n_work):
        cdef Py_ssize_t i
        for i in range(n_work):
            if any_nonfinite(&self.work[i], 1, self.work[i].first_block, self.work[i].first_block + self.work[i].q.blocks):
                raise NonFiniteError(f"gradient of {self.label(self.work[i].q - self.params)} holds a NaN or an "
                                     "infinity; nothing was written")

    cpdef check_states(self):
        """Raise if a state array is not what it was: memory from a state_factory is the user's too."""
        cdef Param *q
        cdef Group group
        cdef Py_ssize_t i, k
        cdef cnp.ndarray state
        for group in self.groups:
            for i in range(group.first, group.first + group.n_params):
                q = &self.params[i]
                for k, name in enumerate(group.slots):
                    state = self.states[i][name]
                    if <char *>cnp.PyArray_DATA(state) != q.s[k] or not fo_array_fits(
                            <PyObject *>state, q.type, q.nd, q.dims,
                            q.order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE):
                        raise LayoutError(f"state {name!r} of {self.label(i)} was changed after it was made: its "
                                          "memory, shape, type or writability")

    # --- What the optimizer reads and writes between steps

    def lookahead(self, list out):
        """Write parameter + momentum * velocity into `out`, one array for each parameter."""
        cdef Group group
        cdef Py_ssize_t i, n = len(self.arrays)
        cdef Job job
        cdef Around around
        cdef Param *copy = <Param *>PyMem_Malloc(max(1, n) * sizeof(Param))
        cdef Work *work = <Work *>PyMem_Malloc(max(1, n) * sizeof(Work))
        cdef Slot *mu = <Slot *>PyMem_Malloc(max(1, len(self.groups)) * sizeof(Slot))
        cdef cnp.ndarray target
        self.enter()
        try:
            if copy == NULL or work == NULL or mu == NULL:
                raise MemoryError()
            memset(&around, 0, sizeof(Around))
            around.rule = around.short_rule = LOOKAHEAD
            job.blocks = 0
            self.refresh_groups()
            for k, group in enumerate(self.groups):
                scale(&mu[k].h, 0, group.x[1])
                for i in range(group.first, group.first + group.n_params):
                    if not (self.params[i].p == fo_array_data(self.params[i].array) and fo_array_fits(
                            self.params[i].array, self.params[i].type, self.params[i].nd, self.params[i].dims,
                            self.params[i].order | cnp.NPY_ARRAY_ALIGNED)):
                        self.complain_parameter(i)
                    target = out[i]
                    copy[i] = self.params[i]
                    copy[i].p = <char *>cnp.PyArray_DATA(target)
                    work[i].q, work[i].around, work[i].g, work[i].slot = &copy[i], &around, self.params[i].p, k
                    work[i].first_block = job.blocks
                    job.blocks += copy[i].blocks
            job.work, job.n_work, job.slots, job.look, job.found = work, n, mu, False, 0
            run(&job, self.threads(job.blocks))
        finally:
            self.busy = False
            PyMem_Free(copy)
            PyMem_Free(work)
            PyMem_Free(mu)

    def refresh(self):
        """Read every group's hyperparameters as the next step will; raises what the step would raise."""
        self.enter()
        try:
            self.refresh_groups()
        finally:
            self.busy = False

    def count(self, Py_ssize_t i):
        """Steps that parameter i has taken, and the number it carries from step to step."""
        return self.params[i].t, self.params[i].carry

    def set_count(self, Py_ssize_t i, int64_t t, double carry):
        self.params[i].t, self.params[i].carry = t, carry

    def set_steps(self, int64_t steps, int64_t skipped):
        self.steps, self.skipped = steps, skipped

    def scalars(self, Py_ssize_t i):
        """The scalars h that the next step would give parameter i, in double. For tests."""
        cdef Slot slot
        for group in self.groups:
            if (<Group>group).first <= i < (<Group>group).first + (<Group>group).n_params:
                (<Group>group).refresh(self.steps)
                (<Group>group).compute(&slot, self.params[i].t + 1, self.params[i].carry)
                return [slot.h.d[k] for k in range((<Group>group).around.rule.n_scalars)]
        raise IndexError(i)


# --- Arrays ----------------------------------------------------------------------------------------------------------

cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef char *x = (<const Interval *>a).low
    cdef char *y = (<const Interval *>b).low
    return (x > y) - (x < y)


cdef note(Interval *found, Py_ssize_t *n, cnp.ndarray array, Py_ssize_t param, int slot):
    """Add the memory of an array, if it has any elements."""
    if cnp.PyArray_SIZE(array):
        found[n[0]].low = <char *>cnp.PyArray_DATA(array)
        found[n[0]].high = found[n[0]].low + cnp.PyArray_NBYTES(array)
        found[n[0]].param, found[n[0]].slot = param, slot
        n[0] += 1


cdef str clash(Interval a, Interval b, list names, list states):
    """What to say of two intervals that share memory."""
    same = a.low == b.low and a.high == b.high
    if (a.param, a.slot) > (b.param, b.slot):
        a, b = b, a
    called = []
    for owner in (a, b):
        name = names[owner.param]
        label = f"parameter {name!r}" if name is not None else f"parameter {owner.param}"
        called.append(f"state {list(states[owner.param])[owner.slot]!r} of {label}" if owner.slot >= 0 else label)
    return (f"{called[1]} {'is the same memory as' if same else 'overlaps'} {called[0]}; "
            "every parameter and state needs memory of its own")


cdef as_array(obj, str label):
    """`obj` as a NumPy array over the same memory: an array, else the buffer protocol, else __dlpack__."""
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise DTypeError(f"{label} is a masked array; masks are not supported: give its .data")
        return np.asarray(obj)
    try:
        return np.asarray(memoryview(obj))
    except (TypeError, ValueError):
        pass
    if hasattr(obj, "__dlpack__"):
        if getattr(obj, "requires_grad", False):
            raise DTypeError(f"{label} is a tensor that requires gradients; use fastopt.torch, or give its .detach()")
        try:
            return np.from_dlpack(obj)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise DTypeError(f"{label}, a {type(obj).__name__}, cannot be used through __dlpack__: {error}") from error
    raise DTypeError(f"{label} is a {type(obj).__name__}; an array of float32 or float64 is needed (NumPy, or anything "
                     "with the buffer protocol or __dlpack__)")


cdef as_parameter(obj, str label):
    """`obj` as an array that a rule can write to, or the error that says why not."""
    cdef cnp.ndarray a
    if cnp.PyArray_CheckExact(obj):
        a = obj
        if (cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) and cnp.PyArray_ISNOTSWAPPED(a)
                and cnp.PyArray_ISALIGNED(a) and cnp.PyArray_ISWRITEABLE(a)
                and (cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a))):
            return a
    array = as_array(obj, label)
    if array.dtype not in (np.float32, np.float64):
        raise DTypeError(f"{label} has dtype {array.dtype.str}; float32 or float64 in native byte order is needed")
    if not array.flags.aligned:
        raise LayoutError(f"{label} is misaligned: its data must start at a multiple of {array.itemsize} bytes")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise LayoutError(f"{label} has shape {array.shape} and strides {array.strides}; it must be contiguous, in C or "
                          "Fortran order")
    if not array.flags.writeable:
        raise ReadOnlyError(f"{label} is read-only; a step writes to it")
    return array


cdef dict given_state(list slots, state, like, str label):
    """The state slots that a rule needs, as given by the caller, checked like parameters."""
    checked = {}
    for name in slots:
        if state.get(name) is None:
            raise ParameterError(f"{label} needs the state {name!r} with these options")
        checked[name] = as_parameter(state[name], f"state {name!r} of {label}")
        check_same(checked[name], like, f"state {name!r} of {label}")
    return checked


cdef check_same(array, like, str label):
    cdef cnp.ndarray a = array, b = like
    if (cnp.PyArray_SAMESHAPE(a, b) and cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b)
            and cnp.PyArray_IS_C_CONTIGUOUS(a) == cnp.PyArray_IS_C_CONTIGUOUS(b)
            and cnp.PyArray_IS_F_CONTIGUOUS(a) == cnp.PyArray_IS_F_CONTIGUOUS(b)):
        return
    if array.shape != like.shape:
        raise ShapeError(f"{label} has shape {array.shape}; {like.shape} is needed")
    if array.dtype != like.dtype:
        raise DTypeError(f"{label} has dtype {array.dtype}; {like.dtype} is needed")
    if (array.flags.c_contiguous, array.flags.f_contiguous) != (like.flags.c_contiguous, like.flags.f_contiguous):
        raise LayoutError(f"{label} has strides {array.strides}; {like.strides} is needed, as its parameter")
