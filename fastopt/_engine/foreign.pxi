# Arrays of other libraries: how they are read through DLPack, what that does not tell, and what to do about it.

# How to make an array of what other libraries have, by the first name of the module of its type.
cdef dict REMEDIES = {
    "cupy": "x.get() copies it to the CPU", "dask": "x.compute() gives an array",
    "h5py": "dataset[...] reads it into an array", "jax": "np.array(x) copies it", "jaxlib": "np.array(x) copies it",
    "pandas": "x.to_numpy(copy=True) gives an array", "polars": "x.to_numpy(writable=True) gives an array",
    "scipy": "x.toarray() gives an array", "tensorflow": "np.array(x) copies it",
    "xarray": "x.to_numpy() gives its array", "zarr": "x[...] reads it into an array",
}


cdef from_dlpack(obj, str label, bint reading, str twin):
    """An object with __dlpack__ as an array; raises also what it raises."""
    tensor = is_tensor(obj)
    if tensor:
        obj = plain_tensor(obj, label, reading, twin)
    try:
        array = np.from_dlpack(obj) if reading else np.from_dlpack(obj, copy=False)   # what a copy gets would be lost
    except TypeError:                 # NumPy before 2.1, or a library that knows of no copies
        array = np.from_dlpack(obj)
    if not has_memory(array, obj if tensor else None):
        raise LayoutError(f"{label} is a {kind_of(obj)} whose memory was freed, or never allocated")
    return array


cdef bint has_memory(cnp.ndarray array, tensor) except -1:
    """Whether all elements of a foreign array lie in memory of its own, as far as it can be told."""
    cdef uintptr_t end = <uintptr_t>cnp.PyArray_DATA(array) + cnp.PyArray_ITEMSIZE(array)
    cdef int k
    if cnp.PyArray_SIZE(array) == 0:
        return True
    if cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA):        # for a null pointer, NumPy allocates
        return False
    if tensor is None:
        return True
    for k in range(cnp.PyArray_NDIM(array)):
        end += (cnp.PyArray_DIM(array, k) - 1) * cnp.PyArray_STRIDE(array, k)
    storage = tensor.untyped_storage()
    return end <= <uintptr_t>storage.data_ptr() + <uintptr_t>storage.nbytes()


cdef bint is_tensor(obj) except -1:
    """Whether an object is a tensor of PyTorch, which is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, getattr(torch, "Tensor", ()))


cdef plain_tensor(obj, str label, bint reading, str twin):
    """A tensor whose memory holds what it says, or the error: DLPack tells of no flags, and asks no subclass."""
    if type(obj) is not sys.modules["torch"].Tensor:
        fault = fault_of(obj, label, twin)
        if fault is not None:
            raise fault
    if obj.is_neg():
        if not reading:
            raise LayoutError(f"{label} is a tensor with the negative flag, whose memory holds the opposite sign: call "
                              ".resolve_neg()")
        return obj.resolve_neg()
    return obj


cdef fault_of(obj, str label, str twin):
    """The error for a tensor that DLPack refuses, or should; None if there is nothing to be seen."""
    torch = sys.modules["torch"]
    if obj.requires_grad:
        return DTypeError(f"{label} is a tensor that requires gradients: "
                          f"{f'step it with {twin}, or ' if twin else ''}give its .detach()")
    if type(obj).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return DTypeError(f"{label} is a {kind_of(obj)}, a subclass with its own __torch_dispatch__, whose memory need "
                          "not hold its values; a plain tensor is needed")
    if obj.is_nested:
        return LayoutError(f"{label} is a nested tensor; one of a single shape is needed")
    if obj.layout != torch.strided:
        return LayoutError(f"{label} has layout {obj.layout}; torch.strided is needed: call .to_dense()")
    if obj.device.type != "cpu":
        return DTypeError(f"{label} is a tensor on {obj.device}; one on the CPU is needed"
                          f"{'' if obj.device.type == 'meta' else ': call .cpu()'}")
    return None


cdef unusable(obj, str label, bint reading, str twin, error):
    """The error for an object whose __dlpack__ failed: what it lacks as far as it tells, else what was raised."""
    try:
        fault = fault_of(obj, label, twin) if is_tensor(obj) else None
        if fault is not None:
            return fault
    except Exception:
        pass
    try:
        if obj.is_deleted():          # JAX
            return LayoutError(f"{label} is a {kind_of(obj)} that was deleted, or donated to a compiled function: its "
                               "memory was freed")
    except Exception:
        pass
    try:
        name = str(obj.dtype)
    except Exception:
        name = ""
    if name and "float32" not in name and "float64" not in name:
        return wrong_dtype(label, name, "float32 or float64", reading)
    try:
        device = tuple(obj.__dlpack_device__())
    except Exception:
        device = (1, 0)
    if device[0] != 1:
        return DTypeError(f"{label} is a {kind_of(obj)} on DLPack's device {device}, not on the CPU: "
                          + REMEDIES.get(library_of(obj), "copy it there first"))
    reason, remedy = str(error).partition("\n")[0], REMEDIES.get(library_of(obj))
    return DTypeError(f"{label} is a {kind_of(obj)} that cannot be used through __dlpack__: {reason}"
                      f"{f' ({remedy})' if remedy else ''}")


cdef str kind_of(obj):
    """How messages call the type of an object: its name, and whose it is."""
    name, owner = type(obj).__name__, library_of(obj)
    return name if owner in ("builtins", "__main__") else f"{owner}.{name}"


cpdef str shown(value):
    """How messages show a value: its repr, cut off; the type of foreign arrays, whose repr may read freed memory."""
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return f"a {kind_of(value)}"
    return f"{value!r:.80}"


cdef str library_of(obj):
    """The library that the type of an object comes from."""
    return str(type(obj).__module__).partition(".")[0]


cdef str remedy_for(obj, str twin):
    """How to make an array of an object, as the end of a message; empty if nobody knows."""
    kind = type(obj)
    if isinstance(obj, tuple) and len(obj) == 2 and isinstance(obj[0], str):
        return ": parameters with names come in a dict, dict(pairs)"
    if twin is not None and hasattr(kind, "parameters"):
        return f": the .parameters() of a module are stepped by {twin}"
    remedy = REMEDIES.get(library_of(obj))
    if remedy is None and hasattr(kind, "__array__"):
        remedy = "np.array(x) makes one"
    return f": {remedy}" if remedy else ""
