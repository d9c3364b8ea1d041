#include "process/executed.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    zygote_setup setup = {.hooks = hooks};
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
    if (hooks->struct_size < sizeof *hooks) {
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
