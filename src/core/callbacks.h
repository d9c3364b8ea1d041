/* Done-callbacks: each pool has a thread of its own for them, started by the first one, so that
 * a callback which blocks holds up no dispatch, no deadline and no other pool.
 *
 * The runner's queue holds a reference to each future in it. The thread ends when the pool tells
 * it to, after it has emptied the queue. A callback may end the thread (pthread_exit, cancellation):
 * a new one goes on with what is left. In a child that a callback forked there is nothing to go on
 * with: when the callback returns, the child ends.
 */
#ifndef PEBBLE_CORE_CALLBACKS_H
#define PEBBLE_CORE_CALLBACKS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pebble.h"

struct future_callback;

typedef struct callback_runner {
    pthread_mutex_t lock;
    pebble_future *first, *last; /* linked by their next_done */
    bool started;
    bool ending;
    bool finished;           /* the thread has run its last callback */
    _Atomic uint32_t events; /* futex: grows when something above changes */

    /* The thread's own, or its successor's: */
    pebble_future *taken; /* from the queue; the first is the one that is served, */
    struct future_callback *waiting; /* and these of its callbacks have not been called */
    bool serving;                    /* its callbacks have been taken */
} callback_runner;

int callback_runner_init(callback_runner *runner);
void callback_runner_fini(callback_runner *runner);

/* Starts the thread if there is none. The thread references pool. Returns 0 or an errno value. */
int callback_runner_start(callback_runner *runner, pebble_pool *pool);

/* Has the callbacks of an ended future run. The runner has been started. */
void callback_runner_push(callback_runner *runner, pebble_future *future);

/* No more will be pushed: the thread ends when its queue is empty. */
void callback_runner_end(callback_runner *runner);

/* Waits until the thread has run its last callback, if there ever was one: 0,
 * ETIMEDOUT, or EINTR as of interrupt_ends_wait(). */
int callback_runner_join(callback_runner *runner, int64_t deadline_ns);

/* True in the runner's thread. */
bool callback_runner_is_here(const callback_runner *runner);

#endif
