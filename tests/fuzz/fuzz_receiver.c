/* A hostile worker, played by the fuzzer's input: it writes into the memory that a worker writes,
 * between calls of the program's ends of the channel, which must stay sound.
 *
 * The input is a list of steps: a byte says which, what follows is its arguments; an input that
 * ends early has zeroes behind it. Checked, beside what the address sanitizer sees:
 *
 *   - a damaged receiver stays so, and never reports another end
 *   - the end of a task is well-formed: its bytes are there, a message has its greatest length
 *   - memory stays bounded, by what a program may give for one result (os_realloc() below), and is
 *     all given back
 *   - the text of a crash report is printable lines
 *
 * Memory is counted, and refused beyond a limit, by this file's own os_alloc() and so on, which
 * take the place of the engine's. */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "channel/receiver.h"
#include "channel/sender.h"
#include "core/task.h"
#include "process/crash.h"

enum {
    MEMORY_MAX = 16 * 1024 * 1024, /* what a program can spare */
    STEPS_MAX = 4000,
    STREAM_SIZE = 100 * 1000,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- Memory ---- */

static size_t memory_used;

static bool spare(size_t more) {
    return more <= MEMORY_MAX && memory_used + more <= MEMORY_MAX;
}

void *os_alloc(size_t size) {
    void *memory = spare(size) ? malloc(size) : NULL;
    memory_used += memory != NULL ? malloc_usable_size(memory) : 0;
    return memory;
}

void *os_alloc_zeroed(size_t size) {
    void *memory = os_alloc(size);
    return memory != NULL ? memset(memory, 0, size) : NULL;
}

void *os_realloc(void *memory, size_t size) {
    size_t before = memory != NULL ? malloc_usable_size(memory) : 0;
    void *changed = spare(size) ? realloc(memory, size) : NULL;
    if (changed != NULL)
        memory_used += malloc_usable_size(changed) - before;
    return changed;
}

void os_free(void *memory) {
    memory_used -= memory != NULL ? malloc_usable_size(memory) : 0;
    free(memory);
}

void os_expect_large_blocks(size_t size) {
    (void)size;
}

/* ---- The input ---- */

typedef struct steps {
    const uint8_t *data;
    size_t size;
} steps;

static const uint8_t *take_bytes(steps *in, size_t size) {
    const uint8_t *bytes = in->data;
    if (size > in->size)
        return NULL;
    in->data += size;
    in->size -= size;
    return bytes;
}

static uint64_t take(steps *in, size_t size) {
    uint64_t value = 0;
    if (size > in->size)
        size = in->size;
    memcpy(&value, in->data, size);
    in->data += size;
    in->size -= size;
    return value;
}

/* ---- Both sides ---- */

typedef struct fuzz {
    channel_down *down;
    channel_up *up;
    channel_sender sender;
    channel_receiver receiver;
    bool was_damaged;
    /* The worker's. */
    uint32_t result_tail;
    uint64_t sequence;
    /* A large input on its way. */
    _Atomic size_t streamed;
    bool streaming;
} fuzz;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition))                                                                \
            __builtin_trap();                                                            \
    } while (0)

static unsigned char touched;

static void touch(const unsigned char *bytes, size_t size) {
    for (size_t i = 0; i < size; i += 512)
        touched ^= bytes[i];
    if (size > 0)
        touched ^= bytes[size - 1];
}

static void check_end(receiver_end *end) {
    if (end->failed)
        CHECK(end->result.size < TASK_MESSAGE_SIZE);
    if (end->no_memory)
        CHECK(end->result.size == 0);
    if (end->result.data == NULL)
        CHECK(end->result.size <= FUTURE_INLINE);
    touch(end->result.data != NULL ? end->result.data : end->result.small,
          end->result.size);
    result_bytes_fini(&end->result);
}

static void receive(fuzz *all, unsigned count) {
    for (unsigned i = 0; i <= count; i++) {
        receiver_end end;
        receiver_status status = receiver_next(&all->receiver, &end);
        CHECK(!all->was_damaged || status == RECEIVER_DAMAGED);
        all->was_damaged = status == RECEIVER_DAMAGED;
        if (status != RECEIVER_ENDED)
            return;
        check_end(&end);
    }
}

static void write_up(fuzz *all, uint32_t position, const void *bytes, size_t size) {
    for (size_t i = 0; i < size; i++)
        all->up->ring[(position + i) & (CHANNEL_RING - 1)] =
            ((const unsigned char *)bytes)[i];
}

static void set_result_tail(fuzz *all, uint32_t tail) {
    all->result_tail = tail;
    atomic_store(&all->up->result_tail, tail);
}

/* As a worker does it, but for what the record says. */
static void write_record(fuzz *all, const result_record *record, uint32_t payload,
                         bool whole) {
    uint32_t position = all->result_tail + (uint32_t)sizeof *record;
    write_up(all, all->result_tail, record, sizeof *record);
    for (uint32_t i = 0; i < payload && i < CHANNEL_RING; i += 61)
        all->up->ring[(position + i) & (CHANNEL_RING - 1)] = (unsigned char)i;
    set_result_tail(all,
                    all->result_tail + (whole ? channel_padded(sizeof *record + payload)
                                              : (uint32_t)sizeof *record + payload));
}

static void step_record(fuzz *all, steps *in, bool honest) {
    result_record record = {.kind = (uint16_t)(RECORD_DATA + take(in, 1) % 3)};
    uint32_t payload = (uint32_t)take(in, 2);
    record.size = honest ? payload : take(in, 8);
    record.code = (int32_t)payload;
    record.sequence = honest ? all->sequence : take(in, 1);
    record.duration_ns = take(in, 2);
    write_record(all, &record, payload, honest);
    if (honest && record.kind != RECORD_DATA)
        all->sequence++;
}

static void step_raw(fuzz *all, steps *in) {
    uint32_t offset = (uint32_t)take(in, 1);
    size_t size = take(in, 1);
    const uint8_t *bytes = take_bytes(in, size);
    if (bytes == NULL)
        return;
    write_up(all, all->result_tail + offset, bytes, size);
    set_result_tail(all, all->result_tail + (uint32_t)take(in, 1));
}

/* ---- The program's calls ---- */

static void go_on_streaming(fuzz *all) {
    static const unsigned char input[STREAM_SIZE];
    if (all->streaming)
        all->streaming = !sender_stream(&all->sender, input, STREAM_SIZE, &all->streamed);
    sender_can_stream(&all->sender);
}

static void step_put(fuzz *all, steps *in) {
    static const char name[300] = "name";
    static const unsigned char input[STREAM_SIZE];
    size_t kind = take(in, 1), size = take(in, 2);
    sender_task task = {.name = kind & 1 ? name : NULL,
                        .name_size = kind & 1 ? kind : 0,
                        .input = input,
                        .input_size = size};
    if (kind & 2)
        task.input_size = STREAM_SIZE;
    go_on_streaming(all);
    if (all->streaming || !sender_has_room(&all->sender, task.input_size + 512))
        return;
    sender_put(&all->sender, &task);
    all->streaming = task.name_size + task.input_size > CHANNEL_WHOLE;
    atomic_store(&all->streamed, 0);
    sender_publish(&all->sender);
    go_on_streaming(all);
}

static void step_exit(fuzz *all) {
    if (!all->streaming && sender_has_room(&all->sender, 0)) {
        sender_put_exit(&all->sender);
        sender_publish(&all->sender);
    }
}

static void step_task_state(fuzz *all, steps *in) {
    int64_t start_ns = 0;
    uint64_t behind = take(in, 1);
    uint64_t sequence =
        all->sender.sequence > behind ? all->sender.sequence - behind : behind;
    sender_started(&all->sender, sequence, &start_ns);
    bool withdrawn = sender_withdraw(&all->sender, sequence);
    CHECK(!withdrawn || !sender_started(&all->sender, sequence, &start_ns));
    CHECK(!withdrawn || !sender_withdraw(&all->sender, sequence));
}

static void step_crash_text(fuzz *all) {
    int signal = -1;
    char *text =
        crash_report_text((const crash_report *)(const void *)all->up->crash, &signal);
    CHECK(signal >= 0 && signal < 32);
    for (const char *c = text; c != NULL && *c != '\0'; c++)
        CHECK((*c >= ' ' && *c <= '~') || *c == '\n');
    os_free(text);
}

/* ---- Steps ---- */

static void step_words(fuzz *all, steps *in) {
    uint32_t value = (uint32_t)take(in, 4);
    switch (take(in, 1) % 5) {
    case 0:
        atomic_store(&all->up->task_sleep, value);
        break;
    case 1:
        atomic_store(&all->up->space_sleep, value);
        break;
    case 2:
        atomic_store(&all->up->ended, (uint64_t)value << 16);
        break;
    case 3:
        atomic_store(&all->up->ring_count, value);
        break;
    default:
        atomic_store(&all->down->space_wanted, value & 1);
    }
}

static void step_slot(fuzz *all, steps *in) {
    channel_slot *slot = &all->up->slots[take(in, 2) & (CHANNEL_SLOTS - 1)];
    atomic_store(&slot->word, take(in, 8));
    atomic_store(&slot->start_ns, (int64_t)take(in, 8));
}

static void step_crash_bytes(fuzz *all, steps *in) {
    size_t offset = take(in, 2) % CHANNEL_CRASH_SIZE, size = take(in, 1);
    const uint8_t *bytes = take_bytes(in, size);
    if (bytes != NULL && offset + size <= CHANNEL_CRASH_SIZE)
        memcpy(all->up->crash + offset, bytes, size);
}

static void take_step(fuzz *all, steps *in) {
    switch (take(in, 1) % 16) {
    case 0:
        set_result_tail(all, (uint32_t)take(in, 4));
        break;
    case 1:
        set_result_tail(all, all->result_tail + (uint32_t)take(in, 2));
        break;
    case 2:
        step_raw(all, in);
        break;
    case 3:
    case 4:
        step_record(all, in, true);
        break;
    case 5:
        step_record(all, in, false);
        break;
    case 6:
    case 7:
        receive(all, (unsigned)take(in, 1));
        break;
    case 8:
        receiver_release(&all->receiver);
        receiver_has_data(&all->receiver);
        break;
    case 9:
        atomic_store(&all->up->task_head, (uint32_t)take(in, 4));
        break;
    case 10: /* all tasks are taken */
        atomic_store(&all->up->task_head, atomic_load(&all->down->task_tail));
        break;
    case 11:
        step_words(all, in);
        break;
    case 12:
        step_slot(all, in);
        break;
    case 13:
        if (take(in, 1) & 1)
            step_crash_bytes(all, in);
        else
            step_crash_text(all);
        break;
    case 14:
        if (take(in, 1) < 250)
            step_put(all, in);
        else
            step_exit(all);
        break;
    default:
        step_task_state(all, in);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz all = {.down = aligned_alloc(CHANNEL_LINE, sizeof(channel_down)),
                .up = aligned_alloc(CHANNEL_LINE, sizeof(channel_up))};
    steps in = {data, size};
    CHECK(all.down != NULL && all.up != NULL);
    memset(all.down, 0, sizeof *all.down);
    memset(all.up, 0, sizeof *all.up);
    sender_init(&all.sender, all.down, all.up);
    receiver_init(&all.receiver, all.up, all.down);
    for (int i = 0; i < STEPS_MAX && in.size > 0; i++)
        take_step(&all, &in);
    receive(&all, 0);
    receiver_fini(&all.receiver);
    CHECK(memory_used == 0);
    free(all.down);
    free(all.up);
    return 0;
}
