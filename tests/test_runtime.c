/* What only the runtime of another language needs: waits that a signal ends, hooks in the threads of a
 * pool and for idle workers, data for executed processes, a zygote whose hooks may block, initializers
 * that say why they fail. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

/* What all processes and threads of a test share. */
typedef struct shared_state {
    counter started, ended, idle, ran, released, go, blocked, terminated;
    _Atomic bool holds; /* a hook is to block */
} shared_state;

static shared_state *shared;

static int set_up(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks ---- */

static int run(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    return 0;
}

static int wait_for_go(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    return counter_wait(&shared->go, 1) ? 0 : 1;
}

static int stay(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    for (;;)
        pause();
    return 0;
}

/* ---- Waits that a signal ends ---- */

static uint32_t word;

static void interrupt(int number) {
    (void)number;
    pebble_interrupt(&word);
}

static void only_return(int number) {
    (void)number;
}

/* How a wait was called and what it returned. */
typedef struct wait_case {
    pebble_error (*call)(struct wait_case *self);
    pebble_pool *pool;
    pebble_future *future;
    pebble_map *map;
    const uint32_t *word;
    counter returned;
    pthread_t thread;
    pebble_error error;
} wait_case;

static pebble_error call_wait(wait_case *self) {
    return pebble_future_wait(self->future, PEBBLE_FOREVER);
}

static pebble_error call_result(wait_case *self) {
    return pebble_future_result(self->future, DEADLINE_NS, NULL, NULL);
}

static pebble_error call_any(wait_case *self) {
    return pebble_future_wait_any(&self->future, 1, PEBBLE_FOREVER, NULL);
}

static pebble_error call_all(wait_case *self) {
    return pebble_future_wait_all(&self->future, 1, PEBBLE_FOREVER);
}

static pebble_error call_next(wait_case *self) {
    return pebble_map_next(self->map, PEBBLE_FOREVER, NULL, NULL);
}

static pebble_error call_map_wait(wait_case *self) {
    return pebble_map_wait(self->map, PEBBLE_FOREVER);
}

static pebble_error call_join(wait_case *self) {
    return pebble_pool_join(self->pool, PEBBLE_FOREVER);
}

static void *wait_in_thread(void *context) {
    wait_case *self = context;
    pebble_set_interrupt_word(self->word);
    self->error = self->call(self);
    pebble_set_interrupt_word(NULL);
    counter_add(&self->returned, 1);
    return NULL;
}

/* Signals come until the wait has returned: also before it sleeps. */
static void check_wait(wait_case *self, pebble_error expected) {
    self->error = PEBBLE_OK;
    atomic_store(&self->returned.value, 0);
    __atomic_store_n(&word, 0, __ATOMIC_SEQ_CST);
    assert_int_equal(pthread_create(&self->thread, NULL, wait_in_thread, self), 0);
    while (counter_value(&self->returned) == 0) {
        pthread_kill(self->thread, SIGUSR1);
        usleep(100);
    }
    pthread_join(self->thread, NULL);
    assert_int_equal(self->error, expected);
}

static void check_interrupts(bool threads, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler}, before;
    static pebble_error (*const calls[])(wait_case *) = {
        call_wait, call_result, call_any, call_all, call_next, call_map_wait, call_join};
    static const uint32_t never_set;
    sigaction(SIGUSR1, &action, &before);
    wait_case self = {.word = handler == interrupt ? &word : &never_set};
    self.pool = threads ? new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2))
                        : new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    self.future = schedule(self.pool, wait_for_go, NULL, 0, 0);
    expect_ok(pebble_pool_map(self.pool, wait_for_go, "x", 1, 1, 1, 0, &self.map));
    expect_ok(pebble_pool_close(self.pool));
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        self.call = calls[i];
        check_wait(&self, PEBBLE_ERR_INTERRUPTED);
    }
    counter_add(&shared->go, 1);
    expect_end(self.future, PEBBLE_OK);
    expect_ok(pebble_map_next(self.map, DEADLINE_NS, NULL, NULL)); /* the same element */
    pebble_map_unref(self.map);
    expect_ok(pebble_pool_join(self.pool, DEADLINE_NS));
    pebble_pool_free(self.pool);
    sigaction(SIGUSR1, &before, NULL);
}

static void test_a_word_ends_waits(void **state) {
    (void)state;
    check_interrupts(false, interrupt);
}

static void test_a_word_ends_waits_threads(void **state) {
    (void)state;
    check_interrupts(true, interrupt);
}

static void test_a_signal_ends_waits(void **state) {
    (void)state;
    check_interrupts(false, only_return);
}

static void test_a_signal_ends_waits_threads(void **state) {
    (void)state;
    check_interrupts(true, only_return);
}

static int64_t processor_time(pid_t pid) {
    clockid_t clock;
    struct timespec time;
    assert_int_equal(clock_getcpuclockid(pid, &clock), 0);
    assert_int_equal(clock_gettime(clock, &time), 0);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Set before the wait begins: it does not begin. Nobody would wake it. */
static void test_a_word_that_is_set_already(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule(pool, stay, NULL, 0, 0);
    pebble_set_interrupt_word(&word);
    pebble_interrupt(&word);
    assert_int_equal(pebble_future_wait(future, PEBBLE_FOREVER), PEBBLE_ERR_INTERRUPTED);
    assert_int_equal(pebble_future_wait_any(&future, 1, PEBBLE_FOREVER, NULL),
                     PEBBLE_ERR_INTERRUPTED);
    word = 0;
    pebble_set_interrupt_word(NULL);
    pebble_interrupt(NULL);
    pebble_future_unref(future);
    stop_join_free(pool);
}

/* Waits that it does not end keep their deadline. */
static void test_a_word_and_other_waits(void **state) {
    pebble_queue *queue;
    size_t count = 1;
    (void)state;
    expect_ok(pebble_queue_new(0, &queue));
    pebble_set_interrupt_word(&word);
    pebble_interrupt(&word);
    pebble_queue *ready;
    expect_ok(pebble_wait_for_queues(&queue, 1, PEBBLE_MILLISECONDS(20), &ready, &count));
    assert_int_equal(count, 0);
    word = 0;
    pebble_set_interrupt_word(NULL);
    pebble_queue_free(queue);
}

/* A worker inherits the word that its zygote's forker had set, and sleeps all the same. */
static void test_a_word_that_a_worker_inherits(void **state) {
    const int64_t rest_ns = PEBBLE_MILLISECONDS(200);
    pid_t pid;
    size_t count;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_set_interrupt_word(&word);
    pebble_interrupt(&word);
    pebble_future *future = schedule(pool, nothing, NULL, 0, 0);
    word = 0;
    pebble_set_interrupt_word(NULL);
    expect_end(future, PEBBLE_OK);
    expect_ok(pebble_pool_get_pids(pool, &pid, 1, &count));
    assert_int_equal(count, 1);
    int64_t before_ns = processor_time(pid);
    usleep((useconds_t)(rest_ns / 1000));
    assert_true(processor_time(pid) - before_ns < rest_ns / 4);
    close_join_free(pool);
}

/* ---- Hooks in threads, and of idle workers ---- */

static _Thread_local bool is_idle;

static void note_start(void *context, const char *name) {
    assert_ptr_equal(context, shared);
    assert_int_equal(strncmp(name, "hooked-", 7), 0);
    counter_add(&shared->started, 1);
}

static void note_end(void *context) {
    (void)context;
    counter_add(&shared->ended, 1);
}

static void note_idle(void *context) {
    (void)context;
    is_idle = true;
    counter_add(&shared->idle, 1);
}

/* Fails if a worker went from task to task without being idle, and was called so. */
static int run_busy(pebble_task *task, const void *input, size_t size) {
    bool was_idle = is_idle;
    (void)input, (void)size;
    is_idle = false;
    return (int)pebble_task_write(task, &was_idle, sizeof was_idle);
}

static pebble_hooks hooks_of_workers(void) {
    return (pebble_hooks){.struct_size = sizeof(pebble_hooks),
                          .context = shared,
                          .worker_start = note_start,
                          .worker_end = note_end,
                          .worker_idle = note_idle};
}

static void check_hooks(bool threads) {
    pebble_hooks hooks = hooks_of_workers();
    const pebble_pool_options *options =
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .max_tasks = 2, .name = "hooked",
                            .hooks = &hooks);
    pebble_pool *pool = threads ? new_thread_pool(options) : new_process_pool(options);
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    counter_expect(&shared->idle, 1);
    assert_true(counter_value(&shared->started) >= 1);      /* there may be a spare */
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK); /* its last one */
    counter_expect(&shared->ended, 1);
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    counter_expect(&shared->started, 2);
    close_join_free(pool);
    counter_expect(&shared->ended, 2);
}

static void test_hooks_of_threads(void **state) {
    (void)state;
    check_hooks(true);
}

static void test_idle_hook_of_processes(void **state) {
    (void)state;
    check_hooks(false);
}

static void check_busy(bool threads) {
    enum { TASKS = 200 };
    pebble_hooks hooks = hooks_of_workers();
    const pebble_pool_options *options =
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .name = "hooked", .hooks = &hooks);
    pebble_pool *pool = threads ? new_thread_pool(options) : new_process_pool(options);
    pebble_future *first = schedule(pool, wait_for_go, NULL, 0, 0), *futures[TASKS];
    for (int i = 0; i < TASKS; i++)
        futures[i] = schedule(pool, run_busy, NULL, 0, 0);
    counter_add(&shared->go, 1);
    expect_end(first, PEBBLE_OK);
    int idle = 0;
    for (int i = 0; i < TASKS; i++) {
        const void *data;
        expect_ok(pebble_future_result(futures[i], DEADLINE_NS, &data, NULL));
        idle += *(const bool *)data;
        pebble_future_unref(futures[i]);
    }
    assert_true(
        idle < TASKS / 2); /* a process may have to wait for the next ones once or twice */
    close_join_free(pool);
}

static void test_busy_threads_are_not_idle(void **state) {
    (void)state;
    check_busy(true);
}

static void test_busy_processes_are_not_idle(void **state) {
    (void)state;
    check_busy(false);
}

/* A program that was built with the header before worker_idle. */
static void test_older_hooks(void **state) {
    pebble_hooks hooks = hooks_of_workers();
    (void)state;
    hooks.struct_size = offsetof(pebble_hooks, worker_idle);
    pebble_pool *pool = new_thread_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .name = "hooked", .hooks = &hooks));
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->idle), 0);
    assert_int_equal(counter_value(&shared->ended), 1);
}

/* ---- A call of its own ---- */

static void release(void *context) {
    assert_ptr_equal(context, shared);
    counter_add(&shared->released, 1);
}

static int look_at_input(pebble_task *task, const void *input, size_t size) {
    (void)task;
    return size == 5 && memcmp(input, "input", 5) == 0 ? 0 : 1;
}

static void test_concurrent_with_release(void **state) {
    pebble_hooks hooks = hooks_of_workers();
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    pebble_future *future;
    (void)state;
    options.release_input = release;
    options.release_context = shared;
    expect_ok(pebble_concurrent_process(look_at_input, "input", 5, &options, &future));
    expect_end(future, PEBBLE_OK);
    counter_expect(&shared->released, 1);
    options.name = "hooked-thread";
    options.hooks = &hooks;
    expect_ok(pebble_concurrent_thread(look_at_input, "input", 5, &options, &future));
    expect_end(future, PEBBLE_OK);
    counter_expect(&shared->released, 2);
    counter_expect(&shared->ended, 1);
}

/* ---- Data of executed processes ---- */

static int tell_data(pebble_task *task, const void *input, size_t size) {
    size_t data_size = 0;
    const void *data = pebble_worker_data(&data_size);
    (void)input, (void)size;
    if (data == NULL || (uintptr_t)data % 16 != 0)
        return 1;
    return (int)pebble_task_write(task, data, data_size);
}

static void check_data(pebble_pool *pool, const char *expected, size_t expected_size) {
    const void *data;
    size_t size;
    pebble_future *future = schedule(pool, tell_data, NULL, 0, 0);
    expect_ok(pebble_future_result(future, DEADLINE_NS, &data, &size));
    assert_int_equal(size, expected_size);
    assert_memory_equal(data, expected, size);
    pebble_future_unref(future);
}

static void test_worker_data(void **state) {
    static char large[100000];
    static const pebble_start_method methods[] = {PEBBLE_START_FORKSERVER,
                                                  PEBBLE_START_SPAWN};
    (void)state;
    memset(large, 'd', sizeof large);
    for (int i = 0; i < 2; i++) {
        pebble_pool *pool = new_process_pool(
            PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 1,
                                .start_method = methods[i], .worker_data = large,
                                .worker_data_size = sizeof large));
        check_data(pool, large, sizeof large);
        check_data(pool, large, sizeof large); /* in another worker */
        pebble_future *future = schedule(pool, stay, NULL, 0, 0);
        while (pebble_future_pid(future) == 0)
            usleep(1000);
        process_kill(process_parent(pebble_future_pid(future))); /* the zygote */
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        check_data(pool, large, sizeof large); /* of the next zygote */
        close_join_free(pool);
    }
    assert_null(pebble_worker_data(NULL)); /* in the program */
}

/* ---- Initializers that say why ---- */

static int refuse(const void *input, size_t size) {
    return pebble_initializer_fail(7, "no %.*s", (int)size, (const char *)input);
}

static void check_initializer(bool threads) {
    const pebble_pool_options *options =
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = refuse,
                            .initializer_input = "licence", .initializer_input_size = 7);
    pebble_pool *pool = threads ? new_thread_pool(options) : new_process_pool(options);
    pebble_future *future = schedule(pool, run, NULL, 0, 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    const pebble_failure *failure = pebble_future_failure(future);
    assert_int_equal(failure->kind, PEBBLE_ERR_BROKEN);
    assert_int_equal(failure->code, 7);
    assert_non_null(strstr(failure->message, "no licence"));
    pebble_future_unref(future);
    stop_join_free(pool);
}

static void test_initializer_says_why(void **state) {
    (void)state;
    check_initializer(false);
    check_initializer(true);
    assert_int_equal(pebble_initializer_fail(0, "nobody listens"), 1);
}

/* ---- A zygote whose hooks may block ---- */

static void block(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind != PEBBLE_FORK_ZYGOTE || !atomic_load(&shared->holds))
        return;
    counter_add(&shared->blocked, 1);
    counter_wait(&shared->go, 1);
}

/* The deadlines of others are kept meanwhile; so are calls of the pool itself. */
static void test_a_hook_that_blocks_at_a_renewal(void **state) {
    pebble_hooks hooks = {
        .struct_size = sizeof hooks, .context = shared, .before_fork = block};
    (void)state;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = &hooks));
    pebble_pool *other = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule(pool, stay, NULL, 0, 0);
    while (pebble_future_pid(future) == 0)
        usleep(1000);
    pebble_future *queued = schedule(pool, run, NULL, 0, 0);
    atomic_store(&shared->holds, true);
    process_kill(process_parent(pebble_future_pid(future)));
    expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    counter_expect(&shared->blocked, 1);
    expect_end(schedule(other, stay, NULL, 0, PEBBLE_MILLISECONDS(20)),
               PEBBLE_ERR_TASK_TIMEOUT);
    pebble_future *second = schedule(pool, run, NULL, 0, 0);
    assert_true(pebble_future_cancel(second));
    expect_end(second, PEBBLE_ERR_TASK_CANCELLED);
    assert_int_equal(counter_value(&shared->ran), 0);
    counter_add(&shared->go, 1);
    expect_end(queued, PEBBLE_OK);
    close_join_free(other);
    close_join_free(pool);
}

/* ---- A task that outlives its SIGTERM ---- */

static void on_terminate(int number) {
    (void)number;
    counter_add(&shared->terminated, 1);
}

/* What a runtime does whose handlers run later: the task ends in order. */
static int return_after_terminate(pebble_task *task, const void *input, size_t size) {
    struct sigaction action = {.sa_handler = on_terminate};
    (void)task, (void)input, (void)size;
    sigaction(SIGTERM, &action, NULL);
    counter_add(&shared->ran, 1);
    return counter_wait(&shared->terminated, 1) ? 0 : 1;
}

static void test_a_task_that_returns_after_its_sigterm(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .termination_grace_ns = 100 * DEADLINE_NS));
    pebble_future *future = schedule(pool, return_after_terminate, NULL, 0, 0);
    counter_expect(&shared->ran, 1);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED); /* not only when the grace is over */
    close_join_free(pool);
}

/* The handler stays when the task has returned: the worker is idle when it is told to end. */
static int leave_handler(pebble_task *task, const void *input, size_t size) {
    struct sigaction action = {.sa_handler = on_terminate};
    (void)task, (void)input, (void)size;
    sigaction(SIGTERM, &action, NULL);
    return 0;
}

static void test_an_idle_worker_that_handles_sigterm(void **state) {
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .termination_grace_ns = 100 * DEADLINE_NS));
    expect_end(schedule(pool, leave_handler, NULL, 0, 0), PEBBLE_OK);
    stop_join_free(pool);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, support_teardown)

int main(void) {
    pebble_worker_main();
    const struct CMUnitTest tests[] = {
        TEST(test_a_word_ends_waits),
        TEST(test_a_word_ends_waits_threads),
        TEST(test_a_signal_ends_waits),
        TEST(test_a_signal_ends_waits_threads),
        TEST(test_a_word_that_is_set_already),
        TEST(test_a_word_and_other_waits),
        TEST(test_a_word_that_a_worker_inherits),
        TEST(test_hooks_of_threads),
        TEST(test_idle_hook_of_processes),
        TEST(test_busy_threads_are_not_idle),
        TEST(test_busy_processes_are_not_idle),
        TEST(test_older_hooks),
        TEST(test_concurrent_with_release),
        TEST(test_worker_data),
        TEST(test_initializer_says_why),
        TEST(test_a_hook_that_blocks_at_a_renewal),
        TEST(test_a_task_that_returns_after_its_sigterm),
        TEST(test_an_idle_worker_that_handles_sigterm),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("runtime", tests, NULL, NULL);
}
