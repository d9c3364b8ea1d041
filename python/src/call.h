/* Calls as tasks of the engine: in a pool, and in a process or thread of their own. */
#ifndef PEBBLE_PYTHON_CALL_H
#define PEBBLE_PYTHON_CALL_H

#include "engine.h"

/* pool.schedule(): args is a tuple, kwargs a dict or NULL. A new future; NULL with an exception. */
PyObject *call_on_processes(pebble_pool *pool, PyObject *function, PyObject *args,
                            PyObject *kwargs, int64_t limit_ns);
PyObject *call_on_threads(pebble_pool *pool, PyObject *function, PyObject *args,
                          PyObject *kwargs);

/* run_process(function, args, kwargs, timeout, name, start_method, command, data) and
 * run_thread(function, args, kwargs, name): METH_FASTCALL. */
PyObject *run_process(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *run_thread(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
