/* The program's side of its zygote: bringing it about, asking it, hearing it.
 *
 * ZYGOTE_NONE → STARTING → RUNS → NONE (lost). Whoever sets STARTING, under the pool's lock, sees to its
 * start: the thread that schedules the first task; later the supervisor, which has a thread of its own do
 * it, since a fork may block (in hooks, in handlers of pthread_atfork(), on a lock of the C library's), and
 * finds its failure in pool->zygote_error. The rest happens in the supervisor's thread, except asking to
 * kill, which is one message under the pool's lock.
 *
 * Where there are no pidfds (under valgrind; a system call filter), the end of the socket stands for
 * the end of the zygote, and its number for itself.
 *
 * Replies are read to the end before a loss is acted upon: what the zygote said before it died
 * counts.
 *
 * If anything was made while it was forked (making.c), the first message says what. A child that finds that
 * something was just being made waits for it, closes what it has of that, or ends if it was not told all; any
 * other leaves it to zygote.c, which does not heed it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process/crash.h"
#include "process/executed.h"
#include "process/pool.h"

/* Losses without a task's end between them after which the pool is broken. That one was killed by
 * somebody else says little of the next: it counts less than one that ended by itself. */
enum { LOSS_BY_KILL = 1, LOSS_BY_ITSELF = 100, ZYGOTES_LOST_MAX = 500 };

/* ---- Starting ---- */

/* The command that is executed for forkserver and spawn: as set, or this program. */
static char *const *command_of(process_pool *pool, char *program[3]) {
    static char self[] =
        "/proc/self/exe"; /* of the process that executes it: the same program */
    if (pool->base.settings.worker_command != NULL)
        return pool->base.settings.worker_command;
    program[0] = self;
    program[1] = NULL;
    return program;
}

/* Closes the descriptors from first to last. */
static void close_range_of(int first, int last) {
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
    int end = (int)sysconf(_SC_OPEN_MAX); /* a filter does not know the call */
    for (int fd = first; fd <= last && fd < end; fd++)
        close(fd);
}

/* Spawned workers get nothing of the program but its standard streams. */
static void close_others(int keep_fd, int data_fd) {
    int low = data_fd >= 0 && data_fd < keep_fd ? data_fd : keep_fd;
    int high = data_fd > keep_fd ? data_fd : keep_fd;
    close_range_of(3, low - 1);
    close_range_of(low + 1, high - 1);
    close_range_of(high + 1, INT_MAX);
}

static _Noreturn void execute_zygote(int control_fd, int data_fd, pid_t program_pid,
                                     char *const *command) {
    char text[64];
    sigset_t none;
    close_others(control_fd, data_fd);
    executed_pass_data(data_fd);
    snprintf(text, sizeof text, "%d %d", control_fd, (int)program_pid);
    fcntl(control_fd, F_SETFD, 0);
    executed_set(EXECUTED_ZYGOTE, text);
    executed_ignore_interrupt();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(command[0], command);
    fprintf(stderr, "pebble: cannot execute %s: %s\n", command[0], strerror(errno));
    _exit(127);
}

/* The message, or the end of the program, which may leave the socket open: another child may have inherited
 * it just so. */
static void await_message(int control_fd, pid_t program_pid) {
    struct pollfd events[2] = {{.fd = control_fd, .events = POLLIN},
                               {.fd = -1, .events = POLLIN}};
    os_process_open(program_pid, &events[1].fd);
    if (getppid() != program_pid)
        _exit(EXIT_FAILURE);
    poll(events, 2, -1);
    os_fd_close(events[1].fd);
}

/* In the child: other pools' descriptors that were just being made. */
static void close_noted(int control_fd, pid_t program_pid) {
    static zygote_made made;
    size_t size, fd_count;
    await_message(control_fd, program_pid);
    if (os_message_receive(control_fd, &made, sizeof made, &size, NULL, 0, &fd_count) !=
            0 ||
        made.kind != ZYGOTE_MADE || made.incomplete)
        _exit(EXIT_FAILURE); /* the program starts another */
    for (size_t i = 0; i < made.count; i++)
        os_fd_close_noted(&made.notes[i]);
}

/* In the child. What the program had not flushed yet is the program's to write. */
static _Noreturn void be_zygote(process_pool *pool, int control_fd, pid_t program_pid) {
    const pool_settings *settings = &pool->base.settings;
    static zygote_setup setup;
    char *program[3];
    __fpurge(stdout);
    __fpurge(stderr);
    zygote_reset_signals();
    if (settings->start_method == PEBBLE_START_FORKSERVER)
        execute_zygote(control_fd, settings->worker_data_fd, program_pid,
                       command_of(pool, program));
    if (os_making_kept_channel())
        _exit(EXIT_FAILURE);
    setup = (zygote_setup){
        .control_fd = control_fd, .program_pid = program_pid, .data_fd = -1};
    if (settings->start_method == PEBBLE_START_SPAWN) {
        setup.spawn_command = command_of(pool, program);
        setup.data_fd = settings->worker_data_fd;
        close_others(control_fd, setup.data_fd);
    } else {
        if (os_making_was_inherited())
            close_noted(control_fd, program_pid);
        setup.hooks = settings->hooks;
        if (!settings->single_call) /* which has no initializer that limits memory */
            os_release_unused_memory();
        if (setup.hooks != NULL && setup.hooks->after_fork_child != NULL)
            setup.hooks->after_fork_child(setup.hooks->context, PEBBLE_FORK_ZYGOTE);
    }
    zygote_run(&setup);
}

static void run_hook(const process_pool *pool, bool before) {
    const pebble_hooks *hooks = pool->base.settings.hooks;
    if (hooks == NULL || pool->base.settings.start_method != PEBBLE_START_FORK)
        return;
    void (*hook)(void *, pebble_fork_kind) =
        before ? hooks->before_fork : hooks->after_fork_parent;
    if (hook != NULL)
        hook(hooks->context, PEBBLE_FORK_ZYGOTE);
}

/* In the program, once: in the child a thread that is not there may hold the loader's lock; and what
 * is known here no worker has to find out. */
static pthread_once_t prepared = PTHREAD_ONCE_INIT;

static void prepare(void) {
    crash_handler_prepare();
    os_spinning_helps();
}

/* Forks, and tells the child what was made meanwhile. Returns 0 or an errno value; there may be a child all
 * the same. */
static int fork_and_tell(process_pool *pool, const int fds[2], zygote_made *made,
                         pid_t *pid) {
    pid_t program_pid = getpid();
    os_fd_notes notes = {.notes = made->notes};
    os_fd_notes_begin(&notes);
    *pid = os_attempt(OS_FAULT_FORK, EAGAIN, -1, fork());
    int error = *pid < 0 ? errno : 0;
    if (*pid == 0)
        be_zygote(pool, fds[1], program_pid);
    os_fd_notes_end(&notes);
    if (error != 0 || !notes.any || pool->base.settings.start_method != PEBBLE_START_FORK)
        return error; /* the others close all but what is theirs */
    made->incomplete = notes.incomplete;
    made->kind = ZYGOTE_MADE;
    made->count = (uint32_t)notes.count;
    size_t size = offsetof(zygote_made, notes) + notes.count * sizeof made->notes[0];
    error = os_message_send(fds[0], made, size, NULL, 0);
    return error == EPIPE ? 0 : error; /* it has been killed, which will be reported */
}

/* Forks with all signals blocked: no handler of the program may run in the child. */
static int fork_zygote(process_pool *pool, const int fds[2], pid_t *pid) {
    sigset_t all, before;
    zygote_made *made = os_alloc(sizeof *made);
    if (made == NULL)
        return ENOMEM;
    function_table_note_fork(&pool->functions);
    pthread_once(&prepared, prepare);
    const int kept[] = {fds[1], pool->base.settings.worker_data_fd};
    bool passes_data =
        pool->base.settings.start_method != PEBBLE_START_FORK && kept[1] >= 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    run_hook(pool, true);
    os_fd_keep(kept, passes_data ? 2 : 1);
    int error = fork_and_tell(pool, fds, made, pid);
    os_fd_keep_none();
    run_hook(pool, false);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    os_free(made);
    return error;
}

static void socket_ready(supervisor_source *source, const os_poller_event *event);
static void zygote_ended(supervisor_source *source, const os_poller_event *event);

/* Gives up a zygote that nobody watches yet. */
static void abandon(pid_t pid, int socket_fd, int process_fd) {
    if (pid > 0) {
        kill(pid, SIGKILL); /* the number is its own: it is not reaped */
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    os_fd_close(socket_fd);
    os_fd_close(process_fd);
}

/* aside: in a thread of its own, whose failure the supervisor finds in the pool. */
static int start_zygote(process_pool *pool, bool aside) {
    int fds[2] = {-1, -1}, process_fd = -1;
    pid_t pid = -1;
    int error = os_message_pair(fds);
    if (error == 0) {
        error = fork_zygote(pool, fds, &pid);
        int unopened = pid > 0 ? os_process_open(pid, &process_fd) : 0;
        if (unopened ==
            ESRCH) /* reaped by somebody else: the number is not its own any more */
            pid = -1;
        if (error == 0 && unopened != ENOSYS)
            error = unopened;
    }
    os_fd_close(fds[1]);
    if (error != 0)
        abandon(pid, fds[0], process_fd);
    pthread_mutex_lock(&pool->base.lock);
    if (error == 0) {
        pool->zygote_pid = pid;
        pool->zygote_fd = fds[0];
        pool->zygote_process_fd = process_fd;
        pool->zygote_asked_ns = 0;
        pool->zygote_answered = false;
    }
    pool->zygote_state = error == 0 ? ZYGOTE_RUNS : ZYGOTE_NONE;
    if (aside)
        pool->zygote_error = error;
    pool_attend_soon(pool);
    pthread_mutex_unlock(&pool->base.lock);
    return error;
}

int zygote_start(process_pool *pool) {
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    int error = start_zygote(pool, false);
    pthread_setcancelstate(cancel_state, NULL);
    return error;
}

static void start_aside(void *context) {
    process_pool *pool = context;
    start_zygote(pool, true);
    pool_unref(&pool->base);
}

int zygote_start_aside(process_pool *pool) {
    pool_ref(&pool->base);
    int error = os_thread_start(start_aside, pool, "pebble-fork");
    if (error != 0) {
        pthread_mutex_lock(&pool->base.lock);
        pool->zygote_state = ZYGOTE_NONE;
        pthread_mutex_unlock(&pool->base.lock);
        pool_unref(&pool->base);
    }
    return error;
}

int zygote_watch(process_pool *pool) {
    if (pool->zygote_watched)
        return 0;
    pool->zygote_socket =
        (supervisor_source){.ready = socket_ready, .fd = pool->zygote_fd};
    pool->zygote_process =
        (supervisor_source){.ready = zygote_ended, .fd = pool->zygote_process_fd};
    int error = supervisor_add(&pool->zygote_socket, false);
    if (error == 0 && pool->zygote_process_fd >= 0 &&
        (error = supervisor_add(&pool->zygote_process, false)) != 0)
        supervisor_remove(&pool->zygote_socket);
    pool->zygote_watched = error == 0;
    if (error != 0) {
        abandon(pool->zygote_pid, pool->zygote_fd, pool->zygote_process_fd);
        pool->zygote_socket.fd = pool->zygote_process.fd = -1;
        pool->zygote_fd = pool->zygote_process_fd = -1;
        pool->zygote_state = ZYGOTE_NONE;
    }
    return error;
}

/* ---- Asking ---- */

int zygote_spawn(process_pool *pool, process_worker *worker) {
    zygote_request request = {.kind = ZYGOTE_SPAWN, .worker = worker->number};
    int fds[WORKER_FDS] = {worker->down_fd, worker->up_fd, worker->bell_fd};
    pool_worker_name(&pool->base.settings, worker->number, request.name,
                     sizeof request.name);
    int error =
        os_message_send(pool->zygote_fd, &request, sizeof request, fds, WORKER_FDS);
    return error == EAGAIN || error == ENOBUFS ? EBUSY : error;
}

int zygote_kill(process_pool *pool, process_worker *worker, int64_t grace_ns) {
    zygote_request request = {
        .kind = ZYGOTE_KILL, .worker = worker->number, .grace_ns = grace_ns};
    if (pool->zygote_state != ZYGOTE_RUNS)
        return EPIPE;
    return os_message_send(pool->zygote_fd, &request, sizeof request, NULL, 0);
}

/* ---- Hearing ---- */

static void obey_reply(process_pool *pool, const zygote_reply *reply, int *process_fd) {
    process_worker *worker = worker_by_number(pool, reply->worker);
    if (worker == NULL)
        return;
    switch (reply->kind) {
    case ZYGOTE_SPAWNED:
        worker_spawned(worker, reply->pid, *process_fd);
        *process_fd = -1;
        break;
    case ZYGOTE_SPAWN_FAILED:
        worker_died(worker, 0, reply->status);
        worker_gone(worker);
        break;
    case ZYGOTE_KILLED:
        worker_kill_sent(worker);
        break;
    case ZYGOTE_DIED:
        worker_died(worker, reply->status, 0);
        if (reply->gone)
            worker_gone(worker);
        break;
    case ZYGOTE_GONE:
        worker_gone(worker);
        break;
    }
}

/* Reads what there is. EPIPE if the zygote has closed its end. */
static int hear(process_pool *pool) {
    zygote_reply reply;
    size_t size, fd_count;
    int fds[OS_MESSAGE_MAX_FDS];
    int error = EPIPE;
    while (pool->zygote_socket.fd >= 0 &&
           (error = os_message_receive(pool->zygote_socket.fd, &reply, sizeof reply,
                                       &size, fds, OS_MESSAGE_MAX_FDS, &fd_count)) == 0) {
        int process_fd = fd_count > 0 ? fds[0] : -1;
        for (size_t i = 1; i < fd_count; i++)
            os_fd_close(fds[i]);
        if (size == sizeof reply)
            obey_reply(pool, &reply, &process_fd);
        os_fd_close(process_fd);
    }
    return error;
}

static void close_zygote(process_pool *pool) {
    pthread_mutex_lock(&pool->base.lock);
    supervisor_remove(&pool->zygote_socket);
    supervisor_remove(&pool->zygote_process);
    pool->zygote_state = ZYGOTE_NONE;
    pool->zygote_watched = false;
    int socket_fd = pool->zygote_fd, process_fd = pool->zygote_process_fd;
    pool->zygote_fd = pool->zygote_process_fd = -1;
    pthread_mutex_unlock(&pool->base.lock);
    os_fd_close(socket_fd);
    os_fd_close(process_fd);
}

/* How it ended, for the message, unless somebody else has waited for it. Returns what that counts. */
static int reap_zygote(process_pool *pool, char *text, size_t size) {
    siginfo_t info = {0};
    int fd = pool->zygote_process_fd;
    int error = fd >= 0 ? waitid((idtype_t)P_PIDFD, (id_t)fd, &info, WEXITED | WNOHANG)
                        : waitid(P_PID, (id_t)pool->zygote_pid, &info, WEXITED);
    bool unknown =
        error != 0 || info.si_pid == 0; /* the program ignores SIGCHLD, for example */
    if (unknown)
        snprintf(text, size, "for a reason unknown");
    else if (info.si_code == CLD_EXITED)
        snprintf(
            text, size, "with exit code %d%s", info.si_status,
            pool->functions.by_name
                ? " (does the executed program's main call pebble_worker_main() first?)"
                : "");
    else
        snprintf(text, size, "by signal %d", info.si_status);
    bool killed = unknown ? pool->zygote_answered
                          : info.si_code == CLD_KILLED && info.si_status == SIGKILL;
    return killed && pool->zygote_asked_ns == 0 ? LOSS_BY_KILL : LOSS_BY_ITSELF;
}

static void lose_zygote(process_pool *pool) {
    ended_list list = {0};
    char how[128], reason[256];
    hear(pool);
    int counts = reap_zygote(pool, how, sizeof how);
    close_zygote(pool);
    if (pool->finished) {
        pool_say_gone(pool);
        return;
    }
    workers_orphaned(pool);
    pthread_mutex_lock(&pool->base.lock);
    pool->zygotes_lost += counts;
    if (pool->zygotes_lost >= ZYGOTES_LOST_MAX) {
        snprintf(reason, sizeof reason, "the process that starts the workers ended %s",
                 how);
        pool_break(pool, 0, reason, &list);
    }
    pool_attend_soon(pool);
    pthread_mutex_unlock(&pool->base.lock);
    ended_run(pool, &list);
}

static void zygote_ended(supervisor_source *source, const os_poller_event *event) {
    (void)event;
    lose_zygote((process_pool *)((char *)source - offsetof(process_pool, zygote_process)));
}

static void socket_ready(supervisor_source *source, const os_poller_event *event) {
    process_pool *pool =
        (process_pool *)((char *)source - offsetof(process_pool, zygote_socket));
    (void)event;
    if (hear(pool) != EPIPE || source->fd < 0)
        return;
    zygote_signal_end(pool); /* it is ending, or has closed what it must not: make sure */
    supervisor_remove(source);
    if (pool->zygote_process_fd < 0)
        lose_zygote(pool);
}

/* ---- Ending ---- */

void zygote_continue(process_pool *pool) {
    if (pool->zygote_process_fd >= 0)
        os_process_signal(pool->zygote_process_fd, SIGCONT);
}

void zygote_signal_end(process_pool *pool) {
    int error = 0;
    if (pool->zygote_process_fd >= 0)
        error = os_process_signal(pool->zygote_process_fd, SIGKILL);
    else if (pool->zygote_state == ZYGOTE_RUNS && kill(pool->zygote_pid, SIGKILL) != 0)
        error = errno;
    if (error == EPERM) /* the program has become another user since: then it is asked */
        zygote_ask_end(pool);
}

int64_t zygote_ask_end(process_pool *pool) {
    if (pool->zygote_asked_ns == 0) {
        pool->zygote_asked_ns = os_now_ns();
        if (pool->zygote_fd >= 0)
            shutdown(pool->zygote_fd, SHUT_WR);
    }
    return pool->zygote_asked_ns;
}

bool zygote_end(process_pool *pool) {
    if (pool->zygote_state == ZYGOTE_NONE)
        return true;
    zygote_signal_end(pool); /* it has nothing left to look after; its end is reported */
    return false;
}
