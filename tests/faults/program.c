/* Row 10: the program ends, by SIGKILL, SIGTERM or Ctrl-C, with its workers busy or idle, and with the thread
 * that made the pool there or not. Nothing of it is left a second later.
 *
 * This process adopts what the program leaves behind: when it has no children any more, nothing is. */
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)
#define SOON_NS PEBBLE_SECONDS(SANITIZED ? 5 : 1)

enum { WORKERS = 2, MOMENTS = SANITIZED ? 10 : 30 };

typedef struct area {
    counter met, started, ready, stops;
} area;

static area *shared;
static char shared_path[MEMORY_PATH_SIZE]; /* for workers that are executed */

static int setup(void **state) {
    shared = shared_memory_with_path(sizeof *shared, shared_path);
    int result = support_setup(state);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    return result;
}

/* ---- Tasks ---- */

static area *area_in_task(const void *path) {
    static area *mapped;
    if (mapped == NULL)
        mapped = shared_memory_at(path, sizeof *mapped);
    return mapped;
}

/* Ends when both have begun: one in each worker. */
static int meet(pebble_task *task, const void *input, size_t input_size) {
    area *at = area_in_task(input);
    (void)task, (void)input_size;
    counter_add(&at->met, 1);
    return counter_wait(&at->met, WORKERS) ? 0 : 1;
}

/* Stays with a child, and neither ends for a SIGTERM. */
static int stay(pebble_task *task, const void *input, size_t input_size) {
    area *at = area_in_task(input);
    (void)task, (void)input_size;
    signal(SIGTERM, SIG_IGN);
    fork();
    counter_add(&at->started, 1);
    for (;;)
        pause();
    return 0;
}

static int work(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    usleep(500);
    return 0;
}

/* ---- The program ---- */

typedef enum maker { MAIN_THREAD, THREAD_THAT_ENDS, MAIN_THREAD_THAT_ENDS } maker;

typedef struct program {
    pebble_start_method method;
    bool busy;
    maker maker;
    uint32_t interrupts; /* that it is to handle */
    pebble_pool *pool;
    pebble_future *futures[WORKERS];
} program;

static void *make_pool(void *context) {
    program *self = context;
    self->pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .start_method = self->method,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(200)));
    for (int i = 0; i < WORKERS; i++)
        self->futures[i] = schedule(self->pool, meet, shared_path, sizeof shared_path, 0);
    for (int i = 0; i < WORKERS; i++)
        expect_end(self->futures[i], PEBBLE_OK);
    for (int i = 0; i < WORKERS && self->busy; i++)
        self->futures[i] = schedule(self->pool, stay, shared_path, sizeof shared_path, 0);
    if (self->busy)
        counter_expect(&shared->started, 2 * WORKERS);
    return NULL;
}

static void *say_ready(void *unused) {
    counter_add(&shared->ready, 1);
    for (;;)
        pause();
    return unused;
}

static int run_program(void *context) {
    program *self = context;
    pthread_t thread;
    setpgid(0, 0);
    if (self->maker != THREAD_THAT_ENDS)
        make_pool(self);
    else if (pthread_create(&thread, NULL, make_pool, self) != 0 ||
             pthread_join(thread, NULL) != 0)
        return 1;
    if (self->maker == MAIN_THREAD_THAT_ENDS) {
        if (pthread_create(&thread, NULL, say_ready, NULL) != 0)
            return 1;
        pthread_exit(NULL);
    }
    say_ready(NULL);
    return 1;
}

/* ---- Its end ---- */

static void expect_nothing_left(int64_t since_ns) {
    int status;
    for (;;) {
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0 && errno == ECHILD)
            return;
        if (pid == 0)
            usleep(500);
        assert_true(os_now_ns() - since_ns < SOON_NS);
    }
}

static pid_t start(program *self) {
    shared->met.value = shared->started.value = shared->ready.value = 0;
    pid_t pid = program_start(run_program, self);
    counter_expect(&shared->ready, 1);
    return pid;
}

static void check_end(program self, int signal, bool group) {
    pid_t pid = start(&self);
    int64_t before_ns = os_now_ns();
    assert_int_equal(kill(group ? -pid : pid, signal), 0);
    assert_int_equal(program_wait(pid), -signal);
    expect_nothing_left(before_ns);
}

static void check_every_way(maker made_by) {
    static const pebble_start_method methods[] = {
        PEBBLE_START_FORK, PEBBLE_START_FORKSERVER, PEBBLE_START_SPAWN};
    for (int i = 0; i < 3; i++) {
        for (int busy = 0; busy < 2; busy++)
            check_end((program){.method = methods[i], .busy = busy != 0, .maker = made_by},
                      SIGKILL, false);
    }
}

static void test_killed(void **state) {
    (void)state;
    check_every_way(MAIN_THREAD);
}

static void test_killed_without_the_thread_that_made_the_pool(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it does not know the threads of a process that was forked from one with threads */
    check_every_way(THREAD_THAT_ENDS);
}

static void test_killed_without_its_main_thread(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it does not know the threads of a process that was forked from one with threads */
    check_every_way(MAIN_THREAD_THAT_ENDS);
}

static void test_terminated(void **state) {
    (void)state;
    check_end((program){.busy = true}, SIGTERM, false);
    check_end((program){.busy = false}, SIGTERM, false);
}

/* The terminal's SIGINT is everybody's. */
static void test_interrupted(void **state) {
    (void)state;
    check_end((program){.busy = true}, SIGINT, true);
    check_end((program){.busy = false}, SIGINT, true);
}

/* ---- A program that handles Ctrl-C ---- */

static void stop_pool(int signal, void *context) {
    (void)signal;
    pebble_pool_stop(context);
    counter_add(&shared->stops, 1);
}

static int run_until_stopped(void *context) {
    program *self = context;
    int interrupt = SIGINT;
    setpgid(0, 0);
    make_pool(self);
    expect_ok(pebble_sighandler(&interrupt, 1, stop_pool, self->pool));
    counter_add(&shared->ready, 1);
    counter_expect(&shared->stops, 1);
    expect_ok(pebble_pool_join(self->pool, DEADLINE_NS));
    for (int i = 0; i < WORKERS; i++)
        expect_ok(pebble_future_wait(self->futures[i], 0));
    counter_expect(&shared->stops, self->interrupts);
    return 0;
}

/* Once, or also while the pool is being stopped. */
static void check_handled_interrupt(uint32_t times) {
    program self = {.busy = true, .interrupts = times};
    memset(shared, 0, sizeof *shared);
    pid_t pid = program_start(run_until_stopped, &self);
    counter_expect(&shared->ready, 1);
    int64_t before_ns = os_now_ns();
    assert_int_equal(kill(-pid, SIGINT), 0);
    counter_expect(&shared->stops, 1);
    for (uint32_t i = 1; i < times; i++)
        assert_int_equal(kill(-pid, SIGINT), 0);
    assert_int_equal(program_wait(pid), 0);
    assert_int_equal(counter_value(&shared->stops), times);
    expect_nothing_left(before_ns);
}

static void test_interrupt_that_stops_the_pool(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it runs no handlers in a process that was forked from one with threads */
    check_handled_interrupt(1);
    check_handled_interrupt(2);
}

/* ---- At any moment ---- */

static int run_restlessly(void *unused) {
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .max_tasks = 2,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(5)));
    (void)unused;
    counter_add(&shared->ready, 1);
    for (;;) {
        pebble_future *future = schedule(pool, work, NULL, 0, 0);
        expect_ok(pebble_schedule(pool, stay, shared_path, sizeof shared_path,
                                  PEBBLE_MILLISECONDS(2), NULL));
        pebble_future_wait(future, PEBBLE_MILLISECONDS(1));
        pebble_future_unref(future);
    }
    return 1;
}

static void test_killed_at_any_moment(void **state) {
    unsigned seed = 5;
    (void)state;
    for (int i = 0; i < MOMENTS; i++) {
        shared->ready.value = 0;
        pid_t pid = program_start(run_restlessly, NULL);
        counter_expect(&shared->ready, 1);
        usleep((unsigned)rand_r(&seed) % 30000);
        int64_t before_ns = os_now_ns();
        program_kill(pid);
        expect_nothing_left(before_ns);
    }
}

/* ---- A program that is stopped ---- */

enum { LIMIT_S = 5 }; /* for a zygote to begin with a kill, see deadlines.c */

static int be_told(pebble_task *task, const void *input, size_t input_size) {
    area *at = area_in_task(input);
    (void)task, (void)input_size;
    counter_add(&at->started, 1);
    return counter_wait(&at->stops, 2) ? 0 : 1;
}

/* Cancels one task and is stopped before it hears of its end; the other is performed all the same. */
static int stop_while_killing(void *context) {
    bool zygote_too = *(bool *)context;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(100)));
    pebble_future *stubborn = schedule(pool, stay, shared_path, sizeof shared_path, 0);
    pebble_future *other = schedule(pool, be_told, shared_path, sizeof shared_path, 0);
    counter_expect(&shared->started, 2 * 3); /* of both programs; a task with a child */
    pid_t zygote = process_parent(pebble_future_pid(other));
    if (zygote_too)
        kill(zygote, SIGSTOP);
    assert_true(pebble_future_cancel(stubborn));
    raise(SIGSTOP);
    usleep(100 * 1000); /* the zygote goes on later than the program */
    kill(zygote, SIGCONT);
    expect_end(stubborn, PEBBLE_ERR_TASK_CANCELLED);
    counter_add(&shared->stops, 1);
    expect_end(other, PEBBLE_OK);
    close_join_free(pool);
    return 0;
}

static void test_stopped_while_it_kills(void **state) {
    bool zygote_too[2] = {false, true};
    pid_t programs[2];
    int status;
    (void)state;
    for (int i = 0; i < 2; i++)
        programs[i] = program_start(stop_while_killing, &zygote_too[i]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(waitpid(programs[i], &status, WUNTRACED), programs[i]);
        assert_true(WIFSTOPPED(status));
    }
    sleep(LIMIT_S + 2);
    for (int i = 0; i < 2; i++)
        kill(programs[i], SIGCONT);
    for (int i = 0; i < 2; i++)
        assert_int_equal(program_wait(programs[i]), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(killed),
        TEST(killed_without_the_thread_that_made_the_pool),
        TEST(killed_without_its_main_thread),
        TEST(terminated),
        TEST(interrupted),
        TEST(interrupt_that_stops_the_pool),
        TEST(killed_at_any_moment),
        TEST(stopped_while_it_kills),
    };
    pebble_worker_main();
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("program", tests, NULL, NULL);
}
