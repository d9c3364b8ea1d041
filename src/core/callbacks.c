#include "core/callbacks.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/fork.h"
#include "core/future.h"
#include "core/interrupt.h"

static _Thread_local const callback_runner *runner_here;

int callback_runner_init(callback_runner *runner, pebble_pool *pool, const char *name) {
    *runner = (callback_runner){.pool = pool, .name = name};
    return pthread_mutex_init(&runner->lock, NULL);
}

void callback_runner_fini(callback_runner *runner) {
    pthread_mutex_destroy(&runner->lock);
}

static void changed(callback_runner *runner) {
    atomic_fetch_add(&runner->events, 1);
    os_futex_wake(&runner->events, INT_MAX);
}

/* Takes the whole queue; false if there is none and there will be no more. */
static bool take_queue(callback_runner *runner, uint32_t *events) {
    pthread_mutex_lock(&runner->lock);
    *events = atomic_load(&runner->events);
    runner->taken = runner->first;
    runner->first = runner->last = NULL;
    bool over = runner->taken == NULL && runner->ending;
    if (over) {
        runner->finished = true;
        changed(runner);
    }
    pthread_mutex_unlock(&runner->lock);
    return !over;
}

/* Its reference to the future is dropped also if it ends the thread. */
static void unref_future(void *future) {
    pebble_future_unref(future);
}

static void call_first(callback_runner *runner) {
    future_callback callback = *runner->taken;
    os_free(runner->taken);
    runner->taken = callback.next;
    pthread_cleanup_push(unref_future, callback.future);
    callback.function(callback.future, callback.context);
    if (runner->pool->fork_epoch != fork_epoch) /* a child that it forked */
        _exit(EXIT_SUCCESS);
    pthread_cleanup_pop(1);
}

static void run(void *context);

static int start_thread(callback_runner *runner) {
    return os_thread_start_for_user(run, runner, runner->name);
}

/* A callback has ended the thread. If there cannot be another, this one goes on all the same. */
static void leave_to_successor(void *context) {
    callback_runner *runner = context;
    if (runner->pool->fork_epoch == fork_epoch && start_thread(runner) != 0)
        run(runner);
}

static void run(void *context) {
    callback_runner *runner = context;
    uint32_t events;
    runner_here = runner;
    pthread_cleanup_push(leave_to_successor, runner);
    while (runner->taken != NULL || take_queue(runner, &events)) {
        if (runner->taken != NULL)
            call_first(runner);
        else
            os_futex_wait(&runner->events, events, OS_NO_DEADLINE);
    }
    pthread_cleanup_pop(0);
    runner_here = NULL;
    pool_unref(runner->pool);
}

int callback_runner_start(callback_runner *runner) {
    int error = 0;
    pthread_mutex_lock(&runner->lock);
    if (!runner->started) {
        pool_ref(runner->pool);
        error = start_thread(runner);
        runner->started = error == 0;
        if (error != 0)
            pool_unref(runner->pool);
    }
    pthread_mutex_unlock(&runner->lock);
    return error;
}

void callback_runner_push(callback_runner *runner, future_callback *callback) {
    callback->next = NULL;
    pthread_mutex_lock(&runner->lock);
    bool first = runner->first == NULL;
    if (first)
        runner->first = callback;
    else
        runner->last->next = callback;
    runner->last = callback;
    if (first) /* else the thread has been told and has not come yet */
        changed(runner);
    pthread_mutex_unlock(&runner->lock);
}

void callback_runner_end(callback_runner *runner) {
    pthread_mutex_lock(&runner->lock);
    runner->ending = true;
    changed(runner);
    pthread_mutex_unlock(&runner->lock);
}

int callback_runner_join(callback_runner *runner, int64_t deadline_ns) {
    for (;;) {
        pthread_mutex_lock(&runner->lock);
        uint32_t events = atomic_load(&runner->events);
        bool over = runner->finished || !runner->started;
        pthread_mutex_unlock(&runner->lock);
        if (over)
            return 0;
        int error = os_futex_wait_interruptible(&runner->events, events, deadline_ns);
        if (error == ETIMEDOUT || interrupt_ends_wait(error))
            return error;
    }
}

bool callback_runner_is_here(const callback_runner *runner) {
    return runner_here == runner;
}
