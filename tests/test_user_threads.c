/* What users' functions may do to the threads that they run in: end them, fork in them, fault. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

typedef struct area {
    counter ran, called, left;
    _Atomic pid_t child;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

static int end_thread(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    char much[4096] = {0};
    pebble_task_write(task, much, sizeof much);
    pthread_exit(NULL);
}

static int cancel_thread(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    pthread_cancel(pthread_self());
    pthread_testcancel(); /* no system call: the thread sanitizer loses count of a thread that leaves one so */
    return 1;
}

static int run(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    return 0;
}

static int pass_when_left(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    return counter_wait(&shared->left, 1) ? 0 : 1;
}

static void called(pebble_future *future, void *context) {
    (void)future, (void)context;
    counter_add(&shared->called, 1);
}

static pebble_pool *new_single_pool(void) {
    return new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
}

/* ---- A thread that its function ends ---- */

static void expect_thread_ended(pebble_future *future) {
    expect_error(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK, NULL);
    expect_error(pebble_future_result(future, 0, NULL, NULL), PEBBLE_ERR_TASK_FAILED,
                 "the task ended its thread");
    pebble_future_unref(future);
}

static void check_task_ends_thread(pebble_function function) {
    pebble_pool *pool = new_single_pool();
    pebble_future *first = schedule(pool, function, NULL, 0, 0);
    pebble_future *last = schedule(pool, run, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(first, called, NULL));
    expect_thread_ended(first);
    expect_end(last, PEBBLE_OK);
    expect_thread_ended(schedule(pool, function, NULL, 0, 0));
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->called), 1);
}

static void test_task_ends_thread(void **state) {
    (void)state;
    check_task_ends_thread(end_thread);
}

static void test_task_cancels_thread(void **state) {
    (void)state;
    check_task_ends_thread(cancel_thread);
}

static void end_in_release(void *context) {
    (void)context;
    counter_add(&shared->called, 1);
    pthread_exit(NULL);
}

/* The task is over, but its future is not: the release of its input ends the thread. */
static void test_release_ends_thread(void **state) {
    static const char input[64];
    pebble_future *future;
    (void)state;
    pebble_pool *pool = new_single_pool();
    pebble_task_options lent = PEBBLE_TASK_OPTIONS_INIT;
    lent.function = nothing;
    lent.input = input;
    lent.input_size = sizeof input;
    lent.release_input = end_in_release;
    expect_ok(pebble_schedule_task(pool, &lent, &future));
    expect_thread_ended(future);
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->called), 1);
}

static void test_stop_while_task_ends_thread(void **state) {
    (void)state;
    pebble_pool *pool = new_single_pool();
    pebble_future *first = schedule(pool, end_thread, NULL, 0, 0);
    pebble_future *last = schedule(pool, run, NULL, 0, 0);
    stop_join_free(pool);
    assert_true(pebble_future_done(first));
    assert_true(pebble_future_done(last));
    pebble_future_unref(first);
    pebble_future_unref(last);
}

static void test_single_call_ends_thread(void **state) {
    pebble_future *future;
    (void)state;
    expect_ok(pebble_concurrent_thread(end_thread, NULL, 0, NULL, &future));
    expect_thread_ended(future);
}

static int end_initializer(const void *input, size_t size) {
    (void)input, (void)size;
    pthread_exit(NULL);
}

static void test_initializer_ends_thread(void **state) {
    (void)state;
    pebble_pool *pool = new_thread_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = end_initializer));
    pebble_future *future = schedule(pool, run, NULL, 0, 0);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL), PEBBLE_ERR_BROKEN,
                 "it ended its thread");
    pebble_future_unref(future);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->ran), 0);
}

static void end_callback_thread(pebble_future *future, void *context) {
    called(future, context);
    pthread_exit(NULL);
}

/* Those behind it are called all the same, of its own future too. */
static void test_callback_ends_thread(void **state) {
    (void)state;
    pebble_pool *pool = new_single_pool();
    pebble_future *first = schedule(pool, pass_when_left, NULL, 0, 0);
    pebble_future *last = schedule(pool, run, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(first, called, NULL));
    expect_ok(pebble_future_add_callback(first, end_callback_thread, NULL));
    expect_ok(pebble_future_add_callback(first, called, NULL));
    expect_ok(pebble_future_add_callback(last, end_callback_thread, NULL));
    counter_add(&shared->left, 1);
    expect_end(first, PEBBLE_OK);
    expect_end(last, PEBBLE_OK);
    counter_expect(&shared->called, 4);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->called), 4);
}

/* ---- A child that returns from the function that forked it ---- */

static void fork_here(void) {
    pid_t child = fork();
    if (child > 0)
        atomic_store(&shared->child, child);
}

static int fork_and_return(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    fork_here();
    return 0;
}

static void fork_in_callback(pebble_future *future, void *context) {
    fork_here();
    called(future, context);
}

static int fork_in_initializer(const void *input, size_t size) {
    (void)input, (void)size;
    fork_here();
    return 0;
}

static void expect_child_left(void) {
    int status = -1;
    pid_t child = atomic_load(&shared->child);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void test_task_forks(void **state) {
    pebble_future *futures[3];
    (void)state;
    pebble_pool *pool = new_single_pool();
    expect_end(schedule(pool, fork_and_return, NULL, 0, 0), PEBBLE_OK);
    for (int i = 0; i < 3; i++)
        futures[i] = schedule(pool, run, NULL, 0, 0);
    expect_child_left();
    for (int i = 0; i < 3; i++)
        expect_end(futures[i], PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->ran), 3);
}

static void test_initializer_forks(void **state) {
    (void)state;
    pebble_pool *pool = new_thread_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = fork_in_initializer));
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    expect_child_left();
    close_join_free(pool);
    assert_int_equal(counter_value(&shared->ran), 1);
}

/* The child calls the one that it is in to its end, and none after it. */
static void test_callback_forks(void **state) {
    (void)state;
    pebble_pool *pool = new_single_pool();
    pebble_future *future = schedule(pool, pass_when_left, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(future, fork_in_callback, NULL));
    expect_ok(pebble_future_add_callback(future, called, NULL));
    counter_add(&shared->left, 1);
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
    expect_child_left();
    assert_int_equal(counter_value(&shared->called), 3);
}

/* ---- Signals ---- */

static sigset_t seen_by_callback;

static int tell_mask(pebble_task *task, const void *input, size_t size) {
    sigset_t mask;
    (void)input, (void)size;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    return (int)pebble_task_write(task, &mask, sizeof mask);
}

static void note_mask(pebble_future *future, void *context) {
    pthread_sigmask(SIG_SETMASK, NULL, &seen_by_callback);
    called(future, context);
}

static void expect_mask(const sigset_t *mask, const sigset_t *expected) {
    for (int signal = 1; signal < SIGRTMIN; signal++)
        assert_int_equal(sigismember(mask, signal), sigismember(expected, signal));
}

static void test_mask_is_that_of_the_starter(void **state) {
    sigset_t blocked, before, mask;
    (void)state;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGTERM);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pebble_pool *pool = new_single_pool();
    pebble_future *future = schedule(pool, pass_when_left, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(future, note_mask, NULL));
    counter_add(&shared->left, 1);
    expect_end(future, PEBBLE_OK);
    future = schedule(pool, tell_mask, NULL, 0, 0);
    expect_ok(pebble_future_copy_result(future, DEADLINE_NS, &mask, sizeof mask));
    pebble_future_unref(future);
    counter_expect(&shared->called, 1);
    close_join_free(pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    expect_mask(&mask, &blocked);
    expect_mask(&seen_by_callback, &blocked);
}

static void on_fault(int signal) {
    _exit(signal == SIGSEGV ? 42 : 43);
}

static int fault(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    raise(SIGSEGV);
    return 0;
}

static void fault_in_callback(pebble_future *future, void *context) {
    (void)future, (void)context;
    raise(SIGSEGV);
}

static int fault_in_task_program(void *context) {
    (void)context;
    signal(SIGSEGV, on_fault);
    expect_end(schedule(new_single_pool(), fault, NULL, 0, 0), PEBBLE_OK);
    return 0;
}

static int fault_in_callback_program(void *context) {
    (void)context;
    signal(SIGSEGV, on_fault);
    pebble_pool *pool = new_single_pool();
    pebble_future *future = schedule(pool, pass_when_left, NULL, 0, 0);
    expect_ok(pebble_future_add_callback(future, fault_in_callback, NULL));
    counter_add(&shared->left, 1);
    close_join_free(pool);
    return 0;
}

/* The program's own handler of faults is called, as in any of its threads. */
static void test_fault_handler(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(fault_in_task_program, NULL)), 42);
    assert_int_equal(program_wait(program_start(fault_in_callback_program, NULL)), 42);
}

/* ---- A thread of the program that is cancelled ---- */

static void *use_cancelled(void *context) {
    pebble_pool *pool = context;
    pthread_cancel(pthread_self());
    pebble_future *first = schedule(pool, nothing, NULL, 0, 0);
    pebble_future *second = schedule(pool, nothing, NULL, 0, 0);
    pebble_future_cancel(second);
    pebble_future_unref(first);
    pebble_future_unref(second);
    pthread_testcancel();
    return NULL;
}

/* No call is a point where it ends, with locks held. */
static void test_used_by_a_thread_that_is_cancelled(void **state) {
    pthread_t thread;
    void *result;
    pid_t zygote, now;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    assert_int_equal(pthread_create(&thread, NULL, use_cancelled, pool), 0);
    pthread_join(thread, &result);
    assert_ptr_equal(result, PTHREAD_CANCELED);
    assert_int_equal(process_children(getpid(), &zygote, 1), 1);
    expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
    assert_int_equal(process_children(getpid(), &now, 1), 1);
    assert_int_equal(now, zygote); /* to which the cancel was no matter */
    close_join_free(pool);
}

/* As one that unmaps or closes what the input was: a point where a thread may be cancelled. */
static void close_in_release(void *context) {
    (void)context;
    counter_add(&shared->called, 1);
    close(-1);
    pthread_testcancel();
}

static pebble_future *schedule_lent(pebble_pool *pool) {
    pebble_task_options lent = PEBBLE_TASK_OPTIONS_INIT;
    pebble_future *future;
    lent.function = nothing;
    lent.release_input = close_in_release;
    expect_ok(pebble_schedule_task(pool, &lent, &future));
    return future;
}

enum { LENT = 10 };

typedef struct lender {
    pebble_pool *pool;
    pebble_future *futures[LENT];
    bool stops;
} lender;

/* It collects what others wait for. */
static void *collect_cancelled(void *context) {
    lender *self = context;
    pthread_cancel(pthread_self());
    for (int i = 0; i < LENT; i++)
        self->futures[i] = schedule_lent(self->pool);
    if (self->stops)
        pebble_pool_stop(self->pool);
    else
        pebble_future_wait(self->futures[LENT - 1], DEADLINE_NS);
    pthread_testcancel();
    return NULL;
}

static void check_release_in_a_cancelled_thread(pebble_pool *pool, bool stops) {
    lender self = {.pool = pool, .stops = stops};
    pthread_t thread;
    void *result;
    shared->called.value = 0;
    assert_int_equal(pthread_create(&thread, NULL, collect_cancelled, &self), 0);
    pthread_join(thread, &result);
    assert_ptr_equal(result, PTHREAD_CANCELED);
    for (int i = 0; i < LENT; i++) {
        expect_ok(pebble_future_wait(self.futures[i], DEADLINE_NS));
        pebble_future_unref(self.futures[i]);
    }
    assert_int_equal(counter_value(&shared->called), LENT); /* also without an input */
    close_join_free(pool);
}

static void test_release_in_a_thread_that_is_cancelled(void **state) {
    (void)state;
    for (int stops = 0; stops < 2; stops++) {
        check_release_in_a_cancelled_thread(
            new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1)), stops);
        check_release_in_a_cancelled_thread(
            new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1)), stops);
    }
}

/* ---- Hooks that end the thread; a cancel that comes to nothing; a thread without its initializer ---- */

static void end_in_start(void *context, const char *name) {
    (void)context, (void)name;
    counter_add(&shared->called, 1);
    pthread_exit(NULL);
}

/* It counts as the initializer: the pool breaks after three. */
static void test_start_hook_ends_thread(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .worker_start = end_in_start};
    (void)state;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = &hooks));
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_ERR_BROKEN);
    assert_int_equal(counter_value(&shared->called), 3);
    close_join_free(pool);
}

static void end_in_idle(void *context) {
    (void)context;
    if (counter_add(&shared->called, 1) <= 4)
        pthread_exit(NULL);
}

/* Before it spins, or sleeps: others do its work. */
static void test_idle_hook_ends_thread(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .worker_idle = end_in_idle};
    (void)state;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .hooks = &hooks));
    for (uint32_t i = 1; i <= 4; i++) {
        expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
        counter_expect(&shared->called, i);
    }
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

static void end_in_first_idle(void *context) {
    (void)context;
    if (counter_add(&shared->called, 1) == 1) {
        counter_wait(&shared->left, 1);
        pthread_exit(NULL);
    }
}

/* A task comes meanwhile: it is its successor's. */
static void test_idle_hook_ends_thread_beside_a_task(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .worker_idle = end_in_first_idle};
    (void)state;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .hooks = &hooks));
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    counter_expect(&shared->called, 1);
    pebble_future *future = schedule(pool, run, NULL, 0, 0);
    counter_add(&shared->left, 1);
    expect_end(future, PEBBLE_OK);
    counter_expect(&shared->called, 2); /* its successor is about to sleep */
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

static void wait_in_idle(void *context) {
    (void)context;
    if (counter_add(&shared->called, 1) == 1)
        counter_wait(&shared->left, 1);
}

static int leave(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->left, 1);
    return 0;
}

/* As a finalizer does that waits for a task of its pool: another thread has it. */
static void test_idle_hook_waits_for_a_task(void **state) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .worker_idle = wait_in_idle};
    (void)state;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .hooks = &hooks));
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    counter_expect(&shared->called, 1);
    expect_end(schedule(pool, leave, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

typedef struct whereabouts {
    pthread_t thread;
    pid_t tid;
} whereabouts;

static int tell_thread(pebble_task *task, const void *input, size_t size) {
    const whereabouts here = {pthread_self(), (pid_t)syscall(SYS_gettid)};
    (void)input, (void)size;
    return (int)pebble_task_write(task, &here, sizeof here);
}

/* Two of them at a time: one in each thread. */
static int meet(pebble_task *task, const void *input, size_t size) {
    counter_add(&shared->called, 1);
    return counter_wait(&shared->called, 2) ? tell_thread(task, input, size) : 1;
}

static whereabouts take_whereabouts(pebble_future *future) {
    whereabouts there;
    expect_ok(pebble_future_copy_result(future, DEADLINE_NS, &there, sizeof there));
    pebble_future_unref(future);
    return there;
}

static bool sleeps(void *context) {
    return process_state(((const whereabouts *)context)->tid) == 'S';
}

/* A cancel that comes while it has no task fails none. */
static void test_cancel_of_an_idle_thread(void **state) {
    (void)state;
    pebble_pool *pool = new_single_pool();
    whereabouts idle = take_whereabouts(schedule(pool, tell_thread, NULL, 0, 0));
    assert_true(wait_until(sleeps, &idle));
    pthread_cancel(idle.thread);
    expect_end(schedule(pool, run, NULL, 0, 0), PEBBLE_OK);
    close_join_free(pool);
}

static int wait_for_leave(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    return counter_wait(&shared->left, 1) ? 0 : 1;
}

static bool has_begun(void *future) {
    return pebble_future_state(future) != PEBBLE_PENDING;
}

/* One that is woken and ends for that: the wake is the other's. */
static void check_cancel_of_one_of_two(int which) {
    pebble_future *futures[2];
    whereabouts threads[2];
    shared->called.value = shared->left.value = 0;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 2; i++)
        futures[i] = schedule(pool, meet, NULL, 0, 0);
    for (int i = 0; i < 2; i++)
        threads[i] = take_whereabouts(futures[i]);
    for (int i = 0; i < 2; i++)
        assert_true(wait_until(sleeps, &threads[i]));
    pthread_cancel(threads[which].thread);
    pebble_future *waits = schedule(pool, wait_for_leave, NULL, 0, 0);
    assert_true(wait_until(has_begun, waits));
    pebble_future *leaves = schedule(pool, leave, NULL, 0, 0);
    expect_end(waits, PEBBLE_OK);
    expect_end(leaves, PEBBLE_OK);
    close_join_free(pool);
}

static void test_cancel_of_one_of_two_idle_threads(void **state) {
    (void)state;
    check_cancel_of_one_of_two(0);
    check_cancel_of_one_of_two(1);
}

static int cancel_and_return(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    pthread_cancel(pthread_self());
    return 0;
}

static void test_cancel_does_not_reach_the_next_task(void **state) {
    (void)state;
    pebble_pool *pool = new_single_pool();
    pebble_future *first = schedule(pool, cancel_and_return, NULL, 0, 0);
    pebble_future *second = schedule(pool, run, NULL, 0, 0);
    expect_end(first, PEBBLE_ERR_TASK_FAILED);
    expect_end(second, PEBBLE_OK);
    close_join_free(pool);
}

static int write_much_and_exit(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    static const char much[1 << 16];
    pebble_task_write(task, much, sizeof much);
    pthread_exit(NULL);
}

/* What the element had written is freed. */
static void test_element_ends_thread(void **state) {
    static const int items[2];
    pebble_map *map;
    (void)state;
    pebble_pool *pool = new_single_pool();
    expect_ok(
        pebble_pool_map(pool, write_much_and_exit, items, sizeof *items, 2, 2, 0, &map));
    expect_ok(pebble_map_wait(map, DEADLINE_NS));
    pebble_map_unref(map);
    close_join_free(pool);
}

static _Thread_local bool is_initialized;

/* The second of two fails, when there are tasks to be had. */
static int fail_second(const void *input, size_t size) {
    (void)input, (void)size;
    if (counter_add(&shared->called, 1) == 2) {
        counter_wait(&shared->ran, 1);
        return 5;
    }
    is_initialized = true;
    return 0;
}

static int check_initialized(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&shared->ran, 1);
    usleep(200);
    return is_initialized ? 0 : 1;
}

static void test_failed_initializer_runs_nothing(void **state) {
    enum { TASKS = 200 };
    pebble_future *futures[TASKS];
    (void)state;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .initializer = fail_second));
    for (int i = 0; i < TASKS; i++)
        futures[i] = schedule(pool, check_initialized, NULL, 0, 0);
    for (int i = 0; i < TASKS; i++)
        expect_end(futures[i], PEBBLE_OK);
    close_join_free(pool);
}

static int fail_always(const void *input, size_t size) {
    (void)input, (void)size;
    return 5;
}

static void wait_in_release(void *context) {
    (void)context;
    counter_add(&shared->called, 1);
    counter_wait(&shared->left, 1);
}

/* What a broken pool is just about to fail is not cancelled. */
static void test_cancel_while_the_pool_breaks(void **state) {
    (void)state;
    pebble_future *future;
    pebble_task_options task = PEBBLE_TASK_OPTIONS_INIT;
    pebble_pool *pool =
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = fail_always));
    task.function = run;
    task.input = "input";
    task.input_size = 5;
    task.release_input = wait_in_release;
    expect_ok(pebble_schedule_task(pool, &task, &future));
    counter_expect(&shared->called, 1);
    assert_false(pebble_future_cancel(future));
    counter_add(&shared->left, 1);
    expect_end(future, PEBBLE_ERR_BROKEN);
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(task_ends_thread),
        TEST(task_cancels_thread),
        TEST(release_ends_thread),
        TEST(stop_while_task_ends_thread),
        TEST(single_call_ends_thread),
        TEST(initializer_ends_thread),
        TEST(callback_ends_thread),
        TEST(task_forks),
        TEST(initializer_forks),
        TEST(callback_forks),
        TEST(mask_is_that_of_the_starter),
        TEST(fault_handler),
        TEST(used_by_a_thread_that_is_cancelled),
        TEST(release_in_a_thread_that_is_cancelled),
        TEST(start_hook_ends_thread),
        TEST(idle_hook_ends_thread),
        TEST(idle_hook_ends_thread_beside_a_task),
        TEST(idle_hook_waits_for_a_task),
        TEST(cancel_of_an_idle_thread),
        TEST(cancel_of_one_of_two_idle_threads),
        TEST(cancel_does_not_reach_the_next_task),
        TEST(element_ends_thread),
        TEST(failed_initializer_runs_nothing),
        TEST(cancel_while_the_pool_breaks),
    };
    return cmocka_run_group_tests_name("user_threads", tests, NULL, NULL);
}
