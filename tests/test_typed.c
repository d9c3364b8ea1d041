/* Typed tasks: what the macros make, with both kinds of pool. */
#include "support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Tasks of all shapes ---- */

PEBBLE_TASK0(int, give_answer) {
    return 42;
}

PEBBLE_TASK(double, half, (double, value)) {
    return value / 2;
}

PEBBLE_TASK(double, power, (double, base), (int, exponent)) {
    double result = 1;
    if (exponent < 0)
        return pebble_task_fail(task, 5, "negative exponent: %d", exponent);
    for (int i = 0; i < exponent; i++)
        result *= base;
    return result;
}

PEBBLE_TASK(int, three, (char, a), (short, b), (int, c)) {
    return a + 10 * b + 100 * c;
}

PEBBLE_TASK(int64_t, four, (int64_t, a), (int64_t, b), (int64_t, c), (int64_t, d)) {
    return a + 10 * b + 100 * c + 1000 * d;
}

PEBBLE_TASK(int64_t, five, (int8_t, a), (int64_t, b), (int8_t, c), (int32_t, d),
            (int8_t, e)) {
    return a + 10 * b + 100 * c + 1000 * d + 10000 * e;
}

PEBBLE_TASK(int, six, (int, a), (int, b), (int, c), (int, d), (int, e), (int, f)) {
    return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f;
}

PEBBLE_TASK(int, seven, (int, a), (int, b), (int, c), (int, d), (int, e), (int, f),
            (int, g)) {
    return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f + 1000000 * g;
}

PEBBLE_TASK(int64_t, eight, (char, a), (double, b), (short, c), (float, d), (long, e),
            (unsigned char, f), (int, g), (bool, h)) {
    return a + 10 * (int64_t)b + 100 * c + 1000 * (int64_t)d + 10000 * e + 100000 * f +
           1000000 * g + 10000000 * h;
}

typedef struct point {
    double x, y;
    char name[11];
} point;

typedef struct line {
    point from, to;
    int64_t weights[100];
} line;

PEBBLE_TASK(line, connect, (point, from), (point, to), (int64_t, weight)) {
    line result;
    memset(&result, 0, sizeof result);
    result.from = from;
    result.to = to;
    for (int i = 0; i < 100; i++)
        result.weights[i] = weight * i;
    return result;
}

typedef struct block {
    unsigned char bytes[50000];
} block;

PEBBLE_TASK(block, invert, (block, value)) {
    for (size_t i = 0; i < sizeof value.bytes; i++)
        value.bytes[i] = (unsigned char)~value.bytes[i];
    return value;
}

PEBBLE_TASK(int, sleep_for, (unsigned, seconds)) {
    sleep(seconds);
    return 1;
}

PEBBLE_TASK(int, leave, (int, code)) {
    _exit(code);
    return 0;
}

/* Fails, and returns something all the same. */
PEBBLE_TASK0(int, fail_anyhow) {
    pebble_task_fail(task, 3, "it failed");
    return 12;
}

/* Calls another typed task as the plain function that it is too. */
PEBBLE_TASK(double, power_of_half, (double, value)) {
    return power(task, half(task, value), 2);
}

/* ---- Tests ---- */

static void run_with_both(void (*check)(pebble_pool *pool)) {
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    check(pool);
    close_join_free(pool);
    pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    check(pool);
    close_join_free(pool);
}

#define expect_typed(name, type, expected, ...)                                          \
    do {                                                                                 \
        pebble_future *future = NULL;                                                    \
        type result;                                                                     \
        expect_ok(name##_schedule(pool, 0, &future __VA_OPT__(, ) __VA_ARGS__));         \
        expect_ok(name##_result(future, DEADLINE_NS, &result));                          \
        assert_true(result == (expected));                                               \
        pebble_future_unref(future);                                                     \
    } while (0)

static void check_arguments(pebble_pool *pool) {
    expect_typed(give_answer, int, 42);
    expect_typed(half, double, 3.5, 7.0);
    expect_typed(power, double, 1024.0, 2.0, 10);
    expect_typed(three, int, 321, 1, 2, 3);
    expect_typed(four, int64_t, 4321, 1, 2, 3, 4);
    expect_typed(five, int64_t, 54321, 1, 2, 3, 4, 5);
    expect_typed(six, int, 654321, 1, 2, 3, 4, 5, 6);
    expect_typed(seven, int, 7654321, 1, 2, 3, 4, 5, 6, 7);
    expect_typed(eight, int64_t, 17654321, 1, 2.0, 3, 4.0f, 5, 6, 7, true);
    expect_typed(power_of_half, double, 9.0, 6.0);
}

static void test_none_to_eight_arguments(void **state) {
    (void)state;
    run_with_both(check_arguments);
}

static void check_structs(pebble_pool *pool) {
    const point from = {1.5, 2.5, "from here"}, to = {-3, 1e300, "to there"};
    pebble_future *future = NULL;
    line result;
    memset(&result, 0, sizeof result);
    expect_ok(connect_schedule(pool, 0, &future, from, to, -7));
    expect_ok(connect_result(future, DEADLINE_NS, &result));
    assert_true(result.from.x == 1.5 && result.from.y == 2.5);
    assert_string_equal(result.from.name, "from here");
    assert_true(result.to.x == -3 && result.to.y == 1e300);
    assert_string_equal(result.to.name, "to there");
    for (int i = 0; i < 100; i++)
        assert_int_equal(result.weights[i], -7 * i);
    pebble_future_unref(future);
}

static void test_structs(void **state) {
    (void)state;
    run_with_both(check_structs);
}

static void check_block(pebble_pool *pool) {
    static block value, result;
    pebble_future *future = NULL;
    for (size_t i = 0; i < sizeof value.bytes; i++)
        value.bytes[i] = (unsigned char)(i * 7);
    expect_ok(invert_schedule(pool, 0, &future, value));
    expect_ok(invert_result(future, DEADLINE_NS, &result));
    for (size_t i = 0; i < sizeof value.bytes; i++)
        assert_int_equal(result.bytes[i], (unsigned char)~value.bytes[i]);
    pebble_future_unref(future);
}

static void test_large_struct(void **state) {
    (void)state;
    run_with_both(check_block);
}

static void check_failing(pebble_pool *pool) {
    pebble_future *future = NULL;
    double result = 99;
    int number = 98;
    expect_ok(power_schedule(pool, 0, &future, 2.0, -3));
    expect_error(power_result(future, DEADLINE_NS, &result), PEBBLE_ERR_TASK_FAILED,
                 "negative exponent: -3");
    assert_true(result == 99);
    const pebble_failure *failure = pebble_future_failure(future);
    assert_int_equal(failure->code, 5);
    assert_string_equal(failure->message, "negative exponent: -3");
    pebble_future_unref(future);
    expect_ok(fail_anyhow_schedule(pool, 0, &future));
    expect_error(fail_anyhow_result(future, DEADLINE_NS, &number), PEBBLE_ERR_TASK_FAILED,
                 "it failed");
    assert_int_equal(number, 98);
    assert_int_equal(pebble_future_failure(future)->code, 3);
    pebble_future_unref(future);
}

static void test_failing(void **state) {
    (void)state;
    run_with_both(check_failing);
}

static void test_timeout_and_death(void **state) {
    pebble_future *future = NULL;
    int result = 97;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_ok(sleep_for_schedule(pool, PEBBLE_MILLISECONDS(50), &future, 1000));
    assert_int_equal(sleep_for_result(future, 0, &result), PEBBLE_ERR_TIMEOUT);
    assert_int_equal(sleep_for_result(future, DEADLINE_NS, &result),
                     PEBBLE_ERR_TASK_TIMEOUT);
    pebble_future_unref(future);
    expect_ok(leave_schedule(pool, 0, &future, 4));
    assert_int_equal(leave_result(future, DEADLINE_NS, &result), PEBBLE_ERR_TASK_EXPIRED);
    assert_int_equal(pebble_future_failure(future)->exit_code, 4);
    pebble_future_unref(future);
    assert_int_equal(result, 97);
    close_join_free(pool);
}

static void check_wrong_use(pebble_pool *pool) {
    pebble_future *future = NULL;
    double real = 99;
    int number = 98;
    line whole;
    expect_error(give_answer_schedule(NULL, 0, &future), PEBBLE_ERR_INVALID,
                 "pool is NULL");
    expect_error(half_schedule(pool, -1, &future, 1.0), PEBBLE_ERR_INVALID, "timeout_ns");
    assert_null(future);
    expect_error(half_result(NULL, 0, &real), PEBBLE_ERR_INVALID, "future is NULL");
    expect_ok(half_schedule(pool, 0, &future, 1.0));
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    /* The result of another task's type. */
    expect_error(give_answer_result(future, 0, &number), PEBBLE_ERR_INVALID,
                 "the result has 8 bytes");
    expect_error(connect_result(future, 0, &whole), PEBBLE_ERR_INVALID,
                 "the result has 8 bytes");
    expect_error(half_result(future, 0, NULL), PEBBLE_ERR_INVALID, "data is NULL");
    expect_error(half_result(future, -1, &real), PEBBLE_ERR_INVALID, "timeout_ns");
    assert_int_equal(number, 98);
    assert_true(real == 99);
    expect_ok(half_result(future, 0, &real));
    assert_true(real == 0.5);
    pebble_future_unref(future);
    expect_ok(half_schedule(pool, 0, NULL, 1.0)); /* nobody cares */
}

static void test_wrong_use(void **state) {
    (void)state;
    run_with_both(check_wrong_use);
}

/* The plain function beside the macro's calls: a typed task is also an element's function. */
static void check_many(pebble_pool *pool) {
    enum { COUNT = 500 };
    pebble_future *futures[COUNT];
    for (int i = 0; i < COUNT; i++)
        expect_ok(
            three_schedule(pool, 0, &futures[i], (char)(i % 10), (short)(i / 10), i));
    for (int i = 0; i < COUNT; i++) {
        int result = 0;
        expect_ok(three_result(futures[i], DEADLINE_NS, &result));
        assert_int_equal(result, i % 10 + 10 * (i / 10) + 100 * i);
        pebble_future_unref(futures[i]);
    }
}

static void test_many(void **state) {
    (void)state;
    run_with_both(check_many);
}

#define TEST(name) supported_test(test_##name)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(none_to_eight_arguments), TEST(structs),   TEST(large_struct), TEST(failing),
        TEST(timeout_and_death),       TEST(wrong_use), TEST(many),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("typed", tests, NULL, NULL);
}
