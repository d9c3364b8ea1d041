/* Objects to bytes and back, as multiprocessing does it: pickle with its additional reducers. */
#ifndef PEBBLE_PYTHON_PICKLING_H
#define PEBBLE_PYTHON_PICKLING_H

#include "engine.h"
#include "sink.h"

/* A pickler and what it writes to. For one thread at a time, from take to release. */
typedef struct pickle_writer {
    PyObject *pickler;
    sink *to;
} pickle_writer;

extern PyType_Spec reducers_spec;

/* An empty writer, to memory or, if there is one, to the task's result. -1 with an exception. */
int writer_take(pickle_writer *writer, pebble_task *task);

/* Appends the pickled object. -1 with an exception: then some of it may be there. */
int writer_dump(pickle_writer *writer, PyObject *object);

/* The same, with its large buffers behind it (buffers.h). Their count, or -1 with an exception. */
Py_ssize_t writer_dump_apart(pickle_writer *writer, PyObject *object);

void writer_release(pickle_writer *writer);

/* Makes ready what pickling needs, so that later it takes little memory. */
int pickling_prepare(void);

/* The pickled form of a function, if it may be kept: of one that is found by its name. Bytes,
 * or NULL without an exception: pickle it with its arguments. */
PyObject *pickling_function(PyObject *function);

/* The object that was pickled to these bytes. They must stay for the call, in which other threads
 * may run. */
PyObject *pickling_load(const void *data, size_t size);

/* The same, with the buffers that were apart from it. */
PyObject *pickling_load_with(const void *data, size_t size, PyObject *buffers);

/* The same, of a function: if it may be kept, from a table of those loaded before. */
PyObject *pickling_load_function(const void *data, size_t size, bool keep);

/* True of objects that surely can be pickled and unpickled: a list of them may be one pickle without
 * one of them being at fault for the others. */
bool pickling_is_plain(PyObject *object);

#endif
