/* Row 8: 100,000 tasks (PEBBLE_CANCELS), some with timeouts, submitted and cancelled at random by several
 * threads. Every future ends as it must, and what was cancelled before its start never runs. */
#include "support.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

enum {
    THREADS = 4,
    POOLS = 3,
    TASKS = SANITIZED ? 12000 : 100000,
    BEHIND = 64, /* tasks that a thread has under way */
};

/* ---- Tasks ---- */

typedef enum kind { QUICK, BUSY, SLEEPS } kind;

typedef struct order {
    uint32_t index;
    uint32_t kind;
} order;

static _Atomic uint8_t *ran; /* by index: how often the task started */

static int run(pebble_task *task, const void *input, size_t input_size) {
    const order *told = input;
    (void)input_size;
    atomic_fetch_add(&ran[told->index], 1);
    if (told->kind == BUSY) {
        int64_t until_ns = os_now_ns() + 50000;
        while (os_now_ns() < until_ns)
            ;
    }
    while (told->kind == SLEEPS)
        pause();
    return (int)pebble_task_write(task, &told->index, sizeof told->index);
}

/* ---- A thread's part ---- */

typedef struct entry {
    pebble_future *future;
    uint32_t index;
    kind kind;
    int64_t timeout_ns;
    bool cancelled; /* a cancel said true */
} entry;

typedef struct part {
    pthread_t thread;
    pebble_pool *pool;
    bool threads; /* a pool of threads: nothing that runs can be ended */
    unsigned seed;
    uint32_t count;
    uint32_t unresolved, wrong_state, wrong_result, refused;
    uint32_t by[PEBBLE_ERR_TASK_EXPIRED + 1];
    entry *entries;
} part;

static void submit(part *self, entry *at) {
    static const int64_t timeouts[] = {0, 0, PEBBLE_MILLISECONDS(1),
                                       PEBBLE_MILLISECONDS(3), PEBBLE_SECONDS(60)};
    int dice = rand_r(&self->seed) % 1000;
    at->kind = dice < 20 && !self->threads ? SLEEPS : (dice < 200 ? BUSY : QUICK);
    at->timeout_ns = self->threads ? 0 : timeouts[rand_r(&self->seed) % 5];
    order told = {at->index, at->kind};
    self->refused += pebble_schedule(self->pool, run, &told, sizeof told, at->timeout_ns,
                                     &at->future) != PEBBLE_OK;
    if (rand_r(&self->seed) % 4 == 0)
        at->cancelled |= pebble_future_cancel(at->future);
}

static bool would_end(const entry *at) {
    return at->kind != SLEEPS ||
           (at->timeout_ns > 0 && at->timeout_ns < PEBBLE_SECONDS(1));
}

/* Waits for a future. It may be behind tasks that never end, which hold all workers: so those are
 * cancelled meanwhile. */
static void wait_for(part *self, uint32_t number) {
    int64_t deadline_ns = os_deadline_after(DEADLINE_NS);
    while (pebble_future_wait(self->entries[number].future, PEBBLE_MILLISECONDS(5)) !=
               PEBBLE_OK &&
           os_now_ns() < deadline_ns) {
        for (uint32_t i = number; i < self->count && self->entries[i].future != NULL;
             i++) {
            if (!would_end(&self->entries[i]))
                self->entries[i].cancelled |=
                    pebble_future_cancel(self->entries[i].future);
        }
    }
}

static void finish(part *self, uint32_t number) {
    uint32_t index = 0;
    entry *at = &self->entries[number];
    if (!would_end(at) || rand_r(&self->seed) % 4 == 0)
        at->cancelled |= pebble_future_cancel(at->future);
    wait_for(self, number);
    pebble_error error = pebble_future_copy_result(at->future, 0, &index, sizeof index);
    if (!pebble_future_done(at->future)) {
        self->unresolved++;
        return;
    }
    self->by[error]++;
    pebble_state ended = pebble_future_state(at->future);
    self->wrong_state += at->cancelled != (ended == PEBBLE_CANCELLED);
    if (error == PEBBLE_OK)
        self->wrong_result += index != at->index;
    else if (error == PEBBLE_ERR_TASK_TIMEOUT)
        self->wrong_state += at->timeout_ns == 0;
    else if (error != PEBBLE_ERR_TASK_CANCELLED)
        self->wrong_state++;
}

static void *run_part(void *context) {
    part *self = context;
    for (uint32_t i = 0; i < self->count + BEHIND; i++) {
        if (i < self->count)
            submit(self, &self->entries[i]);
        if (i >= BEHIND)
            finish(self, i - BEHIND);
    }
    return NULL;
}

/* ---- All of them ---- */

/* What the cancels met, and the timeouts. */
typedef struct meetings {
    uint32_t cancelled_before, cancelled_running, timed_out;
} meetings;

/* A future that names no process says that its task never started. */
static void check_runs(const part *self, meetings *met) {
    for (uint32_t i = 0; i < self->count; i++) {
        pebble_future *future = self->entries[i].future;
        const pebble_failure *failure = pebble_future_failure(future);
        unsigned runs = atomic_load(&ran[self->entries[i].index]);
        if (failure == NULL)
            assert_int_equal(runs, 1);
        else if (failure->pid != 0)
            assert_in_range(runs, 0, 1); /* ended at its start, perhaps */
        else
            assert_int_equal(runs, 0);
        bool cancelled = failure != NULL && failure->kind == PEBBLE_ERR_TASK_CANCELLED;
        met->cancelled_before += cancelled && failure->pid == 0;
        met->cancelled_running += cancelled && runs == 1;
        met->timed_out += failure != NULL && !cancelled && runs == 1;
        pebble_future_unref(future);
    }
}

static void check_pool(pebble_pool *pool, bool threads) {
    part parts[THREADS];
    meetings met = {0};
    uint32_t count = environment_number("PEBBLE_CANCELS", TASKS) / POOLS / THREADS;
    ran = shared_memory(THREADS * count);
    for (uint32_t i = 0; i < THREADS; i++) {
        parts[i] =
            (part){.pool = pool, .threads = threads, .seed = 7 * i + 1, .count = count};
        parts[i].entries = calloc(count, sizeof *parts[i].entries);
        assert_non_null(parts[i].entries);
        for (uint32_t n = 0; n < count; n++)
            parts[i].entries[n].index = i * count + n;
    }
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&parts[i].thread, NULL, run_part, &parts[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(parts[i].thread, NULL);
        print_message("%u succeeded, %u cancelled, %u timed out\n",
                      parts[i].by[PEBBLE_OK], parts[i].by[PEBBLE_ERR_TASK_CANCELLED],
                      parts[i].by[PEBBLE_ERR_TASK_TIMEOUT]);
    }
    close_join_free(pool);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(parts[i].refused, 0);
        assert_int_equal(parts[i].unresolved, 0);
        assert_int_equal(parts[i].wrong_state, 0);
        assert_int_equal(parts[i].wrong_result, 0);
        check_runs(&parts[i], &met);
        free(parts[i].entries);
    }
    print_message("cancelled: %u before their start, %u while they ran; %u timed out\n",
                  met.cancelled_before, met.cancelled_running, met.timed_out);
    assert_true(met.cancelled_before > 0);
    assert_true(threads || (met.cancelled_running > 0 && met.timed_out > 0));
}

static void test_two_workers(void **state) {
    (void)state;
    check_pool(new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2)), false);
}

static void test_eight_workers(void **state) {
    (void)state;
    check_pool(new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 8)), false);
}

static void test_threads(void **state) {
    (void)state;
    check_pool(new_thread_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2)), true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_two_workers),
        supported_test(test_eight_workers),
        supported_test(test_threads),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("cancels", tests, NULL, NULL);
}
