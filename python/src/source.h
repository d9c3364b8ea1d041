/* A file for an unpickler to read from: memory. Large bytes go from there to where they stay, without
 * the interpreter's lock and in large pages, which loads() does not do. */
#ifndef PEBBLE_PYTHON_SOURCE_H
#define PEBBLE_PYTHON_SOURCE_H

#include "engine.h"

enum { SOURCE_LARGE = 4 * 1024 * 1024 }; /* from here on it is faster */

extern PyType_Spec source_spec;

/* The memory must stay until the source is forgotten. */
PyObject *source_new(const void *data, size_t size);

/* The memory may go: whoever has the source still, reads nothing. */
void source_close(PyObject *source);

#endif
