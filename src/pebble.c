/* The public face of pools: checks every argument, then hands over to the pool's kind. */
#include "pebble.h"

#include <errno.h>
#include <string.h>

#include "core/error.h"
#include "core/fork.h"
#include "core/future.h"
#include "core/interrupt.h"
#include "process/process_pool.h"
#include "thread/thread_pool.h"

static const int64_t default_grace_ns = PEBBLE_SECONDS(3);
static const int64_t default_initializer_timeout_ns = PEBBLE_SECONDS(60);

const char *pebble_version(void) {
    return PEBBLE_VERSION;
}

int pebble_version_number(void) {
    return PEBBLE_VERSION_NUMBER;
}

/* ---- Options ---- */

static pebble_error invalid(const char *function, const char *problem) {
    return error_set(PEBBLE_ERR_INVALID, "%s: %s", function, problem);
}

/* Copies caller's options of its own struct_size over defaults of ours: a program built with an
 * older, shorter struct gets the defaults for what it does not know. */
static bool copy_options(void *ours, size_t our_size, const void *theirs) {
    size_t their_size;
    if (theirs == NULL)
        return true;
    memcpy(&their_size, theirs, sizeof their_size);
    /* With the field behind struct_size at least, and none cut. */
    if (their_size < 2 * sizeof their_size || their_size % sizeof their_size != 0 ||
        their_size > 16 * our_size)
        return false;
    memcpy(ours, theirs, their_size < our_size ? their_size : our_size);
    return true;
}

#define COPY_OPTIONS(ours, theirs) copy_options(ours, sizeof *(ours), theirs)

static pebble_error check_pool_options(const pebble_pool_options *options, bool threads,
                                       const char *name) {
    if (options->max_workers < 0 || options->max_workers > PEBBLE_MAX_WORKERS)
        return error_set(PEBBLE_ERR_INVALID, "%s: options.max_workers is %d, not 1 to %d",
                         name, options->max_workers, PEBBLE_MAX_WORKERS);
    if (options->initializer_input == NULL && options->initializer_input_size > 0)
        return invalid(name, "options.initializer_input is NULL, its size is not 0");
    if (options->initializer_input_size > PTRDIFF_MAX)
        return invalid(name, "options.initializer_input_size is too large");
    if (options->initializer_timeout_ns < 0)
        return invalid(name, "options.initializer_timeout_ns is negative");
    if (options->termination_grace_ns < 0)
        return invalid(name, "options.termination_grace_ns is negative");
    if ((unsigned)options->start_method > PEBBLE_START_SPAWN)
        return invalid(name, "options.start_method is unknown");
    if (options->worker_command != NULL && options->worker_command[0] == NULL)
        return invalid(name, "options.worker_command is empty");
    if (options->hooks != NULL &&
        options->hooks->struct_size < offsetof(pebble_hooks, worker_idle))
        return invalid(name, "options.hooks->struct_size is wrong");
    if (options->worker_data == NULL && options->worker_data_size > 0)
        return invalid(name, "options.worker_data is NULL, its size is not 0");
    if (threads && (options->worker_command != NULL || options->worker_data != NULL ||
                    options->start_method != PEBBLE_START_DEFAULT))
        return invalid(
            name,
            "options.start_method, worker_command and worker_data are for processes");
    return PEBBLE_OK;
}

static int copy_command(char ***copy, const char *const *command) {
    size_t count = 0;
    while (command[count] != NULL)
        count++;
    *copy = os_alloc_zeroed((count + 1) * sizeof **copy);
    for (size_t i = 0; *copy != NULL && i < count; i++) {
        size_t size = strlen(command[i]) + 1;
        if (((*copy)[i] = os_alloc(size)) == NULL)
            return ENOMEM;
        memcpy((*copy)[i], command[i], size);
    }
    return *copy != NULL ? 0 : ENOMEM;
}

static int copy_pointed_to(pool_settings *settings, const pebble_pool_options *options) {
    const char *name = options->name != NULL ? options->name : "pebble";
    size_t input_size = options->initializer_input_size;
    settings->name = os_alloc(strlen(name) + 1);
    settings->initializer_input = os_alloc(input_size + 1);
    if (settings->name == NULL || settings->initializer_input == NULL)
        return ENOMEM;
    memcpy(settings->name, name, strlen(name) + 1);
    if (input_size > 0)
        memcpy(settings->initializer_input, options->initializer_input, input_size);
    int error = 0;
    if (options->worker_command != NULL)
        error = copy_command(&settings->worker_command, options->worker_command);
    if (error == 0 && options->worker_data_size > 0)
        error = os_shared_of_bytes("pebble-data", options->worker_data,
                                   options->worker_data_size, &settings->worker_data_fd);
    return error;
}

static pebble_error settings_init(pool_settings *settings,
                                  const pebble_pool_options *options, const char *name) {
    memset(settings, 0, sizeof *settings);
    settings->worker_data_fd = -1;
    settings->max_workers =
        options->max_workers != 0 ? options->max_workers : (int)os_usable_processors();
    if (settings->max_workers > PEBBLE_MAX_WORKERS)
        settings->max_workers = PEBBLE_MAX_WORKERS;
    settings->max_tasks = options->max_tasks;
    settings->initializer = options->initializer;
    settings->initializer_input_size = options->initializer_input_size;
    settings->initializer_timeout_ns = options->initializer_timeout_ns != 0
                                           ? options->initializer_timeout_ns
                                           : default_initializer_timeout_ns;
    settings->termination_grace_ns = options->termination_grace_ns != 0
                                         ? options->termination_grace_ns
                                         : default_grace_ns;
    settings->start_method = options->start_method != PEBBLE_START_DEFAULT
                                 ? options->start_method
                                 : PEBBLE_START_FORK;
    settings->hooks = options->hooks;
    settings->worker_data_size = options->worker_data_size;
    int error = copy_pointed_to(settings, options);
    if (error == 0)
        error = fork_watch();
    if (error == 0)
        return PEBBLE_OK;
    pool_settings_fini(settings);
    return error_set_system(error, name);
}

static pebble_error pool_new(const pebble_pool_options *options, pebble_pool **pool,
                             bool threads, bool single_call, const char *name) {
    pebble_pool_options all = PEBBLE_POOL_OPTIONS_INIT;
    pool_settings settings;
    if (!COPY_OPTIONS(&all, options))
        return invalid(name, "options.struct_size is wrong");
    if (pool == NULL)
        return invalid(name, "pool is NULL");
    pebble_error error = check_pool_options(&all, threads, name);
    if (error != PEBBLE_OK)
        return error;
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state); /* it opens files */
    error = settings_init(&settings, &all, name);
    pthread_setcancelstate(cancel_state, NULL);
    if (error != PEBBLE_OK)
        return error;
    settings.single_call = single_call;
    return threads ? thread_pool_new(&settings, pool) : process_pool_new(&settings, pool);
}

pebble_error pebble_process_pool_new(const pebble_pool_options *options,
                                     pebble_pool **pool) {
    return pool_new(options, pool, false, false, "pebble_process_pool_new");
}

pebble_error pebble_thread_pool_new(const pebble_pool_options *options,
                                    pebble_pool **pool) {
    return pool_new(options, pool, true, false, "pebble_thread_pool_new");
}

/* ---- Scheduling ---- */

static pebble_error check_pool(const pebble_pool *pool, const char *name) {
    if (pool == NULL)
        return invalid(name, "pool is NULL");
    if (pool->fork_epoch != fork_epoch)
        return error_set(PEBBLE_ERR_FORKED, "%s: pool belongs to the parent process",
                         name);
    return PEBBLE_OK;
}

static pebble_error check_task(const pebble_pool *pool, const pebble_task_options *task,
                               const char *name) {
    pebble_error error = check_pool(pool, name);
    if (error != PEBBLE_OK)
        return error;
    if (task->function == NULL)
        return invalid(name, "function is NULL");
    if (task->input == NULL && task->input_size > 0)
        return invalid(name, "input is NULL, input_size is not 0");
    if (task->input_size > PTRDIFF_MAX)
        return invalid(name, "input_size is too large");
    if (task->timeout_ns < 0)
        return invalid(name, "timeout_ns is negative");
    if (task->timeout_ns > 0 && task->timeout_ns != PEBBLE_FOREVER && pool->kind->threads)
        return invalid(name, "timeout_ns is not 0: a thread cannot be interrupted");
    return PEBBLE_OK;
}

/* Makes the future and gives it to the pool. On an error the input is still the caller's. */
pebble_error pool_schedule(pebble_pool *pool, const pebble_task_options *task,
                           task_kind kind, pebble_future **future, const char *name) {
    pebble_future *made = future_new(pool);
    if (made == NULL)
        return error_set_system(ENOMEM, name);
    made->function = task->function;
    made->timeout_ns = task->timeout_ns;
    made->kind = (uint8_t)kind;
    if (future_set_input(made, task->input, task->input_size, task->release_input,
                         task->release_context) != 0) {
        future_discard(made);
        return error_set_system(ENOMEM, name);
    }
    pebble_error error = pool->kind->schedule(pool, made, name);
    if (error != PEBBLE_OK) {
        future_discard(made);
        return error;
    }
    if (future != NULL)
        *future = made;
    else
        pebble_future_unref(made);
    return PEBBLE_OK;
}

pebble_error pebble_schedule(pebble_pool *pool, pebble_function function,
                             const void *input, size_t input_size, int64_t timeout_ns,
                             pebble_future **future) {
    pebble_task_options task = {.function = function,
                                .input = input,
                                .input_size = input_size,
                                .timeout_ns = timeout_ns};
    pebble_error error = check_task(pool, &task, "pebble_schedule");
    if (error != PEBBLE_OK)
        return error;
    return pool_schedule(pool, &task, TASK_FUNCTION, future, "pebble_schedule");
}

pebble_error pebble_schedule_task(pebble_pool *pool, const pebble_task_options *options,
                                  pebble_future **future) {
    static const char name[] = "pebble_schedule_task";
    pebble_task_options task = PEBBLE_TASK_OPTIONS_INIT;
    if (options == NULL || !COPY_OPTIONS(&task, options))
        return invalid(name, "options is NULL or its struct_size is wrong");
    pebble_error error = check_task(pool, &task, name);
    if (error != PEBBLE_OK)
        return error;
    return pool_schedule(pool, &task, TASK_FUNCTION, future, name);
}

/* ---- A pool's life ---- */

bool pebble_pool_active(const pebble_pool *pool) {
    return check_pool(pool, "pebble_pool_active") == PEBBLE_OK && pool->kind->active(pool);
}

pebble_error pebble_pool_close(pebble_pool *pool) {
    pebble_error error = check_pool(pool, "pebble_pool_close");
    if (error == PEBBLE_OK) {
        atomic_store(&pool->closed, 1);
        pool->kind->close(pool);
    }
    return error;
}

pebble_error pebble_pool_stop(pebble_pool *pool) {
    pebble_error error = check_pool(pool, "pebble_pool_stop");
    if (error == PEBBLE_OK) {
        atomic_store(&pool->closed, 1);
        pool->kind->stop(pool);
    }
    return error;
}

pebble_error pebble_pool_join(pebble_pool *pool, int64_t timeout_ns) {
    static const char name[] = "pebble_pool_join";
    pebble_error error = check_pool(pool, name);
    if (error != PEBBLE_OK)
        return error;
    if (timeout_ns < 0)
        return invalid(name, "timeout_ns is negative");
    if (callback_runner_is_here(&pool->callbacks) ||
        callback_runner_is_here(&pool->wakers) || pool->kind->runs_here(pool))
        return error_set(PEBBLE_ERR_DEADLOCK,
                         "%s: called from the pool's own callback or task", name);
    if (atomic_load(&pool->closed) == 0)
        return error_set(PEBBLE_ERR_ACTIVE, "%s: the pool is neither closed nor stopped",
                         name);
    int64_t deadline_ns = os_deadline_after(timeout_ns);
    while (atomic_load_explicit(&pool->gone, memory_order_acquire) == 0) {
        int ended = os_futex_wait_interruptible(&pool->gone, 0, deadline_ns);
        if (ended == ETIMEDOUT || interrupt_ends_wait(ended))
            return error_set(future_wait_error(ended), "%s: some worker is still running",
                             name);
    }
    error = future_wait_error(callback_runner_join(&pool->wakers, deadline_ns));
    if (error == PEBBLE_OK)
        error = future_wait_error(callback_runner_join(&pool->callbacks, deadline_ns));
    if (error != PEBBLE_OK)
        return error_set(error, "%s: some callback is still running", name);
    return PEBBLE_OK;
}

void pebble_pool_free(pebble_pool *pool) {
    if (pool == NULL || pool->fork_epoch != fork_epoch)
        return;
    if (atomic_load(&pool->gone) == 0)
        pebble_pool_stop(pool);
    pool_unref(pool);
}

pebble_error pebble_pool_get_info(pebble_pool *pool, pebble_pool_info *info) {
    static const char name[] = "pebble_pool_get_info";
    pebble_error error = check_pool(pool, name);
    if (error != PEBBLE_OK)
        return error;
    if (info == NULL || info->struct_size < sizeof *info)
        return invalid(name, "info is NULL or its struct_size is wrong");
    info->max_workers = pool->settings.max_workers;
    pool->kind->info(pool, info);
    return PEBBLE_OK;
}

pebble_error pebble_pool_get_pids(pebble_pool *pool, pid_t *pids, size_t capacity,
                                  size_t *count) {
    static const char name[] = "pebble_pool_get_pids";
    pebble_error error = check_pool(pool, name);
    if (error != PEBBLE_OK)
        return error;
    if (pids == NULL && capacity > 0)
        return invalid(name, "pids is NULL, capacity is not 0");
    if (count == NULL)
        return invalid(name, "count is NULL");
    *count = pool->kind->pids(pool, pids, capacity);
    return PEBBLE_OK;
}

/* ---- One call in a process or thread of its own: a pool for one task ---- */

static pebble_error call_alone(pebble_function function, const void *input,
                               size_t input_size, const pebble_concurrent_options *options,
                               pebble_future **future, bool thread, const char *name) {
    pebble_concurrent_options all = PEBBLE_CONCURRENT_OPTIONS_INIT;
    pebble_pool_options pool_options = PEBBLE_POOL_OPTIONS_INIT;
    pebble_pool *pool;
    if (!COPY_OPTIONS(&all, options))
        return invalid(name, "options.struct_size is wrong");
    pool_options.max_workers = 1;
    pool_options.name = all.name;
    pool_options.termination_grace_ns = all.termination_grace_ns;
    pool_options.hooks = all.hooks;
    if (!thread) {
        pool_options.start_method = all.start_method;
        pool_options.worker_command = all.worker_command;
        pool_options.worker_data = all.worker_data;
        pool_options.worker_data_size = all.worker_data_size;
    }
    pebble_error error = pool_new(&pool_options, &pool, thread, true, name);
    if (error != PEBBLE_OK)
        return error;
    pebble_task_options task = {.function = function,
                                .input = input,
                                .input_size = input_size,
                                .timeout_ns = all.timeout_ns,
                                .release_input = all.release_input,
                                .release_context = all.release_context};
    error = check_task(pool, &task, name);
    if (error == PEBBLE_OK)
        error = pool_schedule(pool, &task, TASK_FUNCTION, future, name);
    pebble_pool_close(pool);
    pool_unref(pool);
    return error;
}

pebble_error pebble_concurrent_process(pebble_function function, const void *input,
                                       size_t input_size,
                                       const pebble_concurrent_options *options,
                                       pebble_future **future) {
    return call_alone(function, input, input_size, options, future, false,
                      "pebble_concurrent_process");
}

pebble_error pebble_concurrent_thread(pebble_function function, const void *input,
                                      size_t input_size,
                                      const pebble_concurrent_options *options,
                                      pebble_future **future) {
    return call_alone(function, input, input_size, options, future, true,
                      "pebble_concurrent_thread");
}
