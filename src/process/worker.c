#include "process/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "channel/worker_end.h"
#include "core/fork.h"
#include "core/task.h"
#include "process/crash.h"
#include "process/executed.h"
#include "process/function.h"
#include "process/tie.h"

_Static_assert(sizeof(crash_report) <= CHANNEL_CRASH_SIZE, "the report must fit");

enum {
    RESULT_BUFFER = 64 * 1024, /* larger results stream */
    OOM_SCORE_MORE = 500,      /* of 1000: killed before any ordinary process */
};

/* The worker's task; its result goes to the channel when the buffer is full. */
typedef struct process_task {
    pebble_task task; /* first: the callbacks get a pointer to it */
    worker_end end;
} process_task;

static int stream_out(pebble_task *task, const void *data, size_t size) {
    process_task *self = (process_task *)task;
    if (size > PTRDIFF_MAX)
        return ENOMEM;
    if (task->size > 0)
        worker_end_write(&self->end, task->buffer, task->size);
    task->size = 0;
    if (size > task->capacity) {
        worker_end_write(&self->end, data, size);
    } else {
        memcpy(task->buffer, data, size);
        task->size = size;
    }
    return 0;
}

static void *take_input(pebble_task *task) {
    return worker_end_take_input(&((process_task *)task)->end);
}

/* ---- What a process needs to be a worker ---- */

static void offer_to_oom_killer(void) {
    int score = 0;
    FILE *file =
        os_attempt(OS_FAULT_FD, EMFILE, NULL, fopen("/proc/self/oom_score_adj", "r+e"));
    if (file == NULL)
        return;
    if (fscanf(file, "%d", &score) == 1) {
        rewind(file);
        fprintf(file, "%d", score + OOM_SCORE_MORE < 1000 ? score + OOM_SCORE_MORE : 1000);
    }
    fclose(file);
}

static void set_signals(void) {
    sigset_t none;
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGINT, &ignore, NULL); /* Ctrl-C is the program's to act upon */
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void map_channel(const worker_setup *setup, worker_end *end) {
    void *down = NULL, *up = NULL;
    int error =
        os_shared_map(setup->fds[WORKER_FD_DOWN], sizeof(channel_down), false, &down);
    if (error == 0)
        error = os_shared_map(setup->fds[WORKER_FD_UP], sizeof(channel_up), true, &up);
    if (error != 0)
        _exit(WORKER_REFUSED);
    close(setup->fds[WORKER_FD_DOWN]);
    close(setup->fds[WORKER_FD_UP]);
    /* A child that the worker forks must not ring or write in its name. */
    int bell_fd = os_bell_put_aside(setup->fds[WORKER_FD_BELL]);
    worker_end_init(end, down, up, bell_fd);
    end->idle = pool_idle_hook(setup->hooks);
    end->idle_context = setup->hooks->context;
    atomic_store_explicit(&end->up->pid, getpid(), memory_order_relaxed);
    os_fd_register(bell_fd);
}

/* ---- Running tasks ---- */

static void run(process_task *self, const worker_task *task) {
    char problem[TASK_MESSAGE_SIZE];
    pebble_function function = NULL;
    if (task->input == NULL) {
        pebble_task_fail(&self->task, ENOMEM, "no memory for an input of %zu bytes",
                         task->input_size);
    } else if (task->kind == TASK_INITIALIZER && task->function == 0 &&
               task->name == NULL) {
        return; /* none was asked for: the task only shows that the worker works */
    } else if (!function_find(task->function, task->name, task->name_size, &function,
                              problem, sizeof problem)) {
        pebble_task_fail(&self->task, ENOENT, "%s", problem);
    } else {
        task_run(&self->task, (task_kind)task->kind, function, task->input,
                 task->input_size);
    }
}

/* What a task printed is seen when it has ended, and not lost with a worker that is killed. */
static void flush_standard_streams(void) {
    if (__fpending(stdout) > 0)
        fflush(stdout);
    if (__fpending(stderr) > 0)
        fflush(stderr);
}

static void finish(process_task *self) {
    pebble_task *task = &self->task;
    flush_standard_streams();
    if (task->failed)
        worker_end_finish(&self->end, true, task->code, task->message,
                          strlen(task->message));
    else
        worker_end_finish(&self->end, false, 0, task->buffer, task->size);
}

static void serve(process_task *self) {
    uint32_t epoch = fork_epoch;
    worker_task task;
    while (worker_end_next(&self->end, &task)) {
        task_reset(&self->task);
        run(self, &task);
        if (fork_epoch != epoch) /* a child that the task forked has returned from it */
            _exit(EXIT_SUCCESS);
        finish(self);
        if (task.kind == TASK_INITIALIZER && self->task.failed)
            _exit(EXIT_FAILURE); /* what waits behind it is taken back */
    }
}

void worker_run(const worker_setup *setup) {
    static unsigned char buffer[RESULT_BUFFER];
    static process_task self;
    const pebble_hooks *hooks = setup->hooks;
    tie_to_parent(setup->parent_pid);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL); /* as if it was forked */
    if (setup->forked && hooks->after_fork_child != NULL)
        hooks->after_fork_child(hooks->context, PEBBLE_FORK_WORKER);
    os_thread_set_name(setup->name);
    offer_to_oom_killer();
    map_channel(setup, &self.end);
    crash_handler_install((crash_report *)(void *)self.end.up->crash,
                          __builtin_frame_address(0));
    set_signals();
    self.task.buffer = buffer;
    self.task.capacity = sizeof buffer;
    self.task.overflow = stream_out;
    self.task.take_input = take_input;
    if (hooks->worker_start != NULL)
        hooks->worker_start(hooks->context, setup->name);
    tie_to_parent(setup->parent_pid); /* a hook may have undone it */
    worker_end_wait_until_known(&self.end);
    tie_with_children();
    serve(&self);
    if (hooks->worker_end != NULL)
        hooks->worker_end(hooks->context);
    fflush(stdout);
    fflush(stderr);
    _exit(EXIT_SUCCESS); /* the program's exit handlers are the program's */
}

void worker_execute(const worker_setup *setup, char *const *command, int data_fd) {
    char text[128];
    sigset_t none;
    for (int i = 0; i < WORKER_FDS; i++)
        fcntl(setup->fds[i], F_SETFD, 0);
    snprintf(text, sizeof text, "%u %d %d %d %d %s", setup->number,
             (int)setup->parent_pid, setup->fds[WORKER_FD_DOWN], setup->fds[WORKER_FD_UP],
             setup->fds[WORKER_FD_BELL], setup->name);
    executed_set(EXECUTED_WORKER, text);
    executed_pass_data(data_fd);
    tie_to_parent(setup->parent_pid);
    executed_ignore_interrupt();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(command[0], command);
    fprintf(stderr, "pebble: cannot execute %s: %s\n", command[0], strerror(errno));
    _exit(127);
}
