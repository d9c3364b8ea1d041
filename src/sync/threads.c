/* Threads that can be waited for together.
 *
 * A pebble_thread has a reference for whoever started it and one for the thread itself,
 * which drops its own when it has told everybody of its end. The pthread below is
 * detached: nobody need join it, and joining here does not use it up, so that any number
 * may join, again and again.
 *
 * Ended means that the thread's function has returned, or that pthread_exit() or a
 * cancellation has left it; destructors of thread-local data may still run then. Its
 * source is ready from then on, for good.
 *
 * The thread starts with the signal mask of the thread that started it, as with
 * pthread_create().
 *
 * After a fork the child has none of these threads, and a lock of theirs may be held
 * there for ever: every call gives PEBBLE_ERR_FORKED, and a thread that forked itself
 * does not report its end in the child.
 */
#include "pebble.h"

#include <errno.h>
#include <stdio.h>

#include "core/error.h"
#include "core/fork.h"
#include "sync/ready.h"

enum { NAME_SIZE = 16 }; /* what the kernel keeps, with the ending zero */

struct pebble_thread {
    ready_source end;
    _Atomic uint32_t references;
    uint32_t fork_epoch;
    void (*function)(void *context);
    void *context;
    char name[NAME_SIZE]; /* empty: the starter's name */
};

static _Thread_local pebble_thread *current;

/* ---- Starting and ending ---- */

static bool is_foreign(const pebble_thread *thread) {
    return thread->fork_epoch != fork_epoch;
}

void pebble_thread_unref(pebble_thread *thread) {
    if (thread == NULL || is_foreign(thread))
        return;
    if (atomic_fetch_sub_explicit(&thread->references, 1, memory_order_acq_rel) != 1)
        return;
    ready_source_fini(&thread->end);
    os_free(thread);
}

/* Runs however the function is left. */
static void thread_ended(void *argument) {
    pebble_thread *thread = argument;
    current = NULL;
    if (is_foreign(thread))
        return;
    pthread_mutex_lock(&thread->end.mutex);
    ready_source_set_locked(&thread->end, true);
    pthread_mutex_unlock(&thread->end.mutex);
    pebble_thread_unref(thread);
}

static void *thread_run(void *argument) {
    pebble_thread *thread = argument;
    pthread_cleanup_push(thread_ended, thread);
    current = thread;
    if (thread->name[0] != '\0')
        os_thread_set_name(thread->name);
    thread->function(thread->context);
    pthread_cleanup_pop(1);
    return NULL;
}

static int thread_create(pebble_thread *thread) {
    pthread_attr_t attributes;
    pthread_t handle;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = os_fault_hits(OS_FAULT_THREAD)
                ? EAGAIN
                : pthread_create(&handle, &attributes, thread_run, thread);
    pthread_attr_destroy(&attributes);
    return error;
}

pebble_error pebble_thread_start(void (*function)(void *context), void *context,
                                 const char *name, pebble_thread **thread) {
    static const char own_name[] = "pebble_thread_start";
    if (function == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: function is NULL", own_name);
    if (thread == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: thread is NULL", own_name);
    int error = fork_watch();
    pebble_thread *made = error == 0 ? os_alloc_zeroed(sizeof *made) : NULL;
    if (made == NULL)
        return error_set_system(error != 0 ? error : ENOMEM, own_name);
    made->function = function;
    made->context = context;
    made->fork_epoch = fork_epoch;
    atomic_init(&made->references, 2);
    snprintf(made->name, sizeof made->name, "%s", name != NULL ? name : "");
    error = ready_source_init(&made->end);
    if (error == 0 && (error = thread_create(made)) != 0)
        ready_source_fini(&made->end);
    if (error != 0) {
        os_free(made);
        return error_set_system(error, own_name);
    }
    *thread = made;
    return PEBBLE_OK;
}

/* ---- Waiting ---- */

static pebble_error foreign(const char *function, const char *argument) {
    return error_set(PEBBLE_ERR_FORKED, "%s: %s is of the process that forked this one",
                     function, argument);
}

pebble_error pebble_thread_join(pebble_thread *thread, int64_t timeout_ns) {
    static const char name[] = "pebble_thread_join";
    ready_set set;
    if (thread == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: thread is NULL", name);
    if (timeout_ns < 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: timeout_ns is negative", name);
    if (is_foreign(thread))
        return foreign(name, "thread");
    if (thread == current)
        return error_set(PEBBLE_ERR_DEADLOCK, "%s: thread is the calling one", name);
    ready_set_init(&set, 1); /* one needs no memory */
    ready_set_source(&set, 0, &thread->end);
    bool ended = ready_set_wait(&set, os_deadline_after(timeout_ns)) > 0;
    ready_set_fini(&set);
    return ended ? PEBBLE_OK
                 : error_set(PEBBLE_ERR_TIMEOUT, "%s: the thread goes on", name);
}

static pebble_error check_threads(const char *function, pebble_thread *const *threads,
                                  size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (threads[i] == NULL)
            return error_set(PEBBLE_ERR_INVALID, "%s: threads[%zu] is NULL", function, i);
        if (is_foreign(threads[i]))
            return foreign(function, "one of threads");
    }
    return PEBBLE_OK;
}

pebble_error pebble_wait_for_threads(pebble_thread *const *threads, size_t count,
                                     int64_t timeout_ns, pebble_thread **ready,
                                     size_t *ready_count) {
    static const char name[] = "pebble_wait_for_threads";
    ready_set set;
    pebble_error error =
        ready_check_wait(name, "threads", threads, count, timeout_ns, ready, ready_count);
    if (error == PEBBLE_OK)
        error = check_threads(name, threads, count);
    if (error != PEBBLE_OK)
        return error;
    if (ready_set_init(&set, count) != 0)
        return error_set_system(ENOMEM, name);
    for (size_t i = 0; i < count; i++)
        ready_set_source(&set, i, &threads[i]->end);
    ready_set_wait(&set, os_deadline_after(timeout_ns));
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (ready_set_has(&set, i))
            ready[found++] = threads[i];
    }
    *ready_count = found;
    ready_set_fini(&set);
    return PEBBLE_OK;
}
