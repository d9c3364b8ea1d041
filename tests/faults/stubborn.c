/* Row 5: 8 tasks that ignore SIGTERM run over a timeout of 1 s. All end when their grace is over, at the same
 * time, and tasks of other workers are done as quickly as before. */
#include "support.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)
#define TIMEOUT_NS PEBBLE_SECONDS(1)
#define GRACE_NS PEBBLE_MILLISECONDS(800)

/* How late an end may be, and how long a round trip may take: other programs run beside this one. */
#define LATE_NS (SANITIZED ? PEBBLE_SECONDS(2) : PEBBLE_MILLISECONDS(400))

enum { STUBBORN = 8, OTHERS = 2, ROUND_TRIPS = 200, LEAST_IN_GRACE = 50 };

static counter *started;

static int setup(void **state) {
    started = shared_memory(sizeof *started);
    return support_setup(state);
}

static int ignore_sigterm(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    signal(SIGTERM, SIG_IGN);
    counter_add(started, 1);
    for (;;)
        pause();
    return 0;
}

/* ---- Round trips ---- */

typedef struct times {
    int64_t all_ns[100000];
    size_t count;
} times;

/* After a while, so that the worker sleeps. */
static void note_round_trip(pebble_pool *pool, times *into) {
    usleep(200);
    int64_t before_ns = os_now_ns();
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    if (into->count < sizeof into->all_ns / sizeof into->all_ns[0])
        into->all_ns[into->count++] = os_now_ns() - before_ns;
}

static int64_t quantile(times *of, size_t percent) {
    qsort(of->all_ns, of->count, sizeof of->all_ns[0], compare_ns);
    return of->all_ns[(of->count - 1) * percent / 100];
}

static void show(const char *when, times *of) {
    print_message("%s: %zu round trips, median %.1f us, 99 %% %.1f us, most %.1f ms\n",
                  when, of->count, (double)quantile(of, 50) / 1e3,
                  (double)quantile(of, 99) / 1e3, (double)quantile(of, 100) / 1e6);
}

/* ---- The test ---- */

static void note_end(pebble_future *future, void *context) {
    (void)future;
    *(int64_t *)context = os_now_ns();
}

static bool all_done(pebble_future *const *futures) {
    for (int i = 0; i < STUBBORN; i++) {
        if (!pebble_future_done(futures[i]))
            return false;
    }
    return true;
}

static void test_all_at_once(void **state) {
    static times before, until_timeout, in_grace;
    pebble_future *futures[STUBBORN];
    int64_t ended_ns[STUBBORN] = {0};
    (void)state;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = STUBBORN + OTHERS,
                                             .termination_grace_ns = GRACE_NS));
    for (int i = 0; i < ROUND_TRIPS; i++)
        note_round_trip(pool, &before);
    int64_t first_ns = os_now_ns();
    for (int i = 0; i < STUBBORN; i++) {
        futures[i] = schedule(pool, ignore_sigterm, NULL, 0, TIMEOUT_NS);
        expect_ok(pebble_future_add_callback(futures[i], note_end, &ended_ns[i]));
    }
    counter_expect(started, STUBBORN);
    int64_t last_ns = os_now_ns();
    while (os_now_ns() < last_ns + TIMEOUT_NS) /* then all have been asked to end */
        note_round_trip(pool, &until_timeout);
    while (!all_done(futures)) {
        note_round_trip(pool, &in_grace);
        assert_true(os_now_ns() < last_ns + DEADLINE_NS);
    }
    for (int i = 0; i < STUBBORN; i++) {
        pid_t pid = pebble_future_pid(futures[i]);
        expect_end(futures[i], PEBBLE_ERR_TASK_TIMEOUT);
        assert_false(process_lives(pid));
    }
    close_join_free(pool); /* and all callbacks have been called */
    show("before", &before);
    show("until the timeout", &until_timeout);
    show("in the grace", &in_grace);
    for (int i = 0; i < STUBBORN; i++)
        assert_in_range(ended_ns[i] - first_ns, TIMEOUT_NS + GRACE_NS,
                        last_ns - first_ns + TIMEOUT_NS + GRACE_NS + LATE_NS);
    assert_in_range(in_grace.count, LEAST_IN_GRACE, SIZE_MAX);
    /* Not beside those before: of as many workers as processors the idle ones spin for a while. */
    assert_true(quantile(&in_grace, 50) <
                2 * quantile(&until_timeout, 50) + LATE_NS / 10000);
    assert_true(quantile(&in_grace, 99) < LATE_NS / 4);
    assert_true(quantile(&in_grace, 100) < LATE_NS);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {TEST(all_at_once)};
    return cmocka_run_group_tests_name("stubborn", tests, NULL, NULL);
}
