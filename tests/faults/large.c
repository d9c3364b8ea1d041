/* Row 4: a worker that is killed, or stopped, while 400 MiB are on their way to it or from it. Another worker
 * goes on with its own tasks meanwhile. */
#include "support.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

/* How late an end may be. */
#define SOON_NS (SANITIZED ? PEBBLE_SECONDS(5) : PEBBLE_SECONDS(2))

/* In which a part of it must have come. */
#define TIMEOUT_NS (SANITIZED ? PEBBLE_SECONDS(3) : PEBBLE_MILLISECONDS(1500))

enum {
    MIB = 1024 * 1024,
    SIZE = (SANITIZED ? 100 : 400) * MIB,
    PART = SIZE / 8, /* by then it is on its way, and far from its end */
    QUICK_TASKS = 50,
};

static counter *sent; /* MiB of a result */

static int setup(void **state) {
    sent = shared_memory(sizeof *sent);
    return support_setup(state);
}

/* ---- Tasks ---- */

static int receive_all(pebble_task *task, const void *input, size_t input_size) {
    (void)input;
    return (int)pebble_task_write(task, &input_size, sizeof input_size);
}

static int send_all(pebble_task *task, const void *input, size_t input_size) {
    static char piece[MIB];
    (void)input, (void)input_size;
    for (int i = 0; i < SIZE / MIB; i++) {
        if (pebble_task_write(task, piece, MIB) != PEBBLE_OK)
            return 1;
        counter_add(sent, 1);
    }
    return 0;
}

/* ---- In the program ---- */

static void count(void *context) {
    counter_add(context, 1);
}

static pebble_future *schedule_input(pebble_pool *pool, const void *input,
                                     counter *released, int64_t timeout_ns) {
    pebble_future *future = NULL;
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    options.function = receive_all;
    options.input = input;
    options.input_size = SIZE;
    options.timeout_ns = timeout_ns;
    options.release_input = count;
    options.release_context = released;
    expect_ok(pebble_schedule_task(pool, &options, &future));
    return future;
}

/* A worker whose memory has grown by so much. */
typedef struct receiver {
    pebble_future *future;
    size_t memory_before;
} receiver;

static bool has_received_part(void *context) {
    receiver *self = context;
    pid_t pid = pebble_future_pid(self->future);
    return pid != 0 && process_memory(pid) > self->memory_before + PART;
}

static size_t memory_of_worker(pebble_pool *pool) {
    pid_t pid;
    size_t count = 0;
    expect_ok(pebble_pool_get_pids(pool, &pid, 1, &count));
    assert_true(count > 0);
    return process_memory(pid);
}

/* On the pool's other worker, if this one does nothing. */
static void expect_works(pebble_pool *pool) {
    for (int n = 0; n < QUICK_TASKS; n++)
        assert_int_equal(take_int(schedule(pool, square, &n, sizeof n, 0)), n * n);
}

typedef enum fault {
    KILLED,
    STOPPED_AND_CANCELLED,
    STOPPED_AND_TIMED_OUT,
    STOPPED_WITH_TIMEOUT
} fault;

static const pebble_error ends[] = {PEBBLE_ERR_TASK_EXPIRED, PEBBLE_ERR_TASK_CANCELLED,
                                    PEBBLE_ERR_TASK_TIMEOUT, PEBBLE_ERR_TASK_CANCELLED};

static int64_t timeout_of(fault what) {
    return what == STOPPED_AND_TIMED_OUT  ? TIMEOUT_NS
           : what == STOPPED_WITH_TIMEOUT ? PEBBLE_SECONDS(60)
                                          : 0;
}

/* The data is on its way. */
static void check_fault(pebble_pool *pool, pebble_future *future, fault what) {
    pid_t pid = pebble_future_pid(future);
    assert_int_equal(kill(pid, what == KILLED ? SIGKILL : SIGSTOP), 0);
    if (what != KILLED) {
        expect_works(pool);
        assert_int_equal(pebble_future_state(future), PEBBLE_RUNNING);
    }
    if (ends[what] == PEBBLE_ERR_TASK_CANCELLED)
        assert_true(pebble_future_cancel(future));
    expect_ok(pebble_future_wait(
        future, SOON_NS + (what == STOPPED_AND_TIMED_OUT ? TIMEOUT_NS : 0)));
    assert_false(process_lives(pid));
    const pebble_failure *failure = pebble_future_failure(future);
    assert_non_null(failure);
    assert_int_equal(failure->pid, pid);
    assert_int_equal(failure->signal, what == KILLED ? SIGKILL : 0);
    expect_end(future, ends[what]);
    expect_works(pool);
}

static pebble_pool *pool_of_two(void) {
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(500)));
    expect_works(pool);
    return pool;
}

static void check_receiving(fault what) {
    counter released = {0};
    pebble_pool *pool = pool_of_two();
    void *input = shared_memory(SIZE);
    memset(input, 'i', SIZE);
    receiver self = {.memory_before = memory_of_worker(pool)};
    self.future = schedule_input(pool, input, &released, timeout_of(what));
    assert_true(wait_until(has_received_part, &self));
    check_fault(pool, self.future, what);
    close_join_free(pool);
    assert_int_equal(counter_value(&released), 1);
}

/* Soon after the end: the worker's channel and what had come of the result go in a thread of their own. */
static bool memory_is_given_back(void *before) {
    return process_memory(getpid()) < *(size_t *)before + SIZE / 8;
}

static void check_sending(fault what) {
    pebble_pool *pool = pool_of_two();
    size_t before = process_memory(getpid());
    pebble_future *future = schedule(pool, send_all, NULL, 0, timeout_of(what));
    counter_expect(sent, PART / MIB);
    check_fault(pool, future, what);
    assert_true(counter_value(sent) < SIZE / MIB);
    if (!SANITIZED) /* which keep what is freed for a while */
        assert_true(wait_until(memory_is_given_back, &before));
    close_join_free(pool);
}

#define EACH(fault_name, what)                                                           \
    static void test_##fault_name##_while_it_receives(void **state) {                    \
        (void)state;                                                                     \
        check_receiving(what);                                                           \
    }                                                                                    \
    static void test_##fault_name##_while_it_sends(void **state) {                       \
        (void)state;                                                                     \
        check_sending(what);                                                             \
    }
EACH(killed, KILLED)
EACH(stopped_then_cancelled, STOPPED_AND_CANCELLED)
EACH(stopped_then_timed_out, STOPPED_AND_TIMED_OUT)
EACH(stopped_with_a_timeout_then_cancelled, STOPPED_WITH_TIMEOUT)

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(killed_while_it_receives),
        TEST(killed_while_it_sends),
        TEST(stopped_then_cancelled_while_it_receives),
        TEST(stopped_then_cancelled_while_it_sends),
        TEST(stopped_then_timed_out_while_it_receives),
        TEST(stopped_then_timed_out_while_it_sends),
        TEST(stopped_with_a_timeout_then_cancelled_while_it_receives),
        TEST(stopped_with_a_timeout_then_cancelled_while_it_sends),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("large", tests, NULL, NULL);
}
