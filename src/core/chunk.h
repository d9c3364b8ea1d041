/* A chunk: several elements of a map that travel as one task.
 *
 * Input: a chunk_header, then for elements of different sizes their sizes (uint64_t each), then
 * the elements, each padded to CHUNK_ALIGN. Result: for each element in turn a chunk_outcome and
 * its bytes, padded likewise; for an element that failed, the bytes are its message.
 */
#ifndef PEBBLE_CORE_CHUNK_H
#define PEBBLE_CORE_CHUNK_H

#include "pebble.h"

enum { CHUNK_ALIGN = 16 };

typedef struct chunk_header {
    uint64_t count;
    uint64_t item_size; /* of every element, if sized is 0 */
    uint64_t sized;     /* 1: the elements' sizes follow */
    uint64_t reserved;
} chunk_header;

typedef struct chunk_outcome {
    uint64_t size;
    int32_t code; /* if failed */
    uint32_t failed;
} chunk_outcome;

_Static_assert(sizeof(chunk_header) % CHUNK_ALIGN == 0 &&
                   sizeof(chunk_outcome) == CHUNK_ALIGN,
               "the elements behind them must be aligned");

static inline uint64_t chunk_padded(uint64_t size) {
    return (size + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
}

/* In the worker: runs the function on each element. Returns 0, or a code if the chunk itself
 * could not be worked on; task then tells. */
int chunk_run(pebble_task *task, pebble_function function, const void *input,
              size_t input_size);

/* In the program: packs elements [0, count). inputs, or items of item_size. NULL: no memory, or
 * the sizes overflow. The caller frees it with os_free(). */
void *chunk_pack(const void *items, size_t item_size, const pebble_bytes *inputs,
                 size_t count, size_t *size);

/* Takes the outcome at *offset of a chunk's result and moves behind it. False: the result, which
 * a worker wrote, ends there. */
bool chunk_next(const void *result, size_t result_size, size_t *offset,
                chunk_outcome *outcome, const void **data);

#endif
