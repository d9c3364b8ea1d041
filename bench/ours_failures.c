/* ours_failures.c - our process pool: how fast timeouts and crashes are dealt with. */
#include "ours.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>

enum { failures = 20 };

static int loop_for_ever(pebble_task *task, const void *input, size_t input_size) {
    (void)task;
    (void)input;
    (void)input_size;
    for (volatile unsigned turns = 0;; turns++)
        ;
    return 0;
}

/* The pause lets the workers fall asleep and the pool make up for the worker that was
 * lost: failures one after another without a pause are another subject. */
static void warm_up(pebble_pool *pool) {
    pebble_future *warm_up[16];
    ours_no_ops(pool, warm_up, 16);
    bench_sleep_ns(20 * 1000000);
}

static void expect(pebble_future *future, pebble_error expected) {
    pebble_error error = pebble_future_result(future, PEBBLE_SECONDS(10), NULL, NULL);
    if (error != expected)
        bench_fail("the task ended with %s, not %s", pebble_error_name(error),
                   pebble_error_name(expected));
    pebble_future_unref(future);
}

void bench_ours_timeout(long timeout_ns) {
    pebble_pool *pool = ours_open(true, bench_worker_count);
    double late_ns[failures];
    size_t count = bench_repetitions(failures);
    for (size_t i = 0; i < count; i++) {
        pebble_future *future;
        warm_up(pool);
        int64_t start_ns = bench_now_ns();
        ours_check(pebble_schedule(pool, loop_for_ever, NULL, 0, timeout_ns, &future),
                   "schedule");
        ours_check(pebble_future_wait(future, PEBBLE_SECONDS(10)), "wait");
        late_ns[i] = (double)(bench_now_ns() - start_ns - timeout_ns);
        expect(future, PEBBLE_ERR_TASK_TIMEOUT);
    }
    bench_report("worst_ns", bench_worst(late_ns, count));
    bench_report("median_ns", bench_median(late_ns, count));
    ours_close(pool);
}

/* Where a task stamps the time of its crash: inherited by the workers. */
static atomic_int_least64_t *crash_ns;

static int crash(pebble_task *task, const void *input, size_t input_size) {
    static int *volatile nowhere;
    long kind;
    (void)task;
    if (input_size != sizeof kind)
        return 1;
    memcpy(&kind, input, sizeof kind);
    atomic_store(crash_ns, bench_now_ns());
    if (kind == 0)
        raise(SIGKILL);
    else
        *(volatile int *)nowhere = 1;
    return 1;
}

void bench_ours_crash(long kind) {
    crash_ns = bench_share(sizeof *crash_ns);
    pebble_pool *pool = ours_open(true, 1);
    double ended_ns[failures], replaced_ns[failures];
    size_t count = bench_repetitions(failures);
    for (size_t i = 0; i < count; i++) {
        pebble_future *future, *next;
        warm_up(pool);
        ours_check(pebble_schedule(pool, crash, &kind, sizeof kind, 0, &future),
                   "schedule");
        ours_check(pebble_future_wait(future, PEBBLE_SECONDS(10)), "wait");
        int64_t end_ns = bench_now_ns();
        ours_no_ops(pool, &next, 1);
        replaced_ns[i] = (double)(bench_now_ns() - end_ns);
        ended_ns[i] = (double)(end_ns - atomic_load(crash_ns));
        expect(future, PEBBLE_ERR_TASK_EXPIRED);
    }
    bench_report("replaced_worst_ns", bench_worst(replaced_ns, count));
    bench_report("replaced_ns", bench_median(replaced_ns, count));
    bench_report("ended_ns", bench_median(ended_ns, count));
    ours_close(pool);
}
