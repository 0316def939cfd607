# Which memory belongs to parameters and states: no two of them may share any, and no gradient may touch it.

cdef struct Interval:
    char *low
    char *high
    Py_ssize_t param
    int slot                  # place in the parameter's state, -1 for the parameter itself


cdef class Memory:
    """The sorted intervals of all parameters and states; raises if two of them overlap."""
    cdef Interval *intervals
    cdef Py_ssize_t n
    cdef char *gap_low                # between two intervals, where the last gradient lay
    cdef char *gap_high

    def __cinit__(self, list arrays, list names, list states):
        cdef Py_ssize_t i, size = len(arrays)
        cdef dict state
        for state in states:
            size += len(state)
        self.intervals = <Interval *>PyMem_Malloc(max(1, size) * sizeof(Interval))
        if self.intervals == NULL:
            raise MemoryError()
        for i in range(len(arrays)):
            self.note(arrays[i], i, -1)
            if i < len(states):
                for slot, array in enumerate((<dict>states[i]).values()):
                    self.note(array, i, slot)
        qsort(self.intervals, self.n, sizeof(Interval), by_address)
        for i in range(1, self.n):
            if self.intervals[i - 1].high > self.intervals[i].low:
                raise OverlapError(clash(&self.intervals[i - 1], &self.intervals[i], names, states))

    def __dealloc__(self):
        PyMem_Free(self.intervals)

    cdef note(self, cnp.ndarray array, Py_ssize_t param, int slot):
        """Add the memory of an array, if it has any elements."""
        cdef Interval *x = &self.intervals[self.n]
        if cnp.PyArray_SIZE(array):
            x.low = <char *>cnp.PyArray_DATA(array)
            x.high = x.low + cnp.PyArray_NBYTES(array)
            x.param, x.slot = param, slot
            self.n += 1

    cdef bint is_free(self, char *low, char *high) noexcept:
        """Whether [low, high) meets no interval; if so, gap_low and gap_high say where it lies.

        Gradients come in runs: the gap of the last one is tried first.
        """
        cdef Py_ssize_t a = 0, b = self.n, middle
        if self.gap_low <= low and high <= self.gap_high:
            return True
        while a < b:                  # the first interval that ends above low
            middle = (a + b) // 2
            if self.intervals[middle].high <= low:
                a = middle + 1
            else:
                b = middle
        self.gap_low = self.intervals[a - 1].high if a > 0 else NULL
        self.gap_high = self.intervals[a].low if a < self.n else <char *><uintptr_t>-1
        return high <= self.gap_high

    cdef bint meets(self, cnp.ndarray array) noexcept:
        """Whether the memory from the first to the last element of an array meets an interval."""
        cdef char *low = <char *>cnp.PyArray_DATA(array)
        cdef char *high = low + cnp.PyArray_ITEMSIZE(array)
        cdef int k
        cdef Py_ssize_t reach
        if cnp.PyArray_SIZE(array) == 0:
            return False
        for k in range(cnp.PyArray_NDIM(array)):
            reach = (cnp.PyArray_DIM(array, k) - 1) * cnp.PyArray_STRIDE(array, k)
            if reach < 0:
                low += reach
            else:
                high += reach
        return not self.is_free(low, high)


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef char *x = (<const Interval *>a).low
    cdef char *y = (<const Interval *>b).low
    return (x > y) - (x < y)


cdef str owner_of(const Interval *x, list names, list states):
    """What messages call the owner of an interval."""
    label = label_of(names, x.param)
    return f"state {list(states[x.param])[x.slot]!r} of {label}" if x.slot >= 0 else label


cdef str clash(const Interval *a, const Interval *b, list names, list states):
    """What to say of two intervals that share memory."""
    same = a.low == b.low and a.high == b.high
    if (a.param, a.slot) > (b.param, b.slot):
        a, b = b, a
    return (f"{owner_of(b, names, states)} {'is the same memory as' if same else 'overlaps'} "
            f"{owner_of(a, names, states)}; every parameter and state needs memory of its own")


cdef void *renewed(void *block, Py_ssize_t size) except NULL:
    """A block of memory, in another size; at least one byte."""
    block = PyMem_Realloc(block, max(1, size))
    if block == NULL:
        raise MemoryError()
    return block
