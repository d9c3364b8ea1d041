/* sighandler.c - a handler for several signals, which may call anything.
 *
 * It runs in a thread of the library, not in signal context: printf(), locks and the
 * library's own calls are all allowed. Here it puts the signal into a queue for main.
 */
#include "check.h"

#include <pebble.h>

#include <signal.h>
#include <string.h>
#include <unistd.h>

static void signal_handler(int signal, void *context) {
    static int received[2];
    static int count;

    printf("Termination request received! (%s)\n", strsignal(signal));
    received[count] = signal;
    TRY(pebble_queue_put(context, &received[count++], PEBBLE_FOREVER));
}

int main(void) {
    const int signals[] = {SIGINT, SIGTERM};
    pebble_queue *queue;
    void *item;

    TRY(pebble_queue_new(0, &queue));
    TRY(pebble_sighandler(signals, 2, signal_handler, queue));

    for (int i = 0; i < 2; i++) {
        kill(getpid(), signals[i]); /* as Ctrl-C, or the kill command, would */
        TRY(pebble_queue_get(queue, PEBBLE_SECONDS(10), &item));
        EXPECT(*(int *)item == signals[i]);
    }
    printf("both were handled, and the program goes on\n");

    TRY(pebble_sighandler(signals, 2, NULL, NULL)); /* as it was before */
    pebble_queue_free(queue);
    return 0;
}
