/* Row 19: out of memory, descriptors, threads and processes by real limits, in the program, its zygote and its
 * workers. (By injected faults: injected.c.) What must hold each time: a call succeeds or gives a documented
 * error, every future ends, join succeeds, nothing is left. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

enum { MIB = 1024 * 1024, NOBODY = 65534 };

/* ---- Tasks ---- */

static int leave(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    _exit(3);
}

static int tell_size(pebble_task *task, const void *input, size_t input_size) {
    int mib = (int)(input_size / MIB);
    (void)input;
    return (int)pebble_task_write(task, &mib, sizeof mib);
}

static int write_much(pebble_task *task, const void *input, size_t input_size) {
    static char piece[MIB];
    (void)input_size;
    for (int i = *(const int *)input; i > 0; i--) {
        if (pebble_task_write(task, piece, sizeof piece) != PEBBLE_OK)
            return 1;
    }
    return 0;
}

/* Takes memory until there is no more, and tells how much it was. */
static int take_all_memory(pebble_task *task, const void *input, size_t input_size) {
    char *blocks[64];
    int taken = 0;
    (void)input, (void)input_size;
    while (taken < 64 && (blocks[taken] = malloc(MIB)) != NULL)
        memset(blocks[taken++], 1, MIB);
    for (int i = 0; i < taken; i++)
        free(blocks[i]);
    return (int)pebble_task_write(task, &taken, sizeof taken);
}

/* ---- What is allowed ---- */

static bool is_refusal(pebble_error error) {
    return error == PEBBLE_ERR_NO_MEMORY || error == PEBBLE_ERR_SYSTEM ||
           error == PEBBLE_ERR_BROKEN;
}

typedef struct scenario {
    int more;    /* so many of it are left */
    bool broken; /* something was not as it must be */
} scenario;

static void complain(scenario *run, const char *what, pebble_error error) {
    print_error("with %d more: %s: %s (%s)\n", run->more, what, pebble_error_name(error),
                pebble_error_message());
    run->broken = true;
}

/* NULL if it was refused. */
static pebble_future *try_schedule(scenario *run, pebble_pool *pool,
                                   pebble_function function, int input) {
    pebble_future *future = NULL;
    pebble_error error = pebble_schedule(pool, function, &input, sizeof input, 0, &future);
    if (error != PEBBLE_OK && !is_refusal(error))
        complain(run, "schedule", error);
    return future;
}

/* It ended as it should, or for want of something. */
static void expect_one_of(scenario *run, const char *what, pebble_future *future,
                          pebble_error expected) {
    if (future == NULL)
        return;
    pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
    if (error != expected && !is_refusal(error))
        complain(run, what, error);
    else if (error != PEBBLE_OK && pebble_future_failure(future) == NULL)
        complain(run, "no failure", error);
    pebble_future_unref(future);
}

/* ---- Descriptors ---- */

static void limit(pid_t pid, __rlimit_resource_t resource, rlim_t value,
                  struct rlimit *before) {
    assert_int_equal(prlimit(pid, resource, NULL, before), 0);
    struct rlimit limited = {.rlim_cur = value, .rlim_max = before->rlim_max};
    assert_int_equal(prlimit(pid, resource, &limited, NULL), 0);
}

static void give_back(pid_t pid, __rlimit_resource_t resource,
                      const struct rlimit *before) {
    assert_int_equal(prlimit(pid, resource, before, NULL), 0);
}

static int lowest_free_descriptor(void) {
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

/* With room for so many more. */
static void check_descriptors(int more) {
    struct rlimit before;
    scenario run = {.more = more};
    pebble_pool *pool = NULL;
    pebble_future *first = NULL, *second = NULL;
    limit(0, RLIMIT_NOFILE, (rlim_t)(lowest_free_descriptor() + more), &before);
    pebble_error error =
        pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 2), &pool);
    if (error == PEBBLE_OK) {
        first = try_schedule(&run, pool, leave, 0);
        second = try_schedule(&run, pool, square, 5);
        if (first != NULL)
            pebble_future_wait(first, PEBBLE_MILLISECONDS(30));
    } else if (!is_refusal(error)) {
        complain(&run, "new", error);
    }
    give_back(0, RLIMIT_NOFILE, &before);
    expect_one_of(&run, "a task that exits", first, PEBBLE_ERR_TASK_EXPIRED);
    expect_one_of(&run, "a task behind it", second, PEBBLE_OK);
    assert_false(run.broken);
    if (pool != NULL)
        close_join_free(pool);
}

static void test_no_descriptors_in_the_program(void **state) {
    (void)state;
    for (int more = 0; more <= 16; more++)
        check_descriptors(more);
}

static pid_t zygote_of(pebble_pool *pool) {
    pid_t worker;
    size_t count = 0;
    expect_ok(pebble_pool_get_pids(pool, &worker, 1, &count));
    assert_int_equal(count, 1);
    return process_parent(worker);
}

/* The zygote cannot take the next worker's descriptors, for a while. */
static void test_no_descriptors_in_the_zygote(void **state) {
    struct rlimit before;
    int number = 6;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 36);
    pid_t zygote = zygote_of(pool);
    limit(zygote, RLIMIT_NOFILE, 3, &before);
    expect_end(schedule(pool, leave, NULL, 0, 0), PEBBLE_ERR_TASK_EXPIRED);
    pebble_future *waits = schedule(pool, square, &number, sizeof number, 0);
    assert_int_equal(pebble_future_wait(waits, PEBBLE_MILLISECONDS(100)),
                     PEBBLE_ERR_TIMEOUT);
    give_back(zygote, RLIMIT_NOFILE, &before);
    assert_int_equal(take_int(waits), 36);
    assert_int_equal(zygote_of(pool), zygote);
    close_join_free(pool);
}

/* ---- Processes and threads, which count for a user ---- */

/* So many processes and threads more may be made. */
static void limit_processes(rlim_t more) {
    struct rlimit before;
    rlim_t present = (rlim_t)process_threads(getpid());
    limit(0, RLIMIT_NPROC, present + more, &before);
}

/* For which they can be limited. It can still be seen what the program has. */
static bool become_nobody(void) {
    return setresuid(NOBODY, NOBODY, NOBODY) == 0 &&
           prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0;
}

/* The code of a program that was to do without something: 0 if nothing of its pool is left, whether or not it
 * came to be. */
static int leave_nothing(pebble_pool *pool, pebble_error error) {
    if (error != PEBBLE_OK && !is_refusal(error))
        return 3;
    if (error == PEBBLE_OK)
        close_join_free(pool);
    return support_teardown(NULL);
}

static int use_few_processes(void *context) {
    int more = *(int *)context;
    scenario run = {.more = more};
    pebble_pool *pool = NULL;
    pebble_future *futures[3];
    if (!become_nobody())
        return 2;
    limit_processes((rlim_t)more);
    pebble_error error =
        pebble_process_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 3), &pool);
    for (int i = 0; i < 3 && error == PEBBLE_OK; i++)
        futures[i] = try_schedule(&run, pool, i == 1 ? leave : square, i);
    for (int i = 0; i < 3 && error == PEBBLE_OK; i++)
        expect_one_of(&run, "a task", futures[i],
                      i == 1 ? PEBBLE_ERR_TASK_EXPIRED : PEBBLE_OK);
    return run.broken ? 4 : leave_nothing(pool, error);
}

static void test_few_processes(void **state) {
    (void)state;
    if (geteuid() != 0)
        skip(); /* nobody can become a user with no other processes */
    for (int more = 0; more < 6; more++)
        assert_int_equal(program_wait(program_start(use_few_processes, &more)), 0);
}

static void use_threads(pebble_pool *pool) {
    int number = 4, result;
    for (int i = 0; i < 20; i++) {
        pebble_future *future = NULL;
        result = 16;
        pebble_error error =
            pebble_schedule(pool, square, &number, sizeof number, 0, &future);
        if (error == PEBBLE_OK)
            error = pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result);
        assert_true(error == PEBBLE_OK || is_refusal(error));
        assert_int_equal(result, 16);
        pebble_future_unref(future);
    }
}

static int use_few_threads(void *context) {
    pebble_pool *pool = NULL;
    if (!become_nobody())
        return 2;
    limit_processes((rlim_t) * (int *)context);
    pebble_error error =
        pebble_thread_pool_new(PEBBLE_POOL_OPTIONS(.max_workers = 3), &pool);
    if (error == PEBBLE_OK)
        use_threads(pool);
    return leave_nothing(pool, error);
}

static void test_few_threads(void **state) {
    (void)state;
    if (geteuid() != 0)
        skip();
    for (int more = 0; more < 5; more++)
        assert_int_equal(program_wait(program_start(use_few_threads, &more)), 0);
}

static int replace_worker_later(void *unused) {
    struct rlimit before;
    int number = 8;
    (void)unused;
    if (!become_nobody())
        return 2;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 64);
    pid_t zygote = zygote_of(pool);
    limit(zygote, RLIMIT_NPROC, 1, &before);
    expect_end(schedule(pool, leave, NULL, 0, 0), PEBBLE_ERR_TASK_EXPIRED);
    pebble_future *waits = schedule(pool, square, &number, sizeof number, 0);
    assert_int_equal(pebble_future_wait(waits, PEBBLE_MILLISECONDS(100)),
                     PEBBLE_ERR_TIMEOUT);
    give_back(zygote, RLIMIT_NPROC, &before);
    assert_int_equal(take_int(waits), 64);
    return leave_nothing(pool, PEBBLE_OK);
}

static void test_no_processes_for_a_while(void **state) {
    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(program_wait(program_start(replace_worker_later, NULL)), 0);
}

/* ---- Memory ---- */

static size_t address_space(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file != NULL && fscanf(file, "%lu", &pages) != 1)
        pages = 0;
    if (file != NULL)
        fclose(file);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static int limit_memory(const void *input, size_t input_size) {
    struct rlimit limited;
    (void)input_size;
    if (getrlimit(RLIMIT_AS, &limited) != 0)
        return 1;
    limited.rlim_cur = address_space() + *(const size_t *)input;
    return setrlimit(RLIMIT_AS, &limited);
}

/* Too little for the input of one task, for what another takes; then each of them fails, and no other. */
static void test_little_memory_in_a_worker(void **state) {
    const size_t more = 24 * MIB;
    int number = 11;
    (void)state;
    if (SANITIZED)
        skip(); /* it needs an address space of its own */
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .initializer = limit_memory,
                                             .initializer_input = &more,
                                             .initializer_input_size = sizeof more));
    void *large = calloc(1, 50 * MIB);
    assert_non_null(large);
    assert_int_equal(take_int(schedule(pool, tell_size, large, 10 * MIB, 0)), 10);
    expect_end(schedule(pool, tell_size, large, 50 * MIB, 0), PEBBLE_ERR_TASK_FAILED);
    assert_int_equal(take_int(schedule(pool, tell_size, large, 10 * MIB, 0)), 10);
    assert_in_range(take_int(schedule(pool, take_all_memory, NULL, 0, 0)), 1, 24);
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 121);
    free(large);
    close_join_free(pool);
}

/* The program has no room for a result: that task's future says so. */
static int receive_too_much(void *unused) {
    const size_t more = 64 * MIB;
    int number = 13, little = 1, much = 300;
    (void)unused;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 169);
    if (limit_memory(&more, sizeof more) != 0)
        return 2;
    for (int i = 0; i < 3; i++) {
        expect_end(schedule(pool, write_much, &much, sizeof much, 0),
                   PEBBLE_ERR_NO_MEMORY);
        expect_end(schedule(pool, write_much, &little, sizeof little, 0), PEBBLE_OK);
        assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 169);
    }
    return leave_nothing(pool, PEBBLE_OK);
}

static void test_little_memory_in_the_program(void **state) {
    (void)state;
    if (SANITIZED)
        skip();
    assert_int_equal(program_wait(program_start(receive_too_much, NULL)), 0);
}

/* ---- A control group's memory ---- */

static char group[128];

static bool write_group(const char *file, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", group, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return written;
}

static bool make_group(void) {
    snprintf(group, sizeof group, "/sys/fs/cgroup/memory/pebble-test-%d", (int)getpid());
    if (mkdir(group, 0755) == 0) {
        if (write_group("memory.limit_in_bytes", "67108864"))
            return true;
        rmdir(group);
    }
    snprintf(group, sizeof group, "/sys/fs/cgroup/pebble-test-%d", (int)getpid());
    if (mkdir(group, 0755) == 0) {
        if (write_group("memory.max", "67108864"))
            return true;
        rmdir(group);
    }
    return false;
}

static bool group_is_removed(void *unused) {
    (void)unused;
    return rmdir(group) == 0;
}

static int take_all_of_group(pebble_task *task, const void *input, size_t input_size) {
    (void)input, (void)input_size;
    if (!write_group("cgroup.procs", "0"))
        return 1;
    for (int i = 0; i < 1000; i++) {
        char *block = malloc(MIB);
        if (block == NULL)
            return 2;
        memset(block, 1, MIB);
    }
    return (int)pebble_task_write(task, "", 0);
}

/* The system kills the worker. */
static void test_memory_of_a_control_group(void **state) {
    int number = 14;
    (void)state;
    if (SANITIZED || !make_group())
        skip();
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 2; i++) {
        pebble_future *future = schedule(pool, take_all_of_group, NULL, 0, 0);
        assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 196);
        expect_ok(pebble_future_wait(future, DEADLINE_NS));
        const pebble_failure *failure = pebble_future_failure(future);
        assert_non_null(failure);
        assert_int_equal(failure->signal, SIGKILL);
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    }
    close_join_free(pool);
    assert_true(wait_until(group_is_removed, NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_no_descriptors_in_the_program),
        supported_test(test_no_descriptors_in_the_zygote),
        supported_test(test_few_processes),
        supported_test(test_few_threads),
        supported_test(test_no_processes_for_a_while),
        supported_test(test_little_memory_in_a_worker),
        supported_test(test_little_memory_in_the_program),
        supported_test(test_memory_of_a_control_group),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("exhausted", tests, NULL, NULL);
}
