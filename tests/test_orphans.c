/* Whose an orphan is: a process that has become the zygote's child is waited for by the worker that left it. */
#include "support.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "process/tree.h"

enum {
    SLOWNESS = 100, /* mappings: some tens of milliseconds to exit */
    FOUND = WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER ? 1 : 3,
    ROUNDS_MAX = 20
};

typedef struct area {
    counter started, found;
    _Atomic pid_t orphan;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Tasks ---- */

static _Noreturn void stay(void) {
    counter_add(&shared->started, 1);
    for (;;)
        pause();
}

/* From now on the process takes long to exit: the kernel looks at each page of each mapping. */
static void exit_slowly(int mappings) {
    const size_t size = (size_t)16 << 20;
    int fd = memfd_create("test", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0)
        abort();
    for (int i = 0; i < mappings; i++) {
        if (mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0) == MAP_FAILED)
            abort();
    }
    close(fd);
}

/* With its parent's end it becomes the zygote's child, if its worker is exiting by then; it takes longer to
 * exit than that. */
static _Noreturn void be_orphan(pid_t parent, pid_t worker) {
    exit_slowly(2 * SLOWNESS);
    atomic_store(&shared->orphan, getpid());
    counter_add(&shared->started, 1);
    while (getppid() == parent)
        usleep(100);
    if (getppid() != worker)
        counter_add(&shared->found, 1);
    for (;;)
        pause();
}

/* It ends, with a child left behind, as soon as its worker exits. */
static _Noreturn void be_parent(pid_t worker) {
    pid_t self = getpid();
    bool exiting = false;
    if (fork() == 0)
        be_orphan(self, worker);
    while (tree_is_exiting(worker, &exiting) && !exiting)
        usleep(50);
    _exit(0);
}

/* Exits at SIGTERM. */
static int leave_orphan(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    pid_t self = getpid();
    signal(SIGTERM, SIG_IGN);
    if (fork() == 0)
        be_parent(self);
    signal(SIGTERM, SIG_DFL);
    exit_slowly(SLOWNESS);
    stay();
}

/* Exits when the grace is over, and its child a little later. */
static int leave_another(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    signal(SIGTERM, SIG_IGN);
    if (fork() == 0)
        exit_slowly(SLOWNESS / 10);
    stay();
}

/* Ends at SIGTERM, unlike its child. */
static int leave_stubborn(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    if (fork() == 0) {
        signal(SIGTERM, SIG_IGN);
        stay();
    }
    stay();
}

/* ---- In the program ---- */

/* The zygote looks for orphans when the grace is over, when the other worker has ended, and when that one's
 * child has; the orphan's own worker ends only then. */
static void test_orphan_of_an_exiting_worker(void **state) {
    (void)state;
    unsigned found = 0;
    for (int i = 0; i < ROUNDS_MAX && found < FOUND; i++) {
        memset(shared, 0, sizeof *shared);
        pebble_pool *pool = new_process_pool(
            PEBBLE_POOL_OPTIONS(.max_workers = 2,
                                .termination_grace_ns = PEBBLE_MILLISECONDS(5)));
        pebble_future *other = schedule(pool, leave_another, NULL, 0, 0);
        pebble_future *leaves = schedule(pool, leave_orphan, NULL, 0, 0);
        counter_expect(&shared->started, 4);
        assert_true(pebble_future_cancel(leaves));
        assert_true(pebble_future_cancel(other));
        expect_ok(pebble_future_wait(leaves, DEADLINE_NS));
        assert_false(process_lives(atomic_load(&shared->orphan)));
        found += counter_value(&shared->found);
        expect_end(leaves, PEBBLE_ERR_TASK_CANCELLED);
        expect_end(other, PEBBLE_ERR_TASK_CANCELLED);
        close_join_free(pool);
    }
    assert_int_equal(found, FOUND); /* by the zygote, while the worker was exiting */
}

/* While workers keep ending, each with an orphan in its grace, none waits for those that come after it. */
static void test_orphans_in_the_graces_of_many(void **state) {
    enum { MANY = 20 };
    pebble_future *futures[MANY];
    int count = 0;
    (void)state;
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(200)));
    do {
        assert_true(count < MANY);
        futures[count] = schedule(pool, leave_stubborn, NULL, 0, 0);
        counter_expect(&shared->started, 2 * (uint32_t)(count + 1));
        assert_true(pebble_future_cancel(futures[count]));
        count++;
    } while (pebble_future_wait(futures[0], PEBBLE_MILLISECONDS(100)) != PEBBLE_OK);
    for (int i = 0; i < count; i++)
        expect_end(futures[i], PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(orphan_of_an_exiting_worker),
        TEST(orphans_in_the_graces_of_many),
    };
    return cmocka_run_group_tests_name("orphans", tests, NULL, NULL);
}
