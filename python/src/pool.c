/* A pool that is dropped without close does what it was given, then goes: it is closed and kept in a
 * list, with the initializer that its workers may still need, until it has. Whoever makes or drops a
 * pool looks through that list.
 *
 * An initializer may be part of the same garbage, as a method of the pool's owner is. The garbage
 * collector would take it to pieces before it drops the pool; so it is kept from the pool's finalizer
 * on, and with it all of that garbage until the pool is gone. The object then is as one that was closed
 * (and so it is, too, for somebody else who brings it back to life); its next end finds the pool gone. */
#include "pool.h"

#include <string.h>

#include "argument.h"
#include "call.h"
#include "future.h"
#include "interpreter.h"
#include "map.h"
#include "message.h"
#include "pickling.h"
#include "thread.h"
#include "worker.h"

typedef struct pool_object {
    PyObject_HEAD pebble_pool *pool; /* NULL before __init__ */
    bool threads;
    PyObject *initializer; /* (initializer, args); the engine has its address. Or NULL */
    struct leaving *leaving;          /* has been finalized; NULL again when it is gone */
    struct pool_object *next, **link; /* in the list of living pools */
} pool_object;

/* ---- Pools that have been dropped ---- */

typedef struct leaving {
    struct leaving *next;
    pebble_pool *pool;
    pool_object *owner; /* of the pool, if that has not been deallocated: borrowed */
    PyObject *initializer;
} leaving;

static pool_object *living;
static leaving *leavers;

/* In a child that the program has forked there is nothing of it. */
static bool is_gone(pebble_pool *pool) {
    pebble_error error = pebble_pool_join(pool, 0);
    return error == PEBBLE_OK || error == PEBBLE_ERR_FORKED;
}

static void see_leavers_off(void) {
    leaving **link = &leavers;
    while (*link != NULL) {
        leaving *each = *link;
        if (!is_gone(each->pool)) {
            link = &each->next;
            continue;
        }
        *link = each->next;
        if (each->owner != NULL)
            each->owner->leaving = NULL;
        else
            pebble_pool_free(each->pool);
        Py_XDECREF(each->initializer);
        PyMem_Free(each);
        link = &leavers; /* the decref may have run anything */
    }
}

/* Closes it. NULL: it is gone already, or there is no memory. */
static leaving *leave(pool_object *self) {
    pebble_pool_close(self->pool);
    leaving *entry = is_gone(self->pool) ? NULL : PyMem_Malloc(sizeof *entry);
    if (entry == NULL)
        return NULL;
    *entry = (leaving){.next = leavers,
                       .pool = self->pool,
                       .owner = self,
                       .initializer = Py_XNewRef(self->initializer)};
    leavers = entry;
    return entry;
}

void pools_stop_threads(void) {
    for (pool_object *each = living; each != NULL; each = each->next) {
        if (each->threads)
            pebble_pool_stop(each->pool);
    }
    for (leaving *each = leavers; each != NULL; each = each->next)
        pebble_pool_stop(each->pool);
}

/* ---- Making ---- */

/* What __init__ has made of its arguments; the memory is its own until init_fini(). */
typedef struct pool_request {
    pebble_pool_options options;
    char **command;
    PyObject *initializer; /* (initializer, args), or NULL */
    PyObject *data, *pickled;
} pool_request;

static void request_fini(pool_request *self) {
    PyMem_Free(self->command);
    Py_XDECREF(self->initializer);
    Py_XDECREF(self->pickled);
}

static PyObject *pickle_to_bytes(PyObject *object) {
    pickle_writer writer;
    PyObject *bytes = NULL;
    if (writer_take(&writer, NULL) < 0)
        return NULL;
    if (writer_dump(&writer, object) == 0)
        bytes = PyBytes_FromStringAndSize(writer.to->data, (Py_ssize_t)writer.to->size);
    writer_release(&writer);
    return bytes;
}

/* Forked workers inherit the initializer, executed ones get it pickled. */
static int set_initializer(pool_request *self, pool_object *pool) {
    pebble_pool_options *options = &self->options;
    bool executed = !pool->threads && options->start_method != PEBBLE_START_FORK;
    if (executed) {
        self->pickled =
            pickle_to_bytes(self->initializer != NULL ? self->initializer : Py_None);
        if (self->pickled == NULL)
            return -1;
        options->initializer = process_initializer;
        options->initializer_input = PyBytes_AS_STRING(self->pickled);
        options->initializer_input_size = (size_t)PyBytes_GET_SIZE(self->pickled);
        return 0;
    }
    if (pool->threads && self->initializer == NULL)
        return 0;
    options->initializer =
        pool->threads ? thread_initializer : process_initializer_inherited;
    if (self->initializer == NULL)
        self->initializer = Py_NewRef(Py_None);
    options->initializer_input = &self->initializer;
    options->initializer_input_size = sizeof self->initializer;
    return 0;
}

static int take_numbers(pebble_pool_options *options, PyObject **values) {
    long long max_workers = 0, max_tasks = 0;
    if (argument_integer(values[0], "max_workers", 1, PEBBLE_MAX_WORKERS, &max_workers) <
            0 ||
        argument_integer(values[1], "max_tasks", 0, INT64_MAX, &max_tasks) < 0)
        return -1;
    options->max_workers = (int)max_workers;
    options->max_tasks = (uint64_t)max_tasks;
    if (argument_grace(values[8], "termination_grace", &options->termination_grace_ns) <
            0 ||
        argument_limit(values[9], "initializer_timeout",
                       &options->initializer_timeout_ns) < 0)
        return -1;
    return 0;
}

/* values: see pool_init(). */
static int take_request(pool_request *self, pool_object *pool, PyObject **values) {
    pebble_pool_options *options = &self->options;
    if (take_numbers(options, values) < 0)
        return -1;
    if (values[2] != Py_None && argument_callable(values[2], "initializer") < 0)
        return -1;
    PyObject *initargs =
        argument_tuple(values[3] != Py_None ? values[3] : NULL, "initargs");
    if (initargs == NULL)
        return -1;
    if (values[2] != Py_None)
        self->initializer = PyTuple_Pack(2, values[2], initargs);
    Py_DECREF(initargs);
    if (values[2] != Py_None && self->initializer == NULL)
        return -1;
    options->name = values[4] != Py_None ? PyUnicode_AsUTF8(values[4]) : NULL;
    if (values[4] != Py_None && options->name == NULL)
        return -1;
    options->hooks = pool->threads ? &thread_hooks : &process_hooks;
    if (!pool->threads) {
        if (argument_start_method(values[5], &options->start_method) < 0)
            return -1;
        if (values[6] != Py_None) {
            if ((self->command = argument_command(values[6])) == NULL)
                return -1;
            options->worker_command = (const char *const *)self->command;
            options->worker_data = PyBytes_AsString(values[7]);
            options->worker_data_size = (size_t)PyBytes_Size(values[7]);
            options->hooks = NULL; /* the executed process has its own */
        }
    }
    return set_initializer(self, pool);
}

/* Pool(threads, max_workers, max_tasks, initializer, initargs, name, start_method, command, data,
 * termination_grace, initializer_timeout), as pebble.pools gives them. */
static int pool_init(pool_object *self, PyObject *args, PyObject *kwargs) {
    pool_request request = {.options = PEBBLE_POOL_OPTIONS_INIT};
    PyObject *values[10];
    int threads;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "pOOOOOOOOOO", &threads, &values[0], &values[1],
                          &values[2], &values[3], &values[4], &values[5], &values[6],
                          &values[7], &values[8], &values[9]))
        return -1;
    if (self->pool != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the pool has been made already");
        return -1;
    }
    see_leavers_off();
    interpreter_precede_handler();
    self->threads = threads;
    if (take_request(&request, self, values) < 0) {
        request_fini(&request);
        return -1;
    }
    pebble_error error = threads ? pebble_thread_pool_new(&request.options, &self->pool)
                                 : pebble_process_pool_new(&request.options, &self->pool);
    if (error == PEBBLE_OK) {
        self->initializer = request.initializer;
        request.initializer = NULL;
        self->next = living;
        self->link = &living;
        if (living != NULL)
            living->link = &self->next;
        living = self;
    } else {
        raise_engine_error(error);
    }
    request_fini(&request);
    return error == PEBBLE_OK ? 0 : -1;
}

static int pool_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((pool_object *)object)->initializer);
    return 0;
}

/* A subclass may have a __del__ that does not come here: dealloc does not count on it. */
static void pool_finalize(PyObject *object) {
    pool_object *self = (pool_object *)object;
    bool needed = self->initializer != NULL && self->initializer != Py_None;
    if (self->pool != NULL && self->leaving == NULL && needed)
        self->leaving = leave(self);
}

static void pool_dealloc(PyObject *object) {
    pool_object *self = (pool_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->link != NULL) {
        *self->link = self->next;
        if (self->next != NULL)
            self->next->link = self->link;
    }
    if (self->pool != NULL && self->leaving == NULL)
        self->leaving = leave(self);
    if (self->leaving != NULL)
        self->leaving->owner = NULL;
    else
        pebble_pool_free(self->pool); /* without memory: stopped */
    Py_XDECREF(self->initializer);
    see_leavers_off();
    type->tp_free(object);
    Py_DECREF(type);
}

static pebble_pool *pool_of(pool_object *self) {
    if (self->pool == NULL)
        PyErr_SetString(PyExc_RuntimeError,
                        "the pool has not been made: __init__() was not called");
    return self->pool;
}

/* ---- Scheduling ---- */

PyDoc_STRVAR(schedule_doc,
             "schedule($self, /, function, args=(), kwargs={}, timeout=None)\n--\n\n"
             "Schedule a call within the pool.\n\n"
             "function: the callable\n"
             "args, kwargs: its arguments, an iterable and a mapping\n"
             "timeout: the longest that it may run, in seconds (int or float), from its "
             "start; then its process\n"
             "    and all that this started are ended, and the future's result() raises\n"
             "    concurrent.futures.TimeoutError. None: no limit. Process pools only\n\n"
             "Returns a future: pebble.ProcessFuture, or, of a thread pool, a "
             "concurrent.futures.Future.\n\n"
             "Raises RuntimeError if the pool is closed, stopped or broken. What cannot "
             "be pickled is the future's\n"
             "error.");

static PyObject *pool_schedule(pool_object *self, PyObject *const *values_in,
                               Py_ssize_t nargs, PyObject *kwnames) {
    static signature processes = {
        "schedule", 4, 1, 4, {"function", "args", "kwargs", "timeout"}, {0}};
    static signature threads = {"schedule", 3, 1, 3, {"function", "args", "kwargs"}, {0}};
    PyObject *values[4] = {0};
    PyObject *args, *kwargs, *future = NULL;
    int64_t limit_ns;
    if (pool_of(self) == NULL ||
        arguments_take(self->threads ? &threads : &processes, values_in, nargs, kwnames,
                       values) < 0 ||
        argument_callable(values[0], "function") < 0 ||
        argument_limit(values[3], "timeout", &limit_ns) < 0 ||
        (args = argument_tuple(values[1], "args")) == NULL)
        return NULL;
    if (argument_dict(values[2], "kwargs", &kwargs) == 0) {
        if (self->threads)
            future = call_on_threads(self->pool, values[0], args, kwargs);
        else
            future = call_on_processes(self->pool, values[0], args, kwargs, limit_ns);
        Py_XDECREF(kwargs);
    }
    Py_DECREF(args);
    deferred_drain();
    return future;
}

/* A number of at least 1; of a float, as the specification's example gives one, the integral part. */
static int take_chunk_size(PyObject *value, Py_ssize_t *size) {
    long long integer = 1;
    if (value != NULL && PyFloat_Check(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        if (!(number >= 1 && number < 9e15)) {
            PyErr_Format(PyExc_ValueError, "chunksize must be at least 1, not %R", value);
            return -1;
        }
        integer = (long long)number;
    } else if (argument_integer(value, "chunksize", 1, PTRDIFF_MAX / 64, &integer) < 0) {
        return -1;
    }
    *size = (Py_ssize_t)integer;
    return 0;
}

PyDoc_STRVAR(
    map_doc,
    "map($self, function, /, *iterables, chunksize=1, timeout=None)\n--\n\n"
    "Compute the function with arguments from each of the iterables, until the shortest "
    "is exhausted.\n\n"
    "chunksize: so many elements go to a worker as one task\n"
    "timeout: seconds (int or float). Process pool: the longest that computing a chunk "
    "may take, not\n"
    "    counting its time in the queue; then its elements raise "
    "concurrent.futures.TimeoutError. Thread\n"
    "    pool: an element that is not there so long after this call raises it\n\n"
    "The iterables are consumed at once. Returns a pebble.ProcessMapFuture (thread pool: "
    "MapFuture): its\n"
    "result() is an iterator over the results, in order.\n\n"
    "Raises RuntimeError if the pool is closed, stopped or broken.");

static PyObject *pool_map(pool_object *self, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames) {
    static signature keywords = {"map", 2, 0, 0, {"chunksize", "timeout"}, {0}};
    PyObject *values[2];
    map_request request = {.pool = pool_of(self), .threads = self->threads};
    if (request.pool == NULL)
        return NULL;
    if (nargs < 2) {
        PyErr_Format(PyExc_TypeError, "map() missing required argument '%s'",
                     nargs < 1 ? "function" : "iterables");
        return NULL;
    }
    if (arguments_take(&keywords, args + nargs, 0, kwnames, values) < 0 ||
        argument_callable(args[0], "function") < 0 ||
        take_chunk_size(values[0], &request.chunk_size) < 0 ||
        argument_limit(values[1], "timeout", &request.limit_ns) < 0)
        return NULL;
    request.function = args[0];
    request.type = self->threads ? names.map_future : names.process_map_future;
    request.iterables = PyTuple_New(nargs - 1);
    if (request.iterables == NULL)
        return NULL;
    for (Py_ssize_t i = 1; i < nargs; i++)
        PyTuple_SET_ITEM(request.iterables, i - 1, Py_NewRef(args[i]));
    PyObject *future = map_schedule(&request);
    Py_DECREF(request.iterables);
    return future;
}

/* ---- Life ---- */

static PyObject *get_active(pool_object *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->pool != NULL && pebble_pool_active(self->pool));
}

static PyObject *end_with(pool_object *self, pebble_error (*end)(pebble_pool *)) {
    pebble_error error;
    pebble_pool *pool = pool_of(self);
    if (pool == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = end(pool);
    Py_END_ALLOW_THREADS
    deferred_drain();
    if (error != PEBBLE_OK)
        return raise_engine_error(error);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    close_doc,
    "close($self, /)\n--\n\n"
    "No more calls are taken; those queued and running are performed. May be repeated.");

static PyObject *pool_close(pool_object *self, PyObject *unused) {
    (void)unused;
    return end_with(self, pebble_pool_close);
}

PyDoc_STRVAR(stop_doc, "stop($self, /)\n--\n\n"
                       "Stop the pool abruptly: every queued call is cancelled, and in a "
                       "process pool the running ones, too.\n"
                       "Does not wait. May be repeated.");

static PyObject *pool_stop(pool_object *self, PyObject *unused) {
    (void)unused;
    return end_with(self, pebble_pool_stop);
}

PyDoc_STRVAR(
    join_doc,
    "join($self, /, timeout=None)\n--\n\n"
    "Wait until all workers of a closed or stopped pool have gone and all callbacks have "
    "returned.\n\n"
    "timeout: seconds (int or float), None: without limit\n\n"
    "Raises concurrent.futures.TimeoutError if that is over first; RuntimeError before "
    "close or stop, and\n"
    "in a done-callback or a task of the pool itself, where it would wait for itself.");

static PyObject *pool_join(pool_object *self, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames) {
    static signature parameters = {"join", 1, 0, 1, {"timeout"}, {0}};
    PyObject *timeout;
    int64_t deadline_ns;
    pebble_error error;
    pebble_pool *pool = pool_of(self);
    if (pool == NULL || arguments_take(&parameters, args, nargs, kwnames, &timeout) < 0 ||
        argument_deadline(timeout, "timeout", &deadline_ns) < 0)
        return NULL;
    do {
        int64_t left_ns = deadline_left(deadline_ns);
        if (interpreter_before_wait() < 0)
            return NULL;
        Py_BEGIN_ALLOW_THREADS
        error = pebble_pool_join(pool, left_ns);
        Py_END_ALLOW_THREADS
    } while (error == PEBBLE_ERR_INTERRUPTED);
    deferred_drain();
    if (error == PEBBLE_ERR_TIMEOUT)
        PyErr_SetString(names.timeout_error, "workers are still running");
    else if (error != PEBBLE_OK)
        raise_engine_error(error);
    if (error != PEBBLE_OK)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *get_pids(pool_object *self, void *unused) {
    pid_t pids[PEBBLE_MAX_WORKERS];
    size_t count = 0;
    (void)unused;
    if (pool_of(self) == NULL)
        return NULL;
    pebble_error error =
        pebble_pool_get_pids(self->pool, pids, PEBBLE_MAX_WORKERS, &count);
    if (error != PEBBLE_OK)
        return raise_engine_error(error);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count && i < PEBBLE_MAX_WORKERS; i++) {
        PyObject *pid = PyLong_FromLong(pids[i]);
        if (pid == NULL || PyList_Append(list, pid) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pid);
    }
    return list;
}

static PyMethodDef pool_methods[] = {
    {"schedule", (PyCFunction)(void (*)(void))pool_schedule,
     METH_FASTCALL | METH_KEYWORDS, schedule_doc},
    {"map", (PyCFunction)(void (*)(void))pool_map, METH_FASTCALL | METH_KEYWORDS, map_doc},
    {"close", (PyCFunction)pool_close, METH_NOARGS, close_doc},
    {"stop", (PyCFunction)pool_stop, METH_NOARGS, stop_doc},
    {"join", (PyCFunction)(void (*)(void))pool_join, METH_FASTCALL | METH_KEYWORDS,
     join_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"active", (getter)get_active,
     NULL, "True while the pool takes calls (bool): before close and stop, and unless it is broken.",
     NULL},
    {"pids", (getter)get_pids, NULL,
     "The processes that serve calls now (list of int); none for a thread pool.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_init, pool_init},         {Py_tp_traverse, pool_traverse},
    {Py_tp_finalize, pool_finalize}, {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods},   {Py_tp_getset, pool_getset},
    {Py_tp_new, PyType_GenericNew},  {0, NULL},
};

PyType_Spec pool_spec = {
    .name = "pebble._engine.Pool",
    .basicsize = sizeof(pool_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pool_slots,
};
