/* Pools of threads. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

enum { MANY = 20000, SCHEDULERS = 8 };

typedef struct gate {
    counter entered, leave;
} gate;

/* Never the same one again: after a failed test its tasks may still be there. */
static gate *new_gate(void) {
    static gate gates[32];
    static size_t used;
    assert_true(used < 32);
    return &gates[used++];
}

/* ---- Tasks ---- */

static int increment(pebble_task *task, const void *input, size_t size) {
    int number = *(const int *)input + 1;
    (void)size;
    return (int)pebble_task_write(task, &number, sizeof number);
}

static int tell_thread(pebble_task *task, const void *input, size_t size) {
    int thread = gettid();
    (void)input, (void)size;
    return (int)pebble_task_write(task, &thread, sizeof thread);
}

static int tell_name(pebble_task *task, const void *input, size_t size) {
    char name[16] = "";
    (void)input, (void)size;
    pthread_getname_np(pthread_self(), name, sizeof name);
    return (int)pebble_task_write(task, name, sizeof name);
}

static int count(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    counter_add(*(counter *const *)input, 1);
    return 0;
}

static int pass_gate(pebble_task *task, const void *input, size_t size) {
    gate *at = *(gate *const *)input;
    (void)task, (void)size;
    counter_add(&at->entered, 1);
    return counter_wait(&at->leave, 1) ? 0 : 1;
}

static int meet_five(pebble_task *task, const void *input, size_t size) {
    counter *met = *(counter *const *)input;
    (void)task, (void)size;
    counter_add(met, 1);
    return counter_wait(met, 5) ? 0 : 1;
}

static int fail_with_7(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    return pebble_task_fail(task, 7, "seven of %d", 9);
}

static pebble_future *schedule_at(pebble_pool *pool, pebble_function function,
                                  void *object) {
    return schedule(pool, function, &object, sizeof object, 0);
}

static pebble_pool_info info_of(pebble_pool *pool) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    return info;
}

/* ---- What runs where ---- */

static void test_results_and_errors(void **state) {
    int number = 41;
    (void)state;
    pebble_pool *pool = new_thread_pool(NULL);
    assert_int_equal(take_int(schedule(pool, increment, &number, sizeof number, 0)), 42);
    pebble_future *future = schedule(pool, fail_with_7, NULL, 0, 0);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                 PEBBLE_ERR_TASK_FAILED, "seven of 9");
    const pebble_failure *failure = pebble_future_failure(future);
    assert_int_equal(failure->kind, PEBBLE_ERR_TASK_FAILED);
    assert_int_equal(failure->code, 7);
    assert_string_equal(failure->message, "seven of 9");
    assert_int_equal(pebble_future_pid(future), 0);
    pebble_future_unref(future);
    close_join_free(pool);
}

static int write_much(pebble_task *task, const void *input, size_t size) {
    for (int i = 0; i < 8; i++) {
        if (pebble_task_write(task, input, size) != PEBBLE_OK)
            return 1;
    }
    return 0;
}

static void test_large_results(void **state) {
    static unsigned char megabyte[1 << 20];
    const void *data;
    size_t size;
    (void)state;
    for (size_t i = 0; i < sizeof megabyte; i++)
        megabyte[i] = (unsigned char)(i * 7 >> 3);
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int round = 0; round < 3; round++) {
        pebble_future *future = schedule(pool, write_much, megabyte, sizeof megabyte, 0);
        expect_ok(pebble_future_result(future, DEADLINE_NS, &data, &size));
        assert_int_equal(size, 8 * sizeof megabyte);
        assert_int_equal((uintptr_t)data % 16, 0);
        for (size_t i = 0; i < 8; i++)
            assert_memory_equal((const char *)data + i * sizeof megabyte, megabyte,
                                sizeof megabyte);
        pebble_future_unref(future);
    }
    close_join_free(pool);
}

static void test_runs_max_workers_at_once(void **state) {
    pebble_future *futures[5];
    counter met = {0};
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 5));
    for (int i = 0; i < 5; i++)
        futures[i] = schedule_at(pool, meet_five, &met);
    for (int i = 0; i < 5; i++)
        expect_end(futures[i], PEBBLE_OK);
    assert_int_equal(info_of(pool).workers, 5);
    close_join_free(pool);
}

static void test_not_more_than_max_workers(void **state) {
    pebble_future *futures[20];
    gate *at = new_gate();
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 3));
    for (int i = 0; i < 20; i++)
        futures[i] = schedule_at(pool, pass_gate, at);
    counter_expect(&at->entered, 3);
    pebble_pool_info info = info_of(pool);
    assert_int_equal(info.max_workers, 3);
    assert_int_equal(info.workers, 3);
    assert_int_equal(info.in_flight, 3);
    assert_int_equal(info.queued, 17);
    assert_int_equal(info.ended, 0);
    assert_int_equal(counter_value(&at->entered), 3);
    counter_add(&at->leave, 1);
    for (int i = 0; i < 20; i++)
        expect_end(futures[i], PEBBLE_OK);
    close_join_free(pool);
}

static void test_info_counts_every_end(void **state) {
    gate *at = new_gate();
    pebble_future *futures[6];
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    for (int i = 0; i < 6; i++)
        futures[i] = schedule_at(pool, pass_gate, at);
    counter_expect(&at->entered, 1);
    assert_true(pebble_future_cancel(futures[2]));
    assert_true(pebble_future_cancel(futures[5]));
    pebble_pool_info info = info_of(pool);
    assert_int_equal(info.ended, 2);
    assert_int_equal(info.queued + info.in_flight, 4);
    counter_add(&at->leave, 1);
    for (int i = 0; i < 6; i++)
        expect_end(futures[i], i == 2 || i == 5 ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_OK);
    expect_ok(pebble_pool_close(pool));
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    info = info_of(pool);
    assert_int_equal(info.ended, 6);
    assert_int_equal(info.queued + info.in_flight, 0);
    assert_int_equal(info.workers, 0);
    assert_int_equal(info.worker_deaths, 0);
    pebble_pool_free(pool);
}

static void test_no_pids(void **state) {
    size_t found = 99;
    pid_t pid = -1;
    (void)state;
    pebble_pool *pool = new_thread_pool(NULL);
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    expect_ok(pebble_pool_get_pids(pool, &pid, 1, &found));
    assert_int_equal(found, 0);
    assert_int_equal(pid, -1);
    close_join_free(pool);
}

static void test_name(void **state) {
    const void *name;
    (void)state;
    const char *given[] = {NULL, "resize", "a name that is too long"};
    const char *expected[] = {"pebble-", "resize-", "a name th"};
    for (int i = 0; i < 3; i++) {
        pebble_pool *pool =
            new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .name = given[i]));
        pebble_future *future = schedule(pool, tell_name, NULL, 0, 0);
        expect_ok(pebble_future_result(future, DEADLINE_NS, &name, NULL));
        assert_memory_equal(name, expected[i], strlen(expected[i]));
        pebble_future_unref(future);
        close_join_free(pool);
    }
}

/* ---- max_tasks and the initializer ---- */

static void test_max_tasks(void **state) {
    static pebble_future *futures[200];
    int threads[200], counts[200], different = 0;
    (void)state;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 5));
    for (int i = 0; i < 200; i++)
        futures[i] = schedule(pool, tell_name, NULL, 0, 0);
    for (int i = 0; i < 200; i++) {
        const void *name; /* numbered: thread ids may come again */
        int number = 0, at = 0;
        expect_ok(pebble_future_result(futures[i], DEADLINE_NS, &name, NULL));
        assert_int_equal(sscanf(name, "pebble-%d", &number), 1);
        pebble_future_unref(futures[i]);
        while (at < different && threads[at] != number)
            at++;
        if (at == different) {
            threads[at] = number;
            counts[different++] = 0;
        }
        counts[at]++;
    }
    for (int i = 0; i < different; i++)
        assert_true(counts[i] <= 5);
    assert_in_range(different, 40, 42);
    close_join_free(pool);
}

static counter initialized;
static _Thread_local bool is_initialized;
static uint32_t fail_first;

static int initialize(const void *input, size_t size) {
    is_initialized = size == 5 && memcmp(input, "bytes", 5) == 0;
    return counter_add(&initialized, 1) <= fail_first ? 42 : 0;
}

static int tell_initialized(pebble_task *task, const void *input, size_t size) {
    if (!is_initialized)
        return 1;
    return tell_thread(task, input, size);
}

static pebble_pool *initialized_pool(int workers, uint64_t max_tasks, uint32_t fails) {
    char bytes[] = "bytes";
    atomic_store(&initialized.value, 0);
    fail_first = fails;
    pebble_pool *pool = new_thread_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .max_tasks = max_tasks,
                            .initializer = initialize, .initializer_input = bytes,
                            .initializer_input_size = 5));
    memset(bytes, 'x', sizeof bytes);
    return pool;
}

static void test_initializer_once_in_each_thread(void **state) {
    pebble_future *futures[40];
    (void)state;
    pebble_pool *pool = initialized_pool(2, 4, 0);
    for (int i = 0; i < 40; i++)
        futures[i] = schedule(pool, tell_initialized, NULL, 0, 0);
    for (int i = 0; i < 40; i++)
        expect_end(futures[i], PEBBLE_OK);
    close_join_free(pool);
    assert_in_range(counter_value(&initialized), 10, 12);
}

static void test_initializer_fails(void **state) {
    pebble_map *map = NULL;
    (void)state;
    pebble_pool *pool = initialized_pool(2, 0, UINT32_MAX);
    pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL), PEBBLE_ERR_BROKEN,
                 "42");
    assert_int_equal(pebble_future_failure(future)->code, 42);
    pebble_future_unref(future);
    assert_false(pebble_pool_active(pool));
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, NULL), PEBBLE_ERR_BROKEN,
                 "42");
    expect_error(pebble_pool_map(pool, nothing, NULL, 0, 0, 1, 0, &map),
                 PEBBLE_ERR_BROKEN, "42");
    assert_null(map);
    assert_in_range(counter_value(&initialized), 3, 5);
    close_join_free(pool);
}

static void test_initializer_fails_with_a_long_queue(void **state) {
    static pebble_future *futures[300];
    size_t accepted = 0;
    (void)state;
    pebble_pool *pool = initialized_pool(3, 0, UINT32_MAX);
    while (accepted < 300 &&
           pebble_schedule(pool, nothing, NULL, 0, 0, &futures[accepted]) == PEBBLE_OK)
        accepted++;
    assert_true(accepted > 0);
    for (size_t i = 0; i < accepted; i++)
        expect_end(futures[i], PEBBLE_ERR_BROKEN);
    close_join_free(pool);
}

static void test_initializer_fails_twice_then_works(void **state) {
    (void)state;
    pebble_pool *pool = initialized_pool(1, 0, 2);
    take_int(schedule(pool, tell_initialized, NULL, 0, 0));
    assert_int_equal(counter_value(&initialized), 3);
    close_join_free(pool);
}

/* ---- Cancel, close, stop, join, free ---- */

static void test_running_is_not_cancelled(void **state) {
    gate *at = new_gate();
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *runs = schedule_at(pool, pass_gate, at);
    pebble_future *waits = schedule_at(pool, pass_gate, at);
    counter_expect(&at->entered, 1);
    assert_int_equal(pebble_future_state(runs), PEBBLE_RUNNING);
    assert_int_equal(pebble_future_state(waits), PEBBLE_PENDING);
    assert_false(pebble_future_cancel(runs));
    assert_true(pebble_future_cancel(waits));
    assert_int_equal(pebble_future_state(waits), PEBBLE_CANCELLED);
    counter_add(&at->leave, 1);
    expect_end(runs, PEBBLE_OK);
    expect_end(waits, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
    assert_int_equal(counter_value(&at->entered), 1);
}

static void test_close_performs_the_queue(void **state) {
    gate *at = new_gate();
    counter counted = {0};
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    pebble_future_unref(schedule_at(pool, pass_gate, at));
    for (int i = 0; i < 100; i++)
        pebble_future_unref(schedule_at(pool, count, &counted));
    assert_true(pebble_pool_active(pool));
    expect_ok(pebble_pool_close(pool));
    assert_false(pebble_pool_active(pool));
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, NULL), PEBBLE_ERR_NOT_ACTIVE,
                 "closed");
    counter_add(&at->leave, 1);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    assert_int_equal(counter_value(&counted), 100);
    pebble_pool_free(pool);
}

static void *wait_for_future(void *future) {
    return (void *)(uintptr_t)pebble_future_wait(future, DEADLINE_NS);
}

/* After a stop or free: all are cancelled already but the two that run. */
static void expect_all_dropped_but_two(pebble_future **futures, size_t number, gate *at) {
    size_t dropped = 0;
    for (size_t i = 0; i < number; i++)
        dropped += pebble_future_state(futures[i]) == PEBBLE_CANCELLED;
    assert_int_equal(dropped, number - 2);
    counter_add(&at->leave, 1);
    for (size_t i = 0; i < number; i++) {
        bool was_dropped = pebble_future_state(futures[i]) == PEBBLE_CANCELLED;
        expect_end(futures[i], was_dropped ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_OK);
    }
    assert_int_equal(counter_value(&at->entered), 2);
}

static void test_stop_drops_the_queue(void **state) {
    gate *at = new_gate();
    pebble_future *futures[102];
    pthread_t waiting;
    void *error;
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 102; i++)
        futures[i] = schedule_at(pool, pass_gate, at);
    counter_expect(&at->entered, 2);
    assert_int_equal(pthread_create(&waiting, NULL, wait_for_future, futures[101]), 0);
    expect_ok(pebble_pool_stop(pool));
    pthread_join(waiting, &error);
    assert_null(error);
    expect_ok(pebble_pool_stop(pool));
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_pool_join(pool, 0), PEBBLE_ERR_TIMEOUT, "pebble_pool_join");
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, NULL), PEBBLE_ERR_NOT_ACTIVE,
                 "stop");
    expect_all_dropped_but_two(futures, 102, at);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
}

static void test_stop_after_close(void **state) {
    gate *at = new_gate();
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *runs = schedule_at(pool, pass_gate, at);
    pebble_future *waits = schedule_at(pool, pass_gate, at);
    counter_expect(&at->entered, 1);
    expect_ok(pebble_pool_close(pool));
    expect_ok(pebble_pool_stop(pool));
    expect_end(waits, PEBBLE_ERR_TASK_CANCELLED);
    counter_add(&at->leave, 1);
    expect_end(runs, PEBBLE_OK);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
}

static void test_join(void **state) {
    gate *at = new_gate();
    (void)state;
    close_join_free(new_thread_pool(NULL));
    stop_join_free(new_thread_pool(NULL));
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_error(pebble_pool_join(pool, PEBBLE_FOREVER), PEBBLE_ERR_ACTIVE,
                 "pebble_pool_join");
    pebble_future_unref(schedule_at(pool, pass_gate, at));
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_pool_join(pool, PEBBLE_MILLISECONDS(5)), PEBBLE_ERR_TIMEOUT,
                 "running");
    counter_add(&at->leave, 1);
    expect_ok(pebble_pool_join(pool, PEBBLE_FOREVER));
    expect_ok(pebble_pool_join(pool, 0));
    pebble_pool_free(pool);
}

static int join_pool(pebble_task *task, const void *input, size_t size) {
    pebble_pool *pool = *(pebble_pool *const *)input;
    (void)size;
    int error = (int)pebble_pool_join(pool, PEBBLE_FOREVER);
    return (int)pebble_task_write(task, &error, sizeof error);
}

typedef struct attempt {
    pebble_pool *pool;
    pebble_error error;
    counter done;
} attempt;

static void join_in_callback(pebble_future *future, void *context) {
    attempt *self = context;
    (void)future;
    self->error = pebble_pool_join(self->pool, PEBBLE_FOREVER);
    counter_add(&self->done, 1);
}

static void test_join_from_inside(void **state) {
    gate *at = new_gate();
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    pebble_pool *other = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    attempt in_callback = {.pool = pool};
    pebble_future *future = schedule_at(pool, pass_gate, at);
    expect_ok(pebble_future_add_callback(future, join_in_callback, &in_callback));
    assert_int_equal(take_int(schedule_at(pool, join_pool, pool)), PEBBLE_ERR_DEADLOCK);
    expect_ok(pebble_pool_close(other));
    assert_int_equal(take_int(schedule_at(pool, join_pool, other)), PEBBLE_OK);
    expect_ok(pebble_pool_close(pool));
    counter_add(&at->leave, 1);
    counter_expect(&in_callback.done, 1);
    assert_int_equal(in_callback.error, PEBBLE_ERR_DEADLOCK);
    expect_end(future, PEBBLE_OK);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
    pebble_pool_free(other);
}

static void test_free_of_a_running_pool(void **state) {
    gate *at = new_gate();
    pebble_future *futures[52];
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 52; i++)
        futures[i] = schedule_at(pool, pass_gate, at);
    counter_expect(&at->entered, 2);
    pebble_pool_free(pool);
    expect_all_dropped_but_two(futures, 52, at);
}

static void count_callback(pebble_future *future, void *context) {
    (void)future;
    counter_add(context, 1);
}

static void test_futures_outlive_their_pool(void **state) {
    int number = 41;
    counter called = {0};
    (void)state;
    pebble_pool *pool = new_thread_pool(NULL);
    pebble_future *future = schedule(pool, increment, &number, sizeof number, 0);
    close_join_free(pool);
    expect_ok(pebble_future_add_callback(future, count_callback, &called));
    assert_int_equal(counter_value(&called), 1);
    assert_false(pebble_future_cancel(future));
    assert_int_equal(take_int(future), 42);
}

static void test_join_waits_for_callbacks(void **state) {
    counter called = {0};
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 200; i++) {
        pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
        expect_ok(pebble_future_add_callback(future, count_callback, &called));
        pebble_future_unref(future);
    }
    close_join_free(pool);
    assert_int_equal(counter_value(&called), 200);
}

static void test_timeout_is_invalid(void **state) {
    (void)state;
    pebble_pool *pool = new_thread_pool(NULL);
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 1, NULL), PEBBLE_ERR_INVALID,
                 "timeout_ns");
    close_join_free(pool);
}

/* ---- Order: tasks that wait for others ---- */

static int wait_for_other(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    return counter_wait(*(counter *const *)input, 1) ? 0 : 1;
}

/* Tasks that wait for the next one. Started in their order by two threads they never block both. */
static void test_behind_a_blocked_task(void **state) {
    static counter counters[200];
    pebble_future *futures[400];
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 200; i++) {
        futures[2 * i] = schedule_at(pool, wait_for_other, &counters[i]);
        futures[2 * i + 1] = schedule_at(pool, count, &counters[i]);
    }
    for (int i = 0; i < 400; i++)
        expect_end(futures[i], PEBBLE_OK);
    close_join_free(pool);
}

/* The same in a closed pool, where a thread that finds no work ends. */
static void test_behind_a_blocked_task_of_a_closed_pool(void **state) {
    static counter next, counted;
    gate *gates[2] = {new_gate(), new_gate()};
    pebble_future *first[2], *futures[8];
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 2; i++) {
        first[i] = schedule_at(pool, pass_gate, gates[i]);
        counter_expect(&gates[i]->entered, 1);
    }
    futures[0] = schedule_at(pool, wait_for_other, &next);
    futures[1] = schedule_at(pool, count, &next);
    for (int i = 2; i < 8; i++)
        futures[i] = schedule_at(pool, count, &counted);
    expect_ok(pebble_pool_close(pool));
    for (int i = 0; i < 2; i++) { /* the one that leaves first may take several at once */
        counter_add(&gates[i]->leave, 1);
        expect_end(first[i], PEBBLE_OK);
    }
    for (int i = 0; i < 8; i++)
        expect_end(futures[i], PEBBLE_OK);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
}

static int schedule_and_wait(pebble_task *task, const void *input, size_t size) {
    pebble_pool *pool = *(pebble_pool *const *)input;
    int number = 1, result = 0;
    pebble_future *future;
    (void)size;
    if (pebble_schedule(pool, increment, &number, sizeof number, 0, &future) != PEBBLE_OK)
        return 1;
    pebble_error error =
        pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result);
    pebble_future_unref(future);
    return error != PEBBLE_OK || result != 2
               ? 2
               : (int)pebble_task_write(task, &result, sizeof result);
}

static void test_tasks_that_schedule(void **state) {
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 500; i++)
        assert_int_equal(take_int(schedule_at(pool, schedule_and_wait, pool)), 2);
    close_join_free(pool);
}

typedef struct scheduler {
    pebble_pool *pool;
    int first, wrong;
} scheduler;

static void *schedule_many(void *context) {
    scheduler *self = context;
    enum { COUNT = MANY / SCHEDULERS, WINDOW = 250 };
    pebble_future *futures[WINDOW];
    for (int done = 0; done < COUNT; done += WINDOW) {
        for (int i = 0; i < WINDOW; i++) {
            int number = self->first + done + i;
            futures[i] = NULL;
            self->wrong += pebble_schedule(self->pool, increment, &number, sizeof number,
                                           0, &futures[i]) != PEBBLE_OK;
        }
        for (int i = 0; i < WINDOW; i++) {
            int result = 0;
            self->wrong += pebble_future_copy_result(futures[i], DEADLINE_NS, &result,
                                                     sizeof result) != PEBBLE_OK ||
                           result != self->first + done + i + 1;
            pebble_future_unref(futures[i]);
        }
    }
    return NULL;
}

static void many_tasks(uint64_t max_tasks) {
    scheduler schedulers[SCHEDULERS];
    pthread_t threads[SCHEDULERS];
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 3, .max_tasks = max_tasks));
    for (int i = 0; i < SCHEDULERS; i++) {
        schedulers[i] = (scheduler){.pool = pool, .first = i * (MANY / SCHEDULERS)};
        assert_int_equal(pthread_create(&threads[i], NULL, schedule_many, &schedulers[i]),
                         0);
    }
    for (int i = 0; i < SCHEDULERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(schedulers[i].wrong, 0);
    }
    expect_ok(pebble_pool_close(pool));
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    assert_int_equal(info_of(pool).ended, MANY);
    pebble_pool_free(pool);
}

static void test_many_tasks_from_many_threads(void **state) {
    (void)state;
    many_tasks(0);
    many_tasks(100);
}

static void test_cancel_against_start(void **state) {
    static pebble_future *futures[1000];
    counter counted = {0};
    uint32_t cancelled = 0;
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 1000; i++)
            futures[i] = schedule_at(pool, count, &counted);
        for (int i = 999; i >= 0; i--) {
            bool won = pebble_future_cancel(futures[i]);
            cancelled += won;
            expect_end(futures[i], won ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_OK);
        }
    }
    close_join_free(pool);
    assert_int_equal(counter_value(&counted) + cancelled, 20000);
}

static void test_stop_against_schedule(void **state) {
    (void)state;
    for (int round = 0; round < 200; round++) {
        counter counted = {0};
        uint32_t cancelled = 0;
        pebble_future *futures[50];
        pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 3));
        for (int i = 0; i < 50; i++)
            futures[i] = schedule_at(pool, count, &counted);
        stop_join_free(pool);
        for (int i = 0; i < 50; i++) {
            assert_true(pebble_future_done(futures[i]));
            cancelled += pebble_future_state(futures[i]) == PEBBLE_CANCELLED;
            pebble_future_unref(futures[i]);
        }
        assert_int_equal(counter_value(&counted) + cancelled, 50);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_results_and_errors),
        supported_test(test_large_results),
        supported_test(test_runs_max_workers_at_once),
        supported_test(test_not_more_than_max_workers),
        supported_test(test_info_counts_every_end),
        supported_test(test_no_pids),
        supported_test(test_name),
        supported_test(test_max_tasks),
        supported_test(test_initializer_once_in_each_thread),
        supported_test(test_initializer_fails),
        supported_test(test_initializer_fails_with_a_long_queue),
        supported_test(test_initializer_fails_twice_then_works),
        supported_test(test_running_is_not_cancelled),
        supported_test(test_close_performs_the_queue),
        supported_test(test_stop_drops_the_queue),
        supported_test(test_stop_after_close),
        supported_test(test_join),
        supported_test(test_join_from_inside),
        supported_test(test_free_of_a_running_pool),
        supported_test(test_futures_outlive_their_pool),
        supported_test(test_join_waits_for_callbacks),
        supported_test(test_timeout_is_invalid),
        supported_test(test_behind_a_blocked_task),
        supported_test(test_behind_a_blocked_task_of_a_closed_pool),
        supported_test(test_tasks_that_schedule),
        supported_test(test_many_tasks_from_many_threads),
        supported_test(test_cancel_against_start),
        supported_test(test_stop_against_schedule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
