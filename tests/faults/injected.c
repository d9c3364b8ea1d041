/* Row 19: each call that asks the system for something fails, one after another, in the program, in the zygote and
 * in a worker, while workers crash, are replaced and ended, processes are left behind, and zygotes are lost. (While
 * they live: test_faults.c. By real limits: exhausted.c.) What must hold each time: a call succeeds or gives a
 * documented error, every future ends, no worker or zygote crashes, join succeeds, nothing is left; and one failure
 * does not cost more than what was concerned. */
#include "support.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

enum {
    MORE_TRIES =
        SANITIZED ? 2 : 6, /* beyond the calls of the program: executed ones count on */
    OTHERS_MAX = SANITIZED ? 6 : 400, /* of the calls of zygotes or workers */
    COST_MAX = 4,                     /* tasks */
    LARGE = 100 * 1000                /* items: more than a message holds */
};

typedef enum place { IN_PROGRAM, IN_ZYGOTE, IN_WORKER } place;

typedef struct scenario {
    os_fault kind;
    place where;
    unsigned nth;
    pebble_start_method method;
    unsigned cost;  /* tasks that ended in another way than they should */
    bool may_leave; /* the zygote was killed in a grace: what is in it then is let go, see
                     * docs/reliability.md */
    bool broken;    /* something was not as it must be */
} scenario;

/* What forked zygotes or workers are to do: one call of them all fails. */
typedef struct orders {
    scenario run;
    bool repeats;
    _Atomic unsigned calls;
    _Atomic pid_t zygote;
    _Atomic int zygote_crash; /* the signal */
} orders;

static orders *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); /* what a pool leaves behind comes here */
    return support_setup(state);
}

static int teardown(void **state) {
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    return support_teardown(state);
}

/* ---- Tasks ---- */

static int fail_with_words(pebble_task *task, const void *input, size_t input_size) {
    (void)input_size;
    return pebble_task_fail(task, *(const int *)input, "a task that fails");
}

static int *volatile null_pointer;

__attribute__((no_sanitize("address", "undefined", "thread"))) static int crash(
    pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    *null_pointer = 1;
    return 0;
}

/* With a child, that does not heed SIGTERM. */
static int stay(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    if (fork() == 0)
        signal(SIGTERM, SIG_IGN);
    for (;;)
        pause();
    return 0;
}

static int wait_for(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    return counter_wait(*(counter *const *)input, 1) ? 0 : 1;
}

/* ---- Arming ---- */

/* Workers have handlers of the engine's, and tell by their failures. */
static void note_crash(int signal_number) {
    if (getpid() == atomic_load(&shared->zygote))
        atomic_store(&shared->zygote_crash, signal_number);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void watch_zygote(void) {
    atomic_store(&shared->zygote, getpid());
    if (SANITIZED)
        return; /* it reports by itself */
    signal(SIGSEGV, note_crash);
    signal(SIGBUS, note_crash);
    signal(SIGABRT, note_crash);
}

static void after_fork_child(void *context, pebble_fork_kind kind) {
    place here = kind == PEBBLE_FORK_ZYGOTE ? IN_ZYGOTE : IN_WORKER;
    (void)context;
    if (here == IN_ZYGOTE)
        watch_zygote();
    if (here == shared->run.where)
        pebble_test_fault_shared(shared->run.kind, shared->run.nth, shared->repeats,
                                 &shared->calls);
    else
        pebble_test_fault(OS_FAULT_NONE, 0, false); /* it is inherited */
}

/* It is there so that a zygote is renewed in a thread of its own, since it might block. */
static void before_fork(void *context, pebble_fork_kind kind) {
    (void)context, (void)kind;
}

static const pebble_hooks few_hooks = {.struct_size = sizeof few_hooks,
                                       .after_fork_child = after_fork_child};
static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                   .before_fork = before_fork,
                                   .after_fork_child = after_fork_child};

/* ---- What is allowed ---- */

/* The one task that is to. */
static const char crashes[] = "a task that crashes";

static bool is_refusal(pebble_error error) {
    return error == PEBBLE_ERR_NO_MEMORY || error == PEBBLE_ERR_SYSTEM ||
           error == PEBBLE_ERR_BROKEN;
}

/* How a task may end that was concerned: also with its worker or zygote, which ended for want of something. */
static bool is_failure(pebble_error error) {
    return is_refusal(error) || error == PEBBLE_ERR_TASK_EXPIRED ||
           error == PEBBLE_ERR_TASK_FAILED;
}

static void complain(scenario *run, const char *what, pebble_error error) {
    static const char *const kinds[OS_FAULT_KINDS] = {"no",   "alloc",  "shared", "fd",
                                                      "fork", "thread", "message"};
    static const char *const places[] = {"the program", "the zygote", "a worker"};
    print_error("start method %d, %s call %u of %s: %s: %s (%s)\n", (int)run->method,
                kinds[run->kind], run->nth, places[run->where], what,
                pebble_error_name(error), pebble_error_message());
    run->broken = true;
}

static void expect_ok_or_refusal(scenario *run, const char *what, pebble_error error) {
    run->cost += error != PEBBLE_OK;
    if (error != PEBBLE_OK && !is_refusal(error))
        complain(run, what, error);
}

/* NULL if it was refused. */
static pebble_future *try_schedule(scenario *run, pebble_pool *pool,
                                   pebble_function function, int64_t timeout_ns) {
    pebble_future *future = NULL;
    int input = 7;
    expect_ok_or_refusal(
        run, "schedule",
        pebble_schedule(pool, function, &input, sizeof input, timeout_ns, &future));
    return future;
}

static void expect_end_or_failure(scenario *run, const char *what, pebble_future *future,
                                  pebble_error expected) {
    const void *data = NULL;
    size_t size = 0;
    if (future == NULL)
        return;
    pebble_error error = pebble_future_result(future, DEADLINE_NS, &data, &size);
    run->cost += error != expected;
    if (error != expected && !is_failure(error))
        complain(run, what, error);
    else if (error == PEBBLE_OK && (size != sizeof(int) || *(const int *)data != 49))
        complain(run, "a wrong result", error);
    else if (error != PEBBLE_OK && pebble_future_failure(future) == NULL)
        complain(run, "no failure", error);
    else if (error != PEBBLE_OK && is_crash(pebble_future_failure(future)) &&
             strcmp(what, crashes) != 0)
        complain(run, "its worker crashed", error);
    pebble_future_unref(future);
}

static void run_one(scenario *run, pebble_pool *pool, const char *what,
                    pebble_function function, int64_t timeout_ns, pebble_error expected) {
    expect_end_or_failure(run, what, try_schedule(run, pool, function, timeout_ns),
                          expected);
}

/* ---- The scenario ---- */

static void wait_for_start(pebble_future *future) {
    while (future != NULL && pebble_future_state(future) == PEBBLE_PENDING)
        usleep(200);
}

static void cancel_one(scenario *run, pebble_pool *pool) {
    pebble_future *future = try_schedule(run, pool, stay, 0);
    wait_for_start(future);
    if (future != NULL)
        pebble_future_cancel(future);
    expect_end_or_failure(run, "a cancelled task", future, PEBBLE_ERR_TASK_CANCELLED);
}

static void run_large(scenario *run, pebble_pool *pool) {
    static const int input[LARGE] = {7};
    pebble_future *future = NULL;
    expect_ok_or_refusal(run, "schedule a large input",
                         pebble_schedule(pool, square, input, sizeof input, 0, &future));
    expect_end_or_failure(run, "a task with a large input", future, PEBBLE_OK);
}

/* Two chunks of elements that fail. */
static void run_map(scenario *run, pebble_pool *pool) {
    static const int items[] = {1, 2, 3, 4};
    pebble_map *map = NULL;
    pebble_error error =
        pebble_pool_map(pool, fail_with_words, items, sizeof items[0], 4, 2, 0, &map);
    expect_ok_or_refusal(run, "map", error);
    for (int i = 0; i < 4 && map != NULL; i++) {
        error = pebble_map_next(map, DEADLINE_NS, NULL, NULL);
        if (!is_failure(error))
            complain(run, "an element", error);
        else if (pebble_map_failure(map) == NULL)
            complain(run, "no failure of an element", error);
        else if (is_crash(pebble_map_failure(map)))
            complain(run, "the worker of an element crashed", error);
    }
    pebble_map_unref(map);
}

static bool kill_zygote_of(pebble_future *future) {
    pid_t worker = future != NULL ? pebble_future_pid(future) : 0;
    pid_t zygote = worker != 0 ? process_parent(worker) : 0;
    return zygote > 1 && process_parent(zygote) == getpid() && kill(zygote, SIGKILL) == 0;
}

/* What runs is lost with it, what waits goes to the next one. */
static void lose_zygote(scenario *run, pebble_pool *pool) {
    pebble_future *waits, *running[2];
    for (int i = 0; i < 2; i++)
        running[i] = try_schedule(run, pool, stay, 0);
    for (int i = 0; i < 2; i++)
        wait_for_start(running[i]);
    waits = try_schedule(run, pool, square, 0); /* now: it might overtake them */
    bool killed = kill_zygote_of(running[0]) || kill_zygote_of(running[1]);
    run->may_leave =
        killed && !pebble_pool_active(pool); /* it has broken, and ends its workers */
    for (int i = 0; i < 2; i++) {
        if (!killed && running[i] != NULL)
            pebble_future_cancel(running[i]);
        expect_end_or_failure(run, "a task that ran at the zygote's loss", running[i],
                              killed ? PEBBLE_ERR_TASK_EXPIRED
                                     : PEBBLE_ERR_TASK_CANCELLED);
    }
    expect_end_or_failure(run, "a task that waited at the zygote's loss", waits,
                          PEBBLE_OK);
}

static void stop_with_queue(scenario *run, pebble_pool *pool) {
    enum { QUEUED = 4 };
    pebble_future *futures[QUEUED];
    for (int i = 0; i < QUEUED; i++)
        futures[i] = try_schedule(run, pool, stay, 0);
    pebble_error error = pebble_pool_stop(pool);
    if (error != PEBBLE_OK)
        complain(run, "stop", error);
    for (int i = 0; i < QUEUED; i++)
        expect_end_or_failure(run, "a stopped task", futures[i],
                              PEBBLE_ERR_TASK_CANCELLED);
}

static void use_pool(scenario *run, pebble_pool *pool) {
    run_one(run, pool, "the first task", square, 0, PEBBLE_OK);
    run_large(run, pool);
    run_one(run, pool, crashes, crash, 0, PEBBLE_ERR_TASK_EXPIRED);
    run_one(run, pool, "a task behind it", square, 0, PEBBLE_OK);
    run_one(run, pool, "a task that times out", stay, PEBBLE_MILLISECONDS(3),
            PEBBLE_ERR_TASK_TIMEOUT);
    cancel_one(run, pool);
    run_map(run, pool);
    lose_zygote(run, pool);
    stop_with_queue(run, pool);
    pebble_error error = pebble_pool_join(pool, DEADLINE_NS);
    if (error != PEBBLE_OK)
        complain(run, "join", error);
}

static pebble_error make_pool(const scenario *run, pebble_pool **pool) {
    const char *command[] = {"/proc/self/exe", "again", NULL};
    bool executes = run->method != PEBBLE_START_FORK;
    bool in_thread = run->where != IN_PROGRAM || run->kind == OS_FAULT_THREAD;
    return pebble_process_pool_new(
        PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 4, .start_method = run->method,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(5),
                            .worker_command = executes ? command : NULL,
                            .worker_data = executes ? "data" : NULL,
                            .worker_data_size = executes ? 4 : 0,
                            .hooks = in_thread ? &hooks : &few_hooks),
        pool);
}

static bool none_left(void *unused) {
    pid_t pid;
    (void)unused;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        ;
    return pid < 0;
}

static void expect_none_left(scenario *run) {
    pid_t left;
    if (run->may_leave ||
        WITH_THREAD_SANITIZER) { /* it runs no handlers in processes forked from one with threads: those
                                  * that have lost their zygote stay if there was no pidfd for them */
        while (!none_left(NULL) && process_children(getpid(), &left, 1) > 0)
            process_kill(left);
        return;
    }
    if (wait_until(none_left, NULL) || process_children(getpid(), &left, 1) == 0)
        return;
    complain(run, "a process was left behind", PEBBLE_OK);
    process_kill(left);
}

/* Returns how many calls of the kind there were in the place. */
static unsigned run_scenario(scenario *run) {
    pebble_pool *pool = NULL;
    shared->run = *run;
    atomic_store(&shared->calls, 0);
    atomic_store(&shared->zygote_crash, 0);
    if (run->where == IN_PROGRAM)
        pebble_test_fault(run->kind, run->nth, false);
    pebble_error error = make_pool(run, &pool);
    if (error == PEBBLE_OK)
        use_pool(run, pool);
    else
        expect_ok_or_refusal(run, "new", error);
    unsigned calls = pebble_test_fault_calls();
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    pebble_pool_free(pool);
    expect_none_left(run);
    if (atomic_load(&shared->zygote_crash) != 0)
        complain(run, strsignal(atomic_load(&shared->zygote_crash)), PEBBLE_OK);
    return run->where == IN_PROGRAM ? calls : atomic_load(&shared->calls);
}

static void check_kind(os_fault kind, place where, pebble_start_method method) {
    unsigned calls = 0, most = 0;
    bool broken = false;
    for (unsigned nth = 1;
         nth <= calls + MORE_TRIES && (where == IN_PROGRAM || nth <= OTHERS_MAX); nth++) {
        scenario run = {.kind = kind, .where = where, .nth = nth, .method = method};
        if (run_scenario(&run) >= nth)
            calls = nth; /* it has failed */
        most = run.cost > most ? run.cost : most;
        /* What is to execute goes on from its parent's count: it may fail for all of them. */
        if (run.cost > COST_MAX && method == PEBBLE_START_FORK)
            complain(&run, "it cost too many tasks", PEBBLE_OK);
        broken |= run.broken;
    }
    print_message("%u calls, at most %u tasks\n", calls, most);
    assert_true(calls > 0);
    assert_false(broken);
}

/* ---- Each call in turn ---- */

#define EACH(name, kind, where, method)                                                  \
    static void test_##name(void **state) {                                              \
        (void)state;                                                                     \
        check_kind(kind, where, method);                                                 \
    }
EACH(program_alloc, OS_FAULT_ALLOC, IN_PROGRAM, PEBBLE_START_FORK)
EACH(program_shared, OS_FAULT_SHARED, IN_PROGRAM, PEBBLE_START_FORK)
EACH(program_fd, OS_FAULT_FD, IN_PROGRAM, PEBBLE_START_FORK)
EACH(program_fork, OS_FAULT_FORK, IN_PROGRAM, PEBBLE_START_FORK)
EACH(program_thread, OS_FAULT_THREAD, IN_PROGRAM, PEBBLE_START_FORK)
EACH(program_message, OS_FAULT_MESSAGE, IN_PROGRAM, PEBBLE_START_FORK)
EACH(zygote_alloc, OS_FAULT_ALLOC, IN_ZYGOTE, PEBBLE_START_FORK)
EACH(zygote_fd, OS_FAULT_FD, IN_ZYGOTE, PEBBLE_START_FORK)
EACH(zygote_fork, OS_FAULT_FORK, IN_ZYGOTE, PEBBLE_START_FORK)
EACH(zygote_message, OS_FAULT_MESSAGE, IN_ZYGOTE, PEBBLE_START_FORK)
EACH(worker_alloc, OS_FAULT_ALLOC, IN_WORKER, PEBBLE_START_FORK)
EACH(worker_shared, OS_FAULT_SHARED, IN_WORKER, PEBBLE_START_FORK)
EACH(forkserver_alloc, OS_FAULT_ALLOC, IN_PROGRAM, PEBBLE_START_FORKSERVER)
EACH(forkserver_shared, OS_FAULT_SHARED, IN_PROGRAM, PEBBLE_START_FORKSERVER)
EACH(forkserver_fd, OS_FAULT_FD, IN_PROGRAM, PEBBLE_START_FORKSERVER)
EACH(forkserver_fork, OS_FAULT_FORK, IN_PROGRAM, PEBBLE_START_FORKSERVER)
EACH(forkserver_thread, OS_FAULT_THREAD, IN_PROGRAM, PEBBLE_START_FORKSERVER)
EACH(forkserver_message, OS_FAULT_MESSAGE, IN_PROGRAM, PEBBLE_START_FORKSERVER)
EACH(spawn_fork, OS_FAULT_FORK, IN_PROGRAM, PEBBLE_START_SPAWN)
EACH(spawn_fd, OS_FAULT_FD, IN_PROGRAM, PEBBLE_START_SPAWN)
EACH(spawn_message, OS_FAULT_MESSAGE, IN_PROGRAM, PEBBLE_START_SPAWN)

static void test_spawn_alloc(void **state) {
    (void)state;
    if (SANITIZED)
        skip(); /* it takes long to execute so many */
    check_kind(OS_FAULT_ALLOC, IN_PROGRAM, PEBBLE_START_SPAWN);
}

static void test_register_function(void **state) {
    (void)state;
    pebble_test_fault(OS_FAULT_ALLOC, 1, false);
    expect_error(pebble_register_function("square", square), PEBBLE_ERR_NO_MEMORY, "");
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    expect_ok(pebble_register_function("square", square));
}

/* The element's own words cannot be made: it says the same as others. */
static void test_late_element(void **state) {
    const int64_t limit_ns = PEBBLE_MILLISECONDS(10);
    counter *go = shared_memory(sizeof *go);
    pebble_map *map = NULL;
    (void)state;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_ok(pebble_pool_map(pool, wait_for, &go, sizeof go, 1, 1, limit_ns, &map));
    usleep((unsigned)(2 * limit_ns / 1000));
    pebble_test_fault(OS_FAULT_ALLOC, 1, true);
    assert_int_equal(pebble_map_next(map, DEADLINE_NS, NULL, NULL),
                     PEBBLE_ERR_TASK_TIMEOUT);
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_non_null(pebble_map_failure(map));
    counter_add(go, 1);
    pebble_map_unref(map);
    close_join_free(pool);
}

/* ---- A worker without a descriptor ---- */

typedef struct outliving {
    counter begun, go, runs;
} outliving;

static int outlive(pebble_task *task, const void *input, size_t input_size) {
    outliving *self = *(outliving *const *)input;
    sigset_t all;
    (void)task, (void)input_size;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    counter_add(&self->begun, 1);
    return counter_wait(&self->go, 1) ? 0 : 1;
}

static int count_run(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    counter_add(&(*(outliving *const *)input)->runs, 1);
    return 0;
}

/* Its zygote is killed, and it does not heed the signal that tells it so: it counts as dead, and does not go on
 * with what another performs. */
static void test_worker_without_descriptor(void **state) {
    outliving *self = shared_memory(sizeof *self);
    int number = 9;
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* there the kernel sends SIGKILL (tie.c), which it does heed */
    shared->run = (scenario){.kind = OS_FAULT_FD, .where = IN_ZYGOTE, .nth = 2};
    shared->repeats = true;
    atomic_store(&shared->calls, 0);
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = &hooks));
    for (int i = 0; i < 5; i++) /* tasks are short: the next go ahead */
        assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 81);
    pebble_future *outlives = schedule(pool, outlive, &self, sizeof self, 0);
    pebble_future *behind = schedule(pool, count_run, &self, sizeof self, 0);
    counter_expect(&self->begun, 1);
    pid_t pid = pebble_future_pid(outlives);
    shared->repeats = false; /* the next zygote is well */
    shared->run.where = IN_PROGRAM;
    assert_true(kill_zygote_of(outlives));
    expect_end(outlives, PEBBLE_ERR_TASK_EXPIRED);
    expect_end(behind, PEBBLE_OK);
    assert_true(process_lives(pid));
    counter_add(&self->go, 1);
    expect_gone(pid);
    assert_int_equal(counter_value(&self->runs), 1);
    close_join_free(pool);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

/* ---- For a while ---- */

/* What a running pool wanted when there was none is done when there is again. */
static void check_for_a_while(os_fault kind) {
    int number = 9;
    scenario run = {.kind = kind, .nth = 1};
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 81);
    pebble_future *fatal = schedule(pool, crash, NULL, 0, 0);
    pebble_future *waits = schedule(pool, square, &number, sizeof number, 0);
    pebble_test_fault(kind, 1, true);
    expect_end_or_failure(&run, crashes, fatal, PEBBLE_ERR_TASK_EXPIRED);
    usleep(50 * 1000);
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_false(run.broken);
    assert_int_equal(take_int(waits), 81);
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 81);
    close_join_free(pool);
}

static void test_none_for_a_while(void **state) {
    (void)state;
    for (int kind = OS_FAULT_ALLOC; kind < OS_FAULT_KINDS; kind++)
        check_for_a_while((os_fault)kind);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(program_alloc),
        TEST(program_shared),
        TEST(program_fd),
        TEST(program_fork),
        TEST(program_thread),
        TEST(program_message),
        TEST(zygote_alloc),
        TEST(zygote_fd),
        TEST(zygote_fork),
        TEST(zygote_message),
        TEST(worker_alloc),
        TEST(worker_shared),
        TEST(forkserver_alloc),
        TEST(forkserver_shared),
        TEST(forkserver_fd),
        TEST(forkserver_fork),
        TEST(forkserver_thread),
        TEST(forkserver_message),
        TEST(spawn_fork),
        TEST(spawn_fd),
        TEST(spawn_message),
        TEST(spawn_alloc),
        TEST(register_function),
        TEST(late_element),
        TEST(worker_without_descriptor),
        TEST(none_for_a_while),
    };
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    pebble_worker_main();
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("injected", tests, NULL, NULL);
}
