/* Row 3: a random one of the program's descendants is killed every 20 ms, while 8 threads have tasks of all
 * kinds done. For PEBBLE_STORM_SECONDS (5). */
#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

enum {
    THREADS = 8,
    WORKERS = 4,
    WINDOW = 16, /* tasks that a thread has under way */
    SECONDS = 5,
    INTERVAL_MS = SANITIZED ? 60 : 20,
    LARGE = 300 * 1000,
};

/* ---- Tasks ---- */

typedef enum kind {
    QUICK,
    LONGER,
    ECHOES,
    WITH_CHILD,
    TIMES_OUT,
    IS_CANCELLED,
    KINDS
} kind;

static int square_later(pebble_task *task, const void *input, size_t input_size) {
    usleep(3000);
    return square(task, input, input_size);
}

/* The child may be the one that is killed. */
static int square_with_child(pebble_task *task, const void *input, size_t input_size) {
    pid_t child = fork();
    if (child == 0) {
        usleep(3000);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    return square(task, input, input_size);
}

static int echo(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static int sleep_on(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    for (;;)
        pause();
    return 0;
}

static const pebble_function functions[KINDS] = {
    square, square_later, echo, square_with_child, sleep_on, square_later};

/* ---- The load ---- */

static char large[LARGE];

typedef struct load {
    pthread_t thread;
    pebble_pool *pool;
    _Atomic bool *over;
    unsigned seed;
    uint64_t ends[PEBBLE_ERR_TASK_EXPIRED + 1], wrong, refused;
} load;

typedef struct entry {
    pebble_future *future;
    kind kind;
    int number;
    bool cancelled;
} entry;

static void submit(load *self, entry *at) {
    int dice = rand_r(&self->seed) % 100;
    at->kind = dice < 60   ? QUICK
               : dice < 75 ? LONGER
               : dice < 85 ? ECHOES
               : dice < 90 ? WITH_CHILD
               : dice < 95 ? TIMES_OUT
                           : IS_CANCELLED;
    at->number = rand_r(&self->seed) % 10000;
    const void *input = at->kind == ECHOES ? (const void *)large : &at->number;
    size_t size = at->kind == ECHOES ? sizeof large : sizeof at->number;
    at->future = NULL;
    self->refused += pebble_schedule(self->pool, functions[at->kind], input, size,
                                     at->kind == TIMES_OUT ? PEBBLE_MILLISECONDS(5) : 0,
                                     &at->future) != PEBBLE_OK;
    at->cancelled = at->kind == IS_CANCELLED && pebble_future_cancel(at->future);
}

static bool is_right(const entry *at, const void *data, size_t size) {
    int result = at->number * at->number;
    if (at->kind == ECHOES)
        return size == sizeof large && memcmp(data, large, size) == 0;
    return at->kind != TIMES_OUT && size == sizeof result &&
           memcmp(data, &result, size) == 0;
}

static void finish(load *self, entry *at) {
    const void *data = NULL;
    size_t size = 0;
    if (at->future == NULL)
        return;
    pebble_error error = pebble_future_result(at->future, DEADLINE_NS, &data, &size);
    const pebble_failure *failure = pebble_future_failure(at->future);
    bool right = error == PEBBLE_OK ? is_right(at, data, size)
                 : error == PEBBLE_ERR_TASK_TIMEOUT
                     ? at->kind == TIMES_OUT
                     : error == PEBBLE_ERR_TASK_EXPIRED && failure->signal == SIGKILL;
    if (at->cancelled || error == PEBBLE_ERR_TASK_CANCELLED)
        right = at->cancelled && error == PEBBLE_ERR_TASK_CANCELLED;
    if (!right) {
        print_error("a task of kind %d ended with %s: %s\n", (int)at->kind,
                    pebble_error_name(error), failure != NULL ? failure->message : "");
        self->wrong++;
    }
    if (error <= PEBBLE_ERR_TASK_EXPIRED)
        self->ends[error]++;
    pebble_future_unref(at->future);
}

static void *run_load(void *context) {
    load *self = context;
    entry entries[WINDOW];
    uint64_t begun = 0, done = 0;
    while (!atomic_load(self->over) && self->refused == 0) {
        if (begun - done == WINDOW)
            finish(self, &entries[done++ % WINDOW]);
        submit(self, &entries[begun++ % WINDOW]);
    }
    while (done < begun)
        finish(self, &entries[done++ % WINDOW]);
    return NULL;
}

/* ---- The kills ---- */

enum { DESCENDANTS_MAX = 256, DOOMED_MAX = 1024 };

static size_t find_descendants(pid_t *pids) {
    size_t count = process_children(getpid(), pids, DESCENDANTS_MAX);
    for (size_t i = 0; i < count && count < DESCENDANTS_MAX; i++) {
        count += process_children(pids[i], pids + count, DESCENDANTS_MAX - count);
        count = count < DESCENDANTS_MAX ? count : DESCENDANTS_MAX;
    }
    return count;
}

/* Or is it. */
static bool descends_from(pid_t pid, pid_t ancestor) {
    while (pid > 1 && pid != ancestor)
        pid = process_parent(pid);
    return pid == ancestor;
}

/* By a descriptor: the number may have become a stranger's. */
static bool kill_descendant(pid_t pid) {
    int fd = -1;
    bool killed = os_process_open(pid, &fd) == 0 && descends_from(pid, getpid()) &&
                  process_lives(pid) && os_process_signal(fd, SIGKILL) == 0;
    os_fd_close(fd);
    return killed;
}

typedef struct kills {
    uint64_t zygotes, others;
    pid_t doomed[DOOMED_MAX]; /* the killed and all below them, of those that may live yet */
    size_t doomed_count;
} kills;

/* Those that were killed do not end at once, and until then take tasks that are lost with them. */
static void wait_for_ends(kills *made) {
    while (made->doomed_count > 0)
        expect_gone(made->doomed[--made->doomed_count]);
}

static void kill_one(kills *so_far, unsigned *seed) {
    pid_t pids[DESCENDANTS_MAX];
    size_t count = find_descendants(pids);
    if (count == 0)
        return;
    pid_t chosen = pids[(size_t)rand_r(seed) % count];
    bool is_zygote = process_parent(chosen) == getpid();
    if (so_far->doomed_count + count > DOOMED_MAX)
        wait_for_ends(so_far);
    size_t doomed_count = so_far->doomed_count;
    for (size_t i = 0; i < count; i++) {
        if (descends_from(pids[i], chosen))
            so_far->doomed[doomed_count++] = pids[i];
    }
    if (!kill_descendant(chosen))
        return;
    so_far->doomed_count = doomed_count;
    so_far->zygotes += is_zygote;
    so_far->others += !is_zygote;
}

/* ---- Both ---- */

static void check_loads(load *loads, const kills *made) {
    uint64_t ends[PEBBLE_ERR_TASK_EXPIRED + 1] = {0}, wrong = 0, refused = 0;
    for (int i = 0; i < THREADS; i++) {
        for (int error = 0; error <= PEBBLE_ERR_TASK_EXPIRED; error++)
            ends[error] += loads[i].ends[error];
        wrong += loads[i].wrong;
        refused += loads[i].refused;
    }
    print_message("%d succeeded, %d timed out, %d cancelled, %d expired; killed: %d "
                  "zygotes, %d others\n",
                  (int)ends[PEBBLE_OK], (int)ends[PEBBLE_ERR_TASK_TIMEOUT],
                  (int)ends[PEBBLE_ERR_TASK_CANCELLED], (int)ends[PEBBLE_ERR_TASK_EXPIRED],
                  (int)made->zygotes, (int)made->others);
    assert_int_equal(refused, 0);
    assert_int_equal(wrong, 0);
    assert_true(ends[PEBBLE_ERR_TASK_EXPIRED] <= made->zygotes * WORKERS + made->others);
    assert_true(ends[PEBBLE_OK] > 0 && made->zygotes > 0 && made->others > 0);
}

static void test_storm(void **state) {
    static load loads[THREADS];
    _Atomic bool over = false;
    kills made = {0};
    unsigned seed = 11;
    pebble_future *futures[WORKERS];
    (void)state;
    memset(large, 'l', sizeof large);
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS,
                            .termination_grace_ns = PEBBLE_MILLISECONDS(100)));
    for (unsigned i = 0; i < THREADS; i++) {
        loads[i] = (load){.pool = pool, .over = &over, .seed = 7 * i + 1};
        assert_int_equal(pthread_create(&loads[i].thread, NULL, run_load, &loads[i]), 0);
    }
    int64_t end_ns = os_deadline_after(
        PEBBLE_SECONDS(environment_number("PEBBLE_STORM_SECONDS", SECONDS)));
    while (os_now_ns() < end_ns) {
        usleep(INTERVAL_MS * 1000);
        kill_one(&made, &seed);
    }
    atomic_store(&over, true);
    for (int i = 0; i < THREADS; i++)
        pthread_join(loads[i].thread, NULL);
    check_loads(loads, &made);
    wait_for_ends(&made);
    for (int n = 0; n < WORKERS; n++) /* all is well again */
        futures[n] = schedule(pool, square, &n, sizeof n, 0);
    for (int n = 0; n < WORKERS; n++)
        assert_int_equal(take_int(futures[n]), n * n);
    close_join_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {supported_test(test_storm)};
    return cmocka_run_group_tests_name("storm", tests, NULL, NULL);
}
