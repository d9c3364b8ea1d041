/* A worker's tie to its zygote: what ends the worker, and all that it started, when that is lost. */
#ifndef PEBBLE_PROCESS_TIE_H
#define PEBBLE_PROCESS_TIE_H

#include <sys/types.h>

/* In a worker: from now on it ends with its parent, also if it executes another program, and adopts
 * what its descendants leave behind. Does not return if the parent has ended already. */
void tie_to_parent(pid_t parent_pid);

/* In a worker that is about to run tasks: from now on it ends with all that these have started. */
void tie_with_children(void);

#endif
