#include "core/pool.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/fork.h"
#include "core/future.h"

pebble_error pool_init(pebble_pool *pool, const pool_kind *kind, pool_settings *settings) {
    pthread_mutexattr_t adaptive;
    pool->kind = kind;
    pool->settings = *settings;
    memset(settings, 0, sizeof *settings);
    pool->fork_epoch = fork_epoch;
    atomic_store(&pool->references, 1);
    int error = callback_runner_init(&pool->callbacks, pool, "pebble-callback");
    if (error == 0) {
        error = callback_runner_init(&pool->wakers, pool, "pebble-waker");
        if (error != 0)
            callback_runner_fini(&pool->callbacks);
    }
    if (error != 0) {
        pool_settings_fini(&pool->settings);
        return error_set_system(error, "pebble pool: mutex");
    }
    /* The lock is held for well under a microsecond: spinning beats sleeping. */
    pthread_mutexattr_init(&adaptive);
    pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&pool->lock, &adaptive);
    pthread_mutex_init(&pool->future_lock, &adaptive);
    pthread_mutexattr_destroy(&adaptive);
    return PEBBLE_OK;
}

void pool_fini(pebble_pool *pool) {
    future_free_cached(pool);
    pthread_mutex_destroy(&pool->future_lock);
    pthread_mutex_destroy(&pool->lock);
    callback_runner_fini(&pool->callbacks);
    callback_runner_fini(&pool->wakers);
    pool_settings_fini(&pool->settings);
}

void pool_ref(pebble_pool *pool) {
    atomic_fetch_add_explicit(&pool->references, 1, memory_order_relaxed);
}

void pool_unref(pebble_pool *pool) {
    if (atomic_fetch_sub_explicit(&pool->references, 1, memory_order_acq_rel) == 1)
        pool->kind->free(pool);
}

void pool_set_gone(pebble_pool *pool) {
    os_fd_close(pool->settings.worker_data_fd);
    pool->settings.worker_data_fd = -1;
    callback_runner_end(&pool->callbacks);
    callback_runner_end(&pool->wakers);
    atomic_store_explicit(&pool->gone, 1, memory_order_release);
    os_futex_wake(&pool->gone, INT_MAX);
}

void (*pool_idle_hook(const pebble_hooks *hooks))(void *context) {
    return hooks != NULL && hooks->struct_size >= sizeof *hooks ? hooks->worker_idle
                                                                : NULL;
}

void pool_settings_fini(pool_settings *settings) {
    os_fd_close(settings->worker_data_fd);
    for (char **word = settings->worker_command; word != NULL && *word != NULL; word++)
        os_free(*word);
    os_free(settings->worker_command);
    os_free(settings->initializer_input);
    os_free(settings->name);
    memset(settings, 0, sizeof *settings);
    settings->worker_data_fd = -1;
}

void pool_worker_name(const pool_settings *settings, unsigned number, char *name,
                      size_t size) {
    if (settings->single_call)
        snprintf(name, size, "%s", settings->name);
    else
        snprintf(name, size, "%.*s-%u", (int)size - 6, settings->name, number);
}
