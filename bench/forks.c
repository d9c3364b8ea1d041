/* forks.c - a process for each task, forked by hand: the least that a timeout and a crash
 * cost on this machine. The program is small; forking a large one takes longer. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { failures = 20 };

static void child_await(pid_t pid) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Waits for the child, until the deadline at the longest, and ends it then. */
static void child_limit(pid_t pid, int64_t deadline_ns) {
    int descriptor = (int)syscall(SYS_pidfd_open, pid, 0);
    if (descriptor < 0)
        bench_fail("pidfd_open: %s", strerror(errno));
    struct pollfd end = {descriptor, POLLIN, 0};
    for (int64_t left_ns; (left_ns = deadline_ns - bench_now_ns()) > 0;) {
        struct timespec left = {left_ns / 1000000000, left_ns % 1000000000};
        if (ppoll(&end, 1, &left, NULL) == 1)
            break;
    }
    kill(pid, SIGTERM);
    child_await(pid);
    close(descriptor);
}

void bench_fork_timeout(long timeout_ns) {
    double late_ns[failures];
    size_t count = bench_repetitions(failures);
    for (size_t i = 0; i < count; i++) {
        int64_t start_ns = bench_now_ns();
        pid_t pid = bench_fork();
        if (pid == 0)
            for (volatile unsigned turns = 0;; turns++)
                ;
        child_limit(pid, start_ns + timeout_ns);
        late_ns[i] = (double)(bench_now_ns() - start_ns - timeout_ns);
    }
    bench_report("worst_ns", bench_worst(late_ns, count));
    bench_report("median_ns", bench_median(late_ns, count));
}

static _Noreturn void child_crash(long kind, atomic_int_least64_t *crash_ns) {
    static int *volatile nowhere;
    atomic_store(crash_ns, bench_now_ns());
    if (kind == 0)
        raise(SIGKILL);
    else
        *(volatile int *)nowhere = 1;
    _exit(0);
}

/* A task in a child of its own; its result comes through a pipe. */
static void child_task(void) {
    int pipe_ends[2];
    char result = 0;
    if (pipe2(pipe_ends, O_CLOEXEC))
        bench_fail("pipe: %s", strerror(errno));
    pid_t pid = bench_fork();
    if (pid == 0)
        _exit(write(pipe_ends[1], "x", 1) == 1 ? 0 : 1);
    if (read(pipe_ends[0], &result, 1) != 1 || result != 'x')
        bench_fail("no result");
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    child_await(pid);
}

void bench_fork_crash(long kind) {
    atomic_int_least64_t *crash_ns = bench_share(sizeof *crash_ns);
    double ended_ns[failures], replaced_ns[failures];
    size_t count = bench_repetitions(failures);
    for (size_t i = 0; i < count; i++) {
        pid_t pid = bench_fork();
        if (pid == 0)
            child_crash(kind, crash_ns);
        child_await(pid);
        int64_t end_ns = bench_now_ns();
        child_task();
        replaced_ns[i] = (double)(bench_now_ns() - end_ns);
        ended_ns[i] = (double)(end_ns - atomic_load(crash_ns));
    }
    bench_report("replaced_worst_ns", bench_worst(replaced_ns, count));
    bench_report("replaced_ns", bench_median(replaced_ns, count));
    bench_report("ended_ns", bench_median(ended_ns, count));
}
