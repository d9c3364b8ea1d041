/* What a future knows, and when.
 *
 * The engine's future is the truth until its outcome has been taken from it (known), in the thread
 * that asks first; then it is given up, with the memory of its bytes. Two threads may load a result
 * at once; the first one's is kept, so that everybody gets the same object.
 *
 * Nobody is told of an end until somebody asks to be: add_done_callback() or the condition (wait(),
 * as_completed()) have the engine call back (watched), with a reference to the future. Between the
 * end and that call the future is done() already. But once there is a condition, _state changes under
 * it alone (told), and together with telling the waiters: wait() looks at it twice and counts.
 *
 * cancelled() is true as soon as cancel() was accepted; the future ends when the processes are gone.
 */
#include "future.h"

#include "argument.h"
#include "interpreter.h"
#include "map.h"

/* ---- Making and freeing ---- */

future_object *task_future_new(PyTypeObject *type, pebble_future *engine) {
    future_object *self = (future_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        pebble_future_unref(engine);
        return NULL;
    }
    self->kind = FUTURE_TASK;
    self->engine = engine;
    self->deferred.object = (PyObject *)self;
    return self;
}

PyObject *task_future_new_failed(PyTypeObject *type) {
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyObject *error = exception_take();
    future_object *self = task_future_new(type, NULL);
    if (self == NULL) {
        Py_DECREF(error);
        return NULL;
    }
    self->outcome.error = error;
    self->known = true;
    return (PyObject *)self;
}

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
    Py_VISIT(self->function);
    Py_VISIT(self->args);
    Py_VISIT(self->kwargs);
    Py_VISIT(self->condition);
    Py_VISIT(self->waiters);
    Py_VISIT(self->callbacks);
    Py_VISIT(self->state);
    return outcome_visit(&self->outcome, visit, arg);
}

int future_clear(PyObject *object) {
    future_object *self = (future_object *)object;
    Py_CLEAR(self->function);
    Py_CLEAR(self->args);
    Py_CLEAR(self->kwargs);
    Py_CLEAR(self->condition);
    Py_CLEAR(self->waiters);
    Py_CLEAR(self->callbacks);
    Py_CLEAR(self->state);
    outcome_clear(&self->outcome);
    return 0;
}

static void future_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    pebble_future_unref(((future_object *)object)->engine);
    future_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- Waiting ---- */

int engine_wait(pebble_future *engine, int64_t deadline_ns) {
    pebble_error error;
    do {
        int64_t left_ns = deadline_left(deadline_ns);
        if (interpreter_before_wait() < 0)
            return -1;
        Py_BEGIN_ALLOW_THREADS
        error = pebble_future_wait(engine, left_ns);
        Py_END_ALLOW_THREADS
    } while (error == PEBBLE_ERR_INTERRUPTED);
    if (error == PEBBLE_OK || error == PEBBLE_ERR_TIMEOUT)
        return error == PEBBLE_OK;
    raise_engine_error(error);
    return -1;
}

/* ---- Its end ---- */

static bool has_ended(future_object *self) {
    if (self->kind == FUTURE_MAP)
        return map_done((map_future *)self);
    return self->known || (self->engine != NULL && pebble_future_done(self->engine));
}

/* From what the engine has. -1 with an exception that concerns the caller alone. */
static int load_outcome(pebble_future *engine, outcome *found, bool *cancelled) {
    const void *data;
    size_t size;
    const pebble_failure *failure = pebble_future_failure(engine);
    *cancelled = failure != NULL && failure->kind == PEBBLE_ERR_TASK_CANCELLED;
    if (failure == NULL) {
        pebble_error error = pebble_future_result(engine, 0, &data, &size);
        if (error == PEBBLE_OK)
            return outcome_load(found, data, size);
        raise_engine_error(error);
        return -1;
    }
    if (!*cancelled) {
        found->error = exception_of_failure(failure);
        if (found->error == NULL)
            found->error = exception_take();
    }
    return 0;
}

/* A thread has left its outcome here, before the engine ended the future. */
static int take_thread_outcome(future_object *self) {
    const pebble_failure *failure = pebble_future_failure(self->engine);
    if (self->outcome.value == NULL && self->outcome.error == NULL) {
        if (failure != NULL && failure->kind == PEBBLE_ERR_TASK_CANCELLED)
            self->was_cancelled = true;
        else if (failure != NULL)
            self->outcome.error = exception_of_failure(failure);
        else
            self->outcome.error = PyObject_CallFunction(
                PyExc_RuntimeError, "s", "the interpreter ended before the task");
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Of a future that has ended: makes its outcome known. -1 with an exception. */
static int become_known(future_object *self) {
    outcome found = {0};
    bool cancelled = false;
    int failed = 0;
    if (self->known)
        return 0;
    pebble_future *engine = pebble_future_ref(self->engine);
    if (self->in_thread)
        failed = take_thread_outcome(self);
    else
        failed = load_outcome(engine, &found, &cancelled);
    if (failed == 0 && !self->known) { /* else another thread was faster */
        if (found.value != NULL || found.error != NULL) {
            self->outcome = found;
            found = (outcome){0};
        }
        self->was_cancelled |= cancelled;
        self->pid = pebble_future_pid(engine);
        self->known = true;
        pebble_future_unref(self->engine);
        self->engine = NULL;
        Py_CLEAR(self->args);
    }
    outcome_clear(&found);
    pebble_future_unref(engine);
    return failed;
}

static bool is_cancelled(future_object *self) {
    if (self->kind == FUTURE_MAP)
        return map_cancelled((map_future *)self);
    if (self->cancel_accepted || self->was_cancelled)
        return true;
    return self->engine != NULL && has_ended(self) &&
           pebble_future_state(self->engine) == PEBBLE_CANCELLED;
}

static bool is_running(future_object *self) {
    if (self->kind == FUTURE_MAP)
        return !has_ended(self) &&
               (self->marked_running || map_running((map_future *)self));
    if (self->cancel_accepted || has_ended(self))
        return false;
    return self->marked_running || pebble_future_state(self->engine) == PEBBLE_RUNNING;
}

/* Waits for the end and makes it known. 0, or -1 with an exception: TimeoutError, CancelledError. */
static int wait_known(future_object *self, PyObject *timeout) {
    int64_t deadline_ns;
    if (argument_deadline(timeout, "timeout", &deadline_ns) < 0)
        return -1;
    if (!self->known && !has_ended(self)) {
        pebble_future *engine = pebble_future_ref(self->engine);
        int ended = engine_wait(engine, deadline_ns);
        pebble_future_unref(engine);
        if (ended == 0)
            PyErr_SetNone(names.timeout_error);
        if (ended <= 0)
            return -1;
    }
    if (become_known(self) < 0)
        return -1;
    if (self->was_cancelled)
        PyErr_SetNone(names.cancelled_error);
    return self->was_cancelled ? -1 : 0;
}

/* ---- Telling of it ---- */

static void log_callback_error(future_object *self) {
    PyObject *done, *exception = exception_take();
    PyObject *log = PyObject_GetAttrString(names.logger, "error");
    PyObject *args = Py_BuildValue("(sO)", "exception calling callback for %r", self);
    PyObject *kwargs = Py_BuildValue("{sO}", "exc_info", exception);
    if (log != NULL && args != NULL && kwargs != NULL) {
        done = PyObject_Call(log, args, kwargs);
        Py_XDECREF(done);
    }
    PyErr_Clear();
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(log);
    Py_DECREF(exception);
}

/* An Exception is logged. -1 with any other, as in concurrent.futures. */
static int call_back(future_object *self, PyObject *callback) {
    PyObject *done = PyObject_CallOneArg(callback, (PyObject *)self);
    if (done == NULL && !PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    if (done == NULL)
        log_callback_error(self);
    Py_XDECREF(done);
    return 0;
}

/* True if it has ended with an exception; its result need not be loaded for that. */
static bool has_error(future_object *self) {
    const void *data;
    size_t size;
    if (self->kind == FUTURE_MAP)
        return false;
    if (self->known || self->in_thread)
        return become_known(self) == 0 && self->outcome.error != NULL;
    return pebble_future_result(self->engine, 0, &data, &size) != PEBBLE_OK ||
           size == 0 || ((const unsigned char *)data)[size - 1] != 0; /* RESULT_VALUE */
}

static void tell_waiters(future_object *self) {
    static const char *const methods[] = {"add_result", "add_exception", "add_cancelled"};
    int end = is_cancelled(self) ? 2 : has_error(self);
    PyErr_Clear();
    for (Py_ssize_t i = 0; self->waiters != NULL && i < PyList_GET_SIZE(self->waiters);
         i++) {
        PyObject *waiter = Py_NewRef(PyList_GET_ITEM(self->waiters, i));
        PyObject *done = PyObject_CallMethod(waiter, methods[end], "O", self);
        if (done == NULL)
            PyErr_WriteUnraisable(waiter);
        Py_XDECREF(done);
        Py_DECREF(waiter);
    }
}

static void notify_condition(future_object *self) {
    PyObject *done = PyObject_CallMethod(self->condition, "acquire", NULL);
    if (done == NULL) {
        PyErr_WriteUnraisable(self->condition);
        return;
    }
    Py_DECREF(done);
    self->told = true;
    tell_waiters(self);
    static const char *const methods[] = {"notify_all", "release"};
    for (int i = 0; i < 2; i++) {
        done = PyObject_CallMethod(self->condition, methods[i], NULL);
        if (done == NULL)
            PyErr_WriteUnraisable(self->condition);
        Py_XDECREF(done);
    }
}

void future_announce(future_object *self) {
    if (self->announced)
        return;
    self->announced = true;
    if (self->condition != NULL)
        notify_condition(self);
    self->told = true;
    PyObject *callbacks = self->callbacks;
    self->callbacks = NULL;
    for (Py_ssize_t i = 0; callbacks != NULL && i < PyList_GET_SIZE(callbacks); i++) {
        if (call_back(self, PyList_GET_ITEM(callbacks, i)) < 0)
            log_callback_error(self); /* nobody else is there to take it */
    }
    Py_XDECREF(callbacks);
}

/* From the engine, with the reference that watch() took. */
static void engine_ended(pebble_future *engine, void *context) {
    PyGILState_STATE state;
    (void)engine;
    if (!thread_enter(&state))
        return;
    future_announce(context);
    Py_DECREF(context);
    thread_leave(state);
}

static int watch(future_object *self) {
    if (self->watched || self->announced || self->kind == FUTURE_PLAIN)
        return 0;
    if (self->kind == FUTURE_MAP)
        return map_watch((map_future *)self);
    if (self->engine == NULL) {
        future_announce(self);
        return 0;
    }
    self->watched = true;
    interpreter_precede_handler();
    pebble_future *engine = pebble_future_ref(self->engine);
    pebble_error error = pebble_future_add_callback(engine, engine_ended, Py_NewRef(self));
    pebble_future_unref(engine);
    if (error == PEBBLE_OK)
        return 0;
    self->watched = false;
    Py_DECREF(self);
    raise_engine_error(error);
    return -1;
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
    if (self->engine != NULL && pebble_future_wait(self->engine, 0) == PEBBLE_ERR_FORKED)
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
    return PyBool_FromLong(is_cancelled(self));
}

PyDoc_STRVAR(running_doc, "running($self, /)\n--\n\n"
                          "True if the call has started and not ended.");

static PyObject *future_running(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "running", NULL);
    return PyBool_FromLong(is_running(self));
}

PyDoc_STRVAR(done_doc,
             "done($self, /)\n--\n\n"
             "True if the call has ended, in whatever way; a map: all its elements.");

static PyObject *future_done(future_object *self, PyObject *unused) {
    (void)unused;
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "done", NULL);
    return PyBool_FromLong(has_ended(self));
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
    if (wait_known(self, timeout) < 0)
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
    if (wait_known(self, timeout) < 0)
        return NULL;
    return Py_NewRef(self->outcome.error != NULL ? self->outcome.error : Py_None);
}

PyDoc_STRVAR(add_done_callback_doc, "add_done_callback($self, fn, /)\n--\n\n"
                                    "Have fn called with the future when it has ended: "
                                    "in a thread of the engine, or at once if it has.\n\n"
                                    "What a callback raises is logged. For a call that "
                                    "was cancelled or ran out of time its processes\n"
                                    "are gone by then.");

static PyObject *future_add_done_callback(future_object *self, PyObject *callback) {
    if (self->kind == FUTURE_PLAIN)
        return call_base(self, "add_done_callback", callback);
    if (argument_callable(callback, "fn") < 0)
        return NULL;
    if (self->announced || has_ended(self)) {
        if (call_back(self, callback) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    if (self->callbacks == NULL && (self->callbacks = PyList_New(0)) == NULL)
        return NULL;
    if (PyList_Append(self->callbacks, callback) < 0 || watch(self) < 0)
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
    if (is_cancelled(self))
        Py_RETURN_FALSE;
    if (has_ended(self) || is_running(self)) {
        PyErr_SetString(PyExc_RuntimeError, "Future in unexpected state");
        return NULL;
    }
    self->marked_running = true;
    Py_RETURN_TRUE;
}

static PyObject *refuse_to_be_set(future_object *self) {
    PyErr_Format(names.invalid_state_error, "%R is a pool's: its result cannot be set",
                 self);
    return NULL;
}

PyDoc_STRVAR(set_result_doc,
             "set_result($self, result, /)\n--\n\n"
             "Only for a future that is not a pool's: raises InvalidStateError.");

static PyObject *future_set_result(future_object *self, PyObject *result) {
    return self->kind == FUTURE_PLAIN ? call_base(self, "set_result", result)
                                      : refuse_to_be_set(self);
}

PyDoc_STRVAR(set_exception_doc,
             "set_exception($self, exception, /)\n--\n\n"
             "Only for a future that is not a pool's: raises InvalidStateError.");

static PyObject *future_set_exception(future_object *self, PyObject *exception) {
    return self->kind == FUTURE_PLAIN ? call_base(self, "set_exception", exception)
                                      : refuse_to_be_set(self);
}

static PyObject *state_of(future_object *self) {
    if (self->kind == FUTURE_PLAIN)
        return self->state != NULL ? self->state : names.pending;
    bool ended = has_ended(self);
    if (self->condition != NULL ? self->told : ended)
        return is_cancelled(self) ? names.cancelled_and_notified : names.finished;
    return ended || is_running(self) || self->cancel_accepted ? names.running
                                                              : names.pending;
}

/* " returned int", " raised ValueError", or nothing: as concurrent.futures writes it. */
static PyObject *describe_outcome(future_object *self) {
    if (self->kind != FUTURE_TASK || !has_ended(self) || become_known(self) < 0 ||
        self->was_cancelled) {
        PyErr_Clear();
        return PyUnicode_FromString("");
    }
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
    lower = PyObject_CallMethod(is_cancelled(self) ? names.cancelled : state_of(self),
                                "lower", NULL);
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
    (void)unused;
    if (self->condition == NULL) {
        PyObject *condition = PyObject_CallNoArgs(names.condition);
        if (condition == NULL)
            return NULL;
        if (self->condition == NULL) /* else another thread was faster */
            self->condition = condition;
        else
            Py_DECREF(condition);
        if (watch(self) < 0)
            return NULL;
    }
    return Py_NewRef(self->condition);
}

static PyObject *get_list(PyObject **list) {
    if (*list == NULL && (*list = PyList_New(0)) == NULL)
        return NULL;
    return Py_NewRef(*list);
}

static PyObject *get_waiters(future_object *self, void *unused) {
    (void)unused;
    return get_list(&self->waiters);
}

static PyObject *get_callbacks(future_object *self, void *unused) {
    (void)unused;
    return get_list(&self->callbacks);
}

/* NULL (None) while it has not ended. */
static const outcome *outcome_now(future_object *self) {
    if (self->kind == FUTURE_TASK && has_ended(self) && become_known(self) < 0)
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
    PyObject **fields[] = {&self->state,     &self->condition,     &self->waiters,
                           &self->callbacks, &self->outcome.value, &self->outcome.error};
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
    {"add_done_callback", (PyCFunction)future_add_done_callback, METH_O,
     add_done_callback_doc},
    {"set_running_or_notify_cancel", (PyCFunction)future_set_running, METH_NOARGS,
     set_running_doc},
    {"set_result", (PyCFunction)future_set_result, METH_O, set_result_doc},
    {"set_exception", (PyCFunction)future_set_exception, METH_O, set_exception_doc},
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
