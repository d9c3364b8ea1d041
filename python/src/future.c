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
    return self;
}

int future_set_call(future_object *self, PyObject *function, PyObject *args,
                    PyObject *kwargs) {
    PyObject *copy = kwargs != NULL ? PyDict_Copy(kwargs) : NULL;
    if (kwargs != NULL && copy == NULL)
        return -1;
    if ((self->call = PyMem_Malloc(sizeof *self->call)) == NULL) {
        Py_XDECREF(copy);
        PyErr_NoMemory();
        return -1;
    }
    *self->call = (future_call){.function = Py_XNewRef(function),
                                .args = Py_NewRef(args),
                                .kwargs = copy,
                                .deferred = {.object = (PyObject *)self}};
    return 0;
}

void call_clear(future_call *call) {
    Py_CLEAR(call->function);
    Py_CLEAR(call->args);
    Py_CLEAR(call->kwargs);
}

const future_audience future_nobody = {0};

future_audience *future_audience_make(future_object *self) {
    if (self->audience == NULL &&
        (self->audience = PyMem_Calloc(1, sizeof *self->audience)) == NULL)
        PyErr_NoMemory();
    return self->audience;
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

bool future_has_ended(future_object *self) {
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
            return outcome_load(found, engine, data, size);
        raise_engine_error(error);
        return -1;
    }
    if (!*cancelled) {
        found->error = exception_of_failure(failure);
        if (found->error == NULL && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
            return -1;
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
int future_become_known(future_object *self) {
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
        if (self->call != NULL)
            call_clear(self->call);
    }
    outcome_clear(&found);
    pebble_future_unref(engine);
    return failed;
}

bool future_is_cancelled(future_object *self) {
    if (self->kind == FUTURE_MAP)
        return map_cancelled((map_future *)self);
    if (self->cancel_accepted || self->was_cancelled)
        return true;
    return self->engine != NULL && future_has_ended(self) &&
           pebble_future_state(self->engine) == PEBBLE_CANCELLED;
}

bool future_is_running(future_object *self) {
    if (self->kind == FUTURE_MAP)
        return !future_has_ended(self) &&
               (self->marked_running || map_running((map_future *)self));
    if (self->cancel_accepted || future_has_ended(self))
        return false;
    return self->marked_running || pebble_future_state(self->engine) == PEBBLE_RUNNING;
}

/* Waits for the end and makes it known. 0, or -1 with an exception: TimeoutError, CancelledError. */
int future_wait_known(future_object *self, PyObject *timeout) {
    int64_t deadline_ns;
    if (argument_deadline(timeout, "timeout", &deadline_ns) < 0)
        return -1;
    if (!self->known && !future_has_ended(self)) {
        pebble_future *engine = pebble_future_ref(self->engine);
        int ended = engine_wait(engine, deadline_ns);
        pebble_future_unref(engine);
        if (ended == 0)
            PyErr_SetNone(names.timeout_error);
        if (ended <= 0)
            return -1;
    }
    if (future_become_known(self) < 0)
        return -1;
    if (self->was_cancelled)
        PyErr_SetNone(names.cancelled_error);
    return self->was_cancelled ? -1 : 0;
}

/* ---- Telling of it ---- */

/* -1 with an exception from outside. */
static int log_callback_error(future_object *self) {
    PyObject *done, *exception = exception_take();
    PyObject *log = PyObject_GetAttrString(names.logger, "error");
    PyObject *args = Py_BuildValue("(sO)", "exception calling callback for %r", self);
    PyObject *kwargs = Py_BuildValue("{sO}", "exc_info", exception);
    if (log != NULL && args != NULL && kwargs != NULL) {
        done = PyObject_Call(log, args, kwargs);
        Py_XDECREF(done);
    }
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(log);
    Py_DECREF(exception);
    return exception_forget();
}

/* An Exception is logged. -1 with any other, as in concurrent.futures. */
int future_call_back(future_object *self, PyObject *callback) {
    PyObject *done = PyObject_CallOneArg(callback, (PyObject *)self);
    if (done == NULL)
        return PyErr_ExceptionMatches(PyExc_Exception) ? log_callback_error(self) : -1;
    Py_DECREF(done);
    return 0;
}

/* True if it has ended with an exception; its result need not be loaded for that. */
static bool has_error(future_object *self) {
    const void *data;
    size_t size;
    if (self->kind == FUTURE_MAP)
        return false;
    if (self->known || self->in_thread)
        return future_become_known(self) == 0 && self->outcome.error != NULL;
    return pebble_future_result(self->engine, 0, &data, &size) != PEBBLE_OK ||
           outcome_is_error(data, size);
}

/* The exception that is set: the first one is kept for whoever is to raise it (trouble; NULL: nobody),
 * others are logged. */
static void note_trouble(future_object *self, PyObject **trouble) {
    if (trouble != NULL && *trouble == NULL)
        *trouble = exception_take();
    else if (log_callback_error(self) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
}

static void tell_waiters(future_object *self, PyObject **trouble) {
    static const char *const methods[] = {"add_result", "add_exception", "add_cancelled"};
    int end = future_is_cancelled(self) ? 2 : has_error(self);
    PyErr_Clear();
    PyObject *waiters = future_audience_of(self)->waiters; /* stays */
    for (Py_ssize_t i = 0; waiters != NULL && i < PyList_GET_SIZE(waiters); i++) {
        PyObject *waiter = Py_NewRef(PyList_GET_ITEM(waiters, i));
        PyObject *done = PyObject_CallMethod(waiter, methods[end], "O", self);
        if (done == NULL)
            note_trouble(self, trouble);
        Py_XDECREF(done);
        Py_DECREF(waiter);
    }
}

static void notify_condition(future_object *self, PyObject *condition,
                             PyObject **trouble) {
    PyObject *done = PyObject_CallMethod(condition, "acquire", NULL);
    if (done == NULL) {
        note_trouble(self, trouble);
        return;
    }
    Py_DECREF(done);
    self->told = true;
    tell_waiters(self, trouble);
    static const char *const methods[] = {"notify_all", "release"};
    for (int i = 0; i < 2; i++) {
        done = PyObject_CallMethod(condition, methods[i], NULL);
        if (done == NULL)
            note_trouble(self, trouble);
        Py_XDECREF(done);
    }
}

static void announce_to_waiters(future_object *self, PyObject **trouble) {
    if (self->announced[WAITERS])
        return;
    self->announced[WAITERS] = true;
    if (future_audience_of(self)->condition != NULL)
        notify_condition(self, self->audience->condition, trouble);
    self->told = true;
}

static void announce_to_callbacks(future_object *self, PyObject **trouble) {
    if (self->announced[CALLBACKS])
        return;
    self->announced[CALLBACKS] = true;
    PyObject *callbacks = future_audience_of(self)->callbacks;
    if (callbacks != NULL)
        self->audience->callbacks = NULL;
    for (Py_ssize_t i = 0; callbacks != NULL && i < PyList_GET_SIZE(callbacks); i++) {
        if (future_call_back(self, PyList_GET_ITEM(callbacks, i)) < 0)
            note_trouble(self, trouble);
    }
    Py_XDECREF(callbacks);
}

static void announce_to(future_object *self, future_lane lane, PyObject **trouble) {
    announce_to_waiters(self, trouble);
    if (lane == CALLBACKS)
        announce_to_callbacks(self, trouble);
}

int future_announce(future_object *self, future_lane lane) {
    PyObject *trouble = NULL;
    announce_to(self, lane, &trouble);
    if (trouble == NULL)
        return 0;
    exception_raise(trouble);
    Py_DECREF(trouble);
    return -1;
}

void future_announce_alone(future_object *self, future_lane lane) {
    announce_to(self, lane, NULL);
}

/* From the engine, with the reference that future_watch() took. If that finds that the future has ended,
 * it is called in there, and what is raised is the caller's: it may be Ctrl-C. */
static void announce(void *context, future_lane lane) {
    PyGILState_STATE state;
    if (!thread_enter(&state))
        return;
    if (state == PyGILState_UNLOCKED)
        future_announce_alone(context, lane);
    else
        future_announce(context, lane);
    Py_DECREF(context);
    thread_leave(state);
}

static void engine_wakes(pebble_future *engine, void *context) {
    (void)engine;
    announce(context, WAITERS);
}

static void engine_calls_back(pebble_future *engine, void *context) {
    (void)engine;
    announce(context, CALLBACKS);
}

pebble_error engine_tell(pebble_future *engine, future_lane lane,
                         pebble_callback callback, void *context) {
    return lane == WAITERS ? pebble_future_add_waker(engine, callback, context)
                           : pebble_future_add_callback(engine, callback, context);
}

/* Where nobody comes to tell of the end: tells of it now, or raises. */
static int watch_in_vain(future_object *self, future_lane lane, const char *why) {
    if (!future_has_ended(self)) {
        PyErr_SetString(PyExc_RuntimeError, why);
        return -1;
    }
    return future_announce(self, lane);
}

int future_watch(future_object *self, future_lane lane) {
    if (self->announced[lane] || self->kind == FUTURE_PLAIN)
        return 0;
    pid_t process = interpreter_process();
    if (self->watcher != 0 && self->watcher != process)
        return watch_in_vain(self, lane, "future belongs to the parent process");
    if (interpreter_is_ending())
        return watch_in_vain(self, lane,
                             "the interpreter is ending: nobody is told of the future's "
                             "end any more; result() waits for it");
    if (self->watched[lane])
        return 0;
    self->watcher = process;
    if (self->kind == FUTURE_MAP)
        return map_watch((map_future *)self, lane);
    if (self->engine == NULL)
        return future_announce(self, lane);
    self->watched[lane] = true;
    interpreter_precede_handler();
    pebble_future *engine = pebble_future_ref(self->engine);
    pebble_error error =
        engine_tell(engine, lane, lane == WAITERS ? engine_wakes : engine_calls_back,
                    Py_NewRef(self));
    pebble_future_unref(engine);
    if (error == PEBBLE_OK)
        return PyErr_Occurred() ? -1 : 0;
    self->watched[lane] = false;
    Py_DECREF(self);
    raise_engine_error(error);
    return -1;
}
