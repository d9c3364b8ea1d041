/* run.c - one measurement in a fresh process.
 *
 * The process writes its figures as lines "key value" to its standard output, which is a
 * memfd, not a pipe: a pipe that some left-over worker holds open would never end. It
 * gets a process group of its own, so that one that runs over the limit can be ended with
 * its children. */
#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { measurement_limit_ms = 60 * 1000 };

static void system_check(long result, const char *what) {
    if (result == -1) {
        fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
        exit(2);
    }
}

static _Noreturn void measurement_execute(const bench_row *row, size_t argument,
                                          size_t contender, int output) {
    char argument_text[24], contender_text[24];
    snprintf(argument_text, sizeof argument_text, "%zu", argument);
    snprintf(contender_text, sizeof contender_text, "%zu", contender);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    dup2(output, STDOUT_FILENO);
    execl("/proc/self/exe", "bench", "--measure", row->name, argument_text,
          contender_text, bench_quick ? "quick" : (char *)NULL, (char *)NULL);
    _exit(127);
}

/* Waits for the end of a process; ends it if it takes too long. Returns true if it exited
 * 0. */
static bool process_await(pid_t pid, const char *name) {
    int status, descriptor = (int)syscall(SYS_pidfd_open, pid, 0), ready;
    system_check(descriptor, "pidfd_open");
    struct pollfd end = {descriptor, POLLIN, 0};
    do
        ready = poll(&end, 1, measurement_limit_ms);
    while (ready == -1 && errno == EINTR);
    close(descriptor);
    if (ready != 1)
        kill(pid, SIGKILL);
    /* Also after an orderly end: nothing may be left that disturbs the next one. The
     * process is not yet waited for, so its number is still its own. */
    kill(-pid, SIGKILL);
    while (waitpid(pid, &status, 0) == -1 && errno == EINTR)
        ;
    if (ready != 1)
        fprintf(stderr, "bench: %s: took too long\n", name);
    else if (WIFSIGNALED(status))
        fprintf(stderr, "bench: %s: ended by signal %d\n", name, WTERMSIG(status));
    return ready == 1 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void figure_add(const bench_row *row, size_t contender, bench_results *results,
                       const char *key, double value) {
    for (size_t i = 0; i < row->line_count; i++) {
        if (strcmp(row->lines[i].key, key))
            continue;
        size_t *count = &results->counts[i][contender];
        if (*count < bench_rounds_max)
            results->samples[i][contender][(*count)++] = value;
    }
}

void bench_run_once(const bench_row *row, size_t argument, size_t contender,
                    bench_results *results) {
    const char *name = row->contenders[contender].name;
    if (!row->contenders[contender].run)
        return;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%s: %s: %s", row->name, row->arguments[argument].text,
                name);
    int output = memfd_create("bench", MFD_CLOEXEC);
    system_check(output, "memfd_create");
    fflush(NULL);
    pid_t pid = fork();
    system_check(pid, "fork");
    if (pid == 0)
        measurement_execute(row, argument, contender, output);
    bool success = process_await(pid, name);
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    if (!success)
        results->failures[contender]++;

    FILE *figures = fdopen(output, "r");
    system_check(figures ? 0 : -1, "fdopen");
    rewind(figures);
    char key[64];
    double value;
    while (success && fscanf(figures, "%63s %lf", key, &value) == 2)
        figure_add(row, contender, results, key, value);
    fclose(figures);
}
