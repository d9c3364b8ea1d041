/* Pools of processes: what runs where, their life and their workers' deaths. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

enum { MANY = 20000, SCHEDULERS = 8 };

/* What tasks and test share: tasks get its address, workers have it where the test has it. */
typedef struct shared {
    counter entered, leave, cleaned, initialized;
    uint32_t fail_first; /* so many calls of the initializer fail */
    _Atomic int pids[16];
} shared;

static shared *new_shared(void) {
    return shared_memory(sizeof(shared));
}

static shared *shared_of(const void *input) {
    return *(shared *const *)input;
}

static pebble_future *schedule_with(pebble_pool *pool, pebble_function function,
                                    shared *state) {
    return schedule(pool, function, &state, sizeof state, 0);
}

/* ---- Tasks ---- */

static int pause_for_ever(void) {
    for (;;)
        pause();
    return 0;
}

static int increment(pebble_task *task, const void *input, size_t size) {
    int number = *(const int *)input + 1;
    (void)size;
    return (int)pebble_task_write(task, &number, sizeof number);
}

static int wait_to_leave(pebble_task *task, const void *input, size_t size) {
    shared *state = shared_of(input);
    (void)task, (void)size;
    counter_add(&state->entered, 1);
    return counter_wait(&state->leave, 1) ? 0 : 1;
}

static int count_entered(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    counter_add(&shared_of(input)->entered, 1);
    return 0;
}

static int meet_six(pebble_task *task, const void *input, size_t size) {
    shared *state = shared_of(input);
    (void)size;
    counter_add(&state->entered, 1);
    return counter_wait(&state->entered, 6) ? tell_pid(task, NULL, 0) : 1;
}

static int ignore_sigterm(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    signal(SIGTERM, SIG_IGN);
    counter_add(&shared_of(input)->entered, 1);
    return pause_for_ever();
}

static shared *cleaned_here;

static void clean(int signal) {
    (void)signal;
    counter_add(&cleaned_here->cleaned, 1);
    _exit(0);
}

static int clean_at_sigterm(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    cleaned_here = shared_of(input);
    signal(SIGTERM, clean);
    counter_add(&cleaned_here->entered, 1);
    return pause_for_ever();
}

/* ---- Initializers ---- */

static pid_t initialized_in; /* in a worker's own memory */

static int initialize(const void *input, size_t size) {
    shared *state = shared_of(input);
    initialized_in = getpid();
    uint32_t call = counter_add(&state->initialized, 1);
    return size != sizeof state ? 99 : call <= state->fail_first ? 7 : 0;
}

static int crash_at_start(const void *input, size_t size) {
    (void)size;
    counter_add(&shared_of(input)->initialized, 1);
    signal(SIGSEGV, SIG_DFL); /* of a sanitizer, if any */
    raise(SIGSEGV);
    return 0;
}

static int exit_at_start(const void *input, size_t size) {
    (void)size;
    counter_add(&shared_of(input)->initialized, 1);
    _exit(5);
}

static int hang_at_start(const void *input, size_t size) {
    (void)size;
    counter_add(&shared_of(input)->initialized, 1);
    return pause_for_ever();
}

static int compare_bytes(const void *input, size_t size) {
    return size == 5 && memcmp(input, "bytes", 5) == 0 ? 0 : 1;
}

static int tell_initialized(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    if (initialized_in != getpid())
        return 1;
    return tell_pid(task, NULL, 0);
}

/* ---- Size ---- */

static pebble_pool_info info_of(pebble_pool *pool) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    return info;
}

static void test_default_size(void **state) {
    cpu_set_t all, one;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    pebble_pool *pool = new_process_pool(NULL);
    int usable = info_of(pool).max_workers;
    assert_in_range(usable, 1, CPU_COUNT(&all));
    pebble_pool_free(pool);
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    pool = new_process_pool(NULL);
    int with_one = info_of(pool).max_workers;
    sched_setaffinity(0, sizeof all, &all);
    pebble_pool_free(pool);
    assert_int_equal(with_one, 1);
}

static void test_runs_max_workers_at_once(void **state) {
    pebble_future *futures[6];
    int pids[6];
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 6));
    for (int i = 0; i < 6; i++)
        futures[i] = schedule_with(pool, meet_six, events);
    for (int i = 0; i < 6; i++) {
        pids[i] = take_int(futures[i]);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(pids[i], pids[j]);
    }
    assert_int_equal(info_of(pool).workers, 6);
    close_join_free(pool);
}

static void test_not_more_than_max_workers(void **state) {
    pebble_future *futures[20];
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 3));
    for (int i = 0; i < 20; i++)
        futures[i] = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 3);
    pebble_pool_info info = info_of(pool);
    assert_int_equal(info.max_workers, 3);
    assert_int_equal(info.workers, 3);
    assert_int_equal(info.queued + info.in_flight, 20);
    assert_true(info.in_flight >= 3);
    assert_int_equal(info.ended, 0);
    assert_int_equal(counter_value(&events->entered), 3);
    counter_add(&events->leave, 1);
    for (int i = 0; i < 20; i++)
        expect_end(futures[i], PEBBLE_OK);
    info = info_of(pool);
    assert_int_equal(info.ended, 20);
    assert_int_equal(info.queued + info.in_flight, 0);
    assert_int_equal(info.worker_deaths, 0);
    close_join_free(pool);
}

static void test_costs_nothing_before_the_first_task(void **state) {
    size_t count = 99;
    (void)state;
    size_t before = open_descriptors();
    pebble_pool *pool = new_process_pool(NULL);
    assert_int_equal(process_children(getpid(), NULL, 0), 0);
    assert_int_equal(open_descriptors(), before);
    expect_ok(pebble_pool_get_pids(pool, NULL, 0, &count));
    assert_int_equal(count, 0);
    close_join_free(pool);
}

static void test_pids(void **state) {
    pid_t pids[3] = {-1, -1, -1};
    size_t count = 0;
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    pebble_future *first = schedule_with(pool, wait_to_leave, events);
    pebble_future *second = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 2);
    expect_ok(pebble_pool_get_pids(pool, pids, 3, &count));
    assert_int_equal(count, 2);
    pid_t a = pebble_future_pid(first), b = pebble_future_pid(second);
    assert_true((pids[0] == a && pids[1] == b) || (pids[0] == b && pids[1] == a));
    assert_int_equal(pids[2], -1);
    pids[1] = -1;
    expect_ok(pebble_pool_get_pids(pool, pids, 1, &count));
    assert_int_equal(count, 2);
    assert_int_equal(pids[1], -1);
    assert_int_equal(process_parent(a), process_parent(b));
    counter_add(&events->leave, 1);
    expect_end(first, PEBBLE_OK);
    expect_end(second, PEBBLE_OK);
    close_join_free(pool);
}

static void test_name(void **state) {
    char name[32];
    (void)state;
    const char *given[] = {NULL, "resize", "a name that is too long", ""};
    const char *expected[] = {"pebble-", "resize-", "a name tha-", "-"};
    for (int i = 0; i < 4; i++) {
        pebble_pool *pool =
            new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .name = given[i]));
        process_name(take_int(schedule(pool, tell_pid, NULL, 0, 0)), name);
        assert_memory_equal(name, expected[i], strlen(expected[i]));
        assert_in_range(name[strlen(expected[i])], '0', '9');
        close_join_free(pool);
    }
}

/* ---- max_tasks ---- */

static void test_max_tasks_one_after_another(void **state) {
    int pids[12];
    (void)state;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .max_tasks = 3));
    for (int i = 0; i < 12; i++) {
        pids[i] = take_int(schedule(pool, tell_pid, NULL, 0, 0));
        if (i % 3 != 0)
            assert_int_equal(pids[i], pids[i - 1]);
        else if (i > 0)
            assert_int_not_equal(pids[i], pids[i - 1]);
    }
    assert_int_equal(info_of(pool).worker_deaths, 0);
    close_join_free(pool);
}

static void max_tasks_long_queue(int workers, uint64_t max_tasks, int tasks) {
    static pebble_future *futures[2000];
    int pids[2000], counts[2000], different = 0;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .max_tasks = max_tasks));
    for (int i = 0; i < tasks; i++)
        futures[i] = schedule(pool, tell_pid, NULL, 0, 0);
    for (int i = 0; i < tasks; i++) {
        int pid = take_int(futures[i]), at = 0;
        while (at < different && pids[at] != pid)
            at++;
        if (at == different) {
            pids[at] = pid;
            counts[different++] = 0;
        }
        counts[at]++;
    }
    int full = 0;
    for (int i = 0; i < different; i++) {
        assert_true(counts[i] <= (int)max_tasks);
        full += counts[i] == (int)max_tasks;
    }
    assert_int_equal(info_of(pool).worker_deaths, 0);
    assert_true(full >= tasks / (int)max_tasks - workers);
    close_join_free(pool);
}

static void test_max_tasks_long_queue(void **state) {
    (void)state;
    max_tasks_long_queue(1, 10, 500);
    max_tasks_long_queue(2, 7, 700);
    max_tasks_long_queue(3, 1, 100);
    max_tasks_long_queue(3, 2, 300);
    max_tasks_long_queue(2, 100, 2000);
}

/* ---- The initializer ---- */

static pebble_pool *pool_with(pebble_initializer initializer, shared **events,
                              int workers, uint64_t max_tasks) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .max_tasks = max_tasks,
                            .initializer = initializer, .initializer_input = events,
                            .initializer_input_size = sizeof *events,
                            .initializer_timeout_ns = PEBBLE_MILLISECONDS(300),
                            .termination_grace_ns = PEBBLE_MILLISECONDS(100)));
}

static void test_initializer_once_in_each_worker(void **state) {
    pebble_future *futures[30];
    int pids[30];
    uint32_t different = 0;
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 4, .initializer = initialize,
                            .initializer_input = &events,
                            .initializer_input_size = sizeof events));
    for (int i = 0; i < 30; i++)
        futures[i] = schedule(pool, tell_initialized, NULL, 0, 0);
    for (int i = 0; i < 30; i++) {
        pids[i] = take_int(futures[i]);
        uint32_t known = 0;
        for (int j = 0; j < i; j++)
            known += pids[j] == pids[i];
        different += known == 0;
    }
    assert_true(different >= 8);
    /* Not more than serve: a spare has not run it. */
    assert_in_range(counter_value(&events->initialized), different, different + 2);
    close_join_free(pool);
}

static void test_initializer_gets_its_bytes(void **state) {
    char bytes[] = "bytes";
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = compare_bytes,
                            .initializer_input = bytes, .initializer_input_size = 5));
    memset(bytes, 'x', 5); /* they were copied */
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

/* The pool breaks; every future and every later call says why. */
static void broken_by(pebble_initializer initializer, const char *said) {
    pebble_map *map = NULL;
    shared *events = new_shared();
    pebble_future *futures[10];
    pebble_pool *pool = pool_with(initializer, &events, 2, 0);
    size_t accepted = 0;
    for (; accepted < 10; accepted++) {
        /* It may break before all are scheduled. */
        pebble_error error =
            pebble_schedule(pool, nothing, NULL, 0, 0, &futures[accepted]);
        if (error == PEBBLE_ERR_BROKEN && accepted > 0)
            break;
        expect_ok(error);
    }
    for (size_t i = 0; i < accepted; i++) {
        expect_ok(pebble_future_wait(futures[i], DEADLINE_NS));
        const pebble_failure *failure = pebble_future_failure(futures[i]);
        assert_non_null(failure);
        assert_int_equal(failure->kind, PEBBLE_ERR_BROKEN);
        if (strstr(failure->message, said) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", failure->message, said);
        expect_end(futures[i], PEBBLE_ERR_BROKEN);
    }
    assert_in_range(counter_value(&events->initialized), 3, 6);
    assert_false(pebble_pool_active(pool));
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, NULL), PEBBLE_ERR_BROKEN,
                 said);
    expect_error(pebble_pool_map(pool, nothing, NULL, 0, 0, 1, 0, &map),
                 PEBBLE_ERR_BROKEN, said);
    assert_null(map);
    expect_error(pebble_pool_join(pool, 0), PEBBLE_ERR_ACTIVE, "pebble_pool_join");
    close_join_free(pool);
}

static int fail_at_start(const void *input, size_t size) {
    (void)size;
    counter_add(&shared_of(input)->initialized, 1);
    return 42;
}

static void test_initializer_fails(void **state) {
    (void)state;
    broken_by(fail_at_start, "42");
}

static void test_initializer_crashes(void **state) {
    (void)state;
    broken_by(crash_at_start, "SIGSEGV");
}

static void test_initializer_exits(void **state) {
    (void)state;
    broken_by(exit_at_start, "exit code 5");
}

static void test_initializer_hangs(void **state) {
    (void)state;
    broken_by(hang_at_start, "longer than 0.300 s");
}

static void test_initializer_fails_twice_then_works(void **state) {
    shared *events = new_shared();
    (void)state;
    events->fail_first = 2;
    pebble_pool *pool = pool_with(initialize, &events, 1, 0);
    take_int(schedule(pool, tell_initialized, NULL, 0, 0));
    assert_int_equal(counter_value(&events->initialized), 3);
    assert_true(pebble_pool_active(pool));
    close_join_free(pool);
}

static void test_stop_while_the_initializer_hangs(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = hang_at_start,
                            .initializer_input = &events,
                            .initializer_input_size = sizeof events));
    pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
    counter_expect(&events->initialized, 1);
    expect_ok(pebble_pool_stop(pool));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
}

/* ---- Close, stop, join ---- */

static void test_close_performs_the_queue(void **state) {
    pebble_future *futures[50];
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    futures[0] = schedule_with(pool, wait_to_leave, events);
    for (int i = 1; i < 50; i++)
        futures[i] = schedule_with(pool, count_entered, events);
    assert_true(pebble_pool_active(pool));
    expect_ok(pebble_pool_close(pool));
    assert_false(pebble_pool_active(pool));
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, NULL), PEBBLE_ERR_NOT_ACTIVE,
                 "closed");
    counter_add(&events->leave, 1);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    assert_int_equal(counter_value(&events->entered), 50);
    for (int i = 0; i < 50; i++) {
        assert_true(pebble_future_done(futures[i])); /* join says so */
        expect_end(futures[i], PEBBLE_OK);
    }
    pebble_pool_free(pool);
}

static void *wait_for_future(void *future) {
    return (void *)(uintptr_t)pebble_future_wait(future, DEADLINE_NS);
}

static void test_stop_cancels_all(void **state) {
    pebble_future *futures[20];
    pthread_t waiting[20];
    void *error;
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 20; i++) {
        futures[i] = schedule_with(pool, wait_to_leave, events);
        assert_int_equal(pthread_create(&waiting[i], NULL, wait_for_future, futures[i]),
                         0);
    }
    counter_expect(&events->entered, 2);
    pid_t pid = pebble_future_pid(futures[0]);
    expect_ok(pebble_pool_stop(pool));
    assert_false(pebble_pool_active(pool));
    expect_ok(pebble_pool_stop(pool));
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, NULL), PEBBLE_ERR_NOT_ACTIVE,
                 "stop");
    for (int i = 0; i < 20; i++) {
        pthread_join(waiting[i], &error);
        assert_null(error);
        assert_int_equal(pebble_future_state(futures[i]), PEBBLE_CANCELLED);
        expect_end(futures[i], PEBBLE_ERR_TASK_CANCELLED);
    }
    assert_false(process_lives(pid));
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    assert_int_equal(counter_value(&events->entered), 2);
    pebble_pool_free(pool);
}

static void test_stop_after_close(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *runs = schedule_with(pool, wait_to_leave, events);
    pebble_future *waits = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 1);
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_pool_join(pool, 0), PEBBLE_ERR_TIMEOUT, "pebble_pool_join");
    expect_ok(pebble_pool_stop(pool));
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    expect_end(runs, PEBBLE_ERR_TASK_CANCELLED);
    expect_end(waits, PEBBLE_ERR_TASK_CANCELLED);
    pebble_pool_free(pool);
}

static void test_stop_without_tasks(void **state) {
    (void)state;
    stop_join_free(new_process_pool(NULL));
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    stop_join_free(pool);
}

static void test_join(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_error(pebble_pool_join(pool, PEBBLE_FOREVER), PEBBLE_ERR_ACTIVE,
                 "pebble_pool_join");
    pebble_future *future = schedule_with(pool, wait_to_leave, events);
    expect_error(pebble_pool_join(pool, PEBBLE_FOREVER), PEBBLE_ERR_ACTIVE,
                 "pebble_pool_join");
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_pool_join(pool, 0), PEBBLE_ERR_TIMEOUT, "pebble_pool_join");
    expect_error(pebble_pool_join(pool, PEBBLE_MILLISECONDS(20)), PEBBLE_ERR_TIMEOUT,
                 "running");
    counter_add(&events->leave, 1);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    expect_ok(pebble_pool_join(pool, 0));
    expect_ok(pebble_pool_join(pool, PEBBLE_FOREVER));
    assert_int_equal(process_children(getpid(), NULL, 0),
                     0); /* at once, zombies included */
    expect_end(future, PEBBLE_OK);
    pebble_pool_free(pool);
}

typedef struct join_attempt {
    pebble_pool *pool;
    counter done;
    pebble_error error;
} join_attempt;

static void join_in_callback(pebble_future *future, void *context) {
    join_attempt *attempt = context;
    (void)future;
    attempt->error = pebble_pool_join(attempt->pool, PEBBLE_FOREVER);
    counter_add(&attempt->done, 1);
}

static void test_join_in_a_callback(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    join_attempt attempt = {.pool = pool};
    pebble_future *future = schedule_with(pool, wait_to_leave, events);
    expect_ok(pebble_future_add_callback(future, join_in_callback, &attempt));
    expect_ok(pebble_pool_close(pool));
    counter_add(&events->leave, 1);
    counter_expect(&attempt.done, 1);
    assert_int_equal(attempt.error, PEBBLE_ERR_DEADLOCK);
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
}

static void count_callback(pebble_future *future, void *context) {
    (void)future;
    counter_add(context, 1);
}

static void test_join_waits_for_callbacks(void **state) {
    counter called = {0};
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 100; i++) {
        pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
        expect_ok(pebble_future_add_callback(future, count_callback, &called));
        pebble_future_unref(future);
    }
    close_join_free(pool);
    assert_int_equal(counter_value(&called), 100);
}

static void *join_pool(void *pool) {
    return (void *)(uintptr_t)pebble_pool_join(pool, DEADLINE_NS);
}

static void test_join_by_several_threads(void **state) {
    pthread_t joining[4];
    void *error;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    expect_ok(pebble_pool_close(pool));
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&joining[i], NULL, join_pool, pool), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(joining[i], &error);
        assert_null(error);
    }
    pebble_pool_free(pool);
}

/* ---- Free ---- */

static void test_free_of_a_running_pool(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    pebble_future *runs = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 1);
    pebble_future *waits[20];
    for (int i = 0; i < 20; i++)
        waits[i] = schedule_with(pool, wait_to_leave, events);
    pid_t pid = pebble_future_pid(runs);
    pebble_pool_free(pool);
    expect_end(runs, PEBBLE_ERR_TASK_CANCELLED);
    expect_gone(pid);
    for (int i = 0; i < 20; i++)
        expect_end(waits[i], PEBBLE_ERR_TASK_CANCELLED);
    pebble_pool_free(NULL);
}

static void test_free_of_an_idle_pool(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    pebble_pool_free(pool);
    pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    expect_ok(pebble_schedule(pool, nothing, NULL, 0, 0, NULL));
    pebble_pool_free(pool); /* at once, its worker just starts */
}

static void test_futures_outlive_their_pool(void **state) {
    int number = 41;
    const void *data = NULL;
    size_t size = 0;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule(pool, increment, &number, sizeof number, 0);
    close_join_free(pool);
    assert_int_equal(pebble_future_state(future), PEBBLE_FINISHED);
    expect_ok(pebble_future_result(future, 0, &data, &size));
    assert_int_equal(size, sizeof number);
    assert_int_equal(*(const int *)data, 42);
    counter called = {0};
    expect_ok(pebble_future_add_callback(future, count_callback, &called));
    assert_int_equal(counter_value(&called), 1);
    assert_false(pebble_future_cancel(future));
    assert_true(pebble_future_pid(future) > 0);
    pebble_future_unref(future);
}

/* ---- Termination grace ---- */

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return PEBBLE_SECONDS(now.tv_sec) + now.tv_nsec;
}

static void test_kill_after_the_grace(void **state) {
    shared *events = new_shared();
    const int64_t grace_ns = PEBBLE_MILLISECONDS(200);
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .termination_grace_ns = grace_ns));
    pebble_future *future = schedule_with(pool, ignore_sigterm, events);
    counter_expect(&events->entered, 1);
    pid_t pid = pebble_future_pid(future);
    int64_t start_ns = now_ns();
    assert_true(pebble_future_cancel(future));
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    assert_true(now_ns() - start_ns >= grace_ns);
    assert_true(now_ns() - start_ns < grace_ns + PEBBLE_SECONDS(2));
    assert_false(process_lives(pid));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

static void test_clean_end_within_the_grace(void **state) {
    shared *events = new_shared();
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* what a program with threads forks runs no signal handlers with it */
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule_with(pool, clean_at_sigterm, events);
    counter_expect(&events->entered, 1);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(counter_value(&events->cleaned), 1);
    future =
        schedule(pool, clean_at_sigterm, &events, sizeof events, PEBBLE_MILLISECONDS(50));
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    assert_int_equal(counter_value(&events->cleaned), 2);
    future = schedule_with(pool, clean_at_sigterm, events);
    counter_expect(&events->entered, 3);
    stop_join_free(pool);
    assert_int_equal(counter_value(&events->cleaned), 3);
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
}

/* ---- Deaths ---- */

static void test_idle_worker_killed(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    for (uint64_t round = 1; round <= 5; round++) {
        pid_t pid = take_int(schedule(pool, tell_pid, NULL, 0, 0));
        process_kill(pid);
        expect_gone(pid);
        assert_int_not_equal(take_int(schedule(pool, tell_pid, NULL, 0, 0)), pid);
        assert_int_equal(info_of(pool).worker_deaths, round);
    }
    close_join_free(pool);
}

static void test_idle_worker_killed_and_nothing_to_do(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pid_t pid = take_int(schedule(pool, tell_pid, NULL, 0, 0));
    process_kill(pid);
    close_join_free(pool);
}

static void test_all_workers_killed_while_busy(void **state) {
    pebble_future *running[3], *queued[9];
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 3));
    for (int i = 0; i < 3; i++)
        running[i] = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 3);
    for (int i = 0; i < 9; i++)
        queued[i] = schedule_with(pool, wait_to_leave, events);
    for (int i = 0; i < 3; i++)
        process_kill(pebble_future_pid(running[i]));
    for (int i = 0; i < 3; i++) {
        expect_ok(pebble_future_wait(running[i], DEADLINE_NS));
        const pebble_failure *failure = pebble_future_failure(running[i]);
        assert_non_null(failure);
        assert_int_equal(failure->signal, SIGKILL);
        assert_int_equal(failure->exit_code, -SIGKILL);
        assert_int_equal(failure->pid, pebble_future_pid(running[i]));
        expect_end(running[i], PEBBLE_ERR_TASK_EXPIRED);
    }
    counter_add(&events->leave, 1);
    for (int i = 0; i < 9; i++)
        expect_end(queued[i], PEBBLE_OK);
    assert_int_equal(info_of(pool).worker_deaths, 3);
    close_join_free(pool);
}

static void test_zygote_killed_while_busy(void **state) {
    pebble_future *running[2], *queued[6];
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 2; i++)
        running[i] = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 2);
    for (int i = 0; i < 6; i++)
        queued[i] = schedule_with(pool, wait_to_leave, events);
    pid_t zygote = process_parent(pebble_future_pid(running[0]));
    assert_int_equal(process_parent(zygote), getpid());
    process_kill(zygote);
    for (int i = 0; i < 2; i++)
        expect_end(running[i], PEBBLE_ERR_TASK_EXPIRED);
    counter_add(&events->leave, 1);
    for (int i = 0; i < 6; i++)
        expect_end(queued[i], PEBBLE_OK);
    expect_gone(zygote);
    close_join_free(pool);
}

static void test_zygote_killed_while_idle(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    for (int round = 0; round < 7; round++) {
        pid_t worker = take_int(schedule(pool, tell_pid, NULL, 0, 0));
        pid_t zygote = process_parent(worker);
        process_kill(zygote);
        expect_gone(zygote);
        expect_gone(worker);
    }
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    pid_t worker = take_int(schedule(pool, tell_pid, NULL, 0, 0));
    process_kill(process_parent(worker));
    close_join_free(pool); /* nothing to do: no other is needed */
}

static void test_zygote_killed_and_stopped(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule_with(pool, wait_to_leave, events);
    counter_expect(&events->entered, 1);
    process_kill(process_parent(pebble_future_pid(future)));
    expect_ok(pebble_pool_stop(pool));
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    expect_ok(pebble_future_wait(future, 0));
    pebble_future_unref(future);
    pebble_pool_free(pool);
}

/* A worker that has cut its tie to the zygote and has a child and a grandchild of its own. */
static int start_family(pebble_task *task, const void *input, size_t size) {
    shared *state = shared_of(input);
    (void)task, (void)size;
    prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
    atomic_store(&state->pids[0], getpid());
    atomic_store(&state->pids[1], getppid());
    if (fork() == 0) {
        atomic_store(&state->pids[2], getpid());
        if (fork() == 0) {
            signal(SIGTERM, SIG_IGN);
            setsid();
            atomic_store(&state->pids[3], getpid());
            counter_add(&state->entered, 1);
        }
        pause_for_ever();
    }
    counter_wait(&state->entered, 1);
    counter_add(&state->entered, 1);
    return pause_for_ever();
}

static void expect_family_gone(shared *events) {
    for (int i = 0; i < 4; i++) {
        assert_true(atomic_load(&events->pids[i]) > 1);
        expect_gone(atomic_load(&events->pids[i]));
    }
}

static void test_zygote_killed_with_a_family(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule_with(pool, start_family, events);
    counter_expect(&events->entered, 2);
    process_kill(process_parent(pebble_future_pid(future)));
    expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    expect_gone(atomic_load(&events->pids[0]));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
    expect_family_gone(events); /* the program has ended them in the zygote's place */
}

static int run_family(void *context) {
    shared *events = context;
    pebble_pool *pool;
    if (pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 2), &pool) != PEBBLE_OK)
        return 1;
    pebble_schedule(pool, start_family, &events, sizeof events, 0, NULL);
    pebble_schedule(pool, ignore_sigterm, &events, sizeof events, 0, NULL);
    if (!counter_wait(&events->entered, 3))
        return 2;
    if (counter_value(&events->leave) == 0)
        counter_wait(&events->cleaned, 1); /* until it is killed */
    return 0;
}

static void test_program_killed(void **state) {
    shared *events = new_shared();
    (void)state;
    pid_t program = program_start(run_family, events);
    counter_expect(&events->entered, 3);
    program_kill(program);
    expect_family_gone(events);
}

static void test_program_exits_without_stopping(void **state) {
    shared *events = new_shared();
    (void)state;
    counter_add(&events->leave, 1);
    assert_int_equal(program_wait(program_start(run_family, events)), 0);
    expect_family_gone(events);
}

/* ---- Many tasks ---- */

static void test_tasks_move_from_behind_a_slow_one(void **state) {
    static pebble_future *futures[2000];
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    /* Short ones first: many go ahead. Then slow ones between short ones. */
    for (int i = 0; i < 2000; i++)
        futures[i] = i == 1000 ? schedule_with(pool, wait_to_leave, events)
                               : schedule(pool, nothing, NULL, 0, 0);
    for (int i = 0; i < 2000; i++) {
        if (i != 1000)
            expect_end(futures[i], PEBBLE_OK);
    }
    assert_false(pebble_future_done(futures[1000]));
    counter_add(&events->leave, 1);
    expect_end(futures[1000], PEBBLE_OK);
    close_join_free(pool);
}

static void test_nobody_waits_and_tasks_move(void **state) {
    shared *events = new_shared();
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 500; i++)
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    /* No future, so nobody collects: the pool itself must see to it. */
    expect_ok(pebble_schedule(pool, wait_to_leave, &events, sizeof events, 0, NULL));
    for (int i = 0; i < 500; i++)
        expect_ok(pebble_schedule(pool, count_entered, &events, sizeof events, 0, NULL));
    counter_expect(&events->entered, 501);
    counter_add(&events->leave, 1);
    close_join_free(pool);
}

typedef struct scheduler {
    pebble_pool *pool;
    int first, wrong;
} scheduler;

static void *schedule_many(void *context) {
    scheduler *self = context;
    enum { COUNT = MANY / SCHEDULERS, WINDOW = 250 };
    pebble_future *futures[WINDOW];
    for (int done = 0; done < COUNT; done += WINDOW) {
        for (int i = 0; i < WINDOW; i++) {
            int number = self->first + done + i;
            futures[i] = NULL;
            self->wrong += pebble_schedule(self->pool, increment, &number, sizeof number,
                                           0, &futures[i]) != PEBBLE_OK;
        }
        for (int i = 0; i < WINDOW; i++) {
            int result = 0;
            self->wrong += pebble_future_copy_result(futures[i], DEADLINE_NS, &result,
                                                     sizeof result) != PEBBLE_OK ||
                           result != self->first + done + i + 1;
            pebble_future_unref(futures[i]);
        }
    }
    return NULL;
}

static void test_many_tasks_from_many_threads(void **state) {
    scheduler schedulers[SCHEDULERS];
    pthread_t threads[SCHEDULERS];
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 3));
    for (int i = 0; i < SCHEDULERS; i++) {
        schedulers[i] = (scheduler){.pool = pool, .first = i * (MANY / SCHEDULERS)};
        assert_int_equal(pthread_create(&threads[i], NULL, schedule_many, &schedulers[i]),
                         0);
    }
    for (int i = 0; i < SCHEDULERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(schedulers[i].wrong, 0);
    }
    assert_int_equal(info_of(pool).ended, MANY);
    close_join_free(pool);
}

static void test_several_pools_at_once(void **state) {
    pebble_pool *pools[5];
    pebble_future *futures[5];
    (void)state;
    for (int i = 0; i < 5; i++)
        pools[i] = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    for (int i = 0; i < 5; i++)
        futures[i] = schedule(pools[i], increment, &i, sizeof i, 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(take_int(futures[i]), i + 1);
    for (int i = 0; i < 5; i++)
        close_join_free(pools[i]);
}

/* ---- What a worker has of the program ---- */

static int print_words(pebble_task *task, const void *input, size_t size) {
    (void)task;
    printf("%.*s", (int)size, (const char *)input); /* no newline, no flush */
    return 0;
}

static int print_program(void *context) {
    pebble_pool *pool;
    dup2(*(int *)context, STDOUT_FILENO);
    setvbuf(stdout, NULL, _IOFBF, 4096);
    printf("[before]");
    if (pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 2),
                                &pool) != PEBBLE_OK)
        return 1;
    for (int i = 0; i < 6; i++)
        pebble_schedule(pool, print_words, "[task]", 6, 0, NULL);
    pebble_pool_close(pool);
    if (pebble_pool_join(pool, DEADLINE_NS) != PEBBLE_OK)
        return 2;
    pebble_pool_free(pool);
    printf("[after]");
    return 0;
}

static int occurrences(const char *text, const char *word) {
    int count = 0;
    for (; (text = strstr(text, word)) != NULL; text++)
        count++;
    return count;
}

static void test_output_is_seen_once(void **state) {
    char text[1024] = "";
    (void)state;
    int fd = memfd_create("output", MFD_CLOEXEC);
    assert_true(fd >= 0);
    fcntl(fd, F_SETFL,
          O_APPEND); /* writers that share a memfd's position may overwrite another */
    assert_int_equal(program_wait(program_start(print_program, &fd)), 0);
    assert_true(pread(fd, text, sizeof text - 1, 0) > 0);
    close(fd);
    assert_int_equal(occurrences(text, "[before]"), 1);
    assert_int_equal(occurrences(text, "[task]"), 6);
    assert_int_equal(occurrences(text, "[after]"), 1);
}

static int tell_leave(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    printf("seen");
    counter_add(&shared_of(input)->entered, 1);
    return 0;
}

static int printed_at_end_program(void *context) {
    shared *events = ((void **)context)[0];
    pebble_pool *pool;
    char text[16] = "";
    dup2(*(int *)((void **)context)[1], STDOUT_FILENO);
    setvbuf(stdout, NULL, _IOFBF, 4096);
    if (pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 1), &pool) != PEBBLE_OK)
        return 1;
    pebble_future *future;
    pebble_schedule(pool, tell_leave, &events, sizeof events, 0, &future);
    if (pebble_future_wait(future, DEADLINE_NS) != PEBBLE_OK)
        return 2;
    return pread(STDOUT_FILENO, text, sizeof text, 0) == 4 ? 0 : 3;
}

static void test_output_is_seen_when_the_task_has_ended(void **state) {
    shared *events = new_shared();
    (void)state;
    int fd = memfd_create("output", MFD_CLOEXEC);
    assert_true(fd >= 0);
    fcntl(fd, F_SETFL,
          O_APPEND); /* writers that share a memfd's position may overwrite another */
    void *context[] = {events, &fd};
    assert_int_equal(program_wait(program_start(printed_at_end_program, context)), 0);
    close(fd);
}

static int find_descriptor_flags(void *unused) {
    shared *events = unused;
    bool before[1024] = {false};
    pebble_pool *pool;
    for (int fd = 0; fd < 1024; fd++)
        before[fd] = fcntl(fd, F_GETFD) >= 0;
    if (pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 2), &pool) != PEBBLE_OK)
        return 1;
    for (int i = 0; i < 2; i++)
        pebble_schedule(pool, wait_to_leave, &events, sizeof events, 0, NULL);
    if (!counter_wait(&events->entered, 2))
        return 2;
    for (int fd = 0; fd < 1024; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (!before[fd] && flags >= 0 && (flags & FD_CLOEXEC) == 0)
            return 3;
    }
    return 0;
}

static void test_programs_executed_get_no_descriptors(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(find_descriptor_flags, new_shared())), 0);
}

static void test_pool_made_and_used_by_a_thread_that_ends(void **state) {
    (void)state;
    scheduler self = {.pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1))};
    pthread_t thread;
    /* The zygote is forked in a thread; its end must not be taken for the program's. */
    assert_int_equal(pthread_create(&thread, NULL, schedule_many, &self), 0);
    pthread_join(thread, NULL);
    assert_int_equal(self.wrong, 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(take_int(schedule(self.pool, increment, &i, sizeof i, 0)), i + 1);
    assert_int_equal(info_of(self.pool).worker_deaths, 0);
    close_join_free(self.pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_default_size),
        supported_test(test_runs_max_workers_at_once),
        supported_test(test_not_more_than_max_workers),
        supported_test(test_costs_nothing_before_the_first_task),
        supported_test(test_pids),
        supported_test(test_name),
        supported_test(test_max_tasks_one_after_another),
        supported_test(test_max_tasks_long_queue),
        supported_test(test_initializer_once_in_each_worker),
        supported_test(test_initializer_gets_its_bytes),
        supported_test(test_initializer_fails),
        supported_test(test_initializer_crashes),
        supported_test(test_initializer_exits),
        supported_test(test_initializer_hangs),
        supported_test(test_initializer_fails_twice_then_works),
        supported_test(test_stop_while_the_initializer_hangs),
        supported_test(test_close_performs_the_queue),
        supported_test(test_stop_cancels_all),
        supported_test(test_stop_after_close),
        supported_test(test_stop_without_tasks),
        supported_test(test_join),
        supported_test(test_join_in_a_callback),
        supported_test(test_join_waits_for_callbacks),
        supported_test(test_join_by_several_threads),
        supported_test(test_free_of_a_running_pool),
        supported_test(test_free_of_an_idle_pool),
        supported_test(test_futures_outlive_their_pool),
        supported_test(test_kill_after_the_grace),
        supported_test(test_clean_end_within_the_grace),
        supported_test(test_idle_worker_killed),
        supported_test(test_idle_worker_killed_and_nothing_to_do),
        supported_test(test_all_workers_killed_while_busy),
        supported_test(test_zygote_killed_while_busy),
        supported_test(test_zygote_killed_while_idle),
        supported_test(test_zygote_killed_and_stopped),
        supported_test(test_zygote_killed_with_a_family),
        supported_test(test_program_killed),
        supported_test(test_program_exits_without_stopping),
        supported_test(test_tasks_move_from_behind_a_slow_one),
        supported_test(test_nobody_waits_and_tasks_move),
        supported_test(test_many_tasks_from_many_threads),
        supported_test(test_several_pools_at_once),
        supported_test(test_output_is_seen_once),
        supported_test(test_output_is_seen_when_the_task_has_ended),
        supported_test(test_programs_executed_get_no_descriptors),
        supported_test(test_pool_made_and_used_by_a_thread_that_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
