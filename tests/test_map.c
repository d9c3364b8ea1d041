/* Map: order, errors of single elements, chunks, timeouts, cancelling; with both kinds of pool. */
#include "support.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

typedef struct area {
    counter started, go, ran;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks ---- */

static int64_t expected_of(int64_t value) {
    return value * value + 1;
}

static int square_counted(pebble_task *task, const void *input, size_t input_size) {
    int64_t value;
    if (input_size != sizeof value || (uintptr_t)input % 16 != 0)
        return pebble_task_fail(task, 77, "wrong input");
    memcpy(&value, input, sizeof value);
    counter_add(&shared->ran, 1);
    value = expected_of(value);
    return (int)pebble_task_write(task, &value, sizeof value);
}

/* Odd values fail, in two ways. */
static int fails_if_odd(pebble_task *task, const void *input, size_t input_size) {
    int64_t value = *(const int64_t *)input;
    if (value % 4 == 1)
        return pebble_task_fail(task, (int)value, "%d is odd", (int)value);
    if (value % 4 == 3)
        return (int)value;
    return square_counted(task, input, input_size);
}

static int crashes_at_five(pebble_task *task, const void *input, size_t input_size) {
    if (*(const int64_t *)input == 5)
        raise(SIGKILL);
    return square_counted(task, input, input_size);
}

static int sleeps_at_five(pebble_task *task, const void *input, size_t input_size) {
    if (*(const int64_t *)input == 5)
        for (;;)
            pause();
    return square_counted(task, input, input_size);
}

static int gate(pebble_task *task, const void *input, size_t input_size) {
    counter_add(&shared->started, 1);
    return counter_wait(&shared->go, 1) ? square_counted(task, input, input_size) : 99;
}

static int gate_at_two(pebble_task *task, const void *input, size_t input_size) {
    return *(const int64_t *)input == 2 ? gate(task, input, input_size)
                                        : square_counted(task, input, input_size);
}

/* Whatever comes, twice; aligned or it fails. */
static int twice(pebble_task *task, const void *input, size_t input_size) {
    if ((uintptr_t)input % 16 != 0)
        return pebble_task_fail(task, 78, "not aligned");
    pebble_task_write(task, input, input_size);
    return (int)pebble_task_write(task, input, input_size);
}

/* ---- In the program ---- */

static pebble_pool *pool_of(bool threads, int workers) {
    const pebble_pool_options *options = PEBBLE_POOL_OPTIONS(.max_workers = workers);
    return threads ? new_thread_pool(options) : new_process_pool(options);
}

static void run_with_both(void (*check)(pebble_pool *pool)) {
    for (int threads = 0; threads < 2; threads++) {
        pebble_pool *pool = pool_of(threads != 0, 2);
        memset(shared, 0, sizeof *shared);
        check(pool);
        close_join_free(pool);
    }
}

enum { VALUES = 1000 };
static int64_t values[VALUES]; /* each its index */

static void set_values(void) {
    for (int i = 0; i < VALUES; i++)
        values[i] = i;
}

static pebble_map *map_values(pebble_pool *pool, pebble_function function, size_t count,
                              size_t chunk_size, int64_t timeout_ns) {
    pebble_map *map = NULL;
    set_values();
    expect_ok(pebble_pool_map(pool, function, values, sizeof values[0], count, chunk_size,
                              timeout_ns, &map));
    assert_non_null(map);
    return map;
}

static void expect_square(pebble_map *map, int64_t expected) {
    const void *data = NULL;
    size_t size = 0;
    int64_t value;
    expect_ok(pebble_map_next(map, DEADLINE_NS, &data, &size));
    assert_int_equal(size, sizeof value);
    memcpy(&value, data, sizeof value);
    assert_true(value == expected);
    assert_null(pebble_map_failure(map));
}

static void expect_over(pebble_map *map) {
    const void *data = &data;
    size_t size = 77;
    for (int i = 0; i < 3; i++)
        expect_error(pebble_map_next(map, DEADLINE_NS, &data, &size), PEBBLE_ERR_END,
                     "pebble_map_next");
    assert_ptr_equal(data, &data);
    assert_int_equal(size, 77);
    assert_null(pebble_map_failure(map));
    assert_true(pebble_map_done(map));
    expect_ok(pebble_map_wait(map, 0));
    pebble_map_unref(map);
}

/* The next element must have failed; its failure. */
static const pebble_failure *next_failure(pebble_map *map, pebble_error kind) {
    const void *data = &data;
    size_t size = 77;
    pebble_error error = pebble_map_next(map, DEADLINE_NS, &data, &size);
    assert_string_equal(pebble_error_name(error), pebble_error_name(kind));
    assert_ptr_equal(data, &data);
    assert_int_equal(size, 77);
    const pebble_failure *failure = pebble_map_failure(map);
    assert_non_null(failure);
    assert_int_equal(failure->kind, kind);
    assert_non_null(failure->message);
    return failure;
}

static const size_t chunk_sizes[] = {0,   1,          2,      3,          7,
                                     100, VALUES - 1, VALUES, VALUES + 1, SIZE_MAX};

enum { CHUNK_SIZES = sizeof chunk_sizes / sizeof chunk_sizes[0] };

/* ---- Order ---- */

static void check_order(pebble_pool *pool) {
    for (size_t i = 0; i < CHUNK_SIZES; i++) {
        pebble_map *map = map_values(pool, square_counted, VALUES, chunk_sizes[i], 0);
        for (int64_t value = 0; value < VALUES; value++)
            expect_square(map, expected_of(value));
        expect_over(map);
    }
    assert_int_equal(counter_value(&shared->ran), VALUES * CHUNK_SIZES);
}

static void test_order(void **state) {
    (void)state;
    run_with_both(check_order);
}

static void check_nothing(pebble_pool *pool) {
    pebble_map *map = NULL;
    expect_ok(pebble_pool_map(pool, square_counted, NULL, 8, 0, 0, 0, &map));
    assert_true(pebble_map_done(map));
    expect_ok(pebble_map_wait(map, 0));
    assert_false(pebble_map_cancel(map));
    expect_over(map);
    pebble_map_options options = PEBBLE_MAP_OPTIONS_INIT;
    options.function = square;
    options.chunk_size = 100;
    expect_ok(pebble_pool_map_with(pool, &options, &map));
    expect_over(map);
}

static void test_no_elements(void **state) {
    (void)state;
    run_with_both(check_nothing);
}

static void check_arguments(pebble_pool *pool) {
    pebble_map *map = NULL;
    pebble_bytes inputs[] = {{"x", 1}, {NULL, 1}};
    pebble_map_options options = PEBBLE_MAP_OPTIONS_INIT;
    expect_error(pebble_pool_map(NULL, square_counted, values, 8, 1, 0, 0, &map),
                 PEBBLE_ERR_INVALID, "pebble_pool_map: pool is NULL");
    expect_error(pebble_pool_map(pool, NULL, values, 8, 1, 0, 0, &map),
                 PEBBLE_ERR_INVALID, "function is NULL");
    expect_error(pebble_pool_map(pool, square_counted, NULL, 8, 1, 0, 0, &map),
                 PEBBLE_ERR_INVALID, "items");
    expect_error(pebble_pool_map(pool, square_counted, values, 8, 1, 0, 0, NULL),
                 PEBBLE_ERR_INVALID, "map is NULL");
    expect_error(pebble_pool_map(pool, square_counted, values, 8, 1, 0, -1, &map),
                 PEBBLE_ERR_INVALID, "timeout_ns is negative");
    expect_error(
        pebble_pool_map(pool, square_counted, values, SIZE_MAX / 2, 4, 0, 0, &map),
        PEBBLE_ERR_INVALID, "too large");
    expect_error(
        pebble_pool_map(pool, square_counted, values, 8, SIZE_MAX / 4, 3, 0, &map),
        PEBBLE_ERR_INVALID, "too large");
    expect_error(pebble_pool_map_with(pool, NULL, &map), PEBBLE_ERR_INVALID,
                 "pebble_pool_map_with: options");
    options.struct_size = 0;
    expect_error(pebble_pool_map_with(pool, &options, &map), PEBBLE_ERR_INVALID,
                 "struct_size");
    options.struct_size = sizeof options;
    options.function = square;
    options.inputs = inputs;
    options.count = 2;
    expect_error(pebble_pool_map_with(pool, &options, &map), PEBBLE_ERR_INVALID,
                 "inputs[1].data is NULL");
    inputs[1] = (pebble_bytes){"x", SIZE_MAX};
    expect_error(pebble_pool_map_with(pool, &options, &map), PEBBLE_ERR_INVALID,
                 "inputs[1].size");
    options.items = values;
    expect_error(pebble_pool_map_with(pool, &options, &map), PEBBLE_ERR_INVALID, "both");
    assert_null(map);
    expect_error(pebble_map_next(NULL, 0, NULL, NULL), PEBBLE_ERR_INVALID,
                 "pebble_map_next: map is NULL");
    expect_error(pebble_map_wait(NULL, 0), PEBBLE_ERR_INVALID,
                 "pebble_map_wait: map is NULL");
    assert_false(pebble_map_done(NULL));
    assert_false(pebble_map_cancel(NULL));
    assert_null(pebble_map_failure(NULL));
    assert_null(pebble_map_ref(NULL));
    pebble_map_unref(NULL);
    map = map_values(pool, square_counted, 1, 0, 0);
    expect_error(pebble_map_next(map, -1, NULL, NULL), PEBBLE_ERR_INVALID,
                 "timeout_ns is negative");
    expect_error(pebble_map_wait(map, -1), PEBBLE_ERR_INVALID, "timeout_ns is negative");
    expect_square(map, 1);
    expect_over(map);
}

static void test_arguments(void **state) {
    (void)state;
    run_with_both(check_arguments);
}

static void test_after_close(void **state) {
    pebble_map *map = NULL;
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        pebble_pool *pool = pool_of(threads != 0, 1);
        pebble_map *before = map_values(pool, square_counted, 100, 7, 0);
        expect_ok(pebble_pool_close(pool));
        expect_error(pebble_pool_map(pool, square_counted, values, 8, 10, 2, 0, &map),
                     PEBBLE_ERR_NOT_ACTIVE, NULL);
        assert_null(map);
        for (int64_t value = 0; value < 100; value++)
            expect_square(before, expected_of(value));
        close_join_free(pool);
        expect_over(before);
    }
}

/* ---- Inputs of many sizes ---- */

static void check_inputs(pebble_pool *pool, size_t chunk_size) {
    enum { COUNT = 120 };
    pebble_bytes inputs[COUNT];
    unsigned char *data = malloc(COUNT * 700);
    pebble_map *map = NULL;
    for (size_t i = 0; i < COUNT * 700; i++)
        data[i] = (unsigned char)(i * 31 + i / 255);
    for (size_t i = 0; i < COUNT; i++) /* empty ones, some without an address */
        inputs[i] = (pebble_bytes){i % 10 == 3 ? NULL : data + i * 37,
                                   i % 10 == 3 ? 0 : (i * i * i) % 700};
    inputs[50].size = COUNT * 700 - 50 * 37;
    pebble_map_options options = PEBBLE_MAP_OPTIONS_INIT;
    options.function = twice;
    options.inputs = inputs;
    options.count = COUNT;
    options.chunk_size = chunk_size;
    expect_ok(pebble_pool_map_with(pool, &options, &map));
    for (size_t i = 0; i < COUNT; i++) {
        const void *result = NULL;
        size_t size = 0;
        expect_ok(pebble_map_next(map, DEADLINE_NS, &result, &size));
        assert_non_null(result);
        assert_int_equal((uintptr_t)result % 16, 0);
        assert_int_equal(size, 2 * inputs[i].size);
        if (size > 0) {
            assert_memory_equal(result, inputs[i].data, inputs[i].size);
            assert_memory_equal((const char *)result + inputs[i].size, inputs[i].data,
                                inputs[i].size);
        }
    }
    expect_over(map);
    free(data);
}

static void check_inputs_in_chunks(pebble_pool *pool) {
    for (size_t i = 0; i < CHUNK_SIZES; i++)
        check_inputs(pool, chunk_sizes[i]);
}

static void test_inputs_of_many_sizes(void **state) {
    (void)state;
    run_with_both(check_inputs_in_chunks);
}

/* Items whose size is no multiple of anything; results of nothing. */
static void check_odd_items(pebble_pool *pool) {
    char items[13 * 40];
    memset(items, 0, sizeof items);
    for (int i = 0; i < 40; i++)
        memset(items + 13 * i, 'a' + i % 26, 13);
    for (size_t chunk_size = 1; chunk_size < 50; chunk_size += 6) {
        pebble_map *map = NULL;
        expect_ok(pebble_pool_map(pool, twice, items, 13, 40, chunk_size, 0, &map));
        for (int i = 0; i < 40; i++) {
            const void *result = NULL;
            size_t size = 0;
            expect_ok(pebble_map_next(map, DEADLINE_NS, &result, &size));
            assert_int_equal(size, 26);
            assert_memory_equal(result, items + 13 * i, 13);
            assert_memory_equal((const char *)result + 13, items + 13 * i, 13);
        }
        expect_over(map);
        expect_ok(pebble_pool_map(pool, twice, items, 0, 40, chunk_size, 0, &map));
        for (int i = 0; i < 40; i++) {
            size_t size = 77;
            expect_ok(pebble_map_next(map, DEADLINE_NS, NULL, &size));
            assert_int_equal(size, 0);
        }
        expect_over(map);
    }
}

static void test_items_of_odd_sizes(void **state) {
    (void)state;
    run_with_both(check_odd_items);
}

/* Large elements, so that chunks stream both ways. */
static void check_large(pebble_pool *pool) {
    enum { COUNT = 8, SIZE = 400000 };
    char *items = malloc((size_t)COUNT * SIZE);
    for (int i = 0; i < COUNT; i++)
        memset(items + (size_t)i * SIZE, 'a' + i, SIZE);
    for (size_t chunk_size = 1; chunk_size <= COUNT; chunk_size += 3) {
        pebble_map *map = NULL;
        expect_ok(pebble_pool_map(pool, twice, items, SIZE, COUNT, chunk_size, 0, &map));
        for (int i = 0; i < COUNT; i++) {
            const char *result = NULL;
            size_t size = 0;
            expect_ok(pebble_map_next(map, DEADLINE_NS, (const void **)&result, &size));
            assert_int_equal(size, 2 * SIZE);
            assert_memory_equal(result, items + (size_t)i * SIZE, SIZE);
            assert_memory_equal(result + SIZE, items + (size_t)i * SIZE, SIZE);
        }
        expect_over(map);
    }
    free(items);
}

static void test_large_elements(void **state) {
    (void)state;
    run_with_both(check_large);
}

/* ---- Errors ---- */

static void check_errors(pebble_pool *pool) {
    for (size_t i = 0; i < CHUNK_SIZES; i++) {
        pebble_map *map = map_values(pool, fails_if_odd, 41, chunk_sizes[i], 0);
        for (int value = 0; value < 41; value++) {
            char message[32];
            if (value % 2 == 0) {
                expect_square(map, expected_of(value));
                continue;
            }
            const pebble_failure *failure = next_failure(map, PEBBLE_ERR_TASK_FAILED);
            assert_int_equal(failure->code, value);
            snprintf(message, sizeof message, "%d is odd", value);
            if (value % 4 == 1)
                assert_string_equal(failure->message, message);
            else
                assert_non_null(strstr(failure->message, "returned"));
            assert_non_null(strstr(pebble_error_message(), failure->message));
        }
        expect_over(map);
    }
}

static void test_errors_of_elements(void **state) {
    (void)state;
    run_with_both(check_errors);
}

/* The element at five ends its chunk in some way; so do its neighbours in the chunk, no others. */
static void check_chunk_lost(pebble_function function, int64_t timeout_ns,
                             pebble_error expected) {
    static const size_t chunks[] = {1, 2, 3, 4, 10, 50, 100};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        int64_t size = (int64_t)chunks[i];
        pebble_pool *pool = pool_of(false, 2);
        pebble_map *map = map_values(pool, function, 50, chunks[i], timeout_ns);
        for (int64_t value = 0; value < 50; value++) {
            if (value / size != 5 / size) {
                expect_square(map, expected_of(value));
                continue;
            }
            const pebble_failure *failure = next_failure(map, expected);
            assert_int_not_equal(failure->pid, 0);
            if (expected == PEBBLE_ERR_TASK_EXPIRED)
                assert_int_equal(failure->signal, SIGKILL);
            else
                assert_true(failure->timeout_ns == timeout_ns);
        }
        expect_over(map);
        close_join_free(pool);
    }
}

static void test_death_costs_its_chunk(void **state) {
    (void)state;
    check_chunk_lost(crashes_at_five, 0, PEBBLE_ERR_TASK_EXPIRED);
}

static void test_timeout_costs_its_chunk(void **state) {
    (void)state;
    check_chunk_lost(sleeps_at_five, PEBBLE_MILLISECONDS(SANITIZED ? 1500 : 200),
                     PEBBLE_ERR_TASK_TIMEOUT);
}

/* The time is a chunk's own: a map that takes many times as long is not timed out. */
static int takes_a_while(pebble_task *task, const void *input, size_t input_size) {
    int64_t until_ns = os_now_ns() + PEBBLE_MILLISECONDS(10);
    while (os_now_ns() < until_ns)
        sched_yield();
    return square_counted(task, input, input_size);
}

static void test_timeout_is_of_each_chunk(void **state) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(SANITIZED ? 1000 : 250);
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    int64_t before_ns = os_now_ns();
    pebble_map *map = map_values(pool, takes_a_while, 100, 2, timeout_ns);
    for (int64_t value = 0; value < 100; value++)
        expect_square(map, expected_of(value));
    assert_true(os_now_ns() - before_ns > PEBBLE_MILLISECONDS(1000));
    expect_over(map);
    close_join_free(pool);
}

/* ---- Waiting ---- */

static void check_wait_timeout(pebble_pool *pool) {
    static const size_t chunks[] = {1, 2};
    for (size_t i = 0; i < 2; i++) {
        const void *data = &data;
        memset(shared, 0, sizeof *shared);
        pebble_map *map = map_values(pool, gate_at_two, 10, chunks[i], 0);
        expect_square(map, expected_of(0));
        expect_square(map, expected_of(1));
        expect_error(pebble_map_next(map, 0, &data, NULL), PEBBLE_ERR_TIMEOUT,
                     "pebble_map_next");
        assert_null(pebble_map_failure(map));
        int64_t before_ns = os_now_ns();
        expect_error(pebble_map_next(map, PEBBLE_MILLISECONDS(20), &data, NULL),
                     PEBBLE_ERR_TIMEOUT, NULL);
        assert_true(os_now_ns() - before_ns >= PEBBLE_MILLISECONDS(20));
        assert_ptr_equal(data, &data);
        assert_false(pebble_map_done(map));
        expect_error(pebble_map_wait(map, 0), PEBBLE_ERR_TIMEOUT, NULL);
        expect_error(pebble_map_wait(map, PEBBLE_MILLISECONDS(5)), PEBBLE_ERR_TIMEOUT,
                     NULL);
        counter_add(&shared->go, 1);
        for (int64_t value = 2; value < 10; value++)
            expect_square(map, expected_of(value));
        expect_over(map);
    }
}

static void test_wait_with_timeout_then_go_on(void **state) {
    (void)state;
    run_with_both(check_wait_timeout);
}

static void check_wait(pebble_pool *pool) {
    pebble_map *map = map_values(pool, square_counted, VALUES, 3, 0);
    expect_ok(pebble_map_wait(map, DEADLINE_NS));
    assert_true(pebble_map_done(map));
    assert_false(pebble_map_cancel(map));
    for (int64_t value = 0; value < VALUES; value++) {
        const void *data;
        int64_t result;
        expect_ok(pebble_map_next(map, 0, &data, NULL));
        memcpy(&result, data, sizeof result);
        assert_true(result == expected_of(value));
    }
    expect_over(map);
}

static void test_wait_for_all(void **state) {
    (void)state;
    run_with_both(check_wait);
}

/* Threads: an element that is not there in time gives a timeout, and iteration goes on. */
static void test_timeout_of_threads(void **state) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(100);
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    int64_t before_ns = os_now_ns();
    pebble_map *map = map_values(pool, gate_at_two, 6, 1, timeout_ns);
    expect_square(map, expected_of(0));
    expect_square(map, expected_of(1));
    expect_error(pebble_map_next(map, 0, NULL, NULL), PEBBLE_ERR_TIMEOUT, NULL);
    const pebble_failure *failure = next_failure(map, PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(os_now_ns() - before_ns >= timeout_ns);
    assert_true(failure->timeout_ns == timeout_ns);
    next_failure(map, PEBBLE_ERR_TASK_TIMEOUT); /* three, which has not even started */
    assert_true(os_now_ns() - before_ns < timeout_ns + PEBBLE_SECONDS(5));
    counter_add(&shared->go, 1);
    expect_ok(pebble_map_wait(map, DEADLINE_NS)); /* the tasks went on */
    expect_square(map, expected_of(4));
    expect_square(map, expected_of(5));
    expect_over(map);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->ran), 6);
}

/* In chunks: elements that were not there in time are passed over, in their chunk too. */
static void test_timeout_of_threads_in_chunks(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    pebble_map *map = map_values(pool, gate_at_two, 8, 2, PEBBLE_MILLISECONDS(100));
    expect_square(map, expected_of(0));
    expect_square(map, expected_of(1));
    next_failure(map, PEBBLE_ERR_TASK_TIMEOUT); /* two, the first of its chunk */
    counter_add(&shared->go, 1);
    expect_ok(pebble_map_wait(map, DEADLINE_NS));
    for (int64_t value = 3; value < 8; value++)
        expect_square(map, expected_of(value));
    expect_over(map);
    close_join_free(pool);
}

/* ---- Cancelling ---- */

static void check_cancel(bool threads, size_t chunk_size) {
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = pool_of(threads, 1);
    pebble_map *map = map_values(pool, gate_at_two, 60, chunk_size, 0);
    counter_expect(&shared->started, 1);
    bool all_run = threads && chunk_size == 60;
    assert_int_equal(pebble_map_cancel(map), !all_run);
    counter_add(&shared->go, threads ? 1 : 0);
    int64_t lost_from = 2 / (int64_t)chunk_size * (int64_t)chunk_size;
    if (threads) /* what runs is performed */
        lost_from += (int64_t)chunk_size;
    for (int64_t value = 0; value < 60; value++) {
        if (value < lost_from)
            expect_square(map, expected_of(value));
        else
            next_failure(map, PEBBLE_ERR_TASK_CANCELLED);
    }
    assert_false(pebble_map_cancel(map));
    expect_over(map);
    map = map_values(pool, square_counted, 10, 2, 0);
    for (int64_t value = 0; value < 10; value++)
        expect_square(map, expected_of(value));
    expect_over(map);
    close_join_free(pool);
}

static void test_cancel(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        check_cancel(threads != 0, 1);
        check_cancel(threads != 0, 2);
        check_cancel(threads != 0, 7);
        check_cancel(threads != 0, 60);
    }
}

static void *cancel_map(void *map) {
    pebble_map_cancel(map);
    return NULL;
}

static void test_cancel_from_another_thread(void **state) {
    pthread_t canceller;
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_map *map = map_values(pool, gate, 20, 3, 0);
    counter_expect(&shared->started, 1);
    assert_int_equal(pthread_create(&canceller, NULL, cancel_map, map), 0);
    for (int i = 0; i < 20; i++)
        next_failure(map, PEBBLE_ERR_TASK_CANCELLED);
    pthread_join(canceller, NULL);
    expect_over(map);
    close_join_free(pool);
}

static void test_stop(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 2);
    pebble_map *map = map_values(pool, gate, 20, 3, 0);
    counter_expect(&shared->started, 2);
    stop_join_free(pool);
    for (int i = 0; i < 20; i++)
        next_failure(map, PEBBLE_ERR_TASK_CANCELLED);
    expect_over(map);
}

/* ---- References ---- */

static void test_unref_before_the_end(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        memset(shared, 0, sizeof *shared);
        pebble_pool *pool = pool_of(threads != 0, 2);
        pebble_map *map = map_values(pool, gate_at_two, 100, 3, 0);
        counter_expect(&shared->started, 1);
        assert_ptr_equal(pebble_map_ref(map), map);
        pebble_map_unref(map);
        counter_add(&shared->go, 1);
        expect_square(map, expected_of(0));
        pebble_map_unref(map); /* midway: its tasks go on */
        close_join_free(pool);
        assert_int_equal(counter_value(&shared->ran), 100);
    }
}

/* ---- Many ---- */

static void check_many(pebble_pool *pool) {
    enum { COUNT = SANITIZED ? 10000 : 100000 };
    static const size_t chunks[] = {1, 50, 1000};
    int64_t *many = malloc(COUNT * sizeof *many);
    for (int64_t i = 0; i < COUNT; i++)
        many[i] = i * 7 - 3;
    for (size_t i = 0; i < 3; i++) {
        pebble_map *map = NULL;
        expect_ok(pebble_pool_map(pool, square_counted, many, sizeof *many, COUNT,
                                  chunks[i], 0, &map));
        int64_t wrong = 0;
        for (int64_t j = 0; j < COUNT; j++) {
            const void *data = NULL;
            int64_t result = 0;
            if (pebble_map_next(map, DEADLINE_NS, &data, NULL) != PEBBLE_OK)
                wrong++;
            else
                memcpy(&result, data, sizeof result);
            wrong += result != expected_of(many[j]);
        }
        assert_true(wrong == 0);
        expect_over(map);
    }
    free(many);
}

static void test_many(void **state) {
    (void)state;
    run_with_both(check_many);
}

/* Two maps and single tasks share the pool. */
static void check_beside(pebble_pool *pool) {
    pebble_map *first = map_values(pool, square_counted, 500, 3, 0);
    pebble_map *second = map_values(pool, fails_if_odd, 500, 1, 0);
    int64_t eleven = 11, result = 0;
    pebble_future *single = schedule(pool, square_counted, &eleven, sizeof eleven, 0);
    for (int value = 0; value < 500; value++) {
        expect_square(first, expected_of(value));
        if (value % 2 == 0)
            expect_square(second, expected_of(value));
        else
            next_failure(second, PEBBLE_ERR_TASK_FAILED);
    }
    expect_ok(pebble_future_copy_result(single, DEADLINE_NS, &result, sizeof result));
    assert_true(result == expected_of(11));
    pebble_future_unref(single);
    expect_over(first);
    expect_over(second);
}

static void test_beside_others(void **state) {
    (void)state;
    run_with_both(check_beside);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(order),
        TEST(no_elements),
        TEST(arguments),
        TEST(after_close),
        TEST(inputs_of_many_sizes),
        TEST(items_of_odd_sizes),
        TEST(large_elements),
        TEST(errors_of_elements),
        TEST(death_costs_its_chunk),
        TEST(timeout_costs_its_chunk),
        TEST(timeout_is_of_each_chunk),
        TEST(wait_with_timeout_then_go_on),
        TEST(wait_for_all),
        TEST(timeout_of_threads),
        TEST(timeout_of_threads_in_chunks),
        TEST(cancel),
        TEST(cancel_from_another_thread),
        TEST(stop),
        TEST(unref_before_the_end),
        TEST(many),
        TEST(beside_others),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
