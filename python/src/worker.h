/* What runs in a worker process: the engine's functions that call Python's. */
#ifndef PEBBLE_PYTHON_WORKER_H
#define PEBBLE_PYTHON_WORKER_H

#include "engine.h"

/* Input: message.h. One call, and a chunk of them. */
int process_call(pebble_task *task, const void *input, size_t input_size);
int process_chunk(pebble_task *task, const void *input, size_t input_size);

/* Input: the address of a tuple (function, args, kwargs, name or None) that the process has
 * inherited from the program by a fork. */
int process_inherited(pebble_task *task, const void *input, size_t input_size);

/* Input: a pickled tuple (initializer, args), or the address of one. */
int process_initializer(const void *input, size_t input_size);
int process_initializer_inherited(const void *input, size_t input_size);

/* Makes these functions known to executed workers. */
int worker_register_functions(void);

#endif
