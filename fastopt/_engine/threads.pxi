# How many threads a step gets, and why.

# A step that reads and writes fewer 64-byte blocks than this stays on the calling thread: entering a region costs more.
cdef Py_ssize_t serial_blocks = 72_000
# Below this many of parameters it keeps the GIL: up to some 50 µs, and others ask for it only every 5 ms. Giving it up
# costs a reference to every gradient beside, or another thread could drop what the caller's list holds.
cdef Py_ssize_t gil_blocks = 8192
cdef int quota_cpus = -1
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")   # what asks OpenMP to bind threads


def set_serial_blocks(Py_ssize_t blocks):
    """Set the serial threshold, in 64-byte blocks read and written; returns the old one. For tests and benchmarks."""
    global serial_blocks
    old, serial_blocks = serial_blocks, blocks
    return old


cdef int read_quota():
    """CPUs that the control group may use, rounded up; 0 without a limit. Read once: it is a file."""
    global quota_cpus
    if quota_cpus < 0:
        quota_cpus = cpu_quota() or 0
    return quota_cpus


cdef int automatic_threads():
    cdef int n = fo_omp_max_threads(), quota
    if getenv(b"OMP_NUM_THREADS") != NULL:     # os.environ would ask for memory in the middle of a step
        return n
    quota = read_quota()
    n = min(n, fo_omp_bound_cpus() or fo_affinity_cpus())
    return min(n, quota) if quota else n


def openmp_library():
    """The file of the OpenMP library that steps run on; empty without one, and where the system does not tell."""
    cdef const char *path = fo_omp_library()
    return os.fsdecode(path) if path != NULL else ""


def info():
    """What the engine found and chose, as plain data (see ``fastopt info``)."""
    n, omp, bound, quota = automatic_threads(), fo_omp_max_threads(), fo_omp_bound_cpus(), read_quota()
    if not fo_have_openmp():
        reason = "built without OpenMP"
    elif fo_in_forked_child():
        n, reason = 1, "this process is a fork: OpenMP cannot be used here"
    elif "OMP_NUM_THREADS" in os.environ:
        reason = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, OpenMP now grants {omp}"
    else:
        limits = {"OpenMP's limit": omp}
        if bound:
            asked = ", ".join(f"{name}={os.environ[name]}" for name in BINDING if name in os.environ)
            limits[f"CPUs that OpenMP binds its threads to ({asked or 'as its library was told'})"] = bound
        else:
            limits["CPUs this process may use"] = fo_affinity_cpus()
        if quota:
            limits["CPU quota of the control group"] = quota
        reason = "the least of: " + ", ".join(f"{name} {value}" for name, value in limits.items())
    return {
        "isa": isa,
        "isa_available": available_levels(),
        "isa_built": [level for level in LEVELS if is_built(level)],
        "isa_forced": bool(os.environ.get("FASTOPT_ISA")),
        "cpu_level": (<bytes>fo_cpu_level()).decode(),
        "openmp": bool(fo_have_openmp()),
        "openmp_version": fo_omp_version(),
        "openmp_library": os.path.realpath(openmp_library()) if openmp_library() else "",
        "threads": n,
        "threads_reason": reason,
        "serial_below_bytes": serial_blocks * 64,
        "compiler": (<bytes>FO_COMPILER).decode(),
        "compiler_flags": (<bytes>FO_FLAGS).decode(),
        "cython": (<bytes>FO_CYTHON).decode(),
        "numpy_at_build": (<bytes>FO_NUMPY).decode(),
    }
