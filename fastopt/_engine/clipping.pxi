# Gradients of tensors clipped in place: fastopt.torch.clip_grad_norm_ and clip_grad_value_.

cdef class GradientClipper(TensorPlan):
    """What clips gradients where they are; a plan without parameters, for its ways to look at tensors and its memory.

    None is returned, with nothing written, where C does not see all there is to know of a gradient: the caller leaves
    them all to PyTorch.
    """
    cdef Program program
    cdef StepScalars factors

    def clip_norm(self, list owners, double limit, ord, bint only_finite):
        """Multiply gradients by ``min(1, limit / (norm + 1e-6))``: their norm, and whether one of them is float64.

        With `only_finite` they stay as they are where the norm is not finite.
        """
        cdef list grads
        cdef Job job
        cdef double norm, factor
        self.enter()
        try:
            grads = self.given(owners)
            if not self.take_up(&job, grads):
                return None
            ask_for_sum(&job, sum_for(ord), &self.scratch)
            launch(&self.team, &job)
            norm = job.sum.norm(join_arrays(&job))
            factor = limit / (norm + 1e-6)
            if isfinite(norm) or not only_finite:
                self.apply(&job, RESCALE, 1 if factor > 1 else factor, 0, grads)
            return norm, self.has_double(&job)
        finally:
            self.leave()

    def clip_value(self, list owners, double limit):
        """Put every element of gradients between -limit and limit; True."""
        cdef list grads
        cdef Job job
        self.enter()
        try:
            grads = self.given(owners)
            if not grads:
                return True
            if not self.take_up(&job, grads):
                return None
            self.apply(&job, CLAMP, -limit, limit, grads)
            return True
        finally:
            self.leave()

    cdef list given(self, list owners):
        """The gradients of tensors that have one."""
        return [g for g in [self.grad_of(owner) for owner in owners] if g is not None]

    cdef bint take_up(self, Job *job, list grads) except -1:
        """Make a job over gradients; False if there is one that is not all to be seen here, or none at all.

        No Python code runs from here until they are written to.
        """
        cdef fo_tensor_t t
        cdef int64_t form[2 * MOST_ORDINARY_DIMS]
        cdef Py_ssize_t i, n
        cdef Param *q
        cdef Work *w
        cdef PyObject *g
        cdef char *data
        if not self.can_follow or self.host.modes() or not grads:
            return False
        self.reserve(len(grads))
        self.memory.n = 0
        if len(grads) > self.memory.room:
            self.memory.reserve(len(grads))
        self.begin_job(job, &self.factors)
        for i in range(len(grads)):
            g = PyList_GET_ITEM(<PyObject *>grads, i)
            if not self.is_plain(g) or not self.can_view(g, &t) or t.ndim > MOST_ORDINARY_DIMS:
                return False
            n = dense_form(&t, form)
            if n < 0 or fo_tensor_type(&t) not in (FO_FLOAT, FO_DOUBLE):
                return False
            data = <char *>fo_shim_writable(&self.shim, g, fo_tensor_type(&t), t.ndim, form, n)
            if n == 0:
                continue
            if data == NULL:
                return False
            q, w = &self.params[job.n_work], &self.work[job.n_work]
            add_summand(job, q, fo_tensor_type(&t), n, data)
            q.p, w.program, w.place = data, &self.program, 0
            self.memory.append(data, q.n << shift_of(q), i, -1)
        job.moved = job.blocks
        return self.memory.sort() == 0        # PyTorch clips twice what two of them share

    cdef apply(self, Job *job, const Rule *kernel, double h0, double h1, list grads):
        """Write to the gradients of a job, and note that they were written to."""
        cdef Py_ssize_t i
        cdef bint asks = False            # whether there are versions that C cannot count
        if kernel != RESCALE or h0 != 1:
            rule_alone(&self.program, kernel, kernel)
            self.factors.flush = False
            scale(&self.factors.h, 0, h0)
            scale(&self.factors.h, 1, h1)
            job.sum, job.moved = NULL, 2 * job.blocks
            launch(&self.team, job)
        for i in range(len(grads)):
            if self.can_count(PyList_GET_ITEM(<PyObject *>grads, i)):
                fo_shim_bump(&self.shim, PyList_GET_ITEM(<PyObject *>grads, i))
            else:
                asks = True
        if asks:
            self.bump([g for g in grads if not self.can_count(<PyObject *>g)])

    cdef bint has_double(self, const Job *job) noexcept:
        cdef Py_ssize_t i
        for i in range(job.n_work):
            if job.work[i].q.type == cnp.NPY_DOUBLE:
                return True
        return False


cdef Py_ssize_t dense_form(const fo_tensor_t *t, int64_t *form) noexcept:
    """The sizes and strides of a tensor whose elements fill one piece of memory, and their number; -1 for another."""
    cdef Py_ssize_t n = 1
    cdef int64_t reach = 1
    cdef int i, k
    cdef bint found
    for k in range(t.ndim):
        form[k], form[t.ndim + k] = t.shape[k], t.strides[k]
        n *= t.shape[k]
    while reach < n:
        found = False
        for i in range(t.ndim):
            if t.strides[i] == reach and t.shape[i] > 1:
                reach *= t.shape[i]
                found = True
                break
        if not found:
            return -1
    return n
