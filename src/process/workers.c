/* A worker's life in the program.
 *
 * Everything that changes which workers there are happens in the supervisor's thread, but for
 * telling them to end (worker_kill, worker_retire), which whoever holds the pool's lock may do.
 *
 * Stopping a task means ending its worker. First everything else is taken back from it, then one
 * looks whether the task is still the one that runs; so a kill costs no other task. The task's
 * future is STOPPING from then on, and ends when the zygote says that the worker's whole tree is
 * gone. If the zygote does not say that it has sent SIGKILL (it was stopped, or hangs), it is asked to
 * end with all workers when the grace and a margin are over, and killed after one more margin; the
 * loss of a zygote is dealt with as any other. The end itself is waited for: no other worker has to
 * go for a process that the kernel does not end.
 *
 * Only so many workers are asked of the zygote at a time (STARTS_AT_ONCE): a fork may take long, and
 * what else it is asked for waits behind them.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "process/crash.h"
#include "process/pool.h"
#include "process/tree.h"
#include "process/worker.h"

enum {
    /* Starts that fail in a row break the pool. That somebody killed a worker before its
     * initializer began says little of the next one. */
    FAILED_STARTS_MAX = 30,
    START_FAILED = 10,
    START_KILLED = 1,
    TRIES_MAX = 5,
    REFUSED_STARTS_MAX = 10,
    SPARES_MAX = 4,
    STARTS_AT_ONCE = 2, /* so that the zygote always has one to do */
};

static const int64_t kill_margin_ns = INT64_C(5000000000); /* for the zygote to report */
static const int64_t start_margin_ns =
    INT64_C(1000000000); /* for a worker to take a task */
static const int64_t exit_limit_ns = INT64_C(30000000000);   /* for an orderly exit */
static const int64_t answer_limit_ns = INT64_C(60000000000); /* for the zygote to fork */
static const int64_t resend_ns = INT64_C(5000000); /* a request that found no room */
static const int64_t retry_first_ns = INT64_C(10000000);
static const int64_t retry_last_ns = INT64_C(1000000000);

/* from_ns is not negative. */
static int64_t after(int64_t from_ns, int64_t timeout_ns) {
    return timeout_ns < INT64_MAX - from_ns ? from_ns + timeout_ns : INT64_MAX;
}

/* So long from now the worker must have gone. */
static void set_limit(process_worker *worker, int64_t limit_ns) {
    worker->limit_ns = os_deadline_after(limit_ns);
    if (worker->limit_ns < worker->timer.deadline_ns)
        supervisor_set_timer(&worker->timer, worker->limit_ns);
}

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

static void unref_retired(supervisor_retired *retired) {
    worker_unref((process_worker *)((char *)retired - offsetof(process_worker, retired)));
}

static void bell_rang(supervisor_source *source, const os_poller_event *event) {
    (void)event;
    worker_collect((process_worker *)((char *)source - offsetof(process_worker, bell)));
}

static void deadline_came(supervisor_timer *timer);
static void process_ended(supervisor_source *source, const os_poller_event *event);

static int open_channel(process_worker *worker) {
    void *down = NULL, *up = NULL;
    int error =
        os_shared_new("pebble-down", sizeof *worker->down, true, &worker->down_fd, &down);
    worker->down = down;
    if (error == 0)
        error = os_shared_new("pebble-up", sizeof *worker->up, false, &worker->up_fd, &up);
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
    made->timer =
        (supervisor_timer){.expired = deadline_came, .deadline_ns = OS_NO_DEADLINE};
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
    set_limit(made, answer_limit_of(pool));
    made->starting = true;
    *worker = made;
    return 0;
}

/* The zygote has answered, or never will. Under the lock. */
static void note_started(process_worker *worker) {
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
    note_started(worker);
    worker->pool->zygote_answered = true;
    worker->observed = UINT64_MAX; /* from now on its first task can start */
    worker->pid = pid;
    worker->process_fd = process_fd;
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

/* Takes the worker out of its place, or from the spares, to those that leave. */
static void leave_place(process_worker *worker) {
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

/* Gives up its place to exit. */
static void leave_to_exit(process_worker *worker) {
    leave_place(worker);
    set_limit(worker, exit_limit_ns);
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

static void refused(process_pool *pool, int error, ended_list *list) {
    char reason[256], text[128];
    snprintf(reason, sizeof reason, "workers cannot be started: %s",
             strerror_r(error, text, sizeof text));
    if (++pool->refused_starts >= REFUSED_STARTS_MAX && pool->worker_count == 0) {
        pool_break(pool, error, reason, list);
        return;
    }
    pool->retry_after_ns =
        pool->refused_starts <= 1 ? retry_first_ns : pool->retry_after_ns * 2;
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
    if (pool->zygote_state == ZYGOTE_RUNS)
        return zygote_watch(pool);
    int error = pool->zygote_error;
    pool->zygote_error = 0;
    if (error != 0 || pool->zygote_state != ZYGOTE_NONE || pool->pending == NULL ||
        pool->retry.deadline_ns != OS_NO_DEADLINE)
        return error;
    bool aside = zygote_start_may_block(pool);
    pool->zygote_state = ZYGOTE_STARTING;
    pthread_mutex_unlock(&pool->base.lock);
    error = aside ? zygote_start_aside(pool) : zygote_start(pool);
    pthread_mutex_lock(&pool->base.lock);
    return error != 0 || aside ? error : zygote_watch(pool);
}

static void start(process_pool *pool, ended_list *list) {
    int error = renew_zygote(pool);
    if (error == 0)
        error = start_workers(pool);
    if (error == EBUSY) /* no room for a message just now */
        supervisor_set_timer(&pool->retry, os_deadline_after(resend_ns));
    else if (error != 0 && error != EPIPE) /* EPIPE: the zygote's loss will be reported */
        refused(pool, error, list);
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
           pool->zygote_state != ZYGOTE_STARTING && atomic_load(&pool->ending) == 0;
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
    if (atomic_load(&pool->base.closed)) /* from now on it matters when a worker is done */
        workers_arm(pool);
    pthread_mutex_unlock(&pool->base.lock);
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

static void send_kill(process_worker *worker) {
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
        leave_place(worker);
    worker->state = WORKER_KILLING;
    atomic_store_explicit(&worker->down->killing, 1, memory_order_relaxed);
    send_kill(worker);
    set_limit(worker,
              after(worker->pool->base.settings.termination_grace_ns, kill_margin_ns));
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

/* ---- Deadlines ---- */

/* When the head task started, or since when it is known not to have: false. Once started it stays
 * so; and the stamp is the worker's, so it counts only if it can be true. */
static bool observe_start(process_worker *worker, const pebble_future *head,
                          int64_t now_ns) {
    int64_t start_ns = now_ns;
    bool same = worker->observed == head->sequence;
    if (same && worker->observed_started)
        return true;
    bool started = sender_started(&worker->sender, head->sequence, &start_ns);
    if (!same || started) {
        worker->observed = head->sequence;
        worker->observed_started = started;
        worker->observed_ns = start_ns > 0 && start_ns < now_ns ? start_ns : now_ns;
    }
    return started;
}

/* When to look at the head task next, which is to be acted upon if that is not after now_ns. A task
 * that does not start although its worker is there counts as hanging after a margin. */
static int64_t head_deadline(process_worker *worker, const pebble_future *head,
                             int64_t now_ns) {
    bool started = observe_start(worker, head, now_ns);
    int64_t deadline_ns = after(worker->observed_ns, head->timeout_ns);
    if (!started && worker->pid == 0)
        return OS_NO_DEADLINE; /* there is no process yet: it is looked at when there is */
    if (started || head->kind == TASK_INITIALIZER)
        return deadline_ns;
    if (now_ns < deadline_ns)
        return deadline_ns;
    /* It may start right after this look: the next ones come after as much time again each, so that
     * its deadline is late by no more than its start. */
    int64_t limit_ns = after(deadline_ns, start_margin_ns);
    int64_t next_ns = after(now_ns, now_ns - worker->observed_ns);
    return now_ns < limit_ns && next_ns < limit_ns ? next_ns : limit_ns;
}

/* The head task's time is over. Returns when to look again. */
static int64_t end_overdue(process_worker *worker, pebble_future *head, int64_t now_ns) {
    if (!worker->observed_started || head->kind == TASK_INITIALIZER) {
        /* Stopped between tasks, or stuck in its start: its tasks move, those behind the head at
         * once. The head may be one that denies its start, so it is judged when it is dead. */
        worker_withdraw(worker, head);
        worker_kill(worker);
        dispatch(worker->pool);
        return OS_NO_DEADLINE;
    }
    if (worker_stop_task(worker, head, STOP_TIMEOUT, worker->doubted))
        return OS_NO_DEADLINE;
    worker->doubted =
        true; /* its end has come, it seems: after collecting it will be known */
    return now_ns;
}

/* Returns when to look again. A task behind the head cannot start before that ends, so its deadline
 * is at the earliest so long from now: when that has come (at_deadline), from then on the worker
 * rings when the head has ended. What is overdue is ended only at_deadline, when all that the worker
 * had sent by then is collected: the end of the head may be among it. */
static int64_t check_tasks(process_worker *worker, int64_t now_ns, bool at_deadline) {
    pebble_future *head = worker_head(worker);
    int64_t next_ns = OS_NO_DEADLINE;
    if (head == NULL || worker->state >= WORKER_KILLING)
        return OS_NO_DEADLINE;
    if (worker->timed > (head->timeout_ns != 0)) {
        if (!at_deadline && !worker->watch_head)
            next_ns = after(now_ns, worker->least_timeout_ns);
        worker->watch_head |= at_deadline;
    }
    if (head->timeout_ns != 0) {
        int64_t deadline_ns = head_deadline(worker, head, now_ns);
        if (deadline_ns <= now_ns && at_deadline)
            deadline_ns = end_overdue(worker, head, now_ns);
        if (deadline_ns < next_ns)
            next_ns = deadline_ns;
    }
    return next_ns;
}

static void set_timer_if_earlier(process_worker *worker, int64_t deadline_ns) {
    if (deadline_ns < worker->timer.deadline_ns && worker->state != WORKER_DEAD)
        supervisor_set_timer(&worker->timer, deadline_ns);
}

void worker_check_deadline(process_worker *worker) {
    worker->doubted = false;
    if (worker->timed > 0)
        set_timer_if_earlier(worker, check_tasks(worker, os_now_ns(), false));
}

/* It should have gone by now. */
static void end_late(process_worker *worker) {
    process_pool *pool = worker->pool;
    bool retiring = worker->state == WORKER_RETIRING;
    worker->limit_ns = 0;
    if (worker->orphaned)
        return; /* its own zygote is gone, its pidfd will tell */
    if (retiring) {
        worker_kill(worker); /* it does not exit */
        return;
    }
    int64_t end_ns = after(zygote_ask_end(pool), kill_margin_ns);
    if (os_now_ns() < end_ns && pool->zygote_answered) /* else it has no workers to end */
        worker->limit_ns = end_ns;
    else
        zygote_signal_end(pool);
}

static void deadline_came(supervisor_timer *timer) {
    process_worker *worker =
        (process_worker *)((char *)timer - offsetof(process_worker, timer));
    process_pool *pool = worker->pool;
    worker_ref(worker);
    pthread_mutex_lock(&pool->base.lock);
    bool doubted = worker->doubted; /* collecting resets it, if it finds an end */
    pthread_mutex_unlock(&pool->base.lock);
    worker_collect(worker);
    pthread_mutex_lock(&pool->base.lock);
    worker->doubted = doubted && worker->doubted;
    int64_t now_ns = os_now_ns();
    if (worker->limit_ns != 0 && now_ns >= worker->limit_ns)
        end_late(worker);
    if (worker->kill_unsent)
        send_kill(worker);
    int64_t next_ns = check_tasks(worker, now_ns, true);
    if (worker->limit_ns != 0 && worker->limit_ns < next_ns)
        next_ns = worker->limit_ns;
    set_timer_if_earlier(worker, next_ns);
    worker_arm(worker);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the worker's before it looks */
    bool passed =
        atomic_load_explicit(&worker->up->ended, memory_order_acquire) > worker->event_at;
    pthread_mutex_unlock(&pool->base.lock);
    if (passed)
        worker_collect(worker);
    worker_unref(worker);
}

/* ---- Death ---- */

static void describe_death(pebble_failure *failure, int status, char *message,
                           size_t size) {
    failure->kind = PEBBLE_ERR_TASK_EXPIRED;
    failure->message = message;
    if (WIFSIGNALED(status)) {
        failure->signal = WTERMSIG(status);
        failure->exit_code = -failure->signal;
        const char *name = sigabbrev_np(failure->signal);
        snprintf(message, size, "process %d died unexpectedly: signal %d (SIG%s)",
                 failure->pid, failure->signal, name != NULL ? name : "?");
    } else {
        failure->exit_code = WEXITSTATUS(status);
        snprintf(message, size, "process %d died unexpectedly: exit code %d",
                 failure->pid, failure->exit_code);
    }
}

/* The task that was running when the process died of itself. */
static void expire(process_worker *worker, pebble_future *future, int status,
                   ended_list *list) {
    char message[128];
    int crash_signal = 0;
    pebble_failure failure = {.pid = worker->pid};
    describe_death(&failure, status, message, sizeof message);
    char *backtrace = crash_report_text(
        (const crash_report *)(const void *)worker->up->crash, &crash_signal);
    if (failure.signal == 0 || crash_signal != failure.signal) {
        os_free(backtrace);
        backtrace = NULL;
    }
    future->pid = worker->pid;
    future_set_failure(future, &failure, backtrace);
    ended_add(worker->pool, list, future, FUTURE_FINISHED);
}

static void start_failed(process_pool *pool, int counts, int code, const char *reason,
                         ended_list *list) {
    pool->failed_starts += counts;
    if (pool->failed_starts >= FAILED_STARTS_MAX)
        pool_break(pool, code, reason, list);
}

static void initializer_died(process_worker *worker, int status, bool killed,
                             ended_list *list) {
    process_pool *pool = worker->pool;
    char death[128], reason[TASK_MESSAGE_SIZE];
    pebble_failure failure = {.pid = worker->pid};
    int64_t start_ns;
    bool started =
        sender_started(&worker->sender, worker_head(worker)->sequence, &start_ns);
    describe_death(&failure, status, death, sizeof death);
    const char *executed = pool->functions.by_name ? " (does the executed program's main "
                                                     "call pebble_worker_main() first?)"
                                                   : "";
    if (killed)
        snprintf(reason, sizeof reason, "%s took longer than %.3f s%s",
                 started ? "the initializer" : "the worker's start",
                 (double)pool->base.settings.initializer_timeout_ns / 1e9,
                 started ? "" : executed);
    else
        snprintf(reason, sizeof reason, "%s%s%s%s",
                 started ? "the initializer failed" : "the worker ended before it served",
                 started ? "" : executed, worker->pid != 0 ? ": " : "",
                 worker->pid != 0 ? death : ""); /* else there never was a process */
    bool by_others = worker->pid != 0 && !killed && !started && failure.signal == SIGKILL;
    int counts = by_others ? START_KILLED : START_FAILED;
    start_failed(pool, counts, failure.exit_code, reason, list);
}

void worker_initialized(process_worker *worker, const receiver_end *end,
                        ended_list *list) {
    process_pool *pool = worker->pool;
    char reason[TASK_MESSAGE_SIZE];
    worker->ready = !end->failed;
    if (!end->failed) {
        pool->failed_starts = pool->zygotes_lost = 0;
        return;
    }
    worker_make_busy(worker);
    worker_withdraw(worker, NULL);
    if (worker->state == WORKER_SERVING) /* it exits by itself */
        worker->state = WORKER_RETIRING;
    const char *bytes =
        end->result.data != NULL ? end->result.data : (const char *)end->result.small;
    snprintf(reason, sizeof reason, "the initializer failed: %.*s", (int)end->result.size,
             bytes);
    start_failed(pool, START_FAILED, end->code, reason, list);
}

/* Whether the task is lost with its worker: it ran, or, though it says that it did not, it was the
 * next in so many workers that died that it is not to be tried for ever. */
static bool is_lost(process_worker *worker, pebble_future *head) {
    int64_t start_ns;
    if (sender_started(&worker->sender, head->sequence, &start_ns))
        return true;
    if (worker->victims != NULL) /* it died for another's sake */
        return false;
    return ++head->tries >= TRIES_MAX;
}

/* Takes the tasks for which it was killed out of the table: they end when the tree is gone. */
static void keep_victims(process_worker *worker) {
    for (uint64_t sequence = worker->sender.sequence; sequence-- > worker->first;) {
        pebble_future *future = worker->tasks[sequence & (CHANNEL_SLOTS - 1)];
        if (future == NULL || future_state(future) != FUTURE_STOPPING)
            continue;
        worker_forget(worker, future);
        future->place = PLACE_TAKEN;
        future->end_state =
            future->stop_reason == STOP_CANCEL ? FUTURE_CANCELLED : FUTURE_FINISHED;
        future->next = worker->victims;
        worker->victims = future;
    }
}

/* What the dead worker had; error is not 0 if it never lived. */
static void settle_tasks(process_worker *worker, int status, int error, bool was_killed,
                         ended_list *list) {
    process_pool *pool = worker->pool;
    keep_victims(worker);
    pebble_future *head = worker_head(worker);
    if (head != NULL && head->kind == TASK_INITIALIZER) {
        /* One that was lost with its zygote shows nothing of the initializer: that loss is counted. */
        if (!pool->stopping && error == 0 && worker->victims == NULL && !worker->blameless)
            initializer_died(worker, status, was_killed, list);
        worker_forget(worker, head);
        ended_add(pool, list, head, FUTURE_CANCELLED);
    } else if (head != NULL && error == 0 && is_lost(worker, head)) {
        worker_forget(worker, head);
        expire(worker, head, status, list);
    }
    /* Only the first can have started. */
    for (uint64_t sequence = worker->sender.sequence; sequence-- > worker->first;) {
        pebble_future *future = worker->tasks[sequence & (CHANNEL_SLOTS - 1)];
        if (future != NULL)
            move_to_pending(worker, future);
    }
}

/* What came back to a pool that runs no more tasks ends here. */
static void fail_returned(process_pool *pool, ended_list *list) {
    pebble_failure failure = {.kind = PEBBLE_ERR_BROKEN,
                              .message = pool->broken_reason,
                              .code = pool->broken_code};
    if (pool->broken || pool->stopping)
        pending_fail_all(pool, pool->broken ? &failure : NULL, list);
}

/* It had not begun yet when it found no memory: as if it could not have been started. */
static bool was_refused(process_worker *worker, int status) {
    pebble_future *head = worker_head(worker);
    int64_t start_ns;
    return WIFEXITED(status) && WEXITSTATUS(status) == WORKER_REFUSED &&
           (head == NULL || !sender_started(&worker->sender, head->sequence, &start_ns));
}

void worker_died(process_worker *worker, int status, int error) {
    process_pool *pool = worker->pool;
    ended_list list = {0};
    worker_collect(worker);
    supervisor_remove(&worker->bell);
    pthread_mutex_lock(&worker->stream_lock);
    pthread_mutex_lock(&pool->base.lock);
    if (error == 0 && was_refused(worker, status))
        error = ENOMEM;
    worker_state before = worker->state;
    leave_place(worker);
    worker->state = WORKER_DEAD;
    supervisor_unset_timer(&worker->timer);
    worker->streaming = NULL;
    note_started(worker);
    pool->spare_died |= before == WORKER_SPARE && error == 0;
    settle_tasks(worker, status, error, before == WORKER_KILLING, &list);
    pool->deaths += error == 0 && before <= WORKER_SERVING;
    if (error != 0)
        refused(pool, error, &list);
    else
        pool->refused_starts = 0;
    fail_returned(pool, &list);
    dispatch(pool);
    pool_attend_soon(pool);
    pthread_mutex_unlock(&pool->base.lock);
    pthread_mutex_unlock(&worker->stream_lock);
    ended_run(pool, &list);
}

static void end_victim(process_worker *worker, pebble_future *victim, ended_list *list) {
    process_pool *pool = worker->pool;
    char message[96];
    pebble_failure failure = {.pid = worker->pid};
    victim->pid = worker->pid;
    switch (victim->stop_reason) {
    case STOP_TIMEOUT:
        failure.kind = PEBBLE_ERR_TASK_TIMEOUT;
        failure.timeout_ns = victim->timeout_ns;
        failure.message = message;
        snprintf(message, sizeof message, "%s of %.3f s",
                 pebble_error_text(PEBBLE_ERR_TASK_TIMEOUT),
                 (double)victim->timeout_ns / 1e9);
        break;
    case STOP_CANCEL:
        failure.kind = PEBBLE_ERR_TASK_CANCELLED;
        break;
    default:
        failure.kind = PEBBLE_ERR_BROKEN;
        failure.message = pool->broken_reason;
        failure.code = pool->broken_code;
    }
    future_set_failure(victim, &failure, NULL);
    ended_add(pool, list, victim, victim->end_state);
}

void worker_kill_sent(process_worker *worker) {
    pthread_mutex_lock(&worker->pool->base.lock);
    if (worker->state == WORKER_KILLING)
        worker->limit_ns = 0; /* now it is the kernel that must end it */
    pthread_mutex_unlock(&worker->pool->base.lock);
}

void worker_gone(process_worker *worker) {
    process_pool *pool = worker->pool;
    ended_list list = {0};
    pthread_mutex_lock(&pool->base.lock);
    remove_from(&pool->leaving, worker);
    while (worker->victims != NULL) {
        pebble_future *victim = worker->victims;
        worker->victims = victim->next;
        end_victim(worker, victim, &list);
    }
    pool_attend_soon(pool);
    pthread_mutex_unlock(&pool->base.lock);
    supervisor_remove(&worker->process);
    supervisor_unset_timer(&worker->timer);
    worker->retired.destroy = unref_retired;
    supervisor_retire(&worker->retired);
    ended_run(pool, &list);
}

/* ---- The loss of the zygote: its workers are killed, and their pidfds tell ---- */

static void process_ended(supervisor_source *source, const os_poller_event *event) {
    process_worker *worker =
        (process_worker *)((char *)source - offsetof(process_worker, process));
    (void)event;
    worker_died(worker, SIGKILL, 0);
    worker_gone(worker);
}

/* A worker that the lost zygote will report no more. */
static void orphan(process_worker *worker) {
    if (worker->state == WORKER_DEAD) {
        worker_gone(worker);
        return;
    }
    worker->process =
        (supervisor_source){.ready = process_ended, .fd = worker->process_fd};
    if (worker->process_fd >= 0) {
        tree_kill(worker->pid, worker->process_fd);
        if (supervisor_add(&worker->process, false) == 0)
            return;
        worker->process.fd = -1;
    }
    worker_died(worker, SIGKILL, 0);
    worker_gone(worker);
}

static process_worker *first_unorphaned(process_worker *list) {
    while (list != NULL && list->orphaned)
        list = list->next;
    return list;
}

static process_worker *any_unorphaned(process_pool *pool) {
    for (int i = 0; i < pool->worker_count; i++) {
        if (!pool->workers[i]->orphaned)
            return pool->workers[i];
    }
    process_worker *found = first_unorphaned(pool->spares);
    return found != NULL ? found : first_unorphaned(pool->leaving);
}

void workers_orphaned(process_pool *pool) {
    for (;;) {
        pthread_mutex_lock(&pool->base.lock);
        process_worker *worker = any_unorphaned(pool);
        if (worker != NULL) {
            worker->orphaned = true;
            worker->blameless =
                pool->zygote_asked_ns == 0 && worker->state != WORKER_KILLING;
        }
        pthread_mutex_unlock(&pool->base.lock);
        if (worker == NULL)
            return;
        orphan(worker); /* it is still there: only this thread lets workers go */
    }
}
