/* wait_for_queues.c - wait until any of several queues holds something. */
#include "check.h"

#include <pebble.h>

enum { COUNT = 3 };

static void produce(void *context) {
    TRY(pebble_queue_put(context, "a letter", PEBBLE_FOREVER));
    TRY(pebble_queue_put(context, "a second one", PEBBLE_FOREVER));
}

int main(void) {
    pebble_queue *queues[COUNT], *ready[COUNT];
    pebble_thread *producer;
    size_t ready_count;
    void *item;

    for (size_t i = 0; i < COUNT; i++)
        TRY(pebble_queue_new(1, &queues[i])); /* one fits: the producer waits for us */

    TRY(pebble_wait_for_queues(queues, COUNT, PEBBLE_MILLISECONDS(50), ready,
                               &ready_count));
    printf("after 50 ms: %zu of %d queues are ready\n", ready_count, COUNT);
    EXPECT(ready_count == 0);

    TRY(pebble_thread_start(produce, queues[2], "producer", &producer));
    for (int i = 0; i < 2; i++) {
        TRY(pebble_wait_for_queues(queues, COUNT, PEBBLE_FOREVER, ready, &ready_count));
        EXPECT(ready_count == 1 && ready[0] == queues[2]);
        TRY(pebble_queue_get(ready[0], PEBBLE_FOREVER, &item));
        printf("the third queue is ready, with %s\n", (const char *)item);
    }

    TRY(pebble_thread_join(producer, PEBBLE_FOREVER));
    pebble_thread_unref(producer);
    for (size_t i = 0; i < COUNT; i++)
        pebble_queue_free(queues[i]);
    return 0;
}
