/* map_errors.c - a map whose elements may fail, each in its own way; the rest is right.
 *
 * The specification's map over range(100): the iteration reports an element's error at
 * that element and goes on.
 */
#include "check.h"

#include <pebble.h>

#include <unistd.h>

enum { COUNT = 100, HANGS = 23, EXITS = 42, FAILS = 77 };

static int function(pebble_task *task, const void *input, size_t input_size) {
    int n = *(const int *)input;
    volatile int turns = 0;

    if (n == HANGS)
        for (;;)
            turns++;
    if (n == EXITS)
        _exit(5);
    if (n == FAILS)
        return pebble_task_fail(task, n, "%d is not a number that I like", n);
    return (int)pebble_task_write(task, input, input_size);
}

/* The error that element n is to end with. */
static pebble_error expected(int n) {
    switch (n) {
    case HANGS:
        return PEBBLE_ERR_TASK_TIMEOUT;
    case EXITS:
        return PEBBLE_ERR_TASK_EXPIRED;
    case FAILS:
        return PEBBLE_ERR_TASK_FAILED;
    default:
        return PEBBLE_OK;
    }
}

int main(void) {
    int items[COUNT];
    int right = 0;
    pebble_pool *pool;
    pebble_map *map;

    for (int i = 0; i < COUNT; i++)
        items[i] = i;
    TRY(pebble_process_pool_new(NULL, &pool));
    TRY(pebble_pool_map(pool, function, items, sizeof *items, COUNT, 1, PEBBLE_SECONDS(1),
                        &map));

    for (int n = 0;; n++) {
        const void *data;
        size_t size;
        pebble_error error = pebble_map_next(map, PEBBLE_FOREVER, &data, &size);
        const pebble_failure *failure = pebble_map_failure(map);

        if (error == PEBBLE_ERR_END) {
            EXPECT(n == COUNT);
            break;
        }
        EXPECT(n < COUNT && error == expected(n));
        if (error == PEBBLE_OK) {
            EXPECT(size == sizeof n && *(const int *)data == n);
            right++;
        } else if (error == PEBBLE_ERR_TASK_TIMEOUT) {
            printf("function(%d) took longer than %.0f seconds\n", n,
                   (double)failure->timeout_ns / 1e9);
        } else if (error == PEBBLE_ERR_TASK_EXPIRED) {
            printf("function(%d): %s. Exit code: %d\n", n, failure->message,
                   failure->exit_code);
        } else {
            printf("function(%d) returned error %d: %s\n", n, failure->code,
                   failure->message);
        }
    }
    printf("%d of %d elements are right, in order\n", right, COUNT);

    pebble_map_unref(map);
    check_finish(pool);
    return 0;
}
