/* ours_data.c - our process pool: large inputs and results. */
#include "ours.h"

#include <stdlib.h>
#include <string.h>

enum { warm_up_trips = 5 };

/* The worker's own buffer, warm from the second task on. */
static unsigned char *source;
static size_t source_size;

static int give(pebble_task *task, const void *input, size_t input_size) {
    size_t size;
    if (input_size != sizeof size)
        return 1;
    memcpy(&size, input, sizeof size);
    if (source_size < size) {
        free(source);
        source = bench_allocate(size);
        source_size = size;
        memset(source, 'x', size);
    }
    return pebble_task_write(task, source, size) == PEBBLE_OK ? 0 : 1;
}

static int take(pebble_task *task, const void *input, size_t input_size) {
    const unsigned char *bytes = input;
    (void)task;
    return bytes[0] == 'x' && bytes[input_size - 1] == 'x' ? 0 : 1;
}

static int give_back(pebble_task *task, const void *input, size_t input_size) {
    return pebble_task_write(task, input, input_size) == PEBBLE_OK ? 0 : 1;
}

/* The caller's buffer lives as long as the process. */
static void keep(void *context) {
    (void)context;
}

static void trip(pebble_pool *pool, const pebble_task_options *options,
                 size_t result_size) {
    pebble_future *future;
    const void *data;
    size_t size;
    ours_check(pebble_schedule_task(pool, options, &future), "schedule");
    ours_check(pebble_future_result(future, PEBBLE_FOREVER, &data, &size), "result");
    const volatile unsigned char *bytes = data;
    if (size != result_size || (size && (bytes[0] != 'x' || bytes[size - 1] != 'x')))
        bench_fail("a wrong result of %zu bytes", size);
    pebble_future_unref(future);
}

/* One worker, so that it is always the same buffer that is warm. */
static void trips(const pebble_task_options *options, size_t result_size, double bytes,
                  size_t count) {
    pebble_pool *pool = ours_open(true, 1);
    double *rates = bench_allocate(count * sizeof *rates);
    for (size_t i = 0; i < warm_up_trips && i < count; i++)
        trip(pool, options, result_size);
    for (size_t i = 0; i < count; i++) {
        int64_t before_ns = bench_now_ns();
        trip(pool, options, result_size);
        rates[i] = bytes * 1e9 / (double)(bench_now_ns() - before_ns);
    }
    bench_report("bytes_per_second", bench_median(rates, count));
    free(rates);
    ours_close(pool);
}

static pebble_task_options options_with_input(pebble_function function, size_t size) {
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    unsigned char *input = bench_allocate(size);
    memset(input, 'x', size);
    options.function = function;
    options.input = input;
    options.input_size = size;
    options.release_input = keep;
    return options;
}

void bench_ours_result(long argument) {
    size_t size = (size_t)argument;
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    options.function = give;
    options.input = &size;
    options.input_size = sizeof size;
    trips(&options, size, (double)size, bench_repetitions(500));
}

void bench_ours_input(long argument) {
    pebble_task_options options = options_with_input(take, (size_t)argument);
    trips(&options, 0, (double)argument, bench_repetitions(500));
}

void bench_ours_both(long argument) {
    pebble_task_options options = options_with_input(give_back, (size_t)argument);
    trips(&options, (size_t)argument, 2.0 * (double)argument, bench_repetitions(10));
}
