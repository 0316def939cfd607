# Memory for the state of a plan's tensors, and tensors over it: see fastopt/_tensors.py.

cdef extern from "fastopt_tensors.h":
    ctypedef struct fo_managed_t:
        pass
    ctypedef int (*fo_import_t)(fo_managed_t *tensor, void **out)
    fo_import_t fo_exchange_import(capsule) except? NULL
    object fo_tensor_over(fo_import_t take, object keeper, const fo_tensor_t *t)
    void fo_describe_number(fo_tensor_t *t, int type) noexcept
    void fo_describe_type(fo_tensor_t *t, int type) noexcept
    enum:
        FO_SHORT
        FO_UBYTE

# The types of state that is not of its parameter's type, by PyTorch's names.
TYPES = {"float32": FO_FLOAT, "bfloat16": FO_BFLOAT16, "int16": FO_SHORT, "uint8": FO_UBYTE}

cdef struct ArenaPiece:
    char *base
    Py_ssize_t size
    Py_ssize_t taken


cdef class Arena:
    """Memory for the state of one plan's parameters: tensors side by side, each with a storage of its own.

    One by one PyTorch's allocator scatters them, and after other work a step waits for each: for its line, and for the
    entry of its page. Slots lie a quarter page apart, those of large tensors from the parameter, too: a load waits for
    any store whose address ends in the same twelve bits.

    `exchange` is DLPack's capsule of the tensors' library, by which it makes tensors of memory; without it the arena
    gives None.
    """
    cdef public Py_ssize_t most       # bytes of a piece for several tensors
    cdef fo_look_t look
    cdef fo_import_t over             # or NULL
    cdef ArenaPiece at[MAX_STATES + 1]     # for the counts, then for each slot: the piece that has room,
    cdef list known                   # and a weak reference to it, or None: tensors keep it alive, the plan does not

    def __cinit__(self, exchange):
        self.most = 1 << 26
        self.known = (MAX_STATES + 1) * [None]
        if exchange is not None:
            self.look, self.over = fo_exchange_look(exchange), fo_exchange_import(exchange)
            if self.look == NULL:
                self.over = NULL

    def zeros(self, own, int place, str kind=None, Py_ssize_t flat=-1):
        """A tensor of zeros like a dense one, for its slot at this place; None if another has to make it.

        Of another type, `kind` (see TYPES), or with one dimension of `flat` elements, if that is asked.
        That is so of an empty one: it would lie where its neighbour does, and `torch.save` refuses two tensors of
        different types at one address.
        """
        cdef fo_tensor_t t
        cdef Py_ssize_t size, like = -1
        cdef int64_t length = flat, step = 1
        cdef int k
        if self.over == NULL or not 0 <= place < MAX_STATES:
            return None
        self.look(<PyObject *>own, &t)
        if not fo_can_step(fo_tensor_type(&t)):
            return None
        if kind is not None:
            fo_describe_type(&t, TYPES[kind])
        if flat >= 0:
            t.ndim, t.shape, t.strides = 1, &length, &step
        size = fo_width(fo_tensor_type(&t))
        for k in range(t.ndim):
            size *= t.shape[k]
        if size == 0:
            return None
        if size >= PAGE:
            like = (<Py_ssize_t>t.data & ~(BLOCK - 1)) + (place + 1) * (PAGE // 4)
        piece = self.take(place + 1, size, like, BLOCK, <char **>&t.data)
        return fo_tensor_over(self.over, piece, &t)

    def zero(self, bint double):
        """A number, which is 0, in float64 or float32; None if another has to make it."""
        cdef fo_tensor_t t
        if self.over == NULL:
            return None
        fo_describe_number(&t, cnp.NPY_DOUBLE if double else cnp.NPY_FLOAT)
        piece = self.take(0, 8 if double else 4, -1, 8 if double else 4, <char **>&t.data)
        return fo_tensor_over(self.over, piece, &t)

    cdef take(self, int place, Py_ssize_t size, Py_ssize_t like, Py_ssize_t grain, char **out):
        """Room for so many bytes, at a multiple of `grain`, and in its page as `like` (or -1); the piece it is in."""
        cdef ArenaPiece at = self.at[place]
        cdef Py_ssize_t start
        cdef bint lone, new = False
        known = self.known[place]
        piece = None if known is None else known()
        while True:
            start = at.taken + (-<Py_ssize_t>(at.base + at.taken) & (grain - 1))
            if like >= 0:
                start += (like - <Py_ssize_t>at.base - start) & (PAGE - 1)
            if piece is not None and start + size <= at.size:
                break
            lone = known is None and like < 0     # and may stay so: many an optimizer has one small parameter
            at.size = at.size if piece is not None else 0
            at.size = size + grain if lone else max(min(2 * at.size, self.most), size + 2 * PAGE)
            piece = np.zeros(at.size, np.uint8)
            new = True
            at.base = <char *>cnp.PyArray_DATA(<cnp.ndarray>piece)
            at.taken = 0 if lone else (place * (PAGE // 4) - <Py_ssize_t>at.base) & (PAGE - 1)
        out[0] = at.base + start
        at.taken = start + size
        if at.size <= self.most:          # in a larger one is nothing left
            if new:
                self.known[place] = weak_reference(piece)
            self.at[place] = at
        return piece

    @property
    def pieces(self):
        """The pieces that have room and are in use, by the place of the slot; -1 for the counts. For tests."""
        alive = [(k - 1, known()) for k, known in enumerate(self.known) if known is not None]
        return {k: piece for k, piece in alive if piece is not None}
