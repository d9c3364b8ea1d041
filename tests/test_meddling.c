/* Row 22: tasks that change what their process has (descriptors, signals, limits, session, user), or attack
 * the processes around it. What must hold: the task and those behind it end as ever, it can be ended, and the
 * next worker is as new. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 2, HONEST = 6, NOBODY = 65534 };

#define TASK_TIMEOUT_NS (PEBBLE_MILLISECONDS(60) * (WITH_THREAD_SANITIZER ? 5 : 1))

static pebble_pool *new_pool(int workers) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(20)));
}

static bool pool_works(pebble_pool *pool) {
    pebble_future *futures[HONEST];
    bool right = true;
    for (int n = 0; n < HONEST; n++)
        futures[n] = schedule(pool, square, &n, sizeof n, 0);
    for (int n = 0; n < HONEST; n++)
        right &= take_int(futures[n]) == n * n;
    return right;
}

/* ---- What a process has ---- */

/* What the functions below change, but for descriptors and the name (which has a number). */
typedef struct belongings {
    struct rlimit limits[RLIM_NLIMITS];
    sigset_t blocked, ignored;
    mode_t mask;
    uid_t user;
    pid_t session;
    int nice, dumpable, death_signal, adopts;
    char directory[256];
} belongings;

static void note_belongings(belongings *here) {
    memset(here, 0, sizeof *here);
    for (int i = 0; i < RLIM_NLIMITS; i++)
        getrlimit((__rlimit_resource_t)i, &here->limits[i]);
    sigprocmask(SIG_SETMASK, NULL, &here->blocked);
    sigemptyset(&here->ignored);
    for (int i = 1; i < 32; i++) {
        struct sigaction action;
        if (sigaction(i, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            sigaddset(&here->ignored, i);
    }
    here->mask = umask(0);
    umask(here->mask);
    here->user = geteuid();
    here->session = getsid(0);
    here->nice = getpriority(PRIO_PROCESS, 0);
    here->dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_GET_PDEATHSIG, &here->death_signal, 0, 0, 0);
    prctl(PR_GET_CHILD_SUBREAPER, &here->adopts, 0, 0, 0);
    if (getcwd(here->directory, sizeof here->directory) == NULL)
        here->directory[0] = '\0';
}

static int tell_belongings(pebble_task *task, const void *input, size_t input_size) {
    belongings here;
    (void)input, (void)input_size;
    note_belongings(&here);
    return (int)pebble_task_write(task, &here, sizeof here);
}

static void get_belongings(pebble_pool *pool, belongings *of_worker) {
    pebble_future *future = schedule(pool, tell_belongings, NULL, 0, 0);
    expect_ok(
        pebble_future_copy_result(future, DEADLINE_NS, of_worker, sizeof *of_worker));
    pebble_future_unref(future);
}

static _Noreturn void stay(void) {
    for (volatile bool forever = true; forever;)
        ;
    abort();
}

/* ---- What a worker can do to its process ---- */

static int close_all(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    syscall(SYS_close_range, 0u, ~0u, 0u);
    return 0;
}

/* The numbers are in use again, for files of the task's own. */
static int reuse_all(pebble_task *task, const void *input, size_t input_size) {
    int pipes[2];
    (void)task, (void)input, (void)input_size;
    syscall(SYS_close_range, 3u, ~0u, 0u);
    for (int i = 0; i < 16; i++) {
        if (pipe2(pipes, O_NONBLOCK) != 0)
            return errno;
    }
    return 0;
}

static int block_signals(pebble_task *task, const void *input, size_t input_size) {
    sigset_t all;
    (void)task, (void)input, (void)input_size;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (int i = 1; i < 32; i++)
        signal(i, SIG_IGN);
    return 0;
}

static int leave_session(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    setsid();
    return 0;
}

static int change_directory(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    umask(0777);
    return chdir("/proc/self/task") == 0 ? 0 : errno;
}

static bool fork_is_refused(void) {
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    if (child > 0)
        waitpid(child, &status, 0);
    return child < 0 && errno == EAGAIN;
}

/* As a user without rights: the number of processes is not limited for others. */
static int limit_resources(pebble_task *task, const void *input, size_t input_size) {
    static const struct rlimit none = {0, 0}, small = {1024 * 1024, 1024 * 1024};
    (void)task, (void)input, (void)input_size;
    setrlimit(RLIMIT_NOFILE, &none);
    setrlimit(RLIMIT_NPROC, &none);
    setrlimit(RLIMIT_FSIZE, &none);
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_AS, &small);
    if (geteuid() == 0 && setresuid(NOBODY, NOBODY, NOBODY) != 0)
        return errno;
    return fork_is_refused() ? 0 : 1;
}

static int untie(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_SET_NAME, ") R 1 1 (", 0, 0, 0);
    return 0;
}

static int close_streams(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    fclose(stdin);
    return 0;
}

static void note_end(pebble_future *future, void *context) {
    (void)future;
    counter_add(context, 1);
}

typedef struct peculiarity {
    pebble_function function;
    counter *done;
} peculiarity;

static int be_peculiar_and_stay(pebble_task *task, const void *input, size_t input_size) {
    const peculiarity *what = input;
    (void)input_size;
    if (what->function(task, NULL, 0) != 0)
        return 1;
    counter_add(what->done, 1);
    stay();
}

#define expect_same(field)                                                               \
    assert_memory_equal(&after.field, &before.field, sizeof after.field)

/* And the next worker is as it was. */
static void check_peculiar_is_ended(pebble_function function, bool cancel) {
    peculiarity what = {.function = function, .done = shared_memory(sizeof(counter))};
    belongings before, after;
    pebble_pool *pool = new_pool(1);
    get_belongings(pool, &before);
    pebble_future *future = schedule(pool, be_peculiar_and_stay, &what, sizeof what,
                                     cancel ? 0 : TASK_TIMEOUT_NS);
    counter_expect(what.done, 1);
    pid_t pid = pebble_future_pid(future);
    if (cancel)
        assert_true(pebble_future_cancel(future));
    expect_end(future, cancel ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(pid > 1);
    assert_false(process_lives(pid));
    get_belongings(pool, &after);
    expect_same(limits);
    expect_same(blocked);
    expect_same(ignored);
    expect_same(mask);
    expect_same(user);
    expect_same(session);
    expect_same(nice);
    expect_same(dumpable);
    expect_same(death_signal);
    expect_same(adopts);
    expect_same(directory);
    assert_true(pool_works(pool));
    close_join_free(pool);
}

/* Ends, and so do those behind it, also for a callback, of which only the bell tells; and can be ended. */
static void check_peculiar(const char *name, pebble_function function) {
    counter *ends = shared_memory(sizeof *ends);
    pebble_pool *pool = new_pool(1);
    print_message("%s\n", name);
    for (uint32_t i = 0; i < 3; i++) {
        pebble_future *future = schedule(pool, function, NULL, 0, 0);
        expect_ok(pebble_future_add_callback(future, note_end, ends));
        counter_expect(ends, 2 * i + 1);
        expect_end(future, PEBBLE_OK);
        int n = 12;
        future = schedule(pool, square, &n, sizeof n, 0);
        expect_ok(pebble_future_add_callback(future, note_end, ends));
        counter_expect(ends, 2 * i + 2);
        assert_int_equal(take_int(future), 144);
    }
    assert_true(pool_works(pool));
    stop_join_free(pool);
    check_peculiar_is_ended(function, false);
    check_peculiar_is_ended(function, true);
}

#define PECULIAR(name, function)                                                         \
    static void test_##name(void **unused) {                                             \
        (void)unused;                                                                    \
        check_peculiar(#name, function);                                                 \
    }
PECULIAR(all_closed, close_all)
PECULIAR(all_reused, reuse_all)
PECULIAR(signals_blocked, block_signals)
PECULIAR(session_left, leave_session)
PECULIAR(directory_changed, change_directory)
PECULIAR(untied, untie)
PECULIAR(streams_closed, close_streams)

/* A sanitizer needs memory of its own. */
#if !WITH_ADDRESS_SANITIZER && !WITH_THREAD_SANITIZER
PECULIAR(resources_limited, limit_resources)
#else
static void test_resources_limited(void **unused) {
    (void)unused;
    (void)limit_resources;
    skip();
}
#endif

/* ---- Attacks on the processes around ---- */

static int kill_zygote(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    kill(getppid(), SIGKILL);
    stay();
}

static int stop_zygote(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    kill(getppid(), SIGSTOP);
    stay();
}

/* Its end is nobody's to report. */
static int stop_zygote_and_die(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    kill(getppid(), SIGSTOP);
    abort();
}

static int stop_self(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    raise(SIGSTOP);
    stay();
}

static void test_zygote_killed(void **unused) {
    (void)unused;
    pebble_pool *pool = new_pool(WORKERS);
    for (int i = 0; i < 3; i++) {
        expect_end(schedule(pool, kill_zygote, NULL, 0, 0), PEBBLE_ERR_TASK_EXPIRED);
        assert_true(pool_works(pool));
    }
    close_join_free(pool);
}

/* As a debugger does: no signal but SIGKILL has it go on. */
static bool halt(pid_t pid) {
    return ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 &&
           ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0;
}

static int stay_in_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    stay();
}

/* A zygote that hangs, and a worker whose end it does not report. */
static pebble_future *schedule_for_halted(pebble_pool *pool) {
    pebble_future *future =
        schedule(pool, stay_in_task, NULL, 0, PEBBLE_MILLISECONDS(300));
    while (pebble_future_pid(future) == 0)
        usleep(1000);
    pid_t pid = pebble_future_pid(future);
    if (halt(process_parent(pid)))
        process_kill(pid);
    return future;
}

/* Three of them side by side, as each takes as long as the limits are. */
static void test_zygote_stopped(void **unused) {
    (void)unused;
    pebble_pool *third = new_pool(1);
    pebble_future *halted = schedule_for_halted(third);
    pebble_pool *pool = new_pool(WORKERS), *other = new_pool(WORKERS);
    pebble_future *timed = schedule(pool, stop_zygote, NULL, 0, TASK_TIMEOUT_NS);
    pebble_future *died = schedule(other, stop_zygote_and_die, NULL, 0, 0);
    expect_ok(pebble_future_wait(died, DEADLINE_NS));
    assert_int_equal(pebble_future_failure(died)->signal, SIGABRT);
    expect_end(died, PEBBLE_ERR_TASK_EXPIRED);
    expect_end(timed, PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(pool_works(pool));
    assert_true(pool_works(other));
    close_join_free(pool);
    close_join_free(other);
    expect_end(halted, PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(pool_works(third));
    close_join_free(third);
}

static void test_worker_stopped(void **unused) {
    (void)unused;
    pebble_pool *pool = new_pool(WORKERS);
    expect_end(schedule(pool, stop_self, NULL, 0, TASK_TIMEOUT_NS),
               PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(pool_works(pool));
    close_join_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_all_closed),        supported_test(test_all_reused),
        supported_test(test_signals_blocked),   supported_test(test_session_left),
        supported_test(test_directory_changed), supported_test(test_untied),
        supported_test(test_streams_closed),    supported_test(test_resources_limited),
        supported_test(test_zygote_killed),     supported_test(test_zygote_stopped),
        supported_test(test_worker_stopped),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
