/* The channel between program and worker, both ends in this process: its records, wherever in the
 * ring they lie; large data; tasks taken back; sleeping and being woken; bells; and what a worker
 * cannot do to the memory.
 *
 * Both ends use the same mapping, so that the thread sanitizer sees them meet; only the tests of
 * the mappings themselves have the worker's own. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "channel/receiver.h"
#include "channel/sender.h"
#include "channel/worker_end.h"
#include "core/task.h"
#include "platform/platform.h"

enum { LARGE = 3 * CHANNEL_RING + 4711, POLL_MS = 20 * 1000 };

typedef struct channel {
    int down_fd, up_fd, bell_fd;
    channel_down *down;
    channel_up *up;
    channel_sender sender;
    channel_receiver receiver;
    worker_end worker;
} channel;

static int setup(void **state) {
    channel *c = calloc(1, sizeof *c);
    void *down, *up;
    if (c == NULL ||
        os_shared_new("test-down", sizeof *c->down, true, &c->down_fd, &down) != 0 ||
        os_shared_new("test-up", sizeof *c->up, false, &c->up_fd, &up) != 0 ||
        os_bell_new(&c->bell_fd) != 0)
        return -1;
    c->down = down;
    c->up = up;
    sender_init(&c->sender, c->down, c->up);
    receiver_init(&c->receiver, c->up, c->down);
    worker_end_init(&c->worker, c->down, c->up, c->bell_fd);
    *state = c;
    return 0;
}

static int teardown(void **state) {
    channel *c = *state;
    receiver_fini(&c->receiver);
    os_free(c->worker.buffer);
    os_shared_unmap(c->down, sizeof *c->down);
    os_shared_unmap(c->up, sizeof *c->up);
    os_fd_close(c->down_fd);
    os_fd_close(c->up_fd);
    os_fd_close(c->bell_fd);
    free(c);
    return 0;
}

/* As if so much had gone through both rings. */
static void start_at(channel *c, uint32_t position) {
    c->sender.tail = c->worker.task_head = position;
    atomic_store(&c->down->task_tail, position);
    atomic_store(&c->up->task_head, position);
    c->receiver.head = c->worker.result_tail = c->worker.result_head = position;
    atomic_store(&c->down->result_head, position);
    atomic_store(&c->up->result_tail, position);
}

static unsigned char pattern[LARGE];

static void fill_pattern(void) {
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (unsigned char)(i * 31 + i / 251);
}

/* ---- One task, there and back, in one thread ---- */

static uint64_t put(channel *c, const void *input, size_t size) {
    sender_task task = {
        .kind = TASK_CHUNK, .function = 77, .input = input, .input_size = size};
    assert_true(sender_has_room(&c->sender, size));
    uint64_t sequence = sender_put(&c->sender, &task);
    sender_publish(&c->sender);
    return sequence;
}

static void take_task(channel *c, const void *input, size_t size) {
    worker_task task;
    assert_true(worker_end_next(&c->worker, &task));
    assert_int_equal(task.kind, TASK_CHUNK);
    assert_int_equal(task.function, 77);
    assert_null(task.name);
    assert_int_equal(task.input_size, size);
    assert_int_equal((uintptr_t)task.input % 16, 0);
    assert_memory_equal(task.input, input, size);
}

static const void *bytes_of(const receiver_end *end) {
    return end->result.data != NULL ? end->result.data : end->result.small;
}

static void receive(channel *c, uint64_t sequence, bool failed, const void *bytes,
                    size_t size) {
    receiver_end end;
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_ENDED);
    assert_int_equal(end.sequence, sequence);
    assert_int_equal(end.failed, failed);
    assert_false(end.no_memory);
    assert_int_equal(end.result.size, size);
    assert_memory_equal(bytes_of(&end), bytes, size);
    result_bytes_fini(&end.result);
}

static void expect_empty(channel *c) {
    receiver_end end;
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_EMPTY);
    receiver_release(&c->receiver);
    assert_false(receiver_has_data(&c->receiver));
}

static void there_and_back(channel *c, size_t task_size, size_t result_size) {
    uint64_t sequence = put(c, pattern, task_size);
    take_task(c, pattern, task_size);
    worker_end_finish(&c->worker, false, 0, pattern, result_size);
    receive(c, sequence, false, pattern, result_size);
    expect_empty(c);
    assert_int_equal(atomic_load(&c->up->task_head), c->sender.tail);
}

/* ---- Records ---- */

static void test_result(void **state) {
    channel *c = *state;
    receiver_end end;
    int64_t before_ns = os_now_ns(), start_ns = 0;
    assert_int_equal(put(c, "in", 2), 0);
    assert_false(sender_started(&c->sender, 0, &start_ns));
    take_task(c, "in", 2);
    assert_true(sender_started(&c->sender, 0, &start_ns));
    assert_true(start_ns >= before_ns && start_ns <= os_now_ns());
    worker_end_finish(&c->worker, false, 0, "out", 3);
    assert_true(receiver_has_data(&c->receiver));
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_ENDED);
    assert_int_equal(end.result.size, 3);
    assert_memory_equal(bytes_of(&end), "out", 3);
    assert_true((int64_t)end.duration_ns >= 0 &&
                (int64_t)end.duration_ns <= os_now_ns() - before_ns);
    assert_int_equal(atomic_load(&c->up->ended), 1);
    result_bytes_fini(&end.result);
    expect_empty(c);
}

static void test_failure(void **state) {
    channel *c = *state;
    receiver_end end;
    put(c, NULL, 0);
    take_task(c, "", 0);
    worker_end_write(&c->worker, pattern, 5000); /* does not count */
    worker_end_finish(&c->worker, true, -9, "why", 3);
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_ENDED);
    assert_true(end.failed);
    assert_int_equal(end.code, -9);
    assert_int_equal(end.result.size, 3);
    assert_memory_equal(bytes_of(&end), "why", 3);
    result_bytes_fini(&end.result);
    expect_empty(c);
}

static void test_result_in_pieces(void **state) {
    channel *c = *state;
    static const size_t sizes[] = {0, 1, 15, 16, 31, 32, 33, 64, 1000, 20000};
    size_t offset = 0;
    uint64_t sequence = put(c, NULL, 0);
    take_task(c, "", 0);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        worker_end_write(&c->worker, pattern + offset, sizes[i]);
        offset += sizes[i];
        expect_empty(c);
    }
    worker_end_finish(&c->worker, false, 0, pattern + offset, 7);
    receive(c, sequence, false, pattern, offset + 7);
    there_and_back(c, 3, 3);
}

static void test_function_by_name(void **state) {
    channel *c = *state;
    char name[300];
    worker_task task;
    for (size_t size = 1; size < sizeof name; size++) {
        memset(name, 'n', size);
        name[size - 1] = '\0';
        sender_task put_task = {.kind = TASK_FUNCTION,
                                .name = name,
                                .name_size = size,
                                .input = pattern,
                                .input_size = size * 3};
        assert_true(sender_has_room(&c->sender, sender_name_size(size) + size * 3));
        uint64_t sequence = sender_put(&c->sender, &put_task);
        sender_publish(&c->sender);
        assert_true(worker_end_next(&c->worker, &task));
        assert_int_equal(task.kind, TASK_FUNCTION);
        assert_true(task.name_size >= size);
        assert_string_equal(task.name, name);
        assert_int_equal((uintptr_t)task.input % 16, 0);
        assert_int_equal(task.input_size, size * 3);
        assert_memory_equal(task.input, pattern, size * 3);
        worker_end_finish(&c->worker, false, 0, NULL, 0);
        receive(c, sequence, false, "", 0);
        expect_empty(c);
    }
}

static void test_exit(void **state) {
    channel *c = *state;
    worker_task task;
    put(c, "x", 1);
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    take_task(c, "x", 1);
    worker_end_finish(&c->worker, false, 0, NULL, 0);
    assert_false(worker_end_next(&c->worker, &task));
}

/* A full ring has room for it. */
static void test_exit_when_full(void **state) {
    channel *c = *state;
    worker_task task;
    size_t count = 0;
    start_at(c, 64 * 1000);
    for (; sender_has_room(&c->sender, 4000); count++)
        put(c, pattern, 4000);
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    assert_true(c->sender.tail - atomic_load(&c->up->task_head) <= CHANNEL_RING);
    for (size_t i = 0; i < count; i++) {
        take_task(c, pattern, 4000);
        worker_end_finish(&c->worker, false, 0, NULL, 0);
    }
    assert_false(worker_end_next(&c->worker, &task));
    assert_true(count > 200);
}

/* ---- Every place in the ring ---- */

/* From each line before the ring's end, and before the counter's, sizes around all that a record
 * may do there. */
static void check_around(channel *c, uint32_t end) {
    for (uint32_t lines = 0; lines < 40; lines++) {
        for (size_t size = 0; size <= 300; size += lines < 6 ? 1 : 13) {
            start_at(c, end - lines * CHANNEL_LINE);
            there_and_back(c, size, 300 - size);
            there_and_back(c, 300 - size, size);
        }
    }
}

static void test_around_the_ring(void **state) {
    check_around(*state, 5 * CHANNEL_RING);
}

static void test_around_the_counter(void **state) {
    check_around(*state, 0);
}

static void test_largest_whole(void **state) {
    channel *c = *state;
    for (uint32_t lines = 0; lines < 300; lines++) {
        start_at(c, CHANNEL_RING - lines * CHANNEL_LINE);
        there_and_back(c, CHANNEL_WHOLE, CHANNEL_WHOLE);
    }
}

/* What does not fit before the end begins at the beginning. */
static void test_pad(void **state) {
    channel *c = *state;
    start_at(c, CHANNEL_RING - 2 * CHANNEL_LINE);
    there_and_back(c, 3 * CHANNEL_LINE, 0);
    assert_int_equal(c->sender.tail, CHANNEL_RING + 4 * CHANNEL_LINE);
    start_at(c, CHANNEL_RING - 2 * CHANNEL_LINE);
    there_and_back(c, 2 * CHANNEL_LINE - sizeof(task_record), 0); /* just fits */
    assert_int_equal(c->sender.tail, CHANNEL_RING);
}

/* Room is told as it is: what has_room allows never overwrites what was not read. */
static void test_full_ring(void **state) {
    channel *c = *state;
    size_t first = 0, put_count = 0;
    for (int round = 0; round < 200; round++) {
        size_t size = (size_t)round * 83 % 9000;
        while (sender_has_room(&c->sender, size) && put_count - first < CHANNEL_SLOTS) {
            memset(pattern, (int)put_count, size);
            sender_put(&c->sender, &(sender_task){.input = pattern, .input_size = size});
            sender_publish(&c->sender);
            put_count++;
            assert_true(c->sender.tail - atomic_load(&c->up->task_head) <= CHANNEL_RING);
        }
        for (size_t takes = (put_count - first) / 2 + 1; takes > 0; takes--, first++) {
            worker_task task;
            assert_true(worker_end_next(&c->worker, &task));
            for (size_t i = 0; i < task.input_size; i += 97)
                assert_int_equal(((const unsigned char *)task.input)[i],
                                 (unsigned char)first);
            worker_end_finish(&c->worker, false, 0, NULL, 0);
            receive(c, first, false, "", 0);
        }
        expect_empty(c);
    }
    fill_pattern();
}

static void test_nonsense_head_is_no_room(void **state) {
    channel *c = *state;
    atomic_store(&c->up->task_head, c->sender.tail + CHANNEL_LINE);
    assert_false(sender_has_room(&c->sender, 0));
    atomic_store(&c->up->task_head, c->sender.tail - CHANNEL_RING - CHANNEL_LINE);
    assert_false(sender_has_room(&c->sender, 0));
}

/* ---- Taking back ---- */

static void test_withdrawn_is_skipped(void **state) {
    channel *c = *state;
    enum { COUNT = 20 };
    for (int i = 0; i < COUNT; i++)
        put(c, &i, sizeof i);
    for (int i = 0; i < COUNT; i += 2) {
        int64_t start_ns;
        assert_true(sender_withdraw(&c->sender, (uint64_t)i));
        assert_false(sender_withdraw(&c->sender, (uint64_t)i));
        assert_false(sender_started(&c->sender, (uint64_t)i, &start_ns));
    }
    for (int i = 1; i < COUNT; i += 2) {
        take_task(c, &i, sizeof i);
        assert_int_equal(atomic_load(&c->up->ended), i); /* the skipped ones count */
        assert_false(sender_withdraw(&c->sender, (uint64_t)i));
        worker_end_finish(&c->worker, false, 0, &i, sizeof i);
        receive(c, (uint64_t)i, false, &i, sizeof i);
    }
    assert_false(sender_withdraw(&c->sender, COUNT - 1)); /* it has ended */
    assert_int_equal(atomic_load(&c->up->task_head), c->sender.tail);
}

static void test_withdrawn_at_the_pad(void **state) {
    channel *c = *state;
    start_at(c, CHANNEL_RING - CHANNEL_LINE);
    put(c, pattern, 1000);
    put(c, pattern, 10);
    assert_true(sender_withdraw(&c->sender, 0));
    take_task(c, pattern, 10);
    worker_end_finish(&c->worker, false, 0, NULL, 0);
    receive(c, 1, false, "", 0);
    assert_int_equal(atomic_load(&c->up->task_head), c->sender.tail);
}

static void test_nonsense_slot_has_started(void **state) {
    channel *c = *state;
    int64_t start_ns;
    put(c, NULL, 0);
    atomic_store(&c->up->slots[0].word, 12345);
    assert_true(sender_started(&c->sender, 0, &start_ns));
    assert_false(sender_withdraw(&c->sender, 0));
}

/* Program and worker want the same tasks: each gets it once, and they agree who. */
static void *race_worker(void *context) {
    channel *c = context;
    worker_task task;
    while (worker_end_next(&c->worker, &task))
        worker_end_finish(&c->worker, false, 0, task.input, task.input_size);
    return NULL;
}

static void test_race_for_tasks(void **state) {
    channel *c = *state;
    enum { COUNT = 100 * 1000 };
    pthread_t thread;
    uint64_t withdrawn = 0, ended = 0;
    assert_int_equal(pthread_create(&thread, NULL, race_worker, c), 0);
    for (uint64_t i = 0; ended + withdrawn < COUNT;) {
        receiver_end end;
        if (i < COUNT && sender_has_room(&c->sender, sizeof i) &&
            i - ended - withdrawn < 500) {
            put(c, &i, sizeof i);
            withdrawn += i % 3 == 0 && sender_withdraw(&c->sender, i);
            i++;
        }
        while (receiver_next(&c->receiver, &end) == RECEIVER_ENDED) {
            uint64_t said;
            memcpy(&said, bytes_of(&end), sizeof said);
            assert_int_equal(said, end.sequence);
            ended++;
        }
        receiver_release(&c->receiver);
    }
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    pthread_join(thread, NULL);
    expect_empty(c);
    print_message("%u withdrawn, %u ended\n", (unsigned)withdrawn, (unsigned)ended);
}

/* ---- Large data ---- */

/* Waits for the bell. */
static void wait_bell(const channel *c) {
    struct pollfd event = {.fd = c->bell_fd, .events = POLLIN};
    uint64_t count;
    assert_int_equal(poll(&event, 1, POLL_MS), 1);
    assert_int_equal(read(c->bell_fd, &count, sizeof count), sizeof count);
}

static unsigned bells(const channel *c) {
    uint64_t count = 0;
    return read(c->bell_fd, &count, sizeof count) == (ssize_t)sizeof count
               ? (unsigned)count
               : 0;
}

/* Streams an input as the program does: copy, ask to be rung, copy once more, wait. */
static void stream(channel *c, const unsigned char *input, size_t size) {
    _Atomic size_t offset = 0;
    while (!sender_stream(&c->sender, input, size, &offset)) {
        size_t before = atomic_load(&offset);
        atomic_store(&c->down->space_wanted, 1);
        atomic_thread_fence(memory_order_seq_cst);
        if (sender_stream(&c->sender, input, size, &offset))
            break;
        if (atomic_load(&offset) == before)
            wait_bell(c);
        atomic_store(&c->down->space_wanted, 0);
    }
    atomic_store(&c->down->space_wanted, 0);
}

/* Reads until one task has ended, waiting for the bell. */
static void receive_waiting(channel *c, uint64_t sequence, const void *bytes,
                            size_t size) {
    for (;;) {
        receiver_end end;
        atomic_store(&c->down->event_at, sequence);
        atomic_thread_fence(memory_order_seq_cst);
        receiver_status status = receiver_next(&c->receiver, &end);
        receiver_release(&c->receiver);
        assert_int_not_equal(status, RECEIVER_DAMAGED);
        if (status != RECEIVER_ENDED) {
            if (!receiver_has_data(&c->receiver))
                wait_bell(c);
            continue;
        }
        assert_int_equal(end.sequence, sequence);
        assert_int_equal(end.result.size, size);
        assert_memory_equal(bytes_of(&end), bytes, size);
        result_bytes_fini(&end.result);
        return;
    }
}

/* Echoes in its thread until told to exit: each result in pieces of another size. */
static void *echo_worker(void *context) {
    channel *c = context;
    worker_task task;
    size_t piece = 1000;
    while (worker_end_next(&c->worker, &task)) {
        const unsigned char *bytes = task.input;
        size_t left = task.input_size;
        while (left > piece) {
            worker_end_write(&c->worker, bytes, piece);
            bytes += piece;
            left -= piece;
            piece = piece < 200000 ? piece * 3 : 700;
        }
        worker_end_finish(&c->worker, false, 0, bytes, left);
    }
    return NULL;
}

static void check_large(channel *c, size_t size, bool by_name) {
    static const char name[] = "a name of some length";
    sender_task task = {.input = pattern, .input_size = size};
    if (by_name) {
        task.name = name;
        task.name_size = sizeof name;
    }
    assert_true(sender_has_room(&c->sender, size + sender_name_size(task.name_size)));
    uint64_t sequence = sender_put(&c->sender, &task);
    sender_publish(&c->sender);
    if (size + sender_name_size(task.name_size) > CHANNEL_WHOLE)
        stream(c, pattern, size);
    receive_waiting(c, sequence, pattern, size);
}

static void wait_all_taken(channel *c) {
    while (atomic_load(&c->up->task_head) != c->sender.tail)
        sched_yield();
}

static void test_large(void **state) {
    static const size_t sizes[] = {CHANNEL_WHOLE - 32,
                                   CHANNEL_WHOLE,
                                   CHANNEL_WHOLE + 1,
                                   CHANNEL_WHOLE + 63,
                                   CHANNEL_RING - 1,
                                   CHANNEL_RING,
                                   CHANNEL_RING + 1,
                                   LARGE - 1,
                                   LARGE,
                                   CHANNEL_FREE_STEP * 3,
                                   100};
    channel *c = *state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int round = 0; round < 6; round++) {
            check_large(c, sizes[i], round % 2 != 0);
            wait_all_taken(c);
            check_large(c, (size_t)round * 90, false); /* the next begins elsewhere */
            wait_all_taken(c);
        }
    }
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    pthread_join(thread, NULL);
    expect_empty(c);
}

/* The place of a large one in the ring matters too. */
static void test_large_everywhere(void **state) {
    channel *c = *state;
    for (uint32_t lines = 0; lines < 12; lines++) {
        pthread_t thread;
        start_at(c, CHANNEL_RING - lines * CHANNEL_LINE);
        assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
        check_large(c, CHANNEL_RING + 100 + lines * 7, lines % 2 != 0);
        wait_all_taken(c);
        sender_put_exit(&c->sender);
        sender_publish(&c->sender);
        pthread_join(thread, NULL);
    }
}

/* ---- Without memory ---- */

static void test_no_memory_for_a_result(void **state) {
    channel *c = *state;
    receiver_end end;
    put(c, NULL, 0);
    take_task(c, "", 0);
    worker_end_write(&c->worker, pattern, 5000);
    worker_end_finish(&c->worker, false, 0, pattern, 100);
    pebble_test_fault(OS_FAULT_ALLOC, 1, false);
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_ENDED);
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_true(end.no_memory);
    assert_int_equal(end.result.size, 0);
    assert_null(end.result.data);
    there_and_back(c, 10, 5000);
}

static void test_no_memory_for_an_input(void **state) {
    channel *c = *state;
    worker_task task;
    _Atomic size_t offset = 0;
    const size_t size = CHANNEL_WHOLE + 1000;
    sender_put(&c->sender, &(sender_task){.input = pattern, .input_size = size});
    sender_publish(&c->sender);
    assert_true(sender_stream(&c->sender, pattern, size, &offset));
    pebble_test_fault(OS_FAULT_ALLOC, 1, false);
    assert_true(worker_end_next(&c->worker, &task));
    pebble_test_fault(OS_FAULT_NONE, 0, false);
    assert_null(task.input);
    assert_int_equal(task.input_size, size);
    worker_end_finish(&c->worker, true, 12, "no memory", 9);
    receive(c, 0, true, "no memory", 9);
    there_and_back(c, 10, 5000);
}

/* ---- Sleeping and waking ---- */

static bool is_odd(void *word) {
    return (atomic_load((_Atomic uint32_t *)word) & 1) != 0;
}

static void test_worker_sleeps_for_a_task(void **state) {
    channel *c = *state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
    for (uint64_t i = 0; i < 20; i++) {
        assert_true(wait_until(is_odd, &c->up->task_sleep));
        put(c, &i, sizeof i);
        receive_waiting(c, i, &i, sizeof i);
    }
    assert_true(wait_until(is_odd, &c->up->task_sleep));
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    pthread_join(thread, NULL);
}

/* Nobody reads: it sleeps, and rings for help; what is read then wakes it. */
static void test_worker_sleeps_for_space(void **state) {
    channel *c = *state;
    pthread_t thread;
    _Atomic size_t offset = 0;
    assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
    sender_put(&c->sender, &(sender_task){.input = pattern, .input_size = LARGE});
    sender_publish(&c->sender);
    while (!sender_stream(&c->sender, pattern, LARGE, &offset))
        sched_yield();
    assert_true(wait_until(is_odd, &c->up->space_sleep));
    assert_true(receiver_has_data(&c->receiver));
    wait_bell(c);
    receive_waiting(c, 0, pattern, LARGE);
    assert_true(atomic_load(&c->up->space_sleep) > 0);
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    pthread_join(thread, NULL);
}

/* A task writes into the word the number of a sleep to come, and the program acts upon it: the
 * sleep itself is ended all the same. */
static void test_sleep_foretold(void **state) {
    channel *c = *state;
    pthread_t thread;
    for (uint32_t number = 1; number < 8; number++) {
        uint64_t sequence = put(c, NULL, 0);
        take_task(c, "", 0);
        atomic_store(&c->up->task_sleep, number);
        put(c, NULL, 0);
        worker_end_finish(&c->worker, false, 0, NULL, 0);
        take_task(c, "", 0);
        worker_end_finish(&c->worker, false, 0, NULL, 0);
        receive(c, sequence, false, "", 0);
        receive(c, sequence + 1, false, "", 0);
        atomic_store(&c->up->task_sleep, 0);
        assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
        assert_true(wait_until(is_odd, &c->up->task_sleep));
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000},
                  NULL); /* it does sleep */
        put(c, &number, sizeof number);
        receive_waiting(c, sequence + 2, &number, sizeof number);
        assert_true(wait_until(is_odd, &c->up->task_sleep));
        sender_put_exit(&c->sender);
        sender_publish(&c->sender);
        pthread_join(thread, NULL);
        c->worker.task_head += CHANNEL_LINE; /* past the exit: the next thread goes on */
        atomic_store(&c->up->task_head, c->worker.task_head);
    }
}

/* Both sleep for each other, over and over: no wake is lost. */
static void test_futex_ping_pong(void **state) {
    channel *c = *state;
    enum { ROUNDS = WITH_THREAD_SANITIZER ? 2000 : 20000 };
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        receiver_end end;
        put(c, &i, sizeof i);
        for (;;) {
            uint32_t rings = atomic_load(&c->up->ring_count);
            atomic_store(&c->down->futex_at, i);
            atomic_thread_fence(memory_order_seq_cst);
            if (receiver_next(&c->receiver, &end) == RECEIVER_ENDED)
                break;
            assert_int_equal(os_futex_wait_shared(&c->up->ring_count, rings,
                                                  os_deadline_after(DEADLINE_NS)),
                             0);
        }
        receiver_release(&c->receiver);
        assert_int_equal(end.sequence, i);
    }
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    pthread_join(thread, NULL);
    assert_int_equal(bells(c), 0);
}

/* ---- Bells: once for each value ---- */

static void run_one(channel *c) {
    uint64_t sequence = put(c, NULL, 0);
    take_task(c, "", 0);
    worker_end_finish(&c->worker, false, 0, NULL, 0);
    receive(c, sequence, false, "", 0);
}

static void test_event_at(void **state) {
    channel *c = *state;
    run_one(c); /* 0 */
    assert_int_equal(bells(c), 0);
    atomic_store(&c->down->event_at, 2);
    run_one(c); /* 1 */
    assert_int_equal(bells(c), 0);
    run_one(c); /* 2 */
    assert_int_equal(bells(c), 1);
    run_one(c); /* 3 */
    run_one(c); /* 4 */
    assert_int_equal(bells(c), 0);
    atomic_store(&c->down->event_at, 1); /* over long ago: at the next end */
    run_one(c);                          /* 5 */
    assert_int_equal(bells(c), 1);
    run_one(c); /* 6 */
    assert_int_equal(bells(c), 0);
    atomic_store(&c->down->event_at, CHANNEL_NEVER);
    run_one(c);
    assert_int_equal(bells(c), 0);
    assert_int_equal(atomic_load(&c->up->ring_count), 0);
}

/* A task that is skipped has ended too. */
static void test_event_at_a_withdrawn_task(void **state) {
    channel *c = *state;
    put(c, NULL, 0);
    put(c, NULL, 0);
    assert_true(sender_withdraw(&c->sender, 0));
    atomic_store(&c->down->event_at, 0);
    take_task(c, "", 0);
    assert_int_equal(bells(c), 1);
    worker_end_finish(&c->worker, false, 0, NULL, 0);
    assert_int_equal(bells(c), 0);
}

static void test_futex_at(void **state) {
    channel *c = *state;
    atomic_store(&c->down->futex_at, 1);
    run_one(c); /* 0 */
    assert_int_equal(atomic_load(&c->up->ring_count), 0);
    run_one(c); /* 1 */
    assert_int_equal(atomic_load(&c->up->ring_count), 1);
    run_one(c); /* 2 */
    assert_int_equal(atomic_load(&c->up->ring_count), 1);
    atomic_store(&c->down->futex_at, 3);
    run_one(c); /* 3 */
    assert_int_equal(atomic_load(&c->up->ring_count), 2);
    assert_int_equal(bells(c), 0);
}

/* Whether for the waiting thread or the supervisor, only if it was asked for. */
static void check_space_wanted(channel *c, bool wanted, bool leader) {
    worker_task task;
    _Atomic size_t offset = 0;
    const size_t size = CHANNEL_WHOLE + 100;
    atomic_store(&c->down->space_wanted, wanted);
    atomic_store(&c->down->futex_at, leader ? 1000 : CHANNEL_NEVER);
    uint32_t rings = atomic_load(&c->up->ring_count);
    sender_put(&c->sender, &(sender_task){.input = pattern, .input_size = size});
    sender_publish(&c->sender);
    assert_true(sender_stream(&c->sender, pattern, size, &offset));
    assert_true(worker_end_next(&c->worker, &task));
    assert_memory_equal(task.input, pattern, size);
    assert_int_equal(bells(c) > 0, wanted && !leader);
    assert_int_equal(atomic_load(&c->up->ring_count) > rings, wanted && leader);
    worker_end_finish(&c->worker, false, 0, NULL, 0);
    receive(c, c->worker.sequence - 1, false, "", 0);
    expect_empty(c);
}

static void test_space_wanted(void **state) {
    check_space_wanted(*state, false, false);
    check_space_wanted(*state, true, false);
    check_space_wanted(*state, false, true);
    check_space_wanted(*state, true, true);
}

/* ---- Damage ---- */

static void publish_record(channel *c, result_record record, uint32_t payload) {
    uint32_t tail = atomic_load(&c->up->result_tail);
    memcpy(c->up->ring + (tail & (CHANNEL_RING - 1)), &record, sizeof record);
    atomic_store(&c->up->result_tail, tail + channel_padded(sizeof record + payload));
}

static void expect_damaged(channel *c) {
    receiver_end end;
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_DAMAGED);
    /* For good, whatever follows. */
    atomic_store(&c->up->result_tail, c->receiver.head);
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_DAMAGED);
    publish_record(c, (result_record){.kind = RECORD_DONE}, 0);
    assert_int_equal(receiver_next(&c->receiver, &end), RECEIVER_DAMAGED);
    receiver_release(&c->receiver);
}

#define DAMAGED(name, ...)                                                               \
    static void test_damage_##name(void **state) {                                       \
        channel *c = *state;                                                             \
        __VA_ARGS__;                                                                     \
        expect_damaged(c);                                                               \
    }
DAMAGED(kind, publish_record(c, (result_record){.kind = 99}, 0))
DAMAGED(pad, publish_record(c, (result_record){.kind = RECORD_PAD}, 0))
DAMAGED(message,
        publish_record(c,
                       (result_record){.kind = RECORD_FAILED, .size = TASK_MESSAGE_SIZE},
                       TASK_MESSAGE_SIZE))
DAMAGED(size,
        publish_record(c, (result_record){.kind = RECORD_DONE, .size = UINT64_MAX}, 64))
DAMAGED(tail, atomic_store(&c->up->result_tail, CHANNEL_RING + CHANNEL_LINE))
DAMAGED(tail_back, atomic_store(&c->up->result_tail, (uint32_t)-CHANNEL_LINE))
DAMAGED(tail_little, atomic_store(&c->up->result_tail, 8))
DAMAGED(sequence,
        publish_record(c, (result_record){.kind = RECORD_DATA, .sequence = 1}, 0);
        publish_record(c, (result_record){.kind = RECORD_DONE, .sequence = 2}, 0))

/* ---- The memory itself ---- */

static void expect_sealed(int fd, size_t size) {
    assert_int_equal(ftruncate(fd, (off_t)size / 2), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, (off_t)size * 2), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fallocate(fd, 0, 0, (off_t)size * 2), -1);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    assert_int_equal(errno, EPERM);
}

static void test_size_is_sealed(void **state) {
    channel *c = *state;
    expect_sealed(c->down_fd, sizeof *c->down);
    expect_sealed(c->up_fd, sizeof *c->up);
}

static void test_down_is_read_only(void **state) {
    channel *c = *state;
    char path[64];
    void *mapped;
    size_t size = sizeof *c->down;
    assert_int_equal(os_shared_map(c->down_fd, size, true, &mapped), EPERM);
    assert_int_equal(os_shared_map(c->down_fd, size, false, &mapped), 0);
    assert_int_equal(mprotect(mapped, size, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(errno, EACCES);
    assert_ptr_equal(mmap(NULL, size, PROT_WRITE, MAP_SHARED, c->down_fd, 0), MAP_FAILED);
    assert_int_equal(pwrite(c->down_fd, "x", 1, 0), -1);
    assert_int_equal(
        fallocate(c->down_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    snprintf(path, sizeof path, "/proc/self/fd/%d", c->down_fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    if (again >= 0) {
        assert_int_equal(pwrite(again, "x", 1, 0), -1);
        assert_ptr_equal(mmap(NULL, size, PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
        close(again);
    }
    /* The program's own goes on. */
    put(c, "seen", 4);
    assert_memory_equal(((channel_down *)mapped)->ring, c->down->ring, 64);
    os_shared_unmap(mapped, size);
}

static void test_map_checks_size(void **state) {
    channel *c = *state;
    void *mapped;
    assert_int_equal(os_shared_map(c->up_fd, sizeof *c->up + 4096 * 2, true, &mapped),
                     EINVAL);
}

/* With the worker's mappings apart from the program's. */
static void test_two_mappings(void **state) {
    channel *c = *state;
    void *down, *up;
    pthread_t thread;
    assert_int_equal(os_shared_map(c->down_fd, sizeof *c->down, false, &down), 0);
    assert_int_equal(os_shared_map(c->up_fd, sizeof *c->up, true, &up), 0);
    worker_end_init(&c->worker, down, up, c->bell_fd);
    assert_int_equal(pthread_create(&thread, NULL, echo_worker, c), 0);
    for (size_t size = 0; size < LARGE; size = size * 3 + 1)
        check_large(c, size, false);
    sender_put_exit(&c->sender);
    sender_publish(&c->sender);
    pthread_join(thread, NULL);
    os_shared_unmap(down, sizeof *c->down);
    os_shared_unmap(up, sizeof *c->up);
}

#define channel_test(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        channel_test(test_result),
        channel_test(test_failure),
        channel_test(test_result_in_pieces),
        channel_test(test_function_by_name),
        channel_test(test_exit),
        channel_test(test_exit_when_full),
        channel_test(test_around_the_ring),
        channel_test(test_around_the_counter),
        channel_test(test_largest_whole),
        channel_test(test_pad),
        channel_test(test_full_ring),
        channel_test(test_nonsense_head_is_no_room),
        channel_test(test_withdrawn_is_skipped),
        channel_test(test_withdrawn_at_the_pad),
        channel_test(test_nonsense_slot_has_started),
        channel_test(test_race_for_tasks),
        channel_test(test_large),
        channel_test(test_large_everywhere),
        channel_test(test_no_memory_for_a_result),
        channel_test(test_no_memory_for_an_input),
        channel_test(test_worker_sleeps_for_a_task),
        channel_test(test_worker_sleeps_for_space),
        channel_test(test_sleep_foretold),
        channel_test(test_futex_ping_pong),
        channel_test(test_event_at),
        channel_test(test_event_at_a_withdrawn_task),
        channel_test(test_futex_at),
        channel_test(test_space_wanted),
        channel_test(test_damage_kind),
        channel_test(test_damage_pad),
        channel_test(test_damage_message),
        channel_test(test_damage_size),
        channel_test(test_damage_tail),
        channel_test(test_damage_tail_back),
        channel_test(test_damage_tail_little),
        channel_test(test_damage_sequence),
        channel_test(test_size_is_sealed),
        channel_test(test_down_is_read_only),
        channel_test(test_map_checks_size),
        channel_test(test_two_mappings),
    };
    const char *filter = getenv("PEBBLE_TEST_FILTER");
    if (filter != NULL)
        cmocka_set_test_filter(filter);
    fill_pattern();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
