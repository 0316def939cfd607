/* What this module was built with. setup.py gives what the compiler does not know of itself. */
#ifndef FASTOPT_BUILD_H
#define FASTOPT_BUILD_H

#define FO_TEXT_OF(x) #x
#define FO_TEXT(x) FO_TEXT_OF(x)

#if defined(__clang__)
#define FO_COMPILER __VERSION__ /* with its name */
#elif defined(__GNUC__)
#define FO_COMPILER "GCC " __VERSION__
#elif defined(_MSC_FULL_VER)
#define FO_COMPILER "MSVC " FO_TEXT(_MSC_FULL_VER)
#else
#define FO_COMPILER "unknown"
#endif

#ifndef FO_FLAGS
#define FO_FLAGS "unknown"
#endif
#ifndef FO_CYTHON
#define FO_CYTHON "unknown"
#endif
#ifndef FO_NUMPY
#define FO_NUMPY "unknown"
#endif

#endif
