/* Tasks that start processes: with the task's worker, all of its processes end. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/platform.h"

enum { NOTED_MAX = 4096 };

#define LONG_GRACE_NS PEBBLE_SECONDS(1000)

typedef struct area {
    counter started, go, forks;
    _Atomic int64_t sigterm_ns;
    _Atomic pid_t pids[NOTED_MAX]; /* of all that tasks started, themselves too */
    _Atomic uint32_t noted;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- In tasks ---- */

static void note_pid(pid_t pid) {
    uint32_t at = atomic_fetch_add(&shared->noted, 1);
    if (at < NOTED_MAX)
        atomic_store(&shared->pids[at], pid);
}

static _Noreturn void sleep_on(void) {
    for (;;)
        pause();
}

/* Notes itself, says so, and stays. */
static _Noreturn void stay(void) {
    note_pid(getpid());
    counter_add(&shared->started, 1);
    sleep_on();
}

static void execute_sleep(void) {
    note_pid(getpid());
    counter_add(&shared->started,
                1); /* about to be: the kill may come at any instruction */
    execlp("sleep", "sleep", "1000", (char *)NULL);
    _exit(127);
}

/* What a task starts: each returns in the task itself. All say "started" count_of_shape times,
 * the task itself once more. */

static void start_child(void) {
    if (fork() == 0)
        stay();
}

static void start_program(void) {
    if (fork() == 0)
        execute_sleep();
}

static void start_many(void) {
    for (int i = 0; i < 10; i++)
        start_child();
}

/* The grandchild's parent ends at once. */
static void start_double_fork(void) {
    pid_t child = fork();
    if (child == 0) {
        if (fork() == 0)
            stay();
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void start_session(void) {
    if (fork() == 0) {
        setsid();
        stay();
    }
}

/* As a daemon does: session of its own, no ties left. */
static void start_daemon(void) {
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (fork() == 0) {
            setsid();
            prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
            chdir("/");
            int null = open("/dev/null", O_RDWR);
            for (int fd = 0; fd < 3; fd++)
                dup2(null, fd);
            stay();
        }
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void start_deep(void) {
    for (int depth = 0; depth < 20; depth++) {
        if (fork() > 0)
            return;
        note_pid(getpid());
        if (depth < 19)
            continue;
        counter_add(&shared->started, 1);
        sleep_on();
    }
}

static void note_sigterm(int signal) {
    (void)signal;
    atomic_store(&shared->sigterm_ns, os_now_ns());
}

static void start_stubborn(void) {
    if (fork() == 0) {
        signal(SIGTERM, note_sigterm);
        stay();
    }
}

typedef struct shape {
    const char *name;
    void (*start)(void);
    uint32_t says; /* how often "started" is said without the task's own */
} shape;

enum { CHILD, PROGRAM, MANY, DOUBLE_FORK, SESSION, DAEMON, DEEP, STUBBORN, SHAPES };

static const shape shapes[SHAPES] = {
    {"a child", start_child, 1},
    {"an executed program", start_program, 1},
    {"many children", start_many, 10},
    {"a grandchild", start_double_fork, 1},
    {"a session of its own", start_session, 1},
    {"a daemon", start_daemon, 1},
    {"a deep tree", start_deep, 1},
    {"a stubborn child", start_stubborn, 1},
};

/* What the task does when it has started its processes. */
typedef enum ending { STAYS, RETURNS, CRASHES, EXITS } ending;

typedef struct order {
    int shape;
    ending ending;
} order;

static int *volatile null_pointer;

__attribute__((no_sanitize("address", "undefined", "thread"))) static void crash(void) {
    *null_pointer = 1;
}

static int start_processes(pebble_task *task, const void *input, size_t input_size) {
    const order *told = input;
    (void)task, (void)input_size;
    note_pid(getpid());
    if (told->shape >= 0)
        shapes[told->shape].start();
    if (!counter_wait(&shared->started, told->shape >= 0 ? shapes[told->shape].says : 0))
        return 98;
    counter_add(&shared->started, 1);
    if (told->ending == CRASHES)
        crash();
    if (told->ending == EXITS)
        _exit(0);
    if (told->ending == STAYS)
        sleep_on();
    return 0;
}

/* ---- In the program ---- */

static pebble_pool *pool_of(int workers, int64_t grace_ns) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .termination_grace_ns = grace_ns));
}

static pebble_future *schedule_order(pebble_pool *pool, int shape_index, ending how,
                                     int64_t timeout_ns) {
    const order told = {shape_index, how};
    memset(shared, 0, sizeof *shared);
    pebble_future *future =
        schedule(pool, start_processes, &told, sizeof told, timeout_ns);
    counter_expect(&shared->started, shapes[shape_index].says + 1);
    return future;
}

static uint32_t alive(void) {
    uint32_t count = 0;
    uint32_t noted = atomic_load(&shared->noted);
    for (uint32_t i = 0; i < noted && i < NOTED_MAX; i++)
        count += process_lives(atomic_load(&shared->pids[i]));
    return count;
}

static bool none_alive(void *unused) {
    (void)unused;
    return alive() == 0;
}

static void look(pebble_future *future, void *context) {
    (void)future;
    counter_add(context, alive() + 1);
}

/* Each shape ended by cancelling: gone when the callback runs and the wait is over. */
static void test_cancelled(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    for (int i = 0; i < SHAPES; i++) {
        counter seen = {0};
        print_message("%s\n", shapes[i].name);
        pebble_future *future = schedule_order(pool, i, STAYS, 0);
        assert_true(alive() > shapes[i].says);
        expect_ok(pebble_future_add_callback(future, look, &seen));
        assert_true(pebble_future_cancel(future));
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_int_equal(alive(), 0);
        counter_expect(&seen, 1);
        assert_int_equal(counter_value(&seen), 1); /* none was alive in the callback */
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    }
    close_join_free(pool);
}

static void test_timed_out(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    for (int i = 0; i < SHAPES; i++) {
        print_message("%s\n", shapes[i].name);
        pebble_future *future = schedule_order(
            pool, i, STAYS, PEBBLE_MILLISECONDS(WITH_THREAD_SANITIZER ? 2000 : 300));
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_int_equal(alive(), 0);
        expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    }
    close_join_free(pool);
}

static void test_stopped_pool(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
        pebble_future *future = schedule_order(pool, i, STAYS, 0);
        expect_ok(pebble_pool_stop(pool));
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_int_equal(alive(), 0);
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
        expect_ok(pebble_pool_join(pool, DEADLINE_NS));
        pebble_pool_free(pool);
    }
}

/* Of the task that returns its children stay, until the worker itself ends. */
static void check_end_of_worker(pebble_error (*end)(pebble_pool *)) {
    for (int i = 0; i < SHAPES; i++) {
        print_message("%s\n", shapes[i].name);
        pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
        pebble_future *future = schedule_order(pool, i, RETURNS, 0);
        expect_end(future, PEBBLE_OK);
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
        assert_true(alive() >= shapes[i].says);
        expect_ok(end(pool));
        expect_ok(pebble_pool_join(pool, DEADLINE_NS));
        assert_int_equal(alive(), 0);
        pebble_pool_free(pool);
    }
}

static void test_left_by_a_task_that_returned_then_closed(void **state) {
    (void)state;
    check_end_of_worker(pebble_pool_close);
}

static void test_left_by_a_task_that_returned_then_stopped(void **state) {
    (void)state;
    check_end_of_worker(pebble_pool_stop);
}

/* The worker is replaced after each task, and takes with it what the task left. */
static void test_left_by_a_task_that_returned_then_replaced(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .max_tasks = 1,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(300)));
    for (int i = 0; i < SHAPES; i++) {
        print_message("%s\n", shapes[i].name);
        expect_end(schedule_order(pool, i, RETURNS, 0), PEBBLE_OK);
        assert_true(wait_until(none_alive, NULL));
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    }
    close_join_free(pool);
}

/* The worker dies by itself: its processes follow, though nobody asked. */
static void check_death(ending how) {
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    for (int i = 0; i < SHAPES; i++) {
        print_message("%s\n", shapes[i].name);
        pebble_future *future = schedule_order(pool, i, how, 0);
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        assert_true(wait_until(none_alive, NULL));
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    }
    close_join_free(pool);
}

static void test_left_by_a_crash(void **state) {
    (void)state;
    check_death(CRASHES);
}

static void test_left_by_an_exit(void **state) {
    (void)state;
    check_death(EXITS);
}

/* A SIGTERM that is not the program's: nobody has a grace. */
static void test_left_at_another_s_sigterm(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, LONG_GRACE_NS);
    for (int i = 0; i < SHAPES; i++) {
        pebble_future *future = schedule_order(pool, i, STAYS, 0);
        kill(atomic_load(&shared->pids[0]), SIGTERM); /* the task notes itself first */
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_int_equal(pebble_future_failure(future)->signal, SIGTERM);
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        assert_true(wait_until(none_alive, NULL));
    }
    close_join_free(pool);
}

/* ---- The loss of the zygote ---- */

static pid_t zygote_of_task(void) {
    return process_parent(atomic_load(&shared->pids[0])); /* the task notes itself first */
}

/* What a worker's task has started ends with it also if the zygote, which would see to it, is killed. */
static void test_left_when_the_zygote_is_killed(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* see tie.c */
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    for (int i = 0; i < SHAPES; i++) {
        print_message("%s\n", shapes[i].name);
        pebble_future *future = schedule_order(pool, i, STAYS, 0);
        process_kill(zygote_of_task());
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        assert_true(wait_until(none_alive, NULL));
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    }
    close_join_free(pool);
}

static int starts_and_blocks_signals(pebble_task *task, const void *input,
                                     size_t input_size) {
    sigset_t all;
    (void)task, (void)input, (void)input_size;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    note_pid(getpid());
    start_many();
    sleep_on();
}

static int starts_and_uses_up_descriptors(pebble_task *task, const void *input,
                                          size_t input_size) {
    (void)task, (void)input, (void)input_size;
    note_pid(getpid());
    start_many();
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3});
    sleep_on();
}

static void check_zygote_killed(pebble_function function) {
    if (WITH_THREAD_SANITIZER)
        skip();
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    memset(shared, 0, sizeof *shared);
    pebble_future *future = schedule(pool, function, NULL, 0, 0);
    counter_expect(&shared->started, 10);
    process_kill(zygote_of_task());
    expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    assert_true(wait_until(none_alive, NULL));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

static void test_left_by_a_worker_that_blocks_signals(void **state) {
    (void)state;
    check_zygote_killed(starts_and_blocks_signals);
}

static void test_left_by_a_worker_without_descriptors(void **state) {
    (void)state;
    check_zygote_killed(starts_and_uses_up_descriptors);
}

enum { BOMB_MEMORY = 64 * 1024 * 1024, BOMB_DEPTH = 5 };

/* Forks that take their time, in all processes at once; the worker itself is deaf to signals. */
static int bombs(pebble_task *task, const void *input, size_t input_size) {
    sigset_t all;
    (void)task, (void)input_size;
    note_pid(getpid());
    char *memory = mmap(NULL, BOMB_MEMORY, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(memory, BOMB_MEMORY, MADV_NOHUGEPAGE);
    memset(memory, 1, BOMB_MEMORY);
    sigfillset(&all);
    if (*(const bool *)input)
        sigprocmask(SIG_SETMASK, &all, NULL);
    for (int i = 0; i < BOMB_DEPTH; i++) {
        if (fork() == 0)
            note_pid(getpid());
        counter_add(&shared->started, 1);
    }
    sleep_on();
}

static void check_bomb(bool blocks_signals) {
    enum { ROUNDS = 3 };
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    for (int i = 0; i < ROUNDS; i++) {
        memset(shared, 0, sizeof *shared);
        pebble_future *future =
            schedule(pool, bombs, &blocks_signals, sizeof blocks_signals, 0);
        counter_expect(&shared->started, 1 + 10 * (unsigned)i);
        process_kill(zygote_of_task());
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        assert_true(wait_until(none_alive, NULL));
    }
    close_join_free(pool);
}

static void test_bomb_when_the_zygote_is_killed(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    check_bomb(false);
    check_bomb(true);
}

static int run_shape(void *shape_index) {
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    const order told = {*(const int *)shape_index, STAYS};
    schedule(pool, start_processes, &told, sizeof told, 0);
    sleep_on();
}

/* The program cannot do anything about it either. */
static void test_left_when_program_and_zygote_are_lost(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it runs no handlers in a process that was forked from one with threads */
    for (int i = 0; i < SHAPES; i++) {
        print_message("%s\n", shapes[i].name);
        memset(shared, 0, sizeof *shared);
        pid_t program = program_start(run_shape, &i);
        counter_expect(&shared->started, shapes[i].says + 1);
        kill(program, SIGSTOP);
        assert_int_equal(waitpid(program, NULL, WUNTRACED),
                         program); /* all its threads are */
        process_kill(zygote_of_task());
        assert_true(wait_until(none_alive, NULL));
        program_kill(program);
    }
}

/* ---- The grace ---- */

/* A child that ignores SIGTERM gets it, and has the grace; then it is killed. */
static void check_grace(int64_t grace_ns) {
    pebble_pool *pool = pool_of(1, grace_ns);
    pebble_future *future = schedule_order(pool, STUBBORN, STAYS, 0);
    int64_t before_ns = os_now_ns();
    assert_true(pebble_future_cancel(future));
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    int64_t took_ns = os_now_ns() - before_ns;
    assert_true(atomic_load(&shared->sigterm_ns) >= before_ns);
    assert_true(took_ns >= grace_ns);
    assert_true(took_ns < grace_ns + PEBBLE_SECONDS(2));
    assert_int_equal(alive(), 0);
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

/* What it said of the task, it says until the end: also when its worker has ended and a child has not. */
static void test_state_in_the_grace(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(100));
    pebble_future *future = schedule_order(pool, STUBBORN, STAYS, 0);
    pid_t pid = pebble_future_pid(future);
    assert_true(pid > 0);
    assert_true(pebble_future_cancel(future));
    while (!pebble_future_done(future)) {
        pid_t says = pebble_future_pid(future);
        pebble_state state_now = pebble_future_state(future);
        assert_int_equal(says, pid);
        assert_true(state_now == PEBBLE_RUNNING || state_now == PEBBLE_CANCELLED);
    }
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

static void test_grace_of_a_child(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it runs no handlers in a process that was forked from one with threads */
    check_grace(PEBBLE_MILLISECONDS(100));
    check_grace(PEBBLE_MILLISECONDS(600));
}

/* Nobody waits for the grace when all have gone before. */
static void test_grace_ends_early(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_SECONDS(15));
    for (int i = 0; i < SHAPES; i++) {
        if (i == STUBBORN)
            continue;
        pebble_future *future = schedule_order(pool, i, STAYS, 0);
        int64_t before_ns = os_now_ns();
        assert_true(pebble_future_cancel(future));
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
        assert_true(os_now_ns() - before_ns < PEBBLE_SECONDS(5));
        assert_int_equal(alive(), 0);
    }
    close_join_free(pool);
}

static void note_and_end(int signal) {
    note_sigterm(signal);
    _exit(0);
}

/* One among many whose parent ends when the worker does, and that cleans up. */
static int leaves_one_that_cleans_up(pebble_task *task, const void *input,
                                     size_t input_size) {
    enum { OTHERS = 100 };
    (void)task, (void)input, (void)input_size;
    for (int i = 0; i < OTHERS; i++)
        start_child();
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (fork() == 0) {
            signal(SIGTERM, note_and_end);
            stay();
        }
        stay();
    }
    stay();
}

/* Everybody gets SIGTERM who was there when the worker got it, though that ends many of them. */
static void test_sigterm_for_those_whose_parents_end(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    pebble_pool *pool = pool_of(1, PEBBLE_SECONDS(15));
    for (int i = 0; i < 3; i++) {
        memset(shared, 0, sizeof *shared);
        pebble_future *future = schedule(pool, leaves_one_that_cleans_up, NULL, 0, 0);
        counter_expect(&shared->started, 103);
        assert_true(pebble_future_cancel(future));
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
        assert_true(atomic_load(&shared->sigterm_ns) > 0);
        assert_int_equal(alive(), 0);
    }
    close_join_free(pool);
}

/* A task may clean up when SIGTERM comes; it ended by the cancel all the same. */
static void clean_up(int signal) {
    (void)signal;
    counter_add(&shared->go, 1);
    _exit(0);
}

static int cleans_up(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    signal(SIGTERM, clean_up);
    counter_add(&shared->started, 1);
    sleep_on();
}

static void test_grace_is_for_cleaning_up(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    pebble_pool *pool = pool_of(1, PEBBLE_SECONDS(10));
    pebble_future *future = schedule(pool, cleans_up, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(counter_value(&shared->go), 1);
    close_join_free(pool);
}

/* A task that returns normally when SIGTERM comes was cancelled none the less. */
static volatile sig_atomic_t got_sigterm;

static void note_signal(int signal) {
    got_sigterm = signal;
}

static int returns_on_sigterm(pebble_task *task, const void *input, size_t input_size) {
    sigset_t block, before;
    (void)input, (void)input_size;
    sigemptyset(&block);
    sigaddset(&block, SIGTERM);
    sigprocmask(SIG_BLOCK, &block, &before);
    signal(SIGTERM, note_signal);
    counter_add(&shared->started, 1);
    while (got_sigterm == 0)
        sigsuspend(&before);
    return (int)pebble_task_write(task, "done", 4);
}

static void test_returning_in_the_grace_is_too_late(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    pebble_future *future = schedule(pool, returns_on_sigterm, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

/* ---- Processes that multiply ---- */

/* Starts children for as long as it lives, which notice no SIGTERM; at most so many. */
static int multiplies(pebble_task *task, const void *input, size_t input_size) {
    enum { AT_MOST = 2000, AT_ONCE = 50 };
    (void)task, (void)input, (void)input_size;
    note_pid(getpid());
    signal(SIGTERM, SIG_IGN);
    for (int i = 0; i < AT_MOST; i++) {
        pid_t child = fork();
        if (child == 0) {
            if (i % 2 == 0 && fork() == 0)
                stay();
            stay();
        }
        if (child > 0)
            note_pid(child);
        counter_add(&shared->forks, 1);
        while (counter_value(&shared->forks) > AT_ONCE && counter_value(&shared->go) == 0)
            usleep(100); /* until the kill is on */
        if (counter_value(&shared->go) != 0)
            usleep(200); /* leaves the others some processor */
    }
    sleep_on();
}

static void test_children_started_while_the_kill_is_on(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(50));
    for (int i = 0; i < (WITH_THREAD_SANITIZER ? 1 : 3); i++) {
        memset(shared, 0, sizeof *shared);
        pebble_future *future = schedule(pool, multiplies, NULL, 0, 0);
        counter_expect(&shared->forks, 50);
        counter_add(&shared->go, 1);
        assert_true(pebble_future_cancel(future));
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_int_equal(alive(), 0);
        print_message("%u processes\n", atomic_load(&shared->noted));
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    }
    close_join_free(pool);
}

/* One whose parent is gone each time, so that it is always another process. */
static int hands_on(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    note_pid(getpid());
    if (fork() == 0) {
        signal(SIGTERM, SIG_IGN);
        for (int i = 0; i < 3000; i++) {
            if (fork() > 0)
                _exit(0);
            note_pid(getpid());
            counter_add(&shared->forks, 1);
        }
        sleep_on();
    }
    counter_add(&shared->started, 1);
    sleep_on();
}

static void test_child_that_is_always_another(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(20));
    pebble_future *future = schedule(pool, hands_on, NULL, 0, 0);
    counter_expect(&shared->forks, 50);
    assert_true(pebble_future_cancel(future));
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    assert_int_equal(alive(), 0);
    print_message("%u forks\n", counter_value(&shared->forks));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

/* ---- Others' processes ---- */

/* The kill of one worker's tree is not that of another's, nor of the program's own children. */
static void test_others_are_not_touched(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(2, PEBBLE_MILLISECONDS(300));
    pid_t own = fork();
    if (own == 0)
        for (;;)
            pause();
    pebble_future *stays = schedule_order(pool, CHILD, STAYS, 0);
    pid_t pids[2] = {atomic_load(&shared->pids[0]), atomic_load(&shared->pids[1])};
    pebble_future *goes = schedule_order(pool, DAEMON, STAYS, 0);
    assert_true(pebble_future_cancel(goes));
    expect_end(goes, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(alive(), 0);
    assert_true(process_lives(pids[0]));
    assert_true(process_lives(pids[1]));
    assert_true(process_lives(own));
    assert_true(pebble_future_cancel(stays));
    expect_end(stays, PEBBLE_ERR_TASK_CANCELLED);
    assert_false(process_lives(pids[0]));
    assert_false(process_lives(pids[1]));
    program_kill(own);
    close_join_free(pool);
}

/* ---- What a child holds ---- */

/* A pool of which all processes have the pipe for their standard output. */
static pebble_pool *pool_that_writes_to(int pipe_fd) {
    int before = dup(STDOUT_FILENO);
    fflush(NULL);
    dup2(pipe_fd, STDOUT_FILENO); /* what the zygote and all after it get */
    pebble_pool *pool = pool_of(1, PEBBLE_MILLISECONDS(300));
    pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
    pebble_error error = pebble_future_wait(future, DEADLINE_NS);
    dup2(before, STDOUT_FILENO);
    close(before);
    assert_int_equal(error, PEBBLE_OK);
    expect_end(future, PEBBLE_OK);
    return pool;
}

typedef enum tree_end { BY_CLOSE, BY_TIMEOUT, BY_CANCEL, BY_STOP } tree_end;

/* A child that holds the worker's standard output and other descriptors holds up nothing. */
static void check_pipe_held_by_a_child(tree_end how) {
    static const pebble_error ends[] = {PEBBLE_OK, PEBBLE_ERR_TASK_TIMEOUT,
                                        PEBBLE_ERR_TASK_CANCELLED,
                                        PEBBLE_ERR_TASK_CANCELLED};
    int64_t limit_ns = PEBBLE_MILLISECONDS(WITH_THREAD_SANITIZER ? 2000 : 300);
    int pipe_fds[2];
    char byte;
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    pebble_pool *pool = pool_that_writes_to(pipe_fds[1]);
    close(pipe_fds[1]);
    pebble_future *future = schedule_order(pool, CHILD, how == BY_CLOSE ? RETURNS : STAYS,
                                           how == BY_TIMEOUT ? limit_ns : 0);
    if (how == BY_CANCEL)
        assert_true(pebble_future_cancel(future));
    if (how == BY_STOP)
        expect_ok(pebble_pool_stop(pool));
    expect_end(future, ends[how]);
    assert_int_equal(alive(), how == BY_CLOSE ? 2 : 0);
    close_join_free(pool);
    assert_int_equal(alive(), 0);
    assert_int_equal(read(pipe_fds[0], &byte, 1), 0); /* nobody holds the other end */
    close(pipe_fds[0]);
}

static void test_pipe_held_by_a_child(void **state) {
    (void)state;
    for (int how = BY_CLOSE; how <= BY_STOP; how++)
        check_pipe_held_by_a_child((tree_end)how);
}

/* A stopped child takes SIGKILL, and SIGTERM when it is let go on. */
static int leaves_stopped_child(pebble_task *task, const void *input, size_t input_size) {
    int status;
    (void)task, (void)input, (void)input_size;
    note_pid(getpid());
    pid_t child = fork();
    if (child == 0)
        stay();
    counter_wait(&shared->started, 1); /* it has noted itself */
    kill(child, SIGSTOP);
    if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status))
        return 1;
    counter_add(&shared->go, 1);
    sleep_on();
}

static void test_stopped_child(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, PEBBLE_SECONDS(15));
    pebble_future *future = schedule(pool, leaves_stopped_child, NULL, 0, 0);
    counter_expect(&shared->go, 1);
    assert_int_equal(alive(), 2);
    int64_t before_ns = os_now_ns();
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    assert_true(os_now_ns() - before_ns < PEBBLE_SECONDS(5));
    assert_int_equal(alive(), 0);
    close_join_free(pool);
}

/* ---- Children that return from the task ---- */

static int forks_and_returns(pebble_task *task, const void *input, size_t input_size) {
    pid_t child = fork();
    (void)input, (void)input_size;
    if (child == 0) {
        pebble_task_write(task, "child", 5);
        return 0;
    }
    waitpid(child, NULL, 0);
    return (int)pebble_task_write(task, "parent", 6);
}

static void test_child_that_returns_is_no_worker(void **state) {
    char result[6];
    (void)state;
    pebble_pool *pool = pool_of(1, 0);
    for (int i = 0; i < 5; i++) {
        pebble_future *future = schedule(pool, forks_and_returns, NULL, 0, 0);
        expect_ok(pebble_future_copy_result(future, DEADLINE_NS, result, 6));
        assert_memory_equal(result, "parent", 6);
        pebble_future_unref(future);
    }
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(cancelled),
        TEST(timed_out),
        TEST(stopped_pool),
        TEST(left_by_a_task_that_returned_then_closed),
        TEST(left_by_a_task_that_returned_then_stopped),
        TEST(left_by_a_task_that_returned_then_replaced),
        TEST(left_by_a_crash),
        TEST(left_by_an_exit),
        TEST(left_at_another_s_sigterm),
        TEST(left_when_the_zygote_is_killed),
        TEST(left_by_a_worker_that_blocks_signals),
        TEST(left_by_a_worker_without_descriptors),
        TEST(bomb_when_the_zygote_is_killed),
        TEST(left_when_program_and_zygote_are_lost),
        TEST(state_in_the_grace),
        TEST(grace_of_a_child),
        TEST(grace_ends_early),
        TEST(sigterm_for_those_whose_parents_end),
        TEST(grace_is_for_cleaning_up),
        TEST(returning_in_the_grace_is_too_late),
        TEST(children_started_while_the_kill_is_on),
        TEST(child_that_is_always_another),
        TEST(others_are_not_touched),
        TEST(pipe_held_by_a_child),
        TEST(stopped_child),
        TEST(child_that_returns_is_no_worker),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("trees", tests, NULL, NULL);
}
