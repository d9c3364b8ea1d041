/* The extension `pebble._engine`: what its files share.
 *
 * Each file is one subject: module.c (names, types), interpreter.c (the interpreter's lock, forks,
 * exit), sink.c, source.c, buffers.c and pickling.c (objects to bytes and back), message.h (the form of those bytes),
 * worker.c (what runs in a worker process), thread.c (what runs in a thread), outcome.c (how a task
 * ended, as Python objects), call.c and map_schedule.c (tasks of the engine), future.c, map.c and pool.c
 * (the types), deferred.c (references given back elsewhere), argument.c (checks).
 *
 * The rules of locks: the GIL is taken before any lock of the engine and never while one is held;
 * it is released around every wait. Everything without a comment of its own needs the GIL.
 */
#ifndef PEBBLE_PYTHON_ENGINE_H
#define PEBBLE_PYTHON_ENGINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "pebble.h"

/* One set of them for the process: the engine's callbacks come without a Python context, and the
 * module refuses to be in more than one interpreter. */
typedef struct engine_names {
    /* This module's types. */
    PyTypeObject *reducers_type, *sink_type, *source_type, *buffer_type;
    PyTypeObject *future_type, *map_future_type, *map_results_type, *pool_type;

    /* The package's classes, from set_types(). */
    PyTypeObject *process_future, *thread_future, *map_future, *process_map_future;
    PyObject *process_expired, *remote_traceback;

    /* Python's own. */
    PyObject *base_future; /* concurrent.futures.Future */
    PyObject *cancelled_error, *timeout_error, *invalid_state_error;
    PyObject *logger;                      /* of concurrent.futures */
    PyObject *condition;                   /* threading.Condition */
    PyObject *pickler, *unpickler, *loads; /* _pickle's */
    PyObject *extra_reducers;              /* ForkingPickler's */
    PyObject *copyreg_table;
    PyObject *format_exception;

    /* Interned. */
    PyObject *pending, *running, *cancelled, *cancelled_and_notified,
        *finished; /* states */
    PyObject *str_dump, *str_load, *str_clear_memo, *str_flush, *str_traceback;
    PyObject *empty_tuple;
} engine_names;

extern engine_names names;

#define REGISTERED_NAME "pebble._engine."

#endif
