/* The zygote's loop.
 *
 * A worker's entry, from SPAWN to GONE, and what it still has to report:
 *
 *   running → dying (told to KILL: SIGTERM sent to the tree, SIGKILL when the grace is over)
 *   running, dying → dead (reaped) → gone (nothing of its tree is left; entry removed)
 *
 * What a worker leaves behind becomes the zygote's own child, since the zygote is a subreaper too: a
 * worker's children when it is dead, but those of its descendants from the moment that it exits, which
 * may take long (exit_mm()). A child of the zygote that is no worker, an orphan, is therefore what some
 * dead or exiting worker left; a live worker's orphans never come here, they become the worker's. If it
 * was in a worker's tree when that got its SIGTERM it has the rest of the same grace; else it is killed
 * at once. The worker is not gone before all its orphans have ended.
 *
 * Whose an orphan is: when a sweep first finds it, it is counted to the workers that may have left it.
 * Those are the ones that are exiting, have died since the last sweep, or have orphans, since what an
 * orphan leaves in its turn is its worker's, too. If there are several, and it was found in the tree of one,
 * it is that one's. Nobody who comes into that state later waits for it. So a worker may wait for another's;
 * but such have got their SIGKILL.
 *
 * The zygote looks for orphans at once when a worker has died or a grace is over; when an orphan has died,
 * so that such looks take a fifth of its time at most: there may be thousands.
 *
 * A process that the system does not let us signal (it has become another user's, as with sudo) is
 * not ours to end: nobody waits for it, nor for what is below it, which is killed once.
 *
 * Requests are read one at a time, and at most one worker is forked a turn: a fork may take long, and
 * deaths, kills and replies are not to wait for many of them. For the same reason a signal goes through
 * a tree in steps, one a turn (tree.h), and what has died is reaped so many a turn.
 *
 * Replies are bits of the entry that are cleared when sent: a full socket loses none, and nothing
 * is queued.
 *
 * If the program ends (its pidfd, or the socket's end), every worker's tree is killed at once, and
 * the zygote goes. If the zygote is killed, the program or they themselves end the workers (tie.c).
 */
#include "process/zygote.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "platform/platform.h"
#include "process/crash.h"
#include "process/tree.h"
#include "process/worker.h"

enum {
    REPORT_SPAWNED = 1,
    REPORT_FAILED = 2,
    REPORT_KILLED = 4,
    REPORT_DIED = 8,
    REPORT_GONE = 16
};

enum {
    REAPED_A_TURN = 256,
    STEPS_A_TURN = 4,
    SWEEP_SHARE = 4 /* so much more time for other things than for sweeps */
};

/* To try again what the system had no room for: a message (a full socket is waited for), a sweep. */
static const int64_t retry_ns = 5 * 1000 * 1000;

typedef struct zygote_worker {
    uint32_t number;
    pid_t pid;
    int pid_fd; /* until it is sent */
    int status; /* once dead; or the errno of a failed fork */
    bool dead;
    bool dying;
    int64_t kill_at_ns; /* dying: when the grace is over; OS_NO_DEADLINE once it is */
    tree_walk tree;     /* the signal on its way */
    pid_set orphans;    /* that it left, or may have left; not reaped, not foreign */
    bool leaves; /* new orphans may be of it: it has some, is exiting, or has died lately */
    unsigned reports;
} zygote_worker;

typedef struct zygote_state {
    const zygote_setup *setup;
    int program_fd; /* pidfd */
    zygote_worker *workers;
    size_t count, capacity;
    pid_set foreign;       /* orphans that cannot be signalled */
    pid_set killed;        /* orphans that have got a SIGKILL */
    tree_walk orphans;     /* SIGKILL on its way through those and what is below them */
    int64_t sweep_at_ns;   /* OS_NO_DEADLINE: nothing to sweep */
    int64_t swept_ns;      /* end of the last sweep, */
    int64_t sweep_took_ns; /* and what it took */
    size_t walked;         /* the worker whose walk got the last step */
    bool unreaped;         /* there may be more to reap */
    bool blocked;          /* the socket is full */
    int64_t resend_at_ns;  /* OS_NO_DEADLINE: nothing to send again */
} zygote_state;

/* ---- Forking ---- */

static void run_hook(void (*hook)(void *, pebble_fork_kind), const pebble_hooks *hooks) {
    if (hook != NULL)
        hook(hooks->context, PEBBLE_FORK_WORKER);
}

static pid_t fork_worker(zygote_state *zygote, const zygote_request *request,
                         const int *fds) {
    static const pebble_hooks none;
    const pebble_hooks *hooks =
        zygote->setup->hooks != NULL ? zygote->setup->hooks : &none;
    bool executes = zygote->setup->spawn_command != NULL;
    worker_setup setup = {
        .number = request->worker, .parent_pid = getpid(), .forked = true, .hooks = hooks};
    memcpy(setup.name, request->name, sizeof setup.name);
    memcpy(setup.fds, fds, sizeof setup.fds);
    if (!executes)
        run_hook(hooks->before_fork, hooks);
    os_fd_keep(fds, WORKER_FDS);
    pid_t pid = os_attempt(OS_FAULT_FORK, EAGAIN, -1, fork());
    int error = errno;
    os_fd_keep_none();
    if (pid == 0 && executes)
        worker_execute(&setup, zygote->setup->spawn_command, zygote->setup->data_fd);
    if (pid == 0)
        worker_run(&setup);
    if (!executes)
        run_hook(hooks->after_fork_parent, hooks);
    errno = error;
    return pid;
}

static zygote_worker *add_worker(zygote_state *zygote, uint32_t number) {
    if (zygote->count == zygote->capacity) {
        size_t capacity = zygote->capacity > 0 ? zygote->capacity * 2 : 16;
        zygote_worker *workers = os_realloc(zygote->workers, capacity * sizeof *workers);
        if (workers == NULL)
            return NULL;
        zygote->workers = workers;
        zygote->capacity = capacity;
    }
    zygote_worker *worker = &zygote->workers[zygote->count++];
    *worker =
        (zygote_worker){.number = number, .pid_fd = -1, .kill_at_ns = OS_NO_DEADLINE};
    return worker;
}

/* ---- Ending ---- */

static zygote_worker *find_number(zygote_state *zygote, uint32_t number) {
    for (size_t i = 0; i < zygote->count; i++) {
        if (zygote->workers[i].number == number)
            return &zygote->workers[i];
    }
    return NULL;
}

static void kill_tree(zygote_worker *worker) {
    worker->kill_at_ns = OS_NO_DEADLINE;
    worker->reports |= REPORT_KILLED;
    tree_walk_start(&worker->tree, worker->pid, -1, SIGKILL);
}

static void terminate(zygote_worker *worker, int64_t grace_ns) {
    if (worker->dead || worker->dying)
        return;
    worker->dying = true;
    if (grace_ns <= 0) {
        kill_tree(worker);
        return;
    }
    worker->kill_at_ns = os_deadline_after(grace_ns);
    if (worker->kill_at_ns == OS_NO_DEADLINE) /* which says that there is no grace */
        worker->kill_at_ns--;
    tree_walk_start(&worker->tree, worker->pid, -1, SIGTERM);
}

static bool is_worker(const zygote_state *zygote, pid_t pid) {
    for (size_t i = 0; i < zygote->count; i++) {
        if (!zygote->workers[i].dead && zygote->workers[i].pid == pid)
            return true;
    }
    return false;
}

/* True if it still cannot be signalled. */
static bool is_foreign(zygote_state *zygote, pid_t orphan) {
    if (!pid_set_has(&zygote->foreign, orphan))
        return false;
    if (kill(orphan, 0) != 0)
        return true;
    pid_set_remove(&zygote->foreign, orphan);
    return false;
}

/* The children that are no workers, alive or dead but not reaped, but for those of others. False: they
 * could not be read. */
static bool find_orphans(zygote_state *zygote, pid_set *orphans) {
    size_t kept = 0;
    bool readable = tree_children(getpid(), orphans);
    for (size_t i = 0; i < orphans->count; i++) {
        if (!is_worker(zygote, orphans->pids[i]) && !is_foreign(zygote, orphans->pids[i]))
            orphans->pids[kept++] = orphans->pids[i];
    }
    orphans->count = kept;
    return readable;
}

/* Who leaves: read after the orphans were listed, as who left one of them is exiting by then. False: it
 * cannot be told. */
static bool find_leaving(zygote_state *zygote, size_t *leaving) {
    *leaving = 0;
    for (size_t i = 0; i < zygote->count; i++) {
        zygote_worker *worker = &zygote->workers[i];
        bool exiting = false;
        if (!worker->dead && !tree_is_exiting(worker->pid, &exiting))
            return false;
        worker->leaves |= exiting;
        *leaving += worker->leaves;
    }
    return true;
}

static bool has_owner(const zygote_state *zygote, pid_t orphan) {
    for (size_t i = 0; i < zygote->count; i++) {
        if (pid_set_has(&zygote->workers[i].orphans, orphan))
            return true;
    }
    return false;
}

static void disown(zygote_state *zygote, pid_t orphan) {
    for (size_t i = 0; i < zygote->count; i++)
        pid_set_remove(&zygote->workers[i].orphans, orphan);
}

/* The one in whose tree it was found; NULL: not known. */
static zygote_worker *find_owner(zygote_state *zygote, pid_t orphan) {
    for (size_t i = 0; i < zygote->count; i++) {
        if (zygote->workers[i].leaves && tree_walk_found(&zygote->workers[i].tree, orphan))
            return &zygote->workers[i];
    }
    return NULL;
}

/* False: no memory, nobody owns it. */
static bool own(zygote_state *zygote, pid_t orphan, size_t leaving) {
    const zygote_worker *owner = leaving > 1 ? find_owner(zygote, orphan) : NULL;
    for (size_t i = 0; i < zygote->count; i++) {
        zygote_worker *worker = &zygote->workers[i];
        if (worker->leaves && (owner == NULL || owner == worker) &&
            !pid_set_add(&worker->orphans, orphan)) {
            disown(zygote, orphan);
            return false;
        }
    }
    return true;
}

/* Those whom nobody owns get their owners. False: not all did. */
static bool find_owners(zygote_state *zygote, const pid_set *orphans) {
    bool looked = false, found = true;
    size_t leaving = 0;
    for (size_t i = 0; i < orphans->count; i++) {
        if (has_owner(zygote, orphans->pids[i]))
            continue;
        if (!looked && !find_leaving(zygote, &leaving))
            return false;
        looked = true;
        found &= own(zygote, orphans->pids[i], leaving);
    }
    return found;
}

/* It gets its worker's SIGTERM, and the grace is not over. */
static bool is_in_grace(const zygote_state *zygote, pid_t orphan) {
    for (size_t i = 0; i < zygote->count; i++) {
        const zygote_worker *worker = &zygote->workers[i];
        if (worker->kill_at_ns != OS_NO_DEADLINE && tree_walk_found(&worker->tree, orphan))
            return true;
    }
    return false;
}

/* Unless it has still its grace. What is below it is found by the walk; or, if it has died by then, it
 * becomes an orphan, too. False: no memory to take note of it. */
static bool kill_orphan(zygote_state *zygote, pid_t orphan) {
    if (pid_set_has(&zygote->killed, orphan) || is_in_grace(zygote, orphan))
        return true;
    bool foreign = kill(orphan, SIGKILL) != 0 && errno == EPERM;
    if (!pid_set_add(foreign ? &zygote->foreign : &zygote->killed, orphan))
        return false;
    if (foreign)
        disown(zygote, orphan);
    tree_walk_add(&zygote->orphans, orphan);
    return true;
}

static void find_gone(zygote_state *zygote) {
    for (size_t i = 0; i < zygote->count; i++) {
        zygote_worker *worker = &zygote->workers[i];
        worker->leaves = worker->orphans.count > 0;
        if (worker->dead && (worker->reports & REPORT_FAILED) == 0 && !worker->leaves)
            worker->reports |= REPORT_GONE;
    }
}

static bool has_children(void) {
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}

/* Deals with what workers left; the dead of which nothing is left are gone. True if no orphans are left
 * at all. */
static bool sweep(zygote_state *zygote) {
    pid_set orphans = {0};
    int64_t began_ns = os_now_ns();
    /* Without children there is nothing to look for, and that can be said without a descriptor. */
    bool complete = !has_children() || find_orphans(zygote, &orphans);
    complete &= find_owners(zygote, &orphans);
    bool any = false;
    for (size_t i = 0; i < orphans.count; i++) {
        complete &= kill_orphan(zygote, orphans.pids[i]);
        any |= !pid_set_has(&zygote->foreign, orphans.pids[i]);
    }
    if (complete)
        find_gone(zygote);
    pid_set_fini(&orphans);
    zygote->sweep_at_ns = complete ? OS_NO_DEADLINE : os_deadline_after(retry_ns);
    zygote->swept_ns = os_now_ns();
    zygote->sweep_took_ns = zygote->swept_ns - began_ns;
    return complete && !any;
}

static void sweep_now(zygote_state *zygote) {
    zygote->sweep_at_ns = 0;
}

static void sweep_soon(zygote_state *zygote) {
    int64_t at_ns = zygote->swept_ns + SWEEP_SHARE * zygote->sweep_took_ns;
    if (at_ns < zygote->sweep_at_ns)
        zygote->sweep_at_ns = at_ns;
}

/* A child has ended and is reaped. */
static void note_end(zygote_state *zygote, pid_t pid, int status) {
    pid_set_remove(&zygote->foreign, pid);
    pid_set_remove(&zygote->killed, pid);
    pid_set_remove(&zygote->orphans.members, pid);
    sweep_soon(zygote);
    for (size_t i = 0; i < zygote->count; i++) {
        zygote_worker *worker = &zygote->workers[i];
        if (worker->pid == pid && !worker->dead) {
            tree_walk_lose_root(&worker->tree);
            worker->dead = worker->leaves = true;
            worker->status = status;
            worker->reports |= REPORT_DIED;
            sweep_now(zygote);
        } else {
            worker->leaves |= pid_set_has(&worker->orphans, pid);
            pid_set_remove(&worker->orphans, pid);
            pid_set_remove(&worker->tree.members, pid);
        }
    }
}

static void reap(zygote_state *zygote) {
    int status;
    pid_t pid = 1;
    int count = 0;
    while (count < REAPED_A_TURN && (pid = waitpid(-1, &status, WNOHANG)) > 0) {
        note_end(zygote, pid, status);
        count++;
    }
    zygote->unreaped = count == REAPED_A_TURN;
}

static void end_graces(zygote_state *zygote) {
    int64_t now_ns = os_now_ns();
    for (size_t i = 0; i < zygote->count; i++) {
        zygote_worker *worker = &zygote->workers[i];
        if (worker->kill_at_ns > now_ns)
            continue;
        worker->kill_at_ns = OS_NO_DEADLINE;
        sweep_now(zygote);
        if (!worker->dead)
            kill_tree(worker);
    }
}

/* Some steps, in turn. */
static void walk(zygote_state *zygote) {
    int steps = 0;
    for (size_t i = 0; i < zygote->count && steps < STEPS_A_TURN; i++) {
        size_t at = (zygote->walked + 1 + i) % zygote->count;
        if (tree_walk_done(&zygote->workers[at].tree))
            continue;
        tree_walk_step(&zygote->workers[at].tree);
        zygote->walked = at;
        steps++;
    }
    if (tree_walk_done(&zygote->orphans))
        return;
    tree_walk_step(&zygote->orphans);
    if (tree_walk_done(&zygote->orphans))
        tree_walk_fini(&zygote->orphans); /* its members may be others by the next time */
}

static bool is_walking(const zygote_state *zygote) {
    bool walking = !tree_walk_done(&zygote->orphans);
    for (size_t i = 0; i < zygote->count; i++)
        walking |= !tree_walk_done(&zygote->workers[i].tree);
    return walking;
}

/* Waits for a child's end. */
static void await_end(zygote_state *zygote) {
    int status;
    pid_t pid = waitpid(-1, &status, 0);
    if (pid > 0)
        note_end(zygote, pid, status);
    do {
        reap(zygote);
    } while (zygote->unreaped);
}

/* All descriptors but this and the standard streams. */
static void close_all_but(int fd) {
    if (fd > STDERR_FILENO + 1)
        syscall(SYS_close_range, STDERR_FILENO + 1, fd - 1, 0);
    syscall(SYS_close_range, fd + 1, ~0U, 0);
}

/* Ends every tree, then itself: when its socket closes the program knows that nothing is left. */
static _Noreturn void end_all(zygote_state *zygote) {
    close_all_but(zygote->setup->control_fd); /* so that there are some */
    for (size_t i = 0; i < zygote->count; i++) {
        zygote->workers[i].kill_at_ns = OS_NO_DEADLINE;
        if (zygote->workers[i].dead)
            tree_walk_fini(&zygote->workers[i].tree); /* what it left is killed at once */
        else
            kill_tree(&zygote->workers[i]);
    }
    while (has_children()) {
        while (is_walking(zygote))
            walk(zygote);
        for (size_t i = 0; i < zygote->count; i++)
            zygote->workers[i].dead = true; /* all children are orphans now */
        if (sweep(zygote))
            break;
        if (zygote->sweep_at_ns != OS_NO_DEADLINE) { /* it found no room */
            nanosleep(&(struct timespec){.tv_nsec = retry_ns}, NULL);
            reap(zygote);
        } else if (!is_walking(zygote)) {
            await_end(zygote);
        }
    }
    _exit(0);
}

/* ---- Starting ---- */

static void spawn(zygote_state *zygote, const zygote_request *request, const int *fds,
                  size_t fd_count) {
    zygote_worker *worker = add_worker(zygote, request->worker);
    if (worker == NULL)
        end_all(zygote); /* the program starts another zygote */
    errno = EMFILE;      /* if some descriptors could not be received */
    worker->pid = fd_count == WORKER_FDS ? fork_worker(zygote, request, fds) : -1;
    if (worker->pid > 0) {
        os_process_open(worker->pid, &worker->pid_fd);
        worker->reports = REPORT_SPAWNED;
    } else {
        worker->status = errno;
        worker->dead = true;
        worker->reports = REPORT_FAILED;
    }
}

/* ---- Reporting ---- */

static int send_reply(zygote_state *zygote, zygote_worker *worker, zygote_reply_kind kind,
                      bool gone) {
    zygote_reply reply = {.kind = kind,
                          .worker = worker->number,
                          .pid = worker->pid,
                          .status = worker->status,
                          .gone = gone};
    bool with_fd = kind == ZYGOTE_SPAWNED && worker->pid_fd >= 0;
    return os_message_send(zygote->setup->control_fd, &reply, sizeof reply,
                           &worker->pid_fd, with_fd ? 1 : 0);
}

/* Sends the first report that is due; its bits are cleared. */
static int report_one(zygote_state *zygote, zygote_worker *worker) {
    static const struct {
        unsigned bit;
        zygote_reply_kind kind;
    } order[] = {{REPORT_SPAWNED, ZYGOTE_SPAWNED},
                 {REPORT_FAILED, ZYGOTE_SPAWN_FAILED},
                 {REPORT_KILLED, ZYGOTE_KILLED},
                 {REPORT_DIED, ZYGOTE_DIED},
                 {REPORT_GONE, ZYGOTE_GONE}};
    unsigned i = 0;
    while ((worker->reports & order[i].bit) == 0)
        i++;
    bool gone = order[i].bit == REPORT_DIED && (worker->reports & REPORT_GONE) != 0;
    int error = send_reply(zygote, worker, order[i].kind, gone);
    if (error != 0)
        return error;
    worker->reports &= ~order[i].bit;
    if (order[i].bit == REPORT_SPAWNED) {
        os_fd_close(worker->pid_fd);
        worker->pid_fd = -1;
    }
    if (gone || order[i].bit == REPORT_GONE || order[i].bit == REPORT_FAILED)
        worker->number = 0; /* numbers start at 1: this entry is done */
    if (gone)
        worker->reports = 0;
    return 0;
}

static void remove_done(zygote_state *zygote) {
    for (size_t i = 0; i < zygote->count;) {
        zygote_worker *worker = &zygote->workers[i];
        if (worker->number != 0) {
            i++;
            continue;
        }
        tree_walk_fini(&worker->tree);
        pid_set_fini(&worker->orphans);
        *worker = zygote->workers[--zygote->count];
    }
}

static void report(zygote_state *zygote) {
    int error = 0;
    zygote->resend_at_ns = OS_NO_DEADLINE;
    for (size_t i = 0; i < zygote->count; i++) {
        while (error == 0 && zygote->workers[i].reports != 0)
            error = report_one(zygote, &zygote->workers[i]);
    }
    zygote->blocked = error == EAGAIN;
    if (error == EPIPE)
        end_all(zygote);
    if (error != 0 && !zygote->blocked)
        zygote->resend_at_ns = os_deadline_after(retry_ns);
    remove_done(zygote);
}

/* ---- The loop ---- */

static void obey(zygote_state *zygote) {
    zygote_request request;
    int fds[OS_MESSAGE_MAX_FDS];
    size_t size, fd_count;
    int error = os_message_receive(zygote->setup->control_fd, &request, sizeof request,
                                   &size, fds, OS_MESSAGE_MAX_FDS, &fd_count);
    if (error == EPIPE)
        end_all(zygote);
    if (error != 0)
        return;
    zygote_worker *worker = find_number(zygote, request.worker);
    if (size == sizeof request && request.kind == ZYGOTE_SPAWN)
        spawn(zygote, &request, fds, fd_count);
    else if (size == sizeof request && request.kind == ZYGOTE_KILL && worker != NULL)
        terminate(worker, request.grace_ns);
    for (size_t i = 0; i < fd_count; i++)
        os_fd_close(fds[i]);
}

static int64_t next_deadline(const zygote_state *zygote) {
    int64_t next_ns = zygote->resend_at_ns;
    if (is_walking(zygote) || zygote->unreaped)
        return 0;
    if (zygote->sweep_at_ns < next_ns)
        next_ns = zygote->sweep_at_ns;
    for (size_t i = 0; i < zygote->count; i++) {
        if (zygote->workers[i].kill_at_ns < next_ns)
            next_ns = zygote->workers[i].kill_at_ns;
    }
    return next_ns;
}

/* Sleeps until the program says something or ends, a child ends, or a deadline has come. */
static void wait_for_events(zygote_state *zygote, struct pollfd events[2]) {
    int64_t deadline_ns = next_deadline(zygote);
    int64_t left_ns = deadline_ns == OS_NO_DEADLINE ? 0 : deadline_ns - os_now_ns();
    if (left_ns < 0)
        left_ns = 0;
    struct timespec timeout = {.tv_sec = (time_t)(left_ns / 1000000000),
                               .tv_nsec = left_ns % 1000000000};
    sigset_t all_but_child;
    sigfillset(&all_but_child);
    sigdelset(&all_but_child, SIGCHLD);
    events[0] =
        (struct pollfd){.fd = zygote->setup->control_fd,
                        .events = (short)(POLLIN | (zygote->blocked ? POLLOUT : 0))};
    events[1] = (struct pollfd){.fd = zygote->program_fd, .events = POLLIN};
    if (ppoll(events, 2, deadline_ns == OS_NO_DEADLINE ? NULL : &timeout,
              &all_but_child) < 0)
        events[0].revents = events[1].revents = 0; /* SIGCHLD */
}

static void wake_for_child(int signal) {
    (void)signal; /* it has interrupted ppoll(), which is all */
}

void zygote_reset_signals(void) {
    struct sigaction action;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (int signal = 1; signal < NSIG; signal++) {
        /* As exec does: what is ignored stays so, but for what the engine itself relies on. */
        if (sigaction(signal, NULL, &action) == 0 && action.sa_handler != SIG_DFL &&
            (action.sa_handler != SIG_IGN || signal == SIGCHLD || signal == SIGTERM)) {
            action = (struct sigaction){.sa_handler = SIG_DFL};
            sigaction(signal, &action, NULL);
        }
    }
}

void zygote_run(const zygote_setup *setup) {
    struct sigaction on_child = {.sa_handler = wake_for_child};
    struct pollfd events[2];
    zygote_state zygote = {.setup = setup,
                           .program_fd = -1,
                           .sweep_at_ns = OS_NO_DEADLINE,
                           .resend_at_ns = OS_NO_DEADLINE};
    zygote.orphans.signal = SIGKILL;
    /* The thread that forked may be about to be cancelled: that is not for zygote and workers. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    os_fd_register(setup->control_fd); /* so that no worker keeps it */
    zygote_reset_signals();
    sigaction(SIGCHLD, &on_child, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    os_thread_set_name("pebble-zygote");
    crash_handler_prepare();
    int error = os_process_open(setup->program_pid, &zygote.program_fd);
    if ((error != 0 && error != ENOSYS) || getppid() != setup->program_pid)
        _exit(EXIT_FAILURE); /* without pidfds the socket's end tells, see zygote_client.c */
    for (;;) {
        wait_for_events(&zygote, events);
        if (events[1].revents != 0)
            end_all(&zygote);
        if (events[0].revents & (POLLIN | POLLHUP | POLLERR))
            obey(&zygote);
        report(&zygote); /* a new worker waits for that, and what follows may take long */
        end_graces(&zygote);
        walk(&zygote);
        reap(&zygote);
        if (zygote.sweep_at_ns <= os_now_ns() && !zygote.unreaped)
            sweep(&zygote);
        report(&zygote);
    }
}
