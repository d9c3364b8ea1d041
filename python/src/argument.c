#include "argument.h"

#include <math.h>
#include <string.h>
#include <time.h>

/* ---- By name ---- */

static int intern(signature *self) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        if (self->interned[i] == NULL &&
            (self->interned[i] = PyUnicode_InternFromString(self->parameters[i])) == NULL)
            return -1;
    }
    return 0;
}

static Py_ssize_t find(const signature *self, PyObject *name) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        if (name == self->interned[i])
            return i;
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        if (PyUnicode_Compare(name, self->interned[i]) == 0)
            return i;
    }
    return -1;
}

static int take_keywords(signature *self, PyObject *const *args, PyObject *kwnames,
                         PyObject **values) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        Py_ssize_t at = find(self, name);
        if (at < 0 || values[at] != NULL) {
            PyErr_Format(PyExc_TypeError,
                         at < 0 ? "%s() got an unexpected keyword argument '%U'"
                                : "%s() got multiple values for argument '%U'",
                         self->function, name);
            return -1;
        }
        values[at] = args[i];
    }
    return 0;
}

int arguments_take(signature *self, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwnames, PyObject **values) {
    if (intern(self) < 0)
        return -1;
    if (nargs > self->positional) {
        PyErr_Format(PyExc_TypeError,
                     "%s() takes at most %zd positional arguments (%zd given)",
                     self->function, self->positional, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < self->count; i++)
        values[i] = i < nargs ? args[i] : NULL;
    if (kwnames != NULL && take_keywords(self, args + nargs, kwnames, values) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < self->required; i++) {
        if (values[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'",
                         self->function, self->parameters[i]);
            return -1;
        }
    }
    return 0;
}

/* ---- Time ---- */

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* PEBBLE_FOREVER if it is more than the clock can tell. */
static int seconds_to_ns(PyObject *value, const char *parameter, int64_t *ns) {
    if (!PyFloat_Check(value) && !PyLong_Check(value) && !PyIndex_Check(value) &&
        (Py_TYPE(value)->tp_as_number == NULL ||
         Py_TYPE(value)->tp_as_number->nb_float == NULL)) {
        PyErr_Format(PyExc_TypeError, "%s must be a number of seconds or None, not %.200s",
                     parameter, Py_TYPE(value)->tp_name);
        return -1;
    }
    double seconds = PyFloat_AsDouble(value);
    if (seconds == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        seconds = Py_HUGE_VAL;
    }
    if (isnan(seconds)) {
        PyErr_Format(PyExc_ValueError, "%s must not be NaN", parameter);
        return -1;
    }
    if (seconds > 9e9)
        *ns = PEBBLE_FOREVER;
    else if (seconds <= 0)
        *ns = seconds < 0 ? -1 : 0;
    else
        *ns = seconds < 1e-9 ? 1 : (int64_t)nearbyint(seconds * 1e9);
    return 0;
}

int argument_limit(PyObject *value, const char *parameter, int64_t *limit_ns) {
    *limit_ns = 0;
    if (value == NULL || value == Py_None)
        return 0;
    if (seconds_to_ns(value, parameter, limit_ns) < 0)
        return -1;
    if (*limit_ns <= 0) {
        PyErr_Format(PyExc_ValueError, "%s must be greater than 0, not %R", parameter,
                     value);
        return -1;
    }
    return 0;
}

int argument_grace(PyObject *value, const char *parameter, int64_t *grace_ns) {
    *grace_ns = 0;
    if (value == NULL || value == Py_None)
        return 0;
    if (seconds_to_ns(value, parameter, grace_ns) < 0)
        return -1;
    if (*grace_ns < 0) {
        PyErr_Format(PyExc_ValueError, "%s must not be negative: %R", parameter, value);
        return -1;
    }
    if (*grace_ns == 0)
        *grace_ns = 1;
    return 0;
}

int argument_deadline(PyObject *value, const char *parameter, int64_t *deadline_ns) {
    int64_t wait_ns = PEBBLE_FOREVER;
    if (value != NULL && value != Py_None && seconds_to_ns(value, parameter, &wait_ns) < 0)
        return -1;
    if (wait_ns < 0)
        wait_ns = 0;
    *deadline_ns = deadline_after(wait_ns);
    return 0;
}

int64_t deadline_after(int64_t limit_ns) {
    int64_t now = now_ns();
    return limit_ns > PEBBLE_FOREVER - now ? PEBBLE_FOREVER : now + limit_ns;
}

int64_t deadline_left(int64_t deadline_ns) {
    if (deadline_ns == PEBBLE_FOREVER)
        return PEBBLE_FOREVER;
    int64_t left = deadline_ns - now_ns();
    return left > 0 ? left : 0;
}

/* ---- Objects ---- */

int argument_callable(PyObject *value, const char *parameter) {
    if (PyCallable_Check(value))
        return 0;
    PyErr_Format(PyExc_TypeError, "%s must be callable, not %.200s", parameter,
                 Py_TYPE(value)->tp_name);
    return -1;
}

PyObject *argument_tuple(PyObject *value, const char *parameter) {
    if (value == NULL)
        return Py_NewRef(names.empty_tuple);
    if (PyTuple_CheckExact(value))
        return Py_NewRef(value);
    PyObject *iterator = PyObject_GetIter(value);
    if (iterator == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s must be iterable, not %.200s", parameter,
                         Py_TYPE(value)->tp_name);
        return NULL;
    }
    PyObject *tuple = PySequence_Tuple(iterator);
    Py_DECREF(iterator);
    return tuple;
}

int argument_dict(PyObject *value, const char *parameter, PyObject **dict) {
    *dict = NULL;
    if (value == NULL)
        return 0;
    if (PyDict_CheckExact(value)) {
        if (PyDict_GET_SIZE(value) > 0)
            *dict = Py_NewRef(value);
        return 0;
    }
    if (!PyMapping_Check(value) || !PyObject_HasAttrString(value, "keys")) {
        PyErr_Format(PyExc_TypeError, "%s must be a mapping, not %.200s", parameter,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    PyObject *copy = PyDict_New();
    if (copy == NULL || PyDict_Update(copy, value) < 0) {
        Py_XDECREF(copy);
        return -1;
    }
    *dict = copy;
    return 0;
}

int argument_integer(PyObject *value, const char *parameter, long long least,
                     long long most, long long *integer) {
    int overflow;
    if (value == NULL)
        return 0;
    if (!PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be an integer, not %.200s", parameter,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    PyObject *index = PyNumber_Index(value);
    if (index == NULL)
        return -1;
    long long got = PyLong_AsLongLongAndOverflow(index, &overflow);
    Py_DECREF(index);
    if (overflow != 0 || got < least || got > most) {
        PyErr_Format(PyExc_ValueError, "%s must be from %lld to %lld, not %R", parameter,
                     least, most, value);
        return -1;
    }
    *integer = got;
    return 0;
}

/* ---- Processes ---- */

int argument_start_method(PyObject *value, pebble_start_method *method) {
    static const char *const texts[] = {"", "fork", "forkserver", "spawn"};
    const char *text = PyUnicode_AsUTF8(value);
    if (text == NULL)
        return -1;
    for (int i = PEBBLE_START_FORK; i <= PEBBLE_START_SPAWN; i++) {
        if (strcmp(text, texts[i]) == 0) {
            *method = (pebble_start_method)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "context must have a start method fork, forkserver or spawn, not %R",
                 value);
    return -1;
}

char **argument_command(PyObject *list) {
    Py_ssize_t count = PyList_Size(list);
    if (count < 0)
        return NULL;
    char **words = PyMem_Calloc((size_t)count + 1, sizeof *words);
    if (words == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *word = PyUnicode_AsUTF8(PyList_GET_ITEM(list, i));
        if (word == NULL) {
            PyMem_Free(words);
            return NULL;
        }
        words[i] = (char *)(uintptr_t)word;
    }
    return words;
}
