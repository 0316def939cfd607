# What is summed over the elements of an array, tile by tile. The order of the operations IS the specification: SUMS in
# fastopt/reference.py does the same ones, in NumPy. Included by rules.pxi, and compiled as often.
#
# A tile is SUM_TILE elements, counted from the first of the array in memory order; the last may have fewer. In a tile,
# lane j takes the elements j, j + SUM_LANES, j + 2 * SUM_LANES, ... in order, in double; then the lanes are added by
# halves. The lanes are independent of each other, so that vectors of every width add in the same order.
#
# x begins at a tile and has n elements; sums[k] is that of its k-th tile. `sums` may be x: a tile is read before its
# sum is written. SUM_TILE and SUM_LANES are part of the specification, and never change.

ctypedef fused bits:
    int32_t
    int64_t


cdef extern from "fastopt_lanes.h" nogil:
    enum:
        FO_WIDE           # lanes in a vector,
        WIDES "(16 / FO_WIDE)"      # and vectors of SUM_LANES
    ctypedef double fo_wide         # a vector of lanes: added and multiplied lane by lane
    fo_wide fo_wide_none()
    fo_wide fo_wide_f32(const float *x)
    fo_wide fo_wide_f64(const double *x)
    fo_wide fo_part_f32(const float *x, Py_ssize_t n)
    fo_wide fo_part_f64(const double *x, Py_ssize_t n)


cdef inline fo_wide wide(const real *x) noexcept nogil:
    # As many elements as a vector has lanes.
    if real is float:
        return fo_wide_f32(x)
    else:
        return fo_wide_f64(x)


cdef inline fo_wide part(const real *x, Py_ssize_t n) noexcept nogil:
    # n elements, and zeros: these leave a lane as it is, since none is ever -0.
    if real is float:
        return fo_part_f32(x, n)
    else:
        return fo_part_f64(x, n)


cdef inline double joined(fo_wide *vectors) noexcept nogil:
    # The sum of the lanes. No loop over halves: gcc 12 would keep the lanes in memory.
    cdef double lanes[SUM_LANES]
    cdef Py_ssize_t j
    memcpy(lanes, vectors, sizeof(lanes))
    for j in range(8):
        lanes[j] = lanes[j] + lanes[j + 8]
    for j in range(4):
        lanes[j] = lanes[j] + lanes[j + 4]
    for j in range(2):
        lanes[j] = lanes[j] + lanes[j + 2]
    return lanes[0] + lanes[1]


cdef void squares(double *sums, const real *x, Py_ssize_t n) noexcept nogil:
    # The squares of the elements; that of a float32 is exact in double.
    cdef fo_wide lanes[WIDES]
    cdef fo_wide a
    cdef Py_ssize_t i, j, k, size
    for k in range((n + SUM_TILE - 1) // SUM_TILE):
        size = min(n - SUM_TILE * k, SUM_TILE)
        for j in range(WIDES):
            lanes[j] = fo_wide_none()
        for i in range(size // SUM_LANES):
            for j in range(WIDES):
                a = wide(x + FO_WIDE * j)
                lanes[j] = lanes[j] + a * a
            x += SUM_LANES
        size = size % SUM_LANES
        for j in range(WIDES):
            if FO_WIDE * j < size:
                a = part(x + FO_WIDE * j, min(size - FO_WIDE * j, FO_WIDE))
                lanes[j] = lanes[j] + a * a
        x += size
        sums[k] = joined(lanes)


cdef void values(double *sums, const double *x, Py_ssize_t n) noexcept nogil:
    # The elements themselves: what adds the sums of tiles, and of arrays.
    cdef fo_wide lanes[WIDES]
    cdef Py_ssize_t i, j, k, size
    for k in range((n + SUM_TILE - 1) // SUM_TILE):
        size = min(n - SUM_TILE * k, SUM_TILE)
        for j in range(WIDES):
            lanes[j] = fo_wide_none()
        for i in range(size // SUM_LANES):
            for j in range(WIDES):
                lanes[j] = lanes[j] + wide(x + FO_WIDE * j)
            x += SUM_LANES
        size = size % SUM_LANES
        for j in range(WIDES):
            if FO_WIDE * j < size:
                lanes[j] = lanes[j] + part(x + FO_WIDE * j, min(size - FO_WIDE * j, FO_WIDE))
        x += size
        sums[k] = joined(lanes)


cdef inline bits most(const void *x, Py_ssize_t n, bits magnitude_bits) noexcept nogil:
    # The largest of the numbers without their signs, by their bits: these are in the order of the numbers, NaNs above
    # infinity. Of whole numbers, compilers take the largest in vectors; of floating-point ones they do not.
    cdef bits lanes[SUM_LANES]
    cdef bits a, found = 0
    cdef Py_ssize_t i, j
    for j in range(SUM_LANES):
        lanes[j] = 0
    for i in range(n // SUM_LANES):
        for j in range(SUM_LANES):
            memcpy(&a, <const char *>x + (SUM_LANES * i + j) * <Py_ssize_t>sizeof(bits), sizeof(bits))
            a = a & magnitude_bits
            lanes[j] = a if a > lanes[j] else lanes[j]
    for i in range(n // SUM_LANES * SUM_LANES, n):
        memcpy(&a, <const char *>x + i * <Py_ssize_t>sizeof(bits), sizeof(bits))
        a = a & magnitude_bits
        found = a if a > found else found
    for j in range(SUM_LANES):
        found = lanes[j] if lanes[j] > found else found
    return found


cdef void maximum(double *sums, const real *x, Py_ssize_t n) noexcept nogil:
    # No sum, but found tile by tile as one: the largest absolute value, NaN if there is one. In any order the same.
    cdef int32_t found32
    cdef int64_t found64
    cdef real found
    cdef Py_ssize_t k
    for k in range((n + SUM_TILE - 1) // SUM_TILE):
        if real is float:
            found32 = most[int32_t](x + SUM_TILE * k, min(n - SUM_TILE * k, SUM_TILE), 0x7FFFFFFF)
            memcpy(&found, &found32, sizeof(found))
        else:
            found64 = most[int64_t](x + SUM_TILE * k, min(n - SUM_TILE * k, SUM_TILE), 0x7FFFFFFFFFFFFFFF)
            memcpy(&found, &found64, sizeof(found))
        sums[k] = found


cdef double euclidean(double total) noexcept nogil:
    return sqrt(total)


cdef double itself(double total) noexcept nogil:
    return total
