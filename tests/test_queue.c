/* Queues: order, capacity, waits, and waiting for any of several. */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

#include "platform/platform.h"

enum { TIME_LIMIT_S = 120, ROUNDS = 500, MANY = 20 };

static pebble_queue *queue_new(size_t capacity) {
    pebble_queue *queue = NULL;
    assert_int_equal(pebble_queue_new(capacity, &queue), PEBBLE_OK);
    assert_non_null(queue);
    return queue;
}

/* Numbers as items. */
static void *item_of(uintptr_t number) {
    return (void *)number;
}

static void put(pebble_queue *queue, uintptr_t number) {
    assert_int_equal(pebble_queue_put(queue, item_of(number), PEBBLE_FOREVER), PEBBLE_OK);
}

static uintptr_t get(pebble_queue *queue) {
    void *item = NULL;
    assert_int_equal(pebble_queue_get(queue, PEBBLE_FOREVER, &item), PEBBLE_OK);
    return (uintptr_t)item;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return PEBBLE_SECONDS(now.tv_sec) + now.tv_nsec;
}

static pthread_t run(void *(*function)(void *), void *argument) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, function, argument), 0);
    return thread;
}

/* ---- Arguments ---- */

static void test_arguments(void **state) {
    (void)state;
    pebble_queue *queue = queue_new(0);
    void *item = &queue;
    expect_error(pebble_queue_new(1, NULL), PEBBLE_ERR_INVALID,
                 "pebble_queue_new: queue is NULL");
    expect_error(pebble_queue_put(NULL, NULL, 0), PEBBLE_ERR_INVALID,
                 "pebble_queue_put: queue is NULL");
    expect_error(pebble_queue_put(queue, NULL, -1), PEBBLE_ERR_INVALID,
                 "pebble_queue_put: timeout_ns is negative");
    expect_error(pebble_queue_get(NULL, 0, &item), PEBBLE_ERR_INVALID,
                 "pebble_queue_get: queue is NULL");
    expect_error(pebble_queue_get(queue, INT64_MIN, &item), PEBBLE_ERR_INVALID,
                 "pebble_queue_get: timeout_ns is negative");
    expect_error(pebble_queue_get(queue, 0, NULL), PEBBLE_ERR_INVALID,
                 "pebble_queue_get: item is NULL");
    assert_int_equal(pebble_queue_size(NULL), 0);
    assert_non_null(strstr(pebble_error_message(), "pebble_queue_size: queue is NULL"));
    assert_int_equal(pebble_queue_size(queue), 0);
    assert_ptr_equal(item, &queue);
    pebble_queue_free(queue);
    pebble_queue_free(NULL);
}

static void test_wait_arguments(void **state) {
    (void)state;
    pebble_queue *queue = queue_new(0);
    pebble_queue *queues[] = {queue, NULL}, *ready[2] = {NULL, NULL};
    size_t count = 99;
    put(queue, 1);
    expect_error(pebble_wait_for_queues(NULL, 1, 0, ready, &count), PEBBLE_ERR_INVALID,
                 "pebble_wait_for_queues: queues is NULL");
    expect_error(pebble_wait_for_queues(queues, 0, 0, ready, &count), PEBBLE_ERR_INVALID,
                 "count is 0");
    expect_error(pebble_wait_for_queues(queues, 1, -1, ready, &count), PEBBLE_ERR_INVALID,
                 "timeout_ns is negative");
    expect_error(pebble_wait_for_queues(queues, 1, 0, NULL, &count), PEBBLE_ERR_INVALID,
                 "ready is NULL");
    expect_error(pebble_wait_for_queues(queues, 1, 0, ready, NULL), PEBBLE_ERR_INVALID,
                 "ready_count is NULL");
    expect_error(pebble_wait_for_queues(queues, 2, 0, ready, &count), PEBBLE_ERR_INVALID,
                 "queues[1] is NULL");
    assert_int_equal(count, 99);
    assert_null(ready[0]);
    pebble_queue_free(queue);
}

/* ---- One thread ---- */

static void test_first_in_first_out(void **state) {
    (void)state;
    pebble_queue *queue = queue_new(0);
    for (uintptr_t i = 0; i < 1000; i++)
        put(queue, i); /* 0 is NULL, an item as any other */
    assert_int_equal(pebble_queue_size(queue), 1000);
    for (uintptr_t i = 0; i < 1000; i++)
        assert_int_equal(get(queue), i);
    assert_int_equal(pebble_queue_size(queue), 0);
    pebble_queue_free(queue);
}

/* The ring grows with its first item at every place. */
static void test_order_survives_growth(void **state) {
    (void)state;
    for (uintptr_t turned = 0; turned < 40; turned++) {
        pebble_queue *queue = queue_new(0);
        for (uintptr_t i = 0; i < turned; i++) {
            put(queue, i);
            assert_int_equal(get(queue), i);
        }
        for (uintptr_t i = 0; i < 100; i++)
            put(queue, i);
        for (uintptr_t i = 0; i < 100; i++)
            assert_int_equal(get(queue), i);
        pebble_queue_free(queue);
    }
}

static void test_capacity(void **state) {
    (void)state;
    for (size_t capacity = 1; capacity < 40; capacity += 6) {
        pebble_queue *queue = queue_new(capacity);
        for (uintptr_t i = 0; i < capacity; i++)
            assert_int_equal(pebble_queue_put(queue, item_of(i), 0), PEBBLE_OK);
        expect_error(pebble_queue_put(queue, NULL, 0), PEBBLE_ERR_TIMEOUT,
                     "pebble_queue_put");
        assert_int_equal(pebble_queue_size(queue), capacity);
        assert_int_equal(get(queue), 0);
        assert_int_equal(pebble_queue_put(queue, NULL, 0), PEBBLE_OK);
        pebble_queue_free(queue); /* with items in it */
    }
}

static void test_timeouts(void **state) {
    void *item = &state;
    (void)state;
    pebble_queue *queue = queue_new(1);
    expect_error(pebble_queue_get(queue, 0, &item), PEBBLE_ERR_TIMEOUT,
                 "pebble_queue_get");
    int64_t before_ns = now_ns();
    assert_int_equal(pebble_queue_get(queue, PEBBLE_MILLISECONDS(3), &item),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(now_ns() - before_ns >= PEBBLE_MILLISECONDS(3));
    assert_ptr_equal(item, &state);
    put(queue, 1);
    before_ns = now_ns();
    assert_int_equal(pebble_queue_put(queue, NULL, PEBBLE_MILLISECONDS(3)),
                     PEBBLE_ERR_TIMEOUT);
    assert_true(now_ns() - before_ns >= PEBBLE_MILLISECONDS(3));
    assert_int_equal(pebble_queue_size(queue), 1);
    pebble_queue_free(queue);
}

/* ---- Several threads ---- */

enum { PRODUCERS = 3, CONSUMERS = 3, ITEMS = 5000 };

typedef struct traffic {
    pebble_queue *queue;
    _Atomic uintptr_t next_producer;
    _Atomic uint64_t sum;
    _Atomic unsigned faults;
} traffic;

static void *produce(void *argument) {
    traffic *shared = argument;
    uintptr_t producer = atomic_fetch_add(&shared->next_producer, 1);
    for (uintptr_t i = 1; i <= ITEMS; i++) {
        if (pebble_queue_put(shared->queue, item_of(producer << 32 | i),
                             PEBBLE_FOREVER) != 0)
            atomic_fetch_add(&shared->faults, 1);
    }
    return NULL;
}

/* Each producer's items must come in their order; NULL ends. */
static void *consume(void *argument) {
    traffic *shared = argument;
    uintptr_t last[PRODUCERS] = {0};
    void *item;
    for (;;) {
        if (pebble_queue_get(shared->queue, PEBBLE_FOREVER, &item) != PEBBLE_OK)
            atomic_fetch_add(&shared->faults, 1);
        if (item == NULL)
            return NULL;
        uintptr_t producer = (uintptr_t)item >> 32, number = (uintptr_t)item & UINT32_MAX;
        if (producer >= PRODUCERS || number <= last[producer])
            atomic_fetch_add(&shared->faults, 1);
        else
            last[producer] = number;
        atomic_fetch_add(&shared->sum, number);
    }
}

static void carry_traffic(size_t capacity) {
    traffic shared = {.queue = queue_new(capacity)};
    pthread_t producers[PRODUCERS], consumers[CONSUMERS];
    for (int i = 0; i < CONSUMERS; i++)
        consumers[i] = run(consume, &shared);
    for (int i = 0; i < PRODUCERS; i++)
        producers[i] = run(produce, &shared);
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(producers[i], NULL);
    for (int i = 0; i < CONSUMERS; i++)
        put(shared.queue, 0);
    for (int i = 0; i < CONSUMERS; i++)
        pthread_join(consumers[i], NULL);
    assert_int_equal(atomic_load(&shared.faults), 0);
    assert_int_equal(atomic_load(&shared.sum),
                     (uint64_t)PRODUCERS * ITEMS * (ITEMS + 1) / 2);
    assert_int_equal(pebble_queue_size(shared.queue), 0);
    pebble_queue_free(shared.queue);
}

static void test_traffic(void **state) {
    (void)state;
    carry_traffic(1);
    carry_traffic(7);
    carry_traffic(0);
}

static void *put_one(void *queue) {
    pebble_queue_put(queue, item_of(1), PEBBLE_FOREVER);
    return NULL;
}

static void *get_one(void *queue) {
    void *item;
    pebble_queue_get(queue, PEBBLE_FOREVER, &item);
    return NULL;
}

/* Cancelled at its wait or before it: whatever it was told goes to another. */
static void check_cancelled(void *(*side)(void *), pebble_queue *queue) {
    void *result;
    pthread_t thread = run(side, queue);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    assert_ptr_equal(result, PTHREAD_CANCELED);
}

/* A cancelled thread leaves the queue as usable as it was. */
static void test_cancelled_waits(void **state) {
    (void)state;
    pebble_queue *queue = queue_new(1);
    for (int round = 0; round < ROUNDS; round++) {
        void *item;
        check_cancelled(get_one, queue);
        pthread_t getter = run(get_one, queue);
        assert_int_equal(pebble_queue_put(queue, item_of(1), PEBBLE_FOREVER), PEBBLE_OK);
        pthread_join(getter, NULL);
        put(queue, 1);
        check_cancelled(put_one, queue);
        assert_int_equal(pebble_queue_get(queue, PEBBLE_FOREVER, &item), PEBBLE_OK);
        assert_int_equal(pebble_queue_size(queue), 0);
    }
    pebble_queue_free(queue);
}

/* Deadlines that race with what is waited for: the item is got or stays, never lost. */
static void test_timeout_races_with_put(void **state) {
    (void)state;
    pebble_queue *queue = queue_new(0);
    for (int round = 0; round < ROUNDS; round++) {
        void *item = NULL;
        pthread_t thread = run(put_one, queue);
        pebble_error error =
            pebble_queue_get(queue, PEBBLE_MICROSECONDS(round % 100 * 2), &item);
        pthread_join(thread, NULL);
        assert_true(error == PEBBLE_OK || error == PEBBLE_ERR_TIMEOUT);
        assert_int_equal(pebble_queue_size(queue), error == PEBBLE_OK ? 0 : 1);
        if (error != PEBBLE_OK)
            assert_int_equal(get(queue), 1);
    }
    pebble_queue_free(queue);
}

/* ---- Waiting for several queues ---- */

static void test_wait_gives_those_with_items(void **state) {
    pebble_queue *queues[MANY], *ready[MANY];
    size_t count = 99;
    (void)state;
    for (int i = 0; i < MANY; i++)
        queues[i] = queue_new(0);
    assert_int_equal(pebble_wait_for_queues(queues, MANY, 0, ready, &count), PEBBLE_OK);
    assert_int_equal(count, 0);
    count = 99;
    assert_int_equal(
        pebble_wait_for_queues(queues, MANY, PEBBLE_MILLISECONDS(2), ready, &count),
        PEBBLE_OK);
    assert_int_equal(count, 0);
    put(queues[17], 1);
    put(queues[3], 1);
    put(queues[3], 2);
    for (int i = 0; i < 2; i++) { /* it takes none */
        assert_int_equal(
            pebble_wait_for_queues(queues, MANY, PEBBLE_FOREVER, ready, &count),
            PEBBLE_OK);
        assert_int_equal(count, 2);
        assert_ptr_equal(ready[0], queues[3]);
        assert_ptr_equal(ready[1], queues[17]);
    }
    get(queues[17]);
    get(queues[3]);
    assert_int_equal(pebble_wait_for_queues(queues, MANY, 0, ready, &count), PEBBLE_OK);
    assert_int_equal(count, 1); /* the other one of 3 */
    assert_ptr_equal(ready[0], queues[3]);
    get(queues[3]);
    assert_int_equal(pebble_wait_for_queues(queues, MANY, 0, ready, &count), PEBBLE_OK);
    assert_int_equal(count, 0);
    for (int i = 0; i < MANY; i++)
        pebble_queue_free(queues[i]);
}

static void test_wait_with_duplicates(void **state) {
    (void)state;
    pebble_queue *empty = queue_new(0), *full = queue_new(1);
    pebble_queue *queues[] = {full, empty, full}, *ready[3];
    size_t count;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t thread = run(put_one, full);
        assert_int_equal(pebble_wait_for_queues(queues, 3, PEBBLE_FOREVER, ready, &count),
                         0);
        pthread_join(thread, NULL);
        assert_in_range(count, 1, 2); /* it may have come between the two looks */
        assert_ptr_equal(ready[0], full);
        get(full);
    }
    pebble_queue_free(empty);
    pebble_queue_free(full);
}

typedef struct exchange {
    pebble_queue *queues[3];
    pebble_queue *answers;
    sem_t known;
    pthread_t server;
    _Atomic unsigned faults;
} exchange;

/* Serves three queues with waits only, until NULL comes; sends everything back. */
static void *serve(void *argument) {
    exchange *shared = argument;
    pebble_queue *ready[3];
    size_t count;
    void *item = shared;
    sem_post(&shared->known);
    while (item != NULL) {
        if (pebble_wait_for_queues(shared->queues, 3, PEBBLE_FOREVER, ready, &count) != 0 ||
            count == 0)
            atomic_fetch_add(&shared->faults, 1);
        for (size_t i = 0; i < count; i++) {
            if (pebble_queue_get(ready[i], 0, &item) != PEBBLE_OK) /* the only getter */
                atomic_fetch_add(&shared->faults, 1);
            pebble_queue_put(shared->answers, item, PEBBLE_FOREVER);
        }
    }
    return NULL;
}

static void exchange_start(exchange *shared) {
    for (int i = 0; i < 3; i++)
        shared->queues[i] = queue_new(1);
    shared->answers = queue_new(0);
    atomic_init(&shared->faults, 0);
    sem_init(&shared->known, 0, 0);
    shared->server = run(serve, shared);
    while (sem_wait(&shared->known) != 0)
        assert_int_equal(errno, EINTR);
}

static void exchange_end(exchange *shared) {
    put(shared->queues[0], 0);
    assert_int_equal(get(shared->answers), 0);
    pthread_join(shared->server, NULL);
    assert_int_equal(atomic_load(&shared->faults), 0);
    for (int i = 0; i < 3; i++)
        pebble_queue_free(shared->queues[i]);
    pebble_queue_free(shared->answers);
    sem_destroy(&shared->known);
}

static void test_wait_wakes_for_each(void **state) {
    exchange shared;
    (void)state;
    exchange_start(&shared);
    for (uintptr_t i = 1; i <= 4 * ROUNDS; i++) {
        put(shared.queues[i % 3], i);
        assert_int_equal(get(shared.answers), i);
    }
    exchange_end(&shared);
}

static sem_t interrupted;

static void on_interrupt(int signal) {
    (void)signal;
    sem_post(&interrupted);
}

/* The thread sanitizer holds a signal back while the thread is in a bare system call. */
static void test_signals_do_not_end_a_wait(void **state) {
    exchange shared;
    struct sigaction action = {.sa_handler = on_interrupt}, before; /* no SA_RESTART */
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip();
    sem_init(&interrupted, 0, 0);
    sigaction(SIGUSR1, &action, &before);
    exchange_start(&shared);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(pthread_kill(shared.server, SIGUSR1), 0);
        while (sem_wait(&interrupted) != 0)
            assert_int_equal(errno, EINTR);
    }
    put(shared.queues[2], 5);
    assert_int_equal(get(shared.answers), 5);
    exchange_end(&shared);
    sigaction(SIGUSR1, &before, NULL);
    sem_destroy(&interrupted);
}

typedef struct crowd {
    pebble_queue *queues[2];
    _Atomic int served;
} crowd;

/* Waits and then tries to take: others may have been faster. */
static void *compete(void *argument) {
    crowd *shared = argument;
    pebble_queue *ready[2];
    size_t count;
    void *item;
    for (;;) {
        if (pebble_wait_for_queues(shared->queues, 2, PEBBLE_FOREVER, ready, &count) != 0)
            return NULL;
        for (size_t i = 0; i < count; i++) {
            if (pebble_queue_get(ready[i], 0, &item) != PEBBLE_OK)
                continue;
            if (item == NULL)
                return NULL;
            atomic_fetch_add(&shared->served, 1);
        }
    }
}

static void test_many_wait_for_the_same(void **state) {
    crowd shared = {{queue_new(0), queue_new(2)}, 0};
    pthread_t threads[4];
    (void)state;
    for (int i = 0; i < 4; i++)
        threads[i] = run(compete, &shared);
    for (uintptr_t i = 0; i < 4 * ROUNDS; i++)
        put(shared.queues[i % 2], i + 1);
    while (atomic_load(&shared.served) < 4 * ROUNDS)
        sched_yield();
    for (int i = 0; i < 4; i++)
        put(shared.queues[0], 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&shared.served), 4 * ROUNDS);
    pebble_queue_free(shared.queues[0]);
    pebble_queue_free(shared.queues[1]);
}

/* ---- Want of memory ---- */

#ifdef PEBBLE_FAULT_INJECTION
static void test_without_memory(void **state) {
    pebble_queue *queue = NULL, *queues[MANY], *ready[MANY];
    size_t count = 99;
    (void)state;
    pebble_test_fault(OS_FAULT_ALLOC, 1, true);
    expect_error(pebble_queue_new(0, &queue), PEBBLE_ERR_NO_MEMORY, "pebble_queue_new");
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_null(queue);
    queue = queue_new(0);
    pebble_test_fault(OS_FAULT_ALLOC, 1, true);
    expect_error(pebble_queue_put(queue, NULL, 0), PEBBLE_ERR_NO_MEMORY,
                 "pebble_queue_put");
    for (int i = 0; i < MANY; i++)
        queues[i] = queue;
    expect_error(pebble_wait_for_queues(queues, MANY, 0, ready, &count),
                 PEBBLE_ERR_NO_MEMORY, "pebble_wait_for_queues");
    assert_int_equal(count, 99);
    assert_int_equal(pebble_wait_for_queues(queues, 4, 0, ready, &count), PEBBLE_OK);
    assert_int_equal(count, 0);
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    pebble_queue_free(queue);
}

/* A ring that cannot grow keeps what it has, and goes on. */
static void test_growth_without_memory(void **state) {
    uintptr_t held = 0;
    (void)state;
    pebble_queue *queue = queue_new(0);
    put(queue, held++);
    pebble_test_fault(OS_FAULT_ALLOC, 1, true);
    while (pebble_queue_put(queue, item_of(held), 0) == PEBBLE_OK)
        held++;
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_int_equal(pebble_queue_size(queue), held);
    put(queue, held++);
    for (uintptr_t i = 0; i < held; i++)
        assert_int_equal(get(queue), i);
    pebble_queue_free(queue);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_wait_arguments),
        cmocka_unit_test(test_first_in_first_out),
        cmocka_unit_test(test_order_survives_growth),
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_timeout_races_with_put),
        cmocka_unit_test(test_cancelled_waits),
        cmocka_unit_test(test_wait_gives_those_with_items),
        cmocka_unit_test(test_wait_with_duplicates),
        cmocka_unit_test(test_wait_wakes_for_each),
        cmocka_unit_test(test_signals_do_not_end_a_wait),
        cmocka_unit_test(test_many_wait_for_the_same),
#ifdef PEBBLE_FAULT_INJECTION
        cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_growth_without_memory),
#endif
    };
    alarm(TIME_LIMIT_S);
    return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
