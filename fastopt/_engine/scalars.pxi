# The scalars of a step, from hyperparameters and step count: no Python, and no GIL.

cdef enum:
    FLUSH_EVERY = 64          # steps; a power of two
    MOST_STAGE_SCALARS = 2
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
    bint averages             # whether parameters are averaged,
    int mean                  # in what form,
    double clip_value         # what no element of a gradient is to exceed, 0 for none
    double clip_norm_each     # and the norm of a gradient, 0 for none
    bint zeroes               # whether gradients are zeroed after the step
    double ema_decay          # how much of an average stays,
    int64_t ema_start         # and the step at which it begins

cdef enum:
    MEAN_TORCH = 0            # how an average follows its parameter: as PyTorch's (torch.lerp),
    MEAN_KERAS = 1            # as Keras',
    MEAN_THINC = 2            # or as thinc's, from zero and faster at first

cdef struct Mean:             # what becomes of an average at a step
    const Rule *kernel        # that moves it; NULL for none
    bint copies_first         # whether it becomes the parameter before the step,
    bint copies               # or after it
    float f[MOST_STAGE_SCALARS]
    double d[MOST_STAGE_SCALARS]

cdef struct StepScalars:      # the scalars of one step count in one group
    int64_t t
    double numbers[MAX_NUMBERS]     # carried to the next step
    bint flush                # whether faded state becomes 0 at this step
    bint begun                # whether averages had begun before it
    Mean mean
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


cdef inline bint is_averaged(const Mean *mean) noexcept nogil:
    """Whether a step with this leaves an average."""
    return mean.kernel != NULL or mean.copies


cdef void find_mean(const Hyper *hyper, int64_t t, bint begun, Mean *mean) noexcept nogil:
    """What becomes of the average at step t. `find_mean` of reference.py is the same."""
    cdef double decay = hyper.ema_decay
    mean.kernel, mean.copies_first, mean.copies = LERP, False, False
    if hyper.mean == MEAN_THINC:
        decay = min(decay, (1.0 + t) / (10.0 + t))
    elif hyper.mean == MEAN_KERAS:
        mean.kernel = BLEND
    elif not 1.0 - decay < 0.5:
        mean.kernel = LERP_BACK
    if begun or (hyper.mean == MEAN_THINC and t == 1 == hyper.ema_start):
        pass                      # thinc's begins at zero
    elif hyper.ema_start == 0:
        mean.copies_first = True
    else:
        mean.kernel, mean.copies = NULL, t >= hyper.ema_start
    mean.d[0], mean.d[1] = 1.0 - decay, decay
    mean.f[0], mean.f[1] = <float>mean.d[0], <float>decay


cdef bint compute_scalars(const Hyper *hyper, int64_t t, const double *numbers, bint begun,
                          StepScalars *out) noexcept nogil:
    """The scalars of step t, in double, then rounded once; False if one is not finite."""
    cdef double lr = hyper.x[0], wd = hyper.weight_decay
    cdef bint finite = True
    cdef int i
    out.t, out.begun, out.mean.kernel, out.mean.copies = t, begun, NULL, False
    out.mean.copies_first = False
    copy_numbers(out.numbers, numbers)
    if hyper.averages:
        find_mean(hyper, t, out.begun, &out.mean)
    out.flush = hyper.fades and t % FLUSH_EVERY == 0
    out.h.d[0] = (1.0 - lr * wd if hyper.decay == DECAY_FIRST else 1.0 - wd if hyper.decay == DECAY_PAPER else 1.0)
    hyper.rule.scalars(hyper.x, <double>t, out.numbers, out.h.d)
    for i in range(hyper.rule.n_scalars):
        out.h.f[i] = <float>out.h.d[i]
        finite = finite and isfinite(out.h.d[i]) and (not hyper.has_float or isfinite(out.h.f[i]))
    return finite
