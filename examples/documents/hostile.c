/* hostile.c - inputs that harm whoever handles them.
 *
 * Each stands for a fault that parsers have had: a loop that a crafted file keeps going,
 * a decompression bomb, an offset used unchecked, a library that ends the program. The
 * functions are kept apart, so that the backtraces read as the source does.
 */
#include "hostile.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1024 * 1024)

/* Not inlined, and called rather than jumped to. */
#define KEPT_APART __attribute__((noinline))
#define STAY_ON_STACK() __asm__ volatile("")

/* ---- Loops for ever ---- */

static KEPT_APART void follow_circular_includes(void) {
    volatile unsigned depth = 0;

    for (;;)
        depth++;
}

static int endless_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    follow_circular_includes();
    return 0;
}

/* ---- Allocates without end ---- */

static KEPT_APART size_t inflate_without_end(void) {
    char *text = NULL, *larger;
    size_t size = 0;

    while ((larger = realloc(text, size + 16 * MIB)) != NULL) {
        text = larger;
        memset(text + size, 'A', 16 * MIB);
        size += 16 * MIB;
    }
    free(text);
    return size;
}

static int bomb_task(pebble_task *task, const void *input, size_t input_size) {
    size_t size = inflate_without_end();

    (void)input, (void)input_size;
    return pebble_task_fail(task, ENOMEM, "out of memory after %zu MiB", size / MIB);
}

/* ---- Writes through a wild pointer ---- */

static KEPT_APART void write_through_wild_pointer(uintptr_t address) {
    *(volatile char *)address = 1;
    STAY_ON_STACK();
}

static KEPT_APART void expand_macro_table(uintptr_t unchecked_offset) {
    write_through_wild_pointer(unchecked_offset * 16);
    STAY_ON_STACK();
}

static int wild_pointer_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    expand_macro_table(0xbad);
    return 0;
}

/* ---- Ends its process ---- */

static KEPT_APART void leave_with_success(void) {
    _exit(0);
}

static int exit_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    leave_with_success();
    return 0;
}

static KEPT_APART void find_heap_corrupted(void) {
    abort();
}

static int abort_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    find_heap_corrupted();
    return 0;
}

/* ---- All of them ---- */

const hostile_input hostile_inputs[] = {
    {"hostile: loops for ever", endless_task, PEBBLE_ERR_TASK_TIMEOUT, 0, 0, NULL},
    {"hostile: allocates without end", bomb_task, PEBBLE_ERR_TASK_FAILED, ENOMEM, 0, NULL},
    {"hostile: writes through a wild pointer", wild_pointer_task, PEBBLE_ERR_TASK_EXPIRED,
     0, SIGSEGV, "write_through_wild_pointer"},
    {"hostile: calls _exit(0)", exit_task, PEBBLE_ERR_TASK_EXPIRED, 0, 0, NULL},
    {"hostile: calls abort()", abort_task, PEBBLE_ERR_TASK_EXPIRED, 0, SIGABRT,
     "find_heap_corrupted"},
};
const size_t hostile_input_count = sizeof hostile_inputs / sizeof *hostile_inputs;

bool hostile_as_expected(const hostile_input *input, const pebble_failure *failure) {
    if (failure == NULL || failure->kind != input->kind || failure->pid == 0)
        return false;
    if (failure->code != input->code || failure->signal != input->signal ||
        failure->exit_code != -input->signal)
        return false;
    if (input->in_backtrace == NULL)
        return true;
    return failure->backtrace != NULL &&
           strstr(failure->backtrace, input->in_backtrace) != NULL;
}
