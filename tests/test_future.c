/* Futures: states, waiting, results, references, several at once; with both kinds of pool. */
#include "support.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

enum { WAITERS = 16, MANY = 200 };

/* ---- Tasks ---- */

typedef struct area {
    counter started, go;
    _Atomic uint32_t ran;
    _Atomic pid_t pid;
} area;

static area *shared; /* made anew for each test; the pools' zygotes inherit it */

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

static int echo(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static int count_run(pebble_task *task, const void *input, size_t input_size) {
    atomic_fetch_add(&shared->ran, 1);
    return echo(task, input, input_size);
}

/* Says that it has started, and goes on when it is let. */
static int gate(pebble_task *task, const void *input, size_t input_size) {
    atomic_store(&shared->pid, getpid());
    counter_add(&shared->started, 1);
    if (!counter_wait(&shared->go, 1))
        return 99;
    return echo(task, input, input_size);
}

/* ---- Pools ---- */

static pebble_pool *pool_of(bool threads, int workers) {
    const pebble_pool_options *options = PEBBLE_POOL_OPTIONS(.max_workers = workers);
    return threads ? new_thread_pool(options) : new_process_pool(options);
}

static pebble_future *schedule_gate(pebble_pool *pool) {
    pebble_future *future = schedule(pool, gate, "x", 1, 0);
    counter_expect(&shared->started, 1);
    return future;
}

static void assert_result(pebble_future *future, const void *expected,
                          size_t expected_size) {
    const void *data = NULL;
    size_t size = SIZE_MAX;
    assert_int_equal(pebble_future_result(future, DEADLINE_NS, &data, &size), PEBBLE_OK);
    assert_non_null(data);
    assert_int_equal((uintptr_t)data % 16, 0);
    assert_int_equal(size, expected_size);
    assert_memory_equal(data, expected, expected_size);
}

/* ---- States ---- */

static void check_states(bool threads) {
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *first = schedule_gate(pool);
    pebble_future *second = schedule(pool, count_run, "y", 1, 0);
    pebble_future *third = schedule(pool, count_run, "z", 1, 0);
    assert_int_equal(pebble_future_state(first), PEBBLE_RUNNING);
    assert_int_equal(pebble_future_state(second), PEBBLE_PENDING);
    assert_false(pebble_future_done(first));
    assert_false(pebble_future_done(second));
    assert_null(pebble_future_failure(first));
    assert_true(pebble_future_cancel(third));
    assert_int_equal(pebble_future_state(third), PEBBLE_CANCELLED);
    assert_true(pebble_future_done(third));
    counter_add(&shared->go, 1);
    assert_result(first, "x", 1);
    assert_result(second, "y", 1);
    assert_int_equal(pebble_future_state(first), PEBBLE_FINISHED);
    assert_int_equal(pebble_future_state(second), PEBBLE_FINISHED);
    assert_true(pebble_future_done(first));
    assert_null(pebble_future_failure(first));
    assert_int_equal(atomic_load(&shared->ran), 1);
    pebble_future_unref(first);
    pebble_future_unref(second);
    pebble_future_unref(third);
    close_join_free(pool);
}

static void test_states(void **state) {
    (void)state;
    check_states(false);
}

static void test_states_threads(void **state) {
    (void)state;
    check_states(true);
}

/* A state seen by asking alone, with no wait and no callback to move things on. */
static void check_asking(bool threads) {
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule(pool, echo, "q", 1, 0);
    int64_t deadline_ns = os_now_ns() + DEADLINE_NS;
    while (pebble_future_state(future) != PEBBLE_FINISHED && os_now_ns() < deadline_ns)
        sched_yield();
    assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
    pebble_future_unref(future);
    future = schedule(pool, echo, "q", 1, 0);
    while (!pebble_future_done(future) && os_now_ns() < deadline_ns)
        sched_yield();
    assert_true(pebble_future_done(future));
    pebble_future_unref(future);
    close_join_free(pool);
}

static void test_asking_is_enough(void **state) {
    (void)state;
    check_asking(false);
    check_asking(true);
}

static void test_failed_is_finished(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *future = schedule(pool, gate, "x", 1, 0);
    counter_expect(&shared->started, 1);
    assert_int_equal(kill(atomic_load(&shared->pid), SIGKILL), 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
    assert_int_equal(pebble_future_result(future, 0, NULL, NULL), PEBBLE_ERR_TASK_EXPIRED);
    pebble_future_unref(future);
    close_join_free(pool);
}

/* ---- Waiting ---- */

static void check_wait(bool threads) {
    const void *data = &data;
    size_t size = 77;
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule_gate(pool);
    assert_int_equal(pebble_future_wait(future, 0), PEBBLE_ERR_TIMEOUT);
    int64_t before_ns = os_now_ns();
    assert_int_equal(pebble_future_wait(future, PEBBLE_MILLISECONDS(30)),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(os_now_ns() - before_ns >= PEBBLE_MILLISECONDS(30));
    before_ns = os_now_ns();
    assert_int_equal(pebble_future_result(future, PEBBLE_MILLISECONDS(30), &data, &size),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(os_now_ns() - before_ns >= PEBBLE_MILLISECONDS(30));
    assert_ptr_equal(data, &data);
    assert_int_equal(size, 77);
    expect_error(pebble_future_wait(future, -1), PEBBLE_ERR_INVALID,
                 "pebble_future_wait: timeout_ns is negative");
    expect_error(pebble_future_result(future, -1, NULL, NULL), PEBBLE_ERR_INVALID,
                 "pebble_future_result: timeout_ns is negative");
    expect_error(pebble_future_copy_result(future, INT64_MIN, NULL, 0),
                 PEBBLE_ERR_INVALID, "pebble_future_copy_result: timeout_ns is negative");
    counter_add(&shared->go, 1);
    assert_int_equal(pebble_future_wait(future, PEBBLE_FOREVER), PEBBLE_OK);
    assert_int_equal(pebble_future_wait(future, 0), PEBBLE_OK);
    assert_int_equal(pebble_future_result(future, 0, NULL, NULL), PEBBLE_OK);
    expect_error(pebble_future_wait(future, -1), PEBBLE_ERR_INVALID, "negative");
    pebble_future_unref(future);
    close_join_free(pool);
}

static void test_wait_with_timeout(void **state) {
    (void)state;
    check_wait(false);
}

static void test_wait_with_timeout_threads(void **state) {
    (void)state;
    check_wait(true);
}

static void test_null_arguments(void **state) {
    (void)state;
    expect_error(pebble_future_wait(NULL, 0), PEBBLE_ERR_INVALID,
                 "pebble_future_wait: future is NULL");
    expect_error(pebble_future_result(NULL, 0, NULL, NULL), PEBBLE_ERR_INVALID,
                 "pebble_future_result: future is NULL");
    expect_error(pebble_future_copy_result(NULL, 0, NULL, 0), PEBBLE_ERR_INVALID,
                 "pebble_future_copy_result: future is NULL");
    expect_error(pebble_future_add_callback(NULL, NULL, NULL), PEBBLE_ERR_INVALID,
                 "pebble_future_add_callback: future is NULL");
    assert_int_equal(pebble_future_state(NULL), PEBBLE_CANCELLED);
    assert_false(pebble_future_done(NULL));
    assert_false(pebble_future_cancel(NULL));
    assert_null(pebble_future_failure(NULL));
    assert_int_equal(pebble_future_pid(NULL), 0);
    assert_null(pebble_future_ref(NULL));
    pebble_future_unref(NULL);
}

/* Interrupted waits go on. */
static void on_signal(int signal) {
    (void)signal;
}

static void *send_signals(void *thread) {
    for (int i = 0; i < 50; i++) {
        pthread_kill(*(pthread_t *)thread, SIGUSR1);
        sched_yield();
    }
    counter_add(&shared->go, 1);
    return NULL;
}

static void test_signals_do_not_end_a_wait(void **state) {
    struct sigaction action = {.sa_handler = on_signal}, before;
    pthread_t self = pthread_self(), sender;
    (void)state;
    sigaction(SIGUSR1, &action, &before);
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *future = schedule_gate(pool);
    assert_int_equal(pthread_create(&sender, NULL, send_signals, &self), 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    pthread_join(sender, NULL);
    pebble_future_unref(future);
    close_join_free(pool);
    sigaction(SIGUSR1, &before, NULL);
}

/* ---- Results ---- */

static void check_results(bool threads) {
    static const size_t sizes[] = {0, 1, 15, 16, 17, 63, 64, 65, 4096, 100000};
    char bytes[100000];
    pebble_pool *pool = pool_of(threads, 2);
    memset(bytes, 'r', sizeof bytes);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const void *data = NULL, *again = NULL;
        pebble_future *future = schedule(pool, echo, bytes, sizes[i], 0);
        assert_result(future, bytes, sizes[i]);
        assert_int_equal(pebble_future_result(future, 0, &data, NULL), PEBBLE_OK);
        assert_int_equal(pebble_future_result(future, 0, &again, NULL), PEBBLE_OK);
        assert_ptr_equal(data, again);
        pebble_future_unref(future);
    }
    pebble_future *future = schedule(pool, echo, NULL, 0, 0);
    assert_result(future, "", 0);
    pebble_future_unref(future);
    close_join_free(pool);
}

static void test_results(void **state) {
    (void)state;
    check_results(false);
    check_results(true);
}

static void check_copy_result(bool threads) {
    uint64_t value = 12345, copy = 1;
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule(pool, echo, &value, sizeof value, 0);
    assert_int_equal(pebble_future_copy_result(future, DEADLINE_NS, &copy, sizeof copy),
                     PEBBLE_OK);
    assert_int_equal(copy, value);
    copy = 1;
    expect_error(pebble_future_copy_result(future, 0, &copy, sizeof copy - 1),
                 PEBBLE_ERR_INVALID, "pebble_future_copy_result: size is 7");
    expect_error(pebble_future_copy_result(future, 0, &copy, sizeof copy + 1),
                 PEBBLE_ERR_INVALID, "the result has 8 bytes");
    expect_error(pebble_future_copy_result(future, 0, &copy, 0), PEBBLE_ERR_INVALID,
                 "size is 0");
    expect_error(pebble_future_copy_result(future, 0, NULL, 8), PEBBLE_ERR_INVALID,
                 "data is NULL");
    assert_int_equal(copy, 1);
    pebble_future_unref(future);
    future = schedule(pool, echo, NULL, 0, 0);
    assert_int_equal(pebble_future_copy_result(future, DEADLINE_NS, NULL, 0), PEBBLE_OK);
    pebble_future_unref(future);
    future = schedule_gate(pool);
    assert_int_equal(pebble_future_copy_result(future, 0, &copy, 8), PEBBLE_ERR_TIMEOUT);
    counter_add(&shared->go, 1);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    pebble_future_unref(future);
    close_join_free(pool);
}

static void test_copy_result(void **state) {
    (void)state;
    check_copy_result(false);
}

static void test_copy_result_threads(void **state) {
    (void)state;
    check_copy_result(true);
}

/* ---- The process ---- */

static void test_pid(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *first = schedule_gate(pool);
    pebble_future *second = schedule(pool, echo, NULL, 0, 0);
    pid_t pid = atomic_load(&shared->pid);
    assert_int_not_equal(pid, getpid());
    assert_int_equal(pebble_future_pid(first), pid);
    assert_int_equal(pebble_future_pid(second), 0);
    counter_add(&shared->go, 1);
    assert_int_equal(pebble_future_wait(second, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_pid(first), pid);
    assert_int_equal(pebble_future_pid(second), pid);
    pebble_future_unref(first);
    pebble_future_unref(second);
    close_join_free(pool);
}

static void test_pid_threads(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    pebble_future *future = schedule_gate(pool);
    assert_int_equal(atomic_load(&shared->pid), getpid());
    assert_int_equal(pebble_future_pid(future), 0);
    counter_add(&shared->go, 1);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_pid(future), 0);
    pebble_future_unref(future);
    close_join_free(pool);
}

/* ---- References ---- */

static void check_unref_before_end(bool threads) {
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *first = schedule_gate(pool);
    for (int i = 0; i < MANY; i++)
        pebble_future_unref(schedule(pool, count_run, "abc", 3, 0));
    assert_int_equal(pebble_schedule(pool, count_run, NULL, 0, 0, NULL), PEBBLE_OK);
    pebble_future_unref(first);
    counter_add(&shared->go, 1);
    close_join_free(pool);
    assert_int_equal(atomic_load(&shared->ran), MANY + 1);
}

static void test_unref_before_the_end(void **state) {
    (void)state;
    check_unref_before_end(false);
}

static void test_unref_before_the_end_threads(void **state) {
    (void)state;
    check_unref_before_end(true);
}

static void check_use_after_free_of_pool(bool threads) {
    pebble_pool *pool = pool_of(threads, 1);
    char big[5000] = "big";
    pebble_future *ended = schedule(pool, echo, big, sizeof big, 0);
    assert_int_equal(pebble_future_wait(ended, DEADLINE_NS), PEBBLE_OK);
    pebble_future *running = schedule_gate(pool);
    pebble_future *queued = schedule(pool, count_run, NULL, 0, 0);
    assert_ptr_equal(pebble_future_ref(queued), queued);
    pebble_pool_free(pool);
    if (threads)
        counter_add(&shared->go, 1); /* it is performed to its end */
    assert_int_equal(pebble_future_wait(queued, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_state(queued), PEBBLE_CANCELLED);
    assert_int_equal(pebble_future_wait(running, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(pebble_future_state(running),
                     threads ? PEBBLE_FINISHED : PEBBLE_CANCELLED);
    assert_result(ended, big, sizeof big);
    assert_int_equal(pebble_future_failure(queued)->kind, PEBBLE_ERR_TASK_CANCELLED);
    pebble_future_unref(ended);
    pebble_future_unref(running);
    pebble_future_unref(queued);
    assert_int_equal(pebble_future_state(queued), PEBBLE_CANCELLED);
    pebble_future_unref(queued);
    assert_int_equal(atomic_load(&shared->ran), 0);
}

static void test_futures_outlive_their_pool(void **state) {
    (void)state;
    check_use_after_free_of_pool(false);
}

static void test_futures_outlive_their_pool_threads(void **state) {
    (void)state;
    check_use_after_free_of_pool(true);
}

/* ---- Many threads that wait ---- */

typedef struct waiter {
    pthread_t thread;
    pebble_future *future;
    int64_t timeout_ns;
    pebble_error error;
    bool right;
} waiter;

static void *wait_here(void *context) {
    waiter *self = context;
    const void *data = NULL;
    size_t size = 0;
    self->error = pebble_future_result(self->future, self->timeout_ns, &data, &size);
    self->right = self->error == PEBBLE_OK && size == 1 && *(const char *)data == 'x';
    return NULL;
}

static void start_waiters(waiter *waiters, int count) {
    for (int i = 0; i < count; i++)
        assert_int_equal(pthread_create(&waiters[i].thread, NULL, wait_here, &waiters[i]),
                         0);
}

static void check_many_waiters(bool threads) {
    waiter waiters[WAITERS];
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule_gate(pool);
    for (int i = 0; i < WAITERS; i++)
        waiters[i] = (waiter){
            .future = future,
            .timeout_ns = i % 4 == 3 ? PEBBLE_MILLISECONDS(1 + i)
                                     : (i % 4 == 2 ? DEADLINE_NS : PEBBLE_FOREVER)};
    start_waiters(waiters, WAITERS);
    for (int i = 3; i < WAITERS; i += 4) { /* those who lose patience, maybe the leader */
        pthread_join(waiters[i].thread, NULL);
        assert_int_equal(waiters[i].error, PEBBLE_ERR_TIMEOUT);
    }
    counter_add(&shared->go, 1);
    for (int i = 0; i < WAITERS; i++) {
        if (i % 4 == 3)
            continue;
        pthread_join(waiters[i].thread, NULL);
        assert_true(waiters[i].right);
    }
    pebble_future_unref(future);
    close_join_free(pool);
}

static void test_many_wait_for_one(void **state) {
    (void)state;
    check_many_waiters(false);
}

static void test_many_wait_for_one_threads(void **state) {
    (void)state;
    check_many_waiters(true);
}

/* Each waits for a task of its own, all of one worker; the last one's thread is there first. */
static void test_many_wait_for_one_worker(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (int round = 0; round < 20; round++) {
        waiter waiters[WAITERS] = {{0}};
        memset(shared, 0, sizeof *shared);
        pebble_future *first = schedule_gate(pool);
        for (int i = WAITERS; i-- > 0;)
            waiters[i] = (waiter){.future = schedule(pool, echo, "x", 1, 0),
                                  .timeout_ns = DEADLINE_NS};
        start_waiters(waiters, WAITERS);
        counter_add(&shared->go, 1);
        for (int i = 0; i < WAITERS; i++) {
            pthread_join(waiters[i].thread, NULL);
            assert_true(waiters[i].right);
            pebble_future_unref(waiters[i].future);
        }
        assert_int_equal(pebble_future_wait(first, DEADLINE_NS), PEBBLE_OK);
        pebble_future_unref(first);
    }
    close_join_free(pool);
}

typedef struct client {
    pthread_t thread;
    pebble_pool *pool;
    int wrong;
} client;

static void *round_trips(void *context) {
    client *self = context;
    for (uint32_t i = 0; i < MANY; i++) {
        pebble_future *future = NULL;
        uint32_t copy = ~i;
        if (pebble_schedule(self->pool, echo, &i, sizeof i, 0, &future) != PEBBLE_OK ||
            pebble_future_copy_result(future, DEADLINE_NS, &copy, sizeof copy) !=
                PEBBLE_OK ||
            copy != i)
            self->wrong++;
        pebble_future_unref(future);
    }
    return NULL;
}

static void check_round_trips(bool threads) {
    client clients[4];
    pebble_pool *pool = pool_of(threads, 2);
    for (int i = 0; i < 4; i++) {
        clients[i] = (client){.pool = pool};
        assert_int_equal(
            pthread_create(&clients[i].thread, NULL, round_trips, &clients[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(clients[i].thread, NULL);
        assert_int_equal(clients[i].wrong, 0);
    }
    close_join_free(pool);
}

static void test_round_trips_from_several_threads(void **state) {
    (void)state;
    check_round_trips(false);
    check_round_trips(true);
}

/* ---- Any and all ---- */

static void test_any_and_all_arguments(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    pebble_future *future = schedule(pool, echo, "x", 1, 0);
    pebble_future *list[] = {future, NULL};
    size_t index = 99;
    expect_error(pebble_future_wait_any(NULL, 1, 0, &index), PEBBLE_ERR_INVALID,
                 "pebble_future_wait_any: futures is NULL");
    expect_error(pebble_future_wait_any(list, 0, 0, &index), PEBBLE_ERR_INVALID,
                 "count is 0");
    expect_error(pebble_future_wait_any(list, 2, 0, &index), PEBBLE_ERR_INVALID,
                 "futures[1] is NULL");
    expect_error(pebble_future_wait_any(list, 1, -1, &index), PEBBLE_ERR_INVALID,
                 "timeout_ns is negative");
    expect_error(pebble_future_wait_all(NULL, 1, 0), PEBBLE_ERR_INVALID,
                 "pebble_future_wait_all: futures is NULL");
    expect_error(pebble_future_wait_all(list, 2, 0), PEBBLE_ERR_INVALID,
                 "futures[1] is NULL");
    expect_error(pebble_future_wait_all(list, 1, -1), PEBBLE_ERR_INVALID,
                 "timeout_ns is negative");
    assert_int_equal(index, 99);
    assert_int_equal(pebble_future_wait_all(list, 1, DEADLINE_NS), PEBBLE_OK);
    pebble_future_unref(future);
    close_join_free(pool);
}

static void test_any_and_all_over_two_pools(void **state) {
    size_t index = 99;
    (void)state;
    pebble_pool *processes = pool_of(false, 1), *threads = pool_of(true, 1);
    pebble_future *slow = schedule_gate(processes);
    pebble_future *behind = schedule(processes, echo, "b", 1, 0);
    pebble_future *quick = schedule(threads, echo, "q", 1, 0);
    pebble_future *list[] = {slow, behind, quick, slow, quick};
    assert_int_equal(pebble_future_wait_any(list, 2, 0, &index), PEBBLE_ERR_TIMEOUT);
    int64_t before_ns = os_now_ns();
    assert_int_equal(pebble_future_wait_any(list, 2, PEBBLE_MILLISECONDS(20), &index),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(os_now_ns() - before_ns >= PEBBLE_MILLISECONDS(20));
    assert_int_equal(index, 99);
    assert_int_equal(pebble_future_wait_any(list, 5, DEADLINE_NS, &index), PEBBLE_OK);
    assert_int_equal(index, 2);
    assert_int_equal(pebble_future_wait_any(list, 5, 0, NULL), PEBBLE_OK);
    assert_int_equal(pebble_future_wait_all(list, 5, 0), PEBBLE_ERR_TIMEOUT);
    before_ns = os_now_ns();
    assert_int_equal(pebble_future_wait_all(list, 5, PEBBLE_MILLISECONDS(20)),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(os_now_ns() - before_ns >= PEBBLE_MILLISECONDS(20));
    counter_add(&shared->go, 1);
    assert_int_equal(pebble_future_wait_all(list, 5, DEADLINE_NS), PEBBLE_OK);
    for (int i = 0; i < 5; i++)
        assert_true(pebble_future_done(list[i]));
    assert_int_equal(pebble_future_wait_any(list, 5, 0, &index), PEBBLE_OK);
    assert_int_equal(index, 0);
    pebble_future_unref(slow);
    pebble_future_unref(behind);
    pebble_future_unref(quick);
    close_join_free(processes);
    close_join_free(threads);
}

/* Every one of many ends while somebody waits for any of them. */
static void check_any_drains(bool threads) {
    pebble_future *list[MANY];
    size_t left = MANY, index;
    pebble_pool *pool = pool_of(threads, 2);
    for (size_t i = 0; i < MANY; i++)
        list[i] = schedule(pool, echo, &i, sizeof i, 0);
    while (left > 0) {
        assert_int_equal(pebble_future_wait_any(list, left, DEADLINE_NS, &index),
                         PEBBLE_OK);
        assert_true(index < left);
        assert_true(pebble_future_done(list[index]));
        pebble_future_unref(list[index]);
        list[index] = list[--left];
    }
    close_join_free(pool);
}

static void test_any_of_many_until_none_is_left(void **state) {
    (void)state;
    check_any_drains(false);
    check_any_drains(true);
}

static void *cancel_it(void *future) {
    pebble_future_cancel(future);
    return NULL;
}

static void test_any_is_woken_by_a_cancel(void **state) {
    pthread_t canceller;
    size_t index = 99;
    (void)state;
    pebble_pool *processes = pool_of(false, 1), *threads = pool_of(true, 1);
    pebble_future *running = schedule_gate(processes);
    memset(shared, 0, sizeof *shared);
    pebble_future *other = schedule_gate(threads);
    pebble_future *queued = schedule(threads, echo, NULL, 0, 0);
    pebble_future *list[] = {running, other, queued};
    assert_int_equal(pthread_create(&canceller, NULL, cancel_it, running), 0);
    assert_int_equal(pebble_future_wait_any(list, 2, DEADLINE_NS, &index), PEBBLE_OK);
    assert_int_equal(index, 0);
    pthread_join(canceller, NULL);
    assert_int_equal(pthread_create(&canceller, NULL, cancel_it, queued), 0);
    assert_int_equal(pebble_future_wait_any(list + 1, 2, DEADLINE_NS, &index), PEBBLE_OK);
    assert_int_equal(index, 1);
    pthread_join(canceller, NULL);
    counter_add(&shared->go, 1);
    for (int i = 0; i < 3; i++)
        pebble_future_unref(list[i]);
    close_join_free(processes);
    close_join_free(threads);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(states),
        TEST(states_threads),
        TEST(asking_is_enough),
        TEST(failed_is_finished),
        TEST(wait_with_timeout),
        TEST(wait_with_timeout_threads),
        TEST(null_arguments),
        TEST(signals_do_not_end_a_wait),
        TEST(results),
        TEST(copy_result),
        TEST(copy_result_threads),
        TEST(pid),
        TEST(pid_threads),
        TEST(unref_before_the_end),
        TEST(unref_before_the_end_threads),
        TEST(futures_outlive_their_pool),
        TEST(futures_outlive_their_pool_threads),
        TEST(many_wait_for_one),
        TEST(many_wait_for_one_threads),
        TEST(many_wait_for_one_worker),
        TEST(round_trips_from_several_threads),
        TEST(any_and_all_arguments),
        TEST(any_and_all_over_two_pools),
        TEST(any_of_many_until_none_is_left),
        TEST(any_is_woken_by_a_cancel),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("future", tests, NULL, NULL);
}
