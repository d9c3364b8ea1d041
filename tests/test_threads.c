/* Threads: start, join, wait for any. */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#include "platform/platform.h"

enum { TIME_LIMIT_S = 60, MANY = 20, ROUNDS = 300 };

static void wait_semaphore(sem_t *semaphore) {
    while (sem_wait(semaphore) != 0)
        assert_int_equal(errno, EINTR);
}

/* ---- What the threads run ---- */

static void return_at_once(void *unused) {
    (void)unused;
}

static void wait_for_leave(void *leave) {
    wait_semaphore(leave);
}

static void set_flag(void *flag) {
    *(int *)flag = 1; /* plain: the join makes it seen */
}

static pebble_thread *start(void (*function)(void *), void *context) {
    pebble_thread *thread = NULL;
    assert_int_equal(pebble_thread_start(function, context, NULL, &thread), PEBBLE_OK);
    assert_non_null(thread);
    return thread;
}

static void join_and_unref(pebble_thread *thread) {
    assert_int_equal(pebble_thread_join(thread, PEBBLE_FOREVER), PEBBLE_OK);
    pebble_thread_unref(thread);
}

/* ---- Arguments ---- */

static void test_start_arguments(void **state) {
    pebble_thread *thread = NULL;
    (void)state;
    expect_error(pebble_thread_start(NULL, NULL, NULL, &thread), PEBBLE_ERR_INVALID,
                 "pebble_thread_start: function is NULL");
    expect_error(pebble_thread_start(return_at_once, NULL, NULL, NULL),
                 PEBBLE_ERR_INVALID, "pebble_thread_start: thread is NULL");
    assert_null(thread);
}

static void test_join_arguments(void **state) {
    (void)state;
    pebble_thread *thread = start(return_at_once, NULL);
    expect_error(pebble_thread_join(NULL, 0), PEBBLE_ERR_INVALID,
                 "pebble_thread_join: thread is NULL");
    expect_error(pebble_thread_join(thread, -1), PEBBLE_ERR_INVALID,
                 "pebble_thread_join: timeout_ns is negative");
    join_and_unref(thread);
    pebble_thread_unref(NULL);
}

static void test_wait_arguments(void **state) {
    (void)state;
    pebble_thread *thread = start(return_at_once, NULL);
    pebble_thread *threads[] = {thread, NULL}, *ready[2] = {NULL, NULL};
    size_t count = 99;
    expect_error(pebble_wait_for_threads(NULL, 1, 0, ready, &count), PEBBLE_ERR_INVALID,
                 "pebble_wait_for_threads: threads is NULL");
    expect_error(pebble_wait_for_threads(threads, 0, 0, ready, &count),
                 PEBBLE_ERR_INVALID, "count is 0");
    expect_error(pebble_wait_for_threads(threads, 1, -1, ready, &count),
                 PEBBLE_ERR_INVALID, "timeout_ns is negative");
    expect_error(pebble_wait_for_threads(threads, 1, 0, NULL, &count), PEBBLE_ERR_INVALID,
                 "ready is NULL");
    expect_error(pebble_wait_for_threads(threads, 1, 0, ready, NULL), PEBBLE_ERR_INVALID,
                 "ready_count is NULL");
    expect_error(pebble_wait_for_threads(threads, 2, 0, ready, &count),
                 PEBBLE_ERR_INVALID, "threads[1] is NULL");
    assert_int_equal(count, 99);
    assert_null(ready[0]);
    join_and_unref(thread);
}

/* ---- Start and join ---- */

static void test_join_sees_what_the_thread_did(void **state) {
    int flag = 0;
    (void)state;
    join_and_unref(start(set_flag, &flag));
    assert_int_equal(flag, 1);
}

static void test_join_again(void **state) {
    (void)state;
    pebble_thread *thread = start(return_at_once, NULL);
    assert_int_equal(pebble_thread_join(thread, PEBBLE_SECONDS(30)), PEBBLE_OK);
    assert_int_equal(pebble_thread_join(thread, 0), PEBBLE_OK);
    join_and_unref(thread);
}

static void test_join_timeout(void **state) {
    sem_t leave;
    (void)state;
    sem_init(&leave, 0, 0);
    pebble_thread *thread = start(wait_for_leave, &leave);
    expect_error(pebble_thread_join(thread, 0), PEBBLE_ERR_TIMEOUT, "pebble_thread_join");
    expect_error(pebble_thread_join(thread, PEBBLE_MILLISECONDS(2)), PEBBLE_ERR_TIMEOUT,
                 "pebble_thread_join");
    sem_post(&leave);
    join_and_unref(thread);
    sem_destroy(&leave);
}

typedef struct self_join {
    sem_t known;
    pebble_thread *self;
    pebble_error error;
} self_join;

static void join_self(void *context) {
    self_join *join = context;
    wait_semaphore(&join->known);
    join->error = pebble_thread_join(join->self, PEBBLE_FOREVER);
}

static void test_join_from_itself(void **state) {
    self_join join = {.error = PEBBLE_OK};
    (void)state;
    sem_init(&join.known, 0, 0);
    join.self = start(join_self, &join);
    sem_post(&join.known);
    join_and_unref(join.self);
    assert_int_equal(join.error, PEBBLE_ERR_DEADLOCK);
    sem_destroy(&join.known);
}

static sem_t may_go_on,
    went_on; /* of static life: the thread's last post outlives the test */

static void go_on(void *unused) {
    (void)unused;
    wait_semaphore(&may_go_on);
    sem_post(&went_on);
}

static void test_unref_lets_it_go_on(void **state) {
    (void)state;
    sem_init(&may_go_on, 0, 0);
    sem_init(&went_on, 0, 0);
    pebble_thread_unref(start(go_on, NULL));
    sem_post(&may_go_on);
    wait_semaphore(&went_on);
}

static void leave_by_exit(void *unused) {
    (void)unused;
    pthread_exit(NULL);
}

static void leave_by_cancel(void *unused) {
    (void)unused;
    pthread_cancel(pthread_self());
    pthread_testcancel();
}

static void test_left_by_exit_or_cancel(void **state) {
    (void)state;
    join_and_unref(start(leave_by_exit, NULL));
    join_and_unref(start(leave_by_cancel, NULL));
}

static void note_name(void *name) {
    prctl(PR_GET_NAME, name, 0, 0, 0);
}

static void test_name(void **state) {
    char own[16] = "", seen[16] = "";
    pebble_thread *thread;
    (void)state;
    assert_int_equal(pebble_thread_start(note_name, seen, "a long name, cut", &thread), 0);
    join_and_unref(thread);
    assert_string_equal(seen, "a long name, cu");
    note_name(own);
    assert_int_equal(pebble_thread_start(note_name, seen, NULL, &thread), 0);
    join_and_unref(thread);
    assert_string_equal(seen, own);
}

static void note_mask(void *mask) {
    pthread_sigmask(SIG_SETMASK, NULL, mask);
}

static void test_signal_mask_is_the_starters(void **state) {
    sigset_t blocked, before, seen;
    (void)state;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    join_and_unref(start(note_mask, &seen));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert_int_equal(sigismember(&seen, SIGUSR1), 1);
    assert_int_equal(sigismember(&seen, SIGUSR2), 0);
}

/* ---- Waiting for any ---- */

static void test_wait_times_out_without_error(void **state) {
    sem_t leave;
    pebble_thread *ready[2];
    size_t count = 99;
    (void)state;
    sem_init(&leave, 0, 0);
    pebble_thread *threads[] = {start(wait_for_leave, &leave),
                                start(wait_for_leave, &leave)};
    assert_int_equal(pebble_wait_for_threads(threads, 2, 0, ready, &count), PEBBLE_OK);
    assert_int_equal(count, 0);
    count = 99;
    assert_int_equal(
        pebble_wait_for_threads(threads, 2, PEBBLE_MILLISECONDS(2), ready, &count),
        PEBBLE_OK);
    assert_int_equal(count, 0);
    for (int i = 0; i < 2; i++)
        sem_post(&leave);
    for (int i = 0; i < 2; i++)
        join_and_unref(threads[i]);
    sem_destroy(&leave);
}

/* The ready ones must be those let go, in the order of the array. */
static void assert_ready(pebble_thread *const *threads, const bool *let_go,
                         pebble_thread *const *ready, size_t ready_count) {
    size_t expected = 0;
    for (int i = 0; i < MANY; i++) {
        if (let_go[i]) {
            assert_true(expected < ready_count);
            assert_ptr_equal(ready[expected], threads[i]);
            expected++;
        }
    }
    assert_int_equal(ready_count, expected);
}

static void test_wait_gives_those_that_have_ended(void **state) {
    sem_t leave[MANY];
    bool let_go[MANY] = {false};
    pebble_thread *threads[MANY], *ready[MANY];
    size_t count;
    (void)state;
    for (int i = 0; i < MANY; i++) {
        sem_init(&leave[i], 0, 0);
        threads[i] = start(wait_for_leave, &leave[i]);
    }
    for (int i = 0; i < MANY; i++) {
        int chosen = i * 7 % MANY;
        let_go[chosen] = true;
        sem_post(&leave[chosen]);
        assert_int_equal(pebble_thread_join(threads[chosen], PEBBLE_FOREVER), PEBBLE_OK);
        assert_int_equal(
            pebble_wait_for_threads(threads, MANY, PEBBLE_FOREVER, ready, &count),
            PEBBLE_OK);
        assert_ready(threads, let_go, ready, count);
    }
    for (int i = 0; i < MANY; i++) {
        join_and_unref(threads[i]);
        sem_destroy(&leave[i]);
    }
}

static void test_wait_with_duplicates(void **state) {
    sem_t leave;
    pebble_thread *ready[3];
    size_t count;
    (void)state;
    sem_init(&leave, 0, 0);
    pebble_thread *slow = start(wait_for_leave, &leave),
                  *fast = start(return_at_once, NULL);
    pebble_thread *threads[] = {fast, slow, fast};
    assert_int_equal(pebble_wait_for_threads(threads, 3, PEBBLE_FOREVER, ready, &count),
                     0);
    assert_int_equal(count, 2);
    assert_ptr_equal(ready[0], fast);
    assert_ptr_equal(ready[1], fast);
    sem_post(&leave);
    join_and_unref(slow);
    join_and_unref(fast);
    sem_destroy(&leave);
}

/* The end of a thread races with the wait for it. */
static void test_wait_races_with_the_end(void **state) {
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        sem_t never;
        pebble_thread *ready[3];
        size_t count;
        sem_init(&never, 0, 0);
        pebble_thread *threads[] = {start(wait_for_leave, &never),
                                    start(return_at_once, NULL),
                                    start(return_at_once, NULL)};
        assert_int_equal(
            pebble_wait_for_threads(threads, 3, PEBBLE_FOREVER, ready, &count), 0);
        assert_in_range(count, 1, 2);
        assert_ptr_not_equal(ready[0], threads[0]);
        sem_post(&never);
        for (int i = 0; i < 3; i++)
            join_and_unref(threads[i]);
        sem_destroy(&never);
    }
}

typedef struct shared_wait {
    pebble_thread *target;
    _Atomic int woken;
} shared_wait;

static void wait_for_target(void *context) {
    shared_wait *wait = context;
    pebble_thread *ready[1];
    size_t count = 0;
    if (pebble_wait_for_threads(&wait->target, 1, PEBBLE_FOREVER, ready, &count) ==
            PEBBLE_OK &&
        count == 1 && pebble_thread_join(wait->target, PEBBLE_FOREVER) == PEBBLE_OK)
        atomic_fetch_add(&wait->woken, 1);
}

static void test_many_wait_for_one(void **state) {
    sem_t leave;
    shared_wait wait = {.woken = 0};
    pebble_thread *waiters[MANY];
    (void)state;
    sem_init(&leave, 0, 0);
    wait.target = start(wait_for_leave, &leave);
    for (int i = 0; i < MANY; i++)
        waiters[i] = start(wait_for_target, &wait);
    sem_post(&leave);
    for (int i = 0; i < MANY; i++)
        join_and_unref(waiters[i]);
    assert_int_equal(atomic_load(&wait.woken), MANY);
    join_and_unref(wait.target);
    sem_destroy(&leave);
}

/* ---- Signals and forks ---- */

static sem_t interrupted;
static pthread_t joiner_handle;
static sem_t joiner_known;

static void on_interrupt(int signal) {
    (void)signal;
    sem_post(&interrupted);
}

static void join_target(void *context) {
    joiner_handle = pthread_self();
    sem_post(&joiner_known);
    wait_for_target(context);
}

/* The thread sanitizer holds a signal back while the thread is in a bare system call. */
static void test_signals_do_not_end_a_wait(void **state) {
    sem_t leave;
    shared_wait wait = {.woken = 0};
    struct sigaction action = {.sa_handler = on_interrupt}, before; /* no SA_RESTART */
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    sem_init(&leave, 0, 0);
    sem_init(&interrupted, 0, 0);
    sem_init(&joiner_known, 0, 0);
    sigaction(SIGUSR1, &action, &before);
    wait.target = start(wait_for_leave, &leave);
    pebble_thread *joiner = start(join_target, &wait);
    wait_semaphore(&joiner_known);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(pthread_kill(joiner_handle, SIGUSR1), 0);
        wait_semaphore(&interrupted);
    }
    assert_int_equal(pebble_thread_join(joiner, 0), PEBBLE_ERR_TIMEOUT);
    sem_post(&leave);
    join_and_unref(joiner);
    join_and_unref(wait.target);
    assert_int_equal(atomic_load(&wait.woken), 1);
    sigaction(SIGUSR1, &before, NULL);
    sem_destroy(&leave);
    sem_destroy(&interrupted);
    sem_destroy(&joiner_known);
}

static int try_in_child(pebble_thread *thread) {
    pebble_thread *ready[1];
    size_t count;
    alarm(TIME_LIMIT_S / 2);
    if (pebble_thread_join(thread, PEBBLE_FOREVER) != PEBBLE_ERR_FORKED)
        return 1;
    if (pebble_wait_for_threads(&thread, 1, PEBBLE_FOREVER, ready, &count) !=
        PEBBLE_ERR_FORKED)
        return 2;
    pebble_thread_unref(thread);
    return 0;
}

static void test_forked(void **state) {
    sem_t leave;
    int status;
    (void)state;
    sem_init(&leave, 0, 0);
    pebble_thread *thread = start(wait_for_leave, &leave);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(try_in_child(thread));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    sem_post(&leave);
    join_and_unref(thread);
    sem_destroy(&leave);
}

static void exit_child(void *unused) {
    (void)unused;
    _exit(0);
}

/* In the child the thread ends too: after its end, the destructor of its data ends the
 * child. */
static void fork_and_return(void *pid) {
    pthread_key_t key;
    if (pthread_key_create(&key, exit_child) != 0)
        return;
    *(pid_t *)pid = fork();
    if (*(pid_t *)pid == 0) {
        alarm(TIME_LIMIT_S / 2);
        pthread_setspecific(key, pid);
    }
}

static void test_thread_that_forks(void **state) {
    pid_t pid = -1;
    int status;
    (void)state;
    join_and_unref(start(fork_and_return, &pid));
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* ---- Want of resources ---- */

#ifdef PEBBLE_FAULT_INJECTION
static void test_start_without_memory_or_thread(void **state) {
    pebble_thread *thread = NULL;
    (void)state;
    pebble_test_fault(OS_FAULT_ALLOC, 1, false);
    expect_error(pebble_thread_start(return_at_once, NULL, NULL, &thread),
                 PEBBLE_ERR_NO_MEMORY, "pebble_thread_start");
    pebble_test_fault(OS_FAULT_THREAD, 1, false);
    expect_error(pebble_thread_start(return_at_once, NULL, NULL, &thread),
                 PEBBLE_ERR_SYSTEM, "pebble_thread_start");
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_null(thread);
    join_and_unref(start(return_at_once, NULL));
}

static void test_wait_without_memory(void **state) {
    pebble_thread *threads[MANY], *ready[MANY];
    size_t count = 99;
    (void)state;
    pebble_thread *thread = start(return_at_once, NULL);
    for (int i = 0; i < MANY; i++)
        threads[i] = thread;
    pebble_test_fault(OS_FAULT_ALLOC, 1, true);
    expect_error(pebble_wait_for_threads(threads, MANY, 0, ready, &count),
                 PEBBLE_ERR_NO_MEMORY, "pebble_wait_for_threads");
    assert_int_equal(count, 99);
    assert_int_equal(pebble_wait_for_threads(threads, 4, PEBBLE_FOREVER, ready, &count),
                     0);
    assert_int_equal(count, 4); /* few need none */
    assert_int_equal(pebble_thread_join(thread, PEBBLE_FOREVER), PEBBLE_OK);
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    pebble_thread_unref(thread);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start_arguments),
        cmocka_unit_test(test_join_arguments),
        cmocka_unit_test(test_wait_arguments),
        cmocka_unit_test(test_join_sees_what_the_thread_did),
        cmocka_unit_test(test_join_again),
        cmocka_unit_test(test_join_timeout),
        cmocka_unit_test(test_join_from_itself),
        cmocka_unit_test(test_unref_lets_it_go_on),
        cmocka_unit_test(test_left_by_exit_or_cancel),
        cmocka_unit_test(test_name),
        cmocka_unit_test(test_signal_mask_is_the_starters),
        cmocka_unit_test(test_wait_times_out_without_error),
        cmocka_unit_test(test_wait_gives_those_that_have_ended),
        cmocka_unit_test(test_wait_with_duplicates),
        cmocka_unit_test(test_wait_races_with_the_end),
        cmocka_unit_test(test_many_wait_for_one),
        cmocka_unit_test(test_signals_do_not_end_a_wait),
        cmocka_unit_test(test_forked),
        cmocka_unit_test(test_thread_that_forks),
#ifdef PEBBLE_FAULT_INJECTION
        cmocka_unit_test(test_start_without_memory_or_thread),
        cmocka_unit_test(test_wait_without_memory),
#endif
    };
    alarm(TIME_LIMIT_S);
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
