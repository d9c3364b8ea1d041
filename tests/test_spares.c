/* Spares: workers forked ahead. One takes the place of a worker that has died, whose process was
 * there before; only then it runs the initializer; and the pool makes another. Spares are the
 * zygote's children that the pool does not name as its workers.
 *
 * This program is also the one that is executed for forkserver and spawn. The initializer gets the
 * path of the memory that all share.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "platform/platform.h"
#include "support.h"

enum { PIDS_MAX = 256, WORKERS = 2, CHILDREN_MAX = 64 };

typedef struct shared_record {
    counter arrived, go;
    counter initialized;
    _Atomic pid_t pids[PIDS_MAX]; /* that have run the initializer */
    _Atomic uint32_t most_at_once;
} shared_record;

static shared_record *record; /* in the program and in initialized workers */

/* ---- The initializer and tasks ---- */

/* Notes the process, and how many of those noted live. */
static int initialize(const void *input, size_t size) {
    (void)size;
    record = shared_memory_at(input, sizeof *record);
    if (record == NULL)
        return 1;
    uint32_t count = counter_add(&record->initialized, 1), lives = 0;
    if (count > PIDS_MAX)
        return 2;
    atomic_store(&record->pids[count - 1], getpid());
    for (uint32_t i = 0; i < count; i++) {
        pid_t pid = atomic_load(&record->pids[i]);
        lives += pid != 0 && process_lives(pid);
    }
    uint32_t most = atomic_load(&record->most_at_once);
    while (lives > most &&
           !atomic_compare_exchange_weak(&record->most_at_once, &most, lives))
        ;
    return 0;
}

/* Ends when so many have arrived. */
static int meet(pebble_task *task, const void *input, size_t size) {
    counter_add(&record->arrived, 1);
    if (!counter_wait(&record->arrived, *(const uint32_t *)input))
        return 1;
    return tell_pid(task, input, size);
}

static int hang(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    counter_add(&record->arrived, 1);
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

static int leave(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)input, (void)size;
    _exit(0);
}

/* ---- Pools ---- */

static char record_path[MEMORY_PATH_SIZE];

static pebble_pool *pool_of(pebble_start_method method, int workers, uint64_t max_tasks) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .max_tasks = max_tasks,
                            .start_method = method, .initializer = initialize,
                            .initializer_input = record_path,
                            .initializer_input_size = sizeof record_path,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(50)));
}

/* The workers, each of which has run a task at the same time as the other. */
static void run_in_all(pebble_pool *pool, pid_t pids[WORKERS]) {
    pebble_future *futures[WORKERS];
    uint32_t together = counter_value(&record->arrived) + WORKERS;
    for (int i = 0; i < WORKERS; i++)
        futures[i] = schedule(pool, meet, &together, sizeof together, 0);
    for (int i = 0; i < WORKERS; i++)
        pids[i] = take_int(futures[i]);
    assert_int_not_equal(pids[0], pids[1]);
}

static bool is_among(pid_t pid, const pid_t *pids, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (pids[i] == pid)
            return true;
    }
    return false;
}

static uint32_t times_initialized(pid_t pid) {
    uint32_t count = 0;
    for (int i = 0; i < PIDS_MAX; i++)
        count += atomic_load(&record->pids[i]) == pid;
    return count;
}

typedef struct spare_search {
    pebble_pool *pool;
    pid_t zygote;
    size_t wanted, found;
    pid_t spares[CHILDREN_MAX];
} spare_search;

static bool has_spares(void *context) {
    spare_search *search = context;
    pid_t children[CHILDREN_MAX], workers[CHILDREN_MAX];
    size_t child_count = process_children(search->zygote, children, CHILDREN_MAX);
    size_t worker_count;
    expect_ok(pebble_pool_get_pids(search->pool, workers, CHILDREN_MAX, &worker_count));
    assert_true(child_count <= CHILDREN_MAX && worker_count <= CHILDREN_MAX);
    search->found = 0;
    for (size_t i = 0; i < child_count; i++) {
        if (process_lives(children[i]) && !is_among(children[i], workers, worker_count))
            search->spares[search->found++] = children[i];
    }
    return search->found == search->wanted;
}

/* Waits until there are so many, and returns the first. Workers must not end meanwhile. */
static pid_t wait_for_spares(pebble_pool *pool, pid_t zygote, size_t count) {
    spare_search search = {.pool = pool, .zygote = zygote, .wanted = count};
    assert_true(wait_until(has_spares, &search));
    for (size_t i = 0; i < count; i++)
        assert_int_equal(times_initialized(search.spares[i]), 0);
    return search.spares[0];
}

static const pebble_start_method methods[] = {PEBBLE_START_FORK, PEBBLE_START_FORKSERVER,
                                              PEBBLE_START_SPAWN};

static void with_each_method(void (*check)(pebble_start_method method)) {
    for (int i = 0; i < 3; i++) {
        memset(record, 0, sizeof *record);
        check(methods[i]);
    }
}

static int setup(void **state) {
    int result = support_setup(state);
    record = shared_memory_with_path(sizeof *record, record_path);
    return result;
}

/* ---- Tests ---- */

typedef enum death { CRASH, LEAVE, KILLED, TIMEOUT, CANCELLED, DEATHS } death;

/* One of the two workers dies of its task; returns its pid. */
static pid_t let_die(pebble_pool *pool, death how) {
    static const pebble_function functions[] = {crash, leave, hang, hang, hang};
    uint32_t arrived = counter_value(&record->arrived);
    int64_t timeout_ns = how == TIMEOUT ? PEBBLE_MILLISECONDS(20) : 0;
    pebble_future *future = schedule(pool, functions[how], NULL, 0, timeout_ns);
    if (how == KILLED || how == CANCELLED)
        counter_expect(&record->arrived, arrived + 1);
    if (how == KILLED)
        process_kill(pebble_future_pid(future));
    if (how == CANCELLED)
        assert_true(pebble_future_cancel(future));
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    pid_t pid = pebble_future_pid(future);
    expect_end(future, how == TIMEOUT     ? PEBBLE_ERR_TASK_TIMEOUT
                       : how == CANCELLED ? PEBBLE_ERR_TASK_CANCELLED
                                          : PEBBLE_ERR_TASK_EXPIRED);
    expect_gone(pid);
    return pid;
}

/* A task that waits for its own worker's initializer brings no other about. */
static int initialize_when_told(const void *input, size_t size) {
    int code = initialize(input, size);
    return code != 0 ? code : counter_wait(&record->go, 1) ? 0 : 3;
}

static void check_one_task_one_worker(pebble_start_method method) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 8, .start_method = method,
                            .initializer = initialize_when_told,
                            .initializer_input = record_path,
                            .initializer_input_size = strlen(record_path) + 1));
    pebble_future *future = schedule(pool, tell_pid, NULL, 0, 0);
    counter_expect(&record->initialized, 1);
    counter_add(&record->go, 1);
    pid_t pid = take_int(future);
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.workers, 1);
    close_join_free(pool);
    assert_int_equal(counter_value(&record->initialized), 1);
    assert_int_equal(times_initialized(pid), 1);
}

static void test_one_task_one_worker(void **state) {
    (void)state;
    with_each_method(check_one_task_one_worker);
}

static void check_replacement(pebble_start_method method) {
    pid_t before[WORKERS], now[WORKERS];
    pebble_pool *pool = pool_of(method, WORKERS, 0);
    run_in_all(pool, before);
    pid_t zygote = process_parent(before[0]);
    for (death how = 0; how < DEATHS; how++) {
        pid_t spare = wait_for_spares(pool, zygote, 1);
        assert_false(is_among(spare, before, WORKERS));
        pid_t dead = let_die(pool, how);
        assert_true(is_among(dead, before, WORKERS));
        run_in_all(pool, now);
        pid_t stayed = before[0] == dead ? before[1] : before[0];
        assert_true(is_among(spare, now, WORKERS));
        assert_true(is_among(stayed, now, WORKERS));
        assert_int_equal(times_initialized(spare), 1);
        assert_int_equal(counter_value(&record->initialized), WORKERS + (uint32_t)how + 1);
        memcpy(before, now, sizeof before);
    }
    pid_t last = wait_for_spares(pool, zygote, 1);
    close_join_free(pool);
    expect_gone(last);
    assert_int_equal(times_initialized(last), 0);
    assert_in_range(atomic_load(&record->most_at_once), 1, WORKERS);
}

static void test_spare_replaces_the_dead(void **state) {
    (void)state;
    with_each_method(check_replacement);
}

/* Both at once: one spare, one new. */
static void check_all_die(pebble_start_method method) {
    pid_t before[WORKERS], now[WORKERS];
    pebble_pool *pool = pool_of(method, WORKERS, 0);
    run_in_all(pool, before);
    pid_t zygote = process_parent(before[0]);
    for (uint32_t i = 0; i < 5; i++) {
        pid_t spare = wait_for_spares(pool, zygote, 1);
        process_kill(before[0]);
        process_kill(before[1]);
        expect_gone(before[0]);
        expect_gone(before[1]);
        run_in_all(pool, now);
        assert_true(is_among(spare, now, WORKERS));
        assert_false(is_among(now[0], before, WORKERS));
        assert_false(is_among(now[1], before, WORKERS));
        memcpy(before, now, sizeof before);
    }
    close_join_free(pool);
    assert_in_range(atomic_load(&record->most_at_once), 1, WORKERS);
}

static void test_all_die_at_once(void **state) {
    (void)state;
    with_each_method(check_all_die);
}

static bool has_one_death(void *pool) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    return info.worker_deaths == 1;
}

/* A spare does not count as a worker that serves; its death does count, and costs nothing. */
static void check_death_of_spare(pebble_start_method method) {
    pid_t before[WORKERS], now[WORKERS];
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    pebble_pool *pool = pool_of(method, WORKERS, 0);
    run_in_all(pool, before);
    pid_t zygote = process_parent(before[0]);
    pid_t first = wait_for_spares(pool, zygote, 1);
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.workers, WORKERS);
    assert_int_equal(info.worker_deaths, 0);
    process_kill(first);
    assert_true(wait_until(has_one_death, pool));
    run_in_all(pool, now); /* the pool makes another when its workers have shown to work */
    assert_true(is_among(now[0], before, WORKERS) && is_among(now[1], before, WORKERS));
    pid_t second = wait_for_spares(pool, zygote, 1);
    pid_t dead = let_die(pool, CRASH);
    run_in_all(pool, now);
    assert_true(is_among(second, now, WORKERS));
    assert_false(is_among(dead, now, WORKERS));
    close_join_free(pool);
    assert_int_equal(counter_value(&record->initialized), WORKERS + 1);
}

static void test_death_of_a_spare(void **state) {
    (void)state;
    with_each_method(check_death_of_spare);
}

/* Stop ends spares too. */
static void check_stop(pebble_start_method method) {
    pid_t pids[WORKERS];
    pebble_pool *pool = pool_of(method, WORKERS, 0);
    run_in_all(pool, pids);
    pid_t spare = wait_for_spares(pool, process_parent(pids[0]), 1);
    stop_join_free(pool);
    expect_gone(spare);
    assert_int_equal(times_initialized(spare), 0);
}

static void test_stop(void **state) {
    (void)state;
    with_each_method(check_stop);
}

/* Workers that are soon used up have a spare each, but four at most. Idle, they stay. */
static void check_count(int workers, size_t spares) {
    memset(record, 0, sizeof *record);
    pebble_pool *pool = pool_of(PEBBLE_START_FORK, workers, 5);
    pid_t pid = take_int(schedule(pool, tell_pid, NULL, 0, 0));
    pid_t zygote = process_parent(pid);
    take_int(schedule(pool, tell_pid, NULL, 0, 0)); /* the first alone brings none */
    wait_for_spares(pool, zygote, spares);
    close_join_free(pool);
    assert_in_range(counter_value(&record->initialized), 1, workers);
}

static void test_how_many(void **state) {
    (void)state;
    check_count(1, 1);
    check_count(3, 3);
    check_count(7, 4);
}

/* ---- Refused by the system ---- */

static bool has_been_refused(void *times) {
    return pebble_test_fault_calls() >= *(const unsigned *)times;
}

/* Nobody waits for them: it does not matter how often they are refused. One that is there is used. */
static void test_refused(void **state) {
    enum { MAX_TASKS = 3 };
    unsigned times = 11;
    (void)state;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .max_tasks = MAX_TASKS));
    pid_t pid = take_int(schedule(pool, tell_pid, NULL, 0, 0));
    assert_int_equal(take_int(schedule(pool, tell_pid, NULL, 0, 0)), pid);
    pid_t spare = wait_for_spares(pool, process_parent(pid), 1);
    pebble_test_fault(OS_FAULT_SHARED, 1, true);
    assert_int_equal(take_int(schedule(pool, tell_pid, NULL, 0, 0)), pid); /* its last */
    for (int i = 0; i < MAX_TASKS; i++)
        assert_int_equal(take_int(schedule(pool, tell_pid, NULL, 0, 0)), spare);
    assert_true(wait_until(has_been_refused, &times));
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_true(pebble_pool_active(pool));
    take_int(schedule(pool, tell_pid, NULL, 0, 0));
    close_join_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(one_task_one_worker),
        TEST(spare_replaces_the_dead),
        TEST(all_die_at_once),
        TEST(death_of_a_spare),
        TEST(stop),
        TEST(how_many),
        TEST(refused),
    };
    const struct rlimit no_core = {0, 0};
    pebble_worker_main();
    setrlimit(RLIMIT_CORE, &no_core);
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("spares", tests, NULL, NULL);
}
