/* When a worker is to be looked at: the deadlines of its tasks, and by when it must have gone.
 *
 * A worker has one timer, set to the earliest time at which anything of it can be due, and never put
 * off by a task: what it finds early it sets itself for again. Everything here runs under the pool's
 * lock, but for worker_deadline_came(), which takes it.
 *
 * If the zygote does not do its part in time, it is told to go on, as it may have been stopped, or frozen
 * with the program, and has one more margin. If it has not said by then that it has begun to kill, or that
 * it has forked, it is asked to end with all workers, and killed after one more margin; the loss of a zygote
 * is dealt with as any other. The end of a process is waited for: no other worker has to go for one that
 * the kernel does not end, or of which a debugger keeps the zygote from hearing.
 */
#include "process/pool.h"
#include "process/tree.h"

static const int64_t kill_margin_ns = INT64_C(5000000000); /* for the zygote to report */
static const int64_t frozen_ns =
    INT64_C(1000000000); /* so late only somebody is who could not run */
static const int64_t start_margin_ns =
    INT64_C(1000000000); /* for a worker to take a task */

/* from_ns is not negative. */
static int64_t after(int64_t from_ns, int64_t timeout_ns) {
    return timeout_ns < INT64_MAX - from_ns ? from_ns + timeout_ns : INT64_MAX;
}

void worker_set_limit(process_worker *worker, int64_t limit_ns) {
    worker->limit_ns = os_deadline_after(limit_ns);
    worker->reminded = false;
    if (worker->limit_ns < worker->timer.deadline_ns)
        supervisor_set_timer(&worker->timer, worker->limit_ns);
}

void worker_limit_report(process_worker *worker) {
    worker_set_limit(worker, kill_margin_ns);
}

void worker_limit_kill(process_worker *worker) {
    if (worker->orphaned)
        return; /* it has less time */
    int64_t grace_ns = worker->pool->base.settings.termination_grace_ns;
    worker_set_limit(worker, after(grace_ns, kill_margin_ns));
}

/* ---- The deadlines of tasks ---- */

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

/* Whether a task behind the head has begun: then the end of the head has been told. */
static bool is_overtaken(process_worker *worker, const pebble_future *head) {
    if (head == NULL || worker->state >= WORKER_KILLING)
        return false;
    for (uint64_t sequence = head->sequence + 1; sequence < worker->sender.sequence;
         sequence++) {
        if (sender_runs(&worker->sender, sequence))
            return true;
    }
    return false;
}

/* Called after all was collected that the worker had sent: what was overtaken at the last call and has not
 * ended is not told of any more, and would hold up the deadlines of those behind it. */
static bool has_lost_end(process_worker *worker) {
    const pebble_future *head = worker_head(worker);
    uint64_t before = worker->overtaken;
    worker->overtaken =
        worker->timed > 0 && is_overtaken(worker, head) ? head->sequence : CHANNEL_NEVER;
    return worker->overtaken != CHANNEL_NEVER && worker->overtaken == before;
}

static void set_timer_if_earlier(process_worker *worker, int64_t deadline_ns) {
    if (deadline_ns < worker->timer.deadline_ns && worker->state != WORKER_DEAD)
        supervisor_set_timer(&worker->timer, deadline_ns);
}

void worker_check_deadline(process_worker *worker) {
    if (worker->timed > 0)
        set_timer_if_earlier(worker, check_tasks(worker, os_now_ns(), false));
}

/* ---- The timer ---- */

/* It should have gone by now. A zygote that has not answered yet has no workers to lose; but if this is
 * seen so late that the program cannot have run meanwhile, the zygote may not have either. */
static void end_late(process_worker *worker, int64_t now_ns) {
    process_pool *pool = worker->pool;
    bool kills = worker->state == WORKER_KILLING && !worker->kill_begun;
    bool was_frozen = now_ns - worker->limit_ns > frozen_ns;
    if (!worker->reminded && (pool->zygote_answered || was_frozen)) {
        worker->reminded = true;
        worker->limit_ns = after(now_ns, kill_margin_ns);
        zygote_continue(pool);
        return;
    }
    worker->limit_ns = 0;
    if (worker->ended && !kills)
        return;
    if (worker->state == WORKER_RETIRING) {
        worker_kill(worker); /* it does not exit */
        return;
    }
    int64_t end_ns = after(zygote_ask_end(pool), kill_margin_ns);
    if (now_ns < end_ns && pool->zygote_answered)
        worker->limit_ns = end_ns;
    else
        zygote_signal_end(pool);
}

void worker_deadline_came(supervisor_timer *timer) {
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
    bool late = worker->limit_ns != 0 && now_ns >= worker->limit_ns;
    bool kills = late && worker->orphaned; /* its own zygote is gone */
    if (kills)
        worker->limit_ns = 0;
    else if (late)
        end_late(worker, now_ns);
    if (worker->kill_unsent)
        worker_send_kill(worker);
    int64_t next_ns = check_tasks(worker, now_ns, true);
    bool damaged = has_lost_end(worker);
    if (worker->overtaken != CHANNEL_NEVER && !damaged)
        next_ns = now_ns; /* collects once more */
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
    if (damaged)
        worker_damaged(worker);
    if (kills)
        tree_kill(worker->pid, worker->process_fd);
    worker_unref(worker);
}
