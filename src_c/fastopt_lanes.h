/* The lanes of a sum as vectors of the level that is compiled for. fastopt/kernels/sums.pxi says what is added, and in
 * which order. Plain loops over an array of lanes have the same bits, but of the elements that fill no row, and of the
 * halves, gcc 12 makes scalar code through memory: twice the time at 100 elements. */
#ifndef FASTOPT_LANES_H
#define FASTOPT_LANES_H

#include <stddef.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if !defined(__GNUC__)
enum { FO_WIDE = 1 };                   /* lanes of a vector */
typedef double fo_wide;
#elif defined(__AVX512VL__)
enum { FO_WIDE = 8 };
typedef double fo_wide __attribute__((vector_size(64)));
#elif defined(__AVX__)
enum { FO_WIDE = 4 };
typedef double fo_wide __attribute__((vector_size(32)));
#else
enum { FO_WIDE = 2 };
typedef double fo_wide __attribute__((vector_size(16)));
#endif

static inline fo_wide fo_wide_of(const double *x)
{
    fo_wide a;
    memcpy(&a, x, sizeof(a));
    return a;
}

static inline fo_wide fo_wide_none(void)
{
    double none[FO_WIDE] = {0};
    return fo_wide_of(none);
}

/* FO_WIDE elements of x. */
static inline fo_wide fo_wide_f64(const double *x)
{
    return fo_wide_of(x);
}

static inline fo_wide fo_wide_f32(const float *x)
{
#if defined(__GNUC__) && defined(__SSE2__) && !defined(__AVX__)
    return (fo_wide)_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)x)));
#else
    double a[FO_WIDE];
    int j;
    for (j = 0; j < FO_WIDE; j++)
        a[j] = x[j];
    return fo_wide_of(a);
#endif
}

/* The first n elements of x, 0 < n <= FO_WIDE, and zeros; nothing is read beyond. */
static inline fo_wide fo_part_f64(const double *x, ptrdiff_t n)
{
#if defined(__GNUC__) && defined(__AVX512VL__)
    return (fo_wide)_mm512_maskz_loadu_pd((__mmask8)((1 << n) - 1), x);
#elif defined(__GNUC__) && defined(__AVX__)
    static const long long mask[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
    __m256i m = _mm256_loadu_si256((const __m256i *)(mask + FO_WIDE - n));
    return (fo_wide)_mm256_maskload_pd(x, m);
#elif defined(__GNUC__)
    if (n == 1)
        return (fo_wide){x[0], 0};
    return (fo_wide){x[0], x[1]};
#else
    (void)n;
    return x[0];
#endif
}

static inline fo_wide fo_part_f32(const float *x, ptrdiff_t n)
{
#if defined(__GNUC__) && defined(__AVX512VL__)
    return (fo_wide)_mm512_cvtps_pd(_mm256_maskz_loadu_ps((__mmask8)((1 << n) - 1), x));
#elif defined(__GNUC__) && defined(__AVX__)
    static const int mask[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
    __m128i m = _mm_loadu_si128((const __m128i *)(mask + FO_WIDE - n));
    return (fo_wide)_mm256_cvtps_pd(_mm_maskload_ps(x, m));
#elif defined(__GNUC__)
    if (n == 1)
        return (fo_wide){x[0], 0};
    return (fo_wide){x[0], x[1]};
#else
    (void)n;
    return x[0];
#endif
}

#endif
