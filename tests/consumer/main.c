/* A program that uses the library as installed, and nothing else of this tree. */
#include <pebble.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

PEBBLE_TASK(long, add, (long, a), (long, b)) {
    if (a < 0)
        return pebble_task_fail(task, 3, "a is %ld", a);
    return a + b;
}

/* Static, crashing: the library finds its name in the program as built by a consumer. */
static int wild(pebble_task *task, const void *input, size_t input_size) {
    (void)task;
    (void)input;
    (void)input_size;
    volatile int *volatile nowhere = (volatile int *)8;
    *nowhere = 1;
    return 0;
}

static void require(int good, const char *what) {
    if (good)
        return;
    printf("failed: %s (%s)\n", what, pebble_error_message());
    exit(1);
}

static void run_tasks(pebble_pool *pool) {
    pebble_future *future;
    long sum = 0;
    require(add_schedule(pool, PEBBLE_SECONDS(30), &future, 40, 2) == PEBBLE_OK,
            "schedule");
    require(add_result(future, PEBBLE_SECONDS(30), &sum) == PEBBLE_OK, "result");
    require(sum == 42, "sum");
    pebble_future_unref(future);

    require(add_schedule(pool, 0, &future, -1, 2) == PEBBLE_OK,
            "schedule a failing task");
    require(add_result(future, PEBBLE_SECONDS(30), &sum) == PEBBLE_ERR_TASK_FAILED,
            "failure");
    require(strcmp(pebble_future_failure(future)->message, "a is -1") == 0, "message");
    pebble_future_unref(future);

    require(pebble_schedule(pool, wild, NULL, 0, 0, &future) == PEBBLE_OK,
            "schedule a crash");
    require(pebble_future_result(future, PEBBLE_SECONDS(30), NULL, NULL) ==
                PEBBLE_ERR_TASK_EXPIRED,
            "crash");
    const pebble_failure *failure = pebble_future_failure(future);
    require(failure->signal != 0 && failure->pid > 0, "how it crashed");
    printf("%s\n%s", failure->message,
           failure->backtrace != NULL ? failure->backtrace : "");
    pebble_future_unref(future);
}

int main(void) {
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    pebble_pool *pool;
    pebble_worker_main();
    require(strcmp(pebble_version(), PEBBLE_VERSION) == 0, "version");
    options.max_workers = 1;
    require(pebble_process_pool_new(&options, &pool) == PEBBLE_OK, "pool");
    run_tasks(pool);
    require(pebble_pool_close(pool) == PEBBLE_OK, "close");
    require(pebble_pool_join(pool, PEBBLE_SECONDS(30)) == PEBBLE_OK, "join");
    pebble_pool_free(pool);
    printf("the installed pebble %s works\n", pebble_version());
    return 0;
}
