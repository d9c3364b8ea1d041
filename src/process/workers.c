/* A worker's life in the program.
 *
 * Everything that changes which workers there are happens in the supervisor's thread, but for
 * telling them to end (worker_kill, worker_retire), which whoever holds the pool's lock may do.
 *
 * Stopping a task means ending its worker. First everything else is taken back from it, then one
 * looks whether the task is still the one that runs; so a kill costs no other task. The task's
 * future is STOPPING from then on, and ends when the zygote says that the worker's whole tree is
 * gone.
 *
 * Only so many workers are asked of the zygote at a time (STARTS_AT_ONCE): a fork may take long, and
 * what else it is asked for waits behind them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "process/pool.h"

enum {
    REFUSED_STARTS_MAX = 10,
    SPARES_MAX = 4,
    STARTS_AT_ONCE = 2, /* so that the zygote always has one to do */
};

static const int64_t exit_limit_ns = INT64_C(30000000000);   /* for an orderly exit */
static const int64_t answer_limit_ns = INT64_C(60000000000); /* for the zygote to fork */
static const int64_t resend_ns = INT64_C(5000000); /* a request that found no room */
static const int64_t retry_first_ns = INT64_C(10000000);
static const int64_t retry_last_ns = INT64_C(1000000000);

/* ---- Making and freeing ---- */

void worker_ref(process_worker *worker) {
    atomic_fetch_add_explicit(&worker->references, 1, memory_order_relaxed);
}

static void worker_free(process_worker *worker) {
    os_shared_unmap(worker->down, sizeof *worker->down);
    os_shared_unmap(worker->up, sizeof *worker->up);
    os_fd_close(worker->down_fd);
    os_fd_close(worker->up_fd);
    os_fd_close(worker->bell_fd);
    os_fd_close(worker->process_fd);
    receiver_fini(&worker->receiver);
    pthread_mutex_destroy(&worker->stream_lock);
    pthread_mutex_destroy(&worker->turn_lock);
    pthread_mutex_destroy(&worker->receive_lock);
    os_free(worker);
    supervisor_release_timer();
}

void worker_unref(process_worker *worker) {
    if (atomic_fetch_sub_explicit(&worker->references, 1, memory_order_acq_rel) == 1)
        worker_free(worker);
}

static void bell_rang(supervisor_source *source, const os_poller_event *event) {
    (void)event;
    worker_collect((process_worker *)((char *)source - offsetof(process_worker, bell)));
}

static int open_channel(process_worker *worker) {
    void *down = NULL, *up = NULL;
    int error = os_shared_new(OS_CHANNEL_DOWN, sizeof *worker->down, true,
                              &worker->down_fd, &down);
    worker->down = down;
    if (error == 0)
        error =
            os_shared_new(OS_CHANNEL_UP, sizeof *worker->up, false, &worker->up_fd, &up);
    worker->up = up;
    if (error == 0)
        error = os_bell_new(&worker->bell_fd);
    if (error == 0) {
        worker->bell = (supervisor_source){.ready = bell_rang, .fd = worker->bell_fd};
        error = supervisor_add(&worker->bell, true);
        if (error != 0)
            worker->bell.fd = -1;
    }
    return error;
}

/* An executed program may not be one that answers at all. */
static int64_t answer_limit_of(const process_pool *pool) {
    const pool_settings *settings = &pool->base.settings;
    return settings->start_method == PEBBLE_START_FORKSERVER && !pool->zygote_answered
               ? settings->initializer_timeout_ns
               : answer_limit_ns;
}

static int worker_new(process_pool *pool, process_worker **worker) {
    process_worker *made = os_alloc_zeroed(sizeof *made);
    if (made == NULL || supervisor_reserve_timer() != 0) {
        os_free(made);
        return ENOMEM;
    }
    made->pool = pool;
    made->references = 1;
    made->number = ++pool->last_number;
    made->state = WORKER_SPARE;
    made->down_fd = made->up_fd = made->bell_fd = made->process_fd = -1;
    made->bell.fd = made->process.fd = -1;
    made->event_at = CHANNEL_NEVER;
    made->observed = UINT64_MAX;
    made->overtaken = CHANNEL_NEVER;
    made->timer = (supervisor_timer){.expired = worker_deadline_came,
                                     .deadline_ns = OS_NO_DEADLINE};
    pthread_mutex_init(&made->receive_lock, NULL);
    pthread_mutex_init(&made->turn_lock, NULL);
    pthread_mutex_init(&made->stream_lock, NULL);
    int error = open_channel(made);
    if (error == 0) {
        sender_init(&made->sender, made->down, made->up);
        receiver_init(&made->receiver, made->up, made->down);
        error = zygote_spawn(pool, made);
    }
    if (error != 0) {
        supervisor_remove(&made->bell);
        worker_free(made);
        return error;
    }
    /* The zygote has its own by now. */
    os_fd_close(made->down_fd);
    os_fd_close(made->up_fd);
    made->down_fd = made->up_fd = -1;
    worker_set_limit(made, answer_limit_of(pool));
    made->starting = true;
    *worker = made;
    return 0;
}

void worker_note_started(process_worker *worker) {
    process_pool *pool = worker->pool;
    if (!worker->starting)
        return;
    worker->starting = false;
    pool->starting--;
    if (pool_wants_worker(pool) || pool_wants_spare(pool))
        pool_attend_soon(pool);
}

void worker_spawned(process_worker *worker, pid_t pid, int process_fd) {
    pthread_mutex_lock(&worker->pool->base.lock);
    worker_note_started(worker);
    worker->pool->zygote_answered = true;
    worker->observed = UINT64_MAX; /* from now on its first task can start */
    worker->pid = pid;
    worker->process_fd = process_fd;
    worker_watch_process(worker);
    sender_make_known(&worker->sender);
    bool exits = worker->state == WORKER_RETIRING && worker->in_flight == 0;
    if (worker->state < WORKER_KILLING && !exits) {
        worker->limit_ns = 0;
        supervisor_unset_timer(&worker->timer);
        worker_check_deadline(worker);
    }
    pthread_mutex_unlock(&worker->pool->base.lock);
}

static process_worker *find_in(process_worker *list, uint32_t number) {
    while (list != NULL && list->number != number)
        list = list->next;
    return list;
}

process_worker *worker_by_number(process_pool *pool, uint32_t number) {
    process_worker *found = NULL;
    pthread_mutex_lock(&pool->base.lock);
    for (int i = 0; i < pool->worker_count && found == NULL; i++) {
        if (pool->workers[i]->number == number)
            found = pool->workers[i];
    }
    if (found == NULL)
        found = find_in(pool->spares, number);
    if (found == NULL)
        found = find_in(pool->leaving, number);
    pthread_mutex_unlock(&pool->base.lock);
    return found;
}

/* ---- Places ---- */

static void push(process_worker **list, process_worker *worker) {
    worker->next = *list;
    *list = worker;
}

static bool remove_from(process_worker **list, process_worker *worker) {
    while (*list != NULL && *list != worker)
        list = &(*list)->next;
    if (*list == NULL)
        return false;
    *list = worker->next;
    worker->next = NULL;
    return true;
}

void worker_leave_place(process_worker *worker) {
    process_pool *pool = worker->pool;
    worker_make_busy(worker);
    for (int i = 0; i < pool->worker_count; i++) {
        if (pool->workers[i] == worker) {
            pool->workers[i] = pool->workers[--pool->worker_count];
            push(&pool->leaving, worker);
            return;
        }
    }
    if (remove_from(&pool->spares, worker)) {
        pool->spare_count--;
        push(&pool->leaving, worker);
    }
}

static void unref_retired(supervisor_retired *retired) {
    worker_unref((process_worker *)((char *)retired - offsetof(process_worker, retired)));
}

void worker_forget_gone(process_worker *worker) {
    pthread_mutex_lock(&worker->pool->base.lock);
    remove_from(&worker->pool->leaving, worker);
    pthread_mutex_unlock(&worker->pool->base.lock);
    supervisor_remove(&worker->process);
    supervisor_unset_timer(&worker->timer);
    worker->retired.destroy = unref_retired;
    supervisor_retire(&worker->retired);
}

/* Gives up its place to exit. */
static void leave_to_exit(process_worker *worker) {
    worker_leave_place(worker);
    if (!worker->orphaned)
        worker_set_limit(worker, exit_limit_ns);
}

/* Something runs at a worker's start that may fail or hang, or is not sure to be there: the first
 * task, be it an empty initializer, shows in time that the start is over. */
static bool needs_initializer(const process_pool *pool) {
    const pool_settings *settings = &pool->base.settings;
    return settings->initializer != NULL || pool->functions.by_name ||
           (settings->hooks != NULL && (settings->hooks->worker_start != NULL ||
                                        settings->hooks->after_fork_child != NULL));
}

static void keep_input(void *context) {
    (void)context;
}

/* Sends the initializer as the worker's first task. */
static bool send_initializer(process_worker *worker) {
    process_pool *pool = worker->pool;
    const pool_settings *settings = &pool->base.settings;
    pebble_future *future = future_new(&pool->base);
    if (future == NULL)
        return false;
    future->kind = TASK_INITIALIZER;
    future->function = (pebble_function)(void (*)(void))settings->initializer;
    future->timeout_ns = settings->initializer_timeout_ns;
    /* It stays where it is as long as the pool, which outlives the future. */
    future->input = settings->initializer_input;
    future->input_size = settings->initializer_input_size;
    future->release_input = keep_input;
    pebble_future_unref(future); /* nobody but the task has it */
    worker_send(worker, future);
    worker_arm(worker);
    sender_publish(&worker->sender);
    return true;
}

/* Gives the worker a place: from now on it serves. */
static void take_place(process_worker *worker) {
    process_pool *pool = worker->pool;
    worker->state = WORKER_SERVING;
    pool->workers[pool->worker_count++] = worker;
    worker->ready = !needs_initializer(pool);
    if (!worker->ready && !send_initializer(worker)) {
        worker_kill(worker); /* no memory now; another will be tried */
        return;
    }
    if (worker->streaming != NULL) /* goes on in workers_attend() */
        pool_attend_soon(pool);
    worker_make_idle(worker);
}

/* ---- Starting ---- */

bool pool_wants_spare(const process_pool *pool) {
    const pool_settings *settings = &pool->base.settings;
    /* Not before a second task has ended: a pool that is made for one needs none. */
    int wanted =
        settings->max_tasks != 0 && settings->max_tasks < 16 ? settings->max_workers : 1;
    if (wanted > SPARES_MAX)
        wanted = SPARES_MAX;
    return pool->spare_count < wanted && (pool->ended > 1 || pool->deaths > 0) &&
           !settings->single_call && !atomic_load(&pool->base.closed) && !pool->broken &&
           !pool->spare_died && pool->starting < STARTS_AT_ONCE &&
           pool->zygote_state == ZYGOTE_RUNS && pool->retry.deadline_ns == OS_NO_DEADLINE;
}

void pool_starts_are_well(process_pool *pool) {
    pool->refused_starts = 0;
    pool->retry_after_ns = 0;
}

void pool_start_refused(process_pool *pool, int error, ended_list *list) {
    char reason[256], text[128];
    snprintf(reason, sizeof reason, "workers cannot be started: %s",
             strerror_r(error, text, sizeof text));
    /* A spare that nobody waits for may be refused as often as you like. */
    if (pool->pending != NULL && pool->worker_count == 0 && pool->spares == NULL &&
        ++pool->refused_starts >= REFUSED_STARTS_MAX) {
        pool_break(pool, error, reason, list);
        return;
    }
    pool->retry_after_ns =
        pool->retry_after_ns == 0 ? retry_first_ns : pool->retry_after_ns * 2;
    if (pool->retry_after_ns > retry_last_ns)
        pool->retry_after_ns = retry_last_ns;
    supervisor_set_timer(&pool->retry, os_deadline_after(pool->retry_after_ns));
}

static process_worker *take_spare(process_pool *pool) {
    process_worker *worker = pool->spares;
    /* The oldest: it is the most likely to be there already. */
    while (worker != NULL && worker->next != NULL)
        worker = worker->next;
    if (worker != NULL) {
        remove_from(&pool->spares, worker);
        pool->spare_count--;
    }
    return worker;
}

/* Makes a spare without the lock; with it again, 0 or an errno value. */
static int make_spare(process_pool *pool) {
    process_worker *worker;
    pthread_mutex_unlock(&pool->base.lock);
    int error = worker_new(pool, &worker);
    pthread_mutex_lock(&pool->base.lock);
    if (error != 0)
        return error;
    push(&pool->spares, worker);
    pool->spare_count++;
    pool->starting++;
    return 0;
}

/* A worker for each task that waits, and not more at once than the zygote can do. */
static bool may_start(const process_pool *pool) {
    return pool->starting < STARTS_AT_ONCE &&
           (size_t)pool->starting < pool->pending_count + pool->ahead;
}

static int start_workers(process_pool *pool) {
    int error = 0;
    while (error == 0 && pool_wants_worker(pool) && pool->zygote_state == ZYGOTE_RUNS) {
        process_worker *worker = take_spare(pool);
        if (worker != NULL) {
            take_place(worker);
            dispatch(pool);
        } else if (may_start(pool)) {
            error = make_spare(pool);
        } else {
            break; /* goes on with the zygote's answer */
        }
    }
    while (error == 0 && pool_wants_spare(pool))
        error = make_spare(pool);
    while (pool->spares != NULL && (pool->stopping || pool->broken))
        worker_kill(pool->spares); /* made while the lock was not held */
    return error;
}

/* A pool that lost its zygote starts another when there is something to do. A new one is watched
 * from here on: sources belong to the supervisor's thread. */
static int renew_zygote(process_pool *pool) {
    int error = pool->zygote_error;
    pool->zygote_error = 0; /* of one before, if there is one now */
    if (pool->zygote_state == ZYGOTE_RUNS)
        return zygote_watch(pool);
    if (error != 0 || pool->zygote_state != ZYGOTE_NONE || pool->pending == NULL ||
        pool->retry.deadline_ns != OS_NO_DEADLINE)
        return error;
    pool->zygote_state = ZYGOTE_STARTING;
    pthread_mutex_unlock(&pool->base.lock);
    error = zygote_start_aside(pool);
    pthread_mutex_lock(&pool->base.lock);
    return error == 0 && pool->zygote_state == ZYGOTE_RUNS ? zygote_watch(pool) : error;
}

static void start(process_pool *pool, ended_list *list) {
    int error = renew_zygote(pool);
    if (error == 0)
        error = start_workers(pool);
    if (error == EBUSY) /* no room for a message just now */
        supervisor_set_timer(&pool->retry, os_deadline_after(resend_ns));
    else if (error != 0 && error != EPIPE) /* EPIPE: the zygote's loss will be reported */
        pool_start_refused(pool, error, list);
}

/* ---- Attending ---- */

/* One of the pool's workers that has something to collect or stream, referenced. */
static process_worker *find_neglected(process_pool *pool, int *from) {
    process_worker *found = NULL;
    pthread_mutex_lock(&pool->base.lock);
    for (; *from < pool->worker_count && found == NULL; (*from)++) {
        process_worker *worker = pool->workers[*from];
        bool passed = atomic_load_explicit(&worker->up->ended, memory_order_acquire) >
                      worker->event_at;
        if (worker->streaming != NULL || passed) {
            found = worker;
            worker_ref(worker);
        }
    }
    pthread_mutex_unlock(&pool->base.lock);
    return found;
}

static void let_idle_go(process_pool *pool) {
    if (pool->pending != NULL || !atomic_load(&pool->base.closed))
        return;
    for (int i = pool->worker_count;
         i-- > 0;) { /* down: those that leave are replaced by later */
        process_worker *worker = pool->workers[i];
        if (worker->state == WORKER_SERVING && worker->in_flight == 0 &&
            worker->streaming == NULL) /* its sender is in nobody's hands */
            worker_retire(worker);
    }
    while (pool->spares != NULL)
        worker_retire(pool->spares);
}

/* Workers that were retired and have ended their last task need no place to exit. */
static void free_places(process_pool *pool) {
    for (int i = pool->worker_count; i-- > 0;) {
        if (pool->workers[i]->state == WORKER_RETIRING && pool->workers[i]->in_flight == 0)
            leave_to_exit(pool->workers[i]);
    }
}

static void unref_finished(supervisor_retired *retired) {
    pool_unref((pebble_pool *)((char *)retired - offsetof(process_pool, retired)));
}

static bool is_over(const process_pool *pool) {
    return atomic_load(&pool->base.closed) && !pool->finished && pool->pending == NULL &&
           pool->worker_count == 0 && pool->spares == NULL && pool->leaving == NULL &&
           (pool->zygote_state == ZYGOTE_NONE || pool->zygote_watched) &&
           atomic_load(&pool->ending) == 0;
}

void pool_say_gone(process_pool *pool) {
    supervisor_unset_timer(&pool->retry);
    pool->retired.destroy = unref_finished;
    supervisor_retire(&pool->retired);
    pool_set_gone(&pool->base);
}

void workers_attend(process_pool *pool) {
    ended_list list = {0};
    process_worker *worker;
    pthread_mutex_lock(&pool->base.lock);
    bool finished = pool->finished;
    if (atomic_load(&pool->base.closed)) /* from now on it matters when a worker is done */
        workers_arm(pool);
    pthread_mutex_unlock(&pool->base.lock);
    if (finished)
        return;
    for (int i = 0; (worker = find_neglected(pool, &i)) != NULL;) {
        worker_collect(worker);
        worker_stream(worker);
        worker_unref(worker);
    }
    pthread_mutex_lock(&pool->base.lock);
    free_places(pool);
    start(pool, &list);
    let_idle_go(pool);
    pthread_mutex_unlock(&pool->base.lock);
    ended_run(pool, &list);

    pthread_mutex_lock(&pool->base.lock);
    bool over = is_over(pool);
    pool->finished |= over;
    pthread_mutex_unlock(&pool->base.lock);
    if (over && zygote_end(pool))
        pool_say_gone(pool);
}

/* ---- Ending ---- */

void worker_retire(process_worker *worker) {
    worker_make_busy(worker);
    worker->state = WORKER_RETIRING;
    sender_put_exit(&worker->sender);
    sender_publish(&worker->sender);
    if (worker->in_flight == 0)
        leave_to_exit(worker);
}

void worker_send_kill(process_worker *worker) {
    process_pool *pool = worker->pool;
    int error = zygote_kill(pool, worker, pool->base.settings.termination_grace_ns);
    worker->kill_unsent =
        error != 0 && error != EPIPE; /* EPIPE: its loss ends all workers */
    if (worker->kill_unsent)
        supervisor_set_timer(&worker->timer, os_deadline_after(resend_ns));
}

void worker_kill(process_worker *worker) {
    if (worker->state >= WORKER_KILLING)
        return;
    worker_make_busy(worker);
    if (worker->state == WORKER_SPARE)
        worker_leave_place(worker);
    worker->state = WORKER_KILLING;
    atomic_store_explicit(&worker->down->killing, 1, memory_order_relaxed);
    worker_send_kill(worker);
    worker_limit_kill(worker);
}

static void mark_stopping(pebble_future *future, stop_reason reason) {
    future->stop_reason = (uint8_t)reason;
    atomic_fetch_or(&future->word, FUTURE_STOPPING);
}

bool worker_stop_task(process_worker *worker, pebble_future *future, stop_reason reason,
                      bool sure) {
    worker_withdraw(worker, future);
    pebble_future *head = worker_head(worker);
    unsigned own = head != future && head->kind == TASK_INITIALIZER ? 2 : 1;
    if (worker->in_flight > own && !sure) { /* another has started: this one has ended */
        dispatch(worker->pool);
        return false;
    }
    mark_stopping(future, reason);
    worker_kill(worker);
    dispatch(worker->pool);
    return true;
}

/* What could not be taken back: one that runs, and before it what has ended and is not collected
 * yet. */
static void stop_what_is_left(process_worker *worker, stop_reason reason) {
    if (worker->state >= WORKER_KILLING)
        return;
    for (uint64_t sequence = worker->first; sequence < worker->sender.sequence;
         sequence++) {
        pebble_future *future = worker->tasks[sequence & (CHANNEL_SLOTS - 1)];
        if (future != NULL && future->kind != TASK_INITIALIZER)
            mark_stopping(future, reason);
    }
}

void workers_stop_all(process_pool *pool, stop_reason reason) {
    for (int i = 0; i < pool->worker_count; i++) {
        process_worker *worker = pool->workers[i];
        worker_withdraw(worker, NULL);
        stop_what_is_left(worker, reason);
        worker_kill(worker);
    }
    while (pool->spares != NULL)
        worker_kill(pool->spares);
    for (process_worker *worker = pool->leaving; worker != NULL; worker = worker->next)
        worker_kill(worker);
}

void worker_damaged(process_worker *worker) {
    pthread_mutex_lock(&worker->pool->base.lock);
    worker->damaged = true;
    worker_withdraw(worker, worker_head(worker));
    worker_kill(worker);
    dispatch(worker->pool);
    pthread_mutex_unlock(&worker->pool->base.lock);
}
