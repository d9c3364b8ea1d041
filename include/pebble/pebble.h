/* pebble.h - pools of processes and threads that never hang.
 *
 * Copyright (c) 2026 the Pebble authors. SPDX-License-Identifier: MIT
 *
 * A program hands a function to a pool, with a timeout if it likes, and gets back a future.
 * In a process pool the function may loop for ever, leak, corrupt memory or crash: a crash, or a
 * run over its timeout, ends its future with the reason, and every other task goes on.
 *
 *     static int shout(pebble_task *task, const void *input, size_t input_size) {
 *         for (size_t i = 0; i < input_size; i++) {
 *             char c = (char)toupper(((const unsigned char *)input)[i]);
 *             pebble_task_write(task, &c, 1);
 *         }
 *         return 0;
 *     }
 *
 *     pebble_pool *pool;
 *     pebble_future *future;
 *     const void *data;
 *     size_t size;
 *
 *     pebble_process_pool_new(NULL, &pool);
 *     pebble_schedule(pool, shout, "hello", 5, PEBBLE_SECONDS(1), &future);
 *     if (pebble_future_result(future, PEBBLE_FOREVER, &data, &size) == PEBBLE_OK)
 *         printf("%.*s\n", (int)size, (const char *)data);
 *     pebble_future_unref(future);
 *     pebble_pool_close(pool);
 *     pebble_pool_join(pool, PEBBLE_FOREVER);
 *     pebble_pool_free(pool);
 *
 * This header reads from simple to advanced: errors and time, pools, futures, tasks, map, a
 * process or thread for one call, typed tasks; then what helps beside pools: synchronized,
 * sighandler, waiting for threads and for queues; last what embedders of language runtimes need.
 *
 * What holds for every function unless its comment says otherwise:
 *   - It may be called from any thread. It blocks only if it waits for something with a
 *     timeout.
 *   - It returns a pebble_error. Unless that is PEBBLE_OK, its out-parameters are untouched and
 *     pebble_error_message() tells more, naming the argument if one was wrong.
 *   - Pointers to objects must be valid; a NULL one gives PEBBLE_ERR_INVALID. The functions that
 *     end the life of an object accept NULL and do nothing.
 *   - Time is in nanoseconds of the monotonic clock; setting the wall clock changes nothing.
 *   - After fork() without exec, a pool, future or map of the parent is of no use in the child:
 *     calls on it give PEBBLE_ERR_FORKED (or false, or do nothing), and the parent's go on. The
 *     child may make pools of its own.
 *   - No function but pebble_interrupt() may be called from a signal handler.
 *   - A thread with pthread_cancel() pending is not cancelled in a call that takes a pool or a future
 *     (deferred cancellation; not asynchronous). A worker process's main thread cannot be cancelled.
 */
#ifndef PEBBLE_H
#define PEBBLE_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pebble_version.h"

#if defined(__GNUC__) || defined(__clang__)
#define PEBBLE_API __attribute__((visibility("default")))
#define PEBBLE_PRINTF(format_at, first_at)                                               \
    __attribute__((format(printf, format_at, first_at)))
#else
#define PEBBLE_API
#define PEBBLE_PRINTF(format_at, first_at)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== Version ============================================================================ */

/* The version of the library in use, as "major.minor.patch"; the header's is PEBBLE_VERSION.
 * Safe anywhere, a static string. */
PEBBLE_API const char *pebble_version(void);

/* The version of the library in use as a number: major * 10000 + minor * 100 + patch; the
 * header's is PEBBLE_VERSION_NUMBER. */
PEBBLE_API int pebble_version_number(void);

/* ==== Errors ============================================================================= */

/* Every error: name and text. Those that start with TASK_ are how a task may end. */
#define PEBBLE_ERRORS(X)                                                                 \
    X(OK, "no error")                                                                    \
    X(ERR_INVALID, "an argument is invalid")                                             \
    X(ERR_NO_MEMORY, "out of memory")                                                    \
    X(ERR_SYSTEM, "the system refused a resource")                                       \
    X(ERR_TIMEOUT, "the wait ended before what it waited for")                           \
    X(ERR_NOT_ACTIVE, "the pool is closed or stopped")                                   \
    X(ERR_ACTIVE, "the pool is neither closed nor stopped")                              \
    X(ERR_BROKEN, "the pool's workers cannot be started")                                \
    X(ERR_FORKED, "the object belongs to the process that forked this one")              \
    X(ERR_DEADLOCK, "the call would wait for itself")                                    \
    X(ERR_END, "there are no more elements")                                             \
    X(ERR_TASK_FAILED, "the task returned an error")                                     \
    X(ERR_TASK_TIMEOUT, "the task ran longer than its timeout")                          \
    X(ERR_TASK_CANCELLED, "the task was cancelled")                                      \
    X(ERR_TASK_EXPIRED, "the task's process died unexpectedly")                          \
    X(ERR_INTERRUPTED, "a signal handler ran during the wait")

typedef enum pebble_error {
#define PEBBLE_ERROR_MEMBER(name, text) PEBBLE_##name,
    PEBBLE_ERRORS(PEBBLE_ERROR_MEMBER)
#undef PEBBLE_ERROR_MEMBER
} pebble_error;

/* The name of an error, for example "PEBBLE_ERR_TIMEOUT"; a static string, never NULL. */
PEBBLE_API const char *pebble_error_name(pebble_error error);

/* The text of an error, for example "the wait ended before what it waited for"; a static
 * string, never NULL. */
PEBBLE_API const char *pebble_error_text(pebble_error error);

/* What was wrong with the calling thread's last call that did not return PEBBLE_OK, for example
 * "pebble_schedule: function is NULL". Owned by the library, valid until that thread's next call
 * that fails; never NULL. */
PEBBLE_API const char *pebble_error_message(void);

/* ==== Time =============================================================================== */

/* As a timeout of a wait: wait without a limit. Zero: do not wait. Negative: invalid. As the timeout
 * of a task this and zero mean that there is no limit. */
#define PEBBLE_FOREVER INT64_MAX

#define PEBBLE_SECONDS(n) ((int64_t)(INT64_C(1000000000) * (n)))
#define PEBBLE_MILLISECONDS(n) ((int64_t)(INT64_C(1000000) * (n)))
#define PEBBLE_MICROSECONDS(n) ((int64_t)(INT64_C(1000) * (n)))

/* ==== Types ============================================================================== */

typedef struct pebble_pool pebble_pool;     /* workers, of processes or of threads */
typedef struct pebble_future pebble_future; /* how a task ends; reference counted */
typedef struct pebble_task pebble_task;     /* a task, as its own function sees it */
typedef struct pebble_map pebble_map;       /* the results of a map, in order */

/* A task's function: bytes in, bytes out.
 *   task    for pebble_task_write() and pebble_task_fail(); valid until the function returns
 *   input   the bytes given to pebble_schedule(), aligned to 16 bytes (in a thread pool, an input
 *           with release_input is passed as it is), read-only (in a process pool, writing there
 *           crashes the task); valid until the function returns
 * The library that it is in must not be unloaded (dlclose) while a pool has it that has been given it once.
 * Returns 0 for success; any other value is the code of the error that its future ends with. */
typedef int (*pebble_function)(pebble_task *task, const void *input, size_t input_size);

/* Called at a worker's start, before its first task. Returns 0 for success; anything else, a
 * crash, or a run over initializer_timeout_ns is a failed start. After three in a row with no
 * successful one between them, the pool is broken: its futures end with PEBBLE_ERR_BROKEN. */
typedef int (*pebble_initializer)(const void *input, size_t input_size);

/* Bytes that somebody else owns. */
typedef struct pebble_bytes {
    const void *data;
    size_t size;
} pebble_bytes;

/* ==== Pools ============================================================================== */

/* How the processes of a pool come about (as in Python's multiprocessing).
 *
 * A pool has one child process of the program, which has the workers for its own children; so
 * wait(NULL) in a loop finds a child for as long as a pool lives: wait for your own by number.
 * With PEBBLE_START_FORK the pool's processes keep the program's descriptors, as any child, and
 * tasks run on the stack of the thread that scheduled the pool's first task, whose size is their
 * limit. */
typedef enum pebble_start_method {
    PEBBLE_START_DEFAULT, /* PEBBLE_START_FORK */
    PEBBLE_START_FORK,    /* forked from the program as it was at the pool's first task */
    PEBBLE_START_FORKSERVER, /* forked from a clean process, executed afresh */
    PEBBLE_START_SPAWN       /* each executed afresh */
} pebble_start_method;

typedef struct pebble_hooks pebble_hooks;

/* Options of a pool. Set struct_size (PEBBLE_POOL_OPTIONS_INIT does), leave the rest zero for the
 * defaults. Read during the call only; what it points to is copied, hooks apart. */
typedef struct pebble_pool_options {
    size_t struct_size; /* sizeof(pebble_pool_options) */

    /* How many tasks may run at once, 1 to PEBBLE_MAX_WORKERS. Default (0): the processors that
     * this process may use, by affinity and control group quota. */
    int max_workers;

    /* A worker is replaced by a new one after so many tasks. Default: never. */
    uint64_t max_tasks;

    /* Called in every worker at its start, with a copy of initializer_input. */
    pebble_initializer initializer;
    const void *initializer_input;
    size_t initializer_input_size;

    /* The longest that the initializer may take. Default: 60 s. Processes only. */
    int64_t initializer_timeout_ns;

    /* The workers' name, as shown by ps and top: "name-1", "name-2" and so on, name cut to 10
     * characters. Default: "pebble". */
    const char *name;

    /* The rest is for processes only. */

    pebble_start_method start_method;

    /* From SIGTERM to SIGKILL, for a task that is timed out, cancelled or stopped and for all
     * the processes that it started. Default: 3 s. */
    int64_t termination_grace_ns;

    /* For forkserver and spawn: the command that is executed, ending in NULL; its main must call
     * pebble_worker_main() first. Default: the running program, without arguments. */
    const char *const *worker_command;

    /* See "Embedding a language runtime" at the end; for threads too. Not copied: must outlive the
     * pool. */
    const pebble_hooks *hooks;

    /* For forkserver and spawn: bytes that every process executed for the pool finds with
     * pebble_worker_data(). Copied. */
    const void *worker_data;
    size_t worker_data_size;
} pebble_pool_options;

#define PEBBLE_POOL_OPTIONS_INIT                                                         \
    {                                                                                    \
        sizeof(pebble_pool_options), 0, 0, 0, 0, 0, 0, 0, PEBBLE_START_DEFAULT, 0, 0, 0, \
            0, 0                                                                         \
    }

#define PEBBLE_MAX_WORKERS 4096

/* In C, options in place: pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 2), &pool). */
#define PEBBLE_POOL_OPTIONS(...)                                                         \
    (&(const pebble_pool_options){.struct_size = sizeof(pebble_pool_options),            \
                                  __VA_ARGS__})

/* Makes a pool of processes. Costs nothing until the first task: then the workers start, from a
 * process of their own that the program forks or executes (see pebble_start_method), never from
 * the program itself. In a worker the signal SIGSTKFLT is the library's: it comes when that process
 * has been killed, and ends the worker with all that it started.
 *   options  NULL for the defaults
 *   pool     out: free with pebble_pool_free()
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY, PEBBLE_ERR_SYSTEM. */
PEBBLE_API pebble_error pebble_process_pool_new(const pebble_pool_options *options,
                                                pebble_pool **pool);

/* Makes a pool of threads, used exactly as a pool of processes, but that nothing can stop a
 * running task: a task's timeout is PEBBLE_ERR_INVALID, a running task cannot be cancelled, and
 * stop lets the running tasks finish. Inputs and results may hold pointers. Its threads, and the
 * one that runs done-callbacks, have the signal mask of the thread that brought them about. A task
 * may end its thread (pthread_exit): it fails, and the thread is replaced. In a child that it
 * forks, a task must not return: if it does, the child exits. Join returns when they have done
 * their last task, which may be a moment before the system counts them as ended. Errors as
 * pebble_process_pool_new(). */
PEBBLE_API pebble_error pebble_thread_pool_new(const pebble_pool_options *options,
                                               pebble_pool **pool);

/* Schedules a function to run in the pool.
 *   input       copied (see pebble_schedule_task() for large data); may be NULL if input_size is 0
 *   timeout_ns  the longest that the task may run, from its start, not counting its time in the
 *               queue; then its process and all that it started are ended, and its future ends
 *               with PEBBLE_ERR_TASK_TIMEOUT. 0 for no limit.
 *   future      out: release with pebble_future_unref(). NULL if nobody cares how the task ends.
 * Tasks start about in their order: one that was given to a worker behind a slow one goes to
 * another worker as soon as one is idle. The first task of a process pool starts its processes, in
 * the calling thread: a fork of the program, which takes the longer the more memory that has (0.25
 * ms, or 33 ms with 1 GiB).
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NOT_ACTIVE after close or stop, PEBBLE_ERR_BROKEN,
 * PEBBLE_ERR_NO_MEMORY, PEBBLE_ERR_SYSTEM, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_schedule(pebble_pool *pool, pebble_function function,
                                        const void *input, size_t input_size,
                                        int64_t timeout_ns, pebble_future **future);

/* A task with everything that can be said of it. Set struct_size, leave the rest zero for the
 * defaults. */
typedef struct pebble_task_options {
    size_t struct_size; /* sizeof(pebble_task_options) */
    pebble_function function;
    const void *input;
    size_t input_size;
    int64_t timeout_ns;

    /* If set, the input is not copied: it must stay as it is until the library calls this, once,
     * from any thread, when it needs the input no more (also after the task's end). It must not
     * call the library, and must return: a cancellation of its thread waits for that. It is called
     * on success only: if the schedule call fails, the input is still the caller's. */
    void (*release_input)(void *release_context);
    void *release_context;
} pebble_task_options;

#define PEBBLE_TASK_OPTIONS_INIT                                                         \
    { sizeof(pebble_task_options), 0, 0, 0, 0, 0, 0 }

/* As pebble_schedule(), with options. */
PEBBLE_API pebble_error pebble_schedule_task(pebble_pool *pool,
                                             const pebble_task_options *options,
                                             pebble_future **future);

/* True while the pool takes tasks: before close, stop, and a break. */
PEBBLE_API bool pebble_pool_active(const pebble_pool *pool);

/* No more tasks are taken; those queued and running are performed. Harmless if repeated or after
 * stop. Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_pool_close(pebble_pool *pool);

/* Stops the pool abruptly. Process pool: every queued and running task ends as cancelled, the
 * running ones when their processes are gone. Thread pool: the running tasks (of a map: the running
 * chunks, to their end) are performed, the queued ones cancelled. Does not wait; harmless if
 * repeated. Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_pool_stop(pebble_pool *pool);

/* Waits until every worker of a closed or stopped pool has gone, every future has ended and every
 * callback has returned.
 * Errors: PEBBLE_ERR_ACTIVE before close or stop (of a broken pool too), PEBBLE_ERR_TIMEOUT, PEBBLE_ERR_DEADLOCK from a
 * done-callback or from a task of the pool itself. */
PEBBLE_API pebble_error pebble_pool_join(pebble_pool *pool, int64_t timeout_ns);

/* Frees a pool. One that still runs is stopped, and goes by itself. Futures stay valid until they
 * are unreferenced. Never blocks. NULL is fine. No call on the pool may run beside or follow. */
PEBBLE_API void pebble_pool_free(pebble_pool *pool);

/* What a pool is doing. */
typedef struct pebble_pool_info {
    size_t struct_size; /* in: sizeof(pebble_pool_info) */
    int max_workers;    /* as in the options, or their default */
    int workers;        /* processes or threads that serve tasks now */
    uint64_t queued;    /* tasks not yet given to a worker */
    uint64_t in_flight; /* tasks given to a worker and not ended; initializers are none */
    uint64_t ended;     /* tasks ended, in whatever way */
    uint64_t worker_deaths; /* workers, spares too, that ended without having been told to */
} pebble_pool_info;

#define PEBBLE_POOL_INFO_INIT                                                            \
    { sizeof(pebble_pool_info), 0, 0, 0, 0, 0, 0 }

/* Fills info. A snapshot: it may be old when it is read. Errors: PEBBLE_ERR_INVALID,
 * PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_pool_get_info(pebble_pool *pool, pebble_pool_info *info);

/* The process ids of the workers that serve tasks now (none for a thread pool).
 *   pids      out: filled up to capacity; may be NULL if capacity is 0
 *   count     out: how many there are, which may be more than capacity
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_pool_get_pids(pebble_pool *pool, pid_t *pids,
                                             size_t capacity, size_t *count);

/* ==== Futures ============================================================================ */

typedef enum pebble_state {
    PEBBLE_PENDING,   /* not started yet */
    PEBBLE_RUNNING,   /* started, or being stopped */
    PEBBLE_CANCELLED, /* ended: cancelled */
    PEBBLE_FINISHED   /* ended: with a result or an error */
} pebble_state;

/* Why a task did not succeed. Owned by its future. Fields that do not apply are zero. */
typedef struct pebble_failure {
    /* A PEBBLE_ERR_TASK_..., or PEBBLE_ERR_BROKEN, or PEBBLE_ERR_NO_MEMORY if there was none for
     * the result. */
    pebble_error kind;

    /* What happened, never NULL: one line, or the text that pebble_task_fail() got. */
    const char *message;

    /* TASK_FAILED: what the function returned or pebble_task_fail() got. BROKEN: what the
     * initializer returned, or how its process ended, as exit_code. */
    int code;

    int64_t timeout_ns; /* TASK_TIMEOUT: the limit */
    pid_t pid;          /* the worker's process */
    int exit_code; /* TASK_EXPIRED: its exit code; if a signal ended it, minus its number */
    int signal;    /* TASK_EXPIRED: the signal that ended it, or 0 */

    /* TASK_EXPIRED by a crash: lines "#0 function+0x1f (module)", the innermost first, down to the
     * library's own that called the function; or NULL. */
    const char *backtrace;
} pebble_failure;

/* The state now. Of NULL, and in the child after a fork: PEBBLE_CANCELLED. */
PEBBLE_API pebble_state pebble_future_state(pebble_future *future);

/* True if the future has ended, in whatever way. */
PEBBLE_API bool pebble_future_done(pebble_future *future);

/* Waits until the future has ended, in whatever way.
 * Errors: PEBBLE_ERR_TIMEOUT, PEBBLE_ERR_INVALID, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_future_wait(pebble_future *future, int64_t timeout_ns);

/* Waits for the result.
 *   data, size  out, each may be NULL: the bytes that the task wrote, aligned to 16 bytes, owned
 *               by the future. data is not NULL even if size is 0.
 * Returns PEBBLE_OK; PEBBLE_ERR_TIMEOUT if the wait ended first; else the kind of the failure,
 * about which pebble_future_failure() tells more. */
PEBBLE_API pebble_error pebble_future_result(pebble_future *future, int64_t timeout_ns,
                                             const void **data, size_t *size);

/* Why the task did not succeed, owned by the future; NULL if it did or has not ended. */
PEBBLE_API const pebble_failure *pebble_future_failure(pebble_future *future);

/* The process that ran the task: known from its start on; 0 before, and in a thread pool. */
PEBBLE_API pid_t pebble_future_pid(pebble_future *future);

/* Cancels a task. A queued one never starts. A running one in a process pool is ended together
 * with every process that it started; its future ends as cancelled when they are gone.
 * Returns true if the task is or will be cancelled; false if it has ended already or is being
 * timed out, or, in a thread pool, if it runs. */
PEBBLE_API bool pebble_future_cancel(pebble_future *future);

typedef void (*pebble_callback)(pebble_future *future, void *context);

/* Has callback called when the future has ended, once; callbacks of one pool run one after
 * another, in a thread of the library, in no lock, in the order of the futures' ends; at once and
 * in the calling thread if the future has ended already. A callback may call everything but
 * pebble_pool_join() on its own pool; it may unreference a future of its own, and future is valid
 * until it returns. It is called also if nobody has a reference to the future any more. If it ends
 * its thread, another goes on with the rest.
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY, PEBBLE_ERR_SYSTEM. */
PEBBLE_API pebble_error pebble_future_add_callback(pebble_future *future,
                                                   pebble_callback callback,
                                                   void *context);

/* The same for a callback that wakes somebody who waits for the future (an event loop, another
 * language's futures) and does not block: it is called in a thread of the pool for such, so that a
 * done-callback that blocks does not hold it up. */
PEBBLE_API pebble_error pebble_future_add_waker(pebble_future *future,
                                                pebble_callback callback, void *context);

/* Adds a reference; returns future. */
PEBBLE_API pebble_future *pebble_future_ref(pebble_future *future);

/* Drops a reference; the last one frees the future, not the task: that goes on. NULL is fine. */
PEBBLE_API void pebble_future_unref(pebble_future *future);

/* Waits until at least one of the futures has ended.
 *   index  out, may be NULL: the first that has, in the array's order
 * Errors: PEBBLE_ERR_TIMEOUT, PEBBLE_ERR_INVALID also for count 0, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_future_wait_any(pebble_future *const *futures, size_t count,
                                               int64_t timeout_ns, size_t *index);

/* Waits until all of the futures have ended. Errors: PEBBLE_ERR_TIMEOUT, PEBBLE_ERR_INVALID,
 * PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_future_wait_all(pebble_future *const *futures,
                                               size_t count, int64_t timeout_ns);

/* ==== In a task ========================================================================== */

/* Appends to the task's result. A result may be of any size: large ones stream to the program
 * while the task goes on, so the call may block until the program has taken some. Only for the
 * thread that runs the task. Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY. */
PEBBLE_API pebble_error pebble_task_write(pebble_task *task, const void *data,
                                          size_t size);

/* Makes the task end with an error: its future fails with this code and message, and what was
 * written is dropped. Returns code (1 if code is 0), so that a task can end with
 * `return pebble_task_fail(task, 7, "no such file: %s", name);`. The last call counts. The message
 * is cut after 1023 bytes. If task or format is NULL the task does not fail by this call, but the
 * value returned, given back by its function, makes it. */
PEBBLE_API int pebble_task_fail(pebble_task *task, int code, const char *format, ...)
    PEBBLE_PRINTF(3, 4);

/* As pebble_task_fail(), with a list of arguments. */
PEBBLE_API int pebble_task_vfail(pebble_task *task, int code, const char *format,
                                 va_list args) PEBBLE_PRINTF(3, 0);

/* Makes a large input the function's own, to keep it or parts of it beyond the call without a copy.
 * Returns the input's address, writable, to be released by free(); it is valid until then. NULL if the
 * input has no memory of its own (in a process pool, one of up to 16 KiB; in a thread pool always) or
 * was taken: then it ends with the call. */
PEBBLE_API void *pebble_task_take_input(pebble_task *task);

/* True after pebble_task_fail(). */
PEBBLE_API bool pebble_task_failed(const pebble_task *task);

/* ==== Map ================================================================================ */

/* A map: function applied to each of count inputs. Set struct_size, leave the rest zero for the
 * defaults. The inputs are either inputs, or items as one array of count elements of item_size
 * bytes each. Read during the call only. */
typedef struct pebble_map_options {
    size_t struct_size; /* sizeof(pebble_map_options) */
    pebble_function function;
    const void *items;
    size_t item_size;
    const pebble_bytes *inputs;
    size_t count;

    /* So many elements go to a worker as one task. Default: 1. */
    size_t chunk_size;

    /* Processes: the longest that the computing of one chunk may take; then all its elements end
     * with PEBBLE_ERR_TASK_TIMEOUT, also those that were computed. (A crash costs the chunk in the
     * same way, an element that merely fails itself alone.) Threads: pebble_map_next() gives
     * PEBBLE_ERR_TASK_TIMEOUT for an element that is not there so long after the map was made. 0
     * for no limit. */
    int64_t timeout_ns;
} pebble_map_options;

#define PEBBLE_MAP_OPTIONS_INIT                                                          \
    { sizeof(pebble_map_options), 0, 0, 0, 0, 0, 0, 0 }

/* Applies function to each of the elements of an array.
 *   items, item_size, count  the array, copied
 *   chunk_size, timeout_ns   see pebble_map_options
 *   map                      out: release with pebble_map_unref()
 * Errors as pebble_schedule(); if one comes half way, what was scheduled is cancelled, but some
 * elements may have run. */
PEBBLE_API pebble_error pebble_pool_map(pebble_pool *pool, pebble_function function,
                                        const void *items, size_t item_size, size_t count,
                                        size_t chunk_size, int64_t timeout_ns,
                                        pebble_map **map);

/* As pebble_pool_map(), with options: inputs of any sizes. */
PEBBLE_API pebble_error pebble_pool_map_with(pebble_pool *pool,
                                             const pebble_map_options *options,
                                             pebble_map **map);

/* Waits for the next element's result, in the order of the inputs. For one thread at a time.
 *   data, size  out, each may be NULL: the result, valid until the next call on this map
 * Returns PEBBLE_OK; PEBBLE_ERR_END after the last element; PEBBLE_ERR_TIMEOUT if this wait ended
 * first (call again); PEBBLE_ERR_INVALID, PEBBLE_ERR_FORKED; else how this element failed, see
 * pebble_map_failure(): the iteration goes on behind it. */
PEBBLE_API pebble_error pebble_map_next(pebble_map *map, int64_t timeout_ns,
                                        const void **data, size_t *size);

/* Why the element that pebble_map_next() returned last failed; NULL if it did not. Valid until
 * the next call on this map. */
PEBBLE_API const pebble_failure *pebble_map_failure(const pebble_map *map);

/* Waits until every element has ended. Errors: PEBBLE_ERR_TIMEOUT, PEBBLE_ERR_INVALID. */
PEBBLE_API pebble_error pebble_map_wait(pebble_map *map, int64_t timeout_ns);

/* True if every element has ended. */
PEBBLE_API bool pebble_map_done(pebble_map *map);

/* Cancels every element that has not ended (threads: not started). Returns true if there was
 * one. */
PEBBLE_API bool pebble_map_cancel(pebble_map *map);

/* Adds a reference; returns map. */
PEBBLE_API pebble_map *pebble_map_ref(pebble_map *map);

/* Drops a reference; the last one frees the map; its tasks go on. NULL is fine. */
PEBBLE_API void pebble_map_unref(pebble_map *map);

/* ==== One call in a process or thread of its own ========================================= */

/* Options of a single call. Set struct_size, leave the rest zero for the defaults. */
typedef struct pebble_concurrent_options {
    size_t struct_size; /* sizeof(pebble_concurrent_options) */
    const char *name; /* of the process or thread, cut to 15 characters. Default: "pebble" */

    /* The rest is as in pebble_pool_options, pebble_schedule() and pebble_task_options; for processes
     * only, but for hooks and release_input. A thread must have no timeout_ns; what else is set is
     * ignored. */
    int64_t timeout_ns;
    int64_t termination_grace_ns;
    pebble_start_method start_method;
    const char *const *worker_command;
    const pebble_hooks *hooks;
    const void *worker_data;
    size_t worker_data_size;
    void (*release_input)(void *release_context);
    void *release_context;
} pebble_concurrent_options;

#define PEBBLE_CONCURRENT_OPTIONS_INIT                                                   \
    { sizeof(pebble_concurrent_options), 0, 0, 0, PEBBLE_START_DEFAULT, 0, 0, 0, 0, 0, 0 }

/* Runs function in a new process, forked from the program as it is now.
 * options may be NULL. The rest as pebble_schedule(). */
PEBBLE_API pebble_error pebble_concurrent_process(pebble_function function,
                                                  const void *input, size_t input_size,
                                                  const pebble_concurrent_options *options,
                                                  pebble_future **future);

/* Runs function in a new thread. The options' timeout_ns must be 0. The rest as
 * pebble_schedule(). */
PEBBLE_API pebble_error pebble_concurrent_thread(pebble_function function,
                                                 const void *input, size_t input_size,
                                                 const pebble_concurrent_options *options,
                                                 pebble_future **future);

/* ==== Forkserver and spawn =============================================================== */

/* First thing in main of a program whose pools use PEBBLE_START_FORKSERVER or PEBBLE_START_SPAWN:
 * in a process that such a pool executed it serves the pool and does not return; everywhere else
 * it does nothing. A program that forgets it gets PEBBLE_ERR_BROKEN with a message that says so.
 * Functions are found by their module (program or shared library) and their place in it, which
 * works for static ones too; only code made at run time must be registered by name. */
PEBBLE_API void pebble_worker_main(void);

/* In a process that was executed for a pool: the worker_data of that pool's options, aligned to 16
 * bytes, valid as long as the process. Elsewhere, and if there are none: NULL.
 *   size  out, may be NULL */
PEBBLE_API const void *pebble_worker_data(size_t *size);

/* Gives a function a name by which executed workers find it, for functions that are in no module.
 * To be called with the same names in program and worker, before pebble_worker_main(). The name
 * is copied, at most 255 bytes. Errors: PEBBLE_ERR_INVALID also for a name that another function
 * has, PEBBLE_ERR_NO_MEMORY. */
PEBBLE_API pebble_error pebble_register_function(const char *name,
                                                 pebble_function function);

/* ==== Typed tasks ======================================================================== */

/* PEBBLE_TASK(result_type, name, (type, argument)...) { body } defines a task with up to eight
 * typed arguments and a typed result. The body sees its arguments, and `pebble_task *task` for
 * pebble_task_fail(). Types must be plain data: for processes no pointers into the program's
 * memory, and no alignment over 16 bytes.
 *
 *     PEBBLE_TASK(double, power, (double, base), (int, exponent)) {
 *         if (exponent < 0)
 *             return pebble_task_fail(task, 1, "negative exponent: %d", exponent);
 *         ...
 *         return result;
 *     }
 *
 * gives, beside `static double power(pebble_task *task, double base, int exponent)`:
 *
 *     pebble_error power_schedule(pebble_pool *pool, int64_t timeout_ns, pebble_future **future,
 *                                 double base, int exponent);
 *     pebble_error power_result(pebble_future *future, int64_t timeout_ns, double *result);
 *
 * PEBBLE_TASK0(result_type, name) { body } is the same without arguments. */
#define PEBBLE_TASK(result_type, name, ...)                                              \
    struct name##_input {                                                                \
        PEBBLE__EACH(PEBBLE__MEMBER, __VA_ARGS__)                                        \
    };                                                                                   \
    static result_type name(                                                             \
        PEBBLE__UNUSED pebble_task *task PEBBLE__EACH(PEBBLE__PARAMETER, __VA_ARGS__));  \
    static int name##_run(pebble_task *pebble__task, const void *pebble__bytes,          \
                          PEBBLE__UNUSED size_t pebble__size) {                          \
        const struct name##_input *pebble__in =                                          \
            (const struct name##_input *)pebble__bytes;                                  \
        result_type pebble__result =                                                     \
            name(pebble__task PEBBLE__EACH(PEBBLE__MEMBER_OF_INPUT, __VA_ARGS__));       \
        PEBBLE__RETURN_RESULT                                                            \
    }                                                                                    \
    PEBBLE__UNUSED static inline pebble_error name##_schedule(                           \
        pebble_pool *pebble__pool, int64_t pebble__timeout_ns,                           \
        pebble_future **pebble__future PEBBLE__EACH(PEBBLE__PARAMETER, __VA_ARGS__)) {   \
        struct name##_input pebble__in = {PEBBLE__EACH(PEBBLE__VALUE, __VA_ARGS__)};     \
        return pebble_schedule(pebble__pool, name##_run, &pebble__in, sizeof pebble__in, \
                               pebble__timeout_ns, pebble__future);                      \
    }                                                                                    \
    PEBBLE__TYPED_RESULT(result_type, name)                                              \
    static result_type name(                                                             \
        PEBBLE__UNUSED pebble_task *task PEBBLE__EACH(PEBBLE__PARAMETER, __VA_ARGS__))

#define PEBBLE_TASK0(result_type, name)                                                  \
    static result_type name(PEBBLE__UNUSED pebble_task *task);                           \
    static int name##_run(pebble_task *pebble__task,                                     \
                          PEBBLE__UNUSED const void *pebble__bytes,                      \
                          PEBBLE__UNUSED size_t pebble__size) {                          \
        result_type pebble__result = name(pebble__task);                                 \
        PEBBLE__RETURN_RESULT                                                            \
    }                                                                                    \
    PEBBLE__UNUSED static inline pebble_error name##_schedule(                           \
        pebble_pool *pebble__pool, int64_t pebble__timeout_ns,                           \
        pebble_future **pebble__future) {                                                \
        return pebble_schedule(pebble__pool, name##_run, NULL, 0, pebble__timeout_ns,    \
                               pebble__future);                                          \
    }                                                                                    \
    PEBBLE__TYPED_RESULT(result_type, name)                                              \
    static result_type name(PEBBLE__UNUSED pebble_task *task)

/* Waits for a result of exactly so many bytes and copies it: as the result calls of typed tasks,
 * for any future of theirs. Errors as pebble_future_result(), and PEBBLE_ERR_INVALID if its size
 * differs. */
PEBBLE_API pebble_error pebble_future_copy_result(pebble_future *future,
                                                  int64_t timeout_ns, void *data,
                                                  size_t size);

#define PEBBLE__TYPED_RESULT(result_type, name)                                          \
    PEBBLE__UNUSED static inline pebble_error name##_result(                             \
        pebble_future *pebble__future, int64_t pebble__timeout_ns,                       \
        result_type *pebble__result) {                                                   \
        return pebble_future_copy_result(pebble__future, pebble__timeout_ns,             \
                                         pebble__result, sizeof *pebble__result);        \
    }
#define PEBBLE__RETURN_RESULT                                                            \
    if (pebble_task_failed(pebble__task))                                                \
        return 1;                                                                        \
    return (int)pebble_task_write(pebble__task, &pebble__result, sizeof pebble__result);
#define PEBBLE__UNUSED __attribute__((unused))
#define PEBBLE__MEMBER(type, name) type name;
#define PEBBLE__PARAMETER(type, name) , type name
#define PEBBLE__MEMBER_OF_INPUT(type, name) , pebble__in->name
#define PEBBLE__VALUE(type, name) name,
#define PEBBLE__EACH(f, ...)                                                             \
    PEBBLE__PICK(__VA_ARGS__, PEBBLE__8, PEBBLE__7, PEBBLE__6, PEBBLE__5, PEBBLE__4,     \
                 PEBBLE__3, PEBBLE__2, PEBBLE__1, 0)                                     \
    (f, __VA_ARGS__)
#define PEBBLE__PICK(a, b, c, d, e, f, g, h, each, ...) each
#define PEBBLE__1(f, a) f a
#define PEBBLE__2(f, a, ...) f a PEBBLE__1(f, __VA_ARGS__)
#define PEBBLE__3(f, a, ...) f a PEBBLE__2(f, __VA_ARGS__)
#define PEBBLE__4(f, a, ...) f a PEBBLE__3(f, __VA_ARGS__)
#define PEBBLE__5(f, a, ...) f a PEBBLE__4(f, __VA_ARGS__)
#define PEBBLE__6(f, a, ...) f a PEBBLE__5(f, __VA_ARGS__)
#define PEBBLE__7(f, a, ...) f a PEBBLE__6(f, __VA_ARGS__)
#define PEBBLE__8(f, a, ...) f a PEBBLE__7(f, __VA_ARGS__)

/* ==== synchronized ======================================================================= */

/* PEBBLE_SYNCHRONIZED(lock) { body }: one thread at a time is in the body. lock is a
 * pthread_mutex_t *, or NULL for one default mutex that all such blocks share. However the block
 * is left (end, break, continue, return, goto), it is unlocked; not by longjmp. The default mutex
 * is not recursive: a block with it must not be entered from within one. */
#define PEBBLE_SYNCHRONIZED(lock)                                                        \
    PEBBLE__SYNCHRONIZED(lock, PEBBLE__JOIN(pebble__guard_, __LINE__))
#define PEBBLE__SYNCHRONIZED(lock, guard)                                                \
    for (pebble_guard guard                                                              \
         __attribute__((cleanup(pebble_guard_leave))) = pebble_guard_enter(lock);        \
         guard.mutex; pebble_guard_leave(&guard))
#define PEBBLE__JOIN(a, b) PEBBLE__JOIN_EXPANDED(a, b)
#define PEBBLE__JOIN_EXPANDED(a, b) a##b

/* What PEBBLE_SYNCHRONIZED is made of; mutex is NULL once it is unlocked. */
typedef struct pebble_guard {
    pthread_mutex_t *mutex;
} pebble_guard;

/* Locks mutex, or the default one if NULL. Blocks. If it cannot be locked (an error-checking mutex
 * that this thread has), the guard's mutex is NULL and the block's body is skipped. */
PEBBLE_API pebble_guard pebble_guard_enter(pthread_mutex_t *mutex);

/* Unlocks what pebble_guard_enter() locked, once. */
PEBBLE_API void pebble_guard_leave(pebble_guard *guard);

/* ==== sighandler ========================================================================= */

typedef void (*pebble_signal_function)(int signal, void *context);

/* Has handler called whenever one of the signals arrives, in a thread of the library, where it
 * may call anything; one call at a time, signals of one kind that arrive while it is pending are
 * merged, as the system does. Replaces what was set for those signals; a call that runs goes on.
 * That thread has every signal blocked. A forked child has the signals as they were before.
 *   handler  NULL gives the signals back to what they did before the first registration, and
 *            drops those that are pending
 * Errors: PEBBLE_ERR_INVALID for a number that is no signal, and for those that cannot be caught
 * or that report a fault of the running thread (KILL, STOP, SEGV, BUS, FPE, ILL, ABRT, TRAP, SYS);
 * PEBBLE_ERR_SYSTEM, PEBBLE_ERR_NO_MEMORY. */
PEBBLE_API pebble_error pebble_sighandler(const int *signals, size_t count,
                                          pebble_signal_function handler, void *context);

/* ==== Waiting for threads ================================================================ */

/* A thread that can be waited for together with others. Reference counted. */
typedef struct pebble_thread pebble_thread;

/* Starts a thread.
 *   name    NULL, or the thread's name (cut to 15 characters)
 *   thread  out: release with pebble_thread_unref()
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY, PEBBLE_ERR_SYSTEM. */
PEBBLE_API pebble_error pebble_thread_start(void (*function)(void *context), void *context,
                                            const char *name, pebble_thread **thread);

/* Waits until the thread has ended. Errors: PEBBLE_ERR_TIMEOUT, PEBBLE_ERR_INVALID,
 * PEBBLE_ERR_FORKED, PEBBLE_ERR_DEADLOCK from the thread itself. */
PEBBLE_API pebble_error pebble_thread_join(pebble_thread *thread, int64_t timeout_ns);

/* Drops a reference; the thread itself goes on. NULL is fine. */
PEBBLE_API void pebble_thread_unref(pebble_thread *thread);

/* Waits until one or more of the threads have ended, without joining them.
 *   ready        out: those that have, room for count
 *   ready_count  out: how many; on a timeout 0, which is no error
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY, PEBBLE_ERR_FORKED. */
PEBBLE_API pebble_error pebble_wait_for_threads(pebble_thread *const *threads,
                                                size_t count, int64_t timeout_ns,
                                                pebble_thread **ready,
                                                size_t *ready_count);

/* ==== Waiting for queues ================================================================= */

/* A first-in first-out queue of pointers between threads. A thread that is cancelled while it
 * waits for one leaves it usable. After a fork the child may use it only if no thread of the parent
 * was in a call on it. */
typedef struct pebble_queue pebble_queue;

/* Makes a queue.
 *   capacity  how many items fit; 0 for no limit
 *   queue     out: free with pebble_queue_free()
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY. */
PEBBLE_API pebble_error pebble_queue_new(size_t capacity, pebble_queue **queue);

/* Appends an item, waiting while the queue is full. Errors: PEBBLE_ERR_TIMEOUT,
 * PEBBLE_ERR_NO_MEMORY, PEBBLE_ERR_INVALID. */
PEBBLE_API pebble_error pebble_queue_put(pebble_queue *queue, void *item,
                                         int64_t timeout_ns);

/* Takes the oldest item, waiting while the queue is empty. Errors: PEBBLE_ERR_TIMEOUT,
 * PEBBLE_ERR_INVALID. */
PEBBLE_API pebble_error pebble_queue_get(pebble_queue *queue, int64_t timeout_ns,
                                         void **item);

/* How many items are in the queue now; 0 for NULL. */
PEBBLE_API size_t pebble_queue_size(pebble_queue *queue);

/* Frees a queue, not its items. No call on it may run beside or follow. NULL is fine. */
PEBBLE_API void pebble_queue_free(pebble_queue *queue);

/* Waits until one or more of the queues hold an item, and takes none.
 *   ready        out: those that do, room for count
 *   ready_count  out: how many; on a timeout 0, which is no error
 * Errors: PEBBLE_ERR_INVALID, PEBBLE_ERR_NO_MEMORY. */
PEBBLE_API pebble_error pebble_wait_for_queues(pebble_queue *const *queues, size_t count,
                                               int64_t timeout_ns, pebble_queue **ready,
                                               size_t *ready_count);

/* ==== Embedding a language runtime ======================================================= */

/* Which process a fork makes. */
typedef enum pebble_fork_kind {
    PEBBLE_FORK_ZYGOTE, /* the program forks the process that forks its workers */
    PEBBLE_FORK_WORKER  /* that process forks a worker */
} pebble_fork_kind;

/* Called where a language runtime must act, under no lock. Each may be NULL. A zygote is forked in a
 * thread that calls pebble_schedule() or, after the loss of the one before, in a thread of the
 * library's made for that; other threads that schedule meanwhile do not wait for it. Workers are forked
 * one after another, by a process that also ends them: hooks around that fork must be short.
 * worker_start, and after_fork_child in a worker, count as part of its initializer: what fails or hangs
 * there breaks the pool after three tries. In a pool of threads the workers are its threads, and the
 * hooks around forks are not called; worker_end is called
 * there after a failed initializer too, but not if a task ended its thread.
 * With forkserver and spawn, the executed program gives its hooks to pebble_worker_main_hooks(). */
struct pebble_hooks {
    size_t struct_size; /* sizeof(pebble_hooks) */
    void *context;      /* first argument of each */
    void (*before_fork)(void *context, pebble_fork_kind kind);
    void (*after_fork_parent)(void *context, pebble_fork_kind kind);
    void (*after_fork_child)(void *context, pebble_fork_kind kind);
    void (*worker_start)(void *context, const char *name); /* before the initializer */
    /* When a worker ends in order, before it exits; not if its initializer failed. */
    void (*worker_end)(void *context);
    /* In a worker that finds no task at once: before it waits. It may come again without a task
     * between, and it does not come where a struct_size says that it is not there. */
    void (*worker_idle)(void *context);
};

/* With a word, from now on a wait of the calling thread for a future, a map or a pool's end returns
 * PEBBLE_ERR_INTERRUPTED when a signal handler has run in this thread while it slept, or as soon as the
 * word is not 0, be that before it sleeps; such a wait can just be repeated. NULL, as at first: waits go
 * on. The word must stay for as long as it is set here. Before Linux 5.16 only the former. */
PEBBLE_API void pebble_set_interrupt_word(const uint32_t *word);

/* Sets such a word, and ends the wait of the thread that has it. May be called from a signal handler. */
PEBBLE_API void pebble_interrupt(uint32_t *word);

/* What an initializer calls to say why it fails: returns code (1 if code is 0), to be returned by it;
 * the message, cut after 1023 bytes, is in the failures of the pool that breaks. Only in a thread that
 * runs an initializer; elsewhere the message is dropped. */
PEBBLE_API int pebble_initializer_fail(int code, const char *format, ...)
    PEBBLE_PRINTF(2, 3);

/* As pebble_worker_main(), with hooks (kept, not copied). */
PEBBLE_API void pebble_worker_main_hooks(const pebble_hooks *hooks);

#ifdef __cplusplus
}
#endif

#endif
