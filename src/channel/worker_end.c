#include "channel/worker_end.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

enum {
    SPIN_NS = 30 * 1000,  /* about what it costs to sleep and be woken */
    SPIN_ROUNDS = 32,     /* between looks at the clock */
    MEET_NS = 200 * 1000, /* longer idleness is no stream of tasks */
    MEET_TIMES = 8,
    MOVE_EVERY_NS = 100 * 1000 * 1000,
    BUFFER_KEPT = 8 * 1024 * 1024, /* larger inputs do not keep their memory */
};

void worker_end_init(worker_end *end, const channel_down *down, channel_up *up,
                     int bell_fd) {
    memset(end, 0, sizeof *end);
    end->down = down;
    end->up = up;
    end->bell_fd = bell_fd;
    end->bell_identity = os_bell_identity(bell_fd);
    end->rung_event = end->rung_futex = CHANNEL_NEVER;
}

/* ---- Waiting ---- */

/* Ends the process if the program is about to: there may be a handler for the SIGTERM that came. */
static void exit_if_killed(const worker_end *end) {
    if (atomic_load_explicit(&end->down->killing, memory_order_relaxed) != 0)
        _exit(EXIT_SUCCESS);
}

/* Spins until the word differs from seen, for a while. */
static bool spin_while(const _Atomic uint32_t *word, uint32_t seen) {
    if (!os_spinning_helps())
        return false;
    int64_t until_ns = os_now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen)
                return true;
            os_spin_pause();
        }
    } while (os_now_ns() < until_ns);
    return false;
}

/* The program hears of what this worker does by its bell alone. If a task has closed it, or put
 * another file in its place, the worker ends: the program hears of that by its death. */
static void ring_bell(const worker_end *end) {
    if (os_bell_identity(end->bell_fd) != end->bell_identity)
        _exit(EXIT_FAILURE);
    os_bell_ring(end->bell_fd);
}

static void ring_futex(worker_end *end) {
    atomic_fetch_add(&end->up->ring_count, 1);
    os_futex_wake_shared(&end->up->ring_count, 1);
}

/* Something holds this worker up that only the program can mend. */
static void ring_for_help(worker_end *end) {
    if (atomic_load(&end->down->futex_at) != CHANNEL_NEVER)
        ring_futex(end);
    else
        ring_bell(end);
}

/* Sleeps until the word differs from seen; sleep tells the program so. */
static void sleep_while(worker_end *end, const _Atomic uint32_t *word, uint32_t seen,
                        _Atomic uint32_t *sleep, bool help) {
    /* Odd: sleeping. Counted here, not there, where a task may have written anything. */
    atomic_store_explicit(sleep, ++end->sleeps, memory_order_release);
    atomic_thread_fence(
        memory_order_seq_cst); /* pairs with the program's after publishing */
    if (help && atomic_load_explicit(word, memory_order_acquire) == seen)
        ring_for_help(end);
    while (atomic_load_explicit(word, memory_order_acquire) == seen) {
        exit_if_killed(end);
        os_futex_wait_shared(word, seen, OS_NO_DEADLINE); /* ends with a signal */
    }
    end->now_ns = 0; /* it is later now */
    atomic_store_explicit(sleep, ++end->sleeps, memory_order_relaxed);
}

void worker_end_wait_until_known(const worker_end *end) {
    while (atomic_load_explicit(&end->down->known, memory_order_acquire) == 0)
        os_futex_wait_shared(&end->down->known, 0, OS_NO_DEADLINE);
}

/* ---- Tasks ---- */

static const task_record *record_at(const worker_end *end) {
    return (const task_record *)(end->down->ring + (end->task_head & (CHANNEL_RING - 1)));
}

static void free_task_bytes(worker_end *end, uint32_t size) {
    end->task_head += size;
    atomic_store_explicit(&end->up->task_head, end->task_head, memory_order_release);
}

/* A stream of single tasks from the processor that this worker is on: the two take turns there,
 * at the price of a sleep and a wake each, while another may be free. */
static void keep_apart(worker_end *end, int64_t idle_since_ns) {
    unsigned here = os_current_processor();
    bool meets = here == atomic_load_explicit(&end->down->cpu, memory_order_relaxed);
    atomic_store_explicit(&end->up->cpu, here, memory_order_relaxed);
    int64_t now_ns = os_now_ns();
    end->met = meets && now_ns - idle_since_ns < MEET_NS ? end->met + 1 : 0;
    if (end->met < MEET_TIMES || now_ns - end->moved_ns < MOVE_EVERY_NS ||
        !os_spinning_helps())
        return;
    end->met = 0;
    end->moved_ns = now_ns;
    os_leave_processor();
    atomic_store_explicit(&end->up->cpu, os_current_processor(), memory_order_relaxed);
}

static void wait_for_task_bytes(worker_end *end, bool help) {
    const _Atomic uint32_t *tail = &end->down->task_tail;
    if (atomic_load_explicit(tail, memory_order_acquire) != end->task_head)
        return;
    int64_t idle_since_ns = end->now_ns != 0 ? end->now_ns : os_now_ns();
    end->now_ns = 0;
    if (spin_while(tail, end->task_head))
        return;
    if (end->idle != NULL && !help) /* with help it waits for the rest of a task's input */
        end->idle(end->idle_context);
    sleep_while(end, tail, end->task_head, &end->up->task_sleep, help);
    keep_apart(end, idle_since_ns);
}

/* Rings if somebody wants to know of a task that has ended by now. */
static void ring_if_wanted(worker_end *end) {
    atomic_store_explicit(&end->up->ended, end->sequence, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the program's after arming */
    uint64_t event_at = atomic_load_explicit(&end->down->event_at, memory_order_relaxed);
    uint64_t futex_at = atomic_load_explicit(&end->down->futex_at, memory_order_relaxed);
    if (futex_at < end->sequence && futex_at != end->rung_futex) {
        end->rung_futex = futex_at;
        ring_futex(end);
    }
    if (event_at < end->sequence && event_at != end->rung_event) {
        end->rung_event = event_at;
        ring_bell(end);
    }
}

/* Space for a streamed input is wanted now, not when the task has ended. */
static void free_streamed(worker_end *end, uint32_t size) {
    free_task_bytes(end, size);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the program's after it asked */
    if (atomic_load_explicit(&end->down->space_wanted, memory_order_relaxed) != 0)
        ring_for_help(end);
}

static bool make_buffer(worker_end *end, size_t size) {
    if (size <= end->buffer_size)
        return true;
    os_free(end->buffer);
    end->buffer = os_alloc(size);
    end->buffer_size = end->buffer != NULL ? size : 0;
    return end->buffer != NULL;
}

/* Takes a large task out of the ring, its name to behind its input; without memory for it, only
 * past it. */
static void receive_input(worker_end *end, worker_task *task) {
    bool keep = task->input_size <= PTRDIFF_MAX - task->name_size &&
                make_buffer(end, task->input_size + task->name_size);
    size_t offset = 0;
    if (keep && task->name != NULL)
        task->name =
            memcpy((char *)end->buffer + task->input_size, task->name, task->name_size);
    free_streamed(end, (uint32_t)end->record_size);
    end->record_size = 0;
    uint32_t unfreed = 0;
    while (offset < task->input_size) {
        uint32_t position = end->task_head + unfreed;
        uint32_t bytes =
            atomic_load_explicit(&end->down->task_tail, memory_order_acquire) - position;
        uint32_t start = position & (CHANNEL_RING - 1);
        size_t left = task->input_size - offset;
        if (bytes > CHANNEL_RING - start)
            bytes = CHANNEL_RING - start;
        if (bytes > CHANNEL_FREE_STEP)
            bytes = CHANNEL_FREE_STEP;
        if (bytes == 0) {
            if (unfreed > 0)
                free_streamed(end, unfreed);
            unfreed = 0;
            wait_for_task_bytes(end, true);
            continue;
        }
        uint32_t used = left < bytes ? (uint32_t)left : bytes;
        if (keep)
            memcpy((char *)end->buffer + offset, end->down->ring + start, used);
        offset += used;
        unfreed += channel_padded(used);
        if (unfreed >= CHANNEL_FREE_STEP) {
            free_streamed(end, unfreed);
            unfreed = 0;
        }
    }
    if (unfreed > 0)
        free_streamed(end, unfreed);
    task->input = keep ? end->buffer : NULL;
}

/* Claims the task at the head: false if it was withdrawn. */
static bool claim(worker_end *end) {
    channel_slot *slot = &end->up->slots[end->sequence & (CHANNEL_SLOTS - 1)];
    uint64_t expected = slot_word(end->sequence, SLOT_QUEUED);
    if (end->now_ns == 0)
        end->now_ns = os_now_ns();
    end->start_ns = end->now_ns;
    atomic_store_explicit(&slot->start_ns, end->start_ns, memory_order_relaxed);
    if (atomic_compare_exchange_strong_explicit(
            &slot->word, &expected, slot_word(end->sequence, SLOT_RUNNING),
            memory_order_acq_rel, memory_order_relaxed))
        return true;
    /* Withdrawn, or since then given to a later task. Anything else was written by a task gone
     * wild: to go on as if this one had been withdrawn would lose it. */
    uint64_t later = (expected >> 2) - end->sequence;
    bool reused = (expected & SLOT_STATE) == SLOT_QUEUED ||
                  (expected & SLOT_STATE) == SLOT_WITHDRAWN;
    if (expected != slot_word(end->sequence, SLOT_WITHDRAWN) &&
        !(reused && later > 0 && later % CHANNEL_SLOTS == 0 &&
          later <= CHANNEL_RING / CHANNEL_LINE))
        _exit(EXIT_FAILURE);
    return false;
}

static void open_task(worker_end *end, const task_record *record, worker_task *task) {
    const char *payload = (const char *)(record + 1);
    size_t size = record->name_size + (size_t)record->input_size;
    *task = (worker_task){.kind = record->task,
                          .function = record->function,
                          .name = record->name_size > 0 ? payload : NULL,
                          .name_size = record->name_size,
                          .input = payload + record->name_size,
                          .input_size = (size_t)record->input_size};
    end->record_size = channel_padded(sizeof *record + size);
    if (size > CHANNEL_WHOLE) /* the input follows, on a line of its own */
        end->record_size = channel_padded(sizeof *record + record->name_size);
}

bool worker_end_next(worker_end *end, worker_task *task) {
    for (;;) {
        wait_for_task_bytes(end, false);
        exit_if_killed(end);
        const task_record *record = record_at(end);
        if (record->kind == RECORD_EXIT)
            return false;
        if (record->kind == RECORD_PAD) {
            free_task_bytes(end, CHANNEL_RING - (end->task_head & (CHANNEL_RING - 1)));
            continue;
        }
        if (record->sequence != end->sequence)
            _exit(EXIT_FAILURE); /* not this worker's count any more, see claim() */
        bool claimed = claim(end);
        open_task(end, record, task);
        if (claimed) {
            if (task->name_size + task->input_size > CHANNEL_WHOLE)
                receive_input(end, task);
            return true;
        }
        free_task_bytes(end, (uint32_t)end->record_size);
        end->sequence++;
        ring_if_wanted(end);
    }
}

void *worker_end_take_input(worker_end *end) {
    void *buffer = end->record_size == 0 ? end->buffer : NULL;
    if (buffer != NULL) {
        end->buffer = NULL;
        end->buffer_size = 0;
    }
    return buffer;
}

/* ---- Results ---- */

/* Free bytes, but for one line: a record's end is rounded up to one. */
static uint32_t result_room(worker_end *end) {
    uint32_t used = end->result_tail - end->result_head;
    if (used + CHANNEL_FREE_STEP > CHANNEL_RING) {
        end->result_head =
            atomic_load_explicit(&end->down->result_head, memory_order_acquire);
        used = end->result_tail - end->result_head;
    }
    return used < CHANNEL_RING - CHANNEL_LINE ? CHANNEL_RING - CHANNEL_LINE - used : 0;
}

static uint32_t wait_for_result_room(worker_end *end) {
    const _Atomic uint32_t *head = &end->down->result_head;
    uint32_t room;
    while ((room = result_room(end)) < CHANNEL_LINE) {
        uint32_t seen = end->result_head;
        if (!spin_while(head, seen))
            sleep_while(end, head, seen, &end->up->space_sleep, true);
    }
    return room;
}

static void publish_result(worker_end *end) {
    atomic_store_explicit(&end->up->result_tail, end->result_tail, memory_order_release);
}

/* Copies bytes into the ring, waiting for room; publishes in steps, so that the program can read
 * while this goes on. */
static void put_bytes(worker_end *end, const unsigned char *data, size_t size) {
    while (size > 0) {
        uint32_t piece = wait_for_result_room(end);
        uint32_t start = end->result_tail & (CHANNEL_RING - 1);
        if (piece > CHANNEL_RING - start)
            piece = CHANNEL_RING - start;
        if (piece > CHANNEL_FREE_STEP)
            piece = CHANNEL_FREE_STEP;
        if (piece > size)
            piece = (uint32_t)size;
        memcpy(end->up->ring + start, data, piece);
        end->result_tail += piece;
        data += piece;
        size -= piece;
        if (size > 0)
            publish_result(end);
    }
}

static void put_record(worker_end *end, const result_record *record, const void *data) {
    wait_for_result_room(end);
    memcpy(end->up->ring + (end->result_tail & (CHANNEL_RING - 1)), record,
           sizeof *record);
    end->result_tail += sizeof *record;
    put_bytes(end, data, (size_t)record->size);
    end->result_tail = (end->result_tail + CHANNEL_LINE - 1) / CHANNEL_LINE * CHANNEL_LINE;
    publish_result(end);
}

void worker_end_write(worker_end *end, const void *data, size_t size) {
    result_record record = {.kind = RECORD_DATA, .size = size, .sequence = end->sequence};
    put_record(end, &record, data);
}

void worker_end_finish(worker_end *end, bool failed, int code, const void *data,
                       size_t size) {
    end->now_ns = os_now_ns();
    result_record record = {
        .kind = failed ? RECORD_FAILED : RECORD_DONE,
        .code = code,
        .size = size,
        .sequence = end->sequence,
        .duration_ns = (uint64_t)(end->now_ns - end->start_ns),
    };
    put_record(end, &record, data);
    free_task_bytes(end, (uint32_t)end->record_size);
    end->sequence++;
    if (end->buffer_size > BUFFER_KEPT) {
        os_free(end->buffer);
        end->buffer = NULL;
        end->buffer_size = 0;
    }
    ring_if_wanted(end);
}
