/* Maps: the base of pebble.MapFuture and ProcessMapFuture, and the iterator over the results.
 *
 * A map is a list of chunks, each a task of the engine. What is known of a chunk: nothing while it
 * is open; then its error, which all its elements have; or its list of values; or an outcome for
 * each element. Once its last element has been taken, nothing is kept of it. */
#ifndef PEBBLE_PYTHON_MAP_H
#define PEBBLE_PYTHON_MAP_H

#include <stdatomic.h>

#include "future.h"

typedef struct map_chunk {
    deferred deferred;     /* threads: the task's reference to the map */
    pebble_future *engine; /* NULL: it has ended */
    Py_ssize_t count;      /* elements */
    bool ended, loaded;
    bool watched[LANES]; /* its end is counted in the map's `open` */
    PyObject *error;     /* of all elements */
    PyObject *list;    /* the values. Threads, before it runs: the arguments, as tuples */
    outcome *outcomes; /* one for each element. Before the end: those that were never sent */
    PyObject *function; /* threads, before it runs */
} map_chunk;

/* Forgets what is known of its elements. */
void chunk_clear(map_chunk *self);

typedef struct map_future {
    future_object base; /* kind FUTURE_MAP */
    map_chunk **chunks;
    Py_ssize_t chunk_count, capacity;
    Py_ssize_t first_open;      /* all before it have ended */
    Py_ssize_t ended_otherwise; /* chunks that have ended, and not as cancelled */
    int64_t limit_ns,
        deadline_ns; /* threads: of pool.map(timeout=); 0, PEBBLE_FOREVER: none */
    atomic_size_t
        open[LANES]; /* chunks that have not called back, and one until all are set up */
    PyObject *results;         /* the iterator, if there is one just now: borrowed */
    Py_ssize_t chunk, element; /* which it gives next */
} map_future;

extern PyType_Spec map_future_spec;
extern PyType_Spec map_results_spec;

/* pool.map(): the elements are those of zip(*iterables). */
typedef struct map_request {
    pebble_pool *pool;
    bool threads;
    PyTypeObject *type;
    PyObject *function;
    PyObject *iterables; /* a tuple, not empty */
    Py_ssize_t chunk_size;
    int64_t limit_ns;
} map_request;

/* A new map_future. NULL with an exception: what was scheduled is cancelled. */
PyObject *map_schedule(const map_request *request);

/* What the type Future asks of a map. */
bool map_done(map_future *self);
bool map_cancelled(map_future *self);
bool map_running(map_future *self);
bool map_cancel(map_future *self);
pebble_future *map_open_engine(map_future *self); /* of a chunk that has not ended, or NULL */
int map_watch(map_future *self, future_lane lane);
/* For the first chunk's end, and if all was cancelled for that of all; as engine_wait(). */
int map_wait_first(map_future *self, int64_t deadline_ns);
PyObject *map_results(map_future *self);

/* The thread pool's function: input is the address of a map_chunk. */
int thread_chunk(pebble_task *task, const void *input, size_t input_size);

#endif
