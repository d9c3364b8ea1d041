/* fibonacci.c - compute until it takes too long, then cancel the rest.
 *
 * The specification's example. Its timeout is 10 s, here it is 1 s for those who wait.
 */
#include "check.h"

#include <pebble.h>

enum { COUNT = 50 };

static uint64_t fibonacci(unsigned n) {
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static int fibonacci_task(pebble_task *task, const void *input, size_t input_size) {
    uint64_t number = fibonacci(*(const unsigned *)input);

    (void)input_size;
    return (int)pebble_task_write(task, &number, sizeof number);
}

int main(void) {
    unsigned items[COUNT];
    unsigned computed = 0;
    uint64_t number, next = 0, after_next = 1;
    const void *data;
    pebble_pool *pool;
    pebble_map *map;
    pebble_error error;

    for (unsigned i = 0; i < COUNT; i++)
        items[i] = i;
    TRY(pebble_process_pool_new(NULL, &pool));
    TRY(pebble_pool_map(pool, fibonacci_task, items, sizeof *items, COUNT, 1,
                        PEBBLE_SECONDS(1), &map));

    while ((error = pebble_map_next(map, PEBBLE_FOREVER, &data, NULL)) == PEBBLE_OK) {
        number = *(const uint64_t *)data;
        printf("%llu ", (unsigned long long)number);
        EXPECT(number == next);
        next = after_next;
        after_next += number;
        computed++;
    }
    EXPECT(error == PEBBLE_ERR_TASK_TIMEOUT);
    printf("\ntimeout after %u numbers: aborting remaining computations\n", computed);

    EXPECT(pebble_map_cancel(map));
    TRY(pebble_map_wait(map, PEBBLE_FOREVER)); /* all are ended, the running ones too */
    EXPECT(!pebble_map_cancel(map));

    pebble_map_unref(map);
    check_finish(pool);
    return 0;
}
