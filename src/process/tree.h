/* Process trees: finding and signalling all that a process started.
 *
 * A worker is a subreaper: what its descendants leave behind when they end becomes its own child,
 * also after a double fork or a setsid. So as long as it lives its tree is complete. What they leave
 * behind while it exits, and its children when it has ended, become the zygote's.
 *
 * A tree may hold many thousands of processes, so a signal goes through it in steps, between which
 * the zygote does its other work: a tree_walk.
 */
#ifndef PEBBLE_PROCESS_TREE_H
#define PEBBLE_PROCESS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "process/pid_set.h"

typedef struct tree_member {
    pid_t pid;
    int64_t seen_ticks; /* when it was found; what has started later is another process */
} tree_member;

/* All zero: a walk that is done. */
typedef struct tree_walk {
    int signal; /* SIGTERM or SIGKILL */
    bool lists; /* SIGTERM: not all are found yet, nobody has been signalled */
    pid_t root; /* 0: done with, or there is none */
    int root_fd;
    int looks;          /* SIGKILL: at the root */
    pid_set members;    /* all that were found */
    int64_t seen_ticks; /* when any was last */
    tree_member *queue;
    size_t queue_next, queue_count, queue_capacity;
} tree_walk;

/* Begins to signal a process and all of its descendants; what the walk was about before is forgotten.
 *   root_fd  its pidfd, which stays open until the walk is done; -1: root is a child of ours, and not
 *            yet reaped
 * SIGTERM goes to the process first, then to those found below it; to stopped ones, SIGCONT, too.
 * SIGKILL: its descendants are killed, then it is stopped, so that it starts no more, and when a look
 * finds no new ones it is killed itself. */
void tree_walk_start(tree_walk *walk, pid_t root, int root_fd, int signal);

/* Adds a child of ours, not yet reaped, to those to be visited. */
void tree_walk_add(tree_walk *walk, pid_t pid);

/* The root has been reaped: its number may be another's. Its descendants are visited all the same. */
void tree_walk_lose_root(tree_walk *walk);

bool tree_walk_done(const tree_walk *walk);

/* Whether the walk has found it: the process that has the number now, which is a child of ours. True also
 * if its number was found and it cannot be told whether it is the same. */
bool tree_walk_found(const tree_walk *walk, pid_t pid);

/* Visits some processes: some hundred microseconds' work, more if one of them has thousands of
 * children. Does not wait for any's end. */
void tree_walk_step(tree_walk *walk);

void tree_walk_fini(tree_walk *walk);

/* A walk with SIGKILL from its start to its end. */
void tree_kill(pid_t root, int root_fd);

/* Adds the children of a process, all its threads'. False: for want of descriptors or memory there are
 * only some of them, or none. */
bool tree_children(pid_t pid, pid_set *children);

/* Whether a process has begun to exit, as it must have before it ceases to take orphans in, or is a
 * zombie. False: that cannot be told. */
bool tree_is_exiting(pid_t pid, bool *exiting);

#endif
