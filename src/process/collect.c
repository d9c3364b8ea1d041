/* From the workers' rings to the futures.
 *
 * Anyone may collect: the supervisor when a bell rings, a thread that waits for a future, one that
 * looks at it. The receive_lock of the worker makes it one at a time; what was received is settled
 * under the pool's lock, in batches, and the futures are ended after both.
 *
 * A waiting thread and its worker: the first thread that waits for one of a worker's tasks leads.
 * It collects, spins a little if tasks are short, and then sleeps on the channel's ring_count and
 * on its future's word at once, with futex_at set to its task: the worker wakes it directly, the
 * supervisor has no part in it. Others who wait for tasks of the same worker sleep on their
 * future's word alone and are marked as wanted, so that the worker rings the supervisor for them.
 * Every other way for a future to end (death, timeout, cancel) goes through its word. If the
 * leader leaves, futex_at is cleared and it collects once more: what the worker rang it for
 * meanwhile is not lost.
 *
 * A worker may write results, and read inputs, as fast as the program does the opposite, and without
 * end. So both go in turns of TURN_BYTES, between which the supervisor has time for others and a
 * waiting thread looks at its deadline. Whoever leaves something undone rings the worker's bell.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/interrupt.h"
#include "core/task.h"
#include "process/pool.h"

enum {
    BATCH = 64,
    TURN_BYTES = CHANNEL_RING,   /* after so much of one worker, others have their turn */
    SPIN_NS = 30 * 1000,         /* about what it costs to sleep and be woken */
    SPIN_IF_TASK_NS = 50 * 1000, /* longer tasks are not worth a spin */
    SPIN_ROUNDS = 32,
    LOOKED_AFTER = 16, /* other workers that a waiting thread collects from in passing */
};

/* ---- Settling ---- */

static void learn_duration(process_pool *pool, const receiver_end *end) {
    int64_t measured =
        end->duration_ns < INT64_MAX / 16 ? (int64_t)end->duration_ns : INT64_MAX / 16;
    if (!pool->task_ns_known)
        pool->task_ns = measured;
    else if (measured > pool->task_ns) /* up fast, down slowly: long ones get none ahead */
        pool->task_ns += (measured - pool->task_ns) / 4;
    else
        pool->task_ns -= (pool->task_ns - measured) / 16;
    pool->task_ns_known = true;
    atomic_store_explicit(&pool->tasks_are_short, pool->task_ns < SPIN_IF_TASK_NS,
                          memory_order_relaxed);
}

static void set_failure(pebble_future *future, const receiver_end *end, pid_t pid) {
    char message[TASK_MESSAGE_SIZE];
    const char *bytes =
        end->result.data != NULL ? end->result.data : (const char *)end->result.small;
    size_t size =
        end->result.size < sizeof message ? end->result.size : sizeof message - 1;
    pebble_failure failure = {
        .kind = PEBBLE_ERR_TASK_FAILED, .code = end->code, .pid = pid};
    memcpy(message, bytes, size);
    message[size] = '\0';
    failure.message = message;
    if (end->no_memory)
        failure = (pebble_failure){.kind = PEBBLE_ERR_NO_MEMORY,
                                   .pid = pid,
                                   .message = "out of memory for the task's result"};
    future_set_failure(future, &failure, NULL);
}

/* Its input is not in the ring as a whole: it cannot have ended. */
static bool is_streaming(process_worker *worker, const pebble_future *future) {
    return worker->streaming == future &&
           atomic_load_explicit(&worker->streamed, memory_order_acquire) <
               future->input_size;
}

/* The task that can end now: the first, or one behind those that are being stopped, which stay with the
 * worker whatever it says of them. */
static pebble_future *next_to_end(process_worker *worker, uint64_t sequence) {
    pebble_future *future = worker_head(worker);
    if (future == NULL || future->sequence >= sequence ||
        future_state(future) != FUTURE_STOPPING || sequence >= worker->sender.sequence)
        return future;
    return worker->tasks[sequence & (CHANNEL_SLOTS - 1)];
}

/* A task's end as its worker tells it. False: no such task can have ended. */
static bool settle(process_worker *worker, receiver_end *end, ended_list *list) {
    process_pool *pool = worker->pool;
    pebble_future *future = next_to_end(worker, end->sequence);
    if (future == NULL || future->sequence != end->sequence ||
        is_streaming(worker, future))
        return false;
    pool->spare_died = false;
    if (future->kind == TASK_INITIALIZER) {
        worker_forget(worker, future);
        worker_initialized(worker, end, list);
        future_set_result(future, &end->result);
        ended_add(pool, list, future, FUTURE_FINISHED);
        return true;
    }
    learn_duration(pool, end);
    pool->failed_starts = 0;
    pool->zygotes_lost = 0;
    pool_starts_are_well(pool);
    if (future_state(future) == FUTURE_STOPPING)
        return true; /* too late: it ends with its worker */
    worker_forget(worker, future);
    future->pid = worker_pid(worker);
    if (end->failed || end->no_memory)
        set_failure(future, end, future->pid);
    else
        future_set_result(future, &end->result);
    ended_add(pool, list, future, FUTURE_FINISHED);
    return true;
}

/* Settles a batch. Returns true if more has come meanwhile that the worker will not ring for. */
static bool settle_all(process_worker *worker, receiver_end *ends, size_t count,
                       ended_list *list) {
    process_pool *pool = worker->pool;
    bool sound = true;
    pthread_mutex_lock(&pool->base.lock);
    for (size_t i = 0; i < count; i++) {
        sound = sound && settle(worker, &ends[i], list);
        result_bytes_fini(&ends[i].result);
    }
    if (count > 0) /* else only the worker says that something has ended */
        worker->doubted = false;
    worker->watch_head = false;
    worker_check_deadline(worker);
    dispatch(pool);
    worker_arm(worker);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the worker's before it looks */
    bool passed =
        atomic_load_explicit(&worker->up->ended, memory_order_acquire) > worker->event_at;
    bool has_data = receiver_has_data(&worker->receiver);
    if (passed && !has_data) { /* it has skipped what it was armed for: now there is room */
        dispatch(pool);
        worker_arm(worker);
    }
    if (pool_wants_spare(pool) ||
        (count > 0 && pool->base.closed && pool->pending == NULL))
        pool_attend_soon(pool);
    worker->damaged |= !sound;
    pthread_mutex_unlock(&pool->base.lock);
    return passed && has_data && sound;
}

/* A lock of the worker that others may take again and again: the supervisor comes first, for
 * deadlines may depend on it. */
static void lock_in_turn(process_worker *worker, pthread_mutex_t *lock) {
    if (supervisor_is_here()) {
        pthread_mutex_lock(&worker->turn_lock);
        atomic_store_explicit(&worker->supervisor_waits, true, memory_order_relaxed);
        pthread_mutex_lock(lock);
        atomic_store_explicit(&worker->supervisor_waits, false, memory_order_relaxed);
        pthread_mutex_unlock(&worker->turn_lock);
        return;
    }
    if (atomic_load_explicit(&worker->supervisor_waits, memory_order_relaxed)) {
        pthread_mutex_lock(&worker->turn_lock);
        pthread_mutex_unlock(&worker->turn_lock);
    }
    pthread_mutex_lock(lock);
}

/* It has passed the task for which it was to ring, be it that it skipped it. */
static bool has_rung(const process_worker *worker) {
    return atomic_load_explicit(&worker->up->ended, memory_order_acquire) >
           atomic_load_explicit(&worker->down->event_at, memory_order_relaxed);
}

/* One batch; its bytes are taken off left. True if there may be more. */
static bool collect_once(process_worker *worker, int64_t *left) {
    receiver_end ends[BATCH];
    ended_list list = {0};
    size_t count = 0;
    receiver_status status = RECEIVER_ENDED;
    lock_in_turn(worker, &worker->receive_lock);
    uint32_t from = worker->receiver.head;
    while (count < BATCH && worker->receiver.head - from < CHANNEL_RING &&
           (status = receiver_next(&worker->receiver, &ends[count])) == RECEIVER_ENDED)
        count++;
    *left -= worker->receiver.head - from;
    receiver_release(&worker->receiver);
    /* Within the lock: ends are settled in the order in which they were received. */
    bool passed =
        (count > 0 || has_rung(worker)) && settle_all(worker, ends, count, &list);
    bool damaged = worker->damaged || status == RECEIVER_DAMAGED;
    atomic_store_explicit(&worker->receiving, worker->receiver.in_task,
                          memory_order_relaxed);
    pthread_mutex_unlock(&worker->receive_lock);
    ended_run(worker->pool, &list);
    if (damaged)
        worker_damaged(worker);
    return !damaged && (status == RECEIVER_ENDED || status == RECEIVER_MORE || passed);
}

/* ---- Large inputs ---- */

/* Copies as long as the worker makes room, a turn's bytes at most; then asks it to ring. True: so
 * much is in the ring. */
static bool stream_on(process_worker *worker, const void *input, size_t turn_end) {
    for (;;) {
        size_t before = atomic_load(&worker->streamed);
        atomic_store(&worker->down->space_wanted, 1);
        atomic_thread_fence(
            memory_order_seq_cst); /* pairs with the worker's when it frees */
        if (sender_stream(&worker->sender, input, turn_end, &worker->streamed))
            return true; /* the task may have ended by now, and its future */
        if (atomic_load(&worker->streamed) == before)
            return false;
        atomic_store(&worker->down->space_wanted, 0); /* no rings while this goes on */
    }
}

static void end_stream(process_worker *worker) {
    atomic_store(&worker->down->space_wanted, 0);
    pthread_mutex_lock(&worker->pool->base.lock);
    worker->streaming = NULL;
    worker_retire_if_used_up(worker);
    dispatch(worker->pool);
    if (atomic_load(&worker->pool->base.closed))
        pool_attend_soon(worker->pool); /* now it may be told to exit */
    pthread_mutex_unlock(&worker->pool->base.lock);
}

/* A turn of an input. True if there is more to do, which the caller has to see to. */
static bool stream_turn(process_worker *worker) {
    process_pool *pool = worker->pool;
    bool turn_done = false;
    lock_in_turn(worker, &worker->stream_lock);
    pthread_mutex_lock(&pool->base.lock);
    pebble_future *future = worker->state != WORKER_DEAD ? worker->streaming : NULL;
    pthread_mutex_unlock(&pool->base.lock);
    /* Until all of it is in the ring the input stays: a task can end before only with its worker,
     * see worker_died(), which waits for the stream_lock. */
    size_t from = atomic_load(&worker->streamed);
    size_t input_size = future != NULL ? future->input_size : 0;
    size_t turn_end = input_size;
    if (future != NULL && input_size - from > TURN_BYTES)
        turn_end = from + TURN_BYTES;
    if (future != NULL)
        turn_done = stream_on(worker, future->input, turn_end);
    if (turn_done && turn_end == input_size)
        end_stream(worker);
    pthread_mutex_unlock(&worker->stream_lock);
    return turn_done && turn_end < input_size;
}

/* ---- Turns ---- */

/* True if there may be more to do, which the caller has to see to. */
static bool collect_turn(process_worker *worker) {
    int64_t left = TURN_BYTES;
    bool more;
    do
        more = collect_once(worker, &left);
    while (more && left > 0);
    if (atomic_load_explicit(&worker->down->space_wanted, memory_order_relaxed) != 0)
        more |= stream_turn(worker);
    return more;
}

void worker_collect(process_worker *worker) {
    if (collect_turn(worker))
        supervisor_ring(&worker->bell, worker->bell_fd);
}

void worker_stream(process_worker *worker) {
    if (stream_turn(worker))
        supervisor_ring(&worker->bell, worker->bell_fd);
}

/* ---- Waiting ---- */

/* Only for a worker that runs, on another processor, and tends to be done soon or is just writing
 * its result. */
static bool worth_spinning(const process_worker *worker) {
    bool soon =
        atomic_load_explicit(&worker->pool->tasks_are_short, memory_order_relaxed) ||
        atomic_load_explicit(&worker->receiving, memory_order_relaxed);
    return os_spinning_helps() && soon &&
           (atomic_load_explicit(&worker->up->task_sleep, memory_order_relaxed) & 1) ==
               0 &&
           atomic_load_explicit(&worker->up->cpu, memory_order_relaxed) !=
               os_current_processor();
}

/* Spins until there is something to collect or the future has ended, for a while. */
static bool spin_for(process_worker *worker, pebble_future *future, int64_t deadline_ns) {
    int64_t until_ns = os_now_ns() + SPIN_NS;
    if (deadline_ns < until_ns)
        until_ns = deadline_ns;
    do {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            if (receiver_has_data(&worker->receiver) || future_ended(future) ||
                sender_can_stream(&worker->sender))
                return true;
            os_spin_pause();
        }
    } while (os_now_ns() < until_ns);
    return false;
}

/* Other workers may run out of tasks while this thread waits for one of them. */
static void collect_others(process_pool *pool) {
    process_worker *others[LOOKED_AFTER];
    int count = 0;
    if (atomic_load_explicit(&pool->interest, memory_order_relaxed) == 0)
        return;
    pthread_mutex_lock(&pool->base.lock);
    for (int i = 0; i < pool->worker_count && count < LOOKED_AFTER; i++) {
        if (receiver_has_data(&pool->workers[i]->receiver)) {
            others[count++] = pool->workers[i];
            worker_ref(pool->workers[i]);
        }
    }
    pthread_mutex_unlock(&pool->base.lock);
    while (count > 0) {
        worker_collect(others[--count]);
        worker_unref(others[count]);
    }
}

/* One round of the leader's wait; word is the future's, seen before its place was checked.
 * ETIMEDOUT, ENOSYS, EINTR, or 0 to look again. */
static int lead_once(process_worker *worker, pebble_future *future, uint64_t sequence,
                     uint32_t word, int64_t deadline_ns) {
    if (collect_turn(worker) || future_ended(future))
        return 0;
    collect_others(worker->pool);
    if (worth_spinning(worker) && spin_for(worker, future, deadline_ns))
        return 0;
    uint32_t rings = atomic_load(&worker->up->ring_count);
    atomic_store(&worker->down->futex_at, sequence);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the worker's before it looks */
    if (receiver_has_data(&worker->receiver) || sender_can_stream(&worker->sender))
        return 0;
    uint32_t waiting = word | FUTURE_WAITERS;
    if (word != waiting && !atomic_compare_exchange_strong(&future->word, &word, waiting))
        return 0;
    return os_futex_wait_both(&future->word, waiting, &worker->up->ring_count, rings,
                              deadline_ns);
}

/* Still with the worker that the leader waits on, and that may be trusted? If it moves later, its
 * word changes. It may have moved and come back: to another place. */
static bool is_with(process_worker *worker, pebble_future *future, uint64_t *sequence) {
    pthread_mutex_lock(&worker->pool->base.lock);
    bool with = future->worker == worker && worker->state < WORKER_KILLING;
    *sequence = future->sequence;
    pthread_mutex_unlock(&worker->pool->base.lock);
    return with;
}

static int lead(process_worker *worker, pebble_future *future, int64_t deadline_ns) {
    uint64_t sequence;
    int error = 0;
    for (;;) {
        uint32_t word = atomic_load_explicit(&future->word, memory_order_acquire);
        if ((word & FUTURE_ENDED) != 0 || !is_with(worker, future, &sequence))
            break;
        error = lead_once(worker, future, sequence, word, deadline_ns);
        if (error == ETIMEDOUT || error == ENOSYS || interrupt_ends_wait(error))
            break;
        error = 0;
        /* Not only the sleep: a worker may keep this thread from it. */
        if (deadline_ns != OS_NO_DEADLINE && os_now_ns() >= deadline_ns) {
            error = ETIMEDOUT;
            break;
        }
    }
    atomic_store(&worker->down->futex_at, CHANNEL_NEVER);
    atomic_store(&worker->has_leader, false);
    atomic_thread_fence(
        memory_order_seq_cst); /* what it rang this thread for is seen below */
    worker_collect(worker);
    return error;
}

/* The worker whose channel this thread may wait on, referenced; else the future is marked as
 * wanted, and its end will be told on its word. */
static process_worker *take_lead(process_pool *pool, pebble_future *future,
                                 bool may_lead) {
    process_worker *leads = NULL;
    bool passed = false;
    pthread_mutex_lock(&pool->base.lock);
    process_worker *worker = future->worker;
    bool free_lead = false;
    if (may_lead && worker != NULL && worker->state < WORKER_KILLING &&
        atomic_compare_exchange_strong(&worker->has_leader, &free_lead, true)) {
        leads = worker;
        worker_ref(worker);
    } else if (!future->wanted) {
        future->wanted = true;
        if (worker != NULL) {
            worker->wanted++;
            worker_arm(worker);
            atomic_thread_fence(memory_order_seq_cst);
            passed = atomic_load_explicit(&worker->up->ended, memory_order_acquire) >
                     worker->event_at;
            if (passed)
                worker_ref(worker);
        }
    }
    pthread_mutex_unlock(&pool->base.lock);
    if (passed) {
        worker_collect(worker);
        worker_unref(worker);
    }
    return leads;
}

pebble_error process_pool_wait(pebble_pool *base, pebble_future *future,
                               int64_t deadline_ns) {
    process_pool *pool = process_pool_of(base);
    bool may_lead = true;
    while (!future_ended(future)) {
        process_worker *worker = take_lead(pool, future, may_lead);
        if (worker == NULL) {
            collect_others(pool);
            if (future_ended(future))
                break;
            return future_wait_error(future_sleep(future, deadline_ns));
        }
        int error = lead(worker, future, deadline_ns);
        worker_unref(worker);
        may_lead = error != ENOSYS;
        if (error == ETIMEDOUT || error == EINTR)
            return future_ended(future) ? PEBBLE_OK : future_wait_error(error);
    }
    return PEBBLE_OK;
}

void process_pool_want(pebble_pool *base, pebble_future *future) {
    take_lead(process_pool_of(base), future, false);
}

void process_pool_look(pebble_pool *base, pebble_future *future) {
    process_pool *pool = process_pool_of(base);
    pthread_mutex_lock(&pool->base.lock);
    process_worker *worker = future->worker;
    bool unread = worker != NULL && receiver_has_data(&worker->receiver);
    if (unread)
        worker_ref(worker);
    pthread_mutex_unlock(&pool->base.lock);
    if (unread) {
        worker_collect(worker);
        worker_unref(worker);
    }
}
