/* Done-callbacks: each pool has a thread of its own for them, started by the first one, so that
 * a callback which blocks holds up no dispatch, no deadline and no other pool; and another one for
 * wakers, which do not block, so that no callback holds up those who wait.
 *
 * A runner's queue is made of the callbacks themselves, each with a reference to its future. The thread
 * ends when the pool tells it to, after it has emptied the queue. A callback may end the thread
 * (pthread_exit, cancellation): a new one goes on with what is left. In a child that a callback forked
 * there is nothing to go on with: when the callback returns, the child ends.
 */
#ifndef PEBBLE_CORE_CALLBACKS_H
#define PEBBLE_CORE_CALLBACKS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pebble.h"

typedef struct future_callback {
    struct future_callback *next;
    pebble_callback function;
    void *context;
    pebble_future *future; /* from its end on */
    bool waker;
} future_callback;

typedef struct callback_runner {
    const char *name; /* of the thread */
    pebble_pool *pool;
    pthread_mutex_t lock;
    future_callback *first, *last;
    bool started;
    bool ending;
    bool finished;           /* the thread has run its last callback */
    _Atomic uint32_t events; /* futex: grows when something above changes */
    future_callback *taken; /* from the queue, by the thread; its successor goes on with it */
} callback_runner;

int callback_runner_init(callback_runner *runner, pebble_pool *pool, const char *name);
void callback_runner_fini(callback_runner *runner);

/* Starts the thread if there is none. The thread references the pool. Returns 0 or an errno value. */
int callback_runner_start(callback_runner *runner);

/* Has a callback of an ended future run, and be freed. The runner has been started. */
void callback_runner_push(callback_runner *runner, future_callback *callback);

/* No more will be pushed: the thread ends when its queue is empty. */
void callback_runner_end(callback_runner *runner);

/* Waits until the thread has run its last callback, if there ever was one: 0,
 * ETIMEDOUT, or EINTR as of interrupt_ends_wait(). */
int callback_runner_join(callback_runner *runner, int64_t deadline_ns);

/* True in the runner's thread. */
bool callback_runner_is_here(const callback_runner *runner);

#endif
