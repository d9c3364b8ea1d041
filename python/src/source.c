#include "source.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct source {
    PyObject_HEAD const char *data;
    size_t size, position;
} source;

PyObject *source_new(const void *data, size_t size) {
    source *made = PyObject_New(source, names.source_type);
    if (made != NULL) {
        made->data = data;
        made->size = size;
        made->position = 0;
    }
    return (PyObject *)made;
}

void source_close(PyObject *object) {
    source *self = (source *)object;
    self->size = self->position = 0;
}

static void source_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static const char *take(source *self, size_t size) {
    const char *from = self->data + self->position;
    self->position += size;
    return from;
}

static PyObject *source_read(source *self, PyObject *wanted) {
    size_t left = self->size - self->position;
    size_t size = PyLong_AsSize_t(wanted);
    if (size == (size_t)-1 && PyErr_Occurred())
        return NULL;
    if (size > left)
        size = left;
    return PyBytes_FromStringAndSize(take(self, size), (Py_ssize_t)size);
}

static PyObject *source_readline(source *self, PyObject *unused) {
    size_t left = self->size - self->position;
    const char *from = self->data + self->position;
    const char *end = left > 0 ? memchr(from, '\n', left) : NULL;
    size_t size = end != NULL ? (size_t)(end - from) + 1 : left;
    (void)unused;
    return PyBytes_FromStringAndSize(take(self, size), (Py_ssize_t)size);
}

/* Fresh memory that is about to be filled: with pages of 4 KiB the faults take longer than copying.
 * All its pages: in a mapping with advice for its middle only, which are three, mremap() fails, and who
 * makes the buffer larger later copies it. */
static void prefer_huge_pages(char *memory, size_t size) {
#ifdef MADV_HUGEPAGE
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)memory / page * page;
    uintptr_t end = ((uintptr_t)memory + size + page - 1) / page * page;
    madvise((void *)start, end - start, MADV_HUGEPAGE); /* NOLINT; a hint */
#endif
}

static PyObject *source_readinto(source *self, PyObject *target) {
    size_t left = self->size - self->position;
    Py_buffer view;
    if (PyObject_GetBuffer(target, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    size_t size = (size_t)view.len < left ? (size_t)view.len : left;
    const char *from = take(self, size);
    if (size >= SOURCE_LARGE) {
        Py_BEGIN_ALLOW_THREADS
        prefer_huge_pages(view.buf, size);
        memcpy(view.buf, from, size);
        Py_END_ALLOW_THREADS
    } else if (size > 0) {
        memcpy(view.buf, from, size);
    }
    PyBuffer_Release(&view);
    return PyLong_FromSize_t(size);
}

static PyMethodDef source_methods[] = {
    {"read", (PyCFunction)source_read, METH_O, NULL},
    {"readline", (PyCFunction)source_readline, METH_NOARGS, NULL},
    {"readinto", (PyCFunction)source_readinto, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot source_slots[] = {
    {Py_tp_dealloc, source_dealloc},
    {Py_tp_methods, source_methods},
    {0, NULL},
};

PyType_Spec source_spec = {
    .name = "pebble._engine.Source",
    .basicsize = sizeof(source),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = source_slots,
};
