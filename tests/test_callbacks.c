/* Done-callbacks: when, where, in which order, and what they may do. */
#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Asserts must not fail in the library's thread: callbacks note, the test looks. */

/* ---- Tasks and pools ---- */

typedef struct area {
    counter started, go;
    _Atomic pid_t child;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

static int echo(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static int gate(pebble_task *task, const void *input, size_t input_size) {
    counter_add(&shared->started, 1);
    return counter_wait(&shared->go, 1) ? echo(task, input, input_size) : 99;
}

static int sleep_with_child(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    pid_t child = fork();
    if (child != 0) {
        atomic_store(&shared->child, child);
        counter_add(&shared->started, 1);
    }
    while (pause() != 0)
        ;
    return 0;
}

static pebble_pool *pool_of(bool threads, int workers) {
    const pebble_pool_options *options = PEBBLE_POOL_OPTIONS(.max_workers = workers);
    return threads ? new_thread_pool(options) : new_process_pool(options);
}

static void run_with_both(void (*check)(bool threads)) {
    check(false);
    memset(shared, 0, sizeof *shared);
    check(true);
}

/* ---- What callbacks note ---- */

enum { NOTES_MAX = 3000 };

typedef struct notes {
    pthread_mutex_t lock;
    counter count;
    int values[NOTES_MAX];
    pthread_t threads[NOTES_MAX];
    bool done[NOTES_MAX];
    _Atomic int inside, most_inside;
} notes;

static notes noted;

typedef struct mark {
    int value;
} mark;

static void clear_notes(void) {
    memset(&noted, 0, sizeof noted);
    pthread_mutex_init(&noted.lock, NULL);
}

static void note(pebble_future *future, int value) {
    int inside = atomic_fetch_add(&noted.inside, 1) + 1;
    pthread_mutex_lock(&noted.lock);
    uint32_t at = counter_value(&noted.count);
    noted.values[at] = value;
    noted.threads[at] = pthread_self();
    noted.done[at] = pebble_future_done(future);
    if (inside > noted.most_inside)
        noted.most_inside = inside;
    counter_add(&noted.count, 1);
    pthread_mutex_unlock(&noted.lock);
    atomic_fetch_sub(&noted.inside, 1);
}

static void note_mark(pebble_future *future, void *context) {
    note(future, ((mark *)context)->value);
}

static mark marks[NOTES_MAX];

static void *marked(int value) {
    marks[value].value = value;
    return &marks[value];
}

static void add(pebble_future *future, pebble_callback callback, void *context) {
    expect_ok(pebble_future_add_callback(future, callback, context));
}

/* ---- Order ---- */

static void check_order(bool threads) {
    enum { COUNT = 20 };
    clear_notes();
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < COUNT; i++)
        add(future, note_mark, marked(i));
    assert_int_equal(counter_value(&noted.count), 0);
    counter_add(&shared->go, 1);
    counter_expect(&noted.count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(noted.values[i], i);
        assert_true(noted.done[i]);
        assert_false(pthread_equal(noted.threads[i], pthread_self()));
        assert_true(pthread_equal(noted.threads[i], noted.threads[0]));
    }
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&noted.count), COUNT); /* once */
}

static void test_in_the_order_of_adding(void **state) {
    (void)state;
    run_with_both(check_order);
}

/* One worker does its tasks in their order, and one thread ends their futures in it: nobody waits for
 * one meanwhile, which would be a second thread that ends some. */
static void check_order_of_ends(bool threads) {
    clear_notes();
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < NOTES_MAX; i++) {
        pebble_future *future = schedule(pool, echo, NULL, 0, 0);
        add(future, note_mark, marked(i));
        pebble_future_unref(future);
    }
    counter_add(&shared->go, 1);
    close_join_free(pool);
    expect_end(first, PEBBLE_OK);
    assert_int_equal(counter_value(&noted.count), NOTES_MAX); /* join waits for them */
    for (int i = 0; i < NOTES_MAX; i++)
        assert_int_equal(noted.values[i], i);
    assert_int_equal(noted.most_inside, 1);
}

static void test_in_the_order_of_the_ends(void **state) {
    (void)state;
    run_with_both(check_order_of_ends);
}

static void check_one_at_a_time(bool threads) {
    clear_notes();
    pebble_pool *pool = pool_of(threads, 4);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    uint32_t called_here = 0;
    for (int i = 0; i < NOTES_MAX; i++) {
        pebble_future *future = schedule(pool, echo, NULL, 0, 0);
        add(future, note_mark, marked(i));
        pebble_future_unref(future);
    }
    counter_add(&shared->go, 1);
    expect_end(first, PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&noted.count), NOTES_MAX);
    bool seen[NOTES_MAX] = {false};
    for (int i = 0; i < NOTES_MAX; i++) {
        assert_false(seen[noted.values[i]]);
        seen[noted.values[i]] = true;
        called_here += pthread_equal(noted.threads[i], pthread_self()) != 0;
    }
    /* Those of this thread may run beside one of the library's. */
    assert_in_range(noted.most_inside, 1, called_here > 0 ? 2 : 1);
}

static void test_each_once_and_one_at_a_time(void **state) {
    (void)state;
    run_with_both(check_one_at_a_time);
}

/* ---- After the end ---- */

static void check_at_once(bool threads) {
    clear_notes();
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *future = schedule(pool, echo, NULL, 0, 0);
    assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
    for (int i = 0; i < 3; i++) {
        add(future, note_mark, marked(i));
        assert_int_equal(counter_value(&noted.count), i + 1);
        assert_int_equal(noted.values[i], i);
        assert_true(pthread_equal(noted.threads[i], pthread_self()));
    }
    close_join_free(pool);
    add(future, note_mark, marked(3)); /* the pool is gone */
    assert_int_equal(counter_value(&noted.count), 4);
    pebble_future_unref(future);
}

static void test_at_once_after_the_end(void **state) {
    (void)state;
    run_with_both(check_at_once);
}

/* Added while the future ends: called once, wherever. */
static void check_race(bool threads) {
    enum { COUNT = 2000 };
    clear_notes();
    pebble_pool *pool = pool_of(threads, 2);
    for (int i = 0; i < COUNT; i++) {
        pebble_future *future = schedule(pool, echo, NULL, 0, 0);
        add(future, note_mark, marked(i));
        pebble_future_unref(future);
    }
    close_join_free(pool);
    assert_int_equal(counter_value(&noted.count), COUNT);
    for (int i = 0; i < COUNT; i++)
        assert_true(noted.done[i]);
}

static void test_added_while_the_future_ends(void **state) {
    (void)state;
    run_with_both(check_race);
}

static void test_arguments(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    pebble_future *future = schedule(pool, echo, NULL, 0, 0);
    expect_error(pebble_future_add_callback(future, NULL, NULL), PEBBLE_ERR_INVALID,
                 "pebble_future_add_callback: callback is NULL");
    expect_end(future, PEBBLE_OK);
    close_join_free(pool);
}

/* ---- What they may do ---- */

typedef struct chain {
    pebble_pool *pool;
    counter links;
    _Atomic int failures;
} chain;

enum { LINKS = 300 };

static void schedule_next(pebble_future *future, void *context) {
    chain *self = context;
    pebble_future *next = NULL;
    (void)future;
    if (counter_add(&self->links, 1) >= LINKS)
        return;
    if (pebble_schedule(self->pool, echo, NULL, 0, 0, &next) != PEBBLE_OK ||
        pebble_future_add_callback(next, schedule_next, self) != PEBBLE_OK)
        self->failures++;
    pebble_future_unref(next);
}

static void check_schedule(bool threads) {
    chain self = {.pool = pool_of(threads, 1)};
    pebble_future *first = schedule(self.pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    add(first, schedule_next, &self);
    counter_add(&shared->go, 1);
    counter_expect(&self.links, LINKS);
    assert_int_equal(self.failures, 0);
    expect_end(first, PEBBLE_OK);
    close_join_free(self.pool);
}

static void test_may_schedule(void **state) {
    (void)state;
    run_with_both(check_schedule);
}

static pebble_future *other;

static void add_more(pebble_future *future, void *context) {
    (void)context;
    note(future, 1);
    pebble_future_add_callback(future, note_mark, marked(2)); /* at once */
    note(future, 3);
    pebble_future_add_callback(other, note_mark, marked(4)); /* later */
}

static void check_add(bool threads) {
    clear_notes();
    pebble_pool *pool = pool_of(threads, 2);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    other = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 2);
    add(first, add_more, NULL);
    assert_int_equal(counter_value(&noted.count), 0);
    counter_add(&shared->go, 1);
    counter_expect(&noted.count, 4);
    assert_int_equal(noted.values[0], 1);
    assert_int_equal(noted.values[1], 2);
    assert_true(pthread_equal(noted.threads[0], noted.threads[1]));
    expect_end(first, PEBBLE_OK);
    expect_end(other, PEBBLE_OK);
    close_join_free(pool);
}

static void test_may_add_callbacks(void **state) {
    (void)state;
    run_with_both(check_add);
}

static void take_and_unref(pebble_future *future, void *context) {
    const void *data;
    size_t size;
    pebble_future_unref(future); /* the last reference but the caller's */
    if (pebble_future_result(future, 0, &data, &size) == PEBBLE_OK && size == 4 &&
        memcmp(data, "last", 4) == 0)
        counter_add(context, 1);
}

static void check_unref(bool threads) {
    counter right = {0};
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *first = schedule(pool, gate, "last", 4, 0);
    counter_expect(&shared->started, 1);
    add(first, take_and_unref, &right);
    for (int i = 0; i < 100; i++)
        add(schedule(pool, echo, "last", 4, 0), take_and_unref, &right);
    counter_add(&shared->go, 1);
    close_join_free(pool);
    assert_int_equal(counter_value(&right), 101);
}

static void test_may_unref(void **state) {
    (void)state;
    run_with_both(check_unref);
}

static void cancel_other(pebble_future *future, void *context) {
    (void)future;
    if (pebble_future_cancel(other))
        counter_add(context, 1);
}

static void check_cancel(bool threads) {
    counter cancelled = {0};
    pebble_pool *pool = pool_of(threads, 1);
    pebble_pool *beside = pool_of(threads, 1);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    pebble_future *blocks = schedule(beside, gate, NULL, 0, 0);
    counter_expect(&shared->started, 2);
    other = schedule(beside, echo, NULL, 0, 0);
    add(first, cancel_other, &cancelled);
    assert_true(threads || pebble_future_cancel(first));
    if (threads)
        counter_add(&shared->go, 1);
    counter_expect(&cancelled, 1);
    counter_add(&shared->go, 1);
    expect_end(first, threads ? PEBBLE_OK : PEBBLE_ERR_TASK_CANCELLED);
    expect_end(blocks, PEBBLE_OK);
    expect_end(other, PEBBLE_ERR_TASK_CANCELLED);
    close_join_free(pool);
    close_join_free(beside);
}

static void test_may_cancel(void **state) {
    (void)state;
    check_cancel(false);
}

typedef struct waits {
    pebble_future *future;
    counter waited;
    pebble_error error;
} waits;

static void wait_for_other(pebble_future *future, void *context) {
    waits *self = context;
    (void)future;
    self->error = pebble_future_wait(self->future, DEADLINE_NS);
    counter_add(&self->waited, 1);
}

static void check_wait(bool threads) {
    pebble_pool *pool = pool_of(threads, 2);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    waits self = {.future = schedule(pool, echo, NULL, 0, 0)};
    add(first, wait_for_other, &self);
    counter_add(&shared->go, 1);
    counter_expect(&self.waited, 1);
    assert_int_equal(self.error, PEBBLE_OK);
    expect_end(first, PEBBLE_OK);
    expect_end(self.future, PEBBLE_OK);
    close_join_free(pool);
}

static void test_may_wait_for_others(void **state) {
    (void)state;
    run_with_both(check_wait);
}

typedef struct joins {
    pebble_pool *pool;
    counter tried;
    pebble_error error;
} joins;

static void join_pool(pebble_future *future, void *context) {
    joins *self = context;
    (void)future;
    self->error = pebble_pool_join(self->pool, DEADLINE_NS);
    counter_add(&self->tried, 1);
}

static void check_join(bool threads) {
    joins self = {.pool = pool_of(threads, 1)};
    pebble_future *first = schedule(self.pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    add(first, join_pool, &self);
    expect_ok(pebble_pool_close(self.pool));
    counter_add(&shared->go, 1);
    counter_expect(&self.tried, 1);
    assert_int_equal(self.error, PEBBLE_ERR_DEADLOCK);
    expect_end(first, PEBBLE_OK);
    close_join_free(self.pool);
}

static void test_must_not_join(void **state) {
    (void)state;
    run_with_both(check_join);
}

/* ---- One that blocks ---- */

typedef struct blocked {
    counter entered, go, left;
} blocked;

static void block(pebble_future *future, void *context) {
    blocked *self = context;
    (void)future;
    counter_add(&self->entered, 1);
    counter_wait(&self->go, 1);
    counter_add(&self->left, 1);
}

static void check_blocking(bool threads) {
    blocked self = {{0}, {0}, {0}};
    clear_notes();
    pebble_pool *pool = pool_of(threads, 2), *beside = pool_of(threads, 1);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    add(first, block, &self);
    counter_add(&shared->go, 1);
    counter_expect(&self.entered, 1);
    expect_end(first, PEBBLE_OK);
    for (int i = 0; i < 100; i++) /* the futures of the same pool go on */
        expect_end(schedule(pool, echo, NULL, 0, 0), PEBBLE_OK);
    memset(shared, 0, sizeof *shared);
    pebble_future *later = schedule(pool, gate, NULL, 0, 0);
    pebble_future *foreign = schedule(beside, gate, NULL, 0, 0);
    counter_expect(&shared->started, 2);
    add(later, note_mark, marked(1));
    add(foreign, note_mark, marked(2));
    counter_add(&shared->go, 1);
    counter_expect(&noted.count, 1); /* the callbacks of other pools go on */
    assert_int_equal(noted.values[0], 2);
    expect_end(later, PEBBLE_OK);
    expect_end(foreign, PEBBLE_OK);
    expect_ok(pebble_pool_close(pool));
    expect_error(pebble_pool_join(pool, PEBBLE_MILLISECONDS(10)), PEBBLE_ERR_TIMEOUT,
                 NULL);
    assert_int_equal(counter_value(&self.left), 0);
    assert_int_equal(counter_value(&noted.count), 1);
    counter_add(&self.go, 1);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS)); /* every callback has returned */
    assert_int_equal(counter_value(&self.left), 1);
    assert_int_equal(counter_value(&noted.count), 2);
    pebble_pool_free(pool);
    close_join_free(beside);
}

static void test_one_that_blocks_holds_up_no_future(void **state) {
    (void)state;
    run_with_both(check_blocking);
}

static void check_wakers(bool threads) {
    blocked self = {{0}, {0}, {0}};
    joins join = {.pool = pool_of(threads, 2)};
    clear_notes();
    pebble_future *first = schedule(join.pool, gate, NULL, 0, 0);
    pebble_future *later = schedule(join.pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 2);
    add(first, block, &self);
    expect_ok(pebble_future_add_waker(first, note_mark, marked(2)));
    expect_ok(pebble_future_add_waker(later, note_mark, marked(2)));
    expect_ok(pebble_future_add_waker(later, join_pool, &join));
    counter_add(&shared->go, 1);
    counter_expect(&self.entered, 1);
    counter_expect(&noted.count, 2); /* wakers go on */
    assert_int_equal(noted.values[0] + noted.values[1], 4);
    assert_true(pthread_equal(noted.threads[0], noted.threads[1]));
    counter_expect(&join.tried, 1);
    assert_int_equal(join.error, PEBBLE_ERR_DEADLOCK);
    expect_end(first, PEBBLE_OK);
    expect_ok(pebble_future_add_waker(later, note_mark, marked(3))); /* at once */
    assert_int_equal(noted.values[2], 3);
    assert_true(pthread_equal(noted.threads[2], pthread_self()));
    expect_error(pebble_future_add_waker(later, NULL, NULL), PEBBLE_ERR_INVALID,
                 "pebble_future_add_waker: callback is NULL");
    expect_end(later, PEBBLE_OK);
    counter_add(&self.go, 1);
    close_join_free(join.pool);
    assert_int_equal(counter_value(&noted.count), 3);
}

static void test_wakers_are_not_held_up(void **state) {
    (void)state;
    run_with_both(check_wakers);
}

/* It may block while workers die and are timed out: the pool deals with that all the same. */
static void test_one_that_blocks_holds_up_no_kill(void **state) {
    blocked self = {{0}, {0}, {0}};
    (void)state;
    pebble_pool *pool = pool_of(false, 2);
    pebble_future *first = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    add(first, block, &self);
    counter_add(&shared->go, 1);
    counter_expect(&self.entered, 1);
    for (int i = 0; i < 4; i++)
        expect_end(schedule(pool, sleep_with_child, NULL, 0, PEBBLE_MILLISECONDS(20)),
                   PEBBLE_ERR_TASK_TIMEOUT);
    counter_add(&self.go, 1);
    expect_end(first, PEBBLE_OK);
    close_join_free(pool);
}

/* ---- Processes are gone when it runs ---- */

typedef struct look {
    counter calls;
    pid_t pid, child;
    bool worker_lives, child_lives;
    pebble_error kind;
} look;

static void look_for_processes(pebble_future *future, void *context) {
    look *self = context;
    self->pid = pebble_future_pid(future);
    self->child = atomic_load(&shared->child);
    self->worker_lives = process_lives(self->pid);
    self->child_lives = process_lives(self->child);
    self->kind = pebble_future_result(future, 0, NULL, NULL);
    counter_add(&self->calls, 1);
}

static void check_gone(pebble_error expected) {
    look self = {.calls = {0}};
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = pool_of(false, 1);
    int64_t timeout_ns =
        expected == PEBBLE_ERR_TASK_TIMEOUT ? PEBBLE_MILLISECONDS(200) : 0;
    pebble_future *future = schedule(pool, sleep_with_child, NULL, 0, timeout_ns);
    add(future, look_for_processes, &self);
    counter_expect(&shared->started, 1);
    if (expected == PEBBLE_ERR_TASK_CANCELLED)
        assert_true(pebble_future_cancel(future));
    counter_expect(&self.calls, 1);
    assert_int_equal(self.kind, expected);
    assert_int_not_equal(self.pid, 0);
    assert_int_not_equal(self.child, 0);
    assert_false(self.worker_lives);
    assert_false(self.child_lives);
    expect_end(future, expected);
    close_join_free(pool);
}

static void test_processes_are_gone_after_a_timeout(void **state) {
    (void)state;
    check_gone(PEBBLE_ERR_TASK_TIMEOUT);
}

static void test_processes_are_gone_after_a_cancel(void **state) {
    (void)state;
    check_gone(PEBBLE_ERR_TASK_CANCELLED);
}

/* Stop ends what runs as cancelled, with the same promise. */
static void test_processes_are_gone_after_a_stop(void **state) {
    look self = {.calls = {0}};
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *future = schedule(pool, sleep_with_child, NULL, 0, 0);
    add(future, look_for_processes, &self);
    counter_expect(&shared->started, 1);
    stop_join_free(pool);
    assert_int_equal(counter_value(&self.calls), 1);
    assert_int_equal(self.kind, PEBBLE_ERR_TASK_CANCELLED);
    assert_false(self.worker_lives);
    assert_false(self.child_lives);
    pebble_future_unref(future);
}

/* ---- A queue whose tasks have callbacks ---- */

/* What is cancelled while it is queued is called back, and the others are performed. */
static void check_cancel_in_queue(bool threads) {
    enum { COUNT = 12 };
    pebble_future *futures[COUNT];
    clear_notes();
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *blocking = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < COUNT; i++) {
        futures[i] = schedule(pool, echo, &i, sizeof i, 0);
        add(futures[i], note_mark, marked(i));
    }
    for (int i = 1; i < COUNT; i += 3)
        assert_true(pebble_future_cancel(futures[i]));
    counter_expect(&noted.count, COUNT / 3);
    counter_add(&shared->go, 1);
    for (int i = 0; i < COUNT; i++)
        expect_end(futures[i], i % 3 == 1 ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_OK);
    expect_end(blocking, PEBBLE_OK);
    close_join_free(pool);
    assert_int_equal(counter_value(&noted.count), COUNT);
}

static void test_cancel_in_the_queue(void **state) {
    (void)state;
    run_with_both(check_cancel_in_queue);
}

/* Stop, beside a thread that cancels: each future ends, each callback is called, once. */
typedef struct cancelling {
    pebble_future *futures[200];
    counter go;
} cancelling;

static void *cancel_every_second(void *context) {
    cancelling *all = context;
    counter_wait(&all->go, 1);
    for (int i = 0; i < 200; i += 2)
        pebble_future_cancel(all->futures[i]);
    return NULL;
}

static void check_stop_with_queue(bool threads) {
    cancelling all = {.go = {0}};
    pthread_t canceller;
    clear_notes();
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *blocking = schedule(pool, gate, NULL, 0, 0);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < 200; i++) {
        all.futures[i] = schedule(pool, echo, &i, sizeof i, 0);
        add(all.futures[i], note_mark, marked(i));
    }
    assert_int_equal(pthread_create(&canceller, NULL, cancel_every_second, &all), 0);
    counter_add(&all.go, 1);
    expect_ok(pebble_pool_stop(pool));
    counter_add(&shared->go, 1);
    pthread_join(canceller, NULL);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    for (int i = 0; i < 200; i++)
        expect_end(all.futures[i], PEBBLE_ERR_TASK_CANCELLED);
    pebble_future_unref(blocking);
    pebble_pool_free(pool);
    assert_int_equal(counter_value(&noted.count), 200);
}

static void test_stop_with_a_queue(void **state) {
    (void)state;
    run_with_both(check_stop_with_queue);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(in_the_order_of_adding),
        TEST(in_the_order_of_the_ends),
        TEST(each_once_and_one_at_a_time),
        TEST(at_once_after_the_end),
        TEST(added_while_the_future_ends),
        TEST(arguments),
        TEST(may_schedule),
        TEST(may_add_callbacks),
        TEST(may_unref),
        TEST(may_cancel),
        TEST(may_wait_for_others),
        TEST(must_not_join),
        TEST(one_that_blocks_holds_up_no_future),
        TEST(one_that_blocks_holds_up_no_kill),
        TEST(wakers_are_not_held_up),
        TEST(processes_are_gone_after_a_timeout),
        TEST(processes_are_gone_after_a_cancel),
        TEST(processes_are_gone_after_a_stop),
        TEST(cancel_in_the_queue),
        TEST(stop_with_a_queue),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("callbacks", tests, NULL, NULL);
}
