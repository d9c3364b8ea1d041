/* Waiting for any of several sources, such as queues or threads.
 *
 * A source is ready or not; it says so under its own mutex, which may guard more of the
 * object that the source is part of. A waiter is one futex word on the waiting thread's
 * stack, with one node for each source that it waits for, linked into that source's list
 * under its mutex.
 *
 * Whoever makes a source ready rings all linked waiters while it holds the mutex. A
 * waiter takes each mutex once more to unlink its node before it returns, so its word is
 * never rung after that. It clears its word before it looks at the sources: a source that
 * gets ready after it was looked at rings the word again, and no wake-up is lost.
 *
 * Lock order: never more than one source's mutex at a time; the same source may be in a
 * set several times. A source must outlive the waits on it.
 */
#ifndef PEBBLE_SYNC_READY_H
#define PEBBLE_SYNC_READY_H

#include <pthread.h>

#include "pebble.h"
#include "platform/platform.h"

typedef struct ready_waiter {
    _Atomic uint32_t rung;
} ready_waiter;

typedef struct ready_node {
    struct ready_source *source;
    ready_waiter *waiter;
    struct ready_node *next, **link; /* in the source's list, under its mutex */
    bool ready;                      /* when it was looked at last */
} ready_node;

typedef struct ready_source {
    pthread_mutex_t mutex;
    bool ready;        /* under mutex */
    ready_node *nodes; /* under mutex: who waits */
} ready_source;

/* Returns 0 or an errno value. */
int ready_source_init(ready_source *source);
void ready_source_fini(ready_source *source);

/* Changes whether the source is ready; if it gets so, rings all who wait. Under its
 * mutex. */
void ready_source_set_locked(ready_source *source, bool ready);

enum { READY_FEW = 8 }; /* so many sources cost no allocation */

/* What one thread waits for. */
typedef struct ready_set {
    ready_waiter waiter;
    size_t count;
    ready_node *nodes; /* few, or allocated */
    ready_node few[READY_FEW];
} ready_set;

/* Makes a set of count sources, to be named one by one. Returns 0 or ENOMEM. The set must
 * not be moved. */
int ready_set_init(ready_set *set, size_t count);
void ready_set_fini(ready_set *set);
void ready_set_source(ready_set *set, size_t index, ready_source *source);

/* Waits until one or more of the sources are ready. Returns how many are, 0 at the
 * deadline. */
size_t ready_set_wait(ready_set *set, int64_t deadline_ns);

/* True if the last wait found that source ready. */
bool ready_set_has(const ready_set *set, size_t index);

/* Checks what the public waits for several objects have in common; name is the plural of
 * the objects in messages. The objects themselves are the caller's to check. */
pebble_error ready_check_wait(const char *function, const char *name, const void *objects,
                              size_t count, int64_t timeout_ns, const void *ready,
                              const void *ready_count);

#endif
