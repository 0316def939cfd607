/* What the engine asks of an array at every step, without touching its reference count.
 * The caller has made sure that `object` is a NumPy array. */
#ifndef FASTOPT_ARRAYS_H
#define FASTOPT_ARRAYS_H

#include <Python.h>
#include <numpy/arrayobject.h>

static inline char *fo_array_data(PyObject *object)
{
    return (char *)PyArray_DATA((PyArrayObject *)object);
}

/* 1 if a rule can walk the array as `nd`, `dims` and `flags` say: the same type and shape, in native byte order,
 * and with every flag of `flags` (memory order, alignment, writability). */
static inline int fo_array_fits(PyObject *object, int type, int nd, const npy_intp *dims, int flags)
{
    PyArrayObject *a = (PyArrayObject *)object;
    int i;
    if (PyArray_TYPE(a) != type || PyArray_NDIM(a) != nd || (PyArray_FLAGS(a) & flags) != flags)
        return 0;
    for (i = 0; i < nd; i++)
        if (PyArray_DIMS(a)[i] != dims[i])
            return 0;
    return PyArray_ISNOTSWAPPED(a);
}

#endif
