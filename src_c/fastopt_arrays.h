/* What the engine asks of an array at every step, without touching its reference count.
 * The caller has made sure that `object` is a NumPy array. */
#ifndef FASTOPT_ARRAYS_H
#define FASTOPT_ARRAYS_H

#include <Python.h>
#include <numpy/arrayobject.h>
#include <stddef.h>

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

/* Ask for `n` bytes from `p` on to be brought near; never faults, may do nothing. Always inline, as what calls it has to
 * be: gcc takes a function that only prefetches for one without effect, and drops calls of it. */
#if defined(__GNUC__)
#define FO_ALWAYS_INLINE __attribute__((always_inline)) static inline
#else
#define FO_ALWAYS_INLINE static inline
#endif
FO_ALWAYS_INLINE void fo_prefetch(const void *p, ptrdiff_t n)
{
#if defined(__GNUC__)
    ptrdiff_t i;
    for (i = 0; i < n; i += 64)
        __builtin_prefetch((const char *)p + i);
#else
    (void)p;
    (void)n;
#endif
}

/* Ask for what fo_array_fits reads of an array: the object itself, */
FO_ALWAYS_INLINE void fo_prefetch_array(PyObject *object)
{
    fo_prefetch(object, sizeof(PyArrayObject_fields));
}

/* and, once that is near, what it points to. */
FO_ALWAYS_INLINE void fo_prefetch_dims(PyObject *object)
{
    fo_prefetch(PyArray_DIMS((PyArrayObject *)object), 1);
}

#endif
