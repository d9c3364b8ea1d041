/* From iterables to chunks to tasks of the engine. */
#include <string.h>

#include "argument.h"
#include "interpreter.h"
#include "map.h"
#include "message.h"
#include "pickling.h"
#include "thread.h"
#include "worker.h"

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
 * of tuples. A list that is not full: the shortest iterable is exhausted. Whoever schedules a map
 * comes through here for all elements, which may be all in C: so it looks up, now and then. */
static PyObject *take_elements(PyObject *iterators, Py_ssize_t size, bool as_tuples) {
    Py_ssize_t width = PyTuple_GET_SIZE(iterators);
    PyObject *list = PyList_New(0);
    while (list != NULL && PyList_GET_SIZE(list) < size) {
        PyObject *element = as_tuples ? PyTuple_New(width) : NULL;
        PyObject *value = NULL;
        if (as_tuples && element == NULL)
            goto failed;
        if (PyList_GET_SIZE(list) % 16 == 0 && interpreter_look_up() < 0) {
            Py_XDECREF(element);
            goto failed;
        }
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
        if ((i % 8 == 0 && interpreter_look_up() < 0) || writer_take(&writer, NULL) < 0)
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
    if (pickled->keep || PyErr_Occurred() || writer_take(&writer, NULL) < 0)
        return pickled->keep ? 0 : -1;
    if (writer_dump(&writer, function) == 0)
        pickled->bytes =
            PyBytes_FromStringAndSize(writer.to->data, (Py_ssize_t)writer.to->size);
    writer_release(&writer);
    return pickled->bytes != NULL ? 0 : -1;
}

static int schedule_on_processes(const map_request *request, map_future *map,
                                 map_chunk *chunk, const pickled_function *function,
                                 PyObject *list, bool of_tuples) {
    pickle_writer writer;
    int failed = -1;
    if (writer_take(&writer, NULL) < 0)
        return -1;
    Py_ssize_t sent = write_chunk(&writer, chunk, function, list, of_tuples);
    if (sent == 0) {
        chunk->ended = chunk->loaded = true;
        map->ended_otherwise++;
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
        interpreter_offer();
        outcome_of_call(&result, function, PyList_GET_ITEM(list, i), NULL);
        thread_note_traceback(&result);
        outcomes[i] = result;
    }
    Py_DECREF(function);
    Py_DECREF(list);
    deferred_drain_next();
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
    int failed =
        request->threads
            ? schedule_on_threads(request, map, chunk, list, of_tuples)
            : schedule_on_processes(request, map, chunk, function, list, of_tuples);
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
