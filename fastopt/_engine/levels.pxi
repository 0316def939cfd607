# Which instruction-set level's rules are used.

LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "generic")
# On x86-64-v4 short arrays are left to a build with vectors half as wide: fewer of their elements are in the remainder
# that no vector fills. The bits are the same.
NARROW = {"x86-64-v4": "x86-64-v4-narrow"}
cdef const Table *TABLE = NULL
cdef const Table *SHORT_TABLE = NULL
cdef const Rule *UNSCALE = NULL
cdef const Rule *RESCALE = NULL
cdef const Rule *CLAMP = NULL
cdef const Rule *L2 = NULL
cdef const Rule *NEGATE = NULL
cdef const Rule *SHRINK = NULL
cdef const Rule *FLUSH = NULL
cdef const Rule *LERP = NULL
cdef const Rule *LERP_BACK = NULL
cdef const Rule *BLEND = NULL
cdef const Rule *FILL = NULL
cdef const Rule *LOOKAHEAD = NULL
cdef const Rule *EXCHANGE = NULL
cdef const Rule *NONFINITE = NULL
cdef const Sum *SQUARES = NULL
cdef const Sum *MAXIMUM = NULL
cdef const Format *BFLOAT16 = NULL
cdef const Format *BFLOAT16_STOCHASTIC = NULL
cdef const Format *FLOAT16 = NULL
cdef const Format *SPLIT = NULL
cdef const Format *E4M3 = NULL
cdef const Format *UE5M3 = NULL
cdef str isa = ""


cdef str kernels_of(str level):
    """The name of the kernel module of a level."""
    return "fastopt.kernels." + level.replace("-", "_")


def is_built(str level):
    """Whether a level was built. Its module is not imported: on a CPU without the level, that may end the process."""
    from importlib.util import find_spec

    return find_spec(kernels_of(level)) is not None


def _kernels(str level):
    """The kernel module of a level that the CPU has, or None if it was not built."""
    name = kernels_of(level)
    try:
        return __import__(name, fromlist=["__table__"])
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


cdef bint is_available(str level):
    """Whether a level is built and this machine can run it."""
    return level in LEVELS and fo_cpu_has(level.encode()) and _kernels(level) is not None


def available_levels():
    """The levels that are built and that this machine can run, best first."""
    return [level for level in LEVELS if is_available(level)]


def use_level(str level):
    """Take the rules of one instruction-set level for every plan made from now on.

    Meant for tests and benchmarks; users set ``FASTOPT_ISA`` before the import.
    """
    global TABLE, SHORT_TABLE, UNSCALE, RESCALE, CLAMP, L2, NEGATE, SHRINK, FLUSH, LERP, LERP_BACK, BLEND
    global FILL, LOOKAHEAD, EXCHANGE, NONFINITE, SQUARES, MAXIMUM, isa
    global BFLOAT16, BFLOAT16_STOCHASTIC, FLOAT16, SPLIT, E4M3, UE5M3
    if not is_available(level):
        raise ImportError(f"FASTOPT_ISA={level!r} is not possible here; possible: {', '.join(available_levels())}")
    TABLE = table_of(_kernels(level))
    SHORT_TABLE = table_of(_kernels(NARROW.get(level, level)) or _kernels(level))
    RESCALE, CLAMP = find_stage("rescale"), find_stage("clamp")
    UNSCALE, L2, NEGATE, SHRINK = find_stage("unscale"), find_stage("l2"), find_stage("negate"), find_stage("shrink")
    FLUSH = find_stage("flush")
    LERP, LERP_BACK, BLEND = find_stage("lerp"), find_stage("lerp_back"), find_stage("blend")
    FILL, LOOKAHEAD, NONFINITE = find_rule("fill"), find_rule("lookahead"), find_rule("nonfinite")
    EXCHANGE = find_rule("exchange")
    SQUARES, MAXIMUM = find_sum("squares"), find_sum("maximum")
    BFLOAT16, BFLOAT16_STOCHASTIC = find_format("bfloat16"), find_format("bfloat16_stochastic")
    FLOAT16, SPLIT = find_format("float16"), find_format("split")
    E4M3, UE5M3 = find_format("e4m3"), find_format("ue5m3")
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
    raise DeclarationError(f"there is no rule {name!r} in kernels/rules.pxi; there are: {', '.join(rules())}")


cdef const Rule *find_stage(str name) except NULL:
    cdef bytes key = name.encode()
    for i in range(TABLE.n_stages):
        if strcmp(TABLE.stages[i].name, key) == 0:
            return &TABLE.stages[i]
    raise ImportError(f"there is no stage {name!r} in kernels/stages.pxi")


cdef const Sum *find_sum(str name) except NULL:
    cdef bytes key = name.encode()
    for i in range(TABLE.n_sums):
        if strcmp(TABLE.sums[i].name, key) == 0:
            return &TABLE.sums[i]
    raise ImportError(f"there is no sum {name!r} in kernels/sums.pxi")


cdef const Format *find_format(str name) except NULL:
    cdef bytes key = name.encode()
    for i in range(TABLE.n_formats):
        if strcmp(TABLE.formats[i].name, key) == 0:
            return &TABLE.formats[i]
    raise ImportError(f"there is no format {name!r} in kernels/formats.pxi")


def formats():
    """Every format: name -> (bytes of an element, bytes beside it, beside how many elements; 0: each). For tests."""
    return {
        (<bytes>TABLE.formats[i].name).decode(): (
            TABLE.formats[i].size, TABLE.formats[i].beside, TABLE.formats[i].block)
        for i in range(TABLE.n_formats)
    }


def sums():
    """The name of every sum. For tests."""
    return [(<bytes>TABLE.sums[i].name).decode() for i in range(TABLE.n_sums)]


def stages():
    """Every stage: name -> number of scalars. For tests."""
    return {(<bytes>TABLE.stages[i].name).decode(): TABLE.stages[i].n_scalars for i in range(TABLE.n_stages)}


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
        if is_available(level):
            return use_level(level)
    raise ImportError("fastopt was built without any kernel module")


_choose_level()
