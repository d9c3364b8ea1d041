/* Pools, and calls in a process or thread of their own. */
#ifndef PEBBLE_PYTHON_POOL_H
#define PEBBLE_PYTHON_POOL_H

#include "engine.h"

extern PyType_Spec pool_spec;

/* The interpreter is ending: threads get no more tasks. */
void pools_stop_threads(void);

/* run_process(function, args, kwargs, timeout, name, start_method, command, data) and
 * run_thread(function, args, kwargs, name): METH_FASTCALL. */
PyObject *run_process(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *run_thread(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
