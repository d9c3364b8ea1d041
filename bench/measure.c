/* measure.c - helpers for contenders, in the fresh process of one measurement. */
#include "bench.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

bool bench_quick;

int64_t bench_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void bench_sleep_ns(int64_t time_ns) {
    struct timespec left = {time_ns / 1000000000, time_ns % 1000000000};
    while (nanosleep(&left, &left) == -1 && errno == EINTR)
        ;
}

size_t bench_repetitions(size_t count) {
    return bench_quick && count >= 5 ? count / 5 : count;
}

void bench_report(const char *key, double value) {
    printf("%s %.17g\n", key, value);
    fflush(stdout);
}

void bench_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("bench: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

void *bench_allocate(size_t size) {
    void *memory = malloc(size ? size : 1);
    if (!memory)
        bench_fail("no memory");
    return memory;
}

void *bench_share(size_t size) {
    void *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        bench_fail("mmap: %s", strerror(errno));
    return memory;
}

int bench_fork(void) {
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == -1)
        bench_fail("fork: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
    }
    return child;
}

static int double_compare(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

double bench_median(double *values, size_t count) {
    qsort(values, count, sizeof *values, double_compare);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

double bench_worst(const double *values, size_t count) {
    double worst = values[0];
    for (size_t i = 1; i < count; i++)
        worst = values[i] > worst ? values[i] : worst;
    return worst;
}

void bench_bursts(bench_burst *burst, void *context, long count) {
    enum { bursts_max = 5, warm_up_tasks = 2000 };
    double figures[bursts_max];
    size_t done = 0;
    burst(context, warm_up_tasks);
    int64_t start_ns = bench_now_ns();
    do {
        int64_t before_ns = bench_now_ns();
        burst(context, count);
        figures[done++] = (double)count * 1e9 / (double)(bench_now_ns() - before_ns);
    } while (done < bursts_max && bench_now_ns() - start_ns < 1000000000);
    bench_report("first_per_second", figures[0]);
    bench_report("per_second", bench_median(figures, done));
}

void bench_trips(bench_trip *trip, void *context, size_t count, int64_t pause_ns) {
    double *times_ns = bench_allocate(count * sizeof *times_ns);
    size_t warm_up = pause_ns ? 3 : count / 10;
    for (size_t i = 0; i < warm_up; i++)
        trip(context);
    for (size_t i = 0; i < count; i++) {
        if (pause_ns)
            bench_sleep_ns(pause_ns);
        int64_t before_ns = bench_now_ns();
        trip(context);
        times_ns[i] = (double)(bench_now_ns() - before_ns);
    }
    bench_report("median_ns", bench_median(times_ns, count));
    free(times_ns);
}
