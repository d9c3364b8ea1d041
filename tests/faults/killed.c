/* Row 2: workers killed while nothing runs, one of them and all; the zygote killed while it is idle, while
 * it forks, at any moment, and each of them at once. How soon a death is noticed. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/platform.h"

enum { WORKERS = 3, NOTED_MAX = 4096 };

/* How late a death may be noticed, in the middle of several: other programs run beside this one. */
#define PROMPT_NS                                                                        \
    PEBBLE_MILLISECONDS(WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER ? 2000 : 50)

typedef struct area {
    counter met, held, forks;
    _Atomic int hold_in,
        go; /* the moment of a fork that is held up, and whether it goes on */
    _Atomic int64_t died_ns;
    counter noted;
    _Atomic pid_t pids[NOTED_MAX]; /* of those that are held up, or of all workers */
} area;

static area *shared;
static char shared_path[MEMORY_PATH_SIZE]; /* for workers that are executed */

static int setup(void **state) {
    shared = shared_memory_with_path(sizeof *shared, shared_path);
    return support_setup(state);
}

/* ---- Tasks ---- */

static area *area_in_task(const void *path) {
    static area *mapped;
    if (mapped == NULL)
        mapped = shared_memory_at(path, sizeof *mapped);
    return mapped;
}

/* Ends when WORKERS of them have begun: one in each worker. */
static int meet(pebble_task *task, const void *input, size_t input_size) {
    area *at = area_in_task(input);
    uint32_t place = counter_add(&at->met, 1) - 1;
    int pid = getpid();
    (void)input_size;
    if (!counter_wait(&at->met, (place / WORKERS + 1) * WORKERS))
        return 1;
    return (int)pebble_task_write(task, &pid, sizeof pid);
}

/* Long enough for a kill to come meanwhile. */
static int square_later(pebble_task *task, const void *input, size_t input_size) {
    usleep(1000);
    return square(task, input, input_size);
}

/* ---- In the program ---- */

static const pebble_start_method methods[] = {PEBBLE_START_FORK, PEBBLE_START_FORKSERVER,
                                              PEBBLE_START_SPAWN};

static pebble_pool *pool_of(pebble_start_method method) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .start_method = method));
}

/* One task in each worker; their processes. */
static void meet_all(pebble_pool *pool, pid_t pids[WORKERS]) {
    pebble_future *futures[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        futures[i] = schedule(pool, meet, shared_path, sizeof shared_path, 0);
    for (int i = 0; i < WORKERS; i++)
        pids[i] = take_int(futures[i]);
}

static bool is_among(pid_t pid, const pid_t pids[WORKERS]) {
    return pid == pids[0] || pid == pids[1] || pid == pids[2];
}

static uint64_t deaths_of(pebble_pool *pool) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    expect_ok(pebble_pool_get_info(pool, &info));
    return info.worker_deaths;
}

/* As one that SIGKILL ended. */
static void expect_killed(pebble_future *future) {
    char said[64];
    pid_t pid = pebble_future_pid(future);
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    const pebble_failure *failure = pebble_future_failure(future);
    assert_non_null(failure);
    assert_int_equal(failure->kind, PEBBLE_ERR_TASK_EXPIRED);
    assert_true(failure->pid > 1 && (pid == 0 || failure->pid == pid));
    assert_int_equal(failure->signal, SIGKILL);
    assert_int_equal(failure->exit_code, -SIGKILL);
    assert_null(failure->backtrace);
    snprintf(said, sizeof said, "process %d died unexpectedly: signal 9 (SIGKILL)",
             (int)failure->pid);
    assert_string_equal(failure->message, said);
    pebble_future_unref(future);
}

static void note_process(void) {
    uint32_t place = counter_add(&shared->noted, 1) - 1;
    if (place < NOTED_MAX)
        atomic_store(&shared->pids[place], getpid());
}

/* Of those noted, from one on to another. How many there were. */
static uint32_t expect_noted_gone(uint32_t from, uint32_t to) {
    uint32_t count = 0;
    assert_true(to <= NOTED_MAX);
    for (; from < to; from++) {
        pid_t pid = atomic_load(&shared->pids[from]);
        if (pid == 0)
            continue; /* killed before it could */
        expect_gone(pid);
        count++;
    }
    return count;
}

static void with_each_method(void (*check)(pebble_start_method)) {
    for (int i = 0; i < 3; i++)
        check(methods[i]);
}

/* ---- Idle workers ---- */

static void check_one_idle_worker(pebble_start_method method) {
    pid_t before[WORKERS], after[WORKERS];
    pebble_pool *pool = pool_of(method);
    meet_all(pool, before);
    for (int round = 0; round < 5; round++) {
        process_kill(before[round % WORKERS]);
        expect_gone(before[round % WORKERS]);
        meet_all(pool, after);
        assert_false(is_among(before[round % WORKERS], after));
        for (int i = 0; i < WORKERS; i++) {
            if (i != round % WORKERS)
                assert_true(is_among(before[i], after)); /* the others are as they were */
        }
        for (int i = 0; i < WORKERS; i++)
            before[i] = after[i];
        assert_int_equal(deaths_of(pool), round + 1);
    }
    close_join_free(pool);
}

static void test_one_idle_worker(void **state) {
    (void)state;
    with_each_method(check_one_idle_worker);
}

static bool has_spare(void *zygote) {
    return process_children(*(pid_t *)zygote, NULL, 0) > WORKERS;
}

/* The spare too. */
static void check_all_idle_workers(pebble_start_method method) {
    enum { MOST = 16 };
    pid_t workers[WORKERS], all[MOST];
    pebble_pool *pool = pool_of(method);
    meet_all(pool, workers);
    for (int round = 0; round < 5; round++) {
        pid_t zygote = process_parent(workers[0]);
        assert_true(wait_until(has_spare, &zygote));
        size_t count = process_children(zygote, all, MOST);
        assert_in_range(count, WORKERS + 1, MOST);
        for (size_t i = 0; i < count; i++)
            process_kill(all[i]);
        for (size_t i = 0; i < count; i++)
            expect_gone(all[i]);
        meet_all(pool, workers);
        assert_int_equal(process_parent(workers[0]), zygote);
    }
    close_join_free(pool);
}

static void test_all_idle_workers(void **state) {
    (void)state;
    with_each_method(check_all_idle_workers);
}

/* Nobody waits for them, and nothing is to be done. */
static void test_all_idle_workers_then_close(void **state) {
    pid_t workers[WORKERS];
    (void)state;
    pebble_pool *pool = pool_of(PEBBLE_START_FORK);
    meet_all(pool, workers);
    for (int i = 0; i < WORKERS; i++)
        process_kill(workers[i]);
    close_join_free(pool);
}

/* ---- The zygote ---- */

static void check_idle_zygote(pebble_start_method method) {
    pid_t before[WORKERS], after[WORKERS];
    pebble_pool *pool = pool_of(method);
    meet_all(pool, before);
    for (int round = 0; round < 6;
         round++) { /* more than a pool bears without any task's end */
        process_kill(process_parent(before[0]));
        for (int i = 0; i < WORKERS; i++)
            expect_gone(before[i]);
        meet_all(pool, after);
        for (int i = 0; i < WORKERS; i++) {
            assert_false(is_among(after[i], before));
            before[i] = after[i];
        }
    }
    close_join_free(pool);
}

static void test_idle_zygote(void **state) {
    (void)state;
    with_each_method(check_idle_zygote);
}

static int stay_in_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    counter_add(&area_in_task(input)->met, 1);
    for (;;)
        pause();
    return 0;
}

/* More often than a pool bears that ends by itself, and nobody can tell how it ended. */
static void test_zygote_of_a_program_that_ignores_sigchld(void **state) {
    int number = 12;
    (void)state;
    signal(SIGCHLD, SIG_IGN);
    pebble_pool *pool = pool_of(PEBBLE_START_FORK);
    for (uint32_t round = 1; round <= 8; round++) {
        pebble_future *future =
            schedule(pool, stay_in_task, shared_path, sizeof shared_path, 0);
        counter_expect(&shared->met, round);
        process_kill(process_parent(pebble_future_pid(future)));
        expect_killed(future);
    }
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 144);
    close_join_free(pool);
    signal(SIGCHLD, SIG_DFL);
}

static bool none_is_there(void *pids) {
    for (int i = 0; i < WORKERS; i++) {
        if (process_state(((const pid_t *)pids)[i]) != 0)
            return false;
    }
    return true;
}

/* As process 1 does: it waits for the workers that the zygote left. (Those of which it was not told are for
 * the program to wait for, as all that comes to it.) */
static void test_zygote_of_a_program_that_adopts(void **state) {
    pid_t workers[WORKERS];
    (void)state;
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    pebble_pool *pool = pool_of(PEBBLE_START_FORK);
    for (int round = 0; round < 3; round++) {
        meet_all(pool, workers);
        process_kill(process_parent(workers[0]));
        assert_true(wait_until(none_is_there, workers)); /* no zombie either */
    }
    close_join_free(pool);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
}

/* ---- The zygote while it forks ---- */

enum { BEFORE_FORK = 1, AFTER_FORK_PARENT, AFTER_FORK_CHILD };

/* From the second worker's fork on, until it is killed. */
static void hold_up(void) {
    if (counter_value(&shared->forks) < 2 || atomic_load(&shared->go) != 0)
        return;
    note_process();
    counter_add(&shared->held, 1);
    for (;;)
        pause();
}

static void before_fork(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind != PEBBLE_FORK_WORKER)
        return;
    counter_add(&shared->forks, 1);
    if (atomic_load(&shared->hold_in) == BEFORE_FORK)
        hold_up();
}

static void after_fork_parent(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind == PEBBLE_FORK_WORKER && atomic_load(&shared->hold_in) == AFTER_FORK_PARENT)
        hold_up();
}

/* A worker whose zygote is held up must not have begun a task when that is killed. */
static void after_fork_child(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind == PEBBLE_FORK_WORKER && atomic_load(&shared->hold_in) != BEFORE_FORK)
        hold_up();
}

/* What runs expires, what waited for the new worker goes to the next zygote's, and who was held up is gone. */
static void check_zygote_that_forks(int moment) {
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .before_fork = before_fork,
                                       .after_fork_parent = after_fork_parent,
                                       .after_fork_child = after_fork_child};
    pebble_future *waiting[WORKERS];
    int number = 12;
    atomic_store(&shared->hold_in, moment);
    atomic_store(&shared->go, 0);
    shared->forks.value = shared->held.value = shared->met.value = 0;
    uint32_t held = moment == AFTER_FORK_PARENT ? 2 : 1;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .hooks = &hooks));
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 144);
    pebble_future *running = schedule(pool, meet, shared_path, sizeof shared_path, 0);
    counter_expect(&shared->met, 1);
    for (int i = 0; i < WORKERS; i++)
        waiting[i] = schedule(pool, square, &number, sizeof number, 0);
    counter_expect(&shared->held, held);
    atomic_store(&shared->go, 1); /* those who come next */
    pid_t zygote = process_parent(pebble_future_pid(running));
    process_kill(zygote);
    expect_killed(running);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(take_int(waiting[i]), 144);
    expect_gone(zygote);
    assert_true(expect_noted_gone(0, counter_value(&shared->noted)) >= held);
    assert_int_equal(take_int(schedule(pool, square, &number, sizeof number, 0)), 144);
    close_join_free(pool);
}

static void test_zygote_before_a_fork(void **state) {
    (void)state;
    check_zygote_that_forks(BEFORE_FORK);
}

static void test_zygote_after_a_fork(void **state) {
    (void)state;
    check_zygote_that_forks(AFTER_FORK_PARENT);
}

static void test_zygote_of_a_worker_that_starts(void **state) {
    (void)state;
    check_zygote_that_forks(AFTER_FORK_CHILD);
}

/* ---- At any moment ---- */

static void note_worker(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind == PEBBLE_FORK_WORKER)
        note_process();
}

/* The one that lives: the last one killed may still have to be waited for. 0: there is none. */
static pid_t living_zygote(void) {
    pid_t pids[4];
    size_t count = process_children(getpid(), pids, 4);
    for (size_t i = 0; i < count && i < 4; i++) {
        if (process_lives(pids[i]))
            return pids[i];
    }
    return 0;
}

enum { TASKS = 20 };

/* Each has the right result, or was killed. How many were. */
static int count_killed(pebble_future *futures[TASKS]) {
    int killed = 0;
    for (int n = 0; n < TASKS; n++) {
        expect_ok(pebble_future_wait(futures[n], DEADLINE_NS));
        if (pebble_future_failure(futures[n]) == NULL) {
            assert_int_equal(take_int(futures[n]), n * n);
            continue;
        }
        expect_killed(futures[n]);
        killed++;
    }
    return killed;
}

/* Its workers are always new: it forks nearly all the time. */
static void test_zygote_that_forks_at_any_moment(void **state) {
    enum { ROUNDS = 40 };
    static const pebble_hooks hooks = {.struct_size = sizeof hooks,
                                       .after_fork_child = note_worker};
    unsigned seed = 3;
    uint32_t before = 0;
    int expired = 0;
    (void)state;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .max_tasks = 1, .hooks = &hooks));
    for (int round = 0; round < ROUNDS; round++) {
        pebble_future *futures[TASKS];
        for (int n = 0; n < TASKS; n++)
            futures[n] = schedule(pool, square_later, &n, sizeof n, 0);
        pebble_future_wait(futures[0],
                           DEADLINE_NS); /* one has ended: no zygote is to blame */
        usleep((unsigned)rand_r(&seed) % 5000);
        uint32_t noted = counter_value(&shared->noted);
        process_kill(living_zygote());
        int lost = count_killed(futures);
        assert_in_range(lost, 0, WORKERS);
        expired += lost;
        assert_true(expect_noted_gone(before, noted) > 0);
        before = noted;
    }
    print_message("%d of %d tasks expired\n", expired, ROUNDS * TASKS);
    assert_true(expired > 0);
    close_join_free(pool);
    expect_noted_gone(before, counter_value(&shared->noted));
}

/* ---- Given up ---- */

static void die_at_once(void *context, pebble_fork_kind kind) {
    if (kind == *(const pebble_fork_kind *)context) {
        counter_add(&shared->forks, 1);
        raise(SIGKILL);
    }
}

/* As somebody does that kills each of them before it serves: no storm of processes for ever. */
static void check_given_up(pebble_fork_kind kind, uint32_t after, const char *said) {
    const pebble_hooks hooks = {
        .struct_size = sizeof hooks, .after_fork_child = die_at_once, .context = &kind};
    pebble_future *futures[WORKERS];
    shared->forks.value = 0;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .hooks = &hooks));
    for (int i = 0; i < WORKERS; i++)
        futures[i] = schedule(pool, nothing, NULL, 0, 0);
    for (int i = 0; i < WORKERS; i++) {
        expect_ok(pebble_future_wait(futures[i], DEADLINE_NS));
        assert_non_null(strstr(pebble_future_failure(futures[i])->message, said));
        expect_end(futures[i], PEBBLE_ERR_BROKEN);
    }
    assert_in_range(counter_value(&shared->forks), after, after + 2 * WORKERS);
    pebble_future *refused = NULL;
    assert_int_equal(pebble_schedule(pool, nothing, NULL, 0, 0, &refused),
                     PEBBLE_ERR_BROKEN);
    close_join_free(pool);
}

static void test_given_up_after_thirty_workers(void **state) {
    (void)state;
    check_given_up(PEBBLE_FORK_WORKER, 30, "ended before it served");
}

static void test_given_up_after_five_hundred_zygotes(void **state) {
    (void)state;
    check_given_up(PEBBLE_FORK_ZYGOTE, 500, "ended by signal 9");
}

/* ---- Promptly ---- */

static int die(pebble_task *task, const void *input, size_t input_size) {
    int how = *(const int *)input;
    (void)task, (void)input_size;
    atomic_store(&shared->died_ns, os_now_ns());
    if (how > 0)
        raise(how);
    _exit(-how);
}

/* From the death of the task's process to the end of its future. */
static void check_prompt_end(int how) {
    enum { TIMES = 9 };
    int64_t late_ns[TIMES];
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    for (int i = 0; i < TIMES; i++) {
        expect_end(schedule(pool, die, &how, sizeof how, 0), PEBBLE_ERR_TASK_EXPIRED);
        late_ns[i] = os_now_ns() - atomic_load(&shared->died_ns);
    }
    close_join_free(pool);
    qsort(late_ns, TIMES, sizeof late_ns[0], compare_ns);
    print_message("%s %d: %.1f ms after its death, at most %.1f\n",
                  how > 0 ? "signal" : "exit", how > 0 ? how : -how,
                  (double)late_ns[TIMES / 2] / 1e6, (double)late_ns[TIMES - 1] / 1e6);
    assert_in_range(late_ns[TIMES / 2], 0, PROMPT_NS);
}

static void test_ends_are_prompt(void **state) {
    static const int ways[] = {0, -3, SIGKILL, SIGSEGV, SIGABRT};
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        check_prompt_end(ways[i]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(one_idle_worker),
        TEST(all_idle_workers),
        TEST(all_idle_workers_then_close),
        TEST(idle_zygote),
        TEST(zygote_of_a_program_that_ignores_sigchld),
        TEST(zygote_of_a_program_that_adopts),
        TEST(zygote_before_a_fork),
        TEST(zygote_after_a_fork),
        TEST(zygote_of_a_worker_that_starts),
        TEST(zygote_that_forks_at_any_moment),
        TEST(given_up_after_thirty_workers),
        TEST(given_up_after_five_hundred_zygotes),
        TEST(ends_are_prompt),
    };
    pebble_worker_main();
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("killed", tests, NULL, NULL);
}
