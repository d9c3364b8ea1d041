/* What runs in the threads of a thread pool. */
#ifndef PEBBLE_PYTHON_THREAD_H
#define PEBBLE_PYTHON_THREAD_H

#include "engine.h"
#include "outcome.h"

/* Input: a future_object, whose call it is. */
int thread_call(pebble_task *task, const void *input, size_t input_size);

/* Input: the address of a tuple (initializer, args). */
int thread_initializer(const void *input, size_t input_size);

/* Gives the exception, if it is one, the text of its traceback. */
void thread_note_traceback(const outcome *self);

#endif
