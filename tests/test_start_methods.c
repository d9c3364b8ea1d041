/* Pools whose processes are executed afresh: forkserver and spawn. This program is the one that
 * is executed; what it is to be then is its first argument. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

static const pebble_start_method methods[] = {PEBBLE_START_FORKSERVER, PEBBLE_START_SPAWN};
enum { METHODS = 2 };

#define EACH_METHOD(at) (int at = 0; at < METHODS; at++)

static int set_in_main; /* by the executed program's main before pebble_worker_main() */
static int changed;     /* by the program after its start */

/* ---- Tasks ---- */

static int increment(pebble_task *task, const void *input, size_t size) {
    int number = *(const int *)input + 1;
    (void)size;
    return (int)pebble_task_write(task, &number, sizeof number);
}

static int tell_changed(pebble_task *task, const void *input, size_t size) {
    int both[2] = {changed, set_in_main};
    (void)input, (void)size;
    return (int)pebble_task_write(task, both, sizeof both);
}

static int stay(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    for (;;)
        pause();
    return 0;
}

static int crash(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
    return 0;
}

/* Writes lines "number target" of the worker's descriptors. */
static int tell_descriptors(pebble_task *task, const void *input, size_t size) {
    char path[300], target[256], line[400];
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    (void)input, (void)size;
    if (directory == NULL)
        return 1;
    while ((entry = readdir(directory)) != NULL) {
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(directory))
            continue;
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        target[length > 0 ? length : 0] = '\0';
        int used = snprintf(line, sizeof line, "%s %s\n", entry->d_name, target);
        pebble_task_write(task, line, (size_t)used);
    }
    closedir(directory);
    return (int)pebble_task_write(task, "", 1);
}

static int tell_environment(pebble_task *task, const void *input, size_t size) {
    int engine = getenv("PEBBLE_INTERNAL_WORKER") != NULL ||
                 getenv("PEBBLE_INTERNAL_ZYGOTE") != NULL;
    (void)input, (void)size;
    return (int)pebble_task_write(task, &engine, sizeof engine);
}

static int tell_signals(pebble_task *task, const void *input, size_t size) {
    sigset_t blocked;
    int bad = 0;
    (void)input, (void)size;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    for (int number = 1; number < NSIG; number++)
        bad += sigismember(&blocked, number) == 1;
    return (int)pebble_task_write(task, &bad, sizeof bad);
}

static pid_t initialized_in;

static int initialize(const void *input, size_t size) {
    initialized_in = getpid();
    return size == 5 && memcmp(input, "bytes", 5) == 0 ? 0 : 1;
}

static int tell_initialized(pebble_task *task, const void *input, size_t size) {
    return initialized_in == getpid() ? tell_pid(task, input, size) : 1;
}

static int fail_at_start(const void *input, size_t size) {
    (void)input, (void)size;
    return 42;
}

/* ---- Code made at run time, which is in no module ---- */

static pebble_function make_code(void) {
#if defined(__x86_64__)
    static const unsigned char code[] = {0xb8, 7, 0, 0, 0, 0xc3}; /* return 7 */
#elif defined(__aarch64__)
    static const unsigned char code[] = {0xe0, 0, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6};
#else
    static const unsigned char code[] = {0};
    return NULL;
#endif
    void *memory =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    memcpy(memory, code, sizeof code);
    if (mprotect(memory, 4096, PROT_READ | PROT_EXEC) != 0)
        return NULL;
    __builtin___clear_cache(memory, (char *)memory + sizeof code);
    return (pebble_function)(uintptr_t)memory;
}

static pebble_function made_at_run_time;

static void register_functions(void) {
    made_at_run_time = make_code();
    if (made_at_run_time != NULL)
        pebble_register_function("return seven", made_at_run_time);
}

/* ---- Tests ---- */

static pebble_pool *pool_of(pebble_start_method method) {
    return new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .start_method = method));
}

static void test_static_functions(void **state) {
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            for (int i = 0; i < 50; i++)
                assert_int_equal(take_int(schedule(pool, increment, &i, sizeof i, 0)),
                                 i + 1);
            close_join_free(pool);
        }
}

static void test_many_tasks(void **state) {
    static pebble_future *futures[1000];
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            for (int i = 0; i < 1000; i++)
                futures[i] = schedule(pool, increment, &i, sizeof i, 0);
            for (int i = 0; i < 1000; i++)
                assert_int_equal(take_int(futures[i]), i + 1);
            close_join_free(pool);
        }
}

static void test_workers_are_executed_afresh(void **state) {
    int both[2];
    (void)state;
    changed = 5;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            pebble_future *future = schedule(pool, tell_changed, NULL, 0, 0);
            expect_ok(pebble_future_copy_result(future, DEADLINE_NS, both, sizeof both));
            pebble_future_unref(future);
            assert_int_equal(both[0], 0);
            assert_int_equal(both[1], 1);
            close_join_free(pool);
        }
}

static void test_registered_function(void **state) {
    (void)state;
    if (made_at_run_time == NULL)
        skip();
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            for (int i = 0; i < 3; i++) {
                pebble_future *future = schedule(pool, made_at_run_time, NULL, 0, 0);
                expect_error(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                             PEBBLE_ERR_TASK_FAILED, "7");
                assert_int_equal(pebble_future_failure(future)->code, 7);
                pebble_future_unref(future);
            }
            close_join_free(pool);
        }
}

static void test_unregistered_function_in_no_module(void **state) {
    (void)state;
    pebble_function unknown = make_code();
    if (unknown == NULL)
        skip();
    for
        EACH_METHOD(at) {
            pebble_future *future = NULL;
            pebble_pool *pool = pool_of(methods[at]);
            expect_error(pebble_schedule(pool, unknown, NULL, 0, 0, &future),
                         PEBBLE_ERR_INVALID, "function");
            assert_null(future);
            close_join_free(pool);
        }
}

static void test_function_of_a_module_loaded_late(void **state) {
    int number = 21;
    (void)state;
    late_module module = load_late_module();
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            pebble_future *twice = schedule(pool, module.twice, &number, sizeof number, 0);
            pebble_future *thrice =
                schedule(pool, module.thrice, &number, sizeof number, 0);
            expect_ok(pebble_future_wait(twice, DEADLINE_NS));
            expect_ok(pebble_future_wait(thrice, DEADLINE_NS));
            assert_int_equal(pebble_future_failure(twice)->code, 42);
            assert_int_equal(pebble_future_failure(thrice)->code, 63);
            pebble_future_unref(twice);
            pebble_future_unref(thrice);
            close_join_free(pool);
        }
}

static void test_initializer(void **state) {
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool =
                new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 3,
                                                     .start_method = methods[at],
                                                     .initializer = initialize,
                                                     .initializer_input = "bytes",
                                                     .initializer_input_size = 5));
            for (int i = 0; i < 10; i++)
                take_int(schedule(pool, tell_initialized, NULL, 0, 0));
            close_join_free(pool);
        }
}

static void test_initializer_fails(void **state) {
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = new_process_pool(
                PEBBLE_POOL_OPTIONS(.max_workers = 1, .start_method = methods[at],
                                    .initializer = fail_at_start));
            expect_end(schedule(pool, increment, &at, sizeof at, 0), PEBBLE_ERR_BROKEN);
            close_join_free(pool);
        }
}

static void test_name(void **state) {
    char name[32];
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = new_process_pool(
                PEBBLE_POOL_OPTIONS(.max_workers = 1, .start_method = methods[at],
                                    .name = "two words"));
            process_name(take_int(schedule(pool, tell_pid, NULL, 0, 0)), name);
            assert_memory_equal(name, "two words-", 10);
            close_join_free(pool);
        }
}

static void test_timeout_crash_and_cancel(void **state) {
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            expect_end(schedule(pool, stay, NULL, 0, PEBBLE_MILLISECONDS(50)),
                       PEBBLE_ERR_TASK_TIMEOUT);
            pebble_future *future = schedule(pool, crash, NULL, 0, 0);
            expect_ok(pebble_future_wait(future, DEADLINE_NS));
            assert_int_equal(pebble_future_failure(future)->signal, SIGSEGV);
            expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
            future = schedule(pool, stay, NULL, 0, 0);
            assert_true(pebble_future_cancel(future));
            expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
            future = schedule(pool, stay, NULL, 0, 0);
            stop_join_free(pool);
            expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
        }
}

static void test_zygote_killed(void **state) {
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            pid_t worker = take_int(schedule(pool, tell_pid, NULL, 0, 0));
            process_kill(process_parent(worker));
            expect_gone(worker);
            assert_int_not_equal(take_int(schedule(pool, tell_pid, NULL, 0, 0)), worker);
            close_join_free(pool);
        }
}

/* A worker has its standard streams and what is the engine's. */
static void test_no_descriptors_of_the_program(void **state) {
    int open_to_all[2];
    (void)state;
    assert_int_equal(pipe(open_to_all), 0); /* not closed on execution */
    for
        EACH_METHOD(at) {
            const void *data;
            pebble_pool *pool = pool_of(methods[at]);
            pebble_future *future = schedule(pool, tell_descriptors, NULL, 0, 0);
            expect_ok(pebble_future_result(future, DEADLINE_NS, &data, NULL));
            char *lines = strdup(data), *rest = lines, *line;
            while ((line = strtok_r(rest, "\n", &rest)) != NULL) {
                int fd = atoi(line);
                if (fd > 2 && strstr(line, "anon_inode:") == NULL &&
                    strstr(line, "pebble") == NULL)
                    fail_msg("the worker has %s", line);
            }
            free(lines);
            pebble_future_unref(future);
            close_join_free(pool);
        }
    close(open_to_all[0]);
    close(open_to_all[1]);
}

static void test_environment_and_signals(void **state) {
    sigset_t some;
    (void)state;
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigprocmask(SIG_BLOCK, &some, NULL);
    for
        EACH_METHOD(at) {
            pebble_pool *pool = pool_of(methods[at]);
            assert_int_equal(take_int(schedule(pool, tell_environment, NULL, 0, 0)), 0);
            assert_int_equal(take_int(schedule(pool, tell_signals, NULL, 0, 0)), 0);
            close_join_free(pool);
        }
    sigprocmask(SIG_UNBLOCK, &some, NULL);
}

static void test_concurrent_process(void **state) {
    (void)state;
    for
        EACH_METHOD(at) {
            const pebble_concurrent_options options = {.struct_size = sizeof options,
                                                       .start_method = methods[at]};
            pebble_future *future;
            expect_ok(
                pebble_concurrent_process(increment, &at, sizeof at, &options, &future));
            assert_int_equal(take_int(future), at + 1);
        }
}

static void test_worker_command(void **state) {
    const char *command[] = {"/proc/self/exe", "serve", NULL};
    (void)state;
    for
        EACH_METHOD(at) {
            pebble_pool *pool = new_process_pool(
                PEBBLE_POOL_OPTIONS(.max_workers = 1, .start_method = methods[at],
                                    .worker_command = command));
            assert_int_equal(take_int(schedule(pool, increment, &at, sizeof at, 0)),
                             at + 1);
            close_join_free(pool);
        }
}

/* ---- Commands that do not serve: broken, with a message that says what to look for ---- */

static void broken_by(const char *const *command, const char *said) {
    for
        EACH_METHOD(at) {
            pebble_pool *pool = new_process_pool(
                PEBBLE_POOL_OPTIONS(.max_workers = 2, .start_method = methods[at],
                                    .worker_command = command,
                                    .initializer_timeout_ns = PEBBLE_MILLISECONDS(200),
                                    .termination_grace_ns = PEBBLE_MILLISECONDS(50)));
            pebble_future *future = schedule(pool, increment, &at, sizeof at, 0);
            expect_error(pebble_future_result(future, 3 * DEADLINE_NS, NULL, NULL),
                         PEBBLE_ERR_BROKEN, said);
            pebble_future_unref(future);
            assert_false(pebble_pool_active(pool));
            expect_error(pebble_schedule(pool, increment, &at, sizeof at, 0, NULL),
                         PEBBLE_ERR_BROKEN, said);
            close_join_free(pool);
        }
}

static void test_forgotten_worker_main(void **state) {
    const char *command[] = {"/proc/self/exe", "forgets", NULL};
    (void)state;
    broken_by(command, "pebble_worker_main()");
}

static void test_forgotten_worker_main_without_pools(void **state) {
    const char *command[] = {"/proc/self/exe", "returns", NULL};
    (void)state;
    broken_by(command, "pebble_worker_main()");
}

static void test_forgotten_worker_main_and_it_hangs(void **state) {
    const char *command[] = {"/proc/self/exe", "hangs", NULL};
    (void)state;
    broken_by(command, "pebble_worker_main()");
}

static void test_command_that_does_not_exist(void **state) {
    const char *command[] = {"/nonexistent/command", NULL};
    (void)state;
    broken_by(command, "");
}

/* ---- What this program is executed as ---- */

int main(int argc, char **argv) {
    const char *role = argc > 1 ? argv[1] : "";
    if (strcmp(role, "forgets") == 0) {
        pebble_pool *pool;
        freopen("/dev/null", "w", stderr); /* where it says so, many times */
        return (int)pebble_process_pool_new(NULL, &pool);
    }
    if (strcmp(role, "returns") == 0)
        return 0;
    if (strcmp(role, "hangs") == 0) {
        for (;;)
            pause();
    }
    set_in_main = 1;
    register_functions();
    pebble_worker_main();
    const struct CMUnitTest tests[] = {
        supported_test(test_static_functions),
        supported_test(test_many_tasks),
        supported_test(test_workers_are_executed_afresh),
        supported_test(test_registered_function),
        supported_test(test_unregistered_function_in_no_module),
        supported_test(test_function_of_a_module_loaded_late),
        supported_test(test_initializer),
        supported_test(test_initializer_fails),
        supported_test(test_name),
        supported_test(test_timeout_crash_and_cancel),
        supported_test(test_zygote_killed),
        supported_test(test_no_descriptors_of_the_program),
        supported_test(test_environment_and_signals),
        supported_test(test_concurrent_process),
        supported_test(test_worker_command),
        supported_test(test_forgotten_worker_main),
        supported_test(test_forgotten_worker_main_without_pools),
        supported_test(test_forgotten_worker_main_and_it_hangs),
        supported_test(test_command_that_does_not_exist),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
