/* A worker's tie to its zygote: what ends the worker, and all that it started, when that is lost. */
#ifndef PEBBLE_PROCESS_TIE_H
#define PEBBLE_PROCESS_TIE_H

#include <sys/types.h>

/* In a worker: from now on it ends with its parent, and adopts what its descendants leave behind.
 * Does not return if the parent has ended already. */
void tie_to_parent(pid_t parent_pid);

/* In a process that is about to execute a worker: it ends with its parent. */
void tie_executed_to_parent(void);

#endif
