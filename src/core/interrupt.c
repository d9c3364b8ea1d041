#include "core/interrupt.h"

#include <errno.h>
#include <limits.h>

#include "pebble.h"
#include "platform/platform.h"

_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t),
               "the caller's word is one of ours");

static _Thread_local bool interruptible;

void pebble_set_interrupt_word(const uint32_t *word) {
    interruptible = word != NULL;
    os_futex_set_interrupt((const _Atomic uint32_t *)word);
}

void pebble_interrupt(uint32_t *word) {
    int error = errno;
    if (word == NULL)
        return;
    atomic_store((_Atomic uint32_t *)word, 1);
    os_futex_wake((_Atomic uint32_t *)word, INT_MAX);
    errno = error; /* of what the signal has interrupted */
}

bool interrupt_ends_wait(int error) {
    return error == EINTR && interruptible;
}
