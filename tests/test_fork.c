/* fork() of a program that has pools: the child's calls, the parent's pools; and modules that are
 * loaded after a pool has forked its zygote. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "platform/platform.h"
#include "support.h"

static int increment(pebble_task *task, const void *input, size_t size) {
    int number = *(const int *)input + 1;
    (void)size;
    return (int)pebble_task_write(task, &number, sizeof number);
}

typedef struct gate {
    counter entered, leave;
} gate;

static int pass_gate(pebble_task *task, const void *input, size_t size) {
    gate *at = *(gate *const *)input;
    (void)task, (void)size;
    counter_add(&at->entered, 1);
    return counter_wait(&at->leave, 1) ? 0 : 1;
}

/* What the child gets from its parent. */
typedef struct inherited {
    pebble_pool *pool;
    pebble_future *runs, *waits, *ended;
    pebble_map *map;
} inherited;

static void ignore(pebble_future *future, void *context) {
    (void)future, (void)context;
}

static void expect_forked_pool(pebble_pool *pool) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    pebble_task_options task = PEBBLE_TASK_OPTIONS_INIT;
    pebble_map *map = NULL;
    pebble_future *future = NULL;
    size_t count = 77;
    int items[2] = {1, 2};
    task.function = nothing;
    assert_false(pebble_pool_active(pool));
    expect_error(pebble_schedule(pool, nothing, NULL, 0, 0, &future), PEBBLE_ERR_FORKED,
                 "pool");
    expect_error(pebble_schedule_task(pool, &task, &future), PEBBLE_ERR_FORKED, "pool");
    expect_error(pebble_pool_map(pool, nothing, items, sizeof *items, 2, 1, 0, &map),
                 PEBBLE_ERR_FORKED, "pool");
    expect_error(pebble_pool_close(pool), PEBBLE_ERR_FORKED, "pebble_pool_close");
    expect_error(pebble_pool_stop(pool), PEBBLE_ERR_FORKED, "pebble_pool_stop");
    expect_error(pebble_pool_join(pool, PEBBLE_FOREVER), PEBBLE_ERR_FORKED,
                 "pebble_pool_join");
    expect_error(pebble_pool_get_info(pool, &info), PEBBLE_ERR_FORKED,
                 "pebble_pool_get_info");
    expect_error(pebble_pool_get_pids(pool, NULL, 0, &count), PEBBLE_ERR_FORKED,
                 "pebble_pool_get_pids");
    assert_int_equal(count, 77);
    assert_null(future);
    assert_null(map);
}

static void expect_forked_future(pebble_future *future) {
    size_t index = 77;
    const void *data = NULL;
    int result = 0;
    assert_int_equal(pebble_future_state(future), PEBBLE_CANCELLED);
    expect_error(pebble_future_wait(future, PEBBLE_FOREVER), PEBBLE_ERR_FORKED, "future");
    expect_error(pebble_future_result(future, PEBBLE_FOREVER, &data, NULL),
                 PEBBLE_ERR_FORKED, "future");
    expect_error(pebble_future_copy_result(future, PEBBLE_FOREVER, &result, sizeof result),
                 PEBBLE_ERR_FORKED, "future");
    expect_error(pebble_future_wait_any(&future, 1, PEBBLE_FOREVER, &index),
                 PEBBLE_ERR_FORKED, "future");
    expect_error(pebble_future_wait_all(&future, 1, PEBBLE_FOREVER), PEBBLE_ERR_FORKED,
                 "future");
    expect_error(pebble_future_add_callback(future, ignore, NULL), PEBBLE_ERR_FORKED,
                 "future");
    assert_false(pebble_future_cancel(future));
    assert_null(pebble_future_failure(future));
    assert_int_equal(pebble_future_pid(future), 0);
    pebble_future_done(future);
    pebble_future_unref(pebble_future_ref(future));
    pebble_future_unref(future);
    assert_int_equal(index, 77);
    assert_null(data);
}

static void expect_forked_map(pebble_map *map) {
    expect_error(pebble_map_next(map, PEBBLE_FOREVER, NULL, NULL), PEBBLE_ERR_FORKED,
                 "map");
    expect_error(pebble_map_wait(map, PEBBLE_FOREVER), PEBBLE_ERR_FORKED, "map");
    assert_false(pebble_map_cancel(map));
    pebble_map_done(map);
    assert_null(pebble_map_failure(map));
    pebble_map_unref(pebble_map_ref(map));
    pebble_map_unref(map);
}

static int call_everything(void *context) {
    inherited *from_parent = context;
    expect_forked_future(from_parent->runs);
    expect_forked_future(from_parent->waits);
    expect_forked_future(from_parent->ended);
    expect_forked_map(from_parent->map);
    expect_forked_pool(from_parent->pool);
    pebble_pool_free(from_parent->pool);
    return 0;
}

static void child_calls_everything(pebble_pool *pool) {
    int items[] = {1, 2, 3}, number = 1;
    gate *at = shared_memory(sizeof *at);
    inherited from_parent = {.pool = pool};
    from_parent.ended = schedule(pool, increment, &number, sizeof number, 0);
    expect_ok(pebble_future_wait(from_parent.ended, DEADLINE_NS));
    from_parent.runs = schedule(pool, pass_gate, &at, sizeof at, 0);
    counter_expect(&at->entered, 1);
    from_parent.waits = schedule(pool, pass_gate, &at, sizeof at, 0);
    expect_ok(pebble_pool_map(pool, increment, items, sizeof *items, 3, 1, 0,
                              &from_parent.map));
    assert_int_equal(program_wait(program_start(call_everything, &from_parent)), 0);
    counter_add(&at->leave, 1);
    expect_end(from_parent.runs, PEBBLE_OK);
    expect_end(from_parent.waits, PEBBLE_OK);
    assert_int_equal(take_int(from_parent.ended), 2);
    for (int i = 0; i < 3; i++)
        expect_ok(pebble_map_next(from_parent.map, DEADLINE_NS, NULL, NULL));
    pebble_map_unref(from_parent.map);
    assert_int_equal(take_int(schedule(pool, increment, &number, sizeof number, 0)), 2);
    close_join_free(pool);
}

static void test_child_calls_everything(void **state) {
    (void)state;
    child_calls_everything(new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1)));
}

static void test_child_calls_everything_of_a_thread_pool(void **state) {
    (void)state;
    child_calls_everything(new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1)));
}

static int use_own_pools(void *context) {
    (void)context;
    for (int i = 0; i < 3; i++) {
        pebble_pool *processes = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
        pebble_pool *threads = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
        assert_int_equal(take_int(schedule(processes, increment, &i, sizeof i, 0)), i + 1);
        assert_int_equal(take_int(schedule(threads, increment, &i, sizeof i, 0)), i + 1);
        close_join_free(processes);
        close_join_free(threads);
    }
    return 0;
}

static void test_child_makes_its_own_pools(void **state) {
    int number = 5;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    assert_int_equal(take_int(schedule(pool, increment, &number, sizeof number, 0)), 6);
    assert_int_equal(program_wait(program_start(use_own_pools, NULL)), 0);
    assert_int_equal(take_int(schedule(pool, increment, &number, sizeof number, 0)), 6);
    close_join_free(pool);
}

static int fork_again(void *context) {
    if (use_own_pools(context) != 0)
        return 1;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    int code = program_wait(program_start(use_own_pools, NULL));
    close_join_free(pool);
    return code;
}

static void test_grandchild_makes_its_own_pools(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    assert_int_equal(program_wait(program_start(fork_again, NULL)), 0);
    close_join_free(pool);
}

/* As a daemon does, then goes on: it lets go of the parent's pool and has pools of its own. */
static int close_all_and_go_on(void *context) {
    if (syscall(SYS_close_range, 3, ~0U, 0) != 0)
        return 1;
    pebble_pool_free(context);
    return use_own_pools(NULL);
}

static int close_all(void *context) {
    (void)context;
    return syscall(SYS_close_range, 0, ~0U, 0) == 0 ? 0 : 1;
}

static void test_child_closes_all_descriptors(void **state) {
    int number = 5;
    gate *at = shared_memory(sizeof *at);
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    pebble_future *runs = schedule(pool, pass_gate, &at, sizeof at, 0);
    counter_expect(&at->entered, 1);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(program_wait(program_start(close_all, NULL)), 0);
        assert_int_equal(program_wait(program_start(close_all_and_go_on, pool)), 0);
    }
    assert_int_equal(take_int(schedule(pool, increment, &number, sizeof number, 0)), 6);
    counter_add(&at->leave, 1);
    expect_end(runs, PEBBLE_OK);
    close_join_free(pool);
}

static int wait_for_leave(void *context) {
    gate *at = context;
    counter_add(&at->entered, 1);
    return counter_wait(&at->leave, 1) ? 0 : 1;
}

/* A fork copies the descriptors before the set of those that the engine has: what is closed between would be
 * in the child, and not in its set. */
static void test_closes_wait_for_a_fork(void **state) {
    int fds[2];
    (void)state;
    assert_int_equal(os_message_pair(fds), 0);
    os_fd_fork_begins();
    os_fd_fork_begins();
    os_fd_close(fds[0]);
    os_fd_fork_ended();
    assert_true(fcntl(fds[0], F_GETFD) >= 0); /* one is still under way */
    os_fd_fork_ended();
    assert_int_equal(fcntl(fds[0], F_GETFD), -1);
    os_fd_close(fds[1]);
    assert_int_equal(fcntl(fds[1], F_GETFD), -1);
}

/* A child that lives on keeps nothing of the pool alive: its end is noticed all the same. */
static void test_child_outlives_the_pool(void **state) {
    gate *at = shared_memory(sizeof *at);
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    pid_t child = program_start(wait_for_leave, at);
    counter_expect(&at->entered, 1);
    close_join_free(pool);
    counter_add(&at->leave, 1);
    assert_int_equal(program_wait(child), 0);
}

typedef struct forker {
    gate *at;
    pid_t worker, zygote;
} forker;

static int fork_and_be_killed(void *context) {
    forker *self = context;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule(pool, pass_gate, &self->at, sizeof self->at, 0);
    if (!counter_wait(&self->at->entered, 1))
        return 1;
    self->worker = pebble_future_pid(future);
    self->zygote = process_parent(self->worker);
    if (fork() == 0) { /* not program_start(): this one is to live on */
        wait_for_leave(self->at);
        _exit(0);
    }
    if (!counter_wait(&self->at->entered, 2))
        return 1;
    raise(SIGKILL);
    return 1;
}

/* A fork of the program must not keep its workers alive when it is killed itself. */
static void test_workers_end_though_a_child_lives(void **state) {
    forker *self = shared_memory(sizeof *self);
    (void)state;
    self->at = shared_memory(sizeof *self->at);
    assert_int_equal(program_wait(program_start(fork_and_be_killed, self)), -SIGKILL);
    expect_gone(self->worker);
    expect_gone(self->zygote);
    counter_add(&self->at->leave, 1);
}

typedef struct busy {
    pebble_pool *pool;
    atomic_bool over;
    int wrong;
} busy;

static void *schedule_on(void *context) {
    busy *self = context;
    for (int i = 0; !atomic_load(&self->over); i++) {
        int result = 0;
        pebble_future *future = NULL;
        self->wrong += pebble_schedule(self->pool, increment, &i, sizeof i, 0, &future) !=
                           PEBBLE_OK ||
                       pebble_future_copy_result(future, DEADLINE_NS, &result,
                                                 sizeof result) != PEBBLE_OK ||
                       result != i + 1;
        pebble_future_unref(future);
    }
    return NULL;
}

/* Forks at any moment, while other threads hold the library's locks. */
static void test_forks_beside_busy_threads(void **state) {
    pthread_t threads[2];
    (void)state;
    if (WITH_ADDRESS_SANITIZER)
        skip(); /* gcc 12's does not hold its allocator's locks in a fork: the child may find them
                 * taken, and waits for ever */
    busy processes = {.pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1))};
    busy in_threads = {.pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1))};
    assert_int_equal(pthread_create(&threads[0], NULL, schedule_on, &processes), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, schedule_on, &in_threads), 0);
    for (int i = 0; i < 20; i++)
        assert_int_equal(program_wait(program_start(use_own_pools, NULL)), 0);
    atomic_store(&processes.over, true);
    atomic_store(&in_threads.over, true);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    assert_int_equal(processes.wrong, 0);
    assert_int_equal(in_threads.wrong, 0);
    close_join_free(processes.pool);
    close_join_free(in_threads.pool);
}

/* ---- In a worker ---- */

static pebble_pool *pool_of_program;

static int use_pools_in_a_task(pebble_task *task, const void *input, size_t size) {
    pebble_pool *pool;
    pebble_future *future;
    int number = 1, result = 0;
    (void)input, (void)size;
    if (pebble_pool_join(pool_of_program, PEBBLE_FOREVER) != PEBBLE_ERR_FORKED)
        return 1;
    if (pebble_schedule(pool_of_program, nothing, NULL, 0, 0, NULL) != PEBBLE_ERR_FORKED)
        return 2;
    if (pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 1), &pool) !=
            PEBBLE_OK ||
        pebble_schedule(pool, increment, &number, sizeof number, 0, &future) != PEBBLE_OK ||
        pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result) !=
            PEBBLE_OK)
        return 3;
    pebble_future_unref(future);
    pebble_pool_close(pool);
    if (pebble_pool_join(pool, DEADLINE_NS) != PEBBLE_OK)
        return 4;
    pebble_pool_free(pool);
    return (int)pebble_task_write(task, &result, sizeof result);
}

static void test_pools_in_a_task(void **state) {
    (void)state;
    pool_of_program = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    for (int i = 0; i < 3; i++)
        assert_int_equal(
            take_int(schedule(pool_of_program, use_pools_in_a_task, NULL, 0, 0)), 2);
    close_join_free(pool_of_program);
}

static int fork_and_return(pebble_task *task, const void *input, size_t size) {
    int pid = getpid();
    (void)input, (void)size;
    fork(); /* both return from the task: the child's return must count for nothing */
    return (int)pebble_task_write(task, &pid, sizeof pid);
}

static void test_task_that_returns_twice(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    int pid = take_int(schedule(pool, fork_and_return, NULL, 0, 0));
    for (int i = 0; i < 10; i++)
        assert_int_equal(take_int(schedule(pool, fork_and_return, NULL, 0, 0)), pid);
    close_join_free(pool);
}

/* ---- Modules loaded late ---- */

static int code_of(pebble_future *future) {
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                 PEBBLE_ERR_TASK_FAILED, "pebble_future_result");
    int code = pebble_future_failure(future)->code;
    pebble_future_unref(future);
    return code;
}

static void test_module_loaded_after_the_zygote(void **state) {
    int number = 21;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    late_module module = load_late_module();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(code_of(schedule(pool, module.twice, &number, sizeof number, 0)),
                         42);
        assert_int_equal(
            code_of(schedule(pool, module.thrice, &number, sizeof number, 0)), 63);
        assert_int_equal(take_int(schedule(pool, increment, &number, sizeof number, 0)),
                         22);
    }
    close_join_free(pool);
    pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1)); /* which forks it, loaded */
    assert_int_equal(code_of(schedule(pool, module.thrice, &number, sizeof number, 0)),
                     63);
    close_join_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_child_calls_everything),
        supported_test(test_child_calls_everything_of_a_thread_pool),
        supported_test(test_child_makes_its_own_pools),
        supported_test(test_grandchild_makes_its_own_pools),
        supported_test(test_child_closes_all_descriptors),
        supported_test(test_closes_wait_for_a_fork),
        supported_test(test_child_outlives_the_pool),
        supported_test(test_workers_end_though_a_child_lives),
        supported_test(test_forks_beside_busy_threads),
        supported_test(test_pools_in_a_task),
        supported_test(test_task_that_returns_twice),
        supported_test(test_module_loaded_after_the_zygote),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
