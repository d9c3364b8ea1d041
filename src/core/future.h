/* Futures inside the engine.
 *
 * States, in the low bits of word, and who may change them:
 *
 *   QUEUED    the task waits in the program or in a worker's ring
 *   RUNNING   thread pool: a worker thread has claimed it (compare-and-swap from QUEUED). In a
 *             process pool a running task stays QUEUED here: its slot in the channel tells.
 *   STOPPING  process pool: to be ended by killing its worker; set under the pool's lock. From
 *             now on only the end of that worker's processes ends the future.
 *   FINISHED, CANCELLED   ended, for good
 *
 * Ending is one atomic exchange of the word (future_end), after result or failure are in place.
 * Exactly one thread gets to do it: in a process pool whoever took the task out of the pool's
 * tables under the pool's lock, in a thread pool whoever won the compare-and-swap that took it
 * out of QUEUED.
 *
 * Two bits beside the state are set by others before they sleep or add, with the same word as
 * their point of order, so that the exchange either sees the bit or they see the end:
 *
 *   WAITERS    somebody sleeps on the word: wake all
 *   ANY        somebody sleeps for any of several futures: ring the common word
 *   CALLBACKS  a callback is in the list or about to be: who ends the future closes the list and
 *              hands it to the pool's threads for them; whoever comes later calls it himself
 */
#ifndef PEBBLE_CORE_FUTURE_H
#define PEBBLE_CORE_FUTURE_H

#include <stdalign.h>

#include "core/pool.h"

enum {
    FUTURE_QUEUED = 0,
    FUTURE_RUNNING = 1,
    FUTURE_STOPPING = 2,
    FUTURE_FINISHED = 4,
    FUTURE_CANCELLED = 5,
    FUTURE_STATE = 7, /* mask */
    FUTURE_ENDED = 4, /* set in both ended states */
    FUTURE_WAITERS = 1 << 8,
    FUTURE_ANY = 1 << 9,
    FUTURE_CALLBACKS = 1 << 10,
    FUTURE_MOVED = 1 << 16, /* added when a task leaves its worker: the word differs */
};

/* What runs in the worker for a future. */
typedef enum task_kind {
    TASK_FUNCTION,
    TASK_CHUNK,      /* a map's chunk, see core/chunk.h */
    TASK_INITIALIZER /* the worker's first task, of no user */
} task_kind;

/* Where a process pool has a task, see process/pool.h. */
typedef enum task_place { PLACE_NONE, PLACE_PENDING, PLACE_SENT, PLACE_TAKEN } task_place;

/* Why a running task is stopped. */
typedef enum stop_reason { STOP_TIMEOUT, STOP_CANCEL, STOP_BREAK } stop_reason;

enum {
    FUTURE_INLINE = 16
}; /* bytes of an input or result that need no memory of their own */

/* The bytes of a result on their way: inline, or allocated if larger. */
typedef struct result_bytes {
    void *data; /* NULL: in small */
    size_t size;
    alignas(16) unsigned char small[FUTURE_INLINE];
} result_bytes;

struct pebble_future {
    _Atomic uint32_t word;
    _Atomic uint32_t references;
    pebble_pool *pool;
    pebble_future *next; /* in a queue of the pool, where a cancelled one may stay a while */
    pebble_future *previous; /* in a process pool's pending tasks */

    pebble_function function;
    const void *input;
    size_t input_size;
    void (*release_input)(void *context); /* NULL: the input is ours (or inline) */
    void *release_context;
    int64_t timeout_ns;

    void *worker;      /* under the pool's lock: who has it; NULL while it is queued */
    uint64_t sequence; /* its place in that worker's ring */

    _Atomic(future_callback *) callbacks;
    pebble_failure *failure;
    void *result; /* NULL: in small */
    size_t result_size;
    pid_t pid;
    uint8_t kind; /* task_kind */
    /* The rest of this group is the process pool's, under its lock. */
    bool wanted;         /* somebody sleeps for it or has a callback */
    bool streamed;       /* its input is too large to be in the ring as a whole */
    uint8_t place;       /* task_place */
    uint8_t stop_reason; /* STOPPING: stop_reason */
    uint8_t tries;       /* workers that died before they started it, as they said */
    uint8_t end_state;   /* TAKEN: as of future_end() */
    alignas(16) unsigned char small[FUTURE_INLINE]; /* the input; from the end on the result */
};

static inline uint32_t future_state(pebble_future *future) {
    return atomic_load_explicit(&future->word, memory_order_acquire) & FUTURE_STATE;
}

static inline bool future_ended(pebble_future *future) {
    return (future_state(future) & FUTURE_ENDED) != 0;
}

/* Makes a future of the pool, with one reference for the caller and one for the task, which
 * future_end() drops. NULL: no memory. */
pebble_future *future_new(pebble_pool *pool);

/* Takes the input: copies it, or keeps it with its release. ENOMEM. */
int future_set_input(pebble_future *future, const void *input, size_t input_size,
                     void (*release)(void *), void *release_context);

/* Gives up a future that was never scheduled, with both its references; its input, if it is the
 * caller's, stays the caller's. */
void future_discard(pebble_future *future);

/* Puts the result in place; takes the bytes. */
void future_set_result(pebble_future *future, result_bytes *result);
void result_bytes_fini(result_bytes *result);

/* Puts a failure in place. message is copied (NULL: the kind's text), backtrace is taken. Never
 * fails: if there is no memory, a static failure stands in. */
void future_set_failure(pebble_future *future, const pebble_failure *failure,
                        char *backtrace);

/* Gives the input back, if that has not been done; it may call the user's release function. */
void future_drop_input(pebble_future *future);

/* Ends the future and drops the task's reference. The caller holds no lock. */
void future_end(pebble_future *future, uint32_t state);
void future_end_cancelled(pebble_future *future);

/* What a wait returns for that. */
pebble_error future_wait_error(int error);

/* Waits for all of them; name is the public function's, for messages. */
pebble_error future_wait_all(pebble_future *const *futures, size_t count,
                             int64_t timeout_ns, const char *name);

/* Sets a bit of the word unless the future has ended; false if it has. */
bool future_set_bit(pebble_future *future, uint32_t bit);

/* Sleeps on the word until the future has ended: 0, ETIMEDOUT, or EINTR if the thread's waits are
 * interruptible. */
int future_sleep(pebble_future *future, int64_t deadline_ns);

/* Frees the futures that the pool keeps for reuse; when nobody else uses the pool. */
void future_free_cached(pebble_pool *pool);

/* Makes a task of the pool from checked options; see pebble_schedule(). function names the public
 * function in messages. In src/pebble.c. */
pebble_error pool_schedule(pebble_pool *pool, const pebble_task_options *task,
                           task_kind kind, pebble_future **future, const char *function);

#endif
