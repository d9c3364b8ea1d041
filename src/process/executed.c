#include "process/executed.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/fork.h"
#include "platform/platform.h"
#include "process/worker.h"

static const pebble_hooks no_hooks = {.struct_size = sizeof(pebble_hooks)};

void executed_set(const char *name, const char *value) {
    size_t count = 0;
    while (environ != NULL && environ[count] != NULL)
        count++;
    size_t size = strlen(name) + strlen(value) + 2;
    char **variables = os_alloc((count + 2) * sizeof *variables);
    char *variable = os_alloc(size);
    if (variables == NULL || variable == NULL)
        _exit(EXIT_FAILURE);
    snprintf(variable, size, "%s=%s", name, value);
    if (count > 0)
        memcpy(variables, environ, count * sizeof *variables);
    variables[count] = variable;
    variables[count + 1] = NULL;
    environ = variables; /* until the execution */
}

static void keep_from_children(int fd) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
}

void executed_ignore_interrupt(void) {
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGINT, &ignore, NULL);
}

/* ---- The pool's data ---- */

void executed_pass_data(int data_fd) {
    char text[16];
    if (data_fd < 0)
        return;
    fcntl(data_fd, F_SETFD, 0);
    snprintf(text, sizeof text, "%d", data_fd);
    executed_set(EXECUTED_DATA, text);
}

static const void *data;
static size_t data_size;

/* Forked workers inherit the mapping. */
static void map_data(void) {
    const char *text = getenv(EXECUTED_DATA);
    struct stat status;
    if (data != NULL || text == NULL)
        return;
    int fd = atoi(text);
    unsetenv(EXECUTED_DATA);
    if (fstat(fd, &status) == 0 && status.st_size > 0) {
        void *mapped =
            os_attempt(OS_FAULT_SHARED, ENOMEM, MAP_FAILED,
                       mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0));
        data = mapped != MAP_FAILED ? mapped : NULL;
        data_size = data != NULL ? (size_t)status.st_size : 0;
    }
    close(fd);
}

const void *pebble_worker_data(size_t *size) {
    map_data();
    if (size != NULL)
        *size = data_size;
    return data;
}

static _Noreturn void serve_as_worker(const char *text, const pebble_hooks *hooks) {
    worker_setup setup = {.hooks = hooks};
    int parent_pid, name_at = 0;
    if (sscanf(text, "%u %d %d %d %d %n", &setup.number, &parent_pid,
               &setup.fds[WORKER_FD_DOWN], &setup.fds[WORKER_FD_UP],
               &setup.fds[WORKER_FD_BELL], &name_at) < 5 ||
        name_at == 0)
        _exit(EXIT_FAILURE);
    setup.parent_pid = parent_pid;
    snprintf(setup.name, sizeof setup.name, "%s", text + name_at);
    for (int i = 0; i < WORKER_FDS; i++)
        keep_from_children(setup.fds[i]);
    unsetenv(EXECUTED_WORKER);
    worker_run(&setup);
}

static _Noreturn void serve_as_zygote(const char *text, const pebble_hooks *hooks) {
    zygote_setup setup = {.hooks = hooks, .data_fd = -1};
    int program_pid;
    if (sscanf(text, "%d %d", &setup.control_fd, &program_pid) != 2)
        _exit(EXIT_FAILURE);
    setup.program_pid = program_pid;
    keep_from_children(setup.control_fd);
    unsetenv(EXECUTED_ZYGOTE);
    zygote_run(&setup);
}

void pebble_worker_main_hooks(const pebble_hooks *hooks) {
    const char *worker = getenv(EXECUTED_WORKER);
    const char *zygote = getenv(EXECUTED_ZYGOTE);
    if (worker == NULL && zygote == NULL)
        return;
    if (hooks == NULL)
        hooks = &no_hooks;
    map_data();
    if (hooks->struct_size < offsetof(pebble_hooks, worker_idle)) {
        fprintf(stderr, "pebble_worker_main_hooks: hooks->struct_size is wrong\n");
        _exit(EXIT_FAILURE);
    }
    if (fork_watch() != 0)
        _exit(EXIT_FAILURE);
    if (worker != NULL)
        serve_as_worker(worker, hooks);
    serve_as_zygote(zygote, hooks);
}

void pebble_worker_main(void) {
    pebble_worker_main_hooks(NULL);
}

void executed_check(void) {
    if (getenv(EXECUTED_WORKER) == NULL && getenv(EXECUTED_ZYGOTE) == NULL)
        return;
    fprintf(stderr,
            "pebble: this process was executed to serve a pool with the start method "
            "forkserver or spawn: its main must call pebble_worker_main() first\n");
    _exit(EXECUTED_WITHOUT_WORKER_MAIN);
}
