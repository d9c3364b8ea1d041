/* Which worker gets which task.
 *
 * An idle worker gets the task, the one used last first: it may still be spinning. If there is
 * none, and fewer workers than allowed, one more is started (in the supervisor's thread); until it
 * serves the task waits, or goes behind another task if tasks have been short: so many ahead that
 * they are done in AHEAD_NS. A stream of short tasks so never waits for a wake-up, and long tasks
 * get none ahead.
 *
 * A task ahead is not bound to its place. When a worker becomes idle and nothing is pending, it
 * gets half of the tasks ahead at the worker that has most; so a task behind a slow one moves.
 *
 * For that, whoever may have to act on a worker's progress is to be told of it: worker_arm() says
 * from which task on the worker rings the supervisor.
 */
#include <limits.h>

#include "process/pool.h"

enum {
    AHEAD_NS = 500 * 1000,
    AHEAD_MAX = CHANNEL_SLOTS - 8,
    AHEAD_BEFORE_KNOWN = 1, /* while no task has ended yet */
};

/* ---- Pending tasks ---- */

void pending_append(process_pool *pool, pebble_future *future) {
    future->worker = NULL;
    future->place = PLACE_PENDING;
    future->next = NULL;
    future->previous = pool->pending_last;
    if (pool->pending_last != NULL)
        pool->pending_last->next = future;
    else
        pool->pending = future;
    pool->pending_last = future;
    pool->pending_count++;
}

void pending_prepend(process_pool *pool, pebble_future *future) {
    future->worker = NULL;
    future->place = PLACE_PENDING;
    future->previous = NULL;
    future->next = pool->pending;
    if (pool->pending != NULL)
        pool->pending->previous = future;
    else
        pool->pending_last = future;
    pool->pending = future;
    pool->pending_count++;
}

void pending_remove(process_pool *pool, pebble_future *future) {
    if (future->previous != NULL)
        future->previous->next = future->next;
    else
        pool->pending = future->next;
    if (future->next != NULL)
        future->next->previous = future->previous;
    else
        pool->pending_last = future->previous;
    future->next = future->previous = NULL;
    pool->pending_count--;
}

/* ---- A worker's tasks ---- */

static pebble_future **place_of(process_worker *worker, uint64_t sequence) {
    return &worker->tasks[sequence & (CHANNEL_SLOTS - 1)];
}

static unsigned ahead_of(const process_worker *worker) {
    return worker->in_flight > 1 ? worker->in_flight - 1 : 0;
}

pebble_future *worker_head(process_worker *worker) {
    while (worker->first < worker->sender.sequence) {
        pebble_future *future = *place_of(worker, worker->first);
        if (future != NULL)
            return future;
        worker->first++;
    }
    return NULL;
}

void worker_make_idle(process_worker *worker) {
    process_pool *pool = worker->pool;
    if (worker->is_idle || worker->state != WORKER_SERVING || worker->orphaned)
        return;
    worker->is_idle = true;
    worker->next = pool->idle;
    pool->idle = worker;
}

/* Its input is somebody's who waits to get it back. */
static bool is_lent(const pebble_future *future) {
    return future->release_input != NULL && future->kind == TASK_FUNCTION;
}

void worker_forget(process_worker *worker, pebble_future *future) {
    process_pool *pool = worker->pool;
    *place_of(worker, future->sequence) = NULL;
    pool->ahead -= ahead_of(worker);
    worker->in_flight--;
    pool->ahead += ahead_of(worker);
    worker->wanted -= future->wanted;
    worker->lent -= is_lent(future);
    worker->timed -= future->timeout_ns != 0;
    future->worker = NULL;
    if (worker->in_flight == 0)
        worker_make_idle(worker);
    if (worker->in_flight == 0 && worker->state == WORKER_RETIRING)
        pool_attend_soon(pool); /* its place is free */
}

static const function_entry *entry_of(process_pool *pool, const pebble_future *future) {
    return function_table_find(&pool->functions, future->function);
}

/* Its input and, if it goes by name, its function's. */
static size_t size_in_ring(process_pool *pool, const pebble_future *future) {
    const function_entry *entry = entry_of(pool, future);
    return future->input_size + (entry != NULL ? sender_name_size(entry->name_size) : 0);
}

/* When the task can have reached its deadline at the earliest; it is looked at closer then. */
static void set_earliest_deadline(process_worker *worker, int64_t timeout_ns) {
    if (timeout_ns == 0)
        return;
    int64_t deadline_ns = os_deadline_after(timeout_ns);
    if (deadline_ns < worker->timer.deadline_ns)
        supervisor_set_timer(&worker->timer, deadline_ns);
}

void worker_send(process_worker *worker, pebble_future *future) {
    process_pool *pool = worker->pool;
    const function_entry *entry = entry_of(pool, future);
    sender_task task = {.kind = future->kind,
                        .function = (uint64_t)(uintptr_t)future->function,
                        .input = future->input,
                        .input_size = future->input_size};
    if (entry != NULL && entry->name_size > 0) {
        task.name = entry->name;
        task.name_size = entry->name_size;
    }
    future->worker = worker;
    future->place = PLACE_SENT;
    future->streamed = size_in_ring(pool, future) > CHANNEL_WHOLE;
    future->sequence = sender_put(&worker->sender, &task);
    *place_of(worker, future->sequence) = future;
    pool->ahead -= ahead_of(worker);
    worker->in_flight++;
    pool->ahead += ahead_of(worker);
    worker->wanted += future->wanted;
    worker->tasks_given += future->kind != TASK_INITIALIZER;
    if (future->streamed) {
        worker->streaming = future;
        atomic_store(&worker->streamed, 0);
    }
    worker->lent += is_lent(future);
    worker->timed += future->timeout_ns != 0;
    if (future->timeout_ns != 0 &&
        (worker->timed == 1 || future->timeout_ns < worker->least_timeout_ns))
        worker->least_timeout_ns = future->timeout_ns;
    set_earliest_deadline(worker, future->timeout_ns);
}

/* ---- Choosing ---- */

static bool is_used_up(const process_worker *worker) {
    uint64_t max_tasks = worker->pool->base.settings.max_tasks;
    return max_tasks != 0 && worker->tasks_given >= max_tasks;
}

void worker_retire_if_used_up(process_worker *worker) {
    if (worker->state == WORKER_SERVING && is_used_up(worker) && worker->streaming == NULL)
        worker_retire(worker);
}

/* Those taken back leave gaps: it is not only their number that must fit. */
static bool has_slot(process_worker *worker) {
    worker_head(worker);
    return worker->sender.sequence - worker->first < CHANNEL_SLOTS;
}

static bool takes(process_worker *worker, const pebble_future *future) {
    return worker->state == WORKER_SERVING && !worker->orphaned &&
           worker->streaming == NULL && !is_used_up(worker) && has_slot(worker) &&
           sender_has_room(&worker->sender, size_in_ring(worker->pool, future));
}

static unsigned ahead_limit(const process_pool *pool) {
    if (!pool->task_ns_known)
        return AHEAD_BEFORE_KNOWN;
    int64_t limit = AHEAD_NS / (pool->task_ns > 0 ? pool->task_ns : 1);
    return limit < AHEAD_MAX ? (unsigned)limit : AHEAD_MAX;
}

/* Nothing that a task would wait for, but the worker's own initializer. */
static bool has_nothing_ahead(const process_worker *worker) {
    return worker->in_flight == 0 || (worker->in_flight == 1 && !worker->ready);
}

void worker_make_busy(process_worker *worker) {
    if (!worker->is_idle)
        return;
    process_worker **link = &worker->pool->idle;
    while (*link != worker)
        link = &(*link)->next;
    *link = worker->next;
    worker->is_idle = false;
}

static process_worker *find_with_room(process_pool *pool, const pebble_future *future) {
    unsigned limit = ahead_limit(pool);
    if (pool->ahead >= limit * (unsigned)pool->worker_count ||
        size_in_ring(pool, future) > CHANNEL_WHOLE)
        return NULL;
    for (int i = 0; i < pool->worker_count; i++) {
        pool->turn = pool->turn + 1 < pool->worker_count ? pool->turn + 1 : 0;
        process_worker *worker = pool->workers[pool->turn];
        if (worker->in_flight <= limit && worker->ready && takes(worker, future))
            return worker;
    }
    return NULL;
}

/* An idle worker that says nonsense about its ring would never take a task again: it is ended. (One that
 * is busy says anew when its task ends.) */
static process_worker *choose(process_pool *pool, const pebble_future *future) {
    for (process_worker *worker = pool->idle, *next; worker != NULL; worker = next) {
        next = worker->next;
        if (has_nothing_ahead(worker) && takes(worker, future)) {
            worker_make_busy(worker);
            return worker;
        }
        if (worker->in_flight == 0 && !sender_is_sound(&worker->sender))
            worker_kill(worker);
    }
    return find_with_room(pool, future);
}

/* ---- Taking back ---- */

/* A worker skips what was taken back as a whole: not what streams behind its record. */
static bool is_movable(pebble_future *future) {
    return future->kind != TASK_INITIALIZER && !future->streamed &&
           future_state(future) != FUTURE_STOPPING;
}

bool worker_take_back(process_worker *worker, pebble_future *future) {
    if (!is_movable(future) || !sender_withdraw(&worker->sender, future->sequence))
        return false;
    worker_forget(worker, future);
    worker->tasks_given--;
    return true;
}

void move_to_pending(process_worker *worker, pebble_future *future) {
    worker_forget(worker, future);
    worker->tasks_given--;
    pending_prepend(worker->pool, future);
    /* A thread that leads for it waits on this worker: it is to look anew. */
    if (atomic_fetch_add(&future->word, FUTURE_MOVED) & FUTURE_WAITERS) {
        future->wanted = true;
        os_futex_wake(&future->word, INT_MAX);
    }
}

void worker_withdraw(process_worker *worker, const pebble_future *keep) {
    /* From the last to the first: put first in pending, they keep their order. */
    for (uint64_t sequence = worker->sender.sequence; sequence-- > worker->first;) {
        pebble_future *future = *place_of(worker, sequence);
        if (future == NULL || future == keep || !is_movable(future) ||
            !sender_withdraw(&worker->sender, sequence))
            continue;
        move_to_pending(worker, future);
    }
}

static void take_half_of(process_worker *worker) {
    unsigned count = (ahead_of(worker) + 1) / 2;
    for (uint64_t sequence = worker->sender.sequence;
         count > 0 && sequence-- > worker->first;) {
        pebble_future *future = *place_of(worker, sequence);
        if (future == NULL || !is_movable(future))
            continue;
        if (!sender_withdraw(&worker->sender, sequence))
            return; /* it runs: so do those before it, or they have ended */
        move_to_pending(worker, future);
        count--;
    }
}

/* Moves tasks from behind others to idle workers, through pending. */
static void share(process_pool *pool) {
    process_worker *most = NULL;
    for (int i = 0; i < pool->worker_count; i++) {
        process_worker *worker = pool->workers[i];
        if (ahead_of(worker) > 0 && (most == NULL || worker->in_flight > most->in_flight))
            most = worker;
    }
    if (most != NULL)
        take_half_of(most);
}

/* ---- What workers ring for ---- */

/* The sequence of the first task that somebody waits for. */
static uint64_t first_wanted(process_worker *worker) {
    for (uint64_t sequence = worker->first; sequence < worker->sender.sequence;
         sequence++) {
        pebble_future *future = *place_of(worker, sequence);
        if (future != NULL && future->wanted)
            return sequence;
    }
    return CHANNEL_NEVER;
}

void worker_arm(process_worker *worker) {
    process_pool *pool = worker->pool;
    uint64_t last = worker->sender.sequence - 1;
    uint64_t at = CHANNEL_NEVER;
    bool has_tasks = worker->in_flight > 0;
    if (worker->sender.sequence == 0)
        return;
    if (has_tasks && (!worker->ready || worker->watch_head))
        at = worker_head(worker)->sequence;
    else if (pool->pending !=
             NULL) /* in time for more; or when it has skipped what was taken back */
        at = has_tasks ? last - ahead_of(worker) / 4 : last;
    else if (has_tasks && (pool->ahead > 0 || is_used_up(worker) || worker->lent > 0 ||
                           atomic_load(&pool->base.closed)))
        at = last; /* then it can take a share of another's, be replaced, give back, or go */
    if (worker->wanted > 0) {
        uint64_t wanted = first_wanted(worker);
        at = wanted < at ? wanted : at;
    }
    if (at == worker->event_at)
        return;
    worker->event_at = at;
    atomic_store_explicit(&worker->down->event_at, at, memory_order_relaxed);
}

/* Arms all; if one has passed already what it was armed for it would never ring for that. */
bool workers_arm(process_pool *pool) {
    bool passed = false;
    for (int i = 0; i < pool->worker_count; i++)
        worker_arm(pool->workers[i]);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the worker's before it looks */
    for (int i = 0; i < pool->worker_count; i++) {
        process_worker *worker = pool->workers[i];
        passed |= worker->event_at != CHANNEL_NEVER &&
                  atomic_load_explicit(&worker->up->ended, memory_order_acquire) >
                      worker->event_at;
    }
    return passed;
}

/* ---- Dispatch ---- */

/* Some task waits for another task. One that waits for nothing but its own worker's initializer gains
 * nothing from one more worker, which has to initialize itself too. */
static bool waits_for_task(const process_pool *pool) {
    for (int i = 0; i < pool->worker_count; i++) {
        const process_worker *worker = pool->workers[i];
        if (worker->in_flight > (worker->ready ? 1u : 2u))
            return true;
    }
    return false;
}

bool pool_wants_worker(const process_pool *pool) {
    return pool->worker_count < pool->base.settings.max_workers &&
           (pool->spares != NULL || pool->retry.deadline_ns == OS_NO_DEADLINE) &&
           (pool->pending != NULL ||
            (pool->ahead > 0 && pool->idle == NULL && waits_for_task(pool)));
}

/* Pending tasks, or tasks ahead: then the progress of every worker matters. */
static unsigned interest_of(const process_pool *pool) {
    return (pool->pending != NULL ? 1u : 0u) | (pool->ahead > 0 ? 2u : 0u);
}

void dispatch(process_pool *pool) {
    process_worker *worker;
    unsigned before = atomic_load_explicit(&pool->interest, memory_order_relaxed);
    if (pool->pending == NULL && pool->idle != NULL && pool->ahead > 0)
        share(pool);
    while (pool->pending != NULL && (worker = choose(pool, pool->pending)) != NULL) {
        pebble_future *future = pool->pending;
        pending_remove(pool, future);
        worker_send(worker, future);
        worker_arm(worker);
        sender_publish(&worker->sender);
        if (worker->streaming == future)
            pool_attend_soon(pool);
        worker_retire_if_used_up(worker);
    }
    unsigned now = interest_of(pool);
    atomic_store_explicit(&pool->interest, now, memory_order_relaxed);
    if ((now & ~before) != 0 && workers_arm(pool))
        pool_attend_soon(pool);
    if (pool_wants_worker(pool))
        pool_attend_soon(pool);
}
