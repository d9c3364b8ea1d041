/* Pools of threads.
 *
 * Whoever schedules pushes the task onto a list without a lock (incoming); a thread that looks for
 * work moves that list, under the pool's lock and in its order, to the queue. Threads are started
 * as tasks come, up to max_workers, and sleep on a futex when there is nothing to do; one at a
 * time spins a little first, and whoever schedules wakes nobody while it does. A thread says that
 * it sleeps or spins no more (sleepers, spinning) before its last look at incoming, and whoever
 * schedules pushes before it looks at those, with a full fence between on both sides.
 *
 * Tasks start in the order in which they were scheduled: one that waits for another that was
 * scheduled later, but not too much later, gets it, as with any plain queue. So no thread takes
 * several at once; instead the first tasks of the queue stand in a window, an array that all
 * threads take from without the lock, by compare-and-swap of a range of its indices. Whoever finds
 * the window empty fills it anew, under the lock. The range carries the number of that filling, so
 * that a thread which was held up between reading its task and the compare-and-swap cannot take
 * from a later one. No thread sleeps while the window holds a task.
 *
 * A task is QUEUED → RUNNING by its thread, QUEUED → STOPPING by cancel or stop, each a
 * compare-and-swap: whoever wins ends it. The queue's or window's reference goes with the place.
 *
 * Closing beside scheduling: the flag is set before the last look at incoming, and looked at again
 * after pushing; who finds it set then takes the task out again, unless a thread has it already.
 *
 * A user's function may end its thread (pthread_exit, cancellation): its task fails, and the thread
 * is replaced as one that has done its max_tasks.
 *
 * The pool is gone when it is closed, nothing is queued, no thread is left and nobody is just
 * ending a future (ending).
 */
#include "thread/thread_pool.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/fork.h"
#include "core/task.h"

enum {
    WINDOW = 256,
    SPIN_NS = 20 * 1000,
    SPIN_ROUNDS = 32,
    FAILED_STARTS_MAX = 3,
    BUFFER_SPARE = 64, /* so much of a result's memory may be unused */
    BUFFER_KEPT = 64 * 1024,
};

typedef struct thread_pool thread_pool;

typedef struct thread_worker {
    thread_pool *pool;
    struct thread_worker *next;
    unsigned number;
    char name[16];
    _Atomic uint64_t tasks_done; /* written by its thread, as all that follows */
    _Atomic(pebble_future *) running;
    bool initializing, initialized;
    bool spins, sleeps; /* as counted in its pool */
    pebble_task task;
} thread_worker;

struct thread_pool {
    pebble_pool base;
    _Atomic bool broken;
    char broken_reason[TASK_MESSAGE_SIZE];
    int broken_code;
    pebble_future *first, *last; /* the queue */
    uint64_t queued;
    thread_worker *workers;
    int idle, woken; /* asleep or about to; of these, told to wake */
    int64_t ending;  /* futures that are just being ended from outside */
    uint64_t ended;
    unsigned last_number;
    int failed_starts;
    _Atomic int threads;  /* started and not ended; changed under the lock */
    _Atomic int sleepers; /* changed under the lock */
    _Atomic int spinning;
    _Atomic int64_t ghosts;            /* cancelled tasks that still have their place */
    _Atomic uint32_t wakes;            /* futex: grows when an idle thread is to look */
    char apart[64];                    /* not in one cache line with what comes before */
    _Atomic(pebble_future *) incoming; /* the last one first */
    char apart_too[64];
    _Atomic uint64_t range; /* filling << 32 | first << 16 | end; see window */
    _Atomic(pebble_future *) window[WINDOW];
};

static inline bool range_is_empty(uint64_t range) {
    return (range >> 16 & 0xffff) >= (range & 0xffff);
}

static _Thread_local const thread_pool *pool_here;

static thread_pool *pool_of(pebble_pool *base) {
    return (thread_pool *)base;
}

/* ---- States ---- */

/* QUEUED → state, keeping the word's bits. False: somebody else was first. */
static bool claim(pebble_future *future, uint32_t state) {
    uint32_t word = atomic_load_explicit(&future->word, memory_order_relaxed);
    while ((word & FUTURE_STATE) == FUTURE_QUEUED) {
        if (atomic_compare_exchange_weak_explicit(&future->word, &word, word | state,
                                                  memory_order_acq_rel,
                                                  memory_order_relaxed))
            return true;
    }
    return false;
}

static bool has_incoming(const thread_pool *pool) {
    return atomic_load_explicit(&pool->incoming, memory_order_relaxed) != NULL;
}

static bool window_is_empty(const thread_pool *pool) {
    return range_is_empty(atomic_load_explicit(&pool->range, memory_order_relaxed));
}

static bool has_work_left(const thread_pool *pool) {
    return pool->first != NULL || has_incoming(pool) || !window_is_empty(pool);
}

/* Under the lock. */
static bool is_over(const thread_pool *pool) {
    return atomic_load(&pool->base.closed) && pool->first == NULL &&
           window_is_empty(pool) && atomic_load(&pool->threads) == 0 &&
           pool->ending == 0 && atomic_load(&pool->base.gone) == 0;
}

static void unlock_and_finish_if_over(thread_pool *pool) {
    bool over = is_over(pool);
    if (over)
        pool->ending = 1; /* once */
    pthread_mutex_unlock(&pool->base.lock);
    if (over)
        pool_set_gone(&pool->base);
}

/* ---- The queue: under the lock ---- */

/* Moves what has come in to the queue's end. */
static void take_incoming(thread_pool *pool) {
    pebble_future *list =
        atomic_exchange_explicit(&pool->incoming, NULL, memory_order_acquire);
    pebble_future *first = NULL, *last = list;
    while (list != NULL) {
        pebble_future *next = list->next;
        list->next = first;
        first = list;
        list = next;
        pool->queued++;
    }
    if (first == NULL)
        return;
    if (pool->last != NULL)
        pool->last->next = first;
    else
        pool->first = first;
    pool->last = last;
}

static pebble_future *take_first(thread_pool *pool) {
    pebble_future *future = pool->first;
    pool->first = future->next;
    if (pool->first == NULL)
        pool->last = NULL;
    pool->queued--;
    return future;
}

/* Fills the empty window from the queue's beginning; only holders of the lock do. */
static void fill_window(thread_pool *pool) {
    uint64_t filling =
        (atomic_load_explicit(&pool->range, memory_order_relaxed) >> 32) + 1;
    uint64_t count = 0;
    for (; count < WINDOW && pool->first != NULL; count++)
        atomic_store_explicit(&pool->window[count], take_first(pool),
                              memory_order_relaxed);
    atomic_store_explicit(&pool->range, filling << 32 | count, memory_order_release);
}

/* The oldest task that has not been taken; NULL if the window is empty. Without the lock. */
static pebble_future *take_from_window(thread_pool *pool) {
    uint64_t range = atomic_load_explicit(&pool->range, memory_order_acquire);
    while (!range_is_empty(range)) {
        pebble_future *future = atomic_load_explicit(
            &pool->window[(range >> 16 & 0xffff) % WINDOW], memory_order_relaxed);
        if (atomic_compare_exchange_weak_explicit(&pool->range, &range, range + (1 << 16),
                                                  memory_order_acq_rel,
                                                  memory_order_acquire))
            return future;
    }
    return NULL;
}

/* ---- Running ---- */

/* The future keeps the buffer, without what it was made too large. */
static void take_result(pebble_task *task, pebble_future *future) {
    result_bytes result = {.size = task->size};
    if (task->size <= sizeof result.small) {
        if (task->size > 0)
            memcpy(result.small, task->buffer, task->size);
    } else {
        void *fitted = NULL;
        if (task->capacity - task->size > BUFFER_SPARE)
            fitted = os_realloc(task->buffer, task->size);
        result.data = fitted != NULL ? fitted : task->buffer;
        task_init_growing(task);
    }
    future_set_result(future, &result);
}

/* In a child that the user's function forked, and from which it has returned, the pool's thread is
 * the only one and the pool is the parent's. */
static void leave_if_forked(const thread_pool *pool) {
    if (pool->base.fork_epoch != fork_epoch)
        _exit(EXIT_SUCCESS);
}

static void end_running(thread_worker *worker, pebble_future *future) {
    future_drop_input(
        future); /* may end the thread too: what runs is still to be ended then */
    atomic_store_explicit(
        &worker->tasks_done,
        atomic_load_explicit(&worker->tasks_done, memory_order_relaxed) + 1,
        memory_order_relaxed);
    atomic_store_explicit(&worker->running, NULL, memory_order_relaxed);
    future_end(future, FUTURE_FINISHED);
}

static void run_task(thread_worker *worker, pebble_future *future) {
    pebble_task *task = &worker->task;
    if (!claim(future, FUTURE_RUNNING)) { /* cancelled: only its place is left */
        atomic_fetch_sub(&worker->pool->ghosts, 1);
        pebble_future_unref(future);
        return;
    }
    atomic_store_explicit(&worker->running, future, memory_order_relaxed);
    task_reset(task);
    task_run(task, (task_kind)future->kind, future->function, future->input,
             future->input_size);
    leave_if_forked(worker->pool);
    pthread_testcancel(); /* what it asked for ends this task, and not the next */
    if (task->failed)
        future_set_failure(future,
                           &(pebble_failure){.kind = PEBBLE_ERR_TASK_FAILED,
                                             .code = task->code,
                                             .message = task->message},
                           NULL);
    else
        take_result(task, future);
    if (task->capacity > BUFFER_KEPT) { /* it failed after it had written much */
        task_fini_growing(task);
        task_init_growing(task);
    }
    end_running(worker, future);
}

/* ---- Breaking ---- */

typedef struct dropped {
    pebble_future *first;
    int64_t count;
} dropped;

/* Takes everything that waits out of the window and the queue. Under the lock. */
static dropped drop_all(thread_pool *pool) {
    dropped all = {0};
    pebble_future *future;
    take_incoming(pool);
    while ((future = take_from_window(pool)) != NULL ||
           (pool->first != NULL && (future = take_first(pool)) != NULL)) {
        future->next = all.first;
        all.first = future;
        all.count++;
    }
    pool->ending += all.count;
    return all;
}

/* Ends what was dropped: failure NULL is cancelled. Without the lock. */
static void end_dropped(thread_pool *pool, dropped *all, const pebble_failure *failure) {
    /* cancel() takes a task that is STOPPING for one that ends as cancelled. */
    uint32_t claimed = failure != NULL ? FUTURE_RUNNING : FUTURE_STOPPING;
    int64_t cancelled = 0;
    for (pebble_future *future = all->first, *next; future != NULL; future = next) {
        next = future->next;
        if (!claim(future, claimed)) { /* cancelled, and counted, before */
            pebble_future_unref(future);
            atomic_fetch_sub(&pool->ghosts, 1);
            cancelled++;
        } else if (failure != NULL) {
            future_set_failure(future, failure, NULL);
            future_end(future, FUTURE_FINISHED);
        } else {
            future_end_cancelled(future);
        }
    }
    pthread_mutex_lock(&pool->base.lock);
    pool->ending -= all->count;
    pool->ended += (uint64_t)(all->count - cancelled);
    unlock_and_finish_if_over(pool);
}

/* Under the lock. */
static void wake_all(thread_pool *pool) {
    pool->woken = pool->idle;
    atomic_store(&pool->sleepers, 0);
    atomic_fetch_add(&pool->wakes, 1);
    os_futex_wake(&pool->wakes, INT_MAX);
}

/* The pool takes no more tasks; those that wait fail. Under the lock, which it gives up. */
static void break_and_unlock(thread_pool *pool, int code, const char *reason) {
    pool->broken_code = code;
    snprintf(pool->broken_reason, sizeof pool->broken_reason, "%s", reason);
    atomic_store(&pool->broken, true);
    dropped all = drop_all(pool);
    wake_all(pool);
    pthread_mutex_unlock(&pool->base.lock);
    pebble_failure failure = {
        .kind = PEBBLE_ERR_BROKEN, .message = pool->broken_reason, .code = code};
    end_dropped(pool, &all, &failure);
}

/* ---- Threads ---- */

/* reason: NULL if it went well. */
static void initializer_ended(thread_worker *worker, int code, const char *reason) {
    thread_pool *pool = worker->pool;
    pthread_mutex_lock(&pool->base.lock);
    worker->initializing = false;
    worker->initialized = reason == NULL;
    pool->failed_starts = reason == NULL ? 0 : pool->failed_starts + 1;
    if (pool->failed_starts >= FAILED_STARTS_MAX && !atomic_load(&pool->broken))
        break_and_unlock(pool, code, reason);
    else
        pthread_mutex_unlock(&pool->base.lock);
}

static void initialize(thread_worker *worker) {
    const pool_settings *settings = &worker->pool->base.settings;
    char reason[TASK_MESSAGE_SIZE + 32];
    task_reset(&worker->task);
    if (settings->initializer != NULL)
        task_run(&worker->task, TASK_INITIALIZER,
                 (pebble_function)(void (*)(void))settings->initializer,
                 settings->initializer_input, settings->initializer_input_size);
    leave_if_forked(worker->pool);
    pthread_testcancel(); /* what it asked for ends this, and not its first task */
    snprintf(reason, sizeof reason, "the initializer failed: %s", worker->task.message);
    initializer_ended(worker, worker->task.code, worker->task.failed ? reason : NULL);
}

/* It may run anything, for long: the thread is none yet that others rely on to look for work. Under the
 * lock, which it gives up meanwhile. */
static void call_idle_hook(thread_pool *pool, void (*idle)(void *)) {
    pthread_mutex_unlock(&pool->base.lock);
    idle(pool->base.settings.hooks->context);
    pthread_testcancel(); /* as in sleep_idle() */
    pthread_mutex_lock(&pool->base.lock);
}

/* Also if the thread ends in it. */
static void end_spin(thread_worker *worker) {
    worker->spins = false;
    atomic_store(&worker->pool->spinning, 0);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the one in schedule() */
}

/* Looks for work a little before it sleeps; the only one that does. Without the lock. */
static void spin(thread_worker *worker) {
    const thread_pool *pool = worker->pool;
    worker->spins = true;
    int64_t until_ns = os_now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_ROUNDS && !has_incoming(pool); i++)
            os_spin_pause();
    } while (!has_incoming(pool) && os_now_ns() < until_ns);
    pthread_testcancel(); /* as in sleep_idle() */
    end_spin(worker);
}

/* Those that sleep and have not been woken. Under the lock. */
static void set_sleepers(thread_pool *pool) {
    int sleepers = pool->idle > pool->woken ? pool->idle - pool->woken : 0;
    atomic_store(&pool->sleepers, sleepers);
}

/* Also if the thread ends in it. Under the lock. */
static void end_sleep(thread_worker *worker) {
    thread_pool *pool = worker->pool;
    worker->sleeps = false;
    pool->idle--;
    if (pool->woken > pool->idle) /* it was woken, and has not seen it */
        pool->woken = pool->idle;
    set_sleepers(pool);
}

/* Under the lock, which it gives up meanwhile. */
static void sleep_idle(thread_worker *worker) {
    thread_pool *pool = worker->pool;
    uint32_t wakes = atomic_load(&pool->wakes);
    worker->sleeps = true;
    pool->idle++;
    set_sleepers(pool);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the one in schedule() */
    if (!has_incoming(pool)) {
        pthread_mutex_unlock(&pool->base.lock);
        while (atomic_load(&pool->wakes) == wakes)
            os_futex_wait(&pool->wakes, wakes, OS_NO_DEADLINE);
        pthread_testcancel(); /* asked for while it has no task: none is to fail for that */
        pthread_mutex_lock(&pool->base.lock);
        if (pool->woken > 0) /* more may come for one wake: only as many count */
            pool->woken--;
    }
    end_sleep(worker);
}

/* Wakes one that sleeps: any of them, each looks for itself. Under the lock; true if the caller
 * must ring. */
static bool wants_wake(thread_pool *pool) {
    if (atomic_load(&pool->sleepers) == 0)
        return false;
    pool->woken++;
    set_sleepers(pool);
    atomic_fetch_add(&pool->wakes, 1);
    return true;
}

static bool is_to_end(const thread_worker *worker) {
    const thread_pool *pool = worker->pool;
    uint64_t max_tasks = pool->base.settings.max_tasks;
    return !worker->initialized || atomic_load(&pool->broken) ||
           (atomic_load(&pool->base.closed) && !has_work_left(pool)) ||
           (max_tasks != 0 && worker->tasks_done >= max_tasks);
}

static int start_thread_locked(thread_pool *pool);

/* There is work for another thread: one that sleeps, for which the caller must ring, else a new one.
 * Under the lock; 0, or why none can be started. */
static int share_work(thread_pool *pool, bool *ring) {
    *ring = wants_wake(pool);
    if (*ring || atomic_load(&pool->threads) >= pool->base.settings.max_workers)
        return 0;
    return start_thread_locked(pool);
}

/* Takes a task, waiting for it. NULL: the thread is to end. */
static pebble_future *find_work(thread_worker *worker) {
    thread_pool *pool = worker->pool;
    pebble_future *future = NULL;
    void (*idle)(void *) = pool_idle_hook(pool->base.settings.hooks);
    bool called = false, spun = !os_spinning_helps();
    bool ring = false;
    pthread_mutex_lock(&pool->base.lock);
    while (future == NULL && !is_to_end(worker)) {
        if (window_is_empty(pool)) {
            take_incoming(pool);
            fill_window(pool);
        }
        if ((future = take_from_window(pool)) != NULL)
            break;
        if (has_work_left(pool))
            continue;
        if (idle != NULL && !called) {
            called = true;
            call_idle_hook(pool, idle);
        } else if (!spun && atomic_exchange(&pool->spinning, 1) == 0) {
            spun = true;
            pthread_mutex_unlock(&pool->base.lock);
            spin(worker);
            pthread_mutex_lock(&pool->base.lock);
        } else {
            sleep_idle(worker);
            spun = !os_spinning_helps();
            called = false;
        }
    }
    /* Nobody was woken for it while this one spun. If none can be started, those that are there do it. */
    if (future != NULL && has_work_left(pool))
        share_work(pool, &ring);
    pthread_mutex_unlock(&pool->base.lock);
    if (ring)
        os_futex_wake(&pool->wakes, 1);
    return future;
}

/* The next task: from the window if that is all it takes. */
static pebble_future *next_task(thread_worker *worker) {
    thread_pool *pool = worker->pool;
    pthread_testcancel(); /* as in sleep_idle() */
    pebble_future *future = worker->initialized && pool->base.settings.max_tasks == 0 &&
                                    !atomic_load(&pool->broken)
                                ? take_from_window(pool)
                                : NULL;
    return future != NULL ? future : find_work(worker);
}

static void remove_worker(thread_worker *worker) {
    thread_worker **link = &worker->pool->workers;
    while (*link != worker)
        link = &(*link)->next;
    *link = worker->next;
}

/* The user's function has ended the thread: pthread_exit(), or a cancellation. */
static void end_what_ran(thread_worker *worker) {
    static const pebble_failure left = {.kind = PEBBLE_ERR_TASK_FAILED,
                                        .message = "the task ended its thread"};
    pebble_future *future = atomic_load_explicit(&worker->running, memory_order_relaxed);
    if (worker->initializing)
        initializer_ended(worker, 0, "the initializer failed: it ended its thread");
    if (future == NULL)
        return;
    future_set_failure(future, &left, NULL);
    end_running(worker, future);
}

/* However the thread is left. */
static void thread_ended(void *context) {
    thread_worker *worker = context;
    thread_pool *pool = worker->pool;
    if (pool->base.fork_epoch != fork_epoch)
        return;
    end_what_ran(worker);
    if (worker->spins)
        end_spin(worker);
    bool ring = false;
    pthread_mutex_lock(&pool->base.lock);
    if (worker->sleeps) {
        /* It may be the one that was woken. If it was not it is as well: who takes a task shares what
         * is left. */
        if (pool->woken > 0)
            pool->woken--;
        end_sleep(worker);
    }
    remove_worker(worker);
    atomic_fetch_sub(&pool->threads, 1);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the one in schedule() */
    pool->ended += worker->tasks_done;
    /* Replaced after its max_tasks or a failed start: if there are others it can wait. */
    if (has_work_left(pool) && !atomic_load(&pool->broken)) {
        int error = share_work(pool, &ring);
        if (error != 0 && atomic_load(&pool->threads) == 0) {
            break_and_unlock(pool, error, "threads cannot be started");
            pthread_mutex_lock(&pool->base.lock);
        }
    }
    unlock_and_finish_if_over(pool);
    if (ring)
        os_futex_wake(&pool->wakes, 1);
    task_fini_growing(&worker->task);
    os_free(worker);
    pool_here = NULL;
    pool_unref(&pool->base);
}

static void thread_main(void *context) {
    thread_worker *worker = context;
    const pebble_hooks *hooks = worker->pool->base.settings.hooks;
    pebble_future *future;
    pool_here = worker->pool;
    task_init_growing(&worker->task);
    pthread_cleanup_push(thread_ended, worker);
    worker->initializing = true; /* the hook counts as its part */
    if (hooks != NULL && hooks->worker_start != NULL)
        hooks->worker_start(hooks->context, worker->name);
    initialize(worker);
    while ((future = next_task(worker)) != NULL)
        run_task(worker, future);
    if (hooks != NULL && hooks->worker_end != NULL)
        hooks->worker_end(hooks->context);
    pthread_cleanup_pop(1);
}

static int start_thread_locked(thread_pool *pool) {
    thread_worker *worker = os_alloc(sizeof *worker);
    if (worker == NULL)
        return ENOMEM;
    memset(worker, 0, sizeof *worker);
    worker->pool = pool;
    worker->number = ++pool->last_number;
    pool_worker_name(&pool->base.settings, worker->number, worker->name,
                     sizeof worker->name);
    worker->next = pool->workers;
    pool->workers = worker;
    atomic_fetch_add(&pool->threads, 1);
    pool_ref(&pool->base);
    int error = os_thread_start_for_user(thread_main, worker, worker->name);
    if (error != 0) {
        remove_worker(worker);
        atomic_fetch_sub(&pool->threads, 1);
        os_free(worker);
        pool_unref(&pool->base); /* the caller has one more */
    }
    return error;
}

/* ---- The face ---- */

static pebble_error refuse(const thread_pool *pool, const char *name) {
    if (atomic_load(&pool->broken))
        return error_set(PEBBLE_ERR_BROKEN, "%s: the pool is broken: %s", name,
                         pool->broken_reason);
    return error_set(PEBBLE_ERR_NOT_ACTIVE, "%s: the pool is closed or stopped", name);
}

static bool takes_tasks(const thread_pool *pool) {
    return !atomic_load(&pool->base.closed) && !atomic_load(&pool->broken);
}

static void push_incoming(thread_pool *pool, pebble_future *future) {
    pebble_future *head = atomic_load_explicit(&pool->incoming, memory_order_relaxed);
    do
        future->next = head;
    while (!atomic_compare_exchange_weak_explicit(
        &pool->incoming, &head, future, memory_order_release, memory_order_relaxed));
}

/* Takes a task out of the queue again. False: a thread, or a stop, has it already. */
static bool retract(thread_pool *pool, pebble_future *future) {
    take_incoming(pool);
    pebble_future *before = NULL, *each = pool->first;
    while (each != NULL && each != future) {
        before = each;
        each = each->next;
    }
    if (each == NULL)
        return false;
    if (before != NULL)
        before->next = future->next;
    else
        pool->first = future->next;
    if (pool->last == future)
        pool->last = before;
    pool->queued--;
    return true;
}

/* What scheduling rarely needs: a thread to start or to wake, or the task out again. */
static pebble_error schedule_slowly(thread_pool *pool, pebble_future *future,
                                    const char *name) {
    bool ring = false, refused = false;
    int error = 0;
    pthread_mutex_lock(&pool->base.lock);
    if (!takes_tasks(pool))
        refused = retract(pool, future);
    else if (atomic_load(&pool->sleepers) > 0)
        ring = wants_wake(pool);
    else if (atomic_load(&pool->threads) < pool->base.settings.max_workers)
        error = start_thread_locked(pool);
    if (error != 0 && atomic_load(&pool->threads) == 0)
        refused = retract(pool, future);
    unlock_and_finish_if_over(pool);
    if (ring)
        os_futex_wake(&pool->wakes, 1);
    if (!refused)
        return PEBBLE_OK;
    return error != 0 ? error_set_system(error, name) : refuse(pool, name);
}

static pebble_error schedule(pebble_pool *base, pebble_future *future, const char *name) {
    thread_pool *pool = pool_of(base);
    if (!takes_tasks(pool))
        return refuse(pool, name);
    push_incoming(pool, future);
    atomic_thread_fence(
        memory_order_seq_cst); /* pairs with those in spin() and sleep_idle() */
    bool wants_thread = atomic_load_explicit(&pool->threads, memory_order_relaxed) <
                        base->settings.max_workers;
    bool wants_any =
        atomic_load_explicit(&pool->spinning, memory_order_relaxed) == 0 &&
        (wants_thread || atomic_load_explicit(&pool->sleepers, memory_order_relaxed) > 0);
    return wants_any || !takes_tasks(pool) ? schedule_slowly(pool, future, name)
                                           : PEBBLE_OK;
}

static pebble_error wait_for(pebble_pool *base, pebble_future *future,
                             int64_t deadline_ns) {
    (void)base;
    if (os_spinning_helps()) {
        int64_t until_ns = os_now_ns() + SPIN_NS;
        if (deadline_ns < until_ns)
            until_ns = deadline_ns;
        do {
            for (int i = 0; i < SPIN_ROUNDS && !future_ended(future); i++)
                os_spin_pause();
        } while (!future_ended(future) && os_now_ns() < until_ns);
    }
    return future_wait_error(future_sleep(future, deadline_ns));
}

static void nothing(pebble_pool *base, pebble_future *future) {
    (void)base;
    (void)future;
}

static bool cancel(pebble_pool *base, pebble_future *future) {
    thread_pool *pool = pool_of(base);
    pthread_mutex_lock(&base->lock);
    bool mine = claim(future, FUTURE_STOPPING);
    pool->ending += mine;
    atomic_fetch_add(&pool->ghosts, mine);
    pthread_mutex_unlock(&base->lock);
    if (!mine) { /* another may be just about to end it */
        uint32_t state_now = future_state(future);
        return state_now == FUTURE_CANCELLED || state_now == FUTURE_STOPPING;
    }
    pebble_future_ref(future); /* its place in the queue keeps the task's own */
    future_end_cancelled(future);
    pthread_mutex_lock(&base->lock);
    pool->ending--;
    pool->ended++;
    unlock_and_finish_if_over(pool);
    return true;
}

static pebble_state state(pebble_pool *base, pebble_future *future) {
    (void)base;
    (void)future;
    return PEBBLE_PENDING;
}

static pid_t pid(pebble_pool *base, pebble_future *future) {
    (void)base;
    (void)future;
    return 0;
}

static bool active(const pebble_pool *base) {
    thread_pool *pool = pool_of((pebble_pool *)(uintptr_t)base);
    pthread_mutex_lock(&pool->base.lock);
    bool is = takes_tasks(pool);
    pthread_mutex_unlock(&pool->base.lock);
    return is;
}

static pebble_error check_active(pebble_pool *base, const char *name) {
    thread_pool *pool = pool_of(base);
    pthread_mutex_lock(&base->lock);
    pebble_error error = takes_tasks(pool) ? PEBBLE_OK : refuse(pool, name);
    pthread_mutex_unlock(&base->lock);
    return error;
}

static void close_pool(pebble_pool *base) {
    thread_pool *pool = pool_of(base);
    pthread_mutex_lock(&base->lock);
    wake_all(pool);
    unlock_and_finish_if_over(pool);
}

static void stop(pebble_pool *base) {
    thread_pool *pool = pool_of(base);
    pthread_mutex_lock(&base->lock);
    dropped all = drop_all(pool);
    wake_all(pool);
    pthread_mutex_unlock(&base->lock);
    end_dropped(pool, &all, NULL);
}

static void fill_info(pebble_pool *base, pebble_pool_info *info) {
    thread_pool *pool = pool_of(base);
    pthread_mutex_lock(&base->lock);
    take_incoming(pool);
    uint64_t range = atomic_load(&pool->range);
    uint64_t in_window =
        range_is_empty(range) ? 0 : (range & 0xffff) - (range >> 16 & 0xffff);
    uint64_t ghosts = (uint64_t)atomic_load(&pool->ghosts);
    info->workers = atomic_load(&pool->threads);
    info->queued =
        pool->queued + in_window > ghosts ? pool->queued + in_window - ghosts : 0;
    info->in_flight = 0;
    info->ended = pool->ended;
    for (thread_worker *worker = pool->workers; worker != NULL; worker = worker->next) {
        info->in_flight += atomic_load(&worker->running) != NULL;
        info->ended += atomic_load(&worker->tasks_done);
    }
    info->worker_deaths = 0;
    pthread_mutex_unlock(&base->lock);
}

static size_t get_pids(pebble_pool *base, pid_t *pids, size_t capacity) {
    (void)base;
    (void)pids;
    (void)capacity;
    return 0;
}

static bool runs_here(const pebble_pool *base) {
    return (const pebble_pool *)pool_here == base;
}

static void free_pool(pebble_pool *base) {
    pool_fini(base);
    os_free(base);
}

const pool_kind thread_pool_kind = {
    .threads = true,
    .schedule = schedule,
    .wait = wait_for,
    .look = nothing,
    .want = nothing,
    .cancel = cancel,
    .state = state,
    .pid = pid,
    .active = active,
    .check_active = check_active,
    .close = close_pool,
    .stop = stop,
    .info = fill_info,
    .pids = get_pids,
    .runs_here = runs_here,
    .free = free_pool,
};

pebble_error thread_pool_new(pool_settings *settings, pebble_pool **pool) {
    thread_pool *made = os_alloc_zeroed(sizeof *made);
    if (made == NULL) {
        pool_settings_fini(settings);
        return error_set_system(ENOMEM, "pebble_thread_pool_new");
    }
    pebble_error error = pool_init(&made->base, &thread_pool_kind, settings);
    if (error != PEBBLE_OK) {
        os_free(made);
        return error;
    }
    *pool = &made->base;
    return PEBBLE_OK;
}
