/* References that the engine gives back in a place where no Python code may run, or without the GIL.
 *
 * They are pushed onto a list without a lock, and dropped by whoever has the GIL next and is in no
 * call of the engine: its caller, a worker before its next task or when it is idle; if none of these
 * pushed it, the main thread's pending calls see to it. */
#ifndef PEBBLE_PYTHON_DEFERRED_H
#define PEBBLE_PYTHON_DEFERRED_H

#include "engine.h"

typedef struct deferred {
    struct deferred *next;
    PyObject *object; /* the reference; it may own the memory of this */
} deferred;

/* As the engine's release_input: context is a deferred. With the GIL or without. */
void deferred_push(void *context);

/* Drops them: runs any Python code. */
void deferred_drain(void);

#endif
