#include "sink.h"

#include <string.h>

enum {
    KEPT_CAPACITY = 64 * 1024, /* more is given back at a reset */
    NOT_COPIED_SIZE = 4 * 1024,
    OUT_OF_BAND_SIZE = 32 * 1024, /* of buffers: below that a copy is cheaper */
    MAY_BLOCK_SIZE = 32 * 1024,   /* of a write to a task: then others may have the GIL */
};

sink *sink_new(void) {
    sink *made = PyObject_New(sink, names.sink_type);
    if (made != NULL) {
        made->task = NULL;
        made->data = NULL;
        made->size = made->capacity = 0;
        made->out_of_band = false;
        made->buffers = NULL;
    }
    return made;
}

static void sink_dealloc(sink *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyMem_RawFree(self->data);
    Py_XDECREF(self->buffers);
    PyObject_Free(self);
    Py_DECREF(type);
}

void sink_reset(sink *self, pebble_task *task) {
    self->task = task;
    self->size = 0;
    self->out_of_band = false;
    Py_CLEAR(self->buffers);
    if (self->capacity > KEPT_CAPACITY) {
        PyMem_RawFree(self->data);
        self->data = NULL;
        self->capacity = 0;
    }
}

pebble_error sink_schedule(sink *self, pebble_pool *pool, pebble_task_options *options,
                           pebble_future **future) {
    bool gives = self->size >= NOT_COPIED_SIZE;
    options->input = self->data;
    options->input_size = self->size;
    options->release_input = gives ? PyMem_RawFree : NULL;
    options->release_context = self->data;
    pebble_error error = pebble_schedule_task(pool, options, future);
    if (error == PEBBLE_OK && gives) {
        self->data = NULL;
        self->size = self->capacity = 0;
    }
    return error;
}

static int reserve(sink *self, size_t size) {
    size_t wanted = self->size + size;
    size_t capacity = self->capacity < 256 ? 256 : self->capacity;
    if (wanted <= self->capacity)
        return 0;
    while (capacity < wanted)
        capacity *= 2;
    if (capacity > 2 * KEPT_CAPACITY && size > capacity / 4)
        capacity = wanted; /* one large object: nothing much follows */
    char *data = PyMem_RawRealloc(self->data, capacity);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->data = data;
    self->capacity = capacity;
    return 0;
}

static int write_to_task(sink *self, const void *data, size_t size) {
    pebble_error error;
    if (size < MAY_BLOCK_SIZE) {
        error = pebble_task_write(self->task, data, size);
    } else {
        Py_BEGIN_ALLOW_THREADS
        error = pebble_task_write(self->task, data, size);
        Py_END_ALLOW_THREADS
    }
    self->size += size;
    if (error == PEBBLE_OK)
        return 0;
    PyErr_NoMemory();
    return -1;
}

int sink_append(sink *self, const void *data, size_t size) {
    if (self->task != NULL)
        return write_to_task(self, data, size);
    if (reserve(self, size) < 0)
        return -1;
    if (size > 0)
        memcpy(self->data + self->size, data, size);
    self->size += size;
    return 0;
}

static PyObject *sink_write(sink *self, PyObject *bytes) {
    Py_buffer view;
    if (PyBytes_CheckExact(bytes)) {
        if (sink_append(self, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes)) <
            0)
            return NULL;
        Py_RETURN_NONE;
    }
    if (PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int failed = sink_append(self, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    if (failed < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* The pickler's buffer_callback: false if the buffer goes apart from the pickle. */
static PyObject *sink_keep_buffer(sink *self, PyObject *buffer) {
    Py_buffer view;
    if (!self->out_of_band)
        Py_RETURN_TRUE;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_FULL_RO) < 0)
        return NULL;
    bool in_band = view.len < OUT_OF_BAND_SIZE || !PyBuffer_IsContiguous(&view, 'A');
    PyBuffer_Release(&view);
    if (in_band)
        Py_RETURN_TRUE;
    if (self->buffers == NULL && (self->buffers = PyList_New(0)) == NULL)
        return NULL;
    if (PyList_Append(self->buffers, buffer) < 0)
        return NULL;
    Py_RETURN_FALSE;
}

static PyMethodDef sink_methods[] = {
    {"keep_buffer", (PyCFunction)sink_keep_buffer, METH_O, NULL},
    {"write", (PyCFunction)sink_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sink_slots[] = {
    {Py_tp_dealloc, sink_dealloc},
    {Py_tp_methods, sink_methods},
    {0, NULL},
};

PyType_Spec sink_spec = {
    .name = "pebble._engine.Sink",
    .basicsize = sizeof(sink),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sink_slots,
};
