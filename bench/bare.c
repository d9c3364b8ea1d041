/* bare.c - what the machine does without any pool: a ring and ping-pongs between two
 * processes in shared memory, and memcpy. */
#include "bench.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- Ring: one producer, one consumer, both spin ---- */

enum { ring_slots = 1024, cache_line = 64 };

typedef struct ring_slot {
    long value;
    char rest[cache_line - sizeof(long)]; /* a message is a cache line */
} ring_slot;

/* Each index is written by one side only; a slot's content is published by the release
 * store of head and given back by that of tail. */
typedef struct ring_memory {
    _Alignas(cache_line) atomic_ulong head; /* producer: messages put */
    _Alignas(cache_line) atomic_ulong tail; /* consumer: messages taken */
    _Alignas(cache_line) ring_slot slots[ring_slots];
} ring_memory;

static _Noreturn void ring_consume(ring_memory *ring) {
    unsigned long head = 0;
    for (unsigned long tail = 0;; tail++) {
        while (head == tail) {
            head = atomic_load_explicit(&ring->head, memory_order_acquire);
            if (head == tail)
                spin_pause();
        }
        if (ring->slots[tail % ring_slots].value != (long)tail)
            _exit(1);
        atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    }
}

static void ring_burst(void *context, long count) {
    ring_memory *ring = context;
    unsigned long tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    unsigned long head = tail, end = tail + (unsigned long)count;
    for (; head < end; head++) {
        while (head - tail == ring_slots) {
            tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
            if (head - tail == ring_slots)
                spin_pause();
        }
        ring->slots[head % ring_slots].value = (long)head;
        atomic_store_explicit(&ring->head, head + 1, memory_order_release);
    }
    while (atomic_load_explicit(&ring->tail, memory_order_acquire) != end)
        spin_pause();
}

void bench_ring(long argument) {
    ring_memory *shared = bench_share(sizeof *shared);
    if (bench_fork() == 0)
        ring_consume(shared);
    bench_bursts(ring_burst, shared, argument);
}

/* ---- Ping-pong: each side has a word that the other counts up ---- */

typedef struct ping_pong {
    _Alignas(cache_line) atomic_uint ping;
    _Alignas(cache_line) atomic_uint pong;
    bool sleeps; /* with a futex; else spins */
    unsigned turn;
} ping_pong;

static void word_await(const ping_pong *game, atomic_uint *word, unsigned turn) {
    unsigned now;
    while ((now = atomic_load_explicit(word, memory_order_acquire)) != turn) {
        if (game->sleeps)
            syscall(SYS_futex, word, FUTEX_WAIT, now, NULL, NULL, 0);
        else
            spin_pause();
    }
}

static void word_set(const ping_pong *game, atomic_uint *word, unsigned turn) {
    atomic_store_explicit(word, turn, memory_order_release);
    if (game->sleeps)
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void ping_pong_trip(void *context) {
    ping_pong *game = context;
    word_set(game, &game->ping, ++game->turn);
    word_await(game, &game->pong, game->turn);
}

static void ping_pong_run(bool sleeps, int64_t pause_ns) {
    ping_pong *game = bench_share(sizeof *game);
    game->sleeps = sleeps;
    if (bench_fork() == 0) {
        for (unsigned turn = 1;; turn++) {
            word_await(game, &game->ping, turn);
            word_set(game, &game->pong, turn);
        }
    }
    bench_trips(ping_pong_trip, game, bench_repetitions(pause_ns ? 50 : 20000), pause_ns);
}

void bench_futex_trip(long argument) {
    ping_pong_run(true, argument);
}

void bench_spin_trip(long argument) {
    ping_pong_run(false, argument);
}

/* ---- memcpy ---- */

static void memcpy_run(size_t size, int copies, size_t count) {
    char *from = bench_allocate(size), *to = bench_allocate(size);
    double *rates = bench_allocate(count * sizeof *rates);
    memset(from, 'x', size);
    memset(to, 'y', size);
    for (size_t i = 0; i < count; i++) {
        int64_t before_ns = bench_now_ns();
        for (int copy = 0; copy < copies; copy++) {
            memcpy(copy % 2 ? from : to, copy % 2 ? to : from, size);
            __asm__ volatile("" : : "r"(from), "r"(to) : "memory");
        }
        rates[i] = (double)size * copies * 1e9 / (double)(bench_now_ns() - before_ns);
    }
    bench_report("bytes_per_second", bench_median(rates, count));
    free(rates);
    free(from);
    free(to);
}

void bench_memcpy(long argument) {
    memcpy_run((size_t)argument, 1, bench_repetitions(500));
}

void bench_memcpy_both(long argument) {
    memcpy_run((size_t)argument, 2, bench_repetitions(10));
}
