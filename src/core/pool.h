/* What pools of both kinds have in common, and what a future asks of its pool.
 *
 * A pool is referenced by its user (until pebble_pool_free()), by each of its futures (for as long
 * as they exist, since their memory comes from it), and by its kind while it has anything running.
 * The last reference frees it, in whatever thread.
 */
#ifndef PEBBLE_CORE_POOL_H
#define PEBBLE_CORE_POOL_H

#include <pthread.h>

#include "core/callbacks.h"
#include "pebble.h"
#include "platform/platform.h"

/* What a kind of pool does; each is called without locks. */
typedef struct pool_kind {
    bool threads; /* nothing can stop a running task */
    /* name is the public function's, for messages. */
    pebble_error (*schedule)(pebble_pool *pool, pebble_future *future, const char *name);
    /* Waits until the future has ended: PEBBLE_OK, PEBBLE_ERR_TIMEOUT or _INTERRUPTED. May do the work of
     * collecting results itself. */
    pebble_error (*wait)(pebble_pool *pool, pebble_future *future, int64_t deadline_ns);
    /* Collects what there is, so that a future which has ended is known to have. */
    void (*look)(pebble_pool *pool, pebble_future *future);
    /* From now on somebody sleeps for the future's end, or has a callback on it. */
    void (*want)(pebble_pool *pool, pebble_future *future);
    bool (*cancel)(pebble_pool *pool, pebble_future *future);
    pebble_state (*state)(pebble_pool *pool, pebble_future *future);
    pid_t (*pid)(pebble_pool *pool, pebble_future *future);
    bool (*active)(const pebble_pool *pool);
    /* PEBBLE_OK, or the error of schedule() for a pool that takes no tasks. */
    pebble_error (*check_active)(pebble_pool *pool, const char *name);
    void (*close)(pebble_pool *pool);
    void (*stop)(pebble_pool *pool);
    void (*info)(pebble_pool *pool, pebble_pool_info *info);
    size_t (*pids)(pebble_pool *pool, pid_t *pids, size_t capacity);
    /* True if the calling thread is one that the pool's end waits for. */
    bool (*runs_here)(const pebble_pool *pool);
    void (*free)(pebble_pool *pool);
} pool_kind;

/* The options as given, defaults filled in, what they pointed to copied. */
typedef struct pool_settings {
    int max_workers;
    uint64_t max_tasks;
    pebble_initializer initializer;
    void *initializer_input;
    size_t initializer_input_size;
    int64_t initializer_timeout_ns;
    char *name;
    pebble_start_method start_method;
    int64_t termination_grace_ns;
    char **worker_command;
    const pebble_hooks *hooks; /* NULL: none; read by pool_idle_hook() where they may be older */
    int worker_data_fd;        /* memory that executed processes inherit; -1: none */
    size_t worker_data_size;
    bool single_call; /* made for one task by pebble_concurrent_...: needs no spare */
} pool_settings;

struct pebble_pool {
    const pool_kind *kind;
    pool_settings settings;
    uint32_t fork_epoch;
    _Atomic uint32_t references;
    _Atomic uint32_t closed; /* close or stop was called */
    _Atomic uint32_t gone;   /* futex: 1 when nothing of the pool runs any more */
    callback_runner callbacks, wakers;

    /* Memory of futures, see core/future.c. */
    pthread_mutex_t future_lock;            /* innermost */
    pebble_future *free_futures;            /* under future_lock */
    _Atomic(pebble_future *) freed_futures; /* pushed by anyone, taken all at once */
    _Atomic uint32_t freed_count;

    pthread_mutex_t lock; /* of the kind: queue, workers */
};

/* Initialises the common part of a pool that its kind has allocated (zeroed). Takes the
 * settings: on an error too. */
pebble_error pool_init(pebble_pool *pool, const pool_kind *kind, pool_settings *settings);

/* Frees what pool_init() made. Called by the kind's free. */
void pool_fini(pebble_pool *pool);

void pool_ref(pebble_pool *pool);
void pool_unref(pebble_pool *pool);

/* Marks that nothing of the pool runs any more, and wakes those who join it. Once. */
void pool_set_gone(pebble_pool *pool);

/* worker_idle, NULL if the caller's struct does not have it. */
void (*pool_idle_hook(const pebble_hooks *hooks))(void *context);

void pool_settings_fini(pool_settings *settings);

/* The name of a worker: the pool's, cut, with its number; of a single call the name alone. */
void pool_worker_name(const pool_settings *settings, unsigned number, char *name,
                      size_t size);

#endif
