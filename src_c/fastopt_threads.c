/* See fastopt_threads.h. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity, dladdr */
#endif

#include "fastopt_threads.h"

#ifdef _OPENMP
#include <omp.h>
#include <stdlib.h>
#endif

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
#endif

#ifdef __linux__
#include <errno.h>
#include <sched.h>
#endif

#ifdef _WIN32

void fo_threads_init(void)
{
}

int fo_in_forked_child(void)
{
    return 0;
}

#else

/* Written only by the one thread of a fresh child, hence no lock. */
static volatile int forked_child = 0;

static void note_fork(void)
{
    forked_child = 1;
}

void fo_threads_init(void)
{
    static int installed = 0;
    if (!installed)
        installed = pthread_atfork(NULL, NULL, note_fork) == 0;
}

int fo_in_forked_child(void)
{
    return forked_child;
}

#endif

#ifdef _OPENMP

int fo_have_openmp(void)
{
    return 1;
}

int fo_omp_version(void)
{
    return _OPENMP;
}

const char *fo_omp_library(void)
{
#ifndef _WIN32
    Dl_info found;
    if (dladdr((void *)omp_get_max_threads, &found))
        return found.dli_fname;
#endif
    return NULL;
}

int fo_omp_max_threads(void)
{
    int threads = omp_get_max_threads();
#if _OPENMP >= 200805 /* OpenMP 3.0; Microsoft's is 2.0 */
    if (omp_get_thread_limit() < threads)
        threads = omp_get_thread_limit();
#endif
    return threads;
}

#if _OPENMP >= 201511 /* OpenMP 4.5 */

#if _OPENMP >= 202011
#define WITH_THE_FIRST omp_proc_bind_primary
#else
#define WITH_THE_FIRST omp_proc_bind_master
#endif

static int by_value(const void *a, const void *b)
{
    return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

/* The different CPUs in all places together; 0 without memory to count them. */
static int cpus_of_places(int places)
{
    int place, k, n = 0, different = 0;
    int *cpus;

    for (place = 0; place < places; place++)
        n += omp_get_place_num_procs(place);
    cpus = malloc((n > 0 ? (size_t)n : 1) * sizeof *cpus);
    if (cpus == NULL)
        return 0;
    for (place = 0, n = 0; place < places; n += omp_get_place_num_procs(place), place++)
        omp_get_place_proc_ids(place, cpus + n);
    qsort(cpus, (size_t)n, sizeof *cpus, by_value);
    for (k = 0; k < n; k++)
        different += k == 0 || cpus[k] != cpus[k - 1];
    free(cpus);
    return different;
}

int fo_omp_bound_cpus(void)
{
    static int everywhere = 0; /* places stay as they are from the start of the process */
    const omp_proc_bind_t policy = omp_get_proc_bind();
    const int places = omp_get_num_places();

    if (policy == omp_proc_bind_false || places < 1)
        return 0;
    if (policy == WITH_THE_FIRST) { /* the whole team in the place of the thread that starts it */
        const int place = omp_get_place_num();
        return omp_get_place_num_procs(place < 0 ? 0 : place);
    }
    if (everywhere == 0)
        everywhere = cpus_of_places(places);
    return everywhere;
}

#else

int fo_omp_bound_cpus(void)
{
    return 0;
}

#endif

int fo_omp_num_threads(void)
{
    return omp_get_num_threads();
}

int fo_omp_thread_num(void)
{
    return omp_get_thread_num();
}

void fo_barrier(void)
{
#pragma omp barrier
}

double fo_omp_time(void)
{
    return omp_get_wtime();
}

#else

int fo_have_openmp(void)
{
    return 0;
}

int fo_omp_version(void)
{
    return 0;
}

const char *fo_omp_library(void)
{
    return NULL;
}

int fo_omp_max_threads(void)
{
    return 1;
}

int fo_omp_bound_cpus(void)
{
    return 0;
}

int fo_omp_num_threads(void)
{
    return 1;
}

int fo_omp_thread_num(void)
{
    return 0;
}

void fo_barrier(void)
{
}

double fo_omp_time(void)
{
    return 0.0;
}

#endif

ptrdiff_t fo_take(ptrdiff_t *next, ptrdiff_t end, ptrdiff_t n)
{
    ptrdiff_t begin;
#if defined(_MSC_VER)
    if (*(volatile ptrdiff_t *)next >= end)
        return end;
    begin = sizeof begin == 8 ? (ptrdiff_t)_InterlockedExchangeAdd64((volatile __int64 *)next, n)
                              : (ptrdiff_t)_InterlockedExchangeAdd((volatile long *)next, (long)n);
#else
    if (__atomic_load_n(next, __ATOMIC_RELAXED) >= end)
        return end;
    begin = __atomic_fetch_add(next, n, __ATOMIC_RELAXED);
#endif
    return begin;
}

void fo_set_flag(int *flag)
{
#if defined(_MSC_VER)
    *(volatile int *)flag = 1;
#else
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#endif
}

#if defined(__linux__)

/* The CPUs in this thread's mask; 0 if the system does not tell. */
static int mask_cpus(void)
{
    cpu_set_t fixed;
    size_t cpus;

    if (sched_getaffinity(0, sizeof fixed, &fixed) == 0)
        return CPU_COUNT(&fixed);
    /* EINVAL: the kernel's mask is wider than the 1024 CPUs of cpu_set_t. */
    for (cpus = 2 * CPU_SETSIZE; errno == EINVAL && cpus <= (size_t)1 << 20; cpus *= 2) {
        const size_t size = CPU_ALLOC_SIZE(cpus);
        cpu_set_t *wide = CPU_ALLOC(cpus);
        int count = 0;
        if (wide == NULL)
            return 0;
        if (sched_getaffinity(0, size, wide) == 0)
            count = CPU_COUNT_S(size, wide);
        CPU_FREE(wide);
        if (count > 0)
            return count;
    }
    return 0;
}

int fo_cpu(void)
{
    return sched_getcpu();
}

void fo_leave_cpu(void)
{
    cpu_set_t own, others;
    const int cpu = sched_getcpu();

    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof own, &own) != 0)
        return;
    others = own;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
        sched_setaffinity(0, sizeof own, &own);
}

#elif defined(_WIN32)

/* The CPUs in the process's mask; 0 for a process that spans processor groups. */
static int mask_cpus(void)
{
    DWORD_PTR mask = 0, system_mask = 0;
    int count = 0;

    if (!GetProcessAffinityMask(GetCurrentProcess(), &mask, &system_mask))
        return 0;
    for (; mask != 0; mask &= mask - 1)
        count++;
    return count;
}

#else

static int mask_cpus(void)
{
    return 0;
}

#endif

#if !defined(__linux__)

int fo_cpu(void)
{
    return -1;
}

void fo_leave_cpu(void)
{
}

#endif

static int online_cpus(void)
{
#ifdef _WIN32
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)info.dwNumberOfProcessors;
#else
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
}

int fo_affinity_cpus(void)
{
    int cpus = mask_cpus();
    if (cpus < 1)
        cpus = online_cpus();
    return cpus < 1 ? 1 : cpus;
}
