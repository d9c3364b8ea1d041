/* openmp.c - OpenMP tasks. There are no futures: each task stores its result in an array,
 * and taskwait waits for all. The caller is one of the team. (GCC's runtime performs a
 * task at once in the thread that makes it when there are more than 64 a thread waiting.)
 */
#include "bench.h"

#include <stdlib.h>

static void perform(long *results, long index) {
    results[index] = index;
}

static void burst(void *context, long count) {
    long *results = context;
    for (long i = 0; i < count; i++)
        results[i] = -1;
#pragma omp parallel num_threads(bench_worker_count)
#pragma omp single
    {
        for (long i = 0; i < count; i++) {
#pragma omp task firstprivate(i) shared(results)
            perform(results, i);
        }
#pragma omp taskwait
    }
    for (long i = 0; i < count; i++)
        if (results[i] != i)
            bench_fail("task %ld: result is %ld", i, results[i]);
}

void bench_openmp(long argument) {
    long *results =
        bench_allocate((size_t)(argument > 2000 ? argument : 2000) * sizeof *results);
    bench_bursts(burst, results, argument);
    free(results);
}
