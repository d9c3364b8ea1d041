/* A short walk through the library for valgrind: everything is made, used and freed. */
#include <pebble.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* valgrind slows a task's start down: none of these limits is meant to be met. */
static const int64_t limit_ns = PEBBLE_SECONDS(60);

static void require(bool good, const char *what) {
    if (good)
        return;
    printf("failed: %s (%s)\n", what, pebble_error_message());
    exit(1);
}

static int echo(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static int fail(pebble_task *task, const void *input, size_t input_size) {
    (void)input;
    (void)input_size;
    return pebble_task_fail(task, 5, "as wanted");
}

/* Writes more than any ring holds. */
static int write_much(pebble_task *task, const void *input, size_t input_size) {
    unsigned char piece[4096];
    size_t pieces;
    (void)input_size;
    memcpy(&pieces, input, sizeof pieces);
    memset(piece, 'x', sizeof piece);
    for (size_t i = 0; i < pieces; i++) {
        if (pebble_task_write(task, piece, sizeof piece) != PEBBLE_OK)
            return 1;
    }
    return 0;
}

PEBBLE_TASK(int, square, (int, number)) {
    (void)task;
    return number * number;
}

static int square_item(pebble_task *task, const void *input, size_t input_size) {
    int number;
    if (input_size != sizeof number)
        return 1;
    memcpy(&number, input, sizeof number);
    number *= number;
    return (int)pebble_task_write(task, &number, sizeof number);
}

static int initialize(const void *input, size_t input_size) {
    return input_size == 4 && memcmp(input, "init", 4) == 0 ? 0 : 1;
}

static void count_end(pebble_future *future, void *context) {
    _Atomic int *count = context;
    (void)future;
    atomic_fetch_add(count, 1);
}

static void use_futures(pebble_pool *pool) {
    enum { COUNT = 20 };
    static _Atomic int ended;
    pebble_future *futures[COUNT];
    size_t first;
    atomic_store(&ended, 0);
    for (int i = 0; i < COUNT; i++) {
        require(square_schedule(pool, 0, &futures[i], i) == PEBBLE_OK, "schedule");
        require(pebble_future_add_callback(futures[i], count_end, &ended) == PEBBLE_OK,
                "callback");
    }
    require(pebble_future_wait_any(futures, COUNT, limit_ns, &first) == PEBBLE_OK, "any");
    require(first < COUNT && pebble_future_done(futures[first]),
            "the one that has ended");
    require(pebble_future_wait_all(futures, COUNT, limit_ns) == PEBBLE_OK, "all");
    for (int i = 0; i < COUNT; i++) {
        int result = 0;
        require(square_result(futures[i], limit_ns, &result) == PEBBLE_OK, "result");
        require(result == i * i, "square");
        pebble_future_unref(futures[i]);
    }
}

static void use_failure(pebble_pool *pool) {
    pebble_future *future;
    require(pebble_schedule(pool, fail, NULL, 0, 0, &future) == PEBBLE_OK, "schedule");
    require(pebble_future_result(future, limit_ns, NULL, NULL) == PEBBLE_ERR_TASK_FAILED,
            "failure");
    require(pebble_future_failure(future)->code == 5, "code");
    require(strcmp(pebble_future_failure(future)->message, "as wanted") == 0, "message");
    pebble_future_unref(future);
    require(pebble_schedule(pool, NULL, NULL, 0, 0, &future) == PEBBLE_ERR_INVALID,
            "NULL");
}

/* Results and inputs larger than a ring. */
static void use_large_data(pebble_pool *pool) {
    const size_t pieces = 256, size = pieces * 4096;
    pebble_future *future;
    const void *data;
    size_t result_size;
    unsigned char *input = malloc(size);
    require(input != NULL, "memory");
    memset(input, 'y', size);
    require(pebble_schedule(pool, write_much, &pieces, sizeof pieces, 0, &future) ==
                PEBBLE_OK,
            "schedule");
    require(pebble_future_result(future, limit_ns, &data, &result_size) == PEBBLE_OK,
            "result");
    require(result_size == size && ((const char *)data)[size - 1] == 'x', "large result");
    pebble_future_unref(future);
    require(pebble_schedule(pool, echo, input, size, 0, &future) == PEBBLE_OK,
            "schedule");
    require(pebble_future_result(future, limit_ns, &data, &result_size) == PEBBLE_OK,
            "result");
    require(result_size == size && memcmp(data, input, size) == 0, "large echo");
    pebble_future_unref(future);
    free(input);
}

static void use_map(pebble_pool *pool) {
    int numbers[10];
    pebble_map *map;
    const void *data;
    size_t size;
    for (int i = 0; i < 10; i++)
        numbers[i] = i;
    require(pebble_pool_map(pool, square_item, numbers, sizeof numbers[0], 10, 3, 0,
                            &map) == PEBBLE_OK,
            "map");
    for (int i = 0; i < 10; i++) {
        int square;
        require(pebble_map_next(map, limit_ns, &data, &size) == PEBBLE_OK, "next");
        require(size == sizeof square, "size of an element");
        memcpy(&square, data, sizeof square);
        require(square == i * i, "element");
    }
    require(pebble_map_next(map, limit_ns, &data, &size) == PEBBLE_ERR_END,
            "end of the map");
    pebble_map_unref(map);
}

static void end_pool(pebble_pool *pool) {
    require(pebble_pool_join(pool, 0) == PEBBLE_ERR_ACTIVE, "join too early");
    require(pebble_pool_close(pool) == PEBBLE_OK, "close");
    require(pebble_pool_join(pool, limit_ns) == PEBBLE_OK, "join");
    pebble_pool_free(pool);
}

static void use_pool(bool threads) {
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    pebble_pool *pool;
    options.max_workers = 2;
    options.initializer = initialize;
    options.initializer_input = "init";
    options.initializer_input_size = 4;
    options.name = "valgrind";
    require((threads ? pebble_thread_pool_new(&options, &pool)
                     : pebble_process_pool_new(&options, &pool)) == PEBBLE_OK,
            "pool");
    use_futures(pool);
    use_failure(pool);
    use_large_data(pool);
    use_map(pool);
    end_pool(pool);
}

/* A pool that is stopped while futures are queued, and freed before they are. */
static void use_stop(bool threads) {
    enum { COUNT = 8 };
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    pebble_future *futures[COUNT];
    pebble_pool *pool;
    options.max_workers = 1;
    require((threads ? pebble_thread_pool_new(&options, &pool)
                     : pebble_process_pool_new(&options, &pool)) == PEBBLE_OK,
            "pool");
    for (int i = 0; i < COUNT; i++)
        require(square_schedule(pool, 0, &futures[i], i) == PEBBLE_OK, "schedule");
    require(pebble_pool_stop(pool) == PEBBLE_OK, "stop");
    require(pebble_pool_join(pool, limit_ns) == PEBBLE_OK, "join");
    pebble_pool_free(pool);
    for (int i = 0; i < COUNT; i++) {
        require(pebble_future_done(futures[i]), "every future ends");
        pebble_future_unref(futures[i]);
    }
}

static void use_single_calls(void) {
    pebble_future *future;
    const void *data;
    size_t size;
    require(pebble_concurrent_process(echo, "abc", 3, NULL, &future) == PEBBLE_OK,
            "process");
    require(pebble_future_result(future, limit_ns, &data, &size) == PEBBLE_OK, "result");
    require(size == 3 && memcmp(data, "abc", 3) == 0, "echo");
    pebble_future_unref(future);
    require(pebble_concurrent_thread(echo, "abc", 3, NULL, &future) == PEBBLE_OK,
            "thread");
    require(pebble_future_result(future, limit_ns, &data, &size) == PEBBLE_OK, "result");
    require(size == 3 && memcmp(data, "abc", 3) == 0, "echo");
    pebble_future_unref(future);
}

static void start(void *context) {
    pebble_queue *queue = context;
    require(pebble_queue_put(queue, queue, limit_ns) == PEBBLE_OK, "put");
}

static void use_queue_and_thread(void) {
    pebble_queue *queue, *ready_queue;
    pebble_thread *thread, *ready_thread;
    void *item;
    size_t count;
    require(pebble_queue_new(1, &queue) == PEBBLE_OK, "queue");
    require(pebble_thread_start(start, queue, "short", &thread) == PEBBLE_OK, "thread");
    require(pebble_wait_for_queues(&queue, 1, limit_ns, &ready_queue, &count) ==
                    PEBBLE_OK &&
                count == 1,
            "wait for queues");
    require(pebble_queue_get(queue, limit_ns, &item) == PEBBLE_OK && item == queue,
            "get");
    require(pebble_wait_for_threads(&thread, 1, limit_ns, &ready_thread, &count) ==
                    PEBBLE_OK &&
                count == 1,
            "wait for threads");
    require(pebble_thread_join(thread, limit_ns) == PEBBLE_OK, "join");
    pebble_thread_unref(thread);
    pebble_queue_free(queue);
}

int main(void) {
    pebble_worker_main();
    use_pool(false);
    use_pool(true);
    use_stop(false);
    use_stop(true);
    use_single_calls();
    use_queue_and_thread();
    return 0;
}
