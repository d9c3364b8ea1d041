/* Every call of the system that may fail for want of a resource is made to, one after another: the
 * first of its kind, the second, and so on until a run has had fewer. What must hold each time: a
 * call succeeds or gives a documented error, every future ends, no worker crashes, join succeeds, and
 * nothing is left behind (support_teardown(), and the address sanitizer).
 *
 * The program, its zygotes and workers are counted together: MORE_TRIES, since a run may have a few
 * calls more than the one before. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

enum {
    TASKS = 3,
    ELEMENTS = 4,
    CHUNK = 2,
    MORE_TRIES = 3,
    FIRST_CALLS = 12,
    PROGRAMS_MAX = 32,
    LARGE = 300 * 1000
};

static const char *const fault_names[OS_FAULT_KINDS] = {"none", "alloc",  "shared", "fd",
                                                        "fork", "thread", "message"};

static counter *calls; /* shared by all processes; one for each program */

static int setup(void **state) {
    calls = shared_memory(PROGRAMS_MAX * sizeof *calls);
    return support_setup(state);
}

/* ---- Tasks ---- */

/* Gives its input back: so large that it streams both ways. */
static int echo(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

/* ---- What is allowed ---- */

static bool is_refusal(pebble_error error) {
    return error == PEBBLE_ERR_NO_MEMORY || error == PEBBLE_ERR_SYSTEM ||
           error == PEBBLE_ERR_BROKEN;
}

/* How a task may end: it may also have been with a zygote or worker that ended for want of
 * something, or it was the worker that had no memory for it. */
static bool is_allowed_end(pebble_error error) {
    return error == PEBBLE_OK || is_refusal(error) || error == PEBBLE_ERR_TASK_EXPIRED ||
           error == PEBBLE_ERR_TASK_FAILED;
}

typedef struct scenario {
    os_fault kind;
    unsigned nth;
    bool repeat;
    bool threads;
    bool broken; /* something was not as it must be */
} scenario;

static void complain(scenario *run, const char *what, pebble_error error) {
    print_error("%s pool, %s fault %u%s: %s: %s (%s)\n",
                run->threads ? "thread" : "process", fault_names[run->kind], run->nth,
                run->repeat ? " and on" : "", what, pebble_error_name(error),
                pebble_error_message());
    run->broken = true;
}

static void expect_refusal(scenario *run, const char *what, pebble_error error) {
    if (error != PEBBLE_OK && !is_refusal(error))
        complain(run, what, error);
}

/* ---- The scenario ---- */

static void note_end(pebble_future *future, void *context) {
    (void)future;
    counter_add(context, 1);
}

static void check_result(scenario *run, pebble_future *future, const void *expected,
                         size_t size) {
    const void *data;
    size_t data_size;
    pebble_error error = pebble_future_result(future, DEADLINE_NS, &data, &data_size);
    if (!is_allowed_end(error))
        complain(run, "the task ended", error);
    else if (error == PEBBLE_OK &&
             (data_size != size || memcmp(data, expected, size) != 0))
        complain(run, "wrong result", error);
    else if (error != PEBBLE_OK && pebble_future_failure(future) == NULL)
        complain(run, "no failure for", error);
    else if (error != PEBBLE_OK && is_crash(pebble_future_failure(future)))
        complain(run, "the worker crashed", error);
    pebble_future_unref(future);
}

/* Its callback runs once, if it could be added. */
static void run_with_callback(scenario *run, pebble_pool *pool, counter *ends) {
    pebble_future *future = NULL;
    int n = 7, expected = 49;
    pebble_error error = pebble_schedule(pool, square, &n, sizeof n, 0, &future);
    expect_refusal(run, "schedule", error);
    if (error != PEBBLE_OK)
        return;
    error = pebble_future_add_callback(future, note_end, ends);
    expect_refusal(run, "add_callback", error);
    if (error == PEBBLE_OK && !counter_wait(ends, 1))
        complain(run, "no callback", error);
    check_result(run, future, &expected, sizeof expected);
}

static void run_tasks(scenario *run, pebble_pool *pool) {
    static const unsigned char large[LARGE] = {1, 2, 3};
    pebble_future *futures[TASKS] = {NULL}, *streamed = NULL;
    for (int n = 0; n < TASKS; n++)
        expect_refusal(run, "schedule",
                       pebble_schedule(pool, square, &n, sizeof n, 0, &futures[n]));
    expect_refusal(run, "schedule large",
                   pebble_schedule(pool, echo, large, sizeof large, 0, &streamed));
    for (int n = 0; n < TASKS; n++) {
        int expected = n * n;
        if (futures[n] != NULL)
            check_result(run, futures[n], &expected, sizeof expected);
    }
    if (streamed != NULL)
        check_result(run, streamed, large, sizeof large);
}

static void run_map(scenario *run, pebble_pool *pool) {
    static const int items[ELEMENTS] = {1, 2, 3, 4};
    pebble_map *map = NULL;
    const void *data;
    size_t size;
    pebble_error error =
        pebble_pool_map(pool, square, items, sizeof items[0], ELEMENTS, CHUNK, 0, &map);
    expect_refusal(run, "map", error);
    if (error != PEBBLE_OK)
        return;
    for (int i = 0; i < ELEMENTS; i++) {
        error = pebble_map_next(map, DEADLINE_NS, &data, &size);
        if (!is_allowed_end(error))
            complain(run, "map_next", error);
        else if (error != PEBBLE_OK && is_crash(pebble_map_failure(map)))
            complain(run, "the worker of an element crashed", error);
        else if (error == PEBBLE_OK &&
                 (size != sizeof(int) || *(const int *)data != items[i] * items[i]))
            complain(run, "wrong element", error);
    }
    error = pebble_map_next(map, DEADLINE_NS, &data, &size);
    if (error != PEBBLE_ERR_END)
        complain(run, "map_next at the end", error);
    pebble_map_unref(map);
}

static pebble_error make_pool(const scenario *run, pebble_pool **pool) {
    const pebble_pool_options *options =
        PEBBLE_POOL_OPTIONS(.max_workers = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(50));
    return run->threads ? pebble_thread_pool_new(options, pool)
                        : pebble_process_pool_new(options, pool);
}

static void arm(const scenario *run) {
    atomic_store(&calls->value, 0);
    pebble_test_fault_shared(run->kind, run->nth, run->repeat, &calls->value);
}

/* True if its call has come about, and so has failed. */
static bool disarm(const scenario *run) {
    bool hit = counter_value(calls) >= run->nth;
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    return hit;
}

/* Returns whether something has failed. */
static bool run_scenario(scenario *run) {
    pebble_pool *pool = NULL;
    counter ends = {0};
    arm(run);
    pebble_error error = make_pool(run, &pool);
    expect_refusal(run, "new", error);
    if (error == PEBBLE_OK) {
        run_with_callback(run, pool, &ends);
        run_tasks(run, pool);
        run_map(run, pool);
        if ((error = pebble_pool_close(pool)) != PEBBLE_OK)
            complain(run, "close", error);
        if ((error = pebble_pool_join(pool, DEADLINE_NS)) != PEBBLE_OK)
            complain(run, "join", error);
        pebble_pool_free(pool);
    }
    if (counter_value(&ends) > 1)
        complain(run, "callback called again", PEBBLE_OK);
    return disarm(run);
}

/* ---- Each call, one after another ---- */

static void check_kind(os_fault kind, bool threads) {
    unsigned failed = 0; /* the last that has */
    bool broken = false;
    for (unsigned nth = 1; nth <= failed + MORE_TRIES; nth++) {
        scenario run = {.kind = kind, .nth = nth, .threads = threads};
        if (run_scenario(&run))
            failed = nth;
        broken |= run.broken;
    }
    print_message("%s pool: %u calls that may fail (%s)\n",
                  threads ? "thread" : "process", failed, fault_names[kind]);
    assert_true(failed > 0);
    assert_false(broken);
}

#define EACH(name, kind, threads)                                                        \
    static void test_##name(void **unused) {                                             \
        (void)unused;                                                                    \
        check_kind(kind, threads);                                                       \
    }
EACH(process_alloc, OS_FAULT_ALLOC, false)
EACH(process_shared, OS_FAULT_SHARED, false)
EACH(process_fd, OS_FAULT_FD, false)
EACH(process_fork, OS_FAULT_FORK, false)
EACH(process_thread, OS_FAULT_THREAD, false)
EACH(process_message, OS_FAULT_MESSAGE, false)
EACH(thread_alloc, OS_FAULT_ALLOC, true)
EACH(thread_thread, OS_FAULT_THREAD, true)

/* ---- From one call on all of them ---- */

static int run_from(void *context) {
    scenario *run = context;
    calls += run->nth; /* its own: they run side by side, as most wait for long */
    bool failed = run_scenario(run);
    return run->broken ? 1 : failed ? 0 : 2;
}

static void check_from(os_fault kind, bool threads, unsigned last) {
    pid_t programs[PROGRAMS_MAX];
    for (unsigned nth = 1; nth <= last; nth++) {
        scenario run = {.kind = kind, .nth = nth, .repeat = true, .threads = threads};
        programs[nth] = program_start(run_from, &run);
    }
    for (unsigned nth = 1; nth <= last; nth++)
        assert_int_equal(program_wait(programs[nth]), 0);
}

#define FROM(name, kind, threads, last)                                                  \
    static void test_##name##_from(void **unused) {                                      \
        (void)unused;                                                                    \
        check_from(kind, threads, last);                                                 \
    }
FROM(process_alloc, OS_FAULT_ALLOC, false, 20)
FROM(process_shared, OS_FAULT_SHARED, false, 20)
FROM(process_fd, OS_FAULT_FD, false, 12)
FROM(process_fork, OS_FAULT_FORK, false, 3)
FROM(process_thread, OS_FAULT_THREAD, false, 1)
FROM(thread_alloc, OS_FAULT_ALLOC, true, 20)
FROM(thread_thread, OS_FAULT_THREAD, true,
     2) /* a third is started only if the first is busy just then */

static int sleep_long(pebble_task *task, const void *input, size_t input_size) {
    (void)task;
    (void)input;
    (void)input_size;
    for (;;)
        pause();
    return 0;
}

/* The program's messages to a zygote that is there already do not get through for a while: what
 * waited for them, a worker to be started and one to be ended, then goes on. */
static void test_process_message_for_a_while(void **unused) {
    (void)unused;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(50)));
    int n = 5;
    assert_int_equal(take_int(schedule(pool, square, &n, sizeof n, 0)), 25);
    pebble_test_fault(OS_FAULT_MESSAGE, 1, true);
    pebble_future *stopped = schedule(pool, sleep_long, NULL, 0, PEBBLE_MILLISECONDS(20));
    pebble_future *other = schedule(pool, sleep_long, NULL, 0, PEBBLE_MILLISECONDS(20));
    pebble_future *waits = schedule(pool, square, &n, sizeof n, 0);
    assert_int_equal(pebble_future_wait(stopped, PEBBLE_MILLISECONDS(150)),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(pebble_test_fault_calls() > 0);
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    expect_end(stopped, PEBBLE_ERR_TASK_TIMEOUT);
    expect_end(other, PEBBLE_ERR_TASK_TIMEOUT);
    assert_int_equal(take_int(waits), 25);
    close_join_free(pool);
}

/* ---- What is started once a program ---- */

static int run_in_program(void *context) {
    scenario *run = context;
    calls += run->nth;
    run_scenario(run);
    if (run->broken)
        return 1;
    /* Nothing stays broken: the next pool works. */
    scenario again = {.kind = OS_FAULT_NONE, .threads = run->threads};
    pebble_pool *pool = NULL;
    if (make_pool(&again, &pool) != PEBBLE_OK)
        return 2;
    run_tasks(&again, pool);
    pebble_pool_close(pool);
    if (again.broken || pebble_pool_join(pool, DEADLINE_NS) != PEBBLE_OK)
        return 3;
    pebble_pool_free(pool);
    return 0;
}

static void check_first_pools(os_fault kind, bool repeat, bool threads) {
    pid_t programs[PROGRAMS_MAX];
    for (unsigned nth = 1; nth <= FIRST_CALLS; nth++) {
        scenario run = {.kind = kind, .nth = nth, .repeat = repeat, .threads = threads};
        programs[nth] = program_start(run_in_program, &run);
    }
    for (unsigned nth = 1; nth <= FIRST_CALLS; nth++) {
        int code = program_wait(programs[nth]);
        if (code != 0)
            print_error("%s pool, %s fault %u%s: code %d\n",
                        threads ? "thread" : "process", fault_names[kind], nth,
                        repeat ? " and on" : "", code);
        assert_int_equal(code, 0);
    }
    assert_true(counter_value(&calls[1]) > 0);
}

/* In programs that have had no pool yet, in which the engine's own thread must be started. */
static void test_first_pool(void **unused) {
    static const os_fault kinds[] = {OS_FAULT_ALLOC, OS_FAULT_FD, OS_FAULT_THREAD};
    (void)unused;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (int form = 0; form < 4; form++)
            check_first_pools(kinds[i], (form & 1) != 0, (form & 2) != 0);
    }
}

/* ---- Single calls ---- */

static bool no_children(void *unused) {
    (void)unused;
    return process_children(getpid(), NULL, 0) == 0;
}

static void check_concurrent(bool threads) {
    for (int kind = OS_FAULT_ALLOC; kind < OS_FAULT_KINDS; kind++) {
        unsigned failed = 0;
        for (unsigned nth = 1; nth <= failed + MORE_TRIES; nth++) {
            scenario run = {.kind = (os_fault)kind, .nth = nth, .threads = threads};
            pebble_future *future = NULL;
            int n = 9, expected = 81;
            assert_true(wait_until(no_children, NULL)); /* which would count on */
            arm(&run);
            pebble_error error =
                threads ? pebble_concurrent_thread(square, &n, sizeof n, NULL, &future)
                        : pebble_concurrent_process(square, &n, sizeof n, NULL, &future);
            expect_refusal(&run, "concurrent", error);
            if (error == PEBBLE_OK)
                check_result(&run, future, &expected, sizeof expected);
            if (disarm(&run))
                failed = nth;
            assert_false(run.broken);
        }
        assert_true(failed > 0 || kind != OS_FAULT_ALLOC);
    }
}

static void test_concurrent_process(void **unused) {
    (void)unused;
    check_concurrent(false);
}

static void test_concurrent_thread(void **unused) {
    (void)unused;
    check_concurrent(true);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_first_pool),
        TEST(test_thread_alloc),
        TEST(test_thread_thread),
        TEST(test_thread_alloc_from),
        TEST(test_thread_thread_from),
        TEST(test_process_alloc),
        TEST(test_process_shared),
        TEST(test_process_fd),
        TEST(test_process_fork),
        TEST(test_process_thread),
        TEST(test_process_message),
        TEST(test_process_alloc_from),
        TEST(test_process_shared_from),
        TEST(test_process_fd_from),
        TEST(test_process_fork_from),
        TEST(test_process_thread_from),
        TEST(test_process_message_for_a_while),
        TEST(test_concurrent_process),
        TEST(test_concurrent_thread),
    };
    const char *filter = getenv("PEBBLE_TEST_FILTER");
    if (filter != NULL)
        cmocka_set_test_filter(filter);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
