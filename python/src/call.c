#include "call.h"

#include <string.h>

#include "argument.h"
#include "future.h"
#include "interpreter.h"
#include "message.h"
#include "pickling.h"
#include "thread.h"
#include "worker.h"

/* ---- In a pool ---- */

/* A call as workers get it. -1 with an exception. */
static int write_call(pickle_writer *writer, PyObject *function, PyObject *args,
                      PyObject *kwargs) {
    input_header header = {.form = kwargs != NULL ? INPUT_ARGS_KWARGS : INPUT_ARGS};
    PyObject *pickled = pickling_function(function);
    PyObject *payload = NULL;
    if (pickled == NULL && PyErr_Occurred())
        return -1;
    if (pickled == NULL) {
        header.form = INPUT_WHOLE;
        payload = kwargs != NULL ? PyTuple_Pack(3, function, args, kwargs)
                                 : Py_BuildValue("OO{}", function, args);
    } else {
        header.keep_function = true;
        header.function_size = (uint32_t)PyBytes_GET_SIZE(pickled);
        payload = kwargs != NULL ? PyTuple_Pack(2, args, kwargs) : Py_NewRef(args);
    }
    if (payload == NULL) {
        Py_XDECREF(pickled);
        return -1;
    }
    int failed = sink_append(writer->to, &header, sizeof header);
    if (failed == 0 && pickled != NULL)
        failed = sink_append(writer->to, PyBytes_AS_STRING(pickled), header.function_size);
    Py_XDECREF(pickled);
    Py_ssize_t buffers = failed == 0 ? writer_dump_apart(writer, payload) : -1;
    if (buffers > 0) {
        header.count = (uint64_t)buffers;
        memcpy(writer->to->data, &header, sizeof header);
    }
    Py_DECREF(payload);
    return buffers < 0 ? -1 : 0;
}

PyObject *call_on_processes(pebble_pool *pool, PyObject *function, PyObject *args,
                            PyObject *kwargs, int64_t limit_ns) {
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    pebble_future *engine;
    pickle_writer writer;
    if (writer_take(&writer, NULL) < 0)
        return NULL;
    if (write_call(&writer, function, args, kwargs) < 0) {
        writer_release(&writer);
        if (PyErr_ExceptionMatches(PyExc_Exception) &&
            !pebble_pool_active(pool)) { /* that comes first, and tells why */
            PyErr_Clear();
            PyErr_SetString(PyExc_RuntimeError, "the pool is closed, stopped or broken");
            return NULL;
        }
        return task_future_new_failed(names.process_future);
    }
    options.function = process_call;
    options.timeout_ns = limit_ns;
    pebble_error error = sink_schedule(writer.to, pool, &options, &engine);
    writer_release(&writer);
    if (error != PEBBLE_OK)
        return raise_engine_error(error);
    return (PyObject *)task_future_new(names.process_future, engine);
}

/* A future whose task finds its call in it. */
static future_object *future_with_call(PyTypeObject *type, PyObject *function,
                                       PyObject *args, PyObject *kwargs) {
    future_object *self = task_future_new(type, NULL);
    if (self == NULL)
        return NULL;
    if (future_set_call(self, function, args, kwargs) < 0) {
        self->known = true;
        Py_CLEAR(self);
    }
    return self;
}

PyObject *call_on_threads(pebble_pool *pool, PyObject *function, PyObject *args,
                          PyObject *kwargs) {
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    future_object *self = future_with_call(names.thread_future, function, args, kwargs);
    if (self == NULL)
        return NULL;
    self->in_thread = true;
    options.function = thread_call;
    options.input = self;
    options.input_size = sizeof *self;
    options.release_input = deferred_push;
    options.release_context = &self->call->deferred;
    Py_INCREF(self); /* the task's */
    pebble_error error = pebble_schedule_task(pool, &options, &self->engine);
    if (error == PEBBLE_OK)
        return (PyObject *)self;
    Py_DECREF(self);
    self->known = true;
    Py_DECREF(self);
    return raise_engine_error(error);
}

/* ---- One call in a process or thread of its own ---- */

/* With a fork the call is inherited, as a tuple whose address goes to the process. */
static PyObject *run_forked(PyObject *const *args, int64_t limit_ns,
                            pebble_concurrent_options *options) {
    PyObject *call = PyTuple_Pack(4, args[0], args[1], args[2], args[4]);
    future_object *self =
        call != NULL ? future_with_call(names.process_future, NULL, call, NULL) : NULL;
    Py_XDECREF(call);
    if (self == NULL)
        return NULL;
    options->timeout_ns = limit_ns;
    options->hooks = &single_process_hooks;
    options->release_input = deferred_push;
    options->release_context = &self->call->deferred;
    Py_INCREF(self); /* the task's */
    pebble_error error =
        pebble_concurrent_process(process_inherited, &self->call->args,
                                  sizeof self->call->args, options, &self->engine);
    if (error == PEBBLE_OK)
        return (PyObject *)self;
    Py_DECREF(self);
    self->known = true;
    Py_DECREF(self);
    return raise_engine_error(error);
}

static PyObject *run_executed(PyObject *const *args, int64_t limit_ns,
                              pebble_concurrent_options *options) {
    pickle_writer writer;
    pebble_future *engine;
    if (writer_take(&writer, NULL) < 0)
        return NULL;
    if (write_call(&writer, args[0], args[1], args[2]) < 0) {
        writer_release(&writer);
        return task_future_new_failed(names.process_future);
    }
    options->timeout_ns = limit_ns;
    pebble_error error = pebble_concurrent_process(process_call, writer.to->data,
                                                   writer.to->size, options, &engine);
    writer_release(&writer);
    if (error != PEBBLE_OK)
        return raise_engine_error(error);
    return (PyObject *)task_future_new(names.process_future, engine);
}

PyObject *run_process(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    int64_t limit_ns;
    char **command;
    (void)module;
    if (nargs != 8) {
        PyErr_SetString(PyExc_TypeError, "run_process() takes 8 arguments");
        return NULL;
    }
    deferred_drain(); /* what ended meanwhile, also if the main thread does not get to it */
    if (argument_limit(args[3], "timeout", &limit_ns) < 0 ||
        argument_start_method(args[5], &options.start_method) < 0)
        return NULL;
    options.name = args[4] != Py_None ? PyUnicode_AsUTF8(args[4]) : NULL;
    if (args[4] != Py_None && options.name == NULL)
        return NULL;
    if (args[6] == Py_None)
        return run_forked(args, limit_ns, &options);
    if ((command = argument_command(args[6])) == NULL)
        return NULL;
    options.worker_command = (const char *const *)command;
    options.worker_data = PyBytes_AsString(args[7]);
    options.worker_data_size = (size_t)PyBytes_Size(args[7]);
    PyObject *future = run_executed(args, limit_ns, &options);
    PyMem_Free(command);
    return future;
}

PyObject *run_thread(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    (void)module;
    if (nargs != 4) {
        PyErr_SetString(PyExc_TypeError, "run_thread() takes 4 arguments");
        return NULL;
    }
    options.name = args[3] != Py_None ? PyUnicode_AsUTF8(args[3]) : NULL;
    if (args[3] != Py_None && options.name == NULL)
        return NULL;
    future_object *self = future_with_call(names.thread_future, args[0], args[1],
                                           args[2] != Py_None ? args[2] : NULL);
    if (self == NULL)
        return NULL;
    self->in_thread = true;
    interpreter_precede_handler();
    options.hooks = &thread_hooks;
    options.release_input = deferred_push;
    options.release_context = &self->call->deferred;
    Py_INCREF(self); /* the task's */
    pebble_error error = pebble_concurrent_thread(thread_call, self, sizeof *self,
                                                  &options, &self->engine);
    deferred_drain();
    if (error == PEBBLE_OK)
        return (PyObject *)self;
    Py_DECREF(self);
    self->known = true;
    Py_DECREF(self);
    return raise_engine_error(error);
}
