/* How a task may fail, and what its future tells of it. */
#include "support.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* What crashes on purpose: no sanitizer sees it first, and it has a frame of its own. */
#if defined(__clang__)
#define NO_CLONE
#else
#define NO_CLONE __attribute__((noclone))
#endif
#define CRASHES                                                                          \
    NO_CLONE __attribute__((noinline, no_sanitize("address", "undefined", "thread")))

/* Ends a function that is not to make its last call a jump. */
#define STAY __asm__ volatile("")

enum { MESSAGE_MAX = 1023 };

/* ---- Checks ---- */

static pebble_pool *pool_of_one(void) {
    return new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
}

/* Waits for the end, which must be a failure of this kind; the message is never NULL. */
static const pebble_failure *failure_of(pebble_future *future, pebble_error kind) {
    const void *data = &data;
    size_t size = 77;
    pebble_error error = pebble_future_result(future, DEADLINE_NS, &data, &size);
    assert_string_equal(pebble_error_name(error), pebble_error_name(kind));
    assert_ptr_equal(data, &data);
    assert_int_equal(size, 77);
    const pebble_failure *failure = pebble_future_failure(future);
    assert_non_null(failure);
    assert_ptr_equal(failure, pebble_future_failure(future));
    assert_int_equal(failure->kind, kind);
    assert_non_null(failure->message);
    assert_null(strchr(failure->message, '\n'));
    int64_t value;
    assert_int_equal(pebble_future_copy_result(future, 0, &value, sizeof value), kind);
    return failure;
}

/* The pool goes on. */
static int give_seven(pebble_task *task, const void *input, size_t input_size) {
    int seven = 7;
    (void)input, (void)input_size;
    return (int)pebble_task_write(task, &seven, sizeof seven);
}

static void expect_works(pebble_pool *pool) {
    assert_int_equal(take_int(schedule(pool, give_seven, NULL, 0, 0)), 7);
}

/* ---- Errors that the task returns ---- */

typedef struct fail_case {
    int code; /* of pebble_task_fail() */
    int returned;
    size_t length;  /* of the message; SIZE_MAX: pebble_task_fail() is not called */
    size_t written; /* bytes of a result */
} fail_case;

static int fail_as_told(pebble_task *task, const void *input, size_t input_size) {
    const fail_case *told = input;
    char *message = malloc(4000);
    (void)input_size;
    memset(message, 'm', 4000);
    for (size_t i = 0; i < told->written; i += 1000)
        pebble_task_write(task, message,
                          told->written - i < 1000 ? told->written - i : 1000);
    if (told->length != SIZE_MAX)
        pebble_task_fail(task, told->code, "%.*s", (int)told->length, message);
    free(message);
    return told->returned;
}

static void check_failed(bool threads) {
    static const struct {
        fail_case told;
        int code;
        size_t length; /* of the message; SIZE_MAX: not checked */
    } cases[] = {
        {{.code = 7, .returned = 7, .length = 10}, 7, 10},
        {{.code = 0, .returned = 1, .length = 10}, 1, 10},
        {{.code = -5, .returned = 3, .length = 1}, -5, 1},
        {{.code = INT_MIN, .returned = 0, .length = 15}, INT_MIN, 15},
        {{.code = INT_MAX, .returned = 0, .length = 16}, INT_MAX, 16},
        {{.code = 2, .returned = 2, .length = 0}, 2, 0},
        {{.code = 2, .returned = 2, .length = 17}, 2, 17},
        {{.code = 2, .returned = 2, .length = MESSAGE_MAX}, 2, MESSAGE_MAX},
        {{.code = 2, .returned = 2, .length = MESSAGE_MAX + 1}, 2, MESSAGE_MAX},
        {{.code = 2, .returned = 2, .length = 4000}, 2, MESSAGE_MAX},
        {{.code = 2, .returned = 2, .length = 4000, .written = 10}, 2, MESSAGE_MAX},
        {{.code = 2, .returned = 2, .length = 20, .written = 3000000}, 2, 20},
        {{.returned = 4, .length = SIZE_MAX}, 4, SIZE_MAX},
        {{.returned = -1, .length = SIZE_MAX, .written = 100}, -1, SIZE_MAX},
        {{.returned = INT_MIN, .length = SIZE_MAX, .written = 1000000}, INT_MIN, SIZE_MAX},
    };
    pebble_pool *pool = threads ? new_thread_pool(NULL) : pool_of_one();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pebble_future *future =
            schedule(pool, fail_as_told, &cases[i].told, sizeof cases[i].told, 0);
        const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_FAILED);
        assert_int_equal(failure->code, cases[i].code);
        if (cases[i].length != SIZE_MAX) {
            assert_int_equal(strlen(failure->message), cases[i].length);
            assert_int_equal(strspn(failure->message, "m"), cases[i].length);
        } else {
            assert_true(strlen(failure->message) > 0);
        }
        assert_int_equal(failure->timeout_ns, 0);
        assert_int_equal(failure->exit_code, 0);
        assert_int_equal(failure->signal, 0);
        assert_null(failure->backtrace);
        assert_int_equal(failure->pid, pebble_future_pid(future));
        assert_int_equal(failure->pid == 0, threads);
        assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
        pebble_future_unref(future);
    }
    expect_works(pool);
    close_join_free(pool);
}

static void test_failed(void **state) {
    (void)state;
    check_failed(false);
}

static void test_failed_threads(void **state) {
    (void)state;
    check_failed(true);
}

static int fail_twice(pebble_task *task, const void *input, size_t input_size) {
    (void)input_size;
    if (pebble_task_failed(task) || pebble_task_failed(NULL))
        return 0;
    if (pebble_task_fail(task, 3, "the %s", "first") != 3 || !pebble_task_failed(task))
        return 0;
    if (pebble_task_fail(task, 0, "%s", (const char *)input) != 1)
        return 0;
    return pebble_task_fail(task, 9, "the last: %s", (const char *)input);
}

static void test_last_failure_counts(void **state) {
    (void)state;
    pebble_pool *pools[] = {pool_of_one(), new_thread_pool(NULL)};
    for (int i = 0; i < 2; i++) {
        pebble_future *future = schedule(pools[i], fail_twice, "said", 5, 0);
        const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_FAILED);
        assert_int_equal(failure->code, 9);
        assert_string_equal(failure->message, "the last: said");
        assert_non_null(strstr(pebble_error_message(), "the last: said"));
        pebble_future_unref(future);
        close_join_free(pools[i]);
    }
}

static int misuse_the_task(pebble_task *task, const void *input, size_t input_size) {
    (void)input, (void)input_size;
    if (pebble_task_write(NULL, "x", 1) != PEBBLE_ERR_INVALID)
        return 1;
    if (pebble_task_write(task, NULL, 1) != PEBBLE_ERR_INVALID)
        return 2;
    if (pebble_task_write(task, NULL, 0) != PEBBLE_OK)
        return 3;
    if (pebble_task_write(task, "x", SIZE_MAX) == PEBBLE_OK)
        return 4;
    if (pebble_task_fail(NULL, 5, "x") != 5)
        return 5;
    if (pebble_task_failed(task))
        return 6;
    return (int)pebble_task_write(task, "ok", 2);
}

static void test_wrong_calls_in_a_task(void **state) {
    (void)state;
    pebble_pool *pools[] = {pool_of_one(), new_thread_pool(NULL)};
    for (int i = 0; i < 2; i++) {
        char result[2] = "";
        pebble_future *future = schedule(pools[i], misuse_the_task, NULL, 0, 0);
        expect_ok(pebble_future_copy_result(future, DEADLINE_NS, result, 2));
        assert_memory_equal(result, "ok", 2);
        pebble_future_unref(future);
        close_join_free(pools[i]);
    }
}

/* ---- pebble_task_vfail() ---- */

/* What a task's own helper does with its list of arguments. */
PEBBLE_PRINTF(3, 4)
static int fail_by_list(pebble_task *task, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int returned = pebble_task_vfail(task, code, format, args);
    va_end(args);
    return returned;
}

enum { VFAIL_ZERO, VFAIL_FORMATTED, VFAIL_LONG, VFAIL_NULL_TASK, VFAIL_NULL_FORMAT };

static int vfail_as_told(pebble_task *task, const void *input, size_t input_size) {
    const char *no_format = NULL; /* not a constant: the compiler would warn */
    (void)input_size;
    switch (*(const int *)input) {
    case VFAIL_ZERO:
        return fail_by_list(task, 0, "code %d", 0) == 1 && pebble_task_failed(task) ? 0
                                                                                    : 99;
    case VFAIL_FORMATTED:
        return fail_by_list(task, -8, "%s, %d, %.2f and %c", "text", -7, 2.5, 'c');
    case VFAIL_LONG:
        return fail_by_list(task, 2, "%*s", MESSAGE_MAX + 1, "m");
    case VFAIL_NULL_TASK:
        if (fail_by_list(NULL, 5, "nobody's") != 5 || fail_by_list(NULL, 0, "it") != 1 ||
            strstr(pebble_error_message(), "task") == NULL)
            return 98;
        break;
    case VFAIL_NULL_FORMAT:
        if (fail_by_list(task, 5, no_format, 0) != 5 ||
            fail_by_list(task, 0, no_format, 0) != 1 ||
            strstr(pebble_error_message(), "format") == NULL)
            return 97;
        break;
    }
    return pebble_task_failed(task) ? 96 : 0; /* such a call has not made it fail */
}

static void check_vfail(pebble_pool *pool, int told, int code, const char *message) {
    pebble_future *future = schedule(pool, vfail_as_told, &told, sizeof told, 0);
    if (code == 0) {
        expect_end(future, PEBBLE_OK);
        return;
    }
    const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_FAILED);
    assert_int_equal(failure->code, code);
    assert_string_equal(failure->message, message);
    pebble_future_unref(future);
}

static void test_failed_with_a_list_of_arguments(void **state) {
    char blanks[MESSAGE_MAX + 1];
    (void)state;
    memset(blanks, ' ', MESSAGE_MAX);
    blanks[MESSAGE_MAX] = '\0';
    pebble_pool *pools[] = {pool_of_one(), new_thread_pool(NULL)};
    for (int i = 0; i < 2; i++) {
        check_vfail(pools[i], VFAIL_ZERO, 1, "code 0");
        check_vfail(pools[i], VFAIL_FORMATTED, -8, "text, -7, 2.50 and c");
        check_vfail(pools[i], VFAIL_LONG, 2, blanks);
        check_vfail(pools[i], VFAIL_NULL_TASK, 0, NULL);
        check_vfail(pools[i], VFAIL_NULL_FORMAT, 0, NULL);
        close_join_free(pools[i]);
    }
}

/* ---- Time and cancelling ---- */

static int sleep_for_ever(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    if (input != NULL)
        counter_add(*(counter *const *)input, 1);
    while (pause() != 0)
        ;
    return 0;
}

static void test_timeout(void **state) {
    (void)state;
    const int64_t limit_ns = PEBBLE_MILLISECONDS(30) + 1;
    pebble_pool *pool = pool_of_one();
    counter *started = shared_memory(sizeof *started);
    pebble_future *future =
        schedule(pool, sleep_for_ever, &started, sizeof started, limit_ns);
    counter_expect(started, 1);
    pid_t pid = pebble_future_pid(future);
    const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(failure->timeout_ns == limit_ns);
    assert_int_equal(failure->pid, pid);
    assert_int_equal(pebble_future_pid(future), pid);
    assert_false(process_lives(pid));
    assert_int_equal(failure->code, 0);
    assert_int_equal(failure->exit_code, 0);
    assert_int_equal(failure->signal, 0);
    assert_null(failure->backtrace);
    assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
    assert_false(pebble_future_cancel(future));
    pebble_future_unref(future);
    expect_works(pool);
    close_join_free(pool);
}

static void test_cancelled(void **state) {
    (void)state;
    pebble_pool *pool = pool_of_one();
    counter *started = shared_memory(sizeof *started);
    pebble_future *running = schedule(pool, sleep_for_ever, &started, sizeof started, 0);
    pebble_future *queued = schedule(pool, give_seven, NULL, 0, 0);
    counter_expect(started, 1);
    pid_t pid = pebble_future_pid(running);
    assert_true(pebble_future_cancel(queued));
    assert_true(pebble_future_cancel(running));
    const pebble_failure *failure = failure_of(queued, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(failure->pid, 0);
    assert_int_equal(pebble_future_pid(queued), 0);
    failure = failure_of(running, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(failure->pid, pid);
    assert_int_equal(failure->exit_code, 0);
    assert_int_equal(failure->signal, 0);
    assert_true(failure->timeout_ns == 0);
    assert_null(failure->backtrace);
    assert_int_equal(pebble_future_state(running), PEBBLE_CANCELLED);
    pebble_future_unref(queued);
    pebble_future_unref(running);
    expect_works(pool);
    close_join_free(pool);
}

/* ---- Deaths ---- */

static int exit_with(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    _exit(*(const int *)input);
}

static void test_expired_by_exit(void **state) {
    static const int codes[] = {0, 3, 255};
    (void)state;
    pebble_pool *pool = pool_of_one();
    for (size_t i = 0; i < 3; i++) {
        pebble_future *future = schedule(pool, exit_with, &codes[i], sizeof codes[i], 0);
        const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_EXPIRED);
        assert_int_equal(failure->exit_code, codes[i]);
        assert_int_equal(failure->signal, 0);
        assert_int_not_equal(failure->pid, 0);
        assert_int_equal(failure->pid, pebble_future_pid(future));
        assert_false(process_lives(failure->pid));
        assert_null(failure->backtrace);
        assert_int_equal(failure->code, 0);
        assert_non_null(strstr(failure->message, "exit code"));
        assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
        pebble_future_unref(future);
        expect_works(pool);
    }
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.worker_deaths, 3);
    close_join_free(pool);
}

static int raise_signal(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    kill(getpid(), *(const int *)input);
    while (pause() != 0)
        ;
    return 0;
}

static void test_expired_by_signal(void **state) {
    static const int signals[] = {SIGKILL, SIGTERM, SIGUSR1, SIGALRM};
    (void)state;
    pebble_pool *pool = pool_of_one();
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        pebble_future *future = schedule(pool, raise_signal, &signals[i], sizeof(int), 0);
        const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_EXPIRED);
        assert_int_equal(failure->exit_code, -signals[i]);
        assert_int_equal(failure->signal, signals[i]);
        assert_int_not_equal(failure->pid, 0);
        assert_null(failure->backtrace);
        pebble_future_unref(future);
        expect_works(pool);
    }
    close_join_free(pool);
}

static int *volatile null_pointer;

CRASHES static void crash_by_null(void) {
    *null_pointer = 1;
    STAY;
}

CRASHES static void crash_by_wild(void) {
    *(volatile char *)(uintptr_t)0x1238 = 1;
    STAY;
}

CRASHES static void crash_by_abort(void) {
    abort();
}

CRASHES static void crash_by_bus(void) {
    char path[] = "/tmp/pebble-test-XXXXXX";
    int fd = mkstemp(path);
    unlink(path);
    volatile char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memory[0] = 1; /* the file is empty */
    STAY;
}

CRASHES static void crash_by_division(void) {
#if defined(__x86_64__)
    __asm__ volatile("xorl %%ecx, %%ecx\n\tdivl %%ecx" ::: "eax", "ecx", "edx");
#else
    raise(SIGFPE); /* the processor gives a result */
#endif
    STAY;
}

CRASHES static void crash_by_instruction(void) {
#if defined(__x86_64__)
    __asm__ volatile("ud2");
#else
    raise(SIGILL);
#endif
    STAY;
}

static void (*volatile deeper)(void);

CRASHES static void crash_by_recursion(void) {
    deeper = crash_by_recursion;
    deeper();
    STAY;
}

static void (*const crashes[])(void) = {
    crash_by_null,     crash_by_wild,        crash_by_abort,     crash_by_bus,
    crash_by_division, crash_by_instruction, crash_by_recursion,
};
static const int crash_signals[] = {SIGSEGV, SIGSEGV, SIGABRT, SIGBUS,
                                    SIGFPE,  SIGILL,  SIGSEGV};
static const char *const crash_names[] = {
    "crash_by_null",     "crash_by_wild",        "crash_by_abort",     "crash_by_bus",
    "crash_by_division", "crash_by_instruction", "crash_by_recursion",
};

CRASHES static int crash_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    crashes[*(const size_t *)input]();
    STAY;
    return 0;
}

static void test_expired_by_crash(void **state) {
    (void)state;
    pebble_pool *pool = pool_of_one();
    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++) {
        pebble_future *future = schedule(pool, crash_task, &i, sizeof i, 0);
        const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_EXPIRED);
        print_message("%s: %s\n", crash_names[i], failure->message);
        assert_int_equal(failure->signal, crash_signals[i]);
        assert_int_equal(failure->exit_code, -crash_signals[i]);
        assert_int_equal(failure->pid, pebble_future_pid(future));
        assert_non_null(failure->backtrace);
        assert_int_equal(strncmp(failure->backtrace, "#0 ", 3), 0);
        assert_non_null(strstr(failure->backtrace, crash_names[i]));
        if (crashes[i] != crash_by_recursion)
            assert_non_null(strstr(failure->backtrace, "crash_task"));
        pebble_future_unref(future);
        expect_works(pool);
    }
    close_join_free(pool);
}

static void *crash_thread(void *unused) {
    crash_by_null();
    return unused;
}

static int crash_in_a_thread(pebble_task *task, const void *input, size_t input_size) {
    pthread_t thread;
    (void)task, (void)input, (void)input_size;
    if (pthread_create(&thread, NULL, crash_thread, NULL) == 0)
        pthread_join(thread, NULL);
    return 0;
}

static void test_crash_in_a_thread_of_the_task(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it allows no threads in a process that was forked from one with threads */
    pebble_pool *pool = pool_of_one();
    pebble_future *future = schedule(pool, crash_in_a_thread, NULL, 0, 0);
    const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_EXPIRED);
    assert_int_equal(failure->signal, SIGSEGV);
    assert_non_null(strstr(failure->backtrace, "crash_by_null"));
    pebble_future_unref(future);
    expect_works(pool);
    close_join_free(pool);
}

/* The report of a crash that was survived is not that of a death by something else. */
static int crash_and_live(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    signal(SIGSEGV, SIG_IGN);
    if (fork() == 0)
        crash_by_null();
    _exit(4);
}

static void test_crash_of_a_child_is_not_the_workers(void **state) {
    (void)state;
    pebble_pool *pool = pool_of_one();
    pebble_future *future = schedule(pool, crash_and_live, NULL, 0, 0);
    const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_EXPIRED);
    assert_int_equal(failure->exit_code, 4);
    assert_int_equal(failure->signal, 0);
    assert_null(failure->backtrace);
    pebble_future_unref(future);
    expect_works(pool);
    close_join_free(pool);
}

/* ---- A death costs the task that ran, and no other ---- */

static void check_cost(int workers) {
    enum { COUNT = 300, EVERY = 25 };
    pebble_future *futures[COUNT];
    size_t which = 0;
    int code = 9;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = workers));
    expect_works(pool);
    for (int i = 0; i < COUNT; i++) {
        if (i % EVERY != EVERY - 1)
            futures[i] = schedule(pool, give_seven, NULL, 0, 0);
        else if (i % 2 == 0)
            futures[i] = schedule(pool, crash_task, &which, sizeof which, 0);
        else
            futures[i] = schedule(pool, exit_with, &code, sizeof code, 0);
    }
    for (int i = 0; i < COUNT; i++) {
        if (i % EVERY != EVERY - 1) {
            assert_int_equal(take_int(futures[i]), 7);
            continue;
        }
        const pebble_failure *failure = failure_of(futures[i], PEBBLE_ERR_TASK_EXPIRED);
        assert_int_equal(failure->exit_code, i % 2 == 0 ? -SIGSEGV : code);
        assert_int_equal(failure->backtrace != NULL, i % 2 == 0);
        pebble_future_unref(futures[i]);
    }
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.worker_deaths, COUNT / EVERY);
    close_join_free(pool);
}

static void test_others_are_not_touched(void **state) {
    (void)state;
    check_cost(1);
    check_cost(2);
}

static void test_worker_killed_from_outside(void **state) {
    (void)state;
    pid_t pids[2];
    size_t count = 0;
    pebble_pool *pool = pool_of_one();
    counter *started = shared_memory(sizeof *started);
    pebble_future *future = schedule(pool, sleep_for_ever, &started, sizeof started, 0);
    pebble_future *behind = schedule(pool, give_seven, NULL, 0, 0);
    counter_expect(started, 1);
    expect_ok(pebble_pool_get_pids(pool, pids, 2, &count));
    assert_int_equal(count, 1);
    assert_int_equal(pids[0], pebble_future_pid(future));
    assert_int_equal(kill(pids[0], SIGKILL), 0);
    const pebble_failure *failure = failure_of(future, PEBBLE_ERR_TASK_EXPIRED);
    assert_int_equal(failure->signal, SIGKILL);
    assert_int_equal(failure->exit_code, -SIGKILL);
    assert_int_equal(failure->pid, pids[0]);
    pebble_future_unref(future);
    assert_int_equal(take_int(behind), 7);
    close_join_free(pool);
}

#define TEST(name) supported_test(test_##name)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(failed),
        TEST(failed_threads),
        TEST(last_failure_counts),
        TEST(wrong_calls_in_a_task),
        TEST(failed_with_a_list_of_arguments),
        TEST(timeout),
        TEST(cancelled),
        TEST(expired_by_exit),
        TEST(expired_by_signal),
        TEST(expired_by_crash),
        TEST(crash_in_a_thread_of_the_task),
        TEST(crash_of_a_child_is_not_the_workers),
        TEST(others_are_not_touched),
        TEST(worker_killed_from_outside),
    };
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("failures", tests, NULL, NULL);
}
