# The bank of a step: its scalars, once for all parameters of a group that have taken the same steps.

cdef struct Bank:
    StepScalars *items
    Py_ssize_t n
    Py_ssize_t room           # for so many items


cdef Py_ssize_t new_scalars(Bank *bank, Group group, const Param *q) except -1:
    """The place of the scalars that this parameter needs for its next step, computed here."""
    cdef void *block
    if bank.n == bank.room:
        block = PyMem_Realloc(bank.items, (2 * bank.room + 1) * sizeof(StepScalars))
        if block == NULL:
            raise MemoryError()
        bank.items = <StepScalars *>block
        bank.room = 2 * bank.room + 1
    group.compute(&bank.items[bank.n], q.t + 1, q.numbers, q.begun)
    bank.n += 1
    return bank.n - 1
