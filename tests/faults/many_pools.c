/* Row 21: 300 pools one after another, many tiny ones (PEBBLE_TINY_POOLS), many tasks of which every tenth
 * crashes (PEBBLE_CRASHING_TASKS): memory, descriptors, threads and processes stay as they were. */
#include "support.h"

#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

enum {
    KIB = 1024,
    POOLS = SANITIZED ? 60 : 300,
    TINY_POOLS = SANITIZED ? 150 : 1000,
    CRASHING_TASKS = SANITIZED ? 1000 : 20000,
    WINDOW = 100,
};

/* ---- Tasks ---- */

static counter *met;

/* Two of them wait for each other: one in each worker. */
static int meet(pebble_task *task, const void *input, size_t input_size) {
    uint32_t both = (counter_add(met, 1) + 1) / 2 * 2;
    (void)task, (void)input, (void)input_size;
    return counter_wait(met, both) ? 0 : 1;
}

static int *volatile null_pointer;

__attribute__((no_sanitize("address", "undefined", "thread"))) static int crash(
    pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    *null_pointer = 1;
    return 0;
}

/* ---- What stays as it was ---- */

typedef struct usage {
    size_t allocated, memory, descriptors, threads, processes, channels;
} usage;

static usage usage_of(pid_t pid) {
    bool own = pid == getpid();
    return (usage){
        .allocated = own ? mallinfo2().uordblks : 0,
        .memory = process_memory(pid),
        .descriptors = process_descriptors(pid),
        .threads = process_threads(pid),
        .processes = process_children(pid, NULL, 0),
        .channels = own ? mapped_channels() : 0,
    };
}

/* What is no memory. Something of the last pool or worker may just be going. */
typedef struct comparison {
    pid_t pid;
    usage before;
} comparison;

static bool has_no_more(void *context) {
    comparison *with = context;
    usage now = usage_of(with->pid);
    return now.descriptors <= with->before.descriptors &&
           now.threads <= with->before.threads && now.channels <= with->before.channels &&
           now.processes <= with->before.processes;
}

static void expect_flat(const char *whose, pid_t pid, usage before) {
    comparison with = {pid, before};
    bool no_more = wait_until(has_no_more, &with);
    usage after = usage_of(pid);
    print_message(
        "%s: %+ld KiB allocated, %+ld KiB of memory, %zu descriptors (before: %zu), "
        "%zu threads (%zu), %zu processes (%zu), %zu channels (%zu)\n",
        whose, ((long)after.allocated - (long)before.allocated) / KIB,
        ((long)after.memory - (long)before.memory) / KIB, after.descriptors,
        before.descriptors, after.threads, before.threads, after.processes,
        before.processes, after.channels, before.channels);
    assert_true(no_more);
    if (SANITIZED) /* which keep what is freed for a while */
        return;
    assert_true(after.allocated <= before.allocated + 64 * KIB);
    assert_true(after.memory <= before.memory + 1024 * KIB);
}

/* ---- Pools ---- */

static void note_end(pebble_future *future, void *ends) {
    (void)future;
    counter_add(ends, 1);
}

/* All that a pool may have: workers, a spare, a callback, an end by force. */
static void use_pool(void) {
    pebble_future *futures[4];
    counter ends = {0};
    int number = 5;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    for (int i = 0; i < 4; i++)
        futures[i] = schedule(pool, i == 2 ? crash : square, &number, sizeof number, 0);
    expect_ok(pebble_future_add_callback(futures[3], note_end, &ends));
    for (int i = 0; i < 4; i++)
        expect_end(futures[i], i == 2 ? PEBBLE_ERR_TASK_EXPIRED : PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&ends), 1);
}

static void use_tiny_process_pool(void) {
    int number = 5;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 25);
    close_join_free(pool);
}

static void use_tiny_thread_pool(void) {
    int number = 5;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 25);
    close_join_free(pool);
}

static void check_pools(unsigned pools, void (*use)(void)) {
    for (int i = 0; i < 20; i++)
        use();
    usage before = usage_of(getpid());
    for (unsigned i = 0; i < pools; i++)
        use();
    expect_flat("the program", getpid(), before);
}

static void test_pools(void **state) {
    (void)state;
    check_pools(POOLS, use_pool);
}

static void test_tiny_process_pools(void **state) {
    (void)state;
    check_pools(environment_number("PEBBLE_TINY_POOLS", TINY_POOLS),
                use_tiny_process_pool);
}

static void test_tiny_thread_pools(void **state) {
    (void)state;
    check_pools(environment_number("PEBBLE_TINY_POOLS", 10 * TINY_POOLS),
                use_tiny_thread_pool);
}

/* ---- Tasks of which every tenth crashes ---- */

static void run_tasks(pebble_pool *pool, unsigned count) {
    pebble_future *futures[WINDOW];
    for (unsigned done = 0; done < count; done += WINDOW) {
        for (int n = 0; n < WINDOW; n++)
            futures[n] = schedule(pool, n % 10 == 9 ? crash : square, &n, sizeof n, 0);
        for (int n = 0; n < WINDOW; n++) {
            if (n % 10 == 9)
                expect_end(futures[n], PEBBLE_ERR_TASK_EXPIRED);
            else
                assert_int_equal(take_int(futures[n]), n * n);
        }
    }
}

/* After this both workers are there. */
static void meet_both(pebble_pool *pool) {
    pebble_future *first = schedule(pool, meet, NULL, 0, 0);
    pebble_future *second = schedule(pool, meet, NULL, 0, 0);
    expect_end(first, PEBBLE_OK);
    expect_end(second, PEBBLE_OK);
}

typedef struct settling {
    pid_t zygote;
    size_t descriptors; /* without the pool */
} settling;

/* Two workers and a spare are there, and no dead ones. The program has a channel of two mappings, a bell and
 * a process descriptor for each, and a socket and a process descriptor for the zygote. */
static bool has_settled(void *context) {
    settling *self = context;
    return process_children(self->zygote, NULL, 0) == 3 && mapped_channels() == 3 * 2 &&
           open_descriptors() == self->descriptors + 3 * 2 + 2;
}

static void test_crashing_tasks(void **state) {
    settling self = {.descriptors = open_descriptors()};
    (void)state;
    met = shared_memory(sizeof *met);
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2));
    meet_both(pool);
    run_tasks(pool, 20 * WINDOW);
    meet_both(pool);
    assert_int_equal(process_children(getpid(), &self.zygote, 1), 1);
    assert_true(wait_until(has_settled, &self));
    usage before = usage_of(getpid()), zygote_before = usage_of(self.zygote);
    run_tasks(pool, environment_number("PEBBLE_CRASHING_TASKS", CRASHING_TASKS));
    meet_both(pool);
    assert_true(wait_until(has_settled, &self));
    expect_flat("the program", getpid(), before);
    expect_flat("its zygote", self.zygote, zygote_before);
    close_join_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_pools),
        supported_test(test_tiny_process_pools),
        supported_test(test_tiny_thread_pools),
        supported_test(test_crashing_tasks),
    };
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("many_pools", tests, NULL, NULL);
}
