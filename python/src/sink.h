/* A file for a pickler to write to: memory, or a task's result. */
#ifndef PEBBLE_PYTHON_SINK_H
#define PEBBLE_PYTHON_SINK_H

#include "engine.h"

typedef struct sink {
    PyObject_HEAD pebble_task *task; /* NULL: to memory */
    char *data;
    size_t size, capacity; /* to a task: size counts what it got */
    bool out_of_band;      /* large buffers are collected, not pickled */
    PyObject *buffers;     /* those, a list, or NULL */
} sink;

extern PyType_Spec sink_spec;

sink *sink_new(void);

/* Forgets what it holds; from now on it writes to memory, or to the task if there is one, buffers
 * in band. */
void sink_reset(sink *self, pebble_task *task);

/* Appends. -1 with an exception. */
int sink_append(sink *self, const void *data, size_t size);

/* Schedules a task with what the sink holds for its input: if that is much, the memory goes to the
 * engine and is not copied. */
pebble_error sink_schedule(sink *self, pebble_pool *pool, pebble_task_options *options,
                           pebble_future **future);

#endif
