/* memory_growth.h - an initializer that limits how much memory a worker may take. */
#ifndef EXAMPLES_MEMORY_GROWTH_H
#define EXAMPLES_MEMORY_GROWTH_H

#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

/* The address space of this process now, in bytes; 0 if the system does not tell. */
static inline size_t memory_size(void) {
    size_t pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");

    if (statm != NULL) {
        if (fscanf(statm, "%zu", &pages) != 1)
            pages = 0;
        fclose(statm);
    }
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Called in every worker at its start. input is a size_t: so many bytes more than it has
 * now may the worker take; then malloc() returns NULL. The growth is limited, not the
 * whole, since what a worker starts with depends on the program and its libraries. */
static inline int memory_limit_growth(const void *input, size_t input_size) {
    const size_t *growth_bytes = input;
    struct rlimit limit;

    (void)input_size;
    if (memory_size() == 0 || getrlimit(RLIMIT_AS, &limit) != 0)
        return 1;
    limit.rlim_cur = memory_size() + *growth_bytes;
    return setrlimit(RLIMIT_AS, &limit);
}

#endif
