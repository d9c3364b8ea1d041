/* The shared memory between the program and one worker: its layout, and who writes what.
 *
 * Two pieces, each a memfd that is written by one side:
 *
 *   down   program → worker. The worker's mapping is read-only, and sealed to stay so: a task
 *          that writes through a wild pointer cannot change what waits behind it.
 *   up     worker → program. The program trusts nothing in it.
 *
 * Each holds a byte ring with positions that count up for ever (modulo 2^32; a ring is smaller).
 * A ring's tail is written by its producer with release, after the bytes, and read by its consumer
 * with acquire; the head the other way round. Whoever may sleep says so in a word of its own
 * ("doorbells" below), with a full fence between that and its last look; whoever publishes has a
 * full fence between publishing and its look at the other's word. So one of the two sees the
 * other (tests/model/doorbell.pml).
 *
 * Tasks. The nth task of a worker (its sequence, from 0) has a record in the down ring and a slot,
 * which holds its state:
 *
 *   QUEUED → RUNNING    by the worker, compare-and-swap, after it wrote the start stamp
 *   QUEUED → WITHDRAWN  by the program, compare-and-swap: taken back, the worker skips it
 *
 * So a task that was withdrawn has never run. The worker runs tasks in their order, one at a time,
 * and publishes a task's end before it starts the next: if it dies, only the first task that has
 * not ended can have started (tests/model/take_back.pml).
 *
 * Start. The worker takes no task before the program has been told of its process (down->known), and so
 * can watch its end. If it never will be, as the zygote has died before it told, the kernel ends the
 * worker (process/tie.c): it has run no task.
 *
 * Doorbells.
 *   worker sleeps for a task       up->task_sleep is odd; it sleeps on down->task_tail
 *   worker sleeps for result space up->space_sleep is odd; it sleeps on down->result_head
 *   program wants to know          down->event_at, down->futex_at: when the task with this
 *                                  sequence, or a later one, has ended, ring the bell (an eventfd
 *                                  in the supervisor's epoll), or wake the thread that waits on
 *                                  up->ring. CHANNEL_NEVER: not at all. Once for each value
 *                                  (tests/model/wanted_seq.pml).
 *   program wants space            down->space_wanted: ring when the worker has taken some of a
 *                                  large input
 *
 * Spinning. It pays only while the other side runs, on another processor; but the kernel likes to
 * wake a process on its waker's processor, where the spinning of one keeps the other from running.
 * So each side says where it is (cpu), nobody spins for a peer on its own processor, and a worker
 * that meets its program there time and again moves away once.
 *
 * Whoever is to be rung for something that holds up the worker (no space for a result, or space
 * for an input) is the waiting thread if there is one (futex_at is set), else the supervisor.
 */
#ifndef PEBBLE_CHANNEL_LAYOUT_H
#define PEBBLE_CHANNEL_LAYOUT_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

enum {
    CHANNEL_LINE = 64,              /* bytes that processors share as one */
    CHANNEL_RING = 2 * 1024 * 1024, /* bytes of either ring; a power of two. More than a
                              processor's own cache: what one processor has just read, another
                              overwrites slowly (docs/decisions/0002-ring-size.md) */
    CHANNEL_SLOTS = 1024,           /* most tasks in a worker's ring; a power of two */
    CHANNEL_WHOLE = 16 * 1024, /* a task up to this size is in one piece in the ring */
    CHANNEL_CRASH_SIZE = 16 * 1024,
    CHANNEL_FREE_STEP = 64 * 1024, /* large data: space is given back in such steps */
};

#define CHANNEL_NEVER UINT64_MAX

typedef struct channel_down {
    alignas(CHANNEL_LINE) _Atomic uint32_t task_tail;
    _Atomic uint32_t space_wanted;
    _Atomic uint64_t event_at;
    _Atomic uint64_t futex_at;
    _Atomic uint32_t
        killing; /* 1: the worker has been told to end by a signal, and ends after its
                                 task if it outlives that */
    _Atomic uint32_t cpu;   /* processor on which the program last published a task */
    _Atomic uint32_t known; /* futex. 1: the program knows the worker's process */
    alignas(CHANNEL_LINE) _Atomic uint32_t result_head;
    alignas(CHANNEL_LINE) unsigned char ring[CHANNEL_RING];
} channel_down;

/* A slot's word: the task's sequence, and in the low two bits its state. */
enum { SLOT_QUEUED = 1, SLOT_RUNNING = 2, SLOT_WITHDRAWN = 3, SLOT_STATE = 3 };

typedef struct channel_slot {
    _Atomic uint64_t word;
    _Atomic int64_t start_ns;
} channel_slot;

static inline uint64_t slot_word(uint64_t sequence, uint64_t state) {
    return sequence << 2 | state;
}

typedef struct channel_up {
    alignas(CHANNEL_LINE) _Atomic uint32_t task_head;
    alignas(CHANNEL_LINE) _Atomic uint32_t result_tail;
    _Atomic uint32_t ring_count; /* futex: grows at each ring for a waiting thread */
    _Atomic uint64_t ended;      /* so many tasks have ended or were skipped; a hint */
    alignas(CHANNEL_LINE) _Atomic uint32_t task_sleep;
    _Atomic uint32_t space_sleep;
    _Atomic uint32_t cpu; /* processor on which the worker last found a task */
    _Atomic int32_t pid; /* the worker's, as it says: to be shown, not to be acted upon */
    alignas(CHANNEL_LINE) channel_slot slots[CHANNEL_SLOTS];
    alignas(CHANNEL_LINE) unsigned char crash[CHANNEL_CRASH_SIZE]; /* see process/crash.h */
    alignas(CHANNEL_LINE) unsigned char ring[CHANNEL_RING];
} channel_up;

/* Records start at multiples of CHANNEL_LINE. */

typedef enum record_kind {
    RECORD_PAD,   /* down: nothing until the ring's end */
    RECORD_TASK,  /* down: a task, see task_record */
    RECORD_EXIT,  /* down: end in order */
    RECORD_DATA,  /* up: a piece of the running task's result */
    RECORD_DONE,  /* up: the task succeeded; the last piece of its result */
    RECORD_FAILED /* up: the task failed; its message */
} record_kind;

typedef struct task_record {
    uint16_t kind;
    uint16_t task; /* task_kind */
    uint32_t name_size; /* the function by name, padded to 16, before the input; 0: by address */
    uint64_t input_size;
    uint64_t function;
    uint64_t sequence;
} task_record;

typedef struct result_record {
    uint16_t kind;
    uint16_t reserved;
    int32_t code;
    uint64_t size;
    uint64_t sequence;
    uint64_t duration_ns;
} result_record;

_Static_assert(sizeof(task_record) == 32 && sizeof(result_record) == 32,
               "a header and 32 bytes share a line");
_Static_assert((CHANNEL_RING & (CHANNEL_RING - 1)) == 0,
               "positions are taken modulo the ring");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "atomics in shared memory must be lock-free");
_Static_assert(sizeof(_Atomic uint32_t) == 4 && sizeof(_Atomic uint64_t) == 8,
               "as laid out");

static inline uint32_t channel_padded(uint64_t size) {
    return (uint32_t)((size + CHANNEL_LINE - 1) / CHANNEL_LINE * CHANNEL_LINE);
}

#endif
