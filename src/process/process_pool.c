#include "process/process_pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "process/executed.h"
#include "process/pool.h"

/* ---- Ended tasks ---- */

void ended_add(process_pool *pool, ended_list *list, pebble_future *future,
               uint32_t state) {
    future->place = PLACE_TAKEN;
    future->end_state = (uint8_t)state;
    future->next = NULL;
    if (list->last != NULL)
        list->last->next = future;
    else
        list->first = future;
    list->last = future;
    pool->ended += future->kind != TASK_INITIALIZER;
    atomic_fetch_add_explicit(&pool->ending, 1, memory_order_relaxed);
}

void ended_run(process_pool *pool, ended_list *list) {
    int64_t count = 0;
    if (list->first == NULL)
        return;
    pool_ref(&pool->base); /* the last future of all may be among them */
    for (pebble_future *future = list->first, *next; future != NULL; future = next) {
        next = future->next;
        future_end(future, future->end_state);
        count++;
    }
    *list = (ended_list){0};
    if (atomic_fetch_sub(&pool->ending, count) == count &&
        atomic_load(&pool->base.closed)) {
        pthread_mutex_lock(&pool->base.lock);
        pool_attend_soon(pool);
        pthread_mutex_unlock(&pool->base.lock);
    }
    pool_unref(&pool->base);
}

static void add_cancelled(process_pool *pool, pebble_future *future, ended_list *list) {
    future_set_failure(future, &(pebble_failure){.kind = PEBBLE_ERR_TASK_CANCELLED}, NULL);
    ended_add(pool, list, future, FUTURE_CANCELLED);
}

void pending_fail_all(process_pool *pool, const pebble_failure *failure,
                      ended_list *list) {
    while (pool->pending != NULL) {
        pebble_future *future = pool->pending;
        pending_remove(pool, future);
        if (failure == NULL) {
            add_cancelled(pool, future, list);
        } else {
            future_set_failure(future, failure, NULL);
            ended_add(pool, list, future, FUTURE_FINISHED);
        }
    }
}

void pool_break(process_pool *pool, int code, const char *reason, ended_list *list) {
    if (pool->broken || pool->stopping)
        return;
    pool->broken = true;
    pool->broken_code = code;
    snprintf(pool->broken_reason, sizeof pool->broken_reason, "%s", reason);
    workers_stop_all(pool, STOP_BREAK);
    pebble_failure failure = {
        .kind = PEBBLE_ERR_BROKEN, .message = pool->broken_reason, .code = code};
    pending_fail_all(pool, &failure, list);
    pool_attend_soon(pool);
}

void pool_attend_soon(process_pool *pool) {
    if (!pool->finished)
        supervisor_post(&pool->attend);
}

/* ---- Scheduling ---- */

/* The first task brings the zygote about, in the thread that schedules it. */
static pebble_error start_zygote_once(process_pool *pool, const char *name) {
    bool mine = false;
    pthread_mutex_lock(&pool->base.lock);
    if (pool->zygote_state == ZYGOTE_NONE && !atomic_load(&pool->base.closed)) {
        atomic_store_explicit(&pool->zygote_state, ZYGOTE_STARTING, memory_order_relaxed);
        mine = true;
    }
    pthread_mutex_unlock(&pool->base.lock);
    int error = mine ? zygote_start(pool) : 0;
    return error == 0 ? PEBBLE_OK : error_set_system(error, name);
}

static pebble_error refuse(const process_pool *pool, const char *name) {
    if (pool->broken)
        return error_set(PEBBLE_ERR_BROKEN, "%s: the pool is broken: %s", name,
                         pool->broken_reason);
    return error_set(PEBBLE_ERR_NOT_ACTIVE, "%s: the pool is closed or stopped", name);
}

/* Under the pool's lock. */
static bool takes_tasks(const process_pool *pool) {
    return !atomic_load(&pool->base.closed) && !pool->broken;
}

static pebble_error schedule(pebble_pool *base, pebble_future *future, const char *name) {
    process_pool *pool = process_pool_of(base);
    /* Here and not in worker_send(), which only finds it again: the first meeting takes the
     * loader's lock. */
    int unknown = function_table_meet(&pool->functions, future->function);
    if (unknown == ENOENT)
        return error_set(PEBBLE_ERR_INVALID,
                         "%s: function is in no module and not registered, "
                         "workers would not find it",
                         name);
    if (unknown != 0)
        return error_set_system(unknown, name);
    if (atomic_load_explicit(&pool->zygote_state, memory_order_relaxed) == ZYGOTE_NONE) {
        pebble_error error = start_zygote_once(pool, name);
        if (error != PEBBLE_OK)
            return error;
    }
    pthread_mutex_lock(&base->lock);
    if (!takes_tasks(pool)) {
        pebble_error error = refuse(pool, name);
        pthread_mutex_unlock(&base->lock);
        return error;
    }
    /* If others wait there was no room for them; room comes with the end of a task. */
    bool first = pool->pending == NULL;
    pending_append(pool, future);
    if (first)
        dispatch(pool);
    pthread_mutex_unlock(&base->lock);
    return PEBBLE_OK;
}

/* ---- Cancelling ---- */

typedef enum cancel_step { CANCEL_DONE, CANCEL_TOO_LATE, CANCEL_LOOK_AGAIN } cancel_step;

static cancel_step cancel_sent(process_pool *pool, pebble_future *future, int looks,
                               ended_list *list) {
    process_worker *worker = future->worker;
    if (future_state(future) == FUTURE_STOPPING)
        return future->stop_reason == STOP_CANCEL ? CANCEL_DONE : CANCEL_TOO_LATE;
    if (worker_take_back(worker, future)) {
        add_cancelled(pool, future, list);
        dispatch(pool);
        return CANCEL_DONE;
    }
    /* It runs, unless its end has come and was not collected. */
    if (looks == 0)
        return CANCEL_LOOK_AGAIN;
    bool sure = looks > 1;
    return worker_stop_task(worker, future, STOP_CANCEL, sure) ? CANCEL_DONE
                                                               : CANCEL_LOOK_AGAIN;
}

static cancel_step cancel_once(process_pool *pool, pebble_future *future, int looks,
                               ended_list *list) {
    switch (future->place) {
    case PLACE_PENDING:
        pending_remove(pool, future);
        add_cancelled(pool, future, list);
        dispatch(pool); /* what it takes note of has changed */
        return CANCEL_DONE;
    case PLACE_SENT:
        return cancel_sent(pool, future, looks, list);
    default: /* somebody is just ending it */
        return future->end_state == FUTURE_CANCELLED ? CANCEL_DONE : CANCEL_TOO_LATE;
    }
}

static bool cancel(pebble_pool *base, pebble_future *future) {
    process_pool *pool = process_pool_of(base);
    cancel_step step = CANCEL_LOOK_AGAIN;
    uint64_t looked_at = 0; /* the worker that was collected from, by its number */
    for (int looks = 0; step == CANCEL_LOOK_AGAIN; looks++) {
        ended_list list = {0};
        pthread_mutex_lock(&base->lock);
        const process_worker *now = future->worker;
        if (now != NULL &&
            now->number != looked_at) /* it has moved: nothing is known of it */
            looks = 0;
        looked_at = now != NULL ? now->number : 0;
        step = cancel_once(pool, future, looks, &list);
        process_worker *worker = step == CANCEL_LOOK_AGAIN ? future->worker : NULL;
        if (worker != NULL)
            worker_ref(worker);
        pthread_mutex_unlock(&base->lock);
        ended_run(pool, &list);
        if (worker != NULL) {
            worker_collect(worker);
            worker_unref(worker);
        }
    }
    return step == CANCEL_DONE;
}

/* ---- The rest of the face ---- */

/* Of a task that has begun the process, also while it is being ended; else 0. */
static pid_t pid(pebble_pool *base, pebble_future *future) {
    int64_t start_ns;
    pid_t known = 0;
    pthread_mutex_lock(&base->lock);
    process_worker *worker = future->worker;
    if (future->place == PLACE_TAKEN)
        known = future->pid;
    else if (worker != NULL &&
             sender_started(&worker->sender, future->sequence, &start_ns))
        known = worker_pid(worker);
    pthread_mutex_unlock(&base->lock);
    return known;
}

static pebble_state state(pebble_pool *base, pebble_future *future) {
    return pid(base, future) != 0 ? PEBBLE_RUNNING : PEBBLE_PENDING;
}

static bool active(const pebble_pool *base) {
    process_pool *pool = process_pool_of((pebble_pool *)(uintptr_t)base);
    pthread_mutex_lock(&pool->base.lock);
    bool is = takes_tasks(pool);
    pthread_mutex_unlock(&pool->base.lock);
    return is;
}

static pebble_error check_active(pebble_pool *base, const char *name) {
    process_pool *pool = process_pool_of(base);
    pthread_mutex_lock(&base->lock);
    pebble_error error = takes_tasks(pool) ? PEBBLE_OK : refuse(pool, name);
    pthread_mutex_unlock(&base->lock);
    return error;
}

static void close_pool(pebble_pool *base) {
    process_pool *pool = process_pool_of(base);
    pthread_mutex_lock(&base->lock);
    pool_attend_soon(pool);
    pthread_mutex_unlock(&base->lock);
}

static void collect_all(process_pool *pool) {
    for (int i = 0;; i++) {
        pthread_mutex_lock(&pool->base.lock);
        process_worker *worker = i < pool->worker_count ? pool->workers[i] : NULL;
        if (worker != NULL)
            worker_ref(worker);
        pthread_mutex_unlock(&pool->base.lock);
        if (worker == NULL)
            return;
        worker_collect(worker);
        worker_unref(worker);
    }
}

static void stop(pebble_pool *base) {
    process_pool *pool = process_pool_of(base);
    ended_list list = {0};
    collect_all(pool); /* what has ended has not been stopped */
    pthread_mutex_lock(&base->lock);
    if (!pool->stopping) {
        pool->stopping = true;
        workers_stop_all(pool, STOP_CANCEL);
        pending_fail_all(pool, NULL, &list);
    }
    pool_attend_soon(pool);
    pthread_mutex_unlock(&base->lock);
    ended_run(pool, &list);
}

/* Without its initializer. */
static uint64_t tasks_of(process_worker *worker) {
    const pebble_future *head = worker_head(worker);
    return worker->in_flight - (head != NULL && head->kind == TASK_INITIALIZER);
}

static void fill_info(pebble_pool *base, pebble_pool_info *info) {
    process_pool *pool = process_pool_of(base);
    collect_all(pool);
    pthread_mutex_lock(&base->lock);
    info->workers = pool->worker_count;
    info->queued = pool->pending_count;
    info->in_flight = pool->victims;
    for (int i = 0; i < pool->worker_count; i++)
        info->in_flight += tasks_of(pool->workers[i]);
    info->ended = pool->ended;
    info->worker_deaths = pool->deaths;
    pthread_mutex_unlock(&base->lock);
}

static size_t get_pids(pebble_pool *base, pid_t *pids, size_t capacity) {
    process_pool *pool = process_pool_of(base);
    size_t count = 0;
    pthread_mutex_lock(&base->lock);
    for (int i = 0; i < pool->worker_count; i++) {
        pid_t known = worker_pid(pool->workers[i]);
        if (known == 0)
            continue;
        if (count < capacity)
            pids[count] = known;
        count++;
    }
    pthread_mutex_unlock(&base->lock);
    return count;
}

static bool runs_here(const pebble_pool *base) {
    (void)base;
    return supervisor_is_here();
}

/* ---- Making and freeing ---- */

static void free_pool(pebble_pool *base) {
    process_pool *pool = process_pool_of(base);
    supervisor_release_timer();
    function_table_fini(&pool->functions);
    os_free(pool->workers);
    pool_fini(base);
    os_free(pool);
}

const pool_kind process_pool_kind = {
    .schedule = schedule,
    .wait = process_pool_wait,
    .look = process_pool_look,
    .want = process_pool_want,
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

static void run_attend(supervisor_job *job) {
    workers_attend((process_pool *)((char *)job - offsetof(process_pool, attend)));
}

static void retry_expired(supervisor_timer *timer) {
    workers_attend((process_pool *)((char *)timer - offsetof(process_pool, retry)));
}

pebble_error process_pool_new(pool_settings *settings, pebble_pool **pool) {
    static const char name[] = "pebble_process_pool_new";
    executed_check();
    process_pool *made = os_alloc_zeroed(sizeof *made);
    int error = made != NULL ? supervisor_start() : ENOMEM;
    if (error == 0)
        error = supervisor_reserve_timer();
    if (error != 0) {
        os_free(made);
        pool_settings_fini(settings);
        return error_set_system(error, name);
    }
    pebble_error initialized = pool_init(&made->base, &process_pool_kind, settings);
    if (initialized != PEBBLE_OK) {
        supervisor_release_timer();
        os_free(made);
        return initialized;
    }
    made->functions.by_name = made->base.settings.start_method != PEBBLE_START_FORK;
    made->tasks_are_short = true; /* until they have been seen to be long */
    function_table_note_fork(
        &made->functions); /* the fork inherits all that is loaded now */
    made->attend.run = run_attend;
    made->retry.expired = retry_expired;
    made->retry.deadline_ns = OS_NO_DEADLINE;
    made->zygote_socket.fd = made->zygote_process.fd = -1;
    made->zygote_fd = made->zygote_process_fd = -1;
    made->workers = os_alloc_zeroed((size_t)made->base.settings.max_workers *
                                    sizeof(process_worker *));
    pool_ref(&made->base); /* the engine's, until the pool is finished */
    pebble_initializer initializer = made->base.settings.initializer;
    error = made->workers == NULL ? ENOMEM : 0;
    if (error == 0 && initializer != NULL)
        error = function_table_meet(&made->functions,
                                    (pebble_function)(void (*)(void))initializer);
    if (error != 0) {
        free_pool(&made->base);
        return error == ENOENT
                   ? error_set(PEBBLE_ERR_INVALID,
                               "%s: options.initializer is in no module and not "
                               "registered, workers would not find it",
                               name)
                   : error_set_system(error, name);
    }
    *pool = &made->base;
    return PEBBLE_OK;
}
