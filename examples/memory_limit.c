/* memory_limit.c - control what the workers consume: an initializer limits their memory.
 *
 * The specification's example: a task that allocates over the limit ends with an error,
 * and the worker is fit for the next.
 */
#include "check.h"
#include "memory_growth.h"

#include <pebble.h>

#include <errno.h>
#include <string.h>

#define MIB ((size_t)1024 * 1024)

/* Builds a string of so many bytes, 1 MiB at a time. */
static int build_string(pebble_task *task, const void *input, size_t input_size) {
    const size_t *wanted = input;
    char *string = NULL;
    size_t size = 0;

    (void)input_size;
    while (size < *wanted) {
        char *longer = realloc(string, size + MIB);
        if (longer == NULL) {
            free(string);
            return pebble_task_fail(task, ENOMEM, "out of memory after %zu MiB",
                                    size / MIB);
        }
        string = longer;
        memset(string + size, 'A', MIB);
        size += MIB;
    }
    free(string);
    return (int)pebble_task_write(task, &size, sizeof size);
}

int main(void) {
    const size_t limit = 64 * MIB, much = 1024 * MIB, little = 8 * MIB;
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    const pebble_failure *failure;
    pebble_pool *pool;
    pebble_future *future;
    size_t size;

    options.max_workers = 1;
    options.initializer = memory_limit_growth;
    options.initializer_input = &limit;
    options.initializer_input_size = sizeof limit;
    TRY(pebble_process_pool_new(&options, &pool));

    TRY(pebble_schedule(pool, build_string, &much, sizeof much, 0, &future));
    EXPECT(pebble_future_wait(future, PEBBLE_FOREVER) == PEBBLE_OK);
    failure = pebble_future_failure(future);
    EXPECT(failure != NULL && failure->code == ENOMEM);
    printf("a string of 1024 MiB, limit 64 MiB: error %d: %s\n", failure->code,
           failure->message);
    pebble_future_unref(future);

    TRY(pebble_schedule(pool, build_string, &little, sizeof little, 0, &future));
    TRY(pebble_future_copy_result(future, PEBBLE_FOREVER, &size, sizeof size));
    printf("a string of 8 MiB: fine\n");
    EXPECT(size == little);
    pebble_future_unref(future);

    check_finish(pool);
    return 0;
}
