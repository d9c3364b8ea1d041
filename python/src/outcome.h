/* How a call ended, as Python objects. */
#ifndef PEBBLE_PYTHON_OUTCOME_H
#define PEBBLE_PYTHON_OUTCOME_H

#include "engine.h"

/* One of both is set: its result, or the exception that it raised. Nothing: not known (yet). */
typedef struct outcome {
    PyObject *value;
    PyObject *error;
} outcome;

void outcome_clear(outcome *self);
int outcome_visit(const outcome *self, visitproc visit, void *arg);

/* Takes the exception that is set, with its traceback. */
PyObject *exception_take(void);

/* Drops the exception that is set. -1 if it came from outside (KeyboardInterrupt): it stays, and is the
 * caller's. */
int exception_forget(void);

/* Sets the exception for being raised: another reference to it. Returns NULL. */
PyObject *exception_raise(PyObject *exception);

/* Calls; takes the result or the exception, which gets the attribute traceback. -1 without an outcome
 * never happens: any exception is an outcome. */
void outcome_of_call(outcome *self, PyObject *function, PyObject *args, PyObject *kwargs);

/* The text of an exception with its traceback, as the interpreter prints it. NULL with an exception. */
PyObject *exception_text(PyObject *exception);

/* From the pickled result of a call. -1 with an exception that concerns the caller alone
 * (KeyboardInterrupt): the outcome is not known then. */
int outcome_load_value(outcome *self, const void *data, size_t size);

/* From an error record (message.h). */
int outcome_load_error(outcome *self, const void *data, size_t size);

/* From the whole result of a task that was one call. Parts of it may stay in the engine's memory, which
 * has a reference then. */
int outcome_load(outcome *self, pebble_future *engine, const void *data, size_t size);

/* True if the result of a task that was one call is an exception. */
bool outcome_is_error(const void *data, size_t size);

/* From the engine's failure: what the future's error is. NULL with an exception. */
PyObject *exception_of_failure(const pebble_failure *failure);

/* Raises what a call of the engine returned. Returns NULL. */
PyObject *raise_engine_error(pebble_error error);

/* TimeoutError(text, limit in seconds). NULL with an exception. */
PyObject *timeout_exception(const char *text, int64_t limit_ns);

#endif
