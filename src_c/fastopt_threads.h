/* Threads: OpenMP where the build found it, one thread elsewhere; and what the thread count is made from.
 * Callers need no #ifdef: without OpenMP every function answers for a team of one. */
#ifndef FASTOPT_THREADS_H
#define FASTOPT_THREADS_H

#include <stddef.h>

/* Watch for fork() from now on. Call it at import; a second call does nothing, as does any on Windows. */
void fo_threads_init(void);

/* 1 in a process forked after fo_threads_init(), and in its children. libgomp's threads do not survive a fork
 * and its next parallel region would hang there, so such a process must stay serial. */
int fo_in_forked_child(void);

/* 1 if built with OpenMP. */
int fo_have_openmp(void);

/* The date of the OpenMP specification, such as 201511; 0 without OpenMP. */
int fo_omp_version(void);

/* The file of the OpenMP library that this module calls, which need not be the one that it came with: the first in the
 * process with global symbols is. NULL without OpenMP and where the system does not tell. */
const char *fo_omp_library(void);

/* The threads that a region would get now: follows OMP_NUM_THREADS, OMP_THREAD_LIMIT, omp_set_num_threads(),
 * threadpoolctl. */
int fo_omp_max_threads(void);

/* The CPUs that OpenMP binds the threads of a region to, as OMP_PROC_BIND, OMP_PLACES or GOMP_CPU_AFFINITY ask; 0 if it
 * binds none, or cannot tell. The caller's own mask then has only the CPUs of its place. Call it with the GIL. */
int fo_omp_bound_cpus(void);

/* Inside a region: the size of the team and the place of the caller in it. */
int fo_omp_num_threads(void);
int fo_omp_thread_num(void);

/* Inside a region: wait for the whole team. Every thread of the team must come here. */
void fo_barrier(void);

/* Seconds since some moment in the past. */
double fo_omp_time(void);

/* Take `n` of what lies between *next and end, and return where that begins; end or more if nothing is left.
 * Any number of threads may do so at once. */
ptrdiff_t fo_take(ptrdiff_t *next, ptrdiff_t end, ptrdiff_t n);

/* The flag becomes 1; other threads of the team may set it at the same time, and read it after a barrier. */
void fo_set_flag(int *flag);

/* The CPUs that the calling thread may run on; the online CPUs where the system has no affinity. At least 1. */
int fo_affinity_cpus(void);

/* The CPU that the calling thread is on; -1 where the system does not tell. */
int fo_cpu(void);

/* Move the calling thread to another of its CPUs, if it has one. It may come back at any time. */
void fo_leave_cpu(void);

#endif
