# What is done to a tile before and after a rule. The order of the operations IS the specification: STAGES in
# fastopt/reference.py does the same ones, in NumPy. Included by rules.pxi, and compiled as often.
#
# A stage has the shape of a rule: p is what it writes, g the gradient as the stages before it left it, s[0] the
# parameter, h its scalars, n the elements of a tile. Which stages a step has, and in what order: _engine/program.pxi.

cdef void unscale(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, the gradient without the factor of a scaled loss.
    cdef real by = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = g[i] / by


cdef void rescale(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, the gradient times the factor of clipping by norm.
    cdef real factor = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = g[i] * factor


cdef void clamp(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, the gradient within two bounds; NaN stays.
    cdef real low = h[0], high = h[1], x
    cdef Py_ssize_t i
    for i in range(n):
        x = low if g[i] < low else g[i]
        p[i] = high if x > high else x


cdef void l2(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, the gradient that the rule sees: sign * g + weight_decay * parameter.
    cdef const real *w = s[0]
    cdef real sign = h[0], wd = h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = sign * g[i] + wd * w[i]


cdef void negate(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = -g[i]


cdef void shrink(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    cdef real factor = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] * factor


cdef void flush(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, a state: what has faded below h[0] is nothing from now on.
    cdef real low = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = 0 if magnitude(p[i]) < low else p[i]


cdef void lerp(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # p, the average of a parameter: moved towards it by a weight.
    cdef const real *w = s[0]
    cdef real weight = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] + weight * (w[i] - p[i])


cdef void lerp_back(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # The same from the parameter's side, as torch.lerp computes it for weights of 0.5 and more.
    cdef const real *w = s[0]
    cdef real rest = 1 - h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = w[i] - rest * (w[i] - p[i])


cdef void blend(real *p, const real *g, real **s, const real *h, Py_ssize_t n) noexcept nogil:
    # The same by two products, as Keras computes it.
    cdef const real *w = s[0]
    cdef real weight = h[0], rest = h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = rest * p[i] + weight * w[i]
