/* How many processors this process may use: its affinity mask, cut to its control group's quota
 * (cgroup v2 cpu.max of every ancestor, or v1 cpu.cfs_quota_us). */
#include "platform/platform.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned processors_by_affinity(void) {
    /* Grows until the kernel's mask fits: machines may have more than CPU_SETSIZE. */
    for (int capacity = CPU_SETSIZE; capacity <= 1 << 16; capacity *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)capacity);
        size_t size = CPU_ALLOC_SIZE((size_t)capacity);
        if (set == NULL)
            break;
        int got = sched_getaffinity(0, size, set);
        int count = got == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (count > 0)
            return (unsigned)count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (unsigned)online : 1;
}

static unsigned processors_of_quota(long long quota, long long period) {
    if (quota <= 0 || period <= 0)
        return UINT_MAX;
    long long whole = (quota + period - 1) / period;
    return whole < UINT_MAX ? (unsigned)whole : UINT_MAX;
}

/* Reads "<quota> <period>" or "max <period>" (v2). */
static unsigned quota_of_v2(const char *directory) {
    char path[PATH_MAX];
    long long quota, period;
    unsigned processors = UINT_MAX;
    if (snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", directory) >=
        (int)sizeof path)
        return UINT_MAX;
    FILE *file = os_attempt(OS_FAULT_FD, EMFILE, NULL, fopen(path, "re"));
    if (file == NULL)
        return UINT_MAX;
    if (fscanf(file, "%lld %lld", &quota, &period) == 2)
        processors = processors_of_quota(quota, period);
    fclose(file);
    return processors;
}

static long long number_in(const char *directory, const char *name) {
    char path[PATH_MAX];
    long long value = -1;
    if (snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/%s", directory, name) >=
        (int)sizeof path)
        return -1;
    FILE *file = os_attempt(OS_FAULT_FD, EMFILE, NULL, fopen(path, "re"));
    if (file == NULL)
        return -1;
    if (fscanf(file, "%lld", &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

static unsigned quota_of_v1(const char *directory) {
    return processors_of_quota(number_in(directory, "cpu.cfs_quota_us"),
                               number_in(directory, "cpu.cfs_period_us"));
}

static unsigned smaller(unsigned a, unsigned b) {
    return a < b ? a : b;
}

/* The quota of a group holds for its descendants: looks at each one up to the root. */
static unsigned quota_up_from(char *directory, unsigned (*quota_of)(const char *)) {
    unsigned processors = UINT_MAX;
    for (;;) {
        processors = smaller(processors, quota_of(directory));
        char *slash = strrchr(directory, '/');
        if (slash == NULL || directory[0] == '\0')
            return processors;
        *slash = '\0';
    }
}

static bool names_cpu_controller(const char *controllers) {
    for (const char *name = controllers; *name != '\0';) {
        size_t length = strcspn(name, ",");
        if (length == 3 && strncmp(name, "cpu", 3) == 0)
            return true;
        name += length + (name[length] == ',');
    }
    return false;
}

static unsigned processors_by_quota(void) {
    char line[PATH_MAX + 64];
    unsigned processors = UINT_MAX;
    FILE *file = os_attempt(OS_FAULT_FD, EMFILE, NULL, fopen("/proc/self/cgroup", "re"));
    if (file == NULL)
        return processors;
    while (fgets(line, sizeof line, file) != NULL) {
        char *controllers = strchr(line, ':');
        char *directory = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (directory == NULL)
            continue;
        *controllers++ = '\0';
        *directory++ = '\0';
        directory[strcspn(directory, "\n")] = '\0';
        if (*controllers == '\0')
            processors = smaller(processors, quota_up_from(directory, quota_of_v2));
        else if (names_cpu_controller(controllers))
            processors = smaller(processors, quota_up_from(directory, quota_of_v1));
    }
    fclose(file);
    return processors;
}

unsigned os_usable_processors(void) {
    return smaller(processors_by_affinity(), processors_by_quota());
}

bool os_spinning_helps(void) {
    static _Atomic int helps = -1; /* -1: not known yet; computed twice at worst */
    int known = atomic_load_explicit(&helps, memory_order_relaxed);
    if (known < 0) {
        int cancel_state; /* reading files is a point of cancellation, waiting for a future none */
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
        known = os_usable_processors() > 1;
        pthread_setcancelstate(cancel_state, NULL);
        atomic_store_explicit(&helps, known, memory_order_relaxed);
    }
    return known;
}

unsigned os_current_processor(void) {
    int processor = sched_getcpu(); /* a read of the thread's rseq area, no system call */
    return processor >= 0 ? (unsigned)processor : 0;
}

void os_leave_processor(void) {
    cpu_set_t allowed, others;
    unsigned here = os_current_processor();
    if (here >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    others = allowed;
    CPU_CLR(here, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
        sched_setaffinity(0, sizeof allowed, &allowed);
}
