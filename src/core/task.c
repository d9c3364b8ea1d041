#include "core/task.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/chunk.h"
#include "core/error.h"

static int grow(pebble_task *task, const void *data, size_t size) {
    size_t wanted = task->size + size;
    size_t capacity = task->capacity < 64 ? 64 : task->capacity;
    if (wanted < size || wanted > PTRDIFF_MAX)
        return ENOMEM;
    while (capacity < wanted)
        capacity *= 2;
    unsigned char *buffer = os_realloc(task->buffer, capacity);
    if (buffer == NULL)
        return ENOMEM;
    task->buffer = buffer;
    task->capacity = capacity;
    memcpy(buffer + task->size, data, size);
    task->size = wanted;
    return 0;
}

void task_init_growing(pebble_task *task) {
    task->buffer = NULL;
    task->capacity = 0;
    task->overflow = grow;
    task->take_input = NULL;
    task_reset(task);
}

void task_fini_growing(pebble_task *task) {
    os_free(task->buffer);
    task->buffer = NULL;
}

void task_reset(pebble_task *task) {
    task->size = 0;
    task->failed = false;
    task->code = 0;
    task->message[0] = '\0';
}

/* Whose initializer runs in this thread. */
static _Thread_local pebble_task *initializing;

static int run_initializer(pebble_task *task, pebble_function function, const void *input,
                           size_t input_size) {
    initializing = task;
    int code = ((pebble_initializer)(void (*)(void))function)(input, input_size);
    initializing = NULL;
    return code;
}

int pebble_initializer_fail(int code, const char *format, ...) {
    code = code != 0 ? code : 1;
    if (initializing == NULL || format == NULL)
        return code;
    va_list args;
    va_start(args, format);
    pebble_task_vfail(initializing, code, format, args);
    va_end(args);
    return code;
}

void task_run(pebble_task *task, task_kind kind, pebble_function function,
              const void *input, size_t input_size) {
    int code;
    if (kind == TASK_CHUNK)
        code = chunk_run(task, function, input, input_size);
    else if (kind == TASK_INITIALIZER)
        code = run_initializer(task, function, input, input_size);
    else
        code = function(task, input, input_size);
    if (code != 0 && !task->failed)
        pebble_task_fail(task, code,
                         kind == TASK_INITIALIZER ? "the initializer returned %d"
                                                  : "the task returned %d",
                         code);
}

pebble_error pebble_task_write(pebble_task *task, const void *data, size_t size) {
    if (task == NULL)
        return error_set(PEBBLE_ERR_INVALID, "pebble_task_write: task is NULL");
    if (data == NULL && size > 0)
        return error_set(PEBBLE_ERR_INVALID,
                         "pebble_task_write: data is NULL, size is not 0");
    if (size <= task->capacity - task->size) {
        if (size > 0)
            memcpy(task->buffer + task->size, data, size);
        task->size += size;
        return PEBBLE_OK;
    }
    int error = task->overflow(task, data, size);
    return error == 0 ? PEBBLE_OK : error_set_system(error, "pebble_task_write");
}

void *pebble_task_take_input(pebble_task *task) {
    return task != NULL && task->take_input != NULL ? task->take_input(task) : NULL;
}

int pebble_task_vfail(pebble_task *task, int code, const char *format, va_list args) {
    if (task == NULL || format == NULL) {
        error_set(PEBBLE_ERR_INVALID, "pebble_task_fail: task or format is NULL");
        return code != 0 ? code : 1;
    }
    task->failed = true;
    task->code = code != 0 ? code : 1;
    vsnprintf(task->message, sizeof task->message, format, args);
    return task->code;
}

int pebble_task_fail(pebble_task *task, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int returned = pebble_task_vfail(task, code, format, args);
    va_end(args);
    return returned;
}

bool pebble_task_failed(const pebble_task *task) {
    return task != NULL && task->failed;
}
