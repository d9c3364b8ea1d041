/* Process trees: finding and signalling all that a process started.
 *
 * A worker is a subreaper: what its descendants leave behind when they end becomes its own child,
 * also after a double fork or a setsid. So as long as it lives its tree is complete. When it has
 * ended, its children become the zygote's.
 */
#ifndef PEBBLE_PROCESS_TREE_H
#define PEBBLE_PROCESS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef struct pid_list {
    pid_t *pids;
    size_t count, capacity;
} pid_list;

void pid_list_fini(pid_list *list);
bool pid_list_has(const pid_list *list, pid_t pid);

/* Adds a process, or takes it out. Out of memory: it is not added. */
void pid_list_add(pid_list *list, pid_t pid);
void pid_list_remove(pid_list *list, pid_t pid);

/* The children of a process, all its threads'. Out of memory: as many as fit. */
void tree_children(pid_t pid, pid_list *children);

/* All descendants, parents before their children. */
void tree_descendants(pid_t pid, pid_list *descendants);

/* Sends a signal to a process that is a descendant of root or root's own child. The number cannot
 * have passed to a stranger: it is checked after it was pinned by a pidfd. */
void tree_signal(pid_t pid, pid_t root, int signal);

/* Sends SIGKILL to all descendants of a process that is not yet reaped, which is stopped meanwhile so
 * that it starts no more, then to the process itself. Does not wait for their ends. False: the system
 * does not let us signal the process itself, which has other rights than we. */
bool tree_kill(pid_t pid);

#endif
