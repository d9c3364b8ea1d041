/* malloc and its kin, with fault injection. */
#include "platform/platform.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGE = 4 * 1024 * 1024 };                           /* in bytes: two huge pages */
enum { KEPT_MIN = 128 * 1024, KEPT_MAX = 4 * 1024 * 1024 }; /* in bytes */

/* Memory so large is about to be filled: in pages of 4 KiB that takes four times as long as copying
 * does, for a fault each. All pages of the block, also those it has a part of: in a mapping with advice
 * for its middle only, which are three, mremap() fails, and realloc() copies. */
static void *advised(void *memory, size_t size) {
    if (memory != NULL && size >= LARGE) {
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        uintptr_t start = (uintptr_t)memory / page * page;
        uintptr_t end = (uintptr_t)memory + malloc_usable_size(memory);
        end = (end + page - 1) / page * page;
        madvise((void *)start, end - start, MADV_HUGEPAGE); /* NOLINT; a hint */
    }
    return memory;
}

void os_expect_large_blocks(size_t size) {
    static atomic_bool done;
    if (size < KEPT_MIN || size > KEPT_MAX || atomic_exchange(&done, true))
        return;
    void *volatile block = malloc(KEPT_MAX); /* volatile: the compiler knows malloc */
    free(block);
}

void *os_alloc(size_t size) {
    os_expect_large_blocks(size);
    return advised(os_attempt(OS_FAULT_ALLOC, ENOMEM, NULL, malloc(size)), size);
}

void *os_alloc_zeroed(size_t size) {
    return os_attempt(OS_FAULT_ALLOC, ENOMEM, NULL, calloc(1, size));
}

void *os_realloc(void *memory, size_t size) {
    os_expect_large_blocks(size);
    return advised(os_attempt(OS_FAULT_ALLOC, ENOMEM, NULL, realloc(memory, size)), size);
}

void os_free(void *memory) {
    free(memory);
}

/* ---- After a fork ---- */

#ifdef __GLIBC__

/* What glibc reserves for the arena of a thread, at a multiple of itself. */
#define ARENA_SIZE ((uintptr_t)64 << 20)

typedef struct memory_range {
    unsigned long start, end;
    char access[5];
} memory_range;

/* The used beginning of an arena: there is its size, too (struct heap_info, mprotect_size). */
static bool begins_arena(const memory_range *range) {
    return range->start % ARENA_SIZE == 0 && strcmp(range->access, "rw-p") == 0 &&
           ((const size_t *)range->start)[3] == range->end - range->start; /* NOLINT */
}

static void release_reserves_of_arenas(void) {
    memory_range before = {0}, range;
    char line[512];
    FILE *maps = os_attempt(OS_FAULT_FD, EMFILE, NULL, fopen("/proc/self/maps", "re"));
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%lx-%lx %4s", &range.start, &range.end, range.access) != 3)
            continue;
        if (strcmp(range.access, "---p") == 0 && range.start == before.end &&
            range.end == before.start + ARENA_SIZE && begins_arena(&before))
            munmap((void *)range.start, range.end - range.start); /* NOLINT */
        before = range;
    }
    if (maps != NULL)
        fclose(maps);
}

void os_release_unused_memory(void) {
    malloc_trim(0);
    release_reserves_of_arenas();
}

#else

void os_release_unused_memory(void) {
}

#endif
