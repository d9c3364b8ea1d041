/* Cancelling: queued and running tasks, from several threads. Many at random: faults/cancels.c. */
#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Tasks ---- */

typedef struct area {
    counter started, go, ran;
    _Atomic pid_t child, grandchild;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

static int count_run(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    counter_add(&shared->ran, 1);
    return 0;
}

static int gate(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    counter_add(&shared->started, 1);
    return counter_wait(&shared->go, 1) ? 0 : 99;
}

static _Noreturn void sleep_on(void) {
    for (;;)
        pause(); /* a handler ends it */
}

/* Leaves a child and a grandchild running beside it. */
static int start_family(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    pid_t child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild > 0) {
            atomic_store(&shared->grandchild, grandchild);
            counter_add(&shared->started, 1);
        }
        sleep_on();
    }
    atomic_store(&shared->child, child);
    counter_add(&shared->started, 1);
    sleep_on();
}

static pebble_pool *pool_of(bool threads, int workers) {
    const pebble_pool_options *options = PEBBLE_POOL_OPTIONS(.max_workers = workers);
    return threads ? new_thread_pool(options) : new_process_pool(options);
}

/* ---- Queued ---- */

static void check_queued(bool threads) {
    enum { COUNT = 50 };
    pebble_future *futures[COUNT];
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < COUNT; i++)
        futures[i] = schedule(pool, count_run, NULL, 0, 0);
    for (int i = 0; i < COUNT; i += 2) {
        assert_true(pebble_future_cancel(futures[i]));
        assert_int_equal(pebble_future_state(futures[i]), PEBBLE_CANCELLED); /* at once */
    }
    counter_add(&shared->go, 1);
    expect_end(first, PEBBLE_OK);
    for (int i = 0; i < COUNT; i++)
        expect_end(futures[i], i % 2 == 0 ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->ran), COUNT / 2);
}

static void test_queued_never_starts(void **state) {
    (void)state;
    check_queued(false);
}

static void test_queued_never_starts_threads(void **state) {
    (void)state;
    check_queued(true);
}

/* Tasks that are short are in the worker's ring already when they are taken back. */
static void test_sent_never_starts(void **state) {
    enum { COUNT = 50 };
    pebble_future *futures[COUNT];
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (int i = 0; i < 500; i++)
        expect_end(schedule(pool, count_run, NULL, 0, 0), PEBBLE_OK);
    uint32_t before = counter_value(&shared->ran);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    for (int i = 0; i < COUNT; i++)
        futures[i] = schedule(pool, count_run, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < COUNT; i++)
        assert_true(pebble_future_cancel(futures[i]));
    counter_add(&shared->go, 1);
    expect_end(first, PEBBLE_OK);
    for (int i = 0; i < COUNT; i++)
        expect_end(futures[i], PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->ran), before);
}

/* ---- Running ---- */

typedef struct seen {
    counter calls;
    bool lives[3];
} seen;

static void look_for_family(pebble_future *future, void *context) {
    seen *noted = context;
    noted->lives[0] = process_lives(pebble_future_pid(future));
    noted->lives[1] = process_lives(atomic_load(&shared->child));
    noted->lives[2] = process_lives(atomic_load(&shared->grandchild));
    counter_add(&noted->calls, 1);
}

static void check_family_gone(int64_t grace_ns) {
    seen noted = {0};
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2, .termination_grace_ns = grace_ns));
    pebble_future *future = schedule(pool, start_family, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(future, look_for_family, &noted));
    counter_expect(&shared->started, 2);
    pid_t pid = pebble_future_pid(future);
    assert_true(process_lives(pid));
    assert_true(process_lives(atomic_load(&shared->child)));
    assert_true(process_lives(atomic_load(&shared->grandchild)));
    assert_true(pebble_future_cancel(future));
    assert_true(pebble_future_cancel(future) ||
                pebble_future_done(future)); /* it will be */
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_false(process_lives(pid));
    assert_false(process_lives(atomic_load(&shared->child)));
    assert_false(process_lives(atomic_load(&shared->grandchild)));
    counter_expect(&noted.calls, 1);
    assert_false(noted.lives[0] || noted.lives[1] || noted.lives[2]);
    assert_false(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    expect_end(schedule(pool, count_run, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

static void test_running_ends_with_its_processes(void **state) {
    (void)state;
    check_family_gone(0); /* the default */
}

static void test_running_ends_at_once_with_no_grace(void **state) {
    (void)state;
    check_family_gone(1);
}

static void test_running_thread_is_not_cancelled(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    pebble_future *future = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    assert_false(pebble_future_cancel(future));
    assert_int_equal(pebble_future_state(future), PEBBLE_RUNNING);
    counter_add(&shared->go, 1);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
    assert_false(pebble_future_cancel(future));
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
}

static void check_ended(bool threads) {
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule(pool, count_run, NULL, 0, 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_false(pebble_future_cancel(future));
    assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
}

static void test_ended_is_not_cancelled(void **state) {
    (void)state;
    check_ended(false);
    check_ended(true);
}

static void test_cancel_twice(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        memset(shared, 0, sizeof *shared);
        pebble_pool *pool = pool_of(threads != 0, 1);
        pebble_future *first = schedule(pool, gate, NULL, 0, 0);
        pebble_future *queued = schedule(pool, count_run, NULL, 0, 0);
        counter_expect(&shared->started, 1);
        assert_true(pebble_future_cancel(queued));
        assert_false(pebble_future_cancel(queued)); /* it has ended */
        counter_add(&shared->go, 1);
        expect_end(first, PEBBLE_OK);
        expect_end(queued, PEBBLE_ERR_TASK_CANCELLED);
        close_join_free(pool);
    }
}

/* A task that is being timed out can be cancelled no more. */
static void note_sigterm(int signal) {
    (void)signal;
    counter_add(&shared->go, 1);
}

static int survives_sigterm(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    signal(SIGTERM, note_sigterm);
    counter_add(&shared->started, 1);
    sleep_on();
}

static void test_cancel_while_timed_out(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it runs no handlers in a process that was forked from one with threads */
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .termination_grace_ns = PEBBLE_SECONDS(1)));
    pebble_future *future =
        schedule(pool, survives_sigterm, NULL, 0, PEBBLE_MILLISECONDS(50));
    counter_expect(&shared->started, 1);
    counter_expect(&shared->go, 1);
    assert_int_equal(pebble_future_state(future), PEBBLE_RUNNING);
    assert_false(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    close_join_free(pool);
}

/* ---- From another thread while somebody waits ---- */

static void *cancel_it(void *future) {
    return pebble_future_cancel(future) ? future : NULL;
}

static void check_cancel_of_awaited(pebble_future *future) {
    pthread_t canceller;
    void *cancelled;
    assert_int_equal(pthread_create(&canceller, NULL, cancel_it, future), 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    pthread_join(canceller, &cancelled);
    assert_ptr_equal(cancelled, future);
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
}

static void test_cancel_what_another_thread_waits_for(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        memset(shared, 0, sizeof *shared);
        pebble_pool *pool = pool_of(false, 1);
        pebble_future *running = schedule(pool, gate, NULL, 0, 0);
        pebble_future *queued = schedule(pool, count_run, NULL, 0, 0);
        counter_expect(&shared->started, 1);
        check_cancel_of_awaited(queued);
        check_cancel_of_awaited(running);
        assert_int_equal(counter_value(&shared->ran), 0);
        close_join_free(pool);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(queued_never_starts),
        TEST(queued_never_starts_threads),
        TEST(sent_never_starts),
        TEST(running_ends_with_its_processes),
        TEST(running_ends_at_once_with_no_grace),
        TEST(running_thread_is_not_cancelled),
        TEST(ended_is_not_cancelled),
        TEST(cancel_twice),
        TEST(cancel_while_timed_out),
        TEST(cancel_what_another_thread_waits_for),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("cancel", tests, NULL, NULL);
}
