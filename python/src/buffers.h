/* Buffers that an object gives to its pickler apart from the pickle (protocol 5, PEP 574): they go
 * behind it, and what is made of them on the other side stands in the memory that they came in. So a
 * large array is not copied on arrival. */
#ifndef PEBBLE_PYTHON_BUFFERS_H
#define PEBBLE_PYTHON_BUFFERS_H

#include "engine.h"
#include "sink.h"

/* Behind the buffers there is one of these for each. */
typedef struct buffer_entry {
    uint64_t offset; /* from the message's beginning */
    uint64_t size;
    uint64_t readonly;
} buffer_entry;

extern PyType_Spec buffer_spec;

/* Appends the buffers that the sink has collected, and their entries. Their count, or -1 with an
 * exception. */
Py_ssize_t buffers_append(sink *to);

/* The buffers of a message, as a list of memoryviews; owner keeps its memory. The entries are the
 * last in it. NULL with an exception, also if they are damaged. */
PyObject *buffers_of(const void *message, size_t size, uint64_t count, PyObject *owner);

/* An owner that calls release(memory) when nobody needs it any more (also if NULL is returned). */
PyObject *buffers_owner(void *memory, void (*release)(void *memory));

#endif
