#include "thread.h"

#include <string.h>

#include "future.h"
#include "interpreter.h"

void thread_note_traceback(const outcome *self) {
    if (self->error == NULL)
        return;
    PyObject *text = exception_text(self->error);
    if (text == NULL || PyObject_SetAttr(self->error, names.str_traceback, text) < 0)
        PyErr_Clear(); /* some exceptions refuse attributes */
    Py_XDECREF(text);
}

int thread_call(pebble_task *task, const void *input, size_t input_size) {
    future_object *self = (future_object *)(uintptr_t)input;
    outcome result = {0};
    (void)task;
    (void)input_size;
    if (!worker_enter())
        return 1;
    deferred_drain();
    future_call *call = self->call;
    PyObject *function = call->function, *args = call->args, *kwargs = call->kwargs;
    call->function = call->args = call->kwargs = NULL;
    outcome_of_call(&result, function, args, kwargs);
    thread_note_traceback(&result);
    Py_DECREF(function);
    Py_DECREF(args);
    Py_XDECREF(kwargs);
    self->outcome = result;
    deferred_drain_next();
    return 0;
}

int thread_initializer(const void *input, size_t input_size) {
    PyObject *packed;
    (void)input_size;
    if (!worker_enter())
        return 1;
    memcpy(&packed, input, sizeof packed);
    PyObject *done =
        PyObject_CallObject(PyTuple_GET_ITEM(packed, 0), PyTuple_GET_ITEM(packed, 1));
    if (done != NULL) {
        Py_DECREF(done);
        return 0;
    }
    PyObject *exception = exception_take();
    PyObject *text = exception_text(exception);
    const char *utf8 = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    PyErr_Clear();
    int code = pebble_initializer_fail(1, "%s", utf8 != NULL ? utf8 : "");
    Py_XDECREF(text);
    Py_DECREF(exception);
    return code;
}
