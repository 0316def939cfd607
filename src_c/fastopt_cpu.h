/* Which x86-64 level (psABI micro-architecture level) may this process run?
 *
 * A level counts only if the CPU has every feature of it AND the operating system saves the registers that it
 * uses (XGETBV): a hypervisor or a boot option may take away AVX that CPUID still advertises.
 * Both functions are thread-safe and need no initialisation.
 */
#ifndef FASTOPT_CPU_H
#define FASTOPT_CPU_H

/* The highest level: "x86-64-v4", "x86-64-v3", "x86-64-v2" or "generic". The string is static. */
const char *fo_cpu_level(void);

/* 1 if code built for `level` (one of the names above) runs here, else 0. "generic" runs everywhere. */
int fo_cpu_has(const char *level);

#endif
