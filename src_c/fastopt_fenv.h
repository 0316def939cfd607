/* The floating-point environment of one worker.
 *
 * Another library may have switched on flush-to-zero, another rounding mode or traps; one linked with
 * -ffast-math may do so as it is loaded. The bits of a step must not depend on that, so every worker does
 *
 *     fo_fenv_t saved = fo_fenv_enter();   round to nearest, subnormals kept, exceptions masked
 *     ... kernels ...
 *     fo_fenv_leave(saved);                everything as before, the sticky exception flags too
 *
 * The arithmetic between the two must sit behind a call that is not inlined (a kernel's pointer), since
 * compilers may move floating-point operations across the change of mode. Writing the control register is
 * slow and reading it is not, so it is written only when it differs.
 */
#ifndef FASTOPT_FENV_H
#define FASTOPT_FENV_H

#if defined(__SSE2__) || (defined(_M_X64) && !defined(_M_ARM64EC)) || (defined(_M_IX86_FP) && _M_IX86_FP >= 2)

#include <xmmintrin.h>

typedef struct {
    unsigned csr;
} fo_fenv_t;

#define FO_MXCSR_FLAGS 0x003fu   /* the sticky exception flags */
#define FO_MXCSR_DEFAULT 0x1f80u /* all exceptions masked, round to nearest, neither FTZ nor DAZ */

static inline fo_fenv_t fo_fenv_enter(void)
{
    fo_fenv_t saved;
    saved.csr = _mm_getcsr();
    if ((saved.csr & ~FO_MXCSR_FLAGS) != FO_MXCSR_DEFAULT)
        _mm_setcsr(FO_MXCSR_DEFAULT);
    return saved;
}

static inline void fo_fenv_leave(fo_fenv_t saved)
{
    if (_mm_getcsr() != saved.csr)
        _mm_setcsr(saved.csr);
}

#elif defined(__aarch64__) || defined(_M_ARM64) || defined(_M_ARM64EC)

#include <stdint.h>

/* FPCR holds the modes, and 0 is the default of every ABI; FPSR holds the sticky flags. */
typedef struct {
    uint64_t fpcr, fpsr;
} fo_fenv_t;

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define FO_READ_FPCR(v) ((v) = (uint64_t)_ReadStatusReg(0x5a20))
#define FO_READ_FPSR(v) ((v) = (uint64_t)_ReadStatusReg(0x5a21))
#define FO_WRITE_FPCR(v) _WriteStatusReg(0x5a20, (__int64)(v))
#define FO_WRITE_FPSR(v) _WriteStatusReg(0x5a21, (__int64)(v))
#else
#define FO_READ_FPCR(v) __asm__ volatile("mrs %0, fpcr" : "=r"(v))
#define FO_READ_FPSR(v) __asm__ volatile("mrs %0, fpsr" : "=r"(v))
#define FO_WRITE_FPCR(v) __asm__ volatile("msr fpcr, %0" : : "r"(v) : "memory")
#define FO_WRITE_FPSR(v) __asm__ volatile("msr fpsr, %0" : : "r"(v) : "memory")
#endif

static inline fo_fenv_t fo_fenv_enter(void)
{
    fo_fenv_t saved;
    FO_READ_FPCR(saved.fpcr);
    FO_READ_FPSR(saved.fpsr);
    if (saved.fpcr != 0)
        FO_WRITE_FPCR((uint64_t)0);
    return saved;
}

static inline void fo_fenv_leave(fo_fenv_t saved)
{
    uint64_t now;
    FO_READ_FPCR(now);
    if (now != saved.fpcr)
        FO_WRITE_FPCR(saved.fpcr);
    FO_READ_FPSR(now);
    if (now != saved.fpsr)
        FO_WRITE_FPSR(saved.fpsr);
}

#else

/* C99 cannot name flush-to-zero, but its default environment leaves it off wherever it exists. */
#include <fenv.h>

typedef struct {
    fenv_t env;
} fo_fenv_t;

static inline fo_fenv_t fo_fenv_enter(void)
{
    fo_fenv_t saved;
    fegetenv(&saved.env);
    fesetenv(FE_DFL_ENV);
    return saved;
}

static inline void fo_fenv_leave(fo_fenv_t saved)
{
    fesetenv(&saved.env);
}

#endif
#endif
