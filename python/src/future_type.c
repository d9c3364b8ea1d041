/* The type: what its instances hold, its methods, and the attributes that concurrent.futures and asyncio
 * look at. Plain futures, which a user has made, leave all to concurrent.futures. */
#include "argument.h"
#include "future.h"
#include "map.h"

/* ---- Making and freeing ---- */

/* A user makes one: concurrent.futures sets what its methods need. */
static int future_init(future_object *self, PyObject *args, PyObject *kwargs) {
    if (PyTuple_GET_SIZE(args) > 0 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0)) {
        PyErr_Format(PyExc_TypeError, "%.200s() takes no arguments",
                     Py_TYPE(self)->tp_name);
        return -1;
    }
    if (self->kind != FUTURE_PLAIN)
        return 0;
    PyObject *done = PyObject_CallMethod(names.base_future, "__init__", "O", self);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

int future_traverse(PyObject *object, visitproc visit, void *arg) {
    future_object *self = (future_object *)object;
    Py_VISIT(Py_TYPE(self));
    if (self->call != NULL) {
        Py_VISIT(self->call->function);
        Py_VISIT(self->call->args);
        Py_VISIT(self->call->kwargs);
    }
    if (self->audience != NULL) {
        Py_VISIT(self->audience->condition);
        Py_VISIT(self->audience->waiters);
        Py_VISIT(self->audience->callbacks);
        Py_VISIT(self->audience->state);
    }
    return outcome_visit(&self->outcome, visit, arg);
}

int future_clear(PyObject *object) {
    future_object *self = (future_object *)object;
    if (self->call != NULL)
        call_clear(self->call);
    if (self->audience != NULL) {
        Py_CLEAR(self->audience->condition);
        Py_CLEAR(self->audience->waiters);
        Py_CLEAR(self->audience->callbacks);
        Py_CLEAR(self->audience->state);
    }
    outcome_clear(&self->outcome);
    return 0;
}

void future_fini(PyObject *object) {
    future_object *self = (future_object *)object;
    pebble_future_unref(self->engine);
    future_clear(object);
    PyMem_Free(self->call);
    PyMem_Free(self->audience);
}

static void future_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    future_fini(object);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- Methods: plain futures leave them to concurrent.futures ---- */

static PyObject *call_base(future_object *self, const char *method, PyObject *argument) {
    PyObject *name = PyUnicode_FromString(method);
    PyObject *function = name != NULL ? PyObject_GetAttr(names.base_future, name) : NULL;
    PyObject *result =
        function != NULL
            ? PyObject_CallFunctionObjArgs(function, (PyObject *)self, argument, NULL)
            : NULL;
    Py_XDECREF(function);
    Py_XDECREF(name);
    return result;
}

PyDoc_STRVAR(cancel_doc, "cancel($self, /)\n--\n\n"
                         "Cancel a running or enqueued call.\n\n"
                         "A queued call never starts. The process of a running one is "
                         "ended with every process that it\n"
                         "started; the future ends when they are gone.\n\n"
                         "Returns True if the call is or will be cancelled, False if it "
                         "has ended already (or, in a thread\n"
                         "pool, if it runs).");

static PyObject *future_cancel(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "cancel", NULL);
    bool cancels;
    pebble_future *engine =
        self->kind == FUTURE_MAP ? map_open_engine((map_future *)self) : self->engine;
    if (engine != NULL && pebble_future_wait(engine, 0) == PEBBLE_ERR_FORKED)
        return raise_engine_error(PEBBLE_ERR_FORKED);
    if (self->kind == FUTURE_MAP)
        cancels = map_cancel((map_future *)self);
    else
        cancels = self->engine == NULL
                      ? self->was_cancelled
                      : pebble_future_cancel(self->engine) ||
                            pebble_future_state(self->engine) == PEBBLE_CANCELLED;
    self->cancel_accepted |= cancels;
    deferred_drain();
    return PyBool_FromLong(cancels);
}

PyDoc_STRVAR(cancelled_doc, "cancelled($self, /)\n--\n\n"
                            "True if the call was cancelled.");

static PyObject *future_cancelled(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "cancelled", NULL);
    return PyBool_FromLong(future_is_cancelled(self));
}

PyDoc_STRVAR(running_doc, "running($self, /)\n--\n\n"
                          "True if the call has started and not ended.");

static PyObject *future_running(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "running", NULL);
    return PyBool_FromLong(future_is_running(self));
}

PyDoc_STRVAR(done_doc,
             "done($self, /)\n--\n\n"
             "True if the call has ended, in whatever way; a map: all its elements.");

static PyObject *future_done(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "done", NULL);
    return PyBool_FromLong(future_has_ended(self));
}

static PyObject *take_timeout(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                              const char *function) {
    static signature result = {"result", 1, 0, 1, {"timeout"}, {0}};
    static signature exception = {"exception", 1, 0, 1, {"timeout"}, {0}};
    PyObject *timeout;
    if (arguments_take(*function == 'r' ? &result : &exception, args, nargs, kwnames,
                       &timeout) < 0)
        return NULL;
    return timeout != NULL ? timeout : Py_None;
}

/* Waits for a map's first element. The iterator, or NULL with an exception. */
static PyObject *wait_for_map(map_future *self, PyObject *timeout) {
    int64_t deadline_ns;
    if (argument_deadline(timeout, "timeout", &deadline_ns) < 0)
        return NULL;
    int ended = map_wait_first(self, deadline_ns);
    if (ended == 0)
        PyErr_SetNone(names.timeout_error);
    if (ended <= 0)
        return NULL;
    if (map_cancelled(self)) {
        PyErr_SetNone(names.cancelled_error);
        return NULL;
    }
    return map_results(self);
}

PyDoc_STRVAR(
    result_doc,
    "result($self, /, timeout=None)\n--\n\n"
    "The result of the call; a map: an iterator over the results, once the first is "
    "there.\n\n"
    "timeout: how long to wait, in seconds (int or float); None: for ever.\n\n"
    "Raises what the call raised; concurrent.futures.TimeoutError, with the limit as "
    "args[1], if it ran\n"
    "longer than it may, and without arguments if the wait ended first; CancelledError;\n"
    "pebble.ProcessExpired if its process died.");

static PyObject *future_result(future_object *self, PyObject *const *args,
                               Py_ssize_t nargs, PyObject *kwnames) {
    PyObject *timeout = take_timeout(args, nargs, kwnames, "result");
    if (timeout == NULL)
        return NULL;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "result", timeout);
    if (self->kind == FUTURE_MAP)
        return wait_for_map((map_future *)self, timeout);
    if (future_wait_known(self, timeout) < 0)
        return NULL;
    return self->outcome.error != NULL ? exception_raise(self->outcome.error)
                                       : Py_NewRef(self->outcome.value);
}

PyDoc_STRVAR(exception_doc,
             "exception($self, /, timeout=None)\n--\n\n"
             "What the call raised, or None; waits and raises as result() otherwise.");

static PyObject *future_exception(future_object *self, PyObject *const *args,
                                  Py_ssize_t nargs, PyObject *kwnames) {
    PyObject *timeout = take_timeout(args, nargs, kwnames, "exception");
    if (timeout == NULL)
        return NULL;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "exception", timeout);
    if (self->kind == FUTURE_MAP) {
        PyObject *results = wait_for_map((map_future *)self, timeout);
        if (results == NULL)
            return NULL;
        Py_DECREF(results);
        Py_RETURN_NONE;
    }
    if (future_wait_known(self, timeout) < 0)
        return NULL;
    return Py_NewRef(self->outcome.error != NULL ? self->outcome.error : Py_None);
}

PyDoc_STRVAR(add_done_callback_doc, "add_done_callback($self, /, fn)\n--\n\n"
                                    "Have fn called with the future when it has ended: "
                                    "in a thread of the engine, or at once if it has.\n\n"
                                    "What a callback raises is logged. For a call that "
                                    "was cancelled or ran out of time its processes\n"
                                    "are gone by then.");

static PyObject *future_add_done_callback(future_object *self, PyObject *const *args,
                                          Py_ssize_t nargs, PyObject *kwnames) {
    static signature parameters = {"add_done_callback", 1, 1, 1, {"fn"}, {0}};
    PyObject *callback;
    if (arguments_take(&parameters, args, nargs, kwnames, &callback) < 0)
        return NULL;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "add_done_callback", callback);
    if (argument_callable(callback, "fn") < 0)
        return NULL;
    if (self->announced[CALLBACKS] || future_has_ended(self)) {
        if (future_call_back(self, callback) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    future_audience *audience = future_audience_make(self);
    if (audience == NULL ||
        (audience->callbacks == NULL && (audience->callbacks = PyList_New(0)) == NULL) ||
        future_watch(self, CALLBACKS) < 0)
        return NULL;
    /* Nobody has had the GIL since: either it has ended, or they are told later. */
    int failed = self->announced[CALLBACKS]
                     ? future_call_back(self, callback)
                     : PyList_Append(audience->callbacks, callback);
    if (failed < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_running_doc, "set_running_or_notify_cancel($self, /)\n--\n\n"
                              "As of concurrent.futures.Future: False if the future was "
                              "cancelled, else True, once.");

static PyObject *future_set_running(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "set_running_or_notify_cancel", NULL);
    if (future_is_cancelled(self))
        Py_RETURN_FALSE;
    if (future_has_ended(self) || future_is_running(self)) {
        PyErr_SetString(PyExc_RuntimeError, "Future in unexpected state");
        return NULL;
    }
    self->marked_running = true;
    Py_RETURN_TRUE;
}

static PyObject *set_outcome(future_object *self, signature *parameters,
                             PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    PyObject *value;
    if (arguments_take(parameters, args, nargs, kwnames, &value) < 0)
        return NULL;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, parameters->function, value);
    PyErr_Format(names.invalid_state_error, "%R is a pool's: its result cannot be set",
                 self);
    return NULL;
}

PyDoc_STRVAR(set_result_doc,
             "set_result($self, /, result)\n--\n\n"
             "Only for a future that is not a pool's: raises InvalidStateError.");

static PyObject *future_set_result(future_object *self, PyObject *const *args,
                                   Py_ssize_t nargs, PyObject *kwnames) {
    static signature parameters = {"set_result", 1, 1, 1, {"result"}, {0}};
    return set_outcome(self, &parameters, args, nargs, kwnames);
}

PyDoc_STRVAR(set_exception_doc,
             "set_exception($self, /, exception)\n--\n\n"
             "Only for a future that is not a pool's: raises InvalidStateError.");

static PyObject *future_set_exception(future_object *self, PyObject *const *args,
                                      Py_ssize_t nargs, PyObject *kwnames) {
    static signature parameters = {"set_exception", 1, 1, 1, {"exception"}, {0}};
    return set_outcome(self, &parameters, args, nargs, kwnames);
}

static PyObject *state_of(future_object *self) {
    const future_audience *audience = future_audience_of(self);
    if (self->kind == FUTURE_PLAIN)
        return audience->state != NULL ? audience->state : names.pending;
    bool ended = future_has_ended(self);
    if (audience->condition != NULL ? self->told : ended)
        return future_is_cancelled(self) ? names.cancelled_and_notified : names.finished;
    return ended || future_is_running(self) || self->cancel_accepted ? names.running
                                                                     : names.pending;
}

/* " returned int", " raised ValueError", or nothing: as concurrent.futures writes it. */
static PyObject *describe_outcome(future_object *self) {
    if (self->kind != FUTURE_TASK || !future_has_ended(self) ||
        future_become_known(self) < 0 || self->was_cancelled)
        return exception_forget() == 0 ? PyUnicode_FromString("") : NULL;
    PyObject *object =
        self->outcome.error != NULL ? self->outcome.error : self->outcome.value;
    PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(object), "__name__");
    PyObject *text =
        name != NULL
            ? PyUnicode_FromFormat(
                  self->outcome.error != NULL ? " raised %U" : " returned %U", name)
            : NULL;
    Py_XDECREF(name);
    return text;
}

static PyObject *future_repr(future_object *self) {
    PyObject *name, *lower, *end, *text;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "__repr__", NULL);
    name = PyObject_GetAttrString((PyObject *)Py_TYPE(self), "__name__");
    lower = PyObject_CallMethod(
        future_is_cancelled(self) ? names.cancelled : state_of(self), "lower", NULL);
    end = describe_outcome(self);
    text = name != NULL && lower != NULL && end != NULL
               ? PyUnicode_FromFormat("<%U at %p state=%U%U>", name, self, lower, end)
               : NULL;
    Py_XDECREF(name);
    Py_XDECREF(lower);
    Py_XDECREF(end);
    return text;
}

/* ---- Attributes that concurrent.futures and asyncio use ---- */

static PyObject *get_state(future_object *self, void *unused) {
    (void)unused;
    return Py_NewRef(state_of(self));
}

static PyObject *get_condition(future_object *self, void *unused) {
    future_audience *audience = future_audience_make(self);
    (void)unused;
    if (audience == NULL)
        return NULL;
    if (audience->condition == NULL) {
        /* Nobody can wait yet. Telling of it later, in here, would run Python code. */
        if (future_has_ended(self) && future_announce(self, WAITERS) < 0)
            return NULL;
        PyObject *condition = PyObject_CallNoArgs(names.condition);
        if (condition == NULL)
            return NULL;
        if (audience->condition == NULL) /* else another thread was faster */
            audience->condition = condition;
        else
            Py_DECREF(condition);
    }
    if (future_watch(self, WAITERS) < 0) /* each time: it may have failed before */
        return NULL;
    return Py_NewRef(audience->condition);
}

static PyObject *get_list(PyObject **list) {
    if (*list == NULL && (*list = PyList_New(0)) == NULL)
        return NULL;
    return Py_NewRef(*list);
}

static PyObject *get_waiters(future_object *self, void *unused) {
    future_audience *audience = future_audience_make(self);
    (void)unused;
    return audience != NULL ? get_list(&audience->waiters) : NULL;
}

static PyObject *get_callbacks(future_object *self, void *unused) {
    future_audience *audience = future_audience_make(self);
    (void)unused;
    return audience != NULL ? get_list(&audience->callbacks) : NULL;
}

/* NULL (None) while it has not ended. */
static const outcome *outcome_now(future_object *self) {
    if (self->kind == FUTURE_TASK && future_has_ended(self) &&
        future_become_known(self) < 0)
        return NULL;
    return &self->outcome;
}

static PyObject *get_result(future_object *self, void *unused) {
    (void)unused;
    const outcome *now = outcome_now(self);
    if (now == NULL)
        return NULL;
    return Py_NewRef(now->value != NULL ? now->value : Py_None);
}

static PyObject *get_exception(future_object *self, void *unused) {
    (void)unused;
    const outcome *now = outcome_now(self);
    if (now == NULL)
        return NULL;
    return Py_NewRef(now->error != NULL ? now->error : Py_None);
}

static PyObject *get_pid(future_object *self, void *unused) {
    (void)unused;
    pid_t pid = self->engine != NULL ? pebble_future_pid(self->engine) : self->pid;
    if (pid == 0)
        Py_RETURN_NONE;
    return PyLong_FromLong(pid);
}

/* Plain futures only: as concurrent.futures sets them. */
static int set_plain(future_object *self, PyObject *value, void *closure) {
    future_audience *audience = future_audience_make(self);
    if (audience == NULL)
        return -1;
    PyObject **fields[] = {&audience->state,     &audience->condition,
                           &audience->waiters,   &audience->callbacks,
                           &self->outcome.value, &self->outcome.error};
    PyObject **field = fields[(uintptr_t)closure];
    if (self->kind != FUTURE_PLAIN) {
        PyErr_SetString(PyExc_AttributeError, "the attribute is the pool's to set");
        return -1;
    }
    if (value == Py_None && (uintptr_t)closure >= 4)
        value = NULL;
    PyObject *old = *field;
    *field = value != NULL ? Py_NewRef(value) : NULL;
    Py_XDECREF(old);
    return 0;
}

static PyMethodDef future_methods[] = {
    {"cancel", (PyCFunction)future_cancel, METH_NOARGS, cancel_doc},
    {"cancelled", (PyCFunction)future_cancelled, METH_NOARGS, cancelled_doc},
    {"running", (PyCFunction)future_running, METH_NOARGS, running_doc},
    {"done", (PyCFunction)future_done, METH_NOARGS, done_doc},
    {"result", (PyCFunction)(void (*)(void))future_result, METH_FASTCALL | METH_KEYWORDS,
     result_doc},
    {"exception", (PyCFunction)(void (*)(void))future_exception,
     METH_FASTCALL | METH_KEYWORDS, exception_doc},
    {"add_done_callback", (PyCFunction)(void (*)(void))future_add_done_callback,
     METH_FASTCALL | METH_KEYWORDS, add_done_callback_doc},
    {"set_running_or_notify_cancel", (PyCFunction)future_set_running, METH_NOARGS,
     set_running_doc},
    {"set_result", (PyCFunction)(void (*)(void))future_set_result,
     METH_FASTCALL | METH_KEYWORDS, set_result_doc},
    {"set_exception", (PyCFunction)(void (*)(void))future_set_exception,
     METH_FASTCALL | METH_KEYWORDS, set_exception_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef future_getset[] = {
    {"_state", (getter)get_state, (setter)set_plain, NULL, (void *)0},
    {"_condition", (getter)get_condition, (setter)set_plain, NULL, (void *)1},
    {"_waiters", (getter)get_waiters, (setter)set_plain, NULL, (void *)2},
    {"_done_callbacks", (getter)get_callbacks, (setter)set_plain, NULL, (void *)3},
    {"_result", (getter)get_result, (setter)set_plain, NULL, (void *)4},
    {"_exception", (getter)get_exception, (setter)set_plain, NULL, (void *)5},
    {"pid", (getter)get_pid, NULL,
     "The process that runs or ran the call (int); None before, and for a thread.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot future_slots[] = {
    {Py_tp_init, future_init},
    {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},
    {Py_tp_dealloc, future_dealloc},
    {Py_tp_methods, future_methods},
    {Py_tp_getset, future_getset},
    {Py_tp_repr, future_repr},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};

PyType_Spec future_spec = {
    .name = "pebble._engine.Future",
    .basicsize = sizeof(future_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = future_slots,
};
