/* References that the engine gives back in a place where no Python code may run, or without the GIL.
 *
 * They are pushed onto a list without a lock, and dropped by whoever has the GIL next and is in no
 * call of the engine. A thread worker between two tasks drops those itself that it has pushed. For anybody
 * else the main thread's pending calls see to it: any call of the engine may learn of an end, and not
 * each one is followed by a drain. Calls that make a task drain, too, as the main thread may be busy. */
#ifndef PEBBLE_PYTHON_DEFERRED_H
#define PEBBLE_PYTHON_DEFERRED_H

#include "engine.h"

typedef struct deferred {
    struct deferred *next;
    PyObject *object; /* the reference; it may own the memory of this */
} deferred;

/* As the engine's release_input: context is a deferred. With the GIL or without. */
void deferred_push(void *context);

/* A thread worker whose task is over: this thread drains before it runs any other Python code. */
void deferred_drain_next(void);

/* In the child of a fork, where a thread that was about to ask for a drain is no more. */
void deferred_forked(void);

/* Drops them: runs any Python code. */
void deferred_drain(void);

#endif
