#include "map.h"

#include <string.h>

#include "argument.h"
#include "interpreter.h"
#include "message.h"
#include "pickling.h"
#include "thread.h"
#include "worker.h"

struct map_chunk {
    deferred deferred;     /* threads: the task's reference to the map */
    pebble_future *engine; /* NULL: it has ended */
    Py_ssize_t count;      /* elements */
    bool ended, loaded, taken;
    PyObject *error; /* of all elements */
    PyObject *list;  /* the values. Threads, before it runs: the arguments, as tuples */
    outcome *outcomes; /* one for each element. Before the end: those that were never sent */
    PyObject *function; /* threads, before it runs */
};

static void chunk_clear(map_chunk *self) {
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

bool map_cancelled(map_future *self) {
    if (self->chunk_count == 0 || !(map_done(self) || self->base.cancel_accepted))
        return false;
    for (Py_ssize_t i = self->first_open; i < self->chunk_count; i++)
        chunk_look(self, self->chunks[i]);
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

static void map_ended(map_future *self) {
    future_announce(&self->base);
    Py_DECREF(self);
}

/* From the engine. */
static void chunk_ended(pebble_future *engine, void *context) {
    map_future *self = context;
    PyGILState_STATE state;
    (void)engine;
    if (atomic_fetch_sub(&self->open, 1) != 1 || !thread_enter(&state))
        return;
    map_ended(self);
    thread_leave(state);
}

int map_watch(map_future *self) {
    pebble_error error = PEBBLE_OK;
    Py_INCREF(self); /* for map_ended() */
    self->base.watched = true;
    interpreter_precede_handler();
    atomic_store(&self->open, 1);
    for (Py_ssize_t i = 0; i < self->chunk_count && error == PEBBLE_OK; i++) {
        map_chunk *chunk = self->chunks[i];
        if (chunk_look(self, chunk))
            continue;
        atomic_fetch_add(&self->open, 1);
        error = pebble_future_add_callback(chunk->engine, chunk_ended, self);
        if (error != PEBBLE_OK)
            atomic_fetch_sub(&self->open, 1);
    }
    /* If not all could be set up, those that could still refer to the map: it stays. */
    if (error == PEBBLE_OK && atomic_fetch_sub(&self->open, 1) == 1)
        map_ended(self);
    if (error != PEBBLE_OK)
        raise_engine_error(error);
    return error == PEBBLE_OK ? 0 : -1;
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

static int load_result(map_chunk *chunk, const char *data, size_t size) {
    outcome whole = {0};
    if (size > 0 && data[size - 1] == RESULT_LIST)
        return load_list(chunk, data, size - 1);
    if (size > 0 && data[size - 1] == RESULT_PIECES)
        return load_pieces(chunk, data, size - 1);
    if (outcome_load(&whole, data, size) < 0)
        return -1;
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
        return load_result(into, data, size);
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

/* Of a chunk that has ended: takes what the engine has. -1 with an exception that is the caller's. */
static int chunk_load(map_future *self, map_chunk *chunk) {
    if (chunk->loaded)
        return 0;
    chunk_look(self, chunk);
    if (!self->base.in_thread)
        return load_sent(chunk);
    const pebble_failure *failure = pebble_future_failure(chunk->engine);
    if (failure != NULL && (chunk->error = exception_of_failure(failure)) == NULL)
        return -1;
    Py_CLEAR(chunk->list); /* the arguments of one that never ran */
    chunk->loaded = true;
    pebble_future_unref(chunk->engine);
    chunk->engine = NULL;
    return 0;
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
    PyException_SetTraceback(error, Py_None); /* raised for each element anew */
    return exception_raise(error);
}

/* ---- The iterator ---- */

typedef struct map_results_object {
    PyObject_HEAD map_future *map;
    Py_ssize_t chunk, element;
} map_results_object;

PyObject *map_results(map_future *self) {
    if (self->results != NULL)
        return Py_NewRef(self->results);
    map_results_object *made = PyObject_GC_New(map_results_object, names.map_results_type);
    if (made == NULL)
        return NULL;
    made->map = (map_future *)Py_NewRef((PyObject *)self);
    made->chunk = made->element = 0;
    PyObject_GC_Track(made);
    self->results = (PyObject *)made;
    return Py_NewRef(self->results);
}

int map_wait_first(map_future *self, int64_t deadline_ns) {
    if (self->chunk_count == 0 || chunk_look(self, self->chunks[0]))
        return 1;
    bool limited = self->deadline_ns < deadline_ns;
    pebble_future *engine = pebble_future_ref(self->chunks[0]->engine);
    int ended = engine_wait(engine, limited ? self->deadline_ns : deadline_ns);
    pebble_future_unref(engine);
    return ended == 0 && limited ? 1
                                 : ended; /* the iterator tells that the limit is over */
}

static void results_advance(map_results_object *self, map_chunk *chunk) {
    if (++self->element < chunk->count)
        return;
    self->element = 0;
    self->chunk++;
    if (chunk->loaded) {
        chunk_clear(chunk);
        chunk->taken = true;
    }
}

static PyObject *results_next_waiting(map_results_object *self, map_chunk *chunk) {
    map_future *map = self->map;
    Py_ssize_t at_chunk = self->chunk, at_element = self->element;
    if (!chunk_look(map, chunk)) {
        pebble_future *engine = pebble_future_ref(chunk->engine);
        int ended = engine_wait(engine, map->deadline_ns);
        pebble_future_unref(engine);
        if (ended < 0)
            return NULL;
        if (ended == 0) {
            PyObject *late =
                timeout_exception("the element was not there in time", map->limit_ns);
            if (self->chunk == at_chunk && self->element == at_element)
                results_advance(self, chunk);
            if (late != NULL)
                exception_raise(late);
            Py_XDECREF(late);
            return NULL;
        }
    }
    return chunk_load(map, chunk) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *results_next(map_results_object *self) {
    while (self->chunk < self->map->chunk_count) {
        map_chunk *chunk = self->map->chunks[self->chunk];
        if (chunk->loaded) {
            Py_ssize_t element = self->element;
            PyObject *value = chunk_take(chunk, element);
            results_advance(self, chunk);
            return value;
        }
        PyObject *ready = results_next_waiting(self, chunk);
        if (ready == NULL)
            return NULL;
        Py_DECREF(ready); /* another thread may have taken it meanwhile: look again */
    }
    return NULL;
}

static int results_traverse(PyObject *object, visitproc visit, void *arg) {
    map_results_object *self = (map_results_object *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->map);
    return 0;
}

static int results_clear(PyObject *object) {
    Py_CLEAR(((map_results_object *)object)->map);
    return 0;
}

static void results_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    results_clear(object);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

static PyType_Slot results_slots[] = {
    {Py_tp_doc, (void *)"The results of a map, in the order of its elements."},
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

/* ---- Making ---- */

static int add_chunk(map_future *self, map_chunk *chunk) {
    if (self->chunk_count == self->capacity) {
        Py_ssize_t capacity = self->capacity > 0 ? self->capacity * 2 : 8;
        map_chunk **chunks =
            PyMem_Realloc(self->chunks, (size_t)capacity * sizeof *chunks);
        if (chunks == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->chunks = chunks;
        self->capacity = capacity;
    }
    self->chunks[self->chunk_count++] = chunk;
    return 0;
}

/* The arguments of the next elements, at most size: a list, of values if there is one iterable, else
 * of tuples. A list that is not full: the shortest iterable is exhausted. */
static PyObject *take_elements(PyObject *iterators, Py_ssize_t size, bool as_tuples) {
    Py_ssize_t width = PyTuple_GET_SIZE(iterators);
    PyObject *list = PyList_New(0);
    while (list != NULL && PyList_GET_SIZE(list) < size) {
        PyObject *element = as_tuples ? PyTuple_New(width) : NULL;
        PyObject *value = NULL;
        if (as_tuples && element == NULL)
            goto failed;
        for (Py_ssize_t i = 0; i < width; i++) {
            value = PyIter_Next(PyTuple_GET_ITEM(iterators, i));
            if (value == NULL)
                break;
            if (as_tuples)
                PyTuple_SET_ITEM(element, i, value);
        }
        if (value == NULL) {
            Py_XDECREF(element);
            if (PyErr_Occurred())
                goto failed;
            return list;
        }
        if (!as_tuples)
            element = value;
        int appended = PyList_Append(list, element);
        Py_DECREF(element);
        if (appended < 0)
            goto failed;
    }
    return list;
failed:
    Py_XDECREF(list);
    return NULL;
}

static bool is_plain_list(PyObject *list) {
    Py_ssize_t i = 0;
    while (i < PyList_GET_SIZE(list) && pickling_is_plain(PyList_GET_ITEM(list, i)))
        i++;
    return i == PyList_GET_SIZE(list);
}

/* The function as workers get it. */
typedef struct pickled_function {
    PyObject *bytes;
    bool keep;
} pickled_function;

static int append_function(sink *to, const pickled_function *function, input_form form,
                           uint64_t count) {
    input_header header = {.form = (uint16_t)form,
                           .keep_function = function->keep,
                           .function_size = (uint32_t)PyBytes_GET_SIZE(function->bytes),
                           .count = count};
    if (sink_append(to, &header, sizeof header) < 0)
        return -1;
    return sink_append(to, PyBytes_AS_STRING(function->bytes), header.function_size);
}

/* An element that cannot be pickled has its error here. -1 with an exception that is the caller's. */
static int refuse_element(map_chunk *chunk, Py_ssize_t i) {
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *error = exception_take();
    if (chunk->outcomes == NULL)
        chunk->outcomes = PyMem_Calloc((size_t)chunk->count, sizeof(outcome));
    if (chunk->outcomes == NULL) {
        Py_DECREF(error);
        PyErr_NoMemory();
        return -1;
    }
    chunk->outcomes[i].error = error;
    return 0;
}

/* Each element's arguments as a pickle of their own: one that cannot be pickled, or unpickled, costs
 * itself alone. The count of those that could be pickled, or -1. */
static Py_ssize_t append_pieces(sink *to, map_chunk *chunk, PyObject *list) {
    Py_ssize_t sent = 0;
    for (Py_ssize_t i = 0; i < chunk->count; i++) {
        pickle_writer writer;
        if (writer_take(&writer, NULL) < 0)
            return -1;
        int failed = 0;
        if (writer_dump(&writer, PyList_GET_ITEM(list, i)) == 0) {
            piece_header header = {.size = writer.to->size};
            failed = sink_append(to, &header, sizeof header);
            if (failed == 0)
                failed = sink_append(to, writer.to->data, writer.to->size);
            sent++;
        } else {
            failed = refuse_element(chunk, i);
        }
        writer_release(&writer);
        if (failed < 0)
            return -1;
    }
    return sent;
}

/* One element of single arguments → tuples of one. */
static PyObject *list_of_tuples(PyObject *list) {
    PyObject *tuples = PyList_New(PyList_GET_SIZE(list));
    for (Py_ssize_t i = 0; tuples != NULL && i < PyList_GET_SIZE(list); i++) {
        PyObject *tuple = PyTuple_Pack(1, PyList_GET_ITEM(list, i));
        if (tuple == NULL)
            Py_CLEAR(tuples);
        else
            PyList_SET_ITEM(tuples, i, tuple);
    }
    return tuples;
}

/* The message of a chunk. The count of elements in it, 0 for none at all, or -1. */
static Py_ssize_t write_chunk(pickle_writer *writer, map_chunk *chunk,
                              const pickled_function *function, PyObject *list,
                              bool of_tuples) {
    if (!of_tuples && is_plain_list(list)) {
        if (append_function(writer->to, function, INPUT_CHUNK, (uint64_t)chunk->count) <
                0 ||
            writer_dump(writer, list) < 0)
            return -1;
        return chunk->count;
    }
    PyObject *tuples = of_tuples ? Py_NewRef(list) : list_of_tuples(list);
    Py_ssize_t sent = -1;
    if (tuples != NULL &&
        append_function(writer->to, function, INPUT_CHUNK_PIECES, 0) == 0)
        sent = append_pieces(writer->to, chunk, tuples);
    Py_XDECREF(tuples);
    if (sent > 0)
        ((input_header *)(void *)writer->to->data)->count = (uint64_t)sent;
    return sent;
}

static int send(const map_request *request, pebble_function function, sink *message,
                pebble_future **engine) {
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    options.function = function;
    options.timeout_ns = request->limit_ns;
    pebble_error error = sink_schedule(message, request->pool, &options, engine);
    if (error == PEBBLE_OK)
        return 0;
    raise_engine_error(error);
    return -1;
}

static int pickle_function(PyObject *function, pickled_function *pickled) {
    pickle_writer writer;
    pickled->bytes = pickling_function(function);
    pickled->keep = pickled->bytes != NULL;
    Py_XINCREF(pickled->bytes);
    if (pickled->keep || PyErr_Occurred() || writer_take(&writer, NULL) < 0)
        return pickled->keep ? 0 : -1;
    if (writer_dump(&writer, function) == 0)
        pickled->bytes =
            PyBytes_FromStringAndSize(writer.to->data, (Py_ssize_t)writer.to->size);
    writer_release(&writer);
    return pickled->bytes != NULL ? 0 : -1;
}

static int schedule_on_processes(const map_request *request, map_chunk *chunk,
                                 const pickled_function *function, PyObject *list,
                                 bool of_tuples) {
    pickle_writer writer;
    int failed = -1;
    if (writer_take(&writer, NULL) < 0)
        return -1;
    Py_ssize_t sent = write_chunk(&writer, chunk, function, list, of_tuples);
    if (sent == 0) {
        chunk->ended = chunk->loaded = true;
        failed = 0;
    } else if (sent > 0) {
        failed = send(request, process_chunk, writer.to, &chunk->engine);
    }
    writer_release(&writer);
    return failed;
}

static int schedule_on_threads(const map_request *request, map_future *map,
                               map_chunk *chunk, PyObject *list, bool of_tuples) {
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    chunk->list = of_tuples ? Py_NewRef(list) : list_of_tuples(list);
    chunk->function = Py_NewRef(request->function);
    chunk->outcomes = PyMem_Calloc((size_t)chunk->count, sizeof(outcome));
    if (chunk->list == NULL || chunk->outcomes == NULL) {
        if (chunk->list != NULL)
            PyErr_NoMemory();
        return -1;
    }
    chunk->deferred.object = Py_NewRef((PyObject *)map);
    options.function = thread_chunk;
    options.input = chunk;
    options.input_size = sizeof *chunk;
    options.release_input = deferred_push;
    options.release_context = &chunk->deferred;
    pebble_error error = pebble_schedule_task(request->pool, &options, &chunk->engine);
    if (error == PEBBLE_OK)
        return 0;
    Py_DECREF(map);
    raise_engine_error(error);
    return -1;
}

int thread_chunk(pebble_task *task, const void *input, size_t input_size) {
    map_chunk *chunk = (map_chunk *)(uintptr_t)input;
    (void)task;
    (void)input_size;
    if (!worker_enter())
        return 1;
    deferred_drain();
    PyObject *list = chunk->list, *function = chunk->function;
    outcome *outcomes = chunk->outcomes;
    chunk->list = chunk->function = NULL;
    for (Py_ssize_t i = 0; i < chunk->count; i++) {
        outcome result = {0};
        outcome_of_call(&result, function, PyList_GET_ITEM(list, i), NULL);
        thread_note_traceback(&result);
        outcomes[i] = result;
    }
    Py_DECREF(function);
    Py_DECREF(list);
    return 0;
}

static int schedule_chunk(const map_request *request, map_future *map,
                          const pickled_function *function, PyObject *list,
                          bool of_tuples) {
    map_chunk *chunk = PyMem_Calloc(1, sizeof *chunk);
    if (chunk == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    chunk->count = PyList_GET_SIZE(list);
    int failed = request->threads
                     ? schedule_on_threads(request, map, chunk, list, of_tuples)
                     : schedule_on_processes(request, chunk, function, list, of_tuples);
    if (failed == 0 && add_chunk(map, chunk) == 0)
        return 0;
    if (failed == 0) /* it runs and nobody can know: as if it had not been scheduled */
        pebble_future_cancel(chunk->engine);
    if (chunk->deferred.object == NULL || failed < 0) { /* else the engine has it */
        pebble_future_unref(chunk->engine);
        chunk_clear(chunk);
        PyMem_Free(chunk);
    }
    return -1;
}

static PyObject *make_iterators(PyObject *iterables) {
    Py_ssize_t width = PyTuple_GET_SIZE(iterables);
    PyObject *iterators = PyTuple_New(width);
    for (Py_ssize_t i = 0; iterators != NULL && i < width; i++) {
        PyObject *iterator = PyObject_GetIter(PyTuple_GET_ITEM(iterables, i));
        if (iterator == NULL) {
            if (PyErr_ExceptionMatches(PyExc_TypeError))
                PyErr_Format(PyExc_TypeError, "iterables must be iterable, not %.200s",
                             Py_TYPE(PyTuple_GET_ITEM(iterables, i))->tp_name);
            Py_CLEAR(iterators);
        } else {
            PyTuple_SET_ITEM(iterators, i, iterator);
        }
    }
    return iterators;
}

/* Schedules chunk after chunk, as the iterables give them. */
static int schedule_all(const map_request *request, map_future *map,
                        const pickled_function *function, PyObject *iterators) {
    bool of_tuples = PyTuple_GET_SIZE(iterators) > 1;
    int failed = 0;
    Py_ssize_t count = request->chunk_size;
    while (failed == 0 && count == request->chunk_size) {
        PyObject *list = take_elements(iterators, request->chunk_size, of_tuples);
        if (list == NULL)
            return -1;
        count = PyList_GET_SIZE(list);
        if (count > 0)
            failed = schedule_chunk(request, map, function, list, of_tuples);
        Py_DECREF(list);
    }
    return failed;
}

/* A function that cannot be pickled: the error of every element. */
static int refuse_all(const map_request *request, map_future *map, PyObject *iterators) {
    bool of_tuples = PyTuple_GET_SIZE(iterators) > 1;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *error = exception_take();
    PyObject *list;
    while ((list = take_elements(iterators, request->chunk_size, of_tuples)) != NULL &&
           PyList_GET_SIZE(list) > 0) {
        map_chunk *chunk = PyMem_Calloc(1, sizeof *chunk);
        if (chunk == NULL || add_chunk(map, chunk) < 0) {
            PyMem_Free(chunk);
            PyErr_NoMemory();
            Py_CLEAR(list);
            break;
        }
        chunk->count = PyList_GET_SIZE(list);
        chunk->ended = chunk->loaded = true;
        chunk->error = Py_NewRef(error);
        map->ended_otherwise++;
        Py_DECREF(list);
    }
    Py_DECREF(error);
    Py_XDECREF(list);
    return list != NULL ? 0 : -1;
}

/* Schedules everything. A pool that is closed refuses an empty map, too. */
static int fill(const map_request *request, map_future *map, PyObject *iterators) {
    pickled_function function = {0};
    int failed;
    if (request->threads)
        failed = schedule_all(request, map, NULL, iterators);
    else if (pickle_function(request->function, &function) == 0)
        failed = schedule_all(request, map, &function, iterators);
    else
        failed = refuse_all(request, map, iterators);
    Py_XDECREF(function.bytes);
    if (failed == 0 && map->chunk_count == 0 && !pebble_pool_active(request->pool)) {
        PyErr_SetString(PyExc_RuntimeError, "the pool is closed or stopped");
        failed = -1;
    }
    return failed;
}

PyObject *map_schedule(const map_request *request) {
    PyObject *iterators = make_iterators(request->iterables);
    map_future *self =
        iterators != NULL ? (map_future *)task_future_new(request->type, NULL) : NULL;
    if (self == NULL) {
        Py_XDECREF(iterators);
        return NULL;
    }
    self->base.kind = FUTURE_MAP;
    self->base.in_thread = request->threads;
    self->deadline_ns = PEBBLE_FOREVER;
    if (request->threads && request->limit_ns != 0) {
        self->limit_ns = request->limit_ns;
        self->deadline_ns = deadline_after(request->limit_ns);
    }
    int failed = fill(request, self, iterators);
    Py_DECREF(iterators);
    if (failed == 0)
        return (PyObject *)self;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    map_cancel(self);
    Py_DECREF(self);
    PyErr_Restore(type, value, traceback);
    return NULL;
}

/* ---- The type ---- */

static int map_traverse(PyObject *object, visitproc visit, void *arg) {
    map_future *self = (map_future *)object;
    Py_VISIT(self->results);
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
    Py_CLEAR(self->results);
    for (Py_ssize_t i = 0; i < self->chunk_count; i++)
        chunk_clear(self->chunks[i]);
    return future_clear(object);
}

static void map_dealloc(PyObject *object) {
    map_future *self = (map_future *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    map_clear(object);
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
