/* A set of process numbers. */
#ifndef PEBBLE_PROCESS_PID_SET_H
#define PEBBLE_PROCESS_PID_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* All zero: empty. */
typedef struct pid_set {
    pid_t *pids; /* ascending */
    size_t count, capacity;
} pid_set;

void pid_set_fini(pid_set *set);
bool pid_set_has(const pid_set *set, pid_t pid);

/* False: it was in the set, or there was no memory to add it. */
bool pid_set_add(pid_set *set, pid_t pid);
void pid_set_remove(pid_set *set, pid_t pid);

#endif
