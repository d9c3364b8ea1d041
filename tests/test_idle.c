/* What is idle does nothing: no processor time and no context switches, in any of the processes. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct area {
    counter started, go;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks and pools ---- */

static int quick(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static int gate(pebble_task *task, const void *input, size_t input_size) {
    counter_add(&shared->started, 1);
    return counter_wait(&shared->go, 1) ? quick(task, input, input_size) : 99;
}

static int dies(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    raise(SIGKILL);
    return 0;
}

static pebble_pool *pool_of(bool threads, int workers) {
    const pebble_pool_options *options = PEBBLE_POOL_OPTIONS(.max_workers = workers);
    return threads ? new_thread_pool(options) : new_process_pool(options);
}

/* Large, so that it streams. */
static void expect_echo(pebble_pool *pool) {
    enum { SIZE = 1 << 20 };
    char *data = calloc(1, SIZE);
    assert_non_null(data);
    expect_end(schedule(pool, quick, data, SIZE, 0), PEBBLE_OK);
    free(data);
}

/* ---- Who does something ---- */

/* What a process has used: processor time, and how often its threads were switched. */
typedef struct usage {
    uint64_t switches, ticks;
} usage;

enum { TASKS_MAX = 64 };

typedef struct seen_thread {
    pid_t pid, thread;
    usage used;
} seen_thread;

typedef struct sample {
    seen_thread threads[TASKS_MAX];
    size_t count;
} sample;

static bool read_usage(pid_t pid, pid_t thread, usage *used) {
    char path[64], line[256];
    unsigned long long value, user, system;
    *used = (usage){0, 0};
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", (int)pid, (int)thread);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "voluntary_ctxt_switches: %llu", &value) == 1 ||
            sscanf(line, "nonvoluntary_ctxt_switches: %llu", &value) == 1)
            used->switches += value;
    }
    fclose(file);
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)pid, (int)thread);
    file = fopen(path, "re");
    if (file == NULL)
        return false;
    char *text = fgets(line, sizeof line, file) != NULL ? strrchr(line, ')') : NULL;
    fclose(file);
    if (text == NULL ||
        sscanf(text + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user,
               &system) != 2)
        return false;
    used->ticks = user + system;
    return true;
}

static size_t list_threads(pid_t pid, pid_t *threads, size_t capacity) {
    size_t count = 0;
    char command[64], line[32];
    snprintf(command, sizeof command, "ls /proc/%d/task", (int)pid);
    FILE *list = popen(command, "re");
    while (list != NULL && count < capacity && fgets(line, sizeof line, list) != NULL)
        threads[count++] = (pid_t)atoi(line);
    if (list != NULL)
        pclose(list);
    return count;
}

/* The threads of the pool's processes and of this one, but the one that looks. */
static void note_processes(sample *found) {
    pid_t pids[TASKS_MAX] = {getpid()}, threads[TASKS_MAX];
    size_t pid_count = 1;
    for (size_t next = 0; next < pid_count; next++) {
        size_t more =
            process_children(pids[next], pids + pid_count, TASKS_MAX - pid_count);
        pid_count += more < TASKS_MAX - pid_count ? more : TASKS_MAX - pid_count;
    }
    found->count = 0;
    for (size_t i = 0; i < pid_count; i++) {
        size_t thread_count = list_threads(pids[i], threads, TASKS_MAX);
        for (size_t j = 0; j < thread_count && found->count < TASKS_MAX; j++) {
            if (threads[j] != getpid())
                found->threads[found->count++] =
                    (seen_thread){.pid = pids[i], .thread = threads[j]};
        }
    }
}

static void use_processes(sample *found) {
    for (size_t i = 0; i < found->count; i++)
        read_usage(found->threads[i].pid, found->threads[i].thread,
                   &found->threads[i].used);
}

/* Whether nothing but this thread does anything for so long. */
static bool is_quiet(int64_t duration_ns, bool show) {
    sample before, after;
    char name[32];
    bool quiet = true;
    note_processes(&before);
    use_processes(&before);
    after = before;
    struct timespec duration = {.tv_sec = (time_t)(duration_ns / PEBBLE_SECONDS(1)),
                                .tv_nsec = (long)(duration_ns % PEBBLE_SECONDS(1))};
    nanosleep(&duration, NULL);
    use_processes(&after);
    for (size_t i = 0; i < before.count; i++) {
        const usage *first = &before.threads[i].used, *last = &after.threads[i].used;
        if (first->switches == last->switches && first->ticks == last->ticks)
            continue;
        quiet = false;
        process_name(before.threads[i].thread, name);
        if (show)
            print_message("%s: %d switches, %d ticks\n", name,
                          (int)(last->switches - first->switches),
                          (int)(last->ticks - first->ticks));
    }
    return quiet && before.count > 0;
}

static bool is_quiet_for_a_while(void *unused) {
    (void)unused;
    return is_quiet(PEBBLE_MILLISECONDS(200), false);
}

static void test_idle_pools_do_nothing(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER || WITH_ADDRESS_SANITIZER)
        skip(); /* sanitizers have threads of their own */
    pebble_pool *processes = pool_of(false, 2), *threads = pool_of(true, 2);
    for (int i = 0; i < 1000; i++) {
        expect_end(schedule(processes, quick, "x", 1, PEBBLE_MILLISECONDS(300)),
                   PEBBLE_OK);
        expect_end(schedule(threads, quick, "x", 1, 0), PEBBLE_OK);
    }
    expect_echo(processes);
    pebble_future *future = schedule(processes, dies, NULL, 0, 0);
    expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    expect_echo(processes);
    assert_true(wait_until(is_quiet_for_a_while, NULL)); /* the last timers have gone */
    assert_true(is_quiet(PEBBLE_MILLISECONDS(1200), true));
    expect_echo(processes);
    close_join_free(processes);
    close_join_free(threads);
}

/* While tasks run with timeouts, nobody but the tasks works. */
static void test_waiting_for_a_long_task_does_nothing(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER || WITH_ADDRESS_SANITIZER)
        skip();
    pebble_pool *pool = pool_of(false, 2);
    pebble_future *future = schedule(pool, gate, "x", 1, PEBBLE_SECONDS(60));
    counter_expect(&shared->started, 1);
    assert_true(wait_until(is_quiet_for_a_while, NULL));
    assert_true(is_quiet(PEBBLE_MILLISECONDS(1000), true));
    counter_add(&shared->go, 1);
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
}

/* A deadline that cannot come before another task has ended is nothing to look at again and again. */
static void test_deadlines_behind_a_long_task_do_nothing(void **state) {
    static const int64_t timeouts[] = {1, PEBBLE_MILLISECONDS(1), PEBBLE_MILLISECONDS(50)};
    pebble_future *behind[3];
    (void)state;
    if (WITH_THREAD_SANITIZER || WITH_ADDRESS_SANITIZER)
        skip();
    pebble_pool *pool = pool_of(false, 1);
    for (int i = 0; i < 500; i++) /* short ones: others are sent ahead */
        expect_end(schedule(pool, quick, "x", 1, 0), PEBBLE_OK);
    pebble_future *slow = schedule(pool, gate, "x", 1, PEBBLE_SECONDS(60));
    for (int i = 0; i < 3; i++)
        behind[i] = schedule(pool, quick, "x", 1, timeouts[i]);
    counter_expect(&shared->started, 1);
    assert_true(wait_until(is_quiet_for_a_while, NULL));
    assert_true(is_quiet(PEBBLE_MILLISECONDS(500), true));
    counter_add(&shared->go, 1);
    expect_end(slow, PEBBLE_OK);
    for (int i = 0; i < 3; i++) { /* the short times may be too short */
        assert_int_equal(pebble_future_wait(behind[i], DEADLINE_NS), PEBBLE_OK);
        pebble_future_unref(behind[i]);
    }
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(idle_pools_do_nothing),
        TEST(waiting_for_a_long_task_does_nothing),
        TEST(deadlines_behind_a_long_task_do_nothing),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("idle", tests, NULL, NULL);
}
