/* uv.c - libuv's uv_queue_work: a request each, its end reported to the loop in the
 * caller. */
#include "bench.h"

#include <stdlib.h>
#include <uv.h>

typedef struct work_item {
    uv_work_t request;
    long argument;
    long result;
    bool ended;
} work_item;

static void perform(uv_work_t *request) {
    work_item *item = request->data;
    item->result = item->argument;
}

static void end(uv_work_t *request, int status) {
    work_item *item = request->data;
    item->ended = status == 0;
}

static void burst(void *context, long count) {
    work_item *items = context;
    uv_loop_t *loop = uv_default_loop();
    for (long i = 0; i < count; i++) {
        items[i].argument = i;
        items[i].result = -1;
        items[i].ended = false;
        items[i].request.data = &items[i];
        if (uv_queue_work(loop, &items[i].request, perform, end))
            bench_fail("uv_queue_work failed");
    }
    uv_run(loop, UV_RUN_DEFAULT);
    for (long i = 0; i < count; i++)
        if (!items[i].ended || items[i].result != i)
            bench_fail("task %ld: result is %ld", i, items[i].result);
}

void bench_uv(long argument) {
    char workers[16];
    snprintf(workers, sizeof workers, "%d", bench_worker_count);
    setenv("UV_THREADPOOL_SIZE", workers, 1);
    work_item *items =
        bench_allocate((size_t)(argument > 2000 ? argument : 2000) * sizeof *items);
    bench_bursts(burst, items, argument);
    free(items);
}
