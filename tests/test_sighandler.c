/* pebble_sighandler: functions that run outside signal context, one at a time, and what
 * becomes of signals that are given back, registered anew and inherited over a fork. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#include "platform/platform.h"

enum { TIME_LIMIT_S = 60, ROUNDS = 300 };

/* The last but one: valgrind keeps the last for itself. */
#define LATE_SIGNAL (SIGRTMAX - 1)

static void wait_semaphore(sem_t *semaphore) {
    while (sem_wait(semaphore) != 0)
        assert_int_equal(errno, EINTR);
}

static void set_handler(int signal, pebble_signal_function handler, void *context) {
    assert_int_equal(pebble_sighandler(&signal, 1, handler, context), PEBBLE_OK);
}

static void give_back(int signal) {
    set_handler(signal, NULL, NULL);
}

/* What handlers note of their calls. */
typedef struct notes {
    sem_t called;
    _Atomic int calls, signal, inside, overlaps;
    pthread_t thread;
} notes;

static notes seen;

static int setup(void **state) {
    (void)state;
    memset(&seen, 0, sizeof seen);
    return sem_init(&seen.called, 0, 0);
}

static int teardown(void **state) {
    static const int all[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGHUP, SIGCHLD};
    (void)state;
    return (int)pebble_sighandler(all, sizeof all / sizeof *all, NULL, NULL);
}

static void note(int signal, void *context) {
    notes *into = context;
    if (atomic_fetch_add(&into->inside, 1) != 0)
        atomic_fetch_add(&into->overlaps, 1);
    free(malloc(100)); /* it may call anything */
    into->thread = pthread_self();
    atomic_store(&into->signal, signal);
    atomic_fetch_add(&into->calls, 1);
    atomic_fetch_sub(&into->inside, 1);
    sem_post(&into->called);
}

static void (*handler_now(int signal))(int) {
    struct sigaction now;
    assert_int_equal(sigaction(signal, NULL, &now), 0);
    return now.sa_handler;
}

/* ---- Arguments ---- */

static void test_arguments(void **state) {
    const int good = SIGUSR1;
    (void)state;
    expect_error(pebble_sighandler(NULL, 1, note, &seen), PEBBLE_ERR_INVALID,
                 "pebble_sighandler: signals is NULL");
    expect_error(pebble_sighandler(&good, 0, note, &seen), PEBBLE_ERR_INVALID,
                 "pebble_sighandler: count is 0");
}

static void test_no_signals(void **state) {
    static const int wrong[] = {0, -1, 32, 65, 1000, INT32_MAX, INT32_MIN};
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const int signals[] = {SIGUSR1, wrong[i]};
        expect_error(pebble_sighandler(signals, 2, note, &seen), PEBBLE_ERR_INVALID,
                     "signals[1] is ");
        expect_error(pebble_sighandler(signals, 2, NULL, NULL), PEBBLE_ERR_INVALID,
                     "signals[1] is ");
    }
    assert_true(handler_now(SIGUSR1) == SIG_DFL); /* all or nothing */
}

static void test_signals_not_for_handlers(void **state) {
    static const int wrong[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE,
                                SIGILL,  SIGABRT, SIGTRAP, SIGSYS};
    static const char *const names[] = {"SIGKILL", "SIGSTOP", "SIGSEGV",
                                        "SIGBUS",  "SIGFPE",  "SIGILL",
                                        "SIGABRT", "SIGTRAP", "SIGSYS"};
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        expect_error(pebble_sighandler(&wrong[i], 1, note, &seen), PEBBLE_ERR_INVALID,
                     names[i]);
}

/* ---- Calls ---- */

static void test_call_is_in_another_thread(void **state) {
    (void)state;
    set_handler(SIGUSR1, note, &seen);
    errno = 4711;
    assert_int_equal(pthread_kill(pthread_self(), SIGUSR1), 0);
    assert_int_equal(errno, 4711);
    wait_semaphore(&seen.called);
    assert_int_equal(atomic_load(&seen.signal), SIGUSR1);
    assert_false(pthread_equal(seen.thread, pthread_self()));
    assert_int_equal(atomic_load(&seen.calls), 1);
}

/* From now on the system refuses to have an action set for SIGUSR2. False: it cannot. */
static bool refuse_usr2(void) {
    enum { NEW_ACTION = offsetof(struct seccomp_data, args[1]) };
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigaction, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SIGUSR2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NEW_ACTION), /* half a pointer will do */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 &&
           signal(SIGUSR2, SIG_DFL) == SIG_ERR; /* valgrind does without the kernel */
}

enum { CHILD_CANNOT = 77 };

static int register_refused_signal(void) {
    static const int signals[] = {SIGUSR1, SIGHUP, SIGUSR2}, first = SIGUSR1;
    alarm(TIME_LIMIT_S / 2);
    if (pebble_sighandler(&first, 1, note, &seen) != PEBBLE_OK)
        return 1;
    if (!refuse_usr2())
        return CHILD_CANNOT;
    if (pebble_sighandler(signals, 3, note, NULL) != PEBBLE_ERR_INVALID)
        return 2;
    if (strstr(pebble_error_message(), "signals[2] is ") == NULL)
        return 3;
    if (handler_now(SIGHUP) != SIG_DFL || handler_now(SIGUSR1) == SIG_DFL)
        return 4;
    raise(SIGUSR1); /* is handled as before, with its own context */
    wait_semaphore(&seen.called);
    return 0;
}

/* In a child, which starts a dispatcher of its own: see test_child_may_register. */
static void test_refused_by_the_system(void **state) {
    int status;
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(register_refused_signal());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CHILD_CANNOT)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_several_signals(void **state) {
    static const int signals[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGUSR1};
    (void)state;
    assert_int_equal(pebble_sighandler(signals, 4, note, &seen), PEBBLE_OK);
    for (int i = 0; i < 3; i++) {
        raise(signals[i]);
        wait_semaphore(&seen.called);
        assert_int_equal(atomic_load(&seen.signal), signals[i]);
    }
    assert_int_equal(pebble_sighandler(signals, 4, NULL, NULL), PEBBLE_OK);
    for (int i = 0; i < 3; i++)
        assert_true(handler_now(signals[i]) == SIG_DFL);
}

static void test_real_time_signals(void **state) {
    (void)state;
    set_handler(SIGRTMIN, note, &seen);
    set_handler(LATE_SIGNAL, note, &seen);
    raise(LATE_SIGNAL);
    wait_semaphore(&seen.called);
    assert_int_equal(atomic_load(&seen.signal), LATE_SIGNAL);
    give_back(SIGRTMIN);
    give_back(LATE_SIGNAL);
}

static void test_new_handler_replaces(void **state) {
    notes second = {.calls = 0};
    (void)state;
    sem_init(&second.called, 0, 0);
    set_handler(SIGUSR1, note, &seen);
    set_handler(SIGUSR1, note, &second);
    raise(SIGUSR1);
    wait_semaphore(&second.called);
    assert_int_equal(atomic_load(&seen.calls), 0);
    /* Through the same thread, so that it is through with second. */
    set_handler(SIGUSR1, note, &seen);
    raise(SIGUSR1);
    wait_semaphore(&seen.called);
    sem_destroy(&second.called);
}

static void on_signal_of_the_program(int signal) {
    (void)signal;
    atomic_fetch_add(&seen.calls, 1000);
}

static void test_given_back_to_what_it_was(void **state) {
    (void)state;
    assert_true(signal(SIGUSR1, on_signal_of_the_program) == SIG_DFL);
    set_handler(SIGUSR1, note, &seen);
    set_handler(SIGUSR1, note, &seen); /* what was before the first counts */
    give_back(SIGUSR1);
    give_back(SIGUSR1); /* again is harmless */
    raise(SIGUSR1);
    assert_int_equal(atomic_load(&seen.calls), 1000);
    signal(SIGUSR1, SIG_IGN);
    set_handler(SIGUSR1, note, &seen);
    give_back(SIGUSR1);
    assert_true(handler_now(SIGUSR1) == SIG_IGN);
    signal(SIGUSR1, SIG_DFL);
}

static void test_giving_back_what_was_never_set(void **state) {
    (void)state;
    assert_true(signal(SIGUSR2, SIG_IGN) == SIG_DFL);
    give_back(SIGUSR2);
    assert_true(signal(SIGUSR2, SIG_DFL) == SIG_IGN);
}

/* A read goes on over the signal, as SA_RESTART says. */
static void write_byte(int signal, void *context) {
    char byte = 42;
    (void)signal;
    (void)!write(*(int *)context, &byte, 1);
}

static void *raise_in(void *thread) {
    pthread_kill(*(pthread_t *)thread, SIGUSR1);
    return NULL;
}

static void test_system_calls_restart(void **state) {
    static int fds[2]; /* outlives the call that writes to it */
    pthread_t reader = pthread_self(), raiser;
    char byte = 0;
    (void)state;
    if (WITH_THREAD_SANITIZER) /* it holds signals back during a read */
        skip();
    assert_int_equal(pipe(fds), 0);
    set_handler(SIGUSR1, write_byte, &fds[1]);
    assert_int_equal(pthread_create(&raiser, NULL, raise_in, &reader), 0);
    assert_int_equal(read(fds[0], &byte, 1), 1);
    assert_int_equal(byte, 42);
    pthread_join(raiser, NULL);
    close(fds[0]);
    close(fds[1]);
}

/* ---- While a call runs ---- */

typedef struct gate {
    sem_t entered, may_leave;
    _Atomic int calls;
} gate;

static void gate_init(gate *gated) {
    sem_init(&gated->entered, 0, 0);
    sem_init(&gated->may_leave, 0, 0);
    atomic_init(&gated->calls, 0);
}

static void pass_gate(int signal, void *context) {
    gate *gated = context;
    (void)signal;
    atomic_fetch_add(&gated->calls, 1);
    sem_post(&gated->entered);
    wait_semaphore(&gated->may_leave);
}

static void post(int signal, void *semaphore) {
    (void)signal;
    sem_post(semaphore);
}

/* Waits until the dispatcher has done all that was pending before. It goes through the
 * signals by number, so the second call of a late one comes after all before it. */
static void let_dispatcher_catch_up(void) {
    static sem_t caught_up; /* outlives the call that posts it */
    sem_init(&caught_up, 0, 0);
    set_handler(LATE_SIGNAL, post, &caught_up);
    for (int i = 0; i < 2; i++) {
        raise(LATE_SIGNAL);
        wait_semaphore(&caught_up);
    }
    give_back(LATE_SIGNAL);
}

static void test_pending_ones_are_merged(void **state) {
    static gate gated;
    (void)state;
    gate_init(&gated);
    set_handler(SIGUSR1, pass_gate, &gated);
    raise(SIGUSR1);
    wait_semaphore(&gated.entered);
    for (int i = 0; i < 10; i++)
        raise(SIGUSR1); /* during its call: one call more */
    sem_post(&gated.may_leave);
    sem_post(&gated.may_leave);
    let_dispatcher_catch_up();
    assert_int_equal(atomic_load(&gated.calls), 2);
}

static void test_given_back_while_its_call_runs(void **state) {
    static gate gated;
    (void)state;
    gate_init(&gated);
    set_handler(SIGUSR1, pass_gate, &gated);
    raise(SIGUSR1);
    wait_semaphore(&gated.entered);
    raise(SIGUSR1); /* pending */
    give_back(SIGUSR1);
    assert_true(handler_now(SIGUSR1) == SIG_DFL);
    set_handler(SIGUSR1, note, &seen); /* what was pending is not for this one */
    sem_post(&gated.may_leave);
    let_dispatcher_catch_up();
    assert_int_equal(atomic_load(&gated.calls), 1);
    assert_int_equal(atomic_load(&seen.calls), 0);
}

static void test_replaced_while_its_call_runs(void **state) {
    static gate gated;
    (void)state;
    gate_init(&gated);
    set_handler(SIGUSR1, pass_gate, &gated);
    raise(SIGUSR1);
    wait_semaphore(&gated.entered);
    raise(SIGUSR1);
    set_handler(SIGUSR1, note, &seen); /* gets what is pending */
    assert_int_equal(atomic_load(&seen.calls), 0);
    sem_post(&gated.may_leave);
    wait_semaphore(&seen.called);
    assert_int_equal(atomic_load(&gated.calls), 1);
}

static void register_other(int signal, void *context) {
    notes *into = context;
    set_handler(SIGUSR2, note, into);
    set_handler(signal, NULL, NULL);
    kill(getpid(), SIGUSR2);
}

static void test_handler_may_register(void **state) {
    (void)state;
    set_handler(SIGUSR1, register_other, &seen);
    raise(SIGUSR1);
    wait_semaphore(&seen.called);
    assert_int_equal(atomic_load(&seen.signal), SIGUSR2);
    assert_true(handler_now(SIGUSR1) == SIG_DFL);
}

/* Several threads raise, one registers back and forth: no call overlaps another, and the
 * last signal gets through. */
static void *raise_often(void *signal) {
    for (int i = 0; i < ROUNDS; i++)
        pthread_kill(pthread_self(), *(int *)signal);
    return NULL;
}

static void *register_often(void *unused) {
    static const int signals[] = {SIGUSR1, SIGUSR2};
    for (int i = 0; i < ROUNDS; i++)
        set_handler(signals[i % 2], note, &seen);
    return unused;
}

static void test_calls_do_not_overlap(void **state) {
    static int signals[] = {SIGUSR1, SIGUSR2};
    pthread_t threads[4];
    (void)state;
    assert_int_equal(pebble_sighandler(signals, 2, note, &seen), PEBBLE_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, raise_often, &signals[i % 2]),
                         0);
    assert_int_equal(pthread_create(&threads[3], NULL, register_often, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    let_dispatcher_catch_up();
    assert_in_range(atomic_load(&seen.calls), 2, 3 * ROUNDS);
    assert_int_equal(atomic_load(&seen.overlaps), 0);
}

/* ---- Fork ---- */

static int child_wait(pid_t pid) {
    int status;
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void test_child_dies_from_the_signal(void **state) {
    (void)state;
    set_handler(SIGTERM, note, &seen);
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            alarm(TIME_LIMIT_S / 2);
            for (;;)
                pause();
        }
        kill(pid, SIGTERM); /* perhaps in the midst of the fork: not lost either */
        int status = child_wait(pid);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGTERM);
    }
    assert_int_equal(atomic_load(&seen.calls), 0);
    raise(SIGTERM); /* the parent goes on */
    wait_semaphore(&seen.called);
}

static void test_child_gets_back_what_was_before(void **state) {
    (void)state;
    signal(SIGUSR1, SIG_IGN);
    set_handler(SIGUSR1, note, &seen);
    pid_t pid = fork();
    if (pid == 0)
        _exit(handler_now(SIGUSR1) == SIG_IGN ? 0 : 1);
    assert_int_equal(child_wait(pid), 0);
    give_back(SIGUSR1);
    signal(SIGUSR1, SIG_DFL);
}

static void test_fork_keeps_the_mask(void **state) {
    sigset_t blocked, before;
    (void)state;
    set_handler(SIGUSR1, note, &seen);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pid_t pid = fork();
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    bool same = sigismember(&now, SIGUSR2) == 1 && sigismember(&now, SIGUSR1) == 0 &&
                sigismember(&now, SIGTERM) == 0;
    if (pid == 0)
        _exit(same ? 0 : 1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert_true(same);
    assert_int_equal(child_wait(pid), 0);
}

/* The child of a threaded program starts a dispatcher, which the thread sanitizer
 * forbids. */
static void test_child_may_register(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    set_handler(SIGUSR1, note, &seen);
    pid_t pid = fork();
    if (pid == 0) {
        int signal = SIGUSR1;
        alarm(TIME_LIMIT_S / 2);
        if (pebble_sighandler(&signal, 1, note, &seen) != PEBBLE_OK)
            _exit(1);
        raise(SIGUSR1);
        while (sem_wait(&seen.called) != 0)
            continue;
        pebble_sighandler(&signal, 1, NULL, NULL);
        raise(SIGUSR1); /* as before the first registration: the end */
        _exit(2);
    }
    int status = child_wait(pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGUSR1);
    assert_int_equal(atomic_load(&seen.calls), 0);
}

static void fork_in_handler(int signal, void *context) {
    pid_t pid = fork();
    if (pid == 0)
        _exit(signal == SIGUSR1 && handler_now(SIGUSR1) == SIG_DFL ? 0 : 1);
    *(pid_t *)context = pid;
    sem_post(&seen.called);
}

static void test_handler_may_fork(void **state) {
    static pid_t pid;
    (void)state;
    set_handler(SIGUSR1, fork_in_handler, &pid);
    raise(SIGUSR1);
    wait_semaphore(&seen.called);
    assert_int_equal(child_wait(pid), 0);
}

/* Forks beside registrations find them whole. */
static void test_fork_races_with_registering(void **state) {
    pthread_t thread;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, register_often, NULL), 0);
    for (int i = 0; i < 30; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            alarm(TIME_LIMIT_S / 2);
            _exit(handler_now(SIGUSR1) == SIG_DFL && handler_now(SIGUSR2) == SIG_DFL ? 0
                                                                                     : 1);
        }
        assert_int_equal(child_wait(pid), 0);
    }
    pthread_join(thread, NULL);
}

/* ---- Want of resources ---- */

#ifdef PEBBLE_FAULT_INJECTION
/* First of all tests: the dispatcher is started once. */
static void test_without_a_thread(void **state) {
    int signal = SIGUSR1;
    (void)state;
    pebble_test_fault(OS_FAULT_THREAD, 1, false);
    expect_error(pebble_sighandler(&signal, 1, note, &seen), PEBBLE_ERR_SYSTEM,
                 "pebble_sighandler");
    pebble_test_fault(OS_FAULT_ALLOC, 1, false);
    expect_error(pebble_sighandler(&signal, 1, note, &seen), PEBBLE_ERR_NO_MEMORY,
                 "pebble_sighandler");
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_true(handler_now(SIGUSR1) == SIG_DFL);
    set_handler(SIGUSR1, note, &seen);
    raise(SIGUSR1);
    wait_semaphore(&seen.called);
}
#endif

/* Whoever has set something else since: it is replaced as what was set before. */
static void test_set_anew_after_others(void **state) {
    (void)state;
    set_handler(SIGUSR1, note, &seen);
    signal(SIGUSR1, SIG_IGN);
    set_handler(SIGUSR1, note, &seen);
    raise(SIGUSR1);
    wait_semaphore(&seen.called);
    give_back(SIGUSR1);
    assert_true(handler_now(SIGUSR1) == SIG_DFL);
}

static void note_and_end_thread(int signal, void *context) {
    note(signal, context);
    pthread_exit(NULL);
}

static void test_handler_may_end_its_thread(void **state) {
    (void)state;
    set_handler(SIGUSR1, note_and_end_thread, &seen);
    for (int i = 0; i < 3; i++) {
        raise(SIGUSR1);
        wait_semaphore(&seen.called);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
#ifdef PEBBLE_FAULT_INJECTION
        TEST(test_without_a_thread),
#endif
        TEST(test_arguments),
        TEST(test_no_signals),
        TEST(test_signals_not_for_handlers),
        TEST(test_call_is_in_another_thread),
        TEST(test_refused_by_the_system),
        TEST(test_several_signals),
        TEST(test_real_time_signals),
        TEST(test_new_handler_replaces),
        TEST(test_given_back_to_what_it_was),
        TEST(test_giving_back_what_was_never_set),
        TEST(test_system_calls_restart),
        TEST(test_pending_ones_are_merged),
        TEST(test_given_back_while_its_call_runs),
        TEST(test_replaced_while_its_call_runs),
        TEST(test_handler_may_register),
        TEST(test_calls_do_not_overlap),
        TEST(test_child_dies_from_the_signal),
        TEST(test_child_gets_back_what_was_before),
        TEST(test_fork_keeps_the_mask),
        TEST(test_child_may_register),
        TEST(test_handler_may_fork),
        TEST(test_fork_races_with_registering),
        TEST(test_set_anew_after_others),
        TEST(test_handler_may_end_its_thread),
    };
    alarm(TIME_LIMIT_S);
    return cmocka_run_group_tests_name("sighandler", tests, NULL, NULL);
}
