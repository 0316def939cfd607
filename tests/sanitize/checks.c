/* What steps.py asks Valgrind. */
#include <stddef.h>
#include <valgrind/memcheck.h>

/* 1 if some byte of these was never written, or computed from one that was not. */
int first_undefined(const void *p, size_t n)
{
    return VALGRIND_CHECK_MEM_IS_DEFINED(p, n) != 0;
}
