# Gradients as they are given: put into a list, made into arrays that fit, and what to say of those that do not.

cdef list as_list(Operands operands, grads):
    """Gradients that came in no list, in one."""
    cdef list names = operands.names
    cdef Py_ssize_t n = len(operands.arrays)
    cdef list members
    if n == 1 and cnp.PyArray_Check(grads):
        return [grads]
    if isinstance(grads, Mapping):
        if not operands.named:
            raise GradientError("gradients in a dict need parameters in a dict")
        if grads.keys() != set(names):
            missing = [name for name in names if name not in grads]
            unknown = [name for name in grads if name not in set(names)]
            raise GradientError("gradients must have the names of the parameters; "
                                f"missing: {missing!r}, unknown: {unknown!r}; None skips one")
        return [grads[name] for name in names]
    members = listed(grads, n + 1)
    if members is None and n != 1:
        raise GradientError(f"gradients are a list, one for each of {n} parameters, not {kind_of(grads)}")
    if members is None:
        return [grads]
    if len(members) > n and not isinstance(grads, (list, tuple)):      # it may be endless
        raise GradientError(f"more than {n} gradients for {n} parameters; give one for each, None to skip one")
    return members


cdef list convert_all(Operands operands, list grads, bint copy):
    """The gradients as plain arrays, each seen as one or copied if that was asked for, or the error."""
    cdef Py_ssize_t n = len(operands.arrays)
    grads = list(grads)                   # what converts one may change the caller's list
    if len(grads) != n:
        raise GradientError(f"{len(grads)} gradients for {n} parameters")
    return [None if g is None else convert(operands, i, g, copy) for i, g in enumerate(grads)]


cdef convert(Operands operands, Py_ssize_t i, object g, bint copy):
    """A gradient as a plain array that fits its parameter."""
    cdef Param *q = &operands.params[i]
    cdef bint zeroes = operands.group_of(i).program.zeroes
    label = f"gradient of {operands.label(i)}"
    param = operands.arrays[i]
    array = as_array(g, label, not zeroes)
    narrow = not operands.plain and param.dtype != np.float64 and (
        is_bfloat16(array) or (array.dtype == np.uint16 and operands.reads_uint16(i)))
    if array.dtype.kind != "f" and not is_bfloat16(array) and not narrow:
        needed = needed_for(param, operands.plain)
        if array.dtype == np.uint16 and not operands.plain and param.dtype != np.float64:
            needed += " (or uint16 with grad_dtype='bfloat16')"
        raise wrong_dtype(label, dtype_name(array), needed, True)
    if array.shape != param.shape:
        raise ShapeError(f"{label} has shape {array.shape}; the parameter has {param.shape}")
    if zeroes and not array.flags.writeable:
        raise ReadOnlyError(f"{label} is read-only; zero_grads=True writes to it")
    readable = array.dtype == param.dtype or narrow or (
        not operands.plain and param.dtype != np.float64 and array.dtype in (np.float32, np.float16))
    if not (readable and fits_as(<PyObject *>array, q)):
        if not copy or zeroes:
            more = "; it cannot be copied, because zero_grads=True zeroes it" if zeroes else ", or copy_grads=True"
            if not readable:
                needed = needed_for(param, operands.plain)
                raise DTypeError(f"{label} has dtype {dtype_name(array)}; {needed} is needed{more}")
            misaligned = "" if array.flags.aligned else ", misaligned"
            raise LayoutError(f"{label} has strides {array.strides}{misaligned}; "
                              f"the parameter has {param.strides}: use the same memory order{more}")
        order = "C" if q.order == cnp.NPY_ARRAY_C_CONTIGUOUS else "F"
        with np.errstate(all="ignore"):       # a cast may overflow to infinity
            dtype = array.dtype if readable else np.float32 if is_narrow(param) else param.dtype
            array = np.array(array, dtype=dtype, order=order, copy=True, subok=False)
    return np.asarray(array)


cdef str needed_for(param, bint plain):
    """What types a gradient of a parameter can have, for messages."""
    return str(param.dtype) if plain or param.dtype == np.float64 else "float32, bfloat16 or float16"


cdef inline bint fits_as(PyObject *array, const Param *q) noexcept:
    """Whether an array has the form of a parameter, but for its type."""
    return fo_array_fits(array, cnp.PyArray_TYPE(<cnp.ndarray>array), q.nd, q.dims, q.order | cnp.NPY_ARRAY_ALIGNED)


# --- Errors

cdef complain_parameter(Operands operands, Py_ssize_t i):
    """A parameter is no longer what it was."""
    cdef Param *q = &operands.params[i]
    array, label = operands.arrays[i], operands.label(i)
    if not array.flags.writeable:
        raise ReadOnlyError(f"{label} has become read-only")
    shape = tuple([q.dims[k] for k in range(q.nd)])
    raise LayoutError(f"{label} was changed after it was given to the optimizer: it has shape {array.shape}, dtype "
                      f"{array.dtype}, strides {array.strides} (it had shape {shape}), or its memory has moved")


cdef complain_overlap(Operands operands, Py_ssize_t i, char *data):
    """The gradient of a parameter, at `data`, overlaps a parameter or a state."""
    cdef Param *q
    cdef Py_ssize_t k
    for k in range(operands.n_params):
        q = &operands.params[k]
        if data < q.p + param_bytes(q) and q.p < data + grad_bytes(&operands.params[i]):
            same = "is" if k == i and data == q.p else "overlaps"
            raise OverlapError(f"gradient of {operands.label(i)} {same} {operands.label(k)}; gradients need other "
                               "memory")
    raise OverlapError(f"gradient of {operands.label(i)} overlaps the state of the optimizer, or a mirror; "
                       "gradients need other memory")


cdef complain_nonfinite(Operands operands, const Job *job):
    """A gradient holds a NaN or an infinity: which one?"""
    cdef Py_ssize_t i
    cdef Work *w
    for i in range(job.n_work):
        w = &job.work[i]
        if any_nonfinite(w, 1, w.first_block, w.first_block + blocks_of(w.q)):
            raise NonFiniteError(f"gradient of {operands.label(w.q - operands.params)} holds a NaN or an "
                                 "infinity; nothing was written")
