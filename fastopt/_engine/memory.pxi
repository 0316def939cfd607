# Which memory belongs to parameters and states: no two of them may share any, and no gradient may touch it.

cdef struct Interval:
    char *low
    char *high
    Py_ssize_t param
    int slot                  # place in the parameter's state, -1 for the parameter itself, -2 for its mirror


cdef class Memory:
    """The sorted intervals of all parameters and states; raises if two of them overlap."""
    cdef Interval *intervals
    cdef Py_ssize_t n
    cdef Py_ssize_t room              # for so many
    cdef char *gap_low                # between two intervals, where the last gradient lay
    cdef char *gap_high

    def __cinit__(self, list arrays, list names, list states, list mirrors=None):
        cdef Py_ssize_t i, size = len(arrays) + (0 if mirrors is None else len(mirrors))
        cdef dict state
        for state in states:
            size += len(state)
        self.reserve(size)
        for i in range(len(arrays)):
            self.note(arrays[i], i, -1)
            if i < len(states):
                for slot, array in enumerate((<dict>states[i]).values()):
                    self.note(array, i, slot)
            if mirrors is not None and i < len(mirrors) and mirrors[i] is not None:
                self.note(mirrors[i], i, -2)
        i = self.sort()
        if i:
            raise OverlapError(clash(&self.intervals[i - 1], &self.intervals[i], names, states))

    def __dealloc__(self):
        PyMem_Free(self.intervals)

    cdef reserve(self, Py_ssize_t n):
        """Memory for n intervals."""
        self.intervals = <Interval *>renewed(self.intervals, n * <Py_ssize_t>sizeof(Interval))
        self.room = n

    cdef note(self, cnp.ndarray array, Py_ssize_t param, int slot):
        """Add the memory of an array, if it has any elements."""
        if cnp.PyArray_SIZE(array):
            self.append(<char *>cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array), param, slot)

    cdef void append(self, char *low, Py_ssize_t n_bytes, Py_ssize_t param, int slot) noexcept:
        self.intervals[self.n] = Interval(low, low + n_bytes, param, slot)
        self.n += 1

    cdef Py_ssize_t sort(self) noexcept:
        """Sort the intervals; the place of the first that overlaps the one before it, else 0."""
        cdef Py_ssize_t i
        self.gap_low = self.gap_high = NULL
        qsort(self.intervals, self.n, sizeof(Interval), by_address)
        for i in range(1, self.n):
            if self.intervals[i - 1].high > self.intervals[i].low:
                return i
        return 0

    cdef Py_ssize_t place_of(self, char *low) noexcept:
        """The place of the first interval that ends above `low`."""
        cdef Py_ssize_t a = 0, b = self.n, middle
        while a < b:
            middle = (a + b) // 2
            if self.intervals[middle].high <= low:
                a = middle + 1
            else:
                b = middle
        return a

    cdef void remove(self, char *low, Py_ssize_t param, int slot) noexcept:
        """Remove the interval of a parameter or state at `low`, if there is one."""
        cdef Py_ssize_t a = self.place_of(low)
        cdef Interval *x = &self.intervals[a]
        if a < self.n and x.low == low and x.param == param and x.slot == slot:
            memmove(x, x + 1, (self.n - a - 1) * sizeof(Interval))
            self.n -= 1

    cdef bint insert(self, char *low, Py_ssize_t n_bytes, Py_ssize_t param, int slot) noexcept:
        """Add an interval in its place; False, and nothing added, if it overlaps another or there is no room."""
        cdef Py_ssize_t a = self.place_of(low)
        cdef Interval *x = &self.intervals[a]
        if self.n == self.room or (a < self.n and x.low < low + n_bytes):
            return False
        memmove(x + 1, x, (self.n - a) * sizeof(Interval))
        x[0] = Interval(low, low + n_bytes, param, slot)
        self.n += 1
        self.gap_low = self.gap_high = NULL
        return True

    cdef bint is_free(self, char *low, char *high) noexcept:
        """Whether [low, high) meets no interval; if so, gap_low and gap_high say where it lies.

        Gradients come in runs: the gap of the last one is tried first.
        """
        cdef Py_ssize_t a
        if self.gap_low <= low and high <= self.gap_high:
            return True
        a = self.place_of(low)
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
    if x.slot == -2:
        return f"mirror of {label}"
    return f"state {list(states[x.param])[x.slot]!r} of {label}" if x.slot >= 0 else label


cdef str clash(const Interval *a, const Interval *b, list names, list states):
    """What to say of two intervals that share memory."""
    same = a.low == b.low and a.high == b.high
    if (a.param, a.slot) > (b.param, b.slot):
        a, b = b, a
    return (f"{owner_of(b, names, states)} {'is the same memory as' if same else 'overlaps'} "
            f"{owner_of(a, names, states)}; every parameter, state and mirror needs memory of its own")


cdef void *renewed(void *block, Py_ssize_t size) except NULL:
    """A block of memory, in another size; at least one byte."""
    block = PyMem_Realloc(block, max(1, size))
    if block == NULL:
        raise MemoryError()
    return block
