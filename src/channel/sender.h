/* The program's end of the down ring: puts tasks in. Its user holds one lock around each call
 * (the pool's), but for sender_stream(), which may run outside it while no other call does. */
#ifndef PEBBLE_CHANNEL_SENDER_H
#define PEBBLE_CHANNEL_SENDER_H

#include <stdbool.h>
#include <stddef.h>

#include "channel/layout.h"

typedef struct channel_sender {
    channel_down *down;
    channel_up *up;
    uint32_t tail;        /* of what has been written; published by sender_publish() */
    uint64_t sequence;    /* of the next task */
    uint32_t woken_sleep; /* the worker's sleep for which it has been woken */
} channel_sender;

/* A task as it goes into the ring. */
typedef struct sender_task {
    uint16_t kind; /* task_kind */
    uint64_t function;
    const char *name; /* NULL: function is an address in the worker */
    size_t name_size;
    const void *input;
    size_t input_size;
} sender_task;

/* What a function's name takes in the ring. */
static inline size_t sender_name_size(size_t name_size) {
    return (name_size + 15) / 16 * 16;
}

void sender_init(channel_sender *sender, channel_down *down, channel_up *up);

/* The program knows the worker's process from now on: lets it take tasks. */
void sender_make_known(channel_sender *sender);

/* False: what the worker says of its ring is nonsense. There is no room then. */
bool sender_is_sound(const channel_sender *sender);

/* True if a task with so many bytes of name and input goes in now: whole, or, if it is larger
 * than CHANNEL_WHOLE, at least its beginning. A line is left for sender_put_exit(). */
bool sender_has_room(const channel_sender *sender, size_t size);

/* Writes the next task; there is room. Of one larger than CHANNEL_WHOLE, the header and the name
 * only: its input follows by sender_stream(), before anything else. Returns its sequence. */
uint64_t sender_put(channel_sender *sender, const sender_task *task);

/* Copies as much of the input as fits, from *offset on, and publishes it. Returns true when all
 * of it is in the ring. */
bool sender_stream(channel_sender *sender, const void *input, size_t input_size,
                   _Atomic size_t *offset);

/* True if the input that is being streamed can go on. Any thread: a hint. */
bool sender_can_stream(const channel_sender *sender);

void sender_put_exit(channel_sender *sender);

/* Lets the worker see what was written, and wakes it if it sleeps. */
void sender_publish(channel_sender *sender);

/* Takes a task back. True: it will never run. */
bool sender_withdraw(channel_sender *sender, uint64_t sequence);

/* True if the worker has started the task, or its slot holds nonsense. start_ns as stamped. */
bool sender_started(const channel_sender *sender, uint64_t sequence, int64_t *start_ns);

/* True if its slot says so: also of one that has ended. Nonsense says nothing. */
bool sender_runs(const channel_sender *sender, uint64_t sequence);

#endif
