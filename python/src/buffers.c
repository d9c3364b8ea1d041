#include "buffers.h"

#include <string.h>

enum { ALIGNMENT = 16 }; /* of an input's and a result's memory */

/* ---- Sending ---- */

static int pad(sink *to, size_t alignment) {
    static const char zeros[ALIGNMENT];
    return sink_append(to, zeros, (alignment - to->size % alignment) % alignment);
}

static int append_buffer(sink *to, PyObject *buffer, buffer_entry *entry) {
    Py_buffer view;
    if (pad(to, ALIGNMENT) < 0 || PyObject_GetBuffer(buffer, &view, PyBUF_FULL_RO) < 0)
        return -1;
    *entry = (buffer_entry){.offset = to->size,
                            .size = (uint64_t)view.len,
                            .readonly = (uint64_t)view.readonly};
    int failed = sink_append(to, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return failed;
}

Py_ssize_t buffers_append(sink *to) {
    Py_ssize_t count = to->buffers != NULL ? PyList_GET_SIZE(to->buffers) : 0;
    if (count == 0)
        return 0;
    buffer_entry *entries = PyMem_Malloc((size_t)count * sizeof *entries);
    int failed = entries != NULL ? 0 : -1;
    if (entries == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count && failed == 0; i++)
        failed = append_buffer(to, PyList_GET_ITEM(to->buffers, i), &entries[i]);
    if (failed == 0)
        failed = sink_append(to, entries, (size_t)count * sizeof *entries);
    PyMem_Free(entries);
    return failed == 0 ? count : -1;
}

/* ---- Receiving ---- */

typedef struct buffer_object {
    PyObject_HEAD PyObject *owner;
    char *data;
    buffer_entry entry;
} buffer_object;

static void buffer_dealloc(buffer_object *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int buffer_get(buffer_object *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->data,
                             (Py_ssize_t)self->entry.size, self->entry.readonly != 0,
                             flags);
}

static PyType_Slot buffer_slots[] = {
    {Py_tp_dealloc, buffer_dealloc},
    {Py_bf_getbuffer, buffer_get},
    {0, NULL},
};

PyType_Spec buffer_spec = {
    .name = "pebble._engine.Buffer",
    .basicsize = sizeof(buffer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = buffer_slots,
};

static PyObject *view_of(const buffer_entry *entry, char *message, PyObject *owner) {
    buffer_object *buffer = PyObject_New(buffer_object, names.buffer_type);
    if (buffer == NULL)
        return NULL;
    buffer->owner = Py_NewRef(owner);
    buffer->data = message + entry->offset;
    buffer->entry = *entry;
    PyObject *view = PyMemoryView_FromObject((PyObject *)buffer);
    Py_DECREF(buffer);
    return view;
}

PyObject *buffers_of(const void *message, size_t size, uint64_t count, PyObject *owner) {
    char *bytes = (char *)(uintptr_t)message;
    if (count > size / sizeof(buffer_entry)) {
        PyErr_SetString(PyExc_RuntimeError, "the buffers of a message are damaged");
        return NULL;
    }
    size_t end = size - (size_t)count * sizeof(buffer_entry);
    PyObject *views = PyList_New((Py_ssize_t)count);
    for (uint64_t i = 0; views != NULL && i < count; i++) {
        buffer_entry entry;
        PyObject *view = NULL;
        memcpy(&entry, bytes + end + i * sizeof entry, sizeof entry);
        if (entry.offset > end || entry.size > end - entry.offset)
            PyErr_SetString(PyExc_RuntimeError, "the buffers of a message are damaged");
        else
            view = view_of(&entry, bytes, owner);
        if (view == NULL)
            Py_CLEAR(views);
        else
            PyList_SET_ITEM(views, (Py_ssize_t)i, view);
    }
    return views;
}

typedef struct owned_memory {
    void *memory;
    void (*release)(void *memory);
} owned_memory;

static void release_owned(PyObject *capsule) {
    owned_memory *owned = PyCapsule_GetPointer(capsule, NULL);
    owned->release(owned->memory);
    PyMem_Free(owned);
}

PyObject *buffers_owner(void *memory, void (*release)(void *memory)) {
    owned_memory *owned = PyMem_Malloc(sizeof *owned);
    PyObject *capsule = NULL;
    if (owned != NULL) {
        *owned = (owned_memory){.memory = memory, .release = release};
        capsule = PyCapsule_New(owned, NULL, release_owned);
    } else {
        PyErr_NoMemory();
    }
    if (capsule == NULL) {
        release(memory);
        PyMem_Free(owned);
    }
    return capsule;
}
