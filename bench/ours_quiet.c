/* ours_quiet.c - our pools: memory of queued tasks, and what an idle pool does. */
#include "ours.h"

#include <ctype.h>
#include <dirent.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Memory ---- */

static int sleep_until_killed(pebble_task *task, const void *input, size_t input_size) {
    (void)task;
    (void)input;
    (void)input_size;
    for (;;)
        pause();
    return 0;
}

static double allocated_bytes(void) {
    struct mallinfo2 info = mallinfo2();
    return (double)info.uordblks + (double)info.hblkhd;
}

static double resident_bytes(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1)
        bench_fail("cannot read /proc/self/statm");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

void bench_ours_memory(long argument) {
    long count = bench_quick ? argument / 10 : argument;
    pebble_pool *pool = ours_open(true, 1);
    pebble_future *blocker, **futures = bench_allocate((size_t)count * sizeof *futures);
    memset(futures, 0xff, (size_t)count * sizeof *futures);
    ours_no_ops(pool, futures, 100);
    ours_check(pebble_schedule(pool, sleep_until_killed, NULL, 0, 0, &blocker),
               "schedule");
    while (pebble_future_state(blocker) == PEBBLE_PENDING)
        bench_sleep_ns(1000000);

    double allocated = allocated_bytes(), resident = resident_bytes();
    for (long i = 0; i < count; i++)
        ours_check(pebble_schedule(pool, ours_no_op, NULL, 0, 0, &futures[i]),
                   "schedule");
    bench_report("allocated_bytes", (allocated_bytes() - allocated) / (double)count);
    bench_report("resident_bytes", (resident_bytes() - resident) / (double)count);

    ours_check(pebble_pool_stop(pool), "stop");
    for (long i = 0; i < count; i++)
        pebble_future_unref(futures[i]);
    pebble_future_unref(blocker);
    ours_close(pool);
    free(futures);
}

/* ---- Idleness ---- */

typedef struct activity {
    double cpu_ns;
    double switches;
    double threads;
} activity;

/* The process and, step by step, all that descend from it, by the parents in
 * /proc/PID/stat. */
typedef struct process_list {
    pid_t pids[256];
    size_t count;
} process_list;

static pid_t parent_of(pid_t pid) {
    char path[64], line[512], *after_name;
    int parent = -1;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    if (fgets(line, sizeof line, file) && (after_name = strrchr(line, ')')) &&
        sscanf(after_name, ") %*c %d", &parent) != 1)
        parent = -1;
    fclose(file);
    return parent;
}

static bool list_contains(const process_list *list, pid_t pid) {
    for (size_t i = 0; i < list->count; i++)
        if (list->pids[i] == pid)
            return true;
    return false;
}

/* Adds those whose parent is in the list. Returns how many there were. */
static size_t list_grow(process_list *list) {
    size_t before = list->count;
    struct dirent *entry;
    DIR *directory = opendir("/proc");
    if (!directory)
        bench_fail("cannot read /proc");
    while ((entry = readdir(directory))) {
        pid_t pid =
            isdigit((unsigned char)*entry->d_name) ? (pid_t)atoi(entry->d_name) : 0;
        if (pid && !list_contains(list, pid) && list_contains(list, parent_of(pid)) &&
            list->count < sizeof list->pids / sizeof *list->pids)
            list->pids[list->count++] = pid;
    }
    closedir(directory);
    return list->count - before;
}

static void thread_add(activity *total, pid_t pid, const char *thread) {
    char path[320], line[256];
    double cpu_ns = 0, switches;
    snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)pid, thread);
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%lf", &cpu_ns) == 1)
            total->cpu_ns += cpu_ns;
        fclose(file);
    }
    snprintf(path, sizeof path, "/proc/%d/task/%s/status", (int)pid, thread);
    if (!(file = fopen(path, "re")))
        return;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "voluntary_ctxt_switches: %lf", &switches) == 1 ||
            sscanf(line, "nonvoluntary_ctxt_switches: %lf", &switches) == 1)
            total->switches += switches;
    fclose(file);
    total->threads++;
}

/* The measuring thread itself is left out: it reads and sleeps. */
static activity activity_now(const process_list *list) {
    activity total = {0};
    for (size_t i = 0; i < list->count; i++) {
        char path[64];
        struct dirent *entry;
        snprintf(path, sizeof path, "/proc/%d/task", (int)list->pids[i]);
        DIR *directory = opendir(path);
        while (directory && (entry = readdir(directory)))
            if (isdigit((unsigned char)*entry->d_name) && atoi(entry->d_name) != getpid())
                thread_add(&total, list->pids[i], entry->d_name);
        if (directory)
            closedir(directory);
    }
    return total;
}

static void idle(bool processes, int64_t time_ns) {
    enum { burst = 20000 };
    pebble_pool *pool = ours_open(processes, bench_worker_count);
    pebble_future **futures = bench_allocate(burst * sizeof *futures);
    ours_no_ops(pool, futures, burst);
    bench_sleep_ns(500 * 1000000);

    process_list list = {{getpid()}, 1};
    while (list_grow(&list))
        ;
    activity before = activity_now(&list);
    bench_sleep_ns(time_ns);
    activity after = activity_now(&list);
    bench_report("cpu_ns", after.cpu_ns - before.cpu_ns);
    bench_report("switches", after.switches - before.switches);
    bench_report("threads", after.threads);
    ours_close(pool);
    free(futures);
}

void bench_ours_idle_process(long argument) {
    idle(true, argument);
}

void bench_ours_idle_thread(long argument) {
    idle(false, argument);
}
