/* Nothing that a call does may end the worker's loop: any exception, that of a result which cannot be
 * pickled too, is its outcome. When there is no memory left, a reserve is freed so that at least this
 * can be told. */
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "buffers.h"
#include "interpreter.h"
#include "message.h"
#include "outcome.h"
#include "pickling.h"

enum { RESERVE_SIZE = 96 * 1024, FLUSH_AFTER_NS = 5000 };

/* ---- Errors ---- */

static void *reserve;

static void reserve_free(void) {
    PyMem_RawFree(reserve);
    reserve = NULL;
}

static void reserve_renew(void) {
    if (reserve == NULL)
        reserve = PyMem_RawMalloc(RESERVE_SIZE);
}

static PyObject *exception_text_or_less(PyObject *exception) {
    PyObject *text = exception_text(exception);
    if (text == NULL) {
        PyErr_Clear();
        text = PyUnicode_FromString(Py_TYPE(exception)->tp_name);
    }
    if (text == NULL)
        PyErr_Clear();
    return text;
}

/* What can be pickled in any case. */
static PyObject *plain_exception(PyObject *exception, PyObject *reason) {
    PyObject *text = PyUnicode_FromFormat(
        "the exception %.200s could not be pickled, nor the reason why, %.200s",
        Py_TYPE(exception)->tp_name, Py_TYPE(reason)->tp_name);
    PyObject *plain = text != NULL ? PyObject_CallOneArg(PyExc_RuntimeError, text) : NULL;
    Py_XDECREF(text);
    return plain;
}

/* Pickles an exception into an empty writer to memory; if that fails, the reason why; if that fails, too,
 * one that tells of both. -1 with an exception: there was no memory. */
static int dump_exception(pickle_writer *writer, PyObject *exception) {
    if (writer_dump(writer, exception) == 0)
        return 0;
    PyObject *reason = exception_take();
    sink_reset(writer->to, NULL);
    int failed = writer_dump(writer, reason);
    if (failed < 0) {
        PyErr_Clear();
        sink_reset(writer->to, NULL);
        PyObject *plain = plain_exception(exception, reason);
        failed = plain != NULL ? writer_dump(writer, plain) : -1;
        Py_XDECREF(plain);
    }
    Py_DECREF(reason);
    return failed;
}

/* Appends an error record to memory. -1: not even that was possible; no exception is set. */
static int append_error(sink *to, PyObject *exception) {
    pickle_writer writer;
    PyObject *text = exception_text_or_less(exception);
    PyObject *utf8 = NULL;
    int failed = -1;
    if (text != NULL)
        utf8 = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace");
    if (utf8 == NULL)
        PyErr_Clear();
    size_t text_size = utf8 != NULL ? (size_t)PyBytes_GET_SIZE(utf8) : 0;
    if (writer_take(&writer, NULL) == 0) {
        failed = dump_exception(&writer, exception);
        error_header header = {.text_size = text_size, .exception_size = writer.to->size};
        if (failed == 0)
            failed = sink_append(to, &header, sizeof header);
        if (failed == 0 && utf8 != NULL)
            failed = sink_append(to, PyBytes_AS_STRING(utf8), text_size);
        if (failed == 0)
            failed = sink_append(to, writer.to->data, writer.to->size);
        writer_release(&writer);
    }
    if (failed < 0)
        PyErr_Clear();
    Py_XDECREF(utf8);
    Py_XDECREF(text);
    return failed;
}

/* Ends the task with an error, behind what it may have written already. Takes the exception. */
static int finish_with_error(pebble_task *task, size_t written, PyObject *exception) {
    bool no_memory = PyErr_GivenExceptionMatches(exception, PyExc_MemoryError);
    uint64_t place = written;
    char form = RESULT_ERROR;
    if (no_memory)
        reserve_free();
    sink *record = sink_new();
    int failed = record != NULL ? append_error(record, exception) : -1;
    Py_DECREF(exception);
    if (failed == 0 && pebble_task_write(task, record->data, record->size) != PEBBLE_OK)
        failed = -1;
    Py_XDECREF(record);
    PyErr_Clear();
    if (no_memory)
        reserve_renew();
    if (failed < 0)
        return pebble_task_fail(task, ENOMEM,
                                "there was no memory to tell what the task raised");
    pebble_task_write(task, &place, sizeof place);
    return (int)pebble_task_write(task, &form, 1);
}

/* ---- Around a call ---- */

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* What a task has printed shall not be lost with the worker. After very short ones the flush waits
 * until the worker is idle. */
static void output_after(int64_t start_ns) {
    if (now_ns() - start_ns > FLUSH_AFTER_NS)
        worker_flush();
    else
        worker_note_output();
}

/* Pickles the result right into the task. */
static int finish_with_value(pebble_task *task, PyObject *value) {
    pickle_writer writer;
    char form = RESULT_VALUE;
    if (writer_take(&writer, task) < 0)
        return finish_with_error(task, 0, exception_take());
    Py_ssize_t buffers = writer_dump_apart(&writer, value);
    size_t written = writer.to->size;
    writer_release(&writer);
    if (buffers < 0)
        return finish_with_error(task, written, exception_take());
    if (buffers > 0) {
        uint64_t count = (uint64_t)buffers;
        form = RESULT_VALUE_APART;
        pebble_task_write(task, &count, sizeof count);
    }
    return (int)pebble_task_write(task, &form, 1);
}

static int finish(pebble_task *task, outcome *result) {
    int code;
    if (result->value != NULL) {
        code = finish_with_value(task, result->value);
    } else {
        code = finish_with_error(task, 0, result->error);
        result->error = NULL;
    }
    outcome_clear(result);
    return code;
}

/* ---- One call ---- */

/* Takes apart what was pickled as one; new references. */
static int unpack(PyObject *packed, Py_ssize_t count, PyObject **parts) {
    if (!PyTuple_CheckExact(packed) || PyTuple_GET_SIZE(packed) != count) {
        PyErr_SetString(PyExc_RuntimeError, "the task's input is damaged");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        parts[i] = Py_NewRef(PyTuple_GET_ITEM(packed, i));
    return 0;
}

typedef struct call {
    PyObject *function, *args, *kwargs; /* kwargs may be NULL */
} call;

static void call_fini(call *self) {
    Py_CLEAR(self->function);
    Py_CLEAR(self->args);
    Py_CLEAR(self->kwargs);
}

/* Arguments whose buffers stay in the input's memory, which is theirs from now on. */
static PyObject *load_apart(pebble_task *task, const char *payload, const char *input,
                            size_t input_size, uint64_t buffers) {
    void *memory = pebble_task_take_input(task);
    PyObject *owner = memory != NULL
                          ? buffers_owner(memory, free)
                          : PyByteArray_FromStringAndSize(input, (Py_ssize_t)input_size);
    if (owner == NULL)
        return NULL;
    const char *message = memory != NULL ? input : PyByteArray_AS_STRING(owner);
    PyObject *packed = NULL;
    PyObject *views = buffers_of(message, input_size, buffers, owner);
    if (views != NULL)
        packed = pickling_load_with(message + (payload - input),
                                    input_size - (size_t)(payload - input), views);
    Py_XDECREF(views);
    Py_DECREF(owner);
    return packed;
}

static int load_call(call *self, pebble_task *task, const void *input, size_t input_size) {
    const input_header *header = input;
    const char *function = (const char *)(header + 1);
    const char *payload = function + header->function_size;
    size_t size = input_size - sizeof *header - header->function_size;
    PyObject *packed = NULL;
    int failed = -1;
    if (header->form != INPUT_WHOLE)
        self->function = pickling_load_function(function, header->function_size,
                                                header->keep_function);
    input_form form = (input_form)header->form; /* the header may go with the buffers */
    if (form != INPUT_WHOLE && self->function == NULL)
        return -1;
    packed = header->count > 0
                 ? load_apart(task, payload, input, input_size, header->count)
                 : pickling_load(payload, size);
    if (packed == NULL)
        return -1;
    if (form == INPUT_ARGS) {
        self->args = packed;
        return 0;
    }
    if (form == INPUT_ARGS_KWARGS)
        failed = unpack(packed, 2, &self->args);
    else
        failed = unpack(packed, 3, &self->function);
    Py_DECREF(packed);
    return failed;
}

_Static_assert(offsetof(call, args) == sizeof(PyObject *) &&
                   offsetof(call, kwargs) == 2 * sizeof(PyObject *),
               "unpack() fills them as an array");

int process_call(pebble_task *task, const void *input, size_t input_size) {
    call task_call = {0};
    outcome result = {0};
    worker_enter();
    int64_t start_ns = now_ns();
    if (interpreter_problem() !=
        NULL) { /* of a single call: there was no initializer to tell it */
        PyErr_SetString(PyExc_RuntimeError, interpreter_problem());
        return finish_with_error(task, 0, exception_take());
    }
    if (load_call(&task_call, task, input, input_size) == 0)
        outcome_of_call(&result, task_call.function, task_call.args, task_call.kwargs);
    else
        result.error = exception_take();
    call_fini(&task_call);
    int code = finish(task, &result);
    output_after(start_ns);
    return code;
}

int process_inherited(pebble_task *task, const void *input, size_t input_size) {
    PyObject *packed;
    PyObject *parts[4];
    outcome result = {0};
    (void)input_size;
    worker_enter();
    int64_t start_ns = now_ns();
    memcpy(&packed, input, sizeof packed);
    if (unpack(packed, 4, parts) < 0)
        return finish_with_error(task, 0, exception_take());
    if (parts[3] != Py_None)
        worker_rename(parts[3]);
    outcome_of_call(&result, parts[0], parts[1], parts[2]);
    for (int i = 0; i < 4; i++)
        Py_DECREF(parts[i]);
    int code = finish(task, &result);
    output_after(start_ns);
    return code;
}

/* ---- A chunk ---- */

/* The arguments of a chunk's elements, and where the next ones are. */
typedef struct chunk_input {
    const input_header *header;
    PyObject *list;    /* NULL: in pieces */
    const char *piece; /* the next one */
} chunk_input;

static int chunk_load(chunk_input *self, const void *input, size_t input_size,
                      PyObject **function) {
    self->header = input;
    const char *bytes = (const char *)(self->header + 1);
    size_t size = input_size - sizeof *self->header - self->header->function_size;
    *function = pickling_load_function(bytes, self->header->function_size,
                                       self->header->keep_function);
    if (*function == NULL)
        return -1;
    self->piece = bytes + self->header->function_size;
    if (self->header->form == INPUT_CHUNK_PIECES)
        return 0;
    self->list = pickling_load(self->piece, size);
    if (self->list != NULL &&
        (!PyList_CheckExact(self->list) ||
         PyList_GET_SIZE(self->list) != (Py_ssize_t)self->header->count)) {
        PyErr_SetString(PyExc_RuntimeError, "the task's input is damaged");
        Py_CLEAR(self->list);
    }
    return self->list != NULL ? 0 : -1;
}

static void call_piece(chunk_input *self, PyObject *function, outcome *result) {
    piece_header header;
    memcpy(&header, self->piece, sizeof header);
    self->piece += sizeof header;
    PyObject *args = pickling_load(self->piece, (size_t)header.size);
    self->piece += header.size;
    if (args != NULL)
        outcome_of_call(result, function, args, NULL);
    else
        result->error = exception_take();
    Py_XDECREF(args);
}

/* Calls the function with the arguments of element i, which must be the next one. */
static void call_element(chunk_input *self, PyObject *function, Py_ssize_t i,
                         outcome *result) {
    if (self->list == NULL) {
        call_piece(self, function, result);
    } else if (self->header->form == INPUT_CHUNK) {
        result->value = PyObject_CallOneArg(function, PyList_GET_ITEM(self->list, i));
        if (result->value == NULL)
            result->error = exception_take();
    } else {
        outcome_of_call(result, function, PyList_GET_ITEM(self->list, i), NULL);
    }
}

static int append_piece(pickle_writer *pieces, const outcome *result) {
    pickle_writer writer;
    piece_header header = {.form = RESULT_VALUE};
    if (writer_take(&writer, NULL) < 0)
        return -1;
    PyObject *error = result->error != NULL ? Py_NewRef(result->error) : NULL;
    if (error == NULL && writer_dump(&writer, result->value) < 0)
        error = exception_take();
    if (error != NULL) {
        header.form = RESULT_ERROR;
        sink_reset(writer.to, NULL);
        if (PyErr_GivenExceptionMatches(error, PyExc_MemoryError))
            reserve_free();
        if (append_error(writer.to, error) < 0)
            sink_reset(writer.to, NULL); /* an empty record: there was no memory for it */
        reserve_renew();
        Py_DECREF(error);
    }
    header.size = writer.to->size;
    int failed = sink_append(pieces->to, &header, sizeof header);
    if (failed == 0)
        failed = sink_append(pieces->to, writer.to->data, writer.to->size);
    writer_release(&writer);
    return failed;
}

/* Writes the outcomes: as one list if all are plain values, else in pieces. */
static int finish_chunk(pebble_task *task, outcome *results, Py_ssize_t count,
                        bool plain) {
    pickle_writer writer;
    char form = plain ? RESULT_LIST : RESULT_PIECES;
    PyObject *list = plain ? PyList_New(count) : NULL;
    if (plain && list == NULL)
        return finish_with_error(task, 0, exception_take());
    if (writer_take(&writer, task) < 0) {
        Py_XDECREF(list);
        return finish_with_error(task, 0, exception_take());
    }
    int failed = 0;
    for (Py_ssize_t i = 0; i < count && failed == 0; i++) {
        if (plain)
            PyList_SET_ITEM(list, i, Py_NewRef(results[i].value));
        else
            failed = append_piece(&writer, &results[i]);
    }
    if (plain)
        failed = writer_dump(&writer, list);
    size_t written = writer.to->size;
    writer_release(&writer);
    Py_XDECREF(list);
    if (failed < 0)
        return finish_with_error(task, written, exception_take());
    return (int)pebble_task_write(task, &form, 1);
}

static int run_chunk(pebble_task *task, chunk_input *chunk, PyObject *function) {
    Py_ssize_t count = (Py_ssize_t)chunk->header->count;
    outcome *results = PyMem_Calloc((size_t)count, sizeof *results);
    bool plain = true;
    if (results == NULL) {
        PyErr_NoMemory();
        return finish_with_error(task, 0, exception_take());
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        call_element(chunk, function, i, &results[i]);
        plain = plain && results[i].value != NULL && pickling_is_plain(results[i].value);
    }
    int code = finish_chunk(task, results, count, plain);
    for (Py_ssize_t i = 0; i < count; i++)
        outcome_clear(&results[i]);
    PyMem_Free(results);
    return code;
}

int process_chunk(pebble_task *task, const void *input, size_t input_size) {
    chunk_input chunk = {0};
    PyObject *function = NULL;
    worker_enter();
    int64_t start_ns = now_ns();
    int code = chunk_load(&chunk, input, input_size, &function) == 0
                   ? run_chunk(task, &chunk, function)
                   : finish_with_error(task, 0, exception_take());
    Py_XDECREF(function);
    Py_XDECREF(chunk.list);
    output_after(start_ns);
    return code;
}

/* ---- Initializers ---- */

static int tell_initializer_error(void) {
    PyObject *exception = exception_take();
    PyObject *text = exception_text_or_less(exception);
    const char *utf8 = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    PyErr_Clear();
    int code = pebble_initializer_fail(1, "%s", utf8 != NULL ? utf8 : "");
    Py_XDECREF(text);
    Py_DECREF(exception);
    worker_flush();
    return code;
}

/* packed: a tuple (initializer, args), or None. */
static int run_initializer(PyObject *packed) {
    PyObject *parts[2];
    reserve_renew();
    if (pickling_prepare() < 0)
        return tell_initializer_error();
    if (packed == Py_None)
        return 0;
    if (unpack(packed, 2, parts) < 0)
        return tell_initializer_error();
    PyObject *done = PyObject_CallObject(parts[0], parts[1]);
    Py_DECREF(parts[0]);
    Py_DECREF(parts[1]);
    if (done == NULL)
        return tell_initializer_error();
    Py_DECREF(done);
    worker_flush();
    return 0;
}

int process_initializer(const void *input, size_t input_size) {
    worker_enter();
    if (interpreter_problem() != NULL)
        return pebble_initializer_fail(1, "%s", interpreter_problem());
    PyObject *packed = pickling_load(input, input_size);
    if (packed == NULL)
        return tell_initializer_error();
    int code = run_initializer(packed);
    Py_DECREF(packed);
    return code;
}

int process_initializer_inherited(const void *input, size_t input_size) {
    PyObject *packed;
    (void)input_size;
    worker_enter();
    memcpy(&packed, input, sizeof packed);
    return run_initializer(packed);
}

/* ---- Names for executed workers ---- */

int worker_register_functions(void) {
    pebble_error error =
        pebble_register_function(REGISTERED_NAME "process_call", process_call);
    if (error == PEBBLE_OK)
        error = pebble_register_function(REGISTERED_NAME "process_chunk", process_chunk);
    if (error == PEBBLE_OK)
        error =
            pebble_register_function(REGISTERED_NAME "process_initializer",
                                     (pebble_function)(void (*)(void))process_initializer);
    return error == PEBBLE_OK ? 0 : -1;
}
