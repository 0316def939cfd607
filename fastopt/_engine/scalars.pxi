# The scalars of a step, from hyperparameters and step count: no Python, and no GIL.

cdef enum:
    FLUSH_EVERY = 64          # steps; a power of two
    DECAY_L2 = 0              # weight decay: gradient += wd * p
    DECAY_FIRST = 1           # p *= 1 - lr * wd, then the update
    DECAY_PAPER = 2           # p *= 1 - wd, then the update
    DECAY_LAST = 3            # the update, then p *= 1 - lr * wd

cdef struct Scaled:           # scalars rounded once to each compute type
    float f[MAX_SCALARS]
    double d[MAX_SCALARS]

cdef struct Hyper:
    const Rule *rule
    double x[MAX_HYPER]       # in the order of the rule
    double weight_decay
    int decay                 # how it is applied
    bint maximize
    bint fades                # whether faded state is flushed
    bint has_float            # whether there are float32 arrays, to which scalars have to fit, too

cdef struct StepScalars:      # the scalars of one step count in one group
    int64_t t
    double numbers[MAX_NUMBERS]     # carried to the next step
    bint flush                # whether faded state becomes 0 at this step
    Scaled h


cdef inline void scale(Scaled *h, int i, double value) noexcept nogil:
    h.d[i] = value
    h.f[i] = <float>value


cdef inline void copy_numbers(double *to, const double *numbers) noexcept nogil:
    cdef int k
    for k in range(MAX_NUMBERS):
        to[k] = numbers[k]


cdef inline bint same_numbers(const double *a, const double *b) noexcept nogil:
    cdef int k
    for k in range(MAX_NUMBERS):
        if a[k] != b[k]:
            return False
    return True


cdef bint compute_scalars(const Hyper *hyper, int64_t t, const double *numbers, StepScalars *out) noexcept nogil:
    """The scalars of step t, in double, then rounded once; False if one is not finite."""
    cdef double lr = hyper.x[0], wd = hyper.weight_decay
    cdef bint finite = True
    cdef int i
    out.t = t
    copy_numbers(out.numbers, numbers)
    out.flush = hyper.fades and t % FLUSH_EVERY == 0
    out.h.d[0] = (1.0 - lr * wd if hyper.decay == DECAY_FIRST else 1.0 - wd if hyper.decay == DECAY_PAPER else 1.0)
    hyper.rule.scalars(hyper.x, <double>t, out.numbers, out.h.d)
    for i in range(hyper.rule.n_scalars):
        out.h.f[i] = <float>out.h.d[i]
        finite = finite and isfinite(out.h.d[i]) and (not hyper.has_float or isfinite(out.h.f[i]))
    return finite
