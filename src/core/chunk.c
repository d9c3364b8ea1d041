#include "core/chunk.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "core/task.h"
#include "platform/platform.h"

static const unsigned char padding[CHUNK_ALIGN];

/* Writes the outcome of an element to the chunk's own result. */
static pebble_error write_outcome(pebble_task *chunk, const pebble_task *element) {
    chunk_outcome outcome = {
        .size = element->failed ? strlen(element->message) : element->size,
        .code = element->code,
        .failed = element->failed,
    };
    const void *data = element->failed ? (const void *)element->message : element->buffer;
    size_t rest = (size_t)(chunk_padded(outcome.size) - outcome.size);
    pebble_error error = pebble_task_write(chunk, &outcome, sizeof outcome);
    if (error == PEBBLE_OK && outcome.size > 0)
        error = pebble_task_write(chunk, data, (size_t)outcome.size);
    if (error == PEBBLE_OK && rest > 0)
        error = pebble_task_write(chunk, padding, rest);
    return error;
}

static void drop_element(void *element) {
    task_fini_growing(element);
}

static pebble_error run_elements(pebble_task *task, pebble_task *element,
                                 pebble_function function, const void *input) {
    const chunk_header *header = input;
    const uint64_t *sizes = (const uint64_t *)(header + 1);
    uint64_t offset = sizeof *header;
    pebble_error error = PEBBLE_OK;
    if (header->sized)
        offset += chunk_padded(header->count * sizeof *sizes);
    for (uint64_t i = 0; i < header->count && error == PEBBLE_OK; i++) {
        uint64_t size = header->sized ? sizes[i] : header->item_size;
        task_reset(element);
        task_run(element, TASK_FUNCTION, function, (const char *)input + offset,
                 (size_t)size);
        error = write_outcome(task, element);
        offset += chunk_padded(size);
    }
    return error;
}

int chunk_run(pebble_task *task, pebble_function function, const void *input,
              size_t input_size) {
    pebble_task element;
    int failed;
    (void)input_size;
    task_init_growing(&element);
    pthread_cleanup_push(drop_element, &element); /* also if one ends the thread */
    failed = run_elements(task, &element, function, input) == PEBBLE_OK
                 ? 0
                 : pebble_task_fail(task, ENOMEM, "no memory for the results");
    pthread_cleanup_pop(1);
    return failed;
}

static bool add(size_t *sum, size_t more) {
    return !__builtin_add_overflow(*sum, more, sum) && *sum <= PTRDIFF_MAX;
}

static bool padded_total(size_t item_size, const pebble_bytes *inputs, size_t count,
                         size_t *total) {
    size_t all;
    *total = sizeof(chunk_header);
    if (inputs == NULL)
        return item_size <= PTRDIFF_MAX - CHUNK_ALIGN &&
               !__builtin_mul_overflow(chunk_padded(item_size), count, &all) &&
               add(total, all);
    if (__builtin_mul_overflow(count, sizeof(uint64_t), &all) || all > PTRDIFF_MAX ||
        !add(total, (size_t)chunk_padded(all)))
        return false;
    for (size_t i = 0; i < count; i++) {
        if (inputs[i].size > PTRDIFF_MAX ||
            !add(total, (size_t)chunk_padded(inputs[i].size)))
            return false;
    }
    return true;
}

void *chunk_pack(const void *items, size_t item_size, const pebble_bytes *inputs,
                 size_t count, size_t *size) {
    size_t total;
    if (!padded_total(item_size, inputs, count, &total))
        return NULL;
    char *packed = os_alloc_zeroed(total);
    if (packed == NULL)
        return NULL;
    *(chunk_header *)packed =
        (chunk_header){.count = count, .item_size = item_size, .sized = inputs != NULL};
    uint64_t *sizes = (uint64_t *)(packed + sizeof(chunk_header));
    char *at = inputs != NULL ? (char *)sizes + chunk_padded(count * sizeof *sizes)
                              : (char *)sizes;
    for (size_t i = 0; i < count; i++) {
        const void *data =
            inputs != NULL ? inputs[i].data : (const char *)items + i * item_size;
        size_t bytes = inputs != NULL ? inputs[i].size : item_size;
        if (inputs != NULL)
            sizes[i] = bytes;
        if (bytes > 0)
            memcpy(at, data, bytes);
        at += chunk_padded(bytes);
    }
    *size = total;
    return packed;
}

bool chunk_next(const void *result, size_t result_size, size_t *offset,
                chunk_outcome *outcome, const void **data) {
    if (*offset > result_size || result_size - *offset < sizeof *outcome)
        return false;
    memcpy(outcome, (const char *)result + *offset, sizeof *outcome);
    size_t rest = result_size - *offset - sizeof *outcome;
    if (outcome->size > rest || chunk_padded(outcome->size) > rest)
        return false;
    *data = (const char *)result + *offset + sizeof *outcome;
    *offset += sizeof *outcome + (size_t)chunk_padded(outcome->size);
    return true;
}
