# The shape that all rules share, so that one table serves them all. Types only: nothing is compiled from this file.

from libc.stdint cimport uint32_t

ctypedef void (*F32Rule)(float *p, const float *g, float **s, const float *h, Py_ssize_t n) noexcept nogil
ctypedef void (*F64Rule)(double *p, const double *g, double **s, const double *h, Py_ssize_t n) noexcept nogil
# The scalars of step t, in double: from the hyperparameters x (in the order of Rule.hyper) to h[1:]. h[0] is the
# factor of decoupled weight decay, which every rule has and the engine fills. numbers are the MAX_NUMBERS that a
# parameter takes from step to step (NAdam's product of momenta; whether SGD's buffer has been started).
ctypedef void (*Scalars)(const double *x, double t, double *numbers, double *h) noexcept nogil

# The sums of x, one for each tile of SUM_TILE elements.
ctypedef void (*F32Sum)(double *sums, const float *x, Py_ssize_t n) noexcept nogil
ctypedef void (*F64Sum)(double *sums, const double *x, Py_ssize_t n) noexcept nogil
ctypedef double (*Root)(double total) noexcept nogil

# From a format to float32, and back: see formats.pxi.
ctypedef void (*Load)(float *x, const void *a, const void *b, Py_ssize_t n) noexcept nogil
ctypedef void (*Store)(void *a, void *b, const float *x, Py_ssize_t n, uint32_t r) noexcept nogil

cdef enum:
    MAX_STATES = 4
    MAX_NUMBERS = 2       # that a parameter carries from step to step
    MAX_SCALARS = 12      # h[0] and at most eleven more
    MAX_HYPER = 10
    MAX_RULES = 40
    MAX_STAGES = 20
    MAX_SUMS = 8
    SUM_TILE = 1024       # elements whose sum is taken at once; part of the specification of bits, as the next
    SUM_LANES = 16
    MAX_FORMATS = 8
    FORMAT_TILE = 256     # elements that are stored at once; part of the specification of bits, as the next
    FORMAT_TOP = 0x7F7    # the largest finite float32, cut to 8 bits of exponent and 3 of mantissa
    LATTICE = 0x9E3779B9  # between the random numbers of neighbours
    TABLE_VERSION = 7

cdef struct Rule:
    const char *name
    const char *hyper     # names of x, separated by blanks
    int n_states
    int n_scalars         # h[0] included
    Scalars scalars
    F32Rule f32
    F64Rule f64

cdef struct Sum:
    const char *name
    F32Sum f32
    F64Sum f64
    F64Sum join           # adds what the tiles gave, and then the arrays
    Root norm             # what is asked for, from the sum over all

cdef struct Format:
    const char *name
    int size              # bytes of an element
    int beside            # and beside it,
    int block             # or beside so many elements; 0: beside each
    Load load
    Store store

cdef struct Table:
    int version
    int n
    Rule rules[MAX_RULES]
    int n_stages
    Rule stages[MAX_STAGES]   # what is done around a rule: no scalars function, no state
    int n_sums
    Sum sums[MAX_SUMS]
    int n_formats
    Format formats[MAX_FORMATS]
