/* Row 16: the wall clock is set an hour ahead and back, again and again, in all processes: this program reads
 * the time through functions of its own, which shift the wall clock. Whatever has a timeout keeps to it. The
 * kernel's own waits until a time of the wall clock are forbidden by a filter. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "platform/platform.h"
#include "support.h"

/* Far from an hour. */
#define LATE_NS PEBBLE_SECONDS(10)

enum { HOUR_S = 3600, ROUNDS = 2 };

/* ---- The clocks ---- */

typedef struct clocks {
    _Atomic int64_t shift_s;
    _Atomic bool watched;
    counter reads; /* of the wall clock, while watched */
} clocks;

static clocks *shared;

static bool is_wall_clock(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI;
}

static void note_read(void) {
    if (shared != NULL && atomic_load(&shared->watched))
        atomic_fetch_add(&shared->reads.value, 1);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && is_wall_clock(clock)) {
        note_read();
        now->tv_sec += shared != NULL ? atomic_load(&shared->shift_s) : 0;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec read;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &read);
    *now = (struct timeval){.tv_sec = read.tv_sec, .tv_usec = read.tv_nsec / 1000};
    return result;
}

time_t time(time_t *now) {
    struct timespec read = {0};
    clock_gettime(CLOCK_REALTIME, &read);
    if (now != NULL)
        *now = read.tv_sec;
    return read.tv_sec;
}

/* ---- The filter ---- */

#define LOW_OF(argument) (offsetof(struct seccomp_data, args[argument]))
#define HIGH_OF(argument) (LOW_OF(argument) + 4)
#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)(offset))
#define IF_EQUAL(value, then, otherwise)                                                 \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(value), then, otherwise)
#define IF_HAS(bits, then, otherwise)                                                    \
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (unsigned)(bits), then, otherwise)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* In this process and all that come of it. Little-endian. False: there are no filters here. */
static bool forbid_wall_clock_waits(void) {
    struct sock_filter code[] = {
        LOAD(offsetof(struct seccomp_data, nr)),
        /* futex(): with the flag, and with a time. */
        IF_EQUAL(SYS_futex, 0, 8),
        LOAD(LOW_OF(1)),
        IF_HAS(FUTEX_CLOCK_REALTIME, 0, 5),
        LOAD(LOW_OF(3)),
        IF_EQUAL(0, 0, 2),
        LOAD(HIGH_OF(3)),
        IF_EQUAL(0, 1, 0),
        KILL,
        ALLOW,
        IF_EQUAL(SYS_timerfd_create, 7, 0),
        IF_EQUAL(SYS_timer_create, 6, 0),
        IF_EQUAL(SYS_clock_nanosleep, 3, 0),
        IF_EQUAL(SYS_futex_waitv, 0, 7),
        LOAD(LOW_OF(4)),
        IF_EQUAL(CLOCK_REALTIME, 4, 5),
        LOAD(LOW_OF(1)),
        IF_HAS(TIMER_ABSTIME, 0, 3),
        LOAD(LOW_OF(0)),
        IF_EQUAL(CLOCK_REALTIME, 0, 1),
        KILL,
        ALLOW,
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* ---- Tasks ---- */

static int stay(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    signal(SIGTERM, SIG_IGN);
    for (;;)
        pause();
    return 0;
}

/* Takes the time that it is told. */
static int take_ns(pebble_task *task, const void *input, size_t input_size) {
    int64_t until_ns = os_deadline_after(*(const int64_t *)input);
    (void)task, (void)input_size;
    while (os_now_ns() < until_ns)
        usleep(1000);
    return 0;
}

static int wait_for(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    return counter_wait(*(counter *const *)input, 1) ? 0 : 1;
}

/* ---- The program ---- */

/* Back and forth between an hour ahead and an hour back. */
static void *set_clock(void *over) {
    while (!atomic_load((_Atomic bool *)over)) {
        int64_t shift_s = atomic_load(&shared->shift_s);
        atomic_store(&shared->shift_s, shift_s > 0 ? -HOUR_S : HOUR_S);
        usleep(7000);
    }
    return NULL;
}

static void expect_took(int64_t since_ns, int64_t expected_ns) {
    int64_t took_ns = os_now_ns() - since_ns;
    assert_in_range(took_ns, expected_ns, expected_ns + LATE_NS);
}

static void check_tasks(void) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(150),
                  grace_ns = PEBBLE_MILLISECONDS(100);
    int64_t long_ns = PEBBLE_MILLISECONDS(300);
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = 2, .termination_grace_ns = grace_ns));
    int64_t before_ns = os_now_ns();
    pebble_future *longer =
        schedule(pool, take_ns, &long_ns, sizeof long_ns, PEBBLE_SECONDS(60));
    expect_end(schedule(pool, stay, NULL, 0, timeout_ns), PEBBLE_ERR_TASK_TIMEOUT);
    expect_took(before_ns, timeout_ns + grace_ns);
    expect_end(longer, PEBBLE_OK);
    expect_took(before_ns, long_ns);
    pebble_future *stays = schedule(pool, stay, NULL, 0, 0);
    before_ns = os_now_ns();
    assert_int_equal(pebble_future_wait(stays, timeout_ns), PEBBLE_ERR_TIMEOUT);
    expect_took(before_ns, timeout_ns);
    assert_int_equal(pebble_future_wait_all(&stays, 1, timeout_ns), PEBBLE_ERR_TIMEOUT);
    expect_took(before_ns, 2 * timeout_ns);
    expect_ok(pebble_pool_close(pool));
    assert_int_equal(pebble_pool_join(pool, timeout_ns), PEBBLE_ERR_TIMEOUT);
    expect_took(before_ns, 3 * timeout_ns);
    stop_join_free(pool);
    expect_end(stays, PEBBLE_ERR_TASK_CANCELLED);
}

static void check_threads(void) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(50);
    counter go = {0}, *until = &go;
    pebble_pool *pool = new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    pebble_future *future = schedule(pool, wait_for, &until, sizeof until, 0);
    int64_t before_ns = os_now_ns();
    assert_int_equal(pebble_future_wait(future, timeout_ns), PEBBLE_ERR_TIMEOUT);
    expect_took(before_ns, timeout_ns);
    counter_add(&go, 1);
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
}

static void check_queues(void) {
    const int64_t timeout_ns = PEBBLE_MILLISECONDS(50);
    pebble_queue *queue = NULL, *ready = NULL;
    size_t count = 1;
    void *item;
    expect_ok(pebble_queue_new(1, &queue));
    int64_t before_ns = os_now_ns();
    assert_int_equal(pebble_queue_get(queue, timeout_ns, &item), PEBBLE_ERR_TIMEOUT);
    expect_took(before_ns, timeout_ns);
    before_ns = os_now_ns();
    expect_ok(pebble_wait_for_queues(&queue, 1, timeout_ns, &ready, &count));
    assert_int_equal(count, 0);
    expect_took(before_ns, timeout_ns);
    expect_ok(pebble_queue_put(queue, queue, 0));
    before_ns = os_now_ns();
    assert_int_equal(pebble_queue_put(queue, queue, timeout_ns), PEBBLE_ERR_TIMEOUT);
    expect_took(before_ns, timeout_ns);
    pebble_queue_free(queue);
}

enum { NO_FILTER = 77 };

static int run_with_clock(void *unused) {
    _Atomic bool over = false;
    pthread_t thread;
    (void)unused;
    if (!forbid_wall_clock_waits())
        return NO_FILTER;
    assert_int_equal(pthread_create(&thread, NULL, set_clock, &over), 0);
    atomic_store(&shared->watched, true);
    for (int i = 0; i < ROUNDS; i++) {
        check_tasks();
        check_threads();
        check_queues();
    }
    atomic_store(&shared->watched, false);
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    shared = NULL; /* it is given back */
    return support_teardown(NULL);
}

/* In a program of its own, for the filter stays. */
static void test_timeouts_unmoved(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it does not know the threads of a process that was forked from one with threads */
    shared = shared_memory(sizeof *shared);
    int code = program_wait(program_start(run_with_clock, NULL));
    uint32_t reads = counter_value(&shared->reads);
    shared = NULL; /* it is given back */
    if (code == NO_FILTER)
        skip();
    assert_int_equal(code, 0);
    assert_int_equal(reads, 0);
}

/* What the test stands on: the clock that the program reads is the shifted one, and such a wait ends it. */
static int read_and_wait(void *unused) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec real, shifted;
    (void)unused;
    atomic_store(&shared->shift_s, HOUR_S);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_REALTIME, &shifted);
    if (shifted.tv_sec < real.tv_sec + HOUR_S)
        return 1;
    if (!forbid_wall_clock_waits())
        return NO_FILTER;
    pthread_mutex_lock(&mutex);
    real.tv_sec += 1;
    pthread_cond_timedwait(&condition, &mutex, &real);
    return 2;
}

static void test_the_test(void **state) {
    (void)state;
    shared = shared_memory(sizeof *shared);
    int code = program_wait(program_start(read_and_wait, NULL));
    shared = NULL;
    if (code == NO_FILTER)
        skip();
    assert_int_equal(code, -SIGSYS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_timeouts_unmoved),
        supported_test(test_the_test),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
