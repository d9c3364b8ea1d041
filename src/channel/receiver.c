#include "channel/receiver.h"

#include <string.h>

#include "core/task.h"

void receiver_init(channel_receiver *receiver, const channel_up *up, channel_down *down) {
    memset(receiver, 0, sizeof *receiver);
    receiver->up = up;
    receiver->down = down;
}

void receiver_fini(channel_receiver *receiver) {
    result_bytes_fini(&receiver->result);
}

bool receiver_has_data(const channel_receiver *receiver) {
    return atomic_load_explicit(&receiver->up->result_tail, memory_order_acquire) !=
           atomic_load_explicit(&receiver->down->result_head, memory_order_relaxed);
}

void receiver_release(channel_receiver *receiver) {
    if (receiver->head ==
        atomic_load_explicit(&receiver->down->result_head, memory_order_relaxed))
        return;
    atomic_store_explicit(&receiver->down->result_head, receiver->head,
                          memory_order_release);
    atomic_thread_fence(
        memory_order_seq_cst); /* pairs with the worker's before it sleeps */
    if (atomic_load_explicit(&receiver->up->space_sleep, memory_order_relaxed) & 1)
        os_futex_wake_shared(&receiver->down->result_head, 1);
}

/* Bytes published and not read; more than a ring holds is nonsense. */
static uint32_t available(channel_receiver *receiver) {
    uint32_t bytes =
        atomic_load_explicit(&receiver->up->result_tail, memory_order_acquire) -
        receiver->head;
    if (bytes > CHANNEL_RING) {
        receiver->damaged = true;
        return 0;
    }
    return bytes;
}

/* ---- The result as it grows ---- */

static void start_result(channel_receiver *receiver) {
    receiver->sequence = receiver->header.sequence;
    receiver->result.data = NULL;
    receiver->result.size = 0;
    receiver->capacity = FUTURE_INLINE;
    receiver->no_memory = false;
    receiver->in_task = true;
}

static void drop_result(channel_receiver *receiver) {
    result_bytes_fini(&receiver->result);
    receiver->result.size = 0;
    receiver->no_memory = true;
}

/* Makes room for so many more bytes, at once: a record's size is known before its bytes come. A
 * result of several records grows by half, so that copying it stays linear. */
static void reserve(channel_receiver *receiver, uint64_t more) {
    result_bytes *result = &receiver->result;
    uint64_t wanted = result->size + more;
    if (receiver->no_memory || wanted <= receiver->capacity)
        return;
    if (receiver->header.kind == RECORD_DATA && wanted < result->size + result->size / 2)
        wanted = result->size + result->size / 2;
    void *data = wanted <= PTRDIFF_MAX ? os_realloc(result->data, (size_t)wanted) : NULL;
    if (data == NULL) {
        drop_result(receiver);
        return;
    }
    if (result->data == NULL && result->size > 0)
        memcpy(data, result->small, result->size);
    result->data = data;
    receiver->capacity = (size_t)wanted;
}

static void append(channel_receiver *receiver, const unsigned char *bytes, uint32_t size) {
    result_bytes *result = &receiver->result;
    if (receiver->no_memory)
        return;
    unsigned char *data = result->data != NULL ? result->data : result->small;
    memcpy(data + result->size, bytes, size);
    result->size += size;
}

/* ---- Records ---- */

static bool header_is_sound(const channel_receiver *receiver) {
    const result_record *header = &receiver->header;
    if (header->kind != RECORD_DATA && header->kind != RECORD_DONE &&
        header->kind != RECORD_FAILED)
        return false;
    if (header->kind == RECORD_FAILED && header->size >= TASK_MESSAGE_SIZE)
        return false;
    if (header->size > PTRDIFF_MAX)
        return false;
    return !receiver->in_task || header->sequence == receiver->sequence;
}

static bool read_header(channel_receiver *receiver) {
    uint32_t bytes = available(receiver);
    if (bytes < CHANNEL_LINE) {
        receiver->damaged |=
            bytes > 0; /* records begin on lines and are published in whole ones */
        return false;
    }
    /* A copy: the worker may go on writing. */
    memcpy(&receiver->header, receiver->up->ring + (receiver->head & (CHANNEL_RING - 1)),
           sizeof receiver->header);
    if (!header_is_sound(receiver)) {
        receiver->damaged = true;
        return false;
    }
    if (!receiver->in_task)
        start_result(receiver);
    if (receiver->header.kind == RECORD_FAILED) { /* what it wrote before does not count */
        result_bytes_fini(&receiver->result);
        start_result(receiver);
    }
    receiver->head += sizeof receiver->header;
    receiver->left = receiver->header.size;
    receiver->padding =
        (CHANNEL_LINE - (sizeof receiver->header + receiver->left) % CHANNEL_LINE) %
        CHANNEL_LINE;
    receiver->in_record = true;
    reserve(receiver, receiver->left);
    return true;
}

/* Takes what there is of the record's payload, as far as limit; true when it is complete. A record
 * whose bytes are all there is completed beyond limit too: nothing might come that makes anybody look
 * again. */
static bool read_payload(channel_receiver *receiver, uint32_t limit) {
    uint32_t since_release = 0;
    while (receiver->left == 0 || (int32_t)(limit - receiver->head) > 0) {
        uint32_t bytes = available(receiver);
        uint32_t offset = receiver->head & (CHANNEL_RING - 1);
        if (receiver->left == 0 && bytes < receiver->padding) {
            receiver->damaged = true; /* it is published with the last byte */
            return false;
        }
        if (receiver->left == 0) {
            receiver->head += (uint32_t)receiver->padding;
            receiver->in_record = false;
            return true;
        }
        if (bytes > CHANNEL_RING - offset)
            bytes = CHANNEL_RING - offset;
        if (bytes > CHANNEL_FREE_STEP)
            bytes = CHANNEL_FREE_STEP;
        if (bytes > receiver->left)
            bytes = (uint32_t)receiver->left;
        if (bytes == 0)
            return false;
        append(receiver, receiver->up->ring + offset, bytes);
        receiver->head += bytes;
        receiver->left -= bytes;
        since_release += bytes;
        if (since_release >= CHANNEL_FREE_STEP) {
            since_release = 0;
            receiver_release(receiver);
        }
    }
    return false;
}

static void fill_end(channel_receiver *receiver, receiver_end *end) {
    end->sequence = receiver->sequence;
    end->failed = receiver->header.kind == RECORD_FAILED;
    end->no_memory = receiver->no_memory;
    end->code = receiver->header.code;
    end->duration_ns = receiver->header.duration_ns;
    end->result = receiver->result;
    receiver->result.data = NULL;
    receiver->in_task = false;
}

receiver_status receiver_next(channel_receiver *receiver, receiver_end *end) {
    uint32_t limit = receiver->head + CHANNEL_RING;
    while (!receiver->damaged && (int32_t)(limit - receiver->head) > 0) {
        if (!receiver->in_record && !read_header(receiver))
            break;
        if (!read_payload(receiver, limit))
            break;
        if (receiver->header.kind != RECORD_DATA) {
            fill_end(receiver, end);
            return RECEIVER_ENDED;
        }
    }
    if (receiver->damaged)
        return RECEIVER_DAMAGED;
    return (int32_t)(limit - receiver->head) > 0 ? RECEIVER_EMPTY : RECEIVER_MORE;
}
