/* The worker's end of both rings. Used by the worker's one thread. */
#ifndef PEBBLE_CHANNEL_WORKER_END_H
#define PEBBLE_CHANNEL_WORKER_END_H

#include <stdbool.h>
#include <stddef.h>

#include "channel/layout.h"

typedef struct worker_end {
    const channel_down *down;
    channel_up *up;
    int bell_fd;
    uint64_t bell_identity;
    uint32_t task_head;
    uint32_t result_tail;
    uint32_t result_head; /* as last seen */
    uint64_t sequence;    /* of the task that runs, or is next */
    int64_t now_ns;       /* when the task before ended; 0: look at the clock */
    int64_t start_ns;     /* of the task that runs */
    uint64_t rung_event;  /* the last value of event_at for which it has rung */
    uint64_t rung_futex;
    uint32_t sleeps;  /* begun and ended: odd while it sleeps */
    unsigned met;     /* times in a row that program and worker were on one processor */
    int64_t moved_ns; /* when it last left because of that */
    uint64_t record_size; /* what of the ring the running task's record still holds */
    void *buffer;         /* of tasks too large for the ring, kept from task to task */
    size_t buffer_size;
    void (*idle)(void *context); /* NULL, or called before a wait for the next task */
    void *idle_context;
} worker_end;

/* A task to run. */
typedef struct worker_task {
    uint16_t kind; /* task_kind */
    uint64_t function;
    const char *name; /* NULL: function is an address */
    size_t name_size;
    const void *input; /* NULL: there was no memory for it */
    size_t input_size;
} worker_task;

void worker_end_init(worker_end *end, const channel_down *down, channel_up *up,
                     int bell_fd);

/* Waits until the program knows of the worker's process, see channel/layout.h. */
void worker_end_wait_until_known(const worker_end *end);

/* Waits for a task, takes it and stamps its start. False: told to exit. Ends the process if the program is
 * about to do so. */
bool worker_end_next(worker_end *end, worker_task *task);

/* The memory of the running task's input, if it did not fit into the ring: the caller's from now on,
 * to be freed by os_free(). NULL: it is in the ring, or was taken. */
void *worker_end_take_input(worker_end *end);

/* Sends a piece of the running task's result. Blocks while the ring is full. */
void worker_end_write(worker_end *end, const void *data, size_t size);

/* Sends the running task's end, with the last piece of its result or its message. */
void worker_end_finish(worker_end *end, bool failed, int code, const void *data,
                       size_t size);

#endif
