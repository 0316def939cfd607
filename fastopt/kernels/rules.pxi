# Every update rule. The order of the operations IS the specification: fastopt/reference.py does the same ones, in
# NumPy, and the tests compare the bits. This file is compiled once for every instruction-set level.
#
# Design:
# - A rule is two functions: `<name>_scalars`, from hyperparameters and step count to the scalars h, in double; and
#   `<name>`, one plain loop that the compiler vectorizes. The engine rounds h once to the type of the arrays.
# - p parameter, g gradient, s state slots, h scalars, n elements. h[0] is `decay`, the factor on the parameter that
#   decoupled weight decay asks for; without weight decay it is 1, and x * 1 == x to the bit.
# - What differs only in a number is a scalar, not a branch: every placement of eps is one formula with two of its
#   terms switched off by 0 or 1.
# - Scalars are copied to locals: through the pointer they could alias what the loop writes.
# - g += weight_decay * p, maximize and the like are stages around a rule: stages.pxi.

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport fabs, fabsf, pow, sqrt, sqrtf
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastopt.kernels.table cimport (
    F32Rule, F32Sum, F64Rule, F64Sum, Format, Load, Root, Rule, Scalars, Store, Sum, Table, FORMAT_TILE, FORMAT_TOP,
    LATTICE, MAX_FORMATS, MAX_RULES, MAX_STAGES, MAX_SUMS, SUM_LANES, SUM_TILE, TABLE_VERSION,
)

ctypedef fused real:
    float
    double


cdef inline real root(real x) noexcept nogil:
    return sqrtf(x) if real is float else sqrt(x)


cdef inline real magnitude(real x) noexcept nogil:
    return fabsf(x) if real is float else fabs(x)


cdef inline double correction(double b, double t) noexcept nogil:
    # 1 - b^t. Beyond 40 time constants b^t < e^-40, and the difference rounds to 1: pow is slow where it underflows.
    return 1.0 if (1.0 - b) * t > 40.0 else 1.0 - pow(b, t)


cdef inline real ratio(real a, real b) noexcept nogil:
    # With eps = 0 a zero accumulator would give NaN or infinity: such an element does not move.
    return a / b if b != 0 else 0


cdef inline real largest(real a, real b) noexcept nogil:
    # NaN from either side stays; of two zeros it is b.
    return a if (a > b) | (a != a) else b


# --- SGD -------------------------------------------------------------------------------------------------------------

cdef void sgd_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    h[1] = x[0]


cdef void sgd(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real decay = h[0], lr = h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] * decay - lr * g[i]


# The learning rate outside the buffer (PyTorch, optax). A new buffer starts as the gradient: numbers[0] is then 0.
cdef void sgd_momentum_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    h[1] = x[0]
    h[2] = x[1] if numbers[0] != 0 else 0.0
    h[3] = 1.0 - x[2] if numbers[0] != 0 else 1.0
    h[4] = x[1]
    numbers[0] = 1.0


cdef void sgd_momentum(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *b = s[0]
    cdef real decay = h[0], lr = h[1], mu = h[2], c = h[3]
    cdef Py_ssize_t i
    for i in range(n):
        b[i] = mu * b[i] + c * g[i]
        p[i] = p[i] * decay - lr * b[i]


cdef void sgd_nesterov(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *b = s[0]
    cdef real decay = h[0], lr = h[1], mu = h[2], c = h[3], ahead = h[4]
    cdef Py_ssize_t i
    for i in range(n):
        b[i] = mu * b[i] + c * g[i]
        p[i] = p[i] * decay - lr * (ahead * b[i] + g[i])


# The learning rate inside the velocity (Sutskever 2013, Keras, scikit-learn).
cdef void velocity_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    h[1] = x[0]
    h[2] = x[1]
    numbers[0] = 1.0


cdef void velocity(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real decay = h[0], lr = h[1], mu = h[2]
    cdef Py_ssize_t i
    for i in range(n):
        v[i] = mu * v[i] - lr * g[i]
        p[i] = p[i] * decay + v[i]


cdef void velocity_nesterov(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real decay = h[0], lr = h[1], mu = h[2], d
    cdef Py_ssize_t i
    for i in range(n):
        d = lr * g[i]
        v[i] = mu * v[i] - d
        p[i] = p[i] * decay + (mu * v[i] - d)


# Averaged SGD. The numbers, eta and mu, are for the coming step: so they are one step late. PyTorch keeps both in
# float32 (x[4] == 1, x[5] == 1).
cdef inline double stored(double value, double single) noexcept nogil:
    return <double><float>value if single != 0 else value


cdef void asgd_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef double eta = stored(x[0] if t == 1 else numbers[0], x[4])
    h[1] = 1.0 - x[1] * eta
    h[2] = eta
    h[3] = 1.0 if t == 1 else stored(numbers[1], x[5])
    numbers[0] = stored(x[0] / pow(1.0 + x[1] * x[0] * t, x[2]), x[4])
    numbers[1] = stored(1.0 / (t - x[3] if t - x[3] > 1.0 else 1.0), x[5])


cdef void asgd(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *ax = s[0]
    cdef real decay = h[0], shrink = h[1], eta = h[2], mu = h[3], w
    cdef Py_ssize_t i
    for i in range(n):
        w = p[i] * decay * shrink - eta * g[i]
        p[i] = w
        ax[i] = w if mu == 1 else ax[i] + (w - ax[i]) * mu


# --- Adagrad, Adadelta -----------------------------------------------------------------------------------------------

cdef void adagrad_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    h[1] = x[0] / (1.0 + (t - 1.0) * x[1])
    h[2] = x[2] if x[3] != 0 else 0.0
    h[3] = 0.0 if x[3] != 0 else x[2]


cdef void adagrad(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real decay = h[0], lr = h[1], e_in = h[2], e_out = h[3]
    cdef Py_ssize_t i
    for i in range(n):
        v[i] = v[i] + g[i] * g[i]
        p[i] = p[i] * decay - ratio(lr * g[i], root(v[i] + e_in) + e_out)


cdef void adadelta_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    h[1] = x[0]
    h[2] = x[1]
    h[3] = 1.0 - x[1]
    h[4] = x[2]


cdef void adadelta(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real *u = s[1]
    cdef real decay = h[0], lr = h[1], rho = h[2], c = h[3], eps = h[4], d
    cdef Py_ssize_t i
    for i in range(n):
        v[i] = rho * v[i] + c * g[i] * g[i]
        d = ratio(root(u[i] + eps), root(v[i] + eps)) * g[i]
        u[i] = rho * u[i] + c * d * d
        p[i] = p[i] * decay - lr * d


# --- RMSprop ---------------------------------------------------------------------------------------------------------

cdef void rmsprop_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef bint eps_inside = x[4] != 0, correct = x[5] != 0, lr_inside = x[6] != 0
    h[1] = x[1]
    h[2] = 1.0 - x[1]
    h[3] = 1.0 / correction(x[1], t) if correct else 1.0
    h[4] = x[2] if eps_inside else 0.0
    h[5] = 0.0 if eps_inside else x[2]
    h[6] = x[0] if lr_inside else 1.0
    h[7] = x[3]
    h[8] = 1.0 if lr_inside else x[0]


cdef inline real rms(real *v, real g, real b, real c, real a, real e_in, real e_out) noexcept nogil:
    v[0] = b * v[0] + c * g * g
    return root(v[0] * a + e_in) + e_out


cdef inline real deviation(real *v, real *w, real g, real b, real c, real a, real e_in, real e_out) noexcept nogil:
    cdef real mean, variance
    v[0] = b * v[0] + c * g * g
    w[0] = b * w[0] + c * g
    mean = w[0] * a
    variance = v[0] * a - mean * mean
    # A variance that rounding took below zero counts as zero.
    return root((0 if variance < 0 else variance) + e_in) + e_out


cdef void rmsprop(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real decay = h[0], b = h[1], c = h[2], a = h[3], e_in = h[4], e_out = h[5], l_in = h[6], l_out = h[8]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] * decay - l_out * ratio(l_in * g[i], rms(v + i, g[i], b, c, a, e_in, e_out))


cdef void rmsprop_momentum(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real *m = s[1]
    cdef real decay = h[0], b = h[1], c = h[2], a = h[3], e_in = h[4], e_out = h[5]
    cdef real l_in = h[6], mu = h[7], l_out = h[8]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = mu * m[i] + ratio(l_in * g[i], rms(v + i, g[i], b, c, a, e_in, e_out))
        p[i] = p[i] * decay - l_out * m[i]


cdef void rmsprop_nesterov(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real *m = s[1]
    cdef real decay = h[0], b = h[1], c = h[2], a = h[3], e_in = h[4], e_out = h[5]
    cdef real l_in = h[6], mu = h[7], l_out = h[8]
    cdef real u
    cdef Py_ssize_t i
    for i in range(n):
        u = ratio(l_in * g[i], rms(v + i, g[i], b, c, a, e_in, e_out))
        m[i] = mu * m[i] + u
        p[i] = p[i] * decay - l_out * (mu * m[i] + u)


cdef void rmsprop_centered(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real *w = s[1]
    cdef real decay = h[0], b = h[1], c = h[2], a = h[3], e_in = h[4], e_out = h[5], l_in = h[6], l_out = h[8]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] * decay - l_out * ratio(l_in * g[i], deviation(v + i, w + i, g[i], b, c, a, e_in, e_out))


cdef void rmsprop_centered_momentum(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real *w = s[1]
    cdef real *m = s[2]
    cdef real decay = h[0], b = h[1], c = h[2], a = h[3], e_in = h[4], e_out = h[5]
    cdef real l_in = h[6], mu = h[7], l_out = h[8]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = mu * m[i] + ratio(l_in * g[i], deviation(v + i, w + i, g[i], b, c, a, e_in, e_out))
        p[i] = p[i] * decay - l_out * m[i]


cdef void rmsprop_centered_nesterov(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *v = s[0]
    cdef real *w = s[1]
    cdef real *m = s[2]
    cdef real decay = h[0], b = h[1], c = h[2], a = h[3], e_in = h[4], e_out = h[5]
    cdef real l_in = h[6], mu = h[7], l_out = h[8]
    cdef real u
    cdef Py_ssize_t i
    for i in range(n):
        u = ratio(l_in * g[i], deviation(v + i, w + i, g[i], b, c, a, e_in, e_out))
        m[i] = mu * m[i] + u
        p[i] = p[i] * decay - l_out * (mu * m[i] + u)


# --- Adam and its kin ------------------------------------------------------------------------------------------------
# The denominator is sqrt(v * a + e_in) * c + e_out for every placement of eps; what bias correction leaves over for
# the numerator is returned.

cdef enum:
    OUTSIDE = 0                # sqrt(v / bc2 [+ eps_root]) + eps
    INSIDE = 1                 # sqrt(v / bc2 + eps)
    OUTSIDE_UNCORRECTED = 2    # (sqrt(v) + eps) / sqrt(bc2)
    INSIDE_UNCORRECTED = 3     # sqrt(v + eps) / sqrt(bc2)


cdef inline double denominator(double *d, double eps, double eps_root, int placement, double bc2) noexcept nogil:
    cdef bint inside = placement == INSIDE or placement == INSIDE_UNCORRECTED
    d[0] = 1.0 / bc2 if placement == INSIDE or (placement == OUTSIDE and eps_root != 0) else 1.0
    d[1] = eps if inside else eps_root
    d[2] = 1.0 / sqrt(bc2) if placement == OUTSIDE and eps_root == 0 else 1.0
    d[3] = 0.0 if inside else eps
    return sqrt(bc2) if placement == OUTSIDE_UNCORRECTED or placement == INSIDE_UNCORRECTED else 1.0


cdef inline void moments(double *h, double b1, double b2) noexcept nogil:
    h[1] = b1
    h[2] = 1.0 - b1
    h[3] = b2
    h[4] = 1.0 - b2


cdef void adam_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef double bc1 = correction(x[1], t) if x[6] != 0 else 1.0
    cdef double bc2 = correction(x[2], t) if x[6] != 0 else 1.0
    moments(h, x[1], x[2])
    h[5] = x[0] * denominator(h + 6, x[3], x[4], <int>x[5], bc2) / bc1


cdef void adam(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real *v = s[1]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], c2 = h[4], lr = h[5]
    cdef real a = h[6], e_in = h[7], c = h[8], e_out = h[9]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = b1 * m[i] + c1 * g[i]
        v[i] = b2 * v[i] + c2 * g[i] * g[i]
        p[i] = p[i] * decay - ratio(lr * m[i], root(v[i] * a + e_in) * c + e_out)


# AMSGrad: the largest second moment so far, before (PyTorch, Keras) or after (optax) its bias correction.
cdef void amsgrad_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef double bc1 = correction(x[1], t) if x[6] != 0 else 1.0
    cdef double bc2 = correction(x[2], t) if x[6] != 0 else 1.0
    cdef bint corrected = x[7] != 0
    moments(h, x[1], x[2])
    h[5] = x[0] * denominator(h + 6, x[3], x[4], <int>x[5], 1.0 if corrected else bc2) / bc1
    h[10] = 1.0 / bc2 if corrected else 1.0


cdef void amsgrad(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real *v = s[1]
    cdef real *w = s[2]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], c2 = h[4], lr = h[5]
    cdef real a = h[6], e_in = h[7], c = h[8], e_out = h[9], k = h[10]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = b1 * m[i] + c1 * g[i]
        v[i] = b2 * v[i] + c2 * g[i] * g[i]
        w[i] = largest(w[i], v[i] * k)
        p[i] = p[i] * decay - ratio(lr * m[i], root(w[i] * a + e_in) * c + e_out)


cdef void adamax_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef double bc1 = correction(x[1], t) if x[5] != 0 else 1.0
    h[1] = x[1]
    h[2] = 1.0 - x[1]
    h[3] = x[2]
    h[4] = x[0] / bc1
    h[5] = x[3] if x[4] != 0 else 0.0
    h[6] = 0.0 if x[4] != 0 else x[3]


cdef void adamax(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real *u = s[1]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], lr = h[4], e_in = h[5], e_out = h[6]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = b1 * m[i] + c1 * g[i]
        u[i] = largest(b2 * u[i], magnitude(g[i]) + e_in)
        p[i] = p[i] * decay - ratio(lr * m[i], u[i] + e_out)


# numbers[0] is the product of the momenta so far. PyTorch keeps it, and multiplies, in float32 (x[7] == 1).
# optax has no momentum schedule (x[7] == 2). The paper averages with mu, and has beta2 * v under the root (x[7] == 3).
cdef void nadam_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef double bc2 = correction(x[2], t)
    cdef double mu = x[1] * (1.0 - 0.5 * pow(0.96, t * x[6]))
    cdef double mu_next = x[1] * (1.0 - 0.5 * pow(0.96, (t + 1.0) * x[6]))
    cdef double lr
    moments(h, mu if x[7] == 3 else x[1], x[2])
    lr = x[0] * denominator(h + 7, x[3], x[4], <int>x[5], bc2 / x[2] if x[7] == 3 else bc2)
    if x[7] == 2:
        h[5] = lr * (1.0 - x[1]) / correction(x[1], t)
        h[6] = lr * x[1] / correction(x[1], t + 1.0)
        return
    numbers[0] = <double>(<float>numbers[0] * <float>mu) if x[7] == 1 else numbers[0] * mu
    h[5] = lr * (1.0 - mu) / (1.0 - numbers[0])
    h[6] = lr * mu_next / (1.0 - numbers[0] * mu_next)


cdef void nadam(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real *v = s[1]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], c2 = h[4], cg = h[5], cm = h[6]
    cdef real a = h[7], e_in = h[8], c = h[9], e_out = h[10]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = b1 * m[i] + c1 * g[i]
        v[i] = b2 * v[i] + c2 * g[i] * g[i]
        p[i] = p[i] * decay - ratio(cg * g[i] + cm * m[i], root(v[i] * a + e_in) * c + e_out)


# Adaptive once the length of the average, rho, is above (x[7] == 0) or at least (x[7] == 1) x[6]. thinc corrects with
# the count of the next step (x[8] == 1).
cdef void radam_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    cdef double k = t + x[8]
    cdef double bc1 = correction(x[1], k), b2t = pow(x[2], k)
    cdef double rho_inf = 2.0 / (1.0 - x[2]) - 1.0
    cdef double rho = rho_inf - 2.0 * k * b2t / (1.0 - b2t)
    moments(h, x[1], x[2])
    h[5] = x[0] / bc1
    h[10] = 1.0 if rho > x[6] or (x[7] != 0 and rho == x[6]) else 0.0
    if h[10] != 0:
        h[5] = h[5] * denominator(h + 6, x[3], x[4], <int>x[5], 1.0 - b2t)
        h[5] = h[5] * sqrt((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho))
    else:
        denominator(h + 6, x[3], x[4], <int>x[5], 1.0)


cdef void radam(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real *v = s[1]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], c2 = h[4], lr = h[5]
    cdef real a = h[6], e_in = h[7], c = h[8], e_out = h[9]
    cdef Py_ssize_t i
    if h[10] != 0:
        for i in range(n):
            m[i] = b1 * m[i] + c1 * g[i]
            v[i] = b2 * v[i] + c2 * g[i] * g[i]
            p[i] = p[i] * decay - ratio(lr * m[i], root(v[i] * a + e_in) * c + e_out)
    else:
        for i in range(n):
            m[i] = b1 * m[i] + c1 * g[i]
            v[i] = b2 * v[i] + c2 * g[i] * g[i]
            p[i] = p[i] * decay - lr * m[i]


# AdaBelief's second average is that of the distance between the gradient and its average; a term e_root is added to it
# at every step: eps itself (x[5] == 1), or eps_root.
cdef void adabelief_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    moments(h, x[1], x[2])
    h[5] = x[0] / correction(x[1], t)
    h[6] = x[3] if x[5] != 0 else x[4]
    h[7] = 1.0 / sqrt(correction(x[2], t))
    h[8] = x[3]


cdef void adabelief(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real *v = s[1]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], c2 = h[4], lr = h[5], e_root = h[6], c = h[7], e_out = h[8]
    cdef real d
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = b1 * m[i] + c1 * g[i]
        d = g[i] - m[i]
        v[i] = b2 * v[i] + c2 * d * d + e_root
        p[i] = p[i] * decay - ratio(lr * m[i], root(v[i]) * c + e_out)


cdef void lion_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    moments(h, x[1], x[2])
    h[5] = x[0]


cdef void lion(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *m = s[0]
    cdef real decay = h[0], b1 = h[1], c1 = h[2], b2 = h[3], c2 = h[4], lr = h[5], u
    cdef Py_ssize_t i
    for i in range(n):
        u = b1 * m[i] + c1 * g[i]
        # Zeros and NaN are their own sign.
        u = 1 if u > 0 else (-1 if u < 0 else u)
        p[i] = p[i] * decay - lr * u
        m[i] = b2 * m[i] + c2 * g[i]


# --- Rprop -----------------------------------------------------------------------------------------------------------

# At the first step every step size is lr (h[1] is then 1), whatever it was before.
cdef void rprop_scalars(const double *x, double t, double *numbers, double *h) noexcept nogil:
    h[1] = 1.0 if t == 1 else 0.0
    h[2] = x[0]
    h[3] = x[1]
    h[4] = x[2]
    h[5] = x[3]
    h[6] = x[4]


cdef void rprop(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real *prev = s[0]
    cdef real *size = s[1]
    cdef real decay = h[0], first = h[1], lr = h[2], minus = h[3], plus = h[4], low = h[5], high = h[6]
    cdef real q, d, z
    cdef Py_ssize_t i
    for i in range(n):
        q = 0 if first != 0 else g[i] * prev[i]
        z = (lr if first != 0 else size[i]) * (plus if q > 0 else minus if q < 0 else 1)
        z = low if z < low else z
        z = high if z > high else z
        d = 0 if q < 0 else g[i]            # where the sign has changed, the parameter waits for a step
        size[i] = z
        prev[i] = d
        p[i] = p[i] * decay - z * (1 if d > 0 else -1 if d < 0 else 0)


# --- What the engine walks over other memory than a step's ------------------------------------------------------------

cdef void fill(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real value = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = value


cdef void lookahead(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, the point where NAG wants the gradient: parameter (here g) + momentum * velocity.
    cdef const real *v = s[0]
    cdef real mu = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = g[i] + mu * v[i]


cdef void exchange(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # What is in p and in s[0] change places.
    cdef real *q = s[0]
    cdef real x
    cdef Py_ssize_t i
    for i in range(n):
        x = p[i]
        p[i] = q[i]
        q[i] = x


cdef void nonfinite(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p[0] becomes 1 if any g is NaN or infinite: only then is g - g not 0.
    cdef int found = 0
    cdef Py_ssize_t i
    for i in range(n):
        found = 1 if g[i] - g[i] != 0 else found
    if found:
        p[0] = 1


include "stages.pxi"
include "sums.pxi"
include "formats.pxi"

# --- The table -------------------------------------------------------------------------------------------------------

cdef Table table


cdef int add(const char *name, const char *hyper, int n_states, int n_scalars, Scalars scalars,
             F32Rule f32, F64Rule f64) except -1:
    if table.n >= MAX_RULES:
        raise RuntimeError("MAX_RULES in table.pxd is too small")
    table.rules[table.n] = Rule(name, hyper, n_states, n_scalars, scalars, f32, f64)
    table.n += 1
    return 0


cdef int add_stage(const char *name, int n_scalars, F32Rule f32, F64Rule f64) except -1:
    if table.n_stages >= MAX_STAGES:
        raise RuntimeError("MAX_STAGES in table.pxd is too small")
    table.stages[table.n_stages] = Rule(name, b"", 0, n_scalars, NULL, f32, f64)
    table.n_stages += 1
    return 0


cdef int add_sum(const char *name, F32Sum f32, F64Sum f64, F64Sum join, Root norm) except -1:
    if table.n_sums >= MAX_SUMS:
        raise RuntimeError("MAX_SUMS in table.pxd is too small")
    table.sums[table.n_sums] = Sum(name, f32, f64, join, norm)
    table.n_sums += 1
    return 0


cdef int add_format(const char *name, int size, int beside, int block, Load load, Store store) except -1:
    if table.n_formats >= MAX_FORMATS:
        raise RuntimeError("MAX_FORMATS in table.pxd is too small")
    table.formats[table.n_formats] = Format(name, size, beside, block, load, store)
    table.n_formats += 1
    return 0


table.version = TABLE_VERSION
table.n = table.n_stages = table.n_sums = table.n_formats = 0
add(b"sgd", b"lr", 0, 2, sgd_scalars, sgd[float], sgd[double])
add(b"sgd_momentum", b"lr momentum dampening", 1, 5, sgd_momentum_scalars, sgd_momentum[float], sgd_momentum[double])
add(b"sgd_nesterov", b"lr momentum dampening", 1, 5, sgd_momentum_scalars, sgd_nesterov[float], sgd_nesterov[double])
add(b"velocity", b"lr momentum", 1, 3, velocity_scalars, velocity[float], velocity[double])
add(b"velocity_nesterov", b"lr momentum", 1, 3, velocity_scalars, velocity_nesterov[float], velocity_nesterov[double])
add(b"asgd", b"lr lambd alpha t0 single_eta single_mu", 1, 4, asgd_scalars, asgd[float], asgd[double])
add(b"adagrad", b"lr lr_decay eps eps_inside", 1, 4, adagrad_scalars, adagrad[float], adagrad[double])
add(b"adadelta", b"lr rho eps", 2, 5, adadelta_scalars, adadelta[float], adadelta[double])

cdef const char *RMSPROP = b"lr alpha eps momentum eps_inside bias_correction lr_inside"
add(b"rmsprop", RMSPROP, 1, 9, rmsprop_scalars, rmsprop[float], rmsprop[double])
add(b"rmsprop_momentum", RMSPROP, 2, 9, rmsprop_scalars, rmsprop_momentum[float], rmsprop_momentum[double])
add(b"rmsprop_nesterov", RMSPROP, 2, 9, rmsprop_scalars, rmsprop_nesterov[float], rmsprop_nesterov[double])
add(b"rmsprop_centered", RMSPROP, 2, 9, rmsprop_scalars, rmsprop_centered[float], rmsprop_centered[double])
add(b"rmsprop_centered_momentum", RMSPROP, 3, 9, rmsprop_scalars,
    rmsprop_centered_momentum[float], rmsprop_centered_momentum[double])
add(b"rmsprop_centered_nesterov", RMSPROP, 3, 9, rmsprop_scalars,
    rmsprop_centered_nesterov[float], rmsprop_centered_nesterov[double])

add(b"adam", b"lr beta1 beta2 eps eps_root eps_placement bias_correction", 2, 10, adam_scalars,
    adam[float], adam[double])
add(b"amsgrad", b"lr beta1 beta2 eps eps_root eps_placement bias_correction max_corrected", 3, 11, amsgrad_scalars,
    amsgrad[float], amsgrad[double])
add(b"adamax", b"lr beta1 beta2 eps eps_inside bias_correction", 2, 7, adamax_scalars, adamax[float], adamax[double])
add(b"nadam", b"lr beta1 beta2 eps eps_root eps_placement momentum_decay product", 2, 11, nadam_scalars,
    nadam[float], nadam[double])
add(b"radam", b"lr beta1 beta2 eps eps_root eps_placement rho_min rho_inclusive t_shift", 2, 11, radam_scalars,
    radam[float], radam[double])
add(b"adabelief", b"lr beta1 beta2 eps eps_root eps_twice", 2, 9, adabelief_scalars,
    adabelief[float], adabelief[double])
add(b"lion", b"lr beta1 beta2", 1, 6, lion_scalars, lion[float], lion[double])
add(b"rprop", b"lr eta_minus eta_plus step_min step_max", 2, 7, rprop_scalars, rprop[float], rprop[double])
add(b"fill", b"", 0, 1, NULL, fill[float], fill[double])
add(b"lookahead", b"", 1, 1, NULL, lookahead[float], lookahead[double])
add(b"exchange", b"", 1, 0, NULL, exchange[float], exchange[double])
add(b"nonfinite", b"", 0, 0, NULL, nonfinite[float], nonfinite[double])

add_stage(b"unscale", 1, unscale[float], unscale[double])
add_stage(b"rescale", 1, rescale[float], rescale[double])
add_stage(b"clamp", 2, clamp[float], clamp[double])
add_stage(b"l2", 2, l2[float], l2[double])
add_stage(b"negate", 0, negate[float], negate[double])
add_stage(b"shrink", 1, shrink[float], shrink[double])
add_stage(b"flush", 1, flush[float], flush[double])
add_stage(b"lerp", 1, lerp[float], lerp[double])
add_stage(b"lerp_back", 1, lerp_back[float], lerp_back[double])
add_stage(b"blend", 2, blend[float], blend[double])

add_sum(b"squares", squares[float], squares[double], values, euclidean)
add_sum(b"maximum", maximum[float], maximum[double], maximum[double], itself)

add_format(b"bfloat16", 2, 0, 0, load_bfloat16, store_bfloat16)
add_format(b"bfloat16_stochastic", 2, 0, 0, load_bfloat16, store_bfloat16_stochastic)
add_format(b"float16", 2, 0, 0, load_float16, store_float16)
add_format(b"split", 2, 2, 0, load_split, store_split)
add_format(b"e4m3", 1, 2, FORMAT_TILE, load_e4m3, store_e4m3)
add_format(b"ue5m3", 1, 2, FORMAT_TILE, load_ue5m3, store_ue5m3)

__table__ = PyCapsule_New(&table, b"fastopt.kernels.table", NULL)
