/* ours_tasks.c - our pools: many no-op tasks, and round trips of one. */
#include "ours.h"

#include <stdlib.h>

void ours_check(pebble_error error, const char *what) {
    if (error != PEBBLE_OK)
        bench_fail("%s: %s: %s", what, pebble_error_name(error), pebble_error_message());
}

pebble_pool *ours_open(bool processes, int workers) {
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    options.max_workers = workers;
    pebble_pool *pool = NULL;
    ours_check(
        (processes ? pebble_process_pool_new : pebble_thread_pool_new)(&options, &pool),
        "pool");
    return pool;
}

void ours_close(pebble_pool *pool) {
    ours_check(pebble_pool_stop(pool), "stop");
    ours_check(pebble_pool_join(pool, PEBBLE_SECONDS(10)), "join");
    pebble_pool_free(pool);
}

int ours_no_op(pebble_task *task, const void *input, size_t input_size) {
    (void)task;
    (void)input;
    (void)input_size;
    return 0;
}

void ours_no_ops(pebble_pool *pool, pebble_future **futures, long count) {
    for (long i = 0; i < count; i++)
        ours_check(pebble_schedule(pool, ours_no_op, NULL, 0, 0, &futures[i]),
                   "schedule");
    for (long i = 0; i < count; i++) {
        ours_check(pebble_future_result(futures[i], PEBBLE_FOREVER, NULL, NULL),
                   "result");
        pebble_future_unref(futures[i]);
    }
}

static int echo_long(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

/* As ours_no_ops(), each with a number that it sends back. */
static void echoes(pebble_pool *pool, pebble_future **futures, long count) {
    for (long i = 0; i < count; i++)
        ours_check(pebble_schedule(pool, echo_long, &i, sizeof i, 0, &futures[i]),
                   "schedule");
    for (long i = 0; i < count; i++) {
        long result = -1;
        ours_check(
            pebble_future_copy_result(futures[i], PEBBLE_FOREVER, &result, sizeof result),
            "result");
        if (result != i)
            bench_fail("task %ld: result is %ld", i, result);
        pebble_future_unref(futures[i]);
    }
}

typedef struct burst_context {
    pebble_pool *pool;
    pebble_future **futures;
    void (*perform)(pebble_pool *pool, pebble_future **futures, long count);
} burst_context;

static void burst(void *argument, long count) {
    burst_context *context = argument;
    context->perform(context->pool, context->futures, count);
}

static void bursts(bool processes, long count,
                   void (*perform)(pebble_pool *pool, pebble_future **futures,
                                   long count)) {
    size_t room = (size_t)(count > 2000 ? count : 2000);
    burst_context context = {ours_open(processes, bench_worker_count),
                             bench_allocate(room * sizeof(pebble_future *)), perform};
    bench_bursts(burst, &context, count);
    ours_close(context.pool);
    free(context.futures);
}

void bench_ours_process(long argument) {
    bursts(true, argument, ours_no_ops);
}

void bench_ours_process_data(long argument) {
    bursts(true, argument, echoes);
}

void bench_ours_thread(long argument) {
    bursts(false, argument, ours_no_ops);
}

void bench_ours_thread_data(long argument) {
    bursts(false, argument, echoes);
}

static void trip(void *pool) {
    pebble_future *future;
    ours_no_ops(pool, &future, 1);
}

static void trips(bool processes, int64_t pause_ns) {
    pebble_pool *pool = ours_open(processes, bench_worker_count);
    bench_trips(trip, pool, bench_repetitions(pause_ns ? 50 : 20000), pause_ns);
    ours_close(pool);
}

void bench_ours_process_trip(long argument) {
    trips(true, argument);
}

void bench_ours_thread_trip(long argument) {
    trips(false, argument);
}
