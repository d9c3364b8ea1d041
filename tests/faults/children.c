/* Row 17: a program that has children of its own beside a pool, and deals with SIGCHLD in every way. The pool
 * does not need to be told of its children, and takes nobody else's end. */
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Tasks ---- */

static int leave(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    _exit(3);
}

static int stay(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    for (;;)
        pause();
    return 0;
}

/* The handler, or that SIGCHLD is ignored, is not the worker's: it waits for its own child. */
static int wait_for_child(pebble_task *task, const void *input, size_t input_size) {
    int status = 0;
    (void)input, (void)input_size;
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    if (waitpid(child, &status, 0) != child)
        return errno;
    int code = WEXITSTATUS(status);
    return (int)pebble_task_write(task, &code, sizeof code);
}

/* ---- Children ---- */

enum { NOTED_MAX = 64 };

/* Also in a signal handler. */
typedef struct noted {
    counter count;
    _Atomic pid_t pids[NOTED_MAX];
} noted;

/* The children that the program started itself, those that its pools had (each has one at a time, see
 * pebble_start_method), and those whose end it was told. */
static noted own, zygotes, found;

static void note(noted *list, pid_t pid) {
    uint32_t place = counter_add(&list->count, 1) - 1;
    if (place < NOTED_MAX)
        atomic_store(&list->pids[place], pid);
}

static uint32_t count_in(noted *list, pid_t pid) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < counter_value(&list->count) && i < NOTED_MAX; i++)
        count += atomic_load(&list->pids[i]) == pid;
    return count;
}

/* False: nobody's end is to be told. */
static bool find_any(int options) {
    pid_t pid = waitpid(-1, NULL, options);
    if (pid > 0)
        note(&found, pid);
    return pid > 0;
}

static void start_own(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(5);
    assert_true(child > 0);
    note(&own, child);
}

static bool own_are_found(void *unused) {
    (void)unused;
    for (uint32_t i = 0; i < counter_value(&own.count); i++) {
        if (count_in(&found, atomic_load(&own.pids[i])) == 0)
            return false;
    }
    return true;
}

/* Each of its own once, and nobody's that is no child of the program. */
static void check_found(void) {
    assert_true(wait_until(own_are_found, NULL));
    assert_in_range(counter_value(&found.count), counter_value(&own.count), NOTED_MAX);
    for (uint32_t i = 0; i < counter_value(&found.count); i++) {
        pid_t pid = atomic_load(&found.pids[i]);
        assert_int_equal(count_in(&found, pid), 1);
        assert_int_equal(count_in(&own, pid) + (count_in(&zygotes, pid) > 0), 1);
    }
}

/* ---- What a pool does ---- */

static void expect_works(pebble_pool *pool) {
    for (int n = 0; n < 10; n++)
        assert_int_equal(take_int(schedule(pool, square, &n, sizeof n, 0)), n * n);
}

/* The pool's workers; its zygote, which is noted. */
static size_t pids_of(pebble_pool *pool, pid_t workers[2], pid_t *zygote) {
    size_t count = 0;
    expect_ok(pebble_pool_get_pids(pool, workers, 2, &count));
    assert_in_range(count, 1, 2);
    *zygote = process_parent(workers[0]);
    note(&zygotes, *zygote);
    return count;
}

/* With all of its workers. */
static void kill_zygote_of(pebble_pool *pool) {
    pid_t workers[2], zygote;
    size_t count = pids_of(pool, workers, &zygote);
    process_kill(zygote);
    for (size_t i = 0; i < count; i++)
        expect_gone(workers[i]);
    expect_gone(zygote);
}

/* Every way in which a process of the pool may end, the pool's own end last. */
static void use_pool(pebble_start_method method) {
    pid_t workers[2], zygote;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .start_method = method));
    expect_works(pool);
    assert_int_equal(take_int(schedule(pool, wait_for_child, NULL, 0, 0)), 7);
    pebble_future *future = schedule(pool, leave, NULL, 0, 0);
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    assert_int_equal(pebble_future_failure(future)->exit_code, 3);
    expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    expect_end(schedule(pool, stay, NULL, 0, PEBBLE_MILLISECONDS(5)),
               PEBBLE_ERR_TASK_TIMEOUT);
    future = schedule(pool, stay, NULL, 0, 0);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    expect_works(pool);
    kill_zygote_of(pool);
    expect_works(pool);
    pids_of(pool, workers, &zygote);
    close_join_free(pool);
    expect_gone(zygote);
}

/* Beside children of the program's own, if it waits for all. */
static void use_pools(bool with_own) {
    static const pebble_start_method methods[] = {
        PEBBLE_START_FORK, PEBBLE_START_FORKSERVER, PEBBLE_START_SPAWN};
    for (int i = 0; i < 3; i++) {
        if (with_own)
            start_own();
        use_pool(methods[i]);
        if (with_own)
            start_own();
    }
}

/* ---- Ways to deal with SIGCHLD ---- */

static void wait_for_all(int signal) {
    int error = errno;
    (void)signal;
    while (find_any(WNOHANG))
        ;
    errno = error;
}

static int handle_sigchld(void *unused) {
    (void)unused;
    signal(SIGCHLD, wait_for_all);
    use_pools(true);
    check_found();
    return support_teardown(NULL);
}

static int ignore_sigchld(void *unused) {
    (void)unused;
    signal(SIGCHLD, SIG_IGN);
    use_pools(false);
    return support_teardown(NULL);
}

static int block_sigchld(void *unused) {
    sigset_t blocked;
    (void)unused;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    use_pools(false);
    return support_teardown(NULL);
}

/* In programs of their own: how signals are dealt with is everybody's. Each looks itself whether something is
 * left, before its end takes that with it. */
static void test_sigchld_handled(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it runs no handlers in a process that was forked from one with threads */
    assert_int_equal(program_wait(program_start(handle_sigchld, NULL)), 0);
}

static void test_sigchld_ignored(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(ignore_sigchld, NULL)), 0);
}

static void test_sigchld_blocked(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(block_sigchld, NULL)), 0);
}

/* ---- Waiting for any child, beside the pool ---- */

static void *wait_for_any(void *over) {
    while (!atomic_load((_Atomic bool *)over)) {
        if (!find_any(0))
            usleep(100); /* there is none just now */
    }
    return NULL;
}

static int wait_beside(void *unused) {
    _Atomic bool over = false;
    pthread_t thread;
    (void)unused;
    assert_int_equal(pthread_create(&thread, NULL, wait_for_any, &over), 0);
    use_pools(true);
    check_found();
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    return support_teardown(NULL);
}

static void test_program_waits_for_any_child(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it does not know the threads of a process that was forked from one with threads */
    assert_int_equal(program_wait(program_start(wait_beside, NULL)), 0);
}

/* ---- Children of its own ---- */

typedef struct forking {
    _Atomic bool over;
    int count, wrong;
} forking;

static void *fork_and_wait(void *context) {
    forking *self = context;
    for (; !atomic_load(&self->over); self->count++) {
        int code = self->count % 100, status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(code);
        self->wrong += waitpid(child, &status, 0) != child || !WIFEXITED(status) ||
                       WEXITSTATUS(status) != code;
        self->wrong += system("exit 3") != 3 << 8;
    }
    return NULL;
}

static void test_children_of_the_program(void **state) {
    forking self = {.over = false};
    pthread_t thread;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, fork_and_wait, &self), 0);
    use_pools(false);
    atomic_store(&self.over, true);
    pthread_join(thread, NULL);
    assert_true(self.count > 0);
    assert_int_equal(self.wrong, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_sigchld_handled),
        supported_test(test_sigchld_ignored),
        supported_test(test_sigchld_blocked),
        supported_test(test_program_waits_for_any_child),
        supported_test(test_children_of_the_program),
    };
    pebble_worker_main();
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("children", tests, NULL, NULL);
}
