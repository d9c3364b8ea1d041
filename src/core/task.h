/* A task as its function sees it: where its result and its error go.
 *
 * Each worker, process or thread, has one pebble_task and uses it for task after task. What the
 * function writes gathers in a buffer; a writer that outgrows it goes on as its kind of pool
 * does: a thread's buffer grows, a process streams to the program.
 */
#ifndef PEBBLE_CORE_TASK_H
#define PEBBLE_CORE_TASK_H

#include "core/future.h"

enum { TASK_MESSAGE_SIZE = 1024 };

struct pebble_task {
    unsigned char *buffer;
    size_t size, capacity;
    /* Called when size more bytes do not fit: makes room and appends, or passes them on. Returns
     * 0 or an errno value. */
    int (*overflow)(pebble_task *task, const void *data, size_t size);
    /* Gives up the memory of the task's input, if it is a block of its own. May be NULL. */
    void *(*take_input)(pebble_task *task);
    bool failed;
    int code;
    char message[TASK_MESSAGE_SIZE];
};

/* A task whose buffer grows: in a thread, and for the elements of a chunk. */
void task_init_growing(pebble_task *task);
void task_fini_growing(pebble_task *task);

/* Forgets the task before. */
void task_reset(pebble_task *task);

/* Calls the function on the input, as its kind wants it. Afterwards task->failed tells. */
void task_run(pebble_task *task, task_kind kind, pebble_function function,
              const void *input, size_t input_size);

#endif
