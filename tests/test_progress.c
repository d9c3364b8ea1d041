/* Whatever moves, is taken back, skipped or late: who waits is told, and who is overdue is ended. Each
 * of these once got lost between two who thought that the other would see to it. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "channel/layout.h"
#include "platform/platform.h"
#include "support.h"

typedef struct area {
    counter ran, go;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks ---- */

static int run_for(pebble_task *task, const void *input, size_t size) {
    int64_t end_ns = os_now_ns() + *(const int64_t *)input;
    (void)task, (void)size;
    while (os_now_ns() < end_ns)
        ;
    return 0;
}

static int count(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    return 0;
}

static int wait_for_go(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    return counter_wait(&shared->go, 1) ? 0 : 1;
}

static int hang(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    for (;;)
        pause();
    return 0;
}

static pebble_future *schedule_for(pebble_pool *pool, int64_t time_ns) {
    return schedule(pool, run_for, &time_ns, sizeof time_ns, 0);
}

/* From now on the pool gives its workers tasks ahead. */
static void show_that_tasks_are_short(pebble_pool *pool) {
    for (int i = 0; i < 300; i++)
        expect_end(schedule_for(pool, 0), PEBBLE_OK);
}

static pebble_pool *pool_of(int workers, const pebble_hooks *hooks) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .hooks = hooks,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(20)));
}

/* A worker's process comes only when this has passed. */
static void fork_slowly(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind == PEBBLE_FORK_WORKER)
        usleep(100 * 1000);
}

static const pebble_hooks slow_hooks = {.struct_size = sizeof slow_hooks,
                                        .before_fork = fork_slowly};

/* ---- Waiting ---- */

/* The task is moved to an idle worker and back, while a thread leads for it. */
static void test_waiting_for_a_task_that_comes_back(void **state) {
    enum { ROUNDS = 1500, MOST = 14 };
    pebble_future *futures[MOST];
    (void)state;
    srand(1);
    pebble_pool *pool = pool_of(2, NULL);
    show_that_tasks_are_short(pool);
    for (int round = 0; round < ROUNDS; round++) {
        int tasks = 6 + rand() % 8, slow = tasks - 1 - rand() % 3;
        for (int i = 0; i < tasks; i++) {
            int64_t time_ns = i == 0      ? 20000 + rand() % 100000
                              : i == 1    ? 50000 + rand() % 200000
                              : i == slow ? 150000 + rand() % 300000
                                          : 1000;
            futures[i] = schedule_for(pool, time_ns);
        }
        int64_t before_ns = os_now_ns();
        expect_ok(pebble_future_wait(futures[slow], DEADLINE_NS));
        assert_true(os_now_ns() - before_ns < DEADLINE_NS / 2);
        for (int i = 0; i < tasks; i++)
            expect_end(futures[i], PEBBLE_OK);
        if (round % 8 == 0)
            show_that_tasks_are_short(pool);
    }
    close_join_free(pool);
}

static int write_pages(pebble_task *task, const void *input, size_t size) {
    static const char page[4096];
    size_t left = *(const size_t *)input;
    (void)size;
    usleep(5 * 1000); /* until then whoever waits sleeps */
    for (; left > sizeof page; left -= sizeof page) {
        if (pebble_task_write(task, page, sizeof page) != PEBBLE_OK)
            return 1;
    }
    return (int)pebble_task_write(task, page, left);
}

/* Its end stands at the end of what is read in one turn. */
static void test_waiting_for_a_result_of_a_ring(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(1, NULL);
    for (size_t less = 0; less <= 256; less += 32) {
        for (int round = 0; round < 3; round++) {
            size_t wanted = CHANNEL_RING - less, size;
            pebble_future *future = schedule(pool, write_pages, &wanted, sizeof wanted, 0);
            int64_t before_ns = os_now_ns();
            expect_ok(pebble_future_result(future, DEADLINE_NS, NULL, &size));
            assert_true(os_now_ns() - before_ns < DEADLINE_NS / 2);
            assert_int_equal(size, wanted);
            pebble_future_unref(future);
        }
    }
    close_join_free(pool);
}

/* ---- Deadlines ---- */

/* It falls due before there is a process, and the worker is to exit after the task. */
static void test_deadline_before_the_process(void **state) {
    (void)state;
    for (uint64_t max_tasks = 0; max_tasks < 2; max_tasks++) {
        pebble_pool *pool =
            new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .max_tasks = max_tasks,
                                                 .hooks = &slow_hooks));
        expect_end(schedule(pool, hang, NULL, 0, PEBBLE_MILLISECONDS(10)),
                   PEBBLE_ERR_TASK_TIMEOUT);
        close_join_free(pool);
    }
}

/* The task that it waits behind is skipped. */
static void test_deadline_behind_a_skipped_task(void **state) {
    size_t count_of_workers;
    pid_t pid;
    (void)state;
    pebble_pool *pool = pool_of(1, NULL);
    show_that_tasks_are_short(pool);
    expect_ok(pebble_pool_get_pids(pool, &pid, 1, &count_of_workers));
    kill(pid, SIGSTOP);
    pebble_future *skipped = schedule_for(pool, 0);
    pebble_future *late = schedule(pool, hang, NULL, 0, PEBBLE_MILLISECONDS(20));
    usleep(80 * 1000); /* its earliest deadline passes */
    pebble_future_cancel(skipped);
    kill(pid, SIGCONT);
    expect_end(late, PEBBLE_ERR_TASK_TIMEOUT);
    expect_end(skipped, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

static void wait_in_release(void *context) {
    (void)context;
    counter_add(&shared->ran, 1);
    counter_wait(&shared->go, 1);
}

/* The supervisor comes late to tasks that ended in time; one more than it reads at once. */
static void test_late_supervisor(void **state) {
    enum { TASKS = 65 };
    pebble_future *futures[TASKS];
    pebble_task_options lent = PEBBLE_TASK_OPTIONS_INIT;
    static const int64_t no_time_ns = 0;
    (void)state;
    pebble_pool *other = pool_of(1, NULL), *pool = pool_of(1, NULL);
    show_that_tasks_are_short(pool);
    lent.function = run_for;
    lent.input = &no_time_ns;
    lent.input_size = sizeof no_time_ns;
    lent.release_input = wait_in_release;
    expect_ok(pebble_schedule_task(other, &lent, NULL));
    counter_expect(&shared->ran, 1); /* from now on it is held up */
    for (int i = 0; i < TASKS; i++)
        futures[i] = schedule(pool, run_for, &no_time_ns, sizeof no_time_ns,
                              PEBBLE_MILLISECONDS(5));
    usleep(50 * 1000); /* their deadlines pass */
    counter_add(&shared->go, 1);
    for (int i = 0; i < TASKS; i++)
        expect_end(futures[i], PEBBLE_OK);
    close_join_free(pool);
    close_join_free(other);
}

/* ---- Dispatch ---- */

/* One that waited is cancelled; the timer of an older task comes; the next one runs all the same. */
static void test_after_the_cancel_of_a_pending_task(void **state) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(50), long_ns = PEBBLE_MILLISECONDS(5);
    (void)state;
    pebble_pool *pool = pool_of(1, NULL);
    for (int i = 0; i < 10; i++)
        expect_end(schedule_for(pool, long_ns), PEBBLE_OK);
    expect_end(schedule(pool, run_for, &long_ns, sizeof long_ns, timeout_ns), PEBBLE_OK);
    pebble_future *running = schedule(pool, wait_for_go, NULL, 0, 0);
    counter_expect(&shared->ran, 1);
    pebble_future *pending = schedule(pool, count, NULL, 0, 0);
    assert_true(pebble_future_cancel(pending));
    usleep(100 * 1000); /* the timer comes */
    pebble_future *next = schedule(pool, count, NULL, 0, 0);
    counter_add(&shared->go, 1);
    counter_expect(&shared->ran, 2); /* though nobody waits for any of them */
    expect_end(next, PEBBLE_OK);
    expect_end(running, PEBBLE_OK);
    expect_end(pending, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

/* The ring is full of tasks that were taken back: there is room when the worker has skipped them. */
static void test_behind_a_ring_of_skipped_tasks(void **state) {
    static char large[16000];
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    (void)state;
    pebble_pool *pool = pool_of(1, &slow_hooks);
    pebble_future *future = schedule(pool, count, large, sizeof large, 0);
    do
        expect_ok(pebble_pool_get_info(pool, &info));
    while (info.workers == 0);
    for (int i = 0; i < 140; i++) {
        assert_true(pebble_future_cancel(future));
        pebble_future_unref(future);
        future = schedule(pool, count, large, sizeof large, 0);
    }
    expect_end(future, PEBBLE_OK);
    assert_int_equal(counter_value(&shared->ran), 1);
    close_join_free(pool);
}

/* ---- Others ---- */

static pthread_mutex_t recursive = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static void lock_in_release(void *context) {
    (void)context;
    pthread_mutex_lock(&recursive);
    pthread_mutex_unlock(&recursive);
}

/* Looks with the lock held that release functions take, as a language's global lock. */
static void *look_with_lock(void *pool) {
    for (int i = 0; i < 3000; i++) {
        pebble_future *future = schedule_for(pool, 0);
        for (bool done = false; !done;) {
            pthread_mutex_lock(&recursive);
            done = pebble_future_done(future);
            pthread_mutex_unlock(&recursive);
        }
        pebble_future_unref(future);
    }
    counter_add(&shared->go, 1);
    return NULL;
}

static void test_release_takes_a_lock(void **state) {
    static const int64_t no_time_ns = 0;
    pthread_t thread;
    (void)state;
    pebble_pool *pool = pool_of(1, NULL);
    pebble_task_options lent = PEBBLE_TASK_OPTIONS_INIT;
    lent.function = run_for;
    lent.input = &no_time_ns;
    lent.input_size = sizeof no_time_ns;
    lent.release_input = lock_in_release;
    assert_int_equal(pthread_create(&thread, NULL, look_with_lock, pool), 0);
    while (counter_value(&shared->go) == 0) {
        for (int i = 0; i < 20; i++)
            expect_ok(pebble_schedule_task(pool, &lent, NULL));
        usleep(1000);
    }
    pthread_join(thread, NULL);
    close_join_free(pool);
}

/* A debugger keeps the end of a killed worker from being seen: it is waited for, and no other worker
 * has to go for it. */
static void test_end_that_is_not_seen(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(2, NULL);
    pebble_future *traced = schedule(pool, hang, NULL, 0, 0);
    counter_expect(&shared->ran, 1);
    pid_t pid = pebble_future_pid(traced);
    pebble_future *innocent = schedule(pool, wait_for_go, NULL, 0, 0);
    counter_expect(&shared->ran, 2);
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) != 0)
        skip();
    assert_true(pebble_future_cancel(traced));
    assert_int_equal(pebble_future_wait(traced, PEBBLE_SECONDS(6)), PEBBLE_ERR_TIMEOUT);
    counter_add(&shared->go, 1);
    expect_end(innocent, PEBBLE_OK);
    assert_int_equal(waitpid(pid, NULL, __WALL), pid); /* now its parent sees it */
    expect_end(traced, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(waiting_for_a_task_that_comes_back),
        TEST(waiting_for_a_result_of_a_ring),
        TEST(deadline_before_the_process),
        TEST(deadline_behind_a_skipped_task),
        TEST(late_supervisor),
        TEST(after_the_cancel_of_a_pending_task),
        TEST(behind_a_ring_of_skipped_tasks),
        TEST(release_takes_a_lock),
        TEST(end_that_is_not_seen),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
