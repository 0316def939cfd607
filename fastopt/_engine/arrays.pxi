# What is accepted as an array.

cdef str label_of(list names, Py_ssize_t i):
    """How messages call parameter i."""
    return f"parameter {names[i]!r}" if names[i] is not None else f"parameter {i}"


cdef str dtype_name(array):
    """How messages call the type of an array."""
    return str(array.dtype) if array.dtype.isnative else f"{array.dtype.newbyteorder('=')}, byte-swapped"


cdef as_array(obj, str label):
    """`obj` as a NumPy array over the same memory: an array, else the buffer protocol, else __dlpack__."""
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise DTypeError(f"{label} is a masked array; masks are not supported: give its .data")
        return obj
    try:
        return np.asarray(memoryview(obj))
    except (TypeError, ValueError):
        pass
    if hasattr(obj, "__dlpack__"):
        if getattr(obj, "requires_grad", False):
            raise DTypeError(f"{label} is a tensor that requires gradients; give its .detach()")
        try:
            return np.from_dlpack(obj)
        except Exception as error:        # whatever a foreign type raises
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
        raise DTypeError(f"{label} has dtype {dtype_name(array)}; float32 or float64 in native byte order is needed")
    if not array.flags.aligned:
        raise LayoutError(f"{label} is misaligned: its data must start at a multiple of {array.itemsize} bytes")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise LayoutError(f"{label} has shape {array.shape} and strides {array.strides}; it must be contiguous, in "
                          "C or Fortran order")
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


cdef check_unchanged(list arrays, list labels, list states):
    """Raise unless parameters and their states are still what a rule can walk: code of a user ran in between."""
    for array, label, state in zip(arrays, labels, states):
        as_parameter(array, label)
        for name, slot in state.items():
            check_same(as_parameter(slot, f"state {name!r} of {label}"), array, f"state {name!r} of {label}")


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
