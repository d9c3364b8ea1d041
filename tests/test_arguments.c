/* Every public function with each of its arguments wrong: the error's code, and a message that
 * names function and argument; out-parameters are left as they were. */
#include <signal.h>
#include <string.h>

#include "support.h"

static pebble_pool *processes, *threads;
static pebble_future *ended;
static int numbers[2] = {1, 2};

static int other(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    return 0;
}

static void ignore_end(pebble_future *future, void *context) {
    (void)future, (void)context;
}

static void ignore_signal(int signal, void *context) {
    (void)signal, (void)context;
}

static void release(void *context) {
    (void)context;
    fail_msg("%s", "the input of a refused task was released");
}

#define expect_invalid(call, said) expect_error(call, PEBBLE_ERR_INVALID, said)

/* ---- Pools ---- */

static void expect_invalid_options(const pebble_pool_options *options, const char *said) {
    pebble_pool *pool = NULL;
    expect_invalid(pebble_process_pool_new(options, &pool), said);
    expect_invalid(pebble_process_pool_new(options, &pool), "pebble_process_pool_new: ");
    expect_invalid(pebble_thread_pool_new(options, &pool), said);
    expect_invalid(pebble_thread_pool_new(options, &pool), "pebble_thread_pool_new: ");
    assert_null(pool);
}

static void test_pool_options(void **state) {
    const char *no_command[] = {NULL};
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    (void)state;
    expect_invalid(pebble_process_pool_new(NULL, NULL), "pebble_process_pool_new: pool");
    expect_invalid(pebble_thread_pool_new(NULL, NULL), "pebble_thread_pool_new: pool");
    options.struct_size = 0;
    expect_invalid_options(&options, "struct_size");
    options.struct_size = sizeof options - 1; /* within a field */
    expect_invalid_options(&options, "struct_size");
    options.struct_size = 3;
    expect_invalid_options(&options, "struct_size");
    options.struct_size = SIZE_MAX;
    expect_invalid_options(&options, "struct_size");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.max_workers = -1), "max_workers");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.max_workers = PEBBLE_MAX_WORKERS + 1),
                           "max_workers");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.max_workers = INT32_MAX), "max_workers");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.max_workers = INT32_MIN), "max_workers");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.initializer_input_size = 1),
                           "initializer_input is NULL");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.initializer_input = numbers,
                                               .initializer_input_size = SIZE_MAX),
                           "initializer_input_size");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.initializer_timeout_ns = -1),
                           "initializer_timeout_ns");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.termination_grace_ns = -1),
                           "termination_grace_ns");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.start_method = (pebble_start_method)4),
                           "start_method");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.start_method = (pebble_start_method)-1),
                           "start_method");
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.worker_command = no_command),
                           "worker_command");
    const pebble_hooks no_size = {0};
    expect_invalid_options(PEBBLE_POOL_OPTIONS(.hooks = &no_size), "hooks");
}

static void test_process_options_of_a_thread_pool(void **state) {
    const char *command[] = {"command", NULL};
    pebble_pool *pool = NULL;
    (void)state;
    expect_invalid(pebble_thread_pool_new(
                       PEBBLE_POOL_OPTIONS(.start_method = PEBBLE_START_SPAWN), &pool),
                   "start_method");
    expect_invalid(
        pebble_thread_pool_new(PEBBLE_POOL_OPTIONS(.worker_command = command), &pool),
        "worker_command");
    expect_invalid(
        pebble_thread_pool_new(
            PEBBLE_POOL_OPTIONS(.worker_data = "x", .worker_data_size = 1), &pool),
        "worker_data");
    assert_null(pool);
}

/* A program that was built with an older, shorter or a newer, longer header. */
static void test_other_sizes_of_options(void **state) {
    struct {
        pebble_pool_options options;
        char more[64];
    } longer = {.options = {.struct_size = sizeof longer, .max_workers = 3}};
    pebble_pool_options shorter = {.struct_size = offsetof(pebble_pool_options, max_tasks),
                                   .max_workers = 2,
                                   .termination_grace_ns = -1};
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    (void)state;
    pebble_pool *pool = new_process_pool(&longer.options);
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.max_workers, 3);
    close_join_free(pool);
    pool = new_thread_pool(&shorter);
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.max_workers, 2);
    close_join_free(pool);
}

static void test_largest_pool(void **state) {
    (void)state;
    close_join_free(
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = PEBBLE_MAX_WORKERS)));
    close_join_free(
        new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = PEBBLE_MAX_WORKERS)));
}

static void test_pool_calls(void **state) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    size_t count = 77;
    (void)state;
    assert_false(pebble_pool_active(NULL));
    expect_invalid(pebble_pool_close(NULL), "pebble_pool_close: pool");
    expect_invalid(pebble_pool_stop(NULL), "pebble_pool_stop: pool");
    expect_invalid(pebble_pool_join(NULL, 0), "pebble_pool_join: pool");
    expect_invalid(pebble_pool_join(processes, -1), "pebble_pool_join: timeout_ns");
    expect_invalid(pebble_pool_join(threads, INT64_MIN), "pebble_pool_join: timeout_ns");
    expect_invalid(pebble_pool_get_info(NULL, &info), "pebble_pool_get_info: pool");
    expect_invalid(pebble_pool_get_info(processes, NULL), "pebble_pool_get_info: info");
    info.struct_size = 0;
    expect_invalid(pebble_pool_get_info(threads, &info), "struct_size");
    expect_invalid(pebble_pool_get_pids(NULL, NULL, 0, &count),
                   "pebble_pool_get_pids: pool");
    expect_invalid(pebble_pool_get_pids(processes, NULL, 1, &count),
                   "pebble_pool_get_pids: pids");
    expect_invalid(pebble_pool_get_pids(processes, NULL, 0, NULL),
                   "pebble_pool_get_pids: count");
    assert_int_equal(count, 77);
    pebble_pool_free(NULL);
}

/* ---- Scheduling ---- */

static void test_schedule(void **state) {
    pebble_future *future = NULL;
    pebble_pool *pools[] = {processes, threads};
    (void)state;
    expect_invalid(pebble_schedule(NULL, nothing, NULL, 0, 0, &future),
                   "pebble_schedule: pool");
    for (int i = 0; i < 2; i++) {
        expect_invalid(pebble_schedule(pools[i], NULL, NULL, 0, 0, &future),
                       "pebble_schedule: function");
        expect_invalid(pebble_schedule(pools[i], nothing, NULL, 1, 0, &future),
                       "pebble_schedule: input");
        expect_invalid(pebble_schedule(pools[i], nothing, numbers, SIZE_MAX, 0, &future),
                       "pebble_schedule: input_size");
        expect_invalid(pebble_schedule(pools[i], nothing, numbers,
                                       (size_t)PTRDIFF_MAX + 1, 0, &future),
                       "pebble_schedule: input_size");
        expect_invalid(pebble_schedule(pools[i], nothing, NULL, 0, -1, &future),
                       "pebble_schedule: timeout_ns");
        expect_invalid(pebble_schedule(pools[i], nothing, NULL, 0, INT64_MIN, &future),
                       "pebble_schedule: timeout_ns");
        if (!WITH_ADDRESS_SANITIZER && !WITH_THREAD_SANITIZER)
            expect_error(
                pebble_schedule(pools[i], nothing, numbers, PTRDIFF_MAX, 0, &future),
                PEBBLE_ERR_NO_MEMORY, "pebble_schedule");
    }
    expect_invalid(pebble_schedule(threads, nothing, NULL, 0, 1, &future),
                   "pebble_schedule: timeout_ns");
    assert_null(future);
}

static void test_schedule_task(void **state) {
    pebble_future *future = NULL;
    pebble_task_options task = PEBBLE_TASK_OPTIONS_INIT;
    (void)state;
    task.function = nothing;
    task.release_input = release;
    expect_invalid(pebble_schedule_task(NULL, &task, &future),
                   "pebble_schedule_task: pool");
    expect_invalid(pebble_schedule_task(processes, NULL, &future),
                   "pebble_schedule_task: options");
    task.struct_size = 1;
    expect_invalid(pebble_schedule_task(processes, &task, &future), "struct_size");
    task.struct_size = sizeof task;
    task.function = NULL;
    expect_invalid(pebble_schedule_task(processes, &task, &future), "function");
    task.function = nothing;
    task.input_size = 1;
    expect_invalid(pebble_schedule_task(processes, &task, &future), "input");
    task.input = numbers;
    task.input_size = SIZE_MAX;
    expect_invalid(pebble_schedule_task(threads, &task, &future), "input_size");
    task.input_size = 0;
    task.timeout_ns = -1;
    expect_invalid(pebble_schedule_task(processes, &task, &future), "timeout_ns");
    task.timeout_ns = 1;
    expect_invalid(pebble_schedule_task(threads, &task, &future), "timeout_ns");
    assert_null(future);
}

static void test_map(void **state) {
    pebble_map *map = NULL;
    pebble_pool *pools[] = {processes, threads};
    (void)state;
    expect_invalid(pebble_pool_map(NULL, nothing, numbers, 4, 2, 1, 0, &map),
                   "pebble_pool_map: pool");
    for (int i = 0; i < 2; i++) {
        expect_invalid(pebble_pool_map(pools[i], NULL, numbers, 4, 2, 1, 0, &map),
                       "pebble_pool_map: function");
        expect_invalid(pebble_pool_map(pools[i], nothing, NULL, 4, 2, 1, 0, &map),
                       "items");
        expect_invalid(
            pebble_pool_map(pools[i], nothing, numbers, SIZE_MAX / 2, 4, 1, 0, &map),
            "size");
        expect_invalid(
            pebble_pool_map(pools[i], nothing, numbers, 4, SIZE_MAX, 1, 0, &map),
            "count");
        expect_invalid(pebble_pool_map(pools[i], nothing, numbers, 4, 2, 1, -1, &map),
                       "timeout_ns");
        expect_invalid(pebble_pool_map(pools[i], nothing, numbers, 4, 2, 1, 0, NULL),
                       "map");
    }
    assert_null(map);
}

static void test_map_with(void **state) {
    pebble_map *map = NULL;
    pebble_bytes inputs[2] = {{numbers, 4}, {NULL, 1}};
    pebble_map_options options = PEBBLE_MAP_OPTIONS_INIT;
    (void)state;
    options.function = nothing;
    options.inputs = inputs;
    options.count = 2;
    expect_invalid(pebble_pool_map_with(NULL, &options, &map), "pool");
    expect_invalid(pebble_pool_map_with(processes, NULL, &map), "options");
    expect_invalid(pebble_pool_map_with(processes, &options, &map), "inputs[1]");
    inputs[1] = (pebble_bytes){numbers, SIZE_MAX};
    expect_invalid(pebble_pool_map_with(processes, &options, &map), "inputs[1]");
    inputs[1] = (pebble_bytes){numbers, 4};
    options.items = numbers;
    options.item_size = 4;
    expect_invalid(pebble_pool_map_with(processes, &options, &map), "inputs");
    options.items = NULL;
    options.item_size = 0;
    expect_invalid(pebble_pool_map_with(processes, &options, NULL), "map");
    options.timeout_ns = -1;
    expect_invalid(pebble_pool_map_with(processes, &options, &map), "timeout_ns");
    options.timeout_ns = 0;
    options.function = NULL;
    expect_invalid(pebble_pool_map_with(processes, &options, &map), "function");
    options.function = nothing;
    options.struct_size = 1;
    expect_invalid(pebble_pool_map_with(processes, &options, &map), "struct_size");
    assert_null(map);
}

static void test_map_calls(void **state) {
    pebble_map *map = NULL;
    (void)state;
    expect_ok(pebble_pool_map(threads, nothing, numbers, 4, 2, 1, 0, &map));
    expect_invalid(pebble_map_next(NULL, 0, NULL, NULL), "pebble_map_next: map");
    expect_invalid(pebble_map_next(map, -1, NULL, NULL), "pebble_map_next: timeout_ns");
    expect_invalid(pebble_map_wait(NULL, 0), "pebble_map_wait: map");
    expect_invalid(pebble_map_wait(map, -1), "pebble_map_wait: timeout_ns");
    assert_null(pebble_map_failure(NULL));
    pebble_map_done(NULL);
    assert_false(pebble_map_cancel(NULL));
    assert_null(pebble_map_ref(NULL));
    pebble_map_unref(NULL);
    expect_ok(pebble_map_next(map, DEADLINE_NS, NULL, NULL));
    expect_ok(pebble_map_next(map, DEADLINE_NS, NULL, NULL));
    expect_error(pebble_map_next(map, 0, NULL, NULL), PEBBLE_ERR_END, "pebble_map_next");
    pebble_map_unref(map);
}

static void test_concurrent(void **state) {
    pebble_future *future = NULL;
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    (void)state;
    expect_invalid(pebble_concurrent_process(NULL, NULL, 0, NULL, &future),
                   "pebble_concurrent_process: function");
    expect_invalid(pebble_concurrent_thread(NULL, NULL, 0, NULL, &future),
                   "pebble_concurrent_thread: function");
    expect_invalid(pebble_concurrent_process(nothing, NULL, 1, NULL, &future), "input");
    expect_invalid(pebble_concurrent_thread(nothing, NULL, 1, NULL, &future), "input");
    expect_invalid(pebble_concurrent_process(nothing, numbers, SIZE_MAX, NULL, &future),
                   "input_size");
    expect_invalid(pebble_concurrent_thread(nothing, numbers, SIZE_MAX, NULL, &future),
                   "input_size");
    options.timeout_ns = -1;
    expect_invalid(pebble_concurrent_process(nothing, NULL, 0, &options, &future),
                   "timeout_ns");
    expect_invalid(pebble_concurrent_thread(nothing, NULL, 0, &options, &future),
                   "timeout_ns");
    options.timeout_ns = 0;
    options.termination_grace_ns = -1;
    expect_invalid(pebble_concurrent_process(nothing, NULL, 0, &options, &future),
                   "termination_grace_ns");
    options.termination_grace_ns = 0;
    options.start_method = (pebble_start_method)9;
    expect_invalid(pebble_concurrent_process(nothing, NULL, 0, &options, &future),
                   "start_method");
    options.start_method = PEBBLE_START_SPAWN; /* ignored */
    expect_ok(pebble_concurrent_thread(nothing, NULL, 0, &options, &future));
    expect_end(future, PEBBLE_OK);
    future = NULL;
    expect_end(schedule(threads, nothing, NULL, 0, PEBBLE_FOREVER), PEBBLE_OK);
    options.start_method = PEBBLE_START_DEFAULT;
    options.struct_size = 2;
    expect_invalid(pebble_concurrent_process(nothing, NULL, 0, &options, &future),
                   "struct_size");
    expect_invalid(pebble_concurrent_thread(nothing, NULL, 0, &options, &future),
                   "struct_size");
    assert_null(future);
}

static void test_register_function(void **state) {
    char name[300];
    (void)state;
    memset(name, 'x', sizeof name);
    name[256] = '\0';
    expect_invalid(pebble_register_function(NULL, nothing),
                   "pebble_register_function: name");
    expect_invalid(pebble_register_function("", nothing),
                   "pebble_register_function: name");
    expect_invalid(pebble_register_function(name, nothing),
                   "pebble_register_function: name");
    expect_invalid(pebble_register_function("name", NULL),
                   "pebble_register_function: function");
    name[255] = '\0';
    expect_ok(pebble_register_function(name, nothing));
    expect_ok(pebble_register_function(name, nothing));
    expect_invalid(pebble_register_function(name, other),
                   "pebble_register_function: name");
    pebble_worker_main(); /* in no worker: nothing */
    pebble_worker_main_hooks(NULL);
}

/* ---- Futures ---- */

static void test_future_calls(void **state) {
    const void *data = NULL;
    size_t size = 77;
    int number = 0;
    (void)state;
    assert_int_equal(pebble_future_state(NULL), PEBBLE_CANCELLED);
    pebble_future_done(NULL);
    expect_invalid(pebble_future_wait(NULL, 0), "pebble_future_wait: future");
    expect_invalid(pebble_future_wait(ended, -1), "pebble_future_wait: timeout_ns");
    expect_invalid(pebble_future_result(NULL, 0, &data, &size),
                   "pebble_future_result: future");
    expect_invalid(pebble_future_result(ended, -1, &data, &size),
                   "pebble_future_result: timeout_ns");
    expect_invalid(pebble_future_copy_result(NULL, 0, &number, sizeof number),
                   "pebble_future_copy_result: future");
    expect_invalid(pebble_future_copy_result(ended, -1, &number, sizeof number),
                   "timeout_ns");
    expect_invalid(pebble_future_copy_result(ended, 0, NULL, sizeof number), "data");
    expect_invalid(pebble_future_copy_result(ended, 0, &number, sizeof number), "size");
    assert_null(pebble_future_failure(NULL));
    assert_int_equal(pebble_future_pid(NULL), 0);
    assert_false(pebble_future_cancel(NULL));
    expect_invalid(pebble_future_add_callback(NULL, ignore_end, NULL),
                   "pebble_future_add_callback: future");
    expect_invalid(pebble_future_add_callback(ended, NULL, NULL),
                   "pebble_future_add_callback: callback");
    assert_null(pebble_future_ref(NULL));
    pebble_future_unref(NULL);
    assert_null(data);
    assert_int_equal(size, 77);
    assert_int_equal(number, 0);
}

static void test_waits_for_futures(void **state) {
    pebble_future *futures[] = {ended, NULL};
    size_t index = 77;
    (void)state;
    expect_invalid(pebble_future_wait_any(NULL, 1, 0, &index),
                   "pebble_future_wait_any: futures");
    expect_invalid(pebble_future_wait_any(futures, 0, 0, &index),
                   "pebble_future_wait_any: count");
    expect_invalid(pebble_future_wait_any(futures, 2, 0, &index), "futures[1]");
    expect_invalid(pebble_future_wait_any(futures, 1, -1, &index), "timeout_ns");
    assert_int_equal(index, 77);
    expect_invalid(pebble_future_wait_all(NULL, 1, 0), "pebble_future_wait_all: futures");
    expect_invalid(pebble_future_wait_all(futures, 2, 0), "futures[1]");
    expect_invalid(pebble_future_wait_all(futures, 1, -1), "timeout_ns");
    expect_ok(pebble_future_wait_any(futures, 1, 0, NULL));
    expect_ok(pebble_future_wait_all(futures, 1, 0));
    expect_ok(pebble_future_wait_all(futures, 0, 0));
}

/* ---- In a task ---- */

static int misuse_task(pebble_task *task, const void *input, size_t size) {
    (void)input, (void)size;
    if (pebble_task_write(NULL, "x", 1) != PEBBLE_ERR_INVALID ||
        strstr(pebble_error_message(), "pebble_task_write: task") == NULL)
        return 1;
    if (pebble_task_write(task, NULL, 1) != PEBBLE_ERR_INVALID ||
        strstr(pebble_error_message(), "pebble_task_write: data") == NULL)
        return 2;
    if (pebble_task_write(task, NULL, 0) != PEBBLE_OK)
        return 3;
    if (pebble_task_failed(task) || pebble_task_failed(NULL))
        return 4;
    if (pebble_task_fail(NULL, 5, "%s", "nobody") == 0)
        return 5;
    return 0;
}

static void test_task_calls(void **state) {
    (void)state;
    expect_end(schedule(processes, misuse_task, NULL, 0, 0), PEBBLE_OK);
    expect_end(schedule(threads, misuse_task, NULL, 0, 0), PEBBLE_OK);
}

/* ---- The rest ---- */

static void test_errors(void **state) {
    (void)state;
    assert_string_equal(pebble_error_name(PEBBLE_OK), "PEBBLE_OK");
    assert_string_equal(pebble_error_name(PEBBLE_ERR_TASK_EXPIRED),
                        "PEBBLE_ERR_TASK_EXPIRED");
    assert_non_null(pebble_error_name((pebble_error)-1));
    assert_non_null(pebble_error_name((pebble_error)999));
    assert_non_null(pebble_error_text((pebble_error)-1));
    assert_string_equal(pebble_error_text(PEBBLE_ERR_TIMEOUT),
                        "the wait ended before what it waited for");
    assert_non_null(pebble_error_message());
    assert_string_equal(pebble_version(), PEBBLE_VERSION);
    assert_int_equal(pebble_version_number(), PEBBLE_VERSION_NUMBER);
}

/* In depth in test_sighandler, test_threads and test_queue. */
static void test_what_helps_beside_pools(void **state) {
    int usr1 = SIGUSR1, none = 0, kill_signal = SIGKILL;
    void *item = NULL;
    pebble_queue *queue = NULL;
    (void)state;
    expect_invalid(pebble_sighandler(NULL, 1, ignore_signal, NULL),
                   "pebble_sighandler: signals");
    expect_invalid(pebble_sighandler(&usr1, 0, ignore_signal, NULL),
                   "pebble_sighandler: count");
    expect_invalid(pebble_sighandler(&none, 1, ignore_signal, NULL), "signals[0]");
    expect_invalid(pebble_sighandler(&kill_signal, 1, ignore_signal, NULL), "signals[0]");
    expect_invalid(pebble_thread_start(NULL, NULL, NULL, NULL), "pebble_thread_start: ");
    expect_invalid(pebble_thread_join(NULL, 0), "pebble_thread_join: thread");
    expect_invalid(pebble_queue_new(0, NULL), "pebble_queue_new: queue");
    expect_ok(pebble_queue_new(0, &queue));
    expect_invalid(pebble_queue_put(NULL, NULL, 0), "pebble_queue_put: queue");
    expect_invalid(pebble_queue_put(queue, NULL, -1), "pebble_queue_put: timeout_ns");
    expect_invalid(pebble_queue_get(NULL, 0, &item), "pebble_queue_get: queue");
    expect_invalid(pebble_queue_get(queue, -1, &item), "pebble_queue_get: timeout_ns");
    expect_invalid(pebble_queue_get(queue, 0, NULL), "pebble_queue_get: item");
    pebble_queue_free(queue);
    pebble_queue_free(NULL);
    pebble_thread_unref(NULL);
}

static int make_pools(void **state) {
    (void)state;
    processes = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    threads = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    ended = schedule(threads, nothing, NULL, 0, 0);
    return (int)pebble_future_wait(ended, DEADLINE_NS);
}

static int free_pools(void **state) {
    (void)state;
    pebble_future_unref(ended);
    close_join_free(processes);
    close_join_free(threads);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_options),
        cmocka_unit_test(test_process_options_of_a_thread_pool),
        cmocka_unit_test(test_other_sizes_of_options),
        cmocka_unit_test(test_largest_pool),
        cmocka_unit_test(test_pool_calls),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_schedule_task),
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_map_with),
        cmocka_unit_test(test_map_calls),
        cmocka_unit_test(test_concurrent),
        cmocka_unit_test(test_register_function),
        cmocka_unit_test(test_future_calls),
        cmocka_unit_test(test_waits_for_futures),
        cmocka_unit_test(test_task_calls),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_what_helps_beside_pools),
    };
    return cmocka_run_group_tests(tests, make_pools, free_pools);
}
