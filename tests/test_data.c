/* Data's way: inputs and results of all sizes, whole and in pieces, and what may end midway. */
#include "support.h"

#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "channel/layout.h"
#include "platform/platform.h"

#define SANITIZED (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)

enum {
    KIB = 1024,
    MIB = 1024 * 1024,
    HUGE_SIZE = SANITIZED ? 20 * MIB : 100 * MIB,
};

typedef struct area {
    counter started, go, ran, released;
    _Atomic pid_t pid;
} area;

static area *shared;

static int setup(void **state) {
    shared = shared_memory(sizeof *shared);
    return support_setup(state);
}

/* ---- Bytes ---- */

/* Eight bytes that depend on their place and a seed. */
static uint64_t word_at(uint64_t index, uint64_t seed) {
    uint64_t x = (index + 1) * UINT64_C(0x9E3779B97F4A7C15) ^ seed;
    return x ^ x >> 29;
}

__attribute__((no_sanitize("address", "undefined", "thread"))) static void fill(
    void *data, size_t size, uint64_t seed) {
    unsigned char *bytes = data;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word = word_at(i / 8, seed);
        memcpy(bytes + i, &word, 8);
    }
    uint64_t word = word_at(i / 8, seed);
    memcpy(bytes + i, &word, size - i);
}

__attribute__((no_sanitize("address", "undefined", "thread"))) static bool is_filled(
    const void *data, size_t size, uint64_t seed) {
    const unsigned char *bytes = data;
    size_t i = 0;
    uint64_t word;
    for (; i + 8 <= size; i += 8) {
        word = word_at(i / 8, seed);
        if (memcmp(bytes + i, &word, 8) != 0)
            return false;
    }
    word = word_at(i / 8, seed);
    return memcmp(bytes + i, &word, size - i) == 0;
}

static void *filled(size_t size, uint64_t seed) {
    void *data = malloc(size > 0 ? size : 1);
    assert_non_null(data);
    fill(data, size, seed);
    return data;
}

/* ---- Tasks ---- */

static int echo(pebble_task *task, const void *input, size_t input_size) {
    if ((uintptr_t)input % 16 != 0)
        return pebble_task_fail(task, 1, "the input is not aligned");
    return (int)pebble_task_write(task, input, input_size);
}

static int gate(pebble_task *task, const void *input, size_t input_size) {
    atomic_store(&shared->pid, getpid());
    counter_add(&shared->started, 1);
    return counter_wait(&shared->go, 1) ? echo(task, input, input_size) : 99;
}

static int quick(pebble_task *task, const void *input, size_t input_size) {
    counter_add(&shared->ran, 1);
    return (int)pebble_task_write(task, input, input_size);
}

/* Says whether the input is right: of this size, filled with the size as seed. */
static int verify(pebble_task *task, const void *input, size_t input_size) {
    int right = (uintptr_t)input % 16 == 0 && is_filled(input, input_size, input_size);
    return (int)pebble_task_write(task, &right, sizeof right);
}

typedef struct product {
    size_t size;  /* of the result, filled with the size as seed */
    size_t piece; /* written in such pieces; 0: as a whole */
    size_t stop_at;
    int ending; /* 0: returns, 1: fails, 2: is killed, 3: exits with 0 */
} product;

/* At stop_at bytes it says "started" and waits for "go". */
static int produce(pebble_task *task, const void *input, size_t input_size) {
    product told;
    if (input_size != sizeof told)
        return 1;
    memcpy(&told, input, sizeof told);
    unsigned char *data = malloc(told.size > 0 ? told.size : 1);
    size_t piece = told.piece > 0 ? told.piece : told.size;
    pebble_error error = PEBBLE_OK;
    if (data == NULL)
        return 2;
    fill(data, told.size, told.size);
    if (told.size == 0)
        error = pebble_task_write(task, data, 0);
    for (size_t at = 0; at < told.size && error == PEBBLE_OK; at += piece) {
        size_t left = told.size - at;
        if (told.stop_at != 0 && at >= told.stop_at) {
            told.stop_at = 0;
            atomic_store(&shared->pid, getpid());
            counter_add(&shared->started, 1);
            if (!counter_wait(&shared->go, 1))
                return 3;
        }
        error = pebble_task_write(task, data + at, left < piece ? left : piece);
    }
    free(data);
    if (told.ending == 1)
        return pebble_task_fail(task, 11, "after %zu bytes", told.size);
    if (told.ending == 2)
        raise(SIGKILL);
    if (told.ending == 3)
        _exit(0);
    return (int)error;
}

/* ---- In the program ---- */

static pebble_pool *pool_of(bool threads, int workers) {
    const pebble_pool_options *options =
        PEBBLE_POOL_OPTIONS(.max_workers = workers,
                            .termination_grace_ns = PEBBLE_SECONDS(1));
    return threads ? new_thread_pool(options) : new_process_pool(options);
}

static pebble_future *schedule_product(pebble_pool *pool, product told) {
    return schedule(pool, produce, &told, sizeof told, 0);
}

/* Ends the future, whose result must be filled. */
static void expect_filled(pebble_future *future, size_t expected_size) {
    const void *data = NULL;
    size_t size = 0;
    expect_ok(pebble_future_result(future, DEADLINE_NS, &data, &size));
    assert_int_equal(size, expected_size);
    assert_int_equal((uintptr_t)data % 16, 0);
    assert_true(is_filled(data, size, expected_size));
    pebble_future_unref(future);
}

static const size_t sizes[] = {
    0,
    1,
    15,
    16,
    17,
    31,
    32,
    33,
    4 * KIB,
    CHANNEL_WHOLE - 33,
    CHANNEL_WHOLE - 32,
    CHANNEL_WHOLE - 31,
    CHANNEL_WHOLE - 1,
    CHANNEL_WHOLE,
    CHANNEL_WHOLE + 1,
    CHANNEL_RING / 8 - 1,
    CHANNEL_RING / 8,
    CHANNEL_RING / 4 - 1,
    CHANNEL_RING / 4,
    CHANNEL_RING / 4 + 1,
    64 * KIB,
    CHANNEL_RING - 65,
    CHANNEL_RING - 64,
    CHANNEL_RING - 32,
    CHANNEL_RING - 1,
    CHANNEL_RING,
    CHANNEL_RING + 1,
    2 * CHANNEL_RING + 7,
    MIB,
    10 * MIB,
};

enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void check_sizes(bool threads, int workers) {
    pebble_pool *pool = pool_of(threads, workers);
    for (int i = 0; i < SIZES; i++) {
        void *data = filled(sizes[i], sizes[i]);
        expect_filled(schedule(pool, echo, data, sizes[i], 0), sizes[i]);
        assert_int_equal(take_int(schedule(pool, verify, data, sizes[i], 0)), 1);
        expect_filled(schedule_product(pool, (product){.size = sizes[i]}), sizes[i]);
        free(data);
    }
    close_join_free(pool);
}

static void test_sizes(void **state) {
    (void)state;
    check_sizes(false, 1);
    check_sizes(false, 2);
}

static void test_sizes_threads(void **state) {
    (void)state;
    check_sizes(true, 2);
}

/* All at once, so that records of all sizes follow each other in the rings, many times round. */
static void check_mixed(int workers) {
    enum { ROUNDS = SANITIZED ? 4 : 20 };
    static pebble_future *futures[ROUNDS * SIZES];
    void *data[SIZES];
    pebble_pool *pool = pool_of(false, workers);
    for (int i = 0; i < SIZES; i++)
        data[i] = filled(sizes[i], sizes[i]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < SIZES - 1; i++) /* but the largest */
            futures[round * SIZES + i] = schedule(pool, echo, data[i], sizes[i], 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < SIZES - 1; i++)
            expect_filled(futures[round * SIZES + i], sizes[i]);
    }
    for (int i = 0; i < SIZES; i++)
        free(data[i]);
    close_join_free(pool);
}

static void test_mixed_sizes(void **state) {
    (void)state;
    check_mixed(1);
    check_mixed(2);
}

/* Every size up to some hundred bytes: every place in a line. */
static void test_small_sizes(void **state) {
    enum { COUNT = 600 };
    pebble_future *futures[COUNT];
    unsigned char data[COUNT];
    (void)state;
    pebble_pool *pool = pool_of(false, 2);
    for (size_t i = 0; i < COUNT; i++) {
        fill(data, i, i);
        futures[i] = schedule(pool, echo, data, i, 0); /* copied */
        memset(data, 0, sizeof data);
    }
    for (size_t i = 0; i < COUNT; i++)
        expect_filled(futures[i], i);
    close_join_free(pool);
}

/* ---- Very large ---- */

static void check_huge(bool threads) {
    pebble_pool *pool = pool_of(threads, 1);
    void *data = filled(HUGE_SIZE, HUGE_SIZE);
    assert_int_equal(take_int(schedule(pool, verify, data, HUGE_SIZE, 0)), 1);
    expect_filled(schedule_product(pool, (product){.size = HUGE_SIZE}), HUGE_SIZE);
    expect_filled(schedule(pool, echo, data, HUGE_SIZE, 0), HUGE_SIZE);
    free(data);
    close_join_free(pool);
}

static void test_huge(void **state) {
    (void)state;
    check_huge(false);
}

static void test_huge_threads(void **state) {
    (void)state;
    check_huge(true);
}

/* With a timeout that would be too short if it counted the way there: it counts from the start,
 * when the input has arrived. */
static void test_huge_with_a_timeout(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    void *data = filled(HUGE_SIZE, HUGE_SIZE);
    pebble_future *future = schedule(pool, verify, data, HUGE_SIZE, PEBBLE_SECONDS(15));
    assert_int_equal(take_int(future), 1);
    free(data);
    close_join_free(pool);
}

/* ---- In pieces ---- */

static void check_pieces(bool threads) {
    static const product cases[] = {
        {.size = SANITIZED ? 100000 : 1000000, .piece = 1},
        {.size = 999999, .piece = 3},
        {.size = 1000003, .piece = 17},
        {.size = 1000003, .piece = 63},
        {.size = 1000003, .piece = 4097},
        {.size = 3000001, .piece = CHANNEL_RING / 4 - 1},
        {.size = 3000001, .piece = CHANNEL_RING / 4},
        {.size = 3000001, .piece = CHANNEL_RING / 4 + 1},
        {.size = 3000001, .piece = CHANNEL_RING - 1},
        {.size = 3000001, .piece = CHANNEL_RING + 1},
        {.size = 10, .piece = 1},
        {.size = 20, .piece = 15},
    };
    pebble_pool *pool = pool_of(threads, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_filled(schedule_product(pool, cases[i]), cases[i].size);
    close_join_free(pool);
}

static void test_result_in_pieces(void **state) {
    (void)state;
    check_pieces(false);
}

static void test_result_in_pieces_threads(void **state) {
    (void)state;
    check_pieces(true);
}

/* Sizes at random in one result. */
static int write_at_random(pebble_task *task, const void *input, size_t input_size) {
    unsigned seed = *(const unsigned *)input;
    size_t size = 2 * MIB + seed;
    unsigned char *data = malloc(size);
    (void)input_size;
    fill(data, size, size);
    for (size_t at = 0; at < size;) {
        size_t piece = (size_t)rand_r(&seed) >> rand_r(&seed) % 31;
        if (piece > size - at)
            piece = size - at;
        if (pebble_task_write(task, data + at, piece) != PEBBLE_OK)
            return 1;
        at += piece;
    }
    free(data);
    return 0;
}

static void test_result_in_pieces_at_random(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 2);
    pebble_future *futures[10];
    for (unsigned i = 0; i < 10; i++)
        futures[i] = schedule(pool, write_at_random, &i, sizeof i, 0);
    for (unsigned i = 0; i < 10; i++)
        expect_filled(futures[i], 2 * MIB + i);
    close_join_free(pool);
}

/* ---- Many and large ---- */

static void test_many_large_ones_at_once(void **state) {
    enum { COUNT = SANITIZED ? 10 : 40, SIZE = 3 * MIB + 5 };
    pebble_future *futures[COUNT];
    (void)state;
    pebble_pool *pool = pool_of(false, 2);
    void *data = filled(SIZE, SIZE);
    for (int i = 0; i < COUNT; i++)
        futures[i] = i % 2 == 0 ? schedule(pool, echo, data, SIZE, 0)
                                : schedule_product(pool, (product){.size = SIZE});
    for (int i = COUNT; i-- > 0;) /* those that end first are waited for last */
        expect_filled(futures[i], SIZE);
    free(data);
    close_join_free(pool);
}

typedef struct client {
    pthread_t thread;
    pebble_pool *pool;
    int wrong;
} client;

static void *exchange(void *context) {
    enum { ROUNDS = SANITIZED ? 3 : 10, SIZE = MIB + 3 };
    client *self = context;
    void *data = malloc(SIZE);
    fill(data, SIZE, SIZE);
    for (int i = 0; i < ROUNDS; i++) {
        pebble_future *future = NULL;
        const void *result = NULL;
        size_t size = 0;
        if (pebble_schedule(self->pool, echo, data, SIZE, 0, &future) != PEBBLE_OK ||
            pebble_future_result(future, DEADLINE_NS, &result, &size) != PEBBLE_OK ||
            size != SIZE || !is_filled(result, size, SIZE))
            self->wrong++;
        pebble_future_unref(future);
    }
    free(data);
    return NULL;
}

static void test_large_ones_from_several_threads(void **state) {
    client clients[4];
    (void)state;
    pebble_pool *pool = pool_of(false, 2);
    for (int i = 0; i < 4; i++) {
        clients[i] = (client){.pool = pool};
        assert_int_equal(pthread_create(&clients[i].thread, NULL, exchange, &clients[i]),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(clients[i].thread, NULL);
        assert_int_equal(clients[i].wrong, 0);
    }
    close_join_free(pool);
}

/* Nobody waits, nobody asks: the worker must get rid of its result all the same, or the tasks
 * behind it would never run. */
static void test_large_result_that_nobody_waits_for(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *large = schedule_product(pool, (product){.size = 10 * MIB});
    pebble_future *behind = schedule(pool, quick, "x", 1, 0);
    pebble_future_unref(schedule_product(pool, (product){.size = 10 * MIB}));
    pebble_future *last = schedule(pool, quick, "y", 1, 0);
    counter_expect(&shared->ran, 2);
    expect_filled(large, 10 * MIB);
    expect_end(behind, PEBBLE_OK);
    expect_end(last, PEBBLE_OK);
    close_join_free(pool);
}

/* The thread that waits gives up while the result streams: others go on with it. */
static void test_waiting_ends_midway(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *future =
        schedule_product(pool, (product){.size = 30 * MIB, .piece = 10000});
    int timeouts = 0;
    while (pebble_future_wait(future, PEBBLE_MICROSECONDS(200)) == PEBBLE_ERR_TIMEOUT &&
           timeouts < 100000)
        timeouts++;
    print_message("%d waits\n", timeouts);
    expect_filled(future, 30 * MIB);
    close_join_free(pool);
}

/* A task may take its time between the pieces; what is there is not the result yet. */
static void test_result_that_pauses_midway(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *future =
        schedule_product(pool, (product){.size = 2 * MIB, .piece = 1000, .stop_at = MIB});
    counter_expect(&shared->started, 1);
    assert_false(pebble_future_done(future));
    assert_int_equal(pebble_future_wait(future, PEBBLE_MILLISECONDS(20)),
                     PEBBLE_ERR_TIMEOUT);
    assert_int_equal(pebble_future_state(future), PEBBLE_RUNNING);
    counter_add(&shared->go, 1);
    expect_filled(future, 2 * MIB);
    close_join_free(pool);
}

/* ---- Inputs that are not copied ---- */

/* Overwrites the input when it is given back: whoever reads it later is found out. */
typedef struct lent {
    unsigned char *data;
    size_t size;
    counter released;
} lent;

static void take_back(void *context) {
    lent *self = context;
    if (self->size > 0)
        memset(self->data, 0xEE, self->size);
    counter_add(&self->released, 1);
}

static pebble_future *schedule_lent(pebble_pool *pool, pebble_function function,
                                    lent *input, size_t size) {
    pebble_future *future = NULL;
    *input = (lent){.data = filled(size, size), .size = size};
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    options.function = function;
    options.input = input->data;
    options.input_size = size;
    options.release_input = take_back;
    options.release_context = input;
    expect_ok(pebble_schedule_task(pool, &options, &future));
    return future;
}

/* It has been released, once; frees it. Called when nothing can release it any more. */
static void expect_released(lent *input) {
    assert_int_equal(counter_value(&input->released), 1);
    free(input->data);
}

static void check_lent(bool threads) {
    lent inputs[SIZES];
    pebble_future *futures[SIZES];
    pebble_pool *pool = pool_of(threads, 2);
    for (int i = 0; i < SIZES; i++)
        futures[i] = schedule_lent(pool, verify, &inputs[i], sizes[i]);
    for (int i = 0; i < SIZES; i++)
        assert_int_equal(take_int(futures[i]), 1);
    close_join_free(pool);
    for (int i = 0; i < SIZES; i++)
        expect_released(&inputs[i]);
}

static void test_input_is_released(void **state) {
    (void)state;
    check_lent(false);
}

static void test_input_is_released_threads(void **state) {
    (void)state;
    check_lent(true);
}

/* Cancelled while queued, with a pool that is stopped, after an error of the task, by a death. */
static void check_lent_failing(bool threads, size_t size) {
    enum { COUNT = 6 };
    lent blocking, inputs[COUNT];
    pebble_future *futures[COUNT];
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = pool_of(threads, 1);
    pebble_future *first = schedule_lent(pool, gate, &blocking, size);
    counter_expect(&shared->started, 1);
    for (int i = 0; i < COUNT; i++)
        futures[i] = schedule_lent(pool, echo, &inputs[i], size);
    for (int i = 0; i < COUNT / 2; i++) {
        assert_true(pebble_future_cancel(futures[i]));
        expect_end(futures[i], PEBBLE_ERR_TASK_CANCELLED);
        counter_expect(&inputs[i].released, 1);
    }
    if (!threads) {
        assert_true(pebble_future_cancel(first));
        expect_end(first, PEBBLE_ERR_TASK_CANCELLED);
        counter_expect(&blocking.released, 1);
    }
    expect_ok(pebble_pool_stop(pool));
    counter_add(&shared->go, 1);
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    if (threads)
        expect_end(first, PEBBLE_OK);
    for (int i = COUNT / 2; i < COUNT; i++) {
        pebble_future_wait(futures[i], DEADLINE_NS);
        pebble_future_unref(futures[i]);
    }
    pebble_pool_free(pool);
    expect_released(&blocking);
    for (int i = 0; i < COUNT; i++)
        expect_released(&inputs[i]);
}

static void test_input_is_released_on_cancel_and_stop(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; threads++) {
        check_lent_failing(threads != 0, 0);
        check_lent_failing(threads != 0, 100);
        check_lent_failing(threads != 0, 100000);
        check_lent_failing(threads != 0, 5 * MIB);
    }
}

static int fails(pebble_task *task, const void *input, size_t input_size) {
    (void)input;
    return pebble_task_fail(task, 5, "given %zu bytes", input_size);
}

static int dies(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    raise(SIGKILL);
    return 0;
}

static void test_input_is_released_on_failure(void **state) {
    (void)state;
    for (int i = 0; i < SIZES; i++) {
        lent inputs[2];
        pebble_pool *pool = pool_of(false, 1);
        expect_end(schedule_lent(pool, fails, &inputs[0], sizes[i]),
                   PEBBLE_ERR_TASK_FAILED);
        expect_end(schedule_lent(pool, dies, &inputs[1], sizes[i]),
                   PEBBLE_ERR_TASK_EXPIRED);
        close_join_free(pool);
        expect_released(&inputs[0]);
        expect_released(&inputs[1]);
    }
}

static void test_input_is_not_released_if_refused(void **state) {
    lent input = {.data = NULL};
    pebble_future *future = NULL;
    (void)state;
    pebble_task_options options = PEBBLE_TASK_OPTIONS_INIT;
    options.function = echo;
    options.input = "x";
    options.input_size = 1;
    options.release_input = take_back;
    options.release_context = &input;
    for (int threads = 0; threads < 2; threads++) {
        pebble_pool *pool = pool_of(threads != 0, 1);
        options.timeout_ns = -1;
        expect_error(pebble_schedule_task(pool, &options, &future), PEBBLE_ERR_INVALID,
                     NULL);
        options.timeout_ns = 0;
        expect_ok(pebble_pool_close(pool));
        expect_error(pebble_schedule_task(pool, &options, &future), PEBBLE_ERR_NOT_ACTIVE,
                     NULL);
        close_join_free(pool);
    }
    assert_null(future);
    assert_int_equal(counter_value(&input.released), 0);
}

/* ---- Deaths midway ---- */

/* Whatever becomes of one large task, the next one is right. */
static void expect_works(pebble_pool *pool) {
    void *data = filled(MIB + 1, MIB + 1);
    expect_filled(schedule(pool, echo, data, MIB + 1, 0), MIB + 1);
    free(data);
}

/* The input streams to a worker that does not run: it is stopped, then killed. */
static void check_death_while_receiving(int signal_first, bool cancel) {
    lent input;
    pid_t pid;
    size_t count = 0;
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = pool_of(false, 1);
    expect_works(pool);
    expect_ok(pebble_pool_get_pids(pool, &pid, 1, &count));
    assert_int_equal(count, 1);
    assert_int_equal(kill(pid, signal_first), 0);
    pebble_future *future = schedule_lent(pool, verify, &input, HUGE_SIZE);
    pebble_future *behind = schedule(pool, quick, "x", 1, 0);
    if (signal_first == SIGSTOP) {
        assert_int_equal(pebble_future_wait(future, PEBBLE_MILLISECONDS(20)),
                         PEBBLE_ERR_TIMEOUT);
        assert_true(!cancel || pebble_future_cancel(future));
        assert_true(cancel || kill(pid, SIGKILL) == 0);
    }
    if (cancel)
        expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    else
        assert_int_equal(take_int(future), 1); /* it had not started: another does it */
    expect_end(behind, PEBBLE_OK);
    expect_works(pool);
    close_join_free(pool);
    expect_released(&input);
}

static void test_worker_dies_before_it_receives(void **state) {
    (void)state;
    check_death_while_receiving(SIGKILL, false);
}

static void test_worker_dies_while_it_receives(void **state) {
    (void)state;
    check_death_while_receiving(SIGSTOP, false);
}

static void test_worker_is_cancelled_while_it_receives(void **state) {
    (void)state;
    check_death_while_receiving(SIGSTOP, true);
}

/* At moments that nobody chose: the input is on its way. */
static void test_worker_dies_while_it_receives_at_random(void **state) {
    enum { SIZE = 8 * MIB };
    unsigned seed = 1;
    int expired = 0;
    void *data = filled(SIZE, SIZE);
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (int i = 0; i < 15; i++) {
        pid_t pid;
        size_t count = 0;
        expect_works(pool);
        expect_ok(pebble_pool_get_pids(pool, &pid, 1, &count));
        pebble_future *future = schedule(pool, verify, data, SIZE, 0);
        for (int turn = rand_r(&seed) % 200; turn > 0; turn--)
            sched_yield();
        kill(pid, SIGKILL);
        int right = 0;
        pebble_error error =
            pebble_future_copy_result(future, DEADLINE_NS, &right, sizeof right);
        if (error == PEBBLE_OK)
            assert_int_equal(right, 1);
        else
            assert_int_equal(error, PEBBLE_ERR_TASK_EXPIRED);
        expired += error != PEBBLE_OK;
        pebble_future_unref(future);
    }
    print_message("%d expired\n", expired);
    free(data);
    close_join_free(pool);
}

/* Half way through a result the worker stands; then it is killed, cancelled, or goes on. */
static void check_midway(int signal_first, bool cancel, pebble_error expected) {
    memset(shared, 0, sizeof *shared);
    pebble_pool *pool = pool_of(false, 1);
    pebble_future *future = schedule_product(
        pool, (product){.size = HUGE_SIZE, .piece = 100000, .stop_at = HUGE_SIZE / 2});
    pebble_future *behind = schedule(pool, quick, "x", 1, 0);
    counter_expect(&shared->started, 1);
    pid_t pid = atomic_load(&shared->pid);
    assert_int_equal(kill(pid, signal_first), 0);
    if (cancel)
        assert_true(pebble_future_cancel(future));
    if (expected == PEBBLE_OK) {
        counter_add(&shared->go, 1);
        assert_int_equal(pebble_future_wait(future, PEBBLE_MILLISECONDS(20)),
                         PEBBLE_ERR_TIMEOUT);
        assert_int_equal(kill(pid, SIGCONT), 0);
        expect_filled(future, HUGE_SIZE);
    } else {
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_false(process_lives(pid));
        expect_end(future, expected);
    }
    expect_end(behind, PEBBLE_OK);
    expect_works(pool);
    close_join_free(pool);
}

static void test_worker_dies_while_it_sends(void **state) {
    (void)state;
    check_midway(SIGKILL, false, PEBBLE_ERR_TASK_EXPIRED);
}

static void test_stopped_half_way_then_cancelled(void **state) {
    (void)state;
    check_midway(SIGSTOP, true, PEBBLE_ERR_TASK_CANCELLED);
}

static void test_stopped_half_way_then_goes_on(void **state) {
    (void)state;
    check_midway(SIGSTOP, false, PEBBLE_OK);
}

static void test_stopped_half_way_then_times_out(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    product told = {.size = 10 * MIB, .piece = 100000, .stop_at = 5 * MIB};
    pebble_future *future = schedule(pool, produce, &told, sizeof told,
                                     PEBBLE_MILLISECONDS(SANITIZED ? 1500 : 300));
    counter_expect(&shared->started, 1);
    assert_int_equal(kill(atomic_load(&shared->pid), SIGSTOP), 0);
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    expect_works(pool);
    close_join_free(pool);
}

static void test_worker_dies_while_it_sends_at_random(void **state) {
    unsigned seed = 2;
    int expired = 0;
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (int i = 0; i < 20; i++) {
        pid_t pid;
        size_t count = 0;
        expect_works(pool);
        expect_ok(pebble_pool_get_pids(pool, &pid, 1, &count));
        pebble_future *future = schedule_product(pool, (product){.size = 4 * MIB});
        for (int turn = rand_r(&seed) % 2000; turn > 0; turn--) {
            sched_yield();
            pebble_future_done(future); /* which collects */
        }
        kill(pid, SIGKILL);
        const void *data;
        size_t size;
        pebble_error error = pebble_future_result(future, DEADLINE_NS, &data, &size);
        if (error == PEBBLE_OK)
            assert_true(size == 4 * MIB && is_filled(data, size, size));
        else
            assert_int_equal(error, PEBBLE_ERR_TASK_EXPIRED);
        expired += error != PEBBLE_OK;
        pebble_future_unref(future);
    }
    print_message("%d expired\n", expired);
    close_join_free(pool);
}

/* What was written does not count when the task fails or dies. */
static void test_much_is_written_then_the_task_fails(void **state) {
    static const size_t written[] = {10, 60 * KIB, 70 * KIB, CHANNEL_RING, 10 * MIB};
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (size_t i = 0; i < 5; i++) {
        char message[64];
        pebble_future *future =
            schedule_product(pool, (product){.size = written[i], .ending = 1});
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        const pebble_failure *failure = pebble_future_failure(future);
        assert_non_null(failure);
        snprintf(message, sizeof message, "after %zu bytes", written[i]);
        assert_string_equal(failure->message, message);
        assert_int_equal(failure->code, 11);
        expect_end(future, PEBBLE_ERR_TASK_FAILED);
        future = schedule_product(pool, (product){.size = written[i], .ending = 2});
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        future = schedule_product(pool, (product){.size = written[i], .ending = 3});
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
        expect_works(pool);
    }
    close_join_free(pool);
}

/* ---- The input cannot be written to ---- */

__attribute__((no_sanitize("address", "undefined", "thread"))) static int writes_to_its_input(
    pebble_task *task, const void *input, size_t input_size) {
    volatile char *bytes = (char *)(uintptr_t)input;
    (void)task;
    bytes[input_size / 2] = 'w';
    return 0;
}

static void test_input_is_read_only(void **state) {
    static const size_t written[] = {1, 16, 100, 4000, CHANNEL_WHOLE - 64};
    char data[CHANNEL_WHOLE] = "";
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (size_t i = 0; i < 5; i++) {
        pebble_future *future = schedule(pool, writes_to_its_input, data, written[i], 0);
        assert_int_equal(pebble_future_wait(future, DEADLINE_NS), PEBBLE_OK);
        assert_int_equal(pebble_future_failure(future)->signal, SIGSEGV);
        expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    }
    expect_works(pool);
    close_join_free(pool);
}

/* ---- Taking the input ---- */

enum { KEPT = 3 };

static struct {
    void *data;
    size_t size;
} kept[KEPT]; /* of the worker */
static int kept_count;

/* Keeps its input; says 1 if it could, 2 if the address is another or it could twice. */
static int keep(pebble_task *task, const void *input, size_t input_size) {
    void *taken = pebble_task_take_input(task);
    int told = taken == NULL ? 0 : 1;
    if (taken != NULL && (taken != input || pebble_task_take_input(task) != NULL))
        told = 2;
    if (taken != NULL) {
        kept[kept_count].data = taken;
        kept[kept_count++].size = input_size;
    }
    return (int)pebble_task_write(task, &told, sizeof told);
}

/* Says how many are as they came, and lets them go. */
static int release_kept(pebble_task *task, const void *input, size_t input_size) {
    int right = 0;
    (void)input, (void)input_size;
    for (int i = 0; i < kept_count; i++) {
        right += is_filled(kept[i].data, kept[i].size, kept[i].size);
        free(kept[i].data);
    }
    kept_count = 0;
    return (int)pebble_task_write(task, &right, sizeof right);
}

static int told_by(pebble_pool *pool, pebble_function function, size_t size) {
    void *data = filled(size, size);
    int told = -1;
    pebble_future *future = schedule(pool, function, data, size, 0);
    assert_int_equal(pebble_future_copy_result(future, DEADLINE_NS, &told, sizeof told),
                     PEBBLE_OK);
    pebble_future_unref(future);
    free(data);
    return told;
}

static void test_input_is_taken(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(false, 1);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(told_by(pool, keep, MIB), 1);
        assert_int_equal(told_by(pool, keep, 8), 0);
        assert_int_equal(told_by(pool, keep, 100 * 1000), 1);
        assert_int_equal(told_by(pool, verify, MIB), 1);
        assert_int_equal(told_by(pool, keep, 12 * MIB), 1);
        assert_int_equal(told_by(pool, verify, 12 * MIB), 1);
        assert_int_equal(told_by(pool, release_kept, 0), KEPT);
    }
    close_join_free(pool);
}

static void test_input_is_not_taken_in_threads(void **state) {
    (void)state;
    pebble_pool *pool = pool_of(true, 1);
    assert_int_equal(told_by(pool, keep, MIB), 0);
    assert_null(pebble_task_take_input(NULL));
    close_join_free(pool);
}

/* ---- Large blocks ---- */

#if !SANITIZED && defined __GLIBC__ /* not an allocator of its own */

static int count_mappings(const void *block, size_t size) {
    uintptr_t from = (uintptr_t)block, start, end;
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps) != NULL) {
        assert_int_equal(sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &start, &end), 2);
        count += start < from + size && from < end;
    }
    fclose(maps);
    return count;
}

/* mremap() takes one mapping; of several realloc() copies all, and a result that grows is copied
 * again and again. A block may have none of its own if there is room for it among what was freed. */
static void test_large_block_is_one_mapping(void **state) {
    (void)state;
    mallopt(M_PERTURB, 0); /* meson has each block filled, here 50 GB */
    for (size_t end = 0; end <= 4096; end += 8) {
        void *block = os_alloc(40 * MIB - end);
        assert_non_null(block);
        assert_int_equal(count_mappings(block, 40 * MIB - end), 1);
        block = os_realloc(block, 60 * MIB + end);
        assert_non_null(block);
        assert_int_equal(count_mappings(block, 60 * MIB + end), 1);
        os_free(block);
    }
    mallopt(M_PERTURB, (int)environment_number("MALLOC_PERTURB_", 0));
}

#endif

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
#if !SANITIZED && defined __GLIBC__
        TEST(large_block_is_one_mapping), /* first: nothing large has been freed yet */
#endif
        TEST(sizes),
        TEST(sizes_threads),
        TEST(mixed_sizes),
        TEST(small_sizes),
        TEST(huge),
        TEST(huge_threads),
        TEST(huge_with_a_timeout),
        TEST(result_in_pieces),
        TEST(result_in_pieces_threads),
        TEST(result_in_pieces_at_random),
        TEST(many_large_ones_at_once),
        TEST(large_ones_from_several_threads),
        TEST(large_result_that_nobody_waits_for),
        TEST(waiting_ends_midway),
        TEST(result_that_pauses_midway),
        TEST(input_is_released),
        TEST(input_is_released_threads),
        TEST(input_is_released_on_cancel_and_stop),
        TEST(input_is_released_on_failure),
        TEST(input_is_not_released_if_refused),
        TEST(worker_dies_before_it_receives),
        TEST(worker_dies_while_it_receives),
        TEST(worker_is_cancelled_while_it_receives),
        TEST(worker_dies_while_it_receives_at_random),
        TEST(worker_dies_while_it_sends),
        TEST(stopped_half_way_then_cancelled),
        TEST(stopped_half_way_then_goes_on),
        TEST(stopped_half_way_then_times_out),
        TEST(worker_dies_while_it_sends_at_random),
        TEST(much_is_written_then_the_task_fails),
        TEST(input_is_read_only),
        TEST(input_is_taken),
        TEST(input_is_not_taken_in_threads),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("data", tests, NULL, NULL);
}
