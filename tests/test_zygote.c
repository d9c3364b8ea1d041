/* The zygote: forks that take long, spares that die, processes that it may not end. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "platform/platform.h"
#include "support.h"

typedef struct area {
    counter started, stayed;
    _Atomic bool spares_die;
    _Atomic pid_t foreign, below_foreign;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

static int sleep_long(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    for (;;)
        pause();
    return 0;
}

/* ---- Forks that take long, as those of a large program do ---- */

enum { SLOW_WORKERS = 40, FORK_MS = 50 };

static void fork_slowly(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind == PEBBLE_FORK_WORKER)
        usleep(FORK_MS * 1000);
}

static int no_initialization(const void *input, size_t size) {
    (void)input, (void)size;
    return 0;
}

/* A deadline, and the zygote's answers, wait for a few of them, not for all. */
static void test_slow_forks(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .before_fork = fork_slowly};
    const int64_t all_ns = PEBBLE_MILLISECONDS(SLOW_WORKERS * FORK_MS);
    pebble_future *futures[SLOW_WORKERS];
    (void)state;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = SLOW_WORKERS, .hooks = &hooks,
                                             .initializer = no_initialization,
                                             .initializer_timeout_ns = all_ns / 2));
    int64_t before_ns = os_now_ns();
    futures[0] = schedule(pool, sleep_long, NULL, 0, PEBBLE_MILLISECONDS(100));
    for (int i = 1; i < SLOW_WORKERS; i++)
        futures[i] = schedule(pool, sleep_long, NULL, 0, 0);
    expect_end(futures[0], PEBBLE_ERR_TASK_TIMEOUT);
    assert_true(os_now_ns() - before_ns < all_ns / 2);
    /* All have started: nobody has taken the zygote for one that hangs. */
    for (int i = 1; i < SLOW_WORKERS; i++) {
        while (pebble_future_state(futures[i]) == PEBBLE_PENDING)
            usleep(1000);
        assert_int_equal(pebble_future_state(futures[i]), PEBBLE_RUNNING);
    }
    expect_ok(pebble_pool_stop(pool));
    for (int i = 1; i < SLOW_WORKERS; i++)
        expect_end(futures[i], PEBBLE_ERR_TASK_CANCELLED);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
}

/* ---- Spares that die ---- */

static void start_or_die(void *context, const char *name) {
    (void)context, (void)name;
    counter_add(&shared->started, 1);
    if (atomic_load(&shared->spares_die))
        _exit(3);
    counter_add(&shared->stayed, 1);
}

/* One for each task that has ended, not as many as the machine can fork. */
static void test_spares_that_die(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .worker_start = start_or_die};
    (void)state;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = &hooks));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    counter_expect(&shared->stayed, 2); /* the worker and its spare */
    assert_int_equal(counter_value(&shared->started), 2);
    atomic_store(&shared->spares_die, true);
    pid_t pids[4], zygote;
    size_t count;
    expect_ok(pebble_pool_get_pids(pool, pids, 4, &count));
    assert_int_equal(count, 1);
    zygote = process_parent(pids[0]);
    count = process_children(zygote, pids + 1, 3);
    for (size_t i = 1; i <= count; i++) {
        if (pids[i] != pids[0])
            process_kill(pids[i]);
    }
    usleep(200 * 1000); /* for what must not come */
    assert_int_equal(counter_value(&shared->started), 2);
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    counter_expect(&shared->started, 3);
    usleep(200 * 1000);
    assert_int_equal(counter_value(&shared->started), 3);
    close_join_free(pool);
}

/* ---- A process of another user, as sudo makes one ---- */

enum { NOBODY = 65534 };

static int leave_foreign_and_die(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    pid_t child = fork();
    if (child == 0) {
        if (setresuid(0, 0, 0) != 0)
            _exit(1);
        pid_t own = fork();
        if (own == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0) {
            counter_add(&shared->started, 1);
            for (;;)
                pause();
        }
        atomic_store(&shared->below_foreign, own);
        atomic_store(&shared->foreign, getpid());
        counter_add(&shared->started, 1);
        for (;;)
            pause();
    }
    counter_wait(&shared->started, 2);
    if (*(const bool *)input)
        raise(SIGKILL);
    for (;;)
        pause();
    return 0;
}

/* What it leaves is nobody's to end: its own task ends, and every other, and the pool. What is ours
 * below it ends, too. */
static int use_foreign(void *context) {
    bool dies = *(bool *)context;
    if (setresuid(NOBODY, NOBODY, 0) != 0)
        return 2;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(50)));
    pebble_future *leaving = schedule(pool, leave_foreign_and_die, &dies, sizeof dies,
                                      dies ? 0 : PEBBLE_MILLISECONDS(50));
    expect_end(leaving, dies ? PEBBLE_ERR_TASK_EXPIRED : PEBBLE_ERR_TASK_TIMEOUT);
    expect_end(schedule(pool, sleep_long, NULL, 0, PEBBLE_MILLISECONDS(50)),
               PEBBLE_ERR_TASK_TIMEOUT);
    stop_join_free(pool);
    return 0;
}

static void check_foreign(bool dies) {
    if (geteuid() != 0)
        skip(); /* nobody can become another user */
    assert_int_equal(program_wait(program_start(use_foreign, &dies)), 0);
    expect_gone(atomic_load(&shared->below_foreign));
    process_kill(atomic_load(&shared->foreign));
    expect_gone(atomic_load(&shared->foreign));
}

static void test_foreign_process_of_a_dead_worker(void **state) {
    (void)state;
    check_foreign(true);
}

static void test_foreign_process_of_a_killed_worker(void **state) {
    (void)state;
    check_foreign(false);
}

/* ---- A zygote that is lost while its workers start ---- */

static int wait_for_others(const void *input, size_t size) {
    (void)input, (void)size;
    counter_add(&shared->started, 1);
    return counter_wait(&shared->stayed, 1) ? 0 : 1;
}

static int tell_zygote(pebble_task *task, const void *input, size_t size) {
    pid_t zygote = getppid();
    (void)input, (void)size;
    return (int)pebble_task_write(task, &zygote, sizeof zygote);
}

/* It is one loss, not as many failed initializers as there were workers. */
static void test_lost_while_workers_start(void **state) {
    enum { WORKERS = 5 };
    pebble_future *futures[WORKERS];
    pid_t zygote;
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .initializer = wait_for_others));
    for (int i = 0; i < WORKERS; i++)
        futures[i] = schedule(pool, tell_zygote, NULL, 0, 0);
    counter_expect(&shared->started, WORKERS);
    assert_int_equal(process_children(getpid(), &zygote, 1), 1);
    process_kill(zygote);
    counter_expect(&shared->started, 2 * WORKERS);
    counter_add(&shared->stayed, 1);
    for (int i = 0; i < WORKERS; i++)
        assert_int_not_equal(take_int(futures[i]), zygote);
    close_join_free(pool);
}

/* ---- A zygote that is lost before it has told of a worker ---- */

enum { LOST_ZYGOTES = 6 }; /* more than a task has tries */

/* In the zygote: gives the worker time to begin its task, which it must not, and dies. */
static void die_in_zygote(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind != PEBBLE_FORK_WORKER || counter_add(&shared->stayed, 1) > LOST_ZYGOTES)
        return;
    usleep(50 * 1000);
    raise(SIGKILL);
}

static void cut_tie(void *context, const char *name) {
    (void)context, (void)name;
    prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
}

static int tell_start(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    int start = (int)counter_add(&shared->started, 1);
    if (counter_value(&shared->stayed) <= LOST_ZYGOTES) /* in a worker that nobody knows */
        pause();
    return (int)pebble_task_write(task, &start, sizeof start);
}

/* Nobody could see such a worker's end: it has performed nothing when it ends, and does end. */
static void check_lost_before_it_told(const pebble_hooks *hooks) {
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = hooks));
    assert_int_equal(take_int(schedule(pool, tell_start, NULL, 0, 0)), 1);
    assert_int_equal(counter_value(&shared->started), 1);
    assert_true(counter_value(&shared->stayed) > LOST_ZYGOTES);
    close_join_free(pool);
}

static void test_lost_before_it_told(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .after_fork_parent = die_in_zygote};
    (void)state;
    check_lost_before_it_told(&hooks);
}

static void test_lost_before_it_told_of_an_untied_worker(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .after_fork_parent = die_in_zygote,
                                       .worker_start = cut_tie};
    (void)state;
    check_lost_before_it_told(&hooks);
}

/* What it said counts, though it has not read all that it was told. */
static void test_messages_of_one_that_has_died(void **state) {
    int fds[2], fd;
    uint32_t number = 0;
    size_t size, count;
    (void)state;
    assert_int_equal(os_message_pair(fds), 0);
    for (uint32_t i = 1; i <= 2; i++) {
        assert_int_equal(os_message_send(fds[0], &i, sizeof i, NULL, 0), 0);
        assert_int_equal(os_message_send(fds[1], &i, sizeof i, NULL, 0), 0);
    }
    os_fd_close(fds[1]);
    for (uint32_t i = 1; i <= 2; i++) {
        assert_int_equal(
            os_message_receive(fds[0], &number, sizeof number, &size, &fd, 1, &count), 0);
        assert_int_equal(number, i);
    }
    assert_int_equal(
        os_message_receive(fds[0], &number, sizeof number, &size, &fd, 1, &count), EPIPE);
    os_fd_close(fds[0]);
}

/* ---- A fork that blocks in the program ---- */

static _Atomic bool forks_block;

static void block_fork(void) {
    while (atomic_load(&forks_block))
        usleep(1000);
}

static __attribute__((constructor)) void watch_forks(void) {
    pthread_atfork(block_fork, NULL, NULL);
}

/* Other pools' deadlines do not wait for it. */
static void test_new_zygote_whose_fork_blocks(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_pool *other = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pid_t zygote = take_int(schedule(pool, tell_zygote, NULL, 0, 0));
    expect_end(schedule(other, nothing, NULL, 0, 0), PEBBLE_OK);
    pebble_future *running = schedule(pool, sleep_long, NULL, 0, 0);
    pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
    while (pebble_future_state(running) == PEBBLE_PENDING)
        usleep(1000);
    atomic_store(&forks_block, true);
    process_kill(zygote);
    expect_end(running, PEBBLE_ERR_TASK_EXPIRED);
    expect_end(schedule(other, sleep_long, NULL, 0, PEBBLE_MILLISECONDS(100)),
               PEBBLE_ERR_TASK_TIMEOUT);
    assert_false(pebble_future_done(future));
    atomic_store(&forks_block, false);
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
    close_join_free(other);
}

/* ---- A stop beside the first task ---- */

static void *schedule_first(void *context) {
    pebble_future *future;
    if (pebble_schedule(context, nothing, NULL, 0, 0, &future) == PEBBLE_OK)
        pebble_future_unref(future);
    return NULL;
}

static void *ask_for_info(void *context) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    for (int i = 0; i < 200; i++)
        pebble_pool_get_info(context, &info);
    return NULL;
}

/* The pool ends with its zygote, though that may come about meanwhile. */
static void test_stopped_beside_the_first_task(void **state) {
    pthread_t threads[2];
    (void)state;
    for (int i = 0; i < 200; i++) {
        pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
        assert_int_equal(pthread_create(&threads[0], NULL, schedule_first, pool), 0);
        assert_int_equal(pthread_create(&threads[1], NULL, ask_for_info, pool), 0);
        usleep((useconds_t)(i * 3)); /* a fork takes some hundred microseconds */
        expect_ok(pebble_pool_stop(pool));
        expect_ok(pebble_pool_join(pool, DEADLINE_NS));
        pid_t left;
        assert_int_equal(process_children(getpid(), &left, 1), 0);
        for (int t = 0; t < 2; t++)
            pthread_join(threads[t], NULL);
        pebble_pool_free(pool);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(slow_forks),
        TEST(spares_that_die),
        TEST(foreign_process_of_a_dead_worker),
        TEST(foreign_process_of_a_killed_worker),
        TEST(lost_while_workers_start),
        TEST(lost_before_it_told),
        TEST(lost_before_it_told_of_an_untied_worker),
        TEST(messages_of_one_that_has_died),
        TEST(new_zygote_whose_fork_blocks),
        TEST(stopped_beside_the_first_task),
    };
    return cmocka_run_group_tests_name("zygote", tests, NULL, NULL);
}
