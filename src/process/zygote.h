/* The zygote: a single-threaded process that forks a pool's workers, reports their deaths, ends
 * them with all that they started, and takes them with it when the program ends.
 *
 * What program and zygote say to each other, in messages over a socket pair. Workers are numbered
 * by the program; a number is used once. For each SPAWN there comes one SPAWNED or one
 * SPAWN_FAILED; after SPAWNED at most one KILLED, then one DIED, when the worker's own process has ended, and one GONE (or
 * DIED with gone set) when everything that it started has ended too.
 */
#ifndef PEBBLE_PROCESS_ZYGOTE_H
#define PEBBLE_PROCESS_ZYGOTE_H

#include <stdint.h>
#include <sys/types.h>

#include "pebble.h"
#include "platform/platform.h"

enum { WORKER_NAME_SIZE = 16 };

typedef enum zygote_request_kind {
    ZYGOTE_SPAWN, /* with the descriptors of worker_fds */
    ZYGOTE_KILL,  /* SIGTERM to the worker's tree, SIGKILL after the grace */
    ZYGOTE_MADE   /* a zygote_made, the first message if there is one */
} zygote_request_kind;

typedef struct zygote_request {
    uint32_t kind;
    uint32_t worker;
    int64_t grace_ns;
    char name[WORKER_NAME_SIZE];
} zygote_request;

/* What the program has made of descriptors while it forked the zygote, for one that has inherited something. */
typedef struct zygote_made {
    uint32_t kind;
    uint32_t count;
    uint64_t incomplete; /* not 0: it is not all; the child is not to be used */
    os_fd_note notes[OS_FD_NOTES_MAX]; /* as many as count are sent */
} zygote_made;

enum { WORKER_FD_DOWN, WORKER_FD_UP, WORKER_FD_BELL, WORKER_FDS };

typedef enum zygote_reply_kind {
    ZYGOTE_SPAWNED, /* with the worker's pidfd, unless there were no descriptors left */
    ZYGOTE_SPAWN_FAILED,
    ZYGOTE_KILLED, /* its grace is over: SIGKILL is on its way through its tree */
    ZYGOTE_DIED,
    ZYGOTE_GONE
} zygote_reply_kind;

typedef struct zygote_reply {
    uint32_t kind;
    uint32_t worker;
    int32_t pid;
    int32_t status; /* DIED: as of waitpid(); SPAWN_FAILED: errno */
    uint32_t gone;  /* DIED: nothing of its tree is left */
} zygote_reply;

/* What a zygote knows of its pool. */
typedef struct zygote_setup {
    int control_fd;
    pid_t program_pid; /* its parent, with which it ends */
    const pebble_hooks *hooks;
    char *const *spawn_command; /* not NULL: each worker executes this */
    int data_fd;                /* spawn: what executed workers inherit; -1: none */
} zygote_setup;

/* Serves the program until that ends or closes the socket. */
_Noreturn void zygote_run(const zygote_setup *setup);

/* In the child of a fork that is to be a zygote: the signal state that it needs. */
void zygote_reset_signals(void);

#endif
