# What is accepted as an array.

cdef str label_of(list names, Py_ssize_t i):
    """How messages call parameter i."""
    return f"parameter {names[i]!r}" if names[i] is not None else f"parameter {i}"


cdef str dtype_name(array):
    """How messages call the type of an array."""
    return str(array.dtype) if array.dtype.isnative else f"{array.dtype.newbyteorder('=')}, byte-swapped"


cpdef bint is_array(value) except -1:
    """Whether a value is one array, rather than a collection of arrays."""
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        return True
    # Cython does not see that a class in a tuple raises: one call for each that is not a builtin.
    if isinstance(value, str) or isinstance(value, Mapping):
        return False
    if hasattr(type(value), "__array__") or hasattr(type(value), "shape"):
        return True
    try:
        memoryview(value)
    except TypeError:
        return False
    except (ValueError, BufferError):        # it has the protocol, but nothing to show
        pass
    return True


cpdef list listed(value, most=None):
    """The members of a collection that has an order, `most` at most; None for anything else, an array for one."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_array(value) or isinstance(value, (str, set, frozenset)) or isinstance(value, Mapping) or not isinstance(
            value, Iterable):
        return None
    return list(islice(value, most))


cpdef as_values(obj, str label):
    """What an object holds that NumPy can read, in an array, which may be a copy."""
    return np.asarray(as_array(obj, label, True) if hasattr(obj, "__dlpack__") else obj)


cdef as_array(obj, str label, bint reading, str twin=None):
    """`obj` as a NumPy array over the same memory: an array, else the buffer protocol, else __dlpack__.

    For `reading`, a copy will do where the memory does not say all. `twin` is what steps tensors in the caller's place.
    """
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise DTypeError(f"{label} is a masked array; masks are not supported: give its .data")
        return obj
    if isinstance(obj, np.generic):
        array = np.asarray(obj)       # a copy: a scalar cannot be written to
        array.flags.writeable = False
        return array
    if not is_tensor(obj):
        try:
            return np.asarray(memoryview(obj))
        except (TypeError, ValueError, BufferError):
            pass
    if not hasattr(obj, "__dlpack__"):
        raise DTypeError(f"{label} is a {kind_of(obj)}; an array of float32 or float64 is needed (NumPy, or anything "
                         f"with the buffer protocol or __dlpack__){remedy_for(obj, twin)}")
    try:
        return from_dlpack(obj, label, reading, twin)
    except FastoptError:
        raise
    except Exception as error:        # whatever a foreign type raises
        raise unusable(obj, label, reading, twin, error) from error


cdef wrong_dtype(str label, str name, str needed, bint reading):
    """The error for a type that cannot be stepped; `needed` says which can."""
    plain, remedy = "float64" if "64" in name or "longdouble" in name or "128" in name else "float32", ""
    if "float" in name:
        remedy = f": convert it to {plain}" if reading else f": keep a copy in {plain}, and convert between them"
    return DTypeError(f"{label} has dtype {name}; {needed} is needed{remedy}")


cdef read_only(obj, array, str label):
    """The error for memory that a step may not write to."""
    base = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if isinstance(obj, np.generic):
        remedy = "a NumPy scalar cannot be changed, give an array, np.array(x)"
    elif isinstance(base, np.memmap):
        remedy = ("open the np.memmap with mode='r+' or 'c', or give a copy, np.array(x). joblib passes large arrays "
                  "to its workers as read-only memmaps; joblib.Parallel(max_nbytes=None) turns that off")
    else:
        remedy = "give a copy, np.array(x), or for pandas .to_numpy(copy=True)"
    return ReadOnlyError(f"{label} is read-only; a step writes to it: {remedy}")


cdef as_parameter(obj, str label, str twin=None):
    """`obj` as an array that a rule can write to, or the error that says why not."""
    cdef cnp.ndarray a
    if cnp.PyArray_CheckExact(obj):
        a = obj
        if cnp.PyArray_ISWRITEABLE(a) and has_form(a):
            return a
    array = as_array(obj, label, False, twin)
    check_form(array, label, False)
    if not array.flags.writeable:
        raise read_only(obj, array, label)
    return array


cdef inline bint has_form(cnp.ndarray a) noexcept:
    """Whether a kernel can walk an array."""
    return (cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) and cnp.PyArray_ISNOTSWAPPED(a)
            and cnp.PyArray_ISALIGNED(a) and (cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a)))


cdef check_form(array, str label, bint reading):
    """Raise what keeps a kernel from walking an array, if anything does."""
    if array.dtype not in (np.float32, np.float64):
        raise wrong_dtype(label, dtype_name(array), "float32 or float64 in native byte order", reading)
    if not array.flags.aligned:
        raise LayoutError(f"{label} is misaligned: its data must start at a multiple of {array.itemsize} bytes")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise LayoutError(f"{label} has shape {array.shape} and strides {array.strides}; it must be contiguous, in "
                          f"C or Fortran order{': np.ascontiguousarray(x) copies it' if reading else ''}")


cdef storage_of(kind, array):
    """The type of a state slot (see `Slot` in declare.py) of a parameter."""
    return array.dtype if kind.storage is None else np.dtype(kind.storage)


cdef bint is_like(kind, array, param, bint flat) except -1:
    """Whether an array can be a state slot that is not like its parameter: C order, its type, and its shape.

    Of a `flat` parameter the shape is not known here: its own shape says nothing.
    """
    return (array.flags.c_contiguous and array.flags.aligned and array.dtype == storage_of(kind, param)
            and (flat or array.shape == shape_like(kind.like, param.shape)))


cdef check_state(kind, array, param, str label, bint flat):
    """Raise unless an array can be a state slot of a parameter."""
    if kind.like == "parameter":
        check_same(array, param, label)
    elif not is_like(kind, array, param, flat):
        shape, dtype = shape_like(kind.like, param.shape), storage_of(kind, param)
        if array.dtype != dtype:
            raise DTypeError(f"{label} has dtype {array.dtype}; {dtype} is needed")
        if not flat and array.shape != shape:
            raise ShapeError(f"{label} has shape {array.shape}; {shape} is needed")
        raise LayoutError(f"{label} has strides {array.strides}; C order is needed")


cdef dict given_state(Group group, state, like, str label, bint flat):
    """The state slots that a rule needs, as given by the caller, checked like parameters."""
    checked = {}
    for name in group.slots:
        if state.get(name) is None:
            raise ParameterError(f"{label} needs the state {name!r} with these options")
        checked[name] = as_parameter(state[name], f"state {name!r} of {label}")
        check_state(group.kinds[name], checked[name], like, f"state {name!r} of {label}", flat)
    return checked


cdef check_unchanged(Group group, list arrays, list labels, list states, bint flat):
    """Raise unless parameters and their states are still what a rule can walk: code of a user ran in between."""
    for array, label, state in zip(arrays, labels, states):
        as_parameter(array, label)
        for name, slot in state.items():
            slot = as_parameter(slot, f"state {name!r} of {label}")
            check_state(group.kinds[name], slot, array, f"state {name!r} of {label}", flat)


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


cdef check_as_bound(const Param *q, cnp.ndarray array, str label):
    """Raise unless an array that can be stepped has the type, shape and memory order of a parameter."""
    shape = tuple([q.dims[k] for k in range(q.nd)])
    if (<object>array).shape != shape:
        raise ShapeError(f"{label} has shape {(<object>array).shape}; {shape} is needed")
    if cnp.PyArray_TYPE(array) != q.type:
        raise DTypeError(f"{label} has dtype {array.dtype}; {cnp.PyArray_DescrFromType(q.type)} is needed")
    if not fits(<PyObject *>array, q, cnp.NPY_ARRAY_WRITEABLE):
        order = "C" if q.order == cnp.NPY_ARRAY_C_CONTIGUOUS else "Fortran"
        raise LayoutError(f"{label} has strides {(<object>array).strides}; {order} order is needed, as before")
