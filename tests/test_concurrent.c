/* One call in a process or thread of its own. */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

static int changing; /* of the program: a process has it as it was when it was forked */

static int tell_thread(pebble_task *task, const void *input, size_t size) {
    int thread = gettid();
    (void)input, (void)size;
    return (int)pebble_task_write(task, &thread, sizeof thread);
}

static int tell_changing(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    return (int)pebble_task_write(task, &changing, sizeof changing);
}

static int tell_name(pebble_task *task, const void *input, size_t size) {
    char name[16] = "";
    (void)input, (void)size;
    pthread_getname_np(pthread_self(), name, sizeof name);
    return (int)pebble_task_write(task, name, sizeof name);
}

static int echo(pebble_task *task, const void *input, size_t size) {
    return (int)pebble_task_write(task, input, size);
}

static int fail_with_7(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    return pebble_task_fail(task, 7, "seven");
}

static int exit_with_3(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    _exit(3);
}

static int enter_and_stay(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    counter_add(*(counter *const *)input, 1);
    for (;;)
        pause();
    return 0;
}

static int count(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    counter_add(*(counter *const *)input, 1);
    return 0;
}

static int wait_for_two(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    counter_add(*(counter *const *)input, 1);
    return counter_wait(*(counter *const *)input, 2) ? 0 : 1;
}

#define CONCURRENT_OPTIONS(...)                                                          \
    (&(const pebble_concurrent_options){                                                 \
        .struct_size = sizeof(pebble_concurrent_options), __VA_ARGS__})

static pebble_future *process(pebble_function function, const void *input, size_t size,
                              const pebble_concurrent_options *options) {
    pebble_future *future = NULL;
    expect_ok(pebble_concurrent_process(function, input, size, options, &future));
    assert_non_null(future);
    return future;
}

static pebble_future *thread(pebble_function function, const void *input, size_t size,
                             const pebble_concurrent_options *options) {
    pebble_future *future = NULL;
    expect_ok(pebble_concurrent_thread(function, input, size, options, &future));
    assert_non_null(future);
    return future;
}

/* ---- Processes ---- */

static void test_process_of_its_own(void **state) {
    (void)state;
    int first = take_int(process(tell_pid, NULL, 0, NULL));
    int second = take_int(process(tell_pid, NULL, 0, NULL));
    assert_int_not_equal(first, getpid());
    assert_int_not_equal(second, getpid());
    assert_int_not_equal(first, second);
    expect_gone(first);
    expect_gone(second);
}

static void test_process_forks_the_program_as_it_is(void **state) {
    (void)state;
    for (changing = 1; changing < 4; changing++)
        assert_int_equal(take_int(process(tell_changing, NULL, 0, NULL)), changing);
}

static void test_process_with_large_data(void **state) {
    static unsigned char bytes[3 << 20];
    const void *data;
    size_t size;
    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i >> 5);
    pebble_future *future = process(echo, bytes, sizeof bytes, NULL);
    expect_ok(pebble_future_result(future, DEADLINE_NS, &data, &size));
    assert_int_equal(size, sizeof bytes);
    assert_memory_equal(data, bytes, sizeof bytes);
    pebble_future_unref(future);
}

static void test_process_name(void **state) {
    const void *name;
    (void)state;
    pebble_future *future =
        process(tell_name, NULL, 0, CONCURRENT_OPTIONS(.name = "alone"));
    expect_ok(pebble_future_result(future, DEADLINE_NS, &name, NULL));
    assert_memory_equal(name, "alone", 5);
    pebble_future_unref(future);
}

static void test_process_failure(void **state) {
    (void)state;
    pebble_future *future = process(fail_with_7, NULL, 0, NULL);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                 PEBBLE_ERR_TASK_FAILED, "seven");
    assert_int_equal(pebble_future_failure(future)->code, 7);
    pebble_future_unref(future);
}

static void test_process_expires(void **state) {
    (void)state;
    pebble_future *future = process(exit_with_3, NULL, 0, NULL);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                 PEBBLE_ERR_TASK_EXPIRED, "exit code 3");
    assert_int_equal(pebble_future_failure(future)->exit_code, 3);
    pebble_future_unref(future);
}

static void test_process_timeout(void **state) {
    counter *entered = shared_memory(sizeof *entered);
    (void)state;
    pebble_future *future =
        process(enter_and_stay, &entered, sizeof entered,
                CONCURRENT_OPTIONS(.timeout_ns = PEBBLE_MILLISECONDS(50)));
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    assert_int_equal(pebble_future_failure(future)->timeout_ns, PEBBLE_MILLISECONDS(50));
    assert_false(process_lives(pebble_future_pid(future)));
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
}

static void test_process_cancel(void **state) {
    counter *entered = shared_memory(sizeof *entered);
    (void)state;
    pebble_future *future = process(enter_and_stay, &entered, sizeof entered, NULL);
    counter_expect(entered, 1);
    pid_t pid = pebble_future_pid(future);
    assert_true(pid > 1);
    assert_int_equal(pebble_future_state(future), PEBBLE_RUNNING);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    assert_false(process_lives(pid));
}

static void test_process_cancel_at_once(void **state) {
    (void)state;
    counter *entered = shared_memory(sizeof *entered);
    for (int i = 0; i < 20; i++) {
        pebble_future *future = process(enter_and_stay, &entered, sizeof entered, NULL);
        assert_true(pebble_future_cancel(future));
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    }
}

static void test_process_without_a_future(void **state) {
    counter *counted = shared_memory(sizeof *counted);
    (void)state;
    for (int i = 0; i < 10; i++)
        expect_ok(pebble_concurrent_process(count, &counted, sizeof counted, NULL, NULL));
    counter_expect(counted, 10);
}

static void test_processes_run_at_once(void **state) {
    counter *met = shared_memory(sizeof *met);
    (void)state;
    pebble_future *one = process(wait_for_two, &met, sizeof met, NULL);
    pebble_future *two = process(wait_for_two, &met, sizeof met, NULL);
    expect_end(one, PEBBLE_OK);
    expect_end(two, PEBBLE_OK);
}

static void test_many_processes(void **state) {
    pebble_future *futures[40];
    int pids[40];
    (void)state;
    for (int i = 0; i < 40; i++)
        futures[i] = process(tell_pid, NULL, 0, NULL);
    for (int i = 0; i < 40; i++) {
        pids[i] = take_int(futures[i]);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(pids[i], pids[j]);
    }
}

/* ---- Threads ---- */

static void test_thread_of_its_own(void **state) {
    (void)state;
    assert_int_not_equal(take_int(thread(tell_thread, NULL, 0, NULL)), gettid());
    assert_int_equal(take_int(thread(tell_pid, NULL, 0, NULL)), getpid());
}

static void test_thread_name(void **state) {
    const void *name;
    (void)state;
    pebble_future *future =
        thread(tell_name, NULL, 0, CONCURRENT_OPTIONS(.name = "alone"));
    expect_ok(pebble_future_result(future, DEADLINE_NS, &name, NULL));
    assert_memory_equal(name, "alone", 5);
    pebble_future_unref(future);
}

static void test_thread_failure(void **state) {
    (void)state;
    pebble_future *future = thread(fail_with_7, NULL, 0, NULL);
    expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                 PEBBLE_ERR_TASK_FAILED, "seven");
    pebble_future_unref(future);
}

static void test_thread_is_not_cancelled(void **state) {
    counter met = {0};
    counter *at = &met;
    (void)state;
    pebble_future *future = thread(wait_for_two, &at, sizeof at, NULL);
    counter_expect(&met, 1);
    assert_false(pebble_future_cancel(future));
    counter_add(&met, 1);
    expect_end(future, PEBBLE_OK);
}

static void test_threads_run_at_once(void **state) {
    counter met = {0};
    counter *at = &met;
    (void)state;
    pebble_future *one = thread(wait_for_two, &at, sizeof at, NULL);
    pebble_future *two = thread(wait_for_two, &at, sizeof at, NULL);
    expect_end(one, PEBBLE_OK);
    expect_end(two, PEBBLE_OK);
}

static void test_thread_without_a_future(void **state) {
    static counter counted;
    counter *at = &counted;
    (void)state;
    for (int i = 0; i < 50; i++)
        expect_ok(pebble_concurrent_thread(count, &at, sizeof at, NULL, NULL));
    counter_expect(&counted, 50);
}

static void test_thread_takes_no_timeout(void **state) {
    pebble_future *future = NULL;
    (void)state;
    expect_error(pebble_concurrent_thread(nothing, NULL, 0,
                                          CONCURRENT_OPTIONS(.timeout_ns = 1), &future),
                 PEBBLE_ERR_INVALID, "timeout_ns");
    assert_null(future);
}

static void count_callback(pebble_future *future, void *context) {
    (void)future;
    counter_add(context, 1);
}

static void test_callbacks(void **state) {
    static counter called;
    (void)state;
    pebble_future *one = process(nothing, NULL, 0, NULL);
    pebble_future *two = thread(nothing, NULL, 0, NULL);
    expect_ok(pebble_future_add_callback(one, count_callback, &called));
    expect_ok(pebble_future_add_callback(two, count_callback, &called));
    pebble_future_unref(one);
    pebble_future_unref(two);
    counter_expect(&called, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_process_of_its_own),
        supported_test(test_process_forks_the_program_as_it_is),
        supported_test(test_process_with_large_data),
        supported_test(test_process_name),
        supported_test(test_process_failure),
        supported_test(test_process_expires),
        supported_test(test_process_timeout),
        supported_test(test_process_cancel),
        supported_test(test_process_cancel_at_once),
        supported_test(test_process_without_a_future),
        supported_test(test_processes_run_at_once),
        supported_test(test_many_processes),
        supported_test(test_thread_of_its_own),
        supported_test(test_thread_name),
        supported_test(test_thread_failure),
        supported_test(test_thread_is_not_cancelled),
        supported_test(test_threads_run_at_once),
        supported_test(test_thread_without_a_future),
        supported_test(test_thread_takes_no_timeout),
        supported_test(test_callbacks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
