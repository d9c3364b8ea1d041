/* A worker's own process: from its fork or execution to its end. */
#ifndef PEBBLE_PROCESS_WORKER_H
#define PEBBLE_PROCESS_WORKER_H

#include "process/zygote.h"

/* Exit code of a worker that found no memory for its channel. */
enum { WORKER_REFUSED = 71 }; /* EX_OSERR */

typedef struct worker_setup {
    uint32_t number;
    pid_t parent_pid; /* the zygote, with which it ends */
    int fds[WORKER_FDS];
    char name[WORKER_NAME_SIZE];
    bool forked; /* not executed: after_fork_child is to be called */
    const pebble_hooks *hooks;
} worker_setup;

/* Serves tasks until told to exit. In the child of the zygote's fork, or in what it executed. */
_Noreturn void worker_run(const worker_setup *setup);

/* In the child of the zygote's fork: executes the command as a worker. */
_Noreturn void worker_execute(const worker_setup *setup, char *const *command,
                              int data_fd);

#endif
