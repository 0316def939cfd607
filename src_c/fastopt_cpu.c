/* See fastopt_cpu.h. CPUID is asked directly, not through __builtin_cpu_supports: the feature names that the
 * builtin knows differ between releases of gcc and clang, and MSVC has no such builtin. */
#include "fastopt_cpu.h"

#include <string.h>

static const char *const level_names[] = {"generic", "x86-64-v2", "x86-64-v3", "x86-64-v4"};

/* ARM64EC is x86-64 to the preprocessor but arm64 to the CPU. */
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(_M_ARM64EC)

#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

typedef struct {
    unsigned eax, ebx, ecx, edx;
} regs_t;

/* One leaf of CPUID; zeros where the CPU does not have that leaf. */
static regs_t cpuid(unsigned leaf)
{
    regs_t r = {0, 0, 0, 0};
#if defined(_MSC_VER)
    int v[4];
    __cpuid(v, (int)(leaf & 0x80000000u));
    if ((unsigned)v[0] >= leaf) {
        __cpuidex(v, (int)leaf, 0);
        r.eax = (unsigned)v[0], r.ebx = (unsigned)v[1], r.ecx = (unsigned)v[2], r.edx = (unsigned)v[3];
    }
#else
    (void)__get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
    return r;
}

/* XCR0: the register sets that the operating system saves. Only legal where CPUID says OSXSAVE. */
static unsigned xcr0(void)
{
#if defined(_MSC_VER)
    return (unsigned)_xgetbv(0);
#else
    unsigned eax, edx;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
#endif
}

#define BIT(n) (1u << (n))

/* The features of the psABI levels, each beyond the one before, by CPUID word. */
#define V2_1_ECX (BIT(0) | BIT(9) | BIT(13) | BIT(19) | BIT(20) | BIT(23)) /* sse3 ssse3 cx16 sse4.x popcnt */
#define V2_EXT_ECX BIT(0)                                                  /* lahf */
#define V3_1_ECX (BIT(12) | BIT(22) | BIT(27) | BIT(28) | BIT(29))         /* fma movbe osxsave avx f16c */
#define V3_7_EBX (BIT(3) | BIT(5) | BIT(8))                                /* bmi1 avx2 bmi2 */
#define V3_EXT_ECX BIT(5)                                                  /* lzcnt */
#define V3_XCR0 (BIT(1) | BIT(2))                                          /* xmm, ymm */
#define V4_7_EBX (BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31))         /* avx512 f dq cd bw vl */
#define V4_XCR0 (V3_XCR0 | BIT(5) | BIT(6) | BIT(7))                       /* and opmask, all of zmm */

#define ALL(word, bits) (((word) & (bits)) == (bits))

static int level(void)
{
    const regs_t one = cpuid(1), seven = cpuid(7), ext = cpuid(0x80000001u);
    unsigned saved;

    if (!ALL(one.ecx, V2_1_ECX) || !ALL(ext.ecx, V2_EXT_ECX))
        return 0;
    if (!ALL(one.ecx, V3_1_ECX) || !ALL(seven.ebx, V3_7_EBX) || !ALL(ext.ecx, V3_EXT_ECX))
        return 1;
    saved = xcr0();
    if (!ALL(saved, V3_XCR0))
        return 1;
    return ALL(seven.ebx, V4_7_EBX) && ALL(saved, V4_XCR0) ? 3 : 2;
}

#else

static int level(void)
{
    return 0;
}

#endif

const char *fo_cpu_level(void)
{
    return level_names[level()];
}

int fo_cpu_has(const char *name)
{
    int i;
    for (i = level(); i >= 0; i--)
        if (strcmp(name, level_names[i]) == 0)
            return 1;
    return 0;
}
