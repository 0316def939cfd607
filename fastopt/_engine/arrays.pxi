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


cdef enum:
    PLAIN = 0                 # what is accepted as a parameter: float32 and float64 alone,
    BFLOAT16_TYPED = 1        # arrays of bfloat16, too,
    BFLOAT16_IN_UINT16 = 2    # or also arrays of uint16 that hold it

cdef int bfloat16_type = -1   # NumPy's number for the type of ml_dtypes, once an array of it was seen


cdef object bfloat16_made = None      # what `bfloat16_dtype` returns


cdef bint is_bfloat16(cnp.ndarray a) except -1:
    """Whether an array is of the bfloat16 of ml_dtypes, in native byte order."""
    global bfloat16_type
    cdef int type = cnp.PyArray_TYPE(a)
    if not cnp.PyArray_ISNOTSWAPPED(a):
        return False
    if type == bfloat16_type:
        return True
    if type < NPY_USERDEF or a.dtype.name != "bfloat16" or a.dtype.itemsize != 2:
        return False
    bfloat16_type = type
    return True


def bfloat16_dtype():
    """The type of arrays that are made for bfloat16: that of ml_dtypes, or uint16 without it."""
    global bfloat16_made
    if bfloat16_made is None:         # once: an import that fails is tried again each time
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            bfloat16 = np.uint16
        bfloat16_made = np.dtype(bfloat16)
    return bfloat16_made


cdef inline bint is_narrow(cnp.ndarray a) noexcept:
    """Whether a parameter is stored in bfloat16."""
    return cnp.PyArray_TYPE(a) not in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE)


cdef as_parameter(obj, str label, str twin=None, int accepted=PLAIN):
    """`obj` as an array that a step can write to, or the error that says why not."""
    cdef cnp.ndarray a
    if cnp.PyArray_CheckExact(obj):
        a = obj
        if cnp.PyArray_ISWRITEABLE(a) and has_form(a):
            return a
    array = as_array(obj, label, False, twin)
    check_form(array, label, False, accepted)
    if not array.flags.writeable:
        raise read_only(obj, array, label)
    return array


cdef inline bint has_form(cnp.ndarray a) noexcept:
    """Whether a kernel can walk an array."""
    return (cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) and cnp.PyArray_ISNOTSWAPPED(a)
            and cnp.PyArray_ISALIGNED(a) and (cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a)))


cdef check_form(array, str label, bint reading, int accepted=PLAIN):
    """Raise what keeps a kernel from walking an array, if anything does."""
    if array.dtype not in (np.float32, np.float64) and not (accepted and is_bfloat16(array)) and not (
            accepted == BFLOAT16_IN_UINT16 and array.dtype == np.uint16):
        needed = "float32 or float64" if not accepted else "float32, float64 or bfloat16"
        needed += " in native byte order"
        if accepted and array.dtype == np.uint16:
            needed += " (or uint16 with param_dtype='bfloat16')"
        raise wrong_dtype(label, dtype_name(array), needed, reading)
    if not array.flags.aligned:
        raise LayoutError(f"{label} is misaligned: its data must start at a multiple of {array.itemsize} bytes")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise LayoutError(f"{label} has shape {array.shape} and strides {array.strides}; it must be contiguous, in "
                          f"C or Fortran order{': np.ascontiguousarray(x) copies it' if reading else ''}")


cpdef enum:
    FEWEST_PACKED = 4096      # elements of an array whose state is stored in 8 bits


def packed_size(Py_ssize_t n):
    """The bytes of the state of n elements in 8 bits: two for the base of each block, then the codes."""
    return n + 2 * ((n + FORMAT_TILE - 1) // FORMAT_TILE)


def packed_value(double value, Py_ssize_t n, bint square):
    """n times a value, as state in 8 bits: an average of squares, or one of either sign. To the nearest."""
    cdef const Format *format = UE5M3 if square else E4M3
    cdef cnp.ndarray packed = np.empty(packed_size(n), np.uint8)
    cdef float x = <float>value
    cdef uint8_t code
    cdef uint16_t base
    format.store(&code, &base, &x, 1, 0x80000000U)
    packed[:packed_size(n) - n].view(np.uint16)[:] = base
    packed[packed_size(n) - n:] = code
    return packed


cpdef tuple layout_of(kind, cnp.ndarray param):
    """The shape and the type of a state slot (see `Slot` in declare.py) of a parameter."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(param)
    if kind.storage is None and kind.like == "parameter" and not is_narrow(param):
        return (<object>param).shape, param.dtype
    if kind.storage == "8bit" and n >= FEWEST_PACKED:
        return (packed_size(n),), np.dtype(np.uint8)
    if kind.storage == "low":
        return ((<object>param).shape if is_narrow(param) else (0,)), np.dtype(np.int16)
    if kind.storage == "bfloat16":
        return shape_like(kind.like, (<object>param).shape), bfloat16_dtype()
    if kind.storage in (None, "8bit"):
        return (shape_like(kind.like, (<object>param).shape),
                np.dtype(np.float32) if is_narrow(param) else param.dtype)
    return shape_like(kind.like, (<object>param).shape), np.dtype(kind.storage)


cdef Py_ssize_t bytes_of(tuple layout) except -1:
    """The bytes of an array of a shape and a type."""
    cdef Py_ssize_t n = layout[1].itemsize
    for length in <tuple>layout[0]:
        n *= length
    return n


cdef const Format *format_of(kind, Py_ssize_t n, bint as_param, bint rounds) except? NULL:
    """The format of a state slot of a parameter of n elements; NULL for none.

    `as_param`: whether it is bfloat16 where nothing is said, and `rounds`, whether squares are then rounded
    stochastically.
    """
    if kind.storage == "8bit" and n >= FEWEST_PACKED:
        return UE5M3 if kind.narrow == "square" else E4M3
    if kind.storage == "bfloat16":
        return BFLOAT16_STOCHASTIC if kind.narrow == "square" else BFLOAT16
    if kind.storage is None and as_param and kind.like == "parameter":
        return BFLOAT16_STOCHASTIC if rounds and kind.narrow == "square" else BFLOAT16
    return NULL


cdef bint has_layout(kind, array, param, bint flat) except -1:
    """Whether an array can be a state slot of a parameter: its type, shape and memory order.

    Of a `flat` parameter the shape is not known here: its own shape says nothing.
    """
    shape, dtype = layout_of(kind, param)
    return (array.dtype == dtype and array.flags.aligned and (flat or array.shape == shape)
            and (in_order_of(array, param) if kind.like == "parameter" else array.flags.c_contiguous))


cdef bint in_order_of(array, param) except -1:
    """Whether an array has the memory order of another, or only one there is."""
    return array.flags.c_contiguous if param.flags.c_contiguous or array.ndim < 2 else array.flags.f_contiguous


cdef check_state(kind, array, param, str label, bint flat):
    """Raise unless an array can be a state slot of a parameter."""
    if has_layout(kind, array, param, flat):
        return
    shape, dtype = layout_of(kind, param)
    if not flat and array.shape != shape:
        raise ShapeError(f"{label} has shape {array.shape}; {shape} is needed")
    if array.dtype != dtype:
        raise DTypeError(f"{label} has dtype {array.dtype}; {dtype} is needed")
    if kind.like == "parameter":
        raise LayoutError(f"{label} has strides {array.strides}; {param.strides} is needed, as its parameter")
    raise LayoutError(f"{label} has strides {array.strides}; C order is needed")


cdef as_slot(kind, obj, str label):
    """`obj` as an array that can be written to as a state slot."""
    if kind.storage is None:
        return as_parameter(obj, label)
    array = as_array(obj, label, False)
    if not array.flags.aligned or not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise LayoutError(f"{label} has strides {array.strides}; it must be contiguous and aligned")
    if cnp.PyArray_TYPE(array) == cnp.NPY_UBYTE and <uintptr_t>cnp.PyArray_DATA(array) % sizeof(uint16_t):
        raise LayoutError(f"{label} begins at an odd address; the bases of its blocks, of two bytes each, come first")
    if not array.flags.writeable:
        raise read_only(obj, array, label)
    return array


cdef check_narrow(Group group, list arrays, list labels):
    """Raise if parameters cannot be stored as the options of their group say."""
    storage = group.storage
    for array, label in zip(arrays, labels):
        if array.dtype == np.float64 and storage is not None and storage.narrows:
            raise DTypeError(f"{label} has dtype float64, whose state and steps are float64: state_dtype, split and "
                             "param_dtype are for parameters of float32 and bfloat16. Give it in a parameter group of "
                             "its own, without them")
        if is_narrow(array) and (storage is None or not (storage.split or storage.rounding)):
            raise HyperparameterError(
                f"{label} has dtype bfloat16: give split=True, which keeps what a float32 has beyond it, or "
                "rounding='stochastic'; rounding='nearest' loses what is less than half its last digit, step by step")


cdef list as_mirrors(list mirrors, list arrays, list labels):
    """Mirrors of parameters as arrays, None for none."""
    return [None if mirror is None else as_mirror(mirror, array, f"mirror of {label}")
            for mirror, array, label in zip(mirrors, arrays, labels)]


cdef as_mirror(obj, cnp.ndarray param, str label):
    """`obj` as an array that takes a copy of a parameter, or the error that says why not."""
    array = as_array(obj, label, False)
    if not (is_bfloat16(array) or array.dtype in (np.uint16, np.float16)):
        raise DTypeError(f"{label} has dtype {dtype_name(array)}; bfloat16 (or uint16, which then holds it) or float16 "
                         "is needed")
    if cnp.PyArray_TYPE(param) == cnp.NPY_DOUBLE:
        raise DTypeError(f"{label}: its parameter has dtype float64; mirrors are for float32 and bfloat16")
    if array.shape != (<object>param).shape:
        raise ShapeError(f"{label} has shape {array.shape}; {(<object>param).shape} is needed")
    if not (array.flags.aligned and (array.flags.c_contiguous or array.flags.f_contiguous)
            and in_order_of(array, param)):
        raise LayoutError(f"{label} has strides {array.strides}; it must be contiguous, in the order of its parameter")
    if not array.flags.writeable:
        raise read_only(obj, array, label)
    return np.asarray(array)


cdef dict given_state(Group group, state, like, str label, bint flat):
    """The state slots that a rule needs, as given by the caller, checked like parameters."""
    checked = {}
    for name in group.slots:
        if state.get(name) is None:
            raise ParameterError(f"{label} needs the state {name!r} with these options")
        checked[name] = as_slot(group.kinds[name], state[name], f"state {name!r} of {label}")
        check_state(group.kinds[name], checked[name], like, f"state {name!r} of {label}", flat)
    return checked


cdef check_unchanged(Group group, list arrays, list labels, list states, bint flat):
    """Raise unless parameters and their states are still what a rule can walk: code of a user ran in between."""
    for array, label, state in zip(arrays, labels, states):
        as_parameter(array, label, None, BFLOAT16_IN_UINT16)
        for name, slot in state.items():
            slot = as_slot(group.kinds[name], slot, f"state {name!r} of {label}")
            check_state(group.kinds[name], slot, array, f"state {name!r} of {label}", flat)


cdef check_as_bound(const Param *q, cnp.ndarray array, str label):
    """Raise unless an array that can be stepped has the type, shape and memory order of a parameter."""
    shape = tuple([q.dims[k] for k in range(q.nd)])
    if (<object>array).shape != shape:
        raise ShapeError(f"{label} has shape {(<object>array).shape}; {shape} is needed")
    if cnp.PyArray_TYPE(array) != q.type:
        raise DTypeError(f"{label} has dtype {array.dtype}; {(<object>q.array).dtype} is needed")
    if not fits(<PyObject *>array, q, cnp.NPY_ARRAY_WRITEABLE):
        order = "C" if q.order == cnp.NPY_ARRAY_C_CONTIGUOUS else "Fortran"
        raise LayoutError(f"{label} has strides {(<object>array).strides}; {order} order is needed, as before")
