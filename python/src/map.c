#include "map.h"

#include <string.h>

#include "argument.h"
#include "interpreter.h"
#include "message.h"
#include "pickling.h"
#include "thread.h"
#include "worker.h"

void chunk_clear(map_chunk *self) {
    Py_CLEAR(self->error);
    Py_CLEAR(self->list);
    Py_CLEAR(self->function);
    for (Py_ssize_t i = 0; self->outcomes != NULL && i < self->count; i++)
        outcome_clear(&self->outcomes[i]);
    PyMem_Free(self->outcomes);
    self->outcomes = NULL;
}

/* ---- Ends ---- */

static bool chunk_is_cancelled(const map_chunk *chunk) {
    return chunk->engine != NULL && pebble_future_state(chunk->engine) == PEBBLE_CANCELLED;
}

/* Notes whether it has ended. */
static bool chunk_look(map_future *self, map_chunk *chunk) {
    if (chunk->ended)
        return true;
    if (!pebble_future_done(chunk->engine))
        return false;
    chunk->ended = true;
    self->ended_otherwise += !chunk_is_cancelled(chunk);
    return true;
}

bool map_done(map_future *self) {
    while (self->first_open < self->chunk_count &&
           chunk_look(self, self->chunks[self->first_open]))
        self->first_open++;
    return self->first_open == self->chunk_count;
}

pebble_future *map_open_engine(map_future *self) {
    return map_done(self) ? NULL : self->chunks[self->first_open]->engine;
}

/* Before it is done: if it will be, for all that is open. A thread that runs one goes on. */
bool map_cancelled(map_future *self) {
    if (self->chunk_count == 0 || !(map_done(self) || self->base.cancel_accepted))
        return false;
    for (Py_ssize_t i = self->first_open; i < self->chunk_count; i++) {
        map_chunk *chunk = self->chunks[i];
        if (!chunk_look(self, chunk) && self->base.in_thread &&
            pebble_future_state(chunk->engine) == PEBBLE_RUNNING)
            return false;
    }
    return self->ended_otherwise == 0;
}

/* Some of it has started. */
bool map_running(map_future *self) {
    if (self->first_open > 0)
        return true;
    for (Py_ssize_t i = 0; i < self->chunk_count; i++) {
        map_chunk *chunk = self->chunks[i];
        if (chunk_look(self, chunk) ||
            pebble_future_state(chunk->engine) == PEBBLE_RUNNING)
            return true;
    }
    return false;
}

/* From the last to the first, so that no worker starts one that is about to be cancelled. */
bool map_cancel(map_future *self) {
    bool cancels = false;
    for (Py_ssize_t i = self->chunk_count; i-- > 0;) {
        map_chunk *chunk = self->chunks[i];
        if (!chunk_look(self, chunk))
            cancels |= pebble_future_cancel(chunk->engine);
    }
    return cancels;
}

/* From the engine, in a thread of its own: while map_watch() is not over it counts as one more. */
static void chunk_ended(map_future *self, future_lane lane) {
    PyGILState_STATE state;
    if (atomic_fetch_sub(&self->open[lane], 1) != 1 || !thread_enter(&state))
        return;
    future_announce_alone(&self->base, lane);
    Py_DECREF(self);
    thread_leave(state);
}

static void chunk_wakes(pebble_future *engine, void *context) {
    (void)engine;
    chunk_ended(context, WAITERS);
}

static void chunk_calls_back(pebble_future *engine, void *context) {
    (void)engine;
    chunk_ended(context, CALLBACKS);
}

int map_watch(map_future *self, future_lane lane) {
    pebble_error error = PEBBLE_OK;
    if (atomic_load(&self->open[lane]) == 0) { /* else an earlier call has failed midway */
        Py_INCREF(self);                       /* for chunk_ended() */
        atomic_store(&self->open[lane], 1);
    }
    self->base.watched[lane] = true;
    interpreter_precede_handler();
    for (Py_ssize_t i = 0; i < self->chunk_count && error == PEBBLE_OK; i++) {
        map_chunk *chunk = self->chunks[i];
        if (chunk->watched[lane] || chunk_look(self, chunk))
            continue;
        chunk->watched[lane] = true;
        atomic_fetch_add(&self->open[lane], 1);
        error = engine_tell(chunk->engine, lane,
                            lane == WAITERS ? chunk_wakes : chunk_calls_back, self);
        if (error != PEBBLE_OK) {
            chunk->watched[lane] = false;
            atomic_fetch_sub(&self->open[lane], 1);
        }
    }
    /* If not all could be set up, those that could still refer to the map: it stays. The next call goes on
     * from here. */
    if (error != PEBBLE_OK) {
        self->base.watched[lane] = false;
        raise_engine_error(error);
        return -1;
    }
    if (atomic_fetch_sub(&self->open[lane], 1) != 1)
        return 0;
    int failed = future_announce(&self->base, lane);
    Py_DECREF(self);
    return failed;
}

/* ---- What a chunk's elements are ---- */

/* For one that was never sent the place is taken. */
static Py_ssize_t next_place(const map_chunk *chunk, Py_ssize_t i) {
    while (i < chunk->count &&
           (chunk->outcomes[i].value != NULL || chunk->outcomes[i].error != NULL))
        i++;
    return i;
}

static int chunk_damaged(map_chunk *chunk) {
    PyErr_SetString(PyExc_RuntimeError, "the worker's result is damaged");
    chunk->error = exception_take();
    return 0;
}

static int load_pieces(map_chunk *chunk, const char *data, size_t size) {
    if (chunk->outcomes == NULL)
        chunk->outcomes = PyMem_Calloc((size_t)chunk->count, sizeof(outcome));
    if (chunk->outcomes == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = next_place(chunk, 0); i < chunk->count; i = next_place(chunk, i)) {
        piece_header header;
        if (size < sizeof header)
            return chunk_damaged(chunk);
        memcpy(&header, data, sizeof header);
        if (header.size > size - sizeof header)
            return chunk_damaged(chunk);
        outcome *element = &chunk->outcomes[i];
        int failed = header.form == RESULT_VALUE
                         ? outcome_load_value(element, data + sizeof header, header.size)
                         : outcome_load_error(element, data + sizeof header, header.size);
        if (failed < 0)
            return -1;
        data += sizeof header + header.size;
        size -= sizeof header + (size_t)header.size;
    }
    return 0;
}

/* The values of a list go to their places between those that were never sent. */
static int spread_list(map_chunk *chunk, PyObject *list) {
    Py_ssize_t place = 0, count = PyList_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < count; i++) {
        place = next_place(chunk, place);
        if (place == chunk->count)
            break;
        chunk->outcomes[place].value = Py_NewRef(PyList_GET_ITEM(list, i));
    }
    return next_place(chunk, 0) == chunk->count ? 0 : chunk_damaged(chunk);
}

static int load_list(map_chunk *chunk, const char *data, size_t size) {
    PyObject *list = pickling_load(data, size);
    int failed = 0;
    if (list == NULL) {
        if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
            return -1;
        chunk->error = exception_take();
        return 0;
    }
    if (!PyList_CheckExact(list))
        failed = chunk_damaged(chunk);
    else if (chunk->outcomes != NULL)
        failed = spread_list(chunk, list);
    else if (PyList_GET_SIZE(list) != chunk->count)
        failed = chunk_damaged(chunk);
    else
        chunk->list = Py_NewRef(list);
    Py_DECREF(list);
    return failed;
}

static int load_result(map_chunk *chunk, pebble_future *engine, const char *data,
                       size_t size) {
    outcome whole = {0};
    if (size > 0 && data[size - 1] == RESULT_LIST)
        return load_list(chunk, data, size - 1);
    if (size > 0 && data[size - 1] == RESULT_PIECES)
        return load_pieces(chunk, data, size - 1);
    if (outcome_load(&whole, engine, data, size) < 0)
        return -1;
    if (whole.value != NULL && chunk->count != 1) {
        outcome_clear(&whole);
        return chunk_damaged(chunk);
    }
    if (whole.value != NULL) { /* of one element alone */
        chunk->list = PyList_New(1);
        if (chunk->list == NULL) {
            outcome_clear(&whole);
            return -1;
        }
        PyList_SET_ITEM(chunk->list, 0, whole.value);
        return 0;
    }
    chunk->error = whole.error;
    return 0;
}

/* A chunk of which is known what it was before it was sent. */
static int copy_unsent(const map_chunk *chunk, map_chunk *copy) {
    copy->count = chunk->count;
    if (chunk->outcomes == NULL)
        return 0;
    copy->outcomes = PyMem_Calloc((size_t)chunk->count, sizeof(outcome));
    if (copy->outcomes == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < chunk->count; i++)
        copy->outcomes[i].error = Py_XNewRef(chunk->outcomes[i].error);
    return 0;
}

static int load_from_engine(map_chunk *into, pebble_future *engine) {
    const void *data;
    size_t size;
    const pebble_failure *failure = pebble_future_failure(engine);
    if (failure != NULL)
        return (into->error = exception_of_failure(failure)) != NULL ? 0 : -1;
    pebble_error error = pebble_future_result(engine, 0, &data, &size);
    if (error == PEBBLE_OK)
        return load_result(into, engine, data, size);
    raise_engine_error(error);
    return -1;
}

/* Loads into a copy: another thread may be doing the same, and one of both counts. */
static int load_sent(map_chunk *chunk) {
    map_chunk loaded = {0};
    pebble_future *engine = pebble_future_ref(chunk->engine);
    int failed = copy_unsent(chunk, &loaded);
    if (failed == 0)
        failed = load_from_engine(&loaded, engine);
    if (failed == 0 && !chunk->loaded) {
        map_chunk unsent = *chunk;
        chunk->error = loaded.error;
        chunk->list = loaded.list;
        chunk->outcomes = loaded.outcomes;
        chunk->loaded = true;
        pebble_future_unref(chunk->engine);
        chunk->engine = NULL;
        loaded.error = loaded.list = NULL;
        loaded.outcomes = unsent.outcomes;
    }
    chunk_clear(&loaded);
    pebble_future_unref(engine);
    return failed;
}

/* The values are there already: only a failure is the engine's. */
static int load_done(map_chunk *chunk) {
    PyObject *error = NULL, *arguments = NULL;
    pebble_future *engine = pebble_future_ref(chunk->engine);
    const pebble_failure *failure = pebble_future_failure(engine);
    int failed = 0;
    if (failure != NULL && (error = exception_of_failure(failure)) == NULL)
        failed = -1;
    if (failed == 0 && !chunk->loaded) { /* making the error may have run anything */
        arguments = chunk->list;         /* of one that never ran */
        chunk->list = NULL;
        chunk->error = error;
        chunk->loaded = true;
        pebble_future_unref(chunk->engine);
        chunk->engine = NULL;
        error = NULL;
    }
    pebble_future_unref(engine);
    Py_XDECREF(error);
    Py_XDECREF(arguments); /* may run anything, too */
    return failed;
}

/* Of a chunk that has ended: takes what the engine has. -1 with an exception that is the caller's. */
static int chunk_load(map_future *self, map_chunk *chunk) {
    if (chunk->loaded)
        return 0;
    chunk_look(self, chunk);
    return self->base.in_thread ? load_done(chunk) : load_sent(chunk);
}

/* An iterator that raised it would seem to be at its end: as in a generator (PEP 479). */
static PyObject *raise_stop_iteration(PyObject *error) {
    PyErr_SetString(PyExc_RuntimeError, "the task raised StopIteration");
    PyObject *raised = exception_take();
    PyObject *text = PyObject_GetAttr(error, names.str_traceback);
    if (text == NULL || PyObject_SetAttr(raised, names.str_traceback, text) < 0)
        PyErr_Clear(); /* some exceptions refuse attributes */
    Py_XDECREF(text);
    PyException_SetCause(raised, Py_NewRef(error)); /* takes it */
    exception_raise(raised);
    Py_DECREF(raised);
    return NULL;
}

/* The element's value, or NULL with its exception. */
static PyObject *chunk_take(map_chunk *chunk, Py_ssize_t i) {
    PyObject *error = chunk->error;
    if (chunk->list != NULL)
        return Py_NewRef(PyList_GET_ITEM(chunk->list, i));
    if (error != NULL && chunk->outcomes != NULL && chunk->outcomes[i].error != NULL)
        error = chunk->outcomes[i].error; /* it was never sent */
    else if (error == NULL && chunk->outcomes != NULL && chunk->outcomes[i].value != NULL)
        return Py_NewRef(chunk->outcomes[i].value);
    else if (error == NULL && chunk->outcomes != NULL)
        error = chunk->outcomes[i].error;
    if (error == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter ended before the task");
        return NULL;
    }
    if (error == chunk->error) /* raised for each element anew */
        PyException_SetTraceback(error, Py_None);
    if (PyErr_GivenExceptionMatches(error, PyExc_StopIteration))
        return raise_stop_iteration(error);
    return exception_raise(error);
}

/* ---- The iterator ---- */

/* Where it is stands in the map: if it is dropped, the next one goes on there. */
typedef struct map_results_object {
    PyObject_HEAD map_future *map;
} map_results_object;

PyObject *map_results(map_future *self) {
    if (self->results != NULL)
        return Py_NewRef(self->results);
    map_results_object *made = PyObject_GC_New(map_results_object, names.map_results_type);
    if (made == NULL)
        return NULL;
    made->map = (map_future *)Py_NewRef((PyObject *)self);
    PyObject_GC_Track(made);
    self->results = (PyObject *)made;
    return (PyObject *)made;
}

static int chunk_wait(map_future *self, map_chunk *chunk, int64_t deadline_ns) {
    if (chunk_look(self, chunk))
        return 1;
    pebble_future *engine = pebble_future_ref(chunk->engine);
    int ended = engine_wait(engine, deadline_ns);
    pebble_future_unref(engine);
    return ended;
}

int map_wait_first(map_future *self, int64_t deadline_ns) {
    if (self->chunk_count == 0)
        return 1;
    bool limited = self->deadline_ns < deadline_ns;
    int ended =
        chunk_wait(self, self->chunks[0], limited ? self->deadline_ns : deadline_ns);
    if (ended == 0 && limited) /* the iterator tells that the limit is over */
        return 1;
    bool cancelled = self->base.cancel_accepted;
    for (Py_ssize_t i = 1;
         cancelled && ended == 1 && i < self->chunk_count && self->ended_otherwise == 0;
         i++)
        ended = chunk_wait(self, self->chunks[i], deadline_ns);
    return ended;
}

static void map_advance(map_future *self, map_chunk *chunk) {
    if (++self->element < chunk->count)
        return;
    self->element = 0;
    self->chunk++;
    if (chunk->loaded)
        chunk_clear(chunk);
}

/* Until the chunk is known. -1 with an exception. */
static int map_wait_for(map_future *self, map_chunk *chunk) {
    Py_ssize_t at_chunk = self->chunk, at_element = self->element;
    int ended = chunk_wait(self, chunk, self->deadline_ns);
    if (ended == 1)
        return chunk_load(self, chunk);
    if (ended == 0) {
        PyObject *late =
            timeout_exception("the element was not there in time", self->limit_ns);
        if (self->chunk == at_chunk && self->element == at_element)
            map_advance(self, chunk);
        if (late != NULL)
            exception_raise(late);
        Py_XDECREF(late);
    }
    return -1;
}

static PyObject *results_next(map_results_object *self) {
    map_future *map = self->map;
    while (map != NULL && map->chunk < map->chunk_count) {
        map_chunk *chunk = map->chunks[map->chunk];
        if (chunk->loaded) {
            PyObject *value = chunk_take(chunk, map->element);
            map_advance(map, chunk);
            return value;
        }
        if (map_wait_for(map, chunk) < 0)
            return NULL;
        /* Another thread may have taken it meanwhile: look again. */
    }
    return NULL;
}

/* So that list() takes its memory at once. */
static PyObject *results_length_hint(map_results_object *self, PyObject *unused) {
    const map_future *map = self->map;
    Py_ssize_t left = map != NULL ? -map->element : 0;
    (void)unused;
    for (Py_ssize_t i = map != NULL ? map->chunk : 0; map != NULL && i < map->chunk_count;
         i++)
        left += map->chunks[i]->count;
    return PyLong_FromSsize_t(left > 0 ? left : 0);
}

static int results_traverse(PyObject *object, visitproc visit, void *arg) {
    map_results_object *self = (map_results_object *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->map);
    return 0;
}

static int results_clear(PyObject *object) {
    map_results_object *self = (map_results_object *)object;
    if (self->map != NULL && self->map->results == object)
        self->map->results = NULL;
    Py_CLEAR(self->map);
    return 0;
}

static void results_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    results_clear(object);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

static PyMethodDef results_methods[] = {
    {"__length_hint__", (PyCFunction)results_length_hint, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot results_slots[] = {
    {Py_tp_doc, (void *)"The results of a map, in the order of its elements."},
    {Py_tp_methods, results_methods},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, results_next},
    {Py_tp_traverse, results_traverse},
    {Py_tp_clear, results_clear},
    {Py_tp_dealloc, results_dealloc},
    {0, NULL},
};

PyType_Spec map_results_spec = {
    .name = "pebble._engine.MapResults",
    .basicsize = sizeof(map_results_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = results_slots,
};

/* ---- The type ---- */

static int map_traverse(PyObject *object, visitproc visit, void *arg) {
    map_future *self = (map_future *)object;
    for (Py_ssize_t i = 0; i < self->chunk_count; i++) {
        map_chunk *chunk = self->chunks[i];
        Py_VISIT(chunk->error);
        Py_VISIT(chunk->list);
        Py_VISIT(chunk->function);
        for (Py_ssize_t k = 0; chunk->outcomes != NULL && k < chunk->count; k++) {
            int found = outcome_visit(&chunk->outcomes[k], visit, arg);
            if (found != 0)
                return found;
        }
    }
    return future_traverse(object, visit, arg);
}

static int map_clear(PyObject *object) {
    map_future *self = (map_future *)object;
    for (Py_ssize_t i = 0; i < self->chunk_count; i++)
        chunk_clear(self->chunks[i]);
    return future_clear(object);
}

static void map_dealloc(PyObject *object) {
    map_future *self = (map_future *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    map_clear(object);
    future_fini(object);
    for (Py_ssize_t i = 0; i < self->chunk_count; i++) {
        pebble_future_unref(self->chunks[i]->engine);
        PyMem_Free(self->chunks[i]);
    }
    PyMem_Free(self->chunks);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyType_Slot map_future_slots[] = {
    {Py_tp_traverse, map_traverse},
    {Py_tp_clear, map_clear},
    {Py_tp_dealloc, map_dealloc},
    {0, NULL},
};

PyType_Spec map_future_spec = {
    .name = "pebble._engine.MapFuture",
    .basicsize = sizeof(map_future),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = map_future_slots,
};
