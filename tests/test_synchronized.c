/* PEBBLE_SYNCHRONIZED: one thread at a time, unlocked once however the block is left. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

enum { TIME_LIMIT_S = 60, THREADS = 4, ROUNDS = 20000 };

/* An error-checking mutex, which refuses to be unlocked by who does not hold it. */
static pthread_mutex_t checked;

static int checked_setup(void **state) {
    pthread_mutexattr_t attributes;
    (void)state;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    int error = pthread_mutex_init(&checked, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error;
}

static int checked_teardown(void **state) {
    (void)state;
    return pthread_mutex_destroy(&checked);
}

static void assert_held(pthread_mutex_t *mutex) {
    assert_int_equal(pthread_mutex_trylock(mutex), EBUSY);
}

static void assert_free(pthread_mutex_t *mutex) {
    assert_int_equal(pthread_mutex_trylock(mutex), 0);
    assert_int_equal(pthread_mutex_unlock(mutex), 0);
}

/* ---- How a block is left ---- */

static void test_body_runs_once(void **state) {
    int runs = 0;
    (void)state;
    PEBBLE_SYNCHRONIZED (&checked) {
        assert_held(&checked);
        runs++;
    }
    assert_int_equal(runs, 1);
    assert_free(&checked);
}

static void test_body_without_braces(void **state) {
    int runs = 0;
    (void)state;
    PEBBLE_SYNCHRONIZED (&checked)
        runs++;
    assert_int_equal(runs, 1);
    assert_free(&checked);
}

static void test_break_and_continue(void **state) {
    int runs = 0;
    (void)state;
    PEBBLE_SYNCHRONIZED (&checked) {
        runs++;
        if (runs > 0)
            break;
        runs = 100;
    }
    assert_free(&checked);
    PEBBLE_SYNCHRONIZED (&checked) {
        runs++;
        if (runs > 0)
            continue;
        runs = 100;
    }
    assert_free(&checked);
    assert_int_equal(runs, 2);
}

static int return_from_block(void) {
    PEBBLE_SYNCHRONIZED (&checked) {
        return pthread_mutex_trylock(&checked); /* computed before the unlock */
    }
    return -1;
}

static void test_return(void **state) {
    (void)state;
    assert_int_equal(return_from_block(), EBUSY);
    assert_free(&checked);
}

static void test_goto(void **state) {
    int runs = 0;
    (void)state;
    PEBBLE_SYNCHRONIZED (&checked) {
        runs++;
        if (runs > 0)
            goto out;
        runs = 100;
    }
    runs = 200;
out:
    assert_int_equal(runs, 1);
    assert_free(&checked);
}

static void test_loop_inside_and_around(void **state) {
    int runs = 0;
    (void)state;
    for (int i = 0; i < 3; i++) {
        PEBBLE_SYNCHRONIZED (&checked) {
            for (int j = 0; j < 5; j++) {
                if (j == 2)
                    break; /* the inner loop, not the block */
                runs++;
            }
            assert_held(&checked);
            runs += 10;
        }
        assert_free(&checked);
    }
    assert_int_equal(runs, 36);
}

static void test_if_else_around(void **state) {
    int ran = 0;
    (void)state;
    if (ran == 0)
        PEBBLE_SYNCHRONIZED (&checked) {
            ran = 1;
        }
    else
        ran = 2;
    assert_int_equal(ran, 1);
}

static int return_from_nested(pthread_mutex_t *outer) {
    PEBBLE_SYNCHRONIZED (outer) {
        PEBBLE_SYNCHRONIZED (NULL) {
            PEBBLE_SYNCHRONIZED (&checked) {
                return 7;
            }
        }
    }
    return 0;
}

static void test_nested(void **state) {
    pthread_mutex_t outer = PTHREAD_MUTEX_INITIALIZER;
    int runs = 0;
    (void)state;
    PEBBLE_SYNCHRONIZED (&outer) {
        PEBBLE_SYNCHRONIZED (&checked) {
            assert_held(&outer);
            assert_held(&checked);
            runs++;
            break; /* the inner block only */
        }
        assert_held(&outer);
        assert_free(&checked);
        runs++;
    }
    assert_int_equal(runs, 2);
    assert_free(&outer);
    assert_int_equal(return_from_nested(&outer), 7);
    assert_int_equal(return_from_nested(&outer), 7); /* all three were unlocked */
    assert_free(&outer);
    assert_free(&checked);
}

static int mutex_asked;

static pthread_mutex_t *mutex_ask(void) {
    mutex_asked++;
    return &checked;
}

static void test_argument_is_evaluated_once(void **state) {
    (void)state;
    PEBBLE_SYNCHRONIZED (mutex_ask()) {
        assert_held(&checked);
    }
    assert_int_equal(mutex_asked, 1);
}

/* ---- The functions below the macro ---- */

static void test_guard_leaves_once(void **state) {
    (void)state;
    pebble_guard guard = pebble_guard_enter(&checked);
    assert_ptr_equal(guard.mutex, &checked);
    pebble_guard_leave(&guard);
    assert_null(guard.mutex);
    assert_int_equal(pthread_mutex_lock(&checked), 0);
    pebble_guard_leave(&guard);
    assert_held(&checked);
    pthread_mutex_unlock(&checked);
    pebble_guard_leave(NULL);
}

static void test_mutex_that_cannot_be_locked(void **state) {
    int runs = 0;
    (void)state;
    PEBBLE_SYNCHRONIZED (&checked) {
        PEBBLE_SYNCHRONIZED (&checked) {
            runs++;
        }
        assert_non_null(strstr(pebble_error_message(), "mutex"));
        assert_held(&checked);
    }
    assert_int_equal(runs, 0);
    assert_free(&checked);
}

static void *lock_and_die(void *mutex) {
    pthread_mutex_lock(mutex);
    return NULL;
}

static void test_owner_died(void **state) {
    pthread_mutex_t robust;
    pthread_mutexattr_t attributes;
    pthread_t thread;
    int runs = 0;
    (void)state;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    pthread_mutexattr_destroy(&attributes);
    assert_int_equal(pthread_create(&thread, NULL, lock_and_die, &robust), 0);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++)
        PEBBLE_SYNCHRONIZED (&robust)
            runs++;
    assert_int_equal(runs, 2);
    pthread_mutex_destroy(&robust);
}

/* ---- Threads ---- */

static long count_so_far;

static void *count_by_default_mutex(void *unused) {
    for (int i = 0; i < ROUNDS; i++) {
        PEBBLE_SYNCHRONIZED (NULL) {
            count_so_far++;
            if (i % 3 == 0)
                break;
            if (i % 3 == 1)
                continue;
        }
    }
    return unused;
}

static void *count_elsewhere(void *unused) {
    for (int i = 0; i < ROUNDS; i++)
        PEBBLE_SYNCHRONIZED (NULL)
            count_so_far++;
    return unused;
}

static void *count_by_own_mutex(void *mutex) {
    for (int i = 0; i < ROUNDS; i++)
        PEBBLE_SYNCHRONIZED ((pthread_mutex_t *)mutex)
            count_so_far++;
    return NULL;
}

static void run_threads(void *(*even)(void *), void *(*odd)(void *), void *argument) {
    pthread_t threads[THREADS];
    count_so_far = 0;
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, i % 2 ? odd : even, argument),
                         0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(count_so_far, (long)THREADS * ROUNDS);
}

static void test_default_mutex_is_shared(void **state) {
    (void)state;
    run_threads(count_by_default_mutex, count_elsewhere, NULL);
}

static void test_own_mutex(void **state) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    (void)state;
    run_threads(count_by_own_mutex, count_by_own_mutex, &mutex);
}

/* ---- Fork ---- */

typedef struct holder {
    int inside[2]; /* pipe: written to when the thread is in the block */
    int leave[2];  /* pipe: closed when it is to leave */
} holder;

static void *hold_default(void *argument) {
    holder *holds = argument;
    char byte = 0;
    PEBBLE_SYNCHRONIZED (NULL) {
        if (write(holds->inside[1], &byte, 1) == 1)
            (void)!read(holds->leave[0], &byte, 1);
    }
    return NULL;
}

static void assert_child_is_fine(pid_t pid) {
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void child_use_default(void) {
    int runs = 0;
    alarm(TIME_LIMIT_S / 2);
    for (int i = 0; i < 2; i++)
        PEBBLE_SYNCHRONIZED (NULL)
            runs++;
    _exit(runs == 2 ? 0 : 1);
}

static void test_fork_while_another_thread_is_inside(void **state) {
    holder holds;
    pthread_t thread;
    char byte;
    (void)state;
    assert_int_equal(pipe(holds.inside), 0);
    assert_int_equal(pipe(holds.leave), 0);
    assert_int_equal(pthread_create(&thread, NULL, hold_default, &holds), 0);
    assert_int_equal(read(holds.inside[0], &byte, 1), 1);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        child_use_default();
    assert_child_is_fine(pid);
    close(holds.leave[1]);
    pthread_join(thread, NULL);
    close(holds.leave[0]);
    close(holds.inside[0]);
    close(holds.inside[1]);
}

/* Who forks in the block is in it in the child too, and leaves it there. */
static void test_fork_inside(void **state) {
    (void)state;
    pebble_guard guard = pebble_guard_enter(NULL);
    pid_t pid = fork();
    int tried = pthread_mutex_trylock(guard.mutex);
    pebble_guard_leave(&guard);
    if (pid == 0 && tried == EBUSY)
        child_use_default();
    if (pid == 0)
        _exit(2);
    assert_int_equal(tried, EBUSY);
    assert_child_is_fine(pid);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_body_runs_once),
        cmocka_unit_test(test_body_without_braces),
        cmocka_unit_test(test_break_and_continue),
        cmocka_unit_test(test_return),
        cmocka_unit_test(test_goto),
        cmocka_unit_test(test_loop_inside_and_around),
        cmocka_unit_test(test_if_else_around),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_argument_is_evaluated_once),
        cmocka_unit_test(test_guard_leaves_once),
        cmocka_unit_test(test_mutex_that_cannot_be_locked),
        cmocka_unit_test(test_owner_died),
        cmocka_unit_test(test_default_mutex_is_shared),
        cmocka_unit_test(test_own_mutex),
        cmocka_unit_test(test_fork_while_another_thread_is_inside),
        cmocka_unit_test(test_fork_inside),
    };
    alarm(TIME_LIMIT_S);
    return cmocka_run_group_tests_name("synchronized", tests, checked_setup,
                                       checked_teardown);
}
