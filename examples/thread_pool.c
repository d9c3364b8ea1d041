/* thread_pool.c - a pool of threads: tasks that work on the program's own memory.
 *
 * It is used as a pool of processes, and inputs may point to whatever the program has. But
 * nothing can end a thread from outside: there are no timeouts, and stop lets the task that
 * runs finish and drops those that wait for their turn.
 */
#include "check.h"

#include <pebble.h>

enum { ROWS = 1000, COLUMNS = 1000, CHUNK_SIZE = 50, TASKS = 4 };

/* A part of the table, where it is: nothing is copied but this. */
struct part {
    const int *numbers;
    size_t count;
};

static int sum(pebble_task *task, const void *input, size_t input_size) {
    const struct part *part = input;
    int64_t total = 0;

    (void)input_size;
    for (size_t i = 0; i < part->count; i++)
        total += part->numbers[i];
    return (int)pebble_task_write(task, &total, sizeof total);
}

/* The sum of the table as one task, and of each of its rows as a map in chunks. */
static void sum_table(const int *table) {
    struct part all = {table, (size_t)ROWS * COLUMNS}, rows[ROWS];
    int64_t total, total_of_rows = 0;
    const void *data;
    pebble_pool *pool;
    pebble_future *future;
    pebble_map *map;

    for (size_t i = 0; i < ROWS; i++)
        rows[i] = (struct part){table + i * COLUMNS, COLUMNS};
    TRY(pebble_thread_pool_new(NULL, &pool));
    TRY(pebble_schedule(pool, sum, &all, sizeof all, 0, &future));
    TRY(pebble_pool_map(pool, sum, rows, sizeof *rows, ROWS, CHUNK_SIZE, 0, &map));

    TRY(pebble_future_copy_result(future, PEBBLE_FOREVER, &total, sizeof total));
    for (size_t i = 0; i < ROWS; i++) {
        TRY(pebble_map_next(map, PEBBLE_FOREVER, &data, NULL));
        total_of_rows += *(const int64_t *)data;
    }
    EXPECT(pebble_map_next(map, PEBBLE_FOREVER, NULL, NULL) == PEBBLE_ERR_END);
    printf("the sum of all is %lld, that of %d rows, %d to a task, %lld\n",
           (long long)total, ROWS, CHUNK_SIZE, (long long)total_of_rows);
    EXPECT(total == (int64_t)ROWS * COLUMNS * (ROWS * COLUMNS - 1) / 2);
    EXPECT(total_of_rows == total);

    pebble_map_unref(map);
    pebble_future_unref(future);
    check_finish(pool);
}

struct office {
    pebble_queue *started; /* a task puts something in here, */
    pebble_queue *words;   /* and then waits for a word */
};

static int work(pebble_task *task, const void *input, size_t input_size) {
    const struct office *office = input;
    void *word;

    (void)task, (void)input_size;
    TRY(pebble_queue_put(office->started, "started", PEBBLE_FOREVER));
    TRY(pebble_queue_get(office->words, PEBBLE_FOREVER, &word));
    return 0;
}

/* Ends a pool while one task runs and the others are queued: how many are performed? */
static int end_pool(pebble_error (*end)(pebble_pool *pool), const char *name) {
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    struct office office;
    pebble_pool *pool;
    pebble_future *futures[TASKS];
    int performed = 0, cancelled = 0;
    void *item;

    TRY(pebble_queue_new(0, &office.started));
    TRY(pebble_queue_new(0, &office.words));
    options.max_workers = 1;
    TRY(pebble_thread_pool_new(&options, &pool));
    for (int i = 0; i < TASKS; i++)
        TRY(pebble_schedule(pool, work, &office, sizeof office, 0, &futures[i]));
    TRY(pebble_queue_get(office.started, PEBBLE_FOREVER, &item));
    EXPECT(!pebble_future_cancel(futures[0])); /* it runs */

    TRY(end(pool));
    EXPECT(!pebble_pool_active(pool));
    EXPECT(pebble_schedule(pool, work, &office, sizeof office, 0, NULL) ==
           PEBBLE_ERR_NOT_ACTIVE);
    EXPECT(pebble_pool_join(pool, 0) == PEBBLE_ERR_TIMEOUT); /* it still runs */
    for (int i = 0; i < TASKS; i++)
        TRY(pebble_queue_put(office.words, "go", PEBBLE_FOREVER));
    TRY(pebble_pool_join(pool, PEBBLE_FOREVER));

    EXPECT(pebble_future_result(futures[0], 0, NULL, NULL) == PEBBLE_OK);
    for (int i = 0; i < TASKS; i++) {
        performed += pebble_future_state(futures[i]) == PEBBLE_FINISHED;
        cancelled += pebble_future_state(futures[i]) == PEBBLE_CANCELLED;
        pebble_future_unref(futures[i]);
    }
    printf("%s, with 1 task running and %d queued: %d performed, %d cancelled\n", name,
           TASKS - 1, performed, cancelled);
    EXPECT(performed + cancelled == TASKS);

    pebble_pool_free(pool);
    pebble_queue_free(office.started);
    pebble_queue_free(office.words);
    return performed;
}

int main(void) {
    int *table = malloc(sizeof *table * ROWS * COLUMNS);

    EXPECT(table != NULL);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        table[i] = i;
    sum_table(table);
    free(table);

    EXPECT(end_pool(pebble_pool_close, "close") == TASKS);
    EXPECT(end_pool(pebble_pool_stop, "stop") == 1);
    return 0;
}
