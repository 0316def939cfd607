# How numbers are stored in fewer bits than they are computed in: a tile of float32 is loaded from a format before a
# rule, and stored in it after. The order of the operations IS the specification: FORMATS in fastopt/reference.py does
# the same ones, in NumPy. Included by rules.pxi, and compiled as often.
#
# `a` holds the elements. `b` holds what some formats keep beside them: the low halves of `split`, one for each element,
# or the base of a block of FORMAT_TILE elements. A tile is one block at most, and begins with one. NaN stays NaN, and
# becomes quiet. r is the random number of the first element: element i has r + i * LATTICE, modulo 2**32.
#
# Only whole numbers are added and shifted, so that every compiler and instruction set gives the same bits. A choice is
# made between numbers of 32 bits, which are cut afterwards: of two short ones, gcc 12 packs both and then chooses.

cdef inline uint32_t bits_of(float x) noexcept nogil:
    cdef uint32_t u
    memcpy(&u, &x, sizeof(u))
    return u


cdef inline float float_of(uint32_t u) noexcept nogil:
    cdef float x
    memcpy(&x, &u, sizeof(x))
    return x


# --- bfloat16: the upper half of a float32

cdef void load_bfloat16(float *x, const void *a, const void *b, Py_ssize_t n) noexcept nogil:
    cdef const uint16_t *halves = <const uint16_t *>a
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = float_of(<uint32_t>halves[i] << 16)


cdef void store_bfloat16(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil:
    # To the nearest; of two as near, to the even one.
    cdef uint16_t *halves = <uint16_t *>a
    cdef uint32_t u
    cdef Py_ssize_t i
    for i in range(n):
        u = bits_of(x[i])
        u = u + (0x7FFF + (u >> 16 & 1)) if x[i] == x[i] else u | 0x400000
        halves[i] = <uint16_t>(u >> 16)


cdef void store_bfloat16_stochastic(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil:
    # Up with the chance that the lower half says, else down. The lower half of an infinity is 0.
    cdef uint16_t *halves = <uint16_t *>a
    cdef uint32_t u
    cdef Py_ssize_t i
    for i in range(n):
        u = bits_of(x[i])
        u = u + (r >> 16) if x[i] == x[i] else u | 0x400000
        halves[i] = <uint16_t>(u >> 16)
        r += <uint32_t>LATTICE


# --- float16

cdef void load_float16(float *x, const void *a, const void *b, Py_ssize_t n) noexcept nogil:
    cdef const uint16_t *halves = <const uint16_t *>a
    cdef uint32_t h, u, exponent
    cdef Py_ssize_t i
    for i in range(n):
        h = halves[i]
        u = (h & 0x7FFF) << 13
        exponent = u & 0x0F800000
        u = u + 0x38000000            # from a bias of 15 to one of 127
        u = u + 0x38000000 if exponent == 0x0F800000 else u           # infinity and NaN
        u = u | 0x400000 if u > 0x7F800000 else u
        # Subnormal: a number of one more power of two, less that power. No float32 is subnormal on the way.
        u = bits_of(float_of(u + 0x00800000) - float_of(0x38800000)) if exponent == 0 else u
        x[i] = float_of(u | (h & 0x8000) << 16)


cdef void store_float16(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil:
    # To the nearest; of two as near, to the even one.
    cdef uint16_t *halves = <uint16_t *>a
    cdef uint32_t u, sign, small, normal, huge
    cdef Py_ssize_t i
    for i in range(n):
        u = bits_of(x[i])
        sign = u & 0x80000000U
        u = u ^ sign
        # Below 2**-14: beside 0.5, the last bit of a float32 is that of a subnormal float16, and the sum rounds to it.
        small = bits_of(float_of(u) + float_of(0x3F000000)) - 0x3F000000
        normal = (u - 0x38000000 + 0xFFF + (u >> 13 & 1)) >> 13
        huge = 0x7E00 | (u >> 13 & 0x3FF) if u > 0x7F800000 else <uint32_t>0x7C00
        u = huge if u >= 0x47800000 else normal
        u = small if (bits_of(x[i]) ^ sign) < 0x38800000 else u
        halves[i] = <uint16_t>(u | sign >> 16)


# --- split: a bfloat16 and what it lacks of the float32, in two arrays. No bit is lost.

cdef void load_split(float *x, const void *a, const void *b, Py_ssize_t n) noexcept nogil:
    # Where somebody else has written a 0 or an infinity, the lower half belongs to another number. It is passed over
    # where it would make a NaN of it: nothing else becomes one, and a NaN remains one without it.
    cdef const uint16_t *halves = <const uint16_t *>a
    cdef const int16_t *low = <const int16_t *>b
    cdef uint32_t upper, u
    cdef Py_ssize_t i
    for i in range(n):
        upper = <uint32_t>halves[i] << 16
        u = upper + <uint32_t><int32_t>low[i]
        x[i] = float_of(u if float_of(u) == float_of(u) else upper)


cdef void store_split(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil:
    # To the nearest; of two as near, to the one farther from 0: then the lower half is what is to be added.
    cdef uint16_t *halves = <uint16_t *>a
    cdef int16_t *low = <int16_t *>b
    cdef uint32_t u
    cdef Py_ssize_t i
    for i in range(n):
        u = bits_of(x[i])
        u = u if x[i] == x[i] else 0x7FC00000
        low[i] = <int16_t>(u & 0xFFFF)
        halves[i] = <uint16_t>((u + (u & 0x8000)) >> 16)


# --- 8 bits: without its sign, a float32 cut to three bits of mantissa is the whole number u >> 20. A block stores it
# less a base, so that the largest of the block has the largest code. 0 has the code 0, and nothing else has it.
# Where a block holds an infinity or a NaN, the base has its uppermost bit set, and the two largest codes are those.

cdef inline uint32_t top_of(const float *x, Py_ssize_t n) noexcept nogil:
    # The largest of the numbers without their signs, by its bits.
    cdef int32_t u, found = 0
    cdef Py_ssize_t i
    for i in range(n):
        u = <int32_t>(bits_of(x[i]) & 0x7FFFFFFF)
        found = u if u > found else found
    return <uint32_t>found


cdef uint32_t finite_top_of(const float *x, Py_ssize_t n) noexcept nogil:
    # The same of the finite ones.
    cdef int32_t u, found = 0
    cdef Py_ssize_t i
    for i in range(n):
        u = <int32_t>(bits_of(x[i]) & 0x7FFFFFFF)
        found = u if found < u < 0x7F800000 else found
    return <uint32_t>found


cdef inline int32_t base_of(uint32_t top, int32_t n_codes) noexcept nogil:
    # What the largest of a block is stored less, of so many codes above 0. No finite number has more than FORMAT_TOP.
    cdef int32_t most = <int32_t>(top if top < FORMAT_TOP else FORMAT_TOP)
    return most - n_codes if most > n_codes else 0


cdef void load_e4m3(float *x, const void *a, const void *b, Py_ssize_t n) noexcept nogil:
    # A sign and seven bits.
    cdef const uint8_t *codes = <const uint8_t *>a
    cdef uint32_t base = (<const uint16_t *>b)[0] & 0x7FFF, c, u
    cdef bint special = (<const uint16_t *>b)[0] >> 15
    cdef Py_ssize_t i
    for i in range(n):
        c = codes[i] & 0x7F
        u = (c + base) << 20 if c != 0 else 0
        x[i] = float_of(u | (<uint32_t>codes[i] & 0x80) << 24)
    if special:
        for i in range(n):
            c = codes[i] & 0x7F
            if c >= 126:
                x[i] = float_of((0x7F800000 if c == 127 else 0x7FC00000) | (<uint32_t>codes[i] & 0x80) << 24)


cdef void store_e4m3(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil:
    # To the nearest; of two as near, to the one farther from 0.
    cdef uint8_t *codes = <uint8_t *>a
    cdef uint32_t top = top_of(x, n)
    cdef bint special = top >= 0x7F800000
    cdef int32_t most = 125 if special else 127
    cdef int32_t base = base_of(((finite_top_of(x, n) if special else top) + 0x80000) >> 20, most)
    cdef int32_t c
    cdef uint32_t u
    cdef Py_ssize_t i
    (<uint16_t *>b)[0] = <uint16_t>(base | (0x8000 if special else 0))
    for i in range(n):
        u = bits_of(x[i])
        c = <int32_t>(((u & 0x7FFFFFFF) + 0x80000) >> 20) - base
        c = c if c > 0 else 0
        c = c if c < most else most
        codes[i] = <uint8_t>(<uint32_t>c | (u >> 24 & 0x80))
    if special:
        for i in range(n):
            u = bits_of(x[i])
            if (u & 0x7FFFFFFF) >= 0x7F800000:
                codes[i] = <uint8_t>((127 if (u & 0x7FFFFFFF) == 0x7F800000 else 126) | (u >> 24 & 0x80))


cdef void load_ue5m3(float *x, const void *a, const void *b, Py_ssize_t n) noexcept nogil:
    # Eight bits, of numbers that are not negative.
    cdef const uint8_t *codes = <const uint8_t *>a
    cdef uint32_t base = (<const uint16_t *>b)[0] & 0x7FFF, c
    cdef bint special = (<const uint16_t *>b)[0] >> 15
    cdef Py_ssize_t i
    for i in range(n):
        c = codes[i]
        x[i] = float_of((c + base) << 20 if c != 0 else 0)
    if special:
        for i in range(n):
            if codes[i] >= 254:
                x[i] = float_of(0x7F800000 if codes[i] == 255 else 0x7FC00000)


cdef void store_ue5m3(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil:
    # Up with the chance that the lower 20 bits say, else down; to the least code above 0 what is less than that. A sign
    # is dropped.
    cdef uint8_t *codes = <uint8_t *>a
    cdef uint32_t top = top_of(x, n)
    cdef bint special = top >= 0x7F800000
    cdef int32_t most = 253 if special else 255
    cdef int32_t base = base_of(((finite_top_of(x, n) if special else top) + 0xFFFFF) >> 20, most)
    cdef int32_t c
    cdef uint32_t u
    cdef Py_ssize_t i
    (<uint16_t *>b)[0] = <uint16_t>(base | (0x8000 if special else 0))
    for i in range(n):
        u = bits_of(x[i]) & 0x7FFFFFFF
        c = <int32_t>((u + (r >> 12)) >> 20) - base
        c = c if c > 1 else 1
        c = c if c < most else most
        codes[i] = <uint8_t>(c if u != 0 else 0)
        r += <uint32_t>LATTICE
    if special:
        for i in range(n):
            u = bits_of(x[i]) & 0x7FFFFFFF
            if u >= 0x7F800000:
                codes[i] = <uint8_t>(255 if u == 0x7F800000 else 254)
