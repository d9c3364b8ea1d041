/* Signal handlers that may call anything.
 *
 * What the system calls (on_signal) only marks the signal as pending and rings a futex
 * word; both are async-signal-safe. A thread of the library, the dispatcher, which has
 * every signal blocked, calls the user's functions one after another and holds no lock
 * meanwhile. It starts with the first registration and stays.
 *
 *   pending[s]        set by on_signal, cleared by the dispatcher before its call: one
 *                     that arrives during that call leads to another
 *   bell              counts rings; the dispatcher sleeps while it is as it was before it
 *                     looked
 *   registrations[s]  under registry_mutex
 *
 * The dispatcher copies a registration and calls the copy: one that is replaced or given
 * back meanwhile takes effect with the next call, and a call that runs goes on with its
 * context. One that is given back drops what is pending.
 *
 * registry_mutex is held only with all signals blocked, so that a handler of the
 * program's own, which may fork, never interrupts its holder.
 *
 * Fork: the child has no dispatcher, and cannot start one from a signal handler. So in
 * the child every registered signal goes back to what it did before its registration: a
 * worker process dies from SIGTERM as it should. The child may register afresh. The mutex
 * is taken and signals are blocked around the fork, so that the child finds the registry
 * whole and no signal is swallowed before it has been given back. If it is the dispatcher
 * that forks, in a user's function, it is the dispatcher of the child too. vfork() and
 * posix_spawn() need none of this: a program that is executed starts with the default for
 * every signal that was caught. In a child of _Fork(), which runs no handlers of
 * pthread_atfork(), the registered signals do nothing.
 */
#include "pebble.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#include "core/error.h"
#include "platform/platform.h"

_Static_assert(ATOMIC_BOOL_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
               "a signal handler can take no lock");

enum { SIGNALS = NSIG }; /* numbers 1 to SIGNALS - 1 */

typedef struct registration {
    bool installed;                  /* the signal's action is ours */
    pebble_signal_function function; /* outside the mutex: not NULL if installed */
    void *context;
    struct sigaction before;
} registration;

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
/* These four under registry_mutex. */
static registration registrations[SIGNALS];
static bool dispatcher_started;
static bool watching_forks;
static sigset_t mask_before_fork;

static _Atomic bool pending[SIGNALS];
static _Atomic uint32_t bell;
static _Thread_local bool is_dispatcher;
static bool dispatcher_forked; /* by a call that has not returned in this child */

static void registry_lock(sigset_t *mask_before) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, mask_before);
    pthread_mutex_lock(&registry_mutex);
}

static void registry_unlock(const sigset_t *mask_before) {
    pthread_mutex_unlock(&registry_mutex);
    pthread_sigmask(SIG_SETMASK, mask_before, NULL);
}

/* ---- From the signal to the call ---- */

/* In signal context. */
static void on_signal(int signal) {
    int errno_before = errno;
    /* Release, with the dispatcher's acquire of bell: who sees the ring sees the mark. */
    atomic_store_explicit(&pending[signal], true, memory_order_relaxed);
    atomic_fetch_add_explicit(&bell, 1, memory_order_release);
    os_futex_wake(&bell, 1);
    errno = errno_before;
}

static void dispatch_one(int signal) {
    sigset_t mask;
    registry_lock(&mask);
    bool is_pending = atomic_exchange(&pending[signal], false);
    registration called = registrations[signal];
    registry_unlock(&mask);
    if (is_pending && called.function != NULL)
        called.function(signal, called.context);
    dispatcher_forked = false;
}

static void dispatcher_run(void *unused);

/* A function has ended the thread; in a child that it forked, with that the child. If there cannot be
 * another, this one goes on all the same. */
static void leave_to_successor(void *unused) {
    if (dispatcher_forked)
        return;
    if (os_thread_start(dispatcher_run, NULL, "pebble-signals") != 0)
        dispatcher_run(unused);
    is_dispatcher = false;
}

static void dispatcher_run(void *unused) {
    is_dispatcher = true;
    pthread_cleanup_push(leave_to_successor, unused);
    for (;;) {
        uint32_t seen = atomic_load_explicit(&bell, memory_order_acquire);
        for (int signal = 1; signal < SIGNALS; signal++) {
            if (atomic_load_explicit(&pending[signal], memory_order_relaxed))
                dispatch_one(signal);
        }
        if (atomic_load_explicit(&bell, memory_order_relaxed) == seen)
            os_futex_wait(&bell, seen, OS_NO_DEADLINE);
    }
    pthread_cleanup_pop(0);
}

/* ---- Fork ---- */

static void give_back_locked(int signal) {
    registration *entry = &registrations[signal];
    if (!entry->installed)
        return;
    sigaction(signal, &entry->before, NULL);
    entry->installed = false;
    entry->function = NULL;
    atomic_store_explicit(&pending[signal], false, memory_order_relaxed);
}

static void before_fork(void) {
    sigset_t mask;
    registry_lock(&mask);
    mask_before_fork = mask;
}

static void in_parent(void) {
    sigset_t mask = mask_before_fork;
    registry_unlock(&mask);
}

static void in_child(void) {
    for (int signal = 1; signal < SIGNALS; signal++)
        give_back_locked(signal);
    dispatcher_started = dispatcher_forked = is_dispatcher;
    in_parent();
}

/* ---- Registering ---- */

/* A fault's signal comes from the very instruction that must not go on; SIGABRT ends the
 * program as soon as its handler returns. */
static const char *uncatchable_name(int signal) {
    switch (signal) {
    case SIGKILL:
        return "SIGKILL";
    case SIGSTOP:
        return "SIGSTOP";
    case SIGSEGV:
        return "SIGSEGV";
    case SIGBUS:
        return "SIGBUS";
    case SIGFPE:
        return "SIGFPE";
    case SIGILL:
        return "SIGILL";
    case SIGABRT:
        return "SIGABRT";
    case SIGTRAP:
        return "SIGTRAP";
    case SIGSYS:
        return "SIGSYS";
    default:
        return NULL;
    }
}

static pebble_error check_signals(const int *signals, size_t count) {
    static const char name[] = "pebble_sighandler";
    if (signals == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: signals is NULL", name);
    if (count == 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: count is 0", name);
    for (size_t i = 0; i < count; i++) {
        struct sigaction now;
        int signal = signals[i];
        if (signal < 1 || signal >= SIGNALS || sigaction(signal, NULL, &now) != 0)
            return error_set(PEBBLE_ERR_INVALID, "%s: signals[%zu] is %d, no signal",
                             name, i, signal);
        if (uncatchable_name(signal) != NULL)
            return error_set(PEBBLE_ERR_INVALID,
                             "%s: signals[%zu] is %s, not for handlers", name, i,
                             uncatchable_name(signal));
    }
    return PEBBLE_OK;
}

/* When the library is loaded: a fork that begins before its handlers are known, and goes on while a
 * thread registers, would leave the mutex held in the child. */
__attribute__((constructor)) static void watch_forks(void) {
    watching_forks = pthread_atfork(before_fork, in_parent, in_child) == 0;
}

/* Makes sure that there is a dispatcher. Returns 0 or an errno value. */
static int prepare_locked(void) {
    int error = watching_forks ? 0 : pthread_atfork(before_fork, in_parent, in_child);
    watching_forks = error == 0;
    if (error != 0 || dispatcher_started)
        return error;
    error = os_thread_start(dispatcher_run, NULL, "pebble-signals");
    dispatcher_started = error == 0;
    return error;
}

/* False if the system refuses, as valgrind does for a signal that it needs itself. */
static bool install_locked(int signal) {
    registration *entry = &registrations[signal];
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    struct sigaction before; /* ours, or what somebody else has set since */
    if (sigaction(signal, &action, &before) != 0)
        return false;
    if (!entry->installed)
        entry->before = before;
    entry->installed = true;
    return true;
}

/* Installs all or none. Returns how many of the signals the system took, count if all. */
static size_t install_all_locked(const int *signals, size_t count) {
    size_t taken = 0;
    while (taken < count && install_locked(signals[taken]))
        taken++;
    for (size_t i = 0; taken < count && i < taken; i++) {
        if (registrations[signals[i]].function == NULL) /* new in this call */
            give_back_locked(signals[i]);
    }
    return taken;
}

static pebble_error register_locked(const int *signals, size_t count,
                                    pebble_signal_function handler, void *context) {
    static const char name[] = "pebble_sighandler";
    int failed = prepare_locked();
    if (failed != 0)
        return error_set_system(failed, name);
    size_t taken = install_all_locked(signals, count);
    if (taken < count)
        return error_set(PEBBLE_ERR_INVALID,
                         "%s: signals[%zu] is %d, refused by the system", name, taken,
                         signals[taken]);
    for (size_t i = 0; i < count; i++) {
        registrations[signals[i]].function = handler;
        registrations[signals[i]].context = context;
    }
    return PEBBLE_OK;
}

pebble_error pebble_sighandler(const int *signals, size_t count,
                               pebble_signal_function handler, void *context) {
    sigset_t mask;
    pebble_error error = check_signals(signals, count);
    if (error != PEBBLE_OK)
        return error;
    registry_lock(&mask);
    if (handler != NULL)
        error = register_locked(signals, count, handler, context);
    for (size_t i = 0; handler == NULL && i < count; i++)
        give_back_locked(signals[i]);
    registry_unlock(&mask);
    return error;
}
