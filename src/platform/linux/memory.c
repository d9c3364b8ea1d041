/* malloc and its kin, with fault injection. */
#include "platform/platform.h"

#include <stdlib.h>

void *os_alloc(size_t size) {
    return os_fault_hits(OS_FAULT_ALLOC) ? NULL : malloc(size);
}

void *os_alloc_zeroed(size_t size) {
    return os_fault_hits(OS_FAULT_ALLOC) ? NULL : calloc(1, size);
}

void *os_realloc(void *memory, size_t size) {
    return os_fault_hits(OS_FAULT_ALLOC) ? NULL : realloc(memory, size);
}

void os_free(void *memory) {
    free(memory);
}
