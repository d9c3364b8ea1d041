/* A pool of processes, inside. Its subjects, a file each:
 *
 *   process_pool.c   what the public face asks for: schedule, cancel, close, stop, info
 *   dispatch.c       which worker gets which task; taking back; what workers are to ring for
 *   collect.c        ends of tasks, from the workers' rings to the futures; waiting
 *   workers.c        a worker's life in the program: start, place, kill
 *   deadlines.c      when a worker is to be looked at: its tasks' deadlines, its own end
 *   deaths.c         what becomes of tasks when their worker dies
 *   zygote_client.c  the pool's zygote: start, requests, replies, loss
 *
 * Locks, in the order in which they may be taken: a worker's turn_lock, its receive_lock, the pool's
 * lock, the supervisor's lock. A worker's stream_lock stands for itself: it is held while an input is copied
 * into the ring, with no other lock, and the pool's lock may be taken within it.
 *
 * Where a task is (changed under the pool's lock only):
 *
 *   pending   in pool->pending; future->worker is NULL
 *   sent      in worker->tasks[sequence]; future->worker is set
 *   taken     in neither: whoever took it out ends it, without the lock (pool->ending counts)
 *
 *   pending → sent      dispatch
 *   sent → pending      taken back (the slot's compare-and-swap won), or the worker died before
 *                       it started the task
 *   pending → taken     cancel, stop, break
 *   sent → taken        its end was received; cancel (taken back); the worker died
 *
 * A worker's life, under the pool's lock:
 *
 *   SPARE → SERVING         it takes a place: from now on it gets tasks, the first of them its
 *                           initializer. (Its process may not be there yet: the ring is.)
 *   SERVING → RETIRING      told to exit: the pool is closed, or it has done its max_tasks
 *   SPARE, SERVING, RETIRING → KILLING   told the zygote to end it
 *   any → DEAD              its process has ended; its place is free, its tasks are settled
 *   DEAD → gone             its tree has ended; victims' futures end; freed with the last
 *                           reference
 */
#ifndef PEBBLE_PROCESS_POOL_H
#define PEBBLE_PROCESS_POOL_H

#include "channel/receiver.h"
#include "channel/sender.h"
#include "core/task.h"
#include "process/function.h"
#include "process/process_pool.h"
#include "process/supervisor.h"
#include "process/zygote.h"

typedef struct process_pool process_pool;

typedef enum worker_state {
    WORKER_SPARE,
    WORKER_SERVING,
    WORKER_RETIRING,
    WORKER_KILLING,
    WORKER_DEAD
} worker_state;

typedef struct process_worker {
    process_pool *pool;
    struct process_worker *next; /* in pool->idle, spares or leaving: in one of them at most */
    _Atomic uint32_t references; /* the pool's, and of those who collect or stream */
    uint32_t number;
    worker_state state;
    bool is_idle;              /* in pool->idle */
    bool ready;                /* its initializer succeeded */
    pid_t pid;                 /* 0: not known yet */
    supervisor_source process; /* its pidfd */
    int process_fd;            /* -1: none */

    /* The channel. */
    channel_down *down;
    channel_up *up;
    int down_fd, up_fd; /* until the zygote has them */
    int bell_fd;
    supervisor_source bell;
    channel_sender sender;
    pthread_mutex_t receive_lock;
    pthread_mutex_t turn_lock; /* the supervisor's while it waits for one of the other two */
    _Atomic bool supervisor_waits;
    channel_receiver receiver; /* under receive_lock */
    _Atomic bool receiving;    /* a result has begun to come and is not complete */
    _Atomic bool damaged;

    /* Tasks sent and not ended: those in [first, sender.sequence) that are not NULL. */
    pebble_future *tasks[CHANNEL_SLOTS];
    uint64_t first;
    unsigned in_flight;
    unsigned wanted;      /* of these, how many somebody waits for or has a callback on */
    unsigned lent;        /* of these, how many have an input to be released */
    uint64_t tasks_given; /* users' tasks, for max_tasks */
    uint64_t event_at;    /* as armed in the channel */

    /* The deadline of the task that runs, or before it is known: the earliest that it can be. */
    supervisor_timer timer;
    unsigned timed;           /* tasks sent and not ended that have a timeout */
    int64_t least_timeout_ns; /* none of theirs is shorter */
    bool watch_head; /* ring when the head has ended: a deadline behind it depends on that */
    bool doubted;    /* it seems to have ended its head, but has not said so */
    uint64_t overtaken; /* the head task that another seemed to have overtaken, or CHANNEL_NEVER */
    uint64_t observed;     /* the head task that was seen last, */
    bool observed_started; /* whether it had started, */
    int64_t observed_ns;   /* and when it did, or was first seen not to have */

    /* An input that is too large for the ring. */
    pthread_mutex_t stream_lock;
    pebble_future *streaming; /* under the pool's lock; stays sent until the stream is over */
    _Atomic size_t streamed; /* bytes of it in the ring; changed under stream_lock */

    int64_t limit_ns; /* 0, or when it must have gone */
    bool starting;    /* the zygote has not answered yet */
    bool kill_unsent; /* KILLING: the zygote has not been asked yet */
    bool reminded;    /* its limit was over before: the zygote has one more margin */
    bool kill_begun;  /* KILLING: SIGKILL is on its way */
    bool ended;       /* its process, as its pidfd told; the zygote will report it */
    bool orphaned;    /* its zygote is lost, and will report it no more */
    bool blameless; /* orphaned, and not since it, or its zygote, took too long to start */

    /* DEAD. */
    pebble_future *victims; /* tasks that were STOPPING, by next: end when the tree is gone */

    _Atomic bool has_leader; /* a thread waits on the channel, see collect.c */

    supervisor_retired retired;
} process_worker;

struct process_pool {
    pebble_pool base; /* its lock is "the pool's lock" */
    function_table functions;

    bool stopping, broken;
    char broken_reason[TASK_MESSAGE_SIZE];
    int broken_code;

    pebble_future *pending, *pending_last;
    uint64_t pending_count;

    /* Workers that serve, retire or are being killed; those in slots [0, worker_count). */
    process_worker **workers;
    int worker_count;
    int serving;          /* of these, SERVING */
    int turn;             /* where the search for room goes on */
    process_worker *idle; /* SERVING without tasks; the last used first */
    process_worker *spares;
    int spare_count;
    process_worker *leaving; /* hold no place any more, but are not gone */
    unsigned ahead;          /* tasks sent behind others, over all workers */
    int64_t task_ns;         /* how long tasks take, lately */
    bool task_ns_known;
    _Atomic bool tasks_are_short; /* short enough to spin for */
    _Atomic int64_t ending;       /* futures taken and not yet ended */
    _Atomic unsigned interest;    /* in pending tasks and tasks ahead, see dispatch.c */

    uint64_t ended, deaths;
    uint64_t victims; /* tasks of dead workers that end when the tree is gone */
    uint32_t last_number;
    int failed_starts; /* in a row, see FAILED_STARTS_MAX */
    int refused_starts; /* workers that the system refused while tasks waited for one, in a row */
    int starting;    /* asked of the zygote, without an answer yet */
    bool spare_died; /* by itself: none is made until a worker has served */

    /* The zygote. */
    _Atomic int zygote_state; /* zygote_phase; changed under the lock */
    int zygotes_lost;         /* since a task last ended, see ZYGOTES_LOST_MAX */
    pid_t zygote_pid;
    int zygote_fd, zygote_process_fd; /* its socket and its pidfd; -1: none */
    bool zygote_answered;             /* it has started a worker */
    int64_t zygote_asked_ns;          /* when it was asked to end; 0: it was not */
    int zygote_error;                 /* errno: it could not be started aside */
    bool zygote_watched;
    supervisor_source zygote_socket;
    supervisor_source zygote_process;

    supervisor_job attend;  /* what remains to be done in the supervisor's thread */
    supervisor_timer retry; /* after the system refused a process or a descriptor */
    int64_t retry_after_ns;
    supervisor_retired retired;
    bool finished; /* closed, and nothing but the zygote is left */
};

typedef enum zygote_phase { ZYGOTE_NONE, ZYGOTE_STARTING, ZYGOTE_RUNS } zygote_phase;

static inline process_pool *process_pool_of(pebble_pool *pool) {
    return (process_pool *)pool;
}

/* The worker's process, to be shown: it may run before the zygote's word of it is read. 0: it does not run
 * yet. */
static inline pid_t worker_pid(const process_worker *worker) {
    int32_t said = atomic_load_explicit(&worker->up->pid, memory_order_relaxed);
    return worker->pid != 0 ? worker->pid : said > 0 ? said : 0;
}

/* ---- process_pool.c ---- */

/* Ends futures that were taken out under the lock: a list by next. Without locks. */
typedef struct ended_list {
    pebble_future *first, *last;
} ended_list;

/* Puts a future, whose outcome is in place, on the list. state as of future_end(). Under the
 * lock. */
void ended_add(process_pool *pool, ended_list *list, pebble_future *future,
               uint32_t state);
void ended_run(process_pool *pool, ended_list *list);

/* Has the supervisor do what remains to be done, see workers_attend(). Under the lock. */
void pool_attend_soon(process_pool *pool);

/* Takes everything pending out, with the failure (NULL: cancelled). Under the lock. */
void pending_fail_all(process_pool *pool, const pebble_failure *failure, ended_list *list);

/* The pool takes no more tasks and its futures fail. Under the lock. */
void pool_break(process_pool *pool, int code, const char *reason, ended_list *list);

/* ---- dispatch.c: under the pool's lock ---- */

void pending_append(process_pool *pool, pebble_future *future);
void pending_prepend(process_pool *pool, pebble_future *future);
void pending_remove(process_pool *pool, pebble_future *future);

/* Sends pending tasks while there is room for them. */
void dispatch(process_pool *pool);

/* Sends one task to a worker, whatever its state. */
void worker_send(process_worker *worker, pebble_future *future);

/* Puts a serving worker among those that get the next tasks. */
void worker_make_idle(process_worker *worker);

/* Takes it out from there. */
void worker_make_busy(process_worker *worker);

/* Takes a task out of a worker's table. */
void worker_forget(process_worker *worker, pebble_future *future);

/* Takes a task back that has not started, out of the worker's table. False: it has, or it cannot
 * be taken back. */
bool worker_take_back(process_worker *worker, pebble_future *future);

/* A task waits and there is a place for one more worker. */
bool pool_wants_worker(const process_pool *pool);

/* Puts a task that has not started from a worker's table to the front of pending. */
void move_to_pending(process_worker *worker, pebble_future *future);

/* Takes back all tasks that have not started, but keep, and puts them first in pending. */
void worker_withdraw(process_worker *worker, const pebble_future *keep);

/* Arms what the worker is to ring the supervisor for. */
void worker_arm(process_worker *worker);

/* Arms all. True if one has passed already what it is armed for: it may not ring for that. */
bool workers_arm(process_pool *pool);

/* The first task in the worker's table; NULL if there is none. */
pebble_future *worker_head(process_worker *worker);

/* ---- collect.c: without locks ---- */

/* Receives what the worker has sent and ends the futures concerned. */
void worker_collect(process_worker *worker);

/* Goes on with an input that did not fit into the ring. */
void worker_stream(process_worker *worker);

pebble_error process_pool_wait(pebble_pool *pool, pebble_future *future,
                               int64_t deadline_ns);
void process_pool_look(pebble_pool *pool, pebble_future *future);
void process_pool_want(pebble_pool *pool, pebble_future *future);

/* ---- workers.c ---- */

void worker_ref(process_worker *worker);
void worker_unref(process_worker *worker);

/* Nothing of a finished pool runs any more: lets those who join it go. Supervisor's thread. */
void pool_say_gone(process_pool *pool);

/* A spare is to be made. Under the lock. */
bool pool_wants_spare(const process_pool *pool);

/* What remains to be done in the supervisor's thread, without locks: starts workers and spares,
 * goes on with large inputs, collects where a bell was missed, lets idle workers of a closed pool
 * go, finishes the pool when nothing of it runs any more. */
void workers_attend(process_pool *pool);

/* The system refuses workers: another is tried after a while, or the pool breaks; until one has been started
 * and has done something. Under the lock. */
void pool_starts_are_well(process_pool *pool);
void pool_start_refused(process_pool *pool, int error, ended_list *list);

/* The zygote's answer: the process is there. process_fd may be -1. */
void worker_spawned(process_worker *worker, pid_t pid, int process_fd);

/* The zygote has answered, or never will. Under the lock. */
void worker_note_started(process_worker *worker);

/* Takes the worker out of its place, or from the spares, to those that leave. Under the lock. */
void worker_leave_place(process_worker *worker);

/* It is gone: the pool lets go of it. Supervisor's thread, no locks. */
void worker_forget_gone(process_worker *worker);

/* Supervisor's thread, in which alone workers go; takes the lock. */
process_worker *worker_by_number(process_pool *pool, uint32_t number);

/* Stops a task that was sent to the worker: ends the worker's processes, which ends the task for
 * the reason. False, unless sure: it seems to have ended meanwhile, collect and look again; if it
 * is still there then, be sure. Under the lock. */
bool worker_stop_task(process_worker *worker, pebble_future *future, stop_reason reason,
                      bool sure);

/* Ends the worker's process. Under the lock. */
void worker_kill(process_worker *worker);

/* Asks the zygote for that; if there is no room for the message now, it is sent again. Under the lock. */
void worker_send_kill(process_worker *worker);

/* Takes back or stops all tasks of all workers, and ends the workers. Under the lock. */
void workers_stop_all(process_pool *pool, stop_reason reason);

/* Tells a serving worker to exit when it has done the tasks that it has. Under the lock. */
void worker_retire(process_worker *worker);

/* The same, if it has been given its max_tasks and their input is sent. Under the lock. */
void worker_retire_if_used_up(process_worker *worker);

/* The worker must be ended because of what it wrote. Without locks. */
void worker_damaged(process_worker *worker);

/* ---- deadlines.c ---- */

/* So long from now the worker must have gone; the zygote must have told of its end; the zygote must have
 * begun to kill it. Under the lock. */
void worker_set_limit(process_worker *worker, int64_t limit_ns);
void worker_limit_report(process_worker *worker);
void worker_limit_kill(process_worker *worker);

/* Sets the timer for the next look at the deadlines of the worker's tasks. Under the lock. */
void worker_check_deadline(process_worker *worker);

/* The worker's timer. Supervisor's thread, no locks. */
void worker_deadline_came(supervisor_timer *timer);

/* ---- deaths.c: supervisor's thread, without locks but where another is named ---- */

/* Its process has ended (status as of waitpid()), or never came to be (error is not 0). */
void worker_died(process_worker *worker, int status, int error);
void worker_gone(process_worker *worker);

/* The zygote is killing it and its tree, however large that is. */
void worker_kill_sent(process_worker *worker);

/* The initializer of a worker has ended. Under the lock. */
void worker_initialized(process_worker *worker, const receiver_end *end, ended_list *list);

/* Has the supervisor see its process end: the zygote reports that, if it does not hang; and what it does
 * not live to report is seen so. False: there is no descriptor of it, or no room. */
bool worker_watch_process(process_worker *worker);

/* The zygote is lost: its workers end, too, and their ends are waited for without it. */
void workers_orphaned(process_pool *pool);

/* ---- zygote_client.c ---- */

/* Forks or executes the pool's zygote, which may block. In a thread that schedules; no locks;
 * zygote_state is STARTING. 0 or an errno value. */
int zygote_start(process_pool *pool);

/* The same in a thread of its own; an errno value if that cannot be. No locks. */
int zygote_start_aside(process_pool *pool);

/* Has the supervisor hear the zygote, if it does not yet. Supervisor's thread, under the lock. An
 * errno value: the zygote has been given up. */
int zygote_watch(process_pool *pool);

/* Asks for a worker. Supervisor's thread. EBUSY: there is no room for a message now. */
int zygote_spawn(process_pool *pool, process_worker *worker);

/* Asks to end a worker. Any thread, under the pool's lock. */
int zygote_kill(process_pool *pool, process_worker *worker, int64_t grace_ns);

/* Asks the zygote, once, to end with all workers: it does not do its work. Returns when that was, on
 * the monotonic clock. Under the lock. */
int64_t zygote_ask_end(process_pool *pool);

/* Has the zygote go on if somebody has stopped it. */
void zygote_continue(process_pool *pool);

/* Kills the zygote: it does not end, or has nothing left to look after. */
void zygote_signal_end(process_pool *pool);

/* Ends the zygote of a finished pool. True if there is none; else pool_say_gone() is called when
 * it has gone. Supervisor's thread. */
bool zygote_end(process_pool *pool);

#endif
