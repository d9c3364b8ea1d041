/* Timeouts: tasks that loop, sleep, ignore, are stopped; from when the time counts; how late. */
#include "support.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

/* How late a timeout may be here: other tests run beside this one. */
#define LATE_NS (SANITIZED ? PEBBLE_SECONDS(3) : PEBBLE_MILLISECONDS(500))

typedef struct area {
    counter started, go, ran;
    _Atomic int64_t start_ns;
    _Atomic pid_t pid;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks ---- */

static void say_started(void) {
    atomic_store(&shared->pid, getpid());
    atomic_store(&shared->start_ns, os_now_ns());
    counter_add(&shared->started, 1);
}

static void sleep_on(void) {
    while (pause() != 0)
        ;
}

static int sleeps(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    say_started();
    sleep_on();
    return 0;
}

static int loops(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    say_started();
    for (;;)
        __asm__ volatile("");
    return 0;
}

static int ignores_sigterm(pebble_task *task, const void *input, size_t input_size) {
    signal(SIGTERM, SIG_IGN);
    return sleeps(task, input, input_size);
}

static int blocks_all_signals(pebble_task *task, const void *input, size_t input_size) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    return sleeps(task, input, input_size);
}

static int stops_itself(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    say_started();
    raise(SIGSTOP);
    return 0;
}

static int quick(pebble_task *task, const void *input, size_t input_size) {
    counter_add(&shared->ran, 1);
    return (int)pebble_task_write(task, input, input_size);
}

static int gate(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    say_started();
    return counter_wait(&shared->go, 1) ? 0 : 99;
}

static int tells_its_pid(pebble_task *task, const void *input, size_t input_size) {
    int pid = getpid();
    (void)input, (void)input_size;
    return (int)pebble_task_write(task, &pid, sizeof pid);
}

/* Takes the time that it is told, awake. */
static int takes_ns(pebble_task *task, const void *input, size_t input_size) {
    int64_t until_ns = os_now_ns();
    (void)task, (void)input_size;
    until_ns += *(const int64_t *)input;
    while (os_now_ns() < until_ns)
        ;
    return 0;
}

static pebble_pool *pool_of(int workers, int64_t grace_ns) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .termination_grace_ns = grace_ns));
}

static void expect_works(pebble_pool *pool) {
    expect_end(schedule(pool, quick, "x", 1, 0), PEBBLE_OK);
}

/* ---- Tasks that do not end ---- */

/* Ends by timeout, not before it and at most so long after. Returns how late it was. */
static int64_t check_times_out(pebble_function function, int64_t timeout_ns,
                               int64_t grace_ns) {
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = pool_of(1, grace_ns);
    expect_works(pool); /* there is a worker */
    pebble_future *future = schedule(pool, function, NULL, 0, timeout_ns);
    counter_expect(&shared->started, 1);
    int64_t start_ns = atomic_load(&shared->start_ns);
    pid_t pid = atomic_load(&shared->pid);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    int64_t took_ns = os_now_ns() - start_ns;
    assert_false(process_lives(pid));
    assert_true(took_ns >= timeout_ns - PEBBLE_MILLISECONDS(20)); /* the stamp is earlier */
    assert_true(pebble_future_failure(future)->timeout_ns == timeout_ns);
    assert_int_equal(pebble_future_failure(future)->pid, pid);
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    expect_works(pool);
    close_join_free(pool);
    return took_ns - timeout_ns;
}

static void test_loops(void **state) {
    (void)state;
    assert_true(check_times_out(loops, PEBBLE_MILLISECONDS(100), 0) < LATE_NS);
}

static void test_sleeps(void **state) {
    (void)state;
    assert_true(check_times_out(sleeps, PEBBLE_MILLISECONDS(100), 0) < LATE_NS);
}

static void test_ignores_sigterm(void **state) {
    (void)state;
    const int64_t grace_ns = PEBBLE_MILLISECONDS(200);
    int64_t late_ns = check_times_out(ignores_sigterm, PEBBLE_MILLISECONDS(50), grace_ns);
    assert_true(late_ns >= grace_ns - PEBBLE_MILLISECONDS(50));
    assert_true(late_ns < grace_ns + LATE_NS);
    late_ns = check_times_out(blocks_all_signals, PEBBLE_MILLISECONDS(50), grace_ns);
    assert_true(late_ns < grace_ns + LATE_NS);
}

static void test_stopped(void **state) {
    (void)state;
    assert_true(check_times_out(stops_itself, PEBBLE_MILLISECONDS(100), 0) < LATE_NS);
}

/* All of them at the same time: eight graces are not longer than one. */
static void test_many_ignore_sigterm_at_once(void **state) {
    enum { COUNT = 8 };
    pebble_future *futures[COUNT];
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(100),
                  grace_ns = PEBBLE_MILLISECONDS(400);
    (void)state;
    pebble_pool *pool = pool_of(COUNT, grace_ns);
    for (int i = 0; i < COUNT; i++)
        futures[i] = schedule(pool, ignores_sigterm, NULL, 0, timeout_ns);
    counter_expect(&shared->started, COUNT);
    int64_t start_ns = atomic_load(&shared->start_ns); /* of the last */
    assert_int_equal(pebble_future_wait_all(futures, COUNT, DEADLINE_NS), PEBBLE_OK);
    assert_true(os_now_ns() - start_ns < timeout_ns + grace_ns + LATE_NS);
    for (int i = 0; i < COUNT; i++)
        expect_end(futures[i], PEBBLE_ERR_TASK_TIMEOUT);
    expect_works(pool);
    close_join_free(pool);
}

/* Killing does not hold up others. */
static void test_dispatch_goes_on_during_a_grace(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(2, PEBBLE_SECONDS(3));
    pebble_future *stuck =
        schedule(pool, ignores_sigterm, NULL, 0, PEBBLE_MILLISECONDS(20));
    counter_expect(&shared->started, 1);
    int64_t start_ns = atomic_load(&shared->start_ns);
    int rounds = 0;
    while (os_now_ns() - start_ns < PEBBLE_MILLISECONDS(500)) {
        expect_works(pool);
        rounds++;
    }
    assert_true(rounds > 50);
    assert_false(pebble_future_done(stuck));
    stop_join_free(pool);
    expect_end(stuck, PEBBLE_ERR_TASK_TIMEOUT);
}

/* ---- Stopped workers ---- */

static void test_stopped_from_outside(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    pebble_future *future = schedule(pool, sleeps, NULL, 0, PEBBLE_MILLISECONDS(200));
    counter_expect(&shared->started, 1);
    assert_int_equal(kill(atomic_load(&shared->pid), SIGSTOP), 0);
    int64_t start_ns = atomic_load(&shared->start_ns);
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(os_now_ns() - start_ns < PEBBLE_MILLISECONDS(200) + LATE_NS);
    expect_works(pool);
    close_join_free(pool);
}

static bool is_stopped(void *pid) {
    return process_state(*(pid_t *)pid) == 'T';
}

/* An idle worker that is stopped never starts its next task. That has a timeout: it ends, or
 * another worker does it, in a bounded time. */
static void test_idle_worker_is_stopped(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    pid_t pid = take_int(schedule(pool, tells_its_pid, NULL, 0, 0));
    assert_int_equal(kill(pid, SIGSTOP), 0);
    assert_true(wait_until(is_stopped, &pid));
    int64_t before_ns = os_now_ns();
    pebble_future *future = schedule(pool, quick, "x", 1, PEBBLE_MILLISECONDS(100));
    pebble_future *behind = schedule(pool, quick, "x", 1, 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_wait(behind, DEADLINE_NS), PEBBLE_OK);
    assert_true(os_now_ns() - before_ns < PEBBLE_SECONDS(10));
    print_message("ended %s after %d ms\n",
                  pebble_error_name(pebble_future_result(future, 0, NULL, NULL)),
                  (int)((os_now_ns() - before_ns) / 1000000));
    pebble_future_unref(future);
    expect_end(behind, PEBBLE_OK);
    expect_works(pool);
    close_join_free(pool);
}

/* ---- From when the time counts ---- */

static void test_counts_from_the_start(void **state) {
    enum { COUNT = 5 };
    pebble_future *behind[COUNT];
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(SANITIZED ? 1000 : 200);
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    pebble_future *slow = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < COUNT; i++)
        behind[i] = schedule(pool, quick, "x", 1, timeout_ns);
    /* They wait several times as long as they may run. */
    assert_int_equal(pebble_future_wait(slow, 3 * timeout_ns), PEBBLE_ERR_TIMEOUT);
    assert_int_equal(counter_value(&shared->ran), 0);
    for (int i = 0; i < COUNT; i++)
        assert_false(pebble_future_done(behind[i]));
    counter_add(&shared->go, 1);
    expect_end(slow, PEBBLE_OK);
    for (int i = 0; i < COUNT; i++)
        expect_end(behind[i], PEBBLE_OK);
    close_join_free(pool);
}

/* In a worker's ring behind a task that gets slow. */
static void test_counts_from_the_start_when_sent_ahead(void **state) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(SANITIZED ? 1000 : 200);
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    for (int i = 0; i < 500; i++) /* short ones: others are sent ahead */
        expect_works(pool);
    pebble_future *slow = schedule(pool, gate, NULL, 0, 0);
    pebble_future *behind[20];
    for (int i = 0; i < 20; i++)
        behind[i] = schedule(pool, quick, "x", 1, timeout_ns);
    counter_expect(&shared->started, 1);
    assert_int_equal(pebble_future_wait(slow, 3 * timeout_ns), PEBBLE_ERR_TIMEOUT);
    counter_add(&shared->go, 1);
    expect_end(slow, PEBBLE_OK);
    for (int i = 0; i < 20; i++)
        expect_end(behind[i], PEBBLE_OK);
    close_join_free(pool);
}

/* One after another, each gets its whole time. */
static void test_each_has_its_own_time(void **state) {
    enum { COUNT = 4 };
    pebble_future *futures[COUNT];
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(100);
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    int64_t before_ns = os_now_ns();
    for (int i = 0; i < COUNT; i++)
        futures[i] = schedule(pool, sleeps, NULL, 0, timeout_ns);
    for (int i = 0; i < COUNT; i++) {
        expect_end(futures[i], PEBBLE_ERR_TASK_TIMEOUT);
        assert_true(os_now_ns() - before_ns >= (i + 1) * timeout_ns);
    }
    assert_true(os_now_ns() - before_ns < COUNT * (timeout_ns + LATE_NS));
    close_join_free(pool);
}

/* ---- Extremes ---- */

static void test_one_nanosecond(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(2, 0);
    for (int i = 0; i < 20; i++) {
        memset(shared, 0, sizeof *shared);
        expect_end(schedule(pool, sleeps, NULL, 0, 1), PEBBLE_ERR_TASK_TIMEOUT);
        pebble_future *future = schedule(pool, quick, "x", 1, 1); /* it may be quicker */
        pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
        assert_true(error == PEBBLE_OK || error == PEBBLE_ERR_TASK_TIMEOUT);
        pebble_future_unref(future);
    }
    expect_works(pool);
    close_join_free(pool);
}

static void test_longest(void **state) {
    static const int64_t timeouts[] = {INT64_MAX, INT64_MAX - 1, INT64_MAX / 2,
                                       PEBBLE_SECONDS(86400) * 365};
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    for (size_t i = 0; i < 4; i++)
        expect_end(schedule(pool, quick, "x", 1, timeouts[i]), PEBBLE_OK);
    pebble_future *future = schedule(pool, sleeps, NULL, 0, INT64_MAX);
    counter_expect(&shared->started, 1);
    assert_int_equal(pebble_future_wait(future, PEBBLE_MILLISECONDS(50)),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

static void test_negative(void **state) {
    pebble_future *future = NULL;
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    expect_error(pebble_schedule(pool, quick, NULL, 0, -1, &future), PEBBLE_ERR_INVALID,
                 "timeout_ns");
    expect_error(pebble_schedule(pool, quick, NULL, 0, INT64_MIN, &future),
                 PEBBLE_ERR_INVALID, "timeout_ns");
    assert_null(future);
    close_join_free(pool);
}

static void test_none_for_threads(void **state) {
    pebble_future *future = NULL;
    (void)state;
    pebble_pool *pool = new_thread_pool(NULL);
    expect_error(pebble_schedule(pool, quick, NULL, 0, 1, &future), PEBBLE_ERR_INVALID,
                 "timeout_ns");
    assert_null(future);
    close_join_free(pool);
}

/* ---- Many ---- */

static void test_many_short_ones_are_not_timed_out(void **state) {
    enum { COUNT = SANITIZED ? 2000 : 20000, BEHIND = 500 };
    static pebble_future *futures[COUNT];
    (void)state;
    pebble_pool *pool = pool_of(2, 0);
    for (int i = 0; i < COUNT + BEHIND; i++) {
        if (i < COUNT)
            futures[i] = schedule(pool, quick, &i, sizeof i, PEBBLE_SECONDS(5));
        if (i >= BEHIND)
            assert_int_equal(take_int(futures[i - BEHIND]), i - BEHIND);
    }
    assert_int_equal(counter_value(&shared->ran), COUNT);
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.worker_deaths, 0);
    close_join_free(pool);
}

/* Those that end in time and those that do not, mixed on the same workers. */
static void test_only_the_long_ones_are_timed_out(void **state) {
    enum { COUNT = 300, EVERY = 20 };
    pebble_future *futures[COUNT];
    int64_t short_ns = 20000;
    (void)state;
    pebble_pool *pool = pool_of(3, 0);
    for (int i = 0; i < COUNT; i++) {
        if (i % EVERY == 0)
            futures[i] = schedule(pool, loops, NULL, 0, PEBBLE_MILLISECONDS(20));
        else
            futures[i] =
                schedule(pool, takes_ns, &short_ns, sizeof short_ns, PEBBLE_SECONDS(5));
    }
    for (int i = 0; i < COUNT; i++)
        expect_end(futures[i], i % EVERY == 0 ? PEBBLE_ERR_TASK_TIMEOUT : PEBBLE_OK);
    close_join_free(pool);
}

/* Tasks that end about when their time is over end in one of two ways, and nothing is lost. */
static void test_ends_race_with_timeouts(void **state) {
    enum { COUNT = 200 };
    int succeeded = 0, timed_out = 0;
    (void)state;
    pebble_pool *pool = pool_of(2, 0);
    expect_works(pool);
    for (int i = 0; i < COUNT; i++) {
        int64_t takes = PEBBLE_MILLISECONDS(1) - PEBBLE_MICROSECONDS(100) + i * 1000;
        pebble_future *future =
            schedule(pool, takes_ns, &takes, sizeof takes, PEBBLE_MILLISECONDS(1));
        pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
        succeeded += error == PEBBLE_OK;
        timed_out += error == PEBBLE_ERR_TASK_TIMEOUT;
        pebble_future_unref(future);
    }
    print_message("%d succeeded, %d timed out\n", succeeded, timed_out);
    assert_int_equal(succeeded + timed_out, COUNT);
    expect_works(pool);
    close_join_free(pool);
}

/* How late a timeout is resolved: the worker is gone and the future has ended. */
static void test_lateness(void **state) {
    enum { COUNT = 50 };
    int64_t late_ns[COUNT];
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    expect_works(pool);
    for (int i = 0; i < COUNT; i++) {
        memset(shared, 0, sizeof *shared);
        pebble_future *future = schedule(pool, sleeps, NULL, 0, PEBBLE_MILLISECONDS(10));
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        int64_t now_ns = os_now_ns();
        if (counter_value(&shared->started) == 0)
            say_started(); /* timed out before its first step */
        late_ns[i] = now_ns - atomic_load(&shared->start_ns) - PEBBLE_MILLISECONDS(10);
        expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    }
    qsort(late_ns, COUNT, sizeof late_ns[0], compare_ns);
    print_message("late by %d us in the median, %d us at most\n",
                  (int)(late_ns[COUNT / 2] / 1000), (int)(late_ns[COUNT - 1] / 1000));
    assert_true(late_ns[COUNT / 2] < LATE_NS);
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(loops),
        TEST(sleeps),
        TEST(ignores_sigterm),
        TEST(stopped),
        TEST(many_ignore_sigterm_at_once),
        TEST(dispatch_goes_on_during_a_grace),
        TEST(stopped_from_outside),
        TEST(idle_worker_is_stopped),
        TEST(counts_from_the_start),
        TEST(counts_from_the_start_when_sent_ahead),
        TEST(each_has_its_own_time),
        TEST(one_nanosecond),
        TEST(longest),
        TEST(negative),
        TEST(none_for_threads),
        TEST(many_short_ones_are_not_timed_out),
        TEST(only_the_long_ones_are_timed_out),
        TEST(ends_race_with_timeouts),
        TEST(lateness),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("timeouts", tests, NULL, NULL);
}
