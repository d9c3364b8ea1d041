/* wait_for_threads.c - wait until any of several threads has ended. */
#include "check.h"

#include <pebble.h>

enum { COUNT = 3 };

/* Ends when there is something in its queue. */
static void wait_for_word(void *context) {
    void *item;

    TRY(pebble_queue_get(context, PEBBLE_FOREVER, &item));
}

int main(void) {
    pebble_queue *words[COUNT];
    pebble_thread *threads[COUNT], *ready[COUNT];
    size_t ready_count;

    for (size_t i = 0; i < COUNT; i++) {
        TRY(pebble_queue_new(0, &words[i]));
        TRY(pebble_thread_start(wait_for_word, words[i], NULL, &threads[i]));
    }

    TRY(pebble_wait_for_threads(threads, COUNT, PEBBLE_MILLISECONDS(50), ready,
                                &ready_count));
    printf("after 50 ms: %zu of %d threads have ended\n", ready_count, COUNT);
    EXPECT(ready_count == 0);

    TRY(pebble_queue_put(words[1], "go", PEBBLE_FOREVER));
    TRY(pebble_wait_for_threads(threads, COUNT, PEBBLE_FOREVER, ready, &ready_count));
    printf("after a word to the second: %zu has, and it is the second\n", ready_count);
    EXPECT(ready_count == 1 && ready[0] == threads[1]);

    TRY(pebble_queue_put(words[0], "go", PEBBLE_FOREVER));
    TRY(pebble_queue_put(words[2], "go", PEBBLE_FOREVER));
    for (size_t i = 0; i < COUNT; i++)
        TRY(pebble_thread_join(threads[i], PEBBLE_FOREVER));
    TRY(pebble_wait_for_threads(threads, COUNT, PEBBLE_FOREVER, ready, &ready_count));
    printf("after a word to the others: %zu have\n", ready_count);
    EXPECT(ready_count == COUNT);

    for (size_t i = 0; i < COUNT; i++) {
        pebble_thread_unref(threads[i]);
        pebble_queue_free(words[i]);
    }
    return 0;
}
