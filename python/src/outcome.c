#include "outcome.h"

#include <errno.h>
#include <string.h>

#include "buffers.h"
#include "message.h"
#include "pickling.h"

void outcome_clear(outcome *self) {
    Py_CLEAR(self->value);
    Py_CLEAR(self->error);
}

int outcome_visit(const outcome *self, visitproc visit, void *arg) {
    Py_VISIT(self->value);
    Py_VISIT(self->error);
    return 0;
}

/* ---- Exceptions ---- */

PyObject *exception_take(void) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

PyObject *exception_raise(PyObject *exception) {
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    return NULL;
}

PyObject *exception_text(PyObject *exception) {
    PyObject *traceback = PyException_GetTraceback(exception);
    PyObject *lines = PyObject_CallFunctionObjArgs(
        names.format_exception, (PyObject *)Py_TYPE(exception), exception,
        traceback != NULL ? traceback : Py_None, NULL);
    Py_XDECREF(traceback);
    if (lines == NULL)
        return NULL;
    PyObject *nothing = PyUnicode_FromString("");
    PyObject *text = nothing != NULL ? PyUnicode_Join(nothing, lines) : NULL;
    Py_XDECREF(nothing);
    Py_DECREF(lines);
    return text;
}

int exception_forget(void) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    PyErr_Clear();
    return 0;
}

PyObject *timeout_exception(const char *text, int64_t limit_ns) {
    if (limit_ns % 1000000000 == 0)
        return PyObject_CallFunction(names.timeout_error, "sL", text,
                                     (long long)(limit_ns / 1000000000));
    return PyObject_CallFunction(names.timeout_error, "sd", text, (double)limit_ns / 1e9);
}

/* The engine's text, which may be cut within a character, or a worker's that is damaged. */
static PyObject *engine_text(const char *text) {
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

static PyObject *exception_with_text(PyObject *type, const char *text) {
    PyObject *string = engine_text(text);
    PyObject *exception = string != NULL ? PyObject_CallOneArg(type, string) : NULL;
    Py_XDECREF(string);
    return exception;
}

static PyObject *expired_exception(const pebble_failure *failure) {
    PyObject *message = engine_text(failure->message);
    PyObject *backtrace =
        failure->backtrace != NULL ? engine_text(failure->backtrace) : Py_NewRef(Py_None);
    PyObject *exception = NULL;
    if (message != NULL && backtrace != NULL)
        exception =
            PyObject_CallFunction(names.process_expired, "OiiO", message,
                                  failure->exit_code, (int)failure->pid, backtrace);
    Py_XDECREF(message);
    Py_XDECREF(backtrace);
    return exception;
}

PyObject *exception_of_failure(const pebble_failure *failure) {
    switch (failure->kind) {
    case PEBBLE_ERR_TASK_TIMEOUT:
        return timeout_exception("the task ran longer than its timeout",
                                 failure->timeout_ns);
    case PEBBLE_ERR_TASK_EXPIRED:
        return expired_exception(failure);
    case PEBBLE_ERR_TASK_CANCELLED:
        return PyObject_CallNoArgs(names.cancelled_error);
    case PEBBLE_ERR_NO_MEMORY:
        return exception_with_text(PyExc_MemoryError, failure->message);
    case PEBBLE_ERR_TASK_FAILED: /* not by the function: the worker could not call it */
        return exception_with_text(failure->code == ENOMEM ? PyExc_MemoryError
                                                           : PyExc_RuntimeError,
                                   failure->message);
    default:
        return exception_with_text(PyExc_RuntimeError, failure->message);
    }
}

/* "pebble_schedule: the pool is closed" → "the pool is closed": users of Python call it otherwise. */
static const char *message_alone(void) {
    const char *message = pebble_error_message();
    const char *colon = strstr(message, ": ");
    return strncmp(message, "pebble_", 7) == 0 && colon != NULL ? colon + 2 : message;
}

PyObject *raise_engine_error(pebble_error error) {
    PyObject *type = PyExc_RuntimeError;
    if (error == PEBBLE_ERR_NO_MEMORY)
        type = PyExc_MemoryError;
    else if (error == PEBBLE_ERR_SYSTEM)
        type = PyExc_OSError;
    else if (error == PEBBLE_ERR_INVALID)
        type = PyExc_ValueError;
    else if (error == PEBBLE_ERR_TIMEOUT)
        type = names.timeout_error;
    PyObject *text = engine_text(message_alone());
    if (text != NULL)
        PyErr_SetObject(type, text);
    Py_XDECREF(text);
    return NULL;
}

/* ---- Calls ---- */

void outcome_of_call(outcome *self, PyObject *function, PyObject *args, PyObject *kwargs) {
    self->value = PyObject_Call(function, args, kwargs);
    if (self->value != NULL)
        return;
    self->error = exception_take();
}

/* ---- From a worker process ---- */

/* An exception that is set while a result is loaded is the outcome, unless it came from outside. */
static int take_load_error(outcome *self) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    self->error = exception_take();
    return 0;
}

int outcome_load_value(outcome *self, const void *data, size_t size) {
    self->value = pickling_load(data, size);
    return self->value != NULL ? 0 : take_load_error(self);
}

static int set_remote_traceback(PyObject *exception, PyObject *text) {
    PyObject *cause = PyObject_CallOneArg(names.remote_traceback, text);
    if (cause != NULL)
        PyException_SetCause(exception, cause); /* takes it */
    else if (exception_forget() < 0)
        return -1;
    if (PyObject_SetAttr(exception, names.str_traceback, text) == 0)
        return 0;
    return exception_forget(); /* some exceptions refuse attributes */
}

/* Shows the remote traceback: as an attribute, and wherever the exception is printed. -1 with an exception
 * from outside. */
static int attach_remote_traceback(PyObject *exception, const char *text, size_t size) {
    PyObject *string = PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, "replace");
    if (string == NULL)
        return exception_forget();
    int failed = set_remote_traceback(exception, string);
    Py_DECREF(string);
    return failed;
}

static int damaged(outcome *self) {
    PyErr_SetString(PyExc_RuntimeError, "the worker's result is damaged");
    self->error = exception_take();
    return 0;
}

int outcome_load_error(outcome *self, const void *data, size_t size) {
    error_header header;
    if (size == 0) {
        PyErr_SetString(PyExc_MemoryError,
                        "there was no memory to tell what the task raised");
        self->error = exception_take();
        return 0;
    }
    if (size < sizeof header)
        return damaged(self);
    memcpy(&header, data, sizeof header);
    size_t rest = size - sizeof header;
    if (header.text_size > rest || header.exception_size > rest - header.text_size)
        return damaged(self);
    const char *text = (const char *)data + sizeof header;
    PyObject *exception =
        pickling_load(text + header.text_size, (size_t)header.exception_size);
    if (exception == NULL) {
        if (take_load_error(self) < 0)
            return -1;
    } else if (PyExceptionInstance_Check(exception)) {
        self->error = exception;
    } else { /* its __reduce__ makes something else */
        PyErr_Format(PyExc_RuntimeError,
                     "the task raised an exception that was unpickled as %R", exception);
        Py_DECREF(exception);
        self->error = exception_take();
    }
    int failed = attach_remote_traceback(self->error, text, (size_t)header.text_size);
    if (failed < 0)
        outcome_clear(self);
    return failed;
}

static void unref_engine(void *engine) {
    pebble_future_unref(engine);
}

static int load_value_apart(outcome *self, pebble_future *engine, const void *data,
                            size_t size, uint64_t buffers) {
    PyObject *owner = buffers_owner(pebble_future_ref(engine), unref_engine);
    PyObject *views = owner != NULL ? buffers_of(data, size, buffers, owner) : NULL;
    if (views != NULL)
        self->value = pickling_load_with(data, size, views);
    Py_XDECREF(views);
    Py_XDECREF(owner);
    return self->value != NULL ? 0 : take_load_error(self);
}

bool outcome_is_error(const void *data, size_t size) {
    unsigned char form = size > 0 ? ((const unsigned char *)data)[size - 1] : RESULT_ERROR;
    return form != RESULT_VALUE && form != RESULT_VALUE_APART;
}

int outcome_load(outcome *self, pebble_future *engine, const void *data, size_t size) {
    const unsigned char *bytes = data;
    uint64_t place;
    if (size == 0)
        return damaged(self);
    size_t rest = size - 1;
    unsigned char form = bytes[rest];
    if (form == RESULT_VALUE)
        return outcome_load_value(self, data, rest);
    if ((form != RESULT_ERROR && form != RESULT_VALUE_APART) || rest < sizeof place)
        return damaged(self);
    rest -= sizeof place;
    memcpy(&place, bytes + rest, sizeof place);
    if (form == RESULT_VALUE_APART)
        return load_value_apart(self, engine, data, rest, place);
    if (place > rest)
        return damaged(self);
    return outcome_load_error(self, bytes + place, rest - (size_t)place);
}
