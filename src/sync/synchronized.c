/* What the block macro PEBBLE_SYNCHRONIZED is made of.
 *
 * A mutex that cannot be locked (an error-checking one that the thread holds, a robust
 * one beyond recovery) gives a guard without a mutex: the block is then not run at all,
 * for nobody may be in it unguarded. A robust mutex whose owner died is made consistent
 * and the block runs.
 *
 * The default mutex and fork(): another thread may hold it at that moment, and is missing
 * in the child, where nobody would ever unlock it. So the child gets it afresh, unless
 * the thread that forked holds it itself and will leave its block in the child too. It
 * cannot be taken before a fork instead: a thread may well fork from within such a block.
 */
#include "pebble.h"

#include <errno.h>
#include <string.h>

#include "core/error.h"

static pthread_mutex_t default_mutex = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool holds_default;
static pthread_once_t watching_forks = PTHREAD_ONCE_INIT;

static void in_child(void) {
    if (!holds_default)
        default_mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

/* Without memory for it, the default mutex works all the same but in a forked child. */
static void watch_forks(void) {
    (void)pthread_atfork(NULL, NULL, in_child);
}

/* When the library is loaded, see core/fork.c. */
__attribute__((constructor)) static void watch_early(void) {
    pthread_once(&watching_forks, watch_forks);
}

pebble_guard pebble_guard_enter(pthread_mutex_t *mutex) {
    if (mutex == NULL) {
        pthread_once(&watching_forks, watch_forks);
        mutex = &default_mutex;
    }
    int error = pthread_mutex_lock(mutex);
    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(mutex);
    if (error != 0) {
        char buffer[128];
        error_set(PEBBLE_ERR_INVALID, "pebble_guard_enter: mutex cannot be locked: %s",
                  strerror_r(error, buffer, sizeof buffer));
        return (pebble_guard){NULL};
    }
    if (mutex == &default_mutex)
        holds_default = true;
    return (pebble_guard){mutex};
}

void pebble_guard_leave(pebble_guard *guard) {
    if (guard == NULL || guard->mutex == NULL)
        return;
    pthread_mutex_t *mutex = guard->mutex;
    guard->mutex = NULL;
    if (mutex == &default_mutex)
        holds_default = false;
    pthread_mutex_unlock(mutex);
}
