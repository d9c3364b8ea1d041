/* chunked_map.c - a map over a million elements, as few large tasks, not many small ones.
 *
 * The specification's example: one chunk for each processor.
 */
#include "check.h"

#include <pebble.h>

#include <string.h>
#include <time.h>

enum { COUNT = 1000000 };

static int function(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static double seconds_now(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(void) {
    int *elements = malloc(COUNT * sizeof *elements);
    int *results = calloc(COUNT, sizeof *results);
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    size_t chunk_size;
    pebble_pool *pool;
    pebble_map *map;
    double start;

    EXPECT(elements != NULL && results != NULL);
    for (int i = 0; i < COUNT; i++)
        elements[i] = i;

    TRY(pebble_process_pool_new(NULL, &pool));
    TRY(pebble_pool_get_info(pool, &info)); /* max_workers: the processors */
    chunk_size = (size_t)((COUNT + info.max_workers - 1) / info.max_workers);

    /* The timeout is that of a chunk, so its size is to be considered. */
    start = seconds_now();
    TRY(pebble_pool_map(pool, function, elements, sizeof *elements, COUNT, chunk_size,
                        PEBBLE_MILLISECONDS(1) * (int64_t)chunk_size, &map));
    for (size_t i = 0; i < COUNT; i++) {
        const void *data;
        TRY(pebble_map_next(map, PEBBLE_FOREVER, &data, NULL));
        results[i] = *(const int *)data;
    }
    EXPECT(pebble_map_next(map, PEBBLE_FOREVER, NULL, NULL) == PEBBLE_ERR_END);
    printf("%d elements in chunks of %zu, %d workers: %.3f s\n", COUNT, chunk_size,
           info.max_workers, seconds_now() - start);

    EXPECT(memcmp(results, elements, COUNT * sizeof *elements) == 0);
    printf("the results equal the elements\n");

    pebble_map_unref(map);
    check_finish(pool);
    free(elements);
    free(results);
    return 0;
}
