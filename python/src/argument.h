/* Arguments: taken by name, checked early, errors that name them. */
#ifndef PEBBLE_PYTHON_ARGUMENT_H
#define PEBBLE_PYTHON_ARGUMENT_H

#include "engine.h"

/* What a function takes. The names are interned at the first use. */
typedef struct signature {
    const char *function;
    Py_ssize_t count, required, positional; /* parameters; of these by place, at most */
    const char *parameters[8];
    PyObject *interned[8];
} signature;

/* Sorts the arguments of a METH_FASTCALL | METH_KEYWORDS call into values (borrowed, NULL: not
 * given). -1 with a TypeError. */
int arguments_take(signature *self, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwnames, PyObject **values);

/* The limit of a task, in seconds: None (or NULL) is 0, no limit. */
int argument_limit(PyObject *value, const char *parameter, int64_t *limit_ns);

/* A time that may be 0, in seconds; NULL or None: the engine's default, which is 0 there. */
int argument_grace(PyObject *value, const char *parameter, int64_t *grace_ns);

/* How long to wait, in seconds: None (or NULL) is for ever; what is not over zero, not at all. Gives
 * the deadline on the monotonic clock, or PEBBLE_FOREVER. */
int argument_deadline(PyObject *value, const char *parameter, int64_t *deadline_ns);

/* now + limit, or PEBBLE_FOREVER. */
int64_t deadline_after(int64_t limit_ns);

/* From now to the deadline. */
int64_t deadline_left(int64_t deadline_ns);

int argument_callable(PyObject *value, const char *parameter);

/* A tuple of an iterable: a new reference. NULL (not given): the empty one. */
PyObject *argument_tuple(PyObject *value, const char *parameter);

/* A dictionary of a mapping: a new reference, or NULL without an exception if it is empty. */
int argument_dict(PyObject *value, const char *parameter, PyObject **dict);

/* An integer from least to most. Not given: unchanged. */
int argument_integer(PyObject *value, const char *parameter, long long least,
                     long long most, long long *integer);

/* The start method of that name; "context" in errors. */
int argument_start_method(PyObject *value, pebble_start_method *method);

/* The words of a list of str, which must stay as it is. The array is freed with PyMem_Free(). */
char **argument_command(PyObject *list);

#endif
