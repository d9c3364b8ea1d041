#include "channel/sender.h"

#include <string.h>

#include "platform/platform.h"

static unsigned char *at(channel_sender *sender, uint32_t position) {
    return sender->down->ring + (position & (CHANNEL_RING - 1));
}

static channel_slot *slot_of(const channel_sender *sender, uint64_t sequence) {
    return &sender->up->slots[sequence & (CHANNEL_SLOTS - 1)];
}

void sender_init(channel_sender *sender, channel_down *down, channel_up *up) {
    memset(sender, 0, sizeof *sender);
    sender->down = down;
    sender->up = up;
    atomic_store(&down->event_at, CHANNEL_NEVER);
    atomic_store(&down->futex_at, CHANNEL_NEVER);
}

void sender_make_known(channel_sender *sender) {
    atomic_store_explicit(&sender->down->known, 1, memory_order_release);
    os_futex_wake_shared(&sender->down->known, 1);
}

static uint32_t used(const channel_sender *sender) {
    return sender->tail -
           atomic_load_explicit(&sender->up->task_head, memory_order_acquire);
}

bool sender_is_sound(const channel_sender *sender) {
    return used(sender) <= CHANNEL_RING;
}

/* Free bytes: none if the worker says nonsense. */
static uint32_t room(const channel_sender *sender) {
    uint32_t bytes = used(sender);
    return bytes <= CHANNEL_RING ? CHANNEL_RING - bytes : 0;
}

static uint32_t to_ring_end(const channel_sender *sender) {
    return CHANNEL_RING - (sender->tail & (CHANNEL_RING - 1));
}

static uint32_t whole_size(size_t size) {
    return channel_padded(sizeof(task_record) + size);
}

bool sender_has_room(const channel_sender *sender, size_t size) {
    uint32_t needed = whole_size(size <= CHANNEL_WHOLE ? size : CHANNEL_WHOLE);
    uint32_t contiguous = to_ring_end(sender);
    return room(sender) >=
           (contiguous >= needed ? needed : contiguous + needed) + CHANNEL_LINE;
}

/* Fills the ring's end if the record would not be in one piece there. */
static void pad_for(channel_sender *sender, uint32_t size) {
    uint32_t contiguous = to_ring_end(sender);
    if (contiguous >= size)
        return;
    ((task_record *)at(sender, sender->tail))->kind = RECORD_PAD;
    sender->tail += contiguous;
}

uint64_t sender_put(channel_sender *sender, const sender_task *task) {
    size_t name_size = sender_name_size(task->name_size);
    size_t size = name_size + task->input_size;
    bool whole = size <= CHANNEL_WHOLE;
    uint64_t sequence = sender->sequence++;
    channel_slot *slot = slot_of(sender, sequence);
    atomic_store_explicit(&slot->word, slot_word(sequence, SLOT_QUEUED),
                          memory_order_relaxed);
    pad_for(sender, whole_size(whole ? size : name_size));
    unsigned char *record = at(sender, sender->tail);
    *(task_record *)record = (task_record){.kind = RECORD_TASK,
                                           .task = task->kind,
                                           .name_size = (uint32_t)name_size,
                                           .input_size = task->input_size,
                                           .function = task->function,
                                           .sequence = sequence};
    record += sizeof(task_record);
    if (name_size > 0) {
        memset(record + name_size - 16, 0, 16);
        memcpy(record, task->name, task->name_size);
    }
    if (whole) {
        if (task->input_size > 0)
            memcpy(record + name_size, task->input, task->input_size);
        sender->tail += whole_size(size);
    } else { /* the input starts on a line of its own: pieces are whole lines */
        sender->tail += whole_size(name_size);
    }
    return sequence;
}

bool sender_stream(channel_sender *sender, const void *input, size_t input_size,
                   _Atomic size_t *offset) {
    size_t sent = atomic_load_explicit(offset, memory_order_relaxed);
    while (sent < input_size) {
        size_t left = input_size - sent;
        uint32_t free_bytes = room(sender);
        uint32_t piece = to_ring_end(sender);
        if (free_bytes < CHANNEL_LINE)
            return false;
        free_bytes -= CHANNEL_LINE; /* for sender_put_exit() */
        if (piece > free_bytes)
            piece = free_bytes;
        if (piece > CHANNEL_FREE_STEP)
            piece = CHANNEL_FREE_STEP;
        if (piece == 0)
            return false;
        size_t bytes = left < piece ? left : piece;
        memcpy(at(sender, sender->tail), (const char *)input + sent, bytes);
        sent += bytes;
        sender->tail += channel_padded(bytes);
        atomic_store_explicit(offset, sent, memory_order_release);
        sender_publish(sender);
    }
    return true;
}

bool sender_can_stream(const channel_sender *sender) {
    if (atomic_load_explicit(&sender->down->space_wanted, memory_order_relaxed) == 0)
        return false;
    uint32_t tail = atomic_load_explicit(&sender->down->task_tail, memory_order_relaxed);
    uint32_t head = atomic_load_explicit(&sender->up->task_head, memory_order_relaxed);
    return tail - head <= CHANNEL_RING - CHANNEL_FREE_STEP - CHANNEL_LINE;
}

void sender_put_exit(channel_sender *sender) {
    pad_for(sender, CHANNEL_LINE);
    *(task_record *)at(sender, sender->tail) = (task_record){.kind = RECORD_EXIT};
    sender->tail += CHANNEL_LINE;
}

void sender_publish(channel_sender *sender) {
    atomic_store_explicit(&sender->down->cpu, os_current_processor(),
                          memory_order_relaxed);
    atomic_store_explicit(&sender->down->task_tail, sender->tail, memory_order_release);
    atomic_thread_fence(
        memory_order_seq_cst); /* pairs with the worker's before it sleeps */
    /* Until a woken worker has got a processor many more tasks may come: none of them wakes it
     * again. A call that found nobody asleep does not count, whatever the worker's word says: the
     * sleep may be still to come (tests/model/doorbell.pml). If it sleeps for what is already taken,
     * there is nothing to wake it for. */
    uint32_t sleep = atomic_load_explicit(&sender->up->task_sleep, memory_order_acquire);
    if ((sleep & 1) == 0 || sleep == sender->woken_sleep ||
        atomic_load_explicit(&sender->up->task_head, memory_order_relaxed) == sender->tail)
        return;
    if (os_futex_wake_shared(&sender->down->task_tail, 1) > 0)
        sender->woken_sleep = sleep;
}

bool sender_withdraw(channel_sender *sender, uint64_t sequence) {
    uint64_t expected = slot_word(sequence, SLOT_QUEUED);
    return atomic_compare_exchange_strong_explicit(
        &slot_of(sender, sequence)->word, &expected, slot_word(sequence, SLOT_WITHDRAWN),
        memory_order_acq_rel, memory_order_acquire);
}

bool sender_runs(const channel_sender *sender, uint64_t sequence) {
    return atomic_load_explicit(&slot_of(sender, sequence)->word, memory_order_acquire) ==
           slot_word(sequence, SLOT_RUNNING);
}

bool sender_started(const channel_sender *sender, uint64_t sequence, int64_t *start_ns) {
    const channel_slot *slot = slot_of(sender, sequence);
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
    if (word == slot_word(sequence, SLOT_QUEUED) ||
        word == slot_word(sequence, SLOT_WITHDRAWN))
        return false;
    *start_ns = atomic_load_explicit(&slot->start_ns, memory_order_relaxed);
    return true;
}
