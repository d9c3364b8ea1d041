#include "core/interrupt.h"

#include "pebble.h"

static _Thread_local bool interruptible;

void pebble_set_interruptible(bool on) {
    interruptible = on;
}

bool interrupt_ends_wait(int error) {
    return error == EINTR && interruptible;
}
