/* Rows 13 and 14: pools stopped with large data on its way, by whoever and however often; and row 15's pool
 * that is dropped with a long queue. */
#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)
#define SOON_NS PEBBLE_SECONDS(5)

enum {
    MIB = 1024 * 1024,
    TASKS = 50,
    INPUT_SIZE = 8 * MIB, /* a million pointers */
    POOLS = SANITIZED ? 8 : 20,
    WAITERS = 4,
};

typedef struct area {
    counter started, pieces;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks ---- */

static int count_bytes(pebble_task *task, const void *input, size_t input_size) {
    int sum = 0;
    for (size_t i = 0; i < input_size; i += 4096)
        sum += ((const char *)input)[i];
    return (int)pebble_task_write(task, &sum, sizeof sum);
}

static int write_for_ever(pebble_task *task, const void *input, size_t input_size) {
    static char piece[MIB];
    (void)input, (void)input_size;
    while (pebble_task_write(task, piece, sizeof piece) == PEBBLE_OK)
        counter_add(&shared->pieces, 1);
    return 1;
}

static int stay(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    counter_add(&shared->started, 1);
    for (;;)
        pause();
    return 0;
}

/* ---- In the program ---- */

static pebble_pool *pool_of_two(void) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(500)));
}

/* Stops, unless it is, joins and frees. */
static void expect_ends_soon(pebble_pool *pool) {
    int64_t before_ns = os_now_ns();
    expect_ok(pebble_pool_stop(pool));
    expect_ok(pebble_pool_join(pool, SOON_NS));
    assert_true(os_now_ns() - before_ns < SOON_NS);
    pebble_pool_free(pool);
}

/* Done, and as cancelled or, if it was quicker, with its result. */
static bool ended_well(pebble_future *future) {
    pebble_error error = pebble_future_result(future, 0, NULL, NULL);
    bool well = error == PEBBLE_OK || error == PEBBLE_ERR_TASK_CANCELLED;
    if (!well)
        print_error("a task ended with %s\n", pebble_error_name(error));
    pebble_future_unref(future);
    return well;
}

/* ---- Large inputs ---- */

static void count(void *context) {
    counter_add(context, 1);
}

static pebble_future *schedule_lent(pebble_pool *pool, const void *input,
                                    counter *released) {
    pebble_future *future = NULL;
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    options.function = count_bytes;
    options.input = input;
    options.input_size = INPUT_SIZE;
    options.release_input = count;
    options.release_context = released;
    expect_ok(pebble_schedule_task(pool, &options, &future));
    return future;
}

static void check_large_inputs(bool cancel_all) {
    pebble_future *futures[TASKS];
    counter released = {0};
    void *input = calloc(1, INPUT_SIZE);
    assert_non_null(input);
    pebble_pool *pool = pool_of_two();
    for (int i = 0; i < TASKS; i++)
        futures[i] = i % 2 == 0 ? schedule_lent(pool, input, &released)
                                : schedule(pool, count_bytes, input, INPUT_SIZE, 0);
    for (int i = 0; i < TASKS && cancel_all; i++)
        pebble_future_cancel(futures[i]);
    expect_ends_soon(pool);
    for (int i = 0; i < TASKS; i++)
        assert_true(ended_well(futures[i]));
    assert_int_equal(counter_value(&released), TASKS / 2);
    free(input);
}

static void test_large_inputs_cancelled_and_stopped(void **state) {
    (void)state;
    check_large_inputs(true);
}

static void test_large_inputs_stopped(void **state) {
    (void)state;
    check_large_inputs(false);
}

/* ---- Large results ---- */

typedef struct waiter {
    pthread_t thread;
    pebble_future *future;
    bool well;
} waiter;

static void *wait_for_end(void *context) {
    waiter *self = context;
    pebble_future_wait(self->future, DEADLINE_NS);
    self->well = ended_well(self->future);
    return NULL;
}

/* Of the others nobody waits for the results. */
static void test_twenty_pools_stopped_under_load(void **state) {
    unsigned seed = 4;
    (void)state;
    for (int i = 0; i < POOLS; i++) {
        waiter waiters[WAITERS];
        pebble_pool *pool = pool_of_two();
        atomic_store(&shared->pieces.value, 0);
        for (int n = 0; n < WAITERS; n++) {
            waiters[n].future = schedule(pool, write_for_ever, NULL, 0, 0);
            expect_ok(pebble_schedule(pool, write_for_ever, NULL, 0, 0, NULL));
            assert_int_equal(
                pthread_create(&waiters[n].thread, NULL, wait_for_end, &waiters[n]), 0);
        }
        counter_expect(&shared->pieces, 1 + (uint32_t)rand_r(&seed) % 30);
        expect_ends_soon(pool);
        for (int n = 0; n < WAITERS; n++) {
            pthread_join(waiters[n].thread, NULL);
            assert_true(waiters[n].well);
        }
    }
}

/* ---- Who stops, and how often ---- */

static void *stop_pool(void *pool) {
    return pebble_pool_stop(pool) == PEBBLE_OK ? pool : NULL;
}

static void test_stopped_by_several_threads_while_busy(void **state) {
    enum { THREADS = 4, RUNNING = 2, QUEUED = 20 };
    pebble_future *futures[RUNNING + QUEUED];
    pthread_t threads[THREADS];
    void *stopped;
    (void)state;
    pebble_pool *pool = pool_of_two();
    for (int i = 0; i < RUNNING + QUEUED; i++)
        futures[i] = schedule(pool, stay, NULL, 0, 0);
    counter_expect(&shared->started, RUNNING);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, stop_pool, pool), 0);
    for (int i = 0; i < RUNNING + QUEUED; i++)
        expect_end(futures[i], PEBBLE_ERR_TASK_CANCELLED);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], &stopped);
        assert_ptr_equal(stopped, pool);
    }
    expect_ends_soon(pool); /* once more */
    assert_int_equal(counter_value(&shared->started), RUNNING);
}

static void stop_in_callback(pebble_future *future, void *pool) {
    (void)future;
    pebble_pool_stop(pool);
}

static void test_stopped_in_a_callback(void **state) {
    enum { QUEUED = 10 };
    pebble_future *futures[QUEUED];
    (void)state;
    pebble_pool *pool = pool_of_two();
    pebble_future *running = schedule(pool, stay, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    pebble_future *first = schedule(pool, nothing, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(first, stop_in_callback, pool));
    expect_end(running, PEBBLE_ERR_TASK_CANCELLED);
    expect_end(first, PEBBLE_OK);
    for (int i = 0; i < QUEUED; i++)
        assert_int_equal(pebble_schedule(pool, nothing, NULL, 0, 0, &futures[i]),
                         PEBBLE_ERR_NOT_ACTIVE);
    expect_ends_soon(pool);
}

/* Before anything was scheduled nothing is there to be joined. */
static void test_nothing_scheduled(void **state) {
    (void)state;
    for (int how = 0; how < 3; how++) {
        pebble_pool *pool = pool_of_two();
        if (how != 0)
            expect_ok(pebble_pool_close(pool));
        if (how != 1)
            expect_ok(pebble_pool_stop(pool));
        expect_ok(pebble_pool_join(pool, SOON_NS));
        pebble_pool_free(pool);
    }
}

static void test_closed_then_stopped(void **state) {
    (void)state;
    pebble_pool *pool = pool_of_two();
    pebble_future *running = schedule(pool, stay, NULL, 0, 0);
    expect_ok(pebble_pool_close(pool));
    assert_int_equal(pebble_pool_join(pool, PEBBLE_MILLISECONDS(20)), PEBBLE_ERR_TIMEOUT);
    expect_ends_soon(pool);
    expect_end(running, PEBBLE_ERR_TASK_CANCELLED);
}

/* ---- Dropped ---- */

/* With workers that are replaced all the time. */
static void test_dropped_with_a_long_queue(void **state) {
    enum { QUEUED = 2000 };
    static pebble_future *futures[QUEUED];
    (void)state;
    for (uint64_t max_tasks = 1; max_tasks <= 2; max_tasks++) {
        pebble_pool *pool = new_process_pool(
            PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = max_tasks));
        for (int i = 0; i < QUEUED; i++)
            futures[i] = schedule(pool, nothing, NULL, 0, 0);
        expect_ok(pebble_future_wait(futures[20], DEADLINE_NS));
        pebble_pool_free(pool);
        for (int i = 0; i < QUEUED; i++) {
            expect_ok(pebble_future_wait(futures[i], SOON_NS));
            assert_true(ended_well(futures[i]));
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(large_inputs_cancelled_and_stopped),
        TEST(large_inputs_stopped),
        TEST(twenty_pools_stopped_under_load),
        TEST(stopped_by_several_threads_while_busy),
        TEST(stopped_in_a_callback),
        TEST(nothing_scheduled),
        TEST(closed_then_stopped),
        TEST(dropped_with_a_long_queue),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("stops", tests, NULL, NULL);
}
