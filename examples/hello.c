/* hello.c - the first program: a function runs in another process, with a time limit.
 *
 *     cc hello.c -o hello $(pkg-config --cflags --libs pebble)
 */
#include <pebble.h>

#include <ctype.h>
#include <stdio.h>

/* Runs in a worker. Should it loop, leak or crash, main gets the reason and goes on. */
static int shout(pebble_task *task, const void *input, size_t input_size) {
    const unsigned char *text = input;

    for (size_t i = 0; i < input_size; i++) {
        char c = (char)toupper(text[i]);
        if (pebble_task_write(task, &c, 1) != PEBBLE_OK)
            return 1;
    }
    return 0;
}

int main(void) {
    pebble_pool *pool = NULL;
    pebble_future *future = NULL;
    const void *data;
    size_t size;
    pebble_error error;

    error = pebble_process_pool_new(NULL, &pool);
    if (error == PEBBLE_OK)
        error = pebble_schedule(pool, shout, "hello", 5, PEBBLE_SECONDS(1), &future);
    if (error == PEBBLE_OK)
        error = pebble_future_result(future, PEBBLE_FOREVER, &data, &size);

    if (error == PEBBLE_OK)
        printf("%.*s\n", (int)size, (const char *)data);
    else
        fprintf(stderr, "hello: %s\n", pebble_error_text(error));

    pebble_future_unref(future);
    pebble_pool_close(pool);
    pebble_pool_join(pool, PEBBLE_FOREVER);
    pebble_pool_free(pool);
    return error == PEBBLE_OK ? 0 : 1;
}
