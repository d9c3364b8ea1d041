/* The module `pebble._engine`: its names, and those of Python's that the other files use. */
#include "engine.h"

#include "buffers.h"
#include "call.h"
#include "future.h"
#include "interpreter.h"
#include "map.h"
#include "pickling.h"
#include "pool.h"
#include "sink.h"
#include "source.h"
#include "worker.h"

engine_names names;

/* ---- Functions ---- */

PyDoc_STRVAR(set_types_doc, "set_types(**types)\n--\n\n"
                            "The package's classes that the engine makes instances of.");

static PyObject *set_types(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {
        "ProcessFuture",  "ThreadFuture",    "MapFuture", "ProcessMapFuture",
        "ProcessExpired", "RemoteTraceback", NULL};
    PyObject *types[6];
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO", keywords, &types[0],
                                     &types[1], &types[2], &types[3], &types[4],
                                     &types[5]))
        return NULL;
    for (int i = 0; i < 6; i++) {
        if (!PyType_Check(types[i])) {
            PyErr_Format(PyExc_TypeError, "%s must be a class", keywords[i]);
            return NULL;
        }
    }
    names.process_future = (PyTypeObject *)Py_NewRef(types[0]);
    names.thread_future = (PyTypeObject *)Py_NewRef(types[1]);
    names.map_future = (PyTypeObject *)Py_NewRef(types[2]);
    names.process_map_future = (PyTypeObject *)Py_NewRef(types[3]);
    names.process_expired = Py_NewRef(types[4]);
    names.remote_traceback = Py_NewRef(types[5]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(worker_data_doc, "worker_data()\n--\n\n"
                              "What the program gave to this process, which it executed "
                              "for a pool (bytes), or None.");

static PyObject *worker_data(PyObject *module, PyObject *unused) {
    size_t size = 0;
    const void *data = pebble_worker_data(&size);
    (void)module;
    (void)unused;
    if (data == NULL)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
}

PyDoc_STRVAR(
    serve_doc,
    "serve(problem, executed_each, /)\n--\n\n"
    "Serve the pool for which this process was executed; returns only if there is none.");

static PyObject *serve(PyObject *module, PyObject *args) {
    const char *problem;
    int executed_each;
    (void)module;
    if (!PyArg_ParseTuple(args, "zp", &problem, &executed_each))
        return NULL;
    interpreter_serve(problem, executed_each);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(at_exit_doc, "at_exit()\n--\n\n"
                          "The interpreter is ending: threads of pools take no more "
                          "calls and leave Python alone.");

static PyObject *at_exit(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    pools_stop_threads();
    interpreter_set_ending();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_types", (PyCFunction)(void (*)(void))set_types, METH_VARARGS | METH_KEYWORDS,
     set_types_doc},
    {"run_process", (PyCFunction)(void (*)(void))run_process, METH_FASTCALL, NULL},
    {"run_thread", (PyCFunction)(void (*)(void))run_thread, METH_FASTCALL, NULL},
    {"worker_data", worker_data, METH_NOARGS, worker_data_doc},
    {"serve", serve, METH_VARARGS, serve_doc},
    {"at_exit", at_exit, METH_NOARGS, at_exit_doc},
    {NULL, NULL, 0, NULL},
};

/* ---- Names ---- */

static int import_name(PyObject **place, const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return -1;
    *place = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return *place != NULL ? 0 : -1;
}

static int import_reducers(void) {
    PyObject *pickler;
    if (import_name(&pickler, "multiprocessing.reduction", "ForkingPickler") < 0)
        return -1;
    names.extra_reducers = PyObject_GetAttrString(pickler, "_extra_reducers");
    Py_DECREF(pickler);
    return names.extra_reducers != NULL ? 0 : -1;
}

static int import_names(void) {
    static const char base[] = "concurrent.futures._base";
    if (import_name(&names.base_future, base, "Future") < 0 ||
        import_name(&names.cancelled_error, base, "CancelledError") < 0 ||
        import_name(&names.timeout_error, base, "TimeoutError") < 0 ||
        import_name(&names.invalid_state_error, base, "InvalidStateError") < 0 ||
        import_name(&names.logger, base, "LOGGER") < 0 ||
        import_name(&names.pending, base, "PENDING") < 0 ||
        import_name(&names.running, base, "RUNNING") < 0 ||
        import_name(&names.cancelled, base, "CANCELLED") < 0 ||
        import_name(&names.cancelled_and_notified, base, "CANCELLED_AND_NOTIFIED") < 0 ||
        import_name(&names.finished, base, "FINISHED") < 0 ||
        import_name(&names.condition, "threading", "Condition") < 0 ||
        import_name(&names.pickler, "_pickle", "Pickler") < 0 ||
        import_name(&names.unpickler, "_pickle", "Unpickler") < 0 ||
        import_name(&names.loads, "_pickle", "loads") < 0 ||
        import_name(&names.copyreg_table, "copyreg", "dispatch_table") < 0 ||
        import_name(&names.format_exception, "traceback", "format_exception") < 0)
        return -1;
    return import_reducers();
}

static int intern_names(void) {
    const struct {
        PyObject **place;
        const char *text;
    } interned[] = {{&names.str_dump, "dump"},
                    {&names.str_load, "load"},
                    {&names.str_clear_memo, "clear_memo"},
                    {&names.str_flush, "flush"},
                    {&names.str_traceback, "traceback"}};
    for (size_t i = 0; i < sizeof interned / sizeof *interned; i++) {
        *interned[i].place = PyUnicode_InternFromString(interned[i].text);
        if (*interned[i].place == NULL)
            return -1;
    }
    names.empty_tuple = PyTuple_New(0);
    return names.empty_tuple != NULL ? 0 : -1;
}

/* basicsize of a subtype is checked against its base's. */
static PyTypeObject *make_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base,
                               const char *name) {
    PyObject *bases = base != NULL ? PyTuple_Pack(1, base) : NULL;
    if (base != NULL && bases == NULL)
        return NULL;
    PyObject *type = PyType_FromModuleAndSpec(module, spec, bases);
    Py_XDECREF(bases);
    if (type != NULL && name != NULL && PyModule_AddObjectRef(module, name, type) < 0)
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

static int make_types(PyObject *module) {
    names.reducers_type = make_type(module, &reducers_spec, NULL, NULL);
    names.sink_type = make_type(module, &sink_spec, NULL, NULL);
    names.source_type = make_type(module, &source_spec, NULL, NULL);
    names.buffer_type = make_type(module, &buffer_spec, NULL, NULL);
    names.future_type = make_type(module, &future_spec, NULL, "Future");
    names.map_results_type = make_type(module, &map_results_spec, NULL, "MapResults");
    names.pool_type = make_type(module, &pool_spec, NULL, "Pool");
    if (names.future_type != NULL)
        names.map_future_type =
            make_type(module, &map_future_spec, names.future_type, "MapFuture");
    return names.reducers_type != NULL && names.sink_type != NULL &&
                   names.source_type != NULL && names.buffer_type != NULL &&
                   names.map_future_type != NULL && names.map_results_type != NULL &&
                   names.pool_type != NULL
               ? 0
               : -1;
}

static int execute(PyObject *module) {
    static PyInterpreterState *interpreter;
    if (interpreter != NULL && interpreter != PyInterpreterState_Get()) {
        PyErr_SetString(PyExc_ImportError,
                        "pebble can be in one interpreter of a process only");
        return -1;
    }
    interpreter = PyInterpreterState_Get();
    if (import_names() < 0 || intern_names() < 0 || make_types(module) < 0)
        return -1;
    if (interpreter_note_process() != 0) {
        PyErr_NoMemory();
        return -1;
    }
    if (interpreter_learn_handler() < 0)
        return -1;
    if (worker_register_functions() < 0) {
        PyErr_SetString(PyExc_ImportError, pebble_error_message());
        return -1;
    }
    return PyModule_AddStringConstant(module, "version", pebble_version());
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pebble._engine",
    .m_doc = "The engine of pebble. Use the package's names, not these.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__engine(void);

PyMODINIT_FUNC PyInit__engine(void) {
    return PyModuleDef_Init(&definition);
}
