/* What a step asks of tensors: where their memory is and how it is laid out, without a new object and without linking to
 * the library they come from. In two ways:
 *
 * - DLPack's exchange protocol, which libraries offer in C (its ABI, version 1);
 * - PyTorch's stable C functions, three times as fast, on the at::Tensor inside the Python object. Its place is the first
 *   thing after the object's header (torch/csrc/autograd/python_variable.h), a word later in old versions: found by
 *   fo_shim_find, which compares with a handle that PyTorch gave out. */
#ifndef FASTOPT_TENSORS_H
#define FASTOPT_TENSORS_H

#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fastopt_arrays.h"

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

/* A tensor that is handed over, with what lets go of it. */
typedef struct fo_managed {
    struct {
        uint32_t major, minor;
    } version;
    void *keeper;
    void (*let_go)(struct fo_managed *self);
    uint64_t flags;
    fo_tensor_t tensor;
} fo_managed_t;

/* A new object over the memory of a tensor, which it takes over; 0, or -1 with a Python error. */
typedef int (*fo_import_t)(fo_managed_t *tensor, void **out);

typedef struct fo_exchange {
    uint32_t major;
    uint32_t minor;
    struct fo_exchange *older;
    void *others[2]; /* allocate, export */
    fo_import_t import;
    fo_look_t look;
} fo_exchange_t;

/* The functions that a library's `__dlpack_c_exchange_api__` offers, of the version that is known here, or NULL. */
static inline const fo_exchange_t *fo_exchange_of(PyObject *capsule)
{
    const fo_exchange_t *api = (const fo_exchange_t *)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    while (api != NULL && api->major > 1)
        api = api->older;
    return api != NULL && api->major == 1 ? api : NULL;
}

/* The one for looking at tensors, or NULL. */
static inline fo_look_t fo_exchange_look(PyObject *capsule)
{
    const fo_exchange_t *api = fo_exchange_of(capsule);
    return api != NULL ? api->look : NULL;
}

/* The one that makes a tensor of memory, or NULL. */
static inline fo_import_t fo_exchange_import(PyObject *capsule)
{
    const fo_exchange_t *api = fo_exchange_of(capsule);
    return api != NULL ? api->import : NULL;
}

/* What a tensor over memory of a Python object's is made by, with room for its sizes and strides. */
typedef struct {
    fo_managed_t managed;
    int *gone; /* set when it is let go of, as long as that is asked */
    int64_t form[];
} fo_kept_t;

/* Any thread may let go of a tensor, with the GIL or without. When Python has ended, all goes with the process. */
static void fo_let_go(fo_managed_t *self)
{
    fo_kept_t *kept = (fo_kept_t *)self;
    if (kept->gone != NULL)
        *kept->gone = 1;
    if (Py_IsInitialized()) {
        PyGILState_STATE state = PyGILState_Ensure();
        Py_DECREF((PyObject *)self->keeper);
        PyMem_Free(kept);
        PyGILState_Release(state);
    }
}

/* A new tensor as `t` says, over memory that `keeper` has and that the tensor keeps alive; NULL with a Python error. */
static inline PyObject *fo_tensor_over(fo_import_t import, PyObject *keeper, const fo_tensor_t *t)
{
    /* Of Python's memory: among PyTorch's own records of its tensors it would spread them. */
    fo_kept_t *kept = (fo_kept_t *)PyMem_Malloc(sizeof(fo_kept_t) + 2 * (size_t)t->ndim * sizeof(int64_t));
    void *made = NULL;
    int gone = 0, i;
    if (kept == NULL)
        return PyErr_NoMemory();
    memset(kept, 0, sizeof(fo_kept_t));
    kept->managed.version.major = 1;
    kept->managed.keeper = keeper;
    kept->managed.let_go = fo_let_go;
    kept->managed.tensor = *t;
    kept->managed.tensor.shape = kept->form;
    kept->managed.tensor.strides = kept->form + t->ndim;
    for (i = 0; i < t->ndim; i++) {
        kept->form[i] = t->shape[i];
        kept->form[t->ndim + i] = t->strides[i];
    }
    kept->gone = &gone;
    Py_INCREF(keeper);
    if (import(&kept->managed, &made) == 0 && made != NULL) {
        kept->gone = NULL;
        return (PyObject *)made;
    }
    if (!gone) /* it may have been taken over before what failed */
        fo_let_go(&kept->managed);
    if (!PyErr_Occurred())
        PyErr_NoMemory();
    return NULL;
}

/* NumPy's type numbers; it has none for bfloat16. */
enum { FO_UNFIT = -1, FO_UBYTE = 2, FO_SHORT = 3, FO_FLOAT = 11, FO_DOUBLE = 12, FO_HALF = 23, FO_BFLOAT16 = 30 };

/* The type of a tensor in the CPU's memory (pinned, too): one of these, FO_UNFIT for any other. */
static inline int fo_tensor_type(const fo_tensor_t *t)
{
    if ((t->device_type != 1 && t->device_type != 3) || t->lanes != 1 || t->byte_offset != 0)
        return FO_UNFIT;
    switch (t->code * 256 + t->bits) {
    case 2 * 256 + 32: return FO_FLOAT;
    case 2 * 256 + 64: return FO_DOUBLE;
    case 2 * 256 + 16: return FO_HALF;
    case 4 * 256 + 16: return FO_BFLOAT16;
    case 0 * 256 + 16: return FO_SHORT;
    case 1 * 256 + 8: return FO_UBYTE;
    default: return FO_UNFIT;
    }
}

/* 1 if a parameter can have this type. */
static inline int fo_can_step(int type)
{
    return type == FO_FLOAT || type == FO_DOUBLE || type == FO_BFLOAT16;
}

/* The bytes of an element. */
static inline int fo_width(int type)
{
    return type == FO_DOUBLE ? 8 : type == FO_FLOAT ? 4 : type == FO_UBYTE ? 1 : 2;
}

/* Have a description say another type. */
static inline void fo_describe_type(fo_tensor_t *t, int type)
{
    t->code = type == FO_BFLOAT16 ? 4 : type == FO_SHORT ? 0 : type == FO_UBYTE ? 1 : 2;
    t->bits = (uint8_t)(8 * fo_width(type));
}

/* Describe a number of a type that a rule can walk, in memory that is not known yet. */
static inline void fo_describe_number(fo_tensor_t *t, int type)
{
    memset(t, 0, sizeof(*t));
    t->device_type = 1;
    t->lanes = 1;
    fo_describe_type(t, type);
}

/* 1 if these are the sizes and strides of `form`: sizes first, then strides. */
static inline int fo_same_form(int64_t ndim, const int64_t *shape, const int64_t *strides, int of, const int64_t *form)
{
    int i;
    if (ndim != of)
        return 0;
    for (i = 0; i < of; i++)
        if (shape[i] != form[i] || strides[i] != form[of + i])
            return 0;
    return 1;
}

/* 1 if a tensor has these sizes and strides. */
static inline int fo_tensor_has(const fo_tensor_t *t, int ndim, const int64_t *form)
{
    return fo_same_form(t->ndim, t->shape, t->strides, ndim, form);
}

typedef int32_t (*fo_shim_pointer_t)(void *handle, void **out);
typedef int32_t (*fo_shim_sizes_t)(void *handle, int64_t **out);
typedef int32_t (*fo_shim_long_t)(void *handle, int64_t *out);
typedef int32_t (*fo_shim_int_t)(void *handle, int32_t *out);

typedef struct {
    ptrdiff_t place; /* of the at::Tensor in a Python object; 0: not in use */
    ptrdiff_t storage_place; /* of the pointer to the storage in what the at::Tensor points to; 0: not known */
    int32_t f32, f64, bf16, f16, i16, u8, cpu, strided;
    fo_shim_pointer_t data;
    fo_shim_sizes_t sizes, strides;
    fo_shim_long_t dim;
    fo_shim_int_t type, device, layout;
    fo_shim_long_t storage_bytes, storage_offset;
    bool (*is_neg)(const void *handle); /* C++'s at::native::is_neg; may be NULL */
    bool (*is_inference)(const void *handle); /* at::native::is_inference; may be NULL */
    void **(*version_counter)(const void *handle); /* torch::autograd::impl::version_counter; NULL without the next */
    void (*bump_version)(const void *handle); /* torch::autograd::impl::bump_version; may be NULL */
} fo_shim_t;

/* Take up the functions at these addresses, in the order of FO_SHIM's names. */
static inline void fo_shim_fill(fo_shim_t *s, const uintptr_t *at)
{
    s->f32 = ((int32_t (*)(void))at[0])();
    s->f64 = ((int32_t (*)(void))at[1])();
    s->bf16 = ((int32_t (*)(void))at[2])();
    s->f16 = ((int32_t (*)(void))at[3])();
    s->i16 = ((int32_t (*)(void))at[4])();
    s->u8 = ((int32_t (*)(void))at[5])();
    s->cpu = ((int32_t (*)(void))at[6])();
    s->strided = ((int32_t (*)(void))at[7])();
    at += 4;
    s->data = (fo_shim_pointer_t)at[4];
    s->sizes = (fo_shim_sizes_t)at[5];
    s->strides = (fo_shim_sizes_t)at[6];
    s->dim = (fo_shim_long_t)at[7];
    s->type = (fo_shim_int_t)at[8];
    s->device = (fo_shim_int_t)at[9];
    s->layout = (fo_shim_int_t)at[10];
    s->storage_bytes = (fo_shim_long_t)at[11];
    s->storage_offset = (fo_shim_long_t)at[12];
    s->is_neg = (bool (*)(const void *))at[13];
    s->is_inference = (bool (*)(const void *))at[14];
    s->version_counter = at[16] ? (void **(*)(const void *))at[15] : NULL; /* one is of no use without the other */
    s->bump_version = (void (*)(const void *))at[16];
}

#define FO_SHIM                                                                                                        \
    "dtype_float32 dtype_float64 dtype_bfloat16 dtype_float16 dtype_int16 dtype_uint8 device_type_cpu layout_strided "   \
    "get_data_ptr get_sizes get_strides get_dim get_dtype get_device_type get_layout get_storage_size get_storage_offset"

/* The place of the at::Tensor in Python's object for it, if it is one of the two that are known; else 0. */
static inline ptrdiff_t fo_shim_find(PyObject *object, void *handle)
{
    ptrdiff_t place = sizeof(PyObject), i;
    for (i = 0; i < 2; i++, place += sizeof(void *))
        if (*(void **)((char *)object + place) == *(void **)handle)
            return place;
    return 0;
}

/* The place of a storage in what a tensor points to (it is among the first members); else 0. */
static inline ptrdiff_t fo_shim_find_storage(const fo_shim_t *s, PyObject *object, uintptr_t storage)
{
    const uintptr_t *members = *(uintptr_t **)((char *)object + s->place);
    ptrdiff_t i;
    for (i = 1; i < 8; i++)
        if (members[i] == storage)
            return i * (ptrdiff_t)sizeof(uintptr_t);
    return 0;
}

/* Where a look at a tensor leads: after other work these are in no cache, and each is known by the one before. They are
 * remembered, to be asked for all at once, ahead. Only that: they may be gone. */
typedef struct {
    const char *object, *impl, *storage;
} fo_trail_t;

static inline void fo_shim_trail(const fo_shim_t *s, PyObject *object, fo_trail_t *trail)
{
    trail->object = (const char *)object;
    trail->impl = *(const char **)((char *)object + s->place);
    trail->storage = s->storage_place ? *(const char **)(trail->impl + s->storage_place) : NULL;
}

FO_ALWAYS_INLINE void fo_prefetch_trail(const fo_trail_t *trail)
{
    fo_prefetch(trail->object, 1);
    fo_prefetch(trail->impl, 256);
    fo_prefetch(trail->storage, 128);
}

/* The member after a tensor's storage, where PyTorch keeps what autograd knows: only to be asked for. */
static inline const char *fo_shim_beside(const fo_shim_t *s, const fo_trail_t *trail)
{
    return s->storage_place ? *(const char **)(trail->impl + s->storage_place + sizeof(void *)) : NULL;
}

/* What counts the versions of a tensor; NULL for one that has no such thing, an inference tensor, or if there is no way
 * to know. */
static inline const char *fo_shim_counter(const fo_shim_t *s, PyObject *object)
{
    return s->version_counter != NULL ? (const char *)*s->version_counter((char *)object + s->place) : NULL;
}

/* Note that a tensor, which has a counter, was written to. */
static inline void fo_shim_bump(const fo_shim_t *s, PyObject *object)
{
    s->bump_version((char *)object + s->place);
}

/* 1 if a tensor has these sizes and strides. */
static inline int fo_shim_has(const fo_shim_t *s, void *handle, int ndim, const int64_t *form)
{
    int64_t dim, *shape, *strides;
    return !s->dim(handle, &dim) && !s->sizes(handle, &shape) && !s->strides(handle, &strides)
        && fo_same_form(dim, shape, strides, ndim, form);
}

/* 1 if a tensor has this type. */
static inline int fo_shim_is(const fo_shim_t *s, void *handle, int type)
{
    int32_t code;
    if (s->type(handle, &code))
        return 0;
    if (type == FO_FLOAT)
        return code == s->f32;
    switch (type) {
    case FO_DOUBLE: return code == s->f64;
    case FO_BFLOAT16: return code == s->bf16;
    case FO_HALF: return code == s->f16;
    case FO_SHORT: return code == s->i16;
    case FO_UBYTE: return code == s->u8;
    default: return 0;
    }
}

/* 1 if a tensor is in the CPU's memory. */
static inline int fo_shim_is_near(const fo_shim_t *s, void *handle)
{
    int32_t layout, device;
    return !s->layout(handle, &layout) && layout == s->strided && !s->device(handle, &device) && device == s->cpu;
}

/* The memory of a tensor that has this type, these sizes and strides, on the CPU, and its sign not as a flag; else
 * NULL. */
static inline void *fo_shim_fits(const fo_shim_t *s, PyObject *object, int type, int ndim, const int64_t *form)
{
    void *handle = (char *)object + s->place, *data;
    if (!fo_shim_is_near(s, handle) || !fo_shim_is(s, handle, type) || !fo_shim_has(s, handle, ndim, form)
        || (s->is_neg != NULL && s->is_neg(handle)) || s->data(handle, &data))
        return NULL;
    return data;
}

/* 1 if a tensor has this memory and type still, and these sizes and strides unless ndim is -1. */
static inline int fo_shim_same(const fo_shim_t *s, PyObject *object, const void *data, int type, int ndim,
                               const int64_t *form)
{
    void *handle = (char *)object + s->place, *now;
    return !s->data(handle, &now) && now == data && fo_shim_is(s, handle, type)
        && (ndim < 0 || fo_shim_has(s, handle, ndim, form));
}

/* The memory of a tensor that a step may write to: as fo_shim_fits, aligned, no inference tensor, and with a storage that
 * holds all of its n elements, which have to be dense; else NULL. Needs both C++ functions. */
static inline void *fo_shim_writable(const fo_shim_t *s, PyObject *object, int type, int ndim, const int64_t *form,
                                     int64_t n)
{
    void *handle = (char *)object + s->place, *data = fo_shim_fits(s, object, type, ndim, form);
    int64_t bytes, offset, width = fo_width(type);
    if (data == NULL || (uintptr_t)data % width || s->is_inference(handle)
        || (s->version_counter != NULL && *s->version_counter(handle) == NULL) || s->storage_bytes(handle, &bytes)
        || s->storage_offset(handle, &offset) || bytes / width - offset < n)
        return NULL;
    return data;
}

/* Describe a tensor as fo_look_t does; -1, without a Python error, if it has no memory to speak of. */
static inline int fo_shim_look(const fo_shim_t *s, PyObject *object, fo_tensor_t *t)
{
    void *handle = (char *)object + s->place;
    int32_t type;
    int64_t dim;
    if (!fo_shim_is_near(s, handle) || s->type(handle, &type) || s->dim(handle, &dim) || s->sizes(handle, &t->shape)
        || s->strides(handle, &t->strides) || s->data(handle, &t->data))
        return -1;
    t->device_type = 1;
    t->code = type == s->bf16 ? 4 : type == s->i16 ? 0 : type == s->u8 ? 1 : 2;
    t->lanes = 1;
    t->byte_offset = 0;
    t->ndim = (int32_t)dim;
    t->bits = type == s->f32 ? 32 : type == s->f64 ? 64 : type == s->u8 ? 8
        : type == s->bf16 || type == s->f16 || type == s->i16 ? 16 : 0;
    return 0;
}

/* A number that changes with every change of a dict; 0 where Python has none (from 3.12 on). */
static inline uint64_t fo_dict_version(PyObject *dict)
{
#if PY_VERSION_HEX < 0x030C0000 && !defined(PYPY_VERSION)
    return ((PyDictObject *)dict)->ma_version_tag;
#else
    (void)dict;
    return 0;
#endif
}

/* Where a dict has its keys and values: only to be asked for. */
static inline const char *fo_dict_entries(PyObject *dict)
{
#if defined(PYPY_VERSION)
    return NULL;
#else
    return (const char *)((PyDictObject *)dict)->ma_keys;
#endif
}

/* The attribute that a getset descriptor of a type gives: a new reference, or NULL with a Python error. */
static inline PyObject *fo_get(PyObject *descriptor, PyObject *object)
{
    PyGetSetDef *getset = ((PyGetSetDescrObject *)descriptor)->d_getset;
    return getset->get(object, getset->closure);
}

#endif
