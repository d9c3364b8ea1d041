/* The hooks for language runtimes: which run, in which process, in which order, how often, with
 * which context, and that nothing is locked meanwhile.
 *
 * Every hook, initializer and task writes an event into a log that all processes share. This
 * program is also the one that is executed for forkserver and spawn: then it gives hooks of its
 * own to pebble_worker_main_hooks(), with another context than the program's.
 *
 *                    program            zygote                         worker
 *     fork           before, parent     child; before, parent (each)   child, start, ..., end
 *     forkserver     -                  before, parent (each)          child, start, ..., end
 *     spawn          -                  -                              start, ..., end
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

static const char *const path_variable = "PEBBLE_TEST_HOOKS";

enum { PROGRAMS_CONTEXT = 1, EXECUTED_CONTEXT = 2 };
enum { EVENTS_MAX = 4096, WORKERS_MAX = 64 };

/* ---- The log ---- */

typedef enum moment {
    NOTHING, /* an event whose process was killed while it noted it */
    BEFORE_ZYGOTE,
    PARENT_ZYGOTE,
    CHILD_ZYGOTE,
    BEFORE_WORKER,
    PARENT_WORKER,
    CHILD_WORKER,
    START,
    INITIALIZER,
    TASK,
    END,
    MOMENTS
} moment;

typedef struct event {
    _Atomic moment what;
    pid_t pid, thread;
    int context;
    char name[32]; /* START: what the hook was given */
    char comm[32]; /* START: what the system says */
} event;

/* The index in events agrees with every order of cause and effect, also between processes. */
typedef struct event_log {
    _Atomic uint32_t count;
    counter happened[MOMENTS];
    counter held[MOMENTS];    /* n > 0: the nth to come there waits until it is let go */
    counter waiting[MOMENTS]; /* how many have come to wait */
    counter released[MOMENTS];
    counter arrived;  /* tasks that meet */
    counter go;       /* tasks that stay */
    counter gave_up;  /* not let go in time */
    _Atomic int only; /* the one hook that an executed program shall have; -1: all */
    event events[EVENTS_MAX];
} event_log;

static event_log *events; /* in every process */

static void note(moment what, int context, const char *name) {
    uint32_t at = atomic_fetch_add(&events->count, 1);
    if (at < EVENTS_MAX) {
        event *noted = &events->events[at];
        noted->pid = getpid();
        noted->thread = (pid_t)syscall(SYS_gettid);
        noted->context = context;
        if (name != NULL) {
            snprintf(noted->name, sizeof noted->name, "%s", name);
            process_name(getpid(), noted->comm);
        }
        noted->what = what; /* last */
    }
    uint32_t nth = counter_add(&events->happened[what], 1);
    uint32_t first_held = counter_value(&events->held[what]);
    if (first_held > 0 && nth >= first_held) {
        counter_add(&events->waiting[what], 1);
        if (!counter_wait(&events->released[what], 1))
            counter_add(&events->gave_up, 1);
    }
}

/* The nth to come there waits, and all later ones. */
static void hold(moment what, uint32_t nth) {
    atomic_store(&events->held[what].value, nth);
}

#define expect_waiting(what) counter_expect(&events->waiting[what], 1)

static void let_go(moment what) {
    assert_int_equal(counter_value(&events->gave_up), 0); /* it has been held until now */
    atomic_store(&events->held[what].value, 0);
    counter_add(&events->released[what], 1);
}

static uint32_t times(moment what) {
    return counter_value(&events->happened[what]);
}

#define expect_times(what, at_least) counter_expect(&events->happened[what], at_least)

static uint32_t event_count(void) {
    uint32_t count = atomic_load(&events->count);
    assert_true(count <= EVENTS_MAX);
    return count;
}

static uint32_t times_in(moment what, pid_t pid) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < event_count(); i++)
        count += events->events[i].what == what && events->events[i].pid == pid;
    return count;
}

/* The nth event of its kind, from 0 on. */
static const event *find_event(moment what, uint32_t nth) {
    for (uint32_t i = 0; i < event_count(); i++) {
        if (events->events[i].what == what && nth-- == 0)
            return &events->events[i];
    }
    fail_msg("no such event");
    return NULL;
}

/* ---- The hooks ---- */

static void before_fork(void *context, pebble_fork_kind kind) {
    note(kind == PEBBLE_FORK_ZYGOTE ? BEFORE_ZYGOTE : BEFORE_WORKER, *(int *)context,
         NULL);
}

static void after_fork_parent(void *context, pebble_fork_kind kind) {
    note(kind == PEBBLE_FORK_ZYGOTE ? PARENT_ZYGOTE : PARENT_WORKER, *(int *)context,
         NULL);
}

static void after_fork_child(void *context, pebble_fork_kind kind) {
    note(kind == PEBBLE_FORK_ZYGOTE ? CHILD_ZYGOTE : CHILD_WORKER, *(int *)context, NULL);
}

static void worker_start(void *context, const char *name) {
    note(START, *(int *)context, name);
}

static void worker_end(void *context) {
    note(END, *(int *)context, NULL);
}

enum { HOOKS = 5 };

/* All of them, or one: 0 to HOOKS - 1. */
static pebble_hooks make_hooks(int *context, int only) {
    pebble_hooks hooks = {.struct_size = sizeof hooks, .context = context};
    if (only == -1 || only == 0)
        hooks.before_fork = before_fork;
    if (only == -1 || only == 1)
        hooks.after_fork_parent = after_fork_parent;
    if (only == -1 || only == 2)
        hooks.after_fork_child = after_fork_child;
    if (only == -1 || only == 3)
        hooks.worker_start = worker_start;
    if (only == -1 || only == 4)
        hooks.worker_end = worker_end;
    return hooks;
}

static int programs_context = PROGRAMS_CONTEXT;
static pebble_hooks programs_hooks;

/* ---- The initializer and tasks ---- */

static int initialize(const void *input, size_t size) {
    (void)input, (void)size;
    note(INITIALIZER, 0, NULL);
    return 0;
}

static int note_and_tell_pid(pebble_task *task, const void *input, size_t size) {
    int pid = getpid();
    (void)input, (void)size;
    note(TASK, 0, NULL);
    return (int)pebble_task_write(task, &pid, sizeof pid);
}

/* Ends when so many tasks run at once. */
static int meet(pebble_task *task, const void *input, size_t size) {
    counter_add(&events->arrived, 1);
    if (!counter_wait(&events->arrived, *(const uint32_t *)input))
        return 1;
    return note_and_tell_pid(task, input, size);
}

static int stay(pebble_task *task, const void *input, size_t size) {
    counter_add(&events->arrived, 1);
    if (!counter_wait(&events->go, 1))
        return 1;
    return note_and_tell_pid(task, input, size);
}

static int hang(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&events->arrived, 1);
    for (;;)
        pause();
    return 0;
}

static int die_by(pebble_task *task, const void *input, size_t size) {
    int signal_number = *(const int *)input;
    (void)task, (void)size;
    if (signal_number == 0)
        _exit(0);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
    return 0;
}

/* Its child returns from the task too. */
static int fork_and_return(pebble_task *task, const void *input, size_t size) {
    pid_t child = fork();
    if (child < 0)
        return 1;
    if (child > 0 && waitpid(child, NULL, 0) != child)
        return 2;
    return note_and_tell_pid(task, input, size);
}

/* ---- Pools ---- */

static const pebble_start_method methods[] = {PEBBLE_START_FORK, PEBBLE_START_FORKSERVER,
                                              PEBBLE_START_SPAWN};

/* The program gives its hooks to every pool. */
static pebble_pool *pool_of(pebble_start_method method, int workers, uint64_t max_tasks) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .max_tasks = max_tasks,
                            .start_method = method, .initializer = initialize,
                            .name = "hooked", .hooks = &programs_hooks,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(50)));
}

static int run_one(pebble_pool *pool) {
    return take_int(schedule(pool, note_and_tell_pid, NULL, 0, 0));
}

/* So many workers run a task at the same time. */
static void run_in_all(pebble_pool *pool, uint32_t workers) {
    pebble_future *futures[WORKERS_MAX];
    for (uint32_t i = 0; i < workers; i++)
        futures[i] = schedule(pool, meet, &workers, sizeof workers, 0);
    for (uint32_t i = 0; i < workers; i++)
        take_int(futures[i]);
}

static void clear_log(void) {
    memset(events, 0, sizeof *events);
    atomic_store(&events->only, -1);
}

/* One test with each start method, each with an empty log. */
static bool has_no_children(void *context) {
    (void)context;
    return process_children(getpid(), NULL, 0) == 0;
}

/* The zygote of the one before may have a hook to run yet. */
static void with_each_method(void (*check)(pebble_start_method method)) {
    for (int i = 0; i < 3; i++) {
        assert_true(wait_until(has_no_children, NULL));
        clear_log();
        check(methods[i]);
    }
}

static int setup(void **state) {
    char path[MEMORY_PATH_SIZE];
    int result = support_setup(state);
    events = shared_memory_with_path(sizeof *events, path);
    setenv(path_variable, path, 1);
    clear_log();
    programs_hooks = make_hooks(&programs_context, -1);
    return result;
}

static int teardown(void **state) {
    unsetenv(path_variable);
    return support_teardown(state);
}

/* ---- What must be so in every log of a pool whose workers all ended in order ---- */

/* A worker's events, in their order. */
static void check_worker(pebble_start_method method, pid_t pid, uint64_t max_tasks) {
    uint32_t tasks = 0;
    moment before = MOMENTS;
    for (uint32_t i = 0; i < event_count(); i++) {
        const event *at = &events->events[i];
        if (at->pid != pid)
            continue;
        assert_int_equal(at->thread, pid); /* hooks and tasks have the same thread */
        switch ((moment)atomic_load(&at->what)) {
        case CHILD_WORKER:
            assert_int_equal(before, MOMENTS);
            assert_int_not_equal(method, PEBBLE_START_SPAWN);
            break;
        case START:
            assert_int_equal(before,
                             method == PEBBLE_START_SPAWN ? MOMENTS : CHILD_WORKER);
            break;
        case INITIALIZER:
            assert_int_equal(before, START);
            break;
        case TASK:
            assert_true(before == INITIALIZER || before == TASK);
            tasks++;
            break;
        case END: /* of a spare that has never had a place: right after its start */
            assert_true(before == START || before == TASK || before == INITIALIZER);
            break;
        default:
            fail_msg("moment %d in a worker", at->what);
        }
        before = at->what;
    }
    assert_int_equal(before, END);
    if (max_tasks > 0)
        assert_in_range(tasks, 0, max_tasks);
}

/* The zygote's: its own start, then pairs. */
static void check_zygote(pebble_start_method method, pid_t zygote) {
    moment before = MOMENTS;
    for (uint32_t i = 0; i < event_count(); i++) {
        const event *at = &events->events[i];
        if (at->pid != zygote)
            continue;
        assert_int_equal(at->thread, zygote);
        switch ((moment)atomic_load(&at->what)) {
        case CHILD_ZYGOTE:
            assert_int_equal(method, PEBBLE_START_FORK);
            assert_int_equal(before, MOMENTS);
            break;
        case BEFORE_WORKER:
            assert_int_equal(before == MOMENTS, before != PARENT_WORKER &&
                                                    method == PEBBLE_START_FORKSERVER);
            assert_int_not_equal(before, BEFORE_WORKER);
            break;
        case PARENT_WORKER:
            assert_int_equal(before, BEFORE_WORKER);
            break;
        default:
            fail_msg("moment %d in the zygote", at->what);
        }
        before = at->what;
    }
}

/* No child's hook runs before that of its fork, whichever process is faster. */
static void check_forks_come_first(void) {
    int zygotes = 0, workers = 0;
    for (uint32_t i = 0; i < event_count(); i++) {
        moment what = events->events[i].what;
        zygotes += what == BEFORE_ZYGOTE ? 1 : what == CHILD_ZYGOTE ? -1 : 0;
        workers += what == BEFORE_WORKER ? 1 : what == CHILD_WORKER ? -1 : 0;
        assert_true(zygotes >= 0 && workers >= 0);
    }
}

static void check_contexts(pebble_start_method method) {
    int expected = method == PEBBLE_START_FORK ? PROGRAMS_CONTEXT : EXECUTED_CONTEXT;
    for (uint32_t i = 0; i < event_count(); i++) {
        moment what = events->events[i].what;
        if (what != NOTHING && what != INITIALIZER && what != TASK)
            assert_int_equal(events->events[i].context, expected);
    }
}

/* "hooked-N", another one for each. */
static void check_names(void) {
    if (times(START) == 1 && strcmp(find_event(START, 0)->name, "hooked") == 0)
        return; /* of a single call */
    for (uint32_t i = 0; i < times(START); i++) {
        const event *at = find_event(START, i);
        assert_memory_equal(at->name, "hooked-", 7);
        assert_true(atoi(at->name + 7) > 0);
        assert_string_equal(at->name, at->comm);
        for (uint32_t j = 0; j < i; j++)
            assert_string_not_equal(at->name, find_event(START, j)->name);
    }
}

static void check_log(pebble_start_method method, uint64_t max_tasks) {
    bool fork = method == PEBBLE_START_FORK, spawn = method == PEBBLE_START_SPAWN;
    uint32_t workers = times(START);
    assert_int_equal(times(BEFORE_ZYGOTE), fork);
    assert_int_equal(times(PARENT_ZYGOTE), fork);
    assert_int_equal(times(CHILD_ZYGOTE), fork);
    assert_int_equal(times(BEFORE_WORKER), spawn ? 0 : workers);
    assert_int_equal(times(PARENT_WORKER), spawn ? 0 : workers);
    assert_int_equal(times(CHILD_WORKER), spawn ? 0 : workers);
    assert_int_equal(times(END), workers);
    for (uint32_t i = 0; i < workers; i++) {
        assert_int_equal(times_in(START, find_event(START, i)->pid), 1);
        check_worker(method, find_event(START, i)->pid, max_tasks);
    }
    if (fork) { /* in the thread that scheduled first */
        assert_int_equal(find_event(BEFORE_ZYGOTE, 0)->thread, syscall(SYS_gettid));
        assert_int_equal(find_event(PARENT_ZYGOTE, 0)->thread, syscall(SYS_gettid));
        assert_true(find_event(BEFORE_ZYGOTE, 0) < find_event(PARENT_ZYGOTE, 0));
        assert_int_equal(find_event(CHILD_ZYGOTE, 0)->pid,
                         find_event(BEFORE_WORKER, 0)->pid);
    }
    if (!spawn) {
        check_zygote(method, find_event(BEFORE_WORKER, 0)->pid);
        assert_int_equal(times_in(BEFORE_WORKER, find_event(BEFORE_WORKER, 0)->pid),
                         workers);
        assert_int_equal(times_in(PARENT_WORKER, find_event(BEFORE_WORKER, 0)->pid),
                         workers);
    }
    check_forks_come_first();
    check_contexts(method);
    check_names();
}

/* ---- Tests: which, where, in which order, how often ---- */

static void check_workers_and_spare(pebble_start_method method) {
    pebble_pool *pool = pool_of(method, 2, 0);
    assert_int_equal(event_count(), 0); /* nothing before the first task */
    run_in_all(pool, 2);
    expect_times(START, 3); /* the third is a spare */
    assert_int_equal(times(INITIALIZER), 2);
    assert_int_equal(times(END), 0);
    close_join_free(pool);
    assert_int_equal(times(START), 3);
    assert_int_equal(times(INITIALIZER), 2);
    assert_int_equal(times(TASK), 2);
    check_log(method, 0);
}

static void test_workers_and_spare(void **state) {
    (void)state;
    with_each_method(check_workers_and_spare);
}

static void check_restarted_workers(pebble_start_method method) {
    enum { TASKS = 7, EACH = 2 };
    pebble_pool *pool = pool_of(method, 1, EACH);
    for (int i = 0; i < TASKS; i++)
        run_one(pool);
    expect_times(END, TASKS / EACH); /* while the pool goes on */
    close_join_free(pool);
    assert_int_equal(times(TASK), TASKS);
    assert_int_equal(times(INITIALIZER), (TASKS + EACH - 1) / EACH);
    check_log(method, EACH);
}

static void test_restarted_workers(void **state) {
    (void)state;
    with_each_method(check_restarted_workers);
}

static void check_closed_at_once(pebble_start_method method) {
    pebble_pool *pool = pool_of(method, 2, 0);
    close_join_free(pool);
    assert_int_equal(event_count(), 0); /* without a task there are no processes */
    pool = pool_of(method, 1, 0);
    pebble_future *future = schedule(pool, note_and_tell_pid, NULL, 0, 0);
    close_join_free(pool);
    take_int(future);
    check_log(method, 0);
}

static void test_closed_at_once(void **state) {
    (void)state;
    with_each_method(check_closed_at_once);
}

/* Any of them may be missing. */
static void check_single_hooks(pebble_start_method method) {
    static const bool of_hook[HOOKS][MOMENTS] = {
        {[BEFORE_ZYGOTE] = true, [BEFORE_WORKER] = true},
        {[PARENT_ZYGOTE] = true, [PARENT_WORKER] = true},
        {[CHILD_ZYGOTE] = true, [CHILD_WORKER] = true},
        {[START] = true},
        {[END] = true},
    };
    bool fork = method == PEBBLE_START_FORK, spawn = method == PEBBLE_START_SPAWN;
    for (int only = 0; only < HOOKS; only++) {
        clear_log();
        atomic_store(&events->only, only);
        programs_hooks = make_hooks(&programs_context, only);
        pebble_pool *pool = pool_of(method, 1, 0);
        run_one(pool);
        close_join_free(pool);
        for (moment what = NOTHING + 1; what < MOMENTS; what++) {
            bool expected = of_hook[only][what] && (fork || what > CHILD_ZYGOTE) &&
                            (!spawn || what > CHILD_WORKER);
            if (what != INITIALIZER && what != TASK)
                assert_int_equal(times(what) > 0, expected);
        }
    }
    programs_hooks = make_hooks(&programs_context, -1);
}

static void test_single_hooks(void **state) {
    (void)state;
    with_each_method(check_single_hooks);
}

/* A pool of another context, at the same time. */
static void test_each_pool_has_its_own(void **state) {
    int other_context = 3;
    (void)state;
    pebble_hooks others = make_hooks(&other_context, -1);
    pebble_pool *first = pool_of(PEBBLE_START_FORK, 1, 0);
    pebble_pool *second =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = &others));
    int pids[2] = {run_one(first), run_one(second)};
    close_join_free(first);
    close_join_free(second);
    for (uint32_t i = 0; i < event_count(); i++) {
        const event *at = &events->events[i];
        if (at->pid == pids[0] && at->context != 0)
            assert_int_equal(at->context, PROGRAMS_CONTEXT);
        if (at->pid == pids[1] && at->context != 0)
            assert_int_equal(at->context, 3);
    }
    assert_int_equal(times_in(END, pids[0]), 1);
    assert_int_equal(times_in(END, pids[1]), 1);
}

static void check_concurrent(pebble_start_method method) {
    pebble_future *future;
    expect_ok(pebble_concurrent_process(
        note_and_tell_pid, NULL, 0,
        &(const pebble_concurrent_options){.struct_size = sizeof(pebble_concurrent_options),
                                           .start_method = method,
                                           .name = "hooked",
                                           .hooks = &programs_hooks},
        &future));
    take_int(future);
    expect_times(END, 1); /* its worker ends in order */
    assert_int_equal(times(START), 1);
    check_contexts(method);
    check_names();
    assert_true(find_event(START, 0) < find_event(TASK, 0));
    assert_true(find_event(TASK, 0) < find_event(END, 0));
}

static void test_concurrent_process(void **state) {
    (void)state;
    with_each_method(check_concurrent);
}

/* A lost zygote: the next one is forked with hooks too, by then in a thread of the library. */
static void check_zygote_lost(pebble_start_method method) {
    uint32_t zygotes = method == PEBBLE_START_FORK ? 2 : 0;
    pebble_pool *pool = pool_of(method, 1, 0);
    pid_t first = run_one(pool);
    process_kill(process_parent(first));
    expect_gone(first);
    pid_t second = run_one(pool);
    assert_int_not_equal(first, second);
    close_join_free(pool);
    assert_int_equal(times_in(START, first), 1);
    assert_int_equal(times_in(END, first), 0); /* the kernel killed it */
    assert_int_equal(times_in(START, second), 1);
    assert_int_equal(times_in(END, second), 1);
    assert_int_equal(times(BEFORE_ZYGOTE), zygotes);
    assert_int_equal(times(PARENT_ZYGOTE), zygotes);
    assert_int_equal(times(CHILD_ZYGOTE), zygotes);
    for (uint32_t i = 0; i < zygotes; i++) {
        assert_int_equal(find_event(BEFORE_ZYGOTE, i)->pid, getpid());
        assert_int_equal(find_event(PARENT_ZYGOTE, i)->pid, getpid());
        assert_int_equal(find_event(PARENT_ZYGOTE, i)->thread,
                         find_event(BEFORE_ZYGOTE, i)->thread);
    }
    if (zygotes > 0)
        assert_int_not_equal(find_event(CHILD_ZYGOTE, 0)->pid,
                             find_event(CHILD_ZYGOTE, 1)->pid);
    check_contexts(method);
}

static void test_zygote_lost(void **state) {
    (void)state;
    with_each_method(check_zygote_lost);
}

/* ---- Tests: the end of a worker that is not in order ---- */

/* The worker that has run a task dies of another one, and has not ended in order. */
static void check_no_end(pebble_pool *pool, pebble_function function, const void *input,
                         size_t size, int64_t timeout_ns, pebble_error expected) {
    pid_t pid = run_one(pool);
    uint32_t arrived = counter_value(&events->arrived);
    pebble_future *future = schedule(pool, function, input, size, timeout_ns);
    if (expected == PEBBLE_ERR_TASK_CANCELLED) {
        counter_expect(&events->arrived, arrived + 1);
        assert_true(pebble_future_cancel(future));
    }
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    assert_int_equal(pebble_future_pid(future), pid);
    expect_end(future, expected);
    expect_gone(pid);
    assert_int_equal(times_in(START, pid), 1);
    assert_int_equal(times_in(END, pid), 0);
    assert_int_not_equal(run_one(pool), pid);
}

static void check_deaths(pebble_start_method method) {
    static const int signals[] = {SIGSEGV, SIGKILL, SIGTERM, 0};
    pebble_pool *pool = pool_of(method, 1, 0);
    for (int i = 0; i < 4; i++)
        check_no_end(pool, die_by, &signals[i], sizeof signals[i], 0,
                     PEBBLE_ERR_TASK_EXPIRED);
    check_no_end(pool, hang, NULL, 0, PEBBLE_MILLISECONDS(20), PEBBLE_ERR_TASK_TIMEOUT);
    check_no_end(pool, hang, NULL, 0, 0, PEBBLE_ERR_TASK_CANCELLED);
    pid_t last = run_one(pool);
    close_join_free(pool);
    assert_int_equal(times_in(END, last), 1);
    /* Everybody else who started has ended in order, or was one of the six. */
    assert_int_equal(times(END), times(START) - 6);
    for (uint32_t i = 0; i < times(START); i++) {
        pid_t pid = find_event(START, i)->pid;
        assert_in_range(times_in(END, pid), 0, 1);
        assert_int_equal(times_in(CHILD_WORKER, pid), method != PEBBLE_START_SPAWN);
    }
    check_contexts(method);
    check_forks_come_first();
}

static void test_deaths(void **state) {
    (void)state;
    with_each_method(check_deaths);
}

static void check_stopped(pebble_start_method method) {
    pebble_pool *pool = pool_of(method, 1, 0);
    run_one(pool);
    pebble_future *future = schedule(pool, hang, NULL, 0, 0);
    counter_expect(&events->arrived, 1);
    stop_join_free(pool);
    pid_t pid = pebble_future_pid(future);
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(times_in(START, pid), 1);
    assert_int_equal(times_in(END, pid), 0);
}

static void test_stopped(void **state) {
    (void)state;
    with_each_method(check_stopped);
}

/* A child that a task forks and that returns from it is no worker that ends. */
static void check_forked_child(pebble_start_method method) {
    pebble_pool *pool = pool_of(method, 1, 0);
    pid_t pid = take_int(schedule(pool, fork_and_return, NULL, 0, 0));
    assert_int_equal(run_one(pool), pid);
    close_join_free(pool);
    assert_int_equal(times_in(END, pid), 1);
    assert_int_equal(times(END), times(START));
}

static void test_forked_child(void **state) {
    (void)state;
    with_each_method(check_forked_child);
}

/* ---- Tests: a hook takes its time, and nothing is locked ---- */

static void expect_answers(pebble_pool *pool) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    size_t count;
    assert_true(pebble_pool_active(pool));
    expect_ok(pebble_pool_get_info(pool, &info));
    expect_ok(pebble_pool_get_pids(pool, NULL, 0, &count));
    pebble_future *future = schedule(pool, note_and_tell_pid, NULL, 0, 0);
    pebble_future_state(future);
    pebble_future_unref(future);
}

/* A pool without hooks, from its first task to its end. */
static void expect_another_pool_works(void) {
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    int input = SIGKILL;
    take_int(schedule(pool, note_and_tell_pid, NULL, 0, 0));
    expect_end(schedule(pool, die_by, &input, sizeof input, 0), PEBBLE_ERR_TASK_EXPIRED);
    expect_end(schedule(pool, hang, NULL, 0, PEBBLE_MILLISECONDS(20)),
               PEBBLE_ERR_TASK_TIMEOUT);
    close_join_free(pool);
}

typedef struct first_call {
    pebble_pool *pool;
    pebble_future *future;
    pebble_error error;
    counter returned;
} first_call;

static void schedule_first(void *context) {
    first_call *call = context;
    call->error =
        pebble_schedule(call->pool, note_and_tell_pid, NULL, 0, 0, &call->future);
    counter_add(&call->returned, 1);
}

/* The zygote's hooks: those in the program hold up the call that forks it, and no other. */
static void check_slow_zygote_hook(moment what) {
    pebble_thread *thread;
    clear_log();
    hold(what, 1);
    first_call call = {.pool = pool_of(PEBBLE_START_FORK, 2, 0)};
    expect_ok(pebble_thread_start(schedule_first, &call, NULL, &thread));
    expect_waiting(what);
    if (what == CHILD_ZYGOTE)
        counter_expect(&call.returned, 1);
    else
        assert_int_equal(counter_value(&call.returned), 0);
    expect_answers(call.pool);
    pebble_future *cancelled = schedule(call.pool, note_and_tell_pid, NULL, 0, 0);
    assert_true(pebble_future_cancel(cancelled));
    expect_end(cancelled, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(times(BEFORE_WORKER), 0);
    expect_another_pool_works();
    let_go(what);
    expect_ok(pebble_thread_join(thread, DEADLINE_NS));
    pebble_thread_unref(thread);
    expect_ok(call.error);
    take_int(call.future);
    close_join_free(call.pool);
    assert_int_equal(times(END), times(START));
    assert_int_equal(times(BEFORE_ZYGOTE), 1);
}

static void test_slow_zygote_hooks(void **state) {
    (void)state;
    check_slow_zygote_hook(BEFORE_ZYGOTE);
    check_slow_zygote_hook(PARENT_ZYGOTE);
    check_slow_zygote_hook(CHILD_ZYGOTE);
}

/* A pool that is stopped while the hook runs goes as soon as it has returned. */
static void test_stopped_in_a_zygote_hook(void **state) {
    static const moment moments[] = {BEFORE_ZYGOTE, PARENT_ZYGOTE, CHILD_ZYGOTE};
    (void)state;
    for (int i = 0; i < 3; i++) {
        pebble_thread *thread;
        clear_log();
        hold(moments[i], 1);
        first_call call = {.pool = pool_of(PEBBLE_START_FORK, 2, 0)};
        expect_ok(pebble_thread_start(schedule_first, &call, NULL, &thread));
        expect_waiting(moments[i]);
        expect_ok(pebble_pool_stop(call.pool));
        let_go(moments[i]);
        expect_ok(pebble_thread_join(thread, DEADLINE_NS));
        pebble_thread_unref(thread);
        if (call.error == PEBBLE_OK)
            expect_end(call.future, PEBBLE_ERR_TASK_CANCELLED);
        else
            assert_int_equal(call.error, PEBBLE_ERR_NOT_ACTIVE);
        expect_ok(pebble_pool_join(call.pool, DEADLINE_NS));
        pebble_pool_free(call.pool);
        assert_int_equal(times(TASK), 0);
    }
}

/* One worker is there, the next one's hook takes long, in the zygote or in itself: what runs goes
 * on, and what was meant for that worker is done by the other. */
static void check_slow_start(pebble_start_method method, moment what) {
    enum { TASKS = 4 };
    pebble_future *futures[TASKS];
    clear_log();
    hold(what, 2);
    pebble_pool *pool = pool_of(method, 2, 0);
    for (int i = 0; i < TASKS; i++)
        futures[i] = schedule(pool, stay, NULL, 0, 0);
    counter_expect(&events->arrived, 1);
    expect_waiting(what);
    expect_answers(pool);
    pebble_future *cancelled = schedule(pool, note_and_tell_pid, NULL, 0, 0);
    assert_true(pebble_future_cancel(cancelled));
    expect_end(cancelled, PEBBLE_ERR_TASK_CANCELLED);
    expect_another_pool_works();
    counter_add(&events->go, 1);
    for (int i = 0; i < TASKS; i++)
        take_int(futures[i]);
    assert_int_equal(counter_value(&events->released[what]), 0);
    let_go(what);
    close_join_free(pool);
    assert_int_equal(times(END), times(START));
    check_contexts(method);
}

static void test_slow_worker_hooks(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        if (methods[i] != PEBBLE_START_SPAWN) {
            check_slow_start(methods[i], BEFORE_WORKER);
            check_slow_start(methods[i], PARENT_WORKER);
            check_slow_start(methods[i], CHILD_WORKER);
        }
        check_slow_start(methods[i], START);
    }
}

/* A worker that ends holds up neither its successor nor anybody else. */
static void check_slow_end(pebble_start_method method) {
    pebble_pool *pool = pool_of(method, 1, 1);
    hold(END, 1);
    pid_t first = run_one(pool);
    expect_waiting(END);
    pid_t second = run_one(pool);
    assert_int_not_equal(first, second);
    assert_true(process_lives(first));
    expect_answers(pool);
    expect_another_pool_works();
    expect_ok(pebble_pool_close(pool));
    assert_int_equal(pebble_pool_join(pool, 0), PEBBLE_ERR_TIMEOUT);
    let_go(END);
    close_join_free(pool);
    check_log(method, 1);
}

static void test_slow_end(void **state) {
    (void)state;
    with_each_method(check_slow_end);
}

/* ---- Tests: a hook never returns ---- */

/* At a worker's start, its time counts as the initializer's, if there is one or not. */
static void check_start_that_hangs(pebble_start_method method,
                                   pebble_initializer initializer) {
    hold(START, 1);
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .start_method = method,
                            .initializer = initializer, .hooks = &programs_hooks,
                            .initializer_timeout_ns = PEBBLE_MILLISECONDS(200),
                            .termination_grace_ns = PEBBLE_MILLISECONDS(50)));
    pebble_future *future = schedule(pool, note_and_tell_pid, NULL, 0, 0);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL), PEBBLE_ERR_BROKEN,
                 "the worker's start took longer than 0.200 s");
    pebble_future_unref(future);
    close_join_free(pool);
    assert_in_range(times(START), 0, 3);
    assert_int_equal(times(INITIALIZER) + times(TASK) + times(END), 0);
}

static void check_initialized_start_that_hangs(pebble_start_method method) {
    check_start_that_hangs(method, initialize);
}

static void check_mere_start_that_hangs(pebble_start_method method) {
    check_start_that_hangs(method, NULL);
}

static void test_start_that_hangs(void **state) {
    (void)state;
    with_each_method(check_initialized_start_that_hangs);
    with_each_method(check_mere_start_that_hangs);
}

/* At a worker's end: stop ends it. */
static void check_end_that_hangs(pebble_start_method method) {
    pebble_pool *pool = pool_of(method, 1, 0);
    hold(END, 1);
    pid_t pid = run_one(pool);
    expect_ok(pebble_pool_close(pool));
    expect_waiting(END);
    stop_join_free(pool);
    expect_gone(pid);
}

static void test_end_that_hangs(void **state) {
    (void)state;
    with_each_method(check_end_that_hangs);
}

/* ---- What this program is executed as ---- */

/* Executed to serve a pool, it finds the log by its path. */
static void serve_if_executed(void) {
    static int executed_context = EXECUTED_CONTEXT;
    static pebble_hooks hooks;
    const char *path = getenv(path_variable);
    if (path != NULL && (events = shared_memory_at(path, sizeof *events)) != NULL)
        hooks = make_hooks(&executed_context, atomic_load(&events->only));
    pebble_worker_main_hooks(&hooks);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(workers_and_spare),
        TEST(restarted_workers),
        TEST(closed_at_once),
        TEST(single_hooks),
        TEST(each_pool_has_its_own),
        TEST(concurrent_process),
        TEST(zygote_lost),
        TEST(deaths),
        TEST(stopped),
        TEST(forked_child),
        TEST(slow_zygote_hooks),
        TEST(stopped_in_a_zygote_hook),
        TEST(slow_worker_hooks),
        TEST(slow_end),
        TEST(start_that_hangs),
        TEST(end_that_hangs),
    };
    const struct rlimit no_core = {0, 0};
    serve_if_executed();
    setrlimit(RLIMIT_CORE, &no_core);
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("hooks", tests, NULL, NULL);
}
