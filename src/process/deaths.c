/* What becomes of tasks when their worker dies, and of workers when their zygote does.
 *
 * Everything here runs in the supervisor's thread, but for worker_initialized(). A worker that has died
 * is settled at once: the task that ran ends as expired (also those before it, if the worker has damaged
 * what it told of their ends), all others go back to pending. The tasks for which it was killed, its
 * victims, end when nothing of its tree is left (worker_gone()).
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
};

static const int64_t tie_limit_ns =
    INT64_C(200000000); /* for a worker to follow its zygote */

/* ---- What they died of ---- */

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
    pebble_failure failure = {.pid = worker_pid(worker)};
    describe_death(&failure, status, message, sizeof message);
    char *backtrace = crash_report_text(
        (const crash_report *)(const void *)worker->up->crash, &crash_signal);
    if (failure.signal == 0 || crash_signal != failure.signal) {
        os_free(backtrace);
        backtrace = NULL;
    }
    future->pid = failure.pid;
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
    pebble_failure failure = {.pid = worker_pid(worker)};
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
                 started ? "" : executed, failure.pid != 0 ? ": " : "",
                 failure.pid != 0 ? death : ""); /* else there never was a process */
    bool by_others = failure.pid != 0 && !killed && !started && failure.signal == SIGKILL;
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
    if (worker->state == WORKER_SERVING) /* it exits by itself */
        worker->state = WORKER_RETIRING;
    worker_make_busy(worker);
    worker_withdraw(worker, NULL);
    pool_attend_soon(pool); /* its place is free, also if it had nothing to give back */
    const char *bytes =
        end->result.data != NULL ? end->result.data : (const char *)end->result.small;
    snprintf(reason, sizeof reason, "the initializer failed: %.*s", (int)end->result.size,
             bytes);
    start_failed(pool, START_FAILED, end->code, reason, list);
}

/* ---- A worker is dead ---- */

/* Whether the task is lost with its worker: it ran, or, though it says that it did not, it was the
 * next in so many workers that died that it is not to be tried for ever. A worker of which the zygote did
 * not tell has run none (sender_make_known()); how many zygotes may be lost is counted elsewhere. */
static bool is_lost(process_worker *worker, pebble_future *head) {
    int64_t start_ns;
    if (worker->pid == 0)
        return false;
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
        future->pid = worker_pid(worker);
        future->end_state =
            future->stop_reason == STOP_CANCEL ? FUTURE_CANCELLED : FUTURE_FINISHED;
        future->next = worker->victims;
        worker->victims = future;
        worker->pool->victims++;
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
    /* Only the first can have started, unless what was told of the end of those before was damaged, or
     * the worker, of which there is no descriptor, lives on: they do not run twice. */
    for (uint64_t sequence = worker->sender.sequence; sequence-- > worker->first;) {
        pebble_future *future = worker->tasks[sequence & (CHANNEL_SLOTS - 1)];
        if (future == NULL)
            continue;
        if (sender_withdraw(&worker->sender, sequence) ||
            !sender_runs(&worker->sender, sequence)) {
            move_to_pending(worker, future);
            continue;
        }
        worker_forget(worker, future);
        expire(worker, future, status, list);
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
    supervisor_remove(&worker->process);
    pthread_mutex_lock(&worker->stream_lock);
    pthread_mutex_lock(&pool->base.lock);
    if (error == 0 && was_refused(worker, status))
        error = ENOMEM;
    worker_state before = worker->state;
    worker_leave_place(worker);
    worker->state = WORKER_DEAD;
    supervisor_unset_timer(&worker->timer);
    worker->streaming = NULL;
    worker_note_started(worker);
    pool->spare_died |= before == WORKER_SPARE && error == 0;
    settle_tasks(worker, status, error, before == WORKER_KILLING, &list);
    pool->deaths += error == 0 && before <= WORKER_SERVING;
    if (error != 0)
        pool_start_refused(pool, error, &list);
    else
        pool_starts_are_well(pool);
    fail_returned(pool, &list);
    dispatch(pool);
    pool_attend_soon(pool);
    pthread_mutex_unlock(&pool->base.lock);
    pthread_mutex_unlock(&worker->stream_lock);
    ended_run(pool, &list);
}

/* ---- Its tree is gone ---- */

static void end_victim(process_worker *worker, pebble_future *victim, ended_list *list) {
    process_pool *pool = worker->pool;
    char message[96];
    pebble_failure failure = {.pid = worker_pid(worker)};
    victim->pid = failure.pid;
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
    worker->kill_begun = true;
    if (worker->ended)
        worker_limit_report(worker);
    else if (worker->state == WORKER_KILLING)
        worker->limit_ns = 0; /* now it is the kernel that must end it */
    pthread_mutex_unlock(&worker->pool->base.lock);
}

void worker_gone(process_worker *worker) {
    process_pool *pool = worker->pool;
    ended_list list = {0};
    pthread_mutex_lock(&pool->base.lock);
    while (worker->victims != NULL) {
        pebble_future *victim = worker->victims;
        worker->victims = victim->next;
        pool->victims--;
        end_victim(worker, victim, &list);
    }
    pool_attend_soon(pool);
    pthread_mutex_unlock(&pool->base.lock);
    worker_forget_gone(worker);
    ended_run(pool, &list);
}

/* ---- Its process has ended, as its pidfd tells ---- */

static void process_ended(supervisor_source *source, const os_poller_event *event) {
    process_worker *worker =
        (process_worker *)((char *)source - offsetof(process_worker, process));
    (void)event;
    supervisor_remove(source);
    if (worker->orphaned) {
        siginfo_t info; /* its end is the program's to wait for if that adopts: as process 1 does */
        waitid((idtype_t)P_PIDFD, (id_t)worker->process_fd, &info, WEXITED | WNOHANG);
        worker_died(worker, SIGKILL, 0);
        worker_gone(worker);
        return;
    }
    pthread_mutex_lock(&worker->pool->base.lock);
    worker->ended = true;
    if (worker->state != WORKER_KILLING || worker->kill_begun)
        worker_limit_report(worker);
    else
        zygote_continue(worker->pool); /* the limit for its kill may be long */
    pthread_mutex_unlock(&worker->pool->base.lock);
}

bool worker_watch_process(process_worker *worker) {
    if (worker->process_fd < 0)
        return false;
    worker->process =
        (supervisor_source){.ready = process_ended, .fd = worker->process_fd};
    if (supervisor_add(&worker->process, false) == 0)
        return true;
    worker->process.fd = -1;
    return false;
}

/* ---- The loss of the zygote: its workers end, too ---- */

/* A worker that the lost zygote will report no more. It ends by itself, or is ended after a while. */
static void orphan(process_worker *worker) {
    if (worker->state == WORKER_DEAD) {
        worker_gone(worker);
        return;
    }
    if (worker->process.fd >= 0 || worker_watch_process(worker))
        return;
    if (worker->process_fd >= 0)
        tree_kill(worker->pid, worker->process_fd);
    /* Without a descriptor there is nobody to ask whether it has died. */
    atomic_store_explicit(&worker->down->killing, 1, memory_order_relaxed);
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
            worker_make_busy(worker);
            if (worker->state == WORKER_SPARE)
                worker_leave_place(worker);
            worker_set_limit(worker, tie_limit_ns);
        }
        pthread_mutex_unlock(&pool->base.lock);
        if (worker == NULL)
            return;
        orphan(worker); /* it is still there: only this thread lets workers go */
    }
}
