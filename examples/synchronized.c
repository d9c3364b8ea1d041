/* synchronized.c - blocks that one thread at a time may enter.
 *
 * With a mutex, the blocks with that mutex exclude one another. Without one, all such
 * blocks of the program do, in whatever function they are.
 */
#include "check.h"

#include <pebble.h>

enum { THREADS = 4, TURNS = 100000, LIMIT = 1000 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long with_mutex;   /* changed in blocks with the mutex only */
static long with_default; /* these two in blocks without one only */
static long with_limit;

static void add_one(void) {
    PEBBLE_SYNCHRONIZED (&mutex) {
        with_mutex++;
    }
    PEBBLE_SYNCHRONIZED (NULL) {
        with_default++;
    }
}

/* Another function, and the same default mutex. */
static bool add_one_up_to_limit(void) {
    PEBBLE_SYNCHRONIZED (NULL) {
        if (with_limit == LIMIT)
            return false; /* however the block is left, it is unlocked */
        with_limit++;
    }
    return true;
}

static void count(void *context) {
    (void)context;
    for (int i = 0; i < TURNS; i++)
        add_one();
    while (add_one_up_to_limit())
        continue;
}

int main(void) {
    pebble_thread *threads[THREADS];

    for (int i = 0; i < THREADS; i++)
        TRY(pebble_thread_start(count, NULL, "counter", &threads[i]));
    for (int i = 0; i < THREADS; i++) {
        TRY(pebble_thread_join(threads[i], PEBBLE_FOREVER));
        pebble_thread_unref(threads[i]);
    }

    printf("%d threads: %ld with a mutex of its own, %ld with the default one, %ld up to "
           "a limit\n",
           THREADS, with_mutex, with_default, with_limit);
    EXPECT(with_mutex == THREADS * TURNS);
    EXPECT(with_default == THREADS * TURNS);
    EXPECT(with_limit == LIMIT);
    return 0;
}
