/* A pickler costs more to make than to use, so one is kept, with its sink; whoever finds it in use
 * (another thread, or a __reduce__ that pickles) makes another for the moment. */
#include "pickling.h"

#include <string.h>

#include "buffers.h"
#include "source.h"

enum { PROTOCOL = 5, NAME_PROTOCOL = 3, FUNCTIONS_KEPT = 256, LOADED_KEPT = 8 };

/* ---- Reducers ---- */

/* The picklers' dispatch_table, as ForkingPickler's: multiprocessing's own, then what copyreg knows, now
 * and not when the pickler was made. */
static PyObject *reducers_get(PyObject *self, PyObject *type) {
    PyObject *reducer = PyDict_GetItemWithError(names.extra_reducers, type);
    (void)self;
    if (reducer == NULL && !PyErr_Occurred())
        reducer = PyDict_GetItemWithError(names.copyreg_table, type);
    if (reducer == NULL && !PyErr_Occurred())
        PyErr_SetObject(PyExc_KeyError, type);
    return Py_XNewRef(reducer);
}

static PyType_Slot reducers_slots[] = {
    {Py_mp_subscript, reducers_get},
    {0, NULL},
};

PyType_Spec reducers_spec = {
    .name = "pebble._engine.Reducers",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reducers_slots,
};

static int set_dispatch_table(PyObject *pickler) {
    static PyObject *reducers; /* never given back: every pickler has it */
    if (reducers == NULL &&
        (reducers = (PyObject *)PyObject_New(PyObject, names.reducers_type)) == NULL)
        return -1;
    return PyObject_SetAttrString(pickler, "dispatch_table", reducers);
}

/* ---- Writers ---- */

static pickle_writer kept; /* pickler NULL: none, or in use */

static void writer_fini(pickle_writer *writer) {
    Py_CLEAR(writer->pickler);
    Py_CLEAR(writer->to);
}

static int writer_init(pickle_writer *writer, int protocol) {
    writer->pickler = NULL;
    writer->to = sink_new();
    PyObject *keep = writer->to != NULL
                         ? PyObject_GetAttrString((PyObject *)writer->to, "keep_buffer")
                         : NULL;
    if (keep != NULL) /* file, protocol, fix_imports, buffer_callback */
        writer->pickler =
            PyObject_CallFunction(names.pickler, "OiOO", writer->to, protocol, Py_True,
                                  protocol >= 5 ? keep : Py_None);
    Py_XDECREF(keep);
    if (writer->pickler != NULL && set_dispatch_table(writer->pickler) == 0)
        return 0;
    writer_fini(writer);
    return -1;
}

int writer_take(pickle_writer *writer, pebble_task *task) {
    *writer = kept;
    kept = (pickle_writer){0};
    if (writer->pickler == NULL && writer_init(writer, PROTOCOL) < 0)
        return -1;
    writer->to->task = task;
    return 0;
}

int writer_dump(pickle_writer *writer, PyObject *object) {
    PyObject *done = PyObject_CallMethodOneArg(writer->pickler, names.str_dump, object);
    PyObject *type, *value, *traceback;
    int failed = done == NULL ? -1 : 0;
    Py_XDECREF(done);
    PyErr_Fetch(&type, &value, &traceback);
    /* Its memo refers to all that it has pickled. */
    PyObject *cleared = PyObject_CallMethodNoArgs(writer->pickler, names.str_clear_memo);
    if (cleared == NULL)
        PyErr_Clear();
    Py_XDECREF(cleared);
    PyErr_Restore(type, value, traceback);
    return failed;
}

Py_ssize_t writer_dump_apart(pickle_writer *writer, PyObject *object) {
    writer->to->out_of_band = true;
    Py_ssize_t count = writer_dump(writer, object);
    if (count == 0)
        count = buffers_append(writer->to);
    writer->to->out_of_band = false;
    Py_CLEAR(writer->to->buffers);
    return count;
}

void writer_release(pickle_writer *writer) {
    sink_reset(writer->to, NULL); /* a large buffer is not kept */
    if (kept.pickler == NULL)
        kept = *writer;
    else
        writer_fini(writer);
    *writer = (pickle_writer){0};
}

int pickling_prepare(void) {
    pickle_writer writer;
    if (writer_take(&writer, NULL) < 0)
        return -1;
    int failed = writer_dump(&writer, names.empty_tuple);
    writer_release(&writer);
    return failed;
}

bool pickling_is_plain(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    return object == Py_None || type == &PyLong_Type || type == &PyFloat_Type ||
           type == &PyUnicode_Type || type == &PyBytes_Type || type == &PyBool_Type ||
           type == &PyComplex_Type;
}

/* ---- Functions ---- */

static PyObject *pickled_functions;            /* function → bytes */
static PyObject *last_function, *last_pickled; /* borrowed from it */

/* In the protocol in which a name alone takes least: each waiting task has it. */
static PyObject *dump_name(PyObject *function) {
    pickle_writer writer;
    PyObject *bytes = NULL;
    if (writer_init(&writer, NAME_PROTOCOL) < 0)
        return NULL;
    if (writer_dump(&writer, function) == 0)
        bytes = PyBytes_FromStringAndSize(writer.to->data, (Py_ssize_t)writer.to->size);
    writer_fini(&writer);
    return bytes;
}

/* Of one that may be kept. NULL without an exception: it cannot be pickled. */
static PyObject *pickle_function(PyObject *function) {
    PyObject *known = PyDict_GetItemWithError(pickled_functions, function);
    if (known != NULL || PyErr_Occurred())
        return Py_XNewRef(known);
    PyObject *bytes = dump_name(function);
    if (bytes == NULL) {
        if (PyErr_ExceptionMatches(PyExc_Exception))
            PyErr_Clear(); /* it comes again when it is pickled with its arguments */
        return NULL;
    }
    if (PyDict_GET_SIZE(pickled_functions) >= FUNCTIONS_KEPT) {
        last_function = NULL;
        PyDict_Clear(pickled_functions);
    }
    if (PyDict_SetItem(pickled_functions, function, bytes) < 0)
        Py_CLEAR(bytes);
    return bytes;
}

PyObject *pickling_function(PyObject *function) {
    if (function == last_function)
        return Py_NewRef(last_pickled);
    /* Plain functions and classes are pickled by name. Anything else may have a state, or compare equal to
     * another: classes whose metaclass says so. */
    bool by_name = PyFunction_Check(function) || PyType_CheckExact(function) ||
                   (PyCFunction_CheckExact(function) &&
                    (PyCFunction_GET_SELF(function) == NULL ||
                     PyModule_Check(PyCFunction_GET_SELF(function))));
    if (!by_name)
        return NULL;
    if (pickled_functions == NULL && (pickled_functions = PyDict_New()) == NULL)
        return NULL;
    PyObject *pickled = pickle_function(function);
    if (pickled != NULL) {
        last_function = function;
        last_pickled = pickled;
    }
    return pickled;
}

/* ---- Loading ---- */

PyObject *pickling_load_with(const void *data, size_t size, PyObject *buffers) {
    PyObject *source = source_new(data, size);
    PyObject *unpickler = NULL, *object = NULL, *keywords = PyDict_New();
    PyObject *args = source != NULL ? PyTuple_Pack(1, source) : NULL;
    if (args != NULL && keywords != NULL &&
        (buffers == NULL || PyDict_SetItemString(keywords, "buffers", buffers) == 0))
        unpickler = PyObject_Call(names.unpickler, args, keywords);
    if (unpickler != NULL)
        object = PyObject_CallMethodNoArgs(unpickler, names.str_load);
    if (source != NULL)
        source_close(source);
    Py_XDECREF(unpickler);
    Py_XDECREF(keywords);
    Py_XDECREF(args);
    Py_XDECREF(source);
    return object;
}

PyObject *pickling_load(const void *data, size_t size) {
    static const char none[] = "\x80\x05N.";
    if (size == sizeof none - 1 && memcmp(data, none, size) == 0)
        Py_RETURN_NONE;
    if (size >= SOURCE_LARGE)
        return pickling_load_with(data, size, NULL);
    PyObject *view =
        PyMemoryView_FromMemory((char *)(uintptr_t)data, (Py_ssize_t)size, PyBUF_READ);
    if (view == NULL)
        return NULL;
    PyObject *object = PyObject_CallOneArg(names.loads, view);
    Py_DECREF(view);
    return object;
}

typedef struct loaded_function {
    char *data;
    size_t size;
    PyObject *function;
} loaded_function;

static loaded_function loaded[LOADED_KEPT];
static unsigned next_loaded;

static void keep_loaded(const void *data, size_t size, PyObject *function) {
    char *copy = PyMem_RawMalloc(size);
    if (copy == NULL)
        return;
    loaded_function old = loaded[next_loaded % LOADED_KEPT];
    memcpy(copy, data, size);
    loaded[next_loaded++ % LOADED_KEPT] =
        (loaded_function){.data = copy, .size = size, .function = Py_NewRef(function)};
    PyMem_RawFree(old.data);
    Py_XDECREF(old.function);
}

PyObject *pickling_load_function(const void *data, size_t size, bool keep) {
    for (unsigned i = 0; i < LOADED_KEPT && keep; i++) {
        if (loaded[i].size == size && loaded[i].data != NULL &&
            memcmp(loaded[i].data, data, size) == 0)
            return Py_NewRef(loaded[i].function);
    }
    PyObject *function = pickling_load(data, size);
    if (function != NULL && keep)
        keep_loaded(data, size, function);
    return function;
}
