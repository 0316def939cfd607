/* What a step asks of tensors, through the C side of DLPack's exchange protocol (its ABI, version 1): where the memory
 * of a tensor is and how it is laid out, without a new object and without linking to the library it comes from. */
#ifndef FASTOPT_TENSORS_H
#define FASTOPT_TENSORS_H

#include <Python.h>
#include <stdint.h>

typedef struct {
    void *data;
    int32_t device_type;
    int32_t device_id;
    int32_t ndim;
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
    int64_t *shape;
    int64_t *strides; /* in elements */
    uint64_t byte_offset;
} fo_tensor_t;

/* Describe a tensor; 0, or -1 with a Python error. What it points to lives as long as the tensor stays as it is. */
typedef int (*fo_look_t)(void *object, fo_tensor_t *out);

typedef struct fo_exchange {
    uint32_t major;
    uint32_t minor;
    struct fo_exchange *older;
    void *others[3]; /* allocate, export, import */
    fo_look_t look;
} fo_exchange_t;

/* The function that a library's `__dlpack_c_exchange_api__` offers for looking at tensors, or NULL. */
static inline fo_look_t fo_exchange_look(PyObject *capsule)
{
    fo_exchange_t *api = (fo_exchange_t *)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    while (api != NULL && api->major > 1)
        api = api->older;
    return api != NULL && api->major == 1 ? api->look : NULL;
}

static inline void fo_tensor_set(fo_tensor_t *t, void *data, int device, int code, int bits, int ndim, int64_t *shape,
                                 int64_t *strides)
{
    t->data = data;
    t->device_type = device;
    t->device_id = 0;
    t->code = (uint8_t)code;
    t->bits = (uint8_t)bits;
    t->lanes = 1;
    t->ndim = ndim;
    t->shape = shape;
    t->strides = strides;
    t->byte_offset = 0;
}

enum { FO_UNFIT = -1 };

/* NumPy's type number for what a rule can walk: float32 and float64 in the CPU's memory (pinned, too), else FO_UNFIT. */
static inline int fo_tensor_type(const fo_tensor_t *t)
{
    if ((t->device_type != 1 && t->device_type != 3) || t->code != 2 || t->lanes != 1 || t->byte_offset != 0)
        return FO_UNFIT;
    return t->bits == 32 ? 11 : t->bits == 64 ? 12 : FO_UNFIT;
}

/* 1 if a tensor has these sizes and strides. */
static inline int fo_tensor_has(const fo_tensor_t *t, int ndim, const int64_t *shape_and_strides)
{
    int i;
    if (t->ndim != ndim)
        return 0;
    for (i = 0; i < ndim; i++)
        if (t->shape[i] != shape_and_strides[i] || t->strides[i] != shape_and_strides[ndim + i])
            return 0;
    return 1;
}

/* The attribute that a getset descriptor of a type gives: a new reference, or NULL with a Python error. */
static inline PyObject *fo_get(PyObject *descriptor, PyObject *object)
{
    PyGetSetDef *getset = ((PyGetSetDescrObject *)descriptor)->d_getset;
    return getset->get(object, getset->closure);
}

#endif
